//! Tokenizer files to tables.
