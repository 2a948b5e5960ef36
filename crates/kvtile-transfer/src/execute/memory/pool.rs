//! The thread pool for the copies of one manager.

use std::sync::OnceLock;

use rayon::{ThreadPool, ThreadPoolBuilder};

/// Minimum bytes per thread: a smaller copy ends before another thread wakes up.
const BYTES_PER_THREAD: u64 = 2 << 20;

/// Approximate number of chunks per thread of a copy.
const CHUNKS_PER_THREAD: u64 = 16;

/// Upper limit of the default number of threads: fewer threads than a large machine has saturate
/// its memory bandwidth.
const THREADS_MAX: usize = 8;

/// How threads share a copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) struct CopyShare {
    /// Number of threads, including the caller's.
    pub(super) threads: usize,
    /// Bytes of a chunk: enough to amortise its overhead, and few enough that all threads end at
    /// about the same time.
    pub(super) chunk_bytes: u64,
}

/// A few threads beside the caller's. They start with the first large copy, and sleep between
/// copies.
#[derive(Debug)]
pub(crate) struct CopyPool {
    threads: usize,
    bytes_per_thread: u64,
    helpers: OnceLock<Option<ThreadPool>>,
}

impl CopyPool {
    /// A pool of `threads` threads, including the caller's; at least one.
    pub(crate) fn new(threads: usize) -> CopyPool {
        CopyPool {
            threads: threads.max(1),
            bytes_per_thread: BYTES_PER_THREAD,
            helpers: OnceLock::new(),
        }
    }

    /// As [`CopyPool::new`], but without a minimum size per thread.
    #[cfg(test)]
    pub(in super::super) fn eager(threads: usize) -> CopyPool {
        CopyPool {
            bytes_per_thread: 1,
            ..CopyPool::new(threads)
        }
    }

    /// Half of the processors that this process may use; the engine needs the others.
    pub(crate) fn usual_threads() -> usize {
        let processors = std::thread::available_parallelism();
        let half = processors.map_or(1, |count| count.get() / 2);
        half.clamp(1, THREADS_MAX)
    }

    /// How threads share a copy of `bytes`; `None` for a copy on one thread.
    pub(in super::super) fn share(&self, bytes: u64) -> Option<CopyShare> {
        let worth = usize::try_from(bytes / self.bytes_per_thread).unwrap_or(usize::MAX);
        let threads = self.threads.min(worth);
        let chunks = (threads as u64).saturating_mul(CHUNKS_PER_THREAD).max(1);
        (threads > 1).then_some(CopyShare {
            threads,
            chunk_bytes: (bytes / chunks).max(self.bytes_per_thread / 4),
        })
    }

    /// Runs `work` concurrently on `threads` threads, including the caller's, and returns when all
    /// have ended. If threads cannot be started, fewer take part.
    pub(super) fn run(&self, threads: usize, work: &(dyn Fn() + Sync)) {
        let helpers = match threads {
            0 | 1 => None,
            _ => self.helpers().as_ref(),
        };
        let Some(helpers) = helpers else {
            return work();
        };
        helpers.in_place_scope(|scope| {
            for _ in 1..threads {
                scope.spawn(|_| work());
            }
            work();
        });
    }

    fn helpers(&self) -> &Option<ThreadPool> {
        self.helpers.get_or_init(|| {
            let builder = ThreadPoolBuilder::new()
                .num_threads(self.threads.saturating_sub(1).max(1))
                .thread_name(|index| format!("kvtile-copy-{index}"));
            builder.build().ok()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[test]
    fn small_copies_stay_on_one_thread_and_large_ones_keep_the_budget() {
        let pool = CopyPool::new(3);
        let threads = |bytes| pool.share(bytes).map_or(1, |share| share.threads);
        assert_eq!(threads(0), 1);
        assert_eq!(threads(BYTES_PER_THREAD), 1);
        assert_eq!(threads(2 * BYTES_PER_THREAD), 2);
        assert_eq!(threads(u64::MAX), 3);
        assert_eq!(CopyPool::new(0).share(u64::MAX), None);
        assert!(CopyPool::usual_threads() >= 1);
    }

    #[test]
    fn every_thread_runs_the_work_once_and_the_caller_is_one_of_them() {
        for threads in [1, 2, 4] {
            let pool = CopyPool::new(threads);
            let (runs, here) = (AtomicUsize::new(0), std::thread::current().id());
            let mine = AtomicUsize::new(0);
            pool.run(threads, &|| {
                runs.fetch_add(1, Ordering::Relaxed);
                let is_mine = std::thread::current().id() == here;
                mine.fetch_add(usize::from(is_mine), Ordering::Relaxed);
            });
            assert_eq!(runs.into_inner(), threads);
            assert_eq!(mine.into_inner(), 1);
        }
    }

    #[test]
    fn a_panic_of_a_helper_reaches_the_caller() {
        let pool = CopyPool::new(2);
        let here = std::thread::current().id();
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            pool.run(2, &|| {
                assert_eq!(std::thread::current().id(), here, "not here");
            });
        }));
        assert!(outcome.is_err());
        pool.run(2, &|| ());
    }
}
