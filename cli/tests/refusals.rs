//! What does not work ends with the right status, one line, and nothing left behind.

mod common;

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use common::{Ran, command, finish, interrupt, names, ok, one_line, p, refused, run};
use llm_testdata::{json_lines, shared};

#[test]
fn wrong_usage_is_status_2() {
    let wrong: [&[&str]; 18] = [
        &[],
        &["sing"],
        &["convert"],
        &["convert", "somewhere"],
        &["convert", "somewhere", "-o", "out.llm", "--type", "q7"],
        &["generate", "-m", "model.llm"],
        &["generate", "-m", "model.llm", "-p", "text", "--tokens-file", "ids.json"],
        &["generate", "-m", "model.llm", "-p", "text", "-n", "many"],
        &["tokenize", "--jsonl"],
        &["bench"],
        // What would be ignored.
        &["bench", "-m", "model.llm", "--type", "q8"],
        &["bench", "-m", "model.llm", "--speculate", "--depth", "8"],
        &["generate", "-m", "model.llm", "-p", "text", "--keep", "4"],
        &["generate", "-m", "model.llm", "-p", "text", "--draft-max", "4"],
        &["data", "prepare", "a.jsonl", "--tokenizer", "t", "-o", "d", "--chat", "--end", "</s>"],
        &["data", "prepare", "a.jsonl", "--tokenizer", "t", "-o", "d", "--chat", "--field", "body"],
        &["train", "--resume", "--preset", "tiny"],
        &["create-config", "-o", "config.yaml"],
    ];
    for args in wrong {
        let ran = run(args);
        assert_eq!((ran.status, ran.out.as_str()), (Some(2), ""), "{args:?}: {ran:?}");
        assert!(ran.err.contains("--help"), "{args:?}: {}", ran.err);
    }
}

#[test]
fn every_verb_explains_itself() {
    let help = ok(&["--help"]);
    let listed = help.split("Commands:\n").nth(1).unwrap().split("\n\n").next().unwrap();
    for line in listed.lines() {
        let (verb, about) = line.trim().split_once(' ').unwrap_or_else(|| panic!("no words for {line:?}"));
        assert!(!about.trim().is_empty(), "{line}");
        if verb != "help" {
            assert!(ok(&[verb, "--help"]).contains(&format!("Usage: libllm {verb}")), "{verb}");
        }
    }
    assert!(listed.lines().count() > 14, "{listed}");
    assert!(ok(&["--version"]).starts_with("libllm "));
}

#[test]
fn a_missing_file_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let (missing, out) = (dir.path().join("missing"), dir.path().join("out"));
    let inside = missing.join("config.yaml");
    let (missing, out) = (p(&missing), p(&out));
    let all: [&[&str]; 15] = [
        &["convert", missing, "-o", out],
        &["inspect", missing],
        &["verify", missing],
        &["generate", "-m", missing, "-p", "text"],
        &["chat", "-m", missing],
        &["logits", "-m", missing, "--tokens-file", missing, "-o", out],
        &["tokenize", "-m", missing, "--jsonl"],
        &["detokenize", "--tokenizer", missing, "--jsonl"],
        &["perplexity", "-m", missing, "--file", missing],
        &["importance", "-m", missing, "--file", missing, "-o", out],
        &["bench", "-m", missing],
        &["train", "--config", missing],
        &["data", "prepare", missing, "--tokenizer", missing, "-o", out],
        &["tokenizer", "train", missing, "-o", out],
        &["create-config", "tiny", "-o", p(&inside)],
    ];
    for args in all {
        let said = refused(args);
        assert!(said.contains(missing), "{args:?}: {said}");
    }
    assert_eq!(names(dir.path()), [""; 0]);
}

