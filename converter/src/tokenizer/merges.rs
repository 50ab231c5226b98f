//! Which merges a vocabulary really uses.
//!
//! A pair of tokens can only ever merge if encoding the bytes of the merged token by itself ends with that very
//! pair: whatever happens inside a stretch of text before it becomes one token is independent of the text around it.
//! So one merge per token is enough, and a vocabulary without a list of merges (tiktoken, SentencePiece) gets its
//! list from the ranks of its tokens.

use llm_format::tokens::Merge;

/// Tokens of more symbols are not looked at: nothing published comes near, and the work grows with the square.
pub(crate) const LONGEST: usize = 1024;

/// A symbol: its id and the bytes of the token it covers.
#[derive(Clone, Copy)]
pub(crate) struct Symbol {
    pub id: u32,
    pub start: usize,
    pub end: usize,
}

/// Merges `symbols` by the lowest rank, leftmost first. What remains, and the last merge.
pub(crate) fn merge(
    mut symbols: Vec<Symbol>,
    pair: impl Fn(Symbol, Symbol) -> Option<(u32, u32)>,
) -> (Vec<Symbol>, Option<Merge>) {
    let mut pairs: Vec<Option<(u32, u32)>> = symbols.windows(2).map(|w| pair(w[0], w[1])).collect();
    let mut last = None;
    loop {
        let lowest = pairs.iter().enumerate().filter_map(|(at, p)| p.map(|p| (p.0, at, p.1))).min();
        let Some((rank, at, merged)) = lowest else { return (symbols, last) };
        last = Some(Merge { left: symbols[at].id, right: symbols[at + 1].id, rank, merged });
        symbols[at] = Symbol { id: merged, start: symbols[at].start, end: symbols[at + 1].end };
        symbols.remove(at + 1);
        pairs.remove(at);
        if at < pairs.len() {
            pairs[at] = pair(symbols[at], symbols[at + 1]);
        }
        if at > 0 {
            pairs[at - 1] = pair(symbols[at - 1], symbols[at]);
        }
    }
}

/// What a token's own text encodes to.
pub(crate) enum Whole {
    /// To itself, by this merge; without one it is a symbol.
    Yes(Option<Merge>),
    /// To something else.
    No,
}

/// Encodes the text of token `id`.
pub(crate) fn whole(
    id: u32,
    symbols: Vec<Symbol>,
    pair: impl Fn(Symbol, Symbol) -> Option<(u32, u32)>,
) -> Whole {
    if symbols.len() > LONGEST {
        return Whole::No;
    }
    let (rest, last) = merge(symbols, pair);
    if rest.len() == 1 && rest[0].id == id { Whole::Yes(last) } else { Whole::No }
}
