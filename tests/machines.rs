//! Other machines give the same bits: the library, built for them and run here by an emulator, against this machine.
//!
//! `aarch64` runs under qemu (each of its instruction sets), `wasm32-wasip1` under node (one thread, no mapping). The
//! programs are `logits` and `hello` of `examples/rust`. A machine whose tools are missing is counted as not run.

#[path = "support/stories.rs"]
mod stories;
mod support;

use std::path::Path;
use std::process::Command;
use std::sync::{Mutex, PoisonError};

use llm::model::Model;
use llm::sampler::{Sampler, SamplingParams};
use llm::session::generate::{Generation, GenerationOptions, Kind};
use llm::session::{Level, Session, SessionOptions};
use llm::tokenizer::EncodeOptions;
use llm_format::quant::Type;
use llm_testdata::{not_run, shared};
use tempfile::TempDir;

use support::{argmax, converted, open, runtime};

/// What is built of `examples/rust`.
const PROGRAMS: [&str; 2] = ["logits", "hello"];

/// Runs a WASI program with the whole file system: node -e RUN PROGRAM [ARGUMENT..]
const RUN: &str = "
const { readFileSync } = require('node:fs');
const { WASI } = require('node:wasi');
const [program, ...args] = process.argv.slice(1);
const wasi = new WASI({ version: 'preview1', args: ['program', ...args], preopens: { '/': '/' } });
const module = new WebAssembly.Module(readFileSync(program));
process.exitCode = wasi.start(new WebAssembly.Instance(module, { wasi_snapshot_preview1: wasi.wasiImport }));
";

/// A machine that can be had here.
struct Machine {
    /// What runs its programs.
    runner: Vec<&'static str>,
    /// Where they are.
    programs: TempDir,
    /// What their names end in.
    suffix: &'static str,
}

/// Builds `examples/rust` for `target`, or says that it cannot be done here.
fn machine(
    target: &str,
    flags: &str,
    tools: &[&str],
    runner: &[&'static str],
    suffix: &'static str,
) -> Option<Machine> {
    let runs = |tool: &&&str| Command::new(tool).arg("--version").output().is_ok_and(|o| o.status.success());
    if let Some(tool) = tools.iter().find(|tool| !runs(tool)) {
        not_run(&format!("{target}: no {tool}"));
        return None;
    }
    let out = Command::new("rustc").args(["--print", "target-libdir", "--target", target]).output().unwrap();
    if !Path::new(String::from_utf8(out.stdout).unwrap().trim()).is_dir() {
        not_run(&format!("{target}: rustup target add {target}"));
        return None;
    }
    // Beside this build and not in it: the lock on that one may be held by whoever runs the tests. Programs are
    // copied, since another build of the same target leaves its own in the same place.
    static BUILD: Mutex<()> = Mutex::new(());
    let _one_at_a_time = BUILD.lock().unwrap_or_else(PoisonError::into_inner);
    let place = Path::new(env!("CARGO_TARGET_TMPDIR")).join("../machines");
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or("cargo".into()));
    cargo
        .args(["build", "--quiet", "--package", "llm-examples", "--no-default-features"])
        .args(["--target", target, "--target-dir"])
        .arg(&place)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .env("CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER", "aarch64-linux-gnu-gcc");
    if !flags.is_empty() {
        cargo.env("RUSTFLAGS", flags);
    }
    assert!(cargo.status().unwrap().success(), "{target} {flags}: the build failed");
    let programs = tempfile::tempdir().unwrap();
    for name in PROGRAMS.map(|name| format!("{name}{suffix}")) {
        std::fs::copy(place.join(target).join("debug").join(&name), programs.path().join(&name)).unwrap();
    }
    Some(Machine { runner: runner.to_vec(), programs, suffix })
}

impl Machine {
    fn run(&self, program: &str, isa: &str, arguments: &[&str]) -> Vec<u8> {
        let mut command = Command::new(self.runner[0]);
        command.args(&self.runner[1..]).arg(self.programs.path().join(format!("{program}{}", self.suffix)));
        let ran = command.args(arguments).env("LLM_ISA", isa).output().unwrap();
        let said = String::from_utf8_lossy(&ran.stderr);
        assert!(ran.status.success(), "{program} on {isa} {arguments:?}: {}: {said}", ran.status);
        ran.stdout
    }

    /// `hello` says on each of `isas` what it says here.
    fn says_hello(&self, file: &Path, isas: &[&str]) {
        let expected = hello(&open(&runtime(1, None), file), "Once upon a time");
        assert!(expected.len() > 100, "{expected}");
        for isa in isas {
            let got = self.run("hello", isa, &[file.to_str().unwrap(), "Once upon a time"]);
            assert_eq!(String::from_utf8(got).unwrap(), expected, "{isa}");
        }
    }

