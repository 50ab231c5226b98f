//! Products of bf16 on matrix tiles (AMX).
//!
//! The order of a sum's step: even and odd inner indices apart, each ascending by fused multiply-add from zero;
//! even + odd, added (Intel's manual, volume 2, "TDPBF16PS").

use super::halves::BYTES;
use crate::x86_64::amx::tile::{self, TILE};

/// 32 × 32 elements of C.
///
/// # Safety
/// - The tiles are configured; `steps` steps of a panel lie at `a` and `b`, 32 rows of 32 elements at `c`.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
pub(super) unsafe fn block(steps: usize, a: *const u8, b: *const u8, c: *mut f32, stride: usize, zero: bool) {
    let (down, bytes) = (c.wrapping_add(16 * stride), stride * 4);
    // SAFETY: as the caller promises
    unsafe {
        if zero {
            tile::zero!("tmm0");
            tile::zero!("tmm1");
            tile::zero!("tmm2");
            tile::zero!("tmm3");
        } else {
            tile::load!("tmm0", c, bytes);
            tile::load!("tmm1", down, bytes);
            tile::load!("tmm2", c.wrapping_add(16), bytes);
            tile::load!("tmm3", down.wrapping_add(16), bytes);
        }
        for step in 0..steps {
            let (a, b) = (a.add(step * BYTES), b.add(step * BYTES));
            // a panel of A is used once before all others, one of B by each of them
            tile::load_once!("tmm4", a, 64);
            tile::load!("tmm6", b, 64);
            tile::bf16!("tmm0", "tmm4", "tmm6");
            tile::load_once!("tmm5", a.add(TILE), 64);
            tile::bf16!("tmm1", "tmm5", "tmm6");
            tile::load!("tmm7", b.add(TILE), 64);
            tile::bf16!("tmm2", "tmm4", "tmm7");
            tile::bf16!("tmm3", "tmm5", "tmm7");
        }
        tile::store!("tmm0", c, bytes);
        tile::store!("tmm1", down, bytes);
        tile::store!("tmm2", c.wrapping_add(16), bytes);
        tile::store!("tmm3", down.wrapping_add(16), bytes);
    }
}
