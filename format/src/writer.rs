//! The writer: streams tensors into a file that appears under its name only when it is complete.
//!
//! ```text
//! create: check the plan, lay out every range   ->   append: tensors in the order of the plan, in any chunks
//!    ->   finish: table with checksums, header last, fsync, rename
//! ```
//! Checksums and identity are computed as bytes pass; no more than a chunk of the model is in memory. What it accepts
//! is decided by the reader's own checks. The same input gives the same bytes.

use crate::bytes::{Crc, crc32c};
use crate::error::{Error, ErrorKind, Result};
use crate::header::{self, REQUIRED, SECTION_ALIGN, Section, kind};
use crate::identity::LateFront;
use crate::quant::{self, Type};
use crate::reader::Index;
use crate::temp::TempFile;
use crate::tensor::{self, TENSOR_ALIGN, Tensor};
use serde_json::{Map, Value};
use std::io::{Seek, SeekFrom, Write};
use std::path::Path;

/// A tensor to come: name, type and shape.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TensorPlan {
    /// Its name, unique in the file.
    pub name: String,
    /// The type of its records.
    pub ty: Type,
    /// `[n]` (f32 only), `[rows, cols]` or `[count, rows, cols]`.
    pub shape: Vec<u64>,
}

/// A section to store beside metadata and tensor table.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NewSection {
    /// What it holds, see [`crate::header::kind`].
    pub kind: u32,
    /// Whether a reader that does not know the kind must refuse the file.
    pub required: bool,
    /// Its bytes, not empty.
    pub data: Vec<u8>,
}

/// Writes one file. See the module's head.
pub struct Writer<W = TempFile> {
    out: W,
    /// Sections with their bytes; the table's are made at the end.
    sections: Vec<(Section, Vec<u8>)>,
    /// In the order of the plan.
    tensors: Vec<Tensor>,
    hash: LateFront,
    minor: u16,
    file_len: u64,
    /// The tensor being written, its bytes so far and their checksum.
    current: usize,
    written: u64,
    crc: Crc,
    /// A write failed half-way: what is on the disk is not known any more.
    broken: bool,
}

impl Writer<TempFile> {
    /// Starts the file `path` through a temporary one beside it; [`Writer::finish`] puts it in place.
    pub fn create(
        path: impl AsRef<Path>,
        metadata: &Map<String, Value>,
        sections: Vec<NewSection>,
        plan: &[TensorPlan],
    ) -> Result<Writer<TempFile>> {
        // Checked before anything is created.
        let layout = Layout::new(metadata, sections, plan)?;
        layout.begin(TempFile::create(path)?)
    }

    /// The temporary file, for a program that ends without dropping the writer (a signal) and wants to remove it.
    pub fn temp_path(&self) -> &Path {
        self.out.path()
    }

    /// Completes the file, syncs it to the disk and gives it its name. Returns its identity.
    pub fn finish(self) -> Result<[u8; 32]> {
        let (out, identity) = self.complete()?;
        out.persist()?;
        Ok(identity)
    }
}

impl<W: Write + Seek> Writer<W> {
    /// Starts a file in `out`, which must be empty and at its start.
    pub fn new(
        out: W,
        metadata: &Map<String, Value>,
        sections: Vec<NewSection>,
        plan: &[TensorPlan],
    ) -> Result<Writer<W>> {
        Layout::new(metadata, sections, plan)?.begin(out)
    }

    /// Index in the plan of the tensor that the next bytes belong to, `None` when all are there.
    pub fn expects(&self) -> Option<usize> {
        (self.current < self.tensors.len()).then_some(self.current)
    }

    /// How many bytes of that tensor are still to come.
    pub fn remaining(&self) -> u64 {
        self.tensors.get(self.current).map_or(0, |t| t.len - self.written)
    }

    /// Bytes the finished file will have.
    pub fn file_len(&self) -> u64 {
        self.file_len
    }

