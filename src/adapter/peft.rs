//! What PEFT's `adapter_config.json` says about numbers, for those who read adapters in that layout.
//!
//! ```text
//! rank_pattern,  else r ──────────▶ rank ──┐
//! alpha_pattern, else lora_alpha ─▶ alpha ─┴▶ factor: alpha / rank, with use_rslora alpha / √rank
//! ```
//! A pattern is a regular expression for the end of a module's name, whole words of it; the first that fits counts.
//! What is more than a sum of low-rank changes of matrices is refused by name. Which modules there are it does not know:
//! the tensors tell.

use serde_json::Value;

use crate::error::{Error, Result, Status};
use crate::tokenizer::pattern::Expression;

/// PEFT's rank and alpha where the file does not say.
const DEFAULT: u32 = 8;

/// The most patterns of a kind: every one may be tried on every module.
const PATTERNS: usize = 1024;

/// The settings of an adapter that its numbers depend on.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// The rank of modules that no pattern of `ranks` fits.
    pub rank: u32,
    /// The alpha of modules that no pattern of `alphas` fits.
    pub alpha: f64,
    /// Ranks of some modules, by pattern.
    pub ranks: Vec<(String, u32)>,
    /// Alphas of some modules, by pattern.
    pub alphas: Vec<(String, f64)>,
    /// The factor is alpha over the root of the rank.
    pub rank_stabilised: bool,
}

impl Settings {
    /// Reads an adapter's configuration.
    ///
    /// # Errors
    /// `UNSUPPORTED` for what is more than a sum of low-rank changes, `BAD_FORMAT` for a value of another kind.
    pub fn read(config: &Value) -> Result<Settings> {
        refuse_more(config)?;
        let rank = |place: &str, value: &Value| {
            let rank = value.as_u64().and_then(|rank| u32::try_from(rank).ok()).filter(|rank| *rank > 0);
            rank.ok_or_else(|| bad(format!("`{place}` is {value}, expected a whole number above 0")))
        };
        let alpha = |place: &str, value: &Value| {
            let alpha = value.as_f64().filter(|alpha| alpha.is_finite());
            alpha.ok_or_else(|| bad(format!("`{place}` is {value}, expected a number")))
        };
        Ok(Settings {
            rank: config.get("r").map_or(Ok(DEFAULT), |value| rank("r", value))?,
            alpha: config.get("lora_alpha").map_or(Ok(f64::from(DEFAULT)), |v| alpha("lora_alpha", v))?,
            ranks: by_pattern(config, "rank_pattern", rank)?,
            alphas: by_pattern(config, "alpha_pattern", alpha)?,
            rank_stabilised: is_set(config, "use_rslora"),
        })
    }

    /// The same, ready to be asked about modules.
    ///
    /// # Errors
    /// `BAD_FORMAT` for a pattern that is no usable regular expression.
    pub fn modules(&self) -> Result<Modules> {
        let (ranks, alphas) =
            (compile("rank_pattern", &self.ranks)?, compile("alpha_pattern", &self.alphas)?);
        let Settings { rank, alpha, rank_stabilised, .. } = *self;
        Ok(Modules { rank, alpha, ranks, alphas, rank_stabilised })
    }
}

/// Rank and factor of each module.
pub struct Modules {
    rank: u32,
    alpha: f64,
    ranks: Vec<(Expression, u32)>,
    alphas: Vec<(Expression, f64)>,
    rank_stabilised: bool,
}

impl Modules {
    /// The rank of `module`, by its name in the checkpoint without `.weight`.
    ///
    /// # Errors
    /// `BAD_FORMAT` where a pattern takes too long.
    pub fn rank(&self, module: &str) -> Result<u32> {
        first("rank_pattern", &self.ranks, module).map(|found| found.unwrap_or(self.rank))
    }

    /// The factor on the change of `module`, which has this `rank`.
    ///
    /// # Errors
    /// As [`Modules::rank`]; `BAD_FORMAT` for a factor that is not finite.
    pub fn factor(&self, module: &str, rank: u32) -> Result<f32> {
        let alpha = first("alpha_pattern", &self.alphas, module)?.unwrap_or(self.alpha);
        let over = if self.rank_stabilised { f64::from(rank).sqrt() } else { f64::from(rank) };
        let factor = (alpha / over) as f32;
        if !factor.is_finite() {
            return Err(bad(format!("alpha {alpha} over rank {rank} of `{module}` is {factor}")));
        }
        Ok(factor)
    }
}

/// The value of the first pattern that fits `module`.
fn first<T: Copy>(key: &str, patterns: &[(Expression, T)], module: &str) -> Result<Option<T>> {
    for (expression, value) in patterns {
        let fits = expression.is_in(module).map_err(|why| bad(format!("`{key}`: `{module}`: {why}")))?;
        if fits {
            return Ok(Some(*value));
        }
    }
    Ok(None)
}

fn compile<T: Copy>(key: &str, patterns: &[(String, T)]) -> Result<Vec<(Expression, T)>> {
    let one = |(pattern, value): &(String, T)| {
        let expression = Expression::new(&format!(r"^(?:.*\.)?(?:{pattern})$"));
        Ok((expression.map_err(|why| bad(format!("`{key}`: `{pattern}`: {why}")))?, *value))
    };
    patterns.iter().map(one).collect()
}

/// The patterns of `key` in the order of the file.
fn by_pattern<T>(
    config: &Value,
    key: &str,
    read: impl Fn(&str, &Value) -> Result<T>,
) -> Result<Vec<(String, T)>> {
    match config.get(key) {
        None | Some(Value::Null) => Ok(Vec::new()),
        Some(Value::Object(map)) if map.len() > PATTERNS => {
            Err(bad(format!("`{key}` has {} patterns, at most {PATTERNS} are read", map.len())))
        }
        Some(Value::Object(map)) => {
            let one = |(pattern, value): (&String, &Value)| {
                Ok((pattern.clone(), read(&format!("{key}: {pattern}"), value)?))
            };
            map.iter().map(one).collect()
        }
        Some(other) => Err(bad(format!("`{key}` is {other}, expected names with numbers"))),
    }
}

