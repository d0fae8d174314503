//! Public keys (RFC 5280 §4.1.2.7, RFC 3279 §2.3, RFC 5480), and verifying a signature over a ready digest.
//!
//! Trusts nothing: a key is checked for its form before it is used. Algorithm parameters of rsaEncryption are not looked at (old
//! certificates leave the NULL out). Refuses EC parameters that are no named curve (CVE-2020-0601) and RSASSA-PSS keys with parameters.

#![deny(
    clippy::arithmetic_side_effects,
    clippy::as_conversions,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used
)]

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{ecdsa::EcdsaKey, rsa::RsaKey};
use crate::{
    bytes::der::{self, Tlv, tag},
    digest::{Digest, DigestAlg},
    oid::{self, Oid},
};

/// What kind of key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum KeyKind {
    /// RSA, with the modulus length in bits.
    Rsa(u32),
    /// ECDSA on NIST P-256.
    P256,
    /// ECDSA on NIST P-384.
    P384,
    /// ECDSA on NIST P-521.
    P521,
}

/// How a signature is made from a digest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Scheme {
    /// RSASSA-PKCS1-v1_5 (RFC 8017 §8.2).
    Pkcs1,
    /// RSASSA-PSS (RFC 8017 §8.1), the mask by the digest's own algorithm, salt as long as the digest.
    Pss,
    /// ECDSA with the signature as a DER SEQUENCE of r and s (RFC 3279 §2.2.3).
    Ecdsa,
}

/// How a signature that verifies was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SignatureForm {
    /// As its scheme says.
    Standard,
    /// PKCS#1 v1.5 padding around the bare hash, without DigestInfo. Only MD5 and SHA-1: timestamping services of that age made them.
    BareHash,
}

/// Why a key cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum KeyError {
    /// Not a SubjectPublicKeyInfo (RFC 5280 §4.1.2.7), or a key that is none.
    #[error("public key is malformed")]
    Malformed,
    /// An algorithm, curve or key size that is not supported.
    #[error("public key algorithm {0} is not supported")]
    Unsupported(String),
}

/// Why a signature does not verify.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum VerifyError {
    /// The key did not make this signature of this digest.
    #[error("signature does not verify")]
    Invalid,
    /// The scheme is not one of the key's.
    #[error("signature scheme does not fit the key")]
    SchemeMismatch,
    /// The digest algorithm cannot be verified with this key here.
    #[error("digest algorithm {0} is not supported with this key")]
    Unsupported(DigestAlg),
}

/// A parsed public key.
#[derive(Debug)]
pub struct PublicKey(Material);

#[derive(Debug)]
enum Material {
    Rsa(RsaKey),
    /// id-RSASSA-PSS: a key that PKCS#1 v1.5 signatures must not be accepted of (RFC 4055 §1.2).
    RsaPssOnly(RsaKey),
    Ecdsa(EcdsaKey),
}

impl PublicKey {
    /// From the DER of a SubjectPublicKeyInfo.
    ///
    /// RSA with a modulus of 512 to 8,192 bits and an odd exponent between 3 and 2³³; ECDSA on P-256, P-384 and P-521.
    ///
    /// # Errors
    /// Malformed, or of an algorithm that is not supported.
    pub fn from_spki(spki: &[u8]) -> Result<Self, KeyError> {
        let Spki { algorithm, parameters, key } = Spki::parse(spki).map_err(|_| KeyError::Malformed)?;
        match algorithm {
            oid::RSA_ENCRYPTION => RsaKey::parse(key).map(Material::Rsa),
            oid::RSA_PSS if parameters.is_none() => RsaKey::parse(key).map(Material::RsaPssOnly),
            oid::RSA_PSS => Err(KeyError::Unsupported("rsaPSS with parameters".to_owned())),
            oid::EC_PUBLIC_KEY => {
                let curve = parameters.ok_or(KeyError::Malformed)?;
                let curve = curve.oid().map_err(|_| KeyError::Unsupported("explicit EC parameters".to_owned()))?;
                EcdsaKey::parse(&curve, key).map(Material::Ecdsa)
            }
            other => Err(KeyError::Unsupported(oid::name(&other).map_or_else(|| other.to_string(), str::to_owned))),
        }
        .map(Self)
    }

    /// What kind of key.
    pub fn kind(&self) -> KeyKind {
        match &self.0 {
            Material::Rsa(key) | Material::RsaPssOnly(key) => KeyKind::Rsa(key.bits()),
            Material::Ecdsa(key) => key.kind(),
        }
    }

