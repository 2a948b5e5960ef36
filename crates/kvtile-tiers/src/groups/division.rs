//! How groups divide memory.

use kvtile_layout::GroupRule;

use super::shared::GroupFacts;
use crate::{
    disk::share_weight,
    error::{SettingsError, TierError},
    opening,
};

/// Tokens of the typical request by which groups without shares divide memory.
const TYPICAL_TOKENS: u64 = 8192;

/// Stops of the typical request.
const TYPICAL_STOPS: u64 = 2;

/// What decides a group's part of memory.
#[derive(Clone, Copy, Debug)]
pub(crate) struct GroupPart {
    /// Bytes of a page in memory.
    pub(crate) page_bytes: u64,
    /// The share of the settings; after [`fill_shares`] there is one.
    pub(crate) share: Option<f64>,
}

/// Bytes of a page in memory.
pub(crate) fn memory_bytes(block_bytes: u64) -> Result<u64, TierError> {
    let aligned = block_bytes.checked_next_multiple_of(opening::ALIGNMENT);
    aligned.ok_or(TierError::Settings(SettingsError::BlockBytes {
        block_bytes,
    }))
}

impl GroupPart {
    fn weight(&self) -> u128 {
        share_weight(self.share.unwrap_or(1.0))
    }
}

/// Gives a share to the groups without one: 1 on average, by the bytes of a typical request.
pub(crate) fn fill_shares(facts: &[GroupFacts], parts: &mut [GroupPart]) {
    let typical = |facts: &GroupFacts, part: &GroupPart| {
        typical_pages(facts).saturating_mul(part.page_bytes) as f64
    };
    let open = facts
        .iter()
        .zip(&*parts)
        .filter(|(_, part)| part.share.is_none());
    let (count, bytes) = open.fold((0.0, 0.0), |(count, bytes), (facts, part)| {
        (count + 1.0, bytes + typical(facts, part))
    });
    for (facts, part) in facts.iter().zip(parts) {
        if part.share.is_none() {
            part.share = Some((typical(facts, part) * count / bytes).clamp(1e-6, 1e6));
        }
    }
}

/// The bytes of each group of so many bytes of host memory. Each group has room for one stop; its share divides the
/// rest.
///
/// # Errors
/// Fewer bytes than one stop of all groups needs.
pub(crate) fn divide_host(
    facts: &[GroupFacts],
    parts: &[GroupPart],
    host_bytes: u64,
) -> Result<Vec<u64>, TierError> {
    let of_a_stop = |(facts, part): (&GroupFacts, &GroupPart)| {
        pages_of_a_stop(facts).saturating_mul(part.page_bytes)
    };
    let needed = facts.iter().zip(parts).map(of_a_stop);
    let needed_bytes = needed.fold(0, u64::saturating_add);
    let Some(rest) = host_bytes.checked_sub(needed_bytes) else {
        return Err(TierError::Settings(SettingsError::GroupHostTooSmall {
            host_bytes,
            needed_bytes,
        }));
    };
    let all: u128 = parts.iter().map(GroupPart::weight).sum();
    let groups = facts.iter().zip(parts);
    Ok(groups
        .map(|group| of_a_stop(group) + part_of(rest, group.1.weight(), all))
        .collect())
}

/// A part of a number of bytes, by weight.
fn part_of(bytes: u64, weight: u128, all: u128) -> u64 {
    let part = u128::from(bytes).saturating_mul(weight) / all.max(1);
    u64::try_from(part).map_or(bytes, |part| part.min(bytes))
}

/// Pages that a stop may need of a group; one for a spine, which grows page by page.
pub(crate) fn pages_of_a_stop(facts: &GroupFacts) -> u64 {
    match facts.rule {
        GroupRule::Full | GroupRule::Stop => 1,
        GroupRule::Window { tokens } => (tokens.get() - 1).div_ceil(facts.page_size.get()).max(1),
        GroupRule::Chunk { tokens } => tokens.get().div_ceil(facts.page_size.get()),
    }
}

fn typical_pages(facts: &GroupFacts) -> u64 {
    match facts.rule {
        GroupRule::Full => TYPICAL_TOKENS.div_ceil(facts.page_size.get()),
        _ => pages_of_a_stop(facts).saturating_mul(TYPICAL_STOPS),
    }
}
