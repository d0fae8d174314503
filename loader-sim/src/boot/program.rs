//! Which program an image is. A name proves nothing: it is told by what only that program's image has, and only to know how it goes on;
//! whether it may start is decided before and elsewhere.

use hvci_engine::{facts::Facts, image::pe::Pe, policy::secure_boot};

use crate::measure::data::utf16;

/// A program whose part in a boot is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names say it")]
pub enum Program {
    Shim,
    MokManager,
    Fallback,
    Grub,
    SystemdBoot,
    UnifiedKernel,
    Linux,
    WindowsBootManager,
    OsLoader,
    NtKernel,
    Unknown,
}

impl Program {
    /// The program that an image is; what is no image is none.
    pub(super) fn of(image: Option<&Pe<'_>>, facts: &Facts) -> Self {
        let Some(image) = image else { return Self::Unknown };
        let has = |section| image.section_content(section).is_some();
        let known = facts.image.as_ref();
        let name = known.and_then(|known| known.internal_name.as_deref());
        let is_shims = || known.and_then(|known| known.sbat.as_ref()).is_some_and(|list| list.iter().any(|c| c.name == "shim"));
        if has(".vendor_cert") {
            Self::Shim
        } else if has("mods") {
            Self::Grub
        } else if has(".linux") {
            Self::UnifiedKernel
        } else if is_linux(image.data()) {
            Self::Linux
        } else if image.section_content(".sdmagic").is_some_and(|magic| contains(magic, b"systemd-boot")) {
            Self::SystemdBoot
        } else if secure_boot::is_boot_manager(facts) {
            Self::WindowsBootManager
        } else if name == Some("osloader.exe") {
            Self::OsLoader
        } else if name == Some("ntkrnlmp.exe") {
            Self::NtKernel
        } else if is_shims() {
            if contains(image.data(), &utf16("MOK management")) { Self::MokManager } else { Self::Fallback }
        } else {
            Self::Unknown
        }
    }
}

/// An image that may be started, as whoever starts it has it.
#[derive(Debug)]
pub(super) struct Loaded<'i> {
    pub(super) path: &'i str,
    /// EFI_LOADED_IMAGE_PROTOCOL.LoadOptions; empty without any.
    pub(super) options: &'i str,
    pub(super) facts: Facts,
    /// `None` where it is no image.
    pub(super) image: Option<Pe<'i>>,
    pub(super) program: Program,
}

/// Whether this is a kernel that a boot loader can load (`Documentation/arch/x86/boot.rst`).
pub(super) fn is_linux(bytes: &[u8]) -> bool {
    bytes.get(0x202..).is_some_and(|header| header.starts_with(b"HdrS"))
}

fn contains(bytes: &[u8], wanted: &[u8]) -> bool {
    bytes.windows(wanted.len()).any(|window| window == wanted)
}
