//! With AVX2 and FMA: four limbs of 51 bits to a vector, multiplied by the floating-point unit (Emmart, Zheng and Weems, "Faster modular
//! exponentiation using double precision floating point arithmetic on the GPU", 2018, here with the rounding that is always set: to the
//! nearest).
//!
//! A product p of two limbs is below 2¹⁰². `h = p + 1.25·2¹⁰³`, rounded, has p/2⁵¹ in its lowest bits, rounded to a whole number; `p −
//! (h − 1.25·2¹⁰³) + 1.5·2⁵²` is exact and has what is left, between −2⁵⁰ and 2⁵⁰, in its lowest bits. Both are added up as the integers that
//! their bits are; the constants' bits are taken off again. Limbs are signed: a carry may be left in them, of nine
//! bits at most.
//!
//! Four digits of one factor are taken at a time, and four columns of the product: high halves apart from low ones, so that no vector is ever
//! shifted. Only what the multiples of n depend on is calculated with integers.

// UNSAFETY: vector loads and stores through pointers, and calls of functions that need the processor to have the instructions.
#![expect(unsafe_code, reason = "vector instructions")]

use core::{arch::x86_64::*, ops::Range};

use super::{from_limbs, negative_inverse, r_squared, reduce, to_limbs};

const LIMB: usize = 51;
const SHIFT: i32 = 51;
const MASK: i64 = (1 << LIMB) - 1;

/// 1.25 · 2¹⁰³: the last bit of its mantissa is 2⁵¹.
const HIGH: f64 = f64::from_bits((1023 + 103) << 52 | 1 << 50);
/// Added to what is left of a product: 1.5 · 2⁵², and above it what takes [`HIGH`] away again.
const HIGH_AND_LOW: f64 = HIGH + LOW;
const LOW: f64 = f64::from_bits((1023 + 52) << 52 | 1 << 51);
/// 1.25 · 2⁵²: added to a limb's bits, they are the limb and this as a number.
const LIMB_TO_NUMBER: f64 = f64::from_bits((1023 + 52) << 52 | 1 << 50);

/// A number in `4 * V` limbs, least significant first, both ways. The three highest limbs are nought.
#[derive(Debug)]
#[repr(C, align(64))]
struct Number<const V: usize> {
    /// A vector of noughts, the limbs, and noughts: what is below a number's lowest limb may be loaded too.
    doubles: [[f64; 4]; VECTORS],
    integers: [[i64; 4]; V],
}

/// A number of 4,096 bits and the vector below it.
const VECTORS: usize = 22;

/// A product before it is reduced: four columns to a vector. What is high stands one column further up than where it is kept.
#[repr(C, align(64))]
struct Columns<const V: usize> {
    low: [[[i64; 4]; V]; 2],
    high: [[[i64; 4]; V]; 2],
}

/// Room for the modulus and at least two bits more in all limbs but three: R = 2^(204·V) is above 4n, so products of numbers below 2n are
/// below 2n, and what reaches the highest limb that is not nought is never negative.
#[derive(Debug)]
pub(in crate::crypto) struct Modulus<const V: usize> {
    n: Number<V>,
    /// −n⁻¹ mod 2⁵¹.
    negative_inverse: i64,
    /// R² mod n.
    r_squared: Number<V>,
}

impl<const V: usize> Modulus<V> {
    /// From an odd modulus that there is room for. `None` if the processor does not have the instructions: that a value exists proves them.
    pub(super) fn new(modulus: &[u8]) -> Option<Self> {
        if !(is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma")) {
            return None;
        }
        let n = Number::from_bytes(modulus);
        let negative_inverse = negative_inverse(n.integers[0][0].cast_unsigned()).cast_signed() & MASK;
        Some(Self { n, negative_inverse, r_squared: Number::from_bytes(&r_squared(modulus, 4 * V * LIMB)) })
    }

    pub(super) fn power_65537(&self, base: &[u8]) -> Vec<u8> {
        // SAFETY: `self` is made only by `new`, so the processor has `avx2` and `fma`.
        unsafe { self.power(base) }
    }

