//! What a run writes down of itself while it goes: metrics.jsonl, TensorBoard events, a few words beside the progress bar.

use std::fs::{File, OpenOptions};
use std::io::{BufWriter, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result};
use sae_trainer::StepReport;
use serde_json::{Value, json};
use stage_kit::EventWriter;

pub(crate) const METRICS: &str = "metrics.jsonl";
pub(crate) const TENSORBOARD: &str = "tensorboard";

/// Writers of one run's metrics.
#[derive(Debug)]
pub(crate) struct Metrics {
    path: PathBuf,
    lines: BufWriter<File>,
    bytes: u64,
    events: EventWriter,
    /// When tokens were last counted, and how many there were.
    clock: (Instant, u64),
}

impl Metrics {
    /// Goes on after the first `bytes` of the folder's metrics.jsonl; what stands behind them is of steps that will be taken
    /// again. `step` is the last step known, `tokens` how many were seen by then.
    pub(crate) fn open(folder: &Path, bytes: u64, step: u64, tokens: u64) -> Result<Self> {
        let path = folder.join(METRICS);
        let context = || format!("cannot write {}", path.display());
        let mut file =
            OpenOptions::new().write(true).create(true).truncate(false).open(&path).with_context(context)?;
        file.set_len(bytes).with_context(context)?;
        file.seek(SeekFrom::Start(bytes)).with_context(context)?;
        let events = folder.join(TENSORBOARD);
        let events =
            if step > 0 { EventWriter::resume(&events, step)? } else { EventWriter::create(&events)? };
        Ok(Self { path, lines: BufWriter::new(file), bytes, events, clock: (Instant::now(), tokens) })
    }

    fn line(&mut self, line: &Value) -> Result<()> {
        let mut text = line.to_string();
        text.push('\n');
        self.bytes += text.len() as u64;
        self.lines.write_all(text.as_bytes()).with_context(|| format!("cannot write {}", self.path.display()))
    }

    /// One call of a trainer.
    pub(crate) fn step(&mut self, name: &str, report: &StepReport) -> Result<()> {
        self.line(&json!({
            "name": name, "optimizer_steps": report.optimizer_steps, "tokens": report.tokens, "loss": report.loss,
            "fvu": report.fvu, "multi_topk_fvu": report.multi_topk_fvu, "matryoshka_fvu": report.matryoshka_fvu,
            "auxk": report.auxk, "l0": report.l0, "threshold": report.threshold, "dead_share": report.dead_share,
            "lr": report.lr, "grad_norm": report.grad_norm,
        }))?;
        let Some(grad_norm) = report.grad_norm else { return Ok(()) };
        let optional = [
            ("multi_topk_fvu", report.multi_topk_fvu),
            ("matryoshka_fvu", report.matryoshka_fvu),
            ("auxk", report.auxk),
            ("threshold", report.threshold),
        ];
        let scalars = [
            ("loss", report.loss),
            ("fvu", report.fvu),
            ("l0", report.l0),
            ("dead_share", report.dead_share),
            ("lr", report.lr),
            ("grad_norm", grad_norm),
        ];
        let present = optional.into_iter().filter_map(|(tag, value)| Some((tag, value?)));
        for (tag, value) in scalars.into_iter().chain(present) {
            self.events.scalar(&format!("{name}/{tag}"), report.optimizer_steps, value as f32)?;
        }
        Ok(())
    }

    /// Tokens per second since the last call, up to `tokens` in all; for TensorBoard alone, because it differs from run to run.
    pub(crate) fn speed(&mut self, step: u64, tokens: u64) -> Result<f64> {
        let (since, before) = std::mem::replace(&mut self.clock, (Instant::now(), tokens));
        let per_second = tokens.saturating_sub(before) as f64 / since.elapsed().as_secs_f64().max(1e-9);
        self.events.scalar("tokens_per_second", step, per_second as f32)?;
        Ok(per_second)
    }

    /// An evaluation on held-out samples.
    pub(crate) fn evaluation(&mut self, name: &str, step: u64, evaluation: &Value) -> Result<()> {
        self.line(&json!({"name": name, "optimizer_steps": step, "held_out": evaluation}))?;
        for (tag, value) in evaluation.as_object().into_iter().flatten() {
            if let Some(value) = value.as_f64() {
                self.events.scalar(&format!("{name}/held_out/{tag}"), step, value as f32)?;
            }
        }
        Ok(())
    }

    /// Brings everything to the disk and says how long metrics.jsonl is.
    pub(crate) fn flush(&mut self) -> Result<u64> {
        self.events.flush()?;
        self.lines.flush().with_context(|| format!("cannot write {}", self.path.display()))?;
        Ok(self.bytes)
    }
}
