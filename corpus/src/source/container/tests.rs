use std::{
    io::{Cursor, Write},
    sync::LazyLock,
};

use proptest::prelude::*;
use zip::write::SimpleFileOptions;

use super::*;
use crate::source::kind::Compression;

const NAME: &str = "p";
const LIMITS: Limits = Limits { max_size: 1 << 20, max_unpacked: 16 << 20, max_nesting: 4 };

/// A stand-in for an image: right magic, and content that compresses badly.
fn image(magic: &[u8], len: usize) -> Vec<u8> {
    let mut state = u32::from(magic[magic.len() - 1]);
    let noise = std::iter::repeat_with(move || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state.to_le_bytes()[3]
    });
    magic.iter().copied().chain(noise).take(len).collect()
}

fn pe() -> Vec<u8> {
    image(b"MZ", 3000)
}

fn elf() -> Vec<u8> {
    image(b"\x7fELF", 2500)
}

fn zip_of(members: &[(&str, &[u8])]) -> Vec<u8> {
    let mut writer = zip::ZipWriter::new(Cursor::new(Vec::new()));
    for (name, bytes) in members {
        writer.start_file(*name, SimpleFileOptions::default()).unwrap();
        writer.write_all(bytes).unwrap();
    }
    writer.finish().unwrap().into_inner()
}

fn tar_of(members: &[(&str, &[u8])]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, bytes) in members {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        builder.append_data(&mut header, name, *bytes).unwrap();
    }
    builder.into_inner().unwrap()
}

fn deb_of(members: &[(&str, &[u8])]) -> Vec<u8> {
    let mut out = b"!<arch>\n".to_vec();
    for (name, bytes) in members {
        out.extend(format!("{name:<16}{:<12}{:<6}{:<6}{:<8}{:<10}`\n", 0, 0, 0, 100_644, bytes.len()).bytes());
        out.extend(*bytes);
        if bytes.len() % 2 == 1 {
            out.push(b'\n');
        }
    }
    out
}

fn cab_of(compression: ::cab::CompressionType, members: &[(&str, &[u8])]) -> Vec<u8> {
    let mut builder = ::cab::CabinetBuilder::new();
    let folder = builder.add_folder(compression);
    for (name, _) in members {
        folder.add_file(*name);
    }
    let mut writer = builder.build(Cursor::new(Vec::new())).unwrap();
    for (_, bytes) in members {
        writer.next_file().unwrap().unwrap().write_all(bytes).unwrap();
    }
    writer.finish().unwrap().into_inner()
}

fn msi_of(members: &[(&str, &[u8])]) -> Vec<u8> {
    let mut file = cfb::CompoundFile::create(Cursor::new(Vec::new())).unwrap();
    for (name, bytes) in members {
        file.create_stream(name).unwrap().write_all(bytes).unwrap();
    }
    file.flush().unwrap();
    file.into_inner().into_inner()
}

fn compress(compression: Compression, bytes: &[u8]) -> Vec<u8> {
    match compression {
        Compression::Gzip => {
            let mut writer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            writer.write_all(bytes).unwrap();
            writer.finish().unwrap()
        }
        Compression::Xz => {
            let mut writer = lzma_rust2::XzWriter::new(Vec::new(), lzma_rust2::XzOptions::with_preset(1)).unwrap();
            writer.write_all(bytes).unwrap();
            writer.finish().unwrap()
        }
        Compression::Zstd => ruzstd::encoding::compress_to_vec(bytes, ruzstd::encoding::CompressionLevel::Fastest),
        Compression::Bzip2 => {
            let mut writer = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::fast());
            writer.write_all(bytes).unwrap();
            writer.finish().unwrap()
        }
    }
}

fn members_within(data: &[u8], limits: Limits) -> Vec<Member> {
    let Kind::Package(format) = sniff(data, NAME) else { panic!("no package: {:?}", sniff(data, NAME)) };
    let mut members = Vec::new();
    let flow = visit(data, NAME, format, limits, IMAGES, &mut |member| {
        members.push(member);
        ControlFlow::Continue(())
    });
    assert!(flow.is_continue());
    members
}