    #[target_feature(enable = "avx2,fma")]
    fn power(&self, base: &[u8]) -> Vec<u8> {
        let base_number = Number::from_bytes(base);
        let mut power = self.reduced(product(&base_number, &self.r_squared));
        for _ in 0..16 {
            power = self.reduced(square(&power));
        }
        power = self.reduced(product(&power, &base_number));
        power.to_bytes_below(&self.n, base.len())
    }

    /// The number in `columns` divided by R modulo n: below 2n if it is a product of numbers that are.
    #[target_feature(enable = "avx2,fma")]
    fn reduced(&self, mut columns: Columns<V>) -> Number<V> {
        let (low, high) = (columns.low.as_flattened_mut(), columns.high.as_flattened_mut());
        let mut lowest = Lowest::new(low[0], high[0], 0);
        lowest.take::<0, V>(self);
        lowest.take::<1, V>(self);
        lowest.take::<2, V>(self);
        lowest.take::<3, V>(self);
        let mut carry = 0;
        for block in 0..V {
            carry = lowest.carry;
            let digits = broadcast_each(to_doubles(lowest.multiples));
            let (low, high) = (&mut low[block..], &mut high[block..]);
            self.multiply(1..2, digits, low, high);
            // the next multiples depend on one another: the processor has other vectors to add while it waits for each
            let part = |k| 2 + (V - 2) * k / 4..2 + (V - 2) * (k + 1) / 4;
            lowest = Lowest::new(low[1], high[1], high[0][3] + carry);
            lowest.take::<0, V>(self);
            self.multiply(part(0), digits, low, high);
            lowest.take::<1, V>(self);
            self.multiply(part(1), digits, low, high);
            lowest.take::<2, V>(self);
            self.multiply(part(2), digits, low, high);
            lowest.take::<3, V>(self);
            self.multiply(part(3), digits, low, high);
        }
        normalise(&low[V..], &high[V - 1..], carry)
    }

    /// Adds n times four digits to some columns, counted from the lowest of the digits.
    #[inline]
    #[target_feature(enable = "avx2,fma")]
    fn multiply(&self, columns: Range<usize>, digits: [__m256d; 4], low: &mut [[i64; 4]], high: &mut [[i64; 4]]) {
        for v in columns {
            accumulate(&self.n, v, digits, None, &mut low[v], &mut high[v]);
        }
    }
}

/// Four columns, the multiples of n that make them nought, a digit for each, and what they carry to the column above.
struct Lowest {
    columns: [i64; 4],
    multiples: [i64; 4],
    carry: i64,
}

impl Lowest {
    /// `below` is what is high in the column below, and what that carries.
    fn new(low: [i64; 4], high: [i64; 4], below: i64) -> Self {
        Self { columns: [low[0], low[1] + high[0], low[2] + high[1], low[3] + high[2]], multiples: [0; 4], carry: below }
    }

    /// Makes column `K` nought, after those below it.
    #[inline]
    fn take<const K: usize, const V: usize>(&mut self, modulus: &Modulus<V>) {
        let n = &modulus.n.integers[0];
        let wide = |a: i64, b: i64| i128::from(a) * i128::from(b);
        let mut column = i128::from(self.columns[K] + self.carry);
        for i in 0..K {
            column += wide(n[K - i], self.multiples[i]);
        }
        self.multiples[K] = lower(column).wrapping_mul(modulus.negative_inverse) & MASK;
        self.carry = lower((column + wide(n[0], self.multiples[K])) >> LIMB);
    }
}

#[target_feature(enable = "avx2,fma")]
fn product<const V: usize>(a: &Number<V>, b: &Number<V>) -> Columns<V> {
    let mut columns = Columns { low: [[[0; 4]; V]; 2], high: [[[0; 4]; V]; 2] };
    let (low, high) = (columns.low.as_flattened_mut(), columns.high.as_flattened_mut());
    for block in 0..V {
        let digits = broadcast_each(b.doubles[block + 1]);
        for v in 0..V {
            accumulate(a, v, digits, None, &mut low[block + v], &mut high[block + v]);
        }
    }
    columns
}

