//! The requests of a client.

use std::{sync::Arc, time::Duration};

use kvtile_blocks::BlockKey;
use kvtile_daemon_wire::{
    FrameError, FrameHeader, FrameKind, HoldFrame, KeyBytes, LookupFrame, NarrowFrame, NumberFrame,
    PrefetchFrame, RefusalCode, RefusalFrame, ReleaseFrame, SplitFrame, StoreFrame,
};
use kvtile_tiers::{
    RequestError, TierError,
    cache::{
        LoadOptions, Priority,
        serving::{lookup_options_of, store_options_of, time_of},
    },
};

use super::{
    ClientFacts, GroupOfClient, OutboxItem, Session, SessionEnd, calls,
    jobs::{SessionJob, SessionSeek, found_reply, hold_reply},
    protocol, stops,
};

/// The refusal of a request that the cache refuses.
pub(super) fn refusal_of(error: &TierError) -> RefusalFrame {
    let (code, first, second) = match error {
        TierError::Request(RequestError::Busy { waiting, capacity }) => {
            (RefusalCode::Busy, *waiting as u64, *capacity as u64)
        }
        TierError::Request(RequestError::Closed) => (RefusalCode::Closed, 0, 0),
        TierError::Request(RequestError::NoSuchTier { tier }) => {
            return RefusalFrame::new(RefusalCode::NoSuchTier, tier.to_string());
        }
        _ => (RefusalCode::Failed, 0, 0),
    };
    RefusalFrame {
        code,
        first,
        second,
        text: error.to_string(),
    }
}

pub(super) fn keys_of(keys: &[KeyBytes]) -> Vec<BlockKey> {
    keys.iter().map(|key| BlockKey::from_bytes(*key)).collect()
}

fn count(number: u32) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

/// Serves one request.
pub(super) fn serve(
    session: &Arc<Session>,
    client: &Arc<ClientFacts>,
    header: FrameHeader,
    payload: &[u8],
) -> Result<(), SessionEnd> {
    let number = header.request;
    let Some(group) = client.group(header.group) else {
        let groups = client.cache.groups().len();
        let text = format!("{:?} about group {} of {groups}", header.kind, header.group);
        return Err(protocol(number, text));
    };
    let wire = |error: FrameError| protocol(number, error.to_string());
    match header.kind {
        FrameKind::Lookup => {
            let frame = LookupFrame::decode(payload).map_err(wire)?;
            lookup(session, group, (number, &frame));
        }
        FrameKind::Seek => {
            let frame = LookupFrame::decode(payload).map_err(wire)?;
            seek(session, group, (number, &frame));
        }
        FrameKind::Narrow | FrameKind::Split | FrameKind::Check => {
            serve_pins(session, header, payload)?;
        }
        FrameKind::Hold => {
            let frame = HoldFrame::decode(payload).map_err(wire)?;
            hold(session, group, (number, &frame));
        }
        FrameKind::Release => {
            let frame = ReleaseFrame::decode(payload).map_err(wire)?;
            release(session, group, &frame);
        }
        FrameKind::Store => {
            let frame = StoreFrame::decode(payload).map_err(wire)?;
            store(session, group, (number, &frame));
        }
        FrameKind::Prefetch => {
            let frame = PrefetchFrame::decode(payload).map_err(wire)?;
            prefetch(session, group, (number, &frame));
        }
        FrameKind::Peek => {
            let frame = PrefetchFrame::decode(payload).map_err(wire)?;
            let leading = group.cache.leading_in_host(&keys_of(&frame.keys));
            let reply = NumberFrame {
                number: leading.unwrap_or(0) as u64,
            };
            session.send(&reply.encode(FrameKind::Number, number));
        }
        FrameKind::Subscribe => {
            // The outbox lives as long as the reader.
            let _ = session.outbox.send(OutboxItem::Subscribe);
        }
        FrameKind::Settle => {
            let _ = session.outbox.send(OutboxItem::Settle(number));
        }
        FrameKind::Call => calls::serve(session, client, (number, payload), header.group)?,
        FrameKind::FindStop | FrameKind::SeekStop | FrameKind::ListStops | FrameKind::NoteStops => {
            stops::serve(session, client, (header.kind, number), payload)?;
        }
        kind => return Err(protocol(number, format!("{kind:?} from a client"))),
    }
    Ok(())
}

/// Serves a request about pins that the client has.
fn serve_pins(session: &Session, header: FrameHeader, payload: &[u8]) -> Result<(), SessionEnd> {
    let number = header.request;
    let wire = |error: FrameError| protocol(number, error.to_string());
    let named = |number: u64| (header.group, number);
    match header.kind {
        FrameKind::Narrow => {
            let frame = NarrowFrame::decode(payload).map_err(wire)?;
            let (first, blocks) = (count(frame.first), count(frame.blocks));
            if blocks == 0 {
                session.jobs.end_seek(named(frame.found));
            }
            session.pins.narrow(named(frame.found), first, blocks);
        }
        FrameKind::Split => {
            let frame = SplitFrame::decode(payload).map_err(wire)?;
            let found = named(frame.found);
            session.pins.split(found, count(frame.first), named(number));
        }
        _ => {
            let frame = NumberFrame::decode(payload).map_err(wire)?;
            let is_valid = session.pins.renew(named(frame.number));
            let reply = NumberFrame {
                number: is_valid.into(),
            };
            session.send(&reply.encode(FrameKind::Number, number));
        }
    }
    Ok(())
}

