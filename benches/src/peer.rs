//! Other verifiers: programs that are started once a file, and Python libraries in one process over all files.

use std::{
    fs,
    io::{Read, Write},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Instant,
};

use anyhow::{Context, Result};
use hvci_engine::signature::modsig::ModuleTrailer;
use serde_json::json;

use crate::{cpu, task::Measured};

/// A Python library: what is asked of it, as a function `check(file)`.
#[derive(Clone, Copy, Debug)]
pub struct Python {
    /// Its name in the table.
    pub name: &'static str,
    source: &'static str,
}

/// LIEF: digest and signature, no chain.
pub const LIEF: Python = Python {
    name: "LIEF",
    source: r"
import lief
lief.logging.disable()
GOOD = lief.PE.Signature.VERIFICATION_FLAGS.OK
def check(file):
    pe = lief.PE.parse(file)
    return pe is not None and pe.has_signatures and pe.verify_signature() == GOOD
",
};

/// signify: everything, with a trust list of its own.
pub const SIGNIFY: Python = Python {
    name: "signify",
    source: r"
from signify.authenticode import AuthenticodeFile
def check(file):
    with open(file, 'rb') as f:
        status, _ = AuthenticodeFile.from_stream(f).explain_verify()
        return status.name == 'OK'
",
};

/// asn1crypto and cryptography over Linux modules, the key read once.
pub const CRYPTOGRAPHY: Python = Python {
    name: "Python cryptography",
    source: r"
from asn1crypto.cms import ContentInfo
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
HASHES = {'sha1': hashes.SHA1(), 'sha256': hashes.SHA256(), 'sha384': hashes.SHA384(), 'sha512': hashes.SHA512()}
with open(request['key'], 'rb') as f:
    KEY = x509.load_pem_x509_certificate(f.read()).public_key()
def check(file):
    with open(file, 'rb') as f:
        data = memoryview(f.read())
    size = int.from_bytes(data[-32:-28], 'big')
    content, pkcs7 = data[:-40 - size], bytes(data[-40 - size:-40])
    signer = ContentInfo.load(pkcs7)['content']['signer_infos'][0]
    KEY.verify(signer['signature'].native, content, PKCS1v15(), HASHES[signer['digest_algorithm']['algorithm'].native])
    return True
",
};

const BEFORE: &str = "
import json, sys, time
request = json.load(sys.stdin)
";

const AFTER: &str = r"
valid, each = 0, []
wall, start = time.monotonic(), time.process_time()
for file in request['files']:
    before = time.process_time()
    try:
        valid += bool(check(file))
    except Exception:
        pass
    each.append((time.process_time() - before) * 1e6)
cpu, wall = time.process_time() - start, time.monotonic() - wall
with open('/proc/self/status') as f:
    peak = next(int(line.split()[1]) for line in f if line.startswith('VmHWM:'))
json.dump({'files': len(each), 'valid': valid, 'cpu': cpu, 'wall': wall, 'peak_rss': peak, 'each': each}, sys.stdout)
";

impl Python {
    /// Whether the library can be loaded; the end of what Python says if not.
    pub fn missing(&self, key: Option<&Path>) -> Option<String> {
        self.run(&[], key).err().map(|e| e.to_string())
    }

    /// Checks each of `files`; `key` is a certificate for modules. Loading the library is before the clock starts.
    ///
    /// # Errors
    /// There is no Python or no such library.
    pub fn run(&self, files: &[PathBuf], key: Option<&Path>) -> Result<Measured> {
        let program = format!("{BEFORE}{}{AFTER}", self.source);
        let mut child = Command::new("python3")
            .args(["-c", &program])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("no python3")?;
        let request = serde_json::to_vec(&json!({ "files": files, "key": key }))?;
        // a program that fails to load its library does not read to the end
        let _ = child.stdin.take().context("no pipe")?.write_all(&request);
        let output = child.wait_with_output()?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            anyhow::bail!("{}", said.trim().lines().last().unwrap_or("python3 failed").to_owned());
        }
        Ok(serde_json::from_slice(&output.stdout)?)
    }
}

/// Whether `program` can be started.
pub fn installed(program: &str) -> bool {
    let started = Command::new(program).arg("--version").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
    started.is_ok_and(|mut child| child.wait().is_ok())
}

/// What [`each_file`] saw.
#[derive(Clone, Debug)]
pub struct Programs {
    /// The numbers.
    pub measured: Measured,
    /// Of each file: whether the program called it valid.
    pub success: Vec<bool>,
}

