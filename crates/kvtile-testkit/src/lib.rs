//! Naive reference models and generators for the tests of the other crates.
//!
//! Everything here is slow and simple on purpose. A layout is a list with the offset of every unit,
//! created by walking its word with a cursor; a copy moves one unit after the other. Nothing here
//! knows digits, strides, runs or plans. So the code under test and the reference share only the
//! language and the shape.
//!
//! [`disk`] is a simulated disk that tears, reorders, runs full and loses power, by a seed.
//! [`tier`] is the conformance suite of tiers, with a correct tier in memory and one that breaks
//! the contract by a seed. [`shared`] is the same for stores that many caches share. [`gate`] stops threads at a point that the test chooses, with a time
//! limit.
//!
//! This is a development dependency: nothing that ships may depend on it. `kvtile-gpu-check`, a test as a program, does. Unit tests inside the
//! layout crate cannot use it, because they would see two copies of that crate's types; integration
//! tests can.
#![forbid(unsafe_code)]

mod copy;
pub mod disk;
mod error;
pub mod gate;
pub mod generate;
mod image;
mod reference;
pub mod shared;
pub mod tier;

pub use copy::{NaivePair, NaiveRange, NaiveSelection, execute, naive_copy};
pub use error::TestkitError;
pub use image::{Image, check, check_padding, fill, pattern_byte, poison_byte};
pub use reference::{ReferenceLayout, ReferenceUnit, UNITS_MAX, UnitPlace, axes};
