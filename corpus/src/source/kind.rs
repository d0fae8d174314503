//! What a file or member is, by its first bytes; the name only decides for compressed modules.
//!
//! Magics: PE/COFF `MZ`; ELF `\x7fELF`; PKCS#7 SignedData (RFC 2315 §9) for catalogs; deb(5), POSIX ustar, PKWARE APPNOTE 4.3.6,
//! [MS-CAB] 2.1, [MS-CFB] 2.2, RFC 1952, the .xz file format 1.2 §2.1.1.1, RFC 8878 §3.1.1, bzip2.

use std::io::Read;

use crate::source::container::unpack;

/// How many bytes from the start decide: the ustar magic ends at 263.
pub const HEAD: usize = 512;

/// What something is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Starts as a PE image does (drivers, EFI binaries, kernels with an EFI stub).
    Pe,
    /// Starts as an ELF file does.
    Elf,
    /// Starts as PKCS#7 SignedData in DER or BER does: catalogs, trust lists.
    Catalog,
    /// One compressed image, such as `foo.ko.xz`; handed on compressed.
    Compressed(Compression),
    /// Something with members.
    Package(Format),
    /// None of these.
    Other,
}

/// How one stream is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Compression {
    /// RFC 1952.
    Gzip,
    /// The .xz file format.
    Xz,
    /// RFC 8878.
    Zstd,
    /// bzip2.
    Bzip2,
}

/// How members are packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Format {
    /// Debian package: `ar` with the members of deb(5).
    Deb,
    /// `.zip`, `.whl`, `.nupkg`.
    Zip,
    /// Microsoft cabinet.
    Cab,
    /// Compound file: `.msi`.
    Ole,
    /// `tar`, uncompressed.
    Tar,
    /// `tar` under one compression.
    CompressedTar(Compression),
}

impl Kind {
    /// Whether the engine judges it.
    pub fn is_image(self) -> bool {
        matches!(self, Self::Pe | Self::Elf | Self::Catalog | Self::Compressed(_))
    }
}

/// What `data`, the whole content of the file or member called `name`, is. Looks at the first [`HEAD`] bytes; of something compressed,
/// at the first [`HEAD`] bytes inside, unless its name is that of a compressed module.
pub fn sniff(data: &[u8], name: &str) -> Kind {
    let kind = sniff_head(data, name);
    let Kind::Package(Format::CompressedTar(compression)) = kind else { return kind };
    let mut head = Vec::with_capacity(HEAD);
    let read = unpack::decoder(compression, data).and_then(|d| d.take(HEAD as u64).read_to_end(&mut head));
    match (sniff_head(&head, ""), read) {
        (Kind::Package(Format::Tar), _) => kind,
        // the kernel and the engine know these three
        (Kind::Pe | Kind::Elf, _) if compression != Compression::Bzip2 => Kind::Compressed(compression),
        // broken from the start: opening it says how
        (_, Err(_)) => kind,
        _ if is_tarball_name(name) && head.len() < HEAD => kind,
        _ => Kind::Other,
    }
}

/// As [`sniff`], with only the first bytes at hand: what is compressed is taken for a tarball until its inside is seen.
pub(super) fn sniff_head(head: &[u8], name: &str) -> Kind {
    let compressed = |c| match c {
        Compression::Bzip2 => Kind::Package(Format::CompressedTar(c)),
        c if is_module_name(name) => Kind::Compressed(c),
        c => Kind::Package(Format::CompressedTar(c)),
    };
    match head {
        [b'M', b'Z', ..] => Kind::Pe,
        [0x7f, b'E', b'L', b'F', ..] => Kind::Elf,
        // its first member tells a Debian package from a static library
        _ if head.starts_with(b"!<arch>\ndebian-binary") => Kind::Package(Format::Deb),
        [b'P', b'K', 3, 4, ..] | [b'P', b'K', 5, 6, ..] => Kind::Package(Format::Zip),
        [b'M', b'S', b'C', b'F', 0, 0, 0, 0, ..] => Kind::Package(Format::Cab),
        [0xd0, 0xcf, 0x11, 0xe0, 0xa1, 0xb1, 0x1a, 0xe1, ..] => Kind::Package(Format::Ole),
        [0x1f, 0x8b, 8, ..] => compressed(Compression::Gzip),
        [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => compressed(Compression::Xz),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => compressed(Compression::Zstd),
        [b'B', b'Z', b'h', b'1'..=b'9', 0x31, 0x41, 0x59, 0x26, 0x53, 0x59, ..] => compressed(Compression::Bzip2),
        _ if is_signed_data(head) => Kind::Catalog,
        _ if head.get(257..262) == Some(b"ustar") => Kind::Package(Format::Tar),
        _ => Kind::Other,
    }
}

/// ContentInfo { contentType signedData, … }: a SEQUENCE of any length form, then OID 1.2.840.113549.1.7.2.
fn is_signed_data(head: &[u8]) -> bool {
    const SIGNED_DATA: &[u8] = &[0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x07, 0x02];
    let [0x30, length, ..] = head else { return false };
    let octets = if *length < 0x80 { 0 } else { usize::from(length & 0x7f) };
    octets <= 4 && head.get(2 + octets..).is_some_and(|rest| rest.starts_with(SIGNED_DATA))
}

fn is_module_name(name: &str) -> bool {
    ends_with_any(name, &[".ko.gz", ".ko.xz", ".ko.zst"])
}

fn is_tarball_name(name: &str) -> bool {
    ends_with_any(name, &[".tar.gz", ".tgz", ".tar.xz", ".txz", ".tar.zst", ".tar.bz2", ".tbz2", ".tbz"])
}

fn ends_with_any(name: &str, endings: &[&str]) -> bool {
    let name = name.as_bytes();
    endings.iter().any(|e| name.len().checked_sub(e.len()).is_some_and(|at| name[at..].eq_ignore_ascii_case(e.as_bytes())))
}
