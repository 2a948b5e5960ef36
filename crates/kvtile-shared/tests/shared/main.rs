//! The shared tier over its stores: the conformance suite of tiers, and the guarantees above every
//! store.

mod conformance;
