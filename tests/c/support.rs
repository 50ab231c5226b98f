//! What the tests of the C interface share: compilers, the built library, the header read back.
#![allow(dead_code)] // each test program uses its part

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The package's directory.
pub fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// Runs a command that must succeed, and gives its standard output.
pub fn run(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{command:?}: {}\n{out}\n{err}", output.status);
    out.into_owned()
}

/// A program of this name that answers `--version`; otherwise the test says that it did not run.
pub fn compiler(name: &str) -> Option<PathBuf> {
    let there = Command::new(name).arg("--version").output().is_ok_and(|o| o.status.success());
    if !there {
        llm_testdata::not_run(&format!("no {name}"));
    }
    there.then(|| PathBuf::from(name))
}

/// Compares `text` with a committed file, or writes it with `LLM_BLESS=1`.
pub fn committed(path: &str, text: &str) {
    let file = root().join(path);
    if std::env::var_os("LLM_BLESS").is_some() {
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(&file, text).unwrap();
    }
    let committed = std::fs::read_to_string(&file).unwrap_or_default();
    assert!(
        committed == text,
        "{path} is not what the sources say; LLM_BLESS=1 writes it, then read the diff"
    );
}

/// A function of the header: its return type, name and parameter types.
#[derive(Debug)]
pub struct Function {
    pub returns: String,
    pub name: String,
    pub parameters: Vec<String>,
}

/// The functions the header declares.
pub fn functions(header: &str) -> Vec<Function> {
    let text = without_comments(header);
    let mut found = Vec::new();
    for statement in text.split(';') {
        let statement = statement.split_whitespace().collect::<Vec<_>>().join(" ");
        let statement = statement.rsplit("{ ").next().unwrap_or_default();
        if statement.contains("typedef") || !statement.contains("llm_") {
            continue;
        }
        let Some((head, tail)) = statement.split_once('(') else { continue };
        let Some(at) = head.rfind("llm_") else { continue };
        let (returns, name) = head.split_at(at);
        let parameters = tail.trim_end_matches(')').split(',').map(str::trim);
        found.push(Function {
            returns: returns.rsplit("#endif").next().unwrap_or_default().trim().to_owned(),
            name: name.to_owned(),
            parameters: parameters.filter(|p| *p != "void").map(str::to_owned).collect(),
        });
    }
    found
}

/// The plain structs of the header with their members.
pub fn structs(header: &str) -> Vec<(String, Vec<String>)> {
    let text = without_comments(header);
    let mut found = Vec::new();
    for part in text.split("typedef struct ").skip(1) {
        let Some((head, rest)) = part.split_once('{') else { continue };
        if head.contains(';') {
            continue;
        }
        let Some((body, tail)) = rest.split_once('}') else { continue };
        let name = tail.split(';').next().unwrap_or_default().trim().to_owned();
        let members = body.split(';').filter_map(|m| {
            let m = m.trim().split('[').next()?;
            m.rsplit([' ', '*', '\n']).next().filter(|m| !m.is_empty()).map(str::to_owned)
        });
        found.push((name, members.collect()));
    }
    found
}

fn without_comments(header: &str) -> String {
    let mut text = String::new();
    let mut rest = header;
    while let Some((before, after)) = rest.split_once("/*") {
        text.push_str(before);
        rest = after.split_once("*/").map_or("", |(_, after)| after);
    }
    text.push_str(rest);
    let lines = text.lines().filter(|line| !line.trim_start().starts_with('#'));
    lines.collect::<Vec<_>>().join("\n")
}

/// Name the loader looks for.
pub const SONAME: &str =
    concat!("libllm.so.", env!("CARGO_PKG_VERSION_MAJOR"), ".", env!("CARGO_PKG_VERSION_MINOR"));

/// The shared library cargo built beside this test, under all its names in a directory of its own.
pub struct Library {
    /// Holds libllm.so and libllm.so.MAJOR.MINOR.
    pub dir: tempfile::TempDir,
}

impl Library {
    /// Finds the library; cargo builds it with the package's tests.
    pub fn find() -> Self {
        let exe = std::env::current_exe().unwrap();
        let profile = exe.ancestors().find(|dir| dir.join("deps").is_dir()).expect("a target directory");
        let built = profile.join("deps/libllm.so");
        assert!(built.is_file(), "no {}: run `cargo build --lib`", built.display());
        let dir = tempfile::tempdir().unwrap();
        // A copy: cargo may replace the original while the test runs.
        let copy = dir.path().join(SONAME);
        std::fs::copy(&built, &copy).unwrap();
        std::os::unix::fs::symlink(&copy, dir.path().join("libllm.so")).unwrap();
        Self { dir }
    }

    /// The file.
    pub fn file(&self) -> PathBuf {
        self.dir.path().join(SONAME)
    }

    /// Compiles a C program against the header and this library.
    pub fn compile(&self, cc: &Path, source: &Path, name: &str, more: &[&str]) -> PathBuf {
        let binary = self.dir.path().join(name);
        let mut command = Command::new(cc);
        command.args([
            "-std=c99",
            "-O1",
            "-g",
            "-Wall",
            "-Wextra",
            "-pedantic",
            "-Werror",
            "-D_POSIX_C_SOURCE=200809L",
        ]);
        command.arg("-I").arg(root().join("include")).arg(source).arg("-o").arg(&binary);
        command.arg("-L").arg(self.dir.path()).arg("-lllm").arg("-pthread").args(more);
        let mut rpath = OsStr::new("-Wl,-rpath,").to_owned();
        rpath.push(self.dir.path());
        run(command.arg(rpath));
        binary
    }
}
