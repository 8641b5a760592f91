//! [`Activation`]: the pointwise functions between matrices.

use tch::Tensor;

/// A pointwise function, as `hidden_act` of a Hugging Face configuration names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// `x · sigmoid(x)`: `silu`, `swish`.
    Silu,
    /// The exact GELU by the error function: `gelu`.
    Gelu,
    /// GELU by its tanh form: `gelu_new`, `gelu_pytorch_tanh`.
    GeluTanh,
    /// `x · sigmoid(1.702 x)`: `quick_gelu`.
    QuickGelu,
    /// `max(x, 0)`: `relu`.
    Relu,
}

impl Activation {
    /// Applies the function to every element; shape and dtype stay.
    pub fn forward(self, x: &Tensor) -> Tensor {
        match self {
            Self::Silu => x.silu(),
            Self::Gelu => x.gelu("none"),
            Self::GeluTanh => x.gelu("tanh"),
            Self::QuickGelu => x * (x * 1.702).sigmoid(),
            Self::Relu => x.relu(),
        }
    }
}
