//! [`Torch`]: parameters as libtorch tensors, codes as embedding bags through `sae-torch`.
//!
//! Beside the encoder's forward product, which runs in chunks under a byte budget, nothing of size `[tokens, latents]` exists.

use std::ops::Range;

use collectives::{Collective, CollectiveError};
use sae_core::{SaeTensors, SparseCodes};
use sae_torch::{Bags, Parameters};
use tch::{Device, Kind, Tensor, no_grad};

use super::entries::{Entries, not_finite, sparse};
use super::{Backend, Fired, Rates, SparseGradients};
use crate::TrainerError;
use crate::config::{Selection, TrainerConfig};
use crate::distributed::sum_tensor;
use crate::objective::Chain;
use crate::optimizer::{TensorMoments, normalise_rows, remove_parallel};
use crate::state::{Array, ArrayMut};

#[derive(Debug)]
pub(crate) struct Torch {
    transcode: bool,
    unit_rows: bool,
    dense_budget: usize,
    dead_feature_threshold: i64,
    parameters: Parameters,
    /// Moments in the order of [`NAMES`].
    moments: Vec<TensorMoments>,
    gradients: Vec<Tensor>,
    /// `[num_latents]`, i64.
    tokens_since_fired: Tensor,
    /// Latents noted since the last count.
    fired: Vec<Tensor>,
}

/// Parameters in the order of their moments and gradients.
const NAMES: [&str; 5] = ["encoder.weight", "encoder.bias", "W_dec", "b_dec", "W_skip"];

impl Torch {
    /// Puts the parameters on `device`, in `kind`: f32, or f64 where a test wants it.
    pub(crate) fn new(
        config: &TrainerConfig,
        tensors: &SaeTensors,
        device: Device,
        kind: Kind,
    ) -> Result<Self, TrainerError> {
        let (latents, d_in) = (config.num_latents as i64, config.d_in as i64);
        let place = |name: &str, numbers: &[f32], shape: &[i64]| {
            Tensor::f_from_slice(numbers)
                .and_then(|tensor| tensor.f_reshape(shape))
                .and_then(|tensor| tensor.f_to_device(device))
                .and_then(|tensor| tensor.f_to_kind(kind))
                .map_err(|source| TrainerError::Device { what: name.to_owned(), source })
        };
        let skip = tensors.skip_weight.as_ref();
        let parameters = Parameters {
            encoder_weight: place(NAMES[0], &tensors.encoder_weight, &[latents, d_in])?,
            encoder_bias: place(NAMES[1], &tensors.encoder_bias, &[latents])?,
            decoder_weight: place(NAMES[2], &tensors.decoder_weight, &[latents, d_in])?,
            decoder_bias: place(NAMES[3], &tensors.decoder_bias, &[d_in])?,
            skip_weight: skip.map(|skip| place(NAMES[4], skip, &[d_in, d_in])).transpose()?,
        };
        let all = of(&parameters);
        let moments = all.iter().map(|parameter| TensorMoments::new(config.optimizer, parameter)).collect();
        let gradients = all.iter().map(|parameter| no_grad(|| parameter.zeros_like())).collect();
        Ok(Self {
            transcode: config.transcode,
            unit_rows: config.unit_rows(),
            dense_budget: config.dense_budget,
            dead_feature_threshold: i64::try_from(config.dead_feature_threshold).unwrap_or(i64::MAX),
            moments,
            gradients,
            tokens_since_fired: Tensor::zeros([latents], (Kind::Int64, device)),
            fired: Vec::new(),
            parameters,
        })
    }

    /// In the order of the parameters.
    #[cfg(test)]
    pub(crate) fn gradient_tensors(&self) -> &[Tensor] {
        &self.gradients
    }

    /// What the encoder multiplies: `x`, less `b_dec` unless it is a transcoder.
    fn input(&self, x: &Tensor) -> Tensor {
        if self.transcode { x.shallow_clone() } else { x - &self.parameters.decoder_bias }
    }

    /// Ranges of rows whose dense pre-activations fit the budget, at least one row each.
    fn chunks(&self, n: i64, latents: i64) -> impl Iterator<Item = (i64, i64)> + use<> {
        let row_bytes = latents as usize * self.parameters.encoder_weight.kind().elt_size_in_bytes();
        let chunk =
            i64::try_from(self.dense_budget / row_bytes.max(1)).unwrap_or(i64::MAX).clamp(1, n.max(1));
        (0..n).step_by(chunk as usize).map(move |start| (start, chunk.min(n - start)))
    }

