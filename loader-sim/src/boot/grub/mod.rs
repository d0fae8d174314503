//! GRUB: its configuration decides what is started, and everything that it does and reads is measured (GRUB manual, "Measuring boot
//! components"; `kern/verifiers.c`, `commands/tpm.c`).
//!
//! PCR 8 has each command with its variables filled in, and the kernel's command line; PCR 9 has each file that is read. With Secure Boot on,
//! a kernel starts if shim vouches for it, which GRUB asks twice. The commands that a configuration may have, and do nothing here, are listed;
//! one that is not known fails as in GRUB, and is told in the stage.

mod memdisk;
mod script;

use std::collections::HashMap;

use hvci_engine::{
    digest::DigestAlg,
    facts::DigestForm,
    image::pe::Pe,
    policy::{Decision, secure_boot::SbatUse},
};

pub use script::ScriptError;
use script::{Command, Part, Word};

use super::{Asked, Booting, End, Fault, Stage, StageKind, program::is_linux, reason, shim};
use memdisk::Builtin;

/// Most commands of a boot.
const MAX_STEPS: usize = 10_000;
/// How deep configurations may read others and functions call each other.
const MAX_DEPTH: usize = 16;
/// GRUB's name of the disk that it was started from.
const DISK: &str = "(hd0)";

/// Commands that change nothing of what is started.
const IDLE: [&str; 26] = [
    "background_color",
    "background_image",
    "clear",
    "cpuid",
    "echo",
    "export",
    "gfxmode",
    "gfxpayload",
    "insmod",
    "keymap",
    "load_video",
    "loadfont",
    "lsefi",
    "play",
    "recordfail",
    "rmmod",
    "savedefault",
    "serial",
    "setparams",
    "sleep",
    "terminal_input",
    "terminal_output",
    "tpm",
    "videoinfo",
    "videotest",
    "true",
];

/// What comes after a command.
enum Flow {
    /// The next one; whether this one succeeded.
    Next(bool),
    /// The machine starts, or stops.
    Ended(End),
}

struct Kernel {
    path: String,
    bytes: Vec<u8>,
    command_line: String,
    initrds: Vec<(String, Vec<u8>)>,
}

struct Grub<'b, 'm, 't> {
    booting: &'b mut Booting<'m, 't>,
    shim: Option<&'b shim::Running>,
    stage: usize,
    variables: HashMap<String, String>,
    functions: HashMap<String, Vec<Command>>,
    entries: Vec<(String, Vec<Command>)>,
    kernel: Option<Kernel>,
    steps: usize,
    depth: usize,
}

/// Runs GRUB, whose image was started from `path`.
pub(super) fn run(
    booting: &mut Booting<'_, '_>,
    stage: usize,
    image: &Pe<'_>,
    path: &str,
    shim: Option<&shim::Running>,
) -> Result<End, Fault> {
    let builtin = Builtin::of(image);
    let folder = path.replace('\\', "/");
    let folder = folder.rsplit_once('/').map_or("", |(folder, _)| folder);
    let prefix = format!("{DISK}{}", builtin.prefix.unwrap_or("/boot/grub"));
    let variables = [("prefix", prefix), ("cmdpath", format!("{DISK}{folder}")), ("root", "hd0".to_owned())];
    let mut grub = Grub {
        booting,
        shim,
        stage,
        variables: variables.into_iter().map(|(name, value)| (name.to_owned(), value)).collect(),
        functions: HashMap::new(),
        entries: Vec::new(),
        kernel: None,
        steps: 0,
        depth: 0,
    };
    // the image's first commands are not measured, and neither is its own file system: they are part of the image
    let first = builtin.config.unwrap_or("normal $prefix/grub.cfg");
    let flow = match first.trim().strip_prefix("normal (memdisk)").map(|name| builtin.file(name)) {
        Some(Some(config)) => grub.config(&String::from_utf8_lossy(&config), "(memdisk)/grub.cfg")?,
        Some(None) => return Ok(grub.prompt("its own configuration is not in the image")),
        None => grub.source(&grub.expand_text(first.trim().trim_start_matches("normal ")))?,
    };
    match flow {
        Flow::Ended(end) => Ok(end),
        Flow::Next(_) => grub.menu(),
    }
}

