//! A session: one sequence of tokens over the KV cache, prefilled in chunks and decoded one by one.
//!
//! ```text
//! prefill [chunk][chunk][rest] → logits of the last token      decode (one token) → its logits
//! tokens  ─────────────────────   what the pages hold, and nothing else
//! ```
//! A call that fails leaves the session as it was: pages behind the old end hold nothing that anybody reads, so it is
//! enough to forget the tokens. Chunks, threads and page sizes do not change a bit of what is computed, and neither
//! does where a page came from: computed, shared by a fork, found in the pool, or brought back. It does not know text
//! or sampling. `prefill` runs tokens, `batch` those of several sessions at once, `schedule` decides when, `share` is
//! what a session does with its pool, `verify` a step that may be taken back in part, `outputs` is what tokens leave
//! behind other than the last one's logits.

mod adapters;
pub mod batch;
mod embed;
pub mod generate;
mod hidden;
mod options;
mod outputs;
mod overflow;
mod plan;
mod prefill;
pub mod schedule;
mod score;
pub mod several;
mod share;
pub mod snapshot;
pub mod speculative;
mod stats;
mod verify;

use std::sync::Arc;

use llm_kernels::FloatControl;

use crate::adapter::Use;
use crate::cancel::Cancel;
use crate::error::{Error, Result, Status};
use crate::kv::pages::{Pages, TableId};
use crate::kv::{Eviction, KvOptions, KvPool, Root};
use crate::model::Model;
use crate::model::forward::Scratch;
use crate::model::rope::Frequencies;
use crate::runtime::{Charge, Memory};

pub use embed::Pooling;
pub use llm_kernels::Level;
pub use options::{Control, OnProgress, Progress, SessionOptions};
pub use outputs::{Asked, OnOutput, Output};
pub use overflow::Overflow;
pub use plan::MemoryPlan;
pub use score::Scores;
pub use stats::SessionStats;

/// Rows whose logits are computed at once where all are asked for: bounds the memory that a large vocabulary takes.
const LOGIT_ROWS: usize = 16;
/// The most tokens a session may hold: positions and page numbers stay far from 2³².
const MOST_TOKENS: usize = 1 << 30;

/// Told the index of a token and the logits behind it.
pub type OnLogits<'a> = &'a mut dyn FnMut(usize, &[f32]) -> Result<()>;

/// One sequence of tokens with its keys and values.
pub struct Session {
    model: Model,
    options: SessionOptions,
    capacity: usize,
    pool: KvPool,
    table: TableId,
    tokens: Vec<i32>,
    /// Tokens, the last ones, whose pages are gone: they run again before anything else does.
    missing: usize,
    /// Tokens that went because of [`Overflow`].
    dropped: usize,
    /// Keys of tokens from here on were moved, not computed, where any were.
    moved_from: Option<usize>,
    /// Tokens there are pages for whatever happens, 0 for none but those held.
    reserved: usize,
    /// What the pool finds its pages under, unless they are nobody else's.
    root: Option<Root>,
    adapters: Arc<[Use]>,
    ropes: Vec<Frequencies>,
    scratch: Scratch,
    charge: Charge,
    /// The chunk's ids as the device takes them.
    ids: Vec<u32>,
    logits: Vec<f32>,
    /// How many tokens the logits are behind of.
    logits_at: Option<usize>,
    counters: stats::Counters,
    /// Hidden vectors of the last tokens, where somebody wants them.
    hidden: Option<hidden::Hidden>,
    /// Rows of logits in the scratch that a verification left there.
    verified: usize,
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Session({} of {} tokens, {:?})", self.tokens.len(), self.capacity, self.model)
    }
}

impl Session {
    /// An empty session with pages of its own.
    ///
    /// # Errors
    /// `INVALID_ARG` for options that make no sense or exceed learned positions, `NO_MEMORY`, `BUDGET`.
    pub fn new(model: &Model, options: SessionOptions) -> Result<Self> {
        whole(model)?;
        Self::alone(model, options)
    }

