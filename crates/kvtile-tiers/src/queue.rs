//! The bounded job queue of a cache or of a block store.
//!
//! Pushing never blocks: a full queue refuses the jobs, and the caller continues without the cache.

use std::{collections::VecDeque, time::Duration};

use kvtile_layout::broken;
use parking_lot::{Condvar, Mutex, MutexGuard};

/// Every eighth job is the oldest one regardless of its priority, so that stores progress under a
/// constant stream of loads.
const FAIR_TURN: u64 = 8;

/// Number of priorities.
const PRIORITIES: usize = 4;

/// The priority of a job. A worker takes the highest first; every eighth job that it takes is the one that
/// has waited longest, so that no job starves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Priority {
    /// After all others: prefetches.
    Background,
    /// The default of stores.
    Low,
    /// The default of loads.
    #[default]
    Normal,
    /// Before all others.
    Urgent,
}

struct JobQueueState<J> {
    /// The waiting jobs of each priority with their numbers, the oldest first.
    waiting: [VecDeque<(u64, J)>; PRIORITIES],
    /// Jobs that were taken and are parked outside the queue until [`JobQueue::resume`].
    parked: usize,
    number: u64,
    /// Number of jobs taken so far, plus 1.
    turns: u64,
    running: usize,
    closed: bool,
}

impl<J> JobQueueState<J> {
    fn len(&self) -> usize {
        self.waiting.iter().map(VecDeque::len).sum()
    }

    fn push(&mut self, priority: Priority, job: J) {
        self.number += 1;
        let number = self.number;
        let Some(waiting) = self.waiting.get_mut(priority as usize) else {
            broken(format_args!(
                "{priority:?} is none of {PRIORITIES} priorities"
            ))
        };
        waiting.push_back((number, job));
    }

    /// Takes the oldest job of the highest priority, or on a fair turn the oldest job of all.
    fn pop(&mut self) -> Option<J> {
        let heads = self.waiting.iter().enumerate();
        let heads = heads.filter_map(|(at, waiting)| Some((at, waiting.front()?.0)));
        let (at, _) = match self.turns % FAIR_TURN {
            0 => heads.min_by_key(|(_, number)| *number)?,
            _ => heads.max_by_key(|(at, _)| *at)?,
        };
        let (_, job) = self.waiting.get_mut(at)?.pop_front()?;
        self.turns += 1;
        self.running += 1;
        Some(job)
    }
}

/// The result of waiting for a job.
pub(crate) enum NextJob<J> {
    /// A job to run.
    Job(J),
    /// No job came within the given time.
    Idle,
    /// The queue is closed.
    Closed,
}

/// Why the queue refused jobs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum QueueRefusal {
    Full { waiting: usize },
    Closed,
}

/// A bounded queue of jobs with priorities.
pub(crate) struct JobQueue<J> {
    state: Mutex<JobQueueState<J>>,
    changed: Condvar,
    capacity: usize,
}

impl<J> JobQueue<J> {
    pub(crate) fn new(capacity: usize) -> JobQueue<J> {
        JobQueue {
            state: Mutex::new(JobQueueState {
                // The deques grow with the jobs: the capacity is a limit, not a size.
                waiting: Default::default(),
                parked: 0,
                number: 0,
                // Starts at 1, so that the first turn is not a fair one.
                turns: 1,
                running: 0,
                closed: false,
            }),
            changed: Condvar::new(),
            capacity,
        }
    }

