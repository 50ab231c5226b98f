//! What a session promises a host: a call that fails changes nothing, errors say where, limits hold.

mod support;

use std::sync::Arc;

use llm::kv::KvType;
use llm::model::{Load, Model, OpenOptions, Verify};
use llm::runtime::{LogLevel, Memory, Runtime, RuntimeOptions};
use llm::sampler::{Sampler, SamplingParams};
use llm::session::generate::{Generation, GenerationOptions, Kind};
use llm::session::{Control, Progress, Session, SessionOptions};
use llm::{Cancel, Error, Status};
use llm_format::quant::Type;
use serde_json::{Value, json};
use support::{Reference, converted, logits, model, open, runtime};

fn tiny() -> Option<Reference> {
    Reference::all().into_iter().find(|r| r.name == "llama_untied")
}

fn session(model: &Model, options: SessionOptions) -> Session {
    Session::new(model, SessionOptions { max_tokens: 256, ..options }).unwrap()
}

/// A session with 20 tokens, its model, and the ids that could follow.
fn begun(options: SessionOptions) -> Option<(Session, Vec<i32>)> {
    let reference = tiny()?;
    let ids = reference.ids("long.input_ids");
    let model = model(&runtime(2, None), &reference.dir, Type::Q8);
    let mut session = session(&model, options);
    session.prefill(&ids[..20], None, None).unwrap();
    Some((session, ids))
}

fn assert_unchanged(session: &Session, ids: &[i32], logits: &[f32]) {
    assert_eq!(session.tokens(), &ids[..20]);
    assert_eq!(session.logits().unwrap(), logits);
}

#[test]
fn a_failed_call_leaves_tokens_and_logits_as_they_were() {
    let options = SessionOptions { chunk: 8, ..Default::default() };
    let Some((mut session, ids)) = begun(options) else { return };
    let before = session.logits().unwrap().to_vec();

    let vocab = session.model().spec().vocab as i32;
    for wrong in [-1, vocab, i32::MAX, i32::MIN] {
        let error = session.prefill(&[ids[20], wrong, ids[21]], None, None).unwrap_err();
        assert_eq!((error.status(), error.detail("token_index")), (Status::INVALID_ARG, Some(1)));
        assert_unchanged(&session, &ids, &before);
    }
    let error = session.prefill(&vec![1; 237], None, None).unwrap_err();
    assert_eq!((error.status(), error.detail("needed")), (Status::CONTEXT_FULL, Some(257)));
    assert_unchanged(&session, &ids, &before);

    let cancel = Cancel::new();
    let mut chunks = 0;
    let mut stop = |progress: Progress| {
        assert_eq!(progress.total, 80);
        chunks += 1;
        if chunks == 3 {
            cancel.trigger();
        }
        Control::Continue
    };
    let error = session.prefill(&ids[20..100], Some(&cancel), Some(&mut stop)).unwrap_err();
    assert_eq!(error.status(), Status::CANCELLED);
    assert_unchanged(&session, &ids, &before);

    let mut refuse = |_: Progress| Control::Cancel;
    let error = session.prefill(&ids[20..100], None, Some(&mut refuse)).unwrap_err();
    assert_eq!(error.status(), Status::CANCELLED);
    assert_unchanged(&session, &ids, &before);

    let mut refuse = |index: usize, _: &[f32]| match index {
        30 => Err(Error::new(Status::CALLBACK, "no")),
        _ => Ok(()),
    };
    let error = session.prefill_each(&ids[20..100], None, &mut refuse).unwrap_err();
    assert_eq!(error.status(), Status::CALLBACK);
    assert_unchanged(&session, &ids, &before);

    // And it goes on as if nothing had happened.
    session.prefill(&ids[20..100], None, None).unwrap();
    let expected = logits(session.model(), &SessionOptions::default(), &ids[..100]);
    assert_eq!(session.logits().unwrap(), &expected[expected.len() - vocab as usize..]);
}

