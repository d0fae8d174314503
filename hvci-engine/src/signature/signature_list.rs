//! EFI_SIGNATURE_LIST (UEFI 2.10 §32.4.1): what the variables PK, KEK, db, dbx, dbt and shim's MokList hold. Bytes to entries and back.
//!
//! ```text
//! EFI_SIGNATURE_LIST  SignatureType GUID, SignatureListSize u32, SignatureHeaderSize u32, SignatureSize u32,
//!                     SignatureHeader[SignatureHeaderSize], EFI_SIGNATURE_DATA[…]
//! EFI_SIGNATURE_DATA  SignatureOwner GUID, SignatureData[SignatureSize - 16]
//! ```
//!
//! Reads lists of any type, and keeps those that it does not know. Refuses sizes that do not add up, a header where the type has none, data of
//! another length than the type's, bytes behind the last list, and more entries than [`MAX_ENTRIES`]. Trusts nothing: who may write a list, and
//! what follows from being listed, is for others to say.

#![deny(
    clippy::arithmetic_side_effects,
    clippy::as_conversions,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used
)]

use std::{collections::HashSet, fmt};

use super::cert::Certificate;
use crate::{
    bytes::{array, index, le16, le32, slice},
    digest::{Digest, DigestAlg},
    facts::SecurityVersion,
    time::UnixTime,
    uefi::{EfiTime, Guid},
};

/// How many signatures of one variable are read; the largest real one, Microsoft's dbx, has some four hundred.
pub const MAX_ENTRIES: usize = 65_536;

const LIST_HEADER: usize = 28;
const OWNER: usize = 16;
const TIME: usize = 16;

/// SignatureType: what an entry of a list is. Types that are not known keep their GUID.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SignatureType(pub Guid);

impl SignatureType {
    /// SHA-1 digest.
    pub const SHA1: Self = Self(Guid::new(0x826c_a512, 0xcf10, 0x4ac9, [0xb1, 0x87, 0xbe, 0x01, 0x49, 0x66, 0x31, 0xbd]));
    /// SHA-224 digest.
    pub const SHA224: Self = Self(Guid::new(0x0b6e_5233, 0xa65c, 0x44c9, [0x94, 0x07, 0xd9, 0xab, 0x83, 0xbf, 0xc8, 0xbd]));
    /// SHA-256 digest.
    pub const SHA256: Self = Self(Guid::new(0xc1c4_1626, 0x504c, 0x4092, [0xac, 0xa9, 0x41, 0xf9, 0x36, 0x93, 0x43, 0x28]));
    /// SHA-384 digest.
    pub const SHA384: Self = Self(Guid::new(0xff3e_5307, 0x9fd0, 0x48c9, [0x85, 0xf1, 0x8a, 0xd5, 0x6c, 0x70, 0x1e, 0x01]));
    /// SHA-512 digest.
    pub const SHA512: Self = Self(Guid::new(0x093e_0fae, 0xa6c4, 0x4f50, [0x9f, 0x1b, 0xd4, 0x1e, 0x2b, 0x89, 0xc1, 0x9a]));
    /// Modulus of an RSA key of 2048 bits with exponent 65537.
    pub const RSA2048: Self = Self(Guid::new(0x3c57_66e8, 0x269c, 0x4e34, [0xaa, 0x14, 0xed, 0x77, 0x6e, 0x85, 0xb3, 0xb6]));
    /// RSA-2048 signature of a SHA-1 digest.
    pub const RSA2048_SHA1: Self = Self(Guid::new(0x67f8_444f, 0x8743, 0x48f1, [0xa3, 0x28, 0x1e, 0xaa, 0xb8, 0x73, 0x60, 0x80]));
    /// RSA-2048 signature of a SHA-256 digest.
    pub const RSA2048_SHA256: Self = Self(Guid::new(0xe2b3_6190, 0x879b, 0x4a3d, [0xad, 0x8d, 0xf2, 0xe7, 0xbb, 0xa3, 0x27, 0x84]));
    /// Certificate, DER.
    pub const X509: Self = Self(Guid::new(0xa5c0_59a1, 0x94e4, 0x4aa7, [0x87, 0xb5, 0xab, 0x15, 0x5c, 0x2b, 0xf0, 0x72]));
    /// SHA-256 of a TBSCertificate, and since when it is revoked.
    pub const X509_SHA256: Self = Self(Guid::new(0x3bd2_a492, 0x96c0, 0x4079, [0xb4, 0x20, 0xfc, 0xf9, 0x8e, 0xf1, 0x03, 0xed]));
    /// SHA-384 of a TBSCertificate, and since when it is revoked.
    pub const X509_SHA384: Self = Self(Guid::new(0x7076_876e, 0x80c2, 0x4ee6, [0xaa, 0xd2, 0x28, 0xb3, 0x49, 0xa6, 0x86, 0x5b]));
    /// SHA-512 of a TBSCertificate, and since when it is revoked.
    pub const X509_SHA512: Self = Self(Guid::new(0x446d_bf63, 0x2502, 0x4cda, [0xbc, 0xfa, 0x24, 0x65, 0xd2, 0xb0, 0xfe, 0x9d]));
    /// PKCS#7 SignedData.
    pub const PKCS7: Self = Self(Guid::new(0x4aaf_d29d, 0x68df, 0x49ee, [0x8a, 0xa9, 0x34, 0x7d, 0x37, 0x56, 0x65, 0xa7]));
    /// Managed outside of the list, in which stands one byte of zero.
    pub const EXTERNAL_MANAGEMENT: Self = Self(Guid::new(0x452e_8ced, 0xdfff, 0x4b8c, [0xae, 0x01, 0x51, 0x18, 0x86, 0x2e, 0x68, 0x2c]));

