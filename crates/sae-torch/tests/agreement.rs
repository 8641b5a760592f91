//! Against `sae-core` and against autograd on the dense formulation.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use ndarray::Array2;
use sae_core::{Activation, Sae, SaeConfig, SaeTensors, SparseCodes};
use sae_torch::{Bags, Parameters, TopK, TorchSae, accumulate_gradients};
use tch::{Device, Kind, Tensor};

const D_IN: usize = 24;
const LATENTS: usize = 150;

/// A repeatable stream of numbers in [-1, 1).
fn noise(seed: u64) -> impl FnMut() -> f32 {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    }
}

fn sae(k: usize) -> Sae {
    of_kind(SaeConfig::new(D_IN, LATENTS, k))
}

fn of_kind(config: SaeConfig) -> Sae {
    let mut number = noise(7);
    let mut draw = |n: usize| (0..n).map(|_| number()).collect::<Vec<_>>();
    let tensors = SaeTensors {
        encoder_weight: draw(LATENTS * D_IN),
        // Low enough that some rows have fewer than k latents on.
        encoder_bias: draw(LATENTS).iter().map(|bias| bias - 4.0).collect(),
        decoder_weight: draw(LATENTS * D_IN),
        decoder_bias: draw(D_IN),
        skip_weight: config.skip_connection.then(|| draw(D_IN * D_IN)),
    };
    Sae::from_parts(config, tensors).unwrap()
}

/// BatchTopK, transcoders and skip connections, alone and together.
fn other_kinds() -> Vec<SaeConfig> {
    let mut kinds = Vec::new();
    for activation in [Activation::TopK, Activation::BatchTopK { threshold: 1.5 }] {
        for (transcode, skip_connection) in [(false, false), (true, false), (false, true), (true, true)] {
            let mut config = SaeConfig::new(D_IN, LATENTS, 40);
            (config.activation, config.transcode, config.skip_connection) =
                (activation, transcode, skip_connection);
            kinds.push(config);
        }
    }
    kinds
}

fn vectors(n: usize) -> (Array2<f32>, Tensor) {
    let mut number = noise(n as u64 + 1);
    let x = Array2::from_shape_fn((n, D_IN), |(row, _)| number() * (1.0 + row as f32 % 5.0));
    let tensor = Tensor::from_slice(x.as_slice().unwrap()).reshape([n as i64, D_IN as i64]);
    (x, tensor)
}

fn assert_same_codes(got: &SparseCodes, want: &SparseCodes, tolerance: f32) {
    assert_eq!(got.n_rows(), want.n_rows());
    for (row, (got, want)) in got.rows().zip(want.rows()).enumerate() {
        assert_eq!(got.latents, want.latents, "row {row}");
        for ((feature, got), (_, want)) in got.iter().zip(want.iter()) {
            assert!((got - want).abs() <= tolerance, "row {row}, latent {feature}: {got} for {want}");
        }
    }
}

#[test]
fn codes_and_reconstructions_equal_those_of_sae_core() {
    for k in [1, 8, 40, LATENTS] {
        let sae = sae(k);
        for n in [0, 1, 3, 100] {
            let (x, tensor) = vectors(n);
            let want = sae.encode(x.view()).unwrap();
            if n == 100 && k == 40 {
                assert!(want.rows().any(|row| row.len() < k), "no row with fewer than k latents");
                assert!(want.rows().any(|row| row.len() == k), "no full row");
            }
            // The second budget allows 7 tokens at a time.
            for budget in [1 << 20, 7 * LATENTS * 4] {
                let torch =
                    TorchSae::from_sae(&sae, Device::Cpu, Kind::Float).unwrap().with_dense_budget(budget);
                let topk = torch.encode(&tensor);
                assert_eq!(topk.values.size(), [n as i64, k as i64]);
                assert_same_codes(&topk.to_codes(LATENTS).unwrap(), &want, 1e-4);
                let decoded = torch.decode(&topk);
                assert_eq!(decoded.size(), [n as i64, D_IN as i64]);
                let flat = sae.decode(&want).into_raw_vec_and_offset().0;
                let error = (decoded.reshape([-1]) - Tensor::from_slice(&flat)).abs();
                assert!(n == 0 || error.max().double_value(&[]) < 1e-3);
            }
        }
    }
}

