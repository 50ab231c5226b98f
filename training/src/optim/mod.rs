//! Optimizers: from a gradient to new weights, and the state between steps.
//!
//! ```text
//! parameter → State    adam    first and second moment, f32 or eight bits
//!                      lion    one moment
//!                      muon    one moment; its step is orthogonalised        (hidden matrices)
//!                      galore  moments of the gradient's projection          (hidden matrices, with adamw or adamw8)
//! ```
//! Which state a parameter has follows from the configuration and the parameter alone, so a checkpoint stores tensors
//! by name and a resumed run finds them. Embeddings, the head and vectors are never projected or orthogonalised; where
//! Muon trains the hidden matrices they take AdamW. It does not know what made the gradient.

mod galore;
mod muon;
mod schedule;
#[cfg(test)]
mod tests;

use llm::error::{Error, Result, Status};
use llm_kernels::dense::{AdamW, Dense, Lion, Moments8, zeros};
use safetensors::tensor::{Dtype, SafeTensors};

use crate::config::{OptimConfig, OptimizerKind};
use crate::params::{Param, Params};
use galore::LowRank;

pub(crate) use schedule::rate;

/// What is kept of one parameter between steps.
enum State {
    /// Not trained.
    Fixed,
    Adam {
        first: Vec<f32>,
        second: Vec<f32>,
    },
    Adam8(Moments8),
    Lion {
        momentum: Vec<f32>,
    },
    Muon {
        momentum: Vec<f32>,
    },
    LowRank(LowRank),
}

/// The optimizer of a run.
pub(crate) struct Optimizer {
    states: Vec<State>,
    /// The update of one matrix, where it is made apart.
    update: Vec<f32>,
}

/// A tensor of the state, as a checkpoint holds it.
pub(crate) struct StateTensor<'a> {
    pub name: String,
    pub values: Values<'a>,
}

/// Values of a state's tensor.
#[derive(Clone, Copy)]
pub(crate) enum Values<'a> {
    F32(&'a [f32]),
    U8(&'a [u8]),
}

/// Where a state's tensor is read to.
enum ValuesMut<'a> {
    F32(&'a mut [f32]),
    U8(&'a mut [u8]),
}

/// What holds for all parameters of a step.
#[derive(Clone, Copy)]
pub(crate) struct Step {
    /// Steps done before this one, from the new state on.
    pub index: u64,
    /// Learning rate.
    pub rate: f32,
    /// Factor on the gradient (clipping).
    pub scale: f32,
    /// Of the run.
    pub seed: u64,
}

impl Optimizer {
    /// The state before the first step.
    pub fn new(o: &OptimConfig, params: &Params) -> Optimizer {
        Optimizer { states: params.list.iter().map(|p| state(o, p)).collect(), update: Vec::new() }
    }

    /// Bytes of memory that the state takes.
    pub fn bytes(&self) -> usize {
        self.tensors_of().map(|(_, _, v)| v.bytes()).sum()
    }

    /// One step of every parameter.
    pub fn step(
        &mut self,
        dense: &mut Dense,
        o: &OptimConfig,
        step: &Step,
        params: &Params,
        weights: &mut [f32],
        grads: &[f32],
    ) {
        let t = (step.index + 1) as f64;
        let correction = |beta: f32| (1.0 - f64::from(beta).powf(t)) as f32;
        for (i, (p, state)) in params.list.iter().zip(&mut self.states).enumerate() {
            let (w, g) = (&mut weights[p.range()], &grads[p.range()]);
            let decay = if p.decays() { o.decay } else { 0.0 };
            let adamw = AdamW {
                rate: step.rate,
                beta1: o.beta1,
                beta2: o.beta2,
                eps: o.eps,
                decay,
                scale: step.scale,
                correction1: correction(o.beta1),
                correction2: correction(o.beta2),
            };
            match state {
                State::Fixed => {}
                State::Adam { first, second } => dense.adamw(&adamw, w, g, first, second),
                State::Adam8(moments) => dense.adamw8(&adamw, w, g, moments),
                State::Lion { momentum } => {
                    let lion =
                        Lion { rate: step.rate, beta1: o.beta1, beta2: o.beta2, decay, scale: step.scale };
                    dense.lion(&lion, w, g, momentum);
                }
                State::Muon { momentum } => {
                    // its rate is its own and follows the schedule
                    let rate = o.muon_rate * (step.rate / o.rate);
                    self.update.resize(self.update.len().max(g.len()), 0.0);
                    let update = &mut self.update[..g.len()];
                    dense.nesterov(o.muon_momentum, step.scale, g, momentum, update);
                    muon::orthogonalize(dense, p, update);
                    dense.apply(1.0 - rate * decay, -rate, w, update);
                }
                State::LowRank(low) => {
                    self.update.resize(self.update.len().max(g.len()), 0.0);
                    let key = (step.seed, step.index, i as u64);
                    low.step(dense, o, &adamw, key, w, g, &mut self.update[..g.len()]);
                }
            }
        }
    }

    /// Every tensor of the state, with its name.
    pub fn tensors(&self, params: &Params) -> Vec<StateTensor<'_>> {
        let name = |i: usize, part: &str| tensor_name(&params.list[i], part);
        self.tensors_of().map(|(i, part, values)| StateTensor { name: name(i, part), values }).collect()
    }

    fn tensors_of(&self) -> impl Iterator<Item = (usize, &'static str, Values<'_>)> {
        self.states.iter().enumerate().flat_map(|(i, s)| s.parts().into_iter().map(move |(n, v)| (i, n, v)))
    }

    /// Fills the state from a checkpoint's file.
    ///
    /// # Errors
    /// `MISMATCH` for a file of another optimizer or of other settings of it.
    pub fn restore(&mut self, params: &Params, file: &SafeTensors) -> Result<()> {
        for (p, state) in params.list.iter().zip(&mut self.states) {
            for (part, to) in state.parts_mut() {
                let name = tensor_name(p, part);
                let view = file.tensor(&name).ok();
                let bytes = view.as_ref().map(|v| (v.dtype(), v.data()));
                match (to, bytes) {
                    (ValuesMut::F32(to), Some((Dtype::F32, from))) if from.len() == to.len() * 4 => {
                        for (to, raw) in to.iter_mut().zip(from.as_chunks::<4>().0) {
                            *to = f32::from_le_bytes(*raw);
                        }
                    }
                    (ValuesMut::U8(to), Some((Dtype::U8, from))) if from.len() == to.len() => {
                        to.copy_from_slice(from);
                    }
                    (to, found) => {
                        let found =
                            found.map_or("nothing".into(), |(t, b)| format!("{t:?}, {} bytes", b.len()));
                        let message = format!(
                            "optimizer state {name:?}: expected {}, found {found}; the settings of `optim` that \
                             choose the optimizer must be those the run began with",
                            to.describe()
                        );
                        return Err(Error::new(Status::MISMATCH, message));
                    }
                }
            }
        }
        Ok(())
    }
}

fn tensor_name(p: &Param, part: &str) -> String {
    format!("{}.{part}", p.describe())
}

fn state(o: &OptimConfig, p: &Param) -> State {
    if !p.trained {
        return State::Fixed;
    }
    let zeros = || zeros(p.len());
    match o.kind {
        OptimizerKind::Muon if p.is_hidden_matrix() => State::Muon { momentum: zeros() },
        OptimizerKind::AdamW | OptimizerKind::AdamW8 if o.galore_rank > 0 && p.is_hidden_matrix() => {
            State::LowRank(LowRank::new(p, o))
        }
        // vectors are few and sensitive
        OptimizerKind::AdamW8 if p.cols > 0 => State::Adam8(Moments8::new(p.len())),
        OptimizerKind::Lion => State::Lion { momentum: zeros() },
        _ => State::Adam { first: zeros(), second: zeros() },
    }
}

impl Values<'_> {
    /// How many.
    pub fn len(&self) -> usize {
        match self {
            Values::F32(v) => v.len(),
            Values::U8(v) => v.len(),
        }
    }

    /// Bytes of memory.
    pub fn bytes(&self) -> usize {
        match self {
            Values::F32(v) => v.len() * 4,
            Values::U8(v) => v.len(),
        }
    }
}

