//! Sources against a server on this machine that behaves, and one that drops, stalls and lies.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;

/// What a server does wrong.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Fault {
    None,
    /// Closes the connection after so many bytes of each body.
    DropsAfter(usize),
    /// Answers 503 to the first so many requests.
    Busy(usize),
    /// Knows no ranges.
    NoRanges,
    /// Knows no ranges, and drops the first body half way.
    NoRangesAndDrops,
    /// Sends half of the first body, and then nothing.
    Stalls,
    /// Answers another range than the one asked for.
    WrongRange,
    /// Has another file from the second request on.
    Changes,
    /// Sends no byte of any body.
    Empty,
    /// Sends headers that are no numbers.
    Nonsense,
    /// Answers with so many bytes at once, and does not say how many there are in all.
    Parts(usize),
}

/// Serves `file` at `/plain`, and below `/resolve/` by a redirection that says, as the Hub's does and its stores' answers do
/// not, which blob of which commit it is.
struct Server {
    address: String,
    requests: Arc<AtomicUsize>,
}

fn serve(file: Vec<u8>, fault: Fault) -> Server {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let requests = Arc::new(AtomicUsize::new(0));
    let count = requests.clone();
    // the thread ends with the test's process
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let _ = answer(stream, &file, fault, &count); // a client that went away is no fault of the server
        }
    });
    Server { address, requests }
}

