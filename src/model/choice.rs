//! Which experts rows take, and the rows of each expert side by side: what its matrices are read once for.

use std::ops::Range;

/// Which experts each row takes, and the same ordered by expert.
#[derive(Default)]
pub(super) struct Choice {
    /// `[m, active]`
    pub(super) ids: Vec<u32>,
    pub(super) weights: Vec<f32>,
    /// Row and weight of each (row, expert), in ascending order of expert, then row.
    pub(super) rows: Vec<u32>,
    pub(super) factors: Vec<f32>,
    /// Next place of each expert while sorting.
    starts: Vec<usize>,
    /// Which of them each expert has.
    pub(super) groups: Vec<(usize, Range<usize>)>,
}

impl Choice {
    /// Orders the slots by expert: counts, then places, rows ascending within an expert.
    pub(super) fn sort(&mut self, experts: usize, active: usize) {
        let slots = self.ids.len();
        self.groups.clear();
        self.rows.resize(slots, 0);
        self.factors.resize(slots, 0.0);
        self.starts.clear();
        self.starts.resize(experts, 0);
        self.ids.iter().for_each(|&e| self.starts[e as usize] += 1);
        let mut start = 0;
        for (expert, count) in self.starts.iter_mut().enumerate() {
            if *count > 0 {
                self.groups.push((expert, start..start + *count));
            }
            start += std::mem::replace(count, start);
        }
        for (slot, &expert) in self.ids.iter().enumerate() {
            let place = &mut self.starts[expert as usize];
            self.rows[*place] = (slot / active) as u32;
            self.factors[*place] = self.weights[slot];
            *place += 1;
        }
    }
}
