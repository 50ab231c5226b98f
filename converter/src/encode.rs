//! Encoding: tensors in order, blocks of 32 rows on all cores, bytes out in order.
//!
//! ```text
//! encoder thread: chunk of blocks -> rayon: (read rows, expand, encode) per block -> channel of a few chunks
//! caller's thread:                                                     channel -> writer (checksums, file)
//! ```
//! A chunk is bounded in bytes, so memory does not grow with the size of a tensor. The bytes depend on the values
//! alone, not on how many threads there were.

use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use llm::model::arch::Want;
use llm::{Error, Result, Status};
use llm_format::quant::{self, Type};
use rayon::prelude::*;

use crate::importance::Importance;
use crate::values::{Origin, Values};
use crate::{Progress, recipe};

/// Bytes of a chunk on its way to the writer, about.
const CHUNK: usize = 8 << 20;
/// Chunks that may wait for the writer.
const WAITING: usize = 4;

/// A tensor to write: what it is, and as which type.
pub(crate) struct Item {
    pub(crate) want: Want,
    pub(crate) ty: Type,
    pub(crate) bytes: u64,
    /// Of its columns (of a stack: of each matrix in turn), where known.
    pub(crate) importance: Option<Vec<f32>>,
}

/// The list of what is to be written.
pub(crate) fn items(wants: Vec<Want>, ty: Type, importance: Option<&Importance>) -> Result<Vec<Item>> {
    if let Some(importance) = importance {
        importance.fits(&wants)?;
    }
    let types = recipe::types(&wants, ty);
    let item = |(want, ty): (Want, Type)| match quant::tensor_bytes(ty, &want.shape) {
        Some(bytes) => {
            let importance = match importance {
                Some(importance) if ty.is_integer() => importance.of(&want)?,
                _ => None,
            };
            Ok(Item { want, ty, bytes, importance })
        }
        None => Err(Error::new(
            Status::UNSUPPORTED,
            format!("tensor `{}` of shape {:?} is too large for the format", want.name, want.shape),
        )),
    };
    wants.into_iter().zip(types).map(item).collect()
}

/// Encodes `items` from `origin` and hands every tensor's bytes to `write`, in order and in pieces.
pub(crate) fn run(
    items: &[Item],
    origin: &dyn Origin,
    progress: &dyn Progress,
    mut write: impl FnMut(usize, &[u8]) -> Result<()>,
) -> Result<()> {
    std::thread::scope(|scope| {
        let (sender, receiver) = sync_channel(WAITING);
        scope.spawn(move || {
            if let Err(e) = encode(items, origin, progress, &sender) {
                // Fails only when the receiver is gone, which then has an error of its own.
                let _ = sender.send(Err(e));
            }
        });
        drain(receiver, progress, items, &mut write)
    })
}

fn drain(
    receiver: Receiver<Chunk>,
    progress: &dyn Progress,
    items: &[Item],
    write: &mut dyn FnMut(usize, &[u8]) -> Result<()>,
) -> Result<()> {
    let total = items.iter().map(|i| i.bytes).sum();
    let mut done = 0;
    for chunk in receiver {
        let (tensor, chunk) = chunk?;
        write(tensor, &chunk)?;
        done += chunk.len() as u64;
        if !progress.advance(done, total) {
            return Err(Error::new(Status::CANCELLED, "conversion cancelled"));
        }
    }
    if done != total {
        return Err(Error::new(Status::INTERNAL, format!("encoded {done} of {total} bytes")));
    }
    Ok(())
}

/// The number of a tensor and the next of its bytes.
type Chunk = Result<(usize, Vec<u8>)>;
/// Where chunks go. A send fails once the writing side has failed; the encoder then just stops.
type Sender = SyncSender<Chunk>;

fn gone<T>(_: T) -> Error {
    Error::new(Status::CANCELLED, "writing has stopped")
}

fn encode(items: &[Item], origin: &dyn Origin, progress: &dyn Progress, sender: &Sender) -> Result<()> {
    for (tensor, item) in items.iter().enumerate() {
        let send = |bytes| sender.send(Ok((tensor, bytes))).map_err(gone);
        progress.tensor(&item.want.name);
        match item.want.shape[..] {
            [_] => {
                let values = origin.vector(&item.want)?;
                finite(&item.want, quant::absmax(&values), 0)?;
                let bytes = values.iter().flat_map(|v| v.to_le_bytes()).collect();
                send(bytes)?;
            }
            [rows, cols] => encode_matrix(item, origin, 0, (rows, cols), &send)?,
            [count, rows, cols] => {
                for index in 0..count as usize {
                    encode_matrix(item, origin, index, (rows, cols), &send)?;
                }
            }
            _ => return Err(Error::new(Status::INTERNAL, format!("shape of `{}`", item.want.name))),
        }
    }
    Ok(())
}

