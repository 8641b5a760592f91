//! Both engines, any number of threads, any number of parts: the same training.

use sae_trainer::{Engine, Optimizer, Rows, Selection, Trainer, TrainerConfig};
use tch::{Device, Kind, Tensor};

use crate::toy::{D_IN, Toy, config, numbers};

fn configs() -> Vec<TrainerConfig> {
    let base = config(20);
    let latents = base.num_latents;
    let all = with!(base.clone(); multi_topk: true,
        matryoshka: vec![10, 30, latents],
        auxk_alpha: 0.1,
        dead_feature_threshold: 300,
        centre: true,
        scale_norm: true);
    vec![
        base.clone(),
        all.clone(),
        with!(all; activation: Selection::BatchTopK),
        with!(base.clone(); optimizer: Optimizer::Adam8bit),
        with!(base.clone(); optimizer: Optimizer::Signum, lr: Some(1e-3)),
        with!(base.clone(); transcode: true, skip_connection: true, grad_acc_steps: 2),
        with!(base; normalize_decoder: false, max_grad_norm: 1e-2),
    ]
}

/// Steps on batches that depend on nothing but their number.
fn run(config: &TrainerConfig, engine: Engine, steps: usize) -> (Vec<f64>, Vec<f32>) {
    let toy = Toy::new();
    let options = (Kind::Float, Device::Cpu);
    let weights = Tensor::rand([128], options) + 0.5;
    let mut trainer = Trainer::with_engine(config.clone(), Device::Cpu, engine).unwrap();
    let mut losses = Vec::new();
    for step in 0..steps {
        let x = toy.batch(128);
        let y = x.flip([1_i64]);
        let targets = config.transcode.then_some(&y);
        let rows = Rows { inputs: &x, targets, weights: Some(&weights) };
        if step == 0 {
            trainer.init(&rows).unwrap();
        }
        let report = trainer.step(&rows).unwrap();
        losses.extend([report.loss, report.dead_share, report.threshold.unwrap_or_default()]);
    }
    (losses, numbers(&trainer.to_sae().unwrap()))
}

#[test]
fn engines_agree_over_twenty_steps() {
    for config in configs() {
        let (losses, parameters) = run(&config, Engine::Kernels, 20);
        let (other_losses, other) = run(&config, Engine::Libtorch, 20);
        for (a, b) in losses.iter().zip(&other_losses) {
            assert!((a - b).abs() < 2e-3 * a.abs().max(0.01), "{a} {b}: {config:?}");
        }
        let norm = |numbers: &mut dyn Iterator<Item = f32>| {
            numbers.map(|n| f64::from(n).powi(2)).sum::<f64>().sqrt()
        };
        let difference = norm(&mut parameters.iter().zip(&other).map(|(a, b)| a - b));
        let size = norm(&mut parameters.iter().copied());
        assert!(difference < 5e-3 * size, "{difference} of {size}: {config:?}");
    }
}

#[test]
fn threads_change_no_bit() {
    for config in configs() {
        let on = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let (losses, parameters) = pool.install(|| run(&config, Engine::Kernels, 6));
            let bits: Vec<u32> = parameters.iter().map(|number| number.to_bits()).collect();
            (losses, bits)
        };
        assert!(on(1) == on(3), "{config:?}");
    }
}

#[test]
fn parts_of_a_batch_make_the_same_step() {
    for config in configs().into_iter().filter(|config| config.activation == Selection::TopK) {
        for engine in [Engine::Kernels, Engine::Libtorch] {
            let parts = with!(config.clone(); micro_acc_steps: 3, dense_budget: 50_000);
            let ((whole, _), (parted, _)) = (run(&config, engine, 4), run(&parts, engine, 4));
            for (a, b) in whole.iter().zip(&parted) {
                assert!((a - b).abs() < 1e-3 * a.abs().max(0.01), "{a} {b}: {config:?}");
            }
        }
    }
}

#[test]
fn every_row_is_of_a_part() {
    // More parts than rows, and rows that do not divide.
    let toy = Toy::new();
    for parts in [2, 5, 64] {
        let mut trainer = Trainer::new(with!(config(4); micro_acc_steps: parts), Device::Cpu).unwrap();
        let report = trainer.step(&Rows::new(&toy.batch(7))).unwrap();
        assert_eq!((report.tokens, report.optimizer_steps), (7, 1));
        assert!(report.l0 > 0.0 && report.fvu.is_finite());
    }
    assert_eq!(toy.batch(1).size(), [1, D_IN]);
}
