//! [`Grounded`]: what a text names in a picture, by GroundingDINO's boxes cut out by SAM.

use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;
use std::sync::Arc;

use anyhow::{Context, Result};
use clap::ValueEnum;
use explain_kit::share;
use image::RgbImage;
use model_kit::TorchArgs;
use sae_types::SampleId;
use stage_kit::RunManifest;
use vision_models::grounding_dino::{Detection, GroundingDino, Thresholds};
use vision_models::sam::{BoxPrompt, Sam, SamImage};

use super::segment::Segmenter;
use crate::models;

/// What is read of a model's folder.
const FILES: [&str; 6] = [
    "config.json",
    "preprocessor_config.json",
    "tokenizer*",
    "vocab.txt",
    "special_tokens_map.json",
    "*.safetensors*",
];
/// Images whose embeddings are kept, since features share them: 4 MiB each.
const KEPT: usize = 64;

/// The two models, and how they are used.
#[derive(Debug, clap::Args)]
pub(crate) struct GroundingArgs {
    /// GroundingDINO, which finds boxes: a folder in Hugging Face layout or a Hub id
    #[arg(long, default_value = "IDEA-Research/grounding-dino-base", help_heading = "Grounding")]
    grounding_dino: String,
    /// SAM, which cuts out what is in them: a folder in Hugging Face layout or a Hub id
    #[arg(long, default_value = "facebook/sam-vit-huge", help_heading = "Grounding")]
    sam: String,
    /// Boxes count from this score on
    #[arg(long, default_value_t = 0.3, value_parser = share, help_heading = "Grounding")]
    box_threshold: f32,
    /// Which of the three masks that SAM offers for a box
    #[arg(long, value_enum, default_value_t = SamMasks::Best, help_heading = "Grounding")]
    sam_masks: SamMasks,
}

/// Which masks of a box count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum SamMasks {
    /// The one SAM thinks best
    Best,
    /// All three joined, and the box cut to whole pixels before, as msae
    Msae,
}

impl SamMasks {
    /// The box that SAM is asked about. msae finds boxes with transformers' pipeline, which cuts them to whole pixels.
    fn bounds(self, found: &Detection) -> BoxPrompt {
        let side = |side: f32| f64::from(if self == Self::Msae { side.trunc() } else { side });
        BoxPrompt { left: side(found.x0), top: side(found.y0), right: side(found.x1), bottom: side(found.y1) }
    }
}

/// GroundingDINO and SAM.
pub(crate) struct Grounded {
    dino: GroundingDino,
    sam: Sam,
    thresholds: Thresholds,
    masks: SamMasks,
    kept: BTreeMap<SampleId, Rc<SamImage>>,
    order: VecDeque<SampleId>,
}

impl Grounded {
    /// Opens both models, and notes them with all that decides what they find.
    pub(crate) fn open(args: &GroundingArgs, torch: TorchArgs, manifest: &mut RunManifest) -> Result<Self> {
        let device = torch.device.open()?;
        let kind = torch.dtype.kind();
        let dino = models::find("--grounding-dino", &args.grounding_dino, &FILES, torch, manifest)?;
        let dino = GroundingDino::open(&dino, device, kind).context("opening GroundingDINO")?;
        let sam = models::find("--sam", &args.sam, &FILES, torch, manifest)?;
        let sam = Sam::open(&sam, device, kind).context("opening SAM")?;
        let masks = args.sam_masks.to_possible_value().map_or_else(String::new, |v| v.get_name().to_owned());
        manifest.settings.extend([
            ("--box-threshold".to_owned(), args.box_threshold.to_string()),
            ("--sam-masks".to_owned(), masks),
        ]);
        let thresholds = Thresholds { box_threshold: args.box_threshold, ..Thresholds::default() };
        let (kept, order) = (BTreeMap::new(), VecDeque::new());
        Ok(Self { dino, sam, thresholds, masks: args.sam_masks, kept, order })
    }

