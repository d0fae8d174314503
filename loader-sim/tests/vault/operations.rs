//! Each operation does what it says, for whom it may, and is recorded.

use hvci_engine::{
    addr::Gpn,
    event::What,
    finding::Code,
    frames::Kind,
    status::HvStatus,
    time::UnixTime,
    vault::{Etype, Function, Operation, Rate, Usage, UsePolicy},
};
use loader_sim::lsa::{self, kdc::Kdc, kerberos, ntlm};

use super::{PASSWORD, boot, booted};

const DOMAIN: &str = "EXAMPLE.ORG";

#[test]
fn secrets_are_in_frames_that_are_vtl1s_and_nowhere_else() {
    let mut lsa = boot();
    let hash = [0xC3; 16];
    lsa.add_logon("alice", DOMAIN, (1, &hash), &UsePolicy::default(), false).unwrap();
    assert!(lsa.secret_pages().unwrap().windows(16).any(|bytes| bytes == hash), "it is there");
    assert_eq!(lsa.guest.engine.partition.kind(Gpn(0xA0)), Some(Kind::SecureOnly));
    let dump = lsa.dump().unwrap();
    assert_eq!(dump.left_out, (0xA0..0xB0).map(Gpn).collect::<Vec<_>>());
    assert!(
        !dump.pages.iter().any(|(_, bytes)| bytes.windows(16).any(|bytes| bytes == hash)),
        "the secret is wiped where it was handed over"
    );
}

#[test]
fn an_ntlm_response_is_that_of_the_hash() {
    let mut lsa = boot();
    let credential = lsa.log_on("User", "Domain", "Password").unwrap();
    let info = [&[2, 0, 4, 0][..], b"A\0B\0", &[7, 0, 8, 0], &[9; 8], &[0; 4]].concat();
    let target = ntlm::Target { name: "cifs/files", channel_binding: [7; 16] };
    let (response, session) = ntlm::respond(&mut lsa, credential, 0xefcd_ab89_6745_2301, &info, target).unwrap();
    // by hand, with MS-NLMP's NTOWFv2 of this user (§4.2.4.1.1)
    let owf = hex::decode("0c868a403bfd7a93a3001ef22ef02e3f").unwrap();
    let server = hex::decode("0123456789abcdef").unwrap();
    let proof = hmac_md5(&owf, &[&server, &response[16..]].concat());
    assert_eq!(response[..16], proof);
    let key = hmac_md5(&owf, &proof);
    let code = {
        let messages = [lsa.put(b"one").unwrap(), lsa.put(b"two").unwrap(), lsa.put(b"three").unwrap()].concat();
        lsa.ask(Function::NTLM_INTEGRITY, &[&[session], &messages]).unwrap()
    };
    assert_eq!(code, hmac_md5(&key, b"onetwothree"));
    // the session goes with the credential
    lsa.word(Function::REMOVE, &[&[credential]]).unwrap();
    assert_eq!(lsa.call(Function::REMOVE, &[session]).unwrap().0, HvStatus::NOT_FOUND);
    assert!(lsa.vault().is_empty());
}

fn hmac_md5(key: &[u8], message: &[u8]) -> Vec<u8> {
    use hmac::Mac;
    let mut mac = hmac::Hmac::<md5::Md5>::new_from_slice(key).unwrap();
    mac.update(message);
    mac.finalize().into_bytes().to_vec()
}

#[test]
fn a_timestamp_is_for_the_users_key_and_for_now() {
    let mut lsa = boot();
    let credential = lsa.log_on("alice", DOMAIN, PASSWORD).unwrap();
    for etype in Etype::ALL {
        let cipher = lsa.ask(Function::KERB_TIMESTAMP, &[&[credential, u64::from(etype.number())]]).unwrap();
        let key = etype.of_password(PASSWORD.as_bytes(), b"EXAMPLE.ORGalice");
        let plain = etype.decrypt(&key, &Usage::new(1), &cipher).unwrap();
        assert!(plain.windows(15).any(|bytes| bytes == b"20261118110640Z"), "{:?}", String::from_utf8_lossy(&plain));
    }
}

