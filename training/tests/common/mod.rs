//! A small configuration on data made here.

use std::path::{Path, PathBuf};

use llm_train::{Config, ModelConfig, PrepareOptions, TokenizerOptions, Trainer, prepare, train_tokenizer};

/// Prepared data and a small configuration in `dir`.
pub fn setup(dir: &Path) -> Config {
    let input = dir.join("text.txt");
    write(&input, 7);
    data(&input, 280, dir.join("tokenizer.json"), dir.join("data"));
    settings(dir)
}

/// A text of words in an order that `seed` decides.
pub fn write(path: &Path, seed: usize) {
    let words = ["sun", "moon", "rain", "wind", "stone", "river", "cloud"];
    let text: String = (0..3000usize)
        .map(|i| words[(i * i + i / seed) % 7].to_string() + if i % 9 == 8 { ".\n" } else { " " })
        .collect();
    std::fs::write(path, text).unwrap();
}

/// Trains a tokenizer of `vocab` tokens on a text, and prepares the text with it.
pub fn data(text: &Path, vocab: usize, tokenizer: PathBuf, output: PathBuf) {
    let inputs = vec![text.to_path_buf().into()];
    let options =
        TokenizerOptions { inputs: inputs.clone(), vocab, output: tokenizer.clone(), ..Default::default() };
    train_tokenizer(&options).unwrap();
    prepare(&PrepareOptions { inputs, tokenizer, output, ..Default::default() }).unwrap();
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
