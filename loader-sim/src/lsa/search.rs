//! Looking for secrets in memory and in text: as they are, in UTF-16, in hexadecimal and in base64.

use base64::{Engine as _, engine::general_purpose::STANDARD_NO_PAD};
use hvci_engine::vault::{Etype, nt_hash};

/// A secret that is looked for.
#[derive(Clone)]
pub struct Needle {
    /// What it is, for people.
    pub name: String,
    forms: Vec<(&'static str, Vec<u8>)>,
}

impl std::fmt::Debug for Needle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Needle").field("name", &self.name).finish_non_exhaustive()
    }
}

/// A secret that was found.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Found {
    /// Which.
    pub name: String,
    /// In which form.
    pub form: &'static str,
    /// Offset of its first byte.
    pub at: usize,
}

impl Needle {
    /// A secret of at least eight bytes; fewer would be found by chance.
    pub fn new(name: &str, secret: &[u8]) -> Self {
        let upper = hex::encode_upper(secret).into_bytes();
        let mut forms = vec![("raw", secret.to_vec()), ("hex", hex::encode(secret).into_bytes()), ("HEX", upper)];
        if let Ok(text) = std::str::from_utf8(secret) {
            forms.push(("UTF-16", text.encode_utf16().flat_map(u16::to_le_bytes).collect()));
        }
        // whatever stands before it, a third of the text is the same
        for before in 0..3 {
            let text = STANDARD_NO_PAD.encode([&vec![0; before][..], secret].concat());
            let (from, to) = ((before * 8).div_ceil(6), text.len() - usize::from(!(before + secret.len()).is_multiple_of(3)));
            forms.push(("base64", text.as_bytes().get(from..to).unwrap_or_default().to_vec()));
        }
        // a list of numbers, as a derived Debug writes bytes
        forms.push(("decimal", secret.iter().map(u8::to_string).collect::<Vec<_>>().join(", ").into_bytes()));
        Self { name: name.to_owned(), forms }
    }
}

/// What a user's password comes to: the password, its NT hash, its Kerberos keys.
pub fn secrets_of(user: &str, domain: &str, password: &str) -> Vec<Needle> {
    let salt = [domain, user].concat();
    let mut needles = vec![Needle::new("password", password.as_bytes()), Needle::new("NT hash", nt_hash(password).as_bytes())];
    for etype in Etype::ALL {
        let key = etype.of_password(password.as_bytes(), salt.as_bytes());
        needles.push(Needle::new(&format!("Kerberos key {}", etype.number()), key.as_bytes()));
    }
    needles
}

/// Every place of every secret.
pub fn search(haystack: &[u8], needles: &[Needle]) -> Vec<Found> {
    let mut found = Vec::new();
    for needle in needles {
        for (form, bytes) in &needle.forms {
            let Some(first) = bytes.first().filter(|_| bytes.len() >= 8) else { continue };
            let mut at = 0;
            while let Some(next) = haystack.get(at..).and_then(|rest| rest.iter().position(|byte| byte == first)) {
                at += next;
                if haystack.get(at..at + bytes.len()) == Some(bytes) {
                    found.push(Found { name: needle.name.clone(), form, at });
                }
                at += 1;
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_is_found_wherever_it_stands() {
        let secret = b"correct horse battery";
        let needles = [Needle::new("password", secret)];
        let utf16: Vec<u8> = "correct horse battery".encode_utf16().flat_map(u16::to_le_bytes).collect();
        for (form, text) in [("raw", secret.to_vec()), ("hex", hex::encode(secret).into_bytes()), ("UTF-16", utf16)] {
            let found = search(&[&b"xxc"[..], &text, b"yy"].concat(), &needles);
            assert_eq!(found, [Found { name: "password".into(), form, at: 3 }]);
        }
        for before in 0..5 {
            let text = STANDARD_NO_PAD.encode([&b"abcde"[..before], secret, b"tail"].concat());
            assert!(search(text.as_bytes(), &needles).iter().any(|found| found.form == "base64"), "{before}");
        }
        assert!(search(format!("{:?}", secret.as_slice()).as_bytes(), &needles).iter().any(|found| found.form == "decimal"));
        assert!(search(b"correct horse batter", &needles).is_empty());
    }
}
