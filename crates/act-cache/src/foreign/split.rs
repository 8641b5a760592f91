//! [`ForeignSplit`]: a mapped split of msae's or delphi's, every bound checked.

use std::ops::Range;
use std::path::{Path, PathBuf};

use half::{bf16, f16};
use safetensors::tensor::Dtype;

use super::Layout;
use crate::header::Header;
use crate::mmap::Bytes;
use crate::runs::Entry;
use crate::{ActivationDtype, CacheError};

pub(super) const LOCATIONS: &str = "locations";
pub(super) const ACTIVATIONS: &str = "activations";
pub(super) const TOKENS: &str = "tokens";

/// A split whose tensors are known to lie within the file and to fit each other.
#[derive(Debug)]
pub(super) struct ForeignSplit {
    path: PathBuf,
    bytes: Bytes,
    latents: Range<usize>,
    n: usize,
    location_dtype: Dtype,
    locations: Range<usize>,
    activation_dtype: ActivationDtype,
    activations: Range<usize>,
    tokens: Option<TokenGrid>,
}

/// delphi's `tokens`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct TokenGrid {
    dtype: Dtype,
    place: Range<usize>,
    pub(super) rows: usize,
    pub(super) cols: usize,
}

impl ForeignSplit {
    pub(super) fn open(path: &Path, latents: Range<usize>) -> Result<Self, CacheError> {
        Self::of_bytes(path, Bytes::map(path)?, latents)
    }

