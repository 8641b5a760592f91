//! What a feature's effects look like: coloured tokens, and pictures with a heat map.

use activation_view::{Edges, Grid, Token, shrunk};
use anyhow::Result;
use image::RgbImage;
use lmm_prep::ImageSpan;

use crate::store::AboutQuestion;

/// The longest side of a picture that is shown.
const SIDE: u32 = 336;

/// The tokens of a prompt coloured by `row` `[n_tokens]`, those of each image as one with their sum.
pub(crate) fn tokens(question: &AboutQuestion, row: &[f32]) -> Vec<Token> {
    let images: Vec<_> = question.layout().images.iter().map(ImageSpan::positions).collect();
    Token::of_prompt(&question.tokens, row, &images, |values| values.iter().sum())
}

/// The pictures of a question, as large as they are shown.
pub(crate) fn pictures(question: &AboutQuestion) -> Result<Vec<RgbImage>> {
    question
        .images
        .iter()
        .map(|image| Ok(shrunk(&lmm_prep::read_image_upright(&image.path)?, SIDE)))
        .collect()
}

/// Each picture with the effects on its base tile, which shows all of it.
pub(crate) fn overlays(question: &AboutQuestion, pictures: &[RgbImage], row: &[f32]) -> Vec<RgbImage> {
    let layout = question.layout();
    let overlay = |(span, picture): (&ImageSpan, &RgbImage)| {
        let grid = Grid::new(span.base.0, span.base.1, row[span.base_positions()].to_vec());
        grid.overlay(picture, Edges::Bilinear)
    };
    layout.images.iter().zip(pictures).map(overlay).collect()
}
