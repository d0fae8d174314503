//! Changes to a signed image that a verifier must notice, or must not mind: what forgers, faulty tools and bad disks do.
//!
//! Each takes the image really apart and puts it together again with every length right but the one it is about. The synthesiser makes its
//! bad files with them, tests apply them to good ones. Where one cannot be done to an image (no timestamp to forge), that is an error.

mod blob;
mod image;

use hvci_engine::finding::Code;

use super::Result;

/// A change to a signed image.
#[derive(Clone, Copy, Debug)]
pub struct Mutation {
    /// Its name, in kebab case.
    pub name: &'static str,
    /// What it does, and which check catches it.
    pub what: &'static str,
    /// Codes of findings that must be among those about the result.
    pub codes: &'static [Code],
    /// What is hit.
    pub hits: Hits,
    apply: fn(&[u8], &[u8]) -> Result<Vec<u8>>,
}

/// What a change hits: who must refuse the result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hits {
    /// The file: no signature on it counts any more.
    File,
    /// Its first signature. Another may still be good.
    Primary,
    /// The signature nested in the first.
    Nested,
    /// The first signature's timestamp: refused only once the signer's certificate has expired.
    Timestamp,
    /// Bytes that no signature covers: loads, but strict profiles refuse it.
    Smuggled,
    /// Nothing that is signed: loads everywhere.
    Nothing,
}

impl Mutation {
    /// The mutation called `name`.
    pub fn find(name: &str) -> Option<&'static Self> {
        ALL.iter().find(|m| m.name == name)
    }

    /// Does it to `signed`; some take a part from `other`, a signed image of the same make.
    ///
    /// # Errors
    /// The image has nothing that this can be done to.
    pub fn apply(&self, signed: &[u8], other: &[u8]) -> Result<Vec<u8>> {
        (self.apply)(signed, other)
    }
}

/// The first `len` bytes of an image: what a broken download leaves.
pub fn truncated(image: &[u8], len: usize) -> &[u8] {
    image.get(..len).unwrap_or(image)
}

macro_rules! mutations {
    ($( $name:literal $hits:ident $apply:path, [$($code:ident)*] $what:literal; )*) => {
        /// Every mutation.
        pub const ALL: &[Mutation] = &[ $( Mutation {
            name: $name, what: $what, codes: &[$(Code::$code),*], hits: Hits::$hits, apply: $apply,
        }, )* ];
    };
}

mutations! {
    // the image
    "content-byte" File image::content_byte, [SigDigestMismatch] "flips a bit of the first section; the authentihash catches it";
    "checksum" Nothing image::checksum, [ImageChecksum] "changes CheckSum, which no signature covers (m4)";
    "few-directories" File image::few_directories, [ImageFewDirectories] "sets NumberOfRvaAndSizes to 4: there is no certificate table any more (m10)";
    "section-over-table" File image::section_over_table, [SigTableOverlap SigDigestMismatch] "lengthens the last section over the certificate table, which would be mapped; the overlap check catches it";
    "signature-of-another" File image::signature_of_another, [SigDigestMismatch] "takes the certificate table of another file (SigThief); the authentihash catches it";
    "truncated-headers" File image::truncated_headers, [ImageTruncated] "ends the file within the section table";
    "truncated-section" File image::truncated_section, [ImageSectionBounds] "ends the file within the last section";
    "truncated-table" File image::truncated_table, [SigEntry] "ends the file within the certificate table";

    // the certificate table
    "entry-grown" Smuggled image::entry_grown, [SigPadding] "64 bytes behind the PKCS#7 inside its entry, every length adjusted (CVE-2013-3900, m1)";
    "entry-gap" Smuggled image::entry_gap, [SigPadding] "bytes that are not zero in the padding of an entry up to a multiple of 8 (CVE-2013-3900)";
    "directory-grown" File image::directory_grown, [SigEntry] "zeros behind the last entry and the directory entry grown over them: its size is not that of the entries (m1b)";
    "directory-past-end" File image::directory_past_end, [SigEntry] "a directory entry that reaches past the end of the file";
    "data-behind-table" File image::data_behind_table, [SigNotAtEof] "data behind the table, at the end of the file (MS12-024, m2)";
    "table-with-data" File image::table_with_data, [SigPadding SigEntry] "data behind the last entry, the directory entry grown over it (CVE-2013-3900)";
    "revision" File image::revision, [SigRevision] "wRevision 0x0100 (m8)";
    "entry-of-other-type" Nothing image::entry_of_other_type, [SigEntryType] "another entry, of type 0x0EF1 (m9)";
    "entry-length-zero" File image::entry_length_zero, [SigEntry] "dwLength 0: a reader that trusts it does not end";
    "entry-length-huge" File image::entry_length_huge, [SigEntry] "dwLength 0xFFFFFFF8: a reader that rounds it up overflows";

    // SignedData
    "signature-zeroed" Primary blob::signature_zeroed, [SigInvalid] "zeros for the first signature's value (m5)";
    "signature-plus-modulus" Primary blob::signature_plus_modulus, [SigInvalid] "s + n for s: the same number modulo n; the range check of RFC 8017 §8.2.2 catches it";
    "attributes-swapped" Primary blob::attributes_swapped, [SigInvalid SigAttributeOrder] "two signed attributes swapped: a verifier that sorts them before hashing does not notice (m12)";
    "attribute-removed" Primary blob::attribute_removed, [SigInvalid] "SpcSpOpusInfo removed from the signed attributes";
    "message-digest" Primary blob::message_digest, [SigMessageDigest SigInvalid] "a bit of the messageDigest attribute flipped";
    "rehashed" Primary blob::rehashed, [SigMessageDigest] "a bit of the image flipped and its digest put right in the content: only messageDigest knows";
    "content-type" Primary blob::content_type, [SigContentType SigInvalid] "the contentType attribute names another type";
    "digest-algorithm" Primary blob::digest_algorithm, [SigAlgMismatch] "the signer's digestAlgorithm becomes SHA-384, or SHA-256 if it is that; it disagrees with the content's and with digestAlgorithms";
    "signer-missing" Primary blob::signer_missing, [SigNoSigner] "the signer's certificate removed";
    "certificate-serial" Primary blob::certificate_serial, [SigNoSigner] "a bit of the serial number in the signer's certificate flipped: issuer and serial number no longer name it";
    "certificate-forged" Primary blob::certificate_forged, [PkiSignature] "a bit of the validity in the signer's certificate flipped; the issuer's signature on it catches it";
    "junk-attribute" Smuggled blob::junk_attribute, [SigUnsignedAttribute] "4 KiB in an unsigned attribute of no known type (CVE-2013-3900 variant)";
    "blob-garbage" Primary blob::garbage, [SigMalformed] "the PKCS#7 overwritten with 0xFF";

    // nested signatures
    "nested-corrupted" Nested blob::nested_corrupted, [SigInvalid] "a bit of the nested signature's value flipped (m7)";
    "nested-of-another" Nested blob::nested_of_another, [SigDigestMismatch] "the nested signature of another file";

    // timestamps
    "timestamp-signature" Timestamp blob::timestamp_signature, [TspInvalid] "a bit of the timestamp's signature value flipped (ts1)";
    "timestamp-time" Timestamp blob::timestamp_time, [TspBinding] "genTime set to 2011; messageDigest of the token's attributes catches it (ts2)";
    "timestamp-of-another" Timestamp blob::timestamp_of_another, [TspImprint] "the timestamp of another signature; the imprint catches it";
    "timestamp-signer-missing" Timestamp blob::timestamp_signer_missing, [TspNoSigner] "the authority's certificate removed from the token, as without certReq";
}
