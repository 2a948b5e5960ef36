//! The block pairs of a transfer: borrowed while it runs on the caller's thread, owned while it is
//! queued. Planning, leasing and releasing read the same list.

use std::borrow::Cow;

use kvtile_layout::{
    BlockPair, CopyPlan, CopyPlanner, LayerPlans, LayoutError, PlanError, RangePair,
};

/// The block pairs of a transfer.
pub(crate) enum TransferPairs<'a> {
    /// The same tokens of every block: source block `i` to destination block `i`.
    Blocks {
        source: Cow<'a, [usize]>,
        destination: Cow<'a, [usize]>,
        tokens: RangePair,
    },
    /// Any pairs.
    Selected(Cow<'a, [BlockPair]>),
}

impl<'a> TransferPairs<'a> {
    /// # Errors
    /// Lists of different lengths.
    pub(crate) fn blocks(
        source: &'a [usize],
        destination: &'a [usize],
        tokens: RangePair,
    ) -> Result<TransferPairs<'a>, LayoutError> {
        if source.len() != destination.len() {
            return Err(LayoutError::Plan(PlanError::BlockListsDiffer {
                source_blocks: source.len(),
                destination_blocks: destination.len(),
            }));
        }
        Ok(TransferPairs::Blocks {
            source: source.into(),
            destination: destination.into(),
            tokens,
        })
    }

    /// Converts to owned pairs.
    pub(crate) fn into_owned(self) -> TransferPairs<'static> {
        match self {
            TransferPairs::Blocks {
                source,
                destination,
                tokens,
            } => TransferPairs::Blocks {
                source: source.into_owned().into(),
                destination: destination.into_owned().into(),
                tokens,
            },
            TransferPairs::Selected(pairs) => TransferPairs::Selected(pairs.into_owned().into()),
        }
    }

    pub(crate) fn plan(&self, planner: &mut CopyPlanner) -> Result<CopyPlan, LayoutError> {
        match self {
            TransferPairs::Blocks {
                source,
                destination,
                tokens,
            } => planner.plan(block_pairs(source, destination, *tokens)),
            TransferPairs::Selected(pairs) => planner.plan(pairs.iter().copied()),
        }
    }

    pub(crate) fn plan_layers(&self, planner: &mut CopyPlanner) -> Result<LayerPlans, LayoutError> {
        match self {
            TransferPairs::Blocks {
                source,
                destination,
                tokens,
            } => planner.plan_layers(block_pairs(source, destination, *tokens)),
            TransferPairs::Selected(pairs) => planner.plan_layers(pairs.iter().copied()),
        }
    }

    /// The source blocks, including repetitions.
    pub(crate) fn sources(&self) -> SideBlockIds<'_> {
        match self {
            TransferPairs::Blocks { source, .. } => SideBlockIds::Listed(source.iter()),
            TransferPairs::Selected(pairs) => SideBlockIds::Sources(pairs.iter()),
        }
    }

    /// The destination blocks, including repetitions.
    pub(crate) fn destinations(&self) -> SideBlockIds<'_> {
        match self {
            TransferPairs::Blocks { destination, .. } => SideBlockIds::Listed(destination.iter()),
            TransferPairs::Selected(pairs) => SideBlockIds::Destinations(pairs.iter()),
        }
    }

    /// All pairs, one by one.
    pub(crate) fn to_vec(&self) -> Vec<BlockPair> {
        match self {
            TransferPairs::Blocks {
                source,
                destination,
                tokens,
            } => block_pairs(source, destination, *tokens).collect(),
            TransferPairs::Selected(pairs) => pairs.to_vec(),
        }
    }

    /// A block that is both source and destination.
    pub(crate) fn common(&self) -> Option<u64> {
        let mut read: Vec<u64> = self.sources().collect();
        read.sort_unstable();
        let both = |block: &u64| read.binary_search(block).is_ok();
        self.destinations().find(both)
    }
}

fn block_pairs(
    source: &[usize],
    destination: &[usize],
    tokens: RangePair,
) -> impl ExactSizeIterator<Item = BlockPair> + Clone {
    let pairs = source.iter().zip(destination);
    pairs.map(move |(&source, &destination)| BlockPair {
        source_block: source as u64,
        source_token: tokens.source,
        destination_block: destination as u64,
        destination_token: tokens.destination,
        tokens: tokens.count,
    })
}

/// The block ids of one side, from any of the lists that contain them.
#[derive(Clone)]
pub(crate) enum SideBlockIds<'a> {
    Listed(std::slice::Iter<'a, usize>),
    Leased(std::slice::Iter<'a, u64>),
    Sources(std::slice::Iter<'a, BlockPair>),
    Destinations(std::slice::Iter<'a, BlockPair>),
}

impl Iterator for SideBlockIds<'_> {
    type Item = u64;

    #[inline]
    fn next(&mut self) -> Option<u64> {
        match self {
            SideBlockIds::Listed(ids) => ids.next().map(|&id| id as u64),
            SideBlockIds::Leased(ids) => ids.next().copied(),
            SideBlockIds::Sources(pairs) => pairs.next().map(|pair| pair.source_block),
            SideBlockIds::Destinations(pairs) => pairs.next().map(|pair| pair.destination_block),
        }
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        match self {
            SideBlockIds::Listed(ids) => ids.size_hint(),
            SideBlockIds::Leased(ids) => ids.size_hint(),
            SideBlockIds::Sources(pairs) | SideBlockIds::Destinations(pairs) => pairs.size_hint(),
        }
    }
}

impl ExactSizeIterator for SideBlockIds<'_> {}
