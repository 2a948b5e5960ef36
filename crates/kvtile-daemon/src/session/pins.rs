//! The matches and holds of a client: all pins that it has.

use std::{
    collections::{BTreeMap, HashMap},
    time::{Duration, Instant},
};

use kvtile_tiers::cache::{Match, serving::HostHold};
use parking_lot::Mutex;

/// What names a match or a hold: its group, and the number of its request.
pub(super) type PinName = (u16, u64);

/// A match. Holds take blocks out of it, and those without room in host memory return to it.
struct PinnedMatch {
    /// Its blocks, by the index of the first one of each piece in the match as it was found.
    pieces: BTreeMap<usize, Match>,
    /// Holds in progress that may give blocks back.
    holds: usize,
    since: Instant,
}

impl PinnedMatch {
    fn is_over(&self) -> bool {
        self.pieces.is_empty() && self.holds == 0
    }

    /// Takes the blocks from index `first` on.
    fn split_off(&mut self, first: usize) -> BTreeMap<usize, Match> {
        let mut tail = self.pieces.split_off(&first);
        if let Some((&at, piece)) = self.pieces.iter_mut().next_back() {
            let rest = piece.split_off(first - at);
            if rest.blocks() > 0 {
                tail.insert(first, rest);
            }
            if piece.blocks() == 0 {
                self.pieces.remove(&at);
            }
        }
        tail
    }

    /// Takes `blocks` blocks from index `first` on; `None`, and nothing is taken, if it does not have
    /// them in one piece.
    fn take(&mut self, first: usize, blocks: usize) -> Option<Match> {
        let mut tail = self.split_off(first);
        let piece = tail.remove(&first);
        let taken = match piece {
            Some(mut piece) if piece.blocks() >= blocks => {
                let rest = piece.split_off(blocks);
                if rest.blocks() > 0 {
                    tail.insert(first + blocks, rest);
                }
                Some(piece)
            }
            Some(piece) => {
                tail.insert(first, piece);
                None
            }
            None => None,
        };
        self.pieces.append(&mut tail);
        taken
    }
}

/// Blocks that the client copies.
struct PinnedHold {
    held: HostHold,
    since: Instant,
}

#[derive(Default)]
struct Pins {
    matches: HashMap<PinName, PinnedMatch>,
    holds: HashMap<PinName, PinnedHold>,
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
    pub(super) fn add_match(&self, name: PinName, found: Match) {
        if found.blocks() > 0 {
            self.add_pieces(name, BTreeMap::from([(0, found)]));
        }
    }

    fn add_pieces(&self, name: PinName, pieces: BTreeMap<usize, Match>) {
        let mut pins = self.pins.lock();
        if !pins.is_ended && !pieces.is_empty() {
            let pinned = PinnedMatch {
                pieces,
                holds: 0,
                since: Instant::now(),
            };
            let older = pins.matches.insert(name, pinned);
            drop(pins);
            drop(older);
        }
    }

    /// Changes a match, and removes it if it is over. The change drops no pins: the lock is held.
    fn change<T>(&self, name: PinName, change: impl FnOnce(&mut PinnedMatch) -> T) -> Option<T> {
        let mut pins = self.pins.lock();
        let pinned = pins.matches.get_mut(&name)?;
        let changed = change(pinned);
        if pinned.is_over() {
            pins.matches.remove(&name);
        }
        Some(changed)
    }

    /// Keeps `blocks` blocks of a match from block `first` on. A match that was released or taken back does not come back.
    pub(super) fn narrow(&self, name: PinName, first: usize, blocks: usize) {
        if blocks == 0 {
            let released = self.pins.lock().matches.remove(&name);
            return drop(released);
        }
        let dropped = self.change(name, |pinned| {
            let behind = pinned.split_off(first.saturating_add(blocks));
            let kept = pinned.split_off(first);
            (behind, std::mem::replace(&mut pinned.pieces, kept))
        });
        drop(dropped);
    }

    /// Makes the blocks of a match from block `first` on a match of their own. Without room for another
    /// match they are released.
    pub(super) fn split(&self, name: PinName, first: usize, tail: PinName) {
        let has_room = self.has_room();
        let pieces = self.change(name, |pinned| pinned.split_off(first));
        if let Some(pieces) = pieces.filter(|_| has_room) {
            self.add_pieces(tail, pieces);
        }
    }

    /// Takes `blocks` blocks from block `first` on out of a match, for a hold that ends with
    /// [`hold_ended`](Self::hold_ended); `None` if the match does not have them.
    pub(super) fn take_piece(&self, name: PinName, first: usize, blocks: usize) -> Option<Match> {
        let taken = self.change(name, |pinned| {
            let piece = pinned.take(first, blocks)?;
            pinned.holds += 1;
            Some(piece)
        });
        taken.flatten()
    }

    /// Gives the blocks from block `first` on back to a match that was not released since a hold took
    /// them.
    pub(super) fn hold_ended(&self, name: PinName, rest: Option<(usize, Match)>) {
        let _ = self.change(name, |pinned| {
            pinned.holds = pinned.holds.saturating_sub(1);
            pinned.pieces.extend(rest);
        });
    }

    /// Adds a hold; false if the session has ended.
    pub(super) fn add_hold(&self, name: PinName, held: HostHold) -> bool {
        let mut pins = self.pins.lock();
        if pins.is_ended {
            return false;
        }
        let since = Instant::now();
        pins.holds.insert(name, PinnedHold { held, since });
        true
    }

    /// Releases a hold, and returns the number of its blocks; `None` if there is none.
    pub(super) fn release(&self, name: PinName) -> Option<usize> {
        let hold = self.pins.lock().holds.remove(&name)?;
        Some(hold.held.ids().len())
    }

    /// Renews the lease of a hold; false if it was released or taken back.
    pub(super) fn renew(&self, name: PinName) -> bool {
        let mut pins = self.pins.lock();
        match pins.holds.get_mut(&name) {
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
