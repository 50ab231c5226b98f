//! The shared test material: tiny reference checkpoints, texts, tokenizer vectors, damaged files.
//!
//! It lies outside the repository, in the directory that `LIBLLM_SHARED` names (default: `shared` beside the
//! checkout). A test that needs it asks [`shared`]; where it is missing the test says so on standard error in a
//! line that begins with `not run:` and returns. `.ci/run` fails if there is such a line.

use std::io::Write;
use std::path::{Path, PathBuf};

/// The path of `sub` inside the shared material, or `None`, told as not run, where there is none.
///
/// # Panics
/// If the material is there but `sub` is not: a test that names a wrong path must not pass.
pub fn shared(sub: &str) -> Option<PathBuf> {
    let root = match std::env::var_os("LIBLLM_SHARED") {
        Some(dir) => PathBuf::from(dir),
        None => Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared"),
    };
    if !root.is_dir() {
        not_run(&format!("{sub}: no shared test material at {}", root.display()));
        return None;
    }
    let path = root.join(sub);
    assert!(path.exists(), "{} is missing from the shared test material", path.display());
    Some(path)
}

/// Says that a test did not run, past the test runner's capture, in the form `.ci/run` looks for.
pub fn not_run(why: &str) {
    // Not eprintln!: the runner would swallow it for a test that passes. In one piece and on a line of its own, for
    // other tests print meanwhile.
    let _ = std::io::stderr().write_all(format!("\nnot run: 1 ({why})\n").as_bytes());
}

/// Says what this machine lacks, past the test runner's capture. It is no `not run:` line: nothing that can be installed
/// would bring it, and tests that run hold the same claims elsewhere.
pub fn lacks(what: &str) {
    let _ = std::io::stderr().write_all(format!("\nthis machine lacks {what}\n").as_bytes());
}

/// The rows of a JSON-lines file, split at line feeds only (the strings may hold U+2028 and U+0085).
pub fn json_lines(path: &Path) -> Vec<serde_json::Value> {
    let text = std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let rows = text.split('\n').filter(|line| !line.is_empty());
    rows.map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{}: {e}", path.display())))
        .collect()
}