    fn embedded(&mut self, sample: SampleId, picture: &RgbImage) -> Result<Rc<SamImage>> {
        if let Some(image) = self.kept.get(&sample) {
            return Ok(Rc::clone(image));
        }
        let image = Rc::new(self.sam.embed(picture)?);
        if self.order.len() == KEPT
            && let Some(oldest) = self.order.pop_front()
        {
            self.kept.remove(&oldest);
        }
        self.kept.insert(sample, Rc::clone(&image));
        self.order.push_back(sample);
        Ok(image)
    }
}

impl Segmenter for Grounded {
    fn find(&mut self, sample: SampleId, picture: &Arc<RgbImage>, text: &str) -> Result<Vec<bool>> {
        let (width, height) = picture.dimensions();
        let mut pixels = vec![false; (width * height) as usize];
        let boxes: Vec<BoxPrompt> = self
            .dino
            .detect(picture, text, self.thresholds)?
            .into_iter()
            .map(|found| self.masks.bounds(&found))
            .collect();
        if boxes.is_empty() {
            return Ok(pixels);
        }
        let image = self.embedded(sample, picture)?;
        // The masks of one box come one after the other.
        let mut of_box = OfBox { prompt: 0, masks: Vec::new() };
        let which = self.masks;
        self.sam.for_each_mask(&image, &boxes, true, |mask| {
            if mask.prompt != of_box.prompt {
                std::mem::replace(&mut of_box, OfBox { prompt: mask.prompt, masks: Vec::new() })
                    .add(which, &mut pixels);
            }
            of_box.masks.push((mask.score, mask.pixels));
        })?;
        of_box.add(which, &mut pixels);
        Ok(pixels)
    }
}

/// The masks that SAM offers for one box, with the scores it gives them.
struct OfBox {
    prompt: usize,
    masks: Vec<(f32, Vec<bool>)>,
}

impl OfBox {
    /// Adds those that count to the pixels that are on.
    fn add(self, which: SamMasks, pixels: &mut [bool]) {
        match which {
            SamMasks::Best => {
                // Of equal ones the first.
                let best = self.masks.iter().rev().max_by(|a, b| a.0.total_cmp(&b.0));
                let Some((_, best)) = best else { return };
                pixels.iter_mut().zip(best).for_each(|(pixel, &on)| *pixel |= on);
            }
            // multimodal-sae takes the mean of the three and rounds everything above 0 up.
            SamMasks::Msae => {
                for (_, mask) in &self.masks {
                    pixels.iter_mut().zip(mask).for_each(|(pixel, &on)| *pixel |= on);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn boxes_are_cut_to_whole_pixels_as_msae_does() {
        let phrase = "red.".to_owned();
        let found = Detection { x0: 20.87, y0: -3.35, x1: 32.32, y1: 24.57, score: 0.5, phrase };
        let BoxPrompt { left, top, right, bottom } = SamMasks::Msae.bounds(&found);
        assert_eq!([left, top, right, bottom], [20.0, -3.0, 32.0, 24.0]);
        let BoxPrompt { left, top, right, bottom } = SamMasks::Best.bounds(&found);
        assert_eq!([left, top, right, bottom], [20.87, -3.35, 32.32, 24.57].map(|side: f32| f64::from(side)));
    }

    #[test]
    fn the_best_mask_counts_or_all_of_them() {
        let masks = || OfBox {
            prompt: 0,
            masks: vec![
                (0.5, vec![true, false, false, false]),
                (0.9, vec![false, true, false, false]),
                (0.9, vec![false, false, true, false]),
            ],
        };
        let mut pixels = vec![false; 4];
        masks().add(SamMasks::Best, &mut pixels);
        assert_eq!(pixels, [false, true, false, false]);
        masks().add(SamMasks::Msae, &mut pixels);
        assert_eq!(pixels, [true, true, true, false]);
    }
}
