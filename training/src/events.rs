//! TensorBoard event files: scalars of a run.
//!
//! ```text
//! file     events.out.tfevents.<first step>.libllm      a record behind the other
//! record   length u64 · masked CRC-32C of it · an Event · masked CRC-32C of that      little-endian
//! Event    1: time f64   2: step i64   3: "brain.Event:2" (the first one)   5: Summary { 1: Value { 1: tag, 2: f32 } }
//! ```
//! The format is TensorFlow's (`event.proto`, `summary.proto`, `record_writer.h`). A resumed run writes a file of its
//! own from the step where it goes on, and cuts what older files hold of later steps; TensorBoard joins them.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use crc_fast::{CrcAlgorithm, checksum};
use llm::error::{Error, Result};
use serde_json::Value;

/// An event file that is written.
pub(crate) struct Events {
    path: PathBuf,
    file: File,
}

impl Events {
    /// The file in `dir` of a run that goes on after `step`; files of the same or later steps are taken away, and what
    /// others hold of later steps.
    ///
    /// # Errors
    /// `IO`.
    pub fn create(dir: &Path, step: u64) -> Result<Events> {
        let path = dir.join(format!("events.out.tfevents.{step:010}.libllm"));
        let here = |e: std::io::Error| Error::from(e).context(path.display());
        fs::create_dir_all(dir).map_err(here)?;
        for entry in fs::read_dir(dir).map_err(here)? {
            let old = entry.map_err(here)?.path();
            let name = old.file_name().and_then(|n| n.to_str()).unwrap_or_default();
            let ours = name.starts_with("events.out.tfevents.") && name.ends_with(".libllm");
            if ours && old.file_name() >= path.file_name() {
                fs::remove_file(&old).map_err(here)?;
            } else if ours {
                let data = fs::read(&old).map_err(here)?;
                let kept = until(&data, step);
                if kept < data.len() {
                    let file = OpenOptions::new().write(true).open(&old).map_err(here)?;
                    file.set_len(kept as u64).map_err(here)?;
                }
            }
        }
        let file = OpenOptions::new().create(true).append(true).open(&path).map_err(here)?;
        let mut events = Events { path, file };
        let mut version = time();
        bytes(&mut version, 3, b"brain.Event:2");
        events.record(&version)?;
        Ok(events)
    }

    /// Adds the numbers of a row of metrics, under their names.
    ///
    /// # Errors
    /// `IO`.
    pub fn add(&mut self, row: &Value) -> Result<()> {
        let Some(row) = row.as_object() else { return Ok(()) };
        let mut summary = Vec::new();
        for (name, value) in row.iter().filter(|(name, _)| *name != "step") {
            let Some(number) = value.as_f64() else { continue };
            let mut one = Vec::new();
            bytes(&mut one, 1, name.as_bytes());
            one.push(2 << 3 | 5);
            one.extend((number as f32).to_le_bytes());
            bytes(&mut summary, 1, &one);
        }
        let mut event = time();
        event.push(2 << 3);
        varint(&mut event, row.get("step").and_then(Value::as_u64).unwrap_or(0));
        bytes(&mut event, 5, &summary);
        self.record(&event)
    }

    fn record(&mut self, event: &[u8]) -> Result<()> {
        let len = (event.len() as u64).to_le_bytes();
        let mut out = len.to_vec();
        out.extend(masked(&len));
        out.extend(event);
        out.extend(masked(event));
        self.file.write_all(&out).map_err(|e| Error::from(e).context(self.path.display()))
    }
}

/// The bytes of whole records at the beginning of `data` that belong to steps up to `step`.
fn until(data: &[u8], step: u64) -> usize {
    let mut at = 0;
    while let Some((len, rest)) = data[at..].split_first_chunk::<8>() {
        let Some(event) = usize::try_from(u64::from_le_bytes(*len))
            .ok()
            .and_then(|len| rest.get(4..len.checked_add(8)?))
            .and_then(|record| record.split_last_chunk::<4>())
            .filter(|(event, crc)| masked(event) == **crc && rest[..4] == masked(len))
            .map(|(event, _)| event)
        else {
            break;
        };
        if step_of(event).is_some_and(|s| s > step) {
            break;
        }
        at += event.len() + 16;
    }
    at
}

