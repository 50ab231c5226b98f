//! Checking a [`Spec`]: it comes from a checkpoint or from a file's metadata, so no number in it is trusted.
//!
//! After [`Spec::check`] the shapes of all tensors fit u64, counts are bounded, indices are in range, and floats
//! are finite and of sane size; what runs the model divides, allocates and indexes without asking again.

use super::spec::{
    Activation, Attention, Dense, Experts, Ffn, Heads, Latent, Layer, Norm, Rope, Scaling, Spec,
};
use crate::error::{Error, Result, Status};

/// Width of one head; also of MLA's compressed vectors.
const HEAD_DIM: u32 = 1 << 14;
/// Experts of a layer.
const EXPERTS: u32 = 1 << 14;
/// Experts of all layers: the list of a model's tensors has a place for each.
const ALL_EXPERTS: u64 = 1 << 17;
/// Positions.
const CONTEXT: u32 = 1 << 30;
/// Rotary tables.
const ROPES: usize = 64;

fn wrong(what: &str, expected: impl std::fmt::Display, got: impl std::fmt::Display) -> Error {
    Error::new(Status::BAD_FORMAT, format!("model description: {what} should be {expected}, got {got}"))
}

/// 1 ..= max
fn range(what: &str, value: u32, max: u32) -> Result<()> {
    if (1..=max).contains(&value) { Ok(()) } else { Err(wrong(what, format_args!("from 1 to {max}"), value)) }
}

/// Finite, above zero, below 1e12.
fn positive(what: &str, value: f64) -> Result<()> {
    if value > 0.0 && value < 1e12 { Ok(()) } else { Err(wrong(what, "above 0 and below 1e12", value)) }
}

fn norm(what: &str, norm: Option<Norm>) -> Result<()> {
    match norm {
        Some(n) if !(0.0..=1.0).contains(&n.eps) => {
            Err(wrong(&format!("epsilon of the {what}"), "from 0 to 1", n.eps))
        }
        _ => Ok(()),
    }
}

/// A norm that the list of tensors has no bias for.
fn unbiased(what: &str, n: Norm) -> Result<()> {
    if n.bias { Err(wrong(&format!("the {what}"), "without a bias", "one")) } else { norm(what, Some(n)) }
}

impl Spec {
    /// Checks every number and index.
    ///
    /// # Errors
    /// `BAD_FORMAT`, naming the layer, the field, its bounds and its value.
    pub fn check(&self) -> Result<()> {
        range("the vocabulary", self.vocab, Spec::MOST_DIM)?;
        range("the width", self.width, Spec::MOST_DIM)?;
        range("the context", self.context, CONTEXT)?;
        positive("the embedding scale", f64::from(self.embedding_scale))?;
        positive("the logit scale", f64::from(self.logit_scale))?;
        if let Some(cap) = self.logit_softcap {
            positive("the logit soft cap", f64::from(cap))?;
        }
        norm("embedding's norm", self.embedding_norm)?;
        norm("final norm", Some(self.final_norm))?;
        if let Some(positions) = self.learned_positions {
            range("the number of learned positions", positions, Spec::MOST_DIM)?;
            if self.context > positions {
                return Err(wrong("the context", format_args!("at most {positions}"), self.context));
            }
        }
        let most = Spec::MOST_LAYERS;
        if self.layers.is_empty() || self.layers.len() > most {
            return Err(wrong("the number of layers", format_args!("from 1 to {most}"), self.layers.len()));
        }
        if self.ropes.len() > ROPES {
            return Err(wrong(
                "the number of rotary tables",
                format_args!("at most {ROPES}"),
                self.ropes.len(),
            ));
        }
        for (i, rope) in self.ropes.iter().enumerate() {
            check_rope(rope).map_err(|e| e.context(format_args!("rotary table {i}")))?;
        }
        // Each token has the angles of all of them, also of those that no layer names.
        let rotated: u32 = self.ropes.iter().map(|rope| rope.dim).sum();
        range("the rotated parts of all tables together", rotated.max(1), HEAD_DIM)?;
        for (i, layer) in self.layers.iter().enumerate() {
            self.check_layer(layer).map_err(|e| e.context(format_args!("layer {i}")))?;
        }
        let experts = self.layers.iter().map(|layer| match &layer.ffn {
            Ffn::Experts(x) => u64::from(x.count),
            Ffn::Plain(_) | Ffn::Gated(_) => 0,
        });
        match experts.sum::<u64>() {
            n if n <= ALL_EXPERTS => Ok(()),
            n => Err(wrong("the experts of all layers", format_args!("at most {ALL_EXPERTS}"), n)),
        }
    }

