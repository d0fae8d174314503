//! Structures of objects: TPMT_PUBLIC, TPMT_SENSITIVE, schemes (Part 2, 11 and 12). Reading checks what the type of a field says and no more.

use super::crypt::{Hash, Point, Secret};
use super::rc;
use super::stored::stored;
use super::wire::{Put, Reader, Result};

pub(super) const ALG_HMAC: u16 = 0x05;
pub(super) const ALG_AES: u16 = 0x06;
pub(super) const ALG_KEYEDHASH: u16 = 0x08;
pub(super) const ALG_XOR: u16 = 0x0a;
pub(super) const ALG_NULL: u16 = 0x10;
pub(super) const ALG_ECDSA: u16 = 0x18;
const ALG_ECDH: u16 = 0x19;
const ALG_ECDAA: u16 = 0x1a;
pub(super) const ALG_ECC: u16 = 0x23;
pub(super) const ALG_CFB: u16 = 0x43;
pub(super) const CURVE_P256: u16 = 0x03;

/// TPMA_OBJECT.
pub(super) mod attribute {
    pub(in super::super) const FIXED_TPM: u32 = 1 << 1;
    pub(in super::super) const ST_CLEAR: u32 = 1 << 2;
    pub(in super::super) const FIXED_PARENT: u32 = 1 << 4;
    pub(in super::super) const SENSITIVE_DATA_ORIGIN: u32 = 1 << 5;
    pub(in super::super) const USER_WITH_AUTH: u32 = 1 << 6;
    pub(in super::super) const ADMIN_WITH_POLICY: u32 = 1 << 7;
    pub(in super::super) const NO_DA: u32 = 1 << 10;
    pub(in super::super) const ENCRYPTED_DUPLICATION: u32 = 1 << 11;
    pub(in super::super) const RESTRICTED: u32 = 1 << 16;
    pub(in super::super) const DECRYPT: u32 = 1 << 17;
    pub(in super::super) const SIGN: u32 = 1 << 18;
    /// Bits that have no meaning.
    pub(super) const RESERVED: u32 = 0xfff0_f309;
}

/// TPMT_SYM_DEF and TPMT_SYM_DEF_OBJECT.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Symmetric {
    pub(super) algorithm: u16,
    /// Bits of a key of AES, the digest algorithm of XOR.
    pub(super) bits: u16,
    pub(super) mode: u16,
}
stored!(Symmetric { algorithm bits mode });

impl Symmetric {
    pub(super) const NULL: Self = Self { algorithm: ALG_NULL, bits: 0, mode: 0 };

    /// Of an object: a block cipher or none.
    pub(super) fn read_object(r: &mut Reader<'_>) -> Result<Self> {
        match r.u16()? {
            ALG_AES => Self::read_aes(r),
            ALG_NULL => Ok(Self::NULL),
            _ => Err(rc::SYMMETRIC),
        }
    }

    /// Of a session: XOR too.
    pub(super) fn read_session(r: &mut Reader<'_>) -> Result<Self> {
        match r.u16()? {
            ALG_AES => Self::read_aes(r),
            ALG_XOR => Ok(Self { algorithm: ALG_XOR, bits: Hash::read(r)?.id(), mode: 0 }),
            ALG_NULL => Ok(Self::NULL),
            _ => Err(rc::SYMMETRIC),
        }
    }

    fn read_aes(r: &mut Reader<'_>) -> Result<Self> {
        /// CTR to ECB, and none.
        const MODES: [u16; 6] = [0x40, 0x41, 0x42, ALG_CFB, 0x44, ALG_NULL];
        let bits = r.u16()?;
        if !matches!(bits, 128 | 256) {
            return Err(rc::VALUE);
        }
        let mode = r.u16()?;
        if !MODES.contains(&mode) {
            return Err(rc::MODE);
        }
        Ok(Self { algorithm: ALG_AES, bits, mode })
    }

    fn put(self, out: &mut Vec<u8>) {
        out.u16(self.algorithm);
        if self.algorithm == ALG_AES {
            out.u16(self.bits);
            out.u16(self.mode);
        }
    }

    pub(super) fn key_bytes(self) -> usize {
        usize::from(self.bits) / 8
    }
}

/// A scheme that is an algorithm and a digest: of a key, or asked for in a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Scheme {
    pub(super) algorithm: u16,
    /// Not for the scheme none.
    pub(super) hash: Option<Hash>,
    /// KDF of an XOR scheme.
    kdf: u16,
}
stored!(Scheme { algorithm hash kdf });

impl Scheme {
    pub(super) const NULL: Self = Self { algorithm: ALG_NULL, hash: None, kdf: ALG_NULL };

