//! [`FusionLayer`]: image and text look at each other.

use torch_nn::tch::{Kind, Tensor};
use torch_nn::{LayerNorm, Scope};

use super::GroundingDinoConfig;
use super::features::FeatureMaps;
use super::text::TextBatch;

/// Attention both ways from one matrix of scores, added to the normalised inputs.
///
/// With projections `Wq, Wk, Wv, Wu, Wo` (image to query and value, text to key and value, out to the image), one head, scale
/// `s` and `x`, `t` for image and text, transformers' `GroundingDinoBiMultiHeadAttention` computes
///
/// ```text
/// scores S = s (x Wqᵀ + bq)(t Wkᵀ + bk)ᵀ,   image: softmax(S) (t Wuᵀ + bu) Woᵀ + bo,   text: softmax(Sᵀ) (x Wvᵀ + bv)
/// ```
///
/// An image has some ten thousand places and a text a handful of tokens, so that products are taken in the order that
/// never projects `x`: `S = x K₁ᵀ + c` with `K₁ = s (t Wkᵀ + bk) Wq` and `c = s (t Wkᵀ + bk) bq`; the image's is
/// `softmax(S) ((t Wuᵀ + bu) Woᵀ) + bo`; and as the rows of a softmax have the sum 1, the text's is
/// `(softmax(Sᵀ) x) Wvᵀ + bv`. For d_model 256, width 1024 and 5 tokens that is 1/50 of the operations, for 256 tokens as
/// many. transformers also clamps scores to within 50,000 of the batch's largest, which only rows notice that lie wholly below.
#[derive(Debug)]
pub(super) struct FusionLayer {
    vision_norm: LayerNorm,
    text_norm: LayerNorm,
    vision_query: Projection,
    vision_value: Projection,
    text_key: Projection,
    text_value: Projection,
    vision_output: Projection,
    text_output: Projection,
    /// What is multiplied to the results before they are added, `[d_model]`.
    vision_scale: Tensor,
    text_scale: Tensor,
    heads: i64,
}

/// The matrix `[outputs, inputs]` and bias `[outputs]` of a linear layer, to be taken apart by head.
#[derive(Debug)]
struct Projection {
    weight: Tensor,
    bias: Tensor,
}

impl Projection {
    fn load(scope: &Scope<'_>, inputs: i64, outputs: i64) -> Self {
        Self { weight: scope.tensor("weight", &[outputs, inputs]), bias: scope.tensor("bias", &[outputs]) }
    }

    fn forward(&self, x: &Tensor) -> Tensor {
        x.linear(&self.weight, Some(&self.bias))
    }

    /// `[n, m, inputs]` to `[n, heads, m, outputs / heads]`.
    fn by_head(&self, x: &Tensor, heads: i64) -> Tensor {
        torch_nn::split_heads(&self.forward(x), self.weight.size()[0] / heads)
    }

    /// The weight as `[heads, outputs / heads, inputs]`.
    fn rows(&self, heads: i64) -> Tensor {
        self.weight.view([heads, -1, self.weight.size()[1]])
    }
}

impl FusionLayer {
    pub(super) fn load(scope: &Scope<'_>, config: &GroundingDinoConfig) -> Self {
        let (width, inner) = (config.d_model as i64, config.encoder_ffn_dim as i64 / 2);
        let norm = |name: &str| LayerNorm::load(&scope.sub(name), width, config.layer_norm_eps);
        let attention = scope.sub("attn");
        let inward = |name: &str| Projection::load(&attention.sub(name), width, inner);
        let outward = |name: &str| Projection::load(&attention.sub(name), inner, width);
        Self {
            vision_norm: norm("layer_norm_vision"),
            text_norm: norm("layer_norm_text"),
            vision_query: inward("vision_proj"),
            vision_value: inward("values_vision_proj"),
            text_key: inward("text_proj"),
            text_value: inward("values_text_proj"),
            vision_output: outward("out_vision_proj"),
            text_output: outward("out_text_proj"),
            vision_scale: scope.tensor("vision_param", &[width]),
            text_scale: scope.tensor("text_param", &[width]),
            heads: config.encoder_attention_heads as i64 / 2,
        }
    }

