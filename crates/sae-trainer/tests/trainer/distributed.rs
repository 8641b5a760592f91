//! Several ranks against one: the same batches give the same autoencoder.

use std::path::Path;
use std::sync::Arc;
use std::thread;

use collectives::{Collective, Threads};
use sae_core::{Sae, SaeTensors};
use sae_trainer::{
    BiasInit, Distribution, Engine, Exchange, Optimizer, Rows, Selection, StepReport, Trainer, TrainerConfig,
    TrainerError,
};
use tch::{Device, Kind, Tensor};

use crate::toy::{D_IN, Toy, config, tensors};

/// Rows of a batch: three blocks of the encoder and some rows more, so that each of three ranks encodes something.
const ROWS: i64 = 1000;

/// How ranks share the work.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Mode {
    Codes,
    Gradients,
    Latents,
}

impl Mode {
    fn distribution(self, team: Threads) -> Distribution {
        let team: Arc<dyn Collective> = Arc::new(team);
        match self {
            Self::Codes => Distribution::Data { team, exchange: Exchange::Codes },
            Self::Gradients => Distribution::Data { team, exchange: Exchange::Gradients },
            Self::Latents => Distribution::Latents { team },
        }
    }
}

/// Batches `[ROWS, 32]` of plain numbers, which threads can share, and a weight for every row.
struct Data {
    batches: Vec<Vec<f32>>,
    weights: Vec<f32>,
}

impl Data {
    fn new(steps: usize) -> Self {
        let toy = Toy::new();
        let batches = (0..steps).map(|_| Vec::try_from(toy.batch(ROWS).reshape([-1])).unwrap()).collect();
        Self { batches, weights: (0..ROWS).map(|row| 0.5 + (row % 7) as f32 / 4.0).collect() }
    }
}

/// Rows `first..end` of a batch that rank `rank` of `size` gives: shares that differ, the last one empty where there are three.
fn share(rank: usize, size: usize) -> (i64, i64) {
    let cuts: &[i64] = match size {
        1 => &[0, ROWS],
        2 => &[0, 300, ROWS],
        3 => &[0, 651, ROWS, ROWS],
        _ => panic!("no cuts for {size} ranks"),
    };
    (cuts[rank], cuts[rank + 1])
}

struct Run<'a> {
    config: &'a TrainerConfig,
    data: &'a Data,
    engine: Engine,
    weighted: bool,
    steps: std::ops::Range<usize>,
    /// A state to go on from, and one to write.
    load: Option<&'a Path>,
    save: Option<&'a Path>,
}

impl<'a> Run<'a> {
    fn new(config: &'a TrainerConfig, data: &'a Data) -> Self {
        let steps = 0..data.batches.len();
        Self { config, data, engine: Engine::Kernels, weighted: false, steps, load: None, save: None }
    }

    fn train(&self, distribution: Distribution) -> (Trainer, Vec<StepReport>) {
        tch::set_num_threads(1);
        let (rank, size) = distribution.team().map_or((0, 1), |team| (team.rank(), team.size()));
        let mut trainer =
            Trainer::distributed(self.config.clone(), Device::Cpu, self.engine, distribution).unwrap();
        if let Some(path) = self.load {
            trainer.load_state(path).unwrap();
        }
        let (first, end) = share(rank, size);
        let mut reports = Vec::new();
        for step in self.steps.clone() {
            let batch = Tensor::from_slice(&self.data.batches[step]).reshape([ROWS, D_IN]);
            let own = batch.narrow(0, first, end - first);
            let targets = self.config.transcode.then(|| own.flip([1]) * 0.5);
            let weights = Tensor::from_slice(&self.data.weights).narrow(0, first, end - first);
            // A rank whose weights are all 1 need not give any.
            let weights = (self.weighted && (rank == 0 || size != 2)).then_some(weights);
            let rows = Rows { inputs: &own, targets: targets.as_ref(), weights: weights.as_ref() };
            if step == 0 {
                trainer.init(&rows).unwrap();
            }
            reports.push(trainer.step(&rows).unwrap());
        }
        if let Some(path) = self.save
            && (trainer.shares_latents() || rank == 0)
        {
            trainer.save_state(path).unwrap();
        }
        (trainer, reports)
    }

