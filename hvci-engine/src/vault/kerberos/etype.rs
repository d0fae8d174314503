//! Encryption types 17 to 20: AES-CBC with ciphertext stealing, authenticated by HMAC (RFC 3961 §5.3, RFC 3962, RFC 8009). DES (1 to 3),
//! triple DES (16) and RC4 (23, 24) are not here (RFC 6649, RFC 8429).
//!
//! ```text
//! 17, 18   E(Ke, confounder | plain) | HMAC-SHA1-96(Ki, confounder | plain)
//! 19, 20   C = E(Ke, confounder | plain);  C | HMAC-SHA2(Ki, IV | C), truncated
//! ```

use aes::{
    Aes128, Aes256, Block,
    cipher::{BlockDecrypt, BlockEncrypt, KeyInit},
};
use hmac::{Hmac, Mac};
use sha1::Sha1;
use sha2::{Sha256, Sha384};
use subtle::ConstantTimeEq;
use zeroize::{Zeroize, Zeroizing};

use super::fold::n_fold;
use crate::vault::secret::Key;

const BLOCK: usize = 16;

/// An encryption type that is supported.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Etype {
    /// 17, `aes128-cts-hmac-sha1-96`.
    Aes128Sha1,
    /// 18, `aes256-cts-hmac-sha1-96`.
    Aes256Sha1,
    /// 19, `aes128-cts-hmac-sha256-128`.
    Aes128Sha2,
    /// 20, `aes256-cts-hmac-sha384-192`.
    Aes256Sha2,
}

/// What a key is used for (RFC 4120 §7.5.1), with the constants of the keys that are derived for it.
#[derive(Clone, Copy, Debug)]
pub struct Usage {
    number: u8,
    checksum: [u8; BLOCK],
    encryption: [u8; BLOCK],
    integrity: [u8; BLOCK],
}

impl Usage {
    /// The use with this number.
    pub const fn new(number: u8) -> Self {
        Self {
            number,
            checksum: n_fold(&[0, 0, 0, number, CHECKSUM]),
            encryption: n_fold(&[0, 0, 0, number, ENCRYPTION]),
            integrity: n_fold(&[0, 0, 0, number, INTEGRITY]),
        }
    }
}

const CHECKSUM: u8 = 0x99;
const ENCRYPTION: u8 = 0xAA;
const INTEGRITY: u8 = 0x55;
/// "kerberos", for a key from a password (RFC 3962 §4).
const KERBEROS: [u8; BLOCK] = n_fold(b"kerberos");

impl Etype {
    /// Every one.
    pub const ALL: [Self; 4] = [Self::Aes128Sha1, Self::Aes256Sha1, Self::Aes128Sha2, Self::Aes256Sha2];

    /// Its number, which is that of its checksum type's etype too.
    pub const fn number(self) -> u8 {
        match self {
            Self::Aes128Sha1 => 17,
            Self::Aes256Sha1 => 18,
            Self::Aes128Sha2 => 19,
            Self::Aes256Sha2 => 20,
        }
    }

    /// The one with this number.
    pub fn from_number(number: u64) -> Option<Self> {
        Self::ALL.into_iter().find(|etype| u64::from(etype.number()) == number)
    }

    /// Bytes of a key.
    pub const fn key_len(self) -> usize {
        match self {
            Self::Aes128Sha1 | Self::Aes128Sha2 => 16,
            Self::Aes256Sha1 | Self::Aes256Sha2 => 32,
        }
    }

    /// The number of its checksum type, and how many bytes one has: 15 and 16 of RFC 3962, 19 and 20 of RFC 8009.
    pub const fn checksum(self) -> (u8, usize) {
        match self {
            Self::Aes128Sha1 => (15, 12),
            Self::Aes256Sha1 => (16, 12),
            Self::Aes128Sha2 => (19, 16),
            Self::Aes256Sha2 => (20, 24),
        }
    }

