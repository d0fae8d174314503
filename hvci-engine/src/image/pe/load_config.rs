//! The load configuration (PE/COFF specification, "The Load Configuration Structure"; `IMAGE_LOAD_CONFIG_DIRECTORY64` of the Windows SDK,
//! `winnt.h`): which words of the image a loader sets, and where its table of dynamic relocations is.
//!
//! Only PE32+. The structure grew with every release and says itself how long it is; a field behind its end is not there. Trusts nothing: an
//! address may point anywhere.

use super::{LOAD_CONFIG_DIRECTORY, Pe};
use crate::bytes::{index, le16, le32, le64};

/// Offsets of the fields.
const SECURITY_COOKIE: usize = 0x58;
const GUARD_CHECK: usize = 0x70;
const GUARD_DISPATCH: usize = 0x78;
const GUARD_FLAGS: usize = 0x90;
const DYNAMIC_RELOCATIONS_OFFSET: usize = 0xE0;
const DYNAMIC_RELOCATIONS_SECTION: usize = 0xE4;
/// IMAGE_GUARD_CF_INSTRUMENTED
const CF_INSTRUMENTED: u32 = 0x100;

/// The words that a loader sets, and a table that it reads. Addresses are virtual ones as the image has them, for its preferred base; `None` for a field that is 0 or
/// missing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LoadConfig {
    /// `SecurityCookie`: address of the cookie that stack frames are checked with.
    pub security_cookie: Option<u64>,
    /// `GuardCFCheckFunctionPointer`: address of the pointer to the function that checks the target of an indirect call. `None` for an
    /// image that is not instrumented.
    pub guard_check: Option<u64>,
    /// `GuardCFDispatchFunctionPointer`: address of the pointer to the function that checks and calls. `None` as for `guard_check`.
    pub guard_dispatch: Option<u64>,
    /// `DynamicValueRelocTableOffset` and `DynamicValueRelocTableSection`: bytes into a section, and its number from 1 on.
    pub dynamic_relocations: Option<(u32, u16)>,
}

impl Pe<'_> {
    /// The load configuration of a PE32+ image; `None` without one, or where the file does not have its bytes.
    pub fn load_config(&self) -> Option<LoadConfig> {
        let directory = self.headers().directory(LOAD_CONFIG_DIRECTORY);
        if directory.is_empty() || !self.headers().is_plus {
            return None;
        }
        // the size that stands in it counts; that in the directory is a constant for old loaders
        let rest = self.at_address(directory.address)?;
        let config = rest.get(..index(le32(rest, 0)?))?;
        let address = |at: usize| le64(config, at).filter(|a| *a != 0);
        let instrumented = le32(config, GUARD_FLAGS).is_some_and(|flags| flags & CF_INSTRUMENTED != 0);
        Some(LoadConfig {
            security_cookie: address(SECURITY_COOKIE),
            guard_check: address(GUARD_CHECK).filter(|_| instrumented),
            guard_dispatch: address(GUARD_DISPATCH).filter(|_| instrumented),
            dynamic_relocations: le32(config, DYNAMIC_RELOCATIONS_OFFSET)
                .zip(le16(config, DYNAMIC_RELOCATIONS_SECTION))
                .filter(|(_, section)| *section != 0),
        })
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use super::{super::sample::Sample, *};

    #[test]
    fn fields_end_where_the_structure_says() {
        let of = |size: u32, flags: u32| {
            let mut sample = Sample::with_load_config();
            sample.set32(0x400, size);
            sample.set32(0x490, flags);
            Pe::parse(&sample.0).unwrap().load_config()
        };
        let cookie = LoadConfig { security_cookie: Some(0x1_0001_2190), ..LoadConfig::default() };
        let all = LoadConfig { guard_check: Some(0x1_0001_2198), guard_dispatch: Some(0x1_0001_21A0), ..cookie };
        assert_eq!(of(0x94, 0x100), Some(all));
        assert_eq!(of(0x94, 0x400), Some(cookie));
        assert_eq!(of(0x93, 0x100), Some(cookie));
        assert_eq!(of(0x60, 0x100), Some(cookie));
        assert_eq!(of(0x5F, 0x100), Some(LoadConfig::default()));
        assert_eq!(of(0x201, 0x100), None);
    }

    #[test]
    fn not_every_image_has_one() {
        assert_eq!(Pe::parse(&Sample::new().0).unwrap().load_config(), None);
        let mut outside = Sample::with_load_config();
        outside.directory(10, 0x9000, 0x94);
        assert_eq!(Pe::parse(&outside.0).unwrap().load_config(), None);
        outside.directory(10, 0x11FE, 0x94);
        assert_eq!(Pe::parse(&outside.0).unwrap().load_config(), None);
    }
}
