//! [`PromptEncoder`]: points, boxes and masks as tokens and as an image for the mask decoder.

use torch_nn::tch::{Device, Kind, Tensor};
use torch_nn::{Conv2d, LayerNorm, Scope};

use super::config::SamConfig;
use super::processor::SamSizes;
use crate::encoder_layer::activation;

/// A box in pixels of the original image, y downwards. Python keeps boxes in single precision, and so does this.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BoxPrompt {
    /// Left edge.
    pub left: f64,
    /// Upper edge.
    pub top: f64,
    /// Right edge.
    pub right: f64,
    /// Lower edge.
    pub bottom: f64,
}

/// What a point says about the mask.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PointLabel {
    /// 1: the point lies on it.
    Object,
    /// 0: it does not.
    Background,
    /// -1: no point at all. Prompts without a box get one such.
    NotAPoint,
    /// -10: what Python fills shorter lists of points with. It is a token, if one of zeros.
    Padding,
}

/// A place in pixels of the original image, y downwards, with its label.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PointPrompt {
    /// From the left.
    pub x: f64,
    /// From above.
    pub y: f64,
    /// What it says.
    pub label: PointLabel,
}

/// One prompt: what asks for one object.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SamPrompt {
    /// Points, any number.
    pub points: Vec<PointPrompt>,
    /// A box around the object.
    pub bounds: Option<BoxPrompt>,
}

impl From<BoxPrompt> for SamPrompt {
    fn from(bounds: BoxPrompt) -> Self {
        Self { points: Vec::new(), bounds: Some(bounds) }
    }
}

impl From<PointPrompt> for SamPrompt {
    fn from(point: PointPrompt) -> Self {
        Self { points: vec![point], bounds: None }
    }
}

/// What the token of a place is made of.
#[derive(Clone, Copy)]
enum Token {
    Nothing,
    NotAPoint,
    /// The encoding of the place, and the point embedding of this number.
    Place(usize),
}

const BACKGROUND: usize = 0;
const OBJECT: usize = 1;
const UPPER_LEFT: usize = 2;
const LOWER_RIGHT: usize = 3;

impl SamPrompt {
    /// How many tokens it becomes.
    pub fn tokens(&self) -> usize {
        let pad = usize::from(self.bounds.is_none() && !self.points.is_empty());
        self.points.len() + pad + if self.bounds.is_some() { 2 } else { 0 }
    }

    /// Its tokens, with their places on the canvas.
    fn places(&self, sizes: &SamSizes) -> Vec<([f64; 2], Token)> {
        let mut places = Vec::with_capacity(self.tokens());
        for point in &self.points {
            let token = match point.label {
                PointLabel::Object => Token::Place(OBJECT),
                PointLabel::Background => Token::Place(BACKGROUND),
                PointLabel::NotAPoint => Token::NotAPoint,
                PointLabel::Padding => Token::Nothing,
            };
            places.push((sizes.on_canvas([point.x, point.y]), token));
        }
        if let Some(BoxPrompt { left, top, right, bottom }) = self.bounds {
            let single = |place: [f64; 2]| place.map(|side| f64::from(side as f32));
            places.push((sizes.on_canvas(single([left, top])), Token::Place(UPPER_LEFT)));
            places.push((sizes.on_canvas(single([right, bottom])), Token::Place(LOWER_RIGHT)));
        } else if !self.points.is_empty() {
            places.push(([0.0; 2], Token::NotAPoint));
        }
        places
    }
}

/// Sines and cosines of random projections of a place.
#[derive(Debug)]
struct PlaceEncoding {
    /// `[2, frequencies]`, f32.
    frequencies: Tensor,
}

impl PlaceEncoding {
    fn load(root: &Scope<'_>, config: &SamConfig) -> Self {
        const NAME: &str = "positional_embedding";
        let shared = root.sub("shared_image_embedding");
        let copy = root.sub("prompt_encoder.shared_embedding");
        // One tensor in the model. Files hold it under the first name, under both, or under whichever an exporter kept.
        let source = if shared.contains(NAME) || !copy.contains(NAME) { &shared } else { &copy };
        let shape = [2, config.vision_config.num_pos_feats as i64];
        // Rounded to bf16, places at the far end would be off by up to 0.04 radians.
        let frequencies = source.tensor_in(NAME, &shape, Kind::Float);
        root.skip("prompt_encoder.shared_embedding");
        Self { frequencies }
    }

    /// Maps `[n, 2]` (x and y from -1 to 1, f32) to `[n, 2 · frequencies]`.
    fn forward(&self, places: &Tensor) -> Tensor {
        let angles = places.matmul(&self.frequencies) * std::f64::consts::TAU;
        Tensor::cat(&[angles.sin(), angles.cos()], -1)
    }
}

/// Encodes prompts.
#[derive(Debug)]
pub struct PromptEncoder {
    places: PlaceEncoding,
    /// `[1, width]`, by number.
    points: Vec<Tensor>,
    not_a_point: Tensor,
    no_mask: Tensor,
    mask: MaskEmbedding,
    image_size: f64,
    grid: i64,
}

