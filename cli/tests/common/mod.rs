//! Runs the command, and makes the models it runs on.

#![allow(dead_code)] // every test file uses a part

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use serde_json::Value;

/// What a run of the command left.
#[derive(Debug)]
pub struct Ran {
    pub status: Option<i32>,
    pub out: String,
    pub err: String,
}

pub fn command(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_libllm"));
    // A terminal that cannot edit lines would have prompts between the answers.
    command.args(args).env("TERM", "xterm").env_remove("LLM_ISA");
    command
}

/// Starts the command with all three streams piped.
pub fn start(args: &[&str]) -> Child {
    let pipe = Stdio::piped;
    command(args).stdin(pipe()).stdout(pipe()).stderr(pipe()).spawn().unwrap()
}

/// Runs the command on `input` to its end.
pub fn run_on(input: &str, args: &[&str]) -> Ran {
    let mut child = start(args);
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_owned();
    // Beside the reading: answers may fill a pipe before the last question is written.
    let writer = std::thread::spawn(move || {
        let _ = stdin.write_all(input.as_bytes());
    });
    let ran = finish(child);
    writer.join().unwrap();
    ran
}

pub fn run(args: &[&str]) -> Ran {
    run_on("", args)
}

pub fn finish(child: Child) -> Ran {
    let output = child.wait_with_output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Ran { status: output.status.code(), out: text(output.stdout), err: text(output.stderr) }
}

/// What a run that must succeed printed.
#[track_caller]
pub fn ok(args: &[&str]) -> String {
    let ran = run(args);
    assert_eq!(ran.status, Some(0), "{args:?}: {ran:?}");
    ran.out
}

#[track_caller]
pub fn json(args: &[&str]) -> Value {
    serde_json::from_str(&ok(args)).unwrap()
}

/// The one line that a run with exit status 1 left on standard error.
#[track_caller]
pub fn refused(args: &[&str]) -> String {
    let ran = run(args);
    assert_eq!(ran.status, Some(1), "{args:?}: {ran:?}");
    assert_eq!(ran.out, "", "{args:?}");
    one_line(&ran)
}

#[track_caller]
pub fn one_line(ran: &Ran) -> String {
    let line = ran.err.strip_suffix('\n').unwrap_or_else(|| panic!("{ran:?}"));
    assert!(line.starts_with("libllm: ") && !line.contains('\n') && !line.contains("panicked"), "{ran:?}");
    line.to_owned()
}

pub fn p(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Names of everything in a directory.
pub fn names(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).unwrap();
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

/// Sends the signal that Ctrl-C sends.
pub fn interrupt(child: &Child) {
    signal(child, "-INT");
}

/// Sends a signal, by its name for `kill`.
pub fn signal(child: &Child, name: &str) {
    let sent = Command::new("kill").args([name, &child.id().to_string()]).status().unwrap();
    assert!(sent.success());
}

pub fn ids(value: &Value) -> Vec<i32> {
    serde_json::from_value(value.clone()).unwrap()
}

/// A directory that holds the trained model of 260 thousand parameters with its tokenizer, the latter written as the
/// SentencePiece model it was made from.
pub fn stories(into: &Path) -> Option<PathBuf> {
    let source = llm_testdata::shared("data/weights/stories260K")?;
    for name in ["config.json", "model.safetensors"] {
        // Not a copy of the file: the shared ones may be read-only.
        std::fs::write(into.join(name), std::fs::read(source.join("hf").join(name)).unwrap()).unwrap();
    }
    let model = sentencepiece(&std::fs::read(source.join("tok512.bin")).unwrap());
    std::fs::write(into.join("tokenizer.model"), model).unwrap();
    Some(into.to_owned())
}

/// llama2.c's vocabulary (the longest length, then score, length and text of each piece; a space for `▁`) as the
/// protobuf of sentencepiece_model.proto.
fn sentencepiece(bytes: &[u8]) -> Vec<u8> {
    let field = |number: u8, bytes: &[u8]| {
        assert!(bytes.len() < 128);
        [&[number << 3 | 2, bytes.len() as u8], bytes].concat()
    };
    let (mut model, mut rest, mut id) = (Vec::new(), &bytes[4..], 0);
    while !rest.is_empty() {
        let length = u32::from_le_bytes(rest[4..8].try_into().unwrap()) as usize;
        let text = String::from_utf8(rest[8..8 + length].to_vec()).unwrap();
        // 1 normal, 2 unknown, 3 control, 6 byte
        let kind = match id {
            0 => 2,
            1 | 2 => 3,
            3..259 => 6,
            _ => 1,
        };
        let text = if kind == 3 { text.trim().to_owned() } else { text.replace(' ', "▁") };
        let score = [&[2 << 3 | 5], &rest[..4]].concat();
        model.extend(field(1, &[field(1, text.as_bytes()), score, vec![3 << 3, kind]].concat()));
        rest = &rest[8 + length..];
        id += 1;
    }
    // Trainer: model_type (3) BPE, byte_fallback (35). Normalizer: remove_extra_whitespaces (4) off.
    model.extend(field(2, &[3 << 3, 2, 0x98, 0x02, 1]));
    model.extend(field(3, &[4 << 3, 0]));
    model
}
