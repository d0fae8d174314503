//! Boot managers of Windows below the security version that dbx says: revoked, however they are signed and whatever their digest (KB5025885).
//!
//! Firmware knows nothing of such entries: the boot manager looks itself, if it is one that does.

use crate::{facts::Facts, signature::signature_list::SignatureDatabase};

/// InternalName of `bootmgfw.efi`.
const BOOT_MANAGER: &str = "bootmgr.exe";

/// Whether an image says that it is Windows' boot manager, to whoever asks what it will do.
pub fn is_boot_manager(facts: &Facts) -> bool {
    let image = facts.image.as_ref();
    image.is_some_and(|image| image.security_version.is_some() || image.internal_name.as_deref() == Some(BOOT_MANAGER))
}

/// Why a boot manager is of a version that `dbx` revokes; `None` for what is not, and for every other image.
pub(super) fn revoked(facts: &Facts, dbx: &SignatureDatabase) -> Option<String> {
    let least = dbx.boot_manager_version().filter(|_| is_boot_manager(facts))?;
    match facts.image.as_ref()?.security_version {
        Some(version) if version >= least => None,
        Some(version) => Some(format!("its security version is {version}, and dbx wants {least}")),
        None => Some(format!("it says no security version, and dbx wants {least}")),
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use crate::{
        facts::{FileKind, ImageFacts, SecurityVersion},
        signature::signature_list::{BOOT_MANAGER_VERSION as BOOT_MANAGER, Entry, SignatureList, SignatureType, VERSION_OWNER as OWNER},
    };

    fn entry(owner: crate::uefi::Guid, program: crate::uefi::Guid, major: u16, minor: u16, tail: u8) -> Entry {
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
        let other = crate::uefi::Guid::new(1, 2, 3, [4; 8]);
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
