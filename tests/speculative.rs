//! Speculative equals plain: whoever guesses, however much of it is true, tokens, text, reasons, log-probabilities and
//! the session and sampler that are left are those of plain decoding.

#[path = "support/stories.rs"]
mod stories;
mod support;

use std::sync::Arc;
use std::time::Duration;

use llm::constraint::{Constraint, Limits};
use llm::kv::{KvOptions, KvPool};
use llm::model::Model;
use llm::sampler::{Sampler, SamplingParams, Stage};
use llm::session::batch::{Batch, Slot, Want};
use llm::session::generate::{Generation, GenerationOptions, Kind, Plan, Reason};
use llm::session::speculative::{Lengths, NgramOptions, Replay, Source, SpecOptions, SpecStats, Speculation};
use llm::session::{Overflow, Session, SessionOptions};
use llm_format::quant::Type;
use support::{Reference, model, runtime};

/// Everything that must not depend on speculation.
#[derive(Debug, PartialEq)]
struct Outcome {
    ids: Vec<i32>,
    text: String,
    reason: Reason,
    /// Position among the ids, and bits.
    log_probabilities: Vec<(usize, u32)>,
    held: Vec<i32>,
    unheld: Vec<i32>,
    logits: Vec<u32>,
    /// The sampler's next choice behind all that.
    next: Option<i32>,
}

/// A generation behind `session` with `speculation`.
fn generate(
    session: &mut Session,
    mut sampler: Sampler,
    options: &GenerationOptions,
    speculation: Option<Speculation>,
) -> (Outcome, SpecStats) {
    let mut generation = Generation::new(session.model().tokenizer().ok().cloned(), options).unwrap();
    if let Some(speculation) = speculation {
        generation.speculate(speculation);
    }
    let (mut ids, mut text, mut log_probabilities) = (Vec::new(), String::new(), Vec::new());
    let reason = loop {
        let event = generation.next(session, &mut sampler, None).unwrap();
        if !event.ids.is_empty() {
            log_probabilities.push((ids.len(), event.log_probability.to_bits()));
        }
        log_probabilities
            .extend(event.further.iter().map(|p| (ids.len() + p.index, p.log_probability.to_bits())));
        ids.extend(event.ids);
        text.push_str(&event.text);
        if event.kind == Kind::Done {
            break event.reason.unwrap();
        }
    };
    let logits = session.logits().unwrap().to_vec();
    let outcome = Outcome {
        ids,
        text,
        reason,
        log_probabilities,
        held: session.tokens().to_vec(),
        unheld: generation.unheld().collect(),
        next: sampler.sample(&logits, session.len() as u64).ok().map(|c| c.id),
        logits: logits.iter().map(|v| v.to_bits()).collect(),
    };
    (outcome, generation.spec_stats().unwrap_or_default())
}

fn prefilled(model: &Model, prompt: &[i32], capacity: usize) -> Session {
    let options = SessionOptions { max_tokens: capacity, ..Default::default() };
    let mut session = Session::new(model, options).unwrap();
    session.prefill(prompt, None, None).unwrap();
    session
}

/// Guesses at every step, so that little runs cover much.
fn always(most: usize) -> Lengths {
    Lengths { least: 1, most, adaptive: false, min_gain: 0.0 }
}

fn replay(prompt: &[i32], plain: &[i32], acceptance: f64, most: usize) -> Speculation {
    let replay = Replay::new(prompt.len(), plain.to_vec(), acceptance, Duration::ZERO, 3);
    Speculation::new(Box::new(replay), &always(most)).unwrap()
}

fn ngram(model: &Model, most: usize) -> Speculation {
    let options = NgramOptions { least_match: 1, most_match: 4, corpus: None };
    SpecOptions { source: Source::Ngram(options), lengths: always(most) }.start(model).unwrap()
}

