//! [`Cpu`]: parameters in plain memory, codes and gradients through `sae-core`'s kernels, threads through rayon.
//!
//! No matrix `[tokens, latents]` exists, and every number is summed in an order that does not depend on the number of threads.

use std::ops::Range;

use collectives::{Collective, CollectiveError, NumbersMut, Reduction};
use ndarray::{ArcArray2, Array2, ArrayView2, ArrayViewMut2, s};
use rayon::prelude::*;
use sae_core::kernels::{self, Decoder, Encoder, GradientSums, Scratch};
use sae_core::{Compute, FeatureId, SaeError, SaeTensors, SparseCodes, Weights};
use tch::{Device, Tensor};

use super::linear::{self, add_product};
use super::{Backend, Fired, Rates, SparseGradients, split};
use crate::TrainerError;
use crate::config::{Selection, TrainerConfig};
use crate::objective::Chain;
use crate::optimizer::{Moments, Parameter};
use crate::state::{Array, ArrayMut};

/// Numbers of a vector that a task of its update works on.
const VECTOR: usize = 4096;
/// Numbers of gradients that ranks sum at once.
const PACKED: usize = 16 << 20;

#[derive(Debug)]
pub(crate) struct Cpu {
    shape: Shape,
    parameters: SaeTensors,
    /// Moments in the order of [`NAMES`].
    moments: Vec<Moments>,
    sums: GradientSums,
    decoder_bias_sum: Vec<f32>,
    skip_sum: Option<Vec<f32>>,
    /// Per latent, the part of its decoder row's gradient along the row.
    along: Vec<f32>,
    /// Zeros for kernels that want a bias, `[d_in]`.
    no_bias: Vec<f32>,
    tokens_since_fired: Vec<i64>,
    fired: Vec<bool>,
    scratch: Scratch,
    codes: SparseCodes,
    decoded: Vec<f32>,
}

/// Settings that its arithmetic depends on.
#[derive(Clone, Copy, Debug)]
struct Shape {
    num_latents: usize,
    d_in: usize,
    transcode: bool,
    unit_rows: bool,
    dead_feature_threshold: u64,
}

/// Parameters in the order of their moments.
const NAMES: [&str; 5] = ["encoder.weight", "encoder.bias", "W_dec", "b_dec", "W_skip"];

impl Cpu {
    pub(crate) fn new(config: &TrainerConfig, parameters: SaeTensors) -> Self {
        let (num_latents, d_in) = (config.num_latents, config.d_in);
        let skip = parameters.skip_weight.is_some();
        let shape = Shape {
            num_latents,
            d_in,
            transcode: config.transcode,
            unit_rows: config.unit_rows(),
            dead_feature_threshold: config.dead_feature_threshold,
        };
        let shapes = shapes(num_latents, d_in);
        let moments = shapes[..4 + usize::from(skip)].iter();
        Self {
            shape,
            moments: moments.map(|shape| Moments::new(config.optimizer, shape)).collect(),
            sums: GradientSums::new(num_latents, d_in),
            decoder_bias_sum: vec![0.0; d_in],
            skip_sum: skip.then(|| vec![0.0; d_in * d_in]),
            along: vec![0.0; num_latents],
            no_bias: vec![0.0; d_in],
            tokens_since_fired: vec![0; num_latents],
            fired: vec![false; num_latents],
            scratch: Scratch::new(),
            codes: SparseCodes::new(num_latents),
            decoded: Vec::new(),
            parameters,
        }
    }

    /// Codes of `n` rows that are all off.
    fn none(&self, n: usize) -> SparseCodes {
        let mut codes = SparseCodes::new(self.shape.num_latents);
        (0..n).for_each(|_| codes.push_row([]).expect("a row without codes"));
        codes
    }

    fn dead_latents(&self) -> Vec<u32> {
        let threshold = i64::try_from(self.shape.dead_feature_threshold).unwrap_or(i64::MAX);
        let latents = 0..self.shape.num_latents as u32;
        latents.filter(|&latent| self.tokens_since_fired[latent as usize] > threshold).collect()
    }
}

fn shapes(num_latents: usize, d_in: usize) -> [Vec<usize>; 5] {
    [vec![num_latents, d_in], vec![num_latents], vec![num_latents, d_in], vec![d_in], vec![d_in, d_in]]
}

