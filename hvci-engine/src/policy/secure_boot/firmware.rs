//! The firmware's decision (UEFI 2.10 §32.5.3.3; edk2, `SecurityPkg/Library/DxeImageVerificationLib`).

use super::{Asked, Authority, Behaviour, BootVerdict, KeyDatabase, accept, found, of_file, refuse, svn};
use crate::{
    budget::Budget,
    digest::{Digest, DigestAlg},
    facts::{Facts, Signature},
    finding::{Code, Severity},
    policy::{
        Finding,
        judge::Judge,
        profile::{UEFI, UEFI_TIMESTAMPED},
    },
    signature::{
        cache::Cache,
        cert::Certificate,
        signature_list::{Listed, SignatureDatabase},
        trust::{Purposes, TrustStore},
    },
    time::UnixTime,
};

/// What firmware has to decide by.
#[derive(Clone, Debug)]
pub struct Firmware {
    behaviour: Behaviour,
    db: KeyDatabase,
    dbx: KeyDatabase,
    /// db's certificates, and dbt's for timestamps.
    timestamps: TrustStore,
}

impl Firmware {
    /// Of the contents of db, dbx and dbt.
    pub fn new(behaviour: Behaviour, db: SignatureDatabase, dbx: SignatureDatabase, dbt: &SignatureDatabase, cache: &Cache) -> Self {
        let (db, dbx) = (KeyDatabase::new("db", db, cache), KeyDatabase::new("dbx", dbx, cache));
        let mut timestamps = db.all.clone();
        for certificate in dbt.certificates() {
            timestamps.add(certificate.into(), Purposes::TIMESTAMP, "dbt");
        }
        Self { behaviour, db, dbx, timestamps }
    }

    /// Whose rules it decides by.
    pub fn behaviour(&self) -> Behaviour {
        self.behaviour
    }

    /// What may start.
    pub fn db(&self) -> &KeyDatabase {
        &self.db
    }

    /// What may not.
    pub fn dbx(&self) -> &KeyDatabase {
        &self.dbx
    }

    /// The digests that an image must be examined with, besides SHA-256: those that the databases list.
    pub fn digests(&self) -> Vec<DigestAlg> {
        let mut algs = [self.db.digests(), self.dbx.digests()].concat();
        algs.sort_unstable();
        algs.dedup();
        algs.retain(|alg| *alg != DigestAlg::Sha256);
        algs
    }

    /// Whether the image of these facts may start.
    pub fn authorise(&self, facts: &Facts, cache: &Cache) -> BootVerdict {
        let asked = Asked { facts, cache };
        let strict = self.behaviour == Behaviour::Strict;
        // of what is odd about a file, edk2 sees the certificate table's end
        let malformed = of_file(facts, &UEFI, |code| code == Code::SigEntry || strict || code.id().starts_with("HVCI-INP"));
        if let Some(worst) = malformed.iter().filter(|f| f.severity >= Severity::Unknown).max_by_key(|f| f.severity).cloned() {
            let reason = found(Code::BootImage, worst.code.title(), None);
            return refuse(reason, None, malformed);
        }
        if strict && let Some(entry) = self.dbx.of_digest(&asked.all_digests()) {
            return refuse(found(Code::BootDigestRevoked, by(&entry), None), Some(entry), Vec::new());
        }
        if strict && let Some(why) = self.revoked_version(facts) {
            return refuse(why, None, Vec::new());
        }
        if asked.is_unsigned() {
            return self.authorise_unsigned(&asked);
        }

        let mut notes = Vec::new();
        let mut authority: Option<Authority> = None;
        for (index, signature) in asked.signatures() {
            let unseen = signature.notes.iter().any(|n| n.code == Code::BootEncoding);
            if unseen {
                notes.push(found(Code::BootEncoding, "", Some(index)));
            }
            if unseen && !strict {
                continue;
            }
            let vouched = self.db.of_signature(&asked, index, signature, |_| true);
            if let Some((entry, how)) = self.revoked_signer(&asked, index, signature, vouched.as_ref()) {
                // whatever else signed it: one signature in dbx is enough
                return refuse(found(Code::BootSignerRevoked, how, Some(index)), entry, notes);
            }
            if authority.is_none() {
                authority = vouched;
                if authority.is_none() {
                    notes.extend(asked.faults(index, signature));
                }
            }
            let digest: Vec<Digest> =
                signature.coverage.as_ref().and_then(|coverage| asked.digest(coverage.signed.alg())).into_iter().collect();
            if let Some(entry) = self.dbx.of_digest(&digest) {
                return refuse(found(Code::BootDigestRevoked, by(&entry), None), Some(entry), notes);
            }
            if authority.is_none() {
                authority = self.db.of_digest(&digest);
            }
        }
        let Some(authority) = authority else {
            return refuse(found(Code::BootNoAuthority, who(&asked), None), None, notes);
        };
        if !strict && let Some(entry) = self.dbx.of_digest(&asked.all_digests()) {
            // tianocore/edk2#10111
            let detail =
                format!("it starts an image whose digest is revoked, {}, because its signature is over another digest", by(&entry));
            notes.push(found(Code::BootEdk2Differs, detail, authority.signature));
        }
        if let Some(why) = self.revoked_version(facts) {
            let detail = format!("it starts a boot manager that is revoked: {}; whether that one starts is its own affair", why.detail);
            notes.push(found(Code::BootEdk2Differs, detail, authority.signature));
        }
        accept(authority, notes)
    }

