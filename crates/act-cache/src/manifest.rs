//! The JSON side of the format: [`Manifest`] and [`SampleRecord`].

use std::collections::BTreeMap;
use std::path::Path;

use sae_types::{FeatureId, Filters, HookPoint, SampleId, TokenIndex};
use serde::{Deserialize, Serialize};

use crate::CacheError;
use crate::files::write_durably;
use crate::tokens::TOKENS_FILE;

/// What `format` says in every manifest.
const FORMAT: &str = "lmm-sae activation cache";
/// The version this crate writes, and the only one it reads.
const VERSION: u32 = 1;

pub(crate) const MANIFEST_FILE: &str = "manifest.json";
pub(crate) const SAMPLES_FILE: &str = "samples.jsonl";

/// What a cache is about: what its writer must know beforehand.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct CacheDescription {
    /// Name or folder of the model.
    pub model: String,
    /// Where the samples come from.
    pub dataset: DatasetSource,
    /// What the positions of a sample are.
    pub token_layout: TokenLayoutDescription,
    /// The only features to store, per hook point; all of them if `None`.
    pub filters: Option<Filters>,
    /// The hook points, each with its sparse autoencoder.
    pub hooks: BTreeMap<HookPoint, HookDescription>,
}

/// One hook point of a cache to be written.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HookDescription {
    /// The sparse autoencoder whose latents are stored.
    pub sae: SaeSource,
    /// How many latents it has.
    pub width: usize,
    /// How many of them are on per token: at most, or of BatchTopK on average.
    pub k: usize,
    /// Where a transcoder reads: the hook point of its module's input. `None` where the autoencoder reads the hook point itself.
    pub reads: Option<HookPoint>,
}

/// A sparse autoencoder by place and content.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SaeSource {
    /// Folder or Hub name.
    pub path: String,
    /// SHA-256 of its weights, lower-case hex.
    pub sha256: String,
}

/// A data set by name and content.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DatasetSource {
    /// Folder or Hub name.
    pub name: String,
    /// The split, if it has any.
    pub split: Option<String>,
    /// Hash of what defines its content.
    pub fingerprint: String,
    /// How many samples the data set has, cached or not.
    pub n_samples: u64,
}

/// What the positions of a sample are.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenLayoutDescription {
    /// The prompt all samples share, if they do.
    pub prompt: Option<String>,
    /// Where the base tile lies in every sample with an image.
    pub base: Option<BaseTile>,
    /// The first position of a sample that is encoded: 1 where BOS is left out.
    #[serde(default)]
    pub first: u32,
}

/// The tokens of the tile that shows the whole image: `rows * cols` positions from `start`, row by row.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BaseTile {
    /// The first position.
    pub start: u32,
    /// Rows of patches.
    pub rows: u32,
    /// Columns of patches.
    pub cols: u32,
}

/// One line of samples.jsonl.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SampleRecord {
    /// The sample's index in the data set.
    pub sample: SampleId,
    /// The data set's own name for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// Length of its token sequence, image placeholders expanded.
    pub n_tokens: u32,
    /// Pixels of the image from left to right; 0 without an image, or where the size is not known.
    #[serde(default)]
    pub width: u32,
    /// Pixels of the image from top to bottom; 0 without an image, or where the size is not known.
    #[serde(default)]
    pub height: u32,
    /// Hash of the image, by which duplicates are told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image_sha256: Option<String>,
    /// Rows and columns of the high-resolution patches kept, newlines not counted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub high: Option<[u32; 2]>,
    /// Where this sample's base tile starts, if not where [`TokenLayoutDescription::base`] says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base_start: Option<u32>,
    /// The positions `[start, end)` that each of its images takes, base tile, high-resolution patches and newlines; ascending.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub image_tokens: Vec<[u32; 2]>,
}

/// How activations are stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ActivationDtype {
    /// 32 bits, exact.
    #[default]
    F32,
    /// 16 bits, up to 65,504.
    F16,
    /// 16 bits, with the range of 32.
    Bf16,
}

impl std::str::FromStr for ActivationDtype {
    type Err = CacheError;

    fn from_str(text: &str) -> Result<Self, CacheError> {
        match text {
            "f32" => Ok(Self::F32),
            "f16" => Ok(Self::F16),
            "bf16" => Ok(Self::Bf16),
            _ => Err(CacheError::UnknownDtype { text: text.to_owned() }),
        }
    }
}

