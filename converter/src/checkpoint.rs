//! Reading a checkpoint: one safetensors file, or shards with an index.
//!
//! ```text
//! u64 n | n bytes of JSON: name -> type, shape, [begin, end) | data
//! ```
//! The header is parsed and checked (no hole, no overlap, sizes equal to shape times type) by the safetensors
//! crate; here it is bounded by the file's length before anything is allocated. Data is read by position, a range
//! of rows at a time, from as many threads as ask; nothing is mapped and no whole file is held. What the tensors
//! are for is not known here.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use llm::{Error, Result, Status};
use safetensors::Dtype;
use safetensors::tensor::Metadata;
use serde_json::Value;

/// The most a header may be, as the safetensors crate has it.
const MAX_HEADER: u64 = 100_000_000;
/// The most a JSON file beside the weights may be.
pub(crate) const MAX_JSON: u64 = 256 << 20;

/// Types of stored values that can be expanded to f32.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stored {
    /// 32-bit floats.
    F32,
    /// IEEE half precision.
    F16,
    /// bfloat16.
    Bf16,
}

impl Stored {
    fn bytes(self) -> u64 {
        match self {
            Stored::F32 => 4,
            Stored::F16 | Stored::Bf16 => 2,
        }
    }

    /// Expands little-endian bytes, exactly.
    fn expand(self, bytes: &[u8], out: &mut [f32]) {
        match self {
            Stored::F32 => {
                for (to, from) in out.iter_mut().zip(bytes.as_chunks::<4>().0) {
                    *to = f32::from_le_bytes(*from);
                }
            }
            Stored::F16 => {
                for (to, from) in out.iter_mut().zip(bytes.as_chunks::<2>().0) {
                    *to = half::f16::from_le_bytes(*from).to_f32();
                }
            }
            Stored::Bf16 => {
                for (to, from) in out.iter_mut().zip(bytes.as_chunks::<2>().0) {
                    *to = f32::from_bits(u32::from(u16::from_le_bytes(*from)) << 16);
                }
            }
        }
    }
}

/// One tensor of a checkpoint.
#[derive(Clone, Debug)]
pub struct Entry {
    shard: usize,
    dtype: Dtype,
    /// Its shape.
    pub shape: Vec<u64>,
    /// Where its data begins in the shard's file.
    offset: u64,
}

impl Entry {
    /// The name of its type.
    pub fn dtype(&self) -> String {
        self.dtype.to_string()
    }

    fn stored(&self, name: &str) -> Result<Stored> {
        match self.dtype {
            Dtype::F32 => Ok(Stored::F32),
            Dtype::F16 => Ok(Stored::F16),
            Dtype::BF16 => Ok(Stored::Bf16),
            other => Err(Error::new(
                Status::UNSUPPORTED,
                format!("tensor `{name}` is stored as {other}, supported are F32, F16 and BF16"),
            )),
        }
    }
}

#[derive(Debug)]
struct Shard {
    path: PathBuf,
    file: File,
}

/// An open checkpoint.
#[derive(Debug)]
pub struct Checkpoint {
    shards: Vec<Shard>,
    tensors: BTreeMap<String, Entry>,
}

fn bad(path: &Path, what: impl std::fmt::Display) -> Error {
    Error::new(Status::BAD_FORMAT, format!("{}: {what}", path.display()))
}

/// Puts the path in front of a failure of the file system.
pub(crate) fn io(path: &Path, e: std::io::Error) -> Error {
    Error::from(e).context(path.display())
}

impl Checkpoint {
    /// Opens the weights that `source` names: a directory, a `.safetensors` file, or the index of shards.
    ///
    /// # Errors
    /// `NOT_FOUND` where there are none, `UNSUPPORTED` for another kind of file, `BAD_FORMAT` for a malformed one.
    pub fn open(source: &Path) -> Result<Self> {
        let path = locate(source)?;
        if path.extension().is_some_and(|e| e == "json") {
            Self::open_index(&path)
        } else {
            Self::open_file(path)
        }
    }

