//! [`Codebook`]: the 256 numbers that 8 bits stand for, and which of them is nearest.
//!
//! Dynamic tree quantisation (Dettmers et al. 2021, arXiv 2110.02861, section 1.3): the decades from 1e-7 to 1, the upper
//! half of the codes in the uppermost, a quarter in the next, and so on, each the middle of one of equal parts of its decade; and 0
//! and 1. So numbers far below the largest of their block are still told apart.

/// Steps of a binade that a cell of the table is one of: 2^7, because the closest middles in [0.5, 1) are 0.0070 apart, and a cell
/// must hold no more than one.
const CELL_BITS: u32 = 23 - 7;
/// The cell of 2^-24, below all middles but perhaps 0; what is smaller counts as in it.
const LOWEST: u32 = (127 - 24) << 7;
/// Cells up to that of 1.
const CELLS: usize = ((127 << 7) - LOWEST + 1) as usize;

/// Codes for numbers in [-1, 1] or [0, 1].
#[derive(Clone, Debug)]
pub(super) struct Codebook {
    /// What each code stands for, ascending.
    pub(super) values: Box<[f32; 256]>,
    /// Halfway from each value to the next, and infinity.
    middles: Box<[f32; 256]>,
    /// Per sign and cell, the code of the smallest number in it.
    cells: Box<[[u8; CELLS]; 2]>,
}

impl Codebook {
    /// For numbers of either sign: 7 decades of 1, 2, .. 64 values and their negatives, 0 and 1.
    pub(super) fn signed() -> Self {
        let positive = decades(0);
        let mut values: Vec<f32> = positive.iter().map(|value| -value).collect();
        values.extend(&positive);
        Self::new(values)
    }

    /// For numbers that are not negative: 7 decades of 2, 4, .. 128 values, 0 and 1.
    pub(super) fn unsigned() -> Self {
        Self::new(decades(1))
    }

    fn new(mut numbers: Vec<f32>) -> Self {
        numbers.extend([0.0, 1.0]);
        numbers.sort_unstable_by(f32::total_cmp);
        let mut values = Box::new([0.0; 256]);
        values.copy_from_slice(&numbers);
        let mut middles = Box::new([f32::INFINITY; 256]);
        for (middle, pair) in middles.iter_mut().zip(values.windows(2)) {
            *middle = f32::midpoint(pair[0], pair[1]);
        }
        // A cell's numbers are from its start up to the next's, of either sign; the lowest reaches to 0.
        let start = |cell: usize| f32::from_bits((cell as u32 + LOWEST) << CELL_BITS);
        let below = |limit: f32| middles.iter().filter(|&&middle| middle < limit).count() as u8;
        let mut cells = Box::new([[0; CELLS]; 2]);
        for cell in 0..CELLS {
            cells[0][cell] = below(if cell == 0 { 0.0 } else { start(cell) });
            cells[1][cell] = below(-start(cell + 1).next_down());
        }
        Self { values, middles, cells }
    }

    /// The first 255 middles, which `bucketize` takes.
    pub(super) fn boundaries(&self) -> &[f32] {
        &self.middles[..255]
    }

    /// The code nearest to `number` in [-1, 1], the lower of two that are as near: how many middles are below it.
    #[inline(always)]
    pub(super) fn nearest(&self, number: f32) -> u8 {
        let bits = number.to_bits();
        let cell = ((bits & 0x7fff_ffff) >> CELL_BITS).saturating_sub(LOWEST) as usize;
        let lowest = self.cells[(bits >> 31) as usize][cell.min(CELLS - 1)];
        lowest + u8::from(number > self.middles[lowest as usize])
    }
}

/// The middles of `2^i · 2^more` equal parts of the decade that ends at `10^(i - 6)`, for i from 0 to 6.
fn decades(more: u32) -> Vec<f32> {
    (0..7_u32)
        .flat_map(|decade| {
            let parts = 1_u32 << (decade + more);
            let scale = 10.0_f64.powi(decade as i32 - 6);
            let width = 0.9 / f64::from(parts);
            (0..parts).map(move |part| (scale * (0.1 + width * (f64::from(part) + 0.5))) as f32)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_those_of_dettmers() {
        // From bitsandbytes' create_dynamic_map: signed 255, 254 and 128 values above 0, and the smallest.
        let signed = Codebook::signed();
        assert_eq!((signed.values[255], signed.values[127]), (1.0, 0.0));
        assert!(
            (signed.values[254] - 0.992_968_75).abs() < 1e-7 && (signed.values[128] - 5.5e-7).abs() < 1e-12
        );
        assert!((signed.values[0] + 0.992_968_75).abs() < 1e-7);
        let unsigned = Codebook::unsigned();
        assert_eq!((unsigned.values[255], unsigned.values[0]), (1.0, 0.0));
        assert!((unsigned.values[254] - 0.996_484_4).abs() < 1e-6);
        assert!((unsigned.values[1] - 3.25e-7).abs() < 1e-12);
        for book in [signed, unsigned] {
            assert!(book.values.windows(2).all(|pair| pair[0] < pair[1]));
        }
    }

    #[test]
    fn the_table_finds_the_nearest_code_of_every_number() {
        for (book, least) in [(Codebook::signed(), -1.0_f32), (Codebook::unsigned(), 0.0)] {
            let check = |number: f32| {
                if number < least || number > 1.0 {
                    return;
                }
                let want = book.boundaries().partition_point(|&middle| middle < number);
                assert_eq!(usize::from(book.nearest(number)), want, "{number:e}");
            };
            for &middle in book.boundaries() {
                [middle.next_down(), middle, middle.next_up()].into_iter().for_each(check);
            }
            for &value in book.values.iter() {
                check(value);
            }
            for bits in (0..=1.0_f32.to_bits()).step_by(4093) {
                check(f32::from_bits(bits));
                check(-f32::from_bits(bits));
            }
            [0.0, -0.0, f32::MIN_POSITIVE, -f32::MIN_POSITIVE, 1.0, -1.0].into_iter().for_each(check);
        }
    }
}
