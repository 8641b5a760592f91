//! Gradients: the formula against finite differences, the kernels against the formula.

use ndarray::{Array2, ArrayView2, s};
use sae_core::kernels::{self, GradientSums, Gradients, Scratch, Selection};
use sae_core::{Compute, Kernel, Precision, SparseCodes};

use crate::support::{
    Bounded, DTYPES, Dictionary, Noise, Tolerance, bits, encode, kernels, matrix, on_all_threads,
    random_codes, serial, small,
};

/// [`Gradients`] in f64.
#[derive(Default)]
struct Formula {
    latents: Vec<u32>,
    encoder_weight: Vec<Bounded>,
    encoder_bias: Vec<Bounded>,
    decoder_weight: Vec<Bounded>,
    decoder_bias: Vec<Bounded>,
    codes: Vec<Bounded>,
}

fn formula(
    dictionary: &Dictionary,
    x: ArrayView2<'_, f32>,
    codes: &SparseCodes,
    d_out: ArrayView2<'_, f32>,
) -> Formula {
    let number = |number: f32| Bounded::new(number);
    let mut formula = Formula::default();
    for (codes, d_out) in codes.rows().zip(d_out.rows()) {
        formula.codes.extend(codes.latents.iter().map(|&latent| {
            let columns = d_out.iter().zip(dictionary.decoder.row(latent as usize));
            columns.fold(Bounded::ZERO, |sum, (d_out, weight)| sum + number(*d_out) * number(*weight))
        }));
    }
    formula.decoder_bias = d_out
        .columns()
        .into_iter()
        .map(|column| column.iter().fold(Bounded::ZERO, |sum, d_out| sum + number(*d_out)))
        .collect();
    formula.latents = codes.latents().to_vec();
    formula.latents.sort_unstable();
    formula.latents.dedup();
    for &latent in &formula.latents {
        let mut d_bias = Bounded::ZERO;
        let mut d_encoder = vec![Bounded::ZERO; x.ncols()];
        let mut d_decoder = vec![Bounded::ZERO; x.ncols()];
        for row in 0..codes.n_rows() {
            let Ok(at) = codes.row(row).latents.binary_search(&latent) else { continue };
            let d_value = formula.codes[codes.offsets()[row] + at];
            d_bias = d_bias + d_value;
            for column in 0..x.ncols() {
                let centred = number(x[(row, column)]) + number(dictionary.decoder_bias[column]).negative();
                d_encoder[column] = d_encoder[column] + d_value * centred;
                d_decoder[column] =
                    d_decoder[column] + number(codes.row(row).values[at]) * number(d_out[(row, column)]);
            }
        }
        for (sum, weight) in formula.decoder_bias.iter_mut().zip(dictionary.encoder.row(latent as usize)) {
            *sum = *sum + (d_bias * number(*weight)).negative();
        }
        formula.encoder_bias.push(d_bias);
        formula.encoder_weight.extend(d_encoder);
        formula.decoder_weight.extend(d_decoder);
    }
    formula
}

fn gradients(
    compute: Compute,
    dictionary: &Dictionary,
    x: ArrayView2<'_, f32>,
    codes: &SparseCodes,
    d_out: ArrayView2<'_, f32>,
) -> Gradients {
    let mut out = Gradients::new();
    let (encoder, decoder) = (dictionary.encoder(Selection::TopK(1)), dictionary.decoder());
    kernels::gradients(compute, &encoder, &decoder, x, codes, d_out, &mut Scratch::new(), &mut out);
    out
}

/// All numbers, to compare to the bit.
fn all_bits(gradients: &Gradients) -> [Vec<u32>; 6] {
    let Gradients { latents, encoder_weight, encoder_bias, decoder_weight, decoder_bias, codes, .. } =
        gradients;
    let [a, b, c, d, e] = [encoder_weight, encoder_bias, decoder_weight, decoder_bias, codes].map(bits);
    [latents.clone(), a, b, c, d, e]
}

#[track_caller]
fn check(what: &str, tolerance: Tolerance, got: &Gradients, want: &Formula) {
    assert_eq!(got.latents, want.latents, "{what}");
    for (field, got, want) in [
        ("codes", &got.codes, &want.codes),
        ("encoder_weight", &got.encoder_weight, &want.encoder_weight),
        ("encoder_bias", &got.encoder_bias, &want.encoder_bias),
        ("decoder_weight", &got.decoder_weight, &want.decoder_weight),
        ("decoder_bias", &got.decoder_bias, &want.decoder_bias),
    ] {
        assert_eq!(got.len(), want.len(), "{what}: {field}");
        let numbers = got.iter().zip(want).enumerate().map(|(at, (got, want))| (at, *got, want));
        tolerance.check(format!("{what}: {field}"), numbers);
    }
}

