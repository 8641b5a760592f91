//! How many masked sets a model explains exactly.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::PathBuf;

use anyhow::Result;
use lmm_hooks::{Batch, GenerationOptions, Hooks, LlavaNext, LoadOptions, PaddingSide};
use lmm_prep::{ChatOptions, Content, Message, Part, Processor};
use rayon::prelude::*;
use serde_json::json;
use tch::{Device, Kind};

use crate::evaluate::END_OF_TURN;
use crate::lit::{LitPicture, LitSet, REQUEST};

/// Data-set seed of the evaluation sets: never trained on.
const EVALUATION_SETS: u64 = 2_001;

/// What can be chosen on the command line.
#[derive(clap::Args, Debug)]
pub(crate) struct EvaluateExplainerArgs {
    /// Model folder
    #[arg(default_value = "assets/shapes-lmm-l")]
    pub(crate) model: PathBuf,
    /// Unseen sets to ask about
    #[arg(long, default_value_t = 1000)]
    pub(crate) sets: u64,
    /// Pictures in a set
    #[arg(long, default_value_t = 5)]
    pub(crate) pictures: usize,
    /// Sets in one forward pass
    #[arg(long, default_value_t = 8)]
    pub(crate) batch: usize,
    /// Print every wrong answer
    #[arg(long)]
    pub(crate) wrong: bool,
}

/// Asks, prints a table on stderr and one JSON object on stdout.
pub(crate) fn evaluate(args: &EvaluateExplainerArgs) -> Result<()> {
    let processor = Processor::load(&args.model)?;
    let model = LlavaNext::load(&args.model, &LoadOptions::default())?;
    let options = GenerationOptions::greedy(32, vec![END_OF_TURN]);
    let mut parts = vec![Part::Image; args.pictures];
    parts.push(Part::Text { text: REQUEST.to_owned() });
    let message = Message { role: "user".to_owned(), content: Content::Parts(parts) };

    let mut exact: BTreeMap<&'static str, (usize, usize)> = BTreeMap::new();
    for indices in (0..args.sets).collect::<Vec<_>>().chunks(args.batch) {
        let asked = indices
            .par_iter()
            .map(|&index| {
                let set = LitSet::generate(EVALUATION_SETS, index, args.pictures);
                let images: Vec<_> = set.pictures.iter().map(LitPicture::render).collect();
                let options = ChatOptions { add_generation_prompt: true };
                Ok((set, processor.prepare_chat(std::slice::from_ref(&message), options, &images)?))
            })
            .collect::<Result<Vec<_>>>()?;
        let inputs: Vec<_> = asked.iter().map(|(_, inputs)| inputs).collect();
        let batch = Batch::new(&inputs, 0, Device::Cpu, Kind::Float, PaddingSide::Left)?;
        let answers = model.generate(&batch, &options, &mut Hooks::new())?;
        for ((set, _), ids) in asked.iter().zip(answers) {
            let given = processor.tokenizer().decode(&ids, true)?;
            let shared = set.all();
            let right = given.trim() == shared.answer();
            if args.wrong && !right {
                eprintln!("{:50} for {}", given.trim(), shared.answer());
            }
            for kind in [shared.kind(), "all"] {
                let entry = exact.entry(kind).or_default();
                entry.0 += usize::from(right);
                entry.1 += 1;
            }
        }
    }
    let mut report = serde_json::Map::new();
    for (kind, (right, asked)) in exact {
        let share = right as f64 / asked as f64;
        eprintln!("{kind:14} {right:6} of {asked:6}  {:6.2} %", 100.0 * share);
        report.insert(kind.to_owned(), json!({"right": right, "asked": asked, "share": share}));
    }
    let mut stdout = std::io::stdout().lock();
    let report =
        json!({"sets": args.sets, "pictures": args.pictures, "seed": EVALUATION_SETS, "exact": report});
    writeln!(stdout, "{report}")?;
    Ok(())
}
