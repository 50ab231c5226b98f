//! The same tokens and the same bits, however a session comes to them: threads, batches with random neighbours, chunks,
//! page sizes, KV types, and pages that were computed, forked, found, truncated and run again, restored from a snapshot,
//! evicted and computed again, or swapped out and in; whoever guesses what follows, and with adapters beside sessions of
//! others. Random cases on a model of each kind of attention and on a trained one, each against the plain run: one
//! thread, one session, one prompt, then token by token.
//!
//! A failure names its case; `LLM_IDENTITY=gqa:17 cargo test --test identity` runs that one alone. `LLM_LONG=20` runs
//! twenty times as many.

mod case;
#[path = "../support/lora.rs"]
mod lora;
#[path = "../support/multi_token.rs"]
mod multi_token;
mod run;
mod subject;
#[path = "../support/mod.rs"]
mod support;

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::Path;

use case::{Case, Dice, WAYS};
use llm_format::quant::Type;
use subject::Subject;

/// Cases of each subject in a run of all tests.
const CASES: u64 = 240;

fn bits(values: &[f32]) -> impl Iterator<Item = u32> {
    values.iter().map(|v| v.to_bits())
}

/// `dir` is the checkpoint, `base` the same or the one that it was made of.
fn check(name: &str, dir: &Path, base: &Path, ty: Type, text: &[i32]) {
    let long = std::env::var("LLM_LONG").ok().and_then(|n| n.parse().ok()).unwrap_or(1);
    let one = match std::env::var("LLM_IDENTITY") {
        Err(_) => None,
        Ok(one) => match one.split_once(':') {
            Some((subject, number)) if subject == name => Some(number.parse::<u64>().unwrap()),
            Some(_) => return,
            None => panic!("LLM_IDENTITY={one}: expected a subject and a number, such as gqa:17"),
        },
    };
    let subject = Subject::new(name, dir, base, ty, text);
    let (totals, guesses) = (subject.totals(), subject.guesses());
    let numbers = one.map_or(0..CASES * long, |n| n..n + 1);
    let mut ways = [0; WAYS.len()];
    let (mut adapted, mut guessed) = (0, vec![0; guesses.len()]);
    for number in numbers {
        let mut dice = Dice::new(number);
        let case = Case::draw(&mut dice, &totals, &guesses);
        adapted += case.adapters;
        guessed[guesses.iter().position(|kind| *kind == case.guesses).unwrap()] += 1;
        ways[WAYS.iter().position(|way| *way == case.way).unwrap()] += 1;
        let ran = catch_unwind(AssertUnwindSafe(|| run::run(&subject, case, &mut dice)));
        if let Err(panic) = ran {
            eprintln!("{case:#?}\nfailed; again: LLM_IDENTITY={name}:{number} cargo test --test identity");
            resume_unwind(panic);
        }
    }
    let (drafted, came_true) = run::GUESSED.get();
    assert!(
        one.is_some() || came_true > 100 && drafted > came_true + 100,
        "{came_true} of {drafted} guesses true"
    );
    let all = ways.iter().chain(&guessed).chain(&[adapted]).all(|n| *n > 10);
    assert!(one.is_some() || all, "{ways:?}, {guessed:?} of {guesses:?}, {adapted} with adapters");
}

/// On a checkpoint of `reference/`.
fn reference(name: &str, directory: &str, ty: Type) {
    let Some(dir) = llm_testdata::shared(&format!("reference/{directory}")) else { return };
    check(name, &dir, &dir, ty, &[]);
}

#[test]
fn grouped_queries() {
    reference("gqa", "llama_untied", Type::Q4);
}

#[test]
fn sliding_window() {
    reference("window", "mistral_swa", Type::Q8);
}

#[test]
fn sliding_window_beside_full_layers() {
    reference("alternating", "gemma3", Type::Q8);
}

#[test]
fn sinks_window_and_experts() {
    reference("sinks", "gpt_oss", Type::Q8);
}

#[test]
fn alibi() {
    reference("alibi", "bloom", Type::Q8);
}

/// With a head that guesses.
#[test]
fn latent_attention() {
    let Some(base) = llm_testdata::shared("reference/deepseek_v3") else { return };
    let (tensors, config) = multi_token::checkpoint(&base);
    let of = |key: &str| config[key].as_u64().unwrap() as usize;
    let tensors = multi_token::with_head(&tensors, of("num_hidden_layers"), of("hidden_size"));
    let dir = tempfile::tempdir().unwrap();
    multi_token::write(dir.path(), &tensors, &config);
    check("latent", dir.path(), &base, Type::Q8, &[]);
}

#[test]
fn experts() {
    reference("experts", "mixtral", Type::Q4);
}

#[test]
fn scaled_rotary() {
    reference("rotary", "llama_rope_dynamic", Type::Bf16);
}

#[test]
fn trained() {
    let Some(place) = llm_testdata::shared("data/weights/stories260K") else { return };
    let text: serde_json::Value =
        serde_json::from_slice(&std::fs::read(place.join("reference.json")).unwrap()).unwrap();
    let ids = text["greedy"]["ids"].as_array().unwrap();
    let ids: Vec<_> = ids.iter().map(|v| v.as_i64().unwrap() as i32).collect();
    let dir = place.join("hf");
    check("trained", &dir, &dir, Type::Q4, &ids);
}
