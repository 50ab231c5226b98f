//! Tile instructions, executed, equal the manual's pseudo-code written down again: natively where the machine has
//! the unit, else by the emulator.
#![cfg(all(target_arch = "x86_64", target_os = "linux"))]
// Tests execute single instructions.
#![allow(unsafe_code)]

use core::arch::asm;
use llm_emulator::{Unit, install};

#[repr(align(64))]
struct Line([u8; 64]);

/// Shapes of the eight tiles: (rows, bytes of a row).
fn config(shapes: [(u8, u16); 8]) -> Line {
    let mut c = [0; 64];
    c[0] = 1;
    for (i, (rows, width)) in shapes.into_iter().enumerate() {
        c[16 + 2 * i..][..2].copy_from_slice(&width.to_le_bytes());
        c[48 + i] = rows;
    }
    Line(c)
}

/// `None` where neither the machine nor the emulator has tiles.
fn ready() -> Option<Unit> {
    let unit = install();
    match &unit {
        Some(unit) => println!("tiles: {unit:?}"),
        None => llm_testdata::not_run("tiles need an x86-64 Linux machine with AVX-512"),
    }
    unit
}

fn bytes(n: usize, seed: u64) -> Vec<u8> {
    let mut z = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        z ^= z << 13;
        z ^= z >> 7;
        z ^= z << 17;
        (z >> 24) as u8
    };
    (0..n).map(|_| next()).collect()
}

fn configure(c: &Line) {
    // SAFETY: `ready` said yes, and the tests' configurations are valid
    unsafe { asm!("ldtilecfg [{}]", in(reg) &c.0) };
}

fn release() {
    // SAFETY: as above
    unsafe { asm!("tilerelease") };
}

const FULL: [(u8, u16); 8] = [(16, 64); 8];

#[test]
fn a_configuration_is_read_back_and_gone_after_release() {
    let Some(_) = ready() else { return };
    let c = config([(16, 64), (1, 4), (3, 62), (0, 0), (16, 1), (7, 7), (0, 0), (2, 60)]);
    configure(&c);
    let mut out = Line([9; 64]);
    // SAFETY: 64 bytes to write
    unsafe { asm!("sttilecfg [{}]", in(reg) &mut out.0) };
    assert_eq!(c.0, out.0);
    release();
    // SAFETY: as above
    unsafe { asm!("sttilecfg [{}]", in(reg) &mut out.0) };
    assert_eq!([0; 64], out.0);
    // palette 0 releases too
    configure(&config(FULL));
    configure(&Line([0; 64]));
    // SAFETY: as above
    unsafe { asm!("sttilecfg [{}]", in(reg) &mut out.0) };
    assert_eq!([0; 64], out.0);
}

/// Every addressing form that the assembler makes of a base, an index and a displacement.
#[test]
fn loads_and_stores_move_rows_at_their_stride() {
    let Some(_) = ready() else { return };
    configure(&config([(16, 64), (16, 64), (5, 20), (16, 64), (16, 64), (16, 64), (16, 64), (3, 7)]));
    let from = bytes(16 * 100 + 64 + 4096, 1);
    let p = from.as_ptr();
    // an answer of 16 x 64 bytes for `shape` rows at `at`, `stride`
    let expected = |at: usize, stride: usize, rows: usize, width: usize| {
        let mut out = vec![0xaau8; 1024];
        (0..rows).for_each(|r| out[r * 64..][..width].copy_from_slice(&from[at + r * stride..][..width]));
        out
    };
    macro_rules! moved {
        ($t:literal, $load:literal, $base:literal, $index:tt, $at:expr, $stride:expr, $index_value:expr,
            $rows:expr, $width:expr) => {{
            let mut out = vec![0xaau8; 1024];
            // SAFETY: the rows lie inside `from` and `out`
            unsafe {
                asm!(
                    concat!($load, " ", $t, ", ", "[", $base, "]"),
                    concat!("tilestored [{out} + {row}*1], ", $t),
                    in($index) $index_value, in("rcx") p,
                    out = in(reg) out.as_mut_ptr(), row = in(reg) 64usize
                );
            }
            assert_eq!(expected($at, $stride, $rows, $width), out, "{} {}", $load, $base);
        }};
    }
    moved!("tmm0", "tileloadd", "rcx + rdx*1", "rdx", 0, 64, 64usize, 16, 64);
    moved!("tmm1", "tileloaddt1", "rcx + rdx*2", "rdx", 0, 100, 50usize, 16, 64);
    moved!("tmm2", "tileloadd", "rcx + r13*4 + 100", "r13", 100, 80, 20usize, 5, 20);
    moved!("tmm7", "tileloaddt1", "rcx + r9*8 + 4000", "r9", 4000, 8, 1usize, 3, 7);
    release();
}

