//! DER, and the BER that real signatures contain, as borrowed spans (ITU-T X.690).
//!
//! Accepts on purpose, because Windows does and real files have it: indefinite lengths, long-form lengths that are not minimal,
//! constructed strings, SETs that are not sorted or hold duplicates. Refuses: tag numbers above 30, lengths above 32 bits,
//! nesting deeper than [`MAX_DER_DEPTH`], a length that reaches past its container.
//!
//! Each [`Tlv`] remembers where in the file it stands, so that a finding can name bytes.

use std::borrow::Cow;

use super::{Span, slice};
use crate::{budget::MAX_DER_DEPTH, oid::Oid, time::UnixTime};

/// Identifier octets (class, constructed bit, number) of the types that occur.
pub mod tag {
    #![expect(missing_docs, reason = "the names are those of X.680")]
    pub const BOOLEAN: u8 = 0x01;
    pub const INTEGER: u8 = 0x02;
    pub const BIT_STRING: u8 = 0x03;
    pub const OCTET_STRING: u8 = 0x04;
    pub const NULL: u8 = 0x05;
    pub const OID: u8 = 0x06;
    pub const ENUMERATED: u8 = 0x0A;
    pub const UTF8_STRING: u8 = 0x0C;
    pub const PRINTABLE_STRING: u8 = 0x13;
    pub const TELETEX_STRING: u8 = 0x14;
    pub const IA5_STRING: u8 = 0x16;
    pub const UTC_TIME: u8 = 0x17;
    pub const GENERALIZED_TIME: u8 = 0x18;
    pub const UNIVERSAL_STRING: u8 = 0x1C;
    pub const BMP_STRING: u8 = 0x1E;
    pub const SEQUENCE: u8 = 0x30;
    pub const SET: u8 = 0x31;
    /// The bit that says that the content is itself elements.
    pub const CONSTRUCTED: u8 = 0x20;

    /// Context-specific, primitive `[n]` (IMPLICIT on a primitive type).
    pub const fn context(n: u8) -> u8 {
        0x80 | n
    }
    /// Context-specific, constructed `[n]` (EXPLICIT, or IMPLICIT on a constructed type).
    pub const fn context_constructed(n: u8) -> u8 {
        0xA0 | n
    }
}

/// What is wrong with an encoding, and where.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{kind} at offset {offset:#x}")]
pub struct DerError {
    /// What is wrong.
    pub kind: DerErrorKind,
    /// Offset in the file of the element that is wrong.
    pub offset: usize,
}

/// What can be wrong with an encoding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DerErrorKind {
    /// Input ends inside an element.
    #[error("ASN.1 element is cut short")]
    Truncated,
    /// Another type was expected.
    #[error("ASN.1 tag {found:#04x} where {expected:#04x} belongs")]
    UnexpectedTag {
        /// Identifier octet that the syntax asks for.
        expected: u8,
        /// Identifier octet that is there.
        found: u8,
    },
    /// Tag number above 30; no structure here has one.
    #[error("ASN.1 tag number above 30")]
    HighTagNumber,
    /// Reserved first length octet, or a length above 32 bits.
    #[error("ASN.1 length is not valid")]
    Length,
    /// Indefinite length on a primitive element, or never closed.
    #[error("ASN.1 indefinite length is not valid")]
    Indefinite,
    /// Elements nest deeper than [`MAX_DER_DEPTH`].
    #[error("ASN.1 elements nest too deep")]
    TooDeep,
    /// Bytes follow the last element that the syntax has.
    #[error("bytes follow the last ASN.1 element")]
    TrailingBytes,
    /// The content is not a value of its type.
    #[error("ASN.1 value is not valid")]
    Value,
}

/// Result of reading an encoding.
pub type Result<T> = core::result::Result<T, DerError>;

/// One element: identifier, length and content octets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tlv<'a> {
    /// Identifier octet.
    pub tag: u8,
    /// The whole element as it stands, header and end-of-contents octets included.
    pub raw: &'a [u8],
    /// Content octets, without end-of-contents.
    pub content: &'a [u8],
    /// Offset of `raw` in the file.
    pub offset: usize,
    /// Offset of `content` in the file.
    pub content_offset: usize,
    depth: usize,
}

impl<'a> Tlv<'a> {
    /// The single element that `bytes` hold, without anything behind it.
    ///
    /// # Errors
    /// The encoding's, or [`DerErrorKind::TrailingBytes`].
    pub fn parse_exact(bytes: &'a [u8], offset: usize) -> Result<Self> {
        let mut reader = Reader::new(bytes, offset);
        let tlv = reader.next()?;
        reader.finish()?;
        Ok(tlv)
    }

