//! The commands that the quickstart prints are the ones that give its result.

use std::path::{Path, PathBuf};
use std::process::Command;

/// Runs `libllm` in `dir` with the arguments of a shell line and returns what it printed.
fn libllm(dir: &Path, args: &str) -> String {
    let line = format!("exec \"$LIBLLM\" {args}");
    let mut shell = Command::new("sh");
    shell.args(["-c", &line]).current_dir(dir).env("LIBLLM", env!("CARGO_BIN_EXE_libllm"));
    let out = shell.output().unwrap();
    assert!(out.status.success(), "libllm {args}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).unwrap()
}

fn files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { found.extend(files(&path)) } else { found.push(path) }
    }
    found.sort();
    found
}

#[test]
fn the_printed_commands_give_the_files_and_the_text_of_the_quickstart() {
    let dir = tempfile::tempdir().unwrap();
    let printed = libllm(dir.path(), "quickstart --dir 'the first' --steps 2");
    let place = dir.path().join("the first");
    let kept = dir.path().join("kept");
    std::fs::rename(&place, &kept).unwrap();
    std::fs::create_dir(&place).unwrap();
    for given in ["source.txt", "train.txt", "config.json"] {
        std::fs::copy(kept.join(given), place.join(given)).unwrap();
    }
    let mut text = String::new();
    for line in printed.lines() {
        let line = line.trim_start_matches(|c: char| c.is_ascii_digit() || c == '.' || c == ' ');
        if let Some(command) = line.strip_prefix("libllm ") {
            text = libllm(dir.path(), command);
        }
    }
    assert!(!text.trim().is_empty() && printed.contains(text.trim_end()), "{text}");
    let made = files(&kept);
    assert!(made.iter().any(|f| f.ends_with("run/step-00000002/model.safetensors")), "{made:?}");
    for file in made {
        // Its lines hold times.
        if !file.ends_with("metrics.jsonl") {
            let again = place.join(file.strip_prefix(&kept).unwrap());
            assert!(std::fs::read(&file).unwrap() == std::fs::read(&again).unwrap(), "{}", again.display());
        }
    }
}

#[cfg(unix)]
#[test]
fn every_file_has_the_mode_that_the_umask_leaves() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let line = "umask 027; exec \"$LIBLLM\" quickstart --steps 1 --dir q";
    let mut shell = Command::new("sh");
    shell.args(["-c", line]).current_dir(dir.path()).env("LIBLLM", env!("CARGO_BIN_EXE_libllm"));
    assert!(shell.output().unwrap().status.success());
    for file in files(dir.path()) {
        let mode = std::fs::metadata(&file).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o640, "{}", file.display());
    }
}

#[test]
fn a_quickstart_leaves_the_checkpoints_of_other_runs_alone() {
    let dir = tempfile::tempdir().unwrap();
    libllm(dir.path(), "quickstart --dir q --steps 1");
    let mut other = Command::new(env!("CARGO_BIN_EXE_libllm"));
    let out =
        other.args(["quickstart", "--dir", "q", "--steps", "2"]).current_dir(dir.path()).output().unwrap();
    assert!(!out.status.success());
    assert!(dir.path().join("q/run/step-00000001/model.safetensors").is_file());
    libllm(dir.path(), "quickstart --dir q --steps 1");
}
