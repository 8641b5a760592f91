//! How far a loop is: a bar on a terminal, a plain line every few seconds elsewhere.

use std::fmt::{Display, Write as _};
use std::io::{self, IsTerminal};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{FormattedDuration, ProgressBar, ProgressStyle};

use crate::logging::BARS;

/// Time between two plain lines.
const LINE_EVERY: Duration = Duration::from_secs(5);

/// Counts steps and shows count, rate and time left on stderr; silent under `-q`.
///
/// Shared by reference between threads. Dropped unfinished (an error, say), it leaves nothing behind.
#[derive(Debug)]
pub struct Progress {
    label: String,
    unit: &'static str,
    started: Instant,
    bar: ProgressBar,
    plain: Option<Mutex<PlainLines>>,
}

#[derive(Debug)]
struct PlainLines {
    last: Instant,
    note: String,
}

impl Progress {
    /// Starts counting: `label` says what is done, `unit` what is counted (plural), `total` how many, if known.
    pub fn new(label: impl Into<String>, unit: &'static str, total: Option<u64>) -> Self {
        let label = label.into();
        let shown = tracing::enabled!(tracing::Level::INFO);
        let (bar, plain) = if shown && io::stderr().is_terminal() {
            let bar = total.map_or_else(ProgressBar::no_length, ProgressBar::new);
            let bar = BARS.add(bar.with_style(style(unit, total.is_some())).with_prefix(label.clone()));
            bar.enable_steady_tick(Duration::from_millis(200));
            (bar, None)
        } else {
            let bar = ProgressBar::hidden();
            if let Some(total) = total {
                bar.set_length(total);
            }
            let lines = PlainLines { last: Instant::now(), note: String::new() };
            (bar, shown.then(|| Mutex::new(lines)))
        };
        Self { label, unit, started: Instant::now(), bar, plain }
    }

    /// `n` more are done.
    pub fn inc(&self, n: u64) {
        self.bar.inc(n);
        let Some(plain) = &self.plain else { return };
        let mut lines = plain.lock().unwrap_or_else(PoisonError::into_inner);
        if lines.last.elapsed() >= LINE_EVERY {
            lines.last = Instant::now();
            tracing::info!("{}", self.line(&lines.note));
        }
    }

    /// A few words to show beside the count, such as the current loss.
    pub fn note(&self, note: impl Display) {
        match &self.plain {
            Some(plain) => plain.lock().unwrap_or_else(PoisonError::into_inner).note = note.to_string(),
            None => self.bar.set_message(note.to_string()),
        }
    }

    /// How many are done.
    pub fn position(&self) -> u64 {
        self.bar.position()
    }

    /// Takes the bar away and logs one line: how many, how long, how fast.
    pub fn finish(self) {
        self.bar.finish_and_clear();
        let seconds = self.started.elapsed().as_secs_f64();
        let (done, unit) = (self.position(), self.unit);
        tracing::info!(
            "{}: {done} {unit} in {seconds:.1} s ({:.1}/s)",
            self.label,
            done as f64 / seconds.max(1e-9)
        );
    }

    fn line(&self, note: &str) -> String {
        let done = self.position();
        let seconds = self.started.elapsed().as_secs_f64();
        let rate = done as f64 / seconds.max(1e-9);
        let mut line = match self.bar.length() {
            Some(total) => format!("{}: {done}/{total} {}, {rate:.1}/s", self.label, self.unit),
            None => format!("{}: {done} {}, {rate:.1}/s", self.label, self.unit),
        };
        if let Some(total) = self.bar.length()
            && rate > 0.0
        {
            let left = total.saturating_sub(done) as f64 / rate;
            let left = Duration::try_from_secs_f64(left.round()).unwrap_or_default();
            let _ = write!(line, ", {} left", FormattedDuration(left));
        }
        if !note.is_empty() {
            line += ", ";
            line += note;
        }
        line
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

fn style(unit: &str, bounded: bool) -> ProgressStyle {
    let template = if bounded {
        format!("{{prefix}} {{bar:24}} {{pos}}/{{len}} {unit} {{per_sec}} {{eta}} left {{msg}}")
    } else {
        format!("{{prefix}} {{spinner}} {{pos}} {unit} {{per_sec}} {{elapsed}} {{msg}}")
    };
    ProgressStyle::with_template(&template).unwrap_or_else(|_| ProgressStyle::default_bar())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_lines_say_count_rate_and_time_left() {
        let progress = Progress::new("shapes", "scenes", Some(100));
        progress.inc(40);
        let line = progress.line("half done");
        assert!(line.starts_with("shapes: 40/100 scenes, "), "{line}");
        assert!(line.contains("/s, 00:00:00 left, half done"), "{line}");
        assert_eq!(progress.position(), 40);

        let endless = Progress::new("read", "rows", None);
        endless.inc(3);
        assert!(endless.line("").starts_with("read: 3 rows, "));
    }

    #[test]
    fn templates_parse() {
        for bounded in [true, false] {
            let bar = ProgressBar::hidden().with_style(style("rows", bounded));
            bar.inc(1);
        }
        assert!(ProgressStyle::with_template("{bar:24} {pos}/{len} rows {per_sec} {eta} left {msg}").is_ok());
    }
}
