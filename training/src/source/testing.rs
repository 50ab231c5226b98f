//! For tests: a server on this machine that behaves, or one that drops, stalls and lies, and files to serve.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use super::http::sha256;

/// What a server does wrong.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) enum Fault {
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
    /// Has another byte at the end than the file whose sum it says.
    Lies,
}

/// Serves `file` at `/plain`, and below `/resolve/` by a redirection that says, as the Hub's does and its stores' answers do
/// not, which blob of which commit it is.
pub(crate) struct Server {
    pub address: String,
    /// The blob's name, its SHA-256 where this machine can compute one.
    pub etag: String,
    pub requests: Arc<AtomicUsize>,
    /// Where the answers that were asked for begin.
    pub starts: Arc<Mutex<Vec<usize>>>,
    /// What begins at this byte or before it ends there, and the connection stays open.
    pub hold: Arc<AtomicUsize>,
}

pub(crate) fn serve(mut file: Vec<u8>, fault: Fault) -> Server {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let server = Server {
        address: format!("http://{}", listener.local_addr().unwrap()),
        etag: sha256(&file[..]).unwrap().unwrap_or_else(|| "blob77".into()),
        requests: Arc::default(),
        starts: Arc::default(),
        hold: Arc::new(AtomicUsize::new(usize::MAX)),
    };
    if fault == Fault::Lies {
        *file.last_mut().unwrap() ^= 1;
    }
    let (etag, requests) = (server.etag.clone(), server.requests.clone());
    let (starts, hold) = (server.starts.clone(), server.hold.clone());
    // the thread ends with the test's process
    std::thread::spawn(move || {
        let served = Server { address: String::new(), etag, requests, starts, hold };
        for stream in listener.incoming().flatten() {
            let _ = answer(stream, &file, fault, &served); // a client that went away is no fault of the server
        }
    });
    server
}

fn answer(mut stream: TcpStream, file: &[u8], fault: Fault, server: &Server) -> std::io::Result<()> {
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
        let commit = format!("x-repo-commit: 0123abcd\r\nx-linked-etag: \"{}\"", server.etag);
        return write!(
            stream,
            "HTTP/1.1 302 Found\r\nlocation: /plain\r\n{commit}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
        );
    }
    if path != "/plain" {
        return write!(stream, "HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
    }
    let number = server.requests.fetch_add(1, Ordering::SeqCst);
    if matches!(fault, Fault::Busy(n) if number < n) {
        return write!(stream, "HTTP/1.1 503 Busy\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
    }
    let total = file.len();
    let ranges = !matches!(fault, Fault::NoRanges | Fault::NoRangesAndDrops);
    let start = if ranges { start.unwrap_or(0).min(total) } else { 0 };
    let said = if fault == Fault::WrongRange && number > 0 { start + 1 } else { start };
    let etag = if fault == Fault::Changes && number > 0 { "other" } else { "of the store" };
    let body = &file[start..];
    server.starts.lock().unwrap().push(start);
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
    let held = server.hold.load(Ordering::SeqCst).checked_sub(start).filter(|held| *held < body.len());
    stream.write_all(&body[..body.len().min(most).min(held.unwrap_or(usize::MAX))])?;
    if held.is_some() || fault == Fault::Stalls && number == 0 {
        std::mem::forget(stream); // it stays open
    }
    Ok(())
}

/// A Parquet file with a column `text` in several row groups, some rows without one.
pub(crate) fn columns(documents: &[String]) -> Vec<u8> {
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
