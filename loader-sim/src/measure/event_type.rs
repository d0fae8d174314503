//! Types of events (PFP 1.05 §10.4.1), and of each what its digest is of and which PCR it belongs in.
//!
//! A type is a number that the log claims; no digest covers it. So nothing follows from a type alone.

/// A type as it stands in the log. Any number is one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EventType(pub u32);

macro_rules! event_types {
    ($($name:ident = $value:literal),+ $(,)?) => {
        /// The specification's types.
        #[expect(missing_docs, reason = "the names are the specification's, which says what they mean")]
        impl EventType {
            $(pub const $name: Self = Self($value);)+

            /// The name in the specification: `EV_SEPARATOR`.
            pub const fn name(self) -> Option<&'static str> {
                match self.0 {
                    $($value => Some(stringify!($name)),)+
                    _ => None,
                }
            }
        }
    };
}

event_types! {
    EV_PREBOOT_CERT = 0x0,
    EV_POST_CODE = 0x1,
    EV_UNUSED = 0x2,
    EV_NO_ACTION = 0x3,
    EV_SEPARATOR = 0x4,
    EV_ACTION = 0x5,
    EV_EVENT_TAG = 0x6,
    EV_S_CRTM_CONTENTS = 0x7,
    EV_S_CRTM_VERSION = 0x8,
    EV_CPU_MICROCODE = 0x9,
    EV_PLATFORM_CONFIG_FLAGS = 0xA,
    EV_TABLE_OF_DEVICES = 0xB,
    EV_COMPACT_HASH = 0xC,
    EV_IPL = 0xD,
    EV_IPL_PARTITION_DATA = 0xE,
    EV_NONHOST_CODE = 0xF,
    EV_NONHOST_CONFIG = 0x10,
    EV_NONHOST_INFO = 0x11,
    EV_OMIT_BOOT_DEVICE_EVENTS = 0x12,
    EV_POST_CODE2 = 0x13,
    EV_EFI_VARIABLE_DRIVER_CONFIG = 0x8000_0001,
    EV_EFI_VARIABLE_BOOT = 0x8000_0002,
    EV_EFI_BOOT_SERVICES_APPLICATION = 0x8000_0003,
    EV_EFI_BOOT_SERVICES_DRIVER = 0x8000_0004,
    EV_EFI_RUNTIME_SERVICES_DRIVER = 0x8000_0005,
    EV_EFI_GPT_EVENT = 0x8000_0006,
    EV_EFI_ACTION = 0x8000_0007,
    EV_EFI_PLATFORM_FIRMWARE_BLOB = 0x8000_0008,
    EV_EFI_HANDOFF_TABLES = 0x8000_0009,
    EV_EFI_PLATFORM_FIRMWARE_BLOB2 = 0x8000_000A,
    EV_EFI_HANDOFF_TABLES2 = 0x8000_000B,
    EV_EFI_VARIABLE_BOOT2 = 0x8000_000C,
    EV_EFI_GPT_EVENT2 = 0x8000_000D,
    EV_EFI_HCRTM_EVENT = 0x8000_0010,
    EV_EFI_VARIABLE_AUTHORITY = 0x8000_00E0,
    EV_EFI_SPDM_FIRMWARE_BLOB = 0x8000_00E1,
    EV_EFI_SPDM_FIRMWARE_CONFIG = 0x8000_00E2,
    EV_EFI_SPDM_DEVICE_POLICY = 0x8000_00E3,
    EV_EFI_SPDM_DEVICE_AUTHORITY = 0x8000_00E4,
}

/// Tags of events whose digest is of something else than the event: initrd and command line (Linux `drivers/firmware/efi/libstub/efistub.h`),
/// `loader.conf`, device trees, initrds, microcode, profile and SMBIOS tables (systemd `src/fundamental/tpm2-pcr.h`). No other tag is let off, so
/// that none can be changed into one by chance.
const TAGS_OF_ELSEWHERE: [u32; 10] =
    [0x8F3B_22EC, 0x8F3B_22ED, 0xF5BC_582A, 0x6C46_F751, 0x49DF_FE0F, 0xDAC0_8E1A, 0x13AE_D6DB, 0xD5CB_7CBC, 0xE0D4_7BC8, 0xC0B3_BD23];

/// What of an event's data its digest is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Digested {
    /// All of it.
    Data,
    /// All of it, or only a variable's value: firmware does either, and the name is a hint.
    DataOrValue,
    /// Something that is not in the log; the data is a hint.
    Elsewhere,
}

impl EventType {
    /// What the digest of an event with this type and `data` is of (PFP 1.05 §10.4.1, column "digest"; for `EV_EFI_VARIABLE_BOOT`, of which
    /// the PFP says the value, EDK II's `MeasureBootVariable` and older PFPs). A tagged event's is of its data, Windows' too, unless the tag is one of Linux's.
    pub fn digested(self, data: &[u8]) -> Digested {
        match self {
            Self::EV_SEPARATOR
            | Self::EV_ACTION
            | Self::EV_EFI_ACTION
            | Self::EV_S_CRTM_VERSION
            | Self::EV_OMIT_BOOT_DEVICE_EVENTS
            | Self::EV_EFI_VARIABLE_DRIVER_CONFIG
            | Self::EV_EFI_VARIABLE_AUTHORITY
            | Self::EV_EFI_VARIABLE_BOOT2
            | Self::EV_EFI_GPT_EVENT => Digested::Data,
            Self::EV_EFI_VARIABLE_BOOT => Digested::DataOrValue,
            Self::EV_EVENT_TAG if !hvci_engine::bytes::le32(data, 0).is_some_and(|id| TAGS_OF_ELSEWHERE.contains(&id)) => Digested::Data,
            _ => Digested::Elsewhere,
        }
    }

    /// The PCRs that the type may be in, where the specification names them (PFP 1.05 §3.3.4 and §10.4.1).
    pub const fn pcrs(self) -> Option<&'static [u32]> {
        match self {
            Self::EV_S_CRTM_VERSION | Self::EV_S_CRTM_CONTENTS | Self::EV_EFI_HCRTM_EVENT => Some(&[0]),
            Self::EV_EFI_BOOT_SERVICES_APPLICATION => Some(&[2, 4]),
            Self::EV_EFI_BOOT_SERVICES_DRIVER | Self::EV_EFI_RUNTIME_SERVICES_DRIVER => Some(&[0, 2]),
            Self::EV_EFI_GPT_EVENT | Self::EV_EFI_GPT_EVENT2 => Some(&[5]),
            Self::EV_EFI_VARIABLE_BOOT | Self::EV_EFI_VARIABLE_BOOT2 => Some(&[1]),
            Self::EV_EFI_VARIABLE_AUTHORITY => Some(&[7]),
            _ => None,
        }
    }
}
