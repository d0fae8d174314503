//! Fixed little-endian encodings, and the macros that declare types with one: `open!` numbers of which some have names, `flags!` single
//! bits, `bits!` words of several fields, `layout!` structures.
//!
//! **Invariant:** a decoded value holds every bit of its bytes, reserved ones too, so that encoding it gives the same bytes; `layout!` checks
//! at compile time that its fields leave no gap.

use crate::{
    access::MapGpaFlags,
    addr::{Gpn, Gva},
    bytes::array,
    status::HvStatus,
};

/// A value whose encoding has always the same length.
pub trait Wire: Sized {
    /// Bytes of the encoding.
    const SIZE: usize;

    /// The value encoded at `offset`; `None` if `bytes` ends before it does.
    fn get(bytes: &[u8], offset: usize) -> Option<Self>;

    /// Encodes the value at `offset`. Does nothing if `bytes` ends before the encoding would.
    fn put(&self, bytes: &mut [u8], offset: usize);
}

impl<const N: usize> Wire for [u8; N] {
    const SIZE: usize = N;

    fn get(bytes: &[u8], offset: usize) -> Option<Self> {
        array(bytes, offset)
    }

    fn put(&self, bytes: &mut [u8], offset: usize) {
        if let Some(slot) = bytes.get_mut(offset..).and_then(|rest| rest.first_chunk_mut()) {
            *slot = *self;
        }
    }
}

macro_rules! wire_number {
    ($($number:ty)*) => {$(
        impl Wire for $number {
            const SIZE: usize = size_of::<Self>();

            fn get(bytes: &[u8], offset: usize) -> Option<Self> {
                array(bytes, offset).map(Self::from_le_bytes)
            }

            fn put(&self, bytes: &mut [u8], offset: usize) {
                self.to_le_bytes().put(bytes, offset);
            }
        }
    )*};
}

wire_number! { u8 u16 u32 u64 u128 }

/// [`Wire`] for a struct of one number.
macro_rules! wire_newtype {
    ($($name:ident($base:ty))*) => {$(
        impl $crate::vsm::wire::Wire for $name {
            const SIZE: usize = <$base as $crate::vsm::wire::Wire>::SIZE;

            fn get(bytes: &[u8], offset: usize) -> Option<Self> {
                <$base as $crate::vsm::wire::Wire>::get(bytes, offset).map(Self)
            }

            fn put(&self, bytes: &mut [u8], offset: usize) {
                $crate::vsm::wire::Wire::put(&self.0, bytes, offset);
            }
        }
    )*};
}

wire_newtype! { Gpn(u64) Gva(u64) MapGpaFlags(u32) }

/// What a field of a word is read as. Bits that do not fit are dropped when it is written, and cannot be there when it is read.
pub(super) trait Part: Sized {
    fn from_bits(bits: u128) -> Self;
    fn into_bits(self) -> u128;
}

impl Part for bool {
    fn from_bits(bits: u128) -> Self {
        bits != 0
    }

    fn into_bits(self) -> u128 {
        u128::from(self)
    }
}

macro_rules! part_number {
    ($($number:ty)*) => {$(
        impl Part for $number {
            fn from_bits(bits: u128) -> Self {
                Self::try_from(bits & u128::from(Self::MAX)).unwrap_or(Self::MAX)
            }

            fn into_bits(self) -> u128 {
                u128::from(self)
            }
        }
    )*};
}

part_number! { u8 u16 u32 u64 u128 }

impl Part for HvStatus {
    fn from_bits(bits: u128) -> Self {
        Self(Part::from_bits(bits))
    }

    fn into_bits(self) -> u128 {
        self.0.into_bits()
    }
}

/// Ones in bits `low` to `high`.
pub(super) const fn field_mask(high: u32, low: u32) -> u128 {
    u128::MAX.wrapping_shr(127_u32.saturating_sub(high)) & u128::MAX.wrapping_shl(low)
}

