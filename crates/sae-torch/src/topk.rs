//! [`TopK`]: codes on the device.

use sae_types::{FeatureId, SparseCodes};
use tch::{Device, Kind, Tensor};

use crate::TorchSaeError;

/// The largest activations of each row, `[n, k]`, descending. With BatchTopK, k is what the row with the most keeps.
///
/// Where fewer than k latents are on, the last places hold latents that are off, with activation 0; they count for
/// nothing in a decoder. Which of several equal activations come first, or make it at all, is libtorch's choice
/// (`sae-core` takes the lower latent).
#[derive(Debug)]
pub struct TopK {
    /// Latents, i64.
    pub indices: Tensor,
    /// Activations, not negative.
    pub values: Tensor,
}

impl TopK {
    /// The same tensors under another handle; nothing is copied.
    pub fn shallow_clone(&self) -> Self {
        Self { indices: self.indices.shallow_clone(), values: self.values.shallow_clone() }
    }

    /// The first `count` of each row.
    ///
    /// # Panics
    /// When `count` is more than k.
    pub fn first(&self, count: usize) -> Self {
        let count = count as i64;
        Self { indices: self.indices.narrow(1, 0, count), values: self.values.narrow(1, 0, count) }
    }

    /// The rows of all `parts`, one after the other, as wide as the widest of them.
    pub(crate) fn join(parts: &[Self]) -> Self {
        let widest = parts.iter().map(|part| part.indices.size()[1]).max().unwrap_or(0);
        let join = |of: fn(&Self) -> &Tensor| {
            let pad = |part| {
                let tensor = of(part);
                tensor.constant_pad_nd([0, widest - tensor.size()[1]])
            };
            Tensor::cat(&parts.iter().map(pad).collect::<Vec<_>>(), 0)
        };
        Self { indices: join(|part| &part.indices), values: join(|part| &part.values) }
    }

    /// Copies the codes off the device, as i32 and the parameters' own dtype: zeros dropped, latents ascending.
    ///
    /// # Errors
    /// When an activation is NaN or infinite, or the device fails.
    pub fn to_codes(&self, num_latents: usize) -> Result<SparseCodes, TorchSaeError> {
        let read_back = |what| move |source| TorchSaeError::ReadBack { what, source };
        let (n, k) = self.indices.size2().map_err(read_back("latents"))?;
        let indices = self.indices.to_kind(Kind::Int).reshape([-1]).to_device(Device::Cpu);
        let indices = Vec::<i32>::try_from(indices).map_err(read_back("latents"))?;
        let values = self.values.reshape([-1]).to_device(Device::Cpu).to_kind(Kind::Float);
        let values = Vec::<f32>::try_from(values).map_err(read_back("activations"))?;
        let (n, k) = (n as usize, k as usize);
        let mut codes = SparseCodes::with_capacity(num_latents, n, n * k);
        let mut row = Vec::with_capacity(k);
        for start in (0..n).map(|i| i * k) {
            row.clear();
            let pairs = indices[start..start + k].iter().zip(&values[start..start + k]);
            row.extend(pairs.filter(|(_, value)| **value != 0.0).map(|(&latent, &value)| (latent, value)));
            row.sort_unstable_by_key(|&(latent, _)| latent);
            let features = row.iter().map(|&(latent, value)| (FeatureId(latent as u32), value));
            codes.push_row(features).map_err(|source| TorchSaeError::Codes { source })?;
        }
        Ok(codes)
    }
}
