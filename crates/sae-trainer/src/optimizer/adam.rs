//! Adam: `m += 0.1 (g - m)`, `v += 0.001 (g² - v)`, `p -= lr / (1 - 0.9^t) · m / (sqrt(v / (1 - 0.999^t)) + 1e-8)`.

use rayon::prelude::*;
use tch::{Tensor, no_grad};

use super::{Parameter, RowGradient, Rule, blocks, update_rows};
use crate::backend::Rates;
use crate::state::{Array, ArrayMut};

pub(super) const BETA_1: f64 = 0.9;
pub(super) const BETA_2: f64 = 0.999;
pub(super) const EPSILON: f64 = 1e-8;

/// The constants of a step.
#[derive(Clone, Copy, Debug)]
pub(super) struct Constants {
    /// `lr / (1 - 0.9^t)`.
    pub(super) step_size: f32,
    /// `1 / sqrt(1 - 0.999^t)`.
    pub(super) root_correction: f32,
}

impl Constants {
    pub(super) fn new(rates: Rates) -> Self {
        let steps = i32::try_from(rates.step).unwrap_or(i32::MAX);
        Self {
            step_size: (rates.lr / (1.0 - BETA_1.powi(steps))) as f32,
            root_correction: (1.0 / (1.0 - BETA_2.powi(steps)).sqrt()) as f32,
        }
    }
}

#[derive(Debug)]
pub(crate) struct Moments {
    shape: Vec<usize>,
    first: Vec<f32>,
    second: Vec<f32>,
}

struct OfRow<'a> {
    first: &'a mut [f32],
    second: &'a mut [f32],
}

impl Rule for OfRow<'_> {
    type Constants = Constants;

    #[inline(always)]
    fn update(self, numbers: &mut [f32], gradient: RowGradient<'_>, constants: Constants) {
        const KEEP_1: f32 = BETA_1 as f32;
        const TAKE_1: f32 = (1.0 - BETA_1) as f32;
        const KEEP_2: f32 = BETA_2 as f32;
        const TAKE_2: f32 = (1.0 - BETA_2) as f32;
        let n = numbers.len();
        let (first, second) = (&mut self.first[..n], &mut self.second[..n]);
        let Constants { step_size, root_correction } = constants;
        if let Some(gradients) = gradient.numbers {
            let gradients = &gradients[..n];
            for i in 0..n {
                let number = numbers[i];
                let g = gradient.factor * (gradients[i] - gradient.along * number);
                let m = KEEP_1 * first[i] + TAKE_1 * g;
                let v = KEEP_2 * second[i] + TAKE_2 * (g * g);
                first[i] = m;
                second[i] = v;
                numbers[i] = number - step_size * m / (v.sqrt() * root_correction + EPSILON as f32);
            }
        } else {
            for i in 0..n {
                let m = KEEP_1 * first[i];
                let v = KEEP_2 * second[i];
                first[i] = m;
                second[i] = v;
                numbers[i] -= step_size * m / (v.sqrt() * root_correction + EPSILON as f32);
            }
        }
    }
}

impl Moments {
    pub(super) fn new(shape: &[usize]) -> Self {
        let len = shape.iter().product();
        Self { shape: shape.to_vec(), first: vec![0.0; len], second: vec![0.0; len] }
    }

    pub(super) fn step(&mut self, parameter: Parameter<'_>, rates: Rates) {
        let width = parameter.width;
        let moments = self
            .first
            .par_chunks_mut(width)
            .zip(self.second.par_chunks_mut(width))
            .map(|(first, second)| OfRow { first, second });
        update_rows(parameter, moments, Constants::new(rates), rates.factor);
    }

    pub(super) fn arrays(&self) -> Vec<(&'static str, Vec<usize>, Array<'_>)> {
        vec![
            ("adam.first", self.shape.clone(), Array::F32(&self.first)),
            ("adam.second", self.shape.clone(), Array::F32(&self.second)),
        ]
    }

    pub(super) fn arrays_mut(&mut self) -> Vec<(&'static str, Vec<usize>, ArrayMut<'_>)> {
        vec![
            ("adam.first", self.shape.clone(), ArrayMut::F32(&mut self.first)),
            ("adam.second", self.shape.clone(), ArrayMut::F32(&mut self.second)),
        ]
    }
}

#[derive(Debug)]
pub(crate) struct TensorMoments {
    first: Tensor,
    second: Tensor,
}

impl TensorMoments {
    pub(super) fn new(parameter: &Tensor) -> Self {
        no_grad(|| Self { first: parameter.zeros_like(), second: parameter.zeros_like() })
    }

    pub(super) fn step(&mut self, parameter: &mut Tensor, gradient: &Tensor, rates: Rates) {
        let Constants { step_size, root_correction } = Constants::new(rates);
        for (start, len) in blocks(parameter) {
            let block = |tensor: &Tensor| tensor.narrow(0, start, len);
            let gradient = block(gradient);
            let (mut first, mut second) = (block(&self.first), block(&self.second));
            let _ = first.g_mul_scalar_(BETA_1).g_add_(&(&gradient * (1.0 - BETA_1)));
            let _ = second.g_mul_scalar_(BETA_2).g_add_(&(gradient.square() * (1.0 - BETA_2)));
            let spread = second.sqrt().g_mul_scalar_(f64::from(root_correction)).g_add_scalar_(EPSILON);
            let _ = block(parameter).addcdiv_(&(first * -f64::from(step_size)), &spread);
        }
    }

    pub(super) fn tensors(&self) -> Vec<(&'static str, &Tensor)> {
        vec![("adam.first", &self.first), ("adam.second", &self.second)]
    }

    pub(super) fn tensors_mut(&mut self) -> Vec<(&'static str, &mut Tensor)> {
        vec![("adam.first", &mut self.first), ("adam.second", &mut self.second)]
    }
}
