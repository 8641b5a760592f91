//! From gradients to changes of parameters: one file per optimizer, each on plain numbers and on libtorch tensors.

mod adam;
mod adam8bit;
mod codebook;
mod signum;

pub(crate) use self::adam8bit::BLOCK as BLOCK_OF_8_BITS;
use rayon::prelude::*;
use tch::{Kind, Tensor};

use crate::Optimizer;
use crate::backend::Rates;
use crate::backend::dot;
use crate::state::{Array, ArrayMut};
use crate::wide::{Work, wide};

/// Numbers that a task works on at least.
const TASK: usize = 1 << 14;
/// Elements that a pass over tensors works on at once, so that its temporaries stay small beside the parameters.
const BLOCK: i64 = 4 << 20;

/// A parameter of `[rows, width]`, or a vector as rows of any width, and its gradient.
pub(crate) struct Parameter<'a> {
    pub(crate) numbers: &'a mut [f32],
    pub(crate) width: usize,
    pub(crate) gradients: &'a [f32],
    /// Per row, whether it has a gradient; else it is 0 whatever stands there.
    pub(crate) touched: Option<&'a [bool]>,
    /// Per row, the part of its gradient along the parameter's own row, which is taken off.
    pub(crate) along: Option<&'a [f32]>,
    /// Whether rows go back to length 1.
    pub(crate) unit_rows: bool,
}

/// The gradient of a row: `factor · (numbers - along · row)`.
#[derive(Clone, Copy)]
struct RowGradient<'a> {
    numbers: Option<&'a [f32]>,
    factor: f32,
    along: f32,
}

/// A row to be changed, with what its moments are, and the constants of the step.
struct Row<'a, M, C> {
    numbers: &'a mut [f32],
    gradient: RowGradient<'a>,
    moments: M,
    constants: C,
    unit: bool,
}

/// How an optimizer changes a row.
trait Rule: Sized {
    type Constants: Copy;

    /// Implementations are `#[inline(always)]`.
    fn update(self, numbers: &mut [f32], gradient: RowGradient<'_>, constants: Self::Constants);
}

impl<M: Rule> Work for Row<'_, M, M::Constants> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        self.moments.update(self.numbers, self.gradient, self.constants);
        if self.unit {
            let length = dot(self.numbers, self.numbers).sqrt();
            // A row of zeros stays one.
            if length > 0.0 {
                let inverse = (1.0 / length) as f32;
                for number in self.numbers {
                    *number *= inverse;
                }
            }
        }
    }
}

/// Changes every row of `parameter`, whose moments come row by row.
fn update_rows<M: Rule + Send>(
    parameter: Parameter<'_>,
    moments: impl IndexedParallelIterator<Item = M>,
    constants: M::Constants,
    factor: f64,
) where
    M::Constants: Sync,
{
    let Parameter { numbers, width, gradients, touched, along, unit_rows } = parameter;
    let rows = numbers.par_chunks_mut(width).zip(moments).zip(gradients.par_chunks(width)).enumerate();
    rows.with_min_len((TASK / width).max(1)).for_each(|(row, ((numbers, moments), gradients))| {
        let gradient = RowGradient {
            numbers: touched.is_none_or(|touched| touched[row]).then_some(gradients),
            factor: factor as f32,
            along: along.map_or(0.0, |along| along[row]),
        };
        wide(Row { numbers, gradient, moments, constants, unit: unit_rows });
    });
}

/// Moments of a parameter as plain numbers.
#[derive(Debug)]
pub(crate) enum Moments {
    Adam(adam::Moments),
    Adam8bit(adam8bit::Moments),
    Signum(signum::Moments),
}

impl Moments {
    /// Zeros, for a parameter of `shape`. Vectors have Adam's where matrices have those of 8 bits.
    pub(crate) fn new(optimizer: Optimizer, shape: &[usize]) -> Self {
        match (optimizer, shape) {
            (Optimizer::Adam8bit, &[rows, width]) => Self::Adam8bit(adam8bit::Moments::new(rows, width)),
            (Optimizer::Adam | Optimizer::Adam8bit, _) => Self::Adam(adam::Moments::new(shape)),
            (Optimizer::Signum, _) => Self::Signum(signum::Moments::new(shape)),
        }
    }

