//! Signum: `m += 0.05 (g - m)`, `p -= lr · sign(m)` (Bernstein et al. 2018, arXiv 1802.04434, algorithm 2).

use rayon::prelude::*;
use tch::{Tensor, no_grad};

use super::{Parameter, RowGradient, Rule, blocks, update_rows};
use crate::backend::Rates;
use crate::state::{Array, ArrayMut};

const BETA: f64 = 0.95;

#[derive(Debug)]
pub(crate) struct Moments {
    shape: Vec<usize>,
    momentum: Vec<f32>,
}

struct OfRow<'a>(&'a mut [f32]);

impl Rule for OfRow<'_> {
    /// The learning rate.
    type Constants = f32;

    #[inline(always)]
    fn update(self, numbers: &mut [f32], gradient: RowGradient<'_>, lr: f32) {
        const KEEP: f32 = BETA as f32;
        const TAKE: f32 = (1.0 - BETA) as f32;
        let n = numbers.len();
        let momentum = &mut self.0[..n];
        for i in 0..n {
            let mut m = KEEP * momentum[i];
            if let Some(gradients) = gradient.numbers {
                m += TAKE * (gradient.factor * (gradients[i] - gradient.along * numbers[i]));
            }
            momentum[i] = m;
            let sign = f32::from(u8::from(m > 0.0)) - f32::from(u8::from(m < 0.0));
            numbers[i] -= lr * sign;
        }
    }
}

impl Moments {
    pub(super) fn new(shape: &[usize]) -> Self {
        Self { shape: shape.to_vec(), momentum: vec![0.0; shape.iter().product()] }
    }

    pub(super) fn step(&mut self, parameter: Parameter<'_>, rates: Rates) {
        let moments = self.momentum.par_chunks_mut(parameter.width).map(OfRow);
        update_rows(parameter, moments, rates.lr as f32, rates.factor);
    }

    pub(super) fn arrays(&self) -> Vec<(&'static str, Vec<usize>, Array<'_>)> {
        vec![("signum.momentum", self.shape.clone(), Array::F32(&self.momentum))]
    }

    pub(super) fn arrays_mut(&mut self) -> Vec<(&'static str, Vec<usize>, ArrayMut<'_>)> {
        vec![("signum.momentum", self.shape.clone(), ArrayMut::F32(&mut self.momentum))]
    }
}

#[derive(Debug)]
pub(crate) struct TensorMoments {
    momentum: Tensor,
}

impl TensorMoments {
    pub(super) fn new(parameter: &Tensor) -> Self {
        no_grad(|| Self { momentum: parameter.zeros_like() })
    }

    pub(super) fn step(&mut self, parameter: &mut Tensor, gradient: &Tensor, rates: Rates) {
        for (start, len) in blocks(parameter) {
            let block = |tensor: &Tensor| tensor.narrow(0, start, len);
            let mut momentum = block(&self.momentum);
            let _ = momentum.g_mul_scalar_(BETA).g_add_(&(block(gradient) * (1.0 - BETA)));
            let _ = block(parameter).g_sub_(&(momentum.sign() * rates.lr));
        }
    }

    pub(super) fn tensors(&self) -> Vec<(&'static str, &Tensor)> {
        vec![("signum.momentum", &self.momentum)]
    }

    pub(super) fn tensors_mut(&mut self) -> Vec<(&'static str, &mut Tensor)> {
        vec![("signum.momentum", &mut self.momentum)]
    }
}
