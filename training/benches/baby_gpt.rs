//! Training speed of nanoGPT's character model (6 layers, 6 heads, width 384, 256 tokens, 65 characters, batch 12):
//! forward, backward, clipping and AdamW in f32. Prints each step's rate, then median, lowest and highest.
//! `benches/peers/baby_gpt_torch.py` is the same work in PyTorch.
//!
//! `cargo bench -p llm-train --bench baby_gpt [-- THREADS [STEPS]]`

use std::collections::BTreeSet;
use std::ops::ControlFlow;

use llm_train::{Config, Event, ModelConfig, PrepareOptions, prepare, train};
use serde_json::{Map, Value, json};

/// A tokenizer whose tokens are the characters of `text`, which is ASCII, in the spelling of byte-level tokenizers.
fn characters(text: &str) -> Value {
    let all: BTreeSet<char> = text.chars().collect();
    let spelled = all.iter().map(|c| match c {
        ' ' => 'Ġ',
        '\n' => 'Ċ',
        other => *other,
    });
    let vocab: Map<String, Value> = spelled.enumerate().map(|(id, c)| (c.to_string(), json!(id))).collect();
    let byte_level =
        json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false});
    json!({"version": "1.0", "added_tokens": [], "pre_tokenizer": byte_level, "decoder": byte_level,
           "model": {"type": "BPE", "vocab": vocab, "merges": []}})
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut numbers = std::env::args().skip(1).filter_map(|a| a.parse::<usize>().ok());
    let (threads, steps) = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(10));
    let dir = std::env::temp_dir().join(format!("libllm-baby-gpt-{}", std::process::id()));
    std::fs::create_dir_all(&dir)?;
    let (text, tokenizer) = (dir.join("text.txt"), dir.join("tokenizer.json"));
    std::fs::write(&text, llm_train::quickstart::TEXT)?;
    std::fs::write(&tokenizer, characters(llm_train::quickstart::TEXT).to_string())?;
    let prepared = prepare(&PrepareOptions {
        inputs: vec![text.into()],
        tokenizer,
        output: dir.join("data"),
        held_out: 0.0,
        ..Default::default()
    })?;
    println!("vocabulary of {}", prepared.vocab);
    let config = Config {
        model: ModelConfig::baby_gpt(),
        data: dir.join("data"),
        out: dir.join("run"),
        batch: 12,
        steps: steps as u64,
        threads,
        ..Config::default()
    };
    let mut rates = Vec::new();
    train(&config, &mut |event| {
        if let Event::Step(r) = event {
            println!("step {:3}  loss {:.4}  {:.0} tokens/s", r.step, r.loss, r.tokens_per_second);
            rates.push(r.tokens_per_second);
        }
        ControlFlow::Continue(())
    })?;
    rates.sort_by(f64::total_cmp);
    println!(
        "median {:.0}, {:.0} to {:.0} tokens/s",
        rates[rates.len() / 2],
        rates[0],
        rates[rates.len() - 1]
    );
    std::fs::remove_dir_all(&dir)?;
    Ok(())
}
