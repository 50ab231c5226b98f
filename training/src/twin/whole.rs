//! Whole models of every design: loss and gradients against a forward pass in f64 that follows the spec alone.

use std::cell::RefCell;
use std::collections::BTreeMap;

use llm::model::arch::{LayerSlot as L, Slot};
use llm::model::rope::Frequencies;
use llm::model::spec::{Activation, Attention, Ffn, GroupRank, Norm, NormKind, Pairs, Scoring, Spec};

use super::*;
use crate::config::Recompute;
use crate::design::{Position, ScoringDesign};
use crate::engine::{Engine, Input, RouterLosses, Want};
use crate::params::Params;
use crate::random::{bits, mix};
use crate::tape::{How, Tape};

struct Model<'a> {
    spec: &'a Spec,
    params: &'a Params,
    weights: &'a [f64],
    losses: RouterLosses,
    masks: &'a Masks,
    /// Rows of a sequence.
    length: usize,
    /// How many rows chose each expert, by layer; filled by a pass.
    chosen: RefCell<BTreeMap<u32, Vec<u64>>>,
}

/// The factors of dropout, by what names a place: 0 the embedding, of layer l 3l + 1 the probabilities, 3l + 2 and
/// 3l + 3 the branches of attention and of the feed-forward block. Without dropout there are none.
type Masks = BTreeMap<usize, Vec<f64>>;

/// Those of a pass over `batch` sequences.
fn masks(spec: &Spec, (batch, length): (usize, usize), rate: f32, (seed, pass): (u64, u64)) -> Masks {
    let key = |place: usize| bits(seed, Stream::Dropout, pass, place as u64);
    let rows = batch * length;
    let hidden = |place: usize| (place, drawn(rows * spec.width as usize, rate, key(place)));
    let mut all = Masks::from([hidden(0)]);
    for (l, layer) in spec.layers.iter().enumerate() {
        let heads = match &layer.attention {
            Attention::Heads(a) => a.heads,
            Attention::Latent(a) => a.heads,
        };
        let shape = Heads { dropout: rate, key: key(3 * l + 1), ..Heads::new(heads as usize, 1, 1, length) };
        all.insert(3 * l + 1, kept(&shape, rows));
        all.extend([hidden(3 * l + 2), hidden(3 * l + 3)]);
    }
    all
}

fn curve(a: Activation) -> Curve {
    match a {
        Activation::Silu => Curve::Silu,
        Activation::Gelu => Curve::Gelu,
        Activation::GeluTanh => Curve::GeluTanh,
        Activation::Relu => Curve::Relu,
        Activation::Relu2 => Curve::Relu2,
        Activation::ClampedSwiglu { alpha, limit } => Curve::ClampedSwiglu { alpha, limit },
    }
}

fn add(x: &mut [f64], y: &[f64]) {
    x.iter_mut().zip(y).for_each(|(x, y)| *x += y);
}

