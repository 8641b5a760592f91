//! [`ImageBatch`]: images resized, normalised and put into one batch, and [`GroundingDinoProcessorConfig`], which says how.

use std::path::Path;

use image::RgbImage;
use lmm_prep::{Fields, Filter, FromJson, PixelConfig, PixelScale, PixelStatistics, PrepError, Size, resize};
use rayon::prelude::*;
use serde_json::{Map, Value};
use torch_nn::tch::{Device, Kind, Tensor};

use crate::VisionError;

/// The size an image is brought to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResizeTo {
    /// The shorter edge gets a length, unless the longer one would exceed its own; the aspect ratio stays.
    Edges {
        /// Of the shorter edge.
        shortest: u32,
        /// At most, of the longer edge.
        longest: u32,
    },
    /// As large as both limits allow; the aspect ratio stays.
    Within(Size),
    /// Exactly this, whatever the aspect ratio.
    Exact(Size),
}

/// Mirror of `preprocessor_config.json` as transformers 4.57's `GroundingDinoImageProcessor` reads it, with that class's
/// defaults ([`GroundingDinoProcessorConfig::default`]).
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct GroundingDinoProcessorConfig {
    /// Resize images, and to what.
    pub size: Option<ResizeTo>,
    /// Resampling filter of the resize.
    pub resample: Filter,
    /// What is done to the values of pixels.
    pub pixels: PixelConfig,
    /// The size all images are filled up to; that of the largest of a batch where there is none.
    pub pad_size: Option<Size>,
    /// Keys that nothing here reads.
    pub extra: Map<String, Value>,
}

impl Default for GroundingDinoProcessorConfig {
    fn default() -> Self {
        Self {
            size: Some(ResizeTo::Edges { shortest: 800, longest: 1333 }),
            resample: Filter::Bilinear,
            pixels: PixelConfig::new(PixelStatistics::IMAGENET),
            pad_size: None,
            extra: Map::new(),
        }
    }
}

const CLASSES: [&str; 2] = ["GroundingDinoImageProcessor", "GroundingDinoImageProcessorFast"];

impl GroundingDinoProcessorConfig {
    /// Reads `preprocessor_config.json` of a model folder.
    ///
    /// # Errors
    /// [`PrepError::Read`], [`PrepError::Json`], or [`PrepError::Field`] naming the field at fault.
    pub fn load(folder: &Path) -> Result<Self, PrepError> {
        Self::from_fields(Fields::open(&folder.join("preprocessor_config.json"))?)
    }

    /// Reads the text of a `preprocessor_config.json`.
    ///
    /// # Errors
    /// As [`GroundingDinoProcessorConfig::load`].
    pub fn from_json(text: &str) -> Result<Self, PrepError> {
        Self::from_fields(Fields::parse(text, Path::new("preprocessor_config.json"))?)
    }

    fn from_fields(mut fields: Fields) -> Result<Self, PrepError> {
        let class: Option<String> = fields.nullable("image_processor_type", None)?;
        if class.as_deref().is_some_and(|class| !CLASSES.contains(&class)) {
            let expected = CLASSES.map(|class| format!("{class:?}")).join(" or ");
            return Err(fields.error("image_processor_type", expected, format!("{class:?}")));
        }
        // The older name is read over the newer one.
        for name in ["do_pad", "pad_and_return_pixel_mask"] {
            if !fields.or(name, true)? {
                return Err(fields.error(name, "true", "false"));
            }
        }
        let default = Self::default();
        let resizes = fields.or("do_resize", true)?;
        let size = take_size(&mut fields)?.or(default.size);
        Ok(Self {
            size: size.filter(|_| resizes),
            resample: fields.or("resample", default.resample)?,
            pixels: PixelConfig::take(&mut fields, PixelStatistics::IMAGENET)?,
            pad_size: take_pad_size(&mut fields)?,
            extra: fields.into_extra(),
        })
    }

    /// The size an image of `original` pixels is brought to.
    ///
    /// # Errors
    /// [`VisionError::ImageSize`] where nothing of the image would be left.
    pub fn resized(&self, original: Size) -> Result<Size, VisionError> {
        let error = |what: &str| VisionError::ImageSize {
            height: original.height,
            width: original.width,
            what: what.to_owned(),
        };
        if original.height == 0 || original.width == 0 {
            return Err(error("nothing to see"));
        }
        let size = match self.size {
            None => original,
            Some(ResizeTo::Exact(size)) => size,
            Some(ResizeTo::Within(limit)) => {
                let (height, width) = (f64::from(original.height), f64::from(original.width));
                let scale = (f64::from(limit.height) / height).min(f64::from(limit.width) / width);
                Size { height: (height * scale) as u32, width: (width * scale) as u32 }
            }
            Some(ResizeTo::Edges { shortest, longest }) => edges(original, shortest, longest),
        };
        if size.height == 0 || size.width == 0 {
            return Err(error(&format!("it would be resized to {size}")));
        }
        Ok(size)
    }
}

