//! Buffers for images, with guards between regions.
//!
//! ```text
//! guard │ region 0 │ guard │ region 1 │ … │ guard
//! ```
//!
//! Destinations hold poison and guards before a transfer; afterwards everything is compared, so a stray write shows.

use std::{fmt, ops::Range};

use kvtile_device::SourceOrder;
use kvtile_testkit::{Image, poison_byte};

use super::PlannedBytes;
use crate::{
    error::GpuCheckError,
    figures::{MeasuredDirection, MeasuredRoute},
    phases::{PhaseContext, ceilings, plans},
    rig::{BufferPlace, PreparedCopies, Rig, RigBuffer, RigQueueName, RigRegion},
};

const QUEUE: RigQueueName = RigQueueName::First;
/// Bytes between regions, at least.
const GUARD: usize = 256;
/// The region number of guards in their poison.
const GUARD_REGION: usize = usize::MAX;
/// What a buffer holds before a device's bytes are copied there.
const STALE: u8 = 0xee;

/// Buffers on both sides.
pub(super) struct ByteArena<'r> {
    rig: &'r Rig,
    blocks: u32,
    host_source: RigBuffer,
    host_destination: RigBuffer,
    device_source: RigBuffer,
    device_destination: RigBuffer,
}

/// A byte that differs.
pub(super) struct ByteDifference {
    region: Option<usize>,
    offset: usize,
    expected: u8,
    found: u8,
}

impl fmt::Display for ByteDifference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (expected, found, offset) = (self.expected, self.found, self.offset);
        match self.region {
            Some(region) => write!(f, "byte {offset} of region {region}")?,
            None => write!(f, "a guard, byte {offset} of the buffer")?,
        }
        write!(f, ": {found:#04x} in place of {expected:#04x}")
    }
}

/// An image with its guards.
struct GuardedImage {
    bytes: Vec<u8>,
    ranges: Vec<Range<usize>>,
}

impl GuardedImage {
    /// The first region starts `odd` bytes behind an aligned place.
    fn new(image: &Image, odd: usize) -> GuardedImage {
        let mut bytes = Vec::new();
        let mut ranges = Vec::new();
        for region in image {
            let start = bytes.len().next_multiple_of(GUARD) + GUARD + odd % GUARD;
            guard(&mut bytes, start);
            ranges.push(start..start + region.len());
            bytes.extend_from_slice(region);
        }
        let end = bytes.len().next_multiple_of(GUARD) + GUARD;
        guard(&mut bytes, end);
        GuardedImage { bytes, ranges }
    }

    fn regions(&self, buffer: &RigBuffer) -> Vec<RigRegion> {
        let regions = self.ranges.iter().map(|range| RigRegion {
            buffer: buffer.clone(),
            range: range.clone(),
        });
        regions.collect()
    }

    /// The first byte in which `found` differs.
    fn difference(&self, found: &[u8]) -> Option<ByteDifference> {
        let mut pairs = self.bytes.iter().zip(found).enumerate();
        let (at, (&expected, &found)) = pairs.find(|(_, (expected, found))| expected != found)?;
        let mut regions = self.ranges.iter().enumerate();
        let inside = regions
            .find_map(|(region, range)| range.contains(&at).then(|| (region, at - range.start)));
        Some(ByteDifference {
            region: inside.map(|(region, _)| region),
            offset: inside.map_or(at, |(_, offset)| offset),
            expected,
            found,
        })
    }
}

/// The first byte in which images differ.
pub(super) fn difference(expected: &Image, found: &Image) -> Option<ByteDifference> {
    let expected = GuardedImage::new(expected, 0);
    let found = GuardedImage::new(found, 0);
    expected.difference(&found.bytes)
}

/// Appends guards up to `end`.
fn guard(bytes: &mut Vec<u8>, end: usize) {
    for at in bytes.len()..end {
        bytes.push(poison_byte(GUARD_REGION, at as u64));
    }
}

