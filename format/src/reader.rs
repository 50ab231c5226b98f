//! The reader: proves a file, so that nothing below asks again.
//!
//! ```text
//! header -> sections -> metadata, tensor table -> every range: inside, aligned, disjoint, nothing between
//! ```
//! Every number of header, section list and tensor table is checked here, once, before it is used; what is
//! allocated is bounded by bytes that are there. Opening touches header, metadata and table only: no work grows with
//! the weights or the vocabulary. Checksums over those are [`Index::verify`], which reads everything.
//!
//! It does not prove contents: tokenizer tables are bounds-checked where they are used, and weights may be any bits.

use crate::bytes::{Crc, crc32c, u32_at, u64_at};
use crate::error::{Error, ErrorKind, Result};
use crate::header::{self, Header, Section, kind};
use crate::metadata::{self, MAX_METADATA};
use crate::order;
use crate::quant::{self, MAX_DIM, Type};
use crate::tensor::{self, Entry, MAX_DIMS, MAX_NAME, TENSOR_ALIGN, Tensor};
use serde_json::{Map, Value};
use std::ops::{ControlFlow, Range};

/// Called with the bytes done and the bytes in all; `Break` ends the work with [`ErrorKind::Cancelled`].
pub type Progress<'a> = &'a mut dyn FnMut(u64, u64) -> ControlFlow<()>;

/// What a checked file says about itself, owned: it may lie beside the mapping it describes. The ranges in it hold
/// for the bytes it was parsed from.
#[derive(Clone, Debug)]
pub struct Index {
    header: Header,
    sections: Vec<Section>,
    metadata: Map<String, Value>,
    tensors: Vec<Tensor>,
}

impl Index {
    /// Checks the structure of `bytes`, a whole file.
    pub fn parse(bytes: &[u8]) -> Result<Index> {
        Index::parse_front(bytes, bytes.len() as u64)
    }

    /// Checks a file of `file_len` bytes of which `bytes` are at least header and sections.
    pub(crate) fn parse_front(bytes: &[u8], file_len: u64) -> Result<Index> {
        let header = check_header(bytes, file_len)?;
        let sections = check_sections(bytes, &header)?;
        let metadata = check_metadata(bytes, &sections)?;
        let tensors = check_tensors(bytes, &sections, &header)?;
        let index = Index { header, sections, metadata, tensors };
        index.check_ranges()?;
        Ok(index)
    }

    /// The metadata.
    pub fn metadata(&self) -> &Map<String, Value> {
        &self.metadata
    }

    /// The tensors, by ascending name.
    pub fn tensors(&self) -> &[Tensor] {
        &self.tensors
    }

    /// The tensor of that name.
    pub fn tensor(&self, name: &str) -> Option<&Tensor> {
        let at = self.tensors.binary_search_by(|t| t.name.as_str().cmp(name)).ok()?;
        self.tensors.get(at)
    }

    /// The sections, by ascending offset, unknown ones included.
    pub fn sections(&self) -> &[Section] {
        &self.sections
    }

    /// The range of the first section of that kind.
    pub fn section(&self, kind: u32) -> Option<Range<usize>> {
        let section = self.sections.iter().find(|s| s.kind == kind)?;
        Some(section.offset as usize..(section.offset + section.len) as usize)
    }

    /// BLAKE3 of everything behind the header, as the header states it; [`Index::verify`] compares.
    pub fn identity(&self) -> [u8; 32] {
        self.header.identity
    }

    /// Major and minor version.
    pub fn version(&self) -> (u16, u16) {
        (self.header.major, self.header.minor)
    }

    /// Bytes of the file.
    pub fn file_len(&self) -> u64 {
        self.header.file_len
    }

