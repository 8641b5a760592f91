//! The training stage: what is trained on what, whether it fits, and where it goes on from.

use std::collections::BTreeSet;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use mm_data::Concat;
use model_kit::{ModelFolder, OpenModel, TorchArgs};
use sae_types::HookPoint;
use serde_json::{Value, json};
use stage_kit::{Checkpoints, CommonArgs, Existing, OutputFolder, RunManifest, UsageError, hash_file};
use tch::Device;
use torch_nn::DeviceChoice;

use crate::args::StageArgs;
use crate::order::{Order, Share};
use crate::plan::{Planned, plan};
use crate::saving::CONFIG;
use crate::state::{Settings, check_settings};
use crate::team::Team;
use crate::{data, preflight};

/// All that a run works on.
pub(crate) struct Stage<'a> {
    pub(crate) args: &'a StageArgs,
    pub(crate) team: &'a Team,
    pub(crate) dataset: Arc<Concat>,
    pub(crate) model: OpenModel,
    pub(crate) order: Order,
    pub(crate) share: Share,
    pub(crate) held_out: Vec<u32>,
    pub(crate) points: Vec<HookPoint>,
    pub(crate) settings: Settings,
    /// The folder of checkpoints, and what writes into it, which the leader has.
    pub(crate) checkpoint_folder: PathBuf,
    pub(crate) checkpoints: Option<Checkpoints>,
    /// The checkpoint to go on from.
    pub(crate) resumed: Option<PathBuf>,
}

/// Trains. The other processes are left in `team`, for who has to end them after an error.
pub(crate) fn run(
    args: &StageArgs,
    torch: TorchArgs,
    common: &CommonArgs,
    team: &mut Option<Team>,
) -> Result<()> {
    let world = common.world()?;
    let batch = args.data.batch_size.get();
    if world.size > batch {
        return Err(UsageError::new(format!(
            "{} processes cannot share --batch-size {batch}: give each a sample at least",
            world.size
        ))
        .into());
    }
    let choice = match torch.device {
        // One GPU of a machine for each of its processes.
        DeviceChoice::Cuda(0) if world.size > 1 => DeviceChoice::Cuda(local_rank()?),
        choice => choice,
    };
    let device = match choice.open() {
        Ok(device) => Some(device),
        // A dry run may be for another machine.
        Err(_) if args.run.dry_run => None,
        Err(error) => return Err(error).with_context(|| format!("cannot use --device {choice}")),
    };
    let team = team.insert(Team::open(&args.team, world, device)?);
    with_team(args, torch, common, team, (choice, device))
}

/// Which of the processes on this machine this is, by the variables of torchrun, Open MPI and SLURM.
fn local_rank() -> Result<usize> {
    for name in ["LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_RANK", "SLURM_LOCALID"] {
        if let Ok(text) = std::env::var(name) {
            return text.parse().with_context(|| format!("{name}={text:?} is no number"));
        }
    }
    // Kubernetes gives each of its pods a machine of its own to see.
    Ok(0)
}

fn with_team(
    args: &StageArgs,
    torch: TorchArgs,
    common: &CommonArgs,
    team: &Team,
    (choice, device): (DeviceChoice, Option<Device>),
) -> Result<()> {
    let mut run = RunManifest::start(env!("CARGO_BIN_NAME"), env!("CARGO_PKG_VERSION"));
    run.seed = Some(common.seed);
    let finished = args.run.resume && args.run.save_dir.join("run.json").exists();
    let finished = team.from_leader(&finished)?;
    if !finished && team.leads() {
        OutputFolder::check(&args.run.save_dir, Existing::from_overwrite(args.run.overwrite))?;
    }
    let found = ModelFolder::find(&args.model)?;
    let network = found.hollow()?;
    let checkpoint_folder = checkpoint_folder(&args.run.save_dir)?;
    let dataset = Arc::new(data::open(args, common.seed)?);
    let (settings, inputs) = settings(args, torch, common, &found, &dataset)?;
    for (role, source, sha256) in inputs {
        run.input(role, &source, sha256);
    }
    let theirs = team.from_leader(&settings)?;
    same_settings(&theirs, &settings)?;
    if finished {
        return if team.leads() { already_finished(args, &settings, &checkpoint_folder) } else { Ok(()) };
    }

    let data = &args.data;
    let (order, held_out) =
        Order::new(dataset.len(), args.run.eval_examples, data.max_examples, data.epochs, common.seed);
    ensure!(
        order.len() > 0,
        "{} has {} samples, all of them held out: lower --eval-examples",
        args.sources(),
        dataset.len()
    );
    let passes = order.len().div_ceil(data.batch_size.get());
    let steps = passes.div_ceil(args.step.grad_acc_steps.get()) as u64;
    let planned = plan(args, &network, common.seed, steps)?;
    let points: BTreeSet<&HookPoint> = planned.iter().flat_map(Planned::points).collect();
    let points: Vec<HookPoint> = points.into_iter().cloned().collect();

    let longest = preflight::longest(&dataset, &found.processor, order.from(0));
    let local = TorchArgs { device: choice, ..torch };
    let needs = preflight::estimate(args, network.config(), local, device, &planned, team, steps, longest)?;
    if args.run.dry_run {
        if team.leads() {
            write!(stage_kit::stdout(), "{needs}")?;
        }
        return team.together(needs.fits());
    }
    if !args.run.no_preflight {
        team.together(needs.fits())?;
    }
    let model = found.load(local, args.run.precision.weights())?;
    let checkpoints = if team.leads() { Some(open_checkpoints(args, &checkpoint_folder)?) } else { None };
    let latest = match &checkpoints {
        Some(checkpoints) if args.run.resume => checkpoints.latest()?.map(|step| step.path),
        _ => None,
    };
    let resumed = team.from_leader(&latest)?;
    let share = team.share(data.batch_size.get());
    let stage = Stage {
        args,
        team,
        dataset,
        model,
        order,
        share,
        held_out,
        points,
        settings,
        checkpoint_folder,
        checkpoints,
        resumed,
    };
    let trained = stage.check_shared().and_then(|()| stage.train(planned, run));
    let evaluations = match trained {
        Ok(evaluations) => evaluations,
        Err(error) => {
            stage.leave(&error);
            return Err(error);
        }
    };
    if let Some(checkpoints) = stage.checkpoints {
        if !args.run.keep_checkpoint {
            checkpoints.remove()?;
        }
        // Last: a reader of stdout that went away ends the run here, and must not cost the autoencoders.
        for (name, evaluation) in &evaluations {
            writeln!(stage_kit::stdout(), "{}", json!({"name": name, "held_out": evaluation}))?;
        }
    }
    Ok(())
}

