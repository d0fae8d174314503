//! What VTL0 asks of the vault by a VTL call: an argument block, with function numbers of the engine's own; the names are those of the
//! isolated LSA's interface where it has the operation.
//!
//! Bytes come and go by GPA and length. What an answer leaves free of the place it goes to is filled with zeros, so nothing of the engine's
//! memory ever gets there. A secret that is handed over is wiped where it was.

use zeroize::Zeroizing;

use super::{
    Authenticator, Caller, Challenge, CredentialKind, Etype, Handle, Listed, NewCredential, Secret, UsePolicy, Vault, credential::MAX_NAME,
    error::VaultError, ntlm::MAX_TARGET_INFO, operations::MAX_MESSAGE,
};
use crate::{
    addr::Gpa,
    bytes::{index, widen},
    status::HvStatus,
    vsm::secure_call::{BLOCK, Words},
};

/// The longest password, policy or salt.
const MAX_TEXT: u64 = 4096;
/// The longest answer.
const MAX_ANSWER: u64 = 1 << 20;

/// A function of the vault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Function(pub u64);

/// What a function answers: beside a status, a word, and bytes where the caller says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Output {
    /// Nothing.
    Nothing,
    /// The handle of a credential.
    Handle,
    /// Whether it is so: 0 or 1.
    Truth,
    /// The number of bytes that are there.
    Bytes(Content),
    /// The same; the first eight are the handle of a session, or 0.
    SessionAndBytes(Content),
}

/// What bytes of an answer are. There is no kind for a key or a hash of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// NtChallengeResponse.
    Response,
    /// A code or checksum of a message of the caller's.
    Code,
    /// What was encrypted for somebody else.
    Cipher,
    /// What was decrypted, and is not the vault's.
    Plain,
    /// A signature.
    Signature,
    /// A public key.
    PublicKey,
    /// A credential that only this vault opens.
    Blob,
    /// Names and numbers of credentials.
    List,
}

