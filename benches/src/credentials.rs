//! What the vault's operations cost: beside the bare cryptography, which is the same arithmetic with the same crates over a key at hand and
//! a random number; a secure call beside the operation that it asks for; and many credentials beside few.

use std::{hint::black_box, sync::Arc};

use anyhow::{Context, Result, ensure};
use hmac::{Hmac, Mac};
use hvci_engine::{
    addr::Gpn,
    crypto,
    digest::{Digest, DigestAlg},
    time::UnixTime,
    vault::{Caller, Challenge, Etype, Function, Handle, Key, NewCredential, Secret, Usage, UsePolicy, Vault},
};
use loader_sim::{
    host::{Config, SimHost},
    lsa::{Lsa, MemoryKeeper, Options, config},
};
use md5::Md5;
use rand_chacha::ChaCha20Rng;
use rand_core::{RngCore, SeedableRng};
use serde::Serialize;

use crate::{
    cpu,
    goal::{Goal, Must},
    table::{Table, median, number},
};

const TIMES: u32 = 5_000;
const MANY: usize = 100_000;
const FEW: usize = 100;
const USER: &str = "alice";
const DOMAIN: &str = "EXAMPLE.ORG";
const TIME: UnixTime = UnixTime(1_795_000_000);
const AS_REQ_TIMESTAMP: Usage = Usage::new(1);

/// Nanoseconds, by round.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Measured {
    /// An NTLMv2 response by the vault, of about 150 bytes.
    pub ntlm: Vec<f64>,
    /// The three HMACs that it takes, the encoding of the name, eight random bytes, and the response's bytes.
    pub ntlm_bare: Vec<f64>,
    /// PA-ENC-TIMESTAMP with AES-256 by the vault.
    pub kerberos: Vec<f64>,
    /// Deriving two keys, encrypting and authenticating as many bytes, sixteen of them random.
    pub kerberos_bare: Vec<f64>,
    /// The same by a guest's code: from its first instruction to its last.
    pub call: Vec<f64>,
    /// Adding a credential to a hundred thousand.
    pub add: Vec<f64>,
    /// Using one of a hundred, and of a hundred thousand, at random.
    pub of_few: Vec<f64>,
    /// See there.
    pub of_many: Vec<f64>,
    /// Keeping a hundred thousand, a credential.
    pub commit: Vec<f64>,
}

/// A vault with its partition, and who asks.
struct Made {
    vault: Vault,
    caller: Caller,
    handles: Vec<Handle>,
}

fn caller() -> Caller {
    Caller { module: Some(module()), vp: 0, time: TIME }
}

fn module() -> Digest {
    crypto::digest(DigestAlg::Sha256, &[b"a module"])
}

fn unlimited() -> UsePolicy {
    UsePolicy { rate: None, ..UsePolicy::default() }
}

fn add(vault: &Vault, caller: &Caller, kept: bool) -> Result<Handle> {
    let secret = Secret::NtHash(&[0x5A; 16]);
    Ok(vault.add(caller, &NewCredential { user: USER, domain: DOMAIN, secret, prefix: &[], policy: unlimited(), persistent: kept })?)
}

/// A vault with so many credentials, all of which are kept.
fn made(count: usize) -> Result<Made> {
    let pages = u64::try_from(count + 64)? / 32 + 1;
    let machine = Config { pages: pages + 16, ..Config::default() };
    let (_host, partition) = SimHost::with_partition(&machine)?;
    let pages: Vec<Gpn> = (0..pages).map(Gpn).collect();
    let (vault, _) = Vault::open(Arc::clone(&partition), &pages, config([1; 16], unlimited()), Some(Box::new(MemoryKeeper::new())))?;
    let caller = caller();
    let handles = (0..count).map(|_| add(&vault, &caller, true)).collect::<Result<Vec<_>>>()?;
    Ok(Made { vault, caller, handles })
}

