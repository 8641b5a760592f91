//! [`SamProcessor`]: an image as the encoder takes it, and coordinates of the image as the prompt encoder takes them.

use std::path::Path;

use image::RgbImage;
use lmm_prep::{Fields, Filter, FromJson, PixelConfig, PixelScale, PixelStatistics, PrepError, Size, resize};
use serde_json::{Map, Value};
use torch_nn::tch::Tensor;

use crate::VisionError;

/// Mirror of `preprocessor_config.json` as transformers 4.57's `SamImageProcessor` reads it, with that class's defaults.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct SamProcessorConfig {
    /// `size.longest_edge`: what the longer side of an image becomes, in pixels.
    pub longest_edge: u32,
    /// The canvas the image is put on, at its upper left corner.
    pub pad_size: Size,
    /// Resampling filter.
    pub resample: Filter,
    /// What is done to the values of pixels.
    pub pixels: PixelConfig,
    /// Keys that nothing here reads.
    pub extra: Map<String, Value>,
}

impl Default for SamProcessorConfig {
    fn default() -> Self {
        Self {
            longest_edge: 1024,
            pad_size: Size { height: 1024, width: 1024 },
            resample: Filter::Bilinear,
            pixels: PixelConfig::new(PixelStatistics::IMAGENET),
            extra: Map::new(),
        }
    }
}

impl SamProcessorConfig {
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
    /// As [`SamProcessorConfig::load`].
    pub fn from_json(text: &str) -> Result<Self, PrepError> {
        Self::from_fields(Fields::parse(text, Path::new("preprocessor_config.json"))?)
    }

    fn from_fields(mut fields: Fields) -> Result<Self, PrepError> {
        if let Some(kind) = fields.nullable::<String>("image_processor_type", None)?
            && !matches!(kind.as_str(), "SamImageProcessor" | "SamImageProcessorFast")
        {
            let expected = "\"SamImageProcessor\" or \"SamImageProcessorFast\"";
            return Err(fields.error("image_processor_type", expected, format!("{kind:?}")));
        }
        // Coordinates of prompts and of masks follow from both, so that neither can be left out.
        for step in ["do_resize", "do_pad"] {
            if !fields.or(step, true)? {
                return Err(fields.error(step, "true", "false"));
            }
        }
        let default = Self::default();
        let longest_edge = fields.value("size").filter(|value| !value.is_null());
        let longest_edge = longest_edge.map_or(Ok(default.longest_edge), |value| {
            let edge = value.as_object().map_or(Some(&value), |object| object.get("longest_edge"));
            edge.and_then(side).ok_or_else(|| {
                fields.error("size", "{\"longest_edge\": n}, n from 1 to 16384", value.to_string())
            })
        })?;
        let pad_size = fields.value("pad_size").filter(|value| !value.is_null());
        let pad_size = pad_size.map_or(Ok(default.pad_size), |value| {
            let (height, width) = match &value {
                Value::Object(object) => (object.get("height"), object.get("width")),
                number => (Some(number), Some(number)),
            };
            let sides = height.and_then(side).zip(width.and_then(side));
            let expected = "{\"height\": n, \"width\": n}, n from 1 to 16384";
            let size = sides.map(|(height, width)| Size { height, width });
            size.ok_or_else(|| fields.error("pad_size", expected, value.to_string()))
        })?;
        if longest_edge > pad_size.height.min(pad_size.width) {
            let expected = format!("sides of at least size.longest_edge = {longest_edge}");
            return Err(fields.error("pad_size", expected, pad_size.to_string()));
        }
        Ok(Self {
            longest_edge,
            pad_size,
            resample: fields.or("resample", default.resample)?,
            pixels: PixelConfig::take(&mut fields, PixelStatistics::IMAGENET)?,
            extra: fields.into_extra(),
        })
    }
}

fn side(value: &Value) -> Option<u32> {
    u32::from_json(value).filter(|side| (1..=16_384).contains(side))
}

/// The sizes an image has on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SamSizes {
    /// As it was given.
    pub original: Size,
    /// Within the canvas, whose rest is padding.
    pub resized: Size,
}

/// Equal to transformers 4.57's `SamImageProcessor` (the PIL one), to the bit; images 1 or 3 pixels high are not taken for
/// channels-first arrays, where Python guesses so.
#[derive(Clone, Debug)]
pub struct SamProcessor {
    config: SamProcessorConfig,
    scale: PixelScale,
}

impl SamProcessor {
    /// A processor with these settings.
    pub fn new(config: SamProcessorConfig) -> Self {
        let scale = PixelScale::new(config.pixels);
        Self { config, scale }
    }

