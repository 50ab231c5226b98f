//! A mixture of experts in training: choice, products by expert, and the gradients of both.
//!
//! ```text
//! s = softmax(x·Rᵀ) or sigmoid        chosen: the best `active` by s + c, the lowest index first where they are equal,
//!                                     of all experts or of those in the best groups
//! w = s of the chosen (over their sum), times a factor            y = Σ w·expert(x), and a shared expert's σ(v·x)·shared(x)
//! balance loss   b·E·Σ_e f_e·P_e      f_e: share of the choices that fell on e, P_e: mean score (Fedus et al. 2021);
//!                                     of sigmoids the mean of s over its row's sum (arXiv:2412.19437, 17 to 20)
//! z loss         z·mean(lse²)         lse: log-sum-exp of a row's logits (Zoph et al. 2022)
//! correction     c_e ± γ after a step  − where e had more than the mean of the step's rows, + where less (the same, 16)
//! ```
//! Both losses are means over the rows of a pass and are added to the mean loss of those of its tokens that have one. The
//! correction is no part of the weights w, so it has no gradient.

use std::cmp::Ordering;
use std::ops::Range;

use llm::model::arch::{LayerSlot, Slot};
use llm::model::spec::Scoring;
use llm_kernels::dense::Dense;
use llm_kernels::keep_groups;
use llm_kernels::math::{log64, sigmoid};

use super::{Engine, parts};
use crate::config::Precision;
use crate::params::Param;
use crate::tape::{Moe, Tape};

/// Which experts the rows of a pass chose, and the same by expert.
#[derive(Default)]
pub(super) struct Choice {
    /// `[rows, active]`, ascending.
    experts: Vec<u32>,
    /// `[rows, active]`
    weights: Vec<f32>,
    /// Slots (row · active + place) by expert, rows ascending.
    order: Vec<u32>,
    /// Where each expert's slots begin in `order`; one more at the end.
    starts: Vec<usize>,
    /// Log-sum-exp of each row's logits.
    lse: Vec<f32>,
}

impl Engine {
    pub(super) fn experts(&mut self, tape: &Tape, m: &Moe, weights: &[f32]) {
        let (rows, width, list) = (tape.rows(), self.width, &self.params.list);
        let choice = &mut self.choices[m.layer];
        let [x, scores] = parts(&mut self.arena, [tape.place(m.x), tape.place(m.scores)]);
        let router_bias = m.router_bias.map(|b| &weights[list[b].range()]);
        let router = &weights[list[m.router].range()];
        self.dense.linear(x, router, router_bias, None, scores, (rows, m.count, width));
        let bias = m.choice_bias.map(|b| &weights[list[b].range()]);
        choice.choose(m, scores, bias);

        let places = [m.x, m.gathered, m.up_out, m.act, m.out, m.y].map(|b| tape.place(b));
        let [x, gathered, up_out, act, out, y] = parts(&mut self.arena, places);
        for (to, slot) in gathered.chunks_exact_mut(width).zip(&choice.order) {
            let row = *slot as usize / m.active;
            to.copy_from_slice(&x[row * width..(row + 1) * width]);
        }
        let inner = m.inner;
        // what the way back reads is what was read here; behind the record it is only packed
        let bf16 = tape.precision == Precision::Bf16;
        let settle = |dense: &mut Dense, values: &mut [f32]| {
            if bf16 {
                dense.round(values);
            }
        };
        settle(&mut self.dense, gathered);
        for e in 0..m.count {
            let (from, to) = (choice.starts[e], choice.starts[e + 1]);
            if from == to {
                continue;
            }
            let n = to - from;
            let x = &gathered[from * width..to * width];
            // gate and up of an expert lie apart in the parameters: the halves are made one after the other
            let up_out = &mut up_out[from * 2 * inner..to * 2 * inner];
            let biases = m.biases.map(|[gate, up, down]| {
                let all = [(gate, inner), (up, inner), (down, width)];
                all.map(|(bias, n)| &weights[of_expert(&list[bias], e, n)])
            });
            halves(
                &mut self.dense,
                x,
                [&weights[list[m.gate].matrix(e)], &weights[list[m.up].matrix(e)]],
                biases.map(|[gate, up, _]| [gate, up]),
                up_out,
                (n, inner, width),
            );
            settle(&mut self.dense, up_out);
            let act = &mut act[from * inner..to * inner];
            self.dense.gated(m.curve, up_out, inner, act);
            settle(&mut self.dense, act);
            let out = &mut out[from * width..to * width];
            let (down, bias) = (&weights[list[m.down].matrix(e)], biases.map(|b| b[2]));
            self.dense.linear(act, down, bias, None, out, (n, width, inner));
            settle(&mut self.dense, out);
        }
        y.fill(0.0);
        // experts ascending, as inference adds them
        for (out, slot) in out.chunks_exact(width).zip(&choice.order) {
            let (row, weight) = (*slot as usize / m.active, choice.weights[*slot as usize]);
            for (y, out) in y[row * width..(row + 1) * width].iter_mut().zip(out) {
                *y = out.mul_add(weight, *y);
            }
        }
    }

