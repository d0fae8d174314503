//! `hvci-sim synth`: a Windows-style boot chain that nobody but this program's made-up authorities signed, and variables that start it.

use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context, Result, bail};
use clap::Args;
use corpus::synth::{DEFAULT_SEED, pki::Pki, windows::windows_boot};
use hvci_engine::{
    signature::signature_list::{Entry, SignatureDatabase, SignatureList, SignatureType},
    uefi::{EfiTime, Guid},
};
use loader_sim::{
    boot::Disk,
    firmware::{
        flash::Flash,
        store::VariableStore,
        variable::{Variable, well_known},
    },
};

use super::boot::OVMF_VARIABLES;

const EXAMPLES: &str = "\
Examples:
  hvci-sim synth chain
  hvci-sim boot chain/image --vars chain/vars.fd
  hvci-sim vm create demo --guest windows --image chain/image --vars chain/vars.fd
  hvci-sim synth old --boot-manager-version 3.0
  hvci-sim boot old --vars old/vars.fd --what-if --dbx DBXUpdateSVN.bin";

/// Of what is made up.
const OWNER: Guid = Guid::new(0x6876_6369, 0x2D73, 0x796E, *b"thesised");

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct SynthArgs {
    /// Where to; must be empty or not exist
    dir: PathBuf,
    /// The security version that the boot manager says: MAJOR.MINOR, or none
    #[arg(long, value_name = "VERSION", default_value = "9.0", value_parser = version)]
    boot_manager_version: Version,
    /// What all keys and bytes are made from
    #[arg(long, default_value_t = DEFAULT_SEED)]
    seed: u64,
    /// Variables of OVMF to begin with, whose db is replaced
    #[arg(long, value_name = "FILE.fd", default_value = OVMF_VARIABLES)]
    vars: PathBuf,
}

#[derive(Clone, Copy, Debug)]
struct Version(Option<[u16; 2]>);

fn version(text: &str) -> Result<Version, String> {
    if text == "none" {
        return Ok(Version(None));
    }
    let numbers = text.split_once('.').and_then(|(major, minor)| Some([major.parse().ok()?, minor.parse().ok()?]));
    numbers.map(|numbers| Version(Some(numbers))).ok_or_else(|| "two numbers like 9.0, or none".to_owned())
}

pub(crate) fn synth(args: &SynthArgs) -> Result<ExitCode> {
    let at = |path: &Path| path.display().to_string();
    if args.dir.exists() && fs::read_dir(&args.dir).with_context(|| at(&args.dir))?.next().is_some() {
        bail!("{} is not empty; name a folder that is, or that does not exist", at(&args.dir));
    }
    let template = fs::read(&args.vars).with_context(|| format!("cannot read {}; the package ovmf has it", at(&args.vars)))?;
    let flash = Flash::read(template).with_context(|| at(&args.vars))?;
    let made = windows_boot(&Pki::new(args.seed)?, args.boot_manager_version.0)?;
    let mut disk = Disk::default();
    for (path, content) in made.files {
        disk.insert(path, content);
    }
    let image = args.dir.join("image");
    disk.write_to(&image)?;
    let variables = args.dir.join("vars.fd");
    fs::write(&variables, flash.with(&keys(flash.variables(), &made.authority)?)?).with_context(|| at(&variables))?;
    writeln!(
        anstream::stdout(),
        "made {} and {}; start it with\n  hvci-sim boot {} --vars {}",
        at(&image),
        at(&variables),
        at(&image),
        at(&variables)
    )?;
    Ok(ExitCode::SUCCESS)
}

/// Secure Boot on, with this one authority in db. PK and KEK stay, so that the updates that they sign can be applied; where there are none it is both.
fn keys(template: &VariableStore, authority: &[u8]) -> Result<VariableStore> {
    let list = SignatureList::new(SignatureType::X509, vec![Entry { owner: OWNER, data: authority.to_vec() }]);
    let database = list.map(|list| SignatureDatabase::new(vec![list]).to_bytes()).context("an authority that is no list")?;
    let mut variables = template.variables().to_vec();
    for name in ["PK", "KEK", "db"] {
        let (vendor, attributes) = well_known(name).context("a variable without a name")?;
        if name != "db" && template.get(name, vendor).is_some() {
            continue;
        }
        variables.retain(|variable| variable.name() != name);
        let name = name.encode_utf16().collect();
        variables.push(Variable { name, vendor, attributes, time: EfiTime::default(), legacy: (0, 0), data: database.clone() });
    }
    Ok(VariableStore::new(variables))
}