    fn lock(&self) -> MutexGuard<'_, JobQueueState<J>> {
        self.state.lock()
    }

    /// Queues all jobs or none, without blocking.
    pub(crate) fn push(
        &self,
        priority: Priority,
        jobs: Vec<J>,
    ) -> Result<(), (QueueRefusal, Vec<J>)> {
        let mut state = self.lock();
        if state.closed {
            return Err((QueueRefusal::Closed, jobs));
        }
        let waiting = state.len() + state.parked;
        if waiting.saturating_add(jobs.len()) > self.capacity {
            return Err((QueueRefusal::Full { waiting }, jobs));
        }
        for job in jobs {
            state.push(priority, job);
        }
        drop(state);
        self.changed.notify_all();
        Ok(())
    }

    /// Marks a taken job as parked: it counts against the capacity until it is resumed.
    pub(crate) fn park(&self) {
        self.lock().parked += 1;
    }

    /// Reverts [`JobQueue::park`] for a job that was not parked after all.
    pub(crate) fn unpark(&self) {
        let mut state = self.lock();
        assert!(state.parked > 0, "a job is unparked that was not parked");
        state.parked -= 1;
    }

    /// Queues parked jobs again. Returns them if the queue is closed.
    pub(crate) fn resume(&self, jobs: Vec<(Priority, J)>) -> Vec<J> {
        let mut state = self.lock();
        assert!(
            state.parked >= jobs.len(),
            "more jobs are resumed than were parked"
        );
        state.parked -= jobs.len();
        if state.closed {
            return jobs.into_iter().map(|(_, job)| job).collect();
        }
        for (priority, job) in jobs {
            state.push(priority, job);
        }
        drop(state);
        self.changed.notify_all();
        Vec::new()
    }

    /// Takes the next job if there is one. [`JobQueue::done`] must follow.
    pub(crate) fn try_next(&self) -> Option<J> {
        let mut state = self.lock();
        state.pop()
    }

    /// Waits for the next job, at most `patience`. [`JobQueue::done`] must follow a job.
    pub(crate) fn next(&self, patience: Duration) -> NextJob<J> {
        let mut state = self.lock();
        loop {
            if let Some(job) = state.pop() {
                return NextJob::Job(job);
            }
            if state.closed {
                return NextJob::Closed;
            }
            let waited = self.changed.wait_for(&mut state, patience);
            if waited.timed_out() && state.len() == 0 && !state.closed {
                return NextJob::Idle;
            }
        }
    }

    /// Marks a taken job as ended.
    pub(crate) fn done(&self) {
        let mut state = self.lock();
        assert!(state.running > 0, "a job has ended that was not taken");
        state.running -= 1;
        drop(state);
        self.changed.notify_all();
    }

    /// Closes the queue and returns the waiting jobs.
    pub(crate) fn close(&self) -> Vec<J> {
        let mut state = self.lock();
        state.closed = true;
        let left = std::mem::take(&mut state.waiting);
        drop(state);
        self.changed.notify_all();
        left.into_iter().flatten().map(|(_, job)| job).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn take(queue: &JobQueue<u32>) -> Option<u32> {
        let job = queue.try_next()?;
        queue.done();
        Some(job)
    }

    #[test]
    fn the_higher_priority_comes_first_and_the_older_job_among_equals() {
        let queue = JobQueue::new(10);
        queue.push(Priority::Low, vec![1, 2]).unwrap();
        queue.push(Priority::Urgent, vec![3]).unwrap();
        queue.push(Priority::Normal, vec![4, 5]).unwrap();
        let order: Vec<u32> = std::iter::from_fn(|| take(&queue)).collect();
        assert_eq!(order, [3, 4, 5, 1, 2]);
    }

    #[test]
    fn the_lowest_priority_has_its_turns_however_many_others_come() {
        let queue = JobQueue::new(10);
        queue.push(Priority::Background, vec![1, 2, 3]).unwrap();
        let mut turns = Vec::new();
        for turn in 0..40 {
            queue.push(Priority::Urgent, vec![100]).unwrap();
            if take(&queue).is_some_and(|job| job < 100) {
                turns.push(turn);
                assert_eq!(take(&queue), Some(100));
            }
        }
        assert_eq!(turns.len(), 3);
        assert!(turns.iter().all(|turn| *turn < 24), "{turns:?}");
    }

    #[test]
    fn parked_jobs_keep_their_places() {
        let queue = JobQueue::new(2);
        queue.push(Priority::Low, vec![1, 2]).unwrap();
        assert_eq!(queue.try_next(), Some(1));
        queue.park();
        queue.done();
        let refused = queue.push(Priority::Low, vec![3]).unwrap_err();
        assert_eq!(refused.0, QueueRefusal::Full { waiting: 2 });
        assert!(queue.resume(vec![(Priority::Urgent, 1)]).is_empty());
        assert_eq!(take(&queue), Some(1));
        assert_eq!(queue.close(), [2]);
        queue.park();
        assert_eq!(queue.resume(vec![(Priority::Low, 4)]), [4]);
    }
}
