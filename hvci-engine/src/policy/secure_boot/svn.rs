//! Security version numbers in dbx: boot managers of Windows below a version are revoked, however they are signed and whatever their digest
//! (microsoft/secureboot_objects, `DBXUpdateSVN.bin`, `dbx_info_msft_latest.json`; KB5025885).
//!
//! ```text
//! an entry of type SHA-256 that is no digest: owner 9d132b6c-…, data { 1, GUID of the program, u16 minor, u16 major, 11 zeros }
//! ```
//!
//! Firmware knows nothing of them: the boot manager looks itself, if it is one that does. Of the programs that have entries only the boot manager's
//! is known to say its version ([`Pe::security_version`](crate::image::pe::Pe::security_version)); `cdboot.efi` and `wdsmgfw.efi` are not looked at.

use crate::{
    bytes::{array, le16},
    facts::{Facts, SecurityVersion},
    signature::signature_list::{Entry, SignatureDatabase, SignatureType},
    uefi::Guid,
};

/// Who owns such entries.
const OWNER: Guid = Guid::new(0x9D13_2B6C, 0x59D5, 0x4388, [0xAB, 0x1C, 0x18, 0x5C, 0xFC, 0xB2, 0xEB, 0x92]);
/// EFI_BOOTMGR_DBXSVN_GUID.
const BOOT_MANAGER: Guid = Guid::new(0x9D13_2B61, 0x59D5, 0x4388, [0xAB, 0x1C, 0x18, 0x5C, 0x3C, 0xB2, 0xEB, 0x92]);
/// InternalName of `bootmgfw.efi`.
const BOOT_MANAGER_NAME: &str = "bootmgr.exe";

/// Whether an image says that it is Windows' boot manager.
pub fn is_boot_manager(facts: &Facts) -> bool {
    let image = facts.image.as_ref();
    image.is_some_and(|image| image.security_version.is_some() || image.internal_name.as_deref() == Some(BOOT_MANAGER_NAME))
}

/// Why a boot manager is of a version that `dbx` revokes; `None` for what is not, and for every other image.
pub(super) fn revoked(facts: &Facts, dbx: &SignatureDatabase) -> Option<String> {
    let least = dbx.entries().filter_map(|(kind, entry)| read(kind, entry)).filter(|(program, _)| *program == BOOT_MANAGER);
    let (_, least) = least.max_by_key(|(_, version)| *version).filter(|_| is_boot_manager(facts))?;
    match facts.image.as_ref()?.security_version {
        Some(version) if version >= least => None,
        Some(version) => Some(format!("its security version is {version}, and dbx wants {least}")),
        None => Some(format!("it says no security version, and dbx wants {least}")),
    }
}

/// The program and the least version of an entry that has one.
fn read(kind: SignatureType, entry: &Entry) -> Option<(Guid, SecurityVersion)> {
    let [first] = array(&entry.data, 0)?;
    let zeros: [u8; 11] = array(&entry.data, 21)?;
    let is_one = kind == SignatureType::SHA256 && entry.owner == OWNER && first == 1 && zeros == [0; 11];
    let version = SecurityVersion { major: le16(&entry.data, 19)?, minor: le16(&entry.data, 17)? };
    is_one.then_some((Guid(array(&entry.data, 1)?), version))
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use crate::{
        facts::{FileKind, ImageFacts},
        signature::signature_list::SignatureList,
    };

    fn entry(owner: Guid, program: Guid, major: u16, minor: u16, tail: u8) -> Entry {
        let data = [&[1][..], &program.0, &minor.to_le_bytes(), &major.to_le_bytes(), &[0; 10], &[tail]].concat();
        Entry { owner, data }
    }

    fn dbx(entries: Vec<Entry>) -> SignatureDatabase {
        SignatureDatabase::new(vec![SignatureList::new(SignatureType::SHA256, entries).unwrap()])
    }

    fn manager(security_version: Option<SecurityVersion>, name: &str) -> Facts {
        let image = ImageFacts { security_version, internal_name: Some(name.to_owned()), ..ImageFacts::default() };
        Facts { image: Some(image), ..Facts::new(0, FileKind::PeEfi) }
    }

    fn version(major: u16, minor: u16) -> Option<SecurityVersion> {
        Some(SecurityVersion { major, minor })
    }

    #[test]
    fn the_greatest_entry_counts_and_only_for_boot_managers() {
        let other = Guid::new(1, 2, 3, [4; 8]);
        let list = dbx(vec![
            entry(OWNER, BOOT_MANAGER, 7, 0, 0),
            entry(OWNER, BOOT_MANAGER, 9, 1, 0),
            entry(OWNER, other, 99, 0, 0),
            entry(other, BOOT_MANAGER, 99, 0, 0),
            entry(OWNER, BOOT_MANAGER, 99, 0, 1),
        ]);
        for (has, name, is_revoked) in [
            (version(9, 1), "bootmgr.exe", false),
            (version(10, 0), "bootmgr.exe", false),
            (version(9, 0), "bootmgr.exe", true),
            (version(3, 9), "other", true),
            (None, "bootmgr.exe", true),
            (None, "osloader.exe", false),
        ] {
            let why = revoked(&manager(has, name), &list);
            assert_eq!(why.is_some(), is_revoked, "{has:?} {name}: {why:?}");
        }
        assert_eq!(revoked(&manager(None, "bootmgr.exe"), &dbx(vec![entry(OWNER, other, 1, 0, 0)])), None);
        assert!(revoked(&manager(version(3, 0), ""), &list).unwrap().contains("is 3.0, and dbx wants 9.1"));
    }
}