    /// The `count` largest activations of each row, descending, as `[n, count]`.
    fn largest_per_row(&self, input: &Tensor, weight: &Tensor, bias: &Tensor, count: i64) -> [Tensor; 2] {
        let columns = weight.tr();
        let parts: Vec<(Tensor, Tensor)> = self
            .chunks(input.size()[0], bias.size()[0])
            .map(|(start, len)| {
                let dense = bias.addmm(&input.narrow(0, start, len), &columns).relu_();
                dense.topk(count, 1, true, true)
            })
            .collect();
        let join =
            |of: fn(&(Tensor, Tensor)) -> &Tensor| Tensor::cat(&parts.iter().map(of).collect::<Vec<_>>(), 0);
        [join(|part| &part.1), join(|part| &part.0)]
    }

    /// The `limit` largest activations of all rows together, descending.
    fn largest_in_all(&self, input: &Tensor, limit: i64) -> Entries {
        let Parameters { encoder_weight, encoder_bias, .. } = &self.parameters;
        let (n, latents) = (input.size()[0], encoder_bias.size()[0]);
        let columns = encoder_weight.tr();
        let mut places: Option<Tensor> = None;
        let mut values: Option<Tensor> = None;
        for (start, len) in self.chunks(n, latents) {
            let dense = encoder_bias.addmm(&input.narrow(0, start, len), &columns).relu_().reshape([-1]);
            let (largest, at) = dense.topk(limit.min(len * latents), 0, true, true);
            let at = at + start * latents;
            let (all_values, all_places) = match (&values, &places) {
                (Some(values), Some(places)) => {
                    (Tensor::cat(&[values, &largest], 0), Tensor::cat(&[places, &at], 0))
                }
                _ => (largest, at),
            };
            let (kept, order) = all_values.topk(limit.min(all_values.size()[0]), 0, true, true);
            places = Some(all_places.index_select(0, &order));
            values = Some(kept);
        }
        let (Some(places), Some(values)) = (places, values) else {
            unreachable!("a batch has rows");
        };
        let rows = places.divide_scalar_mode(latents, "floor").to_kind(Kind::Int64);
        Entries { rows, indices: places.remainder(latents), values }
    }
}

fn of(parameters: &Parameters) -> Vec<&Tensor> {
    let Parameters { encoder_weight, encoder_bias, decoder_weight, decoder_bias, skip_weight } = parameters;
    [encoder_weight, encoder_bias, decoder_weight, decoder_bias].into_iter().chain(skip_weight).collect()
}

fn of_mut(parameters: &mut Parameters) -> Vec<&mut Tensor> {
    let Parameters { encoder_weight, encoder_bias, decoder_weight, decoder_bias, skip_weight } = parameters;
    [encoder_weight, encoder_bias, decoder_weight, decoder_bias].into_iter().chain(skip_weight).collect()
}

fn shape(tensor: &Tensor) -> Vec<usize> {
    tensor.size().iter().map(|&length| length as usize).collect()
}

impl Backend for Torch {
    type Rows = Shared;
    type Codes = Bags;

    fn device(&self) -> Device {
        self.parameters.encoder_weight.device()
    }

    fn latents(&self) -> usize {
        self.parameters.encoder_bias.size()[0] as usize
    }

    fn rows(&self, tensor: &Tensor) -> Shared {
        Shared(tensor.to_kind(self.parameters.encoder_weight.kind()))
    }

    fn part(rows: &Shared, range: Range<usize>) -> Shared {
        Shared(rows.0.narrow(0, range.start as i64, range.len() as i64))
    }

    fn len(rows: &Shared) -> usize {
        rows.0.size()[0] as usize
    }

    fn zeros(&self, n: usize) -> Shared {
        let d_in = self.parameters.decoder_bias.size()[0];
        Shared(Tensor::zeros([n as i64, d_in], (self.parameters.decoder_bias.kind(), self.device())))
    }

