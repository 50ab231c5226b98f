//! Sources against a server on this machine that behaves, and one that drops, stalls and lies.

use std::io::Write;
use std::net::TcpListener;
use std::sync::atomic::Ordering;

use super::testing::{Fault, Server, columns, serve};
use super::*;

/// About 700 kB of lines.
fn text() -> String {
    (0..20_000).map(|i| format!("line {i} of a text, in order\n")).collect()
}

fn read(source: &Source) -> Result<Vec<String>> {
    let (mut documents, mut open) = (Vec::new(), String::new());
    source.documents("text", &mut |piece, last| {
        open.push_str(piece);
        if last {
            documents.push(std::mem::take(&mut open));
        }
        Ok(())
    })?;
    Ok(documents)
}

#[test]
fn names_tell_place_and_format() {
    let format = |name: &str| Source::parse(name).unwrap().format();
    assert_eq!(format("a/b.txt"), Format::Text(None));
    assert_eq!(format("README"), Format::Text(None));
    assert_eq!(format("x.jsonl.gz"), Format::Lines(Some(Packed::Gzip)));
    assert_eq!(format("c4-train.00000.json.gz"), Format::Lines(Some(Packed::Gzip)));
    assert_eq!(format("http://host/x.txt.zst?download=true"), Format::Text(Some(Packed::Zstd)));
    assert_eq!(format("hf://datasets/a/b/c/d.parquet"), Format::Columns);
    assert_eq!(Source::parse("dir/file.txt").unwrap(), Source::File("dir/file.txt".into()));
    for bad in
        ["hf://", "hf://datasets/a", "hf://datasets/a/b", "hf://models/a/b/c", "hf://datasets/a/b/../c"]
    {
        assert_eq!(Source::parse(bad).unwrap_err().status(), Status::INVALID_ARG, "{bad}");
    }
}

#[test]
fn every_format_gives_the_same_documents() {
    let dir = tempfile::tempdir().unwrap();
    let documents: Vec<String> =
        (0..500).map(|i| format!("document {i}\nwith \"two\" lines, ä {}", "x".repeat(i))).collect();
    let lines: String =
        documents.iter().map(|d| serde_json::json!({"id": 1, "text": d}).to_string() + "\n").collect();
    let gz = {
        let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        packed.write_all(lines.as_bytes()).unwrap();
        packed.finish().unwrap()
    };
    let zst = |x: &[u8]| ruzstd::encoding::compress_to_vec(x, ruzstd::encoding::CompressionLevel::Fastest);
    let files = [
        ("a.jsonl", lines.clone().into_bytes()),
        ("a.jsonl.gz", [&gz[..], &[]].concat()),
        // two frames and a skippable one between them
        ("a.jsonl.zst", {
            let (a, b) = lines.as_bytes().split_at(5000);
            [zst(a), vec![0x50, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, 1, 2, 3], zst(b)].concat()
        }),
        ("a.parquet", columns(&documents)),
    ];
    for (name, bytes) in files {
        let path = dir.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        assert_eq!(read(&Source::File(path)).unwrap(), documents, "{name}");
    }
    // two gzip members, one after the other, are one text
    let path = dir.path().join("two.txt.gz");
    std::fs::write(&path, [&gz[..], &gz[..]].concat()).unwrap();
    assert_eq!(read(&Source::File(path)).unwrap(), [lines.clone() + &lines]);
}

/// Files that `tests/reference/columns.py` wrote, with pages of zstd.
const ZSTD: [&[u8]; 2] = [
    include_bytes!("../../tests/reference/zstd-1.parquet"),
    include_bytes!("../../tests/reference/zstd-2.parquet"),
];

#[test]
fn pages_of_zstd_of_another_writer_are_read_and_damaged_ones_refused() {
    let rows = |i: usize| {
        let few = format!("row {}, ä", i % 5);
        if i < 60 { few } else { format!("row {i}: ") + &format!("{} and ", i * i).repeat(i % 40) }
    };
    let expected: Vec<String> = (0..120).filter(|i| i % 7 != 3).map(rows).collect();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.parquet");
    let source = Source::File(path.clone());
    for whole in ZSTD {
        std::fs::write(&path, whole).unwrap();
        assert_eq!(read(&source).unwrap(), expected);
        let mut refused = 0;
        for at in 0..whole.len() {
            let mut bytes = whole.to_vec();
            bytes[at] ^= 1 << (at % 8);
            std::fs::write(&path, bytes).unwrap();
            // what has no checksum may have changed
            if let Err(e) = read(&source) {
                assert!(e.message().contains("a.parquet"), "{e}");
                refused += 1;
            }
        }
        assert!(refused > 100, "{refused}");
    }
}