/// What the encoder subtracts from its input.
fn subtracted<'a>(shape: Shape, parameters: &'a SaeTensors, no_bias: &'a [f32]) -> &'a [f32] {
    if shape.transcode { no_bias } else { &parameters.decoder_bias }
}

/// What the kernels find in an encoder: infinity or NaN.
fn overflow(error: &SaeError) -> f64 {
    match error {
        SaeError::PreActivationNotFinite { value, .. } | SaeError::InputNotFinite { value, .. } => {
            f64::from(*value)
        }
        _ => f64::NAN,
    }
}

fn slice(rows: &ArcArray2<f32>) -> &[f32] {
    rows.as_slice().expect("rows are made row-major and cut by rows")
}

fn slice_mut(rows: &mut ArcArray2<f32>) -> &mut [f32] {
    rows.as_slice_mut().expect("rows are made row-major and cut by rows")
}

/// Rows `[n, width]` of numbers.
fn matrix(width: usize, numbers: Vec<f32>) -> ArcArray2<f32> {
    let shape = (numbers.len() / width, width);
    Array2::from_shape_vec(shape, numbers).expect("whole rows").into_shared()
}

fn weights(rows: Option<&ArcArray2<f32>>) -> Option<&[f32]> {
    rows.map(slice)
}

impl Backend for Cpu {
    type Rows = ArcArray2<f32>;
    type Codes = SparseCodes;

    fn device(&self) -> Device {
        Device::Cpu
    }

    fn latents(&self) -> usize {
        self.shape.num_latents
    }

    fn rows(&self, tensor: &Tensor) -> Self::Rows {
        let size = tensor.size();
        let tensor = tensor.contiguous();
        let mut numbers = vec![0.0; tensor.numel()];
        tensor.copy_data(&mut numbers, tensor.numel());
        matrix(size[1] as usize, numbers)
    }

    fn part(rows: &Self::Rows, range: Range<usize>) -> Self::Rows {
        rows.clone().slice_move(s![range, ..])
    }

    fn len(rows: &Self::Rows) -> usize {
        rows.nrows()
    }

    fn zeros(&self, n: usize) -> Self::Rows {
        ArcArray2::zeros((n, self.shape.d_in))
    }

    fn column_sums(&self, y: &Self::Rows, w: Option<&Self::Rows>) -> (Vec<f64>, f64) {
        linear::column_sums(slice(y), self.shape.d_in, weights(w))
    }

    fn squares_around(&self, y: &Self::Rows, mean: &[f64], w: Option<&Self::Rows>) -> f64 {
        linear::squares_around(slice(y), mean, weights(w))
    }

    fn encode(&mut self, x: &Self::Rows, chain: &Chain) -> Result<Vec<SparseCodes>, f64> {
        let codes = self.find(x, chain.selection, chain.count)?;
        Ok(split::split(&codes, chain))
    }

    fn encode_dead(&mut self, x: &Self::Rows, count: usize) -> Result<SparseCodes, f64> {
        self.find_dead(x, count)
    }

    fn find(&mut self, x: &Self::Rows, selection: Selection, count: usize) -> Result<SparseCodes, f64> {
        let Shape { num_latents, d_in, .. } = self.shape;
        let encoder = Encoder {
            weight: Weights::from_f32(num_latents, d_in, &self.parameters.encoder_weight),
            bias: &self.parameters.encoder_bias,
            decoder_bias: subtracted(self.shape, &self.parameters, &self.no_bias),
            selection: match selection {
                Selection::TopK => kernels::Selection::TopK(count.min(num_latents)),
                Selection::BatchTopK => kernels::Selection::BatchTopK(count.min(num_latents)),
            },
        };
        kernels::encode(Compute::default(), &encoder, x.view(), &mut self.scratch, &mut self.codes)
            .map_err(|error| overflow(&error))?;
        Ok(std::mem::replace(&mut self.codes, SparseCodes::new(num_latents)))
    }

