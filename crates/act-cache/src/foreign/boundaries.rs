//! Where splits begin: `torch.linspace(0, width, n_splits + 1).long()`.

/// The `n_splits + 1` bounds, in f32 as torch computes them on a CPU with fused multiply-add (AVX2, AVX-512): from both ends
/// towards the middle. On older CPUs torch rounds the product as well, and a bound may be 1 higher.
pub(super) fn boundaries(width: usize, n_splits: usize) -> Vec<usize> {
    let steps = n_splits + 1;
    let end = width as f32;
    let step = end / n_splits as f32;
    let bound = |i: usize| {
        if i < steps / 2 { step.mul_add(i as f32, 0.0) } else { (-step).mul_add((steps - i - 1) as f32, end) }
    };
    (0..steps).map(|i| bound(i) as usize).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn are_those_of_torch() {
        // torch 2.11.0, AVX2 and AVX-512 alike.
        assert_eq!(boundaries(10, 4), [0, 2, 5, 7, 10]);
        assert_eq!(boundaries(16, 14), [0, 1, 2, 3, 4, 5, 6, 7, 9, 10, 11, 12, 13, 14, 16]);
        assert_eq!(boundaries(100, 7), [0, 14, 28, 42, 57, 71, 85, 100]);
        assert_eq!(boundaries(131_072, 128), (0..=128).map(|i| i * 1024).collect::<Vec<_>>());
        assert_eq!(boundaries(3, 1), [0, 3]);
    }
}
