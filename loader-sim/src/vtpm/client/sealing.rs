//! Secrets sealed to a TPM, and released while PCRs are what somebody approved: PolicyAuthorize over PolicyPCR and PolicyNV (TPM 2.0 Part 3
//! §23).
//!
//! ```text
//! static, in the object   PolicyAuthorize(approver's name, reference)
//! approved, signed        PolicyPCR(values) then PolicyNV(counter ≤ number)
//! ```
//!
//! What is approved can change without sealing anything again; what was approved before is revoked by moving the counter on.

use hvci_engine::{
    bytes::{array, be32, slice},
    crypto,
    digest::{Digest, DigestAlg},
};
use p256::ecdsa::{
    Signature, SigningKey, VerifyingKey,
    signature::hazmat::{PrehashSigner, PrehashVerifier},
};
use serde::{Deserialize, Serialize};
use tpm2_protocol::{
    TpmMarshal, TpmUnmarshal, TpmWriter,
    basic::{TpmBuffer, TpmHandle, TpmUint16},
    data::{
        Tpm2bEccParameter, Tpm2bNvPublic, Tpm2bPublic, Tpm2bSensitiveCreate, TpmAlgId, TpmCc, TpmEccCurve, TpmEo, TpmRh, TpmSe, TpmSt,
        TpmaNv, TpmaObject, TpmlPcrSelection, TpmsEccParms, TpmsEccPoint, TpmsKeyedhashParms, TpmsNvPublic, TpmsSchemeHash,
        TpmsSensitiveCreate, TpmsSignatureEcc, TpmtEccScheme, TpmtKdfScheme, TpmtKeyedhashScheme, TpmtPublic, TpmtSignature,
        TpmtSymDefObject, TpmtTkVerified, TpmuAsymScheme, TpmuKeyedhashScheme, TpmuPublicId, TpmuPublicParms, TpmuSignature,
    },
    frame::{
        TpmCreateCommand, TpmCreatePrimaryCommand, TpmLoadCommand, TpmNvDefineSpaceCommand, TpmNvIncrementCommand, TpmNvReadCommand,
        TpmPolicyAuthorizeCommand, TpmPolicyNvCommand, TpmPolicyPcrCommand, TpmStartAuthSessionCommand, TpmUnsealCommand,
        TpmVerifySignatureCommand,
    },
};
use zeroize::Zeroizing;

use super::{Auth, Client, ClientError, KeyUse, SIZEOF_HEADER, selection, template};

/// fixedTPM, fixedParent, noDA: used by policy alone.
const SEALED_ATTRIBUTES: u32 = 0x0000_0412;
/// fixedTPM, fixedParent, sensitiveDataOrigin, userWithAuth, noDA, restricted, decrypt.
const STORAGE_ATTRIBUTES: u32 = 0x0003_0472;
/// sign, userWithAuth: the public half of a key that is outside.
const APPROVER_ATTRIBUTES: u32 = 0x0004_0040;
/// TPM_RC_HANDLE, of the first handle; TPM_RC_NV_UNINITIALIZED.
const NO_SUCH_INDEX: [u32; 2] = [0x18B, 0x14A];

/// A secret that is sealed: TPM2B_PRIVATE and TPM2B_PUBLIC.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sealed(pub Vec<u8>);

/// A counter of the TPM's that only who knows its password moves. It is the platform's: no owner of the guest's removes it.
#[derive(Clone, Copy, Debug)]
pub struct CounterIndex<'p> {
    /// NV index, in the platform's range.
    pub index: u32,
    /// Its password.
    pub password: &'p [u8; 32],
}

/// What somebody approved.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Approval {
    /// The PCRs, in ascending order, of the bank of SHA-256.
    pub pcrs: Vec<u32>,
    /// What they are, in that order.
    pub values: Vec<Digest>,
    /// It holds until the counter is above this.
    pub number: u64,
    /// ECDSA on P-256, r and s.
    pub signature: String,
}

/// For which key an approval is, and until when: what the object's policy names.
#[derive(Clone, Copy, Debug)]
pub struct Terms<'t> {
    /// policyRef: the role, the counter, the key.
    pub reference: &'t [u8],
    /// The counter that revokes.
    pub counter: CounterIndex<'t>,
}

impl Approval {
    /// Approves these values.
    pub fn sign(key: &SigningKey, terms: Terms<'_>, (pcrs, values): (&[u32], &[Digest]), number: u64) -> Option<Self> {
        let approved = approved_policy(terms.counter, (pcrs, values), number)?;
        let signature: Signature = key.sign_prehash(&sha256(&[&approved, terms.reference])).ok()?;
        Some(Self { pcrs: pcrs.to_vec(), values: values.to_vec(), number, signature: hex::encode(signature.to_bytes()) })
    }