    fn column_sums(&self, y: &Shared, weights: Option<&Shared>) -> (Vec<f64>, f64) {
        let y = &y.0;
        let sum = |rows: &Tensor| rows.sum_dim_intlist([0_i64].as_slice(), false, Kind::Double);
        let (sums, total) = match weights {
            None => (sum(y), y.size()[0] as f64),
            Some(weights) => (sum(&(y * &weights.0)), weights.0.sum(Kind::Double).double_value(&[])),
        };
        let mut numbers = vec![0.0; sums.numel()];
        sums.to_device(Device::Cpu).copy_data(&mut numbers, sums.numel());
        (numbers, total)
    }

    fn squares_around(&self, y: &Shared, mean: &[f64], weights: Option<&Shared>) -> f64 {
        let mean = Tensor::from_slice(mean).to_device(self.device()).to_kind(y.0.kind());
        self.squares(&Shared(&y.0 - mean), weights)
    }

    fn encode(&mut self, x: &Shared, chain: &Chain) -> Result<Vec<Bags>, f64> {
        let input = self.input(&x.0);
        let n = input.size()[0];
        let Parameters { encoder_weight, encoder_bias, .. } = &self.parameters;
        let (entries, among_k) = match chain.selection {
            Selection::TopK => {
                let count = chain.count as i64;
                let [indices, values] = self.largest_per_row(&input, encoder_weight, encoder_bias, count);
                let options = (Kind::Int64, self.device());
                let rows = Tensor::arange(n, options).unsqueeze(1).expand([n, count], false).reshape([-1]);
                let among_k = Tensor::arange(count, options).lt(chain.k as i64);
                let among_k = among_k.unsqueeze(0).expand([n, count], false).reshape([-1]);
                (Entries { rows, indices: indices.reshape([-1]), values: values.reshape([-1]) }, among_k)
            }
            Selection::BatchTopK => {
                let entries = self.largest_in_all(&input, n * chain.count as i64);
                let rank = Tensor::arange(entries.values.size()[0], (Kind::Int64, self.device()));
                let among_k = rank.lt(n * chain.k as i64);
                // Into the order of the rows.
                let order = entries.rows.argsort(0, false);
                let of = |tensor: &Tensor| tensor.index_select(0, &order);
                let in_order = Entries {
                    rows: of(&entries.rows),
                    indices: of(&entries.indices),
                    values: of(&entries.values),
                };
                (in_order, of(&among_k))
            }
        };
        if let Some(value) = not_finite(&entries.values) {
            return Err(value);
        }
        let on = entries.values.gt(0.0);
        let mut sets = Vec::new();
        let mut start = 0;
        for &end in &chain.prefixes {
            let mut mask = on.logical_and(&among_k);
            if chain.prefixes.len() > 1 {
                let within = entries.indices.ge(start).logical_and(&entries.indices.lt(end as i64));
                mask = mask.logical_and(&within);
            }
            sets.push(entries.masked(&mask).bags(n));
            start = end as i64;
        }
        if chain.multi_topk {
            sets.push(entries.masked(&on.logical_and(&among_k.logical_not())).bags(n));
        }
        Ok(sets)
    }

    fn encode_dead(&mut self, x: &Shared, count: usize) -> Result<Bags, f64> {
        let input = self.input(&x.0);
        let (n, count) = (input.size()[0], count as i64);
        let dead = self.tokens_since_fired.gt(self.dead_feature_threshold).nonzero().squeeze_dim(1);
        let weight = self.parameters.encoder_weight.index_select(0, &dead);
        let bias = self.parameters.encoder_bias.index_select(0, &dead);
        let [indices, values] = self.largest_per_row(&input, &weight, &bias, count);
        if let Some(value) = not_finite(&values) {
            return Err(value);
        }
        let rows = Tensor::arange(n, (Kind::Int64, self.device())).unsqueeze(1).expand([n, count], false);
        let entries = Entries {
            rows: rows.reshape([-1]),
            indices: dead.index_select(0, &indices.reshape([-1])),
            values: values.reshape([-1]),
        };
        let on = entries.values.gt(0.0);
        Ok(entries.masked(&on).bags(n))
    }

    fn find(&mut self, x: &Shared, selection: Selection, count: usize) -> Result<SparseCodes, f64> {
        let input = self.input(&x.0);
        let Parameters { encoder_weight, encoder_bias, .. } = &self.parameters;
        let count = (count as i64).min(encoder_bias.size()[0]);
        let (n, latents) = (input.size()[0], encoder_bias.size()[0]);
        let (rows, indices, values) = match selection {
            Selection::TopK => {
                let [indices, values] = self.largest_per_row(&input, encoder_weight, encoder_bias, count);
                let rows =
                    Tensor::arange(n, (Kind::Int64, self.device())).unsqueeze(1).expand([n, count], false);
                (rows, indices, values)
            }
            Selection::BatchTopK => {
                let Entries { rows, indices, values } = self.largest_in_all(&input, n * count);
                (rows, indices, values)
            }
        };
        sparse(n as usize, latents as usize, &rows, &indices, &values)
    }

