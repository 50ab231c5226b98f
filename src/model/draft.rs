//! A second model in a file, which guesses the first one's tokens.
//!
//! The metadata's key `draft` describes it as `model` describes the first; its tensors stand under their names with
//! `draft.` before them. Either it is a whole small model, or a head (DeepSeek-V3's multi-token prediction,
//! arXiv:2412.19437 section 2.2) that goes on from the first one's last hidden vector:
//!
//! ```text
//! h of position i, after the final norm ──▶ norm ─┐
//! embedding of token i + 1 ───────────────▶ norm ─┴─▶ matrix [width, 2 width] ──▶ a layer ──▶ norm ──▶ head ──▶ token i + 2
//! ```
//! A head has the first one's embedding and output matrix.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::arch::{self, Slot, Want};
use super::list::Origin;
use super::spec::{Norm, Spec};
use crate::error::{Error, Result, Status};

/// What its tensors' names begin with.
pub const PREFIX: &str = "draft.";

/// The second model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Draft {
    /// Its shape.
    pub model: Spec,
    /// Of a head: the norms of hidden vector and embedding.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub join: Option<Norm>,
}

impl Draft {
    /// The head that stands behind the layers of a checkpoint of `spec`, if `stored` says that its matrix is there.
    pub fn behind(spec: &Spec, stored: impl Fn(&str) -> bool) -> Option<Draft> {
        let layer = spec.layers.last().filter(|_| spec.architecture == "deepseek_v3")?;
        stored(&format!("model.layers.{}.eh_proj.weight", spec.layers.len())).then(|| {
            let model = Spec { layers: vec![layer.clone()], ..spec.clone() };
            Draft { model, join: Some(spec.final_norm) }
        })
    }

    /// What the metadata says.
    ///
    /// # Errors
    /// `BAD_FORMAT` for a description that makes no sense or does not fit the first model's.
    pub(crate) fn read(metadata: &Map<String, Value>, first: &Spec) -> Result<Option<Draft>> {
        let wrong = |what: String| Error::new(Status::BAD_FORMAT, format!("metadata: `draft`: {what}"));
        let Some(value) = metadata.get("draft") else { return Ok(None) };
        let draft: Draft = Deserialize::deserialize(value).map_err(|e| wrong(e.to_string()))?;
        draft.model.check()?;
        if let Some(norm) = draft.join {
            let (width, vocab) = (first.width, first.vocab);
            if (draft.model.width, draft.model.vocab) != (width, vocab) {
                let got = format!("{} and {}", draft.model.width, draft.model.vocab);
                return Err(wrong(format!("width and vocabulary should be {width} and {vocab}, got {got}")));
            }
            if draft.model.tied != first.tied || !(0.0..=1.0).contains(&norm.eps) || norm.bias {
                return Err(wrong("a head shares the model's matrices and has plain norms".into()));
            }
        }
        Ok(Some(draft))
    }

    /// Its tensors by their names in the file. `layers`: how many stand before a head's own in the checkpoint.
    ///
    /// # Errors
    /// `UNSUPPORTED` for an architecture that is not known.
    pub fn tensors(&self, layers: usize) -> Result<Vec<Want>> {
        let mut wants = (arch::find(&self.model.architecture)?.tensors)(&self.model);
        if self.join.is_some() {
            let at = format!("model.layers.{layers}.");
            wants.retain(|want| !shared(want.slot));
            for source in wants.iter_mut().flat_map(|want| &mut want.sources) {
                source.name = match source.name.strip_prefix("model.layers.0.") {
                    Some(rest) => format!("{at}{rest}"),
                    None => format!("{at}shared_head.norm.weight"),
                };
            }
            let width = u64::from(self.model.width);
            for (slot, name, shape) in [
                (Slot::JoinToken, "enorm.weight", vec![width]),
                (Slot::JoinHidden, "hnorm.weight", vec![width]),
                (Slot::Join, "eh_proj.weight", vec![width, 2 * width]),
            ] {
                let (name, sources, plus) = Origin::plain(format!("{at}{name}"), &shape).parts();
                let name = name.replacen(&at, "", 1);
                wants.push(Want { slot, name, shape, sources, plus });
            }
        }
        wants.iter_mut().for_each(|want| want.name.insert_str(0, PREFIX));
        Ok(wants)
    }
}

/// Whether a head has this tensor from the first model.
pub(crate) fn shared(slot: Slot) -> bool {
    matches!(slot, Slot::Embedding | Slot::Head | Slot::HeadBias)
}
