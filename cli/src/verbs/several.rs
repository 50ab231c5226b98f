//! `libllm generate --count`: several continuations of one prompt, computed together.

use anyhow::Result;
use llm::Cancel;
use llm::kv::{KvOptions, KvPool};
use llm::model::Model;
use llm::sampler::Sampler;
use llm::session::Session;
use llm::session::generate::GenerationOptions;
use llm::session::several::Several;
use serde_json::json;

use crate::common::ModelArgs;

/// A session for a prompt of `prompt` tokens, in a pool with room for `count` continuations up to `needed` tokens each.
pub fn session(
    args: &ModelArgs,
    model: &Model,
    prompt: usize,
    needed: usize,
    count: usize,
) -> Result<Session> {
    let options = args.run.session_options(needed)?;
    let kv = KvOptions { page: options.page, kv: options.kv, prefix_cache: false, ..KvOptions::default() };
    let pool = KvPool::new(model, &kv)?;
    // Full pages of the prompt are shared; what follows is each one's own.
    let shared = prompt / options.page;
    let own = options.max_tokens.div_ceil(options.page).saturating_sub(shared);
    let pages = count.saturating_mul(own).saturating_add(shared + 1);
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
