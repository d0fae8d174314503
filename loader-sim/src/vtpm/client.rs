//! What firmware and the operating system ask of a TPM, as commands of `tpm2-protocol`.
//!
//! Authorisation is by empty passwords, which new hierarchies have. A response is taken apart by the specification's own sizes, because what a
//! quote signs is the bytes as they came. Every key is a primary one: the same TPM makes the same key from its seed.

use hvci_engine::{
    bytes::{array, be32, index, slice},
    digest::{Digest, DigestAlg},
};
use tpm2_protocol::{
    TpmWriter,
    basic::{TpmBuffer, TpmHandle, TpmUint16, TpmUint32},
    data::{
        Tpm2bDigest, Tpm2bEccParameter, Tpm2bPublic, Tpm2bSensitiveCreate, TpmAlgId, TpmCap, TpmCc, TpmEccCurve, TpmRh, TpmSt, TpmSu,
        TpmaObject, TpmaSession, TpmlDigestValues, TpmlPcrSelection, TpmsAuthCommand, TpmsEccParms, TpmsEccPoint, TpmsPcrSelect,
        TpmsPcrSelection, TpmsSchemeHash, TpmsSensitiveCreate, TpmtEccScheme, TpmtHa, TpmtKdfScheme, TpmtPublic, TpmtSigScheme,
        TpmtSymDefObject, TpmuAsymScheme, TpmuHa, TpmuPublicId, TpmuPublicParms, TpmuSymKeyBits, TpmuSymMode,
    },
    frame::{
        TpmCreatePrimaryCommand, TpmFlushContextCommand, TpmFrame, TpmGetCapabilityCommand, TpmHierarchyChangeAuthCommand,
        TpmPcrExtendCommand, TpmPcrReadCommand, TpmQuoteCommand, TpmReadClockCommand, TpmShutdownCommand, TpmStartupCommand,
        tpm_marshal_command,
    },
};

mod sealing;

pub use sealing::{Approval, CounterIndex, Sealed, Terms, approver_name, counter_name, pcr_policy, static_policy};

use super::{MAX_MESSAGE, Tpm, TpmFailed};
use crate::{
    attest::quote::Clock,
    measure::{TpmAlg, record::Extend},
};

/// Why a TPM did not do what it was asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ClientError {
    /// There is none any more.
    #[error(transparent)]
    Failed(#[from] TpmFailed),
    /// It answers with an error of its own.
    #[error("the TPM answers {code:#x} to {command:?}")]
    Refused {
        /// TPM_RC.
        code: u32,
        /// Which command.
        command: TpmCc,
    },
    /// What it answers is no response to that command.
    #[error("the TPM's answer to {0:?} cannot be read")]
    Unreadable(TpmCc),
    /// A command that cannot be written: more than a TPM takes.
    #[error("{0:?} is longer than a command can be")]
    TooLong(TpmCc),
}

/// A key that is loaded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoadedKey {
    /// Its handle.
    pub handle: u32,
    /// TPM2B_PUBLIC.
    pub public: Vec<u8>,
}

/// A quote as the TPM made it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Quote {
    /// TPMS_ATTEST, which is what is signed.
    pub message: Vec<u8>,
    /// TPMT_SIGNATURE.
    pub signature: Vec<u8>,
}

/// Which primary key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyUse {
    /// Signs what the TPM itself says: restricted, ECDSA on P-256.
    Attestation,
    /// Identifies the TPM: the template L-2 of the EK Credential Profile 2.5, ECC P-256.
    Endorsement,
}

/// PolicySecret(TPM_RH_ENDORSEMENT), as the EK Credential Profile has it (B.6.5, PolicyA).
const ENDORSEMENT_POLICY: [u8; 32] = [
    0x83, 0x71, 0x97, 0x67, 0x44, 0x84, 0xB3, 0xF8, 0x1A, 0x90, 0xCC, 0x8D, 0x46, 0xA5, 0xD7, 0x24, 0xFD, 0x52, 0xD7, 0x6E, 0x06, 0x52,
    0x0B, 0x64, 0xF2, 0xA1, 0xDA, 0x1B, 0x33, 0x14, 0x69, 0xAA,
];
/// fixedTPM, fixedParent, sensitiveDataOrigin, userWithAuth, noDA, restricted, sign. A guest that locks its TPM by wrong passwords attests all the
/// same.
const ATTESTATION_ATTRIBUTES: u32 = 0x0005_0472;
/// fixedTPM, fixedParent, sensitiveDataOrigin, adminWithPolicy, restricted, decrypt.
const ENDORSEMENT_ATTRIBUTES: u32 = 0x0003_00B2;
const SIZEOF_HEADER: usize = 10;

