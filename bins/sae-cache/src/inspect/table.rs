//! The report for people: blocks of aligned columns.

use std::io::{Result, Write};

use stage_kit::format_bytes;

use super::InspectArgs;
use super::report::{CoOccurrenceReport, FeatureReport, HookReport, Quantiles, Report, SampleReport};

/// Features of a sample, and of a matrix, that a table shows; JSON has all.
const SHOWN: usize = 20;

pub(super) fn write(out: &mut impl Write, report: &Report, args: &InspectArgs) -> Result<()> {
    let dataset = &report.dataset;
    let split = dataset.split.as_ref().map(|split| format!(", split {split}")).unwrap_or_default();
    let base = match report.token_layout.base {
        Some(base) => format!("{} x {} from token {}", base.rows, base.cols, base.start),
        None => "none".to_owned(),
    };
    let counts = report.counts;
    facts(
        out,
        &[
            ("cache", report.folder.clone()),
            ("model", report.model.clone()),
            ("data set", format!("{}{split}, {} samples", dataset.name, dataset.n_samples)),
            ("fingerprint", dataset.fingerprint.clone()),
            ("samples", format!("{}, {} tokens", counts.samples, counts.tokens)),
            ("activations", format!("{}, {}", counts.activations, report.activation_dtype)),
            ("base tile", base),
            ("token ids", if report.token_ids { "kept" } else { "not kept" }.to_owned()),
        ],
    )?;
    for (name, hook) in &report.hooks {
        writeln!(out, "\n{name}")?;
        write_hook(out, hook, args)?;
    }
    writeln!(out, "\nfindings")?;
    if report.findings.is_empty() {
        let unread = if args.verify { "" } else { "; --verify reads every byte" };
        writeln!(out, "  none{unread}")?;
    }
    report.findings.iter().try_for_each(|finding| writeln!(out, "  {finding}"))
}

fn write_hook(out: &mut impl Write, hook: &HookReport, args: &InspectArgs) -> Result<()> {
    let per_activation = hook.bytes_per_activation.map(|bytes| format!(", {bytes:.2} per activation"));
    let reads = hook.reads.as_ref().map(|reads| format!(", reads {reads}")).unwrap_or_default();
    let lost = if hook.lost > 0 { format!(", {} lost", hook.lost) } else { String::new() };
    facts(
        out,
        &[
            ("  sae", format!("{}{reads}", hook.sae.path)),
            ("  latents", format!("{}, {}", hook.width, per_token(hook.k))),
            ("  tokens", format!("{}, {} of images", hook.tokens, hook.image_tokens)),
            ("  activations", hook.activations.to_string()),
            (
                "  files",
                format!(
                    "{}, {}{}",
                    hook.n_splits,
                    format_bytes(hook.bytes),
                    per_activation.unwrap_or_default()
                ),
            ),
            ("  features", format!("{} stored, {} never active{lost}", hook.stored, hook.never_active)),
        ],
    )?;
    if !hook.distribution.is_empty() {
        writeln!(out, "\n  active features")?;
        let row = |(name, q): (&&'static str, &Quantiles)| {
            let numbers = [q.min, q.p1, q.p25, q.median, q.p75, q.p99, q.max].map(number);
            [(*name).to_owned(), q.n.to_string()].into_iter().chain(numbers).collect()
        };
        let header = ["", "features", "min", "1 %", "25 %", "median", "75 %", "99 %", "max"];
        columns(out, &header, hook.distribution.iter().map(row).collect())?;
    }
    if !hook.features.is_empty() {
        write_features(out, hook, args)?;
    }
    if let Some(co_occurrence) = &hook.co_occurrence {
        write_matrix(out, co_occurrence)?;
    }
    if let Some(sample) = &hook.sample {
        write_sample(out, sample, args)?;
    }
    Ok(())
}

