//! The blocks, tokens, layers and heads of a transfer, on each side.

use crate::{
    error::{LayoutError, PlanError},
    shape::AxisRange,
};

/// Tokens of a source block that go to tokens of a destination block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct BlockPair {
    /// Source block.
    pub source_block: u64,
    /// First token in the source block.
    pub source_token: u64,
    /// Destination block.
    pub destination_block: u64,
    /// First token in the destination block.
    pub destination_token: u64,
    /// Number of tokens.
    pub tokens: u64,
}

impl BlockPair {
    /// A whole block of `page_size` tokens.
    #[must_use]
    pub fn whole(source_block: u64, destination_block: u64, page_size: u64) -> BlockPair {
        BlockPair {
            source_block,
            source_token: 0,
            destination_block,
            destination_token: 0,
            tokens: page_size,
        }
    }
}

/// `count` entries of an axis that start at `source` and go to `destination`, as local indices.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RangePair {
    /// First entry in the source.
    pub source: u64,
    /// First entry in the destination.
    pub destination: u64,
    /// Number of entries.
    pub count: u64,
}

impl RangePair {
    /// The same entries on both sides.
    #[must_use]
    pub fn same(start: u64, count: u64) -> RangePair {
        RangePair {
            source: start,
            destination: start,
            count,
        }
    }

    /// The range that two shards of one model share, as local indices; `None` where they share
    /// nothing.
    ///
    /// ```
    /// use kvtile_layout::{AxisRange, RangePair};
    ///
    /// // Rank 1 of 2 (heads 4..8) into the whole model (heads 0..8).
    /// let heads = RangePair::shared(AxisRange::new(4, 4), AxisRange::new(0, 8));
    /// assert_eq!(heads, Some(RangePair { source: 0, destination: 4, count: 4 }));
    /// ```
    #[must_use]
    pub fn shared(source: AxisRange, destination: AxisRange) -> Option<RangePair> {
        let both = source.intersection(destination)?;
        Some(RangePair {
            source: both.start - source.start,
            destination: both.start - destination.start,
            count: both.count,
        })
    }

    /// Checks that both ranges lie inside axes of the given extents.
    pub(super) fn check(
        &self,
        axis: &'static str,
        source_extent: u64,
        destination_extent: u64,
    ) -> Result<(), LayoutError> {
        for (side, start, extent) in [
            ("source", self.source, source_extent),
            ("destination", self.destination, destination_extent),
        ] {
            let end = start.checked_add(self.count);
            if self.count == 0 || end.is_none_or(|end| end > extent) {
                return Err(LayoutError::Plan(PlanError::SelectionRange {
                    side,
                    axis,
                    start,
                    count: self.count,
                    extent,
                }));
            }
        }
        Ok(())
    }
}

/// The settings of a plan, without its blocks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct PlanSettings {
    /// Layers; `None` copies all, which both sides must hold alike.
    pub layers: Option<RangePair>,
    /// Heads; `None` copies all, which both sides must hold alike.
    pub heads: Option<RangePair>,
    /// Sort the runs by the source instead of the destination, for a file as source.
    pub source_order: bool,
    /// Whether a plan of some heads copies planes without heads, of which every rank of tensor
    /// parallelism has all (default no: such a plan is an error).
    pub replicated_planes: bool,
}

impl PlanSettings {
    /// The defaults.
    #[must_use]
    pub fn new() -> PlanSettings {
        PlanSettings::default()
    }

    /// Sets [`layers`](Self::layers).
    #[must_use]
    pub fn layers(mut self, layers: impl Into<Option<RangePair>>) -> PlanSettings {
        self.layers = layers.into();
        self
    }

    /// Sets [`heads`](Self::heads).
    #[must_use]
    pub fn heads(mut self, heads: impl Into<Option<RangePair>>) -> PlanSettings {
        self.heads = heads.into();
        self
    }

