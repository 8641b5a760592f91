//! [`LayerNorm`] and [`RmsNorm`].

use tch::{Kind, Tensor};

use crate::Scope;

/// Layer normalisation over the last dimension, with weight and bias.
#[derive(Debug)]
pub struct LayerNorm {
    weight: Tensor,
    bias: Tensor,
    epsilon: f64,
}

impl LayerNorm {
    /// Takes `weight [width]` and `bias [width]`.
    pub fn load(scope: &Scope<'_>, width: i64, epsilon: f64) -> Self {
        Self { weight: scope.tensor("weight", &[width]), bias: scope.tensor("bias", &[width]), epsilon }
    }

    /// Normalises `[.., width]`, in the dtype of the weight.
    pub fn forward(&self, x: &Tensor) -> Tensor {
        x.to_kind(self.weight.kind()).layer_norm(
            self.weight.size(),
            Some(&self.weight),
            Some(&self.bias),
            self.epsilon,
            true,
        )
    }
}

/// `w · x / sqrt(mean(x²) + ε)` over the last dimension.
///
/// The mean is taken in f32; the quotient is cast back to the dtype of `x` before it meets the weight, as
/// transformers' `LlamaRMSNorm` does.
#[derive(Debug)]
pub struct RmsNorm {
    weight: Tensor,
    epsilon: f64,
}

impl RmsNorm {
    /// Takes `weight [width]`.
    pub fn load(scope: &Scope<'_>, width: i64, epsilon: f64) -> Self {
        Self { weight: scope.tensor("weight", &[width]), epsilon }
    }

    /// Normalises `[.., width]`.
    pub fn forward(&self, x: &Tensor) -> Tensor {
        let wide = x.to_kind(Kind::Float);
        let mean_square = (&wide * &wide).mean_dim(-1, true, Kind::Float);
        let unit = wide * (mean_square + self.epsilon).rsqrt();
        &self.weight * unit.to_kind(x.kind())
    }
}
