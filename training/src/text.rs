//! Documents out of text files, in pieces of bounded size that a tokenizer may see one by one.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;

use llm::error::{Error, Result, Status};

/// A piece is cut once it has this many bytes and a border allows it.
const PIECE: usize = 256 << 10;

/// Calls `f(piece, last)` for the pieces of each document of `path`; `last` marks the end of a document. A `.jsonl`
/// file holds a document per line, in the string `field`; any other file is one document of UTF-8 text.
///
/// # Errors
/// `NOT_FOUND`, `IO`; `BAD_UTF8` and `BAD_FORMAT` with file and line.
pub(crate) fn documents(path: &Path, field: &str, f: &mut dyn FnMut(&str, bool) -> Result<()>) -> Result<()> {
    let whole = |e: std::io::Error| Error::from(e).context(path.display());
    let mut reader = BufReader::new(File::open(path).map_err(whole)?);
    let jsonl = path.extension().is_some_and(|e| e == "jsonl");
    let (mut piece, mut line, mut number) = (String::new(), Vec::new(), 0);
    loop {
        line.clear();
        number += 1;
        if reader.read_until(b'\n', &mut line).map_err(whole)? == 0 {
            break;
        }
        let text = std::str::from_utf8(&line).map_err(|e| {
            let message = format!("{}:{number}: {e}; expected UTF-8 text", path.display());
            Error::new(Status::BAD_UTF8, message)
        })?;
        if jsonl {
            if !text.trim().is_empty() {
                let wrong = |what: String| {
                    Error::new(Status::BAD_FORMAT, format!("{}:{number}: {what}", path.display()))
                };
                let row: serde_json::Value = serde_json::from_str(text).map_err(|e| wrong(e.to_string()))?;
                let text = row.get(field).and_then(|v| v.as_str());
                f(text.ok_or_else(|| wrong(format!("no string {field:?} in this object")))?, true)?;
            }
            continue;
        }
        if piece.len() >= PIECE && border(&piece, text) {
            f(&piece, false)?;
            piece.clear();
        }
        piece.push_str(text);
    }
    if jsonl { Ok(()) } else { f(&piece, true) }
}

/// Whether a text may be cut between two lines without a tokenizer of the GPT-2 kind noticing: a single line feed
/// after something visible, and something visible after it. Such a line feed is a word of its own.
fn border(before: &str, after: &str) -> bool {
    let visible = |c: Option<char>| c.is_some_and(|c| !c.is_whitespace());
    before.strip_suffix('\n').is_some_and(|b| visible(b.chars().next_back())) && visible(after.chars().next())
}