    /// Also of a head, which reads in its own way ([`Session::read_joined`]).
    pub(crate) fn alone(model: &Model, options: SessionOptions) -> Result<Self> {
        let capacity = Self::check_options(model, &options)?;
        let kv = KvOptions {
            page: options.page,
            kv: options.kv,
            eviction: Eviction::None,
            prefix_cache: false,
            ..KvOptions::default()
        };
        let beside = options.overflow.beside(capacity);
        Self::make(KvPool::private(model, &kv, capacity, beside)?, options, capacity)
    }

    /// An empty session of the pool's model with pages of the pool.
    ///
    /// # Errors
    /// As [`Session::new`].
    pub fn in_pool(pool: &KvPool, options: SessionOptions) -> Result<Self> {
        whole(pool.model())?;
        let capacity = Self::check_options(pool.model(), &options)?;
        Self::make(pool.clone(), options, capacity)
    }

    /// The most tokens that a session of the model can be made for.
    fn most_tokens(model: &Model) -> usize {
        model.spec().learned_positions.map_or(MOST_TOKENS, |n| n as usize)
    }

    /// Returns how many tokens it shall hold.
    fn check_options(model: &Model, options: &SessionOptions) -> Result<usize> {
        let spec = model.spec();
        let capacity = if options.max_tokens == 0 { spec.context as usize } else { options.max_tokens };
        let most = Self::most_tokens(model);
        if capacity > most {
            let message =
                format!("max_tokens is {capacity}; this model has positions for at most {most} tokens");
            return Err(Error::new(Status::INVALID_ARG, message));
        }
        if options.chunk == 0 {
            return Err(Error::new(
                Status::INVALID_ARG,
                "chunk is 0; a prefill computes at least 1 token at once",
            ));
        }
        options.overflow.check(spec, capacity, options.rope_running)?;
        Ok(capacity)
    }

    fn make(pool: KvPool, options: SessionOptions, capacity: usize) -> Result<Self> {
        let model = pool.model().clone();
        let spec = model.spec();
        let length = options.rope_length.unwrap_or(capacity as u32);
        let _float = FloatControl::default_for_now();
        let ropes = spec.ropes.iter().map(|rope| Frequencies::new(rope, length)).collect();
        let varies = spec.ropes.iter().any(Frequencies::vary);
        let root =
            Root { rope: if varies { length } else { 0 }, level: options.determinism, adapters: [0; 32] };
        // Keys that follow a running length are nobody else's.
        let root = Some(root).filter(|_| !(varies && options.rope_running));
        let charge = model.runtime().charge(Memory::Scratch, 0)?;
        let table = pool.lock().open(root, options.priority);
        Self::with_table(pool, table, charge, options, capacity, (root, ropes))
    }

    /// An empty session over `table`, which is the session's from now on.
    fn with_table(
        pool: KvPool,
        table: TableId,
        charge: Charge,
        options: SessionOptions,
        capacity: usize,
        (root, ropes): (Option<Root>, Vec<Frequencies>),
    ) -> Result<Self> {
        // Made first, so that it gives the table back wherever the rest fails.
        let mut session = Self {
            model: pool.model().clone(),
            charge,
            options,
            capacity,
            pool,
            table,
            tokens: Vec::new(),
            missing: 0,
            dropped: 0,
            moved_from: None,
            reserved: 0,
            root,
            adapters: Arc::new([]),
            ropes,
            scratch: Scratch::default(),
            ids: Vec::new(),
            logits: Vec::new(),
            logits_at: None,
            counters: stats::Counters::default(),
            hidden: None,
            verified: 0,
        };
        let spec = session.model.spec();
        let charge = &mut session.charge;
        session.scratch.room_for_logits(spec, 1, charge)?;
        charge.grow(u64::from(spec.vocab) * 4)?;
        let refused = |_| Error::new(Status::NO_MEMORY, "no memory for the logits");
        session.logits.try_reserve_exact(spec.vocab as usize).map_err(refused)?;
        session.logits.resize(spec.vocab as usize, 0.0);
        Ok(session)
    }