    /// The key of a password. The salt is the realm and the parts of the principal's name, or what a KDC says.
    pub fn of_password(self, password: &[u8], salt: &[u8]) -> Key {
        let iterations = match self {
            Self::Aes128Sha1 | Self::Aes256Sha1 => 4096,
            Self::Aes128Sha2 | Self::Aes256Sha2 => 32768,
        };
        self.stretched(password, salt, iterations)
    }

    fn stretched(self, password: &[u8], salt: &[u8], iterations: u32) -> Key {
        let mut bytes = Zeroizing::new([0; 32]);
        let (key, _) = bytes.split_at_mut(self.key_len());
        match self {
            Self::Aes128Sha1 | Self::Aes256Sha1 => {
                pbkdf2::pbkdf2_hmac::<Sha1>(password, salt, iterations, key);
                self.derived(key, &KERBEROS)
            }
            Self::Aes128Sha2 => {
                pbkdf2::pbkdf2_hmac::<Sha256>(password, &[b"aes128-cts-hmac-sha256-128\0", salt].concat(), iterations, key);
                self.derived_sha2(key, b"kerberos", self.key_len())
            }
            Self::Aes256Sha2 => {
                pbkdf2::pbkdf2_hmac::<Sha384>(password, &[b"aes256-cts-hmac-sha384-192\0", salt].concat(), iterations, key);
                self.derived_sha2(key, b"kerberos", self.key_len())
            }
        }
    }

    /// Encrypts. The confounder is random.
    pub fn encrypt(self, key: &Key, usage: &Usage, confounder: &[u8; BLOCK], plain: &[u8]) -> Vec<u8> {
        let (encryption, integrity) = self.keys(key, usage);
        let (_, mac_len) = self.checksum();
        let mut text = Vec::with_capacity(BLOCK.saturating_add(plain.len()).saturating_add(mac_len));
        text.extend_from_slice(confounder);
        text.extend_from_slice(plain);
        match self {
            Self::Aes128Sha1 | Self::Aes256Sha1 => {
                let mac = hmac::<Hmac<Sha1>>(integrity.as_bytes(), &[&text]);
                self.steal(&encryption, &mut text, true);
                text.extend(mac.iter().take(mac_len));
            }
            Self::Aes128Sha2 => {
                self.steal(&encryption, &mut text, true);
                let mac = hmac::<Hmac<Sha256>>(integrity.as_bytes(), &[&[0; BLOCK], &text]);
                text.extend(mac.iter().take(mac_len));
            }
            Self::Aes256Sha2 => {
                self.steal(&encryption, &mut text, true);
                let mac = hmac::<Hmac<Sha384>>(integrity.as_bytes(), &[&[0; BLOCK], &text]);
                text.extend(mac.iter().take(mac_len));
            }
        }
        text
    }

    /// Decrypts what is authentic: without the confounder. `None` for what is not.
    pub fn decrypt(self, key: &Key, usage: &Usage, text: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
        let (encryption, integrity) = self.keys(key, usage);
        let (_, mac_len) = self.checksum();
        let (text, mac) = text.split_at_checked(text.len().checked_sub(mac_len)?).filter(|(text, _)| text.len() >= BLOCK)?;
        let is = |expected: &[u8]| bool::from(expected.get(..mac_len).unwrap_or_default().ct_eq(mac));
        let mut plain = Zeroizing::new(text.to_vec());
        let authentic = match self {
            Self::Aes128Sha1 | Self::Aes256Sha1 => {
                self.steal(&encryption, &mut plain, false);
                is(&hmac::<Hmac<Sha1>>(integrity.as_bytes(), &[&plain]))
            }
            Self::Aes128Sha2 => is(&hmac::<Hmac<Sha256>>(integrity.as_bytes(), &[&[0; BLOCK], text])),
            Self::Aes256Sha2 => is(&hmac::<Hmac<Sha384>>(integrity.as_bytes(), &[&[0; BLOCK], text])),
        };
        if !authentic {
            return None;
        }
        if matches!(self, Self::Aes128Sha2 | Self::Aes256Sha2) {
            self.steal(&encryption, &mut plain, false);
        }
        plain.drain(..BLOCK).for_each(drop);
        Some(plain)
    }

