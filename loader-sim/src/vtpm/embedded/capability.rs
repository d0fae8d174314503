//! TPM2_GetCapability: what this TPM is and has (Part 2, 6.13; Part 3, 30.2).

use super::commands::{COMMANDS, Call, Reply, attributes};
use super::crypt::Hash;
use super::entity::handle_type;
use super::hierarchy::{ENDORSEMENT, LOCKOUT, NULL, OWNER, PASSWORD, PLATFORM, PLATFORM_NV};
use super::object::SLOTS;
use super::public::{ALG_AES, ALG_CFB, ALG_ECC, ALG_ECDSA, ALG_HMAC, ALG_KEYEDHASH, ALG_NULL, ALG_XOR, CURVE_P256};
use super::rc;
use super::session::{ACTIVE, LOADED};
use super::state::{SU_NONE, State};
use super::wire::{Params, Put, Result};
use super::{evict, nv, pcr};
use crate::vtpm::MAX_MESSAGE;

/// Of this implementation.
pub(super) const FIRMWARE_VERSION: u64 = 1 << 32;

/// TPM_CAP.
const ALGS: u32 = 0;
const HANDLES: u32 = 1;
const CAP_COMMANDS: u32 = 2;
const PP_COMMANDS: u32 = 3;
const AUDIT_COMMANDS: u32 = 4;
const PCRS: u32 = 5;
const TPM_PROPERTIES: u32 = 6;
const PCR_PROPERTIES: u32 = 7;
const ECC_CURVES: u32 = 8;
const AUTH_POLICIES: u32 = 9;
const ACT: u32 = 10;
const VENDOR_PROPERTY: u32 = 0x100;

/// Bytes of a list: MAX_CAP_BUFFER without what is before it.
const MAX_DATA: usize = 1024 - 8;

/// TPMA_ALGORITHM of what there is: asymmetric 1, symmetric 2, hash 4, object 8, signing 0x100, encrypting 0x200, method 0x400.
const ALGORITHMS: [(u16, u32); 14] = [
    (0x04, 0x04),
    (ALG_HMAC, 0x104),
    (ALG_AES, 0x02),
    (ALG_KEYEDHASH, 0x30c),
    (ALG_XOR, 0x06),
    (0x0b, 0x04),
    (0x0c, 0x04),
    (0x0d, 0x04),
    (ALG_ECDSA, 0x101),
    (0x19, 0x401),
    (0x20, 0x404),
    (0x22, 0x404),
    (ALG_ECC, 0x09),
    (ALG_CFB, 0x202),
];

pub(super) fn get(tpm: &mut State, _: &Call, mut p: Params<'_>) -> Result<Reply> {
    let capability = p.next(|r| {
        let capability = r.u32()?;
        if capability <= ACT || capability == VENDOR_PROPERTY { Ok(capability) } else { Err(rc::VALUE) }
    })?;
    let property = p.next(|r| r.u32())?;
    let count = usize::try_from(p.next(|r| r.u32())?).unwrap_or(usize::MAX);
    p.end()?;
    let list = match capability {
        ALGS => List::new(
            6,
            ALGORITHMS.iter().map(|&(id, attributes)| (u32::from(id), [&id.to_be_bytes()[..], &attributes.to_be_bytes()].concat())),
        ),
        HANDLES => List::new(4, tpm.handles(property)?.into_iter().map(|(key, handle)| (key, handle.to_be_bytes().to_vec()))),
        CAP_COMMANDS => List::new(4, COMMANDS.iter().map(|command| (command.code, attributes(command).to_be_bytes().to_vec()))),
        PP_COMMANDS | AUDIT_COMMANDS => List::new(4, std::iter::empty()),
        ACT => {
            // TPM_RH_ACT_0 to _F, of which there is none
            if !(0x4000_0110..=0x4000_011f).contains(&property) {
                return Err(rc::VALUE.parameter(2));
            }
            List::new(12, std::iter::empty())
        }
        PCRS => {
            if property != 0 {
                return Err(rc::VALUE.parameter(2));
            }
            return Ok(put_banks(count));
        }
        TPM_PROPERTIES => {
            // a group at a time
            let property = property.max(0x100);
            let group = property & !0xff;
            let properties = tpm.properties().into_iter().filter(|(tag, _)| tag & !0xff == group);
            List::new(8, properties.map(|(tag, value)| (tag, [tag.to_be_bytes(), value.to_be_bytes()].concat())))
        }
        PCR_PROPERTIES => List::new(8, pcr_properties()),
        ECC_CURVES => List::new(2, std::iter::once((u32::from(CURVE_P256), CURVE_P256.to_be_bytes().to_vec()))),
        AUTH_POLICIES => {
            if handle_type(property) != 0x40 {
                return Err(rc::VALUE.parameter(2));
            }
            List::new(70, tpm.policies())
        }
        _ => return Err(rc::VALUE.parameter(1)),
    };
    Ok(list.reply(capability, property, count))
}

