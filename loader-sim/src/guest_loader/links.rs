//! Which of several files must be loaded before which: what each exports and imports, as the guest's own loader finds it.
//!
//! A Linux module needs those that export its undefined symbols, which is what the linker writes into `depends=` of its `.modinfo`; a driver needs
//! the libraries that it imports from, and those that their forwarders lead to. All of a library is needed, not the one export: nobody looks
//! which. Of a file that cannot be read nothing is known, and nobody waits for it.

use std::collections::{BTreeMap, BTreeSet};

use object::{
    Endianness, LittleEndian, Object, ObjectSymbol,
    read::{
        elf::ElfFile64,
        pe::{ExportTarget, PeFile64},
    },
};

use super::{
    GuestLoaderError,
    exports::{exported, stem},
};

/// What a file exports and imports, as far as it says what must be loaded first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Links {
    pub(super) exports: BTreeSet<Link>,
    imports: BTreeSet<Link>,
    /// what its exports lead to
    forwards: BTreeSet<Link>,
}

/// What one file has of another.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Link {
    /// Of Linux modules.
    Symbol(Vec<u8>),
    /// The file name of a driver as [`stem`] has it.
    Library(Vec<u8>),
}

impl Links {
    /// Of `file`, which the guest calls `name`.
    pub fn of(name: &str, file: &[u8]) -> Self {
        let read = if file.starts_with(b"MZ") { Self::of_driver(name, file) } else { Self::of_module(file) };
        read.unwrap_or_default()
    }

    fn of_driver(name: &str, file: &[u8]) -> Result<Self, GuestLoaderError> {
        let pe = PeFile64::parse(file)?;
        let library = |name: &[u8]| Link::Library(stem(name));
        let mut links = Self::default();
        if let Some(table) = pe.export_table()? {
            links.exports.insert(library(name.as_bytes()));
            for export in table.exports()? {
                if let ExportTarget::ForwardByName(to, _) | ExportTarget::ForwardByOrdinal(to, _) = export.target {
                    links.forwards.insert(library(to));
                }
            }
        }
        if let Some(table) = pe.import_table()? {
            let mut descriptors = table.descriptors()?;
            while let Some(descriptor) = descriptors.next()? {
                links.imports.insert(library(table.name(descriptor.name.get(LittleEndian))?));
            }
        }
        Ok(links)
    }

    fn of_module(file: &[u8]) -> Result<Self, GuestLoaderError> {
        let elf = ElfFile64::<Endianness>::parse(file)?;
        let exports = exported(&elf)?.into_keys().map(Link::Symbol).collect();
        let undefined = elf.symbols().filter(|symbol| symbol.is_undefined()).filter_map(|symbol| symbol.name_bytes().ok());
        let imports = undefined.filter(|name| !name.is_empty()).map(|name| Link::Symbol(name.to_vec())).collect();
        Ok(Self { exports, imports, forwards: BTreeSet::new() })
    }

    /// For each of `files` those that must be done with before it is loaded, so that the outcome is the same however many are loaded at once: what
    /// it imports from first, and of those that export the same the one that comes first here. Of a cycle whoever comes first here is loaded
    /// first, without what it needs. Nobody waits for himself, however far around.
    pub fn order(files: &[Self]) -> Vec<BTreeSet<usize>> {
        let mut exporters = BTreeMap::<&Link, Vec<usize>>::new();
        for (index, file) in files.iter().enumerate() {
            file.exports.iter().for_each(|link| exporters.entry(link).or_default().push(index));
        }
        let needs: Vec<BTreeSet<usize>> = files
            .iter()
            .enumerate()
            .map(|(index, file)| {
                let mut needs = BTreeSet::new();
                let mut links: Vec<&Link> = file.imports.iter().collect();
                while let Some(link) = links.pop() {
                    for exporter in exporters.get(link).into_iter().flatten().filter(|exporter| **exporter != index) {
                        if needs.insert(*exporter) {
                            links.extend(&files[*exporter].forwards);
                        }
                    }
                }
                needs
            })
            .collect();

        let turns = turns(&needs);
        let mut before = vec![BTreeSet::new(); files.len()];
        let mut put = |a: usize, b: usize| {
            let (first, second) = if turns[a] < turns[b] { (a, b) } else { (b, a) };
            before[second].insert(first);
        };
        for (index, needed) in needs.iter().enumerate() {
            needed.iter().for_each(|needed| put(index, *needed));
        }
        for exporters in exporters.values_mut() {
            exporters.sort_by_key(|index| turns[*index]);
            exporters.windows(2).for_each(|pair| put(pair[0], pair[1]));
        }
        before
    }
}

