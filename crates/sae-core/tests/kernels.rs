//! Every kernel against the f64 reference, over shapes with tails, ties, nothing at all, and numbers that are none.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
#![expect(clippy::needless_pass_by_value, reason = "array views are passed by value, as ndarray does")]

use ndarray::{Array2, ArrayView2};
use proptest::prelude::*;
use sae_core::kernels::{Decoder, Encoder, TopKRows, portable::Scratch};
use sae_core::{Compute, Kernel, Par, Sae, SaeConfig, SaeError, SaeTensors, SparseCodes, kernels};

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

fn sae(d_in: usize, latents: usize, k: usize, mut number: impl FnMut() -> f32) -> Sae {
    let mut draw = |n: usize| (0..n).map(|_| number()).collect::<Vec<_>>();
    let tensors = SaeTensors {
        encoder_weight: draw(latents * d_in),
        encoder_bias: draw(latents),
        decoder_weight: draw(latents * d_in),
        decoder_bias: draw(d_in),
    };
    Sae::from_parts(SaeConfig::new(d_in, latents, k), tensors).unwrap()
}

fn run(sae: &Sae, x: ArrayView2<'_, f32>, kernel: Kernel, par: Par) -> SparseCodes {
    sae.encode_with(x, Compute { kernel, par }).unwrap()
}

/// f64 pre-activations of one row, before ReLU.
fn pre_activations(sae: &Sae, x: &[f32]) -> Vec<f64> {
    let (weight, bias, centre) =
        (sae.encoder_weight().to_f32(), sae.encoder_bias().to_f32(), sae.decoder_bias().to_f32());
    let dot = |latent: usize| {
        let row = &weight[latent * x.len()..][..x.len()];
        let terms = x.iter().zip(&centre).zip(row);
        terms.map(|((x, c), w)| (f64::from(*x) - f64::from(*c)) * f64::from(*w)).sum::<f64>()
    };
    (0..bias.len()).map(|latent| dot(latent) + f64::from(bias[latent])).collect()
}

/// Equal latents outside a tie margin, equal values within rounding of a sum of `d_in` terms.
fn assert_agree(sae: &Sae, x: ArrayView2<'_, f32>, got: &SparseCodes, want: &SparseCodes) {
    assert_eq!(got.n_rows(), want.n_rows());
    for (row, x) in x.rows().into_iter().enumerate() {
        let (got, want) = (got.row(row), want.row(row));
        let x = x.to_vec();
        let scale: f32 = 2.0 + x.iter().map(|x| x.abs() + 1.0).sum::<f32>();
        let tolerance = 4.0 * f32::EPSILON * scale;
        let edge =
            if want.len() < sae.k() { 0.0 } else { want.values.iter().copied().fold(f32::MAX, f32::min) };
        let pre = pre_activations(sae, &x);
        let in_margin = |latent: u32| (pre[latent as usize] - f64::from(edge)).abs() <= f64::from(tolerance);
        for (feature, value) in got.iter() {
            let error = (pre[feature.index()] - f64::from(value)).abs();
            assert!(error <= f64::from(tolerance), "row {row}, latent {feature}: {value}, off by {error}");
            assert!(
                want.latents.contains(&feature.0) || in_margin(feature.0),
                "row {row}: {feature} should not be on"
            );
        }
        for (feature, _) in want.iter() {
            assert!(
                got.latents.contains(&feature.0) || in_margin(feature.0),
                "row {row}: {feature} should be on"
            );
        }
    }
}

#[test]
fn kernels_agree_over_the_shape_grid() {
    for (case, (n, d_in, latents, k)) in [
        (0, 4, 8, 2),
        (1, 1, 1, 1),
        (1, 7, 100, 3),
        (2, 8, 16, 16),
        (3, 9, 17, 5),
        (63, 16, 33, 4),
        (64, 31, 15, 15),
        (65, 128, 257, 16),
        (130, 33, 1, 1),
        (300, 12, 640, 32),
    ]
    .into_iter()
    .enumerate()
    {
        let mut number = noise(case as u64 + 1);
        let x = Array2::from_shape_simple_fn((n, d_in), &mut number);
        let sae = sae(d_in, latents, k, number);
        let want = run(&sae, x.view(), Kernel::Reference, Par::Serial);
        let decoded = sae.decode_with(&want, Compute { kernel: Kernel::Reference, par: Par::Serial });
        for &kernel in Kernel::available() {
            let got = run(&sae, x.view(), kernel, Par::Serial);
            assert_agree(&sae, x.view(), &got, &want);
            for threads in 1..=3 {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                let (pooled, again) = pool.install(|| {
                    (
                        run(&sae, x.view(), kernel, Par::Rayon),
                        sae.decode_with(&got, Compute { kernel, par: Par::Rayon }),
                    )
                });
                assert_eq!(pooled, got, "case {case}, {kernel:?} on {threads} threads");
                assert_eq!(again, sae.decode_with(&got, Compute { kernel, par: Par::Serial }));
            }
            let error =
                (sae.decode_with(&want, Compute { kernel, par: Par::Serial }) - &decoded).mapv(f32::abs);
            let bound = 4.0 * f32::EPSILON * (1.0 + want.values().iter().sum::<f32>());
            assert!(error.iter().all(|error| *error <= bound), "case {case}, {kernel:?}");
        }
    }
}

