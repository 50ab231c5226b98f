//! The importance of columns: what `libllm importance` writes and a conversion weighs its errors by.
//!
//! ```text
//! safetensors, F32, a tensor per matrix under the name it has in the .llm file:
//!     [columns], or [count, columns] for a stack: mean squares of what that column was multiplied with
//! ```
//! An error in a weight costs as much as the square of its input. It is read whole: a few numbers per matrix.

use std::collections::HashMap;
use std::path::Path;

use llm::importance::Columns;
use llm::model::arch::Want;
use llm::{Error, Result, Status};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};

/// Part of a matrix's mean importance that every column has besides: what a text never moves may move in another.
const FLOOR: f32 = 0.01;

/// Importance by tensor.
pub(crate) struct Importance {
    place: String,
    tensors: HashMap<String, (Vec<usize>, Vec<f32>)>,
}

/// The bytes of a file of importance.
///
/// # Errors
/// `INTERNAL` if they cannot be laid out.
pub fn serialize(columns: &[Columns]) -> Result<Vec<u8>> {
    let data: Vec<(Vec<usize>, Vec<u8>)> = columns
        .iter()
        .map(|c| {
            let width = c.mean_squares.first().map_or(0, Vec::len);
            let shape = if c.stack { vec![c.mean_squares.len(), width] } else { vec![width] };
            (shape, c.mean_squares.iter().flatten().flat_map(|v| v.to_le_bytes()).collect())
        })
        .collect();
    let failed = |e: safetensors::SafeTensorError| Error::new(Status::INTERNAL, format!("importance: {e}"));
    let views = columns
        .iter()
        .zip(&data)
        .map(|(c, (shape, bytes))| Ok((c.name.as_str(), TensorView::new(Dtype::F32, shape.clone(), bytes)?)))
        .collect::<std::result::Result<Vec<_>, _>>()
        .map_err(failed)?;
    safetensors::serialize(views, None).map_err(failed)
}

impl Importance {
    /// Reads a file that [`serialize`] made.
    ///
    /// # Errors
    /// `IO`, `NOT_FOUND`; `BAD_FORMAT` for a file that is no safetensors, another type than F32, a number that is
    /// negative or not finite.
    pub(crate) fn read(path: &Path) -> Result<Self> {
        let place = path.display().to_string();
        let bytes = std::fs::read(path).map_err(|e| Error::from(e).context(&place))?;
        let bad = |what: String| Error::new(Status::BAD_FORMAT, format!("{place}: {what}"));
        let file = SafeTensors::deserialize(&bytes).map_err(|e| bad(e.to_string()))?;
        let mut tensors = HashMap::new();
        for (name, view) in file.iter() {
            if view.dtype() != Dtype::F32 {
                return Err(bad(format!("tensor `{name}` is {:?}, expected F32", view.dtype())));
            }
            let values: Vec<f32> = view.data().as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
            if let Some(value) = values.iter().find(|v| !v.is_finite() || **v < 0.0) {
                return Err(bad(format!("tensor `{name}` holds {value}, expected a mean square")));
            }
            tensors.insert(name.to_owned(), (view.shape().to_vec(), values));
        }
        Ok(Self { place, tensors })
    }

    /// The importance of the columns of `want`, `[columns]` or `[count · columns]`, if the file has it.
    ///
    /// # Errors
    /// `BAD_FORMAT` for one of another shape.
    pub(crate) fn of(&self, want: &Want) -> Result<Option<Vec<f32>>> {
        let Some((shape, values)) = self.tensors.get(&want.name) else { return Ok(None) };
        let expected = match want.shape[..] {
            [_, columns] => vec![columns as usize],
            [count, _, columns] => vec![count as usize, columns as usize],
            _ => vec![],
        };
        if *shape != expected {
            let what = format!(
                "{}: tensor `{}` of shape {shape:?}, expected {expected:?}; the importance is that of another model",
                self.place, want.name
            );
            return Err(Error::new(Status::BAD_FORMAT, what));
        }
        let columns = expected.last().copied().unwrap_or(1).max(1);
        let smooth = |part: &[f32]| {
            let floor = FLOOR * part.iter().sum::<f32>() / columns as f32;
            part.iter().map(|v| v + floor).collect::<Vec<_>>()
        };
        Ok(Some(values.chunks(columns).flat_map(smooth).collect()))
    }

    /// Refuses a file that has nothing for any of `wants`.
    ///
    /// # Errors
    /// `BAD_FORMAT`.
    pub(crate) fn fits(&self, wants: &[Want]) -> Result<()> {
        if wants.iter().any(|want| self.tensors.contains_key(&want.name)) {
            return Ok(());
        }
        let what =
            format!("{}: holds the name of no tensor; the importance is that of another model", self.place);
        Err(Error::new(Status::BAD_FORMAT, what))
    }
}
