//! `hvci-sim attest serve`: the verifier as a process of its own. Machines ask for a challenge and send evidence over HTTP.
//!
//! Listens on a loopback address alone. Refuses bodies longer than evidence can be before it reads them whole, machines that it does not know,
//! challenges too close together, and answers to none; evidence that is worth nothing is no refusal, but a result that says so. A connection ends
//! after [`PATIENCE`], whatever its client does with it, and there are no more than [`MAX_CLIENTS`]: who comes then waits for one to end.

use std::{
    fs,
    net::SocketAddr,
    path::PathBuf,
    process::ExitCode,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
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
use hyper::server::conn::http1;
use hyper_util::{rt::TokioIo, service::TowerToHyperService};
use loader_sim::attest::{Verifier, alert, challenge::Challenges, evidence::MAX_EVIDENCE, result::Ear};
use rand_core::{OsRng, RngCore};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    time::timeout,
};
use tokio_rustls::TlsAcceptor;

/// How long a connection lasts at most.
const PATIENCE: Duration = Duration::from_secs(10);
/// Connections at a time.
const MAX_CLIENTS: usize = 64;

const EXAMPLES: &str = "\
Examples:
  hvci-sim attest serve --reference reference.toml --machines machines.json --listen 127.0.0.1:7680
  curl -X POST http://127.0.0.1:7680/challenge/web-1                               {\"nonce\":\"...\"}
  curl --data-binary @evidence.json http://127.0.0.1:7680/evidence/web-1           an EAT Attestation Result

  hvci-sim attest serve ... --tls-cert verifier.pem --tls-key verifier.key       and https://

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
    /// Serve over TLS, with this certificate and those that vouch for it, PEM
    #[arg(long, value_name = "FILE.pem", requires = "tls_key")]
    tls_cert: Option<PathBuf>,
    /// The certificate's key, PEM
    #[arg(long, value_name = "FILE.pem", requires = "tls_cert")]
    tls_key: Option<PathBuf>,
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
    let tls = args.tls_cert.as_ref().zip(args.tls_key.as_ref());
    let tls = tls.map(|(certificate, key)| super::tls::server(certificate, key).map(TlsAcceptor::from)).transpose()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    // tasks of connections are the runtime's own
    runtime.block_on(async {
        let listener = TcpListener::bind(args.listen).await.with_context(|| args.listen.to_string())?;
        eprintln!("listening on {}", listener.local_addr()?);
        accept(&listener, tls.as_ref(), &router).await
    })
}

/// Takes connections, without an end.
async fn accept(listener: &TcpListener, tls: Option<&TlsAcceptor>, router: &Router) -> Result<ExitCode> {
    let clients = Arc::new(Semaphore::new(MAX_CLIENTS));
    loop {
        let permit = Arc::clone(&clients).acquire_owned().await?;
        let Ok((stream, _)) = listener.accept().await else {
            // whoever knocked has gone, or there are no descriptors left, which takes a moment
            tokio::time::sleep(Duration::from_millis(10)).await;
            continue;
        };
        let (tls, router) = (tls.cloned(), router.clone());
        tokio::spawn(async move {
            // how a connection ends is its client's affair
            drop(timeout(PATIENCE, talk(stream, tls, router)).await);
            drop(permit);
        });
    }
}

async fn talk(stream: TcpStream, tls: Option<TlsAcceptor>, router: Router) {
    match tls {
        None => serve_http(stream, router).await,
        Some(tls) => {
            if let Ok(stream) = tls.accept(stream).await {
                serve_http(stream, router).await;
            }
        }
    }
}

async fn serve_http(stream: impl AsyncRead + AsyncWrite + Unpin, router: Router) {
    drop(http1::Builder::new().serve_connection(TokioIo::new(stream), TowerToHyperService::new(router)).await);
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
