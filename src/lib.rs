//! libllm: maps a `.llm` file and runs the language model in it, inside the host's own process.
//!
//! The map, from the host inwards: [`ffi`] (C) → [`session`] → {[`sampler`], [`model`]} → {[`kv`], weights,
//! device} → kernels; [`sampler`] → [`constraint`] → [`tokenizer`]. Samplers never see the model; nothing imports upwards. ARCHITECTURE.md draws it.

#![deny(unsafe_code)]
// Without constraints there is code that nothing reaches, since nothing can be held to one.
#![cfg_attr(not(feature = "constraints"), allow(dead_code, unreachable_code, unused_variables))]

pub mod adapter;
mod backend;
pub mod cancel;
pub mod chat;
#[cfg(feature = "constraints")]
pub mod constraint;
#[cfg(not(feature = "constraints"))]
#[path = "constraint/absent.rs"]
pub mod constraint;
mod cpu;
mod device;
pub mod error;
#[allow(unsafe_code)] // the C face: proves what a foreign caller passes in
pub mod ffi;
pub mod importance;
pub mod kv;
#[allow(unsafe_code)] // mappings of files that others could change
pub mod mmap;
pub mod model;
pub mod runtime;
pub mod sampler;
pub mod session;
mod tensor;
pub mod tokenizer;
mod weights;

pub use cancel::Cancel;
pub use error::{Error, Result, Status};

/// The README's Rust compiles.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
