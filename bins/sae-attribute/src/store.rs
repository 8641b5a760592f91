//! The output folder: `attribution.json` and `effects.safetensors` (docs/formats.md).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use attribution::{Effect, Effects};
use lmm_prep::{ImageSpan, TokenLayout};
use sae_types::{FeatureId, HookPoint, TokenIndex};
use safetensors::tensor::{Dtype, TensorView};
use safetensors::{SafeTensors, serialize_to_file};
use serde::{Deserialize, Serialize};

use crate::data::NamedToken;

const FORMAT: &str = "lmm-sae-attribution-1";
const ABOUT: &str = "attribution.json";
const EFFECTS: &str = "effects.safetensors";

/// What `attribution.json` says.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct About {
    format: String,
    pub(crate) method: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) steps: Option<usize>,
    pub(crate) model: String,
    pub(crate) sae: String,
    /// The number of latents at each hook point.
    pub(crate) hooks: BTreeMap<HookPoint, usize>,
    pub(crate) questions: Vec<AboutQuestion>,
}

/// What it says of one question.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct AboutQuestion {
    pub(crate) prompt: String,
    pub(crate) answers: Vec<NamedToken>,
    pub(crate) baselines: Vec<NamedToken>,
    pub(crate) score: f64,
    /// The text of every token; empty for those of images.
    pub(crate) tokens: Vec<String>,
    pub(crate) images: Vec<AboutImage>,
}

/// An image and where its tokens are.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct AboutImage {
    pub(crate) path: PathBuf,
    pub(crate) start: usize,
    pub(crate) base: (usize, usize),
    pub(crate) high: (usize, usize),
}

/// The effects of one question at one hook point.
#[derive(Debug)]
pub(crate) enum Found {
    /// Token by token.
    Tokens(Effects),
    /// Of features switched off on all tokens, and of the error left out.
    Whole { features: Vec<FeatureId>, values: Vec<f64>, error: f64 },
}

impl About {
    pub(crate) fn new(method: &str, steps: Option<usize>, model: &str, sae: &str) -> Self {
        let (method, model, sae) = (method.to_owned(), model.to_owned(), sae.to_owned());
        Self {
            format: FORMAT.to_owned(),
            method,
            steps,
            model,
            sae,
            hooks: BTreeMap::new(),
            questions: Vec::new(),
        }
    }
}

impl About {
    /// The same of other questions.
    pub(crate) fn with(&self, questions: Vec<AboutQuestion>) -> Self {
        let (format, method) = (self.format.clone(), self.method.clone());
        let (model, sae, hooks) = (self.model.clone(), self.sae.clone(), self.hooks.clone());
        Self { format, method, steps: self.steps, model, sae, hooks, questions }
    }
}

impl AboutQuestion {
    /// Where its images' tokens are.
    pub(crate) fn layout(&self) -> TokenLayout {
        let span = |image: &AboutImage| ImageSpan { start: image.start, base: image.base, high: image.high };
        TokenLayout { images: self.images.iter().map(span).collect(), n_tokens: self.tokens.len() }
    }
}

/// Writes the two files; `found[question]` has an entry per hook point.
pub(crate) fn write(folder: &Path, about: &About, found: &[BTreeMap<HookPoint, Found>]) -> Result<()> {
    let path = folder.join(ABOUT);
    std::fs::write(&path, format!("{}\n", serde_json::to_string_pretty(about)?))
        .with_context(|| format!("cannot write {}", path.display()))?;
    let mut tensors: Vec<(String, Dtype, Vec<u8>)> = Vec::new();
    for (question, hooks) in found.iter().enumerate() {
        for (hook, found) in hooks {
            let mut add =
                |name: &str, dtype, bytes| tensors.push((format!("{hook}.{question}.{name}"), dtype, bytes));
            let floats =
                |values: &[f32]| values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>();
            let ids =
                |ids: &mut dyn Iterator<Item = u32>| ids.flat_map(u32::to_le_bytes).collect::<Vec<u8>>();
            match found {
                Found::Tokens(effects) => {
                    let entries = effects.entries();
                    add("feature", Dtype::U32, ids(&mut entries.iter().map(|entry| entry.feature.0)));
                    add("token", Dtype::U32, ids(&mut entries.iter().map(|entry| entry.token.0)));
                    let values: Vec<f32> = entries.iter().map(|entry| entry.value).collect();
                    add("value", Dtype::F32, floats(&values));
                    add("error", Dtype::F32, floats(&effects.error));
                    add("bias", Dtype::F32, floats(&effects.bias));
                }
                Found::Whole { features, values, error } => {
                    add("feature", Dtype::U32, ids(&mut features.iter().map(|feature| feature.0)));
                    let values: Vec<f32> = values.iter().map(|&value| value as f32).collect();
                    add("value", Dtype::F32, floats(&values));
                    add("error", Dtype::F32, floats(&[*error as f32]));
                }
            }
        }
    }
    save(&folder.join(EFFECTS), &tensors)
}

