//! What the shared library exports: the functions of the header, all of them, nothing else; and every one of them
//! answers NULL and foreign handles with a status.
#![cfg(target_os = "linux")]

#[path = "c/support.rs"]
mod support;

use std::fmt::Write as _;
use std::process::Command;

use support::{Function, Library, compiler, root, run};

fn header() -> Vec<Function> {
    support::functions(&std::fs::read_to_string(root().join("include/llm.h")).unwrap())
}

#[test]
fn the_library_exports_the_headers_functions_and_nothing_else() {
    let library = Library::find();
    let Some(nm) = compiler("nm") else { return };
    let listed = run(Command::new(nm).args(["-D", "--defined-only"]).arg(library.file()));
    let mut exports: Vec<_> = listed.lines().filter_map(|line| line.split(' ').nth(2)).collect();
    exports.sort_unstable();
    let mut declared: Vec<_> = header().into_iter().map(|f| f.name).collect();
    declared.sort_unstable();
    assert_eq!(exports, declared);
    support::committed("abi/exports.txt", &(exports.join("\n") + "\n"));
}

#[test]
fn the_soname_carries_major_and_minor_version() {
    let library = Library::find();
    let Some(readelf) = compiler("readelf") else { return };
    let dynamic = run(Command::new(readelf).arg("-d").arg(library.file()));
    assert!(dynamic.contains(&format!("[{}]", support::SONAME)), "{dynamic}");
}

/// Calls every function once with NULL and 0 for everything, then with a handle of the wrong class for every handle,
/// once with real outputs and once without.
#[test]
fn every_function_answers_null_and_foreign_handles() {
    let Some(cc) = compiler("gcc").or_else(|| compiler("clang")) else { return };
    let library = Library::find();
    let functions = header();
    let mut program = String::from(
        "#include <stdio.h>\n#include <string.h>\n#include <llm.h>\n\
         static union { void *pointer; unsigned long long number; char bytes[8192]; } room;\n\
         int main(void) {\nllm_chat *chat = NULL;\nllm_cancel *cancel = NULL;\n\
         llm_chat_new(&chat);\nllm_cancel_new(&cancel);\n",
    );
    for (pass, argument) in [("null", null as fn(&str) -> String), ("foreign", foreign), ("lost", lost)] {
        for f in &functions {
            let arguments: Vec<_> = f.parameters.iter().map(|p| argument(p)).collect();
            let call = format!("{}({})", f.name, arguments.join(", "));
            program.push_str("memset(&room, 0, sizeof room);\n");
            match f.returns.as_str() {
                "void" => writeln!(program, "{call}; puts(\"{pass} {} void\");", f.name),
                "llm_status" => writeln!(program, "printf(\"{pass} {} %d\\n\", (int){call});", f.name),
                _ => writeln!(program, "(void){call}; puts(\"{pass} {} value\");", f.name),
            }
            .unwrap();
        }
    }
    program.push_str("llm_chat_free(chat);\nllm_cancel_free(cancel);\nreturn 0; }\n");
    let source = library.dir.path().join("nulls.c");
    std::fs::write(&source, program).unwrap();
    let binary = library.compile(&cc, &source, "nulls", &[]);
    let answers = run(&mut Command::new(binary));
    let lines: Vec<Vec<&str>> = answers.lines().map(|line| line.split(' ').collect()).collect();
    assert_eq!(lines.len(), 3 * functions.len());
    for line in lines {
        let [pass, name, answer] = line[..] else { panic!("unexpected line {line:?}") };
        let Ok(status) = answer.parse::<i32>() else { continue };
        let takes_pointers =
            functions.iter().any(|f| f.name == name && f.parameters.iter().any(|p| p.contains('*')));
        match (pass, takes_pointers) {
            _ if name == "llm_error_code" => assert_eq!(status, 0, "no error is LLM_OK"),
            ("null", true) => assert_eq!(status, -2, "{name} of NULL"),
            (_, true) if makes_from_nothing(name) => assert!((-29..=0).contains(&status), "{pass} {name}"),
            (_, true) => assert!((-29..0).contains(&status), "{pass} {name} answers {status}"),
            _ => assert!((-29..=2).contains(&status), "{pass} {name} answers {status}"),
        }
    }
}

/// Functions that succeed with outputs alone, or on the two handles the program has.
fn makes_from_nothing(name: &str) -> bool {
    name.ends_with("_new") || name.starts_with("llm_capability") || name == "llm_template_compile"
}

fn null(parameter: &str) -> String {
    if parameter.contains('*') || parameter.contains("_fn ") { "NULL".to_owned() } else { "0".to_owned() }
}

/// A chat where a handle of another class is wanted, a cancel handle where a chat is; room for everything else.
fn foreign(parameter: &str) -> String {
    match parameter.matches('*').count() {
        1 if parameter.contains("llm_chat ") => "(void *)cancel".to_owned(),
        1 if is_handle(parameter) => "(void *)chat".to_owned(),
        1 | 2 => "(void *)&room".to_owned(),
        _ => null(parameter),
    }
}

/// The same handles, but no outputs.
fn lost(parameter: &str) -> String {
    if is_handle(parameter) && parameter.matches('*').count() == 1 {
        foreign(parameter)
    } else {
        null(parameter)
    }
}

/// Whether a parameter's type is one of the opaque handles.
fn is_handle(parameter: &str) -> bool {
    let plain = [
        "llm_token ",
        "llm_event ",
        "llm_perf ",
        "llm_model_info ",
        "llm_sampling_params ",
        "llm_kv_stats ",
        "llm_session_stats ",
        "llm_memory_plan ",
        "llm_memory_use ",
        "llm_device_info ",
        "llm_snapshot_info ",
    ];
    parameter.contains("llm_") && !plain.iter().any(|p| parameter.contains(p))
}
