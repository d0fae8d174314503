//! The variables of a machine and the rules for writing them, as edk2's `AuthVariableLib` has them.
//!
//! | variable | in user mode signed by | in setup mode |
//! |---|---|---|
//! | PK | a key of PK | the key that it brings, itself |
//! | KEK | a key of PK | any descriptor |
//! | db, dbx, dbt | a key of KEK | any descriptor |
//! | others | nobody: they may not be authenticated here | |
//!
//! A key of PK that is not in KEK does not sign db. User mode is when there is a PK. SetupMode and SecureBoot follow it and are written by nobody.
//! Not authenticated variables are written as a program of the boot phase writes them, as shim does MokList.

use hvci_engine::{
    signature::{
        cert::Certificate,
        signature_list::{SignatureDatabase, SignatureType},
    },
    uefi::{EfiTime, Guid},
};

use super::{
    Refused, Status,
    authenticated::Update,
    variable::{Attributes, Database, GLOBAL, SECURE_BOOT_ENABLE, Variable, well_known},
};

/// Most bytes of an authenticated variable with its name and header: OVMF's PcdMaxAuthVariableSize.
const MAX_SIZE: usize = 0x8400;
/// AUTHENTICATED_VARIABLE_HEADER, which counts.
const HEADER_SIZE: usize = 60;
const ENABLE: &str = "SecureBootEnable";

/// What a write did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Applied {
    /// Who signed it, if that was asked for.
    pub signer: Option<String>,
    /// What became of the variable.
    pub change: Change,
}

/// What became of a variable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// It has the value given.
    Written,
    /// It got so many entries that it did not have; of other data so many bytes.
    Appended(usize),
    /// It is gone.
    Deleted,
}

/// The non-volatile variables, in the order of the flash.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VariableStore {
    variables: Vec<Variable>,
}

impl VariableStore {
    /// Of these variables; of several with one name the last.
    pub fn new(variables: impl IntoIterator<Item = Variable>) -> Self {
        let mut store = Self::default();
        variables.into_iter().for_each(|v| store.put(v));
        store
    }

    /// Every variable.
    pub fn variables(&self) -> &[Variable] {
        &self.variables
    }

    /// The variable called `name`.
    pub fn get(&self, name: &str, vendor: Guid) -> Option<&Variable> {
        self.variables.iter().find(|v| v.vendor == vendor && v.name.iter().copied().eq(name.encode_utf16()))
    }

    /// The variable whose name says whose it is, as `db` does.
    pub fn known(&self, name: &str) -> Option<&Variable> {
        self.get(name, well_known(name)?.0)
    }

    /// Whether no PK is enrolled (SetupMode).
    pub fn setup_mode(&self) -> bool {
        self.get("PK", GLOBAL).is_none()
    }

    /// Whether Secure Boot is on when the machine starts (SecureBoot): in user mode, unless SecureBootEnable says no.
    pub fn secure_boot(&self) -> bool {
        !self.setup_mode() && self.get(ENABLE, SECURE_BOOT_ENABLE).is_none_or(|v| v.data == [1])
    }

    /// The store of a machine whose owner turned Secure Boot on or off in its firmware's menu (SecureBootEnable). Without a PK it stays off.
    #[must_use]
    pub fn with_secure_boot(mut self, on: bool) -> Self {
        if self.secure_boot() != on && !self.setup_mode() {
            self.put_enable(u8::from(on));
        }
        self
    }

