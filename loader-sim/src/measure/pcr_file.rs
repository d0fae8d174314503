//! PCR values as people keep them: a line for each, `0 27fc…` or, as `tpm2_pcrread` prints them, `0 : 0x27FC…` below the name of a bank.

use hvci_engine::digest::{Digest, DigestAlg};

use super::event::PCRS;

const BANKS: [DigestAlg; 4] = [DigestAlg::Sha1, DigestAlg::Sha256, DigestAlg::Sha384, DigestAlg::Sha512];

/// Reads such a text: the number and the value of each PCR. A value's length says which bank it is of.
///
/// # Errors
/// The first line that is none of these, with its number.
pub fn parse(text: &str) -> Result<Vec<(usize, Digest)>, String> {
    let mut values = Vec::new();
    for (number, line) in (1..).zip(text.lines()).filter(|(_, line)| !line.trim().is_empty()) {
        let line = line.trim();
        if line.strip_suffix(':').is_some_and(|bank| DigestAlg::from_name(bank).is_some()) {
            continue;
        }
        let value = || {
            let (pcr, value) = line.split_once(|c: char| c.is_whitespace() || c == ':')?;
            let value = value.trim_start_matches([' ', '\t', ':']);
            let bytes = hex::decode(value.trim_start_matches("0x").trim_start_matches("0X")).ok()?;
            let alg = BANKS.into_iter().find(|alg| alg.len() == bytes.len())?;
            Some((pcr.parse().ok().filter(|pcr| *pcr < PCRS)?, Digest::new(alg, &bytes)?))
        };
        values.push(value().ok_or_else(|| format!("line {number} is no PCR: expected a number and its value, for example 7 75677db6…"))?);
    }
    Ok(values)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_are_read_and_nothing_else() {
        let (one, other) = ("ab".repeat(32), "CD".repeat(20));
        let text = format!("7 {one}\n\n  sha1:\n    0 : 0x{other}\n    23: 0x{other}\n");
        let values = parse(&text).unwrap();
        let found: Vec<(usize, String)> = values.iter().map(|(pcr, digest)| (*pcr, digest.to_string())).collect();
        let sha1 = format!("sha1:{}", other.to_lowercase());
        assert_eq!(found, [(7, format!("sha256:{one}")), (0, sha1.clone()), (23, sha1)]);
        for wrong in [format!("24 {one}"), format!("x {one}"), "7 abc".to_owned(), "7".to_owned(), "7 abcd".to_owned(), "sha7:".to_owned()]
        {
            assert_eq!(parse(&wrong).unwrap_err().split_once(" is ").unwrap().0, "line 1", "{wrong}");
        }
    }
}