fn members(data: &[u8]) -> Vec<Member> {
    members_within(data, LIMITS)
}

/// Path below the package, kind, length kept, code of the first note.
fn told(members: &[Member]) -> Vec<(&str, Kind, usize, Option<Code>)> {
    let path = |m: &'_ Member| m.path.strip_prefix("p").map_or(0, |p| m.path.len() - p.len());
    members.iter().map(|m| (&m.path[path(m)..], m.kind, m.bytes.len(), m.notes.first().map(|n| n.code))).collect()
}

#[test]
fn every_format_yields_its_images_in_order() {
    let (pe, elf) = (pe(), elf());
    let content: &[(&str, &[u8])] = &[("a.sys", &pe), ("readme", b"text"), ("d/b.ko", &elf)];
    let mut packages = vec![zip_of(content), tar_of(content), cab_of(::cab::CompressionType::MsZip, content)];
    packages.push(cab_of(::cab::CompressionType::None, content));
    for compression in [Compression::Gzip, Compression::Xz, Compression::Zstd, Compression::Bzip2] {
        packages.push(compress(compression, &tar_of(content)));
    }
    for package in packages {
        let members = members(&package);
        let expected = [("!/a.sys", Kind::Pe, 3000, None), ("!/readme", Kind::Other, 0, None), ("!/d/b.ko", Kind::Elf, 2500, None)];
        assert_eq!(told(&members), expected);
        assert!(members[0].bytes == pe && members[2].bytes == elf);
    }
}

#[test]
fn a_module_in_a_debian_package_is_handed_on_compressed() {
    let module = compress(Compression::Xz, &elf());
    let data = compress(Compression::Xz, &tar_of(&[("lib/modules/6.1/x.ko.xz", &module)]));
    let members = members(&deb_of(&[("debian-binary", b"2.0\n"), ("data.tar.xz", &data)]));
    let expected = [
        ("!/debian-binary", Kind::Other, 0, None),
        ("!/data.tar.xz!/lib/modules/6.1/x.ko.xz", Kind::Compressed(Compression::Xz), module.len(), None),
    ];
    assert_eq!(told(&members), expected);
    assert!(members[1].bytes == module);
}

#[test]
fn a_driver_in_an_installer_in_a_wheel_is_found() {
    let pe = pe();
    let cabinet = cab_of(::cab::CompressionType::MsZip, &[("winfsp_x64.sys", &pe)]);
    // "Binary.x" and "WinFsp.cab" as Windows Installer writes them
    let msi = msi_of(&[("\u{3f3f}\u{4577}\u{446c}\u{3e6a}\u{44b2}\u{482f}", &cabinet), ("\u{5}DigitalSignature", &pe), ("other", b"-")]);
    let members = members(&zip_of(&[("m/winfsp.msi", &msi)]));
    assert_eq!(members.len(), 2);
    let driver = members.iter().find(|m| m.kind == Kind::Pe).unwrap();
    assert!(driver.path.starts_with("p!/m/winfsp.msi!/") && driver.path.ends_with("!/winfsp_x64.sys"), "{}", driver.path);
    assert!(driver.path.is_ascii(), "{}", driver.path);
    assert!(driver.bytes == pe);
}

#[test]
fn what_is_compressed_is_told_by_its_inside() {
    let (pe, elf) = (pe(), elf());
    let gz = |bytes: &[u8]| compress(Compression::Gzip, bytes);
    assert_eq!(sniff(&gz(&tar_of(&[("x", &pe)])), "any.name"), Kind::Package(Format::CompressedTar(Compression::Gzip)));
    assert_eq!(sniff(&gz(&elf), "any.name"), Kind::Compressed(Compression::Gzip));
    assert_eq!(sniff(&gz(b"text"), "notes.gz"), Kind::Other);
    assert_eq!(sniff(&gz(b"text"), "A.KO.GZ"), Kind::Compressed(Compression::Gzip));
    assert_eq!(sniff(&compress(Compression::Bzip2, &elf), "x.ko.bz2"), Kind::Other);
    // broken from its start: a tarball by name is one, so that opening it says what is wrong
    assert_eq!(
        told(&members(&gz(&tar_of(&[("x", &pe)]))[..12])),
        [("", Kind::Package(Format::CompressedTar(Compression::Gzip)), 0, Some(Code::InputContainer))]
    );
}

