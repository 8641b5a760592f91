//! [`SplitFile`]: a mapped split, every bound checked.

use std::ops::Range;
use std::path::{Path, PathBuf};

use half::{bf16, f16};
use safetensors::tensor::Dtype;

use crate::header::Header;
use crate::mmap::Bytes;
use crate::{ActivationDtype, CacheError, hash};

pub(crate) const OFFSETS: &str = "latent_offsets";
pub(crate) const SAMPLE: &str = "sample";
pub(crate) const TOKEN: &str = "token";
pub(crate) const ACTIVATION: &str = "activation";

/// How token positions are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TokenDtype {
    U16,
    U32,
}

/// A mapped split whose columns are known to lie within the file, aligned, with sound offsets.
#[derive(Debug)]
pub(crate) struct SplitFile {
    path: PathBuf,
    map: Bytes,
    start: usize,
    offsets: Range<usize>,
    sample: Range<usize>,
    token: Range<usize>,
    token_dtype: TokenDtype,
    activation: Range<usize>,
    activation_dtype: ActivationDtype,
}

/// Positions of some entries.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Tokens<'a> {
    U16(&'a [u16]),
    U32(&'a [u32]),
}

/// Activations of some entries.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Values<'a> {
    F32(&'a [f32]),
    F16(&'a [f16]),
    Bf16(&'a [bf16]),
}

impl TokenDtype {
    pub(crate) fn for_largest(token: u32) -> Self {
        if u16::try_from(token).is_ok() { Self::U16 } else { Self::U32 }
    }

    pub(crate) fn tensor(self) -> Dtype {
        match self {
            Self::U16 => Dtype::U16,
            Self::U32 => Dtype::U32,
        }
    }
}

impl Tokens<'_> {
    pub(crate) fn get(&self, i: usize) -> u32 {
        match self {
            Self::U16(tokens) => u32::from(tokens[i]),
            Self::U32(tokens) => tokens[i],
        }
    }

    pub(crate) fn slice(&self, range: Range<usize>) -> Self {
        match self {
            Self::U16(tokens) => Self::U16(&tokens[range]),
            Self::U32(tokens) => Self::U32(&tokens[range]),
        }
    }
}

impl Values<'_> {
    pub(crate) fn get(&self, i: usize) -> f32 {
        match self {
            Self::F32(values) => values[i],
            Self::F16(values) => values[i].to_f32(),
            Self::Bf16(values) => values[i].to_f32(),
        }
    }

    pub(crate) fn slice(&self, range: Range<usize>) -> Self {
        match self {
            Self::F32(values) => Self::F32(&values[range]),
            Self::F16(values) => Self::F16(&values[range]),
            Self::Bf16(values) => Self::Bf16(&values[range]),
        }
    }
}

impl ActivationDtype {
    pub(crate) fn tensor(self) -> Dtype {
        match self {
            Self::F32 => Dtype::F32,
            Self::F16 => Dtype::F16,
            Self::Bf16 => Dtype::BF16,
        }
    }

    /// What is read back after `value` is stored.
    pub(crate) fn round(self, value: f32) -> f32 {
        match self {
            Self::F32 => value,
            Self::F16 => f16::from_f32(value).to_f32(),
            Self::Bf16 => bf16::from_f32(value).to_f32(),
        }
    }
}

impl SplitFile {
    /// Maps a split of latents `latents` with `n` entries.
    pub(crate) fn open(
        path: &Path,
        latents: Range<usize>,
        n: u64,
        activation_dtype: ActivationDtype,
    ) -> Result<Self, CacheError> {
        Self::of_bytes(path, Bytes::map(path)?, latents, n, activation_dtype)
    }

    /// As [`SplitFile::open`], of the bytes of the file.
    pub(crate) fn of_bytes(
        path: &Path,
        map: Bytes,
        latents: Range<usize>,
        n: u64,
        activation_dtype: ActivationDtype,
    ) -> Result<Self, CacheError> {
        let header = Header::read(path, &map)?;
        let entries = usize::try_from(n).ok();
        let token_dtype = match header.dtype(TOKEN)? {
            Dtype::U16 => TokenDtype::U16,
            _ => TokenDtype::U32,
        };
        let split = Self {
            offsets: header.column(OFFSETS, Dtype::U64, latents.len().checked_add(1))?,
            sample: header.column(SAMPLE, Dtype::U32, entries)?,
            token: header.column(TOKEN, token_dtype.tensor(), entries)?,
            activation: header.column(ACTIVATION, activation_dtype.tensor(), entries)?,
            start: latents.start,
            path: path.to_owned(),
            token_dtype,
            activation_dtype,
            map,
        };
        split.check_offsets(n)?;
        Ok(split)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The latents it holds.
    pub(crate) fn latents(&self) -> Range<usize> {
        self.start..self.start + self.offsets().len() - 1
    }

    /// The entries of `latent`, one of [`SplitFile::latents`].
    pub(crate) fn entries(&self, latent: usize) -> Range<usize> {
        let offsets = self.offsets();
        let at = latent - self.start;
        offsets[at] as usize..offsets[at + 1] as usize
    }

    /// The entries of `latents`, within [`SplitFile::latents`].
    pub(crate) fn entries_of(&self, latents: Range<usize>) -> Range<usize> {
        let offsets = self.offsets();
        offsets[latents.start - self.start] as usize..offsets[latents.end - self.start] as usize
    }

    pub(crate) fn samples(&self) -> &[u32] {
        bytemuck::cast_slice(&self.map[self.sample.clone()])
    }

    pub(crate) fn tokens(&self) -> Tokens<'_> {
        let bytes = &self.map[self.token.clone()];
        match self.token_dtype {
            TokenDtype::U16 => Tokens::U16(bytemuck::cast_slice(bytes)),
            TokenDtype::U32 => Tokens::U32(bytemuck::cast_slice(bytes)),
        }
    }

    pub(crate) fn values(&self) -> Values<'_> {
        let bytes = &self.map[self.activation.clone()];
        match self.activation_dtype {
            ActivationDtype::F32 => Values::F32(bytemuck::cast_slice(bytes)),
            ActivationDtype::F16 => Values::F16(bytemuck::cast_slice(bytes)),
            ActivationDtype::Bf16 => Values::Bf16(bytemuck::cast_slice(bytes)),
        }
    }

    pub(crate) fn token_dtype(&self) -> TokenDtype {
        self.token_dtype
    }

    /// The bytes of the activations of entries `range`, as they are stored.
    pub(crate) fn value_bytes(&self, range: Range<usize>) -> &[u8] {
        let size = self.activation_dtype.tensor().bitsize() / 8;
        &self.map[self.activation.clone()][range.start * size..range.end * size]
    }

    pub(crate) fn map(&self) -> &Bytes {
        &self.map
    }

    pub(crate) fn sha256(&self) -> String {
        hash::sha256(&self.map)
    }

    fn offsets(&self) -> &[u64] {
        bytemuck::cast_slice(&self.map[self.offsets.clone()])
    }

    fn check_offsets(&self, n: u64) -> Result<(), CacheError> {
        let offsets = self.offsets();
        let problem = if offsets.first() != Some(&0) {
            "does not begin with 0"
        } else if offsets.last() != Some(&n) {
            "does not end with the number of entries"
        } else if offsets.windows(2).any(|pair| pair[0] > pair[1]) {
            "falls"
        } else {
            return Ok(());
        };
        Err(CacheError::Tensor {
            path: self.path.clone(),
            tensor: OFFSETS,
            problem: problem.to_owned(),
            expected: format!("a sequence from 0 to {n} that never falls"),
        })
    }
}
