//! [`Weights`]: a matrix in the dtype it is stored in.

use std::borrow::Cow;
use std::ops::Range;

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

/// How weights are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum WeightDtype {
    /// IEEE single precision.
    F32,
    /// IEEE half precision.
    F16,
    /// The upper half of a single.
    Bf16,
}

impl WeightDtype {
    /// Bytes per number.
    pub const fn size(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
        }
    }
}

impl std::fmt::Display for WeightDtype {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::F32 => "F32",
            Self::F16 => "F16",
            Self::Bf16 => "BF16",
        })
    }
}

/// A view of a row-major matrix `[rows, cols]` (a vector is one row) in its stored dtype.
#[derive(Clone, Copy, Debug)]
pub struct Weights<'a> {
    dtype: WeightDtype,
    rows: usize,
    cols: usize,
    bytes: &'a [u8],
}

impl<'a> Weights<'a> {
    /// Views `bytes`, little-endian numbers at any alignment, as `[rows, cols]`.
    ///
    /// # Panics
    /// When `bytes` is not `rows * cols * dtype.size()` long.
    #[track_caller]
    pub fn new(dtype: WeightDtype, rows: usize, cols: usize, bytes: &'a [u8]) -> Self {
        assert_eq!(bytes.len(), rows * cols * dtype.size(), "bytes of a {rows} x {cols} {dtype} matrix");
        Self { dtype, rows, cols, bytes }
    }

    /// Views numbers in memory as `[rows, cols]`.
    ///
    /// # Panics
    /// When `numbers` is not `rows * cols` long.
    #[track_caller]
    pub fn from_f32(rows: usize, cols: usize, numbers: &'a [f32]) -> Self {
        Self::new(WeightDtype::F32, rows, cols, bytemuck::cast_slice(numbers))
    }

    /// How the numbers are stored.
    pub fn dtype(&self) -> WeightDtype {
        self.dtype
    }

    /// `[rows, cols]`; a vector is `[1, len]`.
    pub fn shape(&self) -> [usize; 2] {
        [self.rows, self.cols]
    }

    /// How many numbers there are.
    pub fn len(&self) -> usize {
        self.rows * self.cols
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The numbers as stored, little-endian, at any alignment.
    pub fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// All numbers, converted.
    pub fn to_f32(&self) -> Vec<f32> {
        let mut numbers = vec![0.0; self.len()];
        self.copy_rows(0..self.rows, &mut numbers);
        numbers
    }

    /// Rows `rows` as f32: borrowed where they are stored that way and aligned, else converted into `scratch`,
    /// which grows to the largest request.
    ///
    /// # Panics
    /// When `rows` reaches beyond the matrix.
    #[track_caller]
    pub fn rows_f32<'s>(&self, rows: Range<usize>, scratch: &'s mut Vec<f32>) -> &'s [f32]
    where
        'a: 's,
    {
        if self.dtype == WeightDtype::F32
            && let Ok(numbers) = bytemuck::try_cast_slice(self.row_bytes(rows.clone()))
        {
            return numbers;
        }
        let len = rows.len() * self.cols;
        if scratch.len() < len {
            scratch.resize(len, 0.0);
        }
        self.copy_rows(rows, &mut scratch[..len]);
        &scratch[..len]
    }

    /// Bytes of one row.
    #[inline]
    pub(crate) fn row_size(&self) -> usize {
        self.cols * self.dtype.size()
    }

    /// Row `row` as stored.
    #[inline]
    pub(crate) fn row(&self, row: usize) -> &'a [u8] {
        &self.bytes[row * self.row_size()..][..self.row_size()]
    }

    fn row_bytes(&self, rows: Range<usize>) -> &'a [u8] {
        let width = self.cols * self.dtype.size();
        &self.bytes[rows.start * width..rows.end * width]
    }

    fn copy_rows(&self, rows: Range<usize>, out: &mut [f32]) {
        let bytes = self.row_bytes(rows);
        match self.dtype {
            WeightDtype::F32 => {
                for (out, number) in out.iter_mut().zip(bytes.as_chunks::<4>().0) {
                    *out = f32::from_le_bytes(*number);
                }
            }
            WeightDtype::F16 => match bytemuck::try_cast_slice::<u8, f16>(bytes) {
                // Uses the conversion instruction where the CPU has it.
                Ok(numbers) => numbers.convert_to_f32_slice(out),
                Err(_) => {
                    for (out, number) in out.iter_mut().zip(bytes.as_chunks::<2>().0) {
                        *out = f16::from_le_bytes(*number).to_f32();
                    }
                }
            },
            WeightDtype::Bf16 => {
                for (out, number) in out.iter_mut().zip(bytes.as_chunks::<2>().0) {
                    *out = bf16::from_le_bytes(*number).to_f32();
                }
            }
        }
    }

    /// The numbers rounded to `dtype`, to nearest even.
    pub(crate) fn converted(&self, dtype: WeightDtype) -> Cow<'a, [u8]> {
        if dtype == self.dtype {
            return Cow::Borrowed(self.bytes);
        }
        let mut bytes = Vec::with_capacity(self.len() * dtype.size());
        let mut scratch = Vec::new();
        for row in 0..self.rows {
            let numbers = self.rows_f32(row..row + 1, &mut scratch).iter();
            match dtype {
                WeightDtype::F32 => bytes.extend(numbers.flat_map(|number| number.to_le_bytes())),
                WeightDtype::F16 => {
                    bytes.extend(numbers.flat_map(|&number| f16::from_f32(number).to_le_bytes()));
                }
                WeightDtype::Bf16 => {
                    bytes.extend(numbers.flat_map(|&number| bf16::from_f32(number).to_le_bytes()));
                }
            }
        }
        Cow::Owned(bytes)
    }

    /// The first finite number that rounding to `dtype` would make infinite.
    pub(crate) fn overflow(&self, dtype: WeightDtype) -> Option<f32> {
        if dtype == self.dtype || dtype == WeightDtype::F32 {
            return None;
        }
        let overflows = |number: f32| {
            number.is_finite()
                && match dtype {
                    WeightDtype::F32 => false,
                    WeightDtype::F16 => f16::from_f32(number).is_infinite(),
                    WeightDtype::Bf16 => bf16::from_f32(number).is_infinite(),
                }
        };
        let mut scratch = Vec::new();
        (0..self.rows).find_map(|row| {
            self.rows_f32(row..row + 1, &mut scratch).iter().copied().find(|&number| overflows(number))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_dtype_reads_at_every_alignment() {
        let numbers = [1.5_f32, -2.0, 0.25, 65504.0, 0.0, -0.5];
        for dtype in [WeightDtype::F32, WeightDtype::F16, WeightDtype::Bf16] {
            let bytes = Weights::from_f32(2, 3, &numbers).converted(dtype);
            let expected = Weights::new(dtype, 2, 3, &bytes).to_f32();
            if dtype != WeightDtype::Bf16 {
                assert_eq!(expected, numbers);
            }
            for shift in 0..4 {
                let mut shifted = vec![0; shift];
                shifted.extend(&*bytes);
                let weights = Weights::new(dtype, 2, 3, &shifted[shift..]);
                assert_eq!(weights.to_f32(), expected);
                assert_eq!(weights.rows_f32(1..2, &mut Vec::new()), &expected[3..]);
            }
        }
        let large = [1.0, 70_000.0];
        assert_eq!(Weights::from_f32(1, 2, &large).overflow(WeightDtype::F16), Some(70_000.0));
        assert_eq!(Weights::from_f32(1, 2, &large).overflow(WeightDtype::Bf16), None);
    }
}
