//! Each function of the driver fails once, at its first calls and some later ones: a typed error, the blocks and the
//! staging memory come back, and nothing is left.

use kvtile_device::{DeviceError, cuda};
use kvtile_standin::{Standin, StandinLeaks, StandinOptions};
use kvtile_transfer::{DeviceRoute, FillPattern, LeaseMode, TransferError, TransferOptions};

use crate::world::DeviceWorld;

/// Every way of a transfer: both directions, through pinned and other memory, verified, layer by layer, behind a stream.
fn scenario(world: &DeviceWorld) -> Result<(), TransferError> {
    let (manager, engine) = (&world.manager, world.engine);
    manager.fill(engine, &[0, 1], FillPattern::Distinct { seed: 9 })?;
    for pool in [world.pinned, world.pageable] {
        let options = TransferOptions::new().after_queue(world.stream.clone());
        let stored = manager.execute_transfer(engine, &[0, 1], pool, &[2, 3], options)?;
        let streamed = stored.wait_layer_on(&world.stream, 0);
        stored.wait()?;
        streamed?;
        let options = TransferOptions::new().layer_by_layer(true);
        manager
            .execute_transfer(pool, &[2, 3], engine, &[4, 5], options)?
            .wait()?;
    }
    for route in [DeviceRoute::Kernel, DeviceRoute::Staged] {
        let options = TransferOptions::new().route(route);
        let stored =
            manager.execute_transfer(engine, &[0, 1], world.pinned, &[0, 1], options.clone());
        stored?.wait()?;
        let loaded = manager.execute_transfer(world.pinned, &[0, 1], engine, &[4, 5], options);
        loaded?.wait()?;
    }
    let options = TransferOptions::new().verify(true);
    manager
        .execute_transfer(engine, &[4], world.pinned, &[4], options)?
        .wait()?;
    let lease = manager.lease(engine, &[4], LeaseMode::Read)?;
    lease.checksum(4)?;
    drop(lease);
    for (one, other) in [(0, 4), (1, 5)] {
        assert_eq!(
            manager.block_digest(engine, one)?,
            manager.block_digest(engine, other)?
        );
    }
    Ok(())
}

#[test]
fn each_call_fails_once_and_leases_staging_and_memory_come_back() {
    let mut tried = 0;
    for version in [12_000, 13_000] {
        let options = || StandinOptions {
            version,
            kernels: Some(crate::world::kernels()),
            ..StandinOptions::seeded(17)
        };
        let standin = Standin::start(options());
        let world = DeviceWorld::new(&standin).unwrap();
        let before = standin.calls();
        scenario(&world).unwrap();
        let after = standin.calls();
        drop(world);
        drop(standin);
        for (function, count) in after {
            let count = count - before.get(function).unwrap_or(&0);
            // Which thread polls how often differs from run to run: the first calls and some later ones.
            let chosen = (1..=count).filter(|nth| *nth <= 12 || nth.is_multiple_of(17));
            for nth in chosen {
                for code in [cuda::OUT_OF_MEMORY, 999, cuda::LAUNCH_FAILED] {
                    let standin = Standin::start(options());
                    fails_once(&standin, (function, nth, code));
                    tried += 1;
                }
            }
        }
    }
    assert!(tried > 200, "{tried}");
}

fn fails_once(standin: &Standin, (function, nth, code): (&'static str, u64, u32)) {
    let what = format!("{function} call {nth} with {code}");
    let world = DeviceWorld::new(standin).unwrap();
    standin.fail(function, nth, code);
    let result = scenario(&world);
    if let Err(error) = &result {
        let TransferError::Device(error) = error else {
            panic!("{what}: {error}")
        };
        assert!(
            matches!(
                **error,
                DeviceError::Call { .. }
                    | DeviceError::OutOfMemory { .. }
                    | DeviceError::Lost { .. }
            ),
            "{what}: {error}"
        );
    }
    let blocks = [0, 1, 2, 3, 4, 5];
    for handle in [world.engine, world.pinned, world.pageable] {
        let lease = world.manager.lease(handle, &blocks, LeaseMode::Write);
        assert!(lease.is_ok(), "{what}: blocks of {handle} are held");
    }
    if code != cuda::LAUNCH_FAILED {
        // Once the failure has passed, which may be in the second run, everything works, which needs the staging memory.
        let again = scenario(&world).and_then(|()| scenario(&world));
        let again = again.or_else(|error| match &result {
            Ok(()) => scenario(&world),
            Err(_) => Err(error),
        });
        assert!(again.is_ok(), "{what}: {again:?}");
    }
    drop(world);
    assert_eq!(standin.complaints(), [], "{what}");
    assert_eq!(standin.leaks(), StandinLeaks::default(), "{what}");
}