/// Several calls into one sum: each number is the f64 sum of what the formula gives for the calls, for any number of threads,
/// and a cleared sum keeps nothing.
#[test]
fn sums_over_calls() {
    for (case, [n, d_in, latents, most]) in shapes().into_iter().enumerate() {
        let mut noise = Noise::new(case as u64 + 77);
        let dictionary = Dictionary::new([latents, d_in], DTYPES[case % 3], case % 4, || noise.number());
        let calls: Vec<_> = (0..3)
            .map(|_| {
                let [x, d_out] = [(); 2].map(|()| matrix(n, d_in, || noise.number()));
                (x, d_out, random_codes(&mut noise, n, latents, most))
            })
            .collect();
        let mut want = [(); 2].map(|()| vec![Bounded::ZERO; latents * d_in]);
        let mut want_bias = vec![Bounded::ZERO; latents];
        let mut on = vec![false; latents];
        for (x, d_out, codes) in &calls {
            let one = formula(&dictionary, x.view(), codes, d_out.view());
            for (at, &latent) in one.latents.iter().enumerate() {
                let latent = latent as usize;
                on[latent] = true;
                want_bias[latent] = want_bias[latent] + one.encoder_bias[at];
                for column in 0..d_in {
                    for (want, got) in want.iter_mut().zip([&one.encoder_weight, &one.decoder_weight]) {
                        let sum = &mut want[latent * d_in + column];
                        *sum = *sum + got[at * d_in + column];
                    }
                }
            }
        }
        for kernel in kernels() {
            let run = |par| {
                let compute = Compute { par, ..serial(kernel, Precision::F32) };
                let (encoder, decoder) = (dictionary.encoder(Selection::TopK(1)), dictionary.decoder());
                let (mut scratch, mut sums) = (Scratch::new(), GradientSums::new(latents, d_in));
                // What a first round leaves behind must not be seen.
                sums.encoder_weight.fill(f32::NAN);
                sums.decoder_weight.fill(f32::NAN);
                sums.encoder_bias.fill(f32::NAN);
                for round in 0..2 {
                    sums.clear();
                    for (x, d_out, codes) in calls.iter().skip(1 - round) {
                        let (x, d_out) = (x.view(), d_out.view());
                        kernels::accumulate_gradients(
                            compute,
                            &encoder,
                            &decoder,
                            x,
                            codes,
                            d_out,
                            &mut scratch,
                            &mut sums,
                        );
                    }
                }
                let all = [&sums.encoder_weight, &sums.decoder_weight, &sums.encoder_bias].map(bits);
                (sums.touched, all)
            };
            let (touched, [encoder, decoder, bias]) = on_all_threads(kernel, run);
            assert_eq!(touched, on, "{kernel:?}");
            // One rounding per call comes on top where the reference adds in f32.
            let tolerance = Tolerance::SUM;
            for (what, got, want, width) in [
                ("W_enc", &encoder, &want[0], d_in),
                ("W_dec", &decoder, &want[1], d_in),
                ("b_enc", &bias, &want_bias, 1),
            ] {
                let numbers = (0..got.len())
                    .filter(|at| on[at / width])
                    .map(|at| (at, f32::from_bits(got[at]), &want[at]));
                tolerance.check(format!("{kernel:?} {what} of {n} x {d_in}"), numbers);
            }
        }
    }
}

/// Rows, length of the vectors, latents, most codes of a row.
fn shapes() -> Vec<[usize; 4]> {
    if small() {
        return vec![[0, 3, 5, 2], [1, 1, 1, 1], [5, 7, 9, 4], [9, 17, 6, 6]];
    }
    let mut shapes = vec![
        [0, 3, 5, 2],
        [1, 1, 1, 1],
        [12, 5, 30, 0],
        [1, 520, 640, 100],
        [300, 300, 24, 24],
        [70, 128, 640, 16],
        [600, 3, 12, 5],
    ];
    for (case, d_in) in [1, 2, 7, 8, 15, 16, 17, 31, 33, 255, 256, 257].into_iter().enumerate() {
        shapes.push([[3, 2, 17, 65][case % 4], d_in, [100, 33, 13][case % 3], [1, 4, 7, 13][case % 4]]);
    }
    shapes
}

#[test]
fn grid() {
    for (case, [n, d_in, latents, most]) in shapes().into_iter().enumerate() {
        for dtype in DTYPES {
            let mut noise = Noise::new(case as u64 + 1);
            let dictionary = Dictionary::new([latents, d_in], dtype, case % 4, || noise.number());
            let [x, d_out] = [(); 2].map(|()| matrix(n, d_in, || noise.number()));
            let codes = random_codes(&mut noise, n, latents, most);
            let want = formula(&dictionary, x.view(), &codes, d_out.view());
            for kernel in kernels() {
                let run = |par| {
                    let compute = Compute { par, ..serial(kernel, Precision::F32) };
                    gradients(compute, &dictionary, x.view(), &codes, d_out.view())
                };
                on_all_threads(kernel, |par| all_bits(&run(par)));
                let what = format!("{n} x {d_in}, {latents} latents, {most} codes, {dtype} {kernel:?}");
                check(&what, Tolerance::of_kernel(kernel), &run(sae_core::Par::Serial), &want);
            }
        }
    }
}

