//! Models: what an architecture is ([`spec`]), which there are ([`arch`], one file each), and how one runs.

pub mod arch;
mod check;
mod config;
mod gpt2;
pub mod list;
mod llama;
pub mod spec;
