//! [`QuantisedMatrix`] and [`Quantisation`]: weights of 8 bits, and what they cost in accuracy.

use tch::{Device, Kind, Tensor};

/// How a model's large matrices are kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WeightPrecision {
    /// In the dtype the model computes in.
    #[default]
    Full,
    /// As integers of 8 bits with one f32 scale per output: for models that are only read, in a quarter of the memory of f32.
    Int8,
}

/// The largest code: codes lie in `-127..=127`.
const LARGEST: f64 = 127.0;

/// Entries quantised at a time: a megabyte of f32. With four the heap grew to 2.5 times the codes of matrices of 1 to 4 M
/// entries, with one to 1.2 times.
const BLOCK: i64 = 1 << 18;

/// libtorch's product with 8-bit weights reads whole vector registers of a row and does not check that a row fills them: 64
/// bytes of two-byte numbers are 32. Widths below 8 crashed it.
const PACKED_WIDTH: i64 = 32;

/// A matrix `W [outputs, inputs]` as codes `q` of 8 bits with `Ŵ = s · q`, one scale `s` per output.
///
/// `s = max|W| / 127` over the output's row and `q = round(W / s)`, so that no entry is off by more than `max|W| / 254`
/// (LLM.int8(), arXiv 2208.07339, section 2.1, by rows and without its outliers in 16 bits).
#[derive(Debug)]
pub struct QuantisedMatrix {
    /// `[outputs, inputs]`, i8.
    codes: Tensor,
    /// `[outputs]`, f32.
    scales: Tensor,
    kind: Kind,
}

impl QuantisedMatrix {
    /// Quantises `weight [outputs, inputs]` (finite, of any float dtype) for products in dtype `kind`, and gives the error
    /// ‖W - Ŵ‖/‖W‖ (Frobenius norms; f32 sums over blocks of rows, added in f64; 0 for a matrix of zeros). Ties are rounded to
    /// the even code.
    ///
    /// # Panics
    /// When `weight` is no matrix.
    #[track_caller]
    pub fn new(weight: &Tensor, kind: Kind) -> (Self, f64) {
        Self::on(weight, kind, weight.device())
    }

    /// The same, the codes on another device.
    ///
    /// Goes block by block of rows: with temporaries of a whole matrix, the holes they leave in the heap between one
    /// matrix's codes and the next's came to more than the model unquantised (1.6 GB for one of 1.1 GB in f32).
    #[track_caller]
    pub(crate) fn on(weight: &Tensor, kind: Kind, device: Device) -> (Self, f64) {
        assert_eq!(weight.dim(), 2, "a matrix, got the shape {:?}", weight.size());
        let _guard = tch::no_grad_guard();
        let (outputs, inputs) = (weight.size()[0], weight.size()[1]);
        let codes = Tensor::empty([outputs, inputs], (Kind::Int8, device));
        let scales = Tensor::empty([outputs], (Kind::Float, device));
        let block = (BLOCK / inputs.max(1)).max(1);
        let (mut lost, mut whole) = (0.0, 0.0);
        for start in (0..outputs).step_by(block as usize) {
            let rows = block.min(outputs - start);
            let wide = weight.narrow(0, start, rows).to_device_(device, Kind::Float, false, false);
            let largest = wide.abs().amax([1].as_slice(), true);
            let steps = (largest / LARGEST).clamp_min(f64::from(f32::MIN_POSITIVE));
            let mut rounded = (&wide / &steps).round_().clamp_(-LARGEST, LARGEST);
            codes.narrow(0, start, rows).copy_(&rounded);
            scales.narrow(0, start, rows).copy_(&steps.squeeze_dim(1));
            let _ = rounded.g_mul_(&steps);
            let _ = rounded.g_sub_(&wide);
            let square_sum = |x: &Tensor| x.square().sum(Kind::Float).double_value(&[]);
            lost += square_sum(&rounded);
            whole += square_sum(&wide);
        }
        let error = if whole == 0.0 { 0.0 } else { (lost / whole).sqrt() };
        (Self { codes, scales, kind }, error)
    }

    /// A matrix of zeros that takes no memory, in place of one that is not there.
    pub(crate) fn absent(shape: &[i64; 2], device: Device) -> Self {
        let zeros = |kind, shape: &[i64]| {
            Tensor::zeros([1], (kind, device)).as_strided(shape, vec![0; shape.len()], 0)
        };
        Self { codes: zeros(Kind::Int8, shape), scales: zeros(Kind::Float, &shape[..1]), kind: Kind::Float }
    }

    /// The dtype of its products.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// `Ŵ [outputs, inputs]` in the dtype of its products.
    pub fn dequantised(&self) -> Tensor {
        (self.codes.to_kind(Kind::Float) * self.scales.unsqueeze(1)).to_kind(self.kind)
    }

    /// The bytes its tensors hold: one per entry and four per output.
    pub fn bytes(&self) -> u64 {
        bytes_of(&self.codes, Kind::Int8) + bytes_of(&self.scales, Kind::Float)
    }