/// Whether `key` asks for something.
fn is_set(config: &Value, key: &str) -> bool {
    match config.get(key) {
        None | Some(Value::Null | Value::Bool(false)) => false,
        Some(Value::Array(list)) => !list.is_empty(),
        Some(Value::Object(map)) => !map.is_empty(),
        Some(_) => true,
    }
}

/// Refuses what is more than a sum of low-rank changes.
fn refuse_more(config: &Value) -> Result<()> {
    let refuse = |key: &str, why: &str| {
        let got = config.get(key).unwrap_or(&Value::Null);
        Err(Error::new(Status::UNSUPPORTED, format!("`{key}` is {got}: {why}")))
    };
    let text = |key: &str| config.get(key).and_then(Value::as_str);
    if text("peft_type") != Some("LORA") {
        return refuse("peft_type", "supported is \"LORA\"");
    }
    if is_set(config, "bias") && text("bias") != Some("none") {
        return refuse("bias", "biases are not changed by adapters; train with \"none\", or merge");
    }
    let init = text("init_lora_weights").unwrap_or_default().to_ascii_lowercase();
    if ["pissa", "olora", "loftq", "corda", "lora_ga"].iter().any(|kind| init.starts_with(kind)) {
        let why = "it changes the model's own matrices; save it as a plain LoRA first (PEFT's \
                   `path_initial_model_for_weight_conversion`)";
        return refuse("init_lora_weights", why);
    }
    let others = [
        ("use_dora", "its norms are not supported; merge it into the model"),
        ("modules_to_save", "whole modules beside the adapter are not supported; merge it into the model"),
        ("lora_bias", "biases are not changed by adapters; merge it into the model"),
        (
            "target_parameters",
            "single parameters, such as experts, are not supported; merge it into the model",
        ),
        ("trainable_token_indices", "new embeddings are not supported; merge it into the model"),
        ("layer_replication", "copied layers are not supported; merge it into the model"),
        ("alora_invocation_tokens", "adapters that begin at a token are not supported"),
        ("use_qalora", "it is not supported"),
        ("use_bdlora", "it is not supported"),
        ("arrow_config", "it is not supported"),
        ("kasa_config", "it is not supported"),
        ("monteclora_config", "it is not supported"),
        ("velora_config", "it is not supported"),
    ];
    match others.into_iter().find(|(key, _)| is_set(config, key)) {
        Some((key, why)) => refuse(key, why),
        None => Ok(()),
    }
}

fn bad(what: String) -> Error {
    Error::new(Status::BAD_FORMAT, what)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_first_pattern_that_fits_the_end_of_a_name_counts() {
        let config = json!({
            "peft_type": "LORA", "r": 4, "lora_alpha": 6,
            "rank_pattern": {"^layers.0.q_proj": 9, "proj": 7, r"layers\.[01]\..*": 2, "q_proj|v_proj": 3},
            "alpha_pattern": {"1.q_proj": 12, "q_proj": 3},
        });
        let modules = Settings::read(&config).unwrap().modules().unwrap();
        for (module, rank, factor) in [
            // a pattern may begin at the beginning alone; `proj` is no whole word of it
            ("layers.0.q_proj", 9, 3.0 / 9.0),
            ("model.layers.0.q_proj", 2, 1.5),
            ("model.layers.1.q_proj", 2, 6.0),
            ("model.layers.11.q_proj", 3, 1.0),
            ("model.layers.12.v_proj", 3, 2.0),
            ("model.layers.12.proj", 7, 6.0 / 7.0),
            ("model.layers.12.v_proj_of_more", 4, 1.5),
        ] {
            assert_eq!(modules.rank(module).unwrap(), rank, "{module}");
            assert_eq!(modules.factor(module, rank).unwrap(), factor, "{module}");
        }
    }

    #[test]
    fn values_of_another_kind_and_patterns_that_are_none_are_refused_with_their_place() {
        let many: Value = (0..1025).map(|i| (i.to_string(), json!(1))).collect();
        for (key, value, expected) in [
            ("r", json!(0), "`r` is 0, expected a whole number above 0"),
            ("lora_alpha", json!("much"), "`lora_alpha` is \"much\", expected a number"),
            ("rank_pattern", json!({"q": 1.5}), "`rank_pattern: q` is 1.5, expected a whole number above 0"),
            ("alpha_pattern", json!([2]), "`alpha_pattern` is [2], expected names with numbers"),
            ("rank_pattern", json!({"q(": 2}), "`rank_pattern`: `q(`: "),
            ("rank_pattern", json!({"(?:abcdefgh){9999}": 2}), "written out it takes more than 4096"),
            ("alpha_pattern", many.clone(), "`alpha_pattern` has 1025 patterns, at most 1024"),
        ] {
            let mut config = json!({"peft_type": "LORA", "r": 4, "lora_alpha": 6});
            config[key] = value;
            let error = Settings::read(&config).and_then(|settings| settings.modules()).err().unwrap();
            assert_eq!(error.status(), Status::BAD_FORMAT);
            assert!(error.message().contains(expected), "{error}");
        }
        let plain = json!({"peft_type": "LORA", "rank_pattern": null, "use_rslora": true});
        let plain = Settings::read(&plain).unwrap();
        assert_eq!((plain.rank, plain.alpha, plain.ranks.len(), plain.rank_stabilised), (8, 8.0, 0, true));
    }
}
