//! A head's vector of a token as the cache holds it.

use crate::generic::norm::fetch;
use crate::kv::KeyType;
use crate::simd::{Simd, runs};

/// Stores one head's vector of a token: `dim` values, padded with zeros to 16, as the type asks.
#[inline(always)]
pub unsafe fn store<S: Simd>(kind: KeyType, x: *const f32, dim: usize, to: *mut u8, scale: *mut u16) {
    // SAFETY: x holds dim values, `to` the padded vector, `scale` one half for int8, wherever it lies
    unsafe {
        match kind {
            KeyType::F32 => {
                runs!(dim, |k, n| S::store(to.cast::<f32>().add(k), fetch::<S>(x.add(k), n, 0.0)))
            }
            KeyType::F16 => {
                runs!(dim, |k, n| S::store_f16(to.cast::<u16>().add(k), fetch::<S>(x.add(k), n, 0.0)))
            }
            KeyType::I8 => {
                let mut top = S::splat(0.0);
                let mut odd = S::splat(0.0);
                runs!(dim, |k, n| {
                    let v = fetch::<S>(x.add(k), n, 0.0);
                    top = S::max(S::abs(v), top);
                    odd = S::fma(v, S::splat(0.0), odd);
                });
                let mut lanes = [0f32; 16];
                S::store(lanes.as_mut_ptr(), top);
                let amax = lanes.iter().fold(0f32, |m, &v| if v > m { v } else { m });
                // the scale is rounded to half precision first and the integers follow it
                let half = half::f16::from_f32(amax / 127.0);
                let finite = S::tree(odd) == 0.0 && half.is_finite();
                let used = half.to_f32();
                let inverse = if finite && used > 0.0 { 1.0 / used } else { 0.0 };
                scale.write_unaligned(if finite { half } else { half::f16::NAN }.to_bits());
                runs!(dim, |k, n| {
                    let v = fetch::<S>(x.add(k), n, 0.0);
                    let q = S::round(S::mul(if finite { v } else { S::splat(0.0) }, S::splat(inverse)));
                    let q = S::max(S::splat(-127.0), S::min(S::splat(127.0), q));
                    S::store_i8(to.cast::<i8>().add(k), q);
                });
            }
        }
    }
}
