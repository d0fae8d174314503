//! The C interface as a C program has it: the header is that of the sources, and a small VMM in C, linked to the shared and to the static
//! library, gets what it must. `HVCI_WRITE_HEADER=1` writes the header. How the module was made is in `capi/module.s`; the driver and its catalog
//! are of `corpus/tests/c_interface.rs`.

#![cfg(feature = "capi")]
#![expect(clippy::unwrap_used, reason = "tests")]

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use hvci_engine::{
    digest::DigestAlg,
    examine::Examiner,
    facts::DigestForm,
    signature::{cache::Cache, catalog::CatalogIndex},
    status::HvStatus,
};

/// 2027-01-01: a time that the module's certificate is valid at.
const TIME: &str = "1798761600";

fn here() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn scratch() -> PathBuf {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("capi");
    fs::create_dir_all(&dir).unwrap();
    dir
}

/// The header as cbindgen makes it of the sources, with the statuses of the engine's table, which it cannot see within a macro.
fn header() -> String {
    let mut config = cbindgen::Config::from_file(here().join("cbindgen.toml")).unwrap();
    let statuses = HvStatus::NAMED.iter().map(|(status, name, text)| format!("// {text}\n#define HV_STATUS_{name} {:#x}\n", status.0));
    config.after_includes = Some(format!("\n// HV_STATUS (TLFS); others are a host's own\n\n{}", statuses.collect::<String>()));
    let sources = ["tables.rs", "engine.rs", "vault.rs"].map(|name| here().join("src/capi").join(name));
    let builder = sources.iter().fold(cbindgen::Builder::new().with_config(config), |builder, source| builder.with_src(source));
    let mut text = Vec::new();
    builder.generate().unwrap().write(&mut text);
    String::from_utf8(text).unwrap()
}

#[test]
fn the_header_is_that_of_the_sources() {
    let path = here().join("include/hvci.h");
    let fresh = header();
    if env::var_os("HVCI_WRITE_HEADER").is_some() {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, &fresh).unwrap();
    }
    let checked_in = fs::read_to_string(&path).unwrap_or_default();
    assert!(checked_in == fresh, "include/hvci.h is stale: HVCI_WRITE_HEADER=1 cargo test -p hvci-engine --features capi --test capi");
}

#[test]
fn a_vmm_in_c_gets_what_it_must() {
    let Some(cc) = compiler("CC", &["cc", "gcc", "clang"]) else {
        eprintln!("skipped: no C compiler");
        return;
    };
    let dir = scratch();
    let input = |name: &str| here().join("tests/capi").join(name);
    let blocked = dir.join("blocked.json");
    fs::write(&blocked, list_that_refuses(&fs::read(input("driver.sys")).unwrap())).unwrap();
    let libraries = build();
    let run = |name: &str, link: &[&str]| {
        let program = dir.join(name);
        let mut command = Command::new(&cc);
        command.args(["-std=c11", "-Wall", "-Wextra", "-Werror", "-pedantic", "-I"]).arg(here().join("include"));
        command.arg(here().join("tests/capi/vmm.c")).arg("-o").arg(&program).args(link);
        succeed(&mut command);
        let mut command = Command::new(&program);
        command.args([input("module.ko"), input("signer.der")]).arg(TIME);
        command.args([input("driver.sys"), input("driver.cat"), input("publisher.der")]).arg(&blocked);
        let said = succeed(&mut command);
        let said = String::from_utf8(said.stdout).unwrap();
        for expected in EXPECTED {
            assert!(said.contains(expected), "{name} does not say {expected:?}:\n{said}");
        }
        let mut events: Vec<String> = said.lines().filter(|line| line.starts_with('{')).map(event_kind).collect();
        events.retain(|event| !event.starts_with("change "));
        assert_eq!(events, EVENTS, "{said}");
    };
    let folder = libraries.path.to_str().unwrap();
    run("vmm-shared", &[&format!("-L{folder}"), &format!("-Wl,-rpath,{folder}"), "-lhvci_engine"]);
    let archive = libraries.path.join("libhvci_engine.a");
    let mut link = vec![archive.to_str().unwrap()];
    link.extend(libraries.native.iter().map(String::as_str));
    run("vmm-static", &link);
}

