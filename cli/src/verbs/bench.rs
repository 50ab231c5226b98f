//! `libllm bench`: speed of prefill and decode beside the memory's own speed, measured in the same run.
//!
//! Fields of `--json` (each speed is an object of `median`, `min`, `max` over the repetitions):
//! `file`, `file_bytes`, `isa`, `threads`, `batch` (sequences decoding together), `depth`, `prefill_tokens` and
//! `decode_tokens` (of one sequence), `prefill_tokens_per_second` and `decode_tokens_per_second` (of all sequences
//! together), `weight_bytes_per_token`, `read_bytes_per_second`, `decode_share_of_read_bandwidth` (weights once a step),
//! `multiply_peak` (multiplications a second of a loop of nothing else, int8 for integer weights and f32 for floats,
//! null where the instruction set has none), `prefill_share_of_multiply_peak` (products with matrices alone),
//! `start_to_first_token_ms`, `anonymous_bytes_after_first_token`. With `--speculate` there is `speculation`, a list of
//! comparisons, in their place.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use llm::Cancel;
use llm::kv::{KvOptions, KvPool};
use llm::model::Model;
use llm::session::batch::{Batch, Slot, Want};
use llm::session::{MemoryPlan, Session};
use llm_convert::RandomOptions;
use llm_format::quant::Type;
use llm_kernels::peak::{self, Operands, together};
use serde_json::{Value, json};

use crate::common::{self, RunArgs};
use crate::speculate;
use crate::stop::Writing;

/// Measure speed
#[derive(clap::Args)]
pub struct Args {
    /// The .llm file; with --random, where to write it (default: a temporary file)
    #[arg(short, long, value_name = "FILE", required_unless_present = "random")]
    model: Option<PathBuf>,
    /// Make a model of this shape with random weights first
    #[arg(long, value_name = "SHAPE")]
    random: Option<String>,
    /// Type of the random weights
    #[arg(long = "type", default_value = "q4", requires = "random", value_parser = common::types())]
    ty: String,
    /// Let the random model's rotary angles be scaled from 2,048 to 32,768 tokens: linear, dynamic, llama3, yarn, longrope
    #[arg(long, value_name = "KIND", requires = "random", value_parser = llm_convert::SCALINGS.to_vec())]
    rope_scaling: Option<String>,
    /// Tokens of the prefill
    #[arg(short, long, default_value_t = 512)]
    prefill: usize,
    /// Tokens to decode
    #[arg(short = 'n', long, default_value_t = 128)]
    decode: usize,
    /// Positions held before both
    #[arg(short, long, default_value_t = 0)]
    depth: usize,
    /// Sequences that decode together, each after a prefill of its own; speeds are of all of them together
    #[arg(short, long, default_value_t = 1)]
    batch: usize,
    /// Compare generations of -n tokens with and without guessed tokens instead; with a text, the cases that have it in
    /// their name
    #[arg(long, value_name = "CASES", num_args = 0..=1, require_equals = true, default_missing_value = "")]
    #[arg(conflicts_with_all = ["batch", "depth"])]
    speculate: Option<String>,
    /// Repetitions
    #[arg(short, long, default_value_t = 5, value_parser = common::positive)]
    repetitions: usize,
    #[command(flatten)]
    run: RunArgs,
    /// One JSON object
    #[arg(long)]
    json: bool,
}

/// Runs the verb.
pub fn run(args: &Args) -> Result<()> {
    if args.batch == 0 {
        bail!("-b 0: expected at least one sequence");
    }
    args.positions()?;
    // Whatever is under way looks at it; what lies in the temporary directory may be large.
    let cancel = crate::stop::on_ctrl_c();
    let _writing = Writing::begin();
    let scratch = tempfile::tempdir().context("a temporary directory")?;
    let path = match (&args.random, &args.model) {
        (Some(shape), out) => {
            let path = out.clone().unwrap_or_else(|| scratch.path().join("random.llm"));
            make_random(shape, args, &path)?;
            path
        }
        (None, Some(path)) => path.clone(),
        (None, None) => bail!("give -m FILE or --random SHAPE"),
    };
    if let Some(cases) = &args.speculate {
        return compare(args, &path, cases, &cancel);
    }
    let report = measure(args, &path, scratch.path(), &cancel)?;
    if args.json {
        say!("{report}")?;
    } else {
        show(&report)?;
    }
    Ok(())
}