/// How a command is authorised.
#[derive(Clone, Copy)]
enum Auth<'a> {
    /// Not at all.
    None,
    /// By a password, which may be empty.
    Password(&'a [u8]),
    /// By a policy session that ends with the command.
    Session(u32),
}

/// Somebody who talks to a TPM.
#[derive(Debug)]
pub struct Client<'t> {
    tpm: &'t mut dyn Tpm,
}

impl<'t> Client<'t> {
    /// Of this TPM.
    pub fn new(tpm: &'t mut dyn Tpm) -> Self {
        Self { tpm }
    }

    /// A reset, and what firmware sends after it: TPM2_Startup, and an authorisation of the platform hierarchy that nobody is told, so that the guest
    /// cannot use it (edk2, `SecurityPkg/Library/PeiDxeTpmPlatformHierarchyLib`). It holds until the next reset.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn power_on(&mut self, platform_auth: &[u8; 32]) -> Result<(), ClientError> {
        self.tpm.reset()?;
        self.startup()?;
        let new_auth = TpmBuffer::try_from(&platform_auth[..]).map_err(|_| ClientError::TooLong(TpmCc::HierarchyChangeAuth))?;
        let command = TpmHierarchyChangeAuthCommand { new_auth, handles: [TpmHandle::new(TpmRh::Platform.value())] };
        self.run(&command, Auth::Password(&[])).map(drop)
    }

    /// TPM2_Startup(CLEAR), the first command after a reset.
    ///
    /// # Errors
    /// [`ClientError`], of this and all that follow.
    pub fn startup(&mut self) -> Result<(), ClientError> {
        self.run(&TpmStartupCommand { startup_type: TpmSu::Clear, handles: [] }, Auth::None).map(drop)
    }

    /// TPM2_Shutdown(CLEAR): the machine stops in order.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn shutdown(&mut self) -> Result<(), ClientError> {
        self.run(&TpmShutdownCommand { shutdown_type: TpmSu::Clear, handles: [] }, Auth::None).map(drop)
    }

    /// The banks that are extended, in the TPM's order.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn banks(&mut self) -> Result<Vec<DigestAlg>, ClientError> {
        let command =
            TpmGetCapabilityCommand { cap: TpmCap::Pcrs, property: TpmUint32::new(0), property_count: TpmUint32::new(16), handles: [] };
        let body = self.run(&command, Auth::None)?;
        // moreData, capability, count, then hash and bitmap of each
        let read = || {
            let mut banks = Vec::new();
            let mut at = 9_usize;
            for _ in 0..be32(&body, 5)?.min(16) {
                let hash = u16::from_be_bytes(array(&body, at)?);
                let [len] = array(&body, at.checked_add(2)?)?;
                let select = slice(&body, at.checked_add(3)?, usize::from(len))?;
                if select.iter().any(|byte| *byte != 0) {
                    banks.push(TpmAlg(hash).digest_alg()?);
                }
                at = at.checked_add(3)?.checked_add(usize::from(len))?;
            }
            Some(banks)
        };
        read().ok_or(ClientError::Unreadable(TpmCc::GetCapability))
    }

    /// How often the TPM was reset and restarted, and whether its clock is safe (TPMS_CLOCK_INFO).
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn clock(&mut self) -> Result<Clock, ClientError> {
        let body = self.run(&TpmReadClockCommand { handles: [] }, Auth::None)?;
        // time, clock: u64 each
        let read = || {
            let [safe] = array(&body, 24)?;
            Some(Clock { reset_count: be32(&body, 16)?, restart_count: be32(&body, 20)?, safe: safe == 1 })
        };
        read().ok_or(ClientError::Unreadable(TpmCc::ReadClock))
    }

    /// Makes and loads a primary key of the endorsement hierarchy.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn create_primary(&mut self, key: KeyUse) -> Result<LoadedKey, ClientError> {
        let command = TpmCreatePrimaryCommand {
            in_sensitive: Tpm2bSensitiveCreate { inner: TpmsSensitiveCreate::default() },
            in_public: Tpm2bPublic { inner: template(key) },
            outside_info: TpmBuffer::default(),
            creation_pcr: TpmlPcrSelection::default(),
            handles: [TpmHandle::new(TpmRh::Endorsement.value())],
        };
        let response = self.response(&command, Auth::Password(&[]))?;
        // the handle stands before the parameters' size
        let read = || {
            let size = u16::from_be_bytes(array(&response, SIZEOF_HEADER.checked_add(8)?)?);
            let public = slice(&response, SIZEOF_HEADER.checked_add(8)?, usize::from(size).checked_add(2)?)?;
            Some(LoadedKey { handle: be32(&response, SIZEOF_HEADER)?, public: public.to_vec() })
        };
        read().ok_or(ClientError::Unreadable(TpmCc::CreatePrimary))
    }

    /// Removes what is loaded under a handle.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn flush(&mut self, handle: u32) -> Result<(), ClientError> {
        self.run(&TpmFlushContextCommand { flush_handle: TpmUint32::new(handle), handles: [] }, Auth::None).map(drop)
    }

    /// Has PCRs of one bank quoted.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn quote(&mut self, key: u32, nonce: &[u8], bank: DigestAlg, pcrs: &[u32]) -> Result<Quote, ClientError> {
        let too_long = |_| ClientError::TooLong(TpmCc::Quote);
        let mut pcr_select = TpmlPcrSelection::default();
        pcr_select.try_push(selection(bank, pcrs)).map_err(too_long)?;
        let command = TpmQuoteCommand {
            qualifying_data: TpmBuffer::try_from(nonce).map_err(too_long)?,
            in_scheme: TpmtSigScheme::default(),
            pcr_select,
            handles: [TpmHandle::new(key)],
        };
        let body = self.run(&command, Auth::Password(&[]))?;
        let read = || {
            let size = usize::from(u16::from_be_bytes(array(&body, 0)?));
            Some(Quote { message: slice(&body, 2, size)?.to_vec(), signature: body.get(size.checked_add(2)?..)?.to_vec() })
        };
        read().ok_or(ClientError::Unreadable(TpmCc::Quote))
    }

    /// Values of PCRs of one bank, in the order of `pcrs`, which ascend. A TPM gives eight at a time.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn pcr_values(&mut self, bank: DigestAlg, pcrs: &[u32]) -> Result<Vec<Digest>, ClientError> {
        let unreadable = || ClientError::Unreadable(TpmCc::PcrRead);
        let mut values = Vec::new();
        for some in pcrs.chunks(8) {
            let mut pcr_selection_in = TpmlPcrSelection::default();
            pcr_selection_in.try_push(selection(bank, some)).map_err(|_| ClientError::TooLong(TpmCc::PcrRead))?;
            let body = self.run(&TpmPcrReadCommand { pcr_selection_in, handles: [] }, Auth::None)?;
            // counter, one selection of three bytes, count
            let mut at = 18_usize;
            for _ in some {
                let read = || {
                    let size = usize::from(u16::from_be_bytes(array(&body, at)?));
                    Some((Digest::new(bank, slice(&body, at.checked_add(2)?, size)?)?, at.checked_add(2)?.checked_add(size)?))
                };
                let (value, next) = read().ok_or_else(unreadable)?;
                values.push(value);
                at = next;
            }
        }
        Ok(values)
    }

    /// Extends a PCR with a digest for each bank.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn pcr_extend(&mut self, pcr: u32, digests: &[Digest]) -> Result<(), ClientError> {
        let too_long = || ClientError::TooLong(TpmCc::PcrExtend);
        let mut values = TpmlDigestValues::default();
        for digest in digests {
            let hash_alg = TpmAlg::of(digest.alg()).and_then(|alg| TpmAlgId::try_from(alg.0).ok());
            let (hash_alg, bytes) = hash_alg.zip(TpmBuffer::try_from(digest.as_bytes()).ok()).ok_or_else(too_long)?;
            values.try_push(TpmtHa { hash_alg, digest: TpmuHa::Digest(bytes) }).map_err(|_| too_long())?;
        }
        let command = TpmPcrExtendCommand { digests: values, handles: [TpmHandle::new(pcr)] };
        self.run(&command, Auth::Password(&[])).map(drop)
    }

    /// Runs a command: the parameters of its response.
    fn run<C: TpmFrame>(&mut self, command: &C, auth: Auth<'_>) -> Result<Vec<u8>, ClientError> {
        let response = self.response(command, auth)?;
        let read = || {
            if matches!(auth, Auth::None) {
                return response.get(SIZEOF_HEADER..);
            }
            let size = index(be32(&response, SIZEOF_HEADER)?);
            slice(&response, SIZEOF_HEADER.checked_add(4)?, size)
        };
        read().map(<[u8]>::to_vec).ok_or_else(|| ClientError::Unreadable(command.cc()))
    }

    /// Runs a command: its response, if it is one of success.
    fn response<C: TpmFrame>(&mut self, command: &C, auth: Auth<'_>) -> Result<Vec<u8>, ClientError> {
        let mut buffer = [0; MAX_MESSAGE];
        let mut writer = TpmWriter::new(&mut buffer);
        let (session, password) = match auth {
            Auth::None => (None, &[][..]),
            Auth::Password(password) => (Some(TpmRh::Pw.value()), password),
            Auth::Session(handle) => (Some(handle), &[][..]),
        };
        let hmac = TpmBuffer::try_from(password).map_err(|_| ClientError::TooLong(command.cc()))?;
        let sessions: Vec<TpmsAuthCommand> = session
            .map(|handle| TpmsAuthCommand {
                session_handle: TpmHandle::new(handle),
                nonce: TpmBuffer::default(),
                session_attributes: TpmaSession::default(),
                hmac,
            })
            .into_iter()
            .collect();
        let tag = if sessions.is_empty() { TpmSt::NoSessions } else { TpmSt::Sessions };
        tpm_marshal_command(command, tag, &sessions, &mut writer).map_err(|_| ClientError::TooLong(command.cc()))?;
        self.exec(writer.as_bytes(), command.cc())
    }

    /// Runs a command as it stands: its response, if it is one of success.
    fn exec(&mut self, bytes: &[u8], command: TpmCc) -> Result<Vec<u8>, ClientError> {
        let mut response = self.tpm.exec(bytes)?;
        if be32(&response, 6) == Some(RETRY) {
            // after a stop out of order a TPM asks for the command again, once (T23)
            response = self.tpm.exec(bytes)?;
        }
        match be32(&response, 6) {
            Some(0) => Ok(response),
            Some(code) => Err(ClientError::Refused { code, command }),
            None => Err(ClientError::Unreadable(command)),
        }
    }
}

