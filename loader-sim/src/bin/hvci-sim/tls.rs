//! TLS 1.3 between a machine and its verifier (`rustls`, with the library that verifies everything else).

use std::{fs, path::Path, sync::Arc};

use anyhow::{Context, Result, ensure};
use rustls::{
    ServerConfig,
    crypto::{CryptoProvider, aws_lc_rs},
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    version::TLS13,
};
use ureq::tls::{Certificate, RootCerts, TlsConfig, TlsProvider};

fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

/// What a server presents.
pub(crate) fn server(certificate: &Path, key: &Path) -> Result<Arc<ServerConfig>> {
    let chain = certificates(certificate)?;
    let text = fs::read(key).with_context(|| format!("cannot read {}", key.display()))?;
    let private = PrivateKeyDer::from_pem_slice(&text).map_err(|e| anyhow::anyhow!("{}: no key as PEM: {e}", key.display()))?;
    let config = ServerConfig::builder_with_provider(provider()).with_protocol_versions(&[&TLS13])?;
    let config = config.with_no_client_auth().with_single_cert(chain, private);
    Ok(Arc::new(config.with_context(|| format!("{} and {}", certificate.display(), key.display()))?))
}

/// Whom a client believes: the authorities of this file, and nobody else.
pub(crate) fn client(authorities: &Path) -> Result<TlsConfig> {
    let roots: Vec<Certificate<'static>> = certificates(authorities)?.iter().map(|der| Certificate::from_der(der).to_owned()).collect();
    let config = TlsConfig::builder().provider(TlsProvider::Rustls).root_certs(RootCerts::new_with_certs(&roots));
    Ok(config.unversioned_rustls_crypto_provider(provider()).build())
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let text = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).collect();
    let all = all.map_err(|e| anyhow::anyhow!("{}: {e}", path.display()))?;
    ensure!(!all.is_empty(), "{}: no certificate as PEM", path.display());
    Ok(all)
}
