//! Each objective must help with what it is for.

use ndarray::Array2;
use sae_core::Sae;
use sae_trainer::{BiasInit, Optimizer, Rows, Selection, Trainer, TrainerConfig};
use tch::{Device, Kind, Tensor};

use crate::toy::{ACTIVE, ATOMS, D_IN, Toy, array, config, fvu, with_k};

/// Trains on fresh batches of 256 from the same toy, and returns the autoencoder and vectors it has not seen.
fn train(config: TrainerConfig) -> (Sae, Array2<f32>) {
    let toy = Toy::new();
    let held_out = array(&toy.batch(512));
    let steps = config.total_steps;
    let mut trainer = Trainer::new(config, Device::Cpu).unwrap();
    trainer.init(&Rows::new(&toy.batch(256))).unwrap();
    for _ in 0..steps {
        trainer.step(&Rows::new(&toy.batch(256))).unwrap();
    }
    (trainer.to_sae().unwrap(), held_out)
}

#[test]
fn multi_topk_reconstructs_better_from_4k_latents() {
    let unexplained = |multi_topk| {
        let (sae, x) = train(with!(config(200); multi_topk));
        let (_, decoded) = with_k(&sae, 4 * sae.k()).reconstruct(x.view()).unwrap();
        fvu(&x, &decoded)
    };
    let (without, with) = (unexplained(false), unexplained(true));
    assert!(with < 0.8 * without, "{with} with, {without} without");
}

#[test]
fn matryoshkas_first_prefix_reconstructs_better() {
    let first = ATOMS as usize / 2;
    let unexplained = |matryoshka| {
        let (sae, x) = train(with!(config(200); matryoshka));
        let codes = sae.encode(x.view()).unwrap();
        let inner = codes.split_at(&[first, sae.num_latents()]).swap_remove(0);
        (fvu(&x, &sae.decode(&inner)), fvu(&x, &sae.decode(&codes)))
    };
    let (without, _) = unexplained(Vec::new());
    let (with, all) = unexplained(vec![first, 2 * ATOMS as usize]);
    assert!(with < 0.8 * without, "{with} with, {without} without");
    // And the whole dictionary is not given up for it.
    assert!(all < 0.25 && all < with, "{all}");
}

/// `[n, 32]` vectors of 1 to 6 directions, larger where there are more.
fn uneven(toy: &Toy, n: i64) -> Tensor {
    let options = (Kind::Float, Device::Cpu);
    let order = Tensor::rand([n, ATOMS], options).argsort(1, false);
    let counts = (Tensor::rand([n, 1], options) * 6.0).floor() + 1.0;
    let on = order.lt_tensor(&counts).to_kind(Kind::Float);
    let codes = on * (Tensor::rand([n, ATOMS], options) + 1.0);
    codes.matmul(&toy.dictionary) * 7.0 + &toy.offset
}

#[test]
fn batch_topk_gives_rows_what_they_need_and_its_threshold_carries_over() {
    let toy = Toy::new();
    let k = 4;
    let run = |activation, scale_norm| {
        let config = with!(config(400); k, activation, scale_norm, centre: scale_norm);
        let mut trainer = Trainer::new(config, Device::Cpu).unwrap();
        trainer.init(&Rows::new(&uneven(&toy, 512))).unwrap();
        let mut l0 = 0.0;
        let mut threshold = None;
        for _ in 0..400 {
            let report = trainer.step(&Rows::new(&uneven(&toy, 256))).unwrap();
            (l0, threshold) = (report.l0, report.threshold);
        }
        let sae = trainer.to_sae().unwrap();
        let x = array(&uneven(&toy, 2000));
        let (codes, decoded) = sae.reconstruct(x.view()).unwrap();
        let mut lengths: Vec<usize> = codes.rows().map(|row| row.len()).collect();
        lengths.sort_unstable();
        lengths.dedup();
        assert_eq!(threshold.is_some(), activation == Selection::BatchTopK);
        (l0, codes.n_codes() as f64 / 2000.0, lengths, fvu(&x, &decoded))
    };
    let (.., topk) = run(Selection::TopK, false);
    for scale_norm in [false, true] {
        let (trained, l0, lengths, batch_topk) = run(Selection::BatchTopK, scale_norm);
        assert_eq!(trained, k as f64);
        assert!((l0 / k as f64 - 1.0).abs() < 0.05, "{l0} latents on by the threshold");
        assert!(lengths.len() > 4, "rows keep {lengths:?}");
        assert!(batch_topk < 0.8 * topk, "{batch_topk}, TopK {topk}");
    }
}

