//! A signed corpus made from nothing but a seed: its own authorities, PE and ELF images, signatures and timestamps of every kind that the
//! engine tells apart, good and bad, with the verdicts that they must get.

pub mod authenticode;
pub mod catalog;
pub mod certificate;
pub mod der;
pub mod elf;
pub mod key;
pub mod layout;
pub mod mutate;
pub mod pe;
pub mod pki;
pub mod signed_data;
pub mod timestamp;

/// Result of making something.
pub type Result<T> = core::result::Result<T, Error>;

/// Why something could not be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The input is not one that this can be done to.
    #[error("not applicable: {0}")]
    NotApplicable(&'static str),
    /// Nobody of this name in the PKI.
    #[error("the synthetic PKI has no {0:?}")]
    Unknown(String),
    /// Encoding.
    #[error("encoding")]
    Der(#[from] ::der::Error),
    /// A public key.
    #[error("encoding a public key")]
    Spki(#[from] spki::Error),
    /// RSA.
    #[error("RSA")]
    Rsa(#[from] rsa::Error),
    /// ECDSA.
    #[error("ECDSA")]
    Ecdsa(#[from] p256::ecdsa::Error),
    /// An image.
    #[error("building an image")]
    Object(#[from] object::write::Error),
    /// Files.
    #[error("{path}")]
    Io {
        /// Which file.
        path: std::path::PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

#[cfg(test)]
mod tests;
