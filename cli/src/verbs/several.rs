//! `libllm generate --count`: several continuations of one prompt, computed together.

use anyhow::Result;
use llm::Cancel;
use llm::kv::{KvOptions, KvPool};
use llm::model::Model;
use llm::sampler::Sampler;
use llm::session::generate::GenerationOptions;
use llm::session::several::Several;
use llm::session::{Overflow, Session, SessionOptions};
use serde_json::json;

use crate::common::ModelArgs;

/// A session for a prompt of `prompt` tokens, in a pool with room for `count` continuations that are full.
pub fn session(
    args: &ModelArgs,
    model: &Model,
    prompt: usize,
    options: SessionOptions,
    count: usize,
) -> Result<Session> {
    let kv = KvOptions { page: options.page, kv: options.kv, prefix_cache: false, ..KvOptions::default() };
    let pool = KvPool::new(model, &kv)?;
    let full = options.max_tokens.div_ceil(options.page);
    let pages = if options.overflow == Overflow::Error {
        // Full pages of the prompt are shared; what follows is each one's own.
        let shared = prompt / options.page;
        count.saturating_mul(full.saturating_sub(shared)).saturating_add(shared + 1)
    } else {
        // Where tokens go, nothing stays shared, and the pages they leave stay until those behind them have new ones. The
        // prompt's session has its own.
        count.saturating_add(1).saturating_mul(full.saturating_mul(2))
    };
    let stats = pool.stats();
    pool.resize((stats.page_bytes * stats.groups).saturating_mul(pages as u64))?;
    args.adapted(Session::in_pool(&pool, options)?)
}

/// Runs `count` continuations of what `session` holds to their ends, and prints them: a JSON object with a list, or each
/// text behind a line that names its seed.
pub fn run(
    session: &mut Session,
    sampler: &Sampler,
    count: usize,
    options: &GenerationOptions,
    as_json: bool,
    cancel: &Cancel,
) -> Result<()> {
    let mut several = Several::new(session, sampler, count, options)?;
    let mut told = vec![(Vec::new(), String::new()); count];
    loop {
        let events = several.next(Some(cancel));
        if events.is_empty() {
            break;
        }
        for (i, event) in events {
            let event = event?;
            told[i].0.extend(event.ids);
            told[i].1.push_str(&event.text);
        }
    }
    let seed = |i: usize| sampler.params().seed.wrapping_add(i as u64);
    if as_json {
        let all = told.iter().enumerate().map(|(i, (ids, text))| {
            let reason = several.reason(i).map(|reason| format!("{reason:?}"));
            json!({ "seed": seed(i), "ids": ids, "text": text, "reason": reason })
        });
        say!("{}", json!({ "continuations": all.collect::<Vec<_>>() }))?;
    } else {
        for (i, (_, text)) in told.iter().enumerate() {
            say!("--- seed {}\n{text}", seed(i))?;
        }
    }
    Ok(())
}