    pub(crate) fn step(&mut self, parameter: Parameter<'_>, rates: Rates) {
        match self {
            Self::Adam(moments) => moments.step(parameter, rates),
            Self::Adam8bit(moments) => moments.step(parameter, rates),
            Self::Signum(moments) => moments.step(parameter, rates),
        }
    }

    /// Names (before the parameter's), shapes and numbers.
    pub(crate) fn arrays(&self) -> Vec<(&'static str, Vec<usize>, Array<'_>)> {
        match self {
            Self::Adam(moments) => moments.arrays(),
            Self::Adam8bit(moments) => moments.arrays(),
            Self::Signum(moments) => moments.arrays(),
        }
    }

    pub(crate) fn arrays_mut(&mut self) -> Vec<(&'static str, Vec<usize>, ArrayMut<'_>)> {
        match self {
            Self::Adam(moments) => moments.arrays_mut(),
            Self::Adam8bit(moments) => moments.arrays_mut(),
            Self::Signum(moments) => moments.arrays_mut(),
        }
    }
}

/// Moments of a parameter as tensors.
#[derive(Debug)]
pub(crate) enum TensorMoments {
    Adam(adam::TensorMoments),
    Adam8bit(adam8bit::TensorMoments),
    Signum(signum::TensorMoments),
}

impl TensorMoments {
    /// As [`Moments::new`], for `parameter` and on its device.
    pub(crate) fn new(optimizer: Optimizer, parameter: &Tensor) -> Self {
        match (optimizer, parameter.dim()) {
            (Optimizer::Adam8bit, 2) => Self::Adam8bit(adam8bit::TensorMoments::new(parameter)),
            (Optimizer::Adam | Optimizer::Adam8bit, _) => Self::Adam(adam::TensorMoments::new(parameter)),
            (Optimizer::Signum, _) => Self::Signum(signum::TensorMoments::new(parameter)),
        }
    }

    /// Changes `parameter` by `gradient`, which is finished and clipped.
    pub(crate) fn step(&mut self, parameter: &mut Tensor, gradient: &Tensor, rates: Rates) {
        match self {
            Self::Adam(moments) => moments.step(parameter, gradient, rates),
            Self::Adam8bit(moments) => moments.step(parameter, gradient, rates),
            Self::Signum(moments) => moments.step(parameter, gradient, rates),
        }
    }

    pub(crate) fn tensors(&self) -> Vec<(&'static str, &Tensor)> {
        match self {
            Self::Adam(moments) => moments.tensors(),
            Self::Adam8bit(moments) => moments.tensors(),
            Self::Signum(moments) => moments.tensors(),
        }
    }

    pub(crate) fn tensors_mut(&mut self) -> Vec<(&'static str, &mut Tensor)> {
        match self {
            Self::Adam(moments) => moments.tensors_mut(),
            Self::Adam8bit(moments) => moments.tensors_mut(),
            Self::Signum(moments) => moments.tensors_mut(),
        }
    }
}

/// Takes from each row of `gradient` its part along the row of `parameter`: what would only change the row's length.
pub(crate) fn remove_parallel(parameter: &Tensor, gradient: &mut Tensor) {
    for (start, len) in blocks(parameter) {
        let rows = parameter.narrow(0, start, len);
        let mut gradient = gradient.narrow(0, start, len);
        let along = (&gradient * &rows).sum_dim_intlist([1_i64].as_slice(), true, None::<Kind>);
        let _ = gradient.g_sub_(&(rows * along));
    }
}

/// Scales the rows of `parameter` to length 1.
pub(crate) fn normalise_rows(parameter: &mut Tensor) {
    for (start, len) in blocks(parameter) {
        let mut rows = parameter.narrow(0, start, len);
        let lengths = rows.norm_scalaropt_dim(2, [1_i64].as_slice(), true);
        // A row of zeros stays one.
        let _ = rows.g_div_(&lengths.clamp_min(f64::from(f32::MIN_POSITIVE)));
    }
}

