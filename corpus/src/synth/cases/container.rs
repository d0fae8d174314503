//! Container and image hash, rows 1–19.

use hvci_engine::{
    digest::DigestAlg,
    facts::FileKind::{PeDriver, PeEfi},
    finding::Code,
};
use object::pe::{IMAGE_FILE_MACHINE_AMD64 as AMD64, IMAGE_FILE_MACHINE_ARM64 as ARM64, IMAGE_FILE_MACHINE_I386 as I386};

use super::{HVCI, KERNEL, Studio, UEFI, USER, accept, attach, refuse};
use crate::synth::{
    Result,
    authenticode::{Entry, Table},
    layout::{Layout, page_hashes, write},
    pe::Image,
};

pub(super) fn add(studio: &mut Studio<'_>) -> Result<()> {
    digests(studio)?;
    odd_images(studio)?;
    tables(studio)?;
    pages(studio)?;
    malformed(studio)
}

fn digests(studio: &mut Studio<'_>) -> Result<()> {
    for (alg, name, machine, rows, codes) in [
        (DigestAlg::Sha256, "sha256", AMD64, &[1, 8, 9, 12, 13, 14, 18, 52][..], &[][..]),
        (DigestAlg::Sha256, "arm64", ARM64, &[1], &[]),
        (DigestAlg::Sha1, "sha1", I386, &[1], &[Code::SigWeakDigest]),
        (DigestAlg::Sha384, "sha384", AMD64, &[2], &[]),
        (DigestAlg::Sha512, "sha512", I386, &[2], &[]),
        (DigestAlg::Md5, "md5", AMD64, &[3], &[Code::SigWeakDigest]),
    ] {
        let image = Image { machine, ..Image::of(PeDriver, name) };
        let good = studio.signed(&image, "whql", |a| a.signing.digest = alg)?;
        let mut bad = good.clone();
        let at = Layout::of(&bad)?.section(0);
        // a byte of the section's name: in the headers, and hashed
        write(&mut bad, at + 4, b"u")?;
        let path = format!("container/driver-{name}");
        studio.add(&format!("{path}.sys"), rows, "a WHQL signed driver", good, vec![accept(KERNEL, codes), accept(HVCI, codes)]);
        if name == "sha256" {
            studio.starter();
        }
        let codes = [Code::SigDigestMismatch];
        studio.add(
            &format!("{path}-changed.sys"),
            rows,
            "a section was renamed after signing",
            bad,
            vec![refuse(KERNEL, &codes), refuse(USER, &codes)],
        );
    }
    Ok(())
}

fn odd_images(studio: &mut Studio<'_>) -> Result<()> {
    let over = Image { headers_over: 0x100, ..Image::of(PeDriver, "headers-over") };
    studio.add(
        "container/headers-over-section.sys",
        &[4],
        "SizeOfHeaders reaches into the first section, as in packed images; the linear digest does not mind",
        studio.whql(&over)?,
        vec![accept(KERNEL, &[Code::ImageHeadersCover])],
    );
    let over = Image { headers_over: 0x100, ..Image::of(PeEfi, "headers-over") };
    studio.add(
        "container/headers-over-section.efi",
        &[4],
        "the same for firmware, which hashes those bytes twice",
        studio.signed(&over, "uefi", |_| {})?,
        vec![refuse(UEFI, &[Code::ImageDigestForms, Code::SigDigestMismatch])],
    );
    let gap = Image { gap: 0x200, ..Image::of(PeEfi, "gap") };
    studio.add(
        "container/section-gap-linear.efi",
        &[17],
        "bytes between sections: signed with the linear digest, which firmware does not calculate",
        studio.signed(&gap, "uefi", |_| {})?,
        vec![refuse(UEFI, &[Code::ImageSectionGap, Code::ImageDigestForms, Code::SigDigestMismatch])],
    );
    studio.add(
        "container/section-gap-sum.efi",
        &[17],
        "the same signed with the section sum, as firmware calculates it",
        studio.signed(&gap, "uefi", |a| a.section_sum = true)?,
        vec![accept(UEFI, &[Code::ImageSectionGap, Code::ImageDigestForms]), refuse(USER, &[Code::SigDigestMismatch])],
    );
    let unsigned = Image { tail: 3, ..Image::of(PeDriver, "unsigned") }.build()?;
    studio.add(
        "container/unsigned.sys",
        &[5, 6],
        "no signature, a length that is no multiple of 8, no catalog",
        unsigned,
        vec![refuse(KERNEL, &[Code::SigNone, Code::ImageUnaligned]), refuse(USER, &[Code::SigNone])],
    );
    studio.starter();
    let tail = Image { tail: 3, ..Image::of(PeDriver, "tail") };
    studio.add(
        "container/signed-tail.sys",
        &[5, 6],
        "bytes behind the last section, padded and signed",
        studio.whql(&tail)?,
        vec![accept(KERNEL, &[])],
    );
    let few = Image { directories: 6, ..Image::of(PeDriver, "six-directories") };
    studio.add(
        "container/six-directories.sys",
        &[7],
        "NumberOfRvaAndSizes 6 leaves the certificate table",
        studio.whql(&few)?,
        vec![accept(KERNEL, &[])],
    );
    Ok(())
}

