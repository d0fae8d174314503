//! Finding codes: the vocabulary in which everything that is wrong or noteworthy is said.
//!
//! A code is permanent: its number and alias never change their meaning and are never used again. Each has a page in `docs/codes/`.
//! Modules that read bytes raise [`Note`]s (a code, a place, what was seen); how bad that is, is decided in [`crate::policy`].

use alloc::{format, string::String};
use core::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::bytes::Span;

/// How bad a finding is, under one profile.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Worth knowing; changes nothing.
    Note,
    /// Would still load; should be looked at.
    Warning,
    /// Cannot be decided with what was given: the verdict is *unknown*, and for a load that means refused.
    Unknown,
    /// Refused because of this.
    Error,
}

impl Severity {
    /// The name in reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Note => "note",
            Self::Warning => "warning",
            Self::Unknown => "unknown",
            Self::Error => "error",
        }
    }
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

macro_rules! codes {
    ($( $variant:ident $id:literal $alias:literal $severity:ident $title:literal => $advice:literal; )*) => {
        /// A permanent finding code.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[non_exhaustive]
        pub enum Code {
            $( #[doc = concat!("`", $id, "` ", $alias, ": ", $title, ".")] $variant, )*
        }

        impl Code {
            /// Every code, in order.
            pub const ALL: &'static [Self] = &[ $( Self::$variant, )* ];

            /// The permanent identifier, `HVCI-FAMILY-NNN`.
            pub const fn id(self) -> &'static str {
                match self { $( Self::$variant => $id, )* }
            }

            /// The permanent kebab-case name.
            pub const fn alias(self) -> &'static str {
                match self { $( Self::$variant => $alias, )* }
            }

            /// How bad it is unless the profile says otherwise.
            pub const fn default_severity(self) -> Severity {
                match self { $( Self::$variant => Severity::$severity, )* }
            }

            /// What is wrong, in one line.
            pub const fn title(self) -> &'static str {
                match self { $( Self::$variant => $title, )* }
            }

            /// What to do about it, in one line.
            pub const fn advice(self) -> &'static str {
                match self { $( Self::$variant => $advice, )* }
            }
        }
    };
}

