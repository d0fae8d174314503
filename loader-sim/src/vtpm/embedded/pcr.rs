//! PCRs: four banks of 24, all active, with the rules of the PC Client profile for locality 0.

use super::commands::{Call, Reply};
use super::crypt::Hash;
use super::hierarchy::NULL;
use super::rc;
use super::state::State;
use super::stored::Stored;
use super::wire::{Params, Put, Reader, Result};

pub(super) const COUNT: u32 = 24;

/// Most bytes of TPM2_PCR_Event's data.
const MAX_EVENT: usize = 1024;
/// Most values that one TPM2_PCR_Read gives.
const MAX_READ: usize = 8;

/// Which localities may reset and extend a PCR, a bit each; whether a saved state keeps it; whether changing it makes policies over PCRs stale.
pub(super) struct Rule {
    pub(super) reset: u8,
    pub(super) extend: u8,
    pub(super) saved: bool,
    pub(super) counts: bool,
}

pub(super) fn rule(pcr: u32) -> Rule {
    let (reset, extend) = match pcr {
        0..=15 => (0, 0x1f),
        17 | 18 => (0x10, 0x1c),
        19 => (0x10, 0x0c),
        20 => (0x14, 0x0e),
        21 | 22 => (0x14, 0x04),
        _ => (0x0f, 0x1f),
    };
    Rule { reset, extend, saved: pcr < 16, counts: !matches!(pcr, 16 | 21..=23) }
}

/// Locality 0 as a bit.
const LOCALITY: u8 = 1;

/// The banks, one after the other.
#[derive(Clone, Debug)]
pub(super) struct Pcrs {
    sha1: [[u8; 20]; 24],
    sha256: [[u8; 32]; 24],
    sha384: [[u8; 48]; 24],
    sha512: [[u8; 64]; 24],
}

super::stored::stored!(Pcrs { sha1 sha256 sha384 sha512 });

impl Pcrs {
    /// As after a TPM reset: ones where locality 4 may reset.
    pub(super) fn new() -> Self {
        let mut pcrs = Self { sha1: [[0; 20]; 24], sha256: [[0; 32]; 24], sha384: [[0; 48]; 24], sha512: [[0; 64]; 24] };
        for pcr in 0..COUNT {
            if rule(pcr).reset & 0x10 != 0 {
                pcrs.set(pcr, 0xff);
            }
        }
        pcrs
    }

    pub(super) fn get(&self, bank: Hash, pcr: u32) -> &[u8] {
        fn of<const N: usize>(bank: &[[u8; N]], pcr: u32) -> &[u8] {
            usize::try_from(pcr).ok().and_then(|pcr| bank.get(pcr)).map_or(&[], |value| value)
        }
        match bank {
            Hash::Sha1 => of(&self.sha1, pcr),
            Hash::Sha256 => of(&self.sha256, pcr),
            Hash::Sha384 => of(&self.sha384, pcr),
            Hash::Sha512 => of(&self.sha512, pcr),
        }
    }

    fn get_mut(&mut self, bank: Hash, pcr: u32) -> &mut [u8] {
        fn of<const N: usize>(bank: &mut [[u8; N]], pcr: u32) -> &mut [u8] {
            usize::try_from(pcr).ok().and_then(|pcr| bank.get_mut(pcr)).map_or(&mut [], |value| value)
        }
        match bank {
            Hash::Sha1 => of(&mut self.sha1, pcr),
            Hash::Sha256 => of(&mut self.sha256, pcr),
            Hash::Sha384 => of(&mut self.sha384, pcr),
            Hash::Sha512 => of(&mut self.sha512, pcr),
        }
    }

    fn set(&mut self, pcr: u32, byte: u8) {
        for bank in Hash::ALL {
            self.get_mut(bank, pcr).fill(byte);
        }
    }

    fn extend(&mut self, bank: Hash, pcr: u32, digest: &[u8]) {
        let value = bank.digest(&[self.get(bank, pcr), digest]);
        self.get_mut(bank, pcr).copy_from_slice(&value);
    }

    /// What a saved state keeps.
    pub(super) fn save(&self) -> Vec<u8> {
        let mut out = Vec::new();
        self.store(&mut out);
        out
    }

    pub(super) fn resume(&mut self, saved: &[u8]) {
        let Some(saved) = Self::restore(&mut Reader(saved)) else { return };
        for pcr in (0..COUNT).filter(|&pcr| rule(pcr).saved) {
            for bank in Hash::ALL {
                self.get_mut(bank, pcr).copy_from_slice(saved.get(bank, pcr));
            }
        }
    }
}

/// TPML_PCR_SELECTION: for each bank chosen, a bit a PCR.
#[derive(Clone, Debug, Default)]
pub(super) struct Selection(Vec<(Hash, u32)>);

impl Selection {
    pub(super) fn read(r: &mut Reader<'_>) -> Result<Self> {
        let count = r.u32()?;
        if count > 4 {
            return Err(rc::SIZE);
        }
        (0..count)
            .map(|_| {
                let bank = Hash::read(r)?;
                if r.u8()? != 3 {
                    return Err(rc::VALUE);
                }
                let [a, b, c] = r.array()?;
                Ok((bank, u32::from_le_bytes([a, b, c, 0])))
            })
            .collect::<Result<_>>()
            .map(Self)
    }