    /// What `vision [n, places, d_model]` and `text [n, tokens, d_model]` become, in the same shapes.
    pub(super) fn forward(
        &self,
        vision: &Tensor,
        text: &Tensor,
        maps: &FeatureMaps,
        texts: &TextBatch,
    ) -> (Tensor, Tensor) {
        let (vision, text) = (self.vision_norm.forward(vision), self.text_norm.forward(text));
        let (n, places, width) = (vision.size()[0], vision.size()[1], vision.size()[2]);
        let (heads, tokens) = (self.heads, text.size()[1]);
        let columns = heads * tokens;

        let keys = self.text_key.by_head(&text, heads);
        let keys = &keys * (keys.size()[3] as f64).powf(-0.5);
        // K₁ [n, heads · tokens, d_model] and c [n, 1, heads · tokens].
        let folded = keys.matmul(&self.vision_query.rows(heads)).view([n, columns, width]);
        let constant = keys.matmul(&self.vision_query.bias.view([heads, -1, 1])).view([n, 1, columns]);
        let scores = (vision.matmul(&folded.transpose(1, 2)) + constant).to_kind(Kind::Float);

        let mut towards_text = scores.view([n, places, heads, tokens]);
        if texts.has_filling {
            let filling = texts.mask.logical_not().view([n, 1, 1, tokens]);
            towards_text = towards_text.masked_fill(&filling, f64::NEG_INFINITY);
        }
        let shares = towards_text.softmax(-1, None).to_kind(vision.kind()).view([n, places, columns]);
        let seen = self.text_value.by_head(&text, heads);
        // The columns of Wo that belong to each head, [heads, head_dim, d_model].
        let output = self.vision_output.weight.transpose(0, 1).reshape([heads, -1, width]);
        let seen = seen.matmul(&output).view([n, columns, width]);
        let to_vision = shares.matmul(&seen) + &self.vision_output.bias;

        let mut towards_vision = scores.transpose(1, 2);
        if maps.has_filling {
            towards_vision = towards_vision.masked_fill(&maps.filling().unsqueeze(1), f64::NEG_INFINITY);
        }
        let shares = towards_vision.contiguous().softmax(-1, None).to_kind(vision.kind());
        let seen = shares.matmul(&vision).view([n, heads, tokens, width]);
        let values = self.vision_value.rows(heads).transpose(1, 2);
        let bias = self.vision_value.bias.view([heads, 1, -1]);
        let to_text = self.text_output.forward(&torch_nn::merge_heads(&(seen.matmul(&values) + bias)));

        (vision + to_vision * &self.vision_scale, text + to_text * &self.text_scale)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use torch_nn::Weights;
    use torch_nn::tch::Device;

    use super::*;

    /// The formula as it is written, with every projection.
    fn plainly(
        layer: &FusionLayer,
        vision: &Tensor,
        text: &Tensor,
        maps: &FeatureMaps,
        texts: &TextBatch,
    ) -> (Tensor, Tensor) {
        let (vision, text) = (layer.vision_norm.forward(vision), layer.text_norm.forward(text));
        let heads = layer.heads;
        let query = layer.vision_query.by_head(&vision, heads);
        let key = layer.text_key.by_head(&text, heads);
        let scores = query.matmul(&key.transpose(2, 3)) * (key.size()[3] as f64).powf(-0.5);
        let no_text = texts.mask.logical_not().unsqueeze(1).unsqueeze(1);
        let no_vision = maps.filling().unsqueeze(1).unsqueeze(1);
        let to_vision = scores.masked_fill(&no_text, f64::NEG_INFINITY).softmax(-1, None);
        let to_vision = to_vision.matmul(&layer.text_value.by_head(&text, heads));
        let to_text = scores.transpose(2, 3).masked_fill(&no_vision, f64::NEG_INFINITY).softmax(-1, None);
        let to_text = to_text.matmul(&layer.vision_value.by_head(&vision, heads));
        let to_vision = layer.vision_output.forward(&torch_nn::merge_heads(&to_vision));
        let to_text = layer.text_output.forward(&torch_nn::merge_heads(&to_text));
        (vision + to_vision * &layer.vision_scale, text + to_text * &layer.text_scale)
    }

    #[test]
    fn the_short_way_gives_what_the_long_one_does() {
        torch_nn::tch::manual_seed(6);
        let options = (Kind::Float, Device::Cpu);
        let config = GroundingDinoConfig {
            d_model: 32,
            encoder_ffn_dim: 48,
            encoder_attention_heads: 6,
            ..GroundingDinoConfig::default()
        };
        let shapes = Weights::asked_for(|scope| drop(FusionLayer::load(scope, &config)));
        let tensors: BTreeMap<String, Tensor> =
            shapes.into_iter().map(|(name, shape)| (name, Tensor::randn(shape, options) * 0.5)).collect();
        let weights = Weights::from_tensors(tensors);
        let layer = FusionLayer::load(&weights.root(), &config);
        weights.finish().unwrap();
        let (vision, text) = (Tensor::randn([2, 20, 32], options), Tensor::randn([2, 6, 32], options));
        let texts =
            TextBatch::of_ids(vec![vec![101, 5, 6, 7, 1012, 102], vec![101, 5, 1012, 102]], 0, Device::Cpu);
        let mask = Tensor::ones([2, 20], (Kind::Bool, Device::Cpu));
        let _ = mask.get(1).narrow(0, 12, 8).fill_(0);
        let maps = FeatureMaps {
            tokens: vision.shallow_clone(),
            positions: vision.shallow_clone(),
            has_filling: true,
            mask,
            shapes: vec![(4, 5)],
            extents: Tensor::ones([2, 1, 2], options),
        };
        let got = layer.forward(&vision, &text, &maps, &texts);
        let wanted = plainly(&layer, &vision, &text, &maps, &texts);
        for (got, wanted) in [(got.0, wanted.0), (got.1, wanted.1)] {
            let off = (&got - &wanted).abs().max().double_value(&[]);
            let scale = wanted.abs().max().double_value(&[]);
            assert!(off < 1e-5 * scale, "{off:.1e} of {scale}");
        }
    }
}