impl Model<'_> {
    fn get(&self, slot: Slot) -> Option<&[f64]> {
        let there = self.params.list.iter().any(|p| p.parts.iter().any(|part| part.slot == slot));
        there.then(|| &self.weights[self.params.place(slot)])
    }

    fn need(&self, slot: Slot) -> &[f64] {
        self.get(slot).unwrap_or_else(|| panic!("{slot:?}"))
    }

    fn norm(&self, x: &[f64], n: Option<Norm>, w: Slot, b: Slot) -> Vec<f64> {
        let Some(n) = n else { return x.to_vec() };
        norm(x, self.need(w), self.get(b), n.kind == NormKind::Layer, f64::from(n.eps))
    }

    /// What dropout leaves of `x`.
    fn dropped(&self, mut x: Vec<f64>, place: usize) -> Vec<f64> {
        let mask = self.masks.get(&place).into_iter().flatten();
        x.iter_mut().zip(mask).for_each(|(x, factor)| *x *= factor);
        x
    }

    fn rotate(&self, x: &mut [f64], stride: usize, table: u32, start: usize, step: usize, heads: usize) {
        let rope_spec = &self.spec.ropes[table as usize];
        let half = rope_spec.dim as usize / 2;
        let (cos, sin) = Frequencies::new(rope_spec, self.spec.context).tables(self.length as u32);
        let what = Rotated { start, step, heads, neighbours: rope_spec.pairs == Pairs::Neighbours };
        for (r, row) in x.chunks_mut(stride).enumerate() {
            let at = |i: usize| (r % self.length) * half + i;
            // a table may scale as well as turn
            let size = f64::from(cos[at(0)]).hypot(f64::from(sin[at(0)]));
            rope(row, stride, what, half, 1, &|_, i| f64::from(sin[at(i)]).atan2(f64::from(cos[at(i)])));
            for h in 0..heads {
                row[start + h * step..][..2 * half].iter_mut().for_each(|v| *v *= size);
            }
        }
    }

    fn attend(&self, l: u32, a: &Attention, x: &[f64]) -> Vec<f64> {
        let slot = |part| Slot::Layer(l, part);
        let width = self.spec.width as usize;
        let lin = |x: &[f64], w: L, b: L, k: usize| {
            let w = self.need(slot(w));
            linear(x, w, self.get(slot(b)), w.len() / k, k)
        };
        let shape;
        let join = |parts: [&[f64]; 3], rows: usize| -> Vec<f64> {
            let of = |p: &[f64], r: usize| p[p.len() / rows * r..p.len() / rows * (r + 1)].to_vec();
            (0..rows).flat_map(|r| parts.iter().flat_map(|p| of(p, r)).collect::<Vec<_>>()).collect()
        };
        let rows = x.len() / width;
        let qkv = match a {
            Attention::Heads(a) => {
                let (mut q, mut k) = (lin(x, L::Q, L::QBias, width), lin(x, L::K, L::KBias, width));
                let v = lin(x, L::V, L::VBias, width);
                let dim = a.head_dim as usize;
                if let Some(n) = a.qk_norm {
                    let eps = f64::from(n.norm.eps);
                    q = norm(&q, self.need(slot(L::QNorm)), None, false, eps);
                    k = norm(&k, self.need(slot(L::KNorm)), None, false, eps);
                }
                if let Some(table) = a.rope {
                    let (heads, kv) = (a.heads as usize, a.kv_heads as usize);
                    self.rotate(&mut q, heads * dim, table, 0, dim, heads);
                    self.rotate(&mut k, kv * dim, table, 0, dim, kv);
                }
                shape = Heads {
                    scale: a.scale,
                    window: a.window.unwrap_or(0) as usize,
                    softcap: a.softcap.unwrap_or(0.0),
                    slopes: &a.alibi,
                    ..Heads::new(a.heads as usize, a.kv_heads as usize, dim, self.length)
                };
                join([&q, &k, &v], rows)
            }
            Attention::Latent(a) => {
                let (heads, rank, nope) = (a.heads as usize, a.kv_rank as usize, a.nope_dim as usize);
                let (turned, value) = (a.rope_dim as usize, a.value_dim as usize);
                let eps = f64::from(a.norm.eps);
                let dim = nope + turned;
                let mut q = match a.q_rank {
                    None => lin(x, L::Q, L::QBias, width),
                    Some(n) => {
                        let down = lin(x, L::QDown, L::QDownBias, width);
                        let down = norm(&down, self.need(slot(L::QDownNorm)), None, false, eps);
                        lin(&down, L::QUp, L::QBias, n as usize)
                    }
                };
                let mut c = lin(x, L::KvDown, L::KvDownBias, width);
                for row in c.chunks_mut(rank + turned) {
                    let normed = norm(&row[..rank], self.need(slot(L::KvDownNorm)), None, false, eps);
                    row[..rank].copy_from_slice(&normed);
                }
                if turned > 0 {
                    self.rotate(&mut q, heads * dim, a.rope, nope, dim, heads);
                    self.rotate(&mut c, rank + turned, a.rope, rank, 0, 1);
                }
                let (kw, vw) = (self.need(slot(L::KAbsorb)), self.need(slot(L::VAbsorb)));
                let (mut k, mut v) = (Vec::new(), Vec::new());
                for row in c.chunks(rank + turned) {
                    for h in 0..heads {
                        let up =
                            |i: usize| (0..rank).map(|r| row[r] * kw[(h * rank + r) * nope + i]).sum::<f64>();
                        k.extend((0..nope).map(up));
                        k.extend_from_slice(&row[rank..]);
                        let out = |i: usize| {
                            (0..rank).map(|r| row[r] * vw[(h * value + i) * rank + r]).sum::<f64>()
                        };
                        v.extend((0..value).map(out));
                    }
                }
                let plain = Heads::new(heads, heads, dim, self.length);
                shape = Heads { value_dim: value, scale: a.scale, ..plain };
                join([&q, &k, &v], rows)
            }
        };
        let sinks = self.get(slot(L::Sinks)).unwrap_or(&[]);
        let kept = self.masks.get(&(3 * l as usize + 1)).map(Vec::as_slice).unwrap_or_default();
        lin(&attention(&shape, &qkv, sinks, kept), L::Out, L::OutBias, shape.heads * shape.value_dim)
    }

    /// The block's output, and the losses it adds.
    fn feed(&self, l: u32, ffn: &Ffn, x: &[f64]) -> (Vec<f64>, f64) {
        let slot = |part| Slot::Layer(l, part);
        let d = self.spec.width as usize;
        let gate_up = |x: &[f64], g: L, gb: L, u: L, ub: L, down: L, db: L, n: usize, c: Curve| {
            let g = linear(x, self.need(slot(g)), self.get(slot(gb)), n, d);
            let u = linear(x, self.need(slot(u)), self.get(slot(ub)), n, d);
            let y: Vec<f64> = g.iter().zip(&u).map(|(g, u)| gate(c, *g, *u)).collect();
            linear(&y, self.need(slot(down)), self.get(slot(db)), d, n)
        };
        match ffn {
            Ffn::Plain(f) => {
                let n = f.inner as usize;
                let up = linear(x, self.need(slot(L::Up)), self.get(slot(L::UpBias)), n, d);
                let y: Vec<f64> = up.iter().map(|x| activate(curve(f.activation), *x)).collect();
                (linear(&y, self.need(slot(L::Down)), self.get(slot(L::DownBias)), d, n), 0.0)
            }
            Ffn::Gated(f) => {
                let (n, c) = (f.inner as usize, curve(f.activation));
                (gate_up(x, L::Gate, L::GateBias, L::Up, L::UpBias, L::Down, L::DownBias, n, c), 0.0)
            }
            Ffn::Experts(e) => {
                let (count, n) = (e.count as usize, e.expert.inner as usize);
                let c = curve(e.expert.activation);
                let logits = linear(x, self.need(slot(L::Router)), self.get(slot(L::RouterBias)), count, d);
                let rows = x.len() / d;
                let (mut y, mut lse2) = (vec![0.0; x.len()], 0.0);
                let (mut share, mut mean) = (vec![0.0; count], vec![0.0; count]);
                for (r, row) in logits.chunks(count).enumerate() {
                    let sum: f64 = row.iter().map(|v| v.exp()).sum();
                    lse2 += sum.ln().powi(2);
                    let s: Vec<f64> = match e.scoring {
                        Scoring::Sigmoid => row.iter().map(|v| 1.0 / (1.0 + (-v).exp())).collect(),
                        _ => row.iter().map(|v| v.exp() / sum).collect(),
                    };
                    let correction = self.get(slot(L::ChoiceBias));
                    let rank: Vec<f64> =
                        s.iter().enumerate().map(|(e, s)| s + correction.map_or(0.0, |c| c[e])).collect();
                    let size = count / e.groups as usize;
                    let mut groups: Vec<usize> = (0..e.groups as usize).collect();
                    let of_group = |g: usize| {
                        let mut group = rank[g * size..(g + 1) * size].to_vec();
                        group.sort_by(|a, b| b.total_cmp(a));
                        group[..if e.group_rank == GroupRank::TopTwo { 2 } else { 1 }].iter().sum::<f64>()
                    };
                    groups.sort_by(|a, b| of_group(*b).total_cmp(&of_group(*a)));
                    groups.truncate(e.active_groups as usize);
                    let mut best: Vec<usize> = (0..count).filter(|e| groups.contains(&(e / size))).collect();
                    best.sort_by(|a, b| rank[*b].total_cmp(&rank[*a]));
                    best.truncate(e.active as usize);
                    let normed = e.normalize || e.scoring == Scoring::SoftmaxOfChosen;
                    let whole = if normed { best.iter().map(|e| s[*e]).sum() } else { 1.0 };
                    let x = &x[r * d..(r + 1) * d];
                    for b in &best {
                        share[*b] += 1.0 / (rows * best.len()) as f64;
                        self.chosen.borrow_mut().entry(l).or_insert_with(|| vec![0; count])[*b] += 1;
                        let of = |part: L, len: usize| &self.need(slot(part))[b * len..(b + 1) * len];
                        let bias = |part: L, len: usize| {
                            self.get(slot(part)).map(|all| &all[b * len..(b + 1) * len])
                        };
                        let g = linear(x, of(L::ExpertGate, n * d), bias(L::ExpertGateBias, n), n, d);
                        let u = linear(x, of(L::ExpertUp, n * d), bias(L::ExpertUpBias, n), n, d);
                        let a: Vec<f64> = g.iter().zip(&u).map(|(g, u)| gate(c, *g, *u)).collect();
                        let out = linear(&a, of(L::ExpertDown, n * d), bias(L::ExpertDownBias, d), d, n);
                        let weight = s[*b] / whole * f64::from(e.scale);
                        y[r * d..(r + 1) * d].iter_mut().zip(out).for_each(|(y, o)| *y += weight * o);
                    }
                    let sum: f64 = s.iter().sum();
                    add(&mut mean, &s.iter().map(|s| s / sum / rows as f64).collect::<Vec<_>>());
                }
                if let Some(shared) = e.shared {
                    let (n, c) = (shared.dense.inner as usize, curve(shared.dense.activation));
                    let none = L::GateBias;
                    let mut out =
                        gate_up(x, L::SharedGate, none, L::SharedUp, none, L::SharedDown, none, n, c);
                    if shared.gate {
                        let switch = linear(x, self.need(slot(L::SharedSwitch)), None, 1, d);
                        for (row, z) in out.chunks_mut(d).zip(switch) {
                            row.iter_mut().for_each(|v| *v /= 1.0 + (-z).exp());
                        }
                    }
                    add(&mut y, &out);
                }
                let balance: f64 = share.iter().zip(&mean).map(|(f, p)| f * p).sum::<f64>() * count as f64;
                let extra =
                    f64::from(self.losses.balance) * balance * rows as f64 + f64::from(self.losses.z) * lse2;
                (y, extra)
            }
        }
    }

    /// The summed loss of the tokens and, beside it, what the routers add: for each token with a loss the means over rows.
    fn loss(&self, ids: &[u32], targets: &[u32]) -> (f64, f64) {
        let (spec, d) = (self.spec, self.spec.width as usize);
        let embed = self.need(Slot::Embedding);
        let scale = f64::from(spec.embedding_scale);
        let mut x: Vec<f64> = ids
            .iter()
            .flat_map(|id| embed[*id as usize * d..][..d].iter().map(|v| v * scale).collect::<Vec<_>>())
            .collect();
        if let Some(positions) = self.get(Slot::Positions) {
            x.iter_mut().enumerate().for_each(|(i, x)| *x += positions[i % (self.length * d)]);
        }
        x = self.norm(&x, spec.embedding_norm, Slot::EmbeddingNorm, Slot::EmbeddingNormBias);
        x = self.dropped(x, 0);
        let mut extra = 0.0;
        for (l, layer) in (0u32..).zip(&spec.layers) {
            let slot = |part| Slot::Layer(l, part);
            let h = self.norm(&x, layer.attention_norm, slot(L::AttentionNorm), slot(L::AttentionNormBias));
            let y = self.attend(l, &layer.attention, &h);
            let attended = self.norm(
                &y,
                layer.attention_post_norm,
                slot(L::AttentionPostNorm),
                slot(L::AttentionPostNormBias),
            );
            let attended = self.dropped(attended, 3 * l as usize + 2);
            let mut seen = x.clone();
            if !layer.parallel {
                add(&mut seen, &attended);
            }
            let h = self.norm(&seen, layer.ffn_norm, slot(L::FfnNorm), slot(L::FfnNormBias));
            let (y, more) = self.feed(l, &layer.ffn, &h);
            let fed = self.norm(&y, layer.ffn_post_norm, slot(L::FfnPostNorm), slot(L::FfnPostNormBias));
            let fed = self.dropped(fed, 3 * l as usize + 3);
            add(&mut x, &attended);
            add(&mut x, &fed);
            extra += more;
        }
        let y = self.norm(&x, Some(spec.final_norm), Slot::FinalNorm, Slot::FinalNormBias);
        let head = self.get(Slot::Head).unwrap_or(embed);
        let vocab = spec.vocab as usize;
        let learned = targets.iter().filter(|t| (**t as usize) < vocab).count() as f64;
        let extra = extra * learned / targets.len() as f64;
        let mut logits = linear(&y, head, self.get(Slot::HeadBias), vocab, d);
        bend(&mut logits, Bend { scale: spec.logit_scale, softcap: spec.logit_softcap });
        (cross_entropy(&logits, vocab, targets), extra)
    }
}

