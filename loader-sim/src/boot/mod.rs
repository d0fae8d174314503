//! Starts the machine: firmware, boot loaders, kernel, over real files; each image is judged before it starts, and measured.
//!
//! ```text
//! VariableStore ─► firmware ─► shim ─► GRUB ─► kernel        asked: hvci_engine::policy::secure_boot
//!      Disk ──────────┴──────────┴───────┘                   measured: measure::Recorder ─► log, TPM
//! ```
//!
//! No code of the images runs: what each program does next is known (firmware as edk2 and OVMF, shim 16.1, GRUB 2.06, systemd 252, Windows' boot manager), and which
//! program an image is, is told from its content. **Invariant:** an image that is refused does not start, and nothing after it does; what the
//! log says was measured went to the TPM in the same order.

pub mod disk;
mod firmware;
mod grub;
mod kernel;
mod program;
mod shim;
mod stage;
mod systemd;
pub mod what_if;
pub mod windows;

use std::io;

use hvci_engine::{
    digest::DigestAlg,
    examine::Examiner,
    facts::Facts,
    image::pe::Pe,
    policy::{
        Decision,
        secure_boot::{Authority, Behaviour, BootVerdict, Firmware},
    },
    signature::{cache::Cache, catalog::CatalogIndex, signature_list::SignatureDatabase},
    uefi::Guid,
};

pub use disk::Disk;
pub use grub::ScriptError;
pub use kernel::RunningKernel;
use program::Loaded;
pub use program::Program;
pub use stage::{Asked, Stage, StageKind};

use crate::{
    firmware::{
        Refused,
        store::VariableStore,
        variable::{IMAGE_SECURITY, SHIM},
    },
    measure::{
        EventType, Recorder, device_path, gpt,
        record::{Extend, MeasureError},
    },
};

/// Largest image that is unpacked or examined, in bytes.
const MAX_IMAGE: usize = 1 << 30;

/// What a machine starts from.
#[derive(Debug)]
pub struct Machine<'m> {
    /// Its disk.
    pub disk: &'m Disk,
    /// Its UEFI variables. What firmware and shim write stays written.
    pub variables: &'m mut VariableStore,
    /// Whose rules decide.
    pub behaviour: Behaviour,
    /// Banks of its TPM.
    pub banks: &'m [DigestAlg],
    /// What is measured as its firmware.
    pub firmware: &'m [u8],
}

/// A boot that came to its end.
#[derive(Debug)]
pub struct Boot {
    /// Whether Secure Boot was on.
    pub secure_boot: bool,
    /// Every image, in order.
    pub stages: Vec<Stage>,
    /// How it ended.
    pub end: End,
    /// The event log.
    pub log: Vec<u8>,
}

impl Boot {
    /// The kernel that runs, if one does.
    pub fn kernel(&self) -> Option<&RunningKernel> {
        match &self.end {
            End::Running(kernel) => Some(kernel),
            _ => None,
        }
    }
}

/// How a boot ended.
#[derive(Debug)]
pub enum End {
    /// An operating system runs.
    Running(RunningKernel),
    /// Nothing starts any more.
    Stopped {
        /// Which image it ended with, by its index; `None` before the first.
        stage: Option<usize>,
        /// Why, in a sentence.
        reason: String,
    },
    /// A program turned the machine off.
    PoweredOff {
        /// Which.
        stage: usize,
        /// Why.
        reason: String,
    },
}

