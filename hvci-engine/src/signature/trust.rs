//! Trust anchors and what each is trusted for.
//!
//! The public Microsoft and distribution certificates ship as data (`data/anchors/`, with their provenance); a caller adds others.
//! An anchor is trusted because it is listed: its own validity, usages and signature are not looked at.

use std::{collections::HashMap, fmt, sync::Arc};

use super::{block_list::BlockList, cert::Certificate};
use crate::{
    bytes::der::DerError,
    crypto,
    digest::{Digest, DigestAlg},
    oid::{self, Oid},
    time::UnixTime,
};

/// A set of uses that an anchor is trusted for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Purposes(u8);

impl Purposes {
    /// Windows kernel drivers: the roots that the kernel itself knows.
    pub const KERNEL: Self = Self(1);
    /// UEFI images: an entry of the firmware's db.
    pub const UEFI: Self = Self(1 << 1);
    /// UEFI images that a distribution's shim starts (its vendor certificate).
    pub const SHIM: Self = Self(1 << 2);
    /// Linux modules: a key of the kernel's keyrings.
    pub const MODULE: Self = Self(1 << 3);
    /// Windows user mode.
    pub const USER: Self = Self(1 << 4);
    /// Timestamp authorities.
    pub const TIMESTAMP: Self = Self(1 << 5);
    /// Lists of what other roots are trusted for ([`RootList`](super::root_list::RootList)).
    pub const LIST: Self = Self(1 << 6);
    /// What a bare `--roots` means: every use but Windows kernel drivers and root lists, for which a commercial root must not speak, and a
    /// shim's vendor key.
    pub const GIVEN: Self = Self(0b11_1010);

    const NAMES: [(&'static str, Self); 7] = [
        ("kernel", Self::KERNEL),
        ("uefi", Self::UEFI),
        ("shim", Self::SHIM),
        ("module", Self::MODULE),
        ("user", Self::USER),
        ("timestamp", Self::TIMESTAMP),
        ("list", Self::LIST),
    ];

    /// Both sets together.
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Whether one of the uses of `other` is in the set.
    pub const fn any_of(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }

    /// The set called `name`: `kernel`, `uefi`, `shim`, `module`, `user`, `timestamp` or `list`.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::NAMES.into_iter().find(|(n, _)| *n == name).map(|(_, p)| p)
    }
}

impl fmt::Display for Purposes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<&str> = Self::NAMES.into_iter().filter(|(_, p)| self.any_of(*p)).map(|(n, _)| n).collect();
        f.write_str(&names.join(", "))
    }
}

/// A certificate that is trusted for some uses.
#[derive(Clone, Debug)]
pub struct Anchor {
    /// The certificate.
    pub certificate: Arc<Certificate>,
    /// What it is trusted for.
    pub purposes: Purposes,
    /// Where it comes from: the name of a shipped one, or what the caller said.
    pub origin: String,
    /// What a root list says of it.
    pub limits: Limits,
}

/// What a root programme still trusts one of its roots for; by default for everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// The only usages it may serve.
    pub usages: Option<Vec<Oid>>,
    /// Usages it may not serve.
    pub refused_usages: Vec<Oid>,
    /// Signatures made from then on are not trusted.
    pub disallowed_since: Option<UnixTime>,
    /// End-entity certificates issued from then on are not trusted.
    pub not_before: Option<UnixTime>,
    /// The usages for which that is so; `None` is for all.
    pub not_before_usages: Option<Vec<Oid>>,
}

impl Limits {
    /// Whether the root may serve `usage` at all.
    pub fn allow(&self, usage: &Oid) -> bool {
        !contains(&self.refused_usages, usage) && self.usages.as_ref().is_none_or(|list| contains(list, usage))
    }

    /// The date from which on end-entity certificates for `usage` must not be issued.
    pub fn last_issue(&self, usage: &Oid) -> Option<UnixTime> {
        self.not_before.filter(|_| self.not_before_usages.as_ref().is_none_or(|list| contains(list, usage)))
    }
}

fn contains(list: &[Oid], usage: &Oid) -> bool {
    list.iter().any(|o| o == usage || *o == oid::EKU_ANY)
}

