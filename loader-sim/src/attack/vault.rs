//! 71 to 85: memory of VTL1, and the credentials that are in it. What an attacker within the program that uses them can do is tried too.

use anyhow::{Context, Result, ensure};
use hvci_engine::{
    addr::{Gpa, Gpn, PAGE_SIZE},
    load::Function as LoaderFunction,
    status::HvStatus,
    vault::{Etype, Function, Output, Rate, UsePolicy},
};

use super::{Attack, attack, beyond, deputy::move_from_device, guest::POOL};
use crate::{
    device::{ASSIGNED, FROM_MEMORY},
    lsa::{
        Lsa, Needle, Options, VAULT,
        demo::{PASSWORD, REALM, USER, secrets},
        kdc::Kdc,
        kerberos, ntlm, search,
    },
    paging::entry,
};

pub(super) const ATTACKS: &[Attack] = &[
    attack(71, "vault/read", "read a frame of the vault's", "#GP, HVCI-MEM-007", |_| {
        let mut lsa = Lsa::boot(Options::default())?;
        lsa.log_on(USER, REALM, PASSWORD)?;
        lsa.guest.map(POOL.0, VAULT.start * PAGE_SIZE, entry::PRESENT)?;
        lsa.guest.read_from(0, POOL.0)
    }),
    attack(
        72,
        "vault/every-other-way",
        "reach a frame of the vault's by both kinds of device, a hypercall, an emulated instruction, the debugger and a snapshot",
        "refused by all six",
        |_| {
            let mut lsa = Lsa::boot(Options::default())?;
            lsa.log_on(USER, REALM, PASSWORD)?;
            let before = lsa.secret_pages()?;
            let (guest, page) = (&mut lsa.guest, VAULT.start * PAGE_SIZE);
            guest.map(POOL.0 + 4 * PAGE_SIZE, page, entry::PRESENT | entry::WRITABLE)?;
            let emulated = guest.device(FROM_MEMORY, page, 64)?;
            let assigned = guest.device(FROM_MEMORY | ASSIGNED, page, 64)?;
            let called = guest.hypercall_output(page)?;
            let moved = move_from_device(guest, POOL.0 + 4 * PAGE_SIZE)?;
            let mut bytes = [0; 16];
            let debugged = guest.machine.vmm().read(Gpa(page), &mut bytes);
            let snapshot = guest.machine.vmm().snapshot((0..0x400).map(Gpn))?;
            let ways = [
                emulated == "the device gets 0x6, HVCI-MEM-009",
                assigned == "the device gets 0x6",
                called == "#GP, HVCI-MEM-007",
                moved == "#GP, HVCI-MEM-009 HVCI-MEM-007",
                debugged == Err(HvStatus::ACCESS_DENIED) && bytes == [0; 16],
                snapshot.left_out == VAULT.map(Gpn).collect::<Vec<_>>(),
            ];
            ensure!(lsa.secret_pages()? == before, "the frames are written to");
            Ok(if ways == [true; 6] {
                "refused by all six".to_owned()
            } else {
                format!("{emulated}; {assigned}; {called}; {moved}; {ways:?}")
            })
        },
    ),
    attack(
        73,
        "vault/dump",
        "dump all memory that the program, its kernel, a device or a debugger can read",
        "6 secrets, none of them found",
        |_| {
            let mut lsa = Lsa::boot(Options::default())?;
            let credential = lsa.log_on(USER, REALM, PASSWORD)?;
            answer(&mut lsa, credential, "cifs/files")?;
            lsa.ask(Function::NTLM_PROTECT_CREDENTIAL, &[&[credential]])?;
            let needles = secrets();
            let found = in_dump(&lsa, &needles)?;
            Ok(format!(
                "{} secrets, {}",
                needles.len(),
                if found == 0 { "none of them found".to_owned() } else { format!("{found} found") }
            ))
        },
    ),
    attack(
        74,
        "vault/pass-the-challenge",
        "have the program answer an attacker's own challenges, from within and from other code",
        "3 of 10 answered, HVCI-VLT-003; other service: HVCI-VLT-004; other code: HVCI-VLT-001",
        |_| {
            let policy = UsePolicy { rate: Some(Rate { uses: 3, seconds: 60 }), targets: vec!["cifs/*".into()], ..UsePolicy::default() };
            let mut lsa = Lsa::boot(Options { policy, ..Options::default() })?;
            let credential = lsa.log_on(USER, REALM, PASSWORD)?;
            let answered = (0..10).filter(|_| answer(&mut lsa, credential, "cifs/files").is_ok()).count();
            let rate = codes(&lsa);
            let _ = answer(&mut lsa, credential, "http/attacker");
            let target = codes(&lsa);
            // code of the kernel's, which is no module of the machine's
            let (status, _) = lsa.guest.call(LoaderFunction(Function::KERB_TIMESTAMP.0), &[credential, 18])?;
            ensure!(status == HvStatus::ACCESS_DENIED, "other code is answered: {status}");
            Ok(format!("{answered} of 10 answered, {rate}; other service: {target}; other code: {}", codes(&lsa)))
        },
    ),
    attack(75, "vault/legacy", "ask for NTLMv1, MS-CHAPv2, LM, DES and RC4 answers", "every one: HV_STATUS 0x6, HVCI-VLT-005", |_| {
        let mut lsa = Lsa::boot(Options::default())?;
        let credential = lsa.log_on(USER, REALM, PASSWORD)?;
        let mut asked = Vec::new();
        for protocol in 1..=5 {
            asked.push((Function::NTLM_CALCULATE_NT_RESPONSE, [credential, protocol]));
        }
        for etype in [1, 2, 3, 23, 24] {
            asked.push((Function::KERB_TIMESTAMP, [credential, etype]));
        }
        every(&mut lsa, asked.iter().map(|(function, arguments)| (*function, &arguments[..])))
    }),
    attack(
        76,
        "vault/replayed-blob",
        "hand in the blob of another machine, of an earlier boot, and one that was used",
        "every one: HV_STATUS 0x6, HVCI-VLT-006",
        |_| {
            let blob_of = |vm: [u8; 16]| -> Result<(Lsa, Vec<u8>)> {
                let mut lsa = Lsa::boot(Options { vm, ..Options::default() })?;
                let credential = lsa.log_on(USER, REALM, PASSWORD)?;
                let blob = lsa.ask(Function::NTLM_PROTECT_CREDENTIAL, &[&[credential]])?;
                Ok((lsa, blob))
            };
            let ((_, others), (_, earlier)) = (blob_of([2; 16])?, blob_of([1; 16])?);
            let (mut lsa, used) = blob_of([1; 16])?;
            let good = lsa.put(&used)?;
            lsa.word(Function::UNPROTECT, &[&good])?;
            blobs(&mut lsa, &[others, earlier, used])
        },
    ),
    attack(77, "vault/swapped-blob", "hand in a user's blob as another's", "every one: HV_STATUS 0x6, HVCI-VLT-006", |_| {
        let mut lsa = Lsa::boot(Options::default())?;
        let mut out = Vec::new();
        for user in [USER, "administrator"] {
            let credential = lsa.log_on(user, REALM, PASSWORD)?;
            out.push(lsa.ask(Function::NTLM_PROTECT_CREDENTIAL, &[&[credential]])?);
        }
        let [one, other] = &out[..] else { anyhow::bail!("two blobs") };
        // the handle is in bytes 6 to 14, the number behind it
        let parts = |from: &[u8], names: std::ops::Range<usize>, of: &[u8]| -> Vec<u8> {
            from.iter().enumerate().map(|(at, byte)| if names.contains(&at) { of.get(at).copied().unwrap_or(0) } else { *byte }).collect()
        };
        blobs(&mut lsa, &[parts(one, 6..14, other), parts(other, 6..14, one), parts(one, 6..22, other)])
    }),
    attack(
        78,
        "vault/changed-blob",
        "hand in blobs with each bit flipped, cut at each byte, and one from before memory was restored",
        "every one: HV_STATUS 0x6, HVCI-VLT-006",
        |_| {
            let mut lsa = Lsa::boot(Options::default())?;
            let credential = lsa.log_on(USER, REALM, PASSWORD)?;
            // the program's memory is restored to when this blob was the latest
            let before = lsa.ask(Function::NTLM_PROTECT_CREDENTIAL, &[&[credential]])?;
            let good = lsa.put(&before)?;
            lsa.word(Function::UNPROTECT, &[&good])?;
            let latest = lsa.ask(Function::NTLM_PROTECT_CREDENTIAL, &[&[credential]])?;
            let mut wrong = vec![before];
            for at in 0..latest.len() {
                wrong.push(latest.get(..at).unwrap_or_default().to_vec());
                for bit in 0..8 {
                    let mut changed = latest.clone();
                    changed.get_mut(at).into_iter().for_each(|byte| *byte ^= 1 << bit);
                    wrong.push(changed);
                }
            }
            blobs(&mut lsa, &wrong)
        },
    ),
    attack(
        79,
        "vault/supplemental-credential",
        "ask for a raw NT hash, as KerbIumGetNtlmSupplementalCred gave it, by every number that no function has",
        "HV_STATUS 0x1e; no answer is a key",
        |_| {
            let mut lsa = Lsa::boot(Options::default())?;
            let credential = lsa.log_on(USER, REALM, PASSWORD)?;
            let known = |number: u64| Function::ALL.iter().any(|(function, ..)| function.0 == number);
            for number in (0x3_0000..0x3_0400).filter(|number| !known(*number)) {
                let (status, word) = lsa.call(Function(number), &[credential, 0x40_000, 0x1000])?;
                ensure!(status == HvStatus::FEATURE_UNAVAILABLE && word == 0, "function {number:#x}: {status}");
            }
            // what functions say of their answers is checked against what they answer in the tests (`tests/vault/outputs.rs`)
            let bytes =
                Function::ALL.iter().filter(|(.., output)| !matches!(output, Output::Nothing | Output::Handle | Output::Truth)).count();
            ensure!(bytes == 13, "{bytes} functions answer with bytes");
            Ok("HV_STATUS 0x1e; no answer is a key".to_owned())
        },
    ),
    attack(80, "vault/compare-oracle", "find a password by adding guesses and comparing them", "5 of 100 compared, HVCI-VLT-003", |_| {
        let policy = UsePolicy { rate: Some(Rate { uses: 5, seconds: 60 }), ..UsePolicy::default() };
        let mut lsa = Lsa::boot(Options { policy, ..Options::default() })?;
        let credential = lsa.log_on(USER, REALM, PASSWORD)?;
        let mut compared = 0;
        for guess in 0..100_u8 {
            let other = lsa.add_logon(USER, REALM, (1, &[guess; 16]), &UsePolicy::default(), false)?;
            let (status, same) = lsa.call(Function::NTLM_COMPARE_CREDENTIALS, &[credential, other])?;
            ensure!(same == 0, "the guess is right");
            compared += u32::from(status == HvStatus::SUCCESS);
            lsa.word(Function::REMOVE, &[&[other]])?;
        }
        Ok(format!("{compared} of 100 compared, {}", codes(&lsa)))
    }),
    beyond(81, "vault/ticket-relay", "send a service's ticket and authenticator from another machine", "accepted as alice's", |_| {
        let mut lsa = Lsa::boot(Options::default())?;
        let credential = lsa.log_on(USER, REALM, PASSWORD)?;
        let (etype, now) = (Etype::Aes256Sha1, lsa.guest.engine.time);
        let kdc = Kdc::new(REALM, USER, PASSWORD, etype);
        let request = kerberos::as_request(&mut lsa, credential, (USER, REALM), etype, 1)?;
        let tgt = kerberos::reply(&mut lsa, credential, &kdc.as_reply(&request, now)?)?;
        let request = kerberos::tgs_request(&mut lsa, &tgt, REALM, "cifs/files", etype, 2)?;
        let ticket = kerberos::reply(&mut lsa, tgt.session, &kdc.tgs_reply(&request, now)?)?;
        // what is sent is in VTL0's memory; whoever reads it there first may send it
        let stolen = kerberos::ap_request(&mut lsa, &ticket, etype, [0; 16], 0)?;
        drop(lsa);
        Ok(format!("accepted as {}'s", kdc.accept(&stolen)?.client))
    }),
    attack(
        82,
        "vault/patched-client",
        "patch the program's code, then unload it and ask in its place",
        "#GP, HVCI-MEM-005; then HV_STATUS 0x6, HVCI-VLT-001; no secret found",
        |_| {
            let mut lsa = Lsa::boot(Options::default())?;
            let credential = lsa.log_on(USER, REALM, PASSWORD)?;
            let entry = lsa.entry();
            lsa.events();
            let patched = lsa.guest.write_to(0, entry)?;
            let id = lsa.module.0;
            let (status, _) = lsa.guest.call(LoaderFunction::UNLOAD_MODULE, &[id])?;
            status.ok()?;
            lsa.events();
            let (status, _) = lsa.guest.call(LoaderFunction(Function::KERB_TIMESTAMP.0), &[credential, 18])?;
            let refused = lsa.guest.outcome(status);
            let found = in_dump(&lsa, &secrets())?;
            Ok(format!("{patched}; then {refused}; {}", if found == 0 { "no secret found".to_owned() } else { format!("{found} found") }))
        },
    ),
    beyond(
        83,
        "vault/keylogger",
        "read the password where it is typed in, before the program hands it over",
        "the password is there",
        |_| {
            let mut lsa = Lsa::boot(Options::default())?;
            let typed = lsa.put(PASSWORD.as_bytes())?;
            let seen = in_dump(&lsa, &secrets())?;
            ensure!(typed[1] == PASSWORD.len() as u64, "nothing was typed");
            Ok(if seen > 0 { "the password is there" } else { "nothing is found" }.to_owned())
        },
    ),
    attack(
        84,
        "vault/logs",
        "look for secrets in events, statuses, errors and what Debug prints, of every function",
        "6 secrets, none of them found",
        |_| {
            let mut lsa = Lsa::boot(Options::default())?;
            let credential = lsa.log_on(USER, REALM, PASSWORD)?;
            let mut said = format!("{lsa:#?} {:?}", lsa.vault());
            for (function, name, _) in Function::ALL {
                let (status, word) = lsa.call(*function, &[credential; 12])?;
                said.push_str(&format!("{name} {status} {word:#x}\n"));
            }
            said.push_str(&serde_json::to_string(&lsa.events())?);
            let needles = secrets();
            let found = search(said.as_bytes(), &needles).len();
            Ok(format!(
                "{} secrets, {}",
                needles.len(),
                if found == 0 { "none of them found".to_owned() } else { format!("{found} found") }
            ))
        },
    ),
    attack(
        85,
        "vault/unwritten-answer",
        "offer more room than an answer takes, and look at the rest of it",
        "the answer, then zeros",
        |_| {
            let mut lsa = Lsa::boot(Options::default())?;
            let credential = lsa.log_on(USER, REALM, PASSWORD)?;
            let room = lsa.put(&[0xA5; 0x1000])?;
            let (status, len) = lsa.call(Function::KERB_TIMESTAMP, &[credential, 18, room[0], room[1]])?;
            status.ok()?;
            let bytes = lsa.guest.read(room[0], 0x1010)?;
            let (answer, rest) = bytes.split_at_checked(usize::try_from(len)?).context("the answer is longer than its room")?;
            let (free, behind) = rest.split_at_checked(rest.len() - 0x10).context("no rest")?;
            ensure!(behind.iter().all(|byte| *byte == 0), "what lies behind the room is written to");
            Ok(if !answer.is_empty() && free.iter().all(|byte| *byte == 0) { "the answer, then zeros" } else { "something else" }
                .to_owned())
        },
    ),
];

