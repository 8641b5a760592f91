//! [`Rows`]: what a step is given, and what is checked of it; [`high_norm_rows`].

use tch::{Device, Kind, Tensor, no_grad};

use crate::{TrainerConfig, TrainerError};

/// Activation vectors, one per token, on any device.
#[derive(Clone, Copy, Debug)]
pub struct Rows<'a> {
    /// `[n, d_in]`, of any float dtype.
    pub inputs: &'a Tensor,
    /// `[n, d_in]`, what a transcoder predicts; an autoencoder has none.
    pub targets: Option<&'a Tensor>,
    /// `[n]`, what each row counts for in the loss, positive; 1 unless given.
    pub weights: Option<&'a Tensor>,
}

impl<'a> Rows<'a> {
    /// Rows of an autoencoder that all count alike.
    pub fn new(inputs: &'a Tensor) -> Self {
        Self { inputs, targets: None, weights: None }
    }
}

/// Rows that have been checked, as f32 on the device that trains.
#[derive(Debug)]
pub(crate) struct Checked {
    pub(crate) x: Tensor,
    pub(crate) y: Option<Tensor>,
    /// `[n, 1]`.
    pub(crate) weights: Option<Tensor>,
}

impl Checked {
    pub(crate) fn len(&self) -> usize {
        self.x.size()[0] as usize
    }

    /// The targets, which of an autoencoder are its inputs.
    pub(crate) fn targets(&self) -> &Tensor {
        self.y.as_ref().unwrap_or(&self.x)
    }

    /// # Errors
    /// When an activation is NaN or infinite, or a weight no positive number.
    ///
    /// # Panics
    /// When shapes disagree, there are fewer than `least` rows, or targets are missing or too many.
    #[track_caller]
    pub(crate) fn new(
        rows: &Rows<'_>,
        config: &TrainerConfig,
        device: Device,
        least: i64,
    ) -> Result<Self, TrainerError> {
        let take = |what: &str, tensor: &Tensor| {
            let size = tensor.size();
            assert!(
                matches!(size[..], [n, d_in] if n >= least && d_in == config.d_in as i64),
                "{what} are {size:?}, expected [n, {}], n at least {least}",
                config.d_in
            );
            no_grad(|| tensor.detach().to_device(device).to_kind(Kind::Float).contiguous())
        };
        assert_eq!(rows.targets.is_some(), config.transcode, "whether there are targets, against transcode");
        let x = take("inputs", rows.inputs);
        let y = rows.targets.map(|targets| take("targets", targets));
        if let Some(y) = &y {
            assert_eq!(y.size(), x.size(), "shape of the targets against the inputs");
        }
        for tensor in std::iter::once(&x).chain(&y) {
            // The sum is finite only if every number is.
            if !no_grad(|| tensor.sum(Kind::Double)).double_value(&[]).is_finite() {
                let bad = tensor.isfinite().all_dim(1, false).logical_not().nonzero();
                return Err(TrainerError::ActivationsNotFinite { row: bad.int64_value(&[0, 0]) as usize });
            }
        }
        let weights = match rows.weights {
            None => None,
            Some(weights) => {
                assert_eq!(weights.size(), [x.size()[0]], "shape of the weights against rows");
                let weights = no_grad(|| weights.detach().to_device(device).to_kind(Kind::Float));
                let sound = weights.isfinite().logical_and(&weights.gt(0.0));
                let bad = sound.logical_not().nonzero();
                if bad.size()[0] > 0 {
                    let row = bad.int64_value(&[0, 0]);
                    let value = weights.double_value(&[row]);
                    return Err(TrainerError::Weight { row: row as usize, value });
                }
                Some(weights.reshape([-1, 1]).contiguous())
            }
        };
        Ok(Self { x, y, weights })
    }
}

/// Which rows of `x` `[n, d_in]` have a norm above `multiple` times the median of all norms, as bool `[n]`: the attention sinks of
/// a language model, whose few vast vectors would have all of the loss.
///
/// # Panics
/// When `x` is not a matrix with at least one row.
#[track_caller]
pub fn high_norm_rows(x: &Tensor, multiple: f64) -> Tensor {
    assert!(x.dim() == 2 && x.size()[0] > 0, "x is {:?}, expected [n, d_in]", x.size());
    no_grad(|| {
        let norms = x.detach().to_kind(Kind::Float).norm_scalaropt_dim(2, [1_i64].as_slice(), false);
        norms.gt_tensor(&(norms.median() * multiple))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sinks_are_found_by_their_norm() {
        let x =
            Tensor::from_slice(&[3.0_f32, 4.0, -3.0, 4.0, 0.0, 5.0, 300.0, 400.0, 30.0, 0.0]).reshape([5, 2]);
        let found = |multiple| Vec::<bool>::try_from(high_norm_rows(&x, multiple)).unwrap();
        assert_eq!(found(10.0), [false, false, false, true, false]);
        assert_eq!(found(5.0), [false, false, false, true, true]);
        assert_eq!(found(1.0), [false, false, false, true, true]);
    }
}
