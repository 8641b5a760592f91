//! [`Decoder`]: layers in which queries look at each other, at the text and at the image, and correct their boxes.

use torch_nn::tch::{Kind, Tensor};
use torch_nn::{AttentionMask, LayerNorm, Scope};

use super::GroundingDinoConfig;
use super::attention::MultiheadAttention;
use super::deformable::DeformableAttention;
use super::encoder::{Encoded, Mlp};
use super::features::FeatureMaps;
use super::heads::{PredictionHead, class_logits};
use super::positions;
use super::text::TextBatch;

/// By how much a box has to be off 0 and 1 before it is made a logit.
const LOGIT_EPSILON: f64 = 1e-5;

/// What the decoder makes of queries.
#[derive(Debug)]
pub struct Decoded {
    /// By layer: what comes out of it, normalised, `[n, queries, d_model]`.
    pub hidden: Vec<Tensor>,
    /// By layer: the boxes it starts from (centre x, y, width, height as shares of the image), `[n, queries, 4]`, f32.
    pub reference: Vec<Tensor>,
    /// How well queries fit tokens, `[n, queries, tokens]`, f32; -∞ for filling.
    pub logits: Tensor,
    /// Their boxes, as shares of the image without filling: centre x, y, width, height, `[n, queries, 4]`, f32.
    pub boxes: Tensor,
}

/// The decoder.
#[derive(Debug)]
pub(super) struct Decoder {
    layers: Vec<Layer>,
    norm: LayerNorm,
    /// Embeddings of boxes to those of places.
    place_head: PredictionHead,
}

#[derive(Debug)]
struct Layer {
    itself: MultiheadAttention,
    itself_norm: LayerNorm,
    text: MultiheadAttention,
    text_norm: LayerNorm,
    vision: DeformableAttention,
    vision_norm: LayerNorm,
    mlp: Mlp,
}

impl Decoder {
    pub(super) fn load(scope: &Scope<'_>, config: &GroundingDinoConfig) -> Self {
        let width = config.d_model as i64;
        let load = |index: usize| Layer::load(&scope.sub(format!("layers.{index}")), config);
        Self {
            layers: (0..config.decoder_layers).map(load).collect(),
            norm: LayerNorm::load(&scope.sub("layer_norm"), width, config.layer_norm_eps),
            place_head: PredictionHead::load(&scope.sub("reference_points_head"), &[2 * width, width, width]),
        }
    }

    /// Runs all layers on `queries [n, queries, d_model]` with boxes `reference [n, queries, 4]` (f32). `heads` are those for
    /// boxes, one for each layer or one for all.
    pub(super) fn forward(
        &self,
        queries: &Tensor,
        reference: Tensor,
        encoded: &Encoded,
        maps: &FeatureMaps,
        texts: &TextBatch,
        heads: &[PredictionHead],
    ) -> Decoded {
        let head = |layer: usize| heads.get(layer).unwrap_or(&heads[0]);
        let ratios = maps.valid_ratios();
        let ratios = Tensor::cat(&[&ratios, &ratios], -1).unsqueeze(1);
        let text_mask = texts.without_filling();
        let mut state = queries.shallow_clone();
        let (mut hidden, mut references) = (Vec::new(), vec![reference]);
        for (index, layer) in self.layers.iter().enumerate() {
            let boxes = &references[index];
            // [n, queries, maps, 4]: the boxes as shares of the maps with their filling.
            let placed = boxes.unsqueeze(2) * &ratios;
            let embedded = positions::of_boxes(&placed.select(2, 0), queries.size()[2] / 2);
            let places = self.place_head.forward(&embedded.to_kind(queries.kind()));
            state = layer.forward(&state, &places, &placed, encoded, maps, &text_mask);
            hidden.push(self.norm.forward(&state));
            if index + 1 < self.layers.len() {
                let corrected = corrected(&head(index).forward(&state), boxes);
                references.push(corrected);
            }
        }
        let last = self.layers.len() - 1;
        let boxes = corrected(&head(last).forward(&hidden[last]), &references[last]);
        let logits = class_logits(&hidden[last], &encoded.text, texts);
        Decoded { hidden, reference: references, logits, boxes }
    }
}

/// `boxes` (shares), moved by `deltas` (logits).
fn corrected(deltas: &Tensor, boxes: &Tensor) -> Tensor {
    (deltas.to_kind(Kind::Float) + boxes.logit(LOGIT_EPSILON)).sigmoid()
}

impl Layer {
    fn load(scope: &Scope<'_>, config: &GroundingDinoConfig) -> Self {
        let (width, heads) = (config.d_model as i64, config.decoder_attention_heads as i64);
        let norm = |name: &str| LayerNorm::load(&scope.sub(name), width, config.layer_norm_eps);
        let attention = |name: &str| MultiheadAttention::load(&scope.sub(name), width, heads);
        let (levels, points) = (config.num_feature_levels as i64, config.decoder_n_points as i64);
        Self {
            itself: attention("self_attn"),
            itself_norm: norm("self_attn_layer_norm"),
            text: attention("encoder_attn_text"),
            text_norm: norm("encoder_attn_text_layer_norm"),
            vision: DeformableAttention::load(&scope.sub("encoder_attn"), width, levels, heads, points),
            vision_norm: norm("encoder_attn_layer_norm"),
            mlp: Mlp::load(scope, config, config.decoder_ffn_dim, "final_layer_norm"),
        }
    }

    fn forward(
        &self,
        queries: &Tensor,
        places: &Tensor,
        reference: &Tensor,
        encoded: &Encoded,
        maps: &FeatureMaps,
        text_mask: &AttentionMask,
    ) -> Tensor {
        let placed = queries + places;
        let mixed = self.itself.forward(&placed, &placed, queries, &AttentionMask::Full);
        let queries = self.itself_norm.forward(&(queries + mixed));
        let text = &encoded.text;
        let mixed = self.text.forward(&(&queries + places), text, text, text_mask);
        let queries = self.text_norm.forward(&(&queries + mixed));
        let mixed = self.vision.forward(&(&queries + places), &encoded.vision, maps, reference);
        self.mlp.forward(&self.vision_norm.forward(&(&queries + mixed)))
    }
}
