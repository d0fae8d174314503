//! Credentials that a machine keeps: for this machine, as it was approved, once in a start, and never an older state of them.

use std::fs;

use hvci_engine::vault::Vault;
use loader_sim::{
    attest::DbxInfo,
    vm::{self, Host, Options, VmError},
    vtpm::client::{Approval, Client, ClientError, CounterIndex, Sealed, Terms, counter_name},
};
use p256::ecdsa::SigningKey;
use sha2::{Digest, Sha256};

use super::{
    guest::Served,
    lab::{Lab, SIM, text},
};

impl Lab {
    /// Adds a user's credential; what was said.
    pub(crate) fn add(&self, name: &str, user: &str) -> (i32, String) {
        let password = self.folder.path().join("password");
        fs::write(&password, "correct horse battery staple").unwrap();
        let output = self.run(&["vm", "credential", name, "add", user, "--password-file", password.to_str().unwrap()]);
        (output.status.code().unwrap(), text(&output))
    }

    /// The users whose credentials are kept, or why they are not to be had.
    pub(crate) fn users(&self, name: &str) -> Result<Vec<String>, String> {
        let output = self.run(&["vm", "credential", name, "list"]);
        let said = text(&output);
        if !output.status.success() {
            return Err(said);
        }
        Ok(said.lines().filter_map(|line| Some(line.split_whitespace().nth(1)?.split_once('@')?.0.to_owned())).collect())
    }
}

/// A line of `vault.approval`.
#[derive(Clone, serde::Serialize, serde::Deserialize)]
struct OfKey {
    key: String,
    approval: Approval,
}

fn approvals(lab: &Lab, name: &str) -> Vec<OfKey> {
    serde_json::from_slice(&fs::read(lab.path(name, "vault.approval")).unwrap()).unwrap()
}

const ALICE: &str = "alice@EXAMPLE.ORG";

#[test]
fn credentials_are_kept_whichever_tpm_seals_them() {
    let Some(lab) = Lab::new() else { return };
    for parts in [&["--tpm", "embedded"][..], &["--tpm", "libtpms"], &["--tpm", "swtpm"], &["--vtpm", "off"]] {
        let name = parts[1];
        let made = lab.create(name, parts);
        if !made.status.success() {
            eprintln!("skipped: {}", text(&made));
            continue;
        }
        assert_eq!(lab.add(name, ALICE), (0, "added alice@EXAMPLE.ORG: 0x100000000\n".to_owned()));
        assert_eq!(lab.add(name, "bob@EXAMPLE.ORG").0, 0);
        assert_eq!(lab.users(name).unwrap(), ["alice", "bob"]);
        let sealed = |lab: &Lab| Vault::sealed_key(&fs::read(lab.path(name, "vault.store")).unwrap()).unwrap().to_vec();
        let before = sealed(&lab);
        assert!(lab.run(&["vm", "credential", name, "rotate"]).status.success());
        assert_ne!(sealed(&lab), before, "another key");
        let removed = lab.run(&["vm", "credential", name, "remove", "0x100000000"]);
        assert!(removed.status.success(), "{}", text(&removed));
        assert_eq!(lab.users(name).unwrap(), ["bob"]);
        let (code, said) = lab.start(name);
        assert!(code == 0 && said.contains("its key is released"), "{said}");
        // at rest nothing of it is to be read
        let store = fs::read(lab.path(name, "vault.store")).unwrap();
        assert!(!store.windows(3).any(|bytes| bytes == b"bob"));
    }
    // none where nothing guards them
    assert!(lab.create("open", &["--credential-guard", "off"]).status.success());
    let (code, said) = lab.add("open", ALICE);
    assert!(code == 2 && said.contains("no Credential Guard"), "{said}");
}