    /// The model.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// Tokens it holds.
    pub fn len(&self) -> usize {
        self.tokens.len()
    }

    /// Whether it holds none.
    pub fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }

    /// The tokens it holds.
    pub fn tokens(&self) -> &[i32] {
        &self.tokens
    }

    /// Tokens that went because of [`Overflow`] since it was empty. The last token held is the
    /// `dropped() + len()`-th of all.
    pub fn dropped(&self) -> usize {
        self.dropped
    }

    /// Tokens it can hold.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Logits behind the last token, `[vocab]`.
    ///
    /// # Errors
    /// `BAD_STATE` while it is empty, and until the next token after [`Session::truncate`], after
    /// [`Session::reuse`], after [`Session::embed`] and after a batch step that asked for none.
    pub fn logits(&self) -> Result<&[f32]> {
        if self.logits_at == Some(self.tokens.len()) {
            return Ok(&self.logits);
        }
        let message = if self.tokens.is_empty() {
            "an empty session has no logits: prefill first"
        } else {
            "there are no logits of the last token: decode a token first"
        };
        Err(Error::new(Status::BAD_STATE, message))
    }

    /// Keeps the first `tokens` tokens. What follows is computed as if the others had never been there. Layers with a
    /// window have let go of what they no longer see: after a step further back than the window, the tokens kept run
    /// through the model again with the next call, as far as the pool does not find them.
    ///
    /// # Errors
    /// `INVALID_ARG` if it holds fewer.
    pub fn truncate(&mut self, tokens: usize) -> Result<()> {
        if tokens > self.tokens.len() {
            let message = format!("cannot keep {tokens} tokens: the session holds {}", self.tokens.len());
            return Err(Error::new(Status::INVALID_ARG, message));
        }
        self.reserved = 0;
        if tokens < self.tokens.len() {
            self.logits_at = None;
        }
        let held = self.tokens.len() - self.missing;
        let mut covered = held;
        if tokens <= held {
            covered = self.pool.lock().truncate(self.table, tokens, 0);
        }
        self.keep_tokens(tokens);
        self.missing = tokens.saturating_sub(covered);
        if self.missing > 0 {
            self.moved_from = self.moved_from.filter(|&from| from < covered);
        }
        Ok(())
    }

    /// Empties the session.
    pub fn reset(&mut self) {
        self.logits_at = None;
        self.reserved = 0;
        (self.dropped, self.missing) = (0, 0);
        self.forget(0);
    }

    fn check_ids(&self, ids: &[i32]) -> Result<()> {
        let held = self.tokens.len();
        check_vocab(self.model.spec().vocab, ids)?;
        if ids.len() > self.capacity - held {
            let message = format!(
                "{} tokens more do not fit: the session holds {held} of at most {}; raise max_tokens",
                ids.len(),
                self.capacity
            );
            let needed = held as i64 + ids.len() as i64;
            return Err(Error::new(Status::CONTEXT_FULL, message).with("needed", needed));
        }
        Ok(())
    }

    /// Keeps the first `tokens` tokens and no page that only later ones need, unless it is reserved.
    fn forget(&mut self, tokens: usize) {
        self.keep_tokens(tokens);
        self.pool.truncate_soon(self.table, tokens, self.reserved);
    }

    /// Forgets the tokens whose pages are gone.
    fn forget_missing(&mut self) {
        let computed = self.tokens.len() - std::mem::take(&mut self.missing);
        self.logits_at = None;
        self.forget(computed);
    }

    /// Takes tokens back that it held once and whose pages are gone: they run again before anything else does.
    fn miss(&mut self, ids: &[i32]) {
        if !ids.is_empty() {
            (self.logits_at, self.verified) = (None, 0);
            self.tokens.extend_from_slice(ids);
            self.missing += ids.len();
        }
    }

    /// Gives back what is reserved.
    fn unreserve(&mut self) {
        self.reserved = 0;
        self.pool.truncate_soon(self.table, self.tokens.len() - self.missing, 0);
    }

    fn keep_tokens(&mut self, tokens: usize) {
        self.verified = 0;
        self.tokens.truncate(tokens);
        self.moved_from = self.moved_from.filter(|&from| from < tokens);
        self.truncate_hidden();
    }

    fn forget_in(&mut self, pages: &mut Pages, tokens: usize) {
        self.keep_tokens(tokens);
        pages.truncate(self.table, tokens, self.reserved);
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.pool.close_soon(self.table);
    }
}