#[test]
fn half_precision_is_off_by_its_rounding_only() {
    let sae = sae(40);
    let (x, tensor) = vectors(50);
    let every = Sae::from_parts(
        SaeConfig::new(D_IN, LATENTS, LATENTS),
        SaeTensors {
            encoder_weight: sae.encoder_weight().to_f32(),
            encoder_bias: sae.encoder_bias().to_f32(),
            decoder_weight: sae.decoder_weight().to_f32(),
            decoder_bias: sae.decoder_bias().to_f32(),
            skip_weight: None,
        },
    );
    let every = every.unwrap().encode(x.view()).unwrap();
    for (kind, epsilon) in [(Kind::BFloat16, 2.0_f32.powi(-8)), (Kind::Half, 2.0_f32.powi(-11))] {
        let torch = TorchSae::from_sae(&sae, Device::Cpu, kind).unwrap();
        let topk = torch.encode(&tensor);
        let codes = topk.to_codes(LATENTS).unwrap();
        for ((row, want), x) in codes.rows().zip(every.rows()).zip(x.rows()) {
            // Each of input, weight, bias and sum is rounded once; 4 is the bias.
            let bound = 4.0 * epsilon * (4.0 + x.iter().map(|x| x.abs() + 1.0).sum::<f32>());
            for (feature, value) in row.iter() {
                assert!((value - want.value(feature)).abs() <= bound, "{kind:?}: {value} of {feature}");
            }
        }
        let decoded = torch.decode(&topk);
        assert_eq!(decoded.kind(), kind);
        let want = sae.decode(&codes).into_raw_vec_and_offset().0;
        let want = Tensor::from_slice(&want).reshape([50, D_IN as i64]);
        let error = ((decoded.to_kind(Kind::Float) - &want).norm() / want.norm()).double_value(&[]);
        assert!(error < f64::from(4.0 * epsilon), "{kind:?}: decoded off by {error}");
    }
}

/// The largest absolute difference.
fn difference(got: &Tensor, want: &Array2<f32>) -> f64 {
    let want = Tensor::from_slice(want.as_slice().unwrap()).reshape(got.size());
    if got.numel() == 0 { 0.0 } else { (got - want).abs().max().double_value(&[]) }
}

#[test]
fn every_kind_equals_that_of_sae_core() {
    for config in other_kinds() {
        let sae = of_kind(config.clone());
        for n in [0, 1, 100] {
            let (x, tensor) = vectors(n);
            let (want, want_out) = sae.reconstruct(x.view()).unwrap();
            if n == 100 && config.activation != Activation::TopK {
                let mut lengths: Vec<_> = want.rows().map(|row| row.len()).collect();
                lengths.sort_unstable();
                lengths.dedup();
                assert!(lengths.len() > 3, "rows keep {lengths:?}");
            }
            for budget in [1 << 20, 7 * LATENTS * 4] {
                let torch =
                    TorchSae::from_sae(&sae, Device::Cpu, Kind::Float).unwrap().with_dense_budget(budget);
                let (codes, out) = torch.reconstruct(&tensor);
                assert_same_codes(&codes.to_codes(LATENTS).unwrap(), &want, 1e-4);
                let error = difference(&out, &want_out);
                assert!(error < 1e-3, "{config:?}, {n} rows: off by {error}");
                if !config.skip_connection {
                    assert_eq!(out, torch.decode(&codes));
                }
            }
        }
    }
}

#[test]
fn a_threshold_above_everything_keeps_nothing_and_reports_nan() {
    let mut config = SaeConfig::new(D_IN, LATENTS, 4);
    config.activation = Activation::BatchTopK { threshold: 1e9 };
    let torch = TorchSae::from_sae(&of_kind(config), Device::Cpu, Kind::BFloat16).unwrap();
    let (_, x) = vectors(3);
    let (codes, out) = torch.reconstruct(&x);
    assert_eq!(codes.to_codes(LATENTS).unwrap().n_codes(), 0);
    assert_eq!(out, torch.decoder_bias().expand([3, D_IN as i64], false));
    let _ = x.get(1).fill_(f64::NAN);
    assert!(torch.encode(&x).to_codes(LATENTS).is_err());
}

#[test]
fn weights_go_up_and_come_back() {
    for config in other_kinds() {
        let sae = of_kind(config);
        let back = TorchSae::from_sae(&sae, Device::Cpu, Kind::Float).unwrap().to_sae().unwrap();
        assert_eq!(back.config(), sae.config());
        assert_eq!(back.encoder_weight().bytes(), sae.encoder_weight().bytes());
        assert_eq!(back.decoder_weight().bytes(), sae.decoder_weight().bytes());
        assert_eq!(back.encoder_bias().bytes(), sae.encoder_bias().bytes());
        assert_eq!(back.decoder_bias().bytes(), sae.decoder_bias().bytes());
        assert_eq!(
            back.skip_weight().map(|weight| weight.bytes()),
            sae.skip_weight().map(|weight| weight.bytes())
        );
    }
}

