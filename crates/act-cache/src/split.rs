//! Split files: the layout, writing by joining runs, and mapped reading with every bound checked.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{BufWriter, Seek, SeekFrom, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};

use half::{bf16, f16};
use memmap2::Mmap;
use safetensors::tensor::{Dtype, Metadata, TensorInfo};

use crate::runs::Entry;
use crate::{ActivationDtype, CacheError, hash, mmap};

const OFFSETS: &str = "latent_offsets";
const SAMPLE: &str = "sample";
const TOKEN: &str = "token";
const ACTIVATION: &str = "activation";

/// Longer headers than this are no header of a split, whose own has a few hundred bytes.
const MAX_HEADER: usize = 1 << 20;
/// Bytes gathered per column before they are written.
const COLUMN_BUFFER: usize = 1 << 18;

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
    map: Mmap,
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
    fn tensor(self) -> Dtype {
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

/// Writes latents `start .. end` to `path` from the sorted runs, earlier samples first. Gives the number of
/// entries and the file's hash.
pub(crate) fn write(
    path: &Path,
    latents: Range<usize>,
    mut runs: Vec<&[Entry]>,
    token_dtype: TokenDtype,
    activation_dtype: ActivationDtype,
) -> Result<(u64, String), CacheError> {
    let io = |source| CacheError::Io { action: "write", path: path.to_owned(), source };
    let n: usize = runs.iter().map(|run| run.len()).sum();
    let token_tensor = match token_dtype {
        TokenDtype::U16 => Dtype::U16,
        TokenDtype::U32 => Dtype::U32,
    };
    let (header, starts) = layout([
        (OFFSETS, Dtype::U64, latents.len() + 1),
        (SAMPLE, Dtype::U32, n),
        (TOKEN, token_tensor, n),
        (ACTIVATION, activation_dtype.tensor(), n),
    ]);
    let mut file = File::create(path).map_err(CacheError::io("create", path))?;
    file.write_all(&header).map_err(io)?;
    let column = |start: usize| -> Result<_, CacheError> {
        let mut file = OpenOptions::new().write(true).open(path).map_err(io)?;
        file.seek(SeekFrom::Start((header.len() + start) as u64)).map_err(io)?;
        Ok(BufWriter::with_capacity(COLUMN_BUFFER, file))
    };
    let [mut offsets, mut samples, mut tokens, mut activations] =
        [column(starts[0])?, column(starts[1])?, column(starts[2])?, column(starts[3])?];

    let mut written = 0u64;
    offsets.write_all(&written.to_le_bytes()).map_err(io)?;
    for latent in latents {
        for run in &mut runs {
            let count = run.iter().take_while(|entry| entry.latent as usize == latent).count();
            let (entries, rest) = run.split_at(count);
            *run = rest;
            for entry in entries {
                samples.write_all(&entry.sample.to_le_bytes()).map_err(io)?;
                match token_dtype {
                    TokenDtype::U16 => tokens.write_all(&(entry.token as u16).to_le_bytes()),
                    TokenDtype::U32 => tokens.write_all(&entry.token.to_le_bytes()),
                }
                .map_err(io)?;
                match activation_dtype {
                    ActivationDtype::F32 => activations.write_all(&entry.value.to_le_bytes()),
                    ActivationDtype::F16 => activations.write_all(&f16::from_f32(entry.value).to_le_bytes()),
                    ActivationDtype::Bf16 => {
                        activations.write_all(&bf16::from_f32(entry.value).to_le_bytes())
                    }
                }
                .map_err(io)?;
            }
            written += count as u64;
        }
        offsets.write_all(&written.to_le_bytes()).map_err(io)?;
    }
    for column in [&mut offsets, &mut samples, &mut tokens, &mut activations] {
        column.flush().map_err(io)?;
    }
    file.sync_all().map_err(io)?;
    Ok((written, hash::sha256(&mmap::map(path)?)))
}

/// The header's bytes, length prefix included, and where each tensor starts behind it.
fn layout<const N: usize>(tensors: [(&str, Dtype, usize); N]) -> (Vec<u8>, [usize; N]) {
    let mut order: Vec<usize> = (0..N).collect();
    order.sort_by_key(|&i| std::cmp::Reverse(tensors[i].1.bitsize()));
    let mut starts = [0; N];
    let mut end = 0;
    let mut infos = Vec::with_capacity(N);
    for &i in &order {
        let (name, dtype, len) = tensors[i];
        starts[i] = end;
        end += len * dtype.bitsize() / 8;
        let start = starts[i];
        infos.push(format!(
            r#""{name}":{{"dtype":"{dtype:?}","shape":[{len}],"data_offsets":[{start},{end}]}}"#
        ));
    }
    let mut json = format!("{{{}}}", infos.join(","));
    while json.len() % 8 != 0 {
        json.push(' ');
    }
    let mut header = (json.len() as u64).to_le_bytes().to_vec();
    header.extend_from_slice(json.as_bytes());
    (header, starts)
}

impl SplitFile {
    /// Maps a split of latents `latents` with `n` entries.
    pub(crate) fn open(
        path: &Path,
        latents: Range<usize>,
        n: u64,
        activation_dtype: ActivationDtype,
    ) -> Result<Self, CacheError> {
        let map = mmap::map(path)?;
        let header = Header::read(path, &map)?;
        let entries = usize::try_from(n).ok();
        let token_dtype = match header.dtype(TOKEN)? {
            Dtype::U16 => TokenDtype::U16,
            _ => TokenDtype::U32,
        };
        let token_tensor = if token_dtype == TokenDtype::U16 { Dtype::U16 } else { Dtype::U32 };
        let split = Self {
            offsets: header.column(OFFSETS, Dtype::U64, latents.len().checked_add(1))?,
            sample: header.column(SAMPLE, Dtype::U32, entries)?,
            token: header.column(TOKEN, token_tensor, entries)?,
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

/// A parsed header and what it is the header of.
struct Header<'a> {
    path: &'a Path,
    file: &'a [u8],
    /// Where the tensors' bytes begin in the file.
    data: usize,
    tensors: HashMap<String, TensorInfo>,
}

impl<'a> Header<'a> {
    fn read(path: &'a Path, file: &'a [u8]) -> Result<Self, CacheError> {
        let unsound = |source| CacheError::Header { path: path.to_owned(), source };
        let length = file.first_chunk::<8>().map(|bytes| u64::from_le_bytes(*bytes));
        let length =
            length.and_then(|length| usize::try_from(length).ok()).filter(|&length| length <= MAX_HEADER);
        let json = length.and_then(|length| file.get(8..8 + length)).ok_or_else(|| unsound(None))?;
        // `Metadata` checks shapes against offsets, and that tensors follow each other without a gap.
        let metadata: Metadata = serde_json::from_slice(json).map_err(|source| unsound(Some(source)))?;
        let tensors = metadata.tensors().into_iter().map(|(name, info)| (name, info.clone())).collect();
        Ok(Self { path, file, data: 8 + json.len(), tensors })
    }

    fn dtype(&self, tensor: &'static str) -> Result<Dtype, CacheError> {
        let info = self.tensors.get(tensor).ok_or_else(|| CacheError::Tensor {
            path: self.path.to_owned(),
            tensor,
            problem: "is missing".to_owned(),
            expected: "it in every split".to_owned(),
        })?;
        Ok(info.dtype)
    }

    /// Where a tensor lies in the file, if it has the dtype and length wanted, is whole and is aligned.
    fn column(
        &self,
        tensor: &'static str,
        dtype: Dtype,
        len: Option<usize>,
    ) -> Result<Range<usize>, CacheError> {
        let got = self.dtype(tensor)?;
        let info = &self.tensors[tensor];
        let wrong = |problem: String, expected: String| CacheError::Tensor {
            path: self.path.to_owned(),
            tensor,
            problem,
            expected,
        };
        let expected = || format!("{dtype:?} [{}] as the manifest has it", len.unwrap_or(usize::MAX));
        if got != dtype || len.is_none_or(|len| info.shape != [len]) {
            return Err(wrong(format!("is {got:?} {:?}", info.shape), expected()));
        }
        let (start, end) = info.data_offsets;
        let range = self.data.checked_add(start).zip(self.data.checked_add(end));
        let Some((range, bytes)) =
            range.and_then(|(start, end)| Some((start..end, self.file.get(start..end)?)))
        else {
            let problem = format!("ends beyond the file's {} bytes", self.file.len());
            return Err(wrong(problem, "a file that was not truncated".to_owned()));
        };
        if bytes.as_ptr().align_offset(dtype.bitsize() / 8) != 0 {
            let problem = "is not aligned to its elements".to_owned();
            return Err(wrong(problem, "the tensor order of the cache format".to_owned()));
        }
        Ok(range)
    }
}
