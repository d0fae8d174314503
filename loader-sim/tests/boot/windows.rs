//! A chain as Windows has one, made by the synthesiser.

use corpus::synth::{
    authenticode::signed,
    pki::Pki,
    windows::{WindowsBoot, windows_boot},
};
use proptest::prelude::*;

use super::*;

const MANAGER: &str = "/EFI/BOOT/BOOTX64.EFI";
const LOADER: &str = "/Windows/System32/winload.efi";
const NT: &str = "/Windows/System32/ntoskrnl.exe";
/// EFI_BOOTMGR_DBXSVN_GUID, and who owns such entries.
const BOOT_MANAGER: Guid = Guid::new(0x9D13_2B61, 0x59D5, 0x4388, [0xAB, 0x1C, 0x18, 0x5C, 0x3C, 0xB2, 0xEB, 0x92]);
const MICROSOFT: Guid = Guid::new(0x9D13_2B6C, 0x59D5, 0x4388, [0xAB, 0x1C, 0x18, 0x5C, 0xFC, 0xB2, 0xEB, 0x92]);

struct Chain {
    pki: Pki,
    disk: Disk,
    store: VariableStore,
}

impl Chain {
    fn new(version: Option<[u16; 2]>) -> Self {
        let pki = Pki::new(5).unwrap();
        let WindowsBoot { files, authority } = windows_boot(&pki, version).unwrap();
        let mut disk = Disk::default();
        files.into_iter().for_each(|(path, content)| disk.insert(path, content));
        Self { pki, disk, store: own_store(certificates(&[&authority]), Vec::new()) }
    }

    /// Another file in the place of one.
    fn with(&self, path: &str, content: Vec<u8>) -> Disk {
        let mut disk = self.disk.clone();
        disk.insert(path, content);
        disk
    }

    /// A file signed by somebody else.
    fn resigned(&self, path: &str, by: &str) -> Disk {
        let bytes = self.disk.read(path).unwrap().unwrap();
        let unsigned = Table { entries: Vec::new(), ..Table::split(&bytes).unwrap() }.join().unwrap();
        self.with(path, signed(&unsigned, self.pki.get(by).unwrap(), &self.pki.issuers(by).unwrap()).unwrap())
    }

    /// A file with one bit of its code changed.
    fn flipped(&self, path: &str) -> Disk {
        let mut bytes = self.disk.read(path).unwrap().unwrap();
        bytes[0x500] ^= 1;
        self.with(path, bytes)
    }

    fn least(&self, entries: &[Entry]) -> VariableStore {
        let list = SignatureList::new(SignatureType::SHA256, entries.to_vec()).unwrap();
        with(&self.store, "dbx", lists(vec![list]))
    }
}

fn entry(owner: Guid, program: Guid, [major, minor]: [u16; 2]) -> Entry {
    Entry { owner, data: [&[1][..], &program.0, &minor.to_le_bytes(), &major.to_le_bytes(), &[0; 11]].concat() }
}

fn stopped(boot: &Boot) -> &str {
    match &boot.end {
        End::Stopped { reason, .. } => reason,
        other => panic!("{other:?}"),
    }
}

#[test]
fn each_verifies_the_next_and_it_is_measured() {
    let chain = Chain::new(Some([9, 0]));
    for (store, on) in [(chain.store.clone(), true), (VariableStore::default(), false)] {
        let boot = start(&chain.disk, &mut store.clone(), Strict);
        let kernel = boot.kernel().unwrap();
        assert_eq!((boot.secure_boot, kernel.lockdown, kernel.event_log), (on, on, true));
        let kinds: Vec<StageKind> = boot.stages.iter().map(|stage| stage.kind).collect();
        assert_eq!(kinds, [StageKind::WindowsBootManager, StageKind::OsLoader, StageKind::NtKernel]);
        let log = EventLog::read(&boot.log).unwrap();
        assert_eq!(loader_sim::measure::check(&log), []);
        let count = |pcr| log.events.iter().filter(|event| event.pcr == pcr).count();
        // one signer of both
        assert_eq!((count(13), count(14)), (2, 1));
        let images: Vec<_> = log.events.iter().filter(|e| e.event_type == EventType::EV_EFI_BOOT_SERVICES_APPLICATION).collect();
        assert_eq!(images.len(), 1, "firmware starts the boot manager and nothing else");
    }
}