    /// The bytes of `tensor` in `bytes`, the file this index was parsed from; empty if they are not that file's.
    pub fn data<'a>(&self, bytes: &'a [u8], tensor: &Tensor) -> &'a [u8] {
        slice(bytes, tensor.offset, tensor.len).unwrap_or_default()
    }

    /// Compares the CRC-32C of every section: metadata, tensor table, tokenizer tables.
    pub fn verify_sections(&self, bytes: &[u8]) -> Result<()> {
        self.check_len(bytes)?;
        for section in &self.sections {
            let found = slice(bytes, section.offset, section.len).map(crc32c);
            same_crc(&section_name(section.kind), section.offset, section.crc, found)?;
        }
        Ok(())
    }

    /// Reads the whole file: the CRC-32C of each section and tensor, zeros between them, and the BLAKE3 identity.
    /// The error names the first damaged part. `progress` is called every few MiB.
    pub fn verify(&self, bytes: &[u8], progress: Progress) -> Result<()> {
        const STEP: usize = 4 << 20;
        self.check_len(bytes)?;
        let total = self.header.file_len;
        let mut whole = blake3::Hasher::new();
        let mut at = u64::from(self.header.header_len);
        for part in self.parts() {
            let gap = slice(bytes, at, part.offset.saturating_sub(at)).unwrap_or_default();
            if let Some(place) = gap.iter().position(|&b| b != 0) {
                let message = format!("padding before {} is not zero; the file is damaged", part.name);
                return Err(Error::new(ErrorKind::Checksum, message).at(at + place as u64));
            }
            whole.update(gap);
            let mut crc = Crc::new();
            for chunk in slice(bytes, part.offset, part.len).unwrap_or_default().chunks(STEP) {
                crc.update(chunk);
                whole.update(chunk);
                at = part.offset + part.len.min(at.saturating_sub(part.offset) + chunk.len() as u64);
                if progress(at, total).is_break() {
                    return Err(Error::new(ErrorKind::Cancelled, "verification was stopped by its caller"));
                }
            }
            same_crc(&part.name, part.offset, part.crc, Some(crc.finish()))?;
            at = part.offset + part.len;
        }
        let found = whole.finalize();
        if found != self.header.identity {
            let stated = blake3::Hash::from_bytes(self.header.identity).to_hex();
            let message = format!(
                "identity: the header states BLAKE3 {stated}, the contents have {}; the file was changed after it was written",
                found.to_hex()
            );
            return Err(Error::new(ErrorKind::Checksum, message).at(32));
        }
        Ok(())
    }

    fn check_len(&self, bytes: &[u8]) -> Result<()> {
        if bytes.len() as u64 == self.header.file_len {
            return Ok(());
        }
        let message =
            format!("expected the {} bytes that were parsed, got {}", self.header.file_len, bytes.len());
        Err(Error::new(ErrorKind::Invalid, message))
    }

    /// Sections and tensors by ascending offset.
    fn parts(&self) -> Vec<Part> {
        let sections = self.sections.iter().map(|s| Part {
            name: section_name(s.kind),
            offset: s.offset,
            len: s.len,
            crc: s.crc,
        });
        let tensors = self.tensors.iter().map(|t| Part {
            name: format!("tensor {:?}", t.name),
            offset: t.offset,
            len: t.len,
            crc: t.crc,
        });
        let mut parts: Vec<Part> = sections.chain(tensors).collect();
        order::by_number(&mut parts, |part| part.offset);
        parts
    }

    /// All ranges lie behind the header, touch nobody else's, leave less than a page between them, and end where
    /// the file ends: there is no byte that nobody accounts for.
    fn check_ranges(&self) -> Result<()> {
        let mut end = u64::from(self.header.header_len);
        let mut before = "the header".to_owned();
        for part in self.parts() {
            if part.offset < end {
                let message = format!("{} begins inside {before}, which ends at {end}", part.name);
                return Err(Error::bad(part.offset, message));
            }
            if part.offset - end >= TENSOR_ALIGN {
                let gap = part.offset - end;
                let message =
                    format!("{gap} bytes between {before} and {}, expected less than 4096", part.name);
                return Err(Error::bad(end, message));
            }
            end = part.offset + part.len; // cannot overflow: checked against the file's length
            before = part.name;
        }
        if end != self.header.file_len {
            let message =
                format!("{before} is the last part and ends at {end}, the file at {}", self.header.file_len);
            return Err(Error::bad(end, message));
        }
        Ok(())
    }
}

struct Part {
    name: String,
    offset: u64,
    len: u64,
    crc: u32,
}

