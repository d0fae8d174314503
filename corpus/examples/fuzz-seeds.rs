//! Writes seeds for the fuzz targets below the folder given: a folder for each target, made from the synthetic corpus, nothing real.

use std::{fs, io::Write, path::PathBuf};

use anyhow::{Context, Result};
use corpus::synth::{DEFAULT_SEED, authenticode::Table, cases, elf, pki::Pki, signed_data::Signing};
use der::Encode;
use hvci_engine::{
    examine::Examiner,
    signature::{
        cache::Cache,
        catalog::CatalogIndex,
        modsig::ModuleTrailer,
        signature_list::{Entry, SignatureDatabase, SignatureList, SignatureType},
    },
    uefi::Guid,
};

/// `-max_len` of the smoke run.
const LARGEST: usize = 65_536;

fn main() -> Result<()> {
    let dir = PathBuf::from(std::env::args_os().nth(1).context("usage: fuzz-seeds DIR")?);
    let pki = Pki::new(DEFAULT_SEED)?;
    let corpus = cases::all(&pki)?;
    let mut seeds = Seeds { dir, count: 0 };

    let (cache, catalogs) = (Cache::default(), CatalogIndex::default());
    let examiner = Examiner { cache: &cache, catalogs: &catalogs, digests: &[] };
    for case in corpus.cases.iter().filter(|c| c.bytes.len() <= LARGEST) {
        let bytes = &case.bytes;
        seeds.put("examine", bytes)?;
        if bytes.starts_with(b"MZ") || bytes.starts_with(b"\x7fELF") {
            // nothing is moved
            seeds.put("load_expected", &[&[0, 0], &bytes[..]].concat())?;
        }
        if bytes.starts_with(b"MZ") {
            // no page-hash table in front
            seeds.put("pe", &[&[0], &bytes[..]].concat())?;
            for entry in Table::split(bytes).into_iter().flat_map(|t| t.entries) {
                seeds.put("cms", &entry.content)?;
            }
        } else if bytes.starts_with(b"\x7fELF") {
            seeds.put("elf", bytes)?;
            seeds.put("module_trailer", bytes)?;
            if let Ok(Some(trailer)) = ModuleTrailer::find(bytes) {
                seeds.put("cms", trailer.pkcs7)?;
            }
        } else {
            seeds.put("unpack", bytes)?;
        }
        if case.starter {
            seeds.put("facts_json", &serde_json::to_vec(&examiner.examine(bytes, 1 << 20))?)?;
        }
    }
    for (_, catalog) in &corpus.catalogs {
        for target in ["catalog", "cms", "examine"] {
            seeds.put(target, catalog)?;
        }
    }
    for (_, list) in &corpus.root_lists {
        seeds.put("catalog", list)?;
        seeds.put("cms", list)?;
    }
    for name in ["whql", "whql p384", "kernel root", "code root v1", "critical", "tsa", "module"] {
        seeds.put("certificate", &pki.get(name)?.certificate.to_der()?)?;
    }
    let one = |kind, data: Vec<u8>| SignatureList::new(kind, vec![Entry { owner: Guid([7; 16]), data }]);
    let lists = vec![
        one(SignatureType::SHA256, vec![1; 32])?,
        one(SignatureType::X509, pki.get("whql")?.certificate.to_der()?)?,
        one(SignatureType::X509_SHA384, vec![2; 64])?,
        one(SignatureType::RSA2048, vec![3; 256])?,
    ];
    seeds.put("signature_list", &SignatureDatabase::new(lists).to_bytes())?;
    seeds.put("signature_list", &Signing::new(pki.get("module")?, &[]).detached(b"content")?)?;

    let kernel = elf::vmlinuz(&[pki.get("module")?, pki.get("module ecdsa")?])?;
    seeds.put("unpack", &kernel)?;

    let tar = tar_of("a/b.ko", b"\x7fELF inside")?;
    seeds.put("archive", &tar)?;
    seeds.put("archive", &elf::gzip(&tar)?)?;
    seeds.put("archive", &elf::xz(&tar, true)?)?;
    seeds.put("archive", &elf::zstd(&tar))?;
    seeds.put("archive", &zip_of("a/b.sys", b"MZ inside")?)?;
    seeds.put("archive", &zip_of("inner.tar", &tar)?)?;
    seeds.put("archive", &ar_of(&[("debian-binary", b"2.0\n"), ("data.tar.xz", &elf::xz(&tar, true)?)]))?;
    let mut cab = cab::CabinetBuilder::new();
    cab.add_folder(cab::CompressionType::MsZip).add_file("b.sys");
    let mut cab = cab.build(std::io::Cursor::new(Vec::new()))?;
    while let Some(mut file) = cab.next_file()? {
        file.write_all(b"MZ inside")?;
    }
    seeds.put("archive", cab.finish()?.get_ref())?;
    let mut ole = cfb::CompoundFile::create(std::io::Cursor::new(Vec::new()))?;
    ole.create_stream("/b")?.write_all(b"MZ inside")?;
    ole.flush()?;
    seeds.put("archive", ole.into_inner().get_ref())?;
    println!("{} seeds in {}", seeds.count, seeds.dir.display());
    Ok(())
}

struct Seeds {
    dir: PathBuf,
    count: usize,
}

impl Seeds {
    fn put(&mut self, target: &str, bytes: &[u8]) -> Result<()> {
        let dir = self.dir.join(target);
        fs::create_dir_all(&dir)?;
        fs::write(dir.join(format!("{:04}", self.count)), bytes)?;
        self.count += 1;
        Ok(())
    }
}

fn tar_of(name: &str, content: &[u8]) -> Result<Vec<u8>> {
    let mut builder = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_ustar();
    header.set_size(content.len() as u64);
    header.set_mode(0o644);
    builder.append_data(&mut header, name, content)?;
    Ok(builder.into_inner()?)
}

fn zip_of(name: &str, content: &[u8]) -> Result<Vec<u8>> {
    let mut writer = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    writer.start_file(name, zip::write::SimpleFileOptions::default())?;
    writer.write_all(content)?;
    Ok(writer.finish()?.into_inner())
}

fn ar_of(members: &[(&str, &[u8])]) -> Vec<u8> {
    let mut out = b"!<arch>\n".to_vec();
    for (name, content) in members {
        out.extend(format!("{name:<16}0           0     0     100644  {:<10}`\n", content.len()).bytes());
        out.extend(*content);
        out.extend(vec![b'\n'; content.len() % 2]);
    }
    out
}
