//! The tensor table: a name, a type, a shape and a range of bytes per tensor.
//!
//! ```text
//!  0  u32 tensors, u32 zero, u64 bytes of all names
//! 16  entries, 64 bytes each, by ascending name (bytewise):
//!       u32 bytes of the name, u32 type, u32 dimensions (1..=3), u32 CRC-32C of the data
//!       u64 shape[4], unused ones zero      u64 offset, u64 length
//! ..  the names, UTF-8, one after the other in the order of the entries
//! ```

use crate::bytes::{u32_at, u64_at};
use crate::quant::Type;

/// Bytes before the entries.
pub const FIXED: usize = 16;
/// Bytes of an entry.
pub const ENTRY: usize = 64;
/// The most bytes of a name.
pub const MAX_NAME: u32 = 1024;
/// The most dimensions.
pub const MAX_DIMS: u32 = 3;
/// Tensors lie at multiples of this.
pub const TENSOR_ALIGN: u64 = 4096;

/// A tensor of a checked file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Tensor {
    /// Its name, unique in the file.
    pub name: String,
    /// The type of its records.
    pub ty: Type,
    /// `[n]`, `[rows, cols]` or `[count, rows, cols]`, without padding.
    pub shape: Vec<u64>,
    /// Where its bytes begin, a multiple of 4096 from the start of the file.
    pub offset: u64,
    /// How many bytes it has: [`crate::quant::tensor_bytes`] of type and shape.
    pub len: u64,
    /// CRC-32C of its bytes.
    pub crc: u32,
}

/// An entry as it lies in the file.
#[derive(Clone, Copy)]
pub(crate) struct Entry {
    pub name_len: u32,
    pub ty: u32,
    pub dims: u32,
    pub crc: u32,
    pub shape: [u64; 4],
    pub offset: u64,
    pub len: u64,
}

impl Entry {
    pub(crate) fn read(bytes: &[u8], at: usize) -> Option<Entry> {
        let mut shape = [0; 4];
        for (i, dim) in shape.iter_mut().enumerate() {
            *dim = u64_at(bytes, at + 16 + 8 * i)?;
        }
        Some(Entry {
            name_len: u32_at(bytes, at)?,
            ty: u32_at(bytes, at + 4)?,
            dims: u32_at(bytes, at + 8)?,
            crc: u32_at(bytes, at + 12)?,
            shape,
            offset: u64_at(bytes, at + 48)?,
            len: u64_at(bytes, at + 56)?,
        })
    }
}

/// The table's bytes; `tensors` by ascending name.
pub(crate) fn encode(tensors: &[&Tensor]) -> Vec<u8> {
    let names: usize = tensors.iter().map(|t| t.name.len()).sum();
    let mut out = Vec::with_capacity(FIXED + ENTRY * tensors.len() + names);
    out.extend((tensors.len() as u32).to_le_bytes());
    out.extend([0; 4]);
    out.extend((names as u64).to_le_bytes());
    for tensor in tensors {
        out.extend((tensor.name.len() as u32).to_le_bytes());
        out.extend(tensor.ty.id().to_le_bytes());
        out.extend((tensor.shape.len() as u32).to_le_bytes());
        out.extend(tensor.crc.to_le_bytes());
        for i in 0..4 {
            out.extend(tensor.shape.get(i).copied().unwrap_or(0).to_le_bytes());
        }
        out.extend(tensor.offset.to_le_bytes());
        out.extend(tensor.len.to_le_bytes());
    }
    for tensor in tensors {
        out.extend(tensor.name.as_bytes());
    }
    out
}
