//! Independent tools must say of the files what the corpus says, or it must be known why they do not.
//!
//! Each list of differences says who is right. With the version it was made with, an entry that is no difference any more fails too.

use std::process::{Command, Output};

use tempfile::TempDir;

use super::*;

/// A difference: path, why it is there.
type Differences<'a> = &'a [(&'a str, &'a str)];

const EXPIRY: &str = "the kernel looks at no clock; the tool does";
const CATALOG: &str = "the tool was given no catalog";
const FIRST_ENTRY: &str = "the tool reads no table of several entries";
const LOADER: &str = "the signature is good, and the tool looks at nothing else; no loader takes the headers";

#[test]
fn osslsigncode_agrees() {
    const KNOWN: Differences<'_> = &[
        ("catalog/listed-by-tag.sys", CATALOG),
        ("catalog/listed-sha1.sys", CATALOG),
        ("catalog/listed-tail.sys", CATALOG),
        ("catalog/listed.sys", CATALOG),
        ("chain/loop-with-way-out.exe", "OpenSSL follows the first of two certificates of one authority and does not come back"),
        ("chain/whql-expired.sys", EXPIRY),
        ("container/page-hashes-alignment-8k.sys", "osslsigncode takes SectionAlignment for the page size; Windows has 4 KiB pages"),
        ("container/sections-65535.sys", LOADER),
        ("container/two-entries-second-good.efi", FIRST_ENTRY),
        ("container/two-entries.efi", FIRST_ENTRY),
        ("container/two-entries.sys", FIRST_ENTRY),
        ("mutated/entry-of-other-type.sys", FIRST_ENTRY),
        ("signature/bare-hash.sys", "OpenSSL has no signatures over a bare hash"),
        ("signature/by-key-id.sys", "OpenSSL's PKCS#7 has no signers named by their key"),
        ("signature/image-digest-differs.sys", "osslsigncode does not compare the digest algorithms"),
        ("signature/two-signers.sys", "osslsigncode wants one SignerInfo; Windows takes the first"),
        ("timestamp/bare-hash.exe", "OpenSSL has no signatures over a bare hash"),
        ("timestamp/lifetime-signing.exe", "osslsigncode does not know lifetime signing"),
    ];
    let Some(version) = version("osslsigncode", "--version") else { return };
    let dir = written();
    let windows = bundle(&dir, &["kernel", "user", "uefi"]);
    let time = certificate::instant(cases::TIME).unwrap().0.to_string();
    let mut run = |case: &cases::Case| {
        let mut command = Command::new("osslsigncode");
        command.args(["verify", "-ignore-cdp", "-ignore-crl", "-time", &time, "-CAfile"]).arg(&windows);
        command.arg("-TSA-CAfile").arg(dir.path().join("trust/timestamp.pem"));
        command.arg("-in").arg(dir.path().join("images").join(&case.path)).output().unwrap().status.success()
    };
    let images = |c: &&cases::Case| [".sys", ".exe"].iter().any(|e| c.path.ends_with(e));
    compare("osslsigncode", version.contains("osslsigncode 2.9"), KNOWN, CORPUS.cases.iter().filter(images), &mut run);
}

#[test]
fn osslsigncode_reads_the_catalogs() {
    if version("osslsigncode", "--version").is_none() {
        return;
    }
    let dir = written();
    let roots = bundle(&dir, &["kernel", "user"]);
    for (image, catalog, listed) in [
        ("listed.sys", "drivers.cat", true),
        ("listed-sha1.sys", "legacy.cat", true),
        ("listed.sys", "legacy.cat", false),
        ("changed.sys", "drivers.cat", false),
        ("listed-by-nobody.sys", "nobody.cat", false),
        ("listed-by-forged.sys", "forged.cat", false),
    ] {
        let out = Command::new("osslsigncode")
            .args(["verify", "-ignore-cdp", "-ignore-crl", "-CAfile"])
            .arg(&roots)
            .arg("-TSA-CAfile")
            .arg(dir.path().join("trust/timestamp.pem"))
            .arg("-catalog")
            .arg(dir.path().join("catalogs").join(catalog))
            .arg("-in")
            .arg(dir.path().join("images/catalog").join(image))
            .output()
            .unwrap();
        assert_eq!(out.status.success(), listed, "{image} in {catalog}\n{}", text(&out));
    }
}

