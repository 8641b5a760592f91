//! Reading and writing checkpoint folders, good ones and bad ones.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::error::Error;
use std::fs;
use std::path::Path;

use ndarray::Array2;
use proptest::prelude::*;
use sae_core::{Activation, HookPoint, Sae, SaeConfig, SaeError, SaeTensors, WeightDtype};
use safetensors::{Dtype, tensor::TensorView};

const D_IN: usize = 3;
const LATENTS: usize = 5;

fn tensors() -> SaeTensors {
    let ramp = |n: usize| (0..n).map(|i| i as f32 * 0.37 - 1.0).collect::<Vec<_>>();
    SaeTensors {
        encoder_weight: ramp(LATENTS * D_IN),
        encoder_bias: ramp(LATENTS),
        decoder_weight: ramp(LATENTS * D_IN).into_iter().rev().collect(),
        decoder_bias: ramp(D_IN),
        skip_weight: None,
    }
}

fn sae() -> Sae {
    Sae::from_parts(SaeConfig::new(D_IN, LATENTS, 2), tensors()).unwrap()
}

fn plain() -> SaeConfig {
    SaeConfig::new(D_IN, LATENTS, 2)
}

fn with(change: fn(&mut SaeConfig)) -> SaeConfig {
    let mut config = plain();
    change(&mut config);
    config
}

/// One configuration of each kind, and with everything at once.
fn kinds() -> Vec<SaeConfig> {
    vec![
        plain(),
        with(|config| config.activation = Activation::BatchTopK { threshold: 0.7 }),
        with(|config| config.matryoshka = vec![1, 3, 5]),
        with(|config| config.transcode = true),
        with(|config| config.skip_connection = true),
        with(|config| {
            config.activation = Activation::BatchTopK { threshold: 0.1 };
            config.matryoshka = vec![2, 5];
            config.transcode = true;
            config.skip_connection = true;
        }),
    ]
}

fn of_kind(config: &SaeConfig) -> SaeTensors {
    let skip = (0..D_IN * D_IN).map(|i| 0.9 - 0.21 * i as f32).collect();
    SaeTensors { skip_weight: config.skip_connection.then_some(skip), ..tensors() }
}

/// Codes, dense `[n, LATENTS]`, and what they stand for `[n, D_IN]`, by the formulas, in f64.
fn by_formula(config: &SaeConfig, tensors: &SaeTensors, x: &Array2<f32>) -> (Array2<f64>, Array2<f64>) {
    let matrix = |rows, cols, numbers: &[f32]| {
        Array2::from_shape_fn((rows, cols), |(i, j)| f64::from(numbers[i * cols + j]))
    };
    let (encoder, decoder) =
        (matrix(LATENTS, D_IN, &tensors.encoder_weight), matrix(LATENTS, D_IN, &tensors.decoder_weight));
    let (encoder_bias, decoder_bias) =
        (matrix(1, LATENTS, &tensors.encoder_bias), matrix(1, D_IN, &tensors.decoder_bias));
    let x = x.mapv(f64::from);
    let centred = if config.transcode { x.clone() } else { &x - &decoder_bias };
    let mut codes = (centred.dot(&encoder.t()) + &encoder_bias).mapv(|pre| pre.max(0.0));
    for mut row in codes.rows_mut() {
        match config.activation {
            Activation::TopK => {
                let mut sorted = row.to_vec();
                sorted.sort_by(|a, b| b.total_cmp(a));
                row.mapv_inplace(|code| if code < sorted[config.k - 1] { 0.0 } else { code });
            }
            Activation::BatchTopK { threshold } => {
                row.mapv_inplace(|code| if code > f64::from(threshold) { code } else { 0.0 });
            }
            other => panic!("{other:?}"),
        }
    }
    let mut out = codes.dot(&decoder) + decoder_bias;
    if let Some(skip) = &tensors.skip_weight {
        out += &x.dot(&matrix(D_IN, D_IN, skip).t());
    }
    (codes, out)
}

/// The message with its causes.
fn chain(error: &SaeError) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort_unstable();
    names
}

