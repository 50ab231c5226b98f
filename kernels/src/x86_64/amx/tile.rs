//! The tile unit: whether it is there and permitted, its configuration, and the instructions the products use.
//!
//! ```text
//! tmm0 tmm2   sums of rows 0..16  × vectors 0..16, 16..32        tmm4 tmm5   weights, rows 0..16, 16..32
//! tmm1 tmm3   sums of rows 16..32 × the same                     tmm6 tmm7   activations, vectors 0..16, 16..32
//! ```
//! All eight are 16 rows of 64 bytes. The compiler knows no tiles and never touches one, so they keep their values
//! between the statements here; each statement still names the register that it changes. Intel's manual
//! (volume 2, "TDPBSSD" and the other T instructions) defines what they compute.

use core::arch::asm;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

/// Bytes of a tile: 16 rows of 64.
pub const TILE: usize = 1024;

/// Set by tests that execute the instructions in place of the machine.
static EMULATED: AtomicBool = AtomicBool::new(false);

/// Takes the unit for available from now on, whatever the processor says.
///
/// # Safety
/// Executing the tile instructions of this module works on every thread: something catches the fault that the
/// processor raises and does what they say.
pub unsafe fn assume() {
    EMULATED.store(true, Ordering::SeqCst);
}

/// Whether tiles of int8 and bf16 can be used: in the processor, enabled by the system, permitted to this process.
/// The first call asks for the permission.
pub fn available() -> bool {
    static FOUND: OnceLock<bool> = OnceLock::new();
    EMULATED.load(Ordering::SeqCst) || *FOUND.get_or_init(|| present() && enabled() && permitted())
}

/// AMX-BF16, AMX-TILE, AMX-INT8: leaf 7, edx.
fn present() -> bool {
    const BITS: u32 = 1 << 22 | 1 << 24 | 1 << 25;
    const OSXSAVE: u32 = 1 << 27;
    core::arch::x86_64::__cpuid(0).eax >= 7
        && core::arch::x86_64::__cpuid(1).ecx & OSXSAVE != 0
        && core::arch::x86_64::__cpuid_count(7, 0).edx & BITS == BITS
}

/// Whether the system saves tile configuration and data (XCR0 bits 17 and 18) when it switches threads.
fn enabled() -> bool {
    let (low, _high): (u32, u32);
    // SAFETY: the system has set OSXSAVE, so the instruction exists; it only reads
    unsafe { asm!("xgetbv", in("ecx") 0, out("eax") low, out("edx") _high, options(nomem, nostack)) };
    low >> 17 & 3 == 3
}

/// Asks Linux for the tile data state, which it gives to a process only on request.
#[cfg(target_os = "linux")]
fn permitted() -> bool {
    const ARCH_REQ_XCOMP_PERM: libc::c_long = 0x1023;
    const XFEATURE_XTILEDATA: libc::c_long = 18;
    // SAFETY: takes two numbers and touches no memory of ours
    unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0 }
}

/// Other systems have their own ways, which are not known here.
#[cfg(not(target_os = "linux"))]
fn permitted() -> bool {
    false
}

/// Palette 1, eight tiles of 16 rows × 64 bytes.
const CONFIG: Config = {
    let mut c = [0; 64];
    c[0] = 1;
    let mut t = 0;
    while t < 8 {
        c[16 + 2 * t] = 64;
        c[48 + t] = 16;
        t += 1;
    }
    Config(c)
};

#[repr(C, align(64))]
struct Config([u8; 64]);

/// This thread's tiles, configured while the value lives. Its end gives the state back, so that a host's thread
/// leaves as it came and the system saves no tiles for threads that do not compute.
pub struct Tiles(());

impl Tiles {
    /// Configures all eight; they are zero.
    ///
    /// # Safety
    /// [`available`] is true.
    #[inline(always)]
    pub unsafe fn configure() -> Tiles {
        static C: Config = CONFIG;
        // SAFETY: the unit is there; the configuration is valid and 64 bytes long
        unsafe {
            asm!("ldtilecfg [{}]", in(reg) &C.0, options(nostack, preserves_flags, readonly),
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _);
        }
        Tiles(())
    }
}

impl Drop for Tiles {
    #[inline(always)]
    fn drop(&mut self) {
        // SAFETY: the unit is there, or the value could not have been made
        unsafe {
            asm!("tilerelease", options(nostack, preserves_flags, nomem),
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _);
        }
    }
}
/// `load!("tmm4", p, stride)`: 16 rows of 64 bytes from `p`, `stride` bytes apart.
macro_rules! load {
    ($t:tt, $p:expr, $stride:expr) => {
        core::arch::asm!(concat!("tileloadd ", $t, ", [{p} + {s}*1]"), p = in(reg) $p, s = in(reg) $stride as usize,
            out($t) _, options(nostack, preserves_flags, readonly))
    };
}
pub(crate) use load;

/// The same for an operand that is used once: a hint not to keep it in the nearest cache.
macro_rules! load_once {
    ($t:tt, $p:expr, $stride:expr) => {
        core::arch::asm!(concat!("tileloaddt1 ", $t, ", [{p} + {s}*1]"), p = in(reg) $p, s = in(reg) $stride as usize,
            out($t) _, options(nostack, preserves_flags, readonly))
    };
}
pub(crate) use load_once;

/// `store!("tmm0", p, stride)`: 16 rows of 64 bytes to `p`.
macro_rules! store {
    ($t:tt, $p:expr, $stride:expr) => {
        core::arch::asm!(concat!("tilestored [{p} + {s}*1], ", $t), p = in(reg) $p, s = in(reg) $stride as usize,
            options(nostack, preserves_flags))
    };
}
pub(crate) use store;

/// `int8!("tmm0", "tmm4", "tmm6")`: sums += weights · activations, signed bytes, modulo 2³².
macro_rules! int8 {
    ($c:tt, $a:tt, $b:tt) => {
        core::arch::asm!(concat!("tdpbssd ", $c, ", ", $a, ", ", $b), out($c) _,
            options(nostack, preserves_flags, nomem))
    };
}
pub(crate) use int8;

/// `zero!("tmm0")`
macro_rules! zero {
    ($t:tt) => {
        core::arch::asm!(concat!("tilezero ", $t), out($t) _, options(nostack, preserves_flags, nomem))
    };
}
pub(crate) use zero;

/// `bf16!("tmm0", "tmm4", "tmm6")`: the same with pairs of bf16 into f32.
macro_rules! bf16 {
    ($c:tt, $a:tt, $b:tt) => {
        core::arch::asm!(concat!("tdpbf16ps ", $c, ", ", $a, ", ", $b), out($c) _,
            options(nostack, preserves_flags, nomem))
    };
}
pub(crate) use bf16;