    /// Whether the image is a boot manager of Windows of a version that dbx revokes: what it asks itself, and firmware that reads dbx to its end.
    pub fn revoked_version(&self, facts: &Facts) -> Option<Finding> {
        svn::revoked(facts, self.dbx.lists()).map(|why| found(Code::BootVersionRevoked, why, None))
    }

    /// By its digest alone: the one of the file as it stands, without padding.
    fn authorise_unsigned(&self, asked: &Asked<'_>) -> BootVerdict {
        let algs: &[DigestAlg] = match self.behaviour {
            Behaviour::Strict => &[DigestAlg::Sha256, DigestAlg::Sha384, DigestAlg::Sha512],
            Behaviour::Edk2 => &[DigestAlg::Sha256],
        };
        let digests: Vec<Digest> = algs.iter().filter_map(|alg| asked.digest(*alg)).collect();
        if let Some(entry) = self.dbx.of_digest(&digests) {
            return refuse(found(Code::BootDigestRevoked, by(&entry), None), Some(entry), Vec::new());
        }
        if let Some(authority) = self.db.of_digest(&digests) {
            return accept(authority, Vec::new());
        }
        let shown = digests.first().map(ToString::to_string).unwrap_or_default();
        let padded = self.db.of_digest(&asked.all_digests());
        let hint =
            padded.map(|entry| format!("; db lists the digest of the padded file, {}, which firmware does not calculate", entry.subject));
        refuse(found(Code::BootUnsigned, format!("{shown}{}", hint.unwrap_or_default()), None), None, Vec::new())
    }

    /// The entry of dbx that forbids the signature, if it is one that verifies, and in words which; `vouched` is what db has for it.
    fn revoked_signer(
        &self,
        asked: &Asked<'_>,
        index: usize,
        signature: &Signature,
        vouched: Option<&Authority>,
    ) -> Option<(Option<Authority>, String)> {
        if signature.signer.as_ref().is_none_or(|s| s.certificate.is_none()) {
            return Some((None, "its signer cannot be read, so that nobody can say that it is not revoked".to_owned()));
        }
        if let Some(entry) = self.dbx.of_signature(asked, index, signature, |_| true) {
            let how = format!("dbx has {}", entry.subject);
            return Some((Some(entry), how));
        }
        // by the digest of a certificate: edk2 looks for the signer's own and for the one of db
        let anchor = vouched.and_then(|a| Certificate::parse(&a.entry.data).ok());
        let carried: Vec<&Certificate> = match self.behaviour {
            Behaviour::Strict => asked.carried(signature).collect(),
            Behaviour::Edk2 => asked.leaf(signature).into_iter().collect(),
        };
        let (certificate, listed) = carried
            .into_iter()
            .chain(&anchor)
            .find_map(|certificate| Some((certificate, self.dbx.lists().find_certificate(certificate)?)))?;
        if self.signed_before(asked, index, signature, listed) {
            return None;
        }
        let since = listed.since.map_or_else(String::new, |since| format!(" since {since}"));
        Some((None, format!("dbx has {} by its {}{since}", certificate.subject_short(), listed.kind)))
    }

    /// Whether a timestamp that dbt trusts proves that the signature is older than the revocation.
    fn signed_before(&self, asked: &Asked<'_>, index: usize, signature: &Signature, listed: Listed) -> bool {
        let Some(since) = listed.since else { return false };
        let judge = Judge { trust: &self.timestamps, time: UnixTime(0), cache: asked.cache };
        let mut budget = Budget::path_building();
        let alone = judge.judge_alone(asked.facts, index, signature, &UEFI_TIMESTAMPED, &mut budget);
        alone.verdict.signing_time.is_some_and(|time| time <= since)
    }
}

fn by(entry: &Authority) -> String {
    format!("{} of {}", entry.subject, entry.database)
}

/// Who signed the image, for a person who looks for the certificate that is missing.
fn who(asked: &Asked<'_>) -> String {
    let names: Vec<String> = asked
        .signatures()
        .filter_map(|(_, signature)| asked.leaf(signature))
        .map(|leaf| format!("signed by {}, issued by {}", leaf.subject_short(), leaf.issuer()))
        .collect();
    names.join("; ")
}