#[test]
fn a_server_that_drops_or_stalls_or_is_busy_or_knows_no_ranges_is_read_whole() {
    for fault in [
        Fault::None,
        Fault::DropsAfter(100_000),
        Fault::Busy(2),
        Fault::NoRanges,
        Fault::NoRangesAndDrops,
        Fault::Stalls,
        Fault::Parts(100_000),
    ] {
        let server = serve(text().into_bytes(), fault);
        let source = Source::parse(&format!("{}/plain", server.address)).unwrap();
        assert!(read(&source).unwrap() == [text()], "{fault:?}");
        let requests = server.requests.load(Ordering::SeqCst);
        let expected = match fault {
            Fault::DropsAfter(n) => text().len().div_ceil(n)..=text().len().div_ceil(n) + 1,
            Fault::Busy(n) => n + 1..=n + 1,
            Fault::NoRangesAndDrops | Fault::Stalls => 2..=2,
            // and one that says where the end is
            Fault::Parts(n) => text().len().div_ceil(n) + 1..=text().len().div_ceil(n) + 1,
            _ => 1..=1,
        };
        assert!(expected.contains(&requests), "{fault:?}: {requests} requests");
    }
}

#[test]
fn a_server_that_lies_is_refused_with_the_reason() {
    for (fault, reason) in [
        (Fault::WrongRange, "asked for bytes from"),
        (Fault::Changes, "changed while it was read"),
        (Fault::Empty, "disconnected"),
        (Fault::Nonsense, "makes no sense"),
    ] {
        let server = serve(text().into_bytes(), fault);
        let address = format!("{}/plain", server.address);
        let error = read(&Source::Url(address.clone())).unwrap_err().to_string();
        assert!(error.contains(reason) && error.contains(&address), "{fault:?}: {error}");
    }
    let server = serve(Vec::new(), Fault::None);
    let error = read(&Source::Url(format!("{}/nothing", server.address))).unwrap_err();
    assert_eq!(error.status(), Status::NOT_FOUND);
    assert_eq!(read(&Source::Url("http://127.0.0.1:9/x".into())).unwrap_err().status(), Status::IO);
}

#[test]
fn columns_on_a_server_are_read_with_few_questions() {
    let documents: Vec<String> = (0..1500).map(|i| format!("document {i}")).collect();
    let server = serve(columns(&documents), Fault::None);
    let name = format!("{}/resolve/a.parquet", server.address);
    assert_eq!(read(&Source::Url(name)).unwrap(), documents);
    // each of 13 groups has a page and a header before it
    let requests = server.requests.load(Ordering::SeqCst);
    assert!(requests < 10, "{requests} requests");
}

/// Answers every connection with what `reply` makes of the question's head, and closes it.
fn replies(reply: impl Fn(&str) -> String + Send + 'static) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let (mut head, mut bytes) = (Vec::new(), [0u8]);
            while !head.ends_with(b"\r\n\r\n") && stream.read(&mut bytes).is_ok_and(|n| n == 1) {
                head.push(bytes[0]);
            }
            let _ = stream.write_all(reply(&String::from_utf8_lossy(&head)).as_bytes()); // as above
        }
    });
    address
}

fn redirect(to: &str) -> String {
    format!("HTTP/1.1 302 Found\r\nlocation: {to}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
}

#[test]
fn a_token_goes_to_the_first_server_alone() {
    let answer = |head: &str| {
        let body = if head.to_lowercase().contains("authorization: bearer secret") { "yes" } else { "no" };
        format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}", body.len())
    };
    let other = format!("http://{}/file", replies(answer));
    let first = replies(move |head| match head.split(' ').nth(1) {
        Some("/away") => redirect(&other),
        Some("/within/x") => redirect("y"),
        Some("/within/y") => answer(head),
        _ => redirect("/within/x"),
    });
    for (path, told) in [("/within/y", "yes"), ("/within/x", "yes"), ("/", "yes"), ("/away", "no")] {
        let blob = Blob::http(&format!("http://{first}{path}"), Some("secret")).unwrap();
        let mut text = String::new();
        Cursor::at(Arc::new(blob), 0).read_to_string(&mut text).unwrap();
        assert_eq!(text, told, "{path}");
    }
}

