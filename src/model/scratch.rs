//! Buffers of a forward pass: how wide each must be for a model, and what they cost the runtime.
//!
//! They grow to the largest use and stay, and what is added is charged before it is taken. It does not know what
//! computes in them.

use llm_kernels::Input;

use super::choice::Choice;
use super::spec::{self, Attention, Ffn, Spec};
use crate::backend::Angles;
use crate::error::Result;
use crate::runtime::Charge;
use crate::tensor::Tensor;

/// Activations between operations. Names say what they hold first; later uses are in the comments.
#[derive(Default)]
pub(crate) struct Scratch {
    /// The residual stream, `[m, width]`.
    pub(crate) x: Tensor,
    /// Whether `x` has been left with the rows that were wanted, one behind the other.
    pub(super) packed: bool,
    /// Experts' normed input, whose rows are gathered.
    pub(super) h: Tensor,
    /// A block's output.
    pub(super) y: Tensor,
    /// Second output of a parallel layer.
    pub(super) z: Tensor,
    pub(super) q: Tensor,
    pub(super) k: Tensor,
    pub(super) v: Tensor,
    /// Latent: queries and values between absorption and layout changes.
    pub(super) a: Tensor,
    pub(super) b: Tensor,
    pub(super) attended: Tensor,
    pub(super) gate: Tensor,
    pub(super) up: Tensor,
    /// Outputs of experts.
    pub(super) expert: Tensor,
    pub(super) router: Tensor,
    /// Adapters' products with A, `[m, rank]`.
    pub(super) low: Tensor,
    /// Some rows of the residual stream, normed: hidden states.
    pub(crate) last: Tensor,
    /// Of a head: the hidden vectors it goes on from, and both norms' results side by side, `[m, 2 width]`.
    pub(crate) hidden: Tensor,
    pub(super) joined: Tensor,
    pub(crate) logits: Tensor,
    /// One per rotary table.
    pub(super) angles: Vec<Angles>,
    pub(super) input: Input,
    pub(super) choice: Choice,
}

impl Scratch {
    /// Makes room for `m` rows through all layers. Charges what is added.
    pub(crate) fn room(&mut self, spec: &Spec, m: usize, charge: &mut Charge) -> Result<()> {
        let tensors = [
            &mut self.x,
            &mut self.h,
            &mut self.y,
            &mut self.z,
            &mut self.q,
            &mut self.k,
            &mut self.v,
            &mut self.a,
            &mut self.b,
            &mut self.attended,
            &mut self.gate,
            &mut self.up,
            &mut self.expert,
            &mut self.router,
        ];
        room(tensors, Self::columns(spec), m, charge)?;
        self.angles.resize_with(spec.ropes.len(), Angles::default);
        Ok(())
    }

    /// Makes room for adapters of `rank` over `m` rows.
    pub(crate) fn room_for_adapters(&mut self, m: usize, rank: usize, charge: &mut Charge) -> Result<()> {
        room([&mut self.low], [rank], m, charge)
    }

    /// Columns of x, h, y, z, q, k, v, a, b, attended, gate, up, expert, router.
    fn columns(spec: &Spec) -> [usize; 14] {
        let mut most = Most::default();
        spec.layers.iter().for_each(|layer| most.layer(layer));
        let (width, inner) = (spec.width as usize, most.inner);
        let Most { q, k, v, a, b, attended, .. } = most;
        let (expert, router) = (most.active * width, most.experts);
        [width, width, width, width, q, k, v, a, b, attended, inner, inner, expert, router]
    }

    /// Bytes that [`Scratch::room`] for `m` rows and [`Scratch::room_for_logits`] for `rows` charge.
    pub(crate) fn bytes(spec: &Spec, m: u64, rows: u64) -> u64 {
        let columns = Self::columns(spec).iter().sum::<usize>() as u64;
        let logits = u64::from(spec.width) + u64::from(spec.vocab);
        m.saturating_mul(columns).saturating_add(rows.saturating_mul(logits)).saturating_mul(4)
    }

    /// Makes room for the logits of `rows` rows.
    pub(crate) fn room_for_logits(&mut self, spec: &Spec, rows: usize, charge: &mut Charge) -> Result<()> {
        self.room_for_hidden(spec, rows, charge)?;
        room([&mut self.logits], [spec.vocab as usize], rows, charge)
    }

