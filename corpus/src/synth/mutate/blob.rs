//! Changes to the PKCS#7: signatures, attributes, certificates, nested signatures, timestamps.

use der::{Decode, oid::ObjectIdentifier};
use hvci_engine::digest::DigestAlg;
use rsa::{BigUint, pkcs8::DecodePublicKey, traits::PublicKeyParts};
use x509_cert::Certificate;

use super::image::{edit, first};
use crate::synth::{Error, Result, authenticode::Table, der::Node, key::digest_oid, layout::authentihash, oid};

// positions in a SignerInfo with signed attributes (RFC 5652 §5.3)
const DIGEST_ALGORITHM: usize = 2;
const SIGNED: usize = 3;
const VALUE: usize = 5;
const UNSIGNED: usize = 6;

pub(super) fn signature_zeroed(image: &[u8], _: &[u8]) -> Result<Vec<u8>> {
    edit_blob(image, |root| {
        signer_info(root)?.at_mut(&[VALUE])?.octets_mut()?.fill(0);
        Ok(())
    })
}

pub(super) fn signature_plus_modulus(image: &[u8], _: &[u8]) -> Result<Vec<u8>> {
    edit_blob(image, |root| {
        let certificate = Certificate::from_der(&certificates(root)?.get(signer(root)?).map(Node::encode).unwrap_or_default())?;
        let spki = der::Encode::to_der(&certificate.tbs_certificate.subject_public_key_info)?;
        let key = rsa::RsaPublicKey::from_public_key_der(&spki).map_err(|_| Error::NotApplicable("the signer's key is not RSA"))?;
        let value = signer_info(root)?.at_mut(&[VALUE])?.octets_mut()?;
        *value = (BigUint::from_bytes_be(value) + key.n()).to_bytes_be();
        Ok(())
    })
}

pub(super) fn attributes_swapped(image: &[u8], _: &[u8]) -> Result<Vec<u8>> {
    edit_blob(image, |root| {
        let attributes = signer_info(root)?.at_mut(&[SIGNED])?.children_mut()?;
        if attributes.len() < 2 {
            return Err(Error::NotApplicable("fewer than two signed attributes"));
        }
        attributes.swap(0, 1);
        Ok(())
    })
}

pub(super) fn attribute_removed(image: &[u8], _: &[u8]) -> Result<Vec<u8>> {
    edit_blob(image, |root| {
        let attributes = signer_info(root)?.at_mut(&[SIGNED])?;
        attributes.attribute_mut(oid::SPC_SP_OPUS_INFO)?;
        let name = Node::oid(oid::SPC_SP_OPUS_INFO);
        attributes.children_mut()?.retain(|a| a.children().is_ok_and(|parts| parts.first() != Some(&name)));
        Ok(())
    })
}

pub(super) fn message_digest(image: &[u8], _: &[u8]) -> Result<Vec<u8>> {
    edit_blob(image, |root| flip(signer_info(root)?.at_mut(&[SIGNED])?.attribute_mut(oid::MESSAGE_DIGEST)?.at_mut(&[1, 0])?))
}

pub(super) fn rehashed(image: &[u8], other: &[u8]) -> Result<Vec<u8>> {
    let changed = super::image::content_byte(image, other)?;
    edit_blob(&changed, |root| {
        let octets = indirect_data(root)?.at_mut(&[1, 1])?.octets_mut()?;
        let alg = [DigestAlg::Md5, DigestAlg::Sha1, DigestAlg::Sha256, DigestAlg::Sha384, DigestAlg::Sha512]
            .into_iter()
            .find(|a| a.len() == octets.len())
            .ok_or(Error::NotApplicable("a digest of an unknown algorithm"))?;
        *octets = authentihash(&changed, alg)?;
        Ok(())
    })
}

pub(super) fn content_type(image: &[u8], _: &[u8]) -> Result<Vec<u8>> {
    edit_blob(image, |root| {
        *signer_info(root)?.at_mut(&[SIGNED])?.attribute_mut(oid::CONTENT_TYPE)?.at_mut(&[1, 0])? = Node::oid(oid::DATA);
        Ok(())
    })
}

