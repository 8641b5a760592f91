//! SAELens' files: what is read computes what SAELens computes, what is written is read, and what cannot be is refused.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::Path;

use ndarray::Array2;
use proptest::prelude::*;
use sae_core::saelens::{self, Metadata, Version};
use sae_core::{Activation, Sae, SaeConfig, SaeError, SaeTensors, WeightDtype};
use safetensors::Dtype;
use safetensors::tensor::TensorView;

const D_IN: usize = 12;
const D_SAE: usize = 40;

/// Numbers of a generator, in -1 .. 1.
fn numbers(seed: u64, n: usize) -> Vec<f32> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..n).map(|_| next()).collect()
}

fn vectors(seed: u64, n: usize) -> Array2<f32> {
    Array2::from_shape_vec((n, D_IN), numbers(seed, n * D_IN)).unwrap() * 3.0
}

fn chain(error: &dyn std::error::Error) -> String {
    let cause = error.source().map(|source| format!(": {}", chain(source))).unwrap_or_default();
    format!("{error}{cause}")
}

fn config(activation: Activation, transcode: bool, skip_connection: bool) -> SaeConfig {
    let mut config = SaeConfig::new(D_IN, D_SAE, 5);
    config.activation = activation;
    config.transcode = transcode;
    config.skip_connection = skip_connection;
    config.normalize_decoder = false;
    config
}

fn sae(seed: u64, config: SaeConfig) -> Sae {
    let skip = config.skip_connection.then(|| numbers(seed + 4, D_IN * D_IN));
    let tensors = SaeTensors {
        encoder_weight: numbers(seed, D_SAE * D_IN),
        encoder_bias: numbers(seed + 1, D_SAE),
        decoder_weight: numbers(seed + 2, D_SAE * D_IN),
        decoder_bias: numbers(seed + 3, D_IN),
        skip_weight: skip,
    };
    Sae::from_parts(config, tensors).unwrap()
}

/// Ours against SAELens' formulas, over all rows.
fn assert_same(sae: &Sae, folder: &Path, x: &Array2<f32>) {
    let (codes, back) = sae.reconstruct(x.view()).unwrap();
    let (expected, expected_back) = saelens::reference(folder, x.view()).unwrap();
    for (row, codes) in codes.rows().enumerate() {
        let on = expected.row(row).iter().filter(|&&act| act > 0.0).count();
        assert_eq!(codes.latents.len(), on, "codes of row {row}");
        for (&latent, &value) in codes.latents.iter().zip(codes.values) {
            let want = expected[[row, latent as usize]];
            assert!(
                (f64::from(value) - want).abs() < 1e-5 * want.abs().max(1.0),
                "{row} {latent}: {value} {want}"
            );
        }
    }
    for (got, want) in back.iter().zip(&expected_back) {
        assert!((f64::from(*got) - want).abs() < 1e-4 * want.abs().max(1.0), "{got} {want}");
    }
}

fn metadata() -> Metadata {
    Metadata {
        model_name: Some("a model".into()),
        hook_name: Some("model.layers.3".into()),
        hook_name_out: None,
        dataset_path: Some("a/set".into()),
        context_size: Some(64),
        prepend_bos: Some(false),
    }
}

