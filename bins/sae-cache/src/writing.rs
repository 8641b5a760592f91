//! [`Writing`]: codes are sorted and written in a thread of their own, so that the model does not wait for the disk.

use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use act_cache::{PartWriter, SampleCodes, SampleRecord};
use anyhow::{Context, Result};
use mm_data::BadRecord;
use sae_types::{HookPoint, SampleId, SparseCodes};
use serde::{Deserialize, Serialize};

/// How many encoded batches wait for the disk.
const BATCHES_WAITING: usize = 2;

/// A sample as it is written, its codes apart.
#[derive(Debug)]
pub(crate) struct EncodedSample {
    pub(crate) record: SampleRecord,
    /// The positions that were encoded.
    pub(crate) positions: Vec<u32>,
    pub(crate) token_ids: Option<Vec<u32>>,
}

/// A batch on its way from the model to the disk.
#[derive(Debug)]
pub(crate) struct EncodedBatch {
    pub(crate) samples: Vec<EncodedSample>,
    /// Per hook point the codes of all samples' positions, one sample after the other.
    pub(crate) codes: Vec<(HookPoint, SparseCodes)>,
    /// The records of the batch that were left out.
    pub(crate) left_out: Vec<BadRecord>,
    /// The sample after the batch.
    pub(crate) next: SampleId,
}

/// What a checkpoint says beside the codes.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Note {
    /// The records that were left out since the checkpoint before.
    pub(crate) left_out: Vec<BadRecord>,
}

/// How a part ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// For now: a checkpoint.
    Stopped,
    /// For good.
    Complete,
}

#[derive(Debug)]
enum Message {
    Batch(Box<EncodedBatch>),
    End(End),
}

/// The thread that writes a part.
#[derive(Debug)]
pub(crate) struct Writing {
    sender: SyncSender<Message>,
    thread: JoinHandle<(Option<SampleId>, Result<()>)>,
}

/// The thread has ended, with an error that [`Writing::end`] gives.
#[derive(Debug, thiserror::Error)]
#[error("the cache can no longer be written")]
pub(crate) struct Ended;

impl Writing {
    /// Starts the thread. `start` is the first sample that will come, `every` the time between two checkpoints.
    pub(crate) fn start(part: PartWriter, start: SampleId, every: Duration) -> Self {
        let (sender, receiver) = sync_channel(BATCHES_WAITING);
        let thread = thread::spawn(move || {
            let mut saved = part.next();
            let written = write(part, &receiver, start, every, &mut saved);
            (saved, written)
        });
        Self { sender, thread }
    }

    /// Hands a batch over, waiting while too many are on their way.
    ///
    /// # Errors
    /// When the thread has ended.
    pub(crate) fn push(&self, batch: EncodedBatch) -> Result<(), Ended> {
        self.sender.send(Message::Batch(Box::new(batch))).map_err(|_| Ended)
    }

    /// Waits until everything is written, and with an `end` is on disk. Gives where a resumed run would go on, if anything is
    /// saved, and the thread's error.
    pub(crate) fn end(self, end: Option<End>) -> (Option<SampleId>, Result<()>) {
        let Self { sender, thread } = self;
        if let Some(end) = end {
            // It fails when the thread has ended, and then the thread says why.
            let _ = sender.send(Message::End(end));
        }
        drop(sender);
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}

fn write(
    mut part: PartWriter,
    messages: &Receiver<Message>,
    mut next: SampleId,
    every: Duration,
    saved: &mut Option<SampleId>,
) -> Result<()> {
    let mut note = Note::default();
    let mut last = Instant::now();
    for message in messages {
        let batch = match message {
            Message::Batch(batch) => batch,
            Message::End(end) => {
                let note = serde_json::to_value(&note)?;
                match end {
                    End::Stopped => part.checkpoint(next, &note)?,
                    End::Complete => part.finish(next, &note)?,
                }
                *saved = Some(next);
                return Ok(());
            }
        };
        next = batch.next;
        push(&mut part, &batch)?;
        note.left_out.extend(batch.left_out);
        let value = serde_json::to_value(&note)?;
        let done = if last.elapsed() >= every {
            part.checkpoint(next, &value).map(|()| true)
        } else {
            part.advance(next, &value)
        };
        if done? {
            (note, last, *saved) = (Note::default(), Instant::now(), Some(next));
        }
    }
    Ok(())
}

fn push(part: &mut PartWriter, batch: &EncodedBatch) -> Result<()> {
    let mut first = 0;
    for EncodedSample { record, positions, token_ids } in &batch.samples {
        let rows = first..first + positions.len();
        first = rows.end;
        let codes: Vec<(&HookPoint, SparseCodes)> =
            batch.codes.iter().map(|(hook, codes)| (hook, codes.slice(rows.clone()))).collect();
        let codes: Vec<SampleCodes<'_>> =
            codes.iter().map(|(hook, codes)| SampleCodes { hook, tokens: positions, codes }).collect();
        part.push(record, token_ids.as_deref(), &codes)
            .with_context(|| format!("cannot store sample {}", record.sample))?;
    }
    Ok(())
}
