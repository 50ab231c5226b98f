//! Checkpoints to .llm files.

pub mod tokenizer;
