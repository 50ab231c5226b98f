//! What preparing data and training a tokenizer take of memory, with texts that are larger than what they may take.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use llm_train::{PrepareOptions, TokenizerKind, TokenizerOptions, prepare, train_tokenizer};
use parquet::data_type::{ByteArray, ByteArrayType};
use parquet::file::properties::WriterProperties;
use parquet::file::writer::SerializedFileWriter;

/// The most that a process may ever have had in memory, all of it counted.
const MOST: u64 = 128 << 20;

/// Lines of a block, and bytes of a line, its end included.
const LINES: usize = 10_000;
const LINE: usize = 1000;

/// Ten million bytes of text: lines of seven long words, of which there are 26.
fn block() -> String {
    let words: Vec<String> = ('a'..='z').map(|c| c.to_string().repeat(141)).collect();
    let line = |i: usize| {
        let line: Vec<&str> = (0..7).map(|j| words[(i * 7 + i / 5 + j * j) % 26].as_str()).collect();
        format!("{:x<1$}\n", line.join(" "), LINE - 1)
    };
    (0..LINES).map(line).collect()
}

/// A text of so many blocks, packed.
fn packed(path: &Path, blocks: usize) {
    let mut member = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    member.write_all(block().as_bytes()).unwrap();
    fs::write(path, member.finish().unwrap().repeat(blocks)).unwrap();
}

/// A column of texts of a hundred lines each, so many blocks of them, in row groups of a block.
fn columns(path: &Path, blocks: usize) {
    let schema =
        parquet::schema::parser::parse_message_type("message m { REQUIRED BYTE_ARRAY text (UTF8); }");
    let properties = WriterProperties::builder().set_compression(parquet::basic::Compression::SNAPPY).build();
    let file = fs::File::create(path).unwrap();
    let mut writer =
        SerializedFileWriter::new(file, Arc::new(schema.unwrap()), Arc::new(properties)).unwrap();
    let block = block();
    let texts: Vec<ByteArray> =
        block.as_bytes().chunks(100 * LINE).map(|text| text.to_vec().into()).collect();
    for _ in 0..blocks {
        let mut group = writer.next_row_group().unwrap();
        let mut column = group.next_column().unwrap().unwrap();
        column.typed::<ByteArrayType>().write_batch(&texts, None, None).unwrap();
        column.close().unwrap();
        group.close().unwrap();
    }
    writer.close().unwrap();
}

/// A tokenizer that makes an id of every line.
fn tokenizer(path: &Path) {
    let lines = r#"{"type": "Split", "pattern": {"String": "\n"}, "behavior": "Removed", "invert": false}"#;
    let model = r#"{"type": "WordLevel", "vocab": {"<unk>": 0}, "unk_token": "<unk>"}"#;
    let tree =
        format!(r#"{{"version": "1.0", "added_tokens": [], "pre_tokenizer": {lines}, "model": {model}}}"#);
    fs::write(path, tree).unwrap();
}

/// Not a claim of its own: the child of the tests below, which does what `LLM_TRAIN_TEST_WORK` says in the directory
/// `LLM_TRAIN_TEST_DIR` with the text `LLM_TRAIN_TEST_TEXT`, and says what came of it and the most memory it had.
#[test]
fn child_that_works() {
    let variable = |name: &str| std::env::var(name).ok();
    let (Some(work), Some(dir), Some(text)) =
        (variable("LLM_TRAIN_TEST_WORK"), variable("LLM_TRAIN_TEST_DIR"), variable("LLM_TRAIN_TEST_TEXT"))
    else {
        return;
    };
    let dir = Path::new(&dir);
    let (inputs, file) = (vec![dir.join(text).into()], dir.join("tokenizer.json"));
    let came = match work.as_str() {
        "prepare" => {
            let output = dir.join("data");
            let options = PrepareOptions { inputs, tokenizer: file, output, ..Default::default() };
            let prepared = prepare(&options).unwrap();
            prepared.train_tokens + prepared.held_out_tokens
        }
        kind => {
            let kind = if kind == "bpe" { TokenizerKind::Bpe } else { TokenizerKind::ByteLevel };
            let options = TokenizerOptions { inputs, kind, vocab: 500, output: file, ..Default::default() };
            train_tokenizer(&options).unwrap() as u64
        }
    };
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let most = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    println!("came {came} most {}", most.trim().trim_end_matches(" kB"));
}

/// Has the child do `work` with a text, and returns what came of it, once its memory is known to have been bounded.
fn bounded(dir: &Path, work: &str, text: &str) -> u64 {
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child_that_works", "--nocapture"])
        .env("LLM_TRAIN_TEST_WORK", work)
        .env("LLM_TRAIN_TEST_DIR", dir)
        .env("LLM_TRAIN_TEST_TEXT", text)
        .output()
        .unwrap();
    let said = [&output.stdout[..], &output.stderr].map(String::from_utf8_lossy).concat();
    assert!(output.status.success(), "{said}");
    let (_, numbers) = said.split_once("came ").unwrap();
    let mut numbers = numbers.split_whitespace().filter_map(|word| word.parse::<u64>().ok());
    let (came, most) = (numbers.next().unwrap(), numbers.next().unwrap() * 1024);
    assert!(most < MOST, "{work} of {text}: {} MB of memory", most >> 20);
    came
}

/// True where the system says what a process had; elsewhere these tests do not run.
fn told() -> bool {
    let told = cfg!(target_os = "linux");
    if !told {
        llm_testdata::not_run("the most memory of a process is known on Linux alone");
    }
    told
}

#[test]
fn a_text_of_320_megabytes_is_prepared_in_128_of_memory() {
    if told() {
        let dir = tempfile::tempdir().unwrap();
        tokenizer(&dir.path().join("tokenizer.json"));
        packed(&dir.path().join("text.txt.gz"), 32);
        assert_eq!(bounded(dir.path(), "prepare", "text.txt.gz"), 32 * LINES as u64);
    }
}

#[test]
fn a_column_of_320_megabytes_is_prepared_in_128_of_memory() {
    if told() {
        let dir = tempfile::tempdir().unwrap();
        tokenizer(&dir.path().join("tokenizer.json"));
        columns(&dir.path().join("text.parquet"), 32);
        assert_eq!(bounded(dir.path(), "prepare", "text.parquet"), 32 * LINES as u64);
    }
}

#[test]
fn tokenizers_are_trained_on_a_text_of_160_megabytes_in_128_of_memory() {
    if told() {
        let dir = tempfile::tempdir().unwrap();
        packed(&dir.path().join("text.txt.gz"), 16);
        for kind in ["byte-level", "bpe"] {
            assert!(bounded(dir.path(), kind, "text.txt.gz") > 256, "{kind}");
        }
    }
}