    /// What all ranks end with, which must be the same.
    fn on_ranks(&self, size: usize, mode: Mode) -> (SaeTensors, Vec<StepReport>) {
        let folder = tempfile::tempdir().unwrap();
        let ends: Vec<_> = thread::scope(|scope| {
            let ranks: Vec<_> = Threads::team(size)
                .into_iter()
                .map(|rank| {
                    let place = folder.path().join(rank.rank().to_string());
                    let shared = folder.path().join("0");
                    scope.spawn(move || {
                        let (trainer, reports) = self.train(mode.distribution(rank));
                        let place = if trainer.shares_latents() { &shared } else { &place };
                        trainer.save_sae(place).unwrap();
                        (tensors(&Sae::load(place).unwrap()), reports)
                    })
                })
                .collect();
            ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
        });
        for (sae, reports) in &ends {
            assert!(*sae == ends[0].0, "ranks ended with different autoencoders");
            assert_eq!(*reports, ends[0].1);
        }
        ends.into_iter().next().unwrap()
    }

    fn alone(&self) -> (SaeTensors, Vec<StepReport>) {
        let (trainer, reports) = self.train(Distribution::Alone);
        (tensors(&trainer.to_sae().unwrap()), reports)
    }
}

/// The largest difference over the largest number, of each tensor.
fn apart(a: &SaeTensors, b: &SaeTensors) -> f64 {
    let of = |a: &[f32], b: &[f32]| {
        assert_eq!(a.len(), b.len());
        let largest = |numbers: &mut dyn Iterator<Item = f32>| numbers.fold(0.0_f32, f32::max);
        let scale = largest(&mut a.iter().map(|number| number.abs())).max(f32::MIN_POSITIVE);
        f64::from(largest(&mut a.iter().zip(b).map(|(a, b)| (a - b).abs())) / scale)
    };
    let mut worst = of(&a.encoder_weight, &b.encoder_weight)
        .max(of(&a.encoder_bias, &b.encoder_bias))
        .max(of(&a.decoder_weight, &b.decoder_weight))
        .max(of(&a.decoder_bias, &b.decoder_bias));
    if let (Some(a), Some(b)) = (&a.skip_weight, &b.skip_weight) {
        worst = worst.max(of(a, b));
    }
    worst
}

fn close(a: &[StepReport], b: &[StepReport], tolerance: f64) {
    for (step, (a, b)) in a.iter().zip(b).enumerate() {
        for (a, b) in [(a.loss, b.loss), (a.fvu, b.fvu), (a.l0, b.l0), (a.dead_share, b.dead_share)] {
            assert!((a - b).abs() <= tolerance * a.abs().max(1e-3), "step {step}: {a} and {b}");
        }
    }
}

/// Every objective and optimizer there is, somewhere.
fn objectives(steps: u64) -> Vec<(&'static str, TrainerConfig)> {
    let base = with!(config(steps); dead_feature_threshold: 2_000);
    let latents = base.num_latents;
    vec![
        ("TopK", base.clone()),
        (
            "everything on TopK",
            with!(base.clone(); multi_topk: true, auxk_alpha: 0.03125, matryoshka: vec![10, 33, latents],
                skip_connection: true, centre: true, scale_norm: true),
        ),
        ("BatchTopK", with!(base.clone(); activation: Selection::BatchTopK, multi_topk: true)),
        ("8-bit Adam", with!(base.clone(); optimizer: Optimizer::Adam8bit, micro_acc_steps: 2)),
        (
            "transcoder",
            with!(base.clone(); transcode: true, auxk_alpha: 0.03125, bias_init: BiasInit::Mean,
                optimizer: Optimizer::Signum),
        ),
        ("accumulated", with!(base; grad_acc_steps: 2, micro_acc_steps: 3)),
    ]
}

#[test]
fn exchanged_codes_give_the_same_bits_on_any_number_of_ranks() {
    let data = Data::new(30);
    for (name, config) in objectives(30) {
        let run = Run::new(&config, &data);
        let (alone, reports) = run.alone();
        for size in [2, 3] {
            let (sae, got) = run.on_ranks(size, Mode::Codes);
            assert!(sae == alone, "{name} on {size} ranks: {}", apart(&alone, &sae));
            assert_eq!(got, reports, "{name} on {size} ranks");
        }
    }
}

#[test]
fn a_hundred_steps_agree_to_a_millionth() {
    let data = Data::new(100);
    let config = config(100);
    let run = Run::new(&config, &data);
    let (alone, reports) = run.alone();
    for size in [2, 3] {
        let (codes, got) = run.on_ranks(size, Mode::Codes);
        assert!(codes == alone);
        assert_eq!(got, reports);
        let (gradients, got) = run.on_ranks(size, Mode::Gradients);
        let worst = apart(&alone, &gradients);
        assert!(worst <= 1e-6, "gradients on {size} ranks: {worst:e}");
        close(&reports, &got, 1e-6);
    }
}

