//! Models of a known shape with random weights: what a benchmark needs, without a checkpoint.
//!
//! Weights are uniform with variance 1/inputs, norms are one, so activations keep their size from layer to layer.
//! Every row follows from the tensor's name and its number alone. Eight values are made of one 64-bit step, each
//! one of 256 levels, and the rows of a matrix begin again after 128: what a kernel reads is as much and as spread
//! out as in a model, and a model of a billion weights is encoded in the time that writing it takes.

use std::path::Path;

use llm::model::arch::{self, LayerSlot as L, Slot, Want};
use llm::{Error, Result, Status};
use llm_format::quant::{ROWS, Type};
use serde_json::{Map, Value, json};

use crate::values::{Origin, Values};
use crate::{Progress, Summary, encode, write};

/// A shape: its name, and the configuration a checkpoint of it would have.
pub struct Shape {
    /// Name, as in `--random llama-1b`.
    pub name: &'static str,
    config: fn() -> Value,
}

/// Every shape, a line each.
pub static SHAPES: &[Shape] = &[
    Shape { name: "smol-135m", config: || llama(576, 30, 9, 3, 64, 1536, 49152, true) },
    Shape { name: "llama-1b", config: || llama(2048, 16, 32, 8, 64, 8192, 128_256, true) },
    Shape { name: "llama-8b", config: || llama(4096, 32, 32, 8, 128, 14336, 128_256, false) },
    Shape { name: "qwen-0.5b", config: qwen },
    Shape { name: "moe-small", config: moe },
];

#[allow(clippy::too_many_arguments)] // the columns of the table above
fn llama(
    width: u32,
    layers: u32,
    heads: u32,
    kv_heads: u32,
    head_dim: u32,
    inner: u32,
    vocab: u32,
    tied: bool,
) -> Value {
    json!({
        "model_type": "llama", "hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads,
        "num_key_value_heads": kv_heads, "head_dim": head_dim, "intermediate_size": inner, "vocab_size": vocab,
        "tie_word_embeddings": tied, "rms_norm_eps": 1e-5, "rope_theta": 5e5, "max_position_embeddings": 131_072,
    })
}

/// Qwen2.5-0.5B
fn qwen() -> Value {
    json!({
        "model_type": "qwen2", "hidden_size": 896, "num_hidden_layers": 24, "num_attention_heads": 14,
        "num_key_value_heads": 2, "intermediate_size": 4864, "vocab_size": 151_936, "tie_word_embeddings": true,
        "rope_theta": 1e6, "max_position_embeddings": 32768,
    })
}

/// A small Mixtral: 8 experts of which 2 run.
fn moe() -> Value {
    json!({
        "model_type": "mixtral", "hidden_size": 1024, "num_hidden_layers": 16, "num_attention_heads": 16,
        "num_key_value_heads": 4, "intermediate_size": 1792, "vocab_size": 32000, "num_local_experts": 8,
        "num_experts_per_tok": 2, "max_position_embeddings": 32768,
    })
}

/// Kinds of rotary scaling for [`RandomOptions::scaling`].
pub const SCALINGS: &[&str] = &["linear", "dynamic", "llama3", "yarn", "longrope"];
/// Tokens that a shape with rotary scaling says it was trained on, and how many times as many it is scaled to.
const ORIGINAL: u32 = 2048;
const FACTOR: u32 = 16;

/// What shall be other than the shape says.
#[derive(Clone, Copy, Debug, Default)]
pub struct RandomOptions<'a> {
    /// Rotary scaling from 2,048 to 32,768 tokens, one of [`SCALINGS`].
    pub scaling: Option<&'a str>,
    /// Layers.
    pub layers: Option<u32>,
    /// Tokens of the vocabulary.
    pub vocab: Option<u32>,
}

impl RandomOptions<'_> {
    fn change(&self, config: &mut Value) -> Result<()> {
        let counts = [("num_hidden_layers", self.layers), ("vocab_size", self.vocab)];
        for (key, count) in counts.into_iter().filter_map(|(key, count)| Some((key, count?))) {
            config[key] = count.into();
        }
        let Some(kind) = self.scaling else { return Ok(()) };
        if !SCALINGS.contains(&kind) {
            let what = format!("no rotary scaling `{kind}`; there are {}", SCALINGS.join(", "));
            return Err(Error::new(Status::NOT_FOUND, what));
        }
        let of = |key: &str| config[key].as_f64();
        let dim = of("head_dim").or_else(|| Some(of("hidden_size")? / of("num_attention_heads")?));
        let pairs = dim.unwrap_or(0.0) as u32 / 2;
        let stretched = |by: f64| -> Vec<f64> { (0..pairs).map(|i| 1.0 + by * f64::from(i)).collect() };
        config["max_position_embeddings"] = ORIGINAL.into();
        // Each kind reads what it knows.
        config["rope_scaling"] = json!({ "rope_type": kind, "factor": FACTOR,
            "original_max_position_embeddings": ORIGINAL, "low_freq_factor": 1, "high_freq_factor": 4 });
        if kind == "longrope" {
            config["rope_scaling"]["short_factor"] = stretched(1.0 / 64.0).into();
            config["rope_scaling"]["long_factor"] = stretched(1.0).into();
        }
        Ok(())
    }
}