    /// Makes room for the hidden states of `rows` rows.
    pub(crate) fn room_for_hidden(&mut self, spec: &Spec, rows: usize, charge: &mut Charge) -> Result<()> {
        room([&mut self.last], [spec.width as usize], rows, charge)
    }
}

/// Makes room for `[rows, width]` in each tensor. What is added is charged before it is taken, so that who was refused it
/// and asks again is refused again.
pub(super) fn room<const N: usize>(
    tensors: [&mut Tensor; N],
    widths: [usize; N],
    rows: usize,
    charge: &mut Charge,
) -> Result<()> {
    let lacking = tensors.iter().zip(widths).map(|(tensor, width)| tensor.lacks(rows, width));
    let mut more = lacking.sum::<Result<u64>>()?;
    charge.grow(more)?;
    for (tensor, width) in tensors.into_iter().zip(widths) {
        let bytes = tensor.lacks(rows, width)?;
        tensor.room(rows, width).inspect_err(|_| charge.shrink(more))?;
        more -= bytes;
    }
    Ok(())
}

/// The widest use of each buffer.
#[derive(Default)]
struct Most {
    q: usize,
    k: usize,
    v: usize,
    a: usize,
    b: usize,
    attended: usize,
    inner: usize,
    active: usize,
    experts: usize,
}

impl Most {
    fn layer(&mut self, layer: &spec::Layer) {
        let grow = |most: &mut usize, n: u32| *most = (*most).max(n as usize);
        match &layer.attention {
            Attention::Heads(h) => {
                grow(&mut self.q, h.heads * h.head_dim);
                grow(&mut self.k, h.kv_heads * h.head_dim);
                grow(&mut self.v, h.kv_heads * h.head_dim);
                grow(&mut self.attended, h.heads * h.head_dim);
            }
            Attention::Latent(l) => {
                grow(&mut self.q, l.heads * (l.nope_dim + l.rope_dim).max(l.kv_rank + l.rope_dim));
                grow(&mut self.k, l.kv_rank + l.rope_dim);
                grow(&mut self.v, l.kv_rank.max(l.rope_dim).max(l.q_rank.unwrap_or(0)));
                grow(&mut self.a, l.heads * l.nope_dim.max(l.rope_dim).max(l.kv_rank));
                grow(&mut self.b, l.heads * l.kv_rank.max(l.value_dim));
                grow(&mut self.attended, l.heads * l.kv_rank.max(l.value_dim));
            }
        }
        match &layer.ffn {
            Ffn::Plain(d) | Ffn::Gated(d) => grow(&mut self.inner, d.inner),
            Ffn::Experts(x) => {
                self.inner = self.inner.max(x.expert.inner as usize * x.active as usize);
                grow(&mut self.inner, x.shared.map_or(0, |s| s.dense.inner));
                grow(&mut self.active, x.active);
                grow(&mut self.experts, x.count);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Status;
    use crate::runtime::{Memory, Runtime, RuntimeOptions};

    #[test]
    fn buffers_beyond_the_limit_are_refused_however_often_they_are_asked_for() {
        let config = serde_json::json!({"model_type": "llama", "hidden_size": 64, "num_attention_heads": 4,
            "intermediate_size": 96, "num_hidden_layers": 1, "vocab_size": 100});
        let (_, spec) = crate::model::arch::read_config(&config).unwrap();
        let host_limit = Some(Scratch::bytes(&spec, 8, 0));
        let runtime = Runtime::new(RuntimeOptions { threads: 1, host_limit, ..Default::default() }).unwrap();
        let (mut charge, mut scratch) = (runtime.charge(Memory::Scratch, 0).unwrap(), Scratch::default());
        for _ in 0..2 {
            let refused = scratch.room(&spec, 9, &mut charge).unwrap_err();
            assert_eq!((refused.status(), runtime.memory_use(Memory::Scratch)), (Status::BUDGET, 0));
        }
        scratch.room(&spec, 8, &mut charge).unwrap();
        assert_eq!(Some(runtime.memory_use(Memory::Scratch)), host_limit);
    }
}
