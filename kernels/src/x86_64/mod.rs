//! x86-64 instruction sets.

pub mod amx;
pub mod avx2;
pub mod avx512;
pub mod avxvnni;
pub mod peak;

/// Wraps bodies of trait methods: `unsafe` by the trait's contract, inlined into their kernel.
macro_rules! lanes {
    ($(fn $name:ident $([const $w:ident: usize])? ($($a:ident: $t:ty),*) $(-> $r:ty)? $body:block)*) => {
        $(#[inline(always)]
        #[allow(unused_unsafe)] // some bodies are empty of it
        unsafe fn $name$(<const $w: usize>)?($($a: $t),*) $(-> $r)? {
            // SAFETY: the trait's caller promises the instruction set and valid pointers
            unsafe { $body }
        })*
    };
}
pub(crate) use lanes;

/// A byte shuffle that puts byte j of a lane into the high byte of every word of lane j (of four) and clears the
/// low bytes.
const fn high_bytes() -> [u8; 64] {
    let mut place = [0x80; 64];
    let mut i = 0;
    while i < 32 {
        place[2 * i + 1] = (i / 8) as u8;
        i += 1;
    }
    place
}

/// The same for eight bytes, two per lane: in each lane, `n` words have its even byte and `n` more its odd one, so on
/// from byte `first` of the two; with `n` = 8 all words of a lane have that byte.
const fn high_of_pairs(n: usize, first: usize) -> [u8; 64] {
    let mut place = [0x80; 64];
    let mut i = 0;
    while i < 32 {
        place[2 * i + 1] = (i / 8 * 2 + (first + i % 8 / n) % 2) as u8;
        i += 1;
    }
    place
}
