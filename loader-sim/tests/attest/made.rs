//! A machine that is made up: what it measured, what it says that it measured, and a TPM's key that signs.

use std::collections::BTreeMap;

use corpus::synth::{
    certificate::{Identity, Template},
    key::{Key, KeyKind},
};
use hvci_engine::{
    crypto,
    digest::{Digest, DigestAlg},
    time::UnixTime,
    uefi::Guid,
};
use loader_sim::{
    attest::{
        Appraisal, DbxInfo, Evidence, Features, Ledger, Machine, Profile, Reference, Verifier,
        evidence::{Bytes, DriverEvent, QuoteEvidence, Refusal},
    },
    firmware::variable::{GLOBAL, IMAGE_SECURITY, SHIM},
    measure::{EventLog, EventType as T, LogBuilder, TpmAlg, replay},
};
use p256::ecdsa::{Signature, signature::Signer};
use x509_cert::der::Encode;

pub(crate) const BANKS: [DigestAlg; 2] = [DigestAlg::Sha1, DigestAlg::Sha256];
pub(crate) const NONCE: [u8; 32] = [0x5A; 32];
pub(crate) const NOW: UnixTime = UnixTime(1_790_000_000);
pub(crate) const VM: &str = "web-1";
/// restricted, sign, userWithAuth, sensitiveDataOrigin, fixedParent, fixedTPM
pub(crate) const AK_ATTRIBUTES: u32 = 0x0005_0072;

/// An event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Record {
    pub(crate) pcr: u32,
    pub(crate) event_type: T,
    pub(crate) digests: Vec<Digest>,
    pub(crate) data: Vec<u8>,
}

pub(crate) fn sha256(bytes: &[u8]) -> Digest {
    crypto::digest(DigestAlg::Sha256, &[bytes])
}

pub(crate) fn record(pcr: u32, event_type: T, measured: &[u8], data: &[u8]) -> Record {
    let digests = BANKS.into_iter().map(|alg| crypto::digest(alg, &[measured])).collect();
    Record { pcr, event_type, digests, data: data.to_vec() }
}

pub(crate) fn same(pcr: u32, event_type: T, data: &[u8]) -> Record {
    record(pcr, event_type, data, data)
}

pub(crate) fn variable(guid: Guid, name: &str, value: &[u8]) -> Vec<u8> {
    let name: Vec<u16> = name.encode_utf16().collect();
    let mut bytes = guid.0.to_vec();
    bytes.extend((name.len() as u64).to_le_bytes());
    bytes.extend((value.len() as u64).to_le_bytes());
    bytes.extend(name.into_iter().flat_map(u16::to_le_bytes));
    bytes.extend(value);
    bytes
}

pub(crate) fn config(guid: Guid, name: &str, value: &[u8]) -> Record {
    same(7, T::EV_EFI_VARIABLE_DRIVER_CONFIG, &variable(guid, name, value))
}

pub(crate) fn authority(guid: Guid, name: &str, value: &[u8]) -> Record {
    same(7, T::EV_EFI_VARIABLE_AUTHORITY, &variable(guid, name, value))
}

/// A certificate as an entry of db or of a list of shim's.
pub(crate) fn owned(der: &[u8]) -> Vec<u8> {
    [&[7; 16], der].concat()
}

/// An image that was started: `content` stands for what its authentihash is of.
pub(crate) fn image(content: &[u8], path: &str) -> Record {
    let mut node: Vec<u8> = path.encode_utf16().chain([0]).flat_map(u16::to_le_bytes).collect();
    let len = u16::try_from(node.len() + 4).unwrap().to_le_bytes();
    node = [&[4, 4, len[0], len[1]], &node[..], &[0x7F, 0xFF, 4, 0]].concat();
    let mut data = vec![0; 24];
    data.extend((node.len() as u64).to_le_bytes());
    data.extend(node);
    record(4, T::EV_EFI_BOOT_SERVICES_APPLICATION, content, &data)
}

pub(crate) fn tagged(pcr: u32, id: u32, data: &[u8]) -> Record {
    same(pcr, T::EV_EVENT_TAG, &tag(id, data))
}

pub(crate) fn tag(id: u32, data: &[u8]) -> Vec<u8> {
    [&id.to_le_bytes(), &u32::try_from(data.len()).unwrap().to_le_bytes(), data].concat()
}

