//! The Kerberos messages that hold or make keys (RFC 4120 §5.2 to §5.5), as far as the vault reads or writes them.

use zeroize::Zeroizing;

use super::Etype;
use crate::{
    bytes::der::{Reader, Tlv, der_header, tag},
    time::UnixTime,
    vault::secret::Key,
};

/// GeneralString, which names and realms are.
const GENERAL_STRING: u8 = 0x1B;
/// [APPLICATION n], constructed.
const fn application(n: u8) -> u8 {
    0x60 | n
}

/// Components of a principal's name, most.
const MAX_COMPONENTS: usize = 8;

/// A point of time as Kerberos writes it.
#[derive(Clone, Copy, Debug)]
pub(in crate::vault) struct Instant {
    pub(in crate::vault) time: UnixTime,
    pub(in crate::vault) microseconds: u32,
}

/// A client: its realm and its name's parts.
#[derive(Clone, Copy, Debug)]
pub(in crate::vault) struct Principal<'p> {
    pub(in crate::vault) realm: &'p str,
    /// With `/` between its components.
    pub(in crate::vault) name: &'p str,
}

/// EncKDCRepPart, with what the vault keeps of it.
pub(in crate::vault) struct KdcReply {
    /// The key of the session, and for which encryption.
    pub(in crate::vault) etype: Etype,
    pub(in crate::vault) key: Key,
    /// The service: the components of its name, and `@` and its realm.
    pub(in crate::vault) service: String,
    /// The part as it was decrypted, zeros where the key was and in what may hold others.
    pub(in crate::vault) redacted: Vec<u8>,
}

/// The KDC-REQ-BODY of a TGS-REQ, as far as the vault cares.
pub(in crate::vault) struct RequestBody {
    /// Whether a ticket is wanted that somebody else can use: forwardable or proxiable are harmless, forwarded and proxy are not.
    pub(in crate::vault) delegates: bool,
    /// Which service.
    pub(in crate::vault) service: String,
}

/// PA-ENC-TS-ENC (§5.2.7.2).
pub(in crate::vault) fn encrypted_timestamp(now: Instant) -> Vec<u8> {
    let mut out = Backwards::new();
    out.element(tag::SEQUENCE, |out| {
        out.field(1, |out| out.integer(u64::from(now.microseconds)));
        out.field(0, |out| out.time(now.time));
    });
    out.finish()
}

/// Authenticator (§5.5.1).
pub(in crate::vault) fn authenticator(
    client: Principal<'_>,
    checksum: (u32, &[u8]),
    now: Instant,
    sequence_number: Option<u32>,
) -> Vec<u8> {
    let (kind, value) = checksum;
    let mut out = Backwards::new();
    out.element(application(2), |out| {
        out.element(tag::SEQUENCE, |out| {
            if let Some(number) = sequence_number {
                out.field(7, |out| out.integer(u64::from(number)));
            }
            out.field(5, |out| out.time(now.time));
            out.field(4, |out| out.integer(u64::from(now.microseconds)));
            out.field(3, |out| {
                out.element(tag::SEQUENCE, |out| {
                    out.field(1, |out| out.primitive(tag::OCTET_STRING, value));
                    out.field(0, |out| out.integer(u64::from(kind)));
                });
            });
            out.field(2, |out| out.principal(1, client.name));
            out.field(1, |out| out.primitive(GENERAL_STRING, client.realm.as_bytes()));
            out.field(0, |out| out.integer(5));
        });
    });
    out.finish()
}

