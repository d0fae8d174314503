//! What the host knows of a machine by itself, and the reference values that its owner's files and variables give when it is made.

use hvci_engine::{crypto, digest::DigestAlg, signature::cert::Certificate};
use serde::{Deserialize, Serialize};

use super::Profile;
use crate::{
    attest::{Baseline, Ledger, Machine, quote::name, reference::Stage},
    boot::{Boot, StageKind},
    measure::{EventLog, EventType, data::EventData},
};

/// `host.json`: what cannot be had again once a guest has run. Everything else is the profile's, or the ledger's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Known {
    /// Name of its TPM's attestation key; empty without a TPM.
    #[serde(with = "hex::serde")]
    pub(super) ak_name: Vec<u8>,
    /// TPM2B_PUBLIC of its endorsement key, by which the ledger knows its TPM.
    #[serde(with = "hex::serde")]
    pub(super) endorsement_key: Vec<u8>,
    /// A random number, which tells it from an earlier machine of its name.
    pub(super) id: String,
    /// The start that was predicted when it was made.
    pub(super) baseline: Baseline,
}

impl Known {
    /// What a verifier is told of the machine, whose TPM was reset so often.
    pub(super) fn machine(&self, profile: &Profile, reset_count: u32) -> Machine {
        Machine {
            profile: profile.guest.into(),
            features: profile.features(),
            ak_name: self.ak_name.clone(),
            ek_name: self.endorsement_key.get(2..).map(name).unwrap_or_default(),
            reset_count,
            restart_count: 0,
            orderly: true,
            ledger: Ledger::Current,
            baseline: Some(self.baseline.clone()),
        }
    }
}

/// Reference values of a start as it was predicted from the machine's own files and variables, as TOML: what is there when a machine is made is
/// what its owner wants.
pub fn reference(boot: &Boot, log: &EventLog<'_>) -> String {
    let mut text = String::from("# What a healthy start of this machine is made of, from its files and variables when it was made.\n");
    let sha256 = |bytes: &[u8]| crypto::digest(DigestAlg::Sha256, &[bytes]).to_string();
    // what firmware measures; Windows' loader and kernel are measured as modules
    let measured = boot.stages.iter().filter(|stage| !stage.events.is_empty());
    let mut chain: Vec<&str> = measured.filter_map(|stage| stage_of(stage.kind)).map(Stage::name).collect();
    chain.dedup();
    text.push_str(&format!("chain = {chain:?}\n"));
    if boot.kernel().is_some_and(|kernel| !kernel.modules().is_empty()) {
        // PCR 14 of Windows grows with its drivers
        text.push_str("baseline_pcrs = [0, 2, 4, 7]\n");
    }
    text.push_str("\n[secure_boot]\n");
    let mut mok = String::from("\n[mok]\n");
    for event in &log.events {
        match EventData::of(event) {
            EventData::Variable(v) if event.event_type == EventType::EV_EFI_VARIABLE_DRIVER_CONFIG && v.name != "SecureBoot" => {
                text.push_str(&format!("{} = [\"{}\"]\n", v.name.to_lowercase(), sha256(v.value)));
            }
            EventData::Text(name) if event.pcr == 14 => {
                let digest = event.digests.get(DigestAlg::Sha256).map(|d| d.to_string()).unwrap_or_default();
                mok.push_str(&format!("{} = [\"{digest}\"]\n", quoted(name.trim_end_matches('\0'))));
            }
            _ => {}
        }
    }
    text.push_str(&mok);
    let mut signers: Vec<String> = Vec::new();
    let mut components: Vec<String> = Vec::new();
    for stage in &boot.stages {
        let (Some(kind), Some(authentihash)) = (stage_of(stage.kind), stage.authentihash) else { continue };
        let sbat: Vec<String> = stage.sbat.iter().map(|c| format!("{} = {}", quoted(&c.name), c.generation)).collect();
        let component = format!(
            "\n[[component]]\nstage = \"{}\"\nname = {}\nauthentihash = [\"{authentihash}\"]\nsbat = {{ {} }}\n",
            kind.name(),
            quoted(&stage.path),
            sbat.join(", ")
        );
        if !components.contains(&component) {
            components.push(component);
        }
        if let Some(authority) = stage.verdict.as_ref().and_then(|v| v.authority.as_ref())
            && Certificate::parse(&authority.entry.data).is_ok()
        {
            let signer =
                format!("\n[[signer]]\nname = {}\ncertificate = \"{}\"\n", quoted(&authority.subject), sha256(&authority.entry.data));
            if !signers.contains(&signer) {
                signers.push(signer);
            }
        }
    }
    text.push_str(&components.concat());
    text.push_str(&signers.concat());
    text
}

/// Text as TOML has it.
fn quoted(text: &str) -> String {
    toml::Value::from(text).to_string()
}

pub(super) fn stage_of(kind: StageKind) -> Option<Stage> {
    Some(match kind {
        StageKind::Shim => Stage::Shim,
        StageKind::Grub | StageKind::SystemdBoot | StageKind::Fallback => Stage::BootLoader,
        StageKind::Kernel | StageKind::UnifiedKernel => Stage::Kernel,
        StageKind::WindowsBootManager => Stage::BootManager,
        StageKind::OsLoader => Stage::OsLoader,
        StageKind::NtKernel => Stage::Kernel,
        StageKind::MokManager | StageKind::Application => return None,
    })
}
