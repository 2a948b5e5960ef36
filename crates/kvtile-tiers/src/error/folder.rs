//! A folder that cannot be opened, read or written as a disk tier.

use std::{fmt, io, sync::Arc};

use kvtile_layout::ShownText;
use thiserror::Error;

use crate::medium::{FoundInstead, LockHolder};

/// A folder that cannot be opened, read or written as a disk tier.
#[derive(Clone, Debug, Error)]
#[non_exhaustive]
pub enum FolderError {
    /// The sync after a clear failed, so the erasures are not durable: a crash may restore some of
    /// the blocks.
    #[error("the cleared blocks are not yet erased durably on the disk: the sync failed")]
    NotDurable,
    /// Another process, or another store of this process, holds the lock of the folder.
    #[error("{folder} is in use{}", in_use(.holder))]
    InUse {
        /// The folder.
        folder: String,
        /// The process that holds the lock, as far as it is visible.
        holder: LockHolder,
    },
    /// A write through a tier that only reads its folder.
    #[error(
        "this process only reads {folder}, {}; store blocks in the process that writes there",
        writer(.holder.as_ref())
    )]
    ReadsOnly {
        /// The folder.
        folder: String,
        /// The process that writes there, as far as it is visible; `None` if there is none.
        holder: Option<LockHolder>,
    },
    /// A store is used in a forked child of the process that opened it.
    #[error(
        "the store was opened by process {opened_by}, and this is a child of it made by fork; open a \
         folder of its own in the child"
    )]
    Forked {
        /// The process that opened it.
        opened_by: u32,
    },
    /// A folder on a file system that is not known to be local. The folder is unchanged.
    #[error(
        "{folder} is on {file_system}, which is not known to be a local file system: its locks may be \
         unknown to other machines, and two caches would write over each other's blocks. Give a \
         folder on a disk of this machine (ext4, xfs, btrfs or another local file system), or use this one as a \
         shared store, which takes no locks"
    )]
    NotLocal {
        /// The folder, or the file.
        folder: String,
        /// The name of the file system.
        file_system: String,
    },
    /// A folder with files that do not belong to a disk tier. The folder is unchanged.
    #[error("{folder} is no disk tier and holds {found:?}; give an empty folder or a new one")]
    ForeignFolder {
        /// The folder.
        folder: String,
        /// The first foreign file name.
        found: String,
    },
    /// An inspected folder contains no disk tier.
    #[error("{folder} is no disk tier: it has no manifest")]
    NotAStore {
        /// The folder.
        folder: String,
    },
    /// A manifest that is damaged or not readable.
    #[error(
        "the manifest of {folder} cannot be used: {problem}; its blocks may belong to another \
         model, so clear the folder (`kvtile cache clear`)"
    )]
    ManifestDamaged {
        /// The folder.
        folder: String,
        /// What is wrong with the manifest.
        problem: String,
    },
    /// A folder in the format of an older or newer version of kvtile. The folder is unchanged.
    #[error(
        "{folder} has version {found} of the format on disk, and this kvtile reads version {ours}; \
         {}", version_advice(*found, *ours)
    )]
    FolderVersion {
        /// The folder.
        folder: String,
        /// The format version of the folder.
        found: u32,
        /// The format version that this kvtile reads and writes.
        ours: u32,
    },
    /// A folder with several groups, where a folder of one is needed. The folder is unchanged.
    #[error(
        "{folder} keeps {} groups ({}), and this works on folders of one group only",
        .groups.len(), .groups.join(", ")
    )]
    FolderGroups {
        /// The folder.
        folder: String,
        /// The names of its groups.
        groups: Vec<String>,
    },
    /// A file of an open folder, or the folder itself, was removed, replaced, truncated or
    /// overwritten. What the store writes to it does not outlive the process, and earlier durable
    /// blocks are lost too.
    #[error(
        "{file} {change} while the store had it open; nothing in it outlives this process. Close \
         the cache and open it again"
    )]
    FileGone {
        /// The file, or the folder.
        file: String,
        /// What happened to it.
        change: FileChange,
    },
    /// A file of the disk tier is not a plain file. It was not opened.
    #[error(
        "{file} is {found}; a disk tier opens only plain files of its own folder. Remove it, or give \
         another folder"
    )]
    NotAPlainFile {
        /// The file.
        file: String,
        /// The kind of file that was found.
        found: FoundInstead,
    },
    /// The disk is full, or a quota or file size limit is reached.
    #[error("no room to {operation} {file}")]
    DiskFull {
        /// The operation.
        operation: &'static str,
        /// The file.
        file: String,
        /// The system's error.
        source: Arc<io::Error>,
    },
    /// A file operation failed.
    #[error("cannot {operation} {file}")]
    File {
        /// The operation.
        operation: &'static str,
        /// The file or folder.
        file: String,
        /// The system's error.
        source: Arc<io::Error>,
    },
}

/// The part of the message that names the process that writes a folder.
fn writer(holder: Option<&LockHolder>) -> String {
    let Some(holder) = holder else {
        return "which no process writes now".to_owned();
    };
    match (holder.pid.or(holder.opened_by), &holder.program) {
        (Some(pid), Some(program)) => {
            format!("which process {pid} ({}) writes", ShownText(program))
        }
        (Some(pid), None) => format!("which process {pid} writes"),
        (None, _) => "which a process that cannot be seen from here writes".to_owned(),
    }
}

/// The part of the message that names the holder of the lock and a remedy.
fn in_use(holder: &LockHolder) -> String {
    let advice = "give each process a folder of its own, or stop that process";
    let named = |pid: u32| match &holder.program {
        Some(program) => format!("process {pid} ({})", ShownText(program)),
        None => format!("process {pid}"),
    };
    match (holder.pid, holder.opened_by) {
        (Some(pid), Some(opened_by)) if pid != opened_by => format!(
            " by {}, which has it from process {opened_by}, which opened it; {advice}",
            named(pid)
        ),
        (Some(pid), _) => format!(" by {}; {advice}", named(pid)),
        (None, Some(opened_by)) => format!(
            " by a process that cannot be seen from here (another user's, or in another container); \
             its lock says that process {opened_by} opened it; {advice}"
        ),
        (None, None) => format!(" by a process that cannot be seen from here; {advice}"),
    }
}

/// What happened to a file that a store has open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum FileChange {
    /// It was removed or renamed.
    Removed,
    /// Another file took its place.
    Replaced,
    /// It was truncated.
    Cut {
        /// Its length now, in bytes.
        length_bytes: u64,
    },
    /// Foreign bytes were written into it.
    Overwritten,
}

impl fmt::Display for FileChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            FileChange::Removed => f.write_str("was removed or renamed"),
            FileChange::Replaced => f.write_str("was replaced by another one"),
            FileChange::Cut { length_bytes } => write!(f, "was cut to {length_bytes} bytes"),
            FileChange::Overwritten => f.write_str("was overwritten"),
        }
    }
}

/// What to do about a folder of another version.
fn version_advice(found: u32, ours: u32) -> &'static str {
    match found < ours {
        true => "copy its blocks to a new folder with `kvtile cache convert`, or clear it",
        false => "use a newer kvtile, or another folder",
    }
}
