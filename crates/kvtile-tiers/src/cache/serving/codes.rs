//! Options, outcomes and reasons of the cache as fields of frames, and back.

use std::time::Duration;

use kvtile_blocks::{
    BlockKey, Tick,
    events::TierId,
    policy::EvictionHints,
    pool::{OwnerId, TenantId},
};
use kvtile_daemon_wire::{
    KeyBytes, LoadFrame, LookupFrame, NO_TIME, StopFrame, StoreFrame, StoredFrame, TierRun,
};
use kvtile_layout::broken;

use crate::cache::{
    LoadReport, LoadStop, LookupOptions, Match, Priority, StoreOptions, StoreReport, StoreStop,
};

/// A time in milliseconds, rounded up, or [`NO_TIME`].
#[must_use]
pub fn milliseconds(time: Option<Duration>) -> u64 {
    let milliseconds = |time: Duration| time.as_nanos().div_ceil(1_000_000);
    time.map_or(NO_TIME, |time| {
        u64::try_from(milliseconds(time)).map_or(NO_TIME - 1, |time| time.min(NO_TIME - 1))
    })
}

/// The time of a field.
#[must_use]
pub fn time_of(milliseconds: u64) -> Option<Duration> {
    (milliseconds != NO_TIME).then(|| Duration::from_millis(milliseconds))
}

fn count(blocks: usize) -> u32 {
    u32::try_from(blocks).unwrap_or(u32::MAX)
}

pub(in crate::cache) fn bytes_of(keys: &[BlockKey]) -> Vec<KeyBytes> {
    keys.iter().map(|key| *key.as_bytes()).collect()
}

fn hints(priority: i8, expires: u64, output_tokens: u32, partial_tail: bool) -> EvictionHints {
    let mut hints = EvictionHints::default();
    hints.priority = priority;
    hints.expires = (expires != NO_TIME).then_some(Tick(expires));
    hints.output_tokens = output_tokens;
    hints.partial_tail = partial_tail;
    hints
}

/// The frame of a lookup, or of a seek that waits `within`.
pub(in crate::cache) fn lookup_frame(
    keys: &[BlockKey],
    options: &LookupOptions,
    within: Duration,
) -> LookupFrame {
    LookupFrame {
        owner: options.owner.0,
        hold_ms: milliseconds(options.hold),
        lifetime_ms: milliseconds(options.lifetime),
        expires: options.hints.expires.map_or(NO_TIME, |tick| tick.0),
        within_ms: milliseconds(Some(within)),
        tokens_per_second: options.rate().unwrap_or(0.0),
        output_tokens: options.hints.output_tokens,
        priority: options.hints.priority,
        partial_tail: options.hints.partial_tail,
        keys: bytes_of(keys),
    }
}

/// The options of a lookup.
#[must_use]
pub fn lookup_options_of(frame: &LookupFrame) -> LookupOptions {
    let hints = hints(
        frame.priority,
        frame.expires,
        frame.output_tokens,
        frame.partial_tail,
    );
    LookupOptions::new()
        .owner(OwnerId(frame.owner))
        .hold(time_of(frame.hold_ms))
        .hints(hints)
        .lifetime(time_of(frame.lifetime_ms))
        .recompute_tokens_per_second(frame.tokens_per_second)
}

/// The frame of a store of the blocks in `slots`.
pub(in crate::cache) fn store_frame(
    keys: &[BlockKey],
    (first, slots): (usize, Vec<u32>),
    options: &StoreOptions,
    within: Option<Duration>,
) -> StoreFrame {
    StoreFrame {
        first: count(first),
        tenant: options.tenant.0,
        within_ms: milliseconds(within),
        lifetime_ms: milliseconds(options.lifetime),
        expires: options.hints.expires.map_or(NO_TIME, |tick| tick.0),
        output_tokens: options.hints.output_tokens,
        priority: options.priority as u8,
        hint: options.hints.priority,
        partial_tail: options.hints.partial_tail,
        slots,
        keys: bytes_of(keys),
    }
}

/// The options of a store, except its layout.
#[must_use]
pub fn store_options_of(frame: &StoreFrame) -> StoreOptions {
    let hints = hints(
        frame.hint,
        frame.expires,
        frame.output_tokens,
        frame.partial_tail,
    );
    StoreOptions::new()
        .first(usize::try_from(frame.first).unwrap_or(usize::MAX))
        .tenant(TenantId(frame.tenant))
        .priority(priority_of(frame.priority))
        .within(time_of(frame.within_ms))
        .hints(hints)
        .lifetime(time_of(frame.lifetime_ms))
}

impl Priority {
    /// The priority of a number from 0 (the lowest) to 3; larger numbers are the highest.
    #[must_use]
    pub fn of_number(number: u8) -> Priority {
        priority_of(number)
    }
}

