//! What the machine can do at most, measured: multiply-adds in registers, reading in order, reading rows in any order.
//!
//! Peaks are of all threads of the current rayon pool together, the best of some tries.
#![expect(unsafe_code, reason = "functions compiled for the registers that the CPU was asked for")]

use std::hint::black_box;
use std::time::{Duration, Instant};

use rayon::prelude::*;

use crate::inputs::Line;

/// How long a try of arithmetic takes at least.
const TRY: Duration = Duration::from_millis(60);
/// Steps between two looks at the clock.
const STEPS: usize = 200_000;

/// Multiplications and additions of f32 per second.
pub fn f32_flops(tries: usize) -> f64 {
    best(tries, || all_threads(f32_loop()))
}

/// Multiplications of bf16 and additions in f32 per second, if there is an instruction for pairs of bf16.
pub fn bf16_flops(tries: usize) -> Option<f64> {
    bf16_loop().map(|run| best(tries, || all_threads(run)))
}

fn best(tries: usize, mut rate: impl FnMut() -> f64) -> f64 {
    (0..tries).map(|_| rate()).fold(0.0, f64::max)
}

/// What runs [`STEPS`] steps in registers and returns their multiplications and additions.
type Loop = fn() -> u64;

/// Multiplications and additions per second when all threads repeat `run`.
fn all_threads(run: Loop) -> f64 {
    let rates = rayon::broadcast(|_| {
        let (start, mut flop) = (Instant::now(), 0);
        while start.elapsed() < TRY {
            flop += run();
        }
        flop as f64 / start.elapsed().as_secs_f64()
    });
    rates.into_iter().sum()
}

fn f32_loop() -> Loop {
    #[cfg(target_arch = "x86_64")]
    {
        if is_x86_feature_detected!("avx512f") {
            // SAFETY: the CPU has AVX-512F.
            return || unsafe { x86::avx512() };
        }
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            // SAFETY: the CPU has AVX2 and FMA.
            return || unsafe { x86::avx2() };
        }
    }
    portable
}

fn bf16_loop() -> Option<Loop> {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bf16") {
        // SAFETY: the CPU has AVX-512F and AVX512-BF16.
        return Some(|| unsafe { x86::avx512_bf16() });
    }
    None
}

