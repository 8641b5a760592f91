//! The training loss and its gradients for some rows of a batch, written once for every [`Backend`].
//!
//! With `ȳ` the weighted mean of the targets `y` (the inputs themselves, unless it is a transcoder), `w` the rows' weights (1
//! unless given), and everything summed over the batch:
//!
//! ```text
//! V        = Σ w ||y - ȳ||²
//! FVU      = Σ w ||y - x̂||² / V                                            the selected codes, k a row
//! FVU_m    = the same of the codes below latent m                          Matryoshka
//! FVU_4k   = the same of 4k codes a row                                    Multi-TopK
//! AuxK     = s · Σ w ||(y - x̂) - Σ z_aux W_dec||² / V                      y - x̂ held fixed, no decoder bias
//! loss     = FVU, or with Matryoshka the mean of FVU_m  [+ FVU_4k / 8]  [+ alpha · AuxK]
//! ```
//!
//! `z_aux` are the `min(d_in / 2, #dead)` largest activations among the dead latents and `s = min(1, #dead / (d_in / 2))`. AuxK thus
//! teaches dead latents what the living ones leave over; msae's teaches them its negative.
//!
//! All terms but AuxK are a chain of reconstructions, each the one before and some codes more. So the codes are cut into
//! disjoint sets, each decoded once; and because a code of set `i` takes part in the terms from `i` on, its gradient comes
//! from the sum of their gradients, in one pass over its set.

use std::ops::Range;

use crate::backend::Backend;
use crate::config::{Selection, TrainerConfig};
use crate::distributed::{Failure, Share};

/// Latents of the Multi-TopK term, as a multiple of k, and the weight of its FVU.
const MULTI: usize = 4;
const MULTI_WEIGHT: f64 = 1.0 / 8.0;

/// The reconstructions the loss looks at: the codes below each prefix, and with Multi-TopK all 4k.
#[derive(Clone, Debug)]
pub(crate) struct Chain {
    pub(crate) selection: Selection,
    /// Codes a row keeps.
    pub(crate) k: usize,
    /// Codes a row is encoded to: 4k, or all latents there are, with Multi-TopK; else k.
    pub(crate) count: usize,
    /// Ends of the Matryoshka groups; `[num_latents]` without.
    pub(crate) prefixes: Vec<usize>,
    /// Whether the codes beyond the k, of which there may be none, make a set too.
    pub(crate) multi_topk: bool,
}

impl Chain {
    pub(crate) fn new(config: &TrainerConfig) -> Self {
        let count = if config.multi_topk { (MULTI * config.k).min(config.num_latents) } else { config.k };
        let prefixes = match config.matryoshka.as_slice() {
            [] => vec![config.num_latents],
            prefixes => prefixes.to_vec(),
        };
        Self { selection: config.activation, k: config.k, count, prefixes, multi_topk: config.multi_topk }
    }
}

/// Inputs `[n, d_in]`, targets of a transcoder `[n, d_in]`, weights `[n, 1]`.
#[derive(Debug)]
pub(crate) struct Batch<R> {
    pub(crate) x: R,
    pub(crate) y: Option<R>,
    pub(crate) weights: Option<R>,
}

impl<R> Batch<R> {
    pub(crate) fn targets(&self) -> &R {
        self.y.as_ref().unwrap_or(&self.x)
    }

    pub(crate) fn part<B: Backend<Rows = R>>(&self, rows: &Range<usize>) -> Self {
        let part = |matrix: &R| B::part(matrix, rows.clone());
        Self { x: part(&self.x), y: self.y.as_ref().map(part), weights: self.weights.as_ref().map(part) }
    }
}

/// What a batch is measured with.
#[derive(Clone, Debug)]
pub(crate) struct Objective {
    pub(crate) chain: Chain,
    pub(crate) matryoshka: bool,
    pub(crate) auxk_alpha: f64,
    pub(crate) d_in: usize,
    /// Latents that count as dead.
    pub(crate) dead: usize,
    /// `V` of the whole batch.
    pub(crate) variance: f64,
    /// What all gradients are multiplied by.
    pub(crate) scale: f64,
}