impl<'r> ByteArena<'r> {
    pub(super) fn new(context: &PhaseContext<'r>) -> Result<ByteArena<'r>, GpuCheckError> {
        // The largest example of a known layout, and of a random one, takes less.
        let bytes = context.fitting(16 << 20, 3)?;
        let rig = context.rig;
        Ok(ByteArena {
            rig,
            blocks: ceilings::full_grid(rig)?,
            host_source: rig.buffer(BufferPlace::Host, bytes)?,
            host_destination: rig.buffer(BufferPlace::Host, bytes)?,
            device_source: rig.buffer(BufferPlace::Device, bytes)?,
            device_destination: rig.buffer(BufferPlace::Device, bytes)?,
        })
    }

    /// Executes a transfer and compares all bytes of the destination's buffer, guards included.
    pub(super) fn transfer(
        &self,
        planned: &PlannedBytes,
        direction: MeasuredDirection,
        route: MeasuredRoute,
    ) -> Result<Option<ByteDifference>, GpuCheckError> {
        let source = GuardedImage::new(&planned.from, planned.odd.0);
        let before = GuardedImage::new(&planned.to, planned.odd.1);
        let expected = GuardedImage::new(&planned.expected, planned.odd.1);
        let from_host = direction == MeasuredDirection::HostToDevice;
        let to_host = direction == MeasuredDirection::DeviceToHost;
        self.rig.write(&self.host_source, 0, &source.bytes)?;
        self.rig.write(&self.host_destination, 0, &before.bytes)?;
        if !from_host {
            self.copy(&self.device_source, &self.host_source, source.bytes.len())?;
        }
        if !to_host || route == MeasuredRoute::Staged {
            self.copy(
                &self.device_destination,
                &self.host_destination,
                before.bytes.len(),
            )?;
        }
        match route {
            MeasuredRoute::Staged => {
                if from_host {
                    self.copy(&self.device_source, &self.host_source, source.bytes.len())?;
                }
                self.kernel(
                    planned,
                    source.regions(&self.device_source),
                    before.regions(&self.device_destination),
                )?;
            }
            _ => {
                let from = if from_host {
                    &self.host_source
                } else {
                    &self.device_source
                };
                let to = if to_host {
                    &self.host_destination
                } else {
                    &self.device_destination
                };
                let regions = (source.regions(from), before.regions(to));
                match route {
                    MeasuredRoute::Kernel => self.kernel(planned, regions.0, regions.1)?,
                    _ => self.runs(planned, (from, &regions.0), (to, &regions.1), route)?,
                }
            }
        }
        if !to_host || route == MeasuredRoute::Staged {
            let stale = vec![STALE; before.bytes.len()];
            self.rig.write(&self.host_destination, 0, &stale)?;
            self.copy(
                &self.host_destination,
                &self.device_destination,
                before.bytes.len(),
            )?;
        }
        let range = 0..before.bytes.len();
        let found = self.rig.read(&self.host_destination, range)?;
        Ok(expected.difference(&found))
    }

    fn copy(&self, to: &RigBuffer, from: &RigBuffer, bytes: usize) -> Result<(), GpuCheckError> {
        let copies = PreparedCopies::whole(to, from, bytes)?;
        self.rig.copy_each(QUEUE, &copies)
    }

    fn kernel(
        &self,
        planned: &PlannedBytes,
        from: Vec<RigRegion>,
        to: Vec<RigRegion>,
    ) -> Result<(), GpuCheckError> {
        let program = self.rig.program(&planned.plan, &from, &to)?;
        self.rig.launch(QUEUE, &program, self.blocks)
    }

    /// Each run as a copy, in batches.
    fn runs(
        &self,
        planned: &PlannedBytes,
        (from, from_regions): (&RigBuffer, &[RigRegion]),
        (to, to_regions): (&RigBuffer, &[RigRegion]),
        route: MeasuredRoute,
    ) -> Result<(), GpuCheckError> {
        let copies = plans::copies_of(&planned.plan, from_regions, to_regions);
        let mut copies = PreparedCopies::new(to, from, &copies)?;
        let order = match route {
            MeasuredRoute::BatchAny => SourceOrder::Any,
            _ => SourceOrder::Queue,
        };
        self.rig.copy_batch(QUEUE, &mut copies, order)
    }
}
