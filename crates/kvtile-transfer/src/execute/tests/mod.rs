//! Kernels, nests and plans against byte-by-byte references, on every level of this machine, with
//! both kinds of stores.
//!
//! | file | what it tests |
//! | --- | --- |
//! | `guarded` | nothing: memory between inaccessible guard pages |
//! | `kernels` | every transpose of every size, edges included |
//! | `nests` | random nests: the chosen kernel, and its copy |
//! | `plans` | random plans between random layouts, on several threads |
//! | `visible` | visibility of streaming stores to other threads |

mod guarded;
mod kernels;
mod nests;
mod plans;
mod visible;

use super::{
    kernel::{LevelKernels, SimdLevel, StoreKind},
    nest::CopyManner,
};

/// Every manner of this machine.
fn manners() -> Vec<CopyManner> {
    let levels = SimdLevel::available().into_iter();
    let manner = |level| {
        [StoreKind::Ordinary, StoreKind::Streaming].map(|stores| CopyManner {
            kernels: LevelKernels::new(level),
            stores,
        })
    };
    levels.flat_map(manner).collect()
}

/// A byte that depends on the offset.
fn pattern(at: usize) -> u8 {
    let mixed = (at as u64 ^ 0x5bd1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mixed.to_le_bytes()[6]
}
