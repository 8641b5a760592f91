//! A client for OpenAI-compatible chat servers (SGLang, vLLM, llama.cpp, `lmm-serve`, hosted APIs) that survives their moods.
//!
//! [`ChatClient::complete`] sends a [`ChatRequest`], whose messages may hold images, and gives a [`ChatReply`] or an error that
//! trying again would not mend. Everything else is tried again: refused and cut connections, time-outs, 408, 429 and 5xx (with
//! the server's `Retry-After`), broken JSON, empty answers. A server that is gone altogether is waited for: all requests pause,
//! one of them asks whether it is back, and being gone costs no attempt. The client counts tokens and money, and keeps to limits of requests at once and
//! per minute. It knows no prompts.
//!
//! ```no_run
//! use chat_client::{ApiKey, ChatClient, ChatMessage, ChatRequest, ClientOptions, Image};
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let options = ClientOptions { key: ApiKey::from_env("OPENAI_API_KEY"), ..ClientOptions::new("http://127.0.0.1:30000/v1") };
//! let client = ChatClient::new(options)?;
//! let picture = Image::new("image/jpeg", std::fs::read("train.jpg")?);
//! let message = ChatMessage::user("What is in the lit part of this picture?").with_image(picture);
//! let request = ChatRequest { temperature: Some(0.0), ..ChatRequest::new("llava-onevision-72b", [message]) };
//! println!("{}", client.complete(&request).await?.text);
//! # Ok(())
//! # }
//! ```
//!
//! # Concurrency
//!
//! A [`ChatClient`] is cheap to clone and all clones share the limits, the counts and what is known of the server. Start as many calls as you like;
//! [`ClientOptions::max_concurrent`] of them are on their way at once.

mod breaker;
mod client;
mod error;
mod key;
mod ledger;
mod limits;
mod options;
mod reply;
mod request;
mod retry;
mod totals;

pub use client::ChatClient;
pub use error::ChatError;
pub use key::ApiKey;
pub use ledger::{Ledger, LedgerError, LedgerFile};
pub use options::{ClientOptions, Prices, RetryPolicy};
pub use reply::{ChatReply, FinishReason, TokenLogprob, Usage};
pub use request::{ChatMessage, ChatRequest, Content, Image, ImageDetail, Role};
pub use totals::Totals;
