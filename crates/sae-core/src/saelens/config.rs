//! SAELens' `cfg.json`, read as [`Config`] and written from a [`SaeConfig`].

use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::{Metadata, Version};
use crate::file::{CONFIG, Mapped};
use crate::{Activation, SaeConfig, SaeError, WeightDtype};

/// The version named in files written here: the one whose source this was written against.
const SAELENS: &str = "6.54.12";
/// Where a training run keeps the factor its activations were multiplied with.
const SCALER: &str = "activation_scaler.json";
/// `TopKSAEConfig.k` of SAELens.
const DEFAULT_K: u64 = 100;

/// A configuration this crate can compute.
#[derive(Debug)]
#[expect(clippy::struct_excessive_bools, reason = "mirrors the Python class")]
pub(super) struct Config {
    path: PathBuf,
    pub(super) version: Version,
    pub(super) d_in: usize,
    pub(super) d_sae: usize,
    pub(super) jumprelu: bool,
    pub(super) k: Option<u64>,
    pub(super) apply_b_dec_to_input: bool,
    pub(super) rescale: bool,
    /// What inputs are multiplied with: 1 without normalisation.
    pub(super) scale: f64,
    pub(super) transcode: bool,
    pub(super) skip: bool,
    pub(super) metadata: Metadata,
}

/// The keys of all ages that matter here; SAELens ignores unknown ones, and so do we.
#[derive(Deserialize)]
struct Raw {
    d_in: u64,
    d_sae: u64,
    d_out: Option<u64>,
    architecture: Option<String>,
    k: Option<f64>,
    #[serde(alias = "activation_fn")]
    activation_fn_str: Option<String>,
    activation_fn_kwargs: Option<Map<String, Value>>,
    rescale_acts_by_decoder_norm: Option<bool>,
    apply_b_dec_to_input: Option<bool>,
    #[serde(default)]
    normalize_activations: Value,
    reshape_activations: Option<String>,
    sae_lens_version: Option<String>,
    metadata: Option<Map<String, Value>>,
    #[serde(flatten)]
    rest: Map<String, Value>,
}

impl Config {
    pub(super) fn read(folder: &Path) -> Result<Self, SaeError> {
        let path = folder.join(CONFIG);
        let bytes = std::fs::read(&path).map_err(|source| SaeError::Read { path: path.clone(), source })?;
        let raw: Raw =
            serde_json::from_slice(&bytes).map_err(|source| SaeError::Json { path: path.clone(), source })?;
        let in_file = |source| SaeError::ConfigFile { path: path.clone(), source: Box::new(source) };
        let scaler = || read_scaler(&folder.join(SCALER));
        let mut config = Self::of(raw, scaler).map_err(in_file)?;
        config.path = path;
        Ok(config)
    }

