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
    /// Makes room for `[rows, width]`; returns the bytes that were added.
    pub(crate) fn room(&mut self, rows: usize, width: usize) -> Result<u64> {
        let refused = || {
            let message =
                format!("activations of {rows} rows of {width} do not fit memory; a smaller chunk may");
            Error::new(Status::NO_MEMORY, message)
        };
        let len = rows.checked_mul(width).ok_or_else(refused)?;
        let more = len.saturating_sub(self.data.len());
        if more > 0 {
            self.data.try_reserve_exact(more).map_err(|_| refused())?;
            self.data.resize(len, 0.0);
        }
        Ok(more as u64 * 4)
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
