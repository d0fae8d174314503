//! DER as a tree that can be changed: what no typed crate lets one say, because it is old, odd or wrong.
//!
//! Used for the few structures that have no crate (SpcIndirectDataContent, CertificateTrustList) and by [`super::mutate`], which takes a
//! signature apart, spoils one element and puts it together again with every length adjusted. Trusts its own output; refuses input that is
//! not DER with definite lengths and one-byte tags (X.690 §8.1, §10.1).

use der::oid::ObjectIdentifier;

use super::{Error, Result};

/// An element: identifier octet and content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Identifier octet, class and constructed bit included.
    pub tag: u8,
    /// Content octets.
    pub body: Body,
}

/// Content of an element.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Body {
    /// Octets.
    Primitive(Vec<u8>),
    /// Elements.
    Constructed(Vec<Node>),
}

impl Node {
    /// A primitive element.
    pub fn primitive(tag: u8, content: impl Into<Vec<u8>>) -> Self {
        Self { tag, body: Body::Primitive(content.into()) }
    }

    /// A constructed element.
    pub fn constructed(tag: u8, children: Vec<Self>) -> Self {
        Self { tag, body: Body::Constructed(children) }
    }

    /// SEQUENCE.
    pub fn sequence(children: Vec<Self>) -> Self {
        Self::constructed(0x30, children)
    }

    /// SET, in the order given.
    pub fn set(children: Vec<Self>) -> Self {
        Self::constructed(0x31, children)
    }

    /// `[n]` EXPLICIT, or IMPLICIT of something constructed.
    pub fn context(n: u8, children: Vec<Self>) -> Self {
        Self::constructed(0xA0 | n, children)
    }

    /// OBJECT IDENTIFIER.
    pub fn oid(oid: ObjectIdentifier) -> Self {
        Self::primitive(0x06, oid.as_bytes())
    }

    /// OCTET STRING.
    pub fn octets(content: impl Into<Vec<u8>>) -> Self {
        Self::primitive(0x04, content)
    }

    /// NULL.
    pub fn null() -> Self {
        Self::primitive(0x05, [])
    }

    /// INTEGER that is not negative.
    pub fn integer(value: u64) -> Self {
        let bytes = value.to_be_bytes();
        let first = bytes.iter().position(|b| *b != 0).unwrap_or(7);
        let mut content = bytes[first..].to_vec();
        if content[0] >= 0x80 {
            content.insert(0, 0);
        }
        Self::primitive(0x02, content)
    }

    /// AlgorithmIdentifier with NULL parameters.
    pub fn algorithm(oid: ObjectIdentifier) -> Self {
        Self::sequence(vec![Self::oid(oid), Self::null()])
    }

