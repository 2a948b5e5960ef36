//! The queue over an io_uring.
//!
//! The ring uses neither `SINGLE_ISSUER` nor `DEFER_TASKRUN`: it moves between threads with its
//! staging memory, and operations in flight complete even if the kernel refuses further system
//! calls on the ring. So waiting for them always ends. It uses no submission thread either, which
//! would take a core from the engine.

use std::{collections::VecDeque, io, time::Duration};

use io_uring::{IoUring, Probe, cqueue, opcode, squeue, types::Fd};
use rustix::io::Errno;

use super::{
    CAPACITY, FileCompletion, FileOperation, IoDirection, MemorySpan, OperationMemory, SPANS_MAX,
};

/// Maximum bytes of a read or write that the kernel accepts.
const OPERATION_BYTES_MAX: u32 = 1 << 30;

/// Polling interval for a ring that cannot be waited on.
const PAUSE: Duration = Duration::from_micros(100);

/// The token of the probe.
const TRIAL: u64 = u64::MAX;

pub(super) struct UringQueue {
    ring: IoUring,
    /// Tokens of operations that the kernel has not accepted yet, in order.
    waiting: VecDeque<u64>,
    /// Number of operations that the kernel has accepted and whose completion was not taken.
    taken: usize,
    /// The error with which the kernel refused a call; the ring is never entered again.
    refusal: Option<Errno>,
}

impl UringQueue {
    /// Sets up a ring and probes it.
    pub(super) fn new() -> Result<UringQueue, Errno> {
        let entries = u32::try_from(CAPACITY).map_err(|_| Errno::INVAL)?;
        let mut builder = IoUring::builder();
        builder.dontfork();
        // Completions need no interrupt of this thread, because it polls for them. Kernels before
        // 5.19 do not know the flag.
        let ring = builder
            .clone()
            .setup_coop_taskrun()
            .build(entries)
            .or_else(|_| builder.build(entries))
            .map_err(|error| errno_of(&error))?;
        let mut queue = UringQueue {
            ring,
            waiting: VecDeque::with_capacity(CAPACITY),
            taken: 0,
            refusal: None,
        };
        queue.probe()?;
        Ok(queue)
    }

    /// Checks that the kernel supports the operations and accepts `io_uring_enter`: a sandbox can
    /// allow one system call and forbid the other.
    fn probe(&mut self) -> Result<(), Errno> {
        let mut probe = Probe::new();
        let asked = self.ring.submitter().register_probe(&mut probe);
        asked.map_err(|error| errno_of(&error))?;
        let codes = [
            opcode::Read::CODE,
            opcode::Write::CODE,
            opcode::Readv::CODE,
            opcode::Writev::CODE,
        ];
        if !codes.iter().all(|code| probe.is_supported(*code)) {
            return Err(Errno::NOSYS);
        }
        let entry = opcode::Nop::new().build().user_data(TRIAL);
        let mut queue = self.ring.submission();
        // SAFETY: a no-op uses no memory, so nothing has to stay alive.
        let pushed = unsafe { queue.push(&entry) };
        pushed.map_err(|_| Errno::NOSPC)?;
        drop(queue);
        self.waiting.push_back(TRIAL);
        match self.next() {
            Some(FileCompletion { result, .. }) => result.map(|_| ()),
            None => Err(Errno::IO),
        }
    }

    pub(super) fn in_flight(&self) -> usize {
        self.waiting.len() + self.taken
    }

    pub(super) fn is_sound(&self) -> bool {
        self.refusal.is_none()
    }

    /// # Safety
    /// As for [`super::FileQueue::submit`].
    pub(super) unsafe fn submit(&mut self, operation: FileOperation) {
        let entry = entry(&operation).user_data(operation.token);
        self.waiting.push_back(operation.token);
        // SAFETY: the caller keeps descriptor and bytes until the completion was taken or the queue
        // drained or dropped; draining and dropping take every completion.
        let pushed = unsafe { self.ring.submission().push(&entry) };
        if pushed.is_err() {
            // The ring is full. The operation fails as if the kernel had refused it.
            self.refusal = Some(Errno::NOSPC);
        }
    }

    /// Submits the waiting operations to the kernel.
    pub(super) fn flush(&mut self) {
        if !self.waiting.is_empty() {
            // A later wait submits what the kernel cannot accept now.
            let _ = self.enter(0);
        }
    }

    /// Submits the queued operations and waits for that many completions. Returns whether the call
    /// succeeded.
    fn enter(&mut self, want: usize) -> bool {
        if self.refusal.is_some() {
            return false;
        }
        match self.ring.submitter().submit_and_wait(want) {
            Ok(taken) => {
                let taken = taken.min(self.waiting.len());
                self.waiting.drain(..taken);
                self.taken += taken;
                true
            }
            Err(error) => match errno_of(&error) {
                Errno::INTR => true,
                // The kernel temporarily lacks memory for a request.
                Errno::AGAIN | Errno::BUSY | Errno::NOMEM => false,
                errno => {
                    self.refusal = Some(errno);
                    false
                }
            },
        }
    }

