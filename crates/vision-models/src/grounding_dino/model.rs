//! [`GroundingDinoModel`]: the network, from pixels and tokens to boxes, in stages.

use std::collections::BTreeMap;

use torch_nn::tch::{Kind, Tensor};
use torch_nn::{LayerNorm, Linear, Scope, Weights};

use super::GroundingDinoConfig;
use super::decoder::{Decoded, Decoder};
use super::encoder::{Encoded, Encoder};
use super::features::{FeatureMaps, InputProjections};
use super::heads::{PredictionHead, class_logits, load_box_heads};
use super::processor::ImageBatch;
use super::text::TextBatch;
use crate::bert::Bert;
use crate::swin::Swin;

/// Side of the boxes that are proposed on the finest map, as a share of the image; it doubles from map to map.
const PROPOSED_SIDE: f64 = 0.05;
/// Proposals that reach nearer than this to the edge of the image are none.
const EDGE: f64 = 0.01;

/// GroundingDINO's network, as transformers 4.57's `GroundingDinoForObjectDetection` computes it when it is not trained.
///
/// [`GroundingDinoModel::forward`] runs all stages; each can be run on its own. What they compute is differentiable.
#[derive(Debug)]
pub struct GroundingDinoModel {
    backbone: Swin,
    projections: InputProjections,
    text_backbone: Bert,
    text_projection: Linear,
    encoder: Encoder,
    proposal_projection: Linear,
    proposal_norm: LayerNorm,
    proposal_head: PredictionHead,
    /// `[num_queries, d_model]`.
    queries: Tensor,
    decoder: Decoder,
    box_heads: Vec<PredictionHead>,
}

/// The places of the feature maps that become queries.
#[derive(Debug)]
pub struct Selection {
    /// Their numbers, best first, ties by number: `[n, num_queries]`, i64.
    pub places: Tensor,
    /// Boxes proposed there (centre x, y, width, height as shares of the image), `[n, num_queries, 4]`, f32.
    pub boxes: Tensor,
}

impl GroundingDinoModel {
    /// Takes the network from the root of a checkpoint.
    pub fn load(root: &Scope<'_>, config: &GroundingDinoConfig) -> Self {
        let width = config.d_model as i64;
        let scope = root.sub("model");
        let text_width = config.text_config.hidden_size as i64;
        Self {
            backbone: Swin::load(&scope.sub("backbone.conv_encoder.model"), &config.backbone_config),
            projections: InputProjections::load(&scope, config),
            text_backbone: Bert::load(&scope.sub("text_backbone"), &config.text_config),
            text_projection: Linear::load(&scope.sub("text_projection"), text_width, width, true),
            encoder: Encoder::load(&scope.sub("encoder"), config),
            proposal_projection: Linear::load(&scope.sub("enc_output"), width, width, true),
            proposal_norm: LayerNorm::load(&scope.sub("enc_output_norm"), width, config.layer_norm_eps),
            proposal_head: PredictionHead::load_boxes(&scope.sub("encoder_output_bbox_embed"), width),
            queries: scope.tensor("query_position_embeddings.weight", &[config.num_queries as i64, width]),
            decoder: Decoder::load(&scope.sub("decoder"), config),
            box_heads: load_box_heads(root, config),
        }
    }

    /// Queries of an image.
    pub fn num_queries(&self) -> i64 {
        self.queries.size()[0]
    }

    /// BERT's last hidden state, `[n, tokens, hidden_size]`.
    pub fn text_states(&self, texts: &TextBatch) -> Tensor {
        self.text_backbone.forward(&texts.tokens, &texts.positions, &texts.within_phrases())
    }

    /// The texts as the encoder sees them, `[n, tokens, d_model]`, of [`GroundingDinoModel::text_states`].
    pub fn project_text(&self, states: &Tensor) -> Tensor {
        self.text_projection.forward(states)
    }

    /// The backbone's feature maps `[n, channels, height, width]` of `pixels [n, 3, height, width]`, finest first.
    ///
    /// # Panics
    /// When the pixels have another shape.
    #[track_caller]
    pub fn backbone_maps(&self, pixels: &Tensor) -> Vec<Tensor> {
        self.backbone.forward(pixels)
    }

