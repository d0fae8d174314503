//! Integer arithmetic with its flags (Intel SDM volume 1, 3.4.3.1; volume 2 for each instruction).
//!
//! Values are zero-extended to 64 bits. Flags that the manual calls undefined are always the same here; where, is said.

use super::registers::flag::{AF, CF, OF, PF, SF, STATUS, ZF};

/// The size of an operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Width {
    Byte,
    Word,
    Dword,
    Qword,
}

impl Width {
    pub(crate) const fn of(bytes: usize) -> Option<Self> {
        match bytes {
            1 => Some(Self::Byte),
            2 => Some(Self::Word),
            4 => Some(Self::Dword),
            8 => Some(Self::Qword),
            _ => None,
        }
    }

    pub(crate) const fn bytes(self) -> usize {
        match self {
            Self::Byte => 1,
            Self::Word => 2,
            Self::Dword => 4,
            Self::Qword => 8,
        }
    }

    pub(crate) const fn bits(self) -> u32 {
        match self {
            Self::Byte => 8,
            Self::Word => 16,
            Self::Dword => 32,
            Self::Qword => 64,
        }
    }

    pub(crate) const fn mask(self) -> u64 {
        u64::MAX >> (64 - self.bits())
    }

    /// As much of the value as fits.
    const fn low(self, value: u128) -> u64 {
        (value & 0xffff_ffff_ffff_ffff) as u64 & self.mask()
    }

    const fn sign(self) -> u64 {
        1 << (self.bits() - 1)
    }

    /// The value as a signed number.
    pub(crate) const fn signed(self, value: u64) -> i64 {
        let unused = 64 - self.bits();
        (value << unused).cast_signed() >> unused
    }
}

/// What an operation gives, and which flags it sets to what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Outcome {
    pub(crate) value: u64,
    /// The values of the flags in `changed`.
    pub(crate) flags: u64,
    pub(crate) changed: u64,
}

impl Outcome {
    /// The flags after it.
    pub(crate) const fn apply(self, rflags: u64) -> u64 {
        rflags & !self.changed | self.flags & self.changed
    }
}

pub(crate) fn add(a: u64, b: u64, carry: bool, width: Width) -> Outcome {
    let value = a.wrapping_add(b).wrapping_add(carry.into()) & width.mask();
    let carries = (a & b) | ((a | b) & !value);
    arithmetic(value, carries, (a ^ value) & (b ^ value), width)
}

pub(crate) fn subtract(a: u64, b: u64, borrow: bool, width: Width) -> Outcome {
    let value = a.wrapping_sub(b).wrapping_sub(borrow.into()) & width.mask();
    let borrows = (!a & b) | ((!a | b) & value);
    arithmetic(value, borrows, (a ^ b) & (a ^ value), width)
}

/// AND, OR, XOR and TEST, of whose result only the flags are left to find. AF is cleared.
pub(crate) fn logic(value: u64, width: Width) -> Outcome {
    Outcome { value, flags: sign_zero_parity(value, width), changed: STATUS }
}