    /// Sets [`source_order`](Self::source_order).
    #[must_use]
    pub fn source_order(mut self, source_order: bool) -> PlanSettings {
        self.source_order = source_order;
        self
    }

    /// Sets [`replicated_planes`](Self::replicated_planes).
    #[must_use]
    pub fn replicated_planes(mut self, replicated_planes: bool) -> PlanSettings {
        self.replicated_planes = replicated_planes;
        self
    }
}

/// The selection of a copy. An empty list of pairs is an error. A missing range selects the whole
/// axis, which both sides must hold alike.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selection {
    /// The block pairs.
    pub pairs: Vec<BlockPair>,
    /// Layers; `None` copies all, which both sides must hold alike.
    pub layers: Option<RangePair>,
    /// Heads; `None` copies all, which both sides must hold alike.
    pub heads: Option<RangePair>,
    /// Sort the runs by the source instead of the destination, for a file as source.
    pub source_order: bool,
}

impl Selection {
    /// Whole blocks of `page_size` tokens: source block `i` to destination block `i`.
    ///
    /// # Errors
    /// Lists of different lengths.
    pub fn blocks(
        source: &[u64],
        destination: &[u64],
        page_size: u64,
    ) -> Result<Selection, LayoutError> {
        if source.len() != destination.len() {
            return Err(LayoutError::Plan(PlanError::BlockListsDiffer {
                source_blocks: source.len(),
                destination_blocks: destination.len(),
            }));
        }
        let pairs = source
            .iter()
            .zip(destination)
            .map(|(&source, &destination)| BlockPair::whole(source, destination, page_size))
            .collect();
        Ok(Selection {
            pairs,
            ..Selection::default()
        })
    }

    /// The first `tokens` tokens of a sequence that lies in `source` blocks of
    /// `source_page_size` tokens, into `destination` blocks of `destination_page_size` tokens.
    ///
    /// # Errors
    /// Page sizes of zero; lists too short for the tokens.
    pub fn sequence(
        source: &[u64],
        source_page_size: u64,
        destination: &[u64],
        destination_page_size: u64,
        tokens: u64,
    ) -> Result<Selection, LayoutError> {
        let mut pairs = Vec::new();
        let mut token = 0;
        while token < tokens {
            let place = |blocks: &[u64], page_size: u64| {
                let index = token.checked_div(page_size)?;
                let block = blocks.get(usize::try_from(index).ok()?)?;
                Some((*block, token % page_size))
            };
            let (Some((source_block, source_token)), Some((destination_block, destination_token))) = (
                place(source, source_page_size),
                place(destination, destination_page_size),
            ) else {
                return Err(LayoutError::Plan(PlanError::SequenceTooLong {
                    tokens,
                    source_tokens: source_page_size.saturating_mul(source.len() as u64),
                    destination_tokens: destination_page_size
                        .saturating_mul(destination.len() as u64),
                }));
            };
            let count = (source_page_size - source_token)
                .min(destination_page_size - destination_token)
                .min(tokens - token);
            pairs.push(BlockPair {
                source_block,
                source_token,
                destination_block,
                destination_token,
                tokens: count,
            });
            token += count;
        }
        Ok(Selection {
            pairs,
            ..Selection::default()
        })
    }

    /// The settings: the selection without its block pairs.
    #[must_use]
    pub fn settings(&self) -> PlanSettings {
        PlanSettings {
            layers: self.layers,
            heads: self.heads,
            source_order: self.source_order,
            replicated_planes: false,
        }
    }

    /// The same selection for these layers.
    #[must_use]
    pub fn with_layers(mut self, layers: RangePair) -> Selection {
        self.layers = Some(layers);
        self
    }

    /// The same selection for these heads.
    #[must_use]
    pub fn with_heads(mut self, heads: RangePair) -> Selection {
        self.heads = Some(heads);
        self
    }

    /// The same selection with runs sorted by the source.
    #[must_use]
    pub fn in_source_order(mut self) -> Selection {
        self.source_order = true;
        self
    }
}
