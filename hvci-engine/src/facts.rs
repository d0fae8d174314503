//! Facts: everything a verdict needs to know of a file, without the file.
//!
//! Facts need the bytes and no policy; verdicts need facts, a profile, trust and a time, and no bytes. Facts are plain data with a
//! [`SCHEMA_VERSION`]; saved as JSON they can be judged again when a list, a root or the time changes.

use std::{fmt, sync::Arc};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use smol_str::SmolStr;

use crate::{
    bytes::Span,
    digest::Digest,
    finding::{Code, Note},
    signature::cert::Certificate,
    time::UnixTime,
};

/// Version of the serialised form. Raised when a field changes its meaning or goes away.
pub const SCHEMA_VERSION: u32 = 1;

/// What is known of one file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Facts {
    /// [`SCHEMA_VERSION`] of the writer.
    pub schema_version: u32,
    /// Length in bytes of what was looked at (after decompression).
    pub size: u64,
    /// What kind of file it is.
    pub kind: FileKind,
    /// How it was compressed, if it was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub compression: Option<String>,
    /// Headers and sections, if it is an image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<ImageFacts>,
    /// Digests that were calculated.
    pub digests: Vec<FormDigest>,
    /// Every signature found, in order: embedded 0, its nested ones, embedded 1, …, catalogs, module trailer.
    pub signatures: Vec<Signature>,
    /// Certificates that the signatures carry; they refer to them by index.
    pub certificates: Vec<Arc<Certificate>>,
    /// What is noteworthy about the file and the image, but no signature.
    pub notes: Vec<Note>,
}

impl Facts {
    /// Facts about a file of which nothing is known yet but its size and kind.
    pub fn new(size: usize, kind: FileKind) -> Self {
        Self {
            schema_version: SCHEMA_VERSION,
            size: crate::bytes::widen(size),
            kind,
            compression: None,
            image: None,
            digests: Vec::new(),
            signatures: Vec::new(),
            certificates: Vec::new(),
            notes: Vec::new(),
        }
    }

    /// The calculated digest of this form and algorithm, if it was needed.
    pub fn digest(&self, form: DigestForm, alg: crate::digest::DigestAlg) -> Option<&Digest> {
        self.digests.iter().find(|d| d.form == form && d.digest.alg() == alg).map(|d| &d.digest)
    }

    /// The calculated digest of an image as firmware calculates it. The facts hold firmware's form only where it differs from Windows'; where
    /// it differs and is not there, the image has none.
    pub fn firmware_digest(&self, alg: crate::digest::DigestAlg) -> Option<&Digest> {
        let differs = self.notes.iter().any(|n| n.code == Code::ImageDigestForms);
        self.digest(DigestForm::SectionSum, alg).or_else(|| self.digest(DigestForm::Linear, alg).filter(|_| !differs))
    }
}

/// What kind of file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum FileKind {
    /// PE image that the Windows kernel loads (subsystem native).
    PeDriver,
    /// PE image that firmware loads (an EFI subsystem), Linux kernels included.
    PeEfi,
    /// Any other PE image.
    PeUser,
    /// ELF relocatable object with `.modinfo` or a module signature.
    ElfModule,
    /// Any other ELF file.
    ElfOther,
    /// Security catalog.
    Catalog,
    /// Anything else: only a catalog can speak for it.
    Flat,
}

impl fmt::Display for FileKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::PeDriver => "PE driver",
            Self::PeEfi => "PE EFI image",
            Self::PeUser => "PE image",
            Self::ElfModule => "Linux module",
            Self::ElfOther => "ELF file",
            Self::Catalog => "catalog",
            Self::Flat => "flat file",
        })
    }
}

/// Which bytes a digest is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum DigestForm {
    /// Every byte of the file.
    Flat,
    /// Authenticode, everything but CheckSum, the certificate table's directory entry and the table (Windows).
    Linear,
    /// The same with zeros up to a multiple of 8, as catalogs and dbx list unsigned files.
    LinearPadded,
    /// Authenticode as the specification says it: headers, then each section by file offset, then the rest (UEFI).
    SectionSum,
    /// The file without its module signature trailer.
    Module,
}

impl fmt::Display for DigestForm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Flat => "flat file",
            Self::Linear => "authentihash",
            Self::LinearPadded => "authentihash, padded",
            Self::SectionSum => "authentihash, section sum",
            Self::Module => "module",
        })
    }
}

/// A calculated digest and what it is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct FormDigest {
    /// Which bytes.
    pub form: DigestForm,
    /// The value.
    #[schemars(with = "String")]
    pub digest: Digest,
}