    /// That the key made `signature` of `digest`.
    ///
    /// An RSA signature is exactly as long as the modulus and, as a number, below it. An ECDSA signature is DER; a digest that is longer than
    /// the curve's order counts by its leftmost bits (FIPS 186-5 §6.4.2).
    ///
    /// # Errors
    /// It did not, or that cannot be told.
    pub fn verify(&self, scheme: Scheme, digest: &Digest, signature: &[u8]) -> Result<SignatureForm, VerifyError> {
        match (&self.0, scheme) {
            (Material::Rsa(key), Scheme::Pkcs1) => key.verify_pkcs1(digest, signature),
            (Material::Rsa(key) | Material::RsaPssOnly(key), Scheme::Pss) => key.verify_pss(digest, signature),
            (Material::Ecdsa(key), Scheme::Ecdsa) => key.verify(digest, signature),
            _ => Err(VerifyError::SchemeMismatch),
        }
    }
}

/// SubjectPublicKeyInfo.
struct Spki<'a> {
    algorithm: Oid,
    parameters: Option<Tlv<'a>>,
    key: &'a [u8],
}

impl<'a> Spki<'a> {
    fn parse(spki: &'a [u8]) -> der::Result<Self> {
        let mut fields = Tlv::parse_exact(spki, 0)?.expect(tag::SEQUENCE)?.reader()?;
        let mut algorithm = fields.expect(tag::SEQUENCE)?.reader()?;
        let key = fields.expect(tag::BIT_STRING)?.bit_octets()?;
        fields.finish()?;
        let oid = algorithm.expect(tag::OID)?.oid()?;
        let parameters = if algorithm.is_empty() { None } else { Some(algorithm.next()?) };
        algorithm.finish()?;
        Ok(Self { algorithm: oid, parameters, key })
    }
}

