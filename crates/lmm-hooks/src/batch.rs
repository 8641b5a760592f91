//! [`Batch`]: several prompts with their images, padded to one length, as tensors.

use std::borrow::Borrow;
use std::collections::BTreeSet;

use lmm_prep::{ImageTiles, Inputs};
use torch_nn::tch::{Device, Kind, Tensor};

use crate::HookError;

/// Where the padding of shorter prompts goes. Neither changes what a prompt's own tokens compute.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PaddingSide {
    /// After the prompt: positions are those of the prompt alone. For reading hidden states.
    #[default]
    Right,
    /// Before the prompt, so that all end at the same place. For generation.
    Left,
}

/// Prompts as a model takes them.
#[derive(Debug)]
pub struct Batch {
    input_ids: Tensor,
    real: Tensor,
    positions: Tensor,
    lengths: Vec<usize>,
    width: usize,
    side: PaddingSide,
    pad: u32,
    largest_id: u32,
    /// The caller's own attention mask, `[batch, 1, tokens, tokens]`.
    pub(crate) allowed: Option<Tensor>,
    pub(crate) pictures: Option<Pictures>,
}

/// All tiles of a batch, and where their features go.
#[derive(Debug)]
pub(crate) struct Pictures {
    /// `[n_tiles, 3, side, side]`.
    pub(crate) pixels: Tensor,
    pub(crate) patches_per_tile: i64,
    /// Rows of the projector's output, flattened to `[n_tiles · patches, width]`, that are kept.
    pub(crate) features: Tensor,
    /// Where each of them goes in the embeddings, flattened to `[batch · tokens, width]`.
    pub(crate) feature_places: Tensor,
    /// Where the newline embedding goes.
    pub(crate) newline_places: Tensor,
    /// The token ids found at these places.
    pub(crate) placeholders: BTreeSet<u32>,
}

impl Batch {
    /// Pads `samples` with the token `pad` to the longest of them and moves everything to `device`, pixels as `kind`.
    ///
    /// # Errors
    /// When there is no sample, one has no tokens, or its layout does not fit its tokens and tiles.
    pub fn new(
        samples: &[&Inputs],
        pad: u32,
        device: Device,
        kind: Kind,
        side: PaddingSide,
    ) -> Result<Self, HookError> {
        let rows: Vec<Row<'_>> = samples.iter().map(|&inputs| (inputs, [].as_slice())).collect();
        Self::of_rows(&rows, Packing::default(), pad, device, kind, side)
    }

    /// One prompt with each of `answers`, which may be empty, behind it, a row each: what [`Batch::new`] makes of as many prompts, but the
    /// prompt's images are there once, and go through tower and projector once. Hooks of the vision side see the tiles of one
    /// prompt.
    ///
    /// # Errors
    /// As [`Batch::new`].
    pub fn continued(
        prompt: &Inputs,
        answers: &[&[u32]],
        pad: u32,
        device: Device,
        kind: Kind,
        side: PaddingSide,
    ) -> Result<Self, HookError> {
        let rows: Vec<Row<'_>> = answers.iter().map(|&answer| (prompt, answer)).collect();
        Self::of_rows(&rows, Packing { is_shared: true, ..Packing::default() }, pad, device, kind, side)
    }