fn rounded(tensors: SaeTensors, dtype: WeightDtype) -> SaeTensors {
    let round = |numbers: Vec<f32>| match dtype {
        WeightDtype::F32 => numbers,
        WeightDtype::F16 => numbers.into_iter().map(|x| half::f16::from_f32(x).to_f32()).collect(),
        WeightDtype::Bf16 => numbers.into_iter().map(|x| half::bf16::from_f32(x).to_f32()).collect(),
    };
    SaeTensors {
        encoder_weight: round(tensors.encoder_weight),
        encoder_bias: round(tensors.encoder_bias),
        decoder_weight: round(tensors.decoder_weight),
        decoder_bias: round(tensors.decoder_bias),
        skip_weight: tensors.skip_weight.map(round),
    }
}

#[test]
fn every_kind_and_dtype_comes_back_and_agrees_with_its_own_rounding() {
    let root = tempfile::tempdir().unwrap();
    let x = Array2::from_shape_fn((9, D_IN), |(i, j)| (i as f32 - 4.0) * 0.3 + j as f32);
    for (number, config) in kinds().into_iter().enumerate() {
        let sae = Sae::from_parts(config.clone(), of_kind(&config)).unwrap();
        for dtype in [WeightDtype::F32, WeightDtype::F16, WeightDtype::Bf16] {
            let folder = root.path().join("checkpoints").join(number.to_string()).join(dtype.to_string());
            sae.save(&folder, dtype).unwrap();
            assert_eq!(names(&folder), ["cfg.json", "sae.safetensors"]);
            let loaded = Sae::load(&folder).unwrap();
            assert_eq!(loaded.config(), &config);
            let mut weights = vec![
                loaded.encoder_weight(),
                loaded.encoder_bias(),
                loaded.decoder_weight(),
                loaded.decoder_bias(),
            ];
            assert_eq!(loaded.skip_weight().is_some(), config.skip_connection);
            weights.extend(loaded.skip_weight());
            assert!(weights.iter().all(|weights| weights.dtype() == dtype));
            assert_eq!(loaded.encoder_weight().shape(), [LATENTS, D_IN]);
            let rounded = rounded(of_kind(&config), dtype);
            let (want_codes, want) = by_formula(&config, &rounded, &x);
            let rounded = Sae::from_parts(config.clone(), rounded).unwrap();
            let (codes, out) = loaded.reconstruct(x.view()).unwrap();
            assert_eq!(
                (&codes, &out),
                (&rounded.encode(x.view()).unwrap(), &rounded.reconstruct(x.view()).unwrap().1)
            );
            if !config.skip_connection {
                assert_eq!(out, loaded.decode(&codes));
            }
            for (row, want) in codes.rows().zip(want_codes.rows()) {
                let on: Vec<_> = want.iter().enumerate().filter(|(_, code)| **code > 0.0).collect();
                let latents: Vec<_> = on.iter().map(|(latent, _)| *latent as u32).collect();
                assert_eq!(row.latents, latents, "{config:?}");
                assert!(
                    row.values.iter().zip(&on).all(|(got, (_, want))| (f64::from(*got) - *want).abs() < 1e-5)
                );
            }
            let error = (out.mapv(f64::from) - want).mapv(f64::abs).into_iter().fold(0.0, f64::max);
            assert!(error < 1e-5, "{config:?} in {dtype}: off by {error}");
            // Saving over a mapped file leaves the map whole.
            loaded.save(&folder, WeightDtype::F32).unwrap();
            assert_eq!(loaded.reconstruct(x.view()).unwrap(), (codes.clone(), out.clone()));
            assert_eq!(Sae::load(&folder).unwrap().reconstruct(x.view()).unwrap(), (codes, out));
        }
    }
}

#[test]
fn a_wide_skip_connection_adds_every_column() {
    // More than one block of columns, and a ragged one.
    let d_in = 300;
    let numbers = |n: usize, step: usize| (0..n).map(|i| (i * step % 17) as f32 - 8.0).collect::<Vec<_>>();
    let mut config = SaeConfig::new(d_in, 1, 1);
    config.skip_connection = true;
    let tensors = SaeTensors {
        encoder_weight: vec![0.0; d_in],
        encoder_bias: vec![0.0],
        decoder_weight: vec![0.0; d_in],
        decoder_bias: numbers(d_in, 3),
        skip_weight: Some(numbers(d_in * d_in, 5)),
    };
    let x = Array2::from_shape_vec((3, d_in), numbers(3 * d_in, 7)).unwrap();
    let skip = Array2::from_shape_vec((d_in, d_in), numbers(d_in * d_in, 5)).unwrap();
    let bias = Array2::from_shape_vec((1, d_in), numbers(d_in, 3)).unwrap();
    // Whole numbers, whose sums f32 takes exactly.
    let want = x.dot(&skip.t()) + &bias;
    let root = tempfile::tempdir().unwrap();
    Sae::from_parts(config, tensors).unwrap().save(root.path(), WeightDtype::Bf16).unwrap();
    assert_eq!(Sae::load(root.path()).unwrap().reconstruct(x.view()).unwrap().1, want);
}