    /// Name and, where the type fixes it, length of the data.
    const KNOWN: [(Self, &'static str, Option<usize>); 14] = [
        (Self::SHA1, "sha1", Some(20)),
        (Self::SHA224, "sha224", Some(28)),
        (Self::SHA256, "sha256", Some(32)),
        (Self::SHA384, "sha384", Some(48)),
        (Self::SHA512, "sha512", Some(64)),
        (Self::RSA2048, "rsa2048", Some(256)),
        (Self::RSA2048_SHA1, "rsa2048-sha1", Some(256)),
        (Self::RSA2048_SHA256, "rsa2048-sha256", Some(256)),
        (Self::X509, "x509", None),
        (Self::X509_SHA256, "x509-sha256", Some(48)),
        (Self::X509_SHA384, "x509-sha384", Some(64)),
        (Self::X509_SHA512, "x509-sha512", Some(80)),
        (Self::PKCS7, "pkcs7", None),
        (Self::EXTERNAL_MANAGEMENT, "external-management", Some(1)),
    ];

    /// Whether the specification has it.
    pub fn is_known(self) -> bool {
        self.row().is_some()
    }

    /// The algorithm of a list of digests.
    pub fn digest(self) -> Option<DigestAlg> {
        Some(match self {
            Self::SHA1 => DigestAlg::Sha1,
            Self::SHA224 => DigestAlg::Sha224,
            Self::SHA256 => DigestAlg::Sha256,
            Self::SHA384 => DigestAlg::Sha384,
            Self::SHA512 => DigestAlg::Sha512,
            _ => return None,
        })
    }

    /// The algorithm of a list of revoked TBSCertificates.
    pub fn tbs_digest(self) -> Option<DigestAlg> {
        Some(match self {
            Self::X509_SHA256 => DigestAlg::Sha256,
            Self::X509_SHA384 => DigestAlg::Sha384,
            Self::X509_SHA512 => DigestAlg::Sha512,
            _ => return None,
        })
    }

    fn row(self) -> Option<&'static (Self, &'static str, Option<usize>)> {
        Self::KNOWN.iter().find(|(known, ..)| *known == self)
    }

    fn data_len(self) -> Option<usize> {
        self.row().and_then(|(.., len)| *len)
    }
}

impl fmt::Display for SignatureType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.row() {
            Some((_, name, _)) => f.write_str(name),
            None => self.0.fmt(f),
        }
    }
}

/// Why bytes are no signature lists. `offset` is where the list begins that is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{kind} in the signature list at offset {offset:#x}")]
pub struct ListError {
    /// What is wrong.
    pub kind: ListErrorKind,
    /// Where the list begins.
    pub offset: usize,
}

/// What can be wrong with a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ListErrorKind {
    /// The bytes end before the list does, or its header.
    #[error("bytes are missing")]
    Truncated,
    /// SignatureHeaderSize is larger than the list, or not zero in a list of a known type.
    #[error("SignatureHeaderSize is wrong")]
    HeaderSize,
    /// SignatureSize leaves no data, or is not what the type has.
    #[error("SignatureSize is wrong")]
    SignatureSize,
    /// SignatureListSize is no whole number of signatures.
    #[error("SignatureListSize is no whole number of signatures")]
    ListSize,
    /// More than [`MAX_ENTRIES`] signatures.
    #[error("too many signatures")]
    TooMany,
}