#[test]
fn ties_go_to_the_lower_latent_and_zeros_are_not_codes() {
    // Latents 0, 3, 6, ... score 1; the rest score 0 or -1.
    let latents = 200;
    let tensors = SaeTensors {
        encoder_weight: (0..latents).map(|latent| [1.0, 0.0, -1.0][latent % 3]).collect(),
        encoder_bias: vec![0.0; latents],
        decoder_weight: vec![1.0; latents],
        decoder_bias: vec![0.0],
    };
    for k in [1, 5, 67, 200] {
        let sae = Sae::from_parts(SaeConfig::new(1, latents, k), tensors.clone()).unwrap();
        let expected: Vec<u32> = (0..latents as u32).step_by(3).take(k).collect();
        for &kernel in Kernel::available() {
            for par in [Par::Serial, Par::Rayon] {
                let codes = run(&sae, ndarray::array![[1.0_f32], [0.0]].view(), kernel, par);
                assert_eq!(codes.row(0).latents, expected);
                assert!(codes.row(1).is_empty());
            }
        }
    }
}

#[test]
fn numbers_that_are_none_are_named() {
    let tensors = SaeTensors {
        encoder_weight: vec![1.0, f32::NAN, 1e30, 1e30],
        encoder_bias: vec![0.0, 0.0],
        decoder_weight: vec![0.0; 4],
        decoder_bias: vec![0.0; 2],
    };
    let sae = Sae::from_parts(SaeConfig::new(2, 2, 1), tensors.clone()).unwrap();
    let healthy = SaeTensors { encoder_weight: vec![1.0, 0.0, 1e30, 1e30], ..tensors };
    let healthy = Sae::from_parts(SaeConfig::new(2, 2, 1), healthy).unwrap();
    for &kernel in Kernel::available() {
        for par in [Par::Serial, Par::Rayon] {
            let compute = Compute { kernel, par };
            let error = sae.encode_with(ndarray::array![[1.0, 1.0]].view(), compute).unwrap_err();
            assert!(
                matches!(error, SaeError::PreActivationNotFinite { row: 0, latent: 0, value } if value.is_nan())
            );
            let x = ndarray::array![[1.0, 1.0], [1e20, 1.0]];
            let error = healthy.encode_with(x.view(), compute).unwrap_err();
            assert!(matches!(
                error,
                SaeError::PreActivationNotFinite { row: 1, latent: 1, value: f32::INFINITY }
            ));
            // -inf is what ReLU is for.
            let negative = ndarray::array![[-1e20, 1.0]];
            assert_eq!(healthy.encode_with(negative.view(), compute).unwrap().n_codes(), 0);
            for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                let error = healthy
                    .encode_with(ndarray::array![[0.0, 0.0], [1.0, value]].view(), compute)
                    .unwrap_err();
                assert!(matches!(error, SaeError::InputNotFinite { row: 1, column: 1, .. }), "{error}");
            }
        }
    }
}

#[test]
fn buffers_serve_calls_of_any_shape() {
    let (mut scratch, mut rows) = (Scratch::new(), TopKRows::new());
    for (n, d_in, latents, k) in [(70, 9, 40, 7), (1, 3, 5, 5), (0, 3, 5, 1), (200, 20, 50, 2)] {
        let mut number = noise(n as u64);
        let x = Array2::from_shape_simple_fn((n, d_in), &mut number);
        let sae = sae(d_in, latents, k, number);
        let encoder: Encoder<'_> = sae.encoder();
        kernels::encode(Compute::default(), &encoder, x.view(), &mut scratch, &mut rows).unwrap();
        let mut codes = SparseCodes::new(latents);
        rows.append_to(&mut codes);
        assert_eq!(codes, sae.encode(x.view()).unwrap());
        // A view that is not contiguous, and an output that is not.
        let wide = Array2::from_shape_fn((n, 2 * d_in), |(i, j)| x[(i, j / 2)]);
        assert_eq!(sae.encode(wide.slice(ndarray::s![.., ..;2])).unwrap(), codes);
        let decoder: Decoder<'_> = sae.decoder();
        let mut out = Array2::from_elem((d_in, n), 9.0);
        kernels::decode(Compute::default(), &decoder, &codes, out.view_mut().reversed_axes());
        assert_eq!(out.t(), sae.decode(&codes));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() })]

    /// Small integers: f32 sums are exact, so results are equal to the bit, ties included.
    #[test]
    fn exact_numbers_give_equal_codes(
        n in 0_usize..140, d_in in 1_usize..40, latents in 1_usize..90, keep in 0.0..1.0_f64, seed: u64,
    ) {
        let k = 1 + (keep * (latents - 1) as f64) as usize;
        let mut number = noise(seed);
        let mut integer = move || (number() * 3.0).round();
        let x = Array2::from_shape_simple_fn((n, d_in), &mut integer);
        let sae = sae(d_in, latents, k, integer);
        let want = run(&sae, x.view(), Kernel::Reference, Par::Serial);
        let decoded = sae.decode_with(&want, Compute { kernel: Kernel::Reference, par: Par::Serial });
        for par in [Par::Serial, Par::Rayon] {
            prop_assert_eq!(&run(&sae, x.view(), Kernel::Portable, par), &want);
            prop_assert_eq!(&sae.decode_with(&want, Compute { kernel: Kernel::Portable, par }), &decoded);
        }
    }

    #[test]
    fn rounded_numbers_agree(n in 0_usize..80, d_in in 1_usize..70, latents in 1_usize..70, seed: u64) {
        let k = 1 + (seed % latents as u64) as usize;
        let mut number = noise(seed);
        let x = Array2::from_shape_simple_fn((n, d_in), &mut number);
        let sae = sae(d_in, latents, k, number);
        let want = run(&sae, x.view(), Kernel::Reference, Par::Serial);
        assert_agree(&sae, x.view(), &run(&sae, x.view(), Kernel::Portable, Par::Rayon), &want);
    }
}
