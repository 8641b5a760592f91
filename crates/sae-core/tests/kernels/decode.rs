//! Decoding against f64: shapes, dtypes, layouts of the output, prefixes of the dictionary.

use ndarray::{Array2, Array3, ArrayViewMut2, Axis, s};
use sae_core::kernels::{self, Scratch};
use sae_core::{Compute, FeatureId, Kernel, Par, Precision, SparseCodes};

use crate::support::{
    Bounded, DTYPES, Dictionary, Noise, Tolerance, bits, kernels, on_all_threads, random_codes, serial, small,
};

/// Rows, length of the vectors, latents, most codes of a row.
fn shapes() -> Vec<[usize; 4]> {
    if small() {
        return vec![[0, 3, 5, 2], [1, 1, 1, 1], [3, 7, 20, 9], [20, 17, 8, 8], [2, 33, 30, 12]];
    }
    let mut shapes = vec![
        [0, 3, 5, 2],
        [1, 1, 1, 1],
        [1, 520, 640, 100],
        [2, 1100, 30, 17],
        [40, 31, 257, 0],
        // Many codes on few latents, in one group of rows and in several.
        [16, 128, 70, 70],
        [40, 300, 64, 40],
        [300, 257, 33, 33],
        [600, 520, 24, 12],
        [257, 16, 640, 9],
    ];
    for (case, d_in) in [1, 2, 7, 8, 15, 16, 17, 31, 33, 128, 255, 256, 257, 300, 520].into_iter().enumerate()
    {
        shapes.push([
            [3, 1, 8, 65, 17][case % 5],
            d_in,
            [100, 33, 640][case % 3],
            [0, 1, 3, 4, 7, 30][case % 6],
        ]);
    }
    shapes
}

/// `b_dec + Σ value W_dec[latent]` of the latents below `prefix`.
fn decoded(dictionary: &Dictionary, codes: &SparseCodes, prefix: usize) -> Vec<Bounded> {
    let mut decoded = Vec::new();
    for codes in codes.rows() {
        let mut row: Vec<Bounded> = dictionary.decoder_bias.iter().map(|bias| Bounded::new(*bias)).collect();
        for (latent, value) in codes.iter().filter(|(latent, _)| latent.index() < prefix) {
            for (sum, weight) in row.iter_mut().zip(dictionary.decoder.row(latent.index())) {
                *sum = *sum + Bounded::new(value) * Bounded::new(*weight);
            }
        }
        decoded.extend(row);
    }
    decoded
}

fn decode_into(compute: Compute, dictionary: &Dictionary, codes: &SparseCodes, out: ArrayViewMut2<'_, f32>) {
    kernels::decode(compute, &dictionary.decoder(), codes, &mut Scratch::new(), out);
}

fn decode(kernel: Kernel, par: Par, dictionary: &Dictionary, codes: &SparseCodes) -> Array2<f32> {
    let mut out = Array2::from_elem((codes.n_rows(), dictionary.decoder_bias.len()), f32::NAN);
    let compute = Compute { par, ..serial(kernel, Precision::F32) };
    decode_into(compute, dictionary, codes, out.view_mut());
    out
}

#[test]
fn grid() {
    for (case, [n, d_in, latents, most]) in shapes().into_iter().enumerate() {
        for dtype in DTYPES {
            let mut noise = Noise::new(case as u64 + 1);
            let dictionary =
                Dictionary::new([latents, d_in], dtype, [0, 1, 2, 3, 4][case % 5], || noise.number());
            let codes = random_codes(&mut noise, n, latents, most);
            let want = decoded(&dictionary, &codes, latents);
            for kernel in kernels() {
                let what = format!("{n} x {d_in}, {latents} latents, {most} codes, {dtype} {kernel:?}");
                let got = on_all_threads(kernel, |par| bits(&decode(kernel, par, &dictionary, &codes)));
                let got = got.iter().map(|bits| f32::from_bits(*bits)).zip(&want).enumerate();
                let numbers = got.map(|(at, (got, want))| ([at / d_in, at % d_in], got, want));
                Tolerance::of_kernel(kernel).check(what, numbers);
            }
        }
    }
}