fn tables(studio: &mut Studio<'_>) -> Result<()> {
    let efi = Image::of(PeEfi, "shim").build()?;
    let blob = |who| studio.blob(&efi, who, |a| a.signing.stamps.clear());
    let (old, new, nobody) = (blob("uefi")?, blob("uefi 2")?, blob("uefi stranger")?);
    studio.add(
        "container/two-entries.efi",
        &[10, 49],
        "two WIN_CERTIFICATE entries by two authorities, as Debian's shim has; one signer's certificate expired, which firmware ignores",
        attach(&efi, [old.clone(), new.clone()])?,
        vec![accept(UEFI, &[])],
    );
    studio.starter();
    studio.add(
        "container/two-entries-second-good.efi",
        &[10],
        "two entries, the first by nobody who is trusted",
        attach(&efi, [nobody.clone(), new])?,
        vec![accept(UEFI, &[])],
    );
    studio.add(
        "container/two-entries-none-good.efi",
        &[10, 49],
        "two entries, both by nobody who is trusted",
        attach(&efi, [nobody.clone(), nobody])?,
        vec![refuse(UEFI, &[])],
    );
    let driver = Image::of(PeDriver, "two-entries").build()?;
    let pair = [studio.blob(&driver, "code", |_| {})?, studio.blob(&driver, "whql", |_| {})?];
    studio.add(
        "container/two-entries.sys",
        &[10, 30],
        "the publisher's entry first, Microsoft's second",
        attach(&driver, pair)?,
        vec![accept(KERNEL, &[]), accept(USER, &[])],
    );
    let other = Entry { revision: 0x0200, kind: 0x0EF1, content: vec![0x11; 24] };
    let only = Table { entries: vec![other], ..Table::split(&efi)? }.join()?;
    studio.add(
        "container/only-other-type.efi",
        &[11],
        "an entry of type 0x0EF1 and nothing else: not signed",
        only,
        vec![refuse(UEFI, &[Code::SigEntryType, Code::SigNone])],
    );
    Ok(())
}

fn pages(studio: &mut Studio<'_>) -> Result<()> {
    for (name, alg, section_alignment, machine) in [
        ("v1", DigestAlg::Sha1, 0x1000, AMD64),
        ("v2", DigestAlg::Sha256, 0x1000, AMD64),
        ("alignment-8k", DigestAlg::Sha256, 0x2000, AMD64),
        ("arm64", DigestAlg::Sha256, 0x1000, ARM64),
    ] {
        let image = Image { section_alignment, machine, ..Image::of(PeDriver, name) };
        let table = page_hashes(&image.build()?, alg)?;
        let width = 4 + alg.len();
        let path = format!("container/page-hashes-{name}");
        let good = studio.signed(&image, "whql", |a| a.page_hashes = Some((alg, table.clone())))?;
        studio.add(
            &format!("{path}.sys"),
            &[15, 16],
            "page hashes, 4 KiB pages whatever SectionAlignment says",
            good,
            vec![accept(KERNEL, &[])],
        );
        let mut wrong = table.clone();
        wrong[width + 4] ^= 1;
        let bad = studio.signed(&image, "whql", |a| a.page_hashes = Some((alg, wrong)))?;
        studio.add(
            &format!("{path}-wrong.sys"),
            &[15],
            "signed with the hash of another second page",
            bad,
            vec![refuse(KERNEL, &[Code::SigPageHash])],
        );
        let short = table[..table.len() - 5].to_vec();
        let bad = studio.signed(&image, "whql", |a| a.page_hashes = Some((alg, short)))?;
        studio.add(
            &format!("{path}-short.sys"),
            &[16],
            "a page-hash table that ends within an entry",
            bad,
            vec![refuse(KERNEL, &[Code::SigPageHashTable])],
        );
        let mut swapped = table.clone();
        swapped[width..3 * width].rotate_left(width);
        let bad = studio.signed(&image, "whql", |a| a.page_hashes = Some((alg, swapped)))?;
        studio.add(
            &format!("{path}-unsorted.sys"),
            &[16],
            "a page-hash table that is not in the order of pages",
            bad,
            vec![refuse(KERNEL, &[Code::SigPageHashTable])],
        );
    }
    Ok(())
}

/// Fields that no linker writes; each file is signed after the change, so that the signature is not what refuses it.
fn malformed(studio: &mut Studio<'_>) -> Result<()> {
    let base = Image::of(PeDriver, "malformed").build()?;
    let layout = Layout::of(&base)?;
    let section = layout.section(1);
    for (name, why, at, value, codes) in [
        ("file-alignment-0", "FileAlignment 0", layout.optional + 36, vec![0; 4], vec![Code::ImageHeader]),
        ("size-of-image", "SizeOfImage ends before the sections do", layout.optional + 56, vec![0, 0x10, 0, 0], vec![Code::ImageHeader]),
        ("section-outside", "a section's data lies outside the file", section + 20, vec![0, 0, 0, 0x7F], vec![Code::ImageSectionBounds]),
        ("sections-65535", "65,535 sections", layout.optional - 18, vec![0xFF, 0xFF], vec![]),
    ] {
        let mut image = base.clone();
        write(&mut image, at, &value)?;
        let bytes = attach(&image, [studio.blob(&image, "whql", |_| {})?])?;
        studio.add(&format!("container/{name}.sys"), &[19], why, bytes, vec![refuse(KERNEL, &codes)]);
    }
    studio.add("container/empty.sys", &[19], "no bytes at all", Vec::new(), vec![refuse(USER, &[Code::InputEmpty])]);
    let mut overlap = base.clone();
    let first = base.get(layout.section(0) + 20..layout.section(0) + 24).unwrap_or_default().to_vec();
    write(&mut overlap, section + 20, &first)?;
    let bytes = attach(&overlap, [studio.blob(&overlap, "whql", |_| {})?])?;
    studio.add(
        "container/sections-overlap.sys",
        &[19],
        "two sections with the same bytes of the file",
        bytes,
        vec![accept(KERNEL, &[Code::ImageSectionOverlap]), refuse(HVCI, &[Code::ImageSectionOverlap])],
    );
    Ok(())
}