#[test]
fn zstd_frames_follow_one_another() {
    let tar = tar_of(&[("a.sys", &pe())]);
    let mut data = compress(Compression::Zstd, &tar[..700]);
    data.extend([0x50, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, 1, 2, 3]);
    data.extend(compress(Compression::Zstd, &tar[700..]));
    assert_eq!(told(&members(&data)), [("!/a.sys", Kind::Pe, 3000, None)]);
}

#[test]
fn what_can_be_read_of_a_cut_package_is_read() {
    let (pe, elf) = (pe(), elf());
    let content: &[(&str, &[u8])] = &[("a.sys", &pe), ("b.ko", &elf), ("c.sys", &image(b"MZ!", 3000))];
    let tar = tar_of(content);
    let cut_tar = &tar[..tar.len() - 3000];
    let gz = compress(Compression::Gzip, &tar);
    let zip = zip_of(content);
    let deb = deb_of(&[("debian-binary", b"2.0\n"), ("data.tar", &tar)]);
    for (package, where_) in [
        (cut_tar.to_vec(), ""),
        (gz[..gz.len() - 1500].to_vec(), ""),
        (zip[..zip.len() - 1500].to_vec(), ""),
        (deb[..deb.len() - 3000].to_vec(), "!/data.tar"),
    ] {
        let members = members(&package);
        let found: Vec<_> = members.iter().filter(|m| m.kind.is_image()).collect();
        assert!(found.len() == 2, "{:?}: {:?}", sniff(&package, ""), told(&members));
        assert_eq!(found.iter().map(|m| m.path.clone()).collect::<Vec<_>>(), [format!("p{where_}!/a.sys"), format!("p{where_}!/b.ko")]);
        assert!(found[0].bytes == pe && found[1].bytes == elf);
        let last = members.iter().rfind(|m| m.path == format!("p{where_}")).unwrap();
        assert_eq!(last.notes[0].code, Code::InputContainer);
    }
}

#[test]
fn limits_are_findings() {
    let (pe, elf) = (pe(), elf());
    let tar = tar_of(&[("a.sys", &pe), ("b.ko", &elf)]);
    let limits = Limits { max_size: 2999, ..LIMITS };
    assert_eq!(
        told(&members_within(&tar, limits)),
        [("!/a.sys", Kind::Pe, 0, Some(Code::InputTooLarge)), ("!/b.ko", Kind::Elf, 2500, None)]
    );

    let zeros = tar_of(&[("a.sys", &pe), ("zeros", &vec![0; 900_000])]);
    let limits = Limits { max_unpacked: 100_000, ..LIMITS };
    let bomb = zip_of(&[("in.tgz", &compress(Compression::Gzip, &zeros)), ("after.sys", &pe)]);
    let format = Kind::Package(Format::CompressedTar(Compression::Gzip));
    let expected = [
        ("!/in.tgz!/a.sys", Kind::Pe, 3000, None),
        ("!/in.tgz!/zeros", Kind::Other, 0, None),
        ("!/in.tgz", format, 0, Some(Code::InputBomb)),
    ];
    assert_eq!(told(&members_within(&bomb, limits)), expected);

    let nested = (0..4).fold(pe.clone(), |inner, _| tar_of(&[("t", &inner)]));
    assert_eq!(told(&members(&nested)), [("!/t!/t!/t!/t", Kind::Pe, 3000, None)]);
    let nested = tar_of(&[("t", &nested), ("b.ko", &elf)]);
    let expected = [("!/t!/t!/t!/t", Kind::Package(Format::Tar), 0, Some(Code::InputLoop)), ("!/b.ko", Kind::Elf, 2500, None)];
    assert_eq!(told(&members(&nested)), expected);
}