pub(super) fn digest_algorithm(image: &[u8], _: &[u8]) -> Result<Vec<u8>> {
    edit_blob(image, |root| {
        let named = signer_info(root)?.at_mut(&[DIGEST_ALGORITHM, 0])?;
        let sha384 = Node::oid(digest_oid(DigestAlg::Sha384));
        *named = if *named == sha384 { Node::oid(digest_oid(DigestAlg::Sha256)) } else { sha384 };
        Ok(())
    })
}

pub(super) fn signer_missing(image: &[u8], _: &[u8]) -> Result<Vec<u8>> {
    edit_blob(image, remove_signer)
}

pub(super) fn certificate_serial(image: &[u8], _: &[u8]) -> Result<Vec<u8>> {
    edit_blob(image, |root| {
        let index = signer(root)?;
        flip(certificate(root, index)?.at_mut(&[0, 1])?)
    })
}

pub(super) fn certificate_forged(image: &[u8], _: &[u8]) -> Result<Vec<u8>> {
    edit_blob(image, |root| {
        let index = signer(root)?;
        // the last second of notAfter, which is 0
        let time = certificate(root, index)?.at_mut(&[0, 4, 1])?.octets_mut()?;
        let second = time.len().checked_sub(2).and_then(|at| time.get_mut(at)).ok_or(Error::NotApplicable("an empty time"))?;
        *second ^= 1;
        Ok(())
    })
}

pub(super) fn junk_attribute(image: &[u8], _: &[u8]) -> Result<Vec<u8>> {
    edit_blob(image, |root| {
        let junk = Node::sequence(vec![
            Node::oid(ObjectIdentifier::new_unwrap("1.3.6.1.4.1.99999.7")),
            Node::set(vec![Node::octets(vec![0x4A; 4096])]),
        ]);
        let info = signer_info(root)?.children_mut()?;
        match info.get_mut(UNSIGNED) {
            Some(attributes) => attributes.children_mut()?.push(junk),
            None => info.push(Node::context(1, vec![junk])),
        }
        Ok(())
    })
}

pub(super) fn garbage(image: &[u8], _: &[u8]) -> Result<Vec<u8>> {
    edit(image, |table| {
        first(table)?.content.fill(0xFF);
        Ok(())
    })
}

pub(super) fn nested_corrupted(image: &[u8], _: &[u8]) -> Result<Vec<u8>> {
    edit_blob(image, |root| {
        let nested = unsigned(root, oid::NESTED_SIGNATURE)?.at_mut(&[1, 0])?;
        flip(signer_info(nested)?.at_mut(&[VALUE])?)
    })
}

pub(super) fn nested_of_another(image: &[u8], other: &[u8]) -> Result<Vec<u8>> {
    let from = unsigned(&mut blob(other)?, oid::NESTED_SIGNATURE)?.clone();
    edit_blob(image, |root| {
        *unsigned(root, oid::NESTED_SIGNATURE)? = from;
        Ok(())
    })
}

pub(super) fn timestamp_signature(image: &[u8], _: &[u8]) -> Result<Vec<u8>> {
    edit_blob(image, |root| match unsigned(root, oid::RFC3161_COUNTERSIGN) {
        Ok(token) => flip(signer_info(token.at_mut(&[1, 0])?)?.at_mut(&[VALUE])?),
        Err(_) => flip(unsigned(root, oid::COUNTERSIGNATURE)?.at_mut(&[1, 0, VALUE])?),
    })
}

pub(super) fn timestamp_time(image: &[u8], _: &[u8]) -> Result<Vec<u8>> {
    edit_blob(image, |root| {
        let token = unsigned(root, oid::RFC3161_COUNTERSIGN)?.at_mut(&[1, 0])?;
        let content = token.at_mut(&[1, 0, 2, 1, 0])?.octets_mut()?;
        let mut info = Node::parse(content)?;
        // version, policy, imprint, serial number, time
        let time = info.at_mut(&[4])?.octets_mut()?;
        time.get_mut(..4).ok_or(Error::NotApplicable("an empty time"))?.copy_from_slice(b"2011");
        *content = info.encode();
        Ok(())
    })
}

