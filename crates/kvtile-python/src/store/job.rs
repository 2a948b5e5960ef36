//! The jobs of a block store.

use kvtile::{
    blocks::BlockKey,
    tiers::block_store::{RowStoreOptions, StoreRows},
};
use pyo3::prelude::*;

use super::PyStoreRows;
use crate::error::python::RequestError;

/// The arguments of a load, or of a store with its options.
pub(super) struct RowJob {
    pub(super) keys: Vec<BlockKey>,
    pub(super) rows: StoreRows,
    pub(super) ids: Vec<usize>,
    pub(super) store: Option<RowStoreOptions>,
}

impl RowJob {
    pub(super) fn load(
        keys: Vec<BlockKey>,
        rows: &Bound<'_, PyStoreRows>,
        ids: Vec<usize>,
    ) -> PyResult<RowJob> {
        let rows = rows.get().rows()?;
        let store = None;
        Ok(RowJob {
            keys,
            rows,
            ids,
            store,
        })
    }

    /// Adds the chain of the blocks, which the shared tier may need: without it, bundles of several
    /// blocks would never become whole.
    pub(super) fn with_options(
        mut self,
        (parents, positions): (Option<Vec<Option<BlockKey>>>, Option<Vec<u32>>),
        tenant: u32,
        needs_chains: bool,
    ) -> PyResult<RowJob> {
        let has_chain = parents.is_some() && positions.is_some();
        if needs_chains && !has_chain && !self.keys.is_empty() {
            return Err(RequestError::new_err(
                "with shared_bundle_blocks above 1, the shared tier needs the chain of each block: give \
                 parents and positions, or open the store with shared_bundle_blocks=1",
            ));
        }
        let options = RowStoreOptions::new()
            .parents(parents.unwrap_or_default())
            .positions(positions.unwrap_or_default());
        self.store = Some(options.tenant(tenant));
        Ok(self)
    }
}
