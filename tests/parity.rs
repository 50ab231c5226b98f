//! The reference checkpoints, converted in f32, give the logits that their makers' software gives in f64, and the
//! same bits however the work is cut up.

mod support;

use std::path::{Path, PathBuf};

use llm::kv::KvType;
use llm::model::{Model, OpenOptions};
use llm::runtime::{Runtime, RuntimeOptions};
use llm::session::{Level, Session, SessionOptions};
use llm_convert::Options;
use llm_format::quant::Type;
use llm_testdata::shared;
use safetensors::SafeTensors;
use serde_json::Value;
use support::argmax;

const MODELS: &[&str] = &[
    "bloom",
    "deepseek_v2",
    "deepseek_v3",
    "gemma2",
    "gemma3",
    "gpt2",
    "gpt_neox",
    "gpt_oss",
    "llama_rope_dynamic",
    "llama_rope_linear",
    "llama_rope_llama3",
    "llama_rope_yarn",
    "llama_tied",
    "llama_untied",
    "mistral_swa",
    "mixtral",
    "mpt",
    "olmo2",
    "phi3",
    "qwen2",
    "qwen2_moe",
    "qwen3",
    "qwen3_moe",
];

/// A run of a reference: its prompt and what must come out.
struct Run {
    name: &'static str,
    ids: Vec<i32>,
    /// `[T, vocab]`
    exact: Vec<f32>,
    greedy: Vec<i32>,
    greedy_cached: Vec<i32>,
    max_abs: f64,
    rms: f64,
    nll: f64,
}

struct Reference {
    dir: PathBuf,
    runs: Vec<Run>,
}

impl Reference {
    fn read(name: &str) -> Option<Self> {
        let dir = shared(&format!("reference/{name}"))?;
        let facts: Value =
            serde_json::from_slice(&std::fs::read(dir.join("reference.json")).unwrap()).unwrap();
        let bytes = std::fs::read(dir.join("reference.safetensors")).unwrap();
        let tensors = SafeTensors::deserialize(&bytes).unwrap();
        let words = |name: &str| -> Vec<[u8; 4]> {
            let tensor = tensors.tensor(name).unwrap_or_else(|e| panic!("{name}: {e}"));
            tensor.data().chunks_exact(4).map(|b| b.try_into().unwrap()).collect()
        };
        let ints = |name: &str| words(name).into_iter().map(i32::from_le_bytes).collect::<Vec<i32>>();
        let runs = ["short", "long"].into_iter().filter(|run| !facts["runs"][run].is_null()).map(|run| {
            let fact = &facts["runs"][run];
            let number = |value: &Value| value.as_f64().unwrap_or_else(|| panic!("{run}: {fact}"));
            Run {
                name: run,
                ids: ints(&format!("{run}.input_ids")),
                exact: words(&format!("{run}.logits_exact")).into_iter().map(f32::from_le_bytes).collect(),
                greedy: ints(&format!("{run}.greedy")),
                greedy_cached: ints(&format!("{run}.greedy_cached")),
                max_abs: number(&fact["tolerance"]["max_abs"]),
                rms: number(&fact["tolerance"]["rms"]),
                nll: number(&fact["nll_exact"]),
            }
        });
        Some(Self { runs: runs.collect(), dir })
    }

    fn convert(&self, ty: Type, scratch: &Path) -> PathBuf {
        let out = scratch.join(format!("{}.llm", ty.name()));
        llm_convert::convert(&self.dir, &out, &Options { ty, ..Options::default() }, &()).unwrap();
        out
    }
}

fn open(path: &Path, threads: usize, isa: Option<&str>) -> Model {
    let options = RuntimeOptions { threads, isa: isa.map(str::to_owned), ..RuntimeOptions::default() };
    let runtime = Runtime::new(options).unwrap();
    Model::open_path(&runtime, path, &OpenOptions::default(), None).unwrap()
}

/// Logits of every position, prefilled with `options`.
fn logits(model: &Model, ids: &[i32], options: SessionOptions) -> Vec<f32> {
    support::logits(model, &SessionOptions { max_tokens: ids.len(), ..options }, ids)
}

/// −log softmax(row)[id] in f64.
fn nats(row: &[f32], id: i32) -> f64 {
    let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = row.iter().map(|&l| f64::from(l - max).exp()).sum();
    sum.ln() - f64::from(row[id as usize] - max)
}

fn same_bits(a: &[f32], b: &[f32]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.to_bits() == b.to_bits())
}

/// Greedy continuation over one session whose declared length is that of prompt and continuation.
fn greedy(model: &Model, ids: &[i32], n: usize, running: bool) -> Vec<i32> {
    let options =
        SessionOptions { max_tokens: ids.len() + n, rope_running: running, ..SessionOptions::default() };
    let mut session = Session::new(model, options).unwrap();
    session.prefill(ids, None, None).unwrap();
    let mut out = Vec::new();
    for _ in 0..n {
        let id = argmax(session.logits().unwrap());
        out.push(id);
        session.decode(id, None).unwrap();
    }
    out
}

/// Greedy continuation with the whole sequence computed anew, at its own length, for every token.
fn greedy_afresh(model: &Model, ids: &[i32], n: usize) -> Vec<i32> {
    let (vocab, mut all) = (model.spec().vocab as usize, ids.to_vec());
    for _ in 0..n {
        let rows = logits(model, &all, SessionOptions::default());
        all.push(argmax(&rows[rows.len() - vocab..]));
    }
    all.split_off(ids.len())
}