/// Reads EncASRepPart or EncTGSRepPart (§5.4.2). `None` for what is none, and for a key of a kind that is refused.
pub(in crate::vault) fn kdc_reply(plain: &Zeroizing<Vec<u8>>) -> Option<KdcReply> {
    // AD pads what was encrypted by a block cipher; nothing here does, but the message may end before the text
    let outer = Reader::new(plain, 0).next().ok()?;
    if outer.tag != application(25) && outer.tag != application(26) {
        return None;
    }
    let mut fields = inner(&outer, tag::SEQUENCE)?;
    let key = explicit(&mut fields, 0)?;
    let mut parts = inner_of(&key, tag::SEQUENCE)?;
    let etype = explicit(&mut parts, 0)?.small_uint().ok()?;
    let value = explicit(&mut parts, 1)?.expect(tag::OCTET_STRING).ok()?;
    parts.finish().ok()?;
    let etype = Etype::from_number(u64::from(etype)).filter(|etype| etype.key_len() == value.content.len())?;
    let (mut realm, mut name, mut last) = (None, None, 0);
    let mut secrets = vec![value];
    while let Some((n, field)) = next_field(&mut fields, &mut last)? {
        match n {
            9 => realm = Some(only(&field)?.expect(GENERAL_STRING).ok()?),
            10 => name = Some(components(&only(&field)?)?),
            // last-req, nonce, key-expiration, flags and times
            1..=8 => {}
            11 => drop(only(&field)?.expect(tag::SEQUENCE).ok()?),
            // encrypted-pa-data: keys are in some of it (KERB-KEY-LIST-REP of MS-KILE §2.2.12 has the user's own); and what no standard names
            _ => secrets.push(field),
        }
    }
    let service = format!("{}@{}", name?, realm_of(&realm?)?);
    let key = Key::new(value.content)?;
    // nothing behind the message, which nobody has read
    let mut redacted = outer.raw.to_vec();
    for secret in secrets {
        redacted.get_mut(secret.content_offset..secret.content_offset.checked_add(secret.content.len())?)?.fill(0);
    }
    Some(KdcReply { etype, key, service, redacted })
}

/// Reads KDC-REQ-BODY (§5.4.1).
pub(in crate::vault) fn request_body(bytes: &[u8]) -> Option<RequestBody> {
    let outer = Tlv::parse_exact(bytes, 0).ok()?;
    let mut fields = inner_of(&outer, tag::SEQUENCE)?;
    let options = explicit(&mut fields, 0)?;
    let (_, bits) = options.expect(tag::BIT_STRING).ok()?.content.split_first()?;
    // bit 0 is the highest of the first octet
    let delegates = bits.first()? & (1 << 5 | 1 << 3) != 0;
    let (mut realm, mut name, mut last) = (None, None, 0);
    while let Some((n, field)) = next_field(&mut fields, &mut last)? {
        match n {
            2 => realm = Some(only(&field)?.expect(GENERAL_STRING).ok()?),
            3 => name = Some(components(&only(&field)?)?),
            _ => {}
        }
    }
    Some(RequestBody { delegates, service: format!("{}@{}", name?, realm_of(&realm?)?) })
}

/// The next field `[n]`, each higher than the one before: a KDC that takes the first of two reads nothing else than the vault. `None` for what is
/// none, `Some(None)` at the end.
fn next_field<'a>(fields: &mut Reader<'a>, last: &mut u8) -> Option<Option<(u8, Tlv<'a>)>> {
    if fields.is_empty() {
        return Some(None);
    }
    let field = definite(fields.next().ok()?)?;
    let n = field.tag.checked_sub(tag::context_constructed(0)).filter(|n| *n > *last && *n < 31)?;
    *last = n;
    Some(Some((n, field)))
}

/// DER has no indefinite lengths.
fn definite(element: Tlv<'_>) -> Option<Tlv<'_>> {
    (element.raw.get(1) != Some(&0x80)).then_some(element)
}

/// A realm, which stands behind an `@`.
fn realm_of<'a>(realm: &Tlv<'a>) -> Option<&'a str> {
    text(realm).filter(|realm| !realm.contains('@'))
}

fn text<'a>(string: &Tlv<'a>) -> Option<&'a str> {
    core::str::from_utf8(string.content).ok()
}

/// PrincipalName's components, with `/` between them.
fn components(name: &Tlv<'_>) -> Option<String> {
    let mut fields = inner_of(name, tag::SEQUENCE)?;
    explicit(&mut fields, 0)?;
    let strings = explicit(&mut fields, 1)?;
    let mut strings = inner_of(&strings, tag::SEQUENCE)?;
    let mut parts = Vec::new();
    while !strings.is_empty() {
        let string = strings.expect(GENERAL_STRING).ok()?;
        if parts.len() == MAX_COMPONENTS {
            return None;
        }
        // they are told apart by it
        parts.push(text(&string).filter(|part| !part.contains(['/', '@']))?);
    }
    Some(parts.join("/"))
}

/// The content of `[n] EXPLICIT`, next in line.
fn explicit<'a>(fields: &mut Reader<'a>, n: u8) -> Option<Tlv<'a>> {
    only(&fields.expect(tag::context_constructed(n)).ok()?)
}

fn only<'a>(field: &Tlv<'a>) -> Option<Tlv<'a>> {
    let mut reader = field.reader().ok()?;
    let content = definite(reader.next().ok()?)?;
    reader.finish().ok()?;
    Some(content)
}

/// What is within the single element of another.
fn inner<'a>(outer: &Tlv<'a>, expected: u8) -> Option<Reader<'a>> {
    inner_of(&only(outer)?, expected)
}

