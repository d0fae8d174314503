//! The commands, in one table: what their handles may be and need, what may be encrypted, and what executes them. Dispatch, TPM2_GetCapability and
//! the list in the module's documentation go by it.

use super::state::State;
use super::wire::{Params, Result};
use super::{attest, capability, context, create, credential, evict, hierarchy, nv, object, pcr, policy, session, startup, verify};

/// What a handle of a command may be (TPMI_DH_*, TPMI_RH_*, TPMI_SH_*).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum HandleType {
    Object,
    ObjectOrNull,
    Context,
    Pcr,
    PcrOrNull,
    EntityOrNull,
    Entity,
    Hierarchy,
    HierarchyAuth,
    ClearAuth,
    Lockout,
    Provision,
    NvAuth,
    NvIndex,
    Policy,
}

/// What a handle needs (Part 1, 19.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    None,
    User,
    Admin,
}

pub(super) struct Command {
    pub(super) code: u32,
    #[cfg(test)]
    name: &'static str,
    pub(super) handles: &'static [(HandleType, Role)],
    /// Gives a handle back.
    pub(super) gives_handle: bool,
    /// Sessions may be with it.
    pub(super) sessions: bool,
    /// Its first parameter, and its response's, is a buffer that may be encrypted.
    pub(super) decrypt: bool,
    pub(super) encrypt: bool,
    /// TPMA_CC: writes what lasts; flushes much.
    pub(super) flags: u32,
    pub(super) run: fn(&mut State, &Call, Params<'_>) -> Result<Reply>,
}

/// A command's handles, as loaded, and its code.
#[derive(Debug)]
pub(super) struct Call {
    pub(super) handles: Vec<u32>,
}

impl Call {
    /// The handle of this index, from 0. All that the table says there are were read.
    pub(super) fn handle(&self, index: usize) -> u32 {
        self.handles.get(index).copied().unwrap_or(hierarchy::NULL)
    }
}

/// What a command gives.
#[derive(Debug, Default)]
pub(super) struct Reply {
    pub(super) handle: Option<u32>,
    pub(super) body: Vec<u8>,
}

const NV: u32 = 1 << 22;
const EXTENSIVE: u32 = 1 << 23;

const NO_SESSIONS: u8 = 1;
const DECRYPT: u8 = 2;
const ENCRYPT: u8 = 4;
const HANDLE: u8 = 8;
const BOTH: u8 = DECRYPT | ENCRYPT;

macro_rules! commands {
    ($($code:literal $name:ident ($($handle:ident $role:ident),*) $options:expr, $flags:expr => $run:path;)*) => {
        &[$(Command {
            code: $code,
            #[cfg(test)]
            name: stringify!($name),
            handles: &[$((HandleType::$handle, Role::$role)),*],
            gives_handle: $options & HANDLE != 0,
            sessions: $options & NO_SESSIONS == 0,
            decrypt: $options & DECRYPT != 0,
            encrypt: $options & ENCRYPT != 0,
            flags: $flags,
            run: $run,
        }),*]
    };
}

/// By code.
pub(super) static COMMANDS: &[Command] = commands! {
    0x120 EvictControl (Provision User, Object None) 0, NV => evict::evict_control;
    0x122 NV_UndefineSpace (Provision User, NvIndex None) 0, NV => nv::undefine;
    0x126 Clear (ClearAuth User) 0, NV | EXTENSIVE => hierarchy::clear;
    0x129 HierarchyChangeAuth (HierarchyAuth User) DECRYPT, NV => hierarchy::change_auth;
    0x12a NV_DefineSpace (Provision User) DECRYPT, NV => nv::define;
    0x131 CreatePrimary (Hierarchy User) BOTH | HANDLE, 0 => create::create_primary;
    0x134 NV_Increment (NvAuth User, NvIndex None) 0, NV => nv::increment;
    0x135 NV_SetBits (NvAuth User, NvIndex None) 0, NV => nv::set_bits;
    0x136 NV_Extend (NvAuth User, NvIndex None) DECRYPT, NV => nv::extend;
    0x137 NV_Write (NvAuth User, NvIndex None) DECRYPT, NV => nv::write;
    0x138 NV_WriteLock (NvAuth User, NvIndex None) 0, NV => nv::write_lock;
    0x139 DictionaryAttackLockReset (Lockout User) 0, NV => hierarchy::lock_reset;
    0x13a DictionaryAttackParameters (Lockout User) 0, NV => hierarchy::lockout_parameters;
    0x13c PCR_Event (PcrOrNull User) DECRYPT, NV => pcr::event;
    0x13d PCR_Reset (Pcr User) 0, NV => pcr::reset;
    0x143 SelfTest () 0, NV => startup::self_test;
    0x144 Startup () NO_SESSIONS, NV => startup::startup;
    0x145 Shutdown () 0, NV => startup::shutdown;
    0x146 StirRandom () DECRYPT, NV => startup::stir_random;
    0x147 ActivateCredential (Object Admin, Object User) BOTH, 0 => credential::activate;
    0x148 Certify (Object Admin, ObjectOrNull User) BOTH, 0 => attest::certify;
    0x149 PolicyNV (NvAuth User, NvIndex None, Policy None) DECRYPT, 0 => policy::nv;
    0x14e NV_Read (NvAuth User, NvIndex None) ENCRYPT, 0 => nv::read;
    0x14f NV_ReadLock (NvAuth User, NvIndex None) 0, NV => nv::read_lock;
    0x151 PolicySecret (Entity User, Policy None) BOTH, 0 => policy::secret;
    0x153 Create (Object User) BOTH, 0 => create::create;
    0x157 Load (Object User) BOTH | HANDLE, 0 => create::load;
    0x158 Quote (ObjectOrNull User) BOTH, 0 => attest::quote;
    0x15e Unseal (Object User) ENCRYPT, 0 => object::unseal;
    0x161 ContextLoad () NO_SESSIONS | HANDLE, 0 => context::load;
    0x162 ContextSave (Context None) NO_SESSIONS, 0 => context::save;
    0x165 FlushContext () NO_SESSIONS, 0 => context::flush;
    0x167 LoadExternal () BOTH | HANDLE, 0 => create::load_external;
    0x168 MakeCredential (Object None) BOTH, 0 => credential::make;
    0x169 NV_ReadPublic (NvIndex None) ENCRYPT, 0 => nv::read_public;
    0x16a PolicyAuthorize (Policy None) DECRYPT, 0 => policy::authorize;
    0x16b PolicyAuthValue (Policy None) 0, 0 => policy::auth_value;
    0x16c PolicyCommandCode (Policy None) 0, 0 => policy::command_code;
    0x171 PolicyOR (Policy None) 0, 0 => policy::or;
    0x173 ReadPublic (Object None) ENCRYPT, 0 => object::read_public;
    0x176 StartAuthSession (ObjectOrNull None, EntityOrNull None) BOTH | HANDLE, 0 => session::start;
    0x177 VerifySignature (Object None) DECRYPT, 0 => verify::verify_signature;
    0x17a GetCapability () 0, 0 => capability::get;
    0x17b GetRandom () ENCRYPT, 0 => startup::get_random;
    0x17c GetTestResult () ENCRYPT, 0 => startup::test_result;
    0x17e PCR_Read () 0, 0 => pcr::read;
    0x17f PolicyPCR (Policy None) DECRYPT, 0 => policy::pcr;
    0x180 PolicyRestart (Policy None) 0, 0 => policy::restart;
    0x181 ReadClock () 0, 0 => startup::read_clock;
    0x182 PCR_Extend (PcrOrNull User) 0, NV => pcr::extend;
    0x189 PolicyGetDigest (Policy None) ENCRYPT, 0 => policy::get_digest;
    0x18c PolicyPassword (Policy None) 0, 0 => policy::password;
};

/// TPMA_CC.
pub(super) fn attributes(command: &Command) -> u32 {
    let handles = u32::try_from(command.handles.len()).unwrap_or(0);
    command.code | command.flags | handles << 25 | u32::from(command.gives_handle) << 28
}

pub(super) fn find(code: u32) -> Option<&'static Command> {
    COMMANDS.binary_search_by_key(&code, |command| command.code).ok().and_then(|index| COMMANDS.get(index))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_sorted_and_the_documentation_lists_it() {
        assert!(COMMANDS.is_sorted_by_key(|command| command.code));
        let documentation = include_str!("mod.rs");
        let listed: Vec<&str> = documentation
            .lines()
            .skip_while(|line| !line.contains("<!-- commands -->"))
            .skip(1)
            .take_while(|line| !line.contains("<!-- end -->"))
            .flat_map(|line| line.trim_start_matches("//!").split([' ', ',', '.']))
            .filter(|word| !word.is_empty())
            .collect();
        let mut names: Vec<&str> = COMMANDS.iter().map(|command| command.name).collect();
        names.sort_unstable();
        assert_eq!(listed, names);
    }
}