    pub(super) fn put(&self, out: &mut Vec<u8>) {
        out.count(self.0.len());
        for (bank, bits) in &self.0 {
            out.u16(bank.id());
            let [a, b, c, _] = bits.to_le_bytes();
            out.bytes(&[3, a, b, c]);
        }
    }

    /// Of all values chosen, in order.
    pub(super) fn digest(&self, hash: Hash, pcrs: &Pcrs) -> Vec<u8> {
        let values: Vec<&[u8]> = self
            .0
            .iter()
            .flat_map(|&(bank, bits)| (0..COUNT).filter(move |pcr| bits & (1 << pcr) != 0).map(move |pcr| pcrs.get(bank, pcr)))
            .collect();
        hash.digest(&values)
    }
}

impl State {
    /// Once for every value changed.
    fn pcr_changed(&mut self, pcr: u32) {
        if rule(pcr).counts {
            self.reset.pcr_counter = self.reset.pcr_counter.wrapping_add(1);
        }
    }

    /// At TPM2_Startup: all but those that a resumption keeps change.
    pub(super) fn start_pcrs(&mut self, is_reset: bool, is_resume: bool) {
        if is_reset {
            self.reset.pcr_counter = 0;
        }
        self.pcrs = Pcrs::new();
        if is_resume {
            self.pcrs.resume(&self.clear.pcrs);
        }
        for pcr in (0..COUNT).filter(|&pcr| !is_resume || !rule(pcr).saved) {
            self.pcr_changed(pcr);
        }
    }

    fn extend(&mut self, pcr: u32, bank: Hash, digest: &[u8]) {
        self.pcrs.extend(bank, pcr, digest);
        self.pcr_changed(pcr);
    }
}

/// TPM2_PCR_Extend.
pub(super) fn extend(tpm: &mut State, call: &Call, mut p: Params<'_>) -> Result<Reply> {
    let digests = p.next(|r| {
        let count = r.u32()?;
        if count > 4 {
            return Err(rc::SIZE);
        }
        (0..count)
            .map(|_| {
                let bank = Hash::read(r)?;
                Ok((bank, r.take(bank.size())?))
            })
            .collect::<Result<Vec<_>>>()
    })?;
    p.end()?;
    let pcr = call.handle(0);
    if pcr == NULL {
        return Ok(Reply::default());
    }
    let rule = rule(pcr);
    if rule.extend & LOCALITY == 0 {
        return Err(rc::LOCALITY);
    }
    tpm.disorder |= rule.saved;
    for (bank, digest) in digests {
        tpm.extend(pcr, bank, digest);
    }
    Ok(Reply::default())
}

/// TPM2_PCR_Event.
pub(super) fn event(tpm: &mut State, call: &Call, mut p: Params<'_>) -> Result<Reply> {
    let data = p.next(|r| r.sized(MAX_EVENT))?;
    p.end()?;
    let pcr = call.handle(0);
    if pcr != NULL {
        let rule = rule(pcr);
        if rule.extend & LOCALITY == 0 {
            return Err(rc::LOCALITY);
        }
        tpm.disorder |= rule.saved;
    }
    let mut reply = Reply::default();
    reply.body.count(Hash::ALL.len());
    for bank in Hash::ALL {
        let digest = bank.digest(&[data]);
        reply.body.u16(bank.id());
        reply.body.bytes(&digest);
        if pcr != NULL {
            tpm.extend(pcr, bank, &digest);
        }
    }
    Ok(reply)
}

/// TPM2_PCR_Read.
pub(super) fn read(tpm: &mut State, _: &Call, mut p: Params<'_>) -> Result<Reply> {
    let mut selection = p.next(Selection::read)?;
    p.end()?;
    let mut values = Vec::new();
    for (bank, bits) in &mut selection.0 {
        for pcr in 0..COUNT {
            if *bits & (1 << pcr) == 0 {
                continue;
            }
            // what does not fit is no longer chosen
            if values.len() == MAX_READ {
                *bits &= !(1 << pcr);
            } else {
                values.push(tpm.pcrs.get(*bank, pcr));
            }
        }
    }
    let mut reply = Reply::default();
    reply.body.u32(tpm.reset.pcr_counter);
    selection.put(&mut reply.body);
    reply.body.count(values.len());
    for value in values {
        reply.body.sized(value);
    }
    Ok(reply)
}

/// TPM2_PCR_Reset.
pub(super) fn reset(tpm: &mut State, call: &Call, p: Params<'_>) -> Result<Reply> {
    p.end()?;
    let pcr = call.handle(0);
    let rule = rule(pcr);
    if rule.reset & LOCALITY == 0 {
        return Err(rc::LOCALITY);
    }
    tpm.disorder |= rule.saved;
    tpm.pcrs.set(pcr, 0);
    tpm.pcr_changed(pcr);
    Ok(Reply::default())
}
