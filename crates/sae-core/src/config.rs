//! [`SaeConfig`]: the `cfg.json` of sparsify and msae.
//!
//! Mirrors `SparseCoderConfig` of EleutherAI/sparsify at 9d3b136 (v1.3.0) and `SaeConfig` of
//! EvolvingLMMs-Lab/multimodal-sae at 60265c3. Absent keys take the Python defaults, keys that neither has are
//! ignored as sparsify ignores them, and keys that change the numbers in a way this crate does not compute are refused:
//! `signed: true` (TopK without ReLU, until August 2024; today's sparsify drops it silently) and `activation` `groupmax`.
//!
//! Three keys are this project's own: `activation` `batch_topk` with its `threshold`, and `matryoshka`. They, `transcode` and
//! `skip_connection` are written only where they differ from the plain autoencoder, so that msae, which refuses unknown keys,
//! reads a plain file. sparsify reads a `batch_topk` file as an error, and does not look at `matryoshka`, which changes nothing
//! in encoding and decoding.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::SaeError;

/// Which latents a row keeps.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[non_exhaustive]
pub enum Activation {
    /// ReLU, then the k largest.
    #[default]
    TopK,
    /// All above one threshold, `"activation": "batch_topk"`: trained with the `n * k` largest of a batch of `n` rows (Bussmann
    /// et al. 2024, arXiv 2412.06410), so that `k` is how many a row keeps on average.
    BatchTopK {
        /// What an activation must exceed; finite, not negative.
        threshold: f32,
    },
}

/// The shape and the kind of an autoencoder or transcoder.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
#[expect(clippy::struct_excessive_bools, reason = "mirrors the Python class")]
pub struct SaeConfig {
    /// Which latents a row keeps.
    pub activation: Activation,
    /// Length of the vectors it reads and writes.
    pub d_in: usize,
    /// Number of latents; never 0, the file's "0 means `d_in * expansion_factor`" is resolved on reading.
    pub num_latents: usize,
    /// How many latents a row keeps: at most (TopK), or on average (BatchTopK).
    pub k: usize,
    /// Latents per dimension as the file states it; without effect, because `num_latents` is set.
    pub expansion_factor: usize,
    /// Whether training kept the decoder's rows at length 1.
    pub normalize_decoder: bool,
    /// Whether training added the Multi-TopK loss.
    pub multi_topk: bool,
    /// The lengths of the nested dictionaries that training reconstructed from (Bussmann et al. 2025, arXiv 2503.17547),
    /// strictly ascending and ending in `num_latents`; empty where there was one dictionary. Encoding and decoding use all.
    pub matryoshka: Vec<usize>,
    /// Whether it predicts a module's output from the module's input: encoding does not subtract `b_dec`.
    pub transcode: bool,
    /// Whether `x · W_skipᵀ` is added to what is decoded.
    pub skip_connection: bool,
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
            matryoshka: Vec::new(),
            transcode: false,
            skip_connection: false,
        }
    }

    /// Checks that the widths are positive and countable, that `1 <= k <= num_latents`, that a threshold is finite and not
    /// negative, and that `matryoshka` is empty or rises strictly to `num_latents`.
    ///
    /// # Errors
    /// [`SaeError::Field`] for the first field out of range.
    pub fn validate(&self) -> Result<(), SaeError> {
        let field =
            |field, expected: String, got: usize| SaeError::Field { field, expected, got: got.to_string() };
        if let Activation::BatchTopK { threshold } = self.activation
            && !(threshold.is_finite() && threshold >= 0.0)
        {
            return Err(SaeError::Field {
                field: "threshold",
                expected: "a finite number, not negative".into(),
                got: threshold.to_string(),
            });
        }
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
        let nested = &self.matryoshka;
        let rising = nested.first() != Some(&0) && nested.is_sorted_by(|a, b| a < b);
        let whole = nested.last().is_none_or(|&last| last == self.num_latents);
        if !(rising && whole) {
            return Err(SaeError::Field {
                field: "matryoshka",
                expected: format!(
                    "lengths that rise strictly from above 0 to {} (num_latents)",
                    self.num_latents
                ),
                got: format!("{nested:?}"),
            });
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

    /// As [`Sae::save`](crate::Sae::save) writes it into `cfg.json`. Of a plain autoencoder, the keys that both msae (which refuses unknown ones) and today's sparsify (which defaults
    /// absent ones) accept.
    pub fn to_json(&self) -> Vec<u8> {
        let (activation, threshold) = match self.activation {
            Activation::TopK => (None, None),
            Activation::BatchTopK { threshold } => (Some(BATCH_TOPK), Some(f64::from(threshold))),
        };
        let written = Written {
            activation,
            threshold,
            expansion_factor: self.expansion_factor,
            normalize_decoder: self.normalize_decoder,
            num_latents: self.num_latents,
            k: self.k,
            multi_topk: self.multi_topk,
            // One dictionary is what there is without the key.
            matryoshka: (self.matryoshka.len() > 1).then_some(&self.matryoshka),
            skip_connection: self.skip_connection.then_some(true),
            transcode: self.transcode.then_some(true),
            d_in: self.d_in,
        };
        let mut json = serde_json::to_vec_pretty(&written).unwrap_or_default();
        json.push(b'\n');
        json
    }
}

#[derive(Serialize)]
struct Written<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    activation: Option<&'static str>,
    /// As f64, which takes any f32 and is written with as many digits as bring the same f32 back.
    #[serde(skip_serializing_if = "Option::is_none")]
    threshold: Option<f64>,
    expansion_factor: usize,
    normalize_decoder: bool,
    num_latents: usize,
    k: usize,
    multi_topk: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    matryoshka: Option<&'a Vec<usize>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    skip_connection: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    transcode: Option<bool>,
    d_in: usize,
}

