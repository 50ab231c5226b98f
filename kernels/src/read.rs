//! A loop that only reads: the physical limit that products are measured against.
//!
//! Four streams side by side, a line of each in turn, fetched a page ahead, as fast as reading gets: one stream alone
//! gets a part of what memory gives.

/// Bytes fetched ahead of each stream.
const AHEAD: usize = 4096;
const LINE: usize = 64;
const STREAMS: usize = 4;

/// Reads all of `bytes` on the calling thread and returns a value that depends on every word, so that no read is
/// left out.
pub fn read_streams(bytes: &[u8]) -> u64 {
    let lines = bytes.len() / (STREAMS * LINE);
    let stream = |s: usize| &bytes[s * lines * LINE..][..lines * LINE];
    let streams: [&[u8]; STREAMS] = std::array::from_fn(stream);
    let mut sums = [0u64; 8];
    for at in (0..lines * LINE).step_by(LINE) {
        for stream in streams {
            prefetch(stream.as_ptr().wrapping_add(at + AHEAD));
            for (sum, word) in sums.iter_mut().zip(stream[at..at + LINE].as_chunks::<8>().0) {
                *sum ^= u64::from_le_bytes(*word);
            }
        }
    }
    let rest = bytes[STREAMS * lines * LINE..].iter().fold(0, |sum, &byte| sum ^ u64::from(byte));
    sums.iter().fold(rest, |sum, word| sum ^ word)
}

/// Hints that the line at `at` will be read. Any address will do: it is not read here.
#[inline(always)]
fn prefetch(at: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch does not fault, whatever the address, and every x86-64 has the instruction.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(at.cast());
    }
    #[cfg(target_arch = "aarch64")]
    // SAFETY: as above, on every aarch64.
    unsafe {
        core::arch::asm!("prfm pldl1keep, [{}]", in(reg) at, options(nostack, preserves_flags, readonly))
    };
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    let _ = at;
}

#[cfg(test)]
mod tests {
    use super::read_streams;

    #[test]
    fn every_byte_counts() {
        for len in [0, 1, 255, 256, 300, 5000] {
            let mut bytes = vec![0; len];
            assert_eq!(read_streams(&bytes), 0);
            for at in 0..len {
                bytes[at] = 7;
                assert_ne!(read_streams(&bytes), 0, "byte {at} of {len}");
                bytes[at] = 0;
            }
        }
    }
}