    pub(super) fn experts_back(
        &mut self,
        tape: &Tape,
        m: &Moe,
        weights: &[f32],
        grads: &mut [f32],
        scale: f32,
    ) {
        let (rows, width, inner, list) = (tape.rows(), self.width, m.inner, &self.params.list);
        let choice = &self.choices[m.layer];
        // on the way back, for a pass that is computed again comes by twice on the way there
        let loads = &mut self.loads[m.layer];
        loads.resize(m.count, 0);
        let rows_of = choice.starts.array_windows().map(|[from, to]| (to - from) as u64);
        loads.iter_mut().zip(rows_of).for_each(|(load, rows)| *load += rows);
        let places = [m.x, m.dx, m.scores, m.gathered, m.up_out, m.act, m.out, m.dup, m.dact, m.dy];
        let [x, dx, scores, gathered, up_out, act, out, dup, dact, dy] =
            parts(&mut self.arena, places.map(|b| tape.place(b)));
        if !m.add {
            dx.fill(0.0);
        }
        // the weights' gradients; then `out` takes that of the experts' outputs
        let mut dweights = vec![0.0f32; rows * m.active];
        for (out, slot) in out.chunks_exact_mut(width).zip(&choice.order) {
            let (slot, row) = (*slot as usize, *slot as usize / m.active);
            let dy = &dy[row * width..(row + 1) * width];
            dweights[slot] = out.iter().zip(dy).fold(0.0, |s, (o, d)| o.mul_add(*d, s));
            out.iter_mut().zip(dy).for_each(|(o, d)| *o = d * choice.weights[slot]);
        }
        for e in 0..m.count {
            let (from, to) = (choice.starts[e], choice.starts[e + 1]);
            if from == to {
                continue;
            }
            let n = to - from;
            let rows_of = |width: usize| from * width..to * width;
            let (dout, act) = (&out[rows_of(width)], &act[rows_of(inner)]);
            let dact = &mut dact[rows_of(inner)];
            let down = list[m.down].matrix(e);
            if list[m.down].trained {
                self.dense.linear_dw(dout, act, &mut grads[down.clone()], (n, width, inner));
                if let Some([_, _, b]) = m.biases {
                    self.dense.bias_back(dout, &mut grads[of_expert(&list[b], e, width)]);
                }
            }
            self.dense.linear_dx(dout, &weights[down], dact, (n, width, inner), false);
            let dup = &mut dup[rows_of(2 * inner)];
            self.dense.gated_back(m.curve, dact, &up_out[rows_of(2 * inner)], inner, dup);
            let x = &mut gathered[rows_of(width)];
            let ids = [list[m.gate].matrix(e), list[m.up].matrix(e)];
            if let (Some([gate, up, _]), true) = (m.biases, list[m.gate].trained) {
                let mut sums = vec![0.0f32; 2 * inner];
                self.dense.bias_back(dup, &mut sums);
                for (bias, sums) in [gate, up].into_iter().zip(sums.chunks_exact(inner)) {
                    let bias = &mut grads[of_expert(&list[bias], e, inner)];
                    bias.iter_mut().zip(sums).for_each(|(g, s)| *g += s);
                }
            }
            let grads = if list[m.gate].trained { Some(&mut *grads) } else { None };
            halves_back(&mut self.dense, dup, x, &ids, weights, grads, (n, inner, width));
        }
        // `gathered` holds the gradient of the experts' inputs now
        for (d, slot) in gathered.chunks_exact(width).zip(&choice.order) {
            let row = *slot as usize / m.active;
            dx[row * width..(row + 1) * width].iter_mut().zip(d).for_each(|(dx, d)| *dx += d);
        }
        choice.back(m, scores, &dweights, self.losses, scale);
        let router = list[m.router].range();
        if list[m.router].trained {
            self.dense.linear_dw(scores, x, &mut grads[router.clone()], (rows, m.count, width));
            if let Some(b) = m.router_bias {
                self.dense.bias_back(scores, &mut grads[list[b].range()]);
            }
        }
        self.dense.linear_dx(scores, &weights[router], dx, (rows, m.count, width), true);
    }

