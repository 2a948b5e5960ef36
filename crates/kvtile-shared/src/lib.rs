//! A tier that many caches share, in any number of processes and machines.
//!
//! | module | contents |
//! | --- | --- |
//! | [`store`] | the trait of one store: a folder, a bucket, a server |
//! | [`bundle`] | consecutive blocks in one value: envelope and names |
//! | [`tier`] | the tier over any store: verification, deadlines, limits, counters |
//! | [`parts`] | the parts that other ranks of a model wrote, for a tier that assembles blocks from them |
//! | [`folder`], [`memory`] | a store in a folder, which may be on a network, and one in memory |
//! | [`manifest`] | which model the bundles of an identity belong to |
//! | [`sweep`] | keeps a store below a capacity |
//! | [`survey`] | what a store has, whether it is whole, and the removal of all of it |
//!
//! A store keeps values under names and never changes one. It knows neither blocks nor keys.

#![forbid(unsafe_code)]

pub mod bundle;
pub mod folder;
mod guard;
pub mod manifest;
pub mod memory;
pub mod parts;
pub mod store;
pub mod survey;
pub mod sweep;
pub mod tier;
