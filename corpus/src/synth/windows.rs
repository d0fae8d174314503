//! A boot chain as Windows has one: boot manager, OS loader, kernel and a driver, signed by the made-up publishers of the kernel.

use ::der::Encode;
use hvci_engine::facts::FileKind;

use super::{Result, authenticode::signed, pe::Image, pki::Pki};

/// What a machine boots.
#[derive(Clone, Debug)]
pub struct WindowsBoot {
    /// Paths on its disk, and contents.
    pub files: Vec<(&'static str, Vec<u8>)>,
    /// The certificate, DER, by which firmware is to start the boot manager: the issuer of all that is signed here.
    pub authority: Vec<u8>,
}

/// Makes one. `version` is the boot manager's security version, if it says one.
///
/// # Errors
/// None that occurs.
pub fn windows_boot(pki: &Pki, version: Option<[u16; 2]>) -> Result<WindowsBoot> {
    let image = |kind, name: &str, internal_name| Image { version: Some([10, 0, 1, 1]), internal_name, ..Image::of(kind, name) };
    let manager = Image { security_version: version, ..image(FileKind::PeEfi, "bootmgfw", Some("bootmgr.exe")) };
    let loader = image(FileKind::PeEfi, "winload", Some("osloader.exe"));
    let kernel = Image { imports: ("", Vec::new()), ..image(FileKind::PeDriver, "ntoskrnl", Some("ntkrnlmp.exe")) };
    let driver = image(FileKind::PeDriver, "example", None);
    let sign = |image: &Image, signer: &str| signed(&image.build()?, pki.get(signer)?, &pki.issuers(signer)?);
    Ok(WindowsBoot {
        files: vec![
            ("/EFI/BOOT/BOOTX64.EFI", sign(&manager, "system")?),
            ("/Windows/System32/winload.efi", sign(&loader, "system")?),
            ("/Windows/System32/ntoskrnl.exe", sign(&kernel, "system")?),
            ("/drivers/example.sys", sign(&driver, "whql")?),
        ],
        authority: pki.get("kernel ca")?.certificate.to_der()?,
    })
}
