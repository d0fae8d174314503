//! The signature appended to a Linux module: its trailer, and what a kernel says of it (Linux `kernel/module/signing.c`,
//! `kernel/module_signature.c`; the same trailer serves IMA `appraise_type=modsig`).
//!
//! ```text
//! content │ PKCS#7 │ algo hash id_type signer_len key_id_len pad[3] sig_len(be32) │ "~Module signature appended~\n"
//! ```
//!
//! Trusts nothing of the trailer: what `mod_check_sig` refuses is refused here, in the same order and with the same error number. The PKCS#7
//! itself is not looked at. Refuses the signatures of kernels before 4.3, which are no PKCS#7.

#![deny(
    clippy::arithmetic_side_effects,
    clippy::as_conversions,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used
)]

use crate::{
    bytes::Span,
    finding::{Code, Note},
    image::elf::{Appended, MODULE_SIG_STRING, MODULE_SIGNATURE_LEN},
};

/// A module's signature trailer that a kernel accepts as such.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ModuleTrailer<'a> {
    /// What is signed: the file without signature, trailer and magic. It starts at offset 0.
    pub content: &'a [u8],
    /// The detached PKCS#7 SignedData (RFC 2315, DER); `sig_len` bytes.
    pub pkcs7: &'a [u8],
    /// Where `pkcs7` stands in the file.
    pub pkcs7_span: Span,
    /// Where `struct module_signature` and the magic stand in the file.
    pub span: Span,
}

impl<'a> ModuleTrailer<'a> {
    /// The trailer that `data` ends in; `None` for a module that is not signed (`ENODATA`).
    ///
    /// # Errors
    /// [`Code::SigModuleTrailer`] or [`Code::SigUnsupported`], with the error number that a kernel gives in the detail.
    pub fn find(data: &'a [u8]) -> Result<Option<Self>, Note> {
        let Some(appended) = Appended::find(data) else {
            return Ok(None);
        };
        let at = appended.fields_offset;
        let malformed = |detail: String| Note::new(Code::SigModuleTrailer, format!("{detail} (EBADMSG)"));
        let &[algo, hash, id_type, signer_len, key_id_len, pad0, pad1, pad2, _, _, _, _] = appended.fields else {
            let detail = format!("{} bytes before the magic, the trailer has {MODULE_SIGNATURE_LEN}", appended.fields.len());
            return Err(malformed(detail).at(Span::new(at, appended.fields.len())));
        };
        let (Some(content), Some(pkcs7)) = (appended.content, appended.signature) else {
            let detail = format!("sig_len is {:#x}, before the trailer stand {at:#x} bytes", appended.sig_len);
            return Err(malformed(detail).at(Span::new(at.saturating_add(8), 4)));
        };
        if id_type != PKEY_ID_PKCS7 {
            let kind = match id_type {
                0 => "OpenPGP, of kernels before 4.3",
                1 => "X.509, of kernels before 4.3",
                _ => "unknown",
            };
            let detail = format!("id_type is {id_type} ({kind}), not 2, PKCS#7 (ENOPKG)");
            return Err(Note::new(Code::SigUnsupported, detail).at(Span::new(at.saturating_add(2), 1)));
        }
        let fields: [(&str, usize, &[u8]); 5] = [
            ("algo", 0, &[algo]),
            ("hash", 1, &[hash]),
            ("signer_len", 3, &[signer_len]),
            ("key_id_len", 4, &[key_id_len]),
            ("padding", 5, &[pad0, pad1, pad2]),
        ];
        if let Some((name, offset, value)) = fields.into_iter().find(|(_, _, value)| value.iter().any(|b| *b != 0)) {
            let detail = format!("{name} is {}, not zero", hex::encode(value));
            return Err(malformed(detail).at(Span::new(at.saturating_add(offset), value.len())));
        }
        if pkcs7.is_empty() {
            return Err(malformed("sig_len is 0".to_owned()).at(Span::new(at.saturating_add(8), 4)));
        }
        Ok(Some(Self {
            content,
            pkcs7,
            pkcs7_span: Span::new(content.len(), pkcs7.len()),
            span: Span::new(at, MODULE_SIGNATURE_LEN.saturating_add(MODULE_SIG_STRING.len())),
        }))
    }
}