    /// The checksum of a message.
    pub fn checksum_of(self, key: &Key, usage: &Usage, message: &[u8]) -> Vec<u8> {
        let (_, len) = self.checksum();
        let key = self.derived_for(key.as_bytes(), usage, CHECKSUM, &usage.checksum);
        let mut mac = match self {
            Self::Aes128Sha1 | Self::Aes256Sha1 => hmac::<Hmac<Sha1>>(key.as_bytes(), &[message]).to_vec(),
            Self::Aes128Sha2 => hmac::<Hmac<Sha256>>(key.as_bytes(), &[message]).to_vec(),
            Self::Aes256Sha2 => hmac::<Hmac<Sha384>>(key.as_bytes(), &[message]).to_vec(),
        };
        mac.truncate(len);
        mac
    }

    /// The keys for encryption and integrity.
    fn keys(self, key: &Key, usage: &Usage) -> (Key, Key) {
        let derived = |suffix, folded| self.derived_for(key.as_bytes(), usage, suffix, folded);
        (derived(ENCRYPTION, &usage.encryption), derived(INTEGRITY, &usage.integrity))
    }

    fn derived_for(self, key: &[u8], usage: &Usage, suffix: u8, folded: &[u8; BLOCK]) -> Key {
        // the integrity keys of RFC 8009 are as long as the MAC, the encryption keys as the cipher's
        let len = match self {
            Self::Aes128Sha1 | Self::Aes256Sha1 => return self.derived(key, folded),
            _ if suffix == ENCRYPTION => self.key_len(),
            _ => self.checksum().1,
        };
        self.derived_sha2(key, &[0, 0, 0, usage.number, suffix], len)
    }

    /// DK of RFC 3961 §5.1: the constant, encrypted again and again.
    fn derived(self, key: &[u8], folded: &[u8; BLOCK]) -> Key {
        let mut block = Block::from(*folded);
        let mut bytes = Zeroizing::new([0; 32]);
        let (out, _) = bytes.split_at_mut(self.key_len());
        let cipher = Cipher::new(key);
        for part in out.chunks_mut(BLOCK) {
            cipher.encrypt(&mut block);
            part.copy_from_slice(&block);
        }
        block.iter_mut().zeroize();
        key_of(out)
    }

    /// KDF-HMAC-SHA2 of RFC 8009 §3.
    fn derived_sha2(self, key: &[u8], label: &[u8], len: usize) -> Key {
        let bits = u32::try_from(len.saturating_mul(8)).unwrap_or(u32::MAX).to_be_bytes();
        let parts: [&[u8]; 4] = [&[0, 0, 0, 1], label, &[0], &bits];
        let mut out = Zeroizing::new([0; 48]);
        if self == Self::Aes128Sha2 {
            out.iter_mut().zip(hmac::<Hmac<Sha256>>(key, &parts)).for_each(|(to, from)| *to = from);
        } else {
            out.iter_mut().zip(hmac::<Hmac<Sha384>>(key, &parts)).for_each(|(to, from)| *to = from);
        }
        key_of(out.get(..len).unwrap_or_default())
    }

    /// CBC from an IV of zeros, the last two blocks swapped and cut (RFC 3962 §5). Of less than a block nothing is done.
    fn steal(self, key: &Key, text: &mut [u8], encrypt: bool) {
        let cipher = Cipher::new(key.as_bytes());
        if encrypt { cipher.encrypt_stealing(text) } else { cipher.decrypt_stealing(text) }
    }
}

/// Lengths of keys here are those of the types above.
fn key_of(bytes: &[u8]) -> Key {
    Key::new(bytes).unwrap_or_else(|| Key::from([0; 32]))
}

/// AES with a key of either length.
#[expect(clippy::large_enum_variant, reason = "on the stack, for one operation")]
enum Cipher {
    Aes128(Aes128),
    Aes256(Aes256),
}

