//! Every mutation done to a good file.

use hvci_engine::{facts::FileKind::PeDriver, finding::Code};

use super::{HVCI, KERNEL, Studio, accept, refuse};
use crate::synth::{
    Result,
    mutate::{self, Hits},
    pe::Image,
};

pub(super) fn add(studio: &mut Studio<'_>) -> Result<()> {
    let make = |name: &str| studio.signed(&Image::of(PeDriver, name), "whql", |a| a.opus = Some(("Mutated", "https://example.test/")));
    let (good, other) = (make("mutated")?, make("another")?);
    studio.add(
        "mutated/none.sys",
        &[8, 9, 11, 12, 13, 14, 18, 20],
        "what the others were made from",
        good.clone(),
        vec![accept(KERNEL, &[])],
    );
    for mutation in mutate::ALL {
        let expected = match mutation.hits {
            Hits::File => vec![refuse(KERNEL, mutation.codes)],
            Hits::Primary => vec![refuse(KERNEL, &[mutation.codes, &[Code::PolNotWhql]].concat())],
            Hits::Smuggled => vec![accept(KERNEL, mutation.codes), refuse(HVCI, mutation.codes)],
            Hits::Nothing => vec![accept(KERNEL, mutation.codes)],
            // those are done to files on which they decide, elsewhere
            Hits::Nested | Hits::Timestamp => continue,
        };
        let bytes = mutation.apply(&good, &other)?;
        studio.add(&format!("mutated/{}.sys", mutation.name), rows(mutation.name), mutation.what, bytes, expected);
        if ["content-byte", "entry-grown", "signature-plus-modulus", "signature-of-another", "section-over-table"].contains(&mutation.name)
        {
            studio.starter();
        }
    }
    Ok(())
}

fn rows(mutation: &str) -> &'static [u8] {
    match mutation {
        "few-directories" => &[7],
        "data-behind-table" => &[8],
        "section-over-table" => &[9],
        "entry-of-other-type" => &[11],
        "revision" => &[12],
        "directory-grown" | "directory-past-end" => &[13],
        "entry-grown" | "entry-gap" | "table-with-data" => &[14],
        "checksum" => &[18],
        "truncated-headers" | "truncated-section" | "truncated-table" | "entry-length-zero" | "entry-length-huge" | "blob-garbage" => &[19],
        "message-digest" | "rehashed" => &[20],
        "attributes-swapped" => &[21],
        "digest-algorithm" => &[23],
        "certificate-serial" | "signer-missing" => &[24],
        "attribute-removed" => &[31, 32],
        "junk-attribute" => &[34],
        "certificate-forged" => &[43],
        _ => &[1],
    }
}
