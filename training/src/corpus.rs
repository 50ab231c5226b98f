//! The data of a run: one prepared directory, or several drawn by weight, with weights and lengths that may change.
//!
//! ```text
//!   mixture      web 3, books 1           sample n → directory, by a number drawn for n alone
//!   curriculum   until 1000: length 128   steps before 1000
//!                until 3000: weights 1 1  steps from 1000 to 2999; then what the run says without a curriculum
//! ```
//! Each directory has a count of its own samples, so its own order and epochs do not depend on what was drawn beside
//! it. All directories share one vocabulary. It does not know models.

use std::path::{Path, PathBuf};

use llm::error::{Error, Result, Status};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::config::Config;
use crate::data::{TokenFile, optional, vocabulary_hash};
use crate::random::{Stream, bits};

/// A directory of a mixture.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Part {
    /// The directory, of prepared data.
    pub data: PathBuf,
    /// Its share of the samples is this by the sum of all weights.
    pub weight: f64,
}

impl Default for Part {
    fn default() -> Self {
        Part { data: PathBuf::new(), weight: 1.0 }
    }
}

impl Part {
    /// From `DIR=WEIGHT` or `DIR`; a directory with `=` in its name needs the weight.
    pub(crate) fn parse(text: &str) -> Part {
        let weighed = text.rsplit_once('=').and_then(|(d, w)| Some((d, w.parse().ok()?)));
        let (data, weight) = weighed.unwrap_or((text, 1.0));
        Part { data: data.into(), weight }
    }
}

/// A stretch of a run with a length and weights of its own.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Phase {
    /// It ends when so many steps are done.
    pub until: u64,
    /// Tokens per sequence; 0: the run's.
    pub length: usize,
    /// A weight for each directory of the mixture; empty: the run's.
    pub weights: Vec<f64>,
}

/// Checks mixture and curriculum of a configuration.
///
/// # Errors
/// `INVALID_ARG` with the setting that does not fit.
pub(crate) fn check(config: &Config) -> Result<()> {
    let invalid = |message: String| Err(Error::new(Status::INVALID_ARG, message));
    let weights: Vec<f64> = config.mixture.iter().map(|p| p.weight).collect();
    let usable = |w: &[f64]| {
        let sum: f64 = w.iter().sum();
        w.iter().all(|w| *w >= 0.0) && sum > 0.0 && sum.is_finite()
    };
    if !weights.is_empty() && !usable(&weights) {
        return invalid(format!("mixture: weights {weights:?}: expected 0 or more, and one above 0"));
    }
    for (i, part) in config.mixture.iter().enumerate() {
        if part.data.as_os_str().is_empty() {
            return invalid(format!("mixture.{i}.data: expected a directory of prepared data"));
        }
        if config.mixture[..i].iter().any(|p| p.data == part.data) {
            return invalid(format!("mixture: {} is named twice", part.data.display()));
        }
    }
    let mut before = 0;
    for (i, phase) in config.curriculum.iter().enumerate() {
        if phase.until <= before {
            let until = phase.until;
            return invalid(format!("curriculum.{i}.until = {until}: expected more than {before}"));
        }
        before = phase.until;
        let (got, parts) = (phase.weights.len(), config.mixture.len());
        if got > 0 && (got != parts || !usable(&phase.weights)) {
            return invalid(format!(
                "curriculum.{i}.weights = {:?}: expected {parts} of 0 or more, one for each directory of `mixture`",
                phase.weights
            ));
        }
    }
    Ok(())
}

/// What holds for the step that follows `done` steps: tokens per sequence, where a phase says so, and weights.
pub(crate) fn stage(config: &Config, done: u64) -> (Option<usize>, Vec<f64>) {
    let phase = config.curriculum.iter().find(|p| done < p.until);
    let weights = match phase {
        Some(phase) if !phase.weights.is_empty() => phase.weights.clone(),
        _ if config.mixture.is_empty() => vec![1.0],
        _ => config.mixture.iter().map(|p| p.weight).collect(),
    };
    (phase.map(|p| p.length).filter(|l| *l > 0), weights)
}

/// The directory that sample `number` of a run comes from.
pub(crate) fn choose(seed: u64, number: u64, weights: &[f64]) -> usize {
    let uniform = (bits(seed, Stream::Mixture, number, 0) >> 11) as f64 / (1u64 << 53) as f64;
    let mut left = uniform * weights.iter().sum::<f64>();
    for (i, weight) in weights.iter().enumerate() {
        if left < *weight {
            return i;
        }
        left -= weight;
    }
    // rounding may leave a rest behind the last one that can be drawn
    weights.iter().rposition(|w| *w > 0.0).unwrap_or(0)
}