#[cfg(test)]
mod tests {
    #![expect(
        clippy::arithmetic_side_effects,
        clippy::expect_used,
        clippy::indexing_slicing,
        clippy::panic,
        clippy::unwrap_used,
        reason = "tests"
    )]

    use proptest::prelude::*;
    use rand_chacha::{ChaCha8Rng, rand_core::SeedableRng};
    use rsa::{BigUint, Pkcs1v15Sign, Pss, RsaPrivateKey, traits::PublicKeyParts};

    use super::*;
    use crate::{bytes::der::der_header, crypto::digest};

    const P256_POINT: &str =
        "033e97527f840514511ce1b525db54948c71daeb22c84b029dd1015f73b03b5256d85d746b1e49cc756d025be8a78b668cf647f540fd50eaeede41b1fa5c3e08";

    struct Vector {
        kind: KeyKind,
        scheme: Scheme,
        form: SignatureForm,
        digest: Digest,
        spki: Vec<u8>,
        signature: Vec<u8>,
    }

    fn vectors() -> Vec<Vector> {
        let parse = |line: &str| {
            let [key, scheme, alg, spki, signature] = line.split(' ').collect::<Vec<_>>().try_into().unwrap();
            let (scheme, form) = match scheme {
                "pkcs1" => (Scheme::Pkcs1, SignatureForm::Standard),
                "bare" => (Scheme::Pkcs1, SignatureForm::BareHash),
                "pss" => (Scheme::Pss, SignatureForm::Standard),
                "ecdsa" => (Scheme::Ecdsa, SignatureForm::Standard),
                other => panic!("{other}"),
            };
            let kind = match key.split_once('-').unwrap() {
                ("rsa", bits) => KeyKind::Rsa(bits.parse().unwrap()),
                ("p", "256") => KeyKind::P256,
                ("p", "384") => KeyKind::P384,
                ("p", "521") => KeyKind::P521,
                other => panic!("{other:?}"),
            };
            let digest = digest(DigestAlg::from_name(alg).unwrap(), &[b"hvci"]);
            Vector { kind, scheme, form, digest, spki: hex::decode(spki).unwrap(), signature: hex::decode(signature).unwrap() }
        };
        include_str!("testdata/openssl.txt").lines().filter(|l| !l.starts_with('#')).map(parse).collect()
    }

    fn tlv(tag: u8, content: &[&[u8]]) -> Vec<u8> {
        let content = content.concat();
        let (header, len) = der_header(tag, content.len());
        [&header[..len], &content].concat()
    }

    fn spki(algorithm: &Oid, parameters: &[u8], key: &[u8]) -> Vec<u8> {
        let oid = tlv(tag::OID, &[algorithm.as_bytes()]);
        tlv(tag::SEQUENCE, &[&tlv(tag::SEQUENCE, &[&oid, parameters]), &tlv(tag::BIT_STRING, &[&[0], key])])
    }

    fn rsa_spki(modulus: &[u8], exponent: &[u8]) -> Vec<u8> {
        let key = tlv(tag::SEQUENCE, &[&tlv(tag::INTEGER, &[modulus]), &tlv(tag::INTEGER, &[exponent])]);
        spki(&oid::RSA_ENCRYPTION, &[5, 0], &key)
    }

    fn ec_spki(curve: &Oid, point: &[u8]) -> Vec<u8> {
        spki(&oid::EC_PUBLIC_KEY, &tlv(tag::OID, &[curve.as_bytes()]), point)
    }

    /// The key, and if it is an RSA key, the same one without the kernel that would hide the libraries.
    fn paths(spki: &[u8]) -> Vec<PublicKey> {
        let key = || PublicKey::from_spki(spki).unwrap().0;
        let other = match key() {
            Material::Rsa(key) => Material::Rsa(key.without_kernel()),
            Material::RsaPssOnly(key) => Material::RsaPssOnly(key.without_kernel()),
            other => other,
        };
        vec![PublicKey(key()), PublicKey(other)]
    }

    fn rsa_paths(private: &RsaPrivateKey) -> Vec<PublicKey> {
        paths(&rsa_spki(&[&[0], &private.n().to_bytes_be()[..]].concat(), &private.e().to_bytes_be()))
    }

    fn refusal(spki: &[u8]) -> KeyError {
        PublicKey::from_spki(spki).expect_err("key is refused")
    }

    fn unsupported(what: &str) -> KeyError {
        KeyError::Unsupported(what.to_owned())
    }

    /// Signatures that the key did not make of the digest, from one that it did.
    fn forgeries(v: &Vector) -> Vec<Vec<u8>> {
        let len = v.signature.len();
        let mut forged: Vec<_> = (0..len * 8)
            .step_by(23)
            .map(|bit| {
                let mut s = v.signature.clone();
                s[bit / 8] ^= 1 << (bit % 8);
                s
            })
            .collect();
        let mut one = vec![0; len];
        one[len - 1] = 1;
        forged.extend([one, vec![0; len], vec![0xFF; len], vec![], v.signature[1..].to_vec(), v.signature[..len - 1].to_vec()]);
        forged.extend([[&v.signature[..], &[0]].concat(), [&[0], &v.signature[..]].concat()]);
        forged
    }

    #[test]
    fn what_openssl_signs_verifies_and_nothing_near_it_does() {
        for (v, key) in vectors().iter().flat_map(|v| paths(&v.spki).into_iter().map(move |key| (v, key))) {
            let name = format!("{:?} {:?} {}", v.kind, v.scheme, v.digest.alg());
            assert_eq!(key.kind(), v.kind);
            assert_eq!(key.verify(v.scheme, &v.digest, &v.signature), Ok(v.form), "{name}");
            for forged in forgeries(v) {
                assert_eq!(key.verify(v.scheme, &v.digest, &forged), Err(VerifyError::Invalid), "{name} {}", hex::encode(forged));
            }
            let other = digest(v.digest.alg(), &[b"HVCI"]);
            assert_eq!(key.verify(v.scheme, &other, &v.signature), Err(VerifyError::Invalid), "{name}");
            for scheme in [Scheme::Pkcs1, Scheme::Pss, Scheme::Ecdsa] {
                assert_eq!(key.verify(scheme, &v.digest, &v.signature).is_ok(), scheme == v.scheme, "{name} as {scheme:?}");
            }
            // an RSA signature binds the algorithm also between two that make values of one length
            let twin = match v.digest.alg() {
                DigestAlg::Sha256 => DigestAlg::Sha3_256,
                DigestAlg::Sha384 => DigestAlg::Sha3_384,
                DigestAlg::Sha512 => DigestAlg::Sha3_512,
                DigestAlg::Sha3_256 => DigestAlg::Sha256,
                _ => continue,
            };
            let twin = Digest::new(twin, v.digest.as_bytes()).unwrap();
            assert_eq!(key.verify(v.scheme, &twin, &v.signature).is_ok(), v.scheme == Scheme::Ecdsa, "{name} as {}", twin.alg());
        }
    }

    /// The value s + n has the right residue, and fits in as many bytes for many s: only the comparison with n refuses it.
    #[test]
    fn a_signature_not_below_the_modulus_is_refused_on_every_path() {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        for bits in [768, 1024, 2048] {
            let private = RsaPrivateKey::new(&mut rng, bits).unwrap();
            let n = private.n();
            let keys = rsa_paths(&private);
            let cases = [
                (Scheme::Pkcs1, SignatureForm::Standard, DigestAlg::Md5),
                (Scheme::Pkcs1, SignatureForm::Standard, DigestAlg::Sha1),
                (Scheme::Pkcs1, SignatureForm::Standard, DigestAlg::Sha256),
                (Scheme::Pkcs1, SignatureForm::Standard, DigestAlg::Sha384),
                (Scheme::Pkcs1, SignatureForm::BareHash, DigestAlg::Sha1),
                (Scheme::Pss, SignatureForm::Standard, DigestAlg::Sha1),
                (Scheme::Pss, SignatureForm::Standard, DigestAlg::Sha256),
            ];
            for (scheme, form, alg) in cases {
                let (digest, s, sum) = (0_u32..)
                    .find_map(|i| {
                        let digest = digest(alg, &[&i.to_be_bytes()]);
                        let d = digest.as_bytes();
                        let s = match (scheme, form, alg) {
                            (Scheme::Pss, _, DigestAlg::Sha1) => private.sign_with_rng(&mut rng, Pss::new::<sha1::Sha1>(), d),
                            (Scheme::Pss, ..) => private.sign_with_rng(&mut rng, Pss::new::<sha2::Sha256>(), d),
                            (_, SignatureForm::BareHash, _) => private.sign(Pkcs1v15Sign::new_unprefixed(), d),
                            (_, _, DigestAlg::Md5) => private.sign(Pkcs1v15Sign::new::<md5::Md5>(), d),
                            (_, _, DigestAlg::Sha1) => private.sign(Pkcs1v15Sign::new::<sha1::Sha1>(), d),
                            (_, _, DigestAlg::Sha256) => private.sign(Pkcs1v15Sign::new::<sha2::Sha256>(), d),
                            _ => private.sign(Pkcs1v15Sign::new::<sha2::Sha384>(), d),
                        }
                        .unwrap();
                        let sum = (BigUint::from_bytes_be(&s) + n).to_bytes_be();
                        (sum.len() == s.len()).then_some((digest, s, sum))
                    })
                    .unwrap();
                for key in &keys {
                    assert_eq!(key.verify(scheme, &digest, &s), Ok(form), "{bits} {scheme:?} {alg}");
                    assert_eq!(key.verify(scheme, &digest, &sum), Err(VerifyError::Invalid), "{bits} {scheme:?} {alg}");
                    assert_eq!(key.verify(scheme, &digest, &n.to_bytes_be()), Err(VerifyError::Invalid));
                    assert_eq!(key.verify(scheme, &digest, &(n - 1_u32).to_bytes_be()), Err(VerifyError::Invalid));
                }
            }
        }
    }

    /// Blocks that a lenient parser of the padding takes; made with the private key, as a forger with exponent 3 would get them.
    #[test]
    fn padding_is_compared_whole() {
        let digest = digest(DigestAlg::Sha1, &[b"hvci"]);
        let prefix = Pkcs1v15Sign::new::<sha1::Sha1>().prefix;
        let without_null = {
            let algorithm = tlv(tag::SEQUENCE, &[&tlv(tag::OID, &[oid::SHA1.as_bytes()])]);
            tlv(tag::SEQUENCE, &[&algorithm, &tlv(tag::OCTET_STRING, &[digest.as_bytes()])])
        };
        for len in [128, 256] {
            let private = RsaPrivateKey::new(&mut ChaCha8Rng::seed_from_u64(2), 8 * len).unwrap();
            let keys = rsa_paths(&private);
            let verify = |block: &[u8]| {
                let s = BigUint::from_bytes_be(block).modpow(rsa::traits::PrivateKeyParts::d(&private), private.n()).to_bytes_be();
                let s = [&vec![0; len - s.len()], &s[..]].concat();
                let [one, other] = keys.iter().map(|key| key.verify(Scheme::Pkcs1, &digest, &s)).collect::<Vec<_>>().try_into().unwrap();
                assert_eq!(one, other);
                one
            };
            let block = |kind: u8, fill: usize, filler: u8, content: &[&[u8]]| {
                let mut block = [&[0, kind][..], &vec![filler; fill], &[0], &content.concat()].concat();
                block.resize(len, 0);
                block
            };
            let standard: &[&[u8]] = &[&prefix, digest.as_bytes()];
            let bare: &[&[u8]] = &[digest.as_bytes()];
            let (standard_fill, bare_fill) = (len - 38, len - 23);
            assert_eq!(verify(&block(1, standard_fill, 0xFF, standard)), Ok(SignatureForm::Standard));
            assert_eq!(verify(&block(1, bare_fill, 0xFF, bare)), Ok(SignatureForm::BareHash));
            let wrong = [
                block(1, 8, 0xFF, standard),
                block(1, 8, 0xFF, bare),
                block(2, standard_fill, 0xFF, standard),
                block(2, bare_fill, 0xFF, bare),
                block(0, bare_fill, 0xFF, bare),
                block(1, bare_fill, 0x00, bare),
                block(1, bare_fill, 0xFE, bare),
                block(1, len - 3 - without_null.len(), 0xFF, &[&without_null]),
                block(1, bare_fill - 1, 0xFF, &[digest.as_bytes(), &[0]]),
            ];
            for block in wrong {
                assert_eq!(verify(&block), Err(VerifyError::Invalid), "{}", hex::encode(block));
            }
        }
    }

    #[test]
    fn a_bare_hash_is_taken_for_old_digests_only() {
        for bits in [1024, 2048] {
            let private = RsaPrivateKey::new(&mut ChaCha8Rng::seed_from_u64(3), bits).unwrap();
            for (alg, key) in DigestAlg::ALL.into_iter().flat_map(|alg| rsa_paths(&private).into_iter().map(move |key| (alg, key))) {
                let digest = digest(alg, &[b"hvci"]);
                let s = private.sign(Pkcs1v15Sign::new_unprefixed(), digest.as_bytes()).unwrap();
                assert_eq!(key.verify(Scheme::Pkcs1, &digest, &s).is_ok(), matches!(alg, DigestAlg::Md5 | DigestAlg::Sha1), "{alg}");
            }
        }
    }

    #[test]
    fn ecdsa_values_are_in_range_and_der() {
        let order = BigUint::parse_bytes(b"ffffffff00000000ffffffffffffffffbce6faada7179e84f3b9cac2fc632551", 16).unwrap();
        let v = vectors().into_iter().find(|v| v.kind == KeyKind::P256).unwrap();
        let key = PublicKey::from_spki(&v.spki).unwrap();
        let mut numbers = Tlv::parse_exact(&v.signature, 0).unwrap().reader().unwrap();
        let mut number = || BigUint::from_bytes_be(numbers.next().unwrap().integer().unwrap());
        let (r, s) = (number(), number());
        let verify = |r: &BigUint, s: &BigUint| {
            let integer = |n: &BigUint| tlv(tag::INTEGER, &[&[0][..n.bits().is_multiple_of(8).into()], &n.to_bytes_be()]);
            key.verify(Scheme::Ecdsa, &v.digest, &tlv(tag::SEQUENCE, &[&integer(r), &integer(s)])).is_ok()
        };
        let nought = BigUint::default();
        assert!(verify(&r, &s));
        assert!(verify(&r, &(&order - &s)), "the twin that every ECDSA signature has");
        for (r, s) in [
            (&r + &order, s.clone()),
            (r.clone(), &s + &order),
            (nought.clone(), s.clone()),
            (r.clone(), nought.clone()),
            (nought.clone(), nought),
        ] {
            assert!(!verify(&r, &s));
        }
        let long_form = [&[0x30, 0x81], &v.signature[1..]].concat();
        assert_eq!(key.verify(Scheme::Ecdsa, &v.digest, &long_form), Err(VerifyError::Invalid));
    }

    #[test]
    fn keys_of_every_form() {
        let modulus = [&[0, 0xC1], &[0x5A; 127][..]].concat();
        let modulus = [&modulus[..128], &[1]].concat();
        let kind = |spki: &[u8]| PublicKey::from_spki(spki).map(|k| k.kind());
        assert_eq!(kind(&rsa_spki(&modulus, &[1, 0, 1])), Ok(KeyKind::Rsa(1024)));
        assert_eq!(kind(&rsa_spki(&[&[0, 0], &modulus[..]].concat(), &[0, 3])), Ok(KeyKind::Rsa(1024)), "needless zeroes");
        assert_eq!(refusal(&rsa_spki(&modulus[1..], &[3])), KeyError::Malformed, "negative");
        assert_eq!(refusal(&rsa_spki(&[&modulus[..128], &[2]].concat(), &[3])), KeyError::Malformed, "even modulus");
        for exponent in [&[0][..], &[1], &[2], &[0x83]] {
            assert_eq!(refusal(&rsa_spki(&modulus, exponent)), KeyError::Malformed, "{exponent:?}");
        }
        assert_eq!(refusal(&rsa_spki(&modulus, &[2, 0, 0, 0, 1])), unsupported("RSA exponent above 33 bits"));
        assert_eq!(refusal(&rsa_spki(&modulus, &[0x7F; 20])), unsupported("RSA exponent above 33 bits"));
        assert_eq!(refusal(&rsa_spki(&[0x7F; 63], &[3])), unsupported("RSA of 503 bits"));
        assert_eq!(refusal(&rsa_spki(&[1; 1025], &[3])), unsupported("RSA of 8193 bits"));
        assert_eq!(refusal(&rsa_spki(&[0], &[3])), KeyError::Malformed);

        let key = tlv(tag::SEQUENCE, &[&tlv(tag::INTEGER, &[&modulus]), &tlv(tag::INTEGER, &[&[3]])]);
        assert_eq!(kind(&spki(&oid::RSA_ENCRYPTION, &[], &key)), Ok(KeyKind::Rsa(1024)), "no parameters");
        assert_eq!(kind(&spki(&oid::RSA_PSS, &[], &key)), Ok(KeyKind::Rsa(1024)));
        assert_eq!(refusal(&spki(&oid::RSA_PSS, &[0x30, 0], &key)), unsupported("rsaPSS with parameters"));
        assert_eq!(refusal(&spki(&oid::RSA_ENCRYPTION, &[5, 0, 5, 0], &key)), KeyError::Malformed);
        assert_eq!(refusal(&[&spki(&oid::RSA_ENCRYPTION, &[5, 0], &key)[..], &[0]].concat()), KeyError::Malformed);
        assert_eq!(refusal(&spki(&oid::ML_DSA_65, &[], &[1; 1952])), unsupported("ML-DSA-65"));

        let point = hex::decode(P256_POINT).unwrap();
        let uncompressed = [&[4], &point[..]].concat();
        assert_eq!(kind(&ec_spki(&oid::CURVE_P256, &uncompressed)), Ok(KeyKind::P256));
        assert_eq!(kind(&ec_spki(&oid::CURVE_P256, &[&[2], &point[..32]].concat())), Ok(KeyKind::P256), "compressed");
        let mut off_curve = uncompressed.clone();
        off_curve[64] ^= 1;
        let whole_spki = ec_spki(&oid::CURVE_P256, &uncompressed);
        for point in [&off_curve[..], &[0], &[], &uncompressed[..64], &whole_spki] {
            assert_eq!(refusal(&ec_spki(&oid::CURVE_P256, point)), KeyError::Malformed);
        }
        assert_eq!(refusal(&ec_spki(&oid::CURVE_P384, &uncompressed)), KeyError::Malformed);
        assert_eq!(refusal(&ec_spki(&Oid::of("1.3.132.0.10"), &uncompressed)), unsupported("1.3.132.0.10"));
        assert_eq!(refusal(&spki(&oid::EC_PUBLIC_KEY, &[0x30, 0], &uncompressed)), unsupported("explicit EC parameters"));
        assert_eq!(refusal(&spki(&oid::EC_PUBLIC_KEY, &[], &uncompressed)), KeyError::Malformed);
    }

    #[test]
    fn every_prefix_of_a_key_is_refused() {
        for v in vectors() {
            for len in 0..v.spki.len() {
                assert_eq!(refusal(&v.spki[..len]), KeyError::Malformed);
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn mutated_keys_do_not_panic_or_verify(which: prop::sample::Index, at: prop::sample::Index, value in 1_u8..) {
            let vectors = vectors();
            let v = &vectors[which.index(vectors.len())];
            let mut spki = v.spki.clone();
            let at = at.index(spki.len());
            spki[at] ^= value;
            if let Ok(key) = PublicKey::from_spki(&spki) {
                // rsaEncryption's parameters do not matter; a compressed point may be written in another form
                prop_assert!(key.verify(v.scheme, &v.digest, &v.signature).is_err() || at < 32, "byte {at}");
            }
        }
    }
}
