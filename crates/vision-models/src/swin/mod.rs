//! Swin, a vision transformer of shifted windows, as transformers 4.57's `SwinBackbone` computes it: one feature map per
//! stage that is asked for, of half the height and width and twice the channels of the one before.
//!
//! Images of any size go through: patches, windows and merged patches at the edges are filled up with zeros. Stages past the
//! last one asked for are neither loaded nor computed.

mod block;
mod config;
mod windows;

use std::cell::OnceCell;

use torch_nn::tch::{Kind, Tensor};
use torch_nn::{Conv2d, LayerNorm, Linear, Scope};

use block::Block;
pub use config::SwinConfig;
use windows::{Windows, relative_places};

/// Epsilon of the layer norms that `layer_norm_eps` is not for: PyTorch's default.
const DEFAULT_EPSILON: f64 = 1e-5;

/// The backbone.
#[derive(Debug)]
pub struct Swin {
    patches: Conv2d,
    patch_size: i64,
    first_norm: LayerNorm,
    stages: Vec<Stage>,
    window: i64,
    /// Where in their tables all blocks find their biases; made by the first forward pass, for a copy to a GPU waits for it.
    table_rows: OnceCell<Tensor>,
    /// By stage, the patches (the stem) first: the norm of its feature map, where that is asked for.
    output_norms: Vec<Option<LayerNorm>>,
}

#[derive(Debug)]
struct Stage {
    blocks: Vec<Block>,
    window: i64,
    merge: Option<Merge>,
}

/// Four neighbouring patches become one, of twice the channels.
#[derive(Debug)]
struct Merge {
    norm: LayerNorm,
    reduction: Linear,
}

impl Swin {
    /// Takes the backbone from a scope that holds `embeddings`, `encoder` and `hidden_states_norms`.
    pub fn load(scope: &Scope<'_>, config: &SwinConfig) -> Self {
        let (width, patch) = (config.embed_dim as i64, config.patch_size as i64);
        let embeddings = scope.sub("embeddings");
        let needed = config.out_indices.last().copied().unwrap_or(0);
        let stages = config.depths.len();
        for unneeded in needed..stages {
            scope.skip(format!("encoder.layers.{unneeded}"));
        }
        if needed > 0 && needed < stages {
            scope.skip(format!("encoder.layers.{}.downsample", needed - 1));
        }
        Self {
            patches: Conv2d::load(&embeddings.sub("patch_embeddings.projection"), 3, width, patch, true)
                .stride(patch),
            patch_size: patch,
            first_norm: LayerNorm::load(&embeddings.sub("norm"), width, DEFAULT_EPSILON),
            stages: (0..needed)
                .map(|index| {
                    let scope = scope.sub(format!("encoder.layers.{index}"));
                    Stage::load(&scope, config, index, index + 1 < needed)
                })
                .collect(),
            window: config.window_size as i64,
            table_rows: OnceCell::new(),
            output_norms: (0..=needed)
                .map(|stage| {
                    let name = if stage == 0 {
                        "hidden_states_norms.stem".into()
                    } else {
                        format!("hidden_states_norms.stage{stage}")
                    };
                    let load = || LayerNorm::load(&scope.sub(name), config.channels(stage), DEFAULT_EPSILON);
                    config.out_indices.contains(&stage).then(load)
                })
                .collect(),
        }
    }

