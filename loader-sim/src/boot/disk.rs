//! The files that a machine boots from: its EFI system partition, and what its boot loader reads.
//!
//! Paths are compared as FAT does, without telling upper from lower case, and both `/` and `\` part them. Reads regular files of a folder and
//! follows no symbolic link: the folder is the guest's, and must not reach out of itself.
//!
//! A file `gpt.img` at its root is no file of the guest's, but the first sectors of the disk (`dd if=/dev/sda bs=512 count=34`), whose partition
//! table firmware measures.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, Read},
    path::{Path, PathBuf},
};

/// Largest file that is read.
const MAX_FILE: u64 = 1 << 30;
/// Most files of a disk.
const MAX_FILES: usize = 100_000;

/// Where the disk's first sectors are.
const PARTITIONS: &str = "/gpt.img";

/// A disk with one file system.
#[derive(Clone, Debug, Default)]
pub struct Disk {
    files: BTreeMap<String, Content>,
}

#[derive(Clone, Debug)]
enum Content {
    Path(PathBuf),
    Bytes(Vec<u8>),
}

impl Disk {
    /// The files below the folder `root`.
    ///
    /// # Errors
    /// What cannot be read, and more files than a disk may have.
    pub fn open(root: &Path) -> io::Result<Self> {
        let mut disk = Self::default();
        let mut folders = vec![(root.to_owned(), String::new())];
        while let Some((folder, place)) = folders.pop() {
            for entry in fs::read_dir(&folder).map_err(|e| at(&folder, &e))? {
                let entry = entry.map_err(|e| at(&folder, &e))?;
                let (kind, path) = (entry.file_type()?, entry.path());
                let Some(name) = entry.file_name().to_str().map(str::to_owned) else { continue };
                let place = format!("{place}/{name}");
                if kind.is_dir() {
                    folders.push((path, place));
                } else if kind.is_file() {
                    disk.files.insert(key(&place), Content::Path(path));
                }
                if disk.files.len() > MAX_FILES {
                    return Err(io::Error::other(format!("more than {MAX_FILES} files below {}", root.display())));
                }
            }
        }
        Ok(disk)
    }

    /// A disk with the boot files of Debian packages that were unpacked below `root`, each where its installation puts it: shim as the image
    /// that firmware takes without a boot option, GRUB and shim's helpers beside it, the kernel of the latest name, and a configuration that
    /// starts it.
    ///
    /// # Errors
    /// Those of [`open`](Self::open); no shim or no GRUB below `root`.
    pub fn of_packages(root: &Path) -> io::Result<Self> {
        const NAMES: [(&str, &str); 5] = [
            ("shimx64.efi.signed", "/EFI/BOOT/BOOTX64.EFI"),
            ("grubx64.efi.signed", "/EFI/BOOT/grubx64.efi"),
            ("mmx64.efi.signed", "/EFI/BOOT/mmx64.efi"),
            ("initrd.img", "/initrd.img"),
            ("gpt.img", PARTITIONS),
        ];
        let found = Self::open(root)?;
        let mut disk = Self::default();
        for (path, content) in &found.files {
            let name = path.rsplit('/').next().unwrap_or_default();
            let place = NAMES.iter().find(|(known, _)| *known == name).map(|(_, place)| *place);
            // in order of their names, so that the latest stays
            let place = place.or_else(|| name.starts_with("vmlinuz-").then_some("/vmlinuz"));
            if let Some(place) = place {
                disk.files.insert(key(place), content.clone());
            }
        }
        for (name, place) in NAMES.iter().take(2) {
            if !disk.exists(place) {
                return Err(io::Error::new(io::ErrorKind::NotFound, format!("no {name} below {}", root.display())));
            }
        }
        let initrd = if disk.exists("/initrd.img") { "initrd /initrd.img\n" } else { "" };
        let configuration = format!("set timeout=0\nset gfxpayload=text\nlinux /vmlinuz console=ttyS0 panic=1\n{initrd}boot\n");
        disk.insert("/EFI/debian/grub.cfg", configuration.into_bytes());
        Ok(disk)
    }

    /// What [`open`](Self::open) opens where there is a system partition's folder `EFI`, else what [`of_packages`](Self::of_packages) finds.
    ///
    /// # Errors
    /// Those of both.
    pub fn of_folder(root: &Path) -> io::Result<Self> {
        let disk = Self::open(root)?;
        if disk.exists("/EFI") { Ok(disk) } else { Self::of_packages(root) }
    }

