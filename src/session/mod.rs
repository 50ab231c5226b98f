//! A session: one sequence of tokens over the KV cache, prefilled in chunks and decoded one by one.

pub mod generate;
