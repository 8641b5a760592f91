//! How many questions about unseen scenes a model answers exactly.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::PathBuf;

use anyhow::{Context, Result};
use lmm_hooks::{Batch, GenerationOptions, Hooks, LlavaNext, LoadOptions, PaddingSide};
use lmm_prep::{ChatOptions, Message, Processor};
use serde_json::json;
use shapes_world::{Question, QuestionKind, Scene};
use tch::{Device, Kind};

/// Data-set seed of the evaluation scenes: never trained on.
const EVALUATION_SCENES: u64 = 2_000;

/// `</s>` in the tokenizer of `model_folder`.
pub(crate) const END_OF_TURN: u32 = 2;

/// What can be chosen on the command line.
#[derive(clap::Args, Debug)]
pub(crate) struct EvaluateArgs {
    /// Model folder
    #[arg(default_value = "assets/shapes-lmm-s")]
    pub(crate) model: PathBuf,
    /// Unseen scenes to ask about; every question each of them allows is asked alone
    #[arg(long, default_value_t = 1000)]
    pub(crate) scenes: u64,
    /// Questions in one forward pass
    #[arg(long, default_value_t = 32)]
    pub(crate) batch: usize,
    /// Also write every image, question and answer to this folder, for a check elsewhere
    #[arg(long)]
    pub(crate) dump: Option<PathBuf>,
}

struct Asked {
    scene: u64,
    kind: &'static str,
    question: String,
    answer: &'static str,
}

/// Asks, prints a table on stderr and one JSON object on stdout.
pub(crate) fn evaluate(args: &EvaluateArgs) -> Result<()> {
    let processor = Processor::load(&args.model)?;
    let model = LlavaNext::load(&args.model, &LoadOptions::default())?;
    let options = GenerationOptions::greedy(32, vec![END_OF_TURN]);
    let mut dump = args
        .dump
        .as_ref()
        .map(|folder| {
            std::fs::create_dir_all(folder)?;
            File::create(folder.join("answers.jsonl")).map(BufWriter::new)
        })
        .transpose()
        .context("creating the dump folder")?;

    let mut right: BTreeMap<&'static str, (usize, usize)> = BTreeMap::new();
    for scenes in (0..args.scenes).collect::<Vec<_>>().chunks(args.batch) {
        let mut asked = Vec::new();
        for &index in scenes {
            let scene = Scene::generate(EVALUATION_SCENES, index);
            let image = scene.render();
            if let Some(folder) = &args.dump {
                image.save(folder.join(format!("{index}.png"))).context("writing an image")?;
            }
            for Question { kind, text: question, answer } in scene.questions() {
                let message = Message::image_and_text("user", &question);
                let options = ChatOptions { add_generation_prompt: true };
                let inputs = processor.prepare_chat(&[message], options, std::slice::from_ref(&image))?;
                asked.push((Asked { scene: index, kind: kind_name(kind), question, answer }, inputs));
            }
        }
        // Questions of one length share a forward pass without padding between them.
        asked.sort_by_key(|(_, inputs)| inputs.input_ids.len());
        for chunk in asked.chunks(args.batch) {
            let inputs: Vec<_> = chunk.iter().map(|(_, inputs)| inputs).collect();
            let batch = Batch::new(&inputs, 0, Device::Cpu, Kind::Float, PaddingSide::Left)?;
            let answers = model.generate(&batch, &options, &mut Hooks::new())?;
            for ((asked, _), ids) in chunk.iter().zip(answers) {
                let given = processor.tokenizer().decode(&ids, true)?;
                let entry = right.entry(asked.kind).or_default();
                entry.0 += usize::from(given.trim() == asked.answer);
                entry.1 += 1;
                if let Some(file) = &mut dump {
                    let line = json!({"scene": asked.scene, "kind": asked.kind, "question": asked.question,
                                      "expected": asked.answer, "given": given.trim()});
                    writeln!(file, "{line}").context("writing an answer")?;
                }
            }
        }
    }
    let mut report = serde_json::Map::new();
    for (kind, (right, asked)) in right {
        let share = right as f64 / asked as f64;
        eprintln!("{kind:10} {right:6} of {asked:6}  {:6.2} %", 100.0 * share);
        report.insert(kind.to_owned(), json!({"right": right, "asked": asked, "share": share}));
    }
    let mut stdout = std::io::stdout().lock();
    writeln!(stdout, "{}", json!({"scenes": args.scenes, "seed": EVALUATION_SCENES, "exact": report}))?;
    Ok(())
}

fn kind_name(kind: QuestionKind) -> &'static str {
    match kind {
        QuestionKind::Colour => "colour",
        QuestionKind::Shape => "shape",
        QuestionKind::Count => "count",
        QuestionKind::Position => "position",
    }
}
