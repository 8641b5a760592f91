//! [`Weights`]: the tensors a model is made of, handed out by name and accounted for.

mod files;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::Path;

use tch::{Device, Kind, Tensor};

use crate::quantised::bytes_of;
use crate::{MatrixError, Mismatch, NnError, Quantisation, QuantisedMatrix};
use files::Shards;

/// Names that older checkpoints carry and no model reads: buffers that follow from the configuration.
const DERIVED_BUFFERS: [&str; 2] = [".rotary_emb.inv_freq", ".embeddings.position_ids"];

/// Named tensors, from safetensors files or from memory, and a record of who asked for what.
///
/// Loading is strict: a layer asks through a [`Scope`], never fails there and then, and [`Weights::finish`] reports
/// every tensor that was missing, mis-shaped or not asked for.
#[derive(Debug)]
pub struct Weights {
    origin: String,
    source: Source,
    record: RefCell<Record>,
}

#[derive(Debug)]
enum Source {
    Files { shards: Shards, device: Device, kind: Kind, stored_names: BTreeMap<String, String> },
    Tensors(BTreeMap<String, Tensor>),
}

#[derive(Debug, Default)]
struct Record {
    /// With the bytes each holds.
    applied: BTreeMap<String, u64>,
    skipped: Vec<String>,
    /// With the shape each was asked for in.
    missing: BTreeMap<String, Vec<i64>>,
    mismatched: BTreeMap<String, Mismatch>,
    quantised: Vec<MatrixError>,
}

/// What a strict load did.
#[derive(Clone, Debug, PartialEq)]
pub struct LoadReport {
    /// Tensors that went into the model.
    pub applied: Vec<String>,
    /// Tensors the model knows and has no need of: layers past the last one used, buffers that follow from the
    /// configuration.
    pub skipped: Vec<String>,
    /// The bytes the applied tensors hold as they were handed out, each counted once.
    pub bytes: u64,
    /// The matrices kept in 8 bits, and what that did to them.
    pub quantisation: Quantisation,
}

/// A dotted prefix within [`Weights`].
#[derive(Clone, Debug)]
pub struct Scope<'a> {
    weights: &'a Weights,
    prefix: String,
}

impl Weights {
    /// Opens `model.safetensors`, or the shards that `model.safetensors.index.json` names, in `folder`.
    ///
    /// Files are memory-mapped and their headers checked; a tensor is read when a layer asks for it, in one copy to
    /// `device` and `kind`. The files must not change while this lives.
    ///
    /// # Errors
    /// When there is no such file, one is truncated or damaged, or the index contradicts the folder.
    pub fn open(folder: &Path, device: Device, kind: Kind) -> Result<Self, NnError> {
        let shards = Shards::open(folder)?;
        let stored_names = shards.names().map(|name| (name.to_owned(), name.to_owned())).collect();
        Ok(Self {
            origin: folder.display().to_string(),
            source: Source::Files { shards, device, kind, stored_names },
            record: RefCell::default(),
        })
    }

    /// Takes tensors as they are, with their device, dtype and gradient history.
    pub fn from_tensors(tensors: BTreeMap<String, Tensor>) -> Self {
        Self {
            origin: "tensors in memory".to_owned(),
            source: Source::Tensors(tensors),
            record: RefCell::default(),
        }
    }

    /// Renames every tensor, so that a checkpoint of another key layout answers to the names a model asks for.
    ///
    /// # Errors
    /// When two tensors get one name.
    pub fn rename(mut self, new_name: impl Fn(&str) -> String) -> Result<Self, NnError> {
        let origin = self.origin.clone();
        self.source = match self.source {
            Source::Files { shards, device, kind, stored_names } => {
                let stored_names = renamed(stored_names, new_name, &origin)?;
                Source::Files { shards, device, kind, stored_names }
            }
            Source::Tensors(tensors) => Source::Tensors(renamed(tensors, new_name, &origin)?),
        };
        Ok(self)
    }

