//! The memory of both sides: transfers get it as regions, all other methods as slices.
//!
//! Every measured method works on the same pages. A transfer gets regions over them and must
//! release all of them before the next method gets the bytes.

use std::{
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use kvtile::{
    layout::{LayoutError, OwnedMemoryRegion, ShapeError, StridedLayout},
    memory::{Prefault, RegionView, SystemMemory},
};

use crate::error::BenchError;

/// Alignment of regions, the same as that of regions that the library allocates.
const REGION_ALIGNMENT: u64 = 4096;

/// How long a finished transfer may take to release its memory.
const RELEASE_TIME: Duration = Duration::from_secs(2);

/// The placement of the regions of a layout in one allocation.
#[derive(Clone, Debug)]
pub(crate) struct ArenaPacking {
    bytes: usize,
    regions: Vec<(usize, usize)>,
}

impl ArenaPacking {
    /// Places the regions one after the other, each at a page.
    ///
    /// # Errors
    /// A size that does not fit.
    pub(crate) fn new(layout: &StridedLayout) -> Result<ArenaPacking, BenchError> {
        let alignment = layout.alignment().max(REGION_ALIGNMENT);
        let what = "bytes of all regions";
        let too_large = || BenchError::Layout(LayoutError::Shape(ShapeError::TooLarge { what }));
        let mut regions = Vec::new();
        let mut end = 0u64;
        for &bytes in layout.region_bytes() {
            let start = end.checked_next_multiple_of(alignment);
            let start = start.ok_or_else(too_large)?;
            end = start.checked_add(bytes).ok_or_else(too_large)?;
            let size = |bytes: u64| usize::try_from(bytes).map_err(|_| too_large());
            regions.push((size(start)?, size(bytes)?));
        }
        let bytes = usize::try_from(end).map_err(|_| too_large())?;
        Ok(ArenaPacking { bytes, regions })
    }

    /// Total size in bytes.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// The start of each region.
    pub(crate) fn starts(&self) -> Vec<usize> {
        self.regions.iter().map(|(start, _)| *start).collect()
    }
}

/// One side's memory.
#[derive(Debug)]
pub(crate) struct Arena {
    memory: Arc<SystemMemory>,
}

impl Arena {
    /// Allocates memory and touches it.
    fn allocate(bytes: usize) -> Result<Arena, BenchError> {
        let options = SystemMemory::options().prefault(Prefault::Populate { threads: 0 });
        let memory = Arc::new(options.allocate(bytes)?);
        Ok(Arena { memory })
    }

    /// The bytes, once no transfer holds them.
    fn bytes_mut(&mut self) -> Result<&mut [u8], BenchError> {
        // The worker thread of a transfer drops its regions shortly after the completion is
        // visible.
        let deadline = Instant::now() + RELEASE_TIME;
        while Arc::get_mut(&mut self.memory).is_none() && Instant::now() < deadline {
            thread::yield_now();
        }
        let memory = Arc::get_mut(&mut self.memory).ok_or(BenchError::StillHeld)?;
        Ok(memory.as_mut_slice())
    }

    fn regions(&self, packing: &ArenaPacking) -> Result<Vec<OwnedMemoryRegion>, BenchError> {
        let memory: OwnedMemoryRegion = Arc::<SystemMemory>::clone(&self.memory);
        let mut regions: Vec<OwnedMemoryRegion> = Vec::new();
        for &(start, bytes) in &packing.regions {
            let view = RegionView::new(Arc::clone(&memory), start, bytes)?;
            regions.push(Arc::new(view));
        }
        Ok(regions)
    }
}

/// Both sides' memory.
#[derive(Debug)]
pub(crate) struct Arenas {
    source: Arena,
    destination: Arena,
}

impl Arenas {
    /// Allocates `bytes` on each side and fills the source with random bytes.
    ///
    /// # Errors
    /// Memory that cannot be allocated.
    pub(crate) fn new(bytes: usize, seed: u64) -> Result<Arenas, BenchError> {
        let mut source = Arena::allocate(bytes)?;
        kvtile_random::SplitMix64::new(seed).fill(source.bytes_mut()?);
        let mut destination = Arena::allocate(bytes)?;
        destination.bytes_mut()?.fill(POISON);
        Ok(Arenas {
            source,
            destination,
        })
    }

    /// Bytes of one side.
    pub(crate) fn bytes(&self) -> usize {
        kvtile::layout::MemoryRegion::size(&*self.source.memory)
    }

    /// Both sides as slices.
    ///
    /// # Errors
    /// Regions that are still held.
    pub(crate) fn slices(&mut self) -> Result<(&[u8], &mut [u8]), BenchError> {
        Ok((self.source.bytes_mut()?, self.destination.bytes_mut()?))
    }

    /// Both sides as regions.
    ///
    /// # Errors
    /// A packing that is larger than the memory.
    pub(crate) fn regions(
        &self,
        source: &ArenaPacking,
        destination: &ArenaPacking,
    ) -> Result<(Vec<OwnedMemoryRegion>, Vec<OwnedMemoryRegion>), BenchError> {
        Ok((
            self.source.regions(source)?,
            self.destination.regions(destination)?,
        ))
    }

    /// Overwrites the destination up to `bytes`, to erase earlier copies.
    ///
    /// # Errors
    /// Regions that are still held.
    pub(crate) fn poison(&mut self, bytes: usize) -> Result<(), BenchError> {
        let destination = self.destination.bytes_mut()?;
        if let Some(destination) = destination.get_mut(..bytes) {
            destination.fill(POISON);
        }
        Ok(())
    }
}

/// The destination's contents before a copy.
const POISON: u8 = 0xa5;