/// Entries with what they are sorted by.
struct List {
    max: usize,
    entries: Vec<(u32, Vec<u8>)>,
}

impl List {
    fn new(entry_size: usize, entries: impl Iterator<Item = (u32, Vec<u8>)>) -> Self {
        Self { max: MAX_DATA / entry_size, entries: entries.collect() }
    }

    /// From a property on, so many, and whether there are more.
    fn reply(self, capability: u32, property: u32, count: usize) -> Reply {
        let count = count.min(self.max);
        let mut rest = self.entries.iter().filter(|(key, _)| *key >= property);
        let given: Vec<&(u32, Vec<u8>)> = rest.by_ref().take(count).collect();
        let mut reply = Reply::default();
        reply.body.u8(u8::from(rest.next().is_some()));
        reply.body.u32(capability);
        reply.body.count(given.len());
        for (_, entry) in given {
            reply.body.bytes(entry);
        }
        reply
    }
}

/// All banks with all PCRs, or none if none were asked for.
fn put_banks(count: usize) -> Reply {
    let mut reply = Reply::default();
    let banks: &[Hash] = if count == 0 { &[] } else { &Hash::ALL };
    reply.body.u8(u8::from(count == 0));
    reply.body.u32(PCRS);
    reply.body.count(banks.len());
    for bank in banks {
        reply.body.u16(bank.id());
        reply.body.bytes(&[3, 0xff, 0xff, 0xff]);
    }
    reply
}

/// TPM_PT_PCR: a bit a PCR.
fn pcr_properties() -> impl Iterator<Item = (u32, Vec<u8>)> {
    let tags = (0..=10).chain(0x11..=0x14);
    tags.map(|tag: u32| {
        let bits = (0..pcr::COUNT)
            .filter(|&number| {
                let rule = pcr::rule(number);
                // save, then extend and reset by turns, for each locality
                let locality = 1_u8.checked_shl(tag.saturating_sub(1) / 2).unwrap_or(0);
                match tag {
                    0 => rule.saved,
                    1..=10 if tag % 2 == 1 => rule.extend & locality != 0,
                    1..=10 => rule.reset & locality != 0,
                    0x11 => !rule.counts,
                    0x12 => rule.reset & 0x10 != 0,
                    // a group with policy and one with authorisation value, the same
                    _ => (20..=22).contains(&number),
                }
            })
            .fold(0_u32, |bits, number| bits | 1 << number);
        let [a, b, c, _] = bits.to_le_bytes();
        (tag, [&tag.to_be_bytes()[..], &[3, a, b, c]].concat())
    })
}

impl State {
    /// Of the type that the property has, with what they are sorted by: sessions of both types by the low bits.
    fn handles(&self, property: u32) -> Result<Vec<(u32, u32)>> {
        let kind = property & 0xff00_0000;
        let handles = match handle_type(property) {
            0x00 => (0..pcr::COUNT).collect(),
            0x01 => self.nv.handles().collect(),
            0x02 => self.session_handles(true),
            0x03 => self.session_handles(false),
            0x40 => vec![OWNER, NULL, PASSWORD, LOCKOUT, ENDORSEMENT, PLATFORM, PLATFORM_NV],
            0x80 => self.objects.handles(),
            0x81 => self.persistent.keys().copied().collect(),
            _ => return Err(rc::HANDLE.parameter(2)),
        };
        Ok(handles.into_iter().map(|handle| (kind | handle & 0x00ff_ffff, handle)).collect())
    }