/// INC and DEC leave the carry as it is.
pub(crate) fn keep_carry(outcome: Outcome) -> Outcome {
    Outcome { changed: outcome.changed & !CF, ..outcome }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shift {
    Left,
    Right,
    Arithmetic,
    RotateLeft,
    RotateRight,
}

/// Shifts and rotations by `count` modulo 32, or 64 for quadwords. By 0: nothing changes. AF is cleared by shifts; OF is what it would be for
/// a count of 1; CF of a shift by more than the width is 0, for the arithmetic one the sign.
pub(crate) fn shift(kind: Shift, a: u64, count: u64, width: Width) -> Outcome {
    let bits = width.bits();
    let count = (count & if bits == 64 { 63 } else { 31 } & 63) as u32;
    if count == 0 {
        return Outcome { value: a, flags: 0, changed: 0 };
    }
    let wide = u128::from(a);
    let top = |value: u64| value & width.sign() != 0;
    let (value, carry, overflow) = match kind {
        Shift::Left => {
            let value = width.low(wide << count);
            let carry = (wide << count) >> bits & 1 != 0;
            (value, carry, top(value) != carry)
        }
        Shift::Right => (width.low(wide >> count), (wide << 1 >> count) & 1 != 0, top(a)),
        Shift::Arithmetic => {
            let signed = i128::from(width.signed(a));
            (width.low((signed >> count).cast_unsigned()), ((signed << 1) >> count) & 1 != 0, false)
        }
        Shift::RotateLeft => {
            let value = rotate_left(a, count % bits, width);
            (value, value & 1 != 0, top(value) != (value & 1 != 0))
        }
        Shift::RotateRight => {
            let value = rotate_left(a, (bits - count % bits) % bits, width);
            (value, top(value), top(value) != top(value << 1))
        }
    };
    let flags = bit(carry, CF) | bit(overflow, OF);
    match kind {
        Shift::RotateLeft | Shift::RotateRight => Outcome { value, flags, changed: CF | OF },
        _ => Outcome { value, flags: flags | sign_zero_parity(value, width), changed: STATUS },
    }
}

/// The two halves of a product, low first. CF and OF tell whether the upper half says anything; the other flags stay.
pub(crate) fn multiply(a: u64, b: u64, signed: bool, width: Width) -> (u64, u64, Outcome) {
    let (product, fits) = if signed {
        let product = i128::from(width.signed(a)) * i128::from(width.signed(b));
        let low = width.low(product.cast_unsigned());
        (product.cast_unsigned(), i128::from(width.signed(low)) == product)
    } else {
        let product = u128::from(a) * u128::from(b);
        (product, product <= u128::from(width.mask()))
    };
    let low = width.low(product);
    let high = width.low(product >> width.bits());
    (low, high, Outcome { value: low, flags: bit(!fits, CF | OF), changed: CF | OF })
}

fn rotate_left(a: u64, count: u32, width: Width) -> u64 {
    let twice = u128::from(a) << width.bits() | u128::from(a);
    width.low(twice << count >> width.bits())
}

fn arithmetic(value: u64, carries: u64, overflow: u64, width: Width) -> Outcome {
    let flags = bit(carries & width.sign() != 0, CF)
        | bit(carries & 8 != 0, AF)
        | bit(overflow & width.sign() != 0, OF)
        | sign_zero_parity(value, width);
    Outcome { value, flags, changed: STATUS }
}

fn sign_zero_parity(value: u64, width: Width) -> u64 {
    bit(value & width.sign() != 0, SF) | bit(value == 0, ZF) | bit((value & 0xff).count_ones().is_multiple_of(2), PF)
}

const fn bit(set: bool, flag: u64) -> u64 {
    if set { flag } else { 0 }
}

#[cfg(test)]
mod tests {
    //! The oracle is arithmetic on numbers wide enough to hold every result, and the definitions of the flags on them.

    use proptest::prelude::*;

    use super::*;

    fn widths() -> impl Strategy<Value = Width> {
        prop::sample::select(vec![Width::Byte, Width::Word, Width::Dword, Width::Qword])
    }

    /// Values near what matters, and any.
    fn values() -> impl Strategy<Value = u64> {
        let edges: Vec<u64> = [0, 7, 8, 15, 31, 32, 63].iter().flat_map(|n| [1_u64 << n, (1 << n) - 1, !(1 << n)]).collect();
        prop_oneof![prop::sample::select(edges), any::<u64>()]
    }

    fn common(value: u64, width: Width) -> u64 {
        let negative = i128::from(value) >= 1_i128 << (width.bits() - 1);
        let mut parity = true;
        (0..8).for_each(|n| parity ^= value >> n & 1 == 1);
        bit(negative, SF) | bit(value == 0, ZF) | bit(parity, PF)
    }

    fn number(value: u64, width: Width) -> i128 {
        let value = i128::from(value);
        if value >= 1 << (width.bits() - 1) { value - (1 << width.bits()) } else { value }
    }

    fn wrapped(exact: i128, width: Width) -> u64 {
        u64::try_from(exact.rem_euclid(1 << width.bits())).unwrap()
    }

    fn in_range(exact: i128, width: Width) -> bool {
        (-(1_i128 << (width.bits() - 1))..1 << (width.bits() - 1)).contains(&exact)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4096))]

        #[test]
        fn sums_and_differences(a in values(), b in values(), carry: bool, width in widths()) {
            let (a, b, c) = (a & width.mask(), b & width.mask(), i128::from(carry));
            let unsigned = i128::from(a) + i128::from(b) + c;
            let value = wrapped(unsigned, width);
            let flags = common(value, width)
                | bit(unsigned >= 1 << width.bits(), CF)
                | bit((a & 15) + (b & 15) + u64::from(carry) > 15, AF)
                | bit(!in_range(number(a, width) + number(b, width) + c, width), OF);
            prop_assert_eq!(add(a, b, carry, width), Outcome { value, flags, changed: STATUS });

            let unsigned = i128::from(a) - i128::from(b) - c;
            let value = wrapped(unsigned, width);
            let flags = common(value, width)
                | bit(unsigned < 0, CF)
                | bit((a & 15) < (b & 15) + u64::from(carry), AF)
                | bit(!in_range(number(a, width) - number(b, width) - c, width), OF);
            prop_assert_eq!(subtract(a, b, carry, width), Outcome { value, flags, changed: STATUS });
        }

        #[test]
        fn shifts(a in values(), count in 0..256_u64, width in widths()) {
            let a = a & width.mask();
            let n = u32::try_from(count % if width == Width::Qword { 64 } else { 32 }).unwrap();
            let shifted = |kind| shift(kind, a, count, width);
            if n == 0 {
                for kind in [Shift::Left, Shift::Right, Shift::Arithmetic, Shift::RotateLeft, Shift::RotateRight] {
                    prop_assert_eq!(shifted(kind), Outcome { value: a, flags: 0, changed: 0 });
                }
                return Ok(());
            }
            // one bit at a time
            let top = 1_u64 << (width.bits() - 1);
            let (mut left, mut right, mut signed, mut rol, mut ror) = (a, a, a, a, a);
            let mut carries = [false; 5];
            for _ in 0..n {
                carries = [left & top != 0, right & 1 != 0, signed & 1 != 0, rol & top != 0, ror & 1 != 0];
                left = left << 1 & width.mask();
                right >>= 1;
                signed = signed >> 1 | signed & top;
                rol = (rol << 1 | u64::from(carries[3])) & width.mask();
                ror = ror >> 1 | if carries[4] { top } else { 0 };
            }
            for (kind, value, carry) in [(Shift::Left, left, carries[0]), (Shift::Right, right, carries[1]), (Shift::Arithmetic, signed, carries[2])] {
                let outcome = shifted(kind);
                prop_assert_eq!(outcome.value, value);
                let exact = STATUS & !AF & !if n == 1 { 0 } else { OF };
                let overflow = match kind { Shift::Left => (value ^ a) & top != 0, Shift::Right => a & top != 0, _ => false };
                prop_assert_eq!(outcome.apply(0) & exact, (common(value, width) | bit(carry, CF) | bit(overflow, OF)) & exact, "{:?}", kind);
            }
            for (kind, value, carry) in [(Shift::RotateLeft, rol, carries[3]), (Shift::RotateRight, ror, carries[4])] {
                let outcome = shifted(kind);
                prop_assert_eq!((outcome.value, outcome.changed), (value, CF | OF));
                prop_assert_eq!(outcome.flags & CF != 0, carry);
                if n == 1 {
                    prop_assert_eq!(outcome.flags & OF != 0, (value ^ a) & top != 0, "{:?}", kind);
                }
            }
        }

        #[test]
        fn products(a in values(), b in values(), width in widths()) {
            let (a, b) = (a & width.mask(), b & width.mask());
            let exact = number(a, width) * number(b, width);
            let (low, high, outcome) = multiply(a, b, true, width);
            prop_assert_eq!(u128::from(high) << width.bits() | u128::from(low), (exact.cast_unsigned() << (128 - 2 * width.bits())) >> (128 - 2 * width.bits()));
            prop_assert_eq!(outcome, Outcome { value: low, flags: bit(!in_range(exact, width), CF | OF), changed: CF | OF });
            let exact = u128::from(a) * u128::from(b);
            let (low, high, outcome) = multiply(a, b, false, width);
            prop_assert_eq!(u128::from(high) << width.bits() | u128::from(low), exact);
            prop_assert_eq!(outcome.flags != 0, exact >> width.bits() != 0);
        }
    }

    #[test]
    fn carry_survives_inc() {
        let outcome = keep_carry(add(0xff, 1, false, Width::Byte));
        assert_eq!(outcome.value, 0);
        assert_eq!(outcome.apply(CF), CF | ZF | PF | AF);
        assert_eq!(outcome.apply(0), ZF | PF | AF);
    }
}
