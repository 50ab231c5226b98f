//! The KV cache: what attention remembers of sequences, in pages of 16, 32 or 64 tokens.
//!
//! ```text
//! page = [layer 0: keys, values][layer 1: ..]..       one page holds all layers of its tokens that see equally far
//! table of a sequence = [page of tokens 0..64, page of 64..128, ..]     one for each such group of layers; of those
//!                                                                       with a window the first pages are let go
//!
//! pool: what hosts see ─▶ pages: who has which ─▶ store: bytes
//!                            └─ found ─▶ prefix: what can be found again      swap: what is out
//! ```
//! What lies in a layer's part of a page is the kernels' affair (`KvLayout`); which tokens they are is the session's.

mod found;
pub(crate) mod pages;
mod pool;
mod prefix;
pub(crate) mod shape;
pub(crate) mod shift;
pub(crate) mod store;
mod swap;
#[cfg(test)]
mod tests;
mod turns;

use crate::model::spec::{Attention, Spec};

pub use pool::KvPool;
pub(crate) use prefix::Root;
pub(crate) use shape::PageShape;
pub(crate) use turns::Turn;

/// Keys narrower than this are not worth eight bits: the scale eats what they save, and a score has few errors to
/// average. On stories260K, whose heads are 8 wide, int8 keys alone cost a mean KL divergence of 2.7e-3 nats, f16
/// keys 2e-6.
const NARROW_HEAD: u32 = 32;

/// How keys and values are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum KvType {
    /// f32 for a model whose matrices are all f32, f16 for one with heads narrower than 32, else
    /// [`KvType::I8F16`].
    #[default]
    Auto,
    /// As computed.
    F32,
    /// Both in half precision.
    F16,
    /// Keys int8 with one scale per (token, head), values in half precision.
    I8F16,
    /// Both int8.
    I8,
}

impl KvType {
    /// The type's name on a command line.
    pub fn name(self) -> &'static str {
        match self {
            KvType::Auto => "auto",
            KvType::F32 => "f32",
            KvType::F16 => "f16",
            KvType::I8F16 => "i8f16",
            KvType::I8 => "i8",
        }
    }

    /// The type of that name.
    pub fn parse(name: &str) -> Option<Self> {
        [KvType::Auto, KvType::F32, KvType::F16, KvType::I8F16, KvType::I8]
            .into_iter()
            .find(|t| t.name() == name)
    }

    /// What it stands for in a model of `spec`, whose matrices may all be f32.
    pub(crate) fn resolve(self, spec: &Spec, all_f32: bool) -> Self {
        let narrow = spec.layers.iter().any(|layer| match &layer.attention {
            Attention::Heads(h) => h.head_dim < NARROW_HEAD,
            Attention::Latent(_) => false,
        });
        match self {
            KvType::Auto if all_f32 => KvType::F32,
            KvType::Auto if narrow => KvType::F16,
            KvType::Auto => KvType::I8F16,
            other => other,
        }
    }
}

/// Which cached pages go when no page is free.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Eviction {
    /// None by itself; only [`KvPool::evict`] and [`KvPool::clear_cache`] free them.
    None,
    /// Those that were not used for longest.
    #[default]
    LeastRecent,
    /// Those of sessions of the lowest priority; among equals those that were not used for longest.
    Priority,
}

/// What a pool shall be.
#[derive(Clone, Debug)]
pub struct KvOptions {
    /// Bytes its pages may take; 0: room for one sequence of the model's trained length.
    pub budget_bytes: u64,
    /// Tokens of a page: 16, 32 or 64.
    pub page: usize,
    /// Storage of keys and values.
    pub kv: KvType,
    /// What goes when no page is free.
    pub eviction: Eviction,
    /// Whether full pages are kept and found again by what they hold.
    pub prefix_cache: bool,
    /// Bytes beside the pool that swapped sessions may take.
    pub swap_bytes: u64,
}

impl Default for KvOptions {
    fn default() -> Self {
        Self {
            budget_bytes: 0,
            page: 64,
            kv: KvType::Auto,
            eviction: Eviction::LeastRecent,
            prefix_cache: true,
            swap_bytes: 0,
        }
    }
}

/// A pool's numbers at one moment. Pages unless said otherwise; `used + cached + free = total`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KvStats {
    /// Tokens of a page.
    pub page_tokens: u64,
    /// Bytes of a page.
    pub page_bytes: u64,
    /// Pages that the layers of one page's tokens take: 1, or where layers see differently far one for each group.
    pub groups: u64,
    /// All pages.
    pub total: u64,
    /// Pages that sessions hold.
    pub used: u64,
    /// Pages that no session holds and that can be found again.
    pub cached: u64,
    /// The others.
    pub free: u64,
    /// Of the used, those that more than one session holds.
    pub shared: u64,
    /// Of the used and cached, those that are pinned.
    pub pinned: u64,
    /// The most free pages in a row.
    pub longest_free_run: u64,
    /// Bytes of pages that were ever written and not given back to the system.
    pub committed_bytes: u64,
    /// Bytes that swapped sessions take.
    pub swapped_bytes: u64,
    /// Tokens that were found in the cache instead of computed, since the start.
    pub hit_tokens: u64,
    /// Cached pages that went to make room, since the start.
    pub evictions: u64,
    /// Pages copied because a session wrote into one it shared, since the start.
    pub copies: u64,
}