/// EFI_SIGNATURE_DATA.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Entry {
    /// SignatureOwner: who put it there, by their own account.
    pub owner: Guid,
    /// SignatureData, of the list's length.
    pub data: Vec<u8>,
}

/// One list: entries of one type and length.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SignatureList {
    kind: SignatureType,
    header: Vec<u8>,
    data_len: u32,
    entries: Vec<Entry>,
}

impl SignatureList {
    /// A list of the type `kind` whose entries have data of one length.
    ///
    /// # Errors
    /// No entry, entries of several lengths, or a length that the type does not have.
    pub fn new(kind: SignatureType, entries: Vec<Entry>) -> Result<Self, ListErrorKind> {
        let len = entries.first().ok_or(ListErrorKind::ListSize)?.data.len();
        if len == 0 || kind.data_len().is_some_and(|known| known != len) || entries.iter().any(|e| e.data.len() != len) {
            return Err(ListErrorKind::SignatureSize);
        }
        let total = len.checked_add(OWNER).and_then(|n| n.checked_mul(entries.len())).and_then(|n| n.checked_add(LIST_HEADER));
        if entries.len() > MAX_ENTRIES || total.is_none_or(|n| u32::try_from(n).is_err()) {
            return Err(ListErrorKind::TooMany);
        }
        Ok(Self { kind, header: Vec::new(), data_len: u32::try_from(len).map_err(|_| ListErrorKind::SignatureSize)?, entries })
    }

    /// What its entries are.
    pub fn kind(&self) -> SignatureType {
        self.kind
    }

    /// Its entries, in order.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// The list at the start of `bytes`, which stand at `offset`, and what follows it.
    fn read(bytes: &[u8], offset: usize, room: usize) -> Result<(Self, &[u8]), ListError> {
        let fail = |kind| ListError { kind, offset };
        let cut = || fail(ListErrorKind::Truncated);
        let kind = SignatureType(Guid(array(bytes, 0).ok_or_else(cut)?));
        let size = |at| le32(bytes, at).map(index).ok_or_else(cut);
        let (list, header, signature) = (size(16)?, size(20)?, size(24)?);
        let whole = slice(bytes, 0, list).ok_or_else(cut)?;
        let body = list.checked_sub(LIST_HEADER).ok_or_else(cut)?;
        let body = body.checked_sub(header).ok_or_else(|| fail(ListErrorKind::HeaderSize))?;
        if header != 0 && kind.is_known() {
            return Err(fail(ListErrorKind::HeaderSize));
        }
        let len = signature.checked_sub(OWNER).filter(|len| *len != 0 && kind.data_len().is_none_or(|known| known == *len));
        let len = len.ok_or_else(|| fail(ListErrorKind::SignatureSize))?;
        if body.checked_rem(signature) != Some(0) {
            return Err(fail(ListErrorKind::ListSize));
        }
        if body.checked_div(signature).is_none_or(|count| count > room) {
            return Err(fail(ListErrorKind::TooMany));
        }
        let (front, signatures) = whole.split_at_checked(list.saturating_sub(body)).ok_or_else(cut)?;
        let entries = signatures.chunks_exact(signature).filter_map(|entry| {
            let (owner, data) = entry.split_first_chunk::<OWNER>()?;
            Some(Entry { owner: Guid(*owner), data: data.to_vec() })
        });
        let read = Self {
            kind,
            header: front.get(LIST_HEADER..).unwrap_or_default().to_vec(),
            data_len: u32::try_from(len).map_err(|_| fail(ListErrorKind::SignatureSize))?,
            entries: entries.collect(),
        };
        Ok((read, bytes.get(list..).unwrap_or_default()))
    }

    fn write(&self, out: &mut Vec<u8>) {
        let len = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        let signature = self.data_len.saturating_add(len(OWNER));
        let body = signature.saturating_mul(len(self.entries.len()));
        let header = len(self.header.len());
        let list = body.saturating_add(header).saturating_add(len(LIST_HEADER));
        out.extend(self.kind.0.0);
        for size in [list, header, signature] {
            out.extend(size.to_le_bytes());
        }
        out.extend(&self.header);
        for entry in &self.entries {
            out.extend(entry.owner.0);
            out.extend(&entry.data);
        }
    }
}

