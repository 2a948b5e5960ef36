//! The requests of a client about stops over all groups.

use std::{sync::Arc, time::Duration};

use kvtile_daemon_wire::{
    FrameError, FrameKind, NO_TIME, RefusalCode, RefusalFrame, STOPS_MAX, StopListFrame,
    StopLookupFrame, StopNoteFrame,
};
use kvtile_tiers::{
    cache::serving::{lookup_options_of, time_of},
    groups::{GroupCache, StopOptions},
};

use super::{
    ClientFacts, OutboxItem, Session, SessionEnd,
    calls::NO_GROUPS,
    jobs::{SessionSeek, found_stop_reply},
    protocol,
    requests::{is_refused, keys_of},
};

/// Serves one request.
pub(super) fn serve(
    session: &Arc<Session>,
    client: &Arc<ClientFacts>,
    (kind, number): (FrameKind, u64),
    payload: &[u8],
) -> Result<(), SessionEnd> {
    let wire = |error: FrameError| protocol(number, error.to_string());
    let Some(groups) = client.cache.group_cache() else {
        let refusal = RefusalFrame::new(RefusalCode::Failed, NO_GROUPS);
        session.refuse(number, &refusal);
        return Ok(());
    };
    if kind == FrameKind::NoteStops {
        let frame = StopNoteFrame::decode(payload).map_err(wire)?;
        groups.note_stops(&keys_of(&frame.keys), &frame.stops, frame.is_stored);
        return Ok(());
    }
    let frame = StopLookupFrame::decode(payload).map_err(wire)?;
    match kind {
        FrameKind::SeekStop => seek(session, (client, groups), (number, &frame)),
        FrameKind::ListStops => {
            let mut stops = groups.stops(&keys_of(&frame.lookup.keys), at_most(&frame));
            stops.truncate(STOPS_MAX);
            session.send(&StopListFrame { stops }.encode(number));
        }
        _ => find(session, (client, groups), (number, &frame)),
    }
    Ok(())
}

fn at_most(frame: &StopLookupFrame) -> Option<u64> {
    (frame.at_most != NO_TIME).then_some(frame.at_most)
}

fn options(frame: &StopLookupFrame) -> StopOptions {
    let of_group = lookup_options_of(&frame.lookup);
    StopOptions::new()
        .at_most(at_most(frame))
        .owner(of_group.owner)
        .hold(of_group.hold)
        .hints(of_group.hints)
        .lifetime(of_group.lifetime)
        .recompute_tokens_per_second(frame.lookup.tokens_per_second)
}

fn find(
    session: &Session,
    (client, groups): (&ClientFacts, &GroupCache),
    (number, frame): (u64, &StopLookupFrame),
) {
    let keys = keys_of(&frame.lookup.keys);
    // Without room for its pins a match has no pages.
    let (keys, _) = match session.pins.has_room() {
        true => keys.split_at(keys.len()),
        false => keys.split_at(0),
    };
    let found = groups.lookup_with(keys, &options(frame));
    session.send(&found_stop_reply(client, &session.pins, (number, found)));
}

fn seek(
    session: &Session,
    (client, groups): (&ClientFacts, &GroupCache),
    (number, frame): (u64, &StopLookupFrame),
) {
    if is_refused(session, number) || !session.pins.has_room() {
        return find(session, (client, groups), (number, frame));
    }
    let within = time_of(frame.lookup.within_ms).unwrap_or(Duration::ZERO);
    let keys = keys_of(&frame.lookup.keys);
    let seek = groups.seek_with(&keys, within, &options(frame));
    let seek = SessionSeek::Stop(Box::new(seek));
    session.jobs.add_seek((0, number), seek);
    // A seek that is ready at once is answered by the outbox too.
    let _ = session.outbox.send(OutboxItem::Seek);
}
