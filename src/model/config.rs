//! Reading a checkpoint's `config.json`: typed keys with defaults, and the parts every family shares.
//!
//! Checkpoints come in two layouts. The old one has `rope_theta` and `rope_scaling` (with `type` or `rope_type`)
//! beside the other keys; the new one has one object `rope_parameters`, or one per layer type inside it. Defaults
//! of missing keys are those of the configuration classes of the transformers library, which publishes the
//! checkpoints' meaning; a key that is there with `null` is not the same as a missing one.

use serde_json::{Map, Value};

use super::spec::{Activation, Norm, NormKind, Pairs, Rope, Scaling, Spec};
use crate::error::{Error, Result, Status};

/// An object of `config.json`.
pub(crate) struct Config<'a> {
    map: &'a Map<String, Value>,
    /// Where it lies, for errors: `""` or `rope_parameters.`.
    place: String,
}

/// The error of a key whose value is not supported.
pub(crate) fn unsupported(key: &str, got: &Value, supported: &str) -> Error {
    Error::new(Status::UNSUPPORTED, format!("config.json: `{key}` is {got}, supported is {supported}"))
}

fn malformed(key: &str, expected: &str, got: &Value) -> Error {
    Error::new(Status::BAD_FORMAT, format!("config.json: `{key}` should be {expected}, got {got}"))
}

impl<'a> Config<'a> {
    /// The whole file.
    pub(crate) fn new(value: &'a Value) -> Result<Self> {
        match value.as_object() {
            Some(map) => Ok(Self { map, place: String::new() }),
            None => Err(Error::new(Status::BAD_FORMAT, "config.json: expected a JSON object")),
        }
    }

    fn full(&self, key: &str) -> String {
        format!("{}{key}", self.place)
    }

