//! The keys that a Linux kernel trusts from birth, cut out of its image.
//!
//! A kernel's `.builtin_trusted_keys` come from one place of its image (`certs/system_certificates.S`): certificates back to back,
//! the module signing key first, and behind them how many bytes that key and the whole list have. Symbols are stripped from a
//! `vmlinuz`, so that place is looked for by its form: a run of exact X.509 certificates *and* lengths behind it that fit the run.
//!
//! A kernel holds other certificates too: of `certs/revocation_certificates.S` (which it refuses!), of regulatory data, of self tests.
//! None of them is a key for modules. They have no two lengths behind them and are left out; where no place fits, or it is not clear
//! which, that is an error and not a guess.

#![deny(
    clippy::arithmetic_side_effects,
    clippy::as_conversions,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used
)]

use std::borrow::Cow;

use super::keyring::{certificate, unique};
use crate::{
    budget::MAX_CERTIFICATES,
    bytes::{array, index, le16, le32, slice, widen},
    finding::Code,
    image::{
        ImageError,
        elf::Elf,
        pe::Pe,
        unpack::{Compression, unpack_payload},
    },
};

/// The certificates built into a kernel, as DER, in their order: the module signing key first. Each stands there once.
///
/// `kernel` is a `vmlinuz` (x86 bzImage, or an EFI zboot image of any machine), a raw `Image` of arm64 or RISC-V, or a `vmlinux`, each also
/// compressed as a whole; or a unified kernel image whose `.linux` section is one of these. At most `cap` bytes are unpacked; 256 MiB hold every kernel.
///
/// # Errors
/// [`Code::InputNotImage`] for what is no kernel; those of [`unpack_payload`]; [`Code::PkiNoKeyring`] where the kernel has no such list,
/// or has two that look like it.
pub fn kernel_certificates(kernel: &[u8], cap: usize) -> Result<Vec<Vec<u8>>, ImageError> {
    let image = unpacked_kernel(kernel, cap)?;
    let runs = certificate_runs(&image);
    let list = runs.iter().find(|run| run.has_key_and_list_length(&image)).or_else(|| {
        // before 5.13 there was only the length of the whole list; a backported list of revoked certificates looks the same
        let mut old = runs.iter().filter(|run| run.has_list_length(&image));
        old.next().filter(|_| old.next().is_none() && release(&image).is_some_and(|r| r < (5, 13)))
    });
    let list = list.ok_or_else(|| {
        let found: usize = runs.iter().map(|run| run.certificates.len()).sum();
        ImageError::new(
            Code::PkiNoKeyring,
            format!("no built-in certificate list in the kernel; of {found} certificates in it none is known to be in one"),
        )
    })?;
    Ok(unique(list.certificates.iter().copied()))
}

/// What a kernel becomes when it is started, as far as the list is concerned: an ELF file or a raw image.
fn unpacked_kernel(kernel: &[u8], cap: usize) -> Result<Cow<'_, [u8]>, ImageError> {
    let mut image = Cow::Borrowed(unified_kernel(kernel)?.unwrap_or(kernel));
    // a compressed vmlinuz, its payload, and what that is
    for _ in 0..3 {
        if Elf::is_elf(&image) || is_raw_image(&image) {
            return Ok(image);
        }
        let payload = match Compression::of(&image) {
            Some(_) => Some(&*image),
            None => payload(&image)?,
        };
        let Some(payload) = payload else {
            break;
        };
        image = Cow::Owned(if Elf::is_elf(payload) { payload.to_vec() } else { unpack_payload(payload, cap)? });
    }
    Err(ImageError::new(
        Code::InputNotImage,
        "no Linux kernel: neither bzImage nor EFI zboot nor raw Image nor ELF, nor an image with a .linux section",
    ))
}

/// The `.linux` section of a unified kernel image (UAPI Group Specification 5, "Unified Kernel Image"), the first one, as systemd-stub takes
/// it; `None` for another file. What is in it can be no unified kernel image again: only this looks for the section, and only once.
fn unified_kernel(image: &[u8]) -> Result<Option<&[u8]>, ImageError> {
    // a vmlinuz and a raw Image are PE images as well, and what their header says comes first
    if !Pe::is_pe(image) || is_raw_image(image) || is_zboot(image) || is_bzimage(image) {
        return Ok(None);
    }
    let Ok(pe) = Pe::parse(image) else { return Ok(None) };
    match pe.section_content(".linux") {
        None if pe.sections().iter().any(|s| s.display_name() == ".linux") => {
            Err(ImageError::new(Code::ImageTruncated, "the image ends before its .linux section does"))
        }
        kernel => Ok(kernel),
    }
}

/// Raw `Image` (`Documentation/arch/arm64/booting.rst`, `Documentation/arch/riscv/boot-image-header.rst`).
fn is_raw_image(image: &[u8]) -> bool {
    [*b"ARM\x64", *b"RSC\x05"].map(Some).contains(&array(image, 0x38))
}

/// Compressed payload of a bzImage (`Documentation/arch/x86/boot.rst`, `payload_offset`, boot protocol 2.08) or an EFI zboot image
/// (`drivers/firmware/efi/libstub/zboot-header.S`); `None` for another file.
fn payload(image: &[u8]) -> Result<Option<&[u8]>, ImageError> {
    let place = if is_zboot(image) {
        le32(image, 8).zip(le32(image, 12)).map(|(offset, len)| (index(offset), index(len)))
    } else if is_bzimage(image) {
        // 0 stands for 4
        let setup = array(image, 0x1F1).map(|[n]| if n == 0 { 4 } else { usize::from(n) });
        let start = setup.and_then(|sectors| sectors.checked_add(1)?.checked_mul(512));
        start
            .zip(le32(image, 0x248))
            .zip(le32(image, 0x24C))
            .map(|((start, offset), len)| (start.saturating_add(index(offset)), index(len)))
    } else {
        return Ok(None);
    };
    let payload = place.and_then(|(offset, len)| slice(image, offset, len));
    payload.map(Some).ok_or_else(|| ImageError::new(Code::ImageTruncated, "the kernel ends before its payload does"))
}