    fn find_dead(&mut self, x: &Self::Rows, count: usize) -> Result<SparseCodes, f64> {
        let Shape { num_latents, d_in, .. } = self.shape;
        let dead = self.dead_latents();
        if dead.is_empty() || count == 0 {
            return Ok(self.none(x.nrows()));
        }
        let mut weight = vec![0.0; dead.len() * d_in];
        weight.par_chunks_mut(d_in).zip(&dead).for_each(|(row, &latent)| {
            row.copy_from_slice(&self.parameters.encoder_weight[latent as usize * d_in..][..d_in]);
        });
        let bias: Vec<f32> =
            dead.iter().map(|&latent| self.parameters.encoder_bias[latent as usize]).collect();
        let encoder = Encoder {
            weight: Weights::from_f32(dead.len(), d_in, &weight),
            bias: &bias,
            decoder_bias: subtracted(self.shape, &self.parameters, &self.no_bias),
            selection: kernels::Selection::TopK(count.min(dead.len())),
        };
        kernels::encode(Compute::default(), &encoder, x.view(), &mut self.scratch, &mut self.codes)
            .map_err(|error| overflow(&error))?;
        let mut codes = SparseCodes::with_capacity(num_latents, self.codes.n_rows(), self.codes.n_codes());
        for row in self.codes.rows() {
            let row = row.iter().map(|(feature, value)| (FeatureId(dead[feature.index()]), value));
            codes.push_row(row).map_err(|_| f64::NAN)?;
        }
        Ok(codes)
    }

    fn adopt(&self, codes: SparseCodes) -> SparseCodes {
        codes
    }

    fn start(&self, x: &Self::Rows) -> Self::Rows {
        let d_in = self.shape.d_in;
        let n = x.nrows();
        let mut numbers = Vec::with_capacity(n * d_in);
        (0..n).for_each(|_| numbers.extend_from_slice(&self.parameters.decoder_bias));
        if let Some(skip) = &self.parameters.skip_weight {
            let skip = view(d_in, skip);
            add_product(&x.view(), &skip.t(), view_mut(d_in, &mut numbers));
        }
        matrix(d_in, numbers)
    }

    fn add_decoded(&mut self, codes: &SparseCodes, to: &mut Self::Rows) {
        let Shape { num_latents, d_in, .. } = self.shape;
        let weight = Weights::from_f32(num_latents, d_in, &self.parameters.decoder_weight);
        let decoder = Decoder { weight, bias: &self.no_bias };
        self.decoded.resize(codes.n_rows() * d_in, 0.0);
        let out = view_mut(d_in, &mut self.decoded);
        kernels::decode(Compute::default(), &decoder, codes, &mut self.scratch, out);
        linear::add(slice_mut(to), &self.decoded);
    }

    fn error(&self, decoded: &Self::Rows, y: &Self::Rows, w: Option<&Self::Rows>) -> (Self::Rows, f64) {
        let d_in = self.shape.d_in;
        let (error, squares) = linear::difference(slice(decoded), slice(y), d_in, weights(w));
        (matrix(d_in, error), squares)
    }

    fn squares(&self, rows: &Self::Rows, w: Option<&Self::Rows>) -> f64 {
        linear::squares(slice(rows), self.shape.d_in, weights(w))
    }

    fn scaled(&self, rows: &Self::Rows, w: Option<&Self::Rows>, factor: f64) -> Self::Rows {
        let d_in = self.shape.d_in;
        matrix(d_in, linear::scaled(slice(rows), d_in, weights(w), factor))
    }

    fn add(&self, to: &mut Self::Rows, rows: &Self::Rows) {
        linear::add(slice_mut(to), slice(rows));
    }

    fn accumulate(&mut self, x: &Self::Rows, sets: &[SparseCodes], upstream: &[Self::Rows]) {
        let Shape { num_latents, d_in, .. } = self.shape;
        let encoder = Encoder {
            weight: Weights::from_f32(num_latents, d_in, &self.parameters.encoder_weight),
            bias: &self.parameters.encoder_bias,
            decoder_bias: subtracted(self.shape, &self.parameters, &self.no_bias),
            selection: kernels::Selection::Threshold(0.0),
        };
        let weight = Weights::from_f32(num_latents, d_in, &self.parameters.decoder_weight);
        let decoder = Decoder { weight, bias: &self.no_bias };
        for (codes, upstream) in sets.iter().zip(upstream) {
            kernels::accumulate_gradients(
                Compute::default(),
                &encoder,
                &decoder,
                x.view(),
                codes,
                upstream.view(),
                &mut self.scratch,
                &mut self.sums,
            );
        }
    }

    fn accumulate_start(&mut self, x: &Self::Rows, upstream: &Self::Rows) {
        linear::add_columns(&mut self.decoder_bias_sum, slice(upstream));
        if let Some(sum) = &mut self.skip_sum {
            add_product(&upstream.t(), &x.view(), view_mut(self.shape.d_in, sum));
        }
    }