#[test]
fn what_is_no_file_is_neither_read_nor_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let pipe = dir.path().join("pipe");
    let made = std::process::Command::new("mkfifo").arg(&pipe).status().unwrap();
    assert!(made.success());
    for verb in ["inspect", "verify"] {
        let said = refused(&[verb, p(dir.path())]);
        assert!(said.contains(p(dir.path())) && said.contains("directory"), "{said}");
    }
    let Some(source) = shared("reference/llama_untied") else { return };
    for target in [pipe.as_path(), dir.path()] {
        let said = refused(&["convert", p(&source), "-o", p(target)]);
        assert!(said.contains(p(target)) && said.contains("not a file"), "{said}");
    }
    assert_eq!(names(dir.path()), ["pipe"]);
    assert!(!std::fs::metadata(&pipe).unwrap().is_file());

    let (model, ids, out) = (dir.path().join("m.llm"), dir.path().join("ids.json"), pipe.as_path());
    ok(&["convert", p(&source), "-o", p(&model)]);
    std::fs::write(&ids, "[1, 2]").unwrap();
    let run = ["-m", p(&model), "--tokens-file", p(&ids)];
    let said = refused(&[&["logits"], &run[..], &["-o", p(out)]].concat());
    assert!(said.contains("not a file"), "{said}");
    assert!(!std::fs::metadata(&pipe).unwrap().is_file());
    let said = refused(&[&["generate"], &run[..], &["-t", "99999"]].concat());
    assert!(said.contains("99999 threads: expected at most 1024"), "{said}");
    ok(&[&["generate"], &run[..], &["-n", "2", "--presence-penalty", "-0.5"]].concat());
}

#[test]
fn counts_that_cannot_be_are_refused_in_one_line() {
    let Some(source) = shared("reference/llama_untied") else { return };
    let dir = tempfile::tempdir().unwrap();
    let (model, ids) = (dir.path().join("m.llm"), dir.path().join("ids.json"));
    ok(&["convert", p(&source), "-o", p(&model)]);
    std::fs::write(&ids, format!("{:?}", vec![1; 100])).unwrap();
    let most = usize::MAX.to_string();
    let generate = ["generate", "-m", p(&model), "--tokens-file", p(&ids)];
    let bench = ["bench", "-m", p(&model), "-r", "1"];
    let all: [(&[&str], &[&str], &str); 12] = [
        (&generate, &["-n", &most], "max_tokens"),
        (&generate, &["-n", "4", "--count", &most], "pages"),
        // Fewer positions than the prompt alone has pages for.
        (&generate, &["-n", "4", "--count", "2", "-c", "10", "--page", "16"], "do not fit"),
        (&generate, &["-n", "4", "--count", "2", "--ngram"], "--count"),
        (&bench, &["-p", &most], "positions together"),
        (&bench, &["-p", "1", "-d", &most], "positions together"),
        (&bench, &["-p", "1", "-n", &most], "positions together"),
        (&bench, &["-p", "9999999999999", "--speculate"], "positions together"),
        (&bench, &["-p", "1", "-n", "1", "-b", &most], "pages"),
        (&bench, &["-p", "8", "-n", "100", "-c", "20"], "-c 20: expected at least 108 positions"),
        (
            &bench,
            &["-p", "8", "-n", "100", "-c", "20", "--speculate"],
            "-c 20: expected at least 108 positions",
        ),
        (&bench, &["--speculate=sorcery"], "replay, none true"),
    ];
    for (verb, more, want) in all {
        let said = refused(&[verb, more].concat());
        assert!(said.contains(want), "{more:?}: {said}");
    }
    // No bound on the tokens: those that the model has room for.
    let report = common::json(&[&generate[..], &["-n", "0", "--ignore-eos", "--json"]].concat());
    let context = common::json(&["inspect", p(&model), "--json"])["metadata"]["model"]["context"].clone();
    let held = report["ids"].as_array().unwrap().len() + 100;
    assert!(context.as_u64().is_some_and(|context| held as u64 >= context), "{held} of {context}");
    assert_eq!(report["reason"], "ContextFull");
}

#[test]
fn other_formats_are_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out.llm");
    for (file, format) in [
        ("data/malformed/gguf/ok-minimal.gguf", "GGUF"),
        ("data/weights/stories260K/stories260K-f32.gguf", "GGUF"),
        ("data/checkpoints/test.pt", "PyTorch"),
        ("data/malformed/pytorch/pickle-runs-code.pt", "PyTorch"),
    ] {
        let Some(file) = shared(file) else { return };
        let said = refused(&["convert", p(&file), "-o", p(&out)]);
        assert!(said.contains(format) && said.contains(p(&file)), "{said}");
        // By its content too, whatever it is called, and where a .llm file is expected.
        let disguised = dir.path().join("model.safetensors");
        std::fs::write(&disguised, std::fs::read(&file).unwrap()).unwrap();
        let said = refused(&["convert", p(&disguised), "-o", p(&out)]);
        assert!(said.contains(format), "{said}");
        let said = refused(&["inspect", p(&file)]);
        assert!(said.contains(p(&file)), "{said}");
        std::fs::remove_file(disguised).unwrap();
        assert_eq!(names(dir.path()), [""; 0]);
    }
}