/// Loss and gradients of `spec`: of every parameter its first, its last and some values between. With `dropout` that
/// share is dropped, here and there the same values.
fn agree(name: &str, spec: &Spec, params: &Params, losses: RouterLosses, dropout: f32, every: usize) {
    let (length, key) = (spec.context as usize, (5, 3));
    let masks = if dropout > 0.0 { masks(spec, (2, length), dropout, key) } else { Masks::new() };
    let weights = loud(params, spec.layers.len());
    let (ids, mut targets) = tokens(2 * spec.context, spec.vocab);
    targets[4] = u32::MAX;
    let how = How { train: Some(Recompute::None), dropout, ..How::default() };
    let tape = Tape::record(spec, params, (2, length), how);
    let mut engine = Engine::new(spec, params, 2, losses);
    let mut grads = vec![0.0; params.total];
    let want = Want::Gradient { scale: 1.0, grads: &mut grads };
    let input = Input { ids: &ids, targets: &targets, starts: &[], key };
    let loss = engine.run(&tape, &weights, &input, want);
    let twin = |weights: &[f64]| {
        let (masks, chosen) = (&masks, RefCell::default());
        Model { spec, params, weights, losses, masks, length, chosen }.loss(&ids, &targets)
    };
    let mut x = wide(&weights);
    let expected = twin(&x).0;
    assert!((loss - expected).abs() < 1e-4 * expected, "{name}: {loss}, expected {expected}");
    for p in &params.list {
        if !p.trained {
            assert!(grads[p.range()].iter().all(|g| *g == 0.0), "{name}: {:?}", p.slot());
            continue;
        }
        let what = format!("{name}: {:?}", p.slot());
        let range = p.range();
        let last = range.end - 1;
        for i in range.step_by(every).chain([last]) {
            // f32 through two layers; a wrong term shows at a hundredth
            check(&what, &mut x, i, grads[i], 1e-3, &|w: &[f64]| {
                let (loss, extra) = twin(w);
                loss + extra
            });
        }
    }
}

