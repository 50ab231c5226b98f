//! Starting points by name.

use llm::error::{Error, Result, Status};

use crate::config::{Config, OptimConfig};
use crate::design::{ExpertsDesign, LatentDesign, ModelConfig, ScoringDesign};

/// A preset: its name, what it is, and its settings.
pub struct Preset {
    /// What users call it.
    pub name: &'static str,
    /// One line about it.
    pub about: &'static str,
    config: fn() -> Config,
}

/// All of them.
pub const PRESETS: &[Preset] = &[
    Preset {
        name: "tiny",
        about: "Llama's design, 2 layers, width 32: for trying things",
        config: || Config { model: ModelConfig::tiny(), steps: 200, ..Config::default() },
    },
    Preset { name: "small", about: "Llama's design, 4 layers, width 256", config: Config::default },
    Preset {
        name: "pair",
        about: "Llama's design, 10 million with a vocabulary of 4096: minutes on two cores",
        config: || {
            pair(ModelConfig { layers: 5, heads: 6, width: 384, ffn: 1024, ..ModelConfig::tiny() }, 800, 2e-3)
        },
    },
    Preset {
        name: "pair-draft",
        about: "a tenth of `pair`, for guessing what it says",
        config: || {
            pair(ModelConfig { layers: 2, heads: 2, width: 128, ffn: 352, ..ModelConfig::tiny() }, 1000, 4e-3)
        },
    },
    Preset {
        name: "base",
        about: "Llama's design, 12 layers, width 768",
        config: || llama(12, 12, 768, 2048),
    },
    Preset {
        name: "large",
        about: "Llama's design, 24 layers, width 1024",
        config: || llama(24, 16, 1024, 2816),
    },
    Preset {
        name: "xl",
        about: "Llama's design, 24 layers, width 2048",
        config: || llama(24, 16, 2048, 5632),
    },
    Preset { name: "baby-gpt", about: "the size of nanoGPT's character model", config: baby_gpt },
    Preset { name: "gpt2", about: "GPT-2, 124 million", config: || gpt2(12, 12, 768) },
    Preset { name: "gpt2-medium", about: "GPT-2, 355 million", config: || gpt2(24, 16, 1024) },
    Preset { name: "gpt2-large", about: "GPT-2, 774 million", config: || gpt2(36, 20, 1280) },
    Preset { name: "gpt2-xl", about: "GPT-2, 1558 million", config: || gpt2(48, 25, 1600) },
    Preset {
        name: "llama-1b",
        about: "Llama's design, 16 layers, width 2048, vocabulary 100277",
        config: llama_1b,
    },
    Preset {
        name: "mla-moe",
        about: "DeepSeek-V2's design, small: latent attention, experts",
        config: mla_moe,
    },
    Preset {
        name: "mla-moe-v3",
        about: "DeepSeek-V3's design, small: experts in groups, balanced by the correction of their choice",
        config: mla_moe_v3,
    },
];

/// The settings of a preset.
///
/// # Errors
/// `NOT_FOUND` with the known names.
pub(crate) fn preset(name: &str) -> Result<Config> {
    PRESETS.iter().find(|p| p.name == name).map(|p| (p.config)()).ok_or_else(|| {
        let known: Vec<&str> = PRESETS.iter().map(|p| p.name).collect();
        Error::new(Status::NOT_FOUND, format!("preset {name:?}: expected one of {}", known.join(", ")))
    })
}

fn baby_gpt() -> Config {
    Config {
        model: ModelConfig { dropout: 0.2, ..ModelConfig::baby_gpt() },
        optim: OptimConfig { beta2: 0.99, ..OptimConfig::default() },
        steps: 5000,
        batch: 12,
        ..Config::default()
    }
}

fn gpt2(layers: usize, heads: usize, width: usize) -> Config {
    let shape = ModelConfig { layers, heads, width, ffn: 4 * width, context: 1024, ..ModelConfig::tiny() };
    Config {
        model: shape.gpt2_design(),
        optim: OptimConfig { rate: 6e-4, min_rate: 6e-5, warmup: 700, ..OptimConfig::default() },
        batch: 1,
        accumulate: 8,
        ..Config::default()
    }
}

fn pair(shape: ModelConfig, steps: u64, rate: f32) -> Config {
    Config {
        model: ModelConfig { kv_heads: 2, context: 256, ..shape },
        optim: OptimConfig { rate, min_rate: rate / 10.0, warmup: steps / 10, ..OptimConfig::default() },
        tokenizer_size: 4096,
        steps,
        ..Config::default()
    }
}

