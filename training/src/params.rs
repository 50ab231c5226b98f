//! The parameters of a model: which there are, where they lie in one flat vector, and what they begin with.
//!
//! They follow from the spec and its architecture's list of tensors. Places that one product takes together lie
//! together, as one parameter of several parts: queries, keys and values; gate and up.

use std::ops::Range;

use llm::model::arch::{Arch, LayerSlot as L, Slot, Want};
use llm::model::spec::Spec;

use crate::random::{Stream, normal};

/// One place of a parameter.
#[derive(Clone, Debug)]
pub(crate) struct Part {
    pub slot: Slot,
    /// Rows of a matrix, values of a vector.
    pub rows: usize,
}

/// One parameter: a matrix `[rows, cols]`, `count` of them one behind the other, or a vector of `rows` where `cols` is 0.
#[derive(Clone, Debug)]
pub(crate) struct Param {
    pub parts: Vec<Part>,
    pub count: usize,
    pub rows: usize,
    pub cols: usize,
    /// Whether it is trained.
    pub trained: bool,
    /// What it is called, where its slot does not name it.
    name: Option<String>,
    offset: usize,
}

impl Param {
    pub fn len(&self) -> usize {
        self.count * self.rows * self.cols.max(1)
    }

    pub fn range(&self) -> Range<usize> {
        self.offset..self.offset + self.len()
    }

    /// Matrix `i`.
    pub fn matrix(&self, i: usize) -> Range<usize> {
        let each = self.rows * self.cols;
        self.offset + i * each..self.offset + (i + 1) * each
    }

    /// The first place's slot, which names it.
    pub fn slot(&self) -> Slot {
        self.parts[0].slot
    }

    /// What it is called: in files of an optimizer's state, in messages.
    pub fn describe(&self) -> String {
        match (&self.name, self.slot()) {
            (Some(name), _) => name.clone(),
            (None, Slot::Layer(i, slot)) => format!("{i}.{slot:?}"),
            (None, slot) => format!("{slot:?}"),
        }
    }

    /// A matrix between hidden vectors: not an embedding, not the head, not a router.
    pub fn is_hidden_matrix(&self) -> bool {
        let outer = matches!(
            self.slot(),
            Slot::Embedding | Slot::Positions | Slot::Head | Slot::Layer(_, L::Router | L::SharedSwitch)
        );
        self.cols > 0 && !outer
    }

    /// Matrices decay, vectors do not.
    pub fn decays(&self) -> bool {
        self.cols > 0
    }
}

/// All parameters of a model in the order in which they lie in memory.
#[derive(Clone, Debug)]
pub(crate) struct Params {
    pub list: Vec<Param>,
    /// The tensors of the architecture's list.
    pub wants: Vec<Want>,
    /// What tensor names begin with.
    pub prefix: &'static str,
    /// Length of the flat vector. Each parameter begins at a multiple of 16; the gaps stay zero.
    pub total: usize,
}

/// Places that lie together.
const TOGETHER: &[&[L]] = &[
    &[L::Q, L::K, L::V],
    &[L::QBias, L::KBias, L::VBias],
    &[L::Gate, L::Up],
    &[L::GateBias, L::UpBias],
    &[L::SharedGate, L::SharedUp],
];

impl Params {
    /// Those of `spec`. `fixed_positions`: the table of positions is not trained.
    pub fn new(arch: &Arch, spec: &Spec, fixed_positions: bool) -> Params {
        let wants = (arch.tensors)(spec);
        let mut p = Params { list: Vec::new(), wants: Vec::new(), prefix: arch.prefix, total: 0 };
        let mut done: Vec<Slot> = Vec::new();
        for want in &wants {
            if done.contains(&want.slot) {
                continue;
            }
            let together: Vec<Slot> = match want.slot {
                Slot::Layer(i, part) => {
                    let group = TOGETHER.iter().find(|g| g[0] == part).copied().unwrap_or(&[]);
                    group.iter().map(|l| Slot::Layer(i, *l)).collect()
                }
                _ => Vec::new(),
            };
            let whole = !together.is_empty() && together.iter().all(|s| wants.iter().any(|w| w.slot == *s));
            let slots = if whole { together } else { vec![want.slot] };
            p.add(&wants, &slots, fixed_positions);
            // a layer has few places, and they follow each other
            done.retain(|s| matches!((s, want.slot), (Slot::Layer(a, _), Slot::Layer(b, _)) if *a == b));
            done.extend(slots);
        }
        p.wants = wants;
        p
    }

