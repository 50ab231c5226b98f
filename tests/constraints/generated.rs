//! Texts written under constraints by chance are valid; forced tokens are those that would have been chosen.

use llm::Status;
use llm::constraint::{Constraint, Limits, State};
use llm::sampler::{Sampler, SamplingParams};
use serde_json::Value;

use crate::corpora::{Row, maskbench, suite};
use crate::validator::valid;
use crate::{bit, schema, small};

/// Texts tried per schema: 1, or what `LLM_LONG` says.
fn tries() -> u64 {
    std::env::var("LLM_LONG").ok().and_then(|n| n.parse().ok()).unwrap_or(1)
}

/// Logits by chance, with a liking for what ends texts, so that they end.
fn row(vocabulary: usize, endings: &[i32], seed: u64, position: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ position.wrapping_mul(0xD134_2543_DE82_EF95);
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / 16_777_216.0
    };
    let mut row: Vec<f32> = (0..vocabulary).map(|_| next() * 4.0).collect();
    let liking = 3.0 + position as f32 * 0.05;
    endings.iter().for_each(|&id| row[id as usize] += liking);
    row
}

/// A text written under the constraint, if it ends.
fn written(constraint: &Constraint, seed: u64, jump: bool) -> Option<(String, Vec<i32>)> {
    let tokenizer = constraint.tokenizer();
    let texts = ["}", "]", "\"", ",", "\"}", "\"]"];
    let mut endings: Vec<i32> = texts.iter().filter_map(|text| tokenizer.find(text.as_bytes())).collect();
    endings.extend((0..tokenizer.size() as i32).filter(|&id| tokenizer.is_end(id)));
    let params = SamplingParams { temperature: 0.7, seed, ..Default::default() };
    let mut sampler = Sampler::new(&params).unwrap();
    sampler.set_constraint(Some(constraint));
    let mut ids = Vec::new();
    while !sampler.is_complete() {
        if ids.len() > 400 {
            return None;
        }
        let logits = row(tokenizer.size(), &endings, seed, ids.len() as u64);
        let id = match sampler.sample(&logits, ids.len() as u64) {
            Ok(choice) => choice.id,
            Err(e) if [Status::BUDGET, Status::DEAD_END].contains(&e.status()) => return None,
            Err(e) => panic!("{e}"),
        };
        sampler.accept(id).unwrap();
        if tokenizer.is_end(id) {
            break;
        }
        ids.push(id);
        if jump {
            for id in sampler.forced().unwrap() {
                sampler.accept(id).unwrap();
                ids.push(id);
            }
        }
    }
    let bytes: Vec<u8> = ids.iter().flat_map(|&id| tokenizer.token_bytes(id).unwrap().into_owned()).collect();
    Some((String::from_utf8(bytes).unwrap(), ids))
}

fn all() -> Option<Vec<Row>> {
    let mut rows = suite("test-suite-draft2020-12.jsonl", None)?;
    rows.extend(maskbench()?);
    Some(rows)
}

#[test]
fn the_judge_agrees_with_the_published_suite() {
    let Some(rows) = suite("test-suite-draft2020-12.jsonl", None) else { return };
    let mut judged = 0;
    for row in
        rows.iter().filter(|row| !row.name.starts_with("optional/") && !row.name.starts_with("vocabulary"))
    {
        for (data, expected) in &row.tests {
            if let Some(answer) = valid(&row.schema, data) {
                assert_eq!(answer, *expected, "{}: {data} {}", row.name, row.schema);
                judged += 1;
            }
        }
    }
    assert!(judged > 500, "{judged}");
}

#[test]
fn every_generated_text_is_valid() {
    let (Some(rows), Some(tokenizer)) = (all(), small()) else { return };
    let (mut ended, mut judged) = (0, 0);
    // Every third schema, unless more is asked for.
    let step = if tries() > 1 { 1 } else { 3 };
    for row in rows.iter().step_by(step) {
        let Ok(constraint) = schema(&tokenizer, &row.schema.to_string()) else { continue };
        for seed in 0..tries() {
            let Some((text, _)) = written(&constraint, seed, true) else { continue };
            ended += 1;
            let data: Value =
                serde_json::from_str(&text).unwrap_or_else(|e| panic!("{}: {e}: {text}", row.name));
            if let Some(answer) = valid(&row.schema, &data) {
                assert!(answer, "{}: {text} {}", row.name, row.schema);
                judged += 1;
            }
        }
    }
    println!("{ended} texts ended, {judged} judged");
    assert!(judged > 60, "{judged}");
}