    /// Takes a completion without waiting.
    pub(super) fn ready(&mut self) -> Option<FileCompletion> {
        let completed = self.ring.completion().next()?;
        self.taken = self.taken.saturating_sub(1);
        Some(completion(&completed))
    }

    /// Waits for any completion; `None` if nothing is in flight.
    pub(super) fn next(&mut self) -> Option<FileCompletion> {
        loop {
            if let Some(completion) = self.ready() {
                return Some(completion);
            }
            if self.in_flight() == 0 {
                return None;
            }
            if let Some(errno) = self.refusal
                && self.taken == 0
            {
                // The kernel has not accepted these operations, and never will.
                let token = self.waiting.pop_front()?;
                let result = Err(errno);
                return Some(FileCompletion { token, result });
            }
            if !self.enter(1) {
                // Operations in flight still complete; polling the ring needs no system call.
                std::thread::sleep(PAUSE);
            }
        }
    }
}

impl Drop for UringQueue {
    fn drop(&mut self) {
        // Closing a ring does not wait for operations in flight.
        while self.next().is_some() {}
    }
}

/// The submission entry of an operation, without its token.
fn entry(operation: &FileOperation) -> squeue::Entry {
    let (fd, offset) = (Fd(operation.fd), operation.offset);
    match (operation.direction, operation.memory) {
        (IoDirection::Read, OperationMemory::One(MemorySpan { address, bytes })) => {
            opcode::Read::new(fd, address, length(bytes))
                .offset(offset)
                .build()
        }
        (IoDirection::Write, OperationMemory::One(MemorySpan { address, bytes })) => {
            opcode::Write::new(fd, address, length(bytes))
                .offset(offset)
                .build()
        }
        (IoDirection::Read, OperationMemory::Many { first, count }) => {
            opcode::Readv::new(fd, first.cast(), vectors(count))
                .offset(offset)
                .build()
        }
        (IoDirection::Write, OperationMemory::Many { first, count }) => {
            opcode::Writev::new(fd, first.cast(), vectors(count))
                .offset(offset)
                .build()
        }
    }
}

/// Bytes of one operation, limited to what the kernel accepts.
fn length(bytes: usize) -> u32 {
    let bytes = u32::try_from(bytes);
    bytes.map_or(OPERATION_BYTES_MAX, |bytes| bytes.min(OPERATION_BYTES_MAX))
}

/// Spans of one operation, limited to what the kernel accepts. The operation ends short if the
/// limit applies.
fn vectors(count: usize) -> u32 {
    u32::try_from(count.min(SPANS_MAX)).unwrap_or(0)
}

fn completion(entry: &cqueue::Entry) -> FileCompletion {
    let result = entry.result();
    FileCompletion {
        token: entry.user_data(),
        result: usize::try_from(result)
            .map_err(|_| Errno::from_raw_os_error(result.wrapping_neg())),
    }
}

fn errno_of(error: &io::Error) -> Errno {
    Errno::from_io_error(error).unwrap_or(Errno::IO)
}

#[cfg(test)]
mod tests {
    use std::{fs::File, os::fd::AsRawFd};

    use super::*;

    /// A sandbox may be applied after the ring was set up.
    #[test]
    fn a_kernel_that_refuses_to_be_entered_loses_nothing_in_flight_and_fails_the_rest() {
        let Ok(mut queue) = UringQueue::new() else {
            eprintln!("skipped: no io_uring here");
            return;
        };
        let zeroes = File::open("/dev/zero").unwrap();
        let mut buffers = vec![vec![1; 4096]; 8];
        let mut submit = |queue: &mut UringQueue, index: usize| {
            let buffer = &mut buffers[index];
            let operation = FileOperation {
                direction: IoDirection::Read,
                fd: zeroes.as_raw_fd(),
                offset: 0,
                memory: OperationMemory::One(MemorySpan {
                    address: buffer.as_mut_ptr(),
                    bytes: buffer.len(),
                }),
                token: index as u64,
            };
            // SAFETY: the buffers and the file outlive the queue's use of them: all completions
            // are taken below.
            unsafe { queue.submit(operation) };
        };
        for index in 0..4 {
            submit(&mut queue, index);
        }
        queue.flush();
        queue.refusal = Some(Errno::PERM);
        for index in 4..8 {
            submit(&mut queue, index);
        }
        queue.flush();
        let mut results = [None; 8];
        while let Some(FileCompletion { token, result }) = queue.next() {
            results[usize::try_from(token).unwrap()] = Some(result);
        }
        assert_eq!(results[..4], [Some(Ok(4096)); 4]);
        assert_eq!(results[4..], [Some(Err(Errno::PERM)); 4]);
        assert_eq!(queue.in_flight(), 0);
        assert!(!queue.is_sound());
        drop(queue);
        let sums = buffers
            .iter()
            .map(|b| b.iter().map(|&b| u32::from(b)).sum());
        assert_eq!(
            sums.collect::<Vec<u32>>(),
            [0, 0, 0, 0, 4096, 4096, 4096, 4096]
        );
    }
}
