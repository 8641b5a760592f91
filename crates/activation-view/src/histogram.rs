//! [`Histogram`]: how values are spread, several sets below each other on one scale, as SVG.

use std::fmt::Write as _;

use crate::escaped;

/// The drawing's own units; it scales with the page.
const WIDTH: f64 = 640.0;
const BARS: f64 = 46.0;
const ROW: f64 = 80.0;
const AXIS: f64 = 30.0;

/// Histograms of several sets of values over one range, the first in a colour of its own. Its colours come from
/// [`PAGE_STYLE`](crate::PAGE_STYLE).
#[derive(Clone, Debug, PartialEq)]
pub struct Histogram {
    title: String,
    range: [f64; 2],
    bins: usize,
    decimals: usize,
    sets: Vec<Set>,
}

#[derive(Clone, Debug, PartialEq)]
struct Set {
    name: String,
    counts: Vec<usize>,
    n: usize,
    mean: Option<f64>,
}

impl Histogram {
    /// An empty drawing over `range`, `[low, high]`, in so many bins of equal width. Numbers are written with `decimals`.
    ///
    /// # Panics
    /// When the range is empty or has no bounds, or there are no bins.
    #[track_caller]
    pub fn new(title: impl Into<String>, range: [f64; 2], bins: usize, decimals: usize) -> Self {
        let [low, high] = range;
        assert!(low < high && (high - low).is_finite(), "a histogram from {low} to {high}");
        assert!(bins > 0, "a histogram without bins");
        Self { title: title.into(), range, bins, decimals, sets: Vec::new() }
    }

    /// Adds a set of values. A value on an edge belongs to the bin above it, the upper end to the last bin; those outside the
    /// range are drawn in the first and the last bin. What is not a number is left out.
    pub fn set(&mut self, name: impl Into<String>, values: &[f64]) -> &mut Self {
        let mut counts = vec![0; self.bins];
        let (mut n, mut sum) = (0usize, 0.0);
        for &value in values.iter().filter(|value| value.is_finite()) {
            counts[self.bin(value)] += 1;
            n += 1;
            sum += value;
        }
        let mean = (n > 0).then(|| sum / n as f64);
        self.sets.push(Set { name: name.into(), counts, n, mean });
        self
    }

    fn bin(&self, value: f64) -> usize {
        // A float beyond the range of usize becomes its nearest end.
        ((self.share(value) * self.bins as f64) as usize).min(self.bins - 1)
    }

    /// Where in the range a value lies, 0 to 1, as if it were not beyond it.
    fn share(&self, value: f64) -> f64 {
        ((value - self.range[0]) / (self.range[1] - self.range[0])).clamp(0.0, 1.0)
    }