    /// Opens one safetensors file, whatever it is called.
    pub(crate) fn open_file(path: PathBuf) -> Result<Self> {
        let mut checkpoint = Self { shards: Vec::new(), tensors: BTreeMap::new() };
        checkpoint.add_shard(path)?;
        Ok(checkpoint)
    }

    fn open_index(path: &Path) -> Result<Self> {
        let index = read_json(path)?;
        let map = index.get("weight_map").and_then(Value::as_object);
        let map = map.ok_or_else(|| bad(path, "`weight_map` is missing or not an object"))?;
        let mut files = BTreeSet::new();
        for (name, file) in map {
            match file.as_str() {
                // A shard lies beside its index: a name with a directory in it would lead elsewhere.
                Some(file) if Path::new(file).file_name() == Some(file.as_ref()) => files.insert(file),
                _ => {
                    return Err(bad(
                        path,
                        format_args!("`{name}`: {file} is not the name of a file beside it"),
                    ));
                }
            };
        }
        let mut checkpoint = Self { shards: Vec::new(), tensors: BTreeMap::new() };
        let mut places = BTreeMap::new();
        for file in files {
            places.insert(file, checkpoint.shards.len());
            checkpoint.add_shard(path.with_file_name(file))?;
        }
        for (name, file) in map {
            let place = file.as_str().and_then(|f| places.get(f));
            if checkpoint.tensors.get(name).map(|t| &t.shard) != place {
                return Err(bad(path, format_args!("`{name}` is not in {file}, where the index says it is")));
            }
        }
        Ok(checkpoint)
    }

    fn add_shard(&mut self, path: PathBuf) -> Result<()> {
        let file = File::open(&path).map_err(|e| io(&path, e))?;
        let (metadata, data) = read_header(&path, &file)?;
        let shard = self.shards.len();
        for (name, info) in metadata.tensors() {
            let shape = info.shape.iter().map(|d| *d as u64).collect();
            let entry = Entry { shard, dtype: info.dtype, shape, offset: data + info.data_offsets.0 as u64 };
            if let Some(first) = self.tensors.insert(name.clone(), entry) {
                let first = self.shards.get(first.shard).map_or(&path, |s| &s.path);
                return Err(bad(&path, format_args!("tensor `{name}` is also in {}", first.display())));
            }
        }
        self.shards.push(Shard { path, file });
        Ok(())
    }

    /// Every tensor by name.
    pub fn tensors(&self) -> &BTreeMap<String, Entry> {
        &self.tensors
    }

    /// The directory that holds the weights.
    pub fn directory(&self) -> &Path {
        self.shards.first().map_or(Path::new("."), |s| llm_format::directory_of(&s.path))
    }

    /// Whether `path` is one of its files.
    pub(crate) fn contains(&self, path: &Path) -> bool {
        self.shards.iter().any(|shard| same_file(&shard.path, path))
    }

    /// Bytes of all its files.
    pub fn bytes(&self) -> u64 {
        self.shards.iter().filter_map(|s| s.file.metadata().ok()).map(|m| m.len()).sum()
    }

    /// A view of tensor `name` for reading.
    ///
    /// # Errors
    /// `NOT_FOUND` without it, `UNSUPPORTED` for a type that cannot be expanded.
    pub fn view<'a>(&'a self, name: &'a str) -> Result<View<'a>> {
        let missing = || Error::new(Status::NOT_FOUND, format!("tensor `{name}` is not in the checkpoint"));
        let entry = self.tensors.get(name).ok_or_else(missing)?;
        let shard = self.shards.get(entry.shard).ok_or_else(missing)?;
        let count = entry.shape.iter().product();
        Ok(View { name, shard, stored: entry.stored(name)?, offset: entry.offset, count })
    }
}

