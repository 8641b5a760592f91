//! `sae-score clip`: how near an explanation is to the images in which its feature is strong.

mod record;
mod report;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use explain::{Cut, Edges, FeatureKey, HeatMap, Masking};
use explain_kit::{RunArgs, Stage};
use image::{RgbImage, imageops};
use lmm_prep::{PreprocessorConfig, TargetSize};
use mm_data::Field;
use model_kit::TorchArgs;
use sae_types::SampleId;
use scoring::clip_score;
use stage_kit::{CommonArgs, hash_bytes, hash_file};
use vision_models::Clip;

use crate::explained::ExplainedArgs;
use crate::features::ImageRun;
use crate::images::{ImageArgs, Images, Seen};
use crate::models;
use record::{ClipRecord, ImageScores};

const STAGE: Stage = Stage {
    name: "clip",
    suffix: Some("_clip"),
    extra: &["clip.summary.json", "clip.html"],
    keeps_images: false,
    flag: "--save-dir",
};

/// What is read of a model's folder.
const FILES: [&str; 8] = [
    "config.json",
    "preprocessor_config.json",
    "tokenizer*",
    "vocab.json",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "*.safetensors*",
];

pub(crate) const EXAMPLE: &str = "\
Example:
  sae-score clip --explanations explained --refined --cache cache --dataset DATASET --save-dir clip --device cuda

