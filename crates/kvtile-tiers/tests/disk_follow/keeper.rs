//! The caches of these tests are in this process.

use kvtile_transfer::{HasLayout, PhysicalLayout, PhysicalLayoutBuilder};

pub(crate) use kvtile_tiers::cache::Cache as TestCache;

/// Builds the engine's layout, in memory of this process.
pub(crate) fn engine(layout: PhysicalLayoutBuilder<HasLayout>) -> PhysicalLayout {
    layout.allocate_system().build().unwrap()
}
