//! The values of a tensor of the `.llm` file, out of the checkpoint tensors it is made of.
//!
//! A matrix is asked for rows, so that it can be read and encoded in blocks by many threads. Where the checkpoint
//! stores rows as rows they are read where they lie; only what must be turned round is held in memory, one matrix
//! at a time.

use llm::model::arch::{Rows, Source, Take, Want};
use llm::{Error, Result, Status};
use rayon::prelude::*;

use crate::checkpoint::{Checkpoint, View};

/// A matrix by its rows.
pub(crate) trait Values: Sync {
    /// Fills `out` with whole rows from row `first` on.
    fn rows(&self, first: usize, out: &mut [f32], scratch: &mut Vec<u8>) -> Result<()>;

    /// After how many blocks of 32 rows they begin again, where they do: those are encoded once.
    fn period(&self) -> Option<usize> {
        None
    }

    /// A bound on the magnitudes, where one is known without looking at the values.
    fn bound(&self) -> Option<f32> {
        None
    }
}

/// Where the values of every tensor come from.
pub(crate) trait Origin: Sync {
    /// Matrix `index` of the tensor (0 unless it is a stack).
    fn matrix<'a>(&'a self, want: &'a Want, index: usize) -> Result<Box<dyn Values + 'a>>;
    /// A vector.
    fn vector(&self, want: &Want) -> Result<Vec<f32>>;
}

fn odd(want: &Want) -> Error {
    Error::new(
        Status::INTERNAL,
        format!(
            "tensor `{}` of shape {:?} cannot be taken as {:?}",
            want.name,
            want.shape,
            want.sources.first()
        ),
    )
}

impl Origin for Checkpoint {
    fn matrix<'a>(&'a self, want: &'a Want, index: usize) -> Result<Box<dyn Values + 'a>> {
        let (rows, cols) = match want.shape[..] {
            [rows, cols] | [_, rows, cols] => (rows, cols),
            _ => return Err(odd(want)),
        };
        let stacked = want.sources.len() > 1;
        let source = want.sources.get(if stacked { index } else { 0 }).ok_or_else(|| odd(want))?;
        let view = self.view(&source.name)?;
        let index = index as u64;
        let plus = want.plus;
        let lying = |rows: Rows, first: u64, base: u64| -> Result<Box<dyn Values + 'a>> {
            Ok(Box::new(Lying { view, cols, rows, first, base, plus }))
        };
        match (&source.take, &source.shape[..]) {
            (Take::All, _) if stacked => lying(Rows::run(0, rows), 0, 0),
            (Take::All, _) => lying(Rows::run(0, rows * (index + 1)), rows * index, 0),
            (Take::Rows(taken), _) => lying(*taken, rows * index, 0),
            (Take::PerExpert { transposed: false, rows: taken }, [_, stored, _]) => {
                lying(*taken, 0, stored * index)
            }
            (Take::Transposed(taken), [from, to]) => Turned::read(&view, 0, (*from, *to), *taken, plus),
            (Take::PerExpert { transposed: true, rows: taken }, [_, from, to]) => {
                Turned::read(&view, from * to * index, (*from, *to), *taken, plus)
            }
            (Take::HeadsTransposed { first, second, .. }, [_, rank]) => {
                let at = (first + second) * index * rank;
                Turned::read(&view, at, (*first, *rank), Rows::run(0, *rank), plus)
            }
            _ => Err(odd(want)),
        }
    }

    fn vector(&self, want: &Want) -> Result<Vec<f32>> {
        let mut all = Vec::new();
        for source in &want.sources {
            let view = self.view(&source.name)?;
            let mut stored = vec![0.0; view.count() as usize];
            view.read(0, &mut stored, &mut Vec::new())?;
            take_vector(source, &stored, &mut all).ok_or_else(|| odd(want))?;
        }
        if all.len() as u64 != want.shape.iter().product::<u64>() {
            return Err(odd(want));
        }
        all.iter_mut().for_each(|v| *v += want.plus);
        Ok(all)
    }
}

