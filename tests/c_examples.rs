//! The C examples, compiled and run against the built library; a C program of misuses; all of it under valgrind.
#![cfg(target_os = "linux")]

#[path = "support/lora.rs"]
mod lora;
#[path = "support/stories.rs"]
mod stories;
#[path = "c/support.rs"]
mod support;

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use llm_convert::Options;
use llm_format::quant::Type;
use support::{Library, compiler, root, run};

/// The trained model of 260 thousand parameters with its tokenizer, converted in `dir`; and its published greedy text.
fn model(dir: &Path) -> Option<(PathBuf, String)> {
    let (checkpoint, facts) = stories::checkpoint(dir)?;
    let out = dir.join("stories.llm");
    llm_convert::convert(&checkpoint, &out, &Options { ty: Type::F32, ..Options::default() }, &()).unwrap();
    Some((out, facts["greedy"]["text"].as_str().unwrap().to_owned()))
}

fn compilers() -> Vec<PathBuf> {
    ["gcc", "clang"].into_iter().filter_map(compiler).collect()
}

/// Runs a program with lines on its standard input.
fn converse(command: &mut Command, input: &str) -> String {
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", output.status);
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn example(name: &str) -> PathBuf {
    root().join(format!("examples/c/{name}.c"))
}

#[test]
fn hello_continues_as_the_reference_does() {
    let library = Library::find();
    let Some((model, expected)) = model(library.dir.path()) else { return };
    for cc in compilers() {
        let hello = library.compile(&cc, &example("hello"), "hello", &[]);
        let told = run(Command::new(&hello).arg(&model).arg("Once upon a time"));
        let told = told.trim_end_matches('\n');
        let all = format!("Once upon a time{told}");
        assert!(told.len() > 100 && expected.starts_with(&all), "{all:?}\nexpected\n{expected:?}");
        let wrong = Command::new(&hello).args(["/nonexistent.llm", "x"]).output().unwrap();
        assert_eq!(wrong.status.code(), Some(1));
        let message = String::from_utf8_lossy(&wrong.stderr);
        assert!(message.starts_with("open: LLM_NOT_FOUND: /nonexistent.llm: "), "{message}");
    }
}

#[test]
fn chat_answers_every_line_and_the_same_again() {
    let library = Library::find();
    let Some((model, _)) = model(library.dir.path()) else { return };
    for cc in compilers() {
        let chat = library.compile(&cc, &example("chat"), "chat", &[]);
        let told = converse(Command::new(&chat).arg(&model), "Once\nupon a time\n");
        assert_eq!(told.matches("> ").count(), 3, "{told}");
        assert!(told.len() > 100, "{told}");
        assert_eq!(told, converse(Command::new(&chat).arg(&model), "Once\nupon a time\n"));
    }
}

/// A schema whose texts the small model soon ends.
fn pet(dir: &Path) -> PathBuf {
    let file = dir.join("pet.json");
    let schema = r#"{"type": "object", "properties": {"kind": {"enum": ["cat", "dog"]}, "legs": {"type": "integer",
        "minimum": 3, "maximum": 4}}, "required": ["kind", "legs"], "additionalProperties": false}"#;
    std::fs::write(&file, schema).unwrap();
    file
}

