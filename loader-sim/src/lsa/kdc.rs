//! A KDC and a service, for clients of the vault to ask: they verify what was sent, and refuse what is wrong (RFC 4120 §3.1 to §3.3).
//!
//! Not a KDC to use: it has one user and one service, and its keys are made anew each time.

use anyhow::{Context, Result, ensure};
use corpus::synth::der::Node;
use hvci_engine::{
    time::UnixTime,
    vault::{Etype, Key, Usage},
};
use rand_core::{OsRng, RngCore};

const GENERAL_STRING: u8 = 0x1B;
pub(super) const GENERALIZED_TIME: u8 = 0x18;
pub(super) const BIT_STRING: u8 = 0x03;
/// Uses of keys (RFC 4120 §7.5.1).
const TIMESTAMP: Usage = Usage::new(1);
const TICKET: Usage = Usage::new(2);
const AS_REP: Usage = Usage::new(3);
const TGS_CHECKSUM: Usage = Usage::new(6);
const TGS_AUTHENTICATOR: Usage = Usage::new(7);
const TGS_REP: Usage = Usage::new(8);
const AP_AUTHENTICATOR: Usage = Usage::new(11);

/// The KDC of a realm.
#[derive(Debug)]
pub struct Kdc {
    realm: String,
    user: String,
    user_key: Key,
    etype: Etype,
    own: Key,
    service: Key,
}

/// A request that a service accepts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Accepted {
    /// The client, by the ticket.
    pub client: String,
    /// The checksum of the authenticator.
    pub checksum: Vec<u8>,
}

impl Kdc {
    /// The KDC of a realm with one user, whose password it knows.
    pub fn new(realm: &str, user: &str, password: &str, etype: Etype) -> Self {
        let user_key = etype.of_password(password.as_bytes(), [realm, user].concat().as_bytes());
        let key = || random_key(etype);
        Self { realm: realm.to_owned(), user: user.to_owned(), user_key, etype, own: key(), service: key() }
    }

    /// Answers an AS-REQ whose timestamp is the user's.
    ///
    /// # Errors
    /// A request that is refused.
    pub fn as_reply(&self, request: &[u8], now: UnixTime) -> Result<Vec<u8>> {
        let request = fields(&Node::parse(request)?, 0x6A)?;
        let padata = first(&request, 3)?;
        let value = first(padata.children()?, 2)?.content();
        let timestamp = self.open(&Node::parse(&value)?, &self.user_key, &TIMESTAMP).context("the timestamp is not by the user's key")?;
        let told = first(Node::parse(&timestamp)?.children()?, 0)?.content();
        ensure!(told == kerberos_time(now).as_bytes(), "the timestamp is of another time");
        self.reply(11, &self.user_key, &AS_REP, (&format!("krbtgt/{}", self.realm), &self.own), &request, now)
    }

    /// Answers a TGS-REQ whose authenticator is the session's, and over this very request.
    ///
    /// # Errors
    /// A request that is refused.
    pub fn tgs_reply(&self, request: &[u8], now: UnixTime) -> Result<Vec<u8>> {
        let request = fields(&Node::parse(request)?, 0x6C)?;
        let value = first(first(&request, 3)?.children()?, 2)?.content();
        let (session, authenticator) = self.opened(&value, &self.own, &TGS_AUTHENTICATOR)?;
        let body = first(&request, 4)?;
        let checksum = first(first(&authenticator, 3)?.children()?, 1)?.content();
        ensure!(self.etype.checksum_of(&session, &TGS_CHECKSUM, &body.encode()) == checksum, "the checksum is not over this request");
        let service = name(first(body.children()?, 3)?)?;
        self.reply(13, &session, &TGS_REP, (&service, &self.service), &request, now)
    }

    /// Accepts an AP-REQ, as the service does.
    ///
    /// # Errors
    /// A request that is refused.
    pub fn accept(&self, request: &[u8]) -> Result<Accepted> {
        let (_, authenticator) = self.opened(request, &self.service, &AP_AUTHENTICATOR)?;
        let checksum = first(first(&authenticator, 3)?.children()?, 1)?.content();
        Ok(Accepted { client: name(first(&authenticator, 2)?)?, checksum })
    }

    /// The session's key and the authenticator of an AP-REQ.
    fn opened(&self, request: &[u8], key: &Key, usage: &Usage) -> Result<(Key, Vec<Node>)> {
        let request = fields(&Node::parse(request)?, 0x6E)?;
        let ticket = fields(first(&request, 3)?, 0x61)?;
        let ticket = self.open(first(&ticket, 3)?, key, &TICKET).context("the ticket is not for whom it was sent to")?;
        let ticket = fields(&Node::parse(&ticket)?, 0x63)?;
        let session = Key::new(&first(first(&ticket, 1)?.children()?, 1)?.content()).context("no key")?;
        let authenticator = self.open(first(&request, 4)?, &session, usage).context("the authenticator is not by the session's key")?;
        let authenticator = fields(&Node::parse(&authenticator)?, 0x62)?;
        ensure!(name(first(&ticket, 3)?)? == name(first(&authenticator, 2)?)?, "ticket and authenticator are of two clients");
        Ok((session, authenticator))
    }

