//! [`ImageEncoder`]: a vision transformer whose layers attend within windows, but for a few, and its neck.

use torch_nn::tch::Tensor;
use torch_nn::{Activation, Conv2d, LayerNorm, Linear, Scope};

use super::attention::ImageAttention;
use super::config::SamVisionConfig;
use crate::encoder_layer::activation;

/// Epsilon of the neck's norms, and of the mask decoder's upscaling; no configuration says it.
pub(super) const CHANNEL_NORM_EPSILON: f64 = 1e-6;

/// Rows of an MLP's input that are worked on at once: what lies between its matrices stays in the processor's cache.
const MLP_ROWS: i64 = 2048;

/// Makes the image embedding. It knows no prompt.
#[derive(Debug)]
pub struct ImageEncoder {
    patches: Conv2d,
    /// `[1, grid, grid, width]`.
    positions: Option<Tensor>,
    layers: Vec<Layer>,
    neck: Neck,
    image_size: i64,
    channels: i64,
}

#[derive(Debug)]
struct Layer {
    norm1: LayerNorm,
    attention: ImageAttention,
    norm2: LayerNorm,
    widen: Linear,
    activation: Activation,
    narrow: Linear,
}

/// From the transformer's width to the embedding's channels, and once over each patch's neighbours.
#[derive(Debug)]
struct Neck {
    /// A convolution of one pixel.
    reduce: Linear,
    norm1: LayerNorm,
    conv: Conv2d,
    norm2: LayerNorm,
}

impl ImageEncoder {
    /// Takes `patch_embed`, `pos_embed`, `layers` and `neck` from a checkpoint's `vision_encoder`.
    pub fn load(scope: &Scope<'_>, config: &SamVisionConfig) -> Self {
        let (width, patch, grid) =
            (config.hidden_size as i64, config.patch_size as i64, config.grid() as i64);
        let channels = config.num_channels as i64;
        let patches = Conv2d::load(&scope.sub("patch_embed.projection"), channels, width, patch, true);
        let layers = scope.sub("layers");
        let layer = |index: usize| Layer::load(&layers.sub(index.to_string()), config, index);
        Self {
            patches: patches.stride(patch),
            positions: config.use_abs_pos.then(|| scope.tensor("pos_embed", &[1, grid, grid, width])),
            layers: (0..config.num_hidden_layers).map(layer).collect(),
            neck: Neck::load(&scope.sub("neck"), width, config.output_channels as i64),
            image_size: config.image_size as i64,
            channels,
        }
    }

    /// Maps pixels `[n, 3, side, side]` to `[n, channels, grid, grid]`, in the dtype of the weights.
    ///
    /// # Panics
    /// When the pixels have another shape.
    #[track_caller]
    pub fn forward(&self, pixels: &Tensor) -> Tensor {
        let (size, side) = (pixels.size(), self.image_size);
        assert!(
            size.len() == 4 && size[1..] == [self.channels, side, side],
            "pixels {size:?} given to an encoder for [n, {}, {side}, {side}]",
            self.channels
        );
        let mut hidden = self.patches.forward(pixels).permute([0, 2, 3, 1]).contiguous();
        if let Some(positions) = &self.positions {
            hidden += positions;
        }
        for layer in &self.layers {
            hidden = layer.forward(&hidden);
        }
        self.neck.forward(&hidden)
    }
}

impl Layer {
    fn load(scope: &Scope<'_>, config: &SamVisionConfig, index: usize) -> Self {
        let (width, inner) = (config.hidden_size as i64, config.mlp_dim as i64);
        let norm = |name| LayerNorm::load(&scope.sub(name), width, config.layer_norm_eps);
        Self {
            norm1: norm("layer_norm1"),
            attention: ImageAttention::load(&scope.sub("attn"), config, index),
            norm2: norm("layer_norm2"),
            widen: Linear::load(&scope.sub("mlp.lin1"), width, inner, true),
            activation: activation(config.hidden_act),
            narrow: Linear::load(&scope.sub("mlp.lin2"), inner, width, true),
        }
    }

    /// `[n, rows, columns, width]` to the same.
    fn forward(&self, hidden: &Tensor) -> Tensor {
        let hidden = hidden + self.attention.forward(&self.norm1.forward(hidden));
        self.with_mlp(&hidden, MLP_ROWS)
    }

    /// `[.., width]` and what the MLP makes of it, which looks at so many rows at once.
    fn with_mlp(&self, hidden: &Tensor, rows_at_once: i64) -> Tensor {
        let size = hidden.size();
        let rows = hidden.view([-1, size[size.len() - 1]]);
        let parts: Vec<Tensor> = rows
            .split(rows_at_once, 0)
            .iter()
            .map(|rows| {
                let wide = self.activation.forward(&self.widen.forward_rows(&self.norm2.forward(rows)));
                rows + self.narrow.forward_rows(&wide)
            })
            .collect();
        Tensor::cat(&parts, 0).view(size.as_slice())
    }
}

impl Neck {
    fn load(scope: &Scope<'_>, width: i64, channels: i64) -> Self {
        let norm = |name| LayerNorm::load(&scope.sub(name), channels, CHANNEL_NORM_EPSILON);
        let reduce = scope.sub("conv1").tensor("weight", &[channels, width, 1, 1]);
        Self {
            reduce: Linear::new(reduce.flatten(1, 3), None),
            norm1: norm("layer_norm1"),
            conv: Conv2d::load(&scope.sub("conv2"), channels, channels, 3, false).padding(1),
            norm2: norm("layer_norm2"),
        }
    }

    /// `[n, rows, columns, width]` to `[n, channels, rows, columns]`.
    fn forward(&self, hidden: &Tensor) -> Tensor {
        let reduced = self.norm1.forward(&self.reduce.forward_rows(hidden));
        let seen = self.conv.forward(&reduced.permute([0, 3, 1, 2]).contiguous());
        self.norm2.forward(&seen.permute([0, 2, 3, 1])).permute([0, 3, 1, 2]).contiguous()
    }
}

#[cfg(test)]
mod tests {
    use torch_nn::Weights;
    use torch_nn::tch::{Device, Kind};

    use super::*;

    #[test]
    fn the_mlp_does_not_depend_on_how_many_rows_come_at_once() {
        torch_nn::tch::manual_seed(4);
        let options = (Kind::Float, Device::Cpu);
        let config = SamVisionConfig {
            hidden_size: 12,
            mlp_dim: 20,
            num_attention_heads: 2,
            image_size: 64,
            ..SamVisionConfig::default()
        };
        let shapes = Weights::asked_for(|scope| drop(Layer::load(scope, &config, 0)));
        let random = |(name, shape): (String, Vec<i64>)| (name, Tensor::randn(shape, options));
        let weights = Weights::from_tensors(shapes.into_iter().map(random).collect());
        let layer = Layer::load(&weights.root(), &config, 0);
        weights.finish().unwrap();
        let hidden = Tensor::randn([1, 30, 20, 12], options);
        let wide = layer.activation.forward(&layer.widen.forward(&layer.norm2.forward(&hidden)));
        let expected = &hidden + layer.narrow.forward(&wide);
        // In one part; in parts of which the last is smaller, on the fast way for 256 rows and more and on the other.
        for rows_at_once in [600, 256, 7] {
            let got = layer.with_mlp(&hidden, rows_at_once);
            assert_eq!(got.size(), hidden.size());
            let error = ((got - &expected).abs().max() / expected.abs().max()).double_value(&[]);
            assert!(error < 1e-5, "{rows_at_once} rows at once: off by {error:.1e}");
        }
    }
}