#[test]
fn integers_are_equal_to_the_bit() {
    for (case, [n, d_in, latents, most]) in shapes().into_iter().enumerate() {
        let mut noise = Noise::new(case as u64 + 1);
        let dictionary = Dictionary::new([latents, d_in], DTYPES[case % 3], case % 2, || noise.integer());
        let [x, d_out] = [(); 2].map(|()| matrix(n, d_in, || noise.integer()));
        let mut codes = SparseCodes::new(latents);
        for row in random_codes(&mut noise, n, latents, most).rows() {
            codes.push_row(row.iter().map(|(latent, value)| (latent, (value * 3.0).round() + 0.5))).unwrap();
        }
        let run =
            |kernel| gradients(serial(kernel, Precision::F32), &dictionary, x.view(), &codes, d_out.view());
        let want = run(Kernel::Reference);
        for kernel in kernels() {
            // -0 is as good as 0 here.
            assert!(run(kernel) == want, "{kernel:?}, {n} x {d_in}, {latents} latents, {most} codes");
        }
    }
}

/// The loss `Σ d_out · x_hat` in f64, of the codes that are on, each computed anew.
struct Loss {
    encoder_weight: Vec<f64>,
    encoder_bias: Vec<f64>,
    decoder_weight: Vec<f64>,
    decoder_bias: Vec<f64>,
    /// Added to each code.
    codes: Vec<f64>,
}

impl Loss {
    fn value(&self, x: &Array2<f32>, on: &SparseCodes, d_out: &Array2<f32>) -> f64 {
        let d_in = self.decoder_bias.len();
        let mut loss = 0.0;
        for (row, codes) in on.rows().enumerate() {
            let mut decoded = self.decoder_bias.clone();
            for (at, &latent) in codes.latents.iter().enumerate() {
                let weights = latent as usize * d_in..(latent as usize + 1) * d_in;
                let columns = self.encoder_weight[weights.clone()].iter().zip(&self.decoder_bias).enumerate();
                let dot: f64 = columns.map(|(column, (w, b))| (f64::from(x[(row, column)]) - b) * w).sum();
                let code = dot + self.encoder_bias[latent as usize] + self.codes[on.offsets()[row] + at];
                decoded
                    .iter_mut()
                    .zip(&self.decoder_weight[weights])
                    .for_each(|(out, weight)| *out += code * weight);
            }
            loss +=
                decoded.iter().zip(d_out.row(row)).map(|(out, d_out)| out * f64::from(*d_out)).sum::<f64>();
        }
        loss
    }
}

#[test]
fn the_formula_is_the_derivative() {
    let (n, d_in, latents, k) = if small() { (3, 4, 6, 2) } else { (12, 9, 20, 4) };
    let mut noise = Noise::new(12);
    let dictionary = Dictionary::new([latents, d_in], DTYPES[0], 0, || noise.number());
    let [x, d_out] = [(); 2].map(|()| matrix(n, d_in, || noise.number()));
    let compute = serial(Kernel::Reference, Precision::F32);
    let codes = encode(compute, &dictionary.encoder(Selection::TopK(k)), x.view()).unwrap();
    assert!(codes.rows().any(|row| row.len() == k));
    // Every kernel, among them the reference, is held to the formula by `grid`.
    let formula = formula(&dictionary, x.view(), &codes, d_out.view());
    let wide = |numbers: &[f32]| numbers.iter().map(|number| f64::from(*number)).collect::<Vec<_>>();
    let mut loss = Loss {
        encoder_weight: wide(&dictionary.encoder.numbers),
        encoder_bias: wide(&dictionary.bias),
        decoder_weight: wide(&dictionary.decoder.numbers),
        decoder_bias: wide(&dictionary.decoder_bias),
        codes: vec![0.0; codes.n_codes()],
    };
    let mut slope = |field: fn(&mut Loss) -> &mut Vec<f64>, index: usize| {
        // Quadratic at most, so that central differences are exact but for rounding.
        let [above, below] = [0.5, -1.0].map(|step| {
            field(&mut loss)[index] += step;
            loss.value(&x, &codes, &d_out)
        });
        field(&mut loss)[index] += 0.5;
        above - below
    };
    // Values of codes are f32 in the formula, f64 here.
    let close = |slope: f64, want: Bounded| (slope - want.value).abs() <= 1e-6 * (1.0 + want.scale);
    for (index, want) in formula.codes.iter().enumerate() {
        assert!(close(slope(|loss| &mut loss.codes, index), *want), "code {index}: {want:?}");
    }
    for (index, want) in formula.decoder_bias.iter().enumerate() {
        assert!(close(slope(|loss| &mut loss.decoder_bias, index), *want), "b_dec {index}: {want:?}");
    }
    for latent in 0..latents {
        let at = formula.latents.binary_search(&(latent as u32));
        let of = |numbers: &[Bounded], column: usize, width: usize| {
            at.map_or(Bounded::ZERO, |at| numbers[at * width + column])
        };
        let want = of(&formula.encoder_bias, 0, 1);
        assert!(close(slope(|loss| &mut loss.encoder_bias, latent), want), "b_enc {latent}: {want:?}");
        for column in 0..d_in {
            let index = latent * d_in + column;
            let want = of(&formula.encoder_weight, column, d_in);
            assert!(close(slope(|loss| &mut loss.encoder_weight, index), want), "W_enc {latent}, {column}");
            let want = of(&formula.decoder_weight, column, d_in);
            assert!(close(slope(|loss| &mut loss.decoder_weight, index), want), "W_dec {latent}, {column}");
        }
    }
}