/// Headers and sections of an image.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ImageFacts {
    /// `PE32`, `PE32+`, `ELF64`.
    pub format: String,
    /// Machine, by the name its format gives it (`AMD64`, `ARM64`, `I386`, `x86-64`, …); `0x1234` where it has none.
    pub machine: String,
    /// PE subsystem by name; ELF object type.
    pub subsystem: String,
    /// Address of the entry point relative to the image base; 0 where there is none.
    pub entry: u64,
    /// Preferred load address.
    pub image_base: u64,
    /// Length in memory in bytes.
    pub image_size: u64,
    /// Alignment of sections in memory, in bytes.
    pub section_alignment: u32,
    /// PE DllCharacteristics.
    pub characteristics: u16,
    /// Link time, where it is one (reproducible builds put a hash there).
    pub timestamp: u32,
    /// FileVersion of VS_FIXEDFILEINFO, the four numbers; a module's `version`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file_version: Option<String>,
    /// ProductVersion of VS_FIXEDFILEINFO.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub product_version: Option<String>,
    /// InternalName of the version resource.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub internal_name: Option<String>,
    /// Security version number of a Windows boot manager.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub security_version: Option<SecurityVersion>,
    /// Name of the PDB file in the CodeView record.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pdb: Option<String>,
    /// Kernel release that an ELF module is for (`vermagic`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vermagic: Option<String>,
    /// Sections in table order.
    pub sections: Vec<SectionFacts>,
    /// What its `.sbat` section says of it; `None` without the section, or where it cannot be read, which is a note.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sbat: Option<Vec<SbatComponent>>,
}

/// A security version number: the lower of two of a program is the one with the known faults. Shown as `9.0`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub struct SecurityVersion {
    /// The part that counts first.
    pub major: u16,
    /// The other.
    pub minor: u16,
}

impl fmt::Display for SecurityVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// A component of an image and its generation: revocation by version (shim's SBAT.md).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SbatComponent {
    /// Name: `shim`, `grub`, `grub.debian`, …
    pub name: String,
    /// Raised with each fix that must not be gone back behind.
    pub generation: u32,
}

/// One section.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SectionFacts {
    /// Name; not always text in hostile files, then escaped. A module has some forty, most of them short.
    #[schemars(with = "String")]
    pub name: SmolStr,
    /// Address relative to the image base.
    pub address: u64,
    /// Length in memory in bytes.
    pub memory_size: u64,
    /// Bytes in the file.
    pub file: Option<Span>,
    /// Permissions and marks.
    pub permissions: Permissions,
}

/// Permissions and marks of a section, as text `rwxsd`: readable, writable, executable, shared, discardable; `-` where not.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Permissions([u8; 5]);

impl Permissions {
    const LETTERS: [u8; 5] = *b"rwxsd";

    /// Of these marks, in the order of the letters.
    pub fn new(marks: [bool; 5]) -> Self {
        let mut letters = *b"-----";
        for ((shown, letter), set) in letters.iter_mut().zip(Self::LETTERS).zip(marks) {
            if set {
                *shown = letter;
            }
        }
        Self(letters)
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        core::str::from_utf8(&self.0).unwrap_or_default()
    }
}

impl Default for Permissions {
    fn default() -> Self {
        Self::new([false; 5])
    }
}

impl fmt::Display for Permissions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl fmt::Debug for Permissions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Serialize for Permissions {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl<'de> Deserialize<'de> for Permissions {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        let letters = <[u8; 5]>::try_from(text.as_bytes()).ok();
        let known = letters.filter(|l| l.iter().zip(Self::LETTERS).all(|(shown, letter)| *shown == letter || *shown == b'-'));
        known.map(Self).ok_or_else(|| serde::de::Error::custom(format_args!("{text:?} is not of the form rwxsd")))
    }
}

impl JsonSchema for Permissions {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Permissions".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({
            "type": "string",
            "pattern": "^[r-][w-][x-][s-][d-]$",
            "description": "readable, writable, executable, shared, discardable; `-` where not",
        })
    }
}

/// One signature, whatever its source.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Signature {
    /// Where it comes from.
    pub source: Source,
    /// The PKCS#7 bytes in the file; in a catalog's own file for a catalog.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub span: Option<Span>,
    /// What it says of the file, and whether that is so. `None` when it could not be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub coverage: Option<Coverage>,
    /// Who made it. `None` when it could not be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signer: Option<Signer>,
    /// Certificates it carries, by index.
    pub certificates: Vec<usize>,
    /// Timestamps on it.
    pub timestamps: Vec<Timestamp>,
    /// Program name of SpcSpOpusInfo (App Control calls it CertOemID).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub program_name: Option<String>,
    /// Link of SpcSpOpusInfo.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub more_info: Option<String>,
    /// SpcStatementType purposes, as dotted identifiers.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub statement_types: Vec<String>,
    /// Page hashes it carries.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub page_hashes: Option<PageHashes>,
    /// What is noteworthy about it. A note whose severity is *error* under a profile means that the signature does not count.
    pub notes: Vec<Note>,
}

impl Signature {
    /// A signature of which only the place is known.
    pub fn new(source: Source, span: Option<Span>) -> Self {
        Self {
            source,
            span,
            coverage: None,
            signer: None,
            certificates: Vec::new(),
            timestamps: Vec::new(),
            program_name: None,
            more_info: None,
            statement_types: Vec::new(),
            page_hashes: None,
            notes: Vec::new(),
        }
    }
}