fn check_sums(stats: &SpecStats, told: usize, what: &str) {
    assert_eq!(stats.drafted, stats.accepted + stats.rejected, "{what}: {stats:?}");
    assert_eq!(stats.drafted_at.iter().sum::<u64>(), stats.drafted, "{what}: {stats:?}");
    assert_eq!(stats.accepted_at.iter().sum::<u64>(), stats.accepted, "{what}: {stats:?}");
    assert!(
        stats.bonus <= stats.verify_steps && stats.accepted + stats.bonus <= told as u64,
        "{what}: {stats:?}"
    );
}

fn draft(target: &Model, draft: &Model, most: usize) -> Speculation {
    SpecOptions { lengths: always(most), ..SpecOptions::draft(draft) }.start(target).unwrap()
}

/// Compares every proposer with plain decoding from the state that `start` makes.
fn compare(
    model: &Model,
    start: &dyn Fn() -> Session,
    sampler: &dyn Fn() -> Sampler,
    options: &GenerationOptions,
    what: &str,
) -> Outcome {
    let prompt = start().tokens().to_vec();
    let (plain, _) = generate(&mut start(), sampler(), options, None);
    for (most, acceptance) in [(1, 1.0), (3, 0.8), (4, 0.0), (8, 1.0), (32, 0.5)] {
        let what = format!("{what}, replay {acceptance} of {most}");
        let speculation = replay(&prompt, &plain.ids, acceptance, most);
        let (got, stats) = generate(&mut start(), sampler(), options, Some(speculation));
        assert_eq!(got, plain, "{what}");
        check_sums(&stats, plain.ids.len(), &what);
        if acceptance == 1.0 && plain.ids.len() > 4 {
            assert!(stats.accepted > 0, "{what}: {stats:?}");
        }
    }
    let (got, stats) = generate(&mut start(), sampler(), options, Some(ngram(model, 5)));
    assert_eq!(got, plain, "{what}, ngram");
    check_sums(&stats, plain.ids.len(), what);
    // The model as its own draft: with the same noise every guess comes true.
    let (got, stats) = generate(&mut start(), sampler(), options, Some(draft(model, model, 3)));
    assert_eq!(got, plain, "{what}, draft");
    check_sums(&stats, plain.ids.len(), what);
    assert!(stats.rejected <= 3 && stats.failed <= 1, "{what}, draft: {stats:?}");
    plain
}

/// A small trained model with a tokenizer, and a prompt.
fn stories() -> Option<(Model, Vec<i32>)> {
    let model = stories_of(Type::Q8, |_| {})?;
    let tokenizer = model.tokenizer().unwrap().clone();
    let prompt = tokenizer.encode("Once upon a time, there was a little", tokenizer.options(true)).unwrap();
    Some((model, prompt))
}

/// The model in another type, with `change` made to its tokenizer.
fn stories_of(ty: Type, change: impl FnOnce(&mut Vec<u8>)) -> Option<Model> {
    let dir = tempfile::tempdir().unwrap();
    let (checkpoint, _) = stories::checkpoint(dir.path())?;
    let file = checkpoint.join("tokenizer.model");
    let mut tokenizer = std::fs::read(&file).unwrap();
    change(&mut tokenizer);
    std::fs::write(&file, tokenizer).unwrap();
    Some(model(&runtime(0, None), &checkpoint, ty))
}

fn sampled(change: impl FnOnce(&mut SamplingParams)) -> Sampler {
    let mut params = SamplingParams { temperature: 0.9, seed: 11, ..Default::default() };
    change(&mut params);
    Sampler::new(&params).unwrap()
}

