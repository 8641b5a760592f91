//! Training on toys whose dictionary is known.

use sae_core::Sae;
use sae_trainer::{Rows, Trainer, TrainerError};
use tch::{Device, Kind, Tensor};

use crate::toy::{ACTIVE, D_IN, Toy, config, decoder, decoder_row_lengths, tensors};

#[test]
fn finds_a_known_dictionary() {
    let toy = Toy::new();
    let mut trainer = Trainer::new(config(300), Device::Cpu).unwrap();
    trainer.init(&Rows::new(&toy.batch(256))).unwrap();
    let mut last = None;
    for step in 1..=300 {
        let report = trainer.step(&Rows::new(&toy.batch(256))).unwrap();
        assert_eq!((report.optimizer_steps, report.tokens), (step, step * 256));
        assert!(report.grad_norm.is_some() && report.l0 <= ACTIVE as f64);
        if step % 50 == 0 {
            let lengths = decoder_row_lengths(&trainer);
            assert!((lengths - 1.0).abs().max().double_value(&[]) < 1e-5);
        }
        last = Some(report);
    }
    let report = last.unwrap();
    // Each direction of the dictionary has a decoder row near it.
    let cosines = toy.dictionary.matmul(&decoder(&trainer).tr());
    let nearest = cosines.max_dim(1, false).0.mean(Kind::Double).double_value(&[]);
    assert!(report.fvu < 0.05 && nearest > 0.95, "{nearest} {report:?}");
    // What comes out reconstructs as what was trained.
    let x = toy.batch(64);
    let sae = trainer.to_sae().unwrap();
    let flat: Vec<f32> = Vec::try_from(x.reshape([-1])).unwrap();
    let x = ndarray::Array2::from_shape_vec((64, D_IN as usize), flat).unwrap();
    let mut reconstruction = sae_core::metrics::Reconstruction::new();
    reconstruction.push(x.view(), sae.decode(&sae.encode(x.view()).unwrap()).view());
    assert!(reconstruction.fvu().unwrap() < 0.07);
}

#[test]
fn accumulated_batches_make_one_step() {
    let toy = Toy::new();
    let whole = toy.batch(256);
    let run = |grad_acc_steps: u32| {
        let mut config = config(4);
        config.grad_acc_steps = grad_acc_steps;
        // Low enough to clip.
        config.max_grad_norm = 1e-3;
        let mut trainer = Trainer::new(config, Device::Cpu).unwrap();
        let mut norms = Vec::new();
        for call in 1..=4 * grad_acc_steps {
            let report = trainer.step(&Rows::new(&whole)).unwrap();
            assert_eq!(report.grad_norm.is_some(), call % grad_acc_steps == 0);
            norms.extend(report.grad_norm);
        }
        assert_eq!(trainer.optimizer_steps(), 4);
        assert_eq!(trainer.tokens(), u64::from(grad_acc_steps) * 4 * 256);
        (trainer.to_sae().unwrap(), norms)
    };
    let ((once, norms), (thrice, same_norms)) = (run(1), run(3));
    // Of the mean, not the sum, and before clipping.
    assert!(norms[0] > 1e-3);
    for (a, b) in norms.iter().zip(same_norms) {
        assert!((a / b - 1.0).abs() < 1e-4, "{a} {b}");
    }
    let difference = once
        .decoder_weight()
        .to_f32()
        .iter()
        .zip(thrice.decoder_weight().to_f32())
        .map(|(a, b)| (a - b).abs())
        .fold(0.0, f32::max);
    assert!(difference < 1e-5, "{difference}");
}

#[test]
fn the_same_seed_gives_the_same_bits_and_another_does_not() {
    let toy = Toy::new();
    let batches: Vec<Tensor> = (0..5).map(|_| toy.batch(128)).collect();
    let run = |seed: u64| {
        let mut config = config(5);
        config.seed = seed;
        let mut trainer = Trainer::new(config, Device::Cpu).unwrap();
        trainer.init(&Rows::new(&batches[0])).unwrap();
        for batch in &batches {
            trainer.step(&Rows::new(batch)).unwrap();
        }
        trainer.to_sae().unwrap().encoder_weight().to_f32()
    };
    assert_eq!(run(1), run(1));
    assert_ne!(run(1), run(2));
}

#[test]
fn dead_latents_are_counted_on_tokens_and_revived_by_auxk() {
    let toy = Toy::new();
    let run = |auxk_alpha: f64| {
        let mut config = config(150);
        config.auxk_alpha = auxk_alpha;
        config.dead_feature_threshold = 1_000;
        let mut trainer = Trainer::new(config, Device::Cpu).unwrap();
        trainer.init(&Rows::new(&toy.batch(256))).unwrap();
        // 48 of 80 latents are too weak to be among the k largest: without help they never fire.
        let sae = trainer.to_sae().unwrap();
        let mut tensors = tensors(&sae);
        tensors.encoder_weight[..48 * D_IN as usize].iter_mut().for_each(|weight| *weight *= 0.02);
        let sae = Sae::from_parts(sae.config().clone(), tensors).unwrap();
        let mut trainer = Trainer::from_sae(trainer.config().clone(), &sae, Device::Cpu).unwrap();
        let mut dead = Vec::new();
        let mut last = None;
        for _ in 0..150 {
            let report = trainer.step(&Rows::new(&toy.batch(256))).unwrap();
            dead.push(report.dead_share);
            last = Some(report);
        }
        // 1,000 tokens are not over before the fourth batch.
        assert!(dead[..3].iter().all(|&share| share == 0.0) && dead[4] > 0.5, "{:?}", &dead[..6]);
        last.unwrap()
    };
    let (without, with) = (run(0.0), run(1.0 / 32.0));
    assert!(with.dead_share < without.dead_share - 0.1, "{without:?}\n{with:?}");
    assert!(with.fvu < 0.9 * without.fvu, "{without:?}\n{with:?}");
}

#[test]
fn a_refused_batch_changes_nothing() {
    let toy = Toy::new();
    let mut trainer = Trainer::new(config(10), Device::Cpu).unwrap();
    let bad = toy.batch(64);
    let _ = bad.get(9).narrow(0, 2, 1).fill_(f64::NAN);
    assert!(matches!(trainer.init(&Rows::new(&bad)), Err(TrainerError::ActivationsNotFinite { row: 9 })));
    trainer.step(&Rows::new(&toy.batch(64))).unwrap();
    let before = trainer.to_sae().unwrap();
    assert!(matches!(trainer.step(&Rows::new(&bad)), Err(TrainerError::ActivationsNotFinite { row: 9 })));
    let equal = toy.batch(1).expand([64, D_IN], false);
    assert!(matches!(trainer.step(&Rows::new(&equal)), Err(TrainerError::Variance { rows: 64, .. })));
    let (fine, weights) = (toy.batch(64), Tensor::ones([64], (Kind::Float, Device::Cpu)));
    let _ = weights.get(5).fill_(-1.0);
    let rows = Rows { weights: Some(&weights), ..Rows::new(&fine) };
    assert!(matches!(trainer.step(&rows), Err(TrainerError::Weight { row: 5, .. })));
    let after = trainer.to_sae().unwrap();
    assert_eq!(before.encoder_weight().bytes(), after.encoder_weight().bytes());
    assert_eq!(before.decoder_bias().bytes(), after.decoder_bias().bytes());
    assert_eq!((trainer.optimizer_steps(), trainer.tokens()), (1, 64));
    let finite = tensors(&after).encoder_weight.iter().all(|weight| weight.is_finite());
    assert!(finite);
}
