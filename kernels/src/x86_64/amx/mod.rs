//! AMX: products of 16 × 64 by 64 × 16 bytes in one instruction, for many vectors at a time. Everything else, and
//! products of few vectors, is AVX-512's.

mod bf16;
mod int8;
pub mod tile;
mod turned;

use super::avx512;
use crate::ops::{Ops, TileOps};

/// Whether the machine, its system and this process have AVX-512 and tiles.
pub fn available() -> bool {
    avx512::available() && tile::available()
}

mod kernels {
    use super::{bf16, int8};
    use crate::generic::{codes, float::FloatBlock, rows::IntBlock};
    use crate::ops::entry;

    macro_rules! entries {
        ($($name:ident($($a:ident: $t:ty),*) = $body:expr;)*) => {
            $(entry!(["avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c"] $name($($a: $t),*) = $body);)*
        };
    }
    entries! {
        q8(a: &IntBlock) = int8::product::<{ codes::Q8 }>(a);
        q6(a: &IntBlock) = int8::product::<{ codes::Q6 }>(a);
        q5(a: &IntBlock) = int8::product::<{ codes::Q5 }>(a);
        q4(a: &IntBlock) = int8::product::<{ codes::Q4 }>(a);
        q3(a: &IntBlock) = int8::product::<{ codes::Q3 }>(a);
        q2(a: &IntBlock) = int8::product::<{ codes::Q2 }>(a);
        pack(x: *const i8, scales: *const f32, n: usize, to: *mut u8) = int8::pack(x, scales, n, to);
        float(a: &FloatBlock) = bf16::product(a);
        pack_bf16(x: *const f32, stride: usize, n: usize, to: *mut u8) = bf16::pack(x, stride, n, to);
    }
}

static TILES: TileOps = TileOps {
    from: int8::FROM,
    pack: kernels::pack,
    q8: kernels::q8,
    q6: kernels::q6,
    q5: kernels::q5,
    q4: kernels::q4,
    q3: kernels::q3,
    q2: kernels::q2,
    float: kernels::float,
    pack_bf16: kernels::pack_bf16,
};

/// AVX-512's, and tiles.
pub static OPS: Ops = Ops { tiles: Some(&TILES), ..avx512::OPS };
