//! The conformance suites of the testkit: the rules of stores, and the guarantees of tiers over them.

use std::sync::{
    Arc,
    atomic::{AtomicU32, Ordering},
};

use kvtile_shared::store::SharedStore;
use kvtile_testkit::shared::{OpenStoreAt, check_above_store, check_store};

use crate::{
    server::{OPEN_WITHIN, TestServer, open_within},
    table::SuiteOutcome,
};

/// Opens stores at prefixes that nothing else uses.
fn places(server: &TestServer) -> impl Fn() -> OpenStoreAt {
    let next = AtomicU32::new(0);
    let base = server.new_prefix();
    move || {
        let number = next.fetch_add(1, Ordering::Relaxed);
        let url = server.url(&format!("{base}/{number}"));
        Box::new(move || -> Arc<dyn SharedStore> { open_within(&url, OPEN_WITHIN).unwrap() })
    }
}

pub(crate) fn check(server: &mut TestServer) -> SuiteOutcome {
    check_store(&places(server));
    SuiteOutcome::Passed(String::new())
}

pub(crate) fn check_above(server: &mut TestServer) -> SuiteOutcome {
    if !server.open().abilities().keeps_first {
        // The suite counts values that were present.
        return SuiteOutcome::DoesNotApply;
    }
    check_above_store(&places(server));
    SuiteOutcome::Passed(String::new())
}
