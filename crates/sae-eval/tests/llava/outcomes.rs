//! Autoencoders whose figures are known, batches that must not matter, and what is refused.

use lmm_hooks::{Batch, HookPoint, PaddingSide};
use sae_core::SaeConfig;
use sae_eval::{EvalError, Evaluation, Evaluator, Subject, Table};
use tch::{Device, Kind};

use crate::fixture::{WIDTH, directions, evaluate, inputs, model, prompts, random_sae};

fn layer() -> HookPoint {
    HookPoint::layer(1)
}

#[test]
fn a_perfect_autoencoder_recovers_everything_and_a_silent_one_nothing() {
    let (model, prompts) = (model(), prompts());
    let (perfect, silent) = (directions(1.0), directions(0.0));
    let subjects = vec![
        Subject::autoencoder("perfect", layer(), &perfect),
        Subject::autoencoder("silent", layer(), &silent),
    ];
    let [perfect, silent] = &evaluate(&model, subjects, &prompts, 2, PaddingSide::Right)[..] else {
        panic!()
    };
    for fvu in [perfect.fvu, perfect.fvu_image, perfect.fvu_text] {
        assert_eq!(fvu, Some(0.0));
    }
    assert!(
        (perfect.cosine.unwrap() - 1.0).abs() < 1e-12 && (perfect.norm_ratio.unwrap() - 1.0).abs() < 1e-12
    );
    assert_eq!((perfect.l0, perfect.dead_share), (Some(WIDTH as f64), Some(0.0)));
    assert_eq!((perfect.ce_recovered, perfect.kl), (Some(1.0), Some(0.0)));
    assert_eq!(perfect.ce_spliced, perfect.ce_original);
    assert_eq!((perfect.duplicate_share, perfect.max_cosine_mean), (Some(0.0), Some(0.0)));
    assert_eq!(perfect.compared_latents, 2 * WIDTH);
    assert_eq!(perfect.log10_frequency.latents.iter().sum::<u64>(), 2 * WIDTH as u64);

    assert_eq!((silent.ce_recovered, silent.ce_spliced), (Some(0.0), silent.ce_zero));
    assert_eq!((silent.cosine, silent.norm_ratio), (Some(0.0), Some(0.0)));
    assert!(silent.kl.unwrap() > 1e-3, "{silent}");
    // Rows of zeros point nowhere.
    assert_eq!((silent.duplicate_share, silent.compared_latents), (None, 0));
    assert!(silent.fvu.unwrap() >= 1.0);
    let table = Table(&[perfect.clone(), silent.clone()]).to_string();
    let recovered = table.lines().find(|line| line.starts_with("ce_recovered")).unwrap();
    assert_eq!(recovered.split_whitespace().collect::<Vec<_>>(), ["ce_recovered", "1.00000", "0.00000"]);
    assert!(table.lines().any(|line| line.starts_with("duplicate_share") && line.ends_with('-')), "{table}");
}

/// The figures that are sums over tokens.
fn figures(evaluation: &Evaluation) -> Vec<f64> {
    let serde_json::Value::Object(fields) = serde_json::to_value(evaluation).unwrap() else { panic!() };
    let numbers: Vec<_> = fields.values().filter_map(serde_json::Value::as_f64).collect();
    assert_eq!(numbers.len(), 22, "a figure is null");
    numbers
}

#[test]
fn padding_and_batch_size_change_nothing() {
    let (model, prompts) = (model(), prompts());
    let sae = random_sae(SaeConfig::new(WIDTH, 40, 6), 5);
    let subject = || vec![Subject::autoencoder("one", layer(), &sae)];
    let alone = figures(&evaluate(&model, subject(), &prompts, 1, PaddingSide::Right)[0]);
    for (size, side) in [(2, PaddingSide::Right), (4, PaddingSide::Right), (4, PaddingSide::Left)] {
        let together = figures(&evaluate(&model, subject(), &prompts, size, side)[0]);
        for (index, (one, other)) in alone.iter().zip(&together).enumerate() {
            assert!(
                (one - other).abs() < 1e-5 * (1.0 + one.abs()),
                "figure {index}: {one} alone, {other} in {size}"
            );
        }
    }
}

#[test]
fn what_does_not_exist_is_null() {
    let model = model();
    let sae = directions(1.0);
    // Nothing follows the image, so that nothing is predicted and no text counts but the first token, which is left out.
    let prompts = [inputs(1, &[(10, 30)], 0, 1)];
    let subjects = vec![Subject::autoencoder("one", layer(), &sae)];
    let evaluation = &evaluate(&model, subjects, &prompts, 1, PaddingSide::Right)[0];
    assert_eq!((evaluation.tokens_text, evaluation.predicted_tokens), (0, 0));
    assert_eq!(evaluation.tokens_image, evaluation.tokens);
    assert_eq!((evaluation.fvu, evaluation.fvu_image), (Some(0.0), Some(0.0)));
    let json = serde_json::to_value(evaluation).unwrap();
    for field in ["fvu_text", "l0_text", "ce_original", "ce_spliced", "ce_zero", "ce_recovered", "kl"] {
        assert!(json[field].is_null(), "{field} is {}", json[field]);
    }
    let empty = Evaluator::new(&model, vec![Subject::autoencoder("one", layer(), &sae)]).unwrap().finish();
    assert_eq!((empty[0].tokens, empty[0].fvu, empty[0].l0, empty[0].dead_share), (0, None, None, None));
}

#[test]
fn what_does_not_fit_is_named() {
    let model = model();
    let new = |sae: &sae_core::Sae, point: &str| {
        Evaluator::new(&model, vec![Subject::autoencoder("one", point.parse().unwrap(), sae)]).unwrap_err()
    };
    let error = new(&random_sae(SaeConfig::new(8, 16, 2), 1), "model.layers.1");
    assert_eq!(error.to_string(), "one is for vectors of 8 numbers, the model's at model.layers.1 have 16");
    let sae = directions(1.0);
    assert!(matches!(new(&sae, "model.layers.9"), EvalError::Model { .. }));
    assert!(matches!(new(&sae, "multi_modal_projector"), EvalError::VisionPoint { .. }));
}

#[test]
#[should_panic(expected = "positions of sample 1 must rise strictly and stay below 6")]
fn positions_beyond_a_sample_are_a_mistake() {
    let (model, prompts) = (model(), prompts());
    let sae = directions(1.0);
    let mut evaluator = Evaluator::new(&model, vec![Subject::autoencoder("one", layer(), &sae)]).unwrap();
    let prompts = [&prompts[0], &prompts[1]];
    let batch = Batch::new(&prompts, 0, Device::Cpu, Kind::Float, PaddingSide::Right).unwrap();
    let _ = evaluator.push(&model, &batch, &prompts, &[vec![0], vec![6]]);
}
