//! [`Agreement`]: whether one list of effects can stand for another.

/// How two lists of numbers about the same things agree.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub struct Agreement {
    /// How many pairs.
    pub n: usize,
    /// Spearman's rank correlation, ties at their mean rank; `None` where one of the lists is constant or shorter than 2.
    pub spearman: Option<f64>,
    /// The slope of the line through the origin, `Σ fast·exact / Σ fast²`: 1 where sizes are right too, below 1 where the fast
    /// method says too much. `None` where all of `fast` is 0.
    pub slope: Option<f64>,
}

impl Agreement {
    /// Compares what the fast method says with what is exact, in f64.
    ///
    /// # Panics
    /// When the lists differ in length.
    #[track_caller]
    pub fn new(fast: &[f64], exact: &[f64]) -> Self {
        assert_eq!(fast.len(), exact.len(), "effects against effects");
        let product = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
        let square = product(fast, fast);
        let slope = (square > 0.0).then(|| product(fast, exact) / square);
        Self { n: fast.len(), spearman: correlation(&ranks(fast), &ranks(exact)), slope }
    }
}

/// Ranks from 1, equals at the mean of theirs.
fn ranks(values: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|&a, &b| values[a].total_cmp(&values[b]));
    let mut ranks = vec![0.0; values.len()];
    let mut before = 0;
    for equals in order.chunk_by(|&a, &b| values[a] == values[b]) {
        let rank = before as f64 + (equals.len() + 1) as f64 / 2.0;
        for &index in equals {
            ranks[index] = rank;
        }
        before += equals.len();
    }
    ranks
}

/// Pearson's.
fn correlation(a: &[f64], b: &[f64]) -> Option<f64> {
    let centred = |values: &[f64]| {
        let mean = values.iter().sum::<f64>() / values.len().max(1) as f64;
        values.iter().map(|value| value - mean).collect::<Vec<_>>()
    };
    let (a, b) = (centred(a), centred(b));
    let product = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    let size = (product(&a, &a) * product(&b, &b)).sqrt();
    (size > 0.0).then(|| product(&a, &b) / size)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spearman_by_hand() {
        // Without ties it is 1 - 6 Σd² / n(n² - 1). Ranks 1, 4, 2, 5, 3 against 1 to 5: Σd² = 10.
        let agreement = Agreement::new(&[1.0, 2.0, 3.0, 4.0, 5.0], &[10.0, 30.0, 20.0, 60.0, 25.0]);
        assert!((agreement.spearman.unwrap() - 0.5).abs() < 1e-12, "{agreement:?}");
        // Ties: ranks 1, 2.5, 2.5, 4 against 1, 2, 3, 4: Pearson (1.5·1.5 + 1.5·1.5) / sqrt(4.5 · 5) = 4.5 / 4.743416.
        let agreement = Agreement::new(&[0.0, 7.0, 7.0, 9.0], &[-1.0, 0.0, 1.0, 2.0]);
        assert!((agreement.spearman.unwrap() - 0.948_683_298_050_513_8).abs() < 1e-12, "{agreement:?}");
        let agreement = Agreement::new(&[3.0, 2.0, 1.0], &[-3.0, -0.5, 8.0]);
        assert!((agreement.spearman.unwrap() + 1.0).abs() < 1e-12);
    }

    #[test]
    fn the_slope_goes_through_the_origin() {
        let agreement = Agreement::new(&[1.0, -2.0, 4.0], &[0.5, -1.0, 2.0]);
        assert!((agreement.slope.unwrap() - 0.5).abs() < 1e-12);
        let agreement = Agreement::new(&[0.0, 0.0], &[1.0, 2.0]);
        assert_eq!((agreement.slope, agreement.spearman, agreement.n), (None, None, 2));
        assert_eq!(Agreement::new(&[], &[]), Agreement { n: 0, spearman: None, slope: None });
    }
}