    /// The feature maps asked for, `[n, channels, height, width]` each, of `pixels [n, 3, height, width]`, finest first.
    ///
    /// # Panics
    /// When the pixels have another shape.
    #[track_caller]
    pub fn forward(&self, pixels: &Tensor) -> Vec<Tensor> {
        let size = pixels.size();
        assert!(
            size.len() == 4 && size[1] == 3 && size[2] > 0 && size[3] > 0,
            "pixels {size:?} given to a backbone for [n, 3, height, width]"
        );
        let beyond = |length: i64| next_multiple(length, self.patch_size) - length;
        let padded = pad(pixels, &[0, beyond(size[3]), 0, beyond(size[2])]);
        let patches = self.patches.forward(&padded);
        let (mut height, mut width) = (patches.size()[2], patches.size()[3]);
        // [n, places, channels] from here on.
        let mut hidden = self.first_norm.forward(&patches.flatten(2, 3).transpose(1, 2));
        let mut maps = Vec::new();
        self.push_map(&mut maps, 0, &hidden, height, width);
        for (index, stage) in self.stages.iter().enumerate() {
            let table_rows =
                self.table_rows.get_or_init(|| indices(&relative_places(self.window), hidden.device()));
            hidden = stage.forward(hidden, height, width, table_rows);
            self.push_map(&mut maps, index + 1, &hidden, height, width);
            if let Some(merge) = &stage.merge {
                hidden = merge.forward(&hidden, height, width);
                (height, width) = ((height + 1) / 2, (width + 1) / 2);
            }
        }
        maps
    }

    fn push_map(&self, maps: &mut Vec<Tensor>, stage: usize, hidden: &Tensor, height: i64, width: i64) {
        if let Some(norm) = &self.output_norms[stage] {
            let size = hidden.size();
            let map = norm.forward(hidden).transpose(1, 2);
            maps.push(map.reshape([size[0], size[2], height, width]));
        }
    }
}

impl Stage {
    fn load(scope: &Scope<'_>, config: &SwinConfig, index: usize, merge: bool) -> Self {
        let channels = config.channels(index + 1);
        let load_merge = || Merge {
            norm: LayerNorm::load(&scope.sub("downsample.norm"), 4 * channels, DEFAULT_EPSILON),
            reduction: Linear::load(&scope.sub("downsample.reduction"), 4 * channels, 2 * channels, false),
        };
        Self {
            blocks: (0..config.depths[index])
                .map(|block| Block::load(&scope.sub(format!("blocks.{block}")), config, index))
                .collect(),
            window: config.window_size as i64,
            merge: merge.then(load_merge),
        }
    }

    /// Maps `[n, height · width, channels]` to the same shape. Every other block has its windows shifted by half of one.
    fn forward(&self, hidden: Tensor, height: i64, width: i64, table_rows: &Tensor) -> Tensor {
        let windows = |shift| Windows::new(height, width, self.window, shift, hidden.kind(), hidden.device());
        let kinds = [windows(0), windows(self.window / 2)];
        self.blocks
            .iter()
            .zip(kinds.iter().cycle())
            .fold(hidden, |hidden, (block, windows)| block.forward(&hidden, windows, table_rows))
    }
}

impl Merge {
    /// Maps `[n, height · width, channels]` to `[n, ⌈height / 2⌉ · ⌈width / 2⌉, 2 channels]`.
    fn forward(&self, hidden: &Tensor, height: i64, width: i64) -> Tensor {
        let size = hidden.size();
        let grid = hidden.view([size[0], height, width, size[2]]);
        let grid = pad(&grid, &[0, 0, 0, width % 2, 0, height % 2]);
        let (rows, columns) = ((height + 1) / 2, (width + 1) / 2);
        // [n, rows, 2, columns, 2, channels], of which (0, 0), (1, 0), (0, 1), (1, 1) in turn become channels.
        let blocks = grid.view([size[0], rows, 2, columns, 2, size[2]]).permute([0, 1, 3, 4, 2, 5]);
        let merged = blocks.reshape([size[0], rows * columns, 4 * size[2]]);
        self.reduction.forward(&self.norm.forward(&merged))
    }
}

/// Zeros around `x`, counted from the last axis on: (before, after) for each. The same tensor where there are none.
fn pad(x: &Tensor, amounts: &[i64]) -> Tensor {
    if amounts.iter().all(|&amount| amount == 0) { x.shallow_clone() } else { x.constant_pad_nd(amounts) }
}

/// The least multiple of `step` that is not below `length`.
fn next_multiple(length: i64, step: i64) -> i64 {
    (length + step - 1) / step * step
}

/// Integers as a tensor on the device of a model.
fn indices(values: &[i64], device: torch_nn::tch::Device) -> Tensor {
    Tensor::from_slice(values).to_kind(Kind::Int64).to_device(device)
}

#[cfg(test)]
mod tests;
