//! The matches and holds of a client: all pins that it has.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use kvtile_tiers::cache::{Match, serving::HostHold};
use parking_lot::Mutex;

/// A match, from its block `first` on.
struct PinnedMatch {
    found: Match,
    /// Index of its first block in the match as it was found.
    first: usize,
    since: Instant,
}

/// Blocks that the client copies.
struct PinnedHold {
    held: HostHold,
    since: Instant,
}

#[derive(Default)]
struct Pins {
    matches: HashMap<u64, PinnedMatch>,
    holds: HashMap<u64, PinnedHold>,
    is_ended: bool,
}

/// The matches and holds of a client.
pub(super) struct SessionPins {
    pins: Mutex<Pins>,
    /// The largest number of each.
    most: usize,
}

impl SessionPins {
    pub(super) fn new(most: usize) -> SessionPins {
        SessionPins {
            pins: Mutex::default(),
            most,
        }
    }

    /// Whether there is room for another match.
    pub(super) fn has_room(&self) -> bool {
        self.pins.lock().matches.len() < self.most
    }

    /// Adds a match. A match that replaces another one of the same number is the client's mistake,
    /// and releases the older one.
    pub(super) fn add_match(&self, number: u64, found: Match) {
        let mut pins = self.pins.lock();
        if !pins.is_ended && found.blocks() > 0 {
            let pinned = PinnedMatch {
                found,
                first: 0,
                since: Instant::now(),
            };
            let older = pins.matches.insert(number, pinned);
            drop(pins);
            drop(older);
        }
    }

    /// Keeps `blocks` blocks of a match from block `first` on. A match that was released or taken back does not come back.
    pub(super) fn narrow(&self, number: u64, first: usize, blocks: usize) {
        let taken = self.pins.lock().matches.remove(&number);
        let Some(mut pinned) = taken.filter(|_| blocks > 0) else {
            return;
        };
        pinned.found = pinned
            .found
            .skip(first.saturating_sub(pinned.first))
            .truncate(blocks);
        pinned.first = first.max(pinned.first);
        let mut pins = self.pins.lock();
        if !pins.is_ended {
            pins.matches.insert(number, pinned);
        }
    }

    /// Takes `blocks` blocks from block `first` on out of a match, and drops those before them;
    /// `None` if the match does not have them.
    pub(super) fn take_piece(&self, number: u64, first: usize, blocks: usize) -> Option<Match> {
        let mut pinned = self.pins.lock().matches.remove(&number)?;
        let skipped = first.checked_sub(pinned.first)?;
        let mut piece = pinned.found.skip(skipped);
        if piece.blocks() < blocks {
            return None;
        }
        pinned.found = piece.split_off(blocks);
        pinned.first = first + blocks;
        if pinned.found.blocks() > 0 {
            let mut pins = self.pins.lock();
            if !pins.is_ended {
                pins.matches.insert(number, pinned);
            }
        }
        Some(piece)
    }

    /// Adds a hold; false if the session has ended.
    pub(super) fn add_hold(&self, number: u64, held: HostHold) -> bool {
        let mut pins = self.pins.lock();
        if pins.is_ended {
            return false;
        }
        let since = Instant::now();
        pins.holds.insert(number, PinnedHold { held, since });
        true
    }

    /// Releases a hold, and returns the number of its blocks; `None` if there is none.
    pub(super) fn release(&self, number: u64) -> Option<usize> {
        let hold = self.pins.lock().holds.remove(&number)?;
        Some(hold.held.ids().len())
    }

    /// Renews the lease of a hold; false if it was released or taken back.
    pub(super) fn renew(&self, number: u64) -> bool {
        let mut pins = self.pins.lock();
        match pins.holds.get_mut(&number) {
            Some(hold) => {
                hold.since = Instant::now();
                true
            }
            None => false,
        }
    }

    /// Drops the holds and the matches whose leases have ended, and returns their numbers.
    pub(super) fn take_back(&self, lease: Duration, match_lease: Duration) -> (usize, usize) {
        let mut pins = self.pins.lock();
        let holds: Vec<PinnedHold> = pins
            .holds
            .extract_if(|_, hold| hold.since.elapsed() > lease)
            .map(|(_, hold)| hold)
            .collect();
        let matches: Vec<PinnedMatch> = pins
            .matches
            .extract_if(|_, found| found.since.elapsed() > match_lease)
            .map(|(_, found)| found)
            .collect();
        drop(pins);
        (holds.len(), matches.len())
    }

    /// Number of matches and of holds.
    pub(super) fn count(&self) -> (usize, usize) {
        let pins = self.pins.lock();
        (pins.matches.len(), pins.holds.len())
    }

    /// Drops everything; later additions are dropped at once.
    pub(super) fn end(&self) {
        let mut pins = self.pins.lock();
        pins.is_ended = true;
        let dropped = (
            std::mem::take(&mut pins.matches),
            std::mem::take(&mut pins.holds),
        );
        drop(pins);
        drop(dropped);
    }
}