/// Stores of tile 0, whole.
fn stored() -> Vec<u8> {
    let mut out = vec![0u8; 1024];
    // SAFETY: 16 rows of 64 bytes
    unsafe { asm!("tilestored [{p} + {s}*1], tmm0", p = in(reg) out.as_mut_ptr(), s = in(reg) 64usize) };
    out
}

/// Loads tiles 0, 4, 6 (c, a, b) and multiplies them.
macro_rules! product {
    ($instruction:literal, $shapes:expr, $c:expr, $a:expr, $b:expr) => {{
        configure(&config($shapes));
        // SAFETY: 1024 bytes each
        unsafe {
            asm!(
                "tileloadd tmm0, [{c} + {s}*1]", "tileloadd tmm4, [{a} + {s}*1]", "tileloadd tmm6, [{b} + {s}*1]",
                concat!($instruction, " tmm0, tmm4, tmm6"),
                c = in(reg) $c.as_ptr(), a = in(reg) $a.as_ptr(), b = in(reg) $b.as_ptr(), s = in(reg) 64usize
            );
        }
        let out = stored();
        release();
        out
    }};
}

/// c: m × n, a: m × k, b: k × n groups of four bytes.
fn shapes(m: u8, k: u8, n: u8) -> [(u8, u16); 8] {
    let mut all = FULL;
    (all[0], all[4], all[6]) = ((m, 4 * u16::from(n)), (m, 4 * u16::from(k)), (k, 4 * u16::from(n)));
    all
}

fn word(bytes: &[u8], row: usize, i: usize) -> [u8; 4] {
    [0, 1, 2, 3].map(|b| bytes[row * 64 + i * 4 + b])
}

const SIZES: [(u8, u8, u8); 5] = [(16, 16, 16), (1, 1, 1), (3, 16, 5), (16, 2, 16), (7, 9, 16)];

#[test]
fn int8_products_are_exact_modulo_2_to_the_32() {
    let Some(_) = ready() else { return };
    for (i, (m, k, n)) in SIZES.into_iter().enumerate() {
        let [c, a, b] = [1, 2, 3].map(|s| bytes(1024, s + 10 * i as u64));
        let out = product!("tdpbssd", shapes(m, k, n), c, a, b);
        for row in 0..16 {
            for col in 0..16 {
                let mut sum = 0i64;
                if row < usize::from(m) && col < usize::from(n) {
                    sum = i64::from(i32::from_le_bytes(word(&c, row, col)));
                    for k in 0..usize::from(k) {
                        let (w, x) = (word(&a, row, k), word(&b, k, col));
                        sum += (0..4).map(|j| i64::from(w[j] as i8) * i64::from(x[j] as i8)).sum::<i64>();
                    }
                } else if row < usize::from(m) {
                    continue; // not stored
                }
                assert_eq!(
                    sum as i32,
                    i32::from_le_bytes(word(&out, row, col)),
                    "{m} {k} {n}: [{row}, {col}]"
                );
            }
        }
    }
}

/// Denormals to zero, before and after.
fn flush(x: f64) -> f64 {
    if x.abs() < f64::from(f32::MIN_POSITIVE) { 0f64.copysign(x) } else { x }
}

fn bf16(low: u8, high: u8) -> f64 {
    flush(f64::from(f32::from_bits(u32::from_le_bytes([0, 0, low, high]))))
}