#[test]
fn without_rollback_a_cancelled_call_stands_at_the_last_chunk_with_its_logits() {
    let options = SessionOptions { chunk: 8, rollback_on_cancel: false, ..Default::default() };
    let Some((mut session, ids)) = begun(options) else { return };
    let cancel = Cancel::new();
    let mut stop = |progress: Progress| {
        if progress.done == 24 {
            cancel.trigger();
        }
        Control::Continue
    };
    let error = session.prefill(&ids[20..100], Some(&cancel), Some(&mut stop)).unwrap_err();
    assert_eq!(error.status(), Status::CANCELLED);
    assert_eq!(session.tokens(), &ids[..44]);
    let expected = logits(session.model(), &SessionOptions::default(), &ids[..44]);
    let logits = session.logits().unwrap();
    assert_eq!(logits, &expected[expected.len() - logits.len()..]);
}

#[test]
fn stop_keeps_what_was_computed_and_succeeds() {
    let Some((mut session, ids)) = begun(SessionOptions { chunk: 8, ..Default::default() }) else { return };
    let mut stop = |progress: Progress| if progress.done >= 16 { Control::Stop } else { Control::Continue };
    session.prefill(&ids[20..100], None, Some(&mut stop)).unwrap();
    assert_eq!(session.tokens(), &ids[..36]);
    assert!(session.logits().is_ok());
}

#[test]
fn a_passed_deadline_ends_the_call() {
    let Some((mut session, ids)) = begun(SessionOptions::default()) else { return };
    let cancel = Cancel::new();
    cancel.set_deadline(Some(std::time::Duration::ZERO));
    let error = session.decode(ids[20], Some(&cancel)).unwrap_err();
    assert_eq!(error.status(), Status::DEADLINE);
    assert_eq!(session.len(), 20);
}

#[test]
fn logits_are_there_exactly_when_a_token_was_computed_last() {
    let Some((mut session, ids)) = begun(SessionOptions::default()) else { return };
    session.prefill(&[], None, None).unwrap();
    assert!(session.logits().is_ok());
    session.truncate(20).unwrap();
    assert!(session.logits().is_ok());
    session.truncate(10).unwrap();
    assert_eq!(session.logits().unwrap_err().status(), Status::BAD_STATE);
    session.decode(ids[10], None).unwrap();
    assert!(session.logits().is_ok());
    assert_eq!(session.truncate(12).unwrap_err().status(), Status::INVALID_ARG);
    session.reset();
    assert!(session.is_empty());
    assert_eq!(session.logits().unwrap_err().status(), Status::BAD_STATE);
}

#[test]
fn options_that_make_no_sense_are_refused() {
    let Some(reference) = tiny() else { return };
    let model = model(&runtime(1, None), &reference.dir, Type::Q4);
    let status = |options| Session::new(&model, options).unwrap_err().status();
    for page in [0, 1, 48, 128] {
        assert_eq!(status(SessionOptions { page, ..Default::default() }), Status::INVALID_ARG);
    }
    assert_eq!(status(SessionOptions { chunk: 0, ..Default::default() }), Status::INVALID_ARG);
    assert_eq!(status(SessionOptions { max_tokens: usize::MAX, ..Default::default() }), Status::INVALID_ARG);
    let refuse = |isa: &str| Runtime::new(RuntimeOptions { isa: Some(isa.into()), ..Default::default() });
    assert_eq!(refuse("abacus").unwrap_err().status(), Status::INVALID_ARG);
}