/// Where something is listed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Listed {
    /// As what.
    pub kind: SignatureType,
    /// By whom, by their own account.
    pub owner: Guid,
    /// Since when; `None` for always.
    pub since: Option<UnixTime>,
}

/// All lists of one variable.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SignatureDatabase {
    lists: Vec<SignatureList>,
}

/// Who owns entries that are no digest but a security version.
pub(crate) const VERSION_OWNER: Guid = Guid::new(0x9D13_2B6C, 0x59D5, 0x4388, [0xAB, 0x1C, 0x18, 0x5C, 0xFC, 0xB2, 0xEB, 0x92]);
/// EFI_BOOTMGR_DBXSVN_GUID: such an entry about Windows' boot manager.
pub(crate) const BOOT_MANAGER_VERSION: Guid = Guid::new(0x9D13_2B61, 0x59D5, 0x4388, [0xAB, 0x1C, 0x18, 0x5C, 0x3C, 0xB2, 0xEB, 0x92]);

impl SignatureDatabase {
    /// The least security version of Windows' boot managers, of several entries the greatest (microsoft/secureboot_objects, `DBXUpdateSVN.bin`,
    /// `dbx_info_msft_latest.json`). Those about `cdboot.efi` and `wdsmgfw.efi`, which say their version in no way that is public, are not looked at.
    ///
    /// ```text
    /// type SHA-256, owner 9d132b6c-…, data { 1, GUID of the program, u16 minor, u16 major, 11 zeros }
    /// ```
    pub fn boot_manager_version(&self) -> Option<SecurityVersion> {
        let version = |(kind, entry): (SignatureType, &Entry)| {
            let [first] = array(&entry.data, 0)?;
            let zeros: [u8; 11] = array(&entry.data, 21)?;
            let program = Guid(array(&entry.data, 1)?);
            let is_one = kind == SignatureType::SHA256 && entry.owner == VERSION_OWNER && first == 1 && zeros == [0; 11];
            let version = SecurityVersion { major: le16(&entry.data, 19)?, minor: le16(&entry.data, 17)? };
            (is_one && program == BOOT_MANAGER_VERSION).then_some(version)
        };
        self.entries().filter_map(version).max()
    }

    /// Reads lists, one behind the other; no bytes are no lists.
    ///
    /// # Errors
    /// The first thing that is wrong; nothing of such bytes counts.
    pub fn read(bytes: &[u8]) -> Result<Self, ListError> {
        let (mut lists, mut rest, mut room) = (Vec::new(), bytes, MAX_ENTRIES);
        while !rest.is_empty() {
            // an empty list has a place too, so that their number is bounded
            let offset = bytes.len().saturating_sub(rest.len());
            let left = room.checked_sub(1).ok_or(ListError { kind: ListErrorKind::TooMany, offset })?;
            let (list, behind) = SignatureList::read(rest, offset, room)?;
            room = left.min(room.saturating_sub(list.entries.len()));
            lists.push(list);
            rest = behind;
        }
        Ok(Self { lists })
    }

    /// Of these lists.
    pub fn new(lists: Vec<SignatureList>) -> Self {
        Self { lists }
    }

