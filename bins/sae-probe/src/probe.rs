//! The flags, and the way from an image and a prompt to features.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::PathBuf;
use std::str::FromStr;

use anyhow::{Result, ensure};
use explain::FeatureKey;
use explain_kit::{EXPLANATIONS, Explanations};
use image::RgbImage;
use lmm_prep::{ChatOptions, Inputs, Message, Part, Processor, TokenKind, read_image_upright};
use model_kit::{FittingSae, IMAGE_PROMPT, ModelFolder, OpenModel, PrecisionArgs, SaeFolders, TorchArgs};
use sae_torch::TorchSae;
use sae_types::{FeatureId, HookPoint};
use stage_kit::{CommonArgs, UsageError};
use tch::Kind;

use crate::measure::{By, Measured};
use crate::output::{self, OutputArgs};

pub(crate) const EXAMPLE: &str = "Example:
  sae-probe llava-hf/llama3-llava-next-8b-hf --sae lmms-lab/llama3-llava-next-8b-hf-sae-131k -i happy.jpg --ranks 30..100 \\
    --overlays overlays --filters-out happy.json
Low-level features of pictures come first; what a picture is about is found further down (multimodal-sae looks at 30..100).";

/// Which tokens count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Counted {
    /// All
    #[default]
    All,
    /// Those of images
    Image,
    /// Those of the prompt's text, the marks of the chat template included
    Text,
}

#[derive(Debug, clap::Args)]
pub(crate) struct ProbeArgs {
    /// LLaVA-NeXT model: a folder in Hugging Face layout or a Hub id
    model: String,
    /// Sparse autoencoders: a folder of HOOKPOINT/{cfg.json,sae.safetensors} or a Hub id
    #[arg(long)]
    sae: String,
    /// Only these hook points, for several repeat the flag; default: every one there is an autoencoder for
    #[arg(long, value_name = "HOOKPOINT")]
    hook: Vec<HookPoint>,
    /// Image to look at, for several repeat the flag
    #[arg(long, short)]
    image: Vec<PathBuf>,
    /// What the user says, put into the model's chat template
    #[arg(long, short)]
    text: Option<String>,
    /// What features are ranked by
    #[arg(long, value_enum, default_value_t = By::PreActivation)]
    by: By,
    /// Which tokens count
    #[arg(long, value_enum, default_value_t = Counted::All)]
    tokens: Counted,
    /// Count BOS too, whose vector is the same in every prompt
    #[arg(long)]
    keep_bos: bool,
    /// Which ranks to list, from 0, without the last
    #[arg(long, default_value = "0..10", value_name = "FROM..TO")]
    ranks: Ranks,
    /// Explanations of the features: a folder of sae-explain, a ledger (.jsonl), or files that multimodal-sae published
    /// (model_layers_24.json)
    #[arg(long)]
    explanations: Option<PathBuf>,
    #[command(flatten)]
    output: OutputArgs,
    #[command(flatten)]
    precision: PrecisionArgs,
}

/// `FROM..TO`.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Ranks(Range<usize>);

impl FromStr for Ranks {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (from, to) = text.split_once("..").ok_or("expected FROM..TO, such as 30..100")?;
        let number = |text: &str| text.parse().map_err(|_| format!("{text:?} is no rank"));
        let ranks = number(from)?..number(to)?;
        if ranks.is_empty() { Err("there is no rank in this range".to_owned()) } else { Ok(Self(ranks)) }
    }
}

/// A feature that was listed.
#[derive(Debug)]
pub(crate) struct Listed {
    pub(crate) rank: usize,
    pub(crate) feature: FeatureId,
    /// What it is ranked by.
    pub(crate) value: f64,
    /// On each token of the prompt, 0 on those that do not count.
    pub(crate) row: Vec<f32>,
    pub(crate) explanation: Option<String>,
}

/// A prompt as the model read it.
#[derive(Debug)]
pub(crate) struct Shown {
    pub(crate) inputs: Inputs,
    pub(crate) texts: Vec<String>,
    pub(crate) pictures: Vec<RgbImage>,
    /// How many of its tokens count.
    pub(crate) counted: usize,
}

