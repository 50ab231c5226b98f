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

use std::ops::Range;

use half::f16;

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

    /// Byte ranges, in this layer's part of a page, of all that the token in `slot` has. Every slot has as many of
    /// them, as long, in the same order: copied one by one they carry a token to another slot.
    pub fn token_ranges(&self, slot: usize) -> Vec<Range<usize>> {
        let mut ranges = Vec::new();
        for head in 0..self.kv_heads {
            let base = head * self.head_bytes();
            let mut add = |at: usize, bytes: usize| ranges.push(base + at..base + at + bytes);
            if self.key == KeyType::I8 {
                (0..self.key_width() / 4).for_each(|d| add(self.key_four_at(slot, d), 4));
                add(self.key_scales_at() + slot * 2, 2);
            } else {
                add(slot * self.key_bytes(), self.key_bytes());
            }
            if !self.latent {
                add(self.values_at() + slot * self.value_bytes(), self.value_bytes());
                if self.value == ValueType::I8 {
                    add(self.value_scales_at() + slot * 2, 2);
                }
            }
        }
        ranges
    }

    /// The key of kv head `head` of the token in `slot` of `part`, a layer's part of a page: `key_dim` values as
    /// attention takes them.
    ///
    /// # Panics
    /// If `part`, `head`, `slot` or `key` do not fit the layout.
    pub fn read_key(&self, part: &[u8], head: usize, slot: usize, key: &mut [f32]) {
        assert_eq!(key.len(), self.key_dim, "a key");
        assert!(slot < self.page_tokens, "slot {slot} of {}", self.page_tokens);
        let part = &part[head * self.head_bytes()..][..self.head_bytes()];
        match self.key {
            KeyType::F32 => {
                let stored = part[slot * self.key_bytes()..].as_chunks().0;
                key.iter_mut().zip(stored).for_each(|(k, b)| *k = f32::from_le_bytes(*b));
            }
            KeyType::F16 => {
                let stored = part[slot * self.key_bytes()..].as_chunks().0;
                key.iter_mut().zip(stored).for_each(|(k, b)| *k = f16::from_le_bytes(*b).to_f32());
            }
            KeyType::I8 => {
                let at = self.key_scales_at() + slot * 2;
                let scale = f16::from_le_bytes([part[at], part[at + 1]]).to_f32();
                for (d, key) in key.iter_mut().enumerate() {
                    *key = f32::from(part[self.key_four_at(slot, d / 4) + d % 4] as i8) * scale;
                }
            }
        }
    }

    /// Puts `key`, `key_dim` values, in place of that key, with the bytes that [`crate::Cpu::kv_write`] would write.
    ///
    /// # Panics
    /// If `part`, `head`, `slot` or `key` do not fit the layout.
    pub fn write_key(&self, part: &mut [u8], head: usize, slot: usize, key: &[f32]) {
        assert_eq!(key.len(), self.key_dim, "a key");
        assert!(slot < self.page_tokens, "slot {slot} of {}", self.page_tokens);
        let part = &mut part[head * self.head_bytes()..][..self.head_bytes()];
        match self.key {
            KeyType::F32 => {
                let stored = part[slot * self.key_bytes()..].as_chunks_mut().0;
                key.iter().zip(stored).for_each(|(k, b)| *b = k.to_le_bytes());
            }
            KeyType::F16 => {
                let stored = part[slot * self.key_bytes()..].as_chunks_mut().0;
                key.iter().zip(stored).for_each(|(k, b)| *b = f16::from_f32(*k).to_le_bytes());
            }
            KeyType::I8 => {
                let top = key.iter().fold(0f32, |top, k| top.max(k.abs()));
                let scale = f16::from_f32(top / 127.0);
                let finite = key.iter().all(|k| k.is_finite()) && scale.is_finite();
                let used = scale.to_f32();
                let inverse = if finite && used > 0.0 { 1.0 / used } else { 0.0 };
                let at = self.key_scales_at() + slot * 2;
                part[at..at + 2].copy_from_slice(&(if finite { scale } else { f16::NAN }).to_le_bytes());
                for (d, &key) in key.iter().enumerate() {
                    let value = if finite { (key * inverse).round_ties_even() } else { 0.0 };
                    part[self.key_four_at(slot, d / 4) + d % 4] = value.clamp(-127.0, 127.0) as i8 as u8;
                }
            }
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
    fn a_key_that_is_read_written_and_carried_is_the_one_that_was_stored() {
        let cpu = crate::Cpu::new(1);
        for (key, value, latent) in [
            (KeyType::I8, ValueType::F16, false),
            (KeyType::I8, ValueType::I8, false),
            (KeyType::F32, ValueType::F32, false),
            (KeyType::F16, ValueType::F16, true),
            (KeyType::I8, ValueType::I8, true),
        ] {
            let l = KvLayout { key, value, page_tokens: 32, kv_heads: 3, key_dim: 24, value_dim: 20, latent };
            let count = 5;
            let k: Vec<f32> = (0..count * 3 * 24).map(|i| ((i * 37 % 101) as f32 - 50.0) / 7.0).collect();
            let v = vec![0.5; if latent { 0 } else { count * 3 * 20 }];
            let mut page = vec![0; l.page_bytes()];
            let rows: Vec<_> =
                (0..count).map(|i| crate::Row { table: &[0], position: 7 * i as u32 }).collect();
            cpu.kv_write(&l, &mut page, l.page_bytes(), 0, &rows, &k, &v);
            let (mut again, mut carried) = (vec![0; page.len()], page.clone());
            for (i, row) in rows.iter().enumerate() {
                let (from, to) = (row.position as usize, 31 - i);
                for (from, to) in l.token_ranges(from).into_iter().zip(l.token_ranges(to)) {
                    carried[to].copy_from_slice(&page[from]);
                }
                for head in 0..3 {
                    let (mut read, mut other) = (vec![0.0; 24], vec![0.0; 24]);
                    l.read_key(&page, head, from, &mut read);
                    l.read_key(&carried, head, to, &mut other);
                    let stored = &k[(i * 3 + head) * 24..][..24];
                    let top = stored.iter().fold(0f32, |m, v| m.max(v.abs()));
                    let error = if key == KeyType::I8 { top / 200.0 } else { top / 2000.0 };
                    assert!(read.iter().zip(stored).all(|(a, b)| (a - b).abs() <= error), "{l:?}");
                    assert_eq!(read, other);
                    l.write_key(&mut again, head, from, stored);
                }
                for range in l.token_ranges(from).into_iter().filter(|_| latent) {
                    assert_eq!(page[range.clone()], again[range], "{l:?}");
                }
                for head in 0..3 {
                    let (mut a, mut b) = (vec![0.0; 24], vec![0.0; 24]);
                    l.read_key(&page, head, from, &mut a);
                    l.read_key(&again, head, from, &mut b);
                    assert_eq!(a, b);
                }
            }
        }
    }

    #[test]
    #[should_panic(expected = "slot 16")]
    fn a_key_behind_the_page_is_refused() {
        let (key, value) = (KeyType::I8, ValueType::F16);
        let l =
            KvLayout { key, value, page_tokens: 16, kv_heads: 1, key_dim: 16, value_dim: 16, latent: false };
        l.write_key(&mut vec![0; l.page_bytes()], 0, 16, &[1.0; 16]);
    }

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