/// What keeps a boot from being told to its end: no decision, but a failure of what it runs on.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// The disk cannot be read.
    #[error(transparent)]
    Disk(#[from] io::Error),
    /// Something could not be measured.
    #[error(transparent)]
    Measure(#[from] MeasureError),
    /// A variable could not be written.
    #[error("writing a variable: {0}")]
    Variable(#[from] Refused),
}

/// Starts the machine; the digests of what is measured go to `tpm`.
///
/// # Errors
/// [`Fault`]; a refused image is no error but the [`End`].
pub fn boot(machine: Machine<'_>, tpm: &mut dyn Extend) -> Result<Boot, Fault> {
    let Machine { disk, variables, behaviour, banks, firmware } = machine;
    let cache = Cache::default();
    let read =
        |name| variables.get(name, IMAGE_SECURITY).map_or_else(|| Ok(SignatureDatabase::default()), |v| SignatureDatabase::read(&v.data));
    let (dbx, unreadable) = match read("dbx") {
        Ok(dbx) => (dbx, None),
        Err(error) => (SignatureDatabase::default(), Some(error)),
    };
    let policy = Firmware::new(behaviour, read("db").unwrap_or_default(), dbx, &read("dbt").unwrap_or_default(), &cache);
    let secure_boot = variables.secure_boot();
    let mut booting =
        Booting { disk, variables, recorder: Recorder::new(banks, tpm)?, cache, stages: Vec::new(), policy, secure_boot, depth: 0 };
    let end = match unreadable.filter(|_| secure_boot) {
        // of what nobody can read nobody knows what it revokes
        Some(error) => End::Stopped { stage: None, reason: format!("firmware: dbx cannot be read, so nothing may start: {error}") },
        None => booting.power_on(firmware)?,
    };
    Ok(Boot { secure_boot, log: booting.recorder.log().to_vec(), stages: booting.stages, end })
}

/// How many images may start one another.
const MAX_DEPTH: usize = 16;

/// A boot that is going on.
struct Booting<'m, 't> {
    disk: &'m Disk,
    variables: &'m mut VariableStore,
    recorder: Recorder<'t>,
    cache: Cache,
    stages: Vec<Stage>,
    policy: Firmware,
    secure_boot: bool,
    depth: usize,
}

impl Booting<'_, '_> {
    fn facts(&self, bytes: &[u8]) -> Facts {
        self.facts_with(bytes, &[])
    }

    /// The facts of an image, with more digests of the whole file than the databases ask for.
    fn facts_with(&self, bytes: &[u8], more: &[DigestAlg]) -> Facts {
        let digests = [self.policy.digests().as_slice(), more].concat();
        Examiner { cache: &self.cache, catalogs: &CatalogIndex::default(), digests: &digests }.examine(bytes, MAX_IMAGE)
    }

    /// Adds a stage; its index.
    fn push(&mut self, stage: Stage) -> usize {
        self.stages.push(stage);
        self.stages.len().saturating_sub(1)
    }

    fn note(&mut self, stage: usize, note: String) {
        if let Some(stage) = self.stages.get_mut(stage) {
            stage.notes.push(note);
        }
    }

    fn stopped(&self, stage: usize, reason: impl Into<String>) -> End {
        End::Stopped { stage: Some(stage), reason: reason.into() }
    }

    /// Measures an image that starts as this stage.
    fn measure_image(&mut self, stage: usize, image: &Pe<'_>, facts: &Facts, path: &[u8]) -> Result<(), Fault> {
        let number = self.recorder.image(image, facts, path)?;
        if let Some(stage) = self.stages.get_mut(stage) {
            stage.events.push(number);
        }
        Ok(())
    }

    /// The partition table of the disk that the first image comes from (edk2, `DxeTpm2MeasureBootLib.c`); one that cannot be read is not measured.
    fn measure_partitions(&mut self, stage: usize) -> Result<(), Fault> {
        if self.stages.iter().any(|stage| !stage.events.is_empty()) {
            return Ok(());
        }
        if let Some(sectors) = self.disk.first_sectors()? {
            match gpt::event(&sectors) {
                Ok(table) => self.recorder.data(5, EventType::EV_EFI_GPT_EVENT, &table)?,
                Err(error) => self.note(stage, format!("gpt.img is not measured: {error}")),
            }
        }
        Ok(())
    }

    /// Measures the entry that a decision rests on.
    fn measure_authority(&mut self, authority: &Authority) -> Result<(), Fault> {
        let (name, vendor) = namespace(authority.database);
        let value = [&authority.entry.owner.0[..], &authority.entry.data].concat();
        Ok(self.recorder.authority(name, vendor, &value)?)
    }

    /// What LoadImage has of an image: its path, its content, and the options that it is started with.
    fn load<'i>(&self, path: &'i str, bytes: &'i [u8], options: &'i str) -> Loaded<'i> {
        let (facts, image) = (self.facts(bytes), Pe::parse(bytes).ok());
        let program = Program::of(image.as_ref(), &facts);
        Loaded { path, options, facts, image, program }
    }

    /// LoadImage and StartImage of the firmware: asks, measures, runs.
    fn firmware_starts(&mut self, path: &str, bytes: &[u8], options: &str, on_disk: bool) -> Result<End, Fault> {
        let loaded = self.load(path, bytes, options);
        let verdict = self.secure_boot.then(|| self.policy.authorise(&loaded.facts, &self.cache));
        let asked = if self.secure_boot { Asked::Firmware } else { Asked::Nobody };
        let stage = self.push(Stage::new(StageKind::of(loaded.program), path, asked, &loaded.facts, verdict.clone()));
        if let Some(authority) = verdict.as_ref().and_then(|v| v.authority.as_ref()) {
            self.measure_authority(authority)?;
        }
        if let Some(refused) = verdict.filter(|v| v.decision != Decision::Accept) {
            return Ok(self.stopped(stage, format!("firmware: Access Denied for {path}: {}", reason(&refused))));
        }
        if on_disk {
            self.measure_partitions(stage)?;
        }
        let place = if on_disk { device_path::of_disk(path) } else { device_path::of_file(path) };
        self.run(stage, &loaded, &place, None)
    }

    /// Measures an image that may start, and what it then does.
    fn run(&mut self, stage: usize, loaded: &Loaded<'_>, place: &[u8], shim: Option<&shim::Running>) -> Result<End, Fault> {
        self.depth = self.depth.saturating_add(1);
        if self.depth > MAX_DEPTH {
            return Ok(self.stopped(stage, "images start one another without end"));
        }
        let path = loaded.path;
        let Some(image) = &loaded.image else { return Ok(self.stopped(stage, format!("{path} is no image that could be started"))) };
        self.measure_image(stage, image, &loaded.facts, place)?;
        match loaded.program {
            Program::Shim => shim::run(self, stage, image, path),
            Program::Grub => grub::run(self, stage, image, path, shim),
            Program::SystemdBoot => systemd::run_boot(self, stage, shim),
            Program::UnifiedKernel => systemd::run_stub(self, stage, loaded, image, shim),
            Program::Linux => {
                self.exit_boot_services()?;
                let secure = self.secure_boot && shim.is_none_or(shim::Running::is_secure);
                Ok(kernel::start(path.to_owned(), image.data().to_vec(), loaded.options.to_owned(), secure, true))
            }
            Program::WindowsBootManager => windows::run(self, stage, &loaded.facts),
            Program::MokManager => Ok(self.stopped(stage, "MokManager waits for the machine's owner")),
            Program::Fallback => shim::run_fallback(self, stage, path),
            // only those before them start these
            Program::OsLoader | Program::NtKernel | Program::Unknown => {
                Ok(self.stopped(stage, "it runs, and what it would start next is not known"))
            }
        }
    }

    fn exit_boot_services(&mut self) -> Result<(), Fault> {
        for action in ["Exit Boot Services Invocation", "Exit Boot Services Returned with Success"] {
            self.recorder.data(5, EventType::EV_EFI_ACTION, action.as_bytes())?;
        }
        Ok(())
    }
}

/// The variable that an entry is measured as.
fn namespace(database: &'static str) -> (&'static str, Guid) {
    match database {
        "MokListRT" | "MokListX" => (database, SHIM),
        // shim's own list is measured as the firmware's
        shim::VENDOR_DBX => ("dbx", IMAGE_SECURITY),
        _ => (database, IMAGE_SECURITY),
    }
}

/// The reason of a refusal, in a line.
fn reason(verdict: &BootVerdict) -> String {
    let Some(first) = verdict.findings.first() else { return "refused".to_owned() };
    let detail = if first.detail.is_empty() { String::new() } else { format!(": {}", first.detail) };
    format!("{}{detail} [{}]", first.code.title(), first.code.id())
}
