//! A verifier, and what holds of all that it is sent by who has no TPM of its machines.

use std::{collections::BTreeMap, sync::LazyLock};

use loader_sim::attest::{
    Appraisal, DbxInfo, Reference, Verifier,
    alert::{self, Kind},
    result::Ear,
};

/// What is expected of the machines takes no forgery for theirs.
const REFERENCE: &str = r#"
chain = ["shim", "boot-loader", "kernel"]
[[expected]]
code = "log-missing"
reason = "a guest without one"
until = "9999-12-31"
[[expected]]
code = "secure-boot-off"
reason = "a guest without it"
until = "9999-12-31"
"#;
const MACHINE: &str = r#"{"profile":"PROFILE","features":{"secure_boot":true,"vtpm":true,"hvci":true,"credential_guard":true},
    "ak_name":"000b0000000000000000000000000000000000000000000000000000000000000000",
    "ek_name":"000bNAME00000000000000000000000000000000000000000000000000000000","reset_count":1,"restart_count":0,"orderly":true,
    "ledger":"current","baseline":null}"#;

/// Of two machines, `linux` and `windows`.
pub static VERIFIER: LazyLock<Verifier> = LazyLock::new(|| {
    let machine = |profile: &str, name: &str| {
        let text = MACHINE.replace("PROFILE", profile).replace("NAME", name);
        serde_json::from_str(&text).expect("what the host knows")
    };
    let machines = [("linux", "00000001"), ("windows", "00000002")].map(|(profile, name)| (profile.to_owned(), machine(profile, name)));
    Verifier::new(Reference::read(REFERENCE).expect("reference values"), DbxInfo::default(), BTreeMap::from(machines))
});

/// Nobody believes it, no alert of it is called expected, and all of it can be written.
pub fn is_not_believed(appraisal: &Appraisal) {
    assert!(!appraisal.healthy(), "believed what no TPM signed");
    let alerts = alert::alerts(appraisal);
    assert!(alerts.iter().any(|alert| alert.kind == Kind::AttestationFailed && alert.needs_attention()), "{alerts:?}");
    alert::write(&mut std::io::sink(), &alerts).expect("alerts are written");
    serde_json::to_vec(&Ear::of(appraisal, 300)).expect("a result is written");
}