/// Bits `low` to `high` of `word`.
pub(super) fn read_field<T: Part>(word: u128, high: u32, low: u32) -> T {
    T::from_bits((word & field_mask(high, low)).wrapping_shr(low))
}

/// `word` with other bits `low` to `high`.
pub(super) fn write_field<T: Part>(word: u128, high: u32, low: u32, part: T) -> u128 {
    let mask = field_mask(high, low);
    (word & !mask) | (part.into_bits().wrapping_shl(low) & mask)
}

/// A number of which some values have names: `open! { Name(u16) "prefix" { CONSTANT = 0x1 "NameInTheSource"; } }`.
macro_rules! open {
    ($(#[$doc:meta])* $name:ident($base:ty) $prefix:literal { $($constant:ident = $value:literal $label:literal;)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub $base);

        impl $name {
            $( #[doc = concat!("`", $label, "`.")] pub const $constant: Self = Self($value); )*

            /// Every value that has a name here, with its name in the sources.
            pub const NAMED: &'static [(Self, &'static str)] = &[$( (Self($value), $label) ),*];

            /// The name in the sources, if it has one here.
            pub fn name(self) -> Option<&'static str> {
                Self::NAMED.iter().find(|(value, _)| *value == self).map(|(_, name)| *name)
            }
        }

        impl core::fmt::Display for $name {
            fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
                match self.name() {
                    Some(name) => f.write_str(name),
                    None => write!(f, concat!($prefix, " {:#x}"), self.0),
                }
            }
        }

        impl core::fmt::Debug for $name {
            fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
                core::fmt::Display::fmt(self, f)
            }
        }

        impl $crate::vsm::wire::Part for $name {
            fn from_bits(bits: u128) -> Self {
                Self($crate::vsm::wire::Part::from_bits(bits))
            }

            fn into_bits(self) -> u128 {
                $crate::vsm::wire::Part::into_bits(self.0)
            }
        }

        wire_newtype! { $name($base) }
    };
}

