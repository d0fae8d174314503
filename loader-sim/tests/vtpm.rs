//! The virtual TPMs of other makers: libtpms in a worker process, swtpm, and the socket that tpm2-tools speak to.

#![cfg(unix)]
#![expect(clippy::expect_used, clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "tests")]

use std::{
    io::{BufRead as _, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    os::unix::{fs::PermissionsExt as _, net::UnixStream},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use loader_sim::vtpm::{
    MAX_MESSAGE, Tpm,
    embedded::EmbeddedTpm,
    ledger::{Ledger, LedgerError},
    libtpms::LibtpmsTpm,
    sealed_state,
    socket::Server,
    swtpm::SwtpmTpm,
};
use rand_chacha::ChaCha8Rng;
use rand_core::{RngCore as _, SeedableRng as _};
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

/// A swtpm TPM, or `None`, said, where the program is missing.
fn swtpm() -> Option<SwtpmTpm> {
    match SwtpmTpm::start() {
        Ok(tpm) => Some(tpm),
        Err(e) if e.reason.contains("install the package swtpm") => {
            println!("skipped: {e}");
            None
        }
        Err(e) => panic!("{e}"),
    }
}

/// A new TPM, or `None`, said, where it cannot be had.
type Start = fn() -> Option<Box<dyn Tpm>>;

/// What every backend is to do.
const BACKENDS: &[(&str, Start)] = &[
    ("embedded", || EmbeddedTpm::new().ok().map(|tpm| Box::new(tpm) as Box<dyn Tpm>)),
    ("libtpms", || libtpms().map(|tpm| Box::new(tpm) as Box<dyn Tpm>)),
    ("swtpm", || swtpm().map(|tpm| Box::new(tpm) as Box<dyn Tpm>)),
];

/// Two TPMs of each backend that is there.
fn pairs() -> impl Iterator<Item = (&'static str, Box<dyn Tpm>, Box<dyn Tpm>)> {
    BACKENDS.iter().filter_map(|(name, start)| {
        let (first, second) = (start()?, start()?);
        println!("{name}");
        Some((*name, first, second))
    })
}

/// A command without handles and sessions.
fn command(code: u32, parameters: &[u8]) -> Vec<u8> {
    let size = u32::try_from(10 + parameters.len()).unwrap();
    [&[0x80, 0x01][..], &size.to_be_bytes(), &code.to_be_bytes(), parameters].concat()
}

/// A command with the empty password.
fn authorized(code: u32, handles: &[u32], parameters: &[u8]) -> Vec<u8> {
    let handles: Vec<u8> = handles.iter().flat_map(|handle| handle.to_be_bytes()).collect();
    let body = [&handles[..], &[0, 0, 0, 9, 0x40, 0, 0, 9, 0, 0, 0, 0, 0], parameters].concat();
    let size = u32::try_from(10 + body.len()).unwrap();
    [&[0x80, 0x02][..], &size.to_be_bytes(), &code.to_be_bytes(), &body].concat()
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
    ok(tpm, &authorized(0x182, &[pcr.into()], &[&[0, 0, 0, 1, 0, 0x0b][..], &digest].concat()));
}

/// TPM2_PCR_Read of one SHA-256 register.
fn read(tpm: &mut dyn Tpm, pcr: u8) -> [u8; 32] {
    let mut select = [0; 3];
    select[usize::from(pcr / 8)] = 1 << (pcr % 8);
    let response = ok(tpm, &command(0x17e, &[&[0, 0, 0, 1, 0, 0x0b, 3][..], &select].concat()));
    response[response.len() - 32..].try_into().unwrap()
}

/// An empty-policy P-256 signing template: fixedTPM fixedParent sensitiveDataOrigin userWithAuth restricted sign; ECDSA with SHA-256.
fn signing_template() -> Vec<u8> {
    [&[0, 0x23, 0, 0x0b][..], &0x0005_0072_u32.to_be_bytes(), &[0, 0, 0, 0x10, 0, 0x18, 0, 0x0b, 0, 3, 0, 0x10, 0, 0, 0, 0]].concat()
}

/// TPM2_CreatePrimary's parameters.
fn primary(public: &[u8]) -> Vec<u8> {
    let len = u16::try_from(public.len()).unwrap().to_be_bytes();
    [&[0, 4, 0, 0, 0, 0][..], &len, public, &[0; 6]].concat()
}

/// The public area of the endorsement hierarchy's primary key for that template: another for each seed.
fn endorsement_key(tpm: &mut dyn Tpm) -> Vec<u8> {
    let response = ok(tpm, &authorized(0x131, &[0x4000_000b], &primary(&signing_template())));
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
    for (name, mut tpm, mut other) in pairs() {
        let (tpm, other) = (tpm.as_mut(), other.as_mut());
        ok(tpm, STARTUP);
        for pcr in 0..16 {
            extend(tpm, pcr, [pcr; 32]);
        }
        let saved = tpm.save().unwrap();
        let (key, pcrs) = (endorsement_key(tpm), registers(tpm));

        // in the middle of its boot: in place, and in another one
        extend(tpm, 0, [0xff; 32]);
        assert_ne!(registers(tpm), pcrs, "{name}");
        tpm.load(&saved).unwrap();
        other.load(&saved).unwrap();
        for tpm in [tpm, other] {
            assert_eq!(registers(tpm), pcrs, "{name}");
            assert_eq!(endorsement_key(tpm), key, "{name}");
            assert_eq!(code(&tpm.exec(STARTUP).unwrap()), 0x100, "{name}: it has had its TPM2_Startup");
            // the next boot: seeds stay, registers do not
            tpm.reset().unwrap();
            assert_eq!(code(&tpm.exec(&command(0x17b, &[0, 8])).unwrap()), 0x100, "{name}: TPM2_GetRandom before TPM2_Startup");
            ok(tpm, STARTUP);
            assert_eq!(read(tpm, 4), [0; 32], "{name}");
            assert_eq!(endorsement_key(tpm), key, "{name}");
        }
    }
}

#[test]
fn a_state_is_of_one_backend() {
    let (Some(mut libtpms), Some(mut swtpm)) = (libtpms(), swtpm()) else { return };
    ok(&mut libtpms, STARTUP);
    ok(&mut swtpm, STARTUP);
    let (one, other) = (libtpms.save().unwrap(), swtpm.save().unwrap());
    assert!(libtpms.load(&other).is_err());
    assert!(swtpm.load(&one).is_err());
    assert_eq!(read(&mut libtpms, 0), [0; 32]);
    assert_eq!(read(&mut swtpm, 0), [0; 32]);
}

#[test]
fn swtpm_ends_with_its_tpm_and_leaves_nothing() {
    let (Some(mut dies), Some(mut goes_on)) = (swtpm(), swtpm()) else { return };
    ok(&mut goes_on, STARTUP);
    let process = dies.process().unwrap().to_string();
    assert!(Command::new("kill").args(["-KILL", &process]).status().expect("kill").success());
    let failed = dies.exec(STARTUP).unwrap_err();
    assert!(failed.reason.contains("signal: 9"), "{failed}");
    assert_eq!(dies.reset().unwrap_err(), failed);

    let mut hangs = swtpm().unwrap();
    let process = hangs.process().unwrap().to_string();
    assert!(Command::new("kill").args(["-STOP", &process]).status().expect("kill").success());
    hangs.set_timeout(Duration::from_millis(50));
    assert!(hangs.exec(STARTUP).unwrap_err().reason.contains("does not answer"));
    ok(&mut goes_on, &command(0x17b, &[0, 8]));

    let running = PathBuf::from(format!("/proc/{}", goes_on.process().unwrap()));
    let arguments = std::fs::read_to_string(running.join("cmdline"));
    drop(goes_on);
    if let Ok(arguments) = arguments {
        let folder = arguments.split('\0').find_map(|argument| argument.strip_prefix("dir=")?.split(',').next()).unwrap();
        assert!(!Path::new(folder).exists() && !running.exists());
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
fn whatever_a_guest_sends_has_a_response_and_everywhere_the_same() {
    let mut commands = Vec::new();
    let whole = command(0x17b, &[0, 8]);
    // every length with every tag, and a length that is not the one said
    for tag in [0x8001_u16, 0x8002, 0x8003, 0x0000, 0x00c1] {
        for said in [0, 9, 10, 11, 13, 4096, 4097, u32::MAX] {
            for len in 0..whole.len() {
                let mut bytes = whole.clone();
                bytes[..2].copy_from_slice(&tag.to_be_bytes());
                bytes[2..6].copy_from_slice(&said.to_be_bytes());
                bytes.truncate(len);
                commands.push(bytes);
            }
        }
    }
    for size in [4095_u32, 4096, 4097, 100_000] {
        let mut long = vec![0; usize::try_from(size).unwrap()];
        long[..10].copy_from_slice(&command(0x17b, &[])[..10]);
        long[2..6].copy_from_slice(&size.to_be_bytes());
        commands.push(long);
    }
    commands.push(command(0x2000_0000, &[]));

    let mut expected: Option<Vec<Vec<u8>>> = None;
    for (name, mut tpm, _) in pairs() {
        // before TPM2_Startup, and after
        let mut responses: Vec<Vec<u8>> = commands.iter().map(|bytes| tpm.exec(bytes).unwrap()).collect();
        ok(tpm.as_mut(), STARTUP);
        responses.extend(commands.iter().map(|bytes| tpm.exec(bytes).unwrap()));
        assert!(responses.iter().all(|response| response.len() == 10 && code(response) != 0), "{name}");
        assert_eq!(code(responses.last().unwrap()), 0x143, "{name}");
        let expected = expected.get_or_insert_with(|| responses.clone());
        let differing = expected.iter().zip(&responses).zip(commands.iter().chain(&commands)).find(|((one, other), _)| one != other);
        assert!(differing.is_none(), "{name}: {differing:02x?}");
        ok(tpm.as_mut(), &whole);
    }
}

fn registers(tpm: &mut dyn Tpm) -> Vec<[u8; 32]> {
    (0..24).map(|pcr| read(tpm, pcr)).collect()
}

/// A TPM on a socket, as long as this lives.
struct Served {
    folder: tempfile::TempDir,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Served {
    fn start(mut tpm: Box<dyn Tpm>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let server = Server::unix(&folder.path().join("tpm")).unwrap();
        let thread = std::thread::spawn(move || server.serve(tpm.as_mut(), None).unwrap());
        Self { folder, thread: Some(thread) }
    }

    fn socket(&self, name: &str) -> UnixStream {
        let socket = UnixStream::connect(self.folder.path().join(name)).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        socket
    }

    /// One of tpm2-tools, run in the folder; what it says, if it succeeds.
    fn tool(&self, name: &str, arguments: &[&str]) -> Result<String, String> {
        let output = Command::new(name)
            .args(arguments)
            .current_dir(&self.folder)
            .env("TPM2TOOLS_TCTI", "swtpm:path=tpm")
            .output()
            .unwrap_or_else(|e| panic!("{name}: {e}"));
        let said = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        if output.status.success() { Ok(said(&output.stdout)) } else { Err(said(&output.stderr)) }
    }

    /// As [`tool`](Self::tool); it succeeds, and leaves no object in the TPM.
    fn run(&self, line: &str) -> String {
        let words: Vec<&str> = line.split(' ').collect();
        let said = self.tool(words[0], &words[1..]).unwrap_or_else(|e| panic!("{line}: {e}"));
        self.tool("tpm2_flushcontext", &["-t"]).unwrap_or_else(|e| panic!("after {line}: {e}"));
        said
    }

    /// As [`tool`](Self::tool); it fails.
    fn refused(&self, line: &str) -> String {
        let words: Vec<&str> = line.split(' ').collect();
        let why = self.tool(words[0], &words[1..]).map(|said| panic!("{line}: {said}")).unwrap_err();
        for what in ["-t", "-l"] {
            self.tool("tpm2_flushcontext", &[what]).unwrap_or_else(|e| panic!("after {line}: {e}"));
        }
        why
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let mut control = self.socket("tpm.ctrl");
        control.write_all(&3_u32.to_be_bytes()).unwrap();
        let mut result = [0xff; 4];
        control.read_exact(&mut result).unwrap();
        assert_eq!(result, [0; 4]);
        let served = self.thread.take().unwrap().join();
        // another failure is the one to show
        assert!(std::thread::panicking() || served.is_ok());
        assert!(!self.folder.path().join("tpm").exists() && !self.folder.path().join("tpm.ctrl").exists());
    }
}

#[test]
fn tpm2_tools_work() {
    if Command::new("tpm2_pcrread").arg("--version").output().is_err() {
        println!("skipped: there are no tpm2-tools: install the package tpm2-tools");
        return;
    }
    for (name, start) in BACKENDS {
        let Some(tpm) = start() else { continue };
        println!("{name}");
        let served = Served::start(tpm);
        served.run("tpm2_startup -c");

        // registers
        let measured = hex::encode([0x5a; 32]);
        served.run(&format!("tpm2_pcrextend 11:sha256={measured}"));
        let expected = hex::encode_upper(sha256(&[[0; 32], [0x5a; 32]].concat()));
        assert!(served.run("tpm2_pcrread sha256:11").contains(&expected), "{name}");

        // a quote
        let sign = "fixedtpm|fixedparent|sensitivedataorigin|userwithauth|restricted|sign";
        served.run(&format!("tpm2_createprimary -C e -G ecc256:ecdsa-sha256:null -a {sign} -c ak.ctx"));
        served.run("tpm2_readpublic -c ak.ctx -f pem -o ak.pem");
        served.run("tpm2_quote -c ak.ctx -l sha256:0,7,11 -q c0ffee -m quote -s signature -o pcrs -g sha256");
        served.run("tpm2_checkquote -u ak.pem -m quote -s signature -f pcrs -g sha256 -q c0ffee");
        served.refused("tpm2_checkquote -u ak.pem -m quote -s signature -f pcrs -g sha256 -q c0ffef");

        // a secret for one state of the machine
        std::fs::write(served.folder.path().join("secret"), "the volume's key").unwrap();
        served.run("tpm2_createprimary -C o -G ecc -c primary.ctx");
        served.run("tpm2_createpolicy --policy-pcr -l sha256:7,11 -L policy");
        served.run("tpm2_create -C primary.ctx -i secret -L policy -u sealed.pub -r sealed.priv");
        served.run("tpm2_load -C primary.ctx -u sealed.pub -r sealed.priv -c sealed.ctx");
        assert_eq!(served.run("tpm2_unseal -c sealed.ctx -p pcr:sha256:7,11"), "the volume's key", "{name}");
        served.run(&format!("tpm2_pcrextend 11:sha256={measured}"));
        let why = served.refused("tpm2_unseal -c sealed.ctx -p pcr:sha256:7,11");
        assert!(why.contains("0x99D") || why.contains("0x99d"), "{name}: {why}");

        // a counter
        served.run("tpm2_nvdefine 0x1500001 -C o -s 8 -a ownerread|ownerwrite|nt=counter");
        let read = || {
            let tool = Command::new("tpm2_nvread")
                .args(["0x1500001", "-C", "o"])
                .current_dir(&served.folder)
                .env("TPM2TOOLS_TCTI", "swtpm:path=tpm")
                .output()
                .unwrap();
            u64::from_be_bytes(tool.stdout.try_into().unwrap())
        };
        served.run("tpm2_nvincrement 0x1500001 -C o");
        let first = read();
        served.run("tpm2_nvincrement 0x1500001 -C o");
        served.run("tpm2_nvincrement 0x1500001 -C o");
        assert_eq!(read(), first + 2, "{name}");
    }
}

#[test]
fn tpm2_tools_encrypt_what_they_say_and_bind_a_key_to_the_endorsement_key() {
    if Command::new("tpm2_pcrread").arg("--version").output().is_err() {
        println!("skipped: there are no tpm2-tools: install the package tpm2-tools");
        return;
    }
    for (name, start) in BACKENDS {
        let Some(tpm) = start() else { continue };
        println!("{name}");
        let served = Served::start(tpm);
        let file = |name: &str| std::fs::read(served.folder.path().join(name)).unwrap();
        std::fs::write(served.folder.path().join("secret"), "the volume's key").unwrap();
        served.run("tpm2_startup -c");

        // a session salted by a key; parameters both ways are encrypted
        served.run("tpm2_createprimary -C o -G ecc -c primary.ctx");
        served.run("tpm2_startauthsession -S session --hmac-session -c primary.ctx");
        served.run("tpm2_sessionconfig session --enable-decrypt --enable-encrypt");
        served.run("tpm2_create -C primary.ctx -P session:session -i secret -p pin -u sealed.pub -r sealed.priv");
        served.run("tpm2_load -C primary.ctx -P session:session -u sealed.pub -r sealed.priv -c sealed.ctx");
        assert_eq!(served.run("tpm2_unseal -c sealed.ctx -p session:session+pin"), "the volume's key", "{name}");
        let why = served.refused("tpm2_unseal -c sealed.ctx -p session:session+nip");
        assert!(why.contains("0x98E") || why.contains("0x98e"), "{name}: {why}");

        // an attestation key, and a secret for who has it and the endorsement key
        served.run("tpm2_createek -G ecc -c ek.ctx -u ek.pub");
        served.run("tpm2_createak -C ek.ctx -c ak.ctx -G ecc -g sha256 -s ecdsa -u ak.pub -n ak.name");
        served.run(&format!("tpm2_makecredential -u ek.pub -s secret -n {} -o credential", hex::encode(file("ak.name"))));
        served.run("tpm2_startauthsession --policy-session -S policy");
        served.run("tpm2_policysecret -S policy -c e");
        served.run("tpm2_activatecredential -c ak.ctx -C ek.ctx -i credential -o activated -P session:policy");
        assert_eq!(file("activated"), file("secret"), "{name}");
        served.run("tpm2_flushcontext policy");

        // objects that stay, and the owner's right to be rid of them
        served.run("tpm2_evictcontrol -C o -c primary.ctx 0x81000001");
        served.run("tpm2_readpublic -c 0x81000001");
        served.run("tpm2_changeauth -c o owner");
        served.refused("tpm2_evictcontrol -C o -c 0x81000001");
        served.run("tpm2_clear -c p");
        served.refused("tpm2_readpublic -c 0x81000001");
        served.run("tpm2_shutdown -c");
    }
}

/// Bytes to a socket, and what comes back until it closes or has given `len`.
fn exchange(mut stream: impl Read + Write, bytes: &[u8], len: usize) -> Vec<u8> {
    stream.write_all(bytes).unwrap();
    let mut answer = Vec::new();
    stream.take(u64::try_from(len).unwrap()).read_to_end(&mut answer).unwrap();
    answer
}

#[test]
fn a_socket_takes_what_is_no_message() {
    let Some(tpm) = libtpms() else { return };
    let served = Served::start(Box::new(tpm));
    assert_eq!(exchange(served.socket("tpm"), STARTUP, 10), [0x80, 1, 0, 0, 0, 10, 0, 0, 0, 0]);
    // lengths that no command has: the TPM's answer, and the end of the stream
    let too_long = u32::try_from(MAX_MESSAGE + 1).unwrap();
    for size in [0, 9, too_long, u32::MAX] {
        let mut bytes = command(0x17b, &[]);
        bytes[2..6].copy_from_slice(&size.to_be_bytes());
        assert_eq!(exchange(served.socket("tpm"), &bytes, 100), [0x80, 1, 0, 0, 0, 10, 0, 0, 1, 0x42], "{size}");
    }
    // half a message, and its sender has gone
    for len in 1..10 {
        served.socket("tpm").write_all(&STARTUP[..len]).unwrap();
        served.socket("tpm.ctrl").write_all(&[0; 3]).unwrap();
    }
    // two in one go
    let random = command(0x17b, &[0, 1]);
    assert_eq!(exchange(served.socket("tpm"), &[&random[..], &random].concat(), 26).len(), 26);
    // nobody gets a state; unknown codes are the last of their stream
    for code in [0_u32, 6, 10, 12, 13, 14, 99, u32::MAX] {
        assert_eq!(exchange(served.socket("tpm.ctrl"), &code.to_be_bytes(), 100), 10_u32.to_be_bytes(), "{code}");
    }
    // localities: zero, and no other
    assert_eq!(exchange(served.socket("tpm.ctrl"), &[0, 0, 0, 5, 0], 4), [0; 4]);
    assert_eq!(exchange(served.socket("tpm.ctrl"), &[0, 0, 0, 5, 4], 4), 61_u32.to_be_bytes());
    assert_eq!(exchange(served.socket("tpm.ctrl"), &[0, 0, 0, 1], 8), 15_u64.to_be_bytes());
    // a reset is one
    assert_eq!(exchange(served.socket("tpm.ctrl"), &[0, 0, 0, 2, 0, 0, 0, 1], 4), [0; 4]);
    assert_eq!(exchange(served.socket("tpm"), &random, 10)[6..], [0, 0, 1, 0]);
}

const OWNER: u32 = 0x4000_0001;
const COUNTER: u32 = 0x0150_0001;

/// TPM2_NV_Increment, and what the counter then is.
fn increment(tpm: &mut dyn Tpm) -> u64 {
    ok(tpm, &authorized(0x134, &[OWNER, COUNTER], &[]));
    let response = ok(tpm, &authorized(0x14e, &[OWNER, COUNTER], &[0, 8, 0, 0]));
    u64::from_be_bytes(response[6..14].try_into().unwrap())
}

/// TPM2_ReadClock's resetCount.
fn reset_count(tpm: &mut dyn Tpm) -> u32 {
    u32::from_be_bytes(ok(tpm, &command(0x181, &[]))[16..20].try_into().unwrap())
}

#[test]
fn an_old_state_takes_a_counter_back_and_the_ledger_tells() {
    for (name, mut tpm, mut copy) in pairs() {
        let (tpm, copy) = (tpm.as_mut(), copy.as_mut());
        let (mut ledger, key) = (Ledger::new(), [7; 32]);
        ok(tpm, STARTUP);
        // a counter that its owner writes and reads
        let public = [&COUNTER.to_be_bytes()[..], &[0, 0x0b], &0x0002_0012_u32.to_be_bytes(), &[0, 0, 0, 8]].concat();
        ok(tpm, &authorized(0x12a, &[OWNER], &[&[0, 0, 0, 14][..], &public].concat()));
        let counter = increment(tpm);
        let ek = endorsement_key(tpm);
        let mut save = |tpm: &mut dyn Tpm| {
            let (state, count) = (tpm.save().unwrap(), reset_count(tpm));
            let entry = ledger.record("vm", &ek, &state, count).unwrap();
            (sealed_state::seal(&key, "vm", entry.sequence, &state).unwrap(), count)
        };
        let (old, old_count) = save(tpm);
        tpm.reset().unwrap();
        ok(tpm, STARTUP);
        assert_eq!(increment(tpm), counter + 1, "{name}");
        assert_eq!(increment(tpm), counter + 2, "{name}");
        let (new, new_count) = save(tpm);
        assert_eq!(new_count, old_count + 1, "{name}");

        // the TPM itself takes it, and neither it nor the encryption sees anything wrong
        let opened = sealed_state::open(&key, "vm", &old).unwrap();
        tpm.load(&opened.state).unwrap();
        assert_eq!(increment(tpm), counter + 1, "{name}");
        // the ledger does
        let rollback = LedgerError::Rollback { machine: "vm".to_owned(), found: 1, newest: 2 };
        assert_eq!(ledger.check("vm", &opened.state), Err(rollback), "{name}");
        let opened = sealed_state::open(&key, "vm", &new).unwrap();
        assert_eq!(ledger.check("vm", &opened.state).unwrap().sequence, 2, "{name}");

        // a second machine with the same TPM: by its state, and when it has gone on, by its key
        let owner = || "vm".to_owned();
        let clone = |what| LedgerError::Clone { machine: "copy".to_owned(), what, owner: owner() };
        assert_eq!(ledger.check("copy", &opened.state), Err(clone("state")), "{name}");
        copy.load(&opened.state).unwrap();
        assert_eq!(increment(copy), counter + 3, "{name}");
        let (copied_key, state) = (endorsement_key(copy), copy.save().unwrap());
        assert_eq!(ledger.record("copy", &copied_key, &state, 1), Err(clone("endorsement key")), "{name}");
    }
}

#[test]
fn a_flood_of_nonsense_ends_no_worker() {
    let Some(mut tpm) = libtpms() else { return };
    ok(&mut tpm, STARTUP);
    let process = tpm.process();
    let mut random = ChaCha8Rng::seed_from_u64(24);
    let mut below = |n: usize| usize::try_from(random.next_u32()).unwrap() % n;
    let counter = [&COUNTER.to_be_bytes()[..], &[0, 0x0b], &0x0002_0012_u32.to_be_bytes(), &[0, 0, 0, 8]].concat();
    let session = [&[0x40, 0, 0, 7, 0x40, 0, 0, 7, 0, 16][..], &[1; 16], &[0, 0, 1, 0, 6, 0, 0x80, 0, 0x43, 0, 0x0b]].concat();
    let meant = [
        command(0x17b, &[0, 32]),
        command(0x17e, &[0, 0, 0, 2, 0, 0x0b, 3, 0xff, 0xff, 0xff, 0, 4, 3, 1, 0, 0]),
        command(0x17a, &[0, 0, 0, 6, 0, 0, 1, 0, 0, 0, 0, 0x7f]),
        command(0x176, &session),
        command(0x181, &[]),
        command(0x165, &0x8000_0000_u32.to_be_bytes()),
        authorized(0x182, &[10], &[&[0, 0, 0, 1, 0, 0x0b][..], &[3; 32]].concat()),
        authorized(0x13c, &[10], &[0, 4, 1, 2, 3, 4]),
        authorized(0x12a, &[OWNER], &[&[0, 0, 0, 14][..], &counter].concat()),
        authorized(0x134, &[OWNER, COUNTER], &[]),
        authorized(0x14e, &[OWNER, COUNTER], &[0, 8, 0, 0]),
        authorized(0x131, &[OWNER], &primary(&signing_template())),
    ];
    let (mut answered, mut accepted) = (0, 0);
    for _ in 0..3000 {
        // one that means something, changed here and there, lengthened or cut, and most often still as long as it says
        let mut bytes = meant[below(meant.len())].clone();
        for _ in 0..below(4) {
            let at = 6 + below(bytes.len() - 6);
            bytes[at] = [0, 1, 0x80, 0xff, bytes[at] ^ 1, bytes[at].wrapping_add(1)][below(6)];
        }
        match below(6) {
            0 => bytes.truncate(10 + below(bytes.len() - 9)),
            1 => bytes.extend(vec![0xa5; below(40)]),
            _ => {}
        }
        if below(16) > 0 {
            let size = u32::try_from(bytes.len()).unwrap();
            bytes[2..6].copy_from_slice(&size.to_be_bytes());
        }
        let response = tpm.exec(&bytes).unwrap_or_else(|e| panic!("{bytes:02x?}: {e}"));
        answered += 1;
        accepted += u32::from(code(&response) == 0);
    }
    println!("{answered} answered, {accepted} accepted");
    assert!(accepted > 300 && accepted < 2700);
    assert_eq!(tpm.process(), process);
}

#[test]
fn a_tpm_is_served_by_hand_until_it_is_shut_down() {
    if libtpms().is_none() {
        return;
    }
    let serve = |arguments: &[&str]| {
        let mut child = Command::new(PROGRAM).args(["tpm", "serve"]).args(arguments).stderr(Stdio::piped()).spawn().unwrap();
        let mut said = String::new();
        BufReader::new(child.stderr.as_mut().unwrap()).read_line(&mut said).unwrap();
        (child, said)
    };
    // a free pair of ports, if nobody takes it in between
    let free = || {
        (0..50).find_map(|_| {
            let port = TcpListener::bind("127.0.0.1:0").ok()?.local_addr().ok()?.port();
            TcpListener::bind(("127.0.0.1", port.checked_add(1)?)).ok().map(|_| port)
        })
    };
    let port = free().expect("two free ports");
    let (mut child, said) = serve(&["--port", &port.to_string()]);
    assert!(said.contains(&format!("swtpm:host=127.0.0.1,port={port}")), "{said}");
    assert_eq!(exchange(TcpStream::connect(("127.0.0.1", port)).unwrap(), STARTUP, 10), [0x80, 1, 0, 0, 0, 10, 0, 0, 0, 0]);
    // the next one cannot have it, and says so
    let (mut second, said) = serve(&["--port", &port.to_string()]);
    assert!(said.contains("cannot serve on"), "{said}");
    assert_eq!(second.wait().unwrap().code(), Some(2));
    assert_eq!(exchange(TcpStream::connect(("127.0.0.1", port + 1)).unwrap(), &3_u32.to_be_bytes(), 4), [0; 4]);
    assert!(child.wait().unwrap().success());

    // a socket that an interrupted server has left is taken over; one in use, or a file, is not
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tpm");
    let (mut interrupted, said) = serve(&["--path", path.to_str().unwrap()]);
    assert!(said.contains("swtpm:path="), "{said}");
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    let (mut second, said) = serve(&["--path", path.to_str().unwrap()]);
    assert!(said.contains("cannot serve on"), "{said}");
    assert_eq!(second.wait().unwrap().code(), Some(2));
    interrupted.kill().unwrap();
    interrupted.wait().unwrap();
    assert!(path.exists());
    let (mut terminated, said) = serve(&["--path", path.to_str().unwrap()]);
    assert!(said.contains("swtpm:path="), "{said}");
    // unless it is asked to end: then nothing is left
    assert!(Command::new("kill").args(["-TERM", &terminated.id().to_string()]).status().expect("kill").success());
    assert!(terminated.wait().unwrap().success());
    assert!(!path.exists());
    std::fs::write(&path, "a file").unwrap();
    assert!(Server::unix(&path).is_err());
    assert_eq!(std::fs::read(&path).unwrap(), b"a file");
}
