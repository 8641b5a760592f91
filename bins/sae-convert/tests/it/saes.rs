//! `sae-convert sae`: there and back, several at once, refusals, and a check that fails.

use std::path::Path;

use sae_core::{Activation, Sae, SaeConfig, SaeTensors, WeightDtype};

use crate::support::{assert_fails, convert, entries, report};

/// Numbers that look random, in -1 .. 1.
fn numbers(seed: u32, n: usize) -> Vec<f32> {
    let mix =
        |i: u32| (i.wrapping_mul(0x9e37_79b9) ^ seed.wrapping_mul(0x85eb_ca6b)).wrapping_mul(0xc2b2_ae35);
    (0..n as u32).map(|i| (mix(i) >> 8) as f32 / (1 << 23) as f32 - 1.0).collect()
}

fn sae(config: SaeConfig) -> Sae {
    let (latents, d_in) = (config.num_latents, config.d_in);
    let tensors = SaeTensors {
        encoder_weight: numbers(1, latents * d_in),
        encoder_bias: numbers(2, latents),
        decoder_weight: numbers(3, latents * d_in),
        decoder_bias: numbers(4, d_in),
        skip_weight: None,
    };
    Sae::from_parts(config, tensors).unwrap()
}

fn write(root: &Path, name: &str, activation: Activation) {
    let mut config = SaeConfig::new(24, 96, 6);
    config.activation = activation;
    config.normalize_decoder = false;
    sae(config).save(&root.join(name), WeightDtype::F32).unwrap();
}

#[test]
fn there_and_back_is_the_same_file() {
    let root = tempfile::tempdir().unwrap();
    write(root.path(), "model.layers.3", Activation::TopK);
    for to in ["saelens", "saelens-pre-v6"] {
        let there =
            convert(root.path(), &["sae", "model.layers.3", to, "--to", to, "--json", "--model", "a/model"]);
        let reports = report(&there);
        assert_eq!(
            (reports[0]["kind"].as_str(), reports[0]["check"]["equal_sets"].as_u64()),
            (Some("TopK"), Some(64))
        );
        let folder = root.path().join(to);
        assert_eq!(entries(&folder), ["cfg.json", "run.json", "sae_weights.safetensors"]);
        let cfg = std::fs::read_to_string(folder.join("cfg.json")).unwrap();
        assert!(cfg.contains("\"hook_name\": \"model.layers.3\"") && cfg.contains("a/model"), "{cfg}");
        let name = format!("back-from-{to}");
        report(&convert(root.path(), &["sae", to, &name, "--to", "sparsify", "--json"]));
        for file in ["sae.safetensors", "cfg.json"] {
            let read = |folder: &str| std::fs::read(root.path().join(folder).join(file)).unwrap();
            assert_eq!(read("model.layers.3"), read(&name), "{file}");
        }
    }
}

#[test]
fn several_autoencoders_in_other_dtypes() {
    let root = tempfile::tempdir().unwrap();
    write(root.path(), "all/model.layers.1", Activation::TopK);
    write(root.path(), "all/model.layers.2", Activation::BatchTopK { threshold: 1.5 });
    for dtype in ["f32", "f16", "bf16"] {
        let args = ["sae", "all", dtype, "--to", "saelens", "--dtype", dtype];
        let output = convert(root.path(), &args);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert!(text.contains("model.layers.1: TopK, d_in 24, 96 latents, k 6"), "{text}");
        assert!(text.contains("model.layers.2: BatchTopK, d_in 24"), "{text}");
        assert!(text.contains("checked with 64 vectors: "), "{text}");
        assert_eq!(entries(&root.path().join(dtype)), ["model.layers.1", "model.layers.2", "run.json"]);
    }
    let back = convert(root.path(), &["sae", "f32", "back", "--to", "sparsify", "--json"]);
    assert_eq!(report(&back)[1]["kind"], "BatchTopK");
    assert_eq!(Sae::find(&root.path().join("back")).unwrap().len(), 2);
}

#[test]
fn refusals_leave_nothing() {
    let root = tempfile::tempdir().unwrap();
    write(root.path(), "model.layers.3", Activation::BatchTopK { threshold: 1.5 });
    write(root.path(), "all/model.layers.1", Activation::TopK);
    write(root.path(), "all/model.layers.2", Activation::TopK);
    std::fs::create_dir(root.path().join("none")).unwrap();
    let before = entries(root.path());
    assert_fails(
        &convert(root.path(), &["sae", "none", "out", "--to", "saelens"]),
        1,
        "none holds no autoencoder",
    );
    let args = ["sae", "all", "out", "--to", "saelens", "--hook-name", "x"];
    assert_fails(&convert(root.path(), &args), 2, "--hook-name");
    assert_fails(&convert(root.path(), &["sae", "all", "all", "--to", "saelens"]), 1, "--overwrite");
    report(&convert(root.path(), &["sae", "model.layers.3", "old", "--to", "saelens-pre-v6", "--json"]));
    assert_fails(
        &convert(root.path(), &["sae", "old", "out", "--to", "sparsify"]),
        1,
        "field k: expected how many latents",
    );
    report(&convert(root.path(), &["sae", "old", "new", "--to", "sparsify", "--k", "6", "--json"]));
    let cfg = root.path().join("old/cfg.json");
    let text = std::fs::read_to_string(&cfg).unwrap().replace("\"jumprelu\"", "\"gated\"");
    std::fs::write(&cfg, text).unwrap();
    assert_fails(
        &convert(root.path(), &["sae", "old", "out", "--to", "sparsify"]),
        1,
        "field architecture is gated",
    );
    for made in ["old", "new"] {
        std::fs::remove_dir_all(root.path().join(made)).unwrap();
    }
    assert_eq!(entries(root.path()), before);
}

/// Weights too coarse for the autoencoder: the check sees it, and nothing stays.
#[test]
fn a_result_that_computes_something_else_is_an_error() {
    let root = tempfile::tempdir().unwrap();
    let config = SaeConfig::new(24, 96, 6);
    let mut tensors = SaeTensors {
        encoder_weight: numbers(1, 96 * 24),
        encoder_bias: numbers(2, 96),
        decoder_weight: numbers(3, 96 * 24),
        // An offset that b_enc takes back in the source; bf16 keeps neither to the digit.
        decoder_bias: vec![3000.7; 24],
        skip_weight: None,
    };
    for bias in &mut tensors.encoder_bias {
        *bias *= 0.01;
    }
    Sae::from_parts(config, tensors)
        .unwrap()
        .save(&root.path().join("model.layers.3"), WeightDtype::F32)
        .unwrap();
    let output =
        convert(root.path(), &["sae", "model.layers.3", "out", "--to", "sparsify", "--dtype", "bf16"]);
    assert_fails(&output, 1, "choose other latents for");
    assert_eq!(entries(root.path()), ["model.layers.3"]);
}
