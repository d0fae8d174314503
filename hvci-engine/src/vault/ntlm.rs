//! NTLMv2 (MS-NLMP §3.3.2): what a server's challenge is answered with, under a hash that nobody sees.
//!
//! ```text
//! NTOWFv2 = HMAC-MD5(NT hash, upper(user) | domain)
//! temp    = 1, 1, 0⁶ | time | client's challenge | 0⁴ | target information | 0⁴
//! proof   = HMAC-MD5(NTOWFv2, server's challenge | temp);  session key = HMAC-MD5(NTOWFv2, proof)
//! ```
//!
//! What the server says of itself is the guest's word. It is read so that the response names the service that the caller said and the
//! channel that it is for, and says that the exchange has an integrity code: a response is of no use elsewhere. NTLMv1 and LMv2 are not
//! here.

use hmac::Hmac;
use md4::{Digest, Md4};
use md5::Md5;
use zeroize::Zeroizing;

use super::{kerberos::hmac, secret::Key};
use crate::bytes::{le16, slice};

/// The longest target information, before the vault adds to it.
pub const MAX_TARGET_INFO: usize = 4096;

/// Kinds of AV_PAIR (MS-NLMP §2.2.2.1).
mod av {
    pub(super) const EOL: u16 = 0;
    pub(super) const FLAGS: u16 = 6;
    pub(super) const TIMESTAMP: u16 = 7;
    pub(super) const TARGET_NAME: u16 = 9;
    pub(super) const CHANNEL_BINDINGS: u16 = 10;
}

/// In MsvAvFlags: the AUTHENTICATE_MESSAGE has an integrity code.
const HAS_MIC: u32 = 2;

/// What a response is for.
#[derive(Clone, Copy, Debug)]
pub struct Challenge<'c> {
    /// CHALLENGE_MESSAGE.ServerChallenge.
    pub server: [u8; 8],
    /// CHALLENGE_MESSAGE.TargetInfo, a list of AV_PAIRs as the server sent it.
    pub target_info: &'c [u8],
    /// The service's principal name.
    pub target: &'c str,
    /// MD5 of `gss_channel_bindings_struct` (RFC 4121 §4.1.1.2), or zeros for no channel.
    pub channel_binding: [u8; 16],
}

/// The NT hash of a password: MD4 of it in UTF-16LE (MS-NLMP §3.3.1, NTOWFv1).
pub fn nt_hash(password: &str) -> Key {
    let utf16 = Zeroizing::new(utf16(password));
    let hash: [u8; 16] = Md4::digest(&*utf16).into();
    Key::from(hash)
}

/// NTLMv2_CLIENT_CHALLENGE and its proof, the NtChallengeResponse of an AUTHENTICATE_MESSAGE; and the session's base key.
///
/// `None` for target information that is no list of AV_PAIRs.
pub(super) fn respond(
    nt_hash: &Key,
    user: &str,
    domain: &str,
    challenge: &Challenge<'_>,
    client: [u8; 8],
    filetime: u64,
) -> Option<(Vec<u8>, Key)> {
    let owf = owf_v2(nt_hash, user, domain);
    let (pairs, time) = target_pairs(challenge)?;
    let time = time.unwrap_or_else(|| filetime.to_le_bytes());
    let mut response = Vec::with_capacity(pairs.len().saturating_add(48));
    // room for the proof
    response.extend([0; 16]);
    response.extend([1, 1, 0, 0, 0, 0, 0, 0]);
    response.extend(time);
    response.extend(client);
    response.extend([0; 4]);
    response.extend(pairs);
    response.extend([0; 4]);
    let (place, temp) = response.split_at_mut_checked(16)?;
    let proof = hmac::<Hmac<Md5>>(owf.as_bytes(), &[&challenge.server, temp]);
    place.copy_from_slice(&proof);
    let session: [u8; 16] = hmac::<Hmac<Md5>>(owf.as_bytes(), &[&proof]).into();
    Some((response, Key::from(session)))
}

