//! Reads a published sparse autoencoder, from a folder or from the Hugging Face Hub, and says what is in it.
//!
//! ```text
//! cargo run --bin published_sae -- lmms-lab/llama3-llava-next-8b-hf-sae-131k model.layers.24
//! cargo run --bin published_sae -- ./my-sae
//! ```
//!
//! A Hub id needs the hook point, the folder within the repository. `HF_ENDPOINT`, `HF_HOME` and a saved token are
//! respected, and what was downloaded once is not downloaded again.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use hf_hub::api::sync::ApiBuilder;
use sae_core::{FeatureId, Sae};

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let saes: Vec<(String, PathBuf)> = match &arguments[..] {
        [folder] if Path::new(folder).is_dir() => {
            let found = Sae::find(Path::new(folder))?;
            found.into_iter().map(|(hook, folder)| (hook.to_string(), folder)).collect()
        }
        [repository, hook] => vec![(hook.clone(), fetch(repository, hook)?)],
        _ => bail!("usage: published_sae <folder> | <Hub id> <hook point>"),
    };
    for (hook, folder) in saes {
        // Maps the file into memory; nothing is read before it is looked at.
        let sae = Sae::load(&folder)?;
        println!("{hook}: {} latents of {} numbers, {} at a time", sae.num_latents(), sae.d_in(), sae.k());
        println!("  weights stored as {}", sae.decoder_weight().dtype());
        let nearest = nearest(&sae, FeatureId(0));
        println!("  latents that are decoded to nearly the same direction as latent 0:");
        for (feature, cosine) in nearest {
            println!("  {feature:>8}  cosine {cosine:.3}");
        }
    }
    Ok(())
}

fn fetch(repository: &str, hook: &str) -> Result<PathBuf> {
    let api = ApiBuilder::from_env().build()?.model(repository.to_owned());
    let get = |file: &str| {
        let path = format!("{hook}/{file}");
        api.get(&path).with_context(|| format!("fetching {path} of {repository}"))
    };
    get("sae.safetensors")?;
    let config = get("cfg.json")?;
    Ok(config.parent().context("a file without a folder")?.to_owned())
}

/// The five latents whose rows of `W_dec` point most nearly where `of`'s does.
fn nearest(sae: &Sae, of: FeatureId) -> Vec<(FeatureId, f32)> {
    let decoder = sae.decoder_weight();
    let mut buffer = Vec::new();
    let this = decoder.rows_f32(of.index()..of.index() + 1, &mut buffer).to_vec();
    let mut others: Vec<(FeatureId, f32)> = (0..sae.num_latents() as u32)
        .map(FeatureId)
        .filter(|other| *other != of)
        .map(|other| {
            let row = decoder.rows_f32(other.index()..other.index() + 1, &mut buffer);
            (other, dot(&this, row) / (dot(&this, &this) * dot(row, row)).sqrt())
        })
        .collect();
    others.sort_by(|a, b| b.1.total_cmp(&a.1));
    others.truncate(5);
    others
}

fn dot(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}