    fn check_layer(&self, layer: &Layer) -> Result<()> {
        norm("norm before attention", layer.attention_norm)?;
        norm("norm after attention", layer.attention_post_norm)?;
        norm("norm before the feed-forward block", layer.ffn_norm)?;
        norm("norm after the feed-forward block", layer.ffn_post_norm)?;
        match &layer.attention {
            Attention::Heads(heads) => self.check_heads(heads)?,
            Attention::Latent(latent) => self.check_latent(latent)?,
        }
        match &layer.ffn {
            Ffn::Plain(dense) => {
                if matches!(dense.activation, Activation::ClampedSwiglu { .. }) {
                    return Err(wrong(
                        "the activation of an ungated block",
                        "an ungated one",
                        "clamped_swiglu",
                    ));
                }
                check_dense(dense)
            }
            Ffn::Gated(dense) => check_dense(dense),
            Ffn::Experts(experts) => check_experts(experts),
        }
    }

    fn check_rotation(&self, index: u32, dim: u32) -> Result<()> {
        match self.ropes.get(index as usize) {
            None => Err(wrong("the rotary table", format_args!("one of {} tables", self.ropes.len()), index)),
            Some(rope) if rope.dim > dim => {
                Err(wrong("the rotated part", format_args!("at most the head's {dim} values"), rope.dim))
            }
            Some(_) => Ok(()),
        }
    }

    fn check_heads(&self, h: &Heads) -> Result<()> {
        range("the number of heads", h.heads, Spec::MOST_HEADS)?;
        range("the number of key-value heads", h.kv_heads, h.heads)?;
        if !h.heads.is_multiple_of(h.kv_heads) {
            return Err(wrong("the number of heads", format_args!("a multiple of {}", h.kv_heads), h.heads));
        }
        range("the head's width", h.head_dim, HEAD_DIM)?;
        range("the heads' width together", h.heads.saturating_mul(h.head_dim), Spec::MOST_DIM)?;
        positive("the score scale", f64::from(h.scale))?;
        if let Some(rope) = h.rope {
            self.check_rotation(rope, h.head_dim)?;
        }
        if let Some(window) = h.window {
            range("the window", window, u32::MAX)?;
        }
        if let Some(cap) = h.softcap {
            positive("the score soft cap", f64::from(cap))?;
        }
        if !h.alibi.is_empty() && h.alibi.len() != h.heads as usize {
            return Err(wrong("the number of ALiBi slopes", h.heads, h.alibi.len()));
        }
        h.alibi.iter().try_for_each(|slope| positive("an ALiBi slope", f64::from(*slope)))?;
        h.qk_norm.map_or(Ok(()), |q| unbiased("norm of queries and keys", q.norm))
    }

    fn check_latent(&self, a: &Latent) -> Result<()> {
        range("the number of heads", a.heads, Spec::MOST_HEADS)?;
        let dims = [
            ("the unrotated part of a head", a.nope_dim),
            ("the value head's width", a.value_dim),
            ("the keys' rank", a.kv_rank),
            ("the queries' rank", a.q_rank.unwrap_or(1)),
        ];
        dims.iter().try_for_each(|(what, dim)| range(what, *dim, HEAD_DIM))?;
        if a.rope_dim > 0 {
            range("the rotated part of a head", a.rope_dim, HEAD_DIM)?;
        }
        let widest = a.nope_dim.max(a.value_dim).max(a.kv_rank) + a.rope_dim;
        range("the heads' width together", a.heads.saturating_mul(widest), Spec::MOST_DIM)?;
        positive("the score scale", f64::from(a.scale))?;
        unbiased("norm of the compressed vectors", a.norm)?;
        if a.rope_dim == 0 {
            return Ok(()); // without rotation the index names no table
        }
        self.check_rotation(a.rope, a.rope_dim)?;
        match self.ropes.get(a.rope as usize) {
            Some(rope) if rope.dim != a.rope_dim => {
                Err(wrong("the rotary table's width", a.rope_dim, rope.dim))
            }
            _ => Ok(()),
        }
    }
}

