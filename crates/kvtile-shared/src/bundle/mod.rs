//! Bundles: consecutive blocks of one chain in one value, with an envelope and a name.
//!
//! A bundle has `G` blocks and begins at a position that is a multiple of `G`. Its name contains the
//! key of its last block, and this key commits to all blocks before it. So equal names have equal
//! content, and no index is needed. The tail of a chain, which fills no bundle, is not stored.

mod form;
mod header;
mod name;
mod packing;
mod read;
mod sink;

pub use form::{BundleForm, InvalidPartName, PartName};
pub(crate) use header::header_bytes;
pub use header::{BUNDLE_BLOCKS_MAX, BundleHeader, HeaderFault, HeldBlock};
pub use name::{BundleName, ParsedBundleName, parse_bundle_name};
pub(crate) use name::{
    ROOT, announcement_name, announcements_of, manifest_name, parse_announcement_name,
    parse_manifest_name, root_of,
};
pub(crate) use packing::BlockPacker;
pub use packing::{BundlePacking, PackedUnits};
pub(crate) use read::read_bundle;
pub use sink::BundleFault;
pub(crate) use sink::{BundleReader, BundleTarget, WantedBytes};
