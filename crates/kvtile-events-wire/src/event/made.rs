//! Events that this program makes itself, whose fields have the right types by construction.

use super::WireEvent;
use crate::pack::WireValue;

/// Consecutive blocks of a chain that were stored.
#[derive(Clone, Debug, PartialEq)]
pub struct WireStored {
    /// The hashes of the blocks: bytes or numbers.
    pub hashes: Vec<WireValue>,
    /// The hash of the block before the first one; `None` where the chain begins.
    pub parent: Option<WireValue>,
    /// The tokens of all blocks in their order; empty where they are not known.
    pub token_ids: Vec<u32>,
    /// Tokens of one block.
    pub block_size: u64,
    /// The kind of memory, such as `CPU`.
    pub medium: String,
    /// The group of layers.
    pub group: Option<u64>,
    /// Fields of the publisher's own, written behind those of vLLM.
    pub further: Vec<(String, WireValue)>,
}

fn named(name: &str, value: WireValue) -> (String, WireValue) {
    (name.to_owned(), value)
}

fn group_of(group: Option<u64>) -> impl Iterator<Item = (String, WireValue)> {
    let group = group.map(|group| named("group_idx", WireValue::Number(group)));
    group.into_iter()
}

impl WireEvent {
    /// Blocks were stored.
    #[must_use]
    pub fn stored(stored: WireStored) -> WireEvent {
        let tokens = stored.token_ids.iter();
        let tokens = tokens.map(|&token| WireValue::Number(u64::from(token)));
        let mut fields = vec![
            named("block_hashes", WireValue::List(stored.hashes)),
            named("parent_block_hash", stored.parent.unwrap_or(WireValue::Nil)),
            named("token_ids", WireValue::List(tokens.collect())),
            named("block_size", WireValue::Number(stored.block_size)),
            named("lora_id", WireValue::Nil),
            named("medium", WireValue::Text(stored.medium)),
            named("lora_name", WireValue::Nil),
        ];
        fields.extend(group_of(stored.group));
        fields.extend(stored.further);
        WireEvent {
            kind: "BlockStored".to_owned(),
            fields,
        }
    }

    /// Blocks were removed from a kind of memory.
    #[must_use]
    pub fn removed(hashes: Vec<WireValue>, medium: &str, group: Option<u64>) -> WireEvent {
        let mut fields = vec![
            named("block_hashes", WireValue::List(hashes)),
            named("medium", WireValue::Text(medium.to_owned())),
        ];
        fields.extend(group_of(group));
        WireEvent {
            kind: "BlockRemoved".to_owned(),
            fields,
        }
    }

    /// The publisher has no block any more, in no memory.
    #[must_use]
    pub fn all_cleared() -> WireEvent {
        WireEvent {
            kind: "AllBlocksCleared".to_owned(),
            fields: Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn made_events_equal_checked_ones() {
        let hashes = || vec![WireValue::Number(7), WireValue::Bytes(vec![1; 16])];
        let tier = || named("tier", WireValue::Text("disk:scratch".to_owned()));
        let stored = WireEvent::stored(WireStored {
            hashes: hashes(),
            parent: Some(WireValue::Number(6)),
            token_ids: vec![1, 2, u32::MAX],
            block_size: 16,
            medium: "DISK".to_owned(),
            group: Some(3),
            further: vec![tier()],
        });
        let removed = WireEvent::removed(hashes(), "CPU", None);
        for event in [stored, removed, WireEvent::all_cleared()] {
            let fields = event.fields.clone();
            let checked = WireEvent::new(event.kind().to_owned(), fields).unwrap();
            assert_eq!(checked, event);
        }
    }
}
