//! The header CheckSum.

use super::Pe;
use crate::{
    bytes::{Span, slice},
    facts::FileKind,
    finding::{Code, Note},
};

/// Lines of one step.
const STEP: usize = 8;

/// What the CheckSum field has to be (`CheckSumMappedFile`), on its way: the 16-bit ones' complement sum of the file without the field, plus its
/// length.
#[derive(Clone, Debug)]
pub struct CheckSum<'a> {
    data: &'a [u8],
    field: Span,
    /// those not summed yet
    lines: &'a [[u8; 32]],
    /// 2¹⁶ ≡ 1 modulo 2¹⁶−1, so that wider words may be summed and folded at the end; several sums, so that none waits for another
    sums: [u64; 4],
}

impl<'a> CheckSum<'a> {
    fn new(data: &'a [u8], field: Span) -> Self {
        Self { data, field, lines: data.as_chunks().0, sums: [0; 4] }
    }

    /// Sums up a few hundred bytes.
    #[inline(always)]
    pub(crate) fn step(&mut self) {
        self.sum(STEP);
    }

    /// Sums up the rest.
    pub fn finish(mut self) -> u32 {
        self.sum(usize::MAX);
        let (words, rest) = self.data.as_chunks::<32>().1.as_chunks::<4>();
        let mut sum = self.sums.iter().fold(0, |sum: u64, part| sum.wrapping_add(*part));
        sum = words.iter().fold(sum, |sum, word| sum.wrapping_add(u64::from(u32::from_le_bytes(*word))));
        let mut last = [0; 4];
        for (to, from) in last.iter_mut().zip(rest) {
            *to = *from;
        }
        sum = sum.wrapping_add(u64::from(u32::from_le_bytes(last)));
        let start = usize::try_from(self.field.offset).unwrap_or(usize::MAX);
        for (byte, at) in slice(self.data, start, 4).unwrap_or_default().iter().zip(start..) {
            let shift = if at & 1 == 0 { 0 } else { 8 };
            let wider = if at & 2 == 0 { shift } else { shift | 16 };
            sum = sum.wrapping_sub(u64::from(*byte) << wider);
        }
        while sum >> 16 != 0 {
            sum = (sum & 0xFFFF).wrapping_add(sum >> 16);
        }
        u32::try_from(sum).unwrap_or(0).wrapping_add(u32::try_from(self.data.len()).unwrap_or(u32::MAX))
    }

    #[inline(always)]
    fn sum(&mut self, most: usize) {
        let (now, later) = self.lines.split_at_checked(most).unwrap_or((self.lines, &[]));
        self.lines = later;
        let mut sums = self.sums;
        for line in now {
            for (sum, pair) in sums.iter_mut().zip(line.as_chunks::<8>().0) {
                let pair = u64::from_le_bytes(*pair);
                *sum = sum.wrapping_add(pair & 0xFFFF_FFFF).wrapping_add(pair >> 32);
            }
        }
        self.sums = sums;
    }
}

impl<'a> Pe<'a> {
    /// What the CheckSum field has to be. To calculate it takes a pass over the whole file.
    pub fn checksum(&self) -> CheckSum<'a> {
        CheckSum::new(self.data, self.headers.checksum_span())
    }

    /// `ImageChecksum` when CheckSum is not what it [has to be](Self::checksum). A field of 0 is only wrong in a driver: nobody looks at it elsewhere.
    pub fn checksum_note(&self, right: CheckSum<'_>) -> Option<Note> {
        let stored = self.headers.checksum;
        if stored == 0 && self.kind() != FileKind::PeDriver {
            return None;
        }
        let right = right.finish();
        (stored != right).then(|| {
            Note::new(Code::ImageChecksum, format!("CheckSum is {stored:#x}, the file's is {right:#x}")).at(self.headers.checksum_span())
        })
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::indexing_slicing, clippy::unwrap_used, reason = "tests")]

    use super::{
        super::sample::{CHECKSUM, OPTIONAL, Sample},
        *,
    };

    fn checksum(sample: &Sample, steps: usize) -> u32 {
        let mut sum = Pe::parse(&sample.0).unwrap().checksum();
        (0..steps).for_each(|_| sum.step());
        sum.finish()
    }

    fn note(sample: &Sample) -> Option<Note> {
        let pe = Pe::parse(&sample.0).unwrap();
        pe.checksum_note(pe.checksum())
    }

    #[test]
    fn it_is_that_of_the_word_by_word_sum() {
        let mut sample = Sample::new();
        sample.0.extend_from_slice(&[0xFF, 0xFE, 0xFD]);
        sample.set32(CHECKSUM, 0x1234_5678);
        let mut sum = 0_u32;
        let plain = Sample({
            let mut zeroed = sample.clone();
            zeroed.set32(CHECKSUM, 0);
            zeroed.0
        });
        for word in plain.0.chunks(2) {
            sum += u32::from(word[0]) + 256 * u32::from(word.get(1).copied().unwrap_or(0));
            sum = (sum & 0xFFFF) + (sum >> 16);
        }
        let right = sum + u32::try_from(sample.0.len()).unwrap();
        for steps in [0, 1, 2, 1000] {
            assert_eq!(checksum(&sample, steps), right);
        }
        assert!(note(&sample).is_some());
        sample.set32(CHECKSUM, right);
        assert_eq!(note(&sample), None);
        // nobody looks at 0 in an application
        sample.set32(CHECKSUM, 0);
        assert!(note(&sample).is_some());
        sample.set16(OPTIONAL + 68, 3);
        assert_eq!(note(&sample), None);
    }
}
