//! A small configuration on data made here.

use std::path::Path;

use llm_train::{Config, ModelConfig, PrepareOptions, TokenizerOptions, Trainer, prepare, train_tokenizer};

/// Prepared data and a small configuration in `dir`.
pub fn setup(dir: &Path) -> Config {
    let words = ["sun", "moon", "rain", "wind", "stone", "river", "cloud"];
    let text: String = (0..3000usize)
        .map(|i| words[(i * i + i / 7) % 7].to_string() + if i % 9 == 8 { ".\n" } else { " " })
        .collect();
    let (input, tokenizer) = (dir.join("text.txt"), dir.join("tokenizer.json"));
    std::fs::write(&input, text).unwrap();
    let inputs = vec![input.into()];
    let options = TokenizerOptions {
        inputs: inputs.clone(),
        vocab: 280,
        output: tokenizer.clone(),
        ..Default::default()
    };
    train_tokenizer(&options).unwrap();
    prepare(&PrepareOptions { inputs, tokenizer, output: dir.join("data"), ..Default::default() }).unwrap();
    settings(dir)
}

/// The configuration of [`setup`] alone.
pub fn settings(dir: &Path) -> Config {
    let mut config = Config {
        model: ModelConfig { context: 16, ..ModelConfig::tiny() },
        data: dir.join("data"),
        out: dir.join("run"),
        steps: 12,
        batch: 3,
        threads: 2,
        save_every: 4,
        eval_every: 4,
        ..Config::default()
    };
    config.optim.warmup = 3;
    config
}

pub fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|x| x.to_bits()).collect()
}

pub fn advance(trainer: &mut Trainer, steps: u64) {
    for _ in 0..steps {
        trainer.step().unwrap();
    }
}

pub fn run(config: &Config, steps: u64) -> Trainer {
    let mut trainer = Trainer::new(config).unwrap();
    advance(&mut trainer, steps);
    trainer
}
