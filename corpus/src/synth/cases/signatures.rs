//! SignedData and SignerInfo, rows 20–34.

use cms::content_info::CmsVersion;
use der::{Any, oid::ObjectIdentifier};
use hvci_engine::{
    digest::DigestAlg,
    facts::FileKind::{PeDriver, PeUser},
    finding::Code,
};

use super::{HVCI, KERNEL, Studio, USER, accept, attach, refuse};
use crate::synth::{
    Error, Result,
    authenticode::nested,
    certificate::Identity,
    der::Node,
    mutate::Mutation,
    oid,
    pe::Image,
    signed_data::{any, attribute},
};

pub(super) fn add(studio: &mut Studio<'_>) -> Result<()> {
    forms(studio)?;
    weak(studio)?;
    nesting(studio)?;
    attributes(studio)
}

fn forms(studio: &mut Studio<'_>) -> Result<()> {
    let of = |name| Image::of(PeDriver, name);
    let good = studio.signed(&of("v3"), "whql", |a| a.signing.version = Some(CmsVersion::V3))?;
    pair(studio, "version-3", &[22], "SignedData version 3", good, &[])?;
    let good = studio.signed(&of("octets"), "whql", |a| {
        a.signing.version = Some(CmsVersion::V3);
        a.octets = true;
    })?;
    pair(studio, "version-3-octets", &[22], "SignedData version 3 with its content in an OCTET STRING, as CMS has it", good, &[])?;
    let good = studio.signed(&of("key-id"), "whql", |a| a.signing.by_key_id = true)?;
    pair(studio, "by-key-id", &[24], "the signer named by subjectKeyIdentifier", good, &[])?;
    let decoy = studio.who("decoy")?.certificate.clone();
    let good = studio.signed(&Image::of(PeUser, "decoy"), "code", |a| a.signing.certificates.push(decoy))?;
    studio.add(
        "signature/same-serial.exe",
        &[24],
        "another certificate with the signer's serial number: only issuer and serial number together name the signer",
        good,
        vec![accept(USER, &[])],
    );
    let good = studio.signed(&of("bare-hash"), "whql", |a| {
        a.signing.bare_hash = true;
        a.signing.digest = DigestAlg::Sha1;
    })?;
    pair(
        studio,
        "bare-hash",
        &[25],
        "an RSA signature over the bare SHA-1 hash, without DigestInfo",
        good,
        &[Code::SigBareHash, Code::SigWeakDigest],
    )?;
    let bad = studio.signed(&of("bare-sha256"), "whql", |a| a.signing.bare_hash = true)?;
    studio.add(
        "signature/bare-sha256.sys",
        &[25],
        "the same with SHA-256, which nobody ever signed so",
        bad,
        vec![refuse(KERNEL, &[Code::SigInvalid])],
    );
    for (name, who) in [("ecdsa-p256", "whql p256"), ("ecdsa-p384", "whql p384")] {
        let alg = if who.ends_with("p384") { DigestAlg::Sha384 } else { DigestAlg::Sha256 };
        let good = studio.signed(&of(name), who, |a| a.signing.digest = alg)?;
        pair(studio, name, &[27, 51], "an ECDSA signature", good, &[])?;
    }
    let good = studio.signed(&of("ber"), "whql", |a| a.indefinite = 3)?;
    studio.add("signature/ber.sys", &[28], "BER with indefinite lengths", good.clone(), vec![accept(KERNEL, &[Code::SigBer])]);
    let bad = mutated("content-byte", &good, &good)?;
    studio.add(
        "signature/ber-changed.sys",
        &[28],
        "the same with a changed byte of code",
        bad,
        vec![refuse(KERNEL, &[Code::SigBer, Code::SigDigestMismatch])],
    );
    let odd = studio.signed(&of("odd-type"), "whql", |a| a.spc_type = oid::SPC_INDIVIDUAL)?;
    pair(
        studio,
        "odd-spc-type",
        &[33],
        "SpcAttributeTypeAndOptionalValue of type 311.2.1.21, as fwupd's images have",
        odd,
        &[Code::SigSpcType],
    )
}