/// A run that ended, perhaps just before it could remove its checkpoint.
fn already_finished(args: &StageArgs, settings: &Settings, checkpoint_folder: &Path) -> Result<()> {
    let path = args.run.save_dir.join(CONFIG);
    let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let mut config: Value =
        serde_json::from_str(&text).with_context(|| format!("{} is no JSON", path.display()))?;
    let was = serde_json::from_value(config["settings"].take())
        .with_context(|| format!("{} has no settings of a run", path.display()))?;
    check_settings(&was, settings)?;
    if checkpoint_folder.exists() && !args.run.keep_checkpoint {
        Checkpoints::open(checkpoint_folder, 1)?.remove()?;
    }
    tracing::info!("{} is finished already", args.run.save_dir.display());
    Ok(())
}

/// The folder of the run's checkpoints; those of another run that did not end are neither mixed in nor lost by mistake.
fn open_checkpoints(args: &StageArgs, folder: &Path) -> Result<Checkpoints> {
    let checkpoints = Checkpoints::open(folder, 1)?;
    if args.run.resume || checkpoints.latest()?.is_none() {
        return Ok(checkpoints);
    }
    if args.run.overwrite {
        checkpoints.remove()?;
        return Ok(Checkpoints::open(folder, 1)?);
    }
    Err(UsageError::new(format!(
        "{} holds a checkpoint of a run that did not end: go on with --resume, or start anew with --overwrite",
        folder.display()
    ))
    .into())
}

/// `SAVE_DIR.checkpoint`.
fn checkpoint_folder(save_dir: &Path) -> Result<PathBuf> {
    let mut name = save_dir.file_name().context("--save-dir ends in no name")?.to_owned();
    name.push(".checkpoint");
    Ok(save_dir.with_file_name(name))
}

/// Refuses to train something else than the leader.
fn same_settings(leader: &Settings, own: &Settings) -> Result<()> {
    let differs = |name: &&String| leader.get(*name) != own.get(*name);
    let names: BTreeSet<&String> = leader.keys().chain(own.keys()).filter(differs).collect();
    ensure!(names.is_empty(), "the processes were started with different flags or inputs: {names:?}");
    Ok(())
}

type Inputs = Vec<(&'static str, String, String)>;

/// What the result depends on, by the names of the flags, and what is read.
fn settings(
    args: &StageArgs,
    torch: TorchArgs,
    common: &CommonArgs,
    model: &ModelFolder,
    dataset: &Concat,
) -> Result<(Settings, Inputs)> {
    let model_hash = hash_file(&model.folder.join("config.json"))?;
    let inputs = vec![
        ("model", model.folder.display().to_string(), model_hash.clone()),
        ("dataset", args.sources(), dataset.fingerprint().to_owned()),
    ];
    let mut settings = args.settings()?;
    settings.insert("MODEL's config.json".into(), model_hash);
    settings.insert("DATASET's fingerprint".into(), dataset.fingerprint().to_owned());
    settings.insert("--seed".into(), common.seed.to_string());
    settings.insert("--device".into(), torch.device.to_string());
    settings.insert("--dtype".into(), torch.dtype.to_string());
    Ok((settings, inputs))
}
