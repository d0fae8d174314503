//! Everything about one file, for a person: ranges, identifiers, every signature's certificate path, timestamps, page hashes, lint, and what
//! each profile says and why they differ.

use std::{
    collections::BTreeSet,
    io::{self, Write},
    path::Path,
};

use anyhow::{Result, anyhow};
use hvci_engine::{
    bytes::Span,
    digest::DigestAlg,
    examine::{Examiner, Input},
    facts::{DigestForm, Facts, FileKind, ImageFacts, Signature, SignatureCheck, Signer, Timestamp},
    finding::{Note, Severity},
    image::pe::Pe,
    oid,
    policy::{Decision, Judge, PathStep, Profile, Verdict, profile},
    signature::{catalog::CatalogIndex, cert::Certificate, crosscheck, trust::TrustStore},
};

use crate::{
    report::{Audited, render},
    source::{content::Content, escape},
};

/// How large a file may be, unpacked too.
const MAX_SIZE: u64 = 2 << 30;
/// All digests are shown.
const DIGESTS: &[DigestAlg] = &[DigestAlg::Md5, DigestAlg::Sha1, DigestAlg::Sha256, DigestAlg::Sha384, DigestAlg::Sha512];

/// Writes everything about the file at `path`; the findings are those under `chosen`, or under the profile of its kind.
///
/// # Errors
/// An unreadable file; the output's.
pub fn explain(path: &Path, judge: &Judge<'_>, catalogs: &CatalogIndex, chosen: Option<&Profile>, out: &mut dyn Write) -> Result<()> {
    let content = Content::open(path, MAX_SIZE, &mut Default::default())
        .map_err(|note| anyhow!("{}: {} ({}); {}", path.display(), note.code.title(), note.detail, note.code.advice()))?;
    let examiner = Examiner { cache: judge.cache, catalogs, digests: DIGESTS };
    let input = Input::new(content.bytes(), usize::try_from(MAX_SIZE)?);
    let mut facts = examiner.examine_all(std::slice::from_ref(&input)).pop().ok_or_else(|| anyhow!("nothing to explain"))?;
    facts.notes.extend(crosscheck::divergences(input.bytes()));
    facts.notes.extend(content.changed());
    let name = escape(path.to_string_lossy().as_bytes());

    head(out, &name, &facts)?;
    if let Some(image) = &facts.image {
        sections(out, image)?;
    }
    if let Ok(pe) = Pe::parse(input.bytes()) {
        hashed_ranges(out, &pe)?;
        certificate_table(out, &pe)?;
    }
    let verdict = judge.judge(&facts, chosen);
    for (index, signature) in facts.signatures.iter().enumerate() {
        signature_in_full(out, &facts, signature, judge.trust, &verdict, index)?;
    }
    profiles(out, &facts, judge)?;
    writeln!(out, "\nfindings under {}", verdict.profile)?;
    let audited = Audited { path: name, facts, verdict };
    render(out, &audited, true)?;
    Ok(())
}

fn head(out: &mut dyn Write, name: &str, facts: &Facts) -> io::Result<()> {
    writeln!(out, "{name}")?;
    write!(out, "  {}, {} bytes", facts.kind, facts.size)?;
    if let Some(compression) = &facts.compression {
        write!(out, " unpacked from {compression}")?;
    }
    writeln!(out)?;
    if let Some(image) = &facts.image {
        writeln!(out, "  {} for {}, {}", image.format, image.machine, image.subsystem)?;
        if facts.kind != FileKind::ElfModule {
            writeln!(
                out,
                "  base {:#x}, entry {:#x}, {:#x} bytes in memory, sections aligned to {:#x}",
                image.image_base, image.entry, image.image_size, image.section_alignment
            )?;
            writeln!(out, "  DllCharacteristics {:#06x}, TimeDateStamp {:#x}", image.characteristics, image.timestamp)?;
        }
        for (what, value) in [
            ("file version", &image.file_version),
            ("product version", &image.product_version),
            ("PDB", &image.pdb),
            ("vermagic", &image.vermagic),
        ] {
            if let Some(value) = value {
                writeln!(out, "  {what} {}", escape(value.as_bytes()))?;
            }
        }
    }
    writeln!(out, "\ndigests")?;
    let mut digests = facts.digests.clone();
    digests.sort_by_key(|d| (d.form, d.digest.alg()));
    for d in &digests {
        writeln!(out, "  {:<26} {}", d.form.to_string(), d.digest)?;
    }
    Ok(())
}

