//! The order checker: every access to memory, and whether two of them to the same bytes have an order.

use super::clock::{ActorNumber, VectorClock};
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

/// Accesses above which those that everything knows are dropped.
const HISTORY_MIN: usize = 512;

/// A fault of the program that uses the driver.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Complaint {
    /// Two accesses to the same bytes, at least one of them a write, without an order.
    Race {
        /// The one that happened first this time.
        first: String,
        /// The other.
        second: String,
        /// How many bytes they share.
        bytes: u64,
    },
    /// A copy from or to host memory that is not pinned: the driver does it while the caller waits.
    Pageable {
        /// The copy.
        copy: String,
    },
    /// Memory was freed, unregistered or closed before the host knew that its last use had ended.
    FreedInUse {
        /// The release.
        release: String,
        /// The use.
        access: String,
    },
    /// Memory was unmapped before its registration ended: other memory may have its addresses by then.
    Unmapped {
        /// The memory.
        memory: String,
    },
    /// Two copies of a batch, whose order is not defined, overlap.
    OverlapInBatch {
        /// The batch.
        batch: String,
    },
}

impl fmt::Display for Complaint {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Complaint::Race {
                first,
                second,
                bytes,
            } => write!(
                formatter,
                "no order between {first} and {second}, which share {bytes} bytes"
            ),
            Complaint::Pageable { copy } => write!(formatter, "{copy} is pageable"),
            Complaint::FreedInUse { release, access } => {
                write!(formatter, "{release} while {access} may still run")
            }
            Complaint::Unmapped { memory } => {
                write!(formatter, "{memory} was unmapped while it was registered")
            }
            Complaint::OverlapInBatch { batch } => {
                write!(formatter, "copies of {batch} overlap")
            }
        }
    }
}

/// When something happens, as far as clocks know.
#[derive(Debug, Clone)]
pub(crate) struct Moment {
    pub(crate) actor: ActorNumber,
    pub(crate) epoch: u64,
    pub(crate) clock: Arc<VectorClock>,
    pub(crate) name: Arc<str>,
}

impl Moment {
    /// Whether `other` is known to have ended when this happens.
    fn is_after(&self, other: &Moment) -> bool {
        other.epoch <= self.clock.of(other.actor)
    }
}

/// An access to memory, at addresses that are the same for all mappings of it.
#[derive(Debug, Clone)]
struct MemoryAccess {
    range: Range<u64>,
    is_write: bool,
    moment: Moment,
}

/// All accesses that something may still conflict with.
#[derive(Debug, Default)]
pub(crate) struct OrderChecker {
    history: Vec<MemoryAccess>,
    pub(crate) complaints: Vec<Complaint>,
    /// Size of the history at which it is searched for what everything knows.
    limit: usize,
}

impl OrderChecker {
    /// Enters an access and compares it with those before.
    pub(crate) fn enter(&mut self, range: Range<u64>, is_write: bool, moment: &Moment) {
        for before in &self.history {
            let start = before.range.start.max(range.start);
            let end = before.range.end.min(range.end);
            let conflicts = start < end
                && (is_write || before.is_write)
                // The parts of one piece of work are entered one by one, and have no order among each other.
                && (before.moment.actor, before.moment.epoch) != (moment.actor, moment.epoch);
            if conflicts && !moment.is_after(&before.moment) && !before.moment.is_after(moment) {
                let complaint = Complaint::Race {
                    first: verb(before.is_write, &before.moment.name),
                    second: verb(is_write, &moment.name),
                    bytes: end - start,
                };
                if !self.complaints.contains(&complaint) {
                    self.complaints.push(complaint);
                }
            }
        }
        self.history.push(MemoryAccess {
            range,
            is_write,
            moment: moment.clone(),
        });
    }

    /// Complains about uses of `range` that the host does not know to have ended, and forgets the range.
    pub(crate) fn release(&mut self, range: &Range<u64>, host: &VectorClock, release: &str) {
        let touches = |access: &MemoryAccess| {
            access.range.start < range.end && range.start < access.range.end
        };
        for access in self.history.iter().filter(|access| touches(access)) {
            if access.moment.epoch > host.of(access.moment.actor) {
                self.complaints.push(Complaint::FreedInUse {
                    release: release.to_owned(),
                    access: verb(access.is_write, &access.moment.name),
                });
                break;
            }
        }
        self.history.retain(|access| !touches(access));
    }

    /// Forgets accesses that the host and all of `waiting` know to have ended.
    pub(crate) fn forget<'a>(
        &mut self,
        host: &VectorClock,
        waiting: impl Iterator<Item = &'a VectorClock> + Clone,
    ) {
        if self.history.len() < self.limit.max(HISTORY_MIN) {
            return;
        }
        let knows = |clock: &VectorClock, moment: &Moment| moment.epoch <= clock.of(moment.actor);
        self.history.retain(|access| {
            !knows(host, &access.moment) || !waiting.clone().all(|c| knows(c, &access.moment))
        });
        self.limit = 2 * self.history.len();
    }
}

fn verb(is_write: bool, name: &str) -> String {
    let verb = if is_write { "writes" } else { "reads" };
    format!("{name}, which {verb}")
}
