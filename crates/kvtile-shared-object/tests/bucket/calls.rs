//! The requests that a tier sends.

use std::sync::Arc;

use kvtile_shared::{store::SharedStore, tier::SharedTierSettings};
use kvtile_testkit::shared::SharedTierRig;

use crate::server::ScriptedServer;

/// Writes a chain of bundles with two tiers, one after the other. Returns the queries of bundles, and the bundles that
/// the second one found written.
fn queries(bundle_blocks: u32, page_size: u64) -> (usize, u64) {
    let server = ScriptedServer::start();
    let store: Arc<dyn SharedStore> = Arc::new(server.open(""));
    let settings = SharedTierSettings::new().bundle_blocks(bundle_blocks);
    let chain = SharedTierRig::chain(1, 64);
    let mut present = 0;
    for turn in 0..2 {
        let rig = SharedTierRig::open(Arc::clone(&store), settings.clone(), (page_size, 0));
        assert!(rig.write(&chain).iter().all(Result::is_ok));
        let counters = rig.tier().counters();
        let bundles = 64 / u64::from(bundle_blocks);
        assert_eq!(counters.written + counters.present, bundles, "{turn}");
        present = counters.present;
        rig.read_all(&chain);
    }
    let requests = server.requests();
    let is_query = |request: &&String| request.starts_with("HEAD") && request.contains("/all/");
    (requests.iter().filter(is_query).count(), present)
}

#[test]
fn bundles_that_take_less_time_than_a_call_are_written_without_a_query() {
    // A call takes 30 ms until it is measured, and 8 MiB take 93 ms.
    assert_eq!(queries(16, 16), (0, 4));
    assert_eq!(queries(64, 512), (2, 1));
}
