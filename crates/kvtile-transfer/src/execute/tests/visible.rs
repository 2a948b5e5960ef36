//! Streamed bytes are visible to a thread that observes the end of the copy.

use std::sync::atomic::{AtomicU64, Ordering};

use super::{
    super::{
        nest::{LocalNest, NestKernel},
        pipeline::{CopyScratch, KernelPipeline},
    },
    manners,
};

const RUNS: usize = 16;
const RUN_BYTES: usize = 256;
const ROUNDS: u64 = 3000;

/// One thread streams the number of the round into every word and then announces the round. The
/// other reads all words as soon as it observes the announcement, and acknowledges it. A store that
/// is not yet visible at the announcement would be read as an older round.
#[test]
fn a_reader_that_learns_of_the_end_sees_every_streamed_byte() {
    for manner in manners() {
        let source = words();
        let destination = words();
        let (written, read) = (AtomicU64::new(0), AtomicU64::new(0));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let nest = LocalNest::new(&[], NestKernel::Run(RUN_BYTES)).unwrap();
                let mut scratch = CopyScratch::default();
                for round in 1..=ROUNDS {
                    while read.load(Ordering::Acquire) + 1 < round {
                        std::hint::spin_loop();
                        std::thread::yield_now();
                    }
                    source
                        .iter()
                        .for_each(|word| word.store(round, Ordering::Relaxed));
                    let mut pipeline =
                        KernelPipeline::new(&nest.kernel, manner, &mut scratch).unwrap();
                    for run in 0..RUNS {
                        let word = run * RUN_BYTES / size_of::<u64>();
                        let from = source[word].as_ptr().cast_const().cast();
                        // SAFETY: a run of each; the reader waits until the round is announced.
                        unsafe {
                            nest.copy(from, destination[word].as_ptr().cast(), &mut pipeline);
                        };
                    }
                    // SAFETY: as above.
                    unsafe { pipeline.drain() };
                    written.store(round, Ordering::Release);
                }
            });
            scope.spawn(|| {
                for round in 1..=ROUNDS {
                    while written.load(Ordering::Acquire) < round {
                        std::hint::spin_loop();
                    }
                    let old = destination.iter().find_map(|word| {
                        let found = word.load(Ordering::Relaxed);
                        (found != round).then_some(found)
                    });
                    if let Some(found) = old {
                        // Releases the writer, which would otherwise wait for this reader.
                        read.store(ROUNDS, Ordering::Release);
                        panic!("{manner:?}: {found} where {round} was announced");
                    }
                    read.store(round, Ordering::Release);
                }
            });
        });
    }
}

/// The words of all runs.
fn words() -> Vec<AtomicU64> {
    let count = RUNS * RUN_BYTES / size_of::<u64>();
    (0..count).map(|_| AtomicU64::new(0)).collect()
}
