//! Documents out of a column of a Parquet file: its footer first, then a page at a time.
//!
//! Pages are undone by the crate that reads them, but for those of zstd, for which it needs a C compiler: it hands them out
//! as they lie in the file, and they are undone here.

use std::cell::Cell;
use std::io::{self, Read};
use std::panic::{self, AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Once};

use bytes::Bytes;
use llm::error::{Error, Result, Status};
use parquet::basic::Compression;
use parquet::column::page::{Page, PageMetadata, PageReader};
use parquet::column::reader::{ColumnReader, get_column_reader};
use parquet::errors::ParquetError;
use parquet::file::metadata::ColumnChunkMetaData;
use parquet::file::reader::{ChunkReader, FileReader, Length, SerializedFileReader};
use parquet::file::serialized_reader::SerializedPageReader;

use super::blob::{Blob, Cursor};
use super::{BUFFER, Mark, Source, wrong, zstd};

/// Rows decoded at once.
const ROWS: usize = 256;
/// The most that a part of the file may take in memory: a footer, or a page.
const MOST: usize = 1 << 30;

/// A blob as the reader wants it.
struct Chunks {
    blob: Arc<Blob>,
    len: u64,
}

impl Length for Chunks {
    fn len(&self) -> u64 {
        self.len
    }
}

impl ChunkReader for Chunks {
    type T = io::BufReader<Cursor>;

    fn get_read(&self, start: u64) -> parquet::errors::Result<Self::T> {
        Ok(io::BufReader::with_capacity(BUFFER, Cursor::at(self.blob.clone(), start)))
    }

    fn get_bytes(&self, start: u64, length: usize) -> parquet::errors::Result<Bytes> {
        if length > MOST || start.checked_add(length as u64).is_none_or(|end| end > self.len) {
            let what = format!("{length} bytes at {start} of a file of {}", self.len);
            return Err(ParquetError::EOF(what));
        }
        let mut out = Vec::with_capacity(length);
        let read = Cursor::at(self.blob.clone(), start).take(length as u64).read_to_end(&mut out)?;
        if read < length {
            return Err(ParquetError::EOF(format!("{read} of {length} bytes at {start}")));
        }
        Ok(out.into())
    }
}

/// The pages of a column, each checked before its values are read.
struct Pages {
    from: SerializedPageReader<Chunks>,
    /// They come as they lie in the file, packed with zstd.
    packed: bool,
}

impl Pages {
    /// Those of `column`, in a group of `rows` rows.
    fn new(chunks: Chunks, column: &ColumnChunkMetaData, rows: i64) -> parquet::errors::Result<Pages> {
        let places = [column.data_page_offset(), column.dictionary_page_offset().unwrap_or(0)];
        if places.iter().chain([&column.compressed_size()]).any(|n| *n < 0) {
            let what = format!("pages at {places:?}, {} bytes of them", column.compressed_size());
            return Err(ParquetError::General(what));
        }
        let packed = matches!(column.compression(), Compression::ZSTD(_));
        let builder = column.clone().into_builder();
        let as_it_lies = if packed { builder.set_compression(Compression::UNCOMPRESSED) } else { builder };
        let rows = usize::try_from(rows)?;
        let from = SerializedPageReader::new(Arc::new(chunks), &as_it_lies.build()?, rows, None)?;
        Ok(Pages { from, packed })
    }

    /// A page's bytes undone, of which the first `plain` are never packed.
    fn undone(&self, page: &Bytes, plain: usize) -> parquet::errors::Result<Bytes> {
        let Some(packed) = page.get(plain..) else {
            let what = format!("a page of {} bytes whose levels take {plain}", page.len());
            return Err(ParquetError::General(what));
        };
        // a page without values has nothing behind its levels
        if !self.packed || packed.is_empty() {
            return Ok(page.clone());
        }
        let mut out = page[..plain].to_vec();
        zstd::Frames::new(packed)?.take(MOST as u64 + 1).read_to_end(&mut out)?;
        if out.len() > MOST {
            return Err(ParquetError::General(format!("a page of more than {MOST} bytes")));
        }
        Ok(out.into())
    }
}

impl PageReader for Pages {
    fn get_next_page(&mut self) -> parquet::errors::Result<Option<Page>> {
        let Some(mut page) = self.from.get_next_page()? else { return Ok(None) };
        match &mut page {
            Page::DataPage { buf, .. } => *buf = self.undone(buf, 0)?,
            Page::DictionaryPage { buf, num_values, .. } => {
                *buf = self.undone(buf, 0)?;
                // each has its length before it
                if *num_values as usize > buf.len() / 4 {
                    let what = format!("a dictionary of {num_values} strings in {} bytes", buf.len());
                    return Err(ParquetError::General(what));
                }
            }
            Page::DataPageV2 { buf, def_levels_byte_len, rep_levels_byte_len, is_compressed, .. } => {
                let levels = u64::from(*def_levels_byte_len) + u64::from(*rep_levels_byte_len);
                let levels = usize::try_from(levels)?;
                let plain = if *is_compressed { levels } else { buf.len().max(levels) };
                *buf = self.undone(buf, plain)?;
            }
        }
        Ok(Some(page))
    }