    fn note_fired(&mut self, sets: &[SparseCodes]) -> Fired {
        let mut fired = Fired { codes: 0, smallest: None };
        for codes in sets {
            for &latent in codes.latents() {
                self.fired[latent as usize] = true;
            }
            fired.codes += codes.n_codes();
            let smallest = codes.values().iter().copied().chain(fired.smallest).reduce(f32::min);
            fired.smallest = smallest;
        }
        fired
    }

    fn count_fired(&mut self, rows: usize) {
        for (tokens, fired) in self.tokens_since_fired.iter_mut().zip(&mut self.fired) {
            *tokens = if std::mem::take(fired) { 0 } else { *tokens + rows as i64 };
        }
    }

    fn fired(&self) -> Vec<u8> {
        self.fired.iter().copied().map(u8::from).collect()
    }

    fn set_fired(&mut self, fired: &[u8]) {
        for (to, fired) in self.fired.iter_mut().zip(fired) {
            *to = *fired > 0;
        }
    }

    fn forget_fired(&mut self) {
        self.fired.fill(false);
    }

    fn dead(&self) -> usize {
        self.dead_latents().len()
    }

    fn subtracts_bias(&self) -> bool {
        !self.shape.transcode
    }

    fn complete_bias_gradient(&mut self, direct: bool) {
        let Shape { num_latents, d_in, transcode, .. } = self.shape;
        let sums = &mut self.sums;
        for (bias, touched) in sums.encoder_bias.iter_mut().zip(&sums.touched) {
            if !touched {
                *bias = 0.0;
            }
        }
        if !direct {
            self.decoder_bias_sum.fill(0.0);
        }
        if transcode {
            return;
        }
        // b_dec lowers each pre-activation by W_enc of it.
        let touched = sums.encoder_bias.iter().enumerate().filter(|(_, bias)| **bias != 0.0);
        let row = touched.map(|(latent, bias)| (FeatureId(latent as u32), -bias));
        let mut codes = SparseCodes::new(num_latents);
        if codes.push_row(row).is_err() {
            // A gradient that overflowed: the norm is to tell.
            self.decoder_bias_sum.fill(f32::NAN);
            return;
        }
        let weight = Weights::from_f32(num_latents, d_in, &self.parameters.encoder_weight);
        let decoder = Decoder { weight, bias: &self.decoder_bias_sum };
        self.decoded.resize(d_in, 0.0);
        let out = view_mut(d_in, &mut self.decoded);
        kernels::decode(Compute::default(), &decoder, &codes, &mut self.scratch, out);
        self.decoder_bias_sum.copy_from_slice(&self.decoded);
    }

    fn gradient_squares(&mut self) -> [f64; 2] {
        let Shape { d_in, unit_rows, .. } = self.shape;
        let sums = &self.sums;
        // Squares by row, then in the order of the rows.
        let touched = &sums.touched;
        let encoder = sums.encoder_weight.par_chunks(d_in).zip(touched);
        let encoder: Vec<f64> = encoder
            .with_min_len(16)
            .map(|(row, touched)| if *touched { linear::square(row) } else { 0.0 })
            .collect();
        let rows = self.parameters.decoder_weight.par_chunks(d_in);
        let decoder = sums.decoder_weight.par_chunks(d_in).zip(rows).zip(touched).zip(&mut self.along);
        let decoder: Vec<f64> = decoder
            .with_min_len(16)
            .map(|(((gradient, row), touched), along)| {
                *along = 0.0;
                if !*touched {
                    return 0.0;
                }
                if !unit_rows {
                    return linear::square(gradient);
                }
                let (square, dot, length) = linear::square_beside(gradient, row);
                *along = dot as f32;
                let along = f64::from(*along);
                (square - 2.0 * along * dot + along * along * length).max(0.0)
            })
            .collect();
        let skip = self.skip_sum.as_ref().map_or(0.0, |sum| linear::squares(sum, d_in, None));
        let of_latents = encoder.iter().sum::<f64>() + decoder.iter().sum::<f64>();
        [of_latents + linear::square(&sums.encoder_bias), linear::square(&self.decoder_bias_sum) + skip]
    }