    /// Where the whole element stands in the file.
    pub fn span(&self) -> Span {
        Span::new(self.offset, self.raw.len())
    }

    /// The same content under the tag `tag`: for IMPLICIT tagging, where the syntax says what the content is.
    #[must_use]
    pub const fn implicit(self, tag: u8) -> Self {
        Self { tag, ..self }
    }

    /// An error that names this element.
    pub fn error(&self, kind: DerErrorKind) -> DerError {
        DerError { kind, offset: self.offset }
    }

    /// Reads the elements inside.
    ///
    /// # Errors
    /// [`DerErrorKind::TooDeep`].
    #[inline]
    pub fn reader(&self) -> Result<Reader<'a>> {
        let depth = self.depth.saturating_add(1);
        if depth > MAX_DER_DEPTH {
            return Err(self.error(DerErrorKind::TooDeep));
        }
        Ok(Reader { rest: self.content, offset: self.content_offset, depth })
    }

    /// This element, if it has `expected` as its tag.
    ///
    /// # Errors
    /// [`DerErrorKind::UnexpectedTag`].
    #[inline]
    pub fn expect(self, expected: u8) -> Result<Self> {
        if self.tag == expected { Ok(self) } else { Err(self.error(DerErrorKind::UnexpectedTag { expected, found: self.tag })) }
    }

    /// The object identifier that this element is.
    ///
    /// # Errors
    /// Another tag; more than [`Oid::MAX`] octets; an encoding that is no identifier.
    pub fn oid(&self) -> Result<Oid> {
        self.expect(tag::OID)?;
        Oid::from_bytes(self.content).ok_or_else(|| self.error(DerErrorKind::Value))
    }

    /// Content octets of an INTEGER as they stand: big endian, two's complement, at least one octet.
    ///
    /// # Errors
    /// Another tag; no octets.
    pub fn integer(&self) -> Result<&'a [u8]> {
        self.expect(tag::INTEGER)?;
        if self.content.is_empty() { Err(self.error(DerErrorKind::Value)) } else { Ok(self.content) }
    }

    /// An INTEGER or ENUMERATED between 0 and 2³²−1.
    ///
    /// # Errors
    /// Another tag; a value outside.
    pub fn small_uint(&self) -> Result<u32> {
        if self.tag != tag::ENUMERATED {
            self.expect(tag::INTEGER)?;
        }
        let err = self.error(DerErrorKind::Value);
        if self.content.first().is_none_or(|b| b & 0x80 != 0) {
            return Err(err);
        }
        self.content.iter().try_fold(0_u32, |n, b| n.checked_mul(256)?.checked_add(u32::from(*b))).ok_or(err)
    }

    /// Whole octets of a BIT STRING.
    ///
    /// # Errors
    /// Another tag; unused bits; no octets.
    pub fn bit_octets(&self) -> Result<&'a [u8]> {
        self.expect(tag::BIT_STRING)?;
        match self.content.split_first() {
            Some((0, octets)) => Ok(octets),
            _ => Err(self.error(DerErrorKind::Value)),
        }
    }

    /// Octets of an OCTET STRING; a constructed one (BER) is put together.
    ///
    /// # Errors
    /// Another tag; segments that are no OCTET STRINGs.
    pub fn octets(&self) -> Result<Cow<'a, [u8]>> {
        if self.tag == tag::OCTET_STRING {
            return Ok(Cow::Borrowed(self.content));
        }
        self.expect(tag::OCTET_STRING | tag::CONSTRUCTED)?;
        let mut whole = Vec::with_capacity(self.content.len());
        let mut segments = self.reader()?;
        while !segments.is_empty() {
            whole.extend_from_slice(&segments.next()?.octets()?);
        }
        Ok(Cow::Owned(whole))
    }

    /// A `Time` (RFC 5280 §4.1.2.5, RFC 3161 §2.4.2): UTCTime with the pivot at 50, or GeneralizedTime; fractions of a second are cut off;
    /// seconds may be missing (BER); the zone is `Z`, or an offset (BER).
    ///
    /// # Errors
    /// Another tag; not a date.
    pub fn time(&self) -> Result<UnixTime> {
        let err = self.error(DerErrorKind::Value);
        let generalized = match self.tag {
            tag::UTC_TIME => false,
            tag::GENERALIZED_TIME => true,
            found => return Err(self.error(DerErrorKind::UnexpectedTag { expected: tag::UTC_TIME, found })),
        };
        parse_time(self.content, generalized).ok_or(err)
    }

    /// A character string of any of the string types, for display. What is not text becomes U+FFFD.
    pub fn text(&self) -> String {
        match self.tag {
            tag::BMP_STRING => {
                let units = self.content.chunks_exact(2).filter_map(|c| Some(u16::from_be_bytes(c.try_into().ok()?)));
                char::decode_utf16(units).map(|c| c.unwrap_or(char::REPLACEMENT_CHARACTER)).collect()
            }
            tag::UNIVERSAL_STRING => {
                let points = self.content.chunks_exact(4).filter_map(|c| Some(u32::from_be_bytes(c.try_into().ok()?)));
                points.map(|p| char::from_u32(p).unwrap_or(char::REPLACEMENT_CHARACTER)).collect()
            }
            // T.61 in the wild is Latin-1
            tag::TELETEX_STRING => self.content.iter().map(|b| char::from(*b)).collect(),
            _ => core::str::from_utf8(self.content).map_or_else(|_| String::from_utf8_lossy(self.content).into_owned(), str::to_owned),
        }
    }
}

