//! Queries: which bundles of a chain the store has.

use std::{sync::Arc, time::Instant};

use kvtile_blocks::BlockKey;
use kvtile_tiers::{
    TierError,
    tier::{BlockName, GroupId, TierAnswer},
};
use kvtile_transfer::completion::{Completer, Completion};
use parking_lot::Mutex;

use super::{
    alarm::TimedWork,
    counts::count,
    known::{ChainedBlock, KnownBundle},
    parts::SharedTierParts,
    threads::JobClass,
};
use crate::store::{Deadline, ValueName};

/// A bundle in a query.
struct AskedBundle {
    name: ValueName,
    bundle: KnownBundle,
    blocks: Vec<ChainedBlock>,
}

/// A query in flight.
struct BundleQuestion {
    parts: Arc<SharedTierParts>,
    group: GroupId,
    keys: Vec<BlockKey>,
    completer: Completer<TierAnswer>,
    state: Mutex<QuestionState>,
}

#[derive(Default)]
struct QuestionState {
    /// Calls of the store that have not returned.
    left: usize,
    failure: Option<TierError>,
    /// Whether a call of the store has begun.
    has_begun: bool,
    has_ended: bool,
}

/// One call of the store for a query. Dropping it ends it as closed.
struct QuestionCall {
    question: Arc<BundleQuestion>,
    bundles: Vec<AskedBundle>,
    has_ended: bool,
}

/// Queries the store for the bundles of `keys` that the tier does not know.
pub(super) fn ask(
    parts: &Arc<SharedTierParts>,
    group: GroupId,
    keys: &[BlockKey],
) -> Completion<TierAnswer> {
    let asked = unknown(parts, group, keys);
    if asked.is_empty() {
        return Completion::ended(0, TierAnswer::of(leading(parts, group, keys)));
    }
    if !parts.reads.allows(parts.clock.now()) {
        count(&parts.counts.breaker_open, asked.len() as u64);
        // No failure: the caller has a backoff of its own, which would add to this one.
        return Completion::ended(0, TierAnswer::of(leading(parts, group, keys)));
    }
    count(&parts.counts.asked, asked.len() as u64);
    let completer = Completer::new(0, 0);
    let completion = completer.completion();
    let mut calls = Vec::new();
    let mut asked = asked.into_iter().peekable();
    while asked.peek().is_some() {
        let batch = asked.by_ref().take(parts.abilities.batch_max.max(1));
        calls.push(batch.collect::<Vec<AskedBundle>>());
    }
    let question = Arc::new(BundleQuestion {
        parts: Arc::clone(parts),
        group,
        keys: keys.to_vec(),
        completer,
        state: Mutex::new(QuestionState {
            left: calls.len(),
            ..QuestionState::default()
        }),
    });
    parts.set_alarm(parts.settings.read_within, &question);
    for bundles in calls {
        let call = QuestionCall {
            question: Arc::clone(&question),
            bundles,
            has_ended: false,
        };
        parts.threads.push(JobClass::Ask, Box::new(|| call.run()));
    }
    completion
}

fn leading(parts: &SharedTierParts, group: GroupId, keys: &[BlockKey]) -> usize {
    let only_staged = parts.reads.is_open(parts.clock.now());
    parts.known.leading(group, keys, (false, only_staged)).len()
}

/// The bundles of a chain whose presence the tier does not know.
fn unknown(parts: &SharedTierParts, group: GroupId, keys: &[BlockKey]) -> Vec<AskedBundle> {
    let mut asked = Vec::new();
    for (first, parent, keys) in parts.bundles_of(group, keys) {
        let Some(&last) = keys.last() else {
            continue;
        };
        let name = BlockName { group, key: last };
        if !parts.known.is_unknown(&name, keys) {
            continue;
        }
        let Some(value) = parts.value_name(&name) else {
            continue;
        };
        let mut before = parent;
        let blocks = (first..).zip(keys).map(|(position, &key)| ChainedBlock {
            name: BlockName { group, key },
            parent: before.replace(key),
            // A tenant is a number of one process; the store does not have it.
            tenant: 0,
            position,
        });
        let blocks = blocks.collect();
        asked.push(AskedBundle {
            name: value,
            bundle: KnownBundle {
                name,
                keys: keys.to_vec(),
                renewed: Mutex::new(None),
            },
            blocks,
        });
    }
    asked
}

impl QuestionCall {
    fn run(mut self) {
        let parts = Arc::clone(&self.question.parts);
        {
            let mut state = self.question.state.lock();
            if state.has_ended {
                return;
            }
            state.has_begun = true;
        }
        let names: Vec<ValueName> = self.bundles.iter().map(|one| one.name.clone()).collect();
        let start = Instant::now();
        let by = Deadline::within(parts.settings.read_within);
        let failure = match parts.store.has(&names, by) {
            Ok(present) => {
                parts.read_succeeded(0, start.elapsed());
                self.learn(&parts, &present);
                None
            }
            Err(error) => {
                parts.read_failed(&error);
                Some(parts.store_error(error))
            }
        };
        self.has_ended = true;
        self.question.call_ended(failure);
    }

    /// Takes the answer of the store; bundles without an answer stay unknown.
    fn learn(&mut self, parts: &SharedTierParts, present: &[bool]) {
        for (asked, &is_present) in std::mem::take(&mut self.bundles).into_iter().zip(present) {
            if is_present {
                count(&parts.counts.asked_present, 1);
                parts
                    .known
                    .add_stored(&Arc::new(asked.bundle), &asked.blocks, true);
            } else {
                let absent_for = parts.settings.absent_for;
                parts.known.is_absent(asked.bundle.name, absent_for);
            }
        }
    }
}

impl Drop for QuestionCall {
    fn drop(&mut self) {
        if !self.has_ended {
            self.question.call_ended(Some(SharedTierParts::closed()));
        }
    }
}

impl BundleQuestion {
    fn call_ended(&self, failure: Option<TierError>) {
        let mut state = self.state.lock();
        state.left = state.left.saturating_sub(1);
        if state.failure.is_none() {
            state.failure = failure;
        }
        if state.left == 0 {
            self.end(state);
        }
    }

    fn end(&self, mut state: parking_lot::MutexGuard<'_, QuestionState>) {
        if std::mem::replace(&mut state.has_ended, true) {
            return;
        }
        let failure = state.failure.take();
        drop(state);
        self.completer.finish(TierAnswer {
            leading: leading(&self.parts, self.group, &self.keys),
            failure,
        });
    }
}

impl TimedWork for BundleQuestion {
    fn too_late(&self) {
        let mut state = self.state.lock();
        if state.has_ended {
            return;
        }
        let error = self.parts.late("answer", self.parts.settings.read_within);
        match state.has_begun {
            true => self.parts.read_is_late(&error),
            false => self.parts.read_did_not_begin(&error),
        }
        state.failure = Some(error);
        self.end(state);
    }
}
