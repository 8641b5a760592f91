//! The flags.

use std::num::NonZeroUsize;
use std::str::FromStr;

use clap::Parser;
use model_kit::{PrecisionArgs, TorchArgs};
use stage_kit::CommonArgs;

use crate::steer::SteerFlag;

/// Serve a LLaVA-NeXT model behind OpenAI's chat interface, steered by a sparse autoencoder if asked to
#[derive(Debug, Parser)]
#[command(version, after_help = EXAMPLE)]
pub(crate) struct Args {
    /// LLaVA-NeXT model: a folder in Hugging Face layout or a Hub id
    pub(crate) model: String,
    /// Address to listen on; other machines reach the server only if this is not a loopback address
    #[arg(long, default_value = "127.0.0.1")]
    pub(crate) host: String,
    /// Port to listen on; 0 takes a free one
    #[arg(long, default_value_t = 30000)]
    pub(crate) port: u16,
    /// Environment variable with the key that clients must send; default: LMM_SERVE_API_KEY, and no key if that is not set
    #[arg(long, value_name = "NAME")]
    pub(crate) api_key_env: Option<String>,
    /// What clients call the model; default: the folder's name, or the Hub id
    #[arg(long, value_name = "NAME")]
    pub(crate) served_model_name: Option<String>,
    /// Answers written at the same time at most
    #[arg(long, default_value_t = NonZeroUsize::new(16).expect("16 is not 0"))]
    pub(crate) max_batch: NonZeroUsize,
    /// Tokens of a batch at most, as rows times (longest prompt + longest answer): what the key-value cache holds. It also bounds a single request
    #[arg(long, default_value_t = NonZeroUsize::new(65_536).expect("it is not 0"))]
    pub(crate) max_batch_tokens: NonZeroUsize,
    /// Requests that may wait; those beyond are told to come back (503)
    #[arg(long, default_value_t = NonZeroUsize::new(256).expect("256 is not 0"))]
    pub(crate) backlog: NonZeroUsize,
    /// Largest request, images in base64 included: a number of bytes, or of KiB, MiB, GiB
    #[arg(long, default_value = "64MiB")]
    pub(crate) max_body: ByteSize,
    /// Images in a request at most
    #[arg(long, default_value_t = 16)]
    pub(crate) max_images: usize,
    /// Pixels of all images of a request together at most
    #[arg(long, default_value_t = 50_000_000)]
    pub(crate) max_pixels: u64,
    /// Longest answer, in tokens, to a request that does not say; default: max_new_tokens of the model's generation_config.json, or 512
    #[arg(long)]
    pub(crate) max_tokens: Option<NonZeroUsize>,
    /// Sparse autoencoders to steer by: a folder of HOOKPOINT/{cfg.json,sae.safetensors} or a Hub id
    #[arg(long)]
    pub(crate) sae: Option<String>,
    /// Hold a feature at a value on every token of every request that names no steering of its own; may be repeated
    #[arg(long, value_name = "[HOOK:]FEATURE=VALUE", requires = "sae", allow_hyphen_values = true)]
    pub(crate) steer: Vec<SteerFlag>,
    #[command(flatten)]
    pub(crate) precision: PrecisionArgs,
    #[command(flatten)]
    pub(crate) torch: TorchArgs,
    #[command(flatten)]
    pub(crate) common: CommonArgs,
}

const EXAMPLE: &str = "\
Example:
  lmm-serve assets/shapes-lmm-s --sae sae --steer model.layers.2:17=8

The address is printed on stdout once the server answers. docs/serving.md says what it understands.";

/// A number of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ByteSize(pub(crate) usize);

impl FromStr for ByteSize {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
        let unit: usize = match text[digits.len()..].trim() {
            "" | "B" => 1,
            "KiB" => 1 << 10,
            "MiB" => 1 << 20,
            "GiB" => 1 << 30,
            other => return Err(format!("{other:?} is no unit; use KiB, MiB or GiB")),
        };
        let count: usize = digits.parse().map_err(|_| format!("{text:?} is no number of bytes"))?;
        match count.checked_mul(unit) {
            Some(bytes) if bytes > 0 => Ok(Self(bytes)),
            _ => Err(format!("{text:?} is no size a request can have")),
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn sizes() {
        let parse = |text: &str| text.parse::<ByteSize>().map(|size| size.0).ok();
        assert_eq!(
            ["7", "2KiB", "64MiB", "1 GiB"].map(parse),
            [Some(7), Some(2048), Some(64 << 20), Some(1 << 30)]
        );
        assert_eq!(["", "MiB", "3MB", "-1", "0", "99999999999GiB", "1.5MiB"].map(parse), [None; 7]);
    }

    #[test]
    fn flags_are_sound() {
        Args::command().debug_assert();
        let steer = ["lmm-serve", "m", "--sae", "s", "--steer", "3=-1.5", "--steer", "model.layers.2:4=2"];
        assert_eq!(Args::try_parse_from(steer).unwrap().steer.len(), 2);
        assert!(Args::try_parse_from(["lmm-serve", "m", "--steer", "3=1"]).is_err());
    }
}