/// The step of an event as [`Events`] writes them, behind its time.
fn step_of(event: &[u8]) -> Option<u64> {
    let varint = event.get(9..)?.strip_prefix(&[2u8 << 3])?;
    let end = varint.iter().take(10).position(|b| b & 0x80 == 0)?;
    Some(varint[..=end].iter().rev().fold(0, |n, b| n << 7 | u64::from(b & 0x7f)))
}

/// An event that holds its time.
fn time() -> Vec<u8> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |t| t.as_secs_f64());
    let mut out = vec![1 << 3 | 1];
    out.extend(now.to_le_bytes());
    out
}

fn varint(out: &mut Vec<u8>, mut n: u64) {
    while n >= 0x80 {
        out.push(n as u8 | 0x80);
        n >>= 7;
    }
    out.push(n as u8);
}

/// A field of bytes.
fn bytes(out: &mut Vec<u8>, field: u8, value: &[u8]) {
    out.push(field << 3 | 2);
    varint(out, value.len() as u64);
    out.extend(value);
}

/// TensorFlow stores checksums turned and shifted, for records that hold records.
fn masked(data: &[u8]) -> [u8; 4] {
    let crc = checksum(CrcAlgorithm::Crc32Iscsi, data) as u32;
    crc.rotate_right(15).wrapping_add(0xa282_ead8).to_le_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// The records of a file, checksums compared.
    fn records(mut data: &[u8]) -> Vec<Vec<u8>> {
        let mut all = Vec::new();
        while !data.is_empty() {
            let len = u64::from_le_bytes(data[..8].try_into().unwrap()) as usize;
            assert_eq!(data[8..12], masked(&data[..8]));
            let event = &data[12..12 + len];
            assert_eq!(data[12 + len..16 + len], masked(event));
            all.push(event.to_vec());
            data = &data[16 + len..];
        }
        all
    }

    #[test]
    fn the_checksum_is_tensorflows() {
        // of the length 24, as in the first record of every file that TensorFlow 2 writes
        assert_eq!(masked(&24u64.to_le_bytes()), [0xa3, 0x7f, 0x4b, 0x22]);
    }

    #[test]
    fn a_row_of_metrics_is_an_event_and_a_resumed_run_leaves_no_step_twice() {
        let dir = tempfile::tempdir().unwrap();
        let mut events = Events::create(dir.path(), 0).unwrap();
        for step in 1..=300u64 {
            events.add(&json!({"step": step, "loss": 2.5, "note": "text"})).unwrap();
        }
        let file = dir.path().join("events.out.tfevents.0000000000.libllm");
        let all = records(&fs::read(&file).unwrap());
        assert_eq!(all.len(), 301);
        assert_eq!(all[0][9..], *b"\x1a\x0dbrain.Event:2");
        let value = [&b"\x0a\x04loss\x15"[..], &2.5f32.to_le_bytes()].concat();
        let summary = [&[0x0a, value.len() as u8][..], &value].concat();
        let expected = [&[0x10, 0xac, 0x02, 0x2a, summary.len() as u8][..], &summary].concat();
        assert_eq!(all[300][9..], expected);
        // a run that was killed in the middle of a record goes on from a checkpoint before it
        let torn = fs::read(&file).unwrap();
        fs::write(&file, &torn[..torn.len() - 3]).unwrap();
        Events::create(dir.path(), 299).unwrap();
        assert_eq!(records(&fs::read(&file).unwrap()), all[..300]);
        Events::create(dir.path(), 100).unwrap();
        assert_eq!(records(&fs::read(&file).unwrap()), all[..101]);
        Events::create(dir.path(), 50).unwrap();
        assert_eq!(records(&fs::read(&file).unwrap()), all[..51]);
        Events::create(dir.path(), 50).unwrap();
        assert_eq!(records(&fs::read(&file).unwrap()), all[..51]);
        let mut names: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names.len(), 2, "{names:?}");
    }
}
