//! Documents out of a column of a Parquet file: its footer first, then a page at a time.

use std::io::{self, Read};
use std::sync::Arc;

use bytes::Bytes;
use llm::error::{Error, Result, Status};
use parquet::column::reader::ColumnReader;
use parquet::errors::ParquetError;
use parquet::file::reader::{ChunkReader, FileReader, Length, SerializedFileReader};

use super::blob::{Blob, Cursor};
use super::{BUFFER, Source, wrong};

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

/// The strings of column `field`, row by row; rows without one are skipped.
pub(super) fn rows(
    blob: Arc<Blob>,
    source: &Source,
    field: &str,
    f: &mut dyn FnMut(&str) -> Result<()>,
) -> Result<()> {
    let bad = |e: ParquetError| Error::new(Status::BAD_FORMAT, format!("{source}: {e}"));
    let len = blob.len().ok_or_else(|| {
        Error::new(Status::IO, format!("{source}: the server does not say how long the file is; download it"))
    })?;
    let reader = SerializedFileReader::new(Chunks { blob, len }).map_err(bad)?;
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
    for group in 0..reader.num_row_groups() {
        let group = reader.get_row_group(group).map_err(bad)?;
        let ColumnReader::ByteArrayColumnReader(mut column) = group.get_column_reader(index).map_err(bad)?
        else {
            return Err(wrong(Status::BAD_FORMAT, source, field, "not a column of strings"));
        };
        loop {
            let (mut values, mut levels) = (Vec::with_capacity(ROWS), Vec::with_capacity(ROWS));
            let (records, _, _) =
                column.read_records(ROWS, Some(&mut levels), None, &mut values).map_err(bad)?;
            if records == 0 {
                break;
            }
            for value in &values {
                let text = std::str::from_utf8(value.data())
                    .map_err(|e| wrong(Status::BAD_UTF8, source, format_args!("after row {row}"), e))?;
                f(text)?;
            }
            row += records as u64;
        }
    }
    Ok(())
}