macro_rules! functions {
    ($( $(#[$doc:meta])* $name:ident $number:literal $text:literal $output:expr; )*) => {
        impl Function {
            $( $(#[$doc])* pub const $name: Self = Self($number); )*

            /// Every one, its name, and what it answers.
            pub const ALL: &'static [(Self, &'static str, Output)] = &[$( (Self::$name, $text, $output) ),*];
        }
    };
}

functions! {
    /// Credential; answer: GPA, room.
    NTLM_PROTECT_CREDENTIAL 0x3_0001 "NtlmIumProtectCredential" Output::Bytes(Content::Blob);
    /// Credential, server's challenge (the 8 bytes as they stand), target information: GPA, length, target's name: GPA, length, GPA of the
    /// 16 bytes of the channel's binding or 0, whether a session is wanted; answer: GPA, room.
    NTLM_RESPONSE 0x3_0002 "NtlmIumLm20GetNtlm3ChallengeResponse" Output::SessionAndBytes(Content::Response);
    /// Refused always, as are all of the kind: credential, protocol (1 NTLMv1, 2 MS-CHAPv2, 3 LM, 4 Kerberos with DES, 5 Kerberos with
    /// RC4).
    NTLM_CALCULATE_NT_RESPONSE 0x3_0003 "NtlmIumCalculateNtResponse" Output::Nothing;
    /// Two credentials.
    NTLM_COMPARE_CREDENTIALS 0x3_0009 "NtlmIumCompareCredentials" Output::Truth;
    /// Session; NEGOTIATE, CHALLENGE and AUTHENTICATE message: GPA, length each; answer: GPA, room.
    NTLM_INTEGRITY 0x3_0010 "NtlmMessageIntegrity" Output::Bytes(Content::Code);
    /// Session, whether it is the client's, sequence number, message: GPA, length; answer: GPA, room.
    NTLM_SIGNATURE 0x3_0011 "NtlmMessageSignature" Output::Bytes(Content::Code);
    /// Credential, encryption type; answer: GPA, room.
    KERB_TIMESTAMP 0x3_0100 "KerbPreauthTimestamp" Output::Bytes(Content::Cipher);
    /// Credential or session with the KDC, encryption type, cipher: GPA, length; answer: GPA, room.
    KERB_REPLY 0x3_0101 "KerbUnwrapKdcReply" Output::SessionAndBytes(Content::Plain);
    /// Session, sequence number or 2⁶⁴ - 1 for none, KDC-REQ-BODY (for a service: the 16 bytes of the channel's binding): GPA, length,
    /// flags of GSS-API; answer: GPA, room.
    KERB_AUTHENTICATOR 0x3_0102 "KerbIumCreateApReqAuthenticator" Output::Bytes(Content::Cipher);
    /// Session with the KDC, KDC-REQ-BODY: GPA, length; answer: GPA, room.
    KERB_CHECKSUM 0x3_0103 "KerbIumComputeTgsChecksum" Output::Bytes(Content::Code);
    /// User: GPA, length, domain: GPA, length, kind of secret (0 password, 1 NT hash, 17 to 20 Kerberos key of that encryption type),
    /// secret: GPA, length, salt: GPA, length, policy in JSON: GPA, length or 0, whether it is kept when the machine is off. The secret is
    /// wiped.
    ADD_LOGON 0x3_0200 "AddLogon" Output::Handle;
    /// Kind (1 AES-256-GCM-SIV, 2 Ed25519, 3 P-256), name: GPA, length, secret: GPA, length (0: it is made in the vault), what messages
    /// begin with: GPA, length, policy in JSON: GPA, length or 0, whether it is kept. The secret is wiped.
    ADD_KEY 0x3_0201 "AddKey" Output::Handle;
    /// Credential, kind of secret as a logon's is added (100: a key that the vault makes, 101: a key), secret: GPA, length, salt: GPA,
    /// length. The secret is wiped.
    REPLACE 0x3_0202 "ReplaceSecret" Output::Nothing;
    /// Credential.
    REMOVE 0x3_0203 "RemoveCredential" Output::Nothing;
    /// Answer: GPA, room. Each: handle u64, uses u64, kind u8, flags u8 (1 kept, 2 out), lengths of user and domain u16, user, domain.
    LIST 0x3_0204 "ListCredentials" Output::Bytes(Content::List);
    /// Blob: GPA, length.
    UNPROTECT 0x3_0205 "UnprotectCredential" Output::Handle;
    /// No arguments.
    COMMIT 0x3_0206 "CommitCredentials" Output::Nothing;
    /// Key, message: GPA, length, associated data: GPA, length; answer: GPA, room.
    ENCRYPT 0x3_0300 "Encrypt" Output::Bytes(Content::Cipher);
    /// Key, text: GPA, length, associated data: GPA, length; answer: GPA, room.
    DECRYPT 0x3_0301 "Decrypt" Output::Bytes(Content::Plain);
    /// Key, message: GPA, length; answer: GPA, room.
    SIGN 0x3_0302 "Sign" Output::Bytes(Content::Signature);
    /// Key; answer: GPA, room.
    PUBLIC_KEY 0x3_0303 "PublicKey" Output::Bytes(Content::PublicKey);
}

/// Protocols that are refused, by number from 1.
const LEGACY: [&str; 5] = ["NTLMv1", "MS-CHAPv2", "LM", "Kerberos with DES", "Kerberos with RC4"];

/// What a function came to.
enum Answer {
    Word(u64),
    Bytes(Vec<u8>),
    /// The handle of a session before them; nobody knows of it if they do not get where they are to go.
    Session(Option<Handle>, Vec<u8>),
    /// A blob, which is the only copy of a secret.
    Blob(Vec<u8>),
}

impl Vault {
    /// Whether a VTL call is for the vault.
    pub fn answers(block: &[u8; BLOCK]) -> bool {
        let function = Function(Words::of(block).next());
        Function::ALL.iter().any(|(known, ..)| *known == function)
    }

    /// Answers a VTL call of the caller's: a status, and a word. Where the answer has bytes and they do not fit, the word is how many there
    /// are.
    pub fn call(&self, block: &[u8; BLOCK], caller: &Caller) -> (HvStatus, u64) {
        let mut call = Call { vault: self, caller, words: Words::of(block) };
        match call.answer() {
            Ok(word) => (HvStatus::SUCCESS, word),
            Err(error) => {
                let needed = if let VaultError::Room(needed) = error { widen(needed) } else { 0 };
                (error.status(), needed)
            }
        }
    }
}

struct Call<'v> {
    vault: &'v Vault,
    caller: &'v Caller,
    words: Words<'v>,
}

impl Call<'_> {
    fn answer(&mut self) -> Result<u64, VaultError> {
        let function = Function(self.word());
        match self.run(function)? {
            Answer::Word(word) => Ok(word),
            Answer::Bytes(bytes) => self.put(bytes),
            Answer::Session(session, bytes) => {
                let handle = session.map_or(0, |session| session.0);
                let put = self.put([&handle.to_le_bytes()[..], &bytes].concat());
                if let (Err(_), Some(session)) = (&put, session) {
                    self.vault.forget(session)?;
                }
                put
            }
            Answer::Blob(blob) => {
                let put = self.put(blob.clone());
                if put.is_err() {
                    self.vault.unprotect(self.caller, &blob)?;
                }
                put
            }
        }
    }

    /// Puts bytes where the caller says, and zeros behind them: nothing that was there before is taken for a part of the answer.
    fn put(&mut self, mut bytes: Vec<u8>) -> Result<u64, VaultError> {
        let (to, room) = (Gpa(self.word()), self.word());
        let len = bytes.len();
        if room > MAX_ANSWER {
            return Err(VaultError::Request("there is more room for the answer than any takes"));
        }
        if widen(len) > room {
            return Err(VaultError::Room(len));
        }
        bytes.resize(index(u32::try_from(room).unwrap_or(0)), 0);
        self.vault.partition.write_vtl0(to, &mut bytes)?;
        Ok(widen(len))
    }

    fn run(&mut self, function: Function) -> Result<Answer, VaultError> {
        let (vault, caller) = (self.vault, self.caller);
        let bytes = Answer::Bytes;
        Ok(match function {
            Function::NTLM_RESPONSE => {
                let (handle, server) = (self.handle(), self.word().to_le_bytes());
                let info = self.bytes(widen(MAX_TARGET_INFO))?;
                let target = self.text(MAX_TEXT)?;
                let (binding, session) = (self.word(), self.word() == 1);
                let channel_binding = if binding == 0 { [0; 16] } else { self.at(binding)? };
                let challenge = Challenge { server, target_info: &info, target: &target, channel_binding };
                let (session, response) = vault.ntlm_response(caller, handle, &challenge, session)?;
                Answer::Session(session, response)
            }
            Function::NTLM_CALCULATE_NT_RESPONSE => {
                let (handle, protocol) = (self.handle(), self.word());
                let named = usize::try_from(protocol).ok().and_then(|number| LEGACY.get(number.checked_sub(1)?));
                vault.legacy(caller, Some(handle), named.unwrap_or(&"NTLMv1"))?;
                Answer::Word(0)
            }
            Function::NTLM_COMPARE_CREDENTIALS => Answer::Word(vault.compare(caller, self.handle(), self.handle())?.into()),
            Function::NTLM_INTEGRITY => {
                let session = self.handle();
                let messages = [self.message()?, self.message()?, self.message()?];
                bytes(vault.ntlm_integrity(caller, session, messages.each_ref().map(|message| &***message))?.to_vec())
            }
            Function::NTLM_SIGNATURE => {
                let (session, by_client, sequence) = (self.handle(), self.word() == 1, self.word());
                let sequence = u32::try_from(sequence).map_err(|_| VaultError::Request("a sequence number has 32 bits"))?;
                let message = self.message()?;
                bytes(vault.ntlm_signature(caller, session, by_client, sequence, &message)?.to_vec())
            }
            Function::NTLM_PROTECT_CREDENTIAL => Answer::Blob(vault.protect(caller, self.handle())?),
            Function::UNPROTECT => {
                let blob = self.message()?;
                Answer::Word(vault.unprotect(caller, &blob)?.0)
            }
            Function::KERB_TIMESTAMP => {
                let handle = self.handle();
                let etype = self.etype(handle)?;
                bytes(vault.kerberos_timestamp(caller, handle, etype)?)
            }
            Function::KERB_REPLY => {
                let handle = self.handle();
                let etype = self.etype(handle)?;
                let cipher = self.message()?;
                let (session, plain) = vault.kerberos_reply(caller, handle, etype, &cipher)?;
                Answer::Session(Some(session), plain)
            }
            Function::KERB_AUTHENTICATOR => {
                let (session, sequence) = (self.handle(), self.word());
                let message = self.message()?;
                let flags = u32::try_from(self.word()).map_err(|_| VaultError::Request("flags have 32 bits"))?;
                let purpose = match message.first_chunk() {
                    Some(binding) if message.len() == 16 => Authenticator::Service(*binding, flags),
                    _ => Authenticator::Tgs(&message),
                };
                bytes(vault.kerberos_authenticator(caller, session, purpose, u32::try_from(sequence).ok())?)
            }
            Function::KERB_CHECKSUM => {
                let session = self.handle();
                let body = self.message()?;
                bytes(vault.kerberos_checksum(caller, session, &body)?)
            }
            Function::ADD_LOGON => {
                let (user, domain) = (self.text(widen(MAX_NAME))?, self.text(widen(MAX_NAME))?);
                let (kind, secret) = (self.word(), self.taken()?);
                let salt = self.bytes(MAX_TEXT)?;
                let (policy, persistent) = (self.policy()?, self.word() == 1);
                let secret = logon_secret(kind, &secret, &salt)?;
                let new = NewCredential { user: &user, domain: &domain, secret, prefix: &[], policy, persistent };
                Answer::Word(vault.add(caller, &new)?.0)
            }
            Function::ADD_KEY => {
                let kind = CredentialKind::from_number(self.word()).ok_or(VaultError::Request("there is no such kind of key"))?;
                let name = self.text(widen(MAX_NAME))?;
                let secret = self.taken()?;
                let prefix = self.bytes(widen(MAX_NAME))?;
                let (policy, persistent) = (self.policy()?, self.word() == 1);
                let secret = if secret.is_empty() { Secret::Made(kind) } else { Secret::Given(kind, &secret) };
                let new = NewCredential { user: &name, domain: "", secret, prefix: &prefix, policy, persistent };
                Answer::Word(vault.add(caller, &new)?.0)
            }
            Function::REPLACE => {
                let (handle, kind) = (self.handle(), self.word());
                let (secret, salt) = (self.taken()?, self.bytes(MAX_TEXT)?);
                let own = vault.list(caller)?.into_iter().find(|listed| listed.handle == handle).ok_or(VaultError::NotFound)?.kind;
                let secret = match kind {
                    100 => Secret::Made(own),
                    101 => Secret::Given(own, &secret),
                    _ => logon_secret(kind, &secret, &salt)?,
                };
                vault.replace(caller, handle, secret)?;
                Answer::Word(0)
            }
            Function::REMOVE => {
                vault.remove(caller, self.handle())?;
                Answer::Word(0)
            }
            Function::LIST => bytes(vault.list(caller)?.iter().flat_map(listed).collect()),
            Function::COMMIT => {
                vault.commit_for(caller)?;
                Answer::Word(0)
            }
            Function::ENCRYPT => {
                let (handle, message, associated) = (self.handle(), self.message()?, self.message()?);
                bytes(vault.encrypt(caller, handle, &message, &associated)?)
            }
            Function::DECRYPT => {
                let (handle, text, associated) = (self.handle(), self.message()?, self.message()?);
                bytes(vault.decrypt(caller, handle, &text, &associated)?.to_vec())
            }
            Function::SIGN => {
                let (handle, message) = (self.handle(), self.message()?);
                bytes(vault.sign(caller, handle, &message)?.to_vec())
            }
            Function::PUBLIC_KEY => bytes(vault.public_key(caller, self.handle())?),
            _ => return Err(HvStatus::FEATURE_UNAVAILABLE.into()),
        })
    }

    fn word(&mut self) -> u64 {
        self.words.next()
    }

    fn handle(&mut self) -> Handle {
        Handle(self.word())
    }

    /// An encryption type, for a credential. That an old one was asked for is recorded.
    fn etype(&mut self, handle: Handle) -> Result<Etype, VaultError> {
        let number = self.word();
        let old = match number {
            1..=3 => Some("Kerberos with DES"),
            23 | 24 => Some("Kerberos with RC4"),
            _ => None,
        };
        if let Some(old) = old {
            self.vault.legacy(self.caller, Some(handle), old)?;
        }
        Etype::from_number(number).ok_or(VaultError::Request("there is no such encryption type"))
    }

    /// Bytes by GPA and length.
    fn bytes(&mut self, most: u64) -> Result<Zeroizing<Vec<u8>>, VaultError> {
        let (gpa, len) = (Gpa(self.word()), self.word());
        if len > most {
            return Err(VaultError::Request("an argument is too long"));
        }
        Ok(Zeroizing::new(self.vault.partition.copy_vtl0(gpa, len)?))
    }

    fn message(&mut self) -> Result<Zeroizing<Vec<u8>>, VaultError> {
        // a nonce and a tag beside what is encrypted
        self.bytes(widen(MAX_MESSAGE).saturating_add(64))
    }

    fn text(&mut self, most: u64) -> Result<Zeroizing<String>, VaultError> {
        let bytes = self.bytes(most)?.to_vec();
        Ok(Zeroizing::new(String::from_utf8(bytes).map_err(|_| VaultError::Request("a name is not in UTF-8"))?))
    }

    fn at<const N: usize>(&self, gpa: u64) -> Result<[u8; N], VaultError> {
        let bytes = self.vault.partition.copy_vtl0(Gpa(gpa), widen(N))?;
        bytes.try_into().map_err(|_| VaultError::Request("an argument is cut short"))
    }

    /// A secret, which is wiped where it was: if that cannot be done it is not taken.
    fn taken(&mut self) -> Result<Zeroizing<Vec<u8>>, VaultError> {
        let (gpa, len) = (Gpa(self.word()), self.word());
        if len > MAX_TEXT {
            return Err(VaultError::Request("the secret is too long"));
        }
        let secret = Zeroizing::new(self.vault.partition.copy_vtl0(gpa, len)?);
        self.vault.partition.write_vtl0(gpa, &mut vec![0; secret.len()])?;
        Ok(secret)
    }

    fn policy(&mut self) -> Result<UsePolicy, VaultError> {
        let json = self.bytes(MAX_TEXT)?;
        if json.is_empty() {
            return Ok(UsePolicy::default());
        }
        serde_json::from_slice(&json).map_err(|_| VaultError::Request("the policy is no JSON of a policy"))
    }
}

fn logon_secret<'s>(kind: u64, secret: &'s [u8], salt: &'s [u8]) -> Result<Secret<'s>, VaultError> {
    match kind {
        0 => Ok(Secret::Password(core::str::from_utf8(secret).map_err(|_| VaultError::Request("the password is not in UTF-8"))?, salt)),
        1 => Ok(Secret::NtHash(secret.try_into().map_err(|_| VaultError::Request("an NT hash has 16 bytes"))?)),
        _ => Ok(Secret::KerberosKey(Etype::from_number(kind).ok_or(VaultError::Request("there is no such kind of secret"))?, secret)),
    }
}

fn listed(one: &Listed) -> Vec<u8> {
    let len = |text: &str| u16::try_from(text.len()).unwrap_or(u16::MAX).to_le_bytes();
    let flags = u8::from(one.persistent) | u8::from(one.out) << 1;
    let numbers = [one.handle.0.to_le_bytes(), one.uses.to_le_bytes()].concat();
    [&numbers[..], &[one.kind.number(), flags], &len(&one.user), &len(&one.domain), one.user.as_bytes(), one.domain.as_bytes()].concat()
}
