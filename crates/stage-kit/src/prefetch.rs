//! [`prefetch`]: the next items made ready in the background while the caller works on the last.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

/// Prepares `items` on background threads and gives the results in the order of the items.
///
/// At most `ahead` results wait beyond those the threads are working on, so memory stays bounded however slow the
/// caller is. Dropping the iterator waits until each thread is done with the item it is working on. A panic in `prepare` is passed
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
    let cores = thread::available_parallelism().map_or(1, NonZeroUsize::get);
    let workers = cores.min(ahead.get());
    let places = ahead.get() + workers;
    let (sender, receiver) = sync_channel(places);
    let (ticket_sender, tickets) = sync_channel(places);
    for _ in 0..places {
        // There is a place for each.
        let _ = ticket_sender.send(());
    }
    let source = Arc::new(Mutex::new((items.enumerate(), tickets)));
    let prepare = Arc::new(prepare);
    let workers = (0..workers)
        .map(|_| {
            let (source, prepare, sender) = (Arc::clone(&source), Arc::clone(&prepare), sender.clone());
            thread::spawn(move || work(&*source, &*prepare, &sender))
        })
        .collect();
    let ends = Some((receiver, ticket_sender));
    Prefetched { ends, waiting: BTreeMap::new(), next: 0, workers }
}

/// Prepares items, each with a ticket that comes back when its result, or its panic, is delivered.
fn work<I, T>(
    source: &Mutex<(impl Iterator<Item = (usize, I)>, Receiver<()>)>,
    prepare: &impl Fn(I) -> T,
    sender: &SyncSender<(usize, thread::Result<T>)>,
) {
    loop {
        let next = {
            let mut source = source.lock().unwrap_or_else(PoisonError::into_inner);
            // The lowest item gets the next ticket, so the one that is waited for never lacks one.
            if source.1.recv().is_err() {
                return;
            }
            source.0.next()
        };
        let Some((index, item)) = next else { return };
        // The item goes with its panic, and nothing else is shared but what `prepare` looks after itself.
        let result = catch_unwind(AssertUnwindSafe(|| prepare(item)));
        if sender.send((index, result)).is_err() {
            return;
        }
    }
}

/// Numbered results, and tickets to prepare more.
type Ends<T> = (Receiver<(usize, thread::Result<T>)>, SyncSender<()>);

/// See [`prefetch`].
#[derive(Debug)]
pub struct Prefetched<T> {
    /// Results come in, tickets go back; there until it is dropped.
    ends: Option<Ends<T>>,
    /// Results that came before their turn: no more than there are tickets.
    waiting: BTreeMap<usize, thread::Result<T>>,
    next: usize,
    workers: Vec<thread::JoinHandle<()>>,
}

impl<T> Iterator for Prefetched<T> {
    type Item = T;

    fn next(&mut self) -> Option<T> {
        loop {
            let (results, tickets) = self.ends.as_ref()?;
            if let Some(result) = self.waiting.remove(&self.next) {
                self.next += 1;
                // The workers may have ended.
                let _ = tickets.send(());
                return Some(result.unwrap_or_else(|panic| resume_unwind(panic)));
            }
            let (index, result) = results.recv().ok()?;
            self.waiting.insert(index, result);
        }
    }
}

impl<T> Drop for Prefetched<T> {
    fn drop(&mut self) {
        self.ends = None;
        for worker in self.workers.drain(..) {
            // What `prepare` panics with is passed on with the item.
            let _ = worker.join();
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
    fn a_late_item_does_not_let_the_others_run_away() {
        let started = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&started);
        let mut results = prefetch(0..1000, AHEAD, move |i| {
            counter.fetch_add(1, Ordering::SeqCst);
            if i == 0 {
                thread::sleep(Duration::from_millis(200));
            }
            i
        });
        assert_eq!(results.next(), Some(0));
        assert!(
            started.load(Ordering::SeqCst) <= 7,
            "{started:?}: three ahead, three in work, one delivered"
        );
        assert!(results.eq(1..1000));
    }

    #[test]
    #[should_panic(expected = "item 5")]
    fn a_panic_reaches_the_caller() {
        for () in prefetch(0..10, AHEAD, |i| assert!(i != 5, "item {i}")) {}
    }
}