    fn find_dead(&mut self, x: &Shared, count: usize) -> Result<SparseCodes, f64> {
        let input = self.input(&x.0);
        let (n, latents) = (input.size()[0], self.parameters.encoder_bias.size()[0] as usize);
        let dead = self.tokens_since_fired.gt(self.dead_feature_threshold).nonzero().squeeze_dim(1);
        let count = (count as i64).min(dead.size()[0]);
        let options = (Kind::Int64, self.device());
        if count == 0 {
            let none = Tensor::empty([0], options);
            return sparse(n as usize, latents, &none, &none, &none.to_kind(Kind::Float));
        }
        let weight = self.parameters.encoder_weight.index_select(0, &dead);
        let bias = self.parameters.encoder_bias.index_select(0, &dead);
        let [indices, values] = self.largest_per_row(&input, &weight, &bias, count);
        let rows = Tensor::arange(n, options).unsqueeze(1).expand([n, count], false);
        let latent = dead.index_select(0, &indices.reshape([-1]));
        sparse(n as usize, latents, &rows, &latent, &values)
    }

    fn adopt(&self, codes: SparseCodes) -> Bags {
        let device = self.device();
        let lengths = codes.rows().enumerate();
        let rows: Vec<i64> =
            lengths.flat_map(|(row, codes)| std::iter::repeat_n(row as i64, codes.len())).collect();
        let latents: Vec<i64> = codes.latents().iter().copied().map(i64::from).collect();
        let place = |tensor: Tensor| tensor.to_device(device);
        let values = place(Tensor::from_slice(codes.values())).to_kind(self.parameters.encoder_bias.kind());
        let (rows, latents) = (place(Tensor::from_slice(&rows)), place(Tensor::from_slice(&latents)));
        Bags::from_entries(codes.n_rows(), rows, latents, values)
    }

    fn start(&self, x: &Shared) -> Shared {
        let bias = &self.parameters.decoder_bias;
        Shared(match &self.parameters.skip_weight {
            None => bias.unsqueeze(0).expand_as(&x.0).copy(),
            Some(skip) => bias.addmm(&x.0, &skip.tr()),
        })
    }

    fn add_decoded(&mut self, codes: &Bags, to: &mut Shared) {
        to.0 = &to.0 + codes.sum_rows(&self.parameters.decoder_weight);
    }

    fn error(&self, decoded: &Shared, y: &Shared, weights: Option<&Shared>) -> (Shared, f64) {
        let error = Shared(&decoded.0 - &y.0);
        let squares = self.squares(&error, weights);
        (error, squares)
    }

    fn squares(&self, rows: &Shared, weights: Option<&Shared>) -> f64 {
        let squares = rows.0.square();
        let squares = match weights {
            None => squares,
            Some(weights) => squares * &weights.0,
        };
        squares.sum(Kind::Double).double_value(&[])
    }

    fn scaled(&self, rows: &Shared, weights: Option<&Shared>, factor: f64) -> Shared {
        Shared(match weights {
            None => &rows.0 * factor,
            Some(weights) => &rows.0 * (&weights.0 * factor),
        })
    }

    fn add(&self, to: &mut Shared, rows: &Shared) {
        to.0 = &to.0 + &rows.0;
    }

    fn accumulate(&mut self, x: &Shared, sets: &[Bags], upstream: &[Shared]) {
        let input = self.input(&x.0);
        let upstream: Vec<Tensor> = upstream.iter().map(|rows| rows.0.shallow_clone()).collect();
        sae_torch::accumulate_gradients(&self.parameters, &input, sets, &upstream, &mut self.gradients);
    }

    fn accumulate_start(&mut self, x: &Shared, upstream: &Shared) {
        let sum = upstream.0.sum_dim_intlist([0_i64].as_slice(), false, None::<Kind>);
        let _ = self.gradients[3].g_add_(&sum);
        if let Some(gradient) = self.gradients.get_mut(4) {
            let _ = gradient.addmm_(&upstream.0.tr(), &x.0);
        }
    }