    /// Name and shape of every tensor that `load` asks for, so not of those it skips: what a checkpoint has to hold.
    pub fn asked_for(load: impl FnOnce(&Scope<'_>)) -> BTreeMap<String, Vec<i64>> {
        let nothing = Self::from_tensors(BTreeMap::new());
        load(&nothing.root());
        nothing.record.take().missing
    }

    /// The names present, in order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        let (files, tensors) = match &self.source {
            Source::Files { stored_names, .. } => (Some(stored_names.keys()), None),
            Source::Tensors(tensors) => (None, Some(tensors.keys())),
        };
        files.into_iter().flatten().chain(tensors.into_iter().flatten()).map(String::as_str)
    }

    /// Where the tensors end up. In memory: that of the first one.
    pub fn device(&self) -> Device {
        match &self.source {
            Source::Files { device, .. } => *device,
            Source::Tensors(tensors) => tensors.values().next().map_or(Device::Cpu, Tensor::device),
        }
    }

    /// The scope without a prefix.
    pub fn root(&self) -> Scope<'_> {
        Scope { weights: self, prefix: String::new() }
    }

    /// Closes the account of everything asked for since the last call.
    ///
    /// # Errors
    /// [`NnError::Weights`] with every tensor that was asked for and is missing or mis-shaped, and every tensor
    /// present that was neither asked for nor skipped.
    pub fn finish(&self) -> Result<LoadReport, NnError> {
        let record = self.record.take();
        let mut skipped = Vec::new();
        let mut unused = Vec::new();
        for name in self.names() {
            if record.applied.contains_key(name) || record.mismatched.contains_key(name) {
                continue;
            }
            let known = DERIVED_BUFFERS.iter().any(|suffix| name.ends_with(suffix))
                || record.skipped.iter().any(|prefix| is_below(name, prefix));
            if known { skipped.push(name.to_owned()) } else { unused.push(name.to_owned()) }
        }
        if record.missing.is_empty() && record.mismatched.is_empty() && unused.is_empty() {
            tracing::debug!(
                origin = self.origin,
                applied = record.applied.len(),
                skipped = skipped.len(),
                "weights loaded"
            );
            let quantisation = Quantisation { matrices: record.quantised };
            let bytes = record.applied.values().sum();
            return Ok(LoadReport {
                applied: record.applied.into_keys().collect(),
                skipped,
                bytes,
                quantisation,
            });
        }
        Err(NnError::Weights {
            origin: self.origin.clone(),
            missing: record.missing.into_keys().collect(),
            mismatched: record.mismatched.into_values().collect(),
            unused,
        })
    }

    /// A tensor from a file in `wanted`, or in the dtype of all.
    fn fetch(&self, name: &str, shape: &[i64], wanted: Option<Kind>) -> Result<Option<Tensor>, Mismatch> {
        let mismatch = |got: String| Mismatch { name: name.to_owned(), expected: shape.to_vec(), got };
        match &self.source {
            Source::Tensors(tensors) => match tensors.get(name) {
                None => Ok(None),
                Some(tensor) if tensor.size() == shape => Ok(Some(tensor.shallow_clone())),
                Some(tensor) => Err(mismatch(format!("{:?}", tensor.size()))),
            },
            Source::Files { shards, device, kind, stored_names } => match stored_names.get(name) {
                None => Ok(None),
                Some(stored) => {
                    let kind = wanted.unwrap_or(*kind);
                    shards.read(stored, shape, *device, kind).map(Some).map_err(mismatch)
                }
            },
        }
    }

    /// The matrix in 8 bits, with its error, made of what is stored and never copied whole.
    fn fetch_quantised(&self, name: &str, shape: &[i64]) -> Result<Option<(QuantisedMatrix, f64)>, Mismatch> {
        match &self.source {
            Source::Files { shards, device, kind, stored_names } if stored_names.contains_key(name) => {
                let mismatch = |got| Mismatch { name: name.to_owned(), expected: shape.to_vec(), got };
                let quantise = |stored: &Tensor| QuantisedMatrix::on(stored, *kind, *device);
                shards.with_stored(&stored_names[name], shape, quantise).map(Some).map_err(mismatch)
            }
            _ => {
                let found = self.fetch(name, shape, None)?;
                Ok(found.map(|tensor| QuantisedMatrix::new(&tensor, tensor.kind())))
            }
        }
    }
}

