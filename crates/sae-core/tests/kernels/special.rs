//! Numbers that are none, that overflow, that are too small; and what is refused.

use std::panic::{AssertUnwindSafe, catch_unwind};

use ndarray::{Array2, ArrayView2, s};
use sae_core::kernels::{self, Scratch, Selection};
use sae_core::{Kernel, Precision, SaeError, SparseCodes, WeightDtype};

use crate::support::{
    DTYPES, Dictionary, NUMERICS, Noise, encode, encode_on_all_threads, kernels, matrix, on_all_threads,
    serial, small,
};

/// Rows that are few, that do not fill a register, that reach into the second and third block.
fn row_counts() -> &'static [usize] {
    if small() { &[2, 11] } else { &[1, 2, 7, 8, 9, 17, 31, 259, 270, 523] }
}

/// An error as text, with every kernel on any number of threads.
fn refusal(dictionary: &Dictionary, selection: Selection<'_>, x: ArrayView2<'_, f32>) -> String {
    let encoder = dictionary.encoder(selection);
    let mut refusals = kernels().map(|kernel| {
        on_all_threads(kernel, |par| {
            let compute = sae_core::Compute { par, ..serial(kernel, Precision::F32) };
            match encode(compute, &encoder, x) {
                Err(SaeError::PreActivationNotFinite { row, latent, value }) => {
                    format!("pre-activation {value} of row {row}, latent {latent}")
                }
                Err(SaeError::InputNotFinite { row, column, value }) => {
                    format!("input {value} in row {row}, column {column}")
                }
                other => format!("{other:?}"),
            }
        })
    });
    let first = refusals.next().unwrap();
    for (refusal, kernel) in refusals.zip(kernels().skip(1)) {
        assert_eq!(refusal, first, "{kernel:?} against the reference, {selection:?}, {} rows", x.nrows());
    }
    first
}

const SELECTIONS: [Selection<'_>; 3] =
    [Selection::TopK(2), Selection::BatchTopK(2), Selection::Threshold(3.0)];

#[test]
fn inputs_that_are_no_numbers_are_named() {
    let (d_in, latents) = (19, 13);
    let mut noise = Noise::new(1);
    let dictionary = Dictionary::new([latents, d_in], WeightDtype::F32, 0, || noise.number());
    for &n in row_counts() {
        for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut x = matrix(n, d_in, || noise.number());
            x[(n - 1, 18)] = value;
            x[(n - 1, 17)] = value;
            let expected = format!("input {value} in row {}, column 17", n - 1);
            assert_eq!(refusal(&dictionary, Selection::TopK(1), x.view()), expected);
            x[(n / 2, 18)] = value;
            let column = if n / 2 == n - 1 { 17 } else { 18 };
            let expected = format!("input {value} in row {}, column {column}", n / 2);
            assert_eq!(refusal(&dictionary, Selection::TopK(1), x.view()), expected);
        }
    }
}

#[test]
fn weights_and_biases_that_are_no_numbers_are_named_with_the_lowest_latent() {
    let (d_in, latents) = (19, 37);
    for (case, &n) in row_counts().iter().enumerate() {
        let dtype = DTYPES[case % 3];
        for selection in SELECTIONS {
            let mut noise = Noise::new(2);
            let weight: Vec<f32> = (0..latents * d_in).map(|_| noise.number()).collect();
            // Positive, so that what comes late is late: running selections are full by then.
            let x = matrix(n, d_in, || noise.number() + 2.0);
            for (first, second, column) in [(0, 1, 18), (36, 36, 0), (30, 13, 18), (11, 12, 1)] {
                let mut ill = weight.clone();
                ill[first * d_in + column] = f32::NAN;
                ill[second * d_in + column] = f32::NAN;
                let dictionary = Dictionary::of(dtype, d_in, &ill, vec![0.5; latents]);
                let expected = format!("pre-activation NaN of row 0, latent {}", first.min(second));
                assert_eq!(refusal(&dictionary, selection, x.view()), expected);
                let value = [f32::NAN, f32::INFINITY][column % 2];
                let mut bias = vec![0.5; latents];
                (bias[first], bias[second]) = (value, value);
                let dictionary = Dictionary::of(dtype, d_in, &weight, bias);
                let expected = format!("pre-activation {value} of row 0, latent {}", first.min(second));
                assert_eq!(refusal(&dictionary, selection, x.view()), expected);
            }
            let mut dictionary = Dictionary::of(dtype, d_in, &weight, vec![0.5; latents]);
            dictionary.decoder_bias[18] = f32::NAN;
            let expected = "pre-activation NaN of row 0, latent 0";
            assert_eq!(refusal(&dictionary, selection, x.view()), expected);
        }
    }
}