#[test]
fn damaged_checkpoints_leave_no_file() {
    let Some(malformed) = shared("data/malformed") else { return };
    let Some(config) = shared("reference/llama_untied/config.json") else { return };
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("config.json"), std::fs::read(config).unwrap()).unwrap();
    let mut tried = 0;
    for row in json_lines(&malformed.join("index.jsonl")) {
        let Some(file) = row["file"].as_str().filter(|file| file.starts_with("safetensors/")) else {
            continue;
        };
        let weights = dir.path().join("model.safetensors");
        std::fs::write(&weights, std::fs::read(malformed.join(file)).unwrap()).unwrap();
        let said = refused(&["convert", p(dir.path()), "-o", p(&dir.path().join("out.llm"))]);
        assert!(said.contains(p(dir.path())), "{file}: {said}");
        assert_eq!(names(dir.path()).len(), 2, "{file}");
        tried += 1;
    }
    assert!(tried > 8);
}

#[test]
fn every_damaged_file_is_refused_in_one_line() {
    let bad = Path::new(env!("CARGO_MANIFEST_DIR")).join("../format/golden/bad");
    let mut files: Vec<PathBuf> =
        std::fs::read_dir(bad).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|file| file.extension().is_some_and(|extension| extension == "llm"));
    assert!(files.len() > 50);
    for file in files {
        let expected: serde_json::Value =
            serde_json::from_slice(&std::fs::read(file.with_extension("json")).unwrap()).unwrap();
        // What only a checksum finds is not found by those that do not read the weights.
        let verbs: &[&str] = if expected["by"] == "parse" { &["verify", "inspect"] } else { &["verify"] };
        for verb in verbs {
            let said = refused(&[verb, p(&file)]);
            assert!(said.contains(p(&file)), "{said}");
            // Nothing cannot be mapped, so it does not get as far as the others.
            let empty = std::fs::metadata(&file).unwrap().len() == 0;
            let want = if empty { "the file is empty" } else { expected["message"].as_str().unwrap() };
            assert!(said.contains(want), "{said}, expected {want}");
        }
        if expected["by"] == "parse" {
            let said = refused(&["generate", "-m", p(&file), "-p", "text"]);
            assert!(said.contains(p(&file)), "{said}");
        }
    }
}

/// Interrupts the run of `args` once something is in `dir`, and again until it ends; `temporary` is its directory for
/// temporary files.
fn interrupted(args: &[&str], dir: &Path, temporary: &Path) -> Ran {
    let pipe = Stdio::piped;
    let mut run = command(args);
    let mut child = run.env("TMPDIR", temporary).stdin(pipe()).stdout(pipe()).stderr(pipe()).spawn().unwrap();
    while names(dir).is_empty() {
        assert!(child.try_wait().unwrap().is_none(), "ended before it wrote");
        std::thread::sleep(Duration::from_millis(1));
    }
    while child.try_wait().unwrap().is_none() {
        interrupt(&child);
        std::thread::sleep(Duration::from_millis(20));
    }
    finish(child)
}

#[test]
fn an_interrupted_conversion_leaves_no_file() {
    let (dir, temporary) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let out = dir.path().join("out.llm");
    let args = ["bench", "--random", "llama-8b", "--type", "q4", "-m", p(&out)];
    let ran = interrupted(&args, dir.path(), temporary.path());
    assert_eq!(ran.status, Some(1), "{ran:?}");
    assert!(one_line(&ran).contains("cancelled"), "{ran:?}");
    assert_eq!(names(dir.path()), [""; 0]);
    assert_eq!(names(temporary.path()), [""; 0]);
}