impl Grub<'_, '_, '_> {
    fn prompt(&mut self, why: &str) -> End {
        self.booting.stopped(self.stage, format!("GRUB waits at its prompt: {why}"))
    }

    /// The menu: its default entry is taken when the time is over.
    fn menu(&mut self) -> Result<End, Fault> {
        if self.entries.is_empty() {
            return Ok(match self.kernel {
                Some(_) => self.prompt("a kernel was loaded, and nothing starts it"),
                None => self.prompt("the configuration has no entry, and starts nothing"),
            });
        }
        let default = self.variables.get("default").map_or("0", String::as_str);
        let chosen = default.parse().unwrap_or_else(|_| self.entries.iter().position(|(title, _)| title == default).unwrap_or(0));
        let Some((title, body)) = self.entries.get(chosen).or_else(|| self.entries.first()).cloned() else {
            return Ok(self.prompt("the menu has no entry"));
        };
        self.variables.insert("chosen".to_owned(), title);
        match self.run(&body)? {
            Flow::Ended(end) => Ok(end),
            // an entry that loads a kernel boots it at its end
            Flow::Next(_) if self.kernel.is_some() => {
                self.measure_command("boot")?;
                self.boot()
            }
            Flow::Next(_) => Ok(self.prompt("the menu entry starts nothing")),
        }
    }

    fn config(&mut self, text: &str, name: &str) -> Result<Flow, Fault> {
        match script::parse(text) {
            Ok(commands) => self.run(&commands),
            Err(error) => Ok(Flow::Ended(self.booting.stopped(self.stage, format!("{name}, {error}")))),
        }
    }

    fn run(&mut self, commands: &[Command]) -> Result<Flow, Fault> {
        self.depth = self.depth.saturating_add(1);
        if self.depth > MAX_DEPTH {
            return Ok(Flow::Ended(self.prompt("configurations and functions stand too deep in one another")));
        }
        let mut last = true;
        for command in commands {
            self.steps = self.steps.saturating_add(1);
            if self.steps > MAX_STEPS {
                return Ok(Flow::Ended(self.prompt("the configuration does not come to an end")));
            }
            match self.step(command)? {
                Flow::Next(success) => last = success,
                ended => return Ok(ended),
            }
        }
        self.depth = self.depth.saturating_sub(1);
        Ok(Flow::Next(last))
    }

    fn step(&mut self, command: &Command) -> Result<Flow, Fault> {
        match command {
            Command::Function { name, body } => {
                self.functions.insert(name.clone(), body.clone());
                Ok(Flow::Next(true))
            }
            Command::If { branches, otherwise } => {
                for (condition, then) in branches {
                    match self.run(condition)? {
                        Flow::Next(true) => return self.run(then),
                        Flow::Next(false) => {}
                        ended => return Ok(ended),
                    }
                }
                self.run(otherwise)
            }
            Command::Simple { words, block } => {
                let mut arguments: Vec<String> = words.iter().flat_map(|word| self.expand(word)).collect();
                let negated = arguments.first().is_some_and(|first| first == "!");
                if negated {
                    arguments.remove(0);
                }
                if arguments.is_empty() {
                    return Ok(Flow::Next(!negated));
                }
                let text = block.as_ref().map(|b| b.text.as_str());
                let shown: Vec<&str> = arguments.iter().map(String::as_str).chain(text).collect();
                self.measure_command(&shown.join(" "))?;
                let body = block.as_ref().map(|b| b.commands.as_slice());
                Ok(match self.execute(&arguments, body)? {
                    Flow::Next(success) => Flow::Next(success != negated),
                    ended => ended,
                })
            }
        }
    }

    fn measure_command(&mut self, command: &str) -> Result<(), Fault> {
        Ok(self.booting.recorder.said("grub_cmd: ", command)?)
    }

    fn execute(&mut self, arguments: &[String], block: Option<&[Command]>) -> Result<Flow, Fault> {
        let (name, rest) = arguments.split_first().map_or(("", &[][..]), |(name, rest)| (name.as_str(), rest));
        let next = |success| Ok(Flow::Next(success));
        match (name, rest) {
            ("[", [inner @ .., end]) if end == "]" => next(self.test(inner)),
            ("test", inner) => next(self.test(inner)),
            ("set", [assignment, ..]) => {
                if let Some((variable, value)) = assignment.split_once('=') {
                    self.variables.insert(variable.to_owned(), value.to_owned());
                }
                next(true)
            }
            ("unset", names) => {
                names.iter().for_each(|name| drop(self.variables.remove(name)));
                next(true)
            }
            ("source" | "." | "configfile" | "normal", [file, ..]) => self.source(file),
            ("search" | "search.file" | "search.fs_uuid" | "search.fs_label", options) => next(self.search(name, options)),
            ("menuentry", [title, ..]) => {
                self.entries.push((title.clone(), block.unwrap_or_default().to_vec()));
                next(true)
            }
            // its entries are only seen by who opens it
            ("submenu", _) => next(true),
            ("linux" | "linuxefi" | "linux16", [file, options @ ..]) => self.linux(file, options),
            ("initrd" | "initrdefi" | "initrd16", files) => self.initrd(files),
            ("boot", []) => match self.kernel {
                Some(_) => self.boot().map(Flow::Ended),
                None => next(false),
            },
            ("chainloader", [file, ..]) => self.chain(file).map(Flow::Ended),
            ("halt", _) => {
                Ok(Flow::Ended(End::PoweredOff { stage: self.stage, reason: "GRUB's configuration halts the machine".to_owned() }))
            }
            ("reboot" | "exit", _) => Ok(Flow::Ended(self.prompt(&format!("the configuration ends with {name}")))),
            ("false", _) => next(false),
            (idle, _) if IDLE.contains(&idle) => next(true),
            // there is no environment block of its own
            ("load_env" | "save_env", _) => next(true),
            (function, _) if self.functions.contains_key(function) => {
                let body = self.functions.get(function).cloned().unwrap_or_default();
                let before: Vec<(String, Option<String>)> =
                    (1..=rest.len()).map(|n| (n.to_string(), self.variables.get(&n.to_string()).cloned())).collect();
                for ((name, _), value) in before.iter().zip(rest) {
                    self.variables.insert(name.clone(), value.clone());
                }
                let flow = self.run(&body)?;
                for (name, value) in before {
                    match value {
                        Some(value) => drop(self.variables.insert(name, value)),
                        None => drop(self.variables.remove(&name)),
                    }
                }
                Ok(flow)
            }
            (assignment, []) if assignment.split_once('=').is_some_and(|(name, _)| !name.is_empty()) => {
                let (variable, value) = assignment.split_once('=').unwrap_or_default();
                self.variables.insert(variable.to_owned(), value.to_owned());
                next(true)
            }
            (unknown, _) => {
                let unknown = unknown.to_owned();
                self.booting.note(self.stage, format!("GRUB has no command {unknown:?} here: it fails"));
                next(false)
            }
        }
    }

    /// `(hd0)/path`, `($root)/path` and `/path` of the one disk.
    fn place(&self, path: &str) -> Option<String> {
        match path.strip_prefix('(') {
            None => Some(path.to_owned()),
            Some(rest) => {
                let (device, path) = rest.split_once(')')?;
                (device == "hd0" || device.starts_with("hd0,")).then(|| path.to_owned())
            }
        }
    }

    /// A file's content; the name as it was given is measured with it.
    fn read(&mut self, path: &str) -> Result<Option<Vec<u8>>, Fault> {
        let Some(place) = self.place(path) else { return Ok(None) };
        let Some(content) = self.booting.disk.read(&place)? else { return Ok(None) };
        self.booting.recorder.content(9, path, &content)?;
        Ok(Some(content))
    }

    fn source(&mut self, path: &str) -> Result<Flow, Fault> {
        match self.read(path)? {
            Some(content) => self.config(&String::from_utf8_lossy(&content), path),
            None => {
                self.booting.note(self.stage, format!("GRUB finds no {path}"));
                Ok(Flow::Next(false))
            }
        }
    }

    /// `search --file --set=root /file`: the one disk has it, or not. Labels and UUIDs are taken to be those of the disk.
    fn search(&mut self, name: &str, options: &[String]) -> bool {
        let by_file = name == "search.file" || options.iter().any(|o| o == "--file" || o == "-f");
        let wanted = options.iter().rfind(|o| !o.starts_with('-'));
        let found = !by_file || wanted.is_some_and(|path| self.booting.disk.exists(path));
        let set = options.iter().find_map(|o| o.strip_prefix("--set=")).or_else(|| options.iter().any(|o| o == "--set").then_some("root"));
        if let (true, Some(variable)) = (found, set) {
            self.variables.insert(variable.to_owned(), "hd0".to_owned());
        }
        found
    }

    fn linux(&mut self, file: &str, options: &[String]) -> Result<Flow, Fault> {
        let Some(bytes) = self.place(file).map(|place| self.booting.disk.read(&place)).transpose()?.flatten() else {
            self.booting.note(self.stage, format!("GRUB finds no {file}"));
            return Ok(Flow::Next(false));
        };
        // its two digests, of the file and of the image, in one pass
        let facts = self.booting.facts_with(&bytes, &[DigestAlg::Sha256]);
        let whole = facts.digest(DigestForm::Flat, DigestAlg::Sha256).copied();
        self.booting.recorder.content_of(9, file, &bytes, whole)?;
        if !is_linux(&bytes) {
            self.booting.note(self.stage, format!("{file} is no Linux kernel: GRUB does not load it"));
            return Ok(Flow::Next(false));
        }
        match self.shim.filter(|shim| shim.is_secure()) {
            Some(shim) => {
                let (stage, verdict) = shim.verify(self.booting, StageKind::Kernel, file, &facts, SbatUse::Optional)?;
                if verdict.decision != Decision::Accept {
                    let why = format!("GRUB: bad shim signature of {file}: {}", reason(&verdict));
                    return Ok(Flow::Ended(self.booting.stopped(stage, why)));
                }
                // it asks for the file, and again before it starts it, and shim measures whenever it is asked
                if let Ok(image) = Pe::parse(&bytes) {
                    self.booting.measure_image(stage, &image, &facts, &[])?;
                    self.booting.measure_image(stage, &image, &facts, &[])?;
                }
            }
            // with Secure Boot on and no shim to ask, GRUB loads nothing
            None if self.shim.is_none() && self.booting.secure_boot => {
                let why = format!("GRUB: verification requested but nobody cares: {file}");
                return Ok(Flow::Ended(self.booting.stopped(self.stage, why)));
            }
            None => {
                self.booting.push(Stage::new(StageKind::Kernel, file, Asked::Nobody, &facts, None));
            }
        }
        let command_line = [&[file.to_owned()], options].concat().join(" ");
        self.booting.recorder.said("kernel_cmdline: ", &command_line)?;
        self.kernel = Some(Kernel { path: file.to_owned(), bytes, command_line, initrds: Vec::new() });
        Ok(Flow::Next(true))
    }

    fn initrd(&mut self, files: &[String]) -> Result<Flow, Fault> {
        for file in files {
            let Some(content) = self.read(file)? else {
                self.booting.note(self.stage, format!("GRUB finds no {file}"));
                return Ok(Flow::Next(false));
            };
            match &mut self.kernel {
                Some(kernel) => kernel.initrds.push((file.clone(), content)),
                None => return Ok(Flow::Next(false)),
            }
        }
        Ok(Flow::Next(true))
    }

    fn boot(&mut self) -> Result<End, Fault> {
        let Some(kernel) = self.kernel.take() else { return Ok(self.prompt("no kernel was loaded")) };
        self.booting.exit_boot_services()?;
        let secure = self.shim.is_some_and(shim::Running::is_secure);
        Ok(super::kernel::start(kernel.path, kernel.bytes, kernel.command_line, secure, secure))
    }

    /// Starts another image, as the firmware would, or where shim runs as shim would.
    fn chain(&mut self, file: &str) -> Result<End, Fault> {
        let Some(bytes) = self.read(file)? else { return Ok(self.prompt(&format!("it finds no {file}"))) };
        let path = self.place(file).unwrap_or_default().replace('/', "\\");
        match self.shim {
            Some(shim) => shim.start(self.booting, &path, &bytes, ""),
            None => self.booting.firmware_starts(&path, &bytes, "", false),
        }
    }

    fn test(&self, words: &[String]) -> bool {
        Test { words, disk: self }.any_of()
    }

    fn expand_text(&self, text: &str) -> String {
        self.variables.iter().fold(text.to_owned(), |text, (name, value)| text.replace(&format!("${name}"), value))
    }

    /// A word with its variables filled in: none, one or several words.
    fn expand(&self, word: &Word) -> Vec<String> {
        let mut words = vec![String::new()];
        for part in &word.parts {
            let value = match part {
                Part::Text(text) => {
                    words.last_mut().into_iter().for_each(|w| w.push_str(text));
                    continue;
                }
                Part::Variable { name, quoted: false } => self.variable(name),
                Part::Variable { name, .. } => {
                    let value = self.variable(name);
                    words.last_mut().into_iter().for_each(|w| w.push_str(&value));
                    continue;
                }
            };
            for (n, piece) in value.split(' ').enumerate() {
                if n > 0 {
                    words.push(String::new());
                }
                words.last_mut().into_iter().for_each(|w| w.push_str(piece));
            }
        }
        let keep_empty = word.quoted;
        words.retain(|w| keep_empty || !w.is_empty());
        words
    }

    fn variable(&self, name: &str) -> String {
        match name {
            "grub_cpu" => "x86_64".to_owned(),
            "grub_platform" => "efi".to_owned(),
            _ => self.variables.get(name).cloned().unwrap_or_default(),
        }
    }
}

