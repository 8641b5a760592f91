//! Random shapes, and one set of buffers for all of them.

use ndarray::Array2;
use proptest::prelude::*;
use sae_core::kernels::{self, Scratch, Selection};
use sae_core::{Compute, Kernel, Par, Precision, SparseCodes};

use crate::support::{
    DTYPES, Dictionary, NUMERICS, Noise, bits, encode, kernels, matrix, random_codes, serial, small,
};

fn config() -> ProptestConfig {
    let cases = if cfg!(miri) {
        2
    } else if small() {
        12
    } else {
        64
    };
    ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() }
}

/// Kernels and threads: the current pool has as many as the machine.
fn computes(precision: Precision) -> impl Iterator<Item = Compute> {
    kernels().flat_map(move |kernel| [Par::Serial, Par::Rayon].map(|par| Compute { kernel, par, precision }))
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn integers_give_equal_codes(
        n in 0_usize..if cfg!(miri) { 12 } else { 300 },
        d_in in 1_usize..40,
        latents in 1_usize..90,
        keep in 0.0..1.0_f64,
        numerics in 0_usize..4,
        shift in 0_usize..5,
        selection in 0_usize..4,
        seed: u64,
    ) {
        let (dtype, precision) = NUMERICS[numerics];
        let mut noise = Noise::new(seed);
        let dictionary = Dictionary::new([latents, d_in], dtype, shift, || noise.integer());
        let x = matrix(n, d_in, || noise.integer());
        let k = 1 + (keep * (latents - 1) as f64) as usize;
        let thresholds: Vec<f32> = (0..latents).map(|_| noise.integer()).collect();
        let selection = [
            Selection::TopK(k),
            Selection::BatchTopK(k),
            Selection::Threshold(k as f32 - 2.0),
            Selection::Thresholds(&thresholds),
        ][selection];
        let encoder = dictionary.encoder(selection);
        let want = encode(serial(Kernel::Reference, precision), &encoder, x.view()).unwrap();
        for compute in computes(precision) {
            prop_assert_eq!(&encode(compute, &encoder, x.view()).unwrap(), &want, "{:?}", compute);
        }
    }

    #[test]
    fn integers_decode_equally(
        n in 0_usize..if cfg!(miri) { 5 } else { 300 },
        d_in in 1_usize..300,
        latents in 1_usize..60,
        most in 0_usize..60,
        dtype in 0_usize..3,
        shift in 0_usize..5,
        seed: u64,
    ) {
        let mut noise = Noise::new(seed);
        let dictionary = Dictionary::new([latents, d_in], DTYPES[dtype], shift, || noise.integer());
        let mut codes = SparseCodes::new(latents);
        for row in random_codes(&mut noise, n, latents, most).rows() {
            codes.push_row(row.iter().map(|(latent, value)| (latent, (value * 3.0).round() + 0.5))).unwrap();
        }
        let run = |compute| {
            let mut out = Array2::from_elem((n, d_in), f32::NAN);
            kernels::decode(compute, &dictionary.decoder(), &codes, &mut Scratch::new(), out.view_mut());
            out
        };
        let want = run(serial(Kernel::Reference, Precision::F32));
        for compute in computes(Precision::F32) {
            prop_assert!(run(compute) == want, "{:?}", compute);
        }
    }
}

/// Grown by one call and used by the next, whatever its shape, kernel, threads, dtype and selection.
#[test]
fn buffers_serve_calls_of_any_shape_and_kernel() {
    let (mut scratch, mut codes) = (Scratch::new(), SparseCodes::new(3));
    let shapes: &[[usize; 4]] = if small() {
        &[[12, 9, 40, 7], [1, 3, 5, 5], [0, 3, 5, 1], [10, 20, 3, 1]]
    } else {
        &[
            [70, 9, 40, 7],
            [1, 3, 5, 5],
            [0, 3, 5, 1],
            [300, 20, 50, 2],
            [8, 300, 2, 1],
            [40, 1, 640, 100],
            [513, 5, 11, 3],
        ]
    };
    // Twice, so that small shapes come after large ones and the other way round.
    for (case, &[n, d_in, latents, k]) in shapes.iter().chain(shapes.iter().rev()).enumerate() {
        let mut noise = Noise::new(case as u64);
        let (dtype, precision) = NUMERICS[case % 4];
        let dictionary = Dictionary::new([latents, d_in], dtype, case % 3, || noise.number());
        let x = matrix(n, d_in, || noise.number());
        let mut out = Array2::from_elem((d_in, n), 9.0);
        for compute in computes(precision) {
            for selection in [Selection::TopK(k), Selection::BatchTopK(k), Selection::Threshold(0.5)] {
                let encoder = dictionary.encoder(selection);
                kernels::encode(compute, &encoder, x.view(), &mut scratch, &mut codes).unwrap();
                assert_eq!(codes, encode(compute, &encoder, x.view()).unwrap(), "{compute:?}");
                kernels::decode(
                    compute,
                    &dictionary.decoder(),
                    &codes,
                    &mut scratch,
                    out.view_mut().reversed_axes(),
                );
                let mut fresh = Array2::zeros((n, d_in));
                kernels::decode(
                    compute,
                    &dictionary.decoder(),
                    &codes,
                    &mut Scratch::new(),
                    fresh.view_mut(),
                );
                let got: Vec<f32> = out.t().iter().copied().collect();
                assert_eq!(bits(&got), bits(&fresh), "{compute:?}");
            }
        }
    }
}
