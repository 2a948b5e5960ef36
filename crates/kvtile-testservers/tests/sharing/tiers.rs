//! The conformance suite of tiers, with the shared tier over a store.

use std::sync::Arc;

use kvtile_blocks::events::{TierId, TierKind};
use kvtile_shared::{
    store::SharedStore,
    tier::{SharedTier, SharedTierSettings},
};
use kvtile_testkit::tier::conformance::{OpenTierAt, check_tier};
use kvtile_tiers::tier::Tier;

use crate::{
    server::{ServerChoice, TestServer},
    table::SuiteOutcome,
};

pub(crate) fn check(server: &mut TestServer) -> SuiteOutcome {
    // It is slow, and the suite makes thousands of calls.
    if server.choice == ServerChoice::MotoGcs {
        return SuiteOutcome::DoesNotApply;
    }
    let store = server.open();
    let opener = |blocks| opener(Arc::clone(&store), server.new_prefix(), blocks);
    // The tail of a chain is never durable, and the suite expects all blocks of a durable tier.
    let blocks = match store.abilities().is_durable {
        true => 1,
        false => 4,
    };
    check_tier(2, &|| opener(blocks));
    SuiteOutcome::Passed(format!("(bundles of {blocks})"))
}

fn opener(store: Arc<dyn SharedStore>, prefix: String, bundle_blocks: u32) -> OpenTierAt {
    Box::new(move |context| {
        let id = TierId::new(TierKind::Remote, "shared").unwrap();
        let settings = SharedTierSettings::new();
        let settings = settings.bundle_blocks(bundle_blocks).prefix(&prefix);
        let tier = SharedTier::open(id, Arc::clone(&store), settings, context);
        tier.unwrap() as Arc<dyn Tier>
    })
}