#[test]
fn gradients_of_every_design_agree_with_finite_differences() {
    for (name, model) in designs() {
        let (arch, spec) = model.spec().unwrap_or_else(|e| panic!("{name}: {e}"));
        let expected = name.split([',', ':']).next().unwrap();
        let expected = if expected == "own" { "libllm" } else { expected };
        assert_eq!(model.layout(), expected, "{name}");
        let params = Params::new(arch, &spec, model.position == Position::Sinusoidal);
        agree(name, &spec, &params, RouterLosses::default(), 0.0, 61);
    }
}

#[test]
fn gradients_with_dropout_agree_with_finite_differences_under_the_same_masks() {
    for (name, arch, spec) in shapes() {
        let params = Params::new(arch, &spec, false);
        agree(name, &spec, &params, RouterLosses { balance: 0.3, z: 0.0 }, 0.2, 61);
    }
}

#[test]
fn gradients_of_parts_that_only_checkpoints_have_agree_with_finite_differences() {
    for (name, arch, spec) in foreign() {
        let params = Params::new(arch, &spec, false);
        agree(name, &spec, &params, RouterLosses::default(), 0.0, 31);
        agree(name, &spec, &params, RouterLosses { balance: 0.3, z: 0.1 }, 0.0, 61);
    }
}

