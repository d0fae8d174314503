//! Invariant I11, at each stage of a credential's life, and with two processors that ask at once.

use alloc::sync::Arc;

use super::{Caller, CredentialKind, Function, Handle, Identity, Key, NewCredential, Secret, UsePolicy, Vault, VaultError};
use crate::{
    access::MapGpaFlags,
    addr::{Gpa, Gpn, PAGE_SHIFT, PAGE_SIZE, Vtl},
    digest::{Digest, DigestAlg},
    frames::Kind,
    host::Host,
    status::HvStatus,
    time::UnixTime,
    vsm::{
        partition::{Partition, races::Guest},
        secure_call::BLOCK,
    },
};

const HASH: [u8; 16] = *b"\xC0\xFF\xEE a hash of NT";
/// Pages of the vault's, and one of VTL0's.
const OWN: [Gpn; 2] = [Gpn(1), Gpn(2)];
const HEAP: u64 = 4 * PAGE_SIZE;

fn opened() -> (Arc<Guest>, Arc<Partition>, Vault, Caller) {
    let (guest, partition) = Guest::new(8);
    let identity = Identity { vm: [1; 16], boot: [2; 16] };
    let config = super::Config { identity, policy: UsePolicy { rate: None, ..UsePolicy::default() }, seed: Key::from([7; 32]) };
    let (vault, _) = Vault::open(Arc::clone(&partition), &OWN, config, None).unwrap();
    let module = Digest::new(DigestAlg::Sha256, &[9; 32]);
    (guest, partition, vault, Caller { module, vp: 0, time: UnixTime(1_795_000_000) })
}

/// The frames that these bytes are in.
fn found(guest: &Guest, bytes: &[u8]) -> Vec<u64> {
    let holds = |frame: &u64| {
        let mut page = [0; 1 << PAGE_SHIFT];
        guest.read(Gpa(frame * PAGE_SIZE), &mut page).unwrap();
        page.windows(bytes.len()).any(|window| window == bytes)
    };
    (0..8).filter(holds).collect()
}

fn block(function: Function, arguments: &[u64]) -> [u8; BLOCK] {
    let mut block = [0; BLOCK];
    let words = core::iter::once(&function.0).chain(arguments);
    block.as_chunks_mut::<8>().0.iter_mut().zip(words).for_each(|(to, word)| *to = word.to_le_bytes());
    block
}

/// No secret is in any frame but those that are VTL1's alone, from when it is handed over to when it is gone.
#[test]
fn i11_no_long_term_secret_is_outside_the_vaults_frames() {
    let (guest, partition, vault, caller) = opened();
    for gpn in OWN {
        assert_eq!(partition.kind(gpn), Some(Kind::SecureOnly));
        assert_eq!(partition.kind(gpn).map(|kind| kind.allows(Vtl::Vtl0)), Some(MapGpaFlags::NONE));
    }
    // what VTL0 hands over is wiped where it was
    guest.write(Gpa(HEAP), &[b"user".as_slice(), &[0; 12], &HASH].concat()).unwrap();
    let arguments = [HEAP, 4, HEAP, 4, 1, HEAP + 16, 16, 0, 0, 0, 0, 0];
    let (status, handle) = vault.call(&block(Function::ADD_LOGON, &arguments), &caller);
    assert_eq!((status, found(&guest, &HASH)), (HvStatus::SUCCESS, vec![1]));
    // out in a blob it is nowhere, and then where it was
    let (status, len) = vault.call(&block(Function::NTLM_PROTECT_CREDENTIAL, &[handle, HEAP, 0x800]), &caller);
    assert_eq!((status, found(&guest, &HASH)), (HvStatus::SUCCESS, vec![]));
    let (status, back) = vault.call(&block(Function::UNPROTECT, &[HEAP, len]), &caller);
    assert_eq!((status, back, found(&guest, &HASH)), (HvStatus::SUCCESS, handle, vec![1]));
    // replaced and removed it is gone
    let other = *b"another of NT's.";
    vault.replace(&caller, Handle(handle), Secret::NtHash(&other)).unwrap();
    assert_eq!((found(&guest, &HASH), found(&guest, &other)), (vec![], vec![1]));
    vault.remove(&caller, Handle(handle)).unwrap();
    assert_eq!(found(&guest, &other), [0; 0]);
    // and when the vault goes, with whatever is left in it
    let new = NewCredential {
        user: "u",
        domain: "d",
        secret: Secret::NtHash(&HASH),
        prefix: &[],
        policy: UsePolicy::default(),
        persistent: false,
    };
    vault.add(&caller, &new).unwrap();
    drop(vault);
    assert_eq!(found(&guest, &HASH), [0; 0]);
    assert_eq!(partition.kind(OWN[0]), Some(Kind::SecureOnly), "and the pages are nobody's");
}

/// Two processors add, use, put out and remove credentials: each is whole or not there, and no place has two.
#[test]
fn races_of_two_processors_leave_every_credential_whole() {
    shuttle::check_random(
        || {
            let (guest, _, vault, caller) = opened();
            let vault = Arc::new(vault);
            let threads: Vec<_> = (0..2_u8)
                .map(|vp| {
                    let vault = Arc::clone(&vault);
                    let caller = Caller { vp: vp.into(), ..caller };
                    shuttle::thread::spawn(move || {
                        let hash = [0xA0 | vp; 16];
                        let new = NewCredential {
                            user: "u",
                            domain: "d",
                            secret: Secret::NtHash(&hash),
                            prefix: &[],
                            policy: UsePolicy::default(),
                            persistent: false,
                        };
                        let handle = vault.add(&caller, &new).unwrap();
                        let blob = vault.protect(&caller, handle).unwrap();
                        // the other's blob, by a handle that is not its own
                        let mut others = blob.clone();
                        others[6] ^= 1;
                        assert_eq!(vault.unprotect(&caller, &others), Err(VaultError::Blob));
                        assert_eq!(vault.unprotect(&caller, &blob), Ok(handle));
                        if vp == 0 {
                            vault.remove(&caller, handle).unwrap();
                        }
                    })
                })
                .collect();
            threads.into_iter().for_each(|thread| thread.join().unwrap());
            assert_eq!((found(&guest, &[0xA0; 16]), found(&guest, &[0xA1; 16])), (vec![], vec![1]));
            let listed = vault.list(&caller).unwrap();
            assert_eq!(listed.iter().map(|one| (one.kind, one.out)).collect::<Vec<_>>(), [(CredentialKind::Logon, false)]);
        },
        200,
    );
}
