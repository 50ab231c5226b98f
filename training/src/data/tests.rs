//! Prepared data: the same ids whatever a text came in, files that are refused, what ends a document.

use std::io::Write;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant, SystemTime};

use serde_json::{Value, json};

use super::preparation::FILES;
use super::writer::part;
use super::*;
use crate::bpe::{TokenizerOptions, train_tokenizer};
use crate::source::Source;
use crate::source::testing::{Fault, columns, serve};

fn prepared(dir: &Path) -> Prepared {
    let text: String = (0..400).map(|i| format!("line {i} of the text\n")).collect();
    std::fs::write(dir.join("a.txt"), &text).unwrap();
    let rows: String = (0..20).map(|i| format!("{{\"text\": \"row {i}\"}}\n")).collect();
    std::fs::write(dir.join("b.jsonl"), rows).unwrap();
    let inputs = ["a.txt", "b.jsonl"].map(|name| dir.join(name).into()).to_vec();
    let tokenizer = dir.join("tokenizer.json");
    let options = TokenizerOptions {
        inputs: inputs.clone(),
        vocab: 300,
        output: tokenizer.clone(),
        ..Default::default()
    };
    train_tokenizer(&options).unwrap();
    prepare(&PrepareOptions { inputs, tokenizer, output: dir.join("data"), ..Default::default() }).unwrap()
}

#[test]
fn prepared_ids_decode_to_the_text_and_the_split_is_a_tenth() {
    let dir = tempfile::tempdir().unwrap();
    let result = prepared(dir.path());
    let tokenizer = crate::bpe::load(&dir.path().join("tokenizer.json")).unwrap();
    let mut texts = Vec::new();
    for name in ["train", "held_out"] {
        let file = TokenFile::open(&dir.path().join(format!("data/{name}.tokens"))).unwrap();
        file.verify().unwrap();
        assert_eq!(file.documents(), if name == "train" { 19 } else { 3 });
        let mut ids = vec![0; file.tokens() as usize];
        file.read(0, &mut ids).unwrap();
        let text = tokenizer.decode(&ids, false).unwrap();
        assert_eq!(text.replace("<|endoftext|>", "").len() as u64, file.bytes());
        texts.push(text);
    }
    assert!(
        result.held_out_tokens * 5 < result.train_tokens && result.held_out_tokens * 15 > result.train_tokens
    );
    let whole = std::fs::read_to_string(dir.path().join("a.txt")).unwrap();
    let first = |t: &str| t.split("<|endoftext|>").next().unwrap().to_string();
    assert_eq!(first(&texts[0]) + &first(&texts[1]), whole);
}

#[test]
fn of_a_short_packed_text_the_end_is_held_out_as_of_a_plain_one() {
    let dir = tempfile::tempdir().unwrap();
    prepared(dir.path());
    // three pieces, of which none is the tenth
    let text: String = (0..30_000).map(|i| format!("line {i} of the text\n")).collect();
    let (plain, packed) = (dir.path().join("c.txt"), dir.path().join("c.txt.gz"));
    std::fs::write(&plain, &text).unwrap();
    let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gz.write_all(text.as_bytes()).unwrap();
    std::fs::write(&packed, gz.finish().unwrap()).unwrap();
    let files = [plain, packed].map(|input| {
        let output = input.with_extension("data");
        let tokenizer = dir.path().join("tokenizer.json");
        let options = PrepareOptions { inputs: vec![input.into()], tokenizer, output, ..Default::default() };
        assert!(prepare(&options).unwrap().held_out_tokens > 0);
        ["train.tokens", "held_out.tokens"].map(|n| std::fs::read(options.output.join(n)).unwrap())
    });
    assert!(files[0] == files[1]);
}