/// Reads elements one after the other.
#[derive(Clone, Debug)]
pub struct Reader<'a> {
    rest: &'a [u8],
    offset: usize,
    depth: usize,
}

impl<'a> Reader<'a> {
    /// Over `bytes`, which stand at `offset` in the file.
    pub const fn new(bytes: &'a [u8], offset: usize) -> Self {
        Self { rest: bytes, offset, depth: 0 }
    }

    /// Whether nothing is left.
    pub const fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    /// What is left.
    pub const fn rest(&self) -> &'a [u8] {
        self.rest
    }

    /// Offset in the file of what is left.
    pub const fn offset(&self) -> usize {
        self.offset
    }

    /// Tag of the next element, if there is one.
    pub fn peek_tag(&self) -> Option<u8> {
        self.rest.first().copied()
    }

    /// The next element, of any type.
    ///
    /// # Errors
    /// The encoding's.
    #[expect(clippy::should_implement_trait, reason = "a reader that fails is no iterator; RustCrypto's readers name it so too")]
    #[inline]
    pub fn next(&mut self) -> Result<Tlv<'a>> {
        let fail = |kind| DerError { kind, offset: self.offset };
        let header = header(self.rest).map_err(fail)?;
        let (content_len, raw_len) = match header.content_len {
            Some(len) => (len, header.len.checked_add(len).ok_or_else(|| fail(DerErrorKind::Length))?),
            None => {
                let body = self.rest.get(header.len..).ok_or_else(|| fail(DerErrorKind::Truncated))?;
                let len = indefinite_len(body).map_err(fail)?;
                (len, header.len.checked_add(len).and_then(|n| n.checked_add(2)).ok_or_else(|| fail(DerErrorKind::Length))?)
            }
        };
        let (raw, rest) = self.rest.split_at_checked(raw_len).ok_or_else(|| fail(DerErrorKind::Truncated))?;
        let content = slice(raw, header.len, content_len).ok_or_else(|| fail(DerErrorKind::Truncated))?;
        let tlv = Tlv {
            tag: header.tag,
            raw,
            content,
            offset: self.offset,
            content_offset: self.offset.saturating_add(header.len),
            depth: self.depth,
        };
        self.rest = rest;
        self.offset = self.offset.saturating_add(raw_len);
        Ok(tlv)
    }

    /// The next element, which must be of type `expected`.
    ///
    /// # Errors
    /// The encoding's; another type; nothing left.
    #[inline]
    pub fn expect(&mut self, expected: u8) -> Result<Tlv<'a>> {
        self.next()?.expect(expected)
    }

    /// The next element if it is of type `wanted`; otherwise nothing is read.
    ///
    /// # Errors
    /// The encoding's.
    #[inline]
    pub fn optional(&mut self, wanted: u8) -> Result<Option<Tlv<'a>>> {
        if self.peek_tag() == Some(wanted) { self.next().map(Some) } else { Ok(None) }
    }

    /// That nothing is left.
    ///
    /// # Errors
    /// [`DerErrorKind::TrailingBytes`].
    pub fn finish(&self) -> Result<()> {
        if self.is_empty() { Ok(()) } else { Err(DerError { kind: DerErrorKind::TrailingBytes, offset: self.offset }) }
    }
}

