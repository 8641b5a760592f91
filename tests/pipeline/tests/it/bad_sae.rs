//! Autoencoders, filters and caches that do not fit.

use std::fs;

use pipeline_tests::Scratch;
use sae_types::HookPoint;

const CACHE: &str = "images model images --sae sae --save-dir out";

/// Three images and an autoencoder of 64 latents for layer 2 of the embedded model, whose vectors have `d_in` numbers.
fn scratch(d_in: usize) -> Scratch {
    let scratch = Scratch::new();
    scratch.images("images", 3);
    scratch.sae("sae", &HookPoint::layer(2), d_in, 64, 4);
    scratch
}

#[test]
fn wrong_d_in() {
    scratch(96).refuses("sae-cache", CACHE, 1, &["sae/model.layers.2", "96", "128"]);
}

#[test]
fn truncated() {
    let scratch = scratch(128);
    let file = scratch.path("sae/model.layers.2/sae.safetensors");
    let bytes = fs::read(&file).unwrap();
    fs::write(&file, &bytes[..bytes.len() / 2]).unwrap();
    scratch.refuses("sae-cache", CACHE, 1, &["sae/model.layers.2/sae.safetensors"]);
    fs::write(&file, [&u64::MAX.to_le_bytes(), &bytes[8..]].concat()).unwrap();
    scratch.refuses("sae-cache", CACHE, 1, &["sae/model.layers.2/sae.safetensors"]);
}

#[test]
fn config_without_a_needed_key() {
    let scratch = scratch(128);
    let file = "sae/model.layers.2/cfg.json";
    let mut config = scratch.json(file);
    config.as_object_mut().unwrap().remove("d_in");
    fs::write(scratch.path(file), config.to_string()).unwrap();
    scratch.refuses("sae-cache", CACHE, 1, &[file, "d_in"]);
}

#[test]
fn no_autoencoder_there() {
    let scratch = scratch(128);
    let arguments = "images model images --sae images --save-dir out";
    scratch.refuses("sae-cache", arguments, 1, &["images", "cfg.json"]);
}

#[test]
fn for_a_hook_point_the_model_does_not_have() {
    let scratch = scratch(128);
    scratch.sae("sae", &HookPoint::layer(9), 128, 64, 4);
    scratch.refuses("sae-cache", CACHE, 1, &["model.layers.9", "nearest", "model.layers.0"]);
}

#[test]
fn filters_that_do_not_fit() {
    let scratch = scratch(128);
    let arguments = format!("{CACHE} --filters filters.json");
    for (filters, words) in [
        (r#"{"model.layers.2": [3, 64]}"#, &["feature 64", "model.layers.2", "63"][..]),
        (r#"{"model.layers.1": [3]}"#, &["model.layers.1", "sae"]),
        (r#"{"../escape": [3]}"#, &["filters.json", "../escape"]),
        (r#"{"model.layers.2": [-1]}"#, &["filters.json"]),
        ("{}", &["filters.json"]),
        (r#"{"model.layers.2": []}"#, &["filters.json", "model.layers.2"]),
        ("[", &["filters.json"]),
    ] {
        fs::write(scratch.path("filters.json"), filters).unwrap();
        scratch.refuses("sae-cache", &arguments, 1, words);
    }
    fs::remove_file(scratch.path("filters.json")).unwrap();
    scratch.refuses("sae-cache", &arguments, 1, &["filters.json"]);
}

#[test]
fn caches_the_page_cannot_be_drawn_from() {
    let scratch = scratch(128);
    scratch.run("sae-cache", &format!("{CACHE} --n-splits 1"));
    let page = "--cache out --dataset images --out page.html";
    scratch.refuses(
        "feature-page",
        &format!("{page} --hook model.layers.3"),
        1,
        &["model.layers.3", "model.layers.2"],
    );
    scratch.images("others", 2);
    let other = "--cache out --dataset others --out page.html";
    scratch.refuses("feature-page", other, 1, &["others", "fingerprint"]);
    scratch.refuses(
        "feature-page",
        "--cache images --dataset images --out page.html",
        1,
        &["images/manifest.json"],
    );

    let split = scratch.path("out/model.layers.2/0_63.safetensors");
    let bytes = fs::read(&split).unwrap();
    fs::write(&split, &bytes[..bytes.len() - 4]).unwrap();
    scratch.refuses("feature-page", page, 1, &["out/model.layers.2/0_63.safetensors"]);
    fs::write(&split, [&u64::MAX.to_le_bytes(), &bytes[8..]].concat()).unwrap();
    scratch.refuses("feature-page", page, 1, &["out/model.layers.2/0_63.safetensors"]);
}

#[test]
fn for_the_vision_side_whose_rows_are_no_tokens() {
    let scratch = scratch(128);
    let projector: HookPoint = "multi_modal_projector".parse().unwrap();
    scratch.sae("projected", &projector, 128, 64, 4);
    let arguments = "images model images --sae projected --save-dir out";
    scratch.refuses("sae-cache", arguments, 1, &["multi_modal_projector", "vision side", "model.layers.0"]);
    let arguments = "model images --hookpoints multi_modal_projector --eval-examples 1 --save-dir out";
    scratch.refuses("sae-train", arguments, 1, &["multi_modal_projector", "vision side"]);
}
