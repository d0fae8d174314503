//! What a vault needs of whoever keeps it while its machine is off.

use super::secret::Key;

/// Keeps what the vault gives it, and its key: the machine's TPM with a file, or the host.
///
/// The order of a change is [`replace`](Self::replace), then [`advance`](Self::advance). A crash between the two leaves a store that is one
/// ahead of the counter: it is taken, and the counter moved. One that is behind is an older one, and refused.
pub trait Keeper: Send {
    /// What was last given to [`replace`](Self::replace); `None` if nothing ever was.
    ///
    /// # Errors
    /// [`KeeperError`].
    fn read(&mut self) -> Result<Option<Vec<u8>>, KeeperError>;

    /// Keeps these bytes instead, all of them or none, whatever happens meanwhile. They are lasting when it returns.
    ///
    /// # Errors
    /// [`KeeperError`]; either may be kept then.
    fn replace(&mut self, bytes: &[u8]) -> Result<(), KeeperError>;

    /// How far the machine has come: a number that never goes back, whoever puts an older disk under it.
    ///
    /// # Errors
    /// [`KeeperError`].
    fn counter(&mut self) -> Result<u64, KeeperError>;

    /// Moves it up to `to`.
    ///
    /// # Errors
    /// [`KeeperError`].
    fn advance(&mut self, to: u64) -> Result<(), KeeperError>;

    /// Seals a key, so that nothing but [`unseal`](Self::unseal) gets it back.
    ///
    /// # Errors
    /// [`KeeperError`].
    fn seal(&mut self, key: &Key) -> Result<Vec<u8>, KeeperError>;

    /// Gives a sealed key back, once in a boot.
    ///
    /// # Errors
    /// [`KeeperError`].
    fn unseal(&mut self, sealed: &[u8]) -> Result<Key, KeeperError>;
}

/// Why a keeper does not.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeeperError {
    /// The machine is not in a state in which the key may be had: it may be, later or after an approval.
    #[error("the vault's key is not released: {0}")]
    NotReleased(String),
    /// The key is gone for good: what was sealed under it is of no use any more.
    #[error("the vault's key is lost: {0}")]
    Lost(String),
    /// Reading or writing failed.
    #[error("the vault cannot be kept: {0}")]
    Io(String),
}
