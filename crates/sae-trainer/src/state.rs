//! The state file: one safetensors file with everything that a run continues from.
//!
//! Tensors are named after what they hold (`parameter.W_dec`, `adam.first.W_dec`, `tokens_since_fired`); gradients are there
//! only in the middle of an accumulation, of the latents that have any. The header's one text, `state`, has a line
//! `name=value` for every counter and for every setting, numbers in the shortest form that reads back as the same bits.
#![expect(unsafe_code, reason = "memory-maps the state file")]

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::path::{Path, PathBuf};

use memmap2::Mmap;
use safetensors::{Dtype, SafeTensors, View};
use tch::{Device, Kind, Tensor};

use crate::TrainerError;
use crate::backend::SparseGradients;

/// The name of the header's text.
const TEXT: &str = "state";
/// Its first line, so that another trainer's file is known for what it is.
const FORMAT: (&str, &str) = ("format", "sae-trainer 1");

/// Numbers of a state.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Array<'a> {
    F32(&'a [f32]),
    U8(&'a [u8]),
    I64(&'a [i64]),
    Tensor(&'a Tensor),
}

/// As [`Array`], to be read into.
#[derive(Debug)]
pub(crate) enum ArrayMut<'a> {
    F32(&'a mut [f32]),
    U8(&'a mut [u8]),
    I64(&'a mut [i64]),
    Tensor(&'a mut Tensor),
}

impl Array<'_> {
    fn dtype(&self) -> Dtype {
        match self {
            Self::F32(_) => Dtype::F32,
            Self::U8(_) => Dtype::U8,
            Self::I64(_) => Dtype::I64,
            Self::Tensor(tensor) => dtype_of(tensor),
        }
    }
}

impl ArrayMut<'_> {
    fn dtype(&self) -> Dtype {
        match self {
            Self::F32(_) => Dtype::F32,
            Self::U8(_) => Dtype::U8,
            Self::I64(_) => Dtype::I64,
            Self::Tensor(tensor) => dtype_of(tensor),
        }
    }

    /// Takes over `bytes`, which are as many as it has.
    fn copy_from(self, bytes: &[u8]) {
        match self {
            Self::F32(numbers) => bytemuck::cast_slice_mut::<f32, u8>(numbers).copy_from_slice(bytes),
            Self::U8(numbers) => numbers.copy_from_slice(bytes),
            Self::I64(numbers) => bytemuck::cast_slice_mut::<i64, u8>(numbers).copy_from_slice(bytes),
            Self::Tensor(tensor) => {
                let read = Tensor::from_data_size(bytes, &tensor.size(), tensor.kind());
                tch::no_grad(|| tensor.copy_(&read));
            }
        }
    }
}

fn dtype_of(tensor: &Tensor) -> Dtype {
    match tensor.kind() {
        Kind::Uint8 => Dtype::U8,
        Kind::Int64 => Dtype::I64,
        Kind::Double => Dtype::F64,
        _ => Dtype::F32,
    }
}

/// A tensor on its way into a file.
struct Outgoing<'a> {
    shape: Vec<usize>,
    array: Array<'a>,
}

impl View for Outgoing<'_> {
    fn dtype(&self) -> Dtype {
        self.array.dtype()
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        match self.array {
            Array::F32(numbers) => Cow::Borrowed(bytemuck::cast_slice(numbers)),
            Array::U8(numbers) => Cow::Borrowed(numbers),
            Array::I64(numbers) => Cow::Borrowed(bytemuck::cast_slice(numbers)),
            Array::Tensor(tensor) => {
                let tensor = tensor.to_device(Device::Cpu).contiguous();
                let mut bytes = vec![0; self.data_len()];
                tensor.copy_data_u8(&mut bytes, tensor.numel());
                Cow::Owned(bytes)
            }
        }
    }

    fn data_len(&self) -> usize {
        self.shape.iter().product::<usize>() * self.array.dtype().bitsize() / 8
    }
}

/// A state to be saved.
pub(crate) struct State<'a> {
    /// Counters and settings.
    pub(crate) text: BTreeMap<String, String>,
    pub(crate) arrays: Vec<(String, Vec<usize>, Array<'a>)>,
    /// Where an accumulation is not finished.
    pub(crate) gradients: Option<&'a SparseGradients>,
}

impl State<'_> {
    /// Writes the file beside `path`, waits until it is on the disk, and renames it.
    pub(crate) fn save(self, path: &Path) -> Result<(), TrainerError> {
        let failed = |source| TrainerError::StateFile { action: "write", path: path.to_owned(), source };
        let mut tensors: Vec<(String, Outgoing<'_>)> = Vec::new();
        for (name, shape, array) in self.arrays {
            tensors.push((name, Outgoing { shape, array }));
        }
        if let Some(gradients) = self.gradients {
            for (name, shape, array) in of_gradients(gradients) {
                tensors.push((name.to_owned(), Outgoing { shape, array }));
            }
        }
        let mut text = format!("{}={}\n", FORMAT.0, FORMAT.1);
        for (name, value) in self.text {
            text.extend([&name, "=", &value, "\n"]);
        }
        let header = HashMap::from([(TEXT.to_owned(), text)]);
        let folder = match path.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder,
            _ => Path::new("."),
        };
        let beside = tempfile::Builder::new().prefix(".saving-").tempdir_in(folder).map_err(failed)?;
        let new = beside.path().join("state");
        safetensors::serialize_to_file(tensors, Some(header), &new).map_err(|source| {
            failed(match source {
                safetensors::SafeTensorError::IoError(source) => source,
                other => std::io::Error::other(other),
            })
        })?;
        // The library's temporary file is private to its owner; give the state the mode any new file gets.
        let usual = beside.path().join("usual");
        File::create(&usual)
            .and_then(|file| file.metadata())
            .and_then(|metadata| std::fs::set_permissions(&new, metadata.permissions()))
            .and_then(|()| File::open(&new)?.sync_all())
            .and_then(|()| std::fs::rename(&new, path))
            .and_then(|()| File::open(folder)?.sync_all())
            .map_err(failed)
    }
}

fn of_gradients(gradients: &SparseGradients) -> Vec<(&'static str, Vec<usize>, Array<'_>)> {
    let SparseGradients { latents, encoder_weight, encoder_bias, decoder_weight, decoder_bias, skip_weight } =
        gradients;
    let (n, d_in) = (latents.len(), decoder_bias.len());
    let mut arrays = vec![
        ("gradient.latents", vec![n], Array::I64(latents)),
        ("gradient.encoder.weight", vec![n, d_in], Array::F32(encoder_weight)),
        ("gradient.encoder.bias", vec![n], Array::F32(encoder_bias)),
        ("gradient.W_dec", vec![n, d_in], Array::F32(decoder_weight)),
        ("gradient.b_dec", vec![d_in], Array::F32(decoder_bias)),
    ];
    if let Some(skip_weight) = skip_weight {
        arrays.push(("gradient.W_skip", vec![d_in, d_in], Array::F32(skip_weight)));
    }
    arrays
}

/// An opened state file.
pub(crate) struct StateFile {
    path: PathBuf,
    map: Mmap,
    /// Counters and settings.
    pub(crate) text: BTreeMap<String, String>,
}

impl StateFile {
    pub(crate) fn open(path: &Path) -> Result<Self, TrainerError> {
        let read = |source| TrainerError::StateFile { action: "read", path: path.to_owned(), source };
        let file = File::open(path).map_err(read)?;
        // SAFETY: the map is only read, as bytes, and lives no longer than the load. States are replaced by renaming, never
        // rewritten in place.
        let map = unsafe { Mmap::map(&file) }.map_err(read)?;
        let malformed = |reason: String| TrainerError::StateFormat { path: path.to_owned(), reason };
        let (_, metadata) =
            SafeTensors::read_metadata(&map).map_err(|source| malformed(source.to_string()))?;
        let text = metadata.metadata().as_ref().and_then(|texts| texts.get(TEXT));
        let text = text.ok_or_else(|| malformed(format!("its header has no text {TEXT}")))?;
        let mut lines = text.lines().filter_map(|line| line.split_once('='));
        if lines.next() != Some(FORMAT) {
            return Err(malformed(format!("its header does not start with {}={}", FORMAT.0, FORMAT.1)));
        }
        let text = lines.map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
        Ok(Self { path: path.to_owned(), map, text })
    }

    pub(crate) fn malformed(&self, reason: String) -> TrainerError {
        TrainerError::StateFormat { path: self.path.clone(), reason }
    }

    /// The value of a counter.
    pub(crate) fn number<T: std::str::FromStr>(&self, name: &str) -> Result<T, TrainerError> {
        let value = self.text.get(name).ok_or_else(|| self.malformed(format!("it has no {name}")))?;
        value.parse().map_err(|_| self.malformed(format!("{name} is {value}, expected a number")))
    }

    /// Refuses a state of other settings, naming each difference.
    pub(crate) fn check_settings(&self, settings: &BTreeMap<String, String>) -> Result<(), TrainerError> {
        let differences: Vec<String> = settings
            .iter()
            .filter_map(|(name, ours)| {
                let theirs = self.text.get(name).map_or("nothing", String::as_str);
                let setting = name.strip_prefix("config.").unwrap_or(name);
                (theirs != ours).then(|| format!("{setting} is {theirs} there and {ours} here"))
            })
            .collect();
        if differences.is_empty() {
            return Ok(());
        }
        Err(TrainerError::StateSettings { path: self.path.clone(), differences })
    }

    /// The gradients of an unfinished accumulation, checked.
    pub(crate) fn gradients(
        &self,
        [num_latents, d_in]: [usize; 2],
        skip: bool,
    ) -> Result<SparseGradients, TrainerError> {
        let tensors = self.tensors()?;
        let latents =
            tensors.tensor("gradient.latents").map_err(|error| self.malformed(error.to_string()))?;
        let n = latents.shape().iter().product();
        let mut gradients = SparseGradients {
            latents: vec![0; n],
            encoder_weight: vec![0.0; n * d_in],
            encoder_bias: vec![0.0; n],
            decoder_weight: vec![0.0; n * d_in],
            decoder_bias: vec![0.0; d_in],
            skip_weight: skip.then(|| vec![0.0; d_in * d_in]),
        };
        let wanted: Vec<_> = of_gradients(&gradients)
            .into_iter()
            .map(|(name, shape, array)| (name, shape, array.dtype()))
            .collect();
        for (name, shape, dtype) in &wanted {
            self.check(&tensors, name, shape, *dtype)?;
        }
        let SparseGradients {
            latents,
            encoder_weight,
            encoder_bias,
            decoder_weight,
            decoder_bias,
            skip_weight,
        } = &mut gradients;
        let mut into = vec![
            ArrayMut::I64(latents),
            ArrayMut::F32(encoder_weight),
            ArrayMut::F32(encoder_bias),
            ArrayMut::F32(decoder_weight),
            ArrayMut::F32(decoder_bias),
        ];
        into.extend(skip_weight.as_deref_mut().map(ArrayMut::F32));
        for ((name, ..), array) in wanted.iter().zip(into) {
            self.read(&tensors, name, array)?;
        }
        let rising = gradients.latents.is_sorted_by(|a, b| a < b);
        let within = gradients.latents.iter().all(|&latent| (0..num_latents as i64).contains(&latent));
        if rising && within {
            return Ok(gradients);
        }
        Err(self.malformed("gradient.latents does not ascend below num_latents".to_owned()))
    }

    /// Checks that every array is there in its shape, and no other but gradients.
    pub(crate) fn check_arrays(
        &self,
        arrays: &[(String, Vec<usize>, ArrayMut<'_>)],
    ) -> Result<(), TrainerError> {
        let tensors = self.tensors()?;
        for (name, shape, array) in arrays {
            self.check(&tensors, name, shape, array.dtype())?;
        }
        let known =
            |name: &str| arrays.iter().any(|(known, ..)| known == name) || name.starts_with("gradient.");
        let mut names = tensors.names();
        names.sort_unstable();
        match names.into_iter().find(|name| !known(name)) {
            Some(name) => Err(self.malformed(format!("it has a tensor {name}, which these settings do not"))),
            None => Ok(()),
        }
    }

    /// Reads every array, after [`StateFile::check_arrays`].
    pub(crate) fn read_arrays(
        &self,
        arrays: Vec<(String, Vec<usize>, ArrayMut<'_>)>,
    ) -> Result<(), TrainerError> {
        let tensors = self.tensors()?;
        for (name, _, array) in arrays {
            self.read(&tensors, &name, array)?;
        }
        Ok(())
    }

    fn tensors(&self) -> Result<SafeTensors<'_>, TrainerError> {
        SafeTensors::deserialize(&self.map).map_err(|source| self.malformed(source.to_string()))
    }

    fn check(
        &self,
        tensors: &SafeTensors<'_>,
        name: &str,
        shape: &[usize],
        dtype: Dtype,
    ) -> Result<(), TrainerError> {
        let tensor = tensors.tensor(name).map_err(|_| self.malformed(format!("it has no tensor {name}")))?;
        if tensor.shape() == shape && tensor.dtype() == dtype {
            return Ok(());
        }
        let got = format!("{:?} {:?}", tensor.dtype(), tensor.shape());
        Err(self.malformed(format!("tensor {name} is {got}, expected {dtype:?} {shape:?}")))
    }

    fn read(&self, tensors: &SafeTensors<'_>, name: &str, array: ArrayMut<'_>) -> Result<(), TrainerError> {
        let tensor = tensors.tensor(name).map_err(|source| self.malformed(source.to_string()))?;
        array.copy_from(tensor.data());
        Ok(())
    }
}