#[test]
fn pre_activations_that_overflow_are_named_with_the_first_row() {
    let (d_in, latents) = (5, 26);
    for &n in row_counts().iter().filter(|&&n| n > 1) {
        for selection in SELECTIONS {
            // Latents score as many as there are before them, but two that multiply the last column by 1e30.
            let mut weight = vec![0.0; latents * d_in];
            for latent in 0..latents {
                weight[latent * d_in] = latent as f32;
            }
            for latent in [9, 21] {
                weight[latent * d_in + 4] = 1e30;
            }
            let dictionary = Dictionary::of(WeightDtype::F32, d_in, &weight, vec![1.0; latents]);
            let mut x = Array2::from_elem((n, d_in), 1.0);
            x.column_mut(4).fill(0.0);
            for (row, first) in [(n - 1, n - 1), (n / 2, n / 2), (0, 0)] {
                x[(row, 4)] = 1e20;
                let expected = format!("pre-activation inf of row {first}, latent 9");
                assert_eq!(refusal(&dictionary, selection, x.view()), expected);
            }
            // A lower latent of a later row does not come first.
            let mut weight = weight.clone();
            weight[3 * d_in + 3] = 1e30;
            let dictionary = Dictionary::of(WeightDtype::F32, d_in, &weight, vec![1.0; latents]);
            let mut x = Array2::from_elem((n, d_in), 1.0);
            x.slice_mut(s![.., 3..]).fill(0.0);
            (x[(n - 2, 4)], x[(n - 1, 3)]) = (1e20, 1e20);
            let expected = format!("pre-activation inf of row {}, latent 9", n - 2);
            assert_eq!(refusal(&dictionary, selection, x.view()), expected);
        }
    }
}

#[test]
fn the_first_row_is_named_whichever_thread_found_it() {
    // Each group of latents overflows in a row of its own, the last group in the first row; large enough to wake threads.
    let (n, groups, d_in) = if small() { (10, 9, 40) } else { (100, 39, 600) };
    let latents = groups * 16;
    let mut weight = vec![0.0; latents * d_in];
    for latent in 0..latents {
        weight[latent * d_in + groups - latent / 16] = 1e30;
    }
    let dictionary = Dictionary::of(WeightDtype::F32, d_in, &weight, vec![1.0; latents]);
    let mut x = Array2::zeros((n, d_in));
    for row in 0..groups {
        x[(row, row + 1)] = 1e20;
    }
    let expected = format!("pre-activation inf of row 0, latent {}", latents - 16);
    assert_eq!(refusal(&dictionary, Selection::TopK(2), x.view()), expected);
}

#[test]
fn infinity_is_named_whatever_the_threshold() {
    let dictionary = Dictionary::of(WeightDtype::F32, 1, &[1.0, 1e30, 1.0], vec![0.0; 3]);
    for n in [3, 12] {
        let x = Array2::from_elem((n, 1), 1e20);
        for threshold in [f32::MAX, f32::INFINITY] {
            let expected = "pre-activation inf of row 0, latent 1";
            assert_eq!(refusal(&dictionary, Selection::Threshold(threshold), x.view()), expected);
            assert_eq!(refusal(&dictionary, Selection::Thresholds(&[threshold; 3]), x.view()), expected);
        }
    }
}

#[test]
fn minus_infinity_is_what_relu_makes_zero() {
    for (case, &n) in row_counts().iter().enumerate() {
        // Lanes that hold no row multiply the infinite weights by 0, which makes NaN and nobody's error.
        let weight = [1.0, f32::INFINITY, 0.5, 0.25, 4.0, 0.0, f32::NEG_INFINITY, 0.0];
        let bias = vec![-3.0, f32::NEG_INFINITY, 7.0, 1.0];
        let dictionary = Dictionary::of(DTYPES[case % 3], 2, &weight, bias);
        let mut x = Array2::from_elem((n, 2), -1.0);
        x.column_mut(0).fill(2.0);
        for kernel in kernels() {
            for selection in SELECTIONS {
                let encoder = dictionary.encoder(selection);
                let codes = encode_on_all_threads(serial(kernel, Precision::F32), &encoder, x.view());
                for row in codes.rows() {
                    assert_eq!((row.latents, row.values), (&[2][..], &[15.0][..]), "{kernel:?} {n} rows");
                }
            }
        }
    }
}

