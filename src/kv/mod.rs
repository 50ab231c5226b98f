//! The KV cache: what attention remembers of a sequence, in pages of 16, 32 or 64 tokens.
//!
//! ```text
//! page = [layer 0: keys, values][layer 1: ..]..       one page holds all layers of its tokens
//! table of a sequence = [page of tokens 0..64, page of 64..128, ..]
//! ```
//! `pool` owns the memory, `table` says which pages a sequence has. What lies in a layer's part of a page is the
//! kernels' affair (`KvLayout`); which tokens they are is the session's.

pub(crate) mod pool;
pub(crate) mod table;

use llm_kernels::{KeyType, KvLayout, ValueType};

use crate::error::{Error, Result, Status};
use crate::model::spec::{Attention, Spec};

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