#[test]
fn transcoders_learn_a_module_and_a_skip_connection_its_linear_part() {
    let toy = Toy::new();
    let options = (Kind::Float, Device::Cpu);
    let mix = Tensor::randn([D_IN, D_IN], options) * 0.3;
    // Directions of the input that pass a ReLU, and a linear part.
    let features = toy.dictionary.narrow(0, 0, 20).copy();
    let module = |x: &Tensor| {
        (x.matmul(&features.tr()) - 1.0).relu().matmul(&toy.dictionary.narrow(0, 20, 20)) + x.matmul(&mix)
    };
    let run = |skip_connection| {
        let config = with!(config(300); transcode: true,
            skip_connection,
            centre: true,
            scale_norm: true,
            bias_init: BiasInit::Mean);
        let mut trainer = Trainer::new(config, Device::Cpu).unwrap();
        let mut step = |init: bool| {
            let inputs = toy.batch(256);
            let targets = module(&inputs);
            let rows = Rows { targets: Some(&targets), ..Rows::new(&inputs) };
            if init {
                trainer.init(&rows).unwrap();
            }
            trainer.step(&rows).unwrap().fvu
        };
        let first = step(true);
        // The decoder starts at 0 and the bias at the mean: nothing is explained, and nothing worse than that.
        assert!((first - 1.0).abs() < 0.05, "{first}");
        let last = (1..300).map(|_| step(false)).last().unwrap();
        let inputs = toy.batch(512);
        let targets = array(&module(&inputs));
        let (_, decoded) = trainer.to_sae().unwrap().reconstruct(array(&inputs).view()).unwrap();
        (last, fvu(&targets, &decoded))
    };
    let ((_, without), (last, with)) = (run(false), run(true));
    assert!(without < 0.6 && with < 0.5 * without, "{with} with, {without} without");
    assert!((last / with - 1.0).abs() < 0.2, "{last} in training, {with} afterwards");
}

#[test]
fn rows_that_count_more_are_reconstructed_better() {
    let toy = Toy::new();
    let options = (Kind::Float, Device::Cpu);
    // Two kinds of rows with dictionaries of their own, and fewer latents than both need.
    let draw = |kind: i64, n: i64| {
        let (_, atoms) = Tensor::rand([n, ATOMS / 2], options).topk(ACTIVE, 1, true, true);
        let codes = Tensor::zeros([n, ATOMS / 2], options).scatter(
            1,
            &atoms,
            &(Tensor::rand([n, ACTIVE], options) + 1.0),
        );
        codes.matmul(&toy.dictionary.narrow(0, kind * ATOMS / 2, ATOMS / 2))
    };
    let run = |weight: f64| {
        let mut trainer = Trainer::new(with!(config(250); num_latents: 16), Device::Cpu).unwrap();
        let weights = Tensor::cat(&[Tensor::ones([128], options) * weight, Tensor::ones([128], options)], 0);
        for _ in 0..250 {
            let x = Tensor::cat(&[draw(0, 128), draw(1, 128)], 0);
            trainer.step(&Rows { weights: Some(&weights), ..Rows::new(&x) }).unwrap();
        }
        let x = array(&draw(0, 512));
        let (_, decoded) = trainer.to_sae().unwrap().reconstruct(x.view()).unwrap();
        fvu(&x, &decoded)
    };
    let (alike, more) = (run(1.0), run(30.0));
    assert!(more < 0.85 * alike, "{more} where they count more, {alike} where all count alike");
}