/// Each four digits by the limbs above them, twice, and by themselves.
#[target_feature(enable = "avx2,fma")]
fn square<const V: usize>(a: &Number<V>) -> Columns<V> {
    let mut columns = Columns { low: [[[0; 4]; V]; 2], high: [[[0; 4]; V]; 2] };
    let (low, high) = (columns.low.as_flattened_mut(), columns.high.as_flattened_mut());
    for block in 0..V - 1 {
        let digits = broadcast_each(a.doubles[block + 1]);
        accumulate(a, block + 1, digits, Some(&UPPER), &mut low[2 * block + 1], &mut high[2 * block + 1]);
        for v in block + 2..V {
            accumulate(a, v, digits, None, &mut low[block + v], &mut high[block + v]);
        }
    }
    for columns in low.iter_mut().chain(high.iter_mut()) {
        let once = load(columns);
        store(_mm256_add_epi64(once, once), columns);
    }
    for block in 0..V {
        let digits = broadcast_each(a.doubles[block + 1]);
        accumulate(a, block, digits, Some(&UPPER), &mut low[2 * block], &mut high[2 * block]);
        if block + 1 < V {
            accumulate(a, block + 1, digits, Some(&LOWER), &mut low[2 * block + 1], &mut high[2 * block + 1]);
        }
    }
    columns
}

/// For each of four digits, the lanes that begin a vector of limbs anew, and those that still belong to the one below.
type Lanes = [[u64; 4]; 4];
const ALL: u64 = u64::MAX;
const UPPER: Lanes = [[ALL; 4], [0, ALL, ALL, ALL], [0, 0, ALL, ALL], [0, 0, 0, ALL]];
const LOWER: Lanes = [[0; 4], [ALL, 0, 0, 0], [ALL, ALL, 0, 0], [ALL, ALL, ALL, 0]];

/// Adds what a number, or only its limbs in some lanes, times four digits is in the four columns that are `4 * v` above the lowest of them.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn accumulate<const V: usize>(
    number: &Number<V>,
    v: usize,
    digits: [__m256d; 4],
    lanes: Option<&Lanes>,
    low: &mut [i64; 4],
    high: &mut [i64; 4],
) {
    let constant = |number: f64| _mm256_set1_epi64x(number.to_bits().wrapping_mul(4).wrapping_neg().cast_signed());
    let (mut l, mut h) = (load(low), load(high));
    for (k, digit) in digits.iter().enumerate() {
        let mut limbs = number.limbs(4 * v + 4 - k);
        if let Some(lanes) = lanes {
            limbs = _mm256_and_pd(limbs, _mm256_castsi256_pd(load(&lanes[k].map(u64::cast_signed))));
        }
        let above = _mm256_fmadd_pd(limbs, *digit, _mm256_set1_pd(HIGH));
        let below = _mm256_fmadd_pd(limbs, *digit, _mm256_sub_pd(_mm256_set1_pd(HIGH_AND_LOW), above));
        h = _mm256_add_epi64(h, _mm256_castpd_si256(above));
        l = _mm256_add_epi64(l, _mm256_castpd_si256(below));
    }
    store(_mm256_add_epi64(l, constant(LOW)), low);
    store(_mm256_add_epi64(h, constant(HIGH)), high);
}

/// The number that columns are: `high` from one vector further down than `low`, and what the columns below carry. Carries go one limb far.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn normalise<const V: usize>(low: &[[i64; 4]], high: &[[i64; 4]], carry: i64) -> Number<V> {
    // sums may be negative: a multiple of 2⁵¹ that makes them positive, and what it adds to the carry
    let (bias, bias_carried) = (_mm256_set1_epi64x(1 << 62), _mm256_set1_epi64x(1 << (62 - LIMB)));
    let mut number = Number { doubles: [[0.0; 4]; VECTORS], integers: [[0; 4]; V] };
    let mut high_below = one_up(load(&high[0]));
    let mut carry_below = _mm256_setzero_si256();
    let mut carry = _mm256_set_epi64x(0, 0, 0, carry);
    for v in 0..V {
        let high = one_up(load(&high[v + 1]));
        let sum = _mm256_add_epi64(load(&low[v]), _mm256_blend_epi32::<0b11>(high, high_below));
        let sum = _mm256_add_epi64(_mm256_add_epi64(sum, carry), bias);
        let carried = one_up(_mm256_sub_epi64(_mm256_srli_epi64::<SHIFT>(sum), bias_carried));
        let limbs = _mm256_and_si256(sum, _mm256_set1_epi64x(MASK));
        let limbs = _mm256_add_epi64(limbs, _mm256_blend_epi32::<0b11>(carried, carry_below));
        store(limbs, &mut number.integers[v]);
        store_double(to_double(limbs), &mut number.doubles[v + 1]);
        (high_below, carry_below, carry) = (high, carried, _mm256_setzero_si256());
    }
    number
}