    /// The bytes that [`read`](Self::read) reads.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = Vec::new();
        self.lists.iter().for_each(|list| list.write(&mut out));
        out
    }

    /// Its lists, in order.
    pub fn lists(&self) -> &[SignatureList] {
        &self.lists
    }

    /// Every entry with its type, in order.
    pub fn entries(&self) -> impl Iterator<Item = (SignatureType, &Entry)> {
        self.lists.iter().flat_map(|list| list.entries.iter().map(move |entry| (list.kind, entry)))
    }

    /// Adds the lists of `others`, without the entries that are there already: the same type, owner and data (UEFI 2.10 §8.2.2,
    /// EFI_VARIABLE_APPEND_WRITE). Returns how many are new.
    pub fn append(&mut self, others: &Self) -> usize {
        let mut known: HashSet<(SignatureType, Entry)> = self.entries().map(|(kind, entry)| (kind, entry.clone())).collect();
        let mut added = 0_usize;
        for list in &others.lists {
            let entries: Vec<Entry> = list.entries.iter().filter(|e| known.insert((list.kind, (*e).clone()))).cloned().collect();
            if !entries.is_empty() {
                added = added.saturating_add(entries.len());
                self.lists.push(SignatureList { entries, ..list.clone() });
            }
        }
        added
    }

    /// Where a digest is listed.
    pub fn find_digest(&self, digest: &Digest) -> Option<Listed> {
        let (kind, entry) = self.entries().find(|(k, e)| k.digest() == Some(digest.alg()) && e.data == digest.as_bytes())?;
        Some(Listed { kind, owner: entry.owner, since: None })
    }

    /// Where a certificate is listed, itself or by the digest of its TBSCertificate; of several places the one that holds longest. A revocation
    /// whose time is no date holds always. Lists of bare RSA keys are not looked at, as no firmware does.
    pub fn find_certificate(&self, certificate: &Certificate) -> Option<Listed> {
        let mut hashes: [Option<Digest>; 3] = [None; 3];
        let found = self.entries().filter_map(|(kind, entry)| {
            let since = match kind.tbs_digest() {
                None => (kind == SignatureType::X509 && entry.data == certificate.der()).then_some(None)?,
                Some(alg) => {
                    let place = hashes.get_mut(match alg {
                        DigestAlg::Sha256 => 0,
                        DigestAlg::Sha384 => 1,
                        _ => 2,
                    })?;
                    let hash = place.get_or_insert_with(|| certificate.tbs_hash(alg));
                    let (data, time) = entry.data.split_last_chunk::<TIME>()?;
                    (data == hash.as_bytes()).then(|| EfiTime(*time).instant())?
                }
            };
            Some(Listed { kind, owner: entry.owner, since })
        });
        // `None` is before any time
        found.min_by_key(|listed| listed.since)
    }

    /// The certificates that can be read, in order; what cannot be read authorises nobody.
    pub fn certificates(&self) -> impl Iterator<Item = Certificate> {
        self.entries().filter(|(kind, _)| *kind == SignatureType::X509).filter_map(|(_, entry)| Certificate::parse(&entry.data).ok())
    }
}