    fn of(raw: Raw, scaler: impl Fn() -> Result<Option<f64>, SaeError>) -> Result<Self, SaeError> {
        let refuse = |field, got: String, reason| Err(SaeError::Unsupported { field, got, reason });
        let meta = raw.metadata.unwrap_or_default();
        let of_metadata = |key: &str| meta.get(key).and_then(Value::as_str).map(str::to_owned);
        let version = match raw.sae_lens_version.or_else(|| of_metadata("sae_lens_version")) {
            Some(version) if major(&version) >= 6 => Version::V6,
            _ => Version::PreV6,
        };
        let kwargs_k =
            raw.activation_fn_kwargs.as_ref().and_then(|kwargs| kwargs.get("k")).and_then(Value::as_f64);
        let topk_function = raw.activation_fn_str.as_deref() == Some("topk") && kwargs_k.is_some();
        let architecture = match version {
            Version::PreV6 if topk_function => "topk".to_owned(),
            _ => raw.architecture.unwrap_or_else(|| "standard".to_owned()),
        };
        let (jumprelu, transcoder, skip) = match architecture.as_str() {
            "topk" => (false, false, false),
            "jumprelu" => (true, false, false),
            "jumprelu_transcoder" => (true, true, false),
            "jumprelu_skip_transcoder" => (true, true, true),
            "standard" | "transcoder" | "skip_transcoder" => {
                return refuse(
                    "architecture",
                    architecture,
                    "its ReLU keeps every positive latent; topk, and jumprelu with one threshold, are supported",
                );
            }
            "batchtopk" | "matryoshka_batchtopk" => {
                return refuse(
                    "architecture",
                    architecture,
                    "this is a training checkpoint; save it for inference with SAELens, which makes it a jumprelu",
                );
            }
            _ => {
                return refuse(
                    "architecture",
                    architecture,
                    "topk, and jumprelu with one threshold, are supported",
                );
            }
        };
        let scale = match &raw.normalize_activations {
            Value::Null | Value::Bool(false) => 1.0,
            Value::String(kind) if kind == "none" => 1.0,
            Value::Bool(true) => scaling("true", scaler)?,
            Value::String(kind) if kind == "expected_average_only_in" => scaling(kind, scaler)?,
            other => {
                let got = other.as_str().map_or_else(|| other.to_string(), str::to_owned);
                return refuse(
                    "normalize_activations",
                    got,
                    "it depends on each input and cannot be folded into the weights; only none, and a stated factor, are supported",
                );
            }
        };
        match raw.reshape_activations.as_deref() {
            // The heads of hook_z are laid one after the other, which changes no number.
            None | Some("none" | "hook_z") => {}
            Some(other) => {
                return refuse("reshape_activations", other.to_owned(), "only none and hook_z are supported");
            }
        }
        let size = |field, value: u64| {
            usize::try_from(value).map_err(|_| SaeError::Field {
                field,
                expected: format!("at most {}", usize::MAX),
                got: value.to_string(),
            })
        };
        if let Some(d_out) = raw.d_out
            && transcoder
            && d_out != raw.d_in
        {
            let reason = "only transcoders whose output is as wide as their input are supported";
            return refuse("d_out", d_out.to_string(), reason);
        }
        let text = |key: &str| {
            of_metadata(key).or_else(|| raw.rest.get(key).and_then(Value::as_str).map(str::to_owned))
        };
        let value = |key: &str| meta.get(key).or_else(|| raw.rest.get(key));
        let metadata = Metadata {
            model_name: text("model_name"),
            hook_name: text("hook_name").or_else(|| text("hook_point")),
            hook_name_out: text("hook_name_out"),
            dataset_path: text("dataset_path"),
            context_size: value("context_size").and_then(Value::as_u64),
            prepend_bos: value("prepend_bos").and_then(Value::as_bool),
        };
        // SAELens refuses a transcoder that subtracts b_dec.
        let apply_b_dec_to_input = !transcoder && raw.apply_b_dec_to_input.unwrap_or(true);
        let elsewhere = metadata.hook_name_out.is_some() && metadata.hook_name_out != metadata.hook_name;
        let k = raw.k.or(kwargs_k).or_else(|| meta.get("k").and_then(Value::as_f64));
        let k = match k {
            Some(k) if k.fract() == 0.0 && k >= 1.0 && k <= f64::from(u32::MAX) => Some(k as u64),
            Some(k) if !jumprelu => {
                return Err(SaeError::Field {
                    field: "k",
                    expected: "a whole number, at least 1".to_owned(),
                    got: k.to_string(),
                });
            }
            // An average may be no whole number.
            Some(k) => Some(k.round().max(1.0) as u64),
            None if !jumprelu && version == Version::V6 => Some(DEFAULT_K),
            None => None,
        };
        Ok(Self {
            path: PathBuf::new(),
            version,
            d_in: size("d_in", raw.d_in)?,
            d_sae: size("d_sae", raw.d_sae)?,
            jumprelu,
            k,
            apply_b_dec_to_input,
            rescale: !jumprelu && raw.rescale_acts_by_decoder_norm.unwrap_or(false),
            scale,
            transcode: transcoder || (elsewhere && !apply_b_dec_to_input),
            skip,
            metadata,
        })
    }

    /// Names the file.
    pub(super) fn in_file(&self, source: SaeError) -> SaeError {
        SaeError::ConfigFile { path: self.path.clone(), source: Box::new(source) }
    }

    /// Names and shapes of the tensors that belong to it.
    pub(super) fn tensors(&self) -> (Vec<&'static str>, Vec<Vec<usize>>) {
        let (d_in, d_sae) = (self.d_in, self.d_sae);
        let mut tensors = vec![
            ("W_enc", vec![d_in, d_sae]),
            ("b_enc", vec![d_sae]),
            ("W_dec", vec![d_sae, d_in]),
            ("b_dec", vec![d_in]),
        ];
        if self.jumprelu {
            tensors.push(("threshold", vec![d_sae]));
        }
        if self.skip {
            tensors.push(("W_skip", vec![d_in, d_in]));
        }
        tensors.into_iter().unzip()
    }