    /// Whether the approver signed it, on these terms.
    pub fn is_by(&self, approver: &VerifyingKey, terms: Terms<'_>) -> bool {
        let verified = || {
            let approved = approved_policy(terms.counter, (&self.pcrs, &self.values), self.number)?;
            let signature = Signature::from_slice(&hex::decode(&self.signature).ok()?).ok()?;
            approver.verify_prehash(&sha256(&[&approved, terms.reference]), &signature).ok()
        };
        verified().is_some()
    }
}

fn sha256(parts: &[&[u8]]) -> [u8; 32] {
    array(crypto::digest(DigestAlg::Sha256, parts).as_bytes(), 0).unwrap_or_default()
}

fn extend(policy: [u8; 32], code: TpmCc, parts: &[&[u8]]) -> [u8; 32] {
    let code = (code as u32).to_be_bytes();
    sha256(&[&[&policy[..], &code], parts].concat())
}

fn marshalled(value: &impl TpmMarshal) -> Option<Vec<u8>> {
    let mut buffer = [0; 1024];
    let mut writer = TpmWriter::new(&mut buffer);
    value.marshal(&mut writer).ok()?;
    Some(writer.as_bytes().to_vec())
}

/// The policy after PolicyPCR with these values.
pub fn pcr_policy(pcrs: &[u32], values: &[Digest]) -> Option<[u8; 32]> {
    let mut list = TpmlPcrSelection::default();
    list.try_push(selection(DigestAlg::Sha256, pcrs)).ok()?;
    let parts: Vec<&[u8]> = values.iter().map(Digest::as_bytes).collect();
    Some(extend([0; 32], TpmCc::PolicyPcr, &[&marshalled(&list)?, &sha256(&parts)]))
}

/// PolicyPCR, then PolicyNV: the counter is at most `number`.
fn approved_policy(counter: CounterIndex<'_>, (pcrs, values): (&[u32], &[Digest]), number: u64) -> Option<[u8; 32]> {
    let arguments = sha256(&[&number.to_be_bytes(), &[0, 0], &(TpmEo::UnsignedLe as u16).to_be_bytes()]);
    Some(extend(pcr_policy(pcrs, values)?, TpmCc::PolicyNv, &[&arguments, &counter_name(counter)?]))
}

/// The policy of an object that is released by an approval of this key.
pub fn static_policy(approver: &VerifyingKey, reference: &[u8]) -> Option<[u8; 32]> {
    let named = extend([0; 32], TpmCc::PolicyAuthorize, &[&approver_name(approver)?]);
    Some(sha256(&[&named, reference]))
}

/// The name of an approver's key, as a TPM has it.
pub fn approver_name(approver: &VerifyingKey) -> Option<Vec<u8>> {
    Some([&[0, 0x0B][..], &sha256(&[&marshalled(&approver_public(approver))?])].concat())
}

/// The name of a counter that was written.
pub fn counter_name(counter: CounterIndex<'_>) -> Option<Vec<u8>> {
    let mut public = counter_public(counter);
    public.attributes |= TpmaNv::WRITTEN;
    Some([&[0, 0x0B][..], &sha256(&[&marshalled(&public)?])].concat())
}

fn approver_public(approver: &VerifyingKey) -> TpmtPublic {
    let point = approver.to_encoded_point(false);
    let coordinate = |bytes: Option<&[u8]>| Tpm2bEccParameter::try_from(bytes.unwrap_or_default()).unwrap_or_default();
    let unique = TpmsEccPoint { x: coordinate(point.x().map(|x| &x[..])), y: coordinate(point.y().map(|y| &y[..])) };
    let hash = TpmuAsymScheme::Hash(TpmsSchemeHash { hash_alg: TpmAlgId::Sha256 });
    TpmtPublic {
        object_type: TpmAlgId::Ecc,
        name_alg: TpmAlgId::Sha256,
        object_attributes: TpmaObject::from_bits_truncate(APPROVER_ATTRIBUTES),
        auth_policy: TpmBuffer::default(),
        parameters: TpmuPublicParms::Ecc(TpmsEccParms {
            symmetric: TpmtSymDefObject::default(),
            scheme: TpmtEccScheme { scheme: TpmAlgId::Ecdsa, details: hash },
            curve_id: TpmEccCurve::NistP256,
            kdf: TpmtKdfScheme::default(),
        }),
        unique: TpmuPublicId::Ecc(unique),
    }
}

