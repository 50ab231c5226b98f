//! What backends compute with: activations in memory of their own, and weights where they lie in the file.
//!
//! Shapes are proven where these are made ([`crate::weights`], the forward pass); a tensor does not know its shape,
//! because one buffer serves many.

use llm_format::quant::Type;

use crate::error::{Error, Result, Status};
use crate::mmap::Bytes;

/// f32 activations. Grows to the largest use and stays.
#[derive(Debug, Default)]
pub(crate) struct Tensor {
    data: Vec<f32>,
}

impl Tensor {
    /// Bytes that room for `[rows, width]` adds; those of several tensors together fit u64.
    pub(crate) fn lacks(&self, rows: usize, width: usize) -> Result<u64> {
        let most = u64::MAX / 1024;
        let len =
            rows.checked_mul(width).filter(|len| *len as u64 <= most).ok_or_else(|| full(rows, width))?;
        Ok(len.saturating_sub(self.data.len()) as u64 * 4)
    }

    /// Makes room for `[rows, width]`.
    pub(crate) fn room(&mut self, rows: usize, width: usize) -> Result<()> {
        let more = (self.lacks(rows, width)? / 4) as usize;
        if more > 0 {
            self.data.try_reserve_exact(more).map_err(|_| full(rows, width))?;
            self.data.resize(self.data.len() + more, 0.0);
        }
        Ok(())
    }

    /// The first `n` values.
    pub(crate) fn host(&self, n: usize) -> &[f32] {
        &self.data[..n]
    }

    /// The first `n` values.
    pub(crate) fn host_mut(&mut self, n: usize) -> &mut [f32] {
        &mut self.data[..n]
    }
}

fn full(rows: usize, width: usize) -> Error {
    let message = format!("activations of {rows} rows of {width} do not fit memory; a smaller chunk may");
    Error::new(Status::NO_MEMORY, message)
}

/// A weight matrix `[rows, columns]` in the file's records.
#[derive(Clone, Debug)]
pub(crate) struct Matrix {
    pub(crate) ty: Type,
    pub(crate) rows: usize,
    pub(crate) columns: usize,
    pub(crate) bytes: Bytes,
}

/// Matrices of one shape and type, one after the other: experts, or heads.
#[derive(Clone, Debug)]
pub(crate) struct Stack {
    pub(crate) ty: Type,
    pub(crate) count: usize,
    pub(crate) rows: usize,
    pub(crate) columns: usize,
    pub(crate) bytes: Bytes,
}

/// A vector of weights, plain f32 and aligned to it.
#[derive(Clone, Debug)]
pub(crate) struct Vector(Bytes);

impl Vector {
    /// `None` unless `bytes` are `n` aligned floats.
    pub(crate) fn new(bytes: Bytes, n: usize) -> Option<Self> {
        let floats: &[f32] = bytemuck::try_cast_slice(&bytes).ok()?;
        (floats.len() == n).then_some(Self(bytes.clone()))
    }

    /// The values.
    pub(crate) fn values(&self) -> &[f32] {
        bytemuck::cast_slice(&self.0) // proved by `new`
    }
}
