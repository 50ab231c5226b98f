//! The verbs, a file each.

pub mod bench;
pub mod chat;
pub mod convert;
pub mod create_config;
pub mod data;
pub mod embed;
pub mod generate;
pub mod importance;
pub mod inspect;
pub mod logits;
pub mod merge;
pub mod perplexity;
pub mod quickstart;
pub mod sample;
pub mod score;
pub mod several;
pub mod tokenize;
pub mod tokenizer;
pub mod train;
pub mod verify;
