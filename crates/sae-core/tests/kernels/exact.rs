//! Small integers: their sums are exact in every kernel, so ties are ties, and results are equal to the bit.

use ndarray::{Array2, ArrayView2};
use sae_core::kernels::Selection;
use sae_core::{Kernel, Precision, WeightDtype};

use crate::support::{
    Dictionary, NUMERICS, Noise, encode, encode_on_all_threads, kernels, matrix, serial, small,
};

/// Every kernel on any number of threads against the reference.
fn check(dictionary: &Dictionary, precision: Precision, selection: Selection<'_>, x: ArrayView2<'_, f32>) {
    let encoder = dictionary.encoder(selection);
    let want = encode(serial(Kernel::Reference, precision), &encoder, x).unwrap();
    for kernel in kernels() {
        let got = encode_on_all_threads(serial(kernel, precision), &encoder, x);
        let (n, d_in) = x.dim();
        let row = got.rows().zip(want.rows()).position(|(got, want)| got != want);
        assert!(
            got == want,
            "{kernel:?} {precision:?} {selection:?}, {n} x {d_in}: row {row:?} is {:?}, want {:?}",
            row.map(|row| got.row(row)),
            row.map(|row| want.row(row)),
        );
    }
}

#[test]
fn integers_are_equal_to_the_bit() {
    let shapes: &[[usize; 3]] = if small() {
        &[[3, 5, 13], [10, 2, 7]]
    } else {
        &[
            [1, 2, 640],
            [3, 300, 33],
            [8, 7, 100],
            [20, 1, 257],
            [65, 257, 24],
            [300, 3, 24],
            [520, 2, 11],
            [600, 33, 6],
        ]
    };
    for (case, &[n, d_in, latents]) in shapes.iter().enumerate() {
        for (dtype, precision) in NUMERICS {
            let mut noise = Noise::new(case as u64 + 1);
            let dictionary = Dictionary::new([latents, d_in], dtype, case % 3, || noise.integer());
            let x = matrix(n, d_in, || noise.integer());
            let thresholds: Vec<f32> = (0..latents).map(|_| noise.integer()).collect();
            for k in [1, latents.div_ceil(3), latents] {
                check(&dictionary, precision, Selection::TopK(k), x.view());
                check(&dictionary, precision, Selection::BatchTopK(k), x.view());
            }
            check(&dictionary, precision, Selection::Thresholds(&thresholds), x.view());
            for threshold in [0.0, 1.0, 5.0] {
                check(&dictionary, precision, Selection::Threshold(threshold), x.view());
            }
        }
    }
}

/// Latents 0, 3, 6, ... score what `x` is, the rest 0 or its negative.
fn thirds(latents: usize) -> Dictionary {
    let weight: Vec<f32> = (0..latents).map(|latent| [1.0, 0.0, -1.0][latent % 3]).collect();
    Dictionary::of(WeightDtype::F32, 1, &weight, vec![0.0; latents])
}

#[test]
fn ties_go_to_the_lower_latent_and_zeros_are_not_codes() {
    let latents = 200;
    let dictionary = thirds(latents);
    for (n, k) in [(2, 1), (2, 5), (2, 67), (2, 200), (300, 1), (300, 5), (300, 40)] {
        let x = Array2::from_shape_fn((n, 1), |(row, _)| if row == 1 { 0.0 } else { 1.0 });
        let expected: Vec<u32> = (0..latents as u32).step_by(3).take(k).collect();
        for kernel in kernels() {
            let encoder = dictionary.encoder(Selection::TopK(k));
            let codes = encode_on_all_threads(serial(kernel, Precision::F32), &encoder, x.view());
            for (row, codes) in codes.rows().enumerate() {
                let expected = if row == 1 { &[][..] } else { &expected };
                assert_eq!(codes.latents, expected, "{kernel:?}, k {k}, row {row}");
            }
        }
    }
}

#[test]
fn ties_of_a_batch_go_to_the_lower_row_then_to_the_lower_latent() {
    let latents = 30;
    let dictionary = Dictionary::of(WeightDtype::F32, 1, &vec![1.0; latents], vec![0.0; latents]);
    for (n, k) in [(4, 7), (9, 1), (40, 3), (300, 4), (300, 29), (600, 13)] {
        let x = Array2::ones((n, 1));
        for kernel in kernels() {
            let encoder = dictionary.encoder(Selection::BatchTopK(k));
            let codes = encode_on_all_threads(serial(kernel, Precision::F32), &encoder, x.view());
            assert_eq!(codes.n_codes(), n * k);
            for (row, codes) in codes.rows().enumerate() {
                let expected = (n * k).saturating_sub(row * latents).min(latents) as u32;
                assert!(
                    codes.latents.iter().copied().eq(0..expected),
                    "{kernel:?}, k {k}, row {row}: {codes:?}"
                );
            }
        }
    }
}

