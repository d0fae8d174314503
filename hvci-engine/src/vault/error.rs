//! Why the vault does not do what it is asked.

use crate::{finding::Code, status::HvStatus};

/// An operation is refused. What it says may be logged: no secret is in it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum VaultError {
    /// Whoever asks is no verified module, or not one that may.
    #[error("the code that asks is not allowed to")]
    Caller,
    /// This use of the credential is not allowed.
    #[error("the credential may not be used for this")]
    Operation,
    /// The credential was used as often as it may be.
    #[error("the credential's budget is used up")]
    Budget,
    /// It was used too often lately.
    #[error("the credential is used too often; again in {seconds} s")]
    Rate {
        /// Until when not, from now.
        seconds: u64,
    },
    /// The credential may not be used for this service.
    #[error("the credential may not be used for {0:?}")]
    Target(String),
    /// A channel binding must be there.
    #[error("the response is for no channel, and the credential is used with a channel binding only")]
    ChannelBinding,
    /// A ticket for somebody else was to be had or used.
    #[error("credentials are not delegated")]
    Delegation,
    /// What must not be done any more.
    #[error("{0} is never done: what it gives out leads to the secret")]
    Legacy(&'static str),
    /// A blob that is not this machine's, not of this boot, not the latest, or changed.
    #[error("the blob is not the latest of this credential in this boot")]
    Blob,
    /// What is kept of the vault is not what was last kept.
    #[error("what is kept of the vault is refused: {0}")]
    Store(&'static str),
    /// There is no such credential, for this caller.
    #[error("there is no such credential")]
    NotFound,
    /// It is out in a blob.
    #[error("the credential is out, in a blob")]
    Out,
    /// The credential is of another kind.
    #[error("the credential is not of the kind that this is done with")]
    Kind,
    /// The request cannot be read.
    #[error("the request is malformed: {0}")]
    Request(&'static str),
    /// The answer does not fit where it is to go.
    #[error("the answer takes {0} bytes")]
    Room(usize),
    /// No more credentials fit.
    #[error("the vault is full")]
    Full,
    /// What was encrypted is not authentic under this credential.
    #[error("this was not encrypted for the credential")]
    Authentic,
    /// Nothing can be kept: the keeper's own reason.
    #[error(transparent)]
    Keeper(#[from] super::KeeperError),
    /// The host's.
    #[error(transparent)]
    Host(#[from] HvStatus),
}

impl VaultError {
    /// What the guest is told.
    pub const fn status(&self) -> HvStatus {
        match self {
            Self::Caller
            | Self::Operation
            | Self::Budget
            | Self::Rate { .. }
            | Self::Target(_)
            | Self::ChannelBinding
            | Self::Delegation
            | Self::Legacy(_)
            | Self::Blob
            | Self::Store(_)
            | Self::Authentic => HvStatus::ACCESS_DENIED,
            Self::NotFound => HvStatus::NOT_FOUND,
            Self::Out => HvStatus::OBJECT_IN_USE,
            Self::Kind | Self::Request(_) => HvStatus::INVALID_PARAMETER,
            Self::Room(_) | Self::Full => HvStatus::INSUFFICIENT_MEMORY,
            Self::Keeper(_) => HvStatus::OPERATION_DENIED,
            Self::Host(status) => *status,
        }
    }

    /// The finding.
    pub const fn code(&self) -> Code {
        match self {
            Self::Caller => Code::VaultCaller,
            Self::Operation | Self::Kind | Self::Delegation => Code::VaultOperation,
            Self::Budget | Self::Rate { .. } => Code::VaultRate,
            Self::Target(_) | Self::ChannelBinding => Code::VaultTarget,
            Self::Legacy(_) => Code::VaultLegacy,
            Self::Blob => Code::VaultBlob,
            Self::Store(_) => Code::VaultStore,
            Self::Keeper(_) => Code::VaultKey,
            Self::NotFound | Self::Out | Self::Request(_) | Self::Room(_) | Self::Full | Self::Authentic | Self::Host(_) => {
                Code::VaultRequest
            }
        }
    }
}
