//! Vectors: hidden states of tokens, one by one or pooled into one vector for a text.
//!
//! The hidden state is what the head would be given: the residual stream behind the last layer, after the final norm.
//! Means are summed in f64 in order of positions, so that chunks do not change a bit. The head's product is left out.

use llm_kernels::FloatControl;

use super::outputs::Asked;
use super::{Control, OnProgress, Progress, Session};
use crate::cancel::Cancel;
use crate::error::{Error, Result, Status};

/// Which hidden states become the vector of a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Pooling {
    /// The mean of all.
    #[default]
    Mean,
    /// That of the last token, which has seen all others.
    Last,
    /// That of the first token.
    First,
}

impl Session {
    /// Appends `ids` and pools their hidden states into a vector, `[width]`, of length 1 if `normalise`. Tokens held
    /// before are context and not pooled. There are no logits afterwards. A progress function's `Stop` is a cancel
    /// here, since half a text has no vector.
    ///
    /// # Errors
    /// As [`Session::prefill_outputs`]; `INVALID_ARG` without ids.
    pub fn embed(
        &mut self,
        ids: &[i32],
        pooling: Pooling,
        normalise: bool,
        cancel: Option<&Cancel>,
        progress: Option<OnProgress<'_>>,
    ) -> Result<Vec<f32>> {
        if ids.is_empty() {
            return Err(Error::new(Status::INVALID_ARG, "no tokens: a vector is that of at least one"));
        }
        let _float = FloatControl::default_for_now();
        let (first, last) = ([0], [ids.len() - 1]);
        let at = match pooling {
            Pooling::Mean => None,
            Pooling::Last => Some(&last[..]),
            Pooling::First => Some(&first[..]),
        };
        let mut sum = vec![0f64; self.model.spec().width as usize];
        let asked = Asked { at, logits: false };
        self.prefill_outputs(ids, asked, cancel, Some(&mut whole(progress)), &mut |output| {
            sum.iter_mut().zip(output.hidden).for_each(|(sum, &h)| *sum += f64::from(h));
            Ok(())
        })?;
        let mut factor = if pooling == Pooling::Mean { 1.0 / ids.len() as f64 } else { 1.0 };
        if normalise {
            let length = sum.iter().map(|h| h * h).sum::<f64>().sqrt();
            factor = if length > 0.0 { 1.0 / length } else { 1.0 };
        }
        Ok(sum.iter().map(|h| (h * factor) as f32).collect())
    }

    /// Appends `ids` and returns the hidden states of those at the indices `at`, which ascend: `[at.len(), width]`.
    /// There are no logits afterwards. A progress function's `Stop` is a cancel here.
    ///
    /// # Errors
    /// As [`Session::prefill_outputs`].
    pub fn hidden(
        &mut self,
        ids: &[i32],
        at: &[usize],
        cancel: Option<&Cancel>,
        progress: Option<OnProgress<'_>>,
    ) -> Result<Vec<f32>> {
        let (width, mut states) = (self.model.spec().width as usize, Vec::new());
        let values = at.len().min(ids.len()).saturating_mul(width);
        let refused = |_| Error::new(Status::NO_MEMORY, format!("no memory for {} hidden states", at.len()));
        states.try_reserve_exact(values).map_err(refused)?;
        let asked = Asked { at: Some(at), logits: false };
        self.prefill_outputs(ids, asked, cancel, Some(&mut whole(progress)), &mut |output| {
            states.extend_from_slice(output.hidden);
            Ok(())
        })?;
        Ok(states)
    }
}

/// A progress function whose `Stop` before the end is a cancel.
fn whole(mut progress: Option<OnProgress<'_>>) -> impl FnMut(Progress) -> Control {
    move |at| match progress.as_mut().map_or(Control::Continue, |progress| progress(at)) {
        Control::Stop if at.done < at.total => Control::Cancel,
        control => control,
    }
}
