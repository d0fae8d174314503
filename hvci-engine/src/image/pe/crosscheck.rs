//! Second opinion: `object` reads the same headers and section table, independently of `goblin`. Where two parsers disagree, a file can be
//! one thing to who checks it and another to who loads it.

use core::fmt;

use object::{
    LittleEndian as LE,
    pe::{ImageDosHeader, ImageNtHeaders32, ImageNtHeaders64},
    read::{
        coff::SectionTable,
        pe::{DataDirectories, ImageNtHeaders, ImageOptionalHeader},
    },
};

use super::{Pe, Section, push};
use crate::{
    bytes::Span,
    finding::{Code, Note},
};

impl Pe<'_> {
    /// `ImageDivergence`, one for each field or section that the two parsers read differently, naming both readings.
    pub(super) fn divergence_notes(&self, notes: &mut Vec<Note>) {
        let read = if self.headers.is_plus { self.compare::<ImageNtHeaders64>(notes) } else { self.compare::<ImageNtHeaders32>(notes) };
        if let Err(error) = read {
            let detail = format!("goblin reads the headers, object refuses them: {error}");
            notes.push(Note::new(Code::ImageDivergence, detail).at(Span::new(self.headers.pe_offset, 4)));
        }
    }

    fn compare<H: ImageNtHeaders>(&self, notes: &mut Vec<Note>) -> object::Result<()> {
        let mut offset = u64::from(ImageDosHeader::parse(self.data)?.nt_headers_offset());
        let (nt, directories) = H::parse(self.data, &mut offset)?;
        let sections = nt.sections(self.data, offset)?;
        self.compare_fields(nt, notes);
        self.compare_directories(&directories, notes);
        self.compare_sections(&sections, notes);
        Ok(())
    }

    fn compare_fields<H: ImageNtHeaders>(&self, nt: &H, notes: &mut Vec<Note>) {
        let (ours, coff, optional) = (&self.headers, nt.file_header(), nt.optional_header());
        let fields = [
            ("Machine", u64::from(ours.machine), u64::from(coff.machine.get(LE))),
            ("TimeDateStamp", u64::from(ours.timestamp), u64::from(coff.time_date_stamp.get(LE))),
            ("Characteristics", u64::from(ours.file_characteristics), u64::from(coff.characteristics.get(LE))),
            ("AddressOfEntryPoint", u64::from(ours.entry), u64::from(optional.address_of_entry_point())),
            ("ImageBase", ours.image_base, optional.image_base()),
            ("SectionAlignment", u64::from(ours.section_alignment), u64::from(optional.section_alignment())),
            ("FileAlignment", u64::from(ours.file_alignment), u64::from(optional.file_alignment())),
            ("SizeOfImage", u64::from(ours.size_of_image), u64::from(optional.size_of_image())),
            ("SizeOfHeaders", u64::from(ours.size_of_headers), u64::from(optional.size_of_headers())),
            ("CheckSum", u64::from(ours.checksum), u64::from(optional.check_sum())),
            ("Subsystem", u64::from(ours.subsystem), u64::from(optional.subsystem())),
            ("DllCharacteristics", u64::from(ours.dll_characteristics), u64::from(optional.dll_characteristics())),
        ];
        for (name, goblin, object) in fields.into_iter().filter(|(_, goblin, object)| goblin != object) {
            diverge(notes, name, &format_args!("{goblin:#x}"), &format_args!("{object:#x}"));
        }
    }

    fn compare_directories(&self, directories: &DataDirectories<'_>, notes: &mut Vec<Note>) {
        for (which, ours) in self.headers.directories.iter().enumerate() {
            let theirs = directories.iter().nth(which).map_or((0, 0), |d| d.address_range());
            if (ours.address, ours.size) != theirs {
                let (goblin, object) = ((ours.address, ours.size), theirs);
                diverge(notes, &format!("data directory {which}"), &format_args!("{goblin:#x?}"), &format_args!("{object:#x?}"));
            }
        }
    }

    fn compare_sections(&self, sections: &SectionTable<'_>, notes: &mut Vec<Note>) {
        if self.sections.len() != sections.len() {
            diverge(notes, "NumberOfSections", &self.sections.len(), &sections.len());
        }
        for (ours, theirs) in self.sections.iter().zip(sections.iter()) {
            let (memory, size) = theirs.pe_address_range();
            let theirs = Section {
                name: theirs.name,
                address: memory,
                memory_size: size,
                file_offset: theirs.pointer_to_raw_data.get(LE),
                file_size: theirs.size_of_raw_data.get(LE),
                characteristics: theirs.characteristics.get(LE),
            };
            if *ours != theirs {
                diverge(notes, &format!("section {}", ours.display_name()), &format_args!("{ours:x?}"), &format_args!("{theirs:x?}"));
            }
        }
    }
}

fn diverge(notes: &mut Vec<Note>, what: &str, goblin: &dyn fmt::Debug, object: &dyn fmt::Debug) {
    push(notes, Code::ImageDivergence, || {
        Note::new(Code::ImageDivergence, format!("{what}: goblin reads {goblin:?}, object {object:?}")).of(what)
    });
}
