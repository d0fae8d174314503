//! A small PE32+ driver for the tests of this module; they change what they need with [`Sample::set32`] and its like.
//!
//! ```text
//! 0x000 headers  0x400 .text  0x600 .data (imports, relocations, version, PDB)  0x800 end
//! ```

#![expect(clippy::arithmetic_side_effects, clippy::as_conversions, clippy::indexing_slicing, clippy::unwrap_used, reason = "tests")]
#![expect(clippy::cast_possible_truncation, reason = "tests")]

use crate::{crypto::digest, digest::DigestAlg};

pub(crate) const E_LFANEW: usize = 0x3C;
pub(crate) const COFF: usize = 0x84;
pub(crate) const OPTIONAL: usize = 0x98;
pub(crate) const CHECKSUM: usize = OPTIONAL + 64;
pub(crate) const DIRECTORY_COUNT: usize = OPTIONAL + 108;
pub(crate) const CERTIFICATE_ENTRY: usize = OPTIONAL + 112 + 4 * 8;
pub(crate) const SECTIONS: usize = OPTIONAL + 240;
pub(crate) const END: usize = 0x800;

/// A DER element that stands for a PKCS#7 blob: 9 bytes, so that its entry is 17 bytes long.
pub(crate) const BLOB: [u8; 9] = [0x30, 7, 1, 2, 3, 4, 5, 6, 7];

#[derive(Clone, Debug)]
pub(crate) struct Sample(pub(crate) Vec<u8>);

impl Sample {
    pub(crate) fn new() -> Self {
        let mut s = Self((0..END).map(|at| if at < 0x400 { 0 } else { (at * 7 + at / 256) as u8 }).collect());
        s.0[..2].copy_from_slice(b"MZ");
        s.set32(E_LFANEW, 0x80);
        s.set32(0x80, 0x4550);
        s.set16(COFF, 0x8664);
        s.set16(COFF + 2, 2);
        s.set32(COFF + 4, 0x5F00_0000);
        s.set16(COFF + 16, 240);
        s.set16(COFF + 18, 0x22);
        s.set16(OPTIONAL, 0x20B);
        s.set32(OPTIONAL + 16, 0x1000);
        s.set32(OPTIONAL + 24, 0x1_0000);
        s.set32(OPTIONAL + 28, 0x1);
        s.set32(OPTIONAL + 32, 0x1000);
        s.set32(OPTIONAL + 36, 0x200);
        s.set32(OPTIONAL + 56, 0x3000);
        s.set32(OPTIONAL + 60, 0x400);
        s.set16(OPTIONAL + 68, 1);
        s.set16(OPTIONAL + 70, 0x0160);
        s.set32(DIRECTORY_COUNT, 16);
        s.section(0, b".text\0\0\0", [0x1F0, 0x1000, 0x200, 0x400], 0x6000_0020);
        s.section(1, b".data\0\0\0", [0x200, 0x2000, 0x200, 0x600], 0xC000_0040);
        s
    }

    /// With imports, relocations, a version resource and a PDB name in `.data`.
    pub(crate) fn with_tables() -> Self {
        let mut s = Self::new();
        s.0[0x600..0x800].fill(0);
        // imports: one descriptor, lookup table at 0x2030, slots at 0x2050, names at 0x2070
        s.directory(1, 0x2000, 0x28);
        for (at, value) in [(0x600, 0x2030), (0x60C, 0x2070), (0x610, 0x2050)] {
            s.set32(at, value);
        }
        for table in [0x630, 0x650] {
            s.set32(table, 0x2080);
            s.set32(table + 8, 5);
            s.0[table + 15] = 0x80;
        }
        s.bytes(0x670, b"NTOSKRNL.exe\0");
        s.bytes(0x682, b"ExAllocatePool\0");
        s.directory(12, 0x2050, 0x18);
        // relocations: DIR64 at 0x1010 and filler
        s.directory(5, 0x20A0, 12);
        s.set32(0x6A0, 0x1000);
        s.set32(0x6A4, 12);
        s.set16(0x6A8, 0xA010);
        // debug directory and CodeView record
        s.directory(6, 0x20B0, 28);
        s.set32(0x6BC, 2);
        s.set32(0x6C0, 32);
        s.set32(0x6C8, 0x6D0);
        s.bytes(0x6D0, b"RSDS");
        s.bytes(0x6E8, b"a\\b.pdb\0");
        // resources: type 16 → name 1 → language 1033 → data
        s.directory(2, 0x20F0, 0x100);
        for (table, id, to) in [(0x6F0, 16, 0x8000_0018_u32), (0x708, 1, 0x8000_0030), (0x720, 1033, 0x48)] {
            s.set16(table + 14, 1);
            s.set32(table + 16, id);
            s.set32(table + 20, to);
        }
        s.set32(0x738, 0x2148);
        s.set32(0x73C, 92);
        s.bytes(0x74E, &b"VS_VERSION_INFO".map(|b| [b, 0]).concat());
        for (at, value) in [(0x770, 0xFEEF_04BD), (0x778, 0x000A_0001), (0x77C, 0x0002_0003), (0x780, 0x000B_0000), (0x784, 7)] {
            s.set32(at, value);
        }
        s
    }

