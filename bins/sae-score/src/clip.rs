//! `sae-score clip`: how near an explanation is to the images in which its feature is strong.

mod record;
mod report;

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use explain::{Cut, Edges, FeatureKey, HeatMap, Masking};
use explain_kit::{Folder, RunArgs, Stage};
use image::RgbImage;
use mm_data::hub::{self, RepoKind};
use model_kit::TorchArgs;
use sae_types::SampleId;
use scoring::clip_score;
use stage_kit::{CommonArgs, RunManifest, hash_file};
use vision_models::Clip;

use crate::explained::ExplainedArgs;
use crate::features::score_all;
use crate::images::{ImageArgs, Images, OtherTexts};
use record::{ClipRecord, ImageScores};

const STAGE: Stage = Stage { name: "clip", suffix: Some("_clip"), flag: "--save-dir" };

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
    #[arg(long, default_value = "openai/clip-vit-base-patch32")]
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
    let mut manifest = RunManifest::start(env!("CARGO_BIN_NAME"), env!("CARGO_PKG_VERSION"));
    manifest.seed = Some(common.seed);
    let world = common.world()?;
    manifest.world(world);
    let (explained, selection) = args.explained.open(world)?;
    let source = &args.explained.source;
    let finder = args.images.open(source, explained.cache, &selection, common.seed, &mut manifest)?;
    let finder = Arc::new(finder);
    let model = hub::resolve(&args.clip, RepoKind::Model, &FILES)?;
    let sha256 = hash_file(&model.join("config.json"))?;
    manifest.settings.insert("--clip (SHA-256 of config.json)".to_owned(), sha256.clone());
    manifest.input("clip", &model.display(), sha256);
    if let Some(folder) = &args.generated {
        ensure!(folder.is_dir(), "--generated {} is no folder", folder.display());
    }
    let generated = args.generated.as_ref().map_or_else(String::new, |folder| folder.display().to_string());
    manifest.settings.insert("--generated".to_owned(), generated);
    let clip = Clip::open(&model, torch.device.open()?, torch.dtype.kind()).context("opening CLIP")?;
    let others = OtherTexts::of(&explained, common.seed);
    let (path, texts) = (&args.save_dir, explained.texts.clone());
    let folder = Folder::<ClipRecord>::open(path, STAGE, &args.run, world, &selection, texts, &mut manifest)?;

    let mut scorer = Scorer { clip, whole: BTreeMap::new(), generated: args.generated.clone() };
    let preparing = Arc::clone(&finder);
    let counts = score_all(
        "scoring with CLIP",
        selection,
        &folder,
        move |key| preparing.find(key),
        |key, found| {
            let text = explained.texts.get(key).unwrap_or_default();
            let scored = found.and_then(|images| scorer.score(key, text, others.get(key), &images));
            scored.unwrap_or_else(|error| {
                tracing::warn!("{key}: {error:#}");
                ClipRecord::failed(key, text, format!("{error:#}"))
            })
        },
    )?;
    counts.note(&mut manifest);
    let summary =
        folder.write(&mut manifest, |_, records| report::write(args, &explained, &finder, records))?;
    counts.check(path, STAGE.name)?;
    writeln!(stage_kit::stdout(), "{}", serde_json::to_string(&summary)?)?;
    Ok(())
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
        let mut record = ClipRecord::new(key, text);
        record.other_text = other.map(str::to_owned);
        let texts: Vec<&str> = std::iter::once(text).chain(other).collect();
        let texts = rows(&self.clip.embed_texts(&texts)?)?;
        let other = texts.get(1);
        self.embed_whole(images)?;
        let regions: Vec<[Option<RgbImage>; 2]> =
            images.strongest.iter().map(|(example, picture)| regions(&example.heat, picture)).collect();
        let cut: Vec<RgbImage> = regions.iter().flatten().flatten().cloned().collect();
        let mut embedded = rows(&self.clip.embed_images(&cut)?)?.into_iter();
        for ((example, _), [lit, rest]) in images.strongest.iter().zip(&regions) {
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
        let all = images.strongest.iter().chain(&images.random);
        let new: BTreeMap<SampleId, &Arc<RgbImage>> = all
            .filter(|(example, _)| !self.whole.contains_key(&example.sample))
            .map(|(example, picture)| (example.sample, picture))
            .collect();
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

/// The images of a folder, in the order of their names.
fn pictures_in(folder: &Path) -> Result<Vec<RgbImage>> {
    let entries = std::fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?;
    let mut paths = entries.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
    paths.retain(|path| path.is_file());
    paths.sort();
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
}
