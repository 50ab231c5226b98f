//! A file cut anywhere or with any bit flipped is refused: at once where structure shows it, else by verification.

use llm_format::{ErrorKind, File, Index, NewSection, TensorPlan, Writer, header, kind, quant::Type};
use serde_json::{Map, json};
use std::io::Cursor;
use std::ops::ControlFlow;

/// A small file with every kind of part: an unknown section, a stacked matrix, a vector.
fn small() -> Vec<u8> {
    let metadata = json!({ "name": "small", "nested": { "list": [1, 2.5, null, true] } });
    let extra = NewSection { kind: 77, required: false, data: vec![1, 2, 3] };
    let plan = [
        TensorPlan { name: "stack".into(), ty: Type::Q4, shape: vec![2, 1, 5] },
        TensorPlan { name: "norm".into(), ty: Type::F32, shape: vec![3] },
    ];
    let out = Cursor::new(Vec::new());
    let mut writer =
        Writer::new(out, metadata.as_object().unwrap_or(&Map::new()), vec![extra], &plan).expect("a plan");
    writer.append_values(0, &[0.5, -1.0, 2.0, 0.0, 0.25, 1.0, 1.0, -3.0, 0.125, 9.0]).expect("a stack");
    writer.append_values(1, &[1.0, 2.0, 3.0]).expect("a vector");
    writer.complete().expect("all is there").0.into_inner()
}

fn verify(bytes: &[u8]) -> Result<(), llm_format::Error> {
    File::parse(bytes)?.verify(&mut |_, _| ControlFlow::Continue(()))
}

#[test]
fn the_file_itself_is_accepted() {
    verify(&small()).expect("an undamaged file");
}

#[test]
fn every_truncation_is_refused() {
    let bytes = small();
    for len in 0..bytes.len() {
        let error = File::parse(&bytes[..len]).expect_err("a cut file");
        assert_eq!(error.kind, ErrorKind::BadFormat, "{len} bytes: {error}");
    }
}

#[test]
fn every_flipped_bit_of_the_header_is_refused_on_opening() {
    let bytes = small();
    let header_len = header::FIXED + 3 * header::ENTRY;
    for bit in 0..8 * header_len {
        let mut damaged = bytes.clone();
        damaged[bit / 8] ^= 1 << (bit % 8);
        let error = File::parse(&damaged).expect_err("a damaged header");
        let expected = match bit / 8 {
            0..8 => ErrorKind::BadFormat,
            8..10 => ErrorKind::BadVersion,
            12..16 => error.kind, // another length: too short, too long, or another checksum
            _ => ErrorKind::Checksum,
        };
        assert_eq!(error.kind, expected, "bit {bit}: {error}");
    }
}

#[test]
fn every_flipped_bit_behind_the_header_is_found_by_verification() {
    let bytes = small();
    let header_len = header::FIXED + 3 * header::ENTRY;
    // Every bit up to the tensors, one in 61 of their bytes and padding.
    let front = 8 * header_len..8 * 4096;
    for bit in front.chain((8 * 4096..8 * bytes.len()).step_by(61)) {
        let mut damaged = bytes.clone();
        damaged[bit / 8] ^= 1 << (bit % 8);
        assert!(verify(&damaged).is_err(), "bit {bit}");
    }
}

#[test]
fn the_sections_alone_can_be_verified() {
    let mut bytes = small();
    let index = Index::parse(&bytes).expect("a file");
    index.verify_sections(&bytes).expect("undamaged");
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    index.verify_sections(&bytes).expect("damage in a tensor is not theirs");
    let text = index.section(kind::METADATA).expect("metadata").start;
    bytes[text] ^= 1;
    let error = index.verify_sections(&bytes).expect_err("damaged metadata");
    assert_eq!(error.kind, ErrorKind::Checksum);
    assert_eq!(error.offset, Some(text as u64));
}

#[test]
fn verification_stops_when_told() {
    let bytes = small();
    let file = File::parse(&bytes).expect("a file");
    let mut calls = 0;
    let error = file.verify(&mut |_, _| {
        calls += 1;
        if calls == 2 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    assert_eq!(error.expect_err("stopped").kind, ErrorKind::Cancelled);
    assert_eq!(calls, 2);
    let mut reached = 0;
    file.verify(&mut |done, total| {
        assert_eq!(total, bytes.len() as u64);
        reached = done;
        ControlFlow::Continue(())
    })
    .expect("undamaged");
    assert_eq!(reached, bytes.len() as u64, "progress ends at the whole");
}

#[test]
fn an_index_refuses_to_verify_other_bytes_and_gives_no_data_of_them() {
    let bytes = small();
    let index = Index::parse(&bytes).expect("a file");
    let error = index.verify(&bytes[1..], &mut |_, _| ControlFlow::Continue(())).expect_err("other bytes");
    assert_eq!(error.kind, ErrorKind::Invalid);
    assert!(index.data(&bytes[..100], &index.tensors()[0]).is_empty());
}

#[test]
fn a_kilobyte_of_nested_metadata_is_refused_without_deep_recursion() {
    // A deep list is stopped by serde_json's limit; a wide one costs a few hundred bytes per byte at most.
    for text in [format!("{{\"a\":{}1", "[".repeat(900)), format!("{{\"a\":[{}0]}}", "0,".repeat(400))] {
        let wide = text.ends_with('}');
        let len = text.len();
        let mut metadata = Map::new();
        metadata.insert("name".into(), "x".repeat(len - 11).into());
        let out = Cursor::new(Vec::new());
        let (out, _) = Writer::new(out, &metadata, vec![], &[]).and_then(Writer::complete).expect("a file");
        let mut bytes = out.into_inner();
        let at = Index::parse(&bytes).ok().and_then(|i| i.section(kind::METADATA)).expect("metadata");
        assert_eq!(at.len(), len);
        bytes[at].copy_from_slice(text.as_bytes());
        assert_eq!(File::parse(&bytes).is_ok(), wide);
    }
}

#[test]
fn metadata_nests_127_deep_and_no_deeper() {
    let file = |depth: usize| {
        let mut value = json!({});
        for _ in 1..depth {
            value = json!({ "a": value });
        }
        let metadata = value.as_object().cloned().unwrap_or_default();
        Writer::new(Cursor::new(Vec::new()), &metadata, vec![], &[]).map(|_| ())
    };
    file(127).expect("as deep as allowed");
    assert!(file(128).expect_err("deeper").message.contains("recursion limit"));
}