pub(super) fn timestamp_of_another(image: &[u8], other: &[u8]) -> Result<Vec<u8>> {
    let from = unsigned(&mut blob(other)?, oid::RFC3161_COUNTERSIGN)?.clone();
    edit_blob(image, |root| {
        *unsigned(root, oid::RFC3161_COUNTERSIGN)? = from;
        Ok(())
    })
}

pub(super) fn timestamp_signer_missing(image: &[u8], _: &[u8]) -> Result<Vec<u8>> {
    edit_blob(image, |root| remove_signer(unsigned(root, oid::RFC3161_COUNTERSIGN)?.at_mut(&[1, 0])?))
}

/// Takes the first PKCS#7 apart, changes it and puts it back; what stands behind it in its entry stays.
fn edit_blob(image: &[u8], change: impl FnOnce(&mut Node) -> Result<()>) -> Result<Vec<u8>> {
    edit(image, |table| {
        let entry = first(table)?;
        let (mut root, used) = Node::parse_prefix(&entry.content)?;
        change(&mut root)?;
        let behind = entry.content.split_off(used);
        entry.content = root.encode();
        // zeros that only rounded the old length up
        if behind.iter().any(|b| *b != 0) {
            entry.content.extend(behind);
        }
        Ok(())
    })
}

/// The first PKCS#7 of an image.
fn blob(image: &[u8]) -> Result<Node> {
    Ok(Node::parse_prefix(&first(&mut Table::split(image)?)?.content)?.0)
}

/// The first SignerInfo of a ContentInfo.
fn signer_info(root: &mut Node) -> Result<&mut Node> {
    let infos = root.at_mut(&[1, 0])?.children_mut()?.last_mut().ok_or(Error::NotApplicable("an empty SignedData"))?;
    infos.at_mut(&[0])
}

fn unsigned(root: &mut Node, oid: ObjectIdentifier) -> Result<&mut Node> {
    signer_info(root)?.at_mut(&[UNSIGNED])?.attribute_mut(oid)
}

/// SpcIndirectDataContent of a ContentInfo.
fn indirect_data(root: &mut Node) -> Result<&mut Node> {
    root.at_mut(&[1, 0, 2, 1, 0])
}

fn certificates_mut(root: &mut Node) -> Result<&mut Vec<Node>> {
    let data = root.at_mut(&[1, 0])?.children_mut()?;
    data.iter_mut().find(|c| c.tag == 0xA0).ok_or(Error::NotApplicable("no certificates"))?.children_mut()
}

fn certificates(root: &mut Node) -> Result<Vec<Node>> {
    certificates_mut(root).cloned()
}

fn certificate(root: &mut Node, index: usize) -> Result<&mut Node> {
    certificates_mut(root)?.get_mut(index).ok_or(Error::NotApplicable("no such certificate"))
}

/// Index of the certificate that issuer and serial number of the first SignerInfo name.
fn signer(root: &mut Node) -> Result<usize> {
    let named = signer_info(root)?.at_mut(&[1])?.children()?.to_vec();
    let is_named = |certificate: &Node| {
        let mut tbs = certificate.children().ok()?.first()?.children().ok()?.iter().skip_while(|n| n.tag == 0xA0);
        let (serial, issuer) = (tbs.next()?, tbs.nth(1)?);
        (named.first() == Some(issuer) && named.get(1) == Some(serial)).then_some(())
    };
    certificates_mut(root)?.iter().position(|c| is_named(c).is_some()).ok_or(Error::NotApplicable("the signer's certificate is not there"))
}

fn remove_signer(root: &mut Node) -> Result<()> {
    let index = signer(root)?;
    certificates_mut(root)?.remove(index);
    Ok(())
}

fn flip(node: &mut Node) -> Result<()> {
    let octets = node.octets_mut()?;
    *octets.last_mut().ok_or(Error::NotApplicable("an empty element"))? ^= 1;
    Ok(())
}
