//! A vault that is asked anything, with anything in the guest's memory, by blobs and replies of a KDC that nobody made: nothing panics, and
//! no secret is in memory of VTL0's afterwards.
#![no_main]

use std::sync::Arc;

use hvci_engine::{
    addr::{Gpa, Gpn, PAGE_SIZE},
    crypto,
    digest::DigestAlg,
    frames::Kind,
    host::Host,
    time::UnixTime,
    vault::{Caller, Etype, Function, Key, NewCredential, Secret, Usage, UsePolicy, Vault},
    vsm::secure_call::BLOCK,
};
use libfuzzer_sys::fuzz_target;
use loader_sim::{
    host::{Config, SimHost},
    lsa::config,
};

/// Pages of RAM; the vault's are the last.
const PAGES: u64 = 16;
const OWN: [Gpn; 2] = [Gpn(14), Gpn(15)];
const SECRET: [u8; 16] = [0x5B, 0xE1, 0x09, 0xC4, 0x77, 0xD2, 0x3A, 0x8F, 0x10, 0xB6, 0x4C, 0xF9, 0x25, 0x93, 0xE8, 0x6D];
/// EncASRepPart is encrypted for this use.
const AS_REP: Usage = Usage::new(3);

fuzz_target!(|data: &[u8]| {
    let (calls, content) = data.split_at(data.len().min(8 * (BLOCK + 1)));
    if content.windows(16).chain(calls.windows(16)).any(|bytes| bytes == SECRET) {
        return;
    }
    let (host, partition) = SimHost::with_partition(&Config { pages: PAGES, records: 16, ..Config::default() }).unwrap();
    let policy = UsePolicy { rate: None, ..UsePolicy::default() };
    let (vault, _) = Vault::open(Arc::clone(&partition), &OWN, config([1; 16], policy.clone()), None).unwrap();
    let module = Some(crypto::digest(DigestAlg::Sha256, &[b"module"]));
    let caller = Caller { module, vp: 0, time: UnixTime(1_795_000_000) };
    let new = |secret| NewCredential { user: "u", domain: "D", secret, prefix: &[], policy: policy.clone(), persistent: false };
    let handle = vault.add(&caller, &new(Secret::KerberosKey(Etype::Aes128Sha1, &SECRET))).unwrap();
    let hash = vault.add(&caller, &new(Secret::NtHash(&SECRET))).unwrap();

    // what a KDC might say to who knows the password
    let key = Key::from(SECRET);
    let cipher = Etype::Aes128Sha1.encrypt(&key, &AS_REP, &[0; 16], content);
    let session = vault.kerberos_reply(&caller, handle, Etype::Aes128Sha1, &cipher).ok().map(|(session, _)| session);

    for (page, bytes) in (0..OWN[0].0).zip(content.chunks(4096)) {
        host.write(Gpa(page * PAGE_SIZE), bytes).unwrap();
    }
    let handles = [Some(handle), Some(hash), session];
    for call in calls.chunks_exact(BLOCK + 1) {
        let (kind, block) = call.split_first().unwrap();
        let mut block: [u8; BLOCK] = block.try_into().unwrap();
        // functions that there are, a handle that there is, and words that are small
        if kind & 1 != 0 {
            let function = Function::ALL[usize::from(block[0]) % Function::ALL.len()].0;
            block.as_chunks_mut::<8>().0.iter_mut().for_each(|word| word[2..].fill(0));
            block[..8].copy_from_slice(&function.0.to_le_bytes());
            if let Some(handle) = handles[usize::from(kind >> 1) % 3] {
                block[8..16].copy_from_slice(&handle.0.to_le_bytes());
            }
        }
        let _ = vault.call(&block, &caller);
        for page in 0..OWN[0].0 {
            let mut bytes = [0; 4096];
            host.read(Gpa(page * PAGE_SIZE), &mut bytes).unwrap();
            assert!(!bytes.windows(16).any(|window| window == SECRET), "a secret in page {page}");
        }
        assert!(OWN.iter().all(|gpn| partition.kind(*gpn) == Some(Kind::SecureOnly)));
    }
});
