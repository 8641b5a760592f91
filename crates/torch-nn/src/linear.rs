//! [`Linear`] and [`Embedding`].

use tch::{Kind, Tensor};

use crate::Scope;

/// `y = x · Wᵀ + b`.
#[derive(Debug)]
pub struct Linear {
    weight: Tensor,
    bias: Option<Tensor>,
}

impl Linear {
    /// Takes `weight [outputs, inputs]` and, if `bias`, `bias [outputs]`.
    pub fn load(scope: &Scope<'_>, inputs: i64, outputs: i64, bias: bool) -> Self {
        Self {
            weight: scope.tensor("weight", &[outputs, inputs]),
            bias: bias.then(|| scope.tensor("bias", &[outputs])),
        }
    }

    /// Makes the layer from its tensors.
    pub fn new(weight: Tensor, bias: Option<Tensor>) -> Self {
        Self { weight, bias }
    }

    /// The dtype it computes in.
    pub fn kind(&self) -> Kind {
        self.weight.kind()
    }

    /// Maps `[.., inputs]` to `[.., outputs]`, in the dtype of the weight.
    pub fn forward(&self, x: &Tensor) -> Tensor {
        let kind = self.weight.kind();
        x.to_kind(kind).linear(&self.weight, self.bias.as_ref().map(|bias| bias.to_kind(kind)))
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
