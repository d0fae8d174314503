//! A verifier that is another process than the machine.

use std::{
    fs,
    io::{BufRead, BufReader},
    process::{Child, Command, Output, Stdio},
};

use super::lab::{Lab, SIM, text};

/// A verifier of the machines of a lab, with the reference values of one.
struct Verifier {
    serving: Child,
    address: String,
}

impl Verifier {
    fn start(lab: &Lab, more: &[&str]) -> Self {
        let machines = lab.folder.path().join("machines.json");
        fs::write(&machines, lab.run(&["vm", "known"]).stdout).unwrap();
        let mut serving = Command::new(SIM)
            .args(["attest", "serve", "--listen", "127.0.0.1:0", "--machines", machines.to_str().unwrap()])
            .args(["--reference", lab.path("probe", "reference.toml").to_str().unwrap()])
            .args(more)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let line = BufReader::new(serving.stderr.take().unwrap()).lines().next().unwrap().unwrap();
        let address = line.strip_prefix("listening on ").unwrap().to_owned();
        Self { serving, address }
    }

    /// What it says of the machine.
    fn asked(&self, lab: &Lab, more: &[&str]) -> Output {
        lab.run(&[&["attest", "quote", "probe", "--verifier", &self.address], more].concat())
    }

    /// The alerts that it has raised.
    fn end(mut self) -> String {
        self.serving.kill().unwrap();
        let mut alerts = String::new();
        std::io::Read::read_to_string(&mut self.serving.stdout.take().unwrap(), &mut alerts).unwrap();
        alerts
    }
}

impl Drop for Verifier {
    fn drop(&mut self) {
        drop(self.serving.kill());
        drop(self.serving.wait());
    }
}

#[test]
fn verifier_and_machine_are_two_processes() {
    let Some(lab) = Lab::new() else { return };
    let verifier = Verifier::start(&lab, &[]);
    let first = verifier.asked(&lab, &[]);
    assert_eq!(first.status.code(), Some(0), "{}", text(&first));
    let result: serde_json::Value = serde_json::from_slice(&first.stdout).unwrap();
    assert_eq!(result["submods"]["secure-boot"]["ear_verifier_claims"]["secureboot"], true, "{result}");
    // challenges are a second apart; and the verifier was told of one start
    std::thread::sleep(std::time::Duration::from_millis(1100));
    let second = verifier.asked(&lab, &[]);
    assert_eq!(second.status.code(), Some(1), "{}", text(&second));
    assert!(text(&second).contains("contraindicated"), "{}", text(&second));
    // nobody who challenges: the machine was on all the same, and starts again
    let lonely = lab.run(&["attest", "quote", "probe", "--verifier", "127.0.0.1:1"]);
    assert_eq!((lonely.status.code(), text(&lonely).contains("no challenge")), (Some(2), true), "{}", text(&lonely));
    assert_eq!(lab.start("probe").0, 0);
    let refused = lab.run(&["attest", "quote", "probe", "--verifier", "192.0.2.1:7680"]);
    assert!(text(&refused).contains("no loopback address"));
    let alert: serde_json::Value = serde_json::from_str(verifier.end().lines().next().unwrap()).unwrap();
    assert_eq!((&alert["vm"], &alert["reason"]), (&"probe".into(), &"reset-count".into()), "{alert}");
}

#[test]
fn over_tls_the_verifier_is_the_one_that_is_meant() {
    let Some(lab) = Lab::new() else { return };
    let file = |name: &str| lab.folder.path().join(name).display().to_string();
    for (name, san) in [("own", "IP:127.0.0.1"), ("other", "IP:127.0.0.1"), ("elsewhere", "DNS:verifier.example")] {
        let (key, certificate) = (file(&format!("{name}.key")), file(&format!("{name}.pem")));
        let (subject, san) = (format!("/CN={name}"), format!("subjectAltName={san}"));
        let made = Command::new("openssl")
            .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", &key, "-out", &certificate])
            .args(["-subj", &subject, "-addext", &san, "-addext", "basicConstraints=critical,CA:FALSE"])
            .output();
        match made {
            Ok(made) => assert!(made.status.success(), "{}", text(&made)),
            Err(error) => {
                eprintln!("skipped: openssl: {error}");
                return;
            }
        }
    }
    let with = |name: &str| {
        let (certificate, key) = (file(&format!("{name}.pem")), file(&format!("{name}.key")));
        Verifier::start(&lab, &["--tls-cert", &certificate, "--tls-key", &key])
    };
    let verifier = with("own");
    let good = verifier.asked(&lab, &["--tls-ca", &file("own.pem")]);
    assert_eq!(good.status.code(), Some(0), "{}", text(&good));
    for (what, more) in [("another authority", &["--tls-ca", &file("other.pem")][..]), ("no TLS", &[])] {
        let refused = verifier.asked(&lab, more);
        assert_eq!(refused.status.code(), Some(2), "{what}: {}", text(&refused));
        assert!(text(&refused).contains("no challenge"), "{what}: {}", text(&refused));
    }
    let elsewhere = with("elsewhere").asked(&lab, &["--tls-ca", &file("elsewhere.pem")]);
    assert!(elsewhere.status.code() == Some(2) && text(&elsewhere).contains("not valid for name"), "{}", text(&elsewhere));
    assert!(Command::new(SIM).args(["attest", "serve", "--tls-cert", "x"]).output().unwrap().status.code() == Some(2), "and its key");
}