impl Args {
    /// Positions of a session.
    fn positions(&self) -> Result<usize> {
        /// No model has more.
        const MOST: usize = 1 << 30;
        let sum = self.depth.checked_add(self.prefill).and_then(|sum| sum.checked_add(self.decode));
        match sum.filter(|sum| *sum < MOST) {
            Some(sum) if self.run.context > 0 && self.run.context < sum => {
                bail!(
                    "-c {}: expected at least {sum} positions, for those of -d, -p and -n",
                    self.run.context
                )
            }
            Some(sum) => Ok(sum + 1),
            None => bail!(
                "-d {}, -p {}, -n {}: expected fewer than {MOST} positions together",
                self.depth,
                self.prefill,
                self.decode
            ),
        }
    }
}

/// Speculation beside plain decoding.
fn compare(args: &Args, path: &Path, cases: &str, cancel: &Cancel) -> Result<()> {
    let model = args.run.open(path)?;
    let vocab = i64::from(model.spec().vocab);
    let prompt: Vec<i32> = (0..args.prefill).map(|i| ((i as i64 * 7919 + 13) % vocab) as i32).collect();
    let options = args.run.session_options(args.positions()?)?;
    let counts = (args.decode, args.repetitions);
    let cases = speculate::bench(&model, options, &prompt, counts, cases, cancel)?;
    if args.json {
        let (isa, threads) = (model.runtime().isa(), model.runtime().threads());
        say!("{}", json!({ "isa": isa, "threads": threads, "tokens": args.decode, "speculation": cases }))
    } else {
        speculate::show(&cases)
    }
}

fn make_random(shape: &str, args: &Args, path: &Path) -> Result<()> {
    let ty = Type::parse(&args.ty).with_context(|| format!("--type {}: unknown", args.ty))?;
    let options = RandomOptions { scaling: args.rope_scaling.as_deref(), ..Default::default() };
    let watch = super::convert::Watch::new("random weights");
    let made = llm_convert::random_with(shape, &options, ty, path, &watch);
    watch.progress.end();
    made?;
    Ok(())
}

fn measure(args: &Args, path: &Path, scratch: &Path, cancel: &Cancel) -> Result<Value> {
    let start = (0..args.repetitions.max(3)).map(|_| {
        let start = start_to_first_token(args, path, scratch);
        // Ctrl-C in a terminal ends that process, too.
        cancel.check()?;
        start
    });
    let start: Vec<Start> = start.collect::<Result<_>>()?;

    let model = args.run.open(path)?;
    let vocab = i64::from(model.spec().vocab);
    let ids: Vec<i32> =
        (0..args.depth + args.prefill).map(|i| ((i as i64 * 7919 + 13) % vocab) as i32).collect();
    let (depth, prompt) = ids.split_at(args.depth);
    let mut sequences = Sequences::new(args, &model)?;
    for session in &mut sequences.sessions {
        session.prefill(depth, Some(cancel), None)?;
    }

    let weights = model.weight_bytes_per_token();
    let bytes = common::map(path)?;
    let threads = model.runtime().threads();
    let (mut prefill, mut decode, mut bandwidth, mut peak) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    // Turn by turn, so that a machine that slows down slows each of them down; the first turn warms up.
    for turn in 0..=args.repetitions {
        sequences.sessions.iter_mut().try_for_each(|session| session.truncate(args.depth))?;
        let started = Instant::now();
        sequences.sessions.iter_mut().try_for_each(|session| session.prefill(prompt, Some(cancel), None))?;
        let prefilled = started.elapsed().as_secs_f64();
        if prompt.is_empty() && depth.is_empty() {
            sequences.sessions.iter_mut().try_for_each(|session| session.prefill(&[0], None, None))?;
        }
        let started = Instant::now();
        for i in 0..args.decode {
            cancel.check()?;
            sequences.decode(|sequence| ((i as i64 * 104_729 + sequence as i64 * 31 + 7) % vocab) as i32)?;
        }
        let decoded = started.elapsed().as_secs_f64();
        let read = read_bandwidth(&bytes, threads);
        let multiplied = multiply_peak(&model, threads);
        if turn > 0 {
            peak.extend(multiplied);
            prefill.push((args.batch * args.prefill) as f64 / prefilled);
            decode.push((args.batch * args.decode) as f64 / decoded);
            bandwidth.push(read);
        }
    }
    // A step of all sequences reads the weights once (of experts, those of one token are counted).
    let share = median(&decode) / args.batch as f64 * weights as f64 / median(&bandwidth);
    let (of_token, of_logits) = model.multiplications();
    let multiplications = of_token as f64 + of_logits as f64 / args.prefill as f64;
    let peak_share =
        (!peak.is_empty() && args.prefill > 0).then(|| median(&prefill) * multiplications / median(&peak));
    let of = |f: fn(&Start) -> f64| spread(&start.iter().map(f).collect::<Vec<f64>>());
    Ok(json!({
        "file": path.file_name().map(|name| name.to_string_lossy()),
        "file_bytes": bytes.len(),
        "isa": model.runtime().isa(),
        "threads": threads,
        "batch": args.batch,
        "depth": args.depth,
        "prefill_tokens": args.prefill,
        "prefill_tokens_per_second": spread(&prefill),
        "decode_tokens": args.decode,
        "decode_tokens_per_second": spread(&decode),
        "weight_bytes_per_token": weights,
        "read_bytes_per_second": spread(&bandwidth),
        "decode_share_of_read_bandwidth": share,
        "multiply_peak": (!peak.is_empty()).then(|| spread(&peak)),
        "prefill_share_of_multiply_peak": peak_share,
        "start_to_first_token_ms": of(|s| s.milliseconds),
        "anonymous_bytes_after_first_token": of(|s| s.anonymous),
    }))
}

