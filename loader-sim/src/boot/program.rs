//! Which program an image is. A name proves nothing: it is told by what only that program's image has, and only to know how it goes on;
//! whether it may start is decided before and elsewhere.

use hvci_engine::image::pe::Pe;

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

/// InternalName of the parts of Windows.
const WINDOWS: [(&str, Program); 3] =
    [("bootmgr.exe", Program::WindowsBootManager), ("osloader.exe", Program::OsLoader), ("ntkrnlmp.exe", Program::NtKernel)];

impl Program {
    /// The program that an image is.
    pub fn of(bytes: &[u8]) -> Self {
        let Ok(image) = Pe::parse(bytes) else { return Self::Unknown };
        let has = |section| image.section_content(section).is_some();
        let component = |name: &str| image.sbat().and_then(Result::ok).is_some_and(|list| list.iter().any(|c| c.name == name));
        if has(".vendor_cert") {
            Self::Shim
        } else if has("mods") {
            Self::Grub
        } else if has(".linux") {
            Self::UnifiedKernel
        } else if is_linux(bytes) {
            Self::Linux
        } else if image.section_content(".sdmagic").is_some_and(|magic| contains(magic, b"systemd-boot")) {
            Self::SystemdBoot
        } else if let Some(part) = of_windows(&image) {
            part
        } else if component("shim") {
            let menu: Vec<u8> = "MOK management".encode_utf16().flat_map(u16::to_le_bytes).collect();
            if contains(bytes, &menu) { Self::MokManager } else { Self::Fallback }
        } else {
            Self::Unknown
        }
    }
}

fn of_windows(image: &Pe<'_>) -> Option<Program> {
    let name = image.internal_name();
    let named = WINDOWS.iter().find(|(known, _)| name.as_deref() == Some(known)).map(|(_, program)| *program);
    named.or_else(|| image.security_version().map(|_| Program::WindowsBootManager))
}

/// Whether this is a kernel that a boot loader can load (`Documentation/arch/x86/boot.rst`).
pub(super) fn is_linux(bytes: &[u8]) -> bool {
    bytes.get(0x202..).is_some_and(|header| header.starts_with(b"HdrS"))
}

fn contains(bytes: &[u8], wanted: &[u8]) -> bool {
    bytes.windows(wanted.len()).any(|window| window == wanted)
}
