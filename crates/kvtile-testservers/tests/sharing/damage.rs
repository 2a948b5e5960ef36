//! Damaged values in a store: none is served, and all are counted.

use crate::{server::TestServer, table::SuiteOutcome};

pub(crate) fn check(_server: &mut TestServer) -> SuiteOutcome {
    SuiteOutcome::DoesNotApply
}
