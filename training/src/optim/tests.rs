//! Whole steps of every optimizer against slow twins in f64 that follow the papers: which update a parameter takes,
//! what decays, how corrections and rates go with the steps. A twin's step begins from what the optimizer holds, so
//! each is proved by itself, however moments are kept.

use super::*;
use crate::design::Position;
use crate::random::{Stream, normal};
use crate::twin::{designs, wide};

/// Every optimizer, alone and behind GaLore's projection.
fn all() -> Vec<OptimConfig> {
    let base = OptimConfig { rate: 0.1, muon_rate: 0.05, galore_every: 2, ..OptimConfig::default() };
    let of = |kind| OptimConfig { kind, ..base.clone() };
    // at a usual eps the first update is a sign, and rounding turns that of a product near zero
    let projected = |kind| OptimConfig { galore_rank: 3, eps: 0.1, ..of(kind) };
    vec![
        of(OptimizerKind::AdamW),
        of(OptimizerKind::AdamW8),
        of(OptimizerKind::Lion),
        of(OptimizerKind::Muon),
        projected(OptimizerKind::AdamW),
        projected(OptimizerKind::AdamW8),
    ]
}

/// A parameter and its state, in f64; what a state lacks is empty.
struct Held {
    weights: Vec<f64>,
    first: Vec<f64>,
    second: Vec<f64>,
    momentum: Vec<f64>,
    basis: Vec<f64>,
}

impl Held {
    fn of(state: &State, weights: &[f32]) -> Held {
        let [first, second, momentum, basis] =
            ["first", "second", "momentum", "basis"].map(|name| part(state, name));
        Held { weights: wide(weights), first, second, momentum, basis }
    }

    /// One step on the gradient `g`, along the directions `basis` where they are asked for.
    fn step(&mut self, o: &OptimConfig, p: &Param, step: &Step, basis: &[f64], g: &[f32]) {
        if !p.trained {
            return;
        }
        let t = step.index as i32 + 1;
        let g: Vec<f64> = g.iter().map(|g| f64::from(step.scale) * f64::from(*g)).collect();
        let mut rate = f64::from(step.rate);
        let update = match o.kind {
            OptimizerKind::Lion => self.lion(o, &g),
            OptimizerKind::Muon if p.is_hidden_matrix() => {
                rate *= f64::from(o.muon_rate) / f64::from(o.rate);
                self.muon(o, p, &g)
            }
            _ if o.galore_rank > 0 && p.is_hidden_matrix() => self.galore(o, p, t, basis, &g),
            _ => self.adam(o, t, &g),
        };
        // matrices decay, vectors do not
        let decay = if p.cols > 0 { f64::from(o.decay) } else { 0.0 };
        for (w, u) in self.weights.iter_mut().zip(update) {
            *w -= rate * (u + decay * *w);
        }
    }

    /// arXiv:1711.05101, algorithm 2.
    fn adam(&mut self, o: &OptimConfig, t: i32, g: &[f64]) -> Vec<f64> {
        let moved = |beta: f32, moment: &mut f64, x: f64| {
            let beta = f64::from(beta);
            *moment = beta * *moment + (1.0 - beta) * x;
            *moment / (1.0 - beta.powi(t))
        };
        let moments = self.first.iter_mut().zip(&mut self.second);
        let update = g.iter().zip(moments).map(|(g, (first, second))| {
            let (first, second) = (moved(o.beta1, first, *g), moved(o.beta2, second, g * g));
            first / (second.sqrt() + f64::from(o.eps))
        });
        update.collect()
    }

    /// arXiv:2302.06675, algorithm 2.
    fn lion(&mut self, o: &OptimConfig, g: &[f64]) -> Vec<f64> {
        let (beta1, beta2) = (f64::from(o.beta1), f64::from(o.beta2));
        let update = g.iter().zip(&mut self.momentum).map(|(g, m)| {
            let direction = beta1 * *m + (1.0 - beta1) * g;
            *m = beta2 * *m + (1.0 - beta2) * g;
            direction.signum()
        });
        update.collect()
    }

    /// kellerjordan.github.io/posts/muon with Nesterov's momentum; each projection and each expert by itself.
    fn muon(&mut self, o: &OptimConfig, p: &Param, g: &[f64]) -> Vec<f64> {
        let beta = f64::from(o.muon_momentum);
        let ahead: Vec<f64> = g
            .iter()
            .zip(&mut self.momentum)
            .map(|(g, m)| {
                *m = beta * *m + g;
                beta * *m + g
            })
            .collect();
        let (mut rest, mut update) = (&ahead[..], Vec::new());
        for part in &p.parts {
            for _ in 0..p.count {
                let (matrix, behind) = rest.split_at(part.rows * p.cols);
                update.extend(orthogonal(matrix, p.cols));
                rest = behind;
            }
        }
        update
    }

    /// arXiv:2403.03507, algorithm 2: the smaller side is projected, of a stack of experts as of one tall matrix.
    fn galore(&mut self, o: &OptimConfig, p: &Param, t: i32, basis: &[f64], g: &[f64]) -> Vec<f64> {
        let (rows, cols) = (p.count * p.rows, p.cols);
        let rank = basis.len() / rows.min(cols);
        let turned = transposed(basis, rank);
        let whole = if rows <= cols {
            times(basis, &self.adam(o, t, &times(&turned, g, rows)), rank)
        } else {
            times(&self.adam(o, t, &times(g, basis, cols)), &turned, rank)
        };
        whole.iter().map(|u| f64::from(o.galore_scale) * u).collect()
    }
}

