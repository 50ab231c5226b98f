//! The writer: a file appears complete or not at all, the same input gives the same bytes, and what the reader would
//! refuse is refused before anything is written.

use llm_format::quant::{self, Type};
use llm_format::{ErrorKind, File, NewSection, TempFile, TensorPlan, Writer, kind};
use proptest::prelude::*;
use serde_json::{Map, Value, json};
use std::io::{Cursor, Read, Seek, SeekFrom, Write};
use std::ops::ControlFlow;

fn object(value: Value) -> Map<String, Value> {
    value.as_object().cloned().unwrap_or_default()
}

fn plan(name: &str, ty: Type, shape: &[u64]) -> TensorPlan {
    TensorPlan { name: name.into(), ty, shape: shape.to_vec() }
}

fn names(folder: &std::path::Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).expect("a folder");
    entries.map(|e| e.expect("an entry").file_name().to_string_lossy().into_owned()).collect()
}

#[test]
fn a_file_appears_under_its_name_only_when_it_is_complete() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("model.llm");
    let mut writer =
        Writer::create(&path, &Map::new(), vec![], &[plan("a", Type::F32, &[4])]).expect("a writer");
    assert!(!path.exists());
    assert!(writer.temp_path().exists() && writer.temp_path().parent() == Some(folder.path()));
    writer.append_values(0, &[1.0, 2.0, 3.0, 4.0]).expect("values");
    assert!(!path.exists());
    let identity = writer.finish().expect("a file");
    assert_eq!(names(folder.path()), ["model.llm"]);
    let bytes = std::fs::read(&path).expect("the file");
    let file = File::parse(&bytes).expect("a good file");
    file.verify(&mut |_, _| ControlFlow::Continue(())).expect("good checksums");
    assert_eq!(file.identity(), identity);
}

#[test]
fn a_dropped_or_failed_writer_leaves_no_file_and_the_old_one_alone() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("model.llm");
    std::fs::write(&path, b"old").expect("an old file");
    let start =
        || Writer::create(&path, &Map::new(), vec![], &[plan("a", Type::F32, &[4])]).expect("a writer");
    let mut writer = start();
    writer.append(0, &[0; 7]).expect("some bytes");
    drop(writer);
    assert_eq!(names(folder.path()), ["model.llm"]);
    let error = start().finish().expect_err("nothing was written");
    assert_eq!(error.kind, ErrorKind::Invalid);
    assert!(error.message.contains("lacks 16 bytes"), "{error}");
    assert_eq!(names(folder.path()), ["model.llm"]);
    assert_eq!(std::fs::read(&path).expect("still there"), b"old");
}

#[test]
fn two_writers_of_one_name_do_not_disturb_each_other() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("model.llm");
    let start =
        || Writer::create(&path, &Map::new(), vec![], &[plan("a", Type::F32, &[1])]).expect("a writer");
    let (mut one, mut two) = (start(), start());
    one.append_values(0, &[1.0]).expect("one");
    two.append_values(0, &[2.0]).expect("two");
    two.finish().expect("two");
    one.finish().expect("one");
    let bytes = std::fs::read(&path).expect("the file");
    let file = File::parse(&bytes).expect("a good file");
    assert_eq!(file.data(&file.tensors()[0]), 1f32.to_le_bytes());
}

#[test]
fn what_a_process_has_not_finished_is_found_and_nothing_of_others() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = |name: String| folder.path().join(name);
    let path = at("model.llm".to_owned());
    let (own, other) = (std::process::id(), std::process::id() + 1);
    for name in [format!(".model.llm.{other}-0.tmp"), format!(".other.{own}-0.tmp"), format!("{own}-0.tmp")] {
        std::fs::write(at(name), b"half").expect("a file");
    }
    let files = [TempFile::create(&path), TempFile::create(&path)].map(|file| file.expect("a file"));
    let (mut expected, mut found) = (files.each_ref().map(TempFile::path), TempFile::unfinished(&path));
    expected.sort();
    found.sort();
    assert_eq!(found, expected);
    drop(files);
    assert!(TempFile::unfinished(&path).is_empty() && TempFile::unfinished("..".as_ref()).is_empty());
}