    /// Adds encoded bytes to tensor `tensor` (index in the plan). Tensors come in the order of the plan, each in
    /// chunks of any size.
    pub fn append(&mut self, tensor: usize, bytes: &[u8]) -> Result<()> {
        if self.broken {
            return Err(Error::new(ErrorKind::Invalid, "a write to this file failed before; start it again"));
        }
        if self.expects() != Some(tensor) {
            let message = match self.tensors.get(self.current) {
                Some(t) => {
                    format!("bytes for tensor {tensor} of the plan, expected {} ({:?})", self.current, t.name)
                }
                None => format!("bytes for tensor {tensor} of the plan, which is complete"),
            };
            return Err(Error::new(ErrorKind::Invalid, message));
        }
        if bytes.len() as u64 > self.remaining() {
            let (name, left) = (&self.tensors[tensor].name, self.remaining());
            let message = format!("tensor {name:?}: {} more bytes, it takes {left}", bytes.len());
            return Err(Error::new(ErrorKind::Invalid, message));
        }
        self.put(bytes)?;
        self.crc.update(bytes);
        self.written += bytes.len() as u64;
        if self.remaining() == 0 {
            let crc = std::mem::replace(&mut self.crc, Crc::new()).finish();
            let done = &mut self.tensors[tensor];
            done.crc = crc;
            let end = done.offset + done.len;
            (self.current, self.written) = (tensor + 1, 0);
            if let Some(next) = self.tensors.get(self.current) {
                let padding = (next.offset - end) as usize;
                self.put(&[0; TENSOR_ALIGN as usize][..padding])?;
            }
        }
        Ok(())
    }

    /// Encodes `values` (row-major; `[count, rows, cols]` one matrix after the other) as the whole of tensor
    /// `tensor`, of whose shape there must be as many.
    pub fn append_values(&mut self, tensor: usize, values: &[f32]) -> Result<()> {
        let Some(Tensor { name, ty, shape, .. }) = self.tensors.get(tensor) else {
            return self.append(tensor, &[]);
        };
        let (ty, shape) = (*ty, shape.iter().map(|&d| d as usize).collect::<Vec<_>>());
        if shape.iter().try_fold(1, |product: usize, d| product.checked_mul(*d)) != Some(values.len()) {
            let message = format!("tensor {name:?}: {} values for the shape {shape:?}", values.len());
            return Err(Error::new(ErrorKind::Invalid, message));
        }
        match *shape.as_slice() {
            [.., rows, cols] => {
                let mut matrices = values.chunks_exact(rows * cols);
                matrices.try_for_each(|matrix| self.append(tensor, &quant::encode(ty, matrix, rows, cols)))
            }
            _ => self.append(tensor, &values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<_>>()),
        }
    }

    /// Completes the file in `out` and gives that back with the identity.
    pub fn complete(mut self) -> Result<(W, [u8; 32])> {
        if self.broken {
            return Err(Error::new(ErrorKind::Invalid, "a write to this file failed before; start it again"));
        }
        if let Some(tensor) = self.tensors.get(self.current) {
            let message = format!("tensor {:?} lacks {} bytes", tensor.name, self.remaining());
            return Err(Error::new(ErrorKind::Invalid, message));
        }
        let table = encode_table(&self.tensors);
        for (section, data) in &mut self.sections {
            if section.kind == kind::TENSORS {
                data.clone_from(&table);
                section.crc = crc32c(&table);
            }
        }
        let first = self.tensors.first().map_or(self.file_len, |t| t.offset);
        let front = lay_front(&self.sections, first);
        let header_len = header::FIXED + header::ENTRY * self.sections.len();
        let identity = self.hash.finish(&front[header_len..]);
        let sections: Vec<Section> = self.sections.iter().map(|(s, _)| *s).collect();
        let header = header::encode(self.minor, self.file_len, identity, &sections);
        let doing = |e: std::io::Error| Error::io("writing the front of the file", &e);
        // The header comes last: before it is there, no reader takes the file for one.
        self.out.seek(SeekFrom::Start(header_len as u64)).map_err(doing)?;
        self.out.write_all(&front[header_len..]).map_err(doing)?;
        self.out.seek(SeekFrom::Start(0)).map_err(doing)?;
        self.out.write_all(&header).map_err(doing)?;
        self.out.flush().map_err(doing)?;
        Ok((self.out, identity))
    }

    fn put(&mut self, bytes: &[u8]) -> Result<()> {
        self.hash.update(bytes);
        self.out.write_all(bytes).map_err(|e| {
            self.broken = true;
            Error::io("writing tensor data", &e)
        })
    }
}

/// Where everything will lie.
struct Layout {
    sections: Vec<(Section, Vec<u8>)>,
    tensors: Vec<Tensor>,
    minor: u16,
    file_len: u64,
    /// Bytes before the first tensor.
    front_len: u64,
}