#[test]
fn only_code_of_the_owner_is_answered_and_strangers_learn_nothing() {
    let mut lsa = boot();
    let credential = lsa.log_on("alice", DOMAIN, PASSWORD).unwrap();
    lsa.events();
    // the kernel's own code, which is of no module
    let block = [Function::REMOVE.0, credential];
    let (status, _) = lsa.guest.call(hvci_engine::load::Function(block[0]), &block[1..]).unwrap();
    assert_eq!(status, HvStatus::ACCESS_DENIED);
    let events = lsa.events();
    let [event] = &events[..] else { panic!("{events:?}") };
    assert_eq!(event.code, Some(Code::VaultCaller));
    assert!(matches!(&event.what, What::Credential { operation, caller: None, .. } if operation == "remove"), "{event:?}");
    // and a handle that is none, or of a credential that was removed
    for handle in [0, 1, u64::MAX, credential ^ 1 << 40] {
        assert_eq!(lsa.call(Function::PUBLIC_KEY, &[handle, 0, 0]).unwrap().0, HvStatus::NOT_FOUND);
    }
    lsa.word(Function::REMOVE, &[&[credential]]).unwrap();
    let again = lsa.log_on("bob", DOMAIN, PASSWORD).unwrap();
    assert_eq!(credential & 0xFFFF_FFFF, again & 0xFFFF_FFFF, "the same place");
    assert_eq!(lsa.call(Function::REMOVE, &[credential]).unwrap().0, HvStatus::NOT_FOUND);
}

#[test]
fn each_use_is_recorded_with_who_and_what_for() {
    let mut lsa = boot();
    let credential = lsa.log_on("alice", DOMAIN, PASSWORD).unwrap();
    lsa.events();
    ntlm::respond(&mut lsa, credential, 1, &[], ntlm::Target { name: "cifs/files", channel_binding: [0; 16] }).unwrap();
    let digest = lsa.module.1;
    let events = lsa.events();
    let used = events.iter().find_map(|event| match &event.what {
        What::Credential { operation, credential, caller, target } => Some((operation.to_string(), *credential, *caller, target.clone())),
        _ => None,
    });
    assert_eq!(used, Some(("ntlm-response".to_owned(), Some(credential), Some(digest), Some("cifs/files".to_owned()))));
}

fn target(name: &str) -> ntlm::Target<'_> {
    ntlm::Target { name, channel_binding: [0; 16] }
}

#[test]
fn policies_of_machine_and_credential_both_hold() {
    let info: &[u8] = &[];
    let mut lsa = booted(UsePolicy { targets: vec!["cifs/*".into()], rate: Some(Rate { uses: 3, seconds: 60 }), ..UsePolicy::default() });
    let own = UsePolicy { budget: Some(4), operations: vec![Operation::Ntlm], ..UsePolicy::default() };
    let credential = lsa.add_logon("alice", DOMAIN, (1, &[3; 16]), &own, false).unwrap();
    let code = |lsa: &mut lsa::Lsa, name: &str| {
        lsa.events();
        let answered = ntlm::respond(lsa, credential, 1, info, target(name));
        (answered.is_ok(), lsa.events().iter().find_map(|event| event.code))
    };
    assert_eq!(code(&mut lsa, "http/x"), (false, Some(Code::VaultTarget)));
    for _ in 0..3 {
        assert_eq!(code(&mut lsa, "cifs/x"), (true, None));
    }
    assert_eq!(code(&mut lsa, "cifs/x"), (false, Some(Code::VaultRate)), "the machine's rate");
    let later = UnixTime(lsa.guest.engine.time.0 + 61);
    lsa.guest.set_time(later);
    assert_eq!(code(&mut lsa, "cifs/x"), (true, None));
    assert_eq!(code(&mut lsa, "cifs/x"), (false, Some(Code::VaultRate)), "the credential's budget");
    assert_eq!(lsa.call(Function::NTLM_COMPARE_CREDENTIALS, &[credential, credential]).unwrap().0, HvStatus::ACCESS_DENIED);

    let mut lsa = booted(UsePolicy { channel_binding: true, ..UsePolicy::default() });
    let credential = lsa.log_on("alice", DOMAIN, PASSWORD).unwrap();
    assert!(ntlm::respond(&mut lsa, credential, 1, info, target("cifs/x")).is_err());
    ntlm::respond(&mut lsa, credential, 1, info, ntlm::Target { name: "cifs/x", channel_binding: [1; 16] }).unwrap();
}