/// Writes the effects at each hook point as multimodal-sae does, `[num_latents * questions, tokens]`: the questions' rows of the
/// first feature, then those of the next. `share` is what every value is multiplied by.
pub(crate) fn write_dense(
    folder: &Path,
    model: &str,
    hooks: &BTreeMap<HookPoint, usize>,
    found: &[BTreeMap<HookPoint, Found>],
    share: f32,
) -> Result<()> {
    let model = model.trim_end_matches('/').rsplit('/').next().unwrap_or(model);
    for (hook, &width) in hooks {
        let all = found.iter().map(|hooks| match &hooks[hook] {
            Found::Tokens(effects) => Ok(effects),
            Found::Whole { .. } => bail!("msae's tensor needs effects by token"),
        });
        let all = all.collect::<Result<Vec<&Effects>>>()?;
        let lengths: Vec<usize> = all.iter().map(|effects| effects.n_tokens).collect();
        let n_tokens = lengths.first().copied().unwrap_or_default();
        ensure!(
            lengths.iter().all(|&length| length == n_tokens),
            "msae's tensor needs prompts of one length, these have {lengths:?} tokens: ask one question at a time"
        );
        let mut bytes = vec![0; width * all.len() * n_tokens * 4];
        for (question, effects) in all.iter().enumerate() {
            for Effect { feature, token, value } in effects.entries() {
                let at = (feature.index() * all.len() + question) * n_tokens + token.index();
                bytes[at * 4..][..4].copy_from_slice(&(value * share).to_le_bytes());
            }
        }
        let shape = vec![width * all.len(), n_tokens];
        let view = TensorView::new(Dtype::F32, shape, &bytes)?;
        let path = folder.join(format!("{model}_{}.safetensors", hook.file_stem()));
        serialize_to_file([(hook.as_str(), view)], None, &path)
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

fn save(path: &Path, tensors: &[(String, Dtype, Vec<u8>)]) -> Result<()> {
    let mut views = Vec::with_capacity(tensors.len());
    for (name, dtype, bytes) in tensors {
        // Both dtypes have four bytes.
        views.push((name.as_str(), TensorView::new(*dtype, vec![bytes.len() / 4], bytes)?));
    }
    serialize_to_file(views, None, path).with_context(|| format!("cannot write {}", path.display()))
}

/// Reads a folder back: what is said of it, and the effects of each question at each hook point.
pub(crate) fn read(folder: &Path) -> Result<(About, Vec<Vec<Effects>>)> {
    let path = folder.join(ABOUT);
    let text = std::fs::read_to_string(&path)
        .with_context(|| format!("cannot read {}; is it a folder of sae-attribute run?", path.display()))?;
    let about: About = serde_json::from_str(&text)
        .with_context(|| format!("{} was not written by sae-attribute", path.display()))?;
    ensure!(
        about.format == FORMAT,
        "{} is of format {:?}, expected {FORMAT:?}",
        path.display(),
        about.format
    );
    let path = folder.join(EFFECTS);
    let bytes = std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let file = SafeTensors::deserialize(&bytes).with_context(|| format!("cannot read {}", path.display()))?;
    let mut all = Vec::with_capacity(about.questions.len());
    for (number, question) in about.questions.iter().enumerate() {
        let mut effects = Vec::with_capacity(about.hooks.len());
        for (hook, &width) in &about.hooks {
            effects.push(
                of(&file, hook, number, width, question.tokens.len())
                    .with_context(|| format!("{}: {hook}, question {number}", path.display()))?,
            );
        }
        all.push(effects);
    }
    Ok((about, all))
}

fn of(
    file: &SafeTensors<'_>,
    hook: &HookPoint,
    question: usize,
    width: usize,
    n_tokens: usize,
) -> Result<Effects> {
    let numbers = |name: &str, dtype| -> Result<Vec<[u8; 4]>> {
        let tensor = file.tensor(&format!("{hook}.{question}.{name}"))?;
        ensure!(tensor.dtype() == dtype, "{name} is {:?}, expected {dtype:?}", tensor.dtype());
        Ok(tensor.data().chunks_exact(4).map(|four| [four[0], four[1], four[2], four[3]]).collect())
    };
    if file.tensor(&format!("{hook}.{question}.token")).is_err() {
        bail!("the effects are not by token: run the exact method with --per-token");
    }
    let floats =
        |name| Ok::<_, anyhow::Error>(numbers(name, Dtype::F32)?.into_iter().map(f32::from_le_bytes));
    let ids = |name| Ok::<_, anyhow::Error>(numbers(name, Dtype::U32)?.into_iter().map(u32::from_le_bytes));
    let entries: Vec<Effect> = ids("feature")?
        .zip(ids("token")?)
        .zip(floats("value")?)
        .map(|((feature, token), value)| Effect {
            feature: FeatureId(feature),
            token: TokenIndex(token),
            value,
        })
        .collect();
    let sound = |entry: &Effect| entry.feature.index() < width && entry.token.index() < n_tokens;
    ensure!(entries.iter().all(sound), "a feature or token is out of range");
    let others = [floats("error")?.collect::<Vec<_>>(), floats("bias")?.collect()];
    ensure!(others.iter().all(|list| list.is_empty() || list.len() == n_tokens), "errors of another length");
    Ok(Effects::new(hook.clone(), width, n_tokens, entries, others))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn about(hook: &HookPoint) -> About {
        let mut about = About::new("one-pass", None, "models/small", "sae");
        about.hooks.insert(hook.clone(), 4);
        for _ in 0..2 {
            about.questions.push(AboutQuestion {
                prompt: "p".to_owned(),
                answers: vec![NamedToken { text: "red".to_owned(), id: 3 }],
                baselines: Vec::new(),
                score: 1.5,
                tokens: vec!["a".to_owned(), String::new(), "b".to_owned()],
                images: vec![AboutImage { path: "i.png".into(), start: 1, base: (1, 1), high: (0, 0) }],
            });
        }
        about
    }

    fn effects(hook: &HookPoint, value: f32) -> Effects {
        let entry =
            |feature, token, value| Effect { feature: FeatureId(feature), token: TokenIndex(token), value };
        let entries = vec![entry(1, 2, value), entry(3, 0, -value)];
        Effects::new(hook.clone(), 4, 3, entries, [vec![0.1, 0.2, 0.3], Vec::new()])
    }

    #[test]
    fn what_is_written_is_read_back() {
        let folder = tempfile::tempdir().unwrap();
        let hook = HookPoint::layer(2);
        let both = [effects(&hook, 1.0), effects(&hook, 2.0)];
        let found: Vec<_> =
            both.iter().map(|one| BTreeMap::from([(hook.clone(), Found::Tokens(one.clone()))])).collect();
        write(folder.path(), &about(&hook), &found).unwrap();
        let (read_back, effects) = read(folder.path()).unwrap();
        assert_eq!(read_back.questions[0].layout().images[0].positions(), 1..2);
        assert_eq!(effects, both.map(|one| vec![one]));

        write_dense(folder.path(), "models/small/", &about(&hook).hooks, &found, 0.5).unwrap();
        let bytes = std::fs::read(folder.path().join("small_model_layers_2.safetensors")).unwrap();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        let tensor = file.tensor("model.layers.2").unwrap();
        assert_eq!(tensor.shape(), [8, 3]);
        let values: Vec<f32> =
            tensor.data().chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
        let expected = |row: usize| &values[row * 3..][..3];
        assert_eq!(expected(2), [0.0, 0.0, 0.5], "feature 1, question 0");
        assert_eq!(expected(3), [0.0, 0.0, 1.0], "feature 1, question 1");
        assert_eq!(expected(7), [-1.0, 0.0, 0.0], "feature 3, question 1");
    }

    #[test]
    fn whole_effects_have_no_tokens_to_show() {
        let folder = tempfile::tempdir().unwrap();
        let hook = HookPoint::layer(2);
        let whole = || Found::Whole { features: vec![FeatureId(1)], values: vec![0.5], error: 0.25 };
        let found: Vec<_> = (0..2).map(|_| BTreeMap::from([(hook.clone(), whole())])).collect();
        write(folder.path(), &about(&hook), &found).unwrap();
        let error = format!("{:#}", read(folder.path()).unwrap_err());
        assert!(error.contains("--per-token"), "{error}");
        assert!(write_dense(folder.path(), "m", &about(&hook).hooks, &found, 1.0).is_err());
    }
}
