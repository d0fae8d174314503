//! `hvci-sim boot --what-if`: which machines of a fleet stop starting after a change, and because of what.

use std::{fs, io::Write, path::PathBuf, process::ExitCode};

use anyhow::{Context, Result, bail};
use clap::Args;
use corpus::source::escape;
use loader_sim::boot::{
    Boot, End,
    what_if::{Change, lists_in},
};

use super::boot::Source;

#[derive(Debug, Args)]
pub(crate) struct WhatIfArgs {
    /// What would stop starting after a change? IMAGE is then a folder of machines, each a folder with its own image, and with its own
    /// variables where it has a vars.fd
    #[arg(long)]
    what_if: bool,
    /// With these revocations: a signed update of dbx, or signature lists
    #[arg(long, value_name = "FILE", requires = "what_if")]
    dbx: Vec<PathBuf>,
    /// Without the certificates of db whose subject has this text
    #[arg(long, value_name = "SUBJECT", requires = "what_if")]
    without_ca: Vec<String>,
    /// With these entries in db: a signed update of db, or signature lists
    #[arg(long, value_name = "FILE", requires = "what_if")]
    db: Vec<PathBuf>,
    /// At this level: a file with the text of SbatLevel
    #[arg(long, value_name = "FILE", requires = "what_if")]
    sbat_level: Option<PathBuf>,
}

impl WhatIfArgs {
    pub(crate) fn is_asked(&self) -> bool {
        self.what_if
    }

    fn change(&self) -> Result<Change> {
        let mut change = Change { without: self.without_ca.clone(), ..Change::default() };
        for (files, lists) in [(&self.dbx, &mut change.revoked), (&self.db, &mut change.with)] {
            for file in files {
                lists.append(&lists_in(&read(file)?).with_context(|| file.display().to_string())?);
            }
        }
        if let Some(file) = &self.sbat_level {
            change.raise(&read(file)?).with_context(|| file.display().to_string())?;
        }
        if self.dbx.is_empty() && self.db.is_empty() && self.without_ca.is_empty() && self.sbat_level.is_none() {
            bail!("nothing is changed: give --dbx, --db, --without-ca or --sbat-level");
        }
        Ok(change)
    }
}

fn read(path: &PathBuf) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}

pub(crate) fn what_if(source: &Source, args: &WhatIfArgs) -> Result<ExitCode> {
    let change = args.change()?;
    let cannot = || format!("cannot read {}", source.image.display());
    let mut machines: Vec<PathBuf> = Vec::new();
    for entry in fs::read_dir(&source.image).with_context(cannot)? {
        let entry = entry.with_context(cannot)?;
        if entry.file_type().with_context(cannot)?.is_dir() {
            machines.push(entry.path());
        }
    }
    machines.sort();
    if machines.is_empty() {
        bail!("{} has no folder for a machine", source.image.display());
    }
    let mut out = anstream::stdout().lock();
    let (mut stop, mut start, mut never) = (0_usize, 0_usize, 0_usize);
    for machine in &machines {
        let name = machine.file_name().map(|n| escape(n.as_encoded_bytes())).unwrap_or_default();
        let own = machine.join("vars.fd");
        let source = Source { image: machine.clone(), vars: own.exists().then_some(own).or_else(|| source.vars.clone()), ..source.clone() };
        let before = source.boot(|store| store)?;
        let after = source.boot(|store| change.apply(&store))?;
        match (before.kernel(), after.kernel()) {
            (Some(_), Some(_)) => {
                start = start.saturating_add(1);
                let other = if authorities(&before) == authorities(&after) { "" } else { ", by another signature or certificate" };
                writeln!(out, "starts  {name}{other}")?;
            }
            (Some(_), None) => {
                stop = stop.saturating_add(1);
                writeln!(out, "STOPS   {name}")?;
                writeln!(out, "          {}", escape(why(&after).as_bytes()))?;
            }
            (None, _) => {
                never = never.saturating_add(1);
                writeln!(out, "never   {name}: it does not start as it is")?;
                writeln!(out, "          {}", escape(why(&before).as_bytes()))?;
            }
        }
    }
    writeln!(out, "{} machines: {stop} stop starting, {start} still start, {never} do not start as they are", machines.len())?;
    Ok(if stop == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn why(boot: &Boot) -> &str {
    match &boot.end {
        End::Stopped { reason, .. } | End::PoweredOff { reason, .. } => reason,
        End::Running(_) => "it runs",
    }
}

/// What each stage started by.
fn authorities(boot: &Boot) -> Vec<Option<(&str, Option<usize>)>> {
    let of = boot.stages.iter().map(|stage| stage.verdict.as_ref()?.authority.as_ref());
    of.map(|authority| authority.map(|a| (a.subject.as_str(), a.signature))).collect()
}