impl ValuesMut<'_> {
    fn describe(&self) -> String {
        match self {
            ValuesMut::F32(v) => format!("F32, {} bytes", v.len() * 4),
            ValuesMut::U8(v) => format!("U8, {} bytes", v.len()),
        }
    }
}

impl State {
    fn parts(&self) -> Vec<(&'static str, Values<'_>)> {
        match self {
            State::Fixed => Vec::new(),
            State::Adam { first, second } => {
                vec![("first", Values::F32(first)), ("second", Values::F32(second))]
            }
            State::Adam8(m) => parts8(m),
            State::Lion { momentum } | State::Muon { momentum } => vec![("momentum", Values::F32(momentum))],
            State::LowRank(low) => low.parts(),
        }
    }

    fn parts_mut(&mut self) -> Vec<(&'static str, ValuesMut<'_>)> {
        match self {
            State::Fixed => Vec::new(),
            State::Adam { first, second } => {
                vec![("first", ValuesMut::F32(first)), ("second", ValuesMut::F32(second))]
            }
            State::Adam8(m) => parts8_mut(m),
            State::Lion { momentum } | State::Muon { momentum } => {
                vec![("momentum", ValuesMut::F32(momentum))]
            }
            State::LowRank(low) => low.parts_mut(),
        }
    }
}

fn parts8(m: &Moments8) -> Vec<(&'static str, Values<'_>)> {
    vec![
        ("first", Values::U8(&m.first)),
        ("first_top", Values::F32(&m.first_top)),
        ("second", Values::U8(&m.second)),
        ("second_top", Values::F32(&m.second_top)),
    ]
}

fn parts8_mut(m: &mut Moments8) -> Vec<(&'static str, ValuesMut<'_>)> {
    vec![
        ("first", ValuesMut::U8(&mut m.first)),
        ("first_top", ValuesMut::F32(&mut m.first_top)),
        ("second", ValuesMut::U8(&mut m.second)),
        ("second_top", ValuesMut::F32(&mut m.second_top)),
    ]
}