    fn policies(&self) -> impl Iterator<Item = (u32, Vec<u8>)> {
        [OWNER, LOCKOUT, ENDORSEMENT, PLATFORM].into_iter().map(|handle| {
            let mut entry = handle.to_be_bytes().to_vec();
            match self.protected(handle).and_then(|protected| Some((protected.policy_alg?, &protected.policy))) {
                Some((hash, policy)) => {
                    entry.u16(hash.id());
                    entry.bytes(policy);
                }
                None => entry.u16(ALG_NULL),
            }
            (handle, entry)
        })
    }

    /// TPM_PT, sorted.
    fn properties(&self) -> Vec<(u32, u32)> {
        let number = |value: usize| u32::try_from(value).unwrap_or(u32::MAX);
        let text = |text: &[u8; 4]| u32::from_be_bytes(*text);
        let commands = number(COMMANDS.len());
        let message = number(MAX_MESSAGE);
        let loaded = self.session_handles(true).len();
        let mut all = vec![
            (0x100, text(b"2.0\0")),
            (0x101, 0),
            // revision 1.64 of day 75 of 2021
            (0x102, 164),
            (0x103, 75),
            (0x104, 2021),
            (0x105, text(b"HVCI")),
            (0x106, text(b"HVCI")),
            (0x107, text(b" sim")),
            (0x108, 0),
            (0x109, 0),
            (0x10a, 1),
            (0x10b, u32::try_from(FIRMWARE_VERSION >> 32).unwrap_or(0)),
            (0x10c, 0),
            (0x10d, 1024),
            (0x10e, number(SLOTS)),
            (0x10f, 7),
            (0x110, number(LOADED)),
            (0x111, number(ACTIVE)),
            (0x112, pcr::COUNT),
            (0x113, 3),
            (0x114, 0xffff),
            (0x116, 0),
            (0x117, 2048),
            (0x118, 6),
            (0x119, 1 << 12),
            (0x11a, 0x0d),
            (0x11b, u32::from(ALG_AES)),
            (0x11c, 256),
            (0x11d, 0xff),
            (0x11e, message),
            (0x11f, message),
            (0x120, 64),
            (0x121, 2692),
            (0x122, 404),
            (0x123, text(b"2.0\0")),
            (0x124, 0),
            (0x125, 164),
            (0x126, 75),
            (0x127, 2021),
            (0x128, 128),
            (0x129, commands),
            (0x12a, commands),
            (0x12b, 0),
            (0x12c, number(nv::MAX_BUFFER)),
            (0x12d, 0),
            (0x12e, 1024),
        ];
        let lockout = &self.lockout;
        let flag = |set: bool, bit: u32| u32::from(set) << bit;
        let permanent = flag(!self.hierarchies.owner.auth.0.is_empty(), 0)
            | flag(!self.hierarchies.endorsement.auth.0.is_empty(), 1)
            | flag(!self.hierarchies.lockout.auth.0.is_empty(), 2)
            | flag(lockout.is_locked(), 9)
            | flag(true, 10);
        let startup = flag(self.platform_enabled, 0)
            | flag(self.clear.owner_enabled, 1)
            | flag(self.clear.endorsement_enabled, 2)
            | flag(self.clear.platform_nv_enabled, 3)
            | flag(self.previous_orderly != SU_NONE, 31);
        all.extend([
            (0x200, permanent),
            (0x201, startup),
            (0x202, number(self.nv.handles().count())),
            (0x203, number(loaded)),
            (0x204, number(LOADED.saturating_sub(loaded))),
            (0x205, number(self.active_sessions())),
            (0x206, number(ACTIVE.saturating_sub(self.active_sessions()))),
            (0x207, number(SLOTS.saturating_sub(self.objects.handles().len()))),
            (0x208, number(self.persistent.len())),
            (0x209, number(evict::MAX.saturating_sub(self.persistent.len()))),
            (0x20a, number(self.nv.counters())),
            (0x20b, 25),
            (0x20c, 0),
            (0x20d, 1),
            (0x20e, lockout.failed_tries),
            (0x20f, lockout.max_tries),
            (0x210, lockout.recovery),
            (0x211, lockout.lockout_recovery),
            (0x212, 0),
            (0x213, 0),
            (0x214, 0),
        ]);
        all
    }
}
