//! Puts the pages of `docs/codes/` into the program.

use std::{env, error::Error, fmt::Write, fs, path::Path};

fn main() -> Result<(), Box<dyn Error>> {
    let docs = Path::new(&env::var("CARGO_MANIFEST_DIR")?).join("../docs/codes").canonicalize()?;
    println!("cargo:rerun-if-changed={}", docs.display());
    let mut pages: Vec<_> = fs::read_dir(&docs)?.filter_map(|e| e.ok().map(|e| e.path())).collect();
    pages.sort();
    let mut code = "static PAGES: &[(&str, &str)] = &[\n".to_owned();
    for page in pages {
        let Some(id) = page.file_name().and_then(|n| n.to_str()?.strip_suffix(".md")).filter(|id| id.starts_with("HVCI-")) else {
            continue;
        };
        writeln!(code, "    ({id:?}, include_str!({:?})),", page.display().to_string())?;
    }
    code.push_str("];\n");
    fs::write(Path::new(&env::var("OUT_DIR")?).join("code_pages.rs"), code)?;
    Ok(())
}
