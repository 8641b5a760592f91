//! Rotary position embeddings: [`Rope`] holds the frequencies, [`RotaryTable`] the angles of given positions.

use std::f64::consts::PI;

use tch::{Device, Kind, Tensor};

/// How frequencies are stretched for longer contexts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum RopeScaling {
    /// Not at all.
    None,
    /// Every frequency divided by `factor`.
    Linear {
        /// How much longer the context gets.
        factor: f64,
    },
    /// Llama 3.1: low frequencies divided by `factor`, high ones kept, those between interpolated.
    Llama3 {
        /// How much longer the context gets.
        factor: f64,
        /// `original context / low_freq_factor` is the wavelength above which frequencies are divided.
        low_freq_factor: f64,
        /// `original context / high_freq_factor` is the wavelength below which frequencies are kept.
        high_freq_factor: f64,
        /// The context length of pretraining.
        original_max_position_embeddings: f64,
    },
}

/// The inverse frequencies of a rotary embedding, `[head_dim / 2]`, f32.
#[derive(Debug)]
pub struct Rope {
    inverse_frequencies: Tensor,
}

/// Cosines and sines for the positions of one batch, each `[batch, 1, tokens, head_dim]`.
#[derive(Debug)]
pub struct RotaryTable {
    cos: Tensor,
    sin: Tensor,
}

impl Rope {
    /// Computes the frequencies `theta^(-2i / head_dim)`, scaled.
    ///
    /// The operations and their order in f32 are transformers' (`modeling_rope_utils.py`): an ulp in a frequency is
    /// a visible angle at position 3000.
    pub fn new(head_dim: i64, theta: f64, scaling: RopeScaling, device: Device) -> Self {
        let exponents = Tensor::arange_start_step(0, head_dim, 2, (Kind::Int64, Device::Cpu))
            .to_kind(Kind::Float)
            / head_dim as f64;
        let plain = Tensor::pow_scalar(theta, &exponents).reciprocal();
        let scaled = match scaling {
            RopeScaling::None => plain,
            RopeScaling::Linear { factor } => plain / factor,
            RopeScaling::Llama3 {
                factor,
                low_freq_factor,
                high_freq_factor,
                original_max_position_embeddings: context,
            } => {
                let wavelength = plain.reciprocal() * (2.0 * PI);
                let is_long = wavelength.gt(context / low_freq_factor);
                let is_short = wavelength.lt(context / high_freq_factor);
                let stretched = (&plain / factor).where_self(&is_long, &plain);
                let smooth = (wavelength.reciprocal() * context - low_freq_factor)
                    / (high_freq_factor - low_freq_factor);
                let rest: Tensor = 1.0 - &smooth;
                let between: Tensor = rest * &stretched / factor + smooth * &stretched;
                let is_between = is_short.logical_not().logical_and(&is_long.logical_not());
                between.where_self(&is_between, &stretched)
            }
        };
        Self { inverse_frequencies: scaled.to_device(device) }
    }

    /// The angles of `positions [batch, tokens]` (i64), computed in f32.
    pub fn table(&self, positions: &Tensor) -> RotaryTable {
        let angles = positions.to_kind(Kind::Float).unsqueeze(-1) * &self.inverse_frequencies;
        let angles = Tensor::cat(&[&angles, &angles], -1).unsqueeze(1);
        RotaryTable { cos: angles.cos(), sin: angles.sin() }
    }
}

impl RotaryTable {
    /// The same angles rounded to `kind`, the dtype of the queries and keys they will meet.
    #[must_use]
    pub fn to_kind(&self, kind: Kind) -> Self {
        Self { cos: self.cos.to_kind(kind), sin: self.sin.to_kind(kind) }
    }

    /// Rotates queries or keys `[batch, heads, tokens, head_dim]`.
    pub fn rotate(&self, x: &Tensor) -> Tensor {
        let halves = x.chunk(2, -1);
        x * &self.cos + Tensor::cat(&[-&halves[1], halves[0].shallow_clone()], -1) * &self.sin
    }
}