    /// SetVariable. `data` begins with an EFI_VARIABLE_AUTHENTICATION_2 when the attributes say so.
    ///
    /// # Errors
    /// What the firmware refuses; then nothing has changed.
    pub fn set(&mut self, name: &str, vendor: Guid, attributes: Attributes, data: &[u8]) -> Result<Applied, Refused> {
        let refuse = |status, reason: &str| Err(Refused::new(status, reason));
        if name.is_empty() || name.contains('\0') {
            return refuse(Status::InvalidParameter, "a variable needs a name without NUL");
        }
        if vendor == GLOBAL && matches!(name, "SetupMode" | "SecureBoot" | "SignatureSupport") {
            return Err(Refused::new(Status::WriteProtected, format!("{name} is written by the firmware alone")));
        }
        let stored = attributes.without(Attributes::APPEND);
        let database = Database::of(name, vendor);
        let wanted = database.filter(|d| d.is_authenticated());
        if wanted.is_some() && !(attributes.has(Attributes::NV) && attributes.has(Attributes::TIME_BASED)) {
            return Err(Refused::new(
                Status::InvalidParameter,
                format!("{name} is non-volatile and written with a time-based signature only"),
            ));
        }
        let known = Attributes::DATABASE.and(Attributes::APPEND);
        if attributes.without(known).0 != 0 || !attributes.has(Attributes::NV) || !attributes.has(Attributes::BS) {
            return Err(Refused::new(Status::InvalidParameter, format!("attributes {attributes} are not supported")));
        }
        if let Some(old) = self.get(name, vendor)
            && old.attributes != stored
        {
            let reason = format!("{name} has the attributes {}, the write {stored}", old.attributes);
            return Err(Refused::new(Status::InvalidParameter, reason));
        }
        if let Some(database) = wanted {
            return self.set_database(database, name, vendor, attributes, data);
        }
        if attributes.has(Attributes::TIME_BASED) {
            return refuse(Status::Unsupported, "authenticated variables other than the databases of Secure Boot are not kept here");
        }
        if let Some(database) = database {
            parse(database, data)?;
        }
        let change = self.apply(name, vendor, attributes, EfiTime::default(), data, database)?;
        Ok(Applied { signer: None, change })
    }

    fn set_database(
        &mut self,
        database: Database,
        name: &str,
        vendor: Guid,
        attributes: Attributes,
        data: &[u8],
    ) -> Result<Applied, Refused> {
        let update = Update::read(data)?;
        let new = parse(database, update.payload)?;
        let append = attributes.has(Attributes::APPEND);
        let setup = self.setup_mode();
        let is_pk = database == Database::Pk;
        let units: Vec<u16> = name.encode_utf16().collect();
        let (keys, whose) = match database {
            Database::Pk if setup => (new.certificates().collect(), "the new PK"),
            Database::Pk | Database::Kek => (self.keys("PK"), "PK"),
            _ => (self.keys("KEK"), "KEK"),
        };
        // whatever setup mode takes without a signature it takes without a time
        let signed = !setup || is_pk;
        let signer = if signed { Some(update.verify(&units, vendor, attributes, keys, whose)?) } else { None };
        let mut time = update.time;
        if let Some(old) = self.get(name, vendor) {
            if signed && !append && time.order() <= old.time.order() {
                let reason = format!("its time, {time}, is not later than that of the last write, {}", old.time);
                return Err(Refused::new(Status::SecurityViolation, reason));
            }
            if append && time.order() < old.time.order() {
                time = old.time;
            }
        }
        let change = self.apply(name, vendor, attributes, time, update.payload, Some(database))?;
        if is_pk {
            self.follow_platform_key(setup);
        }
        Ok(Applied { signer, change })
    }

    /// Certificates of a database of the global vendor.
    fn keys(&self, name: &str) -> Vec<Certificate> {
        let read = self.get(name, GLOBAL).and_then(|v| SignatureDatabase::read(&v.data).ok());
        read.iter().flat_map(SignatureDatabase::certificates).collect()
    }

    /// SecureBootEnable when the mode is another than before (edk2 `UpdatePlatformMode`).
    fn follow_platform_key(&mut self, was_setup: bool) {
        if self.setup_mode() == was_setup {
            return;
        }
        let name: Vec<u16> = ENABLE.encode_utf16().collect();
        self.variables.retain(|v| v.vendor != SECURE_BOOT_ENABLE || v.name != name);
        if was_setup {
            self.put_enable(1);
        }
    }