fn answer(mut stream: TcpStream, file: &[u8], fault: Fault, count: &AtomicUsize) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let (mut first, mut start, mut line) = (String::new(), None, String::new());
    reader.read_line(&mut first)?;
    loop {
        line.clear();
        if reader.read_line(&mut line)? == 0 || line == "\r\n" {
            break;
        }
        if let Some(range) = line.to_lowercase().strip_prefix("range: bytes=") {
            start = range.trim().trim_end_matches('-').parse::<usize>().ok();
        }
    }
    let path = first.split(' ').nth(1).unwrap_or_default();
    if path.contains("/resolve/") {
        let commit = "x-repo-commit: 0123abcd\r\nx-linked-etag: \"blob77\"";
        return write!(
            stream,
            "HTTP/1.1 302 Found\r\nlocation: /plain\r\n{commit}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
        );
    }
    if path != "/plain" {
        return write!(stream, "HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
    }
    let number = count.fetch_add(1, Ordering::SeqCst);
    if matches!(fault, Fault::Busy(n) if number < n) {
        return write!(stream, "HTTP/1.1 503 Busy\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
    }
    let total = file.len();
    let ranges = !matches!(fault, Fault::NoRanges | Fault::NoRangesAndDrops);
    let start = if ranges { start.unwrap_or(0).min(total) } else { 0 };
    let said = if fault == Fault::WrongRange && number > 0 { start + 1 } else { start };
    let etag = if fault == Fault::Changes && number > 0 { "other" } else { "of the store" };
    let body = &file[start..];
    if let Fault::Parts(n) = fault {
        let (last, n) = ("HTTP/1.1 416 Beyond", n.min(body.len()));
        let (first, range) = match n {
            0 => (last, format!("*/{total}")),
            _ => ("HTTP/1.1 206 Partial Content", format!("{start}-{}/*", start + n - 1)),
        };
        write!(
            stream,
            "{first}\r\ncontent-range: bytes {range}\r\ncontent-length: {n}\r\nconnection: close\r\n\r\n"
        )?;
        return stream.write_all(&body[..n]);
    }
    let range = match fault {
        Fault::Nonsense => "content-range: bytes x-y/z\r\n".to_string(),
        _ if ranges => format!("content-range: bytes {said}-{}/{total}\r\n", total - 1),
        _ => String::new(),
    };
    let status = if ranges { "206 Partial Content" } else { "200 OK" };
    write!(
        stream,
        "HTTP/1.1 {status}\r\n{range}etag: \"{etag}\"\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
        body.len()
    )?;
    let most = match fault {
        Fault::DropsAfter(n) => n,
        Fault::NoRangesAndDrops | Fault::Stalls if number == 0 => total / 2,
        Fault::Changes | Fault::WrongRange if number == 0 => total / 2,
        Fault::Empty => 0,
        _ => usize::MAX,
    };
    stream.write_all(&body[..body.len().min(most)])?;
    if fault == Fault::Stalls && number == 0 {
        std::mem::forget(stream); // it stays open
    }
    Ok(())
}

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

/// A Parquet file with a column `text` in several row groups, some rows without one.
fn columns(documents: &[String]) -> Vec<u8> {
    use ::parquet::basic::Compression;
    use ::parquet::data_type::{ByteArray, ByteArrayType};
    use ::parquet::file::properties::WriterProperties;
    use ::parquet::file::writer::SerializedFileWriter;
    let schema = ::parquet::schema::parser::parse_message_type(
        "message m { REQUIRED INT64 id; OPTIONAL BYTE_ARRAY text (UTF8); }",
    );
    let properties = WriterProperties::builder().set_compression(Compression::SNAPPY).build();
    let mut out = Vec::new();
    let mut writer =
        SerializedFileWriter::new(&mut out, Arc::new(schema.unwrap()), Arc::new(properties)).unwrap();
    for group in documents.chunks(120) {
        let mut groups = writer.next_row_group().unwrap();
        let mut ids = groups.next_column().unwrap().unwrap();
        let rows = group.len() + 1;
        ids.typed::<::parquet::data_type::Int64Type>().write_batch(&vec![7; rows], None, None).unwrap();
        ids.close().unwrap();
        let mut texts = groups.next_column().unwrap().unwrap();
        let values: Vec<ByteArray> = group.iter().map(|d| d.as_bytes().to_vec().into()).collect();
        let mut levels = vec![1; rows];
        levels[rows / 2] = 0; // a row without text
        texts.typed::<ByteArrayType>().write_batch(&values, Some(&levels), None).unwrap();
        texts.close().unwrap();
        groups.close().unwrap();
    }
    writer.close().unwrap();
    out
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
        Cursor::new(Arc::new(blob)).read_to_string(&mut text).unwrap();
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

#[test]
fn a_broken_download_goes_on_where_it_broke_off_and_one_at_a_time() {
    let file = columns(&["a document".to_string()]);
    let server = serve(file.clone(), Fault::None);
    let dir = tempfile::tempdir().unwrap();
    let place = hub::Place { endpoint: server.address.clone(), cache: dir.path().into(), token: None };
    let name = HubFile::parse("hf://datasets/a/b/c.parquet").unwrap();
    let blobs = dir.path().join("datasets--a--b/blobs");
    std::fs::create_dir_all(&blobs).unwrap();
    let part = blobs.join("blob77.part");
    std::fs::write(&part, [b'x'; 20]).unwrap();
    let busy = std::fs::File::open(&part).unwrap();
    busy.try_lock().unwrap();
    assert_eq!(name.download(&place).unwrap_err().status(), Status::BUSY);
    drop(busy);
    let path = name.download(&place).unwrap();
    // what was there stays as it was, what follows is fetched
    assert_eq!(std::fs::read(path).unwrap(), [&[b'x'; 20][..], &file[20..]].concat());
    assert!(!part.exists());
}

#[test]
fn a_text_without_lines_that_follow_each_other_is_cut_all_the_same() {
    let here = Source::File("t".into());
    for end in ["\r\n", " \n", "\n\n", "\n  ", " \n \t\n\n"] {
        let text: String = (0..60_000).map(|i| format!("line {i} of the text{end}")).collect();
        let mut pieces: Vec<String> = Vec::new();
        text::pieces(text.as_bytes(), &here, &mut |piece, _| {
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
    text::pieces(spaces.as_bytes(), &here, &mut |_, _| {
        count += 1;
        Ok(())
    })
    .unwrap();
    assert_eq!(count, 2);
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
        parquet::rows(Arc::new(blob), &Source::Hub(file.clone()), "text", &mut |t| {
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
    assert_eq!(std::fs::read(folder.join("blobs/blob77")).unwrap(), columns(&documents));
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
