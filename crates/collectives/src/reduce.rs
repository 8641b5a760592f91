//! Reductions of numbers that came as bytes.

use bytemuck::Pod;

use crate::{NumbersMut, Reduction};

/// Combines `numbers` with the same number of elements in `bytes`, which need no alignment.
pub(crate) fn combine(numbers: &mut NumbersMut<'_>, bytes: &[u8], reduction: Reduction) {
    match numbers {
        NumbersMut::F32(numbers) => match reduction {
            Reduction::Sum => each(numbers, bytes, |a, b| a + b),
            Reduction::Max => each(numbers, bytes, |a, b| if b.total_cmp(&a).is_gt() { b } else { a }),
            Reduction::Min => each(numbers, bytes, |a, b| if b.total_cmp(&a).is_lt() { b } else { a }),
        },
        NumbersMut::F64(numbers) => match reduction {
            Reduction::Sum => each(numbers, bytes, |a, b| a + b),
            Reduction::Max => each(numbers, bytes, |a, b| if b.total_cmp(&a).is_gt() { b } else { a }),
            Reduction::Min => each(numbers, bytes, |a, b| if b.total_cmp(&a).is_lt() { b } else { a }),
        },
        NumbersMut::I64(numbers) => match reduction {
            Reduction::Sum => each(numbers, bytes, i64::wrapping_add),
            Reduction::Max => each(numbers, bytes, i64::max),
            Reduction::Min => each(numbers, bytes, i64::min),
        },
        NumbersMut::U8(numbers) => match reduction {
            Reduction::Sum => unreachable!("sums of u8 are refused before"),
            Reduction::Max => each(numbers, bytes, u8::max),
            Reduction::Min => each(numbers, bytes, u8::min),
        },
    }
}

fn each<T: Pod>(numbers: &mut [T], bytes: &[u8], of: impl Fn(T, T) -> T) {
    debug_assert_eq!(size_of_val(numbers), bytes.len());
    for (number, other) in numbers.iter_mut().zip(bytes.chunks_exact(size_of::<T>())) {
        *number = of(*number, bytemuck::pod_read_unaligned(other));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maxima_and_minima_of_floats_are_ordered_totally() {
        let others = [f32::NAN, -0.0, 3.0];
        let mut largest = [1.0_f32, 0.0, 2.0];
        combine(&mut NumbersMut::F32(&mut largest), bytemuck::cast_slice(&others), Reduction::Max);
        assert!(largest[0].is_nan() && largest[1].is_sign_positive());
        assert_eq!(largest[2], 3.0);
        let mut smallest = [1.0_f32, 0.0, 2.0];
        combine(&mut NumbersMut::F32(&mut smallest), bytemuck::cast_slice(&others), Reduction::Min);
        assert_eq!(smallest[0], 1.0);
        assert!(smallest[1].is_sign_negative());
    }

    #[test]
    fn integers_wrap() {
        let mut numbers = [i64::MAX, 2];
        combine(&mut NumbersMut::I64(&mut numbers), bytemuck::cast_slice(&[1_i64, 3]), Reduction::Sum);
        assert_eq!(numbers, [i64::MIN, 5]);
    }
}