/// Whatever registers the target was compiled for.
fn portable() -> u64 {
    const LANES: usize = 8;
    const SUMS: usize = 8;
    let (factor, addend) = (black_box(0.999f32), black_box(0.001f32));
    let mut sums = [[1.0f32; LANES]; SUMS];
    for _ in 0..STEPS {
        for sum in sums.as_flattened_mut() {
            // Where there is no such instruction, `mul_add` is a call.
            *sum = if cfg!(any(target_arch = "aarch64", target_feature = "fma")) {
                sum.mul_add(factor, addend)
            } else {
                *sum * factor + addend
            };
        }
    }
    black_box(sums);
    (2 * STEPS * LANES * SUMS) as u64
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::{
        __m512bh, _MM_HINT_T1, _mm_prefetch, _mm256_add_epi64, _mm256_extract_epi64, _mm256_fmadd_ps,
        _mm256_loadu_si256, _mm256_set1_epi64x, _mm256_set1_ps, _mm512_add_epi64, _mm512_dpbf16_ps,
        _mm512_fmadd_ps, _mm512_loadu_si512, _mm512_reduce_add_epi64, _mm512_set1_epi16, _mm512_set1_epi64,
        _mm512_set1_ps,
    };
    use std::hint::black_box;

    use super::STEPS;

    /// Independent sums: more than latency times multiply-adds per cycle of any CPU so far (4 * 2), and within the registers.
    const SUMS: usize = 12;

    #[target_feature(enable = "avx512f")]
    pub(super) fn avx512() -> u64 {
        let (factor, addend) = (_mm512_set1_ps(black_box(0.999)), _mm512_set1_ps(black_box(0.001)));
        let mut sums = [_mm512_set1_ps(1.0); SUMS];
        for _ in 0..STEPS {
            for sum in &mut sums {
                *sum = _mm512_fmadd_ps(*sum, factor, addend);
            }
        }
        black_box(sums);
        (2 * STEPS * 16 * SUMS) as u64
    }

    #[target_feature(enable = "avx512f,avx512bf16")]
    pub(super) fn avx512_bf16() -> u64 {
        // 1.0 in bf16; the sums may well stop growing, which costs nothing.
        // SAFETY: both types are 64 bytes without invalid values.
        let ones: __m512bh = unsafe { std::mem::transmute(_mm512_set1_epi16(black_box(0x3f80))) };
        let mut sums = [_mm512_set1_ps(1.0); SUMS];
        for _ in 0..STEPS {
            for sum in &mut sums {
                *sum = _mm512_dpbf16_ps(*sum, ones, ones);
            }
        }
        black_box(sums);
        (4 * STEPS * 16 * SUMS) as u64
    }

    #[target_feature(enable = "avx2,fma")]
    pub(super) fn avx2() -> u64 {
        let (factor, addend) = (_mm256_set1_ps(black_box(0.999)), _mm256_set1_ps(black_box(0.001)));
        let mut sums = [_mm256_set1_ps(1.0); SUMS];
        for _ in 0..STEPS {
            for sum in &mut sums {
                *sum = _mm256_fmadd_ps(*sum, factor, addend);
            }
        }
        black_box(sums);
        (2 * STEPS * 8 * SUMS) as u64
    }

    #[target_feature(enable = "avx512f")]
    pub(super) fn add_avx512<const ROWS: usize>(rows: [&[u8]; ROWS], next: [*const u8; ROWS]) -> u64 {
        let mut sums = [_mm512_set1_epi64(0); ROWS];
        for line in 0..rows[0].len() / 64 {
            for row in 0..ROWS {
                _mm_prefetch::<_MM_HINT_T1>(next[row].wrapping_add(64 * line).cast());
                let bytes: &[u8; 64] = &rows[row].as_chunks().0[line];
                // SAFETY: `bytes` is 64 bytes, and the load asks for no alignment.
                sums[row] = _mm512_add_epi64(sums[row], unsafe { _mm512_loadu_si512(bytes.as_ptr().cast()) });
            }
        }
        let mut sum = sums[0];
        for &part in &sums[1..] {
            sum = _mm512_add_epi64(sum, part);
        }
        _mm512_reduce_add_epi64(sum).cast_unsigned()
    }

    #[target_feature(enable = "avx2")]
    pub(super) fn add_avx2<const ROWS: usize>(rows: [&[u8]; ROWS], next: [*const u8; ROWS]) -> u64 {
        let mut sums = [[_mm256_set1_epi64x(0); 2]; ROWS];
        for line in 0..rows[0].len() / 64 {
            for row in 0..ROWS {
                _mm_prefetch::<_MM_HINT_T1>(next[row].wrapping_add(64 * line).cast());
                let halves: &[[u8; 32]; 2] =
                    rows[row].as_chunks().0[2 * line..][..2].as_array().expect("two halves");
                for half in 0..2 {
                    // SAFETY: each half is 32 bytes, and the load asks for no alignment.
                    let numbers = unsafe { _mm256_loadu_si256(halves[half].as_ptr().cast()) };
                    sums[row][half] = _mm256_add_epi64(sums[row][half], numbers);
                }
            }
        }
        let mut sum = _mm256_set1_epi64x(0);
        for &part in sums.as_flattened() {
            sum = _mm256_add_epi64(sum, part);
        }
        let low = _mm256_extract_epi64::<0>(sum).wrapping_add(_mm256_extract_epi64::<1>(sum));
        let high = _mm256_extract_epi64::<2>(sum).wrapping_add(_mm256_extract_epi64::<3>(sum));
        low.wrapping_add(high).cast_unsigned()
    }
}

/// A buffer that fits no cache, for the rates of reading memory.
#[derive(Debug)]
pub struct Memory(Box<[Line]>);

/// Bytes of a buffer that fits no cache.
pub const MEMORY: usize = 1 << 30;

impl Memory {
    /// Takes `bytes` of memory, and touches them all.
    pub fn new(bytes: usize) -> Self {
        let mut lines = bytemuck::zeroed_slice_box::<Line>(bytes / size_of::<Line>());
        lines.par_iter_mut().for_each(|line| line.0[0] = 1);
        Self(lines)
    }

    /// Bytes per second, in order.
    pub fn read(&self, tries: usize) -> f64 {
        read(tries, bytemuck::cast_slice(&self.0))
    }

    /// Bytes per second, of rows of `row_bytes`, each once, 256 at a time drawn at random and read in the order of their
    /// places, as decoding reads them.
    ///
    /// # Panics
    /// When a row is not whole cache lines.
    pub fn gather(&self, tries: usize, row_bytes: usize) -> f64 {
        assert_eq!(row_bytes % size_of::<Line>(), 0, "bytes of a row against cache lines");
        let bytes: &[u8] = bytemuck::cast_slice(&self.0);
        // A walk that meets every row once: an odd step modulo a power of two. Short rows need not be as many to fit no cache.
        let count = 1usize << (bytes.len() / row_bytes).min(1 << 20).ilog2();
        let step = (count as f64 * 0.618_034) as usize | 1;
        let draws: Vec<Vec<&[u8]>> = (0..count.div_ceil(DRAW))
            .map(|draw| {
                let indices = draw * DRAW..((draw + 1) * DRAW).min(count);
                let mut rows: Vec<usize> = indices.map(|index| index.wrapping_mul(step) % count).collect();
                rows.sort_unstable();
                rows.into_iter().map(|row| &bytes[row * row_bytes..][..row_bytes]).collect()
            })
            .collect();
        // Short rows are asked for several ahead.
        let far = [1 << 12, 1 << 14].map(|bytes: usize| bytes.div_ceil(row_bytes));
        let rates = far.map(|ahead| {
            let one = best(tries, || rate(count * row_bytes, &draws, |rows| add_rows::<1>(rows, ahead)));
            let four = best(tries, || rate(count * row_bytes, &draws, |rows| add_rows::<4>(rows, ahead)));
            one.max(four)
        });
        rates.into_iter().fold(0.0, f64::max)
    }
}