#[test]
fn what_is_not_windows_own_is_not_started() {
    let chain = Chain::new(Some([9, 0]));
    let refused = |disk: &Disk, store: &VariableStore| {
        let boot = start(disk, &mut store.clone(), Strict);
        let reason = stopped(&boot).to_owned();
        (boot.stages.last().unwrap().kind, reason)
    };
    for off in [false, true] {
        let store = if off { VariableStore::default() } else { chain.store.clone() };
        for (path, kind, who) in [(LOADER, StageKind::OsLoader, "boot manager: "), (NT, StageKind::NtKernel, "OS loader: ")] {
            for disk in [chain.flipped(path), chain.with(path, application(0)), chain.resigned(path, "code")] {
                let (at, reason) = refused(&disk, &store);
                assert!(at == kind && reason.starts_with(who), "{path}: {reason}");
            }
            // the right authority, and a key for drivers
            let (at, reason) = refused(&chain.resigned(path, "whql"), &store);
            assert!(at == kind && reason.contains("HVCI-PKI-"), "{path}: {reason}");
            let mut missing = Disk::default();
            for file in [MANAGER, LOADER, NT].into_iter().filter(|file| *file != path) {
                missing.insert(file, chain.disk.read(file).unwrap().unwrap());
            }
            assert!(refused(&missing, &store).1.contains("there is no"), "{path}");
        }
    }
    let (at, reason) = refused(&chain.flipped(MANAGER), &chain.store);
    assert!(at == StageKind::WindowsBootManager && reason.contains("Access Denied"), "{reason}");
    // only the boot manager starts them
    let loader = chain.disk.read(LOADER).unwrap().unwrap();
    assert!(refused(&chain.with(MANAGER, loader), &chain.store).1.contains("not known"));
}

/// T4: an old boot manager, which is signed as well as any.
#[test]
fn a_boot_manager_of_a_revoked_version_does_not_start() {
    let least = [entry(MICROSOFT, BOOT_MANAGER, [7, 0]), entry(MICROSOFT, BOOT_MANAGER, [9, 0])];
    for (version, strict, compat) in [
        (Some([9, 0]), true, true),
        (Some([10, 1]), true, true),
        (Some([3, 0]), false, false),
        (Some([8, 65535]), false, false),
        // which does not know that it should look: BlackLotus brings one
        (None, false, true),
    ] {
        let chain = Chain::new(version);
        let store = chain.least(&least);
        for (behaviour, starts) in [(Strict, strict), (Edk2, compat)] {
            let boot = start(&chain.disk, &mut store.clone(), behaviour);
            assert_eq!(boot.kernel().is_some(), starts, "{version:?} {behaviour:?}: {:?}", boot.end);
            let verdict = boot.stages[0].verdict.as_ref().unwrap();
            let codes: Vec<Code> = verdict.findings.iter().map(|finding| finding.code).collect();
            match (behaviour, starts) {
                (Strict, false) => assert_eq!(codes, [Code::BootVersionRevoked]),
                (Edk2, false) => assert!(stopped(&boot).contains("ends itself") && stopped(&boot).contains("HVCI-BOOT-012")),
                (Edk2, true) if version.is_none() => assert_eq!(codes, [Code::BootEdk2Differs]),
                _ => assert_eq!(codes, []),
            }
        }
        // without Secure Boot nobody asks
        let off = store.with_secure_boot(false);
        assert!(start(&chain.disk, &mut off.clone(), Edk2).kernel().is_some());
    }
}

#[test]
fn microsofts_own_versions_are_read() {
    let Some(folder) = env::var_os("HVCI_UEFI") else {
        eprintln!("skipped: HVCI_UEFI is not set");
        return;
    };
    let update = fs::read(PathBuf::from(folder).join("DBXUpdateSVN.bin")).unwrap();
    let payload = Update::read(&update).unwrap().payload.to_vec();
    for (version, starts) in [([9, 0], true), ([8, 0], false)] {
        let chain = Chain::new(Some(version));
        let store = with(&chain.store, "dbx", payload.clone());
        assert_eq!(start(&chain.disk, &mut store.clone(), Strict).kernel().is_some(), starts, "{version:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever is in dbx beside it, the least version holds; and what is no entry of a version revokes none.
    #[test]
    fn entries_that_are_no_versions_change_nothing(data in prop::collection::vec(any::<u8>(), 32), major in 0..20_u16, owned: bool) {
        let chain = CHAIN.with(std::rc::Rc::clone);
        let owner = if owned { MICROSOFT } else { OWNER };
        let is_one = owned && data[0] == 1 && data[1..17] == BOOT_MANAGER.0 && data[21..] == [0; 11];
        prop_assume!(!is_one);
        let store = chain.least(&[Entry { owner, data }, entry(MICROSOFT, BOOT_MANAGER, [major, 0])]);
        prop_assert_eq!(start(&chain.disk, &mut store.clone(), Strict).kernel().is_some(), major <= 9);
    }
}

thread_local! {
    static CHAIN: std::rc::Rc<Chain> = std::rc::Rc::new(Chain::new(Some([9, 0])));
}