    fn update(&mut self, rates: Rates) {
        let Shape { d_in, unit_rows, .. } = self.shape;
        let SaeTensors { encoder_weight, encoder_bias, decoder_weight, decoder_bias, skip_weight, .. } =
            &mut self.parameters;
        let GradientSums {
            encoder_weight: d_encoder, encoder_bias: d_bias, decoder_weight: d_decoder, ..
        } = &self.sums;
        let touched = Some(&self.sums.touched[..]);
        let plain = |numbers, width, gradients| Parameter {
            numbers,
            width,
            gradients,
            touched: None,
            along: None,
            unit_rows: false,
        };
        let [on_encoder, on_bias, on_decoder, on_decoder_bias, rest @ ..] = &mut self.moments[..] else {
            unreachable!("moments of four parameters at least");
        };
        on_encoder.step(Parameter { touched, ..plain(encoder_weight, d_in, d_encoder) }, rates);
        on_bias.step(plain(encoder_bias, VECTOR, d_bias), rates);
        let along = unit_rows.then_some(&self.along[..]);
        on_decoder
            .step(Parameter { touched, along, unit_rows, ..plain(decoder_weight, d_in, d_decoder) }, rates);
        on_decoder_bias.step(plain(decoder_bias, VECTOR, &self.decoder_bias_sum), rates);
        if let (Some(moments), Some(weight), Some(sum)) = (rest.first_mut(), skip_weight, &self.skip_sum) {
            moments.step(plain(weight, d_in, sum), rates);
        }
    }

    fn clear_gradients(&mut self) {
        self.sums.clear();
        self.decoder_bias_sum.fill(0.0);
        if let Some(sum) = &mut self.skip_sum {
            sum.fill(0.0);
        }
    }

    fn all_reduce(&self, team: &dyn Collective, rows: &mut Self::Rows) -> Result<(), CollectiveError> {
        team.all_reduce(NumbersMut::F32(slice_mut(rows)), Reduction::Sum)
    }

    fn all_reduce_gradients(&mut self, team: &dyn Collective) -> Result<(), CollectiveError> {
        let d_in = self.shape.d_in;
        let mut touched: Vec<u8> = self.sums.touched.iter().copied().map(u8::from).collect();
        team.all_reduce(NumbersMut::U8(&mut touched), Reduction::Max)?;
        let latents: Vec<usize> = (0..touched.len()).filter(|&latent| touched[latent] > 0).collect();
        let mut packed = Vec::new();
        for latents in latents.chunks(PACKED / (2 * d_in + 1) + 1) {
            let GradientSums { encoder_weight, encoder_bias, decoder_weight, touched, .. } = &mut self.sums;
            let width = 2 * d_in + 1;
            packed.clear();
            packed.resize(latents.len() * width, 0.0_f32);
            packed.par_chunks_mut(width).zip(latents).filter(|(_, latent)| touched[**latent]).for_each(
                |(to, &latent)| {
                    to[..d_in].copy_from_slice(&encoder_weight[latent * d_in..][..d_in]);
                    to[d_in..2 * d_in].copy_from_slice(&decoder_weight[latent * d_in..][..d_in]);
                    to[2 * d_in] = encoder_bias[latent];
                },
            );
            team.all_reduce(NumbersMut::F32(&mut packed), Reduction::Sum)?;
            for (from, &latent) in packed.chunks(width).zip(latents) {
                encoder_weight[latent * d_in..][..d_in].copy_from_slice(&from[..d_in]);
                decoder_weight[latent * d_in..][..d_in].copy_from_slice(&from[d_in..2 * d_in]);
                encoder_bias[latent] = from[2 * d_in];
                touched[latent] = true;
            }
        }
        self.all_reduce_bias_gradient(team)?;
        match &mut self.skip_sum {
            Some(sum) => team.all_reduce(NumbersMut::F32(sum), Reduction::Sum),
            None => Ok(()),
        }
    }

    fn all_reduce_bias_gradient(&mut self, team: &dyn Collective) -> Result<(), CollectiveError> {
        team.all_reduce(NumbersMut::F32(&mut self.decoder_bias_sum), Reduction::Sum)
    }