#[test]
fn documents_end_with_the_token_that_the_tokenizer_has_for_it() {
    let dir = tempfile::tempdir().unwrap();
    let (rows, tokenizer) = (dir.path().join("b.jsonl"), dir.path().join("tokenizer.json"));
    std::fs::write(&rows, "{\"text\": \"a row\"}\n".repeat(20)).unwrap();
    let trained = |special: &[&str]| {
        let options = TokenizerOptions {
            inputs: vec![rows.clone().into()],
            vocab: 280,
            special: special.iter().map(|s| (*s).to_string()).collect(),
            output: tokenizer.clone(),
            ..Default::default()
        };
        train_tokenizer(&options).unwrap();
    };
    let last = |config: Option<&str>| {
        let path = dir.path().join("tokenizer_config.json");
        let _ = std::fs::remove_file(&path); // it may not be there
        if let Some(config) = config {
            std::fs::write(&path, config).unwrap();
        }
        let output = dir.path().join("data");
        let (inputs, tokenizer) = (vec![rows.clone().into()], tokenizer.clone());
        prepare(&PrepareOptions { inputs, tokenizer, output: output.clone(), ..Default::default() }).unwrap();
        // what lies beside the tokenizer comes along, what an earlier preparation left does not stay
        assert_eq!(std::fs::read_to_string(output.join("tokenizer_config.json")).ok().as_deref(), config);
        let file = TokenFile::open(&output.join("train.tokens")).unwrap();
        let mut ids = vec![0; file.tokens() as usize];
        file.read(0, &mut ids).unwrap();
        assert_eq!(file.offset(1), ids.len() as u64 / file.documents());
        ids[ids.len() - 1]
    };
    trained(&["</s>", "<|endoftext|>"]);
    assert_eq!(last(None), 1);
    trained(&["</s>", "<|user|>"]);
    assert_eq!(last(None), 0);
    assert_eq!(last(Some(r#"{"eos_token": {"content": "<|user|>"}}"#)), 1);
    assert_eq!(last(None), 0);
    trained(&["<unk>", "</s>"]);
    assert!(last(None) > 1);
}

#[test]
fn the_end_that_is_asked_for_ends_documents_whatever_they_came_in() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let text = "a row of text, and another one\n".repeat(20);
    let rows = "{\"text\": \"a row of text\"}\n".repeat(20);
    let gz = |text: &str| {
        let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        packed.write_all(text.as_bytes()).unwrap();
        packed.finish().unwrap()
    };
    for (name, bytes) in [
        ("a.txt", text.clone().into_bytes()),
        ("b.txt.gz", gz(&text)),
        ("c.jsonl", rows.clone().into_bytes()),
        ("d.json", rows.clone().into_bytes()),
        ("e.jsonl.gz", gz(&rows)),
    ] {
        std::fs::write(at(name), bytes).unwrap();
    }
    let special = vec!["</s>".to_string(), "<|stop|>".to_string()];
    let inputs = vec![at("a.txt").into()];
    let output = at("tokenizer.json");
    train_tokenizer(&TokenizerOptions { inputs, vocab: 280, special, output, ..Default::default() }).unwrap();
    let base = PrepareOptions { tokenizer: at("tokenizer.json"), output: at("data"), ..Default::default() };
    for name in ["a.txt", "b.txt.gz", "c.jsonl", "d.json", "e.jsonl.gz"] {
        for (end, expected) in [(None, Some(0)), (Some("<|stop|>"), Some(1)), (Some(""), None)] {
            let end = end.map(String::from);
            prepare(&PrepareOptions { inputs: vec![at(name).into()], end, ..base.clone() }).unwrap();
            let file = TokenFile::open(&at("data/train.tokens")).unwrap();
            for document in 1..=file.documents() {
                let mut last = [0];
                file.read(file.offset(document) - 1, &mut last).unwrap();
                assert_eq!(Some(last[0]).filter(|id| *id < 2), expected, "{name}");
            }
        }
    }
    for (end, chat, said) in
        [("<|none|>", false, "no token \"<|none|>\""), ("</s>", true, "as their template says")]
    {
        let inputs = vec![at("c.jsonl").into()];
        let e = prepare(&PrepareOptions { inputs, end: Some(end.into()), chat, ..base.clone() }).unwrap_err();
        assert_eq!(e.status(), Status::INVALID_ARG);
        assert!(e.message().contains(said), "{e}");
    }
}

#[test]
fn data_that_is_not_settled_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    prepared(dir.path());
    let output = dir.path().join("data");
    let read = |name: &str| std::fs::read(output.join(name)).unwrap();
    let before = FILES.map(read);
    let inputs = vec![dir.path().join("b.jsonl").into()];
    let tokenizer = dir.path().join("tokenizer.json");
    let options = PrepareOptions { inputs, tokenizer, output: output.clone(), ..Default::default() };
    let tokenized = tokenize(&options, &mut |_| ()).unwrap();
    assert!(options.unfinished().iter().all(|path| path.is_file()) && FILES.map(read) == before);
    drop(tokenized);
    assert!(!options.unfinished().iter().any(|path| path.exists()) && FILES.map(read) == before);
    tokenize(&options, &mut |_| ()).unwrap().settle().unwrap();
    assert!(FILES.map(read) != before);
}

#[test]
fn a_directory_is_prepared_by_one_process_at_a_time() {
    let dir = tempfile::tempdir().unwrap();
    prepared(dir.path());
    let (inputs, tokenizer) = (vec![dir.path().join("b.jsonl").into()], dir.path().join("tokenizer.json"));
    let options = PrepareOptions { inputs, tokenizer, output: dir.path().join("data"), ..Default::default() };
    let alone = prepare(&options).unwrap();
    for part in FILES.map(|name| part(&options.output.join(name))) {
        std::fs::write(&part, "of a process that works, or was killed").unwrap();
        let works = File::open(&part).unwrap();
        works.try_lock().unwrap();
        let e = prepare(&options).unwrap_err();
        assert!(e.status() == Status::BUSY && e.message().contains(".tokens.part: another process"), "{e}");
        assert!(part.exists());
        drop(works);
        assert_eq!(prepare(&options).unwrap().train_tokens, alone.train_tokens);
        for name in FILES {
            TokenFile::open(&options.output.join(name)).unwrap().verify().unwrap();
        }
    }
}

/// Prepares, and says what was heard of an earlier preparation.
fn heard(options: &PrepareOptions) -> Option<Earlier> {
    let mut heard = None;
    tokenize(options, &mut |earlier| heard = Some(earlier)).unwrap().settle().unwrap();
    heard
}

/// The files of a directory of prepared data.
fn files(dir: &Path) -> [Vec<u8>; 3] {
    [FILES[0], FILES[1], "tokenizer.json"].map(|name| std::fs::read(dir.join(name)).unwrap())
}

/// The number of files in a directory.
fn count(dir: &Path) -> usize {
    std::fs::read_dir(dir).unwrap().count()
}

/// A text in several gzip members, and where they begin.
fn members(text: &str) -> (Vec<u8>, Vec<usize>) {
    let (mut bytes, mut starts) = (Vec::new(), Vec::new());
    for part in text.as_bytes().chunks(text.len().div_ceil(10)) {
        starts.push(bytes.len());
        let mut packed = flate2::write::GzEncoder::new(bytes, flate2::Compression::fast());
        packed.write_all(part).unwrap();
        bytes = packed.finish().unwrap();
    }
    (bytes, starts)
}

/// Writes a file that looks as if nobody had changed it since.
fn write_unseen(path: &Path, bytes: &[u8]) {
    std::fs::write(path, bytes).unwrap();
    let long_ago = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
    File::options().write(true).open(path).unwrap().set_modified(long_ago).unwrap();
}

/// What fits into no text and begins no gzip member.
const BROKEN: u8 = 0xff;

#[test]
fn what_was_broken_off_at_any_moment_goes_on_to_the_same_bytes() {
    let dir = tempfile::tempdir().unwrap();
    prepared(dir.path());
    let lines =
        |n: usize, end: &str| -> String { (0..n).map(|i| format!("line {i} of the text{end}")).collect() };
    let text = lines(60_000, "\n");
    let rows: String = text.lines().map(|line| json!({"text": line}).to_string() + "\n").collect();
    let tenths = |bytes: Vec<u8>| {
        let starts: Vec<usize> = (0..10).map(|i| bytes.len() * i / 10).collect();
        (bytes, starts)
    };
    for (name, (bytes, starts)) in [
        ("a.txt", tenths(text.clone().into_bytes())),
        ("b.txt", tenths(lines(120_000, "\r\n").into_bytes())),
        ("c.jsonl", tenths(rows.clone().into_bytes())),
        ("d.txt.gz", members(&text)),
        ("e.jsonl.gz", members(&rows)),
    ] {
        let path = dir.path().join(name);
        write_unseen(&path, &bytes);
        let tokenizer = dir.path().join("tokenizer.json");
        let inputs = vec![path.clone().into(), dir.path().join("b.jsonl").into()];
        let mut options = PrepareOptions { inputs, tokenizer, held_out: 0.5, ..Default::default() };
        options.output = dir.path().join("whole");
        prepare(&options).unwrap();
        let whole = files(&options.output);
        options.output = dir.path().join("broken");
        let mut went_on = 0;
        for at in [starts[1], starts[5], starts[9]] {
            let mut broken: Vec<u8> = bytes.clone();
            broken[at] = BROKEN;
            write_unseen(&path, &broken);
            let e = prepare(&options).unwrap_err();
            assert!(e.message().contains(name), "{e}");
            // a process that is ended from outside takes nothing away that it can go on with
            let journal = options.output.join("prepare.journal").exists();
            assert!(options.unfinished().is_empty());
            assert!(journal || count(&options.output) == 0);
            write_unseen(&path, &bytes);
            match heard(&options) {
                Some(Earlier::Continued(tokens)) => assert!(journal && tokens > 0),
                other => assert!(!journal && other.is_none(), "{other:?}"),
            }
            assert!(files(&options.output) == whole, "{name}, broken at {at}");
            assert_eq!(count(&options.output), 3);
            std::fs::remove_dir_all(&options.output).unwrap();
            went_on += usize::from(journal);
        }
        assert!(went_on >= 2, "{name}: {went_on}");
        std::fs::remove_dir_all(dir.path().join("whole")).unwrap();
    }
}

#[test]
fn what_was_broken_off_begins_anew_where_it_does_not_fit() {
    let dir = tempfile::tempdir().unwrap();
    prepared(dir.path());
    let (path, output) = (dir.path().join("c.jsonl"), dir.path().join("out"));
    let rows = (0..30_000).map(|i| json!({"text": format!("line {i} of the text")}).to_string() + "\n");
    let rows: Vec<u8> = rows.collect::<String>().into_bytes();
    let asked = PrepareOptions {
        inputs: vec![path.clone().into()],
        tokenizer: dir.path().join("tokenizer.json"),
        output: output.clone(),
        held_out: 0.5,
        ..Default::default()
    };
    type Change<'c> = (&'c str, &'c dyn Fn(&mut PrepareOptions));
    let changes: [Change<'_>; 7] = [
        ("held_out was \"0.5\" and is \"0.25\"", &|options| options.held_out = 0.25),
        ("end was 0 and is null", &|options| options.end = Some(String::new())),
        ("inputs.0.modified was 1000000000000000000 and is ", &|_| std::fs::write(&path, &rows).unwrap()),
        ("train.tokens.part does not hold what was written", &|options| {
            let part = part(&options.output.join(FILES[0]));
            let mut bytes = std::fs::read(&part).unwrap();
            bytes[HEAD + 10] ^= 1;
            std::fs::write(&part, bytes).unwrap();
        }),
        ("held_out.tokens.part does not hold what was written", &|options| {
            std::fs::write(options.output.join("held_out.offsets.tmp"), [0; 8]).unwrap();
        }),
        ("prepare.journal is damaged", &|options| {
            std::fs::write(options.output.join("prepare.journal"), "{").unwrap();
        }),
        ("prepare.journal is damaged", &|options| {
            let journal = options.output.join("prepare.journal");
            let other = std::fs::read_to_string(&journal).unwrap().replacen("\"place\": ", "\"place\": 1", 1);
            std::fs::write(journal, other).unwrap();
        }),
    ];
    for (reason, change) in changes {
        let mut broken = rows.clone();
        broken[rows.len() * 9 / 10] = BROKEN;
        write_unseen(&path, &broken);
        prepare(&asked).unwrap_err();
        write_unseen(&path, &rows);
        let mut options = asked.clone();
        change(&mut options);
        match heard(&options) {
            Some(Earlier::Replaced(said)) => assert!(said.contains(reason), "{said}"),
            other => panic!("{reason}: {other:?}"),
        }
        assert_eq!(count(&output), 3, "{reason}");
        options.output = dir.path().join("other");
        prepare(&options).unwrap();
        assert!(files(&options.output) == files(&output), "{reason}");
        for made in [&output, &options.output] {
            std::fs::remove_dir_all(made).unwrap();
        }
    }
}

#[test]
fn a_process_takes_away_what_it_began_to_write_itself_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    prepared(dir.path());
    let options = PrepareOptions {
        inputs: vec![dir.path().join("b.jsonl").into()],
        tokenizer: dir.path().join("tokenizer.json"),
        output: dir.path().join("out"),
        ..Default::default()
    };
    let tokenized = tokenize(&options, &mut |_| ()).unwrap();
    assert_eq!(options.unfinished().len(), 4);
    assert!(options.unfinished().iter().all(|path| path.exists()));
    // as though another process had them
    drop(tokenized);
    std::fs::write(part(&options.output.join(FILES[0])), "ids").unwrap();
    assert_eq!(options.unfinished(), [] as [PathBuf; 0]);
}