/// How often secrets are found in all memory that VTL0 can read.
fn in_dump(lsa: &Lsa, needles: &[Needle]) -> Result<usize> {
    Ok(lsa.dump()?.pages.iter().map(|(_, bytes)| search(bytes, needles).len()).sum())
}

/// A response to a challenge of the attacker's.
fn answer(lsa: &mut Lsa, credential: u64, target: &str) -> Result<()> {
    ntlm::respond(lsa, credential, 0x1122_3344_5566_7788, &[], ntlm::Target { name: target, channel_binding: [0; 16] }).map(drop)
}

/// What the vault refused since the last time, by its codes.
fn codes(lsa: &Lsa) -> String {
    let mut codes: Vec<String> = lsa.events().iter().filter_map(|event| event.code).map(|code| code.to_string()).collect();
    codes.dedup();
    codes.join(" ")
}

/// Whether each call is refused alike.
fn every<'a>(lsa: &mut Lsa, calls: impl Iterator<Item = (Function, &'a [u64])>) -> Result<String> {
    lsa.events();
    let mut observed = Vec::new();
    for (function, arguments) in calls {
        let (status, _) = lsa.call(function, arguments)?;
        observed.push(lsa.guest.outcome(status));
    }
    Ok(alike(observed))
}

fn alike(mut observed: Vec<String>) -> String {
    observed.sort_unstable();
    observed.dedup();
    match &observed[..] {
        [one] => format!("every one: {one}"),
        several => several.join("; "),
    }
}

/// Hands blobs in that are none of them good.
fn blobs(lsa: &mut Lsa, wrong: &[Vec<u8>]) -> Result<String> {
    let room = lsa.put(wrong.iter().max_by_key(|blob| blob.len()).map_or(&[], |blob| blob))?[0];
    lsa.events();
    let mut observed = Vec::new();
    for blob in wrong {
        lsa.guest.write(room, blob)?;
        let (status, _) = lsa.call(Function::UNPROTECT, &[room, blob.len() as u64])?;
        observed.push(lsa.guest.outcome(status));
    }
    Ok(alike(observed))
}
