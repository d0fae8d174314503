//! Every object identifier that is looked for, once, with the document that defines it.

use core::fmt;

/// An object identifier (X.660) as the octets that encode it.
///
/// The `const-oid` crate's own type refuses arcs of 29 bits and more, which Microsoft's identity-verification certificates have.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Oid {
    len: u8,
    octets: [u8; Self::MAX],
}

impl Oid {
    /// The longest encoding that is taken.
    pub const MAX: usize = 39;

    /// From its encoding, without tag and length; `None` if it is empty, too long or ends inside an arc.
    pub fn from_bytes(encoded: &[u8]) -> Option<Self> {
        let mut octets = [0; Self::MAX];
        octets.get_mut(..encoded.len())?.copy_from_slice(encoded);
        let complete = encoded.last().is_some_and(|b| b & 0x80 == 0);
        Some(Self { len: u8::try_from(encoded.len()).ok()?, octets }).filter(|_| complete)
    }

    /// The encoding, without tag and length.
    pub fn as_bytes(&self) -> &[u8] {
        self.octets.get(..usize::from(self.len)).unwrap_or_default()
    }

    /// From dotted decimal. Only for the table below, where a wrong literal does not compile.
    #[expect(
        clippy::indexing_slicing,
        clippy::arithmetic_side_effects,
        clippy::as_conversions,
        clippy::cast_possible_truncation,
        reason = "evaluated at compile time"
    )]
    pub(crate) const fn of(dotted: &str) -> Self {
        let text = dotted.as_bytes();
        let (mut octets, mut len) = ([0; Self::MAX], 0);
        let (mut arc, mut root, mut at) = (0_u64, None, 0);
        while at <= text.len() {
            if at < text.len() && text[at] != b'.' {
                assert!(text[at].is_ascii_digit());
                arc = arc * 10 + (text[at] - b'0') as u64;
            } else {
                // the first two arcs share one number
                if let Some(first) = root {
                    arc += 40 * first;
                    let mut groups = 1;
                    while arc >> (7 * groups) != 0 {
                        groups += 1;
                    }
                    while groups > 0 {
                        groups -= 1;
                        octets[len] = (arc >> (7 * groups)) as u8 & 0x7F | if groups > 0 { 0x80 } else { 0 };
                        len += 1;
                    }
                    root = Some(0);
                } else {
                    root = Some(arc);
                }
                arc = 0;
            }
            at += 1;
        }
        Self { len: len as u8, octets }
    }
}

impl fmt::Display for Oid {
    /// Dotted decimal; arcs above 128 bits are cut off at the top.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut arc = 0_u128;
        let mut first = true;
        for octet in self.as_bytes() {
            arc = arc.wrapping_shl(7) | u128::from(octet & 0x7F);
            if octet & 0x80 == 0 {
                if first {
                    let root = (arc / 40).min(2);
                    write!(f, "{root}.{}", arc.saturating_sub(root.saturating_mul(40)))?;
                } else {
                    write!(f, ".{arc}")?;
                }
                (arc, first) = (0, false);
            }
        }
        Ok(())
    }
}

impl fmt::Debug for Oid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

