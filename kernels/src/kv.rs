//! The bytes of a KV page: where a layer's keys and values lie.
//!
//! ```text
//! layer's part of a page, for each kv head:
//!   keys        [page][key_dim padded to 16]; int8: [page/16][key_dim padded to 16 / 4][16 tokens][4 dimensions]
//!   key scales  [page] f16            (int8 keys)
//!   values      [page][value_dim padded to 16]      (none when latent)
//!   value scales [page] f16           (int8 values)
//! each section at a multiple of 64 bytes
//! ```
//! So a line of int8 keys is four dimensions of sixteen tokens, which is what the integer dot products of every
//! machine take, without transposing.
//!
//! In the latent form (multi-head latent attention) a token is one vector: all of it is the key, and its first
//! `value_dim` values are the value. This file does not know which page belongs to whom.

/// Storage of keys.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum KeyType {
    /// As computed.
    F32,
    /// Rounded to half precision.
    F16,
    /// int8 with one f16 scale per (token, head).
    I8,
}

/// Storage of values.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum ValueType {
    /// As computed.
    F32,
    /// Rounded to half precision.
    F16,
    /// int8 with one f16 scale per (token, head).
    I8,
}

/// Shape of one layer's part of a page.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub struct KvLayout {
    /// Storage of keys.
    pub key: KeyType,
    /// Storage of values; not looked at when `latent`.
    pub value: ValueType,
    /// Tokens of a page: 16, 32 or 64.
    pub page_tokens: usize,
    /// Key-value heads.
    pub kv_heads: usize,
    /// Width of a key, at most [`KvLayout::MAX_DIM`].
    pub key_dim: usize,
    /// Width of a value, at most [`KvLayout::MAX_DIM`].
    pub value_dim: usize,
    /// Values are the first `value_dim` values of the keys.
    pub latent: bool,
}

impl KvLayout {
    /// The widest head that attention takes.
    pub const MAX_DIM: usize = 1024;

    /// Bytes of one layer's part of a page, a multiple of 64.
    pub fn page_bytes(&self) -> usize {
        self.kv_heads * self.head_bytes()
    }

    /// Whether attention can run over this shape.
    pub fn is_valid(&self) -> bool {
        matches!(self.page_tokens, 16 | 32 | 64)
            && self.kv_heads > 0
            && (1..=Self::MAX_DIM).contains(&self.key_dim)
            && (1..=Self::MAX_DIM).contains(&self.value_dim)
            && (!self.latent || self.value_dim <= self.key_dim)
    }

    pub(crate) fn key_width(&self) -> usize {
        self.key_dim.next_multiple_of(16)
    }

    pub(crate) fn value_width(&self) -> usize {
        self.value_dim.next_multiple_of(16)
    }

    /// Bytes of one key.
    pub(crate) fn key_bytes(&self) -> usize {
        self.key_width()
            * match self.key {
                KeyType::F32 => 4,
                KeyType::F16 => 2,
                KeyType::I8 => 1,
            }
    }

    /// Bytes of one value.
    pub(crate) fn value_bytes(&self) -> usize {
        self.value_width()
            * match self.value {
                ValueType::F32 => 4,
                ValueType::F16 => 2,
                ValueType::I8 => 1,
            }
    }

    fn scales(&self) -> usize {
        (self.page_tokens * 2).next_multiple_of(64)
    }

    /// Where the int8 key in `slot` has its dimensions 4d..4d + 4.
    pub(crate) fn key_four_at(&self, slot: usize, d: usize) -> usize {
        slot / 16 * 16 * self.key_width() + d * 64 + slot % 16 * 4
    }

    pub(crate) fn key_scales_at(&self) -> usize {
        (self.page_tokens * self.key_bytes()).next_multiple_of(64)
    }

    pub(crate) fn values_at(&self) -> usize {
        self.key_scales_at() + if self.key == KeyType::I8 { self.scales() } else { 0 }
    }

    pub(crate) fn value_scales_at(&self) -> usize {
        self.values_at() + (self.page_tokens * self.value_bytes()).next_multiple_of(64)
    }

    pub(crate) fn head_bytes(&self) -> usize {
        if self.latent {
            self.values_at()
        } else {
            self.value_scales_at() + if self.value == ValueType::I8 { self.scales() } else { 0 }
        }
    }
}
