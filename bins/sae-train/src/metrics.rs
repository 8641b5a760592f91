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

/// What one call of a trainer did, as processes tell it to the one that writes it down: bit by bit, NaN for what there is not.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Step([f64; 12]);

impl From<&StepReport> for Step {
    fn from(report: &StepReport) -> Self {
        let or_nan = |value: Option<f64>| value.unwrap_or(f64::NAN);
        Self([
            report.optimizer_steps as f64,
            report.tokens as f64,
            report.loss,
            report.fvu,
            or_nan(report.multi_topk_fvu),
            or_nan(report.matryoshka_fvu),
            or_nan(report.auxk),
            report.l0,
            or_nan(report.threshold),
            report.dead_share,
            report.lr,
            or_nan(report.grad_norm),
        ])
    }
}

impl Step {
    /// Bytes of one step.
    const BYTES: usize = 12 * 8;

    pub(crate) fn to_bytes(self) -> Vec<u8> {
        self.0.iter().flat_map(|number| number.to_le_bytes()).collect()
    }

    /// The step that [`Step::to_bytes`] made of `bytes`; none of other lengths.
    pub(crate) fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let mut step = [0.0; 12];
        for (number, bytes) in step.iter_mut().zip(bytes.as_chunks().0) {
            *number = f64::from_le_bytes(*bytes);
        }
        (bytes.len() == Self::BYTES).then_some(Self(step))
    }

    pub(crate) fn optimizer_steps(self) -> u64 {
        self.0[0] as u64
    }

    pub(crate) fn tokens(self) -> u64 {
        self.0[1] as u64
    }

    /// FVU, L0 and the share of dead latents, for a reader.
    pub(crate) fn words(self) -> String {
        let [.., fvu, _, _, _, l0, _, dead, _, _] = self.0;
        format!("fvu {fvu:.4} l0 {l0:.1} dead {:.1} %", 100.0 * dead)
    }
}

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
    pub(crate) fn step(&mut self, name: &str, step: Step) -> Result<()> {
        let [_, _, loss, fvu, multi_topk_fvu, matryoshka_fvu, auxk, l0, threshold, dead_share, lr, grad_norm] =
            step.0;
        let optional = |value: f64| (!value.is_nan()).then_some(value);
        self.line(&json!({
            "name": name, "optimizer_steps": step.optimizer_steps(), "tokens": step.tokens(), "loss": loss,
            "fvu": fvu, "multi_topk_fvu": optional(multi_topk_fvu), "matryoshka_fvu": optional(matryoshka_fvu),
            "auxk": optional(auxk), "l0": l0, "threshold": optional(threshold), "dead_share": dead_share,
            "lr": lr, "grad_norm": optional(grad_norm),
        }))?;
        if grad_norm.is_nan() {
            return Ok(());
        }
        let scalars = [
            ("loss", loss),
            ("fvu", fvu),
            ("l0", l0),
            ("dead_share", dead_share),
            ("lr", lr),
            ("grad_norm", grad_norm),
            ("multi_topk_fvu", multi_topk_fvu),
            ("matryoshka_fvu", matryoshka_fvu),
            ("auxk", auxk),
            ("threshold", threshold),
        ];
        for (tag, value) in scalars.into_iter().filter(|(_, value)| !value.is_nan()) {
            self.events.scalar(&format!("{name}/{tag}"), step.optimizer_steps(), value as f32)?;
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