#[test]
fn bf16_products_round_as_the_manual_says() {
    let Some(_) = ready() else { return };
    for (i, (m, k, n)) in SIZES.into_iter().enumerate() {
        // exponents near 2^0 so that roundings show and nothing overflows; a few denormals and zeros
        let [mut c, mut a, mut b] = [1, 2, 3].map(|s| bytes(1024, s + 10 * i as u64));
        c.iter_mut().skip(3).step_by(4).for_each(|v| *v = *v & 0x81 | 0x3e);
        for t in [&mut a, &mut b] {
            for (j, v) in t.iter_mut().skip(1).step_by(2).enumerate() {
                *v = if j % 29 == 5 { *v & 0x80 } else { *v & 0x81 | 0x3e };
            }
        }
        // whole rows of denormals: their products must vanish, and so must what c holds of them
        a[..64].iter_mut().skip(1).step_by(2).for_each(|v| *v &= 0x80);
        c[..4].copy_from_slice(&1u32.to_le_bytes());
        let out = product!("tdpbf16ps", shapes(m, k, n), c, a, b);
        for row in 0..usize::from(m) {
            for col in 0..usize::from(n) {
                let mut sums = [0f64; 2];
                for k in 0..usize::from(k) {
                    let (w, x) = (word(&a, row, k), word(&b, k, col));
                    for j in 0..2 {
                        // products of bf16 are exact in f64, their sums with an f32 of near exponent too
                        let exact = bf16(w[2 * j], w[2 * j + 1]) * bf16(x[2 * j], x[2 * j + 1]) + sums[j];
                        sums[j] = flush(f64::from(exact as f32));
                    }
                }
                let old = flush(f64::from(f32::from_le_bytes(word(&c, row, col))));
                let two = flush(f64::from((sums[0] + sums[1]) as f32));
                let expected = flush(f64::from((old + two) as f32)) as f32;
                let got = f32::from_le_bytes(word(&out, row, col));
                assert_eq!(expected.to_bits(), got.to_bits(), "{m} {k} {n}: [{row}, {col}] {expected} {got}");
            }
        }
    }
}

#[test]
fn zeroing_leaves_the_other_tiles() {
    let Some(_) = ready() else { return };
    let a = bytes(1024, 5);
    configure(&config(FULL));
    // SAFETY: 1024 bytes
    unsafe {
        asm!("tileloadd tmm0, [{p} + {s}*1]", "tileloadd tmm1, [{p} + {s}*1]", "tilezero tmm1",
            p = in(reg) a.as_ptr(), s = in(reg) 64usize);
    }
    assert_eq!(a, stored());
    // SAFETY: as above
    unsafe { asm!("tilezero tmm0") };
    assert_eq!(vec![0; 1024], stored());
    release();
}

#[test]
fn every_thread_has_tiles_of_its_own() {
    let Some(_) = ready() else { return };
    std::thread::scope(|scope| {
        for seed in 0..4 {
            scope.spawn(move || {
                let a = bytes(1024, seed);
                for _ in 0..50 {
                    configure(&config(FULL));
                    // SAFETY: 1024 bytes
                    unsafe {
                        asm!("tileloadd tmm0, [{p} + {s}*1]", p = in(reg) a.as_ptr(), s = in(reg) 64usize);
                    }
                    std::thread::yield_now();
                    assert_eq!(a, stored());
                    release();
                }
            });
        }
    });
}

/// What must fault ends a child process by the signal it would have on the unit, or by SIGILL when emulated.
#[test]
fn invalid_use_ends_the_process() {
    let Some(unit) = ready() else { return };
    let name = "invalid_use_ends_the_process";
    if let Ok(case) = std::env::var("TILES_INVALID") {
        let mut bad = config(FULL);
        match case.as_str() {
            "unconfigured" => drop(stored()),
            "palette" => bad.0[0] = 2,
            "reserved" => bad.0[9] = 1,
            "tile 9" => bad.0[57] = 1,
            "rows" => bad.0[48] = 17,
            "width" => bad.0[16] = 65,
            "half" => bad.0[48] = 0,
            "shapes" => drop(product!(
                "tdpbssd",
                {
                    let mut s = FULL;
                    s[4].1 = 60;
                    s
                },
                [0u8; 1024],
                [0u8; 1024],
                [0u8; 1024]
            )),
            _ => {
                configure(&bad);
                // tdpbssd tmm0, tmm1, tmm1, which an assembler refuses
                // SAFETY: faults, which is what is tested
                unsafe { asm!(".byte 0xc4, 0xe2, 0x73, 0x5e, 0xc1") };
            }
        }
        configure(&bad);
        std::process::exit(0);
    }
    for case in
        ["unconfigured", "palette", "reserved", "tile 9", "rows", "width", "half", "shapes", "same tile"]
    {
        use std::os::unix::process::ExitStatusExt;
        let me = std::env::current_exe().expect("the test itself");
        let out = std::process::Command::new(me)
            .args(["--exact", name])
            .env("TILES_INVALID", case)
            .output()
            .expect("runs itself");
        let signal = out.status.signal();
        let configuration = ["palette", "reserved", "tile 9", "rows", "width", "half"].contains(&case);
        let expected = if unit == Unit::Native && configuration { libc::SIGSEGV } else { libc::SIGILL };
        assert_eq!(Some(expected), signal, "{case}: {:?}", out.status);
    }
}