#[test]
fn greedy_and_sampled_runs_with_every_filter_are_those_of_plain_decoding() {
    let Some((model, prompt)) = stories() else { return };
    let samplers: [(&str, &dyn Fn() -> Sampler); 6] = [
        ("greedy", &|| sampled(|p| p.temperature = 0.0)),
        ("sampled", &|| sampled(|_| {})),
        ("penalties", &|| {
            sampled(|p| {
                (p.repetition_penalty, p.presence_penalty, p.frequency_penalty) = (1.2, 0.3, 0.2);
                p.penalty_window = 9;
            })
        }),
        ("cuts", &|| sampled(|p| (p.top_k, p.top_p, p.min_p) = (12, 0.9, 0.02))),
        ("chain", &|| {
            let params = SamplingParams { temperature: 0.9, seed: 3, ..Default::default() };
            Sampler::with_chain(&params, "dry;xtc;typical=0.95;temperature=0.8;mirostat=3").unwrap()
        }),
        ("greedy penalties", &|| sampled(|p| (p.temperature, p.repetition_penalty) = (0.0, 1.3))),
    ];
    for (name, sampler) in samplers {
        for (max_tokens, top_logprobs) in [(1, 0), (2, 3), (48, 2)] {
            let options =
                GenerationOptions { max_tokens, top_logprobs, ignore_end: true, ..Default::default() };
            let start = || prefilled(&model, &prompt, 0);
            let plain = compare(&model, &start, sampler, &options, name);
            assert_eq!(plain.ids.len(), max_tokens);
        }
    }
}

#[test]
fn ends_stops_and_a_full_context_come_where_they_come_without() {
    let Some((model, prompt)) = stories() else { return };
    let sampler = || sampled(|p| p.temperature = 0.0);
    let start = || prefilled(&model, &prompt, 0);
    let long = GenerationOptions { max_tokens: 60, ..Default::default() };
    let plain = compare(&model, &start, &sampler, &long, "long");
    // Every place of the text as a stop, in the middle of tokens too.
    let chars: Vec<char> = plain.text.chars().take(60).collect();
    for at in (3..chars.len().saturating_sub(6)).step_by(5) {
        let stop: String = chars[at..at + 5].iter().collect();
        let options = GenerationOptions { stop_texts: vec![stop.clone()], ..long.clone() };
        let stopped = compare(&model, &start, &sampler, &options, &format!("stop {stop:?}"));
        assert_eq!(stopped.reason, Reason::StopText);
    }
    for at in [0, 1, 2, 5, 11] {
        let options = GenerationOptions { stop_tokens: vec![plain.ids[at]], ..long.clone() };
        let stopped = compare(&model, &start, &sampler, &options, "stop token");
        assert_eq!(stopped.reason, Reason::StopToken);
    }
    for room in [1, 2, 7, 20] {
        let start = || prefilled(&model, &prompt, prompt.len() + room);
        let options = GenerationOptions { max_tokens: 0, ignore_end: true, ..Default::default() };
        let full = compare(&model, &start, &sampler, &options, "full");
        assert_eq!((full.reason, full.held.len()), (Reason::ContextFull, prompt.len() + room));
    }
}

#[test]
fn constraints_and_processors_hold_and_an_impure_one_is_never_guessed_for() {
    let Some((model, prompt)) = stories() else { return };
    let start = || prefilled(&model, &prompt, 0);
    let options = GenerationOptions { max_tokens: 60, ..Default::default() };
    let tokenizer = model.tokenizer().unwrap();
    let regex = |r: &str| Constraint::regex(tokenizer, r, &Limits::default(), None).unwrap();
    for (pattern, temperature) in [
        ("( the (cat|dog|tree)){1,6}\\.", 0.9),
        ("[a-z ]{10,20} and that is why everybody was very happy\\.", 0.0),
        ("(yes|no) because of the [a-z]+", 1.2),
    ] {
        let constraint = regex(pattern);
        let sampler = || {
            let mut sampler = sampled(|p| p.temperature = temperature);
            sampler.set_constraint(Some(&constraint));
            sampler
        };
        compare(&model, &start, &sampler, &options, pattern);
    }
    let processed = |pure: bool| {
        let mut sampler = sampled(|_| {});
        let parity = Arc::new(|input: &llm::sampler::processor::Input<'_>, logits: &mut [f32]| {
            let odd = input.ids.len() % 2;
            logits.iter_mut().skip(odd).step_by(2).for_each(|v| *v -= 1.5);
            Ok(())
        });
        sampler.add_processor(Stage::BeforePenalties, pure, parity);
        sampler
    };
    compare(&model, &start, &|| processed(true), &options, "processor");
    let (plain, _) = generate(&mut start(), processed(false), &options, None);
    let speculation = replay(&prompt, &plain.ids, 1.0, 4);
    let (got, stats) = generate(&mut start(), processed(false), &options, Some(speculation));
    assert_eq!((got, stats.drafted), (plain, 0));
}