#[test]
fn an_interrupted_bench_leaves_no_temporary_file() {
    let Some(source) = shared("reference/llama_untied") else { return };
    let (dir, temporary) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let model = dir.path().join("m.llm");
    ok(&["convert", p(&source), "-o", p(&model)]);
    for more in [vec![], vec!["--speculate"]] {
        let args = [&["bench", "-m", p(&model), "-p", "8", "-r", "100000"][..], &more].concat();
        let ran = interrupted(&args, temporary.path(), temporary.path());
        assert_eq!(ran.status, Some(1), "{ran:?}");
        assert!(one_line(&ran).contains("cancelled"), "{ran:?}");
        assert_eq!(names(temporary.path()), [""; 0]);
    }
}

/// A server that takes a question and never answers: its address, and a word for each question.
fn mute() -> (String, std::sync::mpsc::Receiver<()>) {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}/text.txt", listener.local_addr().unwrap());
    let (asked, questions) = std::sync::mpsc::channel();
    // The thread and the open connections end with the test's process.
    std::thread::spawn(move || {
        let mut open = Vec::new();
        for stream in listener.incoming() {
            open.push(stream);
            let _ = asked.send(()); // nobody may wait for it any more
        }
    });
    (address, questions)
}

/// Every file of a directory with its bytes.
fn contents(dir: &Path) -> Vec<(String, Vec<u8>)> {
    let mut all: Vec<_> =
        names(dir).into_iter().map(|name| (name.clone(), std::fs::read(dir.join(name)).unwrap())).collect();
    all.sort();
    all
}

#[test]
fn interrupted_preparing_and_training_of_a_tokenizer_leave_what_was_there() {
    let dir = tempfile::tempdir().unwrap();
    let (text, tokenizer, data) =
        (dir.path().join("a.txt"), dir.path().join("tokenizer.json"), dir.path().join("data"));
    std::fs::write(&text, "a text of some lines\n".repeat(200)).unwrap();
    ok(&["tokenizer", "train", p(&text), "-o", p(&tokenizer), "--size", "280"]);
    ok(&["data", "prepare", p(&text), "--tokenizer", p(&tokenizer), "-o", p(&data)]);
    let before = contents(&data);
    let tokens = std::fs::read(&tokenizer).unwrap();
    for signal in ["-INT", "-TERM"] {
        let (address, questions) = mute();
        // A whole text, and one that does not come: the work is in the middle.
        let (text, address) = (p(&text), address.as_str());
        let prepare = ["data", "prepare", text, address, "--tokenizer", p(&tokenizer), "-o", p(&data)];
        let train = ["tokenizer", "train", text, address, "-o", p(&tokenizer)];
        for args in [&prepare[..], &train] {
            let child = common::start(args);
            questions.recv_timeout(Duration::from_secs(60)).unwrap();
            let parts = names(&data).iter().filter(|name| name.ends_with(".part")).count();
            assert_eq!(parts, if args[0] == "data" { 2 } else { 0 });
            let clock = std::time::Instant::now();
            common::signal(&child, signal);
            let ran = finish(child);
            assert!(clock.elapsed() < Duration::from_secs(5), "{args:?}: {:?}", clock.elapsed());
            assert_eq!((ran.status, ran.out.as_str()), (Some(1), ""), "{ran:?}");
            assert!(one_line(&ran).contains("stopped: no"), "{ran:?}");
            assert!(contents(&data) == before && std::fs::read(&tokenizer).unwrap() == tokens, "{args:?}");
            let mut left = names(dir.path());
            left.sort();
            assert_eq!(left, ["a.txt", "data", "tokenizer.json"]);
        }
    }
}

#[test]
fn an_interrupted_merge_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    // A configuration that never ends, so that the work is in the middle; and what it may have written.
    let pipe = at("base/config.json");
    std::fs::create_dir_all(at("base")).unwrap();
    std::fs::create_dir_all(at(".out.part/inside")).unwrap();
    std::fs::write(at(".out.part/model.safetensors"), "half").unwrap();
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let child = common::start(&["merge", p(&at("base")), p(&at("adapter")), "-o", p(&at("out"))]);
    // It opens for writing once the command reads.
    let (opened, reads) = std::sync::mpsc::channel();
    std::thread::spawn(move || opened.send(std::fs::OpenOptions::new().write(true).open(pipe).unwrap()));
    let _open = reads.recv_timeout(Duration::from_secs(60)).unwrap();
    interrupt(&child);
    let ran = finish(child);
    assert_eq!(ran.status, Some(1), "{ran:?}");
    assert!(one_line(&ran).contains("stopped: nothing was written"), "{ran:?}");
    assert_eq!(names(dir.path()), ["base"]);
}

