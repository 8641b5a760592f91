//! [`Workers`]: the threads that read and prepare requests.

use std::sync::Arc;

use tokio::sync::Semaphore;

use crate::problem::Problem;

/// Work that keeps a core busy, as much of it at once as there are cores: on threads where it harms nobody who waits.
#[derive(Clone, Debug)]
pub(crate) struct Workers(Arc<Semaphore>);

impl Workers {
    pub(crate) fn new(cores: usize) -> Self {
        Self(Arc::new(Semaphore::new(cores)))
    }

    /// Does `work` and gives `permits` back with its result. A client that leaves ends the waiting, not the work: until that
    /// is done, what it takes of the server stays taken.
    ///
    /// # Errors
    /// Those of the work, and 500 if it panics.
    pub(crate) async fn run<T, P>(
        &self,
        permits: P,
        work: impl FnOnce() -> Result<T, Problem> + Send + 'static,
    ) -> Result<(T, P), Problem>
    where
        T: Send + 'static,
        P: Send + 'static,
    {
        let core = self.0.clone().acquire_owned().await;
        let core = core.map_err(|_| Problem::own("the server has lost count of its cores"))?;
        let work = move || {
            let _core = core;
            Ok((work()?, permits))
        };
        let panicked = |_| Err(Problem::own("the request could not be prepared; the server's log says why"));
        tokio::task::spawn_blocking(work).await.unwrap_or_else(panicked)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use tokio::runtime::Builder;

    use super::*;

    #[test]
    fn who_hangs_up_gives_nothing_back_before_the_work_is_done() {
        let runtime = Builder::new_multi_thread().worker_threads(1).build().unwrap();
        runtime.block_on(async {
            let (workers, backlog) = (Workers::new(1), Arc::new(Semaphore::new(1)));
            let (began, has_begun) = mpsc::channel();
            let (go_on, waits) = mpsc::channel::<()>();
            let permit = backlog.clone().acquire_owned().await.unwrap();
            let own = workers.clone();
            let client = tokio::spawn(async move {
                let work = move || {
                    began.send(()).unwrap();
                    // Until the test has looked.
                    let _ = waits.recv();
                    Ok(())
                };
                own.run(permit, work).await.map(|_| ())
            });
            tokio::task::spawn_blocking(move || has_begun.recv().unwrap()).await.unwrap();
            client.abort();
            assert!(client.await.unwrap_err().is_cancelled());
            assert_eq!((backlog.available_permits(), workers.0.available_permits()), (0, 0));
            drop(go_on);
            // Nobody is there to take the result, and the permit comes back all the same.
            let _permit = backlog.acquire().await.unwrap();
            assert_eq!(workers.run((), || Ok(7)).await.unwrap().0, 7);
        });
    }

    #[test]
    fn a_panic_is_the_answer_of_its_own_request() {
        let runtime = Builder::new_multi_thread().worker_threads(1).build().unwrap();
        let workers = Workers::new(1);
        let problem = runtime.block_on(workers.run((), || -> Result<(), _> { panic!("on purpose") }));
        assert!(problem.unwrap_err().message.contains("could not be prepared"));
        assert!(runtime.block_on(workers.run((), || Ok(()))).is_ok());
    }
}
