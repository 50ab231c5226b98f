//! CPU kernels of libllm: one exact result on every instruction set, batch size and number of threads.
//!
//! ```text
//! cpu/ (safe: shapes, splitting)  →  ops (table per instruction set)  →  generic/ over simd::Simd
//!   └ threads (pool)                   └ detect (chosen once)              └ scalar/  x86_64/  aarch64/
//! ```
//! Products read weights in the records of the file format, in place. Integer types multiply int8 by int8 exactly
//! per 256 inputs and fold with one fused multiply-add; every float sum has one prescribed order; elementary
//! functions are our own. So results are equal bit for bit wherever they are computed. `dense` holds the
//! plain f32 products of training.
//!
//! This crate does not know models, files or sessions.

// Vector instructions, threads that share buffers, and stack scratch that is written before it is read need it.
#![allow(unsafe_code)]
// A kernel's loops index several arrays with one counter; iterators would hide the layout they state.
#![allow(clippy::needless_range_loop)]

#[cfg(target_arch = "aarch64")]
mod aarch64;
pub mod cpu;
pub mod dense;
pub mod detect;
mod generic;
mod input;
mod kv;
pub mod math;
mod matrix;
mod ops;
pub mod peak;
mod read;
mod scalar;
mod shared;
mod simd;
pub mod threads;
mod wide;
#[cfg(target_arch = "x86_64")]
mod x86_64;

pub use cpu::{
    Activation, Attention, Cpu, GroupRank, Job, Level, Map, Pairs, RouteSpec, Row, RowNorm, Scoring,
    keep_groups,
};
pub use detect::{Isa, available, detect};
pub use input::Input;
pub use kv::{KeyType, KvLayout, ValueType};
pub use llm_format::quant::Type;
pub use matrix::{Experts, Matrix};
pub use read::read_streams;
pub use threads::{FloatControl, Placement, Pool};
pub use wide::{Loop, wide};
