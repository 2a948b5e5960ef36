//! An interpreter of PTX text for tests of kernels without a GPU.
//!
//! ```text
//! text ──PtxModule::parse──► kernels: instructions with their registers resolved
//!                               │ PtxModule::launch(PtxLaunch, &mut dyn PtxMemory)
//!                               ▼
//!        block after block, thread after thread, each up to the next barrier
//!                               │
//!                               ▼
//!        PtxReport: the bytes read and written, and counts; or a PtxFault with its line and thread
//! ```
//!
//! It runs the text that ships, and faults where a device would be silently wrong: an access outside the memory, a
//! misaligned one, a register or a byte of shared memory that nothing has written, two threads that use one byte of
//! shared memory without a barrier between them, a barrier that ended threads never reach, a loop without end.
//!
//! Between barriers it runs one thread after the other, so it does not know instructions in which the threads of a
//! warp cooperate. It knows integers alone. The counts model coalescing: the n-th execution of an instruction by the
//! lanes of a warp is one request. They were not compared with hardware.
//!
//! Only tests depend on this crate, and `kvtile-gpu-check`, which prints the counts beside measured times.
#![forbid(unsafe_code)]

mod counts;
mod decode;
mod error;
mod evaluate;
mod instruction;
mod launch;
mod memory;
mod module;
mod shared;
mod thread;
mod tokens;
mod variables;

pub use counts::{PtxAccessCounts, PtxCounts, PtxSharedCounts};
pub use error::{PtxFault, PtxFaultKind, PtxLaunchError, PtxTextError};
pub use launch::{PtxLaunch, PtxReport};
pub use memory::{PtxMemory, PtxRanges};
pub use module::{PtxKernel, PtxModule, TEXT_BYTES_MAX};
