//! Tests of devices under the stand-in driver, with many more cases than in CI.

use crate::step::{CargoStep, StepFailure};

/// The environment variable with the number of random cases.
const CASES: &str = "PROPTEST_CASES";

/// Random transfers, random plans through the kernels, and a cache on a bad disk.
pub(crate) fn soak(transfers: u32, seeds: u64) -> Result<(), StepFailure> {
    let step = |package, test, name| {
        let test = ["test", "--locked", "-p", package, "--test", test];
        CargoStep::cargo(test.into_iter().chain(["--", name]))
    };
    let random = step("kvtile-transfer", "device", "a_transfer_with_a_device");
    random.env(CASES, transfers).run()?;
    let plans = step("kvtile-kernels", "kernels", "random");
    plans.env(CASES, transfers.div_ceil(10)).run()?;
    let simulation = step("kvtile-tiers", "device_cache", "simulation");
    simulation.env("KVTILE_CACHE_SEEDS", seeds).run()?;
    println!(
        "soak-devices: {transfers} random transfers, {} plans through the kernels and {seeds} seeds of a cache, all under \
         the stand-in driver and not on hardware",
        transfers.div_ceil(10)
    );
    Ok(())
}
