//! An appraisal as an EAT Attestation Result (draft-ietf-rats-ear-04): JSON, or a JWT that the verifier signs with ES256 (RFC 7519, RFC 7518).
//!
//! Each part of a machine is a submodule with a status, a trustworthiness vector (draft-ietf-rats-ar4si) and claims of the verifier's. The crate
//! `ear` is not used: version 0.6 depends on one whose build program fetches a file from a web server.

use std::collections::{BTreeMap, BTreeSet};

use hvci_engine::{
    finding::{Code, Severity},
    time::UnixTime,
};
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde::Serialize;

use super::{
    appraise::Appraisal,
    claims::{CREDENTIAL_GUARD, Claim, HVCI, MEASURED_BOOT, SECURE_BOOT, VTPM},
};

const PROFILE: &str = "tag:ietf.org,2026:rats/ear#04";

/// A key that cannot sign.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the verifier's key cannot sign: {0}")]
pub struct SignError(String);

/// How far a part is trusted (AR4SI §3.2), best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Tier {
    /// As it should be.
    Affirming,
    /// Nothing is known.
    None,
    /// Not as it should be.
    Contraindicated,
}

/// An attestation result.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Ear {
    eat_profile: &'static str,
    iat: i64,
    exp: i64,
    ear_verifier_id: Verifier,
    eat_nonce: String,
    /// Of the whole: the worst.
    pub ear_status: Tier,
    /// Its parts.
    pub submods: BTreeMap<&'static str, Submodule>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Verifier {
    build: &'static str,
    developer: &'static str,
}

/// A part of a machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Submodule {
    /// How far it is trusted.
    pub ear_status: Tier,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    ear_trustworthiness_vector: BTreeMap<&'static str, i8>,
    ear_verifier_claims: BTreeMap<&'static str, serde_json::Value>,
}

impl Ear {
    /// The result of `appraisal`, good for `lifetime` seconds.
    pub fn of(appraisal: &Appraisal, lifetime: u32) -> Self {
        let codes: BTreeSet<Code> = appraisal.findings.iter().map(|finding| finding.code).collect();
        let submods: BTreeMap<_, _> = [SECURE_BOOT, VTPM, MEASURED_BOOT, HVCI, CREDENTIAL_GUARD]
            .into_iter()
            .map(|name| (name, submodule(appraisal, name, &codes)))
            .collect();
        let parts = submods.values().map(|part| part.ear_status).filter(|tier| *tier != Tier::None).max();
        // nothing may be better than the appraisal
        let whole = if appraisal.healthy() { parts.unwrap_or(Tier::None) } else { Tier::Contraindicated };
        Self {
            eat_profile: PROFILE,
            iat: appraisal.time.0,
            exp: appraisal.time.0.saturating_add(i64::from(lifetime)),
            ear_verifier_id: Verifier { build: concat!("hvci-sim ", env!("CARGO_PKG_VERSION")), developer: "loader-sim" },
            eat_nonce: appraisal.nonce.clone(),
            ear_status: whole,
            submods,
        }
    }

    /// As a JWT, signed by a P-256 key (PKCS #8, DER).
    ///
    /// # Errors
    /// [`SignError`] if the key is none of P-256.
    pub fn sign(&self, pkcs8: &[u8]) -> Result<String, SignError> {
        let key = EncodingKey::from_ec_der(pkcs8);
        jsonwebtoken::encode(&Header::new(Algorithm::ES256), self, &key).map_err(|error| SignError(error.to_string()))
    }

    /// When it was made.
    pub fn issued(&self) -> UnixTime {
        UnixTime(self.iat)
    }
}

/// Which part a reason speaks against.
fn part_of(code: Code) -> &'static str {
    match code {
        Code::AttEvidence
        | Code::AttKey
        | Code::AttKeyAttributes
        | Code::AttSignature
        | Code::AttQuote
        | Code::AttNonce
        | Code::AttPcrMask
        | Code::AttBank
        | Code::AttResetCount
        | Code::AttClock
        | Code::AttRollback
        | Code::AttClone => VTPM,
        Code::AttSecureBootOff | Code::AttKeys | Code::AttDbxStale | Code::AttMok | Code::AttVariable => SECURE_BOOT,
        _ => MEASURED_BOOT,
    }
}

fn submodule(appraisal: &Appraisal, name: &'static str, codes: &BTreeSet<Code>) -> Submodule {
    let claims = appraisal.claims.0.get(name).cloned().unwrap_or_default();
    let claim = |claim: &str| appraisal.claims.get(claim);
    let is_against = |code: &Code| code.default_severity() >= Severity::Unknown && *code != Code::AttFeature && part_of(*code) == name;
    let against: Vec<Code> = codes.iter().copied().filter(is_against).collect();
    let proven = appraisal.claims.get("hvci-log-replays") == &Claim::Is(true);
    let feature = |on: bool, what: &str| match (on, proven) {
        (true, true) => Tier::Affirming,
        _ if appraisal.findings.iter().any(|f| f.code == Code::AttFeature && (f.pcr.is_none() || f.detail.starts_with(what))) => {
            Tier::Contraindicated
        }
        _ => Tier::None,
    };
    let of_codes = |good: bool| match (against.is_empty(), good) {
        (false, _) => Tier::Contraindicated,
        (true, true) => Tier::Affirming,
        (true, false) => Tier::None,
    };
    // AR4SI §2.3: 2 and 3 affirm, 96 and up speak against
    let (tier, aspect, good, bad) = match name {
        VTPM => (of_codes(claim("aikValidated") == &Claim::Is(true)), "instance-identity", 2, 97),
        SECURE_BOOT => (of_codes(claim("secureboot") == &Claim::Is(true)), "configuration", 2, 96),
        MEASURED_BOOT => (of_codes(proven), "executables", 3, 96),
        HVCI => (feature(claim("x-ms-azurevm-hvci-policy") == &Claim::Number(1), "HVCI"), "configuration", 2, 96),
        _ => (feature(claim("hvci-credential-guard") == &Claim::Is(true), "Credential Guard"), "configuration", 2, 96),
    };
    let value = match tier {
        Tier::Affirming => Some(good),
        Tier::None => None,
        Tier::Contraindicated => Some(bad),
    };
    let claims = claims.into_iter().map(|(name, claim)| (name, serde_json::to_value(claim).unwrap_or_default()));
    let reasons = serde_json::to_value(against).unwrap_or_default();
    Submodule {
        ear_status: tier,
        ear_trustworthiness_vector: value.map(|value| (aspect, value)).into_iter().collect(),
        ear_verifier_claims: claims.chain([("hvci-reasons", reasons)]).collect(),
    }
}