/// The terms of the loss, summed over parts of a batch.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Losses {
    /// The loss, with its weights.
    pub(crate) loss: f64,
    pub(crate) fvu: f64,
    pub(crate) multi_topk_fvu: Option<f64>,
    pub(crate) matryoshka_fvu: Option<f64>,
    pub(crate) auxk: Option<f64>,
    /// How many of the k codes are on, in all rows together.
    pub(crate) codes: usize,
    /// The smallest activation among them, of each part; none where a part has no codes.
    pub(crate) smallest: Vec<Option<f32>>,
}

impl Losses {
    pub(crate) fn add(&mut self, part: &Self) {
        let both = |a: &mut Option<f64>, b: Option<f64>| *a = b.map(|b| a.unwrap_or(0.0) + b);
        self.loss += part.loss;
        self.fvu += part.fvu;
        both(&mut self.multi_topk_fvu, part.multi_topk_fvu);
        both(&mut self.matryoshka_fvu, part.matryoshka_fvu);
        both(&mut self.auxk, part.auxk);
        self.codes += part.codes;
        self.smallest.extend_from_slice(&part.smallest);
    }
}

/// Adds the gradients of the loss's terms for the rows of `batch` to those of `backend`.
///
/// # Errors
/// A pre-activation that is not finite, or a rank that does not take part.
pub(crate) fn forward_backward<B: Backend>(
    backend: &mut B,
    share: &Share<'_>,
    objective: &Objective,
    batch: &Batch<B::Rows>,
) -> Result<Losses, Failure> {
    let Objective { chain, variance, scale, .. } = objective;
    let (x, y, weights) = (&batch.x, batch.targets(), batch.weights.as_ref());
    let groups = chain.prefixes.len();
    let sets = share.encode(backend, x, chain)?;
    let fired = backend.note_fired(&sets[..groups]);

    let mut decoded = backend.start(x);
    let mut fractions = Vec::with_capacity(sets.len());
    let mut upstream = Vec::with_capacity(sets.len());
    let mut error_of_k = None;
    for (set, codes) in sets.iter().enumerate() {
        share.add_decoded(backend, codes, &mut decoded)?;
        let (error, squares) = backend.error(&decoded, y, weights);
        fractions.push(squares / variance);
        let weight = if set < groups { 1.0 / groups as f64 } else { MULTI_WEIGHT };
        upstream.push(backend.scaled(&error, weights, 2.0 * weight * scale / variance));
        if set + 1 == groups && objective.auxk_alpha > 0.0 && objective.dead > 0 {
            error_of_k = Some(error);
        }
    }
    // Each set's codes take part in its own term and in all after it.
    for set in (1..sets.len()).rev() {
        let (before, from) = upstream.split_at_mut(set);
        backend.add(&mut before[set - 1], &from[0]);
    }
    backend.accumulate_start(x, &upstream[0]);
    backend.accumulate(x, &sets, &upstream);

    let prefixes_mean = fractions[..groups].iter().sum::<f64>() / groups as f64;
    let multi_topk_fvu = chain.multi_topk.then(|| fractions[sets.len() - 1]);
    let mut losses = Losses {
        loss: prefixes_mean + multi_topk_fvu.map_or(0.0, |fvu| MULTI_WEIGHT * fvu),
        fvu: fractions[groups - 1],
        multi_topk_fvu,
        matryoshka_fvu: objective.matryoshka.then_some(prefixes_mean),
        auxk: None,
        codes: fired.codes,
        smallest: vec![fired.smallest],
    };
    if let Some(error) = error_of_k {
        // error = x̂ - y, so the residual's reconstruction less the residual is their sum.
        let wanted = (objective.d_in / 2).max(1);
        let part = (objective.dead as f64 / wanted as f64).min(1.0);
        let codes = share.encode_dead(backend, x, wanted.min(objective.dead))?;
        let mut left = error;
        share.add_decoded(backend, &codes, &mut left)?;
        let squares = backend.squares(&left, weights);
        let factor = 2.0 * objective.auxk_alpha * part * scale / variance;
        let upstream = backend.scaled(&left, weights, factor);
        backend.accumulate(x, &[codes], &[upstream]);
        let auxk = part * squares / variance;
        losses.loss += objective.auxk_alpha * auxk;
        losses.auxk = Some(auxk);
    }
    Ok(losses)
}