impl fmt::Display for Limits {
    /// One line; empty without limits.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = |list: &[Oid]| -> String {
            let names: Vec<String> = list.iter().map(|o| oid::name(o).map_or_else(|| o.to_string(), str::to_owned)).collect();
            names.join(", ")
        };
        let parts = [
            self.usages.as_ref().map(|list| format!("only for {}", names(list))),
            (!self.refused_usages.is_empty()).then(|| format!("not for {}", names(&self.refused_usages))),
            self.disallowed_since.map(|since| format!("disallowed since {since}")),
            self.not_before.map(|date| match &self.not_before_usages {
                Some(list) => format!("not for certificates issued since {date} for {}", names(list)),
                None => format!("not for certificates issued since {date}"),
            }),
        ];
        f.write_str(&parts.into_iter().flatten().collect::<Vec<_>>().join("; "))
    }
}

/// The anchors of a run.
#[derive(Clone, Debug, Default)]
pub struct TrustStore {
    anchors: Vec<Anchor>,
    by_subject: HashMap<Vec<u8>, Vec<usize>>,
    module_keyring: bool,
    list: Option<(UnixTime, HashMap<Digest, Limits>)>,
    blocked: BlockList,
}

impl TrustStore {
    /// No anchors at all.
    pub fn empty() -> Self {
        Self::default()
    }

    /// The anchors that ship with the engine.
    ///
    /// # Panics
    /// If a shipped certificate cannot be read, which a test excludes.
    pub fn builtin() -> Self {
        let mut store = Self::default();
        for (name, der, purposes) in BUILTIN {
            match Certificate::parse(der) {
                Ok(certificate) => store.add(Arc::new(certificate), *purposes, *name),
                Err(e) => unreachable!("shipped anchor {name}: {e}"),
            }
        }
        store
    }

    /// Adds an anchor; one that is there already gets the new uses too.
    pub fn add(&mut self, certificate: Arc<Certificate>, purposes: Purposes, origin: impl Into<String>) {
        self.module_keyring |= purposes.any_of(Purposes::MODULE);
        if let Some(known) = self.anchors.iter_mut().find(|a| a.certificate == certificate) {
            known.purposes = known.purposes.and(purposes);
            return;
        }
        self.by_subject.entry(certificate.subject_der().to_vec()).or_default().push(self.anchors.len());
        let limits = self.listed(&certificate).cloned().unwrap_or_default();
        self.anchors.push(Anchor { certificate, purposes, origin: origin.into(), limits });
    }

    /// Limits anchors, those that are there and those added later, as a list of the date `made` says. Of several lists the newest counts,
    /// whichever comes first. Whether it may be believed is the caller's to know.
    pub(crate) fn limit(&mut self, made: UnixTime, entries: &HashMap<Digest, Limits>) {
        if self.list.as_ref().is_some_and(|(known, _)| *known > made) {
            return;
        }
        self.list = Some((made, entries.clone()));
        let mut anchors = core::mem::take(&mut self.anchors);
        for anchor in &mut anchors {
            anchor.limits = self.listed(&anchor.certificate).cloned().unwrap_or_default();
        }
        self.anchors = anchors;
    }

    fn listed(&self, certificate: &Certificate) -> Option<&Limits> {
        let (_, entries) = self.list.as_ref()?;
        entries.get(certificate.sha256()).or_else(|| entries.get(&crypto::digest(DigestAlg::Sha1, &[certificate.der()])))
    }

    /// What is refused whoever signed it.
    pub const fn blocked(&self) -> &BlockList {
        &self.blocked
    }

    /// Refuses from now on what `list` says, and nothing else.
    ///
    /// # Errors
    /// The list itself, if it is older than the one that is there: going back would let in what was known to be bad.
    pub fn replace_blocked(&mut self, list: BlockList) -> Result<(), BlockList> {
        if list.version < self.blocked.version {
            return Err(list);
        }
        self.blocked = list;
        Ok(())
    }

    /// Adds an anchor from its DER.
    ///
    /// # Errors
    /// Not a certificate.
    pub fn add_der(&mut self, der: &[u8], purposes: Purposes, origin: impl Into<String>) -> Result<(), DerError> {
        self.add(Arc::new(Certificate::parse(der)?), purposes, origin);
        Ok(())
    }

    /// Every anchor.
    pub fn anchors(&self) -> &[Anchor] {
        &self.anchors
    }

    /// Whether any anchor was given for Linux modules: without one, no module can be judged.
    pub fn has_module_keyring(&self) -> bool {
        self.module_keyring
    }