/// Appends what `source` takes of `stored`; `None` if that leaves it.
fn take_vector(source: &Source, stored: &[f32], all: &mut Vec<f32>) -> Option<()> {
    let gather = |part: &[f32], rows: &Rows, all: &mut Vec<f32>| {
        for i in 0..rows.count * rows.blocks {
            all.push(*part.get(usize::try_from(place(rows, i)).ok()?)?);
        }
        Some(())
    };
    match (&source.take, &source.shape[..]) {
        (Take::All, _) => all.extend_from_slice(stored),
        (Take::Rows(rows), [_]) => gather(stored, rows, all)?,
        (Take::PerExpert { rows, .. }, [_, each]) if *each > 0 => {
            stored.chunks(*each as usize).try_for_each(|part| gather(part, rows, all))?;
        }
        _ => return None,
    }
    Some(())
}

/// The stored row that the `i`-th taken row is.
fn place(rows: &Rows, i: u64) -> u64 {
    let count = rows.count.max(1);
    rows.start + i / count * rows.stride + i % count * rows.step
}

/// Rows that lie in the file as rows.
struct Lying<'a> {
    view: View<'a>,
    cols: u64,
    /// The pattern they are taken by.
    rows: Rows,
    /// The first of them, counted in taken rows.
    first: u64,
    /// Added to every stored row.
    base: u64,
    plus: f32,
}

impl Values for Lying<'_> {
    fn rows(&self, first: usize, out: &mut [f32], scratch: &mut Vec<u8>) -> Result<()> {
        let cols = self.cols as usize;
        let wanted = out.len().checked_div(cols).unwrap_or(0);
        let mut done = 0;
        while done < wanted {
            let i = self.first + (first + done) as u64;
            let at = place(&self.rows, i);
            // Neighbours in the file are read in one go.
            let left = match self.rows.step {
                1 => self.rows.count - i % self.rows.count.max(1),
                _ => 1,
            };
            let run = (wanted - done).min(usize::try_from(left).unwrap_or(usize::MAX)).max(1);
            let Some(part) = out.get_mut(done * cols..(done + run) * cols) else { break };
            self.view.read((self.base + at) * self.cols, part, scratch)?;
            done += run;
        }
        if self.plus != 0.0 {
            out.iter_mut().for_each(|v| *v += self.plus);
        }
        Ok(())
    }
}

/// A matrix that had to be turned round, in memory.
struct Turned {
    values: Vec<f32>,
    cols: usize,
}

impl Turned {
    /// Rows `taken` of the transpose of the `[from, to]` matrix whose values begin at `at`.
    fn read<'a>(
        view: &View<'_>,
        at: u64,
        (from, to): (u64, u64),
        taken: Rows,
        plus: f32,
    ) -> Result<Box<dyn Values + 'a>> {
        let (from, to) = (from as usize, to as usize);
        let mut stored = vec![0.0; from * to];
        view.read(at, &mut stored, &mut Vec::new())?;
        let mut values = vec![0.0; from * (taken.count * taken.blocks) as usize];
        values.par_chunks_mut(from.max(1)).enumerate().for_each(|(i, row)| {
            let column = place(&taken, i as u64) as usize;
            for (value, line) in row.iter_mut().zip(stored.chunks(to.max(1))) {
                *value = line.get(column).copied().unwrap_or(f32::NAN) + plus;
            }
        });
        Ok(Box::new(Self { values, cols: from }))
    }
}

impl Values for Turned {
    fn rows(&self, first: usize, out: &mut [f32], _: &mut Vec<u8>) -> Result<()> {
        match self.values.get(first * self.cols..first * self.cols + out.len()) {
            Some(rows) => {
                out.copy_from_slice(rows);
                Ok(())
            }
            None => Err(Error::new(Status::INTERNAL, format!("row {first} is outside a turned matrix"))),
        }
    }
}