/// A CA with a key of its own; `from` and `until` its validity.
pub(crate) fn ca(name: &str, seed: u64, until: &'static str) -> Vec<u8> {
    let key = Key::derive(seed, name, KeyKind::P256).unwrap();
    let Identity { certificate, .. } = Template { until, ..Template::ca(&format!("CN={name}"), None) }.issue(&key, None).unwrap();
    certificate.to_der().unwrap()
}

pub(crate) fn firmware_ca() -> Vec<u8> {
    // long over, as those of every real chain are
    ca("Firmware CA", 1, "2012-01-01")
}

pub(crate) fn distribution_ca() -> Vec<u8> {
    ca("Distribution CA", 2, "2045-01-01")
}

pub(crate) const SBAT_LEVEL: &[u8] = b"sbat,1,2025021800\nshim,4\ngrub,5\n";

/// A Linux distribution's start, in the order of a real one.
pub(crate) fn linux() -> Vec<Record> {
    let zeros = &[0; 4];
    let mut log = vec![
        same(0, T::EV_S_CRTM_VERSION, b"\x31\0\0\0"),
        record(0, T::EV_EFI_PLATFORM_FIRMWARE_BLOB, b"firmware", &[0; 16]),
        config(GLOBAL, "SecureBoot", &[1]),
        config(GLOBAL, "PK", b"a platform key"),
        config(GLOBAL, "KEK", b"a key exchange key"),
        config(IMAGE_SECURITY, "db", b"what may start"),
        config(IMAGE_SECURITY, "dbx", b""),
        same(7, T::EV_SEPARATOR, zeros),
        record(1, T::EV_EFI_VARIABLE_BOOT, &[1, 0], &variable(GLOBAL, "BootOrder", &[1, 0])),
        same(4, T::EV_EFI_ACTION, b"Calling EFI Application from Boot Option"),
    ];
    log.extend((0..7).map(|pcr| same(pcr, T::EV_SEPARATOR, zeros)));
    log.extend([
        authority(IMAGE_SECURITY, "db", &owned(&firmware_ca())),
        image(b"shim", "\\EFI\\BOOT\\BOOTX64.EFI"),
        record(14, T::EV_IPL, b"the distribution's list", b"MokList\0"),
        record(14, T::EV_IPL, b"the distribution's revocations", b"MokListX\0"),
        authority(SHIM, "SbatLevel", SBAT_LEVEL),
        authority(SHIM, "MokListRT", &owned(&distribution_ca())),
        image(b"grub", "\\EFI\\BOOT\\grubx64.efi"),
        record(8, T::EV_IPL, b"linux /vmlinuz", b"grub_cmd: linux /vmlinuz\0"),
        record(9, T::EV_IPL, b"vmlinuz", b"/vmlinuz\0"),
        image(b"kernel", ""),
        image(b"kernel", ""),
        same(5, T::EV_EFI_ACTION, b"Exit Boot Services Invocation"),
        same(5, T::EV_EFI_ACTION, b"Exit Boot Services Returned with Success"),
    ]);
    log
}

/// Windows' start, with what it measures of its settings.
pub(crate) fn windows() -> Vec<Record> {
    let mut log: Vec<Record> = linux().into_iter().filter(|r| r.pcr < 8 && !is_image(r, b"kernel") && !is_image(r, b"grub")).collect();
    log.retain(|r| r.event_type != T::EV_EFI_VARIABLE_AUTHORITY || r.data.starts_with(&IMAGE_SECURITY.0));
    let settings = [tag(0x0005_0012, &1_u64.to_le_bytes()), tag(0x000A_0007, &[1]), tag(0x0005_0028, &1_u32.to_le_bytes())].concat();
    log.extend([
        tagged(12, 0x4001_0001, &settings),
        tagged(12, 0x0005_0003, &[0]),
        same(12, T::EV_SEPARATOR, b"WBCL"),
        tagged(13, 0x4001_0003, &tag(0x0007_0004, sha256(b"driver").as_bytes())),
    ]);
    log
}

pub(crate) fn is_image(record: &Record, content: &[u8]) -> bool {
    record.event_type == T::EV_EFI_BOOT_SERVICES_APPLICATION && record.digests[1] == sha256(content)
}

pub(crate) fn position(log: &[Record], content: &[u8]) -> usize {
    log.iter().position(|r| is_image(r, content)).unwrap()
}

pub(crate) fn bytes(records: &[Record]) -> Vec<u8> {
    let mut bytes = LogBuilder::new(&BANKS).unwrap().bytes().to_vec();
    for record in records {
        bytes.extend(record.pcr.to_le_bytes());
        bytes.extend(record.event_type.0.to_le_bytes());
        bytes.extend(u32::try_from(record.digests.len()).unwrap().to_le_bytes());
        for digest in &record.digests {
            bytes.extend(TpmAlg::of(digest.alg()).unwrap().0.to_le_bytes());
            bytes.extend(digest.as_bytes());
        }
        bytes.extend(u32::try_from(record.data.len()).unwrap().to_le_bytes());
        bytes.extend(&record.data);
    }
    bytes
}