#[test]
fn integers_are_equal_to_the_bit() {
    for (case, [n, d_in, latents, most]) in shapes().into_iter().enumerate() {
        for dtype in DTYPES {
            let mut noise = Noise::new(case as u64 + 1);
            let dictionary = Dictionary::new([latents, d_in], dtype, case % 3, || noise.integer());
            let random = random_codes(&mut noise, n, latents, most);
            let mut codes = SparseCodes::new(latents);
            for row in random.rows() {
                codes
                    .push_row(row.iter().map(|(latent, value)| (latent, (value * 3.0).round() + 0.5)))
                    .unwrap();
            }
            let want = decode(Kernel::Reference, Par::Serial, &dictionary, &codes);
            for kernel in kernels() {
                let got = on_all_threads(kernel, |par| decode(kernel, par, &dictionary, &codes));
                assert!(got == want, "{kernel:?} {dtype} {n} x {d_in}, {latents} latents, {most} codes");
            }
        }
    }
}

/// Batches that share rows of `W_dec` included.
#[test]
fn rows_do_not_depend_on_their_neighbours() {
    let (n, d_in, latents) = if small() { (20, 9, 12) } else { (300, 310, 40) };
    let mut noise = Noise::new(9);
    let dictionary = Dictionary::new([latents, d_in], DTYPES[1], 1, || noise.number());
    let codes = random_codes(&mut noise, n, latents, latents);
    for kernel in kernels() {
        let whole = on_all_threads(kernel, |par| bits(&decode(kernel, par, &dictionary, &codes)));
        for (row, whole) in codes.rows().zip(whole.chunks(d_in)) {
            let mut alone = SparseCodes::new(latents);
            alone.push_row(row.iter()).unwrap();
            assert_eq!(bits(&decode(kernel, Par::Serial, &dictionary, &alone)), whole, "{kernel:?}");
        }
    }
}

#[test]
fn outputs_of_any_layout_are_replaced() {
    for (n, d_in, latents) in [(1, 17, 9), (5, 1, 9), (6, 37, 33), (30, 37, 33)] {
        let mut noise = Noise::new(10);
        let dictionary = Dictionary::new([latents, d_in], DTYPES[0], 0, || noise.number());
        let codes = random_codes(&mut noise, n, latents, latents);
        for kernel in kernels() {
            let want = decode(kernel, Par::Serial, &dictionary, &codes);
            for par in [Par::Serial, Par::Rayon] {
                let compute = Compute { par, ..serial(kernel, Precision::F32) };
                let mut tall = Array2::from_elem((d_in, n), f32::NAN);
                decode_into(compute, &dictionary, &codes, tall.view_mut().reversed_axes());
                assert_eq!(tall.t(), want, "{kernel:?} {par:?}");
                let mut wide = Array2::from_elem((2 * n, 3 * d_in), 7.0);
                for (rows, columns) in [(2, 3), (-2, 3), (2, -3), (-2, -3)] {
                    wide.fill(7.0);
                    decode_into(compute, &dictionary, &codes, wide.slice_mut(s![..;rows, ..;columns]));
                    assert_eq!(wide.slice(s![..;rows, ..;columns]), want, "{kernel:?} {par:?}");
                    // What lies between is not touched.
                    let untouched = wide.iter().filter(|number| **number == 7.0).count();
                    assert_eq!(untouched, 5 * n * d_in, "{kernel:?} {par:?}");
                }
                wide.fill(7.0);
                decode_into(compute, &dictionary, &codes, wide.slice_mut(s![n.., d_in..2 * d_in]));
                assert_eq!(wide.slice(s![n.., d_in..2 * d_in]), want, "{kernel:?} {par:?}");
                assert_eq!(wide.iter().filter(|number| **number == 7.0).count(), 5 * n * d_in);
            }
        }
    }
}

#[test]
fn extreme_numbers_are_summed_as_they_are() {
    let tiny = f32::from_bits(5);
    let weight = [f32::MAX, tiny, f32::INFINITY, -1.0, f32::NAN, 1.0];
    let dictionary = Dictionary::of(DTYPES[0], 2, &weight, vec![0.0; 3]);
    let mut codes = SparseCodes::new(3);
    codes.push_row([(FeatureId(0), 1.0)]).unwrap();
    codes.push_row([(FeatureId(1), 2.0)]).unwrap();
    codes.push_row([(FeatureId(2), 2.0)]).unwrap();
    codes.push_row([]).unwrap();
    for kernel in kernels() {
        let out = decode(kernel, Par::Serial, &dictionary, &codes);
        assert_eq!(out.row(0), ndarray::aview1(&[f32::MAX, tiny]), "{kernel:?}");
        assert_eq!(out.row(1), ndarray::aview1(&[f32::INFINITY, -2.0]), "{kernel:?}");
        assert!(out[(2, 0)].is_nan() && out[(2, 1)] == 2.0, "{kernel:?}");
        assert_eq!(out.row(3), ndarray::aview1(&[0.0, 0.0]), "{kernel:?}");
    }
}

