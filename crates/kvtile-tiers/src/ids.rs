//! Checks of the block ids of a load or a store.

use std::collections::HashSet;

use crate::error::{RequestError, TierError};

/// The longest list of ids that is checked with a hash set; for longer ones a bitmap over all
/// blocks of the layout is cheaper.
const SET_IDS_MAX: usize = 64;

/// Refuses ids out of range and duplicate ids.
pub(crate) fn check_ids(blocks: &[usize], count: u64) -> Result<(), TierError> {
    let outside = blocks.iter().find(|block| **block as u64 >= count);
    if let Some(&block) = outside {
        return Err(TierError::Request(RequestError::EngineBlockOutOfRange {
            block,
            blocks: count,
        }));
    }
    let twice = if blocks.len() <= SET_IDS_MAX {
        let mut seen = HashSet::with_capacity(blocks.len());
        blocks.iter().find(|block| !seen.insert(**block))
    } else {
        let words = blocks.iter().max().map_or(0, |last| last / 64 + 1);
        let mut seen = vec![0_u64; words];
        blocks.iter().find(|block| {
            let bit = 1_u64 << (*block % 64);
            seen.get_mut(*block / 64).is_some_and(|word| {
                let there = *word & bit != 0;
                *word |= bit;
                there
            })
        })
    };
    match twice {
        Some(&block) => Err(TierError::Request(RequestError::EngineBlockTwice { block })),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_outside_and_ids_twice_are_found_in_short_and_long_lists() {
        for length in [1, 2, 63, 64, 65, 66, 1000] {
            let ids: Vec<usize> = (0..length).rev().collect();
            assert!(check_ids(&ids, length as u64).is_ok());
            let outside = check_ids(&ids, length as u64 - 1);
            assert!(matches!(
                outside,
                Err(TierError::Request(RequestError::EngineBlockOutOfRange { block, .. })) if block == length - 1
            ));
            for at in [0, length / 2, length - 1] {
                let twice = [&ids[..], &[at]].concat();
                let error = check_ids(&twice, length as u64);
                assert!(
                    matches!(error, Err(TierError::Request(RequestError::EngineBlockTwice { block })) if block == at),
                    "{length} {at}: {error:?}"
                );
            }
        }
        assert!(check_ids(&[], 0).is_ok());
    }
}