    /// The logits of the model in `file` are those of this machine, bit for bit, on each of `isas`.
    fn agrees(&self, file: &Path, what: &str, isas: &[&str]) {
        const COUNT: usize = 6;
        let model = open(&runtime(2, None), file);
        let vocab = model.spec().vocab as usize;
        let ids: Vec<i32> = (0..19).map(|i| (1 + i * 37 % (vocab - 1)) as i32).collect();
        let expected = logits(&model, &ids, COUNT);
        let mut arguments = vec![file.to_str().unwrap().to_owned(), COUNT.to_string()];
        arguments.extend(ids.iter().map(i32::to_string));
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        for isa in isas {
            let got = self.run("logits", isa, &arguments);
            let got: Vec<u32> = got.as_chunks().0.iter().map(|b| u32::from_le_bytes(*b)).collect();
            assert_eq!(got.len(), expected.len(), "{what} on {isa}");
            let differs = got.iter().zip(&expected).position(|(a, b)| *a != b.to_bits());
            assert_eq!(differs.map(|i| (i / vocab, i % vocab)), None, "{what} on {isa}: logits (row, id)");
        }
    }
}

/// Logits behind every one of `ids` and behind `count` tokens that continue them greedily.
fn logits(model: &Model, ids: &[i32], count: usize) -> Vec<f32> {
    let options = SessionOptions { determinism: Level::Portable, ..Default::default() };
    let mut all = support::logits(model, &options, ids);
    let mut session = Session::new(model, options).unwrap();
    session.prefill(ids, None, None).unwrap();
    for _ in 0..count {
        session.decode(argmax(session.logits().unwrap()), None).unwrap();
        all.extend_from_slice(session.logits().unwrap());
    }
    all
}

/// What `hello` prints.
fn hello(model: &Model, text: &str) -> String {
    let encode = EncodeOptions { add_special: true, parse_special: false };
    let ids = model.tokenizer().unwrap().encode(text, encode).unwrap();
    let mut session = Session::new(model, SessionOptions::default()).unwrap();
    session.prefill(&ids, None, None).unwrap();
    let mut sampler = Sampler::new(&SamplingParams::default()).unwrap();
    let mut generation =
        Generation::new(model.tokenizer().ok().cloned(), GenerationOptions::default()).unwrap();
    let mut all = String::new();
    loop {
        let event = generation.next(&mut session, &mut sampler, None).unwrap();
        all.push_str(&event.text);
        if event.kind == Kind::Done {
            return all + "\n";
        }
    }
}

#[test]
fn aarch64_gives_the_same_logits_for_every_type_and_kind_of_model_and_says_hello() {
    let place = tempfile::tempdir().unwrap();
    let Some((stories, _)) = stories::checkpoint(place.path()) else { return };
    let Some(reference) = shared("reference") else { return };
    let tools = ["qemu-aarch64", "aarch64-linux-gnu-gcc"];
    let runner = ["qemu-aarch64", "-cpu", "max", "-L", "/usr/aarch64-linux-gnu"];
    let Some(machine) = machine("aarch64-unknown-linux-gnu", "", &tools, &runner, "") else { return };
    let isas = ["neon", "neon-dotprod", "neon-i8mm"];
    use Type::*;
    for ty in [F32, F16, Bf16, Q8, Q6, Q5, Q4, Q3, Q2] {
        let (_place, file) = converted(&stories, ty);
        machine.agrees(&file, &format!("stories260K {ty}"), &isas);
        if ty == Q4 {
            machine.says_hello(&file, &isas);
        }
    }
    for name in ["llama_untied", "gpt_oss", "gemma2", "deepseek_v3", "qwen3_moe", "bloom", "llama_rope_yarn"]
    {
        let (_place, file) = converted(&reference.join(name), Q4);
        machine.agrees(&file, name, &isas[2..]);
    }
}

fn wasm(flags: &str) {
    let place = tempfile::tempdir().unwrap();
    let Some((stories, _)) = stories::checkpoint(place.path()) else { return };
    let runner = ["node", "--no-warnings", "-e", RUN, "--"];
    let Some(machine) = machine("wasm32-wasip1", flags, &["node"], &runner, ".wasm") else { return };
    for ty in [Type::F32, Type::Q8, Type::Q4] {
        let (_place, file) = converted(&stories, ty);
        machine.agrees(&file, &format!("stories260K {ty}"), &["scalar"]);
    }
    let (_place, file) = converted(&stories, Type::Q4);
    machine.says_hello(&file, &["scalar"]);
}

#[test]
fn wasm_gives_the_same_logits_and_says_hello() {
    wasm("");
}

#[test]
fn wasm_with_vectors_gives_the_same_logits_and_says_hello() {
    wasm("-C target-feature=+simd128");
}
