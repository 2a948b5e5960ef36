//! The errors of tiers and of the cache.

mod batch;
mod convert;
mod folder;
mod mismatch;
mod request;
mod settings;
mod slot;

pub use batch::BatchError;
pub use convert::ConvertError;
pub use folder::{FileChange, FolderError};
pub use mismatch::MismatchError;
pub use request::RequestError;
pub use settings::SettingsError;
pub use slot::SlotError;

use std::{error::Error, io, sync::Arc};

use kvtile_blocks::BlocksError;
use kvtile_layout::LayoutError;
use kvtile_transfer::TransferError;
use thiserror::Error as ThisError;

use crate::medium::{NotLocal, NotPlain};

/// Why a tier or the cache refused an operation. Every message contains the values and a remedy.
#[derive(Clone, Debug, ThisError)]
#[non_exhaustive]
pub enum TierError {
    /// An error of a layout, of memory or of a transfer.
    #[error(transparent)]
    Transfer(#[from] TransferError),
    /// An error of a pool or of the event log.
    #[error(transparent)]
    Blocks(#[from] BlocksError),
    /// A layout or a folder that belongs to another identity.
    #[error(transparent)]
    Mismatch(#[from] MismatchError),
    /// Settings that a cache or a tier cannot have.
    #[error(transparent)]
    Settings(#[from] SettingsError),
    /// A lookup, load or store that a cache refuses or cannot complete.
    #[error(transparent)]
    Request(#[from] RequestError),
    /// A batch that does not fit its tier, or a tier that breaks its contract.
    #[error(transparent)]
    Batch(#[from] BatchError),
    /// A folder that cannot be opened, read or written as a disk tier.
    #[error(transparent)]
    Folder(#[from] FolderError),
    /// A conversion of a folder that is refused.
    #[error(transparent)]
    Convert(#[from] ConvertError),
    /// A slot of a disk tier that is not in the required state.
    #[error(transparent)]
    Slot(#[from] SlotError),
    /// An error of a tier that is implemented outside this crate.
    #[error("{0}")]
    Outside(#[source] Arc<dyn Error + Send + Sync>),
}

impl From<LayoutError> for TierError {
    fn from(error: LayoutError) -> TierError {
        TierError::Transfer(error.into())
    }
}

impl TierError {
    /// An error of a tier that is implemented outside this crate.
    pub fn outside(error: impl Error + Send + Sync + 'static) -> TierError {
        TierError::Outside(Arc::new(error))
    }

    pub(crate) fn thread(error: io::Error) -> TierError {
        let source = Arc::new(error);
        TierError::Request(RequestError::Thread { source })
    }

    pub(crate) fn file(operation: &'static str, file: String, error: io::Error) -> TierError {
        let inner = error.get_ref();
        if let Some(NotLocal { file_system }) = inner.and_then(|inner| inner.downcast_ref()) {
            return TierError::Folder(FolderError::NotLocal {
                folder: file,
                file_system: file_system.clone(),
            });
        }
        if let Some(NotPlain { found }) = inner.and_then(|inner| inner.downcast_ref()) {
            let found = *found;
            return TierError::Folder(FolderError::NotAPlainFile { file, found });
        }
        let full = [
            io::ErrorKind::StorageFull,
            io::ErrorKind::QuotaExceeded,
            io::ErrorKind::FileTooLarge,
        ];
        let is_full = full.contains(&error.kind());
        let source = Arc::new(error);
        if is_full {
            return TierError::Folder(FolderError::DiskFull {
                operation,
                file,
                source,
            });
        }
        TierError::Folder(FolderError::File {
            operation,
            file,
            source,
        })
    }
}
