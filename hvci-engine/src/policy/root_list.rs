//! Whether a root list may be believed, and if so, what it takes from the anchors.

use super::chain_rules::examine_list_path;
use crate::{
    budget::Budget,
    finding::{Code, Note, Severity},
    signature::{cache::Cache, chain, root_list::RootList, trust::TrustStore},
};

/// Limits the anchors of `trust`, those that are there and those added later, as `list` says.
///
/// The list's own signature must be beyond doubt: nothing that would be worth a warning on a file, a certificate path with the usage for root
/// lists to an anchor for [`Purposes::LIST`](crate::signature::trust::Purposes::LIST), valid when the list says that it was made. A list carries
/// no timestamp, and an old one is better than none, so the time now does not matter.
///
/// # Errors
/// A note that says why the list is not believed; `trust` is as it was.
pub fn limit_anchors(trust: &mut TrustStore, list: &RootList, cache: &Cache) -> Result<(), Note> {
    let signature = &list.signature;
    if let Some(fault) = signature.notes.iter().find(|n| n.code.default_severity() >= Severity::Warning) {
        return Err(fault.clone());
    }
    let signer = signature.signer.as_ref().filter(|s| s.check.is_valid());
    let Some(leaf) = signer.and_then(|s| list.certificates.get(s.certificate?)) else {
        return Err(Note::new(Code::SigInvalid, "nothing shows that the list's signature verifies"));
    };
    let paths = chain::build(leaf, &list.certificates, trust, cache, &mut Budget::path_building()).map_err(|e| e.note())?;
    let mut fault = None;
    for path in &paths {
        match examine_list_path(path, list.this_update) {
            None => {
                trust.limit(list.this_update, &list.entries);
                return Ok(());
            }
            Some(note) => fault = fault.or(Some(note)),
        }
    }
    Err(fault.unwrap_or_else(|| Note::new(Code::PkiUntrusted, "").of(leaf.subject())))
}