#[test]
fn the_losses_of_a_router_have_the_gradients_of_their_definition() {
    for (name, model) in designs().into_iter().filter(|(_, m)| m.experts.count > 0) {
        let (arch, spec) = model.spec().unwrap();
        let params = Params::new(arch, &spec, false);
        // a log-sum-exp says nothing about sigmoids
        let z = if model.experts.scoring == ScoringDesign::Sigmoid { 0.0 } else { 0.1 };
        agree(name, &spec, &params, RouterLosses { balance: 0.3, z }, 0.0, 41);
    }
}

#[test]
fn the_correction_of_a_choice_follows_how_many_rows_of_all_passes_chose_each_expert() {
    let (_, model) = designs().into_iter().find(|(n, _)| *n == "deepseek_v3").unwrap();
    let (arch, spec) = model.spec().unwrap();
    let params = Params::new(arch, &spec, false);
    let (length, losses) = (spec.context as usize, RouterLosses::default());
    let weights = loud(&params, spec.layers.len());
    let (wide, masks, chosen) = (wide(&weights), Masks::new(), RefCell::default());
    let twin = Model { spec: &spec, params: &params, weights: &wide, losses, masks: &masks, length, chosen };
    let mut engine = Engine::new(&spec, &params, 2, losses);
    let mut grads = vec![0.0; params.total];
    // what is computed again counts once
    for (pass, recompute) in [(0u32, Recompute::None), (1, Recompute::Block)] {
        let tape = Tape::record(&spec, &params, (2, length), Some(recompute));
        let rows = 2 * length as u32;
        let ids: Vec<u32> = (0..rows).map(|i| (i * 7 + pass) * (pass + 2) % spec.vocab).collect();
        let input = Input { ids: &ids, targets: &ids, starts: &[], key: (0, 0) };
        engine.run(&tape, &weights, &input, Want::Gradient { scale: 1.0, grads: &mut grads });
        twin.loss(&ids, &ids);
    }
    let (mut moved, mut kinds) = (weights.clone(), BTreeMap::new());
    engine.correct_choices(0.25, &mut moved);
    let Ffn::Experts(x) = &spec.layers[1].ffn else { panic!("the first layer alone is dense") };
    let mean = f64::from(2 * 2 * spec.context * x.active) / f64::from(x.count);
    let place = params.place(Slot::Layer(1, L::ChoiceBias));
    for (e, i) in place.clone().enumerate() {
        let load = twin.chosen.borrow()[&1][e] as f64;
        let step = if load > mean {
            -0.25
        } else if load < mean {
            0.25
        } else {
            0.0
        };
        assert_eq!(moved[i], weights[i] + step, "expert {e} with {load} of {mean}");
        *kinds.entry((step * 4.0) as i32).or_insert(0) += 1;
    }
    assert!(kinds.contains_key(&1) && kinds.contains_key(&-1), "{kinds:?}");
    moved[place.clone()].copy_from_slice(&weights[place]);
    assert_eq!(moved, weights);
    engine.clear_loads();
    engine.correct_choices(0.25, &mut moved);
    assert_eq!(moved, weights);
}

