//! Between a model's parameters and the tensors of a checkpoint.
//!
//! An architecture's list says for each place in the model from which checkpoint tensor its values are taken, and how
//! ([`Take`]). That rule, read one way, loads a checkpoint; read the other way, it writes one. So whatever the converter
//! reads can be trained on, and what is written has the names and shapes of its layout.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use llm::error::{Error, Result, Status};
use llm::mmap::Bytes;
use llm::model::arch::{Rows, Take, Want};
use safetensors::tensor::{Dtype, SafeTensors, View};

use crate::params::Params;

/// The file of a checkpoint's tensors.
pub(crate) const MODEL: &str = "model.safetensors";

/// What says, of a checkpoint in several files, which tensor is in which.
pub(crate) const INDEX: &str = "model.safetensors.index.json";

/// Bytes of tensors that a file of a checkpoint holds at most: more are divided, as other tools do it.
pub(crate) const SHARD: u64 = 5_000_000_000;

/// Calls `f(index of the wanted tensor, index of source `number`)` for every value that the source gives.
fn each(want: &Want, number: usize, f: &mut dyn FnMut(usize, usize)) {
    let shape: Vec<usize> = want.shape.iter().map(|d| *d as usize).collect();
    let source = &want.sources[number];
    let from: Vec<usize> = source.shape.iter().map(|d| *d as usize).collect();
    let cols = if shape.len() == 1 { 1 } else { shape[shape.len() - 1] };
    let place = |rows: &Rows, i: usize| {
        let (i, count) = (i as u64, rows.count.max(1));
        (rows.start + i / count * rows.stride + i % count * rows.step) as usize
    };
    let taken = |rows: &Rows| (rows.count * rows.blocks) as usize;
    match &source.take {
        Take::All => {
            let len: usize = from.iter().product();
            (0..len).for_each(|i| f(number * len + i, i));
        }
        Take::Rows(rows) => {
            for i in 0..taken(rows) {
                let at = place(rows, i);
                (0..cols).for_each(|c| f(i * cols + c, at * cols + c));
            }
        }
        Take::Transposed(rows) => {
            for i in 0..taken(rows) {
                let at = place(rows, i);
                (0..cols).for_each(|c| f(i * cols + c, c * from[1] + at));
            }
        }
        Take::PerExpert { transposed, rows } => {
            let (n, each) = (taken(rows), from[1..].iter().product::<usize>());
            for e in 0..from[0] {
                for i in 0..n {
                    let at = place(rows, i);
                    for c in 0..cols {
                        let inside = if *transposed { c * from[2] + at } else { at * cols + c };
                        f((e * n + i) * cols + c, e * each + inside);
                    }
                }
            }
        }
        Take::HeadsTransposed { heads, first, second } => {
            let (first, head, rank) = (*first as usize, (first + second) as usize, from[1]);
            for h in 0..*heads as usize {
                for r in 0..rank {
                    (0..first).for_each(|i| f((h * rank + r) * first + i, (h * head + i) * rank + r));
                }
            }
        }
    }
}

/// A checkpoint tensor on its way to a file; made when it is written.
pub(crate) struct Stored<'a> {
    shape: Vec<usize>,
    /// The wants that take from it, each with the number of this source among its sources.
    takers: Vec<(&'a Want, usize)>,
    params: &'a Params,
    values: &'a [f32],
}

/// Every tensor of a checkpoint of the parameters `values`, by name.
pub(crate) fn stored<'a>(params: &'a Params, values: &'a [f32]) -> Vec<(String, Stored<'a>)> {
    let mut all: BTreeMap<&str, Stored> = BTreeMap::new();
    for want in &params.wants {
        for (number, source) in want.sources.iter().enumerate() {
            let shape = source.shape.iter().map(|d| *d as usize).collect();
            let stored =
                all.entry(&source.name).or_insert(Stored { shape, takers: Vec::new(), params, values });
            stored.takers.push((want, number));
        }
    }
    all.into_iter().map(|(name, stored)| (name.to_string(), stored)).collect()
}

