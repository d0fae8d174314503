//! The kernel that runs: its command line, whether it is locked down, and the keys that it takes modules from.

use hvci_engine::{
    bytes::le16,
    image::ImageError,
    signature::{kernel::kernel_certificates, trust::Purposes},
};

use super::{End, windows::Module};

/// Most bytes that a kernel is unpacked to.
const MAX_KERNEL: usize = 1 << 28;

/// A kernel that was started.
#[derive(Debug)]
pub struct RunningKernel {
    /// Its path, as the boot loader said it.
    pub path: String,
    /// Its command line.
    pub command_line: String,
    /// Whether it is locked down to protect its integrity (`CONFIG_LOCK_DOWN_IN_EFI_SECURE_BOOT`): unsigned modules are refused. Modules whose
    /// signature is wrong are refused in any case.
    pub lockdown: bool,
    /// Whether it has the firmware's event log: not where it was started without its EFI stub, as GRUB does when Secure Boot is off.
    pub event_log: bool,
    image: Vec<u8>,
    windows: Option<Windows>,
}

/// What a kernel of Windows has besides.
#[derive(Debug)]
struct Windows {
    /// DER.
    anchors: Vec<Vec<u8>>,
    modules: Vec<Module>,
}

impl RunningKernel {
    /// The certificates built into it, DER: who signs its modules.
    ///
    /// # Errors
    /// What [`kernel_certificates`] says.
    pub fn certificates(&self) -> Result<Vec<Vec<u8>>, ImageError> {
        kernel_certificates(&self.image, MAX_KERNEL)
    }

    /// Whom it takes drivers from, besides those that every kernel of its kind does: certificates as DER, and what for.
    pub fn anchors(&self) -> (Vec<Vec<u8>>, Purposes) {
        match &self.windows {
            Some(windows) => (windows.anchors.clone(), Purposes::KERNEL),
            // a kernel without a list of keys has none to take modules by
            None => (self.certificates().unwrap_or_default(), Purposes::MODULE),
        }
    }

    /// What Windows started before its drivers, the OS loader and itself, which is measured as they are. Linux has none.
    pub fn modules(&self) -> &[Module] {
        self.windows.as_ref().map_or(&[], |windows| &windows.modules)
    }

    /// Its image.
    pub fn image(&self) -> &[u8] {
        &self.image
    }
}

/// Major and minor version that the image says (`kernel_version` of the setup header, `Documentation/arch/x86/boot.rst`).
pub(super) fn version(image: &[u8]) -> Option<(u32, u32)> {
    let at = usize::from(le16(image, 0x20E).filter(|at| *at != 0)?).checked_add(0x200)?;
    let text = image.get(at..)?.split(|byte| !byte.is_ascii_digit() && *byte != b'.').next()?;
    let mut numbers = std::str::from_utf8(text).ok()?.split('.').map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

pub(super) fn start(path: String, image: Vec<u8>, command_line: String, secure: bool, event_log: bool) -> End {
    End::Running(RunningKernel { path, command_line, lockdown: secure, event_log, image, windows: None })
}

/// A kernel of Windows, with whom it takes drivers from and what was measured on its way.
pub(super) fn start_windows(path: String, image: Vec<u8>, secure: bool, anchors: Vec<Vec<u8>>, modules: Vec<Module>) -> End {
    let windows = Some(Windows { anchors, modules });
    End::Running(RunningKernel { command_line: path.clone(), path, lockdown: secure, event_log: true, image, windows })
}
