//! A conversation over a pipe: questions and commands a line each, answers on standard output.

mod common;

use std::path::{Path, PathBuf};

use common::{Ran, ok, p, refused, run_on};
use serde_json::{Value, json};

const TEMPLATE: &str = "{% for m in messages %}{{ m.content }}\n{% endfor %}";

/// A trained model with a chat template.
fn model(dir: &Path) -> Option<PathBuf> {
    let source = common::stories(dir)?;
    let config = json!({ "chat_template": TEMPLATE });
    std::fs::write(source.join("tokenizer_config.json"), config.to_string()).unwrap();
    let file = dir.join("chat.llm");
    ok(&["convert", p(&source), "-o", p(&file), "--type", "f32"]);
    Some(file)
}

#[track_caller]
fn talk(file: &Path, lines: &[&str], flags: &[&str]) -> Ran {
    let input: String = lines.iter().map(|line| format!("{line}\n")).collect();
    let ran = run_on(&input, &[&["chat", "-m", p(file), "-n", "12"], flags].concat());
    assert_eq!(ran.status, Some(0), "{ran:?}");
    ran
}

fn saved(path: &Path) -> Vec<Value> {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

#[test]
fn a_conversation_is_held_saved_undone_and_loaded() {
    let dir = tempfile::tempdir().unwrap();
    let Some(file) = model(dir.path()) else { return };
    let at = |name: &str| dir.path().join(name);
    let (two, one, again, forked) = (at("two.json"), at("one.json"), at("again.json"), at("forked.json"));
    let (first, second) = ("Once upon a time, Tom had a dog.", "The dog saw a cat.");
    let save = |path: &Path| format!("/save {}", p(path));

    let whole = talk(&file, &[first, second, "/stats", &save(&two), "/undo", &save(&one), "/quit", "x"], &[]);
    let (messages, kept) = (saved(&two), saved(&one));
    let roles: Vec<&str> = messages.iter().map(|m| m["role"].as_str().unwrap()).collect();
    assert_eq!(roles, ["user", "assistant", "user", "assistant"]);
    assert_eq!((&messages[0]["content"], &messages[2]["content"]), (&json!(first), &json!(second)));
    let answer = |message: &Value| message["content"].as_str().unwrap().to_owned();
    assert_eq!(whole.out, format!("{}\n{}\n", answer(&messages[1]), answer(&messages[3])));
    assert_eq!(kept, messages[..2]);
    // The second turn kept the first one's tokens.
    let stats = whole.err.lines().find(|line| line.contains("tokens read")).unwrap();
    assert!(!stats.contains("(0 held)") && stats.contains("12 written"), "{stats}");

    // Loaded elsewhere, the same question gets the same answer; so it does in a branch.
    let load = format!("/load {}", p(&one));
    let more = talk(&file, &[&load, "/fork", second, &save(&again), "/fork 0", second, &save(&forked)], &[]);
    assert_eq!(saved(&again), messages);
    assert_eq!(saved(&forked), messages);
    assert_eq!(more.out, format!("{0}\n{0}\n", answer(&messages[3])));
    assert!(more.err.contains("2 messages read"), "{}", more.err);
}

#[test]
fn a_system_message_lines_that_go_on_and_reset() {
    let dir = tempfile::tempdir().unwrap();
    let Some(file) = model(dir.path()) else { return };
    let (path, empty) = (dir.path().join("talk.json"), dir.path().join("empty.json"));
    let (save, save_empty) = (format!("/save {}", p(&path)), format!("/save {}", p(&empty)));
    let lines = ["Tom had\\", "a ball.", "", &save, "/reset", &save_empty];
    talk(&file, &lines, &["--system", "A story."]);
    let messages = saved(&path);
    assert_eq!(messages.len(), 3);
    assert_eq!(messages[0], json!({"role": "system", "content": "A story."}));
    assert_eq!(messages[1]["content"], "Tom had\na ball.");
    assert_eq!(saved(&empty), messages[..1]);
}

#[test]
fn commands_that_fail_leave_the_conversation_going() {
    let dir = tempfile::tempdir().unwrap();
    let Some(file) = model(dir.path()) else { return };
    let broken = dir.path().join("broken.json");
    std::fs::write(&broken, "{}").unwrap();
    let missing = dir.path().join("missing/talk.json");
    let (load, save) = (format!("/load {}", p(&broken)), format!("/save {}", p(&missing)));
    let lines = ["/undo", "/save", &load, &save, "/fork 7", "/dance", "/stats", "Tom had a ball.", "/help"];
    let ran = talk(&file, &lines, &[]);
    let wanted = [
        "nothing to undo",
        "/save: expected a file's name",
        "broken.json: expected a JSON array of messages",
        p(missing.parent().unwrap()),
        "/fork 7: expected a branch from 0 to 0",
        "/dance: no such command",
        "no answer yet",
        "/reset",
    ];
    let mut rest = ran.err.as_str();
    for want in wanted {
        let at = rest.find(want).unwrap_or_else(|| panic!("{want}: {}", ran.err));
        rest = &rest[at + want.len()..];
    }
    assert!(!ran.out.trim_end_matches('\n').is_empty(), "the question was answered");
}

#[test]
fn a_question_that_does_not_fit_is_taken_back() {
    let dir = tempfile::tempdir().unwrap();
    let Some(file) = model(dir.path()) else { return };
    let path = dir.path().join("talk.json");
    let (long, save) = ("Tom saw a big dog. ".repeat(60), format!("/save {}", p(&path)));
    let ran = talk(&file, &[&long, "Tom had a ball.", &save], &["-c", "64"]);
    assert!(ran.err.contains("64"), "{}", ran.err);
    let messages = saved(&path);
    assert_eq!((messages.len(), &messages[0]["content"]), (2, &json!("Tom had a ball.")));
}

#[test]
fn a_model_without_a_template_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let Some(source) = common::stories(dir.path()) else { return };
    let file = dir.path().join("plain.llm");
    ok(&["convert", p(&source), "-o", p(&file), "--type", "f32"]);
    let said = refused(&["chat", "-m", p(&file)]);
    assert!(
        said.contains(p(&file)) && said.contains("template") && said.contains("libllm generate"),
        "{said}"
    );
}
