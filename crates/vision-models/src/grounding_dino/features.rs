//! [`FeatureMaps`]: the backbone's maps projected to the width of the model and laid one after the other.

use torch_nn::tch::{Kind, Tensor};
use torch_nn::{Conv2d, GroupNorm, Scope};

use super::GroundingDinoConfig;
use super::config::NORM_GROUPS;
use super::positions;

/// PyTorch's default, which transformers leaves the group norms.
const GROUP_NORM_EPSILON: f64 = 1e-5;

/// Feature maps as tokens: map after map, row by row.
#[derive(Debug)]
pub struct FeatureMaps {
    /// `[n, places, d_model]`.
    pub tokens: Tensor,
    /// Embeddings of place and level, `[n, places, d_model]`.
    pub positions: Tensor,
    /// `[n, places]`, bool: what is image and not filling.
    pub mask: Tensor,
    /// Whether a place is filling.
    pub has_filling: bool,
    /// Height and width of each map.
    pub shapes: Vec<(i64, i64)>,
    /// Columns and rows of each map that are image, `[n, maps, 2]`, f32.
    pub extents: Tensor,
}

impl FeatureMaps {
    /// The inverse of the mask.
    pub(super) fn filling(&self) -> Tensor {
        self.mask.logical_not()
    }

    /// Columns and rows of each map that are image, as shares of all, `[n, maps, 2]`, f32.
    pub(super) fn valid_ratios(&self) -> Tensor {
        &self.extents / self.sides()
    }

    /// Columns and rows of each map, `[maps, 2]`, f32.
    fn sides(&self) -> Tensor {
        let sides: Vec<f32> =
            self.shapes.iter().flat_map(|&(rows, columns)| [columns as f32, rows as f32]).collect();
        Tensor::from_slice(&sides).view([-1, 2]).to_device(self.extents.device())
    }

    /// The centre (x, y) of every place, `[places, 2]`, f32, in cells of its map.
    fn centres(&self) -> Tensor {
        let options = (Kind::Float, self.extents.device());
        let centres = self.shapes.iter().map(|&(rows, columns)| {
            let middle = |count: i64| Tensor::linspace(0.5, count as f64 - 0.5, count, options);
            let grid = Tensor::meshgrid_indexing(&[middle(rows), middle(columns)], "ij");
            Tensor::stack(&[&grid[1], &grid[0]], -1).flatten(0, 1)
        });
        Tensor::cat(&centres.collect::<Vec<_>>(), 0)
    }

    /// The centre (x, y) of every place as a share of what is image of its map, `[n, places, 2]`, f32.
    pub(super) fn relative_centres(&self) -> Tensor {
        self.centres() / self.by_place(&self.extents)
    }

    /// What is known of each map, repeated for each of its places: `[.., maps, k]` to `[.., places, k]`.
    pub(super) fn by_place(&self, by_map: &Tensor) -> Tensor {
        let counts: Vec<i64> = self.shapes.iter().map(|(rows, columns)| rows * columns).collect();
        let maps: Vec<i64> =
            counts.iter().zip(0..).flat_map(|(&count, map)| (0..count).map(move |_| map)).collect();
        by_map.index_select(-2, &Tensor::from_slice(&maps).to_device(by_map.device()))
    }
}

/// Brings the backbone's maps to one width, and makes coarser ones of the last.
#[derive(Debug)]
pub(super) struct InputProjections {
    levels: Vec<(Conv2d, GroupNorm)>,
    /// How many of them are for the backbone's own maps.
    own: usize,
    /// `[levels, d_model]`.
    level_embeddings: Tensor,
    temperature: f64,
}

impl InputProjections {
    pub(super) fn load(scope: &Scope<'_>, config: &GroundingDinoConfig) -> Self {
        let width = config.d_model as i64;
        let channels: Vec<i64> = config
            .backbone_config
            .out_indices
            .iter()
            .map(|&stage| config.backbone_config.channels(stage))
            .collect();
        let own = channels.len();
        let load = |level: usize| {
            let scope = scope.sub(format!("input_proj_vision.{level}"));
            let inputs = channels.get(level).or(channels.last().filter(|_| level == own));
            let inputs = inputs.copied().unwrap_or(width);
            let kernel = if level < own { 1 } else { 3 };
            let mut conv = Conv2d::load(&scope.sub("0"), inputs, width, kernel, true);
            if level >= own {
                conv = conv.stride(2).padding(1);
            }
            (conv, GroupNorm::load(&scope.sub("1"), NORM_GROUPS as i64, width, GROUP_NORM_EPSILON))
        };
        Self {
            levels: (0..config.num_feature_levels).map(load).collect(),
            own,
            level_embeddings: scope.tensor("level_embed", &[config.num_feature_levels as i64, width]),
            temperature: config.positional_embedding_temperature,
        }
    }

    /// The projected maps, `[n, d_model, height, width]` each.
    pub(super) fn project(&self, maps: &[Tensor]) -> Vec<Tensor> {
        let mut projected: Vec<Tensor> = Vec::with_capacity(self.levels.len());
        for (level, (conv, norm)) in self.levels.iter().enumerate() {
            let source = match maps.get(level) {
                Some(map) => map,
                None if level == self.own => &maps[self.own - 1],
                None => &projected[level - 1],
            };
            projected.push(norm.forward(&conv.forward(source)));
        }
        projected
    }

    /// Lays the projected maps one after the other. `mask [n, height, width]` (bool) says which pixels are image.
    pub(super) fn lay_out(&self, projected: &[Tensor], mask: &Tensor) -> FeatureMaps {
        let pixels = mask.to_kind(Kind::Float).unsqueeze(0);
        let (mut tokens, mut places, mut masks, mut extents) = (vec![], vec![], vec![], vec![]);
        let mut shapes = Vec::with_capacity(projected.len());
        for (level, map) in projected.iter().enumerate() {
            let (rows, columns) = (map.size()[2], map.size()[3]);
            let mask = pixels
                .upsample_nearest2d([rows, columns], None::<f64>, None::<f64>)
                .squeeze_dim(0)
                .to_kind(Kind::Bool);
            let count = |line: &Tensor| line.sum_dim_intlist(1, false, Kind::Float);
            extents.push(Tensor::stack(&[count(&mask.select(1, 0)), count(&mask.select(2, 0))], -1));
            let embedded = positions::of_cells(&mask, map.size()[1], self.temperature);
            places.push(embedded.to_kind(map.kind()) + self.level_embeddings.get(level as i64));
            tokens.push(map.flatten(2, 3).transpose(1, 2));
            masks.push(mask.flatten(1, 2));
            shapes.push((rows, columns));
        }
        let mask = Tensor::cat(&masks, 1);
        FeatureMaps {
            tokens: Tensor::cat(&tokens, 1),
            positions: Tensor::cat(&places, 1),
            has_filling: mask.all().int64_value(&[]) == 0,
            mask,
            shapes,
            extents: Tensor::stack(&extents, 1),
        }
    }
}