/// When each has its turn, if they come one behind the other: the first of those that have all they need, or, where there is none, the first.
fn turns(needs: &[BTreeSet<usize>]) -> Vec<usize> {
    let mut followers = vec![Vec::new(); needs.len()];
    for (index, needed) in needs.iter().enumerate() {
        needed.iter().for_each(|needed| followers[*needed].push(index));
    }
    let mut missing: Vec<usize> = needs.iter().map(BTreeSet::len).collect();
    let mut left: BTreeSet<usize> = (0..needs.len()).collect();
    let mut ready: BTreeSet<usize> = left.iter().copied().filter(|index| missing[*index] == 0).collect();
    let mut turns = vec![0; needs.len()];
    for turn in 0..needs.len() {
        let Some(next) = ready.first().or_else(|| left.first()).copied() else { break };
        ready.remove(&next);
        left.remove(&next);
        turns[next] = turn;
        for follower in &followers[next] {
            missing[*follower] -= 1;
            if missing[*follower] == 0 && left.contains(follower) {
                ready.insert(*follower);
            }
        }
    }
    turns
}

#[cfg(test)]
mod tests {
    use corpus::synth::{
        elf,
        pe::{Export, Image},
    };
    use hvci_engine::facts::FileKind;
    use proptest::prelude::*;

    use super::*;

    fn links(exports: &[&str], imports: &[&str], forwards: &[&str]) -> Links {
        let set = |names: &[&str]| names.iter().map(|name| Link::Symbol(name.as_bytes().to_vec())).collect();
        Links { exports: set(exports), imports: set(imports), forwards: set(forwards) }
    }

    fn order(files: &[Links]) -> Vec<Vec<usize>> {
        Links::order(files).into_iter().map(|before| before.into_iter().collect()).collect()
    }

    #[test]
    fn what_is_needed_goes_first() {
        let chain = [links(&[], &["b"], &[]), links(&["b"], &["c", "kernel"], &[]), links(&["c"], &[], &[]), links(&["d"], &["d"], &[])];
        assert_eq!(order(&chain), [vec![1], vec![2], vec![], vec![]]);
        // through a forwarder, and one that leads back
        let forward = [links(&[], &["a"], &[]), links(&["a"], &[], &["b"]), links(&["b"], &["a"], &["a"])];
        assert_eq!(order(&forward), [vec![1, 2], vec![], vec![1]]);
        // of one name: as they stand, and both before whoever imports it
        let twins = [links(&["a"], &[], &[]), links(&["b"], &["a"], &[]), links(&["a"], &[], &[])];
        assert_eq!(order(&twins), [vec![], vec![0, 2], vec![0]]);
        // and not as they stand where one of them needs the other
        let twins = [links(&["a", "b"], &["c"], &[]), links(&["a", "c"], &[], &[])];
        assert_eq!(order(&twins), [vec![1], vec![]]);
    }

    #[test]
    fn of_a_cycle_the_first_goes_first() {
        let cycle = [links(&[], &["b"], &[]), links(&["b"], &["c"], &[]), links(&["c"], &["b"], &[])];
        assert_eq!(order(&cycle), [vec![], vec![0], vec![1]], "the first is before them, though it needs one");
        assert_eq!(order(&[links(&["a"], &["b"], &[]), links(&["b"], &["a"], &[])]), [vec![], vec![0]]);
    }

    proptest! {
        /// Whatever imports whatever: everybody's turn comes, related ones are never done at once, and without a cycle what is needed is first.
        #[test]
        fn everybodys_turn_comes(edges in prop::collection::vec((0_u8..8, 0_u8..8), 0..20)) {
            let files: Vec<Links> = (0..8).map(|file| Links {
                exports: BTreeSet::from([Link::Symbol(vec![file])]),
                imports: edges.iter().filter(|edge| edge.0 == file).map(|edge| Link::Symbol(vec![edge.1])).collect(),
                forwards: BTreeSet::new(),
            }).collect();
            let before = Links::order(&files);
            let mut done = BTreeSet::new();
            for _ in 0..8 {
                let ready: Vec<usize> = (0..8).filter(|file| !done.contains(file) && before[*file].is_subset(&done)).collect();
                done.extend(ready);
            }
            prop_assert_eq!(done.len(), 8);
            let needs = |a: u8, b: u8| before[usize::from(a)].contains(&usize::from(b));
            for (a, b) in edges.iter().copied().filter(|(a, b)| a != b) {
                prop_assert!(needs(a, b) != needs(b, a), "{} {}: {:?}", a, b, before);
            }
            if edges.iter().all(|(a, b)| a > b) {
                prop_assert!(edges.iter().all(|(a, b)| needs(*a, *b)), "{:?}", before);
            }
        }
    }

    #[test]
    fn files_say_what_they_need() {
        let module = Links::of("b.ko", &elf::linked_module("b", &["second"], &["first", "_printk"]).unwrap());
        assert_eq!(module, links(&["second"], &["first", "_printk"], &[]));

        let exports = vec![("Run", Export::At(0, 0x10)), ("Print", Export::Forward("C.Print"))];
        let image = Image { exports, imports: ("A.SYS", vec!["Run"]), ..Image::of(FileKind::PeDriver, "b") };
        let driver = Links::of("B.sys", &image.build().unwrap());
        let set = |name: &[u8]| BTreeSet::from([Link::Library(name.to_vec())]);
        assert_eq!(driver, Links { exports: set(b"b"), imports: set(b"a"), forwards: set(b"c") });
        assert_eq!(Links::of("c.sys", b"MZ"), Links::default());
        assert_eq!(Links::of("c.ko", b"none"), Links::default());
    }
}