fn inner_of<'a>(element: &Tlv<'a>, expected: u8) -> Option<Reader<'a>> {
    definite(element.expect(expected).ok()?)?.reader().ok()
}

/// DER from its end to its beginning: a length is known when it is written, and nothing is copied.
struct Backwards(Vec<u8>);

impl Backwards {
    fn new() -> Self {
        Self(Vec::with_capacity(256))
    }

    fn finish(mut self) -> Vec<u8> {
        self.0.reverse();
        self.0
    }

    fn primitive(&mut self, tag: u8, content: &[u8]) {
        self.0.extend(content.iter().rev());
        self.header(tag, content.len());
    }

    /// What `write` writes, the last part first.
    fn element(&mut self, tag: u8, write: impl FnOnce(&mut Self)) {
        let before = self.0.len();
        write(self);
        self.header(tag, self.0.len().saturating_sub(before));
    }

    fn field(&mut self, n: u8, write: impl FnOnce(&mut Self)) {
        self.element(tag::context_constructed(n), write);
    }

    fn header(&mut self, tag: u8, len: usize) {
        let (header, len) = der_header(tag, len);
        self.0.extend(header.get(..len).unwrap_or_default().iter().rev());
    }

    fn integer(&mut self, value: u64) {
        let bytes = value.to_be_bytes();
        let zeros = bytes.iter().take_while(|byte| **byte == 0).count().min(7);
        let digits = bytes.get(zeros..).unwrap_or_default();
        // a first bit that is set would make it negative
        let sign = usize::from(digits.first().is_some_and(|first| *first > 0x7F));
        self.0.extend(digits.iter().rev());
        self.0.extend(core::iter::repeat_n(0, sign));
        self.header(tag::INTEGER, digits.len().saturating_add(sign));
    }

    /// KerberosTime (§5.2.3): GeneralizedTime without a fraction.
    fn time(&mut self, time: UnixTime) {
        let [year, month, day, hour, minute, second] = time.calendar();
        let mut digits = [b'0'; 15];
        let mut put = |at: usize, len: usize, mut value: u16| {
            for place in digits.iter_mut().skip(at).take(len).rev() {
                *place = b'0'.saturating_add(u8::try_from(value % 10).unwrap_or(0));
                value /= 10;
            }
        };
        for (at, len, value) in [(0, 4, year), (4, 2, month), (6, 2, day), (8, 2, hour), (10, 2, minute), (12, 2, second)] {
            put(at, len, value);
        }
        digits[14] = b'Z';
        self.primitive(tag::GENERALIZED_TIME, &digits);
    }

