//! Adam whose moments are codes of 8 bits, one scale per block of 256 numbers of a row (Dettmers et al. 2021, arXiv
//! 2110.02861).
//!
//! Of the second moment the root is stored, and what is not 0 never becomes 0. Gradients here are sparse: a row whose latent
//! did not fire has none, and its first moment, divided by a second that had been rounded to 0, would throw its
//! parameters far. The root has the range of the first moment, whose every code then finds a spread as large.

use rayon::prelude::*;
use tch::{Kind, Tensor, no_grad};

use super::adam::{BETA_1, BETA_2, Constants, EPSILON};
use super::codebook::Codebook;
use super::{Parameter, RowGradient, Rule, blocks, update_rows};
use crate::backend::Rates;
use crate::state::{Array, ArrayMut};

/// Numbers that share a scale.
pub(crate) const BLOCK: usize = 256;

const NAMES: [&str; 4] =
    ["adam8bit.first", "adam8bit.first_scale", "adam8bit.second_root", "adam8bit.second_root_scale"];

#[derive(Debug)]
pub(crate) struct Moments {
    rows: usize,
    width: usize,
    /// `[rows, width]` codes.
    first: Vec<u8>,
    root: Vec<u8>,
    /// `[rows, blocks of a row]`.
    first_scales: Vec<f32>,
    root_scales: Vec<f32>,
    signed: Codebook,
    unsigned: Codebook,
}

struct OfRow<'a> {
    first: &'a mut [u8],
    root: &'a mut [u8],
    first_scales: &'a mut [f32],
    root_scales: &'a mut [f32],
    signed: &'a Codebook,
    unsigned: &'a Codebook,
}

impl Rule for OfRow<'_> {
    type Constants = Constants;

    #[inline(always)]
    fn update(self, numbers: &mut [f32], gradient: RowGradient<'_>, constants: Constants) {
        const KEEP_1: f32 = BETA_1 as f32;
        const TAKE_1: f32 = (1.0 - BETA_1) as f32;
        const KEEP_2: f32 = BETA_2 as f32;
        const TAKE_2: f32 = (1.0 - BETA_2) as f32;
        let Constants { step_size, root_correction } = constants;
        let blocks =
            numbers.chunks_mut(BLOCK).zip(self.first.chunks_mut(BLOCK)).zip(self.root.chunks_mut(BLOCK));
        let scales = self.first_scales.iter_mut().zip(self.root_scales);
        for (index, (((numbers, first), root), (first_scale, root_scale))) in blocks.zip(scales).enumerate() {
            // What the compiler cannot know of a block, it would check at every number.
            let n = numbers.len().min(BLOCK);
            let (numbers, first, root) = (&mut numbers[..n], &mut first[..n], &mut root[..n]);
            let (mut m, mut r) = ([0.0_f32; BLOCK], [0.0_f32; BLOCK]);
            for i in 0..n {
                m[i] = self.signed.values[first[i] as usize] * *first_scale;
                r[i] = self.unsigned.values[root[i] as usize] * *root_scale;
            }
            let mut g = [0.0_f32; BLOCK];
            if let Some(gradients) = gradient.numbers {
                let gradients = &gradients[index * BLOCK..][..n];
                for i in 0..n {
                    g[i] = gradient.factor * (gradients[i] - gradient.along * numbers[i]);
                }
            }
            let (mut largest_m, mut largest_r) = ([0.0_f32; 8], [0.0_f32; 8]);
            for i in 0..n {
                m[i] = KEEP_1 * m[i] + TAKE_1 * g[i];
                r[i] = (KEEP_2 * (r[i] * r[i]) + TAKE_2 * (g[i] * g[i])).sqrt();
                numbers[i] -= step_size * m[i] / (r[i] * root_correction + EPSILON as f32);
            }
            for (m, r) in m.as_chunks::<8>().0.iter().zip(r.as_chunks::<8>().0) {
                for lane in 0..8 {
                    largest_m[lane] =
                        if m[lane].abs() > largest_m[lane] { m[lane].abs() } else { largest_m[lane] };
                    largest_r[lane] = if r[lane] > largest_r[lane] { r[lane] } else { largest_r[lane] };
                }
            }
            *first_scale = largest_m.into_iter().fold(0.0, f32::max);
            *root_scale = largest_r.into_iter().fold(0.0, f32::max);
            let (m_divisor, r_divisor) = (divisor(*first_scale), divisor(*root_scale));
            for i in 0..n {
                m[i] /= m_divisor;
                r[i] /= r_divisor;
            }
            for i in 0..n {
                first[i] = self.signed.nearest(m[i]);
                root[i] = self.unsigned.nearest(r[i]).max(u8::from(r[i] > 0.0));
            }
        }
    }
}

