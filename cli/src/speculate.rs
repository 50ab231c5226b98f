//! Speculation on the command line: the flags of `generate`, and what `bench --speculate` measures.
//!
//! The bench compares generations without and with guesses on the same tokens, step by step in turn, so that both meet
//! the same machine wherever its speed drifts. Random weights say nothing that could be guessed, so guesses are replayed
//! from a plain run: a share of them is left true, and each takes a given part of a plain step. Text that repeats its
//! prompt comes from a processor that leaves no other token.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use llm::Cancel;
use llm::model::{Model, OpenOptions};
use llm::sampler::processor::Input;
use llm::sampler::{Sampler, SamplingParams, Stage};
use llm::session::generate::{Generation, GenerationOptions, Kind};
use llm::session::speculative::{
    Lengths, MOST_DRAFT, Place, Proposer, Replay, SpecOptions, SpecStats, Speculation,
};
use llm::session::{Session, SessionOptions};
use serde_json::{Value, json};

/// Share of the guesses that are replayed true, and what each takes of a plain step.
const REPLAY: (f64, f64) = (0.8, 0.1);
/// Tokens of the text that is repeated.
const PERIOD: usize = 24;

/// Who guesses tokens, and how many.
#[derive(clap::Args)]
pub struct SpecArgs {
    /// Let the model in this file guess tokens; its vocabulary is that of the model. The text stays the same
    #[arg(long, value_name = "FILE", conflicts_with_all = ["ngram", "own_draft"], group = "guesses")]
    draft: Option<PathBuf>,
    /// Let the second model in the model's own file guess tokens: its head, or a small model. The text stays the same
    #[arg(long, conflicts_with = "ngram", group = "guesses")]
    own_draft: bool,
    /// Guess what followed the last tokens where they stood before. The text stays the same
    #[arg(long, group = "guesses")]
    ngram: bool,
    /// Tokens to guess at a time at most
    #[arg(long, value_name = "N", default_value_t = Lengths::default().most, requires = "guesses")]
    draft_max: usize,
}

impl SpecArgs {
    /// Whether anybody shall guess.
    pub fn is_asked(&self) -> bool {
        self.draft.is_some() || self.own_draft || self.ngram
    }

    /// Speculation for `model`, if it is asked for.
    pub fn start(&self, model: &Model) -> Result<Option<Speculation>> {
        let mut options = match (&self.draft, self.ngram) {
            (Some(file), _) => {
                SpecOptions::draft(&Model::open_path(model.runtime(), file, &OpenOptions::default(), None)?)
            }
            (None, _) if self.own_draft => SpecOptions::own(),
            (None, true) => SpecOptions::ngram(),
            (None, false) => return Ok(None),
        };
        options.lengths.most = self.draft_max;
        Ok(Some(options.start(model)?))
    }
}

/// The counters as JSON.
pub fn report(stats: &SpecStats) -> Value {
    let milliseconds = |d: Duration| d.as_secs_f64() * 1e3;
    json!({
        "drafted": stats.drafted,
        "accepted": stats.accepted,
        "rejected": stats.rejected,
        "bonus": stats.bonus,
        "acceptance": stats.acceptance(),
        "verify_steps": stats.verify_steps,
        "plain_steps": stats.plain_steps,
        "switched_off": stats.switched_off,
        "failed": stats.failed,
        "draft_ms": milliseconds(stats.draft),
        "verify_ms": milliseconds(stats.verify),
        "plain_equivalent_ms": milliseconds(stats.plain_equivalent),
    })
}

/// One comparison of the bench.
struct Case<'a> {
    name: &'static str,
    temperature: f32,
    /// The text repeats itself.
    repeats: bool,
    /// Who guesses, told the tokens that plain decoding chooses.
    guess: &'a dyn Fn(&[i32]) -> Result<Speculation>,
}

/// A replay whose guesses take their part of what a plain step takes now.
struct Costly {
    replay: Replay,
    /// A plain step, in nanoseconds.
    step: Arc<AtomicU64>,
}