    /// Where a tensor stands in [`Config::tensors`].
    pub(super) fn index(&self, tensor: &str) -> usize {
        let (names, _) = self.tensors();
        names.iter().position(|&name| name == tensor).unwrap_or(names.len())
    }

    /// The one threshold of a jumprelu.
    pub(super) fn threshold(&self, files: &Mapped) -> Result<Option<f32>, SaeError> {
        if !self.jumprelu {
            return Ok(None);
        }
        let thresholds = files.tensor(self.index("threshold"), 1, self.d_sae).to_f32();
        let first = thresholds.first().copied().unwrap_or(0.0);
        // Below 0 it keeps what ReLU keeps.
        if let Some(other) =
            thresholds.iter().find(|&&other| other.max(0.0) != first.max(0.0) || other.is_nan())
        {
            return Err(self.in_file(SaeError::Unsupported {
                field: "threshold",
                got: format!("{first} and {other}"),
                reason: "a threshold of its own for each latent; only one for all, as BatchTopK has it, is supported",
            }));
        }
        Ok(Some(first.max(0.0)))
    }

    pub(super) fn sae_config(&self, k: Option<usize>, threshold: Option<f32>) -> Result<SaeConfig, SaeError> {
        let k = self.k.and_then(|k| usize::try_from(k).ok()).or(k).ok_or_else(|| SaeError::Field {
            field: "k",
            expected: "how many latents a row keeps on average, told by whoever reads a jumprelu file"
                .to_owned(),
            got: "nothing".to_owned(),
        })?;
        let mut config = SaeConfig::new(self.d_in, self.d_sae, k);
        config.activation =
            threshold.map_or(Activation::TopK, |threshold| Activation::BatchTopK { threshold });
        config.transcode = self.transcode;
        config.skip_connection = self.skip;
        config.validate()?;
        Ok(config)
    }

    /// The keys whose effect goes into the weights.
    pub(super) fn folded(&self) -> Vec<&'static str> {
        let effects = [
            ("apply_b_dec_to_input", !self.apply_b_dec_to_input && !self.transcode),
            ("rescale_acts_by_decoder_norm", self.rescale),
            ("normalize_activations", self.scale != 1.0),
        ];
        effects.into_iter().filter_map(|(key, there)| there.then_some(key)).collect()
    }
}

/// The number before the first point.
fn major(version: &str) -> u64 {
    version.split('.').next().and_then(|major| major.parse().ok()).unwrap_or(0)
}

#[derive(Deserialize)]
struct Scaler {
    scaling_factor: Option<f64>,
}

fn read_scaler(path: &Path) -> Result<Option<f64>, SaeError> {
    match std::fs::read(path) {
        Ok(bytes) => serde_json::from_slice::<Scaler>(&bytes)
            .map(|scaler| scaler.scaling_factor)
            .map_err(|source| SaeError::Json { path: path.to_owned(), source }),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(SaeError::Read { path: path.to_owned(), source }),
    }
}

fn scaling(kind: &str, scaler: impl Fn() -> Result<Option<f64>, SaeError>) -> Result<f64, SaeError> {
    match scaler()? {
        Some(factor) if factor.is_finite() && factor > 0.0 => Ok(factor),
        Some(factor) => Err(SaeError::Field {
            field: "scaling_factor",
            expected: "a finite number above 0".to_owned(),
            got: factor.to_string(),
        }),
        None => Err(SaeError::Unsupported {
            field: "normalize_activations",
            got: kind.to_owned(),
            reason: "the factor it multiplies inputs with is not stated; put SAELens' activation_scaler.json beside cfg.json",
        }),
    }
}