    fn add(&mut self, wants: &[Want], slots: &[Slot], fixed_positions: bool) {
        let dim = |n: u64| n as usize;
        let (mut parts, mut rows, mut cols, mut count) = (Vec::new(), 0, 0, 1);
        for want in slots.iter().filter_map(|s| wants.iter().find(|w| w.slot == *s)) {
            let here = match want.shape[..] {
                [n] => dim(n),
                [r, c] => {
                    cols = dim(c);
                    dim(r)
                }
                [n, r, c] => {
                    (count, cols) = (dim(n), dim(c));
                    dim(r)
                }
                _ => 0,
            };
            parts.push(Part { slot: want.slot, rows: here });
            rows += here;
        }
        let slot = slots[0];
        // the correction of the choice of experts follows a rule of its own in the models that have it
        let trained =
            !(fixed_positions && slot == Slot::Positions || matches!(slot, Slot::Layer(_, L::ChoiceBias)));
        let param = Param { parts, count, rows, cols, trained, name: None, offset: self.total };
        // sizes are numbers of a file: what they add up to is compared with the machine's memory before it is taken
        self.total = self.total.saturating_add(param.len().next_multiple_of(16));
        self.list.push(param);
    }

    /// Matrices `(name, slot, rows, cols)` beside a model.
    pub fn named(list: Vec<(String, Slot, usize, usize)>) -> Params {
        let mut p = Params { list: Vec::new(), wants: Vec::new(), prefix: "", total: 0 };
        for (name, slot, rows, cols) in list {
            let parts = vec![Part { slot, rows }];
            let param =
                Param { parts, count: 1, rows, cols, trained: true, name: Some(name), offset: p.total };
            p.total += param.len().next_multiple_of(16);
            p.list.push(param);
        }
        p
    }

    /// From now on nothing is trained.
    pub fn freeze(&mut self) {
        self.list.iter_mut().for_each(|p| p.trained = false);
    }

    /// The parameter that begins with `slot`.
    pub fn find(&self, slot: Slot) -> Option<usize> {
        self.list.iter().position(|p| p.slot() == slot)
    }

    /// Where the values of `slot` lie.
    ///
    /// # Panics
    /// If the model has no such place.
    pub fn place(&self, slot: Slot) -> Range<usize> {
        for p in &self.list {
            let mut at = p.offset;
            for part in &p.parts {
                let len = p.count * part.rows * p.cols.max(1);
                if part.slot == slot {
                    return at..at + len;
                }
                at += len;
            }
        }
        unreachable!("a place that the list does not name: {slot:?}")
    }

    /// The number of trained values.
    pub fn count(&self) -> usize {
        self.list.iter().filter(|p| p.trained).map(Param::len).sum()
    }

    /// Initial values from `seed`: matrices normal, norm weights one, biases zero.
    pub fn init(&self, seed: u64, layers: usize) -> Vec<f32> {
        let mut values = llm_kernels::dense::zeros(self.total);
        for (index, p) in self.list.iter().enumerate() {
            let std = deviation(p.slot(), layers);
            for (i, v) in values[p.range()].iter_mut().enumerate() {
                *v = match p.slot() {
                    slot if p.cols == 0 => start(slot),
                    Slot::Positions if !p.trained => sinusoid(i / p.cols, i % p.cols, p.cols),
                    _ => std * normal(seed, Stream::Weights, index as u64, i as u64),
                };
            }
        }
        values
    }
}

/// Standard deviation of a matrix's initial values: 0.02, and smaller for projections into the residual stream, whose
/// number grows with the depth (GPT-2).
fn deviation(slot: Slot, layers: usize) -> f32 {
    match slot {
        Slot::Layer(_, L::Out | L::Down | L::ExpertDown | L::SharedDown) => {
            0.02 / (2.0 * layers as f32).sqrt()
        }
        _ => 0.02,
    }
}

/// The initial value of a vector: norms one, biases zero.
fn start(slot: Slot) -> f32 {
    let norm = match slot {
        Slot::EmbeddingNorm | Slot::FinalNorm => true,
        Slot::Layer(_, part) => matches!(
            part,
            L::AttentionNorm
                | L::AttentionPostNorm
                | L::FfnNorm
                | L::FfnPostNorm
                | L::QNorm
                | L::KNorm
                | L::QDownNorm
                | L::KvDownNorm
        ),
        _ => false,
    };
    if norm { 1.0 } else { 0.0 }
}

/// Vaswani et al. 2017, section 3.5: sines at even, cosines at odd places, scaled to the size of a trained table.
fn sinusoid(position: usize, i: usize, width: usize) -> f32 {
    let angle = position as f64 * 10_000f64.powf(-((i / 2 * 2) as f64) / width as f64);
    // 0.02 · √2: the mean square of an embedding at the start
    let size = 0.02 * std::f64::consts::SQRT_2;
    (size * if i.is_multiple_of(2) { angle.sin() } else { angle.cos() }) as f32
}