#[derive(Deserialize)]
#[expect(clippy::struct_excessive_bools, reason = "mirrors the Python class")]
struct Raw {
    d_in: u64,
    #[serde(default = "topk")]
    activation: String,
    threshold: Option<f64>,
    #[serde(default)]
    matryoshka: Vec<u64>,
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

const TOPK: &str = "topk";
const BATCH_TOPK: &str = "batch_topk";

fn topk() -> String {
    TOPK.to_owned()
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
        let activation = match (raw.activation.as_str(), raw.threshold) {
            (TOPK, None) => Activation::TopK,
            (TOPK, Some(threshold)) => {
                return refuse("threshold", &threshold.to_string(), "only batch_topk has a threshold");
            }
            (BATCH_TOPK, Some(threshold)) => Activation::BatchTopK { threshold: threshold as f32 },
            (BATCH_TOPK, None) => {
                return Err(SaeError::Field {
                    field: "threshold",
                    expected: "a number, which batch_topk needs".into(),
                    got: "none".into(),
                });
            }
            (other, _) => return refuse("activation", other, "only topk and batch_topk are supported"),
        };
        if raw.signed {
            return refuse(
                "signed",
                "true",
                "it was trained with TopK without ReLU, only TopK after ReLU is supported",
            );
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
        let mut config = Self {
            activation,
            d_in: size("d_in", raw.d_in)?,
            num_latents: size("num_latents", num_latents)?,
            k: size("k", raw.k)?,
            expansion_factor: size("expansion_factor", raw.expansion_factor)?,
            normalize_decoder: raw.normalize_decoder,
            multi_topk: raw.multi_topk,
            matryoshka: raw
                .matryoshka
                .into_iter()
                .map(|m| size("matryoshka", m))
                .collect::<Result<_, _>>()?,
            transcode: raw.transcode,
            skip_connection: raw.skip_connection,
        };
        config.validate()?;
        if config.matryoshka.len() == 1 {
            config.matryoshka.clear();
        }
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
            ("activation", r#"{"d_in": 2, "activation": "jumprelu", "threshold": 1}"#),
            ("threshold", r#"{"d_in": 2, "activation": "batch_topk"}"#),
            ("threshold", r#"{"d_in": 2, "activation": "batch_topk", "threshold": null}"#),
            ("threshold", r#"{"d_in": 2, "activation": "batch_topk", "threshold": -0.5}"#),
            ("threshold", r#"{"d_in": 2, "activation": "batch_topk", "threshold": 1e39}"#),
            ("threshold", r#"{"d_in": 2, "activation": "topk", "threshold": 0.5}"#),
            ("threshold", r#"{"d_in": 2, "threshold": 0.5}"#),
            ("matryoshka", r#"{"d_in": 2, "num_latents": 8, "k": 2, "matryoshka": [4]}"#),
            ("matryoshka", r#"{"d_in": 2, "num_latents": 8, "k": 2, "matryoshka": [0, 8]}"#),
            ("matryoshka", r#"{"d_in": 2, "num_latents": 8, "k": 2, "matryoshka": [4, 4, 8]}"#),
            ("matryoshka", r#"{"d_in": 2, "num_latents": 8, "k": 2, "matryoshka": [6, 4, 8]}"#),
            ("matryoshka", r#"{"d_in": 2, "num_latents": 8, "k": 2, "matryoshka": [4, 8, 16]}"#),
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
    fn what_differs_from_the_plain_autoencoder_comes_back() {
        let plain = SaeConfig::new(4, 8, 2);
        let kinds = [
            SaeConfig { matryoshka: vec![1, 3, 8], ..plain.clone() },
            SaeConfig { transcode: true, ..plain.clone() },
            SaeConfig { skip_connection: true, ..plain.clone() },
            SaeConfig {
                activation: Activation::BatchTopK { threshold: 0.25 },
                matryoshka: vec![4, 8],
                transcode: true,
                skip_connection: true,
                ..plain.clone()
            },
        ];
        for config in kinds {
            assert_eq!(parse(&String::from_utf8(config.to_json()).unwrap()).unwrap(), config);
        }
        let one = parse(r#"{"d_in": 4, "num_latents": 8, "k": 2, "matryoshka": [8]}"#).unwrap();
        assert!(one.matryoshka.is_empty());
        let one = SaeConfig { matryoshka: vec![8], ..plain.clone() };
        assert_eq!(one.to_json(), plain.to_json());
    }

    #[test]
    fn a_threshold_comes_back_to_the_bit() {
        // Among them the ends of f32, and numbers whose shortest decimal lies on the edge between two f32.
        let mut bits: Vec<u32> =
            vec![0, 1, 0x7f_ffff, 0x80_0000, 0x7f7f_ffff, 0x4b80_0000, 0x4b80_0001, 0x3dcc_cccd];
        bits.extend((0..20_000_u32).map(|i| i.wrapping_mul(0x9e37_79b9) & 0x7fff_ffff));
        for threshold in bits.into_iter().map(f32::from_bits).filter(|threshold| threshold.is_finite()) {
            let activation = Activation::BatchTopK { threshold };
            let json = SaeConfig { activation, ..SaeConfig::new(4, 8, 2) }.to_json();
            let Activation::BatchTopK { threshold: read } =
                parse(&String::from_utf8(json).unwrap()).unwrap().activation
            else {
                panic!("another activation");
            };
            assert_eq!(read.to_bits(), threshold.to_bits(), "{threshold:e}");
        }
        for threshold in [f32::NAN, f32::INFINITY, -1.0] {
            let activation = Activation::BatchTopK { threshold };
            let error = SaeConfig { activation, ..SaeConfig::new(4, 8, 2) }.validate().unwrap_err();
            assert!(error.to_string().starts_with("field threshold: expected a finite number"), "{error}");
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
