//! [`MaskDecoder`]: from an image embedding and the tokens of prompts to masks and how good they are.

use torch_nn::tch::Tensor;
use torch_nn::{Activation, ConvTranspose2d, LayerNorm, Linear, Scope};

use super::config::SamMaskDecoderConfig;
use super::encoder::CHANNEL_NORM_EPSILON;
use super::transformer::TwoWayTransformer;

/// Makes masks at a quarter of the canvas's size.
#[derive(Debug)]
pub struct MaskDecoder {
    /// `[1, width]`.
    iou_token: Tensor,
    /// `[masks, width]`.
    mask_tokens: Tensor,
    transformer: TwoWayTransformer,
    upscale: Upscale,
    /// One for each mask.
    hypernetworks: Vec<FeedForward>,
    iou_head: FeedForward,
}

/// Linear layers with ReLU between them.
#[derive(Debug)]
struct FeedForward {
    layers: Vec<Linear>,
}

/// From the patches' size to four times as much.
#[derive(Debug)]
struct Upscale {
    first: ConvTranspose2d,
    norm: LayerNorm,
    second: ConvTranspose2d,
}

impl MaskDecoder {
    /// Takes a checkpoint's `mask_decoder`.
    pub fn load(scope: &Scope<'_>, config: &SamMaskDecoderConfig) -> Self {
        let width = config.hidden_size as i64;
        let masks = config.num_multimask_outputs as i64 + 1;
        let tokens = |name: &str, rows| scope.sub(name).tensor("weight", &[rows, width]);
        let hypernetworks = scope.sub("output_hypernetworks_mlps");
        let hypernetwork =
            |mask: i64| FeedForward::load(&hypernetworks.sub(mask.to_string()), width, width, width / 8, 3);
        let iou_head = scope.sub("iou_prediction_head");
        let iou_width = config.iou_head_hidden_dim as i64;
        Self {
            iou_token: tokens("iou_token", 1),
            mask_tokens: tokens("mask_tokens", masks),
            transformer: TwoWayTransformer::load(&scope.sub("transformer"), config),
            upscale: Upscale::load(scope, width),
            hypernetworks: (0..masks).map(hypernetwork).collect(),
            iou_head: FeedForward::load(&iou_head, width, iou_width, masks, config.iou_head_depth),
        }
    }

    /// Scores of masks `[prompts, masks, 4 · rows, 4 · columns]`, positive where a mask is, and the IoU each is thought to have
    /// `[prompts, masks]`: one mask per prompt, or with `multimask` the several that a prompt may mean.
    ///
    /// Of an image embedding `[1, width, rows, columns]`, the encodings of its places `[1, rows · columns, width]`, the
    /// prompts' tokens `[prompts, tokens, width]` and what is added to the image `[1, width, rows, columns]`.
    ///
    /// # Panics
    /// When the image embedding is not one image's; libtorch does where other shapes do not fit.
    #[track_caller]
    pub fn forward(
        &self,
        image: &Tensor,
        places: &Tensor,
        sparse: &Tensor,
        dense: &Tensor,
        multimask: bool,
    ) -> (Tensor, Tensor) {
        let (size, prompts) = (image.size(), sparse.size()[0]);
        let width = self.iou_token.size()[1];
        assert!(
            size.len() == 4 && size[..2] == [1, width],
            "an image embedding {size:?} given to a mask decoder for [1, {width}, rows, columns]"
        );
        let own = |tokens: &Tensor| tokens.unsqueeze(0).expand([prompts, -1, -1], false);
        // First the token that becomes the IoU, then one for each mask.
        let tokens = Tensor::cat(&[&own(&self.iou_token), &own(&self.mask_tokens), sparse], 1);
        let image = (image + dense).flatten(2, 3).transpose(1, 2).contiguous();
        let (tokens, image) = self.transformer.forward(&tokens, &image, places);

        let chosen = if multimask { 1..self.hypernetworks.len() } else { 0..1 };
        let factors: Vec<Tensor> = chosen
            .clone()
            .map(|mask| self.hypernetworks[mask].forward(&tokens.select(1, mask as i64 + 1)))
            .collect();
        let image = self.upscale.forward(&image.transpose(1, 2).reshape([prompts, width, size[2], size[3]]));
        let masks = Tensor::stack(&factors, 1).matmul(&image.flatten(2, 3));
        let masks = masks.view([prompts, chosen.len() as i64, 4 * size[2], 4 * size[3]]);
        let scores = self.iou_head.forward(&tokens.select(1, 0));
        (masks, scores.narrow(1, chosen.start as i64, chosen.len() as i64))
    }
}

impl FeedForward {
    fn load(scope: &Scope<'_>, inputs: i64, inner: i64, outputs: i64, depth: usize) -> Self {
        let mut layers = vec![Linear::load(&scope.sub("proj_in"), inputs, inner, true)];
        let middle = scope.sub("layers");
        layers.extend(
            (0..depth - 2).map(|index| Linear::load(&middle.sub(index.to_string()), inner, inner, true)),
        );
        layers.push(Linear::load(&scope.sub("proj_out"), inner, outputs, true));
        Self { layers }
    }

    fn forward(&self, x: &Tensor) -> Tensor {
        let (last, before) = self.layers.split_last().expect("a first and a last layer");
        let x = before.iter().fold(x.shallow_clone(), |x, layer| layer.forward(&x).relu());
        last.forward(&x)
    }
}

impl Upscale {
    fn load(scope: &Scope<'_>, width: i64) -> Self {
        let norm = scope.sub("upscale_layer_norm");
        Self {
            first: ConvTranspose2d::load(&scope.sub("upscale_conv1"), width, width / 4, 2),
            norm: LayerNorm::load(&norm, width / 4, CHANNEL_NORM_EPSILON),
            second: ConvTranspose2d::load(&scope.sub("upscale_conv2"), width / 4, width / 8, 2),
        }
    }

    /// `[n, width, rows, columns]` to `[n, width / 8, 4 · rows, 4 · columns]`.
    fn forward(&self, image: &Tensor) -> Tensor {
        let by_channel = self.norm.forward(&self.first.forward(image).permute([0, 2, 3, 1]));
        let x = Activation::Gelu.forward(&by_channel.permute([0, 3, 1, 2]));
        Activation::Gelu.forward(&self.second.forward(&x))
    }
}
