//! Choice of experts: router logits to the experts of each token and their weights.
//!
//! Scores are compared as they are, equal ones by the lower index, so the choice never varies. Grouped choice
//! follows DeepSeek-V2 (arXiv:2405.04434) and V3 (arXiv:2412.19437): experts outside the kept groups are not chosen,
//! whatever a bias makes of those inside.

use super::Cpu;

/// How router logits become scores.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scoring {
    /// Softmax over all experts.
    Softmax,
    /// Softmax over the chosen experts' logits.
    SoftmaxOfChosen,
    /// Sigmoid of each.
    Sigmoid,
}

/// How groups of experts are ranked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GroupRank {
    /// By the best score.
    Max,
    /// By the sum of the two best.
    TopTwo,
}

/// A router's rule.
#[derive(Clone, Copy, Debug)]
pub struct RouteSpec<'a> {
    /// Logits to scores.
    pub scoring: Scoring,
    /// Experts, at most [`RouteSpec::MAX_EXPERTS`].
    pub count: usize,
    /// Chosen of them.
    pub active: usize,
    /// Whether chosen scores are divided by their sum (plus 1e-20 with `Sigmoid`).
    pub normalize: bool,
    /// Factor on the weights.
    pub scale: f32,
    /// Equal groups; 1: none.
    pub groups: usize,
    /// Groups kept.
    pub active_groups: usize,
    /// How groups are ranked.
    pub group_rank: GroupRank,
    /// `[count]`, added to the scores for the choice only.
    pub choice_bias: Option<&'a [f32]>,
}

impl RouteSpec<'_> {
    /// The most experts a router has.
    pub const MAX_EXPERTS: usize = 1024;
}

impl Cpu {
    /// For each of `rows` rows of `logits` (`[rows, count]`): the chosen experts in ascending order of index
    /// (the order in which their outputs are added) and their weights, both `[rows, active]`.
    ///
    /// # Panics
    /// If lengths do not fit or the rule is impossible.
    pub fn route(
        &self,
        logits: &[f32],
        rows: usize,
        spec: &RouteSpec,
        out_ids: &mut [u32],
        out_weights: &mut [f32],
    ) {
        let (count, active) = (spec.count, spec.active);
        assert!(
            active > 0 && active <= count && count <= RouteSpec::MAX_EXPERTS,
            "{active} of {count} experts"
        );
        assert!(
            spec.groups > 0 && count.is_multiple_of(spec.groups),
            "{count} experts in {} groups",
            spec.groups
        );
        assert!(
            spec.active_groups > 0 && spec.active_groups <= spec.groups,
            "{} of {} groups",
            spec.active_groups,
            spec.groups
        );
        assert!(spec.choice_bias.is_none_or(|b| b.len() == count), "choice bias of {count} experts");
        assert_eq!(logits.len(), rows * count, "router logits [{rows}, {count}]");
        assert_eq!(out_ids.len(), rows * active, "experts [{rows}, {active}]");
        assert_eq!(out_weights.len(), rows * active, "expert weights [{rows}, {active}]");
        for (i, logits) in logits.chunks_exact(count).enumerate() {
            let part = i * active..(i + 1) * active;
            self.route_row(logits, spec, &mut out_ids[part.clone()], &mut out_weights[part]);
        }
    }

    fn route_row(&self, logits: &[f32], spec: &RouteSpec, ids: &mut [u32], weights: &mut [f32]) {
        let n = spec.count;
        let mut scores = [0f32; RouteSpec::MAX_EXPERTS];
        let scores = &mut scores[..n];
        scores.copy_from_slice(logits);
        match spec.scoring {
            Scoring::Softmax => self.softmax(scores, 1),
            Scoring::Sigmoid => scores.iter_mut().for_each(|v| *v = crate::math::sigmoid(*v)),
            Scoring::SoftmaxOfChosen => {}
        }
        let mut choice = [0f32; RouteSpec::MAX_EXPERTS];
        let choice = &mut choice[..n];
        choice.copy_from_slice(scores);
        if let Some(bias) = spec.choice_bias {
            choice.iter_mut().zip(bias).for_each(|(c, b)| *c += b);
        }
        if spec.groups > 1 {
            keep_groups(choice, spec.groups, spec.active_groups, spec.group_rank);
        }
        // NaN loses against everything, and a row of nothing else still gets `active` experts
        let mut taken = [false; RouteSpec::MAX_EXPERTS];
        for _ in 0..spec.active {
            let mut best: Option<usize> = None;
            for i in (0..n).filter(|&i| !taken[i]) {
                if best.is_none_or(|b| choice[i] > choice[b] || choice[b].is_nan() && !choice[i].is_nan()) {
                    best = Some(i);
                }
            }
            if let Some(best) = best {
                taken[best] = true;
            }
        }
        let chosen = (0..n).filter(|&i| taken[i]);
        for ((id, weight), i) in ids.iter_mut().zip(weights.iter_mut()).zip(chosen) {
            *id = i as u32;
            *weight = scores[i];
        }
        if spec.scoring == Scoring::SoftmaxOfChosen {
            self.softmax(weights, 1);
        } else if spec.normalize {
            let sum: f32 = weights.iter().sum();
            let sum = if spec.scoring == Scoring::Sigmoid { sum + 1e-20 } else { sum };
            weights.iter_mut().for_each(|w| *w /= sum);
        }
        if spec.scale != 1.0 {
            weights.iter_mut().for_each(|w| *w *= spec.scale);
        }
    }
}

/// Takes experts outside the `kept` best of `groups` equal groups out of a row's choice, also where a bias makes those
/// inside negative; of groups of the same rank the lowest come first.
///
/// # Panics
/// If there are no groups, or more than [`RouteSpec::MAX_EXPERTS`].
pub fn keep_groups(choice: &mut [f32], groups: usize, kept: usize, rank: GroupRank) {
    let size = choice.len() / groups;
    let mut ranks = [0f32; RouteSpec::MAX_EXPERTS];
    let ranks = &mut ranks[..groups];
    for (best, group) in ranks.iter_mut().zip(choice.chunks_exact(size)) {
        let (mut first, mut second) = (f32::NEG_INFINITY, f32::NEG_INFINITY);
        for &v in group {
            if v > first {
                (first, second) = (v, first);
            } else if v > second {
                second = v;
            }
        }
        *best = match rank {
            GroupRank::Max => first,
            GroupRank::TopTwo if size > 1 => first + second,
            GroupRank::TopTwo => first,
        };
    }
    for g in 0..groups {
        let better = (0..groups).filter(|&o| ranks[o] > ranks[g] || ranks[o] == ranks[g] && o < g).count();
        if better >= kept {
            choice[g * size..][..size].fill(f32::NEG_INFINITY);
        }
    }
}
