//! What a page is: some layers' keys and values of 16, 32 or 64 tokens.
//!
//! ```text
//! layers   0 full   1 window 64   2 full   3 window 64
//! groups   {0, 2}: all tokens      {1, 3}: the last 64 and what a short step back needs
//! page     [first layer of a group: keys, values][second ..]      as large for every group
//! ```
//! A model whose layers all see equally far has one group, and one page holds all layers of its tokens. Else layers
//! that see equally far share groups of as many layers as fit one size of page, so that any page serves any group.

use llm_kernels::{KeyType, KvLayout, ValueType};

use super::KvType;
use crate::error::{Error, Result, Status};
use crate::model::spec::{Attention, Spec};
use llm_format::order;

/// Groups at most: each costs a table.
pub(crate) const MOST_GROUPS: usize = 8;
/// Tokens behind the window that stay: a step back by so many (a draft that was refused, the last word of a prompt)
/// computes nothing again.
const BACK: usize = 64;

/// Where a layer's keys and values lie.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    pub(crate) layout: KvLayout,
    /// Bytes in a page before them.
    pub(crate) offset: usize,
    /// Whose pages.
    pub(crate) group: usize,
}

/// Where each layer's keys and values lie in a page.
#[derive(Clone, Debug)]
pub(crate) struct PageShape {
    pub(crate) layers: Vec<Place>,
    /// Tokens that each group's layers see, themselves included; `None`: all.
    pub(crate) windows: Vec<Option<usize>>,
    /// Tokens of a page.
    pub(crate) tokens: usize,
    /// Bytes of a page.
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
        let mut layers = Vec::with_capacity(spec.layers.len());
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
            let window = match &layer.attention {
                Attention::Heads(h) => h.window.map(|w| w as usize),
                Attention::Latent(_) => None,
            };
            // A window as long as what the model was trained for is none: longer sessions keep what they may not see.
            layers.push((layout, window.filter(|&w| w < spec.context as usize)));
        }
        Ok(Self::grouped(&layers, tokens))
    }

    /// Layers in the groups that waste least.
    fn grouped(layers: &[(KvLayout, Option<usize>)], tokens: usize) -> Self {
        let mut windows: Vec<Option<usize>> = layers.iter().map(|&(_, window)| window).collect();
        order::by_number(&mut windows, |window| window.map_or(0, |w| (w as u64).saturating_add(1)));
        windows.dedup();
        let count = |window| layers.iter().filter(|&&(_, w)| w == window).count();
        let most = windows.iter().map(|&window| count(window)).max().unwrap_or(1);
        let groups_of = |each: usize| windows.iter().map(|&w| count(w).div_ceil(each)).sum::<usize>();
        // Each kind has a group at least: where there are too many, no size need be tried.
        let most = if windows.len() <= MOST_GROUPS { most } else { 0 };
        let sized = (1..=most).filter(|&each| groups_of(each) <= MOST_GROUPS);
        let shapes = sized.map(|each| Self::of_groups(layers, &windows, each, tokens));
        // The last of equals has the fewest groups.
        let best =
            shapes.reduce(|a, b| if a.bytes * a.windows.len() < b.bytes * b.windows.len() { a } else { b });
        // More kinds of window than groups: every layer sees all that is kept.
        best.unwrap_or_else(|| {
            let all: Vec<_> = layers.iter().map(|&(layout, _)| (layout, None)).collect();
            Self::of_groups(&all, &[None], layers.len().max(1), tokens)
        })
    }

    /// Groups of `each` layers at most.
    fn of_groups(
        layers: &[(KvLayout, Option<usize>)],
        kinds: &[Option<usize>],
        each: usize,
        tokens: usize,
    ) -> Self {
        let mut shape =
            Self { layers: Vec::with_capacity(layers.len()), windows: Vec::new(), tokens, bytes: 0 };
        // By kind: its first group, its groups, layers placed.
        let mut placed: Vec<(usize, usize, usize)> = Vec::new();
        for &kind in kinds {
            let groups = layers.iter().filter(|&&(_, w)| w == kind).count().div_ceil(each);
            placed.push((shape.windows.len(), groups, 0));
            shape.windows.extend(std::iter::repeat_n(kind, groups));
        }
        let mut sizes = vec![0; shape.windows.len()];
        for &(layout, window) in layers {
            let kind = kinds.iter().position(|&k| k == window).unwrap_or(0);
            let (first, groups, n) = &mut placed[kind];
            let group = *first + *n % *groups;
            *n += 1;
            shape.layers.push(Place { layout, offset: sizes[group], group });
            // At most 2^12 layers of 2^14 heads of 64 tokens of 8 KiB each: fits 64 bits.
            sizes[group] += layout.page_bytes();
        }
        shape.bytes = sizes.into_iter().max().unwrap_or(0);
        shape
    }

    /// Groups there are.
    pub(crate) fn groups(&self) -> usize {
        self.windows.len()
    }

    /// Whether some pages are not kept as long as their tokens are.
    pub(crate) fn is_windowed(&self) -> bool {
        self.windows.iter().any(Option::is_some)
    }

    /// The first page of a group that the token behind `tokens` others sees.
    pub(crate) fn first_needed(&self, group: usize, tokens: usize) -> usize {
        self.windows[group].map_or(0, |window| (tokens + 1).saturating_sub(window) / self.tokens)
    }

    /// The first page of a group that is kept behind `tokens` tokens.
    pub(crate) fn first_kept(&self, group: usize, tokens: usize) -> usize {
        self.first_needed(group, tokens.saturating_sub(BACK))
    }

    /// Pages, as (page of tokens, group), that a sequence of `tokens` tokens needs to go on, in order.
    pub(crate) fn needed(&self, tokens: usize) -> impl Iterator<Item = (usize, usize)> + '_ {
        let pages = (0..tokens.div_ceil(self.tokens)).flat_map(|i| (0..self.groups()).map(move |g| (i, g)));
        pages.filter(move |&(i, group)| i >= self.first_needed(group, tokens))
    }

    /// Pages that a sequence of `tokens` tokens holds which ran the last of them in steps of `step`. On its way there
    /// it has had as many at most, and a page more of each group; and one that generates, in steps of no more than a
    /// page, never has more than those of `step` 0 and a page of each group.
    pub(crate) fn held(&self, tokens: usize, step: usize) -> usize {
        let first = |group| self.first_kept(group, tokens.saturating_sub(step));
        (0..self.groups()).map(|group| tokens.div_ceil(self.tokens) - first(group)).sum()
    }

    /// Pages that a sequence of `tokens` tokens takes at most at any time, if it runs in steps of `step`: behind a window
    /// those that a step sees and fills, and beside them those that a call goes back to where it fails.
    pub(crate) fn most(&self, tokens: usize, step: usize) -> usize {
        let all = tokens.div_ceil(self.tokens);
        let near = |window: usize| {
            let seen = window.saturating_add(BACK).div_ceil(self.tokens);
            seen.saturating_mul(2).saturating_add(step.div_ceil(self.tokens)).saturating_add(2)
        };
        self.windows.iter().map(|window| window.map_or(all, |window| all.min(near(window)))).sum()
    }
}

