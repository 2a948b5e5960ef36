//! The chosen route against the best one by the model's own constants, over sizes and numbers of runs, and at other constants.
//! The stand-in driver has no times, so nothing here says how fast a route is.

use kvtile_random::SplitMix64;

use super::*;
use CopyDirection::{Across, Down, Up};
use DeviceRoute::{CopyEngine, Kernel, Staged};

/// The route that the model chooses may cost so many times the best one.
const REGRET_MAX: f64 = 1.1;

/// Sizes of runs from an element to a block, with those around the sizes where the model changes.
fn sizes() -> Vec<u64> {
    let mut sizes: Vec<u64> = (1..22)
        .flat_map(|power| [1 << power, 3 << (power - 1)])
        .collect();
    sizes.extend([
        127,
        129,
        (28 << 10) - 1,
        28 << 10,
        (28 << 10) + 1,
        40 << 10,
        56 << 10,
    ]);
    sizes
}

/// Routes that may be taken. Kernels never write host memory, and nothing else copies on a device.
fn allowed(direction: CopyDirection) -> &'static [DeviceRoute] {
    match direction {
        Across => &[Kernel],
        Down => &[CopyEngine, Staged],
        Up => &[CopyEngine, Kernel, Staged],
    }
}

/// The time of a route in picoseconds, computed anew, run after run, in floating point.
#[expect(
    clippy::cast_precision_loss,
    reason = "times to a millionth are enough"
)]
fn naive(costs: &RouteCosts, route: DeviceRoute, copied: CopiedRuns<'_>) -> f64 {
    let engine = |bytes: f64| match bytes >= costs.large_run_bytes as f64 {
        true => costs.large_run_ns as f64 * 1e3 + bytes * costs.large_ps_per_byte as f64,
        false => costs.small_run_ns as f64 * 1e3 + bytes * costs.small_ps_per_byte as f64,
    };
    let (call, launch) = (costs.call_ns as f64 * 1e3, costs.launch_ns as f64 * 1e3);
    let (mut by_engine, mut by_kernel, mut bytes) = (0.0, 0.0, 0.0);
    for run in copied.runs {
        let (count, size) = (run.runs as f64, run.bytes as f64);
        by_engine += count * engine(size);
        let requested = size.max(costs.link_request_bytes as f64);
        by_kernel += count * requested * costs.link_ps_per_byte as f64;
        bytes += count * size;
    }
    match route {
        CopyEngine => call + by_engine,
        Kernel => launch + by_kernel,
        Staged => {
            let pieces = copied.pairs.max(1) as f64;
            let copies = pieces * engine((bytes / pieces).floor());
            launch + call + copies + bytes * costs.device_ps_per_byte as f64
        }
    }
}

/// The chosen route costs at most [`REGRET_MAX`] times the best allowed one.
fn check(costs: &RouteCosts, copied: CopiedRuns<'_>) -> DeviceRoute {
    let ranked = costs.ranked(copied);
    let mut sorted = ranked.clone();
    sorted.sort_by_key(|route| format!("{route:?}"));
    assert_eq!(
        sorted,
        allowed(copied.direction),
        "every allowed route is ranked once"
    );
    let times = allowed(copied.direction).iter();
    let best = times
        .map(|route| naive(costs, *route, copied))
        .fold(f64::MAX, f64::min);
    let chosen = naive(costs, ranked[0], copied);
    assert!(
        chosen <= best * REGRET_MAX + 1.0,
        "{:?} costs {chosen}, the best {best}: {:?} of {} pairs {:?}, {costs:?}",
        ranked[0],
        copied.runs,
        copied.pairs,
        copied.direction
    );
    ranked[0]
}

/// Every direction, size and number, with all runs of one size and with a second size beside it.
fn sweep(costs: &RouteCosts, numbers: &mut SplitMix64) {
    let sizes = sizes();
    for direction in [Up, Down, Across] {
        for &bytes in &sizes {
            for runs in (0..9).map(|power| 4_u64.pow(power)) {
                for pairs in [1, runs.div_ceil(64), runs] {
                    let one = EqualRuns { runs, bytes };
                    let other = EqualRuns {
                        runs: 1 + numbers.below(4096),
                        bytes: sizes[numbers.index(sizes.len())],
                    };
                    for runs in [&[one][..], &[one, other]] {
                        check(
                            costs,
                            CopiedRuns {
                                runs,
                                pairs,
                                direction,
                            },
                        );
                    }
                }
            }
        }
    }
}

#[test]
fn the_chosen_route_is_at_most_a_tenth_worse_than_the_best() {
    sweep(&COSTS, &mut SplitMix64::new(1));
}

#[test]
fn it_is_so_with_any_constants() {
    for seed in 0..50 {
        let mut numbers = SplitMix64::new(seed);
        let mut other = |constant: u64| constant * (25 + numbers.below(376)) / 100;
        let costs = RouteCosts {
            call_ns: other(COSTS.call_ns),
            launch_ns: other(COSTS.launch_ns),
            large_run_bytes: other(COSTS.large_run_bytes),
            large_run_ns: other(COSTS.large_run_ns),
            large_ps_per_byte: other(COSTS.large_ps_per_byte),
            small_run_ns: other(COSTS.small_run_ns),
            small_ps_per_byte: other(COSTS.small_ps_per_byte),
            link_ps_per_byte: other(COSTS.link_ps_per_byte),
            link_request_bytes: other(COSTS.link_request_bytes),
            device_ps_per_byte: other(100 * COSTS.device_ps_per_byte) / 100,
        };
        sweep(&costs, &mut numbers);
    }
}

/// The places where the choice changes, as `docs/devices.md` states them.
#[test]
fn the_route_follows_runs_and_their_number() {
    let chosen = |runs, bytes, pairs, direction| {
        let runs = &[EqualRuns { runs, bytes }];
        check(
            &COSTS,
            CopiedRuns {
                runs,
                pairs,
                direction,
            },
        )
    };
    for direction in [Up, Down] {
        // Large runs, and few small ones, are for copy engines.
        assert_eq!(chosen(64, 64 << 10, 64, direction), CopyEngine);
        assert_eq!(chosen(4, 256, 4, direction), CopyEngine);
        assert_eq!(chosen(100_000, 128 << 10, 64, direction), CopyEngine);
    }
    // The size where vLLM changes from a kernel to copies.
    assert_eq!(chosen(10_000, (28 << 10) - 1, 10_000, Up), Kernel);
    assert_eq!(chosen(10_000, 28 << 10, 10_000, Up), CopyEngine);
    // Rows of heads.
    assert_eq!(chosen(100_000, 256, 64, Down), Staged);
    assert_eq!(chosen(10_000, 4096, 64, Down), Staged);
    assert_ne!(chosen(10_000, 4096, 64, Up), CopyEngine);
    assert_eq!(chosen(64, 4096, 64, Up), Kernel);
    assert_eq!(chosen(1, 1 << 20, 1, Across), Kernel);
    // No estimate overflows.
    let huge = &[EqualRuns {
        runs: u64::MAX,
        bytes: u64::MAX,
    }];
    for direction in [Up, Down, Across] {
        let pairs = u64::MAX;
        let copied = CopiedRuns {
            runs: huge,
            pairs,
            direction,
        };
        assert_eq!(COSTS.ranked(copied).len(), allowed(direction).len());
    }
}
