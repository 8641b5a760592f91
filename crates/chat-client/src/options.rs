//! [`ClientOptions`]: where the server is, and how patient to be with it.

use std::num::NonZeroUsize;
use std::time::Duration;

use crate::ApiKey;

/// Where the server is, and how patient to be with it.
#[derive(Clone, Debug, PartialEq)]
pub struct ClientOptions {
    /// Where the endpoints begin, `/v1` included: `http://127.0.0.1:30000/v1`.
    pub base_url: String,
    /// Sent as a bearer token, if there is one.
    pub key: Option<ApiKey>,
    /// From sending a request to the last byte of its answer.
    pub timeout: Duration,
    /// How often to try again, and after how long.
    pub retry: RetryPolicy,
    /// For how long to wait for a server that is gone before giving up.
    pub patience: Duration,
    /// How many requests may be on their way at once.
    pub max_concurrent: NonZeroUsize,
    /// How many requests may start per minute.
    pub requests_per_minute: Option<NonZeroUsize>,
    /// What tokens cost.
    pub prices: Option<Prices>,
}

/// When to try again. The wait before attempt `n + 1` is `first_wait · 2^(n-1)`, at most `longest_wait`, times a random
/// number from 0.5 to 1; or what the server asks for with `Retry-After`, if that is longer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RetryPolicy {
    /// Attempts in all, at least 1.
    pub attempts: u32,
    /// The wait after the first attempt, before it is shortened at random.
    pub first_wait: Duration,
    /// The longest wait of the client's own choosing.
    pub longest_wait: Duration,
}

/// Money per million tokens, in any currency.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Prices {
    /// Of the prompt, images included as the server counts them.
    pub prompt: f64,
    /// Of the answer.
    pub completion: f64,
}

impl ClientOptions {
    /// A server without a key: 8 requests at once, 5 minutes each, 6 attempts, 10 minutes of patience.
    pub fn new(base_url: impl Into<String>) -> Self {
        const EIGHT: NonZeroUsize = NonZeroUsize::new(8).unwrap();
        Self {
            base_url: base_url.into(),
            key: None,
            timeout: Duration::from_mins(5),
            retry: RetryPolicy::default(),
            patience: Duration::from_mins(10),
            max_concurrent: EIGHT,
            requests_per_minute: None,
            prices: None,
        }
    }
}

impl Default for RetryPolicy {
    /// 6 attempts, waiting 1 s at first and a minute at most.
    fn default() -> Self {
        Self { attempts: 6, first_wait: Duration::from_secs(1), longest_wait: Duration::from_mins(1) }
    }
}