impl Cipher {
    fn new(key: &[u8]) -> Self {
        match key.first_chunk::<32>() {
            Some(key) => Self::Aes256(Aes256::new(key.into())),
            None => Self::Aes128(Aes128::new(&key.first_chunk::<16>().copied().unwrap_or_default().into())),
        }
    }

    fn encrypt(&self, block: &mut Block) {
        match self {
            Self::Aes128(cipher) => cipher.encrypt_block(block),
            Self::Aes256(cipher) => cipher.encrypt_block(block),
        }
    }

    fn decrypt(&self, block: &mut Block) {
        match self {
            Self::Aes128(cipher) => cipher.decrypt_block(block),
            Self::Aes256(cipher) => cipher.decrypt_block(block),
        }
    }

    fn encrypt_stealing(&self, text: &mut [u8]) {
        let (blocks, rest) = text.as_chunks_mut::<BLOCK>();
        let mut chain = Block::default();
        for block in blocks.iter_mut() {
            xor(&mut chain, block);
            self.encrypt(&mut chain);
            *block = chain.into();
        }
        match blocks {
            [.., before, last] if rest.is_empty() => core::mem::swap(before, last),
            [.., last] if !rest.is_empty() => {
                let stolen = *last;
                xor(&mut chain, rest);
                self.encrypt(&mut chain);
                *last = chain.into();
                rest.iter_mut().zip(stolen).for_each(|(to, from)| *to = from);
            }
            _ => {}
        }
    }

    fn decrypt_stealing(&self, text: &mut [u8]) {
        let (blocks, rest) = text.as_chunks_mut::<BLOCK>();
        match blocks {
            [.., before, last] if rest.is_empty() => core::mem::swap(before, last),
            [.., last] if !rest.is_empty() => {
                let mut opened = Block::from(*last);
                self.decrypt(&mut opened);
                // what was stolen from the block before stands behind the rest
                *last = opened.into();
                for (to, (plain, from)) in last.iter_mut().zip(opened.iter().zip(rest.iter_mut())) {
                    *to = *from;
                    *from ^= plain;
                }
            }
            _ => {}
        }
        let mut chain = [0; BLOCK];
        for block in blocks {
            let mut opened = Block::from(*block);
            self.decrypt(&mut opened);
            xor(&mut opened, &chain);
            chain = core::mem::replace(block, opened.into());
        }
    }
}

fn xor(to: &mut [u8], from: &[u8]) {
    to.iter_mut().zip(from).for_each(|(to, from)| *to ^= from);
}