macro_rules! oids {
    ($( $(#[$doc:meta])* $name:ident = $value:literal, $text:literal; )*) => {
        $( $(#[$doc])* #[doc = concat!("`", $value, "`")] pub const $name: Oid = Oid::of($value); )*

        /// The name of an identifier that this engine knows.
        pub fn name(oid: &Oid) -> Option<&'static str> {
            $( if *oid == $name { return Some($text); } )*
            None
        }
    };
}

oids! {
    // RFC 5652, RFC 2985
    /// id-data
    DATA = "1.2.840.113549.1.7.1", "data";
    /// id-signedData
    SIGNED_DATA = "1.2.840.113549.1.7.2", "signedData";
    /// contentType attribute
    CONTENT_TYPE = "1.2.840.113549.1.9.3", "contentType";
    /// messageDigest attribute
    MESSAGE_DIGEST = "1.2.840.113549.1.9.4", "messageDigest";
    /// signingTime attribute
    SIGNING_TIME = "1.2.840.113549.1.9.5", "signingTime";
    /// countersignature attribute
    COUNTERSIGNATURE = "1.2.840.113549.1.9.6", "countersignature";
    /// PKCS#9 random nonce / sequence number used by Microsoft
    SEQUENCE_NUMBER = "1.2.840.113549.1.9.25.4", "sequenceNumber";
    // RFC 5035, RFC 2634
    /// signingCertificate attribute
    SIGNING_CERTIFICATE = "1.2.840.113549.1.9.16.2.12", "signingCertificate";
    /// signingCertificateV2 attribute
    SIGNING_CERTIFICATE_V2 = "1.2.840.113549.1.9.16.2.47", "signingCertificateV2";
    /// id-ct-TSTInfo, RFC 3161 §2.4.2
    TST_INFO = "1.2.840.113549.1.9.16.1.4", "TSTInfo";
    /// RFC 3161 token as id-aa-timeStampToken
    TIMESTAMP_TOKEN = "1.2.840.113549.1.9.16.2.14", "timeStampToken";

    // Microsoft Authenticode ("Windows Authenticode Portable Executable Signature Format", 2008)
    /// SPC_INDIRECT_DATA
    SPC_INDIRECT_DATA = "1.3.6.1.4.1.311.2.1.4", "SpcIndirectDataContent";
    /// SPC_STATEMENT_TYPE
    SPC_STATEMENT_TYPE = "1.3.6.1.4.1.311.2.1.11", "SpcStatementType";
    /// SPC_SP_OPUS_INFO
    SPC_SP_OPUS_INFO = "1.3.6.1.4.1.311.2.1.12", "SpcSpOpusInfo";
    /// SPC_PE_IMAGE_DATA
    SPC_PE_IMAGE_DATA = "1.3.6.1.4.1.311.2.1.15", "SpcPeImageData";
    /// SPC_INDIVIDUAL_SP_KEY_PURPOSE; also found as an SpcAttribute type in images made by one signing tool
    SPC_INDIVIDUAL = "1.3.6.1.4.1.311.2.1.21", "individualCodeSigning";
    /// SPC_COMMERCIAL_SP_KEY_PURPOSE
    SPC_COMMERCIAL = "1.3.6.1.4.1.311.2.1.22", "commercialCodeSigning";
    /// SPC_CAB_DATA
    SPC_CAB_DATA = "1.3.6.1.4.1.311.2.1.25", "SpcLink";
    /// SPC_SIPINFO
    SPC_SIPINFO = "1.3.6.1.4.1.311.2.1.30", "SpcSipInfo";
    /// SPC_PE_IMAGE_PAGE_HASHES_V1 (SHA-1)
    SPC_PAGE_HASHES_V1 = "1.3.6.1.4.1.311.2.3.1", "page hashes v1";
    /// SPC_PE_IMAGE_PAGE_HASHES_V2 (SHA-256)
    SPC_PAGE_HASHES_V2 = "1.3.6.1.4.1.311.2.3.2", "page hashes v2";
    /// szOID_NESTED_SIGNATURE
    NESTED_SIGNATURE = "1.3.6.1.4.1.311.2.4.1", "nested signature";
    /// SPC_RELAXED_PE_MARKER_CHECK
    SPC_RELAXED_PE_MARKER = "1.3.6.1.4.1.311.2.6.1", "relaxed PE marker check";
    /// szOID_RFC3161_counterSign
    RFC3161_COUNTERSIGN = "1.3.6.1.4.1.311.3.3.1", "RFC 3161 countersignature";
    /// szOID_CTL
    CTL = "1.3.6.1.4.1.311.10.1", "certificate trust list";
    /// szOID_CATALOG_LIST
    CATALOG_LIST = "1.3.6.1.4.1.311.12.1.1", "catalog list";
    /// szOID_CATALOG_LIST_MEMBER
    CATALOG_MEMBER = "1.3.6.1.4.1.311.12.1.2", "catalog member";
    /// szOID_CATALOG_LIST_MEMBER2
    CATALOG_MEMBER_V2 = "1.3.6.1.4.1.311.12.1.3", "catalog member v2";
    /// CAT_NAMEVALUE_OBJID
    CATALOG_NAME_VALUE = "1.3.6.1.4.1.311.12.2.1", "catalog name-value";
    /// CAT_MEMBERINFO_OBJID
    CATALOG_MEMBER_INFO = "1.3.6.1.4.1.311.12.2.2", "catalog member info";
    /// CAT_MEMBERINFO2_OBJID
    CATALOG_MEMBER_INFO_V2 = "1.3.6.1.4.1.311.12.2.3", "catalog member info v2";
    /// Manifest binary ID
    MANIFEST_BINARY_ID = "1.3.6.1.4.1.311.10.3.28", "manifest binary ID";

    // Certificate properties as attributes of trust lists (wincrypt.h `szOID_CERT_PROP_ID_PREFIX` and `CERT_*_PROP_ID`)
    /// CERT_ENHKEY_USAGE_PROP_ID
    PROP_ENHKEY_USAGE = "1.3.6.1.4.1.311.10.11.9", "usages";
    /// CERT_AUTH_ROOT_SHA256_HASH_PROP_ID
    PROP_AUTH_ROOT_SHA256 = "1.3.6.1.4.1.311.10.11.98", "SHA-256 of a root";
    /// CERT_DISALLOWED_FILETIME_PROP_ID
    PROP_DISALLOWED_FILETIME = "1.3.6.1.4.1.311.10.11.104", "disallowed since";
    /// CERT_DISALLOWED_ENHKEY_USAGE_PROP_ID
    PROP_DISALLOWED_ENHKEY_USAGE = "1.3.6.1.4.1.311.10.11.122", "disallowed usages";
    /// CERT_NOT_BEFORE_FILETIME_PROP_ID
    PROP_NOT_BEFORE_FILETIME = "1.3.6.1.4.1.311.10.11.126", "not before";
    /// CERT_NOT_BEFORE_ENHKEY_USAGE_PROP_ID
    PROP_NOT_BEFORE_ENHKEY_USAGE = "1.3.6.1.4.1.311.10.11.127", "usages of not before";

    // Extended key usages, RFC 5280 and Microsoft (wincrypt.h; windows-driver-docs `code-signing-validate.md`)
    /// anyExtendedKeyUsage
    EKU_ANY = "2.5.29.37.0", "any purpose";
    /// id-kp-serverAuth
    EKU_SERVER_AUTH = "1.3.6.1.5.5.7.3.1", "server authentication";
    /// id-kp-clientAuth
    EKU_CLIENT_AUTH = "1.3.6.1.5.5.7.3.2", "client authentication";
    /// id-kp-codeSigning
    EKU_CODE_SIGNING = "1.3.6.1.5.5.7.3.3", "code signing";
    /// id-kp-emailProtection
    EKU_EMAIL = "1.3.6.1.5.5.7.3.4", "e-mail protection";
    /// id-kp-timeStamping
    EKU_TIMESTAMPING = "1.3.6.1.5.5.7.3.8", "timestamping";
    /// szOID_WHQL_CRYPTO
    EKU_WHQL = "1.3.6.1.4.1.311.10.3.5", "WHQL";
    /// szOID_ATTEST_WHQL_CRYPTO
    EKU_ATTESTED = "1.3.6.1.4.1.311.10.3.5.1", "WHQL attested";
    /// szOID_NT5_CRYPTO
    EKU_SYSTEM_COMPONENT = "1.3.6.1.4.1.311.10.3.6", "Windows system component";
    /// szOID_OEM_WHQL_CRYPTO
    EKU_OEM_WHQL = "1.3.6.1.4.1.311.10.3.7", "OEM Windows system component";
    /// szOID_ROOT_LIST_SIGNER
    EKU_ROOT_LIST_SIGNER = "1.3.6.1.4.1.311.10.3.9", "root list signing";
    /// szOID_DISALLOWED_LIST
    EKU_DISALLOWED_LIST = "1.3.6.1.4.1.311.10.3.30", "disallowed list";
    /// szOID_LIFETIME_SIGNING
    EKU_LIFETIME = "1.3.6.1.4.1.311.10.3.13", "lifetime signing";
    /// szOID_KP_RT
    EKU_RT = "1.3.6.1.4.1.311.10.3.21", "Windows RT verification";
    /// szOID_WINDOWS_SOFTWARE_EXTENSION
    EKU_SOFTWARE_EXTENSION = "1.3.6.1.4.1.311.10.3.26", "Windows software extension verification";
    /// szOID_IUM_SIGNING
    EKU_IUM = "1.3.6.1.4.1.311.10.3.37", "isolated user mode";
    /// szOID_EV_WHQL_CRYPTO (extended verification)
    EKU_EXTENDED_VERIFICATION = "1.3.6.1.4.1.311.10.3.39", "WHQL extended verification";
    /// szOID_EARLY_LAUNCH
    EKU_ELAM = "1.3.6.1.4.1.311.61.4.1", "early launch antimalware";
    /// szOID_HAL_EXTENSION
    EKU_HAL = "1.3.6.1.4.1.311.61.5.1", "HAL extension";
    /// Windows Store
    EKU_STORE = "1.3.6.1.4.1.311.76.3.1", "Windows Store";
    /// Third-party application component
    EKU_THIRD_PARTY = "1.3.6.1.4.1.311.76.17.1", "third-party component";
    /// UEFI CA image class
    EKU_UEFI = "1.3.6.1.4.1.311.80.2.1", "UEFI signing";
    /// Modules of a Linux kernel, and nothing else (Red Hat; rhboot/shim, `verify.c`)
    EKU_MODULE_SIGNING = "1.3.6.1.4.1.2312.16.1.2", "Linux module signing";

    // X.509 extensions (RFC 5280 §4.2)
    /// subjectKeyIdentifier
    EXT_SUBJECT_KEY_ID = "2.5.29.14", "subjectKeyIdentifier";
    /// keyUsage
    EXT_KEY_USAGE = "2.5.29.15", "keyUsage";
    /// subjectAltName
    EXT_SUBJECT_ALT_NAME = "2.5.29.17", "subjectAltName";
    /// basicConstraints
    EXT_BASIC_CONSTRAINTS = "2.5.29.19", "basicConstraints";
    /// nameConstraints
    EXT_NAME_CONSTRAINTS = "2.5.29.30", "nameConstraints";
    /// certificatePolicies
    EXT_CERTIFICATE_POLICIES = "2.5.29.32", "certificatePolicies";
    /// policyMappings
    EXT_POLICY_MAPPINGS = "2.5.29.33", "policyMappings";
    /// authorityKeyIdentifier
    EXT_AUTHORITY_KEY_ID = "2.5.29.35", "authorityKeyIdentifier";
    /// policyConstraints
    EXT_POLICY_CONSTRAINTS = "2.5.29.36", "policyConstraints";
    /// extKeyUsage
    EXT_EXTENDED_KEY_USAGE = "2.5.29.37", "extKeyUsage";
    /// inhibitAnyPolicy
    EXT_INHIBIT_ANY_POLICY = "2.5.29.54", "inhibitAnyPolicy";

    // Digest algorithms
    /// RFC 1321
    MD5 = "1.2.840.113549.2.5", "md5";
    /// FIPS 180
    SHA1 = "1.3.14.3.2.26", "sha1";
    /// FIPS 180-4
    SHA224 = "2.16.840.1.101.3.4.2.4", "sha224";
    /// FIPS 180-4
    SHA256 = "2.16.840.1.101.3.4.2.1", "sha256";
    /// FIPS 180-4
    SHA384 = "2.16.840.1.101.3.4.2.2", "sha384";
    /// FIPS 180-4
    SHA512 = "2.16.840.1.101.3.4.2.3", "sha512";
    /// FIPS 202
    SHA3_256 = "2.16.840.1.101.3.4.2.8", "sha3-256";
    /// FIPS 202
    SHA3_384 = "2.16.840.1.101.3.4.2.9", "sha3-384";
    /// FIPS 202
    SHA3_512 = "2.16.840.1.101.3.4.2.10", "sha3-512";

    // Signature and key algorithms
    /// RFC 8017
    RSA_ENCRYPTION = "1.2.840.113549.1.1.1", "rsaEncryption";
    /// RFC 3279
    MD5_WITH_RSA = "1.2.840.113549.1.1.4", "md5WithRSA";
    /// RFC 3279
    SHA1_WITH_RSA = "1.2.840.113549.1.1.5", "sha1WithRSA";
    /// OIW synonym of sha1WithRSA
    SHA1_WITH_RSA_OIW = "1.3.14.3.2.29", "sha1WithRSA (OIW)";
    /// RFC 8017
    RSA_PSS = "1.2.840.113549.1.1.10", "rsaPSS";
    /// RFC 4055
    SHA256_WITH_RSA = "1.2.840.113549.1.1.11", "sha256WithRSA";
    /// RFC 4055
    SHA384_WITH_RSA = "1.2.840.113549.1.1.12", "sha384WithRSA";
    /// RFC 4055
    SHA512_WITH_RSA = "1.2.840.113549.1.1.13", "sha512WithRSA";
    /// RFC 4055
    SHA224_WITH_RSA = "1.2.840.113549.1.1.14", "sha224WithRSA";
    /// RFC 5480
    EC_PUBLIC_KEY = "1.2.840.10045.2.1", "ecPublicKey";
    /// RFC 3279
    ECDSA_WITH_SHA1 = "1.2.840.10045.4.1", "ecdsaWithSHA1";
    /// RFC 5758
    ECDSA_WITH_SHA224 = "1.2.840.10045.4.3.1", "ecdsaWithSHA224";
    /// RFC 5758
    ECDSA_WITH_SHA256 = "1.2.840.10045.4.3.2", "ecdsaWithSHA256";
    /// RFC 5758
    ECDSA_WITH_SHA384 = "1.2.840.10045.4.3.3", "ecdsaWithSHA384";
    /// RFC 5758
    ECDSA_WITH_SHA512 = "1.2.840.10045.4.3.4", "ecdsaWithSHA512";
    /// NIST CSOR
    ECDSA_WITH_SHA3_256 = "2.16.840.1.101.3.4.3.10", "ecdsaWithSHA3-256";
    /// NIST CSOR
    ECDSA_WITH_SHA3_384 = "2.16.840.1.101.3.4.3.11", "ecdsaWithSHA3-384";
    /// NIST CSOR
    ECDSA_WITH_SHA3_512 = "2.16.840.1.101.3.4.3.12", "ecdsaWithSHA3-512";
    /// NIST CSOR
    RSA_WITH_SHA3_256 = "2.16.840.1.101.3.4.3.14", "rsaWithSHA3-256";
    /// NIST CSOR
    RSA_WITH_SHA3_384 = "2.16.840.1.101.3.4.3.15", "rsaWithSHA3-384";
    /// NIST CSOR
    RSA_WITH_SHA3_512 = "2.16.840.1.101.3.4.3.16", "rsaWithSHA3-512";
    /// FIPS 204
    ML_DSA_44 = "2.16.840.1.101.3.4.3.17", "ML-DSA-44";
    /// FIPS 204
    ML_DSA_65 = "2.16.840.1.101.3.4.3.18", "ML-DSA-65";
    /// FIPS 204
    ML_DSA_87 = "2.16.840.1.101.3.4.3.19", "ML-DSA-87";
    /// SEC 2 / FIPS 186
    CURVE_P256 = "1.2.840.10045.3.1.7", "P-256";
    /// SEC 2 / FIPS 186
    CURVE_P384 = "1.3.132.0.34", "P-384";
    /// SEC 2 / FIPS 186
    CURVE_P521 = "1.3.132.0.35", "P-521";

    // Name attributes (RFC 4519)
    /// commonName
    AT_COMMON_NAME = "2.5.4.3", "CN";
    /// serialNumber
    AT_SERIAL_NUMBER = "2.5.4.5", "serialNumber";
    /// countryName
    AT_COUNTRY = "2.5.4.6", "C";
    /// localityName
    AT_LOCALITY = "2.5.4.7", "L";
    /// stateOrProvinceName
    AT_STATE = "2.5.4.8", "ST";
    /// streetAddress
    AT_STREET = "2.5.4.9", "street";
    /// organizationName
    AT_ORGANIZATION = "2.5.4.10", "O";
    /// organizationalUnitName
    AT_UNIT = "2.5.4.11", "OU";
    /// emailAddress
    AT_EMAIL = "1.2.840.113549.1.9.1", "emailAddress";
    /// domainComponent
    AT_DOMAIN = "0.9.2342.19200300.100.1.25", "DC";
}

#[cfg(test)]
mod tests {
    #[test]
    fn names_are_found() {
        assert_eq!(super::name(&super::SIGNED_DATA), Some("signedData"));
        assert_eq!(super::SIGNED_DATA.to_string(), "1.2.840.113549.1.7.2");
        let verified = super::Oid::from_bytes(&[0x2B, 6, 1, 4, 1, 0x82, 0x37, 0x61, 0x83, 0xD8, 0x9B, 0xB3, 0x0E]).map(|o| o.to_string());
        assert_eq!(verified.as_deref(), Some("1.3.6.1.4.1.311.97.990304654"));
        assert_eq!(super::Oid::from_bytes(&[0x2B, 0x86]), None);
        assert_eq!(super::name(&super::Oid::of("1.2.3")), None);
    }
}