    /// As [`ForeignSplit::open`], of the bytes of the file. Numbers are read at any alignment: older versions of safetensors
    /// did not pad their headers.
    pub(super) fn of_bytes(path: &Path, bytes: Bytes, latents: Range<usize>) -> Result<Self, CacheError> {
        let header = Header::read(path, &bytes)?;
        let wrong = |tensor, problem: String, expected: &str| CacheError::Tensor {
            path: path.to_owned(),
            tensor,
            problem,
            expected: expected.to_owned(),
        };
        let find = |tensor, expected: &str| {
            header.find(tensor)?.ok_or_else(|| wrong(tensor, "is missing".to_owned(), expected))
        };
        let (info, locations) = find(LOCATIONS, "it in every split")?;
        let location_dtype = info.dtype;
        let is = format!("is {:?} {:?}", info.dtype, info.shape);
        let &[n, 3] = &info.shape[..] else {
            return Err(wrong(LOCATIONS, is, "three integers per activation"));
        };
        if !is_integer(info.dtype) {
            return Err(wrong(LOCATIONS, is, "I64, U64, I32, U32, I16 or U16"));
        }
        let (info, activations) = find(ACTIVATIONS, "it in every split")?;
        let is = format!("is {:?} {:?}", info.dtype, info.shape);
        let activation_dtype = match info.dtype {
            Dtype::F32 => ActivationDtype::F32,
            Dtype::F16 => ActivationDtype::F16,
            Dtype::BF16 => ActivationDtype::Bf16,
            _ => return Err(wrong(ACTIVATIONS, is, "F32, F16 or BF16")),
        };
        if info.shape != [n] {
            return Err(wrong(ACTIVATIONS, is, "as many as there are locations"));
        }
        let tokens = match header.find(TOKENS)? {
            None => None,
            Some((info, place)) => {
                let &[rows, cols] = &info.shape[..] else {
                    let is = format!("is {:?} {:?}", info.dtype, info.shape);
                    return Err(wrong(TOKENS, is, "one row per sample"));
                };
                if !is_integer(info.dtype) {
                    return Err(wrong(TOKENS, format!("is {:?}", info.dtype), "integers"));
                }
                Some(TokenGrid { dtype: info.dtype, place, rows, cols })
            }
        };
        Ok(Self {
            path: path.to_owned(),
            latents,
            n,
            location_dtype,
            locations,
            activation_dtype,
            activations,
            tokens,
            bytes,
        })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The latents its name says it holds.
    pub(super) fn latents(&self) -> Range<usize> {
        self.latents.clone()
    }

    pub(super) fn len(&self) -> usize {
        self.n
    }

    pub(super) fn location_dtype(&self) -> Dtype {
        self.location_dtype
    }

    pub(super) fn activation_dtype(&self) -> ActivationDtype {
        self.activation_dtype
    }

    pub(super) fn tokens(&self) -> Option<&TokenGrid> {
        self.tokens.as_ref()
    }

    /// Row `row` of `tokens`.
    pub(super) fn token_row(&self, grid: &TokenGrid, row: usize) -> impl DoubleEndedIterator<Item = i64> {
        let bytes = &self.bytes[grid.place.clone()];
        let (dtype, cols) = (grid.dtype, grid.cols);
        (0..cols).map(move |col| integer(bytes, dtype, row * cols + col))
    }

    /// Sample, token and latent of entry `i` as they stand in the file.
    fn location(&self, i: usize) -> [i64; 3] {
        let bytes = &self.bytes[self.locations.clone()];
        [0, 1, 2].map(|column| integer(bytes, self.location_dtype, i * 3 + column))
    }

    fn activation(&self, i: usize) -> f32 {
        let bytes = &self.bytes[self.activations.clone()];
        match self.activation_dtype {
            ActivationDtype::F32 => f32::from_le_bytes(chunk(bytes, i)),
            ActivationDtype::F16 => f16::from_le_bytes(chunk(bytes, i)).to_f32(),
            ActivationDtype::Bf16 => bf16::from_le_bytes(chunk(bytes, i)).to_f32(),
        }
    }

    /// Which counting of latents the first telling entry shows; `None` if none tells.
    pub(super) fn counting(&self) -> Option<Layout> {
        let Range { start, end } = self.latents;
        let (absolute, relative) = (start as i64..end as i64, 0..(end - start) as i64);
        if start == 0 {
            return None;
        }
        (0..self.n).map(|i| self.location(i)[2]).find_map(|latent| {
            match (absolute.contains(&latent), relative.contains(&latent)) {
                (true, false) => Some(Layout::Msae),
                (false, true) => Some(Layout::Delphi),
                _ => None,
            }
        })
    }

    /// Entry `i` with its latent counted from 0 and its token from `first`, or why it has none.
    pub(super) fn entry(&self, i: usize, layout: Layout, first: u32) -> Result<Entry, String> {
        let [sample, token, latent] = self.location(i);
        let Range { start, end } = self.latents;
        let absolute = match layout {
            Layout::Msae => Some(latent),
            Layout::Delphi => latent.checked_add(start as i64),
        };
        let within = absolute.filter(|&latent| latent >= start as i64 && latent < end as i64);
        let Some(latent) = within else {
            let counted = match layout {
                Layout::Msae => format!("{start} to {}", end as i64 - 1),
                Layout::Delphi => format!("0 to {}", end as i64 - start as i64 - 1),
            };
            return Err(format!("latent {latent} is not one of the split's, {counted}"));
        };
        let sample = u32::try_from(sample)
            .ok()
            .filter(|&sample| sample < u32::MAX)
            .ok_or_else(|| format!("sample {sample} is beyond 0 to {}", u32::MAX - 1))?;
        // One below the largest, so that a number of tokens fits as well.
        let position = u32::try_from(token)
            .ok()
            .and_then(|token| token.checked_add(first))
            .filter(|&token| token < u32::MAX)
            .ok_or_else(|| format!("token {token} is beyond what positions can count"))?;
        let value = self.activation(i);
        if !value.is_finite() {
            return Err(format!("activation {value} of latent {latent} is not finite"));
        }
        Ok(Entry { latent: latent as u32, sample, token: position, value })
    }
}

fn is_integer(dtype: Dtype) -> bool {
    matches!(dtype, Dtype::I64 | Dtype::U64 | Dtype::I32 | Dtype::U32 | Dtype::I16 | Dtype::U16)
}

/// Integer `i` of `bytes`. As delphi reads them: signed ones of less than 64 bits are taken for unsigned.
#[inline]
fn integer(bytes: &[u8], dtype: Dtype, i: usize) -> i64 {
    match dtype {
        Dtype::I16 | Dtype::U16 => i64::from(u16::from_le_bytes(chunk(bytes, i))),
        Dtype::I32 | Dtype::U32 => i64::from(u32::from_le_bytes(chunk(bytes, i))),
        Dtype::U64 => i64::try_from(u64::from_le_bytes(chunk(bytes, i))).unwrap_or(i64::MAX),
        _ => i64::from_le_bytes(chunk(bytes, i)),
    }
}

#[inline]
fn chunk<const N: usize>(bytes: &[u8], i: usize) -> [u8; N] {
    bytes.as_chunks::<N>().0[i]
}
