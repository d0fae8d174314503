//! Guest RAM: frames of host memory that any thread reads and writes.
//!
//! Words are atomics that are read and written relaxed: concurrent accesses of processors and devices are no data race, and a word is never
//! torn. Across words there is no order, as on a bus without barriers. Memory that was never written is zero and takes up nothing.

use std::sync::{
    OnceLock,
    atomic::{AtomicU64, Ordering::Relaxed},
};

use hvci_engine::{
    addr::{Frame, PAGE_SIZE},
    status::HvStatus,
};

/// Bytes of a page, as a length.
pub const PAGE: usize = 4096;
const _: () = assert!(PAGE as u64 == PAGE_SIZE);

/// Bytes from the start of the address's page.
pub(crate) const fn page_offset(address: u64) -> usize {
    (address & 0xfff) as usize
}

/// The most RAM that a machine has: 16 GiB.
pub const MAX_BYTES: u64 = 16 << 30;

/// Words of what is allocated at once: 256 KiB.
const CHUNK_WORDS: usize = 1 << 15;
const CHUNK_FRAMES: u64 = (CHUNK_WORDS * 8 / PAGE) as u64;
const WORDS_PER_FRAME: usize = PAGE / 8;

/// The RAM of a machine: frames 0 to [`frames`](Self::frames)` - 1`.
#[derive(Debug)]
pub struct GuestMemory {
    frames: u64,
    chunks: Box<[OnceLock<Box<[AtomicU64]>>]>,
}

impl GuestMemory {
    /// RAM of `frames` pages, all zero.
    ///
    /// # Errors
    /// [`HvStatus::INSUFFICIENT_MEMORY`] above [`MAX_BYTES`].
    pub fn new(frames: u64) -> Result<Self, HvStatus> {
        if frames > MAX_BYTES / PAGE_SIZE {
            return Err(HvStatus::INSUFFICIENT_MEMORY);
        }
        Ok(Self { frames, chunks: (0..frames.div_ceil(CHUNK_FRAMES)).map(|_| OnceLock::new()).collect() })
    }

    /// How many frames there are.
    pub const fn frames(&self) -> u64 {
        self.frames
    }

    /// Reads from `offset` in a frame on.
    ///
    /// # Errors
    /// [`HvStatus::INVALID_PARAMETER`] where there is no RAM, or beyond the frame's end.
    pub fn read(&self, frame: Frame, offset: u64, bytes: &mut [u8]) -> Result<(), HvStatus> {
        let (chunk, start) = self.locate(frame, offset, bytes.len())?;
        let Some(words) = self.chunks[chunk].get() else {
            bytes.fill(0);
            return Ok(());
        };
        let mut word = start / 8;
        let (head, rest) = bytes.split_at_mut(((8 - start % 8) % 8).min(bytes.len()));
        if !head.is_empty() {
            let from = start % 8;
            head.copy_from_slice(&words[word].load(Relaxed).to_le_bytes()[from..from + head.len()]);
            word += 1;
        }
        let whole = rest.len() / 8;
        let (body, tail) = rest.split_at_mut(whole * 8);
        // lines of eight words, which the compiler unrolls as it does not unroll loops over atomics
        let (lines, last) = body.as_chunks_mut::<64>();
        let words_of_lines = words[word..].as_chunks::<8>().0;
        for (line, words) in lines.iter_mut().zip(words_of_lines) {
            for (bytes, word) in line.as_chunks_mut::<8>().0.iter_mut().zip(words) {
                *bytes = word.load(Relaxed).to_le_bytes();
            }
        }
        for (bytes, word) in last.chunks_exact_mut(8).zip(&words[word + lines.len() * 8..]) {
            bytes.copy_from_slice(&word.load(Relaxed).to_le_bytes());
        }
        if !tail.is_empty() {
            let len = tail.len();
            tail.copy_from_slice(&words[word + whole].load(Relaxed).to_le_bytes()[..len]);
        }
        Ok(())
    }

    /// A frame's words. `None` where there is no RAM, and of memory that was never written.
    pub fn words(&self, frame: Frame) -> Option<&[AtomicU64; WORDS_PER_FRAME]> {
        let (chunk, start) = self.locate(frame, 0, PAGE).ok()?;
        self.chunks[chunk].get()?.as_chunks().0.get(start / PAGE)
    }

    /// Writes from `offset` in a frame on.
    ///
    /// # Errors
    /// As [`read`](Self::read); nothing is written then.
    pub fn write(&self, frame: Frame, offset: u64, bytes: &[u8]) -> Result<(), HvStatus> {
        let (chunk, start) = self.locate(frame, offset, bytes.len())?;
        let words = self.chunks[chunk].get_or_init(|| (0..CHUNK_WORDS).map(|_| AtomicU64::new(0)).collect());
        let mut word = start / 8;
        let (head, rest) = bytes.split_at(((8 - start % 8) % 8).min(bytes.len()));
        if !head.is_empty() {
            merge(&words[word], start % 8, head);
            word += 1;
        }
        let (body, tail) = rest.as_chunks::<8>();
        for (bytes, word) in body.iter().zip(&words[word..]) {
            word.store(u64::from_le_bytes(*bytes), Relaxed);
        }
        if !tail.is_empty() {
            merge(&words[word + body.len()], 0, tail);
        }
        Ok(())
    }

