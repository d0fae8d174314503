//! A program of the guest's that uses credentials, as LSASS does: a signed module that makes VTL calls, and memory of VTL0 that requests
//! and answers are in.
//!
//! What it is handed over, it hands over to the vault; what it has is handles and answers. [`ntlm`] and [`kerberos`] are the messages that
//! it makes of them.

use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use hvci_engine::{
    addr::{Gpn, PAGE_SIZE},
    digest::Digest,
    event::Event,
    load::Function as LoaderFunction,
    status::HvStatus,
    time::UnixTime,
    vault::{Config, Function, Identity, Keeper, Key, Opened, UsePolicy, Vault},
    vsm::hypercall::{Control, HypercallCode},
};
use iced_x86::code_asm::*;
use rand_core::{OsRng, RngCore};

use crate::{
    attack::{Guest, forge},
    memory::PAGE,
    vmm::Snapshot,
};

pub mod demo;
pub mod kdc;
mod kept;
pub mod kerberos;
pub mod ntlm;
mod search;

pub use kept::MemoryKeeper;
pub use search::{Found, Needle, search, secrets_of};

/// Pages that the vault gets.
pub(crate) const VAULT: std::ops::Range<u64> = 0xA0..0xB0;
/// Memory of the program, from this GPA on to that of the module's aliases.
const MEMORY: u64 = 0xB0_000;
/// Where its argument block is, and behind it what the arguments point to.
const BLOCK: u64 = MEMORY;
const HEAP: u64 = MEMORY + 0x1000;
/// Where answers go, and how much room there is.
const ANSWER: u64 = MEMORY + 0x30_000;
const ROOM: u64 = 0x10_000;
/// All of the guest's RAM, in pages.
const RAM: u64 = 0x400;

/// How a vault is made.
pub struct Options {
    /// Which machine.
    pub vm: [u8; 16],
    /// What is allowed of its credentials.
    pub policy: UsePolicy,
    /// Who keeps it.
    pub keeper: Option<Box<dyn Keeper>>,
    /// The time of the machine.
    pub time: UnixTime,
}

impl std::fmt::Debug for Options {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Options").field("vm", &self.vm).field("policy", &self.policy).field("time", &self.time).finish_non_exhaustive()
    }
}

impl Default for Options {
    fn default() -> Self {
        Self { vm: *b"hvci-sim machine", policy: UsePolicy::default(), keeper: None, time: UnixTime(1_795_000_000) }
    }
}

/// The guest with the program in it.
#[derive(Debug)]
pub struct Lsa {
    /// The guest.
    pub guest: Guest,
    /// What was found when its vault was opened.
    pub opened: Opened,
    /// The module's number, and who it is.
    pub module: (u64, Digest),
    vault: Arc<Vault>,
    /// Where the module makes VTL calls.
    entry: u64,
    next: u64,
}

/// A credential, as the vault lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// Its handle.
    pub handle: u64,
    /// How often it was used.
    pub uses: u64,
    /// Whose it is, or what a key is called.
    pub user: String,
    /// The domain.
    pub domain: String,
}

/// A status, and the word that came with it.
pub type Answered = (HvStatus, u64);

impl Lsa {
    /// Boots a guest with a vault and loads the program.
    ///
    /// # Errors
    /// The vault's; none else that occurs.
    pub fn boot(options: Options) -> Result<Self> {
        let mut found = None;
        let mut guest = Guest::with_vault(|partition| {
            let pages: Vec<Gpn> = VAULT.map(Gpn).collect();
            let (vault, opened) = Vault::open(Arc::clone(partition), &pages, config(options.vm, options.policy), options.keeper)?;
            let vault = Arc::new(vault);
            found = Some((Arc::clone(&vault), opened));
            Ok(Some(vault))
        })?;
        guest.set_time(options.time);
        let (vault, opened) = found.context("no vault")?;
        let file = forge::Module::new()?.with_vtl_call().signed()?;
        let arguments = guest.present(&file)?;
        let (status, id) = guest.call(LoaderFunction::VALIDATE_MODULE, &arguments)?;
        status.ok().context("the program is not loaded")?;
        let (entry, digest) = Self::entry_of(&guest, id)?;
        Ok(Self { guest, opened, module: (id, digest), vault, entry, next: HEAP })
    }

