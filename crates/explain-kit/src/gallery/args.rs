//! The flags of what is shown: which images, lit how, sent how.

use std::num::NonZeroU32;

use act_cache::Cache;
use clap::ValueEnum;
use explain::{Cut, Edges, Encoding, Fit, Masking};
use mm_data::Dataset;
use stage_kit::RunManifest;

use crate::gallery::pictures::Pictures;

/// How images are lit: flatten it into a binary's arguments.
#[derive(Debug, clap::Args)]
pub struct MaskArgs {
    /// Where light ends: fading over a patch, or at its edge
    #[arg(long, value_enum, default_value_t = MaskEdges::Bilinear, help_heading = "Examples")]
    mask: MaskEdges,
    /// Which patches are lit
    #[arg(long, value_enum, default_value_t = MaskCut::Positive, help_heading = "Examples")]
    cut: MaskCut,
    /// Light left where the feature is off, 0 (black) to 255
    #[arg(long, default_value_t = 31, help_heading = "Examples")]
    dim: u8,
}

/// How images are sized and sent: flatten it into a binary's arguments.
#[derive(Debug, clap::Args)]
pub struct PictureArgs {
    /// Shrink images, in their own aspect, until neither side is longer; 0: as they are
    #[arg(long, default_value_t = 336, help_heading = "Examples")]
    image_side: u32,
    /// Resize images to squares of this side instead, as msae does
    #[arg(long, conflicts_with = "image_side", help_heading = "Examples")]
    square: Option<NonZeroU32>,
    /// How images are sent
    #[arg(long, value_enum, default_value_t = ImageFormat::Jpeg, help_heading = "Examples")]
    image_format: ImageFormat,
    /// Of JPEG, 1 to 100
    #[arg(long, default_value_t = 90, value_parser = clap::value_parser!(u8).range(1..=100), help_heading = "Examples")]
    jpeg_quality: u8,
    /// MiB of decoded images kept for features that share them
    #[arg(long, default_value_t = 256, help_heading = "Examples")]
    picture_memory: usize,
}

/// Which samples of a ranking are shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Picks {
    /// The first
    Top,
    /// Half of them the first, and the others drawn from as many equal parts of the ranking behind them
    Quantiles,
    /// Drawn from all
    Random,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum MaskEdges {
    /// Fading, as msae
    Bilinear,
    /// At the edge of the patch
    Nearest,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum MaskCut {
    /// All with an activation, as msae
    Positive,
    /// Those with half of the image's largest activation or more
    HalfMaximum,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum ImageFormat {
    Jpeg,
    Png,
}

impl MaskArgs {
    /// How a heat map becomes light and shade.
    pub fn masking(&self) -> Masking {
        let edges = match self.mask {
            MaskEdges::Bilinear => Edges::Bilinear,
            MaskEdges::Nearest => Edges::Nearest,
        };
        let cut = match self.cut {
            MaskCut::Positive => Cut::Positive,
            MaskCut::HalfMaximum => Cut::HalfMaximum,
        };
        Masking { cut, edges, dim: self.dim }
    }

    /// Notes the flags.
    pub fn note_settings(&self, manifest: &mut RunManifest) {
        manifest.settings.extend([
            ("--mask".to_owned(), value_name(&self.mask)),
            ("--cut".to_owned(), value_name(&self.cut)),
            ("--dim".to_owned(), self.dim.to_string()),
        ]);
    }
}

impl PictureArgs {
    /// How large pictures are shown.
    pub fn fit(&self) -> Fit {
        match (self.square, self.image_side) {
            (Some(side), _) => Fit::Square(side.get()),
            (None, 0) => Fit::Own,
            (None, side) => Fit::Within(side),
        }
    }

    /// How they are encoded.
    pub fn encoding(&self) -> Encoding {
        match self.image_format {
            ImageFormat::Jpeg => self.jpeg(),
            ImageFormat::Png => Encoding::Png,
        }
    }

    /// JPEG of the quality asked for, which files are kept in whatever is sent.
    pub(crate) fn jpeg(&self) -> Encoding {
        Encoding::Jpeg(self.jpeg_quality)
    }

    /// The pictures of a data set, in the size they are shown in.
    pub fn pictures(&self, cache: &'static Cache, dataset: Dataset) -> Pictures {
        Pictures::new(cache, dataset, self.fit(), self.picture_memory.saturating_mul(1 << 20))
    }

    /// Notes the flags.
    pub fn note_settings(&self, manifest: &mut RunManifest) {
        let fit = match self.fit() {
            Fit::Within(side) => format!("{side}, own aspect"),
            Fit::Square(side) => format!("{side} x {side}"),
            Fit::Own => "their own".to_owned(),
        };
        let format = match self.image_format {
            ImageFormat::Jpeg => format!("jpeg, quality {}", self.jpeg_quality),
            ImageFormat::Png => "png".to_owned(),
        };
        manifest
            .settings
            .extend([("--image-side or --square".to_owned(), fit), ("--image-format".to_owned(), format)]);
    }
}

/// A choice as it is written on the command line.
pub(crate) fn value_name(value: &impl ValueEnum) -> String {
    value.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
}
