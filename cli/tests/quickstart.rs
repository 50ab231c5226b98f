//! The commands that the quickstart prints are the ones that give its result.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// Runs `libllm` in `dir` with the arguments of a shell line, under a umask that leaves nothing to others.
fn libllm(dir: &Path, args: &str) -> Output {
    let line = format!("umask 027; exec \"$LIBLLM\" {args}");
    let mut shell = Command::new("sh");
    shell.args(["-c", &line]).current_dir(dir).env("LIBLLM", env!("CARGO_BIN_EXE_libllm"));
    shell.output().unwrap()
}

/// What a run of `libllm` printed that must succeed.
fn printed(dir: &Path, args: &str) -> String {
    let out = libllm(dir, args);
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
fn the_printed_commands_give_the_files_and_the_text_of_the_quickstart_and_other_runs_stay() {
    let dir = tempfile::tempdir().unwrap();
    let first = printed(dir.path(), "quickstart --dir 'the first' --steps 2");
    let place = dir.path().join("the first");
    let kept = dir.path().join("kept");
    std::fs::rename(&place, &kept).unwrap();
    std::fs::create_dir(&place).unwrap();
    for given in ["source.txt", "train.txt", "config.json"] {
        std::fs::copy(kept.join(given), place.join(given)).unwrap();
    }
    let mut text = String::new();
    for line in first.lines() {
        let line = line.trim_start_matches(|c: char| c.is_ascii_digit() || c == '.' || c == ' ');
        if let Some(command) = line.strip_prefix("libllm ") {
            text = printed(dir.path(), command);
        }
    }
    assert!(!text.trim().is_empty() && first.contains(text.trim_end()), "{text}");
    let made = files(&kept);
    assert!(made.iter().any(|f| f.ends_with("run/step-00000002/model.safetensors")), "{made:?}");
    for file in made {
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            let mode = std::fs::metadata(&file).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o640, "{}: the mode that the umask leaves", file.display());
        }
        // These hold times.
        let timed = ["metrics.jsonl", "report.html"].iter().any(|name| file.ends_with(name))
            || file.parent().is_some_and(|dir| dir.ends_with("events"));
        if !timed {
            let again = place.join(file.strip_prefix(&kept).unwrap());
            assert!(std::fs::read(&file).unwrap() == std::fs::read(&again).unwrap(), "{}", again.display());
        }
    }
    let other = libllm(dir.path(), "quickstart --dir 'the first' --steps 1");
    assert!(!other.status.success(), "a quickstart took the place of another run");
    assert!(place.join("run/step-00000002/model.safetensors").is_file());
}
