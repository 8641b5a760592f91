//! Times Segment Anything on one picture, stage by stage, for comparisons with other implementations.
//!
//! Prints a line of JSON for each run, in seconds and in seconds of processor time, then one with the process's peak memory.
//!
//! ```text
//! cargo run --release -p vision-models --example speed_sam -- FOLDER picture.png --boxes 16 --runs 3
//! ```
#![expect(clippy::print_stdout, reason = "a program whose output is its figures")]

use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result};
use clap::Parser;
use serde_json::json;
use torch_nn::tch::{Device, Kind, Tensor};
use vision_models::sam::{BoxPrompt, Sam, SamImage, SamPrompt};

/// Time a Segment Anything model on a picture.
#[derive(Parser)]
struct Arguments {
    /// A model folder in the Hub's layout.
    folder: PathBuf,
    /// An image file.
    picture: PathBuf,
    /// Boxes asked for, cut from a square grid over the picture.
    #[arg(long, default_value_t = 16)]
    boxes: usize,
    /// Runs that are printed, after one that is not.
    #[arg(long, default_value_t = 3)]
    runs: usize,
    /// Threads of libtorch.
    #[arg(long, default_value_t = 1)]
    threads: i32,
    /// Give freed memory back to the system, as PyTorch's programs do.
    #[arg(long)]
    give_memory_back: bool,
    /// Write the last run's image embedding, small scores and IoU scores here, as safetensors.
    #[arg(long)]
    output: Option<PathBuf>,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    if !arguments.give_memory_back {
        torch_nn::keep_freed_memory();
    }
    torch_nn::tch::set_num_threads(arguments.threads);
    let sam = Sam::open(&arguments.folder, Device::Cpu, Kind::Float)?;
    let bytes = std::fs::read(&arguments.picture)
        .with_context(|| format!("cannot read {}", arguments.picture.display()))?;
    let picture = lmm_prep::decode_image(&bytes)?;
    let boxes = boxes(arguments.boxes, f64::from(picture.width()), f64::from(picture.height()));
    let prompts: Vec<SamPrompt> = boxes.iter().map(|&bounds| bounds.into()).collect();
    for run in 0..=arguments.runs {
        let mut clock = Clock::start();
        let (pixels, sizes) = sam.processor().pixels(&picture)?;
        let prepare = clock.lap();
        let image = SamImage { embedding: sam.image_embedding(&pixels), sizes };
        let embed = clock.lap();
        let masks = sam.masks(&image, &boxes, false)?;
        let mask = clock.lap();
        if run > 0 {
            println!("{}", json!({ "prepare": prepare, "embed": embed, "masks": mask }));
        }
        if let Some(output) = arguments.output.as_ref().filter(|_| run == arguments.runs) {
            let encoder = sam.prompt_encoder();
            let (sparse, dense) = (encoder.sparse(&prompts, &sizes), encoder.dense(None));
            let (scores, quality) = sam.low_res_masks(&image.embedding, &sparse, &dense, false);
            let pixels: Vec<u8> =
                masks.iter().flat_map(|mask| mask.pixels.iter().map(|&pixel| u8::from(pixel))).collect();
            let shape = [masks.len() as i64, i64::from(picture.height()), i64::from(picture.width())];
            let named = [
                ("embedding", image.embedding.contiguous()),
                ("low_res_masks", scores.contiguous()),
                ("iou_scores", quality.contiguous()),
                ("masks", Tensor::from_slice(&pixels).view(shape)),
            ];
            Tensor::write_safetensors(&named, output)?;
        }
    }
    println!("{}", json!({ "peak_rss_mib": peak_rss_mib() }));
    Ok(())
}

/// Time since the last lap: on the wall, and of all threads on processors, where the system says so.
struct Clock {
    wall: Instant,
    processor: Option<f64>,
}

impl Clock {
    fn start() -> Self {
        Self { wall: Instant::now(), processor: processor_seconds() }
    }

    fn lap(&mut self) -> [Option<f64>; 2] {
        let now = Self::start();
        let wall = now.wall.duration_since(self.wall).as_secs_f64();
        let processor = now.processor.zip(self.processor).map(|(now, then)| now - then);
        *self = now;
        [Some(wall), processor]
    }
}

/// Linux's count of hundredths of a second, in user and in system.
fn processor_seconds() -> Option<f64> {
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    // The name before them may hold anything, brackets too.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let ticks = |index: usize| fields.get(index)?.parse::<f64>().ok();
    Some((ticks(11)? + ticks(12)?) / 100.0)
}

/// The first `count` cells of the smallest square grid that has as many.
fn boxes(count: usize, width: f64, height: f64) -> Vec<BoxPrompt> {
    let side = (count as f64).sqrt().ceil();
    let cell = |index: usize| {
        let (row, col) = ((index as f64 / side).floor(), index as f64 % side);
        let (wide, high) = (width / side, height / side);
        BoxPrompt { left: col * wide, top: row * high, right: (col + 1.0) * wide, bottom: (row + 1.0) * high }
    };
    (0..count).map(cell).collect()
}

/// The most memory the process has held, where the system says so.
fn peak_rss_mib() -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: f64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib / 1024.0)
}
