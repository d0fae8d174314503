//! HVCI compatibility, rows 88–93: what loads without memory integrity and not with it.

use hvci_engine::{facts::FileKind::PeDriver, finding::Code};
use object::pe;

use super::{HVCI, KERNEL, Studio, accept, attach, refuse};
use crate::synth::{
    Result,
    layout::{Layout, write32},
    pe::{CODE, CONST, DATA, INIT, Image},
};

pub(super) fn add(studio: &mut Studio<'_>) -> Result<()> {
    let of = |name| Image::of(PeDriver, name);
    let good = Image { characteristics: of("").characteristics | pe::IMAGE_DLLCHARACTERISTICS_FORCE_INTEGRITY, ..of("lint-clean") };
    studio.add("lint/clean.sys", &[88, 89, 90, 91, 92, 93], "nothing for the lint to say", studio.whql(&good)?, vec![accept(HVCI, &[])]);
    studio.starter();

    let sections = |index: usize, marks: u32| {
        let mut sections = of("").sections;
        sections[index].1 = marks;
        sections
    };
    let executable_data = Image { sections: sections(2, DATA | pe::IMAGE_SCN_MEM_EXECUTE), ..of("wx-data") };
    let writable_init = Image { sections: sections(3, INIT | pe::IMAGE_SCN_MEM_WRITE), ..of("wx-init") };
    let shared = Image { sections: sections(2, DATA | pe::IMAGE_SCN_MEM_SHARED), ..of("shared") };
    let unaligned = Image { section_alignment: 0x20, file_alignment: 0x20, relocations: Vec::new(), ..of("unaligned") };
    let arm64 = Image { machine: pe::IMAGE_FILE_MACHINE_ARM64, sections: sections(2, DATA | pe::IMAGE_SCN_MEM_EXECUTE), ..of("arm64-wx") };
    let iat = Image { import_section: 0, ..of("iat") };
    let all = Image {
        sections: vec![(".text", CODE | pe::IMAGE_SCN_MEM_WRITE, 0x800), (".rdata", CONST, 0x200)],
        section_alignment: 0x20,
        file_alignment: 0x20,
        import_section: 0,
        relocations: Vec::new(),
        characteristics: 0,
        ..of("everything")
    };
    for (name, image, rows, why, codes, starter) in [
        ("wx-data", executable_data, &[88][..], "a data section that is executable", &[Code::ImageWx][..], true),
        (
            "wx-init",
            writable_init,
            &[88, 93],
            "an INIT section that is writable, as old drivers have",
            &[Code::ImageWx, Code::ImageInitExecutable],
            true,
        ),
        ("arm64-wx-data", arm64, &[88], "the same for ARM64", &[Code::ImageWx], false),
        ("unaligned", unaligned, &[89], "SectionAlignment 0x20", &[Code::ImageSectionAlignment], true),
        ("iat-in-text", iat, &[90], "the import address table in .text", &[Code::ImageIatExecutable], false),
        ("shared-writable", shared, &[93], "a section that is shared and writable", &[Code::ImageSharedWritable], false),
        (
            "everything",
            all,
            &[88, 89, 90, 93],
            "all of it at once",
            &[Code::ImageWx, Code::ImageSectionAlignment, Code::ImageIatExecutable, Code::ImageNoNxCompat],
            false,
        ),
    ] {
        let bytes = studio.whql(&image)?;
        studio.add(&format!("lint/{name}.sys"), rows, why, bytes, vec![accept(KERNEL, codes), refuse(HVCI, codes)]);
        if starter {
            studio.starter();
        }
    }

    // noted, and loaded all the same
    let mut straddles = of("straddles");
    straddles.sections[2].2 = 0x1100;
    straddles.relocations = vec![(2, 0x10), (2, 0xFFC)];
    let risky = Image { imports: ("ntoskrnl.exe", vec!["ExAllocatePool", "ExAllocatePoolWithTag", "MmMapIoSpace"]), ..of("risky") };
    let no_nx = Image { characteristics: pe::IMAGE_DLLCHARACTERISTICS_DYNAMIC_BASE, ..of("no-nx") };
    for (name, image, rows, why, codes) in [
        ("relocation-straddles", straddles, &[91][..], "a relocation across two pages", &[Code::ImageRelocStraddle][..]),
        ("risky-imports", risky, &[92], "imports functions that can ask for executable memory", &[Code::ImageRiskyImport]),
        ("no-nx-compat", no_nx, &[93], "NX_COMPAT is not set", &[Code::ImageNoNxCompat]),
        ("init", of("init"), &[93], "a discardable section that is executable and not writable", &[Code::ImageInitExecutable]),
    ] {
        let bytes = studio.whql(&image)?;
        studio.add(&format!("lint/{name}.sys"), rows, why, bytes, vec![accept(HVCI, codes)]);
    }

    // tables that cannot be read: the lint cannot vouch for them
    let base = of("malformed-tables").build()?;
    let directories = Layout::of(&base)?.directory_count + 4;
    for (name, directory, why, rows, code) in [
        ("imports-malformed", 1, "an import table outside the image", &[90][..], Code::ImageImports),
        ("relocations-malformed", 5, "a relocation table outside the image", &[91], Code::ImageRelocations),
    ] {
        let mut image = base.clone();
        write32(&mut image, directories + 8 * directory, 0x7FFF_F000)?;
        let bytes = attach(&image, [studio.blob(&image, "whql", |_| {})?])?;
        studio.add(&format!("lint/{name}.sys"), rows, why, bytes, vec![refuse(HVCI, &[code])]);
    }
    Ok(())
}
