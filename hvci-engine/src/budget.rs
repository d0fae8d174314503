//! Work budgets: exhaustion is a typed result instead of a hang.
//!
//! Numbers bound what one file may cost. They stand far above every real file seen (largest: 21 KiB of PKCS#7, 9 certificates, 3 signatures).

/// How many signatures of a file, embedded and nested together, are looked at.
pub const MAX_SIGNATURES: usize = 64;
/// How deep signatures may nest inside one another's unsigned attributes.
pub const MAX_NESTING: usize = 8;
/// How many certificates of a file are looked at, those of all its signatures and timestamps together.
pub const MAX_CERTIFICATES: usize = 256;
/// How many timestamps of one signature are looked at.
pub const MAX_TIMESTAMPS: usize = 16;
/// How many signature values of a file are verified: each with every certificate that bears the signer's name.
pub const MAX_VERIFICATIONS: u32 = 512;
/// How many attributes of one `SignerInfo`, signed and unsigned each, are looked at.
pub const MAX_ATTRIBUTES: usize = 128;
/// How deep DER/BER elements may nest.
pub const MAX_DER_DEPTH: usize = 32;
/// How many sections of an image are looked at; a PE header can say 65,535.
pub const MAX_SECTIONS: usize = 65_535;

/// Work that is left; spend it with [`Budget::spend`].
#[derive(Clone, Debug)]
pub struct Budget(u32);

/// The budget is used up: the input asks for more work than any real one needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the work budget is used up")]
pub struct Exhausted;

impl Budget {
    /// For building the paths of one file's signers and timestamps: certificate pairs looked at. Every real chain seen needs fewer than 40
    /// (path explosion through cross-certificates: CVE-2018-16875 in Go, rustls/webpki `verify_cert.rs`).
    pub const fn path_building() -> Self {
        Self(4_000)
    }

    /// A budget of `units`.
    pub const fn new(units: u32) -> Self {
        Self(units)
    }

    /// Takes one unit.
    ///
    /// # Errors
    /// [`Exhausted`] when none is left.
    pub fn spend(&mut self) -> Result<(), Exhausted> {
        self.0 = self.0.checked_sub(1).ok_or(Exhausted)?;
        Ok(())
    }
}
