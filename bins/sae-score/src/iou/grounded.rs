//! [`Grounded`]: what a text names in a picture, by GroundingDINO's boxes cut out by SAM.

use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;
use std::sync::Arc;

use anyhow::{Context, Result};
use clap::ValueEnum;
use image::RgbImage;
use mm_data::hub::{self, RepoKind};
use model_kit::TorchArgs;
use sae_types::SampleId;
use stage_kit::{RunManifest, hash_file};
use vision_models::grounding_dino::{GroundingDino, Thresholds};
use vision_models::sam::{BoxPrompt, Sam, SamImage};

use super::segment::Segmenter;

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
    #[arg(long, default_value_t = 0.3, help_heading = "Grounding")]
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
    /// All three joined, as msae
    Msae,
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
        let mut found = |flag: &str, name: &str| -> Result<_> {
            let folder = hub::resolve(name, RepoKind::Model, &FILES)?;
            let sha256 = hash_file(&folder.join("config.json"))?;
            manifest.settings.insert(format!("{flag} (SHA-256 of config.json)"), sha256.clone());
            manifest.input(flag.trim_start_matches('-'), &folder.display(), sha256);
            Ok(folder)
        };
        let dino = found("--grounding-dino", &args.grounding_dino)?;
        let dino = GroundingDino::open(&dino, device, kind).context("opening GroundingDINO")?;
        let sam = found("--sam", &args.sam)?;
        let sam = Sam::open(&sam, device, kind).context("opening SAM")?;
        let masks = args.sam_masks.to_possible_value().map_or_else(String::new, |v| v.get_name().to_owned());
        manifest.settings.extend([
            ("--box-threshold".to_owned(), args.box_threshold.to_string()),
            ("--sam-masks".to_owned(), masks),
            ("--dtype".to_owned(), torch.dtype.to_string()),
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
            .map(|found| BoxPrompt {
                left: f64::from(found.x0),
                top: f64::from(found.y0),
                right: f64::from(found.x1),
                bottom: f64::from(found.y1),
            })
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
        });
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
