//! Tokenizer tables.