#[test]
fn zip_members_are_read_one_by_one_whatever_they_try() {
    let (pe, elf) = (pe(), elf());
    let zip = zip_of(&[("a.sys", &pe), ("b.sys", &elf)]);
    // bit 0 of the flags: 8 bytes into a central header, 6 into a local one
    let mut encrypted = zip.clone();
    let at = |data: &[u8], magic: &[u8]| data.windows(4).position(|w| w == magic).unwrap();
    let (central, local) = (at(&zip, b"PK\x01\x02"), at(&zip, b"PK\x03\x04"));
    encrypted[central + 8] |= 1;
    encrypted[local + 6] |= 1;
    let members_ = members(&encrypted);
    assert_eq!(told(&members_), [("!/a.sys", Kind::Other, 0, Some(Code::InputContainer)), ("!/b.sys", Kind::Elf, 2500, None)]);
    assert_eq!(members_[0].notes[0].detail, "encrypted");

    let mut twice = zip.clone();
    for n in 0..twice.len() - 5 {
        if &twice[n..n + 5] == b"b.sys" {
            twice[n] = b'a';
        }
    }
    assert_eq!(told(&members(&twice)), [("!/a.sys", Kind::Pe, 3000, None), ("!/a.sys", Kind::Elf, 2500, None)]);

    // one member damaged: its checksum says so, the other is read
    let mut damaged = zip;
    damaged[local + 1000] ^= 1;
    let members = members(&damaged);
    assert_eq!((members[0].notes.first().map(|n| n.code), members[1].kind), (Some(Code::InputContainer), Kind::Elf));
}

#[test]
fn cabinet_members_may_share_their_place_but_not_leave_the_folder() {
    let (pe, elf) = (pe(), elf());
    let cabinet = cab_of(::cab::CompressionType::MsZip, &[("a.sys", &pe), ("b.ko", &elf)]);
    // CFFILE of b.ko: its name stands 16 bytes in, uoffFolderStart 4 bytes in
    let entry = cabinet.windows(5).position(|w| w == b"b.ko\0").unwrap() - 16;
    let mut shared = cabinet.clone();
    shared[entry..entry + 8].copy_from_slice(&[0xb8, 0x0b, 0, 0, 0, 0, 0, 0]);
    let expected = [("!/a.sys", Kind::Pe, 3000, None), ("!/b.ko", Kind::Pe, 3000, None)];
    assert_eq!(told(&members(&shared)), expected);

    for start in [5501_u32, u32::MAX] {
        let mut outside = cabinet.clone();
        outside[entry + 4..entry + 8].copy_from_slice(&start.to_le_bytes());
        let expected = [("!/a.sys", Kind::Pe, 3000, None), ("", Kind::Package(Format::Cab), 0, Some(Code::InputContainer))];
        assert_eq!(told(&members(&outside)), expected);
    }

    let mut spanning = cabinet;
    spanning[entry + 8..entry + 10].copy_from_slice(&0xfffe_u16.to_le_bytes());
    let expected = [("!/a.sys", Kind::Pe, 3000, None), ("!/b.ko", Kind::Other, 0, Some(Code::InputContainer))];
    assert_eq!(told(&members(&spanning)), expected);
}

