//! Codes on their way from libtorch's selections: into bags, or into plain memory.

use rayon::prelude::*;
use sae_core::{FeatureId, SparseCodes};
use sae_torch::Bags;
use tch::{Device, Kind, Tensor};

/// Flat codes before they are cut into bags: of row `rows[i]`, latent `indices[i]`, activation `values[i]`.
pub(super) struct Entries {
    pub(super) rows: Tensor,
    pub(super) indices: Tensor,
    pub(super) values: Tensor,
}

impl Entries {
    pub(super) fn masked(&self, mask: &Tensor) -> Self {
        let of = |tensor: &Tensor| tensor.masked_select(mask);
        Self { rows: of(&self.rows), indices: of(&self.indices), values: of(&self.values) }
    }

    pub(super) fn bags(self, n: i64) -> Bags {
        Bags::from_entries(n as usize, self.rows, self.indices, self.values)
    }
}

/// Codes of `n` rows in plain memory: activation `values[i]` of latent `indices[i]` in row `rows[i]`, in any order; zeros are none.
///
/// # Errors
/// An activation that is not finite.
pub(super) fn sparse(
    n: usize,
    latents: usize,
    rows: &Tensor,
    indices: &Tensor,
    values: &Tensor,
) -> Result<SparseCodes, f64> {
    if let Some(value) = not_finite(values) {
        return Err(value);
    }
    let count = values.numel();
    let integers = |tensor: &Tensor| {
        let mut numbers = vec![0_i64; count];
        tensor.reshape([-1]).to_device(Device::Cpu).contiguous().copy_data(&mut numbers, count);
        numbers
    };
    let (rows, indices) = (integers(rows), integers(indices));
    let mut activations = vec![0.0_f32; count];
    let on_host = values.reshape([-1]).to_device(Device::Cpu).to_kind(Kind::Float).contiguous();
    on_host.copy_data(&mut activations, count);
    let mut entries: Vec<(i64, i64, f32)> = rows
        .into_iter()
        .zip(indices)
        .zip(activations)
        .map(|((row, latent), value)| (row, latent, value))
        .filter(|(.., value)| *value > 0.0)
        .collect();
    entries.par_sort_unstable_by_key(|(row, latent, _)| (*row, *latent));
    let mut codes = SparseCodes::with_capacity(latents, n, entries.len());
    let mut entries = entries.into_iter().peekable();
    for row in 0..n as i64 {
        let of_row = std::iter::from_fn(|| entries.next_if(|(of, ..)| *of == row));
        codes
            .push_row(of_row.map(|(_, latent, value)| (FeatureId(latent as u32), value)))
            .map_err(|_| f64::NAN)?;
    }
    Ok(codes)
}

/// Something that is not a finite activation, if there is one.
pub(super) fn not_finite(values: &Tensor) -> Option<f64> {
    let sum = values.sum(Kind::Double).double_value(&[]);
    (!sum.is_finite()).then_some(sum)
}