#[cfg(test)]
mod tests {
    use sae_core::SaeTensors;
    use tch::{Device, Kind, Tensor, no_grad};

    use super::*;
    use crate::backend::{Cpu, SparseGradients, Torch};

    const D_IN: i64 = 12;
    const LATENTS: i64 = 40;
    const K: i64 = 3;
    const ROWS: i64 = 50;

    /// Parameters `W_enc, b_enc, W_dec, b_dec, W_skip`, inputs, targets, weights, all f64 of f32 numbers.
    struct Toy {
        parameters: Vec<Tensor>,
        x: Tensor,
        y: Tensor,
        weights: Option<Tensor>,
        dead: Vec<i64>,
    }

    fn toy(transcode: bool, weighted: bool, dead: Vec<i64>) -> Toy {
        tch::set_num_threads(1);
        tch::manual_seed(3);
        let draw = |shape: &[i64]| Tensor::randn(shape, (Kind::Float, Device::Cpu)).to_kind(Kind::Double);
        let shapes: [&[i64]; 5] = [&[LATENTS, D_IN], &[LATENTS], &[LATENTS, D_IN], &[D_IN], &[D_IN, D_IN]];
        let parameters = shapes.map(|shape| draw(shape) / 2.0).into();
        let x = draw(&[ROWS, D_IN]);
        let y = if transcode { draw(&[ROWS, D_IN]) } else { x.shallow_clone() };
        let weights = weighted.then(|| draw(&[ROWS, 1]).abs().clamp_min(0.25));
        Toy { parameters, x, y, weights, dead }
    }

    fn configs() -> Vec<(TrainerConfig, Vec<i64>)> {
        let base = TrainerConfig::new(D_IN as usize, LATENTS as usize, K as usize, 10);
        let batch = TrainerConfig { activation: Selection::BatchTopK, ..base.clone() };
        let nested = TrainerConfig { matryoshka: vec![5, 17, LATENTS as usize], ..base.clone() };
        let all = TrainerConfig { multi_topk: true, auxk_alpha: 0.5, ..nested.clone() };
        let skip = TrainerConfig { skip_connection: true, multi_topk: true, ..base.clone() };
        let transcoder = TrainerConfig { transcode: true, auxk_alpha: 0.25, ..skip.clone() };
        let few = vec![4, 9];
        let many: Vec<i64> = (20..40).collect();
        let wide = TrainerConfig { k: LATENTS as usize, multi_topk: true, ..base.clone() };
        vec![
            (base.clone(), vec![]),
            (TrainerConfig { multi_topk: true, ..base.clone() }, vec![]),
            (TrainerConfig { auxk_alpha: 0.5, ..base.clone() }, vec![]),
            (TrainerConfig { auxk_alpha: 0.5, ..base }, few.clone()),
            (wide, vec![]),
            (nested, vec![]),
            (all.clone(), many.clone()),
            (TrainerConfig { activation: Selection::BatchTopK, ..all }, few.clone()),
            (TrainerConfig { multi_topk: true, ..batch.clone() }, vec![]),
            (batch, vec![]),
            (skip, vec![]),
            (transcoder.clone(), few),
            (TrainerConfig { matryoshka: vec![10, LATENTS as usize], ..transcoder }, many),
        ]
    }