    /// All levels' maps in one width, `[n, d_model, height, width]` each, of [`GroundingDinoModel::backbone_maps`].
    ///
    /// # Panics
    /// When there are fewer maps than the backbone gives, or of other channels.
    pub fn project_maps(&self, maps: &[Tensor]) -> Vec<Tensor> {
        self.projections.project(maps)
    }

    /// The maps of [`GroundingDinoModel::project_maps`] as tokens; `mask [n, height, width]` (bool) says which pixels are image.
    ///
    /// # Panics
    /// When there are none, or the mask has another shape.
    pub fn lay_out(&self, projected: &[Tensor], mask: &Tensor) -> FeatureMaps {
        self.projections.lay_out(projected, mask)
    }

    /// Lets image and text look at each other; `observe` sees what comes out of each layer. `text` is that of
    /// [`GroundingDinoModel::project_text`].
    ///
    /// # Panics
    /// When maps, text and texts are not of one batch.
    pub fn encode(
        &self,
        maps: &FeatureMaps,
        text: &Tensor,
        texts: &TextBatch,
        observe: impl FnMut(usize, &Encoded),
    ) -> Encoded {
        self.encoder.forward(maps, text, texts, observe)
    }

    /// The places that fit a token best.
    ///
    /// # Panics
    /// When there are fewer places than queries.
    #[track_caller]
    pub fn select(&self, encoded: &Encoded, maps: &FeatureMaps, texts: &TextBatch) -> Selection {
        let (size, count) = (encoded.vision.size(), self.num_queries());
        assert!(size[1] >= count, "{} places in feature maps for {count} queries", size[1]);
        let (proposals, absent) = proposals(maps);
        let candidates = encoded.vision.masked_fill(&absent, 0.0);
        let candidates = self.proposal_norm.forward(&self.proposal_projection.forward(&candidates));
        let scores = class_logits(&candidates, &encoded.text, texts).amax(-1, false);
        let (_, order) = scores.sort_stable(true, 1, true);
        let places = order.narrow(1, 0, count).contiguous();
        let chosen = |x: &Tensor| {
            let index = places.unsqueeze(-1).expand([size[0], count, x.size()[2]], false);
            x.gather(1, &index, false)
        };
        // transformers computes boxes of all places and keeps these.
        let deltas = self.proposal_head.forward(&chosen(&candidates)).to_kind(Kind::Float);
        let boxes = (deltas + chosen(&proposals)).sigmoid();
        Selection { places, boxes }
    }

    /// What the selected queries find.
    ///
    /// # Panics
    /// When the arguments are not of one batch.
    pub fn decode(
        &self,
        selection: &Selection,
        encoded: &Encoded,
        maps: &FeatureMaps,
        texts: &TextBatch,
    ) -> Decoded {
        let n = selection.boxes.size()[0];
        let queries = self.queries.unsqueeze(0).expand([n, -1, -1], false);
        let reference = selection.boxes.shallow_clone();
        self.decoder.forward(&queries, reference, encoded, maps, texts, &self.box_heads)
    }

    /// Everything: the tokens that queries fit and their boxes, in one image and one text each.
    ///
    /// # Panics
    /// When there are not as many images as texts, or fewer places in their feature maps than queries.
    #[track_caller]
    pub fn forward(&self, images: &ImageBatch, texts: &TextBatch) -> Decoded {
        assert_eq!(images.len(), texts.ids.len(), "images and texts of a batch");
        let text = self.project_text(&self.text_states(texts));
        let projected = self.project_maps(&self.backbone_maps(&images.pixels));
        let maps = self.lay_out(&projected, &images.mask);
        drop(projected);
        let encoded = self.encode(&maps, &text, texts, |_, _| ());
        let selection = self.select(&encoded, &maps, texts);
        self.decode(&selection, &encoded, &maps, texts)
    }
}

