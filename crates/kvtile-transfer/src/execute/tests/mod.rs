//! Kernels, nests and plans against references that move one byte after the other, on every level
//! of this machine, with both kinds of stores.
//!
//! | file | what it tests |
//! | --- | --- |
//! | `guarded` | nothing: memory with a page on both sides that nobody may touch |
//! | `kernels` | every transpose of every size, edges included |
//! | `nests` | random nests: which kernel, and what it does |
//! | `plans` | random plans between random layouts, on several threads |
//! | `visible` | what was streamed is there when another thread learns of it |

mod guarded;
mod kernels;
mod nests;
mod plans;
mod visible;

use super::{
    kernel::{Kernels, Level, Stores},
    nest::Manner,
};

/// Every way in which this machine can copy.
fn manners() -> Vec<Manner> {
    let levels = Level::available().into_iter();
    let manner = |level| {
        [Stores::Ordinary, Stores::Streaming].map(|stores| Manner {
            kernels: Kernels::new(level),
            stores,
        })
    };
    levels.flat_map(manner).collect()
}

/// A byte that differs for every place.
fn pattern(at: usize) -> u8 {
    let mixed = (at as u64 ^ 0x5bd1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mixed.to_le_bytes()[6]
}
