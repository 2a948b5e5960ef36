//! Reads every bundle and compares its checksums. This needs no model: the name and the header state
//! everything that the checksums depend on.

use std::collections::BTreeMap;

use kvtile_blocks::BlockKey;

use super::{SurveySettings, each_bundle, read_manifests, remove_all};
use crate::{
    bundle::{
        BundleFault, BundleForm, BundleReader, BundleTarget, HeaderFault, ParsedBundleName,
        PartName, WantedBytes, header_bytes,
    },
    manifest::StoreManifestError,
    store::{Deadline, ListedValue, SharedStore, SharedStoreError, StoreErrorKind, ValueName},
};

/// Failed reads in a row after which the store itself has failed.
const FAILURES_MAX: u32 = 3;

/// A bundle that a cache would not use, or that could not be read.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct UnfitBundle {
    /// Its name.
    pub name: ValueName,
    /// Its bytes, as the store lists them.
    pub bytes: u64,
    /// The kind of problem, as the counters of a tier name it: `damaged`, `short`, `other_identity` or
    /// `read_failed`.
    pub kind: &'static str,
    /// The problem.
    pub problem: String,
    /// Whether it was removed.
    pub is_removed: bool,
}

/// The outcome of a verification.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct StoreVerification {
    /// Bundles that are whole.
    pub whole: u64,
    /// Bytes of these.
    pub whole_bytes: u64,
    /// Bundles that were removed or expired since they were listed.
    pub absent: u64,
    /// Other values below the prefix, which are not read.
    pub foreign: u64,
    /// The other bundles.
    pub unfit: Vec<UnfitBundle>,
    /// Manifests that cannot be used, by the fingerprint of their identity. They are for people: no bundle is worse for it.
    pub unfit_manifests: BTreeMap<String, StoreManifestError>,
}

impl StoreVerification {
    /// The number of unfit bundles by kind of problem.
    #[must_use]
    pub fn kinds(&self) -> BTreeMap<&'static str, u64> {
        let mut kinds = BTreeMap::new();
        for bundle in &self.unfit {
            *kinds.entry(bundle.kind).or_default() += 1;
        }
        kinds
    }
}

/// Reads every bundle below the prefix, one after the other, and compares all its checksums. `removes`
/// removes those that are damaged or too short: a cache does the same when it reads one. `progress` is
/// called after each bundle with the number so far.
///
/// # Errors
/// An error of a listing or of a removal; three reads in a row that fail.
pub fn verify(
    store: &dyn SharedStore,
    settings: &SurveySettings,
    removes: bool,
    mut progress: impl FnMut(u64),
) -> Result<StoreVerification, SharedStoreError> {
    let mut check = StoreVerification::default();
    let mut failures = 0;
    let mut seen = 0;
    let other = each_bundle(store, settings, |value, name| {
        seen += 1;
        let by = Deadline::within(settings.call_within);
        match read(store, &value, &name, by) {
            Ok(BundleState::Whole) => {
                failures = 0;
                check.whole += 1;
                check.whole_bytes = check.whole_bytes.saturating_add(value.bytes);
            }
            Ok(BundleState::Absent) => check.absent += 1,
            Ok(BundleState::Unfit(fault)) => {
                failures = 0;
                let kind = kind_of(fault);
                let is_removed = removes && kind != OTHER;
                if is_removed {
                    remove_all(store, settings, std::slice::from_ref(&value.name))?;
                }
                check.unfit.push(UnfitBundle {
                    name: value.name,
                    bytes: value.bytes,
                    kind,
                    problem: fault.to_string(),
                    is_removed,
                });
            }
            Err(error) => {
                failures += 1;
                let is_over = error.kind() == StoreErrorKind::Configuration;
                if is_over || failures >= FAILURES_MAX {
                    return Err(error);
                }
                check.unfit.push(UnfitBundle {
                    name: value.name,
                    bytes: value.bytes,
                    kind: "read_failed",
                    problem: error.to_string(),
                    is_removed: false,
                });
            }
        }
        progress(seen);
        Ok(())
    })?;
    check.foreign = other.foreign;
    for (identity, manifest) in read_manifests(store, settings, &other.manifests) {
        if let Err(problem) = manifest {
            check.unfit_manifests.insert(identity, problem);
        }
    }
    Ok(check)
}

/// The kind of values of another identity or version, which stay.
const OTHER: &str = "other_identity";

fn kind_of(fault: BundleFault) -> &'static str {
    match fault {
        BundleFault::Short | BundleFault::Long | BundleFault::Header(HeaderFault::Short) => "short",
        BundleFault::Header(HeaderFault::Seal)
        | BundleFault::Checksum
        | BundleFault::Packing
        | BundleFault::OtherBlock
        | BundleFault::OtherBundle => "damaged",
        BundleFault::Header(_) => OTHER,
    }
}

enum BundleState {
    Whole,
    Absent,
    Unfit(BundleFault),
}

fn read(
    store: &dyn SharedStore,
    value: &ListedValue,
    name: &ParsedBundleName,
    by: Deadline,
) -> Result<BundleState, SharedStoreError> {
    let Some((form, last)) = form_of(value, name) else {
        return Ok(BundleState::Unfit(BundleFault::Short));
    };
    let target = WholeBundle {
        last: form.blocks.saturating_sub(1),
    };
    let mut reader = BundleReader::new(&form, last, &target).of_any_size(BLOCK_BYTES_MAX);
    if !store.read(&value.name, &mut reader, by)? {
        return Ok(BundleState::Absent);
    }
    Ok(match reader.end() {
        Ok(()) => BundleState::Whole,
        Err(fault) => BundleState::Unfit(fault),
    })
}

/// The most bytes of a block. The header states how many a block has, and a compressed one needs memory.
const BLOCK_BYTES_MAX: u64 = 1 << 30;

/// The form that the name of a value states, whose header states the bytes of a block, and the key of its last block;
/// `None` if the value is shorter than a header.
fn form_of(value: &ListedValue, name: &ParsedBundleName) -> Option<(BundleForm, BlockKey)> {
    if value.bytes <= header_bytes(name.blocks) as u64 {
        return None;
    }
    let form = BundleForm {
        identity: name.identity.parse().ok()?,
        layout: name.layout.parse().ok()?,
        part: PartName::new(name.part.as_str()).ok()?,
        block_bytes: 1,
        blocks: name.blocks,
    };
    Some((form, name.last))
}

/// Takes all blocks and keeps none.
struct WholeBundle {
    last: u32,
}

impl BundleTarget for WholeBundle {
    fn first_wanted(&self) -> Option<u32> {
        Some(0)
    }

    fn next_wanted(&self, from: u32) -> Option<u32> {
        (from <= self.last).then_some(from)
    }

    fn last_wanted(&self) -> Option<u32> {
        Some(self.last)
    }

    fn wants(&self, _index: u32, _key: &BlockKey) -> WantedBytes {
        WantedBytes::Wanted
    }

    fn take(&self, _index: u32, _offset: u64, _bytes: &[u8]) {}

    fn verified(&self, _index: u32, _checksum: Option<u64>) {}
}