/// The sessions that are measured: one by itself, or several that share a pool and decode in one step.
struct Sequences {
    sessions: Vec<Session>,
    batch: Option<Batch>,
    ids: Vec<i32>,
}

impl Sequences {
    fn new(args: &Args, model: &Model) -> Result<Self> {
        let options = args.run.session_options(args.positions()?)?;
        if args.batch == 1 {
            let sessions = vec![Session::new(model, options)?];
            return Ok(Self { sessions, batch: None, ids: Vec::new() });
        }
        let kv =
            KvOptions { page: options.page, kv: options.kv, prefix_cache: false, ..KvOptions::default() };
        let pool = KvPool::new(model, &kv)?;
        pool.resize(MemoryPlan::new(model, &kv, &options, args.batch as u64, None)?.kv_total)?;
        let sessions = (0..args.batch).map(|_| Session::in_pool(&pool, options.clone()));
        let sessions = sessions.collect::<llm::Result<_>>()?;
        Ok(Self { sessions, batch: Some(Batch::new(&pool)?), ids: Vec::new() })
    }

    /// Decodes one token of every sequence.
    fn decode(&mut self, id: impl Fn(usize) -> i32) -> Result<()> {
        let Some(batch) = &mut self.batch else {
            return Ok(self.sessions[0].decode(id(0), None)?);
        };
        self.ids.clear();
        self.ids.extend((0..self.sessions.len()).map(id));
        let slots = self.sessions.iter_mut().zip(self.ids.chunks(1));
        let mut slots: Vec<Slot<'_>> =
            slots.map(|(session, ids)| Slot { session, ids, want: Want::Last }).collect();
        batch.run(&mut slots, None)?;
        (0..slots.len()).try_for_each(|slot| Ok(batch.status(slot)?))
    }
}

struct Start {
    milliseconds: f64,
    anonymous: f64,
}

