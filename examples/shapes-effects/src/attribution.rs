//! Whether the features that bring an answer about lie on what was asked about.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use activation_view::Grid;
use anyhow::{Context, Result, ensure};
use explain::{Cut, HeatMap};
use image::RgbImage;
use mm_data::{Dataset, Field, OpenOptions, hub};
use rand::SeedableRng;
use rand::seq::IndexedRandom;
use rand_chacha::ChaCha8Rng;
use sae_types::{FeatureId, HookPoint};
use safetensors::SafeTensors;
use scoring::Proportion;
use serde::{Deserialize, Serialize};

use crate::ask::Question;
use crate::steering::Share;

/// How many of the strongest features of a scene are looked at, and as many random ones.
const TOP: usize = 3;

/// What is read of `attribution.json`.
#[derive(Deserialize)]
struct About {
    questions: Vec<AboutQuestion>,
}

#[derive(Deserialize)]
struct AboutQuestion {
    images: Vec<AboutImage>,
}

#[derive(Deserialize)]
struct AboutImage {
    start: usize,
    base: (usize, usize),
}

/// Where features lie.
#[derive(Debug, Serialize)]
pub(crate) struct Attribution {
    pub(crate) scenes: usize,
    /// Of the strongest features, those whose map lies on the object asked about by more than half.
    pub(crate) strongest: Share,
    /// Of features drawn at random among those that are on in the scene.
    pub(crate) random: Share,
    /// Of each question, in order.
    #[serde(skip)]
    pub(crate) seen: Vec<Seen>,
}

/// A scene and the features that its answer rests on most.
#[derive(Debug)]
pub(crate) struct Seen {
    pub(crate) picture: RgbImage,
    /// Each with its effect on the base tile, in all and patch by patch.
    pub(crate) strongest: Vec<(FeatureId, f64, Grid)>,
}

/// Reads the folder of `sae-attribute run` about `questions`, in their order.
pub(crate) fn judge(
    folder: &Path,
    questions: &[Question],
    dataset: &str,
    hook: &HookPoint,
    object: &str,
    seed: u64,
) -> Result<Attribution> {
    let path = folder.join("attribution.json");
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let about: About = serde_json::from_str(&text).with_context(|| format!("reading {}", path.display()))?;
    ensure!(about.questions.len() == questions.len(), "{} is of other questions", path.display());
    let path = folder.join("effects.safetensors");
    let bytes = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let file = SafeTensors::deserialize(&bytes).with_context(|| format!("reading {}", path.display()))?;
    let fields = vec![Field::Images, Field::Masks];
    let dataset = hub::open_dataset(dataset, &OpenOptions { fields, ..OpenOptions::default() })?;

    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let [mut strongest, mut random] = [Proportion::default(); 2];
    let mut seen = Vec::with_capacity(questions.len());
    for (number, (question, about)) in questions.iter().zip(&about.questions).enumerate() {
        let image = about.images.first().context("a question without an image")?;
        let effects = Effects::read(&file, &format!("{hook}.{number}"))?;
        let maps = effects.maps(image)?;
        let target = Target::of(&dataset, question.sample as usize, object)?;
        let mut by_effect: Vec<(&FeatureId, f64)> =
            maps.iter().map(|(feature, map)| (feature, map.iter().map(|&v| f64::from(v)).sum())).collect();
        by_effect.sort_by(|a, b| b.1.total_cmp(&a.1));
        by_effect.truncate(TOP);
        by_effect.retain(|(_, effect)| *effect > 0.0);
        for (feature, _) in &by_effect {
            strongest.add(target.holds(&maps[feature], image.base)?);
        }
        let all: Vec<&FeatureId> = maps.keys().collect();
        for feature in all.choose_multiple(&mut rng, TOP) {
            random.add(target.holds(&maps[feature], image.base)?);
        }
        let (rows, cols) = image.base;
        let grid = |(feature, effect): (&FeatureId, f64)| {
            (*feature, effect, Grid::new(rows, cols, maps[feature].clone()))
        };
        seen.push(Seen { picture: target.picture, strongest: by_effect.into_iter().map(grid).collect() });
    }
    let (strongest, random) = (Share::pooled(strongest), Share::pooled(random));
    Ok(Attribution { scenes: questions.len(), strongest, random, seen })
}

