//! How long to wait before trying again.

use std::time::{Duration, SystemTime};

use reqwest::header::HeaderMap;

use crate::RetryPolicy;

/// Longer waits than this that a server asks for are not heeded.
const LONGEST_ASKED: Duration = Duration::from_hours(1);

impl RetryPolicy {
    /// The wait after attempt `attempt`, from 1; `jitter` from 0 to 1.
    pub(crate) fn wait(&self, attempt: u32, asked: Option<Duration>, jitter: f64) -> Duration {
        let factor = 2u32.saturating_pow(attempt.saturating_sub(1));
        let own = self.first_wait.saturating_mul(factor).min(self.longest_wait);
        let own = own.mul_f64(0.5 + 0.5 * jitter.clamp(0.0, 1.0));
        // What is asked for is kept to, and a little more, so that not all come back at once.
        asked.map_or(own, |asked| own.max(asked + own.min(asked).mul_f64(0.1 * jitter)))
    }
}

/// What the server asks for with `retry-after-ms` or `Retry-After`, in seconds or as a date.
pub(crate) fn asked_for(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).map(str::trim);
    let wait = if let Some(millis) = text("retry-after-ms").and_then(|text| text.parse::<f64>().ok()) {
        Duration::try_from_secs_f64(millis / 1000.0).ok()?
    } else {
        let text = text("retry-after")?;
        match text.parse::<f64>() {
            Ok(seconds) => Duration::try_from_secs_f64(seconds).ok()?,
            Err(_) => httpdate::parse_http_date(text).ok()?.duration_since(now).unwrap_or_default(),
        }
    };
    Some(wait.min(LONGEST_ASKED))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_the_longest_and_are_shortened_by_half_at_most() {
        let policy = RetryPolicy::default();
        let seconds = |attempt, jitter| policy.wait(attempt, None, jitter).as_secs_f64();
        assert_eq!([1, 2, 3, 4].map(|attempt| seconds(attempt, 1.0)), [1.0, 2.0, 4.0, 8.0]);
        assert_eq!([1, 7, 30, 60].map(|attempt| seconds(attempt, 0.0)), [0.5, 30.0, 30.0, 30.0]);
    }

    #[test]
    fn what_the_server_asks_for_is_the_least() {
        let policy = RetryPolicy::default();
        let minute = Some(Duration::from_mins(1));
        assert!(policy.wait(1, minute, 0.0) >= Duration::from_mins(1));
        assert!(policy.wait(1, minute, 1.0) < Duration::from_secs(61));
        assert_eq!(policy.wait(1, Some(Duration::ZERO), 1.0), Duration::from_secs(1));
    }

    #[test]
    fn the_header_has_three_forms() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_770);
        for (name, value, wait) in [
            ("retry-after", "7", Some(7000)),
            ("retry-after", "0.5", Some(500)),
            ("retry-after-ms", "120", Some(120)),
            ("retry-after", "Sun, 06 Nov 1994 08:49:37 GMT", Some(7000)),
            ("retry-after", "Sun, 06 Nov 1994 08:49:00 GMT", Some(0)),
            ("retry-after", "999999", Some(3_600_000)),
            ("retry-after", "soon", None),
            ("retry-after", "-1", None),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(name, value.parse().unwrap());
            assert_eq!(asked_for(&headers, now), wait.map(Duration::from_millis), "{name}: {value}");
        }
    }
}
