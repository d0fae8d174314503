//! A device that copies words between guest memory and itself: the machine's means to attack memory by DMA.
//!
//! Its registers are five words of 64 bits in a page at [`MMIO`]:
//!
//! | offset | register | meaning |
//! |---|---|---|
//! | 0x00 | ADDRESS | GPA of the DMA |
//! | 0x08 | LENGTH | bytes of it, at most [`MAX_LENGTH`] |
//! | 0x10 | DATA | what is written over and over, or the first word that was read |
//! | 0x18 | COMMAND | 1: to memory, 2: from memory; and 0x10: as an assigned device, by the IOMMU, not as one that the VMM emulates |
//! | 0x20 | STATUS | 0: done, else the `HV_STATUS` why not |
//!
//! A driver of the guest sets the first three and writes COMMAND last. A register is accessed as a whole, or nothing happens.

use hvci_engine::{
    access::Access,
    addr::{Gpa, PAGE_SIZE},
    status::HvStatus,
};

use crate::vmm::Vmm;

/// Where its registers are: behind all RAM that a machine can have.
pub const MMIO: Gpa = Gpa(0xFD_0000_0000);
/// The longest DMA.
pub const MAX_LENGTH: u64 = 1 << 16;

/// COMMAND: from the device to memory.
pub const TO_MEMORY: u64 = 1;
/// COMMAND: from memory to the device.
pub const FROM_MEMORY: u64 = 2;
/// COMMAND: through the IOMMU.
pub const ASSIGNED: u64 = 0x10;

/// The device.
#[derive(Clone, Debug, Default)]
pub struct Device {
    address: u64,
    length: u64,
    data: u64,
    command: u64,
    status: u64,
}

impl Device {
    /// The offset of the register that an address is of, if it is in the device's page.
    pub fn register_at(gpa: Gpa) -> Option<u64> {
        gpa.0.checked_sub(MMIO.0).filter(|offset| *offset < PAGE_SIZE)
    }

    /// Reads a register.
    ///
    /// # Errors
    /// [`HvStatus::INVALID_PARAMETER`] for what is no register, or a part of one.
    pub fn load(&mut self, offset: u64, bytes: &mut [u8]) -> Result<(), HvStatus> {
        let word = self.register(offset)?.to_le_bytes();
        let whole = <&mut [u8; 8]>::try_from(bytes).map_err(|_| HvStatus::INVALID_PARAMETER)?;
        *whole = word;
        Ok(())
    }

    /// Writes a register; COMMAND does what it says before this returns.
    ///
    /// # Errors
    /// As [`load`](Self::load). What comes of a command stands in STATUS.
    pub fn store(&mut self, offset: u64, bytes: &[u8], vmm: &Vmm) -> Result<(), HvStatus> {
        let word = <[u8; 8]>::try_from(bytes).map(u64::from_le_bytes).map_err(|_| HvStatus::INVALID_PARAMETER)?;
        *self.register(offset)? = word;
        if offset == 0x18 {
            self.status = u64::from(self.run(vmm).err().unwrap_or(HvStatus::SUCCESS).0);
        }
        Ok(())
    }

    fn register(&mut self, offset: u64) -> Result<&mut u64, HvStatus> {
        match offset {
            0x00 => Ok(&mut self.address),
            0x08 => Ok(&mut self.length),
            0x10 => Ok(&mut self.data),
            0x18 => Ok(&mut self.command),
            0x20 => Ok(&mut self.status),
            _ => Err(HvStatus::INVALID_PARAMETER),
        }
    }

    fn run(&mut self, vmm: &Vmm) -> Result<(), HvStatus> {
        if self.length == 0 || self.length > MAX_LENGTH {
            return Err(HvStatus::INVALID_PARAMETER);
        }
        let mut bytes: Vec<u8> = self.data.to_le_bytes().into_iter().cycle().take(usize::try_from(self.length).unwrap_or(0)).collect();
        let gpa = Gpa(self.address);
        match self.command {
            TO_MEMORY => vmm.write(gpa, &bytes),
            FROM_MEMORY => vmm.read(gpa, &mut bytes),
            command if command == TO_MEMORY | ASSIGNED => vmm.dma(gpa, Access::Write, &mut bytes),
            command if command == FROM_MEMORY | ASSIGNED => vmm.dma(gpa, Access::Read, &mut bytes),
            _ => Err(HvStatus::INVALID_PARAMETER),
        }?;
        self.data = bytes.first_chunk().map_or(0, |word| u64::from_le_bytes(*word));
        Ok(())
    }
}