fn counter_public(counter: CounterIndex<'_>) -> TpmsNvPublic {
    TpmsNvPublic {
        nv_index: TpmHandle::new(counter.index),
        name_alg: TpmAlgId::Sha256,
        attributes: TpmaNv::COUNTER | TpmaNv::AUTHWRITE | TpmaNv::AUTHREAD | TpmaNv::NO_DA | TpmaNv::PLATFORMCREATE,
        auth_policy: TpmBuffer::default(),
        data_size: TpmUint16::new(8),
    }
}

impl Client<'_> {
    /// Makes a counter and moves it for the first time; before the guest runs, for who knows the platform's password of this boot.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn define_counter(&mut self, counter: CounterIndex<'_>, platform_auth: &[u8; 32]) -> Result<(), ClientError> {
        let auth = TpmBuffer::try_from(&counter.password[..]).map_err(|_| ClientError::TooLong(TpmCc::NvDefineSpace))?;
        let public_info = Tpm2bNvPublic { inner: counter_public(counter) };
        let command = TpmNvDefineSpaceCommand { auth, public_info, handles: [TpmHandle::new(TpmRh::Platform.value())] };
        self.run(&command, Auth::Password(platform_auth))?;
        self.increment(counter)
    }

    /// Moves a counter by one.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn increment(&mut self, counter: CounterIndex<'_>) -> Result<(), ClientError> {
        let handle = TpmHandle::new(counter.index);
        self.run(&TpmNvIncrementCommand { handles: [handle, handle] }, Auth::Password(counter.password)).map(drop)
    }

    /// What a counter says; `None` if there is none.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn counter(&mut self, counter: CounterIndex<'_>) -> Result<Option<u64>, ClientError> {
        let handle = TpmHandle::new(counter.index);
        let command = TpmNvReadCommand { size: TpmUint16::new(8), offset: TpmUint16::new(0), handles: [handle, handle] };
        match self.run(&command, Auth::Password(counter.password)) {
            Ok(body) => array(&body, 2).map(u64::from_be_bytes).map(Some).ok_or(ClientError::Unreadable(TpmCc::NvRead)),
            Err(ClientError::Refused { code, .. }) if NO_SUCH_INDEX.contains(&code) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The primary storage key of the owner's hierarchy: another one once the TPM was cleared.
    fn storage_key(&mut self) -> Result<u32, ClientError> {
        // the endorsement key's template is that of a storage key, but for who may use it
        let public = TpmtPublic {
            object_attributes: TpmaObject::from_bits_truncate(STORAGE_ATTRIBUTES),
            auth_policy: TpmBuffer::default(),
            ..template(KeyUse::Endorsement)
        };
        let command = TpmCreatePrimaryCommand {
            in_sensitive: Tpm2bSensitiveCreate { inner: TpmsSensitiveCreate::default() },
            in_public: Tpm2bPublic { inner: public },
            outside_info: TpmBuffer::default(),
            creation_pcr: TpmlPcrSelection::default(),
            handles: [TpmHandle::new(TpmRh::Owner.value())],
        };
        let response = self.response(&command, Auth::Password(&[]))?;
        be32(&response, SIZEOF_HEADER).ok_or(ClientError::Unreadable(TpmCc::CreatePrimary))
    }

    /// Seals a secret to a policy.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn seal(&mut self, secret: &[u8], policy: &[u8; 32]) -> Result<Sealed, ClientError> {
        let too_long = |_| ClientError::TooLong(TpmCc::Create);
        let parent = self.storage_key()?;
        let public = TpmtPublic {
            object_type: TpmAlgId::KeyedHash,
            name_alg: TpmAlgId::Sha256,
            object_attributes: TpmaObject::from_bits_truncate(SEALED_ATTRIBUTES),
            auth_policy: TpmBuffer::try_from(&policy[..]).map_err(too_long)?,
            parameters: TpmuPublicParms::KeyedHash(TpmsKeyedhashParms {
                scheme: TpmtKeyedhashScheme { scheme: TpmAlgId::Null, details: TpmuKeyedhashScheme::default() },
            }),
            unique: TpmuPublicId::KeyedHash(TpmBuffer::default()),
        };
        let sensitive = TpmsSensitiveCreate { user_auth: TpmBuffer::default(), data: TpmBuffer::try_from(secret).map_err(too_long)? };
        let command = TpmCreateCommand {
            in_sensitive: Tpm2bSensitiveCreate { inner: sensitive },
            in_public: Tpm2bPublic { inner: public },
            outside_info: TpmBuffer::default(),
            creation_pcr: TpmlPcrSelection::default(),
            handles: [TpmHandle::new(parent)],
        };
        let made = self.run(&command, Auth::Password(&[]));
        self.flush(parent)?;
        let body = made?;
        let (private, rest) = sized(&body).ok_or(ClientError::Unreadable(TpmCc::Create))?;
        let (public, _) = sized(rest).ok_or(ClientError::Unreadable(TpmCc::Create))?;
        Ok(Sealed([private, public].concat()))
    }

    /// Gives a sealed secret back, if PCRs and counter are as approved.
    ///
    /// # Errors
    /// [`ClientError`]: [`ClientError::Refused`] by `Load` if the secret was sealed by another TPM or before this one was cleared; by
    /// `PolicyPcr`, `PolicyNv`, `VerifySignature`, `PolicyAuthorize` or `Unseal` if it is not approved as it is.
    pub fn unseal(
        &mut self,
        sealed: &Sealed,
        approver: &VerifyingKey,
        terms: Terms<'_>,
        approval: &Approval,
    ) -> Result<Zeroizing<Vec<u8>>, ClientError> {
        let parent = self.storage_key()?;
        let loaded = self.load(parent, sealed);
        self.flush(parent)?;
        let object = loaded?;
        let released = self.released(object, approver, terms, approval);
        self.flush(object)?;
        released
    }

    fn load(&mut self, parent: u32, sealed: &Sealed) -> Result<u32, ClientError> {
        let unreadable = || ClientError::Unreadable(TpmCc::Load);
        let (private, public) = sized(&sealed.0).ok_or_else(unreadable)?;
        let private = private.get(2..).ok_or_else(unreadable)?;
        let (in_public, _) = Tpm2bPublic::unmarshal(public).map_err(|_| unreadable())?;
        let in_private = TpmBuffer::try_from(private).map_err(|_| unreadable())?;
        let command = TpmLoadCommand { in_private, in_public, handles: [TpmHandle::new(parent)] };
        let response = self.response(&command, Auth::Password(&[]))?;
        be32(&response, SIZEOF_HEADER).ok_or_else(unreadable)
    }

    fn released(
        &mut self,
        object: u32,
        approver: &VerifyingKey,
        terms: Terms<'_>,
        approval: &Approval,
    ) -> Result<Zeroizing<Vec<u8>>, ClientError> {
        let ticket = self.ticket(approver, terms, approval)?;
        let session = self.policy_session()?;
        let satisfied = self.satisfy(session, approver, terms, approval, ticket);
        if let Err(error) = satisfied {
            self.flush(session)?;
            return Err(error);
        }
        let unsealed = self.run(&TpmUnsealCommand { handles: [TpmHandle::new(object)] }, Auth::Session(session));
        if unsealed.is_err() {
            // it lives on after a command that failed
            self.flush(session)?;
        }
        let body = Zeroizing::new(unsealed?);
        let (secret, _) = sized(&body).ok_or(ClientError::Unreadable(TpmCc::Unseal))?;
        Ok(Zeroizing::new(secret.get(2..).unwrap_or_default().to_vec()))
    }

    /// That the approver signed this approval.
    fn ticket(&mut self, approver: &VerifyingKey, terms: Terms<'_>, approval: &Approval) -> Result<TpmtTkVerified, ClientError> {
        let unreadable = || ClientError::Unreadable(TpmCc::VerifySignature);
        let response = self.exec(&load_external(approver).ok_or_else(unreadable)?, TpmCc::LoadExternal)?;
        let key = be32(&response, SIZEOF_HEADER).ok_or_else(unreadable)?;
        let approved = approved_policy(terms.counter, (&approval.pcrs, &approval.values), approval.number).ok_or_else(unreadable)?;
        let digest = sha256(&[&approved, terms.reference]);
        let signature = hex::decode(&approval.signature).ok().filter(|bytes| bytes.len() == 64).ok_or_else(unreadable)?;
        let half = |at| Tpm2bEccParameter::try_from(slice(&signature, at, 32).unwrap_or_default()).map_err(|_| unreadable());
        let signature = TpmuSignature::Ecdsa(TpmsSignatureEcc { hash: TpmAlgId::Sha256, signature_r: half(0)?, signature_s: half(32)? });
        let command = TpmVerifySignatureCommand {
            digest: TpmBuffer::try_from(&digest[..]).map_err(|_| unreadable())?,
            signature: TpmtSignature { sig_alg: TpmAlgId::Ecdsa, signature },
            handles: [TpmHandle::new(key)],
        };
        let verified = self.run(&command, Auth::None);
        self.flush(key)?;
        let body = verified?;
        // TPMT_TK_VERIFIED: tag, hierarchy, digest
        let digest = sized(body.get(6..).ok_or_else(unreadable)?).and_then(|(digest, _)| digest.get(2..)).ok_or_else(unreadable)?;
        Ok(TpmtTkVerified { tag: TpmSt::Verified, hierarchy: TpmRh::Owner, digest: TpmBuffer::try_from(digest).map_err(|_| unreadable())? })
    }

    fn policy_session(&mut self) -> Result<u32, ClientError> {
        let command = TpmStartAuthSessionCommand {
            nonce_caller: TpmBuffer::try_from(&[0x5A; 16][..]).map_err(|_| ClientError::TooLong(TpmCc::StartAuthSession))?,
            encrypted_salt: TpmBuffer::default(),
            session_type: TpmSe::Policy,
            symmetric: TpmtSymDefObject::default(),
            auth_hash: TpmAlgId::Sha256,
            handles: [TpmHandle::new(TpmRh::Null.value()), TpmHandle::new(TpmRh::Null.value())],
        };
        let response = self.response(&command, Auth::None)?;
        be32(&response, SIZEOF_HEADER).ok_or(ClientError::Unreadable(TpmCc::StartAuthSession))
    }

    fn satisfy(
        &mut self,
        session: u32,
        approver: &VerifyingKey,
        terms: Terms<'_>,
        approval: &Approval,
        check_ticket: TpmtTkVerified,
    ) -> Result<(), ClientError> {
        let too_long = || ClientError::TooLong(TpmCc::PolicyAuthorize);
        let mut pcrs = TpmlPcrSelection::default();
        pcrs.try_push(selection(DigestAlg::Sha256, &approval.pcrs)).map_err(|_| too_long())?;
        // against the PCRs as they are: what they were approved as is in the digest
        let command = TpmPolicyPcrCommand { pcr_digest: TpmBuffer::default(), pcrs, handles: [TpmHandle::new(session)] };
        self.run(&command, Auth::None)?;
        let index = TpmHandle::new(terms.counter.index);
        let command = TpmPolicyNvCommand {
            operand_b: TpmBuffer::try_from(&approval.number.to_be_bytes()[..]).map_err(|_| too_long())?,
            offset: TpmUint16::new(0),
            operation: TpmEo::UnsignedLe,
            handles: [index, index, TpmHandle::new(session)],
        };
        self.run(&command, Auth::Password(terms.counter.password))?;
        let approved = approved_policy(terms.counter, (&approval.pcrs, &approval.values), approval.number).ok_or_else(too_long)?;
        let name = approver_name(approver).ok_or_else(too_long)?;
        let buffer = |bytes: &[u8]| TpmBuffer::try_from(bytes).map_err(|_| too_long());
        let command = TpmPolicyAuthorizeCommand {
            approved_policy: buffer(&approved)?,
            policy_ref: TpmBuffer::try_from(terms.reference).map_err(|_| too_long())?,
            key_sign: TpmBuffer::try_from(&name[..]).map_err(|_| too_long())?,
            check_ticket,
            handles: [TpmHandle::new(session)],
        };
        self.run(&command, Auth::None).map(drop)
    }
}

/// TPM2_LoadExternal of a public key alone, which `tpm2-protocol` has no form for: its TPM2B_SENSITIVE is never empty.
fn load_external(approver: &VerifyingKey) -> Option<Vec<u8>> {
    let public = marshalled(&approver_public(approver))?;
    let parameters = [&[0, 0][..], &u16::try_from(public.len()).ok()?.to_be_bytes(), &public, &TpmRh::Owner.value().to_be_bytes()].concat();
    let size = u32::try_from(parameters.len().checked_add(SIZEOF_HEADER)?).ok()?;
    Some(
        [&(TpmSt::NoSessions as u16).to_be_bytes()[..], &size.to_be_bytes(), &(TpmCc::LoadExternal as u32).to_be_bytes(), &parameters]
            .concat(),
    )
}

/// A structure with its size before it, and what follows.
fn sized(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let size = usize::from(u16::from_be_bytes(array(bytes, 0)?)).checked_add(2)?;
    bytes.split_at_checked(size)
}
