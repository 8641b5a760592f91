//! The Rust side of `compare/cache.py`: makes a synthetic cache in two layouts, and ranks the images of all its features.
//!
//! The command is one JSON object, the only argument. What it did is one JSON object on stdout.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use act_cache::{
    ActivationDtype, BaseTile, Cache, CacheDescription, CacheWriter, DatasetSource, Duplicates,
    HookDescription, Ranking, SampleCodes, SampleRecord, Selection, WriterOptions,
};
use anyhow::{Context, Result};
use half::bf16;
use lmm_sae_benches::inputs;
use rayon::prelude::*;
use sae_types::{FeatureId, Filters, HookPoint, SampleId, SparseCodes};
use serde::Deserialize;
use serde_json::{Value, json};

/// The autoencoder of msae: latents, and how many are on per token.
const LATENTS: usize = 131_072;
const K: usize = 256;
/// The hook point of msae's autoencoder.
const LAYER: usize = 24;
/// Patches along a side of LLaVA-NeXT's base tile, which begins after BOS.
const SIDE: u32 = 24;
const FIRST: u32 = 1;
const END: u32 = FIRST + SIDE * SIDE;

#[derive(Deserialize)]
#[serde(tag = "command", rename_all = "snake_case", deny_unknown_fields)]
enum Command {
    /// Makes `folder/native` and `folder/msae` with the same activations of `features` of the latents over `images`.
    Make { folder: PathBuf, images: u32, features: u32, splits: usize, seed: u64 },
    /// The `n` best images by mean over the base tile of every feature of `folder/native`, written to `out`.
    Top { folder: PathBuf, n: usize, out: PathBuf },
}

fn main() -> Result<()> {
    let command = std::env::args().nth(1).context("expected one argument, a JSON object")?;
    let answer = match serde_json::from_str(&command)? {
        Command::Make { folder, images, features, splits, seed } => {
            write_native(&folder.join("native"), images, features, splits, seed)?;
            let activations = write_msae(&folder)?;
            json!({ "activations": activations, "split_bytes": {
                "native": safetensors_bytes(&folder.join("native"))?, "msae": safetensors_bytes(&folder.join("msae"))?,
            }})
        }
        Command::Top { folder, n, out } => top(&folder.join("native"), n, &out)?,
    };
    writeln!(std::io::stdout(), "{answer}")?;
    Ok(())
}

/// How often and how a feature fires.
struct Habit {
    feature: FeatureId,
    /// Share of the images.
    share: f64,
    /// Patches of a side of the square it fires on.
    side: u32,
    /// Share of the square's patches that are on.
    filled: f64,
    scale: f32,
}

/// One of the 64 streams of a seed: 0 to 19 say how features are, this one what images show.
const IMAGES: u64 = 63;

fn uniform(seed: u64, stream: u64, index: u64) -> f64 {
    f64::from(inputs::unit(64 * seed + stream, index))
}

/// Densities are log-normal (sigma 1.5) around `K / LATENTS`, squares 2 to 9 patches wide.
fn habits(features: u32, seed: u64) -> Vec<Habit> {
    let of = |number: u32| {
        let draw = |what: u64| uniform(seed, what, u64::from(number));
        // Twelve uniform numbers less 6 are nearly a standard normal one.
        let normal: f64 = (0..12).map(|i| draw(8 + i)).sum::<f64>() - 6.0;
        let sigma = 1.5;
        let density = K as f64 / LATENTS as f64 * (sigma * normal - sigma * sigma / 2.0).exp();
        let (side, filled) = (2 + (draw(1) * 8.0) as u32, 0.4 + 0.5 * draw(2));
        let on = f64::from(side * side) * filled / f64::from(SIDE * SIDE);
        let feature = (u64::from(number) * LATENTS as u64 / u64::from(features)) as u32;
        let scale = (0.5 + 3.0 * draw(3)) as f32;
        Habit { feature: FeatureId(feature), share: (density / on).min(1.0), side, filled, scale }
    };
    (0..features).map(of).collect()
}

fn write_native(dir: &Path, images: u32, features: u32, n_splits: usize, seed: u64) -> Result<()> {
    let habits = habits(features, seed);
    let hook = HookPoint::layer(LAYER);
    let dataset =
        DatasetSource { n_samples: u64::from(images), name: "synthetic".into(), ..Default::default() };
    let mut description = CacheDescription { model: "synthetic".into(), dataset, ..Default::default() };
    description.token_layout.base = Some(BaseTile { start: FIRST, rows: SIDE, cols: SIDE });
    description.token_layout.first = FIRST;
    let ids = habits.iter().map(|habit| habit.feature).collect();
    description.filters = Some(Filters::from(BTreeMap::from([(hook.clone(), ids)])));
    let about = HookDescription { width: LATENTS, k: K, ..HookDescription::default() };
    description.hooks.insert(hook.clone(), about);
    let options = WriterOptions { n_splits, dtype: ActivationDtype::Bf16, memory_budget: 512 << 20 };
    let mut writer = CacheWriter::create(dir, description, options)?;
    let tokens: Vec<u32> = (FIRST..END).collect();
    for block in (0..images).collect::<Vec<_>>().chunks(64) {
        let made: Vec<SparseCodes> =
            block.par_iter().map(|&image| codes(&habits, image, seed)).collect::<Result<_>>()?;
        for (&image, codes) in block.iter().zip(&made) {
            let record = SampleRecord {
                sample: SampleId(image),
                n_tokens: END,
                width: 336,
                height: 336,
                image_sha256: Some(format!("{image:064x}")),
                image_tokens: vec![[FIRST, END]],
                ..SampleRecord::default()
            };
            writer.push(&record, &[SampleCodes { hook: &hook, tokens: &tokens, codes }])?;
        }
    }
    writer.finish()?;
    Ok(())
}