#[test]
fn what_a_killed_process_of_the_same_number_left_is_not_in_the_way() {
    let folder = tempfile::tempdir().expect("a folder");
    for nth in 0..300 {
        let left = folder.path().join(format!(".model.llm.{}-{nth}.tmp", std::process::id()));
        std::fs::write(left, b"half").expect("a file");
    }
    let path = folder.path().join("model.llm");
    let mut writer =
        Writer::create(&path, &Map::new(), vec![], &[plan("a", Type::F32, &[1])]).expect("a writer");
    writer.append_values(0, &[1.0]).expect("a value");
    writer.finish().expect("a file");
    assert!(path.exists());
    assert_eq!(names(folder.path()).len(), 301, "files of others stay");
}

#[test]
fn a_required_section_of_an_unknown_kind_excuses_nothing_else() {
    let new = |plans: &[TensorPlan]| {
        let stranger = NewSection { kind: 900, required: true, data: vec![1] };
        Writer::new(Cursor::new(Vec::new()), &Map::new(), vec![stranger], plans).map(|_| ())
    };
    let a = plan("a", Type::F32, &[1]);
    new(std::slice::from_ref(&a)).expect("it may be written");
    let error = new(&[a.clone(), a]).expect_err("a name twice");
    assert!(error.kind == ErrorKind::Invalid && error.message.contains("ascend"), "{error}");
}

#[test]
fn an_impossible_place_is_an_error_with_the_systems_code() {
    let error =
        Writer::create("/nowhere/at/all/model.llm", &Map::new(), vec![], &[]).err().expect("no such folder");
    assert_eq!(error.kind, ErrorKind::NotFound);
    assert!(error.os_error.is_some() && error.message.contains("/nowhere/at/all"), "{error}");
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("file");
    std::fs::write(&file, b"one").expect("a file");
    let error = TempFile::create(file.join("model.llm")).err().expect("a file is no folder");
    assert_eq!(error.kind, ErrorKind::Io, "{error}");
}

#[test]
fn a_path_that_names_no_file_is_refused_before_anything_is_written() {
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::write(folder.path().join("file"), b"one").expect("a file");
    std::fs::create_dir(folder.path().join("there")).expect("a folder in it");
    for (name, why) in [
        ("new/", "names a directory"),
        ("new/.", "names a directory"),
        ("file/", "names a directory"),
        ("there/", "names a directory"),
        ("there", "is not a file"),
        ("there/..", "names no file"),
    ] {
        // not joined by parts, which would lose what stands at the end
        let path = format!("{}/{name}", folder.path().display());
        let error = Writer::create(&path, &Map::new(), vec![], &[]).err().expect("refused");
        assert!(error.kind == ErrorKind::Invalid && error.message.contains(why), "{error}");
    }
    for path in ["/", "", ".."] {
        let error = TempFile::create(path).err().expect("refused");
        assert_eq!(error.kind, ErrorKind::Invalid, "{error}");
    }
    let mut left = names(folder.path());
    left.sort();
    assert_eq!(left, ["file", "there"]);
}

#[test]
fn pieces_of_any_size_at_any_place_make_the_file_that_they_make_in_memory() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("pieces");
    std::fs::write(&path, b"old").expect("an old file");
    let bytes: Vec<u8> = (0..10_000_019u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let mut disk = TempFile::create(&path).expect("a file");
    let mut memory = Cursor::new(Vec::new());
    let mut both = |at: Option<u64>, bytes: &[u8]| {
        if let Some(at) = at {
            let to = SeekFrom::Start(at);
            assert_eq!(disk.seek(to).expect("a place"), memory.seek(to).expect("a place"));
        }
        disk.write_all(bytes).expect("the disk");
        memory.write_all(bytes).expect("memory");
    };
    both(None, &bytes[..3]);
    both(None, &bytes);
    both(Some(5_000_000), &bytes[7..]);
    both(Some(1), &bytes[..100]);
    both(Some(4 << 20), &bytes[..4 << 20]);
    both(None, &[]);
    both(None, &bytes[..1]);
    assert!(disk.path().exists() && std::fs::read(&path).expect("still there") == b"old");
    disk.persist().expect("a file");
    assert!(std::fs::read(&path).expect("the file") == memory.into_inner());
    llm_format::replace(&path, b"new").expect("a file");
    assert_eq!(std::fs::read(&path).expect("the file"), b"new");
    assert_eq!(names(folder.path()), ["pieces"]);
}