#[test]
fn sbverify_agrees() {
    if version("sbverify", "--version").is_none() {
        return;
    }
    let dir = written();
    // it takes the first certificate of a file only
    let authorities: Vec<PathBuf> = ["uefi ca", "uefi ca 2"]
        .iter()
        .map(|name| {
            let path = dir.path().join(format!("{name}.pem"));
            fs::write(&path, PKI.get(name).unwrap().certificate.to_pem(LineEnding::LF).unwrap()).unwrap();
            path
        })
        .collect();
    let mut run = |case: &cases::Case| {
        let image = dir.path().join("images").join(&case.path);
        authorities.iter().any(|a| Command::new("sbverify").arg("--cert").arg(a).arg(&image).output().unwrap().status.success())
    };
    let firmware = |c: &&cases::Case| c.expected.iter().any(|e| e.profile == "uefi");
    compare("sbverify", true, &[], CORPUS.cases.iter().filter(firmware), &mut run);
}

#[test]
fn openssl_verifies_the_modules() {
    if version("openssl", "version").is_none() {
        return;
    }
    let dir = written();
    let keys = dir.path().join("trust/module.pem");
    let (signature, content) = (dir.path().join("signature"), dir.path().join("content"));
    let mut run = |case: &cases::Case| {
        let Some((body, pkcs7)) = split_module(&case.bytes) else { return false };
        fs::write(&signature, pkcs7).unwrap();
        fs::write(&content, body).unwrap();
        let mut command = Command::new("openssl");
        command.args(["cms", "-verify", "-binary", "-inform", "DER", "-nointern", "-noverify", "-out", "/dev/null", "-in"]);
        command.arg(&signature).arg("-content").arg(&content).arg("-certfile").arg(&keys);
        command.output().unwrap().status.success()
    };
    let modules = |c: &&cases::Case| c.path.ends_with(".ko") && !c.path.contains("trailer");
    compare("openssl cms", true, &[], CORPUS.cases.iter().filter(modules), &mut run);
}

#[test]
fn signify_agrees() {
    const KNOWN: Differences<'_> = &[
        ("catalog/listed-by-tag.sys", CATALOG),
        ("catalog/listed-sha1.sys", CATALOG),
        ("catalog/listed-tail.sys", CATALOG),
        ("catalog/listed.sys", CATALOG),
        ("chain/key-usage.exe", "signify holds to keyUsage; Windows does not"),
        ("chain/whql-expired.sys", EXPIRY),
        ("container/page-hashes-alignment-8k-short.sys", "signify reads whole entries and passes over the rest"),
        ("container/page-hashes-v1-short.sys", "signify reads whole entries and passes over the rest"),
        ("container/page-hashes-v2-short.sys", "signify reads whole entries and passes over the rest"),
        ("container/section-gap-sum.efi", "the tool calculates the linear digest, firmware the section sum"),
        ("container/sections-65535.sys", LOADER),
        ("mutated/directory-grown.sys", "signify does not add up the entries"),
        ("mutated/table-with-data.sys", "signify does not add up the entries"),
        ("signature/bare-sha256.sys", "signify takes bare hashes of every algorithm; only MD5 and SHA-1 were ever signed so"),
        ("signature/by-key-id.sys", "signify has no signers named by their key"),
        ("signature/two-signers.sys", "signify wants one SignerInfo; Windows takes the first"),
        ("signature/version-3.sys", "signify wants an OCTET STRING in version 3"),
        ("timestamp/both-kinds.exe", "signify wants one kind of timestamp; Windows takes both"),
    ];
    const SCRIPT: &str = r"
import datetime, pathlib, sys
from signify.authenticode import AuthenticodeFile
from signify.x509 import FileSystemCertificateStore
roots, time, *paths = sys.argv[1:]
store = FileSystemCertificateStore(pathlib.Path(roots), trusted=True)
time = datetime.datetime.fromtimestamp(int(time), datetime.timezone.utc)
for path in paths:
    try:
        with open(path, 'rb') as file:
            AuthenticodeFile.from_stream(file).verify(
                trusted_certificate_store=store, signature_types='embedded', verification_context_kwargs={'timestamp': time})
        print(1)
    except Exception:
        print(0)
