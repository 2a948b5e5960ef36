//! A store of immutable values, behind one trait: a folder, a bucket, a server, memory.
//!
//! A store knows names and bytes. It does not know blocks, checksums or identities, and it decides
//! nothing: it does not retry for long, does not cache presence, and does not evict for its callers.
//! The tier above every store does these once for all of them.
//!
//! Every implementation guarantees the following:
//!
//! - **A value never changes.** A name is written once with its final bytes; equal names have equal
//!   content. A second write of a name keeps the first value or replaces it with equal bytes.
//! - **A reader sees a whole value or none**, also if the writer dies.
//! - **Any value may disappear at any time**: evicted, expired, removed by another process. That is
//!   [`Ok(false)`](SharedStore::read), not an error.
//! - **Every call returns by its deadline** if it can. A call that cannot be taken back may return
//!   later; the caller does not wait for it.
//! - Calls come from many threads at once.

mod abilities;
mod deadline;
mod error;
mod name;
mod sink;

use std::{fmt, ops::Range, time::Duration};

pub use abilities::{SharedStoreAbilities, StoreExpiry};
pub use deadline::Deadline;
pub use error::{SharedStoreError, StoreErrorKind, StoreOperation};
pub use name::{InvalidValueName, ValueName};
use sink::RangeSink;
pub use sink::{SinkState, ValueSink, fill_sink};

/// The outcome of a write that did not fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ValueWritten {
    /// The store has a new value.
    New,
    /// The store already had a value of this name, or does not report whether it had.
    Present,
}

/// A value in a listing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListedValue {
    /// Its name.
    pub name: ValueName,
    /// Its size.
    pub bytes: u64,
    /// Time since it was written or touched, by the store's clock; `None` if the store does not
    /// know.
    pub age: Option<Duration>,
}

/// A page of a listing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ListPage {
    /// Values, in any order. A value that is written or removed during the listing may be missing.
    pub values: Vec<ListedValue>,
    /// Where the next page begins; `None` after the last page.
    pub next: Option<String>,
}

/// A store of immutable values. The [module](self) lists the guarantees of every implementation.
///
/// Calls block. The tier above runs them on threads of its own.
pub trait SharedStore: fmt::Debug + Send + Sync + 'static {
    /// What the store is, for messages and metrics, without secrets: `s3://bucket/prefix`.
    fn name(&self) -> &str;

    /// What the store can do; constant after opening.
    fn abilities(&self) -> SharedStoreAbilities;

    /// Whether the store has each value, in the order of `names`. At most
    /// [`batch_max`](SharedStoreAbilities::batch_max) names.
    ///
    /// # Errors
    /// A store that cannot answer.
    fn has(&self, names: &[ValueName], by: Deadline) -> Result<Vec<bool>, SharedStoreError>;

    /// Passes the bytes of a value to `sink`, from its first byte on and in order, until the value
    /// or the sink ends. `Ok(false)` if the store does not have the value; the sink got no byte
    /// then. A store may start over after a failure of its own only if the sink got no byte yet.
    ///
    /// # Errors
    /// A store that cannot answer, also in the middle of a value.
    fn read(
        &self,
        name: &ValueName,
        sink: &mut dyn ValueSink,
        by: Deadline,
    ) -> Result<bool, SharedStoreError>;

    /// As [`read`](SharedStore::read), but of some bytes of the value: those of `range` that it has. `Ok(false)` also where
    /// the store cannot tell an absent value from a range behind the end of one.
    ///
    /// The default reads the value from its first byte on. A store that reads no other bytes states it
    /// ([`reads_ranges`](SharedStoreAbilities::reads_ranges)).
    ///
    /// # Errors
    /// As [`read`](SharedStore::read).
    fn read_range(
        &self,
        name: &ValueName,
        range: Range<u64>,
        sink: &mut dyn ValueSink,
        by: Deadline,
    ) -> Result<bool, SharedStoreError> {
        self.read(name, &mut RangeSink::new(range, sink), by)
    }

    /// Writes a value: `parts` one after the other. No reader sees a part of it. `lifetime` is when
    /// the store may drop the value; a store that [never expires](StoreExpiry::Never) values ignores
    /// it.
    ///
    /// # Errors
    /// A store that is full, refuses the value, or cannot answer. The value may be there
    /// nevertheless.
    fn write(
        &self,
        name: &ValueName,
        parts: &[&[u8]],
        lifetime: Option<Duration>,
        by: Deadline,
    ) -> Result<ValueWritten, SharedStoreError>;

    /// Removes values and returns how many of them it had, as far as it knows. At most
    /// [`batch_max`](SharedStoreAbilities::batch_max) names.
    ///
    /// # Errors
    /// A store that cannot answer. Some of the values may be removed.
    fn remove(&self, names: &[ValueName], by: Deadline) -> Result<usize, SharedStoreError>;

    /// Renews the lifetime of values, from now on: `lifetime` as in [`SharedStore::write`]. Values
    /// that it does not have are ignored. At most
    /// [`batch_max`](SharedStoreAbilities::batch_max) names. A store whose values never expire sets
    /// their age to 0, so that a sweep keeps them longer.
    ///
    /// # Errors
    /// A store that cannot answer. Some of the values may be renewed.
    fn touch(
        &self,
        names: &[ValueName],
        lifetime: Option<Duration>,
        by: Deadline,
    ) -> Result<(), SharedStoreError>;

    /// A page of the values whose names begin with `under`, which ends with `/` or is empty. `after`
    /// is [`ListPage::next`] of the page before. Only sweeps and reports list. Objects of the store
    /// whose names are no [`ValueName`] are left out.
    ///
    /// # Errors
    /// A store that cannot answer, or that cannot list.
    fn list(
        &self,
        under: &str,
        after: Option<&str>,
        by: Deadline,
    ) -> Result<ListPage, SharedStoreError>;

    /// Removes what writers that died have left behind for longer than `older_than`, and returns how
    /// many such leftovers there were. Only sweeps call it. The default does nothing: stores whose
    /// writes leave nothing need no more.
    ///
    /// # Errors
    /// A store that cannot answer.
    fn remove_leftovers(
        &self,
        _older_than: Duration,
        _by: Deadline,
    ) -> Result<usize, SharedStoreError> {
        Ok(0)
    }
}