#[test]
fn orders_that_are_worst_for_running_selections() {
    // Scores rise or fall with latents and rows, or are the same but for a few.
    let latents = if cfg!(miri) { 20 } else { 60 };
    let weights: [fn(usize) -> f32; 4] = [
        |latent| (latent + 1) as f32 / 256.0,
        |latent| 2.0 - latent as f32 / 256.0,
        |latent| if latent % 12 == 11 { 2.0 } else { 1.0 },
        |latent| ((latent * 97) % 19) as f32,
    ];
    let inputs: [fn(usize) -> f32; 4] = [
        |row| (row + 1) as f32,
        |row| 1024.0 - row as f32,
        |row| [1.0, 2.0][row % 2],
        |row| ((row * 89) % 23) as f32,
    ];
    for weight in weights {
        let weight: Vec<f32> = (0..latents).map(weight).collect();
        let dictionary = Dictionary::of(WeightDtype::F32, 1, &weight, vec![0.0; latents]);
        for input in inputs {
            for n in if small() { [2, 11] } else { [5, 264] } {
                let x = Array2::from_shape_fn((n, 1), |(row, _)| input(row));
                for k in [1, latents / 2] {
                    check(&dictionary, Precision::F32, Selection::TopK(k), x.view());
                    check(&dictionary, Precision::F32, Selection::BatchTopK(k), x.view());
                }
            }
        }
    }
}

#[test]
fn neighbouring_floats_are_told_apart() {
    // The later half is one step above what running selections were filled with by the first half.
    let latents = if cfg!(miri) { 120 } else { 400 };
    let weight = [vec![1.0_f32; latents / 2], vec![1.0_f32.next_up(); latents - latents / 2]].concat();
    let dictionary = Dictionary::of(WeightDtype::F32, 1, &weight, vec![0.0; latents]);
    for n in if small() { [1, 9] } else { [3, 40] } {
        for k in [1, 20] {
            let x = Array2::ones((n, 1));
            check(&dictionary, Precision::F32, Selection::TopK(k), x.view());
            check(&dictionary, Precision::F32, Selection::BatchTopK(k), x.view());
        }
    }
}

#[test]
fn a_threshold_is_exceeded_not_reached() {
    let latents = 40;
    let weight: Vec<f32> = (0..latents).map(|latent| latent as f32).collect();
    let dictionary = Dictionary::of(WeightDtype::Bf16, 1, &weight, vec![0.0; latents]);
    let thresholds: Vec<f32> =
        (0..latents).map(|latent| latent as f32 + [0.0, -0.5, 0.5][latent % 3]).collect();
    let low = vec![-9.0; latents];
    for n in [1, 8, 9, 33] {
        let x = Array2::ones((n, 1));
        for kernel in kernels() {
            let run = |selection| {
                encode_on_all_threads(
                    serial(kernel, Precision::Bf16),
                    &dictionary.encoder(selection),
                    x.view(),
                )
            };
            let above: Vec<u32> = (18..latents as u32).collect();
            assert!(run(Selection::Threshold(17.0)).rows().all(|row| row.latents == above), "{kernel:?}");
            let below: Vec<u32> = (1..latents as u32).step_by(3).collect();
            assert!(
                run(Selection::Thresholds(&thresholds)).rows().all(|row| row.latents == below),
                "{kernel:?}"
            );
            // Whatever is not above 0 is no code, however low its threshold.
            let every: Vec<u32> = (1..latents as u32).collect();
            assert!(run(Selection::Thresholds(&low)).rows().all(|row| row.latents == every));
            assert_eq!(run(Selection::Threshold(-9.0)), run(Selection::Threshold(0.0)));
            assert_eq!(run(Selection::Threshold(f32::NEG_INFINITY)), run(Selection::Threshold(-0.0)));
            for none in [[f32::INFINITY; 40], [f32::MAX; 40], [39.0; 40]] {
                let run = |selection| {
                    encode(serial(kernel, Precision::F32), &dictionary.encoder(selection), x.view())
                };
                assert_eq!(run(Selection::Threshold(none[0])).unwrap().n_codes(), 0);
                assert_eq!(run(Selection::Thresholds(&none)).unwrap().n_codes(), 0);
            }
        }
    }
}