fn check_dense(dense: &Dense) -> Result<()> {
    range("the inner width", dense.inner, Spec::MOST_DIM)?;
    if let Activation::ClampedSwiglu { alpha, limit } = dense.activation {
        positive("alpha", f64::from(alpha))?;
        positive("the clamp", f64::from(limit))?;
    }
    Ok(())
}

fn check_experts(x: &Experts) -> Result<()> {
    range("the number of experts", x.count, EXPERTS)?;
    range("the number of active experts", x.active, x.count)?;
    check_dense(&x.expert)?;
    positive("the experts' scale", f64::from(x.scale))?;
    range("the number of expert groups", x.groups, x.count)?;
    if !x.count.is_multiple_of(x.groups) {
        return Err(wrong(
            "the number of experts",
            format_args!("a multiple of {} groups", x.groups),
            x.count,
        ));
    }
    range("the number of active expert groups", x.active_groups, x.groups)?;
    let choosable = x.count / x.groups * x.active_groups;
    range("the number of active experts", x.active, choosable)?;
    if let Some(shared) = x.shared {
        check_dense(&shared.dense)?;
        if shared.dense.bias {
            return Err(wrong("the shared expert", "without biases", "biases"));
        }
    }
    Ok(())
}

fn check_rope(rope: &Rope) -> Result<()> {
    positive("theta", rope.theta)?;
    range("the rotated part", rope.dim, HEAD_DIM)?;
    if !rope.dim.is_multiple_of(2) {
        return Err(wrong("the rotated part", "even", rope.dim));
    }
    match &rope.scaling {
        Scaling::None => Ok(()),
        Scaling::Linear { factor } => positive("the factor", *factor),
        Scaling::Dynamic { factor, original } => {
            positive("the factor", *factor)?;
            if rope.dim < 4 {
                // Its exponent is dim / (dim − 2).
                return Err(wrong("the rotated part", "at least 4 with dynamic scaling", rope.dim));
            }
            range("the original context", *original, CONTEXT)
        }
        Scaling::Llama3 { factor, low, high, original } => {
            [("the factor", factor), ("the low factor", low), ("the high factor", high)]
                .iter()
                .try_for_each(|(what, value)| positive(what, **value))?;
            if high <= low {
                return Err(wrong("the high factor", format_args!("above the low one, {low}"), high));
            }
            range("the original context", *original, CONTEXT)
        }
        Scaling::Yarn { factor, original, beta_fast, beta_slow, truncate: _, attention_factor } => {
            positive("the factor", *factor)?;
            positive("beta_fast", *beta_fast)?;
            positive("beta_slow", *beta_slow)?;
            positive("the attention factor", *attention_factor)?;
            if rope.theta <= 1.0 {
                // Its correction range divides by ln(theta).
                return Err(wrong("theta", "above 1 with yarn", rope.theta));
            }
            range("the original context", *original, CONTEXT)
        }
        Scaling::Longrope { short, long, original, attention_factor } => {
            for (what, list) in [("the short factors", short), ("the long factors", long)] {
                if list.len() != rope.dim as usize / 2 {
                    return Err(wrong(what, format_args!("{} numbers", rope.dim / 2), list.len()));
                }
                list.iter().try_for_each(|factor| positive(what, *factor))?;
            }
            positive("the attention factor", *attention_factor)?;
            range("the original context", *original, CONTEXT)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::arch;
    use serde_json::json;

    fn spec(model_type: &str) -> Spec {
        arch::read_config(&json!({"model_type": model_type})).unwrap().1
    }

    fn heads(spec: &mut Spec) -> &mut Heads {
        match &mut spec.layers[1].attention {
            Attention::Heads(heads) => heads,
            Attention::Latent(_) => panic!("latent attention"),
        }
    }

    fn latent(spec: &mut Spec) -> &mut Latent {
        match &mut spec.layers[1].attention {
            Attention::Latent(latent) => latent,
            Attention::Heads(_) => panic!("attention with heads"),
        }
    }

    fn experts(spec: &mut Spec) -> &mut Experts {
        let experts = spec.layers.iter_mut().find_map(|layer| match &mut layer.ffn {
            Ffn::Experts(experts) => Some(experts),
            _ => None,
        });
        experts.unwrap()
    }

    /// A change of one number.
    type Change = fn(&mut Spec);

    #[test]
    fn one_wrong_number_anywhere_is_refused() {
        let changes: &[(&str, Change)] = &[
            ("llama", |s| s.vocab = 0),
            ("llama", |s| s.vocab = Spec::MOST_DIM + 1),
            ("llama", |s| s.width = u32::MAX),
            ("llama", |s| s.context = 0),
            ("llama", |s| s.layers.clear()),
            ("llama", |s| s.layers = vec![s.layers[0].clone(); Spec::MOST_LAYERS + 1]),
            ("llama", |s| s.ropes = vec![s.ropes[0].clone(); ROPES + 1]),
            ("llama", |s| s.embedding_scale = f32::NAN),
            ("llama", |s| s.logit_scale = 0.0),
            ("llama", |s| s.logit_softcap = Some(f32::INFINITY)),
            ("llama", |s| s.final_norm.eps = f32::NAN),
            ("llama", |s| heads(s).heads = 0),
            ("llama", |s| (heads(s).heads, heads(s).kv_heads) = (Spec::MOST_HEADS + 1, 1)),
            ("llama", |s| heads(s).kv_heads = 0),
            ("llama", |s| heads(s).kv_heads = 5),
            ("llama", |s| heads(s).kv_heads = 64),
            ("llama", |s| heads(s).head_dim = 1 << 30),
            ("llama", |s| (heads(s).heads, heads(s).kv_heads, heads(s).head_dim) = (1 << 14, 1, 1 << 14)),
            ("llama", |s| heads(s).scale = -1.0),
            ("llama", |s| heads(s).rope = Some(1)),
            ("llama", |s| heads(s).head_dim = 64),
            ("llama", |s| heads(s).window = Some(0)),
            ("llama", |s| heads(s).alibi = vec![1.0]),
            ("qwen3", |s| heads(s).qk_norm.as_mut().unwrap().norm.bias = true),
            ("llama", |s| {
                let wide = Rope { dim: HEAD_DIM, ..s.ropes[0].clone() };
                s.ropes.push(wide);
            }),
            ("llama", |s| s.ropes[0].dim = 0),
            ("llama", |s| s.ropes[0].dim = 31),
            ("llama", |s| s.ropes[0].theta = f64::NAN),
            ("llama", |s| s.ropes[0].scaling = Scaling::Linear { factor: 0.0 }),
            ("llama", |s| s.ropes[0].scaling = Scaling::Dynamic { factor: 2.0, original: 0 }),
            ("gpt2", |s| s.context = 1025),
            ("bloom", |s| heads(s).alibi[3] = f32::NAN),
            ("mixtral", |s| experts(s).active = 9),
            ("mixtral", |s| experts(s).count = 0),
            ("mixtral", |s| {
                experts(s).count = 1024;
                s.layers = vec![s.layers[0].clone(); 129];
            }),
            ("mixtral", |s| experts(s).groups = 3),
            ("mixtral", |s| (experts(s).groups, experts(s).active_groups) = (8, 1)),
            ("mixtral", |s| experts(s).expert.inner = 0),
            ("gpt_oss", |s| {
                experts(s).expert.activation = Activation::ClampedSwiglu { alpha: 1.0, limit: f32::NAN };
            }),
            ("deepseek_v3", |s| latent(s).norm.bias = true),
            ("deepseek_v3", |s| latent(s).q_rank = Some(0)),
            ("deepseek_v3", |s| latent(s).rope_dim = 32),
            ("deepseek_v3", |s| latent(s).kv_rank = u32::MAX),
        ];
        for (i, (name, change)) in changes.iter().enumerate() {
            let mut spec = spec(name);
            spec.check().unwrap();
            change(&mut spec);
            let e = spec.check().expect_err(&format!("change {i} of {name}"));
            assert_eq!(e.status(), Status::BAD_FORMAT, "{e}");
        }
    }

    #[test]
    fn the_layer_with_the_fault_is_named() {
        let mut spec = spec("llama");
        heads(&mut spec).kv_heads = 5;
        assert!(spec.check().unwrap_err().message().starts_with("layer 1: "));
    }
}