/// A directory of prepared data: token files and the tokenizer that made them.
pub struct Data {
    /// The directory.
    pub dir: PathBuf,
    /// Ids to train on.
    pub train: TokenFile,
    /// Ids kept apart.
    pub held_out: Option<TokenFile>,
    /// `tokenizer.json`, copied into checkpoints.
    pub tokenizer: Option<Vec<u8>>,
    /// `tokenizer_config.json`, which may hold a chat template, copied too.
    pub tokenizer_config: Option<Vec<u8>>,
}

impl Data {
    /// Opens a directory that [`crate::data::prepare`] made.
    ///
    /// # Errors
    /// Those of [`TokenFile::open`]; `MISMATCH` if the files come from different tokenizers.
    pub fn open(dir: &Path) -> Result<Data> {
        let path = dir.join("train.tokens");
        if !path.exists() {
            let message = format!("{}: there is none; `libllm data prepare` makes it", path.display());
            return Err(Error::new(Status::NOT_FOUND, message));
        }
        let train = TokenFile::open(&path)?;
        let path = dir.join("held_out.tokens");
        let held_out = if path.exists() { Some(TokenFile::open(&path)?) } else { None };
        let tokenizer = optional(&dir.join("tokenizer.json"))?;
        let hash = train.vocabulary_hash();
        let others =
            [held_out.as_ref().map(TokenFile::vocabulary_hash), tokenizer.as_deref().map(vocabulary_hash)];
        if others.into_iter().flatten().any(|h| h != hash) {
            let message = format!("{}: token files and tokenizer.json do not belong together", dir.display());
            return Err(Error::new(Status::MISMATCH, message));
        }
        let tokenizer_config = optional(&dir.join("tokenizer_config.json"))?;
        let held_out = held_out.filter(|f| f.tokens() > 1);
        Ok(Data { dir: dir.into(), train, held_out, tokenizer, tokenizer_config })
    }

    /// Opens every directory of a configuration: those of its mixture, or its `data`.
    ///
    /// # Errors
    /// Those of [`Data::open`]; `MISMATCH` with the first difference, if their tokenizers differ.
    pub fn open_all(config: &Config) -> Result<Vec<Data>> {
        if config.mixture.is_empty() {
            return Ok(vec![Data::open(&config.data)?]);
        }
        let all: Vec<Data> = config.mixture.iter().map(|p| Data::open(&p.data)).collect::<Result<_>>()?;
        all[1..].iter().try_for_each(|data| all[0].same_vocabulary(data))?;
        Ok(all)
    }

    /// Refuses data of another tokenizer than the checkpoint `dir` has, where that says which.
    ///
    /// # Errors
    /// `MISMATCH` with the first difference.
    pub(crate) fn fits_checkpoint(&self, dir: &Path) -> Result<()> {
        let read = |bytes: &[u8]| -> Option<Value> {
            let mut tokenizer: Value = serde_json::from_slice(bytes).ok()?;
            // what they say about a text's length changes no id
            let map = tokenizer.as_object_mut()?;
            map.retain(|key, _| key != "truncation" && key != "padding");
            Some(tokenizer)
        };
        let path = dir.join("tokenizer.json");
        let theirs = optional(&path)?.and_then(|bytes| read(&bytes));
        let (Some(theirs), Some(own)) = (theirs, self.tokenizer.as_deref().and_then(read)) else {
            return Ok(());
        };
        let Some((place, a, b)) = difference(&theirs, &own, "") else { return Ok(()) };
        let message = format!(
            "{}: made with another tokenizer than the model to begin from: {place} is {a} in {} and {b} here; prepare \
             the data with the model's",
            self.dir.display(),
            path.display()
        );
        Err(Error::new(Status::MISMATCH, message))
    }

    fn same_vocabulary(&self, other: &Data) -> Result<()> {
        if self.train.vocabulary_hash() == other.train.vocabulary_hash() {
            return Ok(());
        }
        let read = |data: &Data| serde_json::from_slice::<Value>(data.tokenizer.as_deref()?).ok();
        let what = match (read(self), read(other)) {
            (Some(a), Some(b)) => match difference(&a, &b, "") {
                Some((place, a, b)) => format!("{place} is {a} there and {b} here"),
                // the same tokenizer, written with other spaces
                None => return Ok(()),
            },
            _ => "their hashes differ, and a tokenizer.json is missing".into(),
        };
        let (a, b) = (self.dir.display(), other.dir.display());
        let message = format!("{b}: made with another tokenizer than {a}: {what}; prepare both with one");
        Err(Error::new(Status::MISMATCH, message))
    }
}

