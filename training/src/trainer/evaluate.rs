//! The loss on held-out text: windows side by side without overlap, of every directory of the data.

use std::convert::Infallible;
use std::ops::{AddAssign, ControlFlow, Range};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use llm::error::{Error, Result, Status};

use super::{Evaluation, Trainer, input};
use crate::batches::{Batch, borders, pack, windows};
use crate::data::TokenFile;
use crate::engine::Want;

/// Within a batch, which may take long, it is asked this often whether to go on.
const PAUSE: Duration = Duration::from_millis(50);

/// Of all held-out text together, and of each directory that has some.
type Evaluations = (Evaluation, Vec<(PathBuf, Evaluation)>);

/// A summed loss.
#[derive(Clone, Copy, Default)]
struct Sum {
    nats: f64,
    tokens: u64,
}

impl AddAssign for Sum {
    fn add_assign(&mut self, other: Sum) {
        self.nats += other.nats;
        self.tokens += other.tokens;
    }
}

/// Whether an evaluation goes on, as its caller says.
struct Asking<'a, B> {
    poll: &'a mut dyn FnMut() -> ControlFlow<B>,
    last: Instant,
    stopped: Option<B>,
}

impl<B> Asking<'_, B> {
    fn now(&mut self) -> bool {
        if self.stopped.is_none() {
            self.stopped = (self.poll)().break_value();
        }
        self.last = Instant::now();
        self.stopped.is_none()
    }

    fn sometimes(&mut self) -> bool {
        if self.last.elapsed() < PAUSE { self.stopped.is_none() } else { self.now() }
    }
}

impl Trainer {
    /// The loss on the first `sequences` windows (0: all) of the held-out ids of each directory, over all their tokens.
    ///
    /// # Errors
    /// `NOT_FOUND` if the data has no held-out part; `BAD_STATE` for a loss that is no number, with the layer that showed
    /// it first; those of reading the data.
    pub fn evaluate(&mut self, sequences: usize) -> Result<Evaluation> {
        self.evaluate_each(sequences).map(|(whole, _)| whole)
    }

    /// As [`Trainer::evaluate`], and the loss on each directory that has a held-out part.
    ///
    /// # Errors
    /// As [`Trainer::evaluate`].
    pub fn evaluate_each(&mut self, sequences: usize) -> Result<(Evaluation, Vec<(PathBuf, Evaluation)>)> {
        let never = &mut || ControlFlow::<Infallible>::Continue(());
        let ControlFlow::Continue(done) = self.evaluate_until(sequences, never)?;
        Ok(done)
    }

    /// As [`Trainer::evaluate_each`]. `poll` is asked before every batch, and in long ones every twentieth of a second;
    /// its `Break` ends the evaluation and is returned in place of a result.
    ///
    /// # Errors
    /// As [`Trainer::evaluate`].
    pub fn evaluate_until<B>(
        &mut self,
        sequences: usize,
        poll: &mut dyn FnMut() -> ControlFlow<B>,
    ) -> Result<ControlFlow<B, Evaluations>> {
        let mut asking = Asking { poll, last: Instant::now(), stopped: None };
        let (mut each, mut whole, mut first) = (Vec::new(), Sum::default(), Sum::default());
        // of all the held-out text: nats expected from the loss measured, bytes
        let (mut nats, mut bytes) = (0.0, 0);
        for part in 0..self.data.len() {
            let Some(file) = self.data[part].held_out.take() else { continue };
            let measured = self.measure(&file, sequences, &mut asking);
            let (learned, size) = (file.learned() as f64, file.bytes().max(1));
            self.data[part].held_out = Some(file);
            let (all, start) = match measured? {
                ControlFlow::Continue(sums) => sums,
                ControlFlow::Break(reason) => return Ok(ControlFlow::Break(reason)),
            };
            if all.tokens == 0 {
                continue;
            }
            let nats_per_token = all.nats / all.tokens as f64;
            let nats_per_byte = nats_per_token * learned / size as f64;
            let evaluation = Evaluation { nats_per_token, nats_per_byte, tokens: all.tokens };
            each.push((self.data[part].dir.clone(), evaluation));
            whole += all;
            first += start;
            (nats, bytes) = (nats + nats_per_token * learned, bytes + size);
        }
        if whole.tokens == 0 {
            let message = "no held-out text with a loss: prepare the data with a share above 0";
            return Err(Error::new(Status::NOT_FOUND, message));
        }
        // checkpoints are compared by what the evaluations of all of them see, also where the last one sees more
        let seen = if first.tokens > 0 { first } else { whole };
        self.held_out = Some(seen.nats / seen.tokens as f64);
        let (nats_per_token, tokens) = (whole.nats / whole.tokens as f64, whole.tokens);
        let whole = Evaluation { nats_per_token, nats_per_byte: nats / bytes as f64, tokens };
        Ok(ControlFlow::Continue((whole, each)))
    }