    /// The loss as the module's documentation writes it, dense, for autograd.
    fn dense_loss(leaves: &[Tensor], toy: &Toy, config: &TrainerConfig) -> Tensor {
        let [w_enc, b_enc, w_dec, b_dec, w_skip] = leaves else { unreachable!() };
        let Toy { x, y, .. } = toy;
        let ones = Tensor::ones([ROWS, 1], (Kind::Double, Device::Cpu));
        let weights = toy.weights.as_ref().unwrap_or(&ones);
        let mean =
            (y * weights).sum_dim_intlist([0_i64].as_slice(), true, Kind::Double) / weights.sum(Kind::Double);
        let variance = ((y - mean).square() * weights).sum(Kind::Double);
        let input = if config.transcode { x.shallow_clone() } else { x - b_dec };
        let pre = (input.matmul(&w_enc.tr()) + b_enc).relu();
        let select = |pre: &Tensor, k: i64| match config.activation {
            Selection::TopK => {
                let (values, indices) = pre.topk(k, 1, true, true);
                pre.zeros_like().scatter(1, &indices, &values)
            }
            Selection::BatchTopK => {
                let flat = pre.reshape([-1]);
                let (values, indices) = flat.topk((k * ROWS).min(flat.numel() as i64), 0, true, true);
                flat.zeros_like().scatter(0, &indices, &values).reshape(pre.size())
            }
        };
        let base =
            if config.skip_connection { x.matmul(&w_skip.tr()) + b_dec } else { b_dec.shallow_clone() };
        let squares = |error: &Tensor| (error.square() * weights).sum(Kind::Double) / &variance;
        let k = config.k as i64;
        let codes = select(&pre, k);
        let error = y - (codes.matmul(w_dec) + &base);
        let mut loss = squares(&error);
        if !config.matryoshka.is_empty() {
            let terms = config.matryoshka.iter().map(|&end| {
                let end = end as i64;
                squares(&(y - (codes.narrow(1, 0, end).matmul(&w_dec.narrow(0, 0, end)) + &base)))
            });
            loss = terms.sum::<Tensor>() / config.matryoshka.len() as f64;
        }
        if config.multi_topk {
            loss += squares(&(y - (select(&pre, (4 * k).min(LATENTS)).matmul(w_dec) + &base))) / 8.0;
        }
        let n_dead = toy.dead.len() as i64;
        if config.auxk_alpha > 0.0 && n_dead > 0 {
            let mask = pre.zeros_like().index_fill(1, &Tensor::from_slice(&toy.dead), 1.0);
            let (values, indices) = (&pre * mask).topk(n_dead.min(D_IN / 2), 1, true, true);
            let aux = pre.zeros_like().scatter(1, &indices, &values).matmul(w_dec);
            let share = (n_dead as f64 / (D_IN / 2) as f64).min(1.0);
            loss += squares(&(error.detach() - aux)) * (config.auxk_alpha * share);
        }
        loss
    }

    fn tensors(toy: &Toy, config: &TrainerConfig) -> SaeTensors {
        let flat =
            |at: usize| Vec::<f32>::try_from(toy.parameters[at].to_kind(Kind::Float).reshape([-1])).unwrap();
        SaeTensors {
            encoder_weight: flat(0),
            encoder_bias: flat(1),
            decoder_weight: flat(2),
            decoder_bias: flat(3),
            skip_weight: config.skip_connection.then(|| flat(4)),
        }
    }

    /// Marks `dead` as dead: the others fire, and then more tokens pass than a latent may be off for.
    fn batch<B: Backend>(backend: &B, toy: &Toy, config: &TrainerConfig) -> Batch<B::Rows> {
        let rows = |tensor: &Tensor| backend.rows(&tensor.to_kind(Kind::Float));
        Batch {
            x: rows(&toy.x),
            y: config.transcode.then(|| rows(&toy.y)),
            weights: toy.weights.as_ref().map(rows),
        }
    }

