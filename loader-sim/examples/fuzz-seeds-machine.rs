//! Writes seeds for the fuzz targets of the simulated machine below the folder given: a folder for each target, nothing real.

use std::{fs, path::PathBuf};

use anyhow::{Context, Result, ensure};
use corpus::synth::{DEFAULT_SEED, pki::Pki, windows::windows_boot};
use hvci_engine::{
    digest::DigestAlg,
    policy::secure_boot::Behaviour,
    signature::signature_list::{Entry, SignatureDatabase, SignatureList, SignatureType},
    uefi::Guid,
};
use loader_sim::{
    attest::{Evidence, Features, Profile, evidence::Bytes},
    boot::{Disk, Machine, boot},
    firmware::store::VariableStore,
    vm::quoted,
    vtpm::{Tpm, client::Client, embedded::EmbeddedTpm},
};

const GRUB: &str = "set timeout=0\nfunction f { linux $1 root=/dev/a; }\nif [ -e /vmlinuz ]; then\n  menuentry 'x' --class os { f /vmlinuz }\nelse\n  halt\nfi\n";

fn main() -> Result<()> {
    let dir = PathBuf::from(std::env::args_os().nth(1).context("usage: fuzz-seeds-machine DIR")?);
    let put = |target: &str, name: &str, bytes: &[u8]| -> Result<()> {
        let folder = dir.join(target);
        fs::create_dir_all(&folder)?;
        Ok(fs::write(folder.join(name), bytes)?)
    };
    let log = windows_log()?;
    put("event_log", "windows", &log)?;
    let (state, evidence) = evidence(&log)?;
    put("tpm_state", "started", &state)?;
    put("evidence", "good", &evidence)?;

    let mut commands = Vec::new();
    for command in COMMANDS {
        commands.extend(u16::try_from(command.len())?.to_be_bytes());
        commands.extend(*command);
    }
    put("tpm_command", "some", &commands)?;

    let file = |which: u8, content: &[u8]| -> Result<Vec<u8>> {
        Ok([&[which][..], &u16::try_from(content.len())?.to_be_bytes(), content].concat())
    };
    let partitions = [&[0; 512][..], b"EFI PART\0\0\x01\0\x5C\0\0\0"].concat();
    let disks = [
        [vec![0], file(0, GRUB.as_bytes())?, file(6, &partitions)?].concat(),
        [vec![1], file(2, b"default two*\n")?, file(4, b"title T\nlinux /vmlinuz\ninitrd /i\noptions quiet\n")?].concat(),
        [vec![2], vec![0xFF; 3], b"HdrS".to_vec()].concat(),
    ];
    for (n, disk) in disks.iter().enumerate() {
        put("boot_disk", &n.to_string(), disk)?;
    }
    let list = SignatureList::new(SignatureType::SHA256, vec![Entry { owner: Guid::new(1, 2, 3, [4; 8]), data: vec![5; 32] }]);
    let list = list.map(|list| SignatureDatabase::new(vec![list]).to_bytes()).context("a list")?;
    // EFI_TIME, WIN_CERTIFICATE_UEFI_GUID of no signature
    let time = [0xEA, 7, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let pkcs7 = [0x9D, 0xD2, 0xAF, 0x4A, 0xDF, 0x68, 0xEE, 0x49, 0x8A, 0xA9, 0x34, 0x7D, 0x37, 0x56, 0x65, 0xA7];
    put("variables", "update", &[&time[..], &24_u32.to_le_bytes(), &[0, 2, 0xF1, 0x0E], &pkcs7, &list].concat())?;
    put("sbat", "level", b"sbat,1,2025021800\nshim,4\ngrub,5\n")?;
    Ok(())
}

/// GetCapability, PCR_Read, GetRandom, CreatePrimary without a template, StartAuthSession, NV_DefineSpace.
const COMMANDS: &[&[u8]] = &[
    &[0x80, 1, 0, 0, 0, 22, 0, 0, 1, 0x7A, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0, 16],
    &[0x80, 1, 0, 0, 0, 20, 0, 0, 1, 0x7E, 0, 0, 0, 1, 0, 0x0B, 3, 0xFF, 0, 0],
    &[0x80, 1, 0, 0, 0, 12, 0, 0, 1, 0x7B, 0, 32],
    &[0x80, 2, 0, 0, 0, 27, 0, 0, 1, 0x31, 0x40, 0, 0, 0x0B, 0, 0, 0, 9, 0x40, 0, 0, 9, 0, 0, 0, 0, 0],
    &[
        0x80, 1, 0, 0, 0, 59, 0, 0, 1, 0x76, 0x40, 0, 0, 7, 0x40, 0, 0, 7, 0, 32, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1,
        1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 1, 0, 0x10, 0, 0x0B,
    ],
    &[
        0x80, 2, 0, 0, 0, 45, 0, 0, 1, 0x2A, 0x40, 0, 0, 1, 0, 0, 0, 9, 0x40, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0, 0, 14, 1, 0x80, 0, 1, 0, 0x0B,
        0, 2, 0, 0x12, 0, 0, 0, 8,
    ],
];

/// The log of a chain that the synthesiser makes.
fn windows_log() -> Result<Vec<u8>> {
    let made = windows_boot(&Pki::new(DEFAULT_SEED)?, None)?;
    let mut disk = Disk::default();
    made.files.into_iter().for_each(|(path, content)| disk.insert(path, content));
    let mut variables = VariableStore::default();
    let banks = [DigestAlg::Sha1, DigestAlg::Sha256];
    let machine = Machine { disk: &disk, variables: &mut variables, behaviour: Behaviour::Strict, banks: &banks, firmware: b"firmware" };
    let boot = boot(machine, &mut ())?;
    ensure!(boot.kernel().is_some(), "it does not start: {:?}", boot.end);
    Ok(boot.log)
}

/// State of a TPM, and what a machine with it says of itself.
fn evidence(log: &[u8]) -> Result<(Vec<u8>, Vec<u8>)> {
    let mut tpm = EmbeddedTpm::manufacture([7; 32]);
    Client::new(&mut tpm).startup()?;
    let unsigned = Evidence {
        profile: Profile::Linux,
        vm: "linux".to_owned(),
        nonce: vec![7; 32],
        ak_public: Bytes(Vec::new()),
        quotes: Vec::new(),
        tcg_log: Some(Bytes(log.to_vec())),
        drivers: Vec::new(),
        features: Features { secure_boot: true, vtpm: true, hvci: true, credential_guard: true },
    };
    let evidence = quoted(&mut Client::new(&mut tpm), unsigned, &(0..8).collect::<Vec<_>>())?;
    Ok((tpm.save()?, serde_json::to_vec(&evidence)?))
}