#[test]
fn what_a_reader_would_refuse_is_refused_before_writing() {
    let refused = |metadata: Value, sections: Vec<NewSection>, plans: &[TensorPlan]| {
        let out = Cursor::new(Vec::new());
        let error = Writer::new(out, &object(metadata), sections, plans).err().expect("refused");
        assert_eq!(error.kind, ErrorKind::Invalid, "{error}");
        error.message
    };
    let a = plan("a", Type::F32, &[1]);
    assert!(refused(json!({}), vec![], &[a.clone(), a.clone()]).contains("ascend"));
    assert!(refused(json!({}), vec![], &[plan("", Type::F32, &[1])]).contains("a name of 0 bytes"));
    assert!(refused(json!({}), vec![], &[plan("v", Type::Q4, &[1])]).contains("cannot be stored as q4"));
    assert!(refused(json!({}), vec![], &[plan("v", Type::Q4, &[0, 1])]).contains("cannot be stored"));
    assert!(
        refused(json!({}), vec![], &[plan("v", Type::F32, &[1 << 30, 1 << 30, 1 << 30])]).contains("stored")
    );
    let tables = NewSection { kind: kind::TOKENIZER, required: false, data: vec![1] };
    assert!(refused(json!({}), vec![tables.clone(), tables.clone()], &[]).contains("twice"));
    assert!(refused(json!({}), vec![NewSection { data: vec![], ..tables }], &[]).contains("0 bytes"));
    let mut deep = json!(1);
    for _ in 0..200 {
        deep = json!([deep]);
    }
    assert!(refused(json!({ "deep": deep }), vec![], &[]).contains("recursion"));
}

#[test]
fn tensors_come_in_order_and_not_longer_than_they_are() {
    let plans = [plan("b", Type::F32, &[2]), plan("a", Type::F32, &[1])];
    let mut writer = Writer::new(Cursor::new(Vec::new()), &Map::new(), vec![], &plans).expect("a writer");
    assert_eq!((writer.expects(), writer.remaining()), (Some(0), 8));
    assert_eq!(writer.append(1, &[0; 4]).expect_err("not its turn").kind, ErrorKind::Invalid);
    assert_eq!(writer.append(0, &[0; 9]).expect_err("too long").kind, ErrorKind::Invalid);
    for values in [&[1.0][..], &[1.0, 2.0, 3.0]] {
        let error = writer.append_values(0, values).expect_err("another number of values");
        assert!(error.kind == ErrorKind::Invalid && error.message.contains("for the shape [2]"), "{error}");
    }
    writer.append(0, &[1; 3]).expect("a part");
    writer.append(0, &[1; 5]).expect("the rest");
    assert_eq!((writer.expects(), writer.remaining()), (Some(1), 4));
    assert_eq!(writer.append(0, &[]).expect_err("complete").kind, ErrorKind::Invalid);
    writer.append(1, &[2; 4]).expect("the other");
    assert_eq!(writer.append(2, &[]).expect_err("no more").kind, ErrorKind::Invalid);
    let len = writer.file_len();
    let (out, _) = writer.complete().expect("complete");
    assert_eq!(out.get_ref().len() as u64, len);
    let file = File::parse(out.get_ref()).expect("a good file");
    // By name in the table, in the order of the plan on the disk.
    assert_eq!(file.tensors().iter().map(|t| &*t.name).collect::<Vec<_>>(), ["a", "b"]);
    assert!(file.tensors()[0].offset > file.tensors()[1].offset);
    assert_eq!(file.data(&file.tensors()[1]), [1; 8]);
}

/// A disk that is full after `room` bytes.
struct Full {
    inner: Cursor<Vec<u8>>,
    room: u64,
}

