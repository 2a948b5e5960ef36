//! Counts of what costs time: sectors of global memory, passes over the banks of shared memory, instructions.
//!
//! The n-th execution of an instruction by the 32 lanes of a warp, between two barriers, is one request. A request of
//! global memory moves sectors of 32 bytes; ideal are those that its distinct bytes fill. A request of shared memory
//! goes in parts of at most 128 bytes of lanes; each part needs as many passes as distinct words of four bytes meet in
//! one of the 32 banks.

use crate::error::PtxFaultKind;

/// Lanes of a warp.
pub(crate) const WARP: usize = 32;

/// Most accesses of a warp between two barriers.
const ACCESSES_MAX: usize = 1 << 22;

/// What a launch did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PtxCounts {
    /// Instructions of all threads, those whose guard was false included.
    pub instructions: u64,
    /// Loads with `ld.global.nc`.
    pub constant_loads: PtxAccessCounts,
    /// Other loads of global memory.
    pub loads: PtxAccessCounts,
    /// Stores to global memory.
    pub stores: PtxAccessCounts,
    /// Loads and stores of shared memory.
    pub shared: PtxSharedCounts,
}

/// Requests of global memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PtxAccessCounts {
    /// Requests.
    pub requests: u64,
    /// Distinct bytes of each request, summed.
    pub bytes: u64,
    /// Sectors.
    pub sectors: u64,
    /// Sectors that the bytes of each request would fill at best.
    pub sectors_ideal: u64,
}

/// Requests of shared memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PtxSharedCounts {
    /// Requests.
    pub requests: u64,
    /// Passes over the banks.
    pub passes: u64,
    /// Passes without conflicts.
    pub passes_ideal: u64,
}

impl PtxCounts {
    /// Adds the counts of another launch.
    pub fn add(&mut self, other: &PtxCounts) {
        self.instructions += other.instructions;
        for (to, from) in [
            (&mut self.constant_loads, other.constant_loads),
            (&mut self.loads, other.loads),
            (&mut self.stores, other.stores),
        ] {
            to.requests += from.requests;
            to.bytes += from.bytes;
            to.sectors += from.sectors;
            to.sectors_ideal += from.sectors_ideal;
        }
        self.shared.requests += other.shared.requests;
        self.shared.passes += other.shared.passes;
        self.shared.passes_ideal += other.shared.passes_ideal;
    }
}

/// The memory that a site accesses, as far as it is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CountedSpace {
    ConstantLoad,
    Load,
    Store,
    Shared,
}

/// An access of a lane; none where `bytes` is 0.
#[derive(Clone, Copy, Debug, Default)]
struct LaneAccess {
    address: u64,
    bytes: u64,
}

/// The accesses of a warp since the last barrier.
#[derive(Debug)]
pub(crate) struct WarpAccesses {
    /// For each site, the lanes of its first request, of its second one, …
    sites: Vec<(CountedSpace, Vec<LaneAccess>)>,
    /// Executions of each site by the thread that runs.
    executions: Vec<usize>,
    accesses: usize,
}

impl WarpAccesses {
    /// For a kernel with these sites.
    pub(crate) fn new(sites: impl Iterator<Item = CountedSpace>) -> WarpAccesses {
        let sites: Vec<_> = sites.map(|space| (space, Vec::new())).collect();
        WarpAccesses {
            executions: vec![0; sites.len()],
            sites,
            accesses: 0,
        }
    }

    /// Another thread runs.
    pub(crate) fn next_thread(&mut self) {
        self.executions.fill(0);
    }

    pub(crate) fn enter(
        &mut self,
        site: u32,
        lane: usize,
        address: u64,
        bytes: usize,
    ) -> Result<(), PtxFaultKind> {
        self.accesses += 1;
        if self.accesses > ACCESSES_MAX {
            return Err(PtxFaultKind::ManyAccesses { max: ACCESSES_MAX });
        }
        let site = site as usize;
        if let (Some((_, lanes)), Some(execution)) =
            (self.sites.get_mut(site), self.executions.get_mut(site))
        {
            let at = *execution * WARP + lane;
            *execution += 1;
            if at >= lanes.len() {
                lanes.resize(*execution * WARP, LaneAccess::default());
            }
            if let Some(access) = lanes.get_mut(at) {
                *access = LaneAccess {
                    address,
                    bytes: bytes as u64,
                };
            }
        }
        Ok(())
    }

    /// Counts the requests and forgets them.
    pub(crate) fn count(&mut self, counts: &mut PtxCounts) {
        let mut ranges = Vec::new();
        for (space, lanes) in &mut self.sites {
            for request in lanes.chunks(WARP) {
                match space {
                    CountedSpace::ConstantLoad => {
                        sectors(request, &mut ranges, &mut counts.constant_loads);
                    }
                    CountedSpace::Load => sectors(request, &mut ranges, &mut counts.loads),
                    CountedSpace::Store => sectors(request, &mut ranges, &mut counts.stores),
                    CountedSpace::Shared => passes(request, &mut counts.shared),
                }
            }
            lanes.clear();
        }
        self.accesses = 0;
    }
}