/// Header of a definite-length element with `tag` and `content_len`, in minimal DER form. For hashing a structure whose tag changes
/// (RFC 5652 §5.4: signed attributes are hashed as a SET OF, not as the `[0]` they are stored as).
pub fn der_header(tag: u8, content_len: usize) -> ([u8; 6], usize) {
    let n = u32::try_from(content_len).unwrap_or(u32::MAX);
    let [a, b, c, d] = n.to_be_bytes();
    match n {
        0..=0x7F => ([tag, d, 0, 0, 0, 0], 2),
        0x80..=0xFF => ([tag, 0x81, d, 0, 0, 0], 3),
        0x100..=0xFFFF => ([tag, 0x82, c, d, 0, 0], 4),
        0x1_0000..=0xFF_FFFF => ([tag, 0x83, b, c, d, 0], 5),
        _ => ([tag, 0x84, a, b, c, d], 6),
    }
}

struct Header {
    tag: u8,
    len: usize,
    /// `None`: indefinite
    content_len: Option<usize>,
}

#[inline]
fn header(bytes: &[u8]) -> core::result::Result<Header, DerErrorKind> {
    let (&tag, rest) = bytes.split_first().ok_or(DerErrorKind::Truncated)?;
    if tag & 0x1F == 0x1F {
        return Err(DerErrorKind::HighTagNumber);
    }
    let (&first, rest) = rest.split_first().ok_or(DerErrorKind::Truncated)?;
    if first < 0x80 {
        return Ok(Header { tag, len: 2, content_len: Some(usize::from(first)) });
    }
    if first == 0x80 {
        let constructed = tag & tag::CONSTRUCTED != 0;
        return if constructed { Ok(Header { tag, len: 2, content_len: None }) } else { Err(DerErrorKind::Indefinite) };
    }
    let octets = usize::from(first & 0x7F);
    if octets > 8 {
        return Err(DerErrorKind::Length);
    }
    let value = rest.get(..octets).ok_or(DerErrorKind::Truncated)?;
    let n = value.iter().try_fold(0_u32, |n, b| n.checked_mul(256)?.checked_add(u32::from(*b))).ok_or(DerErrorKind::Length)?;
    Ok(Header { tag, len: octets.saturating_add(2), content_len: Some(super::index(n)) })
}

/// Length of the content of an indefinite-length element up to its end-of-contents octets.
fn indefinite_len(body: &[u8]) -> core::result::Result<usize, DerErrorKind> {
    let mut open = 1_usize;
    let mut at = 0_usize;
    loop {
        let rest = body.get(at..).ok_or(DerErrorKind::Truncated)?;
        if let [0, 0, ..] = rest {
            open = open.saturating_sub(1);
            if open == 0 {
                return Ok(at);
            }
            at = at.saturating_add(2);
            continue;
        }
        let header = header(rest)?;
        let skip = match header.content_len {
            Some(len) => header.len.checked_add(len).ok_or(DerErrorKind::Length)?,
            None => {
                open = open.saturating_add(1);
                if open > MAX_DER_DEPTH {
                    return Err(DerErrorKind::TooDeep);
                }
                header.len
            }
        };
        at = at.checked_add(skip).ok_or(DerErrorKind::Length)?;
    }
}