impl PromptEncoder {
    /// Takes `prompt_encoder` and the shared position encoding from the root of a checkpoint.
    pub fn load(root: &Scope<'_>, config: &SamConfig) -> Self {
        let own = &config.prompt_encoder_config;
        let scope = root.sub("prompt_encoder");
        let width = own.hidden_size as i64;
        let row = |name: &str| scope.sub(name).tensor("weight", &[1, width]);
        for unused in LOWER_RIGHT + 1..own.num_point_embeddings {
            scope.skip(format!("point_embed.{unused}"));
        }
        Self {
            places: PlaceEncoding::load(root, config),
            points: (0..=LOWER_RIGHT).map(|number| row(&format!("point_embed.{number}"))).collect(),
            not_a_point: row("not_a_point_embed"),
            no_mask: row("no_mask_embed"),
            mask: MaskEmbedding::load(&scope.sub("mask_embed"), config),
            image_size: own.image_size as f64,
            grid: config.grid() as i64,
        }
    }

    /// The tokens of prompts that all have as many, for an image of these sizes: `[prompts, tokens, width]`.
    ///
    /// # Panics
    /// When prompts have different numbers of tokens, or a coordinate is not finite.
    #[track_caller]
    pub fn sparse(&self, prompts: &[SamPrompt], sizes: &SamSizes) -> Tensor {
        let count = prompts.first().map_or(0, SamPrompt::tokens);
        let (kind, device) = (self.no_mask.kind(), self.no_mask.device());
        let width = self.no_mask.size()[1];
        let shape = [prompts.len() as i64, count as i64, width];
        if shape.contains(&0) {
            return Tensor::zeros(shape, (kind, device));
        }
        let mut places = Vec::with_capacity(prompts.len() * count * 2);
        let (mut added, mut kept) = (Vec::new(), Vec::new());
        let nothing = Tensor::zeros([1, width], (kind, device));
        for prompt in prompts {
            let tokens = prompt.places(sizes);
            assert_eq!(tokens.len(), count, "tokens of prompts that are encoded together");
            for (place, token) in tokens {
                assert!(place.iter().all(|side| side.is_finite()), "a prompt at {place:?}");
                // Half a pixel on: from the pixel's corner to its centre.
                places.extend(place.map(|side| (2.0 * ((side + 0.5) / self.image_size) - 1.0) as f32));
                let (embedding, is_place) = match token {
                    Token::Nothing => (&nothing, 0.0),
                    Token::NotAPoint => (&self.not_a_point, 0.0),
                    Token::Place(number) => (&self.points[number], 1.0),
                };
                added.push(embedding);
                kept.push(is_place);
            }
        }
        let places = Tensor::from_slice(&places).view([-1, 2]).to_device(device);
        let kept = Tensor::from_slice::<f32>(&kept).view([-1, 1]).to_device(device);
        let encoded = (self.places.forward(&places) * kept).to_kind(kind);
        (encoded + Tensor::cat(&added, 0)).view(shape)
    }

    /// What is added to the image embedding: `[1, width, grid, grid]`, of a mask's scores `[1, 1, 4 · grid, 4 · grid]` as the
    /// decoder gives them, or of none.
    ///
    /// # Panics
    /// When the mask has another shape.
    #[track_caller]
    pub fn dense(&self, mask: Option<&Tensor>) -> Tensor {
        let grid = self.grid;
        match mask {
            None => self.no_mask.view([1, -1, 1, 1]).expand([1, -1, grid, grid], false),
            Some(mask) => {
                let (size, side) = (mask.size(), 4 * grid);
                assert_eq!(size, [1, 1, side, side], "shape of a mask given as a prompt");
                self.mask.forward(mask)
            }
        }
    }

    /// The encodings of the places of all patches, row by row: `[1, grid · grid, width]`.
    pub fn patches(&self) -> Tensor {
        let grid = self.grid;
        let options = (Kind::Float, Device::Cpu);
        let sides = (Tensor::arange(grid, options) + 0.5) / grid as f64 * 2.0 - 1.0;
        let x = sides.view([1, grid]).expand([grid, grid], false);
        let y = sides.view([grid, 1]).expand([grid, grid], false);
        let places = Tensor::stack(&[x, y], -1).view([grid * grid, 2]).to_device(self.no_mask.device());
        self.places.forward(&places).to_kind(self.no_mask.kind()).unsqueeze(0)
    }
}

#[derive(Debug)]
struct MaskEmbedding {
    conv1: Conv2d,
    norm1: LayerNorm,
    conv2: Conv2d,
    norm2: LayerNorm,
    conv3: Conv2d,
    activation: torch_nn::Activation,
}

impl MaskEmbedding {
    fn load(scope: &Scope<'_>, config: &SamConfig) -> Self {
        let config = &config.prompt_encoder_config;
        let (inner, width) = (config.mask_input_channels as i64, config.hidden_size as i64);
        let norm = |name, width| LayerNorm::load(&scope.sub(name), width, config.layer_norm_eps);
        Self {
            conv1: Conv2d::load(&scope.sub("conv1"), 1, inner / 4, 2, true).stride(2),
            norm1: norm("layer_norm1", inner / 4),
            conv2: Conv2d::load(&scope.sub("conv2"), inner / 4, inner, 2, true).stride(2),
            norm2: norm("layer_norm2", inner),
            conv3: Conv2d::load(&scope.sub("conv3"), inner, width, 1, true),
            activation: activation(config.hidden_act),
        }
    }

    fn forward(&self, mask: &Tensor) -> Tensor {
        let normed = |norm: &LayerNorm, x: &Tensor| {
            let by_channel = norm.forward(&x.permute([0, 2, 3, 1]));
            self.activation.forward(&by_channel).permute([0, 3, 1, 2])
        };
        let x = normed(&self.norm1, &self.conv1.forward(mask));
        let x = normed(&self.norm2, &self.conv2.forward(&x));
        self.conv3.forward(&x)
    }
}
