//! `sae-score reconstruction`: autoencoders against the live model.

use std::collections::BTreeMap;
use std::io::Write;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, Result};
use lmm_prep::Inputs;
use mm_data::{BadRecords, Choice, Concat, Field, OpenOptions, SourceSpec, TokenOptions, shuffled_order};
use model_kit::{
    FittingSae, LeftOut, ModelFolder, PrecisionArgs, SaeFolders, SampleBatches, TokenArgs, TorchArgs,
};
use sae_eval::{Evaluation, Subject, Table};
use stage_kit::{CommonArgs, Existing, OutputFolder, RunManifest, UsageError, hash_file};

#[derive(Debug, clap::Args)]
pub(crate) struct ReconstructionArgs {
    /// LLaVA-NeXT model: a folder in Hugging Face layout or a Hub id
    model: String,
    /// Data sets, `PATH_OR_HUB_ID[:SPLIT][@SHARE]`; best some that the autoencoders were not trained on
    #[arg(required = true, value_name = "DATASET")]
    datasets: Vec<SourceSpec>,
    /// Autoencoders: a folder of HOOKPOINT/{cfg.json,sae.safetensors} or a Hub id
    #[arg(long)]
    sae: String,
    /// Split of the data sets that name none
    #[arg(long)]
    split: Option<String>,
    /// Samples per forward pass
    #[arg(long, default_value_t = NonZeroUsize::new(8).expect("8 is not 0"))]
    batch_size: NonZeroUsize,
    /// Measure on this many samples, chosen by --seed; default: all
    #[arg(long)]
    max_examples: Option<NonZeroUsize>,
    /// Leave out up to this many unreadable samples instead of stopping at the first
    #[arg(long, default_value_t = 0)]
    max_bad: u64,
    #[command(flatten)]
    tokens: TokenArgs,
    #[command(flatten)]
    precision: PrecisionArgs,
    /// Print JSON instead of a table
    #[arg(long)]
    json: bool,
    /// Also write evaluation.json and run.json into this folder
    #[arg(long)]
    save_dir: Option<PathBuf>,
    /// Replace the folder if it is there
    #[arg(long)]
    overwrite: bool,
}

pub(crate) fn run(args: &ReconstructionArgs, torch: TorchArgs, common: &CommonArgs) -> Result<()> {
    if common.world()?.size > 1 {
        return Err(
            UsageError::new("sae-score reconstruction runs as one process: leave --world-size at 1").into()
        );
    }
    let mut run = RunManifest::start(env!("CARGO_BIN_NAME"), env!("CARGO_PKG_VERSION"));
    run.seed = Some(common.seed);
    let output = args
        .save_dir
        .as_ref()
        .map(|folder| OutputFolder::create(folder, Existing::from_overwrite(args.overwrite)))
        .transpose()?;
    let found = SaeFolders::find(&args.sae)?;
    found.note(&mut run)?;
    let folder = ModelFolder::find(&args.model)?;
    let saes = found.load(&folder.hollow()?)?;
    let options = OpenOptions {
        split: args.split.clone(),
        fields: vec![Field::Images, Field::Conversations],
        tokens: TokenOptions { ctx_len: args.tokens.ctx_len, dtype: None },
        ..OpenOptions::default()
    };
    let dataset = Arc::new(Concat::open(&args.datasets, &options, Choice::Seeded(common.seed))?);
    let model = folder.load(torch, args.precision.weights())?;
    run.input("model", &model.folder.display(), hash_file(&model.folder.join("config.json"))?);
    let sources: Vec<String> = args.datasets.iter().map(ToString::to_string).collect();
    run.input("dataset", &sources.join(" "), dataset.fingerprint());

    let mut order = shuffled_order(dataset.len(), common.seed);
    order.truncate(args.max_examples.map_or(usize::MAX, NonZeroUsize::get));
    let total = order.len() as u64;
    let subjects = saes
        .iter()
        .map(|(hook, FittingSae { sae, reads, .. })| {
            if sae.config().transcode {
                Subject::transcoder(hook.as_str(), reads.clone(), hook.clone(), sae)
            } else {
                Subject::autoencoder(hook.as_str(), hook.clone(), sae)
            }
        })
        .collect();
    let batches = SampleBatches::new(
        &dataset,
        &model.processor,
        order.into_iter(),
        args.batch_size,
        BadRecords::up_to(args.max_bad),
        LeftOut::default(),
    );
    let counted = |inputs: &Inputs| args.tokens.positions(&model.processor, inputs);
    let evaluations = model_kit::evaluate(&model, subjects, batches, total, counted, || true)?;

    let by_hook: BTreeMap<&str, &Evaluation> =
        evaluations.iter().map(|evaluation| (evaluation.name.as_str(), evaluation)).collect();
    let json = format!("{}\n", serde_json::to_string_pretty(&by_hook)?);
    if let Some(output) = output {
        let path = output.path().join("evaluation.json");
        std::fs::write(&path, &json).with_context(|| format!("cannot write {}", path.display()))?;
        run.count("samples", total);
        output.commit(run)?;
    }
    let mut stdout = stage_kit::stdout();
    if args.json {
        stdout.write_all(json.as_bytes())?;
    } else {
        writeln!(stdout, "{}", Table(&evaluations))?;
    }
    Ok(())
}
