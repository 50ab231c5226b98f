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

    /// Writes zeros over all that does not belong to the first `tokens` tokens in this layer's part of a page, gaps
    /// between sections included.
    ///
    /// # Panics
    /// If `part` is not [`KvLayout::page_bytes`] long.
    pub fn clear_after(&self, part: &mut [u8], tokens: usize) {
        assert_eq!(part.len(), self.page_bytes(), "a layer's part of a page");
        let scale = |there: bool| if there { 2 } else { 0 };
        let mut sections =
            vec![(0, self.key_bytes()), (self.key_scales_at(), scale(self.key == KeyType::I8))];
        if !self.latent {
            sections.push((self.values_at(), self.value_bytes()));
            sections.push((self.value_scales_at(), scale(self.value == ValueType::I8)));
        }
        for head in part.chunks_exact_mut(self.head_bytes()) {
            let mut from = 0;
            for &(at, bytes) in &sections {
                if bytes > 0 {
                    head[from..at].fill(0);
                    from = at + tokens.min(self.page_tokens) * bytes;
                    if at == 0
                        && self.key == KeyType::I8
                        && !tokens.is_multiple_of(16)
                        && from < self.page_tokens * bytes
                    {
                        // Sixteen keys lie together: their lines stay, without the other tokens' places in them.
                        let sixteen = tokens / 16 * 16 * bytes;
                        from = sixteen + 16 * bytes;
                        for line in head[sixteen..from].chunks_exact_mut(64) {
                            line[tokens % 16 * 4..].fill(0);
                        }
                    }
                }
            }
            head[from..].fill(0);
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_tokens_have_stays_and_all_else_is_cleared() {
        for (key, value, latent) in [
            (KeyType::I8, ValueType::F16, false),
            (KeyType::I8, ValueType::I8, false),
            (KeyType::F32, ValueType::F32, false),
            (KeyType::F16, ValueType::F16, true),
            (KeyType::I8, ValueType::I8, true),
        ] {
            let l = KvLayout { key, value, page_tokens: 16, kv_heads: 3, key_dim: 24, value_dim: 20, latent };
            for tokens in [0, 1, 7, 16] {
                let mut part = vec![1; l.page_bytes()];
                l.clear_after(&mut part, tokens);
                let mut of_token = l.key_bytes() + if key == KeyType::I8 { 2 } else { 0 };
                if !latent {
                    of_token += l.value_bytes() + if value == ValueType::I8 { 2 } else { 0 };
                }
                assert_eq!(part.iter().filter(|b| **b == 1).count(), 3 * tokens * of_token, "{l:?} {tokens}");
                let first = |at: usize| part[at] == u8::from(tokens > 0);
                assert!(first(0) && (latent || first(l.values_at())));
                for slot in 0..if key == KeyType::I8 { 16 } else { 0 } {
                    let four = &part[l.key_four_at(slot, 5)..][..4];
                    assert_eq!(four, [u8::from(slot < tokens); 4], "{l:?} {tokens} {slot}");
                }
            }
        }
    }
}
