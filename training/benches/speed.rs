//! Training speed: forward, backward, clipping and AdamW in f32 (or with `precision=bf16`), without dropout, on random
//! weights. Prints each step's rate, then the median, the share of what a loop that only multiplies reaches on as many
//! threads, and the most memory the process had.
//!
//! `cargo bench -p llm-train --bench speed -- [MODEL [THREADS [STEPS]]] [KEY=VALUE...]`
//!
//! | model | |
//! |---|---|
//! | `baby-gpt` | 6 layers, 6 heads, width 384, 256 tokens, 65 characters, batch 12 |
//! | `gpt2` | GPT-2 of 124 million, 1024 tokens, vocabulary 50257, batch 1 |
//!
//! With `--turns` it does a step for each line of its input and answers with seconds, processor seconds, bytes and
//! loss:
//! `benches/peers/training.py` lets it take turns with PyTorch that way.

use std::io::BufRead;
use std::time::Instant;

use llm_train::{Config, ModelConfig, PrepareOptions, Trainer, prepare};

#[path = "../tests/common/characters.rs"]
mod characters;

/// The most memory that the process had so far, in bytes; 0 where the system does not say.
fn most_memory() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"));
    line.and_then(|l| l.trim().trim_end_matches("kB").trim().parse::<u64>().ok()).unwrap_or(0) * 1024
}

/// Processor seconds of all threads so far, in hundredths; 0 where the system does not say.
fn processor_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // behind the name in brackets: the 14th and 15th field of all
    let fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace().skip(11).take(2);
    fields.filter_map(|f| f.parse::<f64>().ok()).sum::<f64>() / 100.0
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let turns = words.iter().any(|w| w == "--turns");
    let plain: Vec<&String> = words.iter().filter(|w| !w.starts_with("--") && !w.contains('=')).collect();
    let number = |i: usize| plain.get(i).and_then(|w| w.parse::<usize>().ok());
    let (threads, steps) = (number(1).unwrap_or(0), number(2).unwrap_or(10).max(1));
    let (model, batch, vocab) = match plain.first().map_or("baby-gpt", |w| w.as_str()) {
        "baby-gpt" => (ModelConfig::baby_gpt(), 12, 65),
        "gpt2" => (Config::preset("gpt2")?.model, 1, 50257),
        other => return Err(format!("model {other:?}: expected baby-gpt or gpt2").into()),
    };
    let dir = std::env::temp_dir().join(format!("libllm-speed-{}", std::process::id()));
    std::fs::create_dir_all(&dir)?;
    let (text, tokenizer) = (dir.join("text.txt"), dir.join("tokenizer.json"));
    std::fs::write(&text, llm_train::quickstart::TEXT)?;
    std::fs::write(&tokenizer, characters::tokenizer(llm_train::quickstart::TEXT).to_string())?;
    prepare(&PrepareOptions {
        inputs: vec![text.into()],
        tokenizer,
        output: dir.join("data"),
        held_out: 0.0,
        ..Default::default()
    })?;
    let mut config = Config {
        model: ModelConfig { vocab, ..model },
        data: dir.join("data"),
        batch,
        steps: 1000,
        threads,
        ..Config::default()
    };
    for assignment in words.iter().filter(|w| w.contains('=')) {
        config.set(assignment)?;
    }
    let mut trainer = Trainer::new(&config)?;
    if turns {
        println!("ready");
        for line in std::io::stdin().lock().lines() {
            line?;
            let (start, busy) = (Instant::now(), processor_seconds());
            let report = trainer.step()?;
            let (seconds, busy) = (start.elapsed().as_secs_f64(), processor_seconds() - busy);
            println!("{seconds} {busy} {} {}", most_memory(), report.loss);
        }
    } else {
        let (mut rates, mut flops) = (Vec::new(), 0.0);
        for _ in 0..steps {
            let r = trainer.step()?;
            println!("step {:3}  loss {:.4}  {:.0} tokens/s", r.step, r.loss, r.tokens_per_second);
            rates.push(r.tokens_per_second);
            flops = r.flops / r.tokens_per_second;
        }
        rates.sort_by(f64::total_cmp);
        let median = rates[rates.len() / 2];
        let work = median * flops;
        let of = |peak: f64| format!(" ({:.1} % of {:.0})", 100.0 * work / peak, peak / 1e9);
        let share = trainer.peak().map_or(String::new(), of);
        println!(
            "median {median:.0}, {:.0} to {:.0} tokens/s; {:.0} GFLOP/s{share}; {:.0} MB",
            rates[0],
            rates[rates.len() - 1],
            work / 1e9,
            most_memory() as f64 / 1e6
        );
    }
    std::fs::remove_dir_all(&dir)?;
    Ok(())
}
