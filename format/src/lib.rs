//! The .llm file.

pub mod tokens;
