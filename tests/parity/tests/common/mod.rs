//! From a fixture to the library's types.

use lmm_hooks::{Batch, LlavaNext, LoadOptions, PaddingSide};
use lmm_prep::{ImageSpan, ImageTiles, Inputs, LlavaNextConfig, Size, TileGrid, TokenLayout};
use parity_tests::{Case, Fixture};
use tch::{Device, Kind};

pub(crate) mod tensor;

pub(crate) use tensor::array;

/// The model of a fixture.
pub(crate) struct Subject {
    pub(crate) fixture: Fixture,
    pub(crate) model: LlavaNext,
    pub(crate) kind: Kind,
}

impl Subject {
    pub(crate) fn load(family: &str, kind: Kind) -> Self {
        // The models are so small that threads only get in each other's way.
        tch::set_num_threads(1);
        let fixture = Fixture::load(family);
        let model = LlavaNext::load(&fixture.model, &LoadOptions { kind, ..LoadOptions::default() }).unwrap();
        Self { fixture, model, kind }
    }

    /// What transformers' processor made of a case, so that the model is measured on its own.
    pub(crate) fn inputs(&self, case: &Case) -> Inputs {
        inputs(&self.fixture, case, self.model.config())
    }

    pub(crate) fn batch(&self, inputs: &[&Inputs], side: PaddingSide) -> Batch {
        let pad = self.model.config().text_config.pad_token_id.unwrap();
        Batch::new(inputs, pad, Device::Cpu, self.kind, side).unwrap()
    }

    pub(crate) fn batch_of(&self, case: &str) -> Batch {
        self.batch(&[&self.inputs(self.fixture.case(case))], PaddingSide::Right)
    }
}

fn inputs(fixture: &Fixture, case: &Case, config: &LlavaNextConfig) -> Inputs {
    let side = config.vision_config.image_size;
    let per_side = config.vision_config.patches_per_side();
    let pixels =
        fixture.get(&format!("{}/pixel_values", case.name)).map_or_else(Vec::new, |array| array.values);
    let (mut pixels_at, mut start) = (0, 0);
    let (mut images, mut spans) = (Vec::new(), Vec::new());
    for (&[height, width], &tiles) in case.image_sizes.iter().zip(&case.tiles) {
        let original = Size { height, width };
        let grid = TileGrid::new(original, &config.image_grid_pinpoints, side, per_side);
        let shape = (tiles, 3, side, side);
        let end = pixels_at + tiles * 3 * side * side;
        let tile_pixels = ndarray::Array4::from_shape_vec(shape, pixels[pixels_at..end].to_vec()).unwrap();
        pixels_at = end;
        // The next run of image tokens; two images are never adjacent in the fixtures.
        let later = &case.input_ids[start..];
        start += later.iter().position(|&id| id == config.image_token_index).unwrap();
        spans.push(ImageSpan { start, base: grid.base(), high: grid.high() });
        start += grid.n_tokens();
        images.push(ImageTiles { pixels: tile_pixels, original, grid });
    }
    let layout = TokenLayout { images: spans, n_tokens: case.input_ids.len() };
    Inputs { input_ids: case.input_ids.clone(), images, layout, turns: Vec::new() }
}
