//! Sixteen lanes, whatever the machine has: the small vocabulary in which every kernel is written once.
//!
//! A type that implements [`Simd`] is an instruction set. `generic/` holds the algorithms over `S: Simd`; each
//! instruction set's folder holds the implementation and a table of `#[target_feature]` functions into which the
//! algorithms are inlined. Every operation is defined to the bit, so two instruction sets cannot differ:
//! additions and fused multiply-adds are IEEE, `max`/`min` return the second operand when the operands do not
//! compare, [`Simd::tree`] adds lanes +8, +4, +2, +1.
//!
//! Integer products come in two shapes. *Rows*: 64 weights of one row times 64 activations into partial sums `P`,
//! which `fold4` and `fold16` turn into one i32 per row of sixteen rows. *Lanes*: 4 weights of each of sixteen
//! rows times 4 broadcast activations into sixteen i32. Weights come in the form that `dot` wants: where the
//! machine multiplies unsigned by signed bytes they carry [`Simd::BIAS`], and the caller takes `BIAS` times the
//! activations' sum off again.

/// On the border of a cache line.
#[repr(C, align(64))]
pub(crate) struct Aligned<T>(pub T);

/// An instruction set's sixteen lanes.
///
/// # Safety
/// Implementations compute exactly what the scalar one computes. Callers of any method promise that the machine
/// has the instruction set, that pointers are valid for the stated number of elements, and that the call is
/// inlined into a function with the features enabled (or else it is only slow).
#[allow(clippy::missing_safety_doc)] // said once, above
pub unsafe trait Simd: Copy + 'static {
    /// 16 f32.
    type F: Copy;
    /// 16 i32.
    type I: Copy;
    /// 64 bytes.
    type B: Copy;
    /// Partial sums of one row's integer product.
    type P: Copy;
    /// A 4-bit code table ready to be scaled.
    type T: Copy;
    /// What is added to weights in the form `dot` and `dot_lanes` take.
    const BIAS: i32;
    /// Whether products of several vectors broadcast weights against packs of activations (`generic/panel.rs`), or
    /// turn weights (`generic/turned.rs`).
    const PACKS: bool = false;
    /// Accumulators of sixteen lanes that fit the registers beside their operands: 16, 4 or 1.
    const ACCUMULATORS: usize = 4;

    unsafe fn splat(x: f32) -> Self::F;
    unsafe fn load(p: *const f32) -> Self::F;
    unsafe fn store(p: *mut f32, x: Self::F);
    unsafe fn add(a: Self::F, b: Self::F) -> Self::F;
    unsafe fn sub(a: Self::F, b: Self::F) -> Self::F;
    unsafe fn mul(a: Self::F, b: Self::F) -> Self::F;
    unsafe fn div(a: Self::F, b: Self::F) -> Self::F;
    /// a · b + c, rounded once.
    unsafe fn fma(a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// a > b ? a : b
    unsafe fn max(a: Self::F, b: Self::F) -> Self::F;
    /// a < b ? a : b
    unsafe fn min(a: Self::F, b: Self::F) -> Self::F;
    unsafe fn abs(a: Self::F) -> Self::F;
    /// |magnitude| with the sign of `sign`.
    unsafe fn copysign(magnitude: Self::F, sign: Self::F) -> Self::F;
    /// To the nearest integer, ties to even.
    unsafe fn round(a: Self::F) -> Self::F;
    /// a < b ? x : y
    unsafe fn if_less(a: Self::F, b: Self::F, x: Self::F, y: Self::F) -> Self::F;
    /// Integer-valued lanes in i32's range; anything else gives some value.
    unsafe fn to_int(a: Self::F) -> Self::I;
    unsafe fn from_int(a: Self::I) -> Self::F;
    /// 2^a for a in −126..=127.
    unsafe fn pow2(a: Self::I) -> Self::F;
    /// x · 2^n for integer-valued n in −160..=160, rounded once where x is in ½..2.
    #[inline(always)]
    unsafe fn scale2(x: Self::F, n: Self::F) -> Self::F {
        // SAFETY: the trait's promises
        unsafe {
            let n = Self::to_int(n);
            let half = Self::i_half(n);
            Self::mul(Self::mul(x, Self::pow2(half)), Self::pow2(Self::i_sub(n, half)))
        }
    }
    /// [`crate::math::exp`] of several registers of which no lane is above [`crate::math::EXP_HIGH`].
    #[inline(always)]
    unsafe fn exps_down<const N: usize>(x: [Self::F; N]) -> [Self::F; N] {
        // SAFETY: passed on
        unsafe { crate::generic::math::exps_down::<Self, N>(x) }
    }
    /// [`crate::math::tanh`] of several registers.
    #[inline(always)]
    unsafe fn tanhs<const N: usize>(x: [Self::F; N]) -> [Self::F; N] {
        // SAFETY: passed on
        unsafe { crate::generic::math::tanhs::<Self, N>(x) }
    }
    /// [`crate::math::erf`].
    #[inline(always)]
    unsafe fn erf(x: Self::F) -> Self::F {
        // SAFETY: passed on
        unsafe { crate::generic::math::erf::<Self>(x) }
    }
    unsafe fn i_splat(x: i32) -> Self::I;
    unsafe fn i_add(a: Self::I, b: Self::I) -> Self::I;
    unsafe fn i_sub(a: Self::I, b: Self::I) -> Self::I;
    /// Arithmetic shift right by one.
    unsafe fn i_half(a: Self::I) -> Self::I;
    unsafe fn i_store(p: *mut i32, x: Self::I);
    unsafe fn load_f16(p: *const u16) -> Self::F;
    unsafe fn load_bf16(p: *const u16) -> Self::F;
    unsafe fn load_i8(p: *const i8) -> Self::F;
    /// Sixteen halves, rounded to nearest even.
    unsafe fn store_f16(p: *mut u16, x: Self::F);
    /// Sixteen bytes from integer-valued lanes in −127..=127.
    unsafe fn store_i8(p: *mut i8, x: Self::F);
    /// Sum of the lanes: +8, +4, +2, +1.
    unsafe fn tree(a: Self::F) -> f32;
    /// The greatest lane; any value where one is NaN.
    #[inline(always)]
    unsafe fn top(a: Self::F) -> f32 {
        let mut lanes = [0f32; 16];
        // SAFETY: the trait's promises; the array holds 16 values
        unsafe { Self::store(lanes.as_mut_ptr(), a) };
        let mut half = 8;
        while half > 0 {
            for i in 0..half {
                lanes[i] = if lanes[i] > lanes[i + half] { lanes[i] } else { lanes[i + half] };
            }
            half /= 2;
        }
        lanes[0]
    }
    /// Lane i of the result is `tree(rows[i])`.
    #[inline(always)]
    unsafe fn tree16(rows: &[Self::F; 16]) -> Self::F {
        let mut out = [0f32; 16];
        // SAFETY: the trait's promises; the array holds 16 values
        unsafe {
            for (o, r) in out.iter_mut().zip(rows) {
                *o = Self::tree(*r);
            }
            Self::load(out.as_ptr())
        }
    }
    /// Lane i of the result, and every fourth after it, is `tree(rows[i])`.
    #[inline(always)]
    unsafe fn tree4(rows: [Self::F; 4]) -> Self::F {
        let [a, b, c, d] = rows;
        // SAFETY: the trait's promises; the array holds 4 values
        unsafe { Self::repeat4([Self::tree(a), Self::tree(b), Self::tree(c), Self::tree(d)].as_ptr()) }
    }
    /// Lane i of the result, and every fourth after it, is `top(rows[i])`.
    #[inline(always)]
    unsafe fn top4(rows: [Self::F; 4]) -> Self::F {
        let [a, b, c, d] = rows;
        // SAFETY: the trait's promises; the array holds 4 values
        unsafe { Self::repeat4([Self::top(a), Self::top(b), Self::top(c), Self::top(d)].as_ptr()) }
    }

    unsafe fn b_load(p: *const u8) -> Self::B;
    unsafe fn b_store(p: *mut u8, x: Self::B);
    /// Signed bytes into the form that `dot` takes.
    unsafe fn biased(w: Self::B) -> Self::B;
    /// Reads the 16 signed bytes of a tensor's table.
    unsafe fn table(p: *const i8) -> Self::T;
    /// Four tables, one per 16-byte lane: (t · m + 64) >> 7 with the four multipliers at `m`.
    unsafe fn scaled(table: Self::T, m: *const i8) -> Self::B;
    /// Lane j has the table's first eight entries twice, scaled as above with multipliers 2j and 2j + 1 of eight.
    #[inline(always)]
    unsafe fn scaled8(table: Self::T, m: *const i8) -> Self::B {
        // SAFETY: the trait's promises; eight multipliers lie at `m`
        unsafe { two_tables::<Self>(table, m, 8) }
    }
    /// Lane j has the table's first four entries scaled with multiplier 2j, then its next four with 2j + 1; the
    /// other eight places hold anything.
    #[inline(always)]
    unsafe fn scaled4(table: Self::T, m: *const i8) -> Self::B {
        // SAFETY: the trait's promises; eight multipliers lie at `m`
        unsafe { two_tables::<Self>(table, m, 4) }
    }
    /// Looks up the low and the high nibbles of 64 bytes, each in its 16-byte lane's table.
    unsafe fn lookup(line: Self::B, tables: Self::B) -> (Self::B, Self::B);
    /// Looks up 64 bytes below 16, each in its 16-byte lane's table.
    #[inline(always)]
    unsafe fn pick(tables: Self::B, codes: Self::B) -> Self::B {
        // SAFETY: the trait's promises
        unsafe { of_bytes::<Self>(plain::pick(bytes::<Self>(tables), bytes::<Self>(codes))) }
    }
    #[inline(always)]
    unsafe fn b_splat(x: i8) -> Self::B {
        // SAFETY: the trait's promises
        unsafe { of_bytes::<Self>([x as u8; 64]) }
    }
    #[inline(always)]
    unsafe fn b_or(a: Self::B, b: Self::B) -> Self::B {
        // SAFETY: the trait's promises
        unsafe {
            let (a, b) = (bytes::<Self>(a), bytes::<Self>(b));
            of_bytes::<Self>(core::array::from_fn(|i| a[i] | b[i]))
        }
    }
    /// Adds `x` to every byte, modulo 256.
    #[inline(always)]
    unsafe fn b_add(a: Self::B, x: i8) -> Self::B {
        // SAFETY: the trait's promises
        unsafe { of_bytes::<Self>(bytes::<Self>(a).map(|a| a.wrapping_add(x as u8))) }
    }
    /// Every byte shifted right (left where `shift` is negative), and what `mask` leaves of it.
    #[inline(always)]
    unsafe fn b_field(a: Self::B, shift: i32, mask: u8) -> Self::B {
        // SAFETY: the trait's promises
        unsafe { of_bytes::<Self>(plain::field(bytes::<Self>(a), shift, mask)) }
    }
    /// 32 bytes, then the same shifted right by four; bits 4 to 7 of those may be anything.
    #[inline(always)]
    unsafe fn b_ones(p: *const u8) -> Self::B {
        // SAFETY: the trait's promises; 32 bytes lie at `p`
        unsafe {
            let ones = p.cast::<[u8; 32]>().read_unaligned();
            of_bytes::<Self>(core::array::from_fn(|i| ones[i % 32] >> (i / 32 * 4)))
        }
    }
    /// (w · m + half) >> shift, rounded so, with the multiplier `2j + odd` of eight for 16-byte lane j. Results fit int8.
    #[inline(always)]
    unsafe fn times(w: Self::B, m: *const i8, odd: usize, shift: u32) -> Self::B {
        // SAFETY: the trait's promises; eight multipliers lie at `m`
        unsafe {
            let m = m.cast::<[i8; 8]>().read_unaligned();
            of_bytes::<Self>(plain::times(bytes::<Self>(w), m, odd, shift))
        }
    }
    unsafe fn p_zero() -> Self::P;
    unsafe fn dot(acc: Self::P, w: Self::B, x: Self::B) -> Self::P;
    /// First step of the transposing sum over sixteen rows.
    unsafe fn fold4(p: &[Self::P; 4]) -> Self::P;
    /// Second step: lane 4q + l is the sum of row l of quad q.
    unsafe fn fold16(p: &[Self::P; 4]) -> Self::I;
    /// Lane r += Σ_c w[4r + c] · x[c] over the four signed bytes of `x`.
    unsafe fn dot4(acc: Self::I, w: Self::B, x: i32) -> Self::I;
    /// Lane i += Σ_c w[(4i + c) mod W] · x[4i + c], c = 0..4, with `W` = 4, 8 or 16 weights at `w` in `dot`'s form.
    #[inline(always)]
    unsafe fn dot_lanes<const W: usize>(acc: Self::I, w: *const u8, x: Self::B) -> Self::I {
        // SAFETY: the trait's promises; `W` bytes lie at `w`
        unsafe {
            let (x, mut sums) = (bytes::<Self>(x), [0i32; 16]);
            Self::i_store(sums.as_mut_ptr(), acc);
            for i in 0..64 {
                let w = *w.add(i % W);
                let w = if Self::BIAS == 0 { i32::from(w as i8) } else { i32::from(w) };
                sums[i / 4] += w * i32::from(x[i] as i8);
            }
            Self::i_load(sums.as_ptr())
        }
    }
    /// In every quad of lanes: a0 + a1, a2 + a3, b0 + b1, b2 + b3.
    #[inline(always)]
    unsafe fn fold_pairs(a: Self::I, b: Self::I) -> Self::I {
        let (mut x, mut y) = ([0i32; 16], [0i32; 16]);
        // SAFETY: the trait's promises; the arrays hold 16 values
        unsafe {
            Self::i_store(x.as_mut_ptr(), a);
            Self::i_store(y.as_mut_ptr(), b);
            let sums: [i32; 16] = core::array::from_fn(|i| {
                let (v, at) = (if i % 4 < 2 { &x } else { &y }, i / 4 * 4 + i % 2 * 2);
                v[at] + v[at + 1]
            });
            Self::i_load(sums.as_ptr())
        }
    }
    /// In every quad of lanes: the sums of that quad of `p[0]`, of `p[1]`, of `p[2]`, of `p[3]`.
    #[inline(always)]
    unsafe fn fold_quads(p: [Self::I; 4]) -> Self::I {
        let mut x = [[0i32; 16]; 4];
        // SAFETY: the trait's promises; the arrays hold 16 values
        unsafe {
            for i in 0..4 {
                Self::i_store(x[i].as_mut_ptr(), p[i]);
            }
            let sums: [i32; 16] = core::array::from_fn(|i| x[i % 4][i / 4 * 4..][..4].iter().sum());
            Self::i_load(sums.as_ptr())
        }
    }
    /// 16 i32 of magnitudes below 2²⁴.
    #[inline(always)]
    unsafe fn i_load(p: *const i32) -> Self::I {
        // SAFETY: the trait's promises; floats hold such integers exactly
        unsafe {
            let floats = p.cast::<[i32; 16]>().read_unaligned().map(|i| i as f32);
            Self::to_int(Self::load(floats.as_ptr()))
        }
    }
    /// Four values, four times.
    #[inline(always)]
    unsafe fn repeat4(p: *const f32) -> Self::F {
        // SAFETY: the trait's promises; four values lie at `p`
        unsafe {
            let four = p.cast::<[f32; 4]>().read_unaligned();
            let lanes: [f32; 16] = core::array::from_fn(|i| four[i % 4]);
            Self::load(lanes.as_ptr())
        }
    }
    /// 16 rows of 64 bytes (consecutive) to 16 groups of [16 rows][4 bytes].
    #[inline(always)]
    unsafe fn transpose(from: *const u8, to: *mut u8) {
        for row in 0..16 {
            for group in 0..16 {
                // SAFETY: both hold 1024 bytes
                unsafe {
                    let v = from.add(row * 64 + group * 4).cast::<u32>().read_unaligned();
                    to.add(group * 64 + row * 4).cast::<u32>().write_unaligned(v);
                }
            }
        }
    }
    /// 4 groups of [16 rows][4 bytes] (consecutive) to 16 rows of 16 bytes.
    #[inline(always)]
    unsafe fn gather4(from: *const u8, to: *mut u8) {
        for row in 0..16 {
            for group in 0..4 {
                // SAFETY: both hold 256 bytes
                unsafe {
                    let v = from.add(group * 64 + row * 4).cast::<u32>().read_unaligned();
                    to.add(row * 16 + group * 4).cast::<u32>().write_unaligned(v);
                }
            }
        }
    }
    /// 16 rows of 64 bytes into a part of a panel, in the order that [`Simd::turned_tiles`] reads.
    #[inline(always)]
    unsafe fn panel_part(from: *const u8, to: *mut u8) {
        // SAFETY: passed on
        unsafe { Self::transpose(from, to) }
    }
    /// Into the nearest cache.
    unsafe fn prefetch(p: *const u8);
    /// Into the second one.
    unsafe fn prefetch_far(p: *const u8);

    /// [`crate::generic::panel::portions`] of the tile sizes below.
    #[inline(always)]
    unsafe fn portions(vectors: usize, alone: bool) -> usize {
        crate::generic::panel::portions::<1, 4, 4>(vectors, alone)
    }
    /// Runs [`crate::generic::panel::tiles`] with this machine's tile sizes.
    #[inline(always)]
    unsafe fn tiles(a: &crate::generic::panel::Tiles) {
        // SAFETY: passed on
        unsafe { crate::generic::panel::tiles::<Self, 1, 4, 4>(a) }
    }
    /// Runs [`crate::generic::turned::tiles`] with this machine's tile sizes.
    #[inline(always)]
    unsafe fn turned_tiles(a: &crate::generic::turned::Tiles) {
        // SAFETY: passed on
        unsafe { crate::generic::turned::tiles::<Self, 1, 4>(a) }
    }
    /// Tokens from which on a block of 16-bit values is made f32 before it is multiplied.
    const WIDEN: usize = 4;
    /// [`crate::generic::float`] with this machine's tile sizes; 16-bit values only with fewer than
    /// [`Simd::WIDEN`] tokens.
    unsafe fn float_tiles(a: &crate::generic::float::FloatBlock);
}

