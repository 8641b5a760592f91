//! [`PredictionHead`] for boxes, and the class logits: how well places fit tokens.

use torch_nn::tch::{Kind, Tensor};
use torch_nn::{Linear, Scope};

use super::GroundingDinoConfig;
use super::text::TextBatch;

/// Linear layers with rectifiers between them.
#[derive(Debug)]
pub(super) struct PredictionHead {
    layers: Vec<Linear>,
}

impl PredictionHead {
    /// Takes `layers.0`, `layers.1`, .. of these widths.
    pub(super) fn load(scope: &Scope<'_>, widths: &[i64]) -> Self {
        let layer = |(index, pair): (usize, &[i64])| {
            Linear::load(&scope.sub(format!("layers.{index}")), pair[0], pair[1], true)
        };
        Self { layers: widths.windows(2).enumerate().map(layer).collect() }
    }

    /// A head for boxes: three layers, four numbers.
    pub(super) fn load_boxes(scope: &Scope<'_>, width: i64) -> Self {
        Self::load(scope, &[width, width, width, 4])
    }

    pub(super) fn forward(&self, x: &Tensor) -> Tensor {
        let last = self.layers.len() - 1;
        self.layers.iter().enumerate().fold(x.shallow_clone(), |x, (index, layer)| {
            let x = layer.forward(&x);
            if index < last { x.relu() } else { x }
        })
    }
}

/// The heads for boxes of all decoder layers, from the root of a checkpoint.
///
/// transformers holds each under two names, `bbox_embed.{layer}` and `model.decoder.bbox_embed.{layer}`, and one head under
/// those of all layers where it is shared; which of them a file has depends on the version that wrote it. The first found
/// counts, the others are the same.
pub(super) fn load_box_heads(root: &Scope<'_>, config: &GroundingDinoConfig) -> Vec<PredictionHead> {
    let width = config.d_model as i64;
    let names = |layer: usize| [format!("bbox_embed.{layer}"), format!("model.decoder.bbox_embed.{layer}")];
    let load = |candidates: Vec<String>| {
        let found = candidates.iter().find(|name| root.sub(name).contains("layers.0.weight"));
        let head = PredictionHead::load_boxes(&root.sub(found.unwrap_or(&candidates[0])), width);
        for name in &candidates {
            root.skip(name);
        }
        head
    };
    if config.decoder_bbox_embed_share {
        vec![load((0..config.decoder_layers).flat_map(names).collect())]
    } else {
        (0..config.decoder_layers).map(|layer| load(names(layer).to_vec())).collect()
    }
}

/// How well each of `vision [n, m, d_model]` fits each token of `text [n, tokens, d_model]`: `[n, m, tokens]` f32, -∞ for
/// filling.
pub(super) fn class_logits(vision: &Tensor, text: &Tensor, texts: &TextBatch) -> Tensor {
    let logits = vision.matmul(&text.transpose(1, 2)).to_kind(Kind::Float);
    if !texts.has_filling {
        return logits;
    }
    logits.masked_fill(&texts.mask.logical_not().unsqueeze(1), f64::NEG_INFINITY)
}