";
    let import =
        Command::new("python3").args(["-c", "import signify; from signify.x509 import certificates; print(signify.__version__)"]).output();
    let Some(import) = import.ok().filter(|o| o.status.success()) else {
        println!("skipped: signify is not installed for python3");
        return;
    };
    let dir = written();
    let roots = dir.path().join("roots");
    fs::create_dir(&roots).unwrap();
    for (index, name) in pki::ANCHORS.iter().filter(|(purpose, _)| *purpose != "module").flat_map(|(_, names)| *names).enumerate() {
        fs::write(roots.join(format!("{index}.pem")), PKI.get(name).unwrap().certificate.to_pem(LineEnding::LF).unwrap()).unwrap();
    }
    let images: Vec<&cases::Case> = CORPUS.cases.iter().filter(|c| [".sys", ".exe", ".efi"].iter().any(|e| c.path.ends_with(e))).collect();
    let time = certificate::instant(cases::TIME).unwrap().0.to_string();
    let mut python = Command::new("python3");
    python.args(["-W", "ignore", "-c", SCRIPT]).arg(&roots).arg(time);
    let out = python.args(images.iter().map(|c| dir.path().join("images").join(&c.path))).output().unwrap();
    let stdout = String::from_utf8_lossy(&out.stdout).into_owned();
    assert_eq!(stdout.lines().count(), images.len(), "{}", text(&out));
    let mut lines = stdout.lines();
    let exact = String::from_utf8_lossy(&import.stdout).trim() == "0.9.3";
    compare("signify", exact, KNOWN, images.into_iter(), &mut |_| lines.next() == Some("1"));
}

/// Runs a tool over `cases` and holds its answers against the corpus's: accepted under any profile.
fn compare<'c>(
    tool: &str,
    exact: bool,
    known: Differences<'_>,
    cases: impl Iterator<Item = &'c cases::Case>,
    run: &mut dyn FnMut(&cases::Case) -> bool,
) {
    let (mut wrong, mut agree, mut differ) = (Vec::new(), 0, 0);
    for case in cases {
        let accepted = run(case);
        let ours = case.expected.iter().any(|e| e.decision == Decision::Accept);
        // a tool that verifies signatures says nothing about the image
        let image_only = |e: &cases::Expected| !e.codes.is_empty() && e.codes.iter().all(|c| c.id().starts_with("HVCI-IMG"));
        let lint = case.expected.iter().filter(|e| e.decision == Decision::Refuse).all(image_only);
        let known = known.iter().find(|(path, _)| *path == case.path);
        match (accepted == ours || (accepted && lint), known) {
            (true, None) => agree += 1,
            (false, Some(_)) => differ += 1,
            (false, None) => wrong.push(format!("{}: {tool} says {accepted}, the corpus {ours}: {}", case.path, case.why)),
            (true, Some((_, why))) if exact => wrong.push(format!("{}: no difference any more, but listed: {why}", case.path)),
            (true, Some(_)) => {}
        }
    }
    println!("{tool}: {agree} agree, {differ} differ as listed");
    assert!(wrong.is_empty() && agree > 4, "{}", wrong.join("\n"));
}

/// The tool's version; a note that the test is skipped if it is not there.
fn version(tool: &str, argument: &str) -> Option<String> {
    match Command::new(tool).arg(argument).output() {
        Ok(out) => Some(text(&out)),
        Err(_) => {
            println!("skipped: {tool} not installed");
            None
        }
    }
}

fn text(out: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr))
}

fn written() -> TempDir {
    let dir = TempDir::new().unwrap();
    write_corpus(dir.path(), DEFAULT_SEED, &PKI, &CORPUS).unwrap();
    dir
}

/// A file with the anchors for these purposes.
fn bundle(dir: &TempDir, purposes: &[&str]) -> PathBuf {
    let anchors = anchors(&PKI).unwrap();
    let path = dir.path().join("bundle.pem");
    fs::write(&path, purposes.iter().map(|p| anchors[p].as_str()).collect::<String>()).unwrap();
    path
}

/// Content and PKCS#7 of a signed module.
fn split_module(module: &[u8]) -> Option<(&[u8], &[u8])> {
    let (rest, fields) = module.strip_suffix(b"~Module signature appended~\n")?.split_last_chunk::<12>()?;
    let len = u32::from_be_bytes(*fields.last_chunk()?);
    Some(rest.split_at(rest.len().checked_sub(usize::try_from(len).ok()?)?))
}
