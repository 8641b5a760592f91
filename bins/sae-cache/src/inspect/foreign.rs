//! What a cache of msae's or delphi's holds, and what is wrong with it.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;

use act_cache::foreign::ForeignCache;
use act_cache::{Finding, Severity};
use anyhow::{Context, Result};
use sae_types::HookPoint;
use serde::Serialize;

use super::judge;

#[derive(Serialize)]
struct Report {
    folder: String,
    layout: String,
    activations: u64,
    hooks: BTreeMap<HookPoint, HookReport>,
    /// Worst first.
    findings: Vec<Finding>,
}

#[derive(Serialize)]
struct HookReport {
    width: usize,
    n_splits: usize,
}

/// Prints what `dir`, which has no manifest, holds.
pub(super) fn inspect(dir: &Path, json: bool) -> Result<()> {
    let cache = ForeignCache::open(dir, None)
        .with_context(|| format!("{} is no native cache: it has no manifest.json", dir.display()))?;
    let mut findings = cache.findings();
    findings.sort_by_key(|finding| std::cmp::Reverse(finding.severity));
    let hook = |name: &HookPoint| HookReport { width: cache.width(name), n_splits: cache.n_splits(name) };
    let report = Report {
        folder: dir.display().to_string(),
        layout: cache.layout().to_string(),
        activations: cache.len(),
        hooks: cache.hooks().map(|name| (name.clone(), hook(name))).collect(),
        findings,
    };
    let mut out = std::io::BufWriter::new(stage_kit::stdout());
    if json {
        serde_json::to_writer_pretty(&mut out, &report)?;
        writeln!(out)?;
    } else {
        writeln!(out, "{:<16}{}", "cache", report.folder)?;
        writeln!(out, "{:<16}{}", "layout", report.layout)?;
        writeln!(out, "{:<16}{}", "activations", report.activations)?;
        for (name, HookReport { width, n_splits }) in &report.hooks {
            writeln!(out, "{:<16}{width} latents in {n_splits} files", name.as_str())?;
        }
        writeln!(out, "\nfindings")?;
        report.findings.iter().try_for_each(|finding| writeln!(out, "  {finding}"))?;
        if report.findings.is_empty() {
            writeln!(out, "  none")?;
        }
        writeln!(out, "\nFor its features: sae-convert cache {} NATIVE --to native", dir.display())?;
    }
    out.flush()?;
    judge(dir, report.findings.iter().filter(|finding| finding.severity == Severity::Error).count())
}