/// What fires on the patches of an image: each feature it shows on one square, at strengths around the feature's own.
fn codes(habits: &[Habit], image: u32, seed: u64) -> Result<SparseCodes> {
    let mut on: Vec<Vec<(FeatureId, f32)>> = vec![Vec::new(); (SIDE * SIDE) as usize];
    for (number, habit) in habits.iter().enumerate() {
        let draw = |i: u64| uniform(seed, IMAGES, (((u64::from(image) << 24) | number as u64) << 8) + i);
        if draw(0) >= habit.share {
            continue;
        }
        let strength = habit.scale * (0.3 + draw(1) as f32) * (1.0 + draw(2) as f32);
        let corner = |i| (draw(i) * f64::from(SIDE - habit.side + 1)) as u32;
        let (row, col) = (corner(3), corner(4));
        for patch in 0..habit.side * habit.side {
            let i = 8 + 2 * u64::from(patch);
            if draw(i) < habit.filled {
                let at = (row + patch / habit.side) * SIDE + col + patch % habit.side;
                on[at as usize].push((habit.feature, strength * (0.5 + draw(i + 1) as f32)));
            }
        }
    }
    let mut codes = SparseCodes::new(LATENTS);
    on.into_iter().try_for_each(|row| codes.push_row(row))?;
    Ok(codes)
}

/// The native cache as msae writes its own: per split `locations` i64 `[n, 3]` (image, token without BOS, latent) in the
/// order of images and tokens, and `activations` bf16 `[n]`. How many activations there are.
fn write_msae(folder: &Path) -> Result<u64> {
    let cache = Cache::open(&folder.join("native"))?;
    let hook = HookPoint::layer(LAYER);
    let layer = cache.hook(&hook)?;
    let dir = folder.join("msae").join(hook.as_str());
    fs::create_dir_all(&dir)?;
    let stored = layer.stored();
    let mut total = 0;
    for split in &cache.manifest().hooks[&hook].splits {
        let of_split = stored.iter().filter(|feature| (split.start..split.end).contains(&feature.index()));
        let mut entries = Vec::with_capacity(split.n as usize);
        for &feature in of_split {
            let slice = layer.feature(feature)?;
            entries.extend(slice.iter().map(|a| (a.sample.0, a.token.0 - FIRST, feature.0, a.value)));
        }
        entries.par_sort_unstable_by_key(|&(image, token, latent, _)| (image, token, latent));
        let n = entries.len();
        total += n as u64;
        let header = json!({
            "locations": { "dtype": "I64", "shape": [n, 3], "data_offsets": [0, n * 24] },
            "activations": { "dtype": "BF16", "shape": [n], "data_offsets": [n * 24, n * 26] },
        });
        let mut header = header.to_string();
        while !header.len().is_multiple_of(8) {
            header.push(' ');
        }
        let file = dir.join(format!("{}_{}.safetensors", split.start, split.end - 1));
        let mut file = BufWriter::with_capacity(1 << 20, File::create(file)?);
        file.write_all(&(header.len() as u64).to_le_bytes())?;
        file.write_all(header.as_bytes())?;
        for (image, token, latent, _) in &entries {
            for number in [image, token, latent] {
                file.write_all(&i64::from(*number).to_le_bytes())?;
            }
        }
        entries.iter().try_for_each(|entry| file.write_all(&bf16::from_f32(entry.3).to_le_bytes()))?;
        file.into_inner()?.sync_all()?;
    }
    Ok(total)
}

fn top(dir: &Path, n: usize, out: &Path) -> Result<Value> {
    let cache = Cache::open(dir)?;
    let layer = cache.hook(&HookPoint::layer(LAYER))?;
    let pick = |&feature: &FeatureId| -> Result<_> {
        let top = layer.feature(feature)?.pick(Ranking::BaseMean, Selection::Top(n), Duplicates::Drop)?;
        Ok((feature.0.to_string(), top.iter().map(|ranked| json!([ranked.sample, ranked.score])).collect()))
    };
    let stored = layer.stored();
    let lists: Vec<(String, Value)> = stored.par_iter().map(pick).collect::<Result<_>>()?;
    fs::write(out, Value::Object(lists.into_iter().collect()).to_string())?;
    let activations = layer.features().map(|slice| slice.len() as u64).sum::<u64>();
    Ok(
        json!({ "features": stored.len(), "activations": activations, "threads": rayon::current_num_threads() }),
    )
}

fn safetensors_bytes(folder: &Path) -> Result<u64> {
    let mut bytes = 0;
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            bytes += safetensors_bytes(&path)?;
        } else if path.extension().is_some_and(|extension| extension == "safetensors") {
            bytes += fs::metadata(path)?.len();
        }
    }
    Ok(bytes)
}