#[test]
fn buffers_and_layouts_leave_no_trace() {
    let (mut scratch, mut out) = (Scratch::new(), Gradients::new());
    for [n, d_in, latents, most] in
        [[30, 17, 40, 9], [3, 5, 7, 7], [0, 4, 7, 1], [40, 33, 9, 9], [6, 2, 50, 0]]
    {
        let mut noise = Noise::new(n as u64);
        let dictionary = Dictionary::new([latents, d_in], DTYPES[2], 1, || noise.number());
        let wide = [(); 2].map(|()| matrix(2 * n, 2 * d_in, || noise.number()));
        let tall = [(); 2].map(|()| matrix(d_in, n, || noise.number()));
        let codes = random_codes(&mut noise, n, latents, most);
        for kernel in kernels() {
            for par in [sae_core::Par::Serial, sae_core::Par::Rayon] {
                let compute = Compute { par, ..serial(kernel, Precision::F32) };
                for [x, d_out] in [
                    wide.each_ref().map(|wide| wide.slice(s![..n, ..d_in])),
                    wide.each_ref().map(|wide| wide.slice(s![..;-2, ..;-2])),
                    tall.each_ref().map(|tall| tall.t()),
                ] {
                    let (encoder, decoder) =
                        (dictionary.encoder(Selection::Threshold(0.0)), dictionary.decoder());
                    kernels::gradients(compute, &encoder, &decoder, x, &codes, d_out, &mut scratch, &mut out);
                    let [x, d_out] = [x, d_out].map(|view| {
                        Array2::from_shape_vec((n, d_in), view.iter().copied().collect()).unwrap()
                    });
                    let fresh = gradients(compute, &dictionary, x.view(), &codes, d_out.view());
                    assert_eq!(all_bits(&out), all_bits(&fresh), "{kernel:?} {par:?}, {n} x {d_in}");
                }
            }
        }
    }
}

#[test]
fn without_rows_or_codes_only_the_decoder_bias_has_a_gradient() {
    let dictionary = Dictionary::of(DTYPES[0], 3, &[1.0; 12], vec![0.0; 4]);
    for kernel in kernels() {
        let compute = serial(kernel, Precision::F32);
        for n in [0, 1, 10] {
            let mut codes = SparseCodes::new(4);
            (0..n).for_each(|_| codes.push_row([]).unwrap());
            let x = Array2::from_elem((n, 3), 5.0);
            let d_out = Array2::from_elem((n, 3), 2.0);
            let got = gradients(compute, &dictionary, x.view(), &codes, d_out.view());
            assert_eq!(got.decoder_bias, [2.0 * n as f32; 3], "{kernel:?}");
            assert!(got.latents.is_empty() && got.codes.is_empty() && got.encoder_bias.is_empty());
            assert!(got.encoder_weight.is_empty() && got.decoder_weight.is_empty());
        }
        let x = Array2::zeros((1, 3));
        for (rows, d_out) in
            [(1, Array2::zeros((2, 3))), (2, Array2::zeros((2, 3))), (2, Array2::zeros((1, 3)))]
        {
            let mut codes = SparseCodes::new(4);
            (0..rows).for_each(|_| codes.push_row([]).unwrap());
            let run = || gradients(compute, &dictionary, x.view(), &codes, d_out.view());
            assert!(
                std::panic::catch_unwind(run).is_err(),
                "{kernel:?} took {rows} rows of codes for 1 of x"
            );
        }
    }
}