#[test]
fn the_limit_of_a_runtime_holds_and_its_memory_comes_back() {
    let Some(reference) = tiny() else { return };
    let (_place, path) = converted(&reference.dir, Type::Q8);
    let limit = Some(1 << 20);
    let runtime = Runtime::new(RuntimeOptions { host_limit: limit, ..Default::default() }).unwrap();
    let used = || Memory::ALL.map(|memory| runtime.memory_use(memory));
    let model = open(&runtime, &path);
    assert_eq!(used(), [0, 0, 0]);
    let ids = reference.ids("long.input_ids");
    let mut session = session(&model, SessionOptions { kv: KvType::F32, page: 16, ..Default::default() });
    session.decode(ids[0], None).unwrap();
    assert!(used()[1] > 0 && used()[2] > 0);
    let error = (1..).find_map(|n| session.prefill(&ids[..n.min(200)], None, None).err()).unwrap();
    assert!([Status::BUDGET, Status::CONTEXT_FULL].contains(&error.status()), "{error}");
    drop(session);
    assert_eq!(used(), [0, 0, 0]);
    let size = std::fs::metadata(&path).unwrap().len();
    let copy = OpenOptions { load: Load::Copy, verify: Verify::Full, ..OpenOptions::default() };
    match Model::open_path(&runtime, &path, &copy, None) {
        Ok(_copied) => assert_eq!(used(), [size, 0, 0]),
        Err(e) => assert!(e.status() == Status::BUDGET && size > 1 << 20, "{e}"),
    }
    assert_eq!(used(), [0, 0, 0]);
}

#[test]
fn every_way_of_opening_gives_the_same_model() {
    let Some(reference) = tiny() else { return };
    let (_place, path) = converted(&reference.dir, Type::Q4);
    let runtime = runtime(1, None);
    let ids = &reference.ids("short.input_ids")[..8];
    let run = |model: Model| (model.fingerprint(), logits(&model, &SessionOptions::default(), ids));
    let expected = run(open(&runtime, &path));
    let told = Arc::new(std::sync::atomic::AtomicU64::new(0));
    let progress = {
        let told = told.clone();
        Arc::new(move |done: u64, _: u64| {
            told.fetch_max(done, std::sync::atomic::Ordering::Relaxed);
            Ok(())
        })
    };
    let copy = OpenOptions {
        load: Load::Copy,
        verify: Verify::Full,
        progress: Some(progress),
        ..OpenOptions::default()
    };
    assert!(run(Model::open_path(&runtime, &path, &copy, None).unwrap()) == expected);
    let bytes = std::fs::read(&path).unwrap();
    assert_eq!(told.load(std::sync::atomic::Ordering::Relaxed), bytes.len() as u64);

    // Mapped and locked, while it is open.
    let locked = || {
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmLck:")).unwrap_or("0 kB");
        line.trim().trim_end_matches(" kB").parse::<usize>().unwrap() * 1024
    };
    let lock = OpenOptions { load: Load::MapAndLock, ..OpenOptions::default() };
    match Model::open_path(&runtime, &path, &lock, None) {
        Ok(model) => {
            assert!(cfg!(not(target_os = "linux")) || locked() >= bytes.len());
            assert!(run(model) == expected);
        }
        Err(e) => assert!(e.status() == Status::IO && e.message().contains("ulimit -l"), "{e}"),
    }
    assert_eq!(locked(), 0);

    // In memory, and misaligned.
    let map = OpenOptions::default();
    let mut shifted = vec![0; 1];
    shifted.extend_from_slice(&bytes);
    let shifted = llm::mmap::Bytes::from(shifted);
    let range = 1..shifted.len();
    assert!(run(Model::open_memory(&runtime, shifted.slice(range), &map, None).unwrap()) == expected);

    // Within another file, by descriptor.
    #[cfg(unix)]
    {
        use std::io::Write;
        use std::os::fd::AsRawFd;
        for offset in [4096, 777] {
            let mut file = tempfile::tempfile().unwrap();
            file.write_all(&vec![7; offset]).unwrap();
            file.write_all(&bytes).unwrap();
            file.write_all(b"behind").unwrap();
            for options in [&map, &copy] {
                let len = bytes.len() as u64;
                let model = Model::open_fd(&runtime, file.as_raw_fd(), offset as u64, len, options, None);
                assert!(run(model.unwrap()) == expected);
            }
        }
        let error = Model::open_fd(&runtime, -1, 0, 0, &map, None).unwrap_err();
        assert_eq!(error.status(), Status::IO);
    }
    let cancel = Cancel::new();
    cancel.trigger();
    let error = Model::open_path(&runtime, &path, &copy, Some(&cancel)).unwrap_err();
    assert_eq!(error.status(), Status::CANCELLED);
    let missing = path.with_extension("missing");
    assert_eq!(Model::open_path(&runtime, &missing, &map, None).unwrap_err().status(), Status::NOT_FOUND);
}