#[test]
fn not_a_number_is_reported() {
    let torch = TorchSae::from_sae(&sae(8), Device::Cpu, Kind::Float).unwrap();
    let (_, x) = vectors(4);
    let _ = x.get(2).narrow(0, 5, 1).fill_(f64::NAN);
    let error = torch.encode(&x).to_codes(LATENTS).unwrap_err();
    assert!(format!("{:?}", std::error::Error::source(&error).unwrap()).contains("row: 2"), "{error:?}");
}

/// Gradients of `Σ ||x̂ - x||² / 3 + Σ ||x̂_first - x||² / 5`, where `x̂_first` has the first `first` codes of each row, by autograd on the
/// dense formulation. `b_dec` is held fixed.
fn dense_gradients(parameters: &Parameters, x: &Tensor, [first, k]: [i64; 2]) -> [Tensor; 3] {
    let leaf = |tensor: &Tensor| tensor.copy().set_requires_grad(true);
    let (w_enc, b_enc) = (leaf(&parameters.encoder_weight), leaf(&parameters.encoder_bias));
    let w_dec = leaf(&parameters.decoder_weight);
    let b_dec = &parameters.decoder_bias;
    let pre = ((x - b_dec).matmul(&w_enc.tr()) + &b_enc).relu();
    let squares = |k: i64| {
        let (values, indices) = pre.topk(k, 1, true, true);
        let dense = pre.zeros_like().scatter(1, &indices, &values);
        (dense.matmul(&w_dec) + b_dec - x).square().sum(Kind::Double)
    };
    let loss = squares(k) / 3.0 + squares(first) / 5.0;
    loss.backward();
    [w_enc.grad(), b_enc.grad(), w_dec.grad()]
}

/// The codes of `from..to` of each row, as bags of different lengths: those that are off are left out.
fn bags(codes: &TopK, from: i64, to: i64) -> Bags {
    let part = |tensor: &Tensor| tensor.narrow(1, from, to - from).reshape([-1]);
    let (indices, values) = (part(&codes.indices), part(&codes.values));
    let n = codes.indices.size()[0];
    let rows =
        Tensor::arange(n, (Kind::Int64, Device::Cpu)).repeat_interleave_self_int(to - from, None, None);
    let on = values.gt(0.0);
    let [rows, indices, values] = [rows, indices, values].map(|tensor| tensor.masked_select(&on));
    Bags::from_entries(n as usize, rows, indices, values)
}

#[test]
fn gradients_equal_autograd_on_the_dense_formulation() {
    for (n, first, k) in [(1, 1, 1), (33, 3, 8), (100, 40, 41), (100, 1, 40)] {
        let torch = TorchSae::from_sae(&sae(k), Device::Cpu, Kind::Double).unwrap();
        let parameters = Parameters {
            encoder_weight: torch.encoder_weight().copy(),
            encoder_bias: torch.encoder_bias().copy(),
            decoder_weight: torch.decoder_weight().copy(),
            decoder_bias: torch.decoder_bias().copy(),
            skip_weight: None,
        };
        let x = vectors(n).1.to_kind(Kind::Double);
        let want = dense_gradients(&parameters, &x, [first, k as i64]);
        let centred = torch.centre(&x);
        let codes = torch.encode_centred(&centred, k);
        let mut gradients: Vec<Tensor> = want.iter().map(Tensor::zeros_like).collect();
        // Disjoint sets; the first codes take part in both terms. The rows in two halves, to see that they add up.
        let (n, half) = (n as i64, n as i64 / 2);
        for (start, len) in [(0, half), (half, n - half)] {
            let part = |tensor: &Tensor| tensor.narrow(0, start, len);
            let codes = TopK { indices: part(&codes.indices), values: part(&codes.values) };
            let sets = [bags(&codes, 0, first), bags(&codes, first, k as i64)];
            let reconstruct = |sets: &[Bags]| {
                let sums = sets.iter().map(|bags| bags.sum_rows(&parameters.decoder_weight));
                sums.sum::<Tensor>() + &parameters.decoder_bias - part(&x)
            };
            let of_all = reconstruct(&sets) * (2.0 / 3.0);
            let of_first = reconstruct(&sets[..1]) * (2.0 / 5.0);
            let upstream = [&of_all + of_first, of_all];
            accumulate_gradients(&parameters, &part(&centred), &sets, &upstream, &mut gradients);
        }
        for (index, (got, want)) in gradients.iter().zip(&want).enumerate() {
            let error = ((got - want).norm() / (want.norm() + 1e-9)).double_value(&[]);
            assert!(error < 1e-10, "n {n}, k {k}, tensor {index}: off by {error}");
        }
    }
}