    /// The loss of the first `sequences` windows of a file (0: all), and of those among them that every evaluation of
    /// the run sees.
    fn measure<B>(
        &mut self,
        file: &TokenFile,
        sequences: usize,
        asking: &mut Asking<B>,
    ) -> Result<ControlFlow<B, (Sum, Sum)>> {
        let (batch, length) = (self.config.batch, self.length);
        let conversations = file.masked().then(|| {
            let all: Vec<u32> = (0..u32::try_from(file.documents()).unwrap_or(u32::MAX)).collect();
            let borders = windows(file, all.iter().copied(), length);
            (all, borders)
        });
        let there = match &conversations {
            Some((_, borders)) => borders.len() - 1,
            None => usize::try_from((file.tokens() - 1).div_ceil(length as u64)).unwrap_or(usize::MAX),
        };
        let count = if sequences == 0 { there } else { there.min(sequences) };
        let start = self.config.eval_sequences;
        let (mut whole, mut of_start) = (Sum::default(), None);
        for first in (0..count).step_by(batch) {
            let end = count.min(first + batch);
            // a batch on the border of the start is run twice, once without what lies behind
            let cuts = if (first + 1..end).contains(&start) { vec![start, end] } else { vec![end] };
            for cut in cuts {
                let held = match &conversations {
                    Some((all, borders)) => self.packed(file, all, borders, first..cut)?,
                    None => self.running(file, first..cut)?,
                };
                asking.now();
                if let Some(reason) = asking.stopped.take() {
                    return Ok(ControlFlow::Break(reason));
                }
                let (tape, input) = (&self.eval_tape, input(&held, (0, 0)));
                let nats =
                    self.engine.run(tape, &self.weights, &input, Want::Loss(&mut || asking.sometimes()));
                if let Some(reason) = asking.stopped.take() {
                    return Ok(ControlFlow::Break(reason));
                }
                if !nats.is_finite() {
                    return Err(self.no_number(&held, nats));
                }
                let mut sum = whole;
                sum += Sum { nats, tokens: held.learned() as u64 };
                if cut == start {
                    of_start = Some(sum);
                }
                if cut == end {
                    whole = sum;
                }
            }
        }
        Ok(ControlFlow::Continue((whole, of_start.unwrap_or(whole))))
    }

    /// Windows of conversations; past the last of `span` there is nothing, which has no loss.
    fn packed(&self, file: &TokenFile, all: &[u32], borders: &[usize], span: Range<usize>) -> Result<Batch> {
        let mut held = Batch::default();
        for w in span.start..span.start + self.config.batch {
            let documents = if w < span.end { &all[borders[w]..borders[w + 1]] } else { &[] };
            pack(file, documents, self.length, &mut held)?;
        }
        Ok(held)
    }

    /// Windows of running text. Places without text get a target that has no loss.
    fn running(&self, file: &TokenFile, span: Range<usize>) -> Result<Batch> {
        let (length, rows) = (self.length, self.config.batch * self.length);
        let (mut ids, mut targets) = (vec![0; rows], vec![u32::MAX; rows]);
        let mut starts = Vec::new();
        for (i, w) in span.enumerate() {
            let at = w as u64 * length as u64;
            let n = (file.tokens() - 1 - at).min(length as u64) as usize;
            file.read(at, &mut ids[i * length..i * length + n])?;
            file.read(at + 1, &mut targets[i * length..i * length + n])?;
            if self.config.documents {
                borders(file, at, n, &mut starts);
                // behind the text, of what has no loss
                starts.resize((i + 1) * length, n as u32);
            }
        }
        if self.config.documents {
            starts.resize(rows, 0);
        }
        Ok(Batch { ids, targets, starts })
    }

    fn no_number(&mut self, held: &Batch, loss: f64) -> Error {
        let first = self.engine.fault(&self.eval_tape, &self.weights, &input(held, (0, 0)));
        let first = first.unwrap_or_else(|| "every value is a number, their sum is not".into());
        let message = format!("held-out loss {loss} after step {}: {first}; lower optim.rate", self.step);
        Error::new(Status::BAD_STATE, message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_said_stop_is_not_asked_again() {
        let mut asked = 0;
        let mut poll = || {
            asked += 1;
            if asked == 2 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        };
        let mut asking = Asking { poll: &mut poll, last: Instant::now(), stopped: None };
        assert!(asking.now() && !asking.now() && !asking.now() && !asking.sometimes());
        asking.last -= 2 * PAUSE;
        assert!(!asking.sometimes());
        assert_eq!(asked, 2);
    }
}