pub(crate) fn replayed(log: &[u8], bank: DigestAlg) -> BTreeMap<u32, Digest> {
    let bank = replay(&EventLog::read(log).unwrap()).into_iter().find(|b| b.alg == bank).unwrap();
    (0..).zip(bank.pcrs).collect()
}

/// A TPM's attestation key, and what else a quote has.
#[derive(Clone, Debug)]
pub(crate) struct Tpm {
    pub(crate) key: p256::ecdsa::SigningKey,
    pub(crate) attributes: u32,
    pub(crate) magic: [u8; 4],
    pub(crate) attest_type: u16,
    pub(crate) nonce: Vec<u8>,
    pub(crate) reset_count: u32,
    pub(crate) restart_count: u32,
    pub(crate) safe: bool,
    pub(crate) bank: DigestAlg,
    pub(crate) selected: Vec<u32>,
    pub(crate) pcrs: BTreeMap<u32, Digest>,
}

impl Tpm {
    pub(crate) fn new(seed: u64, log: &[u8]) -> Self {
        let Key::P256(key) = Key::derive(seed, "attestation key", KeyKind::P256).unwrap() else { panic!("P-256") };
        Self {
            key,
            attributes: AK_ATTRIBUTES,
            magic: [0xFF, b'T', b'C', b'G'],
            attest_type: 0x8018,
            nonce: NONCE.to_vec(),
            reset_count: 7,
            restart_count: 0,
            safe: true,
            bank: DigestAlg::Sha256,
            selected: (0..16).collect(),
            pcrs: replayed(log, DigestAlg::Sha256),
        }
    }

    /// TPM2B_PUBLIC.
    pub(crate) fn public(&self) -> Vec<u8> {
        let point = self.key.verifying_key().to_encoded_point(false);
        let mut area = vec![0x00, 0x23, 0x00, 0x0B];
        area.extend(self.attributes.to_be_bytes());
        // no policy; symmetric null, ECDSA with SHA-256, P-256, kdf null
        area.extend([0, 0, 0x00, 0x10, 0x00, 0x18, 0x00, 0x0B, 0x00, 0x03, 0x00, 0x10]);
        for coordinate in [point.x().unwrap(), point.y().unwrap()] {
            area.extend([0, 32]);
            area.extend(coordinate);
        }
        [&u16::try_from(area.len()).unwrap().to_be_bytes()[..], &area].concat()
    }

    pub(crate) fn name(&self) -> Vec<u8> {
        [&[0x00, 0x0B], sha256(&self.public()[2..]).as_bytes()].concat()
    }

    /// TPMS_ATTEST.
    pub(crate) fn message(&self) -> Vec<u8> {
        let mut select = [0_u8; 3];
        for pcr in &self.selected {
            select[usize::try_from(pcr / 8).unwrap()] |= 1 << (pcr % 8);
        }
        let values: Vec<&[u8]> = self.selected.iter().map(|pcr| self.pcrs[pcr].as_bytes()).collect();
        let mut message = self.magic.to_vec();
        message.extend(self.attest_type.to_be_bytes());
        message.extend([0, 34]);
        message.extend(self.name());
        message.extend(u16::try_from(self.nonce.len()).unwrap().to_be_bytes());
        message.extend(&self.nonce);
        message.extend(123_456_u64.to_be_bytes());
        message.extend(self.reset_count.to_be_bytes());
        message.extend(self.restart_count.to_be_bytes());
        message.push(u8::from(self.safe));
        message.extend(0x2019_1023_u64.to_be_bytes());
        message.extend(1_u32.to_be_bytes());
        message.extend(TpmAlg::of(self.bank).unwrap().0.to_be_bytes());
        message.push(3);
        message.extend(select);
        message.extend([0, 32]);
        message.extend(crypto::digest(DigestAlg::Sha256, &values).as_bytes());
        message
    }

    /// TPMT_SIGNATURE of `message`.
    pub(crate) fn sign(&self, message: &[u8]) -> Vec<u8> {
        let signature: Signature = self.key.sign(message);
        let (r, s) = signature.split_bytes();
        [&[0x00, 0x18, 0x00, 0x0B, 0, 32], &r[..], &[0, 32], &s[..]].concat()
    }

