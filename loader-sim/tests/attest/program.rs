//! `hvci-sim attest`, as somebody runs it.

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use hvci_engine::digest::DigestAlg;
use p256::{elliptic_curve::sec1::ToEncodedPoint, pkcs8::EncodePrivateKey};

use crate::made::*;

struct Files(tempfile::TempDir);

impl Files {
    /// What a verifier has of a start that measured `log`.
    fn of(log: &[Record]) -> Self {
        let files = Self(tempfile::tempdir().unwrap());
        let log = bytes(log);
        let tpm = Tpm::new(1, &log);
        files.write("evidence", serde_json::to_string(&tpm.evidence(Some(&log))).unwrap());
        files.write("reference", reference_text());
        files.write("machines", serde_json::json!({ VM: machine(&tpm) }).to_string());
        files
    }

    fn write(&self, name: &str, content: impl AsRef<[u8]>) {
        fs::write(self.path(name), content).unwrap();
    }

    fn path(&self, name: &str) -> String {
        Path::join(self.0.path(), name).display().to_string()
    }

    fn verify(&self, nonce: &[u8], more: &[&str]) -> (String, String, Option<i32>) {
        let mut args = vec!["attest".to_owned(), "verify".to_owned(), "--nonce".to_owned(), hex::encode(nonce)];
        for name in ["evidence", "reference", "machines"] {
            args.extend([format!("--{name}"), self.path(name)]);
        }
        args.extend(["--vm", VM, "--time", "2026-11-28T00:00:00Z"].into_iter().chain(more.iter().copied()).map(str::to_owned));
        let output = Command::new(env!("CARGO_BIN_EXE_hvci-sim")).args(args).output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (text(output.stdout), text(output.stderr), output.status.code())
    }
}

#[test]
fn the_program_says_what_is_proven_and_what_failed() {
    let good = Files::of(&linux());
    let (said, _, status) = good.verify(&NONCE, &[]);
    assert_eq!(status, Some(0), "{said}");
    assert!(said.ends_with("\nweb-1: healthy, 0 found\n"), "{said}");
    let shim: String = sha256(b"shim").hex().chars().take(12).collect();
    let at = position(&linux(), b"shim");
    assert!(
        said.contains(&format!("shim            4  {at:>5}  {shim}  allowed           shim 16.1  ~\\EFI\\BOOT\\BOOTX64.EFI\n")),
        "{said}"
    );
    assert!(said.contains("secure-boot       secureboot                                true\n"), "{said}");
    assert!(said.contains("x-ms-azurevm-hvci-policy                  not measured\n"), "{said}");
    assert_eq!(good.verify(&NONCE, &[]), good.verify(&NONCE, &[]));

    let mut log = linux();
    let at = position(&log, b"grub");
    log[at] = image(b"implant", "\\EFI\\\x1b[2J");
    let bad = Files::of(&log);
    let (said, _, status) = bad.verify(&NONCE, &[]);
    assert_eq!(status, Some(1), "{said}");
    assert!(said.contains(&format!("error[HVCI-ATT-021], PCR 4, event {at}: ")) && !said.contains('\x1b'), "{said}");
    assert!(said.ends_with(&format!("\nweb-1: not healthy, 1 found, first divergent event {at}\n")), "{said}");
    let (said, _, status) = bad.verify(&NONCE, &["--format", "alerts"]);
    let alert: serde_json::Value = serde_json::from_str(&said).unwrap();
    assert_eq!(
        (alert["severity"].as_str(), alert["components"][0]["stage"].as_str(), status),
        (Some("medium"), Some("boot-loader"), Some(1))
    );

    let (said, _, status) = good.verify(&[1; 32], &[]);
    assert!(status == Some(1) && said.contains("HVCI-ATT-006"), "{said}");
}

#[test]
fn the_program_writes_results_for_others() {
    let files = Files::of(&linux());
    let (said, _, status) = files.verify(&NONCE, &["--format", "ear"]);
    let ear: serde_json::Value = serde_json::from_str(&said).unwrap();
    assert_eq!((ear["ear_status"].as_str(), status), (Some("affirming"), Some(0)));
    assert_eq!(files.verify(&NONCE, &["--format", "jwt"]).2, Some(2), "without a key");
    let key = Tpm::new(3, &bytes(&linux())).key;
    files.write("key", p256::SecretKey::from(&key).to_pkcs8_der().unwrap().as_bytes());
    let (token, _, status) = files.verify(&NONCE, &["--format", "jwt", "--key", &files.path("key")]);
    assert_eq!(status, Some(0));

    // whoever has the public key can rely on it, and on nothing that was changed
    let public = p256::PublicKey::from(key.verifying_key()).to_encoded_point(false);
    let public = jsonwebtoken::DecodingKey::from_ec_der(public.as_bytes());
    let mut rules = jsonwebtoken::Validation::new(jsonwebtoken::Algorithm::ES256);
    // it is of a time that is given
    rules.validate_exp = false;
    rules.validate_aud = false;
    rules.required_spec_claims.clear();
    let read = |token: &str| jsonwebtoken::decode::<serde_json::Value>(token, &public, &rules).map(|data| data.claims);
    let token = token.trim_end();
    let claims = read(token).unwrap();
    assert_eq!(claims["ear_status"], "affirming");
    assert_eq!(claims, ear, "the same as the one that nobody signed");
    for at in (0..token.len()).step_by(7) {
        let mut changed = token.as_bytes().to_vec();
        changed[at] = if changed[at] == b'A' { b'B' } else { b'A' };
        assert!(read(std::str::from_utf8(&changed).unwrap()).is_err(), "{at}");
    }
}

