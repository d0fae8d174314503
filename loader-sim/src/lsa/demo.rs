//! The demonstration: a user logs on and uses NTLM and Kerberos; then everything that is not VTL1's is searched for every secret.

use anyhow::{Context, Result, ensure};
use hmac::{Hmac, Mac};
use hvci_engine::{
    addr::{Gpa, Gpn},
    host::{Enforcer, Host},
    status::HvStatus,
    vault::{Etype, Function, UsePolicy},
};
use md5::Md5;

use super::{ANSWER, Found, HEAP, Lsa, MemoryKeeper, Needle, Options, RAM, kdc::Kdc, kerberos, ntlm, search, secrets_of};
use crate::{attack::Guest, memory::PAGE, vmm::Snapshot};

/// The user.
pub const USER: &str = "alice";
/// The user's domain, and the Kerberos realm.
pub const REALM: &str = "EXAMPLE.ORG";
/// The user's password.
pub const PASSWORD: &str = "correct horse battery staple";
/// MD4 of it in UTF-16LE.
pub const NT_HASH: [u8; 16] = [0x1B, 0x9D, 0x5E, 0xFF, 0xD3, 0x4A, 0xC2, 0x83, 0xC8, 0xEF, 0xE2, 0xEA, 0xCA, 0xEA, 0x8B, 0xBC];
const SERVICE: &str = "cifs/files.example.org";

/// What a place was searched and found to have.
#[derive(Clone, Debug)]
pub struct Searched {
    /// Where.
    pub place: &'static str,
    /// How many bytes.
    pub bytes: usize,
    /// What was found.
    pub found: Vec<Found>,
}

