//! Prefetches: the daemon brings blocks to host memory, and nothing is copied here.

use std::time::Instant;

use kvtile_blocks::BlockKey;
use kvtile_daemon_wire::{FrameKind, LoadFrame, PrefetchFrame};
use kvtile_transfer::completion::Completer;

use super::{ConnectedJob, ConnectedParts, found::ConnectedMatch, link::LinkError, load};
use crate::{
    cache::{
        LoadReport, LoadStop,
        serving::{codes, load_stop_of},
    },
    metrics::Queue,
};

/// A prefetch that waits for the daemon.
pub(super) struct ConnectedPrefetch {
    pub(super) completer: Completer<LoadReport>,
    pub(super) keys: Vec<BlockKey>,
    /// The pins of these blocks, if they were found before: the report then counts all of them as requested.
    pub(super) pins: Option<ConnectedMatch>,
    pub(super) start: Instant,
}

impl ConnectedJob for ConnectedPrefetch {
    fn label(&self) -> Queue {
        Queue::Prefetch
    }

    fn run(self: Box<Self>, parts: &ConnectedParts) {
        let frame = PrefetchFrame {
            keys: codes::bytes_of(&self.keys),
        };
        let reply = parts
            .session()
            .ok_or(LinkError::Closed)
            .and_then(|session| {
                let request = |number| frame.encode(FrameKind::Prefetch, number);
                let reply = session.request(request, None)?;
                let (_, payload) = reply.wait(parts.settings.work_within)?;
                Ok((session, LoadFrame::decode(&payload)?))
            });
        let mut report = self.report();
        match reply {
            Ok((session, frame)) => {
                let count = |blocks: u32| usize::try_from(blocks).unwrap_or(usize::MAX);
                let from = frame.from_below.iter().filter_map(|run| {
                    let tier = session.tiers.get(usize::from(run.tier))?;
                    Some((*tier, count(run.blocks)))
                });
                report.from_below = from.collect();
                report.blocks = count(frame.blocks);
                report.wanted = match &self.pins {
                    Some(_) => self.keys.len(),
                    None => count(frame.wanted),
                };
                report.from_host = count(frame.from_host);
                report.stopped = load_stop_of(&frame.stop);
            }
            Err(error) => report.stopped = Some(load::stop_of(error)),
        }
        self.completer.finish(report);
    }
}

impl ConnectedPrefetch {
    fn report(&self) -> LoadReport {
        LoadReport {
            elapsed: self.start.elapsed(),
            ..LoadReport::nothing()
        }
    }
}

impl Drop for ConnectedPrefetch {
    /// Completes a prefetch that did not begin; only the first end counts.
    fn drop(&mut self) {
        let mut report = self.report();
        report.stopped = Some(LoadStop::Closed);
        self.completer.finish(report);
    }
}
