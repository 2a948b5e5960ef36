//! What a hit needs of a group of layers, and the token positions at which all groups can be resumed.
//!
//! ```text
//! tokens   0         8         16        24    n = 24, pages of 8
//! Full     [ page 0 ][ page 1 ][ page 2 ]
//! Window                 ·····[ page 2 ]       9 tokens: the next token attends to 16..24
//! Chunk    ······················(none)        chunks of 8: the next token begins a chunk
//! Stop                         [ page 2 ]      the state after token 23
//! ```
//!
//! Pages of a group with a window or a state leave holes: 24 may be a stop while 16 and 8 are not. So the usable stops
//! are a set. A caller must not cut a hit to another length, or take the minimum of the longest stops of several ranks.
//!
//! This module knows neither keys nor where blocks are: the caller answers whether a page is there.

use std::{fmt, num::NonZeroU64, ops::Range};

use serde::{Deserialize, Serialize};

/// What a hit that ends at a token position needs of a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum GroupRule {
    /// All tokens before the position.
    Full,
    /// The last tokens before the position that the next token attends to.
    Window {
        /// Tokens that a token attends to, itself included.
        tokens: NonZeroU64,
    },
    /// The tokens of the chunk that the position is in. None where a chunk begins.
    Chunk {
        /// Tokens of a chunk.
        tokens: NonZeroU64,
    },
    /// A record of the state after the last token before the position.
    Stop,
}

impl GroupRule {
    /// The pages that a hit of `stop` tokens needs, for pages of `page` tokens. `stop` is a multiple of `page`.
    #[must_use]
    pub fn needs(self, stop: u64, page: NonZeroU64) -> Range<u64> {
        let end = stop / page;
        match self {
            GroupRule::Full => 0..end,
            GroupRule::Window { tokens } => stop.saturating_sub(tokens.get() - 1) / page..end,
            GroupRule::Chunk { tokens } => (stop - stop % tokens) / page..end,
            GroupRule::Stop => end.saturating_sub(1)..end,
        }
    }
}

impl fmt::Display for GroupRule {
    /// `full`, `window of 128 tokens`, `chunks of 8192 tokens` or `stop`: equal exactly where the rules are.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            GroupRule::Full => f.write_str("full"),
            GroupRule::Window { tokens } => write!(f, "window of {tokens} tokens"),
            GroupRule::Chunk { tokens } => write!(f, "chunks of {tokens} tokens"),
            GroupRule::Stop => f.write_str("stop"),
        }
    }
}

/// What a group has of a sequence of tokens.
pub struct GroupPresence<'a> {
    /// What a hit needs of the group.
    pub rule: GroupRule,
    /// Tokens of a page.
    pub page: NonZeroU64,
    /// Whether the group has a page, by the number of pages before it.
    pub has: &'a dyn Fn(u64) -> bool,
}

impl GroupPresence<'_> {
    /// The last missing page that a hit of `stop` tokens needs.
    fn missing(&self, stop: u64) -> Option<u64> {
        let needs = self.rule.needs(stop, self.page);
        needs.rev().find(|page| !(self.has)(*page))
    }

    /// Tokens of the pages before the first missing one, at most `most`.
    fn leading(&self, most: u64) -> u64 {
        let pages = most / self.page;
        let leading = (0..pages).find(|page| !(self.has)(*page));
        leading.unwrap_or(pages) * self.page.get()
    }
}

/// The token positions at which all groups can be resumed, from the longest down to `unit`. An iterator.
pub struct UsableStops<'a> {
    groups: &'a [GroupPresence<'a>],
    unit: NonZeroU64,
    next: u64,
}

/// The token positions of at most `most` tokens at which all groups can be resumed, the longest first: multiples of
/// `unit` and of each group's page for which each group has what its rule needs. Position 0 is not one of them.
///
/// It reads the presence of each page of a [`GroupRule::Full`] group once. It reads other groups lazily, as the caller
/// advances the iterator.
///
/// A group that must not decide, such as that of a draft model, is left out by the caller.
///
/// ```
/// use std::num::NonZeroU64;
/// use kvtile_layout::{GroupPresence, GroupRule, usable_stops};
///
/// let one = NonZeroU64::MIN;
/// let state = [false, true, false, false, true, false];
/// let groups = [
///     GroupPresence { rule: GroupRule::Full, page: one, has: &|page| page < 6 },
///     GroupPresence { rule: GroupRule::Stop, page: one, has: &|page| state[page as usize] },
/// ];
/// assert_eq!(usable_stops(&groups, 6, one).collect::<Vec<_>>(), [5, 2]);
/// ```
#[must_use]
pub fn usable_stops<'a>(
    groups: &'a [GroupPresence<'a>],
    most: u64,
    unit: NonZeroU64,
) -> UsableStops<'a> {
    let full = groups.iter().filter(|group| group.rule == GroupRule::Full);
    let most = full.fold(most, |most, group| group.leading(most));
    UsableStops {
        groups,
        unit,
        next: most - most % unit,
    }
}

impl UsableStops<'_> {
    /// The longest position at or below `stop` that may be usable: `stop` itself if it is, otherwise a shorter one.
    fn candidate(&self, stop: u64) -> u64 {
        let shorter = stop - self.unit.get();
        for group in self.groups {
            if stop % group.page != 0 {
                return shorter;
            }
            if group.rule == GroupRule::Full {
                continue;
            }
            if let Some(page) = group.missing(stop) {
                // Each longer prefix whose window has the page needs it as well.
                let before = page * group.page.get();
                return match group.rule {
                    GroupRule::Window { .. } => before - before % self.unit,
                    _ => shorter,
                };
            }
        }
        stop
    }
}

impl Iterator for UsableStops<'_> {
    type Item = u64;

    fn next(&mut self) -> Option<u64> {
        while self.next > 0 {
            let stop = self.next;
            let candidate = self.candidate(stop);
            if candidate == stop {
                self.next = stop - self.unit.get();
                return Some(stop);
            }
            self.next = candidate;
        }
        None
    }
}
