//! Lookups that query tiers which answer over a network.

use std::{
    fmt,
    sync::{Arc, Weak},
    time::{Duration, Instant},
};

use kvtile_blocks::BlockKey;
use kvtile_transfer::completion::Completion;

use super::{
    CacheParts, LookupOptions,
    below::GROUP,
    connect::ConnectedSeek,
    found::{self, Match},
};
use crate::{
    error::{RequestError, TierError},
    metrics::MissReason,
    tier::{AnswerTime, TierAnswer},
};

/// A lookup that waits for the answers of tiers. [`Cache::seek`](super::Cache::seek) starts it.
///
/// It is ready once every tier has answered, or once its time has passed. Then its match has the
/// blocks of the tiers that have answered. It pins no block before that. Dropping it costs nothing:
/// answers that arrive later serve other lookups.
pub struct Seek {
    cache: Weak<CacheParts>,
    keys: Arc<[BlockKey]>,
    options: LookupOptions,
    answers: SoughtAnswers,
    end: Instant,
    /// The seek of a connected cache.
    there: Option<ConnectedSeek>,
}

/// Queries to the tiers of a cache that answer later, for the same blocks.
#[derive(Default)]
pub(crate) struct SoughtAnswers(Vec<SoughtAnswer>);

/// The query to one tier.
struct SoughtAnswer {
    /// Index of the tier in the list of tiers.
    tier: usize,
    answer: Completion<TierAnswer>,
    /// When the tier has taken too long, whatever the caller allows.
    late: Instant,
}

impl fmt::Debug for Seek {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Seek")
            .field("keys", &self.keys.len())
            .field("waits_for", &self.waits_for())
            .finish_non_exhaustive()
    }
}

/// Starts the queries.
pub(super) fn start(
    inner: &Arc<CacheParts>,
    keys: &[BlockKey],
    (within, options): (Duration, &LookupOptions),
) -> Seek {
    let begin = Instant::now();
    Seek {
        cache: Arc::downgrade(inner),
        keys: keys.into(),
        options: *options,
        answers: SoughtAnswers::begin(inner, keys),
        end: begin.checked_add(within).unwrap_or(begin),
        there: None,
    }
}

impl SoughtAnswers {
    /// Queries every tier that answers later and is not in a backoff.
    pub(crate) fn begin(inner: &CacheParts, keys: &[BlockKey]) -> SoughtAnswers {
        let begin = Instant::now();
        let after = |time| begin.checked_add(time).unwrap_or(begin);
        let answers_later = inner.below.iter().enumerate().filter(|(_, below)| {
            below.abilities.answers == AnswerTime::Later && below.may_read(inner.clock.now())
        });
        let answers = answers_later.map(|(tier, below)| SoughtAnswer {
            tier,
            answer: below.tier.ask(GROUP, keys),
            late: after(below.settings.answer_within),
        });
        SoughtAnswers(answers.collect())
    }

    /// Number of tiers that have not answered yet.
    pub(crate) fn waits_for(&self) -> usize {
        let answers = self.0.iter();
        answers.filter(|of| !of.answer.is_complete()).count()
    }

    /// Waits until every tier has answered, at most until `end`.
    pub(crate) fn wait_until(&self, end: Instant) {
        for of in &self.0 {
            let left = end.saturating_duration_since(Instant::now());
            // The caller looks at the answers again.
            let _ = of.answer.wait_timeout(left);
        }
    }

    /// Records what the tiers did.
    pub(crate) fn record(&self, inner: &CacheParts) {
        for of in &self.0 {
            let below = inner.tier(of.tier);
            let now = inner.clock.now();
            match of.answer.try_result() {
                Some(answer) => match &answer.failure {
                    None => below.reads.succeeded(now),
                    Some(error) => below.reads.failed(now, error),
                },
                // A caller that allows less time than the tier may take does not blame the tier.
                None if Instant::now() >= of.late => {
                    let late = RequestError::Late {
                        tier: below.id,
                        operation: "answer",
                        within: below.settings.answer_within,
                    };
                    below.reads.failed(now, &TierError::Request(late));
                }
                None => {}
            }
        }
    }
}

impl Seek {
    /// The seek of a connected cache; one without a daemon is ready and finds nothing.
    pub(super) fn of_connected(there: Option<ConnectedSeek>) -> Seek {
        Seek {
            cache: Weak::new(),
            keys: Arc::default(),
            options: LookupOptions::default(),
            answers: SoughtAnswers::default(),
            end: Instant::now(),
            there,
        }
    }

    /// Number of tiers that have not answered yet.
    #[must_use]
    pub fn waits_for(&self) -> usize {
        if let Some(there) = &self.there {
            return usize::from(!there.is_ready());
        }
        self.answers.waits_for()
    }

    /// Whether the match would come at once.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        let is_past = self.there.is_none() && Instant::now() >= self.end;
        self.waits_for() == 0 || is_past
    }

    /// The match, if it is ready. It never blocks.
    ///
    /// # Errors
    /// The seek itself, if it is not ready yet.
    pub fn try_match(self) -> Result<Match, Box<Seek>> {
        match self.is_ready() {
            true => Ok(self.end()),
            false => Err(Box::new(self)),
        }
    }

    /// Waits until the match is ready, at most for the rest of the time of the seek.
    pub fn wait(self) -> Match {
        if let Some(there) = &self.there {
            there.wait(Duration::MAX);
            return self.end();
        }
        self.answers.wait_until(self.end);
        self.end()
    }

    /// Waits until the match is ready, at most for `timeout`; false if it is not.
    #[must_use]
    pub fn wait_timeout(&self, timeout: Duration) -> bool {
        if let Some(there) = &self.there {
            there.wait(timeout);
            return there.is_ready();
        }
        let end = Instant::now().checked_add(timeout).unwrap_or(self.end);
        self.answers.wait_until(end.min(self.end));
        self.is_ready()
    }

    /// Looks the keys up, and records what the tiers did.
    fn end(self) -> Match {
        if let Some(there) = self.there {
            let found = there.end();
            return found.map_or_else(Match::of_closed, Match::of_connected);
        }
        let Some(inner) = self.cache.upgrade() else {
            return Match::of_closed();
        };
        self.answers.record(&inner);
        let absent = match self.waits_for() {
            0 => MissReason::Absent,
            _ => MissReason::Late,
        };
        found::lookup(&inner, &self.keys, (&self.options, absent))
    }
}
