//! Machines that stay on: attested again and again, until one's TPM dies.

use std::{
    fs,
    io::{BufRead, BufReader, Lines},
    process::{Child, ChildStdout, Command, Stdio},
};

use super::lab::{Lab, SIM, text};

/// A program of this machine's that goes on by itself, and what it says.
struct Going {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Going {
    fn start(lab: &Lab, arguments: &[&str]) -> Self {
        let mut command = Command::new(SIM);
        command.env("HVCI_VMS", lab.folder.path().join("vms")).args(arguments).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Self { child, lines }
    }

    /// Waits for a line with this in it.
    fn says(&mut self, what: &str) {
        assert!(self.lines.by_ref().map(Result::unwrap).any(|line| line.contains(what)), "it ended without {what:?}");
    }

    /// Its status and the rest of what it said.
    fn end(&mut self) -> (Option<i32>, String) {
        let rest: Vec<String> = self.lines.by_ref().map(Result::unwrap).collect();
        (self.child.wait().unwrap().code(), rest.join("\n"))
    }

    fn signal(&self, signal: &str) {
        kill(signal, self.child.id());
    }

    /// The process that it started.
    fn worker(&self) -> u32 {
        let parent_of = |pid: u32| {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
            // PID (COMMAND) STATE PARENT ..., and a command can have anything in it
            stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse::<u32>().ok()
        };
        let pids = fs::read_dir("/proc").unwrap().filter_map(|entry| entry.unwrap().file_name().to_str()?.parse().ok());
        let mut workers = pids.filter(|pid| parent_of(*pid) == Some(self.child.id()));
        workers.next().expect("a TPM has a process of its own")
    }
}

impl Drop for Going {
    fn drop(&mut self) {
        // gone already, but for a test that has failed
        drop(self.child.kill());
    }
}

fn kill(signal: &str, pid: u32) {
    assert!(Command::new("kill").args([signal, &pid.to_string()]).status().unwrap().success());
}

#[test]
fn a_tpm_that_dies_is_an_alert_and_touches_no_other_machine() {
    let Some(lab) = Lab::new() else { return };
    for backend in ["libtpms", "swtpm"] {
        let names = [format!("{backend}-dies"), format!("{backend}-lives")];
        let made = lab.create(&names[0], &["--tpm", backend]);
        if text(&made).contains("libtpms0") || text(&made).contains("the package swtpm") {
            eprintln!("skipped: {backend} is not installed");
            continue;
        }
        assert!(made.status.success() && lab.create(&names[1], &["--tpm", backend]).status.success());
        let [mut dies, mut lives] = names.each_ref().map(|name| {
            let mut going = Going::start(&lab, &["vm", "start", name, "--attest-every", "1"]);
            going.says("nothing wrong");
            going
        });
        let mut watching = Going::start(&lab, &["health", "--json", "--watch", &names[0]]);
        watching.says("\"healthy\":true");
        dies.says("nothing wrong");
        kill("-KILL", dies.worker());

        let (code, said) = dies.end();
        assert_eq!(code, Some(1), "{said}");
        assert!(said.contains("alert [medium]: vtpm-failed") && said.contains("HVCI-TPM-001"), "{said}");
        let (code, said) = watching.end();
        assert_eq!(code, Some(1), "{said}");
        let lines: Vec<serde_json::Value> = said.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let ill = lines.iter().find(|line| line["healthy"] == false).unwrap();
        assert_eq!(ill["codes"], serde_json::json!(["HVCI-TPM-001"]), "{ill}");
        let alerts = fs::read_to_string(lab.path(&names[0], "alerts.ndjson")).unwrap();
        assert_eq!(alerts.lines().count(), 1, "{alerts}");
        let alert: serde_json::Value = serde_json::from_str(&alerts).unwrap();
        assert_eq!((&alert["kind"], &alert["severity"]), (&"tpm-failed".into(), &"medium".into()), "{alert}");

        // two more, as the first may have been waiting to be read
        lives.says("nothing wrong");
        lives.says("nothing wrong");
        lives.signal("-INT");
        let (code, said) = lives.end();
        assert_eq!((code, said.contains("attested: healthy")), (Some(0), true), "{said}");
        for name in &names {
            let (code, said) = lab.start(name);
            assert_eq!((code, said.contains("attested: healthy")), (0, true), "{name}: {said}");
        }
    }
}

#[test]
fn an_alert_that_is_expected_turns_no_machine_off_and_none_healthy() {
    let Some(lab) = Lab::new() else { return };
    assert!(lab.create("open", &["--secure-boot", "off", "--hvci", "off", "--credential-guard", "off"]).status.success());
    let reference = lab.path("open", "reference.toml");
    let own = fs::read_to_string(&reference).unwrap();
    let expect = |code: &str, until: &str| {
        let entry = format!("\n[[expected]]\ncode = \"{code}\"\nreason = \"no Secure Boot, as is tested here\"\nuntil = \"{until}\"\n");
        // whole, as it is read while it is written
        let next = reference.with_extension("next");
        fs::write(&next, format!("{own}{entry}")).unwrap();
        fs::rename(&next, &reference).unwrap();
    };
    // without Secure Boot GRUB leaves no log
    expect("log-missing", "9999-12-31");
    let mut going = Going::start(&lab, &["vm", "start", "open", "--attest-every", "1"]);
    going.says("as is expected: log-missing");
    going.says("as is expected: log-missing");
    // its end comes while the machine is on
    expect("log-missing", "2026-01-01");
    let (code, said) = going.end();
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("alert [medium]: log-missing") && said.contains("alert [low]: expectation-unmatched"), "{said}");
    let alerts = fs::read_to_string(lab.path("open", "alerts.ndjson")).unwrap();
    let alerts: Vec<serde_json::Value> = alerts.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let said: Vec<_> = alerts.iter().map(|alert| (alert["reason"].as_str().unwrap(), alert.get("suppressed_by").is_some())).collect();
    assert_eq!(said, [("log-missing", true), ("log-missing", false), ("expectation-unmatched", false)]);

    expect("log-missing", "9999-12-31");
    let (code, said) = lab.start("open");
    assert_eq!((code, said.contains("alert [medium, suppressed]: log-missing")), (1, true), "{said}");
    assert!(said.contains("attested: NOT HEALTHY") && said.contains("as is tested here"), "{said}");
    let health = lab.run(&["health", "open"]);
    assert_eq!((health.status.code(), text(&health).contains("NOT HEALTHY: log-missing")), (Some(1), true), "{}", text(&health));
}
