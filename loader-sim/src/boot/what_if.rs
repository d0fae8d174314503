//! What would stop starting if the variables were others: revocations to come, a certificate that is taken away, a level that is raised.
//!
//! Nothing is written, and nobody is asked who may: it is about the day after the update.

use hvci_engine::{
    image::sbat::SbatLevel,
    signature::{
        cert::Certificate,
        signature_list::{SignatureDatabase, SignatureList, SignatureType},
    },
};

use crate::firmware::{
    authenticated::Update,
    store::VariableStore,
    variable::{Variable, well_known},
};

/// A change of the variables.
#[derive(Clone, Debug, Default)]
pub struct Change {
    /// Added to dbx.
    pub revoked: SignatureDatabase,
    /// Certificates whose subject has one of these texts are taken out of db.
    pub without: Vec<String>,
    /// Added to db.
    pub with: SignatureDatabase,
    /// SbatLevel, if it is later than the machine's.
    pub level: Option<Vec<u8>>,
}

/// A change that says nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChangeError {
    /// Neither signature lists nor a signed update of them.
    #[error("neither signature lists nor a signed update of them: {0}")]
    Lists(String),
    /// No level of SBAT.
    #[error("no SbatLevel: {0}")]
    Level(String),
}

/// The lists in a file: as they are, or behind the descriptor of a signed update, whose signature does not matter here.
///
/// # Errors
/// [`ChangeError::Lists`].
pub fn lists_in(bytes: &[u8]) -> Result<SignatureDatabase, ChangeError> {
    let update = Update::read(bytes).ok().and_then(|update| SignatureDatabase::read(update.payload).ok());
    update.map_or_else(|| SignatureDatabase::read(bytes).map_err(|e| ChangeError::Lists(e.to_string())), Ok)
}

impl Change {
    /// Raises the level to the one of this text, `sbat,1,…`.
    ///
    /// # Errors
    /// [`ChangeError::Level`].
    pub fn raise(&mut self, text: &[u8]) -> Result<(), ChangeError> {
        SbatLevel::read(text).map_err(|note| ChangeError::Level(note.detail))?;
        self.level = Some(text.to_vec());
        Ok(())
    }

    /// The variables after the change. What cannot be read in them stays as it is.
    pub fn apply(&self, store: &VariableStore) -> VariableStore {
        let mut changed = store.clone();
        change_lists(&mut changed, "dbx", |lists| {
            lists.append(&self.revoked);
        });
        change_lists(&mut changed, "db", |lists| {
            let kept = lists.lists().iter().filter_map(|list| self.keep(list));
            let mut kept = SignatureDatabase::new(kept.collect());
            kept.append(&self.with);
            *lists = kept;
        });
        if let Some(level) = &self.level {
            let date = |text: &[u8]| SbatLevel::read(text).map_or(0, |level| level.date);
            if changed.known("SbatLevel").is_none_or(|known| date(&known.data) < date(level)) {
                replace(&mut changed, "SbatLevel", level.clone());
            }
        }
        changed
    }

    /// A list of db without the certificates that are taken away.
    fn keep(&self, list: &SignatureList) -> Option<SignatureList> {
        if list.kind() != SignatureType::X509 {
            return Some(list.clone());
        }
        let stays = |data: &[u8]| {
            let subject = Certificate::parse(data).map(|c| c.subject()).unwrap_or_default();
            !self.without.iter().any(|name| subject.contains(name.as_str()))
        };
        SignatureList::new(list.kind(), list.entries().iter().filter(|e| stays(&e.data)).cloned().collect()).ok()
    }
}

fn change_lists(store: &mut VariableStore, name: &str, change: impl FnOnce(&mut SignatureDatabase)) {
    let before = store.known(name).map(|v| v.data.clone()).unwrap_or_default();
    let Ok(mut lists) = SignatureDatabase::read(&before) else { return };
    change(&mut lists);
    let after = lists.to_bytes();
    if after != before {
        replace(store, name, after);
    }
}

/// Puts another value there, whoever may write it.
fn replace(store: &mut VariableStore, name: &str, data: Vec<u8>) {
    let Some((vendor, attributes)) = well_known(name) else { return };
    let old = store.get(name, vendor);
    let (time, legacy) = old.map(|v| (v.time, v.legacy)).unwrap_or_default();
    let new = Variable { name: name.encode_utf16().collect(), vendor, attributes, time, legacy, data };
    *store = VariableStore::new(store.variables().iter().cloned().chain([new]));
}