#[test]
fn what_was_broken_off_begins_anew_where_a_server_has_another_file() {
    let dir = tempfile::tempdir().unwrap();
    prepared(dir.path());
    let text: String = (0..60_000).map(|i| format!("line {i} of the text\n")).collect();
    let server = serve(text.into_bytes(), Fault::Changes);
    let address = format!("{}/plain", server.address);
    let mut options = PrepareOptions {
        inputs: vec![Source::Url(address.clone())],
        tokenizer: dir.path().join("tokenizer.json"),
        output: dir.path().join("out"),
        held_out: 0.5,
        ..Default::default()
    };
    let e = prepare(&options).unwrap_err();
    assert!(e.message().contains("the file changed while it was read"), "{e}");
    let said = Earlier::Replaced(format!("{address} is not the file that it was"));
    assert_eq!(heard(&options), Some(said));
    let found = files(&options.output);
    options.output = dir.path().join("other");
    prepare(&options).unwrap();
    assert!(files(&options.output) == found);
}

/// What the child of the next test prepares, into the directory `killed`.
fn served(dir: &Path, address: &str) -> PrepareOptions {
    PrepareOptions {
        inputs: vec![Source::Url(address.into())],
        tokenizer: dir.join("tokenizer.json"),
        output: dir.join("killed"),
        held_out: 0.5,
        ..Default::default()
    }
}

