//! What Windows measures of its settings and drivers (`wbcl.h`; SIPA events in EV_EVENT_TAG), which this machine's host measures of HVCI,
//! Credential Guard and each driver, whatever the guest is.
//!
//! ```text
//! PCR 12   TRUSTBOUNDARY { settings }, then the separator "WBCL": nothing behind it counts
//! PCR 13   LOADEDMODULE { path, size, hash algorithm, authentihash, publisher, validated }, one for each driver that was loaded
//! PCR 14   AUTHORITYPUBKEY: the key of whoever signed one, once (SubjectPublicKeyInfo); of a guest that is Windows, as shim uses it
//! ```
//! PCR 13 and 14 of Windows end with that separator too.

use hvci_engine::digest::Digest;

use super::{
    data::{tagged, utf16},
    event_type::EventType,
    record::{MeasureError, Recorder},
};

/// Tags. The bit 0x40000000 says that what follows is tags again.
#[expect(missing_docs, reason = "the names are those of wbcl.h, which says what they mean")]
pub mod tag {
    pub const AGGREGATION: u32 = 0x4000_0000;
    pub const TRUST_BOUNDARY: u32 = 0x4001_0001;
    pub const LOADED_MODULE: u32 = 0x4001_0003;
    pub const BOOT_DEBUGGING: u32 = 0x0004_0001;
    pub const KERNEL_DEBUG: u32 = 0x0005_0001;
    pub const CODE_INTEGRITY: u32 = 0x0005_0002;
    pub const TEST_SIGNING: u32 = 0x0005_0003;
    pub const SAFE_MODE: u32 = 0x0005_0005;
    pub const WIN_PE: u32 = 0x0005_0006;
    pub const HYPERVISOR_LAUNCH_TYPE: u32 = 0x0005_000A;
    pub const HYPERVISOR_DEBUG: u32 = 0x0005_000D;
    pub const VSM_LAUNCH_TYPE: u32 = 0x0005_0012;
    pub const FLIGHT_SIGNING: u32 = 0x0005_0021;
    pub const LSAISO_CONFIG: u32 = 0x0005_0028;
    pub const AUTHORITY_PUBLIC_KEY: u32 = 0x0006_0002;
    pub const FILE_PATH: u32 = 0x0007_0001;
    pub const IMAGE_SIZE: u32 = 0x0007_0002;
    pub const HASH_ALGORITHM: u32 = 0x0007_0003;
    pub const AUTHENTICODE_HASH: u32 = 0x0007_0004;
    pub const PUBLISHER: u32 = 0x0007_0008;
    pub const IMAGE_VALIDATED: u32 = 0x0007_000A;
    pub const VSM_REQUIRED: u32 = 0x000A_0001;
    pub const HVCI_POLICY: u32 = 0x000A_0007;
}

/// CALG_SHA_256
const SHA_256: u32 = 0x800C;

/// What of a machine is on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The hypervisor enforces code integrity.
    pub hvci: bool,
    /// Credentials are kept in VTL1.
    pub credential_guard: bool,
}

/// A driver that was loaded.
#[derive(Clone, Copy, Debug)]
pub struct LoadedDriver<'d> {
    /// The guest's name for it.
    pub path: &'d str,
    /// Its length.
    pub size: u64,
    /// Its authentihash; of a Linux module the digest that is signed.
    pub authentihash: &'d Digest,
    /// Who signed it.
    pub publisher: &'d str,
    /// With which key, SubjectPublicKeyInfo; for a guest that is Windows alone.
    pub key: Option<&'d [u8]>,
}

/// Measures the settings. There may be more until [`measure_boundary`].
///
/// # Errors
/// [`MeasureError`].
pub fn measure_settings(recorder: &mut Recorder<'_>, settings: Settings) -> Result<(), MeasureError> {
    let vbs = settings.hvci || settings.credential_guard;
    let number = |on: bool| u64::from(on).to_le_bytes().to_vec();
    let byte = |on: bool| vec![u8::from(on)];
    let list = [
        (tag::BOOT_DEBUGGING, byte(false)),
        (tag::KERNEL_DEBUG, byte(false)),
        (tag::CODE_INTEGRITY, byte(true)),
        (tag::TEST_SIGNING, byte(false)),
        (tag::SAFE_MODE, byte(false)),
        (tag::WIN_PE, byte(false)),
        (tag::FLIGHT_SIGNING, byte(false)),
        (tag::HYPERVISOR_LAUNCH_TYPE, number(vbs)),
        (tag::HYPERVISOR_DEBUG, number(false)),
        (tag::VSM_LAUNCH_TYPE, number(vbs)),
        (tag::VSM_REQUIRED, byte(vbs)),
        (tag::HVCI_POLICY, byte(settings.hvci)),
        (tag::LSAISO_CONFIG, u32::from(settings.credential_guard).to_le_bytes().to_vec()),
    ];
    let tags: Vec<u8> = list.into_iter().flat_map(|(id, data)| tagged(id, &data)).collect();
    recorder.data(12, EventType::EV_EVENT_TAG, &tagged(tag::TRUST_BOUNDARY, &tags))
}

/// Measures that there are no more settings. What was sealed to the settings alone is not released any more.
///
/// # Errors
/// [`MeasureError`].
pub fn measure_boundary(recorder: &mut Recorder<'_>) -> Result<(), MeasureError> {
    recorder.data(12, EventType::EV_SEPARATOR, b"WBCL")
}

/// Measures that Windows loads nothing more before it runs.
///
/// # Errors
/// [`MeasureError`].
pub fn measure_end(recorder: &mut Recorder<'_>) -> Result<(), MeasureError> {
    [13, 14].into_iter().try_for_each(|pcr| recorder.data(pcr, EventType::EV_SEPARATOR, b"WBCL"))
}

/// Measures a driver that was loaded, and once whose it is.
///
/// # Errors
/// [`MeasureError`].
pub fn measure_driver(recorder: &mut Recorder<'_>, driver: &LoadedDriver<'_>) -> Result<(), MeasureError> {
    let text = |text: &str| utf16(&format!("{text}\0"));
    let list = [
        (tag::FILE_PATH, text(driver.path)),
        (tag::IMAGE_SIZE, driver.size.to_le_bytes().to_vec()),
        (tag::HASH_ALGORITHM, SHA_256.to_le_bytes().to_vec()),
        (tag::AUTHENTICODE_HASH, driver.authentihash.as_bytes().to_vec()),
        (tag::PUBLISHER, text(driver.publisher)),
        (tag::IMAGE_VALIDATED, vec![1]),
    ];
    let tags: Vec<u8> = list.into_iter().flat_map(|(id, data)| tagged(id, &data)).collect();
    recorder.data(13, EventType::EV_EVENT_TAG, &tagged(tag::LOADED_MODULE, &tags))?;
    match driver.key {
        Some(key) => recorder.once(14, EventType::EV_EVENT_TAG, tagged(tag::AUTHORITY_PUBLIC_KEY, key)),
        None => Ok(()),
    }
}
