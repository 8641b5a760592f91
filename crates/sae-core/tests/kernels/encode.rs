//! Encoding random numbers over a grid of shapes: pre-activations against f64, selections against their definition.

use half::bf16;
use ndarray::{Array2, ArrayView2, s};
use sae_core::kernels::Selection;
use sae_core::{CodeRow, Compute, FeatureId, Kernel, Par, Precision, SparseCodes, WeightDtype};

use crate::support::{
    Bounded, Dictionary, Noise, Tolerance, encode, encode_on_all_threads, kernels, matrix, serial, small,
};

/// Rows, length of the vectors, latents, k.
#[derive(Clone, Copy, Debug)]
struct Shape {
    n: usize,
    d_in: usize,
    latents: usize,
    k: usize,
}

/// Each number beside several of the others: block and panel edges of rows, register and chunk edges of vectors, tile
/// edges of latents.
fn shapes() -> Vec<Shape> {
    const N: [usize; 19] = [0, 1, 2, 3, 5, 7, 8, 9, 15, 16, 17, 31, 33, 64, 65, 255, 256, 257, 300];
    const D_IN: [usize; 15] = [1, 2, 7, 8, 15, 16, 17, 31, 33, 128, 255, 256, 257, 300, 520];
    const LATENTS: [usize; 11] = [1, 5, 6, 11, 12, 13, 24, 33, 100, 257, 640];
    let k = |case: usize, latents: usize| [1, latents, latents.div_ceil(2), latents.min(8)][case % 4];
    let shape = |case: usize| {
        let latents = LATENTS[(case * 4 + case / 11) % 11];
        Shape { n: N[case % 19], d_in: D_IN[(case * 7 + case / 15) % 15], latents, k: k(case, latents) }
    };
    // The reference takes a nanosecond per multiplication.
    let size = |shape: &Shape| shape.n * shape.d_in * shape.latents;
    if small() {
        let most = if cfg!(miri) { 3_000 } else { 300_000 };
        return (0..38).map(shape).filter(|shape| size(shape) < most).collect();
    }
    let mut shapes: Vec<Shape> = (0..95).map(shape).filter(|shape| size(shape) < 2_000_000).collect();
    shapes.extend([
        Shape { n: 300, d_in: 520, latents: 33, k: 11 },
        Shape { n: 257, d_in: 17, latents: 640, k: 100 },
        Shape { n: 9, d_in: 520, latents: 640, k: 640 },
        Shape { n: 8, d_in: 520, latents: 640, k: 3 },
        Shape { n: 1, d_in: 520, latents: 640, k: 320 },
    ]);
    shapes
}

/// `(x - b_dec) · W_encᵀ + b_enc` `[n, latents]`.
fn pre_activations(dictionary: &Dictionary, rounded: bool, x: ArrayView2<'_, f32>) -> Array2<Bounded> {
    let mut pre = Array2::from_elem((x.nrows(), dictionary.bias.len()), Bounded::ZERO);
    for (x, mut pre) in x.rows().into_iter().zip(pre.rows_mut()) {
        let centred = x.iter().zip(&dictionary.decoder_bias).map(|(x, bias)| {
            if rounded {
                Bounded::new(bf16::from_f32(x - bias).to_f32())
            } else {
                Bounded::new(*x) + Bounded::new(*bias).negative()
            }
        });
        let centred: Vec<Bounded> = centred.collect();
        for (latent, pre) in pre.iter_mut().enumerate() {
            *pre = Bounded::new(dictionary.bias[latent]);
            for (x, weight) in centred.iter().zip(dictionary.encoder.row(latent)) {
                *pre = *pre + *x * Bounded::new(*weight);
            }
        }
    }
    pre
}

/// What `selection` keeps of all positive pre-activations.
fn select(all: &SparseCodes, selection: Selection<'_>) -> SparseCodes {
    let rows = all.rows().enumerate();
    let mut codes: Vec<(usize, u32, f32)> = rows
        .flat_map(|(row, codes)| codes.iter().map(move |(latent, value)| (row, latent.0, value)))
        .collect();
    let best_first = |a: &(usize, u32, f32), b: &(usize, u32, f32)| {
        b.2.total_cmp(&a.2).then(a.0.cmp(&b.0)).then(a.1.cmp(&b.1))
    };
    match selection {
        Selection::TopK(k) => {
            codes.sort_by(|a, b| a.0.cmp(&b.0).then(best_first(a, b)));
            let mut rank = vec![0; all.n_rows()];
            codes.retain(|code| {
                rank[code.0] += 1;
                rank[code.0] <= k
            });
        }
        Selection::BatchTopK(k) => {
            codes.sort_by(best_first);
            codes.truncate(all.n_rows() * k);
        }
        Selection::Threshold(threshold) => codes.retain(|code| code.2 > threshold),
        Selection::Thresholds(thresholds) => codes.retain(|code| code.2 > thresholds[code.1 as usize]),
    }
    codes.sort_by_key(|code| (code.0, code.1));
    let mut selected = SparseCodes::new(all.num_latents());
    for row in codes.chunk_by(|a, b| a.0 == b.0) {
        while selected.n_rows() < row[0].0 {
            selected.push_row([]).unwrap();
        }
        selected.push_row(row.iter().map(|code| (FeatureId(code.1), code.2))).unwrap();
    }
    while selected.n_rows() < all.n_rows() {
        selected.push_row([]).unwrap();
    }
    selected
}

