//! A copy between two layouts that cannot be planned.

use thiserror::Error;

use crate::{
    axis::Axis,
    shape::{AxisRange, PlaneName},
};

/// A copy between two layouts that cannot be planned.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum PlanError {
    /// No block pairs.
    #[error("no blocks are selected; a transfer of nothing is refused, skip it instead")]
    NothingSelected,
    /// Block lists of different lengths.
    #[error(
        "{source_blocks} source blocks and {destination_blocks} destination blocks; \
         each source block needs one destination block"
    )]
    BlockListsDiffer {
        /// Length of the source list.
        source_blocks: usize,
        /// Length of the destination list.
        destination_blocks: usize,
    },
    /// More tokens than the blocks hold.
    #[error(
        "{tokens} tokens; the source blocks hold {source_tokens}, the destination blocks \
         {destination_tokens}"
    )]
    SequenceTooLong {
        /// Requested tokens.
        tokens: u64,
        /// Tokens that the source blocks hold.
        source_tokens: u64,
        /// Tokens that the destination blocks hold.
        destination_tokens: u64,
    },
    /// A block id that the layout does not have.
    #[error("{side} block {block} is outside 0..{num_blocks}")]
    BlockOutOfRange {
        /// `source` or `destination`.
        side: &'static str,
        /// The block id.
        block: u64,
        /// Blocks of the layout.
        num_blocks: u64,
    },
    /// A range of tokens, layers or heads that is empty or leaves its axis.
    #[error("{side} {axis} {start}..+{count} must be at least 1 and inside 0..{extent}")]
    SelectionRange {
        /// `source` or `destination`.
        side: &'static str,
        /// `tokens`, `layers` or `heads`.
        axis: &'static str,
        /// First entry.
        start: u64,
        /// Number of entries.
        count: u64,
        /// Entries of the layout.
        extent: u64,
    },
    /// A destination token that two pairs write.
    #[error("destination block {block} is written twice at token {token}")]
    DuplicateDestination {
        /// The block.
        block: u64,
        /// The first token written twice.
        token: u64,
    },
    /// Shards that hold different ranges, without a selected range.
    #[error(
        "the source holds {axis} {source_range} of {source_total}, the destination \
         {destination_range} of {destination_total}; select the {axis} to copy"
    )]
    ShardsDiffer {
        /// `layers` or `heads`.
        axis: &'static str,
        /// The range of the source.
        source_range: AxisRange,
        /// Entries of the source's whole model.
        source_total: u64,
        /// The range of the destination.
        destination_range: AxisRange,
        /// Entries of the destination's whole model.
        destination_total: u64,
    },
    /// A plane that only the destination has.
    #[error("the source has no plane {plane}; it has {known}")]
    PlaneNotInSource {
        /// The plane.
        plane: PlaneName,
        /// Planes of the source.
        known: String,
    },
    /// A plane that only the source has.
    #[error("the destination has no plane {plane}; it has {known}")]
    PlaneNotInDestination {
        /// The plane.
        plane: PlaneName,
        /// Planes of the destination.
        known: String,
    },
    /// Planes of one name with different properties.
    #[error(
        "{field} of plane {plane}: {source_value} in the source, {destination_value} in the \
         destination; a copy converts nothing"
    )]
    PlanesDiffer {
        /// The plane.
        plane: PlaneName,
        /// The first differing field.
        field: String,
        /// Its value in the source.
        source_value: String,
        /// Its value in the destination.
        destination_value: String,
    },
    /// A token range of a plane that has no token axis.
    #[error(
        "plane {plane} is one piece a page: {tokens} tokens of pages of {source_page_size} and \
         {destination_page_size} cannot be copied, only whole pages of equal size"
    )]
    PlaneNotPerToken {
        /// The plane.
        plane: PlaneName,
        /// Requested tokens.
        tokens: u64,
        /// Page size of the source.
        source_page_size: u64,
        /// Page size of the destination.
        destination_page_size: u64,
    },
    /// A token range that would cut an entry of a plane.
    #[error(
        "plane {plane} has one entry every {every} tokens: {tokens} tokens from token {source_token} \
         to token {destination_token} would cut entries; use multiples of {every}"
    )]
    EntryCut {
        /// The plane.
        plane: PlaneName,
        /// Tokens of an entry.
        every: u64,
        /// Requested tokens.
        tokens: u64,
        /// First token in the source block, modulo the period of the source's layout.
        source_token: u64,
        /// First token in the destination block, modulo the period of the destination's layout.
        destination_token: u64,
    },
    /// A head range of a plane that has no heads.
    #[error("plane {plane} has no heads: {count} heads of it cannot be copied, only all")]
    PlaneNotPerHead {
        /// The plane.
        plane: PlaneName,
        /// Requested heads.
        count: u64,
    },
    /// Moduli of one axis that do not divide each other.
    #[error("no common refinement of {axis}: {first}, {second}")]
    NoCommonRefinement {
        /// The axis.
        axis: Axis,
        /// A modulus.
        first: u64,
        /// Another modulus.
        second: u64,
    },
    /// A destination whose units are not proved disjoint.
    #[error("units of the destination may share bytes, so it cannot be written: {layout}")]
    DestinationOverlaps {
        /// The layout.
        layout: String,
    },
    /// Ranges that cut tiles into too many pieces.
    #[error("the ranges cut plane {plane} into more than {max} pieces; align them to its tiles")]
    TooManyPieces {
        /// The plane.
        plane: PlaneName,
        /// The limit.
        max: usize,
    },
}
