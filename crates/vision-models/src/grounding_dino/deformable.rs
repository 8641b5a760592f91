//! [`DeformableAttention`]: attention to a few places of each feature map that depend on the query, as in Deformable DETR.

use torch_nn::tch::{Kind, Tensor};
use torch_nn::{Linear, Scope};

use super::features::FeatureMaps;
use super::sampling::Samples;

/// Multi-scale deformable attention.
#[derive(Debug)]
pub(super) struct DeformableAttention {
    offsets: Linear,
    weights: Linear,
    value: Linear,
    output: Linear,
    heads: i64,
    levels: i64,
    points: i64,
}

impl DeformableAttention {
    pub(super) fn load(scope: &Scope<'_>, width: i64, levels: i64, heads: i64, points: i64) -> Self {
        let linear = |name: &str, outputs: i64| Linear::load(&scope.sub(name), width, outputs, true);
        Self {
            offsets: linear("sampling_offsets", heads * levels * points * 2),
            weights: linear("attention_weights", heads * levels * points),
            value: linear("value_proj", width),
            output: linear("output_proj", width),
            heads,
            levels,
            points,
        }
    }

    /// What `queries [n, queries, width]`, their place embeddings added, find in `tokens [n, places, width]` of `maps` about
    /// `reference [n, queries, levels, 2 or 4]` (f32).
    pub(super) fn forward(
        &self,
        queries: &Tensor,
        tokens: &Tensor,
        maps: &FeatureMaps,
        reference: &Tensor,
    ) -> Tensor {
        let size = queries.size();
        let mut values = self.value.forward(tokens);
        if maps.has_filling {
            values = values.masked_fill(&maps.filling().unsqueeze(-1), 0.0);
        }
        let places = tokens.size()[1];
        let offsets = self.offsets.forward(queries).to_kind(Kind::Float);
        let weights = self.weights.forward(queries).to_kind(Kind::Float);
        let samples = Samples {
            values: &values.view([size[0], places, self.heads, -1]),
            shapes: &maps.shapes,
            reference,
            offsets: &offsets.view([size[0], size[1], self.heads, self.levels, self.points, 2]),
            weights: &weights.view([size[0], size[1], self.heads, -1]).softmax(-1, None),
        };
        self.output.forward(&samples.sum())
    }
}
