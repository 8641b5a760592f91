//! What a training step learns from: prompts with pictures, what each patch of them shows, and turns to answer.

use lmm_prep::{ImageSpan, Inputs};

/// Prompts with everything that is to be learnt from them.
pub(crate) struct Lesson {
    pub(crate) prompts: Vec<Inputs>,
    /// For each prompt, for each of its image tokens in order.
    pub(crate) patches: Vec<Vec<PatchWords>>,
    /// For each prompt, what it is asked.
    pub(crate) turns: Vec<Vec<Turn>>,
}

/// A question with its answer.
pub(crate) struct Turn {
    /// After how many pictures it is asked: what follows them is not seen.
    pub(crate) pictures: usize,
    pub(crate) question: String,
    pub(crate) answer: String,
}

/// What a patch shows, in a word of each family (colours, shapes, textures, extents); `None` where nothing is to be learnt.
pub(crate) type PatchWords = [Option<&'static str>; 4];

/// The word for what shows no object.
pub(crate) const BACKGROUND: &str = "background";
/// The word for what is not lit.
pub(crate) const DIM: &str = "dim";

/// The prompt before any question: a user's turn that begins with `pictures` pictures.
pub(crate) fn prompt(pictures: usize) -> String {
    format!("user :{}", " <image>".repeat(pictures))
}

/// The words of an image's tokens: of its base grid, then of the rows of its tiles, each closed by a newline that shows
/// nothing. `words` makes those of a grid of rows and columns laid over the whole picture.
pub(crate) fn image_words(
    span: &ImageSpan,
    words: impl Fn((usize, usize)) -> Vec<PatchWords>,
) -> Vec<PatchWords> {
    let mut all = words(span.base);
    for row in words(span.high).chunks(span.high.1) {
        all.extend(row);
        all.push([None; 4]);
    }
    all
}

/// What `cell` makes of the pixels under the 36 probes of each cell, as indices row by row; cells of a `rows` x `cols`
/// grid over a picture of `width` x `height`.
pub(crate) fn probe_cells<T>(
    (rows, cols): (usize, usize),
    (width, height): (usize, usize),
    mut cell: impl FnMut(&[usize]) -> T,
) -> Vec<T> {
    const PROBES: usize = 6;
    let mut cells = Vec::with_capacity(rows * cols);
    let mut pixels = Vec::with_capacity(PROBES * PROBES);
    for row in 0..rows {
        for col in 0..cols {
            pixels.clear();
            for y in 0..PROBES {
                for x in 0..PROBES {
                    let py = (2 * (row * PROBES + y) + 1) * height / (2 * rows * PROBES);
                    let px = (2 * (col * PROBES + x) + 1) * width / (2 * cols * PROBES);
                    pixels.push(py * width + px);
                }
            }
            cells.push(cell(&pixels));
        }
    }
    cells
}

/// The object that covers most of the probed pixels, as its index; `None` where none covers two fifths of them.
pub(crate) fn object_under(labels: &[u8], pixels: &[usize]) -> Option<usize> {
    let mut seen = [0usize; 8];
    for &pixel in pixels {
        seen[labels[pixel] as usize] += 1;
    }
    let (object, &count) = seen.iter().enumerate().skip(1).max_by_key(|&(_, count)| *count)?;
    (5 * count >= 2 * pixels.len()).then(|| object - 1)
}