/// `test EXPRESSION` (GRUB manual): strings, numbers, files, `!`, `-a`, `-o`.
struct Test<'w, 'b, 'm, 't> {
    words: &'w [String],
    disk: &'w Grub<'b, 'm, 't>,
}

impl Test<'_, '_, '_, '_> {
    fn any_of(&self) -> bool {
        self.words.split(|w| w == "-o").any(|part| part.split(|w| w == "-a").all(|part| self.one(part)))
    }

    fn one(&self, words: &[String]) -> bool {
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        match words.as_slice() {
            ["!", rest @ ..] => !self.one(&rest.iter().map(|w| (*w).to_owned()).collect::<Vec<_>>()),
            ["-z", text] => text.is_empty(),
            ["-n", text] => !text.is_empty(),
            // a variable without a value leaves its word out
            ["-z"] => true,
            ["-n"] | [] => false,
            ["-e" | "-d" | "-f" | "-s", path] => self.disk.place(path).is_some_and(|place| self.disk.booting.disk.exists(&place)),
            [a, "=" | "==", b] => a == b,
            [a, "!=", b] => a != b,
            [a, "-eq", b] => number(a) == number(b),
            [a, "-ne", b] => number(a) != number(b),
            [a, "-lt", b] => number(a) < number(b),
            [a, "-gt", b] => number(a) > number(b),
            [text] => !text.is_empty(),
            _ => false,
        }
    }
}

fn number(text: &str) -> i64 {
    text.parse().unwrap_or(0)
}