fn sections(out: &mut dyn Write, image: &ImageFacts) -> io::Result<()> {
    writeln!(out, "\nsections            address     in memory  file range               rwx shared discardable")?;
    for s in &image.sections {
        let file = s.file.map(|f| f.to_string()).unwrap_or_default();
        writeln!(
            out,
            "  {:<16} {:>10} {:>11}  {:<24} {}",
            escape(s.name.as_bytes()),
            format!("{:#x}", s.address),
            format!("{:#x}", s.memory_size),
            file,
            s.permissions
        )?;
    }
    Ok(())
}

fn hashed_ranges(out: &mut dyn Write, pe: &Pe<'_>) -> io::Result<()> {
    writeln!(out, "\nwhat the authentihash is over")?;
    let list = |out: &mut dyn Write, form| -> io::Result<()> {
        match pe.hash_ranges(form) {
            Some(ranges) => ranges.iter().filter(|r| r.len > 0).try_for_each(|r| writeln!(out, "    {r}")),
            None => writeln!(out, "    none: a section or the headers reach out of the file"),
        }
    };
    writeln!(out, "  linear (Windows)")?;
    list(out, DigestForm::Linear)?;
    if pe.forms_differ() {
        writeln!(out, "  section sum (UEFI), which differs")?;
        list(out, DigestForm::SectionSum)
    } else {
        writeln!(out, "  section sum (UEFI): the same bytes")
    }
}

fn certificate_table(out: &mut dyn Write, pe: &Pe<'_>) -> io::Result<()> {
    let table = pe.certificate_table();
    let Some(span) = table.span else { return Ok(()) };
    writeln!(out, "\ncertificate table {span}")?;
    for entry in &table.entries {
        let zeros = entry.padding.iter().filter(|b| **b == 0).count();
        writeln!(
            out,
            "  entry {} {}  revision {:#06x}, type {:#06x}, PKCS#7 {} bytes, then {} ({} zero)",
            entry.index,
            entry.span,
            entry.revision,
            entry.kind,
            entry.pkcs7.len(),
            entry.padding.len(),
            zeros
        )?;
    }
    Ok(())
}

fn signature_in_full(
    out: &mut dyn Write,
    facts: &Facts,
    signature: &Signature,
    trust: &TrustStore,
    verdict: &Verdict,
    index: usize,
) -> io::Result<()> {
    writeln!(out, "\nsignature {index}: {}{}", signature.source, at(signature.span))?;
    if let Some(coverage) = &signature.coverage {
        let matches = match coverage.calculated {
            Some(_) if coverage.matches() => "the file's".to_owned(),
            Some(calculated) => format!("NOT the file's, which is {}", calculated.hex()),
            None => "not compared".to_owned(),
        };
        writeln!(out, "  signed       {} {}, {matches}", coverage.form, coverage.signed)?;
    }
    for (what, value) in [("program", &signature.program_name), ("more info", &signature.more_info)] {
        if let Some(value) = value {
            writeln!(out, "  {what:<12} {}", escape(value.as_bytes()))?;
        }
    }
    if !signature.statement_types.is_empty() {
        writeln!(out, "  statement    {}", signature.statement_types.join(", "))?;
    }
    if let Some(pages) = &signature.page_hashes {
        writeln!(out, "  page hashes  version {}, {} pages, {} differ", pages.version, pages.pages, pages.mismatches.len())?;
    }
    if let Some(signer) = &signature.signer {
        signer_in_full(out, facts, signer, "  ")?;
    }
    if let Some(judged) = verdict.signatures.get(index) {
        path(out, &format!("path under {}", verdict.profile), &judged.path, facts, trust)?;
        for timestamp in &signature.timestamps {
            timestamp_in_full(out, facts, timestamp)?;
        }
        if let Some(time) = judged.signing_time {
            writeln!(out, "  proven time  {time}")?;
            path(out, "timestamp path", &judged.timestamp_path, facts, trust)?;
        }
    }
    notes(out, &signature.notes)
}

fn signer_in_full(out: &mut dyn Write, facts: &Facts, signer: &Signer, indent: &str) -> io::Result<()> {
    let check = match signer.check {
        SignatureCheck::Valid => "verifies",
        SignatureCheck::ValidBareHash => "verifies, over the bare hash",
        SignatureCheck::Invalid => "does NOT verify",
        SignatureCheck::NoCertificate => "not verified here: no certificate came with it",
        SignatureCheck::Unsupported => "not verified: not supported",
    };
    writeln!(out, "{indent}algorithm    {}, {} bytes, {check}", signer.algorithm, signer.value.len())?;
    match signer.certificate.and_then(|i| facts.certificates.get(i)) {
        Some(certificate) => certificate_in_full(out, certificate, indent)?,
        None if signer.key_id.is_empty() => {
            writeln!(out, "{indent}signer       issuer {}, serial {}", signer.issuer, hex::encode(&signer.serial))?;
        }
        None => writeln!(out, "{indent}signer       key identifier {}", hex::encode(&signer.key_id))?,
    }
    Ok(())
}