/// HMAC under a key that is no longer than a block of the digest.
pub(in crate::vault) fn hmac<M: Mac + KeyInit>(key: &[u8], parts: &[&[u8]]) -> hmac::digest::Output<M> {
    let mut block = hmac::digest::Key::<M>::default();
    block.iter_mut().zip(key).for_each(|(to, from)| *to = *from);
    let mut mac = <M as KeyInit>::new(&block);
    block.iter_mut().zeroize();
    parts.iter().for_each(|part| mac.update(part));
    mac.finalize().into_bytes()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn bytes(hex: &str) -> Vec<u8> {
        hex::decode(hex.replace([' ', '\n'], "")).unwrap()
    }

    fn key(hex: &str) -> Key {
        Key::new(&bytes(hex)).unwrap()
    }

    /// RFC 3962 appendix B.
    #[test]
    fn keys_of_passwords() {
        let of = |etype: Etype, password: &[u8], salt: &[u8]| etype.of_password(password, salt).as_bytes().to_vec();
        for (iterations, aes128, aes256) in [
            (1, "42263c6e89f4fc28b8df68ee09799f15", "fe697b52bc0d3ce14432ba036a92e65bbb52280990a2fa27883998d72af30161"),
            (2, "c651bf29e2300ac27fa469d693bdda13", "a2e16d16b36069c135d5e9d2e25f896102685618b95914b467c67622225824ff"),
            (1200, "4c01cd46d632d01e6dbe230a01ed642a", "55a6ac740ad17b4846941051e1e8b0a7548d93b0ab30a8bc3ff16280382b8c2a"),
        ] {
            for (etype, key) in [(Etype::Aes128Sha1, aes128), (Etype::Aes256Sha1, aes256)] {
                assert_eq!(hex::encode(etype.stretched(b"password", b"ATHENA.MIT.EDUraeburn", iterations).as_bytes()), key, "{iterations}");
            }
        }
        // with the number of iterations that is used
        assert_eq!(of(Etype::Aes128Sha1, b"password", b"ATHENA.MIT.EDUraeburn"), bytes("fca822951813fb252154c883f5ee1cf4"));
        assert_eq!(
            of(Etype::Aes256Sha1, b"password", b"ATHENA.MIT.EDUraeburn"),
            bytes("01b897121d933ab44b47eb5494db15e50eb74530dbdae9b634d65020ff5d88c1")
        );
        // RFC 8009 appendix A
        let salt = [&bytes("10DF9DD783E5BC8ACEA1730E74355F61")[..], b"ATHENA.MIT.EDUraeburn"].concat();
        assert_eq!(of(Etype::Aes128Sha2, b"password", &salt), bytes("089BCA48B105EA6EA77CA5D2F39DC5E7"));
        assert_eq!(of(Etype::Aes256Sha2, b"password", &salt), bytes("45BD806DBF6A833A9CFFC1C94589A222367A79BC21C413718906E9F578A78467"));
    }

    /// RFC 3962 appendix B: CBC with ciphertext stealing under "chicken teriyaki".
    #[test]
    fn steals() {
        let plain = b"I would like the General Gau's Chicken, please, and wonton soup.";
        for (len, expected) in [
            (17, "c6353568f2bf8cb4d8a580362da7ff7f 97"),
            (31, "fc00783e0efdb2c1d445d4c8eff7ed22 97687268d6ecccc0c07b25e25ecfe5"),
            (32, "39312523a78662d5be7fcbcc98ebf5a8 97687268d6ecccc0c07b25e25ecfe584"),
            (47, "97687268d6ecccc0c07b25e25ecfe584 b3fffd940c16a18c1b5549d2f838029e 39312523a78662d5be7fcbcc98ebf5"),
            (48, "97687268d6ecccc0c07b25e25ecfe584 9dad8bbb96c4cdc03bc103e1a194bbd8 39312523a78662d5be7fcbcc98ebf5a8"),
            (
                64,
                "97687268d6ecccc0c07b25e25ecfe584 39312523a78662d5be7fcbcc98ebf5a8 4807efe836ee89a526730dbc2f7bc840
                 9dad8bbb96c4cdc03bc103e1a194bbd8",
            ),
        ] {
            let mut text = plain[..len].to_vec();
            let cipher = Cipher::new(b"chicken teriyaki");
            cipher.encrypt_stealing(&mut text);
            assert_eq!(text, bytes(expected), "{len}");
            cipher.decrypt_stealing(&mut text);
            assert_eq!(text, plain[..len], "{len}");
        }
    }

    /// RFC 8009 appendix A: the keys and texts of use 2.
    #[test]
    fn texts_of_rfc_8009() {
        let usage = Usage::new(2);
        let plain = bytes("000102030405060708090A0B0C0D0E0F1011121314");
        let (k128, k256) = ("3705D96080C17728A0E800EAB6E0D23C", "6D404D37FAF79F9DF0D33568D320669800EB4836472EA8A026D16B7182460C52");
        for (etype, base, len, confounder, text) in [
            (
                Etype::Aes128Sha2,
                k128,
                0,
                "7E5895EAF2672435BAD817F545A37148",
                "EF85FB890BB8472F4DAB20394DCA781DAD877EDA39D50C870C0D5A0A8E48C718",
            ),
            (
                Etype::Aes128Sha2,
                k128,
                6,
                "7BCA285E2FD4130FB55B1A5C83BC5B24",
                "84D7F30754ED987BAB0BF3506BEB09CFB55402CEF7E6877CE99E247E52D16ED4421DFDF8976C",
            ),
            (
                Etype::Aes128Sha2,
                k128,
                16,
                "56AB21713FF62C0A1457200F6FA9948F",
                "3517D640F50DDC8AD3628722B3569D2AE07493FA8263254080EA65C1008E8FC295FB4852E7D83E1E7C48C37EEBE6B0D3",
            ),
            (
                Etype::Aes128Sha2,
                k128,
                21,
                "A7A4E29A4728CE10664FB64E49AD3FAC",
                "720F73B18D9859CD6CCB4346115CD336C70F58EDC0C4437C5573544C31C813BCE1E6D072C186B39A413C2F92CA9B8334A287FFCBFC",
            ),
            (
                Etype::Aes256Sha2,
                k256,
                0,
                "F764E9FA15C276478B2C7D0C4E5F58E4",
                "41F53FA5BFE7026D91FAF9BE959195A058707273A96A40F0A01960621AC612748B9BBFBE7EB4CE3C",
            ),
            (
                Etype::Aes256Sha2,
                k256,
                6,
                "B80D3251C1F6471494256FFE712D0B9A",
                "4ED7B37C2BCAC8F74F23C1CF07E62BC7B75FB3F637B9F559C7F664F69EAB7B6092237526EA0D1F61CB20D69D10F2",
            ),
            (
                Etype::Aes256Sha2,
                k256,
                16,
                "53BF8A0D105265D4E276428624CE5E63",
                "BC47FFEC7998EB91E8115CF8D19DAC4BBBE2E163E87DD37F49BECA92027764F68CF51F14D798C2273F35DF574D1F932E40C4FF255B36A266",
            ),
            (
                Etype::Aes256Sha2,
                k256,
                21,
                "763E65367E864F02F55153C7E3B58AF1",
                "40013E2DF58E8751957D2878BCD2D6FE101CCFD556CB1EAE79DB3C3EE86429F2B2A602AC86FEF6ECB647D6295FAE077A1FEB517508D2C16B4192E01F62",
            ),
        ] {
            let confounder = bytes(confounder).try_into().unwrap();
            let made = etype.encrypt(&key(base), &usage, &confounder, &plain[..len]);
            assert_eq!(hex::encode_upper(&made), text);
            assert_eq!(&**etype.decrypt(&key(base), &usage, &made).unwrap(), &plain[..len]);
        }
        let checksum = |etype: Etype, base: &str| hex::encode_upper(etype.checksum_of(&key(base), &usage, &plain));
        assert_eq!(checksum(Etype::Aes128Sha2, "3705D96080C17728A0E800EAB6E0D23C"), "D78367186643D67B411CBA9139FC1DEE");
        assert_eq!(
            checksum(Etype::Aes256Sha2, "6D404D37FAF79F9DF0D33568D320669800EB4836472EA8A026D16B7182460C52"),
            "45EE791567EEFCA37F4AC1E0222DE80D43C3BFA06699672A"
        );
    }

    proptest! {
        #[test]
        fn a_text_opens_for_its_key_and_use_alone(
            number in 0_usize..4, base: [u8; 32], plain: Vec<u8>, confounder: [u8; 16], at: prop::sample::Index, bit in 0_u8..8,
        ) {
            let etype = Etype::ALL[number];
            let key = Key::new(&base[..etype.key_len()]).unwrap();
            let usage = Usage::new(11);
            let text = etype.encrypt(&key, &usage, &confounder, &plain);
            prop_assert_eq!(&**etype.decrypt(&key, &usage, &text).unwrap(), &plain[..]);
            prop_assert!(etype.decrypt(&key, &Usage::new(7), &text).is_none());
            let mut forged = text.clone();
            forged[at.index(text.len())] ^= 1 << bit;
            prop_assert!(etype.decrypt(&key, &usage, &forged).is_none());
            prop_assert!(etype.decrypt(&key, &usage, &text[..at.index(text.len())]).is_none());
        }
    }
}