#[test]
fn prefixes_decode_the_latents_below_them() {
    let shapes: &[[usize; 4]] = if small() {
        &[[3, 9, 12, 6]]
    } else {
        &[[0, 3, 5, 2], [1, 700, 100, 60], [7, 33, 640, 50], [300, 40, 33, 33]]
    };
    for &[n, d_in, latents, most] in shapes {
        for dtype in DTYPES {
            let mut noise = Noise::new(11);
            let dictionary = Dictionary::new([latents, d_in], dtype, 1, || noise.number());
            let codes = random_codes(&mut noise, n, latents, most);
            let prefixes =
                [0, 1, latents / 3, latents / 2, latents / 2, latents - 1, latents, latents + 9, usize::MAX];
            for kernel in kernels() {
                let run = |par| {
                    let compute = Compute { par, ..serial(kernel, Precision::F32) };
                    let mut out = Array3::from_elem((prefixes.len(), n, d_in), f32::NAN);
                    let decoder = dictionary.decoder();
                    let mut scratch = Scratch::new();
                    kernels::decode_prefixes(
                        compute,
                        &decoder,
                        &codes,
                        &prefixes,
                        &mut scratch,
                        out.view_mut(),
                    );
                    // Prefixes as columns, so that no output is row-major.
                    let mut last = Array3::from_elem((n, d_in, prefixes.len()), f32::NAN);
                    let view = last.view_mut().permuted_axes([2, 0, 1]);
                    kernels::decode_prefixes(compute, &decoder, &codes, &prefixes, &mut scratch, view);
                    let last = last.permuted_axes([2, 0, 1]);
                    assert_eq!(bits(&last), bits(&out), "{kernel:?} {par:?}");
                    bits(&out)
                };
                let got = on_all_threads(kernel, run);
                for (index, &prefix) in prefixes.iter().enumerate() {
                    let got = &got[index * n * d_in..][..n * d_in];
                    let want = decoded(&dictionary, &codes, prefix);
                    let numbers = got.iter().map(|bits| f32::from_bits(*bits)).zip(&want).enumerate();
                    let numbers = numbers.map(|(at, (got, want))| (at, got, want));
                    Tolerance::of_kernel(kernel).check((kernel, n, d_in, prefix), numbers);
                    // To the bit what decoding codes cut to the prefix gives.
                    let mut cut = SparseCodes::new(latents);
                    for row in codes.rows() {
                        cut.push_row(row.iter().filter(|(latent, _)| latent.index() < prefix)).unwrap();
                    }
                    let want = bits(&decode(kernel, Par::Serial, &dictionary, &cut));
                    assert!(got == want, "{kernel:?} {n} x {d_in}, prefix {prefix}");
                }
            }
        }
    }
}

#[test]
fn no_prefixes_decode_nothing_and_wrong_counts_panic() {
    let dictionary = Dictionary::of(DTYPES[0], 2, &[1.0; 6], vec![0.0; 3]);
    let mut codes = SparseCodes::new(3);
    codes.push_row([(FeatureId(1), 2.0)]).unwrap();
    for kernel in kernels() {
        let compute = serial(kernel, Precision::F32);
        let run = |prefixes: &[usize], outputs: usize| {
            let mut out = Array3::zeros((outputs, 1, 2));
            let decoder = dictionary.decoder();
            kernels::decode_prefixes(
                compute,
                &decoder,
                &codes,
                prefixes,
                &mut Scratch::new(),
                out.view_mut(),
            );
            out.index_axis_move(Axis(2), 0).into_raw_vec_and_offset().0
        };
        run(&[], 0);
        assert_eq!(run(&[1, 2], 2)[..], [0.0, 0.0, 2.0, 2.0]);
        let wrong = std::panic::catch_unwind(|| run(&[1, 2], 3));
        assert!(wrong.is_err(), "{kernel:?} took 2 prefixes for 3 outputs");
    }
}