/// The whole of manifest.json.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    format: String,
    version: u32,
    /// Name or folder of the model.
    pub model: String,
    /// Where the samples come from.
    pub dataset: DatasetSource,
    /// What the positions of a sample are.
    pub token_layout: TokenLayoutDescription,
    /// How activations are stored.
    pub activation_dtype: ActivationDtype,
    /// The only features stored, per hook point; all of them if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub filters: Option<Filters>,
    /// How much there is in all.
    pub counts: Counts,
    /// Hash of samples.jsonl.
    pub samples_sha256: String,
    /// The token ids of all samples, if the cache keeps them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokens: Option<TokensManifest>,
    /// What there is per hook point.
    pub hooks: BTreeMap<HookPoint, HookManifest>,
}

/// The file of token ids.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokensManifest {
    /// Its path within the cache.
    pub file: String,
    /// Its hash.
    pub sha256: String,
}

/// How much a cache holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Samples, lines of samples.jsonl.
    pub samples: u64,
    /// Tokens of these samples, stored or not.
    pub tokens: u64,
    /// Activations of all hook points.
    pub activations: u64,
}

/// One hook point of a cache.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HookManifest {
    /// The sparse autoencoder whose latents are stored.
    pub sae: SaeSource,
    /// How many latents it has.
    pub width: usize,
    /// How many of them are on per token: at most, or of BatchTopK on average.
    pub k: usize,
    /// Where a transcoder reads; absent where the autoencoder reads the hook point itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reads: Option<HookPoint>,
    /// How many tokens went through the sparse autoencoder: what densities are relative to.
    pub tokens: u64,
    /// How many of these are an image's.
    #[serde(default)]
    pub image_tokens: u64,
    /// Features whose activations were lost before this cache was made (by the program it was imported from); ascending.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub lost: Vec<FeatureId>,
    /// Its files, ascending by latent.
    pub splits: Vec<SplitManifest>,
}

/// One split file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SplitManifest {
    /// Its path within the cache, parts separated by `/`.
    pub file: String,
    /// The first latent it holds.
    pub start: usize,
    /// One past the last latent it holds.
    pub end: usize,
    /// How many activations it holds.
    pub n: u64,
    /// Its hash.
    pub sha256: String,
}

/// Read before anything else, so that a foreign file is called that and not "lacks a member".
#[derive(Deserialize)]
struct Signature {
    format: Option<String>,
    version: Option<u32>,
}

impl ActivationDtype {
    /// The name in manifests and flags: `f32`, `f16`, `bf16`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
        }
    }
}

impl std::fmt::Display for ActivationDtype {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

impl BaseTile {
    /// How many tokens it has; `None` beyond what positions can count.
    pub fn n_tokens(&self) -> Option<u32> {
        self.rows.checked_mul(self.cols)
    }
}

impl SampleRecord {
    /// Whether the sample has an image: its size is known, or at least which tokens are an image's.
    pub fn has_image(&self) -> bool {
        (self.width > 0 && self.height > 0) || !self.image_tokens.is_empty()
    }

    /// The positions of the sample's base tile, where the cache's layout names one and the sample has an image.
    pub fn base_tokens(&self, layout: &TokenLayoutDescription) -> Option<std::ops::Range<u32>> {
        let base = layout.base.filter(|_| self.has_image())?;
        let start = self.base_start.unwrap_or(base.start);
        let end = start.checked_add(base.n_tokens()?)?;
        (end <= self.n_tokens).then_some(start..end)
    }

    /// Whether `token` is an image's: within [`SampleRecord::image_tokens`] or, in a record that has none, on the base tile.
    pub fn is_image_token(&self, token: TokenIndex, layout: &TokenLayoutDescription) -> bool {
        if self.image_tokens.is_empty() {
            return self.base_tokens(layout).is_some_and(|base| base.contains(&token.0));
        }
        self.image_tokens.iter().any(|&[start, end]| (start..end).contains(&token.0))
    }
}

impl Manifest {
    pub(crate) fn new(
        description: CacheDescription,
        activation_dtype: ActivationDtype,
        counts: Counts,
        samples_sha256: String,
        tokens: Option<TokensManifest>,
        hooks: BTreeMap<HookPoint, HookManifest>,
    ) -> Self {
        let CacheDescription { model, dataset, token_layout, filters, hooks: _ } = description;
        let format = FORMAT.to_owned();
        Self {
            format,
            version: VERSION,
            model,
            dataset,
            token_layout,
            activation_dtype,
            filters,
            counts,
            samples_sha256,
            tokens,
            hooks,
        }
    }

