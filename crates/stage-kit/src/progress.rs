//! How far a loop is: a bar on a terminal, a plain line every few seconds elsewhere.

use std::fmt::{Display, Write as _};
use std::io::{self, IsTerminal};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{FormattedDuration, ProgressBar, ProgressStyle};

use crate::logging::BARS;

/// Time between two plain lines.
const LINE_EVERY: Duration = Duration::from_secs(5);

/// Notes longer than this many characters stand on a line of their own below the bar.
const LONGEST_BESIDE: usize = 30;

/// Counts steps and shows count, rate and time left on stderr; silent under `-q`.
///
/// Shared by reference between threads. Dropped unfinished (an error, say), it leaves nothing behind.
#[derive(Debug)]
pub struct Progress {
    label: String,
    unit: &'static str,
    started: Instant,
    bar: ProgressBar,
    /// Whether the bar has a second line for its notes; once there, it stays, so that the lines do not jump.
    tall: AtomicBool,
    /// Steps an earlier run did.
    skipped: AtomicU64,
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
            let bar =
                BARS.add(bar.with_style(style(unit, total.is_some(), false)).with_prefix(label.clone()));
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
        Self {
            label,
            unit,
            started: Instant::now(),
            bar,
            tall: AtomicBool::new(false),
            skipped: AtomicU64::new(0),
            plain,
        }
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

    /// An earlier run did the first `n`: they are counted as done, but not in the rate.
    pub fn skip(&self, n: u64) {
        self.skipped.fetch_add(n, Ordering::Relaxed);
        self.bar.inc(n);
        self.bar.reset_eta();
    }

    /// A few words to show beside the count, such as the current loss; a whole line of them stands below the bar, cut off
    /// at the terminal's width.
    pub fn note(&self, note: impl Display) {
        let note = note.to_string();
        if let Some(plain) = &self.plain {
            plain.lock().unwrap_or_else(PoisonError::into_inner).note = note;
            return;
        }
        if note.chars().count() > LONGEST_BESIDE && !self.tall.swap(true, Ordering::Relaxed) {
            self.bar.set_style(style(self.unit, self.bar.length().is_some(), true));
        }
        self.bar.set_message(note);
    }

    /// How many are done.
    pub fn position(&self) -> u64 {
        self.bar.position()
    }

    /// Takes the bar away and logs one line: how many, how long, how fast.
    pub fn finish(self) {
        self.bar.finish_and_clear();
        let seconds = self.started.elapsed().as_secs_f64();
        let (done, unit) = (self.own(), self.unit);
        tracing::info!(
            "{}: {done} {unit} in {seconds:.1} s ({:.1}/s)",
            self.label,
            done as f64 / seconds.max(1e-9)
        );
    }

    /// How many this run did.
    fn own(&self) -> u64 {
        self.position().saturating_sub(self.skipped.load(Ordering::Relaxed))
    }

    fn line(&self, note: &str) -> String {
        let done = self.position();
        let seconds = self.started.elapsed().as_secs_f64();
        let rate = self.own() as f64 / seconds.max(1e-9);
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

fn style(unit: &str, bounded: bool, tall: bool) -> ProgressStyle {
    let note = if tall { "\n  {wide_msg}" } else { " {msg}" };
    let template = if bounded {
        format!("{{prefix}} {{bar:24}} {{pos}}/{{len}} {unit} {{per_sec}} {{eta}} left{note}")
    } else {
        format!("{{prefix}} {{spinner}} {{pos}} {unit} {{per_sec}} {{elapsed}}{note}")
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

    /// Keeps what is drawn.
    #[derive(Clone, Debug, Default)]
    struct Screen(std::sync::Arc<Mutex<String>>);

    impl indicatif::TermLike for Screen {
        fn width(&self) -> u16 {
            80
        }
        fn move_cursor_up(&self, _: usize) -> io::Result<()> {
            Ok(())
        }
        fn move_cursor_down(&self, _: usize) -> io::Result<()> {
            Ok(())
        }
        fn move_cursor_right(&self, _: usize) -> io::Result<()> {
            Ok(())
        }
        fn move_cursor_left(&self, _: usize) -> io::Result<()> {
            Ok(())
        }
        fn write_line(&self, text: &str) -> io::Result<()> {
            self.write_str(&format!("{text}\n"))
        }
        fn write_str(&self, text: &str) -> io::Result<()> {
            self.0.lock().unwrap().push_str(text);
            Ok(())
        }
        fn clear_line(&self) -> io::Result<()> {
            self.write_str("\r")
        }
        fn flush(&self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_long_note_gets_a_line_of_its_own_and_keeps_it() {
        for total in [Some(100), None] {
            let screen = Screen::default();
            let target = indicatif::ProgressDrawTarget::term_like(Box::new(screen.clone()));
            let bar = ProgressBar::with_draw_target(total, target).with_prefix("train");
            bar.set_style(style("rows", total.is_some(), false));
            let tall = AtomicBool::new(false);
            let progress = Progress {
                label: String::new(),
                unit: "rows",
                started: Instant::now(),
                bar,
                tall,
                skipped: AtomicU64::new(0),
                plain: None,
            };
            let drawn = |note: &str| {
                screen.0.lock().unwrap().clear();
                progress.note(note);
                progress.bar.force_draw();
                let text = screen.0.lock().unwrap().clone();
                // Every line but the last is filled up to the width of the screen.
                let shown: Vec<char> = text.rsplit('\r').next().unwrap().chars().collect();
                shown
                    .chunks(80)
                    .map(|line| line.iter().collect::<String>().trim().to_owned())
                    .collect::<Vec<_>>()
            };
            let short = drawn("loss 0.1");
            assert_eq!(short.len(), 1, "{short:?}");
            assert!(short[0].starts_with("train") && short[0].ends_with("loss 0.1"), "{short:?}");
            let long = "model.layers.12 fvu 0.123, ".repeat(4);
            for note in [long.as_str(), "loss 0.1"] {
                let lines = drawn(note);
                assert_eq!(lines.len(), 2, "{lines:?}");
                assert!(lines[0].starts_with("train") && lines[0].ends_with(['t', 's']), "{lines:?}");
                assert!(!lines[1].is_empty() && note.starts_with(&lines[1]), "{lines:?}");
            }
        }
    }

    #[test]
    fn what_an_earlier_run_did_is_not_in_the_rate() {
        let progress = Progress::new("caching", "images", Some(100));
        progress.skip(90);
        assert_eq!(progress.position(), 90);
        assert!(progress.line("").starts_with("caching: 90/100 images, 0.0/s"), "{}", progress.line(""));
        progress.inc(5);
        assert_eq!((progress.position(), progress.own()), (95, 5));
    }

    #[test]
    fn templates_parse() {
        for (bounded, tall) in [(true, false), (true, true), (false, false), (false, true)] {
            let bar = ProgressBar::hidden().with_style(style("rows", bounded, tall));
            bar.inc(1);
        }
        assert!(ProgressStyle::with_template("{bar:24} {pos}/{len} rows {per_sec} {eta} left {msg}").is_ok());
    }
}