#[test]
fn the_key_is_released_as_it_was_approved() {
    let Some(lab) = Lab::new() else { return };
    lab.add("probe", ALICE);
    let first = fs::read(lab.path("probe", "vault.approval")).unwrap();
    // PCR 12 has the settings
    assert!(lab.run(&["vm", "set", "probe", "--hvci", "off"]).status.success());
    let refused = lab.users("probe").unwrap_err();
    assert!(refused.contains("PCR 12") && refused.contains("vm approve"), "{refused}");
    let (code, said) = lab.start("probe");
    assert!(said.contains("vault           CLOSED") && said.contains("alert [low]: vault-key"), "{code} {said}");
    let alerts = fs::read_to_string(lab.path("probe", "alerts.ndjson")).unwrap();
    assert!(alerts.contains(r#""kind":"vault-closed""#) && alerts.contains("PCR 12"), "{alerts}");
    assert!(lab.run(&["vm", "approve", "probe"]).status.success());
    assert_eq!(lab.users("probe").unwrap(), ["alice"]);
    // nothing is left to approve
    assert_eq!(lab.run(&["vm", "approve", "probe"]).status.code(), Some(2));
    // what was approved before is revoked, also for a machine that starts so again
    assert!(lab.run(&["vm", "set", "probe", "--hvci", "on"]).status.success());
    let second = approvals(&lab, "probe");
    fs::write(lab.path("probe", "vault.approval"), &first).unwrap();
    let refused = lab.users("probe").unwrap_err();
    assert!(refused.contains("revoked"), "{refused}");
    // nor is a forged one believed
    let old: Vec<OfKey> = serde_json::from_slice(&first).unwrap();
    let forge = |change: &dyn Fn(&mut Approval)| {
        let mut forged = second.clone();
        change(&mut forged[0].approval);
        fs::write(lab.path("probe", "vault.approval"), serde_json::to_vec(&forged).unwrap()).unwrap();
        let refused = lab.users("probe").unwrap_err();
        assert!(refused.contains("not signed by this host"), "{refused}");
    };
    forge(&|approval| approval.values = old[0].approval.values.clone());
    // a number that nobody signed moves no counter
    forge(&|approval| approval.number += 500);
    fs::write(lab.path("probe", "vault.approval"), serde_json::to_vec(&second).unwrap()).unwrap();
    assert!(lab.run(&["vm", "set", "probe", "--hvci", "off"]).status.success());
    assert_eq!(lab.users("probe").unwrap(), ["alice"]);
}

/// Who has the machine's folder for a while: the store taken away or spoilt, while the machine starts otherwise, gets the key of no earlier vault released; and
/// what waits to be approved is the host's own.
#[test]
fn a_new_vaults_approval_releases_no_earlier_key() {
    let Some(lab) = Lab::new() else { return };
    lab.add("probe", ALICE);
    let (store, aside) = (lab.path("probe", "vault.store"), lab.folder.path().join("aside"));
    let good = fs::read(&store).unwrap();
    fs::rename(&store, &aside).unwrap();
    assert!(lab.run(&["vm", "set", "probe", "--hvci", "off"]).status.success());
    lab.start("probe");
    fs::copy(&aside, &store).unwrap();
    let refused = lab.users("probe").unwrap_err();
    assert!(refused.contains("PCR 12"), "{refused}");
    // a key that was changed is refused, and left as it is
    let mut changed = good.clone();
    changed[54 + 60] ^= 1;
    fs::write(&store, &changed).unwrap();
    let refused = lab.users("probe").unwrap_err();
    assert!(refused.contains("not as this host wrote it"), "{refused}");
    assert_eq!(fs::read(&store).unwrap(), changed);
    // nor does a new vault, with credentials of its own, open the old one
    fs::remove_file(&store).unwrap();
    assert_eq!(lab.add("probe", "mallory@EXAMPLE.ORG").0, 0);
    assert_eq!(lab.users("probe").unwrap(), ["mallory"]);
    fs::write(&store, &good).unwrap();
    assert!(lab.users("probe").unwrap_err().contains("PCR 12"));

    let pending = fs::read_to_string(lab.path("probe", "vault.pending")).unwrap();
    fs::write(lab.path("probe", "vault.pending"), pending.replace("\"counter\": ", "\"counter\": 9")).unwrap();
    let approved = lab.run(&["vm", "approve", "probe"]);
    assert!(approved.status.code() == Some(2) && text(&approved).contains("this host did not write it"), "{}", text(&approved));
}

#[test]
fn an_older_store_and_anothers_are_refused() {
    let Some(lab) = Lab::new() else { return };
    for (name, parts) in [("probe", &[][..]), ("host", &["--vtpm", "off"]), ("other", &[])] {
        if name != "probe" {
            assert!(lab.create(name, parts).status.success());
        }
        lab.add(name, ALICE);
    }
    for name in ["probe", "host"] {
        let old = fs::read(lab.path(name, "vault.store")).unwrap();
        lab.add(name, "bob@EXAMPLE.ORG");
        let new = fs::read(lab.path(name, "vault.store")).unwrap();
        fs::write(lab.path(name, "vault.store"), &old).unwrap();
        let refused = lab.users(name).unwrap_err();
        assert!(refused.contains("older than what was last kept"), "{refused}");
        assert_eq!(fs::read(lab.path(name, "vault.store")).unwrap(), old, "it is left as it is");
        fs::copy(lab.path("other", "vault.store"), lab.path(name, "vault.store")).unwrap();
        let refused = lab.users(name).unwrap_err();
        assert!(refused.contains("another machine's"), "{refused}");
        fs::write(lab.path(name, "vault.store"), &new).unwrap();
        assert_eq!(lab.users(name).unwrap(), ["alice", "bob"]);
    }
}

#[test]
fn a_guest_that_clears_its_tpm_loses_them_and_is_told() {
    let Some(lab) = Lab::new() else { return };
    lab.add("probe", ALICE);
    let Some(guest) = Served::start(&lab, "probe") else { return };
    guest.tool("tpm2_clear", &[]);
    // the counters are the platform's: no guest moves or removes them
    assert!(!guest.try_tool("tpm2_nvundefine", &["0x1400010"]).status.success());
    assert!(!guest.try_tool("tpm2_nvincrement", &["0x1400010", "-C", "0x1400010"]).status.success());
    guest.stop();
    let (_, said) = lab.start("probe");
    assert!(said.contains("vault           LOST: it was sealed by another TPM, or before this one was cleared"), "{said}");
    let (code, said) = lab.add("probe", "bob@EXAMPLE.ORG");
    assert!(code == 0 && said.contains("what was kept is lost"), "{said}");
    assert!(lab.path("probe", "vault.lost").exists());
    assert_eq!(lab.users("probe").unwrap(), ["bob"]);
}

/// The TPM itself gives the key no second time: PCR 12 is another when the boundary is measured.
#[test]
fn the_key_is_released_once_in_a_start() {
    let Some(lab) = Lab::new() else { return };
    lab.add("probe", ALICE);
    let vms = lab.folder.path().join("vms");
    let host_key = fs::read(vms.join("host.key")).unwrap();
    let derived = |purpose: &str| -> [u8; 32] {
        Sha256::new().chain_update(&host_key).chain_update(purpose).chain_update([0]).chain_update("probe").finalize().into()
    };
    let (approver, password) = (SigningKey::from_slice(&derived("vault approver")).unwrap(), derived("vault counters"));
    let counter = CounterIndex { index: 0x0140_0011, password: &password };
    let store = fs::read(lab.path("probe", "vault.store")).unwrap();
    // which key, the host's MAC, what the TPM made of it
    let kept = Vault::sealed_key(&store).unwrap();
    let sealed = Sealed(kept[48..].to_vec());
    let name = counter_name(counter).unwrap();
    let reference = Sha256::new().chain_update("hvci-sim vault key ").chain_update(name).chain_update(&kept[..16]).finalize();
    let approval = approvals(&lab, "probe").remove(0).approval;
    let dbx_info = DbxInfo::default();
    let options = Options { time: vm::now().unwrap(), program: SIM.as_ref(), dbx_info: &dbx_info, challenge: None };
    let mut again = None;
    let started = vm::start(&Host::new(&vms), "probe", &options, |running| {
        let tpm = running.tpm().ok_or(VmError::NoTpm)?;
        // everything that the host has, and the approval that was good a moment ago
        again = Some(Client::new(tpm).unseal(&sealed, approver.verifying_key(), Terms { reference: &reference, counter }, &approval));
        Ok(())
    });
    assert_eq!(started.unwrap().vault_key, Some(vm::KeyState::Released));
    let again = again.unwrap();
    assert!(matches!(again, Err(ClientError::Refused { .. })), "{again:?}");
}
