//! The working set of one choice: tokens with their logits, always in ascending order of id.
//!
//! Filters change logits and take tokens away; none adds or reorders. So "the lowest id wins a tie" is "the first
//! wins", and sums over candidates have one order.

use std::cmp::Ordering;

/// A token that may still be chosen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Candidate {
    /// Its id.
    pub id: u32,
    /// Its logit so far; never NaN or +∞.
    pub logit: f32,
}

impl Candidate {
    /// Likelier first, then the lower id: a total order, as logits are never NaN and −0 is made +0 on entry.
    pub fn by_rank(&self, other: &Self) -> Ordering {
        other.logit.total_cmp(&self.logit).then(self.id.cmp(&other.id))
    }
}

/// The tokens that may still be chosen, and scratch of the same size. Allocates once per vocabulary size.
#[derive(Clone, Debug, Default)]
pub struct Candidates {
    items: Vec<Candidate>,
    scratch: Vec<Candidate>,
    pub(super) repetitions: Repetitions,
}

/// Scratch of the filter that looks for repetitions.
#[derive(Clone, Debug, Default)]
pub(super) struct Repetitions {
    /// By place in the history: how much of its end repeats there.
    pub(super) lengths: Vec<u32>,
    /// Token in the upper half, length of the repetition it would continue in the lower.
    pub(super) worst: Vec<u64>,
}

impl Candidates {
    /// All tokens of the vocabulary with their logits.
    pub fn fill(&mut self, logits: &[f32]) {
        self.items.clear();
        // `+ 0.0` turns −0 into +0, which total_cmp would otherwise tell apart.
        self.items.extend((0u32..).zip(logits).map(|(id, &logit)| Candidate { id, logit: logit + 0.0 }));
    }

    /// The candidates in ascending order of id.
    pub fn as_slice(&self) -> &[Candidate] {
        &self.items
    }

    /// The candidates, for changes of their logits.
    pub fn as_mut_slice(&mut self) -> &mut [Candidate] {
        &mut self.items
    }

    /// The candidate of token `id`.
    pub fn find(&mut self, id: u32) -> Option<&mut Candidate> {
        // Until the first cut the index is the id.
        let guess = id as usize;
        if self.items.get(guess).is_some_and(|c| c.id == id) {
            return self.items.get_mut(guess);
        }
        let index = self.items.binary_search_by_key(&id, |c| c.id).ok()?;
        self.items.get_mut(index)
    }

    /// The highest logit; −∞ when nothing is left.
    pub fn max(&self) -> f32 {
        let larger = |a: f32, b: f32| if b > a { b } else { a };
        // Side by side: one comparison need not wait for the one before it.
        let (chunks, rest) = self.items.as_chunks::<8>();
        let mut lanes = [f32::NEG_INFINITY; 8];
        for chunk in chunks {
            for (i, c) in chunk.iter().enumerate() {
                lanes[i] = larger(lanes[i], c.logit);
            }
        }
        let lanes = lanes.into_iter().fold(f32::NEG_INFINITY, larger);
        rest.iter().fold(lanes, |max, c| larger(max, c.logit))
    }

    /// Keeps what `keep` says.
    pub fn retain(&mut self, keep: impl FnMut(&Candidate) -> bool) {
        self.items.retain(keep);
    }

    /// Keeps `last` and everything that ranks before it.
    pub fn keep_through(&mut self, last: Candidate) {
        self.items.retain(|c| c.by_rank(&last) != Ordering::Greater);
    }

    /// Keeps the first candidates in `order` (total, strict) until their weights reach the share `p` of `total`, which
    /// is the sum of all weights; at least one.
    ///
    /// Weights are whole numbers, so that their sums are exact in any order. The border is found by halving: select
    /// the median, weigh the first half, go on in the half that holds the border. That is linear in the number of
    /// candidates, where sorting a vocabulary would not be.
    pub fn keep_smallest(
        &mut self,
        p: f64,
        total: u64,
        order: impl Fn(&Candidate, &Candidate) -> Ordering,
        weight: impl Fn(&Candidate) -> u64,
    ) {
        if self.items.is_empty() {
            return;
        }
        let target = ((p * total as f64).ceil() as u64).max(1);
        let mut rest = self.scratch();
        // Weight of everything before `rest`; always below the target.
        let mut before = 0u64;
        let last = loop {
            let middle = rest.len() / 2;
            let (first, median, _) = rest.select_nth_unstable_by(middle, &order);
            let median = *median;
            let first = first.iter().fold(0u64, |sum, c| sum.saturating_add(weight(c)));
            if before.saturating_add(first) >= target {
                rest = &mut rest[..middle];
            } else {
                before = before.saturating_add(first).saturating_add(weight(&median));
                if before >= target || middle + 1 == rest.len() {
                    break median;
                }
                rest = &mut rest[middle + 1..];
            }
        };
        self.items.retain(|c| order(c, &last) != Ordering::Greater);
    }

    /// A copy of the candidates that may be reordered freely.
    pub fn scratch(&mut self) -> &mut [Candidate] {
        self.scratch.clear();
        self.scratch.extend_from_slice(&self.items);
        &mut self.scratch
    }
}

/// The first `count` of `all` by rank, in order; what `all` holds is moved about.
pub fn likeliest(all: &mut [Candidate], count: usize) -> &[Candidate] {
    let count = count.min(all.len());
    if count > 0 && count < all.len() {
        all.select_nth_unstable_by(count - 1, Candidate::by_rank);
    }
    let first = &mut all[..count];
    first.sort_unstable_by(Candidate::by_rank);
    first
}

/// The candidate with the highest logit, the lowest id among equals.
pub fn argmax(candidates: &[Candidate]) -> Option<Candidate> {
    let mut best = *candidates.first()?;
    for &c in candidates {
        if c.logit > best.logit {
            best = c;
        }
    }
    Some(best)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_likeliest_are_sorted_and_ties_go_to_the_lower_id() {
        let logits = [1.0, 3.0, 2.0, 3.0, f32::NEG_INFINITY];
        let all: Vec<_> = (0..).zip(logits).map(|(id, logit)| Candidate { id, logit }).collect();
        let ids = |count| likeliest(&mut all.clone(), count).iter().map(|c| c.id).collect::<Vec<_>>();
        assert_eq!(ids(3), [1, 3, 2]);
        assert_eq!(ids(99), [1, 3, 2, 0, 4]);
        assert!(ids(0).is_empty());
    }
}