/// What numbers are divided by before they become codes: their largest, or 1 where all are 0.
#[inline(always)]
fn divisor(scale: f32) -> f32 {
    if scale > 0.0 { scale } else { 1.0 }
}

impl Moments {
    pub(super) fn new(rows: usize, width: usize) -> Self {
        let (signed, unsigned) = (Codebook::signed(), Codebook::unsigned());
        let zero = |book: &Codebook| vec![book.nearest(0.0); rows * width];
        let scales = || vec![0.0; rows * width.div_ceil(BLOCK)];
        Self {
            rows,
            width,
            first: zero(&signed),
            root: zero(&unsigned),
            first_scales: scales(),
            root_scales: scales(),
            signed,
            unsigned,
        }
    }

    pub(super) fn step(&mut self, parameter: Parameter<'_>, rates: Rates) {
        let (width, blocks) = (self.width, self.width.div_ceil(BLOCK));
        assert_eq!(parameter.width, width, "width of a parameter against that of its moments");
        let (signed, unsigned) = (&self.signed, &self.unsigned);
        let codes = self.first.par_chunks_mut(width).zip(self.root.par_chunks_mut(width));
        let scales = self.first_scales.par_chunks_mut(blocks).zip(self.root_scales.par_chunks_mut(blocks));
        let moments = codes.zip(scales).map(|((first, root), (first_scales, root_scales))| OfRow {
            first,
            root,
            first_scales,
            root_scales,
            signed,
            unsigned,
        });
        update_rows(parameter, moments, Constants::new(rates), rates.factor);
    }

    fn shapes(&self) -> [Vec<usize>; 2] {
        [vec![self.rows, self.width], vec![self.rows, self.width.div_ceil(BLOCK)]]
    }

    pub(super) fn arrays(&self) -> Vec<(&'static str, Vec<usize>, Array<'_>)> {
        let [codes, scales] = self.shapes();
        vec![
            (NAMES[0], codes.clone(), Array::U8(&self.first)),
            (NAMES[1], scales.clone(), Array::F32(&self.first_scales)),
            (NAMES[2], codes, Array::U8(&self.root)),
            (NAMES[3], scales, Array::F32(&self.root_scales)),
        ]
    }

    pub(super) fn arrays_mut(&mut self) -> Vec<(&'static str, Vec<usize>, ArrayMut<'_>)> {
        let [codes, scales] = self.shapes();
        vec![
            (NAMES[0], codes.clone(), ArrayMut::U8(&mut self.first)),
            (NAMES[1], scales.clone(), ArrayMut::F32(&mut self.first_scales)),
            (NAMES[2], codes, ArrayMut::U8(&mut self.root)),
            (NAMES[3], scales, ArrayMut::F32(&mut self.root_scales)),
        ]
    }
}

/// Codes and scales of one moment, and its codebook.
#[derive(Debug)]
struct Coded {
    /// `[rows, width]`, u8.
    codes: Tensor,
    /// `[rows, blocks of a row]`, f32.
    scales: Tensor,
    values: Tensor,
    boundaries: Tensor,
}

impl Coded {
    fn zeros(book: &Codebook, parameter: &Tensor) -> Self {
        let (device, size) = (parameter.device(), parameter.size());
        let zero = i64::from(book.nearest(0.0));
        let blocks = size[1].unsigned_abs().div_ceil(BLOCK as u64) as i64;
        Self {
            codes: Tensor::full(size.as_slice(), zero, (Kind::Uint8, device)),
            scales: Tensor::zeros([size[0], blocks], (Kind::Float, device)),
            values: Tensor::from_slice(book.values.as_slice()).to_device(device),
            boundaries: Tensor::from_slice(book.boundaries()).to_device(device),
        }
    }

