//! `hvci-audit explain`: one file in full, or what a finding code means.

use std::{path::Path, process::ExitCode};

use anyhow::{Result, bail};
use corpus::{codes, explain, trust};
use hvci_engine::{
    finding::Code,
    policy::Judge,
    signature::{cache::Cache, catalog::CatalogIndex},
};

use crate::{
    args::ExplainArgs,
    commands::{now, profile, trust_of},
};

pub(crate) fn explain(args: ExplainArgs) -> Result<ExitCode> {
    let text = args.what.to_string_lossy();
    if let Some(code) = Code::find(&text).filter(|_| !args.what.exists()) {
        anstream::println!("{}", codes::page(code).trim_end());
        return Ok(ExitCode::SUCCESS);
    }
    if !args.what.exists() && looks_like_a_code(&args.what) {
        bail!("{text}: no such finding code and no such file; docs/codes/README.md lists the codes");
    }
    let cache = Cache::default();
    let mut catalogs = CatalogIndex::default();
    for path in &args.catalog {
        trust::add_catalogs(&mut catalogs, path, &cache)?;
    }
    let trust = trust_of(&args.judging)?;
    let judge = Judge { trust: &trust, time: args.judging.time.map_or_else(now, Ok)?, cache: &cache };
    explain::explain(&args.what, &judge, &catalogs, profile(&args.judging.profile), &mut anstream::stdout().lock())?;
    Ok(ExitCode::SUCCESS)
}

fn looks_like_a_code(path: &Path) -> bool {
    path.to_string_lossy().to_ascii_uppercase().starts_with("HVCI-")
}