/// A set of bits: `flags! { Name(u8) { /// What it says. FLAG = 0; } }`, by the number of the bit.
macro_rules! flags {
    ($(#[$doc:meta])* $name:ident($base:ty) { $($(#[$flag_doc:meta])* $constant:ident = $bit:literal;)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
        pub struct $name(pub $base);

        impl $name {
            $( $(#[$flag_doc])* pub const $constant: Self = Self(1 << $bit); )*

            /// Whether every flag of `other` is set.
            pub const fn contains(self, other: Self) -> bool {
                self.0 & other.0 == other.0
            }

            /// The bits that have no name here.
            pub const fn unknown(self) -> $base {
                self.0 & !(0 $( | (1 << $bit) )*)
            }
        }

        impl core::ops::BitOr for $name {
            type Output = Self;
            fn bitor(self, other: Self) -> Self {
                Self(self.0 | other.0)
            }
        }

        wire_newtype! { $name($base) }
    };
}

/// A word of several fields: `bits! { Name(u64) { /// What it says. 15:0 field with_field: u16; } }`, high bit and low bit included.
macro_rules! bits {
    ($(#[$doc:meta])* $name:ident($base:ty) { $($(#[$field_doc:meta])* $high:literal:$low:literal $get:ident $with:ident: $part:ty;)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
        pub struct $name(pub $base);

        impl $name {
            $(
                $(#[$field_doc])*
                pub fn $get(self) -> $part {
                    $crate::vsm::wire::read_field(u128::from(self.0), $high, $low)
                }

                #[doc = concat!("The same with another [`", stringify!($get), "`](Self::", stringify!($get), "); bits that do not fit are dropped.")]
                #[must_use]
                pub fn $with(self, part: $part) -> Self {
                    let word = $crate::vsm::wire::write_field(u128::from(self.0), $high, $low, part);
                    Self($crate::vsm::wire::Part::from_bits(word))
                }
            )*

            /// The bits that have no name here.
            pub fn unknown(self) -> $base {
                let named = 0 $( | $crate::vsm::wire::field_mask($high, $low) )*;
                $crate::vsm::wire::Part::from_bits(u128::from(self.0) & !named)
            }
        }

        wire_newtype! { $name($base) }
    };
}

/// A structure: `layout! { Name[16] { /// What it says. 0 field: u64, /// Must be zero. 8 reserved: [u8; 8], } }`, by the offset of the field.
macro_rules! layout {
    ($(#[$doc:meta])* $name:ident[$size:literal] { $($(#[$field_doc:meta])* $offset:literal $field:ident: $kind:ty,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub struct $name {
            $( $(#[$field_doc])* pub $field: $kind, )*
        }

        const _: () = {
            let mut end: usize = 0;
            $( assert!(end == $offset, stringify!($field)); end = end.saturating_add(<$kind as $crate::vsm::wire::Wire>::SIZE); )*
            assert!(end == $size);
        };

        impl $name {
            /// Bytes of the encoding.
            pub const SIZE: usize = $size;

            /// Decodes what `bytes` begins with; `None` if it is shorter than [`SIZE`](Self::SIZE).
            pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
                <Self as $crate::vsm::wire::Wire>::get(bytes, 0)
            }

            /// The encoding.
            pub fn to_bytes(self) -> [u8; $size] {
                let mut bytes = [0; $size];
                $crate::vsm::wire::Wire::put(&self, &mut bytes, 0);
                bytes
            }
        }

        impl $crate::vsm::wire::Wire for $name {
            const SIZE: usize = $size;

            fn get(bytes: &[u8], offset: usize) -> Option<Self> {
                let bytes: [u8; $size] = $crate::bytes::array(bytes, offset)?;
                Some(Self { $( $field: $crate::vsm::wire::Wire::get(&bytes, $offset)?, )* })
            }

            fn put(&self, bytes: &mut [u8], offset: usize) {
                let mut encoded = [0; $size];
                $( $crate::vsm::wire::Wire::put(&self.$field, &mut encoded, $offset); )*
                $crate::vsm::wire::Wire::put(&encoded, bytes, offset);
            }
        }
    };
}

#[cfg(test)]
mod tests {
    #![expect(unreachable_pub, reason = "types of the macros, which are public elsewhere")]

    use super::*;

    bits! {
        /// For the tests.
        Word(u32) {
            /// The lowest bit.
            0:0 low with_low: bool;
            /// A byte.
            11:4 byte with_byte: u8;
            /// The highest bits.
            31:30 high with_high: u8;
        }
    }

    layout! {
        /// For the tests.
        Pair[6] {
            /// Two bytes.
            0 first: u16,
            /// Four bytes.
            2 second: u32,
        }
    }

    #[test]
    fn fields_are_where_they_are_said_to_be() {
        let word = Word(0xC000_0AB1);
        assert_eq!((word.low(), word.byte(), word.high(), word.unknown()), (true, 0xAB, 3, 0));
        assert_eq!(Word(0xF).unknown(), 0xE);
        assert_eq!(Word(u32::MAX).with_byte(0).with_low(false), Word(0xFFFF_F00E));
        assert_eq!(Word(0).with_high(0xFF), Word(0xC000_0000), "bits that do not fit are dropped");
        assert_eq!(field_mask(127, 0), u128::MAX);
        assert_eq!(field_mask(127, 127), 1 << 127);
    }

    #[test]
    fn what_does_not_fit_is_not_decoded_nor_encoded() {
        assert_eq!(Pair::from_bytes(&[1; Pair::SIZE - 1]), None);
        let pair = Pair { first: 0x0201, second: 0x0605_0403 };
        assert_eq!(Pair::from_bytes(&[1, 2, 3, 4, 5, 6, 7]), Some(pair));
        assert_eq!(pair.to_bytes(), [1, 2, 3, 4, 5, 6]);
        let mut short = [9; 5];
        pair.put(&mut short, 0);
        pair.put(&mut short, usize::MAX);
        assert_eq!(short, [9; 5]);
    }
}
