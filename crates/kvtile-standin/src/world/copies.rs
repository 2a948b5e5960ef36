//! Copies and fills: how they are cut, when they read, and how they run.

use super::World;
use super::memory::ResolvedRange;
use super::order::{Complaint, Moment};
use super::streams::is_legacy;
use super::work::{PendingWork, WorkKind, overlaps};
use kvtile_device::cuda;
use std::sync::Arc;

/// A copy as the caller enqueues it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct CopyRequest {
    pub(crate) to: u64,
    pub(crate) from: u64,
    pub(crate) bytes: usize,
}

impl World {
    /// Enqueues one copy.
    pub(crate) fn copy(&mut self, handle: u64, copy: CopyRequest) -> Result<(), u32> {
        let CopyRequest { to, from, bytes } = copy;
        if bytes == 0 {
            return Ok(());
        }
        let name = format!("the copy of {bytes} bytes from {from:#x} to {to:#x} on {handle:#x}");
        let places = (
            self.memory.resolve(to, bytes, true),
            self.memory.resolve(from, bytes, false),
        );
        match places {
            (Ok(_), Ok(_)) => {
                let (after, moment) = self.next_moment(handle, &name.into());
                let parts = self.cut(copy, None);
                self.enqueue(handle, parts, &after, &moment);
                Ok(())
            }
            // One begins in known memory and leaves it, or neither is known.
            (Err(true), _) | (_, Err(true)) | (Err(false), Err(false)) => Err(cuda::INVALID_VALUE),
            (known_to, known_from) => {
                self.copy_pageable(handle, copy, (known_to, known_from), name)
            }
        }
    }

    /// A copy from or to memory that is not pinned: done before the call returns.
    fn copy_pageable(
        &mut self,
        handle: u64,
        copy: CopyRequest,
        known: (Result<ResolvedRange, bool>, Result<ResolvedRange, bool>),
        name: String,
    ) -> Result<(), u32> {
        let or_host = |known: Result<ResolvedRange, bool>, address| {
            known
                .or_else(|_| ResolvedRange::pageable(address, copy.bytes).ok_or(()))
                .map_err(|()| cuda::INVALID_VALUE)
        };
        let to = or_host(known.0, copy.to)?;
        let from = or_host(known.1, copy.from)?;
        self.run_until(|world| world.is_idle(handle))?;
        let (_, moment) = self.next_moment(handle, &Arc::from(name.as_str()));
        self.order.enter(from.identity(), false, &moment);
        self.order.enter(to.identity(), true, &moment);
        // SAFETY: one range is in the map of memory; the other is what a caller passes to a driver as its own.
        unsafe { from.copy_to(to) };
        self.order
            .complaints
            .push(Complaint::Pageable { copy: name });
        self.host.join(&moment.clock);
        Ok(())
    }

    /// Enqueues many copies without an order among each other.
    pub(crate) fn copy_batch(
        &mut self,
        handle: u64,
        copies: &[CopyRequest],
        source_order: u32,
    ) -> Result<(), u32> {
        if is_legacy(handle) || copies.is_empty() {
            return Err(cuda::INVALID_VALUE);
        }
        let bytes: usize = copies.iter().map(|copy| copy.bytes).sum();
        let name = format!(
            "the batch of {} copies with {bytes} bytes on {handle:#x}",
            copies.len()
        );
        let mut ranges = Vec::with_capacity(copies.len());
        for copy in copies {
            let to = self.memory.resolve(copy.to, copy.bytes, true);
            let from = self.memory.resolve(copy.from, copy.bytes, false);
            match (to, from) {
                (Ok(to), Ok(from)) if copy.bytes > 0 => {
                    ranges.push((to.identity(), from.identity()));
                }
                _ => return Err(cuda::INVALID_VALUE),
            }
        }
        if overlaps(&ranges) {
            self.order.complaints.push(Complaint::OverlapInBatch {
                batch: name.clone(),
            });
        }
        let name: Arc<str> = name.into();
        let early = match source_order {
            cuda::SOURCE_ORDER_STREAM => None,
            cuda::SOURCE_ORDER_ANY | cuda::SOURCE_ORDER_DURING_CALL => {
                Some(self.early_moment(handle, &name))
            }
            _ => return Err(cuda::INVALID_VALUE),
        };
        let (after, moment) = self.next_moment(handle, &name);
        let mut parts = Vec::new();
        for copy in copies {
            for part in self.cut(*copy, early.clone()) {
                let is_now = source_order == cuda::SOURCE_ORDER_DURING_CALL
                    || (early.is_some() && self.numbers.once_in(2));
                parts.push(if is_now { self.read_now(part)? } else { part });
            }
        }
        self.enqueue(handle, parts, &after, &moment);
        Ok(())
    }

