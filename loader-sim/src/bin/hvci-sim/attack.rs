//! `hvci-sim attack`.

use std::{
    io::{self, Write},
    process::ExitCode,
};

use anyhow::{Result, ensure};
use clap::Args;
use loader_sim::attack::{ATTACKS, Attack, CATALOGUE};

const EXAMPLES: &str = "\
Examples:
  hvci-sim attack --all
  hvci-sim attack code/alias
  hvci-sim attack 'vault/*'        every one below vault/

Exit status: 0 everything is as expected, 1 something is not, 2 usage.";

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES, arg_required_else_help = true)]
pub(crate) struct AttackArgs {
    /// Which, by name or by what stands before the slash
    #[arg(value_name = "NAME", required_unless_present = "all")]
    name: Option<String>,
    /// Every attack that there is
    #[arg(long, conflicts_with = "name")]
    all: bool,
}

pub(crate) fn attack(args: &AttackArgs) -> Result<ExitCode> {
    let chosen = |attack: &&Attack| args.name.as_ref().is_none_or(|name| attack.is_called(name));
    let attacks: Vec<&Attack> = ATTACKS.iter().filter(chosen).collect();
    ensure!(!attacks.is_empty(), "no attack is called {}; --all shows those that there are", args.name.as_deref().unwrap_or_default());
    let mut out = io::stdout().lock();
    writeln!(out, "{:>3}  {:<30} {:<36} observed", "no", "attack", "expected")?;
    let mut differing = 0;
    for attack in &attacks {
        let observed = attack.attempt().unwrap_or_else(|error| format!("it cannot be tried: {error:#}"));
        let as_expected = observed == attack.expected;
        differing += u32::from(!as_expected);
        let mark = match (as_expected, attack.out_of_scope) {
            (false, _) => "  DIFFERS",
            (true, true) => "  OUT OF SCOPE",
            (true, false) => "",
        };
        writeln!(out, "{:>3}  {:<30} {:<36} {observed}{mark}", attack.number, attack.name, attack.expected)?;
    }
    let beyond: Vec<&Attack> = attacks.iter().copied().filter(|attack| attack.out_of_scope).collect();
    if !beyond.is_empty() {
        writeln!(out, "\nOut of scope, and so they succeed:")?;
        for attack in beyond {
            writeln!(out, "{:>3}  {:<30} {}", attack.number, attack.name, attack.what)?;
        }
    }
    let mut numbers: Vec<u8> = ATTACKS.iter().map(|attack| attack.number).collect();
    numbers.dedup();
    writeln!(
        out,
        "\n{} tried, {differing} not as expected; {} of the catalogue's {CATALOGUE} numbers are here",
        attacks.len(),
        numbers.len()
    )?;
    Ok(ExitCode::from(u8::from(differing > 0)))
}