/// What the demonstration came to.
#[derive(Clone, Debug)]
pub struct Shown {
    /// What was done, and what came of it.
    pub steps: Vec<(&'static str, String)>,
    /// How many secrets were looked for.
    pub secrets: usize,
    /// Where VTL0, its devices and the host's files could have them: nothing is to be found.
    pub outside: Vec<Searched>,
    /// Where they are: all of those that are kept are to be found.
    pub inside: Searched,
    /// The same guest without a vault.
    pub without: Searched,
}

impl Shown {
    /// Whether no secret is where none may be, and the search finds those that are there.
    pub fn as_promised(&self) -> bool {
        let has = |searched: &Searched, name: &str| searched.found.iter().any(|found| found.name == name);
        self.outside.iter().all(|searched| searched.found.is_empty() && searched.bytes > 0)
            && ["NT hash", "Kerberos key 18"].iter().all(|name| has(&self.inside, name) && has(&self.without, name))
            && has(&self.without, "password")
    }
}

/// The user's secrets.
pub fn secrets() -> Vec<Needle> {
    secrets_of(USER, REALM, PASSWORD)
}

/// Runs it.
///
/// # Errors
/// A step that does not come to what it must.
pub fn show() -> Result<Shown> {
    let keeper = MemoryKeeper::new();
    let mut lsa = Lsa::boot(Options { keeper: Some(Box::new(keeper.clone())), ..Options::default() })?;
    let mut steps = Vec::new();
    let credential = lsa.add_logon(USER, REALM, (0, PASSWORD.as_bytes()), &UsePolicy::default(), true)?;
    steps.push(("logon", format!("{USER}@{REALM} is credential {credential:#x}; the password is wiped where it was typed in")));

    let (challenge, info) = (0x8877_6655_4433_2211, [&[2, 0, 14, 0][..], b"E\0X\0A\0M\0P\0L\0E\0", &[0; 4]].concat());
    let target = ntlm::Target { name: SERVICE, channel_binding: [0xCB; 16] };
    let (response, ntlm_session) = ntlm::respond(&mut lsa, credential, challenge, &info, target)?;
    ensure!(is_ntlm_response(challenge, &response), "the server does not accept the NTLMv2 response");
    steps.push(("NTLM", format!("an NTLMv2 response of {} bytes for {SERVICE}, accepted by a server that knows the hash", response.len())));

    let (etype, now) = (Etype::Aes256Sha1, lsa.guest.engine.time);
    let kdc = Kdc::new(REALM, USER, PASSWORD, etype);
    let request = kerberos::as_request(&mut lsa, credential, (USER, REALM), etype, 1)?;
    let tgt = kerberos::reply(&mut lsa, credential, &kdc.as_reply(&request, now)?)?;
    let request = kerberos::tgs_request(&mut lsa, &tgt, REALM, SERVICE, etype, 2)?;
    let ticket = kerberos::reply(&mut lsa, tgt.session, &kdc.tgs_reply(&request, now)?)?;
    let accepted = kdc.accept(&kerberos::ap_request(&mut lsa, &ticket, etype, [0xCB; 16], 0)?)?;
    ensure!(accepted.client == USER, "the service takes the client for {}", accepted.client);
    steps.push(("Kerberos", format!("AS-REQ, TGS-REQ and AP-REQ for {SERVICE}, accepted by a KDC and the service")));

    let (status, _) = lsa.call(Function::NTLM_CALCULATE_NT_RESPONSE, &[credential, 1])?;
    ensure!(status == HvStatus::ACCESS_DENIED, "NTLMv1 is answered: {status}");
    steps.push(("NTLMv1", "refused, as it always is".to_owned()));
    let blob = lsa.log_on("bob", REALM, PASSWORD)?;
    lsa.ask(Function::NTLM_PROTECT_CREDENTIAL, &[&[blob]])?;
    steps.push(("blob", "another logon is out in a blob of VTL0's".to_owned()));
    lsa.vault().commit()?;

    let mut needles = secrets();
    // what nobody outside was told: whatever stands in the frames
    for (name, session) in [("NTLM session key", ntlm_session), ("TGT session key", tgt.session), ("service session key", ticket.session)] {
        needles.push(Needle::new(name, &lsa.secret_of(session)?));
    }
    let outside = vec![
        searched("VTL0's memory, as its kernel or a debugger reads it", whole(lsa.dump()?), &needles),
        searched("the same by DMA of an assigned device", by_dma(&lsa)?, &needles),
        searched("answers and requests of the program", lsa.guest.read(HEAP, usize::try_from(ANSWER - HEAP + super::ROOM)?)?, &needles),
        searched("events, and what Debug prints", said(&lsa)?, &needles),
        searched("the machine's saved state", saved(&lsa), &needles),
        searched("what is kept at rest", keeper.kept(), &needles),
    ];
    let inside = searched("the vault's frames, as only VTL1 reads them", lsa.secret_pages()?, &needles);
    Ok(Shown { steps, secrets: needles.len(), outside, inside, without: without()? })
}

fn searched(place: &'static str, bytes: Vec<u8>, needles: &[Needle]) -> Searched {
    Searched { place, bytes: bytes.len(), found: search(&bytes, needles) }
}

/// All pages, one behind the other.
fn whole(snapshot: Snapshot) -> Vec<u8> {
    snapshot.pages.into_iter().flat_map(|(_, bytes)| bytes).collect()
}

fn by_dma(lsa: &Lsa) -> Result<Vec<u8>> {
    let mut all = Vec::new();
    for gpn in 0..RAM {
        let mut page = vec![0; PAGE];
        match lsa.guest.host.dma_load(Gpn(gpn).gpa().context("no address")?, &mut page) {
            Ok(()) => all.extend(page),
            Err(HvStatus::ACCESS_DENIED) => {}
            Err(status) => return Err(status.into()),
        }
    }
    Ok(all)
}

fn said(lsa: &Lsa) -> Result<Vec<u8>> {
    let printed = format!("{lsa:#?} {:?}\n", lsa.vault());
    Ok([printed.into_bytes(), serde_json::to_vec(&lsa.events())?].concat())
}

fn saved(lsa: &Lsa) -> Vec<u8> {
    let mut state = Vec::new();
    lsa.guest.engine.partition.save(&mut |bytes| state.extend_from_slice(bytes));
    state
}

/// By a server that has the hash (MS-NLMP §3.3.2).
fn is_ntlm_response(challenge: u64, response: &[u8]) -> bool {
    let mac = |key: &[u8], parts: &[&[u8]]| {
        let mut mac = <Hmac<Md5> as Mac>::new_from_slice(key).ok()?;
        parts.iter().for_each(|part| mac.update(part));
        Some(mac.finalize().into_bytes())
    };
    let name: Vec<u8> = (USER.to_uppercase() + REALM).encode_utf16().flat_map(u16::to_le_bytes).collect();
    let Some((proof, temp)) = response.split_at_checked(16) else { return false };
    mac(&NT_HASH, &[&name]).and_then(|owf| mac(&owf, &[&challenge.to_le_bytes(), temp])).is_some_and(|expected| expected[..] == *proof)
}

/// A guest without a vault, whose LSASS has in its own memory what it logs users on with.
fn without() -> Result<Searched> {
    let guest = Guest::new()?;
    let salt = [REALM, USER].concat();
    let mut at = HEAP;
    let mut put = |bytes: &[u8]| {
        at += 0x100;
        guest.host.write(Gpa(at), bytes)
    };
    put(PASSWORD.encode_utf16().flat_map(u16::to_le_bytes).collect::<Vec<_>>().as_slice())?;
    put(&NT_HASH)?;
    for etype in Etype::ALL {
        put(etype.of_password(PASSWORD.as_bytes(), salt.as_bytes()).as_bytes())?;
    }
    let dump = whole(guest.machine.vmm().snapshot((0..RAM).map(Gpn))?);
    Ok(searched("VTL0's memory of the same guest without a vault", dump, &secrets()))
}
