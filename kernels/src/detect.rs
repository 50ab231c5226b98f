//! Which instruction set to use: asked once, at run time; `LLM_ISA` overrides it for tests.

use crate::ops::Ops;

/// An instruction set with a table of kernels.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Isa {
    /// Plain Rust, any machine.
    Scalar,
    /// AVX2, FMA, F16C.
    Avx2,
    /// AVX-512 F, BW, VL, DQ and VNNI.
    Avx512,
    /// AMX tiles of int8 and bf16 for products of many vectors, AVX-512 for the rest.
    Amx,
}

impl Isa {
    /// All, slowest first.
    pub const ALL: [Isa; 4] = [Isa::Scalar, Isa::Avx2, Isa::Avx512, Isa::Amx];

    /// Its name in `LLM_ISA`.
    pub fn name(self) -> &'static str {
        match self {
            Isa::Scalar => "scalar",
            Isa::Avx2 => "avx2",
            Isa::Avx512 => "avx512",
            Isa::Amx => "amx",
        }
    }

    /// The instruction set of that name, if this build has kernels for it.
    pub fn parse(name: &str) -> Option<Isa> {
        Isa::ALL.into_iter().find(|isa| isa.name() == name)
    }

    /// Whether this machine has it.
    pub fn is_available(self) -> bool {
        match self {
            Isa::Scalar => true,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => crate::x86_64::avx2::available(),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => crate::x86_64::avx512::available(),
            #[cfg(target_arch = "x86_64")]
            Isa::Amx => crate::x86_64::amx::available(),
            #[cfg(not(target_arch = "x86_64"))]
            _ => false,
        }
    }

    /// Its kernels. Calling them takes [`Isa::is_available`].
    pub(crate) fn ops(self) -> &'static Ops {
        match self {
            Isa::Scalar => &crate::scalar::OPS,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => &crate::x86_64::avx2::OPS,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => &crate::x86_64::avx512::OPS,
            #[cfg(target_arch = "x86_64")]
            Isa::Amx => &crate::x86_64::amx::OPS,
            #[cfg(not(target_arch = "x86_64"))]
            _ => &crate::scalar::OPS,
        }
    }
}

/// What this machine has, slowest first.
pub fn available() -> Vec<Isa> {
    Isa::ALL.into_iter().filter(|isa| isa.is_available()).collect()
}

/// The fastest available, or the one that `LLM_ISA` names if it is available.
pub fn detect() -> Isa {
    let wanted =
        std::env::var("LLM_ISA").ok().and_then(|name| Isa::parse(&name)).filter(|isa| isa.is_available());
    wanted.or_else(|| available().pop()).unwrap_or(Isa::Scalar)
}

/// Makes [`Isa::Amx`] available on a machine without it, for tests that execute its instructions themselves.
///
/// # Safety
/// From now on every thread can execute the tile instructions that the kernels use: something catches the fault
/// that the processor raises for them and does what they say.
#[cfg(target_arch = "x86_64")]
#[doc(hidden)]
pub unsafe fn assume_tiles() {
    // SAFETY: passed on
    unsafe { crate::x86_64::amx::tile::assume() }
}
