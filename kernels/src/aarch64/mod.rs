//! ARM's 64-bit instruction sets.

pub mod neon;
pub mod peak;
