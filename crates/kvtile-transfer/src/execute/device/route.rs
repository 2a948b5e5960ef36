//! The choice of a route by estimated times.
//!
//! The estimates only rank routes: all of them copy the same bytes. No constant was measured by this project; each states
//! where it comes from.

use kvtile_layout::CopyPlan;

use super::{engine::CopyDirection, sides::DeviceSides};

/// A way by which a device copies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum DeviceRoute {
    /// Copy engines copy run by run, in batches. Always possible.
    CopyEngine,
    /// Kernels read or write pinned memory of the host, or copy on a device. Not for registered memory whose pieces are
    /// not at consecutive addresses, and not where the driver takes no kernels. From a device to the host it is never
    /// chosen: beside kernels of engines it has been seen to fail elsewhere.
    Kernel,
    /// Kernels pack or unpack in memory of the device, and copy engines move large pieces. Between a device and whole blocks
    /// in pinned memory of the host, where the driver takes kernels.
    Staged,
}

/// What copies cost, in nanoseconds and picoseconds a byte.
struct RouteCosts {
    /// A call that enqueues copies.
    call_ns: u64,
    /// A launch with its tables.
    launch_ns: u64,
    /// Runs from this size on are copied at the speed of the link.
    large_run_bytes: u64,
    large_run_ns: u64,
    large_ps_per_byte: u64,
    small_run_ns: u64,
    small_ps_per_byte: u64,
    /// Kernels over the link; shorter runs cost as much as this many bytes.
    link_ps_per_byte: u64,
    link_request_bytes: u64,
    /// Kernels on the device.
    device_ps_per_byte: u64,
}

/// As of 2026-11. The runs of copy engines: read off a table that vLLM published for an H100 (pull request 42212: 3.8 GB/s
/// for pieces of 4 KiB, 44.1 for 28 KiB, 51.8 for 64 KiB). All other numbers are guesses.
const COSTS: RouteCosts = RouteCosts {
    call_ns: 5_000,
    launch_ns: 8_000,
    large_run_bytes: 28 << 10,
    large_run_ns: 170,
    large_ps_per_byte: 17,
    small_run_ns: 600,
    small_ps_per_byte: 120,
    link_ps_per_byte: 18,
    link_request_bytes: 128,
    device_ps_per_byte: 1,
};

/// Runs of one size.
#[derive(Clone, Copy)]
struct EqualRuns {
    runs: u64,
    bytes: u64,
}

/// The route for `plan`: the preferred one, or the one with the least estimated time.
pub(super) fn choose(
    plan: &CopyPlan,
    sides: &DeviceSides<'_>,
    preferred: Option<DeviceRoute>,
) -> DeviceRoute {
    if sides.direction == CopyDirection::Across && !sides.is_one_device() {
        // Kernels need access between devices, which is not set up.
        return DeviceRoute::CopyEngine;
    }
    preferred.unwrap_or_else(|| cheapest(&runs_of(plan), plan_pairs(plan), sides.direction))
}

fn cheapest(runs: &[EqualRuns], pairs: u64, direction: CopyDirection) -> DeviceRoute {
    use DeviceRoute::{CopyEngine, Kernel, Staged};
    let is_large = |run: &EqualRuns| run.bytes >= COSTS.large_run_bytes;
    let candidates: &[DeviceRoute] = match direction {
        CopyDirection::Across => &[Kernel],
        // Copy engines move large runs at the rate of the link and take nothing from the model's kernels.
        _ if runs.iter().all(is_large) => &[CopyEngine],
        CopyDirection::Down => &[CopyEngine, Staged],
        CopyDirection::Up => &[CopyEngine, Kernel, Staged],
    };
    let best = candidates.iter().copied();
    let best = best.min_by_key(|route| picoseconds(*route, runs, pairs));
    best.unwrap_or(CopyEngine)
}

/// The estimated time of a route.
fn picoseconds(route: DeviceRoute, runs: &[EqualRuns], pairs: u64) -> u64 {
    let sum = |each: &dyn Fn(&EqualRuns) -> u64| {
        let all = runs.iter().map(|run| run.runs.saturating_mul(each(run)));
        all.fold(0, u64::saturating_add)
    };
    let ns = |ns: u64| ns.saturating_mul(1000);
    let bytes = sum(&|run| run.bytes);
    match route {
        DeviceRoute::CopyEngine => {
            let copies = sum(&|run| engine_run(run.bytes));
            ns(COSTS.call_ns).saturating_add(copies)
        }
        DeviceRoute::Kernel => {
            let link = sum(&|run| {
                let moved = run.bytes.max(COSTS.link_request_bytes);
                moved.saturating_mul(COSTS.link_ps_per_byte)
            });
            ns(COSTS.launch_ns).saturating_add(link)
        }
        DeviceRoute::Staged => {
            // About one large piece for each pair of blocks.
            let pieces = pairs.max(1);
            let copies = engine_run(bytes / pieces).saturating_mul(pieces);
            let packing = bytes.saturating_mul(COSTS.device_ps_per_byte);
            let fixed = ns(COSTS.launch_ns + COSTS.call_ns);
            fixed.saturating_add(copies).saturating_add(packing)
        }
    }
}

/// The time of a run of a copy engine.
fn engine_run(bytes: u64) -> u64 {
    let (run_ns, ps_per_byte) = match bytes >= COSTS.large_run_bytes {
        true => (COSTS.large_run_ns, COSTS.large_ps_per_byte),
        false => (COSTS.small_run_ns, COSTS.small_ps_per_byte),
    };
    bytes
        .saturating_mul(ps_per_byte)
        .saturating_add(run_ns * 1000)
}

fn runs_of(plan: &CopyPlan) -> Vec<EqualRuns> {
    let classes = plan.classes().iter();
    let runs = classes.flat_map(|class| {
        let pairs = class.pairs.len() as u64;
        class.nests.iter().map(move |nest| EqualRuns {
            runs: nest.runs().saturating_mul(pairs),
            bytes: nest.run_bytes,
        })
    });
    runs.collect()
}

fn plan_pairs(plan: &CopyPlan) -> u64 {
    plan.classes()
        .iter()
        .map(|class| class.pairs.len() as u64)
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_route_follows_runs_and_their_number() {
        use CopyDirection::{Across, Down, Up};
        let chosen = |runs, bytes, pairs, direction| {
            cheapest(&[EqualRuns { runs, bytes }], pairs, direction)
        };
        // Large runs, and few small ones, are for copy engines.
        for direction in [Up, Down] {
            assert_eq!(chosen(64, 64 << 10, 64, direction), DeviceRoute::CopyEngine);
            assert_eq!(chosen(4, 256, 4, direction), DeviceRoute::CopyEngine);
        }
        // Rows of heads.
        assert_eq!(chosen(100_000, 256, 64, Down), DeviceRoute::Staged);
        assert_eq!(chosen(10_000, 4096, 64, Down), DeviceRoute::Staged);
        assert_ne!(chosen(10_000, 4096, 64, Up), DeviceRoute::CopyEngine);
        assert_eq!(chosen(64, 4096, 64, Up), DeviceRoute::Kernel);
        assert_eq!(chosen(1, 1 << 20, 1, Across), DeviceRoute::Kernel);
        // No estimate overflows.
        assert_eq!(chosen(u64::MAX, u64::MAX, 1, Across), DeviceRoute::Kernel);
        assert_eq!(
            chosen(u64::MAX, u64::MAX, u64::MAX, Down),
            DeviceRoute::CopyEngine
        );
    }
}