#[test]
fn a_skip_weight_goes_with_a_skip_connection() {
    let with = with(|config| config.skip_connection = true);
    let error = Sae::from_parts(with.clone(), tensors()).unwrap_err();
    assert_eq!(error.to_string(), "field skip_connection is true, but the tensor W_skip is missing");
    let error = Sae::from_parts(plain(), of_kind(&with)).unwrap_err();
    assert_eq!(error.to_string(), "field skip_connection is false, but the tensor W_skip is given");
    let short = SaeTensors { skip_weight: Some(vec![0.0; 8]), ..tensors() };
    let error = Sae::from_parts(with.clone(), short).unwrap_err();
    assert_eq!(error.to_string(), "tensor W_skip has 8 elements, shape [3, 3] needs 9");
    let root = tempfile::tempdir().unwrap();
    Sae::from_parts(with.clone(), of_kind(&with)).unwrap().save(root.path(), WeightDtype::F32).unwrap();
    let weights = fs::read(root.path().join("sae.safetensors")).unwrap();
    sae().save(root.path(), WeightDtype::F32).unwrap();
    fs::write(
        root.path().join("cfg.json"),
        r#"{"d_in": 3, "num_latents": 5, "k": 2, "skip_connection": true}"#,
    )
    .unwrap();
    let message = chain(&Sae::load(root.path()).unwrap_err());
    assert!(message.contains("has no tensor W_skip; it has W_dec, b_dec"), "{message}");
    sae().save(root.path(), WeightDtype::F32).unwrap();
    fs::write(root.path().join("sae.safetensors"), weights).unwrap();
    let message = chain(&Sae::load(root.path()).unwrap_err());
    assert!(message.contains("holds tensor W_skip, which an autoencoder as its cfg.json says"), "{message}");
}

