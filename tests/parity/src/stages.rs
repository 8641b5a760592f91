//! Comparison by stage: every stage is measured, the first that diverges is named.

use std::fmt::{Debug, Write as _};

use crate::tensors::Array;

/// How far a stage may be from what transformers computed, both relative to the stage as a whole.
#[derive(Clone, Copy, Debug)]
pub struct Tolerance {
    /// Bound on `max |got - want| / max |want|`.
    pub max: f64,
    /// Bound on `rms(got - want) / rms(want)`.
    pub rms: f64,
}

impl Tolerance {
    /// The parity target in f32, 1e-5 per stage.
    pub const F32: Self = Self { max: 1e-5, rms: 1e-5 };
}

struct Row {
    stage: String,
    note: String,
    failed: bool,
}

/// The stages of one case, in the order they are computed.
pub struct Stages {
    title: String,
    tolerance: Tolerance,
    rows: Vec<Row>,
}

impl Stages {
    /// No stage yet.
    pub fn new(title: impl Into<String>, tolerance: Tolerance) -> Self {
        Self { title: title.into(), tolerance, rows: Vec::new() }
    }

    /// Measures `got` against `want`.
    pub fn close(&mut self, stage: &str, got: &Array, want: &Array) {
        let (note, failed) = measure(got, want, self.tolerance);
        self.rows.push(Row { stage: stage.to_owned(), note, failed });
    }

    /// `got` must be `want`, value by value.
    pub fn exact<T: PartialEq + Debug>(&mut self, stage: &str, got: &[T], want: &[T]) {
        let worst = got.iter().zip(want).position(|(got, want)| got != want);
        let (note, failed) = match worst {
            _ if got.len() != want.len() => (format!("length: got {}, want {}", got.len(), want.len()), true),
            Some(index) => (format!("at [{index}]: got {:?}, want {:?}", got[index], want[index]), true),
            None => (format!("equal ({})", want.len()), false),
        };
        self.rows.push(Row { stage: stage.to_owned(), note, failed });
    }

    /// Prints what was measured.
    ///
    /// # Panics
    /// When a stage diverged; the message names the first that did.
    #[expect(clippy::print_stdout, reason = "a test's measurements, shown with --no-capture")]
    pub fn finish(self) {
        let mut table = format!("{}\n", self.title);
        for row in &self.rows {
            let mark = if row.failed { "DIVERGES " } else { "" };
            let _ = writeln!(table, "  {:<46} {mark}{}", row.stage, row.note);
        }
        println!("{table}");
        if let Some(first) = self.rows.iter().find(|row| row.failed) {
            panic!("{}: first diverging stage is {}: {}", self.title, first.stage, first.note);
        }
    }
}

/// `max |got - want| / max |want|`; NaN when a difference is.
///
/// # Panics
/// When the shapes differ.
#[track_caller]
pub fn relative_error(got: &Array, want: &Array) -> f64 {
    assert_eq!(got.shape, want.shape);
    Errors::of(got, want).max
}

struct Errors {
    max: f64,
    rms: f64,
    worst: usize,
}

impl Errors {
    fn of(got: &Array, want: &Array) -> Self {
        let mut scale = 0.0_f64;
        let (mut largest, mut worst) = (0.0_f64, 0);
        let (mut squares, mut total) = (0.0_f64, 0.0_f64);
        for (index, (&got, &want)) in got.values.iter().zip(&want.values).enumerate() {
            let (got, want) = (f64::from(got), f64::from(want));
            let difference = (got - want).abs();
            // A NaN is worse than any number, and stays the worst.
            if difference > largest || (difference.is_nan() && !largest.is_nan()) {
                (largest, worst) = (difference, index);
            }
            scale = scale.max(want.abs());
            squares += difference * difference;
            total += want * want;
        }
        Self { max: largest / scale, rms: (squares / total).sqrt(), worst }
    }
}

fn measure(got: &Array, want: &Array, tolerance: Tolerance) -> (String, bool) {
    if got.shape != want.shape {
        return (format!("shape: got {:?}, want {:?}", got.shape, want.shape), true);
    }
    if got.values.len() != want.values.len() {
        return (format!("length: got {}, want {}", got.values.len(), want.values.len()), true);
    }
    let Errors { max, rms, worst } = Errors::of(got, want);
    let mut note = format!("max {max:.1e}  rms {rms:.1e}");
    // Written so that NaN fails too.
    let failed = !(max <= tolerance.max && rms <= tolerance.rms);
    if failed {
        let _ = write!(
            note,
            "  worst at {:?}: got {}, want {} (allowed max {:.0e}, rms {:.0e})",
            unravel(worst, &got.shape),
            got.values[worst],
            want.values[worst],
            tolerance.max,
            tolerance.rms,
        );
    }
    (note, failed)
}

fn unravel(mut index: usize, shape: &[usize]) -> Vec<usize> {
    let mut place: Vec<usize> = shape
        .iter()
        .rev()
        .map(|length| {
            let at = index % length;
            index /= length;
            at
        })
        .collect();
    place.reverse();
    place
}

#[cfg(test)]
mod tests {
    use super::*;

    fn array(values: &[f32]) -> Array {
        Array { shape: vec![values.len() / 2, 2], values: values.to_vec() }
    }

    fn message(stages: Stages) -> String {
        let panic = std::panic::catch_unwind(|| stages.finish()).unwrap_err();
        panic.downcast_ref::<String>().unwrap().clone()
    }

    #[test]
    fn the_first_diverging_stage_is_named_with_its_worst_value() {
        let want = array(&[1.0, -2.0, 4.0, 0.5]);
        let mut stages = Stages::new("toy", Tolerance::F32);
        stages.close("sound", &array(&[1.0, -2.0, 4.0, 0.500_001]), &want);
        stages.close("broken", &array(&[1.0, -2.0, 4.0, 0.501]), &want);
        stages.exact("ids", &[1, 2], &[1, 3]);
        let message = message(stages);
        assert!(message.starts_with("toy: first diverging stage is broken: max 2.5e-4"), "{message}");
        assert!(message.contains("worst at [1, 1]: got 0.501, want 0.5"), "{message}");
    }

    #[test]
    fn nan_shape_length_and_inequality_fail() {
        let want = array(&[1.0, 2.0]);
        let surplus = Array { values: vec![1.0, 2.0, 3.0], ..array(&[1.0, 2.0]) };
        for (got, expected) in [
            (array(&[f32::NAN, 2.0]), "NaN"),
            (array(&[1.0, 2.0, 3.0, 4.0]), "shape"),
            (surplus, "length: got 3, want 2"),
        ] {
            let mut stages = Stages::new("toy", Tolerance::F32);
            stages.close("stage", &got, &want);
            assert!(message(stages).contains(expected));
        }
        let mut stages = Stages::new("toy", Tolerance::F32);
        stages.exact("ids", &[1], &[1, 2]);
        assert!(message(stages).contains("length: got 1, want 2"));
        let mut stages = Stages::new("toy", Tolerance::F32);
        stages.exact("ids", &[1, 2], &[1, 3]);
        assert!(message(stages).contains("at [1]: got 2, want 3"));
    }
}