    /// `x · Ŵᵀ` of `x [.., inputs]`, which is cast to the dtype of its products.
    ///
    /// Gradients flow to `x`, never to the matrix. A pass that keeps them keeps one copy of the codes in that dtype for
    /// every product until it is run backwards: as much memory as a model that is not quantised. Whoever wants gradients in less
    /// runs a layer at a time, as `lmm-hooks`' `LlavaNext::gradients` does.
    ///
    /// # Panics
    /// When the last dimension of `x` is not the matrix's.
    #[track_caller]
    pub fn forward(&self, x: &Tensor) -> Tensor {
        let (outputs, inputs) = (self.codes.size()[0], self.codes.size()[1]);
        let mut size = x.size();
        assert_eq!(
            size.last(),
            Some(&inputs),
            "vectors of a matrix's {inputs} inputs, got the shape {size:?}"
        );
        let x = x.to_kind(self.kind);
        if self.is_packed_better(&x, inputs) {
            if let Some(last) = size.last_mut() {
                *last = outputs;
            }
            let rows = x.reshape([-1, inputs]);
            let product = rows.internal_weight_int8pack_mm(&self.codes, &self.scales.to_kind(self.kind));
            return product.view(size.as_slice());
        }
        match self.kind {
            // Sums over codes can leave the range of f16.
            Kind::Half => x.linear(&self.dequantised(), None::<Tensor>),
            // Codes are exact in bf16, scaled entries are not; and the scales meet fewer numbers in the product.
            kind => (x.linear(&self.codes.to_kind(kind), None::<Tensor>) * &self.scales).to_kind(kind),
        }
    }

    /// Whether libtorch's own product with 8-bit weights is to be used, rather than dequantising for the call.
    ///
    /// Milliseconds by (dequantised, libtorch's), best of several, libtorch 2.11 on two cores of an AMD EPYC with AVX2, freed
    /// memory kept ([`crate::keep_freed_memory`]):
    ///
    /// | outputs x inputs | rows | f32 | bf16 | f16 |
    /// |---|---|---|---|---|
    /// | 4096 x 4096 | 1 | 9, 16 | 3.3, 0.7 | |
    /// | | 64 | 59, 2028 | 218, 112 | 340, 2148 |
    /// | | 512 | 232, 12176 | 2412, 882 | 1894, 7975 |
    /// | 14336 x 4096 | 1 | 33, 56 | 44, 12 | 99, 76 |
    /// | | 64 | 320, 5236 | 720, 440 | 912, 3486 |
    /// | | 512 | 1202, - | 5935, 2967 | 9225, - |
    ///
    /// On a GPU it is not used: nothing has been measured there.
    fn is_packed_better(&self, x: &Tensor, inputs: i64) -> bool {
        self.codes.device() == Device::Cpu
            && self.kind == Kind::BFloat16
            && x.numel() > 0
            && inputs % PACKED_WIDTH == 0
            // It has no derivative.
            && !x.requires_grad()
    }
}

/// What a tensor takes in the dtype `kind`.
pub(crate) fn bytes_of(tensor: &Tensor, kind: Kind) -> u64 {
    (tensor.numel() * kind.elt_size_in_bytes()) as u64
}

/// What quantising did to the matrices of a model, in the order they were loaded.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize)]
pub struct Quantisation {
    /// Each matrix.
    pub matrices: Vec<MatrixError>,
}

/// What quantising did to one matrix.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct MatrixError {
    /// Its tensor's name.
    pub name: String,
    /// ‖W - Ŵ‖/‖W‖, Frobenius norms.
    pub relative_error: f64,
    /// What it would take in the dtype of the model.
    pub bytes_before: u64,
    /// What it takes.
    pub bytes_after: u64,
}

impl Quantisation {
    /// The mean of the matrices' relative errors; 0 without matrices.
    pub fn mean_error(&self) -> f64 {
        let sum: f64 = self.matrices.iter().map(|matrix| matrix.relative_error).sum();
        sum / (self.matrices.len().max(1) as f64)
    }

    /// The matrix of the largest relative error, the first among equals; `None` without matrices.
    pub fn worst(&self) -> Option<&MatrixError> {
        self.matrices.iter().rev().max_by(|a, b| a.relative_error.total_cmp(&b.relative_error))
    }

    /// What all of them would take in the dtype of the model.
    pub fn bytes_before(&self) -> u64 {
        self.matrices.iter().map(|matrix| matrix.bytes_before).sum()
    }

