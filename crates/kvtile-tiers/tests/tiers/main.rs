//! Tiers behind their contract: the conformance suite of the testkit on each implementation.

#![expect(clippy::unwrap_used, reason = "tests")]

mod conformance;
