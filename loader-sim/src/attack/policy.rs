//! 59 to 69: getting round the policy instead of the protection.

use anyhow::{Context, Result, ensure};
use corpus::synth::{layout::authentihash, mutate::Mutation};
use hvci_engine::{
    addr::{Gpn, PAGE_SIZE},
    digest::{Digest, DigestAlg},
    frames::Kind,
    host::Enforcer,
    load::Function,
    signature::{
        block_list::{BlockList, BlockedCertificate},
        cert::Certificate,
    },
    status::HvStatus,
    time::UnixTime,
};
use iced_x86::code_asm::*;
use x509_cert::der::Encode;

use super::{
    Attack, attack, beyond, forge,
    guest::{COOKIE, DATA, FUNCTION, MODULE, OTHER_CODE, POOL, RAX},
};

pub(super) const ATTACKS: &[Attack] = &[
    attack(
        59,
        "policy/vulnerable-driver",
        "load a driver that is signed well and known to be vulnerable, before and after it is listed",
        "goes through; HV_STATUS 0x6, HVCI-POL-006",
        |guest| {
            let file = forge::signed_driver(&forge::driver("vulnerable"), |_, _| {})?;
            let before = guest.submit(&file)?;
            let id = guest.engine.loader.modules_loaded().first().context("no driver")?.id;
            guest.engine.loader.unload(id)?;
            guest.engine.loader.replace_blocked(listing(&file, 1)?)?;
            Ok(format!("{before}; {}", guest.submit(&file)?))
        },
    ),
    attack(
        60,
        "policy/evasion",
        "change a listed driver where no signature covers it: the checksum, and another entry of its certificate table",
        "HV_STATUS 0x6, HVCI-POL-006; HV_STATUS 0x6, HVCI-POL-006",
        |guest| {
            let file = forge::signed_driver(&forge::driver("vulnerable"), |_, _| {})?;
            guest.engine.loader.replace_blocked(listing(&file, 1)?)?;
            let mut outcomes = Vec::new();
            for name in ["checksum", "entry-of-other-type"] {
                let changed = Mutation::find(name).context("no such mutation")?.apply(&file, &file)?;
                ensure!(changed != file, "{name} changes nothing");
                outcomes.push(guest.submit(&changed)?);
            }
            Ok(outcomes.join("; "))
        },
    ),
    attack(
        61,
        "policy/revoked-signer",
        "load a driver of a signer that is refused since June, signed in March and signed in August",
        "goes through; HV_STATUS 0x6, HVCI-POL-006",
        |guest| {
            let date = |text| UnixTime::parse(text).context("no date");
            let signer = Certificate::parse(&forge::driver_key()?.certificate.to_der()?)?;
            let mut list = BlockList::new(1);
            let blocked = BlockedCertificate { since: Some(date("2025-06-01")?), reason: "its key was stolen".to_owned() };
            list.block_certificate(signer.tbs_hash(DigestAlg::Sha256), blocked);
            guest.engine.loader.replace_blocked(list)?;
            let march = guest.submit(&forge::stamped_driver("march", date("2025-03-01")?)?)?;
            let august = guest.submit(&forge::stamped_driver("august", date("2025-08-01")?)?)?;
            Ok(format!("{march}; {august}"))
        },
    ),
    attack(
        62,
        "policy/older-list",
        "put an older list in the place of the one that refuses a driver",
        "refused with 0x8; HV_STATUS 0x6, HVCI-POL-006",
        |guest| {
            let file = forge::signed_driver(&forge::driver("vulnerable"), |_, _| {})?;
            guest.engine.loader.replace_blocked(listing(&file, 7)?)?;
            let replaced = guest.engine.loader.replace_blocked(BlockList::new(6)).err();
            let replaced = replaced.map_or_else(|| "it is REPLACED".to_owned(), |status| format!("refused with {:#x}", status.0));
            Ok(format!("{replaced}; {}", guest.submit(&file)?))
        },
    ),
    beyond(
        63,
        "policy/data-only",
        "change a pointer to a function in the guest's data, and no code",
        "other verified code runs",
        |guest| {
            guest.load()?;
            guest.write(DATA.1, &MODULE.0.to_le_bytes())?;
            let end = guest.attempt(0, &|a| {
                a.mov(rbx, DATA.0)?;
                a.mov(rax, FUNCTION)?;
                a.mov(qword_ptr(rbx), rax)?;
                a.call(qword_ptr(rbx))
            })?;
            ensure!(end == "goes through", "the call: {end}");
            Ok(if guest.register(0, RAX)? == u64::from(OTHER_CODE) { "other verified code runs" } else { "it does not run" }.to_owned())
        },
    ),
    attack(
        64,
        "policy/guest-state",
        "tell every word of the guest's own memory that signatures are off, then load an unsigned module",
        "HV_STATUS 0x6, HVCI-SIG-001",
        |guest| {
            for page in 0..8 {
                guest.write(DATA.1 + page * PAGE_SIZE + if page == 1 { 0x400 } else { 0 }, &[0; 0x400])?;
            }
            guest.submit(&forge::Module::new()?.unsigned()?)
        },
    ),
    attack(65, "policy/protected-section", "write to a module's data that is protected", "#GP, HVCI-MEM-005", |guest| {
        let id = guest.load()?;
        let data = guest.segment(Kind::Data)?.start;
        guest.call(Function::PROTECT_MEMORY, &[id, data.0])?.0.ok()?;
        guest.write_to(0, data.0)
    }),
    attack(
        65,
        "policy/pool",
        "write to a secure pool, by itself and by the service beyond its end",
        "#GP, HVCI-MEM-005; HV_STATUS 0x5, HVCI-MEM-013",
        |guest| {
            let region = u64::from(guest.pool(2)?);
            guest.write(DATA.1, b"inside!!")?;
            let inside = guest.ask(Function::WRITE_REGION, &[region, COOKIE, 0xFFC, DATA.1, 8])?;
            ensure!(inside == "goes through" && guest.read(POOL.1 + 0xFFC, 8)? == b"inside!!", "within it: {inside}");
            let directly = guest.write_to(0, POOL.0)?;
            let beyond = guest.ask(Function::WRITE_REGION, &[region, COOKIE, 0x1FFC, DATA.1, 8])?;
            ensure!(guest.read(POOL.1 + 0x1FFC, 4)? == [0; 4], "a part of it is written");
            Ok(format!("{directly}; {beyond}"))
        },
    ),
    attack(
        66,
        "policy/pool-confusion",
        "use a secure pool with another's cookie, with an offset that overflows, after it is freed, and as what it is not",
        "every one is refused",
        |guest| {
            let region = u64::from(guest.pool(1)?);
            let before = guest.read(POOL.1, 0x1000)?;
            guest.write(DATA.1, &[0xEE; 64])?;
            let attempts: [(Function, &[u64]); 7] = [
                (Function::WRITE_REGION, &[region, COOKIE ^ 1, 0, DATA.1, 8]),
                (Function::WRITE_REGION, &[region, COOKIE, u64::MAX - 3, DATA.1, 8]),
                (Function::WRITE_REGION, &[region, COOKIE, 0, DATA.1, PAGE_SIZE + 1]),
                (Function::WRITE_REGION, &[region + (1 << 32), COOKIE, 0, DATA.1, 8]),
                (Function::MARK_CALL_TARGET, &[region, COOKIE, MODULE.0]),
                (Function::RELEASE_REGION, &[region, COOKIE ^ 1]),
                (Function::PROTECT_REGION, &[0, DATA.1 + 0x7000, 1, 0, COOKIE]),
            ];
            // the pool's own page once more
            guest.write(DATA.1 + 0x7000, &(POOL.1 / PAGE_SIZE).to_le_bytes())?;
            for (function, arguments) in attempts {
                let observed = guest.ask(function, arguments)?;
                if observed == "goes through" || guest.read(POOL.1, 0x1000)? != before {
                    return Ok(format!("{function:x?} {arguments:x?}: {observed}"));
                }
            }
            guest.call(Function::RELEASE_REGION, &[region, COOKIE])?.0.ok()?;
            let freed = guest.ask(Function::WRITE_REGION, &[region, COOKIE, 0, DATA.1, 8])?;
            Ok(if freed == "goes through" { "a freed pool is WRITTEN" } else { "every one is refused" }.to_owned())
        },
    ),
    attack(
        67,
        "policy/call-targets",
        "make a pool page a valid target of indirect calls: by writing the bitmap, and by asking for it",
        "#GP, HVCI-MEM-005; HV_STATUS 0x6, HVCI-MEM-013",
        |guest| {
            guest.load()?;
            guest.write(DATA.1 + 0x7000, &(POOL.1 / PAGE_SIZE).to_le_bytes())?;
            // bits that are there before do not stay
            guest.write(POOL.1, &[0xFF; 64])?;
            let base = MODULE.0 - 0x1000;
            let (status, region) = guest.call(Function::PROTECT_REGION, &[1, DATA.1 + 0x7000, 1, base, COOKIE])?;
            status.ok()?;
            ensure!(guest.read(POOL.1, 64)? == [0; 64], "the guest's bits stay");
            let proper = guest.ask(Function::MARK_CALL_TARGET, &[region, COOKIE, MODULE.0])?;
            // two bits for each 16 bytes
            ensure!(proper == "goes through" && guest.read(POOL.1 + 0x40, 1)? == [1], "an address in sealed code: {proper}");
            let directly = guest.write_to(0, POOL.0)?;
            let data = guest.segment(Kind::Data)?.start.0;
            let asked = guest.ask(Function::MARK_CALL_TARGET, &[region, COOKIE, data])?;
            Ok(format!("{directly}; {asked}"))
        },
    ),
    attack(
        68,
        "policy/reload",
        "load and unload one module fifty times, and load it twice",
        "nothing is left; HV_STATUS 0x19, HVCI-MEM-011",
        |guest| {
            for _ in 0..50 {
                let id = guest.load()?;
                guest.call(Function::UNLOAD_MODULE, &[id])?.0.ok()?;
            }
            let left = guest.engine.loader.modules_loaded().len();
            let owned = (0..16).filter(|page| guest.engine.partition.kind(Gpn(MODULE.1 / PAGE_SIZE + page)) != Some(Kind::Data)).count();
            ensure!(left == 0 && owned == 0, "{left} modules and {owned} pages are left");
            let arguments = guest.present(&forge::Module::new()?.signed()?)?;
            let first = guest.ask(Function::VALIDATE_MODULE, &arguments)?;
            ensure!(first == "goes through", "the first: {first}");
            let second = guest.ask(Function::VALIDATE_MODULE, &arguments)?;
            Ok(format!("nothing is left; {second}"))
        },
    ),
    attack(
        69,
        "policy/older-snapshot",
        "restore the protection of a time before a module was loaded",
        "refused with 0x8, still sealed",
        |guest| {
            let mut saved = Vec::new();
            guest.engine.partition.save(&mut |bytes| saved.extend_from_slice(bytes));
            let mut table = Vec::new();
            guest.engine.loader.save(&mut |bytes| table.extend_from_slice(bytes))?;
            guest.load()?;
            ensure!(guest.engine.loader.restore(&table) == Err(HvStatus::OPERATION_DENIED), "the table of modules of that time is taken");
            let restored = guest.engine.partition.restore(&saved);
            let observed = guest.write_to(0, MODULE.0)?;
            let sealed = if observed == "#GP, HVCI-MEM-005" { "still sealed" } else { "OPEN" };
            Ok(format!(
                "{}, {sealed}",
                restored.err().map_or_else(|| "RESTORED".to_owned(), |status| format!("refused with {:#x}", status.0))
            ))
        },
    ),
];

/// A list of one driver.
fn listing(file: &[u8], version: u64) -> Result<BlockList> {
    let mut list = BlockList::new(version);
    let digest = Digest::new(DigestAlg::Sha256, &authentihash(file, DigestAlg::Sha256)?).context("no digest")?;
    list.block_file(digest, "abused to switch protection off");
    Ok(list)
}