    /// Writes manifest.json to the cache in `dir`, on disk to stay.
    pub(crate) fn write(&self, dir: &Path) -> Result<(), CacheError> {
        let path = dir.join(MANIFEST_FILE);
        let mut text = serde_json::to_vec_pretty(self).map_err(|source| CacheError::Json {
            path: path.clone(),
            line: None,
            source,
        })?;
        text.push(b'\n');
        write_durably(&path, &text)
    }

    /// Whether `feature` of `hook` was stored wherever it was active: the filters, if any, have it, and it was not lost.
    pub fn stores(&self, hook: &HookPoint, feature: FeatureId) -> bool {
        let wanted = |filters: &Filters| {
            filters.features(hook).is_some_and(|wanted| wanted.binary_search(&feature).is_ok())
        };
        let lost = |entry: &HookManifest| entry.lost.binary_search(&feature).is_ok();
        self.filters.as_ref().is_none_or(wanted) && !self.hooks.get(hook).is_some_and(lost)
    }

    pub(crate) fn read(path: &Path) -> Result<Self, CacheError> {
        Self::parse(path, &std::fs::read(path).map_err(CacheError::io("read", path))?)
    }

    /// As [`Manifest::read`], of the bytes of the file.
    pub(crate) fn parse(path: &Path, text: &[u8]) -> Result<Self, CacheError> {
        let json = |source| CacheError::Json { path: path.to_owned(), line: None, source };
        let signature: Signature = serde_json::from_slice(text).map_err(json)?;
        let field = |field: &str, expected: String, got: String| CacheError::Field {
            path: path.to_owned(),
            field: field.to_owned(),
            expected,
            got,
        };
        if signature.format.as_deref() != Some(FORMAT) {
            let got = signature.format.map_or_else(|| "absent".to_owned(), |format| format!("{format:?}"));
            return Err(field("format", format!("{FORMAT:?}"), got));
        }
        if signature.version != Some(VERSION) {
            let got = signature.version.map_or_else(|| "absent".to_owned(), |version| version.to_string());
            return Err(field("version", format!("{VERSION}, the one this program reads"), got));
        }
        let manifest: Self = serde_json::from_slice(text).map_err(json)?;
        if let Some(tokens) = &manifest.tokens
            && tokens.file != TOKENS_FILE
        {
            return Err(field("tokens.file", format!("{TOKENS_FILE:?}"), format!("{:?}", tokens.file)));
        }
        for (hook, entry) in &manifest.hooks {
            if let Some((what, expected, got)) = entry.flaw(hook) {
                return Err(field(&format!("hooks.{hook}.{what}"), expected, got));
            }
        }
        Ok(manifest)
    }
}

impl HookManifest {
    /// Member, expected and got of the first thing wrong with the splits.
    fn flaw(&self, hook: &HookPoint) -> Option<(String, String, String)> {
        let mut next = 0;
        for (i, split) in self.splits.iter().enumerate() {
            if split.start != next {
                return Some((format!("splits[{i}].start"), next.to_string(), split.start.to_string()));
            }
            if split.end <= split.start || split.end > self.width {
                let expected = format!("above {} and at most the width {}", split.start, self.width);
                return Some((format!("splits[{i}].end"), expected, split.end.to_string()));
            }
            // The name is a function of the rest, so a manifest cannot point outside its folder.
            let name = split_file(hook, split.start, split.end);
            if split.file != name {
                return Some((format!("splits[{i}].file"), format!("{name:?}"), format!("{:?}", split.file)));
            }
            next = split.end;
        }
        let whole = next == self.width && u32::try_from(self.width).is_ok();
        (!whole).then(|| ("splits".to_owned(), format!("all {} latents", self.width), format!("0 to {next}")))
    }
}

/// The path of a split within the cache; latents `start .. end`.
pub(crate) fn split_file(hook: &HookPoint, start: usize, end: usize) -> String {
    format!("{hook}/{start}_{}.safetensors", end - 1)
}
