//! Certificate paths and who may sign what, rows 43–55.

use hvci_engine::{
    facts::FileKind::{PeDriver, PeUser},
    finding::Code,
};

use super::{CROSS, Expected, HVCI, KERNEL, Studio, USER, accept, refuse};
use crate::synth::{Result, pe::Image};

pub(super) fn add(studio: &mut Studio<'_>) -> Result<()> {
    kernel_usages(studio)?;
    cross_signing(studio)?;
    paths(studio)?;
    usages(studio)
}

fn kernel_usages(studio: &mut Studio<'_>) -> Result<()> {
    let not_microsoft = vec![refuse(KERNEL, &[Code::PolNotWhql, Code::PkiEku]), refuse(HVCI, &[Code::PolNotWhql]), accept(USER, &[])];
    for (name, who, why, expected, starter) in [
        ("whql", "whql", "WHQL certified", vec![accept(KERNEL, &[]), accept(HVCI, &[])], true),
        ("attested", "attested", "attested", vec![accept(KERNEL, &[Code::PolAttested]), accept(HVCI, &[Code::PolAttested])], true),
        ("system-component", "system", "a Windows system component", vec![accept(KERNEL, &[])], false),
        ("extended-verification", "extended", "WHQL with extended verification", vec![accept(KERNEL, &[])], false),
        ("elam", "elam", "early-launch antimalware", vec![accept(KERNEL, &[])], false),
        ("code-signing-only", "kernel code only", "under the kernel's root, but for code signing only", not_microsoft, true),
        (
            "whql-expired",
            "whql expired",
            "an expired certificate: the kernel looks at no clock",
            vec![accept(KERNEL, &[Code::PkiExpired])],
            false,
        ),
        (
            "forged-names",
            "whql forged",
            "the names and usages of a WHQL certificate under a root of the same name",
            vec![refuse(KERNEL, &[Code::PolNotWhql]), refuse(USER, &[])],
            true,
        ),
        (
            "commercial",
            "code",
            "a commercial certificate",
            vec![refuse(KERNEL, &[Code::PolNotWhql, Code::PkiScope]), accept(USER, &[])],
            true,
        ),
        (
            "self-signed",
            "self-signed",
            "self-signed, as by a developer in test-signing mode",
            vec![refuse(KERNEL, &[Code::PkiUntrusted]), refuse(USER, &[Code::PkiUntrusted])],
            true,
        ),
    ] {
        let rows: &[u8] = match name {
            "self-signed" => &[55],
            "forged-names" => &[43, 52],
            "whql-expired" => &[49],
            _ => &[51, 52, 55],
        };
        driver(studio, name, who, rows, why, expected)?;
        if starter {
            studio.starter();
        }
    }
    Ok(())
}

fn cross_signing(studio: &mut Studio<'_>) -> Result<()> {
    let cross = studio.who("code root cross")?.certificate.clone();
    for (year, who, verdict) in [
        ("2014", "code 2014", accept(CROSS, &[Code::PolCrossSigned])),
        ("2016", "code 2016", refuse(CROSS, &[Code::PkiIssuedAfterCutoff, Code::PolNotWhql])),
    ] {
        let image = Image::of(PeDriver, &format!("cross-{year}"));
        let bytes = studio.signed(&image, who, |a| a.signing.certificates.push(cross.clone()))?;
        studio.add(
            &format!("chain/cross-signed-{year}.sys"),
            &[43, 53, 54],
            "a commercial root cross-certified by the kernel's: loads on upgraded machines if issued before 2015-07-29",
            bytes,
            vec![refuse(KERNEL, &[Code::PolNotWhql]), verdict, accept(USER, &[])],
        );
    }
    let cross_leaf = Image::of(PeDriver, "whql on an old machine");
    let bytes = studio.whql(&cross_leaf)?;
    studio.add(
        "chain/whql-everywhere.sys",
        &[53, 54],
        "WHQL certified loads with and without the exception",
        bytes,
        vec![accept(KERNEL, &[]), accept(CROSS, &[])],
    );
    Ok(())
}

