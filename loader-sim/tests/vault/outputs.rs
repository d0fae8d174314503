//! Every output of every function, looked through for every secret: an enumeration, not a sample.

use hvci_engine::{
    addr::Gpa,
    host::Host,
    status::HvStatus,
    vault::{Content, Etype, Function, Output, UsePolicy},
};
use loader_sim::lsa::{Lsa, kdc::Kdc, kerberos, search, secrets_of};
use proptest::prelude::*;

use super::{PASSWORD, boot};

/// Every eight bytes of the frames that secrets are in, which are no zeros.
fn records(lsa: &Lsa) -> Vec<Vec<u8>> {
    let pages = lsa.secret_pages().unwrap();
    pages.chunks(8).filter(|chunk| chunk.iter().filter(|byte| **byte == 0).count() < 4).map(<[u8]>::to_vec).collect()
}

/// Functions that answer with bytes, or with a word, by what they say of themselves.
#[test]
fn no_kind_of_answer_is_a_key() {
    for (function, name, output) in Function::ALL {
        match output {
            Output::Nothing | Output::Handle | Output::Truth => {}
            Output::Bytes(content) | Output::SessionAndBytes(content) => assert!(
                matches!(
                    content,
                    Content::Response
                        | Content::Code
                        | Content::Cipher
                        | Content::Plain
                        | Content::Signature
                        | Content::PublicKey
                        | Content::Blob
                        | Content::List
                ),
                "{name} {function:?}"
            ),
        }
    }
    let mut numbers: Vec<u64> = Function::ALL.iter().map(|(function, ..)| function.0).collect();
    numbers.sort_unstable();
    numbers.dedup();
    assert_eq!(numbers.len(), Function::ALL.len());
}

/// Each function with each credential that there is: nothing that is in a frame of VTL1's comes out, and all of the room for the
/// answer is written, or none of it.
#[test]
fn no_answer_has_a_secret_in_it_and_none_is_half_written() {
    const ANSWER: u64 = 0xE0_000;
    const ROOM: u64 = 0x400;
    let mut lsa = boot();
    let mut handles = vec![
        lsa.log_on("alice", "EXAMPLE.ORG", PASSWORD).unwrap(),
        lsa.add_logon("bob", "D", (18, &[0xB7; 32]), &UsePolicy::default(), false).unwrap(),
    ];
    for kind in 1..=3 {
        handles.push(lsa.make_key(kind, "key", if kind == 1 { b"" } else { b"m" }, false).unwrap());
    }
    let now = lsa.guest.engine.time;
    let (_, session) = loader_sim::lsa::ntlm::respond(
        &mut lsa,
        handles[0],
        1,
        &[],
        loader_sim::lsa::ntlm::Target { name: "cifs/x", channel_binding: [0; 16] },
    )
    .unwrap();
    handles.push(session);
    let kdc = Kdc::new("EXAMPLE.ORG", "alice", PASSWORD, Etype::Aes256Sha1);
    let request = kerberos::as_request(&mut lsa, handles[0], ("alice", "EXAMPLE.ORG"), Etype::Aes256Sha1, 1).unwrap();
    let tgt = kerberos::reply(&mut lsa, handles[0], &kdc.as_reply(&request, now).unwrap()).unwrap();
    handles.push(tgt.session);
    let secrets = records(&lsa);
    assert!(secrets.len() > 20, "{}", secrets.len());
    let body = body();
    let mut functions = Function::ALL.to_vec();
    // what is out is of no use to the others
    functions.sort_by_key(|(function, ..)| *function == Function::NTLM_PROTECT_CREDENTIAL);
    for (function, name, output) in &functions {
        let mut answered = 0;
        for handle in &handles {
            lsa.guest.host.write(Gpa(ANSWER), &[0xA5; 0x400]).unwrap();
            let arguments = arguments(&mut lsa, *function, *handle, &body);
            let (status, _) = lsa.call(*function, &[&arguments[..], &[ANSWER, ROOM]].concat()).unwrap();
            let written = lsa.guest.read(ANSWER, 0x400).unwrap();
            if status == HvStatus::SUCCESS && written != [0xA5; 0x400] {
                answered += 1;
                assert!(!written.ends_with(&[0xA5; 4]), "{name}: the room is not filled");
            }
            assert!(status == HvStatus::SUCCESS || written == [0xA5; 0x400], "{name}: written, and refused");
            for secret in &secrets {
                assert!(!written.windows(8).any(|bytes| bytes == secret), "{name} gives a secret out");
            }
        }
        let has_bytes = matches!(output, Output::Bytes(_) | Output::SessionAndBytes(_));
        // a reply of a KDC and a text that decrypts are in other tests
        let elsewhere = [Function::KERB_REPLY, Function::DECRYPT].contains(function);
        assert_eq!(answered > 0, has_bytes && !elsewhere, "{name} answered {answered} times");
    }
}