#[test]
fn redirections_that_lead_nowhere_are_errors() {
    let hangs_up = TcpListener::bind("127.0.0.1:0").unwrap();
    let secured = format!("https://{}/x", hangs_up.local_addr().unwrap());
    // what speaks no TLS is no reason to panic
    std::thread::spawn(move || hangs_up.incoming().for_each(drop));
    let address = replies(move |head| match head.split(' ').nth(1) {
        Some("/secured") => redirect(&secured),
        Some("/file") => redirect("file:///etc/passwd"),
        Some("/lost") => "HTTP/1.1 302 Found\r\ncontent-length: 0\r\nconnection: close\r\n\r\n".into(),
        _ => redirect("/round"),
    });
    for (path, reason) in [
        ("/secured", "attempts"),
        ("/file", "file"),
        ("/lost", "and not where"),
        ("/round", "more than 10 redirections"),
    ] {
        let url = format!("http://{address}{path}");
        let e = read(&Source::Url(url.clone())).unwrap_err();
        assert!(e.message().contains(reason) && e.message().contains(&url), "{path}: {e}");
    }
    // a token that cannot stand in a header
    let url = format!("http://{address}/");
    let e = Blob::http(&url, Some("a\r\nb: c")).err().unwrap();
    assert!(e.message().contains(&url) && !e.message().contains("attempts"), "{e}");
}

/// The Hub that a server plays, with a cache in `dir`, a file of it, and the directory of its blobs.
fn cache(server: &Server, dir: &Path) -> (hub::Place, HubFile, PathBuf) {
    let place = hub::Place { endpoint: server.address.clone(), cache: dir.into(), token: None };
    let blobs = dir.join("datasets--a--b/blobs");
    std::fs::create_dir_all(&blobs).unwrap();
    (place, HubFile::parse("hf://datasets/a/b/c.parquet").unwrap(), blobs)
}

#[test]
fn a_broken_download_goes_on_where_it_broke_off_and_one_at_a_time() {
    let file = text().into_bytes();
    let server = serve(file.clone(), Fault::None);
    let dir = tempfile::tempdir().unwrap();
    let (place, name, blobs) = cache(&server, dir.path());
    let part = blobs.join(format!("{}.part", server.etag));
    let there = file.len() - 5000;
    std::fs::write(&part, &file[..there]).unwrap();
    let busy = std::fs::File::open(&part).unwrap();
    busy.try_lock().unwrap();
    assert_eq!(name.download(&place).unwrap_err().status(), Status::BUSY);
    drop(busy);
    server.starts.lock().unwrap().clear();
    let path = name.download(&place).unwrap();
    assert_eq!(std::fs::read(path).unwrap(), file);
    assert!(!part.exists());
    // the first question is for what the server says of the file
    assert_eq!(server.starts.lock().unwrap()[..], [0, there]);
}

#[test]
fn a_download_that_is_not_what_the_hub_says_is_refused_and_leaves_nothing() {
    let file = columns(&["a document".to_string()]);
    let dir = tempfile::tempdir().unwrap();
    for (fault, before) in [(Fault::Lies, None), (Fault::None, Some(20)), (Fault::None, Some(file.len()))] {
        let server = serve(file.clone(), fault);
        let (place, name, blobs) = cache(&server, dir.path());
        if server.etag.len() != 64 {
            return llm_testdata::not_run("SHA-256: this processor has no instructions for https");
        }
        let part = blobs.join(format!("{}.part", server.etag));
        if let Some(before) = before {
            std::fs::write(&part, vec![b'x'; before]).unwrap();
        }
        let e = name.download(&place).unwrap_err();
        assert_eq!(e.status(), Status::CHECKSUM);
        assert!(e.message().starts_with(&server.address), "{e}");
        let expected = format!(", expected {}, the server's ETag", server.etag);
        assert!(
            e.message().contains(": what came has the SHA-256 ") && e.message().contains(&expected),
            "{e}"
        );
        assert!(std::fs::read_dir(&blobs).unwrap().next().is_none(), "{fault:?}");
        // the next one begins anew
        if fault == Fault::None {
            assert_eq!(std::fs::read(name.download(&place).unwrap()).unwrap(), file);
            std::fs::remove_dir_all(dir.path().join("datasets--a--b")).unwrap();
        }
    }
}

