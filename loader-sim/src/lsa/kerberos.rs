//! The client of Kerberos (RFC 4120): AS-REQ, TGS-REQ and AP-REQ, with what keys are used for made by the vault.

use anyhow::{Context, Result, ensure};
use corpus::synth::der::Node;
use hvci_engine::{
    time::UnixTime,
    vault::{Etype, Function},
};

use super::{
    Lsa,
    kdc::{BIT_STRING, GENERALIZED_TIME, kerberos_time, principal, text},
};

/// forwardable, renewable, canonicalize.
const OPTIONS: [u8; 4] = [0x40, 0x81, 0x00, 0x00];

/// A ticket, and the session that it is for, in the vault.
#[derive(Clone, Debug)]
pub struct Ticket {
    /// The ticket, as the KDC made it.
    pub ticket: Vec<u8>,
    /// The session's key, by its handle.
    pub session: u64,
    /// What the KDC said, without the key.
    pub redacted: Vec<u8>,
}

fn application(n: u8, content: Node) -> Node {
    Node::constructed(0x60 | n, vec![content])
}

pub(super) fn encrypted(etype: Etype, cipher: Vec<u8>) -> Node {
    Node::sequence(vec![Node::context(0, vec![Node::integer(u64::from(etype.number()))]), Node::context(2, vec![Node::octets(cipher)])])
}

/// KDC-REQ-BODY.
fn body(client: Option<&str>, realm: &str, service: &str, etype: Etype, nonce: u32) -> Node {
    // the latest that old implementations read (RFC 4120 §5.2.3)
    let until = kerberos_time(UnixTime(0x7FFF_FFFF));
    let options = [&[0][..], &OPTIONS].concat();
    let mut fields = vec![Node::context(0, vec![Node::primitive(BIT_STRING, options)])];
    fields.extend(client.map(|client| Node::context(1, vec![principal(1, client)])));
    fields.extend([
        Node::context(2, vec![text(realm)]),
        Node::context(3, vec![principal(2, service)]),
        Node::context(5, vec![Node::primitive(GENERALIZED_TIME, until.as_bytes())]),
        Node::context(7, vec![Node::integer(u64::from(nonce))]),
        Node::context(8, vec![Node::sequence(vec![Node::integer(u64::from(etype.number()))])]),
    ]);
    Node::sequence(fields)
}

/// KDC-REQ.
fn request(kind: u8, padata: (u64, Vec<u8>), body: Node) -> Vec<u8> {
    let (number, value) = padata;
    let padata = Node::sequence(vec![Node::context(1, vec![Node::integer(number)]), Node::context(2, vec![Node::octets(value)])]);
    let fields = vec![
        Node::context(1, vec![Node::integer(5)]),
        Node::context(2, vec![Node::integer(u64::from(kind))]),
        Node::context(3, vec![Node::sequence(vec![padata])]),
        Node::context(4, vec![body]),
    ];
    application(kind, Node::sequence(fields)).encode()
}

/// AS-REQ with pre-authentication.
///
/// # Errors
/// The vault's.
pub fn as_request(lsa: &mut Lsa, credential: u64, (user, realm): (&str, &str), etype: Etype, nonce: u32) -> Result<Vec<u8>> {
    let cipher = lsa.ask(Function::KERB_TIMESTAMP, &[&[credential, u64::from(etype.number())]])?;
    let timestamp = encrypted(etype, cipher).encode();
    Ok(request(10, (2, timestamp), body(Some(user), realm, &format!("krbtgt/{realm}"), etype, nonce)))
}

/// Reads an AS-REP or TGS-REP: its session's key goes to the vault. `with` is the user's credential, or the session that the request was
/// made in.
///
/// # Errors
/// A message that is none; the vault's.
pub fn reply(lsa: &mut Lsa, with: u64, message: &[u8]) -> Result<Ticket> {
    let message = Node::parse(message)?;
    ensure!(message.tag == 0x6B || message.tag == 0x6D, "this is no AS-REP or TGS-REP (tag {:#x})", message.tag);
    let fields = message.children()?.first().context("an empty reply")?.children()?;
    let field = |n: u8| {
        let field = fields.iter().find(|field| field.tag == 0xA0 | n).with_context(|| format!("the reply has no field {n}"))?;
        field.children()?.first().with_context(|| format!("field {n} is empty"))
    };
    let ticket = field(5)?.encode();
    let parts = field(6)?.children()?;
    let part = |n: u8| parts.iter().find(|part| part.tag == 0xA0 | n).and_then(|part| part.children().ok()?.first());
    let etype = part(0).context("no encryption type")?.content();
    let cipher = part(2).context("no cipher")?.content();
    let etype = etype.iter().fold(0, |number, byte| number << 8 | u64::from(*byte));
    let cipher = lsa.put(&cipher)?;
    let answer = lsa.ask(Function::KERB_REPLY, &[&[with, etype], &cipher])?;
    let (session, redacted) = answer.split_first_chunk().context("an answer without a session")?;
    Ok(Ticket { ticket, session: u64::from_le_bytes(*session), redacted: redacted.to_vec() })
}

/// TGS-REQ for a service, with a ticket-granting ticket.
///
/// # Errors
/// The vault's.
pub fn tgs_request(lsa: &mut Lsa, tgt: &Ticket, realm: &str, service: &str, etype: Etype, nonce: u32) -> Result<Vec<u8>> {
    let body = body(None, realm, service, etype, nonce);
    let encoded = lsa.put(&body.encode())?;
    let cipher = lsa.ask(Function::KERB_AUTHENTICATOR, &[&[tgt.session, u64::MAX], &encoded, &[0]])?;
    Ok(request(12, (1, ap_message(tgt, etype, cipher)?), body))
}

/// AP-REQ for a service, with its ticket: by GSS-API, for a channel or none.
///
/// # Errors
/// The vault's.
pub fn ap_request(lsa: &mut Lsa, ticket: &Ticket, etype: Etype, channel_binding: [u8; 16], flags: u32) -> Result<Vec<u8>> {
    let binding = lsa.put(&channel_binding)?;
    let cipher = lsa.ask(Function::KERB_AUTHENTICATOR, &[&[ticket.session, 1], &binding, &[u64::from(flags)]])?;
    ap_message(ticket, etype, cipher)
}

fn ap_message(ticket: &Ticket, etype: Etype, cipher: Vec<u8>) -> Result<Vec<u8>> {
    let fields = vec![
        Node::context(0, vec![Node::integer(5)]),
        Node::context(1, vec![Node::integer(14)]),
        Node::context(2, vec![Node::primitive(BIT_STRING, [0, 0, 0, 0, 0])]),
        Node::context(3, vec![Node::parse(&ticket.ticket)?]),
        Node::context(4, vec![encrypted(etype, cipher)]),
    ];
    Ok(application(14, Node::sequence(fields)).encode())
}