fn owf_v2(nt_hash: &Key, user: &str, domain: &str) -> Key {
    let name = utf16(&(upper(user) + domain));
    let owf: [u8; 16] = hmac::<Hmac<Md5>>(nt_hash.as_bytes(), &[&name]).into();
    Key::from(owf)
}

/// As Windows has it: character by character, those alone whose upper case is one character.
fn upper(text: &str) -> String {
    let one = |c: char| {
        let mut upper = c.to_uppercase();
        upper.next().filter(|_| upper.next().is_none()).unwrap_or(c)
    };
    text.chars().map(one).collect()
}

/// The server's pairs, and behind them those that bind the response; and the server's time, if it said one.
fn target_pairs(challenge: &Challenge<'_>) -> Option<(Vec<u8>, Option<[u8; 8]>)> {
    let mut rest = challenge.target_info;
    let mut pairs = Vec::with_capacity(rest.len().saturating_add(64));
    let (mut time, mut flags) = (None, None);
    while !rest.is_empty() {
        let (kind, len) = (le16(rest, 0)?, usize::from(le16(rest, 2)?));
        let value = slice(rest, 4, len)?;
        let whole = slice(rest, 0, len.checked_add(4)?)?;
        rest = rest.get(whole.len()..)?;
        match kind {
            // one with a length would end the list for a server that does not look at it, before what is added below
            av::EOL if len == 0 => break,
            av::EOL => return None,
            av::FLAGS if flags.is_none() => flags = Some(u32::from_le_bytes(value.try_into().ok()?)),
            av::TIMESTAMP if time.is_none() => {
                time = Some(value.try_into().ok()?);
                pairs.extend(whole);
            }
            av::FLAGS | av::TIMESTAMP => return None,
            // no server says these of itself
            av::TARGET_NAME | av::CHANNEL_BINDINGS => {}
            _ => pairs.extend(whole),
        }
    }
    let mut add = |kind: u16, value: &[u8]| {
        pairs.extend(kind.to_le_bytes());
        pairs.extend(u16::try_from(value.len()).ok()?.to_le_bytes());
        pairs.extend(value);
        Some(())
    };
    add(av::FLAGS, &(flags.unwrap_or(0) | HAS_MIC).to_le_bytes())?;
    add(av::CHANNEL_BINDINGS, &challenge.channel_binding)?;
    add(av::TARGET_NAME, &utf16(challenge.target))?;
    add(av::EOL, &[])?;
    Some((pairs, time))
}

/// The integrity code of the three messages (MS-NLMP §3.1.5.1.2): without key exchange the session's base key is the exported one. The
/// code's own place in the AUTHENTICATE_MESSAGE holds zeros.
pub(super) fn message_integrity(session: &Key, messages: &[&[u8]]) -> [u8; 16] {
    hmac::<Hmac<Md5>>(session.as_bytes(), messages).into()
}

/// A signature of a message of a session, with extended session security and without key exchange (MS-NLMP §3.4.4.2): no RC4 is in it.
pub(super) fn signature(session: &Key, by_client: bool, sequence: u32, message: &[u8]) -> [u8; 16] {
    const CLIENT: &[u8] = b"session key to client-to-server signing key magic constant\0";
    const SERVER: &[u8] = b"session key to server-to-client signing key magic constant\0";
    let mut hash = Md5::new();
    hash.update(session.as_bytes());
    hash.update(if by_client { CLIENT } else { SERVER });
    let key: [u8; 16] = hash.finalize().into();
    let key = Key::from(key);
    let sequence = sequence.to_le_bytes();
    let mac: [u8; 16] = hmac::<Hmac<Md5>>(key.as_bytes(), &[&sequence, message]).into();
    let mut signature = [0; 16];
    let parts = [&1_u32.to_le_bytes()[..], mac.first_chunk::<8>().map_or(&[], |mac| mac), &sequence];
    signature.iter_mut().zip(parts.into_iter().flatten()).for_each(|(to, from)| *to = *from);
    signature
}

