//! Finds what a phrase names in an image, again and again, for comparisons with other implementations.
//!
//! For every line on standard input one pass is made, and a line of JSON comes out: seconds for preparing image and text, for
//! the network and its stages, and for reading its output, with the detections found.
//!
//! ```text
//! cargo run --release -p vision-models --example ground -- FOLDER IMAGE PHRASE < lines
//! ```
#![expect(clippy::print_stdout, reason = "a program whose output is its figures")]

use std::io::BufRead;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use serde_json::{Map, Value, json};
use torch_nn::tch::{Device, Kind, no_grad};
use vision_models::grounding_dino::{
    Decoded, GroundingDino, GroundingDinoModel, ImageBatch, TextBatch, Thresholds, detections,
};

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [folder, image, phrase] = &arguments[..] else { bail!("usage: ground FOLDER IMAGE PHRASE") };
    torch_nn::keep_freed_memory();
    let dino = GroundingDino::open(Path::new(folder), Device::Cpu, Kind::Float)?;
    let bytes = std::fs::read(image).with_context(|| format!("cannot read {image}"))?;
    let image = lmm_prep::decode_image(&bytes)?;
    for line in std::io::stdin().lock().lines() {
        line?;
        let begun = Instant::now();
        let images = dino.prepare_images(&[&image])?;
        let texts = dino.prepare_phrases(&[phrase])?;
        let (prepare, begun) = (begun.elapsed(), Instant::now());
        let (decoded, stages) = no_grad(|| staged(dino.model(), &images, &texts));
        let (network, begun) = (begun.elapsed(), Instant::now());
        let (limit, tokenizer) = (dino.config().max_text_len, dino.tokenizer());
        let sizes = &images.originals;
        let found = detections(&decoded, &texts, sizes, Thresholds::default(), limit, tokenizer)?;
        let read = begun.elapsed();
        let found: Vec<_> = found[0]
            .iter()
            .map(|found| json!({"box": [found.x0, found.y0, found.x1, found.y1], "score": found.score}))
            .collect();
        println!(
            "{}",
            json!({
                "prepare": prepare.as_secs_f64(),
                "network": network.as_secs_f64(),
                "stages": stages,
                "read": read.as_secs_f64(),
                "found": found,
            })
        );
    }
    Ok(())
}

/// What `GroundingDinoModel::forward` does, with the seconds of its stages.
fn staged(model: &GroundingDinoModel, images: &ImageBatch, texts: &TextBatch) -> (Decoded, Value) {
    let mut stages = Map::new();
    let mut begun = Instant::now();
    let mut note = |stage: &str| {
        stages.insert(stage.to_owned(), begun.elapsed().as_secs_f64().into());
        begun = Instant::now();
    };
    let text = model.project_text(&model.text_states(texts));
    note("text");
    let maps = model.backbone_maps(&images.pixels);
    note("backbone");
    let maps = model.lay_out(&model.project_maps(&maps), &images.mask);
    note("projections");
    let encoded = model.encode(&maps, &text, texts, |_, _| ());
    note("encoder");
    let selection = model.select(&encoded, &maps, texts);
    note("selection");
    let decoded = model.decode(&selection, &encoded, &maps, texts);
    note("decoder");
    (decoded, Value::Object(stages))
}