#[test]
fn the_largest_numbers_are_codes() {
    let latents = 20;
    let weight: Vec<f32> = (0..latents).map(|latent| if latent == 13 { 1.0 } else { 0.25 }).collect();
    for (dtype, precision) in NUMERICS {
        // Rounded to bf16, f32::MAX is infinite.
        let most = if precision == Precision::Bf16 { 3e38 } else { f32::MAX };
        let dictionary = Dictionary::of(dtype, 1, &weight, vec![0.0; latents]);
        for n in [1, 8, 9, 40] {
            let x = Array2::from_elem((n, 1), most);
            for selection in [Selection::TopK(3), Selection::BatchTopK(3), Selection::Threshold(1e37)] {
                let encoder = dictionary.encoder(selection);
                let want = encode(serial(Kernel::Reference, precision), &encoder, x.view()).unwrap();
                assert!(want.n_codes() >= 3 * n);
                for kernel in kernels() {
                    let got = encode_on_all_threads(serial(kernel, precision), &encoder, x.view());
                    assert_eq!(got, want, "{kernel:?} {dtype} {precision:?} {n} rows");
                }
            }
        }
    }
    let dictionary = Dictionary::of(WeightDtype::F32, 1, &[0.5, 1.0], vec![0.0, f32::MAX]);
    let x = Array2::from_elem((1, 1), f32::MAX);
    let refused = refusal(&dictionary, Selection::TopK(1), x.view());
    assert_eq!(refused, "pre-activation inf of row 0, latent 1");
}

#[test]
fn denormals_are_codes_except_in_products_of_bf16() {
    let tiny = f32::from_bits(3 << 16);
    assert!(tiny.is_subnormal());
    let latents = 18;
    // Denormal weights, denormal inputs, denormal products of numbers that are not, denormal biases.
    let cases: [(f32, f32, f32); 4] =
        [(tiny, 1.0, 0.0), (1.0, tiny, 0.0), (2.0_f32.powi(-70), 2.0_f32.powi(-60), 0.0), (0.0, 0.0, tiny)];
    for (dtype, precision) in NUMERICS {
        for (weight, x, bias) in cases {
            if dtype == WeightDtype::F16 && weight != 0.0 && weight < 1e-7 {
                continue;
            }
            let weights: Vec<f32> =
                (0..latents * 3).map(|at| if at % 3 == 2 { weight } else { 0.0 }).collect();
            let dictionary = Dictionary::of(dtype, 3, &weights, vec![bias; latents]);
            for n in [1, 8, 9, 300] {
                let x = Array2::from_elem((n, 3), x);
                for selection in [Selection::TopK(4), Selection::BatchTopK(4), Selection::Threshold(0.0)] {
                    let encoder = dictionary.encoder(selection);
                    let want = encode(serial(Kernel::Reference, precision), &encoder, x.view()).unwrap();
                    assert!(
                        want.values().iter().all(|value| value.is_subnormal()) && want.n_codes() >= 4 * n
                    );
                    for kernel in kernels() {
                        let got = encode_on_all_threads(serial(kernel, precision), &encoder, x.view());
                        let flushes = kernel == Kernel::Avx512Bf16 && precision == Precision::Bf16;
                        assert!(
                            got == want || flushes && got.n_codes() == 0,
                            "{kernel:?} {dtype} {precision:?} {n} rows, {weight:e} * {x:e} + {bias:e}: {:?}",
                            got.row(0)
                        );
                    }
                }
            }
        }
    }
    // A threshold below the least number keeps that number.
    let least = f32::from_bits(1);
    let dictionary = Dictionary::of(WeightDtype::F32, 1, &[0.0, 0.0], vec![least, 2.0 * least]);
    for kernel in kernels() {
        for n in [1, 10] {
            let x = Array2::zeros((n, 1));
            let count = |selection| {
                encode(serial(kernel, Precision::F32), &dictionary.encoder(selection), x.view())
                    .unwrap()
                    .n_codes()
            };
            assert_eq!(count(Selection::Threshold(0.0)), 2 * n, "{kernel:?}");
            assert_eq!(count(Selection::Threshold(least)), n, "{kernel:?}");
            assert_eq!(count(Selection::BatchTopK(1)), n, "{kernel:?}");
        }
    }
}

