//! The errors of stores: what failed, and whether trying again helps.

use std::{error::Error, fmt, sync::Arc};

/// The call of a store that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum StoreOperation {
    /// Opening the store.
    Open,
    /// [`has`](super::SharedStore::has).
    Has,
    /// [`read`](super::SharedStore::read).
    Read,
    /// [`write`](super::SharedStore::write).
    Write,
    /// [`remove`](super::SharedStore::remove).
    Remove,
    /// [`touch`](super::SharedStore::touch).
    Touch,
    /// [`list`](super::SharedStore::list).
    List,
}

impl fmt::Display for StoreOperation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            StoreOperation::Open => "open",
            StoreOperation::Has => "has",
            StoreOperation::Read => "read",
            StoreOperation::Write => "write",
            StoreOperation::Remove => "remove",
            StoreOperation::Touch => "touch",
            StoreOperation::List => "list",
        })
    }
}

/// What the caller can do about an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum StoreErrorKind {
    /// Try again later: the network, a server that is down, overloaded or slow.
    Transient,
    /// This operation does not succeed, others may: a full store, a value that is too large.
    Refused,
    /// No operation succeeds with these settings: wrong credentials, a missing bucket.
    Configuration,
}

/// Why a call of a store failed.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{operation}: {what}")]
pub struct SharedStoreError {
    kind: StoreErrorKind,
    operation: StoreOperation,
    what: String,
    source: Option<Arc<dyn Error + Send + Sync>>,
}

impl SharedStoreError {
    /// An error of this kind. `what` is what happened, with the values and the remedy, and without
    /// secrets.
    #[must_use]
    pub fn new(
        kind: StoreErrorKind,
        operation: StoreOperation,
        what: impl Into<String>,
    ) -> SharedStoreError {
        SharedStoreError {
            kind,
            operation,
            what: what.into(),
            source: None,
        }
    }

    /// An error after which the operation may succeed later.
    #[must_use]
    pub fn transient(operation: StoreOperation, what: impl Into<String>) -> SharedStoreError {
        SharedStoreError::new(StoreErrorKind::Transient, operation, what)
    }

    /// An operation that the store refuses.
    #[must_use]
    pub fn refused(operation: StoreOperation, what: impl Into<String>) -> SharedStoreError {
        SharedStoreError::new(StoreErrorKind::Refused, operation, what)
    }

    /// An error of the store's settings.
    #[must_use]
    pub fn configuration(operation: StoreOperation, what: impl Into<String>) -> SharedStoreError {
        SharedStoreError::new(StoreErrorKind::Configuration, operation, what)
    }

    /// A call that ended because its deadline had passed.
    #[must_use]
    pub fn late(operation: StoreOperation) -> SharedStoreError {
        SharedStoreError::transient(operation, "no answer by the deadline")
    }

    /// Adds the error that caused it.
    #[must_use]
    pub fn caused_by(mut self, source: impl Error + Send + Sync + 'static) -> SharedStoreError {
        self.source = Some(Arc::new(source));
        self
    }

    /// What the caller can do about it.
    #[must_use]
    pub fn kind(&self) -> StoreErrorKind {
        self.kind
    }

    /// The call that failed.
    #[must_use]
    pub fn operation(&self) -> StoreOperation {
        self.operation
    }
}