impl Proposer for Costly {
    fn name(&self) -> &'static str {
        self.replay.name()
    }

    fn propose(&mut self, at: &Place<'_>, most: usize, out: &mut Vec<i32>) -> llm::Result<()> {
        let (clock, before) = (Instant::now(), out.len());
        self.replay.propose(at, most, out)?;
        let step = Duration::from_nanos(self.step.load(Ordering::Relaxed));
        let cost = step.mul_f64(REPLAY.1 * (out.len() - before) as f64);
        while clock.elapsed() < cost {
            std::hint::spin_loop();
        }
        Ok(())
    }
}

/// A generation that is timed, pull by pull.
struct Run<'a> {
    session: &'a mut Session,
    sampler: Sampler,
    generation: Generation,
    /// So many are wanted.
    tokens: usize,
    ids: Vec<i32>,
    time: Duration,
}

/// Compares generations of `tokens` tokens behind `prompt`, `repetitions` times each; one object a case. `named`: only
/// cases with this in their name. `cancel` ends it between two tokens.
pub fn bench(
    model: &Model,
    options: SessionOptions,
    prompt: &[i32],
    (tokens, repetitions): (usize, usize),
    named: &str,
    cancel: &Cancel,
) -> Result<Vec<Value>> {
    if tokens < 2 || prompt.is_empty() {
        bail!("--speculate needs a prefill of 1 token or more and -n 2 or more");
    }
    let step = Arc::new(AtomicU64::new(0));
    let replay = |share: f64| {
        let step = Arc::clone(&step);
        move |plain: &[i32]| {
            let replay = Replay::new(prompt.len(), plain.to_vec(), share, Duration::ZERO, 5);
            let replay = Costly { replay, step: Arc::clone(&step) };
            Ok(Speculation::new(Box::new(replay), &Lengths::default())?)
        }
    };
    let ngram = |_: &[i32]| {
        let mut options = SpecOptions::ngram();
        options.lengths.most = MOST_DRAFT.min(16);
        Ok(options.start(model)?)
    };
    let (often, never) = (replay(REPLAY.0), replay(0.0));
    let cases = [
        Case { name: "replay, 80 % true", temperature: 0.0, repeats: false, guess: &often },
        Case { name: "replay, 80 % true", temperature: 0.8, repeats: false, guess: &often },
        Case { name: "replay, none true", temperature: 0.0, repeats: false, guess: &never },
        Case { name: "lookup, repeating text", temperature: 0.0, repeats: true, guess: &ngram },
        Case { name: "lookup, other text", temperature: 0.0, repeats: false, guess: &ngram },
        Case { name: "lookup, other text", temperature: 0.8, repeats: false, guess: &ngram },
    ];
    if !cases.iter().any(|case| case.name.contains(named)) {
        let names: Vec<&str> = cases.iter().map(|case| case.name).collect();
        bail!("--speculate={named}: it is part of no case's name; there are {}", names.join("; "));
    }
    let mut sessions = [Session::new(model, options.clone())?, Session::new(model, options)?];
    for session in &mut sessions {
        session.prefill(prompt, Some(cancel), None)?;
    }
    let compare = |case| compare(case, &mut sessions, prompt, (tokens, repetitions), &step, cancel);
    cases.iter().filter(|case| case.name.contains(named)).map(compare).collect()
}

