//! Matches and seeks that the daemon holds.

use std::{
    sync::{Arc, Weak},
    time::{Duration, Instant},
};

use kvtile_blocks::events::TierId;
use kvtile_daemon_wire::{FoundFrame, FrameKind, NarrowFrame, SplitFrame, TierRun};

use super::{
    link::{LinkError, LinkReply, PendingReply},
    session::DaemonSession,
};

/// A match that the daemon pins.
pub(in crate::cache) struct ConnectedMatch {
    pub(super) session: Weak<DaemonSession>,
    /// The cache that found it.
    pub(super) cache: u64,
    /// Its number.
    pub(super) number: u64,
    /// Index of its first block in the match as it was found.
    pub(super) first: usize,
    /// Consecutive blocks of one tier each.
    pub(super) runs: Vec<(TierId, usize)>,
}

impl ConnectedMatch {
    /// The match of a reply.
    pub(super) fn of(
        session: &Arc<DaemonSession>,
        cache: u64,
        (number, (kind, payload)): (u64, LinkReply),
    ) -> Result<ConnectedMatch, LinkError> {
        if kind != FrameKind::Found {
            return Err(LinkError::Closed);
        }
        let frame = FoundFrame::decode(&payload)?;
        Ok(ConnectedMatch::of_runs(
            session,
            cache,
            (number, &frame.runs),
        ))
    }

    /// Match `number` with these runs.
    pub(super) fn of_runs(
        session: &Arc<DaemonSession>,
        cache: u64,
        (number, runs): (u64, &[TierRun]),
    ) -> ConnectedMatch {
        let tier = |at: u16| session.tiers.get(usize::from(at)).copied();
        let runs = runs.iter().map_while(|run| {
            let blocks = usize::try_from(run.blocks).unwrap_or(usize::MAX);
            Some((tier(run.tier)?, blocks))
        });
        ConnectedMatch {
            session: Arc::downgrade(session),
            cache,
            number,
            first: 0,
            runs: runs.collect(),
        }
    }

    /// The runs of its blocks; empty once the connection has ended.
    pub(in crate::cache) fn runs(&self) -> &[(TierId, usize)] {
        let session = self.session.upgrade();
        match session.is_some_and(|session| !session.link.is_closed()) {
            true => &self.runs,
            false => &[],
        }
    }

    /// Number of its blocks when it was found, less those that were dropped from it since.
    pub(super) fn found_blocks(&self) -> usize {
        self.runs.iter().map(|(_, blocks)| blocks).sum()
    }

    pub(in crate::cache) fn blocks(&self) -> usize {
        self.runs().iter().map(|(_, blocks)| blocks).sum()
    }

    /// Keeps `blocks` blocks from block `skip` on.
    pub(in crate::cache) fn narrow(&mut self, mut skip: usize, mut blocks: usize) {
        let all = self.found_blocks();
        skip = skip.min(all);
        blocks = blocks.min(all - skip);
        if blocks == all {
            return;
        }
        self.first += skip;
        self.runs = part_of(&self.runs, skip, blocks);
        self.narrowed(blocks);
    }

    /// Splits off the blocks after the first `blocks`.
    pub(in crate::cache) fn split_off(&mut self, blocks: usize) -> ConnectedMatch {
        let all = self.found_blocks();
        let kept = blocks.min(all);
        let first = self.first + kept;
        let frame = SplitFrame {
            found: self.number,
            first: u32::try_from(first).unwrap_or(u32::MAX),
        };
        let number = self.session.upgrade().map_or(0, |session| {
            let number = session.link.number();
            session.post(frame.encode(number));
            number
        });
        let runs = part_of(&self.runs, kept, all - kept);
        self.runs = part_of(&self.runs, 0, kept);
        ConnectedMatch {
            session: Weak::clone(&self.session),
            cache: self.cache,
            number,
            first,
            runs,
        }
    }

    fn narrowed(&self, blocks: usize) {
        if let Some(session) = self.session.upgrade() {
            let frame = NarrowFrame {
                found: self.number,
                first: u32::try_from(self.first).unwrap_or(u32::MAX),
                blocks: u32::try_from(blocks).unwrap_or(u32::MAX),
            };
            session.post(frame.encode(0));
        }
    }
}

impl Drop for ConnectedMatch {
    fn drop(&mut self) {
        self.narrowed(0);
    }
}

impl Drop for ConnectedSeek {
    /// The daemon ends a seek that nothing waits for.
    fn drop(&mut self) {
        if !self.is_taken {
            let frame = NarrowFrame {
                found: self.reply.number,
                first: 0,
                blocks: 0,
            };
            self.session.post(frame.encode(0));
        }
    }
}

/// The runs of `blocks` blocks from block `skip` on.
fn part_of(runs: &[(TierId, usize)], mut skip: usize, mut blocks: usize) -> Vec<(TierId, usize)> {
    let mut part = Vec::new();
    for &(tier, count) in runs {
        let skipped = skip.min(count);
        skip -= skipped;
        let kept = blocks.min(count - skipped);
        blocks -= kept;
        if kept > 0 {
            part.push((tier, kept));
        }
    }
    part
}

/// A seek that the daemon runs.
pub(in crate::cache) struct ConnectedSeek {
    pub(super) session: Arc<DaemonSession>,
    pub(super) cache: u64,
    pub(super) reply: PendingReply,
    /// When the match is given up.
    pub(super) end: Instant,
    /// Whether the match was taken.
    pub(super) is_taken: bool,
}

impl ConnectedSeek {
    pub(in crate::cache) fn is_ready(&self) -> bool {
        self.reply.is_ready() || Instant::now() >= self.end
    }

    /// Waits for the reply, at most `within`.
    pub(in crate::cache) fn wait(&self, within: Duration) {
        let left = self.end.saturating_duration_since(Instant::now());
        self.reply.wait_ready(left.min(within));
    }

    /// The reply, if the daemon has answered.
    pub(super) fn take(&mut self) -> Option<(u64, LinkReply)> {
        let reply = self.reply.take()?.ok()?;
        self.is_taken = true;
        Some((self.reply.number, reply))
    }

    /// The match, if the daemon has answered.
    pub(in crate::cache) fn end(mut self) -> Option<ConnectedMatch> {
        let found = self.take()?;
        ConnectedMatch::of(&self.session, self.cache, found).ok()
    }
}