/// Refuses a request of a client that has too many in progress.
pub(super) fn is_refused(session: &Session, number: u64) -> bool {
    let Some((waiting, capacity)) = session.jobs.is_full() else {
        return false;
    };
    let busy = RequestError::Busy { waiting, capacity };
    session.refuse(number, &refusal_of(&TierError::Request(busy)));
    true
}

fn lookup(session: &Session, group: GroupOfClient<'_>, (number, frame): (u64, &LookupFrame)) {
    let keys = keys_of(&frame.keys);
    // Without room for its pins a match has no blocks.
    let (keys, _) = match session.pins.has_room() {
        true => keys.split_at(keys.len()),
        false => keys.split_at(0),
    };
    let options = lookup_options_of(frame);
    let found = group.cache.lookup_with(keys, &options);
    let name = (group.number, number);
    session.send(&found_reply(group.client, &session.pins, (name, found)));
}

fn seek(session: &Session, group: GroupOfClient<'_>, (number, frame): (u64, &LookupFrame)) {
    if is_refused(session, number) || !session.pins.has_room() {
        return lookup(session, group, (number, frame));
    }
    let within = time_of(frame.within_ms).unwrap_or(Duration::ZERO);
    let options = lookup_options_of(frame);
    let keys = keys_of(&frame.keys);
    let seek = group.cache.seek_with(&keys, within, &options);
    let name = (group.number, number);
    session
        .jobs
        .add_seek(name, SessionSeek::Blocks(Box::new(seek)));
    // A seek that is ready at once is answered by the outbox too.
    let _ = session.outbox.send(OutboxItem::Seek);
}

fn hold(session: &Session, group: GroupOfClient<'_>, (number, frame): (u64, &HoldFrame)) {
    if is_refused(session, number) {
        return;
    }
    let (first, blocks) = (count(frame.first), count(frame.blocks));
    let found = (group.number, frame.found);
    let Some(piece) = session.pins.take_piece(found, first, blocks) else {
        let text = "the match was released, or its lease has ended; look the keys up again";
        let refusal = RefusalFrame::new(RefusalCode::Revoked, text);
        return session.refuse(number, &refusal);
    };
    let options = LoadOptions::new()
        .priority(Priority::of_number(frame.priority))
        .within(time_of(frame.within_ms));
    match group.cache.hold(piece, &options) {
        Ok(completion) => {
            // Blocks that are all in host memory need no other thread.
            if let Some(report) = completion.try_result() {
                let of = ((group.number, number), found, first);
                let reply = hold_reply(group.client, &session.pins, of, report);
                return session.send(&reply);
            }
            let job = SessionJob::Hold {
                completion,
                found,
                first,
            };
            session.jobs.add(number, job, &session.outbox);
        }
        Err(error) => {
            session.pins.hold_ended(found, None);
            session.refuse(number, &refusal_of(&error));
        }
    }
}

fn release(session: &Session, group: GroupOfClient<'_>, frame: &ReleaseFrame) {
    let Some(held) = session.pins.release((group.number, frame.hold)) else {
        return;
    };
    let blocks = u64::from(frame.blocks);
    // What a client claims to have copied is bounded by what it held.
    let block_bytes = group.block_bytes;
    if blocks > 0 && blocks <= held as u64 && frame.bytes <= blocks.saturating_mul(block_bytes) {
        let time = Duration::from_nanos(frame.nanoseconds);
        if let Err(error) = group.cache.copied_out(blocks, frame.bytes, time) {
            log::warn!("client {}: {error}", session.number);
        }
    }
}

fn store(session: &Session, group: GroupOfClient<'_>, (number, frame): (u64, &StoreFrame)) {
    if is_refused(session, number) {
        return;
    }
    let slots: Vec<usize> = frame.slots.iter().map(|slot| count(*slot)).collect();
    let options = store_options_of(frame).layout(group.staging);
    let keys = keys_of(&frame.keys);
    match group.cache.store_with(&keys, &slots, &options) {
        Ok(completion) => {
            let job = SessionJob::Store(completion);
            session.jobs.add(number, job, &session.outbox);
        }
        Err(error) => session.refuse(number, &refusal_of(&error)),
    }
}

fn prefetch(session: &Session, group: GroupOfClient<'_>, (number, frame): (u64, &PrefetchFrame)) {
    if is_refused(session, number) {
        return;
    }
    match group.cache.prefetch(&keys_of(&frame.keys)) {
        Ok(completion) => {
            let job = SessionJob::Prefetch(completion);
            session.jobs.add(number, job, &session.outbox);
        }
        Err(error) => session.refuse(number, &refusal_of(&error)),
    }
}