/// Where two values differ first, with both sides.
pub(crate) fn difference(a: &Value, b: &Value, path: &str) -> Option<(String, String, String)> {
    let shown = |v: Option<&Value>| match v {
        Some(v) if v.is_object() || v.is_array() => "a list".into(),
        Some(v) => v.to_string().chars().take(60).collect::<String>(),
        None => "missing".into(),
    };
    let join = |key: &str| if path.is_empty() { key.to_string() } else { format!("{path}.{key}") };
    let inside = |x: Option<&Value>, y: Option<&Value>, key: &str| match (x, y) {
        (Some(x), Some(y)) => difference(x, y, &join(key)),
        _ => Some((join(key), shown(x), shown(y))),
    };
    match (a, b) {
        (Value::Object(x), Value::Object(y)) => {
            let added = y.keys().filter(|key| !x.contains_key(*key));
            x.keys().chain(added).find_map(|key| inside(x.get(key), y.get(key), key))
        }
        (Value::Array(x), Value::Array(y)) => {
            (0..x.len().max(y.len())).find_map(|i| inside(x.get(i), y.get(i), &i.to_string()))
        }
        _ if a == b => None,
        _ => Some((path.to_string(), shown(Some(a)), shown(Some(b)))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_drawn_in_the_shares_of_the_weights() {
        let weights = [3.0, 0.0, 1.0, 0.5];
        let n = 40_000u64;
        let mut counts = [0u64; 4];
        (0..n).for_each(|i| counts[choose(7, i, &weights)] += 1);
        assert_eq!(counts[1], 0);
        for (count, weight) in counts.iter().zip(weights) {
            let (p, n) = (weight / 4.5, n as f64);
            // five standard deviations of a binomial count
            assert!((*count as f64 - p * n).abs() <= 5.0 * (n * p * (1.0 - p)).sqrt(), "{counts:?}");
        }
        // neighbours are drawn apart: after each directory the next has the same shares
        let after = (0..n - 1).filter(|i| choose(7, *i, &weights) == 0 && choose(7, i + 1, &weights) == 0);
        assert!((after.count() as f64 / n as f64 - 4.0 / 9.0).abs() < 0.015);
    }

    #[test]
    fn the_first_difference_of_two_tokenizers_is_named() {
        let of = |text: &str| serde_json::from_str::<Value>(text).unwrap();
        let a = of(r#"{"model": {"vocab": {"a": 0, "the": 5}, "merges": [["t", "h"]]}}"#);
        let b = of(r#"{"model": {"vocab": {"a": 0, "the": 6}, "merges": []}}"#);
        let said = |a, b| difference(a, b, "").map(|(p, a, b)| format!("{p} {a} {b}"));
        assert_eq!(said(&a, &b).unwrap(), "model.vocab.the 5 6");
        let c = of(r#"{"model": {"vocab": {"a": 0, "the": 5}, "merges": []}}"#);
        assert_eq!(said(&a, &c).unwrap(), "model.merges.0 a list missing");
        assert_eq!(said(&c, &a).unwrap(), "model.merges.0 missing a list");
        assert_eq!(said(&a, &a.clone()), None);
    }

    #[test]
    fn a_stage_begins_where_the_one_before_ends() {
        let mixture = vec![Part::parse("web=3"), Part::parse("books")];
        let phase = |until, length, weights: &[f64]| Phase { until, length, weights: weights.into() };
        let curriculum = vec![phase(10, 8, &[]), phase(20, 0, &[0.0, 1.0])];
        let config = Config { mixture, curriculum, ..Config::default() };
        check(&config).unwrap();
        assert_eq!(stage(&config, 0), (Some(8), vec![3.0, 1.0]));
        assert_eq!(stage(&config, 9), (Some(8), vec![3.0, 1.0]));
        assert_eq!(stage(&config, 10), (None, vec![0.0, 1.0]));
        assert_eq!(stage(&config, 20), (None, vec![3.0, 1.0]));
        let refused = |curriculum, what: &str| {
            let e = check(&Config { curriculum, ..config.clone() }).unwrap_err();
            assert!(e.message().contains(what), "{e}");
        };
        refused(vec![phase(10, 0, &[]), phase(10, 0, &[])], "curriculum.1.until = 10");
        refused(vec![phase(10, 0, &[1.0])], "curriculum.0.weights");
        refused(vec![phase(10, 0, &[0.0, 0.0])], "curriculum.0.weights");
        refused(vec![phase(10, 0, &[f64::NAN, 1.0])], "curriculum.0.weights");
        // together more than a number can say
        refused(vec![phase(10, 0, &[f64::MAX, f64::MAX])], "curriculum.0.weights");
        let twice = vec![Part::parse("web"), Part::parse("web=2")];
        assert!(check(&Config { mixture: twice, ..Config::default() }).is_err());
    }
}
