//! What is printed and written of the features found.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::PathBuf;

use activation_view::{Edges, Grid, Page, Token, shrunk};
use anyhow::{Context, Result};
use lmm_prep::ImageSpan;
use sae_types::{Filters, HookPoint};
use serde_json::json;
use stage_kit::write_whole;

use crate::probe::{Listed, Shown};

/// The longest side of a picture that is shown.
const SIDE: u32 = 336;

#[derive(Debug, clap::Args)]
pub(crate) struct OutputArgs {
    /// Print JSON instead of a table
    #[arg(long)]
    json: bool,
    /// Paint each feature over each image into this folder, as PNG
    #[arg(long, value_name = "DIR")]
    pub(crate) overlays: Option<PathBuf>,
    /// Write the features as a filters file, {"model.layers.24": [0, 1, 2]}
    #[arg(long, value_name = "FILE")]
    filters_out: Option<PathBuf>,
    /// Write an HTML page with the prompt's tokens coloured by each feature
    #[arg(long, value_name = "FILE")]
    tokens_html: Option<PathBuf>,
}

pub(crate) fn write(
    args: &OutputArgs,
    shown: &Shown,
    found: &BTreeMap<HookPoint, Vec<Listed>>,
) -> Result<()> {
    if let Some(path) = &args.filters_out {
        let lists = found.iter().map(|(hook, listed)| {
            (hook.clone(), listed.iter().map(|listed| listed.feature).collect::<Vec<_>>())
        });
        let filters = Filters::from(lists.collect::<BTreeMap<_, _>>());
        write_whole(path, format!("{}\n", serde_json::to_string(&filters)?).as_bytes())?;
    }
    if let Some(path) = &args.tokens_html {
        write_whole(path, page(shown, found).as_bytes())?;
    }
    if let Some(folder) = &args.overlays {
        std::fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
        for (hook, listed) in found {
            for listed in listed {
                overlay(folder, shown, hook, listed)?;
            }
        }
    }
    print(args, shown, found)
}

fn peak(listed: &Listed) -> f32 {
    listed.row.iter().copied().fold(0.0, f32::max)
}

fn print(args: &OutputArgs, shown: &Shown, found: &BTreeMap<HookPoint, Vec<Listed>>) -> Result<()> {
    let mut stdout = stage_kit::stdout();
    if args.json {
        let rows = found.iter().flat_map(|(hook, listed)| {
            listed.iter().map(move |listed| {
                json!({
                    "hook": hook,
                    "rank": listed.rank,
                    "feature": listed.feature,
                    "value": listed.value,
                    "peak": peak(listed),
                    "tokens_on": listed.row.iter().filter(|&&value| value > 0.0).count(),
                    "explanation": listed.explanation,
                })
            })
        });
        writeln!(stdout, "{}", serde_json::to_string_pretty(&rows.collect::<Vec<_>>())?)?;
        return Ok(());
    }
    for (hook, listed) in found {
        writeln!(stdout, "{hook}, {} of {} tokens count", shown.counted, shown.inputs.input_ids.len())?;
        writeln!(
            stdout,
            "{:>6} {:>8} {:>10} {:>10} {:>6}  explanation",
            "rank", "feature", "value", "peak", "on"
        )?;
        for listed in listed {
            writeln!(
                stdout,
                "{:>6} {:>8} {:>10.4} {:>10.4} {:>6}  {}",
                listed.rank,
                listed.feature,
                listed.value,
                peak(listed),
                listed.row.iter().filter(|&&value| value > 0.0).count(),
                listed.explanation.as_deref().unwrap_or("-")
            )?;
        }
    }
    Ok(())
}

fn page(shown: &Shown, found: &BTreeMap<HookPoint, Vec<Listed>>) -> String {
    let images: Vec<_> = shown.inputs.layout.images.iter().map(ImageSpan::positions).collect();
    let mean = |values: &[f32]| values.iter().sum::<f32>() / values.len() as f32;
    let mut page = Page::new("Features of a prompt");
    for (hook, listed) in found {
        for listed in listed {
            let heading = format!("{hook} feature {}", listed.feature);
            let explanation =
                listed.explanation.as_ref().map_or_else(String::new, |text| format!(": {text}"));
            page.section(&heading, &format!("rank {}, {:.4}{explanation}", listed.rank, listed.value));
            page.tokens(&Token::of_prompt(&shown.texts, &listed.row, &images, mean));
        }
    }
    page.html()
}

fn overlay(folder: &std::path::Path, shown: &Shown, hook: &HookPoint, listed: &Listed) -> Result<()> {
    for (number, (span, picture)) in shown.inputs.layout.images.iter().zip(&shown.pictures).enumerate() {
        let grid = Grid::new(span.base.0, span.base.1, listed.row[span.base_positions()].to_vec());
        let name =
            format!("{}_rank{}_feature{}_image{number}.png", hook.file_stem(), listed.rank, listed.feature);
        let path = folder.join(name);
        let painted = grid.overlay(&shrunk(picture, SIDE), Edges::Bilinear);
        painted.save(&path).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}