/// A tensor to read from.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    name: &'a str,
    shard: &'a Shard,
    stored: Stored,
    offset: u64,
    count: u64,
}

impl View<'_> {
    /// Values in all.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Expands `out.len()` values from value `first` on; `bytes` is scratch memory.
    ///
    /// # Errors
    /// `IO` where the file cannot be read, `BAD_FORMAT` for a range outside the tensor.
    pub fn read(&self, first: u64, out: &mut [f32], bytes: &mut Vec<u8>) -> Result<()> {
        let inside = first.checked_add(out.len() as u64).is_some_and(|end| end <= self.count);
        if !inside {
            let what = format!("tensor `{}`: values {first} + {} of {}", self.name, out.len(), self.count);
            return Err(Error::new(Status::BAD_FORMAT, what));
        }
        bytes.resize(out.len() * self.stored.bytes() as usize, 0);
        let at = self.offset + first * self.stored.bytes();
        self.shard.file.read_exact_at(bytes, at).map_err(|e| io(&self.shard.path, e))?;
        self.stored.expand(bytes, out);
        Ok(())
    }
}

/// The checked header of a safetensors file, and where its data begins.
fn read_header(path: &Path, file: &File) -> Result<(Metadata, u64)> {
    let length = file.metadata().map_err(|e| io(path, e))?.len();
    let mut first = [0; 8];
    let got = length.min(8) as usize;
    file.read_exact_at(first.get_mut(..got).unwrap_or_default(), 0).map_err(|e| io(path, e))?;
    refuse_others(path, first.get(..got).unwrap_or_default())?;
    let header = u64::from_le_bytes(first);
    let room = length.saturating_sub(8).min(MAX_HEADER);
    if got < 8 || header > room {
        return Err(bad(
            path,
            format_args!("not a safetensors file: a header of {header} bytes, expected at most {room}"),
        ));
    }
    let mut text = vec![0; header as usize];
    file.read_exact_at(&mut text, 8).map_err(|e| io(path, e))?;
    let metadata: Metadata = serde_json::from_slice(&text)
        .map_err(|e| bad(path, format_args!("malformed safetensors header: {e}")))?;
    let (data, stored) = (metadata.data_len() as u64, length - 8 - header);
    if data != stored {
        return Err(bad(
            path,
            format_args!(
                "the header describes {data} bytes of data, the file has {stored}; it may be cut short"
            ),
        ));
    }
    Ok((metadata, 8 + header))
}

/// Refuses what is known to be another format, by its first bytes.
fn refuse_others(path: &Path, first: &[u8]) -> Result<()> {
    let kind = match first {
        [b'G', b'G', b'U', b'F', ..] => "a GGUF file",
        // The length of a header of safetensors may begin like a pickle, but is not as large.
        [0x80, 2..=5, _, _, 0, 0, 0, 0] => return Ok(()),
        // A zip archive, or a pickle of protocol 2 to 5.
        [b'P', b'K', 3, 4, ..] | [0x80, 2..=5, ..] => "a PyTorch file",
        _ => return Ok(()),
    };
    Err(other_format(path, kind))
}

pub(crate) fn other_format(path: &Path, kind: &str) -> Error {
    Error::new(
        Status::UNSUPPORTED,
        format!("{}: {kind} is not supported yet; convert from safetensors weights", path.display()),
    )
}