    /// The value of `key`, `None` where it is missing or null.
    fn get(&self, key: &str) -> Option<&'a Value> {
        self.map.get(key).filter(|v| !v.is_null())
    }

    /// Whether `key` is there with a value other than null.
    pub(crate) fn has(&self, key: &str) -> bool {
        self.get(key).is_some()
    }

    /// The first of several spellings of a key that is there.
    pub(crate) fn spelling<'k>(&self, keys: &[&'k str]) -> &'k str {
        keys.iter().copied().find(|k| self.has(k)).or(keys.first().copied()).unwrap_or("")
    }

    /// An object inside this one.
    pub(crate) fn child(&self, key: &str) -> Result<Option<Config<'a>>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Object(map)) => Ok(Some(Config { map, place: format!("{}.", self.full(key)) })),
            Some(other) => Err(malformed(&self.full(key), "an object", other)),
        }
    }

    /// A whole number that fits u32; a float without fraction counts as one.
    pub(crate) fn whole(&self, key: &str) -> Result<Option<u32>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let number = value.as_u64().or_else(|| {
            let float = value.as_f64()?;
            // The range makes the conversion exact.
            (float.fract() == 0.0 && (0.0..=f64::from(u32::MAX)).contains(&float)).then_some(float as u64)
        });
        match number.and_then(|n| u32::try_from(n).ok()) {
            Some(n) => Ok(Some(n)),
            None => Err(malformed(&self.full(key), "a whole number from 0 to 4294967295", value)),
        }
    }

    /// [`Self::whole`] with a default for a missing or null key.
    pub(crate) fn u32(&self, key: &str, default: u32) -> Result<u32> {
        Ok(self.whole(key)?.unwrap_or(default))
    }

    /// A whole number whose `null` means none and whose absence means `default`.
    pub(crate) fn nullable(&self, key: &str, default: Option<u32>) -> Result<Option<u32>> {
        if self.map.contains_key(key) { self.whole(key) } else { Ok(default) }
    }

    /// A finite number.
    pub(crate) fn number(&self, key: &str) -> Result<Option<f64>> {
        match self.get(key) {
            None => Ok(None),
            Some(value) => match value.as_f64().filter(|n| n.is_finite()) {
                Some(n) => Ok(Some(n)),
                None => Err(malformed(&self.full(key), "a number", value)),
            },
        }
    }

    /// The number of layers, bounded before anything is made of each.
    pub(crate) fn layers(&self, key: &str, default: u32) -> Result<u32> {
        self.at_most(Spec::MOST_LAYERS as u32, key, default)
    }

    /// The number of heads, bounded before there is a slope for each.
    pub(crate) fn heads(&self, key: &str, default: u32) -> Result<u32> {
        self.at_most(Spec::MOST_HEADS, key, default)
    }

    fn at_most(&self, most: u32, key: &str, default: u32) -> Result<u32> {
        match self.u32(key, default)? {
            n if n <= most => Ok(n),
            n => Err(malformed(&self.full(key), &format!("at most {most}"), &n.into())),
        }
    }

    /// A number that must be there.
    pub(crate) fn required(&self, key: &str) -> Result<f64> {
        self.number(key)?.ok_or_else(|| {
            Error::new(Status::BAD_FORMAT, format!("config.json: `{}` is missing", self.full(key)))
        })
    }

    /// [`Self::number`] with a default, as f32.
    pub(crate) fn f32(&self, key: &str, default: f32) -> Result<f32> {
        Ok(self.number(key)?.map_or(default, |n| n as f32))
    }

    /// A number whose `null` means none and whose absence means `default`.
    pub(crate) fn nullable_f32(&self, key: &str, default: Option<f32>) -> Result<Option<f32>> {
        if self.map.contains_key(key) { Ok(self.number(key)?.map(|n| n as f32)) } else { Ok(default) }
    }

    /// A list of finite numbers.
    fn numbers(&self, key: &str) -> Result<Vec<f64>> {
        let value = self.get(key).unwrap_or(&Value::Null);
        let list = value.as_array().map(|list| list.iter().map(|v| v.as_f64().filter(|n| n.is_finite())));
        list.and_then(Iterator::collect).ok_or_else(|| malformed(&self.full(key), "a list of numbers", value))
    }

    /// A list of whole numbers, empty where it is missing.
    pub(crate) fn wholes(&self, key: &str) -> Result<Vec<u64>> {
        let Some(value) = self.get(key) else { return Ok(Vec::new()) };
        let list = value.as_array().map(|list| list.iter().map(Value::as_u64));
        list.and_then(Iterator::collect)
            .ok_or_else(|| malformed(&self.full(key), "a list of whole numbers", value))
    }

    /// A boolean.
    pub(crate) fn flag(&self, key: &str, default: bool) -> Result<bool> {
        match self.get(key) {
            None => Ok(default),
            Some(Value::Bool(b)) => Ok(*b),
            Some(other) => Err(malformed(&self.full(key), "true or false", other)),
        }
    }

    /// A string.
    pub(crate) fn text(&self, key: &str) -> Result<Option<&'a str>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::String(s)) => Ok(Some(s)),
            Some(other) => Err(malformed(&self.full(key), "a string", other)),
        }
    }

    /// Refuses a key that is there with a value other than null and `neutral`.
    pub(crate) fn only(&self, key: &str, neutral: &Value) -> Result<()> {
        match self.get(key) {
            Some(value) if value != neutral && value.as_f64() != neutral.as_f64().or(Some(f64::NAN)) => {
                Err(unsupported(&self.full(key), value, &neutral.to_string()))
            }
            _ => Ok(()),
        }
    }

    /// An activation by transformers' names.
    pub(crate) fn activation(&self, key: &str, default: &str) -> Result<Activation> {
        match self.text(key)?.unwrap_or(default) {
            "silu" | "swish" => Ok(Activation::Silu),
            "gelu" => Ok(Activation::Gelu),
            // Four names of one function.
            "gelu_new" | "gelu_pytorch_tanh" | "gelu_fast" | "gelu_accurate" => Ok(Activation::GeluTanh),
            "relu" => Ok(Activation::Relu),
            "relu2" => Ok(Activation::Relu2),
            other => {
                let known = "silu, gelu, gelu_new, gelu_pytorch_tanh, relu or relu2";
                Err(unsupported(&self.full(key), &Value::from(other), known))
            }
        }
    }

    /// Which layers have a sliding window: `layer_types`, or `default` by index.
    pub(crate) fn sliding(&self, layers: u32, default: impl Fn(u32) -> bool) -> Result<Vec<bool>> {
        let Some(value) = self.get("layer_types") else { return Ok((0..layers).map(default).collect()) };
        let key = self.full("layer_types");
        let types = value.as_array().filter(|list| list.len() == layers as usize);
        let types =
            types.ok_or_else(|| malformed(&key, &format!("a list of {layers}, one a layer"), value))?;
        let sliding = types.iter().map(|t| match t.as_str() {
            Some("full_attention") => Ok(false),
            Some("sliding_attention") => Ok(true),
            _ => Err(unsupported(&key, t, "full_attention or sliding_attention")),
        });
        sliding.collect()
    }

    /// Key-value heads: `default` where the key is missing, as many as heads where it is null.
    pub(crate) fn kv_heads(&self, heads: u32, default: Option<u32>) -> Result<u32> {
        Ok(self.nullable("num_key_value_heads", default)?.unwrap_or(heads))
    }

    /// Width of a head: `head_dim`, or its share of the width.
    pub(crate) fn head_dim(&self, width: u32, heads: u32) -> Result<u32> {
        match self.whole("head_dim")? {
            Some(dim) => Ok(dim),
            None => share(width, heads),
        }
    }

    /// The rotary table of layers of `kind` (`full_attention` or `sliding_attention`).
    pub(crate) fn rope(&self, kind: &str, defaults: RopeDefaults) -> Result<Rope> {
        let params = match self.child("rope_scaling")? {
            Some(params) => Some(params),
            None => self.child("rope_parameters")?,
        };
        let params = match params {
            Some(params) if params.map.get(kind).is_some_and(Value::is_object) => params.child(kind)?,
            other => other,
        };
        let empty = Map::new();
        let params = params.unwrap_or(Config { map: &empty, place: "rope_parameters.".into() });
        let theta = match params.number("rope_theta")? {
            Some(theta) => theta,
            None => self.number(self.spelling(&["rope_theta", "rotary_emb_base"]))?.unwrap_or(defaults.theta),
        };
        let partial = match self.number(self.spelling(&["partial_rotary_factor", "rotary_pct"]))? {
            Some(part) => part,
            None => params.number("partial_rotary_factor")?.unwrap_or(defaults.partial),
        };
        // Truncation is transformers' rule.
        let dim = (f64::from(defaults.head_dim) * partial) as u32;
        let scaling = self.scaling(&params, &defaults)?;
        Ok(Rope { theta, dim, pairs: defaults.pairs, scaling })
    }

    pub(crate) fn scaling(&self, params: &Config<'_>, defaults: &RopeDefaults) -> Result<Scaling> {
        let original = match self.whole("original_max_position_embeddings")? {
            Some(n) => n,
            None => params.u32("original_max_position_embeddings", defaults.original)?,
        };
        let ratio = f64::from(defaults.context) / f64::from(original.max(1));
        let kind = params.text(params.spelling(&["rope_type", "type"]))?.unwrap_or("default");
        match kind {
            "default" => Ok(Scaling::None),
            "linear" => Ok(Scaling::Linear { factor: params.required("factor")? }),
            "dynamic" => {
                Ok(Scaling::Dynamic { factor: params.required("factor")?, original: defaults.context })
            }
            "llama3" => Ok(Scaling::Llama3 {
                factor: params.required("factor")?,
                low: params.required("low_freq_factor")?,
                high: params.required("high_freq_factor")?,
                original,
            }),
            // Phi-3's first checkpoints called longrope by other names.
            "longrope" | "su" | "yarn" if kind != "yarn" || params.has("short_factor") => {
                let factor = params.number("factor")?.unwrap_or(ratio);
                let usual =
                    if factor <= 1.0 { 1.0 } else { (1.0 + factor.ln() / f64::from(original).ln()).sqrt() };
                Ok(Scaling::Longrope {
                    short: params.numbers("short_factor")?,
                    long: params.numbers("long_factor")?,
                    original,
                    attention_factor: params.number("attention_factor")?.unwrap_or(usual),
                })
            }
            "yarn" => {
                let factor = params.number("factor")?.unwrap_or(ratio);
                // A zero counts as missing there.
                let number = |key| -> Result<Option<f64>> { Ok(params.number(key)?.filter(|n| *n != 0.0)) };
                let usual = match (number("mscale")?, number("mscale_all_dim")?) {
                    (Some(a), Some(b)) => yarn_mscale(factor, a) / yarn_mscale(factor, b),
                    _ => yarn_mscale(factor, 1.0),
                };
                Ok(Scaling::Yarn {
                    factor,
                    original,
                    beta_fast: number("beta_fast")?.unwrap_or(32.0),
                    beta_slow: number("beta_slow")?.unwrap_or(1.0),
                    truncate: params.flag("truncate", true)?,
                    attention_factor: params.number("attention_factor")?.unwrap_or(usual),
                })
            }
            other => {
                let known = "default, linear, dynamic, llama3, yarn or longrope";
                Err(unsupported(&params.full("rope_type"), &Value::from(other), known))
            }
        }
    }

    /// The square of YaRN's factor on the softmax scale that deepseek models name `mscale_all_dim`; 1 without.
    pub(crate) fn softmax_mscale(&self) -> Result<f64> {
        let params = match self.child("rope_scaling")? {
            Some(params) => Some(params),
            None => self.child("rope_parameters")?,
        };
        let Some(params) = params else { return Ok(1.0) };
        match params.number("mscale_all_dim")?.filter(|m| *m != 0.0) {
            Some(m)
                if params.text(params.spelling(&["rope_type", "type"]))?.unwrap_or("default")
                    != "default" =>
            {
                Ok(yarn_mscale(params.required("factor")?, m).powi(2))
            }
            _ => Ok(1.0),
        }
    }
}