fn parse_time(text: &[u8], generalized: bool) -> Option<UnixTime> {
    let number = |at: usize, len: usize| -> Option<i32> {
        slice(text, at, len)?.iter().try_fold(0_i32, |n, b| {
            let digit = char::from(*b).to_digit(10)?;
            n.checked_mul(10)?.checked_add(i32::try_from(digit).ok()?)
        })
    };
    let two = |at: usize| number(at, 2).and_then(|n| u8::try_from(n).ok());
    let (year, mut at) = if generalized {
        (number(0, 4)?, 4)
    } else {
        let yy = number(0, 2)?;
        (if yy < 50 { yy.checked_add(2000)? } else { yy.checked_add(1900)? }, 2_usize)
    };
    let mut field = || {
        let n = two(at);
        if n.is_some() {
            at = at.saturating_add(2);
        }
        n
    };
    let (month, day, hour, minute) = (field()?, field()?, field()?, field()?);
    let second = field().unwrap_or(0);
    if let Some(b'.' | b',') = text.get(at) {
        at = at.checked_add(1)?;
        while text.get(at).is_some_and(u8::is_ascii_digit) {
            at = at.checked_add(1)?;
        }
    }
    // a leap second is the second before it
    let time = UnixTime::from_calendar(year, month, day, hour, minute, if second == 60 { 59 } else { second })?;
    let zone = text.get(at..)?;
    match *zone.first()? {
        b'Z' if zone.len() == 1 => Some(time),
        sign @ (b'+' | b'-') if zone.len() == 5 => {
            let seconds =
                i64::from(two(at.checked_add(1)?)?).checked_mul(3600)?.checked_add(i64::from(two(at.checked_add(3)?)?).checked_mul(60)?)?;
            // local time = UTC + offset
            Some(UnixTime(if sign == b'+' { time.0.checked_sub(seconds)? } else { time.0.checked_add(seconds)? }))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn time(tag: u8, text: &str) -> Option<String> {
        let mut raw = vec![tag, u8::try_from(text.len()).unwrap()];
        raw.extend_from_slice(text.as_bytes());
        Tlv::parse_exact(&raw, 0).unwrap().time().ok().map(|t| t.to_string())
    }

    #[test]
    fn times() {
        let utc = |t| time(tag::UTC_TIME, t);
        let gen_ = |t| time(tag::GENERALIZED_TIME, t);
        assert_eq!(utc("490101000000Z").as_deref(), Some("2049-01-01T00:00:00Z"));
        assert_eq!(utc("500101000000Z").as_deref(), Some("1950-01-01T00:00:00Z"));
        assert_eq!(utc("9912312359Z").as_deref(), Some("1999-12-31T23:59:00Z"));
        assert_eq!(utc("991231235959+0100").as_deref(), Some("1999-12-31T22:59:59Z"));
        assert_eq!(gen_("20191211084017.75Z").as_deref(), Some("2019-12-11T08:40:17Z"));
        for bad in ["20191311084017Z", "2019", "20191211084017", "20191211084017ZZ", "2019121108401xZ"] {
            assert_eq!(gen_(bad), None, "{bad}");
        }
    }

    #[test]
    fn indefinite_length_ends_at_its_own_end() {
        let raw = [0x30, 0x80, 0x24, 0x80, 0x04, 2, 1, 2, 0x04, 1, 3, 0, 0, 0x02, 1, 9, 0, 0, 0xFF];
        let mut reader = Reader::new(&raw, 100);
        let outer = reader.next().unwrap();
        assert_eq!((outer.raw.len(), outer.offset, reader.offset()), (18, 100, 118));
        let mut inner = outer.reader().unwrap();
        assert_eq!(inner.next().unwrap().octets().unwrap().as_ref(), [1, 2, 3]);
        assert_eq!(inner.next().unwrap().small_uint(), Ok(9));
        inner.finish().unwrap();
    }

    #[test]
    fn refuses_what_it_says_it_refuses() {
        let kind = |raw: &[u8]| Reader::new(raw, 0).next().map(|_| ()).map_err(|e| e.kind);
        assert_eq!(kind(&[]), Err(DerErrorKind::Truncated));
        assert_eq!(kind(&[0x30, 5, 0]), Err(DerErrorKind::Truncated));
        assert_eq!(kind(&[0x1F, 0x81, 1, 0]), Err(DerErrorKind::HighTagNumber));
        assert_eq!(kind(&[0x04, 0x80, 0, 0]), Err(DerErrorKind::Indefinite));
        assert_eq!(kind(&[0x30, 0x85, 1, 0, 0, 0, 0]), Err(DerErrorKind::Length));
        assert_eq!(kind(&[0x30, 0x84, 0, 0, 0, 1, 5]), Ok(()));
        let deep = [0x30, 0x80].repeat(100_000);
        assert_eq!(kind(&deep), Err(DerErrorKind::TooDeep));
        let mut nested = vec![0x05, 0x00];
        for _ in 0..40 {
            let (head, len) = der_header(tag::SEQUENCE, nested.len());
            nested = [&head[..len], &nested].concat();
        }
        let mut tlv = Tlv::parse_exact(&nested, 0).unwrap();
        let error = loop {
            match tlv.reader().and_then(|mut r| r.next()) {
                Ok(inner) => tlv = inner,
                Err(e) => break e.kind,
            }
        };
        assert_eq!(error, DerErrorKind::TooDeep);
    }

    #[test]
    fn header_is_minimal() {
        for len in [0_usize, 1, 127, 128, 255, 256, 65_535, 65_536, 0xFF_FFFF, 0x100_0000] {
            let (head, n) = der_header(tag::SET, len);
            let parsed = header(&head[..n]).unwrap();
            assert_eq!((parsed.content_len, parsed.len), (Some(len), n));
        }
    }

    proptest! {
        #[test]
        fn never_reaches_outside(raw in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut reader = Reader::new(&raw, 0);
            while let Ok(tlv) = reader.next() {
                prop_assert!(tlv.offset + tlv.raw.len() <= raw.len());
                let _ = (tlv.octets(), tlv.time(), tlv.oid(), tlv.text(), tlv.small_uint());
                if let Ok(mut inner) = tlv.reader() {
                    let _ = inner.next();
                }
            }
        }
    }
}
