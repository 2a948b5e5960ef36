//! Naive reference models and generators for the tests of the other crates.
//!
//! Everything here is slow and simple on purpose: a layout is a list with the place of every unit,
//! made by walking its word with a cursor; a copy moves one unit after the other. Nothing here
//! knows digits, strides, runs or plans, so that what it shares with the code under test is the
//! language and the shape only.
//!
//! [`disk`] is a disk that tears, reorders, fills up and loses power, from a seed. [`tier`] is the conformance
//! suite of tiers, a right tier in memory, and one that breaks the contract from a seed. [`gate`] stops threads
//! where a test wants them, and never for ever.
//!
//! A development dependency: nothing that ships may depend on it. Tests that stand inside the
//! layout crate's own sources cannot use it (they would see two copies of that crate's types);
//! integration tests can.
#![forbid(unsafe_code)]

mod copy;
pub mod disk;
mod error;
pub mod gate;
pub mod generate;
mod image;
mod reference;
pub mod tier;

pub use copy::{NaivePair, NaiveRange, NaiveSelection, execute, naive_copy};
pub use error::TestkitError;
pub use image::{Image, check, check_padding, fill, pattern_byte, poison_byte};
pub use reference::{Place, ReferenceLayout, ReferenceUnit, UNITS_MAX, axes};