/// What several of [`Simd`]'s own bodies do with bytes. Functions, not inlined: only plain Rust uses those, many times.
mod plain {
    #[inline(never)]
    pub fn times(w: [u8; 64], m: [i8; 8], odd: usize, shift: u32) -> [u8; 64] {
        core::array::from_fn(|i| {
            let product = i32::from(w[i] as i8) * i32::from(m[i / 16 * 2 + odd]);
            ((product + (1 << (shift - 1))) >> shift) as u8
        })
    }

    #[inline(never)]
    pub fn pick(tables: [u8; 64], codes: [u8; 64]) -> [u8; 64] {
        core::array::from_fn(|i| tables[i / 16 * 16 + usize::from(codes[i] & 15)])
    }

    #[inline(never)]
    pub fn field(a: [u8; 64], shift: i32, mask: u8) -> [u8; 64] {
        a.map(|a| (if shift < 0 { a << -shift } else { a >> shift }) & mask)
    }
}

/// The bytes of a vector.
#[inline(always)]
unsafe fn bytes<S: Simd>(x: S::B) -> [u8; 64] {
    let mut to = [0; 64];
    // SAFETY: the array holds 64 bytes
    unsafe { S::b_store(to.as_mut_ptr(), x) };
    to
}

/// A vector of bytes.
#[inline(always)]
unsafe fn of_bytes<S: Simd>(x: [u8; 64]) -> S::B {
    // SAFETY: the array holds 64 bytes
    unsafe { S::b_load(x.as_ptr()) }
}

