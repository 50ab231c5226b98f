//! Tokens that move to other positions: their values are carried as they are, their keys are turned.
//!
//! ```text
//! before  [head][ dropped ][      tail      ]        a rotary key at position p is the key turned by p · f
//! after   [head][      tail      ]                   so it is turned by −(dropped · f) more
//! ```
//! What was moved is not what computing those tokens at their new places would give: they still remember what was
//! dropped. So the pages of moved tokens are never found by others. The old table keeps its pages, and goes on if the
//! new one is not wanted after all.

use llm_kernels::KvLayout;

use super::pages::{Pages, TableId};
use super::prefix::NONE;
use crate::cancel::Cancel;
use crate::error::Result;
use crate::model::rope::Frequencies;
use crate::model::spec::{Attention, Pairs, Spec};

/// How a layer's keys are turned.
#[derive(Clone, Debug)]
pub(crate) struct Turn {
    /// Where in a key the rotated part begins.
    first: usize,
    pairs: Pairs,
    /// Cosine and sine of each pair.
    angles: Vec<(f64, f64)>,
}

impl Turn {
    /// Those of the layers of `spec` for tokens that move `by` positions; `None` for keys without rotation.
    pub(crate) fn of(spec: &Spec, ropes: &[Frequencies], by: f64) -> Vec<Option<Self>> {
        let turn = |rope: u32, first: u32| Self {
            first: first as usize,
            pairs: spec.ropes[rope as usize].pairs,
            angles: ropes[rope as usize].turn(by),
        };
        let of_layer = |attention: &Attention| match attention {
            Attention::Heads(h) => h.rope.map(|rope| turn(rope, 0)),
            Attention::Latent(a) => (a.rope_dim > 0).then(|| turn(a.rope, a.kv_rank)),
        };
        spec.layers.iter().map(|layer| of_layer(&layer.attention)).collect()
    }

    /// Turns a key.
    fn apply(&self, key: &mut [f32]) {
        let half = self.angles.len();
        for (i, (cos, sin)) in self.angles.iter().enumerate() {
            let (a, b) = match self.pairs {
                Pairs::Halves => (i, i + half),
                Pairs::Neighbours => (2 * i, 2 * i + 1),
            };
            let (a, b) = (self.first + a, self.first + b);
            let (x, y) = (f64::from(key[a]), f64::from(key[b]));
            (key[a], key[b]) = ((x * cos - y * sin) as f32, (x * sin + y * cos) as f32);
        }
    }
}

impl Pages {
    /// A table with the first `head` of the `held` tokens of `id` and, moved behind them, its last `tail`; `None` where
    /// a layer with a window would see tokens that were let go.
    ///
    /// # Errors
    /// `KV_FULL`, `BUDGET`, and what `cancel` answers before a layer; nothing has changed then.
    pub(crate) fn moved(
        &mut self,
        id: TableId,
        held: usize,
        (head, tail): (usize, usize),
        turns: &[Option<Turn>],
        cancel: Option<&Cancel>,
    ) -> Result<Option<TableId>> {
        let size = self.store.shape().tokens;
        let windows = self.store.shape().windows.clone();
        // From where on each group's tokens are carried: whole pages, since a step back takes a page that is there for
        // one that holds all its tokens.
        let sees =
            |window: &Option<usize>| window.map_or(0, |w| (head + tail + 1).saturating_sub(w) / size * size);
        let origin = |i: usize| if i < head { i } else { held - tail + i - head };
        for (window, pages) in windows.iter().zip(&self.table(id).pages) {
            if (sees(window)..head + tail).any(|i| pages[origin(i) / size] == NONE) {
                return Ok(None);
            }
        }
        let moved = self.fork(id, head);
        // What no later token sees is not carried, and takes no page.
        for (group, window) in windows.iter().enumerate() {
            let end = sees(window) / size;
            let mut pages = std::mem::take(&mut self.table_mut(moved).pages[group]);
            pages.resize(pages.len().max(end), NONE);
            for page in &mut pages[..end] {
                let page = std::mem::replace(page, NONE);
                if page != NONE {
                    self.release(moved, page);
                }
            }
            self.table_mut(moved).pages[group] = pages;
        }
        let room = self.room_in(moved, head, &|shape, group| {
            let seen = sees(&shape.windows[group]) / size;
            seen.max(head / size)..(head + tail).div_ceil(size)
        });
        if let Err(e) = room {
            self.close(moved);
            return Err(e);
        }
        let layers = self.store.shape().layers.clone();
        for (place, turn) in layers.into_iter().zip(turns) {
            if let Err(e) = cancel.map_or(Ok(()), Cancel::check) {
                self.close(moved);
                return Err(e);
            }
            for to in head.max(sees(&windows[place.group]))..head + tail {
                let from = origin(to);
                let from = (self.table(id).pages[place.group][from / size], from % size);
                let to = (self.table(moved).pages[place.group][to / size], to % size);
                self.carry(&place.layout, place.offset, from, to, turn.as_ref());
            }
        }
        let table = self.table_mut(moved);
        table.foreign = table.foreign.min(head / size);
        Ok(Some(moved))
    }

    /// Carries one layer's part of a token from one page and slot to another.
    fn carry(
        &mut self,
        layout: &KvLayout,
        offset: usize,
        (from, from_slot): (u32, usize),
        (to, to_slot): (u32, usize),
        turn: Option<&Turn>,
    ) {
        let bytes = self.store.shape().bytes;
        let (from, to) = (from as usize * bytes + offset, to as usize * bytes + offset);
        let arena = self.store.bytes_mut();
        for (a, b) in layout.token_ranges(from_slot).into_iter().zip(layout.token_ranges(to_slot)) {
            arena.copy_within(from + a.start..from + a.end, to + b.start);
        }
        let Some(turn) = turn else { return };
        let part = &mut arena[to..to + layout.page_bytes()];
        let mut key = [0.0; KvLayout::MAX_DIM];
        for head in 0..layout.kv_heads {
            let key = &mut key[..layout.key_dim];
            layout.read_key(part, head, to_slot, key);
            turn.apply(key);
            layout.write_key(part, head, to_slot, key);
        }
    }
}
