//! The frames between the node daemon and its clients, over one stream socket.
//!
//! ```text
//! bytes  0..4   length of the payload, at most FRAME_BYTES_MAX
//! bytes  4..6   kind (FrameKind)
//! bytes  6..8   number of the group
//! bytes  8..16  number of the request; its reply has the same number
//! bytes 16..    payload
//! ```
//!
//! All numbers are little-endian. Lists begin with their length as a `u32`, keys are 16 bytes each.
//! Settings, counters and names are JSON inside a frame; this crate does not read it. It knows
//! neither sockets nor caches: it makes bytes of frames and frames of bytes, and refuses every byte
//! that is not part of a frame of this version.

#![forbid(unsafe_code)]

mod cursor;
mod error;
mod events;
mod frame;
mod load;
mod lookup;
mod stops;
mod store;

pub use error::{FrameError, ReadFrameError};
pub use events::{EVENTS_MAX, EventChange, EventRecord, EventsFrame};
pub use frame::{FrameHeader, FrameKind, NumberFrame, RefusalCode, RefusalFrame, read_frame};
pub use load::{HoldFrame, LoadFrame, ReleaseFrame, StopFrame, TierRun};
pub use lookup::{FoundFrame, LookupFrame, NarrowFrame, PrefetchFrame, SplitFrame};
pub use stops::{FoundGroup, FoundStopFrame, StopListFrame, StopLookupFrame, StopNoteFrame};
pub use store::{StoreFrame, StoredFrame};

/// Version of the protocol. Both sides must have the same.
pub const WIRE_VERSION: u32 = 4;

/// Bytes of a frame before its payload.
pub const HEADER_BYTES: usize = 16;

/// The largest payload.
pub const FRAME_BYTES_MAX: usize = 8 << 20;

/// The largest number of keys in a frame.
pub const KEYS_MAX: usize = 1 << 18;

/// The largest number of block numbers in a frame.
pub const BLOCKS_MAX: usize = 1 << 18;

/// The largest number of runs of blocks in a frame.
pub const RUNS_MAX: usize = 1 << 16;

/// The largest number of groups of a client.
pub const GROUPS_MAX: usize = 64;

/// The largest number of stops in a frame.
pub const STOPS_MAX: usize = 1 << 18;

/// The longest text in a frame, in bytes; longer texts are cut.
pub const TEXT_BYTES_MAX: usize = 4096;

/// A time or a number of tokens that is not limited, or not given.
pub const NO_TIME: u64 = u64::MAX;

/// The bytes of a block key.
pub type KeyBytes = [u8; 16];