fn write_features(out: &mut impl Write, hook: &HookReport, args: &InspectArgs) -> Result<()> {
    let shown = hook.features.len().min(args.top.unwrap_or(if args.features.is_empty() {
        SHOWN
    } else {
        usize::MAX
    }));
    let features = &hook.features[..shown];
    if args.features.is_empty() {
        let order = if args.ascending { "lowest" } else { "highest" };
        writeln!(out, "\n  {shown} of {} features, {order} {} first", hook.n_chosen, args.sort.name())?;
    } else {
        writeln!(out, "\n  {shown} features")?;
    }
    let row = |feature: &FeatureReport| {
        let facts = &feature.statistics;
        vec![
            facts.feature.to_string(),
            facts.n_activations.to_string(),
            facts.n_samples.to_string(),
            number(facts.density),
            number(facts.mean),
            number(f64::from(facts.max)),
            facts.spread.map_or_else(dash, number),
            facts.text_ratio.map_or_else(dash, number),
        ]
    };
    let header = ["feature", "activations", "samples", "density", "mean", "max", "spread", "text_ratio"];
    columns(out, &header, features.iter().map(row).collect())?;
    for feature in features.iter().filter(|feature| !feature.samples.is_empty()) {
        writeln!(out, "\n  samples of feature {}", feature.statistics.feature)?;
        let row = |sample: &super::report::TopSample| {
            let id = sample.id.clone().unwrap_or_else(dash);
            vec![
                sample.ranked.rank.to_string(),
                sample.ranked.sample.to_string(),
                number(sample.ranked.score),
                id,
            ]
        };
        columns(out, &["rank", "sample", "score", "id"], feature.samples.iter().map(row).collect())?;
    }
    Ok(())
}

fn write_matrix(out: &mut impl Write, matrix: &CoOccurrenceReport) -> Result<()> {
    let shown = matrix.features.len().min(SHOWN);
    let rest = matrix.features.len() - shown;
    let more = if rest > 0 { format!("; {rest} more with --json") } else { String::new() };
    writeln!(out, "\n  active together on one {}; on the diagonal each alone{more}", matrix.on)?;
    let names: Vec<String> = matrix.features[..shown].iter().map(ToString::to_string).collect();
    let header: Vec<&str> = std::iter::once("feature").chain(names.iter().map(String::as_str)).collect();
    let row = |(name, counts): (&String, &Vec<u64>)| {
        std::iter::once(name.clone()).chain(counts[..shown].iter().map(ToString::to_string)).collect()
    };
    columns(out, &header, names.iter().zip(&matrix.counts).map(row).collect())
}

fn write_sample(out: &mut impl Write, sample: &SampleReport, args: &InspectArgs) -> Result<()> {
    let record = &sample.record;
    let id = record.id.as_ref().map(|id| format!(" ({id})")).unwrap_or_default();
    writeln!(
        out,
        "\n  sample {}{id}: {} tokens, {} x {} pixels",
        record.sample, record.n_tokens, record.width, record.height
    )?;
    let shown = args.top.unwrap_or(SHOWN);
    if let (Some(token), Some(active)) = (args.token, &sample.token) {
        writeln!(
            out,
            "  {} of {} features on token {token}, strongest first",
            active.len().min(shown),
            active.len()
        )?;
        let row = |(feature, value): &(sae_types::FeatureId, f32)| {
            vec![feature.to_string(), number(f64::from(*value))]
        };
        return columns(out, &["feature", "activation"], active.iter().take(shown).map(row).collect());
    }
    let features = &sample.features;
    writeln!(out, "  {} of {} features, strongest first", features.len().min(shown), features.len())?;
    let row = |feature: &super::report::SampleFeature| {
        let strongest = feature.activations.iter().find(|(_, value)| *value == feature.max);
        vec![
            feature.feature.to_string(),
            feature.activations.len().to_string(),
            number(f64::from(feature.max)),
            strongest.map_or_else(dash, |(token, _)| token.to_string()),
        ]
    };
    columns(out, &["feature", "tokens", "max", "at token"], features.iter().take(shown).map(row).collect())
}

/// How many latents are on per token; an import may not know.
fn per_token(k: usize) -> String {
    if k == 0 { "k not known".to_owned() } else { format!("k {k}") }
}

/// Names and what they are, one a line.
fn facts(out: &mut impl Write, facts: &[(&str, String)]) -> Result<()> {
    facts.iter().try_for_each(|(name, fact)| writeln!(out, "{name:<16}{fact}"))
}

/// Rows below a header, each column as wide as its widest cell, to the right.
fn columns(out: &mut impl Write, header: &[&str], rows: Vec<Vec<String>>) -> Result<()> {
    let header = header.iter().map(ToString::to_string).collect();
    let rows: Vec<Vec<String>> = std::iter::once(header).chain(rows).collect();
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..rows[0].len()).map(width).collect();
    for row in &rows {
        write!(out, " ")?;
        for (cell, width) in row.iter().zip(&widths) {
            write!(out, "  {cell:>width$}")?;
        }
        writeln!(out)?;
    }
    Ok(())
}

/// Whole numbers as they are, small ones with three digits.
fn number(value: f64) -> String {
    if value.fract() == 0.0 && value.abs() < 1e15 {
        format!("{value:.0}")
    } else if value.abs() < 0.001 {
        format!("{value:.2e}")
    } else {
        format!("{value:.4}")
    }
}

fn dash() -> String {
    "-".to_owned()
}
