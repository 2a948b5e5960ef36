//! The store keeps the rules, and tiers over it their guarantees.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use kvtile_shared::store::SharedStore;
use kvtile_testkit::shared::{OpenStoreAt, check_above_store, check_store};

use crate::server::ScriptedServer;

/// Places at prefixes with every character that a prefix may have.
fn places() -> impl Fn() -> OpenStoreAt {
    let server = Arc::new(ScriptedServer::start());
    let next = AtomicUsize::new(0);
    move || {
        let server = Arc::clone(&server);
        let prefix = format!("a-b_c..d/0.-_/{}", next.fetch_add(1, Ordering::Relaxed));
        Box::new(move || Arc::new(server.open(&prefix)) as Arc<dyn SharedStore>)
    }
}

#[test]
fn a_bucket_keeps_the_rules() {
    check_store(&places());
}

#[test]
fn tiers_over_a_bucket_keep_their_guarantees() {
    check_above_store(&places());
}
