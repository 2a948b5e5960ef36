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
#[derive(Clone, Copy, Debug)]
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
/// for pieces of 4 KiB, 44.1 for 28 KiB, 51.8 for 64 KiB). Kernels over the link: the fewest picoseconds with which the copy
/// engine is taken from 28 KiB on, where vLLM changes from its kernel to copies. All other numbers are guesses.
const COSTS: RouteCosts = RouteCosts {
    call_ns: 5_000,
    launch_ns: 8_000,
    large_run_bytes: 28 << 10,
    large_run_ns: 170,
    large_ps_per_byte: 17,
    small_run_ns: 600,
    small_ps_per_byte: 120,
    link_ps_per_byte: 21,
    link_request_bytes: 128,
    device_ps_per_byte: 1,
};

/// The copy engine is taken where it costs at most this much more than the best route, in hundredths: it takes nothing from
/// the model's kernels.
const ENGINE_HUNDREDTHS: u64 = 110;

/// Runs of one size.
#[derive(Clone, Copy, Debug)]
struct EqualRuns {
    runs: u64,
    bytes: u64,
}

/// What the costs depend on.
#[derive(Clone, Copy)]
struct CopiedRuns<'a> {
    runs: &'a [EqualRuns],
    pairs: u64,
    direction: CopyDirection,
}

/// The routes for `plan`, the first one to take in front: the preferred one, or those with the least estimated times. One
/// that cannot copy the plan leaves it to the next, and the last to the copy engine, which always can.
pub(super) fn choose(
    plan: &CopyPlan,
    sides: &DeviceSides<'_>,
    preferred: Option<DeviceRoute>,
) -> Vec<DeviceRoute> {
    if sides.direction == CopyDirection::Across && !sides.is_one_device() {
        // Kernels need access between devices, which is not set up.
        return vec![DeviceRoute::CopyEngine];
    }
    match preferred {
        Some(route) => vec![route],
        None => COSTS.ranked(CopiedRuns {
            runs: &runs_of(plan),
            pairs: plan_pairs(plan),
            direction: sides.direction,
        }),
    }
}

impl RouteCosts {
    /// The routes of a direction, the cheapest in front. The copy engine comes first where it is almost as cheap.
    fn ranked(&self, copied: CopiedRuns<'_>) -> Vec<DeviceRoute> {
        use DeviceRoute::{CopyEngine, Kernel, Staged};
        let mut routes = match copied.direction {
            CopyDirection::Across => vec![Kernel],
            CopyDirection::Down => vec![CopyEngine, Staged],
            CopyDirection::Up => vec![CopyEngine, Kernel, Staged],
        };
        let time = |route: &DeviceRoute| self.picoseconds(*route, copied);
        routes.sort_by_key(time);
        let best = routes.first().map_or(0, time);
        let engine = routes.iter().position(|route| *route == CopyEngine);
        if let Some(engine) = engine
            && time(&CopyEngine) <= (best / 100).saturating_mul(ENGINE_HUNDREDTHS)
            && let Some(ahead) = routes.get_mut(..=engine)
        {
            ahead.rotate_right(1);
        }
        routes
    }

    /// The estimated time of a route.
    fn picoseconds(&self, route: DeviceRoute, copied: CopiedRuns<'_>) -> u64 {
        let sum = |each: &dyn Fn(&EqualRuns) -> u64| {
            let runs = copied.runs.iter();
            let all = runs.map(|run| run.runs.saturating_mul(each(run)));
            all.fold(0, u64::saturating_add)
        };
        let ns = |ns: u64| ns.saturating_mul(1000);
        let bytes = sum(&|run| run.bytes);
        match route {
            DeviceRoute::CopyEngine => {
                let copies = sum(&|run| self.engine_run(run.bytes));
                ns(self.call_ns).saturating_add(copies)
            }
            DeviceRoute::Kernel => {
                let link = sum(&|run| {
                    let moved = run.bytes.max(self.link_request_bytes);
                    moved.saturating_mul(self.link_ps_per_byte)
                });
                ns(self.launch_ns).saturating_add(link)
            }
            DeviceRoute::Staged => {
                // About one large piece for each pair of blocks.
                let pieces = copied.pairs.max(1);
                let copies = self.engine_run(bytes / pieces).saturating_mul(pieces);
                let packing = bytes.saturating_mul(self.device_ps_per_byte);
                let fixed = ns(self.launch_ns.saturating_add(self.call_ns));
                fixed.saturating_add(copies).saturating_add(packing)
            }
        }
    }

    /// The time of a run of a copy engine.
    fn engine_run(&self, bytes: u64) -> u64 {
        let (run_ns, ps_per_byte) = match bytes >= self.large_run_bytes {
            true => (self.large_run_ns, self.large_ps_per_byte),
            false => (self.small_run_ns, self.small_ps_per_byte),
        };
        bytes
            .saturating_mul(ps_per_byte)
            .saturating_add(run_ns.saturating_mul(1000))
    }
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
mod tests;
