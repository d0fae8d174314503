//! Where the signature that is appended to a module stands (Linux `include/linux/module_signature.h`).
//!
//! Only the place: whether the fields are ones a kernel accepts is for [`crate::signature::modsig`] to say.

use crate::bytes::{be32, index, slice};

/// What a signed module ends in (`MODULE_SIG_STRING`).
pub const MODULE_SIG_STRING: &[u8] = b"~Module signature appended~\n";

/// Length of `struct module_signature` in bytes.
pub const MODULE_SIGNATURE_LEN: usize = 12;

/// An appended signature: content, signature, `struct module_signature`, [`MODULE_SIG_STRING`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Appended<'a> {
    /// `struct module_signature`; shorter than [`MODULE_SIGNATURE_LEN`] where the file is.
    pub fields: &'a [u8],
    /// Offset of `fields` in the file.
    pub fields_offset: usize,
    /// `sig_len`; 0 where the file is too short to have it.
    pub sig_len: u32,
    /// What the signature is over: everything before it. `None` where `sig_len` leaves no byte of content.
    pub content: Option<&'a [u8]>,
    /// The signature. `None` where `content` is.
    pub signature: Option<&'a [u8]>,
}

impl<'a> Appended<'a> {
    /// The signature that `data` ends in, if it ends in [`MODULE_SIG_STRING`] and is not all of it (`module_sig_check`).
    pub fn find(data: &'a [u8]) -> Option<Self> {
        let before = data.strip_suffix(MODULE_SIG_STRING).filter(|before| !before.is_empty())?;
        let fields_offset = before.len().saturating_sub(MODULE_SIGNATURE_LEN);
        let (body, fields) = before.split_at_checked(fields_offset)?;
        let sig_len = be32(fields, 8).unwrap_or(0);
        let content_len = body.len().checked_sub(index(sig_len)).filter(|len| *len > 0);
        let content = content_len.and_then(|len| body.get(..len));
        let signature = content_len.and_then(|len| slice(body, len, index(sig_len)));
        Some(Self { fields, fields_offset, sig_len, content, signature })
    }
}
