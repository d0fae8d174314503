//! Timestamps, rows 35–42: on a certificate that expired in 2022, so that everything hangs on the time being proven.

use hvci_engine::{digest::DigestAlg, facts::FileKind::PeUser, finding::Code};

use super::{
    Studio, USER, accept, refuse,
    signatures::{find, mutated},
};
use crate::synth::{Result, pe::Image, timestamp::Stamp};

const EXPIRED: &str = "code expired";

pub(super) fn add(studio: &mut Studio<'_>) -> Result<()> {
    let token = studio.stamp("tsa", "2021-03-04")?;
    let good = [
        ("pkcs9", &[35, 38][..], "a PKCS#9 countersignature", token.clone().pkcs9(), &[][..]),
        ("rfc3161", &[36, 37, 38], "an RFC 3161 token", token.clone(), &[]),
        (
            "sha384-imprint",
            &[39],
            "a token whose digest algorithm is not the signature's",
            with(&token, |t| t.digest = DigestAlg::Sha384),
            &[Code::TspAlgMismatch],
        ),
        ("fraction", &[40], "genTime with a fraction of a second", with(&token, |t| t.fraction = ".75"), &[]),
        ("bare-hash", &[25, 35], "a countersignature over the bare hash, as old VeriSign servers made", bare(&token), &[Code::SigBareHash]),
        ("no-certificate-id", &[37], "a token without signingCertificate", with(&token, |t| t.no_certificate_id = true), &[]),
        ("weak", &[42], "a SHA-1 timestamp", with(&token, |t| t.digest = DigestAlg::Sha1), &[Code::TspWeak]),
    ];
    for (name, rows, why, stamp, codes) in good {
        let bytes = stamped(studio, name, EXPIRED, vec![stamp])?;
        studio.add(&format!("timestamp/{name}.exe"), rows, why, bytes.clone(), vec![accept(USER, codes)]);
        if name == "rfc3161" {
            studio.starter();
        }
        let bad = mutated("timestamp-signature", &bytes, &bytes)?;
        studio.add(
            &format!("timestamp/{name}-forged.exe"),
            rows,
            "the same with a flipped bit in the timestamp's value",
            bad,
            vec![refuse(USER, &[Code::TspInvalid, Code::PkiExpired])],
        );
    }

    let bytes = stamped(studio, "base", EXPIRED, vec![token.clone()])?;
    let other = stamped(studio, "other", EXPIRED, vec![token.clone()])?;
    for (name, rows) in [("timestamp-time", &[37][..]), ("timestamp-of-another", &[36]), ("timestamp-signer-missing", &[38])] {
        let mutation = find(name)?;
        let bad = mutation.apply(&bytes, &other)?;
        let codes = [mutation.codes, &[Code::PkiExpired]].concat();
        studio.add(
            &format!("timestamp/{}.exe", name.trim_start_matches("timestamp-")),
            rows,
            mutation.what,
            bad,
            vec![refuse(USER, &codes)],
        );
        if name == "timestamp-time" {
            studio.starter();
        }
    }

    let bad = [
        ("untrusted", &[38][..], "by an authority that nobody trusts", studio.stamp("tsa stranger", "2021-03-04")?, Code::TspUntrusted),
        ("no-usage", &[38], "by a certificate that is not for timestamping", studio.stamp("tsa no eku", "2021-03-04")?, Code::TspEku),
        (
            "authority-expired",
            &[38, 40],
            "by an authority whose certificate had expired",
            studio.stamp("tsa old", "2021-03-04")?,
            Code::TspExpired,
        ),
        ("no-certificates", &[38], "without any certificate", with(&token, |t| t.certificates = false), Code::TspNoSigner),
        ("after-expiry", &[40], "made after the signer's certificate had expired", studio.stamp("tsa", "2023-01-01")?, Code::PkiExpired),
    ];
    for (name, rows, why, stamp, code) in bad {
        let bytes = stamped(studio, name, EXPIRED, vec![stamp])?;
        studio.add(&format!("timestamp/{name}.exe"), rows, why, bytes, vec![refuse(USER, &[code, Code::PkiExpired])]);
    }
    let bytes = stamped(studio, "none", EXPIRED, Vec::new())?;
    studio.add(
        "timestamp/none-expired.exe",
        &[35, 36],
        "no timestamp, and the signer's certificate has expired",
        bytes,
        vec![refuse(USER, &[Code::TspNone, Code::PkiExpired])],
    );
    let bytes = stamped(studio, "none-valid", "code", Vec::new())?;
    studio.add(
        "timestamp/none-valid.exe",
        &[41],
        "no timestamp, and the signer's certificate is valid",
        bytes,
        vec![accept(USER, &[Code::TspNone])],
    );
    let bytes = stamped(studio, "both", EXPIRED, vec![token.clone().pkcs9(), token.clone()])?;
    studio.add("timestamp/both-kinds.exe", &[35, 36], "a countersignature and a token", bytes, vec![accept(USER, &[])]);
    let bytes = stamped(studio, "lifetime", "code lifetime", vec![token.clone()])?;
    studio.add(
        "timestamp/lifetime-signing.exe",
        &[41],
        "a lifetime-signing certificate: the timestamp does not extend its life",
        bytes,
        vec![refuse(USER, &[Code::TspLifetime, Code::PkiExpired])],
    );
    let image = Image::of(PeUser, "cut-off");
    let stamp = studio.stamp("tsa", "2021-03-04")?;
    let bytes = studio.signed(&image, EXPIRED, |a| {
        a.signing.digest = DigestAlg::Sha1;
        a.signing.stamps = vec![stamp];
    })?;
    studio.add(
        "timestamp/sha1-after-cutoff.exe",
        &[42],
        "a SHA-1 signature timestamped after 2016",
        bytes,
        vec![accept(USER, &[Code::TspCutoff])],
    );
    Ok(())
}

fn stamped(studio: &Studio<'_>, name: &str, who: &str, stamps: Vec<Stamp<'_>>) -> Result<Vec<u8>> {
    let image = Image::of(PeUser, name).build()?;
    let mut signature = crate::synth::authenticode::Authenticode::new(studio.signing(who)?);
    signature.signing.stamps = stamps;
    super::attach(&image, [signature.sign(&image)?])
}

fn with<'a>(stamp: &Stamp<'a>, change: impl FnOnce(&mut Stamp<'a>)) -> Stamp<'a> {
    let mut stamp = stamp.clone();
    change(&mut stamp);
    stamp
}

fn bare<'a>(stamp: &Stamp<'a>) -> Stamp<'a> {
    with(stamp, |s| {
        s.bare_hash = true;
        s.digest = DigestAlg::Sha1;
    })
    .pkcs9()
}