/// TPM_RC_RETRY
const RETRY: u32 = 0x922;

impl Extend for Client<'_> {
    fn extend(&mut self, pcr: u32, digests: &[Digest]) -> Result<(), String> {
        self.pcr_extend(pcr, digests).map_err(|e| e.to_string())
    }
}

fn selection(bank: DigestAlg, pcrs: &[u32]) -> TpmsPcrSelection {
    let mut bits = [0_u8; 3];
    for pcr in pcrs {
        if let Some(byte) = bits.get_mut(index(pcr >> 3)) {
            *byte |= 1 << (pcr & 7);
        }
    }
    let hash = TpmAlg::of(bank).and_then(|alg| TpmAlgId::try_from(alg.0).ok()).unwrap_or(TpmAlgId::Null);
    TpmsPcrSelection { hash, pcr_select: TpmsPcrSelect::try_from(&bits[..]).unwrap_or_default() }
}

fn template(key: KeyUse) -> TpmtPublic {
    let hash = TpmuAsymScheme::Hash(TpmsSchemeHash { hash_alg: TpmAlgId::Sha256 });
    let aes = TpmtSymDefObject {
        algorithm: TpmAlgId::Aes,
        key_bits: TpmuSymKeyBits::Aes(TpmUint16::new(128)),
        mode: TpmuSymMode::Aes(TpmAlgId::Cfb),
    };
    let (attributes, policy, symmetric, scheme) = match key {
        KeyUse::Attestation => {
            let scheme = TpmtEccScheme { scheme: TpmAlgId::Ecdsa, details: hash };
            (ATTESTATION_ATTRIBUTES, Tpm2bDigest::default(), TpmtSymDefObject::default(), scheme)
        }
        KeyUse::Endorsement => {
            let policy = TpmBuffer::try_from(&ENDORSEMENT_POLICY[..]).unwrap_or_default();
            (ENDORSEMENT_ATTRIBUTES, policy, aes, TpmtEccScheme::default())
        }
    };
    let zeros = || Tpm2bEccParameter::try_from(&[0; 32][..]).unwrap_or_default();
    // the profile's template fills what is unique with zeros; an attestation key has nothing there
    let unique = if key == KeyUse::Endorsement { TpmsEccPoint { x: zeros(), y: zeros() } } else { TpmsEccPoint::default() };
    TpmtPublic {
        object_type: TpmAlgId::Ecc,
        name_alg: TpmAlgId::Sha256,
        object_attributes: TpmaObject::from_bits_truncate(attributes),
        auth_policy: policy,
        parameters: TpmuPublicParms::Ecc(TpmsEccParms {
            symmetric,
            scheme,
            curve_id: TpmEccCurve::NistP256,
            kdf: TpmtKdfScheme::default(),
        }),
        unique: TpmuPublicId::Ecc(unique),
    }
}