fn weak(studio: &mut Studio<'_>) -> Result<()> {
    for (name, who, alg) in [("rsa-1024-sha1", "legacy", DigestAlg::Sha1), ("rsa-1024-md5", "legacy md5", DigestAlg::Md5)] {
        let stamp = studio.stamp("tsa old", "2012-06-01")?;
        let good = studio.signed(&Image::of(PeUser, name), who, |a| {
            a.signing.digest = alg;
            a.signing.stamps = vec![stamp];
        })?;
        let codes = [Code::SigWeakDigest, Code::SigWeakKey, Code::PkiWeak];
        let bad = mutated("signature-zeroed", &good, &good)?;
        let why = "weak, expired, timestamped in time, under a version 1 root that has expired: still verifiable";
        studio.add(&format!("signature/{name}.exe"), &[26, 46], why, good, vec![accept(USER, &codes)]);
        studio.add(
            &format!("signature/{name}-zeroed.exe"),
            &[26],
            "the same with zeros for its value",
            bad,
            vec![refuse(USER, &[Code::SigInvalid])],
        );
    }
    Ok(())
}

fn nesting(studio: &mut Studio<'_>) -> Result<()> {
    let dual = |studio: &Studio<'_>, name: &str| {
        let image = Image::of(PeDriver, name).build()?;
        let inner = studio.blob(&image, "attested", |a| a.opus = Some(("Nested", "https://example.test/")))?;
        let outer = nested(&inner)?;
        attach(&image, [studio.blob(&image, "code", |a| a.signing.unsigned.push(outer))?])
    };
    let good = dual(studio, "dual")?;
    let other = dual(studio, "dual of another")?;
    studio.add(
        "signature/nested-attested.sys",
        &[29, 30, 52],
        "the publisher's signature with Microsoft's nested in it: each profile finds its own",
        good.clone(),
        vec![accept(KERNEL, &[Code::PolAttested]), accept(HVCI, &[]), accept(USER, &[])],
    );
    studio.starter();
    for name in ["nested-corrupted", "nested-of-another"] {
        let mutation = find(name)?;
        let bad = mutation.apply(&good, &other)?;
        let codes = [mutation.codes, &[Code::PolNotWhql]].concat();
        studio.add(&format!("signature/{name}.sys"), &[29], mutation.what, bad, vec![refuse(KERNEL, &codes), accept(USER, mutation.codes)]);
        if name == "nested-corrupted" {
            studio.starter();
        }
    }
    let bad = mutated("signature-zeroed", &good, &other)?;
    studio.add(
        "signature/primary-zeroed.sys",
        &[30],
        "zeros for the first signature's value; the nested one is good, and which of them counts is the profile's to say",
        bad,
        vec![accept(KERNEL, &[Code::SigInvalid]), refuse(USER, &[Code::SigInvalid])],
    );

    let image = Image::of(PeDriver, "two nested").build()?;
    let whql = studio.blob(&image, "whql", |_| {})?;
    let sha1 = studio.blob(&image, "code", |a| a.signing.digest = DigestAlg::Sha1)?;
    let both = attribute(oid::NESTED_SIGNATURE, vec![any(&Node::parse(&sha1)?)?, any(&Node::parse(&whql)?)?])?;
    let good = attach(&image, [studio.blob(&image, "code", |a| a.signing.unsigned.push(both))?])?;
    studio.add("signature/nested-two-values.sys", &[29], "two values of the nested-signature attribute", good, vec![accept(KERNEL, &[])]);
    let deeper = nested(&whql)?;
    let middle = studio.blob(&image, "code p256", |a| a.signing.unsigned.push(deeper))?;
    let outer = nested(&middle)?;
    let good = attach(&image, [studio.blob(&image, "code", |a| a.signing.unsigned.push(outer))?])?;
    studio.add("signature/nested-in-nested.sys", &[29], "a signature nested in a nested one", good, vec![accept(KERNEL, &[])]);
    Ok(())
}