/// What a family supplies for its rotary table.
#[derive(Clone, Copy)]
pub(crate) struct RopeDefaults {
    pub(crate) theta: f64,
    pub(crate) partial: f64,
    pub(crate) head_dim: u32,
    /// `max_position_embeddings`
    pub(crate) context: u32,
    /// `original_max_position_embeddings` where it is missing.
    pub(crate) original: u32,
    pub(crate) pairs: Pairs,
}

impl RopeDefaults {
    /// Whole heads, pairs of halves.
    pub(crate) fn new(theta: f64, head_dim: u32, context: u32) -> Self {
        Self { theta, partial: 1.0, head_dim, context, original: context, pairs: Pairs::Halves }
    }
}

/// 0.1 · m · ln(scale) + 1 (YaRN, arXiv:2309.00071, section 3.4).
pub(crate) fn yarn_mscale(scale: f64, m: f64) -> f64 {
    if scale <= 1.0 { 1.0 } else { 0.1 * m * scale.ln() + 1.0 }
}

/// `width / heads`, which must come out even.
pub(crate) fn share(width: u32, heads: u32) -> Result<u32> {
    match width.checked_div(heads) {
        Some(dim) if dim * heads == width => Ok(dim),
        _ => Err(Error::new(
            Status::BAD_FORMAT,
            format!("config.json: a width of {width} is not divided evenly by {heads} attention heads"),
        )),
    }
}

/// An RMS norm.
pub(crate) const fn rms(eps: f32) -> Norm {
    Norm { kind: NormKind::Rms, eps, bias: false }
}

/// A layer norm.
pub(crate) const fn layer_norm(eps: f32, bias: bool) -> Norm {
    Norm { kind: NormKind::Layer, eps, bias }
}

/// 1/sqrt(dim)
pub(crate) fn inverse_root(dim: u32) -> f32 {
    (1.0 / f64::from(dim).sqrt()) as f32
}
