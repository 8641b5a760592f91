//! [`SaeConfig`]: the `cfg.json` of sparsify and msae.
//!
//! Mirrors `SparseCoderConfig` of EleutherAI/sparsify at 9d3b136 (v1.3.0) and `SaeConfig` of
//! EvolvingLMMs-Lab/multimodal-sae at 60265c3. Absent keys take the Python defaults, keys that neither has are
//! ignored as sparsify ignores them, and keys that change the numbers in a way this crate does not compute are refused:
//! `signed: true` (TopK without ReLU, until August 2024; today's sparsify drops it silently), `activation` other
//! than `topk`, `transcode`, `skip_connection`.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::SaeError;

/// Which latents a row keeps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Activation {
    /// ReLU, then the k largest.
    #[default]
    TopK,
}

/// The shape and the kind of an autoencoder.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SaeConfig {
    /// Which latents a row keeps.
    pub activation: Activation,
    /// Length of the vectors it reads and writes.
    pub d_in: usize,
    /// Number of latents; never 0, the file's "0 means `d_in * expansion_factor`" is resolved on reading.
    pub num_latents: usize,
    /// How many latents a row keeps at most.
    pub k: usize,
    /// Latents per dimension as the file states it; without effect, because `num_latents` is set.
    pub expansion_factor: usize,
    /// Whether training kept the decoder's rows at length 1.
    pub normalize_decoder: bool,
    /// Whether training added the Multi-TopK loss.
    pub multi_topk: bool,
}

/// sparsify's default for `expansion_factor` and for `k`.
const PYTHON_DEFAULT: u64 = 32;

impl SaeConfig {
    /// A TopK autoencoder with a normalised decoder.
    pub fn new(d_in: usize, num_latents: usize, k: usize) -> Self {
        let exact = d_in != 0 && num_latents != 0 && num_latents.is_multiple_of(d_in);
        let expansion_factor = if exact { num_latents / d_in } else { PYTHON_DEFAULT as usize };
        Self {
            activation: Activation::TopK,
            d_in,
            num_latents,
            k,
            expansion_factor,
            normalize_decoder: true,
            multi_topk: false,
        }
    }

    /// Checks that the widths are positive and countable and that `1 <= k <= num_latents`.
    ///
    /// # Errors
    /// [`SaeError::Field`] for the first field out of range.
    pub fn validate(&self) -> Result<(), SaeError> {
        let field =
            |field, expected: String, got: usize| SaeError::Field { field, expected, got: got.to_string() };
        if self.d_in == 0 {
            return Err(field("d_in", "at least 1".into(), 0));
        }
        // Latents are u32 everywhere; 4 bytes a weight must be addressable.
        let bytes = self.num_latents.checked_mul(self.d_in).and_then(|n| n.checked_mul(4));
        if self.num_latents == 0 || u32::try_from(self.num_latents).is_err() || bytes.is_none() {
            let expected = format!("1 to {} latents that fit into memory", u32::MAX);
            return Err(field("num_latents", expected, self.num_latents));
        }
        if self.k == 0 || self.k > self.num_latents {
            return Err(field("k", format!("1 to {} (num_latents)", self.num_latents), self.k));
        }
        Ok(())
    }

    pub(crate) fn read(path: &Path) -> Result<Self, SaeError> {
        let bytes = std::fs::read(path).map_err(|source| SaeError::Read { path: path.to_owned(), source })?;
        let raw: Raw = serde_json::from_slice(&bytes)
            .map_err(|source| SaeError::Json { path: path.to_owned(), source })?;
        Self::try_from(raw)
            .map_err(|source| SaeError::ConfigFile { path: path.to_owned(), source: Box::new(source) })
    }

    /// The keys that both msae (which refuses unknown ones) and today's sparsify (which defaults absent ones) accept.
    pub(crate) fn to_json(&self) -> Vec<u8> {
        let Self { activation: Activation::TopK, .. } = self;
        let written = Written {
            expansion_factor: self.expansion_factor,
            normalize_decoder: self.normalize_decoder,
            num_latents: self.num_latents,
            k: self.k,
            multi_topk: self.multi_topk,
            d_in: self.d_in,
        };
        let mut json = serde_json::to_vec_pretty(&written).unwrap_or_default();
        json.push(b'\n');
        json
    }
}

#[derive(Serialize)]
struct Written {
    expansion_factor: usize,
    normalize_decoder: bool,
    num_latents: usize,
    k: usize,
    multi_topk: bool,
    d_in: usize,
}

#[derive(Deserialize)]
#[expect(clippy::struct_excessive_bools, reason = "mirrors the Python class")]
struct Raw {
    d_in: u64,
    #[serde(default = "topk")]
    activation: String,
    #[serde(default = "python_default")]
    expansion_factor: u64,
    #[serde(default = "yes")]
    normalize_decoder: bool,
    #[serde(default)]
    num_latents: u64,
    #[serde(default = "python_default")]
    k: u64,
    #[serde(default)]
    multi_topk: bool,
    #[serde(default)]
    signed: bool,
    #[serde(default)]
    skip_connection: bool,
    #[serde(default)]
    transcode: bool,
}