fn section_name(kind: u32) -> String {
    match kind {
        kind::METADATA => "the metadata section".into(),
        kind::TENSORS => "the tensor table".into(),
        kind::TOKENIZER => "the tokenizer section".into(),
        other => format!("section of kind {other}"),
    }
}

fn slice(bytes: &[u8], offset: u64, len: u64) -> Option<&[u8]> {
    let start = usize::try_from(offset).ok()?;
    bytes.get(start..start.checked_add(usize::try_from(len).ok()?)?)
}

fn same_crc(name: &str, offset: u64, expected: u32, found: Option<u32>) -> Result<()> {
    if found == Some(expected) {
        return Ok(());
    }
    let found = found.unwrap_or_default();
    let message = format!("{name}: expected CRC-32C {expected:08x}, got {found:08x}; the file is damaged");
    Err(Error::new(ErrorKind::Checksum, message).at(offset))
}

fn check_header(bytes: &[u8], file_len: u64) -> Result<Header> {
    let start = &bytes[..bytes.len().min(header::MAGIC.len())];
    if bytes.is_empty() || *start != header::MAGIC[..start.len()] {
        return Err(Error::bad(0, "not a .llm file: its first bytes are not the magic number"));
    }
    let Some(header) = Header::read(bytes) else {
        return Err(Error::bad(file_len, format!("the file ends inside its header, after {file_len} bytes")));
    };
    // The version comes first: of another one nothing else may be assumed.
    if header.major != header::MAJOR {
        let (major, minor) = (header.major, header.minor);
        let what = if major < header::MAJOR { "convert the model again" } else { "use a newer library" };
        let message =
            format!("file version {major}.{minor}, this library reads version {}; {what}", header::MAJOR);
        return Err(Error::new(ErrorKind::BadVersion, message).at(8));
    }
    let max = (header::FIXED + header::ENTRY * header::MAX_SECTIONS as usize) as u32;
    if header.header_len < header::FIXED as u32 || header.header_len > max {
        let message = format!("header length {}, expected {} to {max}", header.header_len, header::FIXED);
        return Err(Error::bad(12, message));
    }
    let Some(whole) = bytes.get(..header.header_len as usize) else {
        return Err(Error::bad(file_len, format!("the file ends inside its header, after {file_len} bytes")));
    };
    let found = header::checksum(whole);
    if found != header.crc {
        let message =
            format!("header: expected CRC-32C {:08x}, got {found:08x}; the file is damaged", header.crc);
        return Err(Error::new(ErrorKind::Checksum, message).at(28));
    }
    if header.file_len != file_len {
        let hint = if header.file_len > file_len { "it was cut short" } else { "something was appended" };
        let message = format!("the header states {} bytes, the file has {file_len}; {hint}", header.file_len);
        return Err(Error::bad(16, message));
    }
    if usize::try_from(file_len).is_err() {
        return Err(Error::new(
            ErrorKind::TooLarge,
            format!("{file_len} bytes do not fit this machine's memory"),
        ));
    }
    let expected = header::FIXED as u64 + u64::from(header.sections) * header::ENTRY as u64;
    if u64::from(header.header_len) != expected {
        let message = format!(
            "{} sections take a header of {expected} bytes, it states {}",
            header.sections, header.header_len
        );
        return Err(Error::bad(24, message));
    }
    Ok(header)
}