    /// Loss and gradients of all rows, in `parts` parts.
    fn run<B: Backend>(
        backend: &mut B,
        toy: &Toy,
        config: &TrainerConfig,
        parts: usize,
    ) -> (Losses, SparseGradients) {
        let batch = batch(backend, toy, config);
        let objective = Objective {
            chain: Chain::new(config),
            matryoshka: !config.matryoshka.is_empty(),
            auxk_alpha: config.auxk_alpha,
            d_in: config.d_in,
            dead: toy.dead.len(),
            variance: Share::Alone.variance(backend, batch.targets(), batch.weights.as_ref()).unwrap(),
            scale: 0.25,
        };
        let mut losses = Losses::default();
        no_grad(|| {
            let n = ROWS as usize;
            for start in (0..n).step_by(n.div_ceil(parts)) {
                let rows = start..(start + n.div_ceil(parts)).min(n);
                let part = batch.part::<B>(&rows);
                losses.add(&forward_backward(backend, &Share::Alone, &objective, &part).unwrap());
            }
            Share::Alone.finish_gradients(backend).unwrap();
        });
        (losses, backend.gradients().unwrap())
    }

    /// Parameters as they are, so that gradients are those of the loss alone.
    fn not_normalised(config: &TrainerConfig) -> TrainerConfig {
        TrainerConfig {
            normalize_decoder: false,
            dead_feature_threshold: 0,
            dense_budget: 7 * 8 * LATENTS as usize,
            ..config.clone()
        }
    }

    /// Makes the backend count `dead` as dead.
    fn kill<B: Backend>(backend: &mut B, dead: &[i64]) {
        for (name, _, array) in backend.arrays_mut() {
            let counts: Vec<i64> = (0..LATENTS).map(|latent| i64::from(dead.contains(&latent))).collect();
            match array {
                crate::state::ArrayMut::I64(numbers) => numbers.copy_from_slice(&counts),
                crate::state::ArrayMut::Tensor(tensor) if name == "tokens_since_fired" => {
                    tensor.copy_(&Tensor::from_slice(&counts));
                }
                _ => {}
            }
        }
        assert_eq!(backend.dead(), dead.len());
    }

    fn relative(got: &Tensor, want: &Tensor) -> f64 {
        ((got.to_kind(Kind::Double) - want).norm() / want.norm()).double_value(&[])
    }

    #[test]
    fn losses_and_gradients_equal_autograd_on_the_dense_formulation() {
        for (config, dead) in configs() {
            for weighted in [false, true] {
                let config = not_normalised(&config);
                let toy = toy(config.transcode, weighted, dead.clone());
                let leaves: Vec<Tensor> =
                    toy.parameters.iter().map(|tensor| tensor.copy().set_requires_grad(true)).collect();
                let want = dense_loss(&leaves, &toy, &config);
                want.backward();
                let want = want.double_value(&[]);
                let used = 4 + usize::from(config.skip_connection);

                let mut torch =
                    Torch::new(&config, &tensors(&toy, &config), Device::Cpu, Kind::Double).unwrap();
                kill(&mut torch, &toy.dead);
                let (losses, _) = run(&mut torch, &toy, &config, 1);
                let what = format!("{config:?}, weighted {weighted}, {} dead", toy.dead.len());
                assert!((losses.loss - want).abs() < 1e-10, "{what}: {} {want}", losses.loss);
                assert_eq!(losses.auxk.is_some(), config.auxk_alpha > 0.0 && !toy.dead.is_empty());
                for (at, (got, leaf)) in torch.gradient_tensors().iter().zip(&leaves[..used]).enumerate() {
                    let error = relative(got, &(leaf.grad() * 0.25));
                    // Inputs and weights pass through f32, which is exact here.
                    assert!(error < 1e-10, "libtorch, gradient {at}, off by {error:e}: {what}");
                }

                let mut cpu = Cpu::new(&config, tensors(&toy, &config));
                kill(&mut cpu, &toy.dead);
                let (cpu_losses, gradients) = run(&mut cpu, &toy, &config, 1);
                assert!((cpu_losses.loss - want).abs() < 1e-5, "{what}: {} {want}", cpu_losses.loss);
                for (at, (got, leaf)) in dense(&gradients).iter().zip(&leaves[..used]).enumerate() {
                    let error = relative(got, &(leaf.grad() * 0.25));
                    assert!(error < 1e-5, "kernels, gradient {at}, off by {error:e}: {what}");
                }
                assert_eq!(
                    (cpu_losses.codes, cpu_losses.auxk.is_some()),
                    (losses.codes, losses.auxk.is_some())
                );

                if config.activation == Selection::TopK {
                    for parts in [2, 7] {
                        let mut cpu = Cpu::new(&config, tensors(&toy, &config));
                        kill(&mut cpu, &toy.dead);
                        let (losses, parted) = run(&mut cpu, &toy, &config, parts);
                        assert!((losses.loss - cpu_losses.loss).abs() < 1e-6);
                        for (got, want) in dense(&parted).iter().zip(dense(&gradients)) {
                            let error = relative(got, &want.to_kind(Kind::Double));
                            assert!(error < 1e-5, "{parts} parts, off by {error:e}: {what}");
                        }
                    }
                }
            }
        }
    }

