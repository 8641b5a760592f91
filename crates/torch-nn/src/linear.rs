//! [`Linear`] and [`Embedding`].

use tch::{Device, Kind, Tensor};

use crate::{QuantisedMatrix, Scope, WeightPrecision};

/// Images that [`Linear::forward_rows`] deals rows out to: from so many on, libtorch leaves a convolution of one pixel to
/// oneDNN with any number of threads.
const IMAGES: i64 = 16;

/// Rows from which bringing the weight into oneDNN's order is worth it.
const MANY_ROWS: i64 = 256;

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

    /// As [`Linear::forward`] but for the order of sums, and faster for many rows of f32 on a CPU.
    ///
    /// libtorch gives products of f32 matrices to MKL, which on AMD's CPUs uses half of their registers; convolutions go to
    /// oneDNN, which uses all. So this is a convolution of one pixel, with rows as pixels: 111 ms instead of 219 ms for
    /// 4096 x 768 times 768 x 3072 on one Zen 5 core. Elsewhere, with fewer than 256 rows, and where these are no multiple
    /// of 16, it is [`Linear::forward`].
    pub fn forward_rows(&self, x: &Tensor) -> Tensor {
        let mut size = x.size();
        let (Matrix::Full(weight), Some(last)) = (&self.weight, size.last_mut()) else {
            return self.forward(x);
        };
        let inputs = std::mem::replace(last, weight.size()[0]);
        let rows: i64 = x.size().iter().rev().skip(1).product();
        let fits = weight.kind() == Kind::Float && weight.device() == Device::Cpu;
        if !fits || rows < MANY_ROWS || rows % IMAGES != 0 {
            return self.forward(x);
        }
        let images = x.to_kind(Kind::Float).reshape([IMAGES, rows / IMAGES, 1, inputs]).permute([0, 3, 1, 2]);
        let bias = self.bias.as_ref().map(|bias| bias.to_kind(Kind::Float));
        let weight = weight.unsqueeze(-1).unsqueeze(-1);
        let out = images.conv2d(&weight, bias, [1, 1], [0, 0], [1, 1], 1);
        out.permute([0, 2, 3, 1]).reshape(size)
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

impl Linear {
    /// Some of the outputs, in f32 whatever the dtype of the weight: maps `[.., inputs]` to `[.., chosen]` for `chosen [n]` (i64). The
    /// other rows are not multiplied.
    pub fn some_outputs(&self, x: &Tensor, chosen: &Tensor) -> Tensor {
        let rows = match &self.weight {
            Matrix::Full(weight) => weight.index_select(0, chosen),
            Matrix::Int8(weight) => weight.dequantised().index_select(0, chosen),
        };
        let bias = self.bias.as_ref().map(|bias| bias.index_select(0, chosen).to_kind(Kind::Float));
        x.to_kind(Kind::Float).linear(&rows.to_kind(Kind::Float), bias)
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