#[test]
fn schema_writes_what_is_valid_and_refuses_what_is_no_schema() {
    let library = Library::find();
    let Some((model, _)) = model(library.dir.path()) else { return };
    let pet = pet(library.dir.path());
    for cc in compilers() {
        let schema = library.compile(&cc, &example("schema"), "schema", &[]);
        let told = run(Command::new(&schema).arg(&model).arg(&pet).arg("A pet: "));
        let told: serde_json::Value = serde_json::from_str(&told).unwrap_or_else(|e| panic!("{e}: {told}"));
        assert!(["cat", "dog"].iter().any(|kind| told["kind"] == *kind), "{told}");
        assert!([3, 4].iter().any(|legs| told["legs"] == *legs), "{told}");
        let wrong = library.dir.path().join("wrong.json");
        std::fs::write(&wrong, r#"{"properties": {"a": {"contains": {}}}}"#).unwrap();
        let refused = Command::new(&schema).arg(&model).arg(&wrong).arg("x").output().unwrap();
        let message = String::from_utf8_lossy(&refused.stderr);
        assert!(message.starts_with("schema: LLM_SCHEMA: schema, at /properties/a/contains: "), "{message}");
    }
}

/// A text is like itself, and what the model was trained on is likelier than the same words in disorder.
#[test]
fn embed_tells_how_alike_and_how_likely_texts_are() {
    let library = Library::find();
    let Some((model, _)) = model(library.dir.path()) else { return };
    let texts =
        ["Once upon a time, there was a dog.", "dog a there. time was a upon, Once", "One day, a cat sat."];
    for cc in compilers() {
        let embed = library.compile(&cc, &example("embed"), "embed", &["-lm"]);
        let told = run(Command::new(&embed).arg(&model).args(texts));
        let number =
            |line: &str, nth: usize| line.split_whitespace().nth(nth).unwrap().parse::<f64>().unwrap();
        let lines: Vec<&str> = told.lines().collect();
        assert_eq!(number(lines[0], 0), 1.0, "{told}");
        assert!(lines[1..].iter().all(|line| number(line, 0) < 0.999), "{told}");
        assert!(number(lines[0], 1) * 4.0 < number(lines[1], 1), "{told}");
        let long = "a".repeat(4000);
        let refused = Command::new(&embed).arg(&model).arg(&long).output().unwrap();
        let message = String::from_utf8_lossy(&refused.stderr);
        assert!(message.starts_with("encode: LLM_BUFFER_SMALL: "), "{message}");
    }
}

/// An adapter of random numbers for the model.
fn adapter(dir: &Path) -> PathBuf {
    let (peft, out) = (dir.join("peft"), dir.join("adapter.llm"));
    lora::Peft::random(&dir.join("checkpoint"), 1, 4, lora::all_but(&[])).write(&peft);
    let options = llm_convert::adapter::AdapterOptions::default();
    llm_convert::adapter::convert_adapter(&peft, &dir.join("checkpoint"), &out, &options).unwrap();
    out
}

#[test]
fn adapters_answer_every_use() {
    let library = Library::find();
    let Some((model, _)) = model(library.dir.path()) else { return };
    let adapter = adapter(library.dir.path());
    for cc in compilers() {
        let program = library.compile(&cc, &root().join("tests/c/adapter.c"), "adapter", &[]);
        run(Command::new(program).arg(&model).arg(&adapter));
    }
}

#[test]
fn misuse_is_answered_with_a_status() {
    let library = Library::find();
    let Some((model, _)) = model(library.dir.path()) else { return };
    for cc in compilers() {
        let misuse = library.compile(&cc, &root().join("tests/c/misuse.c"), "misuse", &["-lm"]);
        run(Command::new(misuse).arg(&model));
    }
}

/// Long enough for more than one page of 16 tokens.
const STORY: &str = "Once upon a time, there was a little girl named Lily. She loved to play outside";

#[test]
fn fork_reads_once_and_gives_every_page_back() {
    let library = Library::find();
    let Some((model, _)) = model(library.dir.path()) else { return };
    for cc in compilers() {
        let fork = library.compile(&cc, &example("fork"), "fork", &[]);
        let told = run(Command::new(&fork).arg(&model).arg(STORY));
        let lines: Vec<_> = told.lines().collect();
        let numbers = |when: &str| -> Vec<u32> {
            let line = lines.iter().find(|line| line.starts_with(when)).unwrap_or_else(|| panic!("{told}"));
            line.split([' ', ',']).filter_map(|word| word.parse().ok()).collect()
        };
        let [used, shared, cached, free, total, copied] = numbers("read")[..] else { panic!("{told}") };
        assert!(used > 1 && used + free == total && (shared, cached, copied) == (0, 0, 0), "{told}");
        assert_eq!(numbers("forked"), [used, used, 0, free, total, 0], "{told}");
        assert_eq!(numbers("told")[1], used - 1, "the last page is everybody's own: {told}");
        assert_eq!(numbers("told")[5], 3, "{told}");
        assert_eq!(numbers("freed")[..5], [0, 0, 0, total, total], "{told}");
        let tales: Vec<_> = (1..=3).map(|i| told.split(&format!("\n{i}:")).nth(1).unwrap()).collect();
        assert!(tales[0] != tales[1] && tales[1] != tales[2], "{told}");
        assert_eq!(told, run(Command::new(&fork).arg(&model).arg(STORY)));
    }
}

#[test]
fn pools_and_their_sessions_answer_every_use() {
    let library = Library::find();
    let Some((model, _)) = model(library.dir.path()) else { return };
    for cc in compilers() {
        run(Command::new(library.compile(&cc, &root().join("tests/c/pool.c"), "pool", &[])).arg(&model));
    }
}

#[test]
fn speculative_tells_the_same_tokens_with_guesses() {
    let library = Library::find();
    let Some((model, _)) = model(library.dir.path()) else { return };
    for cc in compilers() {
        let speculative = library.compile(&cc, &example("speculative"), "speculative", &[]);
        let told = run(Command::new(&speculative).arg(&model).arg(&model).arg("Once upon a time"));
        assert_eq!(told.matches("tokens, the same").count(), 4, "{told}");
        let line = told.lines().find(|line| line.starts_with("draft at 0.8")).unwrap();
        let numbers: Vec<u32> = line.split([' ', ':']).filter_map(|word| word.parse().ok()).collect();
        let [tokens, guessed, came_true, steps] = numbers[..] else { panic!("{told}") };
        assert!(came_true * 10 >= guessed * 9 && steps * 3 < tokens, "its own draft: {told}");
    }
}

/// Valgrind knows no AVX-512, so the AVX2 kernels run.
#[test]
fn no_program_leaks_or_reads_what_it_may_not() {
    let Some(valgrind) = compiler("valgrind") else { return };
    let Some(cc) = compilers().into_iter().next() else { return };
    let library = Library::find();
    let Some((model, _)) = model(library.dir.path()) else { return };
    let check = || {
        let mut command = Command::new(&valgrind);
        command.env("LLM_ISA", "avx2").args([
            "-q",
            "--leak-check=full",
            "--error-exitcode=9",
            "--fair-sched=yes",
        ]);
        command.arg(format!("--suppressions={}", root().join("tests/c/valgrind.supp").display()));
        command
    };
    let hello = library.compile(&cc, &example("hello"), "hello", &[]);
    run(check().arg(&hello).arg(&model).arg("Once upon a time"));
    let chat = library.compile(&cc, &example("chat"), "chat", &[]);
    converse(check().arg(&chat).arg(&model), "Once\n");
    let schema = library.compile(&cc, &example("schema"), "schema", &[]);
    run(check().arg(&schema).arg(&model).arg(pet(library.dir.path())).arg("A pet: "));
    let fork = library.compile(&cc, &example("fork"), "fork", &[]);
    run(check().arg(&fork).arg(&model).arg(STORY));
    let speculative = library.compile(&cc, &example("speculative"), "speculative", &[]);
    run(check().arg(&speculative).arg(&model).arg(&model).arg("Once"));
    let pool = library.compile(&cc, &root().join("tests/c/pool.c"), "pool", &[]);
    run(check().arg(&pool).arg(&model));
    let embed = library.compile(&cc, &example("embed"), "embed", &["-lm"]);
    run(check().arg(&embed).arg(&model).args(["Once upon a time", "A dog"]));
    let adapted = library.compile(&cc, &root().join("tests/c/adapter.c"), "adapter", &[]);
    run(check().arg(&adapted).arg(&model).arg(adapter(library.dir.path())));
    let misuse = library.compile(&cc, &root().join("tests/c/misuse.c"), "misuse", &["-lm"]);
    run(check().arg(&misuse).arg(&model).arg("no-fork"));
}

#[test]
fn the_program_of_the_readme_compiles_and_tells_the_same() {
    let library = Library::find();
    let Some((model, expected)) = model(library.dir.path()) else { return };
    let readme = std::fs::read_to_string(root().join("README.md")).unwrap();
    let (_, rest) = readme.split_once("```c\n").unwrap();
    let (program, _) = rest.split_once("```").unwrap();
    let source = library.dir.path().join("readme.c");
    std::fs::write(&source, program).unwrap();
    for cc in compilers() {
        let told = run(Command::new(library.compile(&cc, &source, "readme", &[]))
            .arg(&model)
            .arg("Once upon a time"));
        let all = format!("Once upon a time{told}");
        assert!(told.len() > 100 && expected.starts_with(&all), "{all:?}\nexpected\n{expected:?}");
    }
}