    pub(crate) fn quote(&self) -> QuoteEvidence {
        let message = self.message();
        let pcrs = self.selected.iter().map(|pcr| (*pcr, self.pcrs[pcr])).collect();
        QuoteEvidence { signature: Bytes(self.sign(&message)), message: Bytes(message), pcrs }
    }

    /// Evidence of a machine with this TPM.
    pub(crate) fn evidence(&self, log: Option<&[u8]>) -> Evidence {
        Evidence {
            profile: Profile::Linux,
            vm: VM.to_owned(),
            nonce: NONCE.to_vec(),
            ak_public: Bytes(self.public()),
            quotes: vec![self.quote()],
            tcg_log: log.map(|log| Bytes(log.to_vec())),
            drivers: Vec::new(),
            features: FEATURES,
        }
    }
}

pub(crate) const FEATURES: Features = Features { secure_boot: true, vtpm: true, hvci: false, credential_guard: false };

pub(crate) fn machine(tpm: &Tpm) -> Machine {
    Machine {
        profile: Profile::Linux,
        features: FEATURES,
        ak_name: tpm.name(),
        ek_name: [&[0x00, 0x0B][..], sha256(&tpm.name()).as_bytes()].concat(),
        reset_count: 7,
        restart_count: 0,
        orderly: true,
        ledger: Ledger::Current,
        baseline: None,
    }
}

/// Reference values of the start that [`linux`] is.
pub(crate) fn reference_text() -> String {
    let text = r#"
chain = ["shim", "boot-loader", "kernel"]
[secure_boot]
pk = ["PK"]
kek = ["KEK"]
db = ["DB"]
[mok]
MokList = ["MOKLIST"]
MokListX = "any"
[sbat]
shim = 4
grub = 5
[[component]]
stage = "shim"
name = "shim 16.1"
authentihash = ["SHIM"]
sbat = { shim = 4 }
[[component]]
stage = "boot-loader"
name = "GRUB 2.06"
authentihash = ["GRUB"]
sbat = { grub = 5 }
[[component]]
stage = "kernel"
name = "Linux 6.1"
authentihash = ["KERNEL"]
[[signer]]
name = "firmware"
certificate = "FIRMWARE_CA"
[[signer]]
name = "distribution"
certificate = "DISTRIBUTION_CA"
"#;
    let digests: [(&str, &[u8]); 9] = [
        ("PK", b"a platform key"),
        ("KEK", b"a key exchange key"),
        ("DB", b"what may start"),
        ("MOKLIST", b"the distribution's list"),
        ("SHIM", b"shim"),
        ("GRUB", b"grub"),
        ("KERNEL", b"kernel"),
        ("FIRMWARE_CA", &firmware_ca()),
        ("DISTRIBUTION_CA", &distribution_ca()),
    ];
    digests.into_iter().fold(text.to_owned(), |text, (name, of)| text.replace(&format!("\"{name}\""), &format!("\"{}\"", sha256(of))))
}

pub(crate) fn verifier(text: &str, machine: Machine) -> Verifier {
    Verifier::new(Reference::read(text).unwrap(), dbx_info(), BTreeMap::from([(VM.to_owned(), machine)]))
}

/// With one image revoked: `b"boothole"`.
pub(crate) fn dbx_info() -> DbxInfo {
    let json = serde_json::json!({ "images": { "x64": [{
        "authenticodeHash": sha256(b"boothole").hex().to_uppercase(), "hashType": "SHA256", "flatHash": "", "filename": "grubx64.efi",
        "description": "CVE-2020-10713; CVE-2020-14308", "companyName": " A Company ", "dateOfAddition": "2020-07-01",
        "signingAuthority": "CN = Somebody",
    }] }, "svns": [] });
    DbxInfo::read(json.to_string().as_bytes()).unwrap()
}

/// Appraises a start that measured `measured`, and whose log says `said`.
pub(crate) fn appraise(measured: &[Record], said: &[Record]) -> Appraisal {
    let tpm = Tpm::new(1, &bytes(measured));
    verifier(&reference_text(), machine(&tpm)).appraise(&tpm.evidence(Some(&bytes(said))), &NONCE, NOW)
}

pub(crate) fn driver(content: &[u8], refused: Option<Refusal>) -> DriverEvent {
    DriverEvent {
        path: "\\driver.sys".to_owned(),
        authentihash: sha256(content),
        signer: Some("CN=Somebody".to_owned()),
        version: Some("1.2".to_owned()),
        refused,
    }
}