/// In every 16-byte lane, `n` entries of the lane's table scaled with the even multipliers, then the first `n` (or,
/// where the table holds them twice, the next) with the odd ones.
#[inline(always)]
unsafe fn two_tables<S: Simd>(table: S::T, m: *const i8, n: usize) -> S::B {
    // SAFETY: eight multipliers lie at `m`
    unsafe {
        let m = m.cast::<[i8; 8]>().read_unaligned();
        let (even, odd) = ([m[0], m[2], m[4], m[6]], [m[1], m[3], m[5], m[7]]);
        let (a, b) =
            (bytes::<S>(S::scaled(table, even.as_ptr())), bytes::<S>(S::scaled(table, odd.as_ptr())));
        of_bytes::<S>(core::array::from_fn(|i| if i % 16 < n { a[i] } else { b[i / 16 * 16 + i % n] }))
    }
}

/// Loads `n` ≤ 16 values, the other lanes `fill`.
#[inline(always)]
pub unsafe fn part<S: Simd>(p: *const f32, n: usize, fill: f32) -> S::F {
    let mut buffer = [fill; 16];
    // SAFETY: the caller vouches for n readable values, n ≤ 16
    unsafe {
        core::ptr::copy_nonoverlapping(p, buffer.as_mut_ptr(), n);
        S::load(buffer.as_ptr())
    }
}

/// Stores the first `n` ≤ 16 lanes.
#[inline(always)]
pub unsafe fn store_part<S: Simd>(p: *mut f32, n: usize, x: S::F) {
    let mut buffer = [0f32; 16];
    // SAFETY: the caller vouches for n writable values, n ≤ 16
    unsafe {
        S::store(buffer.as_mut_ptr(), x);
        core::ptr::copy_nonoverlapping(buffer.as_ptr(), p, n);
    }
}

/// A loop over runs of 16 values of `$len`: `$i` is the first index, `$n` how many (16, or fewer in the last).
///
/// A macro and not a function with a closure: a closure does not inherit its kernel's target features, and one that
/// the compiler chooses not to inline would call every vector instruction as a function.
macro_rules! runs {
    ($len:expr, |$i:ident, $n:ident| $body:expr) => {{
        let len: usize = $len;
        let mut $i = 0;
        while $i < len {
            let $n = if len - $i < 16 { len - $i } else { 16 };
            $body;
            $i += 16;
        }
    }};
}
pub(crate) use runs;
