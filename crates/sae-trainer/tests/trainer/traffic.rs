//! What is predicted to go between ranks, against what they count.

use std::sync::Arc;
use std::thread;

use collectives::{Collective, Threads};
use sae_trainer::{
    Distribution, DistributionKind, Engine, Exchange, Rows, Selection, StepTraffic, Trainer, TrainerConfig,
};
use tch::{Device, Kind, Tensor};

const D_IN: usize = 32;
const CODES: DistributionKind = DistributionKind::Data(Exchange::Codes);
const GRADIENTS: DistributionKind = DistributionKind::Data(Exchange::Gradients);

fn distribution(kind: DistributionKind, team: Arc<dyn Collective>) -> Distribution {
    match kind {
        DistributionKind::Data(exchange) => Distribution::Data { team, exchange },
        _ => Distribution::Latents { team },
    }
}

/// Vectors `[rows, 32]` around 0, so that half of the latents of a row are on before selection.
fn vectors(rows: usize) -> Vec<f32> {
    tch::set_num_threads(1);
    tch::manual_seed(5);
    let vectors = Tensor::randn([rows as i64, D_IN as i64], (Kind::Float, Device::Cpu));
    Vec::try_from(vectors.reshape([-1])).unwrap()
}

/// What all ranks received together in the second optimizer step, and how many latents were dead when it began.
fn received(
    config: &TrainerConfig,
    kind: DistributionKind,
    engine: Engine,
    rows: usize,
    ranks: usize,
) -> (u64, usize) {
    let vectors = vectors(rows);
    let of_rank = |team: Threads| {
        tch::set_num_threads(1);
        let rank = team.rank();
        let team = Arc::new(team);
        let own = rows * rank / ranks..rows * (rank + 1) / ranks;
        let size = [own.len() as i64, D_IN as i64];
        let own = Tensor::from_slice(&vectors[own.start * D_IN..own.end * D_IN]).reshape(size);
        let targets = config.transcode.then(|| own.flip([1]));
        let rows = Rows { inputs: &own, targets: targets.as_ref(), weights: None };
        let shared: Arc<dyn Collective> = team.clone();
        let distribution = distribution(kind, shared);
        let mut trainer = Trainer::distributed(config.clone(), Device::Cpu, engine, distribution).unwrap();
        let mut step = || {
            let calls = (0..config.grad_acc_steps).map(|_| trainer.step(&rows).unwrap());
            let report = calls.last().unwrap();
            assert!(report.grad_norm.is_some() && report.l0 == config.k as f64, "{report:?}");
            (report.dead_share * config.num_latents as f64).round() as usize
        };
        let dead = step();
        let before = team.traffic().received_bytes;
        step();
        (team.traffic().received_bytes - before, dead)
    };
    thread::scope(|scope| {
        let ranks: Vec<_> =
            Threads::team(ranks).into_iter().map(|rank| scope.spawn(|| of_rank(rank))).collect();
        let ends: Vec<_> = ranks.into_iter().map(|rank| rank.join().unwrap()).collect();
        (ends.iter().map(|(received, _)| received).sum(), ends[0].1)
    })
}

/// The prediction, which the ranks' count exceeds by `more` bytes a rank at most, and falls short of by rounding only.
#[track_caller]
fn assert_predicted(
    config: &TrainerConfig,
    kind: DistributionKind,
    rows: usize,
    ranks: usize,
    more: f64,
) -> StepTraffic {
    let (received, dead) = received(config, kind, Engine::Kernels, rows, ranks);
    let traffic = config.traffic(kind, rows, ranks, dead);
    let received = received as f64 / ranks as f64;
    let missing = received - traffic.received() as f64;
    // A division per kind of message and call is rounded down.
    assert!(
        missing >= 0.0 && missing <= more + 16.0,
        "{received} bytes, {missing} more than {traffic:?} of {kind:?} on {ranks} ranks, {dead} dead: {config:?}"
    );
    traffic
}

fn objectives() -> Vec<TrainerConfig> {
    let base = TrainerConfig::new(D_IN, 80, 4, 100);
    vec![
        base.clone(),
        with!(base.clone(); multi_topk: true, matryoshka: vec![20, 80], skip_connection: true),
        with!(base.clone(); activation: Selection::BatchTopK, multi_topk: true),
        with!(base.clone(); transcode: true, micro_acc_steps: 2),
        with!(base; grad_acc_steps: 3, micro_acc_steps: 2),
    ]
}

#[test]
fn codes_and_rows_are_as_many_as_predicted() {
    for config in objectives() {
        for ranks in [2, 3] {
            let traffic = assert_predicted(&config, CODES, 1000, ranks, 0.0);
            assert!(traffic.codes > 0 && traffic.reconstructions + traffic.gradients + traffic.marks == 0);
        }
    }
}

#[test]
fn gradients_are_as_many_as_predicted() {
    for config in objectives() {
        let summed = config.grad_acc_steps == 1 && config.activation == Selection::TopK;
        for ranks in [2, 3] {
            // So many rows that every latent has a gradient.
            let traffic = assert_predicted(&config, GRADIENTS, 1000, ranks, 0.0);
            assert_eq!(traffic.gradients > 0, summed);
        }
    }
    // libtorch does not ask which latents have gradients; the kernels send fewer where some have none.
    let config = TrainerConfig::new(D_IN, 80, 4, 100);
    let predicted = config.traffic(GRADIENTS, 1000, 2, 0).received();
    let (torch, _) = received(&config, GRADIENTS, Engine::Libtorch, 1000, 2);
    assert_eq!(torch, 2 * (predicted as u64 - 80));
    let (few, _) = received(&config, GRADIENTS, Engine::Kernels, 4, 2);
    let largest = 2 * (predicted as u64 - (80 - 4 * 4) * 4 * (2 * D_IN as u64 + 1));
    assert!(few <= largest, "{few} bytes, at most {largest}");
}

#[test]
fn selections_and_reconstructions_of_shared_latents_are_as_many_as_predicted() {
    for config in objectives() {
        for ranks in [2, 3] {
            let traffic = assert_predicted(&config, DistributionKind::Latents, 1000, ranks, 0.0);
            let sets = config.matryoshka.len().max(1) + usize::from(config.multi_topk);
            let once = 1000 * 4 * D_IN * config.grad_acc_steps as usize;
            assert_eq!(traffic.reconstructions, sets * once);
        }
    }
    // Where a rank tells a part of what it has, few rows need the second round.
    let wide = TrainerConfig::new(D_IN, 400, 40, 100);
    let traffic = assert_predicted(&wide, DistributionKind::Latents, 1000, 3, 4000.0);
    assert_eq!(traffic.selection, 1000 * 4 * 36 * 2);
}

#[test]
fn auxk_tells_of_dead_latents_on_top() {
    // A third of the latents do not fire in a call, and are dead at once.
    let config = with!(TrainerConfig::new(D_IN, 400, 2, 100); auxk_alpha: 0.03125, dead_feature_threshold: 0);
    for ranks in [2, 3] {
        let with_dead = assert_predicted(&config, CODES, 256, ranks, 0.0);
        let without = config.traffic(CODES, 256, ranks, 0);
        let rows = 256 * (ranks - 1);
        let aux = (rows * (4 + 8 * D_IN / 2)) / ranks + 8 * (ranks - 1);
        assert_eq!(with_dead.codes - without.codes, aux);
        let with_dead = assert_predicted(&config, DistributionKind::Latents, 256, ranks, 4000.0);
        let without = config.traffic(DistributionKind::Latents, 256, ranks, 0);
        assert_eq!(with_dead.reconstructions, 2 * without.reconstructions);
    }
}
