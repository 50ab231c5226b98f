//! Documents out of running text and out of lines of JSON, in pieces of bounded size.

use std::io::{BufRead, Read};

use llm::error::{Error, Result, Status};

use super::{Mark, Source, shorter, wrong};

/// A piece is cut once it has this many bytes and a border allows it.
pub(super) const PIECE: usize = 256 << 10;
/// One with this many bytes is cut without such a border, before the white space at its end.
pub(super) const LONGEST: usize = 4 * PIECE;
/// The longest line; what is longer is no text, or no lines.
const LINE: u64 = 64 << 20;

/// One document of text, in pieces; a text may be larger than memory, its lines may not. `reader` begins at the place
/// of the mark `from`.
pub(super) fn pieces(
    mut reader: impl BufRead,
    source: &Source,
    from: Mark,
    f: &mut dyn FnMut(&str, bool, Mark) -> Result<()>,
) -> Result<()> {
    let (mut place, mut number) = (from.place, from.count);
    let (mut piece, mut line) = (String::new(), Vec::new());
    let carried = (&mut reader).take(from.carried).read_to_string(&mut piece);
    let carried = carried.map_err(|e| Error::from(e).context(source))? as u64;
    if carried < from.carried {
        return Err(shorter(source, from.place + from.carried, from.place + carried));
    }
    while let Some(text) = next(&mut reader, source, &mut line, &mut number)? {
        let end = if piece.len() >= PIECE && border(&piece, text) {
            piece.len()
        } else if piece.len() >= LONGEST {
            // lines that end with spaces or \r, or lie apart: a word ends before white space, too
            match piece.trim_end().len() {
                0 => piece.len(),
                end => end,
            }
        } else {
            0
        };
        if end > 0 {
            place += end as u64;
            let carried = (piece.len() - end + text.len()) as u64;
            f(&piece[..end], false, Mark { place, carried, count: number })?;
            piece.drain(..end);
        }
        piece.push_str(text);
    }
    f(&piece, true, Mark { place: place + piece.len() as u64, carried: 0, count: number })
}

/// A document per line, in the string `field` of a JSON object; empty lines are skipped. `reader` as for [`pieces`].
pub(super) fn lines(
    reader: impl BufRead,
    source: &Source,
    from: Mark,
    field: &str,
    f: &mut dyn FnMut(&str, Mark) -> Result<()>,
) -> Result<()> {
    rows(reader, source, from, &mut |number, row, mark| {
        let text = row.get(field).and_then(|v| v.as_str());
        let bad = || wrong(Status::BAD_FORMAT, source, number, format!("no string {field:?} in this object"));
        f(text.ok_or_else(bad)?, mark)
    })
}

/// A JSON object per line, with the line's number; empty lines are skipped. `reader` as for [`pieces`].
pub(super) fn rows(
    mut reader: impl BufRead,
    source: &Source,
    from: Mark,
    f: &mut dyn FnMut(u64, &serde_json::Value, Mark) -> Result<()>,
) -> Result<()> {
    let (mut line, mut number, mut place) = (Vec::new(), from.count, from.place);
    while let Some(text) = next(&mut reader, source, &mut line, &mut number)? {
        place += text.len() as u64;
        if !text.trim().is_empty() {
            let bad = |e: serde_json::Error| {
                wrong(
                    Status::BAD_FORMAT,
                    source,
                    number,
                    format_args!("{e}; expected a JSON object per line"),
                )
            };
            let row: serde_json::Value = serde_json::from_str(text).map_err(bad)?;
            f(number, &row, Mark { place, carried: 0, count: number })?;
        }
    }
    Ok(())
}

/// The next line, its end included.
fn next<'l>(
    reader: &mut impl BufRead,
    source: &Source,
    line: &'l mut Vec<u8>,
    number: &mut u64,
) -> Result<Option<&'l str>> {
    line.clear();
    *number += 1;
    let n = reader
        .take(LINE)
        .read_until(b'\n', line)
        .map_err(|e| Error::from(e).context(format_args!("{source}:{number}")))?;
    if n == 0 {
        return Ok(None);
    }
    if n as u64 == LINE && line.last() != Some(&b'\n') {
        let what = format!("a line of more than {LINE} bytes; expected text in lines");
        return Err(wrong(Status::BAD_FORMAT, source, *number, what));
    }
    std::str::from_utf8(line)
        .map(Some)
        .map_err(|e| wrong(Status::BAD_UTF8, source, *number, format_args!("{e}; expected UTF-8 text")))
}

/// Whether a text may be cut between two lines without a tokenizer of the GPT-2 kind noticing: a single line feed
/// after something visible, and something visible after it. Such a line feed is a word of its own.
fn border(before: &str, after: &str) -> bool {
    let visible = |c: Option<char>| c.is_some_and(|c| !c.is_whitespace());
    before.strip_suffix('\n').is_some_and(|b| visible(b.chars().next_back())) && visible(after.chars().next())
}