    /// Rows as numbers `[rows, blocks, 256]`, zeros where the last block is short.
    fn decode(&self, start: i64, len: i64) -> Tensor {
        let codes = self.codes.narrow(0, start, len).to_kind(Kind::Int64).reshape([-1]);
        let numbers = self.values.index_select(0, &codes).reshape([len, -1]);
        in_blocks(&numbers) * self.scales.narrow(0, start, len).unsqueeze(2)
    }

    /// Stores rows of numbers `[rows, blocks, 256]`.
    fn encode(&mut self, start: i64, numbers: &Tensor, never_zero: bool) {
        let size = self.codes.size();
        let len = numbers.size()[0];
        let scales = numbers.abs().amax([2_i64].as_slice(), false);
        let divisors = scales.where_self(&scales.gt(0.0), &scales.ones_like());
        let shares = numbers / divisors.unsqueeze(2);
        let mut codes = shares.bucketize(&self.boundaries, false, false);
        if never_zero {
            codes = codes.max_other(&shares.gt(0.0).to_kind(Kind::Int64));
        }
        let codes = codes.reshape([len, -1]).narrow(1, 0, size[1]);
        self.codes.narrow(0, start, len).copy_(&codes);
        self.scales.narrow(0, start, len).copy_(&scales);
    }
}

/// `[rows, width]` as `[rows, blocks, 256]`, filled up with zeros.
fn in_blocks(numbers: &Tensor) -> Tensor {
    let size = numbers.size();
    let missing = (BLOCK as i64 - size[1] % BLOCK as i64) % BLOCK as i64;
    let padded = if missing > 0 { numbers.constant_pad_nd([0, missing]) } else { numbers.shallow_clone() };
    padded.reshape([size[0], -1, BLOCK as i64])
}

#[derive(Debug)]
pub(crate) struct TensorMoments {
    first: Coded,
    root: Coded,
}

impl TensorMoments {
    pub(super) fn new(parameter: &Tensor) -> Self {
        no_grad(|| Self {
            first: Coded::zeros(&Codebook::signed(), parameter),
            root: Coded::zeros(&Codebook::unsigned(), parameter),
        })
    }

    pub(super) fn step(&mut self, parameter: &mut Tensor, gradient: &Tensor, rates: Rates) {
        let Constants { step_size, root_correction } = Constants::new(rates);
        let width = parameter.size()[1];
        for (start, len) in blocks(parameter) {
            let gradient = in_blocks(&gradient.narrow(0, start, len).to_kind(Kind::Float));
            let first =
                self.first.decode(start, len).g_mul_scalar_(BETA_1).g_add_(&(&gradient * (1.0 - BETA_1)));
            let second = self.root.decode(start, len).square().g_mul_scalar_(BETA_2);
            let root = (second + gradient.square() * (1.0 - BETA_2)).sqrt();
            let change = &first * f64::from(step_size) / (&root * f64::from(root_correction) + EPSILON);
            let change = change.reshape([len, -1]).narrow(1, 0, width);
            let _ = parameter.narrow(0, start, len).g_sub_(&change.to_kind(parameter.kind()));
            self.first.encode(start, &first, false);
            self.root.encode(start, &root, true);
        }
    }

    pub(super) fn tensors(&self) -> Vec<(&'static str, &Tensor)> {
        let Self { first, root } = self;
        NAMES.into_iter().zip([&first.codes, &first.scales, &root.codes, &root.scales]).collect()
    }

    pub(super) fn tensors_mut(&mut self) -> Vec<(&'static str, &mut Tensor)> {
        let Self { first, root } = self;
        let tensors = [&mut first.codes, &mut first.scales, &mut root.codes, &mut root.scales];
        NAMES.into_iter().zip(tensors).collect()
    }
}
