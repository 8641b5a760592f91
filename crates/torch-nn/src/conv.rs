//! [`Conv2d`], [`ConvTranspose2d`], [`GroupNorm`]: layers over images `[n, channels, height, width]`.
//!
//! On a GPU cuDNN multiplies f32 in TF32, with 10 bits of mantissa, unless told otherwise. Forward passes without gradients tell it;
//! with gradients libtorch decides, which `NVIDIA_TF32_OVERRIDE=0` in the environment overrules.

use tch::{Device, Kind, Tensor};

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
        let x = x.to_kind(kind);
        if may_be_tf32(&x, &self.weight, bias.as_ref()) {
            return without_tf32(&x, &self.weight, bias.as_ref(), stride, padding, false);
        }
        x.conv2d(&self.weight, bias, stride, padding, [1, 1], 1)
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
        let x = x.to_kind(kind);
        if may_be_tf32(&x, &self.weight, Some(&bias)) {
            return without_tf32(&x, &self.weight, Some(&bias), stride, [0, 0], true);
        }
        x.conv_transpose2d(&self.weight, Some(bias), stride, [0, 0], [0, 0], 1, [1, 1])
    }
}

/// Whether cuDNN would round f32 that nobody asks for gradients of.
fn may_be_tf32(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> bool {
    matches!(x.device(), Device::Cuda(_))
        && x.kind() == Kind::Float
        && ![Some(x), Some(weight), bias].into_iter().flatten().any(Tensor::requires_grad)
}

/// The convolution as libtorch's own functions call it, but for the last switch, `allow_tf32`.
fn without_tf32(
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    stride: [i64; 2],
    padding: [i64; 2],
    transposed: bool,
) -> Tensor {
    let (dilation, output_padding, groups) = ([1, 1], [0, 0], 1);
    let (benchmark, deterministic, cudnn, tf32) = (false, false, true, false);
    x.internal_convolution(
        weight,
        bias,
        stride,
        padding,
        dilation,
        transposed,
        output_padding,
        groups,
        benchmark,
        deterministic,
        cudnn,
        tf32,
    )
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_way_around_tf32_is_the_same_convolution() {
        tch::manual_seed(3);
        let normal = |shape: &[i64]| Tensor::randn(shape, (Kind::Float, Device::Cpu));
        let (x, bias) = (normal(&[2, 3, 9, 8]), normal(&[5]));
        let weight = normal(&[5, 3, 3, 3]);
        let got = without_tf32(&x, &weight, Some(&bias), [2, 2], [1, 1], false);
        assert!(got.equal(&x.conv2d(&weight, Some(&bias), [2, 2], [1, 1], [1, 1], 1)));
        let got = without_tf32(&x, &weight, None, [1, 1], [0, 0], false);
        assert!(got.equal(&x.conv2d(&weight, None::<Tensor>, [1, 1], [0, 0], [1, 1], 1)));
        let weight = normal(&[3, 5, 2, 2]);
        let got = without_tf32(&x, &weight, Some(&bias), [2, 2], [0, 0], true);
        assert!(got.equal(&x.conv_transpose2d(&weight, Some(&bias), [2, 2], [0, 0], [0, 0], 1, [1, 1])));
    }

    #[test]
    fn a_gpu_multiplies_all_bits_of_f32() {
        // 1 + 2^-12 is 1 in TF32.
        let value = 1.0 + 2_f64.powi(-12);
        let Ok(device) = crate::DeviceChoice::Cuda(0).open() else {
            let x = Tensor::ones([1, 1, 2, 2], (Kind::Float, Device::Cpu));
            assert!(!may_be_tf32(&x, &x, None), "a processor has no TF32");
            return;
        };
        let options = (Kind::Float, device);
        let layer =
            Conv2d { weight: Tensor::ones([64, 64, 3, 3], options), bias: None, stride: 1, padding: 0 };
        let x = Tensor::full([4, 64, 32, 32], value, options);
        let off = (layer.forward(&x) - 576.0 * value).abs().max().double_value(&[]);
        assert!(off < 1e-2, "off by {off}: 576 times 2^-12 are 0.14");
    }
}
