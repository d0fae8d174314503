//! How state becomes bytes: fields one after the other, counts before lists. What is read back may be anything; `None` means that it is no state.

use std::collections::BTreeMap;

use super::crypt::{Drbg, Hash, Point, Secret};
use super::wire::{Put, Reader};

pub(super) trait Stored: Sized {
    fn store(&self, out: &mut Vec<u8>);
    fn restore(r: &mut Reader<'_>) -> Option<Self>;
}

macro_rules! integers {
    ($($type:ident)*) => { $(
        impl Stored for $type {
            fn store(&self, out: &mut Vec<u8>) {
                Put::$type(out, *self);
            }

            fn restore(r: &mut Reader<'_>) -> Option<Self> {
                r.$type().ok()
            }
        }
    )* };
}

integers! { u8 u16 u32 u64 }

/// A structure is its fields in the order given here.
macro_rules! stored {
    ($type:ident { $($field:ident)* }) => {
        impl $crate::vtpm::embedded::stored::Stored for $type {
            fn store(&self, out: &mut Vec<u8>) {
                $($crate::vtpm::embedded::stored::Stored::store(&self.$field, out);)*
            }

            fn restore(r: &mut $crate::vtpm::embedded::wire::Reader<'_>) -> Option<Self> {
                $(let $field = $crate::vtpm::embedded::stored::Stored::restore(r)?;)*
                Some(Self { $($field),* })
            }
        }
    };
}
pub(super) use stored;

stored!(Point { x y });

impl Stored for bool {
    fn store(&self, out: &mut Vec<u8>) {
        u8::from(*self).store(out);
    }

    fn restore(r: &mut Reader<'_>) -> Option<Self> {
        match u8::restore(r)? {
            0 => Some(false),
            1 => Some(true),
            _ => None,
        }
    }
}

impl Stored for Hash {
    fn store(&self, out: &mut Vec<u8>) {
        self.id().store(out);
    }

    fn restore(r: &mut Reader<'_>) -> Option<Self> {
        Self::from_id(u16::restore(r)?)
    }
}

impl<T: Stored> Stored for Option<T> {
    fn store(&self, out: &mut Vec<u8>) {
        self.is_some().store(out);
        if let Some(value) = self {
            value.store(out);
        }
    }

    fn restore(r: &mut Reader<'_>) -> Option<Self> {
        if bool::restore(r)? { T::restore(r).map(Some) } else { Some(None) }
    }
}

impl<T: Stored> Stored for Vec<T> {
    fn store(&self, out: &mut Vec<u8>) {
        out.count(self.len());
        for value in self {
            value.store(out);
        }
    }

    fn restore(r: &mut Reader<'_>) -> Option<Self> {
        let count = r.u32().ok()?;
        // grows with what is there, not with what is claimed
        (0..count).map(|_| T::restore(r)).collect()
    }
}

impl<T: Stored, const N: usize> Stored for [T; N] {
    fn store(&self, out: &mut Vec<u8>) {
        for value in self {
            value.store(out);
        }
    }

    fn restore(r: &mut Reader<'_>) -> Option<Self> {
        let values: Option<Vec<T>> = (0..N).map(|_| T::restore(r)).collect();
        values?.try_into().ok()
    }
}

impl<T: Stored> Stored for BTreeMap<u32, T> {
    fn store(&self, out: &mut Vec<u8>) {
        out.count(self.len());
        for (key, value) in self {
            key.store(out);
            value.store(out);
        }
    }

    fn restore(r: &mut Reader<'_>) -> Option<Self> {
        let count = r.u32().ok()?;
        (0..count).map(|_| Some((u32::restore(r)?, T::restore(r)?))).collect()
    }
}

impl Stored for Secret {
    fn store(&self, out: &mut Vec<u8>) {
        self.0.store(out);
    }

    fn restore(r: &mut Reader<'_>) -> Option<Self> {
        Vec::restore(r).map(Self)
    }
}

impl Stored for Drbg {
    fn store(&self, out: &mut Vec<u8>) {
        self.0.store(out);
    }

    fn restore(r: &mut Reader<'_>) -> Option<Self> {
        r.array().ok().map(Self)
    }
}