impl Write for Full {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if self.inner.position() + bytes.len() as u64 > self.room {
            return Err(std::io::ErrorKind::StorageFull.into());
        }
        self.inner.write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Seek for Full {
    fn seek(&mut self, to: SeekFrom) -> std::io::Result<u64> {
        self.inner.seek(to)
    }
}

#[test]
fn after_a_failed_write_the_file_cannot_be_completed() {
    let out = Full { inner: Cursor::new(Vec::new()), room: 4096 + 8 };
    let mut writer = Writer::new(out, &Map::new(), vec![], &[plan("a", Type::F32, &[4])]).expect("a writer");
    writer.append(0, &[1; 8]).expect("fits");
    assert_eq!(writer.append(0, &[1; 8]).expect_err("full").kind, ErrorKind::Io);
    assert_eq!(writer.append(0, &[1; 8]).expect_err("still").kind, ErrorKind::Invalid);
    assert_eq!(writer.complete().err().map(|e| e.kind), Some(ErrorKind::Invalid));
}

#[test]
fn a_matrix_given_in_blocks_equals_one_given_whole() {
    let (rows, cols) = (70usize, 300usize);
    let values: Vec<f32> = (0..rows * cols).map(|i| ((i * 7919 % 1000) as f32 - 500.0) / 500.0).collect();
    for quant in quant::QUANTS {
        let plans = [plan("w", quant.ty, &[rows as u64, cols as u64])];
        let new = || Writer::new(Cursor::new(Vec::new()), &Map::new(), vec![], &plans).expect("a writer");
        let (mut whole, mut parts) = (new(), new());
        whole.append_values(0, &values).expect("whole");
        let head = quant::head(quant.ty, quant::absmax(&values));
        parts.append(0, &head[..quant.head]).expect("the head");
        let mut block = vec![0; quant::block_bytes(quant.ty, cols as u64).expect("a size") as usize];
        for rows in values.chunks(quant::ROWS * cols) {
            quant::encode_block(quant.ty, &head, rows, cols, &mut block);
            parts.append(0, &block).expect("a block");
        }
        let (whole, parts) = (whole.complete().expect("whole"), parts.complete().expect("parts"));
        assert!(whole.0.get_ref() == parts.0.get_ref() && whole.1 == parts.1, "{}", quant.name);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_plan_is_written_the_same_twice_and_read_back(
        shapes in prop::collection::vec((0..quant::QUANTS.len(), prop::collection::vec(1u64..70, 1..=3)), 0..6),
        chunk in 1usize..10_000, seed in any::<u64>(),
    ) {
        let plans: Vec<TensorPlan> = shapes.iter().enumerate().map(|(i, (ty, shape))| {
            let ty = if shape.len() == 1 { Type::F32 } else { quant::QUANTS[*ty].ty };
            // Names in an order unlike that of the plan.
            plan(&format!("t{}", (i * 5 + seed as usize % 6) % 6), ty, shape)
        }).collect();
        let metadata = object(json!({ "seed": seed, "shapes": shapes.len() }));
        let write = |chunk: usize| {
            let mut writer = Writer::new(Cursor::new(Vec::new()), &metadata, vec![], &plans).expect("a writer");
            for (i, p) in plans.iter().enumerate() {
                let len = quant::tensor_bytes(p.ty, &p.shape).expect("a size");
                let data: Vec<u8> = (0..len).map(|k| (k.wrapping_mul(seed | 1) >> 7) as u8 ^ i as u8).collect();
                data.chunks(chunk).for_each(|part| writer.append(i, part).expect("a part"));
            }
            let (out, identity) = writer.complete().expect("complete");
            (out.into_inner(), identity)
        };
        let (bytes, identity) = write(chunk);
        prop_assert!(write(usize::MAX).0 == bytes, "chunks do not show");
        let file = File::parse(&bytes).expect("a good file");
        file.verify(&mut |_, _| ControlFlow::Continue(())).expect("good checksums");
        // Behind a header with two sections: metadata and table.
        prop_assert_eq!(identity, *blake3::hash(&bytes[64 + 2 * 32..]).as_bytes());
        prop_assert_eq!(file.metadata(), &metadata);
        for p in &plans {
            let tensor = file.tensor(&p.name).expect("a tensor of the plan");
            prop_assert_eq!((&tensor.ty, &tensor.shape), (&p.ty, &p.shape));
        }
    }
}

#[test]
fn a_file_on_the_disk_is_that_in_memory() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("m.llm");
    let plans = [plan("w", Type::Q8, &[40, 260]), plan("v", Type::F32, &[9])];
    let values: Vec<f32> = (0..40 * 260).map(|i| (i % 17) as f32 - 8.0).collect();
    let mut disk = Writer::create(&path, &Map::new(), vec![], &plans).expect("a writer");
    let mut memory = Writer::new(Cursor::new(Vec::new()), &Map::new(), vec![], &plans).expect("a writer");
    disk.append_values(0, &values).and_then(|()| disk.append_values(1, &values[..9])).expect("values");
    memory.append_values(0, &values).and_then(|()| memory.append_values(1, &values[..9])).expect("values");
    assert_eq!(
        disk.finish().expect("a file"),
        memory
            .complete()
            .map(|(out, identity)| {
                let mut read = Vec::new();
                std::fs::File::open(&path).and_then(|mut f| f.read_to_end(&mut read)).expect("the file");
                assert!(read == out.into_inner());
                identity
            })
            .expect("complete")
    );
}
