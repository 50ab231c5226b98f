//! The committed header is what the sources say, and every C and C++ dialect takes it.
//!
//! `LLM_BLESS=1` writes include/llm.h and abi/layout.txt in place of comparing.

#[path = "c/support.rs"]
mod support;

use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;

use support::{compiler, root, run};

/// The files of src/ffi in the order a reader of the header wants them.
const SOURCES: &[&str] = &[
    "types",
    "library",
    "error",
    "buffer",
    "cancel",
    "runtime",
    "device",
    "model",
    "file",
    "tokenizer",
    "text_stream",
    "chat",
    "template",
    "kv",
    "session",
    "session_pool",
    "score",
    "adapter",
    "plan",
    "sampler",
    "snapshot",
    "constraint",
    "speculation",
    "generation",
    "chosen",
    "batch",
];

fn generate() -> String {
    let config = cbindgen::Config::from_file(root().join("cbindgen.toml")).expect("cbindgen.toml");
    let mut builder = cbindgen::Builder::new().with_config(config);
    for source in SOURCES {
        builder = builder.with_src(root().join(format!("src/ffi/{source}.rs")));
    }
    let mut text = Vec::new();
    builder.generate().expect("cbindgen reads src/ffi").write(&mut text);
    tidy(&String::from_utf8(text).expect("a header in UTF-8"))
}

/// cbindgen's comments as C89 takes them and as people write them; the constants close together.
fn tidy(text: &str) -> String {
    let text = text.replace("#endif // __cplusplus", "#endif").replace("#endif  // __cplusplus", "#endif");
    let text = text.replace("}  // extern \"C\"", "}");
    let mut lines: Vec<String> = Vec::new();
    let mut comment: Option<Vec<&str>> = None;
    for line in text.lines() {
        let indent = &line[..line.find("/*").unwrap_or_else(|| line.find(" */").unwrap_or(0))];
        match (&mut comment, line.trim()) {
            (None, "/*") => comment = Some(Vec::new()),
            (Some(_), "*/") => match comment.take().unwrap_or_default().as_slice() {
                [one] => lines.push(format!("{indent}/* {one} */")),
                [first, more @ ..] => {
                    lines.push(format!("{indent}/* {first}"));
                    lines.extend(more.iter().map(|line| format!("{indent} * {line}").trim_end().to_owned()));
                    lines.last_mut().expect("a line was just pushed").push_str(" */");
                }
                [] => {}
            },
            (Some(comment), line) => comment.push(line),
            (None, "") if lines.last().is_some_and(|last| last.is_empty()) => {}
            (None, _) => lines.push(line.to_owned()),
        }
    }
    let mut tidy = String::new();
    for (i, line) in lines.iter().enumerate() {
        let next = |n: usize| lines.get(i + n).map_or("", String::as_str);
        let between_constants = line.is_empty()
            && i > 0
            && lines[i - 1].starts_with("#define LLM_")
            && next(1).starts_with("/* ")
            && next(2).starts_with("#define LLM_")
            && family(&lines[i - 1]) == family(next(2));
        if !between_constants {
            tidy.push_str(line);
            tidy.push('\n');
        }
    }
    tidy
}

/// Constants of one family: statuses, or those with the same second word.
fn family(line: &str) -> &str {
    let name = line.split(' ').nth(1).unwrap_or_default();
    let families = [
        "LLM_VERSION",
        "LLM_CONTROL",
        "LLM_CAPABILITY",
        "LLM_DETAIL",
        "LLM_LOG",
        "LLM_LOAD",
        "LLM_VERIFY",
        "LLM_MODEL",
        "LLM_ENCODE",
        "LLM_DECODE",
        "LLM_SPECIAL",
        "LLM_TOKEN",
        "LLM_STREAM",
        "LLM_RENDER",
        "LLM_DETERMINISM",
        "LLM_KV_TYPE",
        "LLM_TRIM",
        "LLM_WANT",
        "LLM_EVICTION",
        "LLM_EVENT",
        "LLM_REASON",
        "LLM_STAGE",
        "LLM_PARSE",
        "LLM_POOLING",
        "LLM_ADAPTERS",
    ];
    families.into_iter().find(|family| name.starts_with(family)).unwrap_or("LLM_")
}