    /// Where a loaded module makes VTL calls, and its digest.
    fn entry_of(guest: &Guest, id: u64) -> Result<(u64, Digest)> {
        let modules = guest.engine.loader.modules_loaded();
        let module = modules.iter().find(|module| u64::from(module.id) == id).context("no such module")?;
        let parts = module.segments.iter().flat_map(|segment| segment.parts.iter().map(move |part| (segment.start.0 + part.offset, part)));
        let entry = parts.clone().find(|(_, part)| part.section == forge::VTL_CALL_SECTION).map(|(at, _)| at);
        Ok((entry.context("no code that makes VTL calls")?, module.digest.context("no digest")?))
    }

    /// The vault, as the VMM has it.
    pub fn vault(&self) -> &Arc<Vault> {
        &self.vault
    }

    /// Where the program's code makes VTL calls.
    pub const fn entry(&self) -> u64 {
        self.entry
    }

    /// A VTL call by the program's code; its status and its word.
    ///
    /// # Errors
    /// A call that faults.
    pub fn call(&mut self, function: Function, arguments: &[u64]) -> Result<Answered> {
        self.call_at(self.entry, function, arguments)
    }

    /// The same by code that stands elsewhere.
    pub(crate) fn call_at(&mut self, entry: u64, function: Function, arguments: &[u64]) -> Result<Answered> {
        let mut block = [0; 13];
        for (place, word) in block.iter_mut().zip(std::iter::once(&function.0).chain(arguments)) {
            *place = *word;
        }
        let bytes: Vec<u8> = block.iter().flat_map(|word: &u64| word.to_le_bytes()).collect();
        self.guest.write(BLOCK, &bytes)?;
        let done = self.guest.run(0, &|a| {
            a.mov(rcx, Control::simple(HypercallCode::VTL_CALL).0)?;
            a.mov(rdx, BLOCK)?;
            a.xor(eax, eax)?;
            a.mov(rbx, entry)?;
            a.call(rbx)
        })?;
        self.next = HEAP;
        self.called(done)
    }

    /// The last call again, with what its arguments point to as it is.
    ///
    /// # Errors
    /// As [`call`](Self::call).
    pub fn call_again(&mut self) -> Result<Answered> {
        let done = self.guest.run_again(0)?;
        self.called(done)
    }

    fn called(&mut self, done: u64) -> Result<Answered> {
        ensure!(done == crate::attack::THROUGH, "the VTL call faulted: R15 {done:#x}");
        Ok((HvStatus(u16::try_from(self.guest.register(0, 0)?)?), self.guest.register(0, 2)?))
    }

    /// Puts bytes into the program's memory; the GPA and the length, as arguments have them.
    ///
    /// # Errors
    /// No room.
    pub fn put(&mut self, bytes: &[u8]) -> Result<[u64; 2]> {
        let at = self.next;
        let len = bytes.len() as u64;
        ensure!(at + len <= ANSWER, "the program's memory is full");
        self.guest.write(at, bytes)?;
        // what follows does not lie against it
        self.next = at + len.next_multiple_of(16) + 16;
        Ok([at, len])
    }

    /// A call whose answer has bytes: they are read from the program's memory.
    ///
    /// # Errors
    /// The call's status.
    pub fn ask(&mut self, function: Function, arguments: &[&[u64]]) -> Result<Vec<u8>> {
        let arguments = [&arguments.concat()[..], &[ANSWER, ROOM]].concat();
        let (status, len) = self.call(function, &arguments)?;
        status.ok().with_context(|| name(function))?;
        self.guest.read(ANSWER, usize::try_from(len)?)
    }

    /// A call whose answer is a word.
    ///
    /// # Errors
    /// The call's status.
    pub fn word(&mut self, function: Function, arguments: &[&[u64]]) -> Result<u64> {
        let (status, word) = self.call(function, &arguments.concat())?;
        status.ok().with_context(|| name(function))?;
        Ok(word)
    }

    /// Logs a user on: the password goes to the vault, and is wiped where it was typed in.
    ///
    /// # Errors
    /// The vault's.
    pub fn log_on(&mut self, user: &str, domain: &str, password: &str) -> Result<u64> {
        self.add_logon(user, domain, (0, password.as_bytes()), &UsePolicy::default(), false)
    }