    fn dense(gradients: &SparseGradients) -> Vec<Tensor> {
        let latents = Tensor::from_slice(&gradients.latents);
        let rows = |numbers: &[f32], shape: &[i64]| {
            let mut row_shape = shape.to_vec();
            row_shape[0] = latents.size()[0];
            let rows = Tensor::from_slice(numbers).reshape(row_shape);
            Tensor::zeros(shape, (Kind::Float, Device::Cpu)).index_add(0, &latents, &rows)
        };
        let mut all = vec![
            rows(&gradients.encoder_weight, &[LATENTS, D_IN]),
            rows(&gradients.encoder_bias, &[LATENTS]),
            rows(&gradients.decoder_weight, &[LATENTS, D_IN]),
            Tensor::from_slice(&gradients.decoder_bias),
        ];
        all.extend(gradients.skip_weight.as_ref().map(|skip| Tensor::from_slice(skip).reshape([D_IN, D_IN])));
        all
    }

    /// The share of the variance that the living latents and the dead ones together leave unexplained.
    fn unexplained_with_dead(tensors: &SaeTensors, config: &TrainerConfig, toy: &Toy) -> f64 {
        let mut cpu = Cpu::new(config, tensors.clone());
        kill(&mut cpu, &toy.dead);
        let batch = batch(&cpu, toy, config);
        let variance = Share::Alone.variance(&cpu, &batch.x, None).unwrap();
        let mut decoded = cpu.start(&batch.x);
        for codes in cpu.encode(&batch.x, &Chain::new(config)).unwrap() {
            cpu.add_decoded(&codes, &mut decoded);
        }
        let dead = cpu.encode_dead(&batch.x, (D_IN / 2) as usize).unwrap();
        cpu.add_decoded(&dead, &mut decoded);
        cpu.error(&decoded, &batch.x, None).1 / variance
    }

    #[test]
    fn a_step_on_auxk_helps_and_a_step_the_wrong_way_harms() {
        let toy = toy(false, false, (20..40).collect());
        let config = not_normalised(&configs()[0].0);
        for (sign, helps) in [(1.0, true), (-1.0, false)] {
            let start = tensors(&toy, &config);
            // AuxK's gradient alone: with it less without it.
            let gradients = [1.0, 0.0].map(|auxk_alpha| {
                let config = TrainerConfig { auxk_alpha, ..config.clone() };
                let mut cpu = Cpu::new(&config, start.clone());
                kill(&mut cpu, &toy.dead);
                dense(&run(&mut cpu, &toy, &config, 1).1)
            });
            let mut moved = start.clone();
            // The dead latents' rows only, so that the living reconstruct as before.
            for (numbers, at) in [(&mut moved.encoder_weight, 0), (&mut moved.decoder_weight, 2)] {
                let step = (&gradients[0][at] - &gradients[1][at]) * (-0.04 * sign);
                let step = Vec::<f32>::try_from(step.reshape([-1])).unwrap();
                let from = 20 * D_IN as usize;
                for (number, step) in numbers[from..].iter_mut().zip(&step[from..]) {
                    *number += step;
                }
            }
            let [before, after] =
                [&start, &moved].map(|tensors| unexplained_with_dead(tensors, &config, &toy));
            assert_eq!(after < before, helps, "sign {sign}: {before} -> {after}");
        }
    }
}