/// Tensors in files of at most `most` bytes each, in their order. One that has more is alone.
pub(crate) fn divide<T: View>(tensors: Vec<(String, T)>, most: u64) -> Vec<Vec<(String, T)>> {
    let mut files: Vec<Vec<(String, T)>> = Vec::new();
    let mut room = 0;
    for (name, tensor) in tensors {
        let bytes = tensor.data_len() as u64;
        if files.is_empty() || bytes > room {
            files.push(Vec::new());
            room = most;
        }
        room = room.saturating_sub(bytes);
        if let Some(file) = files.last_mut() {
            file.push((name, tensor));
        }
    }
    files
}

impl View for Stored<'_> {
    fn dtype(&self) -> Dtype {
        Dtype::F32
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        if let [(want, 0)] = self.takers[..]
            && want.sources.len() == 1
            && want.sources[0].take == Take::All
            && want.plus == 0.0
        {
            return Cow::Borrowed(bytemuck::cast_slice(&self.values[self.params.place(want.slot)]));
        }
        let mut out = vec![0.0f32; self.shape.iter().product()];
        for (want, number) in &self.takers {
            let values = &self.values[self.params.place(want.slot)];
            each(want, *number, &mut |at, to| out[to] = values[at] - want.plus);
        }
        Cow::Owned(bytemuck::cast_slice(&out).to_vec())
    }

    fn data_len(&self) -> usize {
        self.shape.iter().product::<usize>() * 4
    }
}

/// The file beside them with the state of a training run.
pub(crate) const STATE: &str = "optimizer.safetensors";

/// What names of exact values begin with in [`STATE`].
const EXACT: &str = "exact.";

