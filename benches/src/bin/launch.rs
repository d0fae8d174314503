//! What a Trusted Launch start costs, and what it must cost at most.
//!
//! `launch [DIR]`: with a folder of boot files (as `hvci-sim boot` takes it) the start of a real chain too; OVMF's variables come from the package.

use std::{fs, path::PathBuf};

use anyhow::{Context, Result};
use benches::{goal, launching};
use clap::Parser;
use loader_sim::{boot::Disk, firmware::flash::Flash};

#[derive(Debug, Parser)]
struct Args {
    /// Boot files: a system partition, or Debian's packages unpacked
    dir: Option<PathBuf>,
    /// OVMF's variables
    #[arg(long, default_value = "/usr/share/OVMF/OVMF_VARS_4M.ms.fd")]
    vars: PathBuf,
    /// How often everything is measured
    #[arg(long, default_value_t = 7)]
    rounds: usize,
}

fn main() -> Result<()> {
    let args = Args::parse();
    let chain = match &args.dir {
        Some(dir) => {
            let disk = Disk::of_folder(dir).with_context(|| format!("cannot start from {}", dir.display()))?;
            let vars = fs::read(&args.vars).with_context(|| format!("cannot read {}; the package ovmf has it", args.vars.display()))?;
            Some(launching::Chain { disk, variables: Flash::read(vars)?.variables().clone() })
        }
        None => None,
    };
    let measured = launching::measure(chain.as_ref(), args.rounds)?;
    print!("{}", goal::table(&launching::goals(&measured)));
    Ok(())
}