#[test]
fn reads_configurations_of_every_age_beside_the_same_weights() {
    let root = tempfile::tempdir().unwrap();
    sae().save(root.path(), WeightDtype::F32).unwrap();
    for config in [
        r#"{"expansion_factor": 32, "normalize_decoder": true, "num_latents": 5, "k": 2, "signed": false, "d_in": 3}"#,
        r#"{"expansion_factor": 32, "normalize_decoder": true, "num_latents": 5, "k": 2, "multi_topk": false,
            "signed": false, "d_in": 3}"#,
        r#"{"activation": "topk", "expansion_factor": 32, "normalize_decoder": true, "num_latents": 5, "k": 2,
            "multi_topk": false, "skip_connection": false, "transcode": false, "d_in": 3}"#,
    ] {
        fs::write(root.path().join("cfg.json"), config).unwrap();
        let loaded = Sae::load(root.path()).unwrap();
        assert_eq!((loaded.d_in(), loaded.num_latents(), loaded.k()), (D_IN, LATENTS, 2));
    }
    fs::write(root.path().join("cfg.json"), r#"{"d_in": 3, "num_latents": 6, "k": 2}"#).unwrap();
    let message = chain(&Sae::load(root.path()).unwrap_err());
    for part in ["sae.safetensors", "encoder.weight", "[5, 3]", "[6, 3]"] {
        assert!(message.contains(part), "{message}");
    }
    fs::write(root.path().join("cfg.json"), r#"{"d_in": 3, "num_latents": 5, "k": 2, "signed": true}"#)
        .unwrap();
    let message = chain(&Sae::load(root.path()).unwrap_err());
    assert!(message.contains("cfg.json") && message.contains("field signed is true"), "{message}");
    for (json, field) in [
        (
            r#"{"d_in": 3, "num_latents": 5, "k": 2, "activation": "groupmax"}"#,
            "field activation is groupmax",
        ),
        (r#"{"d_in": 3, "num_latents": 5, "k": 2, "activation": "batch_topk"}"#, "field threshold"),
        (r#"{"d_in": 3, "num_latents": 5, "k": 2, "matryoshka": [2, 4]}"#, "field matryoshka"),
    ] {
        fs::write(root.path().join("cfg.json"), json).unwrap();
        let message = chain(&Sae::load(root.path()).unwrap_err());
        assert!(message.contains("cfg.json") && message.contains(field), "{message}");
    }
    fs::write(root.path().join("cfg.json"), r#"{"num_latents": 5}"#).unwrap();
    let message = chain(&Sae::load(root.path()).unwrap_err());
    assert!(message.contains("cfg.json") && message.contains("d_in"), "{message}");
    fs::remove_file(root.path().join("cfg.json")).unwrap();
    let message = chain(&Sae::load(root.path()).unwrap_err());
    assert!(message.contains("cannot read") && message.contains("cfg.json"), "{message}");
}

fn write_tensors(folder: &Path, tensors: &[(&str, Dtype, &[usize])]) {
    let zeros = vec![0_u8; 8 * 64];
    let views = tensors.iter().map(|(name, dtype, shape)| {
        let bytes = shape.iter().product::<usize>() * dtype.bitsize() / 8;
        (*name, TensorView::new(*dtype, shape.to_vec(), &zeros[..bytes]).unwrap())
    });
    safetensors::serialize_to_file(views, None, &folder.join("sae.safetensors")).unwrap();
}

#[test]
fn wrong_tensors_are_named() {
    let root = tempfile::tempdir().unwrap();
    sae().save(root.path(), WeightDtype::F32).unwrap();
    let good: [(&str, Dtype, &[usize]); 4] = [
        ("encoder.weight", Dtype::F32, &[5, 3]),
        ("encoder.bias", Dtype::F32, &[5]),
        ("W_dec", Dtype::F32, &[5, 3]),
        ("b_dec", Dtype::F32, &[3]),
    ];
    write_tensors(root.path(), &good);
    Sae::load(root.path()).unwrap();
    let mut skip = good.to_vec();
    skip.push(("W_skip", Dtype::F32, &[3, 4]));
    write_tensors(root.path(), &skip);
    let config = root.path().join("cfg.json");
    let plain = fs::read(&config).unwrap();
    fs::write(&config, r#"{"d_in": 3, "num_latents": 5, "k": 2, "skip_connection": true}"#).unwrap();
    let message = chain(&Sae::load(root.path()).unwrap_err());
    assert!(message.contains("W_skip has shape [3, 4], cfg.json says [3, 3]"), "{message}");
    fs::write(&config, plain).unwrap();
    let with = |index: usize, tensor| {
        let mut tensors = good;
        tensors[index] = tensor;
        write_tensors(root.path(), &tensors);
        chain(&Sae::load(root.path()).unwrap_err())
    };
    let message = with(2, ("W_dec", Dtype::F32, &[3, 5]));
    assert!(message.contains("W_dec has shape [3, 5], cfg.json says [5, 3]"), "{message}");
    let message = with(1, ("encoder.bias", Dtype::F64, &[5]));
    assert!(message.contains("encoder.bias is stored as F64"), "{message}");
    write_tensors(root.path(), &good[..3]);
    let message = chain(&Sae::load(root.path()).unwrap_err());
    assert!(message.contains("has no tensor b_dec; it has W_dec, encoder.bias, encoder.weight"), "{message}");
    let mut extra = good.to_vec();
    extra.push(("W_skip", Dtype::F32, &[3, 3]));
    write_tensors(root.path(), &extra);
    assert!(matches!(
        Sae::load(root.path()),
        Err(SaeError::UnexpectedTensor { tensor, .. }) if tensor == "W_skip"
    ));
    // One dtype per tensor is allowed.
    let mut mixed = good;
    mixed[0].1 = Dtype::BF16;
    write_tensors(root.path(), &mixed);
    assert_eq!(Sae::load(root.path()).unwrap().encoder_weight().dtype(), WeightDtype::Bf16);
}

#[test]
fn truncated_files_are_errors_at_every_length() {
    let root = tempfile::tempdir().unwrap();
    sae().save(root.path(), WeightDtype::F32).unwrap();
    let path = root.path().join("sae.safetensors");
    let whole = fs::read(&path).unwrap();
    for length in 0..whole.len() {
        fs::write(&path, &whole[..length]).unwrap();
        let message = chain(&Sae::load(root.path()).unwrap_err());
        assert!(message.contains("sae.safetensors"), "{length}: {message}");
    }
}

#[test]
fn a_failed_save_leaves_nothing_and_spoils_nothing() {
    let root = tempfile::tempdir().unwrap();
    let large = SaeTensors { decoder_bias: vec![0.0, 70_000.0, 0.0], ..tensors() };
    let large = Sae::from_parts(SaeConfig::new(D_IN, LATENTS, 2), large).unwrap();
    let error = large.save(&root.path().join("new"), WeightDtype::F16).unwrap_err();
    assert_eq!(error.to_string(), "tensor b_dec holds 70000, which does not fit F16; save as F32 or BF16");
    assert!(names(root.path()).is_empty());
    // A file where the folder should be.
    fs::write(root.path().join("file"), "").unwrap();
    assert!(matches!(sae().save(&root.path().join("file"), WeightDtype::F32), Err(SaeError::Write { .. })));
    // A folder where a file should be: the failure comes at the rename, and the temporary files go.
    let folder = root.path().join("model.layers.0");
    fs::create_dir_all(folder.join("sae.safetensors/in the way")).unwrap();
    assert!(matches!(sae().save(&folder, WeightDtype::F32), Err(SaeError::Write { .. })));
    assert_eq!(names(&folder), ["sae.safetensors"]);
}

#[test]
fn finds_autoencoders_by_hook_point() {
    let root = tempfile::tempdir().unwrap();
    let at = |name: &str| root.path().join(name);
    assert!(matches!(Sae::find(root.path()), Err(SaeError::NoneFound { .. })));
    assert!(matches!(Sae::find(&at("nowhere")), Err(SaeError::Read { .. })));
    sae().save(&at("model.layers.24"), WeightDtype::F32).unwrap();
    sae().save(&at("model.layers.3.mlp"), WeightDtype::F32).unwrap();
    sae().save(&at("not a hook point"), WeightDtype::F32).unwrap();
    fs::create_dir(at("empty")).unwrap();
    fs::write(at("config.json"), "{}").unwrap();
    let found = Sae::find(root.path()).unwrap();
    let hooks: Vec<_> = found.keys().map(HookPoint::as_str).collect();
    assert_eq!(hooks, ["model.layers.24", "model.layers.3.mlp"]);
    assert_eq!(found[&HookPoint::layer(24)], at("model.layers.24"));
    assert_eq!(Sae::find(&at("model.layers.24")).unwrap()[&HookPoint::layer(24)], at("model.layers.24"));
    assert!(matches!(Sae::find(&at("not a hook point")), Err(SaeError::NoHookPoint { .. })));
    sae().save(&at("model.layers.7/seed1"), WeightDtype::F32).unwrap();
    let message = Sae::find(root.path()).unwrap_err().to_string();
    assert!(message.contains("model.layers.7/seed1"), "{message}");
    assert!(Sae::find(&at("model.layers.7/seed1")).unwrap().contains_key(&HookPoint::layer(7)));
}

#[test]
fn parts_of_the_wrong_length_are_named() {
    let short = SaeTensors { decoder_weight: vec![0.0; 14], ..tensors() };
    let error = Sae::from_parts(SaeConfig::new(D_IN, LATENTS, 2), short).unwrap_err();
    assert_eq!(error.to_string(), "tensor W_dec has 14 elements, shape [5, 3] needs 15");
    assert!(Sae::from_parts(SaeConfig::new(D_IN, LATENTS, 6), tensors()).is_err());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever bytes of the header change, loading returns.
    #[test]
    fn damaged_headers_never_panic(changes in prop::collection::vec((0_usize..340, any::<u8>()), 1..4)) {
        let root = tempfile::tempdir().unwrap();
        sae().save(root.path(), WeightDtype::F32).unwrap();
        let path = root.path().join("sae.safetensors");
        let mut bytes = fs::read(&path).unwrap();
        for (at, byte) in changes {
            let at = at % bytes.len();
            bytes[at] = byte;
        }
        fs::write(&path, bytes).unwrap();
        if let Ok(sae) = Sae::load(root.path()) {
            let _ = sae.encode(Array2::zeros((1, D_IN)).view());
        }
    }
}