    /// With a delay-load descriptor in `.data` for what [`with_tables`](Self::with_tables) imports at load.
    pub(crate) fn delay_loading(mut self) -> Self {
        self.directory(13, 0x21B0, 0x40);
        for (at, value) in [(0x7B0, 1), (0x7B4, 0x2070), (0x7BC, 0x2050), (0x7C0, 0x2030)] {
            self.set32(at, value);
        }
        self
    }

    /// With exports at the start of `.text`: by ordinals 7 and 9 an address in `.text` and one in `.data`, by 10 and 11 forwarders.
    pub(crate) fn with_exports() -> Self {
        let mut s = Self::with_tables();
        s.0[0x400..0x500].fill(0);
        s.directory(0, 0x1020, 0xD0);
        for (at, value) in [(16, 7), (20, 5), (24, 4), (28, 0x1050), (32, 0x1070), (36, 0x1080)] {
            s.set32(0x420 + at, value);
        }
        for (at, value) in [0x1100, 0, 0x2100, 0x10C0, 0x10D0].into_iter().enumerate() {
            s.set32(0x450 + at * 4, value);
        }
        for (at, (name, number)) in [(0x1090, 0), (0x1098, 2), (0x10A0, 3), (0x10A8, 4)].into_iter().enumerate() {
            s.set32(0x470 + at * 4, name);
            s.set16(0x480 + at * 2, number);
        }
        for (at, text) in [(0x490, "Run"), (0x498, "Table"), (0x4A0, "Alias"), (0x4A8, "Number")] {
            s.bytes(at, text.as_bytes());
        }
        s.bytes(0x4C0, b"OTHER.Start");
        s.bytes(0x4D0, b"other.#3");
        s
    }

    /// With a load configuration at the start of `.text`, whose words are at the end of `.data`, and relocations for its addresses.
    pub(crate) fn with_load_config() -> Self {
        let mut s = Self::with_tables();
        s.0[0x400..0x500].fill(0);
        s.directory(10, 0x1000, 0x94);
        s.set32(0x400, 0x94);
        s.set32(0x490, 0x100);
        for (field, word) in [(0x58, 0x2190_u64), (0x70, 0x2198), (0x78, 0x21A0)] {
            s.bytes(0x400 + field, &(0x1_0001_0000 + word).to_le_bytes());
        }
        s.bytes(0x790, &0x2B99_2DDF_A232_u64.to_le_bytes());
        s
    }

    pub(crate) fn set16(&mut self, at: usize, value: u16) {
        self.bytes(at, &value.to_le_bytes());
    }

    pub(crate) fn set32(&mut self, at: usize, value: u32) {
        self.bytes(at, &value.to_le_bytes());
    }

    pub(crate) fn bytes(&mut self, at: usize, bytes: &[u8]) {
        self.0[at..at + bytes.len()].copy_from_slice(bytes);
    }

    pub(crate) fn directory(&mut self, which: usize, address: u32, size: u32) {
        self.set32(OPTIONAL + 112 + which * 8, address);
        self.set32(OPTIONAL + 116 + which * 8, size);
    }

    /// `[VirtualSize, VirtualAddress, SizeOfRawData, PointerToRawData]`
    pub(crate) fn section(&mut self, which: usize, name: &[u8; 8], place: [u32; 4], characteristics: u32) {
        let at = SECTIONS + which * 40;
        self.bytes(at, name);
        for (n, value) in place.into_iter().enumerate() {
            self.set32(at + 8 + n * 4, value);
        }
        self.set32(at + 36, characteristics);
    }

    /// Appends a certificate table of these entries: wRevision, wCertificateType, payload.
    pub(crate) fn sign(&mut self, entries: &[(u16, u16, &[u8])]) {
        let start = self.0.len();
        for (revision, kind, payload) in entries {
            self.0.extend_from_slice(&(payload.len() as u32 + 8).to_le_bytes());
            self.0.extend_from_slice(&revision.to_le_bytes());
            self.0.extend_from_slice(&kind.to_le_bytes());
            self.0.extend_from_slice(payload);
            self.0.resize(self.0.len().next_multiple_of(8), 0);
        }
        self.directory(4, start as u32, (self.0.len() - start) as u32);
    }

    /// Changes the certificate table's size in the directory.
    pub(crate) fn grow_table(&mut self, by: u32) {
        let size = u32::from_le_bytes(self.0[CERTIFICATE_ENTRY + 4..CERTIFICATE_ENTRY + 8].try_into().unwrap());
        self.set32(CERTIFICATE_ENTRY + 4, size + by);
    }

    /// The page-hash table as signers make it, written down independently of the reader: `pages` are offsets and lengths.
    pub(crate) fn page_table(&self, alg: DigestAlg, pages: &[(usize, usize)]) -> Vec<u8> {
        let mut table = Vec::new();
        let mut end = 0;
        for &(offset, len) in pages {
            let mut page: Vec<u8> = (offset..offset + len)
                .filter(|at| !(CHECKSUM..CHECKSUM + 4).contains(at) && !(CERTIFICATE_ENTRY..CERTIFICATE_ENTRY + 8).contains(at))
                .map(|at| self.0[at])
                .collect();
            page.resize(page.len() + 4096 - len, 0);
            table.extend_from_slice(&(offset as u32).to_le_bytes());
            table.extend_from_slice(digest(alg, &[&page]).as_bytes());
            end = offset + len;
        }
        table.extend_from_slice(&(end as u32).to_le_bytes());
        table.resize(table.len() + alg.len(), 0);
        table
    }
}