#[test]
fn buffers_are_of_use_after_an_error() {
    let latents = 50;
    for (dtype, precision) in NUMERICS {
        // Whatever an ill call leaves behind, a shorter one must not multiply, not even by 0.
        let ill = Dictionary::of(dtype, 8, &[f32::NAN; 8 * 50], vec![0.0; latents]);
        let ill_x = Array2::ones((40, 8));
        for d_in in [8, 7, 5, 1] {
            let mut noise = Noise::new(3);
            let healthy = Dictionary::new([latents, d_in], dtype, 0, || noise.number());
            let x = matrix(20, d_in, || noise.number());
            for kernel in kernels() {
                for selection in [Selection::TopK(5), Selection::BatchTopK(5), Selection::Threshold(0.1)] {
                    let (mut scratch, mut codes) = (Scratch::new(), SparseCodes::new(3));
                    for rows in [20, 4] {
                        let compute = serial(kernel, precision);
                        let (encoder, ill_x) = (ill.encoder(selection), ill_x.slice(s![..2 * rows, ..]));
                        assert!(kernels::encode(compute, &encoder, ill_x, &mut scratch, &mut codes).is_err());
                        let (encoder, x) = (healthy.encoder(selection), x.slice(s![..rows, ..]));
                        kernels::encode(compute, &encoder, x, &mut scratch, &mut codes).unwrap();
                        assert_eq!(codes, encode(compute, &encoder, x).unwrap(), "{kernel:?} {selection:?}");
                    }
                }
            }
        }
    }
}

#[track_caller]
fn assert_panics<T>(message: &str, run: impl FnOnce() -> T) {
    let Err(panic) = catch_unwind(AssertUnwindSafe(run)) else { panic!("expected a panic: {message}") };
    let text = panic.downcast_ref::<String>().map(String::as_str);
    let text = text.or(panic.downcast_ref::<&str>().copied()).unwrap_or_default();
    assert!(text.contains(message), "expected a panic with {message:?}, got {text:?}");
}

#[test]
fn wrong_shapes_panic_and_say_which() {
    let dictionary = Dictionary::of(WeightDtype::F32, 2, &[1.0; 6], vec![0.0; 3]);
    let x = Array2::zeros((4, 2));
    for kernel in kernels() {
        let compute = serial(kernel, Precision::F32);
        let run = |selection| encode(compute, &dictionary.encoder(selection), x.view());
        assert_panics("k is 0, expected 1 to 3", || run(Selection::TopK(0)));
        assert_panics("k is 4, expected 1 to 3", || run(Selection::TopK(4)));
        assert_panics("k is 0, expected 1 to 3", || run(Selection::BatchTopK(0)));
        assert_panics("k is 4, expected 1 to 3", || run(Selection::BatchTopK(4)));
        assert_panics("not a number", || run(Selection::Threshold(f32::NAN)));
        assert_panics("not a number", || run(Selection::Thresholds(&[0.0, f32::NAN, 0.0])));
        assert_panics("thresholds against rows", || run(Selection::Thresholds(&[0.0; 2])));
        let encoder = dictionary.encoder(Selection::TopK(1));
        let wide = Array2::zeros((4, 3));
        assert_panics("columns of x", || encode(compute, &encoder, wide.view()));
        let mut wrong = encoder;
        wrong.bias = &[0.0; 2];
        assert_panics("b_enc against rows", || encode(compute, &wrong, x.view()));
        let mut wrong = encoder;
        wrong.decoder_bias = &[0.0; 3];
        assert_panics("b_dec against columns", || encode(compute, &wrong, x.view()));

        let mut codes = SparseCodes::new(3);
        codes.push_row([]).unwrap();
        let decode = |codes: &SparseCodes, shape: (usize, usize)| {
            let mut out = Array2::zeros(shape);
            kernels::decode(compute, &dictionary.decoder(), codes, &mut Scratch::new(), out.view_mut());
        };
        decode(&codes, (1, 2));
        assert_panics("shape of the decoded vectors", || decode(&codes, (2, 2)));
        assert_panics("shape of the decoded vectors", || decode(&codes, (1, 3)));
        assert_panics("width of the codes", || decode(&SparseCodes::new(4), (0, 2)));
    }
    let elsewhere = if cfg!(target_arch = "aarch64") { Kernel::Avx2 } else { Kernel::Neon };
    assert_panics("does not run on this machine", || {
        encode(serial(elsewhere, Precision::F32), &dictionary.encoder(Selection::TopK(1)), x.view())
    });
}
