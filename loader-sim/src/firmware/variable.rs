//! A UEFI variable (UEFI 2.10 §8.2): names, vendors and attributes as they stand in flash and in what is signed.

use std::fmt;

use hvci_engine::uefi::{EfiTime, Guid};

/// EFI_GLOBAL_VARIABLE: PK, KEK.
pub const GLOBAL: Guid = Guid::new(0x8be4_df61, 0x93ca, 0x11d2, [0xaa, 0x0d, 0x00, 0xe0, 0x98, 0x03, 0x2b, 0x8c]);
/// EFI_IMAGE_SECURITY_DATABASE_GUID: db, dbx, dbt.
pub const IMAGE_SECURITY: Guid = Guid::new(0xd719_b2cb, 0x3d3a, 0x4596, [0xa3, 0xbc, 0xda, 0xd0, 0x0e, 0x67, 0x65, 0x6f]);
/// SHIM_LOCK_GUID: MokList, MokListX, SbatLevel.
pub const SHIM: Guid = Guid::new(0x605d_ab50, 0xe046, 0x4300, [0xab, 0xb6, 0x3d, 0xd8, 0x10, 0xdd, 0x8b, 0x23]);
/// edk2's vendor of SecureBootEnable.
pub const SECURE_BOOT_ENABLE: Guid = Guid::new(0xf0a3_0bc7, 0xaf08, 0x4556, [0x99, 0xc4, 0x00, 0x10, 0x09, 0xc9, 0x3a, 0x44]);

/// Owners and vendors that people know by name.
const NAMES: [(Guid, &str); 6] = [
    (GLOBAL, "EFI global variables"),
    (IMAGE_SECURITY, "EFI image security databases"),
    (SHIM, "shim"),
    (Guid::new(0x77fa_9abd, 0x0359, 0x4d32, [0xbd, 0x60, 0x28, 0xf4, 0xe7, 0x8f, 0x78, 0x4b]), "Microsoft"),
    (Guid::new(0x9d13_2b6c, 0x59d5, 0x4388, [0xab, 0x1c, 0x18, 0x5c, 0xfc, 0xb2, 0xeb, 0x92]), "Microsoft, versions of boot managers"),
    (Guid::new(0xa0ba_a8a3, 0x041d, 0x48a8, [0xbc, 0x87, 0xc3, 0x6d, 0x12, 0x1b, 0x5e, 0x3d]), "OVMF's EnrollDefaultKeys"),
];

/// Whom people know under a GUID.
pub fn vendor_name(vendor: Guid) -> Option<&'static str> {
    NAMES.iter().find(|(known, _)| *known == vendor).map(|(_, name)| *name)
}

/// Attributes of a variable, or of a write to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attributes(pub u32);

impl Attributes {
    /// EFI_VARIABLE_NON_VOLATILE
    pub const NV: Self = Self(0x01);
    /// EFI_VARIABLE_BOOTSERVICE_ACCESS
    pub const BS: Self = Self(0x02);
    /// EFI_VARIABLE_RUNTIME_ACCESS
    pub const RT: Self = Self(0x04);
    /// EFI_VARIABLE_TIME_BASED_AUTHENTICATED_WRITE_ACCESS
    pub const TIME_BASED: Self = Self(0x20);
    /// EFI_VARIABLE_APPEND_WRITE
    pub const APPEND: Self = Self(0x40);
    /// What PK, KEK, db, dbx and dbt have.
    pub const DATABASE: Self = Self(0x27);

    /// Both sets.
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// The set without `other`.
    #[must_use]
    pub const fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// Whether all of `other` is in the set.
    pub const fn has(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
}

impl fmt::Display for Attributes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = [(Self::NV, "NV"), (Self::BS, "BS"), (Self::RT, "RT"), (Self::TIME_BASED, "authenticated"), (Self::APPEND, "append")];
        let mut parts: Vec<String> = names.into_iter().filter(|(bit, _)| self.has(*bit)).map(|(_, name)| name.to_owned()).collect();
        let rest = names.into_iter().fold(*self, |rest, (bit, _)| rest.without(bit));
        if rest.0 != 0 || parts.is_empty() {
            parts.push(format!("{:#x}", rest.0));
        }
        f.write_str(&parts.join(" "))
    }
}

/// A variable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Variable {
    /// Name, UTF-16 code units without the NUL at the end.
    pub name: Vec<u16>,
    /// Who gave the name.
    pub vendor: Guid,
    /// Attributes; never APPEND.
    pub attributes: Attributes,
    /// Of the last authenticated write.
    pub time: EfiTime,
    /// Counter and key of old authenticated writes, which nothing has any more; kept as they stand.
    pub legacy: (u64, u32),
    /// Value.
    pub data: Vec<u8>,
}

impl Variable {
    /// The name for a person.
    pub fn name(&self) -> String {
        String::from_utf16_lossy(&self.name)
    }
}

/// The variables that hold signature lists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Database {
    /// Platform key.
    Pk,
    /// Key exchange keys.
    Kek,
    /// What may start.
    Db,
    /// What may not.
    Dbx,
    /// Who says when something was signed.
    Dbt,
    /// Machine owner's keys, by shim.
    MokList,
    /// What the machine's owner refuses, by shim.
    MokListX,
}

impl Database {
    const ALL: [(Self, &'static str, Guid); 7] = [
        (Self::Pk, "PK", GLOBAL),
        (Self::Kek, "KEK", GLOBAL),
        (Self::Db, "db", IMAGE_SECURITY),
        (Self::Dbx, "dbx", IMAGE_SECURITY),
        (Self::Dbt, "dbt", IMAGE_SECURITY),
        (Self::MokList, "MokList", SHIM),
        (Self::MokListX, "MokListX", SHIM),
    ];

    /// The database that this variable is.
    pub fn of(name: &str, vendor: Guid) -> Option<Self> {
        Self::ALL.into_iter().find(|(_, n, v)| *n == name && *v == vendor).map(|(database, ..)| database)
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        Self::ALL.into_iter().find(|(d, ..)| *d == self).map_or("", |(_, name, _)| name)
    }

    /// Whether firmware wants writes signed; shim's are only out of the running system's reach.
    pub fn is_authenticated(self) -> bool {
        !matches!(self, Self::MokList | Self::MokListX)
    }
}

/// The vendor of a variable that is known by its name alone, and the attributes that it is written with.
pub fn well_known(name: &str) -> Option<(Guid, Attributes)> {
    if let Some((database, _, vendor)) = Database::ALL.into_iter().find(|(_, n, _)| *n == name) {
        let attributes = if database.is_authenticated() { Attributes::DATABASE } else { Attributes::NV.and(Attributes::BS) };
        return Some((vendor, attributes));
    }
    match name {
        "SbatLevel" => Some((SHIM, Attributes::NV.and(Attributes::BS))),
        "SetupMode" | "SecureBoot" => Some((GLOBAL, Attributes::BS.and(Attributes::RT))),
        _ => None,
    }
}