#[test]
fn the_committed_header_is_generated_from_the_sources() {
    support::committed("include/llm.h", &generate());
}

#[test]
fn every_file_of_the_interface_is_in_the_header() {
    let inner = ["mod", "callback", "float", "guard", "handle", "plain", "ptr"];
    for entry in std::fs::read_dir(root().join("src/ffi")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        let Some(name) = name.strip_suffix(".rs") else { continue };
        assert!(inner.contains(&name) || SOURCES.contains(&name), "src/ffi/{name}.rs is in no list");
    }
}

#[test]
fn every_dialect_of_c_and_cpp_takes_the_header() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("llm.h"), generate()).unwrap();
    let (c, cpp) = (dir.path().join("t.c"), dir.path().join("t.cpp"));
    let text = "#include <llm.h>\nint main(void) { return LLM_OK; }\n";
    std::fs::write(&c, text).unwrap();
    std::fs::write(&cpp, text).unwrap();
    for (cc, cxx) in [("gcc", "g++"), ("clang", "clang++")] {
        if let Some(cc) = compiler(cc) {
            for std in ["c89", "c99", "c11", "c17"] {
                let mut command = Command::new(&cc);
                command.arg(format!("-std={std}")).args(["-Wstrict-prototypes", "-Wc++-compat"]);
                check(command, &c);
            }
        }
        if let Some(cxx) = compiler(cxx) {
            for std in ["c++98", "c++11", "c++14", "c++17", "c++20"] {
                let mut command = Command::new(&cxx);
                command.arg(format!("-std={std}"));
                check(command, &cpp);
            }
        }
    }
}

fn check(mut command: Command, file: &Path) {
    command.args(["-Wall", "-Wextra", "-pedantic", "-Werror", "-fsyntax-only", "-I"]);
    run(command.arg(file.parent().unwrap()).arg(file));
}

/// A C program prints size and offset of every struct member; the list is committed.
#[test]
fn no_struct_member_moves() {
    let Some(cc) = compiler("gcc").or_else(|| compiler("clang")) else { return };
    let header = generate();
    let mut program = String::from(
        "#include <stdio.h>\n#include <llm.h>\n#define M(s, m) \
        printf(\"%s.%s size %u offset %u\\n\", #s, #m, (unsigned)sizeof(((s *)0)->m), (unsigned)offsetof(s, m));\n\
        int main(void) {\n",
    );
    for (name, members) in support::structs(&header) {
        writeln!(program, "printf(\"{name} size %u\\n\", (unsigned)sizeof({name}));").unwrap();
        for member in &members {
            writeln!(program, "M({name}, {member})").unwrap();
        }
    }
    program.push_str("return 0; }\n");
    let dir = tempfile::tempdir().unwrap();
    let (source, binary) = (dir.path().join("layout.c"), dir.path().join("layout"));
    std::fs::write(&source, program).unwrap();
    std::fs::write(dir.path().join("llm.h"), header).unwrap();
    run(Command::new(cc).arg("-I").arg(dir.path()).arg(&source).arg("-o").arg(&binary));
    let layout = run(&mut Command::new(&binary));
    no_holes(&layout);
    support::committed("abi/layout.txt", &layout);
}

/// Members follow each other without padding, which would carry unset bytes across the interface.
fn no_holes(layout: &str) {
    let (mut whole, mut next) = (0, 0);
    for line in layout.lines() {
        let number = |word: &str| -> Option<u32> {
            let mut words = line.split(' ').skip_while(|w| *w != word);
            words.nth(1).map(|n| n.parse().unwrap())
        };
        match (number("size"), number("offset")) {
            (Some(size), Some(offset)) => {
                assert_eq!(offset, next, "a hole before {line}");
                next = offset + size;
            }
            (Some(size), None) => {
                assert_eq!(whole, next, "a hole at the end of the struct before {line}");
                (whole, next) = (size, 0);
            }
            _ => panic!("unexpected line {line}"),
        }
    }
    assert_eq!(whole, next, "a hole at the end of the last struct");
}
