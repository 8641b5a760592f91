//! Saved states go on with the same bits, and what is no state is refused by name.

use std::path::Path;

use sae_trainer::{Engine, Optimizer, Rows, Selection, Trainer, TrainerConfig, TrainerError};
use tch::{Device, Tensor};

use crate::toy::{Toy, config};

fn configs() -> Vec<TrainerConfig> {
    let base = with!(config(10); grad_acc_steps: 3);
    let latents = base.num_latents;
    vec![
        with!(base.clone(); activation: Selection::BatchTopK,
            multi_topk: true,
            matryoshka: vec![10, latents],
            auxk_alpha: 0.1,
            dead_feature_threshold: 150,
            centre: true,
            scale_norm: true),
        with!(base.clone(); optimizer: Optimizer::Adam8bit),
        with!(base; optimizer: Optimizer::Signum, transcode: true, skip_connection: true),
    ]
}

fn step(trainer: &mut Trainer, x: &Tensor) {
    let y = x.flip([1_i64]) + 1.0;
    let targets = trainer.config().transcode.then_some(&y);
    let rows = Rows { targets, ..Rows::new(x) };
    if trainer.tokens() == 0 {
        trainer.init(&rows).unwrap();
    }
    trainer.step(&rows).unwrap();
}

fn bytes(trainer: &Trainer, folder: &Path) -> Vec<u8> {
    let path = folder.join("bytes");
    trainer.save_state(&path).unwrap();
    std::fs::read(path).unwrap()
}

#[test]
fn a_state_saved_at_any_call_continues_to_the_bit() {
    let toy = Toy::new();
    let batches: Vec<Tensor> = (0..8).map(|_| toy.batch(64)).collect();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("trainer.safetensors");
    for config in configs() {
        for engine in [Engine::Kernels, Engine::Libtorch] {
            let new = || Trainer::with_engine(config.clone(), Device::Cpu, engine).unwrap();
            let mut whole = new();
            for x in &batches {
                step(&mut whole, x);
            }
            let want = bytes(&whole, folder.path());
            for at in [1, 3, 5, 7] {
                let mut first = new();
                for x in &batches[..at] {
                    step(&mut first, x);
                }
                first.save_state(&path).unwrap();
                drop(first);
                let mut second = new();
                // What it has seen meanwhile is forgotten.
                step(&mut second, &toy.batch(64));
                second.load_state(&path).unwrap();
                assert_eq!(second.tokens(), 64 * at as u64);
                for x in &batches[at..] {
                    step(&mut second, x);
                }
                assert!(bytes(&second, folder.path()) == want, "{engine:?}, saved after {at}: {config:?}");
            }
        }
    }
}

#[test]
fn a_state_of_one_engine_serves_the_other() {
    let toy = Toy::new();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("trainer.safetensors");
    for config in configs() {
        let mut kernels = Trainer::with_engine(config.clone(), Device::Cpu, Engine::Kernels).unwrap();
        (0..5).for_each(|_| step(&mut kernels, &toy.batch(64)));
        kernels.save_state(&path).unwrap();
        let mut libtorch = Trainer::with_engine(config, Device::Cpu, Engine::Libtorch).unwrap();
        libtorch.load_state(&path).unwrap();
        let x = toy.batch(64);
        step(&mut kernels, &x);
        step(&mut libtorch, &x);
        let [a, b] = [&kernels, &libtorch].map(|trainer| crate::toy::numbers(&trainer.to_sae().unwrap()));
        let far = a.iter().zip(&b).filter(|(a, b)| (*a - *b).abs() > 1e-3).count();
        assert!(far < a.len() / 100, "{far} of {}", a.len());
    }
}

#[test]
fn what_is_no_state_of_these_settings_is_refused_and_changes_nothing() {
    let toy = Toy::new();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("trainer.safetensors");
    let config = configs().remove(0);
    let mut trainer = Trainer::new(config.clone(), Device::Cpu).unwrap();
    (0..2).for_each(|_| step(&mut trainer, &toy.batch(64)));
    let before = bytes(&trainer, folder.path());

    let whole = before.clone();
    for end in [0, 7, 100, whole.len() / 2, whole.len() - 1] {
        std::fs::write(&path, &whole[..end]).unwrap();
        let error = trainer.load_state(&path).unwrap_err();
        assert!(matches!(error, TrainerError::StateFormat { .. }), "{end} bytes: {error}");
        assert!(error.to_string().contains("trainer.safetensors"), "{error}");
    }
    assert!(matches!(trainer.load_state(&folder.path().join("none")), Err(TrainerError::StateFile { .. })));
    // Another file of tensors.
    let sae = trainer.to_sae().unwrap();
    sae.save(folder.path(), sae_core::WeightDtype::F32).unwrap();
    let error = trainer.load_state(&folder.path().join("sae.safetensors")).unwrap_err();
    assert!(matches!(error, TrainerError::StateFormat { .. }), "{error}");

    let others = [
        with!(config.clone(); k: config.k + 1, lr: Some(0.5)),
        with!(config.clone(); optimizer: Optimizer::Signum),
        with!(config.clone(); num_latents: 90, matryoshka: vec![10, 90]),
        with!(config; grad_acc_steps: 4),
    ];
    for (other, named) in others.into_iter().zip([
        &["k is 3 there and 4 here", "lr is"][..],
        &["optimizer"],
        &["num_latents", "matryoshka"],
        &["grad_acc_steps"],
    ]) {
        let mut other = Trainer::new(other, Device::Cpu).unwrap();
        other.save_state(&path).unwrap();
        let error = other.load_state(&folder.path().join("bytes")).unwrap_err();
        for name in named {
            assert!(error.to_string().contains(name), "{error}");
        }
        assert!(matches!(trainer.load_state(&path), Err(TrainerError::StateSettings { .. })));
    }
    assert!(bytes(&trainer, folder.path()) == before);
    // A state can be written over itself, and leaves nothing beside it.
    let mut names: Vec<_> =
        std::fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["bytes", "cfg.json", "sae.safetensors", "trainer.safetensors"]);
}
