//! How well a CLIP's cosines tell the pictures a text fits from those it does not.

use std::io::Write;
use std::path::PathBuf;

use anyhow::{Context, Result};
use image::RgbImage;
use rayon::prelude::*;
use serde_json::json;
use tch::{Device, Kind, Tensor};
use vision_models::Clip;

use crate::clip_pictures::{Picture, View};
use crate::clip_texts::Text;
use crate::descriptions::{Description, Fit};
use crate::train::positive;

/// Data-set seed of the evaluation pictures: never trained on.
const EVALUATION_PICTURES: u64 = 2_002;
/// A text counts where at least so many pictures fit it, and so many do not.
const LEAST_PICTURES: usize = 10;
/// Pictures that are drawn and embedded at once.
const CHUNK: usize = 128;

const KINDS: [&str; 6] = ["colour", "shape", "texture", "extent", "several", "background"];

/// What can be chosen on the command line.
#[derive(clap::Args, Debug)]
pub(crate) struct EvaluateClipArgs {
    /// Model folder
    #[arg(default_value = "assets/shapes-clip")]
    pub(crate) model: PathBuf,
    /// Unseen pictures of each view
    #[arg(long, default_value_t = 2000, value_parser = positive)]
    pub(crate) pictures: usize,
}

/// Embeds, prints a table on stderr and one JSON object on stdout.
pub(crate) fn evaluate(args: &EvaluateClipArgs) -> Result<()> {
    let clip = Clip::open(&args.model, Device::Cpu, Kind::Float)?;
    let descriptions = Description::every();
    let texts: Vec<Text> = descriptions.iter().copied().map(Text::of).collect();
    let words: Vec<&str> = texts.iter().map(|text| text.words.as_str()).collect();
    let embedded_texts = clip.embed_texts(&words)?;
    let mut report = serde_json::Map::new();
    eprintln!(
        "{:8} {:12} {:>6} {:>8} {:>8} {:>8} {:>8}",
        "view", "kind", "texts", "AUC", "top 1", "of all", "chance"
    );
    for (name, view) in [("whole", View::Whole), ("lit", View::Lit), ("part", View::Part)] {
        let seen = Seen::new(&clip, &texts, &embedded_texts, view, args.pictures)?;
        let mut kinds = serde_json::Map::new();
        for kind in KINDS {
            let chosen: Vec<usize> =
                (0..texts.len()).filter(|&text| descriptions[text].kind() == kind).collect();
            let (auc, counted) = seen.mean_auc(&chosen);
            let best = seen.best_fits(&chosen);
            let row =
                [auc, best.right, best.chance].map(|value| value.map_or_else(dash, |v| format!("{v:.4}")));
            eprintln!(
                "{name:8} {kind:12} {counted:>6} {:>8} {:>8} {:>8} {:>8}",
                row[0], row[1], best.pictures, row[2]
            );
            kinds.insert(
                kind.to_owned(),
                json!({"auc": auc, "texts": counted, "top_1": best.right, "pictures": best.pictures,
                       "chance": best.chance}),
            );
        }
        let all = seen.best_fits(&(0..texts.len()).collect::<Vec<_>>());
        let row = [all.right, all.chance].map(|value| value.map_or_else(dash, |v| format!("{v:.4}")));
        eprintln!(
            "{name:8} {:12} {:>6} {:>8} {:>8} {:>8} {:>8}",
            "all", "", "", row[0], all.pictures, row[1]
        );
        kinds.insert(
            "all".to_owned(),
            json!({"top_1": all.right, "pictures": all.pictures, "chance": all.chance}),
        );
        report.insert(name.to_owned(), kinds.into());
    }
    let report = json!({"pictures": args.pictures, "seed": EVALUATION_PICTURES, "views": report});
    let mut stdout = std::io::stdout().lock();
    writeln!(stdout, "{report}")?;
    Ok(())
}

fn dash() -> String {
    "-".to_owned()
}

/// Cosines of pictures and texts, and whether they fit: both `[pictures, texts]`.
struct Seen {
    cosines: Vec<Vec<f32>>,
    fits: Vec<Vec<Fit>>,
}

/// Of the pictures that some text fits, how many get one that does as their best.
struct BestFits {
    pictures: usize,
    right: Option<f64>,
    /// The share that a text at random would have.
    chance: Option<f64>,
}

impl Seen {
    fn new(clip: &Clip, texts: &[Text], embedded_texts: &Tensor, view: View, count: usize) -> Result<Self> {
        let mut seen = Self { cosines: Vec::new(), fits: Vec::new() };
        for indices in (0..count as u64).collect::<Vec<_>>().chunks(CHUNK) {
            let drawn: Vec<(RgbImage, Vec<Fit>)> = indices
                .par_iter()
                .map(|&index| {
                    let picture = Picture::draw(EVALUATION_PICTURES, index, view);
                    let fits = texts.iter().map(|text| picture.fit(text)).collect();
                    (picture.image, fits)
                })
                .collect();
            let (images, fits): (Vec<RgbImage>, Vec<Vec<Fit>>) = drawn.into_iter().unzip();
            let cosines = clip.embed_images(&images)?.matmul(&embedded_texts.tr());
            let cosines: Vec<f32> =
                Vec::try_from(cosines.contiguous().view(-1)).context("reading cosines")?;
            seen.cosines.extend(cosines.chunks(texts.len()).map(<[f32]>::to_vec));
            seen.fits.extend(fits);
        }
        Ok(seen)
    }