#[test]
fn a_name_that_no_file_can_have_is_refused_before_the_work() {
    let Some(source) = shared("reference/llama_untied") else { return };
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| format!("{}/{name}", p(dir.path()));
    let missing = at("missing");
    for name in ["name.llm/", "name.llm/.", ".."] {
        let (out, missing) = (at(name), missing.as_str());
        let out = out.as_str();
        for args in [
            &["convert", p(&source), "-o", out][..],
            // What is read does not matter any more.
            &["convert", missing, "-o", out],
            &["tokenizer", "train", missing, "-o", out],
            &["create-config", "tiny", "-o", out],
        ] {
            let said = refused(args);
            assert!(said.contains(out) && said.contains("expected the name of a file"), "{args:?}: {said}");
        }
    }
    assert_eq!(names(dir.path()), [""; 0]);
}

#[test]
fn a_draft_of_another_vocabulary_is_refused_with_the_first_difference() {
    let dir = tempfile::tempdir().unwrap();
    let (one, two) = (dir.path().join("one"), dir.path().join("two"));
    for place in [&one, &two] {
        std::fs::create_dir(place).unwrap();
        if common::stories(place).is_none() {
            return;
        }
    }
    let out = dir.path().join("out.llm");
    let convert = ["convert", p(&one), "-o", p(&out), "--draft"];
    ok(&[&convert[..], &[p(&two)]].concat());
    // One piece is another.
    let path = two.join("tokenizer.model");
    let mut bytes = std::fs::read(&path).unwrap();
    let piece = "▁upon".as_bytes();
    let place = bytes.windows(piece.len()).position(|window| window == piece).unwrap();
    bytes[place + piece.len() - 1] = b'm';
    std::fs::write(&path, bytes).unwrap();
    let said = refused(&[&convert[..], &[p(&two)]].concat());
    for words in [p(&one), p(&two), "upom\" here", "upon\" there", "expected one that"] {
        assert!(said.contains(words), "{words}: {said}");
    }
    let Some(other) = shared("reference/llama_untied") else { return };
    let said = refused(&[&convert[..], &[p(&other)]].concat());
    assert!(said.contains("its vocabulary has 320 ids, the model's 512"), "{said}");
}

#[test]
fn a_reader_that_is_gone_is_no_fault() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../format/golden/ok");
    let file = std::fs::read_dir(golden).unwrap().map(|entry| entry.unwrap().path());
    let file = file.into_iter().find(|file| file.extension().is_some_and(|e| e == "llm")).unwrap();
    let mut runs = vec![
        vec!["inspect", p(&file)],
        vec!["inspect", p(&file), "--json"],
        vec!["inspect", p(&file), "--tensors"],
        vec!["verify", p(&file)],
        vec!["train", "--show-config"],
        vec!["--help"],
    ];
    let dir = tempfile::tempdir().unwrap();
    let (model, ids) = (dir.path().join("model.llm"), dir.path().join("ids.json"));
    std::fs::write(&ids, "[1]").unwrap();
    if let Some(source) = common::stories(dir.path()) {
        ok(&["convert", p(&source), "-o", p(&model)]);
        runs.push(vec!["convert", p(dir.path()), "-o", p(&model)]);
        runs.push(vec!["generate", "-m", p(&model), "-p", "Once", "-n", "400"]);
        runs.push(vec!["generate", "-m", p(&model), "--tokens-file", p(&ids), "-n", "2", "--json"]);
    }
    for args in runs {
        // The ends that nobody reads are closed before the command starts.
        for both in [false, true] {
            let closed = || std::process::Stdio::from(std::io::pipe().unwrap().1);
            let mut run = command(&args);
            run.stdout(closed());
            if both {
                run.stderr(closed());
            }
            let output = run.output().unwrap();
            assert_eq!(
                output.status.code(),
                Some(0),
                "{args:?}: {}",
                String::from_utf8_lossy(&output.stderr)
            );
            assert!(output.stderr.is_empty() || args[0] == "convert", "{args:?}: {output:?}");
        }
    }
}
