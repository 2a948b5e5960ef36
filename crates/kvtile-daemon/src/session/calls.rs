//! The calls that are JSON. Those that do I/O run on a thread of their own, one at a time for each
//! client.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
};

use kvtile_daemon_wire::{FrameKind, RefusalCode, RefusalFrame};
use kvtile_tiers::{
    RequestError, TierError,
    cache::serving::{CallAnswer, CallMessage, PinMessage},
};

use super::{
    ClientFacts, Session, SessionEnd,
    jobs::SessionJob,
    protocol,
    requests::{is_refused, refusal_of},
};

/// The refusal of a request about stops.
pub(super) const NO_GROUPS: &str = "the client's cache has no groups, so it has no stops";

/// Serves one call.
pub(super) fn serve(
    session: &Arc<Session>,
    client: &Arc<ClientFacts>,
    (number, payload): (u64, &[u8]),
    group: u16,
) -> Result<(), SessionEnd> {
    let call: CallMessage = serde_json::from_slice(payload)
        .map_err(|error| protocol(number, format!("the call is none: {error}")))?;
    let does_io = match call {
        CallMessage::Stats
        | CallMessage::TierStats { .. }
        | CallMessage::TierHealth { .. }
        | CallMessage::Estimate { .. }
        | CallMessage::Overdue
        | CallMessage::StopStats => false,
        // Further calls may be added to the enum; they are safe on a thread.
        _ => true,
    };
    if !does_io {
        let answer = answer(client, group, &call);
        send(session, number, answer);
        return Ok(());
    }
    if is_refused(session, number) {
        return Ok(());
    }
    if session.jobs.has_call() {
        let (waiting, capacity) = (1, 1);
        let busy = TierError::Request(RequestError::Busy { waiting, capacity });
        session.refuse(number, &refusal_of(&busy));
        return Ok(());
    }
    session.jobs.add(number, SessionJob::Call, &session.outbox);
    let (ours, theirs) = (Arc::clone(session), Arc::clone(client));
    let thread = std::thread::Builder::new().name(format!("kvtile-call-{}", session.number));
    let started = thread.spawn(move || {
        let answer = answer(&theirs, group, &call);
        // The client may make its next call as soon as it has the answer.
        ours.jobs.called(number);
        send(&ours, number, answer);
    });
    if let Err(error) = started {
        session.jobs.called(number);
        let refusal = RefusalFrame::new(RefusalCode::Failed, error.to_string());
        session.refuse(number, &refusal);
    }
    Ok(())
}

/// The answer to a call, or its refusal; a refusal too where the cache panics.
fn answer(
    client: &ClientFacts,
    group: u16,
    call: &CallMessage,
) -> Result<CallAnswer, RefusalFrame> {
    let answer = catch_unwind(AssertUnwindSafe(|| answer_of(client, group, call)));
    answer.unwrap_or_else(|_| {
        let text = "the daemon panicked in the call; what it prints says where";
        Err(RefusalFrame::new(RefusalCode::Failed, text))
    })
}

fn answer_of(
    client: &ClientFacts,
    group: u16,
    call: &CallMessage,
) -> Result<CallAnswer, RefusalFrame> {
    let Some(cache) = client.cache.cache_of(usize::from(group)) else {
        let text = format!("the client has no group {group}");
        return Err(RefusalFrame::new(RefusalCode::Failed, text));
    };
    let answer = match call {
        CallMessage::StopStats => match client.cache.group_cache() {
            Some(groups) => Ok(CallAnswer::StopStats(groups.stop_counts())),
            None => return Err(RefusalFrame::new(RefusalCode::Failed, NO_GROUPS)),
        },
        CallMessage::Evict { tier, blocks } => cache.evict(*tier, *blocks).map(CallAnswer::Blocks),
        CallMessage::Clear => cache.clear().map(CallAnswer::Blocks),
        CallMessage::Flush => Ok(CallAnswer::Flushed(cache.flush())),
        CallMessage::Stats => Ok(CallAnswer::Stats(Box::new(cache.stats()))),
        CallMessage::TierStats { tier } => {
            let stats = cache.tier_stats(*tier).map(Box::new);
            Ok(CallAnswer::TierStats(stats))
        }
        CallMessage::TierHealth { tier } => Ok(CallAnswer::TierHealth(cache.tier_health(*tier))),
        CallMessage::Estimate { tier, blocks } => {
            Ok(CallAnswer::Estimate(cache.estimate(*tier, *blocks)))
        }
        CallMessage::Overdue => {
            let pins = cache.overdue();
            let message = pins.iter().map(|pin| PinMessage {
                owner: pin.owner.0,
                deadline: pin.deadline.0,
                blocks: pin.blocks,
                since: pin.since.0,
            });
            Ok(CallAnswer::Overdue(message.collect()))
        }
        _ => {
            let text = "this version of the daemon does not have the call";
            return Err(RefusalFrame::new(RefusalCode::Failed, text));
        }
    };
    answer.map_err(|error| refusal_of(&error))
}

fn send(session: &Session, number: u64, answer: Result<CallAnswer, RefusalFrame>) {
    match answer {
        Ok(answer) => session.send_json(number, FrameKind::Answer, &answer),
        Err(refusal) => session.refuse(number, &refusal),
    }
}
