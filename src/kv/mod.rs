//! The KV cache: what attention remembers of sequences, in pages of 16, 32 or 64 tokens.
//!
//! ```text
//! page = [layer 0: keys, values][layer 1: ..]..       one page holds all layers of its tokens
//! table of a sequence = [page of tokens 0..64, page of 64..128, ..]
//!
//! pool: what hosts see ─▶ pages: who has which ─▶ store: bytes
//!                            └─▶ prefix: what can be found again      swap: what is out
//! ```
//! What lies in a layer's part of a page is the kernels' affair (`KvLayout`); which tokens they are is the session's.

pub(crate) mod pages;
mod pool;
mod prefix;
pub(crate) mod shift;
pub(crate) mod store;
mod swap;
#[cfg(test)]
mod tests;
mod turns;

use llm_kernels::{KeyType, KvLayout, ValueType};

use crate::error::{Error, Result, Status};
use crate::model::spec::{Attention, Spec};

pub use pool::KvPool;
pub(crate) use prefix::Root;
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
    /// Bytes of a page, all layers.
    pub page_bytes: u64,
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

/// Where each layer's keys and values lie in a page.
#[derive(Clone, Debug)]
pub(crate) struct PageShape {
    /// Per layer: shape, and byte offset in a page.
    pub(crate) layers: Vec<(KvLayout, usize)>,
    /// Tokens of a page.
    pub(crate) tokens: usize,
    /// Bytes of a page, all layers.
    pub(crate) bytes: usize,
}

impl PageShape {
    /// The page of a model of `spec`.
    ///
    /// # Errors
    /// `INVALID_ARG` for a page size other than 16, 32, 64; `UNSUPPORTED` for heads that attention cannot take.
    pub(crate) fn new(spec: &Spec, kv: KvType, tokens: usize) -> Result<Self> {
        if !matches!(tokens, 16 | 32 | 64) {
            let message = format!("a KV page holds 16, 32 or 64 tokens, not {tokens}");
            return Err(Error::new(Status::INVALID_ARG, message));
        }
        let (mut layers, mut bytes) = (Vec::with_capacity(spec.layers.len()), 0usize);
        for (i, layer) in spec.layers.iter().enumerate() {
            let layout = layout(&layer.attention, kv, tokens);
            if !layout.is_valid() {
                let message = format!(
                    "layer {i}: attention over keys of {} and values of {} is not supported; the widest head is {}",
                    layout.key_dim,
                    layout.value_dim,
                    KvLayout::MAX_DIM
                );
                return Err(Error::new(Status::UNSUPPORTED, message));
            }
            layers.push((layout, bytes));
            // At most 2^12 layers of 2^14 heads of 64 tokens of 8 KiB each: fits 64 bits.
            bytes += layout.page_bytes();
        }
        Ok(Self { layers, tokens, bytes })
    }
}

fn layout(attention: &Attention, kv: KvType, page_tokens: usize) -> KvLayout {
    let (key, value) = match kv {
        KvType::F32 => (KeyType::F32, ValueType::F32),
        KvType::F16 => (KeyType::F16, ValueType::F16),
        KvType::I8 => (KeyType::I8, ValueType::I8),
        KvType::Auto | KvType::I8F16 => (KeyType::I8, ValueType::F16),
    };
    match attention {
        Attention::Heads(h) => KvLayout {
            key,
            value,
            page_tokens,
            kv_heads: h.kv_heads as usize,
            key_dim: h.head_dim as usize,
            value_dim: h.head_dim as usize,
            latent: false,
        },
        Attention::Latent(a) => KvLayout {
            // One vector is key and value, so it takes the value's type where the two differ.
            key: if key == KeyType::I8 && value == ValueType::F16 { KeyType::F16 } else { key },
            value,
            page_tokens,
            kv_heads: 1,
            key_dim: (a.kv_rank + a.rope_dim) as usize,
            value_dim: a.kv_rank as usize,
            latent: true,
        },
    }
}
