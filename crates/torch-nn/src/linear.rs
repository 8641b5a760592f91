//! [`Linear`] and [`Embedding`].

use tch::{Kind, Tensor};

use crate::{QuantisedMatrix, Scope, WeightPrecision};

/// `y = x · Wᵀ + b`.
#[derive(Debug)]
pub struct Linear {
    weight: Matrix,
    bias: Option<Tensor>,
}

#[derive(Debug)]
enum Matrix {
    Full(Tensor),
    Int8(QuantisedMatrix),
}

impl Linear {
    /// Takes `weight [outputs, inputs]` and, if `bias`, `bias [outputs]`.
    pub fn load(scope: &Scope<'_>, inputs: i64, outputs: i64, bias: bool) -> Self {
        Self::load_in(scope, inputs, outputs, bias, WeightPrecision::Full)
    }

    /// The same, with the weight kept in a precision of its own. The bias stays as it is.
    pub fn load_in(
        scope: &Scope<'_>,
        inputs: i64,
        outputs: i64,
        bias: bool,
        precision: WeightPrecision,
    ) -> Self {
        let weight = match precision {
            WeightPrecision::Full => Matrix::Full(scope.tensor("weight", &[outputs, inputs])),
            WeightPrecision::Int8 => Matrix::Int8(scope.quantised("weight", [outputs, inputs])),
        };
        Self { weight, bias: bias.then(|| scope.tensor("bias", &[outputs])) }
    }

    /// Makes the layer from its tensors.
    pub fn new(weight: Tensor, bias: Option<Tensor>) -> Self {
        Self { weight: Matrix::Full(weight), bias }
    }

    /// The dtype it computes in.
    pub fn kind(&self) -> Kind {
        match &self.weight {
            Matrix::Full(weight) => weight.kind(),
            Matrix::Int8(weight) => weight.kind(),
        }
    }

    /// Maps `[.., inputs]` to `[.., outputs]`, in the dtype of the weight.
    pub fn forward(&self, x: &Tensor) -> Tensor {
        let kind = self.kind();
        let bias = self.bias.as_ref().map(|bias| bias.to_kind(kind));
        match &self.weight {
            Matrix::Full(weight) => x.to_kind(kind).linear(weight, bias),
            Matrix::Int8(weight) => {
                let product = weight.forward(x);
                bias.map_or_else(|| product.shallow_clone(), |bias| &product + bias)
            }
        }
    }
}

/// One row of a table per index.
#[derive(Debug)]
pub struct Embedding {
    weight: Tensor,
}

impl Embedding {
    /// Takes `weight [rows, width]`.
    pub fn load(scope: &Scope<'_>, rows: i64, width: i64) -> Self {
        Self { weight: scope.tensor("weight", &[rows, width]) }
    }

    /// Maps indices `[..]` (i64) to `[.., width]`.
    pub fn forward(&self, indices: &Tensor) -> Tensor {
        Tensor::embedding(&self.weight, indices, -1, false, false)
    }

    /// The table, `[rows, width]`.
    pub fn weight(&self) -> &Tensor {
        &self.weight
    }
}
