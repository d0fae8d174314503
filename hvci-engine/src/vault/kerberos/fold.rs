//! n-fold (RFC 3961 §5.1), of the few bytes that constants of keys are made of.

#![expect(clippy::cast_possible_truncation, reason = "the sum of two bytes and a carry, cut on purpose")]
#![cfg_attr(
    not(test),
    expect(
        clippy::arithmetic_side_effects,
        clippy::as_conversions,
        clippy::indexing_slicing,
        reason = "run when it is compiled, where there are no traits to do it with; inputs have five or eight bytes"
    )
)]

const BLOCK: usize = 16;

/// To a block: copies of the input, each turned right by 13 bits more, added up in one's complement.
pub(super) const fn n_fold(input: &[u8]) -> [u8; BLOCK] {
    let bits = input.len() * 8;
    let mut sum = [0_u8; BLOCK];
    let copies = {
        // until both lengths come out even
        let mut n = 1;
        while !(n * input.len()).is_multiple_of(BLOCK) {
            n += 1;
        }
        n
    };
    let mut chunk = 0;
    while chunk < copies * input.len() / BLOCK {
        // the chunk is added from its last byte on, and a carry from the first goes round
        let mut carry = 0_u16;
        let mut at = BLOCK;
        while at > 0 {
            at -= 1;
            let mut byte = 0_u16;
            let mut bit = 0;
            while bit < 8 {
                let index = (chunk * BLOCK + at) * 8 + bit;
                let from = (index % bits + (index / bits) * (bits - 13 % bits)) % bits;
                byte = byte << 1 | (input[from / 8] >> (7 - from % 8) & 1) as u16;
                bit += 1;
            }
            let added = sum[at] as u16 + byte + carry;
            sum[at] = added as u8;
            carry = added >> 8;
        }
        let mut at = BLOCK;
        while carry > 0 && at > 0 {
            at -= 1;
            let added = sum[at] as u16 + carry;
            sum[at] = added as u8;
            carry = added >> 8;
        }
        chunk += 1;
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 3961 appendix A.1 has this one for 128 bits; those of other lengths are not made here.
    #[test]
    fn folds() {
        assert_eq!(hex::encode(n_fold(b"kerberos")), "6b65726265726f737b9b5b2b93132b93");
    }

    /// Constants of keys as another implementation makes them (`impacket.krb5.crypto._nfold`).
    #[test]
    fn folds_constants_of_keys() {
        assert_eq!(hex::encode(n_fold(&[0, 0, 0, 1, 0xAA])), "ae2c160b04ad5006ab55aad56a80355a");
        assert_eq!(hex::encode(n_fold(&[0, 0, 0, 11, 0x55])), "ab80c060aaafaa2e6ab55aad55416b55");
    }
}
