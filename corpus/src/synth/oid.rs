//! Object identifiers that the maker writes. A table of its own, apart from the engine's: an error in one is then no error in both.

use der::oid::ObjectIdentifier as Oid;

macro_rules! oids {
    ($( $name:ident = $value:literal, $text:literal; )*) => {
        $( #[doc = concat!($text, " `", $value, "`")] pub const $name: Oid = Oid::new_unwrap($value); )*
    };
}

oids! {
    CATALOG_LIST = "1.3.6.1.4.1.311.12.1.1", "catalog list";
    CATALOG_MEMBER = "1.3.6.1.4.1.311.12.1.2", "catalog member";
    CATALOG_MEMBER_INFO = "1.3.6.1.4.1.311.12.2.2", "catalog member info";
    CATALOG_MEMBER_V2 = "1.3.6.1.4.1.311.12.1.3", "catalog member v2";
    CATALOG_NAME_VALUE = "1.3.6.1.4.1.311.12.2.1", "catalog name-value";
    CONTENT_TYPE = "1.2.840.113549.1.9.3", "contentType";
    COUNTERSIGNATURE = "1.2.840.113549.1.9.6", "countersignature";
    CTL = "1.3.6.1.4.1.311.10.1", "certificate trust list";
    DATA = "1.2.840.113549.1.7.1", "data";
    ECDSA_WITH_SHA1 = "1.2.840.10045.4.1", "ecdsaWithSHA1";
    ECDSA_WITH_SHA256 = "1.2.840.10045.4.3.2", "ecdsaWithSHA256";
    ECDSA_WITH_SHA384 = "1.2.840.10045.4.3.3", "ecdsaWithSHA384";
    ECDSA_WITH_SHA512 = "1.2.840.10045.4.3.4", "ecdsaWithSHA512";
    ECDSA_WITH_SHA3_256 = "2.16.840.1.101.3.4.3.10", "ecdsaWithSHA3-256";
    ECDSA_WITH_SHA3_384 = "2.16.840.1.101.3.4.3.11", "ecdsaWithSHA3-384";
    ECDSA_WITH_SHA3_512 = "2.16.840.1.101.3.4.3.12", "ecdsaWithSHA3-512";
    EKU_ATTESTED = "1.3.6.1.4.1.311.10.3.5.1", "WHQL attested";
    EKU_CODE_SIGNING = "1.3.6.1.5.5.7.3.3", "code signing";
    EKU_ELAM = "1.3.6.1.4.1.311.61.4.1", "early launch antimalware";
    EKU_EXTENDED_VERIFICATION = "1.3.6.1.4.1.311.10.3.39", "WHQL extended verification";
    EKU_DISALLOWED_LIST = "1.3.6.1.4.1.311.10.3.30", "disallowed list";
    EKU_LIFETIME = "1.3.6.1.4.1.311.10.3.13", "lifetime signing";
    EKU_ROOT_LIST = "1.3.6.1.4.1.311.10.3.9", "root list signer";
    EKU_SERVER_AUTH = "1.3.6.1.5.5.7.3.1", "server authentication";
    EKU_SYSTEM_COMPONENT = "1.3.6.1.4.1.311.10.3.6", "Windows system component";
    EKU_TIMESTAMPING = "1.3.6.1.5.5.7.3.8", "timestamping";
    EKU_UEFI = "1.3.6.1.4.1.311.80.2.1", "UEFI signing";
    EKU_WHQL = "1.3.6.1.4.1.311.10.3.5", "WHQL";
    MD5 = "1.2.840.113549.2.5", "md5";
    MD5_WITH_RSA = "1.2.840.113549.1.1.4", "md5WithRSA";
    MESSAGE_DIGEST = "1.2.840.113549.1.9.4", "messageDigest";
    ML_DSA_44 = "2.16.840.1.101.3.4.3.17", "ML-DSA-44";
    ML_DSA_65 = "2.16.840.1.101.3.4.3.18", "ML-DSA-65";
    ML_DSA_87 = "2.16.840.1.101.3.4.3.19", "ML-DSA-87";
    NESTED_SIGNATURE = "1.3.6.1.4.1.311.2.4.1", "nested signature";
    PROP_AUTH_ROOT_SHA256 = "1.3.6.1.4.1.311.10.11.98", "SHA-256 of a root";
    PROP_DISALLOWED_ENHKEY_USAGE = "1.3.6.1.4.1.311.10.11.122", "disallowed usages";
    PROP_DISALLOWED_FILETIME = "1.3.6.1.4.1.311.10.11.104", "disallowed since";
    PROP_ENHKEY_USAGE = "1.3.6.1.4.1.311.10.11.9", "usages";
    PROP_FRIENDLY_NAME = "1.3.6.1.4.1.311.10.11.11", "name for people";
    PROP_NOT_BEFORE_ENHKEY_USAGE = "1.3.6.1.4.1.311.10.11.127", "usages of not before";
    PROP_NOT_BEFORE_FILETIME = "1.3.6.1.4.1.311.10.11.126", "not before";
    RFC3161_COUNTERSIGN = "1.3.6.1.4.1.311.3.3.1", "RFC 3161 countersignature";
    RSA_ENCRYPTION = "1.2.840.113549.1.1.1", "rsaEncryption";
    RSA_WITH_SHA3_256 = "2.16.840.1.101.3.4.3.14", "rsaWithSHA3-256";
    RSA_WITH_SHA3_384 = "2.16.840.1.101.3.4.3.15", "rsaWithSHA3-384";
    RSA_WITH_SHA3_512 = "2.16.840.1.101.3.4.3.16", "rsaWithSHA3-512";
    SHA1 = "1.3.14.3.2.26", "sha1";
    SHA1_WITH_RSA = "1.2.840.113549.1.1.5", "sha1WithRSA";
    SHA256 = "2.16.840.1.101.3.4.2.1", "sha256";
    SHA256_WITH_RSA = "1.2.840.113549.1.1.11", "sha256WithRSA";
    SHA384 = "2.16.840.1.101.3.4.2.2", "sha384";
    SHA384_WITH_RSA = "1.2.840.113549.1.1.12", "sha384WithRSA";
    SHA512 = "2.16.840.1.101.3.4.2.3", "sha512";
    SHA512_WITH_RSA = "1.2.840.113549.1.1.13", "sha512WithRSA";
    SHA3_256 = "2.16.840.1.101.3.4.2.8", "sha3-256";
    SHA3_384 = "2.16.840.1.101.3.4.2.9", "sha3-384";
    SHA3_512 = "2.16.840.1.101.3.4.2.10", "sha3-512";
    SIGNED_DATA = "1.2.840.113549.1.7.2", "signedData";
    SIGNING_CERTIFICATE_V2 = "1.2.840.113549.1.9.16.2.47", "signingCertificateV2";
    SIGNING_TIME = "1.2.840.113549.1.9.5", "signingTime";
    SPC_CAB_DATA = "1.3.6.1.4.1.311.2.1.25", "SpcLink";
    SPC_INDIRECT_DATA = "1.3.6.1.4.1.311.2.1.4", "SpcIndirectDataContent";
    SPC_INDIVIDUAL = "1.3.6.1.4.1.311.2.1.21", "individualCodeSigning";
    SPC_PAGE_HASHES_V1 = "1.3.6.1.4.1.311.2.3.1", "page hashes v1";
    SPC_PAGE_HASHES_V2 = "1.3.6.1.4.1.311.2.3.2", "page hashes v2";
    SPC_PE_IMAGE_DATA = "1.3.6.1.4.1.311.2.1.15", "SpcPeImageData";
    SPC_SP_OPUS_INFO = "1.3.6.1.4.1.311.2.1.12", "SpcSpOpusInfo";
    SPC_STATEMENT_TYPE = "1.3.6.1.4.1.311.2.1.11", "SpcStatementType";
    TST_INFO = "1.2.840.113549.1.9.16.1.4", "TSTInfo";
}
