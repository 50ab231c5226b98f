//! What a session is asked to be, and how a long call is followed.

use llm_kernels::Level;

use super::Overflow;
use crate::kv::KvType;

/// What a session shall be.
#[derive(Clone, Debug)]
pub struct SessionOptions {
    /// Tokens it can hold; 0: as many as the model was trained for.
    pub max_tokens: usize,
    /// Tokens that a prefill computes at once.
    pub chunk: usize,
    /// Storage of keys and values in a pool of its own; a shared pool has its own.
    pub kv: KvType,
    /// Tokens of a KV page, 16, 32 or 64, in a pool of its own.
    pub page: usize,
    /// Pages it leaves in a shared pool are evicted after those of lower priority, where the pool goes by priority.
    pub priority: i32,
    /// How far results agree.
    pub determinism: Level,
    /// Whether a cancelled call leaves the session where it stood before it (else at the last completed chunk).
    pub rollback_on_cancel: bool,
    /// What happens when tokens do not fit behind those it holds.
    pub overflow: Overflow,
    /// Length of the whole sequence as dynamic and longrope scaling need it; `None`: what the session can hold.
    pub rope_length: Option<u32>,
    /// Dynamic and longrope scaling follow the length that is reached with each call, and keys stay as they were
    /// rotated then. Results then depend on how tokens are divided into calls.
    pub rope_running: bool,
}

impl Default for SessionOptions {
    fn default() -> Self {
        Self {
            max_tokens: 0,
            chunk: 512,
            kv: KvType::Auto,
            page: 64,
            priority: 0,
            determinism: Level::default(),
            rollback_on_cancel: true,
            overflow: Overflow::Error,
            rope_length: None,
            rope_running: false,
        }
    }
}

/// How far a prefill is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Tokens of this call that are held, the reused among them.
    pub done: usize,
    /// Tokens of this call that were found in the pool.
    pub reused: usize,
    /// Tokens of this call.
    pub total: usize,
}

/// What a progress function wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Control {
    /// Go on.
    Continue,
    /// End here and keep what was computed; the call succeeds.
    Stop,
    /// End like a cancel handle.
    Cancel,
}

/// Told about every chunk.
pub type OnProgress<'a> = &'a mut dyn FnMut(Progress) -> Control;
