//! An operation as one blocking system call.

use std::{
    io::{IoSlice, IoSliceMut},
    os::fd::BorrowedFd,
};

use rustix::io::{Errno, pread, preadv, pwrite, pwritev};

use super::{FileOperation, IoDirection, MemorySpan, OperationMemory};

/// Executes `operation` with one system call.
///
/// # Safety
/// As for [`super::FileQueue::submit`], for the duration of the call.
pub(in super::super) unsafe fn perform(operation: FileOperation) -> Result<usize, Errno> {
    // SAFETY: the caller keeps the descriptor open.
    let fd = unsafe { BorrowedFd::borrow_raw(operation.fd) };
    let offset = operation.offset;
    match (operation.direction, operation.memory) {
        (IoDirection::Read, OperationMemory::One(span)) => {
            // SAFETY: passed on to the caller.
            pread(fd, unsafe { to_fill(span) }, offset)
        }
        (IoDirection::Write, OperationMemory::One(span)) => {
            // SAFETY: passed on to the caller.
            pwrite(fd, unsafe { to_take(span) }, offset)
        }
        (IoDirection::Read, OperationMemory::Many { first, count }) => {
            // SAFETY: the caller keeps the array of spans mapped, initialised and unchanged.
            let spans = unsafe { std::slice::from_raw_parts(first, count) };
            // SAFETY: passed on to the caller; no two spans of a read overlap.
            let slices = spans
                .iter()
                .map(|span| IoSliceMut::new(unsafe { to_fill(*span) }));
            preadv(fd, &mut slices.collect::<Vec<_>>(), offset)
        }
        (IoDirection::Write, OperationMemory::Many { first, count }) => {
            // SAFETY: the caller keeps the array of spans mapped, initialised and unchanged.
            let spans = unsafe { std::slice::from_raw_parts(first, count) };
            // SAFETY: passed on to the caller.
            let slices = spans
                .iter()
                .map(|span| IoSlice::new(unsafe { to_take(*span) }));
            pwritev(fd, &slices.collect::<Vec<_>>(), offset)
        }
    }
}

/// # Safety
/// While the slice is used, the bytes are mapped and initialised, and nothing else reads or writes
/// them.
unsafe fn to_fill<'a>(span: MemorySpan) -> &'a mut [u8] {
    // SAFETY: passed on to the caller.
    unsafe { std::slice::from_raw_parts_mut(span.address, span.bytes) }
}

/// # Safety
/// While the slice is used, the bytes are mapped and initialised, and nothing writes them.
unsafe fn to_take<'a>(span: MemorySpan) -> &'a [u8] {
    // SAFETY: passed on to the caller.
    unsafe { std::slice::from_raw_parts(span.address.cast_const(), span.bytes) }
}