/// The values that a checkpoint's tensors hold only rounded, with names: of gemma's norms 1 is taken away before they are
/// stored, and not every number below ½ survives that. A run that is resumed goes on with these.
pub(crate) fn exact<'a>(
    params: &'a Params,
    values: &'a [f32],
) -> impl Iterator<Item = (String, &'a [f32])> + 'a {
    let rounded = params.wants.iter().filter(|want| want.plus != 0.0);
    rounded.map(move |want| (format!("{EXACT}{}", want.name), &values[params.place(want.slot)]))
}

/// The tensor files of a checkpoint directory, mapped.
pub(crate) struct Files {
    maps: Vec<(PathBuf, Bytes)>,
    /// The state of a run, where there is one.
    state: Option<Bytes>,
}

impl Files {
    /// `model.safetensors`; where there is none, the shards that its index names.
    ///
    /// # Errors
    /// `NOT_FOUND`, `IO`, `BAD_FORMAT` for an index that is none.
    pub fn open(dir: &Path) -> Result<Files> {
        let index = dir.join(INDEX);
        // An index beside a single file is left of something else: other tools read the file, too.
        let names = if !dir.join(MODEL).is_file() && index.is_file() {
            let text = std::fs::read(&index).map_err(|e| Error::from(e).context(index.display()))?;
            let bad = |what: String| Error::new(Status::BAD_FORMAT, format!("{}: {what}", index.display()));
            let value: serde_json::Value = serde_json::from_slice(&text).map_err(|e| bad(e.to_string()))?;
            let map = value.get("weight_map").and_then(|m| m.as_object());
            let map = map.ok_or_else(|| bad("no object `weight_map`".into()))?;
            let mut names = BTreeSet::new();
            for (tensor, file) in map {
                match file.as_str() {
                    Some(name) if Path::new(name).file_name() == Some(name.as_ref()) => names.insert(name),
                    _ => return Err(bad(format!("{tensor:?}: {file} is not the name of a file beside it"))),
                };
            }
            if names.is_empty() {
                return Err(bad("`weight_map` names no tensor".into()));
            }
            names.into_iter().map(String::from).collect()
        } else {
            vec![MODEL.to_string()]
        };
        let map = |name: String| -> Result<(PathBuf, Bytes)> {
            let path = dir.join(name);
            let file = std::fs::File::open(&path).map_err(|e| Error::from(e).context(path.display()))?;
            let bytes = Bytes::map(&file, 0, 0).map_err(|e| e.context(path.display()))?;
            Ok((path, bytes))
        };
        let state = std::fs::File::open(dir.join(STATE)).ok().and_then(|file| Bytes::map(&file, 0, 0).ok());
        Ok(Files { maps: names.into_iter().map(map).collect::<Result<_>>()?, state })
    }

    /// The tensors of every file.
    ///
    /// # Errors
    /// `BAD_FORMAT` for a damaged file, and for a tensor that is in two of them: nothing says which one is meant.
    pub fn parse(&self) -> Result<Vec<(&Path, SafeTensors<'_>)>> {
        let (mut parsed, mut places) = (Vec::new(), BTreeMap::new());
        for (path, bytes) in &self.maps {
            let bad = |what: String| Error::new(Status::BAD_FORMAT, format!("{}: {what}", path.display()));
            let file = SafeTensors::deserialize(bytes).map_err(|e| bad(e.to_string()))?;
            for name in file.names() {
                // as the converter says it
                if let Some(first) = places.insert(name.to_string(), path) {
                    return Err(bad(format!("tensor `{name}` is also in {}", first.display())));
                }
            }
            parsed.push((path.as_path(), file));
        }
        Ok(parsed)
    }

    /// The parameters, out of the checkpoint's tensors.
    ///
    /// # Errors
    /// Those of [`Files::parse`]; `BAD_FORMAT` for a missing tensor, or one of another shape or of a type that is no float.
    pub fn load(&self, params: &Params) -> Result<Vec<f32>> {
        let parsed = self.parse()?;
        let state = self.state.as_ref().and_then(|bytes| SafeTensors::deserialize(bytes).ok());
        let mut values = llm_kernels::dense::zeros(params.total);
        for want in &params.wants {
            let out = &mut values[params.place(want.slot)];
            for (number, source) in want.sources.iter().enumerate() {
                // checkpoints of the bare model lack the prefix
                let bare = source.name.strip_prefix(params.prefix).unwrap_or(&source.name);
                let found = parsed.iter().find_map(|(path, file)| {
                    let tensor = file.tensor(&source.name).or_else(|_| file.tensor(bare)).ok()?;
                    Some((path, tensor))
                });
                let Some((path, tensor)) = found else {
                    let first = self.maps.first().map_or(Path::new("?"), |(path, _)| path.as_path());
                    let place = if self.maps.len() > 1 { first.parent().unwrap_or(first) } else { first };
                    let message = format!("{}: no tensor {:?}", place.display(), source.name);
                    return Err(Error::new(Status::BAD_FORMAT, message));
                };
                let shape: Vec<u64> = tensor.shape().iter().map(|d| *d as u64).collect();
                let stored = floats(tensor.dtype(), tensor.data()).filter(|_| shape == source.shape);
                let Some(stored) = stored else {
                    let message = format!(
                        "{}: {:?} is {:?} {shape:?}, expected floats {:?}",
                        path.display(),
                        source.name,
                        tensor.dtype(),
                        source.shape
                    );
                    return Err(Error::new(Status::BAD_FORMAT, message));
                };
                each(want, number, &mut |at, from| out[at] = stored[from] + want.plus);
            }
            let exact = state.as_ref().filter(|_| want.plus != 0.0);
            let exact = exact.and_then(|file| file.tensor(&format!("{EXACT}{}", want.name)).ok());
            let exact = exact.and_then(|tensor| floats(tensor.dtype(), tensor.data()));
            for (value, exact) in out.iter_mut().zip(exact.into_iter().flatten()) {
                // where the tensors are still those that were made of it
                if (exact - want.plus) + want.plus == *value {
                    *value = exact;
                }
            }
        }
        Ok(values)
    }
}

/// Values of a float type, `None` for another.
pub(crate) fn floats(ty: Dtype, data: &[u8]) -> Option<Vec<f32>> {
    Some(match ty {
        Dtype::F32 => data.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
        Dtype::F16 => data.as_chunks::<2>().0.iter().map(|b| half::f16::from_le_bytes(*b).to_f32()).collect(),
        Dtype::BF16 => {
            data.as_chunks::<2>().0.iter().map(|b| half::bf16::from_le_bytes(*b).to_f32()).collect()
        }
        _ => return None,
    })
}