/// The file to open for `source`.
fn locate(source: &Path) -> Result<PathBuf> {
    let metadata = std::fs::metadata(source).map_err(|e| io(source, e))?;
    if metadata.is_file() {
        let name = source.to_string_lossy().to_ascii_lowercase();
        if name.ends_with(".safetensors") || name.ends_with(".safetensors.index.json") {
            return Ok(source.to_path_buf());
        }
        let mut first = [0; 8];
        let file = File::open(source).map_err(|e| io(source, e))?;
        let got = file.read_at(&mut first, 0).map_err(|e| io(source, e))?;
        refuse_others(source, first.get(..got).unwrap_or_default())?;
        refuse_name(source)?;
        let what = "expected a checkpoint directory or a .safetensors file";
        return Err(Error::new(Status::UNSUPPORTED, format!("{}: {what}", source.display())));
    }
    for name in ["model.safetensors", "model.safetensors.index.json"] {
        let path = source.join(name);
        if path.is_file() {
            return Ok(path);
        }
    }
    let mut names = Vec::new();
    for entry in std::fs::read_dir(source).map_err(|e| io(source, e))? {
        names.push(entry.map_err(|e| io(source, e))?.path());
    }
    names.sort();
    let weights: Vec<&PathBuf> =
        names.iter().filter(|p| p.extension().is_some_and(|e| e == "safetensors")).collect();
    match weights[..] {
        [one] => return Ok(one.clone()),
        [] => {}
        _ => {
            let what = "several .safetensors files and no model.safetensors.index.json that joins them";
            return Err(Error::new(Status::UNSUPPORTED, format!("{}: {what}", source.display())));
        }
    }
    for name in &names {
        refuse_name(name)?;
    }
    Err(Error::new(Status::NOT_FOUND, format!("{}: no model.safetensors in it", source.display())))
}

/// Refuses what is known to be another format, by its name.
fn refuse_name(path: &Path) -> Result<()> {
    let extension = path.extension().and_then(|e| e.to_str()).unwrap_or("").to_ascii_lowercase();
    match extension.as_str() {
        "gguf" | "ggml" => Err(other_format(path, "a GGUF file")),
        "bin" | "pt" | "pth" | "ckpt" | "pkl" => Err(other_format(path, "a PyTorch file")),
        _ => Ok(()),
    }
}

/// Whether both are there and lead to the same file.
pub(crate) fn same_file(one: &Path, other: &Path) -> bool {
    one.canonicalize().is_ok_and(|one| other.canonicalize().is_ok_and(|other| one == other))
}

/// The bytes of a file that shall have `most` of them at most; `what` it is.
pub(crate) fn read_at_most(path: &Path, most: u64, what: &str) -> Result<Vec<u8>> {
    let failed = |e| io(path, e);
    let file = File::open(path).map_err(failed)?;
    let mut length = file.metadata().map_err(failed)?.len();
    let mut bytes = Vec::new();
    if length <= most {
        // A device has no length and no end: what it gives counts.
        file.take(most + 1).read_to_end(&mut bytes).map_err(failed)?;
        length = bytes.len() as u64;
    }
    if length > most {
        return Err(bad(path, format_args!("{length} bytes or more, expected at most {most} of {what}")));
    }
    Ok(bytes)
}

/// A JSON file of bounded size.
pub(crate) fn read_json(path: &Path) -> Result<Value> {
    let bytes = read_at_most(path, MAX_JSON, "JSON")?;
    serde_json::from_slice(&bytes).map_err(|e| bad(path, format_args!("malformed JSON: {e}")))
}

/// [`read_json`], `None` where there is no such file.
pub(crate) fn read_json_if_there(path: &Path) -> Result<Option<Value>> {
    if path.is_file() { read_json(path).map(Some) } else { Ok(None) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_without_an_end_is_read_up_to_its_bound() {
        let zeros = Path::new("/dev/zero");
        let e = read_at_most(zeros, 1000, "JSON").unwrap_err();
        assert_eq!(e.status(), Status::BAD_FORMAT);
        assert!(e.message().contains("/dev/zero") && e.message().contains("at most 1000"), "{e}");
        let itself = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml"));
        let length = std::fs::metadata(itself).unwrap().len();
        assert_eq!(read_at_most(itself, length, "JSON").unwrap().len() as u64, length);
        assert_eq!(read_at_most(itself, length - 1, "JSON").unwrap_err().status(), Status::BAD_FORMAT);
    }
}
