//! Damaged values in a store: none is served, and all are counted.

use std::{sync::Arc, time::Duration};

use kvtile_shared::{
    store::{Deadline, SharedStore},
    tier::SharedTierSettings,
};
use kvtile_testkit::shared::SharedTierRig;
use kvtile_tiers::tier::TierMiss;

use crate::{server::TestServer, table::SuiteOutcome, values::read_all};

const SOON: Duration = Duration::from_secs(20);

/// Values with one flipped bit each.
const VALUES: u32 = 200;

/// Blocks of a chain: each is a bundle of its own.
const CHAIN: u32 = 20;

pub(crate) fn check(server: &mut TestServer) -> SuiteOutcome {
    let store = server.open();
    let settings = || SharedTierSettings::new().bundle_blocks(1);
    let rig =
        |store: &Arc<dyn SharedStore>| SharedTierRig::open(Arc::clone(store), settings(), (4, 2));
    let writer = rig(&store);
    let chains: Vec<_> = (0..u64::from(VALUES / CHAIN))
        .map(|chain| SharedTierRig::chain(chain, CHAIN))
        .collect();
    for chain in &chains {
        assert!(writer.write(chain).iter().all(Result::is_ok));
    }
    let names = SharedTierRig::names(&*store);
    assert_eq!(names.len(), VALUES as usize);
    for (number, name) in names.iter().enumerate() {
        let mut bytes = read_all(&*store, name, SOON).unwrap().unwrap();
        // Bits of the header and of the block, spread over the whole value.
        let at = number * bytes.len() / names.len();
        bytes[at] ^= 1 << (number % 8);
        let by = Deadline::within(SOON);
        assert_eq!(store.remove(std::slice::from_ref(name), by).unwrap(), 1);
        store.write(name, &[&bytes], None, by).unwrap();
    }
    let reader = rig(&store);
    for chain in &chains {
        assert_eq!(reader.ask(chain).leading, CHAIN as usize);
        for outcome in reader.read(chain) {
            let outcome = outcome.unwrap_err();
            let is_served = matches!(outcome, TierMiss::Failed(_));
            assert!(
                !is_served,
                "a damaged value failed in place of being a miss: {outcome}"
            );
        }
    }
    let counts = reader.tier().counters();
    let counted = counts.damaged + counts.other_identity + counts.short;
    assert_eq!(counted, u64::from(VALUES), "{counts:?}");
    assert_eq!((counts.read_blocks, counts.absent), (0, 0), "{counts:?}");
    SuiteOutcome::Passed(format!(
        "({VALUES} values with one flipped bit: 0 served, {} counted as damaged, {} as others', {} as short)",
        counts.damaged, counts.other_identity, counts.short
    ))
}