#[test]
fn tar_names_are_only_shown() {
    let pe = pe();
    let long = format!("{}/x.sys", "d".repeat(300));
    let mut tar = tar_of(&[("placeholder", &pe), (&long, &pe)]);
    let name = b"/../\x1b[2Jx\xff";
    tar[..11].fill(0);
    tar[..name.len()].copy_from_slice(name);
    let sum: u32 = tar[..512].iter().enumerate().map(|(n, b)| if (148..156).contains(&n) { 32 } else { u32::from(*b) }).sum();
    tar[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    let members = members(&tar);
    assert_eq!(members.iter().map(|m| m.path.as_str()).collect::<Vec<_>>(), ["p!//../\\x1b[2Jx\\xff", format!("p!/{long}").as_str()]);
}

#[test]
fn a_long_name_without_bound_is_refused() {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(tar::EntryType::GNULongName);
    header.set_size(1 << 30);
    header.set_cksum();
    let members = members(&compress(Compression::Gzip, &[header.as_bytes().as_slice(), &[b'a'; 4096]].concat()));
    assert_eq!(members.len(), 1);
    assert_eq!(
        (members[0].notes[0].code, members[0].notes[0].detail.as_str()),
        (Code::InputContainer, "an extended header of 1073741824 bytes")
    );
}

#[test]
fn the_sink_ends_it_and_its_panics_pass() {
    let zip = zip_of(&[("a.sys", &pe()), ("b.sys", &pe())]);
    let mut seen = 0;
    let flow = visit(&zip, NAME, Format::Zip, LIMITS, IMAGES, &mut |_| {
        seen += 1;
        ControlFlow::Break(())
    });
    assert!(flow.is_break() && seen == 1);
    let passed = catch_unwind(|| visit(&zip, NAME, Format::Zip, LIMITS, IMAGES, &mut |_| panic!("the sink's own")));
    assert_eq!(passed.unwrap_err().downcast_ref(), Some(&"the sink's own"));
}

#[test]
fn signed_data_is_told_in_every_length_form() {
    let oid = [0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x07, 0x02, 0xa0];
    for length in [&[0x60][..], &[0x81, 0x90], &[0x82, 1, 0], &[0x83, 1, 0, 0], &[0x84, 0, 1, 0, 0], &[0x80]] {
        assert_eq!(sniff(&[&[0x30], length, &oid].concat(), "x"), Kind::Catalog);
    }
    assert_eq!(sniff(&[&[0x30, 0x85, 0, 0, 0, 0, 0], &oid[..]].concat(), "x"), Kind::Other);
    assert_eq!(sniff(&[0x30], "x"), Kind::Other);
}

static PACKAGES: LazyLock<Vec<Vec<u8>>> = LazyLock::new(|| {
    let (pe, elf) = (pe(), elf());
    let content: &[(&str, &[u8])] = &[("a.sys", &pe), ("readme", b"text"), ("b.ko", &elf)];
    let tar = tar_of(content);
    let cabinet = cab_of(::cab::CompressionType::MsZip, content);
    let mut all = vec![zip_of(content), msi_of(&[("c", &cabinet), ("a", &pe)]), cabinet, tar.clone()];
    all.extend([Compression::Gzip, Compression::Xz, Compression::Zstd, Compression::Bzip2].map(|c| compress(c, &tar)));
    all.push(deb_of(&[("debian-binary", b"2.0\n"), ("data.tar.zst", &compress(Compression::Zstd, &tar))]));
    all
});

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// Any prefix, with any few bytes changed, ends without a panic, hang or more than the limits allow.
    #[test]
    fn damaged_packages_are_bounded(which in 0_usize..9, cut in any::<Option<prop::sample::Index>>(), changes in prop::collection::vec(any::<(prop::sample::Index, u8)>(), 0..6)) {
        let mut package = PACKAGES[which].clone();
        if let Some(cut) = cut {
            package.truncate(cut.index(package.len()));
        }
        for (at, byte) in changes {
            let n = at.index(package.len().max(1));
            // headers are where the decisions are
            let n = if byte % 2 == 0 { n.min(80) } else { n };
            if let Some(b) = package.get_mut(n) {
                *b = byte;
            }
        }
        let limits = Limits { max_size: 4096, max_unpacked: 100_000, max_nesting: 4 };
        if let Kind::Package(format) = sniff(&package, NAME) {
            let mut kept = 0;
            let _ = visit(&package, NAME, format, limits, IMAGES, &mut |m| {
                kept += m.bytes.len();
                ControlFlow::Continue(())
            });
            prop_assert!(kept <= 110_000);
        }
    }

    #[test]
    fn noise_in_every_format_is_bounded(noise in prop::collection::vec(any::<u8>(), 0..600), head in 0_usize..9) {
        let mut data = PACKAGES[head].clone();
        data.truncate(30);
        data.extend(noise);
        if let Kind::Package(format) = sniff(&data, NAME) {
            let _ = visit(&data, NAME, format, LIMITS, IMAGES, &mut |_| ControlFlow::Continue(()));
        }
    }
}
