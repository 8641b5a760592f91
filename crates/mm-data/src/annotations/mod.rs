//! Other people's annotated images, COCO's and ADE20K's, as samples with masks.
//!
//! Both are read image by image; what is held in memory is where things lie. Names become labels as scores compare
//! them: lower case, single spaces, none of the underscores that some sets have instead.

mod ade20k;
mod coco;
mod label_map;
mod labels;
mod mask;
mod polygon;
mod run_lengths;

use std::path::PathBuf;

pub use ade20k::Ade20k;
pub use coco::{Coco, CocoOptions};

use crate::sample::Sample;
use crate::{DataError, RecordError};

/// Pixels of the largest image that is read, those of lmm-prep and PIL.
const MAX_PIXELS: u64 = 178_956_970;

/// Images that somebody marked regions in.
pub trait AnnotatedImages {
    /// How many images are listed; never 0.
    fn len(&self) -> usize;

    /// Always false: a set without images does not open.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Image `index` with its id, its file's bytes and a mask per annotated region that has a pixel, in the order of
    /// the annotations and of the size that these say the image has. Without a mask it is an image in which nothing is
    /// marked.
    ///
    /// # Errors
    /// [`DataError::Record`] when this image or one of its annotations is bad, another when the annotations cannot be read.
    ///
    /// # Panics
    /// When `index` is not below [`AnnotatedImages::len`].
    fn get(&self, index: usize) -> Result<Sample, DataError>;

    /// The file image `index` is listed in, and its number there.
    ///
    /// # Panics
    /// When `index` is not below [`AnnotatedImages::len`].
    fn place(&self, index: usize) -> (PathBuf, usize);

    /// SHA-256 (hex) of what identifies the annotations.
    fn fingerprint(&self) -> &str;

    /// What of the annotations belongs to no image, each as the [`DataError::Record`] it is. They are given once.
    fn take_strays(&mut self) -> Vec<DataError> {
        Vec::new()
    }

    /// The error for an image that a later stage could not use, naming where it is listed.
    ///
    /// # Panics
    /// When `index` is not below [`AnnotatedImages::len`].
    fn unusable(&self, index: usize, cause: Box<dyn std::error::Error + Send + Sync>) -> DataError {
        let (path, row) = self.place(index);
        DataError::Record { path, row, source: RecordError::Unusable(cause) }
    }
}

/// Refuses sizes of which no mask can be made.
fn check_size(width: u32, height: u32) -> Result<(), RecordError> {
    let pixels = u64::from(width) * u64::from(height);
    if pixels == 0 || pixels > MAX_PIXELS {
        return Err(RecordError::ImageSize { width, height, max: MAX_PIXELS });
    }
    Ok(())
}