fn compare(
    case: &Case<'_>,
    [one, two]: &mut [Session; 2],
    prompt: &[i32],
    (tokens, repetitions): (usize, usize),
    step: &AtomicU64,
    cancel: &Cancel,
) -> Result<Value> {
    // Says what will be chosen, and warms up.
    let mut first = Run::new(case, one, prompt, tokens, None)?;
    while first.ids.len() < tokens {
        cancel.check()?;
        first.pull()?;
    }
    let known = std::mem::take(&mut first.ids);
    let (mut ratios, mut last) = (Vec::new(), None);
    let (mut without, mut with) = (Vec::new(), Vec::new());
    for _ in 0..repetitions {
        let mut plain = Run::new(case, one, prompt, tokens, None)?;
        let mut guessed = Run::new(case, two, prompt, tokens, Some((case.guess)(&known)?))?;
        while plain.ids.len() < tokens || guessed.ids.len() < tokens {
            cancel.check()?;
            if plain.ids.len() <= guessed.ids.len() {
                let took = u64::try_from(plain.pull()?.as_nanos()).unwrap_or(u64::MAX);
                // The mean of the last few; the first token's logits were there.
                let mean = if plain.ids.len() > 2 { step.load(Ordering::Relaxed) } else { took };
                step.store(mean - mean / 4 + took / 4, Ordering::Relaxed);
            } else {
                guessed.pull()?;
            }
        }
        if guessed.ids != plain.ids || plain.ids != known {
            bail!("{}: the tokens are not those of plain decoding", case.name);
        }
        ratios.push(plain.time.as_secs_f64() / guessed.time.as_secs_f64());
        without.push(tokens as f64 / plain.time.as_secs_f64());
        with.push(tokens as f64 / guessed.time.as_secs_f64());
        last = guessed.generation.spec_stats();
    }
    let median = |values: &mut Vec<f64>| {
        values.sort_by(f64::total_cmp);
        values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
    };
    Ok(json!({
        "case": case.name,
        "temperature": case.temperature,
        "ratio": median(&mut ratios),
        "ratio_min": ratios.first(),
        "ratio_max": ratios.last(),
        "plain_tokens_per_second": median(&mut without),
        "tokens_per_second": median(&mut with),
        "counters": report(&last.unwrap_or_default()),
    }))
}

impl<'a> Run<'a> {
    fn new(
        case: &Case<'_>,
        session: &'a mut Session,
        prompt: &[i32],
        tokens: usize,
        speculation: Option<Speculation>,
    ) -> Result<Self> {
        // The last token again, for its logits.
        session.truncate(prompt.len() - 1)?;
        session.decode(prompt[prompt.len() - 1], None)?;
        let params = SamplingParams { temperature: case.temperature, seed: 1, ..SamplingParams::default() };
        let mut sampler = Sampler::new(&params)?;
        if case.repeats {
            let script: Vec<i32> = prompt.iter().copied().cycle().take(prompt.len().min(PERIOD)).collect();
            let only = move |input: &Input<'_>, logits: &mut [f32]| {
                let id = script[input.position as usize % script.len()];
                if let Some(logit) = logits.get_mut(id as usize) {
                    *logit = 1e9;
                }
                Ok(())
            };
            sampler.add_processor(Stage::BeforePenalties, true, Arc::new(only));
        }
        let options =
            GenerationOptions { max_tokens: tokens, ignore_end: true, ..GenerationOptions::default() };
        let mut generation = Generation::new(None, options)?;
        if let Some(speculation) = speculation {
            generation.speculate(speculation);
        }
        Ok(Self { session, sampler, generation, tokens, ids: Vec::new(), time: Duration::ZERO })
    }

    /// The next event; what it took.
    fn pull(&mut self) -> Result<Duration> {
        let clock = Instant::now();
        let event = self.generation.next(self.session, &mut self.sampler, None)?;
        let took = clock.elapsed();
        self.time += took;
        self.ids.extend(event.ids);
        if event.kind == Kind::Done && self.ids.len() < self.tokens {
            let (got, wanted) = (self.ids.len(), self.tokens);
            bail!("the text ended after {got} of {wanted} tokens ({:?})", event.reason);
        }
        Ok(took)
    }
}

/// The bench's cases for people.
pub fn show(cases: &[Value]) -> Result<()> {
    say!(
        "{:28}{:>6}{:>10}{:>10}{:>8}{:>16}{:>10}",
        "",
        "temp",
        "plain",
        "guessed",
        "ratio",
        "(min - max)",
        "true"
    )?;
    for case in cases {
        let number = |key: &str| case[key].as_f64().unwrap_or(f64::NAN);
        let name = case["case"].as_str().unwrap_or_default();
        let range = format!("({:.2} - {:.2})", number("ratio_min"), number("ratio_max"));
        let share = case["counters"]["acceptance"].as_f64().unwrap_or(f64::NAN) * 100.0;
        let (plain, guessed) = (number("plain_tokens_per_second"), number("tokens_per_second"));
        let (temperature, ratio) = (number("temperature"), number("ratio"));
        say!("{name:28}{temperature:>6.1}{plain:>10.1}{guessed:>10.1}{ratio:>8.2}{range:>16}{share:>8.0} %")?;
    }
    Ok(())
}