#[test]
fn a_text_without_lines_that_follow_each_other_is_cut_all_the_same() {
    let here = Source::File("t".into());
    for end in ["\r\n", " \n", "\n\n", "\n  ", " \n \t\n\n"] {
        let text: String = (0..60_000).map(|i| format!("line {i} of the text{end}")).collect();
        let mut pieces: Vec<String> = Vec::new();
        text::pieces(text.as_bytes(), &here, Mark::default(), &mut |piece, _, _| {
            pieces.push(piece.into());
            Ok(())
        })
        .unwrap();
        assert!(pieces.concat() == text && pieces.len() > 1, "{end:?}");
        for pair in pieces.windows(2) {
            assert!(pair[0].len() < text::LONGEST + 100, "{end:?}: {}", pair[0].len());
            // the cut changes no word
            let (before, after) = (&pair[0][pair[0].len() - 100..], &pair[1][..100]);
            let merges = |texts: &[&str]| {
                let mut words = crate::bpe::Words::default();
                texts.iter().for_each(|t| words.count(t).unwrap());
                crate::bpe::Bpe::train(&words, 400, &[], 1).unwrap().merges()
            };
            assert_eq!(merges(&[before, after]), merges(&[[before, after].concat().as_str()]), "{end:?}");
        }
    }
    // nothing but white space
    let (spaces, mut count) = (" \n".repeat(text::LONGEST), 0);
    text::pieces(spaces.as_bytes(), &here, Mark::default(), &mut |_, _, _| {
        count += 1;
        Ok(())
    })
    .unwrap();
    assert_eq!(count, 2);
}

/// What lies behind a mark, each piece with the mark behind it.
fn behind(source: &Source, from: Mark) -> Vec<(String, bool, Mark)> {
    let mut all = Vec::new();
    let mut take = |piece: &str, last, mark| {
        all.push((piece.to_string(), last, mark));
        Ok(())
    };
    source.open().unwrap().documents(from, "text", &mut take).unwrap();
    all
}

#[test]
fn what_is_read_on_from_a_mark_is_what_follows_it() {
    let dir = tempfile::tempdir().unwrap();
    let documents: Vec<String> = (0..700).map(|i| format!("document {i}\n{}", "x".repeat(i))).collect();
    let rows: String =
        documents.iter().map(|d| serde_json::json!({"text": d}).to_string() + "\n\n").collect();
    // one border of lines in all, and white space that is longer than any piece
    let blank = " ".repeat(3 * text::LONGEST);
    let lines: String = (0..50_000).map(|i| format!("line {i} of the text\r\n")).collect();
    let spaced = format!("{lines}x\ny{blank}\nz\n{lines}{blank}\n{blank}{lines}");
    let gz = |text: &str| {
        let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        packed.write_all(text.as_bytes()).unwrap();
        packed.finish().unwrap()
    };
    let zst = |x: &[u8]| ruzstd::encoding::compress_to_vec(x, ruzstd::encoding::CompressionLevel::Fastest);
    for (name, bytes, pieces) in [
        ("a.txt", text().repeat(3).into_bytes(), 6),
        ("b.txt", spaced.clone().into_bytes(), 6),
        ("c.txt.gz", gz(&spaced), 6),
        ("d.jsonl", rows.clone().into_bytes(), 700),
        ("e.jsonl.gz", gz(&rows), 700),
        ("f.jsonl.zst", zst(rows.as_bytes()), 700),
        ("g.parquet", columns(&documents), 700),
    ] {
        let path = dir.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        let source = Source::File(path);
        let all = behind(&source, Mark::default());
        assert!(all.len() >= pieces, "{name}: {}", all.len());
        let every = if pieces < 700 { 1 } else { 59 };
        // a text has one end
        let ends = if pieces < 700 { 1 } else { 0 };
        for i in (0..all.len() - ends).step_by(every) {
            assert!(behind(&source, all[i].2) == all[i + 1..], "{name}: piece {i}");
        }
    }
}

#[test]
fn a_source_that_became_shorter_than_a_mark_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    for (name, mark) in [
        ("a.txt", Mark { place: 0, carried: 9, count: 1 }),
        ("b.txt.gz", Mark { place: 9, carried: 0, count: 1 }),
    ] {
        let path = dir.path().join(name);
        let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        packed.write_all(b"a text").unwrap();
        let bytes = if name == "a.txt" { b"a text".to_vec() } else { packed.finish().unwrap() };
        std::fs::write(&path, bytes).unwrap();
        let source = Source::File(path);
        let e = source.open().unwrap().documents(mark, "text", &mut |_, _, _| Ok(())).unwrap_err();
        assert_eq!(e.status(), Status::MISMATCH);
        assert!(
            e.message().contains(name) && e.message().contains("ends behind 6 bytes, but at least 9"),
            "{e}"
        );
    }
}

#[test]
fn a_column_shorter_than_its_group_is_an_error() {
    // the number of rows of the only group, a varint before the end of its head
    let file = columns(&["one".to_string(), "two".to_string()]);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.parquet");
    let mut refused = 0;
    for at in 0..file.len() {
        let mut bytes = file.clone();
        // 3 rows as a zigzag number become 4
        if bytes[at] == 6 {
            bytes[at] = 8;
            std::fs::write(&path, bytes).unwrap();
            let said = read(&Source::File(path.clone())).err().map(|e| e.message().to_string());
            refused +=
                usize::from(said.is_some_and(|s| s.contains("a column of 3 rows where the file names 4")));
        }
    }
    assert_eq!(refused, 1);
}

