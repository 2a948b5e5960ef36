//! Programs of kernels between regions of buffers.

use std::ops::Range;

use kvtile_device::LaunchShape;
use kvtile_kernels::{MoveProgram, MoveRegion, lower};
use kvtile_layout::CopyPlan;

use super::{BufferPlace, PreparedCopies, Rig, RigBuffer, RigQueueName};
use crate::error::GpuCheckError;

/// A part of a buffer that is one region of a layout.
#[derive(Clone, Debug)]
pub(crate) struct RigRegion {
    pub(crate) buffer: RigBuffer,
    pub(crate) range: Range<usize>,
}

impl RigRegion {
    /// A whole buffer.
    pub(crate) fn whole(buffer: &RigBuffer) -> RigRegion {
        RigRegion {
            buffer: buffer.clone(),
            range: 0..buffer.bytes(),
        }
    }
}

/// The launches of a plan, and its tables in pinned memory with their place on the device.
pub(crate) struct PreparedProgram {
    program: MoveProgram,
    uses: Vec<(RigBuffer, bool)>,
    tables: Option<PreparedTables>,
}

struct PreparedTables {
    copies: PreparedCopies,
    device: RigBuffer,
}

impl PreparedProgram {
    /// Bytes that it moves.
    pub(crate) fn bytes(&self) -> u64 {
        self.program.bytes()
    }

    /// The names of its kernels, each once.
    pub(crate) fn kernels(&self) -> Vec<&'static str> {
        let mut names: Vec<&'static str> = Vec::new();
        for launch in self.program.launches() {
            let name = launch.kernel().name();
            if !names.contains(&name) {
                names.push(name);
            }
        }
        names
    }
}

impl Rig {
    /// The program of a plan between these regions. A plan that leaves them is refused.
    pub(crate) fn program(
        &self,
        plan: &CopyPlan,
        source: &[RigRegion],
        destination: &[RigRegion],
    ) -> Result<PreparedProgram, GpuCheckError> {
        let shared = |region: &RigRegion| {
            let mut others = source.iter();
            others.any(|other| other.buffer.is(&region.buffer))
        };
        if destination.iter().any(shared) || overlap(destination) {
            return Err(GpuCheckError::OverlappingCopies);
        }
        let program = lower(plan, &places(source)?, &places(destination)?)?;
        let mut uses: Vec<(RigBuffer, bool)> = Vec::new();
        let sides = [(source, false), (destination, true)];
        for (region, is_write) in sides
            .iter()
            .flat_map(|(side, is_write)| side.iter().map(move |region| (region, *is_write)))
        {
            if !uses.iter().any(|(buffer, _)| buffer.is(&region.buffer)) {
                uses.push((region.buffer.clone(), is_write));
            }
        }
        let tables = self.tables(&program)?;
        if let Some(tables) = &tables {
            uses.push((tables.device.clone(), false));
        }
        Ok(PreparedProgram {
            program,
            uses,
            tables,
        })
    }

    fn tables(&self, program: &MoveProgram) -> Result<Option<PreparedTables>, GpuCheckError> {
        let words = program.tables().iter().flat_map(|word| word.to_le_bytes());
        let bytes: Vec<u8> = words.collect();
        if bytes.is_empty() {
            return Ok(None);
        }
        let host = self.buffer(BufferPlace::Host, bytes.len())?;
        let device = self.buffer(BufferPlace::Device, bytes.len())?;
        self.write(&host, 0, &bytes)?;
        Ok(Some(PreparedTables {
            copies: PreparedCopies::whole(&device, &host, bytes.len())?,
            device,
        }))
    }

    /// Enqueues a program, its tables in front of it, with at most `blocks` blocks for each launch.
    pub(crate) fn launch(
        &self,
        name: RigQueueName,
        program: &PreparedProgram,
        blocks: u32,
    ) -> Result<(), GpuCheckError> {
        if let Some(tables) = &program.tables {
            self.copy_each(name, &tables.copies)?;
        }
        let uses = program.uses.iter();
        let uses: Vec<(&RigBuffer, bool)> = uses.map(|(buffer, write)| (buffer, *write)).collect();
        self.begin(name, &uses)?;
        let tables = program.tables.as_ref();
        let tables = tables.map_or(0, |tables| tables.device.address());
        for launch in program.program.launches() {
            let shape = LaunchShape {
                grid: [launch.blocks(blocks), 1, 1],
                block: [launch.threads(), 1, 1],
                shared_bytes: 0,
            };
            let parameters = launch.parameters(tables);
            let kernel = self.kernel(launch.kernel())?;
            let queue = &self.queue(name).queue;
            // SAFETY: the lowering has checked that the launch stays in its regions, which lie inside buffers of this
            // rig; the tables are those of the program, copied on the same queue. `begin` holds all buffers until the
            // queue is idle and has ordered conflicting work of the other queue. The kernels live as long as the rig,
            // whose queues end before them.
            unsafe { queue.launch(kernel, shape, parameters.as_bytes()) }?;
        }
        // All launches are enqueued.
        Ok(())
    }
}

/// The regions as the lowering takes them, each inside its buffer.
fn places(regions: &[RigRegion]) -> Result<Vec<MoveRegion>, GpuCheckError> {
    let place = |region: &RigRegion| {
        Ok(MoveRegion {
            address: region.buffer.check(&region.range)?,
            bytes: region.range.len() as u64,
        })
    };
    regions.iter().map(place).collect()
}

/// Whether two regions have bytes in common.
fn overlap(regions: &[RigRegion]) -> bool {
    let with = |index: usize, region: &RigRegion| {
        let mut others = regions.iter().skip(index + 1);
        others.any(|other| {
            let (a, b) = (&region.range, &other.range);
            region.buffer.is(&other.buffer) && a.start < b.end && b.start < a.end
        })
    };
    let mut all = regions.iter().enumerate();
    all.any(|(index, region)| with(index, region))
}
