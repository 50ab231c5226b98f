//! Which instruction set to use: asked once, at run time; `LLM_ISA` overrides it for tests.

use crate::ops::Ops;

/// An instruction set with a table of kernels.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Isa {
    /// Plain Rust, any machine.
    Scalar,
    /// AVX2, FMA, F16C.
    Avx2,
    /// AVX2 and the 256-bit products of AVX-VNNI.
    AvxVnni,
    /// AVX-512 F, BW, VL, DQ and VNNI.
    Avx512,
    /// AMX tiles of int8 and bf16 for products of many vectors, AVX-512 for the rest.
    Amx,
    /// NEON of every 64-bit ARM.
    Neon,
    /// NEON with `sdot` (FEAT_DotProd).
    NeonDotprod,
    /// NEON with `sdot` and `smmla` (FEAT_I8MM).
    NeonI8mm,
}

/// Whether this machine has it, and its kernels.
type Built = (fn() -> bool, &'static Ops);

impl Isa {
    /// All, of each machine the slowest first.
    pub const ALL: [Isa; 8] = [
        Isa::Scalar,
        Isa::Avx2,
        Isa::AvxVnni,
        Isa::Avx512,
        Isa::Amx,
        Isa::Neon,
        Isa::NeonDotprod,
        Isa::NeonI8mm,
    ];

    /// Its name in `LLM_ISA`.
    pub fn name(self) -> &'static str {
        match self {
            Isa::Scalar => "scalar",
            Isa::Avx2 => "avx2",
            Isa::AvxVnni => "avxvnni",
            Isa::Avx512 => "avx512",
            Isa::Amx => "amx",
            Isa::Neon => "neon",
            Isa::NeonDotprod => "neon-dotprod",
            Isa::NeonI8mm => "neon-i8mm",
        }
    }

    /// The instruction set of that name, be it this machine's or another's.
    pub fn parse(name: &str) -> Option<Isa> {
        Isa::ALL.into_iter().find(|isa| isa.name() == name)
    }

    /// Whether this machine has it.
    pub fn is_available(self) -> bool {
        self.built().is_some_and(|(available, _)| available())
    }

    /// Its kernels. Calling them takes [`Isa::is_available`].
    pub(crate) fn ops(self) -> &'static Ops {
        self.built().map_or(&crate::scalar::OPS, |(_, ops)| ops)
    }

    /// The question whether this machine has it, and its kernels; `None` on another architecture.
    fn built(self) -> Option<Built> {
        #[cfg(target_arch = "aarch64")]
        use crate::aarch64::neon;
        #[cfg(target_arch = "x86_64")]
        use crate::x86_64::{amx, avx2, avx512, avxvnni};
        match self {
            Isa::Scalar => Some((|| true, &crate::scalar::OPS)),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => Some((avx2::available, &avx2::OPS)),
            #[cfg(target_arch = "x86_64")]
            Isa::AvxVnni => Some((avxvnni::available, &avxvnni::OPS)),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => Some((avx512::available, &avx512::OPS)),
            #[cfg(target_arch = "x86_64")]
            Isa::Amx => Some((amx::available, &amx::OPS)),
            #[cfg(target_arch = "aarch64")]
            Isa::Neon => Some((neon::multiply::available, &neon::multiply::OPS)),
            #[cfg(target_arch = "aarch64")]
            Isa::NeonDotprod => Some((neon::dotprod::available, &neon::dotprod::OPS)),
            #[cfg(target_arch = "aarch64")]
            Isa::NeonI8mm => Some((neon::i8mm::available, &neon::i8mm::OPS)),
            _ => None,
        }
    }
}

/// What this machine has, slowest first.
pub fn available() -> Vec<Isa> {
    Isa::ALL.into_iter().filter(|isa| isa.is_available()).collect()
}

/// The fastest available, or the one that `LLM_ISA` names if it is available; a host that wants to hear of a name
/// that is not asks [`Isa::parse`] first.
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