pub(super) fn layout(attention: &Attention, kv: KvType, page_tokens: usize) -> KvLayout {
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

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(windows: &[Option<usize>]) -> PageShape {
        let layout = KvLayout {
            key: KeyType::F16,
            value: ValueType::F16,
            page_tokens: 16,
            kv_heads: 1,
            key_dim: 16,
            value_dim: 16,
            latent: false,
        };
        PageShape::grouped(&windows.iter().map(|&w| (layout, w)).collect::<Vec<_>>(), 16)
    }

    #[test]
    fn layers_that_see_equally_far_share_pages_of_one_size() {
        let layer = shape(&[None]).bytes;
        let one = shape(&[None; 5]);
        assert_eq!((one.groups(), one.bytes, one.is_windowed()), (1, 5 * layer, false));
        let all = shape(&[Some(64); 5]);
        assert_eq!((all.windows.clone(), all.bytes), (vec![Some(64)], 5 * layer));
        let half = shape(&[Some(64), None, Some(64), None]);
        assert_eq!((half.windows.clone(), half.bytes), (vec![None, Some(64)], 2 * layer));
        // Five of six in a window: nothing is wasted with pages of four layers, and with one more a little is.
        let pattern: Vec<_> = (0..24).map(|i| if i % 6 == 5 { None } else { Some(64) }).collect();
        let some = shape(&pattern);
        assert_eq!((some.groups(), some.bytes), (6, 4 * layer));
        for windows in [&pattern[..], &pattern[..23], &[Some(1), Some(2), None]] {
            let shape = shape(windows);
            for (place, window) in shape.layers.iter().zip(windows) {
                assert_eq!(shape.windows[place.group], *window);
                assert!(place.offset + place.layout.page_bytes() <= shape.bytes);
                let same = |p: &&Place| (p.group, p.offset) == (place.group, place.offset);
                assert_eq!(shape.layers.iter().filter(same).count(), 1);
            }
        }
        // Ten kinds of window are not told apart.
        let many: Vec<_> = (1..11).map(Some).collect();
        assert_eq!(shape(&many).windows, [None]);
    }

    #[test]
    fn a_window_needs_the_pages_that_the_next_token_sees() {
        let shape = shape(&[Some(20), None]);
        let window = shape.windows.iter().position(Option::is_some).unwrap();
        for tokens in 0..200 {
            let seen = (tokens + 1usize).saturating_sub(20);
            assert_eq!(shape.first_needed(window, tokens), seen / 16);
            assert!(shape.first_kept(window, tokens) <= shape.first_needed(window, tokens));
            let needed: Vec<_> = shape.needed(tokens).collect();
            let pages = tokens.div_ceil(16);
            assert_eq!(needed.len(), pages + pages - seen / 16);
            // A step of 16 sees the window behind its first token, and a window keeps 64 tokens more.
            let kept = (tokens + 1).saturating_sub(16 + 64 + 20) / 16;
            assert_eq!(shape.held(tokens, 16), pages + pages - kept);
        }
    }

    #[test]
    fn a_page_of_each_group_is_enough_beside_those_that_are_held_at_the_end() {
        for window in [1, 2, 20, 33, 64, 100] {
            let shape = shape(&[Some(window), None]);
            // Pages in a step of `rows` behind `at` tokens: what was let go before it, it does not have.
            let during = |at: usize, rows: usize| -> usize {
                (0..2).map(|group| (at + rows).div_ceil(16) - shape.first_kept(group, at)).sum()
            };
            for at in 0..300 {
                for rows in 1..=16 {
                    assert!(during(at, rows) <= shape.held(at, 0) + 2, "window {window}, {rows} behind {at}");
                }
                for (rows, more) in [(1, 0), (7, 3), (16, 16), (50, 1), (50, 200)] {
                    let most = shape.held(at + rows + more, rows) + 2;
                    assert!(during(at, rows) <= most, "window {window}, {rows} behind {at} of {more} more");
                }
            }
        }
    }

    #[test]
    fn a_window_takes_no_more_than_a_step_sees_and_fills_and_goes_back_to() {
        for (window, step) in [(1, 1), (20, 7), (20, 16), (33, 50), (64, 64)] {
            let shape = shape(&[Some(window), None]);
            let group = shape.windows.iter().position(Option::is_some).unwrap();
            // A call of steps that began with `before` tokens and stands at `at`.
            for before in (0..400).step_by(3) {
                for at in (before..before + 300).step_by(step) {
                    let pages = (at + step).div_ceil(16);
                    let old = shape.first_kept(group, before)..before.div_ceil(16);
                    let kept = |i: &usize| old.contains(i) || *i >= shape.first_kept(group, at);
                    let held = pages + (0..pages).filter(kept).count();
                    assert!(
                        held <= shape.most(at + step, step),
                        "window {window}, {before} to {at} by {step}"
                    );
                }
            }
            // However long it is.
            assert_eq!(shape.most(1 << 20, step) - shape.most(1 << 16, step), ((1 << 20) - (1 << 16)) / 16);
        }
        assert_eq!(shape(&[None; 3]).most(100, 16), 7);
        assert_eq!(shape(&[Some(usize::MAX)]).most(100, usize::MAX), 7);
    }
}