/// `cfg.json`, and what it cannot say.
pub(super) fn write(
    config: &SaeConfig,
    version: Version,
    metadata: &Metadata,
    dtype: WeightDtype,
) -> Result<(Vec<u8>, Vec<String>), SaeError> {
    let batch = matches!(config.activation, Activation::BatchTopK { .. });
    if config.skip_connection && !(batch && config.transcode && version == Version::V6) {
        return Err(SaeError::Unsupported {
            field: "skip_connection",
            got: "true".to_owned(),
            reason: "SAELens has skip connections only in transcoders with a threshold (BatchTopK), from version 6 on",
        });
    }
    let mut dropped = Vec::new();
    let mut drop = |there: bool, what: String| {
        if there {
            dropped.push(what);
        }
    };
    drop(config.multi_topk, "multi_topk: true".to_owned());
    drop(!config.matryoshka.is_empty(), format!("matryoshka: {:?}", config.matryoshka));
    drop(batch && version == Version::PreV6, format!("k: {}", config.k));
    drop(
        version == Version::PreV6 && metadata.hook_name_out.is_some(),
        format!("hook_name_out: {}", metadata.hook_name_out.as_deref().unwrap_or_default()),
    );
    let dtype = match dtype {
        WeightDtype::F32 => "float32",
        WeightDtype::F16 => "float16",
        WeightDtype::Bf16 => "bfloat16",
    };
    let json = match version {
        Version::V6 => v6(config, metadata, dtype, batch),
        Version::PreV6 => pre_v6(config, metadata, dtype, batch),
    };
    let mut text = serde_json::to_vec_pretty(&json).unwrap_or_default();
    text.push(b'\n');
    Ok((text, dropped))
}

fn v6(config: &SaeConfig, metadata: &Metadata, dtype: &str, batch: bool) -> Value {
    let architecture = match (batch, config.transcode, config.skip_connection) {
        (false, ..) => "topk",
        (true, false, _) => "jumprelu",
        (true, true, false) => "jumprelu_transcoder",
        (true, true, true) => "jumprelu_skip_transcoder",
    };
    let mut about = Map::new();
    about.insert("sae_lens_version".to_owned(), json!(SAELENS));
    about.insert("sae_lens_training_version".to_owned(), Value::Null);
    let mut put = |key: &str, value: Value| {
        if !value.is_null() {
            about.insert(key.to_owned(), value);
        }
    };
    put("model_name", json!(metadata.model_name));
    put("hook_name", json!(metadata.hook_name));
    put("hook_name_out", json!(metadata.hook_name_out));
    put("dataset_path", json!(metadata.dataset_path));
    put("context_size", json!(metadata.context_size));
    put("prepend_bos", json!(metadata.prepend_bos));
    if batch {
        // SAELens keeps whatever stands here, and has no other place for it.
        put("k", json!(config.k));
    }
    let mut json = json!({
        "d_in": config.d_in,
        "d_sae": config.num_latents,
        "dtype": dtype,
        "device": "cpu",
        "apply_b_dec_to_input": !config.transcode,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "metadata": about,
        "architecture": architecture,
    });
    if !batch {
        json["k"] = json!(config.k);
        json["rescale_acts_by_decoder_norm"] = json!(false);
    } else if config.transcode {
        json["d_out"] = json!(config.d_in);
    }
    json
}

/// Every key that version 5 requires and no other, which it would refuse.
fn pre_v6(config: &SaeConfig, metadata: &Metadata, dtype: &str, batch: bool) -> Value {
    let hook = metadata.hook_name.clone().unwrap_or_default();
    let layer = hook.split('.').find_map(|part| part.parse::<u64>().ok()).unwrap_or(0);
    let kwargs = if batch { json!({}) } else { json!({ "k": config.k }) };
    json!({
        "architecture": if batch { "jumprelu" } else { "topk" },
        "d_in": config.d_in,
        "d_sae": config.num_latents,
        "activation_fn_str": if batch { "relu" } else { "topk" },
        "activation_fn_kwargs": kwargs,
        "apply_b_dec_to_input": !config.transcode,
        "finetuning_scaling_factor": false,
        "context_size": metadata.context_size.unwrap_or(0),
        "model_name": metadata.model_name.clone().unwrap_or_default(),
        "hook_name": hook,
        "hook_layer": layer,
        "hook_head_index": null,
        "prepend_bos": metadata.prepend_bos.unwrap_or(true),
        "dataset_path": metadata.dataset_path.clone().unwrap_or_default(),
        "dataset_trust_remote_code": true,
        "normalize_activations": "none",
        "dtype": dtype,
        "device": "cpu",
        "sae_lens_training_version": null,
        "neuronpedia_id": null,
        "model_from_pretrained_kwargs": {},
    })
}