codes! {
    // INP: the input as a file
    InputUnreadable "HVCI-INP-001" "input-unreadable" Error "the file cannot be read" => "check that it exists and that you may read it, then scan again";
    InputEmpty "HVCI-INP-002" "input-empty" Error "the file is empty" => "copy it again from its source";
    InputTooLarge "HVCI-INP-003" "input-too-large" Unknown "the file is larger than the limit" => "raise --max-size if the file is meant to be this large";
    InputNotImage "HVCI-INP-004" "input-not-an-image" Unknown "the file is no PE image, ELF module or catalog" => "name driver, EFI or module files, or give the catalog that covers it with --catalog";
    InputChanged "HVCI-INP-005" "input-changed" Error "the file changed while it was read" => "scan again when nothing writes to it";
    InputContainer "HVCI-INP-006" "container-unreadable" Error "the package or compressed file cannot be opened" => "check the package; what could be read of it is reported";
    InputBomb "HVCI-INP-007" "unpacked-too-large" Unknown "the compressed content unpacks to more than the limit" => "raise --max-size if the content is meant to be this large";
    InputLoop "HVCI-INP-008" "nested-too-deep" Unknown "packages are nested too deep" => "unpack the inner package and scan it by itself";
    InputFacts "HVCI-INP-009" "facts-unreadable" Error "the facts cannot be read" => "make them again with `hvci-audit scan -o facts=FILE`";
    InputInternal "HVCI-INP-010" "internal-error" Unknown "looking at this file failed inside the program" => "report it as a bug, with the file if you can";

    // IMG: the image as a container
    ImageTruncated "HVCI-IMG-001" "image-truncated" Error "the image ends before its headers say" => "copy the file again from its source";
    ImageHeader "HVCI-IMG-002" "image-header" Error "a header field has no valid value" => "rebuild the image; no loader accepts it as it is";
    ImageDivergence "HVCI-IMG-003" "parser-divergence" Error "two independent parsers read the headers differently" => "treat the file as crafted; compare the two readings with `hvci-audit explain`";
    ImageSectionBounds "HVCI-IMG-004" "section-out-of-bounds" Error "a section's data lies outside the file" => "copy the file again from its source";
    ImageSectionOverlap "HVCI-IMG-005" "section-overlap" Warning "sections overlap in the file or in memory" => "rebuild the image; overlapping sections are hashed twice and loaded in an order nobody defines";
    ImageHeadersCover "HVCI-IMG-006" "headers-cover-section" Warning "SizeOfHeaders reaches past the start of the first section" => "expected of packed images (UPX); compare both digest forms";
    ImageDigestForms "HVCI-IMG-007" "digest-forms-differ" Warning "the linear (Windows) and the section-sum (UEFI) digest differ" => "firmware and Windows disagree about this file; rebuild it without gaps between sections";
    ImageUnaligned "HVCI-IMG-008" "unpadded-length" Note "the length is no multiple of 8: padded and unpadded digest differ" => "look for both digests in catalogs and revocation lists";
    ImageFewDirectories "HVCI-IMG-009" "few-data-directories" Warning "NumberOfRvaAndSizes leaves no certificate table entry" => "the image cannot carry a signature; rebuild it with 16 data directories";
    ImageChecksum "HVCI-IMG-010" "checksum-mismatch" Note "the header CheckSum is not that of the file" => "Windows checks it for drivers; rebuild the image or set it with `editbin /release`";
    ImageWx "HVCI-IMG-011" "section-writable-executable" Warning "a section is writable and executable (Driver Verifier 0x2003)" => "split code and data: build with /SECTION attributes that never combine W and E";
    ImageSectionAlignment "HVCI-IMG-012" "section-not-page-aligned" Warning "sections are not aligned to pages (Driver Verifier 0x2004)" => "link with /ALIGN:0x1000 or larger";
    ImageIatExecutable "HVCI-IMG-013" "iat-in-executable-section" Warning "the import address table lies in an executable section (Driver Verifier 0x2005)" => "do not merge .idata or .rdata into a code section";
    ImageRelocStraddle "HVCI-IMG-014" "relocation-straddles-page" Warning "a relocation crosses a page boundary (unsupported by HVCI on Windows 10 1507 to 1607)" => "align the data that is relocated";
    ImageRiskyImport "HVCI-IMG-015" "executable-pool-risk" Note "imports a function that can ask for executable memory (Driver Verifier 0x2000 to 0x2002)" => "use the NX variants (NonPagedPoolNx, MdlMappingNoExecute) and test under Driver Verifier";
    ImageSharedWritable "HVCI-IMG-016" "section-shared-writable" Warning "a section is shared and writable" => "remove the shared attribute";
    ImageNoNxCompat "HVCI-IMG-017" "no-nx-compat" Note "NX_COMPAT is not set" => "link with /NXCOMPAT";
    ImageInitExecutable "HVCI-IMG-018" "discardable-executable" Note "a discardable section is executable" => "expected of INIT sections; it must not be writable";
    ImageSectionGap "HVCI-IMG-019" "section-gap" Note "bytes lie between sections that belong to none" => "rebuild the image without gaps; sbsigntool and firmware treat them differently";
    ImageRelocations "HVCI-IMG-020" "relocations-malformed" Warning "the relocation table is malformed" => "rebuild the image";
    ImageImports "HVCI-IMG-021" "imports-malformed" Warning "the import table is malformed" => "rebuild the image";
    ImageResources "HVCI-IMG-022" "resources-malformed" Note "the resources are malformed" => "rebuild the resources; the version is not known";
    ImageCompressedSigned "HVCI-IMG-023" "signature-on-compressed" Error "a module signature is appended to the compressed file" => "sign the uncompressed module, then compress it";
    ImageXzUnsupported "HVCI-IMG-024" "xz-unsupported-by-kernel" Warning "xz options that the kernel's own decompressor refuses" => "compress with `xz --check=crc32 --lzma2=dict=2MiB` or smaller";
    ImageUnsupported "HVCI-IMG-025" "image-unsupported" Unknown "an image of a kind that is not judged" => "PE32, PE32+ and ELF64 are judged";

    // SIG: signatures
    SigNone "HVCI-SIG-001" "unsigned" Error "the file carries no signature" => "sign it, or give the catalog that covers it with --catalog";
    SigMalformed "HVCI-SIG-002" "signature-malformed" Error "the signature cannot be read" => "sign the file again";
    SigEntry "HVCI-SIG-003" "certificate-table-malformed" Error "the certificate table is malformed" => "sign the file again with a current tool";
    SigDigestMismatch "HVCI-SIG-004" "authentihash-mismatch" Error "the file is not the one that was signed" => "get the file again from its publisher; any change after signing gives this";
    SigPadding "HVCI-SIG-005" "data-behind-signature" Warning "bytes that no signature covers stand behind the signature (CVE-2013-3900)" => "treat the bytes as attacker-controlled; re-sign without them";
    SigNotAtEof "HVCI-SIG-006" "certificate-table-not-at-end" Error "the certificate table does not end at the end of the file (MS12-024)" => "remove what was appended and sign again";
    SigTableOverlap "HVCI-SIG-007" "certificate-table-overlaps" Error "the certificate table overlaps a section" => "treat the file as crafted: bytes are mapped that no signature covers";
    SigEntryType "HVCI-SIG-008" "certificate-entry-skipped" Note "an entry of the certificate table is of another type and was skipped" => "nothing, if the other entries are what you expect";
    SigRevision "HVCI-SIG-009" "certificate-revision" Error "wRevision of a certificate table entry is not 0x0200" => "sign the file again; Windows ignores this entry";
    SigMessageDigest "HVCI-SIG-010" "message-digest-mismatch" Error "the signed attributes name another content" => "treat the signature as forged";
    SigInvalid "HVCI-SIG-011" "signature-invalid" Error "the signature does not verify with the signer's key" => "treat the signature as forged or damaged";
    SigAlgMismatch "HVCI-SIG-012" "digest-algorithms-differ" Error "the digest algorithms of the signature's parts differ" => "sign the file again";
    SigBareHash "HVCI-SIG-013" "pkcs1-without-digestinfo" Note "an RSA signature over a bare hash, as old VeriSign timestamp servers made" => "nothing; it is verified as such";
    SigWeakDigest "HVCI-SIG-014" "weak-digest" Warning "made with MD5 or SHA-1" => "ask the publisher for a SHA-256 signature";
    SigWeakKey "HVCI-SIG-015" "weak-key" Warning "made with an RSA key below 2048 bits" => "ask the publisher for a signature with a current key";
    SigNoSigner "HVCI-SIG-016" "signer-certificate-missing" Error "the signer's certificate is not in the signature" => "sign again with the certificate included";
    SigAttributeOrder "HVCI-SIG-017" "attributes-not-der" Note "the signed attributes are not in DER order; they are hashed as they stand" => "nothing, if the signature verifies; some verifiers sort them first and refuse";
    SigSpcType "HVCI-SIG-018" "odd-spc-type" Note "SpcAttributeTypeAndOptionalValue has another type than PE image data" => "nothing; some verifiers refuse the file";
    SigPageHash "HVCI-SIG-019" "page-hash-mismatch" Error "a page is not the one that was signed" => "get the file again from its publisher";
    SigPageHashTable "HVCI-SIG-020" "page-hash-table-malformed" Error "the page-hash table is malformed" => "sign the file again";
    SigUnsupported "HVCI-SIG-021" "algorithm-unsupported" Unknown "made with an algorithm that is not supported here" => "verify it with a tool that supports it";
    SigUnsignedAttribute "HVCI-SIG-022" "unknown-unsigned-attribute" Warning "an unsigned attribute of no known type: bytes that no signature covers" => "look at the bytes; they can be changed without breaking the signature";
    SigForeignCertificate "HVCI-SIG-023" "unused-certificate" Note "a certificate that no path uses" => "nothing; look at it if it is large or unusual";
    SigTooMany "HVCI-SIG-024" "too-many-signatures" Error "more signatures or certificates than the limit" => "treat the file as crafted";
    SigMultipleSigners "HVCI-SIG-025" "several-signers" Warning "a SignedData with several SignerInfos; only the first counts for Windows" => "sign with nested signatures instead";
    SigModuleTrailer "HVCI-SIG-026" "module-trailer-malformed" Error "the module signature trailer is malformed" => "sign the module again with the kernel's sign-file";
    SigModuleAttributes "HVCI-SIG-027" "module-signed-attributes" Warning "a module signature with signed attributes, which most kernels refuse" => "sign with the kernel's sign-file, which makes none";
    SigBer "HVCI-SIG-028" "ber-encoding" Note "the signature is BER, not DER" => "nothing; some verifiers refuse the file";
    SigEncodingDivergence "HVCI-SIG-029" "decoder-divergence" Warning "two independent decoders read the signature differently" => "treat the file as crafted; compare the two readings with `hvci-audit explain`";
    SigContentType "HVCI-SIG-030" "content-type-mismatch" Error "the signed content type is not what it must be" => "treat the signature as forged";
    SigNested "HVCI-SIG-031" "nested-signature-malformed" Error "a nested signature cannot be read" => "sign the file again";
    SigCatalogMember "HVCI-SIG-032" "catalog-weak-member" Note "the catalog lists the file by SHA-1 only" => "ask the publisher for a catalog with SHA-256 members";

    // TSP: timestamps
    TspMalformed "HVCI-TSP-001" "timestamp-malformed" Warning "the timestamp cannot be read" => "the signature is judged without it";
    TspInvalid "HVCI-TSP-002" "timestamp-invalid" Warning "the timestamp's signature does not verify" => "treat the time as forged; the signature is judged without it";
    TspImprint "HVCI-TSP-003" "timestamp-imprint" Warning "the timestamp is for another signature" => "treat the time as forged; the signature is judged without it";
    TspNoSigner "HVCI-TSP-004" "timestamp-signer-missing" Warning "the timestamp authority's certificate is missing" => "timestamp again with certReq set";
    TspEku "HVCI-TSP-005" "timestamp-eku" Warning "the timestamp's certificate is not one for timestamping" => "the signature is judged without it";
    TspUntrusted "HVCI-TSP-006" "timestamp-untrusted" Warning "the timestamp authority's certificate chains to no trust anchor" => "give its root with --roots; until then the signature is judged without it";
    TspExpired "HVCI-TSP-007" "timestamp-certificate-validity" Warning "the time lies outside the validity of the timestamp authority's certificates" => "the signature is judged without it";
    TspWeak "HVCI-TSP-008" "timestamp-weak-digest" Warning "the timestamp is made with MD5 or SHA-1" => "ask the publisher for a SHA-256 timestamp";
    TspNone "HVCI-TSP-009" "no-timestamp" Note "the signature has no timestamp" => "it is judged as if made now; ask the publisher for a timestamp";
    TspLifetime "HVCI-TSP-010" "lifetime-signing" Warning "the signer's certificate is for lifetime signing: the timestamp does not extend its life" => "sign with another certificate";
    TspBinding "HVCI-TSP-011" "timestamp-binding" Warning "the timestamp's signed attributes name another token" => "treat the time as forged; the signature is judged without it";
    TspAlgMismatch "HVCI-TSP-012" "timestamp-digest-differs" Note "the timestamp uses another digest algorithm than the signature" => "nothing";
    TspCutoff "HVCI-TSP-013" "weak-after-cutoff" Warning "a weak signature is timestamped after its algorithm was retired" => "ask the publisher for a SHA-256 signature";

    // PKI: certificates and chains
    PkiUntrusted "HVCI-PKI-001" "untrusted-root" Error "the chain ends at no trust anchor" => "give the root with --roots if you trust it";
    PkiIncomplete "HVCI-PKI-002" "issuer-missing" Error "an issuer certificate is missing" => "give the issuer or its root with --roots";
    PkiSignature "HVCI-PKI-003" "certificate-signature" Error "a certificate's signature does not verify with its issuer's key" => "treat the chain as forged";
    PkiExpired "HVCI-PKI-004" "certificate-expired" Error "a certificate had expired" => "ask the publisher for a timestamped or renewed signature";
    PkiNotYetValid "HVCI-PKI-005" "certificate-not-yet-valid" Error "a certificate was not valid yet" => "check the clock of the signer";
    PkiEku "HVCI-PKI-006" "extended-key-usage" Error "a certificate is not for this purpose" => "sign with a certificate for the purpose";
    PkiKeyUsage "HVCI-PKI-007" "key-usage" Warning "keyUsage does not allow this use" => "sign with a certificate whose keyUsage has digitalSignature";
    PkiNotCa "HVCI-PKI-008" "issuer-is-no-ca" Error "a certificate was issued by one that is no CA" => "treat the chain as forged";
    PkiPathLength "HVCI-PKI-009" "path-length" Error "more CA certificates than a CA allows below it" => "treat the chain as forged";
    PkiCritical "HVCI-PKI-010" "critical-extension" Error "a critical extension of no known type" => "verify the certificate with its issuer";
    PkiMalformed "HVCI-PKI-011" "certificate-malformed" Warning "a certificate cannot be read" => "sign again with a certificate that conforms to RFC 5280";
    PkiBudget "HVCI-PKI-012" "chain-budget" Error "building the chain takes more work than any real one" => "treat the file as crafted";
    PkiWeak "HVCI-PKI-013" "certificate-weak" Warning "a certificate below the root is signed with MD5 or SHA-1, or has a weak key" => "ask the publisher for a signature with current certificates";
    PkiNoKey "HVCI-PKI-014" "module-key-unknown" Error "the signing key is in no given keyring" => "give the kernel it belongs to with --kernel, or its certificate with --roots";
    PkiNoKeyring "HVCI-PKI-015" "no-keyring" Unknown "no keyring was given to judge the module with" => "give the kernel it belongs to with --kernel, or its certificate with --roots";
    PkiShim "HVCI-PKI-016" "trusted-through-shim" Warning "trusted by a distribution's shim, not by the firmware itself" => "nothing if it is started by that shim; enroll the certificate in db otherwise";
    PkiTestRoot "HVCI-PKI-017" "test-signed" Error "the chain ends at a test or flight root" => "loads only in test-signing mode; have the driver signed for release";
    PkiScope "HVCI-PKI-018" "anchor-not-for-profile" Error "the trust anchor is not one for this kind of file" => "give it for this purpose, for example --roots kernel=FILE";
    PkiIssuedAfterCutoff "HVCI-PKI-019" "cross-signed-after-cutoff" Error "cross-signed with a certificate issued on or after 2015-07-29" => "have the driver attested or certified by Microsoft";
    PkiUnsupportedKey "HVCI-PKI-020" "key-unsupported" Unknown "a certificate's key or signature algorithm is not supported here" => "verify it with a tool that supports it";
    PkiRootUsage "HVCI-PKI-021" "root-not-for-usage" Error "the root programme does not trust the root for this use" => "ask the publisher for a signature under a root that is for it";
    PkiRootDisallowed "HVCI-PKI-022" "root-disallowed" Error "the root programme had disallowed the root when the signature was made" => "ask the publisher for a signature under another root; a trusted timestamp from before the date would do";
    PkiRootNotBefore "HVCI-PKI-023" "issued-after-root-cutoff" Error "the certificate was issued when the root programme no longer trusted new ones under its root" => "ask the publisher for a signature under another root";

    // POL: decisions of a profile
    PolNotWhql "HVCI-POL-001" "no-kernel-eku" Error "no signature is by Microsoft for kernel drivers (WHQL, attested or system component)" => "have the driver attested or certified by Microsoft";
    PolAttested "HVCI-POL-002" "attested-only" Note "the driver is attested, not WHQL certified" => "Windows Server 2016 and later can require certification";
    PolCrossSigned "HVCI-POL-003" "cross-signed" Warning "accepted by the cross-signing exception for certificates issued before 2015-07-29" => "plan to replace the driver; Secure Boot machines that were not upgraded refuse it";
    PolProfile "HVCI-POL-004" "profile-does-not-apply" Unknown "the profile does not apply to this kind of file" => "choose another --profile, or auto";
    PolLint "HVCI-POL-005" "hvci-incompatible" Error "the image is not compatible with HVCI" => "mend what the IMG findings name";
    PolBlocked "HVCI-POL-006" "blocked" Error "the driver, or who signed it, is on the list of what is refused" => "replace the driver with a version that is not listed; a good signature does not help a driver that is known to be abused";

    // BOOT: what firmware and boot loaders start
    BootUnsigned "HVCI-BOOT-001" "boot-unsigned" Error "the image carries no signature, and its digest is not allowed" => "sign it with a key of db (behind shim: of MokList), or enrol its digest";
    BootDigestRevoked "HVCI-BOOT-002" "boot-digest-revoked" Error "the image's digest is revoked" => "replace the image with a version that is not revoked";
    BootSignerRevoked "HVCI-BOOT-003" "boot-signer-revoked" Error "a certificate of a signature is revoked" => "use an image without this signature: one revoked signature refuses an image to firmware, even beside a good one";
    BootNoAuthority "HVCI-BOOT-004" "boot-no-authority" Error "no signature is by anybody whom this loader trusts" => "enrol the signer's certificate in db (behind shim: in MokList), or use an image that is signed by one of them";
    BootImage "HVCI-BOOT-005" "boot-image-malformed" Error "the image or its certificate table is not one that firmware takes" => "get the file again from its publisher, or sign it with a current tool";
    BootEncoding "HVCI-BOOT-006" "boot-encoding" Note "edk2 does not recognise the signature by its encoding and skips it" => "sign again with a tool that writes DER with two bytes of length, as all do";
    BootSbatMissing "HVCI-BOOT-007" "sbat-missing" Error "the image says no SBAT generation, and shim starts none that does not" => "build it with an .sbat section";
    BootSbatMalformed "HVCI-BOOT-008" "sbat-malformed" Error "the SBAT data is malformed" => "write each line as name,generation,vendor,package,version,url";
    BootSbatRevoked "HVCI-BOOT-009" "sbat-revoked" Error "a component is of a generation that is revoked" => "update the component";
    BootEdk2Differs "HVCI-BOOT-010" "edk2-differs" Warning "edk2 decides otherwise" => "do not count on the firmware here: the finding says which of its rules differs";
    BootMissing "HVCI-BOOT-011" "boot-file-missing" Error "a file that is to be started is not there" => "look for the file by the path that is said";
    BootVersionRevoked "HVCI-BOOT-012" "version-revoked" Error "a boot manager of a security version that is revoked" => "update Windows' boot manager";

    // ATT: attestation of a machine
    AttEvidence "HVCI-ATT-001" "evidence-malformed" Error "the evidence cannot be read" => "send what `Evidence` describes; nothing in it was looked at";
    AttKey "HVCI-ATT-002" "ak-not-bound" Error "the attestation key is not the one that is known of this machine" => "enrol the machine again if its TPM was made anew; otherwise somebody answers in its place";
    AttKeyAttributes "HVCI-ATT-003" "ak-unfit" Error "the attestation key could sign what no TPM made" => "make a restricted signing key on P-256 with SHA-256 in the TPM";
    AttSignature "HVCI-ATT-004" "quote-signature" Error "the attestation key did not sign this quote" => "treat the evidence as forged";
    AttQuote "HVCI-ATT-005" "quote-malformed" Error "the quote is not a TPM's, or its values are not those that were quoted" => "treat the evidence as forged";
    AttNonce "HVCI-ATT-006" "nonce" Error "the quote is not the answer to this challenge" => "challenge the machine again; an old answer is no proof of now";
    AttPcrMask "HVCI-ATT-007" "pcr-mask" Error "PCRs that must be quoted are not" => "quote the PCRs of the firmware and all that the log has events of";
    AttBank "HVCI-ATT-008" "bank-not-extended" Error "a bank is quoted that the log does not account for" => "switch banks off that the firmware does not extend (CVE-2021-42299)";
    AttReplay "HVCI-ATT-009" "replay-mismatch" Error "the log is not what was measured" => "treat the log as forged; the PCR that is named is what really was measured";
    AttLogMissing "HVCI-ATT-010" "log-missing" Error "there is a quote and no event log" => "start the machine with Secure Boot; without it GRUB leaves the kernel no log";
    AttLogMalformed "HVCI-ATT-011" "log-malformed" Error "the event log cannot be read" => "treat the log as forged";
    AttLogRule "HVCI-ATT-012" "log-rule" Error "the event log breaks a rule by which its types follow from its digests" => "treat the log as forged";
    AttSeparator "HVCI-ATT-013" "separator" Error "a separator is missing, is there twice, or in disguise" => "treat the log as forged; firmware measures one into each of its PCRs";
    AttVariable "HVCI-ATT-014" "secure-boot-variable" Error "a variable of Secure Boot is not measured once and in time" => "treat the log as forged, or mend the firmware";
    AttSecureBootOff "HVCI-ATT-015" "secure-boot-off" Error "Secure Boot is off" => "turn Secure Boot on: without it anything may have been started";
    AttKeys "HVCI-ATT-016" "secure-boot-keys" Error "keys of Secure Boot are not those that are allowed" => "compare the variable with the reference values; enrol the right keys again";
    AttDbxStale "HVCI-ATT-017" "dbx-stale" Error "the machine's revocations are too old" => "apply the current dbx update";
    AttMok "HVCI-ATT-018" "mok-enrolled" Error "shim's lists are not those that are allowed" => "remove the key with mokutil, or allow it in the reference values";
    AttBaseline "HVCI-ATT-019" "log-deviates-from-baseline" Error "the start deviates from the machine's baseline" => "look at the event that is named; make a new baseline if the change was meant";
    AttRevoked "HVCI-ATT-020" "component-revoked" Error "a component that is revoked was started" => "replace the component with a version that is not revoked, and apply the current dbx update";
    AttComponent "HVCI-ATT-021" "component-hash-mismatch" Error "a component is not one of those that are known" => "add it to the reference values if the update was meant";
    AttSigner "HVCI-ATT-022" "component-unknown-signer" Error "something was authorised by a key that is not allowed" => "find out who enrolled the key; allow its certificate in the reference values if it is meant";
    AttSbat "HVCI-ATT-023" "component-sbat-revoked" Error "a component is of an SBAT generation below the least allowed, or nothing says which" => "update the component";
    AttUnexpected "HVCI-ATT-024" "component-unexpected" Error "something was measured that has no place in the start" => "compare the sequence with the chain of the reference values";
    AttMissing "HVCI-ATT-025" "component-missing" Error "a component of the chain was not started" => "look at what was started in its place";
    AttResetCount "HVCI-ATT-026" "reset-count" Error "the TPM was reset or restarted otherwise than the machine" => "treat the PCRs as replayed: a TPM that is reset behind a machine's back can be given any";
    AttClock "HVCI-ATT-027" "clock-not-safe" Error "the TPM's clock may have been behind, and the machine was not stopped in disorder" => "look for a state of the TPM that was put back";
    AttRollback "HVCI-ATT-028" "vtpm-state-rollback" Error "the TPM's state is older than the host's ledger says" => "find out who put back the state; secrets that were revoked may live again";
    AttClone "HVCI-ATT-029" "vtpm-clone" Error "two machines have the same TPM" => "make new seeds for the copy and enrol it";
    AttDriver "HVCI-ATT-030" "driver-refused" Warning "a driver was refused; the machine runs on" => "replace the driver, or have it signed for this profile";
    AttDriverLog "HVCI-ATT-031" "driver-log-differs" Error "the drivers that were decided about are not those that were measured" => "treat the guest's kernel as hostile, or mend what measures";
    AttFeature "HVCI-ATT-032" "feature-not-measured" Error "a protection that the machine is made with was not measured as on" => "look at why it is not on; a guest that turned it off measures nothing";
    AttWeakened "HVCI-ATT-033" "guest-weakened" Error "the guest runs with debugging, test signing or without code integrity" => "start it without";
    AttExpected "HVCI-ATT-034" "expectation-unmatched" Warning "an alert that is expected did not come, or is expected no more" => "take the entry out of `expected` in the reference values, or give it a later end";

    // TPM: the virtual TPM of a machine
    TpmFailed "HVCI-TPM-001" "vtpm-failed" Error "the machine's TPM answers no more" => "look at why its process ended; start the machine again, its TPM is as it was last saved";

    // MEM: memory of a guest
    MemMismatch "HVCI-MEM-001" "memory-not-as-signed" Error "what stands in memory is not the module that was signed" => "treat the guest's loader, or whoever wrote to its memory, as hostile";
    MemUnresolved "HVCI-MEM-002" "import-unresolved" Error "nothing that is loaded exports what the module imports" => "load the module that exports it first";
    MemRelocation "HVCI-MEM-003" "relocation-not-allowed" Error "a relocation that is not applied to a module" => "rebuild the module with the usual linker for its kernel";
    MemLayout "HVCI-MEM-004" "layout-not-allowed" Error "a module is not laid out like this in memory" => "rebuild the module, or mend the loader that placed it";
    MemAccess "HVCI-MEM-005" "access-refused" Error "an access to memory that the engine protects" => "find out which code did it: its address is in the event";
    MemExecute "HVCI-MEM-006" "execution-refused" Error "execution of memory that was not verified" => "load the code as a signed module; the address of the jump is in the event";
    MemSecure "HVCI-MEM-007" "secure-memory-refused" Error "an access to memory of VTL1" => "treat the guest's kernel as hostile: nothing in it has a reason to";
    MemRegister "HVCI-MEM-008" "pinned-register-write" Error "a write to a register that is pinned" => "find out which code did it: no driver has a reason to";
    MemDevice "HVCI-MEM-009" "device-access-refused" Error "an access by a device, or by the VMM for the guest, to memory that the engine protects" => "look at the driver that gave the device this address";
    MemProtection "HVCI-MEM-010" "protection-refused" Error "a change of protection that may not be" => "compare the status with the TLFS; execution in kernel mode is granted by a load alone";
    MemClaim "HVCI-MEM-011" "pages-not-available" Error "the pages that a module is to be loaded into cannot be had" => "look at the status: another module, a device or VTL1 has one of them, or they are no RAM";
    MemPatch "HVCI-MEM-012" "patch-refused" Error "a change of code that the module's tables do not list, or not in that order" => "find out who asked: the processor is in the event; no kernel changes code elsewhere or otherwise";
    MemRegion "HVCI-MEM-013" "region-write-refused" Error "a write to protected memory that its rules do not allow" => "find out who asked: the region and the processor are in the event; only its maker has its cookie";

    // VLT: the credential vault
    VaultCaller "HVCI-VLT-001" "vault-caller" Error "code asked for a credential that may not" => "find out which module it is: the caller and the processor are in the event; name it in the machine's policy if it is meant";
    VaultOperation "HVCI-VLT-002" "vault-operation" Error "a credential was to be used for what it may not be" => "look at the credential's policy; delegation and a key of another kind are never allowed";
    VaultRate "HVCI-VLT-003" "vault-rate" Error "a credential was used more often than it may be" => "find out what asks: a flood of uses is what an attacker within a caller that is allowed looks like";
    VaultTarget "HVCI-VLT-004" "vault-target" Error "a credential was to be used for a service that it may not be used for" => "find out what asks: the target is in the event; an answer for another service or channel is what a relay needs";
    VaultLegacy "HVCI-VLT-005" "vault-legacy" Error "an NTLMv1, MS-CHAPv2, DES or RC4 answer was asked for" => "move the client to NTLMv2 or Kerberos with AES; an answer of this kind gives the hash away";
    VaultBlob "HVCI-VLT-006" "vault-blob" Error "a credential's blob is not the latest of this machine and boot" => "add the credential again; a blob that is replayed, swapped or changed is of no use";
    VaultStore "HVCI-VLT-007" "vault-store" Error "what was kept of the vault is not what was last kept" => "put the machine's latest files back; an older or another machine's are refused";
    VaultKey "HVCI-VLT-008" "vault-key" Error "the vault's key is not released, or cannot be kept" => "start the machine as it was approved, or approve how it starts now";
    VaultRequest "HVCI-VLT-009" "vault-request" Error "a request to the vault cannot be done" => "look at the status: no such credential, no room, or arguments that cannot be read";
}

