//! What the criterion benches run on: made in code, so that they need no corpus.

use corpus::synth::{
    Result, authenticode, elf,
    key::KeyKind,
    pe::Image,
    pki::{self, Pki},
};
use hvci_engine::{
    facts::FileKind,
    signature::{
        cert::Certificate,
        trust::{Purposes, TrustStore},
    },
    time::UnixTime,
};
use x509_cert::der::Encode;

/// Signed files, and who signed them.
#[derive(Debug)]
pub struct Inputs {
    /// Everybody.
    pub pki: Pki,
    /// A signed driver, one signature, no timestamp.
    pub driver: Vec<u8>,
    /// A signed module.
    pub module: Vec<u8>,
}

/// A time at which all their certificates are valid.
pub const TIME: UnixTime = UnixTime(1_750_000_000);

impl Inputs {
    /// Makes them; takes seconds, nearly all of them for RSA keys.
    ///
    /// # Errors
    /// None that occurs.
    pub fn new() -> Result<Self> {
        let pki = Pki::new(1)?;
        let driver = authenticode::signed(&Image::of(FileKind::PeDriver, "bench").build()?, pki.get("whql")?, &pki.issuers("whql")?)?;
        let module = elf::signed(&elf::module("bench", false)?, &elf::signing(pki.get("module")?))?;
        Ok(Self { pki, driver, module })
    }

    /// The DER of the certificate of `name`.
    ///
    /// # Errors
    /// There is nobody of that name.
    pub fn certificate(&self, name: &str) -> Result<Vec<u8>> {
        Ok(self.pki.get(name)?.certificate.to_der()?)
    }

    /// The anchors that the files chain to.
    ///
    /// # Errors
    /// None that occurs.
    ///
    /// # Panics
    /// If the engine cannot read a certificate that was just made.
    pub fn trust(&self) -> Result<TrustStore> {
        let mut store = TrustStore::empty();
        for (purpose, names) in pki::ANCHORS {
            let purposes = Purposes::from_name(purpose).unwrap_or(Purposes::GIVEN);
            for name in *names {
                let certificate = Certificate::parse(&self.certificate(name)?).expect("a certificate that was just made");
                store.add(certificate.into(), purposes, *name);
            }
        }
        Ok(store)
    }
}

/// Keys that the benches sign with.
pub const KEYS: [(&str, KeyKind); 4] =
    [("RSA-2048", KeyKind::Rsa(2048)), ("RSA-4096", KeyKind::Rsa(4096)), ("P-256", KeyKind::P256), ("P-384", KeyKind::P384)];

/// `len` bytes without a pattern.
pub fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(2).wrapping_add(1);
    let mut next = || {
        state = state.wrapping_mul(0x5851_F42D_4C95_7F2D).wrapping_add(0x1405_7B7E_F767_814F);
        state.to_be_bytes()[0]
    };
    (0..len).map(|_| next()).collect()
}