    fn peek_next_page(&mut self) -> parquet::errors::Result<Option<PageMetadata>> {
        self.from.peek_next_page()
    }

    fn skip_next_page(&mut self) -> parquet::errors::Result<()> {
        self.from.skip_next_page()
    }
}

impl Iterator for Pages {
    type Item = parquet::errors::Result<Page>;

    fn next(&mut self) -> Option<Self::Item> {
        self.get_next_page().transpose()
    }
}

thread_local! {
    /// This thread is inside [`guarded`].
    static GUARDED: Cell<bool> = const { Cell::new(false) };
}

/// What `f` reads. The crate's decoders panic at some damaged values; that is an error of the file, too, and nothing to
/// print: the process's panic hook is asked for all other panics alone.
fn guarded<T>(f: impl FnOnce() -> parquet::errors::Result<T>) -> parquet::errors::Result<T> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let others = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            if !GUARDED.get() {
                others(info);
            }
        }));
    });
    GUARDED.set(true);
    let read = catch_unwind(AssertUnwindSafe(f));
    GUARDED.set(false);
    let damaged = |_| Err(ParquetError::General("the file is damaged: values that cannot be decoded".into()));
    read.unwrap_or_else(damaged)
}

/// The strings of column `field` behind the mark `from`, row by row; rows without one are skipped.
pub(super) fn rows(
    blob: Arc<Blob>,
    source: &Source,
    from: Mark,
    field: &str,
    f: &mut dyn FnMut(&str, Mark) -> Result<()>,
) -> Result<()> {
    let bad = |e: ParquetError| Error::new(Status::BAD_FORMAT, format!("{source}: {e}"));
    let len = blob.len().ok_or_else(|| {
        Error::new(Status::IO, format!("{source}: the server does not say how long the file is; download it"))
    })?;
    let chunks = || Chunks { blob: blob.clone(), len };
    let reader = guarded(|| SerializedFileReader::new(chunks())).map_err(bad)?;
    let schema = reader.metadata().file_metadata().schema_descr_ptr();
    let columns = schema.columns();
    let index = columns.iter().position(|c| c.path().string() == field).ok_or_else(|| {
        let names: Vec<String> = columns.iter().map(|c| c.path().string()).collect();
        let message = format!("{source}: no column {field:?}; there are {}", names.join(", "));
        Error::new(Status::NOT_FOUND, message)
    })?;
    if columns[index].max_rep_level() > 0 {
        return Err(wrong(Status::UNSUPPORTED, source, field, "a column of lists; expected strings"));
    }
    let mut row = 0u64;
    for number in 0..reader.num_row_groups() {
        let mut mark = Mark { place: number as u64, carried: 0, count: 0 };
        if mark.place < from.place {
            row += u64::try_from(reader.metadata().row_group(number).num_rows()).unwrap_or(0);
            continue;
        }
        let read_before = if mark.place == from.place { from.count } else { 0 };
        let group = guarded(|| reader.get_row_group(number)).map_err(bad)?;
        let (first, promised) = (row, group.metadata().num_rows());
        let found = group.metadata().column(index);
        let pages = Pages::new(chunks(), found, group.metadata().num_rows()).map_err(bad)?;
        let column = get_column_reader(found.column_descr_ptr(), Box::new(pages));
        let ColumnReader::ByteArrayColumnReader(mut column) = column else {
            return Err(wrong(Status::BAD_FORMAT, source, field, "not a column of strings"));
        };
        loop {
            let (mut values, mut levels) = (Vec::with_capacity(ROWS), Vec::with_capacity(ROWS));
            let read = guarded(|| column.read_records(ROWS, Some(&mut levels), None, &mut values));
            let (records, _, _) = read.map_err(bad)?;
            if records == 0 {
                break;
            }
            for value in &values {
                mark.count += 1;
                if mark.count <= read_before {
                    continue;
                }
                let text = std::str::from_utf8(value.data())
                    .map_err(|e| wrong(Status::BAD_UTF8, source, format_args!("after row {row}"), e))?;
                f(text, mark)?;
            }
            row += records as u64;
        }
        if u64::try_from(promised) != Ok(row - first) {
            let what = format!("a column of {} rows where the file names {promised}", row - first);
            return Err(wrong(Status::BAD_FORMAT, source, format_args!("row group {number}"), what));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Not a claim of its own: the child of the next test.
    #[test]
    fn child_that_panics() {
        if std::env::var_os("LLM_TRAIN_TEST_PANICS").is_none() {
            return;
        }
        let e = guarded::<()>(|| panic!("values of the file")).unwrap_err();
        assert!(e.to_string().contains("the file is damaged"), "{e}");
        let other = || assert!(std::env::args().len() == 0, "something else");
        assert!(catch_unwind(other).is_err());
    }

    #[test]
    fn a_panic_at_damaged_values_is_an_error_alone_and_any_other_is_told() {
        let output = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "source::parquet::tests::child_that_panics", "--nocapture"])
            .env("LLM_TRAIN_TEST_PANICS", "1")
            .output()
            .unwrap();
        let told = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{told}");
        assert!(told.contains("something else") && !told.contains("values of the file"), "{told}");
    }
}