#[test]
fn a_directory_is_no_source() {
    let dir = tempfile::tempdir().unwrap();
    let e = read(&Source::File(dir.path().into())).unwrap_err();
    assert!(e.message().contains("expected a file"), "{e}");
}

#[test]
fn a_file_of_the_hub_is_streamed_then_kept_in_the_cache_and_read_there() {
    let documents: Vec<String> = (0..300).map(|i| format!("document {i}")).collect();
    let server = serve(columns(&documents), Fault::DropsAfter(3000));
    let dir = tempfile::tempdir().unwrap();
    let place = hub::Place {
        endpoint: server.address.clone(),
        cache: dir.path().into(),
        token: Some("secret".into()),
    };
    let file =
        HubFile::parse("hf://datasets/HuggingFaceFW/fineweb-edu/sample/10BT/000_00000.parquet").unwrap();
    let rows = |blob: Blob| {
        let mut rows = Vec::new();
        parquet::rows(Arc::new(blob), &Source::Hub(file.clone()), Mark::default(), "text", &mut |t, _| {
            rows.push(t.to_string());
            Ok(())
        })
        .unwrap();
        rows
    };
    assert_eq!(rows(file.open(&place).unwrap()), documents);
    assert!(
        !dir.path().join("datasets--HuggingFaceFW--fineweb-edu").exists(),
        "streaming leaves the cache alone"
    );

    let path = file.download(&place).unwrap();
    let folder = dir.path().join("datasets--HuggingFaceFW--fineweb-edu");
    assert_eq!(path, folder.join("snapshots/0123abcd/sample/10BT/000_00000.parquet"));
    assert_eq!(std::fs::read_to_string(folder.join("refs/main")).unwrap(), "0123abcd");
    assert_eq!(std::fs::read(folder.join("blobs").join(&server.etag)).unwrap(), columns(&documents));
    let before = server.requests.load(Ordering::SeqCst);
    assert_eq!(rows(file.open(&place).unwrap()), documents);
    assert_eq!(file.download(&place).unwrap(), path);
    assert_eq!(server.requests.load(Ordering::SeqCst), before, "the cache answers alone");
}

#[test]
fn damaged_files_are_refused_with_name_and_place() {
    let dir = tempfile::tempdir().unwrap();
    let zst = |x: &[u8]| ruzstd::encoding::compress_to_vec(x, ruzstd::encoding::CompressionLevel::Fastest);
    let whole = zst(b"a text that was compressed, and then damaged\n");
    let mut changed = whole.clone();
    *changed.last_mut().unwrap() ^= 1; // of the checksum
    let documents = vec!["one".to_string(), "two".to_string()];
    let good = columns(&documents);
    let mut cases: Vec<(&str, Vec<u8>)> = vec![
        ("a.jsonl", b"{\"text\": \"a\"}\n{\"text\": 3}\n".to_vec()),
        ("b.jsonl", b"{\"text\": \"a\"\n".to_vec()),
        ("list.json", b"[\n  {\"text\": \"a\"}\n]\n".to_vec()),
        ("c.txt", b"fine\n\xff\xfe\n".to_vec()),
        ("d.txt.gz", b"not gzip".to_vec()),
        ("e.txt.zst", b"not zstd".to_vec()),
        ("cut.txt.zst", whole[..whole.len() - 6].to_vec()),
        ("changed.txt.zst", changed),
        // a window of gigabytes
        ("window.txt.zst", vec![0x28, 0xb5, 0x2f, 0xfd, 0x00, 0xf0, 0x01, 0x00, 0x00]),
        ("f.parquet", b"PAR1PAR1".to_vec()),
        ("g.parquet", Vec::new()),
    ];
    for cut in (1..good.len()).step_by(7) {
        cases.push(("cut.parquet", good[..cut].to_vec()));
    }
    for (name, bytes) in cases {
        let path = dir.path().join(name);
        std::fs::write(&path, &bytes).unwrap();
        let error = read(&Source::File(path)).unwrap_err().to_string();
        assert!(error.contains(name), "{name}, {} bytes: {error}", bytes.len());
    }
    let path = dir.path().join("good.parquet");
    std::fs::write(&path, &good).unwrap();
    let error = Source::File(path).documents("body", &mut |_, _| Ok(())).unwrap_err();
    assert!(error.message().contains("there are id, text"), "{error}");
}