    fn of_rows(
        samples: &[Row<'_>],
        mut packing: Packing,
        pad: u32,
        device: Device,
        kind: Kind,
        side: PaddingSide,
    ) -> Result<Self, HookError> {
        let length = |(prompt, answer): &Row<'_>| prompt.input_ids.len() + answer.len();
        let lengths: Vec<usize> = samples.iter().map(length).collect();
        if let Some(sample) = lengths.iter().position(|&length| length == 0) {
            return Err(HookError::EmptySample { sample });
        }
        let width = lengths.iter().copied().max().ok_or(HookError::EmptySample { sample: 0 })?;

        let mut ids = Vec::with_capacity(samples.len() * width);
        let mut real = Vec::with_capacity(ids.capacity());
        let mut positions = Vec::with_capacity(ids.capacity());
        let mut largest_id = pad;
        for (row, (sample, answer)) in samples.iter().enumerate() {
            let padding = width - lengths[row];
            let before = if side == PaddingSide::Left { padding } else { 0 };
            let own = before..before + lengths[row];
            let all: Vec<u32> = sample.input_ids.iter().chain(*answer).copied().collect();
            largest_id = all.iter().copied().fold(largest_id, u32::max);
            for place in 0..width {
                let token = own.contains(&place).then(|| place - before);
                ids.push(i64::from(token.map_or(pad, |token| all[token])));
                real.push(token.is_some());
                positions.push(token.map_or(PADDING_POSITION, |token| token as i64));
            }
            packing.add(row, sample, row * width + before)?;
        }
        let shape = [samples.len() as i64, width as i64];
        let tensor = |values: &[i64]| Tensor::from_slice(values).view(shape).to_device(device);
        Ok(Self {
            input_ids: tensor(&ids),
            real: Tensor::from_slice(&real).view(shape).to_device(device),
            positions: tensor(&positions),
            largest_id,
            lengths,
            width,
            side,
            pad,
            allowed: None,
            pictures: packing.finish(device, kind),
        })
    }

    /// Says for every token what it may look at and where it stands, in place of the causal mask (and any sliding
    /// window) and of consecutive positions: `positions [batch, tokens]` (i64), `allowed [batch, 1, tokens, tokens]`
    /// (bool, queries before keys; every query needs at least one key). For packing several questions after one image,
    /// each blind to the others. Such a batch is for single forward passes; generation refuses it.
    ///
    /// # Panics
    /// When a shape does not fit the batch.
    #[must_use]
    #[track_caller]
    pub fn with_attention(mut self, positions: impl Borrow<Tensor>, allowed: impl Borrow<Tensor>) -> Self {
        let (positions, allowed) = (positions.borrow(), allowed.borrow());
        let (rows, width) = (self.len() as i64, self.width as i64);
        assert_eq!(positions.size(), [rows, width], "positions of every token");
        assert_eq!(allowed.size(), [rows, 1, width, width], "a mask over all pairs of tokens");
        self.positions = positions.to_device(self.input_ids.device());
        self.allowed = Some(allowed.to_device(self.input_ids.device()));
        self
    }

    /// Token ids `[batch, tokens]` (i64), padding included.
    pub fn input_ids(&self) -> &Tensor {
        &self.input_ids
    }

    /// Which tokens are not padding, `[batch, tokens]` (bool).
    pub fn real(&self) -> &Tensor {
        &self.real
    }

    /// Each token's position in its own prompt, `[batch, tokens]` (i64); 1 at padding, as transformers has it.
    pub fn positions(&self) -> &Tensor {
        &self.positions
    }

    /// How many samples.
    pub fn len(&self) -> usize {
        self.lengths.len()
    }

    /// Whether there are none; never true.
    pub fn is_empty(&self) -> bool {
        self.lengths.is_empty()
    }

    /// The length of each prompt, without padding.
    pub fn lengths(&self) -> &[usize] {
        &self.lengths
    }

    /// Tokens per row, padding included.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Where the tokens of sample `row` lie within its row.
    ///
    /// # Panics
    /// When there is no such sample.
    #[track_caller]
    pub fn tokens_of(&self, row: usize) -> std::ops::Range<usize> {
        let padding = self.width - self.lengths[row];
        let before = if self.side == PaddingSide::Left { padding } else { 0 };
        before..before + self.lengths[row]
    }

    /// The side padding is on.
    pub fn side(&self) -> PaddingSide {
        self.side
    }

    /// The tiles of all images, `[n_tiles, 3, side, side]`, sample after sample; `None` without images.
    pub fn pixels(&self) -> Option<&Tensor> {
        self.pictures.as_ref().map(|pictures| &pictures.pixels)
    }

    /// Which tokens stand for an image, newlines included, `[batch, tokens]` (bool).
    pub fn image_tokens(&self) -> Tensor {
        let mask = Tensor::zeros([self.input_ids.numel() as i64], (Kind::Bool, self.input_ids.device()));
        let mask = self.pictures.iter().fold(mask, |mut mask, pictures| {
            let _ = mask.index_fill_(0, &pictures.feature_places, 1);
            mask.index_fill_(0, &pictures.newline_places, 1)
        });
        mask.view(self.input_ids.size().as_slice())
    }

    pub(crate) fn pad(&self) -> u32 {
        self.pad
    }

    pub(crate) fn largest_id(&self) -> u32 {
        self.largest_id
    }

    pub(crate) fn is_padded(&self) -> bool {
        self.lengths.iter().any(|&length| length < self.width)
    }

    /// Whether padding stands before tokens that must not see it.
    pub(crate) fn is_padded_left(&self) -> bool {
        self.side == PaddingSide::Left && self.is_padded()
    }
}

/// The position id of padding (transformers fills with it where the attention mask is 0).
const PADDING_POSITION: i64 = 1;

/// A prompt, and what stands behind it.
type Row<'a> = (&'a Inputs, &'a [u32]);

#[derive(Default)]
struct Packing {
    /// Whether all samples have the images of the first.
    is_shared: bool,
    pixels: Vec<f32>,
    tile_shape: Option<(usize, usize)>,
    patches_per_tile: usize,
    n_tiles: usize,
    features: Vec<i64>,
    feature_places: Vec<i64>,
    newline_places: Vec<i64>,
    placeholders: BTreeSet<u32>,
}

impl Packing {
    /// Adds a sample whose first token goes to the flattened place `origin`.
    fn add(&mut self, sample: usize, inputs: &Inputs, origin: usize) -> Result<(), HookError> {
        let wrong = |what, expected: String, got: String| HookError::Inputs { sample, what, expected, got };
        let (images, spans) = (&inputs.images, &inputs.layout.images);
        let is_there = self.is_shared && sample > 0;
        if is_there {
            self.n_tiles = 0;
        }
        if images.len() != spans.len() {
            let (expected, got) = (spans.len().to_string(), images.len().to_string());
            return Err(wrong("number of images", expected, got));
        }
        for (image, span) in images.iter().zip(spans) {
            let grid = &image.grid;
            if (grid.base(), grid.high()) != (span.base, span.high) {
                let expected = format!("{:?} and {:?}", grid.base(), grid.high());
                let got = format!("{:?} and {:?}", span.base, span.high);
                return Err(wrong("rows and columns of an image's tokens", expected, got));
            }
            let Some(ids) = inputs.input_ids.get(span.positions()) else {
                let (expected, got) =
                    (format!("within {}", inputs.input_ids.len()), format!("{:?}", span.positions()));
                return Err(wrong("positions of an image's tokens", expected, got));
            };
            self.placeholders.extend(ids);
            if !is_there {
                self.add_pixels(image)
                    .map_err(|(expected, got)| wrong("shape of an image's tiles", expected, got))?;
            }
            self.add_places(image, origin + span.start);
            self.n_tiles += grid.n_tiles();
        }
        Ok(())
    }