    /// Cuts a copy at a random byte.
    fn cut(&mut self, copy: CopyRequest, read: Option<Moment>) -> Vec<WorkKind> {
        let CopyRequest { to, from, bytes } = copy;
        let head = self.numbers.index(bytes);
        let part = |skipped: usize, bytes: usize| WorkKind::Copy {
            to: to + skipped as u64,
            from: from + skipped as u64,
            bytes,
            read: read.clone(),
        };
        if head == 0 {
            return vec![part(0, bytes)];
        }
        vec![part(head, bytes - head), part(0, head)]
    }

    /// Reads the source of a part ahead of the order.
    fn read_now(&mut self, part: WorkKind) -> Result<WorkKind, u32> {
        let WorkKind::Copy {
            to,
            from,
            bytes,
            read: Some(read),
        } = part
        else {
            return Ok(part);
        };
        let data = self.read_range(from, bytes, &read)?;
        Ok(WorkKind::Write { to, data })
    }

    fn read_range(&mut self, from: u64, bytes: usize, moment: &Moment) -> Result<Vec<u8>, u32> {
        let source = self.memory.resolve(from, bytes, false);
        let source = source.map_err(|_| cuda::ILLEGAL_ADDRESS)?;
        self.order.enter(source.identity(), false, moment);
        let mut data = vec![0; bytes];
        // SAFETY: the range is in the map of memory, which drops it only when no work is pending.
        unsafe { source.read(&mut data) };
        Ok(data)
    }

    /// Enqueues a fill.
    pub(crate) fn fill(
        &mut self,
        handle: u64,
        to: u64,
        value: u8,
        bytes: usize,
    ) -> Result<(), u32> {
        if bytes == 0 {
            return Ok(());
        }
        let place = self.memory.resolve(to, bytes, true);
        let _known = place.map_err(|_| cuda::INVALID_VALUE)?;
        let name = format!("the fill of {bytes} bytes at {to:#x} on {handle:#x}");
        let (after, moment) = self.next_moment(handle, &name.into());
        let fill = WorkKind::Fill { to, value, bytes };
        self.enqueue(handle, vec![fill], &after, &moment);
        Ok(())
    }

    /// Runs a piece of work; an error loses the device.
    pub(super) fn run(&mut self, work: PendingWork) -> Result<(), u32> {
        let moment = work.moment;
        match work.kind {
            WorkKind::Point => Ok(()),
            WorkKind::Launch(launch) => self.run_launch(&launch, &moment),
            WorkKind::Copy {
                to,
                from,
                bytes,
                read,
            } => {
                let read = read.as_ref().unwrap_or(&moment);
                let data = self.read_range(from, bytes, read)?;
                self.write_range(to, &data, &moment)
            }
            WorkKind::Write { to, data } => self.write_range(to, &data, &moment),
            WorkKind::Fill { to, value, bytes } => {
                let place = self.memory.resolve(to, bytes, true);
                let place = place.map_err(|_| cuda::ILLEGAL_ADDRESS)?;
                self.order.enter(place.identity(), true, &moment);
                // SAFETY: as in `read_range`.
                unsafe { place.fill(value) };
                Ok(())
            }
        }
    }

    fn write_range(&mut self, to: u64, data: &[u8], moment: &Moment) -> Result<(), u32> {
        let place = self.memory.resolve(to, data.len(), true);
        let place = place.map_err(|_| cuda::ILLEGAL_ADDRESS)?;
        self.order.enter(place.identity(), true, moment);
        // SAFETY: as in `read_range`.
        unsafe { place.write(data) };
        Ok(())
    }

    /// Reads or writes memory of devices at once, for tests: no work is ordered by it, and nothing is checked.
    pub(crate) fn peek(&self, address: u64, into: &mut [u8]) -> bool {
        let Ok(place) = self.memory.resolve(address, into.len(), false) else {
            return false;
        };
        // SAFETY: as in `read_range`.
        unsafe { place.read(into) };
        true
    }

    /// As [`World::peek`].
    pub(crate) fn poke(&self, address: u64, from: &[u8]) -> bool {
        let Ok(place) = self.memory.resolve(address, from.len(), true) else {
            return false;
        };
        // SAFETY: as in `read_range`.
        unsafe { place.write(from) };
        true
    }

    /// Enters an access of the host.
    pub(crate) fn host_access(
        &mut self,
        address: u64,
        bytes: usize,
        is_write: bool,
        name: &str,
    ) -> bool {
        let Ok(place) = self.memory.resolve(address, bytes, false) else {
            return false;
        };
        let moment = self.host_moment(name);
        self.order.enter(place.identity(), is_write, &moment);
        true
    }
}
