//! [`SplitWriter`]: one split, entry after entry in its final order.

use std::ops::Range;
use std::path::Path;

use half::{bf16, f16};
use safetensors::tensor::Dtype;

use crate::header::Layout;
use crate::split::{ACTIVATION, OFFSETS, SAMPLE, SplitFile, TOKEN, TokenDtype, Tokens};
use crate::tensor_file::TensorFile;
use crate::{ActivationDtype, CacheError, hash, mmap};

/// The tensors, in the order of the format.
const OFFSETS_AT: usize = 0;
const SAMPLE_AT: usize = 1;
const TOKEN_AT: usize = 2;
const ACTIVATION_AT: usize = 3;

/// Writes one split. Every column has its own place in the file, so the number of entries is told beforehand.
pub(crate) struct SplitWriter {
    file: TensorFile,
    latents: Range<usize>,
    token_dtype: TokenDtype,
    activation_dtype: ActivationDtype,
    /// Entries the split will have.
    n: u64,
    written: u64,
    /// The first latent whose offset is not written: all before it are complete.
    next_latent: usize,
}

impl SplitWriter {
    /// Starts the split of `latents` with `n` entries at `path`.
    pub(crate) fn create(
        path: &Path,
        latents: Range<usize>,
        n: u64,
        token_dtype: TokenDtype,
        activation_dtype: ActivationDtype,
    ) -> Result<Self, CacheError> {
        let entries = n as usize;
        let layout = Layout::new(&[
            (OFFSETS, Dtype::U64, vec![latents.len() + 1]),
            (SAMPLE, Dtype::U32, vec![entries]),
            (TOKEN, token_dtype.tensor(), vec![entries]),
            (ACTIVATION, activation_dtype.tensor(), vec![entries]),
        ]);
        let file = TensorFile::create(path, &layout)?;
        let next_latent = latents.start;
        Ok(Self { file, latents, token_dtype, activation_dtype, n, written: 0, next_latent })
    }

    /// Adds an entry: latents never fall, and of one latent (sample, token) rises.
    ///
    /// # Panics
    /// When the latent falls or is not one of the split's.
    pub(crate) fn push(
        &mut self,
        latent: usize,
        sample: u32,
        token: u32,
        value: f32,
    ) -> Result<(), CacheError> {
        self.close_through(latent)?;
        let Self { file, .. } = self;
        file.write(SAMPLE_AT, &sample.to_le_bytes())?;
        match self.token_dtype {
            TokenDtype::U16 => file.write(TOKEN_AT, &(token as u16).to_le_bytes()),
            TokenDtype::U32 => file.write(TOKEN_AT, &token.to_le_bytes()),
        }?;
        match self.activation_dtype {
            ActivationDtype::F32 => file.write(ACTIVATION_AT, &value.to_le_bytes()),
            ActivationDtype::F16 => file.write(ACTIVATION_AT, &f16::from_f32(value).to_le_bytes()),
            ActivationDtype::Bf16 => file.write(ACTIVATION_AT, &bf16::from_f32(value).to_le_bytes()),
        }?;
        self.written += 1;
        Ok(())
    }

    /// Adds the entries of `latent` in another split of the same activation dtype, all after those that are here.
    ///
    /// # Panics
    /// When the latent falls or is not one of both splits'.
    pub(crate) fn append(&mut self, latent: usize, from: &SplitFile) -> Result<(), CacheError> {
        let entries = from.entries(latent);
        if entries.is_empty() {
            return Ok(());
        }
        self.close_through(latent)?;
        let Self { file, .. } = self;
        file.write(SAMPLE_AT, bytemuck::cast_slice(&from.samples()[entries.clone()]))?;
        match (self.token_dtype, from.tokens().slice(entries.clone())) {
            (TokenDtype::U16, Tokens::U16(tokens)) => file.write(TOKEN_AT, bytemuck::cast_slice(tokens)),
            (TokenDtype::U32, Tokens::U32(tokens)) => file.write(TOKEN_AT, bytemuck::cast_slice(tokens)),
            (TokenDtype::U32, Tokens::U16(tokens)) => {
                tokens.iter().try_for_each(|&token| file.write(TOKEN_AT, &u32::from(token).to_le_bytes()))
            }
            (TokenDtype::U16, Tokens::U32(tokens)) => {
                tokens.iter().try_for_each(|&token| file.write(TOKEN_AT, &(token as u16).to_le_bytes()))
            }
        }?;
        file.write(ACTIVATION_AT, from.value_bytes(entries.clone()))?;
        self.written += entries.len() as u64;
        Ok(())
    }

    /// Completes the split, on disk to stay, and gives the hash of the file.
    ///
    /// # Panics
    /// When there were not as many entries as told.
    pub(crate) fn finish(mut self) -> Result<String, CacheError> {
        assert_eq!(self.written, self.n, "entries of {}", self.file.path().display());
        self.close_before(self.latents.end + 1)?;
        let path = self.file.path().to_owned();
        self.file.finish()?;
        Ok(hash::sha256(&mmap::map(&path)?))
    }

    /// Writes all offsets up to that of `latent`, whose entries follow.
    fn close_through(&mut self, latent: usize) -> Result<(), CacheError> {
        assert!(latent + 1 >= self.next_latent && latent < self.latents.end, "latent {latent} out of turn");
        self.close_before(latent + 1)
    }

    /// Writes the offsets of all latents before `end` that have none yet: where their entries begin.
    fn close_before(&mut self, end: usize) -> Result<(), CacheError> {
        while self.next_latent < end {
            self.file.write(OFFSETS_AT, &self.written.to_le_bytes())?;
            self.next_latent += 1;
        }
        Ok(())
    }
}
