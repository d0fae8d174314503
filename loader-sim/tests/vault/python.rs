//! What the vault makes is accepted by servers that others wrote: pyspnego's and impacket's.

use std::{fs, path::Path, process::Command};

fn accepted(arguments: &[&str], expected: &str) {
    for module in ["spnego", "impacket", "pyasn1"] {
        let there = Command::new("python3").args(["-c", &format!("import {module}")]).output().is_ok_and(|output| output.status.success());
        if !there {
            eprintln!("skipped: python3 has no {module}; the packages are pyspnego and impacket");
            return;
        }
    }
    let folder = tempfile::tempdir().unwrap();
    let password = folder.path().join("password");
    fs::write(&password, super::PASSWORD).unwrap();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vault/acceptors.py");
    let (kind, more) = arguments.split_first().unwrap();
    let program = env!("CARGO_BIN_EXE_hvci-sim");
    let output = Command::new("python3").arg(script).args([kind, program, password.to_str().unwrap()]).args(more).output().unwrap();
    let said = String::from_utf8_lossy(&[&output.stdout[..], &output.stderr].concat()).into_owned();
    assert!(output.status.success() && said.contains(expected), "{said}");
}

#[test]
fn a_server_of_pyspnego_accepts_the_ntlm_messages() {
    accepted(&["ntlm"], "accepted: NTLMv2, integrity code, signatures, channel binding");
}

#[test]
fn a_kdc_and_a_service_of_impackets_accept_the_kerberos_messages() {
    for etype in ["17", "18"] {
        accepted(&["kerberos", etype], "accepted: AS-REQ, TGS-REQ, AP-REQ");
    }
}
