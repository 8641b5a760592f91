//! An autoencoder's folder: `cfg.json` beside `sae.safetensors`.
#![expect(unsafe_code, reason = "memory-maps the weight file")]

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};

use memmap2::Mmap;
use sae_types::HookPoint;
use safetensors::{Dtype, SafeTensors, View};

use crate::{SaeConfig, SaeError, WeightDtype, Weights};

pub(crate) const CONFIG: &str = "cfg.json";
const WEIGHTS: &str = "sae.safetensors";

/// The tensors a file can have, in the order [`shapes`] lists those it has.
pub(crate) const TENSORS: [&str; 5] = ["encoder.weight", "encoder.bias", "W_dec", "b_dec", SKIP];
/// The tensor of a skip connection, the last.
pub(crate) const SKIP: &str = "W_skip";

/// The tensors that follow from the configuration, in the order of [`TENSORS`], with their shapes.
pub(crate) fn shapes(config: &SaeConfig) -> Vec<Vec<usize>> {
    let (latents, d_in) = (config.num_latents, config.d_in);
    let mut shapes = vec![vec![latents, d_in], vec![latents], vec![latents, d_in], vec![d_in]];
    if config.skip_connection {
        shapes.push(vec![d_in, d_in]);
    }
    shapes
}

/// A weight file, mapped, its tensors found and checked.
#[derive(Debug)]
pub(crate) struct Mapped {
    map: Mmap,
    /// Dtype and bytes of each of [`TENSORS`] that the configuration has.
    tensors: Vec<(WeightDtype, Range<usize>)>,
}

impl Mapped {
    pub(crate) fn tensor(&self, index: usize, rows: usize, cols: usize) -> Weights<'_> {
        let (dtype, range) = &self.tensors[index];
        Weights::new(*dtype, rows, cols, &self.map[range.clone()])
    }
}

pub(crate) fn load(folder: &Path) -> Result<(SaeConfig, Mapped), SaeError> {
    let config = SaeConfig::read(&folder.join(CONFIG))?;
    let shapes = shapes(&config);
    let mapped = map(folder.join(WEIGHTS), &TENSORS[..shapes.len()], shapes)?;
    Ok((config, mapped))
}

/// Maps the file at `path`, which must hold the tensors `names` of these shapes and no others.
pub(crate) fn map(
    path: PathBuf,
    names: &[&'static str],
    shapes: Vec<Vec<usize>>,
) -> Result<Mapped, SaeError> {
    let map = map_file(&path)?;
    let (header, metadata) =
        SafeTensors::read_metadata(&map).map_err(|source| SaeError::Header { path: path.clone(), source })?;
    // The length of the header stands in the first 8 bytes.
    let data_start = 8 + header;
    let mut present = metadata.offset_keys();
    if let Some(tensor) = present.iter().find(|name| !names.contains(&name.as_str())) {
        return Err(SaeError::UnexpectedTensor { path, tensor: tensor.clone() });
    }
    let mut tensors = Vec::with_capacity(shapes.len());
    for (&tensor, expected) in names.iter().zip(shapes) {
        let Some(info) = metadata.info(tensor) else {
            present.sort_unstable();
            return Err(SaeError::MissingTensor { path, tensor, present });
        };
        let dtype = match info.dtype {
            Dtype::F32 => WeightDtype::F32,
            Dtype::F16 => WeightDtype::F16,
            Dtype::BF16 => WeightDtype::Bf16,
            other => return Err(SaeError::Dtype { path, tensor, got: format!("{other:?}") }),
        };
        if info.shape != expected {
            return Err(SaeError::Shape { path, tensor, expected, got: info.shape.clone() });
        }
        // `read_metadata` has checked the offsets against the shape and the length of the file.
        let (start, end) = info.data_offsets;
        tensors.push((dtype, data_start + start..data_start + end));
    }
    Ok(Mapped { map, tensors })
}

/// The names of the tensors in the file at `path`.
pub(crate) fn tensor_names(path: &Path) -> Result<Vec<String>, SaeError> {
    let map = map_file(path)?;
    let (_, metadata) = SafeTensors::read_metadata(&map)
        .map_err(|source| SaeError::Header { path: path.to_owned(), source })?;
    Ok(metadata.offset_keys())
}

fn map_file(path: &Path) -> Result<Mmap, SaeError> {
    let read = |source| SaeError::Read { path: path.to_owned(), source };
    let file = File::open(path).map_err(read)?;
    // SAFETY: the map is only ever read, as bytes, for which every bit pattern is valid. Whoever truncates or rewrites the
    // file in place while it is mapped breaks this crate's stated contract (`Sae::load`); replacing it by renaming,
    // as `save` does, leaves the mapped file whole.
    unsafe { Mmap::map(&file) }.map_err(read)
}

/// A tensor on its way into a file.
struct Outgoing<'a> {
    weights: Weights<'a>,
    shape: &'a [usize],
    dtype: WeightDtype,
}

impl View for Outgoing<'_> {
    fn dtype(&self) -> Dtype {
        match self.dtype {
            WeightDtype::F32 => Dtype::F32,
            WeightDtype::F16 => Dtype::F16,
            WeightDtype::Bf16 => Dtype::BF16,
        }
    }

    fn shape(&self) -> &[usize] {
        self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        self.weights.converted(self.dtype)
    }

    fn data_len(&self) -> usize {
        self.weights.len() * self.dtype.size()
    }
}