    /// The settings.
    pub fn config(&self) -> &SamProcessorConfig {
        &self.config
    }

    /// The sizes of an image of `original` pixels.
    ///
    /// # Errors
    /// [`PrepError::EmptyImage`], and [`VisionError::ImageSize`] for one so thin that it would vanish.
    pub fn sizes(&self, original: Size) -> Result<SamSizes, VisionError> {
        let Size { height, width } = original;
        if height == 0 || width == 0 {
            return Err(PrepError::EmptyImage { height, width }.into());
        }
        let scale = f64::from(self.config.longest_edge) / f64::from(height.max(width));
        let scaled = |side: u32| (f64::from(side) * scale + 0.5) as u32;
        let resized = Size { height: scaled(height), width: scaled(width) };
        if resized.height == 0 || resized.width == 0 {
            let what = format!("nothing is left of its shorter side when its longer one is {resized}");
            return Err(VisionError::ImageSize { height, width, what });
        }
        Ok(SamSizes { original, resized })
    }

    /// The image resized, normalised and padded with zeros below and to the right: `[1, 3, pad height, pad width]`, f32, on
    /// the CPU.
    ///
    /// # Errors
    /// As [`SamProcessor::sizes`].
    pub fn pixels(&self, image: &RgbImage) -> Result<(Tensor, SamSizes), VisionError> {
        let sizes = self.sizes(Size { height: image.height(), width: image.width() })?;
        let resized = resize(image, sizes.resized.height, sizes.resized.width, self.config.resample);
        let (rows, cols) = (self.config.pad_size.height as usize, self.config.pad_size.width as usize);
        let mut pixels = vec![0.0_f32; 3 * rows * cols];
        self.scale.write(&resized, &mut pixels, (rows, cols));
        Ok((Tensor::from_slice(&pixels).view([1, 3, rows as i64, cols as i64]), sizes))
    }
}

impl SamSizes {
    /// A place in the image, as a place on the canvas.
    pub(super) fn on_canvas(&self, [x, y]: [f64; 2]) -> [f64; 2] {
        let ratio = |to: u32, from: u32| f64::from(to) / f64::from(from);
        [
            x * ratio(self.resized.width, self.original.width),
            y * ratio(self.resized.height, self.original.height),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sizes(height: u32, width: u32) -> Result<Size, VisionError> {
        let processor = SamProcessor::new(SamProcessorConfig::default());
        processor.sizes(Size { height, width }).map(|sizes| sizes.resized)
    }

    #[test]
    fn the_longer_side_becomes_the_edge_and_the_other_is_rounded() {
        // By Python's int(side * (1024.0 / longest) + 0.5).
        let expected = [((1200, 1800), (683, 1024)), ((1024, 1024), (1024, 1024)), ((3, 2), (1024, 683))];
        for ((height, width), (rows, cols)) in expected {
            assert_eq!(sizes(height, width).unwrap(), Size { height: rows, width: cols });
        }
        assert!(matches!(sizes(1, 2049), Err(VisionError::ImageSize { height: 1, width: 2049, .. })));
        assert!(matches!(sizes(0, 5), Err(VisionError::Prep(PrepError::EmptyImage { .. }))));
    }

    #[test]
    fn settings_that_would_change_the_geometry_are_refused_by_name() {
        let refused = |text: &str, field: &str| {
            let error = SamProcessorConfig::from_json(text).unwrap_err().to_string();
            assert!(error.contains(&format!("`{field}`")), "{text}: {error}");
        };
        refused(r#"{"do_resize": false}"#, "do_resize");
        refused(r#"{"do_pad": false}"#, "do_pad");
        refused(r#"{"size": {"shortest_edge": 5}}"#, "size");
        refused(r#"{"size": {"longest_edge": 1025}}"#, "pad_size");
        refused(r#"{"pad_size": {"height": 1024}}"#, "pad_size");
        refused(r#"{"resample": 9}"#, "resample");
        refused(r#"{"image_std": [1, 0, 1]}"#, "image_std");
        refused(r#"{"image_mean": [1, 2]}"#, "image_mean");
        refused(r#"{"image_processor_type": "CLIPImageProcessor"}"#, "image_processor_type");
        assert_eq!(SamProcessorConfig::from_json("{}").unwrap(), SamProcessorConfig::default());
        let other =
            SamProcessorConfig::from_json(r#"{"size": 64, "pad_size": 80, "image_mean": 0.5, "old": 1}"#)
                .unwrap();
        let mean = other.pixels.statistics.unwrap().mean;
        assert_eq!((other.longest_edge, other.pad_size.width, mean), (64, 80, [0.5; 3]));
        assert_eq!(other.extra.len(), 1);
    }
}