#[test]
fn other_optimizers_come_as_far_as_adam() {
    let unexplained = |optimizer, lr| {
        let (sae, x) = train(with!(config(300); optimizer, lr: Some(lr)));
        let (_, decoded) = sae.reconstruct(x.view()).unwrap();
        fvu(&x, &decoded)
    };
    let adam = unexplained(Optimizer::Adam, 5e-3);
    let adam8bit = unexplained(Optimizer::Adam8bit, 5e-3);
    let signum = unexplained(Optimizer::Signum, 5e-3);
    assert!(adam8bit < 1.05 * adam, "{adam8bit} in 8 bits, {adam}");
    assert!(signum < 2.0 * adam.max(0.05), "{signum} by signs, {adam}");
}

/// What is saved takes and gives activations as they were given, whatever was done to them in training.
#[test]
fn the_folded_autoencoder_is_the_trained_one() {
    let toy = Toy::new();
    let mix = Tensor::randn([D_IN, D_IN], (Kind::Float, Device::Cpu));
    for (transcode, skip_connection) in [(false, false), (false, true), (true, false), (true, true)] {
        for (centre, scale_norm) in [(false, false), (true, false), (false, true), (true, true)] {
            let config = with!(config(10); transcode, skip_connection, centre, scale_norm);
            let what = format!("{config:?}");
            let mut trainer = Trainer::new(config, Device::Cpu).unwrap();
            for step in 0..8 {
                let x = toy.batch(256) * 3.0;
                let y = x.matmul(&mix) - 4.0;
                let rows = Rows { targets: transcode.then_some(&y), ..Rows::new(&x) };
                if step == 0 {
                    trainer.init(&rows).unwrap();
                }
                let sae = trainer.to_sae().unwrap();
                let report = trainer.step(&rows).unwrap();
                let (x, y) = (array(&x), array(if transcode { &y } else { &x }));
                let (codes, decoded) = sae.reconstruct(x.view()).unwrap();
                let got = fvu(&y, &decoded);
                assert!((got / report.fvu - 1.0).abs() < 1e-3, "step {step}: {got}, {} {what}", report.fvu);
                assert!((codes.n_codes() as f64 / 256.0 - report.l0).abs() < 0.02, "{what}");
            }
        }
    }
}

#[test]
fn an_autoencoder_is_trained_further_from_where_it_stood() {
    let (sae, _) = train(config(50));
    let toy = Toy::new();
    let x = toy.batch(256);
    for (centre, scale_norm) in [(false, false), (true, true)] {
        let config = with!(config(50); centre, scale_norm);
        let mut trainer = Trainer::from_sae(config.clone(), &sae, Device::Cpu).unwrap();
        trainer.init(&Rows::new(&x)).unwrap();
        let same = trainer.to_sae().unwrap();
        for (got, want) in crate::toy::numbers(&same).iter().zip(crate::toy::numbers(&sae)) {
            assert!((got - want).abs() < 1e-5, "{got} {want}");
        }
        let first = trainer.step(&Rows::new(&x)).unwrap().fvu;
        assert!(first < 0.5);
        let other = with!(config.clone(); num_latents: 2 * config.num_latents);
        let message = Trainer::from_sae(other, &sae, Device::Cpu).unwrap_err().to_string();
        assert!(message.starts_with("num_latents"), "{message}");
    }
    let mut long = crate::toy::tensors(&sae);
    long.decoder_weight[0] += 3.0;
    let long = Sae::from_parts(sae.config().clone(), long).unwrap();
    let message = Trainer::from_sae(config(50), &long, Device::Cpu).unwrap_err().to_string();
    assert!(message.starts_with("normalize_decoder"), "{message}");
    let free = with!(config(50); normalize_decoder: false);
    Trainer::from_sae(free, &long, Device::Cpu).unwrap();
}