/// Nanoseconds of processor time a turn.
fn each(times: u32, mut run: impl FnMut(u32) -> Result<()>) -> Result<f64> {
    let mut pass = || -> Result<f64> {
        let before = cpu::thread();
        for turn in 0..times {
            run(turn)?;
        }
        Ok((cpu::thread() - before).as_secs_f64() * 1e9 / f64::from(times))
    };
    // the caches are as this one leaves them
    pass()?;
    pass()
}

/// Target information as a domain member sends it.
fn target_info() -> Vec<u8> {
    let name = |kind: u16, text: &str| {
        let value: Vec<u8> = text.encode_utf16().flat_map(u16::to_le_bytes).collect();
        [&kind.to_le_bytes()[..], &u16::try_from(value.len()).unwrap_or_default().to_le_bytes(), &value].concat()
    };
    let time = [&[7, 0, 8, 0][..], &0x01DC_1234_5678_9ABC_u64.to_le_bytes()].concat();
    [name(2, "EXAMPLE"), name(1, "FILES"), name(4, "example.org"), name(3, "files.example.org"), time, vec![0; 4]].concat()
}

fn hmac_md5(key: &[u8], parts: &[&[u8]]) -> Result<[u8; 16]> {
    let mut mac = Hmac::<Md5>::new_from_slice(key)?;
    parts.iter().for_each(|part| mac.update(part));
    Ok(mac.finalize().into_bytes().into())
}

/// What an NTLMv2 response takes, whoever makes it.
fn bare_ntlm(hash: &[u8], random: &mut ChaCha20Rng, pairs: &[u8]) -> Result<(Vec<u8>, [u8; 16])> {
    let name: Vec<u8> = (USER.to_uppercase() + DOMAIN).encode_utf16().flat_map(u16::to_le_bytes).collect();
    let owf = hmac_md5(hash, &[&name])?;
    let mut client = [0; 8];
    random.fill_bytes(&mut client);
    let temp = [&[1, 1, 0, 0, 0, 0, 0, 0][..], &[9; 8], &client, &[0; 4], pairs, &[0; 4]].concat();
    let proof = hmac_md5(&owf, &[&[1; 8], &temp])?;
    let session = hmac_md5(&owf, &[&proof])?;
    Ok(([&proof[..], &temp].concat(), session))
}