    fn add_pixels(&mut self, image: &ImageTiles) -> Result<(), (String, String)> {
        let shape = image.pixels.shape();
        let per_tile = image.grid.patches_per_side * image.grid.patches_per_side;
        let (side, per_tile) = *self.tile_shape.get_or_insert((shape[3], per_tile));
        self.patches_per_tile = per_tile;
        let expected = [image.grid.n_tiles(), 3, side, side];
        let same_patches = image.grid.patches_per_side * image.grid.patches_per_side == per_tile;
        match image.pixels.as_slice() {
            Some(pixels) if shape == expected && same_patches => self.pixels.extend_from_slice(pixels),
            _ => {
                return Err((
                    format!("{expected:?}, contiguous, in {per_tile} patches"),
                    format!("{shape:?}"),
                ));
            }
        }
        Ok(())
    }

    /// The order of transformers' `pack_image_features`: the base tile, then the kept rows of the tiles' canvas, each
    /// closed by a newline.
    fn add_places(&mut self, image: &ImageTiles, start: usize) {
        let grid = &image.grid;
        let side = grid.patches_per_side;
        let per_tile = side * side;
        let mut place = start;
        for patch in 0..per_tile {
            self.features.push((self.n_tiles * per_tile + patch) as i64);
            self.feature_places.push(place as i64);
            place += 1;
        }
        for row in grid.keep_rows.clone() {
            for col in grid.keep_cols.clone() {
                let tile = self.n_tiles + 1 + (row / side) * grid.cols_of_tiles + col / side;
                self.features.push((tile * per_tile + (row % side) * side + col % side) as i64);
                self.feature_places.push(place as i64);
                place += 1;
            }
            self.newline_places.push(place as i64);
            place += 1;
        }
    }

    fn finish(self, device: Device, kind: Kind) -> Option<Pictures> {
        let (side, patches) = self.tile_shape?;
        let shape = [self.n_tiles as i64, 3, side as i64, side as i64];
        let tensor = |values: &[i64]| Tensor::from_slice(values).to_device(device);
        Some(Pictures {
            pixels: Tensor::from_slice(&self.pixels).view(shape).to_device(device).to_kind(kind),
            patches_per_tile: patches as i64,
            features: tensor(&self.features),
            feature_places: tensor(&self.feature_places),
            newline_places: tensor(&self.newline_places),
            placeholders: self.placeholders,
        })
    }
}