/// Ranges of the first dimension, as (start, length), of at most [`BLOCK`] elements or one row.
fn blocks(tensor: &Tensor) -> impl Iterator<Item = (i64, i64)> + use<> {
    let rows = tensor.size()[0];
    row_blocks(rows, tensor.numel() as i64 / rows.max(1))
}

fn row_blocks(rows: i64, row_len: i64) -> impl Iterator<Item = (i64, i64)> {
    let per_block = (BLOCK / row_len.max(1)).max(1);
    (0..rows).step_by(per_block as usize).map(move |start| (start, per_block.min(rows - start)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_cover_every_row_once() {
        for (rows, row_len) in [(5, 1), (5, 3), (3, BLOCK), (3, 2 * BLOCK), (7, BLOCK / 2 - 1), (0, 4)] {
            let mut next = 0;
            for (start, len) in row_blocks(rows, row_len) {
                assert_eq!(start, next);
                assert!(len == 1 || (len > 1 && len * row_len <= BLOCK));
                next += len;
            }
            assert_eq!(next, rows);
        }
    }

    /// Rows with a gradient, without one, and of zeros, for `steps` steps on both engines.
    fn both(optimizer: Optimizer, steps: u64) -> (Vec<f32>, Vec<f32>) {
        const ROWS: usize = 5;
        const WIDTH: usize = 300;
        tch::set_num_threads(1);
        tch::manual_seed(5);
        let draw = || Tensor::randn([ROWS as i64, WIDTH as i64], (Kind::Float, tch::Device::Cpu));
        let mut tensor = draw();
        normalise_rows(&mut tensor);
        let flat = |tensor: &Tensor| Vec::<f32>::try_from(tensor.reshape([-1])).unwrap();
        let mut numbers = flat(&tensor);
        let mut moments = Moments::new(optimizer, &[ROWS, WIDTH]);
        let mut tensors = TensorMoments::new(optimizer, &tensor);
        for step in 1..=steps {
            let rates = Rates { lr: 1e-2, step, factor: 0.5 };
            let gradient = draw();
            let _ = gradient.get(3).zero_();
            let mut along = vec![0.0; ROWS];
            for (row, along) in along.iter_mut().enumerate() {
                let range = row * WIDTH..(row + 1) * WIDTH;
                *along = dot(&flat(&gradient)[range.clone()], &numbers[range]) as f32;
            }
            let mut touched = [true; ROWS];
            touched[3] = false;
            let mut plain = flat(&gradient);
            plain[3 * WIDTH..4 * WIDTH].fill(f32::NAN);
            moments.step(
                Parameter {
                    numbers: &mut numbers,
                    width: WIDTH,
                    gradients: &plain,
                    touched: Some(&touched),
                    along: Some(&along),
                    unit_rows: true,
                },
                rates,
            );
            let mut gradient = gradient;
            remove_parallel(&tensor, &mut gradient);
            let _ = gradient.g_mul_scalar_(rates.factor);
            tensors.step(&mut tensor, &gradient, rates);
            normalise_rows(&mut tensor);
        }
        (numbers, flat(&tensor))
    }

    #[test]
    fn plain_numbers_and_tensors_change_alike() {
        for (optimizer, tolerance) in
            [(Optimizer::Adam, 1e-6), (Optimizer::Adam8bit, 1e-3), (Optimizer::Signum, 1e-6)]
        {
            let (numbers, tensor) = both(optimizer, 5);
            let worst = numbers.iter().zip(&tensor).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            // A number at the middle of two codes may take either; all others agree.
            let apart = numbers.iter().zip(&tensor).filter(|(a, b)| (*a - *b).abs() > 1e-5).count();
            assert!(worst < tolerance && apart < 20, "{optimizer:?}: {worst}, {apart}");
        }
    }

    #[test]
    fn threads_change_no_bit() {
        for optimizer in [Optimizer::Adam, Optimizer::Adam8bit, Optimizer::Signum] {
            let on = |threads| {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                pool.install(|| both(optimizer, 2).0)
            };
            assert_eq!(on(1), on(3), "{optimizer:?}");
        }
    }
}
