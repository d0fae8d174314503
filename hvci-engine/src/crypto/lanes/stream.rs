//! A message as runs of whole blocks.

use crate::bytes::widen;

/// What is left of a message: its pieces, then the padding of FIPS 180-4 §5.1.
#[derive(Clone, Debug)]
pub(super) struct Stream<'a, S, const BLOCK: usize> {
    /// Chaining value of the blocks so far.
    pub(super) state: S,
    /// Blocks within the current piece.
    whole: &'a [[u8; BLOCK]],
    /// Bytes of the current piece behind `whole`.
    rest: &'a [u8],
    pieces: core::slice::Iter<'a, &'a [u8]>,
    /// A block that pieces share, or the one or two with the padding.
    buffer: [[u8; BLOCK]; 2],
    /// Blocks of `buffer` that are still to be taken, from the end.
    ready: usize,
    /// Bytes in the last block of `buffer` that is not ready yet.
    filled: usize,
    /// Length of the message in bytes, until the padding is made.
    len: Option<u64>,
    /// Bytes to come, padding left out.
    left: u64,
}

impl<'a, S, const BLOCK: usize> Stream<'a, S, BLOCK> {
    /// The message that `pieces` are, one after the other. [`Self::run`] is not empty.
    pub(super) fn new(state: S, pieces: &'a [&'a [u8]]) -> Self {
        let len = pieces.iter().fold(0_u64, |sum, piece| sum.saturating_add(widen(piece.len())));
        let buffer = [[0; BLOCK]; 2];
        let mut stream =
            Self { state, whole: &[], rest: &[], pieces: pieces.iter(), buffer, ready: 0, filled: 0, len: Some(len), left: len };
        stream.refill();
        stream
    }

    /// Bytes to come, padding left out.
    pub(super) fn left(&self) -> u64 {
        self.left
    }

    /// The next blocks; empty at the end of the message.
    pub(super) fn run(&self) -> &[[u8; BLOCK]] {
        if self.ready > 0 { self.buffer.get(2_usize.saturating_sub(self.ready)..).unwrap_or_default() } else { self.whole }
    }

    /// Takes `n` blocks off the run. Says whether there is one after that.
    pub(super) fn advance(&mut self, n: usize) -> bool {
        if self.ready > 0 {
            self.ready = self.ready.saturating_sub(n);
        } else {
            self.whole = self.whole.get(n..).unwrap_or_default();
            self.left = self.left.saturating_sub(widen(n.saturating_mul(BLOCK)));
        }
        if self.run().is_empty() {
            self.refill();
        }
        !self.run().is_empty()
    }

    /// Makes the next run, if the message has one.
    fn refill(&mut self) {
        loop {
            if self.filled == 0 {
                (self.whole, self.rest) = self.rest.as_chunks();
                if !self.whole.is_empty() {
                    return;
                }
            }
            let space = self.buffer[1].get_mut(self.filled..).unwrap_or_default();
            let n = space.len().min(self.rest.len());
            let (taken, rest) = self.rest.split_at(n);
            space[..n].copy_from_slice(taken);
            self.rest = rest;
            self.filled = self.filled.saturating_add(n);
            self.left = self.left.saturating_sub(widen(n));
            if self.filled == BLOCK {
                (self.ready, self.filled) = (1, 0);
                return;
            }
            match self.pieces.next() {
                Some(piece) => self.rest = piece,
                None => return self.pad(),
            }
        }
    }

    /// A one bit, zeroes, and the length in bits at the end of a block.
    fn pad(&mut self) {
        let Some(len) = self.len.take() else { return };
        // the length takes an eighth of a block
        let two = self.filled >= BLOCK - BLOCK / 8;
        let [first, last] = &mut self.buffer;
        let tail = if two {
            *first = *last;
            *last = [0; BLOCK];
            first
        } else {
            &mut *last
        };
        if let Some((mark, zeroes)) = tail.get_mut(self.filled..).and_then(<[u8]>::split_first_mut) {
            *mark = 0x80;
            zeroes.fill(0);
        }
        // the upper half of SHA-512's 128 bits stays nought: no memory holds 2⁶¹ bytes
        if let Some(length) = last.last_chunk_mut() {
            *length = len.wrapping_mul(8).to_be_bytes();
        }
        self.ready = if two { 2 } else { 1 };
        self.filled = 0;
    }
}
