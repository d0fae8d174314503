//! What a guest does to its own TPM, through nothing but commands.

use std::{
    io::{BufRead, BufReader},
    path::PathBuf,
    process::{Child, ChildStderr, Command, Output, Stdio},
};

use super::lab::{Lab, SIM, text};

/// A machine that is on and serves its TPM to tpm2-tools.
pub(crate) struct Served<'l> {
    lab: &'l Lab,
    socket: PathBuf,
    serving: Child,
    // closed, it would end what writes to it
    _said: BufReader<ChildStderr>,
}

impl<'l> Served<'l> {
    /// `None`, said, without tpm2-tools.
    pub(crate) fn start(lab: &'l Lab, name: &str) -> Option<Self> {
        if Command::new("tpm2_pcrread").arg("--version").output().is_err() {
            eprintln!("skipped: the package tpm2-tools is not installed");
            return None;
        }
        let socket = lab.folder.path().join("tpm");
        let mut serving = Command::new(SIM)
            .env("HVCI_VMS", lab.folder.path().join("vms"))
            .args(["vm", "tpm-socket", name, "--path", socket.to_str().unwrap()])
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut said = BufReader::new(serving.stderr.take().unwrap());
        let mut line = String::new();
        said.read_line(&mut line).unwrap();
        assert!(line.contains("TPM2TOOLS_TCTI"), "{line}");
        Some(Self { lab, socket, serving, _said: said })
    }

    /// Runs a tool, whatever comes of it.
    pub(crate) fn try_tool(&self, name: &str, arguments: &[&str]) -> Output {
        let mut command = Command::new(name);
        command.env("TPM2TOOLS_TCTI", format!("swtpm:path={}", self.socket.display()));
        command.current_dir(self.lab.folder.path()).args(arguments).output().unwrap()
    }

    /// Runs a tool that is to succeed: what it prints.
    pub(crate) fn tool(&self, name: &str, arguments: &[&str]) -> String {
        let output = self.try_tool(name, arguments);
        assert!(output.status.success(), "{name}: {}", text(&output));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Stops the machine: its status.
    pub(crate) fn stop(mut self) -> Option<i32> {
        assert!(Command::new("kill").args(["-INT", &self.serving.id().to_string()]).status().unwrap().success());
        self.serving.wait().unwrap().code()
    }
}

#[test]
fn a_guest_cannot_use_the_platform_hierarchy() {
    let Some(lab) = Lab::new() else { return };
    let Some(guest) = Served::start(&lab, "probe") else { return };
    for (tool, arguments) in [
        ("tpm2_clear", &["-c", "p"][..]),
        ("tpm2_changeauth", &["-c", "p", "mine"]),
        ("tpm2_createprimary", &["-C", "p", "-c", "platform.ctx"]),
    ] {
        let refused = guest.try_tool(tool, arguments);
        assert!(!refused.status.success() && text(&refused).contains("0x9A2"), "{tool}: {}", text(&refused));
    }
    // its own it can
    guest.tool("tpm2_createprimary", &["-C", "o", "-G", "ecc", "-c", "owner.ctx"]);
    assert_eq!(guest.stop(), Some(0));
}

#[test]
fn a_guest_that_locks_its_tpm_attests_all_the_same() {
    let Some(lab) = Lab::new() else { return };
    let Some(guest) = Served::start(&lab, "probe") else { return };
    guest.tool("tpm2_createprimary", &["-C", "o", "-G", "ecc", "-p", "right", "-c", "primary.ctx"]);
    guest.tool("tpm2_flushcontext", &["-t"]);
    let wrong = || text(&guest.try_tool("tpm2_create", &["-C", "primary.ctx", "-P", "wrong", "-G", "ecc", "-u", "k.pub", "-r", "k.priv"]));
    let said: Vec<String> = (0..40)
        .map(|_| {
            let said = wrong();
            guest.tool("tpm2_flushcontext", &["-t"]);
            said
        })
        .collect();
    assert!(said[0].contains("0x98E") || said[0].contains("0x922"), "{}", said[0]);
    assert!(said.last().unwrap().contains("0x921"), "it is locked: {}", said.last().unwrap());
    assert_eq!(guest.stop(), Some(0));
    let (code, said) = lab.start("probe");
    assert_eq!((code, said.contains("attested: healthy")), (0, true), "{said}");
}
