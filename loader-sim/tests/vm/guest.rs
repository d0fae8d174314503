//! What a guest does to its own TPM, through nothing but commands.

use std::{
    fs,
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

impl Drop for Served<'_> {
    fn drop(&mut self) {
        // gone already, but for a test that has failed
        drop(self.serving.kill());
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

/// An EFI_SIGNATURE_LIST of one certificate.
fn list_of(certificate: &[u8]) -> Vec<u8> {
    const X509: [u8; 16] = [0xa1, 0x59, 0xc0, 0xa5, 0xe4, 0x94, 0xa7, 0x4a, 0x87, 0xb5, 0xab, 0x15, 0x5c, 0x2b, 0xf0, 0x72];
    let entry = u32::try_from(16 + certificate.len()).unwrap();
    let list = [&X509[..], &(entry + 28).to_le_bytes(), &[0; 4], &entry.to_le_bytes(), &[0x11; 16], certificate].concat();
    assert_eq!(list.len(), 28 + 16 + certificate.len());
    list
}

/// T25: a secret that is sealed to what a vendor approves, and a counter, outlives an update that changes PCRs: what the machine will measure is
/// predicted from its files and approved beforehand, and nothing is sealed again. What was approved before is then revoked by the counter.
#[test]
fn an_update_that_was_predicted_does_not_lose_what_is_sealed() {
    let Some(lab) = Lab::new() else { return };
    let file = |name: &str| lab.folder.path().join(name);
    let openssl = |arguments: &[&str]| {
        let output = Command::new("openssl").current_dir(lab.folder.path()).args(arguments).output().unwrap();
        assert!(output.status.success(), "{}", text(&output));
    };
    if Command::new("openssl").arg("version").output().is_err() {
        eprintln!("skipped: the package openssl is not installed");
        return;
    }
    openssl(&["ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", "vendor.pem"]);
    openssl(&["ec", "-in", "vendor.pem", "-pubout", "-out", "vendor.pub"]);
    openssl(&[
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-nodes",
        "-keyout",
        "mok.key",
        "-subj",
        "/CN=enrolled",
        "-outform",
        "DER",
        "-out",
        "mok.der",
    ]);

    // the update, as files: a key in shim's list
    fs::write(file("mok.esl"), list_of(&fs::read(file("mok.der")).unwrap())).unwrap();
    let (variables, updated) = (lab.path("probe", "vars.fd"), file("updated.fd"));
    let (variables, updated) = (variables.to_str().unwrap(), updated.to_str().unwrap());
    let set = lab.run(&["vars", "set", variables, "MokList", file("mok.esl").to_str().unwrap(), "-o", updated]);
    assert!(set.status.success(), "{}", text(&set));
    let selection = "sha256:7,14";
    let predicted = |variables: &str| {
        let printed = text(&lab.run(&["pcr", "predict", lab.image.to_str().unwrap(), "--vars", variables]));
        let of = |pcr: &str| {
            let line = printed.lines().find(|line| line.trim_start().split_once(':').is_some_and(|(n, _)| n.trim() == pcr)).unwrap();
            hex::decode(line.rsplit_once("0x").unwrap().1).unwrap()
        };
        [of("7"), of("14")].concat()
    };
    fs::write(file("before.pcrs"), predicted(variables)).unwrap();
    fs::write(file("after.pcrs"), predicted(updated)).unwrap();
    assert_ne!(fs::read(file("before.pcrs")).unwrap(), fs::read(file("after.pcrs")).unwrap());

    let policy_of = |guest: &Served<'_>, kind: &[&str], pcrs: &[&str], sequence: u8, digest: &str| {
        guest.tool("tpm2_startauthsession", &[&["-S", "s.ctx"], kind].concat());
        guest.tool("tpm2_policypcr", &[&["-S", "s.ctx", "-l", selection], pcrs].concat());
        fs::write(file("sequence"), u64::from(sequence).to_be_bytes()).unwrap();
        // the counter has not gone past this approval
        guest.try_tool("tpm2_policynv", &["-S", "s.ctx", "-C", "o", "-i", "sequence", "0x1800001", "ule", "-L", digest])
    };
    let approve = |guest: &Served<'_>, pcrs: &str, sequence: u8, name: &str| {
        let digest = format!("{name}.policy");
        let made = policy_of(guest, &[], &["-f", pcrs], sequence, &digest);
        assert!(made.status.success(), "{}", text(&made));
        guest.tool("tpm2_flushcontext", &["s.ctx"]);
        openssl(&["dgst", "-sha256", "-sign", "vendor.pem", "-out", &format!("{name}.sig"), &digest]);
        openssl(&["dgst", "-sha256", "-binary", "-out", &format!("{name}.digest"), &digest]);
    };
    let unseal = |guest: &Served<'_>, sequence: u8, name: &str| {
        guest.tool("tpm2_loadexternal", &["-G", "ecc", "-C", "o", "-u", "vendor.pub", "-c", "vendor.ctx", "-n", "vendor.name"]);
        let [digest, digested, signature] = ["policy", "digest", "sig"].map(|kind| format!("{name}.{kind}"));
        guest.tool("tpm2_verifysignature", &["-c", "vendor.ctx", "-d", &digested, "-s", &signature, "-f", "ecdsa", "-t", "ticket"]);
        guest.tool("tpm2_flushcontext", &["-t"]);
        guest.tool("tpm2_createprimary", &["-C", "o", "-G", "ecc", "-c", "primary.ctx"]);
        guest.tool("tpm2_flushcontext", &["-t"]);
        guest.tool("tpm2_load", &["-C", "primary.ctx", "-u", "sealed.pub", "-r", "sealed.priv", "-c", "sealed.ctx"]);
        guest.tool("tpm2_flushcontext", &["-t"]);
        let held = policy_of(guest, &["--policy-session"], &[], sequence, "now.policy");
        let outcome = if held.status.success() {
            let approved = guest.try_tool("tpm2_policyauthorize", &["-S", "s.ctx", "-i", &digest, "-n", "vendor.name", "-t", "ticket"]);
            if approved.status.success() { guest.try_tool("tpm2_unseal", &["-c", "sealed.ctx", "-p", "session:s.ctx"]) } else { approved }
        } else {
            held
        };
        guest.tool("tpm2_flushcontext", &["s.ctx"]);
        guest.tool("tpm2_flushcontext", &["-t"]);
        if outcome.status.success() { Ok(text(&outcome)) } else { Err(text(&outcome)) }
    };

    let Some(guest) = Served::start(&lab, "probe") else { return };
    guest.tool("tpm2_nvdefine", &["-C", "o", "-s", "8", "-a", "nt=counter|ownerread|ownerwrite|authread|authwrite", "0x1800001"]);
    guest.tool("tpm2_nvincrement", &["-C", "o", "0x1800001"]);
    guest.tool("tpm2_loadexternal", &["-G", "ecc", "-C", "o", "-u", "vendor.pub", "-c", "vendor.ctx", "-n", "vendor.name"]);
    guest.tool("tpm2_startauthsession", &["-S", "s.ctx"]);
    guest.tool("tpm2_policyauthorize", &["-S", "s.ctx", "-L", "static.policy", "-n", "vendor.name"]);
    guest.tool("tpm2_flushcontext", &["s.ctx"]);
    guest.tool("tpm2_flushcontext", &["-t"]);
    guest.tool("tpm2_createprimary", &["-C", "o", "-G", "ecc", "-c", "primary.ctx"]);
    fs::write(file("secret"), "kept").unwrap();
    guest.tool(
        "tpm2_create",
        &[
            "-C",
            "primary.ctx",
            "-i",
            "secret",
            "-L",
            "static.policy",
            "-a",
            "fixedtpm|fixedparent|noda",
            "-u",
            "sealed.pub",
            "-r",
            "sealed.priv",
        ],
    );
    guest.tool("tpm2_flushcontext", &["-t"]);
    approve(&guest, "before.pcrs", 1, "before");
    approve(&guest, "after.pcrs", 2, "after");
    assert_eq!(unseal(&guest, 1, "before"), Ok("kept".to_owned()));
    assert!(unseal(&guest, 2, "after").is_err(), "these PCRs are to come");
    assert_eq!(guest.stop(), Some(0));

    fs::copy(updated, variables).unwrap();
    let (code, said) = lab.start("probe");
    assert_eq!((code, said.contains("HVCI-ATT-018")), (1, true), "nobody allowed the key to the verifier: {said}");
    let guest = Served::start(&lab, "probe").unwrap();
    assert!(unseal(&guest, 1, "before").is_err(), "the PCRs are others");
    assert_eq!(unseal(&guest, 2, "after"), Ok("kept".to_owned()), "and nothing was sealed again");
    guest.tool("tpm2_nvincrement", &["-C", "o", "0x1800001"]);
    assert_eq!(unseal(&guest, 2, "after"), Ok("kept".to_owned()));
    guest.tool("tpm2_nvincrement", &["-C", "o", "0x1800001"]);
    assert!(unseal(&guest, 2, "after").is_err(), "the counter has gone past it");
    assert_eq!(guest.stop(), Some(1));
}