SAVE_DIR/clip.html shows the scores beside their baselines, clip.summary.json holds them, model_layers_24_clip.json is multimodal-sae's
form, and clip.jsonl, a line per feature, is what --resume reads. With --generated, GENERATED/model.layers.24_feature12/*.png are images that
a text-to-image model made of the explanation of feature 12.";

#[derive(Debug, clap::Args)]
pub(crate) struct ClipArgs {
    #[command(flatten)]
    explained: ExplainedArgs,
    /// Folder to write
    #[arg(long)]
    save_dir: PathBuf,
    /// CLIP: a folder in Hugging Face layout or a Hub id
    // That pull request has the safetensors, which the main branch has not.
    #[arg(long, default_value = "openai/clip-vit-base-patch32@refs/pr/15")]
    clip: String,
    /// Folder with a folder of images for each feature that a text-to-image model made of its explanation, to be scored with it too
    #[arg(long)]
    generated: Option<PathBuf>,
    /// Features with pictures in the report, half of them the best and half the worst
    #[arg(long, default_value_t = 24)]
    shown: usize,
    #[command(flatten)]
    images: ImageArgs,
    #[command(flatten)]
    run: RunArgs,
}

pub(crate) fn run(args: &ClipArgs, torch: TorchArgs, common: &CommonArgs) -> Result<()> {
    let mut run = ImageRun::open(&args.explained, &args.images, &[Field::Images], common)?;
    let model = models::find("--clip", &args.clip, &FILES, torch, &mut run.manifest)?;
    if let Some(folder) = &args.generated {
        ensure!(folder.is_dir(), "--generated {} is no folder", folder.display());
        let sha256 = hash_of_pictures(folder)?;
        run.manifest.settings.insert("--generated (SHA-256 of its images)".to_owned(), sha256);
    }
    let clip = Clip::open(&model, torch.device.open()?, torch.dtype.kind()).context("opening CLIP")?;
    run.draw_others(common.seed);
    let mut scorer = Scorer { clip, whole: BTreeMap::new(), generated: args.generated.clone() };
    run.score(
        "scoring with CLIP",
        STAGE,
        &args.save_dir,
        &args.run,
        |key, text, other, images| scorer.score(key, text, other, images),
        |explained, finder, records| report::write(args, explained, finder, records),
    )
}

/// Embeds pictures and texts, and compares them.
struct Scorer {
    clip: Clip,
    /// Embeddings of whole pictures, since features share them: 2 KiB each.
    whole: BTreeMap<SampleId, Vec<f32>>,
    generated: Option<PathBuf>,
}

impl Scorer {
    fn score(
        &mut self,
        key: &FeatureKey,
        text: &str,
        other: Option<&str>,
        images: &Images,
    ) -> Result<ClipRecord> {
        let mut record = ClipRecord::new(key, text, other);
        let texts: Vec<&str> = std::iter::once(text).chain(other).collect();
        let texts = rows(&self.clip.embed_texts(&texts)?)?;
        let other = texts.get(1);
        self.embed_whole(images)?;
        let config = self.clip.processor().config();
        let cut = images.strongest.iter().map(|seen| {
            let picture = seen.picture.as_ref().ok()?;
            Some(regions(&seen.example.heat, picture).map(|region| Some(uncut(region?, config))))
        });
        let cut: Vec<Option<[Option<RgbImage>; 2]>> = cut.collect();
        let flat: Vec<RgbImage> = cut.iter().flatten().flatten().flatten().cloned().collect();
        let mut embedded = rows(&self.clip.embed_images(&flat)?)?.into_iter();
        for (Seen { example, picture }, cut) in images.strongest.iter().zip(&cut) {
            let [lit, rest] = match (picture, cut) {
                (Ok(_), Some(cut)) => cut,
                (Err(reason), _) => {
                    record.images.push(ImageScores::failed(example.sample, reason));
                    continue;
                }
                (Ok(_), None) => continue,
            };
            let whole = &self.whole[&example.sample];
            let mut next = |region: &Option<RgbImage>| region.as_ref().and_then(|_| embedded.next());
            let (lit, rest) = (next(lit), next(rest));
            let with = |image: Option<&Vec<f32>>, text: &[f32]| clip_score(image?, text);
            record.images.push(ImageScores {
                sample: example.sample,
                whole: with(Some(whole), &texts[0]),
                other: other.and_then(|text| with(Some(whole), text)),
                region: with(lit.as_ref(), &texts[0]),
                region_other: other.and_then(|text| with(lit.as_ref(), text)),
                rest: with(rest.as_ref(), &texts[0]),
                failed: None,
            });
        }
        let random =
            images.random.iter().map(|(example, _)| clip_score(&self.whole[&example.sample], &texts[0]));
        record.random = random.collect();
        if let Some(folder) = &self.generated {
            let folder = folder.join(key.to_string());
            // Not every feature need have some.
            if folder.exists() {
                let embedded = rows(&self.clip.embed_images(&pictures_in(&folder)?)?)?;
                record.generated = embedded.iter().map(|image| clip_score(image, &texts[0])).collect();
            }
        }
        Ok(record)
    }

    /// Embeds the whole pictures that are not yet.
    fn embed_whole(&mut self, images: &Images) -> Result<()> {
        let strongest = images
            .strongest
            .iter()
            .filter_map(|seen| Some((seen.example.sample, seen.picture.as_ref().ok()?)));
        let random = images.random.iter().map(|(example, picture)| (example.sample, picture));
        let all = strongest.chain(random);
        let new: BTreeMap<SampleId, &Arc<RgbImage>> =
            all.filter(|(sample, _)| !self.whole.contains_key(sample)).collect();
        let pictures: Vec<RgbImage> = new.values().map(|picture| RgbImage::clone(picture)).collect();
        let embedded = rows(&self.clip.embed_images(&pictures)?)?;
        self.whole.extend(new.into_keys().zip(embedded));
        Ok(())
    }
}

/// Of a picture what a feature's half-maximum mask shows, and all the rest, each black elsewhere; what shows nothing is left out.
fn regions(heat: &HeatMap, picture: &RgbImage) -> [Option<RgbImage>; 2] {
    let masking = Masking { cut: Cut::HalfMaximum, edges: Edges::Nearest, dim: 0 };
    let (width, height) = picture.dimensions();
    let shade = masking.shade(heat, width, height);
    [0, 255].map(|kept| {
        let mut any = false;
        let mut region = picture.clone();
        for (pixel, shade) in region.pixels_mut().zip(shade.pixels()) {
            if shade.0[0] == kept {
                any = true;
            } else {
                pixel.0 = [0; 3];
            }
        }
        any.then_some(region)
    })
}

/// The picture in the middle of a black square, large enough that CLIP sees all of it: its processor cuts the ends of a longer side off,
/// and with them what a feature is on. A processor that stretches cuts nothing, and the picture stays.
fn uncut(picture: RgbImage, config: &PreprocessorConfig) -> RgbImage {
    if !config.do_center_crop {
        return picture;
    }
    let (width, height) = picture.dimensions();
    // Of a square of this many pixels a side, so many are seen.
    let (of, seen) = match config.size {
        _ if !config.do_resize => return picture,
        TargetSize::ShortestEdge(edge) => (edge, config.crop_size.width.min(config.crop_size.height)),
        TargetSize::Exact(size)
            if size.width * config.crop_size.height > size.height * config.crop_size.width =>
        {
            (size.width, config.crop_size.width)
        }
        TargetSize::Exact(size) => (size.height, config.crop_size.height),
    };
    let side = u64::from(width.max(height));
    let side =
        if of > seen { (side * u64::from(of)).div_ceil(u64::from(seen.max(1))) as u32 } else { side as u32 };
    if (width, height) == (side, side) {
        return picture;
    }
    let mut square = RgbImage::new(side, side);
    imageops::replace(&mut square, &picture, i64::from((side - width) / 2), i64::from((side - height) / 2));
    square
}

/// One SHA-256 of all images in the folders of a folder.
fn hash_of_pictures(folder: &Path) -> Result<String> {
    let failed = || format!("cannot read {}", folder.display());
    let mut folders = Vec::new();
    for entry in std::fs::read_dir(folder).with_context(failed)? {
        folders.push(entry.with_context(failed)?.path());
    }
    folders.retain(|path| path.is_dir());
    folders.sort();
    let mut lines = Vec::new();
    for path in folders.iter().map(|path| files_in(path)).collect::<Result<Vec<_>>>()?.into_iter().flatten() {
        let name = path.strip_prefix(folder).unwrap_or(&path).display();
        lines.push(format!("{} {name}\n", hash_file(&path)?));
    }
    Ok(hash_bytes(lines.concat().as_bytes()))
}

/// The files of a folder, in the order of their names.
fn files_in(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = std::fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?;
    let mut paths = entries.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
    paths.retain(|path| path.is_file());
    paths.sort();
    Ok(paths)
}

/// The images of a folder, in the order of their names.
fn pictures_in(folder: &Path) -> Result<Vec<RgbImage>> {
    let paths = files_in(folder)?;
    ensure!(!paths.is_empty(), "{} holds no image", folder.display());
    let open = |path: &PathBuf| {
        let bytes = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        lmm_prep::decode_image_upright(&bytes).with_context(|| format!("reading {}", path.display()))
    };
    paths.iter().map(open).collect()
}

/// Vectors `[n, width]` one by one.
fn rows(vectors: &tch::Tensor) -> Result<Vec<Vec<f32>>> {
    let (_, width) = vectors.size2()?;
    let flat: Vec<f32> = Vec::try_from(vectors.to_device(tch::Device::Cpu).reshape([-1]))?;
    Ok(flat.chunks_exact(width as usize).map(<[f32]>::to_vec).collect())
}

#[cfg(test)]
mod tests {
    use image::Rgb;
    use lmm_prep::{ImageProcessor, Size};

    use super::*;

    #[test]
    fn a_picture_falls_into_region_and_rest() {
        let picture = RgbImage::from_pixel(4, 2, Rgb([9, 8, 7]));
        let heat = HeatMap::new(1, 2, vec![1.0, 0.2]).unwrap();
        let [lit, rest] = regions(&heat, &picture).map(Option::unwrap);
        for (x, y, pixel) in lit.enumerate_pixels() {
            let (shown, black) = (Rgb([9, 8, 7]), Rgb([0; 3]));
            assert_eq!((*pixel, *rest.get_pixel(x, y)), if x < 2 { (shown, black) } else { (black, shown) });
        }
        let everywhere = HeatMap::new(1, 1, vec![1.0]).unwrap();
        let [lit, rest] = regions(&everywhere, &picture);
        assert_eq!((lit, rest), (Some(picture), None));
    }
    #[test]
    fn nothing_is_cut_off_by_a_processor_that_crops() {
        let mut config = PreprocessorConfig::default();
        config.size = TargetSize::ShortestEdge(24);
        config.crop_size = Size { height: 24, width: 24 };
        // A patch at the very end of a picture three times as wide as high.
        let mut picture = RgbImage::new(96, 32);
        for (x, y) in (0..8).flat_map(|x| (0..8).map(move |y| (x, y))) {
            picture.put_pixel(x, y, Rgb([255, 255, 255]));
        }
        let brightest = |picture: &RgbImage, config: &PreprocessorConfig| {
            let pixels = ImageProcessor::new(config.clone()).whole(picture).unwrap();
            pixels.iter().copied().fold(f32::NEG_INFINITY, f32::max)
        };
        assert!(brightest(&picture, &config) < 0.0, "the crop shows black only");
        let square = uncut(picture.clone(), &config);
        assert_eq!((square.dimensions(), *square.get_pixel(0, 32)), ((96, 96), Rgb([255, 255, 255])));
        assert!(brightest(&square, &config) > 1.0);
        // What is resized to more than is seen of it.
        config.size = TargetSize::ShortestEdge(32);
        let square = uncut(picture.clone(), &config);
        assert_eq!(square.dimensions(), (128, 128));
        assert!(brightest(&square, &config) > 1.0);
        config.do_center_crop = false;
        assert_eq!(uncut(picture.clone(), &config), picture);
        let square = RgbImage::new(32, 32);
        assert_eq!(uncut(square.clone(), &PreprocessorConfig::default()), square);
    }
}