    fn note_fired(&mut self, sets: &[Bags]) -> Fired {
        let mut fired = Fired { codes: 0, smallest: None };
        for bags in sets.iter().filter(|bags| !bags.is_empty()) {
            self.fired.push(bags.indices().shallow_clone());
            fired.codes += bags.len();
            let smallest = bags.values().min().double_value(&[]) as f32;
            fired.smallest = Some(fired.smallest.map_or(smallest, |other| other.min(smallest)));
        }
        fired
    }

    fn count_fired(&mut self, rows: usize) {
        self.tokens_since_fired += rows as i64;
        for indices in self.fired.drain(..) {
            let _ = self.tokens_since_fired.index_fill_(0, &indices, 0);
        }
    }

    fn fired(&self) -> Vec<u8> {
        let latents = self.tokens_since_fired.size()[0];
        let mut mask = Tensor::zeros([latents], (Kind::Uint8, self.device()));
        for indices in &self.fired {
            let _ = mask.index_fill_(0, indices, 1);
        }
        let mut fired = vec![0; latents as usize];
        mask.to_device(Device::Cpu).copy_data(&mut fired, latents as usize);
        fired
    }

    fn set_fired(&mut self, fired: &[u8]) {
        let latents: Vec<i64> =
            (0..fired.len()).filter(|&latent| fired[latent] > 0).map(|latent| latent as i64).collect();
        self.fired = vec![Tensor::from_slice(&latents).to_device(self.device())];
    }

    fn forget_fired(&mut self) {
        self.fired.clear();
    }

    fn dead(&self) -> usize {
        let dead = self.tokens_since_fired.gt(self.dead_feature_threshold);
        dead.sum(Kind::Int64).int64_value(&[]) as usize
    }

    fn subtracts_bias(&self) -> bool {
        !self.transcode
    }

    fn complete_bias_gradient(&mut self, direct: bool) {
        if !direct {
            let _ = self.gradients[3].zero_();
        }
        if !self.transcode {
            let through = self.parameters.encoder_weight.tr().mv(&self.gradients[1]);
            let _ = self.gradients[3].g_sub_(&through);
        }
    }

    fn gradient_squares(&mut self) -> [f64; 2] {
        if self.unit_rows {
            remove_parallel(&self.parameters.decoder_weight, &mut self.gradients[2]);
        }
        let squares = |gradients: &[Tensor]| {
            let of_each = gradients.iter().map(|tensor| tensor.norm().to_kind(Kind::Double).square());
            of_each.sum::<Tensor>().double_value(&[])
        };
        let (of_latents, others) = self.gradients.split_at(3);
        [squares(of_latents), squares(others)]
    }

    fn update(&mut self, rates: Rates) {
        let parameters = of_mut(&mut self.parameters).into_iter();
        for ((parameter, gradient), moments) in parameters.zip(&mut self.gradients).zip(&mut self.moments) {
            if rates.factor != 1.0 {
                let _ = gradient.g_mul_scalar_(rates.factor);
            }
            moments.step(parameter, gradient, rates);
        }
        if self.unit_rows {
            normalise_rows(&mut self.parameters.decoder_weight);
        }
    }

    fn clear_gradients(&mut self) {
        for gradient in &mut self.gradients {
            let _ = gradient.zero_();
        }
    }

    fn all_reduce(&self, team: &dyn Collective, rows: &mut Shared) -> Result<(), CollectiveError> {
        sum_tensor(team, &mut rows.0)
    }

    /// Of all latents: nearly all have gradients where a device is worth while.
    fn all_reduce_gradients(&mut self, team: &dyn Collective) -> Result<(), CollectiveError> {
        self.gradients.iter_mut().try_for_each(|gradient| sum_tensor(team, gradient))
    }

    fn all_reduce_bias_gradient(&mut self, team: &dyn Collective) -> Result<(), CollectiveError> {
        sum_tensor(team, &mut self.gradients[3])
    }

    fn arrays(&self) -> Vec<(String, Vec<usize>, Array<'_>)> {
        let array = |name: String, tensor| (name, shape(tensor), Array::Tensor(tensor));
        let mut arrays = vec![array("tokens_since_fired".to_owned(), &self.tokens_since_fired)];
        for (name, tensor) in NAMES.iter().zip(of(&self.parameters)) {
            arrays.push(array(format!("parameter.{name}"), tensor));
        }
        for (name, moments) in NAMES.iter().zip(&self.moments) {
            let tensors = moments.tensors().into_iter();
            arrays.extend(tensors.map(|(moment, tensor)| array(format!("{moment}.{name}"), tensor)));
        }
        arrays
    }