/// The effects of one question.
struct Effects(Vec<(FeatureId, usize, f32)>);

impl Effects {
    fn read(file: &SafeTensors<'_>, prefix: &str) -> Result<Self> {
        let words = |name: &str| -> Result<Vec<[u8; 4]>> {
            let tensor = file.tensor(&format!("{prefix}.{name}"))?;
            Ok(tensor.data().chunks_exact(4).map(|b| [b[0], b[1], b[2], b[3]]).collect())
        };
        let (features, tokens, values) = (words("feature")?, words("token")?, words("value")?);
        let entries = features.into_iter().zip(tokens).zip(values).map(|((feature, token), value)| {
            let feature = FeatureId(u32::from_le_bytes(feature));
            (feature, u32::from_le_bytes(token) as usize, f32::from_le_bytes(value))
        });
        Ok(Self(entries.collect()))
    }

    /// Each feature's effects on the base tile, row by row.
    fn maps(&self, image: &AboutImage) -> Result<BTreeMap<FeatureId, Vec<f32>>> {
        let n = image.base.0 * image.base.1;
        let mut maps: BTreeMap<FeatureId, Vec<f32>> = BTreeMap::new();
        for &(feature, token, value) in &self.0 {
            if let Some(patch) = token.checked_sub(image.start).filter(|&patch| patch < n) {
                maps.entry(feature).or_insert_with(|| vec![0.0; n])[patch] += value;
            }
        }
        ensure!(!maps.is_empty(), "no feature has an effect on the image");
        Ok(maps)
    }
}

/// A scene and the pixels of the object that a question is about.
struct Target {
    picture: RgbImage,
    pixels: Vec<bool>,
}

impl Target {
    fn of(dataset: &Dataset, sample: usize, object: &str) -> Result<Self> {
        let sample = dataset.get(sample)?;
        let mask = sample.masks.iter().find(|mask| mask.labels.iter().any(|label| label == object));
        let mask = mask.with_context(|| format!("no {object} in the scene"))?;
        let mask = image::load_from_memory(&mask.png).context("decoding a mask")?.into_luma8();
        let image = sample.images.first().context("a sample without an image")?;
        let picture = lmm_prep::decode_image(&image.bytes).context("decoding a scene")?;
        ensure!(mask.dimensions() == picture.dimensions(), "a mask of another size than its scene");
        Ok(Self { picture, pixels: mask.as_raw().iter().map(|&value| value >= 128).collect() })
    }

    /// Whether most of where the map is at least half its largest value lies on the object.
    fn holds(&self, map: &[f32], (rows, cols): (usize, usize)) -> Result<bool> {
        let heat = HeatMap::new(rows, cols, map.iter().map(|value| value.abs()).collect())?;
        let mask = heat.mask(self.picture.width(), self.picture.height(), Cut::HalfMaximum);
        let on = mask.pixels().iter().filter(|&&on| on).count();
        let both = mask.pixels().iter().zip(&self.pixels).filter(|&(&on, &own)| on && own).count();
        Ok(2 * both > on)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_map_lies_where_most_of_its_mask_is() {
        // The object is the left half.
        let target = Target { picture: RgbImage::new(4, 2), pixels: [true, true, false, false].repeat(2) };
        let holds = |map: [f32; 2]| target.holds(&map, (1, 2)).unwrap();
        assert!(holds([1.0, 0.2]) && holds([-1.0, 0.2]));
        assert!(!holds([0.2, 1.0]) && !holds([1.0, 0.9]));
    }

    #[test]
    fn only_the_base_tile_counts() {
        let image = AboutImage { start: 2, base: (1, 2) };
        let entries = [(1, 1, 9.0), (1, 3, 2.0), (2, 4, 5.0), (7, 2, -1.0)];
        let effects =
            Effects(entries.map(|(feature, token, value)| (FeatureId(feature), token, value)).into());
        let maps = effects.maps(&image).unwrap();
        assert_eq!(maps, BTreeMap::from([(FeatureId(1), vec![0.0, 2.0]), (FeatureId(7), vec![-1.0, 0.0])]));
    }
}