    /// Forgets how many rows went through each expert.
    pub fn clear_loads(&mut self) {
        self.loads.iter_mut().for_each(|loads| loads.fill(0));
    }

    /// Moves the corrections of the experts' choice by `rate`: towards equal numbers of rows.
    pub fn correct_choices(&self, rate: f32, weights: &mut [f32]) {
        for (layer, loads) in (0u32..).zip(&self.loads) {
            let Some(id) = self.params.find(Slot::Layer(layer, LayerSlot::ChoiceBias)) else { continue };
            let (count, all) = (loads.len() as u64, loads.iter().sum());
            for (c, load) in weights[self.params.list[id].range()].iter_mut().zip(loads) {
                match (load * count).cmp(&all) {
                    Ordering::Greater => *c -= rate,
                    Ordering::Less => *c += rate,
                    Ordering::Equal => {}
                }
            }
        }
    }
}

/// Where the `n` values of expert `e` lie in a vector for all experts.
fn of_expert(bias: &Param, e: usize, n: usize) -> Range<usize> {
    let start = bias.range().start + e * n;
    start..start + n
}

/// `y` = `x` times the sigmoid of each row's one value in `z`.
pub(super) fn switch(x: &[f32], z: &[f32], y: &mut [f32]) {
    let width = x.len() / z.len();
    for ((x, z), y) in x.chunks_exact(width).zip(z).zip(y.chunks_exact_mut(width)) {
        let s = sigmoid(*z);
        y.iter_mut().zip(x).for_each(|(y, x)| *y = x * s);
    }
}

/// The gradients of [`switch`]'s inputs.
pub(super) fn switch_back(x: &[f32], z: &[f32], dy: &[f32], dx: &mut [f32], dz: &mut [f32]) {
    let width = x.len() / z.len();
    let rows = x.chunks_exact(width).zip(dy.chunks_exact(width)).zip(dx.chunks_exact_mut(width));
    for (((x, dy), dx), (z, dz)) in rows.zip(z.iter().zip(dz)) {
        let s = sigmoid(*z);
        *dz = x.iter().zip(dy).fold(0.0, |sum, (x, d)| x.mul_add(*d, sum)) * s * (1.0 - s);
        dx.iter_mut().zip(dy).for_each(|(dx, d)| *dx = d * s);
    }
}

/// Gate and up side by side in `y`, `[n, 2·inner]`.
fn halves(
    dense: &mut Dense,
    x: &[f32],
    [gate, up]: [&[f32]; 2],
    biases: Option<[&[f32]; 2]>,
    y: &mut [f32],
    (n, inner, width): (usize, usize, usize),
) {
    use llm_kernels::dense::gemm::View;
    let x = View::new(x, n, width, width);
    if let Some([gate, up]) = biases {
        for y in y.chunks_exact_mut(2 * inner) {
            y[..inner].copy_from_slice(gate);
            y[inner..].copy_from_slice(up);
        }
    }
    let add = biases.is_some();
    dense.product(x, View::new(gate, inner, width, width).t(), y, 2 * inner, add);
    dense.product(x, View::new(up, inner, width, width).t(), &mut y[inner..], 2 * inner, add);
}

/// The gradients of [`halves`]: those of the matrices are added where they are wanted, `x` is replaced by its own.
fn halves_back(
    dense: &mut Dense,
    dy: &[f32],
    x: &mut [f32],
    ids: &[Range<usize>; 2],
    weights: &[f32],
    grads: Option<&mut [f32]>,
    (n, inner, width): (usize, usize, usize),
) {
    use llm_kernels::dense::gemm::View;
    if let Some(grads) = grads {
        for (half, id) in ids.iter().enumerate() {
            let dy = View::new(&dy[half * inner..], n, inner, 2 * inner);
            dense.product(dy.t(), View::new(x, n, width, width), &mut grads[id.clone()], width, true);
        }
    }
    for (half, id) in ids.iter().enumerate() {
        let dy = View::new(&dy[half * inner..], n, inner, 2 * inner);
        let w = View::new(&weights[id.clone()], inner, width, width);
        dense.product(dy, w, x, width, half == 1);
    }
}