fn is_zboot(image: &[u8]) -> bool {
    image.starts_with(b"MZ") && slice(image, 4, 4) == Some(b"zimg")
}

/// Boot protocol 2.08 or later.
fn is_bzimage(image: &[u8]) -> bool {
    slice(image, 0x202, 4) == Some(b"HdrS") && le16(image, 0x206).is_some_and(|version| version >= 0x208)
}

/// Certificates that stand back to back in an image.
struct Run<'a> {
    certificates: Vec<&'a [u8]>,
    /// Offset behind the last
    end: usize,
}

impl Run<'_> {
    fn len(&self) -> usize {
        self.certificates.iter().map(|der| der.len()).fold(0, usize::saturating_add)
    }

    /// `module_cert_size` and `system_certificate_list_size` behind the run. The first is the length of the signing key's certificates, or
    /// 0 without one. Room for a certificate that is inserted later can lie between (`CONFIG_SYSTEM_EXTRA_CERTIFICATE_SIZE`).
    fn has_key_and_list_length(&self, image: &[u8]) -> bool {
        let mut keys = vec![0];
        for der in &self.certificates {
            keys.push(keys.last().copied().unwrap_or(0_u64).saturating_add(widen(der.len())));
        }
        let fits = |[key, list]: [u64; 2]| list == widen(self.len()) && keys.contains(&key);
        (0..MAX_EXTRA)
            .step_by(8)
            .map_while(|gap| self.end.checked_next_multiple_of(8)?.checked_add(gap))
            .any(|at| Words::ALL.into_iter().any(|words| words.read(image, at).is_some_and(fits)))
    }

    /// `system_certificate_list_size` alone, right behind the run.
    fn has_list_length(&self, image: &[u8]) -> bool {
        let at = self.end.checked_next_multiple_of(8);
        Words::ALL.into_iter().any(|words| at.and_then(|at| words.read(image, at)).is_some_and(|[list, _]| list == widen(self.len())))
    }
}

/// How a kernel stores a length: `.quad`, or `.long` in 32-bit ones.
#[derive(Clone, Copy)]
enum Words {
    Le64,
    Be64,
    Le32,
    Be32,
}

impl Words {
    const ALL: [Self; 4] = [Self::Le64, Self::Be64, Self::Le32, Self::Be32];

    /// Two lengths, each aligned to 8 bytes.
    fn read(self, image: &[u8], at: usize) -> Option<[u64; 2]> {
        let one = |at| {
            Some(match self {
                Self::Le64 => u64::from_le_bytes(array(image, at)?),
                Self::Be64 => u64::from_be_bytes(array(image, at)?),
                Self::Le32 => u32::from_le_bytes(array(image, at)?).into(),
                Self::Be32 => u32::from_be_bytes(array(image, at)?).into(),
            })
        };
        Some([one(at)?, one(at.checked_add(8)?)?])
    }
}

/// Every run in the image, of the first [`MAX_CANDIDATES`] places that look like the beginning of one.
fn certificate_runs(image: &[u8]) -> Vec<Run<'_>> {
    let mut runs = Vec::new();
    let mut from = 0;
    for _ in 0..MAX_CANDIDATES {
        let Some(start) = image.get(from..).and_then(next_candidate).and_then(|n| from.checked_add(n)) else {
            break;
        };
        let mut run = Run { certificates: Vec::new(), end: start };
        while run.certificates.len() < MAX_CERTIFICATES
            && let Some(der) = image.get(run.end..).and_then(certificate)
        {
            run.certificates.push(der);
            run.end = run.end.saturating_add(der.len());
        }
        from = run.end.max(start.saturating_add(1));
        if !run.certificates.is_empty() {
            runs.push(run);
        }
    }
    runs
}

/// Where the next X.509 v3 certificate of 256 bytes to 64 KiB may begin: `Certificate`, `TBSCertificate`, `version [0] 2`.
fn next_candidate(image: &[u8]) -> Option<usize> {
    image.windows(13).position(|w| {
        matches!(w, [0x30, 0x82, _, _, 0x30, 0x82, _, _, 0xA0, 3, 2, 1, 2] | [0x30, 0x82, _, _, 0x30, 0x81, _, 0xA0, 3, 2, 1, 2, _])
    })
}

/// Version and patch level of the banner, `Linux version 6.1.…`.
fn release(image: &[u8]) -> Option<(u32, u32)> {
    let banner = b"Linux version ";
    let at = image.windows(banner.len()).position(|w| w == banner)?.checked_add(banner.len())?;
    let text = slice(image, at, 16)?;
    let mut numbers = text.split(|b| !b.is_ascii_digit()).map(|n| core::str::from_utf8(n).ok()?.parse().ok());
    Some((numbers.next()??, numbers.next()??))
}

/// Default of `CONFIG_SYSTEM_EXTRA_CERTIFICATE_SIZE` is 4096.
const MAX_EXTRA: usize = 64 << 10;
/// Far above any kernel: Debian's have one such place.
const MAX_CANDIDATES: usize = 4096;

#[cfg(test)]
mod tests;