/// Refuses a head, which cannot run by itself.
fn whole(model: &Model) -> Result<()> {
    if !model.is_head() {
        return Ok(());
    }
    let message =
        "this is a self-drafting head, which has no session of its own: take the model that it belongs to";
    Err(Error::new(Status::UNSUPPORTED, message))
}

/// Refuses ids that a vocabulary of `vocab` has not (detail `token_index`).
fn check_vocab(vocab: u32, ids: &[i32]) -> Result<()> {
    let inside = |id: &i32| u32::try_from(*id).is_ok_and(|id| id < vocab);
    match ids.iter().position(|id| !inside(id)) {
        None => Ok(()),
        Some(index) => {
            let message =
                format!("token {index} is {}; this model has ids from 0 to {}", ids[index], vocab - 1);
            Err(Error::new(Status::INVALID_ARG, message).with("token_index", index as i64))
        }
    }
}

/// Refuses rows of logits or hidden states that are not finite. `position` tells that of a row.
fn check_finite(values: &[f32], width: usize, position: impl Fn(usize) -> usize) -> Result<()> {
    // Without an early end, which would keep it from being done several values at a time.
    let finite = |row: &[f32]| row.iter().fold(true, |all, v| all & v.is_finite());
    match values.chunks_exact(width).position(|row| !finite(row)) {
        None => Ok(()),
        Some(row) => {
            let position = position(row);
            let message = format!(
                "results at position {position} are not finite: these weights do not carry this input; try a file of \
                 a more precise type, or verify the file"
            );
            Err(Error::new(Status::UNSUPPORTED, message).with("position", position as i64))
        }
    }
}

impl generate::Evaluate for Session {
    fn tokens(&self) -> &[i32] {
        self.tokens()
    }

    fn position(&self) -> u64 {
        (self.dropped + self.tokens.len()) as u64
    }

    fn logits(&self) -> Result<&[f32]> {
        self.logits()
    }

    fn decode(&mut self, id: i32, cancel: Option<&Cancel>) -> Result<()> {
        self.decode(id, cancel)
    }

    fn decode_all(&mut self, ids: &[i32], cancel: Option<&Cancel>) -> Result<()> {
        match self.prefill(ids, cancel, None) {
            // As many as there is room for, as if they came one by one.
            Err(e) if e.status() == Status::CONTEXT_FULL => {
                ids.iter().try_for_each(|&id| self.decode(id, cancel))
            }
            done => done.map(drop),
        }
    }

    fn verifiable(&self) -> usize {
        self.verifiable()
    }

    fn keep_hidden(&mut self) {
        self.keep_hidden();
    }

    fn hidden(&self) -> Option<(usize, &[f32])> {
        self.kept_hidden()
    }

    fn verify(&mut self, ids: &[i32], rows: usize, cancel: Option<&Cancel>) -> Result<()> {
        self.verify(ids, rows, cancel)
    }

    fn row(&self, row: usize) -> Result<&[f32]> {
        self.verified_row(row)
    }

    fn keep(&mut self, tokens: usize, logits: Option<&[f32]>) -> Result<()> {
        self.keep(tokens, logits)
    }
}
