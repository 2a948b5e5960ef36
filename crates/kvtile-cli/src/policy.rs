//! Eviction policies by their names.

use kvtile::blocks::policy::PolicyKind;

/// An eviction policy by its name.
pub(crate) fn parse(name: &str) -> Result<PolicyKind, String> {
    let parsed = name.trim().parse();
    parsed.map_err(|_| "no such policy; give gittins, lru, arc or s3-fifo".to_owned())
}
