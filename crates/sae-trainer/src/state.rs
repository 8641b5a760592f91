//! The state file: one safetensors file with everything that a run continues from.
//!
//! Tensors are named after what they hold (`parameter.W_dec`, `adam.first.W_dec`, `tokens_since_fired`); gradients are there
//! only in the middle of an accumulation, of the latents that have any. The header's one text, `state`, has a line
//! `name=value` for every counter and for every setting, numbers in the shortest form that reads back as the same bits.
#![expect(unsafe_code, reason = "memory-maps the state file")]

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};

use memmap2::Mmap;
use safetensors::{Dtype, SafeTensors};
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
    pub(crate) fn dtype(&self) -> Dtype {
        match self {
            Self::F32(_) => Dtype::F32,
            Self::U8(_) => Dtype::U8,
            Self::I64(_) => Dtype::I64,
            Self::Tensor(tensor) => dtype_of(tensor),
        }
    }

    /// Its numbers, row-major.
    pub(crate) fn bytes(&self) -> Cow<'_, [u8]> {
        match self {
            Self::F32(numbers) => Cow::Borrowed(bytemuck::cast_slice(numbers)),
            Self::U8(numbers) => Cow::Borrowed(numbers),
            Self::I64(numbers) => Cow::Borrowed(bytemuck::cast_slice(numbers)),
            Self::Tensor(tensor) => {
                let tensor = tensor.to_device(Device::Cpu).contiguous();
                let mut bytes = vec![0; tensor.numel() * self.dtype().bitsize() / 8];
                tensor.copy_data_u8(&mut bytes, tensor.numel());
                Cow::Owned(bytes)
            }
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

    /// Takes over the first of `bytes`, as many as it has.
    fn copy_from(self, bytes: &[u8]) {
        let into = |to: &mut [u8]| to.copy_from_slice(&bytes[..to.len()]);
        match self {
            Self::F32(numbers) => into(bytemuck::cast_slice_mut(numbers)),
            Self::U8(numbers) => into(numbers),
            Self::I64(numbers) => into(bytemuck::cast_slice_mut(numbers)),
            Self::Tensor(tensor) => {
                let len = tensor.numel() * dtype_of(tensor).bitsize() / 8;
                let read = Tensor::from_data_size(&bytes[..len], &tensor.size(), tensor.kind());
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

/// An array to be read.
#[derive(Debug)]
pub(crate) struct Read<'a> {
    pub(crate) name: String,
    /// Of the whole tensor.
    pub(crate) shape: Vec<usize>,
    /// The first row that is wanted.
    pub(crate) first_row: usize,
    pub(crate) array: ArrayMut<'a>,
}

/// The header's text, of counters and settings by name.
pub(crate) fn header(text: BTreeMap<String, String>) -> HashMap<String, String> {
    let mut lines = format!("{}={}\n", FORMAT.0, FORMAT.1);
    for (name, value) in text {
        lines.extend([&name, "=", &value, "\n"]);
    }
    HashMap::from([(TEXT.to_owned(), lines)])
}

/// Gradients of an unfinished accumulation, as they stand in the file.
pub(crate) fn of_gradients(gradients: &SparseGradients) -> Vec<(&'static str, Vec<usize>, Array<'_>)> {
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

    /// The gradients of an unfinished accumulation, of the latents `own` of `num_latents`, which are numbered from 0 then; checked.
    pub(crate) fn gradients(
        &self,
        [num_latents, d_in]: [usize; 2],
        own: Range<usize>,
        skip: bool,
    ) -> Result<SparseGradients, TrainerError> {
        let tensors = self.tensors()?;
        let latents =
            tensors.tensor("gradient.latents").map_err(|error| self.malformed(error.to_string()))?;
        let n = latents.shape().iter().product();
        let mut all = vec![0_i64; n];
        self.check(&tensors, "gradient.latents", &[n], Dtype::I64)?;
        self.read(&tensors, "gradient.latents", 0, ArrayMut::I64(&mut all))?;
        let rising = all.is_sorted_by(|a, b| a < b);
        if !rising || !all.iter().all(|&latent| (0..num_latents as i64).contains(&latent)) {
            return Err(self.malformed("gradient.latents does not ascend below num_latents".to_owned()));
        }
        let place = |latent: usize| all.partition_point(|&other| other < latent as i64);
        let rows = place(own.start)..place(own.end);
        let count = rows.len();
        let mut gradients = SparseGradients {
            latents: all[rows.clone()].iter().map(|latent| latent - own.start as i64).collect(),
            encoder_weight: vec![0.0; count * d_in],
            encoder_bias: vec![0.0; count],
            decoder_weight: vec![0.0; count * d_in],
            decoder_bias: vec![0.0; d_in],
            skip_weight: skip.then(|| vec![0.0; d_in * d_in]),
        };
        let SparseGradients {
            encoder_weight, encoder_bias, decoder_weight, decoder_bias, skip_weight, ..
        } = &mut gradients;
        let mut wanted = vec![
            ("gradient.encoder.weight", vec![n, d_in], rows.start, encoder_weight),
            ("gradient.encoder.bias", vec![n], rows.start, encoder_bias),
            ("gradient.W_dec", vec![n, d_in], rows.start, decoder_weight),
            ("gradient.b_dec", vec![d_in], 0, decoder_bias),
        ];
        wanted.extend(skip_weight.as_mut().map(|skip| ("gradient.W_skip", vec![d_in, d_in], 0, skip)));
        for (name, shape, first_row, numbers) in wanted {
            self.check(&tensors, name, &shape, Dtype::F32)?;
            self.read(&tensors, name, first_row, ArrayMut::F32(numbers))?;
        }
        Ok(gradients)
    }

    /// Checks that every array is there in its shape, and no other but gradients.
    pub(crate) fn check_arrays(&self, arrays: &[Read<'_>]) -> Result<(), TrainerError> {
        let tensors = self.tensors()?;
        for Read { name, shape, array, .. } in arrays {
            self.check(&tensors, name, shape, array.dtype())?;
        }
        let known =
            |name: &str| arrays.iter().any(|array| array.name == name) || name.starts_with("gradient.");
        let mut names = tensors.names();
        names.sort_unstable();
        match names.into_iter().find(|name| !known(name)) {
            Some(name) => Err(self.malformed(format!("it has a tensor {name}, which these settings do not"))),
            None => Ok(()),
        }
    }

    /// Reads every array, after [`StateFile::check_arrays`].
    pub(crate) fn read_arrays(&self, arrays: Vec<Read<'_>>) -> Result<(), TrainerError> {
        let tensors = self.tensors()?;
        for Read { name, first_row, array, .. } in arrays {
            self.read(&tensors, &name, first_row, array)?;
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

    /// Reads rows of a tensor, from `first_row` on.
    fn read(
        &self,
        tensors: &SafeTensors<'_>,
        name: &str,
        first_row: usize,
        array: ArrayMut<'_>,
    ) -> Result<(), TrainerError> {
        let tensor = tensors.tensor(name).map_err(|source| self.malformed(source.to_string()))?;
        let rows = tensor.shape().first().copied().unwrap_or(1).max(1);
        let start = first_row * (tensor.data().len() / rows);
        array.copy_from(&tensor.data()[start..]);
        Ok(())
    }
}