    fn arrays_mut(&mut self) -> Vec<(String, Vec<usize>, ArrayMut<'_>)> {
        fn array(name: String, tensor: &mut Tensor) -> (String, Vec<usize>, ArrayMut<'_>) {
            (name, shape(tensor), ArrayMut::Tensor(tensor))
        }
        let mut arrays = vec![array("tokens_since_fired".to_owned(), &mut self.tokens_since_fired)];
        for (name, tensor) in NAMES.iter().zip(of_mut(&mut self.parameters)) {
            arrays.push(array(format!("parameter.{name}"), tensor));
        }
        for (name, moments) in NAMES.iter().zip(&mut self.moments) {
            let tensors = moments.tensors_mut().into_iter();
            arrays.extend(tensors.map(|(moment, tensor)| array(format!("{moment}.{name}"), tensor)));
        }
        arrays
    }

    fn gradients(&self) -> Result<SparseGradients, TrainerError> {
        let read = |at: usize| read_back(NAMES[at], &self.gradients[at]);
        let latents = self.parameters.encoder_bias.size()[0];
        Ok(SparseGradients {
            latents: (0..latents).collect(),
            encoder_weight: read(0)?,
            encoder_bias: read(1)?,
            decoder_weight: read(2)?,
            decoder_bias: read(3)?,
            skip_weight: if self.gradients.len() > 4 { Some(read(4)?) } else { None },
        })
    }

    fn set_gradients(&mut self, gradients: &SparseGradients) {
        self.clear_gradients();
        let device = self.device();
        let latents = Tensor::from_slice(&gradients.latents).to_device(device);
        let rows = [&gradients.encoder_weight, &gradients.encoder_bias, &gradients.decoder_weight];
        for (gradient, rows) in self.gradients.iter_mut().zip(rows) {
            let mut shape = gradient.size();
            shape[0] = latents.size()[0];
            let rows = Tensor::from_slice(rows).reshape(shape).to_device(device).to_kind(gradient.kind());
            let _ = gradient.index_copy_(0, &latents, &rows);
        }
        let whole = [Some(&gradients.decoder_bias), gradients.skip_weight.as_ref()];
        for (gradient, numbers) in self.gradients[3..].iter_mut().zip(whole.into_iter().flatten()) {
            gradient.copy_(&Tensor::from_slice(numbers).reshape(gradient.size()));
        }
    }

    fn tensors(&self) -> Result<SaeTensors, TrainerError> {
        let parameters = of(&self.parameters);
        let read = |at: usize| read_back(NAMES[at], parameters[at]);
        Ok(SaeTensors {
            encoder_weight: read(0)?,
            encoder_bias: read(1)?,
            decoder_weight: read(2)?,
            decoder_bias: read(3)?,
            skip_weight: if parameters.len() > 4 { Some(read(4)?) } else { None },
        })
    }

    fn set_tensors(&mut self, tensors: &SaeTensors) {
        let SaeTensors { encoder_weight, encoder_bias, decoder_weight, decoder_bias, skip_weight } = tensors;
        let numbers =
            [encoder_weight, encoder_bias, decoder_weight, decoder_bias].into_iter().chain(skip_weight);
        no_grad(|| {
            for (parameter, numbers) in of_mut(&mut self.parameters).into_iter().zip(numbers) {
                parameter.copy_(&Tensor::from_slice(numbers).reshape(parameter.size()));
            }
        });
    }
}

/// Rows whose clones share memory; nothing here changes a tensor in place that another may hold.
#[derive(Debug)]
pub(crate) struct Shared(Tensor);

impl Clone for Shared {
    fn clone(&self) -> Self {
        Self(self.0.shallow_clone())
    }
}

fn read_back(name: &str, tensor: &Tensor) -> Result<Vec<f32>, TrainerError> {
    let flat = no_grad(|| tensor.f_to_device(Device::Cpu)?.f_to_kind(Kind::Float)?.f_reshape([-1]));
    flat.and_then(Vec::<f32>::try_from)
        .map_err(|source| TrainerError::Device { what: name.to_owned(), source })
}