#[cfg(test)]
#[expect(clippy::indexing_slicing, clippy::unwrap_used, reason = "tests")]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::signature::trust::TrustStore;

    const OWNER_A: Guid = Guid::new(1, 2, 3, [4; 8]);

    fn list(kind: SignatureType, data: &[&[u8]]) -> SignatureList {
        SignatureList::new(kind, data.iter().map(|d| Entry { owner: OWNER_A, data: d.to_vec() }).collect()).unwrap()
    }

    fn kind_of(bytes: &[u8]) -> ListErrorKind {
        SignatureDatabase::read(bytes).unwrap_err().kind
    }

    #[test]
    fn sizes_that_do_not_add_up_are_refused() {
        let good = SignatureDatabase::new(vec![list(SignatureType::SHA256, &[&[1; 32], &[2; 32]])]).to_bytes();
        assert_eq!(SignatureDatabase::read(&good).unwrap().to_bytes(), good);
        let with = |at: usize, value: u32| {
            let mut bytes = good.clone();
            bytes.splice(at..at + 4, value.to_le_bytes());
            kind_of(&bytes)
        };
        let whole = u32::try_from(good.len()).unwrap();
        assert_eq!(with(16, whole + 1), ListErrorKind::Truncated, "longer than the bytes");
        assert_eq!(with(16, 27), ListErrorKind::Truncated, "shorter than its header");
        assert_eq!(with(16, whole - 1), ListErrorKind::ListSize);
        assert_eq!(with(20, u32::MAX), ListErrorKind::HeaderSize);
        assert_eq!(with(20, 48), ListErrorKind::HeaderSize, "no type of the specification has a header");
        for size in [0, 15, 16, 47, 96, u32::MAX] {
            assert_eq!(with(24, size), ListErrorKind::SignatureSize, "{size}");
        }
        assert_eq!(kind_of(&[&good[..], &[0]].concat()), ListErrorKind::Truncated, "a byte behind the lists");
        assert!((1..good.len()).all(|end| SignatureDatabase::read(&good[..end]).is_err()));
    }

    #[test]
    fn types_that_are_not_known_are_kept() {
        let unknown = SignatureType(Guid::new(9, 9, 9, [9; 8]));
        let mut bytes = SignatureDatabase::new(vec![list(unknown, &[&[1, 2, 3]])]).to_bytes();
        // with a header, whose meaning only the type knows
        bytes.splice(28..28, [7, 7]);
        bytes[16] += 2;
        bytes[20] = 2;
        let read = SignatureDatabase::read(&bytes).unwrap();
        assert_eq!((read.lists()[0].kind(), read.to_bytes()), (unknown, bytes));
    }

    #[test]
    fn what_is_listed_is_found() {
        let store = TrustStore::builtin();
        let [one, two, three] = [0, 1, 2].map(|i| &store.anchors()[i].certificate);
        let revoked = |c: &Certificate, alg, time: [u8; 16]| [c.tbs_hash(alg).as_bytes(), &time].concat();
        let mut time = [0; 16];
        time[..7].copy_from_slice(&[0xEA, 0x07, 11, 28, 1, 2, 3]);
        let digest = Digest::new(DigestAlg::Sha384, &[5; 48]).unwrap();
        let db = SignatureDatabase::new(vec![
            list(SignatureType::X509, &[one.der()]),
            list(SignatureType::X509_SHA512, &[&revoked(two, DigestAlg::Sha512, time)]),
            list(SignatureType::SHA384, &[digest.as_bytes()]),
        ]);
        let by = |kind, since| Some(Listed { kind, owner: OWNER_A, since });
        assert_eq!(db.find_certificate(one), by(SignatureType::X509, None));
        assert_eq!(db.find_certificate(two), by(SignatureType::X509_SHA512, UnixTime::parse("2026-11-28T01:02:03Z")));
        assert_eq!(db.find_certificate(three), None);
        assert_eq!(db.find_digest(&digest), by(SignatureType::SHA384, None));
        assert_eq!(db.find_digest(&Digest::new(DigestAlg::Sha3_384, &[5; 48]).unwrap()), None, "another algorithm");

        // the entry that holds longest counts, whichever comes first
        let mut always = db.clone();
        always.append(&SignatureDatabase::new(vec![list(SignatureType::X509_SHA256, &[&revoked(two, DigestAlg::Sha256, [0; 16])])]));
        assert_eq!(always.find_certificate(two), by(SignatureType::X509_SHA256, None));
    }

    #[test]
    fn nothing_is_appended_twice() {
        let mut db = SignatureDatabase::default();
        let new = SignatureDatabase::new(vec![list(SignatureType::SHA256, &[&[1; 32], &[2; 32], &[1; 32]])]);
        assert_eq!((db.append(&new), db.append(&new)), (2, 0));
        assert_eq!(db.append(&SignatureDatabase::new(vec![list(SignatureType::SHA256, &[&[2; 32], &[3; 32]])])), 1);
        assert_eq!(db.entries().map(|(_, e)| e.data[0]).collect::<Vec<_>>(), [1, 2, 3]);
        // data of another owner is another entry
        let other = Entry { owner: Guid([0; 16]), data: vec![1; 32] };
        assert_eq!(db.append(&SignatureDatabase::new(vec![SignatureList::new(SignatureType::SHA256, vec![other]).unwrap()])), 1);
    }

    #[test]
    fn guids_are_written_as_specifications_do() {
        assert_eq!(SignatureType::SHA256.0.to_string(), "c1c41626-504c-4092-aca9-41f936934328");
    }

    fn lists() -> impl Strategy<Value = SignatureDatabase> {
        let entries = (any::<[u8; 16]>(), 1..90_usize).prop_flat_map(|(kind, len)| {
            let known = prop::sample::select(SignatureType::KNOWN.to_vec());
            (prop::option::of(known), prop::collection::vec((any::<[u8; 16]>(), any::<u8>()), 1..5), Just(kind), Just(len))
        });
        let one = entries.prop_map(|(known, entries, kind, len)| {
            let (kind, len) = known.map_or((SignatureType(Guid(kind)), len), |(kind, _, fixed)| (kind, fixed.unwrap_or(len)));
            let entries = entries.into_iter().map(|(owner, byte)| Entry { owner: Guid(owner), data: vec![byte; len] }).collect();
            SignatureList::new(kind, entries).unwrap()
        });
        prop::collection::vec(one, 0..4).prop_map(SignatureDatabase::new)
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(db in lists()) {
            prop_assert_eq!(SignatureDatabase::read(&db.to_bytes()), Ok(db));
        }

        #[test]
        fn what_is_read_is_written(db in lists(), at in any::<prop::sample::Index>(), byte in any::<u8>()) {
            let mut bytes = db.to_bytes();
            if !bytes.is_empty() {
                let at = at.index(bytes.len());
                bytes[at] = byte;
            }
            if let Ok(read) = SignatureDatabase::read(&bytes) {
                prop_assert_eq!(read.to_bytes(), bytes);
            }
        }
    }
}
