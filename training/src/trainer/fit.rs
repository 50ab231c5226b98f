//! Whether a configuration, a model and data fit each other, asked before a run begins.

use llm::error::{Error, Result, Status};
use llm::model::spec::{Ffn, Scaling, Scoring, Spec};

use crate::config::Config;
use crate::corpus::Data;

/// The most tokens of a pass.
const ROWS: usize = 1 << 24;
/// Tokens per sequence of a checkpoint's model, where the configuration does not say.
const LENGTH: usize = 1024;

/// The most tokens of a sequence: the model's context, but with angles that stretch with the length (dynamic NTK).
pub(super) fn context(spec: &Spec) -> usize {
    let stretches = spec.ropes.iter().any(|rope| matches!(rope.scaling, Scaling::Dynamic { .. }));
    if stretches && spec.learned_positions.is_none() { ROWS } else { spec.context as usize }
}

/// Tokens per sequence of a run of `config` on `data`, with the model that `spec` describes.
///
/// # Errors
/// `INVALID_ARG` with the first setting that does not fit; `MISMATCH` for data of another tokenizer than the checkpoint
/// to begin from.
pub(super) fn length(config: &Config, spec: &Spec, data: &[Data]) -> Result<usize> {
    let new = config.from.as_os_str().is_empty();
    let files = data.iter().flat_map(|d| [Some(&d.train), d.held_out.as_ref()]).flatten();
    let vocab = files.map(|f| f.vocab()).max().unwrap_or(0);
    let context = context(spec);
    let length = match config.length {
        0 if new => spec.context as usize,
        0 => LENGTH.min(spec.context as usize),
        length if length <= context => length,
        length => {
            let message = format!("length = {length}: the model has a context of {context}");
            return Err(Error::new(Status::INVALID_ARG, message));
        }
    };
    if (spec.vocab as usize) < vocab {
        let message = format!("model.vocab = {}: the data has {vocab} tokens", spec.vocab);
        return Err(Error::new(Status::INVALID_ARG, message));
    }
    if !new {
        data.iter().try_for_each(|d| d.fits_checkpoint(&config.from))?;
    }
    let z_loss = config.model.experts.z_loss;
    let sigmoids = |ffn: &Ffn| matches!(ffn, Ffn::Experts(x) if x.scoring == Scoring::Sigmoid);
    if z_loss != 0.0 && spec.layers.iter().any(|layer| sigmoids(&layer.ffn)) {
        let message = format!("model.experts.z_loss = {z_loss}: expected 0 with experts that sigmoids score");
        return Err(Error::new(Status::INVALID_ARG, message));
    }
    let longest = config.curriculum.iter().map(|p| p.length).fold(length, usize::max);
    if longest > context {
        let message = format!("curriculum: length {longest}: the model has a context of {context}");
        return Err(Error::new(Status::INVALID_ARG, message));
    }
    if config.batch > ROWS / longest {
        let message = format!(
            "batch = {}: with {longest} tokens each a pass would have more than {ROWS}; `accumulate` adds passes",
            config.batch
        );
        return Err(Error::new(Status::INVALID_ARG, message));
    }
    for Data { dir, train, .. } in data {
        let (dir, tokens, need) = (dir.display(), train.tokens(), longest as u64 + 1);
        let message = if !train.masked() && tokens < need {
            format!("{dir}: {tokens} ids to train on: a context needs at least {need}")
        } else if train.documents() == 0 {
            format!("{dir}: the data holds no documents")
        } else {
            continue;
        };
        return Err(Error::new(Status::INVALID_ARG, message));
    }
    Ok(length)
}
