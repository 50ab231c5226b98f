//! What sessions would take of memory, told before they are made.

use super::{Session, SessionOptions};
use crate::error::Result;
use crate::kv::{KvOptions, KvPool};
use crate::mmap::machine_memory;
use crate::model::Model;
use crate::model::forward::Scratch;

/// What sessions of a model take of memory: bytes, unless said otherwise.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemoryPlan {
    /// The model's file, where it is mapped: shared with other processes, and the system may take it back.
    pub weights_mapped: u64,
    /// The model's file, where it was copied.
    pub weights_copied: u64,
    /// Tokens of each session.
    pub tokens: u64,
    /// Keys and values of a page, all layers, divided by its tokens and rounded up.
    pub kv_per_token: u64,
    /// Pages of all sessions, nothing shared: of layers with a window those that a prefill's chunk sees and fills and those
    /// that a call may go back to, and with an [`super::Overflow`] as many again, which are there while tokens go.
    pub kv_total: u64,
    /// Activations and logits of all sessions.
    pub scratch: u64,
    /// Most that is allocated: copied weights, pages and scratch.
    pub peak: u64,
    /// What `largest_context` was reckoned against: the limit asked for, else the runtime's, else the machine's memory
    /// without mapped weights (2⁶⁴ − 1 where the system does not tell).
    pub limit: u64,
    /// Tokens that each of the sessions can have within `limit`; 0 if none. The model may be trained for fewer.
    pub largest_context: u64,
}

impl MemoryPlan {
    /// The plan of `sessions` sessions with `options`, all full, in a pool with `kv` (whose budget does not count). The
    /// limit is in bytes; `None`: the runtime's.
    ///
    /// # Errors
    /// `INVALID_ARG`, `UNSUPPORTED` for options that no session or pool could be made with.
    pub fn new(
        model: &Model,
        kv: &KvOptions,
        options: &SessionOptions,
        sessions: u64,
        limit: Option<u64>,
    ) -> Result<Self> {
        let tokens = Session::check_options(model, options)? as u64;
        let shape = KvPool::shape(model, kv)?;
        let (file, copied) = (model.file_index().file_len(), model.is_copied());
        let (weights_mapped, weights_copied) = if copied { (0, file) } else { (file, 0) };
        let row = (shape.groups() as u64).saturating_mul(shape.bytes as u64);
        let bytes =
            |tokens: usize| (shape.most(tokens, options.chunk) as u64).saturating_mul(shape.bytes as u64);
        // Where tokens go to make room, the old pages stay until those behind them have new ones.
        let pages = |tokens: u64| {
            let tokens = tokens as usize; // at most `Session::most_tokens`
            bytes(tokens).saturating_add(bytes(options.overflow.beside(tokens)))
        };
        let scratch = |tokens: u64| {
            // Logits are there twice: as computed, and as kept.
            let rows = (options.chunk as u64).min(tokens).max(1);
            let kept = u64::from(model.spec().vocab) * 4;
            Scratch::bytes(model.spec(), rows, 1).saturating_add(kept)
        };
        let all = |tokens: u64| sessions.saturating_mul(pages(tokens).saturating_add(scratch(tokens)));
        let fits = |tokens: u64, limit: u64| weights_copied.saturating_add(all(tokens)) <= limit;
        let limit = limit.or(model.runtime().host_limit()).unwrap_or_else(|| match machine_memory() {
            (0, _) => u64::MAX,
            (bytes, _) => bytes.saturating_sub(weights_mapped),
        });
        let (mut largest, mut beyond) = (0, Session::most_tokens(model) as u64 + 1);
        while beyond - largest > 1 {
            let middle = largest + (beyond - largest) / 2;
            if fits(middle, limit) {
                largest = middle;
            } else {
                beyond = middle;
            }
        }
        Ok(Self {
            weights_mapped,
            weights_copied,
            tokens,
            kv_per_token: row.div_ceil(shape.tokens as u64),
            kv_total: sessions.saturating_mul(pages(tokens)),
            scratch: sessions.saturating_mul(scratch(tokens)),
            peak: weights_copied.saturating_add(all(tokens)),
            limit,
            largest_context: largest,
        })
    }
}
