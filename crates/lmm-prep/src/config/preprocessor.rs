//! `preprocessor_config.json`: what is done to an image's pixels.

use std::path::Path;

use serde_json::{Map, Value};

use super::{Size, default_pinpoints, take_pinpoints};
use crate::error::PrepError;
use crate::json::{Fields, FromJson};
use crate::pixel_scale::{PixelConfig, PixelStatistics};
use crate::resample::Filter;

/// The `size` an image or tile is resized to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TargetSize {
    /// The shorter edge gets this length, the other keeps the aspect ratio.
    ShortestEdge(u32),
    /// Both edges are given.
    Exact(Size),
}

/// Mirror of transformers 4.57's `LlavaNextImageProcessor`, with that class's defaults ([`PreprocessorConfig::default`]).
/// `CLIPImageProcessor` and `BitImageProcessor` have the same fields and defaults but for the canvases.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct PreprocessorConfig {
    /// Resize every tile to `size` (which changes nothing where tiles already have it).
    pub do_resize: bool,
    /// Size of the base tile: its shortest edge, or the lesser of height and width, squared.
    pub size: TargetSize,
    /// The canvases tiles are cut from.
    pub image_grid_pinpoints: Vec<Size>,
    /// Resampling filter of every resize.
    pub resample: Filter,
    /// Crop every tile to `crop_size` about its centre.
    pub do_center_crop: bool,
    /// Its height is also the side of the tiles cut from the canvas.
    pub crop_size: Size,
    /// What is done to the values of pixels.
    pub pixels: PixelConfig,
    /// Keys that nothing here reads.
    pub extra: Map<String, Value>,
}

impl Default for PreprocessorConfig {
    fn default() -> Self {
        Self {
            do_resize: true,
            size: TargetSize::ShortestEdge(224),
            image_grid_pinpoints: default_pinpoints(),
            resample: Filter::Bicubic,
            do_center_crop: true,
            crop_size: Size { height: 224, width: 224 },
            pixels: PixelConfig::new(PixelStatistics::CLIP),
            extra: Map::new(),
        }
    }
}

/// Classes whose images are cut into tiles.
const TILING: &[&str] = &["LlavaNextImageProcessor", "LlavaNextImageProcessorFast"];
/// Classes whose images are seen whole, or whose base tile shows them whole.
const WHOLE: &[&str] = &[
    "CLIPImageProcessor",
    "CLIPImageProcessorFast",
    "CLIPFeatureExtractor",
    "BitImageProcessor",
    "BitImageProcessorFast",
    "LlavaNextImageProcessor",
    "LlavaNextImageProcessorFast",
];

impl PreprocessorConfig {
    /// Reads `preprocessor_config.json` of a model folder.
    ///
    /// # Errors
    /// [`PrepError::Read`], [`PrepError::Json`], or [`PrepError::Field`] naming the field at fault.
    pub fn load(folder: &Path) -> Result<Self, PrepError> {
        Self::from_fields(Fields::open(&folder.join("preprocessor_config.json"))?, TILING)
    }

    /// Reads `preprocessor_config.json` of an encoder that sees an image whole ([`crate::ImageProcessor::whole`]): that of
    /// CLIP or DINOv2, or of LLaVA-NeXT for its bare vision tower.
    ///
    /// # Errors
    /// As [`PreprocessorConfig::load`].
    pub fn load_whole(folder: &Path) -> Result<Self, PrepError> {
        Self::from_fields(Fields::open(&folder.join("preprocessor_config.json"))?, WHOLE)
    }

    /// Reads the text of a `preprocessor_config.json`.
    ///
    /// # Errors
    /// As [`PreprocessorConfig::load`].
    pub fn from_json(text: &str) -> Result<Self, PrepError> {
        Self::from_fields(Fields::parse(text, Path::new("preprocessor_config.json"))?, TILING)
    }

    fn from_fields(mut fields: Fields, classes: &[&str]) -> Result<Self, PrepError> {
        if let Some(class) = fields.nullable::<String>("image_processor_type", None)?
            && !classes.contains(&class.as_str())
        {
            let expected: Vec<String> = classes.iter().map(|class| format!("{class:?}")).collect();
            return Err(fields.error("image_processor_type", expected.join(" or "), format!("{class:?}")));
        }
        let default = Self::default();
        Ok(Self {
            do_resize: fields.or("do_resize", default.do_resize)?,
            size: take_size(&mut fields)?.unwrap_or(default.size),
            image_grid_pinpoints: take_pinpoints(&mut fields)?.unwrap_or(default.image_grid_pinpoints),
            resample: fields.or("resample", Filter::Bicubic)?,
            do_center_crop: fields.or("do_center_crop", default.do_center_crop)?,
            crop_size: take_crop_size(&mut fields)?.unwrap_or(default.crop_size),
            pixels: PixelConfig::take(&mut fields, PixelStatistics::CLIP)?,
            extra: fields.into_extra(),
        })
    }

