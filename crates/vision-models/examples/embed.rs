//! Embeds images and texts with a CLIP as it is told to, for comparisons with other implementations.
//!
//! Reads one JSON object per line and answers each with one, the way `measure` of the benches does; between two lines it takes no
//! processor time. `benches/compare/clip.py` is the other side.
//!
//! ```text
//! cargo run --release -p vision-models --example embed
//! {"command": "open", "folder": "clip-vit-base-patch32"}
//! {"command": "images", "path": "images.bin", "count": 64, "height": 480, "width": 640}
//! {"command": "texts", "texts": ["a red circle"]}
//! {"command": "time", "what": "images", "calls": 3}
//! {"command": "output", "what": "images", "path": "images.f32"}
//! ```

use std::io::{BufRead, Write};
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use image::RgbImage;
use rayon::prelude::*;
use serde::Deserialize;
use serde_json::{Value, json};
use torch_nn::tch::{self, Device, Kind, Tensor};
use vision_models::Clip;

#[derive(Deserialize)]
#[serde(tag = "command", rename_all = "snake_case", deny_unknown_fields)]
enum Command {
    /// Reads a model folder.
    Open { folder: PathBuf },
    /// Reads images of one size from a file of their RGB bytes.
    Images { path: PathBuf, count: usize, height: u32, width: u32 },
    /// Takes texts.
    Texts { texts: Vec<String> },
    /// Does something so often, and says how long each time took.
    Time { what: What, calls: usize },
    /// Does it once, and writes the values as little-endian f32.
    Output { what: What, path: PathBuf },
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "snake_case")]
enum What {
    /// From images to pixel values.
    Pixels,
    /// From pixel values to vectors.
    Tower,
    /// From images to vectors.
    Images,
    /// From texts to vectors.
    Texts,
}

/// Pictures in one pass of the tower, as [`Clip::embed_images`] has it.
const PASS: i64 = 16;

#[derive(Default)]
struct State {
    clip: Option<Clip>,
    images: Vec<RgbImage>,
    texts: Vec<String>,
    /// Of the images, once something needed them.
    pixels: Option<Tensor>,
}

fn main() -> Result<()> {
    torch_nn::keep_freed_memory();
    let (stdin, mut stdout) = (std::io::stdin().lock(), std::io::stdout().lock());
    let mut state = State::default();
    for line in stdin.lines() {
        let line = line?;
        let answer = serde_json::from_str(&line).map_err(Into::into).and_then(|command| state.run(command));
        let answer = answer.unwrap_or_else(|error| json!({"error": format!("{error:#}")}));
        writeln!(stdout, "{answer}")?;
        stdout.flush()?;
    }
    Ok(())
}

impl State {
    fn run(&mut self, command: Command) -> Result<Value> {
        match command {
            Command::Open { folder } => {
                self.clip = Some(Clip::open(&folder, Device::Cpu, Kind::Float)?);
                Ok(
                    json!({"torch_threads": tch::get_num_threads(), "rayon_threads": rayon::current_num_threads()}),
                )
            }
            Command::Images { path, count, height, width } => {
                let bytes = std::fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
                let each = height as usize * width as usize * 3;
                ensure!(bytes.len() == count * each, "{} bytes for {count} images of {each}", bytes.len());
                let image = |bytes: &[u8]| RgbImage::from_raw(width, height, bytes.to_vec());
                self.images = bytes.chunks(each).filter_map(image).collect();
                self.pixels = None;
                Ok(json!({"images": self.images.len()}))
            }
            Command::Texts { texts } => {
                self.texts = texts;
                Ok(json!({"texts": self.texts.len()}))
            }
            Command::Time { what, calls } => {
                self.prepare(what)?;
                let mut seconds = Vec::with_capacity(calls);
                for _ in 0..calls {
                    let started = Instant::now();
                    let out = self.compute(what)?;
                    seconds.push(started.elapsed().as_secs_f64());
                    drop(out);
                }
                Ok(json!({"seconds": seconds}))
            }
            Command::Output { what, path } => {
                self.prepare(what)?;
                let out = self.compute(what)?;
                let values: Vec<f32> = Vec::try_from(out.contiguous().view(-1))?;
                let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
                std::fs::write(&path, bytes).with_context(|| format!("writing {}", path.display()))?;
                Ok(json!({"shape": out.size()}))
            }
        }
    }

    fn prepare(&mut self, what: What) -> Result<()> {
        if matches!(what, What::Tower) && self.pixels.is_none() {
            self.pixels = Some(self.compute(What::Pixels)?);
        }
        Ok(())
    }

    fn compute(&self, what: What) -> Result<Tensor> {
        let clip = self.clip.as_ref().context("no model is open")?;
        match what {
            What::Pixels => {
                let processor = clip.processor();
                let arrays = self.images.par_iter().map(|image| processor.whole(image));
                let arrays = arrays.collect::<Result<Vec<_>, _>>()?;
                let side = clip.config().vision_config.image_size as i64;
                let values = arrays.iter().filter_map(|array| array.as_slice()).collect::<Vec<_>>().concat();
                Ok(Tensor::from_slice(&values).view([-1, 3, side, side]))
            }
            What::Tower => tch::no_grad(|| {
                let pixels = self.pixels.as_ref().context("no pixels are prepared")?;
                let features = pixels
                    .split(PASS, 0)
                    .iter()
                    .map(|pass| clip.model().image_features(pass))
                    .collect::<Vec<_>>();
                let features = Tensor::cat(&features, 0);
                Ok(&features / features.square().sum_dim_intlist(-1, true, Kind::Float).sqrt())
            }),
            What::Images => Ok(clip.embed_images(&self.images)?),
            What::Texts => {
                let texts: Vec<&str> = self.texts.iter().map(String::as_str).collect();
                Ok(clip.embed_texts(&texts)?)
            }
        }
    }
}
