//! Models: what an architecture is ([`spec`]), which there are ([`arch`], one file each), and how one runs.

mod adapt;
pub mod alibi;
pub mod arch;
mod bloom;
mod check;
mod choice;
mod config;
mod deepseek;
pub mod draft;
pub(crate) mod forward;
mod fused;
mod gemma;
mod gpt2;
mod gpt_neox;
mod gpt_oss;
mod join;
pub mod list;
mod llama;
mod load;
mod mixtral;
mod mpt;
mod olmo2;
mod own;
mod phi3;
mod qwen;
pub mod rope;
mod scratch;
pub mod spec;
mod wanted;

pub use load::{Info, Load, Model, OpenOptions, OpenProgress, Verify};