fn llama(layers: usize, heads: usize, width: usize, ffn: usize) -> Config {
    Config {
        model: ModelConfig { layers, heads, kv_heads: 4, width, ffn, context: 1024, ..ModelConfig::tiny() },
        optim: OptimConfig { rate: 6e-4, min_rate: 6e-5, warmup: 700, ..OptimConfig::default() },
        batch: 1,
        accumulate: 8,
        ..Config::default()
    }
}

fn llama_1b() -> Config {
    let base = llama(16, 16, 2048, 6144);
    Config { model: ModelConfig { vocab: 100_277, context: 2048, ..base.model }, ..base }
}

fn mla_moe() -> Config {
    let base = llama(8, 8, 512, 1408);
    Config {
        model: ModelConfig {
            kv_heads: 8,
            context: 512,
            latent: LatentDesign { kv_rank: 128, q_rank: 0, nope: 64, rope: 32, value: 64 },
            experts: ExpertsDesign {
                count: 16,
                active: 2,
                ffn: 384,
                shared: 1,
                dense_layers: 1,
                ..ExpertsDesign::default()
            },
            tied: false,
            eps: 1e-6,
            ..base.model
        },
        ..base
    }
}

fn mla_moe_v3() -> Config {
    let base = mla_moe();
    let experts = ExpertsDesign {
        active: 4,
        scoring: ScoringDesign::Sigmoid,
        groups: 4,
        active_groups: 2,
        scale: 2.5,
        balance: 1e-4,
        ..base.model.experts.clone()
    };
    let latent = LatentDesign { q_rank: 256, ..base.model.latent.clone() };
    Config { model: ModelConfig { experts, latent, ..base.model }, ..base }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::params::Params;

    #[test]
    fn presets_are_models_of_the_size_that_their_names_promise() {
        let count = |name: &str, vocab: usize| {
            let mut config = preset(name).unwrap();
            if config.model.vocab == 0 {
                config.model.vocab = vocab;
            }
            config.check().unwrap();
            let (arch, spec) = config.model.spec().unwrap();
            (config.model.layout(), Params::new(arch, &spec, false).count())
        };
        for (name, expected) in [
            ("gpt2", 124_439_808),
            ("gpt2-medium", 354_823_168),
            ("gpt2-large", 774_030_080),
            ("gpt2-xl", 1_557_611_200),
        ] {
            assert_eq!(count(name, 50_257), ("gpt2", expected), "{name}");
        }
        // nanoGPT's says 10.65 million without positions
        assert_eq!(count("baby-gpt", 65).1, 10_770_816);
        // written out: embedding, which is the head, too; layers of attention, feed-forward block, two norms; the last norm
        let llama = |[vocab, layers, width, kv, ffn]: [usize; 5]| {
            vocab * width
                + layers * (2 * width * width + 2 * width * kv + 3 * width * ffn + 2 * width)
                + width
        };
        for (name, vocab, shape) in [
            ("base", 50_257, [50_257, 12, 768, 256, 2048]),
            ("large", 50_257, [50_257, 24, 1024, 256, 2816]),
            ("xl", 50_257, [50_257, 24, 2048, 512, 5632]),
            ("llama-1b", 0, [100_277, 16, 2048, 512, 6144]),
        ] {
            assert_eq!(count(name, vocab), ("llama", llama(shape)), "{name}");
        }
        let attention = 512 * 8 * (64 + 32) + 512 * (128 + 32) + 128 + 128 * 8 * (64 + 64) + 8 * 64 * 512;
        let (dense, experts) = (3 * 512 * 1408, 512 * 16 + (16 + 1) * 3 * 512 * 384);
        let all = 2 * 4096 * 512 + 8 * (attention + 2 * 512) + dense + 7 * experts + 512;
        assert_eq!(count("mla-moe", 4096), ("deepseek_v2", all));
        // its queries are compressed, too, and corrections of a choice are not trained
        let [queries, compressed] = [512 * 8 * (64 + 32), 512 * 256 + 256 + 256 * 8 * (64 + 32)];
        assert_eq!(count("mla-moe-v3", 4096), ("deepseek_v3", all - 8 * queries + 8 * compressed));
        let [(_, whole), (_, draft)] = ["pair", "pair-draft"].map(|name| count(name, 4096));
        assert!((9_000_000..11_000_000).contains(&whole) && draft * 10 < whole, "{whole}, {draft}");
        for p in PRESETS {
            count(p.name, 300);
        }
        let error = preset("gpt3").unwrap_err();
        assert!(error.message().contains("gpt2-xl"), "{error}");
    }
}