#[test]
fn blocks_side_by_side_have_the_gradients_of_their_definition() {
    let (_, model) = designs().into_iter().find(|(n, _)| *n == "own: no positions").unwrap();
    let (arch, mut spec) = model.spec().unwrap();
    spec.layers.iter_mut().for_each(|l| l.parallel = true);
    let params = Params::new(arch, &spec, false);
    for dropout in [0.0, 0.2] {
        agree("parallel", &spec, &params, RouterLosses::default(), dropout, 61);
    }
}

/// One layer of a preset that is trained on larger machines, of its own width. There are too many values to go through,
/// so each tensor has a slope, along random signs: every value has its share in it, and it is of the size of the
/// gradient's norm, with which its error is compared.
fn one_layer(preset: &str) {
    const LENGTH: usize = 12;
    let mut model = crate::Config::preset(preset).unwrap().model;
    (model.vocab, model.context, model.layers) = (257, LENGTH, 1);
    model.experts.dense_layers = 0;
    let (arch, spec) = model.spec().unwrap();
    let params = Params::new(arch, &spec, false);
    // normal numbers take long to draw; vectors are far from zero, biases too
    let uniform = |i: usize| (mix(i as u64) >> 40) as f32 / 8_388_608.0 - 1.0;
    let mut weights = vec![0.0; params.total];
    for p in &params.list {
        let (middle, spread) = if p.cols == 0 { (0.5, 0.25) } else { (0.0, 0.07) };
        weights[p.range()].iter_mut().zip(p.range()).for_each(|(w, i)| *w = middle + spread * uniform(i));
    }
    let ids: [u32; LENGTH] = [3, 200, 17, 3, 256, 91, 17, 0, 140, 3, 55, 201];
    let mut targets = ids;
    targets.rotate_left(1);
    targets[4] = u32::MAX;
    let losses = RouterLosses { balance: 0.3, z: 0.0 };
    let mut engine = Engine::new(&spec, &params, 2, losses);
    let tape = Tape::record(&spec, &params, (1, LENGTH), Some(Recompute::None));
    let mut grads = vec![0.0; params.total];
    let input = Input { ids: &ids, targets: &targets, starts: &[], key: (0, 0) };
    let loss = engine.run(&tape, &weights, &input, Want::Gradient { scale: 1.0, grads: &mut grads });
    let masks = Masks::new();
    let twin = |weights: &[f64]| {
        let (spec, params, masks, chosen) = (&spec, &params, &masks, RefCell::default());
        Model { spec, params, weights, losses, masks, length: LENGTH, chosen }.loss(&ids, &targets)
    };
    let mut x = wide(&weights);
    let expected = twin(&x).0;
    assert!((loss - expected).abs() < 1e-5 * expected, "{preset}: {loss}, expected {expected}");
    let sign = |i: usize| -> f64 { if mix(!(i as u64)) & 1 == 0 { 1.0 } else { -1.0 } };
    let size = |g: &[f32]| g.iter().map(|g| f64::from(*g).powi(2)).sum::<f64>().sqrt();
    for p in &params.list {
        if !p.trained {
            assert!(grads[p.range()].iter().all(|g| *g == 0.0), "{preset}: {:?}", p.slot());
            continue;
        }
        for part in &p.parts {
            let place = params.place(part.slot);
            let mut moved = |by: f64| {
                for i in place.clone() {
                    x[i] = f64::from(weights[i]) + by * sign(i);
                }
                let (loss, extra) = twin(&x);
                loss + extra
            };
            let expected = (moved(STEP) - moved(-STEP)) / (2.0 * STEP);
            x[place.clone()].iter_mut().zip(&weights[place.clone()]).for_each(|(x, w)| *x = f64::from(*w));
            let got: f64 = place.clone().map(|i| sign(i) * f64::from(grads[i])).sum();
            // a bias of keys that are not rotated has no gradient, but rounding beside that of the values
            let error = 1e-4 * size(&grads[place]) + 1e-6 * size(&grads[p.range()]);
            assert!(
                (got - expected).abs() <= error,
                "{preset}: {:?}: {got}, expected {expected}, to {error}",
                part.slot
            );
        }
    }
}

#[test]
fn a_layer_of_large_presets_of_gpt2_has_the_gradients_of_its_definition() {
    ["gpt2-large", "gpt2-xl"].into_iter().for_each(one_layer);
}

#[test]
fn a_layer_of_large_presets_of_llama_has_the_gradients_of_its_definition() {
    ["large", "xl", "llama-1b"].into_iter().for_each(one_layer);
}

#[test]
fn a_layer_of_presets_with_latent_attention_and_experts_has_the_gradients_of_its_definition() {
    ["mla-moe", "mla-moe-v3"].into_iter().for_each(one_layer);
}