impl Code {
    /// The code with this identifier or alias, in any case.
    pub fn find(text: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|c| c.id().eq_ignore_ascii_case(text) || c.alias().eq_ignore_ascii_case(text))
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.id())
    }
}

impl Serialize for Code {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.id())
    }
}

impl<'de> Deserialize<'de> for Code {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::find(&text).ok_or_else(|| serde::de::Error::custom(format!("{text:?} is no finding code")))
    }
}

impl JsonSchema for Code {
    fn schema_name() -> alloc::borrow::Cow<'static, str> {
        "Code".into()
    }
    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({ "type": "string", "pattern": "^HVCI-[A-Z]+-[0-9]{3}$" })
    }
}

/// Something seen in the bytes: a code, where, and what exactly. How bad it is, is for the policy to say.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Note {
    /// Which finding.
    pub code: Code,
    /// Which bytes of the file, where bytes are to blame.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub span: Option<Span>,
    /// Which section, certificate, function or member, where one is to blame.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<String>,
    /// What was seen, for a person: values, not advice.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub detail: String,
}

impl Note {
    /// A note about the whole of something.
    pub fn new(code: Code, detail: impl Into<String>) -> Self {
        Self { code, span: None, subject: None, detail: detail.into() }
    }

    /// With the bytes that are to blame.
    #[must_use]
    pub fn at(mut self, span: Span) -> Self {
        self.span = Some(span);
        self
    }

    /// With the section, certificate, function or member that is to blame.
    #[must_use]
    pub fn of(mut self, subject: impl Into<String>) -> Self {
        self.subject = Some(subject.into());
        self
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn codes_are_unique_and_well_formed() {
        let mut seen = BTreeSet::new();
        for code in Code::ALL {
            assert!(seen.insert(code.id()) && seen.insert(code.alias()), "{code} stands twice");
            let mut parts = code.id().split('-');
            assert_eq!(parts.next(), Some("HVCI"));
            assert!(["INP", "IMG", "SIG", "TSP", "PKI", "POL", "BOOT", "ATT", "TPM", "MEM", "VLT"].contains(&parts.next().unwrap()));
            assert!(parts.next().is_some_and(|n| n.len() == 3 && n.parse::<u16>().is_ok()));
            assert_eq!(Code::find(code.alias()), Some(*code));
            assert!(!code.title().ends_with('.') && !code.advice().ends_with('.'));
        }
    }
}