fn encode_matrix(
    item: &Item,
    origin: &dyn Origin,
    index: usize,
    (rows, cols): (u64, u64),
    send: &dyn Fn(Vec<u8>) -> Result<()>,
) -> Result<()> {
    let (rows, cols, ty) = (rows as usize, cols as usize, item.ty);
    let matrix = origin.matrix(&item.want, index)?;
    let importance = item.importance.as_ref().map(|all| &all[index * cols..][..cols]);
    let head = if ty.is_integer() {
        let head = quant::head(ty, absmax(&*matrix, &item.want, rows, cols)?);
        send(head.to_vec())?;
        head
    } else {
        quant::head(ty, 0.0)
    };
    let block = quant::block_bytes(ty, cols as u64).and_then(|b| usize::try_from(b).ok()).unwrap_or(0).max(1);
    let blocks = rows.div_ceil(quant::ROWS);
    // At least one block for every thread, or a matrix of long rows would be encoded by one.
    let group = (CHUNK / block).max(rayon::current_num_threads());
    let encode_blocks = |first: usize, count: usize| -> Result<Vec<u8>> {
        let mut out = vec![0; count * block];
        out.par_chunks_mut(block).enumerate().try_for_each_init(
            || (Vec::new(), Vec::new()),
            |(values, scratch): &mut (Vec<f32>, Vec<u8>), (i, out)| {
                let row = (first + i) * quant::ROWS;
                values.resize((rows - row).min(quant::ROWS) * cols, 0.0);
                matrix.rows(row, values, scratch)?;
                if !ty.is_integer() {
                    let most = quant::absmax(values);
                    finite(&item.want, most, row)?;
                    fits(&item.want, ty, most, row)?;
                }
                quant::encode_block_for(ty, &head, values, importance, cols, out);
                Ok::<(), Error>(())
            },
        )?;
        Ok(out)
    };
    // The last block may be a short one, so it is never a repetition.
    let mut first = 0;
    if let Some(period) = matrix.period().filter(|p| *p > 0 && *p < blocks) {
        let pattern = encode_blocks(0, period)?;
        while first + period < blocks {
            send(pattern.clone())?;
            first += period;
        }
    }
    while first < blocks {
        let count = (blocks - first).min(group);
        send(encode_blocks(first, count)?)?;
        first += count;
    }
    Ok(())
}

/// The greatest magnitude of a matrix, which its head needs before the first block.
fn absmax(matrix: &dyn Values, want: &Want, rows: usize, cols: usize) -> Result<f32> {
    if let Some(bound) = matrix.bound() {
        return Ok(bound);
    }
    (0..rows.div_ceil(quant::ROWS))
        .into_par_iter()
        .map_init(
            || (Vec::new(), Vec::new()),
            |(values, scratch): &mut (Vec<f32>, Vec<u8>), block| {
                let row = block * quant::ROWS;
                values.resize((rows - row).min(quant::ROWS) * cols, 0.0);
                matrix.rows(row, values, scratch)?;
                let most = quant::absmax(values);
                finite(want, most, row)?;
                Ok(most)
            },
        )
        .try_reduce(|| 0.0, |a, b| Ok(a.max(b)))
}

fn finite(want: &Want, most: f32, row: usize) -> Result<()> {
    if most.is_finite() {
        return Ok(());
    }
    let what = format!("tensor `{}` holds a value that is not finite in rows {row}..", want.name);
    Err(Error::new(Status::BAD_FORMAT, what))
}

fn fits(want: &Want, ty: Type, most: f32, row: usize) -> Result<()> {
    // Halfway between the largest number and the next power of two: from there on it rounds to infinity.
    let (bound, wider) = match ty {
        Type::F16 => (65520.0, "bf16"),
        Type::Bf16 => (f32::from_bits(0x7f7f_8000), "f32"),
        _ => return Ok(()),
    };
    if most < bound {
        return Ok(());
    }
    let (name, ty) = (&want.name, ty.name());
    let what = format!("tensor `{name}` holds {most} in rows {row}.., too large for {ty}; use {wider}");
    Err(Error::new(Status::UNSUPPORTED, what))
}