#[test]
fn forks_and_restored_sessions_go_on_with_the_same_tokens() {
    let Some((model, prompt)) = stories() else { return };
    let options = GenerationOptions { max_tokens: 24, ignore_end: true, ..Default::default() };
    let sampler = || sampled(|_| {});
    let pool = KvPool::new(&model, &KvOptions { page: 16, ..Default::default() }).unwrap();
    let shared = || {
        let mut session = Session::in_pool(&pool, SessionOptions::default()).unwrap();
        session.prefill(&prompt, None, None).unwrap();
        session
    };
    let fresh = compare(&model, &|| prefilled(&model, &prompt, 0), &sampler, &options, "fresh");
    assert_eq!(compare(&model, &|| shared().fork().unwrap(), &sampler, &options, "fork"), fresh);
    // Behind a speculative run, cut back to the prompt.
    let cut = || {
        let mut session = shared();
        generate(&mut session, sampler(), &options, Some(ngram(&model, 8)));
        session.truncate(prompt.len() - 1).unwrap();
        session.decode(prompt[prompt.len() - 1], None).unwrap();
        session
    };
    assert_eq!(compare(&model, &cut, &sampler, &options, "cut"), fresh);
    let bytes = shared().snapshot(&[]).unwrap();
    let restored = || {
        let mut session = Session::in_pool(&pool, SessionOptions::default()).unwrap();
        session.restore(&bytes).unwrap();
        session
    };
    assert_eq!(compare(&model, &restored, &sampler, &options, "restored"), fresh);
}

#[test]
fn a_draft_of_coarser_weights_guesses_most_tokens_sampled_ones_too() {
    let Some((model, prompt)) = stories() else { return };
    let coarse = stories_of(Type::Q4, |_| {}).unwrap();
    let options = GenerationOptions { max_tokens: 80, ignore_end: true, ..Default::default() };
    for temperature in [0.0, 0.8] {
        let sampler = || sampled(|p| p.temperature = temperature);
        let (plain, _) = generate(&mut prefilled(&model, &prompt, 0), sampler(), &options, None);
        let speculation = draft(&model, &coarse, 3);
        let (got, stats) =
            generate(&mut prefilled(&model, &prompt, 0), sampler(), &options, Some(speculation));
        assert_eq!(got, plain, "temperature {temperature}");
        assert!(stats.acceptance() > 0.3, "temperature {temperature}: {stats:?}");
    }
}

/// Past the end of the context too, where noise still counts what is gone: a draft that guesses with other noise would be
/// wrong about every second token.
#[test]
fn a_draft_goes_on_guessing_where_tokens_go_to_make_room() {
    let Some((model, prompt)) = stories() else { return };
    let options = GenerationOptions { max_tokens: 150, ignore_end: true, ..Default::default() };
    let start = || {
        let overflow = Overflow::Recompute { head: 1 };
        let options = SessionOptions { max_tokens: 64, overflow, ..Default::default() };
        let mut session = Session::new(&model, options).unwrap();
        session.prefill(&prompt, None, None).unwrap();
        session
    };
    let (plain, _) = generate(&mut start(), sampled(|_| {}), &options, None);
    let mut session = start();
    let (got, stats) = generate(&mut session, sampled(|_| {}), &options, Some(draft(&model, &model, 3)));
    assert_eq!(got, plain);
    assert!(session.dropped() > 60 && stats.accepted > 60 && stats.rejected <= 3, "{stats:?}");
}

