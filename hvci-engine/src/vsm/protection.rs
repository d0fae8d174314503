//! Which flags `HvCallModifyVtlProtectionMask` and the default mask of `HvRegisterVsmPartitionConfig` may have.
//!
//! The rules are those that openvmm states in the comments of `validate_vtl_gpa_flags` (`openhcl/virt_mshv_vtl/src/lib.rs`), and `vsm.md`
//! for MBEC. The code there refuses shadow-stack flags where shadow stacks are *enabled*, against its comment; here the comment holds.

use crate::{access::MapGpaFlags, status::HvStatus};

/// Everything that a protection mask can say.
const KNOWN: MapGpaFlags = MapGpaFlags(
    MapGpaFlags::READABLE.0
        | MapGpaFlags::WRITABLE.0
        | MapGpaFlags::EXECUTABLE.0
        | MapGpaFlags::SUPERVISOR_SHADOW_STACK.0
        | MapGpaFlags::PAGING_WRITABILITY.0
        | MapGpaFlags::VERIFY_PAGING_WRITABILITY.0,
);

/// Checks the flags of a protection mask for a level that has mode-based execution control and supervisor shadow stacks enabled or not:
/// no unknown flags, nor [`ADJUSTABLE`](MapGpaFlags::ADJUSTABLE); whatever is allowed, reading is; execution in kernel mode implies
/// execution in user mode, and without MBEC the reverse; shadow stacks only where they are enabled and execution is allowed.
///
/// Whether the host can express flags that go together, it must be asked.
///
/// # Errors
/// [`HvStatus::INVALID_REGISTER_VALUE`].
pub const fn validate_protection(flags: MapGpaFlags, mbec: bool, shadow_stack: bool) -> Result<(), HvStatus> {
    let kernel = flags.contains(MapGpaFlags::KERNEL_EXECUTABLE);
    let user = flags.contains(MapGpaFlags::USER_EXECUTABLE);
    let wrong = flags.without(KNOWN).0 != 0
        || flags.0 != 0 && !flags.contains(MapGpaFlags::READABLE)
        || kernel && !user
        || user && !kernel && !mbec
        || flags.contains(MapGpaFlags::SUPERVISOR_SHADOW_STACK) && !(shadow_stack && user);
    if wrong { Err(HvStatus::INVALID_REGISTER_VALUE) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use alloc::vec::Vec;

    use super::*;

    /// The rules again, as the lists of what goes together.
    fn goes_together(bits: u32, mbec: bool, shadow_stack: bool) -> bool {
        // R = 1, W = 2, KX = 4, UX = 8, then the shadow stack and the two of the page walk, which go with any reading
        let low = bits & 0xF;
        let plain: &[u32] = if mbec { &[0b0001, 0b0011, 0b1001, 0b1011, 0b1101, 0b1111] } else { &[0b0001, 0b0011, 0b1101, 0b1111] };
        let stack: &[u32] = if !shadow_stack {
            &[]
        } else if mbec {
            &[0b1001, 0b1011, 0b1101, 0b1111]
        } else {
            &[0b1101, 0b1111]
        };
        bits == 0 || plain.contains(&low) && (bits & 0x10 == 0 || stack.contains(&low))
    }

    #[test]
    fn all_low_combinations() {
        let mut allowed = Vec::new();
        for (mbec, shadow_stack) in [(false, false), (false, true), (true, false), (true, true)] {
            let before = allowed.len();
            for bits in 0..1 << 7 {
                let expected = if goes_together(bits, mbec, shadow_stack) { Ok(()) } else { Err(HvStatus::INVALID_REGISTER_VALUE) };
                assert_eq!(validate_protection(MapGpaFlags(bits), mbec, shadow_stack), expected, "{bits:#09b} {mbec} {shadow_stack}");
                allowed.extend(expected.is_ok().then_some(bits));
            }
            // the two of the page walk multiply by four; nothing at all is one more
            let plain = if mbec { 6 } else { 4 };
            let stack = if shadow_stack { plain - 2 } else { 0 };
            assert_eq!(allowed.len() - before, 4 * (plain + stack) + 1);
        }
    }

    #[test]
    fn what_hvci_uses_needs_mbec() {
        let status = |flags, mbec| validate_protection(flags, mbec, false);
        assert_eq!(status(MapGpaFlags::DATA, true), Ok(()));
        assert_eq!(status(MapGpaFlags::DATA, false), Err(HvStatus::INVALID_REGISTER_VALUE));
        assert_eq!(status(MapGpaFlags::CODE, false), Ok(()));
        assert_eq!(status(MapGpaFlags::NONE, false), Ok(()));
    }

    #[test]
    fn everything_else_is_refused() {
        for bit in 7..32 {
            for flags in [MapGpaFlags(1 << bit), MapGpaFlags(1 << bit) | MapGpaFlags::CODE] {
                assert_eq!(validate_protection(flags, true, true), Err(HvStatus::INVALID_REGISTER_VALUE), "{flags}");
            }
        }
        assert_eq!(validate_protection(MapGpaFlags::CODE | MapGpaFlags::ADJUSTABLE, true, true), Err(HvStatus::INVALID_REGISTER_VALUE));
    }
}
