//! The Qwen families: biases on q, k and v (2), norms of query and key heads (3), each also with experts.

use serde_json::Value;

use super::arch::Arch;
use super::config::Config;
use super::llama::{self, Common, Defaults};
use super::spec::{Activation, Dense, Experts, Ffn, GroupRank, Heads, QkNorm, Scoring, Shared, Spec};
use crate::error::Result;

const fn family(names: &'static [&'static str], read: fn(&Value) -> Result<Spec>) -> Arch {
    Arch { names, prefix: "model.", read, tensors: llama::tensors, ignores: llama::ignores }
}

/// `qwen2`
pub(crate) const QWEN2: Arch = family(&["qwen2"], read_qwen2);
/// `qwen3`
pub(crate) const QWEN3: Arch = family(&["qwen3"], read_qwen3);
/// `qwen2_moe`
pub(crate) const QWEN2_MOE: Arch = family(&["qwen2_moe"], read_qwen2_moe);
/// `qwen3_moe`
pub(crate) const QWEN3_MOE: Arch = family(&["qwen3_moe"], read_qwen3_moe);

/// The window's width, if windows are switched on at all.
fn window(c: &Config<'_>) -> Result<Option<u32>> {
    let width = c.nullable("sliding_window", Some(4096))?.filter(|w| *w > 0);
    Ok(if c.flag("use_sliding_window", false)? { width } else { None })
}

/// A spec of like layers that differ in their window and in their feed-forward block only.
fn build(
    name: &str,
    c: &Config<'_>,
    common: &Common,
    heads: &Heads,
    sliding: &[bool],
    ffn: impl Fn(u32) -> Ffn,
) -> Result<Spec> {
    let window = window(c)?;
    let layers = (0..common.layers).zip(sliding).map(|(i, sliding)| {
        let window = if *sliding { window } else { None };
        common.layer(Heads { window, ..heads.clone() }, ffn(i))
    });
    let rope = c.rope("full_attention", common.rope(10_000.0))?;
    Ok(common.spec(name, vec![rope], layers.collect(), c.flag("tie_word_embeddings", false)?))
}

fn dense(inner: u32, activation: Activation) -> Dense {
    Dense { inner, activation, bias: false }
}

const DENSE_DEFAULTS: Defaults = Defaults {
    width: 4096,
    layers: 32,
    heads: 32,
    kv_heads: Some(32),
    head_dim: None,
    inner: 22016,
    vocab: 151_936,
    context: 32768,
    eps: 1e-6,
};

fn head_norms(common: &Common) -> Option<QkNorm> {
    Some(QkNorm { norm: common.norm, whole: false })
}

fn read_qwen2(config: &Value) -> Result<Spec> {
    let c = Config::new(config)?;
    let common = Common::read(&c, &DENSE_DEFAULTS)?;
    let heads = Heads { qkv_bias: true, ..common.heads() };
    let from = c.u32("max_window_layers", 28)?;
    let sliding = c.sliding(common.layers, |i| i >= from)?;
    let activation = c.activation("hidden_act", "silu")?;
    build("qwen2", &c, &common, &heads, &sliding, |_| Ffn::Gated(dense(common.inner, activation)))
}

fn read_qwen3(config: &Value) -> Result<Spec> {
    let c = Config::new(config)?;
    let common = Common::read(&c, &Defaults { head_dim: Some(128), ..DENSE_DEFAULTS })?;
    let bias = c.flag("attention_bias", false)?;
    let heads = Heads { qk_norm: head_norms(&common), qkv_bias: bias, out_bias: bias, ..common.heads() };
    let from = c.u32("max_window_layers", 28)?;
    let sliding = c.sliding(common.layers, |i| i >= from)?;
    let activation = c.activation("hidden_act", "silu")?;
    build("qwen3", &c, &common, &heads, &sliding, |_| Ffn::Gated(dense(common.inner, activation)))
}

/// Which layers have experts: every `decoder_sparse_step`-th but those in `mlp_only_layers`.
fn sparse(c: &Config<'_>) -> Result<impl Fn(u32) -> bool + use<>> {
    let step = c.u32("decoder_sparse_step", 1)?;
    let dense = c.wholes("mlp_only_layers")?;
    Ok(move |i: u32| {
        !dense.contains(&u64::from(i)) && (i + 1).checked_rem(step).is_some_and(|rest| rest == 0)
    })
}

fn experts(c: &Config<'_>, count: u32, active: u32, inner: u32, activation: Activation) -> Result<Experts> {
    Ok(Experts {
        count: c.u32(c.spelling(&["num_experts", "num_local_experts"]), count)?,
        active: c.u32("num_experts_per_tok", active)?,
        expert: dense(c.u32("moe_intermediate_size", inner)?, activation),
        scoring: Scoring::Softmax,
        normalize: c.flag("norm_topk_prob", false)?,
        scale: 1.0,
        groups: 1,
        active_groups: 1,
        group_rank: GroupRank::Max,
        choice_bias: false,
        router_bias: false,
        shared: None,
    })
}

fn read_qwen2_moe(config: &Value) -> Result<Spec> {
    let c = Config::new(config)?;
    let common = Common::read(
        &c,
        &Defaults { width: 2048, layers: 24, heads: 16, kv_heads: Some(16), inner: 5632, ..DENSE_DEFAULTS },
    )?;
    let heads = Heads { qkv_bias: c.flag("qkv_bias", true)?, ..common.heads() };
    let below = c.u32("max_window_layers", 28)?;
    let sliding = c.sliding(common.layers, |i| i % 2 == 0 && i < below)?;
    let activation = c.activation("hidden_act", "silu")?;
    let shared = dense(c.u32("shared_expert_intermediate_size", 5632)?, activation);
    let experts = Experts {
        shared: Some(Shared { dense: shared, gate: true }),
        ..experts(&c, 60, 4, 1408, activation)?
    };
    let sparse = sparse(&c)?;
    build("qwen2_moe", &c, &common, &heads, &sliding, |i| {
        if sparse(i) { Ffn::Experts(experts.clone()) } else { Ffn::Gated(dense(common.inner, activation)) }
    })
}

fn read_qwen3_moe(config: &Value) -> Result<Spec> {
    let c = Config::new(config)?;
    let common = Common::read(
        &c,
        &Defaults { width: 2048, layers: 24, heads: 32, kv_heads: Some(4), inner: 6144, ..DENSE_DEFAULTS },
    )?;
    let bias = c.flag("attention_bias", false)?;
    let heads = Heads { qk_norm: head_norms(&common), qkv_bias: bias, out_bias: bias, ..common.heads() };
    let activation = c.activation("hidden_act", "silu")?;
    let experts = experts(&c, 128, 8, 768, activation)?;
    let (sparse, sliding) = (sparse(&c)?, vec![true; common.layers as usize]);
    build("qwen3_moe", &c, &common, &heads, &sliding, |i| {
        if sparse(i) { Ffn::Experts(experts.clone()) } else { Ffn::Gated(dense(common.inner, activation)) }
    })
}