#[test]
fn summed_gradients_agree_but_for_rounding() {
    let data = Data::new(12);
    for (name, config) in objectives(12) {
        let run = Run::new(&config, &data);
        let (alone, reports) = run.alone();
        let (sae, got) = run.on_ranks(3, Mode::Gradients);
        let worst = apart(&alone, &sae);
        assert!(worst <= 1e-4, "{name}: {worst:e}");
        close(&reports, &got, 1e-4);
    }
}

#[test]
fn shared_latents_are_selected_and_summed_as_one_dictionary() {
    let data = Data::new(12);
    for (name, config) in objectives(12) {
        let run = Run::new(&config, &data);
        let (alone, reports) = run.alone();
        for size in [2, 3] {
            let (sae, got) = run.on_ranks(size, Mode::Latents);
            let worst = apart(&alone, &sae);
            assert!(worst <= 1e-4, "{name} on {size} ranks: {worst:e}");
            close(&reports, &got, 1e-4);
        }
    }
}

#[test]
fn weights_count_whichever_rank_gives_them() {
    let data = Data::new(6);
    let config = config(6);
    let weighted = Run { weighted: true, ..Run::new(&config, &data) };
    let (alone, _) = weighted.alone();
    for mode in [Mode::Codes, Mode::Gradients, Mode::Latents] {
        let (three, _) = weighted.on_ranks(3, mode);
        assert!(apart(&alone, &three) <= 1e-5, "{mode:?}: {}", apart(&alone, &three));
        // The second of two ranks gives none: its rows count 1.
        let (two, _) = weighted.on_ranks(2, mode);
        assert!(apart(&alone, &two) > 1e-4, "{mode:?}");
    }
}

#[test]
fn libtorch_ranks_agree_with_one() {
    let data = Data::new(6);
    for (name, config) in objectives(6) {
        let run = Run { engine: Engine::Libtorch, ..Run::new(&config, &data) };
        let (alone, reports) = run.alone();
        for mode in [Mode::Codes, Mode::Gradients, Mode::Latents] {
            let (sae, got) = run.on_ranks(2, mode);
            let worst = apart(&alone, &sae);
            // One learning rate: the first steps of Adam are the signs of gradients, the smallest of which are rounding. All steps of Signum are.
            let signs = config.optimizer == Optimizer::Signum && mode == Mode::Gradients;
            assert!(worst <= 5e-3 || signs, "{name}, {mode:?}: {worst:e}");
            close(&reports, &got, 1e-3);
        }
    }
}

#[test]
fn states_load_on_any_number_of_ranks() {
    let folder = tempfile::tempdir().unwrap();
    let data = Data::new(9);
    // In the middle of an accumulation, with moments in 8 bits.
    let config =
        with!(config(9); grad_acc_steps: 2, optimizer: Optimizer::Adam8bit, scale_norm: true, centre: true);
    for (from, mode) in [(1, Mode::Codes), (2, Mode::Codes), (2, Mode::Latents), (3, Mode::Latents)] {
        let path = folder.path().join(format!("{from}-{mode:?}"));
        let first = Run { steps: 0..5, save: Some(&path), ..Run::new(&config, &data) };
        first.on_ranks(from, mode);
        let rest = Run { steps: 5..9, load: Some(&path), ..Run::new(&config, &data) };
        let (alone, _) = rest.alone();
        // On one and the same state: the same bits with codes, rounding with latents shared out.
        for (to, mode, tolerance) in
            [(3, Mode::Codes, 0.0), (3, Mode::Latents, 1e-5), (2, Mode::Latents, 1e-5)]
        {
            let worst = apart(&alone, &rest.on_ranks(to, mode).0);
            assert!(worst <= tolerance, "{path:?} on {to} ranks, {mode:?}: {worst:e}");
        }
    }
    // A file tells nothing of the ranks that wrote it: the same bytes as from one.
    let bytes = |name: &str| std::fs::read(folder.path().join(name)).unwrap();
    assert!(bytes("1-Codes") == bytes("2-Codes"));
    assert_eq!(bytes("1-Codes").len(), bytes("3-Latents").len());
}