    /// TPMT_SIG_SCHEME, null allowed. The schemes of keys that this TPM has none of are read, and found not to fit later.
    pub(super) fn read_signing(r: &mut Reader<'_>) -> Result<Self> {
        let algorithm = r.u16()?;
        match algorithm {
            ALG_NULL => Ok(Self::NULL),
            ALG_HMAC | 0x14 | 0x16 | ALG_ECDSA | ALG_ECDAA | 0x1b | 0x1c => {
                let scheme = Self { algorithm, hash: Some(Hash::read(r)?), kdf: ALG_NULL };
                if algorithm == ALG_ECDAA {
                    r.u16()?;
                }
                Ok(scheme)
            }
            _ => Err(rc::SCHEME),
        }
    }

    fn read_ecc(r: &mut Reader<'_>) -> Result<Self> {
        match r.u16()? {
            ALG_NULL => Ok(Self::NULL),
            algorithm @ (ALG_ECDSA | ALG_ECDH) => Ok(Self { algorithm, hash: Some(Hash::read(r)?), kdf: ALG_NULL }),
            _ => Err(rc::SCHEME),
        }
    }

    fn read_keyedhash(r: &mut Reader<'_>) -> Result<Self> {
        match r.u16()? {
            ALG_NULL => Ok(Self::NULL),
            ALG_HMAC => Ok(Self { algorithm: ALG_HMAC, hash: Some(Hash::read(r)?), kdf: ALG_NULL }),
            ALG_XOR => Ok(Self { algorithm: ALG_XOR, hash: Some(Hash::read(r)?), kdf: read_kdf(r)? }),
            _ => Err(rc::VALUE),
        }
    }

    fn put(self, out: &mut Vec<u8>) {
        out.u16(self.algorithm);
        if let Some(hash) = self.hash {
            out.u16(hash.id());
        }
        if self.algorithm == ALG_XOR {
            out.u16(self.kdf);
        }
    }

    fn is_ecdh(self) -> bool {
        self.algorithm == ALG_ECDH
    }
}

/// TPMI_ALG_KDF.
fn read_kdf(r: &mut Reader<'_>) -> Result<u16> {
    /// MGF1, SP 800-56A, SP 800-108, none.
    const KDFS: [u16; 4] = [0x07, 0x20, KDF1_SP800_108, ALG_NULL];
    let kdf = r.u16()?;
    if KDFS.contains(&kdf) { Ok(kdf) } else { Err(rc::KDF) }
}

const KDF1_SP800_108: u16 = 0x22;

/// What depends on the type of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    KeyedHash { scheme: Scheme, unique: Vec<u8> },
    Ecc { symmetric: Symmetric, scheme: Scheme, kdf: Option<Hash>, kdf_scheme: u16, unique: Point },
}

impl super::stored::Stored for Kind {
    fn store(&self, out: &mut Vec<u8>) {
        match self {
            Self::KeyedHash { scheme, unique } => {
                ALG_KEYEDHASH.store(out);
                scheme.store(out);
                unique.store(out);
            }
            Self::Ecc { symmetric, scheme, kdf, kdf_scheme, unique } => {
                ALG_ECC.store(out);
                symmetric.store(out);
                scheme.store(out);
                kdf.store(out);
                kdf_scheme.store(out);
                unique.store(out);
            }
        }
    }

    fn restore(r: &mut Reader<'_>) -> Option<Self> {
        use super::stored::Stored as S;
        Some(match u16::restore(r)? {
            ALG_KEYEDHASH => Self::KeyedHash { scheme: S::restore(r)?, unique: S::restore(r)? },
            ALG_ECC => Self::Ecc {
                symmetric: S::restore(r)?,
                scheme: S::restore(r)?,
                kdf: S::restore(r)?,
                kdf_scheme: S::restore(r)?,
                unique: S::restore(r)?,
            },
            _ => return None,
        })
    }
}

/// TPMT_PUBLIC.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Public {
    /// None only for an external object.
    pub(super) name_alg: Option<Hash>,
    pub(super) attributes: u32,
    pub(super) policy: Vec<u8>,
    pub(super) kind: Kind,
}
stored!(Public { name_alg attributes policy kind });

/// Longest digest, and so longest authorisation value, nonce and policy.
pub(super) const MAX_DIGEST: usize = 64;