fn topk() -> String {
    "topk".to_owned()
}

fn python_default() -> u64 {
    PYTHON_DEFAULT
}

fn yes() -> bool {
    true
}

impl TryFrom<Raw> for SaeConfig {
    type Error = SaeError;

    fn try_from(raw: Raw) -> Result<Self, SaeError> {
        let refuse =
            |field, got: &str, reason| Err(SaeError::Unsupported { field, got: got.to_owned(), reason });
        if raw.activation != "topk" {
            return refuse("activation", &raw.activation, "only topk is supported");
        }
        if raw.signed {
            return refuse(
                "signed",
                "true",
                "it was trained with TopK without ReLU, only TopK after ReLU is supported",
            );
        }
        if raw.transcode {
            return refuse(
                "transcode",
                "true",
                "transcoders, which do not subtract b_dec, are not supported",
            );
        }
        if raw.skip_connection {
            return refuse("skip_connection", "true", "skip connections (W_skip) are not supported");
        }
        let size = |field, value: u64| {
            usize::try_from(value).map_err(|_| SaeError::Field {
                field,
                expected: format!("at most {}", usize::MAX),
                got: value.to_string(),
            })
        };
        let num_latents = if raw.num_latents == 0 {
            raw.d_in.checked_mul(raw.expansion_factor).ok_or_else(|| SaeError::Field {
                field: "expansion_factor",
                expected: "a countable d_in * expansion_factor".into(),
                got: raw.expansion_factor.to_string(),
            })?
        } else {
            raw.num_latents
        };
        let config = Self {
            activation: Activation::TopK,
            d_in: size("d_in", raw.d_in)?,
            num_latents: size("num_latents", num_latents)?,
            k: size("k", raw.k)?,
            expansion_factor: size("expansion_factor", raw.expansion_factor)?,
            normalize_decoder: raw.normalize_decoder,
            multi_topk: raw.multi_topk,
        };
        config.validate()?;
        Ok(config)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(json: &str) -> Result<SaeConfig, SaeError> {
        serde_json::from_str::<Raw>(json).unwrap().try_into()
    }

    #[test]
    fn reads_the_keys_of_every_age() {
        // sparsify June 2024, msae, sparsify today.
        let old = r#"{"expansion_factor": 32, "normalize_decoder": true, "num_latents": 0, "k": 32,
                      "signed": false, "d_in": 768}"#;
        let config = parse(old).unwrap();
        assert_eq!((config.d_in, config.num_latents, config.k), (768, 24_576, 32));
        let msae = r#"{"expansion_factor": 32, "normalize_decoder": true, "num_latents": 131072, "k": 256,
                       "multi_topk": false, "signed": false, "d_in": 4096}"#;
        assert_eq!(parse(msae).unwrap(), SaeConfig::new(4096, 131_072, 256));
        let new = r#"{"activation": "topk", "expansion_factor": 8, "normalize_decoder": false, "num_latents": 100,
                      "k": 4, "multi_topk": true, "skip_connection": false, "transcode": false, "d_in": 10}"#;
        let config = parse(new).unwrap();
        assert!(config.multi_topk && !config.normalize_decoder);
        assert_eq!((config.num_latents, config.expansion_factor), (100, 8));
        assert_eq!(parse(r#"{"d_in": 2, "invented_later": 1}"#).unwrap().num_latents, 64);
    }

    #[test]
    fn refuses_what_would_change_the_numbers() {
        for (field, json) in [
            ("signed", r#"{"d_in": 2, "signed": true}"#),
            ("activation", r#"{"d_in": 2, "activation": "groupmax"}"#),
            ("transcode", r#"{"d_in": 2, "transcode": true}"#),
            ("skip_connection", r#"{"d_in": 2, "skip_connection": true}"#),
            ("d_in", r#"{"d_in": 0}"#),
            ("k", r#"{"d_in": 2, "k": 0}"#),
            ("k", r#"{"d_in": 2, "num_latents": 8, "k": 9}"#),
            ("num_latents", r#"{"d_in": 2, "num_latents": 4294967296}"#),
            ("expansion_factor", r#"{"d_in": 9223372036854775807, "expansion_factor": 4}"#),
        ] {
            let message = parse(json).unwrap_err().to_string();
            assert!(message.starts_with(&format!("field {field}")), "{json}: {message}");
        }
    }

    #[test]
    fn writes_only_keys_msae_knows() {
        let json = SaeConfig::new(4, 8, 2).to_json();
        let keys: serde_json::Map<String, serde_json::Value> = serde_json::from_slice(&json).unwrap();
        let mut keys: Vec<_> = keys.keys().map(String::as_str).collect();
        keys.sort_unstable();
        assert_eq!(keys, ["d_in", "expansion_factor", "k", "multi_topk", "normalize_decoder", "num_latents"]);
    }
}
