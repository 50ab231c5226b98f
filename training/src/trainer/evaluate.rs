//! The loss on held-out text: windows side by side without overlap, of every directory of the data.

use std::path::PathBuf;

use llm::error::{Error, Result, Status};

use super::{Evaluation, Trainer, input};
use crate::batches::{Batch, borders, pack, windows};
use crate::data::TokenFile;
use crate::engine::Want;

impl Trainer {
    /// The loss on the first `sequences` windows (0: all) of the held-out ids of each directory, over all their tokens.
    ///
    /// # Errors
    /// `NOT_FOUND` if the data has no held-out part; those of reading it.
    pub fn evaluate(&mut self, sequences: usize) -> Result<Evaluation> {
        self.evaluate_each(sequences).map(|(whole, _)| whole)
    }

    /// As [`Trainer::evaluate`], and the loss on each directory that has a held-out part.
    ///
    /// # Errors
    /// As [`Trainer::evaluate`].
    pub fn evaluate_each(&mut self, sequences: usize) -> Result<(Evaluation, Vec<(PathBuf, Evaluation)>)> {
        let (mut each, mut loss, mut tokens) = (Vec::new(), 0.0, 0);
        // of all the held-out text: nats expected from the loss measured, bytes
        let (mut nats, mut bytes) = (0.0, 0);
        for part in 0..self.data.len() {
            let Some(file) = self.data[part].held_out.take() else { continue };
            let measured = self.measure(&file, sequences);
            let (learned, size) = (file.learned() as f64, file.bytes().max(1));
            self.data[part].held_out = Some(file);
            let (part_loss, part_tokens) = measured?;
            if part_tokens == 0 {
                continue;
            }
            let nats_per_token = part_loss / part_tokens as f64;
            let nats_per_byte = nats_per_token * learned / size as f64;
            let evaluation = Evaluation { nats_per_token, nats_per_byte, tokens: part_tokens };
            each.push((self.data[part].dir.clone(), evaluation));
            (loss, tokens) = (loss + part_loss, tokens + part_tokens);
            (nats, bytes) = (nats + nats_per_token * learned, bytes + size);
        }
        if tokens == 0 {
            let message = "no held-out text with a loss: prepare the data with a share above 0";
            return Err(Error::new(Status::NOT_FOUND, message));
        }
        let nats_per_token = loss / tokens as f64;
        self.held_out = Some(nats_per_token);
        Ok((Evaluation { nats_per_token, nats_per_byte: nats / bytes as f64, tokens }, each))
    }

    /// Summed loss and tokens of the first `sequences` windows of a file.
    fn measure(&mut self, file: &TokenFile, sequences: usize) -> Result<(f64, u64)> {
        let (batch, length) = (self.config.batch, self.length);
        let (mut loss, mut tokens) = (0.0, 0u64);
        if file.masked() {
            let all = (0..u32::try_from(file.documents()).unwrap_or(u32::MAX)).collect::<Vec<_>>();
            let borders = windows(file, all.iter().copied(), length);
            let count = borders.len() - 1;
            let count = if sequences == 0 { count } else { count.min(sequences) };
            for first in (0..count).step_by(batch) {
                let mut held = Batch::default();
                for w in first..first + batch {
                    // past the last window: nothing, which has no loss
                    let span = if w < count { &all[borders[w]..borders[w + 1]] } else { &[] };
                    pack(file, span, length, &mut held)?;
                }
                tokens += held.learned() as u64;
                loss += self.engine.run(&self.eval_tape, &self.weights, &input(&held, (0, 0)), Want::Loss);
            }
        } else {
            let total = file.tokens() - 1;
            let windows = total.div_ceil(length as u64);
            let windows = if sequences == 0 { windows } else { windows.min(sequences as u64) };
            for first in (0..windows).step_by(batch) {
                // Places without text get a target that has no loss.
                let (mut ids, mut targets) = (vec![0; batch * length], vec![u32::MAX; batch * length]);
                let mut starts = Vec::new();
                for (i, w) in (first..windows.min(first + batch as u64)).enumerate() {
                    let at = w * length as u64;
                    let n = (total - at).min(length as u64) as usize;
                    file.read(at, &mut ids[i * length..i * length + n])?;
                    file.read(at + 1, &mut targets[i * length..i * length + n])?;
                    if self.config.documents {
                        borders(file, at, n, &mut starts);
                        starts.resize((i + 1) * length, 0);
                    }
                    tokens += n as u64;
                }
                if self.config.documents {
                    starts.resize(batch * length, 0);
                }
                let held = Batch { ids, targets, starts };
                loss += self.engine.run(&self.eval_tape, &self.weights, &input(&held, (0, 0)), Want::Loss);
            }
        }
        Ok((loss, tokens))
    }
}