/// One box around each place: its logits `[n, places, 4]` (f32, ∞ where there is none), and where there is none, because the
/// place is filling or too near the edge, `[n, places, 1]` (bool).
fn proposals(maps: &FeatureMaps) -> (Tensor, Tensor) {
    let centres = maps.relative_centres();
    let sides: Vec<f32> =
        (0..maps.shapes.len() as i32).map(|map| (PROPOSED_SIDE * 2_f64.powi(map)) as f32).collect();
    let sides = Tensor::from_slice(&sides).view([-1, 1]).to_device(centres.device());
    let sides = maps.by_place(&sides).unsqueeze(0).expand_as(&centres);
    let boxes = Tensor::cat(&[centres, sides], -1);
    let inside = boxes.gt(EDGE).logical_and(&boxes.lt(1.0 - EDGE)).all_dim(-1, true);
    let absent = inside.logical_and(&maps.mask.unsqueeze(-1)).logical_not();
    let logits = boxes.logit(None::<f64>);
    (logits.masked_fill(&absent, f64::INFINITY), absent)
}

/// Names and shapes of every tensor that transformers writes for this model, buffers aside.
pub fn parameter_shapes(config: &GroundingDinoConfig) -> BTreeMap<String, Vec<i64>> {
    Weights::asked_for(|root| drop(GroundingDinoModel::load(root, config)))
}

#[cfg(test)]
mod tests {
    use torch_nn::tch::Device;

    use super::*;

    /// Maps of this many rows and columns, of which so many columns are image.
    fn maps(shapes: &[(i64, i64)], columns: &[i64]) -> FeatureMaps {
        let options = (Kind::Float, Device::Cpu);
        let places: i64 = shapes.iter().map(|(rows, columns)| rows * columns).sum();
        let extents: Vec<f32> = shapes
            .iter()
            .zip(columns)
            .flat_map(|(&(rows, _), &columns)| [columns as f32, rows as f32])
            .collect();
        let mask: Vec<bool> = shapes
            .iter()
            .zip(columns)
            .flat_map(|(&(rows, all), &image)| (0..rows * all).map(move |place| place % all < image))
            .collect();
        FeatureMaps {
            tokens: Tensor::zeros([1, places, 1], options),
            positions: Tensor::zeros([1, places, 1], options),
            has_filling: mask.contains(&false),
            mask: Tensor::from_slice(&mask).view([1, places]),
            shapes: shapes.to_vec(),
            extents: Tensor::from_slice(&extents).view([1, -1, 2]),
        }
    }

    fn absent(maps: &FeatureMaps) -> Vec<i64> {
        let (logits, absent) = proposals(maps);
        // Where there is no box, all four numbers are ∞.
        assert!(logits.isinf().equal(&absent.expand_as(&logits)));
        Vec::try_from(absent.view([-1]).nonzero().view([-1])).unwrap()
    }

    #[test]
    fn boxes_too_near_the_edge_are_none() {
        // Centres at 0.5 / 60 = 0.0083, 0.025, .., 0.975, 0.9917 of the width.
        assert_eq!(absent(&maps(&[(1, 60)], &[60])), [0, 59]);
        assert_eq!(absent(&maps(&[(60, 1)], &[1])), [0, 59]);
        // 0.5 / 49 and 1 less it lie inside 0.01 and 0.99.
        assert!(absent(&maps(&[(1, 49)], &[49])).is_empty());
        // Of 55 columns that are image the last is at 54.5 / 55 = 0.9909, and beyond it is filling.
        assert_eq!(absent(&maps(&[(1, 60)], &[55])), [0, 54, 55, 56, 57, 58, 59]);
    }

    #[test]
    fn proposed_boxes_double_from_map_to_map_until_they_are_the_image() {
        // Sides 0.05, 0.1, .., 0.8; 1.6 is larger than the image.
        let maps = maps(&[(1, 1); 6], &[1; 6]);
        assert_eq!(absent(&maps), [5]);
        let boxes: Vec<Vec<f32>> = Vec::try_from(proposals(&maps).0.squeeze_dim(0).sigmoid()).unwrap();
        for (level, row) in boxes.iter().take(5).enumerate() {
            let side = 0.05 * 2_f32.powi(level as i32);
            for (got, wanted) in row.iter().zip([0.5, 0.5, side, side]) {
                assert!((got - wanted).abs() < 1e-6, "level {level}: {row:?}");
            }
        }
    }
}
