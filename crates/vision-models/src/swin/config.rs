//! [`SwinConfig`]: the backbone's part of a `config.json`.

use lmm_prep::{Activation, Fields, PrepError};
use serde_json::{Map, Value};

use crate::bert::LARGEST;

/// Mirror of transformers 4.57's `SwinConfig`, with that class's defaults ([`SwinConfig::default`]).
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct SwinConfig {
    /// Side of a patch, in pixels.
    pub patch_size: usize,
    /// Channels of the first stage; each later one has twice as many.
    pub embed_dim: usize,
    /// Blocks of each stage.
    pub depths: Vec<usize>,
    /// Attention heads of each stage.
    pub num_heads: Vec<usize>,
    /// Side of a window, in patches of the stage.
    pub window_size: usize,
    /// Width of the MLPs in that of the stage.
    pub mlp_ratio: f64,
    /// Whether queries, keys and values have a bias.
    pub qkv_bias: bool,
    /// Activation of the MLPs.
    pub hidden_act: Activation,
    /// Epsilon of the blocks' layer norms.
    pub layer_norm_eps: f64,
    /// The stages whose feature maps come out, in order; 0 stands for the patches (`stem`), `i` for `stage{i}`.
    pub out_indices: Vec<usize>,
    /// Keys that nothing here reads.
    pub extra: Map<String, Value>,
}

impl Default for SwinConfig {
    fn default() -> Self {
        Self {
            patch_size: 4,
            embed_dim: 96,
            depths: vec![2, 2, 6, 2],
            num_heads: vec![3, 6, 12, 24],
            window_size: 7,
            mlp_ratio: 4.0,
            qkv_bias: true,
            hidden_act: Activation::Gelu,
            layer_norm_eps: 1e-5,
            out_indices: vec![4],
            extra: Map::new(),
        }
    }
}

impl SwinConfig {
    /// Takes the configuration out of a JSON object.
    ///
    /// # Errors
    /// [`PrepError::Field`] naming the field at fault.
    pub fn from_fields(mut fields: Fields) -> Result<Self, PrepError> {
        let model_type: String = fields.required("model_type")?;
        if model_type != "swin" {
            return Err(fields.error("model_type", "\"swin\"", format!("{model_type:?}")));
        }
        let channels = fields.or("num_channels", 3_usize)?;
        if channels != 3 {
            return Err(fields.error("num_channels", "3", channels.to_string()));
        }
        if fields.or("use_absolute_embeddings", false)? {
            return Err(fields.error("use_absolute_embeddings", "false", "true"));
        }
        let default = Self::default();
        let mut config = Self {
            patch_size: fields.within("patch_size", default.patch_size, 1..=256)?,
            embed_dim: fields.within("embed_dim", default.embed_dim, 1..=1 << 14)?,
            depths: fields.or("depths", default.depths)?,
            num_heads: fields.or("num_heads", default.num_heads)?,
            window_size: fields.within("window_size", default.window_size, 1..=128)?,
            mlp_ratio: fields.or("mlp_ratio", default.mlp_ratio)?,
            qkv_bias: fields.or("qkv_bias", default.qkv_bias)?,
            hidden_act: Activation::take(&mut fields, "hidden_act", default.hidden_act)?,
            layer_norm_eps: fields.positive("layer_norm_eps", default.layer_norm_eps)?,
            out_indices: Vec::new(),
            extra: Map::new(),
        };
        let stages = config.depths.len();
        if !(1..=8).contains(&stages) || config.depths.iter().any(|depth| !(1..=1024).contains(depth)) {
            let expected = "1 to 8 stages of 1 to 1024 blocks";
            return Err(fields.error("depths", expected, format!("{:?}", config.depths)));
        }
        let fits = |(stage, heads): (usize, &usize)| {
            *heads > 0 && (config.channels(stage + 1) as usize).is_multiple_of(*heads)
        };
        if config.num_heads.len() != stages || !config.num_heads.iter().enumerate().all(fits) {
            let expected = format!("{stages} divisors of embed_dim = {} times 1, 2, 4, ..", config.embed_dim);
            return Err(fields.error("num_heads", expected, format!("{:?}", config.num_heads)));
        }
        let widths = [1, stages].map(|stage| config.channels(stage) as f64 * config.mlp_ratio);
        if !widths.iter().all(|width| (1.0..=LARGEST as f64).contains(width)) {
            let expected = format!("a number that makes the MLPs 1 to {LARGEST} wide");
            return Err(fields.error("mlp_ratio", expected, config.mlp_ratio.to_string()));
        }
        config.out_indices = take_stages(&mut fields, stages)?;
        config.extra = fields.into_extra();
        Ok(config)
    }

    /// Channels of the feature map of stage `stage`, 0 for the patches.
    pub fn channels(&self, stage: usize) -> i64 {
        (self.embed_dim as i64) << stage.saturating_sub(1)
    }

    /// Width of the MLPs of stage `stage`, rounded down as Python does.
    pub(super) fn mlp_width(&self, stage: usize) -> i64 {
        (self.mlp_ratio * self.channels(stage) as f64) as i64
    }
}

/// `out_features` and `out_indices`, each of which follows from the other; the last stage where neither is given.
fn take_stages(fields: &mut Fields, stages: usize) -> Result<Vec<usize>, PrepError> {
    let names: Option<Vec<String>> = fields.nullable("out_features", None)?;
    let numbers: Option<Vec<i64>> = fields.nullable("out_indices", None)?;
    let name_of = |stage: usize| if stage == 0 { "stem".to_owned() } else { format!("stage{stage}") };
    let ascending = |list: &[usize]| !list.is_empty() && list.windows(2).all(|pair| pair[0] < pair[1]);

    let by_number = match &numbers {
        None => None,
        Some(numbers) => {
            let count = stages as i64 + 1;
            let counted = |&number: &i64| {
                let number = if number < 0 { number + count } else { number };
                (0..count).contains(&number).then_some(number as usize)
            };
            let list: Option<Vec<usize>> = numbers.iter().map(counted).collect();
            let expected = format!("ascending stages from 0 to {stages}");
            let valid = list.filter(|list| ascending(list));
            Some(valid.ok_or_else(|| fields.error("out_indices", expected, format!("{numbers:?}")))?)
        }
    };
    let Some(names) = names else { return Ok(by_number.unwrap_or_else(|| vec![stages])) };
    let list: Option<Vec<usize>> =
        names.iter().map(|name| (0..=stages).find(|&stage| name_of(stage) == *name)).collect();
    let agrees = |list: &Vec<usize>| by_number.as_ref().is_none_or(|other| other == list);
    if let Some(list) = list.filter(|list| ascending(list) && agrees(list)) {
        return Ok(list);
    }
    let expected = match by_number {
        Some(list) => {
            format!("{:?}, as out_indices has it", list.into_iter().map(name_of).collect::<Vec<_>>())
        }
        None => format!("ascending names from stem, stage1, .., stage{stages}"),
    };
    Err(fields.error("out_features", expected, format!("{names:?}")))
}
