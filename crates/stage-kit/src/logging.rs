//! The log: stderr, one line an event, above the progress bars.

use std::io::{self, IsTerminal, Write};
use std::sync::LazyLock;

use chrono::{SecondsFormat, Utc};
use indicatif::MultiProgress;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::FormatTime;

/// All bars of the process, so that log lines can step aside for them.
pub(crate) static BARS: LazyLock<MultiProgress> = LazyLock::new(MultiProgress::new);

/// Installs the subscriber; `verbosity` counts from 0 = info, up = more.
pub(crate) fn init(verbosity: i16) {
    let directives = match verbosity {
        ..=-3 => "off",
        -2 => "error",
        -1 => "warn",
        0 => "info",
        1 => "debug,ureq=info,ureq_proto=info,rustls=info,hyper=info",
        2.. => "trace",
    };
    let filter = match std::env::var("RUST_LOG") {
        Ok(own) if !own.is_empty() => EnvFilter::builder().parse_lossy(own),
        _ => EnvFilter::new(directives),
    };
    let ansi =
        io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(ansi)
        .with_target(verbosity > 0)
        .with_timer(UtcSeconds)
        .with_writer(|| BesideBars);
    // Fails only when one is installed already, as in a second call.
    let _ = subscriber.try_init();
}

/// Now, in UTC, to the second: `2026-01-31T12:00:00Z`.
pub(crate) fn utc_now() -> String {
    Utc::now().to_rfc3339_opts(SecondsFormat::Secs, true)
}

struct UtcSeconds;

impl FormatTime for UtcSeconds {
    fn format_time(&self, writer: &mut Writer<'_>) -> std::fmt::Result {
        writer.write_str(&utc_now())
    }
}

/// stderr, with the bars taken away while it writes.
pub(crate) struct BesideBars;

impl Write for BesideBars {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        BARS.suspend(|| io::stderr().write(bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}