#[test]
fn forced_tokens_are_those_that_would_have_been_chosen() {
    let (Some(rows), Some(tokenizer)) = (maskbench(), small()) else { return };
    let mut compared = 0;
    for row in rows.iter().step_by(12) {
        let Ok(constraint) = schema(&tokenizer, &row.schema.to_string()) else { continue };
        let (a, b) = (written(&constraint, 7, true), written(&constraint, 7, false));
        assert_eq!(a, b, "{}", row.name);
        compared += usize::from(a.is_some());
    }
    assert!(compared > 5, "{compared}");
}

#[test]
fn patterns_grammars_and_choices_are_followed() {
    let Some(tokenizer) = small() else { return };
    let limits = Limits::default();
    let pattern = "[A-Z][a-z]{2,5}-[0-9]{3}";
    let regex = Constraint::regex(&tokenizer, pattern, &limits, None).unwrap();
    let lark = "start: sum\nsum: num (\"+\" num)*\nnum: /[0-9]{1,3}/\n";
    let lark = Constraint::lark(&tokenizer, lark, &limits, None).unwrap();
    let choice = Constraint::choice(&tokenizer, &["yes", "no", "(a|b)*", "né"], &limits, None).unwrap();
    let mut chosen = std::collections::BTreeSet::new();
    for seed in 0..60 {
        let (text, _) = written(&regex, seed, true).unwrap();
        assert!(fancy_regex::Regex::new(&format!("^{pattern}$")).unwrap().is_match(&text).unwrap(), "{text}");
        if let Some((text, _)) = written(&lark, seed, true) {
            assert!(
                text.split('+').all(|n| (1..=3).contains(&n.len()) && n.parse::<u16>().is_ok()),
                "{text}"
            );
        }
        chosen.insert(written(&choice, seed, true).unwrap().0);
    }
    assert_eq!(chosen.iter().map(String::as_str).collect::<Vec<_>>(), ["(a|b)*", "no", "né", "yes"]);
    let none = Constraint::choice(&tokenizer, &[], &limits, None).unwrap_err();
    assert_eq!(none.status(), Status::INVALID_ARG);
}

#[test]
fn states_fork_and_refuse_without_change() {
    let Some(tokenizer) = small() else { return };
    let constraint = Constraint::regex(&tokenizer, "ab|ac", &Limits::default(), None).unwrap();
    let id = |text: &str| tokenizer.find(text.as_bytes()).unwrap();
    let mut state = State::new(&constraint);
    assert!(!state.may_end().unwrap());
    for wrong in [id("b"), -1, i32::MAX] {
        assert_eq!(state.advance(wrong).unwrap_err().status(), Status::INVALID_ARG);
    }
    state.advance(id("a")).unwrap();
    let mut fork = state.fork();
    state.advance(id("b")).unwrap();
    assert!(state.is_complete() && !fork.is_complete());
    assert!(bit(fork.mask().unwrap(), id("c")));
    fork.advance(id("c")).unwrap();
    assert!(fork.is_complete());
    // Complete: only an end fits.
    let end = (0..tokenizer.size() as i32).find(|&id| tokenizer.is_end(id)).unwrap();
    assert!(bit(fork.mask().unwrap(), end) && !bit(fork.mask().unwrap(), id("a")));
    fork.reset();
    assert!(bit(fork.mask().unwrap(), id("a")));
}

#[test]
fn threads_share_a_tokenizers_vocabulary() {
    let Some(tokenizer) = small() else { return };
    let number =
        |tokenizer| written(&schema(tokenizer, "{\"type\":\"integer\",\"minimum\":10}").unwrap(), 3, true);
    let alone = number(&tokenizer);
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..6).map(|_| scope.spawn(|| number(&tokenizer))).collect();
        threads.into_iter().for_each(|thread| assert_eq!(thread.join().unwrap(), alone));
    });
}