#[test]
fn the_program_refuses_what_it_cannot_read() {
    let files = Files::of(&linux());
    assert_eq!(files.verify(&[1; 3], &[]).2, Some(2), "a nonce that can be guessed");
    assert_eq!(files.verify(&NONCE, &["--dbx-info", &files.path("machines")]).2, Some(2));
    // what a machine sends is its own fault
    files.write("evidence", "{}");
    let (said, _, status) = files.verify(&NONCE, &[]);
    assert!(status == Some(1) && said.contains("error[HVCI-ATT-001]"), "{said}");
    let files = Files::of(&linux());
    files.write("machines", r#"{"web-1":{"more":1}}"#);
    assert_eq!(files.verify(&NONCE, &[]).2, Some(2));
    let files = Files::of(&linux());
    files.write("reference", reference_text().replace(&sha256(b"kernel").to_string(), &format!("{}:00", DigestAlg::Sha256)));
    let (_, said, status) = files.verify(&NONCE, &[]);
    assert!(status == Some(2) && said.contains("reference"), "{said}");
}

/// A verifier that runs, until it is dropped.
struct Served(std::process::Child, String);

impl Drop for Served {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

impl Served {
    fn start(files: &Files) -> Self {
        Self::start_with(files, &[])
    }

    fn start_with(files: &Files, more: &[&str]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_hvci-sim"));
        command.args(["attest", "serve", "--listen", "127.0.0.1:0"]);
        for name in ["reference", "machines"] {
            command.args([format!("--{name}"), files.path(name)]);
        }
        command.args(more);
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stderr.take().unwrap()).read_line(&mut line).unwrap();
        let address = line.trim_end().strip_prefix("listening on ").unwrap_or_else(|| panic!("{line}")).to_owned();
        Self(child, address)
    }

    /// Status and body.
    fn post(&self, path: &str, length: usize, body: &[u8]) -> (u16, String) {
        let mut stream = TcpStream::connect(&self.1).unwrap();
        write!(stream, "POST {path} HTTP/1.1\r\nHost: verifier\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n").unwrap();
        stream.write_all(body).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
    }
}

#[test]
fn the_verifier_serves_challenges_and_takes_an_answer_once() {
    let files = Files::of(&linux());
    let served = Served::start(&files);
    let (status, body) = served.post("/challenge/web-1", 0, b"");
    assert_eq!(status, 200, "{body}");
    assert_eq!(served.post("/challenge/web-1", 0, b"").0, 429, "just now");
    assert_eq!(served.post("/challenge/web-9", 0, b"").0, 404);
    assert_eq!(served.post("/evidence/web-9", 2, b"{}").0, 409);

    let body: serde_json::Value = serde_json::from_str(&body).unwrap();
    let nonce = hex::decode(body["nonce"].as_str().unwrap()).unwrap();
    let log = bytes(&linux());
    let tpm = Tpm { nonce: nonce.clone(), ..Tpm::new(1, &log) };
    let evidence = loader_sim::attest::Evidence { nonce, ..tpm.evidence(Some(&log)) };
    let json = serde_json::to_vec(&evidence).unwrap();
    let (status, ear) = served.post("/evidence/web-1", json.len(), &json);
    let ear: serde_json::Value = serde_json::from_str(&ear).unwrap();
    assert_eq!((status, ear["ear_status"].as_str()), (200, Some("affirming")), "{ear}");
    assert_eq!(served.post("/evidence/web-1", json.len(), &json).0, 409, "replayed");

    // the old answer to a new challenge
    std::thread::sleep(Duration::from_millis(1100));
    assert_eq!(served.post("/challenge/web-1", 0, b"").0, 200);
    let (status, ear) = served.post("/evidence/web-1", json.len(), &json);
    let ear: serde_json::Value = serde_json::from_str(&ear).unwrap();
    assert_eq!((status, ear["ear_status"].as_str()), (200, Some("contraindicated")), "{ear}");
}

#[test]
fn the_verifier_listens_on_loopback_alone() {
    let files = Files::of(&linux());
    let args = ["attest", "serve", "--listen", "0.0.0.0:0", "--reference", &files.path("reference"), "--machines", &files.path("machines")];
    assert_eq!(Command::new(env!("CARGO_BIN_EXE_hvci-sim")).args(args).output().unwrap().status.code(), Some(2));
}

/// Connections that say nothing, or say it slowly, hold nobody up, and end.
#[test]
fn slow_clients_are_not_waited_for() {
    let files = Files::of(&linux());
    let served = Served::start(&files);
    // one less than there may be
    let mut slow: Vec<TcpStream> = (0..63).map(|_| TcpStream::connect(&served.1).unwrap()).collect();
    for (n, stream) in slow.iter_mut().enumerate() {
        let part = &b"POST /evidence/web-1 HTTP/1.1\r\nHost: verifier\r\nContent-Length: 1000\r\n\r\n{"[..n.min(70)];
        stream.write_all(part).unwrap();
    }
    assert_eq!(served.post("/challenge/web-1", 0, b"").0, 200);
    // with one more of them, who comes waits until their time is over
    let _last = TcpStream::connect(&served.1).unwrap();
    assert_eq!(served.post("/evidence/web-9", 2, b"{}").0, 409);
    for mut stream in slow {
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        let ended = stream.read(&mut [0; 100]);
        assert!(ended.as_ref().is_ok_and(|n| *n == 0) || ended.is_err_and(|e| e.kind() == std::io::ErrorKind::ConnectionReset));
    }
}
