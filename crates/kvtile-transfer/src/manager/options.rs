//! What a transfer may be told beside its blocks.

use kvtile_layout::RangePair;

/// Settings of one transfer. The default moves whole blocks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TransferOptions {
    pub(super) layers: Option<RangePair>,
    pub(super) tokens: Option<RangePair>,
    pub(super) heads: Option<RangePair>,
    pub(super) verify: bool,
    pub(super) layer_by_layer: Option<bool>,
    pub(super) read_next: bool,
}

impl TransferOptions {
    /// Whole blocks, unverified.
    #[must_use]
    pub fn new() -> TransferOptions {
        TransferOptions::default()
    }

    /// Only these layers, counted in each layout. The transfer leases no others, so that transfers of different
    /// layers of a block may run at once.
    #[must_use]
    pub fn layers(mut self, layers: RangePair) -> TransferOptions {
        self.layers = Some(layers);
        self
    }

    /// Only these tokens of every block.
    #[must_use]
    pub fn tokens(mut self, tokens: RangePair) -> TransferOptions {
        self.tokens = Some(tokens);
        self
    }

    /// Only these heads, counted in each layout: source heads 0..4 may land on heads 4..8.
    #[must_use]
    pub fn heads(mut self, heads: RangePair) -> TransferOptions {
        self.heads = Some(heads);
        self
    }

    /// Compare destination with source when the copy is done.
    #[must_use]
    pub fn verify(mut self, verify: bool) -> TransferOptions {
        self.verify = verify;
        self
    }

    /// Say that the destination is read as soon as it is there, so that it is left in the caches
    /// where it fits. Without it, what is larger than a core's own cache goes straight to memory,
    /// unless both layouts together fit the last level: faster, and the caches keep what they have.
    #[must_use]
    pub fn read_next(mut self, read_next: bool) -> TransferOptions {
        self.read_next = read_next;
        self
    }

    /// Finish one layer after the other, so that
    /// [`wait_layer`](crate::TransferCompletion::wait_layer) returns early. By default this is so
    /// where it costs nothing: the destination is memory with a region for each layer, as the
    /// caches of engines are, and so is the source where it is in files.
    #[must_use]
    pub fn layer_by_layer(mut self, layer_by_layer: bool) -> TransferOptions {
        self.layer_by_layer = Some(layer_by_layer);
        self
    }
}