const PKEY_ID_PKCS7: u8 = 2;

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]

    use proptest::prelude::*;

    use super::*;

    fn signed(content: &[u8], pkcs7: &[u8], fields: [u8; 8], sig_len: u32) -> Vec<u8> {
        [content, pkcs7, &fields, &sig_len.to_be_bytes(), MODULE_SIG_STRING].concat()
    }

    const GOOD: [u8; 8] = [0, 0, 2, 0, 0, 0, 0, 0];

    #[test]
    fn content_signature_and_places() {
        let data = signed(b"content", b"sig", GOOD, 3);
        let trailer = ModuleTrailer::find(&data).unwrap().unwrap();
        assert_eq!((trailer.content, trailer.pkcs7), (&b"content"[..], &b"sig"[..]));
        assert_eq!(trailer.pkcs7_span, Span::new(7, 3));
        assert_eq!(trailer.span, Span::new(10, 40));
        assert_eq!(trailer.span.end(), Some(crate::bytes::widen(data.len())));
    }

    #[test]
    fn unsigned_is_no_error() {
        for data in [&b""[..], b"content", MODULE_SIG_STRING, &MODULE_SIG_STRING[1..], b"~Module signature appended~"] {
            assert_eq!(ModuleTrailer::find(data), Ok(None));
        }
        // anything behind the magic makes the module unsigned, as it does for the kernel
        let mut data = signed(b"content", b"sig", GOOD, 3);
        data.push(b'\n');
        assert_eq!(ModuleTrailer::find(&data), Ok(None));
    }

    #[test]
    fn refusals_name_the_field_and_the_error_number() {
        // (trailer fields, sig_len, code, bytes to blame, part of the detail)
        let cases: [([u8; 8], u32, Code, Span, &str); 11] = [
            ([0, 0, 2, 0, 0, 0, 0, 0], 10, Code::SigModuleTrailer, Span::new(18, 4), "sig_len is 0xa"),
            ([0, 0, 2, 0, 0, 0, 0, 0], u32::MAX, Code::SigModuleTrailer, Span::new(18, 4), "EBADMSG"),
            ([0, 0, 2, 0, 0, 0, 0, 0], 0, Code::SigModuleTrailer, Span::new(18, 4), "sig_len is 0 (EBADMSG)"),
            ([0, 0, 0, 0, 0, 0, 0, 0], 3, Code::SigUnsupported, Span::new(12, 1), "OpenPGP"),
            ([1, 4, 1, 9, 20, 0, 0, 0], 3, Code::SigUnsupported, Span::new(12, 1), "ENOPKG"),
            ([0, 0, 3, 0, 0, 0, 0, 0], 3, Code::SigUnsupported, Span::new(12, 1), "unknown"),
            ([1, 0, 2, 0, 0, 0, 0, 0], 3, Code::SigModuleTrailer, Span::new(10, 1), "algo"),
            ([0, 4, 2, 0, 0, 0, 0, 0], 3, Code::SigModuleTrailer, Span::new(11, 1), "hash"),
            ([0, 0, 2, 1, 0, 0, 0, 0], 3, Code::SigModuleTrailer, Span::new(13, 1), "signer_len"),
            ([0, 0, 2, 0, 1, 0, 0, 0], 3, Code::SigModuleTrailer, Span::new(14, 1), "key_id_len"),
            ([0, 0, 2, 0, 0, 0, 0, 1], 3, Code::SigModuleTrailer, Span::new(15, 3), "padding is 000001"),
        ];
        for (fields, sig_len, code, span, detail) in cases {
            let note = ModuleTrailer::find(&signed(b"content", b"sig", fields, sig_len)).unwrap_err();
            assert_eq!((note.code, note.span), (code, Some(span)), "{note:?}");
            assert!(note.detail.contains(detail), "{note:?}");
        }
        // as in the kernel, an impossible length comes before the type
        let note = ModuleTrailer::find(&signed(b"content", b"sig", [0; 8], 10)).unwrap_err();
        assert_eq!(note.code, Code::SigModuleTrailer);
        let short = [b"0123456789".as_slice(), MODULE_SIG_STRING].concat();
        assert_eq!(ModuleTrailer::find(&short).unwrap_err().span, Some(Span::new(0, 10)));
    }

    proptest! {
        #[test]
        fn parts_are_the_whole(body in proptest::collection::vec(any::<u8>(), 0..64), sig_len in 0_u32..80, fields in any::<[u8; 8]>()) {
            let fields = if body.len() % 2 == 0 { GOOD } else { fields };
            let data = [&body, &fields[..], &sig_len.to_be_bytes(), MODULE_SIG_STRING].concat();
            if let Ok(Some(trailer)) = ModuleTrailer::find(&data) {
                prop_assert_eq!(trailer.pkcs7.len(), crate::bytes::index(sig_len));
                prop_assert_eq!([trailer.content, trailer.pkcs7].concat(), body);
            } else {
                prop_assert!(fields != GOOD || sig_len == 0 || crate::bytes::index(sig_len) >= body.len());
            }
        }

        #[test]
        fn never_panics(data in proptest::collection::vec(any::<u8>(), 0..32), magic in any::<bool>()) {
            let tail = if magic { MODULE_SIG_STRING } else { &[] };
            let _ = ModuleTrailer::find(&[&data, tail].concat());
        }
    }
}