impl Choice {
    /// Logits `[rows, count]` become scores; the best of each row are chosen.
    fn choose(&mut self, m: &Moe, scores: &mut [f32], bias: Option<&[f32]>) {
        let rows = scores.len() / m.count;
        self.experts.clear();
        self.weights.clear();
        self.lse.clear();
        let (mut taken, mut ranks) = (vec![false; m.count], vec![0.0f32; m.count]);
        for row in scores.chunks_exact_mut(m.count) {
            let top = row.iter().fold(f32::NEG_INFINITY, |a, b| a.max(*b));
            let sum: f64 = row.iter().map(|v| f64::from(*v - top).exp()).sum();
            self.lse.push(top + log64(sum) as f32);
            for v in row.iter_mut() {
                *v = match m.scoring {
                    Scoring::Sigmoid => (1.0 / (1.0 + f64::from(-*v).exp())) as f32,
                    Scoring::Softmax | Scoring::SoftmaxOfChosen => (f64::from(*v - top).exp() / sum) as f32,
                };
            }
            ranks.copy_from_slice(row);
            if let Some(bias) = bias {
                ranks.iter_mut().zip(bias).for_each(|(r, b)| *r += b);
            }
            if m.groups > 1 {
                keep_groups(&mut ranks, m.groups, m.active_groups, m.group_rank);
            }
            taken.fill(false);
            for _ in 0..m.active {
                let free = (0..m.count).filter(|e| !taken[*e]);
                let best = free.fold(None, |best: Option<usize>, e| match best {
                    Some(b) if ranks[e] <= ranks[b] => Some(b),
                    _ => Some(e),
                });
                taken[best.unwrap_or(0)] = true;
            }
            let first = self.experts.len();
            self.experts.extend((0..m.count).filter(|e| taken[*e]).map(|e| e as u32));
            let chosen = &self.experts[first..];
            let sum: f32 = chosen.iter().map(|e| row[*e as usize]).sum();
            let divide = if self.normalizes(m) { sum } else { 1.0 };
            self.weights.extend(chosen.iter().map(|e| row[*e as usize] / divide * m.scale));
        }
        self.starts.clear();
        self.order.clear();
        for e in 0..m.count as u32 {
            self.starts.push(self.order.len());
            let slots = (0..(rows * m.active) as u32).filter(|s| self.experts[*s as usize] == e);
            self.order.extend(slots);
        }
        self.starts.push(self.order.len());
    }

    /// A softmax over the chosen alone is one over all, divided by the sum of the chosen.
    fn normalizes(&self, m: &Moe) -> bool {
        m.normalize || m.scoring == Scoring::SoftmaxOfChosen
    }

    /// `scores` become the gradients of the logits they came from; `scale` is the factor of what each row adds.
    fn back(&self, m: &Moe, scores: &mut [f32], dweights: &[f32], losses: super::RouterLosses, scale: f32) {
        let rows = scores.len() / m.count;
        let share = |e: usize| (self.starts[e + 1] - self.starts[e]) as f32 / (rows * m.active) as f32;
        let balance: Vec<f32> =
            (0..m.count).map(|e| scale * losses.balance * m.count as f32 * share(e)).collect();
        let mut dscores = vec![0.0f32; m.count];
        for (r, row) in scores.chunks_exact_mut(m.count).enumerate() {
            if m.scoring == Scoring::Sigmoid {
                // of s over the row's sum
                let sum: f32 = row.iter().sum();
                let mean: f32 = row.iter().zip(&balance).map(|(s, b)| s * b).sum::<f32>() / sum;
                dscores.iter_mut().zip(&balance).for_each(|(d, b)| *d = (b - mean) / sum);
            } else {
                dscores.copy_from_slice(&balance);
            }
            let span = r * m.active..(r + 1) * m.active;
            let (chosen, dw) = (&self.experts[span.clone()], &dweights[span]);
            let sum: f32 = chosen.iter().map(|e| row[*e as usize]).sum();
            if self.normalizes(m) {
                let mean: f32 = chosen.iter().zip(dw).map(|(e, d)| d * row[*e as usize]).sum::<f32>() / sum;
                chosen.iter().zip(dw).for_each(|(e, d)| dscores[*e as usize] += m.scale * (d - mean) / sum);
            } else {
                chosen.iter().zip(dw).for_each(|(e, d)| dscores[*e as usize] += m.scale * d);
            }
            let z = 2.0 * scale * losses.z * self.lse[r];
            match m.scoring {
                Scoring::Sigmoid => {
                    for (s, d) in row.iter_mut().zip(&dscores) {
                        *s = d * *s * (1.0 - *s);
                    }
                }
                Scoring::Softmax | Scoring::SoftmaxOfChosen => {
                    let mean: f32 = row.iter().zip(&dscores).map(|(s, d)| s * d).sum();
                    for (s, d) in row.iter_mut().zip(&dscores) {
                        *s *= d - mean + z;
                    }
                }
            }
        }
    }
}