    /// Writes every file below the folder `root`, which is made. Names are as they are compared, in lower case.
    ///
    /// # Errors
    /// What cannot be read or written.
    pub fn write_to(&self, root: &Path) -> io::Result<()> {
        for path in self.files.keys() {
            let place = root.join(path.trim_start_matches('/'));
            if let Some(folder) = place.parent() {
                fs::create_dir_all(folder).map_err(|e| at(folder, &e))?;
            }
            fs::write(&place, self.read(path)?.unwrap_or_default()).map_err(|e| at(&place, &e))?;
        }
        Ok(())
    }

    /// Puts a file there, instead of the one of that path.
    pub fn insert(&mut self, path: &str, content: Vec<u8>) {
        self.files.insert(key(path), Content::Bytes(content));
    }

    /// The content of a file; `None` without one.
    ///
    /// # Errors
    /// It cannot be read, or is larger than a boot file may be.
    pub fn read(&self, path: &str) -> io::Result<Option<Vec<u8>>> {
        let file = match self.files.get(&key(path)) {
            None => return Ok(None),
            Some(Content::Bytes(content)) => return Ok(Some(content.clone())),
            Some(Content::Path(file)) => file,
        };
        let mut content = Vec::new();
        File::open(file).and_then(|f| f.take(MAX_FILE.saturating_add(1)).read_to_end(&mut content)).map_err(|e| at(file, &e))?;
        if u64::try_from(content.len()).unwrap_or(u64::MAX) > MAX_FILE {
            return Err(io::Error::other(format!("{} is larger than {MAX_FILE} bytes", file.display())));
        }
        Ok(Some(content))
    }

    /// Its first sectors, with the partition table; `None` where nobody gave them.
    ///
    /// # Errors
    /// Those of [`read`](Self::read).
    pub fn first_sectors(&self) -> io::Result<Option<Vec<u8>>> {
        self.read(PARTITIONS)
    }

    /// Whether there is a file or a folder of this path.
    pub fn exists(&self, path: &str) -> bool {
        let key = key(path);
        self.files.contains_key(&key) || self.below(&key).next().is_some()
    }

    /// Every file below a folder, by its path, in order.
    pub fn files<'d>(&'d self, folder: &str) -> impl Iterator<Item = &'d str> + use<'d> {
        self.below(&key(folder))
    }

    fn below<'d>(&'d self, key: &str) -> impl Iterator<Item = &'d str> + use<'d> {
        let prefix = if key == "/" { "/".to_owned() } else { format!("{key}/") };
        self.files.range(prefix.clone()..).map(|(path, _)| path.as_str()).take_while(move |path| path.starts_with(&prefix))
    }
}

fn key(path: &str) -> String {
    let parts = path.split(['/', '\\']).filter(|part| !part.is_empty() && *part != ".");
    let joined: Vec<String> = parts.map(str::to_lowercase).collect();
    format!("/{}", joined.join("/"))
}

fn at(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn files_are_found_as_fat_finds_them() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("EFI/Boot")).unwrap();
        fs::write(root.path().join("EFI/Boot/bootx64.efi"), "MZ").unwrap();
        let mut disk = Disk::open(root.path()).unwrap();
        assert_eq!(disk.read("\\EFI\\BOOT\\BOOTX64.EFI").unwrap().as_deref(), Some(&b"MZ"[..]));
        assert!(disk.exists("/efi/boot/") && disk.exists("/") && !disk.exists("/efi/bo"));
        disk.insert("/efi/Boot/BOOTx64.efi", b"other".to_vec());
        assert_eq!(disk.read("efi//boot/bootx64.efi").unwrap().as_deref(), Some(&b"other"[..]));
        assert_eq!(disk.files("/EFI").collect::<Vec<_>>(), ["/efi/boot/bootx64.efi"]);
    }

    #[test]
    fn links_lead_nowhere() {
        let root = tempfile::tempdir().unwrap();
        let outside = tempfile::NamedTempFile::new().unwrap();
        std::os::unix::fs::symlink(outside.path(), root.path().join("secret")).unwrap();
        assert!(!Disk::open(root.path()).unwrap().exists("/secret"));
    }
}
