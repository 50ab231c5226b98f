//! Which tokens a pass sees: windows of running text, or conversations packed side by side.
//!
//! ```text
//! text            window s of `length` ids, at a place that a permutation of all places gives
//! conversations   in an order of their own each epoch, as many to a window as fit; cut where one alone does not
//! ```
//! The sample's number in its directory and the length alone decide, so a run goes on from a number. Windows of
//! conversations depend on those before them in the same epoch; their plan is made when an epoch begins, 4 bytes for
//! each conversation, and again where the length changes: the number stays, so some may come twice and some not at all.
//! To go on from a number, the plans of all epochs before are made again.

use llm::error::{Error, Result, Status};

use crate::data::TokenFile;
use crate::random::permuted;

/// The most conversations that plans are made of to find a sample: about a minute, and more than runs come to.
const MOST: u64 = 1 << 30;

/// The tokens of one pass.
#[derive(Default)]
pub(crate) struct Batch {
    pub ids: Vec<u32>,
    /// `u32::MAX`: no loss here.
    pub targets: Vec<u32>,
    /// Where each row's document begins in its window; empty: at 0.
    pub starts: Vec<u32>,
}

impl Batch {
    /// Rows with a loss.
    pub fn learned(&self) -> usize {
        self.targets.iter().filter(|t| **t != u32::MAX).count()
    }
}

/// The windows of an epoch of conversations.
struct Plan {
    length: usize,
    epoch: u64,
    /// Number of its first window in the run.
    first: u64,
    /// Conversations, window by window.
    order: Vec<u32>,
    /// Where each window begins in `order`; one more at the end.
    windows: Vec<usize>,
}

impl Plan {
    /// Windows of the epoch, at least one.
    fn count(&self) -> u64 {
        self.windows.len() as u64 - 1
    }
}

/// How samples are made.
pub(crate) struct Sampler {
    seed: u64,
    /// Attention ends at the border of a document.
    documents: bool,
    /// Every row says where its document begins.
    starts: bool,
    /// Of each file that holds conversations.
    plans: Vec<Option<Plan>>,
}

impl Sampler {
    /// For as many files as there are directories; `packed`: some of them hold conversations.
    pub fn new(seed: u64, documents: bool, files: usize, packed: bool) -> Sampler {
        let plans = (0..files).map(|_| None).collect();
        Sampler { seed, documents, starts: documents || packed, plans }
    }

    /// Appends sample `number` of `file`, the run's file number `index`, to `batch`: `length` tokens.
    ///
    /// # Errors
    /// Those of reading the file; `BAD_FORMAT` for a number of conversations that no run comes to.
    pub fn add(
        &mut self,
        (index, file): (usize, &TokenFile),
        number: u64,
        length: usize,
        batch: &mut Batch,
    ) -> Result<()> {
        if file.masked() {
            let span = {
                let plan = self.plan_of(index, file, number, length)?;
                let window = (number - plan.first) as usize;
                plan.order[plan.windows[window]..plan.windows[window + 1]].to_vec()
            };
            return pack(file, &span, length, batch);
        }
        let starts = file.tokens() - length as u64;
        let at = permuted(self.seed, number / starts, number % starts, starts);
        let mut window = vec![0; length + 1];
        file.read(at, &mut window)?;
        batch.ids.extend_from_slice(&window[..length]);
        batch.targets.extend_from_slice(&window[1..]);
        if self.documents {
            borders(file, at, length, &mut batch.starts);
        } else if self.starts {
            batch.starts.resize(batch.ids.len(), 0);
        }
        Ok(())
    }

    fn plan_of(&mut self, index: usize, file: &TokenFile, number: u64, length: usize) -> Result<&Plan> {
        let current = self.plans[index].take().filter(|p| number >= p.first && p.length == length);
        let mut plan = match current {
            Some(plan) => plan,
            None => self.make(file, 0, 0, length)?,
        };
        // An epoch has about as many windows as any other.
        let epochs = (number - plan.first) / plan.count();
        if epochs > 1 && epochs.saturating_mul(file.documents()) > MOST {
            let message = format!(
                "{}: sample {number}, where an epoch has about {}: expected a number that a run comes to; is `drawn` in the \
                 checkpoint's training.json damaged? Go on from another checkpoint",
                file.path().display(),
                plan.count()
            );
            return Err(Error::new(Status::BAD_FORMAT, message));
        }
        while number - plan.first >= plan.count() {
            plan = self.make(file, plan.epoch + 1, plan.first + plan.count(), length)?;
        }
        Ok(self.plans[index].insert(plan))
    }

    fn make(&self, file: &TokenFile, epoch: u64, first: u64, length: usize) -> Result<Plan> {
        let count = file.documents();
        if u32::try_from(count).is_err() {
            let message =
                format!("{}: {count} conversations: expected at most {}", file.path().display(), u32::MAX);
            return Err(Error::new(Status::UNSUPPORTED, message));
        }
        let order: Vec<u32> = (0..count).map(|i| permuted(self.seed, epoch, i, count) as u32).collect();
        let windows = windows(file, order.iter().copied(), length);
        Ok(Plan { length, epoch, first, order, windows })
    }
}

/// Appends for each of the `length` ids from `at` on where its document begins in their window.
pub(crate) fn borders(file: &TokenFile, at: u64, length: usize, starts: &mut Vec<u32>) {
    let mut document = file.document_at(at);
    let (mut start, mut end) = (0, file.offset(document + 1));
    for i in 0..length as u64 {
        while at + i >= end {
            document += 1;
            (start, end) = (i as u32, file.offset(document + 1));
        }
        starts.push(start);
    }
}

/// Rows that a conversation takes in a window.
fn rows(file: &TokenFile, document: u32, length: usize) -> usize {
    // in a damaged file a document may end before it begins
    let len = file.offset(u64::from(document) + 1).saturating_sub(file.offset(u64::from(document)));
    usize::try_from(len).unwrap_or(usize::MAX).saturating_sub(1).min(length)
}

/// Where windows begin, if each takes as many conversations as fit.
pub(crate) fn windows(file: &TokenFile, order: impl Iterator<Item = u32>, length: usize) -> Vec<usize> {
    let (mut windows, mut used, mut count) = (vec![0], 0, 0);
    for (i, document) in order.enumerate() {
        let need = rows(file, document, length);
        if used > 0 && used + need > length {
            windows.push(i);
            used = 0;
        }
        used += need;
        count = i + 1;
    }
    windows.push(count);
    windows
}

/// Appends a window that holds these conversations, one behind the other.
pub(crate) fn pack(file: &TokenFile, documents: &[u32], length: usize, batch: &mut Batch) -> Result<()> {
    let end = batch.ids.len() + length;
    for document in documents {
        let n = rows(file, *document, length);
        let (mut ids, mut learned) = (vec![0; n + 1], Vec::new());
        if n == 0 {
            continue;
        }
        file.read_learned(file.offset(u64::from(*document)), &mut ids, &mut learned)?;
        let start = (length - (end - batch.ids.len())) as u32;
        batch.ids.extend_from_slice(&ids[..n]);
        batch
            .targets
            .extend(ids[1..].iter().zip(&learned[1..]).map(|(id, l)| if *l { *id } else { u32::MAX }));
        batch.starts.extend(std::iter::repeat_n(start, n));
    }
    let (rest, start) = (end - batch.ids.len(), (length - (end - batch.ids.len())) as u32);
    batch.ids.resize(end, 0);
    batch.targets.resize(end, u32::MAX);
    batch.starts.extend(std::iter::repeat_n(start.min(length as u32 - 1), rest));
    Ok(())
}
