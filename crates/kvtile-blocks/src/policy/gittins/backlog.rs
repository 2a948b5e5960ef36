//! A queue of events that the policy has not learned from yet: visits and insertions, in order.
//! Appending costs some nanoseconds a block, and the time of learning changes no later decision.
//!
//! Blocks with consecutive ascending or descending ids are stored as one piece; as a rule they were
//! allocated together.

use super::{
    super::{Insertion, Visit, column::NONE},
    runs::RunLabel,
    said::said,
};
use crate::{BlockId, id_run::IdRun};

/// The maximum number of queued events.
const EVENTS_MAX: usize = 4_096;

/// The maximum number of queued pieces.
const PIECES_MAX: usize = 8_192;

/// The maximum number of queued stored blocks: learning from that many takes some three
/// milliseconds.
const STORED_MAX: usize = 65_536;

/// The kind of an event.
#[derive(Clone, Copy, Debug)]
pub(super) enum BacklogEventKind {
    /// A request found the blocks.
    Visited {
        /// Whether the last block is the partial tail of the request.
        partial_tail: bool,
    },
    /// The blocks were stored.
    Stored {
        /// The parent of the first block.
        parent: Option<u32>,
        /// Whether the last block is the partial tail of the request.
        partial_tail: bool,
    },
}

#[derive(Clone, Copy, Debug)]
pub(super) struct BacklogEvent {
    pub(super) what: BacklogEventKind,
    /// The caller's hints for the blocks.
    pub(super) said: RunLabel,
    pieces: u32,
}

/// Events in order.
#[derive(Clone, Debug, Default)]
pub(super) struct Backlog {
    events: Vec<BacklogEvent>,
    pieces: Vec<IdRun>,
    stored: usize,
}

impl Backlog {
    pub(super) fn is_empty(&self) -> bool {
        self.events.is_empty()
    }

    /// Whether there is room for a visit of `blocks` blocks, even if each is a piece of its own.
    pub(super) fn has_room(&self, blocks: usize) -> bool {
        self.events.len() < EVENTS_MAX && self.pieces.len() + blocks <= PIECES_MAX
    }

    /// Whether there is room for an insertion of `blocks` blocks.
    pub(super) fn has_room_to_store(&self, blocks: usize) -> bool {
        self.has_room(blocks) && self.stored + blocks <= STORED_MAX
    }

    pub(super) fn visited(&mut self, visit: &Visit<'_>) {
        let what = BacklogEventKind::Visited {
            partial_tail: visit.hints.partial_tail && !visit.continues,
        };
        self.add(what, said(&visit.hints), visit.blocks);
    }

    pub(super) fn stored(&mut self, insertion: &Insertion<'_>) {
        let parent = insertion.parent.map(|parent| parent.0);
        self.stored += insertion.blocks.len();
        let what = BacklogEventKind::Stored {
            parent,
            partial_tail: insertion.hints.partial_tail,
        };
        self.add(what, said(&insertion.hints), insertion.blocks);
    }

    fn add(&mut self, what: BacklogEventKind, said: RunLabel, blocks: &[BlockId]) {
        let before = self.pieces.len();
        self.pieces.extend(IdRun::split(blocks));
        self.events.push(BacklogEvent {
            what,
            said,
            pieces: u32::try_from(self.pieces.len() - before).unwrap_or(NONE),
        });
    }

    /// Passes each event with its blocks to `learn`, and removes it.
    pub(super) fn drain(
        &mut self,
        blocks: &mut Vec<BlockId>,
        mut learn: impl FnMut(&BacklogEvent, &[BlockId]),
    ) {
        let mut pieces = self.pieces.drain(..);
        for event in self.events.drain(..) {
            blocks.clear();
            for piece in pieces.by_ref().take(event.pieces as usize) {
                piece.append_to(blocks);
            }
            learn(&event, blocks);
        }
        self.stored = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Tick, policy::EvictionHints};

    #[test]
    fn events_come_back_in_their_order_with_their_blocks() {
        let lists: [&[u32]; 7] = [
            &[],
            &[7],
            &[3, 4, 5, 9, 8, 7, 7, 0, 1, 0],
            &[1, 0, 1, 2],
            &[0, 1],
            &[4_294_967_294, 4_294_967_293, 0],
            &[5, 3, 1, 2, 3, 2, 1],
        ];
        let mut backlog = Backlog::default();
        for (number, list) in (0_u8..).zip(lists) {
            let blocks: Vec<BlockId> = list.iter().copied().map(BlockId).collect();
            let hints = EvictionHints {
                priority: i8::try_from(number % 4).unwrap(),
                partial_tail: number > 3,
                ..EvictionHints::default()
            };
            let now = Tick(0);
            match number % 2 {
                0 => backlog.visited(&Visit {
                    blocks: &blocks,
                    continues: number == 6,
                    hints,
                    now,
                }),
                _ => backlog.stored(&Insertion {
                    parent: (number > 1).then_some(BlockId(9)),
                    blocks: &blocks,
                    keys: &[],
                    hints,
                    now,
                }),
            }
        }
        let mut seen = 0_u8;
        backlog.drain(&mut Vec::new(), |event, blocks| {
            let expected = lists[usize::from(seen)].iter().copied().map(BlockId);
            assert!(
                expected.eq(blocks.iter().copied()),
                "list {seen}: {blocks:?}"
            );
            assert_eq!(event.said.priority.unsigned_abs(), seen % 4);
            match event.what {
                BacklogEventKind::Visited { partial_tail } => {
                    assert_eq!((seen % 2, partial_tail), (0, seen == 4));
                }
                BacklogEventKind::Stored {
                    parent,
                    partial_tail,
                } => {
                    assert_eq!((seen % 2, parent), (1, (seen > 1).then_some(9)));
                    assert_eq!(partial_tail, seen > 3);
                }
            }
            seen += 1;
        });
        assert_eq!(usize::from(seen), lists.len());
        assert!(backlog.is_empty() && backlog.has_room(PIECES_MAX));
        assert!(!backlog.has_room(PIECES_MAX + 1) && !backlog.has_room_to_store(PIECES_MAX + 1));
    }
}
