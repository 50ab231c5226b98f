//! What the inputs of each matrix are like over a text: the mean square of every column.
//!
//! ```text
//! RuntimeOptions { importance: Some(&sums) } ──▶ device: every product adds its input's squares to its matrix's sums
//! model.importance(&sums) ──▶ per tensor: [columns], or [count, columns] of a stack
//! ```
//! An error in a weight costs as much as the square of what it is multiplied with: encoders weigh by these numbers.
//! A runtime without them pays one comparison per product. It does not know what the text was.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use llm_kernels::Input;

/// Sums of squares of the inputs of all matrices that a runtime multiplied with. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct Importance(Arc<Mutex<HashMap<usize, Sums>>>);

/// The sums of one tensor.
#[derive(Debug)]
struct Sums {
    columns: usize,
    /// Rows of inputs, of each matrix.
    rows: Vec<u64>,
    /// `[count][columns]`
    squares: Vec<f64>,
}

/// The inputs of one tensor's matrices.
#[derive(Clone, Debug, PartialEq)]
pub struct Columns {
    /// The tensor's name in the file.
    pub name: String,
    /// Whether the tensor is a stack of matrices.
    pub stack: bool,
    /// Mean square of each column of each matrix, `[count][columns]`; zeros for an expert that was never chosen.
    pub mean_squares: Vec<Vec<f32>>,
}

impl Importance {
    /// Adds rows `range` of `input`, which goes through matrix `index` of the `count` in a tensor's `bytes`.
    pub(crate) fn see(
        &self,
        bytes: &[u8],
        (index, count): (usize, usize),
        input: &Input,
        range: Range<usize>,
    ) {
        let columns = input.k();
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let none = || Sums { columns, rows: vec![0; count], squares: vec![0.0; count * columns] };
        let sums = all.entry(bytes.as_ptr() as usize).or_insert_with(none);
        if (sums.columns, sums.rows.len()) != (columns, count) {
            *sums = none(); // of a tensor that is gone, whose place another has
        }
        sums.rows[index] += range.len() as u64;
        let squares = &mut sums.squares[index * columns..][..columns];
        for row in range {
            for (sum, x) in squares.iter_mut().zip(input.row(row)) {
                *sum += f64::from(*x) * f64::from(*x);
            }
        }
    }

    /// What was seen of tensors: their names, whether they are stacks, and where they lie.
    pub(crate) fn columns<'a>(
        &self,
        tensors: impl Iterator<Item = (&'a str, bool, &'a [u8])>,
    ) -> Vec<Columns> {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let columns = tensors.filter_map(|(name, stack, bytes)| {
            let sums = all.get(&(bytes.as_ptr() as usize))?;
            let mean = |(squares, &rows): (&[f64], &u64)| {
                squares.iter().map(|sum| (sum / rows.max(1) as f64) as f32).collect()
            };
            let mean_squares = sums.squares.chunks(sums.columns).zip(&sums.rows).map(mean).collect();
            Some(Columns { name: name.into(), stack, mean_squares })
        });
        columns.collect()
    }
}