/// Starts the program that `command` makes for each of `files`, one after the other. Status 0 is valid.
///
/// # Errors
/// It cannot be started.
pub fn each_file<F>(files: &[F], command: impl Fn(&F) -> Command) -> Result<Programs> {
    each(files, None, command)
}

/// The same for a program that ends with status 0 over bad signatures too: valid is what makes it begin with `words`.
///
/// # Errors
/// It cannot be started, or its output cannot be read.
pub fn each_file_that_says<F>(files: &[F], words: &str, command: impl Fn(&F) -> Command) -> Result<Programs> {
    each(files, Some(words), command)
}

fn each<F>(files: &[F], words: Option<&str>, command: impl Fn(&F) -> Command) -> Result<Programs> {
    let mut measured = Measured { files: files.len(), ..Measured::default() };
    let mut success = Vec::with_capacity(files.len());
    let mut said = Vec::new();
    let wall = Instant::now();
    for file in files {
        let output = if words.is_some() { Stdio::piped() } else { Stdio::null() };
        let mut child = command(file).stdin(Stdio::null()).stdout(output).stderr(Stdio::null()).spawn()?;
        said.clear();
        if let Some(mut output) = child.stdout.take() {
            output.read_to_end(&mut said)?;
        }
        let used = cpu::wait(&child)?;
        let valid = used.success && words.is_none_or(|words| said.starts_with(words.as_bytes()));
        success.push(valid);
        measured.valid += usize::from(valid);
        measured.cpu += used.cpu.as_secs_f64();
        measured.peak_rss = measured.peak_rss.max(used.peak_rss);
        measured.each.push(used.cpu.as_secs_f64() * 1e6);
    }
    measured.wall = wall.elapsed().as_secs_f64();
    Ok(Programs { measured, success })
}

/// `osslsigncode verify` with `bundle` as its only roots.
pub fn osslsigncode(file: &Path, bundle: &Path) -> Command {
    let mut command = Command::new("osslsigncode");
    command.arg("verify").arg("-in").arg(file).arg("-CAfile").arg(bundle).arg("-TSA-CAfile").arg(bundle);
    command.args(["-ignore-cdp", "-ignore-crl"]);
    command
}

/// `svcli`, the program of uthenticode: digest and signature, no chain, no timestamp. What it finds is in its
/// output, see [`VERIFIED`], not in its status.
pub fn svcli(file: &Path) -> Command {
    let mut command = Command::new("svcli");
    command.arg(file);
    command
}

/// How `svcli` begins when it calls a file valid.
pub const VERIFIED: &str = "This PE is verified!";

/// `sbverify`, which trusts one certificate; its count means little.
pub fn sbverify(file: &Path, certificate: &Path) -> Command {
    let mut command = Command::new("sbverify");
    command.arg("--cert").arg(certificate).arg(file);
    command
}

/// `pesign -h`: the digest only.
pub fn pesign(file: &Path) -> Command {
    let mut command = Command::new("pesign");
    command.arg("-h").arg("-i").arg(file);
    command
}

/// A module taken apart for `openssl cms`, which takes content and signature as files.
#[derive(Clone, Debug)]
pub struct Parted {
    content: PathBuf,
    pkcs7: PathBuf,
}

/// Takes each of `modules` apart into files in `dir`.
///
/// # Errors
/// Unreadable modules, or `dir` cannot be written to.
pub fn part(modules: &[PathBuf], dir: &Path) -> Result<Vec<Parted>> {
    let mut parted = Vec::with_capacity(modules.len());
    for (number, module) in modules.iter().enumerate() {
        let data = fs::read(module)?;
        let Ok(Some(trailer)) = ModuleTrailer::find(&data) else { continue };
        let (content, pkcs7) = (dir.join(format!("{number}.ko")), dir.join(format!("{number}.p7s")));
        fs::write(&content, trailer.content)?;
        fs::write(&pkcs7, trailer.pkcs7)?;
        parted.push(Parted { content, pkcs7 });
    }
    Ok(parted)
}

/// `openssl cms -verify` of a module, by the key of `certificate` without asking who issued it.
pub fn openssl_cms(module: &Parted, certificate: &Path) -> Command {
    let mut command = Command::new("openssl");
    command.args(["cms", "-verify", "-binary", "-inform", "DER", "-noverify", "-nointern", "-out", "/dev/null"]);
    command.arg("-in").arg(&module.pkcs7).arg("-content").arg(&module.content).arg("-certfile").arg(certificate);
    command
}