/// `get_size_with_aspect_ratio`, in the same doubles.
fn edges(original: Size, shortest: u32, longest: u32) -> Size {
    let (height, width) = (original.height, original.width);
    let (short, long) = (f64::from(height.min(width)), f64::from(height.max(width)));
    let exact = (long / short * f64::from(shortest) > f64::from(longest))
        .then_some(f64::from(longest) * short / long);
    // Python rounds halves to even.
    let edge = exact.map_or(shortest, |exact| exact.round_ties_even() as u32);
    if height.min(width) == edge {
        return original;
    }
    let stretched =
        |to: u32, from: u32| (exact.unwrap_or(f64::from(edge)) * f64::from(to) / f64::from(from)) as u32;
    if width < height {
        Size { height: stretched(height, width), width: edge }
    } else {
        Size { height: edge, width: stretched(width, height) }
    }
}

/// A side of an image as a setting: positive, and small enough that a typo does not eat the memory.
fn side(value: Option<&Value>) -> Option<u32> {
    u32::from_json(value?).filter(|side| (1..=16_384).contains(side))
}

fn take_size(fields: &mut Fields) -> Result<Option<ResizeTo>, PrepError> {
    let longest = fields.value("max_size");
    let Some(value) = fields.value("size").filter(|value| !value.is_null()) else { return Ok(None) };
    let size = match &value {
        Value::Object(object) => {
            let both =
                |first: &str, second: &str| Some((side(object.get(first))?, side(object.get(second))?));
            let edges = both("shortest_edge", "longest_edge")
                .map(|(shortest, longest)| ResizeTo::Edges { shortest, longest });
            let within = || {
                both("max_height", "max_width")
                    .map(|(height, width)| ResizeTo::Within(Size { height, width }))
            };
            let exact =
                || both("height", "width").map(|(height, width)| ResizeTo::Exact(Size { height, width }));
            edges.or_else(within).or_else(exact)
        }
        // As older files have it.
        number => {
            let longest = longest.as_ref().map_or(Some(1333), |longest| side(Some(longest)));
            side(Some(number)).zip(longest).map(|(shortest, longest)| ResizeTo::Edges { shortest, longest })
        }
    };
    let expected = "{\"shortest_edge\": n, \"longest_edge\": n}, {\"max_height\": n, \"max_width\": n} or \
                    {\"height\": n, \"width\": n}, n from 1 to 16384";
    size.map(Some).ok_or_else(|| fields.error("size", expected, value.to_string()))
}

fn take_pad_size(fields: &mut Fields) -> Result<Option<Size>, PrepError> {
    let Some(value) = fields.value("pad_size").filter(|value| !value.is_null()) else { return Ok(None) };
    let size = side(value.get("height")).zip(side(value.get("width")));
    let expected = "{\"height\": n, \"width\": n}, n from 1 to 16384";
    size.map(|(height, width)| Some(Size { height, width }))
        .ok_or_else(|| fields.error("pad_size", expected, value.to_string()))
}

/// Images in one batch, filled up with zeros below and to the right.
#[derive(Debug)]
pub struct ImageBatch {
    /// `[n, 3, height, width]`, f32.
    pub pixels: Tensor,
    /// `[n, height, width]`, bool: what is image and not filling.
    pub mask: Tensor,
    /// Of each image before it was resized.
    pub originals: Vec<Size>,
}

impl ImageBatch {
    /// Prepares `images`; they end up on `device`.
    ///
    /// # Errors
    /// [`VisionError::ImageSize`] for an image without pixels, one of which resizing leaves nothing, or one larger than
    /// `pad_size`.
    ///
    /// # Panics
    /// When there are no images.
    #[track_caller]
    pub fn new(
        images: &[&RgbImage],
        config: &GroundingDinoProcessorConfig,
        device: Device,
    ) -> Result<Self, VisionError> {
        assert!(!images.is_empty(), "a batch of no images");
        let originals: Vec<Size> =
            images.iter().map(|image| Size { height: image.height(), width: image.width() }).collect();
        let sizes = originals
            .iter()
            .map(|&original| config.resized(original))
            .collect::<Result<Vec<Size>, VisionError>>()?;
        let largest = |side: fn(&Size) -> u32| sizes.iter().map(side).max().unwrap_or(0);
        let whole = config.pad_size.unwrap_or_else(|| Size {
            height: largest(|size| size.height),
            width: largest(|size| size.width),
        });
        if let Some(odd) =
            sizes.iter().position(|size| size.height > whole.height || size.width > whole.width)
        {
            let Size { height, width } = originals[odd];
            let what = format!("it comes out {}, larger than pad_size {whole}", sizes[odd]);
            return Err(VisionError::ImageSize { height, width, what });
        }
        let (height, width) = (whole.height as usize, whole.width as usize);
        let scale = PixelScale::new(config.pixels);
        let mut values = vec![0.0_f32; images.len() * 3 * height * width];
        values.par_chunks_exact_mut(3 * height * width).zip(images.par_iter().zip(&sizes)).for_each(
            |(planes, (image, size))| {
                let resized = resize(image, size.height, size.width, config.resample);
                scale.write(&resized, planes, (height, width));
            },
        );
        let shape = [images.len() as i64, 3, height as i64, width as i64];
        let mask = Tensor::zeros([shape[0], shape[2], shape[3]], (Kind::Bool, device));
        for (index, size) in sizes.iter().enumerate() {
            let rows = mask.get(index as i64).narrow(0, 0, i64::from(size.height));
            let _ = rows.narrow(1, 0, i64::from(size.width)).fill_(1);
        }
        let pixels = Tensor::from_slice(&values).view(shape).to_device(device);
        Ok(Self { pixels, mask, originals })
    }

