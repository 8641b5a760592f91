//! `sae-steer run`: one prompt, answered as the model is and steered.

use std::path::PathBuf;

use anyhow::Result;
use lmm_hooks::Hooks;
use lmm_prep::read_image_upright;
use sae_types::HookPoint;
use serde::Serialize;
use stage_kit::{CommonArgs, UsageError};
use steering::{Change, Mode, Plan, Steerable, Target};

use crate::answering::{Wording, answer, inputs, print, text};
use crate::args::{MannerArgs, ModelArgs, WritingArgs};

/// What multimodal-sae's script for single prompts sets a feature to.
const VALUE: f32 = 10.0;

pub(crate) const EXAMPLE: &str = "\
Example:
  sae-steer run assets/shapes-lmm-s --sae sae -i scene.png -t \"what colour is the circle ?\" -f 17 -k 20 --where image

docs/steering.md says what the modes do.";

#[derive(Debug, clap::Args)]
pub(crate) struct SteerArgs {
    #[command(flatten)]
    model: ModelArgs,
    /// The hook point to steer at, where there are several autoencoders
    #[arg(long)]
    hookpoint: Option<HookPoint>,
    /// What to ask
    #[arg(short, long)]
    text: String,
    /// Image to ask about
    #[arg(short, long)]
    image: Option<PathBuf>,
    /// Features to change, `[HOOKPOINT:]FEATURE`
    #[arg(short, long, required = true, num_args = 1.., value_name = "[HOOK:]FEATURE")]
    features: Vec<Target>,
    /// Value of all features, or of each; default: 10
    #[arg(short = 'k', long = "value", num_args = 1.., allow_negative_numbers = true)]
    values: Vec<f32>,
    /// Put the text to the model as it stands, behind the image if there is one, without chat template
    #[arg(long)]
    pure_text: bool,
    #[command(flatten)]
    manner: MannerArgs,
    #[command(flatten)]
    writing: WritingArgs,
    /// Show the answers while they are written
    #[arg(long)]
    stream: bool,
    /// Print one JSON object
    #[arg(long, conflicts_with = "stream")]
    json: bool,
}

/// What `--json` prints.
#[derive(Serialize)]
struct Answers<'a> {
    original: &'a str,
    steered: &'a str,
    changed: bool,
    original_tokens: usize,
    steered_tokens: usize,
    features: Vec<Changed>,
}

#[derive(Serialize)]
struct Changed {
    hook: String,
    feature: u32,
    mode: Mode,
    #[serde(skip_serializing_if = "Option::is_none")]
    value: Option<f32>,
}

pub(crate) fn run(args: &SteerArgs, common: &CommonArgs) -> Result<()> {
    if common.world()?.size > 1 {
        return Err(UsageError::new("sae-steer run is one process: leave --world-size at 1").into());
    }
    let steered =
        args.model.open(|hook| args.hookpoint.as_ref().is_none_or(|wanted| wanted == hook), &args.manner)?;
    let plan = plan(args, steered.steerer.steerable())?;
    let images = args.image.as_deref().map(read_image_upright).transpose()?;
    let processor = &steered.model.processor;
    let inputs = inputs(processor, &args.text, images.as_slice(), Wording::of(args.pure_text))?;
    let batch = steered.model.prompts(&[&inputs])?;
    let options = args.writing.options(&steered.generation, common.seed);
    let options = steered.fitting(&options, inputs.input_ids.len())?;
    let steering = steered.steerer.steering(std::slice::from_ref(&plan))?;
    let one = |title: &str, hooks: &mut Hooks<'_>| -> Result<(String, usize)> {
        if args.stream {
            print(title)?;
        }
        let say = |piece: &str| if args.stream { print(piece) } else { Ok(()) };
        let tokens = answer(&steered, &batch, &options, hooks, say)?;
        let text = text(processor, &tokens)?;
        if !(args.stream || args.json) {
            print(&format!("{title}{text}"))?;
        }
        if !args.json {
            print("\n")?;
        }
        Ok((text, tokens.len()))
    };
    let (original, original_tokens) = one("=== original\n", &mut Hooks::new())?;
    let (changed, steered_tokens) = one("=== steered\n", &mut steering.hooks())?;
    if args.json {
        let features = plan.all().map(|(hook, feature, Change { mode, value })| Changed {
            hook: hook.to_string(),
            feature: feature.0,
            mode,
            value: (mode != Mode::Ablate).then_some(value),
        });
        let answers = Answers {
            original: &original,
            steered: &changed,
            changed: original != changed,
            original_tokens,
            steered_tokens,
            features: features.collect(),
        };
        print(&format!("{}\n", serde_json::to_string(&answers)?))?;
    }
    Ok(())
}

fn plan(args: &SteerArgs, steerable: &Steerable) -> Result<Plan> {
    let wrong = |problem: String| anyhow::Error::from(UsageError::new(problem));
    let value = |place: usize| match args.values.as_slice() {
        [] => Ok(VALUE),
        [one] => Ok(*one),
        each if each.len() == args.features.len() => Ok(each[place]),
        each => Err(wrong(format!("{} values for {} features", each.len(), args.features.len()))),
    };
    let values = (0..args.features.len()).map(value).collect::<Result<Vec<f32>>>()?;
    let changes = values.into_iter().map(|value| Change { mode: args.manner.mode, value });
    let plan = steerable.plan(args.manner.plan(), args.features.iter().zip(changes));
    plan.map_err(|error| wrong(error.to_string()))
}