    fn arrays(&self) -> Vec<(String, Vec<usize>, Array<'_>)> {
        let Shape { num_latents, d_in, .. } = self.shape;
        let SaeTensors { encoder_weight, encoder_bias, decoder_weight, decoder_bias, skip_weight, .. } =
            &self.parameters;
        let parameters =
            [encoder_weight, encoder_bias, decoder_weight, decoder_bias].into_iter().chain(skip_weight);
        let mut arrays =
            vec![("tokens_since_fired".to_owned(), vec![num_latents], Array::I64(&self.tokens_since_fired))];
        for ((name, shape), numbers) in NAMES.iter().zip(shapes(num_latents, d_in)).zip(parameters) {
            arrays.push((format!("parameter.{name}"), shape, Array::F32(numbers)));
        }
        for (name, moments) in NAMES.iter().zip(&self.moments) {
            let of_moments = moments.arrays().into_iter();
            arrays
                .extend(of_moments.map(|(moment, shape, array)| (format!("{moment}.{name}"), shape, array)));
        }
        arrays
    }

    fn arrays_mut(&mut self) -> Vec<(String, Vec<usize>, ArrayMut<'_>)> {
        let Shape { num_latents, d_in, .. } = self.shape;
        let SaeTensors { encoder_weight, encoder_bias, decoder_weight, decoder_bias, skip_weight, .. } =
            &mut self.parameters;
        let parameters =
            [encoder_weight, encoder_bias, decoder_weight, decoder_bias].into_iter().chain(skip_weight);
        let mut arrays = vec![(
            "tokens_since_fired".to_owned(),
            vec![num_latents],
            ArrayMut::I64(&mut self.tokens_since_fired),
        )];
        for ((name, shape), numbers) in NAMES.iter().zip(shapes(num_latents, d_in)).zip(parameters) {
            arrays.push((format!("parameter.{name}"), shape, ArrayMut::F32(numbers)));
        }
        for (name, moments) in NAMES.iter().zip(&mut self.moments) {
            let of_moments = moments.arrays_mut().into_iter();
            arrays
                .extend(of_moments.map(|(moment, shape, array)| (format!("{moment}.{name}"), shape, array)));
        }
        arrays
    }

    fn gradients(&self) -> Result<SparseGradients, TrainerError> {
        let Shape { num_latents, d_in, .. } = self.shape;
        let sums = &self.sums;
        let latents: Vec<usize> = (0..num_latents).filter(|&latent| sums.touched[latent]).collect();
        let rows = |numbers: &[f32], width: usize| -> Vec<f32> {
            latents.iter().flat_map(|latent| &numbers[latent * width..][..width]).copied().collect()
        };
        Ok(SparseGradients {
            encoder_weight: rows(&sums.encoder_weight, d_in),
            encoder_bias: rows(&sums.encoder_bias, 1),
            decoder_weight: rows(&sums.decoder_weight, d_in),
            decoder_bias: self.decoder_bias_sum.clone(),
            skip_weight: self.skip_sum.clone(),
            latents: latents.iter().map(|&latent| latent as i64).collect(),
        })
    }

    fn set_gradients(&mut self, gradients: &SparseGradients) {
        let d_in = self.shape.d_in;
        self.clear_gradients();
        for (index, &latent) in gradients.latents.iter().enumerate() {
            let latent = latent as usize;
            let copy = |to: &mut [f32], from: &[f32], width: usize| {
                to[latent * width..][..width].copy_from_slice(&from[index * width..][..width]);
            };
            copy(&mut self.sums.encoder_weight, &gradients.encoder_weight, d_in);
            copy(&mut self.sums.encoder_bias, &gradients.encoder_bias, 1);
            copy(&mut self.sums.decoder_weight, &gradients.decoder_weight, d_in);
            self.sums.touched[latent] = true;
        }
        self.decoder_bias_sum.copy_from_slice(&gradients.decoder_bias);
        self.skip_sum.clone_from(&gradients.skip_weight);
    }

    fn tensors(&self) -> Result<SaeTensors, TrainerError> {
        Ok(self.parameters.clone())
    }

    fn set_tensors(&mut self, tensors: &SaeTensors) {
        self.parameters.clone_from(tensors);
    }
}

fn view(width: usize, numbers: &[f32]) -> ArrayView2<'_, f32> {
    ArrayView2::from_shape((numbers.len() / width, width), numbers).expect("whole rows")
}

fn view_mut(width: usize, numbers: &mut [f32]) -> ArrayViewMut2<'_, f32> {
    ArrayViewMut2::from_shape((numbers.len() / width, width), numbers).expect("whole rows")
}