    /// Exactly one element.
    ///
    /// # Errors
    /// Not DER, or something behind it.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        let (node, used) = Self::parse_prefix(bytes)?;
        if used == bytes.len() { Ok(node) } else { Err(Error::NotApplicable("bytes behind a DER element")) }
    }

    /// The first element, and how many octets it has.
    ///
    /// # Errors
    /// Not DER.
    pub fn parse_prefix(bytes: &[u8]) -> Result<(Self, usize)> {
        let malformed = Error::NotApplicable("not DER");
        let (&tag, &first) = bytes.first().zip(bytes.get(1)).ok_or(malformed)?;
        let malformed = || Error::NotApplicable("not DER");
        let (len, start) = if first < 0x80 {
            (usize::from(first), 2)
        } else {
            let n = usize::from(first & 0x7F);
            let octets = bytes.get(2..2 + n).filter(|o| (1..=4).contains(&o.len())).ok_or_else(malformed)?;
            (octets.iter().fold(0, |len, b| len << 8 | usize::from(*b)), 2 + n)
        };
        let content = bytes.get(start..start + len).filter(|_| tag & 0x1F != 0x1F).ok_or_else(malformed)?;
        let body = if tag & 0x20 == 0 {
            Body::Primitive(content.to_vec())
        } else {
            let mut children = Vec::new();
            let mut at = 0;
            while at < content.len() {
                let (child, used) = Self::parse_prefix(&content[at..])?;
                children.push(child);
                at += used;
            }
            Body::Constructed(children)
        };
        Ok((Self { tag, body }, start + len))
    }

    /// As DER: definite lengths, shortest form. Elements of a SET stay in their order.
    pub fn encode(&self) -> Vec<u8> {
        let content = self.content();
        let mut out = vec![self.tag];
        match content.len() {
            len @ 0..0x80 => out.extend(len.to_be_bytes().last()),
            len => {
                let octets = len.to_be_bytes();
                let significant = &octets[octets.iter().position(|b| *b != 0).unwrap_or(0)..];
                out.push(0x80 | significant.len().to_be_bytes()[7]);
                out.extend(significant);
            }
        }
        out.extend(content);
        out
    }

    /// As BER with indefinite lengths in the outermost `levels` of constructed elements, as some older signing tools write.
    pub fn encode_indefinite(&self, levels: usize) -> Vec<u8> {
        match &self.body {
            Body::Constructed(children) if levels > 0 => {
                let mut out = vec![self.tag, 0x80];
                out.extend(children.iter().flat_map(|c| c.encode_indefinite(levels - 1)));
                out.extend([0, 0]);
                out
            }
            _ => self.encode(),
        }
    }

    /// Content octets.
    pub fn content(&self) -> Vec<u8> {
        match &self.body {
            Body::Primitive(content) => content.clone(),
            Body::Constructed(children) => children.iter().flat_map(Self::encode).collect(),
        }
    }

    /// Elements of a constructed element.
    ///
    /// # Errors
    /// It is primitive.
    pub fn children(&self) -> Result<&[Self]> {
        match &self.body {
            Body::Constructed(children) => Ok(children),
            Body::Primitive(_) => Err(Error::NotApplicable("a primitive element where a constructed one is expected")),
        }
    }

    /// Elements of a constructed element, to be changed.
    ///
    /// # Errors
    /// It is primitive.
    pub fn children_mut(&mut self) -> Result<&mut Vec<Self>> {
        match &mut self.body {
            Body::Constructed(children) => Ok(children),
            Body::Primitive(_) => Err(Error::NotApplicable("a primitive element where a constructed one is expected")),
        }
    }

    /// Octets of a primitive element, to be changed.
    ///
    /// # Errors
    /// It is constructed.
    pub fn octets_mut(&mut self) -> Result<&mut Vec<u8>> {
        match &mut self.body {
            Body::Primitive(content) => Ok(content),
            Body::Constructed(_) => Err(Error::NotApplicable("a constructed element where a primitive one is expected")),
        }
    }

    /// The element reached by taking the child of each index in turn.
    ///
    /// # Errors
    /// There is none.
    pub fn at_mut(&mut self, path: &[usize]) -> Result<&mut Self> {
        path.iter().try_fold(self, |node, index| {
            node.children_mut()?.get_mut(*index).ok_or(Error::NotApplicable("the signature lacks the element"))
        })
    }

    /// The first child that begins with this object identifier: an attribute of a SET, for example.
    ///
    /// # Errors
    /// There is none.
    pub fn attribute_mut(&mut self, oid: ObjectIdentifier) -> Result<&mut Self> {
        let name = Self::oid(oid);
        self.children_mut()?
            .iter_mut()
            .find(|c| c.children().is_ok_and(|parts| parts.first() == Some(&name)))
            .ok_or(Error::NotApplicable("the signature lacks the attribute"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tree_encodes_to_what_it_was_read_from() {
        let long = Node::sequence(vec![Node::integer(0), Node::integer(0x80), Node::integer(u64::MAX), Node::octets(vec![7; 300])]);
        for node in [long.clone(), Node::null(), Node::context(0, vec![long.clone(), Node::octets([])])] {
            assert_eq!(Node::parse(&node.encode()).unwrap(), node);
        }
        assert_eq!(Node::integer(0x80).encode(), [2, 2, 0, 0x80]);
        assert_eq!(long.encode()[..4], [0x30, 0x82, 0x01, 0x42]);
    }

    #[test]
    fn indefinite_lengths_end_in_two_zeros() {
        let node = Node::sequence(vec![Node::set(vec![Node::null()])]);
        assert_eq!(node.encode_indefinite(1), [0x30, 0x80, 0x31, 2, 5, 0, 0, 0]);
        assert_eq!(node.encode_indefinite(9), [0x30, 0x80, 0x31, 0x80, 5, 0, 0, 0, 0, 0]);
    }

    #[test]
    fn prefixes_are_refused() {
        let bytes = Node::sequence(vec![Node::octets(vec![1; 200])]).encode();
        for len in 0..bytes.len() {
            assert!(Node::parse(&bytes[..len]).is_err());
        }
    }
}