fn certificate_in_full(out: &mut dyn Write, certificate: &Certificate, indent: &str) -> io::Result<()> {
    let key = certificate.public_key().map_or_else(ToString::to_string, |k| format!("{:?}", k.kind()));
    writeln!(out, "{indent}signer       {}", certificate.subject())?;
    writeln!(
        out,
        "{indent}             serial {}, {key}, valid {} to {}",
        hex::encode(certificate.serial()),
        certificate.not_before(),
        certificate.not_after()
    )?;
    if let Some(ekus) = certificate.ekus() {
        let list: Vec<String> = ekus.iter().map(|o| oid::name(o).map_or_else(|| o.to_string(), |n| format!("{o} ({n})"))).collect();
        writeln!(out, "{indent}             for {}", list.join(", "))?;
    }
    for alg in [DigestAlg::Sha1, DigestAlg::Sha256, DigestAlg::Sha384, DigestAlg::Sha512] {
        writeln!(out, "{indent}             TBS {}", certificate.tbs_hash(alg))?;
    }
    Ok(())
}

fn timestamp_in_full(out: &mut dyn Write, facts: &Facts, timestamp: &Timestamp) -> io::Result<()> {
    let time = timestamp.time.map_or_else(|| "no time".to_owned(), |t| t.to_string());
    writeln!(out, "  timestamp    {}, says {time}{}", timestamp.kind, at(timestamp.span))?;
    if let Some(signer) = &timestamp.signer {
        signer_in_full(out, facts, signer, "    ")?;
    }
    notes(out, &timestamp.notes)
}

fn path(out: &mut dyn Write, title: &str, steps: &[PathStep], facts: &Facts, trust: &TrustStore) -> io::Result<()> {
    if steps.is_empty() {
        return writeln!(out, "  {title}: none");
    }
    writeln!(out, "  {title}")?;
    for (depth, step) in steps.iter().enumerate() {
        let expiry = facts.certificates.iter().find(|c| c.sha256().hex() == step.sha256).map(|c| format!(", until {}", c.not_after()));
        let anchor = step.anchor.as_ref().map(|a| format!("  [anchor: {a}]")).unwrap_or_default();
        writeln!(out, "    {}{}{}{anchor}", "  ".repeat(depth), step.subject, expiry.unwrap_or_default())?;
        writeln!(out, "    {}sha256 {}", "  ".repeat(depth), step.sha256)?;
        let anchor = step.anchor.as_ref().and_then(|_| trust.anchors().iter().find(|a| a.certificate.sha256().hex() == step.sha256));
        if let Some(limits) = anchor.map(|a| a.limits.to_string()).filter(|l| !l.is_empty()) {
            writeln!(out, "    {}root list: {limits}", "  ".repeat(depth))?;
        }
    }
    Ok(())
}

fn notes(out: &mut dyn Write, notes: &[Note]) -> io::Result<()> {
    notes.iter().try_for_each(|n| {
        let detail = if n.detail.is_empty() { String::new() } else { format!(": {}", n.detail) };
        writeln!(out, "  noted        [{}] {}{detail}{}", n.code, n.code.title(), at(n.span))
    })
}

fn profiles(out: &mut dyn Write, facts: &Facts, judge: &Judge<'_>) -> io::Result<()> {
    let verdicts: Vec<(&Profile, Verdict)> =
        profile::ALL.into_iter().filter(|p| p.kinds.contains(&facts.kind)).map(|p| (p, judge.judge(facts, Some(p)))).collect();
    if verdicts.is_empty() {
        return Ok(());
    }
    writeln!(out, "\nwhat each profile says")?;
    for (profile, verdict) in &verdicts {
        writeln!(out, "  {:<8} {:<27} {}", verdict.decision.name(), profile.name, profile.summary)?;
    }
    let decisions: BTreeSet<Decision> = verdicts.iter().map(|(_, v)| v.decision).collect();
    if decisions.len() > 1 {
        writeln!(out, "why they differ")?;
        for (profile, verdict) in verdicts.iter().filter(|(_, v)| v.decision != Decision::Accept) {
            for finding in verdict.findings.iter().filter(|f| f.severity >= Severity::Unknown) {
                let source =
                    finding.signature.and_then(|i| verdict.signatures.get(i)).map(|s| format!("{}: ", s.source)).unwrap_or_default();
                let subject = finding.subject.as_ref().map(|s| format!(" ({s})")).unwrap_or_default();
                writeln!(out, "  {:<27} [{}] {source}{}{subject}", profile.name, finding.code, finding.code.title())?;
            }
        }
    }
    Ok(())
}

fn at(span: Option<Span>) -> String {
    span.map(|s| format!(" at {s}")).unwrap_or_default()
}
