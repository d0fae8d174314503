//! `hvci-sim attest quote`: a machine's side of attestation, to a verifier in another process.

use std::{io::Write, net::SocketAddr, path::PathBuf, process::ExitCode, time::Duration};

use anyhow::{Context, Result, bail};
use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use clap::Args;
use corpus::source::escape;
use loader_sim::{
    attest::DbxInfo,
    vm::{self, Options},
};

const EXAMPLES: &str = "\
Examples:
  hvci-sim vm known > machines.json
  hvci-sim attest serve --machines machines.json --reference ~/.local/share/hvci-sim/vms/demo/reference.toml &
  hvci-sim attest quote demo
  hvci-sim attest quote demo --tls-ca authority.pem

What the verifier answers goes to stdout: an EAT Attestation Result, plain or signed.

Exit status: 0 the verifier took the answer and found nothing wrong, 1 it found something, or nothing runs, 2 usage or I/O.";

/// A result is no longer.
const MAX_RESULT: u64 = 1 << 20;
const PATIENCE: Duration = Duration::from_secs(30);

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct QuoteArgs {
    /// The machine
    name: String,
    /// Where the verifier listens: a loopback address
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:7680")]
    verifier: SocketAddr,
    /// Speak TLS with it, and believe the authorities of this file alone, PEM
    #[arg(long, value_name = "FILE.pem")]
    tls_ca: Option<PathBuf>,
    /// The folder of the machines
    #[arg(long, value_name = "DIR")]
    vms: Option<PathBuf>,
}

pub(crate) fn quote(args: &QuoteArgs) -> Result<ExitCode> {
    if !args.verifier.ip().is_loopback() {
        bail!("{} is no loopback address", args.verifier);
    }
    let host = super::vm::host(args.vms.as_deref())?;
    let mut config = ureq::Agent::config_builder().timeout_global(Some(PATIENCE)).http_status_as_error(false);
    if let Some(authorities) = &args.tls_ca {
        config = config.tls_config(super::tls::client(authorities)?);
    }
    let (agent, scheme) = (ureq::Agent::from(config.build()), if args.tls_ca.is_some() { "https" } else { "http" });
    let post = |what: &str, body: &[u8]| -> Result<String, String> {
        let url = format!("{scheme}://{}/{what}/{}", args.verifier, args.name);
        let mut response = agent.post(&url).send(body).map_err(|e| format!("{url}: {e}"))?;
        let text = response.body_mut().with_config().limit(MAX_RESULT).read_to_string().map_err(|e| format!("{url}: {e}"))?;
        if response.status().is_success() { Ok(text) } else { Err(format!("{url}: {} {}", response.status(), text.trim())) }
    };
    let challenge = || {
        let answer: serde_json::Value = serde_json::from_str(&post("challenge", &[])?).map_err(|e| e.to_string())?;
        let nonce = answer.get("nonce").and_then(|nonce| nonce.as_str()).ok_or("the verifier's answer has no nonce")?;
        hex::decode(nonce).map_err(|e| e.to_string())
    };
    let (program, dbx_info) = (std::env::current_exe()?, DbxInfo::default());
    let options = Options { time: vm::now()?, program: &program, dbx_info: &dbx_info, challenge: Some(&challenge) };
    let started = vm::start(&host, &args.name, &options, |_| Ok(()))?;
    let Some(evidence) = &started.evidence else {
        bail!("{} has nothing to answer with: it has no TPM, or nothing runs", args.name);
    };
    let result = post("evidence", evidence).map_err(anyhow::Error::msg).context("the verifier refused the answer")?;
    writeln!(anstream::stdout(), "{}", escape(result.trim().as_bytes()))?;
    Ok(if is_affirming(result.trim()) { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Whether a result says that nothing is wrong. Whose a signed one is, is for those to say who rely on it.
fn is_affirming(result: &str) -> bool {
    let payload = result.split('.').nth(1).and_then(|part| BASE64_URL_SAFE_NO_PAD.decode(part).ok());
    let claims: Option<serde_json::Value> = serde_json::from_slice(payload.as_deref().unwrap_or(result.as_bytes())).ok();
    claims.as_ref().and_then(|claims| claims.get("ear_status")).is_some_and(|status| status == "affirming")
}