impl Layout {
    fn new(metadata: &Map<String, Value>, more: Vec<NewSection>, plan: &[TensorPlan]) -> Result<Layout> {
        let too_large = || Error::new(ErrorKind::TooLarge, "the file would have more than 2^64 bytes");
        let json = serde_json::to_vec(metadata).map_err(|e| {
            Error::new(ErrorKind::Invalid, format!("metadata cannot be written as JSON: {e}"))
        })?;
        let mut tensors = Vec::with_capacity(plan.len());
        for TensorPlan { name, ty, shape } in plan {
            let Some(len) = quant::tensor_bytes(*ty, shape) else {
                let message = format!("tensor {name:?}: shape {shape:?} cannot be stored as {ty}");
                return Err(Error::new(ErrorKind::Invalid, message));
            };
            tensors.push(Tensor {
                name: name.clone(),
                ty: *ty,
                shape: shape.clone(),
                offset: 0,
                len,
                crc: 0,
            });
        }

        let table = encode_table(&tensors);
        let mut parts = vec![(kind::METADATA, true, json), (kind::TENSORS, true, table)];
        parts.extend(more.into_iter().map(|s| (s.kind, s.required, s.data)));
        let header_len = (header::FIXED + header::ENTRY * parts.len()) as u64;
        let mut end = header_len;
        let mut sections = Vec::with_capacity(parts.len());
        for (kind, required, data) in parts {
            let offset = end.next_multiple_of(SECTION_ALIGN);
            end = offset + data.len() as u64;
            let (len, crc) = (data.len() as u64, crc32c(&data));
            let flags = if required { REQUIRED } else { 0 };
            sections.push((Section { kind, flags, offset, len, crc }, data));
        }
        for tensor in &mut tensors {
            tensor.offset = end.checked_next_multiple_of(TENSOR_ALIGN).ok_or_else(too_large)?;
            end = tensor.offset.checked_add(tensor.len).ok_or_else(too_large)?;
        }
        let front_len = tensors.first().map_or(end, |t| t.offset);
        for (section, data) in &mut sections {
            if section.kind == kind::TENSORS {
                *data = encode_table(&tensors);
            }
        }
        // What older readers know stays at the version that they know.
        let minor = if metadata.contains_key("draft") { header::MINOR_DRAFT } else { header::MINOR };
        let layout = Layout { sections, tensors, minor, file_len: end, front_len };
        layout.check()?;
        Ok(layout)
    }

    /// What the reader would refuse is refused here.
    fn check(&self) -> Result<()> {
        let mut front = lay_front(&self.sections, self.front_len);
        // A required section of a kind that this library does not know may be written, though it is then not read.
        let optional = |(section, _): &(Section, Vec<u8>)| Section { flags: 0, ..*section };
        let sections: Vec<Section> = self.sections.iter().map(optional).collect();
        let header = header::encode(self.minor, self.file_len, [0; 32], &sections);
        front[..header.len()].copy_from_slice(&header);
        match Index::parse_front(&front, self.file_len) {
            Ok(_) => Ok(()),
            Err(e) => Err(Error::new(ErrorKind::Invalid, format!("cannot write such a file: {}", e.message))),
        }
    }

    fn begin<W: Write + Seek>(self, mut out: W) -> Result<Writer<W>> {
        // The room before the first tensor stays a hole until the end.
        out.seek(SeekFrom::Start(self.front_len)).map_err(|e| Error::io("starting the file", &e))?;
        let header_len = (header::FIXED + header::ENTRY * self.sections.len()) as u64;
        Ok(Writer {
            out,
            sections: self.sections,
            tensors: self.tensors,
            hash: LateFront::new(self.front_len - header_len),
            minor: self.minor,
            file_len: self.file_len,
            current: 0,
            written: 0,
            crc: Crc::new(),
            broken: false,
        })
    }
}

fn encode_table(tensors: &[Tensor]) -> Vec<u8> {
    let mut by_name: Vec<&Tensor> = tensors.iter().collect();
    by_name.sort_by(|a, b| a.name.cmp(&b.name));
    tensor::encode(&by_name)
}

/// The bytes before the first tensor, with zeros where the header goes.
fn lay_front(sections: &[(Section, Vec<u8>)], len: u64) -> Vec<u8> {
    let mut front = vec![0; len as usize];
    for (section, data) in sections {
        front[section.offset as usize..][..data.len()].copy_from_slice(data);
    }
    front
}