    /// Adds a user's credential of any kind.
    ///
    /// # Errors
    /// The vault's.
    pub fn add_logon(&mut self, user: &str, domain: &str, (kind, secret): (u64, &[u8]), policy: &UsePolicy, kept: bool) -> Result<u64> {
        let (user, domain) = (self.put(user.as_bytes())?, self.put(domain.as_bytes())?);
        let policy = self.put(&serde_json::to_vec(policy)?)?;
        let secret = self.put(secret)?;
        self.word(Function::ADD_LOGON, &[&user, &domain, &[kind], &secret, &[0, 0], &policy, &[u64::from(kept)]])
    }

    /// Adds a key that the vault makes.
    ///
    /// # Errors
    /// The vault's.
    pub fn make_key(&mut self, kind: u64, key_name: &str, prefix: &[u8], kept: bool) -> Result<u64> {
        let (key_name, prefix) = (self.put(key_name.as_bytes())?, self.put(prefix)?);
        self.word(Function::ADD_KEY, &[&[kind], &key_name, &[0, 0], &prefix, &[0, 0], &[u64::from(kept)]])
    }

    /// The program's credentials.
    ///
    /// # Errors
    /// The vault's; an answer that is no list.
    pub fn list(&mut self) -> Result<Vec<Listed>> {
        let answer = self.ask(Function::LIST, &[])?;
        let mut rest = &answer[..];
        let mut listed = Vec::new();
        while !rest.is_empty() {
            let word = |at: usize| rest.get(at..at + 8).and_then(|b| b.try_into().ok()).map(u64::from_le_bytes);
            let len = |at: usize| rest.get(at..at + 2).and_then(|b| b.try_into().ok()).map(u16::from_le_bytes).map(usize::from);
            let read = || {
                let (user, domain) = (len(18)?, len(20)?);
                let text = |from: usize, len: usize| Some(String::from_utf8_lossy(rest.get(from..from + len)?).into_owned());
                let one = Listed { handle: word(0)?, uses: word(8)?, user: text(22, user)?, domain: text(22 + user, domain)? };
                Some((one, rest.get(22 + user + domain..)?))
            };
            let (one, behind) = read().context("an answer that is no list")?;
            listed.push(one);
            rest = behind;
        }
        Ok(listed)
    }

    /// Everything of the guest that is VTL0's, as a debugger or a driver of the attacker's dumps it: its RAM, and what cannot be read of
    /// it.
    ///
    /// # Errors
    /// None that occurs.
    pub fn dump(&self) -> Result<Snapshot> {
        Ok(self.guest.machine.vmm().snapshot((0..RAM).map(Gpn))?)
    }

    /// The frames that the vault has, as they stand in the host's memory: what nobody in VTL0 sees.
    ///
    /// # Errors
    /// None that occurs.
    pub fn secret_pages(&self) -> Result<Vec<u8>> {
        VAULT.map(|gpn| self.guest.read(gpn * PAGE_SIZE, PAGE)).collect::<Result<Vec<_>>>().map(|pages| pages.concat())
    }

    /// The first 16 bytes of a credential's record, as the host sees them: for a search that nothing outside has them.
    pub(crate) fn secret_of(&self, credential: u64) -> Result<Vec<u8>> {
        let at = usize::try_from((credential & 0xFFFF_FFFF) + 1)? * 128;
        self.secret_pages()?.get(at..at + 16).map(<[u8]>::to_vec).context("no such record")
    }

    /// The events since the last time.
    pub fn events(&self) -> Vec<Event> {
        self.guest.engine.partition.take_events().0
    }
}

/// A vault's configuration for a boot of its own.
pub fn config(vm: [u8; 16], policy: UsePolicy) -> Config {
    let (mut boot, mut seed) = ([0; 16], [0; 32]);
    OsRng.fill_bytes(&mut boot);
    OsRng.fill_bytes(&mut seed);
    Config { identity: Identity { vm, boot }, policy, seed: Key::from(seed) }
}

fn name(function: Function) -> String {
    let known = Function::ALL.iter().find(|(known, ..)| *known == function);
    known.map_or_else(|| format!("function {:#x}", function.0), |(_, name, _)| (*name).to_owned())
}