    /// How many images there are.
    pub fn len(&self) -> usize {
        self.originals.len()
    }

    /// Whether there are none, which never is.
    pub fn is_empty(&self) -> bool {
        self.originals.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn size(height: u32, width: u32) -> Size {
        Size { height, width }
    }

    #[test]
    fn sizes_are_those_of_python() {
        let config = GroundingDinoProcessorConfig::default();
        // By transformers' get_size_with_aspect_ratio with 800 and 1333.
        for (original, wanted) in [
            (size(480, 640), size(800, 1066)),
            (size(640, 480), size(1066, 800)),
            (size(800, 900), size(800, 900)),
            (size(300, 300), size(800, 800)),
            (size(300, 900), size(444, 1333)),
            (size(1000, 333), size(1333, 444)),
            (size(1, 700), size(2, 1333)),
        ] {
            assert_eq!(config.resized(original).unwrap(), wanted, "{original}");
        }
        let other =
            GroundingDinoProcessorConfig::from_json(r#"{"size": {"max_height": 70, "max_width": 110}}"#)
                .unwrap();
        assert_eq!(other.resized(size(50, 121)).unwrap(), size(45, 110));
        assert!(matches!(config.resized(size(0, 5)), Err(VisionError::ImageSize { width: 5, .. })));
        assert!(matches!(config.resized(size(1, 4000)), Err(VisionError::ImageSize { .. })));
    }

    #[test]
    fn settings_are_read_and_odd_ones_named() {
        let read = GroundingDinoProcessorConfig::from_json;
        assert_eq!(read("{}").unwrap(), GroundingDinoProcessorConfig::default());
        let text = r#"{"size": 600, "max_size": 900, "do_rescale": false, "image_std": 2, "resample": 3,
                       "pad_size": {"height": 900, "width": 950}, "format": "coco_detection"}"#;
        let config = read(text).unwrap();
        assert_eq!(config.size, Some(ResizeTo::Edges { shortest: 600, longest: 900 }));
        assert_eq!((config.pixels.rescale_factor, config.pad_size), (None, Some(size(900, 950))));
        assert_eq!((config.pixels.statistics.unwrap().std, config.resample), ([2.0; 3], Filter::Bicubic));
        assert_eq!(config.extra.len(), 1);
        for (text, field) in [
            (r#"{"size": {"shortest_edge": 800}}"#, "size"),
            (r#"{"size": {"height": 0, "width": 7}}"#, "size"),
            (r#"{"do_pad": false}"#, "do_pad"),
            (r#"{"image_std": [1, 0, 1]}"#, "image_std"),
            (r#"{"resample": 9}"#, "resample"),
            (r#"{"pad_size": 5}"#, "pad_size"),
            (r#"{"image_processor_type": "DetrImageProcessor"}"#, "image_processor_type"),
        ] {
            let error = read(text).unwrap_err().to_string();
            assert!(
                error.contains("preprocessor_config.json") && error.contains(&format!("`{field}`")),
                "{error}"
            );
        }
    }

    #[test]
    fn images_of_a_batch_lie_in_the_upper_left() {
        let mut config = GroundingDinoProcessorConfig {
            size: None,
            pixels: PixelConfig { rescale_factor: None, statistics: None },
            ..GroundingDinoProcessorConfig::default()
        };
        let filled = |height, width, value| RgbImage::from_pixel(width, height, image::Rgb([value; 3]));
        let (first, second) = (filled(2, 3, 7), filled(3, 1, 9));
        let batch = ImageBatch::new(&[&first, &second], &config, Device::Cpu).unwrap();
        assert_eq!((batch.pixels.size(), batch.len()), (vec![2, 3, 3, 3], 2));
        let masked = batch.mask.to_kind(Kind::Float).unsqueeze(1);
        let values = Tensor::from_slice(&[7.0_f32, 9.0]).view([2, 1, 1, 1]);
        assert!(batch.pixels.equal(&(masked * values).expand([2, 3, 3, 3], false)));
        config.pad_size = Some(size(2, 9));
        assert!(ImageBatch::new(&[&first], &config, Device::Cpu).is_ok());
        let error = ImageBatch::new(&[&first, &second], &config, Device::Cpu).unwrap_err().to_string();
        assert!(error.contains("3 x 1") && error.contains("pad_size"), "{error}");
    }
}
