//! The importance of columns: what `libllm importance` writes and a conversion weighs its errors by.
//!
//! ```text
//! safetensors, F32, a tensor per matrix under the name it has in the .llm file:
//!     [columns], or [count, columns] for a stack: mean squares of what that column was multiplied with
//! ```
//! An error in a weight costs as much as the square of its input. What a conversion asks for is read, no more.

use std::path::Path;

use llm::importance::Columns;
use llm::model::arch::Want;
use llm::{Error, Result, Status};
use safetensors::tensor::{Dtype, TensorView};

use crate::checkpoint::Checkpoint;

/// Part of a matrix's mean importance that every column has besides: what a text never moves may move in another.
const FLOOR: f32 = 0.01;

/// Importance by tensor.
pub(crate) struct Importance {
    place: String,
    file: Checkpoint,
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
    /// Opens a file that [`serialize`] made.
    ///
    /// # Errors
    /// `IO`, `NOT_FOUND`; `BAD_FORMAT` for a file that is no safetensors, or has another type than F32; `UNSUPPORTED` for
    /// what is known as another format.
    pub(crate) fn read(path: &Path) -> Result<Self> {
        let importance =
            Self { place: path.display().to_string(), file: Checkpoint::open_file(path.into())? };
        for (name, entry) in importance.file.tensors() {
            if entry.dtype() != "F32" {
                return Err(importance.bad(format!("tensor `{name}` is {}, expected F32", entry.dtype())));
            }
        }
        Ok(importance)
    }

    fn bad(&self, what: String) -> Error {
        Error::new(Status::BAD_FORMAT, format!("{}: {what}", self.place))
    }

    /// The importance of the columns of `want`, `[columns]` or `[count · columns]`, if the file has it.
    ///
    /// # Errors
    /// `IO`; `BAD_FORMAT` for one of another shape, and for a number that is negative or not finite.
    pub(crate) fn of(&self, want: &Want) -> Result<Option<Vec<f32>>> {
        let name = &want.name;
        let Some(entry) = self.file.tensors().get(name) else { return Ok(None) };
        let expected = match want.shape[..] {
            [_, columns] => vec![columns],
            [count, _, columns] => vec![count, columns],
            _ => vec![],
        };
        if entry.shape != expected {
            return Err(self.bad(format!(
                "tensor `{name}` of shape {:?}, expected {expected:?}; the importance is that of another model",
                entry.shape
            )));
        }
        let view = self.file.view(name)?;
        let mut values = vec![0.0; view.count() as usize];
        view.read(0, &mut values, &mut Vec::new())?;
        if let Some(value) = values.iter().find(|v| !v.is_finite() || **v < 0.0) {
            return Err(self.bad(format!("tensor `{name}` holds {value}, expected a mean square")));
        }
        let columns = expected.last().map_or(1, |&columns| columns as usize).max(1);
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
        if wants.iter().any(|want| self.file.tensors().contains_key(&want.name)) {
            return Ok(());
        }
        Err(self.bad("holds the name of no tensor; the importance is that of another model".into()))
    }
}
