//! An adapter becomes part of its model: a checkpoint of its own.

use std::path::Path;

use llm::error::{Error, Result, Status};
use llm_kernels::dense::Dense;

use crate::blueprint::Blueprint;
use crate::layout::Files;
use crate::{checkpoint, lora, memory};

/// Writes the checkpoint `base` with the adapter `adapter` (PEFT's layout) added to its matrices to the directory `out`,
/// as f32. Files of the tokenizer and of generation are copied, from the adapter where it has them.
///
/// # Errors
/// Those of reading either; `INVALID_ARG` for an `out` that is there already, `UNSUPPORTED` for a checkpoint that holds more
/// than a language model, `NO_MEMORY`, `IO`.
pub fn merge(base: &Path, adapter: &Path, out: &Path) -> Result<()> {
    if out.exists() {
        let message = format!("{}: is there already; choose another directory", out.display());
        return Err(Error::new(Status::INVALID_ARG, message));
    }
    let blueprint = Blueprint::of_checkpoint(base)?;
    blueprint.whole().map_err(|e| e.context(base.display()))?;
    let params = blueprint.params();
    memory::check(&[("weights", params.total)])?;
    let (lora, values) = lora::read(adapter, &lora::read_config(adapter)?, &params)?;
    let mut weights = Files::open(base)?.load(&params)?;
    lora.merge(&mut Dense::new(0), &values, &params, &mut weights);
    checkpoint::export(out, &blueprint, &params, &weights, &[adapter, base])
}
