//! What the credential vault costs beside the bare cryptography: `cargo run --release -p benches --bin vault`.

use anyhow::Result;
use benches::{credentials, goal};
use clap::Parser;

// the allocator of the other programs
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Measure what the credential vault costs.
#[derive(Debug, Parser)]
struct Args {
    /// How often everything is measured
    #[arg(long, default_value_t = 15)]
    rounds: usize,
}

fn main() -> Result<()> {
    let measured = credentials::measure(Args::parse().rounds)?;
    print!("{}\n{}", credentials::table(&measured), goal::table(&credentials::goals(&measured)));
    Ok(())
}