fn attributes(studio: &mut Studio<'_>) -> Result<()> {
    let of = |name| Image::of(PeDriver, name);
    let opus = |a: &mut crate::synth::authenticode::Authenticode<'_>| a.opus = Some(("Synthetic Driver", "https://example.test/driver"));
    let good = studio.signed(&of("opus"), "whql", opus)?;
    pair(studio, "opus-info", &[31], "program name and link in SpcSpOpusInfo", good, &[])?;

    let marker = attribute(ObjectIdentifier::new_unwrap("1.3.6.1.4.1.311.2.6.1"), vec![any(&Node::integer(1))?])?;
    let good = studio.signed(&of("marker"), "whql", |a| a.signing.attributes.iter_mut().for_each(|list| list.push(marker.clone())))?;
    pair(studio, "relaxed-marker", &[32], "SpcRelaxedPEMarkerCheck among the signed attributes", good, &[])?;

    let image = of("image-digest").build()?;
    let bad = attach(&image, [studio.blob(&image, "whql", |a| a.image_digest = Some(DigestAlg::Sha1))?])?;
    studio.add(
        "signature/image-digest-differs.sys",
        &[23],
        "the image digest is SHA-1, the signature's SHA-256",
        bad,
        vec![refuse(KERNEL, &[Code::SigAlgMismatch])],
    );
    let good = studio.whql(&of("digests-agree"))?;
    studio.add("signature/digests-agree.sys", &[20, 21, 23, 34], "every digest algorithm is SHA-256", good, vec![accept(KERNEL, &[])]);

    let image = of("order").build()?;
    let blob = studio.blob(&image, "whql", |a| a.signing.stamps.clear())?;
    let reordered = reorder(&blob, studio.who("whql")?)?;
    studio.add(
        "signature/attributes-not-sorted.sys",
        &[21],
        "signed attributes out of DER order, and signed so: they are hashed as they stand",
        attach(&image, [reordered])?,
        vec![accept(KERNEL, &[Code::SigAttributeOrder])],
    );

    let foreign = studio.who("self-signed")?.certificate.clone();
    let good = studio.signed(&of("foreign"), "whql", |a| a.signing.certificates.push(foreign))?;
    studio.add("signature/foreign-certificate.sys", &[34], "a certificate that no path uses", good, vec![accept(KERNEL, &[])]);
    let junk = attribute(ObjectIdentifier::new_unwrap("1.3.6.1.4.1.99999.8"), vec![Any::new(der::Tag::OctetString, vec![0x55; 64])?])?;
    let odd = studio.signed(&of("unsigned attribute"), "whql", |a| a.signing.unsigned.push(junk))?;
    let codes = [Code::SigUnsignedAttribute];
    studio.add(
        "signature/unknown-unsigned-attribute.sys",
        &[34],
        "an unsigned attribute of no known type",
        odd,
        vec![accept(KERNEL, &codes), refuse(HVCI, &codes)],
    );

    let image = of("two signers").build()?;
    let (first, second) = (studio.blob(&image, "whql", |_| {})?, studio.blob(&image, "code", |_| {})?);
    let both = attach(&image, [merge(&first, &second)?])?;
    studio.add(
        "signature/two-signers.sys",
        &[24],
        "two SignerInfos; the first counts",
        both,
        vec![accept(KERNEL, &[Code::SigMultipleSigners])],
    );
    Ok(())
}

/// A good file, and the same with its signature value spoilt.
fn pair(studio: &mut Studio<'_>, name: &str, rows: &'static [u8], why: &'static str, good: Vec<u8>, codes: &[Code]) -> Result<()> {
    let bad = mutated("attribute-removed", &good, &good)?;
    studio.add(&format!("signature/{name}.sys"), rows, why, good, vec![accept(KERNEL, codes)]);
    studio.add(
        &format!("signature/{name}-forged.sys"),
        rows,
        "the same with a signed attribute removed",
        bad,
        vec![refuse(KERNEL, &[Code::SigInvalid, Code::PolNotWhql])],
    );
    Ok(())
}

/// The PKCS#7 with its first two signed attributes swapped, and signed again so.
fn reorder(blob: &[u8], signer: &Identity) -> Result<Vec<u8>> {
    let mut root = Node::parse(blob)?;
    let info = root.at_mut(&[1, 0])?.children_mut()?.last_mut().ok_or(Error::NotApplicable("no SignerInfo"))?.at_mut(&[0])?;
    let attributes = info.at_mut(&[3])?.children_mut()?;
    attributes.swap(0, 1);
    let message = Node::set(attributes.clone()).encode();
    *info.at_mut(&[5])? = Node::octets(signer.key.sign(DigestAlg::Sha256, &message)?);
    Ok(root.encode())
}

/// The first PKCS#7 with the certificates and SignerInfos of the second behind its own.
fn merge(first: &[u8], second: &[u8]) -> Result<Vec<u8>> {
    let (mut into, mut from) = (Node::parse(first)?, Node::parse(second)?);
    for part in [3, 4] {
        let more = from.at_mut(&[1, 0, part])?.children_mut()?.clone();
        into.at_mut(&[1, 0, part])?.children_mut()?.extend(more);
    }
    Ok(into.encode())
}

/// A mutation that is there.
pub(super) fn find(name: &str) -> Result<&'static Mutation> {
    Mutation::find(name).ok_or_else(|| Error::Unknown(name.to_owned()))
}

/// The mutation called `name` done to `signed`.
pub(super) fn mutated(name: &str, signed: &[u8], other: &[u8]) -> Result<Vec<u8>> {
    find(name)?.apply(signed, other)
}