/// Measures in turn, so many rounds.
///
/// # Errors
/// None that occurs.
pub fn measure(rounds: usize) -> Result<Measured> {
    let mut measured = Measured::default();
    let (few, many) = (made(FEW)?, made(MANY)?);
    let info = target_info();
    let challenge = Challenge { server: [1; 8], target_info: &info, target: "cifs/files.example.org", channel_binding: [0xCB; 16] };
    let first = *few.handles.first().context("no credential")?;
    let (_, response) = few.vault.ntlm_response(&few.caller, first, &challenge, false)?;
    let pairs = response.get(44..response.len() - 4).context("a short response")?.to_vec();
    let mut random = ChaCha20Rng::from_seed([7; 32]);

    let key = Key::from([0xA5; 32]);
    let secret = Secret::KerberosKey(Etype::Aes256Sha1, key.as_bytes());
    let new = NewCredential { user: USER, domain: DOMAIN, secret, prefix: &[], policy: unlimited(), persistent: false };
    let kerberos = few.vault.add(&few.caller, &new)?;
    let text = few.vault.kerberos_timestamp(&few.caller, kerberos, Etype::Aes256Sha1)?;
    let plain = Etype::Aes256Sha1.decrypt(&key, &AS_REQ_TIMESTAMP, &text).context("not authentic")?.to_vec();

    let mut lsa = Lsa::boot(Options { policy: unlimited(), ..Options::default() })?;
    let credential = lsa.add_logon(USER, DOMAIN, (18, key.as_bytes()), &unlimited(), false)?;
    // little more room than the answer takes, which is a byte more or less: what is left is filled with zeros
    let room = lsa.put(&vec![0; text.len() + 8])?;
    lsa.call(Function::KERB_TIMESTAMP, &[credential, 18, room[0], room[1]])?.0.ok()?;

    for _ in 0..rounds {
        measured.ntlm.push(each(TIMES, |_| {
            black_box(few.vault.ntlm_response(&few.caller, black_box(first), &challenge, false)?);
            Ok(())
        })?);
        measured.ntlm_bare.push(each(TIMES, |_| {
            black_box(bare_ntlm(black_box(&[0x5A; 16]), &mut random, &pairs)?);
            Ok(())
        })?);
        measured.kerberos.push(each(TIMES, |_| {
            black_box(few.vault.kerberos_timestamp(&few.caller, black_box(kerberos), Etype::Aes256Sha1)?);
            Ok(())
        })?);
        measured.kerberos_bare.push(each(TIMES, |_| {
            let mut confounder = [0; 16];
            random.fill_bytes(&mut confounder);
            black_box(Etype::Aes256Sha1.encrypt(black_box(&key), &AS_REQ_TIMESTAMP, &confounder, &plain));
            Ok(())
        })?);
        measured.call.push(each(TIMES, |_| {
            let (status, _) = lsa.call_again()?;
            ensure!(status.ok().is_ok(), "{status}");
            Ok(())
        })?);
        lsa.events();
        let of = |made: &Made| {
            each(TIMES, |turn| {
                let at = usize::try_from(turn)?.wrapping_mul(40_503) % made.handles.len();
                let handle = made.handles.get(at).context("no such credential")?;
                black_box(made.vault.ntlm_response(&made.caller, *handle, &challenge, false)?);
                Ok(())
            })
        };
        measured.of_few.push(of(&few)?);
        measured.of_many.push(of(&many)?);
        let added = each(16, |_| {
            let handle = add(&many.vault, &many.caller, true)?;
            // so that there is room for the next
            many.vault.remove(&many.caller, handle).map_err(Into::into)
        })?;
        measured.add.push(added / 1000.0);
        let before = cpu::thread();
        many.vault.commit()?;
        measured.commit.push((cpu::thread() - before).as_secs_f64() * 1e6 / f64::from(u32::try_from(MANY)?));
    }
    Ok(measured)
}

/// What each takes.
pub fn table(measured: &Measured) -> Table {
    let mut table = Table::new(1, ["ns", ""]);
    for (name, of) in [
        ("NTLMv2 response by the vault", &measured.ntlm),
        ("its bare cryptography", &measured.ntlm_bare),
        ("Kerberos timestamp, AES-256, by the vault", &measured.kerberos),
        ("its bare cryptography", &measured.kerberos_bare),
        ("the same asked for by a guest's code", &measured.call),
    ] {
        table.push([name.to_owned(), number(median(of))]);
    }
    table
}

/// What must hold.
pub fn goals(measured: &Measured) -> Vec<Goal> {
    let ratio = |of: &[f64], to: &[f64]| of.iter().zip(to).map(|(of, to)| of / to).collect();
    let over = measured.call.iter().zip(&measured.kerberos).map(|(call, operation)| (call - operation) / 1000.0).collect();
    vec![
        Goal::new("–", "NTLMv2 response / bare cryptography", Must::AtMost(1.3), ratio(&measured.ntlm, &measured.ntlm_bare)),
        Goal::new(
            "–",
            "Kerberos timestamp, AES-256 / bare cryptography",
            Must::AtMost(1.3),
            ratio(&measured.kerberos, &measured.kerberos_bare),
        ),
        Goal::new("–", "a secure call, over its operation, µs", Must::AtMost(1.0), over),
        Goal::new("–", "adding one to 100,000 and removing it, µs", Must::AtMost(20.0), measured.add.clone()),
        Goal::new("–", "using one of 100,000 / one of 100", Must::AtMost(2.0), ratio(&measured.of_many, &measured.of_few)),
        Goal::new("–", "keeping 100,000, µs a credential", Must::Shown, measured.commit.clone()),
    ]
}