/// A tensor of a state in f64, eight bits by the definition of their codes; empty where there is none.
fn part(state: &State, name: &str) -> Vec<f64> {
    let parts = state.parts();
    let find = |name: &str| parts.iter().find(|part| part.0 == name).map(|part| part.1);
    let codes = match find(name) {
        None => return Vec::new(),
        Some(Values::F32(values)) => return wide(values),
        Some(Values::U8(codes)) => codes,
    };
    let Some(Values::F32(tops)) = find(&format!("{name}_top")) else { panic!("{name} without a scale") };
    let value = |(i, code): (usize, &u8)| {
        let signed = f64::from(*code as i8) / 127.0;
        let share = if name == "first" { signed * signed.abs() } else { (f64::from(*code) / 255.0).powi(4) };
        f64::from(tops[i / 256]) * share
    };
    codes.iter().enumerate().map(value).collect()
}

/// `[m, k]·[k, n]`
fn times(a: &[f64], b: &[f64], k: usize) -> Vec<f64> {
    let n = b.len() / k;
    let dot =
        |row: &[f64], j: usize| -> f64 { row.iter().zip(b[j..].iter().step_by(n)).map(|(a, b)| a * b).sum() };
    a.chunks(k).flat_map(|row| (0..n).map(|j| dot(row, j)).collect::<Vec<_>>()).collect()
}

fn transposed(a: &[f64], cols: usize) -> Vec<f64> {
    (0..cols).flat_map(|j| a[j..].iter().step_by(cols).copied().collect::<Vec<_>>()).collect()
}

/// Five rounds of Newton and Schulz, X ← aX + b(XXᵀ)X + c(XXᵀ)²X, times √max(1, rows/cols).
fn orthogonal(x: &[f64], cols: usize) -> Vec<f64> {
    let rows = x.len() / cols;
    let norm = x.iter().map(|x| x * x).sum::<f64>().sqrt();
    let mut x: Vec<f64> = x.iter().map(|x| x / norm).collect();
    for _ in 0..5 {
        let gram = times(&x, &transposed(&x, cols), cols);
        let square = times(&gram, &gram, rows);
        let both: Vec<f64> = gram.iter().zip(square).map(|(g, s)| -4.7750 * g + 2.0315 * s).collect();
        let moved = times(&both, &x, rows);
        x.iter_mut().zip(moved).for_each(|(x, moved)| *x = 3.4445 * *x + moved);
    }
    let scale = (rows as f64 / cols as f64).max(1.0).sqrt();
    x.iter().map(|x| scale * x).collect()
}

fn draw(n: usize, of: u64) -> Vec<f32> {
    (0..n).map(|i| normal(11, Stream::Weights, of, i as u64)).collect()
}

/// Values are of the size of one, and rates a tenth: an update is compared to a hundred-thousandth.
#[track_caller]
fn close(what: &str, got: &[f64], expected: &[f64]) {
    assert_eq!(got.len(), expected.len(), "{what}");
    for (i, (a, b)) in got.iter().zip(expected).enumerate() {
        assert!((a - b).abs() <= 1e-6 * (1.0 + b.abs()), "{what}[{i}]: {a}, expected {b}");
    }
}

#[test]
fn every_optimizer_steps_as_its_paper_says() {
    // biases and a table that is not trained; projections that lie together; experts, a router and its correction
    let chosen = designs().into_iter().filter(|(name, model)| {
        *name == "deepseek_v3" || *name == "mixtral" || model.position == Position::Sinusoidal
    });
    for (design, model) in chosen {
        let (arch, spec) = model.spec().unwrap();
        let params = Params::new(arch, &spec, model.position == Position::Sinusoidal);
        for o in all() {
            let mut weights = draw(params.total, 0);
            let (mut dense, mut optimizer) = (Dense::new(2), Optimizer::new(&o, &params));
            for index in 0..5 {
                let rate = o.rate * (1.0 - 0.2 * index as f32);
                let step = Step { index, rate, scale: 0.7, seed: 5 };
                let grads = draw(params.total, 1 + index);
                let before = params.list.iter().zip(&optimizer.states);
                let before: Vec<Held> = before.map(|(p, s)| Held::of(s, &weights[p.range()])).collect();
                optimizer.step(&mut dense, &o, &step, &params, &mut weights, &grads);
                for ((p, state), mut expected) in params.list.iter().zip(&optimizer.states).zip(before) {
                    let got = Held::of(state, &weights[p.range()]);
                    let which = format!("{design}, {:?}, rank {}", o.kind, o.galore_rank);
                    let what = |of: &str| format!("{which}: {of} of {} in step {index}", p.describe());
                    if !got.basis.is_empty() {
                        let side = (p.count * p.rows).min(p.cols);
                        let rank = got.basis.len() / side;
                        let products = times(&transposed(&got.basis, rank), &got.basis, side);
                        let one = |i: usize| if i / rank == i % rank { 1.0 } else { 0.0 };
                        let one: Vec<f64> = (0..rank * rank).map(one).collect();
                        close(&what("products of directions"), &products, &one);
                        let anew = index.is_multiple_of(o.galore_every);
                        assert_eq!(got.basis != expected.basis, anew, "{}", what("directions"));
                    }
                    expected.step(&o, p, &step, &got.basis, &grads[p.range()]);
                    close(&what("weights"), &got.weights, &expected.weights);
                    // which codes are written has a test beside the kernel
                    if !state.parts().iter().any(|part| matches!(part.1, Values::U8(_))) {
                        close(&what("first moments"), &got.first, &expected.first);
                        close(&what("second moments"), &got.second, &expected.second);
                        close(&what("momentum"), &got.momentum, &expected.momentum);
                    }
                }
            }
        }
    }
}
