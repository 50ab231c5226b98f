//! llm-train: turns text into checkpoints that any Hugging Face tool opens and that the converter turns into `.llm`.
//!
//! ```text
//!   text → tokenizer (bpe) → token files (data) → samples in a seeded order → tape, replayed by the engine → AdamW
//!                                                                   checkpoint directory ← weights + state ←┘
//! ```
//!
//! What happens depends on the configuration alone: random numbers come from counters, sums have one order, so a run
//! gives the same bits on any number of threads, and when it is stopped and resumed.
#![forbid(unsafe_code)]

mod batches;
mod blueprint;
pub mod bpe;
mod chat_data;
pub mod checkpoint;
pub mod config;
mod corpus;
pub mod data;
pub mod design;
mod encode;
mod engine;
mod events;
mod layout;
mod lora;
mod memory;
mod merge;
mod optim;
mod params;
mod pieces;
pub mod presets;
pub mod quickstart;
mod random;
mod report;
mod run;
pub mod source;
mod tape;
mod trainer;
#[cfg(test)]
mod twin;
mod unigram;

pub use bpe::{TokenizerKind, TokenizerOptions, train_tokenizer};
pub use config::{Config, OptimConfig, OptimizerKind, Precision, Recompute, Schedule};
pub use corpus::{Data, Part, Phase};
pub use data::{PrepareOptions, Prepared, TokenFile, prepare};
pub use design::ModelConfig;
pub use lora::LoraConfig;
pub use merge::merge;
pub use quickstart::{Report, quickstart};
pub use run::{Event, Summary, train};
pub use source::Source;
pub use trainer::{Evaluation, StepReport, Trainer};
