//! Linux modules and kernels, rows 79–87.

use hvci_engine::{digest::DigestAlg, facts::FileKind::PeEfi, finding::Code};

use super::{Expected, MODULE, Studio, UEFI, accept, attach, refuse, unknown};
use crate::synth::{
    Result,
    elf::{append, append_with, gzip, ml_dsa, module, signed, signing, unified, vmlinuz, xz, zstd},
    layout::to_u32,
    oid,
    pe::Image,
    signed_data::Signing,
};

pub(super) fn add(studio: &mut Studio<'_>) -> Result<()> {
    signatures(studio)?;
    trailers(studio)?;
    compression(studio)?;
    kernels(studio)
}

fn signatures(studio: &mut Studio<'_>) -> Result<()> {
    let rsa = signing(studio.who("module")?);
    let ecdsa = Signing { digest: DigestAlg::Sha384, ..signing(studio.who("module ecdsa")?) };
    let certificate = studio.who("module")?.certificate.clone();
    for (name, rows, why, how, codes, starter) in [
        ("rsa-sha256", &[79, 80, 81, 82, 85, 87][..], "signed as sign-file does", rsa.clone(), &[][..], true),
        ("rsa-sha512", &[85], "SHA-512", Signing { digest: DigestAlg::Sha512, ..rsa.clone() }, &[], false),
        ("rsa-sha1", &[85], "SHA-1", Signing { digest: DigestAlg::Sha1, ..rsa.clone() }, &[Code::SigWeakDigest], false),
        ("rsa-sha3-256", &[85], "SHA3-256 (Linux 6.7)", Signing { digest: DigestAlg::Sha3_256, ..rsa.clone() }, &[], false),
        ("rsa-sha3-384", &[85], "SHA3-384 (Linux 6.7)", Signing { digest: DigestAlg::Sha3_384, ..rsa.clone() }, &[], false),
        ("rsa-sha3-512", &[85], "SHA3-512 (Linux 6.7)", Signing { digest: DigestAlg::Sha3_512, ..rsa.clone() }, &[], false),
        ("ecdsa-p384", &[85], "ECDSA on P-384", ecdsa.clone(), &[], false),
        ("ecdsa-sha3-384", &[85], "ECDSA with SHA3-384", Signing { digest: DigestAlg::Sha3_384, ..ecdsa }, &[], false),
        (
            "by-key-id",
            &[81],
            "the key named by subjectKeyIdentifier (sign-file -k)",
            Signing { by_key_id: true, ..rsa.clone() },
            &[],
            false,
        ),
        (
            "with-certificate",
            &[81],
            "with the key's certificate inside",
            Signing { certificates: vec![certificate], ..rsa.clone() },
            &[],
            false,
        ),
        (
            "with-attributes",
            &[80],
            "signed attributes, which most kernels refuse",
            Signing { attributes: Some(Vec::new()), ..rsa.clone() },
            &[Code::SigModuleAttributes],
            false,
        ),
    ] {
        let good = signed(&module(name, false)?, &how)?;
        let mut bad = good.clone();
        // in .text
        bad[0x80] ^= 1;
        studio.add(&format!("module/{name}.ko"), rows, why, good, vec![accept(MODULE, codes)]);
        if starter {
            studio.starter();
        }
        let code = if how.attributes.is_some() { Code::SigMessageDigest } else { Code::SigInvalid };
        studio.add(&format!("module/{name}-changed.ko"), rows, "the same with a flipped bit of code", bad, vec![refuse(MODULE, &[code])]);
        if starter {
            studio.starter();
        }
    }
    let unsigned = module("unsigned", false)?;
    studio.add("module/unsigned.ko", &[82], "no signature (ENODATA)", unsigned.clone(), vec![refuse(MODULE, &[Code::SigNone])]);
    let stranger = Signing { digest: DigestAlg::Sha384, ..signing(studio.who("module stranger")?) };
    let bytes = signed(&module("out-of-tree", false)?, &stranger)?;
    studio.add(
        "module/unknown-key.ko",
        &[81, 82],
        "signed with a key that the kernel does not know (ENOKEY)",
        bytes,
        vec![refuse(MODULE, &[Code::PkiNoKey])],
    );
    studio.starter();
    for (name, algorithm) in [("ml-dsa-44", oid::ML_DSA_44), ("ml-dsa-65", oid::ML_DSA_65), ("ml-dsa-87", oid::ML_DSA_87)] {
        let bytes = ml_dsa(&module(name, false)?, studio.who("module")?, algorithm)?;
        let why = "an ML-DSA signature (Linux 7.x): not supported here, which is not to say bad";
        studio.add(&format!("module/{name}.ko"), &[85], why, bytes, vec![unknown(MODULE, &[Code::SigUnsupported])]);
    }
    let bytes = signed(&module("patched", true)?, &rsa)?;
    studio.add(
        "module/writable-code.ko",
        &[88],
        "a section that is writable and executable",
        bytes,
        vec![accept(MODULE, &[Code::ImageWx])],
    );
    Ok(())
}

