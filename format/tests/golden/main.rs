//! The golden files are what the generator makes, open with what is written beside them, or are refused with the
//! reason written beside them; and nothing that is done to them makes the reader panic.

mod make;
#[path = "../../../fuzz/src/reader.rs"]
mod reader;

use llm_format::{ErrorKind, File, quant};
use serde_json::Value;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("golden")
}

/// The `.llm` files of a folder, by name.
fn files(folder: &str) -> Vec<(String, Vec<u8>)> {
    let mut out = Vec::new();
    for entry in std::fs::read_dir(root().join(folder)).expect("the golden folder") {
        let path = entry.expect("an entry").path();
        if path.extension().is_some_and(|e| e == "llm") {
            let name = path.file_stem().expect("a name").to_string_lossy().into_owned();
            out.push((name, std::fs::read(&path).expect("a golden file")));
        }
    }
    out.sort();
    assert!(!out.is_empty());
    out
}

fn beside(folder: &str, name: &str) -> Vec<u8> {
    std::fs::read(root().join(folder).join(format!("{name}.json"))).expect("its description")
}

fn verify(file: &File<'_>) -> llm_format::Result<()> {
    file.verify(&mut |_, _| ControlFlow::Continue(()))
}

#[test]
fn the_files_are_those_of_the_generator() {
    let made = make::all();
    for (name, bytes) in &made {
        let stored = std::fs::read(root().join(name)).unwrap_or_default();
        assert!(
            stored == *bytes,
            "{name} differs; cargo run -p llm-format --example golden, and look at the change"
        );
    }
    let stored = ["ok", "bad"].map(|f| std::fs::read_dir(root().join(f)).expect("a folder").count());
    assert_eq!(stored[0] + stored[1], made.len(), "no file that the generator does not make");
}

#[test]
fn good_files_open_with_the_contents_beside_them() {
    for (name, bytes) in files("ok") {
        let file = File::parse(&bytes).unwrap_or_else(|e| panic!("{name}: {e}"));
        verify(&file).unwrap_or_else(|e| panic!("{name}: {e}"));
        let expected: Value = serde_json::from_slice(&beside("ok", &name)).expect("JSON");
        let identity: String = file.identity().iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(expected["identity"], identity.as_str(), "{name}");
        assert_eq!(expected["metadata"].as_object(), Some(file.metadata()), "{name}");
        let tensors = expected["tensors"].as_array().expect("tensors");
        assert_eq!(tensors.len(), file.tensors().len(), "{name}");
        for (expected, tensor) in tensors.iter().zip(file.tensors()) {
            assert_eq!(expected["name"], tensor.name.as_str(), "{name}");
            assert_eq!(expected["type"], tensor.ty.name(), "{name}");
            let values = expected["values"].as_array().expect("values");
            let values: Vec<f32> = values.iter().map(|v| v.as_f64().expect("a number") as f32).collect();
            let data = file.data(tensor);
            let found: Vec<f32> = match tensor.shape[..] {
                [.., rows, cols] => data
                    .chunks_exact(quant::matrix_bytes(tensor.ty, rows, cols).expect("a size") as usize)
                    .flat_map(|m| quant::decode(tensor.ty, m, rows as usize, cols as usize))
                    .collect(),
                _ => data.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
            };
            assert!(values == found, "{name}: {}", tensor.name);
        }
    }
}

#[test]
fn bad_files_are_refused_with_their_reason() {
    for (name, bytes) in files("bad") {
        let refusal: make::Refusal = serde_json::from_slice(&beside("bad", &name)).expect("JSON");
        let (by, error) = match File::parse(&bytes) {
            Err(error) => ("parse", error),
            Ok(file) => ("verify", verify(&file).err().unwrap_or_else(|| panic!("{name} is accepted"))),
        };
        assert_eq!((by, error.kind.name()), (&*refusal.by, &*refusal.kind), "{name}: {error}");
        assert!(error.message.contains(&refusal.message), "{name}: {error}, expected {:?}", refusal.message);
    }
}

#[test]
fn nothing_done_to_a_golden_file_makes_the_reader_panic() {
    for (index, (_, bytes)) in files("ok").into_iter().chain(files("bad")).enumerate() {
        reader::check(&bytes);
        let mut state = 77 + index as u64;
        let mut next = |below: usize| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) as usize % below.max(1)
        };
        // Most changes go to the front, where the numbers are.
        for _ in 0..200 {
            let mut changed = bytes.clone();
            for _ in 0..1 + next(3) {
                let near = if next(4) == 0 { changed.len() } else { changed.len().min(512) };
                let at = next(near);
                let value = [0, 1, 0x7f, 0x80, 0xff, next(256) as u8][next(6)];
                if let Some(byte) = changed.get_mut(at) {
                    *byte = value;
                }
            }
            if next(8) == 0 {
                changed.truncate(next(changed.len()));
            }
            reader::check(&changed);
        }
    }
}

#[test]
fn an_error_has_a_place() {
    for (name, bytes) in files("bad") {
        if let Err(error) = File::parse(&bytes) {
            assert!(error.offset.is_some_and(|at| at <= bytes.len() as u64), "{name}: {error:?}");
            assert_ne!(error.kind, ErrorKind::Io);
        }
    }
}