impl Public {
    pub(super) fn read(r: &mut Reader<'_>, external: bool) -> Result<Self> {
        let kind = r.u16()?;
        if kind != ALG_KEYEDHASH && kind != ALG_ECC {
            return Err(rc::TYPE);
        }
        let name_alg = match r.u16()? {
            ALG_NULL if external => None,
            id => Some(Hash::from_id(id).ok_or(rc::HASH)?),
        };
        let attributes = r.u32()?;
        if attributes & attribute::RESERVED != 0 {
            return Err(rc::RESERVED_BITS);
        }
        let policy = r.sized(MAX_DIGEST)?.to_vec();
        let kind = if kind == ALG_KEYEDHASH {
            Kind::KeyedHash { scheme: Scheme::read_keyedhash(r)?, unique: r.sized(MAX_DIGEST)?.to_vec() }
        } else {
            let symmetric = Symmetric::read_object(r)?;
            let scheme = Scheme::read_ecc(r)?;
            if r.u16()? != CURVE_P256 {
                return Err(rc::CURVE);
            }
            let kdf_scheme = read_kdf(r)?;
            let kdf = if kdf_scheme == ALG_NULL { None } else { Some(Hash::read(r)?) };
            Kind::Ecc { symmetric, scheme, kdf, kdf_scheme, unique: Point::read(r)? }
        };
        Ok(Self { name_alg, attributes, policy, kind })
    }

    pub(super) fn marshal(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(128);
        out.u16(self.type_id());
        out.u16(self.name_alg.map_or(ALG_NULL, Hash::id));
        out.u32(self.attributes);
        out.sized(&self.policy);
        match &self.kind {
            Kind::KeyedHash { scheme, unique } => {
                scheme.put(&mut out);
                out.sized(unique);
            }
            Kind::Ecc { symmetric, scheme, kdf, kdf_scheme, unique } => {
                symmetric.put(&mut out);
                scheme.put(&mut out);
                out.u16(CURVE_P256);
                out.u16(*kdf_scheme);
                if let Some(hash) = kdf {
                    out.u16(hash.id());
                }
                unique.put(&mut out);
            }
        }
        out
    }

    /// Empty without a name algorithm.
    pub(super) fn name(&self) -> Vec<u8> {
        self.name_alg.map_or_else(Vec::new, |hash| [&hash.id().to_be_bytes()[..], &hash.digest(&[&self.marshal()])].concat())
    }

    pub(super) fn type_id(&self) -> u16 {
        match self.kind {
            Kind::KeyedHash { .. } => ALG_KEYEDHASH,
            Kind::Ecc { .. } => ALG_ECC,
        }
    }

    pub(super) fn has(&self, attribute: u32) -> bool {
        self.attributes & attribute != 0
    }

    pub(super) fn scheme(&self) -> Scheme {
        match self.kind {
            Kind::KeyedHash { scheme, .. } | Kind::Ecc { scheme, .. } => scheme,
        }
    }

    pub(super) fn symmetric(&self) -> Symmetric {
        match self.kind {
            Kind::KeyedHash { .. } => Symmetric::NULL,
            Kind::Ecc { symmetric, .. } => symmetric,
        }
    }

    /// Bytes of a digest of the name algorithm; 0 without one.
    pub(super) fn digest_size(&self) -> usize {
        self.name_alg.map_or(0, Hash::size)
    }

    /// A key that protects others: it decrypts, and only what the TPM made.
    pub(super) fn is_restricted_decryption(&self) -> bool {
        self.has(attribute::RESTRICTED) && self.has(attribute::DECRYPT)
    }

    /// Whether the schemes fit the attributes.
    pub(super) fn check_schemes(&self, parent: Option<&Self>) -> Result<()> {
        let (sign, decrypt) = (self.has(attribute::SIGN), self.has(attribute::DECRYPT));
        let restricted = self.has(attribute::RESTRICTED);
        let scheme = self.scheme();
        let none = scheme.algorithm == ALG_NULL;
        match &self.kind {
            Kind::KeyedHash { .. } => {
                let fits = match (sign, decrypt) {
                    (true, false) => scheme.algorithm == ALG_HMAC,
                    (false, true) => scheme.algorithm == ALG_XOR && (!restricted || scheme.kdf == KDF1_SP800_108),
                    _ => none,
                };
                return if fits { Ok(()) } else { Err(rc::SCHEME) };
            }
            Kind::Ecc { symmetric, kdf_scheme, .. } => {
                let fits = match (sign, decrypt) {
                    (true, false) => scheme.algorithm == ALG_ECDSA || (!restricted && none),
                    (false, true) => none || (!restricted && scheme.is_ecdh()),
                    _ => none,
                };
                if !fits {
                    return Err(rc::SCHEME);
                }
                if !self.is_restricted_decryption() && symmetric.algorithm != ALG_NULL {
                    return Err(rc::SYMMETRIC);
                }
                if *kdf_scheme != ALG_NULL {
                    return Err(rc::KDF);
                }
            }
        }
        if self.is_restricted_decryption() {
            if self.symmetric().algorithm == ALG_NULL {
                return Err(rc::SYMMETRIC);
            }
            if let Some(parent) = parent.filter(|_| self.has(attribute::FIXED_PARENT)) {
                if self.name_alg != parent.name_alg {
                    return Err(rc::HASH);
                }
                if self.symmetric() != parent.symmetric() {
                    return Err(rc::SYMMETRIC);
                }
            }
        }
        Ok(())
    }