    /// The mean over texts of the area under the curve of their cosines, and of how many.
    fn mean_auc(&self, texts: &[usize]) -> (Option<f64>, usize) {
        let aucs: Vec<f64> = texts
            .iter()
            .filter_map(|&text| {
                let of = |wanted: Fit| -> Vec<f32> {
                    let rows = self.cosines.iter().zip(&self.fits);
                    rows.filter(|(_, fits)| fits[text] == wanted).map(|(row, _)| row[text]).collect()
                };
                let (yes, no) = (of(Fit::Yes), of(Fit::No));
                (yes.len() >= LEAST_PICTURES && no.len() >= LEAST_PICTURES).then(|| auc(yes, no))
            })
            .collect();
        let mean = (!aucs.is_empty()).then(|| aucs.iter().sum::<f64>() / aucs.len() as f64);
        (mean, aucs.len())
    }

    fn best_fits(&self, texts: &[usize]) -> BestFits {
        let (mut pictures, mut right, mut chance) = (0, 0, 0.0);
        for (cosines, fits) in self.cosines.iter().zip(&self.fits) {
            let clear = || texts.iter().copied().filter(|&text| fits[text] != Fit::Unclear);
            let fitting = clear().filter(|&text| fits[text] == Fit::Yes).count();
            // The lower index wins a tie.
            let best = clear().reduce(|best, text| if cosines[text] > cosines[best] { text } else { best });
            let Some(best) = best.filter(|_| fitting > 0) else { continue };
            pictures += 1;
            right += usize::from(fits[best] == Fit::Yes);
            chance += fitting as f64 / clear().count() as f64;
        }
        let share = |sum: f64| (pictures > 0).then(|| sum / pictures as f64);
        BestFits { pictures, right: share(right as f64), chance: share(chance) }
    }
}

/// The share of pairs in which the first list's value is larger; a tie counts half.
fn auc(mut yes: Vec<f32>, mut no: Vec<f32>) -> f64 {
    yes.sort_by(f32::total_cmp);
    no.sort_by(f32::total_cmp);
    let (mut below, mut not_above) = (0, 0);
    let mut larger = 0.0;
    for value in &yes {
        while below < no.len() && no[below] < *value {
            below += 1;
        }
        while not_above < no.len() && no[not_above] <= *value {
            not_above += 1;
        }
        larger += (below + not_above) as f64 / 2.0;
    }
    larger / (yes.len() as f64 * no.len() as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn auc_counts_pairs_and_halves_ties() {
        // Of 6 pairs: 0.9 beats all three, 0.4 beats 0.1, ties with 0.4, loses to 0.5.
        assert_eq!(auc(vec![0.9, 0.4], vec![0.1, 0.5, 0.4]), (3.0 + 1.0 + 0.5) / 6.0);
        assert_eq!(auc(vec![1.0], vec![0.0]), 1.0);
        assert_eq!(auc(vec![0.0, 0.0], vec![0.0]), 0.5);
    }

    #[test]
    fn the_committed_model_tells_what_fits() {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../assets/shapes-clip");
        let clip = Clip::open(&folder, Device::Cpu, Kind::Float).unwrap();
        let single = crate::clip_texts::single_words();
        let texts: Vec<Text> = single.iter().copied().map(Text::of).collect();
        let words: Vec<&str> = texts.iter().map(|text| text.words.as_str()).collect();
        let embedded = clip.embed_texts(&words).unwrap();
        for (view, least) in [(View::Whole, 0.93), (View::Lit, 0.92), (View::Part, 0.97)] {
            let seen = Seen::new(&clip, &texts, &embedded, view, 96).unwrap();
            let (auc, counted) = seen.mean_auc(&(0..texts.len()).collect::<Vec<_>>());
            let auc = auc.unwrap();
            assert!(auc > least && counted > 10, "{view:?}: {auc} of {counted} words");
        }
    }

    #[test]
    fn the_best_text_counts_among_clear_ones_of_pictures_that_something_fits() {
        let seen = Seen {
            cosines: vec![vec![0.3, 0.9, 0.5], vec![0.1, 0.2, 0.3], vec![0.4, 0.3, 0.1]],
            fits: vec![
                vec![Fit::No, Fit::Unclear, Fit::Yes],
                vec![Fit::No, Fit::No, Fit::No],
                vec![Fit::No, Fit::Yes, Fit::Yes],
            ],
        };
        let best = seen.best_fits(&[0, 1, 2]);
        assert_eq!((best.pictures, best.right), (2, Some(0.5)));
        assert_eq!(best.chance, Some(f64::midpoint(1.0 / 2.0, 2.0 / 3.0)));
        assert_eq!(seen.best_fits(&[0]).right, None);
    }
}