/// Not a claim of its own: the child of the next test.
#[test]
fn child_that_prepares() {
    let Some(dir) = std::env::var_os("LLM_TRAIN_TEST_PREPARE") else { return };
    let address = std::env::var("LLM_TRAIN_TEST_ADDRESS").unwrap();
    prepare(&served(Path::new(&dir), &address)).unwrap();
}

/// Waits until `journal` is another than `before` and kills the child; true if the child came to its end before.
fn kill_at_next(mut child: Child, journal: &Path, before: Option<&Vec<u8>>) -> bool {
    let clock = Instant::now();
    while clock.elapsed() < Duration::from_secs(60) {
        if let Some(status) = child.try_wait().unwrap() {
            assert!(status.success());
            return true;
        }
        if std::fs::read(journal).is_ok_and(|now| Some(&now) != before) {
            child.kill().unwrap();
            child.wait().unwrap();
            return false;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    child.kill().unwrap();
    panic!("{}: no other within a minute", journal.display());
}

#[test]
fn a_preparation_that_is_killed_goes_on_and_reads_no_finished_row_group_again() {
    use ::parquet::file::reader::{FileReader, SerializedFileReader};
    let dir = tempfile::tempdir().unwrap();
    prepared(dir.path());
    let document = |i: u32| -> String {
        (0..60).map(|j| (i * 61 + j).wrapping_mul(2_654_435_761).to_string() + " ").collect()
    };
    let documents: Vec<String> = (0..2000).map(document).collect();
    let rows: String = documents.iter().map(|d| json!({"text": d}).to_string() + "\n").collect();
    // a line ends with something visible, so that pieces end there
    let text = documents.join(".\n");
    for (name, bytes) in
        [("a.txt", text.into_bytes()), ("b.jsonl", rows.into_bytes()), ("c.parquet", columns(&documents))]
    {
        let server = serve(bytes.clone(), Fault::None);
        let address = format!("{}/resolve/{name}", server.address);
        let options = served(dir.path(), &address);
        let whole = PrepareOptions { output: dir.path().join("whole"), ..options.clone() };
        prepare(&whole).unwrap();
        let journal = options.output.join("prepare.journal");
        let start = || {
            server.starts.lock().unwrap().clear();
            Command::new(std::env::current_exe().unwrap())
                .args(["--exact", "data::tests::child_that_prepares"])
                .env("LLM_TRAIN_TEST_PREPARE", dir.path())
                .env("LLM_TRAIN_TEST_ADDRESS", &address)
                .stdout(Stdio::null())
                .spawn()
                .unwrap()
        };
        // the first one cannot come to its end
        server.hold.store(bytes.len() * 3 / 4, Ordering::SeqCst);
        assert!(!kill_at_next(start(), &journal, None));
        server.hold.store(usize::MAX, Ordering::SeqCst);
        for round in 1.. {
            // it may have come to its end before it was killed
            let Ok(noted) = std::fs::read(&journal) else { break };
            // some more are killed at their first journal
            let next = if round < 4 { journal.clone() } else { dir.path().join("none") };
            let ended = kill_at_next(start(), &next, Some(&noted));
            if name == "c.parquet" {
                let noted: Value = serde_json::from_slice(&noted).unwrap();
                let group = noted["at"]["mark"]["place"].as_u64().unwrap() as usize;
                let reader = SerializedFileReader::new(::bytes::Bytes::from(bytes.clone())).unwrap();
                let column = reader.metadata().row_group(group).column(1);
                let from = column.dictionary_page_offset().unwrap_or(column.data_page_offset()) as usize;
                // the first bytes are asked for to see what the file is
                let starts = server.starts.lock().unwrap();
                assert!(starts.iter().all(|start| *start == 0 || *start >= from), "{from}: {starts:?}");
                assert!(starts.contains(&from) && (group > 0 || round == 1), "{from}: {starts:?}");
            }
            if ended {
                break;
            }
        }
        assert!(files(&options.output) == files(&whole.output), "{name}");
        for made in [&options.output, &whole.output] {
            std::fs::remove_dir_all(made).unwrap();
        }
    }
}

#[test]
fn what_a_tokenizer_says_about_lengths_does_not_shorten_texts() {
    let dir = tempfile::tempdir().unwrap();
    let before = prepared(dir.path());
    let tokenizer = dir.path().join("tokenizer.json");
    let mut tree: serde_json::Value = serde_json::from_slice(&std::fs::read(&tokenizer).unwrap()).unwrap();
    tree["truncation"] = serde_json::json!(
        {"direction": "Right", "max_length": 8, "strategy": "LongestFirst", "stride": 0}
    );
    tree["padding"] = serde_json::json!({"strategy": {"Fixed": 100}, "direction": "Right",
        "pad_to_multiple_of": null, "pad_id": 0, "pad_type_id": 0, "pad_token": "<|endoftext|>"});
    std::fs::write(&tokenizer, tree.to_string()).unwrap();
    let inputs = ["a.txt", "b.jsonl"].map(|name| dir.path().join(name).into()).to_vec();
    let output = dir.path().join("again");
    let after = prepare(&PrepareOptions { inputs, tokenizer, output, ..Default::default() }).unwrap();
    assert_eq!((after.train_tokens, after.held_out_tokens), (before.train_tokens, before.held_out_tokens));
}

#[test]
fn a_damaged_token_file_is_refused_with_its_reason() {
    let dir = tempfile::tempdir().unwrap();
    prepared(dir.path());
    let good = std::fs::read(dir.path().join("data/train.tokens")).unwrap();
    let path = dir.path().join("bad.tokens");
    for at in 0..HEAD {
        let mut bad = good.clone();
        bad[at] ^= 4;
        std::fs::write(&path, &bad).unwrap();
        assert!(TokenFile::open(&path).is_err(), "bit of byte {at}");
    }
    for len in [0, 1, HEAD - 1, HEAD, good.len() - 1] {
        std::fs::write(&path, &good[..len]).unwrap();
        assert!(TokenFile::open(&path).is_err(), "cut to {len}");
    }
    let mut bad = good.clone();
    bad[HEAD + 1] = 0xff;
    std::fs::write(&path, &bad).unwrap();
    let file = TokenFile::open(&path).unwrap();
    assert_eq!(file.read(0, &mut [0]).unwrap_err().status(), Status::BAD_FORMAT);
    assert_eq!(file.verify().unwrap_err().status(), Status::CHECKSUM);
}