#[test]
fn a_draft_of_another_vocabulary_is_refused_with_the_first_difference() {
    let Some((model, _)) = stories() else { return };
    let refused = |draft: &Model, expected: &str| {
        let e = SpecOptions::draft(draft).check(&model).unwrap_err();
        assert_eq!(e.status(), llm::Status::MISMATCH);
        assert!(e.to_string().contains(expected), "{e}");
    };
    let other = stories_of(Type::Q4, |tokenizer| {
        let text = "\u{2581}the".as_bytes();
        let at = tokenizer.windows(text.len()).position(|w| w == text).unwrap();
        tokenizer[at + text.len() - 1] = b'q';
    });
    refused(&other.unwrap(), "text of token");
    if let Some(reference) = Reference::all().into_iter().find(|r| r.name == "llama_untied") {
        let without = support::model(model.runtime(), &reference.dir, Type::Q8);
        if without.spec().vocab != model.spec().vocab {
            refused(&without, "number of ids");
        }
    }
    assert!(SpecOptions::draft(&model).check(&model).is_ok());
    assert!(SpecOptions::ngram().check(&model).is_ok());
}

#[test]
fn every_kind_of_attention_verifies_the_bits_that_it_decodes() {
    let runtime = runtime(2, None);
    for reference in Reference::all() {
        let prompt = reference.ids("short.input_ids");
        let model = model(&runtime, &reference.dir, Type::Q8);
        let start = || {
            let mut session =
                Session::new(&model, reference.options(prompt.len() + 40, prompt.len() + 40)).unwrap();
            session.prefill(&prompt, None, None).unwrap();
            session
        };
        let options = GenerationOptions { max_tokens: 20, ignore_end: true, ..Default::default() };
        let sampler = || sampled(|p| p.temperature = 1.0);
        let (plain, _) = generate(&mut start(), sampler(), &options, None);
        for (most, acceptance) in [(3, 0.7), (8, 1.0)] {
            let speculation = replay(&prompt, &plain.ids, acceptance, most);
            let (got, stats) = generate(&mut start(), sampler(), &options, Some(speculation));
            assert_eq!(got, plain, "{}, replay {acceptance} of {most}", reference.name);
            assert!(stats.accepted > 0, "{}: {stats:?}", reference.name);
        }
    }
}

/// Generations of one batch, each with its own guesses, take their steps together.
#[test]
fn guesses_of_several_sessions_are_verified_in_one_step() {
    let Some((model, prompt)) = stories() else { return };
    let pool = KvPool::new(&model, &KvOptions::default()).unwrap();
    let options = GenerationOptions { max_tokens: 30, ignore_end: true, ..Default::default() };
    let cases: Vec<_> = (0..5)
        .map(|seed| {
            let prompt = prompt[..prompt.len() - seed].to_vec();
            let sampler = sampled(|p| p.seed = seed as u64);
            let (plain, _) = generate(&mut prefilled(&model, &prompt, 0), sampler.clone(), &options, None);
            (prompt, sampler, plain)
        })
        .collect();
    let mut runs: Vec<_> = cases
        .iter()
        .enumerate()
        .map(|(i, (prompt, sampler, plain))| {
            let mut session = Session::in_pool(&pool, SessionOptions::default()).unwrap();
            session.prefill(prompt, None, None).unwrap();
            let mut generation = Generation::new(None, &options).unwrap();
            if i > 0 {
                generation.speculate(replay(prompt, &plain.ids, 0.7, i));
            }
            (session, sampler.clone(), generation, Vec::new())
        })
        .collect();
    let mut batch = Batch::new(&pool).unwrap();
    let mut steps = 0;
    while runs.iter().any(|run| run.2.reason().is_none()) {
        let mut plans = Vec::new();
        for (i, (session, sampler, generation, _)) in runs.iter_mut().enumerate() {
            if let Plan::Run { rows } = generation.plan(session, sampler, None).unwrap() {
                let want = if rows > 1 { Want::Verify(rows) } else { Want::Last };
                plans.push((i, generation.planned().to_vec(), want));
            }
        }
        let mut slots: Vec<Slot<'_>> = Vec::new();
        let mut at = 0;
        for (i, (session, ..)) in runs.iter_mut().enumerate() {
            if let Some((j, ids, want)) = plans.get(at)
                && *j == i
            {
                slots.push(Slot { session, ids, want: *want });
                at += 1;
            }
        }
        batch.run(&mut slots, None).unwrap();
        steps += 1;
        for (slot, (i, _, want)) in plans.iter().enumerate() {
            let (session, sampler, generation, ids) = &mut runs[*i];
            let rows = matches!(want, Want::Verify(_)).then(|| batch.logits(slot).unwrap());
            let event = generation.take(session, sampler, batch.status(slot), rows, None).unwrap();
            ids.extend(event.ids);
        }
    }
    for (i, ((_, _, plain), (session, _, _, ids))) in cases.iter().zip(&runs).enumerate() {
        assert_eq!(ids, &plain.ids, "generation {i}");
        assert_eq!(session.tokens(), plain.held, "generation {i}");
        let logits: Vec<u32> = session.logits().unwrap().iter().map(|v| v.to_bits()).collect();
        assert_eq!(logits, plain.logits, "generation {i}");
    }
    assert!(steps <= 32, "{steps}: the one without guesses sets the pace");
}