fn trailers(studio: &mut Studio<'_>) -> Result<()> {
    let content = module("trailers", false)?;
    let pkcs7 = signing(studio.who("module")?).detached(&content)?;
    let len = to_u32(pkcs7.len());
    let good = [0, 0, 2, 0, 0, 0, 0, 0];
    let malformed = || vec![refuse(MODULE, &[Code::SigModuleTrailer])];
    let cases: [(&str, &'static str, Vec<u8>, Vec<Expected>); 6] = [
        ("algo", "a trailer field that must be zero is not", append_with(&content, &pkcs7, [1, 0, 2, 0, 0, 0, 0, 0], len), malformed()),
        ("length-beyond", "sig_len is larger than the file", append_with(&content, &pkcs7, good, u32::MAX), malformed()),
        ("length-zero", "sig_len is 0", append_with(&content, &pkcs7, good, 0), malformed()),
        (
            "id-type",
            "id_type of kernels before 4.3",
            append_with(&content, &pkcs7, [0, 0, 1, 0, 0, 0, 0, 0], len),
            vec![unknown(MODULE, &[Code::SigUnsupported])],
        ),
        (
            "newline",
            "a byte behind the magic: not signed, as for the kernel",
            [append(&content, &pkcs7).as_slice(), b"\n"].concat(),
            vec![refuse(MODULE, &[Code::SigNone])],
        ),
        ("garbage", "no PKCS#7 in front of the trailer", append(&content, &[0xFF; 300]), vec![refuse(MODULE, &[Code::SigMalformed])]),
    ];
    for (name, why, bytes, expected) in cases {
        studio.add(&format!("module/trailer-{name}.ko"), &[79, 87], why, bytes, expected);
    }
    Ok(())
}

fn compression(studio: &mut Studio<'_>) -> Result<()> {
    let how = signing(studio.who("module")?);
    let plain = module("compressed", false)?;
    let good = signed(&plain, &how)?;
    let mut bad = good.clone();
    bad[0x80] ^= 1;
    type Pack = fn(&[u8]) -> Result<Vec<u8>>;
    let packers: [(&str, Pack); 3] = [("gz", gzip), ("xz", |b| xz(b, true)), ("zst", |b| Ok(zstd(b)))];
    for (extension, pack) in packers {
        let why = "signed, then compressed";
        studio.add(&format!("module/compressed.ko.{extension}"), &[83, 84], why, pack(&good)?, vec![accept(MODULE, &[])]);
        if extension == "xz" {
            studio.starter();
        }
        let why = "the same with a flipped bit of code";
        studio.add(
            &format!("module/compressed-changed.ko.{extension}"),
            &[83],
            why,
            pack(&bad)?,
            vec![refuse(MODULE, &[Code::SigInvalid])],
        );
    }
    let packed = xz(&plain, true)?;
    studio.add(
        "module/signed-xz.ko.xz",
        &[83],
        "compressed, then signed: the wrong way round",
        signed(&packed, &how)?,
        vec![refuse(MODULE, &[Code::ImageCompressedSigned])],
    );
    studio.add(
        "module/xz-sha256.ko.xz",
        &[84],
        "an xz check that the kernel's own decompressor does not know",
        xz(&good, false)?,
        vec![accept(MODULE, &[Code::ImageXzUnsupported])],
    );
    Ok(())
}

fn kernels(studio: &mut Studio<'_>) -> Result<()> {
    let kernel = vmlinuz(&[studio.who("module")?, studio.who("module ecdsa")?])?;
    let blob = studio.blob(&kernel, "uefi 2", |a| a.signing.stamps.clear())?;
    let good = attach(&kernel, [blob.clone()])?;
    let why = "a kernel image signed for firmware, with the module keys built in";
    studio.add(super::super::KERNEL_PATH, &[86, 87], why, good.clone(), vec![accept(UEFI, &[])]);
    studio.starter();
    let unified = unified(&good)?;
    let unified = attach(&unified, [studio.blob(&unified, "uefi 2", |a| a.signing.stamps.clear())?])?;
    let mut replaced = unified.clone();
    let at = replaced.len() / 2;
    replaced[at] ^= 1;
    let why = "that kernel with its command line in one signed image, its keys in it all the same";
    studio.add("kernel/unified.efi", &[86], why, unified, vec![accept(UEFI, &[])]);
    let why = "the same with a flipped bit of the kernel in it";
    studio.add("kernel/unified-changed.efi", &[86], why, replaced, vec![refuse(UEFI, &[Code::SigDigestMismatch])]);
    // in the payload, behind the stub
    let mut changed = good;
    let at = changed.len() / 2;
    changed[at] ^= 1;
    let why = "the same with a flipped bit of its compressed kernel";
    studio.add("kernel/vmlinuz-changed", &[86], why, changed, vec![refuse(UEFI, &[Code::SigDigestMismatch])]);
    let other = attach(&Image::of(PeEfi, "not that kernel").build()?, [blob])?;
    studio.add(
        "kernel/signature-of-another.efi",
        &[86],
        "an EFI image with that kernel's signature",
        other,
        vec![refuse(UEFI, &[Code::SigDigestMismatch])],
    );
    Ok(())
}
