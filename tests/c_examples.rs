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
fn tokens_are_told_with_what_they_were_chosen_among() {
    let library = Library::find();
    let Some((model, _)) = model(library.dir.path()) else { return };
    for cc in compilers() {
        let program = library.compile(&cc, &root().join("tests/c/tokens.c"), "tokens", &["-lm"]);
        run(Command::new(program).arg(&model));
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
fn snapshot_goes_on_in_another_process_with_the_same_text() {
    let library = Library::find();
    let Some((model, _)) = model(library.dir.path()) else { return };
    for cc in compilers() {
        let snapshot = library.compile(&cc, &example("snapshot"), "snapshot", &[]);
        let state = library.dir.path().join("state");
        let tell = || run(Command::new(&snapshot).arg(&model).arg(&state).arg("Once upon a time"));
        let first = tell();
        let (before, behind) = first.split_once("behind:").unwrap();
        assert!(before.starts_with("before:") && behind.len() > 20, "{first}");
        let again = tell();
        assert!(again.starts_with("found 29 tokens in "), "{again}");
        assert_eq!(again.split_once("behind:").unwrap().1, behind);
        assert_eq!(again, tell());
        std::fs::write(&state, "llmsnap").unwrap();
        let refused = Command::new(&snapshot).arg(&model).arg(&state).arg("x").output().unwrap();
        assert_eq!(refused.status.code(), Some(1));
        let message = String::from_utf8_lossy(&refused.stderr);
        assert!(message.starts_with("inspect: LLM_BAD_FORMAT: "), "{message}");
        std::fs::remove_file(&state).unwrap();
    }
}

#[test]
fn snapshots_restore_everything_or_change_nothing() {
    let library = Library::find();
    let Some((model, _)) = model(library.dir.path()) else { return };
    let file = library.dir.path().join("snapshot");
    for cc in compilers() {
        let program = library.compile(&cc, &root().join("tests/c/snapshot.c"), "snapshots", &[]);
        run(Command::new(program).arg(&model).arg(&file));
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

#[test]
fn batch_tells_each_text_as_if_it_were_alone() {
    let library = Library::find();
    let Some((model, expected)) = model(library.dir.path()) else { return };
    let texts = ["Once upon a time", "The little dog", "Tom and Lily", "One day, a big"];
    for cc in compilers() {
        let batch = library.compile(&cc, &example("batch"), "batch", &[]);
        let together = run(Command::new(&batch).arg(&model).args(texts));
        assert!(
            together.len() > 400 && expected.starts_with(together.split('\n').next().unwrap()),
            "{together}"
        );
        let alone: Vec<_> =
            texts.iter().map(|text| run(Command::new(&batch).arg(&model).arg(text))).collect();
        assert_eq!(together, alone.concat());
    }
}

#[test]
fn batches_answer_every_use() {
    let library = Library::find();
    let Some((model, _)) = model(library.dir.path()) else { return };
    for cc in compilers() {
        run(Command::new(library.compile(&cc, &root().join("tests/c/batch.c"), "batches", &[])).arg(&model));
    }
}

#[test]
fn plan_tells_what_a_full_session_then_takes() {
    let library = Library::find();
    let Some((model, _)) = model(library.dir.path()) else { return };
    for cc in compilers() {
        let plan = library.compile(&cc, &example("plan"), "plan", &[]);
        let told = run(Command::new(&plan).arg(&model).arg("300").arg("2"));
        let number = |what: &str| -> u64 {
            let line = told.lines().find(|line| line.starts_with(&format!("{what:<18} "))).unwrap();
            line.rsplit(' ').next().unwrap().parse().unwrap()
        };
        assert_eq!((number("sessions"), number("tokens of each")), (2, 300), "{told}");
        assert_eq!(number("used: kv") * 2, number("kv"), "{told}");
        assert_eq!(number("used: scratch") * 2, number("scratch"), "{told}");
        assert!(number("largest context") > 300, "{told}");
    }
}

#[test]
fn cancel_ends_a_prefill_and_leaves_the_session_as_it_was() {
    let library = Library::find();
    let Some((model, expected)) = model(library.dir.path()) else { return };
    for cc in compilers() {
        let cancel = library.compile(&cc, &example("cancel"), "cancel", &[]);
        let told = run(Command::new(&cancel).arg(&model).arg("Once upon a time"));
        let (first, text) = told.split_once('\n').unwrap();
        assert_eq!(first, "LLM_CANCELLED: 5 tokens are held, 5 were before");
        let all = format!("Once upon a time{}", text.trim_end_matches('\n'));
        assert!(text.len() > 100 && expected.starts_with(&all), "{all:?}\nexpected\n{expected:?}");
    }
}

#[test]
fn runtimes_plans_and_pipelines_answer_every_use() {
    let library = Library::find();
    let Some((model, _)) = model(library.dir.path()) else { return };
    for cc in compilers() {
        let program = library.compile(&cc, &root().join("tests/c/runtime.c"), "runtime", &["-lm"]);
        run(Command::new(program).arg(&model));
    }
}

/// Valgrind, a compiler, the library and a model, where all are there.
struct Checked {
    valgrind: PathBuf,
    cc: PathBuf,
    library: Library,
    model: PathBuf,
}

impl Checked {
    fn find() -> Option<Self> {
        let valgrind = compiler("valgrind")?;
        let cc = compilers().into_iter().next()?;
        let library = Library::find();
        let (model, _) = model(library.dir.path())?;
        Some(Self { valgrind, cc, library, model })
    }

    /// The program of a source file over the model, under valgrind, which knows no AVX-512: the AVX2 kernels run.
    fn program(&self, source: &str) -> Command {
        let name = Path::new(source).file_stem().unwrap().to_str().unwrap();
        let program = self.library.compile(&self.cc, &root().join(source), name, &["-lm"]);
        let mut command = Command::new(&self.valgrind);
        command.env("LLM_ISA", "avx2").args([
            "-q",
            "--leak-check=full",
            "--error-exitcode=9",
            "--fair-sched=yes",
        ]);
        command.arg(format!("--suppressions={}", root().join("tests/c/valgrind.supp").display()));
        command.arg(program).arg(&self.model);
        command
    }
}

#[test]
fn no_example_leaks_or_reads_what_it_may_not() {
    let Some(checked) = Checked::find() else { return };
    let dir = checked.library.dir.path();
    run(checked.program("examples/c/hello.c").arg("Once upon a time"));
    converse(&mut checked.program("examples/c/chat.c"), "Once\n");
    run(checked.program("examples/c/schema.c").arg(pet(dir)).arg("A pet: "));
    run(checked.program("examples/c/fork.c").arg(STORY));
    let speculative = &mut checked.program("examples/c/speculative.c");
    run(speculative.arg(&checked.model).arg("Once"));
    for _ in 0..2 {
        run(checked.program("examples/c/snapshot.c").arg(dir.join("state")).arg("Once"));
    }
    run(checked.program("examples/c/batch.c").args(["Once", "A dog"]));
    run(checked.program("examples/c/embed.c").args(["Once upon a time", "A dog"]));
    run(checked.program("examples/c/plan.c").arg("70"));
    run(checked.program("examples/c/cancel.c").arg("Once upon a time"));
}

#[test]
fn no_misuse_leaks_or_reads_what_it_may_not() {
    let Some(checked) = Checked::find() else { return };
    run(&mut checked.program("tests/c/pool.c"));
    run(checked.program("tests/c/snapshot.c").arg(checked.library.dir.path().join("snapshot")));
    run(&mut checked.program("tests/c/runtime.c"));
    run(&mut checked.program("tests/c/tokens.c"));
    run(&mut checked.program("tests/c/batch.c"));
    run(checked.program("tests/c/adapter.c").arg(adapter(checked.library.dir.path())));
    run(checked.program("tests/c/misuse.c").arg("no-fork"));
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
