//! [`Confidence`]: how sure an interval is to hold the true value, with the quantiles that follow from it.

use std::f64::consts::{FRAC_2_PI, TAU};

use crate::ScoringError;

/// How sure an interval is to hold the true value: the share of repetitions in which it does.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Confidence(f64);

/// From so many degrees of freedom on, Student's quantile is a series in their inverse, whose error is below 1e-9
/// up to 99.99 %.
const MANY_DEGREES: usize = 1000;
/// Beyond this the distance to 1 has too few digits left for a quantile.
const LARGEST: f64 = 1.0 - 1e-12;

impl Confidence {
    /// 95 in 100 times.
    pub const P95: Self = Self(0.95);
    /// 99 in 100 times.
    pub const P99: Self = Self(0.99);

    /// A level above 0 and at most 1 - 1e-12.
    ///
    /// # Errors
    /// When it is not.
    pub fn new(level: f64) -> Result<Self, ScoringError> {
        if level > 0.0 && level <= LARGEST {
            Ok(Self(level))
        } else {
            Err(ScoringError::Confidence { got: level })
        }
    }

    /// The level, between 0 and 1.
    pub fn level(self) -> f64 {
        self.0
    }

    /// The `z` with `P(|Z| < z)` = level for a standard normal `Z`: 2.576 at 99 %.
    pub fn normal_quantile(self) -> f64 {
        rise(self.0, normal_within)
    }

    /// The `t` with `P(|T| < t)` = level for Student's `T` with so many degrees of freedom: 63.66 at 99 % and 1 degree.
    ///
    /// # Panics
    /// When there are no degrees of freedom.
    #[track_caller]
    pub fn student_quantile(self, degrees: usize) -> f64 {
        assert!(degrees > 0, "Student's distribution with no degrees of freedom");
        let nu = degrees as f64;
        if degrees <= MANY_DEGREES {
            return nu.sqrt() * rise(self.0, |angle| student_within(angle, degrees)).tan();
        }
        // Abramowitz and Stegun 26.7.5.
        let z = self.normal_quantile();
        let squared = z * z;
        let first = z * (squared + 1.0) / 4.0;
        let second = z * ((5.0 * squared + 16.0) * squared + 3.0) / 96.0;
        let third = z * (((3.0 * squared + 19.0) * squared + 17.0) * squared - 15.0) / 384.0;
        z + (first + (second + third / nu) / nu) / nu
    }
}

/// Where a concave function that grows from 0 at 0 reaches a value; `at` gives it and its slope. Newton's steps, which never
/// pass the place, for the tangent of a concave function lies above it.
fn rise(value: f64, at: impl Fn(f64) -> (f64, f64)) -> f64 {
    let mut x = 0.0;
    loop {
        let (height, slope) = at(x);
        let next = x + (value - height) / slope;
        // A slope of 0, far out, gives no number.
        if next > x && next.is_finite() {
            x = next;
        } else {
            return x;
        }
    }
}

/// `P(|Z| < x)` = 2φ(x) Σ x^(2k+1) / (1·3·…·(2k+1)), Abramowitz and Stegun 26.2.11, with its slope 2φ(x).
fn normal_within(x: f64) -> (f64, f64) {
    let slope = 2.0 * (-x * x / 2.0).exp() / TAU.sqrt();
    let (mut term, mut sum, mut odd) = (x, x, 1.0);
    while term > sum * f64::EPSILON / 4.0 {
        odd += 2.0;
        term *= x * x / odd;
        sum += term;
    }
    (slope * sum, slope)
}

