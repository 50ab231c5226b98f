//! Encoding speed against Hugging Face `tokenizers`, turn by turn on the same text, one thread.
//!
//! Prints for every vocabulary and text the median of the ratios of neighbouring turns (above 1: this library is the
//! faster one), so that noise from outside hits both alike; criterion's own numbers follow.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use llm::mmap::Bytes;
use llm::tokenizer::{EncodeOptions, Tokenizer};
use llm_testdata::shared;
use std::hint::black_box;
use std::path::Path;
use std::time::{Duration, Instant};
use tokenizers::models::bpe::BPE;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{PreTokenizerWrapper, SplitDelimiterBehavior};

const TURNS: usize = 7;

fn ours(path: &Path) -> (Tokenizer, Duration) {
    let built = match path.is_dir() {
        true => llm_convert::tokenizer::load_dir(path, None).unwrap().unwrap(),
        false => llm_convert::tokenizer::load_file(path, None).unwrap(),
    };
    let bytes = Bytes::from(built.tables);
    let start = Instant::now();
    let tokenizer = Tokenizer::from_tables(bytes).unwrap();
    (tokenizer, start.elapsed())
}

/// The same vocabulary in `tokenizers`.
fn theirs(dir: &Path, name: &str) -> tokenizers::Tokenizer {
    let file = |name: &str| dir.join(name).to_str().unwrap().to_owned();
    let bpe = BPE::from_file(&file("vocab.json"), &file("merges.txt")).ignore_merges(name == "llama3");
    let mut tokenizer = tokenizers::Tokenizer::new(bpe.build().unwrap());
    if name == "llama3" {
        let pattern = SplitPattern::Regex(llm_format::tokens::Scanner::Llama3.regex().to_owned());
        let split = Split::new(pattern, SplitDelimiterBehavior::Isolated, false).unwrap();
        let steps: Vec<PreTokenizerWrapper> = vec![split.into(), ByteLevel::new(false, true, false).into()];
        tokenizer.with_pre_tokenizer(Some(Sequence::new(steps)));
    } else {
        tokenizer.with_pre_tokenizer(Some(ByteLevel::new(false, true, true)));
    }
    tokenizer
}

fn compare(criterion: &mut Criterion) {
    let (Some(tokenizers), Some(texts)) = (shared("data/tokenizers"), shared("data/text")) else { return };
    for name in ["gpt2", "llama3"] {
        let (ours, opening) = ours(&tokenizers.join(name));
        println!("{name}: opened {} ids in {opening:?}", ours.size());
        let theirs = theirs(&tokenizers.join(name), name);
        for file in ["war-and-peace.txt", "wagahaiwa-nekodearu.txt", "wiki-demo.txt"] {
            let text = std::fs::read_to_string(texts.join(file)).unwrap();
            // Their normaliser works on whole strings: documents of a few kilobytes are what both meet in use.
            let parts: Vec<&str> = text.split_inclusive("\n\n").collect();
            let mut ratios = Vec::new();
            let mut fastest = [Duration::MAX; 2];
            for _ in 0..TURNS {
                let time = |encode: &dyn Fn(&str)| {
                    let start = Instant::now();
                    parts.iter().for_each(|part| encode(part));
                    start.elapsed()
                };
                let us = time(&|part| {
                    black_box(ours.encode(part, EncodeOptions::default()).unwrap());
                });
                let them = time(&|part| {
                    black_box(theirs.encode_fast(part, false).unwrap());
                });
                ratios.push(them.as_secs_f64() / us.as_secs_f64());
                fastest = [fastest[0].min(us), fastest[1].min(them)];
            }
            ratios.sort_by(f64::total_cmp);
            let rate = |d: Duration| text.len() as f64 / d.as_secs_f64() / 1e6;
            println!(
                "{name} {file}: {:.1}x (this library {:.1} MB/s, tokenizers {:.1} MB/s)",
                ratios[TURNS / 2],
                rate(fastest[0]),
                rate(fastest[1])
            );
        }
        let text = std::fs::read_to_string(texts.join("wiki-demo.txt")).unwrap();
        let mut group = criterion.benchmark_group(format!("encode-{name}"));
        group.throughput(Throughput::Bytes(text.len() as u64)).sample_size(10);
        group.bench_function("wiki-demo", |b| {
            b.iter(|| ours.encode(&text, EncodeOptions::default()).unwrap())
        });
        group.finish();
    }
}

criterion_group!(benches, compare);
criterion_main!(benches);