    /// The drawing: an `svg` element with a text alternative, and a tooltip on each bar.
    pub fn svg(&self) -> String {
        let decimals = self.decimals;
        let height = ROW * self.sets.len() as f64 + AXIS;
        let told: Vec<String> = self.sets.iter().map(|set| self.told(set)).collect();
        let label = escaped(&format!("{}. {}", self.title, told.join("; ")));
        let mut svg = format!(
            "<svg class=\"histogram\" viewBox=\"0 0 {WIDTH} {height}\" role=\"img\" aria-label=\"{label}\">"
        );
        // Sets are compared by the share of their values in a bin, whatever their size.
        let share = |set: &Set, count: usize| if set.n == 0 { 0.0 } else { count as f64 / set.n as f64 };
        let most = self.sets.iter().flat_map(|set| set.counts.iter().map(|&count| share(set, count)));
        let most = most.fold(f64::MIN_POSITIVE, f64::max);
        let edge =
            |bin: usize| self.range[0] + (self.range[1] - self.range[0]) * bin as f64 / self.bins as f64;
        let width = WIDTH / self.bins as f64;
        for (at, set) in self.sets.iter().enumerate() {
            let top = ROW * at as f64;
            let bottom = ROW * (at + 1) as f64 - 8.0;
            let class = if at == 0 { "first" } else { "other" };
            let mean = set.mean.map_or(String::new(), |mean| format!(", mean {mean:.decimals$}"));
            let _ = write!(
                svg,
                "<text x=\"0\" y=\"{:.1}\">{}</text><text class=\"quiet\" x=\"{WIDTH}\" y=\"{:.1}\" text-anchor=\"end\">n {}{mean}</text>",
                top + 15.0,
                escaped(&set.name),
                top + 15.0,
                set.n
            );
            for (bin, &count) in set.counts.iter().enumerate().filter(|(_, count)| **count > 0) {
                // Never too low to be seen.
                let tall = (BARS * share(set, count) / most).max(1.0);
                let _ = write!(
                    svg,
                    "<rect class=\"{class}\" x=\"{:.2}\" y=\"{:.2}\" width=\"{:.2}\" height=\"{tall:.2}\"><title>{:.decimals$} to {:.decimals$}: {count} of {}</title></rect>",
                    width * bin as f64 + 0.5,
                    bottom - tall,
                    width - 1.0,
                    edge(bin),
                    edge(bin + 1),
                    set.n
                );
            }
            let _ = write!(svg, "<line x1=\"0\" x2=\"{WIDTH}\" y1=\"{bottom}\" y2=\"{bottom}\"/>");
            if let Some(mean) = set.mean {
                let x = (WIDTH * self.share(mean)).clamp(1.0, WIDTH - 1.0);
                let _ = write!(
                    svg,
                    "<line class=\"mean\" x1=\"{x:.2}\" x2=\"{x:.2}\" y1=\"{:.1}\" y2=\"{bottom}\"/>",
                    bottom - BARS - 2.0
                );
            }
        }
        const TICKS: usize = 4;
        for tick in 0..=TICKS {
            let share = tick as f64 / TICKS as f64;
            let anchor = match tick {
                0 => "start",
                TICKS => "end",
                _ => "middle",
            };
            let value = self.range[0] + (self.range[1] - self.range[0]) * share;
            let _ = write!(
                svg,
                "<text class=\"quiet\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"{anchor}\">{value:.decimals$}</text>",
                WIDTH * share,
                height - 16.0
            );
        }
        svg + "</svg>"
    }

    fn told(&self, set: &Set) -> String {
        let decimals = self.decimals;
        match set.mean {
            Some(mean) => format!("{}: {} values, mean {mean:.decimals$}", set.name, set.n),
            None => format!("{}: no values", set.name),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_fall_into_bins_and_ends_belong_to_the_last() {
        let mut histogram = Histogram::new("x", [0.0, 1.0], 4, 2);
        histogram.set("a", &[0.0, 0.24, 0.25, 0.5, 0.999, 1.0, 7.0, -3.0, f64::NAN, f64::INFINITY]);
        let set = &histogram.sets[0];
        assert_eq!((set.counts.as_slice(), set.n), (&[3, 1, 1, 3][..], 8));
    }

    #[test]
    fn the_drawing_says_what_it_shows() {
        let mut histogram = Histogram::new("Overlap & more", [0.0, 100.0], 10, 1);
        histogram.set("<own>", &[5.0, 5.0, 95.0, 15.0]).set("none", &[]);
        let svg = histogram.svg();
        assert!(
            svg.contains(
                "aria-label=\"Overlap &amp; more. &lt;own&gt;: 4 values, mean 30.0; none: no values\""
            ),
            "{svg}"
        );
        assert!(
            svg.contains("<title>0.0 to 10.0: 2 of 4</title>") && svg.contains(">n 4, mean 30.0</text>"),
            "{svg}"
        );
        // The fullest bin is as tall as bars get, one with half as many half of it.
        assert!(svg.contains("height=\"46.00\"") && svg.contains("height=\"23.00\""), "{svg}");
        assert_eq!(svg.matches("<rect class=\"first\"").count(), 3);
        assert!(!svg.contains("<own>") && svg.ends_with("</svg>"));
        // The mean lies at three tenths of the width.
        assert!(svg.contains("class=\"mean\" x1=\"192.00\""), "{svg}");
    }

    #[test]
    fn an_empty_drawing_is_an_axis() {
        let svg = Histogram::new("x", [-1.0, 1.0], 5, 1).svg();
        assert!(svg.contains(">-1.0</text>") && svg.contains(">0.5</text>") && !svg.contains("NaN"), "{svg}");
    }

    #[test]
    #[should_panic(expected = "a histogram from 1 to 1")]
    fn ranges_have_an_extent() {
        Histogram::new("x", [1.0, 1.0], 5, 1);
    }
}