    /// Whether the attributes fit each other and the parent's; none is a seed.
    pub(super) fn check_attributes(&self, parent: Option<&Self>) -> Result<()> {
        if self.name_alg.is_none() {
            return Err(rc::HASH);
        }
        if !self.policy.is_empty() && self.policy.len() != self.digest_size() {
            return Err(rc::SIZE);
        }
        let fixed_tpm = self.has(attribute::FIXED_TPM);
        let parent_is_fixed = parent.is_none_or(|parent| parent.has(attribute::FIXED_TPM));
        if parent_is_fixed && self.has(attribute::FIXED_PARENT) != fixed_tpm || !parent_is_fixed && fixed_tpm {
            return Err(rc::ATTRIBUTES);
        }
        if self.has(attribute::SIGN) == self.has(attribute::DECRYPT)
            && (self.has(attribute::RESTRICTED) || self.type_id() != ALG_KEYEDHASH && !self.has(attribute::SIGN))
        {
            return Err(rc::ATTRIBUTES);
        }
        let encrypted = self.has(attribute::ENCRYPTED_DUPLICATION);
        if fixed_tpm && encrypted {
            return Err(rc::ATTRIBUTES);
        }
        if let Some(parent) = parent
            && !parent_is_fixed
            && encrypted != parent.has(attribute::ENCRYPTED_DUPLICATION)
        {
            return Err(rc::ATTRIBUTES);
        }
        self.check_schemes(parent)
    }

    /// What a template must fulfil besides, for a new object with so many bytes of data given.
    pub(super) fn check_creation(&self, parent: Option<&Self>, data: usize) -> Result<()> {
        let origin = self.has(attribute::SENSITIVE_DATA_ORIGIN);
        if !origin && data == 0 || parent.is_some() && origin && data != 0 {
            return Err(rc::ATTRIBUTES);
        }
        let fits = if self.type_id() == ALG_KEYEDHASH {
            let is_data = !self.has(attribute::SIGN) && !self.has(attribute::DECRYPT);
            let fixed = self.has(attribute::FIXED_PARENT) || self.has(attribute::FIXED_TPM);
            if origin { !is_data } else { !self.has(attribute::RESTRICTED) || !fixed }
        } else {
            origin
        };
        if !fits {
            return Err(rc::ATTRIBUTES);
        }
        self.check_attributes(parent)
    }
}

/// TPMT_SENSITIVE.
#[derive(Clone, Debug, Default)]
pub(super) struct Sensitive {
    pub(super) type_id: u16,
    pub(super) auth: Secret,
    /// Of a parent: what its children are protected by; of a keyed hash: what hides its data in the public area.
    pub(super) seed: Secret,
    /// The private key, or the data.
    pub(super) data: Secret,
}
stored!(Sensitive { type_id auth seed data });

/// Most bytes that can be sealed.
pub(super) const MAX_SEALED: usize = 128;

impl Sensitive {
    pub(super) fn read(r: &mut Reader<'_>) -> Result<Self> {
        /// A coordinate of the longest curve.
        const MAX_PRIVATE: usize = 80;
        let type_id = r.u16()?;
        if type_id != ALG_KEYEDHASH && type_id != ALG_ECC {
            return Err(rc::TYPE);
        }
        let auth = Secret(r.sized(MAX_DIGEST)?.to_vec());
        let seed = Secret(r.sized(MAX_DIGEST)?.to_vec());
        let data = Secret(r.sized(if type_id == ALG_ECC { MAX_PRIVATE } else { MAX_SEALED })?.to_vec());
        Ok(Self { type_id, auth, seed, data })
    }

    /// The authorisation value padded to the digest of the name algorithm, so that its length shows nothing.
    pub(super) fn marshal(&self, digest_size: usize) -> Secret {
        let mut out = Vec::with_capacity(256);
        let mut auth = self.auth.clone();
        auth.0.resize(digest_size.max(auth.0.len()), 0);
        out.u16(self.type_id);
        out.sized(&auth.0);
        out.sized(&self.seed.0);
        out.sized(&self.data.0);
        Secret(out)
    }
}
