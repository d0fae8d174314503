//! Machines of a folder of their own.

use std::{
    env, fs,
    path::PathBuf,
    process::{Command, Output},
};

use super::corpora;

pub(crate) const SIM: &str = env!("CARGO_BIN_EXE_hvci-sim");
/// Machines of a folder of their own, from Debian's chain.
pub(crate) struct Lab {
    pub(crate) folder: tempfile::TempDir,
    pub(crate) image: PathBuf,
    pub(crate) variables: PathBuf,
    pub(crate) modules: Vec<PathBuf>,
}

impl Lab {
    pub(crate) fn new() -> Option<Self> {
        let (boot, kernel) = (corpora::folder("debian-boot")?, corpora::folder("debian-kernel")?);
        let ovmf = PathBuf::from(env::var_os("HVCI_OVMF").unwrap_or_else(|| "/usr/share/OVMF".into())).join("OVMF_VARS_4M.ms.fd");
        if !ovmf.exists() {
            eprintln!("skipped: no {}; the package ovmf has it", ovmf.display());
            return None;
        }
        let folder = tempfile::tempdir().unwrap();
        let image = folder.path().join("image");
        fs::create_dir(&image).unwrap();
        let files = corpora::files(&kernel);
        let kernel = files.iter().rfind(|p| p.file_name().unwrap().to_string_lossy().starts_with("vmlinuz-")).unwrap();
        let release = kernel.file_name().unwrap().to_string_lossy().trim_start_matches("vmlinuz-").to_owned();
        let of_boot = corpora::files(&boot).into_iter().filter(|p| p.extension().is_some_and(|e| e == "signed"));
        for file in of_boot.chain([kernel.clone()]) {
            fs::copy(&file, image.join(file.file_name().unwrap())).unwrap();
        }
        let is_one = |p: &&PathBuf| p.file_name().unwrap() == "mii.ko" && p.to_string_lossy().contains(&release);
        let modules = files.iter().filter(is_one).cloned().collect();
        let lab = Self { folder, image, variables: ovmf, modules };
        let probe = lab.create("probe", &[]);
        assert!(probe.status.success(), "{probe:?}");
        Some(lab)
    }

    pub(crate) fn run(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(SIM);
        command.env("HVCI_VMS", self.folder.path().join("vms")).args(arguments);
        command.output().unwrap()
    }

    pub(crate) fn create(&self, name: &str, more: &[&str]) -> Output {
        let (image, variables) = (self.image.to_str().unwrap(), self.variables.to_str().unwrap());
        self.run(&[&["vm", "create", name, "--image", image, "--vars", variables], more].concat())
    }

    pub(crate) fn start(&self, name: &str) -> (i32, String) {
        let output = self.run(&["vm", "start", name]);
        let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        (output.status.code().unwrap(), text)
    }

    pub(crate) fn path(&self, name: &str, file: &str) -> PathBuf {
        self.folder.path().join("vms").join(name).join(file)
    }
}

/// What a program said.
pub(crate) fn text(output: &Output) -> String {
    String::from_utf8_lossy(&[&output.stdout[..], &output.stderr].concat()).into_owned()
}
