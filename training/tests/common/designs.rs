//! The designs that tests go through.

use super::design::*;

/// A small model of every design, by name.
pub fn designs() -> Vec<(&'static str, ModelConfig)> {
    let tiny = ModelConfig { vocab: 19, width: 16, ffn: 24, context: 6, ..ModelConfig::tiny() };
    let gpt2 = tiny.clone().gpt2_design();
    let scaling = |kind| RopeScaling { kind, factor: 2.0, ..RopeScaling::default() };
    let moe = ExpertsDesign { count: 4, active: 2, ffn: 12, balance: 0.0, ..ExpertsDesign::default() };
    // steps of the correction that a few updates show
    let sigmoids = ExpertsDesign { scoring: ScoringDesign::Sigmoid, bias_rate: 0.05, ..moe.clone() };
    let mixtral =
        ModelConfig { experts: ExpertsDesign { ffn: 0, ..moe.clone() }, tied: false, ..tiny.clone() };
    let latent = LatentDesign { kv_rank: 6, q_rank: 0, nope: 4, rope: 2, value: 3 };
    let deepseek = ModelConfig { latent: latent.clone(), eps: 1e-6, tied: false, ..tiny.clone() };
    // three rotated pairs: most scalings leave the fastest as it is
    let scaled = |rope_scaling| {
        let latent = LatentDesign { rope: 6, ..latent.clone() };
        ModelConfig { latent, rope_scaling, ..deepseek.clone() }
    };
    // wavelengths between `original` and four times as much are blended
    let blended = RopeScaling { low: 0.25, high: 1.0, ..scaling(ScalingKind::Llama3) };
    let groups = ExpertsDesign {
        count: 8,
        active: 3,
        groups: 4,
        active_groups: 2,
        shared: 1,
        dense_layers: 1,
        scale: 2.5,
        ..sigmoids.clone()
    };
    vec![
        ("llama", tiny.clone()),
        ("llama, untied, one key head", ModelConfig { tied: false, kv_heads: 1, ..tiny.clone() }),
        ("llama, biases, geglu", ModelConfig { bias: Bias::All, feed: Feed::GeGlu, ..tiny.clone() }),
        ("llama, linear", ModelConfig { rope_scaling: scaling(ScalingKind::Linear), ..tiny.clone() }),
        ("llama, llama3", ModelConfig { rope_scaling: scaling(ScalingKind::Llama3), ..tiny.clone() }),
        ("llama, yarn", ModelConfig { rope_scaling: scaling(ScalingKind::Yarn), ..tiny.clone() }),
        ("mistral", ModelConfig { window: 3, ..tiny.clone() }),
        ("qwen2", ModelConfig { bias: Bias::Qkv, ..tiny.clone() }),
        ("qwen3", ModelConfig { qk_norm: QkDesign::Head, head_dim: 6, ..tiny.clone() }),
        ("olmo2", ModelConfig { qk_norm: QkDesign::Row, norm_place: Place::Post, ..tiny.clone() }),
        ("gpt2", gpt2.clone()),
        ("gpt2, relu2", ModelConfig { feed: Feed::Relu2, ..gpt2.clone() }),
        ("bloom", ModelConfig { position: Position::Alibi, embedding_norm: true, ffn: 64, ..gpt2.clone() }),
        (
            "mpt",
            ModelConfig {
                position: Position::Alibi,
                norm: NormDesign::Plain,
                bias: Bias::None,
                feed: Feed::GeluErf,
                ffn: 64,
                ..gpt2.clone()
            },
        ),
        ("mixtral", mixtral.clone()),
        ("deepseek_v2, dense", deepseek.clone()),
        ("deepseek_v2, linear", scaled(scaling(ScalingKind::Linear))),
        ("deepseek_v2, llama3", scaled(blended)),
        ("deepseek_v2, yarn", scaled(scaling(ScalingKind::Yarn))),
        (
            "deepseek_v2",
            ModelConfig {
                latent: LatentDesign { q_rank: 5, ..latent },
                experts: ExpertsDesign { shared: 2, dense_layers: 1, ..moe.clone() },
                ..deepseek.clone()
            },
        ),
        (
            "deepseek_v2, groups",
            ModelConfig {
                experts: ExpertsDesign {
                    count: 6,
                    groups: 3,
                    active_groups: 2,
                    shared: 1,
                    scale: 1.5,
                    ..moe.clone()
                },
                ..deepseek.clone()
            },
        ),
        ("deepseek_v3, yarn", ModelConfig { experts: groups.clone(), ..scaled(scaling(ScalingKind::Yarn)) }),
        ("deepseek_v3", ModelConfig { experts: groups, ..deepseek.clone() }),
        ("own: latent without rotation", ModelConfig { position: Position::None, ..deepseek }),
        ("own: sinusoidal positions", ModelConfig { position: Position::Sinusoidal, ..gpt2 }),
        (
            "own: no positions",
            ModelConfig { position: Position::None, norm: NormDesign::Layer, ..tiny.clone() },
        ),
        (
            "own: post-norm with biases, window, alibi",
            ModelConfig {
                position: Position::Alibi,
                norm: NormDesign::Layer,
                norm_place: Place::Post,
                bias: Bias::All,
                window: 4,
                ..tiny.clone()
            },
        ),
        (
            "own: experts beside a shared one",
            ModelConfig { experts: ExpertsDesign { shared: 1, ..moe }, ..tiny.clone() },
        ),
        ("own: experts chosen by sigmoids", ModelConfig { experts: sigmoids, ..tiny }),
    ]
}
