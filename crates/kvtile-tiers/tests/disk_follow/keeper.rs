//! The caches of these tests are in this process.

pub(crate) use kvtile_tiers::cache::Cache as TestCache;
