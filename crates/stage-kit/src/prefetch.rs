//! [`prefetch`]: the next items made ready in the background while the caller works on the last.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

/// Prepares `items` on background threads and gives the results in the order of the items.
///
/// At most `ahead` results wait beyond those the threads are working on, so memory stays bounded however slow the
/// caller is. Dropping the iterator ends the threads after the item each is working on. A panic in `prepare` is passed
/// on to the caller.
pub fn prefetch<I, T>(
    items: impl Iterator<Item = I> + Send + 'static,
    ahead: NonZeroUsize,
    prepare: impl Fn(I) -> T + Send + Sync + 'static,
) -> Prefetched<T>
where
    I: Send + 'static,
    T: Send + 'static,
{
    let (sender, receiver) = sync_channel(ahead.get());
    let items = Arc::new(Mutex::new(items.enumerate()));
    let prepare = Arc::new(prepare);
    let cores = thread::available_parallelism().map_or(1, NonZeroUsize::get);
    let workers = (0..cores.min(ahead.get()))
        .map(|_| {
            let (items, prepare, sender) = (Arc::clone(&items), Arc::clone(&prepare), sender.clone());
            thread::spawn(move || work(&*items, &*prepare, &sender))
        })
        .collect();
    Prefetched { receiver, waiting: BTreeMap::new(), next: 0, workers }
}

fn work<I, T>(
    items: &Mutex<impl Iterator<Item = (usize, I)>>,
    prepare: &impl Fn(I) -> T,
    sender: &SyncSender<(usize, T)>,
) {
    loop {
        let next = items.lock().unwrap_or_else(PoisonError::into_inner).next();
        let Some((index, item)) = next else { return };
        if sender.send((index, prepare(item))).is_err() {
            return;
        }
    }
}

/// See [`prefetch`].
#[derive(Debug)]
pub struct Prefetched<T> {
    receiver: Receiver<(usize, T)>,
    /// Results that came before their turn: no more than there are threads and places in the channel.
    waiting: BTreeMap<usize, T>,
    next: usize,
    workers: Vec<thread::JoinHandle<()>>,
}

impl<T> Iterator for Prefetched<T> {
    type Item = T;

    fn next(&mut self) -> Option<T> {
        loop {
            if let Some(item) = self.waiting.remove(&self.next) {
                self.next += 1;
                return Some(item);
            }
            let Ok((index, item)) = self.receiver.recv() else {
                for worker in self.workers.drain(..) {
                    if let Err(panic) = worker.join() {
                        std::panic::resume_unwind(panic);
                    }
                }
                return None;
            };
            self.waiting.insert(index, item);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    use super::*;

    const AHEAD: NonZeroUsize = NonZeroUsize::new(3).unwrap();

    #[test]
    fn results_come_in_order_whatever_each_takes() {
        let results: Vec<u64> = prefetch(0..50u64, AHEAD, |i| {
            thread::sleep(Duration::from_micros((i * 7919) % 900));
            i * i
        })
        .collect();
        assert_eq!(results, (0..50).map(|i| i * i).collect::<Vec<_>>());
    }

    #[test]
    fn stays_at_most_the_agreed_number_ahead() {
        let started = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&started);
        let mut results = prefetch(0..1000, AHEAD, move |i| {
            counter.fetch_add(1, Ordering::SeqCst);
            i
        });
        assert_eq!(results.next(), Some(0));
        thread::sleep(Duration::from_millis(50));
        // Three in the channel, one in the hands of each of at most three threads, one delivered; the reordering
        // buffer may have taken as many again.
        assert!(started.load(Ordering::SeqCst) <= 12);
    }

    #[test]
    #[should_panic(expected = "item 5")]
    fn a_panic_reaches_the_caller() {
        for () in prefetch(0..10, AHEAD, |i| assert!(i != 5, "item {i}")) {}
    }
}