/// Rows of a draw.
const DRAW: usize = 256;

/// Bytes per second, in order, of memory that may be mapped.
pub fn read(tries: usize, bytes: &[u8]) -> f64 {
    let parts: Vec<&[u8]> = bytes.chunks_exact(1 << 20).collect();
    let one = best(tries, || {
        rate(parts.len() << 20, &parts, |bytes| add([bytes], [bytes.as_ptr().wrapping_add(1 << 12)]))
    });
    let four = best(tries, || {
        rate(parts.len() << 20, &parts, |bytes| {
            let quarters: [&[u8]; 4] = std::array::from_fn(|quarter| &bytes[quarter << 18..][..1 << 18]);
            add(quarters, quarters.map(|quarter| quarter.as_ptr().wrapping_add(1 << 11)))
        })
    });
    one.max(four)
}

/// Bytes per second when all threads add up `parts` of `bytes` in all.
fn rate<T: Sync>(bytes: usize, parts: &[T], add: impl Fn(&T) -> u64 + Sync + Send) -> f64 {
    let start = Instant::now();
    black_box(parts.par_iter().map(add).reduce(|| 0, u64::wrapping_add));
    bytes as f64 / start.elapsed().as_secs_f64()
}

/// Adds up rows, `ROWS` at a time, and meanwhile asks for those `ahead`.
fn add_rows<const ROWS: usize>(rows: &[&[u8]], ahead: usize) -> u64 {
    let (groups, rest) = rows.as_chunks::<ROWS>();
    let mut sum = rest.iter().fold(0, |sum: u64, row| sum.wrapping_add(add([row], [row.as_ptr()])));
    for (index, group) in groups.iter().enumerate() {
        let next = groups.get(index + ahead.div_ceil(ROWS)).unwrap_or(group).map(<[u8]>::as_ptr);
        sum = sum.wrapping_add(add(*group, next));
    }
    sum
}

/// Adds up the numbers of 8 bytes in `rows` of equal length, and meanwhile asks for as much at `next`, which need not be
/// one's own.
fn add<const ROWS: usize>(rows: [&[u8]; ROWS], next: [*const u8; ROWS]) -> u64 {
    #[cfg(target_arch = "x86_64")]
    {
        if is_x86_feature_detected!("avx512f") {
            // SAFETY: the CPU has AVX-512F.
            return unsafe { x86::add_avx512(rows, next) };
        }
        if is_x86_feature_detected!("avx2") {
            // SAFETY: the CPU has AVX2.
            return unsafe { x86::add_avx2(rows, next) };
        }
    }
    let _ = next;
    let mut sums = [0u64; 8];
    for row in rows {
        for line in row.as_chunks::<64>().0 {
            for (sum, number) in sums.iter_mut().zip(line.as_chunks::<8>().0) {
                *sum = sum.wrapping_add(u64::from_le_bytes(*number));
            }
        }
    }
    sums.into_iter().fold(0, u64::wrapping_add)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peaks_are_numbers() {
        assert!(f32_flops(1) > 1e8);
        assert!(bf16_flops(1).is_none_or(|flops| flops > 1e8));
        let memory = Memory::new(1 << 24);
        for rate in [memory.read(1), memory.gather(1, 1 << 12), memory.gather(1, 704)] {
            assert!(rate > 1e7 && rate.is_finite(), "{rate}");
        }
    }

    #[test]
    fn every_number_is_added() {
        let numbers: Vec<u64> = (0..320).collect();
        let bytes: &[u8] = bytemuck::cast_slice(&numbers);
        let rows: Vec<&[u8]> = bytes.chunks(64).collect();
        let (all, sum) = ([bytes], 319 * 320 / 2);
        assert_eq!(add(all, [bytes.as_ptr()]), sum);
        assert_eq!(add_rows::<1>(&rows, 1), sum);
        assert_eq!(add_rows::<4>(&rows, 5), sum);
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("avx2") {
            // SAFETY: the CPU has AVX2.
            assert_eq!(unsafe { x86::add_avx2(all, [bytes.as_ptr()]) }, sum);
        }
    }
}