/// Each lane in the next, the highest in the lowest.
#[inline]
#[target_feature(enable = "avx2")]
fn one_up(vector: __m256i) -> __m256i {
    _mm256_permute4x64_epi64::<0b10_01_00_11>(vector)
}

#[expect(clippy::cast_precision_loss, reason = "limbs are below 2⁵³")]
fn to_doubles(limbs: [i64; 4]) -> [f64; 4] {
    limbs.map(|limb| limb as f64)
}

/// Of limbs between −2⁵⁰ and 1.5·2⁵¹.
#[inline]
#[target_feature(enable = "avx2")]
fn to_double(limbs: __m256i) -> __m256d {
    let offset = _mm256_set1_pd(LIMB_TO_NUMBER);
    _mm256_sub_pd(_mm256_castsi256_pd(_mm256_add_epi64(limbs, _mm256_castpd_si256(offset))), offset)
}

impl<const V: usize> Number<V> {
    fn from_bytes(big_endian: &[u8]) -> Self {
        let mut limbs = [[0; 4]; V];
        to_limbs::<LIMB>(big_endian, limbs.as_flattened_mut());
        let integers = limbs.map(|limbs| limbs.map(u64::cast_signed));
        let mut doubles = [[0.0; 4]; VECTORS];
        for (doubles, integers) in doubles[1..].iter_mut().zip(integers) {
            *doubles = to_doubles(integers);
        }
        Self { doubles, integers }
    }

    /// The lowest `len` bytes, big endian, of this number, or of it less `n` if it is not below that.
    fn to_bytes_below(&self, n: &Self, len: usize) -> Vec<u8> {
        let mut limbs = [[0; 4]; V];
        let mut carry = 0;
        for (limb, signed) in limbs.as_flattened_mut().iter_mut().zip(self.integers.as_flattened()) {
            carry += signed;
            *limb = (carry & MASK).cast_unsigned();
            carry >>= LIMB;
        }
        let n = n.integers.map(|limbs| limbs.map(i64::cast_unsigned));
        reduce::<LIMB>(limbs.as_flattened_mut(), n.as_flattened());
        from_limbs::<LIMB>(limbs.as_flattened(), len)
    }

    /// Four limbs, from the one that is `index` above the fourth nought below the lowest.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn limbs(&self, index: usize) -> __m256d {
        let limbs = &self.doubles.as_flattened()[index..index + 4];
        // SAFETY: reads the 32 bytes that `limbs` borrows; this load needs no alignment.
        unsafe { _mm256_loadu_pd(limbs.as_ptr()) }
    }
}

#[inline]
#[target_feature(enable = "avx2")]
fn broadcast_each([a, b, c, d]: [f64; 4]) -> [__m256d; 4] {
    [_mm256_set1_pd(a), _mm256_set1_pd(b), _mm256_set1_pd(c), _mm256_set1_pd(d)]
}

#[inline]
#[target_feature(enable = "avx2")]
fn load(limbs: &[i64; 4]) -> __m256i {
    // SAFETY: reads the 32 bytes that `limbs` borrows; this load needs no alignment.
    unsafe { _mm256_loadu_si256(limbs.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx2")]
fn store(vector: __m256i, limbs: &mut [i64; 4]) {
    // SAFETY: writes the 32 bytes that `limbs` borrows; this store needs no alignment.
    unsafe { _mm256_storeu_si256(limbs.as_mut_ptr().cast(), vector) }
}

#[inline]
#[target_feature(enable = "avx2")]
fn store_double(vector: __m256d, limbs: &mut [f64; 4]) {
    // SAFETY: writes the 32 bytes that `limbs` borrows; this store needs no alignment.
    unsafe { _mm256_storeu_pd(limbs.as_mut_ptr(), vector) }
}

#[expect(clippy::cast_possible_truncation, reason = "the lower half is meant")]
fn lower(number: i128) -> i64 {
    number as i64
}