    fn reply(&self, kind: u64, key: &Key, usage: &Usage, to: (&str, &Key), request: &[Node], now: UnixTime) -> Result<Vec<u8>> {
        let (service, service_key) = to;
        let session = random_key(self.etype);
        let (time, client) = (Node::primitive(GENERALIZED_TIME, kerberos_time(now)), principal(1, &self.user));
        let etype = || Node::integer(u64::from(self.etype.number()));
        let session = || Node::sequence(vec![Node::context(0, vec![etype()]), Node::context(1, vec![Node::octets(session.as_bytes())])]);
        let flags = || Node::primitive(BIT_STRING, [0, 0x40, 0, 0, 0]);
        let realm = || text(&self.realm);
        let ticket_part = Node::sequence(vec![
            Node::context(0, vec![flags()]),
            Node::context(1, vec![session()]),
            Node::context(2, vec![realm()]),
            Node::context(3, vec![client.clone()]),
            Node::context(
                4,
                vec![Node::sequence(vec![Node::context(0, vec![Node::integer(0)]), Node::context(1, vec![Node::octets([])])])],
            ),
            Node::context(5, vec![time.clone()]),
            Node::context(7, vec![time.clone()]),
        ]);
        let ticket_part = Node::constructed(0x63, vec![ticket_part]).encode();
        let ticket = Node::sequence(vec![
            Node::context(0, vec![Node::integer(5)]),
            Node::context(1, vec![realm()]),
            Node::context(2, vec![principal(2, service)]),
            Node::context(3, vec![self.seal(service_key, &TICKET, &ticket_part)]),
        ]);
        let nonce = first(first(request, 4)?.children()?, 7)?.clone();
        let part = Node::sequence(vec![
            Node::context(0, vec![session()]),
            Node::context(1, vec![Node::sequence(Vec::new())]),
            Node::context(2, vec![nonce]),
            Node::context(4, vec![flags()]),
            Node::context(5, vec![time.clone()]),
            Node::context(7, vec![time]),
            Node::context(9, vec![realm()]),
            Node::context(10, vec![principal(2, service)]),
        ]);
        let part = Node::constructed(if kind == 11 { 0x79 } else { 0x7A }, vec![part]).encode();
        let fields = vec![
            Node::context(0, vec![Node::integer(5)]),
            Node::context(1, vec![Node::integer(kind)]),
            Node::context(3, vec![realm()]),
            Node::context(4, vec![client]),
            Node::context(5, vec![Node::constructed(0x61, vec![ticket])]),
            Node::context(6, vec![self.seal(key, usage, &part)]),
        ];
        Ok(Node::constructed(if kind == 11 { 0x6B } else { 0x6D }, vec![Node::sequence(fields)]).encode())
    }

    fn seal(&self, key: &Key, usage: &Usage, plain: &[u8]) -> Node {
        let mut confounder = [0; 16];
        OsRng.fill_bytes(&mut confounder);
        super::kerberos::encrypted(self.etype, self.etype.encrypt(key, usage, &confounder, plain))
    }

    fn open(&self, encrypted: &Node, key: &Key, usage: &Usage) -> Result<Vec<u8>> {
        let cipher = first(encrypted.children()?, 2)?.content();
        Ok(self.etype.decrypt(key, usage, &cipher).context("it is not authentic")?.to_vec())
    }
}

fn random_key(etype: Etype) -> Key {
    let mut bytes = [0; 32];
    OsRng.fill_bytes(&mut bytes);
    bytes.get(..etype.key_len()).and_then(Key::new).unwrap_or_else(|| Key::from(bytes))
}

pub(super) fn text(text: &str) -> Node {
    Node::primitive(GENERAL_STRING, text.as_bytes())
}

pub(super) fn principal(kind: u64, name: &str) -> Node {
    let parts = name.split('/').map(text).collect();
    Node::sequence(vec![Node::context(0, vec![Node::integer(kind)]), Node::context(1, vec![Node::sequence(parts)])])
}

/// KerberosTime (§5.2.3).
pub(super) fn kerberos_time(time: UnixTime) -> String {
    time.to_string().chars().filter(|c| c.is_ascii_digit() || *c == 'Z').collect()
}

/// The fields of a message with this tag.
fn fields(message: &Node, tag: u8) -> Result<Vec<Node>> {
    ensure!(message.tag == tag, "a message with tag {:#x} where {tag:#x} belongs", message.tag);
    Ok(message.children()?.first().context("an empty message")?.children()?.to_vec())
}

/// What is in a field; of a list, its first element.
fn first(fields: &[Node], n: u8) -> Result<&Node> {
    let field = fields.iter().find(|field| field.tag == 0xA0 | n).with_context(|| format!("no field {n}"))?;
    let content = field.children()?.first().with_context(|| format!("field {n} is empty"))?;
    // padata is a list of one
    if n == 3 && content.tag == 0x30 && content.children()?.first().is_some_and(|inner| inner.tag == 0x30) {
        return content.children()?.first().context("an empty list");
    }
    Ok(content)
}

fn name(principal: &Node) -> Result<String> {
    let strings = principal.children()?.iter().find(|field| field.tag == 0xA1).context("no name")?;
    let strings = strings.children()?.first().context("an empty name")?.children()?;
    let parts: Vec<String> = strings.iter().map(|part| String::from_utf8_lossy(&part.content()).into_owned()).collect();
    Ok(parts.join("/"))
}