fn check_sections(bytes: &[u8], header: &Header) -> Result<Vec<Section>> {
    let mut sections: Vec<Section> = Vec::new();
    let mut end = u64::from(header.header_len);
    for index in 0..header.sections as usize {
        let at = header::FIXED + header::ENTRY * index;
        let place = at as u64;
        let Some((section, reserved)) = Section::read(bytes, at) else {
            return Err(Error::bad(place, "the header ends inside its sections"));
        };
        let name = section_name(section.kind);
        if section.flags & !header::REQUIRED != 0 || reserved != 0 {
            return Err(Error::bad(
                place,
                format!("{name}: unknown flags or a reserved field that is not zero"),
            ));
        }
        let known = (kind::METADATA..=kind::TOKENIZER).contains(&section.kind);
        if !known && section.flags & header::REQUIRED != 0 {
            let message = format!("{name} is required and unknown to this library; use a newer one");
            return Err(Error::new(ErrorKind::Unsupported, message).at(place));
        }
        if known && sections.iter().any(|s| s.kind == section.kind) {
            return Err(Error::bad(place, format!("{name} is there twice")));
        }
        if section.len == 0 || !section.offset.is_multiple_of(header::SECTION_ALIGN) {
            let message = format!(
                "{name}: {} bytes at {}, expected some at a multiple of {}",
                section.len,
                section.offset,
                header::SECTION_ALIGN
            );
            return Err(Error::bad(place, message));
        }
        if section.offset < end {
            let message = format!("{name} begins at {}, what lies before it ends at {end}", section.offset);
            return Err(Error::bad(place, message));
        }
        end = match section.offset.checked_add(section.len) {
            Some(end) if end <= header.file_len => end,
            _ => {
                let (len, offset, file) = (section.len, section.offset, header.file_len);
                let message = format!("{name}: {len} bytes at {offset} reach beyond the file's {file}");
                return Err(Error::bad(place, message));
            }
        };
        sections.push(section);
    }
    for kind in [kind::METADATA, kind::TENSORS] {
        if sections.iter().all(|s| s.kind != kind) {
            return Err(Error::bad(header::FIXED as u64, format!("{} is missing", section_name(kind))));
        }
    }
    Ok(sections)
}

/// The bytes of a section that is there; `check_sections` has proven the range.
fn section_bytes<'a>(bytes: &'a [u8], sections: &[Section], kind: u32) -> Result<(u64, &'a [u8])> {
    let section = sections.iter().find(|s| s.kind == kind);
    let found = section.and_then(|s| Some((s.offset, slice(bytes, s.offset, s.len)?)));
    found.ok_or_else(|| Error::bad(0, format!("{} is missing", section_name(kind))))
}

fn check_metadata(bytes: &[u8], sections: &[Section]) -> Result<Map<String, Value>> {
    let (offset, text) = section_bytes(bytes, sections, kind::METADATA)?;
    if text.len() as u64 > MAX_METADATA {
        let message = format!("{} bytes of metadata, at most {MAX_METADATA}", text.len());
        return Err(Error::new(ErrorKind::TooLarge, message).at(offset));
    }
    metadata::parse(text).map_err(|why| Error::bad(offset, format!("the metadata section: {why}")))
}

fn check_tensors(bytes: &[u8], sections: &[Section], header: &Header) -> Result<Vec<Tensor>> {
    let (offset, table) = section_bytes(bytes, sections, kind::TENSORS)?;
    let fixed = (u32_at(table, 0), u32_at(table, 4), u64_at(table, 8));
    let (Some(count), Some(reserved), Some(names_len)) = fixed else {
        return Err(Error::bad(
            offset,
            format!("the tensor table has {} bytes, expected 16 or more", table.len()),
        ));
    };
    // u64 arithmetic on a u32 count cannot overflow; the sum with `names_len` can.
    let entries = u64::from(count) * tensor::ENTRY as u64;
    let expected = (tensor::FIXED as u64 + entries).checked_add(names_len);
    if reserved != 0 || expected != Some(table.len() as u64) {
        let len = table.len();
        let message = format!(
            "the tensor table: {count} tensors and {names_len} bytes of names do not make {len} bytes"
        );
        return Err(Error::bad(offset, message));
    }
    let (_, mut names) = table.split_at(tensor::FIXED + entries as usize);
    let mut tensors: Vec<Tensor> = Vec::with_capacity(count as usize); // count <= bytes of the table / 64
    for index in 0..count as usize {
        let at = tensor::FIXED + tensor::ENTRY * index;
        let place = offset + at as u64;
        let Some(entry) = Entry::read(table, at) else {
            return Err(Error::bad(place, "the tensor table ends inside an entry"));
        };
        if entry.name_len == 0 || entry.name_len > MAX_NAME || entry.name_len as usize > names.len() {
            let message =
                format!("tensor {index}: a name of {} bytes, expected 1 to {MAX_NAME}", entry.name_len);
            return Err(Error::bad(place, message));
        }
        let (name, rest) = names.split_at(entry.name_len as usize);
        names = rest;
        let Ok(name) = std::str::from_utf8(name) else {
            return Err(Error::bad(place, format!("tensor {index}: its name is not UTF-8")));
        };
        if tensors.last().is_some_and(|last| last.name.as_str() >= name) {
            return Err(Error::bad(place, format!("tensor {name:?}: names must ascend, each once")));
        }
        tensors.push(check_tensor(name, &entry, header.file_len).map_err(|e| e.at(place))?);
    }
    if !names.is_empty() {
        return Err(Error::bad(
            offset,
            format!("the tensor table has {} bytes behind its last name", names.len()),
        ));
    }
    Ok(tensors)
}

