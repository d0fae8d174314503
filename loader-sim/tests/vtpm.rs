//! The virtual TPMs of other makers: libtpms in a worker process, swtpm, and the socket that tpm2-tools speak to.

#![cfg(unix)]
#![expect(clippy::expect_used, clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "tests")]

use std::{
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use loader_sim::vtpm::{Tpm, libtpms::LibtpmsTpm};
use sha2::{Digest as _, Sha256};

const PROGRAM: &str = env!("CARGO_BIN_EXE_hvci-sim");

/// TPM2_Startup(CLEAR).
const STARTUP: &[u8] = &[0x80, 1, 0, 0, 0, 12, 0, 0, 1, 0x44, 0, 0];

/// A libtpms TPM, or `None`, said, where the library is missing.
fn libtpms() -> Option<LibtpmsTpm> {
    match LibtpmsTpm::start(Path::new(PROGRAM)) {
        Ok(tpm) => Some(tpm),
        Err(e) if e.reason.contains("install the package libtpms0") => {
            println!("skipped: {e}");
            None
        }
        Err(e) => panic!("{e}"),
    }
}

/// A command without handles and sessions.
fn command(code: u32, parameters: &[u8]) -> Vec<u8> {
    let size = u32::try_from(10 + parameters.len()).unwrap();
    [&[0x80, 0x01][..], &size.to_be_bytes(), &code.to_be_bytes(), parameters].concat()
}

fn code(response: &[u8]) -> u32 {
    u32::from_be_bytes(response[6..10].try_into().unwrap())
}

fn ok(tpm: &mut dyn Tpm, command: &[u8]) -> Vec<u8> {
    let response = tpm.exec(command).unwrap();
    assert_eq!(code(&response), 0, "{command:02x?}");
    response[10..].to_vec()
}

/// TPM2_PCR_Extend of one SHA-256 digest with the empty password.
fn extend(tpm: &mut dyn Tpm, pcr: u8, digest: [u8; 32]) {
    let handle = [0, 0, 0, pcr];
    let password = [0, 0, 0, 9, 0x40, 0, 0, 9, 0, 0, 0, 0, 0];
    let body = [&handle[..], &password, &[0, 0, 0, 1, 0, 0x0b], &digest].concat();
    let size = u32::try_from(10 + body.len()).unwrap();
    ok(tpm, &[&[0x80, 0x02][..], &size.to_be_bytes(), &0x182_u32.to_be_bytes(), &body].concat());
}

/// TPM2_PCR_Read of one SHA-256 register.
fn read(tpm: &mut dyn Tpm, pcr: u8) -> [u8; 32] {
    let mut select = [0; 3];
    select[usize::from(pcr / 8)] = 1 << (pcr % 8);
    let response = ok(tpm, &command(0x17e, &[&[0, 0, 0, 1, 0, 0x0b, 3][..], &select].concat()));
    response[response.len() - 32..].try_into().unwrap()
}

/// The name of the endorsement hierarchy's primary key for an empty-policy P-256 signing template: another for each seed.
fn endorsement_key(tpm: &mut dyn Tpm) -> Vec<u8> {
    // fixedTPM fixedParent sensitiveDataOrigin userWithAuth restricted sign; ECDSA with SHA-256 on P-256
    let public =
        [&[0, 0x23, 0, 0x0b][..], &0x0005_0072_u32.to_be_bytes(), &[0, 0, 0, 0x10, 0, 0x18, 0, 0x0b, 0, 3, 0, 0x10, 0, 0, 0, 0]].concat();
    let endorsement = 0x4000_000b_u32.to_be_bytes();
    let password = [0, 0, 0, 9, 0x40, 0, 0, 9, 0, 0, 0, 0, 0];
    let len = u16::try_from(public.len()).unwrap().to_be_bytes();
    let body = [&endorsement[..], &password, &[0, 4, 0, 0, 0, 0], &len, &public, &[0; 6]].concat();
    let size = u32::try_from(10 + body.len()).unwrap();
    let response = ok(tpm, &[&[0x80, 0x02][..], &size.to_be_bytes(), &0x131_u32.to_be_bytes(), &body].concat());
    let handle: [u8; 4] = response[..4].try_into().unwrap();
    ok(tpm, &command(0x165, &handle));
    // handle, parameterSize, TPM2B_PUBLIC
    let len = usize::from(u16::from_be_bytes(response[8..10].try_into().unwrap()));
    response[10..10 + len].to_vec()
}

fn sha256(data: &[u8]) -> [u8; 32] {
    Sha256::digest(data).into()
}

#[test]
fn sixteen_machines_have_sixteen_tpms() {
    let Some(first) = libtpms() else { return };
    let mut tpms = vec![first];
    tpms.extend((1..16).map(|_| libtpms().unwrap()));
    for (n, tpm) in (0_u8..).zip(&mut tpms) {
        ok(tpm, STARTUP);
        extend(tpm, 4, [n; 32]);
    }
    let mut keys = Vec::new();
    for (n, tpm) in (0_u8..).zip(&mut tpms) {
        assert_eq!(read(tpm, 4), sha256(&[[0; 32], [n; 32]].concat()));
        assert_eq!(read(tpm, 5), [0; 32]);
        keys.push(endorsement_key(tpm));
    }
    keys.sort();
    keys.dedup();
    assert_eq!(keys.len(), 16);
}

/// Sends a signal to a worker.
fn signal(name: &str, tpm: &LibtpmsTpm) {
    let process = tpm.process().expect("a worker").to_string();
    assert!(Command::new("kill").args([name, &process]).status().expect("kill").success());
}

#[test]
fn a_worker_that_dies_or_hangs_fails_its_own_tpm_only() {
    let (Some(mut dies), Some(mut hangs), Some(mut goes_on)) = (libtpms(), libtpms(), libtpms()) else { return };
    for tpm in [&mut dies, &mut hangs, &mut goes_on] {
        ok(tpm, STARTUP);
        extend(tpm, 7, [7; 32]);
    }
    let saved = dies.save().unwrap();

    signal("-KILL", &dies);
    let failed = dies.exec(STARTUP).unwrap_err();
    assert!(failed.reason.contains("signal: 9"), "{failed}");
    // for good
    assert_eq!(dies.exec(STARTUP).unwrap_err(), failed);
    assert_eq!(dies.reset().unwrap_err(), failed);
    assert_eq!(dies.save().unwrap_err(), failed);
    assert_eq!(dies.process(), None);

    signal("-STOP", &hangs);
    hangs.set_timeout(Duration::from_millis(50));
    let begun = Instant::now();
    let failed = hangs.exec(STARTUP).unwrap_err();
    assert!(failed.reason.contains("does not answer"), "{failed}");
    assert!(begun.elapsed() < Duration::from_secs(10));

    assert_eq!(read(&mut goes_on, 7), sha256(&[[0; 32], [7; 32]].concat()));
    // and a saved state brings the dead one back
    dies.load(&saved).unwrap();
    assert_eq!(read(&mut dies, 7), sha256(&[[0; 32], [7; 32]].concat()));
}

#[test]
fn what_is_no_worker_is_refused() {
    // ends; says something else, without end; is not there
    for program in ["/bin/true", "/bin/echo", "/usr/bin/yes", "/nonexistent/hvci-sim"] {
        let failed = LibtpmsTpm::start(Path::new(program)).unwrap_err();
        assert_eq!(failed.backend, "libtpms", "{program}: {failed}");
    }
}

#[test]
fn a_worker_knows_nothing_of_its_host_and_goes_with_its_client() {
    let Some(mut tpm) = libtpms() else { return };
    ok(&mut tpm, STARTUP);
    let process = PathBuf::from(format!("/proc/{}", tpm.process().unwrap()));
    if process.exists() {
        assert_eq!(std::fs::read(process.join("environ")).unwrap(), b"");
        assert_eq!(std::fs::read_link(process.join("cwd")).unwrap(), Path::new("/"));
        drop(tpm);
        assert!(!process.exists());
    }
    // a client that dies closes the stream, and that is enough
    let mut worker = Command::new(PROGRAM).arg("tpm-worker").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    drop(worker.stdin.take());
    assert!(worker.wait().unwrap().success());
    // as is a length that no request has
    let mut worker = Command::new(PROGRAM).arg("tpm-worker").stdin(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    worker.stdin.as_mut().unwrap().write_all(&[2, 0xff, 0xff, 0xff, 0xff]).unwrap();
    assert_eq!(worker.wait().unwrap().code(), Some(2));
}

#[test]
fn a_saved_tpm_goes_on_where_it_was() {
    let Some(mut tpm) = libtpms() else { return };
    let Some(mut other) = libtpms() else { return };
    ok(&mut tpm, STARTUP);
    for pcr in 0..16 {
        extend(&mut tpm, pcr, [pcr; 32]);
    }
    let saved = tpm.save().unwrap();
    let (key, pcrs) = (endorsement_key(&mut tpm), registers(&mut tpm));

    // in the middle of its boot: in place, and in another one
    extend(&mut tpm, 0, [0xff; 32]);
    assert_ne!(registers(&mut tpm), pcrs);
    tpm.load(&saved).unwrap();
    other.load(&saved).unwrap();
    for tpm in [&mut tpm, &mut other] {
        assert_eq!(registers(tpm), pcrs);
        assert_eq!(endorsement_key(tpm), key);
        assert_eq!(code(&tpm.exec(STARTUP).unwrap()), 0x100, "it has had its TPM2_Startup");
        // the next boot: seeds stay, registers do not
        tpm.reset().unwrap();
        assert_eq!(code(&tpm.exec(&command(0x17b, &[0, 8])).unwrap()), 0x100, "TPM2_GetRandom before TPM2_Startup");
        ok(tpm, STARTUP);
        assert_eq!(read(tpm, 4), [0; 32]);
        assert_eq!(endorsement_key(tpm), key);
    }
}

#[test]
fn what_is_no_state_leaves_the_tpm_as_it_was() {
    let Some(mut tpm) = libtpms() else { return };
    ok(&mut tpm, STARTUP);
    let saved = tpm.save().unwrap();
    extend(&mut tpm, 3, [3; 32]);
    let (process, pcrs) = (tpm.process(), registers(&mut tpm));
    let mut refused: Vec<Vec<u8>> = [0, 1, 15, 16, 44, 48, 1000, saved.len() / 2, saved.len() - 1].map(|len| saved[..len].to_vec()).into();
    for offset in (0..saved.len()).step_by(501) {
        let mut bytes = saved.clone();
        bytes[offset] ^= 0x40;
        refused.push(bytes);
    }
    // a digest that is right, over states that are not
    for (offset, len) in [(50, saved.len()), (saved.len() - 9, saved.len()), (0, 600), (0, saved.len() - 40)] {
        let mut bytes = saved[..len].to_vec();
        bytes[offset] ^= if offset == 0 { 0 } else { 0x40 };
        let digest = sha256(&bytes[44..]);
        bytes[12..44].copy_from_slice(&digest);
        refused.push(bytes);
    }
    refused.push(vec![0; 2 << 20]);
    refused.push([&saved[..], &[0]].concat());
    for (n, bytes) in refused.iter().enumerate() {
        let failed = tpm.load(bytes).err().unwrap_or_else(|| panic!("state {n} of {} bytes was taken", bytes.len()));
        assert!(!failed.reason.is_empty());
    }
    assert_eq!((tpm.process(), registers(&mut tpm)), (process, pcrs));
    tpm.load(&saved).unwrap();
    assert_eq!(read(&mut tpm, 3), [0; 32]);
}

#[test]
fn whatever_a_guest_sends_has_a_response() {
    let Some(mut tpm) = libtpms() else { return };
    ok(&mut tpm, STARTUP);
    let whole = command(0x17b, &[0, 8]);
    for len in 0..whole.len() {
        assert_ne!(code(&tpm.exec(&whole[..len]).unwrap()), 0, "{len} bytes");
    }
    for size in [4095_u32, 4096, 4097, 100_000] {
        let mut long = vec![0; usize::try_from(size).unwrap()];
        long[..10].copy_from_slice(&command(0x17b, &[])[..10]);
        long[2..6].copy_from_slice(&size.to_be_bytes());
        assert_ne!(code(&tpm.exec(&long).unwrap()), 0, "{size} bytes");
    }
    assert_eq!(code(&tpm.exec(&command(0x2000_0000, &[])).unwrap()), 0x143);
    ok(&mut tpm, &whole);
}

fn registers(tpm: &mut dyn Tpm) -> Vec<[u8; 32]> {
    (0..24).map(|pcr| read(tpm, pcr)).collect()
}