/// Where a signature comes from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Source {
    /// The certificate table's entry of this index.
    Embedded(u32),
    /// Nested in the unsigned attributes of that entry's signature: which value at each level.
    Nested {
        /// The entry.
        entry: u32,
        /// Index at each level of nesting, outermost first.
        path: Vec<u32>,
    },
    /// A catalog that lists the file.
    Catalog {
        /// The catalog, as the caller named it.
        name: String,
        /// The member's tag, as hexadecimal or text.
        member: String,
    },
    /// The catalog's own signature, when a catalog is itself the file.
    CatalogItself,
    /// Appended to a Linux module.
    ModuleTrailer,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Embedded(entry) => write!(f, "embedded {entry}"),
            Self::Nested { entry, path } => {
                write!(f, "nested {entry}")?;
                path.iter().try_for_each(|i| write!(f, ".{i}"))
            }
            Self::Catalog { name, .. } => write!(f, "catalog {name}"),
            Self::CatalogItself => f.write_str("catalog"),
            Self::ModuleTrailer => f.write_str("module trailer"),
        }
    }
}

/// The digest that a signature is for, beside the file's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Coverage {
    /// Which bytes of the file it is over.
    pub form: DigestForm,
    /// What was signed. For a module this is the calculated one: there is none inside.
    #[schemars(with = "String")]
    pub signed: Digest,
    /// What the file gives. `None` until calculated.
    #[schemars(with = "Option<String>")]
    pub calculated: Option<Digest>,
}

impl Coverage {
    /// Whether the file is the one that was signed.
    pub fn matches(&self) -> bool {
        self.calculated == Some(self.signed)
    }
}

/// A `SignerInfo` (RFC 5652 §5.3), ready to be verified with a key: by the certificate it came with, or by one of a keyring.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Signer {
    /// Issuer name as RFC 4514 text; empty when identified by key.
    pub issuer: String,
    /// DER of the issuer name; empty when identified by key.
    #[serde(with = "hex::serde")]
    #[schemars(with = "String")]
    pub issuer_der: Vec<u8>,
    /// Serial number octets; empty when identified by key.
    #[serde(with = "hex::serde")]
    #[schemars(with = "String")]
    pub serial: Vec<u8>,
    /// subjectKeyIdentifier, when identified by key; otherwise empty.
    #[serde(with = "hex::serde")]
    #[schemars(with = "String")]
    pub key_id: Vec<u8>,
    /// Its certificate among [`Facts::certificates`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificate: Option<usize>,
    /// Signature algorithm identifier, dotted.
    pub algorithm: String,
    /// How the signature is to be verified; `None` for an algorithm that is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scheme: Option<crate::crypto::Scheme>,
    /// What the key signed: the digest of the signed attributes, or of the content. `None` until calculated, or where the digest algorithm is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub signed_digest: Option<Digest>,
    /// The signature value.
    #[serde(with = "hex::serde")]
    #[schemars(with = "String")]
    pub value: Vec<u8>,
    /// Whether the value verifies with the certificate's key.
    pub check: SignatureCheck,
    /// `signingTime` attribute: a claim of the signer, trusted by nobody.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub signing_time: Option<UnixTime>,
}

/// Whether a signature value verifies with its signer's key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum SignatureCheck {
    /// It does.
    Valid,
    /// It does, over the bare hash without DigestInfo (old VeriSign timestamp servers).
    ValidBareHash,
    /// It does not.
    Invalid,
    /// The certificate is not among those that came with it.
    NoCertificate,
    /// An algorithm that is not supported.
    Unsupported,
}

impl SignatureCheck {
    /// Whether the key made this signature.
    pub fn is_valid(self) -> bool {
        matches!(self, Self::Valid | Self::ValidBareHash)
    }
}

/// A timestamp on a signature.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Timestamp {
    /// Which protocol.
    pub kind: TimestampKind,
    /// Where it stands in the file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub span: Option<Span>,
    /// The time it states: `signingTime` of a countersignature, `genTime` of a token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub time: Option<UnixTime>,
    /// Who made it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signer: Option<Signer>,
    /// Certificates it carries, by index into [`Facts::certificates`].
    pub certificates: Vec<usize>,
    /// What is noteworthy about it. A TSP note other than `TspWeak`, `TspAlgMismatch` means that it proves no time.
    pub notes: Vec<Note>,
}

/// Which timestamp protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum TimestampKind {
    /// PKCS#9 countersignature (RFC 2985 §5.3.6), a SignerInfo over the signature value.
    Pkcs9,
    /// RFC 3161 token.
    Rfc3161,
}

impl fmt::Display for TimestampKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Pkcs9 => "PKCS#9 countersignature",
            Self::Rfc3161 => "RFC 3161",
        })
    }
}

/// A page-hash table (SpcPeImagePageHashes) and what became of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PageHashes {
    /// 1 (SHA-1) or 2 (SHA-256).
    pub version: u8,
    /// How many pages the table lists, without its last, empty one.
    pub pages: usize,
    /// File offsets of the pages that differ.
    pub mismatches: Vec<u64>,
}