/// Writes a model of shape `name` with random weights of type `ty` to `out`. It has no tokenizer.
///
/// # Errors
/// `NOT_FOUND` for a name that is not in [`SHAPES`], and what writing fails with.
pub fn random(name: &str, ty: Type, out: &Path, progress: &dyn Progress) -> Result<Summary> {
    random_with(name, &RandomOptions::default(), ty, out, progress)
}

/// As [`random`], of a shape that is changed.
///
/// # Errors
/// As [`random`], and `NOT_FOUND` for a scaling that is not in [`SCALINGS`].
pub fn random_with(
    name: &str,
    options: &RandomOptions<'_>,
    ty: Type,
    out: &Path,
    progress: &dyn Progress,
) -> Result<Summary> {
    let shape = SHAPES.iter().find(|s| s.name == name).ok_or_else(|| {
        let known: Vec<&str> = SHAPES.iter().map(|s| s.name).collect();
        let what = format!("no random model of the shape `{name}`; there are {}", known.join(", "));
        Error::new(Status::NOT_FOUND, what)
    })?;
    let mut config = (shape.config)();
    options.change(&mut config)?;
    let (arch, spec) = arch::read_config(&config)?;
    let items = encode::items((arch.tensors)(&spec), ty, None)?;
    let mut metadata = Map::new();
    metadata.insert("name".into(), format!("random-{name}").into());
    metadata.insert("provenance".into(), json!({"source": "random weights", "shape": name}));
    write(out, &spec, metadata, None, &items, ty, &Random, progress)
}

struct Random;

/// Blocks of rows after which a matrix begins again.
const PERIOD: usize = 4;

struct RandomRows {
    seed: u64,
    cols: usize,
    /// Magnitude of the largest value.
    most: f32,
}

/// SplitMix64 (Steele, Lea, Flood 2014).
fn mix(state: u64) -> u64 {
    let z = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

fn seed(name: &str, index: usize) -> u64 {
    name.bytes().fold(index as u64, |seed, b| mix(seed.wrapping_add(GOLDEN) ^ u64::from(b)))
}

fn fill(seed: u64, most: f32, out: &mut [f32]) {
    let (mut state, step) = (seed, most / 127.5);
    for eight in out.chunks_mut(8) {
        state = state.wrapping_add(GOLDEN);
        for (value, byte) in eight.iter_mut().zip(mix(state).to_le_bytes()) {
            *value = (f32::from(byte) - 127.5) * step;
        }
    }
}

impl Values for RandomRows {
    fn rows(&self, first: usize, out: &mut [f32], _: &mut Vec<u8>) -> Result<()> {
        for (row, out) in out.chunks_mut(self.cols.max(1)).enumerate() {
            let number = (first + row) % (PERIOD * ROWS);
            fill(mix(self.seed.wrapping_add(number as u64)), self.most, out);
        }
        Ok(())
    }

    fn period(&self) -> Option<usize> {
        Some(PERIOD)
    }

    fn bound(&self) -> Option<f32> {
        Some(self.most)
    }
}

impl Origin for Random {
    fn matrix<'a>(&'a self, want: &'a Want, index: usize) -> Result<Box<dyn Values + 'a>> {
        let cols = want.shape.last().copied().unwrap_or(1) as usize;
        // Uniform on ±√3·σ has the standard deviation σ.
        let sigma = match want.slot {
            Slot::Embedding | Slot::Positions => 0.05,
            _ => 1.0 / (cols as f32).sqrt(),
        };
        Ok(Box::new(RandomRows { seed: seed(&want.name, index), cols, most: 3f32.sqrt() * sigma }))
    }

    fn vector(&self, want: &Want) -> Result<Vec<f32>> {
        let count = want.shape.first().copied().unwrap_or(0) as usize;
        let ones = matches!(
            want.slot,
            Slot::EmbeddingNorm
                | Slot::FinalNorm
                | Slot::Layer(
                    _,
                    L::AttentionNorm
                        | L::AttentionPostNorm
                        | L::FfnNorm
                        | L::FfnPostNorm
                        | L::QNorm
                        | L::KNorm
                        | L::QDownNorm
                        | L::KvDownNorm
                )
        );
        let mut values = vec![1.0; count];
        if !ones {
            fill(seed(&want.name, 0), 0.02, &mut values);
        }
        Ok(values)
    }
}