/// The files of an autoencoder, as sparsify names them.
pub(crate) fn save(
    folder: &Path,
    config: &SaeConfig,
    tensors: &[Weights<'_>],
    dtype: WeightDtype,
) -> Result<(), SaeError> {
    for (tensor, weights) in TENSORS.into_iter().zip(tensors) {
        if let Some(value) = weights.overflow(dtype) {
            return Err(SaeError::Overflow { tensor, value, dtype });
        }
    }
    let shapes = shapes(config);
    let outgoing = TENSORS
        .into_iter()
        .zip(tensors.iter().zip(&shapes))
        .map(|(name, (&weights, shape))| (name, Outgoing { weights, shape, dtype }));
    write(folder, &config.to_json(), WEIGHTS, outgoing)
}

/// Writes `cfg.json` and the weights beside their places, then renames them: the weights first, `cfg.json`, without
/// which there is no autoencoder, last.
pub(crate) fn write<'t, V: View>(
    folder: &Path,
    config: &[u8],
    weights: &str,
    tensors: impl IntoIterator<Item = (&'t str, V)>,
) -> Result<(), SaeError> {
    let existed = folder.is_dir();
    let saved = write_pair(folder, config, weights, tensors);
    if saved.is_err() && !existed {
        // Leaves nothing behind; a folder that someone else filled meanwhile is not removed.
        let _ = std::fs::remove_dir(folder);
    }
    saved
}

fn write_pair<'t, V: View>(
    folder: &Path,
    config: &[u8],
    weights: &str,
    tensors: impl IntoIterator<Item = (&'t str, V)>,
) -> Result<(), SaeError> {
    let error = |path: &Path| {
        let path = path.to_owned();
        move |source| SaeError::Write { path, source }
    };
    std::fs::create_dir_all(folder).map_err(error(folder))?;
    let beside = tempfile::Builder::new().prefix(".saving-").tempdir_in(folder).map_err(error(folder))?;
    let (new_config, new_weights) = (beside.path().join(CONFIG), beside.path().join(weights));
    let (config_path, weights_path) = (folder.join(CONFIG), folder.join(weights));
    safetensors::serialize_to_file(tensors, None, &new_weights).map_err(|source| {
        let source = match source {
            safetensors::SafeTensorError::IoError(source) => source,
            other => std::io::Error::other(other),
        };
        error(&weights_path)(source)
    })?;
    std::fs::write(&new_config, config).map_err(error(&config_path))?;
    // The library's temporary file is private to its owner; give the weights the mode any new file gets.
    std::fs::metadata(&new_config)
        .and_then(|metadata| std::fs::set_permissions(&new_weights, metadata.permissions()))
        .map_err(error(&weights_path))?;
    for (from, to) in [(&new_weights, &weights_path), (&new_config, &config_path)] {
        File::open(from)
            .and_then(|file| file.sync_all())
            .and_then(|()| std::fs::rename(from, to))
            .map_err(error(to))?;
    }
    Ok(())
}

/// See [`Sae::find`](crate::Sae::find).
pub(crate) fn find(root: &Path) -> Result<BTreeMap<HookPoint, PathBuf>, SaeError> {
    let read = |source| SaeError::Read { path: root.to_owned(), source };
    if root.join(CONFIG).is_file() {
        // Canonical, so that `.` has a name too.
        let whole = root.canonicalize().map_err(read)?;
        let named = if seed(whole.file_name()) { whole.parent() } else { Some(whole.as_path()) };
        let hook = named.and_then(|folder| hook_point(folder.file_name()));
        let hook = hook.ok_or_else(|| SaeError::NoHookPoint { folder: root.to_owned() })?;
        return Ok(BTreeMap::from([(hook, root.to_owned())]));
    }
    let mut found = BTreeMap::new();
    for folder in subfolders(root).map_err(read)? {
        let Some(hook) = hook_point(folder.file_name()) else { continue };
        if folder.join(CONFIG).is_file() {
            found.insert(hook, folder);
        } else if let Some(first) = subfolders(&folder)
            .map_err(|source| SaeError::Read { path: folder.clone(), source })?
            .into_iter()
            .find(|inner| seed(inner.file_name()) && inner.join(CONFIG).is_file())
        {
            return Err(SaeError::SeveralSeeds { folder, first });
        }
    }
    if found.is_empty() { Err(SaeError::NoneFound { root: root.to_owned() }) } else { Ok(found) }
}

fn subfolders(folder: &Path) -> std::io::Result<Vec<PathBuf>> {
    let mut folders = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            folders.push(path);
        }
    }
    folders.sort_unstable();
    Ok(folders)
}

fn hook_point(name: Option<&OsStr>) -> Option<HookPoint> {
    HookPoint::new(name?.to_str()?).ok()
}

/// Whether a folder is named as sparsify names one of several seeds, `seed7`.
fn seed(name: Option<&OsStr>) -> bool {
    let digits = name.and_then(OsStr::to_str).and_then(|name| name.strip_prefix("seed"));
    digits.is_some_and(|digits| !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit()))
}