/// UTF-16LE.
pub(super) fn utf16(text: &str) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(text.len().saturating_mul(2));
    text.encode_utf16().for_each(|unit| bytes.extend_from_slice(&unit.to_le_bytes()));
    bytes
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// MS-NLMP §4.2.1, §4.2.4.
    #[test]
    fn answers_of_the_specification() {
        let hash = nt_hash("Password");
        assert_eq!(hex::encode(hash.as_bytes()), "a4f49c406510bdcab6824ee7c30fd852");
        let owf = owf_v2(&hash, "User", "Domain");
        assert_eq!(hex::encode(owf.as_bytes()), "0c868a403bfd7a93a3001ef22ef02e3f");
        // the specification's response has no pairs of ours: its proof by hand
        let info = [&[2, 0, 12, 0][..], &utf16("Domain"), &[1, 0, 12, 0], &utf16("Server"), &[0; 4]].concat();
        let temp = [&[1, 1, 0, 0, 0, 0, 0, 0][..], &[0; 8], &[0xAA; 8], &[0; 4], &info, &[0; 4]].concat();
        let server = [0x01, 0x23, 0x45, 0x67, 0x89, 0xab, 0xcd, 0xef];
        let proof = hmac::<Hmac<Md5>>(owf.as_bytes(), &[&server, &temp]);
        assert_eq!(hex::encode(proof), "68cd0ab851e51c96aabc927bebef6a1c");
        assert_eq!(hex::encode(hmac::<Hmac<Md5>>(owf.as_bytes(), &[&proof])), "8de40ccadbc14a82f15cb0ad0de95ca3");
    }

    #[test]
    fn a_response_says_what_it_is_for() {
        let info = [&[2, 0, 4, 0][..], &utf16("AB"), &[7, 0, 8, 0], &[9; 8], &[9, 0, 2, 0], &utf16("X"), &[0; 4]].concat();
        let challenge = Challenge { server: [1; 8], target_info: &info, target: "cifs/files", channel_binding: [7; 16] };
        let (response, _) = respond(&nt_hash("x"), "User", "D", &challenge, [5; 8], 3).unwrap();
        assert_eq!(response[24..32], [9; 8], "the server's time");
        assert_eq!(response[32..40], [5; 8]);
        let pairs = &response[44..];
        let wanted = [
            &[2, 0, 4, 0][..],
            &utf16("AB"),
            &[7, 0, 8, 0],
            &[9; 8],
            &[6, 0, 4, 0, 2, 0, 0, 0],
            &[10, 0, 16, 0],
            &[7; 16],
            &[9, 0, 20, 0],
            &utf16("cifs/files"),
            &[0; 8],
        ];
        assert_eq!(pairs, wanted.concat());
    }

    #[test]
    fn lists_that_end_twice_or_say_something_twice_are_refused() {
        let respond = |target_info: &[u8]| {
            let challenge = Challenge { server: [1; 8], target_info, target: "x", channel_binding: [0; 16] };
            respond(&Key::from([1; 16]), "u", "d", &challenge, [0; 8], 0).is_some()
        };
        let (flags, time) = ([6, 0, 4, 0, 0, 0, 0, 0], [7, 0, 8, 0, 1, 1, 1, 1, 1, 1, 1, 1]);
        assert!(respond(&[&flags[..], &time, &[0; 4]].concat()));
        assert!(!respond(&[0, 0, 2, 0, 9, 9]) && !respond(&[flags, flags].concat()) && !respond(&[time, time].concat()));
        assert_eq!(upper("straße é"), "STRAßE É");
    }

    proptest! {
        #[test]
        fn no_target_information_is_too_odd(target_info: Vec<u8>) {
            let challenge = Challenge { server: [1; 8], target_info: &target_info, target: "x", channel_binding: [0; 16] };
            let _ = respond(&Key::from([1; 16]), "u", "d", &challenge, [0; 8], 0);
        }
    }
}
