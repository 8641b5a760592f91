//! Memory-mapped safetensors files: one, or the shards an index names.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::path::{Path, PathBuf};

use memmap2::Mmap;
use safetensors::tensor::{Dtype, Metadata, SafeTensors};
use tch::{Device, Kind, Tensor};

use crate::NnError;

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// Bytes before the header: its length, little-endian.
const LENGTH_BYTES: usize = 8;

/// The tensors of one or several safetensors files.
#[derive(Debug)]
pub(super) struct Shards {
    files: Vec<MappedFile>,
    file_of: BTreeMap<String, usize>,
}

#[derive(Debug)]
struct MappedFile {
    path: PathBuf,
    map: Mmap,
    metadata: Metadata,
    data_start: usize,
}

#[derive(serde::Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

impl Shards {
    pub(super) fn open(folder: &Path) -> Result<Self, NnError> {
        let (single, index) = (folder.join(SINGLE), folder.join(INDEX));
        let paths = if single.exists() {
            vec![single]
        } else if index.exists() {
            return Self::open_index(folder, &index);
        } else {
            return Err(NnError::NoWeights { folder: folder.to_owned() });
        };
        Self::open_files(folder, paths)
    }

    fn open_index(folder: &Path, path: &Path) -> Result<Self, NnError> {
        let text = std::fs::read(path).map_err(|source| NnError::Read { path: path.to_owned(), source })?;
        let index: Index = serde_json::from_slice(&text)
            .map_err(|source| NnError::IndexJson { path: path.to_owned(), source })?;
        let bad_entry = |tensor: &str, shard: &str, reason| NnError::IndexEntry {
            path: path.to_owned(),
            tensor: tensor.to_owned(),
            shard: shard.to_owned(),
            reason,
        };
        let mut names = BTreeSet::new();
        for (tensor, shard) in &index.weight_map {
            let plain = Path::new(shard).file_name().is_some_and(|name| name == shard.as_str());
            if !plain || shard.contains('\\') {
                return Err(bad_entry(tensor, shard, "which is no plain name of a file beside the index"));
            }
            if names.insert(shard.as_str()) && !folder.join(shard).exists() {
                return Err(bad_entry(tensor, shard, "and there is no such file"));
            }
        }
        let shards = Self::open_files(folder, names.iter().map(|name| folder.join(name)).collect())?;
        for (tensor, shard) in &index.weight_map {
            let found = shards.file_of.get(tensor).map(|&file| &shards.files[file].path);
            if found != Some(&folder.join(shard)) {
                return Err(bad_entry(tensor, shard, "which does not hold it"));
            }
        }
        Ok(shards)
    }

    fn open_files(folder: &Path, paths: Vec<PathBuf>) -> Result<Self, NnError> {
        let files = paths.into_iter().map(MappedFile::open).collect::<Result<Vec<_>, _>>()?;
        let mut file_of = BTreeMap::new();
        for (number, file) in files.iter().enumerate() {
            for name in file.metadata.offset_keys() {
                if file_of.insert(name.clone(), number).is_some() {
                    return Err(NnError::Duplicate { origin: folder.display().to_string(), name });
                }
            }
        }
        Ok(Self { files, file_of })
    }

    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.file_of.keys().map(String::as_str)
    }

    /// Reads a tensor whose name is known, or says what the file holds instead.
    pub(super) fn read(
        &self,
        name: &str,
        shape: &[i64],
        device: Device,
        kind: Kind,
    ) -> Result<Tensor, String> {
        self.with_stored(name, shape, |stored| stored.to_device_(device, kind, false, true))
    }

    /// Shows a tensor whose name is known as it lies in the file, in memory and dtype, or says what the file holds instead.
    pub(super) fn with_stored<T>(
        &self,
        name: &str,
        shape: &[i64],
        show: impl FnOnce(&Tensor) -> T,
    ) -> Result<T, String> {
        let file = &self.files[self.file_of[name]];
        let Some(info) = file.metadata.info(name) else {
            return Err("nothing".to_owned());
        };
        let same = info.shape.len() == shape.len()
            && info.shape.iter().zip(shape).all(|(&stored, &wanted)| i64::try_from(stored) == Ok(wanted));
        if !same {
            return Err(format!("{:?} in {}", info.shape, file.path.display()));
        }
        let stored_kind = match info.dtype {
            Dtype::F64 => Kind::Double,
            Dtype::F32 => Kind::Float,
            Dtype::F16 => Kind::Half,
            Dtype::BF16 => Kind::BFloat16,
            other => return Err(format!("dtype {other:?} in {}", file.path.display())),
        };
        let (start, end) = info.data_offsets;
        let bytes = &file.map[file.data_start + start..file.data_start + end];
        Ok(with_tensor(bytes, shape, stored_kind, show))
    }
}

impl MappedFile {
    #[expect(unsafe_code, reason = "memory-mapping a file")]
    fn open(path: PathBuf) -> Result<Self, NnError> {
        let read_error = |source| NnError::Read { path: path.clone(), source };
        let file = File::open(&path).map_err(read_error)?;
        // SAFETY: the map is read-only and private to this struct. Its bytes are only ever read as numbers, for which
        // any bit pattern is sound; `Weights::open` asks callers to leave the file alone.
        let map = unsafe { Mmap::map(&file) }.map_err(read_error)?;
        let (header_bytes, metadata) = SafeTensors::read_metadata(&map)
            .map_err(|source| NnError::Safetensors { path: path.clone(), source })?;
        Ok(Self { path, map, metadata, data_start: LENGTH_BYTES + header_bytes })
    }
}

/// Shows mapped bytes as a tensor. What is made of it must be a copy.
#[expect(unsafe_code, reason = "a tensor over borrowed bytes saves a second copy of every weight")]
fn with_tensor<T>(bytes: &[u8], shape: &[i64], stored: Kind, show: impl FnOnce(&Tensor) -> T) -> T {
    if !bytes.as_ptr().addr().is_multiple_of(stored.elt_size_in_bytes()) || bytes.is_empty() {
        return show(&Tensor::from_data_size(bytes, shape, stored));
    }
    let mut strides = vec![1; shape.len()];
    for axis in (1..shape.len()).rev() {
        strides[axis - 1] = strides[axis] * shape[axis];
    }
    // SAFETY: `bytes` is aligned for its dtype, holds exactly the elements of `shape` (the safetensors header was
    // validated against the file's length) and outlives the borrowed tensor, which the two callers in this crate only read
    // and copy, and which is dropped here.
    let borrowed = unsafe { Tensor::from_blob(bytes.as_ptr(), shape, &strides, stored, Device::Cpu) };
    show(&borrowed)
}
