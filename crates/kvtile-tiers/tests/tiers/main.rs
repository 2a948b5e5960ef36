//! Implementations of the tier contract under the conformance suite of the testkit.

#![expect(clippy::unwrap_used, reason = "tests")]

mod conformance;