#[test]
fn a_log_sink_hears_whole_records_of_its_level() {
    let records = Arc::new(std::sync::Mutex::new(Vec::new()));
    let sink = {
        let records = records.clone();
        Box::new(move |level, record: &str| records.lock().unwrap().push((level, record.to_owned())))
    };
    let runtime = Runtime::new(RuntimeOptions {
        log: Some(sink),
        log_level: Some(LogLevel::Info),
        ..Default::default()
    })
    .unwrap();
    runtime.log(LogLevel::Debug, "unheard");
    runtime.set_log_level(LogLevel::Error);
    runtime.log(LogLevel::Warn, "unheard");
    runtime.log(LogLevel::Error, "heard");
    let records = records.lock().unwrap();
    assert!(records.iter().all(|(_, record)| record != "unheard"));
    assert_eq!(records.last(), Some(&(LogLevel::Error, "heard".to_owned())));
}

#[test]
fn ids_behind_the_tokenizers_last_have_no_text() {
    let Some(reference) = tiny() else { return };
    let dir = tempfile::tempdir().unwrap();
    for name in ["config.json", "model.safetensors"] {
        std::fs::copy(reference.dir.join(name), dir.path().join(name)).unwrap();
    }
    let vocab: serde_json::Map<String, Value> =
        ('a'..='z').zip(0..).map(|(c, id)| (c.to_string(), json!(id))).collect();
    let bytes =
        json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false});
    let tokenizer = json!({"version": "1.0", "added_tokens": [], "pre_tokenizer": bytes, "decoder": bytes,
        "model": {"type": "BPE", "vocab": vocab, "merges": []}});
    std::fs::write(dir.path().join("tokenizer.json"), tokenizer.to_string()).unwrap();
    let model = model(&runtime(1, None), dir.path(), Type::F32);
    let (tokenizer, ids) = (model.tokenizer().unwrap(), model.spec().vocab as i32);
    assert!(tokenizer.size() == 26 && ids > 26);
    assert_eq!(tokenizer.decode_text(&[0, 26, 1, ids - 1], false).unwrap(), "ab");
    for wrong in [-1, ids] {
        let e = tokenizer.decode(&[0, wrong], false).unwrap_err();
        assert!(e.status() == Status::INVALID_ARG && e.detail("token_index") == Some(1), "{e}");
    }
    let mut session = session(&model, SessionOptions::default());
    session.prefill(&[0], None, None).unwrap();
    let mut sampler = Sampler::new(&SamplingParams { temperature: 5.0, ..Default::default() }).unwrap();
    let options = GenerationOptions { max_tokens: 40, ..Default::default() };
    let mut generation = Generation::new(Some(Arc::clone(tokenizer)), options).unwrap();
    let mut text = String::new();
    loop {
        let event = generation.next(&mut session, &mut sampler, None).unwrap();
        text.push_str(&event.text);
        if event.kind == Kind::Done {
            break;
        }
    }
    let chosen = &session.tokens()[1..];
    assert!(chosen.iter().any(|id| *id >= 26), "{chosen:?}");
    assert_eq!(text, tokenizer.decode_text(chosen, false).unwrap());
}