impl Scope<'_> {
    /// The scope `name` (itself dotted, if need be) below this one.
    #[must_use]
    pub fn sub(&self, name: impl AsRef<str>) -> Self {
        Self { weights: self.weights, prefix: self.path(name.as_ref()) }
    }

    /// The tensor `name` of this scope in the given shape.
    ///
    /// If there is none, or one of another shape, that is recorded for [`Weights::finish`] and zeros are returned.
    pub fn tensor(&self, name: &str, shape: &[i64]) -> Tensor {
        self.tensor_of(name, shape, None)
    }

    /// The same in `kind`, whatever the dtype of the model: files are read in it, not rounded to the model's first.
    pub fn tensor_in(&self, name: &str, shape: &[i64], kind: Kind) -> Tensor {
        self.tensor_of(name, shape, Some(kind)).to_kind(kind)
    }

    fn tensor_of(&self, name: &str, shape: &[i64], kind: Option<Kind>) -> Tensor {
        let path = self.path(name);
        let found = self.weights.fetch(&path, shape, kind);
        if let Some(tensor) = self.record(&path, shape, found, |tensor| bytes_of(tensor, tensor.kind())) {
            return tensor;
        }
        // One element seen from everywhere: a hostile configuration must not make this allocate.
        let options = (Kind::Float, self.weights.device());
        Tensor::zeros([1], options).as_strided(shape, vec![0; shape.len()], 0)
    }

    /// The matrix `name` of this scope in 8 bits, quantised from what is stored (not from its rounding to the dtype of the
    /// model) before the next tensor is read; [`Weights::finish`] reports the error.
    ///
    /// As [`Scope::tensor`] where there is none of this shape, or one with numbers that are not finite.
    pub fn quantised(&self, name: &str, shape: [i64; 2]) -> QuantisedMatrix {
        let path = self.path(name);
        let mut found = self.weights.fetch_quantised(&path, &shape);
        if matches!(found, Ok(Some((_, error))) if !error.is_finite()) {
            let got = "numbers that are not finite".to_owned();
            found = Err(Mismatch { name: path.clone(), expected: shape.to_vec(), got });
        }
        let Some((matrix, relative_error)) = self.record(&path, &shape, found, |(matrix, _)| matrix.bytes())
        else {
            return QuantisedMatrix::absent(&shape, self.weights.device());
        };
        let bytes_before = (shape[0] * shape[1]) as u64 * matrix.kind().elt_size_in_bytes() as u64;
        let bytes_after = matrix.bytes();
        let error = MatrixError { name: path, relative_error, bytes_before, bytes_after };
        self.weights.record.borrow_mut().quantised.push(error);
        matrix
    }

    /// Notes what came of asking for a tensor.
    fn record<T>(
        &self,
        path: &str,
        shape: &[i64],
        found: Result<Option<T>, Mismatch>,
        bytes: impl FnOnce(&T) -> u64,
    ) -> Option<T> {
        let mut record = self.weights.record.borrow_mut();
        match found {
            Ok(Some(found)) => {
                record.applied.insert(path.to_owned(), bytes(&found));
                return Some(found);
            }
            Ok(None) => {
                record.missing.insert(path.to_owned(), shape.to_vec());
            }
            Err(mismatch) => {
                record.mismatched.insert(path.to_owned(), mismatch);
            }
        }
        None
    }

    /// Says that whatever lies at or below `name` is known and not needed, so that its presence is no error.
    pub fn skip(&self, name: impl AsRef<str>) {
        self.weights.record.borrow_mut().skipped.push(self.path(name.as_ref()));
    }

    /// Whether a tensor of this name is present.
    pub fn contains(&self, name: &str) -> bool {
        let path = self.path(name);
        match &self.weights.source {
            Source::Files { stored_names, .. } => stored_names.contains_key(&path),
            Source::Tensors(tensors) => tensors.contains_key(&path),
        }
    }

    fn path(&self, name: &str) -> String {
        if self.prefix.is_empty() { name.to_owned() } else { format!("{}.{name}", self.prefix) }
    }
}

fn renamed<T>(
    tensors: BTreeMap<String, T>,
    new_name: impl Fn(&str) -> String,
    origin: &str,
) -> Result<BTreeMap<String, T>, NnError> {
    let mut out = BTreeMap::new();
    for (old, tensor) in tensors {
        let name = new_name(&old);
        if out.insert(name.clone(), tensor).is_some() {
            return Err(NnError::Duplicate { origin: origin.to_owned(), name });
        }
    }
    Ok(out)
}

fn is_below(name: &str, prefix: &str) -> bool {
    name.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
}

#[cfg(test)]
mod tests;
