//! Shim's decision about what it starts, and about what a boot loader asks it to verify (rhboot/shim, `shim.c`, `verify.c`, `sbat.c`).
//!
//! Unlike firmware it takes an image that one good signature vouches for, whatever is wrong with the others, and it only knows signatures over
//! SHA-256. Besides what the firmware's databases hold it trusts MokListRT, in which its vendor's certificate stands before the machine owner's.

use super::{Asked, Authority, Behaviour, BootVerdict, KeyDatabase, accept, found, of_file, refuse};
use crate::{
    digest::{Digest, DigestAlg},
    facts::{Facts, SbatComponent},
    finding::{Code, Severity},
    oid,
    policy::{Decision, profile::UEFI},
    signature::{cache::Cache, cert::Certificate, signature_list::SignatureDatabase},
};

/// What shim has to decide by.
#[derive(Clone, Debug)]
pub struct Shim {
    /// Whose rules.
    pub behaviour: Behaviour,
    /// The firmware's db; `None` where the machine's owner told shim not to look at it (MokIgnoreDB).
    pub db: Option<KeyDatabase>,
    /// Everything that is refused: the vendor's own list, the firmware's dbx, MokListX.
    pub refused: [KeyDatabase; 3],
    /// What the vendor and the machine's owner trust.
    pub mok_list: KeyDatabase,
    /// The least generations, SbatLevel's.
    pub sbat_level: Vec<SbatComponent>,
}

/// Whether an image must say its generations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SbatUse {
    /// It must: shim starts it.
    Required,
    /// It need not: a boot loader asks for it by shim's protocol, as GRUB does for kernels.
    Optional,
}

impl Shim {
    /// The database of one of the lists that only shim has.
    pub fn database(name: &'static str, lists: SignatureDatabase, cache: &Cache) -> KeyDatabase {
        KeyDatabase::new(name, lists, cache)
    }

    /// Whether shim starts, or vouches for, the image of these facts.
    pub fn authorise(&self, facts: &Facts, sbat: SbatUse, cache: &Cache) -> BootVerdict {
        let verdict = self.verify(&Asked { facts, cache });
        if verdict.decision != Decision::Accept {
            return verdict;
        }
        match self.sbat_fault(facts, sbat) {
            None => verdict,
            // the entry that vouched for it has been measured by then
            Some((code, detail)) => refuse(found(code, detail, None), verdict.authority, verdict.findings),
        }
    }

    /// Whether an image's generations are too old: then of which component, and which it would have to be. Shim asks this of itself first.
    pub fn outdated<'f>(&self, components: &'f [SbatComponent]) -> Option<(&'f SbatComponent, u32)> {
        components.iter().find_map(|component| {
            let least = self.sbat_level.iter().find(|level| level.name == component.name)?;
            (component.generation < least.generation).then_some((component, least.generation))
        })
    }

    fn sbat_fault(&self, facts: &Facts, sbat: SbatUse) -> Option<(Code, String)> {
        if let Some(note) = facts.notes.iter().find(|n| n.code == Code::BootSbatMalformed) {
            return Some((note.code, note.detail.clone()));
        }
        match facts.image.as_ref().and_then(|image| image.sbat.as_ref()) {
            None => (sbat == SbatUse::Required).then(|| (Code::BootSbatMissing, String::new())),
            Some(components) => {
                let (component, least) = self.outdated(components)?;
                Some((Code::BootSbatRevoked, format!("{} is {}, SbatLevel wants {least}", component.name, component.generation)))
            }
        }
    }

    fn verify(&self, asked: &Asked<'_>) -> BootVerdict {
        let strict = self.behaviour == Behaviour::Strict;
        let malformed = of_file(asked.facts, &UEFI, |code| {
            code != Code::BootSbatMalformed && (code == Code::SigEntry || strict || code.id().starts_with("HVCI-INP"))
        });
        if let Some(worst) = malformed.iter().filter(|f| f.severity >= Severity::Unknown).max_by_key(|f| f.severity).cloned() {
            return refuse(found(Code::BootImage, worst.code.title(), None), None, malformed);
        }
        let digests: Vec<Digest> = match self.behaviour {
            Behaviour::Strict => asked.all_digests(),
            Behaviour::Edk2 => [DigestAlg::Sha256, DigestAlg::Sha1].iter().filter_map(|alg| asked.digest(*alg)).collect(),
        };
        if let Some(entry) = self.refused.iter().find_map(|list| list.of_digest(&digests)) {
            let detail = format!("{} of {}", entry.subject, entry.database);
            return refuse(found(Code::BootDigestRevoked, detail, None), Some(entry), Vec::new());
        }
        let own: Vec<Digest> = asked.digest(DigestAlg::Sha256).into_iter().collect();
        if let Some(authority) = self.db.iter().chain([&self.mok_list]).find_map(|list| list.of_digest(&own)) {
            return accept(authority, Vec::new());
        }
        if asked.is_unsigned() {
            let detail = own.first().map(ToString::to_string).unwrap_or_default();
            return refuse(found(Code::BootUnsigned, detail, None), None, Vec::new());
        }

        let mut notes = Vec::new();
        let mut revoked: Option<Authority> = None;
        for (index, signature) in asked.signatures() {
            if signature.coverage.as_ref().is_none_or(|c| c.signed.alg() != DigestAlg::Sha256) {
                notes.push(found(Code::BootNoAuthority, "shim knows signatures over SHA-256 only", Some(index)));
                continue;
            }
            let certificate = |list: &KeyDatabase| list.of_signature(asked, index, signature, usable);
            let by_hash = || {
                let carried: Vec<&Certificate> = asked.carried(signature).collect();
                carried.into_iter().find(|c| self.refused.iter().any(|list| list.lists().find_certificate(c).is_some()))
            };
            if let Some(entry) = self.refused.iter().find_map(certificate) {
                notes.push(found(Code::BootSignerRevoked, format!("{} has {}", entry.database, entry.subject), Some(index)));
                revoked = Some(entry);
            } else if let Some(listed) = by_hash().filter(|_| strict) {
                notes.push(found(Code::BootSignerRevoked, format!("{} is revoked", listed.subject_short()), Some(index)));
            } else if let Some(authority) = self.db.iter().chain([&self.mok_list]).find_map(certificate) {
                // what is wrong with another signature does not matter any more
                notes.iter_mut().for_each(|f| f.severity = f.severity.min(Severity::Warning));
                return accept(authority, notes);
            } else {
                notes.extend(asked.faults(index, signature));
            }
        }
        let reason = match notes.iter().position(|f| f.code == Code::BootSignerRevoked) {
            Some(first) => notes.remove(first),
            None => {
                let who: Vec<String> = asked.signatures().filter_map(|(_, s)| asked.leaf(s)).map(Certificate::subject_short).collect();
                found(Code::BootNoAuthority, format!("signed by {}", who.join("; ")), None)
            }
        };
        refuse(reason, revoked, notes)
    }
}

/// A certificate for modules alone is none for images.
fn usable(certificate: &Certificate) -> bool {
    !certificate.ekus().is_some_and(|list| list.contains(&oid::EKU_MODULE_SIGNING))
}
