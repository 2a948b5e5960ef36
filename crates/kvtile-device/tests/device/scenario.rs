//! A pipeline as the copy engine has it: host memory to a device, through the device, and back, over two queues.

use kvtile_device::{
    CopyBatch, Device, DeviceError, DeviceMark, DeviceMemory, DeviceQueue, Driver, PinnedMemory,
    RegisterOptions, RegisteredMemory, SourceOrder,
};
use kvtile_memory::{MemoryRegion, SystemMemory};
use std::ptr::with_exposed_provenance;
use std::sync::Arc;

/// Bytes of a block.
pub(crate) const BLOCK: usize = 96;

/// A wait that [`Pipeline::run`] leaves out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LeftOut {
    /// None: the pipeline is right.
    Nothing,
    /// The copies inside the device do not wait for those from the host.
    UpBeforeMove,
    /// The copies to the host do not wait for those inside the device.
    MoveBeforeDown,
    /// The host reads without waiting for the last mark.
    DownBeforeHost,
}

/// The memory and queues of the pipeline.
pub(crate) struct Pipeline {
    pub(crate) source: RegisteredMemory,
    pub(crate) first: DeviceMemory,
    pub(crate) second: DeviceMemory,
    pub(crate) target: PinnedMemory,
    pub(crate) copies: DeviceQueue,
    pub(crate) moves: DeviceQueue,
    pub(crate) device: Device,
}

impl Pipeline {
    /// `count` blocks of each kind of memory.
    pub(crate) fn new(driver: &Driver, count: usize) -> Result<Pipeline, DeviceError> {
        let device = driver.device(0)?;
        let bytes = count * BLOCK;
        let mut system = SystemMemory::allocate(bytes)?;
        for (index, byte) in system.as_mut_slice().iter_mut().enumerate() {
            *byte = value(index);
        }
        let options = RegisterOptions {
            piece_bytes: rustix::param::page_size(),
            threads: 1,
        };
        Ok(Pipeline {
            source: RegisteredMemory::register(&device, Arc::new(system), options)?,
            first: DeviceMemory::allocate(&device, bytes)?,
            second: DeviceMemory::allocate(&device, bytes)?,
            target: PinnedMemory::allocate(&device, bytes)?,
            copies: device.queue()?,
            moves: device.queue()?,
            device,
        })
    }

    fn count(&self) -> usize {
        self.first.size() / BLOCK
    }

    /// Copies all blocks up, reverses their order on the device, and copies them down. The work has been enqueued when
    /// it returns; the mark is behind all of it.
    pub(crate) fn run(&self, left_out: LeftOut) -> Result<DeviceMark, DeviceError> {
        let count = self.count();
        let mut up = CopyBatch::with_capacity(count);
        let mut to = self.first.device_address();
        for (from, bytes) in self.source.device_ranges(0..count * BLOCK) {
            up.push(to, from, bytes);
            to += bytes as u64;
        }
        let mut moves = CopyBatch::with_capacity(count);
        let mut down = CopyBatch::with_capacity(count);
        for block in 0..count {
            let offset = (block * BLOCK) as u64;
            let mirrored = ((count - 1 - block) * BLOCK) as u64;
            let (first, second) = (self.first.device_address(), self.second.device_address());
            moves.push(second + mirrored, first + offset, BLOCK);
            down.push(
                self.target.device_address() + offset,
                second + offset,
                BLOCK,
            );
        }
        // SAFETY: the memory lives as long as `self`, whose users wait; copies conflict only where a wait is left out,
        // on memory of the stand-in.
        unsafe { self.copies.copy_batch(&mut up, SourceOrder::Any) }?;
        let uploaded = self.copies.record()?;
        if left_out != LeftOut::UpBeforeMove {
            self.moves.wait(&uploaded)?;
        }
        // SAFETY: as above.
        unsafe {
            self.moves
                .fill(self.second.device_address(), 0, self.second.size())
        }?;
        // SAFETY: as above.
        unsafe { self.moves.copy_batch(&mut moves, SourceOrder::Queue) }?;
        let moved = self.moves.record()?;
        if left_out != LeftOut::MoveBeforeDown {
            self.copies.wait(&moved)?;
        }
        // SAFETY: as above.
        unsafe { self.copies.copy_batch(&mut down, SourceOrder::Queue) }?;
        self.copies.record()
    }

    /// Runs the pipeline and waits.
    pub(crate) fn finish(&self) -> Result<(), DeviceError> {
        let end = self.run(LeftOut::Nothing)?;
        // Both ways of knowing that it has ended are used, in every schedule.
        let _may_have_passed = end.is_passed()?;
        end.wait()?;
        if !self.copies.is_idle()? {
            self.copies.synchronize()?;
        }
        self.moves.synchronize()
    }

    /// The bytes of the target.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let start: *const u8 = with_exposed_provenance(self.target.addr());
        // SAFETY: memory of this process as long as `self` lives; no work writes it, or the stand-in runs none now.
        unsafe { std::slice::from_raw_parts(start, self.target.size()) }.to_vec()
    }

    /// What they must be: each block in its mirrored place.
    pub(crate) fn expected(&self) -> Vec<u8> {
        let count = self.count();
        let blocks = (0..count).rev();
        let bytes = blocks.flat_map(|block| (0..BLOCK).map(move |byte| block * BLOCK + byte));
        bytes.map(value).collect()
    }
}

/// A byte of the source.
fn value(index: usize) -> u8 {
    u8::try_from(index * 31 % 251).unwrap_or(0)
}