pub(crate) fn run(args: &ProbeArgs, torch: TorchArgs, common: &CommonArgs) -> Result<()> {
    if common.world()?.size > 1 {
        return Err(UsageError::new("sae-probe runs as one process: leave --world-size at 1").into());
    }
    if args.image.is_empty() && args.text.is_none() {
        return Err(
            UsageError::new("there is nothing to look at: give an image (-i), a text (-t), or both").into()
        );
    }
    if args.image.is_empty() && (args.tokens == Counted::Image || args.output.overlays.is_some()) {
        return Err(UsageError::new("--tokens image and --overlays need an image (-i)").into());
    }
    let folder = ModelFolder::find(&args.model)?;
    let saes = SaeFolders::find(&args.sae)?.only(&args.hook)?.load(&folder.hollow()?)?;
    let explanations = args.explanations(saes.keys())?;
    let pictures = args.image.iter().map(|path| read_image_upright(path)).collect::<Result<Vec<_>, _>>()?;
    let inputs = args.inputs(&folder.processor, &pictures)?;
    let positions = args.positions(&folder.processor, &inputs);
    ensure!(!positions.is_empty(), "no token of the prompt counts");
    let texts = model_kit::token_texts(&folder.processor, &inputs)?;
    let shown = Shown { inputs, texts, pictures, counted: positions.len() };
    let model = folder.load(torch, args.precision.weights())?;
    let found = args.probe(&model, &shown, &positions, saes, explanations.as_ref())?;
    output::write(&args.output, &shown, &found)
}

impl ProbeArgs {
    /// The picture alone is shown as multimodal-sae's caches show it; words make it a conversation.
    fn inputs(&self, processor: &Processor, pictures: &[RgbImage]) -> Result<Inputs> {
        let Some(text) = &self.text else {
            return Ok(processor.prepare(&IMAGE_PROMPT.repeat(pictures.len()), pictures)?);
        };
        let mut parts = vec![Part::Image; pictures.len()];
        parts.push(Part::Text { text: text.clone() });
        let options = ChatOptions { add_generation_prompt: true };
        Ok(processor.prepare_chat(&[Message::parts("user", parts)], options, pictures)?)
    }

    fn positions(&self, processor: &Processor, inputs: &Inputs) -> Vec<u32> {
        let bos = processor.tokenizer().special_id("bos_token");
        let has_bos = bos.is_some() && inputs.input_ids.first().copied() == bos;
        let first = usize::from(has_bos && !self.keep_bos);
        let counts = |&position: &usize| {
            let is_text = inputs.layout.kind(position) == TokenKind::Text;
            match self.tokens {
                Counted::All => true,
                Counted::Image => !is_text,
                Counted::Text => is_text,
            }
        };
        (first..inputs.input_ids.len()).filter(counts).map(|position| position as u32).collect()
    }

    /// The features of the ranks asked for, by hook point.
    fn probe(
        &self,
        model: &OpenModel,
        shown: &Shown,
        positions: &[u32],
        saes: BTreeMap<HookPoint, FittingSae>,
        explanations: Option<&Explanations>,
    ) -> Result<BTreeMap<HookPoint, Vec<Listed>>> {
        let batch = model.batch(&[&shown.inputs])?;
        let mut found = BTreeMap::new();
        for (hook, FittingSae { sae, reads, .. }) in saes {
            let sae = TorchSae::from_sae(&sae, model.network.device(), Kind::Float)?;
            let states = model.states(&batch, &[positions.to_vec()], std::slice::from_ref(&reads))?;
            let _guard = tch::no_grad_guard();
            let measured = Measured::new(&sae, self.by, &states[&reads])?;
            let ranked = measured.ranked()?.into_iter().enumerate();
            let mut listed = Vec::new();
            for (rank, (feature, value)) in ranked.skip(self.ranks.0.start).take(self.ranks.0.len()) {
                let mut row = vec![0.0; shown.inputs.input_ids.len()];
                for (&position, value) in positions.iter().zip(measured.row(feature)?) {
                    row[position as usize] = value;
                }
                let key = FeatureKey { hook: hook.clone(), feature };
                let explanation = explanations.and_then(|known| known.texts.get(&key).cloned());
                listed.push(Listed { rank, feature, value, row, explanation });
            }
            found.insert(hook, listed);
        }
        Ok(found)
    }

    /// What was said of the features, with a word of the hook points that nothing was said of.
    fn explanations<'h>(&self, hooks: impl Iterator<Item = &'h HookPoint>) -> Result<Option<Explanations>> {
        let Some(path) = &self.explanations else { return Ok(None) };
        let explanations = Explanations::open(path, EXPLANATIONS)?;
        let known = explanations.features();
        for hook in hooks.filter(|hook| known.iter().all(|(known, _)| known != hook)) {
            tracing::warn!("{} explains no feature of {hook}", path.display());
        }
        drop(known);
        Ok(Some(explanations))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_are_ranges() {
        assert_eq!("30..100".parse(), Ok(Ranks(30..100)));
        for bad in ["30", "30..", "5..5", "9..3", "a..b", "-1..3"] {
            assert!(bad.parse::<Ranks>().is_err(), "{bad}");
        }
    }
}
