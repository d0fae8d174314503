//! What a Kerberos client does with its keys (RFC 4120), as far as it is done in the vault.

mod etype;
mod fold;
mod message;

pub(super) use etype::hmac;
pub use etype::{Etype, Usage};
pub(super) use message::{Instant, Principal, authenticator, encrypted_timestamp, kdc_reply, request_body};
/// What the keys are used for (RFC 4120 §7.5.1).
pub(super) mod usage {
    use super::Usage;

    pub(in crate::vault) const AS_REQ_TIMESTAMP: Usage = Usage::new(1);
    pub(in crate::vault) const AS_REP: Usage = Usage::new(3);
    pub(in crate::vault) const TGS_REQ_CHECKSUM: Usage = Usage::new(6);
    pub(in crate::vault) const TGS_REQ_AUTHENTICATOR: Usage = Usage::new(7);
    pub(in crate::vault) const TGS_REP: Usage = Usage::new(8);
    pub(in crate::vault) const AP_REQ_AUTHENTICATOR: Usage = Usage::new(11);
}
