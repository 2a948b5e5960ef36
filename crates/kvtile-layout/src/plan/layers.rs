//! One plan for each layer, all over the same pairs and nests.

use std::sync::Arc;

use super::{CopyPlan, MapPair, RangePair};

/// Plans that copy one layer each. All share the pairs and nests of one plan and differ in their
/// block maps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayerPlans {
    pub(super) each: CopyPlan,
    pub(super) layers: RangePair,
    pub(super) bytes: u64,
}

impl LayerPlans {
    /// Number of layers, and so of plans.
    #[must_use]
    pub fn layers(&self) -> u64 {
        self.layers.count
    }

    /// Bytes of all plans together.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Number of runs of all plans together.
    #[must_use]
    pub fn runs(&self) -> u64 {
        self.each.runs().saturating_mul(self.layers.count)
    }

    /// The plan of layer `layer`, counted from the first of the range.
    #[must_use]
    pub fn get(&self, layer: u64) -> Option<CopyPlan> {
        if layer >= self.layers.count {
            return None;
        }
        let maps = self.each.maps.iter();
        let maps: Arc<[MapPair]> = maps
            .map(|map| MapPair {
                source: map.source.in_layer(self.layers.source + layer),
                destination: map.destination.in_layer(self.layers.destination + layer),
            })
            .collect();
        Some(CopyPlan {
            maps,
            ..self.each.clone()
        })
    }

    /// The plans, layer by layer.
    pub fn iter(&self) -> impl Iterator<Item = CopyPlan> {
        (0..self.layers.count).filter_map(|layer| self.get(layer))
    }
}
