//! `sae-explain images`: what the lit parts of images share.

use std::path::PathBuf;

use anyhow::Result;
use explain::{FeatureKey, Outcome, parse, prompt};
use explain_kit::{
    FeatureArgs, Gallery, GalleryArgs, IMAGES, Instruction, Job, Nothing, Once, Plan, Prepared, Question,
    RunArgs, ServerArgs, Texts, open_cache, stored,
};
use stage_kit::{CommonArgs, RunManifest};

use crate::publish::{EXPLAINED, publish};

pub(crate) const EXAMPLE: &str = "\
Example, with LLaVA-OneVision behind SGLang, and again after a kill:
  sae-explain images --cache cache --dataset DATASET --explanation-dir explained --endpoint http://127.0.0.1:30000/v1
  sae-explain images ... --resume

EXPLANATION_DIR/explanations.jsonl has one line per feature and is what --resume reads; model_layers_24.json is written from it.";

#[derive(Debug, clap::Args)]
pub(crate) struct ImagesArgs {
    #[command(flatten)]
    gallery: GalleryArgs,
    /// Folder to write
    #[arg(long)]
    explanation_dir: PathBuf,
    /// Add this many images in which the feature is off although what it often comes with is there. With --prompt your own
    /// instructions must say that the last pictures are such
    #[arg(long, default_value_t = 0, help_heading = "Examples")]
    negatives: usize,
    /// Keep the images that are shown, their masks and the masked images, in EXPLANATION_DIR/images
    #[arg(long)]
    save_images: bool,
    #[command(flatten)]
    features: FeatureArgs,
    #[command(flatten)]
    run: RunArgs,
    #[command(flatten)]
    server: ServerArgs,
}

/// What makes a question of a feature.
struct Asker {
    gallery: Gallery,
    /// The user's own instructions, if there are.
    own: Option<String>,
    prompt: String,
    save: Option<PathBuf>,
}

pub(crate) fn run(args: &ImagesArgs, common: &CommonArgs) -> Result<()> {
    let mut manifest = RunManifest::start(env!("CARGO_BIN_NAME"), env!("CARGO_PKG_VERSION"));
    manifest.seed = Some(common.seed);
    let world = common.world()?;
    manifest.world(world);
    let instruction = Instruction::of(&args.server, prompt::images_instruction(args.negatives))?;
    let cache = open_cache(&args.gallery.source.cache)?;
    let selection = args.features.wanted()?.among(stored(cache)?.into_iter(), world)?;
    let gallery = args.gallery.open(cache, &selection, args.negatives, common.seed, &mut manifest)?;
    let plan = Plan {
        label: "explaining",
        stage: EXPLAINED,
        path: &args.explanation_dir,
        run: &args.run,
        server: &args.server,
        instruction: &instruction,
        common,
    };
    let job = Job::open(plan, Once(parse::explanation), selection, Texts::default(), &mut manifest)?;
    let asker = Asker {
        gallery,
        prompt: instruction.short_hash(),
        own: args.server.prompt.is_some().then_some(instruction.text),
        save: args.save_images.then(|| args.explanation_dir.join(IMAGES)),
    };
    let (summary, ()) = explain_kit::run(job, manifest, move |key| asker.question(key), publish)?;
    Ok(summary.print(&Nothing {})?)
}

impl Asker {
    fn question(&self, key: &FeatureKey) -> Result<Prepared, Outcome> {
        let exhibit = self.gallery.show(key)?;
        if let Some(folder) = &self.save {
            let folder = folder.join(key.hook.file_stem()).join(key.to_string());
            self.gallery
                .save(&exhibit, &folder)
                .map_err(|error| Outcome::Failed(format!("the images cannot be kept: {}", error.told())))?;
        }
        let instruction = match &self.own {
            Some(own) => own.clone(),
            None => prompt::images_instruction(exhibit.counterexamples()),
        };
        let (pictures, shown) = exhibit.into_parts();
        let messages = prompt::about_pictures(pictures, &instruction);
        Ok(Prepared::Ask(Question::one(key, messages, shown, self.prompt.clone())))
    }
}