/// A fresh process, from its start to the end of its first token: 8 ids in, one out.
fn start_to_first_token(args: &Args, path: &Path, scratch: &Path) -> Result<Start> {
    let ids = scratch.join("ids.json");
    std::fs::write(&ids, "[1,2,3,4,5,6,7,8]")?;
    let context = if args.run.context == 0 { 4096 } else { args.run.context };
    let started = Instant::now();
    let mut child = std::process::Command::new(std::env::current_exe()?)
        .args(["generate", "--ignore-eos", "-n", "1", "--json"])
        .args(["-t", &args.run.threads.to_string(), "-c", &context.to_string(), "--kv", &args.run.kv])
        .args(["--page", &args.run.page, "--chunk", &args.run.chunk.to_string()])
        .args(["--determinism", &args.run.determinism, "--rope", &args.run.rope])
        .arg("-m")
        .arg(path)
        .arg("--tokens-file")
        .arg(&ids)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("starting a process of our own")?;
    // To the first byte of its report: the system takes milliseconds to take such a mapping apart at the end.
    let mut stdout = child.stdout.take().context("the process's output")?;
    let mut report = vec![0];
    let read = stdout.read(&mut report)?;
    let milliseconds = started.elapsed().as_secs_f64() * 1e3;
    stdout.read_to_end(&mut report)?;
    let ended = child.wait_with_output()?;
    if !ended.status.success() || read == 0 {
        let said = String::from_utf8_lossy(&ended.stderr);
        let said = said.trim().trim_start_matches("libllm: ");
        bail!("the process that was to show its first token failed ({}): {said}", ended.status);
    }
    let report: Value = serde_json::from_slice(&report)?;
    Ok(Start { milliseconds, anonymous: report["anonymous_bytes"].as_f64().unwrap_or(f64::NAN) })
}

/// Bytes per second of a loop that only reads the mapped file, on as many threads.
fn read_bandwidth(bytes: &[u8], threads: usize) -> f64 {
    let part = bytes.len().div_ceil(threads.max(1)).max(1);
    let chunks: Vec<&[u8]> = bytes.chunks(part).collect();
    let (sums, seconds) = together(chunks.len(), |i| llm_kernels::read_streams(chunks[i]));
    std::hint::black_box(sums);
    bytes.len() as f64 / seconds
}

/// Multiplications per second of a loop that does nothing else, on as many threads, with the instruction that most of
/// the model's weights are multiplied with; `None` where the instruction set has none for vectors.
fn multiply_peak(model: &Model, threads: usize) -> Option<f64> {
    let isa = llm_kernels::Isa::parse(model.runtime().isa())?;
    let types = model.info().types;
    let most = types.iter().max_by_key(|(_, bytes)| **bytes).and_then(|(name, _)| Type::parse(name))?;
    let operands = if most.is_integer() { Operands::Int8 } else { Operands::F32 };
    peak::measure(threads, isa, operands)
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}

fn spread(values: &[f64]) -> Value {
    let min = values.iter().copied().fold(f64::INFINITY, f64::min);
    let max = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    json!({ "median": median(values), "min": min, "max": max })
}

fn show(report: &Value) -> Result<()> {
    let line = |name: &str, key: &str, unit: &str, divide: f64| {
        let value = |part: &str| report[key][part].as_f64().unwrap_or(f64::NAN) / divide;
        say!("{name:28}{:10.2}{:10.2}{:10.2}  {unit}", value("median"), value("min"), value("max"))
    };
    say!("{} on {}, {} threads", report["file"], report["isa"], report["threads"])?;
    say!("{:28}{:>10}{:>10}{:>10}", "", "median", "min", "max")?;
    let sequences = match report["batch"].as_u64() {
        Some(batch) if batch > 1 => format!(" x {batch}"),
        _ => String::new(),
    };
    line(
        &format!("prefill {}{sequences}", report["prefill_tokens"]),
        "prefill_tokens_per_second",
        "tokens/s",
        1.0,
    )?;
    line(
        &format!("decode {}{sequences}", report["decode_tokens"]),
        "decode_tokens_per_second",
        "tokens/s",
        1.0,
    )?;
    line("memory read", "read_bytes_per_second", "GB/s", 1e9)?;
    line("start to first token", "start_to_first_token_ms", "ms", 1.0)?;
    line("anonymous memory then", "anonymous_bytes_after_first_token", "MB", 1e6)?;
    let percent = |key: &str| report[key].as_f64().unwrap_or(f64::NAN) * 100.0;
    if report["multiply_peak"].is_object() {
        line("multiplications", "multiply_peak", "10^9/s", 1e9)?;
    }
    say!("decode reads {:.1} % of what the bare read loop does", percent("decode_share_of_read_bandwidth"))?;
    if report["prefill_share_of_multiply_peak"].is_number() {
        let share = percent("prefill_share_of_multiply_peak");
        say!("prefill multiplies {share:.1} % of what the bare multiply loop does")?;
    }
    Ok(())
}