fn paths(studio: &mut Studio<'_>) -> Result<()> {
    let certificate = |name: &str| Ok::<_, crate::synth::Error>(studio.who(name)?.certificate.clone());
    let ring = [certificate("loop a")?, certificate("loop b")?, certificate("loop b first")?];
    let rooted = certificate("loop a rooted")?;
    let image = Image::of(PeUser, "loop");
    let endless = studio.signed(&image, "in loop", |a| a.signing.certificates.extend(ring.clone()))?;
    studio.add("chain/loop.exe", &[43], "two authorities that certify each other and nobody else does", endless, vec![refuse(USER, &[])]);
    let way_out = studio.signed(&image, "in loop", |a| {
        a.signing.certificates.extend(ring);
        a.signing.certificates.push(rooted);
    })?;
    studio.add(
        "chain/loop-with-way-out.exe",
        &[43],
        "the same, and one of them again under a trusted root",
        way_out,
        vec![accept(USER, &[])],
    );
    let maze = studio.pki.maze();
    let lost = studio.signed(&Image::of(PeUser, "maze"), "in maze", |a| a.signing.certificates.extend_from_slice(maze))?;
    studio.add(
        "chain/maze.exe",
        &[43],
        "more paths than anybody can follow, none of which leads out",
        lost,
        vec![refuse(USER, &[Code::PkiBudget])],
    );
    let incomplete = studio.signed(&Image::of(PeUser, "incomplete"), "code", |a| a.signing.certificates.truncate(1))?;
    studio.add(
        "chain/issuer-missing.exe",
        &[43],
        "without the issuing authority's certificate",
        incomplete,
        vec![refuse(USER, &[Code::PkiIncomplete])],
    );
    for (name, who, why, code) in [
        ("issued-by-a-leaf", "below a leaf", "issued by a certificate that is no authority's", Code::PkiNotCa),
        ("path-too-long", "too deep", "an authority below one that allows none", Code::PkiPathLength),
        ("unknown-critical", "critical", "a critical extension that nobody knows", Code::PkiCritical),
    ] {
        program(studio, name, who, &[43], why, vec![refuse(USER, &[code])])?;
    }
    Ok(())
}

fn usages(studio: &mut Studio<'_>) -> Result<()> {
    program(studio, "code-signing", "code", &[43, 47, 48, 51], "the usual certificate", vec![accept(USER, &[])])?;
    program(studio, "ecdsa", "code p256", &[27, 47], "the same with an ECDSA key", vec![accept(USER, &[])])?;
    program(studio, "tls-usage", "tls", &[47], "a certificate for web servers", vec![refuse(USER, &[Code::PkiEku])])?;
    let expected = vec![accept(USER, &[Code::PkiKeyUsage])];
    program(studio, "key-usage", "bad key usage", &[48], "keyUsage without digitalSignature, which Windows ignores", expected)?;
    let expected = vec![refuse(USER, &[Code::PkiNotYetValid])];
    program(studio, "not-yet-valid", "code future", &[46], "a certificate that is not valid yet", expected)
}

fn driver(studio: &mut Studio<'_>, name: &str, who: &str, rows: &'static [u8], why: &'static str, expected: Vec<Expected>) -> Result<()> {
    let bytes = studio.signed(&Image::of(PeDriver, name), who, |_| {})?;
    studio.add(&format!("chain/{name}.sys"), rows, why, bytes, expected);
    Ok(())
}

fn program(studio: &mut Studio<'_>, name: &str, who: &str, rows: &'static [u8], why: &'static str, expected: Vec<Expected>) -> Result<()> {
    let bytes = studio.signed(&Image::of(PeUser, name), who, |_| {})?;
    studio.add(&format!("chain/{name}.exe"), rows, why, bytes, expected);
    Ok(())
}