#[test]
fn what_is_written_is_read_and_computes_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let x = vectors(9, 64);
    let batch = Activation::BatchTopK { threshold: 1.25 };
    for version in [Version::V6, Version::PreV6] {
        for (seed, activation, transcode, skip) in [
            (1, Activation::TopK, false, false),
            (2, Activation::TopK, true, false),
            (3, batch, false, false),
            (4, batch, true, false),
            (5, batch, true, true),
        ] {
            if skip && version == Version::PreV6 {
                continue;
            }
            let sae = sae(seed, config(activation, transcode, skip));
            let mut about = metadata();
            if transcode {
                about.hook_name_out = Some("model.layers.3.mlp".into());
            }
            let dir = folder.path().join(format!("{version:?} {seed}"));
            let dropped = saelens::save(&sae, &dir, version, &about, WeightDtype::F32).unwrap();
            let old = version == Version::PreV6;
            let mut expected = Vec::new();
            if old && activation == batch {
                expected.push("k: 5".to_owned());
            }
            if old && transcode {
                expected.push("hook_name_out: model.layers.3.mlp".to_owned());
                about.hook_name_out = None;
            }
            assert_eq!(dropped, expected);
            assert!(saelens::is_saelens(&dir));
            assert_same(&sae, &dir, &x);
            let loaded = saelens::load(&dir, Some(5)).unwrap();
            assert_eq!((&loaded.metadata, loaded.version), (&about, version));
            // Before version 6 a transcoder cannot be told from an autoencoder, and is folded into one.
            if old && transcode {
                assert_eq!(loaded.folded, ["apply_b_dec_to_input"]);
                assert_same(&loaded.sae, &dir, &x);
            } else {
                assert_eq!(loaded.folded, Vec::<&str>::new());
                assert_eq!(loaded.sae.config(), sae.config());
                assert_eq!(loaded.sae.reconstruct(x.view()).unwrap(), sae.reconstruct(x.view()).unwrap());
            }
        }
    }
}

#[test]
fn what_sae_lens_cannot_say_is_listed_or_refused() {
    let folder = tempfile::tempdir().unwrap();
    let mut odd = config(Activation::TopK, false, false);
    odd.multi_topk = true;
    odd.matryoshka = vec![10, D_SAE];
    let dir = folder.path().join("odd");
    let dropped = saelens::save(&sae(1, odd), &dir, Version::V6, &metadata(), WeightDtype::Bf16).unwrap();
    assert_eq!(dropped, ["multi_topk: true", "matryoshka: [10, 40]"]);
    let loaded = saelens::load(&dir, None).unwrap();
    assert_same(&loaded.sae, &dir, &vectors(3, 8));
    let skip = sae(1, config(Activation::TopK, true, true));
    let dir = folder.path().join("skip");
    let error = saelens::save(&skip, &dir, Version::V6, &metadata(), WeightDtype::F32).unwrap_err();
    assert!(error.to_string().starts_with("field skip_connection is true: SAELens has"), "{error}");
    assert!(!dir.exists());
}

/// Writes a folder as SAELens would: the tensors of `sae`, with `json` as `cfg.json`.
fn put(dir: &Path, json: &str, changes: &[(&str, Vec<usize>, Vec<f32>)]) {
    std::fs::create_dir_all(dir).unwrap();
    std::fs::write(dir.join("cfg.json"), json).unwrap();
    let mut tensors = vec![
        ("W_enc", vec![D_IN, D_SAE], numbers(1, D_IN * D_SAE)),
        ("b_enc", vec![D_SAE], numbers(2, D_SAE)),
        ("W_dec", vec![D_SAE, D_IN], numbers(3, D_IN * D_SAE)),
        ("b_dec", vec![D_IN], numbers(4, D_IN)),
    ];
    for change in changes {
        tensors.retain(|(name, ..)| *name != change.0);
        tensors.push(change.clone());
    }
    let bytes: Vec<Vec<u8>> =
        tensors.iter().map(|(.., numbers)| numbers.iter().flat_map(|n| n.to_le_bytes()).collect()).collect();
    let views = tensors
        .iter()
        .zip(&bytes)
        .map(|((name, shape, _), bytes)| (*name, TensorView::new(Dtype::F32, shape.clone(), bytes).unwrap()));
    std::fs::write(dir.join("sae_weights.safetensors"), safetensors::serialize(views, None).unwrap())
        .unwrap();
}

fn thresholds(value: f32) -> (&'static str, Vec<usize>, Vec<f32>) {
    ("threshold", vec![D_SAE], vec![value; D_SAE])
}

