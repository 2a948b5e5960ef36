//! Plans that have no program.

use thiserror::Error;

/// A plan that does not fit the regions it is lowered for.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum LowerError {
    /// A plan with a region that the caller did not give.
    #[error("the plan has region {region} of its {side}, of which {regions} regions are given")]
    NoRegion {
        /// `source` or `destination`.
        side: &'static str,
        /// The region.
        region: u64,
        /// Regions of the side.
        regions: usize,
    },
    /// A plan that reaches past the end of a region.
    #[error(
        "the plan reaches byte {end} of region {region} of its {side}, which has {bytes} bytes"
    )]
    OutsideRegion {
        /// `source` or `destination`.
        side: &'static str,
        /// The region.
        region: u64,
        /// The byte behind the last one.
        end: u64,
        /// Bytes of the region.
        bytes: u64,
    },
    /// A plan with bytes that a packed side does not have side by side: it was packed for another part.
    #[error("the packed {side} does not have the bytes from {offset} of region {region}")]
    NotPacked {
        /// `source` or `destination`.
        side: &'static str,
        /// The region.
        region: u64,
        /// The offset in the region.
        offset: u64,
    },
    /// Loops over regions with more combinations than a table holds.
    #[error("{combinations} combinations of loops over regions; a table holds {max}")]
    TableTooLong {
        /// Combinations.
        combinations: u64,
        /// The most that a table holds.
        max: u64,
    },
}