/// Values within tolerance; latents equal, except where a pre-activation is so near to the last one kept (to the threshold, to
/// 0) that rounding decides.
#[track_caller]
fn check_codes(
    what: &str,
    pre: &Array2<Bounded>,
    selection: Selection<'_>,
    tolerance: Tolerance,
    got: &SparseCodes,
    want: &SparseCodes,
) {
    assert_eq!((got.n_rows(), got.num_latents()), pre.dim(), "{what}");
    let values = got.rows().enumerate().flat_map(|(row, codes)| {
        codes.iter().map(move |(latent, value)| ((row, latent.0), value, &pre[(row, latent.index())]))
    });
    tolerance.check(what, values);
    let least = |values: &[f32]| values.iter().copied().fold(f32::INFINITY, f32::min);
    let last_of_batch = least(want.values());
    let worst = pre.iter().map(|pre| tolerance.of(*pre)).fold(0.0, f64::max);
    let mut differences = Vec::new();
    for (row, (got, want)) in got.rows().zip(want.rows()).enumerate() {
        let only = |a: CodeRow<'_>, b: CodeRow<'_>| {
            let of_b = b.latents.to_vec();
            let of_a = a.latents.iter().copied();
            of_a.filter(|latent| of_b.binary_search(latent).is_err()).collect::<Vec<_>>()
        };
        differences
            .extend(only(got, want).into_iter().chain(only(want, got)).map(|latent| (row, latent as usize)));
    }
    for (row, latent) in differences {
        let codes = want.row(row);
        let last = match selection {
            Selection::TopK(k) if codes.len() == k => least(codes.values),
            Selection::BatchTopK(k) if want.n_codes() == want.n_rows() * k => last_of_batch,
            Selection::TopK(_) | Selection::BatchTopK(_) => 0.0,
            Selection::Threshold(threshold) => threshold.max(0.0),
            Selection::Thresholds(thresholds) => thresholds[latent].max(0.0),
        };
        let pre = pre[(row, latent)];
        let distance = (pre.value - f64::from(last)).abs();
        let [got, want] = [got, want].map(|codes| codes.row(row).value(FeatureId(latent as u32)));
        assert!(
            distance <= tolerance.of(pre) + worst,
            "{what}: row {row}, latent {latent}: got {got:e}, want {want:e}, {distance:e} from the last kept"
        );
    }
}

fn run_grid(dtype: WeightDtype, precision: Precision) {
    let shapes = shapes();
    assert!(shapes.len() > 10, "a grid of {} shapes", shapes.len());
    for (case, shape) in shapes.into_iter().enumerate() {
        let Shape { n, d_in, latents, k } = shape;
        let mut noise = Noise::new(case as u64 + 1);
        // Odd shifts are unaligned for every dtype; 4 is aligned for f32 but not for a register.
        let shift = [0, 1, 2, 3, 4][case % 5];
        let dictionary = Dictionary::new([latents, d_in], dtype, shift, || noise.number());
        let mut x = matrix(n, d_in, || noise.number());
        if n > 2 {
            // The pre-activations of this one are the biases, some of them 0.
            x.row_mut(1).assign(&ndarray::aview1(&dictionary.decoder_bias));
        }
        let middle = (d_in as f32).sqrt() / 3.0;
        let thresholds: Vec<f32> = (0..latents)
            .map(|latent| if latent % 9 == 4 { f32::INFINITY } else { middle * noise.number() })
            .collect();
        let selections = [
            Selection::TopK(k),
            Selection::BatchTopK(k),
            Selection::Threshold(middle),
            Selection::Thresholds(&thresholds),
        ];
        let pre = pre_activations(&dictionary, precision == Precision::Bf16, x.view());
        let all = Selection::Threshold(0.0);
        let reference =
            encode(serial(Kernel::Reference, precision), &dictionary.encoder(all), x.view()).unwrap();
        for kernel in kernels() {
            let large = n * d_in * latents > 300_000;
            // The reference is slow, and tells the same at sizes where it is not.
            if kernel == Kernel::Reference && large {
                continue;
            }
            let tolerance = Tolerance::of_kernel(kernel);
            let run = |selection| {
                let (compute, encoder) = (serial(kernel, precision), dictionary.encoder(selection));
                if large && !matches!(selection, Selection::TopK(_) | Selection::BatchTopK(_)) {
                    encode(compute, &encoder, x.view()).unwrap()
                } else {
                    encode_on_all_threads(compute, &encoder, x.view())
                }
            };
            let what = format!("{shape:?} {dtype} {precision:?} {kernel:?}");
            let got = run(all);
            check_codes(&what, &pre, all, tolerance, &got, &reference);
            for selection in selections {
                let what = format!("{what} {selection:?}");
                let selected = run(selection);
                // To the bit, with this kernel's rounding; and whatever the rounding.
                assert!(selected == select(&got, selection), "{what} is not that selection of all");
                check_codes(&what, &pre, selection, tolerance, &selected, &select(&reference, selection));
            }
        }
    }
}