/// The KDC-REQ-BODY of a request for a service.
fn body() -> Vec<u8> {
    use corpus::synth::der::Node;
    let text = |text: &str| Node::primitive(0x1B, text.as_bytes());
    let name = Node::sequence(vec![
        Node::context(0, vec![Node::integer(2)]),
        Node::context(1, vec![Node::sequence(vec![text("cifs"), text("x")])]),
    ]);
    let options = Node::context(0, vec![Node::primitive(3, [0, 0x40, 0, 0, 0])]);
    Node::sequence(vec![options, Node::context(2, vec![text("R")]), Node::context(3, vec![name])]).encode()
}

/// Arguments of a function that it can do something with, up to the place of the answer.
fn arguments(lsa: &mut Lsa, function: Function, handle: u64, body: &[u8]) -> Vec<u64> {
    let message = lsa.put(b"message").unwrap();
    let body = lsa.put(body).unwrap();
    match function {
        Function::NTLM_RESPONSE => [&[handle, 1, 0, 0][..], &message, &[0, 1]].concat(),
        Function::NTLM_INTEGRITY => [&[handle][..], &message, &message, &message].concat(),
        Function::NTLM_SIGNATURE => [&[handle, 1, 1][..], &message].concat(),
        Function::KERB_TIMESTAMP => vec![handle, 18],
        Function::KERB_REPLY => [&[handle, 18][..], &message].concat(),
        Function::KERB_AUTHENTICATOR => [&[handle, 1][..], &body, &[0]].concat(),
        Function::KERB_CHECKSUM => [&[handle][..], &body].concat(),
        Function::ENCRYPT | Function::DECRYPT => [&[handle][..], &message, &message].concat(),
        Function::SIGN => [&[handle][..], &message].concat(),
        Function::LIST => Vec::new(),
        // kept in its frame: the next handles are looked at too
        Function::REMOVE | Function::REPLACE => vec![u64::MAX],
        _ => vec![handle],
    }
}

#[test]
fn nothing_is_told_by_debug_errors_or_events() {
    let mut lsa = boot();
    let needles = secrets_of("alice", "EXAMPLE.ORG", PASSWORD);
    let alice = lsa.log_on("alice", "EXAMPLE.ORG", PASSWORD).unwrap();
    // the search finds what is there
    assert!(search(&lsa.secret_pages().unwrap(), &needles).len() >= 5);
    let mut said = String::new();
    for function in Function::ALL {
        let arguments = [alice; 12];
        let (status, word) = lsa.call(function.0, &arguments).unwrap();
        said += &format!("{status} {status:?} {word:#x}\n");
    }
    said += &format!("{:?} {:#?}\n", lsa, lsa.vault());
    said += &serde_json::to_string(&lsa.events()).unwrap();
    assert_eq!(search(said.as_bytes(), &needles), []);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]
    #[test]
    fn any_words_are_answered(function in 0_usize..30, words in prop::collection::vec(any::<u64>(), 12), near in prop::collection::vec(0_u64..0x400_000, 12), pick: u16) {
        let mut lsa = boot();
        let alice = lsa.add_logon("alice", "D", (1, &[7; 16]), &UsePolicy::default(), false).unwrap();
        let function = Function::ALL[function % Function::ALL.len()].0;
        let mut arguments: Vec<u64> = words.iter().zip(&near).enumerate().map(|(i, (far, near))| if pick >> i & 1 == 0 { *near } else { *far }).collect();
        arguments[0] = alice;
        let _ = lsa.call(function, &arguments).unwrap();
    }
}