/// Counts a request of global memory.
fn sectors(request: &[LaneAccess], ranges: &mut Vec<(u64, u64)>, counts: &mut PtxAccessCounts) {
    ranges.clear();
    let accesses = request.iter().filter(|access| access.bytes > 0);
    ranges.extend(
        accesses.map(|access| (access.address, access.address.saturating_add(access.bytes))),
    );
    ranges.sort_unstable();
    let (mut bytes, mut sectors) = (0, 0);
    let (mut byte, mut sector) = (0, 0);
    for &(start, end) in ranges.iter() {
        // From here on, no byte and no sector was counted.
        let new = start.max(byte);
        bytes += end.saturating_sub(new);
        byte = byte.max(end);
        let (first, last) = ((start / 32).max(sector), end.div_ceil(32));
        sectors += last.saturating_sub(first);
        sector = sector.max(last);
    }
    if bytes > 0 {
        counts.requests += 1;
        counts.bytes += bytes;
        counts.sectors += sectors;
        counts.sectors_ideal += bytes.div_ceil(32);
    }
}

/// Counts a request of shared memory.
fn passes(request: &[LaneAccess], counts: &mut PtxSharedCounts) {
    let widest = request.iter().map(|access| access.bytes).max().unwrap_or(0);
    let lanes = match widest {
        0 => return,
        1..=4 => 32,
        5..=8 => 16,
        _ => 8,
    };
    counts.requests += 1;
    for part in request.chunks(lanes) {
        let mut banks: [Vec<u64>; 32] = [const { Vec::new() }; 32];
        for access in part.iter().filter(|access| access.bytes > 0) {
            for word in access.address / 4..access.address.saturating_add(access.bytes).div_ceil(4)
            {
                let bank = usize::try_from(word % 32)
                    .ok()
                    .and_then(|bank| banks.get_mut(bank));
                if let Some(bank) = bank.filter(|bank| !bank.contains(&word)) {
                    bank.push(word);
                }
            }
        }
        let most = banks.iter().map(Vec::len).max().unwrap_or(0);
        counts.passes += most as u64;
        counts.passes_ideal += u64::from(most > 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(addresses: impl Iterator<Item = u64>, bytes: u64) -> Vec<LaneAccess> {
        addresses
            .map(|address| LaneAccess { address, bytes })
            .collect()
    }

    fn sectors_of(request: &[LaneAccess]) -> (u64, u64) {
        let mut counts = PtxAccessCounts::default();
        sectors(request, &mut Vec::new(), &mut counts);
        (counts.sectors, counts.sectors_ideal)
    }

    fn passes_of(request: &[LaneAccess]) -> (u64, u64) {
        let mut counts = PtxSharedCounts::default();
        passes(request, &mut counts);
        (counts.passes, counts.passes_ideal)
    }

    #[test]
    fn dense_lanes_fill_their_sectors() {
        assert_eq!(
            sectors_of(&request((0..32).map(|i| 4096 + 16 * i), 16)),
            (16, 16)
        );
        assert_eq!(
            sectors_of(&request((0..32).map(|i| 4096 + 2 * i), 2)),
            (2, 2)
        );
        // Off by half a sector.
        assert_eq!(
            sectors_of(&request((0..32).map(|i| 4112 + 16 * i), 16)),
            (17, 16)
        );
        // One byte of each sector, and one byte for all lanes.
        assert_eq!(sectors_of(&request((0..32).map(|i| 64 * i), 1)), (32, 1));
        assert_eq!(sectors_of(&request((0..32).map(|_| 64), 8)), (1, 1));
        assert_eq!(sectors_of(&[LaneAccess::default(); 32]), (0, 0));
        // Descending lanes with the two halves of each sector.
        assert_eq!(
            sectors_of(&request((0..32).rev().map(|i| 16 * i), 16)),
            (16, 16)
        );
    }

    #[test]
    fn words_of_one_bank_need_passes() {
        assert_eq!(passes_of(&request((0..32).map(|i| 4 * i), 4)), (1, 1));
        assert_eq!(passes_of(&request((0..32).map(|i| 8 * i), 4)), (2, 1));
        assert_eq!(passes_of(&request((0..32).map(|i| 128 * i), 4)), (32, 1));
        assert_eq!(passes_of(&request((0..32).map(|i| 132 * i), 4)), (1, 1));
        // One word for all lanes, halves of words.
        assert_eq!(passes_of(&request((0..32).map(|_| 128), 4)), (1, 1));
        assert_eq!(passes_of(&request((0..32).map(|i| 2 * i), 2)), (1, 1));
        // Vectors of 16 bytes go in parts of eight lanes.
        assert_eq!(passes_of(&request((0..32).map(|i| 16 * i), 16)), (4, 4));
        assert_eq!(passes_of(&request((0..32).map(|i| 64 * i), 16)), (16, 4));
    }
}
