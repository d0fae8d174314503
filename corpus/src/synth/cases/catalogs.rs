//! Catalogs, rows 5 and 56–61: files that carry no signature, and what speaks for them.

use hvci_engine::{digest::DigestAlg, facts::FileKind::PeDriver, finding::Code};

use super::{KERNEL, Studio, USER, accept, refuse, time, unknown};
use crate::synth::{
    Result,
    catalog::{Member, Tags, catalog},
    layout::write,
    oid,
    pe::Image,
};

pub(super) fn add(studio: &mut Studio<'_>) -> Result<()> {
    let image = |name| Image::of(PeDriver, name).build();
    let (new, old, twin) = (image("catalog v2")?, image("catalog v1")?, image("catalog twin")?);
    let tail = Image { tail: 3, ..Image::of(PeDriver, "catalog tail") }.build()?;
    let inf = b"; a setup file\r\n[Version]\r\nSignature=\"$WINDOWS NT$\"\r\nCatalogFile=drivers.cat\r\n".to_vec();
    let members = [
        Member::image(&new, DigestAlg::Sha256)?,
        Member::image(&new, DigestAlg::Sha1)?.bare(),
        Member::image(&tail, DigestAlg::Sha256)?,
        Member::flat(&inf, DigestAlg::Sha256),
    ];
    let drivers = catalog(&members, Tags::Raw, time()?, &signing(studio, "whql")?)?;
    let old_members = [Member::image(&old, DigestAlg::Sha1)?, Member::image(&twin, DigestAlg::Sha1)?.bare()];
    let legacy = catalog(&old_members, Tags::Text, time()?, &signing(studio, "whql")?)?;

    let both = |codes: &[Code]| vec![accept(KERNEL, codes), accept(USER, codes)];
    studio.add("catalog/listed.sys", &[5, 6, 56, 57, 58], "listed by SHA-256, and by SHA-1 beside it", new.clone(), both(&[]));
    studio.starter();
    studio.add(
        "catalog/listed-tail.sys",
        &[5, 58],
        "listed by its digest with zeros up to a multiple of 8",
        tail,
        both(&[Code::ImageUnaligned]),
    );
    studio.add("catalog/listed-sha1.sys", &[56, 57, 58, 61], "listed by SHA-1 only", old, both(&[Code::SigCatalogMember]));
    studio.add("catalog/listed-by-tag.sys", &[57], "listed by a tag and nothing else", twin, both(&[Code::SigCatalogMember]));
    studio.add("catalog/setup.inf", &[59, 61], "a flat file that the catalog lists", inf.clone(), both(&[]));
    studio.starter();
    let mut changed = new;
    write(&mut changed, 0x180, b"changed!")?;
    studio.add(
        "catalog/changed.sys",
        &[56, 57, 58],
        "a listed driver that was changed: no catalog lists it any more",
        changed,
        vec![refuse(KERNEL, &[Code::SigNone]), refuse(USER, &[Code::SigNone])],
    );
    studio.starter();
    let changed = [inf.as_slice(), b"; more\r\n"].concat();
    studio.add("catalog/changed.inf", &[59, 61], "a flat file that was changed", changed, vec![unknown(USER, &[Code::InputNotImage])]);

    // a catalog is a file too
    let expected = || vec![accept(KERNEL, &[]), accept(USER, &[])];
    studio.add("catalog/drivers.cat", &[56, 60], "a catalog with raw tags", drivers.clone(), expected());
    studio.add("catalog/legacy.cat", &[56, 60], "a catalog with tags as text", legacy.clone(), expected());

    // catalogs that must convince nobody
    let listed = image("listed by nobody")?;
    let member = [Member::image(&listed, DigestAlg::Sha256)?];
    let nobody = catalog(&member, Tags::Raw, time()?, &signing(studio, "self-signed")?)?;
    studio.add(
        "catalog/listed-by-nobody.sys",
        &[60],
        "listed by a self-signed catalog",
        listed,
        vec![refuse(KERNEL, &[Code::PkiUntrusted, Code::PolNotWhql]), refuse(USER, &[Code::PkiUntrusted])],
    );
    studio.starter();
    studio.add("catalog/nobody.cat", &[60], "a self-signed catalog", nobody.clone(), vec![refuse(USER, &[Code::PkiUntrusted])]);
    let listed = image("listed by a forged one")?;
    let mut forged = catalog(&[Member::image(&image("some other")?, DigestAlg::Sha256)?], Tags::Raw, time()?, &signing(studio, "whql")?)?;
    replace_member(&mut forged, &Member::image(&listed, DigestAlg::Sha256)?, studio)?;
    studio.add(
        "catalog/listed-by-forged.sys",
        &[60],
        "put into a catalog after that was signed",
        listed,
        vec![refuse(KERNEL, &[Code::SigMessageDigest]), refuse(USER, &[Code::SigMessageDigest])],
    );
    studio.add(
        "catalog/forged.cat",
        &[60],
        "a catalog whose member was exchanged",
        forged.clone(),
        vec![refuse(USER, &[Code::SigMessageDigest])],
    );

    studio.corpus.catalogs = vec![("drivers.cat", drivers), ("legacy.cat", legacy), ("nobody.cat", nobody), ("forged.cat", forged)];
    Ok(())
}

fn signing<'p>(studio: &Studio<'p>, who: &str) -> Result<crate::synth::signed_data::Signing<'p>> {
    let mut signing = studio.signing(who)?;
    signing.stamps.push(studio.stamp("tsa", "2023-01-01")?);
    Ok(signing)
}

/// Puts a list of `member` in place of the one that the catalog was signed over.
fn replace_member(blob: &mut Vec<u8>, member: &Member, studio: &Studio<'_>) -> Result<()> {
    use crate::synth::der::Node;
    let mut other = Node::parse(&catalog(core::slice::from_ref(member), Tags::Raw, time()?, &signing(studio, "self-signed")?)?)?;
    let mut root = Node::parse(blob)?;
    debug_assert_eq!(root.at_mut(&[1, 0, 2, 0])?, &Node::oid(oid::CTL));
    *root.at_mut(&[1, 0, 2, 1, 0])? = other.at_mut(&[1, 0, 2, 1, 0])?.clone();
    *blob = root.encode();
    Ok(())
}