#[test]
fn what_sae_lens_does_beyond_ours_is_folded() {
    let folder = tempfile::tempdir().unwrap();
    let x = vectors(5, 64);
    let v6 = |rest: &str| {
        format!(
            r#"{{"d_in": 12, "d_sae": 40, "dtype": "float32", "device": "cpu", "metadata": {{"sae_lens_version": "6.54.12", "hook_name": "a", "later": 1}}, {rest}}}"#
        )
    };
    let scaled = r#""normalize_activations": "expected_average_only_in""#;
    let cases = [
        (v6(r#""architecture": "topk", "k": 4"#), vec![]),
        (v6(r#""architecture": "topk", "k": 4, "apply_b_dec_to_input": false"#), vec!["apply_b_dec_to_input"]),
        (
            v6(r#""architecture": "topk", "k": 4, "rescale_acts_by_decoder_norm": true"#),
            vec!["rescale_acts_by_decoder_norm"],
        ),
        (v6(&format!(r#""architecture": "topk", "k": 4, {scaled}"#)), vec!["normalize_activations"]),
        (
            v6(&format!(
                r#""architecture": "topk", "k": 4, {scaled}, "apply_b_dec_to_input": false, "rescale_acts_by_decoder_norm": true"#
            )),
            vec!["apply_b_dec_to_input", "rescale_acts_by_decoder_norm", "normalize_activations"],
        ),
        (
            r#"{"d_in": 12, "d_sae": 40, "activation_fn_str": "topk", "activation_fn_kwargs": {"k": 4}, "hook_point": "a", "normalize_activations": true}"#.to_owned(),
            vec!["normalize_activations"],
        ),
    ];
    for (i, (json, folded)) in cases.iter().enumerate() {
        let dir = folder.path().join(i.to_string());
        put(&dir, json, &[("scaling_factor", vec![D_SAE], vec![1.0; D_SAE])]);
        std::fs::write(dir.join("activation_scaler.json"), r#"{"scaling_factor": 0.37}"#).unwrap();
        let loaded = saelens::load(&dir, None).unwrap();
        assert_eq!(&loaded.folded, folded);
        assert_eq!(loaded.metadata.hook_name.as_deref(), Some("a"));
        assert_eq!(loaded.sae.k(), 4);
        assert_same(&loaded.sae, &dir, &x);
        assert_eq!(loaded.sae.config().normalize_decoder, json.contains("rescale"), "unit rows are seen");
    }
    // A threshold below 0 keeps what ReLU keeps.
    for (threshold, kept) in [(0.75, 0.75), (-0.5, 0.0)] {
        let dir = folder.path().join(format!("jumprelu {threshold}"));
        put(&dir, &v6(r#""architecture": "jumprelu""#), &[thresholds(threshold)]);
        let loaded = saelens::load(&dir, Some(6)).unwrap();
        assert_eq!(loaded.sae.config().activation, Activation::BatchTopK { threshold: kept });
        assert_same(&loaded.sae, &dir, &x);
    }
}

#[test]
fn other_kinds_are_refused_by_key_value_and_reason() {
    let folder = tempfile::tempdir().unwrap();
    let mut n = 0;
    let mut refusal = |rest: &str, changes: &[(&str, Vec<usize>, Vec<f32>)]| {
        n += 1;
        let dir = folder.path().join(n.to_string());
        let json =
            format!(r#"{{"d_in": 12, "d_sae": 40, "metadata": {{"sae_lens_version": "6.0.0"}}, {rest}}}"#);
        put(&dir, &json, changes);
        chain(&saelens::load(&dir, Some(4)).unwrap_err())
    };
    let uneven = ("threshold", vec![D_SAE], numbers(8, D_SAE).iter().map(|t| t.abs()).collect());
    for (rest, changes, wants) in [
        (
            r#""architecture": "standard""#,
            vec![],
            "field architecture is standard: its ReLU keeps every positive latent",
        ),
        (r#""architecture": "transcoder", "d_out": 12"#, vec![], "field architecture is transcoder"),
        (r#""architecture": "gated""#, vec![], "field architecture is gated"),
        (r#""architecture": "temporal""#, vec![], "field architecture is temporal"),
        (r#""architecture": "matryoshka_batchtopk", "k": 20.5"#, vec![], "this is a training checkpoint"),
        (r#""architecture": "jumprelu""#, vec![uneven], "a threshold of its own for each latent"),
        (r#""architecture": "jumprelu""#, vec![thresholds(f32::NAN)], "field threshold"),
        (r#""architecture": "jumprelu""#, vec![], "has no tensor threshold"),
        (r#""architecture": "jumprelu_transcoder", "d_out": 20"#, vec![thresholds(0.5)], "field d_out is 20"),
        (
            r#""architecture": "topk", "normalize_activations": "layer_norm""#,
            vec![],
            "field normalize_activations is layer_norm: it depends on each input",
        ),
        (
            r#""architecture": "topk", "normalize_activations": "expected_average_only_in""#,
            vec![],
            "put SAELens' activation_scaler.json beside",
        ),
        (
            r#""architecture": "topk", "reshape_activations": "turned""#,
            vec![],
            "field reshape_activations is turned",
        ),
        (r#""architecture": "topk", "k": 2.5"#, vec![], "field k: expected a whole number"),
        (r#""architecture": "topk", "k": 41"#, vec![], "field k: expected 1 to 40"),
        (r#""architecture": "topk""#, vec![], "field k: expected 1 to 40 (num_latents), got 100"),
        (
            r#""architecture": "topk", "k": 4"#,
            vec![("scaling_factor", vec![D_SAE], vec![2.0; D_SAE])],
            "field scaling_factor is 2",
        ),
        (
            r#""architecture": "topk", "k": 4"#,
            vec![("W_enc", vec![D_SAE, D_IN], numbers(1, D_IN * D_SAE))],
            "tensor W_enc has shape [40, 12], cfg.json says [12, 40]",
        ),
        (r#""architecture": "topk", "k": 4"#, vec![("r_mag", vec![1], vec![1.0])], "holds tensor r_mag"),
    ] {
        let error = refusal(rest, &changes);
        assert!(error.contains(wants), "{error}\nlacks {wants}");
    }
    let dir = folder.path().join("no k");
    put(
        &dir,
        r#"{"d_in": 12, "d_sae": 40, "architecture": "jumprelu", "sae_lens_version": "6.1.0"}"#,
        &[thresholds(0.5)],
    );
    let error = chain(&saelens::load(&dir, None).unwrap_err());
    assert!(error.contains("cfg.json: field k: expected how many latents a row keeps on average"), "{error}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, failure_persistence: None, ..ProptestConfig::default() })]

    /// Damage in either file is survived, and never makes a giant of a small file.
    #[test]
    fn any_change_is_survived(file in 0usize..2, changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6), cut in any::<prop::sample::Index>(), whole in any::<bool>()) {
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path().join("sae");
        let sae = sae(1, config(Activation::BatchTopK { threshold: 0.5 }, false, false));
        saelens::save(&sae, &dir, Version::V6, &metadata(), WeightDtype::F16).unwrap();
        let path = dir.join(["cfg.json", "sae_weights.safetensors"][file]);
        let mut bytes = std::fs::read(&path).unwrap();
        for (at, byte) in changes {
            // Mostly in the header.
            let at = at.index(bytes.len().min(400));
            bytes[at] = byte;
        }
        if !whole {
            bytes.truncate(cut.index(bytes.len()));
        }
        std::fs::write(&path, &bytes).unwrap();
        if let Ok(loaded) = saelens::load(&dir, Some(5)) {
            let _ = loaded.sae.encode(Array2::zeros((2, loaded.sae.d_in())).view());
        }
    }
}

#[test]
fn a_failed_save_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("sae");
    let config = config(Activation::BatchTopK { threshold: 70_000.0 }, false, false);
    let error = saelens::save(&sae(1, config), &dir, Version::V6, &metadata(), WeightDtype::F16).unwrap_err();
    assert!(matches!(error, SaeError::Overflow { tensor: "threshold", .. }), "{error}");
    assert!(!dir.exists());
}
