//! The runs of a plan by kernels of a device, which permute while they copy.

use kvtile_device::{Device, DeviceError, DeviceKernel, DeviceMemory, DeviceQueue, LaunchShape};
use kvtile_kernels::{
    LowerError, MOVE_PTX, MoveKernel, MoveProgram, MoveSide, PlanPart, lower_part,
};
use kvtile_layout::{CopyPlan, broken};
use kvtile_memory::MemoryRegion;

use super::{
    engine::{CopyDirection, quiesce},
    sides::DeviceSides,
    staging::SLOT_BYTES_MAX,
    waits::DeviceWait,
};
use crate::error::{CopyError, TransferError};

/// Blocks of a launch that reads or writes memory of the host: enough bytes in flight for the link on paper, twice, and
/// few multiprocessors. A guess of 2026-11.
const HOST_BLOCKS: u32 = 4;

/// Errors of a driver that cannot compile the text: it has no code for the device (209), or no compiler (221).
const CANNOT_COMPILE: [u32; 2] = [209, 221];

/// The oldest devices for which the kernels are compiled.
const CAPABILITY_MIN: (u32, u32) = (8, 0);

/// The kernels on a device.
#[derive(Debug)]
pub(super) struct MoveKernels {
    kernels: Vec<(MoveKernel, DeviceKernel)>,
}

/// Memory of a device that work of one queue uses, in its order.
#[derive(Debug, Default)]
pub(super) struct WayMemory {
    /// The tables of a program.
    pub(super) tables: QueueBuffer,
    /// What kernels pack and unpack.
    pub(super) packed: QueueBuffer,
}

/// Memory that is allocated when it is needed, and grows.
#[derive(Debug, Default)]
pub(super) struct QueueBuffer(Option<DeviceMemory>);

impl QueueBuffer {
    /// The address of at least `bytes` bytes, which work of `queue` alone uses.
    pub(super) fn of_size(
        &mut self,
        bytes: usize,
        queue: &DeviceQueue,
    ) -> Result<u64, TransferError> {
        if let Some(memory) = &self.0 {
            if memory.size() >= bytes {
                return Ok(memory.device_address());
            }
            quiesce(DeviceWait::BufferReplaced, queue);
            self.0 = None;
        }
        let size = bytes.max(64 << 10).next_power_of_two();
        let memory = DeviceMemory::allocate(queue.device(), size)?;
        Ok(self.0.insert(memory).device_address())
    }
}

impl MoveKernels {
    /// Compiles the kernels; `None` where the driver refuses their text or the device is too old for it.
    pub(super) fn load(device: &Device) -> Result<Option<MoveKernels>, TransferError> {
        if device.description().capability < CAPABILITY_MIN {
            return Ok(None);
        }
        let module = match device.load_module(MOVE_PTX) {
            Ok(module) => module,
            Err(DeviceError::NewerPtx { .. } | DeviceError::RefusedPtx { .. }) => return Ok(None),
            Err(DeviceError::Call { code, .. }) if CANNOT_COMPILE.contains(&code) => {
                return Ok(None);
            }
            Err(error) => return Err(error.into()),
        };
        let kernels = MoveKernel::ALL.iter().map(|&kernel| {
            let found = module.kernel(kernel.name())?;
            Ok((kernel, found))
        });
        Ok(Some(MoveKernels {
            kernels: kernels.collect::<Result<_, TransferError>>()?,
        }))
    }

    fn get(&self, kernel: MoveKernel) -> &DeviceKernel {
        match self.kernels.iter().find(|(known, _)| *known == kernel) {
            Some((_, found)) => found,
            None => broken(format_args!("the module lacks {kernel:?}")),
        }
    }

    /// Enqueues the launches of `program`.
    ///
    /// # Safety
    /// As for [`DeviceSides::enqueue`], for what the program reads and writes. `tables` is locked as memory of the way of
    /// `queue`.
    pub(super) unsafe fn launch(
        &self,
        program: &MoveProgram,
        sides: &DeviceSides<'_>,
        queue: &DeviceQueue,
        (tables, blocks): (&mut QueueBuffer, u32),
    ) -> Result<(), TransferError> {
        let words = program.tables();
        let bytes = size_of_val(words);
        let mut address = 0;
        if bytes > 0 {
            address = tables.of_size(bytes, queue)?;
            let mut slot = sides.engine.staging.take(bytes)?;
            slot.write_words(words);
            slot.lend(queue);
            // SAFETY: both have the bytes; the slot is lent to the queue, in whose order alone the buffer is used.
            unsafe { queue.copy(address, slot.address(), bytes) }?;
            slot.mark()?;
        }
        for launch in program.launches() {
            let shape = LaunchShape {
                grid: [launch.blocks(blocks), 1, 1],
                block: [launch.threads(), 1, 1],
                shared_bytes: 0,
            };
            let parameters = launch.parameters(address);
            let kernel = self.get(launch.kernel());
            // SAFETY: the parameters are those of the kernel, which the engine keeps; the lowering has checked that they
            // stay in the regions, and the caller guarantees the rest.
            unsafe { queue.launch(kernel, shape, parameters.as_bytes()) }?;
        }
        Ok(())
    }
}

/// The program of a part, or `None` where a transfer needs another route: tables that are too long.
pub(super) fn program(
    part: &PlanPart<'_>,
    source: MoveSide<'_>,
    destination: MoveSide<'_>,
) -> Result<Option<MoveProgram>, TransferError> {
    match lower_part(part, source, destination) {
        Ok(program) if size_of_val(program.tables()) > SLOT_BYTES_MAX => Ok(None),
        Ok(program) => Ok(Some(program)),
        Err(LowerError::TableTooLong { .. }) => Ok(None),
        Err(LowerError::NoRegion { region, .. } | LowerError::OutsideRegion { region, .. }) => {
            Err(TransferError::Copy(CopyError::OutsidePlan { region }))
        }
        Err(error) => broken(format_args!("a program of a plan: {error}")),
    }
}

/// Enqueues kernels that copy `plan`; false, and then nothing is enqueued, where kernels cannot.
///
/// # Safety
/// As for [`DeviceSides::enqueue`].
pub(super) unsafe fn enqueue(
    plan: &CopyPlan,
    sides: &DeviceSides<'_>,
    queue: &DeviceQueue,
) -> Result<bool, TransferError> {
    let device = sides.engine.device();
    let source = sides.source.move_regions(device)?;
    let destination = sides.destination.move_regions(device)?;
    let (Some(source), Some(destination), Some(kernels)) =
        (source, destination, sides.engine.kernels()?)
    else {
        return Ok(false); // The copy engine reaches what kernels do not.
    };
    let (source, destination) = (MoveSide::Regions(&source), MoveSide::Regions(&destination));
    let Some(program) = program(&PlanPart::whole(plan), source, destination)? else {
        return Ok(false); // The tables are too long.
    };
    let blocks = match sides.direction {
        CopyDirection::Across => device.description().multiprocessors,
        _ => HOST_BLOCKS,
    };
    let mut memory = sides.way().memory.lock();
    // SAFETY: passed on to the caller; the memory of the way is locked.
    unsafe { kernels.launch(&program, sides, queue, (&mut memory.tables, blocks)) }?;
    Ok(true)
}
