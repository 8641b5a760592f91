//! [`Conv2d`], [`ConvTranspose2d`], [`GroupNorm`]: layers over images `[n, channels, height, width]`.

use tch::Tensor;

use crate::Scope;

/// Convolution with a square kernel, the same stride and padding both ways.
#[derive(Debug)]
pub struct Conv2d {
    weight: Tensor,
    bias: Option<Tensor>,
    stride: i64,
    padding: i64,
}

impl Conv2d {
    /// Takes `weight [outputs, inputs, kernel, kernel]` and, if `bias`, `bias [outputs]`; stride 1, no padding.
    pub fn load(scope: &Scope<'_>, inputs: i64, outputs: i64, kernel: i64, bias: bool) -> Self {
        Self {
            weight: scope.tensor("weight", &[outputs, inputs, kernel, kernel]),
            bias: bias.then(|| scope.tensor("bias", &[outputs])),
            stride: 1,
            padding: 0,
        }
    }

    /// With this stride.
    pub fn stride(mut self, stride: i64) -> Self {
        self.stride = stride;
        self
    }

    /// With so many zeros around the image.
    pub fn padding(mut self, padding: i64) -> Self {
        self.padding = padding;
        self
    }

    /// Maps `[n, inputs, height, width]` to `[n, outputs, ..]`, in the dtype of the weight.
    pub fn forward(&self, x: &Tensor) -> Tensor {
        let kind = self.weight.kind();
        let bias = self.bias.as_ref().map(|bias| bias.to_kind(kind));
        let (stride, padding) = ([self.stride; 2], [self.padding; 2]);
        x.to_kind(kind).conv2d(&self.weight, bias, stride, padding, [1, 1], 1)
    }
}

/// Transposed convolution with a square kernel as wide as its stride: each pixel becomes a block of pixels.
#[derive(Debug)]
pub struct ConvTranspose2d {
    weight: Tensor,
    bias: Tensor,
    stride: i64,
}

impl ConvTranspose2d {
    /// Takes `weight [inputs, outputs, stride, stride]` and `bias [outputs]`.
    pub fn load(scope: &Scope<'_>, inputs: i64, outputs: i64, stride: i64) -> Self {
        Self {
            weight: scope.tensor("weight", &[inputs, outputs, stride, stride]),
            bias: scope.tensor("bias", &[outputs]),
            stride,
        }
    }

    /// Maps `[n, inputs, height, width]` to `[n, outputs, height · stride, width · stride]`, in the dtype of the weight.
    pub fn forward(&self, x: &Tensor) -> Tensor {
        let kind = self.weight.kind();
        let bias = self.bias.to_kind(kind);
        let stride = [self.stride; 2];
        x.to_kind(kind).conv_transpose2d(&self.weight, Some(bias), stride, [0, 0], [0, 0], 1, [1, 1])
    }
}

/// Normalisation over groups of channels, with weight and bias per channel.
#[derive(Debug)]
pub struct GroupNorm {
    weight: Tensor,
    bias: Tensor,
    groups: i64,
    epsilon: f64,
}

impl GroupNorm {
    /// Takes `weight [channels]` and `bias [channels]`.
    pub fn load(scope: &Scope<'_>, groups: i64, channels: i64, epsilon: f64) -> Self {
        Self {
            weight: scope.tensor("weight", &[channels]),
            bias: scope.tensor("bias", &[channels]),
            groups,
            epsilon,
        }
    }

    /// Normalises `[n, channels, ..]`, in the dtype of the weight.
    pub fn forward(&self, x: &Tensor) -> Tensor {
        let x = x.to_kind(self.weight.kind());
        x.group_norm(self.groups, Some(&self.weight), Some(&self.bias), self.epsilon, true)
    }
}
