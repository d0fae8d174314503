//! What an event is: types, algorithms and one record.

use std::fmt;

use hvci_engine::digest::DigestAlg;

/// Number of PCRs that a log may measure into (PC Client Platform TPM Profile §4.6).
pub const PCRS: usize = 24;

/// TPM_ALG_ID of a digest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Algorithm(pub u16);

impl Algorithm {
    /// Those that are calculated here.
    const KNOWN: [(Self, DigestAlg); 4] = [
        (Self(0x0004), DigestAlg::Sha1),
        (Self(0x000B), DigestAlg::Sha256),
        (Self(0x000C), DigestAlg::Sha384),
        (Self(0x000D), DigestAlg::Sha512),
    ];

    /// The number of an algorithm; `None` for one that TPMs do not have.
    pub fn of(digest: DigestAlg) -> Option<Self> {
        Self::KNOWN.into_iter().find(|(_, known)| *known == digest).map(|(number, _)| number)
    }

    /// The algorithm; `None` for one that is not calculated here.
    pub fn digest(self) -> Option<DigestAlg> {
        Self::KNOWN.into_iter().find(|(number, _)| *number == self).map(|(_, known)| known)
    }
}

impl fmt::Display for Algorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.digest() {
            Some(known) => known.fmt(f),
            None => write!(f, "algorithm {:#06x}", self.0),
        }
    }
}

/// Type of an event. Those that are not known keep their number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EventType(pub u32);

macro_rules! event_types {
    ($($name:ident = $number:literal $text:literal;)*) => {
        impl EventType {
            $(#[doc = concat!("`", $text, "`")] pub const $name: Self = Self($number);)*

            /// The specification's name, if it has one.
            pub const fn name(self) -> Option<&'static str> {
                match self.0 {
                    $($number => Some($text),)*
                    _ => None,
                }
            }
        }
    };
}

event_types! {
    PREBOOT_CERT = 0x0 "EV_PREBOOT_CERT";
    POST_CODE = 0x1 "EV_POST_CODE";
    UNUSED = 0x2 "EV_UNUSED";
    NO_ACTION = 0x3 "EV_NO_ACTION";
    SEPARATOR = 0x4 "EV_SEPARATOR";
    ACTION = 0x5 "EV_ACTION";
    EVENT_TAG = 0x6 "EV_EVENT_TAG";
    S_CRTM_CONTENTS = 0x7 "EV_S_CRTM_CONTENTS";
    S_CRTM_VERSION = 0x8 "EV_S_CRTM_VERSION";
    CPU_MICROCODE = 0x9 "EV_CPU_MICROCODE";
    PLATFORM_CONFIG_FLAGS = 0xA "EV_PLATFORM_CONFIG_FLAGS";
    TABLE_OF_DEVICES = 0xB "EV_TABLE_OF_DEVICES";
    COMPACT_HASH = 0xC "EV_COMPACT_HASH";
    IPL = 0xD "EV_IPL";
    IPL_PARTITION_DATA = 0xE "EV_IPL_PARTITION_DATA";
    NONHOST_CODE = 0xF "EV_NONHOST_CODE";
    NONHOST_CONFIG = 0x10 "EV_NONHOST_CONFIG";
    NONHOST_INFO = 0x11 "EV_NONHOST_INFO";
    OMIT_BOOT_DEVICE_EVENTS = 0x12 "EV_OMIT_BOOT_DEVICE_EVENTS";
    POST_CODE2 = 0x13 "EV_POST_CODE2";
    EFI_VARIABLE_DRIVER_CONFIG = 0x8000_0001 "EV_EFI_VARIABLE_DRIVER_CONFIG";
    EFI_VARIABLE_BOOT = 0x8000_0002 "EV_EFI_VARIABLE_BOOT";
    EFI_BOOT_SERVICES_APPLICATION = 0x8000_0003 "EV_EFI_BOOT_SERVICES_APPLICATION";
    EFI_BOOT_SERVICES_DRIVER = 0x8000_0004 "EV_EFI_BOOT_SERVICES_DRIVER";
    EFI_RUNTIME_SERVICES_DRIVER = 0x8000_0005 "EV_EFI_RUNTIME_SERVICES_DRIVER";
    EFI_GPT_EVENT = 0x8000_0006 "EV_EFI_GPT_EVENT";
    EFI_ACTION = 0x8000_0007 "EV_EFI_ACTION";
    EFI_PLATFORM_FIRMWARE_BLOB = 0x8000_0008 "EV_EFI_PLATFORM_FIRMWARE_BLOB";
    EFI_HANDOFF_TABLES = 0x8000_0009 "EV_EFI_HANDOFF_TABLES";
    EFI_PLATFORM_FIRMWARE_BLOB2 = 0x8000_000A "EV_EFI_PLATFORM_FIRMWARE_BLOB2";
    EFI_HANDOFF_TABLES2 = 0x8000_000B "EV_EFI_HANDOFF_TABLES2";
    EFI_VARIABLE_BOOT2 = 0x8000_000C "EV_EFI_VARIABLE_BOOT2";
    EFI_GPT_EVENT2 = 0x8000_000D "EV_EFI_GPT_EVENT2";
    EFI_HCRTM_EVENT = 0x8000_0010 "EV_EFI_HCRTM_EVENT";
    EFI_VARIABLE_AUTHORITY = 0x8000_00E0 "EV_EFI_VARIABLE_AUTHORITY";
    EFI_SPDM_FIRMWARE_BLOB = 0x8000_00E1 "EV_EFI_SPDM_FIRMWARE_BLOB";
    EFI_SPDM_FIRMWARE_CONFIG = 0x8000_00E2 "EV_EFI_SPDM_FIRMWARE_CONFIG";
    EFI_SPDM_DEVICE_POLICY = 0x8000_00E3 "EV_EFI_SPDM_DEVICE_POLICY";
    EFI_SPDM_DEVICE_AUTHORITY = 0x8000_00E4 "EV_EFI_SPDM_DEVICE_AUTHORITY";
}

impl fmt::Display for EventType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => f.pad(name),
            None => f.pad(&format!("event type {:#x}", self.0)),
        }
    }
}

/// One record of a log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event<'a> {
    /// Its place in the log, from 0.
    pub number: usize,
    /// Where in the log's bytes it begins.
    pub offset: usize,
    /// The PCR that it was measured into.
    pub pcr: u32,
    /// What it is, by its own account.
    pub kind: EventType,
    /// What the PCR was extended with, by bank.
    pub digests: Vec<(Algorithm, &'a [u8])>,
    /// What was measured, or a description of it.
    pub data: &'a [u8],
}

impl<'a> Event<'a> {
    /// What the PCR of this bank was extended with.
    pub fn digest(&self, bank: Algorithm) -> Option<&'a [u8]> {
        self.digests.iter().find(|(algorithm, _)| *algorithm == bank).map(|(_, digest)| *digest)
    }

    /// Whether a PCR was extended: EV_NO_ACTION is only written down.
    pub fn is_measured(&self) -> bool {
        self.kind != EventType::NO_ACTION
    }
}