const EXPECTED: &[&str] = &[
    "created\n",
    "refused: HVCI-MEM-",
    "refused: HVCI-SIG-",
    "loaded\n",
    "restored\n",
    "unloaded\n",
    "placed by sections\n",
    "the vault has answered\n",
    "the vault was kept, and lost\n",
    "without a catalog: HVCI-SIG-001",
    "by a catalog of nobody's: HVCI-",
    "accepted by its catalog\n",
    "blocked: HVCI-POL-006",
];

/// What the program's guest tried and what came of it, in its order, without changes of frames.
const EVENTS: &[&str] = &[
    "device-access 0x5",
    "load 0x6",
    "load 0x6",
    "load 0x6",
    "load 0x5",
    "load 0x0",
    "device-access 0x6",
    "device-access 0x6",
    "device-access 0x6",
    "access 0x6",
    "enable-vtl 0x0",
    "enable-vtl 0x86",
    "end-of-boot 0x0",
    "register-write 0x6",
];

/// A list of version 2 that names the driver by its authentihash.
fn list_that_refuses(driver: &[u8]) -> String {
    let (cache, catalogs) = (Cache::default(), CatalogIndex::default());
    let facts = Examiner { cache: &cache, catalogs: &catalogs, digests: &[DigestAlg::Sha256] }.examine(driver, usize::MAX);
    let digest = facts.digest(DigestForm::Linear, DigestAlg::Sha256).unwrap();
    format!("{{ \"version\": 2, \"authentihashes\": {{ \"{digest}\": \"known to be vulnerable\" }} }}")
}

fn event_kind(line: &str) -> String {
    let event: hvci_engine::event::Event = serde_json::from_str(line).unwrap();
    let json = serde_json::to_value(&event).unwrap();
    format!("{} {:#x}", json["what"]["kind"].as_str().unwrap(), event.status.0)
}

#[test]
fn the_header_is_one_of_cpp_too() {
    let Some(cpp) = compiler("CXX", &["c++", "g++", "clang++"]) else {
        eprintln!("skipped: no C++ compiler");
        return;
    };
    let source = scratch().join("header.cpp");
    let text = "#include \"hvci.h\"\n#include \"hvci.h\"\nint main() { return hvci_version() == HVCI_VERSION; }\n";
    fs::write(&source, text).unwrap();
    let mut command = Command::new(cpp);
    command.args(["-std=c++11", "-Wall", "-Wextra", "-Werror", "-pedantic", "-c", "-I"]).arg(here().join("include"));
    succeed(command.arg(&source).arg("-o").arg(source.with_extension("o")));
    let object = fs::read(source.with_extension("o")).unwrap();
    assert!(object.windows(13).any(|name| name == b"\0hvci_version"), "the name of a function is mangled");
}

struct Libraries {
    path: PathBuf,
    /// What whoever links the static library must link too.
    native: Vec<String>,
}

/// As `docs/embedding.md` says, as the tests are built, so that what they share with the libraries is built once.
fn build() -> Libraries {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap();
    let mut command = Command::new(env!("CARGO"));
    command.args([
        "rustc",
        "-p",
        "hvci-engine",
        "--lib",
        "--features",
        "capi",
        "--crate-type",
        "cdylib,staticlib",
        "--offline",
        "--locked",
    ]);
    command.arg("--target-dir").arg(target).args(["--", "--print", "native-static-libs"]);
    let said = succeed(command.current_dir(here()).env_remove("RUSTFLAGS"));
    let said = String::from_utf8_lossy(&said.stderr).into_owned();
    let native = said.lines().find_map(|line| line.split_once("native-static-libs: ")).map(|(_, libraries)| libraries);
    Libraries { path: target.join("debug"), native: native.unwrap_or_default().split_whitespace().map(str::to_owned).collect() }
}

/// The compiler that the environment names, else the first of these that is there.
fn compiler(variable: &str, names: &[&str]) -> Option<String> {
    let named = env::var(variable).ok();
    let mut candidates = named.iter().map(String::as_str).chain(names.iter().copied());
    candidates.find(|name| Command::new(name).arg("--version").output().is_ok_and(|o| o.status.success())).map(str::to_owned)
}

fn succeed(command: &mut Command) -> Output {
    let output = command.output().unwrap();
    let said = [output.stdout.as_slice(), &output.stderr].map(String::from_utf8_lossy).concat();
    assert!(output.status.success(), "{command:?}: {}\n{said}", output.status);
    output
}
