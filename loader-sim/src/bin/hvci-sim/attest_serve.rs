//! `hvci-sim attest serve`: the verifier as a process of its own. Machines ask for a challenge and send evidence over HTTP.
//!
//! Listens on a loopback address alone. Refuses bodies longer than evidence can be before it reads them whole, machines that it does not know,
//! challenges too close together, and answers to none; evidence that is worth nothing is no refusal, but a result that says so.

use std::{
    fs,
    net::SocketAddr,
    path::PathBuf,
    process::ExitCode,
    sync::{Arc, Mutex, PoisonError},
};

use anyhow::{Context, Result, bail};
use axum::{
    Router,
    body::Bytes,
    extract::{DefaultBodyLimit, Path, State},
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::post,
};
use clap::Args;
use loader_sim::attest::{Verifier, alert, challenge::Challenges, evidence::MAX_EVIDENCE, result::Ear};
use rand_core::{OsRng, RngCore};

const EXAMPLES: &str = "\
Examples:
  hvci-sim attest serve --reference reference.toml --machines machines.json --listen 127.0.0.1:7680
  curl -X POST http://127.0.0.1:7680/challenge/web-1                               {\"nonce\":\"...\"}
  curl --data-binary @evidence.json http://127.0.0.1:7680/evidence/web-1           an EAT Attestation Result

Alerts go to stdout, one a line. Results are signed if there is a --key (JWT), and plain JSON if not.";

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct ServeArgs {
    #[command(flatten)]
    known: super::attest::Known,
    /// Where to listen: a loopback address, port 0 for any that is free
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:7680")]
    listen: SocketAddr,
    /// The verifier's key: P-256, PKCS #8 as DER
    #[arg(long, value_name = "FILE")]
    key: Option<PathBuf>,
    /// Seconds that a result holds
    #[arg(long, value_name = "SECONDS", default_value_t = super::attest::LIFETIME)]
    lifetime: u32,
}

struct Service {
    verifier: Verifier,
    challenges: Mutex<Challenges>,
    key: Option<Vec<u8>>,
    lifetime: u32,
}

pub(crate) fn serve(args: &ServeArgs) -> Result<ExitCode> {
    if !args.listen.ip().is_loopback() {
        bail!("{} is no loopback address", args.listen);
    }
    let key = args.key.as_ref().map(|path| fs::read(path).with_context(|| path.display().to_string())).transpose()?;
    let verifier = args.known.verifier()?;
    let service = Arc::new(Service { verifier, challenges: Mutex::default(), key, lifetime: args.lifetime });
    let router = Router::new()
        .route("/challenge/{vm}", post(challenge))
        .route("/evidence/{vm}", post(evidence))
        .layer(DefaultBodyLimit::max(MAX_EVIDENCE))
        .with_state(service);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let listener = tokio::net::TcpListener::bind(args.listen).await.with_context(|| args.listen.to_string())?;
        eprintln!("listening on {}", listener.local_addr()?);
        axum::serve(listener, router).await?;
        Ok(ExitCode::SUCCESS)
    })
}

async fn challenge(State(service): State<Arc<Service>>, Path(vm): Path<String>) -> Response {
    if !service.verifier.knows(&vm) {
        return (StatusCode::NOT_FOUND, "no such machine\n").into_response();
    }
    let Ok(now) = super::load::now_or(None) else { return StatusCode::INTERNAL_SERVER_ERROR.into_response() };
    let mut nonce = [0; 32];
    OsRng.fill_bytes(&mut nonce);
    match service.challenges.lock().unwrap_or_else(PoisonError::into_inner).issue(&vm, nonce, now) {
        Some(nonce) => {
            let body = serde_json::json!({ "nonce": hex::encode(nonce) }).to_string();
            ([(header::CONTENT_TYPE, "application/json")], body).into_response()
        }
        None => (StatusCode::TOO_MANY_REQUESTS, "challenged just now\n").into_response(),
    }
}

async fn evidence(State(service): State<Arc<Service>>, Path(vm): Path<String>, body: Bytes) -> Response {
    let Ok(now) = super::load::now_or(None) else { return StatusCode::INTERNAL_SERVER_ERROR.into_response() };
    let Some(nonce) = service.challenges.lock().unwrap_or_else(PoisonError::into_inner).redeem(&vm, now) else {
        return (StatusCode::CONFLICT, "no challenge is open\n").into_response();
    };
    let appraisal = service.verifier.appraise_answer(&vm, &body, &nonce, now);
    // whoever read the alerts may have gone; the result is the machine's all the same
    drop(alert::write(&mut anstream::stdout().lock(), &alert::alerts(&appraisal)));
    let ear = Ear::of(&appraisal, service.lifetime);
    let (kind, text) = match &service.key {
        Some(key) => ("application/eat+jwt", ear.sign(key).ok()),
        None => ("application/json", serde_json::to_string(&ear).ok()),
    };
    match text {
        Some(text) => ([(header::CONTENT_TYPE, kind)], text).into_response(),
        None => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}