    /// What they take.
    pub fn bytes_after(&self) -> u64 {
        self.matrices.iter().map(|matrix| matrix.bytes_after).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers without a pattern, rows of different sizes among them.
    fn numbers(rows: i64, cols: i64, seed: f64) -> Tensor {
        let phase = Tensor::arange(rows * cols, (Kind::Double, Device::Cpu)) * 12.9898 + seed;
        let unit = (phase.sin() * 43758.547).frac() - 0.5;
        let sizes = Tensor::arange(rows, (Kind::Double, Device::Cpu)).sin().exp().unsqueeze(1);
        (unit.view([rows, cols]) * sizes).to_kind(Kind::Float)
    }

    fn value(tensor: &Tensor) -> f64 {
        tensor.to_kind(Kind::Double).double_value(&[])
    }

    #[test]
    fn no_entry_is_off_by_more_than_half_a_step() {
        tch::set_num_threads(1);
        let weight = numbers(37, 64, 0.3);
        let _ = weight.get(5).zero_();
        let (quantised, error) = QuantisedMatrix::new(&weight, Kind::Float);
        let off = (quantised.dequantised() - &weight).abs();
        let bound = weight.abs().amax([1].as_slice(), true) / 254.0;
        assert!(value(&(&off - bound * (1.0 + 1e-5)).max()) <= 0.0);
        assert_eq!(value(&off.get(5).max()), 0.0, "a row of zeros stays one");
        assert_eq!(value(&quantised.codes.abs().max()), 127.0);
        let expected = value(&off.norm()) / value(&weight.norm());
        assert!((error - expected).abs() < 1e-6 && (1e-3..1e-2).contains(&error), "{error} {expected}");
        assert_eq!(quantised.bytes(), 37 * 64 + 37 * 4);
        // Rows wider than a block, and a block that is not full.
        for (rows, cols) in [(2, BLOCK + 1), (5, BLOCK / 2)] {
            let weight = numbers(rows, cols, 0.4);
            let (quantised, error) = QuantisedMatrix::new(&weight, Kind::Float);
            let off = quantised.dequantised() - &weight;
            let expected = value(&off.norm()) / value(&weight.norm());
            assert!((error - expected).abs() < 1e-5 && (1e-3..1e-2).contains(&error), "{error} {expected}");
        }
        assert_eq!(QuantisedMatrix::new(&weight.zeros_like(), Kind::Float).1, 0.0);
    }

    /// Every way to compute it, against f64 products with what the codes stand for, and against the matrix before.
    #[test]
    fn products_are_within_the_bounds_of_their_roundings() {
        tch::set_num_threads(1);
        for (kind, epsilon) in [(Kind::Float, 1e-6), (Kind::BFloat16, 0.008), (Kind::Half, 0.001)] {
            for (inputs, rows) in [(64, 1), (64, 9), (96, 1), (24, 1), (24, 3)] {
                let weight = numbers(40, inputs, 0.7);
                let (quantised, _) = QuantisedMatrix::new(&weight, kind);
                let x = numbers(rows, inputs, 0.1).to_kind(kind);
                let got = quantised.forward(&x.view([rows, 1, inputs]));
                assert_eq!((got.size(), got.kind()), (vec![rows, 1, 40], kind));
                let got = got.view([rows, 40]).to_kind(Kind::Double);
                let x = x.to_kind(Kind::Double);
                let stored = quantised.codes.to_kind(Kind::Double) * quantised.scales.unsqueeze(1);
                let off = (&got - x.matmul(&stored.tr())).abs();
                let sizes = x.abs().matmul(&stored.abs().tr());
                let worst = value(&(off - &sizes * epsilon).max());
                assert!(worst <= 0.0, "{kind:?} {rows}x{inputs}: {worst}");
                // |x·W - x·Ŵ| is at most the sum of |x| times max|W|/254.
                let sum = x.abs().sum_dim_intlist([1].as_slice(), true, Kind::Double);
                let bound = sum * weight.abs().amax([1].as_slice(), false).to_kind(Kind::Double) / 254.0;
                let off = (got - x.matmul(&weight.to_kind(Kind::Double).tr())).abs();
                let worst = value(&(off - bound * (1.0 + 1e-5) - sizes * epsilon).max());
                assert!(worst <= 0.0, "{kind:?} {rows}x{inputs} against W: {worst}");
            }
        }
    }

    #[test]
    fn gradients_flow_to_the_input_alone() {
        tch::set_num_threads(1);
        let weight = numbers(40, 64, 0.7).set_requires_grad(true);
        for (kind, epsilon) in [(Kind::Float, 1e-6), (Kind::BFloat16, 0.02)] {
            let (quantised, _) = QuantisedMatrix::new(&weight, kind);
            let x = numbers(9, 64, 0.1).to_kind(kind).set_requires_grad(true);
            let factor = numbers(9, 40, 0.2).to_kind(kind);
            (quantised.forward(&x) * &factor).sum(Kind::Float).backward();
            let expected = factor.matmul(&quantised.dequantised());
            let off = value(&(x.grad() - &expected).abs().max()) / value(&expected.abs().max());
            assert!(off < epsilon, "{kind:?}: {off:e}");
        }
        assert!(!weight.grad().defined());
    }

    #[test]
    fn sums_over_many_matrices() {
        let matrix = |name: &str, relative_error| MatrixError {
            name: name.to_owned(),
            relative_error,
            bytes_before: 8,
            bytes_after: 3,
        };
        let report = Quantisation { matrices: vec![matrix("a", 0.01), matrix("b", 0.03), matrix("c", 0.03)] };
        assert!((report.mean_error() - 0.07 / 3.0).abs() < 1e-12);
        assert_eq!(report.worst().unwrap().name, "b");
        assert_eq!((report.bytes_before(), report.bytes_after()), (24, 9));
        assert_eq!((Quantisation::default().mean_error(), Quantisation::default().worst()), (0.0, None));
    }
}
