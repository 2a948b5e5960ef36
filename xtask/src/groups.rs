//! Soaks of the cache over groups, in a process and over a daemon, with many more seeds and kills than in CI.

use crate::step::{CargoStep, StepFailure};

/// The simulation with so many seeds, and killed caches, clients and daemons. With `seed` that seed of the simulation alone.
pub(crate) fn soak(seeds: u64, kills: u64, seed: Option<u64>) -> Result<(), StepFailure> {
    let step = |package, name| {
        let test = ["test", "--locked", "-p", package, "--test", "groups"];
        CargoStep::cargo(test.into_iter().chain(["--", "--nocapture", name]))
    };
    if let Some(seed) = seed {
        let simulation = step("kvtile-tiers", "simulation");
        return simulation.env("KVTILE_GROUPS_SEED", seed).run();
    }
    // One over a daemon takes ten times as long.
    let over_daemon = seeds.div_ceil(10);
    for (package, seeds) in [("kvtile-tiers", seeds), ("kvtile-daemon", over_daemon)] {
        let simulation = step(package, "simulation");
        simulation.env("KVTILE_GROUPS_SEEDS", seeds).run()?;
    }
    let crash = step("kvtile-tiers", "crash");
    crash.env("KVTILE_GROUPS_KILLS", kills).run()?;
    let killed = step("kvtile-daemon", "killed_at_any_moment");
    killed.env("KVTILE_DAEMON_KILLS", kills).run()?;
    println!(
        "soak-groups: {seeds} seeds in a process, {over_daemon} over a daemon, {kills} kills of a cache, of clients and of daemons"
    );
    Ok(())
}