    /// The size every image has that is seen whole; `None` where it depends on the image.
    pub fn whole_size(&self) -> Option<Size> {
        match self.size {
            _ if self.do_center_crop => Some(self.crop_size),
            TargetSize::Exact(size) if self.do_resize => Some(size),
            _ => None,
        }
    }

    /// Side of the square base tile, in pixels.
    pub fn base_side(&self) -> u32 {
        match self.size {
            TargetSize::ShortestEdge(edge) => edge,
            TargetSize::Exact(size) => size.height.min(size.width),
        }
    }
}

/// A side of an image as a setting: positive, and small enough that a typo does not eat the memory.
fn side(value: &Value) -> Option<u32> {
    u32::from_json(value).filter(|side| (1..=16_384).contains(side))
}

fn both(object: &Map<String, Value>) -> Option<Size> {
    Some(Size { height: side(object.get("height")?)?, width: side(object.get("width")?)? })
}

fn take_size(fields: &mut Fields) -> Result<Option<TargetSize>, PrepError> {
    let Some(value) = fields.value("size").filter(|value| !value.is_null()) else { return Ok(None) };
    let size = match &value {
        Value::Object(object) if object.contains_key("shortest_edge") => {
            side(&object["shortest_edge"]).map(TargetSize::ShortestEdge)
        }
        Value::Object(object) => both(object).map(TargetSize::Exact),
        Value::Array(pair) if pair.len() == 2 => side(&pair[0])
            .zip(side(&pair[1]))
            .map(|(height, width)| TargetSize::Exact(Size { height, width })),
        number => side(number).map(TargetSize::ShortestEdge),
    };
    let expected = "{\"shortest_edge\": n} or {\"height\": n, \"width\": n}, n from 1 to 16384";
    size.map(Some).ok_or_else(|| fields.error("size", expected, value.to_string()))
}

fn take_crop_size(fields: &mut Fields) -> Result<Option<Size>, PrepError> {
    let Some(value) = fields.value("crop_size").filter(|value| !value.is_null()) else { return Ok(None) };
    let size = match &value {
        Value::Object(object) => both(object),
        Value::Array(pair) if pair.len() == 2 => {
            side(&pair[0]).zip(side(&pair[1])).map(|(height, width)| Size { height, width })
        }
        number => side(number).map(|side| Size { height: side, width: side }),
    };
    let expected = "{\"height\": n, \"width\": n}, n from 1 to 16384";
    size.map(Some).ok_or_else(|| fields.error("crop_size", expected, value.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn whole(text: &str) -> Result<PreprocessorConfig, PrepError> {
        let fields = Fields::parse(text, Path::new("preprocessor_config.json"))?;
        PreprocessorConfig::from_fields(fields, WHOLE)
    }

    #[test]
    fn an_encoder_that_sees_images_whole_may_have_any_of_its_classes() {
        for class in
            ["CLIPImageProcessor", "CLIPFeatureExtractor", "BitImageProcessor", "LlavaNextImageProcessor"]
        {
            let text = format!(r#"{{"image_processor_type": "{class}", "size": 30, "crop_size": 20}}"#);
            let config = whole(&text).unwrap();
            assert_eq!(config.size, TargetSize::ShortestEdge(30), "{class}");
            assert_eq!(config.whole_size(), Some(Size { height: 20, width: 20 }), "{class}");
        }
        let error = whole(r#"{"image_processor_type": "SamImageProcessor"}"#).unwrap_err().to_string();
        assert!(error.contains("SamImageProcessor") && error.contains("BitImageProcessor"), "{error}");
        let tiling = PreprocessorConfig::from_json(r#"{"image_processor_type": "CLIPImageProcessor"}"#);
        assert!(tiling.is_err(), "{tiling:?}");
    }

    #[test]
    fn the_size_of_a_whole_image_is_known_unless_only_one_edge_is() {
        let size = |text: &str| whole(text).unwrap().whole_size();
        let exact = r#""size": {"height": 8, "width": 9}, "do_center_crop": false"#;
        assert_eq!(size(&format!("{{{exact}}}")), Some(Size { height: 8, width: 9 }));
        assert_eq!(size(&format!(r#"{{{exact}, "do_resize": false}}"#)), None);
        assert_eq!(size(r#"{"size": 8, "do_center_crop": false}"#), None);
    }
}
