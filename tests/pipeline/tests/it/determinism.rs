//! What must not change the result: running again, and the batch size.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use act_cache::Cache;
use pipeline_tests::Scratch;
use sae_types::HookPoint;

/// Relative difference that padding and another batch may make to an activation.
const TOLERANCE: f32 = 1e-4;

#[test]
fn training_again_gives_the_same_bytes() {
    let scratch = Scratch::new();
    scratch.run("sae-data", "shapes --count 12 --save-dir data");
    let train =
        "model data --layers 1,2 --num-latents 64 --k 4 --batch-size 4 --eval-examples 2 --seed 5 --save-dir";
    scratch.run("sae-train", &format!("{train} first"));
    scratch.run("sae-train", &format!("{train} second"));
    let bytes = |folder: &str, file: &str| fs::read(scratch.path(folder).join(file)).unwrap();
    for file in [
        "model.layers.1/sae.safetensors",
        "model.layers.2/sae.safetensors",
        "model.layers.2/cfg.json",
        "metrics.jsonl",
        "evaluation.json",
    ] {
        assert!(bytes("first", file) == bytes("second", file), "{file} differs");
    }
    let other = train.replace("--seed 5", "--seed 6");
    scratch.run("sae-train", &format!("{other} other"));
    let file = "model.layers.2/sae.safetensors";
    assert!(bytes("first", file) != bytes("other", file), "the seed changes nothing");
}

/// Activations by place: `(sample, token)` to feature to value.
type Codes = BTreeMap<(u32, u32), BTreeMap<u32, f32>>;

fn codes(scratch: &Scratch, folder: &str, hook: &HookPoint) -> Codes {
    let cache = Cache::open(&scratch.path(folder)).unwrap();
    let mut codes = Codes::new();
    for slice in cache.hook(hook).unwrap().features() {
        for activation in slice.iter() {
            let place = (activation.sample.0, activation.token.0);
            codes.entry(place).or_default().insert(slice.feature().0, activation.value);
        }
    }
    codes
}

#[test]
fn the_batch_size_changes_nothing_and_a_second_run_not_a_byte() {
    let scratch = Scratch::new();
    let hooks = [HookPoint::new("model.layers.1.mlp").unwrap(), HookPoint::layer(2)];
    for hook in &hooks {
        scratch.sae("sae", hook, 128, 64, 4);
    }
    // Scenes of all canvas shapes, so that a batch of 8 is padded.
    scratch.run("sae-data", "shapes --count 10 --save-dir data");
    for (size, folder) in [(8, "eight"), (8, "again"), (1, "one")] {
        let arguments = format!("images model data --sae sae --batch-size {size} --save-dir {folder}");
        scratch.run("sae-cache", &arguments);
    }

    let files: BTreeSet<_> = scratch.listing().into_iter().map(|(path, _)| path).collect();
    let eight = scratch.path("eight");
    let written: Vec<_> = files
        .iter()
        .filter(|path| path.is_file())
        .filter_map(|path| path.strip_prefix(&eight).ok())
        .collect();
    assert_eq!(written.len(), 2 * 5 + 4, "{written:?}");
    for name in written.into_iter().filter(|name| !name.ends_with("run.json")) {
        let bytes = |folder: &str| fs::read(scratch.path(folder).join(name)).unwrap();
        assert!(bytes("eight") == bytes("again"), "{} differs", name.display());
    }

    for hook in &hooks {
        let (eight, one) = (codes(&scratch, "eight", hook), codes(&scratch, "one", hook));
        assert!(eight.keys().eq(one.keys()), "other tokens have codes at {hook}");
        for (place, features) in &eight {
            compare(&format!("{hook} {place:?}"), features, &one[place]);
        }
    }
}

/// The same features with the same values; a feature that only one side has must be tied with the smallest kept.
fn compare(place: &str, left: &BTreeMap<u32, f32>, right: &BTreeMap<u32, f32>) {
    let largest = left.values().chain(right.values()).copied().fold(0.0, f32::max);
    let margin = TOLERANCE * largest;
    for (these, those) in [(left, right), (right, left)] {
        let smallest = those.values().copied().fold(f32::INFINITY, f32::min);
        for (feature, value) in these {
            let other = those.get(feature).copied().unwrap_or(smallest);
            assert!((value - other).abs() <= margin, "{place}, feature {feature}: {left:?} and {right:?}");
        }
    }
}
