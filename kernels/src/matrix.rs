//! Matrices as they lie in the file: type, shape, bytes.

use llm_format::quant::{Type, block_bytes, matrix_bytes};

/// A weight matrix `[rows, cols]` in a file's records (format/SPEC.md).
#[derive(Clone, Copy, Debug)]
pub struct Matrix<'a> {
    ty: Type,
    rows: usize,
    cols: usize,
    data: &'a [u8],
}

impl<'a> Matrix<'a> {
    /// `None` unless `data` has exactly the bytes of such a matrix.
    pub fn new(ty: Type, rows: usize, cols: usize, data: &'a [u8]) -> Option<Matrix<'a>> {
        let bytes = matrix_bytes(ty, rows as u64, cols as u64)?;
        (rows > 0 && cols > 0 && bytes == data.len() as u64).then_some(Matrix { ty, rows, cols, data })
    }

    /// Storage.
    pub fn ty(&self) -> Type {
        self.ty
    }

    /// Outputs.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Inputs.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// The bytes.
    pub fn data(&self) -> &'a [u8] {
        self.data
    }

    /// Bytes of 32 rows.
    pub(crate) fn block_bytes(&self) -> usize {
        block_bytes(self.ty, self.cols as u64).map_or(0, |n| n as usize) // proved by `new`
    }

    /// The 32-row blocks, behind an integer type's head.
    pub(crate) fn blocks(&self) -> &'a [u8] {
        &self.data[if self.ty.is_integer() { 64 } else { 0 }..]
    }
}

/// Matrices of one shape, one after the other: the experts of a layer.
#[derive(Clone, Copy, Debug)]
pub struct Experts<'a> {
    count: usize,
    first: Matrix<'a>,
    data: &'a [u8],
}

impl<'a> Experts<'a> {
    /// `None` unless `data` has exactly the bytes of `count` such matrices.
    pub fn new(ty: Type, count: usize, rows: usize, cols: usize, data: &'a [u8]) -> Option<Experts<'a>> {
        let bytes = usize::try_from(matrix_bytes(ty, rows as u64, cols as u64)?).ok()?;
        if count == 0 || bytes.checked_mul(count)? != data.len() {
            return None;
        }
        let first = Matrix::new(ty, rows, cols, data.get(..bytes)?)?;
        Some(Experts { count, first, data })
    }

    /// How many.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Outputs of one.
    pub fn rows(&self) -> usize {
        self.first.rows
    }

    /// Inputs of one.
    pub fn cols(&self) -> usize {
        self.first.cols
    }

    /// Matrix `i`.
    ///
    /// # Panics
    /// If `i >= count`.
    pub fn matrix(&self, i: usize) -> Matrix<'a> {
        assert!(i < self.count, "expert {i} of {}", self.count);
        let bytes = self.first.data.len();
        Matrix { data: &self.data[i * bytes..][..bytes], ..self.first }
    }
}

#[cfg(test)]
mod tests {
    use super::{Experts, Matrix, matrix_bytes};
    use llm_format::quant::QUANTS;

    #[test]
    fn bytes_that_are_not_those_of_the_shape_are_refused() {
        for ty in QUANTS.iter().map(|quant| quant.ty) {
            let bytes = matrix_bytes(ty, 33, 130).expect("small") as usize;
            let data = vec![0; 2 * bytes + 1];
            let matrix = |rows, cols, bytes: usize| Matrix::new(ty, rows, cols, &data[..bytes]).is_some();
            assert!(matrix(33, 130, bytes) && !matrix(33, 130, bytes - 1) && !matrix(33, 130, bytes + 1));
            assert!(!matrix(65, 130, bytes) && !matrix(33, 257, bytes) && !matrix(usize::MAX, usize::MAX, 0));
            let head = ty.quant().head;
            assert!(!matrix(0, 130, head) && !matrix(33, 0, head), "a matrix of nothing");
            let experts = |count, bytes: usize| Experts::new(ty, count, 33, 130, &data[..bytes]).is_some();
            assert!(experts(2, 2 * bytes) && experts(1, bytes) && !experts(2, 2 * bytes + 1));
            assert!(!experts(0, 0) && !experts(usize::MAX, bytes) && !experts(3, 2 * bytes));
        }
    }
}