fn check_tensor(name: &str, entry: &Entry, file_len: u64) -> Result<Tensor> {
    let bad = |why: String| Err(Error::bad(0, format!("tensor {name:?}: {why}")));
    let Some(ty) = Type::from_id(entry.ty) else {
        let message = format!("tensor {name:?}: unknown weight type {}; use a newer library", entry.ty);
        return Err(Error::new(ErrorKind::Unsupported, message));
    };
    if entry.dims == 0 || entry.dims > MAX_DIMS {
        return bad(format!("{} dimensions, expected 1 to {MAX_DIMS}", entry.dims));
    }
    let (shape, unused) = entry.shape.split_at(entry.dims as usize);
    if unused.iter().any(|&d| d != 0) || shape.iter().any(|&d| d == 0 || d > MAX_DIM) {
        let all = entry.shape;
        return bad(format!(
            "shape {all:?} of {} dimensions, expected 1 to {MAX_DIM} each, then zeros",
            entry.dims
        ));
    }
    if shape.len() == 1 && ty != Type::F32 {
        return bad(format!("a vector of type {ty}, expected f32"));
    }
    let Some(expected) = quant::tensor_bytes(ty, shape) else {
        return bad(format!("shape {shape:?} of type {ty} overflows"));
    };
    if entry.len != expected {
        return bad(format!("{} bytes, shape {shape:?} of type {ty} takes {expected}", entry.len));
    }
    if !entry.offset.is_multiple_of(TENSOR_ALIGN) {
        return bad(format!("it begins at {}, expected a multiple of {TENSOR_ALIGN}", entry.offset));
    }
    if entry.offset.checked_add(entry.len).is_none_or(|end| end > file_len) {
        return bad(format!("{} bytes at {} reach beyond the file's {file_len}", entry.len, entry.offset));
    }
    Ok(Tensor {
        name: name.to_owned(),
        ty,
        shape: shape.to_vec(),
        offset: entry.offset,
        len: entry.len,
        crc: entry.crc,
    })
}

/// A checked file over bytes that someone else holds.
#[derive(Clone, Debug)]
pub struct File<'a> {
    bytes: &'a [u8],
    index: Index,
}

impl<'a> File<'a> {
    /// Checks the structure of `bytes`, a whole file.
    pub fn parse(bytes: &'a [u8]) -> Result<File<'a>> {
        Ok(File { bytes, index: Index::parse(bytes)? })
    }

    /// What the file says about itself.
    pub fn index(&self) -> &Index {
        &self.index
    }

    /// The metadata.
    pub fn metadata(&self) -> &Map<String, Value> {
        self.index.metadata()
    }

    /// The tensors, by ascending name.
    pub fn tensors(&self) -> &[Tensor] {
        self.index.tensors()
    }

    /// The tensor of that name.
    pub fn tensor(&self, name: &str) -> Option<&Tensor> {
        self.index.tensor(name)
    }

    /// The bytes of a tensor of this file.
    pub fn data(&self, tensor: &Tensor) -> &'a [u8] {
        self.index.data(self.bytes, tensor)
    }

    /// The bytes of the first section of that kind.
    pub fn section(&self, kind: u32) -> Option<&'a [u8]> {
        self.bytes.get(self.index.section(kind)?)
    }

    /// BLAKE3 of everything behind the header, as the header states it.
    pub fn identity(&self) -> [u8; 32] {
        self.index.identity()
    }

    /// Reads the whole file and compares every checksum, see [`Index::verify`].
    pub fn verify(&self, progress: Progress) -> Result<()> {
        self.index.verify(self.bytes, progress)
    }
}