#[test]
fn keys_encrypt_and_sign_for_their_owner() {
    let mut lsa = boot();
    let key = lsa.make_key(1, "disk", &[], false).unwrap();
    let message = lsa.put(b"message").unwrap();
    let associated = lsa.put(b"associated").unwrap();
    let text = lsa.ask(Function::ENCRYPT, &[&[key], &message, &associated]).unwrap();
    let open = |lsa: &mut lsa::Lsa, text: &[u8], associated: &[u8]| {
        let (text, associated) = (lsa.put(text).unwrap(), lsa.put(associated).unwrap());
        lsa.ask(Function::DECRYPT, &[&[key], &text, &associated]).ok()
    };
    assert_eq!(open(&mut lsa, &text, b"associated").as_deref(), Some(&b"message"[..]));
    assert_eq!(open(&mut lsa, &text, b"other"), None);
    assert_eq!(open(&mut lsa, &text[..20], b"associated"), None);

    for kind in [2, 3] {
        let key = lsa.make_key(kind, "host key", b"TLS 1.3, client ", false).unwrap();
        let public = lsa.ask(Function::PUBLIC_KEY, &[&[key]]).unwrap();
        let message = b"TLS 1.3, client CertificateVerify";
        let put = lsa.put(message).unwrap();
        let signature = lsa.ask(Function::SIGN, &[&[key], &put]).unwrap();
        let algorithm: &dyn aws_lc_rs::signature::VerificationAlgorithm =
            if kind == 2 { &aws_lc_rs::signature::ED25519 } else { &aws_lc_rs::signature::ECDSA_P256_SHA256_FIXED };
        aws_lc_rs::signature::UnparsedPublicKey::new(algorithm, &public).verify(message, &signature).unwrap();
        let put = lsa.put(b"anything else").unwrap();
        assert!(lsa.ask(Function::SIGN, &[&[key], &put]).is_err());
    }
    assert!(lsa.make_key(2, "signs anything", b"", false).is_err());
}

#[test]
fn what_is_old_is_refused_always() {
    let mut lsa = boot();
    let credential = lsa.log_on("alice", DOMAIN, PASSWORD).unwrap();
    lsa.events();
    for protocol in 1..=5 {
        assert_eq!(lsa.call(Function::NTLM_CALCULATE_NT_RESPONSE, &[credential, protocol]).unwrap().0, HvStatus::ACCESS_DENIED);
    }
    for etype in [1, 3, 23, 24] {
        assert_eq!(lsa.call(Function::KERB_TIMESTAMP, &[credential, etype, 0, 0]).unwrap().0, HvStatus::ACCESS_DENIED);
    }
    assert_eq!(lsa.events().iter().filter(|event| event.code == Some(Code::VaultLegacy)).count(), 9);
}

#[test]
fn a_kdc_and_a_service_accept_what_the_vault_makes() {
    for etype in Etype::ALL {
        let mut lsa = boot();
        let credential = lsa.log_on("alice", DOMAIN, PASSWORD).unwrap();
        let (kdc, now) = (Kdc::new(DOMAIN, "alice", PASSWORD, etype), lsa.guest.engine.time);
        let request = kerberos::as_request(&mut lsa, credential, ("alice", DOMAIN), etype, 77).unwrap();
        let tgt = kerberos::reply(&mut lsa, credential, &kdc.as_reply(&request, now).unwrap()).unwrap();
        let request = kerberos::tgs_request(&mut lsa, &tgt, DOMAIN, "cifs/files.example.org", etype, 78).unwrap();
        let mut changed = request.clone();
        *changed.last_mut().unwrap() ^= 1;
        assert!(kdc.tgs_reply(&changed, now).is_err(), "the checksum is over the request");
        let ticket = kerberos::reply(&mut lsa, tgt.session, &kdc.tgs_reply(&request, now).unwrap()).unwrap();
        let request = kerberos::ap_request(&mut lsa, &ticket, etype, [3; 16], 0x3E).unwrap();
        let accepted = kdc.accept(&request).unwrap();
        assert_eq!((&*accepted.client, &accepted.checksum[4..20]), ("alice", &[3; 16][..]));
        // the client's ticket is not handed on, nor is one asked for that is somebody else's to use
        assert!(kerberos::ap_request(&mut lsa, &ticket, etype, [0; 16], 0x3F).is_err());
        // a session with a service is none with the KDC, and the other way round
        assert!(kerberos::tgs_request(&mut lsa, &ticket, DOMAIN, "cifs/x", etype, 1).is_err());
        assert!(kerberos::ap_request(&mut lsa, &tgt, etype, [0; 16], 0).is_err());
        // everything goes with the credential
        lsa.word(Function::REMOVE, &[&[credential]]).unwrap();
        assert!(lsa.vault().is_empty());
    }
}
