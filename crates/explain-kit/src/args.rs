//! The flags of what asks a server, and what of them decides an answer.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::path::PathBuf;

use stage_kit::hash_bytes;

use crate::ExplainKitError;

/// How many digits of a hash a ledger's lines hold.
const SHORT: usize = 16;

/// The server that is asked, and how.
#[derive(Debug, clap::Args)]
pub struct ServerArgs {
    /// OpenAI-compatible server, up to and with /v1
    #[arg(long, default_value = "http://127.0.0.1:30000/v1", help_heading = "Server")]
    pub endpoint: String,
    /// The model's name on the server; default: the only one it lists
    #[arg(long, help_heading = "Server")]
    pub explainer: Option<String>,
    /// Environment variable that holds the API key, if the server wants one
    #[arg(long, default_value = "OPENAI_API_KEY", help_heading = "Server")]
    pub api_key_env: String,
    /// Requests on their way at once
    #[arg(long, default_value_t = NonZeroUsize::new(8).expect("8 is not 0"), help_heading = "Server")]
    pub concurrency: NonZeroUsize,
    /// Requests started per minute; default: no limit
    #[arg(long, help_heading = "Server")]
    pub requests_per_minute: Option<NonZeroUsize>,
    /// Seconds to wait for an answer
    #[arg(long, default_value_t = 300.0, value_parser = seconds, help_heading = "Server")]
    pub timeout: f64,
    /// Seconds to wait for a server that is gone to come back
    #[arg(long, default_value_t = 600.0, value_parser = seconds, help_heading = "Server")]
    pub patience: f64,
    /// Tries per request before its failure is recorded
    #[arg(long, default_value_t = 6, value_parser = clap::value_parser!(u32).range(1..), help_heading = "Server")]
    pub attempts: u32,
    /// Price of a million tokens of prompts, in any currency
    #[arg(long, requires = "price_completion", value_parser = amount, help_heading = "Server")]
    pub price_prompt: Option<f64>,
    /// Price of a million tokens of answers
    #[arg(long, requires = "price_prompt", value_parser = amount, help_heading = "Server")]
    pub price_completion: Option<f64>,
    /// Longest answer, in tokens
    #[arg(long, default_value_t = 512, help_heading = "Server")]
    pub max_tokens: u32,
    /// 0 for the likeliest answer
    #[arg(long, default_value_t = 0.0, value_parser = amount, help_heading = "Server")]
    pub temperature: f64,
    /// How often to ask before an answer that cannot be read is recorded as such; from the second time on at a temperature of
    /// 0.7 at least
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..), help_heading = "Server")]
    pub asks: u32,
    /// File with instructions of your own. They follow the pictures, and nothing is added to them: of counterexamples (images
    /// --negatives) they must tell themselves. Replaced in them are {examples} by text, {explanation} by the stages that follow, and by
    /// sae-steer judge {explanation}, {change}, {original} and {steered}. Answers are read behind a marker: `[EXPLANATION]` for
    /// images and text, `[ANSWER]` for the others; label, consistency, judge and the scores also take an answer that is the one
    /// word and no more
    #[arg(long, value_name = "FILE", help_heading = "Server")]
    pub prompt: Option<PathBuf>,
}

/// What to do with what an earlier run left.
#[derive(Debug, clap::Args)]
pub struct RunArgs {
    /// Go on with what the folder holds, if anything: only what is missing is asked
    #[arg(long)]
    pub resume: bool,
    /// Remove what the folder holds of this stage and start anew
    #[arg(long, conflicts_with = "resume")]
    pub overwrite: bool,
    /// With --resume, ask again what failed or could not be read
    #[arg(long, requires = "resume")]
    pub retry_failed: bool,
}

/// The start of a text's hash, for a ledger's lines.
pub fn short_hash(text: &str) -> String {
    hash_bytes(text.as_bytes())[..SHORT].to_owned()
}

/// Instructions, and the hash they are told apart by.
#[derive(Clone, Debug)]
pub struct Instruction {
    /// The words.
    pub text: String,
    sha256: String,
}

impl Instruction {
    /// The user's own, or else those given.
    ///
    /// # Errors
    /// When the user's file cannot be read, or is empty.
    pub fn of(server: &ServerArgs, default: String) -> Result<Self, ExplainKitError> {
        let text = match &server.prompt {
            None => default,
            Some(path) => {
                let text =
                    std::fs::read_to_string(path).map_err(ExplainKitError::io("the instructions", path))?;
                if text.trim().is_empty() {
                    return Err(ExplainKitError::usage(format!("{} holds no instructions", path.display())));
                }
                text
            }
        };
        let sha256 = hash_bytes(text.as_bytes());
        Ok(Self { text, sha256 })
    }

    /// The start of the hash, for a ledger's lines.
    pub fn short_hash(&self) -> String {
        self.sha256[..SHORT].to_owned()
    }
}

/// What decides an answer, by flag, beyond what a stage shows. The seed is among it where it may matter.
pub fn settings(
    server: &ServerArgs,
    model: &str,
    instruction: &Instruction,
    seed: u64,
) -> BTreeMap<String, String> {
    let of = |name: &str, value: String| (name.to_owned(), value);
    let mut settings = BTreeMap::from([
        of("--explainer", model.to_owned()),
        of("--prompt (SHA-256)", instruction.sha256.clone()),
        of("--temperature", server.temperature.to_string()),
        of("--max-tokens", server.max_tokens.to_string()),
        of("--asks", server.asks.to_string()),
    ]);
    // What is asked again is sampled, whatever the temperature.
    if server.temperature > 0.0 || server.asks > 1 {
        settings.extend([of("--seed", seed.to_string())]);
    }
    settings
}

/// Reads a share, from 0 to 1, of the command line.
///
/// # Errors
/// When it is none.
pub fn share(text: &str) -> Result<f32, String> {
    let share = text.parse().ok().filter(|share| (0.0..=1.0).contains(share));
    share.ok_or_else(|| "expected a number from 0 to 1".to_owned())
}

/// A number that is not negative, nor infinite.
fn amount(text: &str) -> Result<f64, String> {
    let amount = text.parse().ok().filter(|amount: &f64| amount.is_finite() && *amount >= 0.0);
    amount.ok_or_else(|| "expected a number from 0".to_owned())
}

fn seconds(text: &str) -> Result<f64, String> {
    let seconds: f64 = text.parse().map_err(|_| "expected a number of seconds".to_owned())?;
    let sound = seconds > 0.0 && std::time::Duration::try_from_secs_f64(seconds).is_ok();
    if sound { Ok(seconds) } else { Err("expected a number of seconds above 0".to_owned()) }
}
