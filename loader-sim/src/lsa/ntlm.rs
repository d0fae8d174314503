//! The client of NTLM (MS-NLMP): NEGOTIATE and AUTHENTICATE messages, with a response and an integrity code that the vault makes.

use anyhow::{Context, Result, ensure};
use hvci_engine::vault::Function;

use super::Lsa;

const SIGNATURE: &[u8; 8] = b"NTLMSSP\0";
/// Flags of NEGOTIATE_MESSAGE: Unicode, target wanted, signing, NTLM, always sign, extended session security, target information, version,
/// 128 bits. No key exchange: its key would be wrapped with RC4.
const FLAGS: u32 =
    0x0000_0001 | 0x0000_0004 | 0x0000_0010 | 0x0000_0200 | 0x0000_8000 | 0x0008_0000 | 0x0080_0000 | 0x0200_0000 | 0x2000_0000;
/// Windows 10, NTLM revision 15.
const VERSION: [u8; 8] = [10, 0, 0x61, 0x4A, 0, 0, 0, 15];
/// Bytes of an AUTHENTICATE_MESSAGE before its payload, and where the integrity code is in them.
const HEADER: usize = 88;
const MIC: std::ops::Range<usize> = 72..88;

/// What a client logs on to.
#[derive(Clone, Copy, Debug)]
pub struct Target<'t> {
    /// The service's principal name.
    pub name: &'t str,
    /// MD5 of the channel's binding, or zeros.
    pub channel_binding: [u8; 16],
}

/// An exchange that the client has ended.
#[derive(Clone, Debug)]
pub struct Exchange {
    /// AUTHENTICATE_MESSAGE.
    pub authenticate: Vec<u8>,
    /// The session, in the vault.
    pub session: u64,
}

/// NEGOTIATE_MESSAGE.
pub fn negotiate() -> Vec<u8> {
    [&SIGNATURE[..], &1_u32.to_le_bytes(), &FLAGS.to_le_bytes(), &[0; 16], &VERSION].concat()
}

/// Answers a CHALLENGE_MESSAGE for a credential of the vault.
///
/// # Errors
/// A message that is none; the vault's.
pub fn authenticate(
    lsa: &mut Lsa,
    credential: u64,
    (user, domain): (&str, &str),
    challenge: &[u8],
    target: Target<'_>,
) -> Result<Exchange> {
    let word = |at: usize| {
        challenge.get(at..at + 4).and_then(|b| b.try_into().ok()).map(u32::from_le_bytes).context("CHALLENGE_MESSAGE is cut short")
    };
    ensure!(challenge.starts_with(SIGNATURE) && word(8)? == 2, "this is no CHALLENGE_MESSAGE");
    let flags = word(20)? & FLAGS;
    let server = u64::from_le_bytes(challenge.get(24..32).and_then(|b| b.try_into().ok()).context("no challenge")?);
    let (len, at) = (usize::try_from(word(40)? & 0xFFFF)?, usize::try_from(word(44)?)?);
    let info = at.checked_add(len).and_then(|end| challenge.get(at..end)).context("no target information")?;

    let (response, session) = respond(lsa, credential, server, info, target)?;
    let utf16 = |text: &str| text.encode_utf16().flat_map(u16::to_le_bytes).collect::<Vec<u8>>();
    let (domain, user, workstation) = (utf16(domain), utf16(user), utf16("HVCI-SIM"));
    // in the order of the payload; LmChallengeResponse is zeros where the server says its time
    let payload = [&domain, &user, &workstation, &vec![0; 24], &response, &Vec::new()];
    let mut places = Vec::new();
    let mut next = HEADER;
    for part in payload {
        let len = u16::try_from(part.len())?.to_le_bytes();
        places.push([&len[..], &len, &u32::try_from(next)?.to_le_bytes()].concat());
        next += part.len();
    }
    let [domain_at, user_at, workstation_at, lm_at, nt_at, key_at] = &places[..] else { anyhow::bail!("no places") };
    let fields = [lm_at, nt_at, domain_at, user_at, workstation_at, key_at].map(|field| field.as_slice()).concat();
    let mut message = [&SIGNATURE[..], &3_u32.to_le_bytes(), &fields, &flags.to_le_bytes(), &VERSION, &[0; 16]].concat();
    payload.iter().for_each(|part| message.extend_from_slice(part));

    let messages = [lsa.put(&negotiate())?, lsa.put(challenge)?, lsa.put(&message)?].concat();
    let code = lsa.ask(Function::NTLM_INTEGRITY, &[&[session], &messages])?;
    message.get_mut(MIC).context("no place for the code")?.copy_from_slice(&code);
    Ok(Exchange { authenticate: message, session })
}

/// An NtChallengeResponse by the vault, and the session.
///
/// # Errors
/// The vault's.
pub fn respond(lsa: &mut Lsa, credential: u64, server: u64, info: &[u8], target: Target<'_>) -> Result<(Vec<u8>, u64)> {
    let binding = if target.channel_binding == [0; 16] { 0 } else { lsa.put(&target.channel_binding)?[0] };
    let (info, name) = (lsa.put(info)?, lsa.put(target.name.as_bytes())?);
    let answer = lsa.ask(Function::NTLM_RESPONSE, &[&[credential, server], &info, &name, &[binding, 1]])?;
    let (session, response) = answer.split_first_chunk().context("an answer without a session")?;
    Ok((response.to_vec(), u64::from_le_bytes(*session)))
}

/// The signature of a message of the client's in a session.
///
/// # Errors
/// The vault's.
pub fn sign(lsa: &mut Lsa, session: u64, sequence: u32, message: &[u8]) -> Result<Vec<u8>> {
    let message = lsa.put(message)?;
    lsa.ask(Function::NTLM_SIGNATURE, &[&[session, 1, u64::from(sequence)], &message])
}