fn check(name: &str) {
    let Some(reference) = Reference::read(name) else { return };
    let scratch = tempfile::tempdir().unwrap();
    let model = open(&reference.convert(Type::F32, scratch.path()), 2, None);
    let vocab = model.spec().vocab as usize;
    for run in &reference.runs {
        let at = format!("{name}, {}", run.name);
        let got = logits(&model, &run.ids, SessionOptions::default());
        assert_eq!(got.len(), run.exact.len(), "{at}");
        let differences = got.iter().zip(&run.exact).map(|(a, b)| f64::from(a - b));
        let max = differences.clone().fold(0.0, |m: f64, d| m.max(d.abs()));
        let rms = (differences.map(|d| d * d).sum::<f64>() / got.len() as f64).sqrt();
        println!("{at}: max {max:.2e} of {:.2e}, rms {rms:.2e} of {:.2e}", run.max_abs, run.rms);
        assert!(max <= run.max_abs && rms <= run.rms, "{at}: max {max:e}, rms {rms:e}");

        let targets = got.chunks_exact(vocab).zip(&run.ids[1..]);
        let nll = targets.map(|(row, &id)| nats(row, id)).sum::<f64>() / (run.ids.len() - 1) as f64;
        assert!((nll - run.nll).abs() <= 1e-5, "{at}: {nll} nats, exactly {}", run.nll);

        if name == "llama_rope_dynamic" {
            assert_eq!(greedy_afresh(&model, &run.ids, run.greedy.len()), run.greedy, "{at}: afresh");
            assert_eq!(
                greedy(&model, &run.ids, run.greedy_cached.len(), true),
                run.greedy_cached,
                "{at}: running"
            );
        } else {
            assert_eq!(greedy(&model, &run.ids, run.greedy.len(), false), run.greedy, "{at}: greedy");
        }
        for chunk in [1, 7, 64] {
            let cut = logits(&model, &run.ids, SessionOptions { chunk, ..SessionOptions::default() });
            assert!(same_bits(&cut, &got), "{at}: chunks of {chunk} change bits");
        }
        for page in [16, 32] {
            let cut = logits(&model, &run.ids, SessionOptions { page, ..SessionOptions::default() });
            assert!(same_bits(&cut, &got), "{at}: pages of {page} change bits");
        }
    }
}

macro_rules! references {
    ($($name:ident)*) => {
        $(#[test]
        fn $name() {
            check(stringify!($name));
        })*

        #[test]
        fn every_reference_is_checked() {
            assert_eq!(MODELS, [$(stringify!($name)),*]);
        }
    };
}

references! {
    bloom deepseek_v2 deepseek_v3 gemma2 gemma3 gpt2 gpt_neox gpt_oss llama_rope_dynamic llama_rope_linear
    llama_rope_llama3 llama_rope_yarn llama_tied llama_untied mistral_swa mixtral mpt olmo2 phi3 qwen2 qwen2_moe
    qwen3 qwen3_moe
}

/// Quantized models with the default KV cache: threads, chunks, pages and instruction sets change no bit, neither by
/// default nor in the portable level.
#[test]
fn quantized_models_give_the_same_bits_however_they_are_run() {
    let others = [Type::Q6, Type::Q5, Type::Q3, Type::Q2];
    for (i, name) in MODELS.iter().enumerate() {
        let Some(reference) = Reference::read(name) else { return };
        let scratch = tempfile::tempdir().unwrap();
        let run = &reference.runs[0];
        for ty in [Type::Q4, Type::Q8, others[i % others.len()]] {
            let path = reference.convert(ty, scratch.path());
            let plain = logits(&open(&path, 1, None), &run.ids, SessionOptions::default());
            for threads in [1, 2] {
                for isa in llm_kernels::available() {
                    let model = open(&path, threads, Some(isa.name()));
                    let chunk = if threads == 1 { 64 } else { 5 };
                    for determinism in [Level::BatchInvariant, Level::Portable] {
                        let options =
                            SessionOptions { chunk, page: 16, determinism, ..SessionOptions::default() };
                        assert!(
                            same_bits(&logits(&model, &run.ids, options), &plain),
                            "{name} {}: {threads} threads, {}, chunks of {chunk}, {determinism:?}",
                            ty.name(),
                            isa.name()
                        );
                    }
                }
            }
        }
    }
}

/// What each type costs, as the mean KL divergence from the exact logits. The bound only catches a broken type: the
/// references' random weights are harder on quantization than trained ones.
#[test]
fn types_stay_near_the_exact_logits() {
    println!("mean KL divergence in nats    bf16      f16       q8        q4");
    for name in MODELS {
        let Some(reference) = Reference::read(name) else { return };
        let scratch = tempfile::tempdir().unwrap();
        let run = &reference.runs[0];
        let mut line = format!("{name:28}");
        for (ty, bound) in [(Type::Bf16, 0.01), (Type::F16, 0.01), (Type::Q8, 0.05), (Type::Q4, 0.5)] {
            let model = open(&reference.convert(ty, scratch.path()), 2, None);
            let got =
                logits(&model, &run.ids, SessionOptions { kv: KvType::Auto, ..SessionOptions::default() });
            let kl = mean_kl(&run.exact, &got, model.spec().vocab as usize);
            line += &format!("  {kl:.2e}");
            assert!(kl < bound, "{name} {}: {kl} nats", ty.name());
        }
        println!("{line}");
    }
}

fn mean_kl(exact: &[f32], got: &[f32], vocab: usize) -> f64 {
    let (mut sum, rows) = (0.0, exact.len() / vocab);
    for (exact, got) in exact.chunks_exact(vocab).zip(got.chunks_exact(vocab)) {
        for id in 0..vocab as i32 {
            let (p, q) = (nats(exact, id), nats(got, id));
            sum += (-p).exp() * (q - p);
        }
    }
    sum / rows as f64
}
