//! An adapter becomes part of its model: a checkpoint of its own.

use std::path::Path;

use llm::error::{Error, Result, Status};
use llm_kernels::dense::Dense;

use crate::blueprint::Blueprint;
use crate::layout::{Files, SHARD};
use crate::{checkpoint, lora, memory};

/// Writes the checkpoint `base` with the adapter `adapter` (PEFT's layout) added to its matrices to the directory `out`,
/// as f32. Files of the tokenizer and of generation are copied, from the adapter where it has them.
///
/// # Errors
/// Those of reading either; `INVALID_ARG` for an `out` that is there already, `UNSUPPORTED` for a checkpoint that holds more
/// than a language model, `NO_MEMORY`, `IO`.
pub fn merge(base: &Path, adapter: &Path, out: &Path) -> Result<()> {
    merge_in(base, adapter, out, SHARD)
}

/// As [`merge`], with files of `most` bytes of tensors.
fn merge_in(base: &Path, adapter: &Path, out: &Path, most: u64) -> Result<()> {
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
    checkpoint::export(out, &blueprint, &params, &weights, most, &[adapter, base])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::design::ModelConfig;
    use crate::layout::{INDEX, MODEL};
    use crate::lora::{Lora, LoraConfig};

    #[test]
    fn a_merged_model_is_divided_where_one_file_would_be_too_large_and_has_the_same_values() {
        const MOST: u64 = 20_000;
        let dir = tempfile::tempdir().unwrap();
        let blueprint = Blueprint::of_design(&ModelConfig { vocab: 300, ..ModelConfig::tiny() }).unwrap();
        let params = blueprint.params();
        let weights = params.init(7, blueprint.spec.layers.len());
        let (base, adapter) = (dir.path().join("base"), dir.path().join("adapter"));
        checkpoint::export(&base, &blueprint, &params, &weights, MOST, &[]).unwrap();
        assert!(base.join(INDEX).is_file());

        let lora = Lora::new(&LoraConfig { rank: 2, ..LoraConfig::default() }, &params).unwrap();
        let values: Vec<f32> = (0..lora.params.total).map(|i| (i % 7) as f32 * 0.01).collect();
        std::fs::create_dir(&adapter).unwrap();
        let config = lora::config(&lora, "base").to_string();
        std::fs::write(adapter.join("adapter_config.json"), config).unwrap();
        let path = adapter.join("adapter_model.safetensors");
        safetensors::serialize_to_file(lora::tensors(&lora, &values), None, &path).unwrap();

        let merged = [("one", SHARD), ("several", MOST)].map(|(name, most)| {
            let out = dir.path().join(name);
            merge_in(&base, &adapter, &out, most).unwrap();
            assert_eq!((out.join(MODEL).is_file(), out.join(INDEX).is_file()), (most == SHARD, most == MOST));
            Files::open(&out).unwrap().load(&params).unwrap()
        });
        assert!(merged[0] == merged[1] && merged[0] != weights);
    }
}
