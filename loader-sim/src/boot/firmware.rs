//! The firmware from power-on to its first image, and the order in which it measures (PFP 1.05 §3.3; edk2, `Tcg2Dxe.c`,
//! `DxeTpm2MeasureBootLib`; OVMF).

use hvci_engine::{bytes::le16, uefi::Guid};

use super::{Booting, End, Fault};
use crate::{
    firmware::variable::{Attributes, GLOBAL, IMAGE_SECURITY},
    measure::{EventType, data::utf16, device_path},
};

/// What firmware starts from a disk for which there is no boot option (UEFI 2.10 §3.5.1.1).
const DEFAULT_FILE: &str = "\\EFI\\BOOT\\BOOTX64.EFI";
/// Where the firmware volume is said to be.
const VOLUME_AT: u64 = 0xFFC8_4000;
/// Most boot options that are tried.
const MAX_OPTIONS: usize = 64;
const BOOT_ATTRIBUTES: Attributes = Attributes(0x07);

impl Booting<'_, '_> {
    pub(super) fn power_on(&mut self, firmware: &[u8]) -> Result<End, Fault> {
        self.recorder.data(0, EventType::EV_S_CRTM_VERSION, &[0, 0])?;
        let mut place = VOLUME_AT.to_le_bytes().to_vec();
        place.extend(hvci_engine::bytes::widen(firmware.len()).to_le_bytes());
        self.recorder.of(0, EventType::EV_EFI_PLATFORM_FIRMWARE_BLOB, firmware, &place)?;

        self.recorder.config("SecureBoot", GLOBAL, &[u8::from(self.secure_boot)])?;
        for (name, vendor) in [("PK", GLOBAL), ("KEK", GLOBAL), ("db", IMAGE_SECURITY), ("dbx", IMAGE_SECURITY)] {
            let value = self.value(name, vendor).unwrap_or_default();
            self.recorder.config(name, vendor, &value)?;
        }
        self.recorder.separator(7)?;

        let options = self.boot_options()?;
        self.recorder.data(4, EventType::EV_EFI_ACTION, b"Calling EFI Application from Boot Option")?;
        for pcr in 0..7 {
            self.recorder.separator(pcr)?;
        }
        let mut end = End::Stopped { stage: None, reason: "firmware: no boot option leads to a file".to_owned() };
        for file in options {
            let Some(bytes) = self.disk.read(&file)? else { continue };
            let first = self.stages.len();
            end = self.firmware_starts(&file, &bytes, "", true)?;
            // one that is refused leaves the turn to the next
            if self.stages.get(first).is_some_and(|stage| !stage.is_refused()) {
                break;
            }
        }
        Ok(end)
    }

    fn value(&self, name: &str, vendor: Guid) -> Option<Vec<u8>> {
        self.variables.get(name, vendor).map(|v| v.data.clone())
    }

    /// The files of the boot options in BootOrder, which are measured; of a machine that has none, those that OVMF makes for its disk.
    fn boot_options(&mut self) -> Result<Vec<String>, Fault> {
        if self.value("BootOrder", GLOBAL).is_none() {
            let option = load_option("UEFI Disk", &device_path::of_disk(DEFAULT_FILE));
            self.variables.set("Boot0001", GLOBAL, BOOT_ATTRIBUTES, &option)?;
            self.variables.set("BootOrder", GLOBAL, BOOT_ATTRIBUTES, &1_u16.to_le_bytes())?;
        }
        let order = self.value("BootOrder", GLOBAL).unwrap_or_default();
        self.recorder.boot_option("BootOrder", GLOBAL, &order)?;
        let mut files = Vec::new();
        for number in order.chunks_exact(2).take(MAX_OPTIONS).filter_map(|pair| le16(pair, 0)) {
            let name = format!("Boot{number:04X}");
            let Some(option) = self.value(&name, GLOBAL) else { continue };
            self.recorder.boot_option(&name, GLOBAL, &option)?;
            // an option for a whole disk starts the default file
            files.extend(path_of(&option).map(|path| device_path::file(path).unwrap_or_else(|| DEFAULT_FILE.to_owned())));
        }
        Ok(files)
    }
}

/// EFI_LOAD_OPTION (UEFI 2.10 §3.1.3), active.
pub(super) fn load_option(description: &str, path: &[u8]) -> Vec<u8> {
    let mut option = 1_u32.to_le_bytes().to_vec();
    option.extend(u16::try_from(path.len()).unwrap_or(u16::MAX).to_le_bytes());
    option.extend(utf16(&format!("{description}\0")));
    option.extend(path);
    option
}

/// The device path of a load option.
fn path_of(option: &[u8]) -> Option<&[u8]> {
    let len = usize::from(le16(option, 4)?);
    let mut at = 6_usize;
    while le16(option, at)? != 0 {
        at = at.checked_add(2)?;
    }
    hvci_engine::bytes::slice(option, at.checked_add(2)?, len)
}