fn priority_of(number: u8) -> Priority {
    match number {
        0 => Priority::Background,
        1 => Priority::Low,
        2 => Priority::Normal,
        _ => Priority::Urgent,
    }
}

/// The blocks of a match by tier. `tiers` are those of the cache in lookup order.
#[must_use]
pub fn runs_of(found: &Match, tiers: &[TierId]) -> Vec<TierRun> {
    let mut runs: Vec<TierRun> = Vec::new();
    for tier in found.tiers() {
        let tier = index_of(tier, tiers);
        match runs.last_mut() {
            Some(run) if run.tier == tier => run.blocks += 1,
            _ => runs.push(TierRun { tier, blocks: 1 }),
        }
    }
    runs
}

fn index_of(tier: TierId, tiers: &[TierId]) -> u16 {
    let index = tiers.iter().position(|one| *one == tier);
    match index.map(u16::try_from) {
        Some(Ok(index)) => index,
        _ => broken(format_args!(
            "tier {tier} among {} of the session",
            tiers.len()
        )),
    }
}

/// The outcome of a hold or of a prefetch, with the numbers of the blocks that a hold pins.
#[must_use]
pub fn frame_of_load(report: &LoadReport, tiers: &[TierId], ids: Vec<u32>) -> LoadFrame {
    let from = |(tier, blocks): &(TierId, usize)| TierRun {
        tier: index_of(*tier, tiers),
        blocks: count(*blocks),
    };
    LoadFrame {
        wanted: count(report.wanted),
        blocks: count(report.blocks),
        from_host: count(report.from_host),
        from_below: report.from_below.iter().map(from).collect(),
        stop: frame_of_load_stop(report.stopped.as_ref()),
        ids,
    }
}

fn stop(code: u8) -> StopFrame {
    StopFrame {
        code,
        text: String::new(),
    }
}

fn frame_of_load_stop(why: Option<&LoadStop>) -> StopFrame {
    match why {
        None => stop(0),
        Some(LoadStop::Cancelled) => stop(1),
        Some(LoadStop::Deadline) => stop(2),
        Some(LoadStop::Closed) => stop(3),
        Some(LoadStop::Panicked) => stop(4),
        Some(LoadStop::Lost) => stop(5),
        Some(LoadStop::Evicted) => stop(6),
        Some(LoadStop::Late) => stop(7),
        Some(LoadStop::HostFull) => stop(8),
        Some(LoadStop::Pool(error)) => refused(error.to_string()),
        Some(LoadStop::Transfer(error)) => refused(error.to_string()),
        Some(LoadStop::Refused(text)) => refused(text.to_string()),
    }
}

fn refused(text: String) -> StopFrame {
    StopFrame { code: 255, text }
}

/// Why a hold or a prefetch ended early.
#[must_use]
pub fn load_stop_of(frame: &StopFrame) -> Option<LoadStop> {
    Some(match frame.code {
        0 => return None,
        1 => LoadStop::Cancelled,
        2 => LoadStop::Deadline,
        3 => LoadStop::Closed,
        4 => LoadStop::Panicked,
        5 => LoadStop::Lost,
        6 => LoadStop::Evicted,
        7 => LoadStop::Late,
        8 => LoadStop::HostFull,
        _ => LoadStop::Refused(frame.text.as_str().into()),
    })
}

/// The outcome of a store.
#[must_use]
pub fn frame_of_store(report: &StoreReport) -> StoredFrame {
    let stop = match &report.stopped {
        None => stop(0),
        Some(StoreStop::Cancelled) => stop(1),
        Some(StoreStop::Deadline) => stop(2),
        Some(StoreStop::Closed) => stop(3),
        Some(StoreStop::Panicked) => stop(4),
        Some(StoreStop::Cleared) => stop(5),
        Some(StoreStop::HostFull) => stop(6),
        Some(StoreStop::NoAncestors) => stop(7),
        Some(StoreStop::Late) => stop(8),
        Some(StoreStop::Pool(error)) => refused(error.to_string()),
        Some(StoreStop::Transfer(error)) => refused(error.to_string()),
        Some(StoreStop::Refused(text)) => refused(text.to_string()),
    };
    StoredFrame {
        stored: count(report.stored),
        present: count(report.present),
        dropped: count(report.dropped),
        bytes: report.bytes,
        stop,
    }
}

/// Why a store dropped blocks.
#[must_use]
pub fn store_stop_of(frame: &StopFrame) -> Option<StoreStop> {
    Some(match frame.code {
        0 => return None,
        1 => StoreStop::Cancelled,
        2 => StoreStop::Deadline,
        3 => StoreStop::Closed,
        4 => StoreStop::Panicked,
        5 => StoreStop::Cleared,
        6 => StoreStop::HostFull,
        7 => StoreStop::NoAncestors,
        8 => StoreStop::Late,
        _ => StoreStop::Refused(frame.text.as_str().into()),
    })
}