#[test]
fn rows_of_a_verification_are_gone_once_anything_else_is_done() {
    let Some(reference) = Reference::all().into_iter().find(|r| r.name == "llama_untied") else { return };
    let model = model(&runtime(1, None), &reference.dir, Type::Q8);
    let ids = reference.ids("short.input_ids");
    let pool = KvPool::new(&model, &KvOptions { page: 16, ..Default::default() }).unwrap();
    let mut session = Session::in_pool(&pool, SessionOptions::default()).unwrap();
    session.prefill(&ids[..6], None, None).unwrap();
    type Change<'a> = &'a dyn Fn(&mut Session);
    let changes: [Change<'_>; 4] = [
        &|session| session.truncate(8).unwrap(),
        &|session| session.decode(ids[10], None).unwrap(),
        &|session| {
            let mut batch = Batch::new(&pool).unwrap();
            batch.run(&mut [Slot { session, ids: &ids[10..11], want: Want::Last }], None).unwrap();
            batch.status(0).unwrap();
        },
        &|session| session.reset(),
    ];
    for change in changes {
        session.truncate(6.min(session.len())).unwrap();
        session.prefill(&ids[session.len()..6], None, None).unwrap();
        session.verify(&ids[6..10], 4, None).unwrap();
        assert!(session.verified_row(3).is_ok());
        change(&mut session);
        assert_eq!(session.verified_row(0).unwrap_err().status(), llm::Status::BAD_STATE);
        let held = session.len();
        assert_eq!(session.keep(held, None).unwrap_err().status(), llm::Status::BAD_STATE);
    }
}

#[test]
fn what_was_verified_is_kept_while_its_pages_are_out() {
    let Some(reference) = Reference::all().into_iter().find(|r| r.name == "llama_untied") else { return };
    let model = model(&runtime(1, None), &reference.dir, Type::Q8);
    let ids = reference.ids("long.input_ids");
    let kv = KvOptions { page: 16, swap_bytes: 1 << 30, ..Default::default() };
    let pool = KvPool::new(&model, &kv).unwrap();
    let mut session = Session::in_pool(&pool, SessionOptions::default()).unwrap();
    session.prefill(&ids[..40], None, None).unwrap();
    session.verify(&ids[40..50], 10, None).unwrap();
    session.swap_out().unwrap();
    session.keep(44, None).unwrap();
    session.decode(ids[44], None).unwrap();
    let mut alone = Session::new(&model, SessionOptions::default()).unwrap();
    alone.prefill(&ids[..45], None, None).unwrap();
    assert_eq!((session.tokens(), session.logits().unwrap()), (&ids[..45], alone.logits().unwrap()));
}