    /// Anchors whose subject is this name.
    pub fn named<'a>(&'a self, subject_der: &[u8]) -> impl Iterator<Item = &'a Anchor> + use<'a> {
        self.by_subject.get(subject_der).into_iter().flatten().filter_map(|i| self.anchors.get(*i))
    }

    /// The anchor that this certificate is.
    pub fn find(&self, certificate: &Certificate) -> Option<&Anchor> {
        self.named(certificate.subject_der()).find(|a| *a.certificate == *certificate)
    }
}

macro_rules! builtin {
    ($( $name:literal $($purpose:ident)+; )*) => {
        const BUILTIN: &[(&str, &[u8], Purposes)] = &[ $( (
            $name,
            include_bytes!(concat!("../../data/anchors/", $name, ".der")),
            Purposes(0)$(.and(Purposes::$purpose))+,
        ), )* ];
    };
}

builtin! {
    "canonical-master-ca-2012" SHIM;
    "centos-secure-boot-ca-2018" SHIM;
    "centos-secure-boot-ca-2020" SHIM;
    "centos-secure-boot-ca-2025" SHIM;
    "debian-secure-boot-ca-2016" SHIM;
    "fedora-secure-boot-ca-2020" SHIM;
    "microsoft-code-verification-root-2005" KERNEL;
    "microsoft-ecc-product-root-2018" KERNEL USER TIMESTAMP;
    "microsoft-ecc-timestamp-root-2018" TIMESTAMP;
    "microsoft-identity-verification-root-2020" USER TIMESTAMP;
    "microsoft-option-rom-uefi-ca-2023" UEFI;
    "microsoft-root-2001" KERNEL USER TIMESTAMP;
    "microsoft-root-2010" KERNEL USER TIMESTAMP LIST;
    "microsoft-root-2011" KERNEL USER TIMESTAMP LIST;
    "microsoft-root-authority-1997" KERNEL USER TIMESTAMP;
    "microsoft-timestamp-root-2014" TIMESTAMP;
    "microsoft-uefi-ca-2011" UEFI;
    "microsoft-uefi-ca-2023" UEFI;
    "redhat-secure-boot-ca-2014" SHIM;
    "redhat-secure-boot-ca-2020" SHIM;
    "redhat-secure-boot-ca-2023" SHIM;
    "windows-production-pca-2011" UEFI;
    "windows-uefi-ca-2023" UEFI;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shipped_anchors_are_those_of_the_provenance_table() {
        let table = include_str!("../../data/anchors/README.md");
        let store = TrustStore::builtin();
        assert_eq!(store.anchors().len(), table.lines().filter(|l| l.starts_with("| `")).count());
        for anchor in store.anchors() {
            let row = table.lines().find(|l| l.contains(&format!("`{}.der`", anchor.origin))).unwrap();
            assert!(row.contains(&anchor.certificate.sha256().hex()), "{}", anchor.origin);
            assert_eq!(store.find(&anchor.certificate).map(|a| &a.origin), Some(&anchor.origin));
        }
    }

    #[test]
    fn limits_are_for_the_usages_they_name() {
        let (code, stamp) = (&oid::EKU_CODE_SIGNING, &oid::EKU_TIMESTAMPING);
        let free = Limits::default();
        assert!(free.allow(code) && free.last_issue(code).is_none() && free.to_string().is_empty());
        let only = Limits { usages: Some(vec![*code]), ..free.clone() };
        assert!(only.allow(code) && !only.allow(stamp));
        let refused = Limits { refused_usages: vec![*code], usages: Some(vec![oid::EKU_ANY]), ..free.clone() };
        assert!(!refused.allow(code) && refused.allow(stamp));
        assert!(!Limits { usages: Some(Vec::new()), ..free.clone() }.allow(code), "only for nothing");

        let date = Some(UnixTime(0));
        let closed = Limits { not_before: date, ..free.clone() };
        assert_eq!((closed.last_issue(code), closed.last_issue(stamp)), (date, date));
        let for_code = Limits { not_before_usages: Some(vec![*code]), ..closed };
        assert_eq!((for_code.last_issue(code), for_code.last_issue(stamp)), (date, None));
        assert_eq!(Limits { not_before: None, ..for_code }.last_issue(code), None, "usages of no date");
    }

    #[test]
    fn given_roots_do_not_speak_for_the_kernel() {
        assert!(!Purposes::GIVEN.any_of(Purposes::KERNEL.and(Purposes::LIST)));
        assert_eq!(Purposes::GIVEN.to_string(), "uefi, module, user, timestamp");
        assert_eq!(Purposes::from_name("kernel"), Some(Purposes::KERNEL));
    }
}