#[test]
fn grid_of_f32_weights() {
    run_grid(WeightDtype::F32, Precision::F32);
}

#[test]
fn grid_of_f16_weights() {
    run_grid(WeightDtype::F16, Precision::F32);
}

#[test]
fn grid_of_bf16_weights() {
    run_grid(WeightDtype::Bf16, Precision::F32);
}

#[test]
fn grid_of_bf16_weights_and_inputs() {
    run_grid(WeightDtype::Bf16, Precision::Bf16);
}

#[test]
fn bf16_rounds_inputs_of_bf16_weights_only() {
    let (n, d_in, latents) = (20, 33, 50);
    for dtype in [WeightDtype::F32, WeightDtype::F16, WeightDtype::Bf16] {
        let mut noise = Noise::new(5);
        let dictionary = Dictionary::new([latents, d_in], dtype, 0, || noise.number());
        let x = matrix(n, d_in, || noise.number());
        for kernel in kernels() {
            for rows in [n, 3] {
                let [exact, rounded] = [Precision::F32, Precision::Bf16].map(|precision| {
                    let encoder = dictionary.encoder(Selection::TopK(7));
                    encode(serial(kernel, precision), &encoder, x.slice(s![..rows, ..])).unwrap()
                });
                assert_eq!(exact == rounded, dtype != WeightDtype::Bf16, "{dtype} {kernel:?} {rows} rows");
            }
        }
    }
}

#[test]
fn rows_do_not_depend_on_their_neighbours() {
    let (n, d_in, latents) = if cfg!(miri) { (265, 3, 5) } else { (300, 70, 90) };
    let mut noise = Noise::new(6);
    let dictionary = Dictionary::new([latents, d_in], WeightDtype::F32, 0, || noise.number());
    let x = matrix(n, d_in, || noise.number());
    let thresholds: Vec<f32> = (0..latents).map(|_| noise.number()).collect();
    for selection in [Selection::TopK(4), Selection::Threshold(1.0), Selection::Thresholds(&thresholds)] {
        let encoder = dictionary.encoder(selection);
        for kernel in kernels() {
            let compute = serial(kernel, Precision::F32);
            let whole = encode(compute, &encoder, x.view()).unwrap();
            // All of more than 8 rows, across the edge of a block and of registers and panels.
            for rows in [0..9, 3..40, 250..n, 247..256] {
                let part = encode(compute, &encoder, x.slice(s![rows.clone(), ..])).unwrap();
                for (row, codes) in rows.clone().zip(part.rows()) {
                    assert_eq!(codes, whole.row(row), "{kernel:?} {selection:?}: row {row} in {rows:?}");
                }
            }
            // The few: each alone is as in any company of up to 8.
            let few = encode(compute, &encoder, x.slice(s![..8, ..])).unwrap();
            for rows in [0..1, 1..3, 0..3, 4..8, 3..8, 2..8, 1..8] {
                let part = encode(compute, &encoder, x.slice(s![rows.clone(), ..])).unwrap();
                for (row, codes) in rows.clone().zip(part.rows()) {
                    assert_eq!(codes, few.row(row), "{kernel:?} {selection:?}: row {row} in {rows:?}");
                }
            }
        }
    }
}

#[test]
fn views_of_any_layout() {
    let (n, d_in, latents) = (37, 19, 24);
    let mut noise = Noise::new(7);
    let dictionary = Dictionary::new([latents, d_in], WeightDtype::F16, 1, || noise.number());
    let encoder = dictionary.encoder(Selection::TopK(5));
    let wide = matrix(2 * n, 3 * d_in, || noise.number());
    let tall = matrix(d_in, n, || noise.number());
    let row = wide.slice(s![3, ..d_in]);
    let views = [
        wide.slice(s![..n, ..d_in]),
        wide.slice(s![..;2, ..;3]),
        wide.slice(s![..;-2, ..;-3]),
        wide.slice(s![4..9, 1..;3]),
        tall.t(),
        tall.slice(s![..;-1, ..]).reversed_axes(),
        row.broadcast((n, d_in)).unwrap(),
    ];
    for kernel in kernels() {
        for x in &views {
            let owned = Array2::from_shape_vec(x.dim(), x.iter().copied().collect()).unwrap();
            let want = encode(serial(kernel, Precision::F32), &encoder, owned.view()).unwrap();
            let got = encode_on_all_threads(serial(kernel, Precision::F32), &encoder, *x);
            assert_eq!(got, want, "{kernel:?} with strides {:?}", x.strides());
        }
    }
}

#[test]
fn the_default_is_the_last_kernel_on_the_current_pool() {
    let best = Kernel::available().last().copied();
    assert_eq!(Some(Kernel::best()), best);
    let expected = Compute { kernel: Kernel::best(), par: Par::Rayon, precision: Precision::F32 };
    assert_eq!(Compute::default(), expected);
    assert_eq!(Kernel::available()[..2], [Kernel::Reference, Kernel::Portable]);
}