#[test]
fn an_accumulation_that_touched_few_latents_is_saved_and_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state");
    let config = with!(config(4); grad_acc_steps: 4, num_latents: 200, normalize_decoder: false);
    let rows = |start: i64| {
        let numbers = Tensor::arange_start(start, start + 3 * D_IN, (Kind::Float, Device::Cpu));
        (numbers * 0.7).sin().reshape([3, D_IN])
    };
    let train = |rank: Threads, load: bool| {
        tch::set_num_threads(1);
        let number = rank.rank() as i64;
        let mut trainer = Trainer::distributed(
            config.clone(),
            Device::Cpu,
            Engine::Kernels,
            Mode::Latents.distribution(rank),
        )
        .unwrap();
        if load {
            trainer.load_state(&path).unwrap();
        } else {
            trainer.step(&Rows::new(&rows(1000 * number))).unwrap();
            trainer.save_state(&path).unwrap();
        }
        trainer.step(&Rows::new(&rows(500 + 1000 * number))).unwrap()
    };
    let on_ranks = |load: bool| -> Vec<StepReport> {
        thread::scope(|scope| {
            let team = Threads::team(2).into_iter();
            let ranks: Vec<_> = team.map(|rank| scope.spawn(|| train(rank, load))).collect();
            ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
        })
    };
    let first = on_ranks(false);
    assert_eq!(on_ranks(true), first);
    let mut alone = Trainer::new(config.clone(), Device::Cpu).unwrap();
    alone.load_state(&path).unwrap();
    let both = Tensor::cat(&[rows(500), rows(1500)], 0);
    close(&first[..1], &[alone.step(&Rows::new(&both)).unwrap()], 1e-5);
}

#[test]
fn what_one_rank_cannot_train_on_stops_all_before_anything_changed() {
    let config = config(4);
    let outcome = |rank: Threads, mode: Mode| {
        let number = rank.rank();
        let mut trainer =
            Trainer::distributed(config.clone(), Device::Cpu, Engine::Kernels, mode.distribution(rank))
                .unwrap();
        let good = Tensor::arange(40 * D_IN, (Kind::Float, Device::Cpu)).sin().reshape([40, D_IN]);
        let bad = good.copy();
        if number == 1 {
            let _ = bad.get(7).fill_(f64::NAN);
        }
        let error = trainer.step(&Rows::new(&bad)).unwrap_err();
        assert_eq!((trainer.tokens(), trainer.optimizer_steps()), (0, 0));
        trainer.step(&Rows::new(&good)).unwrap();
        error
    };
    for mode in [Mode::Codes, Mode::Gradients, Mode::Latents] {
        let errors: Vec<TrainerError> = thread::scope(|scope| {
            let ranks: Vec<_> =
                Threads::team(3).into_iter().map(|rank| scope.spawn(|| outcome(rank, mode))).collect();
            ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
        });
        assert!(matches!(errors[1], TrainerError::ActivationsNotFinite { row: 7 }), "{:?}", errors[1]);
        for other in [0, 2] {
            assert!(matches!(errors[other], TrainerError::OtherRank { rank: 1 }), "{:?}", errors[other]);
        }
    }
}

#[test]
fn replicas_that_differ_are_found() {
    let folder = tempfile::tempdir().unwrap();
    let data = Data::new(2);
    let config = config(4);
    let states = [0, 1].map(|start| {
        let path = folder.path().join(start.to_string());
        let steps = start..start + 1;
        Run { steps, save: Some(&path), ..Run::new(&config, &data) }.alone();
        path
    });
    let outcome = |rank: Threads, paths: [usize; 3]| {
        let path = &states[paths[rank.rank()]];
        let mut trainer = Trainer::distributed(
            config.clone(),
            Device::Cpu,
            Engine::Kernels,
            Mode::Codes.distribution(rank),
        )
        .unwrap();
        trainer.load_state(path).unwrap();
        trainer.check_replicas()
    };
    let check = |paths: [usize; 3]| -> Vec<Result<(), TrainerError>> {
        thread::scope(|scope| {
            let team = Threads::team(3).into_iter();
            let ranks: Vec<_> = team.map(|rank| scope.spawn(|| outcome(rank, paths))).collect();
            ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
        })
    };
    assert!(check([1, 1, 1]).iter().all(Result::is_ok));
    for error in check([0, 1, 0]) {
        assert!(matches!(error, Err(TrainerError::Replicas { ranks }) if ranks == [1]));
    }
}

#[test]
fn fewer_latents_than_ranks_are_refused() {
    let config = TrainerConfig::new(4, 2, 1, 10);
    let team = Threads::team(3);
    let errors: Vec<_> = team
        .into_iter()
        .map(|rank| {
            Trainer::distributed(
                config.clone(),
                Device::Cpu,
                Engine::Kernels,
                Mode::Latents.distribution(rank),
            )
        })
        .filter_map(Result::err)
        .collect();
    assert!(errors[0].to_string().contains("num_latents"), "{}", errors[0]);
}