    fn principal(&mut self, kind: u64, name: &str) {
        self.element(tag::SEQUENCE, |out| {
            out.field(1, |out| {
                out.element(tag::SEQUENCE, |out| name.rsplit('/').for_each(|part| out.primitive(GENERAL_STRING, part.as_bytes())));
            });
            out.field(0, |out| out.integer(kind));
        });
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn written(write: impl FnOnce(&mut Backwards)) -> Vec<u8> {
        let mut out = Backwards::new();
        write(&mut out);
        out.finish()
    }

    fn reply(application_tag: u8, etype: u64, key: &[u8]) -> Vec<u8> {
        reply_with(12, application_tag, etype, key)
    }

    /// With encrypted-pa-data, or what looks like it, in the last field.
    fn reply_with(last: u8, application_tag: u8, etype: u64, key: &[u8]) -> Vec<u8> {
        written(|out| {
            out.element(application(application_tag), |out| {
                out.element(tag::SEQUENCE, |out| {
                    // another key is in it
                    out.field(last, |out| out.primitive(tag::OCTET_STRING, key));
                    out.field(10, |out| out.principal(2, "krbtgt/EXAMPLE.ORG"));
                    out.field(9, |out| out.primitive(GENERAL_STRING, b"EXAMPLE.ORG"));
                    out.field(7, |out| out.time(UnixTime(1_790_036_000)));
                    out.field(5, |out| out.time(UnixTime(1_790_000_000)));
                    out.field(4, |out| out.primitive(tag::BIT_STRING, &[0, 0x40, 0, 0, 0]));
                    out.field(2, |out| out.integer(0x1234_5678));
                    out.field(1, |out| out.element(tag::SEQUENCE, |_| ()));
                    out.field(0, |out| {
                        out.element(tag::SEQUENCE, |out| {
                            out.field(1, |out| out.primitive(tag::OCTET_STRING, key));
                            out.field(0, |out| out.integer(etype));
                        });
                    });
                });
            });
        })
    }

    #[test]
    fn the_key_of_a_reply_is_taken_out_of_it() {
        let plain = Zeroizing::new(reply(25, 18, &[0xA5; 32]));
        let read = kdc_reply(&plain).unwrap();
        assert_eq!(
            (read.etype, read.key.as_bytes(), &*read.service),
            (Etype::Aes256Sha1, &[0xA5; 32][..], "krbtgt/EXAMPLE.ORG@EXAMPLE.ORG")
        );
        assert_eq!(read.redacted.len(), plain.len());
        assert!(!read.redacted.windows(8).any(|window| window == [0xA5; 8]), "a key, here or in encrypted-pa-data");
        // a field that no standard names; the client's addresses, which are no octet string
        let unknown = kdc_reply(&Zeroizing::new(reply_with(13, 25, 18, &[0xA5; 32]))).unwrap();
        assert!(!unknown.redacted.windows(8).any(|window| window == [0xA5; 8]), "a key in a field of which nothing is known");
        assert!(kdc_reply(&Zeroizing::new(reply_with(11, 25, 18, &[0xA5; 32]))).is_none());
        let behind = Zeroizing::new([&plain[..], &[0xA5; 32]].concat());
        assert_eq!(kdc_reply(&behind).unwrap().redacted.len(), plain.len());
        assert!(kdc_reply(&Zeroizing::new(reply(26, 17, &[1; 16]))).is_some());
        // RC4, DES, a key of another length, another message
        for (message, etype, len) in [(25, 23, 16), (25, 3, 8), (25, 18, 16), (13, 18, 32)] {
            assert!(kdc_reply(&Zeroizing::new(reply(message, etype, &vec![1; len]))).is_none());
        }
    }

    #[test]
    fn numbers_and_times_are_der() {
        let integer = |value| hex::encode(written(|out| out.integer(value)));
        assert_eq!([integer(0), integer(0x80), integer(999_999)], ["020100", "02020080", "02030f423f"]);
        assert_eq!(integer(u64::MAX), "020900ffffffffffffffff");
        assert_eq!(written(|out| out.time(UnixTime(1_790_000_000)))[2..], *b"20260921141320Z");
    }

    #[test]
    fn requests_that_delegate_are_told() {
        let body = |options: [u8; 4]| {
            let bits = [&[0][..], &options].concat();
            written(|out| {
                out.element(tag::SEQUENCE, |out| {
                    out.field(7, |out| out.integer(5));
                    out.field(3, |out| out.principal(2, "cifs/files"));
                    out.field(2, |out| out.primitive(GENERAL_STRING, b"R"));
                    out.field(0, |out| out.primitive(tag::BIT_STRING, &bits));
                });
            })
        };
        let read = |options| request_body(&body(options)).map(|body| (body.delegates, body.service)).unwrap();
        // two services, in either order; one with a name that looks like another
        let twice = |first: &str, second: &str| {
            written(|out| {
                out.element(tag::SEQUENCE, |out| {
                    out.field(3, |out| out.principal(2, second));
                    out.field(3, |out| out.principal(2, first));
                    out.field(2, |out| out.primitive(GENERAL_STRING, b"R"));
                    out.field(0, |out| out.primitive(tag::BIT_STRING, &[0, 0, 0, 0, 0]));
                });
            })
        };
        assert!(request_body(&twice("cifs/evil", "cifs/files")).is_none());
        // forwardable, renewable, canonicalize; forwarded; proxy
        assert_eq!(read([0x40, 0x81, 0, 0x10]), (false, "cifs/files@R".to_owned()));
        assert!(read([0x60, 0, 0, 0]).0 && !read([0x10, 0, 0, 0]).0 && read([0x08, 0, 0, 0]).0);
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes: Vec<u8>) {
            let _ = (kdc_reply(&Zeroizing::new(bytes.clone())), request_body(&bytes));
        }
    }

    #[test]
    fn a_key_is_taken_out_whichever_byte_is_changed() {
        let plain = reply(25, 18, &[0xA5; 32]);
        for at in 0..plain.len() {
            for byte in 0..=u8::MAX {
                let mut changed = plain.clone();
                changed[at] = byte;
                if let Some(read) = kdc_reply(&Zeroizing::new(changed)) {
                    // a changed byte of the key itself leaves a run of at least 16
                    assert!(!read.redacted.windows(16).any(|window| window == [0xA5; 16]), "byte {at} is {byte:#04x}");
                }
            }
        }
    }
}