    /// A frame's whole content.
    ///
    /// # Errors
    /// [`HvStatus::INVALID_PARAMETER`] where there is no RAM.
    pub fn page(&self, frame: Frame) -> Result<[u8; PAGE], HvStatus> {
        let mut page = [0; PAGE];
        self.read(frame, 0, &mut page)?;
        Ok(page)
    }

    /// The chunk of the bytes, and where in it they start.
    fn locate(&self, frame: Frame, offset: u64, len: usize) -> Result<(usize, usize), HvStatus> {
        let room = usize::try_from(offset).ok().and_then(|offset| PAGE.checked_sub(offset));
        if frame.0 >= self.frames || room.is_none_or(|room| len > room) {
            return Err(HvStatus::INVALID_PARAMETER);
        }
        let narrow = |value: u64| usize::try_from(value).map_err(|_| HvStatus::INVALID_PARAMETER);
        let start = narrow(frame.0 % CHUNK_FRAMES)? * WORDS_PER_FRAME * 8 + narrow(offset)?;
        Ok((narrow(frame.0 / CHUNK_FRAMES)?, start))
    }
}

/// Replaces some bytes of a word and loses none that another thread writes beside them.
fn merge(word: &AtomicU64, from: usize, bytes: &[u8]) {
    let replaced = |old: u64| {
        let mut word = old.to_le_bytes();
        word[from..from + bytes.len()].copy_from_slice(bytes);
        u64::from_le_bytes(word)
    };
    let mut old = word.load(Relaxed);
    while let Err(now) = word.compare_exchange_weak(old, replaced(old), Relaxed, Relaxed) {
        old = now;
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn bounds_are_those_of_frames() {
        let memory = GuestMemory::new(2).unwrap();
        let write = |frame, offset, len| memory.write(Frame(frame), offset, &vec![7; len]);
        assert_eq!(write(1, 0xff8, 8), Ok(()));
        assert_eq!(write(1, 0xff8, 9), Err(HvStatus::INVALID_PARAMETER));
        assert_eq!(write(0, 0xfff, 2), Err(HvStatus::INVALID_PARAMETER));
        assert_eq!(write(2, 0, 1), Err(HvStatus::INVALID_PARAMETER));
        assert_eq!(write(u64::MAX, 0, 0), Err(HvStatus::INVALID_PARAMETER));
        assert_eq!(write(0, u64::MAX, 0), Err(HvStatus::INVALID_PARAMETER));
        assert_eq!(memory.page(Frame(0)).unwrap(), [0; PAGE]);
        assert_eq!(memory.page(Frame(1)).unwrap()[0xff7..], [0, 7, 7, 7, 7, 7, 7, 7, 7]);
        assert!(GuestMemory::new(MAX_BYTES / PAGE_SIZE).is_ok());
        assert_eq!(GuestMemory::new(MAX_BYTES / PAGE_SIZE + 1).err(), Some(HvStatus::INSUFFICIENT_MEMORY));
    }

    #[test]
    fn neighbours_in_a_word_are_kept() {
        let memory = GuestMemory::new(1).unwrap();
        thread::scope(|scope| {
            for byte in 0..8_u64 {
                let memory = &memory;
                scope.spawn(move || (0..=200_u8).for_each(|value| memory.write(Frame(0), byte, &[value]).unwrap()));
            }
        });
        assert_eq!(memory.page(Frame(0)).unwrap()[..8], [200; 8]);
    }

    proptest! {
        #[test]
        fn reads_are_what_was_written(writes in prop::collection::vec((0..70_u64, 0..4096_u64, prop::collection::vec(any::<u8>(), 0..64)), 0..20)) {
            let memory = GuestMemory::new(70).unwrap();
            let mut model = vec![0; 70 * PAGE];
            for (frame, offset, bytes) in writes {
                if memory.write(Frame(frame), offset, &bytes).is_ok() {
                    let at = usize::try_from(frame * PAGE_SIZE + offset).unwrap();
                    model[at..at + bytes.len()].copy_from_slice(&bytes);
                }
                let mut read = vec![0xcc; bytes.len()];
                if memory.read(Frame(frame), offset, &mut read).is_ok() {
                    prop_assert_eq!(read, bytes);
                }
            }
            for (frame, page) in (0..).zip(model.chunks(PAGE)) {
                prop_assert_eq!(&memory.page(Frame(frame)).unwrap()[..], page);
            }
        }
    }
}