    fn put_enable(&mut self, value: u8) {
        let (name, attributes) = (ENABLE.encode_utf16().collect(), Attributes::NV.and(Attributes::BS));
        self.put(Variable { name, vendor: SECURE_BOOT_ENABLE, attributes, time: EfiTime::default(), legacy: (0, 0), data: vec![value] });
    }

    fn apply(
        &mut self,
        name: &str,
        vendor: Guid,
        attributes: Attributes,
        time: EfiTime,
        payload: &[u8],
        database: Option<Database>,
    ) -> Result<Change, Refused> {
        let append = attributes.has(Attributes::APPEND);
        let old = self.get(name, vendor);
        let (data, change) = match (old, append) {
            (None, _) if payload.is_empty() && append => return Ok(Change::Appended(0)),
            (None, _) if payload.is_empty() => return Err(Refused::new(Status::NotFound, format!("there is no {name} to delete"))),
            (Some(_), false) if payload.is_empty() => {
                self.variables.retain(|v| v.vendor != vendor || !v.name.iter().copied().eq(name.encode_utf16()));
                return Ok(Change::Deleted);
            }
            (Some(old), true) => match database {
                Some(database) => {
                    let mut lists = parse_stored(name, &old.data)?;
                    let added = lists.append(&parse(database, payload)?);
                    if database == Database::Pk && lists.entries().count() > 1 {
                        return Err(Refused::new(Status::InvalidParameter, "there is one PK"));
                    }
                    (lists.to_bytes(), Change::Appended(added))
                }
                None => ([&old.data, payload].concat(), Change::Appended(payload.len())),
            },
            (_, _) => (payload.to_vec(), Change::Written),
        };
        let units: Vec<u16> = name.encode_utf16().collect();
        if HEADER_SIZE + 2 * (units.len() + 1) + data.len() > MAX_SIZE {
            let reason = format!("{name} would have {} bytes, and a variable has {MAX_SIZE} with its header", data.len());
            return Err(Refused::new(Status::OutOfResources, reason));
        }
        let legacy = old.map_or((0, 0), |v| v.legacy);
        self.put(Variable { name: units, vendor, attributes: attributes.without(Attributes::APPEND), time, legacy, data });
        Ok(change)
    }

    fn put(&mut self, variable: Variable) {
        match self.variables.iter_mut().find(|v| v.vendor == variable.vendor && v.name == variable.name) {
            Some(old) => *old = variable,
            None => self.variables.push(variable),
        }
    }
}

/// What firmware accepts as the value of a database (edk2 `CheckSignatureListFormat`).
fn parse(database: Database, payload: &[u8]) -> Result<SignatureDatabase, Refused> {
    let invalid = |reason: String| Refused::new(Status::InvalidParameter, reason);
    let lists = SignatureDatabase::read(payload).map_err(|e| invalid(format!("the new value: {e}")))?;
    if let Some(unknown) = lists.lists().iter().find(|l| !l.kind().is_known()) {
        return Err(invalid(format!("signature type {} is not supported", unknown.kind())));
    }
    let odd = lists.entries().find(|(kind, entry)| *kind == SignatureType::X509 && Certificate::parse(&entry.data).is_err());
    if odd.is_some() {
        return Err(invalid("an entry of type x509 is no certificate".to_owned()));
    }
    if database == Database::Pk && (lists.entries().count() > 1 || lists.entries().any(|(kind, _)| kind != SignatureType::X509)) {
        return Err(invalid("PK is one certificate".to_owned()));
    }
    if !payload.is_empty() && lists.entries().next().is_none() {
        return Err(invalid("the new value has lists without entries".to_owned()));
    }
    Ok(lists)
}

fn parse_stored(name: &str, data: &[u8]) -> Result<SignatureDatabase, Refused> {
    SignatureDatabase::read(data).map_err(|e| Refused::new(Status::InvalidParameter, format!("what {name} holds: {e}")))
}
