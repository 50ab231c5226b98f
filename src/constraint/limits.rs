//! What compiling and following a constraint may cost.

/// Bounds on constraints. Work is counted by the engine, not by the clock, so the same text meets the same bound on
/// every machine; the times are of a machine of 2023.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of schema, pattern or grammar.
    pub text_bytes: usize,
    /// How deep schemas, and brackets of grammars, may nest.
    pub depth: usize,
    /// Symbols of the compiled grammar.
    pub grammar_size: usize,
    /// Work of compiling the lexer; about 50,000 a millisecond.
    pub compile_work: u64,
    /// Work of the lexer for one token; about 14,000 a millisecond.
    pub step_work: u64,
    /// States of the lexer, one to two kilobytes each.
    pub lexer_states: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            text_bytes: 256 << 10,
            depth: 100,
            grammar_size: 500_000,
            compile_work: 1_000_000,
            step_work: 2_000_000,
            lexer_states: 250_000,
        }
    }
}
