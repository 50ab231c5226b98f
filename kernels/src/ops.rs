//! The table of kernels of an instruction set: what `cpu/` calls.
//!
//! [`table!`] fills one by inlining the algorithms of `generic/` into functions with the instruction set's features;
//! one that differs from a lower one only in how it multiplies bytes takes the rest from there ([`products!`]).
//! An entry that an instruction set wants to do its own way is written after it (`Ops { q4: .., ..TABLE }`).

use crate::cpu::{Activation, Map, Pairs};
use crate::generic::attention::{Join, Keys, Tile};
use crate::generic::float::{FloatBlock, Widen};
use crate::generic::norm::Norm;
use crate::generic::panel::Packing;
use crate::generic::rows::IntBlock;
use crate::kv::KeyType;

/// Function pointers; all of them need the instruction set and arguments proved by `cpu/`.
#[derive(Clone, Copy)]
pub struct Ops {
    pub q8: unsafe fn(&IntBlock),
    pub q6: unsafe fn(&IntBlock),
    pub q5: unsafe fn(&IntBlock),
    pub q4: unsafe fn(&IntBlock),
    pub q3: unsafe fn(&IntBlock),
    pub q2: unsafe fn(&IntBlock),
    pub float: unsafe fn(&FloatBlock),
    pub widen: unsafe fn(&Widen),
    /// Tokens from which on 16-bit blocks are widened for `float`.
    pub widen_from: usize,
    /// (x, n ≤ 256, `[256]` integers, their scale, their sum)
    pub quantize: unsafe fn(*const f32, usize, *mut i8, *mut f32, *mut i32),
    /// The same in two terms: `[2][256]`, two scales, two sums.
    pub quantize_two: unsafe fn(*const f32, usize, *mut i8, *mut f32, *mut i32),
    /// Makes packs; `None` where products do not read them.
    pub pack: Option<unsafe fn(&Packing)>,
    pub rms: unsafe fn(&Norm),
    pub layer: unsafe fn(&Norm),
    pub softmax: unsafe fn(*mut f32, usize),
    pub map: unsafe fn(Map, *mut f32, usize),
    pub gated: unsafe fn(Activation, *const f32, *const f32, *mut f32, usize),
    pub add: unsafe fn(*mut f32, *const f32, Option<f32>, usize),
    /// (x, half, pairs, cos, sin)
    pub rope: unsafe fn(*mut f32, usize, Pairs, *const f32, *const f32),
    pub attend: unsafe fn(&Tile<'_>),
    /// What `attend` calls for int8 keys.
    pub keys: unsafe fn(&mut Keys<'_>),
    pub join: unsafe fn(&Join),
    /// (type, x, dim, vector padded to 16, its scale)
    pub store: unsafe fn(KeyType, *const f32, usize, *mut u8, *mut u16),
    /// Where the machine multiplies matrix tiles.
    pub tiles: Option<&'static TileOps>,
}

/// Products on matrix tiles, in place of the others where there are vectors enough. They read activations packed.
pub struct TileOps {
    /// Int8 vectors from which on they are used.
    pub from: usize,
    /// (up to 16 vectors of 256 integers, their scales, how many, [`crate::input::PACKED`] lines)
    pub pack: unsafe fn(*const i8, *const f32, usize, *mut u8),
    pub q8: unsafe fn(&IntBlock),
    pub q6: unsafe fn(&IntBlock),
    pub q5: unsafe fn(&IntBlock),
    pub q4: unsafe fn(&IntBlock),
    pub q3: unsafe fn(&IntBlock),
    pub q2: unsafe fn(&IntBlock),
    /// f16 and bf16 weights with activations rounded to bf16; for any number of tokens, at the `fast` level only.
    pub float: unsafe fn(&FloatBlock),
    /// (32 values of up to 16 tokens, values between tokens, how many tokens, 16 lines)
    pub pack_bf16: unsafe fn(*const f32, usize, usize, *mut u8),
}

/// One function of a table, with the instruction set's features.
macro_rules! entry {
    ([$($feature:literal)?] $name:ident($($a:ident: $t:ty),*) $(-> $r:ty)? = $body:expr) => {
        $(#[target_feature(enable = $feature)])?
        pub unsafe fn $name($($a: $t),*) $(-> $r)? {
            // SAFETY: the features are on in this function, and the caller proved the arguments
            unsafe { $body }
        }
    };
}
pub(crate) use entry;

/// The products of an instruction set with integer matrices and int8 keys: what gains from its way to multiply
/// bytes. Arguments: the type that implements `Simd`, its features.
macro_rules! products {
    ($s:ty $(, $feature:literal)?) => {
        mod products {
            use super::*;
            use crate::generic::{attention, codes, panel, rows};
            use crate::ops::entry;
            use crate::simd::Simd;

            entry!([$($feature)?] q8(a: &rows::IntBlock) = rows::product::<$s, { codes::Q8 }>(a, tiles));
            entry!([$($feature)?] q6(a: &rows::IntBlock) = rows::product::<$s, { codes::Q6 }>(a, tiles));
            entry!([$($feature)?] q5(a: &rows::IntBlock) = rows::product::<$s, { codes::Q5 }>(a, tiles));
            entry!([$($feature)?] q4(a: &rows::IntBlock) = rows::product::<$s, { codes::Q4 }>(a, tiles));
            entry!([$($feature)?] q3(a: &rows::IntBlock) = rows::product::<$s, { codes::Q3 }>(a, tiles));
            entry!([$($feature)?] q2(a: &rows::IntBlock) = rows::product::<$s, { codes::Q2 }>(a, tiles));
            entry!([$($feature)?] pack(a: &panel::Packing) = panel::pack::<$s>(a));
            entry!([$($feature)?] keys(a: &mut attention::Keys<'_>) = attention::keys::<$s>(a));
            // one for all types: a call a record costs nothing, a copy in each kernel of a type would be long
            entry!([$($feature)?] tiles(a: &panel::Tiles<'_>) = <$s>::tiles(a));
        }
    };
}
pub(crate) use products;

/// Defines `OPS` for an instruction set. Arguments: the type that implements `Simd`, its features.
macro_rules! table {
    ($s:ty $(, $feature:literal)?) => {
        crate::ops::products!($s $(, $feature)?);

        mod kernels {
            use super::*;
            use crate::cpu::{Activation, Map, Pairs};
            use crate::generic::{attention, elementwise, float, norm, quantize};
            use crate::simd::Simd;
            use crate::kv::KeyType;

            use crate::ops::entry;

            entry!([$($feature)?] float(a: &float::FloatBlock) = <$s>::float_tiles(a));
            entry!([$($feature)?] widen(a: &float::Widen) = float::widen::<$s>(a));
            entry!([$($feature)?] quantize(x: *const f32, n: usize, out: *mut i8, scale: *mut f32, sum: *mut i32)
                = (*scale, *sum) = quantize::quantize::<$s, true>(x, n, out));
            entry!([$($feature)?] quantize_two(x: *const f32, n: usize, out: *mut i8, scale: *mut f32, sum: *mut i32)
                = quantize::quantize_two::<$s>(x, n, out, scale, sum));
            entry!([$($feature)?] rms(a: &norm::Norm) = norm::rms::<$s>(a));
            entry!([$($feature)?] layer(a: &norm::Norm) = norm::layer::<$s>(a));
            entry!([$($feature)?] softmax(x: *mut f32, n: usize) = norm::softmax::<$s>(x, n));
            entry!([$($feature)?] map(f: Map, x: *mut f32, n: usize) = elementwise::map::<$s>(f, x, n));
            entry!([$($feature)?] gated(k: Activation, gate: *const f32, up: *const f32, out: *mut f32, n: usize)
                = elementwise::gated::<$s>(k, gate, up, out, n));
            entry!([$($feature)?] add(a: *mut f32, b: *const f32, f: Option<f32>, n: usize)
                = elementwise::add::<$s>(a, b, f, n));
            entry!([$($feature)?] rope(x: *mut f32, half: usize, pairs: Pairs, cos: *const f32, sin: *const f32)
                = elementwise::rope::<$s>(x, half, pairs, cos, sin));
            entry!([$($feature)?] attend(a: &attention::Tile<'_>) = attention::attend::<$s>(a));
            entry!([$($feature)?] join(a: &attention::Join) = attention::join::<$s>(a));
            entry!([$($feature)?] store(kind: KeyType, x: *const f32, dim: usize, to: *mut u8, scale: *mut u16)
                = attention::store::<$s>(kind, x, dim, to, scale));
        }

        /// The algorithms of `generic/`, for this instruction set.
        pub static OPS: crate::ops::Ops = crate::ops::Ops {
            q8: products::q8,
            q6: products::q6,
            q5: products::q5,
            q4: products::q4,
            q3: products::q3,
            q2: products::q2,
            float: kernels::float,
            widen: kernels::widen,
            widen_from: <$s as crate::simd::Simd>::WIDEN,
            quantize: kernels::quantize,
            quantize_two: kernels::quantize_two,
            pack: if <$s as crate::simd::Simd>::PACKS { Some(products::pack) } else { None },
            rms: kernels::rms,
            layer: kernels::layer,
            softmax: kernels::softmax,
            map: kernels::map,
            gated: kernels::gated,
            add: kernels::add,
            rope: kernels::rope,
            attend: kernels::attend,
            keys: products::keys,
            join: kernels::join,
            store: kernels::store,
            tiles: None,
        };
    };
}
pub(crate) use table;