/// `P(|T| < t)` at `t = √ν tan(angle)`, the finite sums of Abramowitz and Stegun 26.7.3 and 26.7.4, with its slope by the angle,
/// which is that at 0 times `cos(angle)^(ν-1)`.
fn student_within(angle: f64, degrees: usize) -> (f64, f64) {
    let (sin, cos) = angle.sin_cos();
    let is_odd = degrees % 2 == 1;
    // The terms that go with sin(angle): each the one before times cos² and a fraction.
    let (mut term, mut factor) = (if is_odd { cos } else { 1.0 }, 1.0);
    let (mut sum, mut at_zero) = (0.0, 0.0);
    let mut power = usize::from(is_odd);
    while power + 2 <= degrees {
        sum += term;
        at_zero += factor;
        let fraction = (power + 1) as f64 / (power + 2) as f64;
        term *= cos * cos * fraction;
        factor *= fraction;
        power += 2;
    }
    let (within, slope) = if is_odd {
        (FRAC_2_PI * (angle + sin * sum), FRAC_2_PI * (1.0 + at_zero))
    } else {
        (sin * sum, at_zero)
    };
    (within, slope * cos.powf(degrees as f64 - 1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn assert_near(got: f64, want: f64, relative: f64) {
        assert!((got - want).abs() <= relative * want.abs(), "{got}, expected {want}");
    }

    #[test]
    fn normal_quantiles_are_those_of_the_tables() {
        assert_near(Confidence::P95.normal_quantile(), 1.959_963_984_540_054, 1e-13);
        assert_near(Confidence::P99.normal_quantile(), 2.575_829_303_548_901, 1e-13);
        assert_near(Confidence::new(0.5).unwrap().normal_quantile(), 0.674_489_750_196_081_7, 1e-13);
        assert_near(Confidence::new(0.999_999).unwrap().normal_quantile(), 4.891_638_475_671_085, 1e-10);
    }

    #[test]
    fn student_is_exact_where_it_has_a_closed_form() {
        for level in [0.01, 0.5, 0.9, 0.95, 0.99, 0.999] {
            let confidence = Confidence::new(level).unwrap();
            // One degree is Cauchy's; of two the quantile is level · √(2 / (1 - level²)).
            assert_near(confidence.student_quantile(1), (std::f64::consts::FRAC_PI_2 * level).tan(), 1e-12);
            let two = level * (2.0 / (1.0 - level * level)).sqrt();
            assert_near(confidence.student_quantile(2), two, 1e-12);
        }
    }

    #[test]
    fn student_quantiles_are_those_of_the_tables() {
        // 99 % and 95 %, as tables print them.
        for (degrees, at_99, at_95) in [
            (1, 63.656_74, 12.706_20),
            (2, 9.924_84, 4.302_65),
            (3, 5.840_91, 3.182_45),
            (4, 4.604_09, 2.776_45),
            (9, 3.249_84, 2.262_16),
            (30, 2.750_00, 2.042_27),
            (100, 2.625_89, 1.983_97),
        ] {
            assert_near(Confidence::P99.student_quantile(degrees), at_99, 2e-6);
            assert_near(Confidence::P95.student_quantile(degrees), at_95, 2e-6);
        }
    }

    #[test]
    fn the_series_meets_the_sum() {
        for level in [0.5, 0.95, 0.99, 0.9999] {
            let confidence = Confidence::new(level).unwrap();
            let (sum, series) =
                (confidence.student_quantile(MANY_DEGREES), confidence.student_quantile(MANY_DEGREES + 1));
            // One degree more moves the quantile by about (z³ + z) / (4 ν²), and no more than that.
            let z = confidence.normal_quantile();
            let step = (z * z * z + z) / (4.0 * (MANY_DEGREES * MANY_DEGREES) as f64);
            assert!(((sum - series) / step - 1.0).abs() < 0.02, "{level}: {sum} and {series}, step {step}");
        }
        assert_near(Confidence::P99.student_quantile(1_000_000_000), Confidence::P99.normal_quantile(), 1e-8);
    }

    #[test]
    fn levels_lie_between_0_and_1() {
        for level in [0.0, 1.0, -0.5, 99.0, f64::NAN] {
            assert!(Confidence::new(level).is_err(), "{level}");
        }
        let [least, most] = [1e-12, LARGEST].map(|level| Confidence::new(level).unwrap().normal_quantile());
        assert!(0.0 < least && least < 1e-11 && (7.1..7.2).contains(&most), "{least} {most}");
    }
}
