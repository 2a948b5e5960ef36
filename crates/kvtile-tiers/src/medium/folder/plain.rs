//! Opens plain files of a folder by name, and nothing else.
//!
//! A name in a folder may refer to something else: a link to a file elsewhere, a hard link of such
//! a file, a pipe, a device. This module opens none of these, so the store never overwrites or
//! reads anything outside the folder by mistake. The folder itself may be reached through links.

use std::{fmt, fs::File, io};

use rustix::{
    fd::OwnedFd,
    fs::{AtFlags, FileType, Mode, OFlags, Stat, fstat, openat, statat},
    io::{Errno, retry_on_intr},
};

/// The mode of new files: only their user may read them, because prompts can be recovered from
/// them.
pub(super) const FILE_MODE: Mode = Mode::from_raw_mode(0o600);

/// What a name refers to instead of a plain file with one name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum FoundInstead {
    /// A symbolic link, regardless of its target.
    SymbolicLink,
    /// A file with other names, which may lie outside the folder.
    HardLink {
        /// How many names it has.
        names: u64,
    },
    /// A folder.
    Folder,
    /// A pipe.
    Pipe,
    /// A socket.
    Socket,
    /// A device.
    Device,
}

impl fmt::Display for FoundInstead {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            FoundInstead::SymbolicLink => f.write_str("a symbolic link"),
            FoundInstead::HardLink { names } => write!(f, "a file with {names} names (hard links)"),
            FoundInstead::Folder => f.write_str("a folder"),
            FoundInstead::Pipe => f.write_str("a pipe"),
            FoundInstead::Socket => f.write_str("a socket"),
            FoundInstead::Device => f.write_str("a device"),
        }
    }
}

/// A name does not refer to a plain file; the inner error of a medium's [`io::Error`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("it is {found}, not a plain file")]
pub struct NotPlain {
    /// What the name refers to.
    pub found: FoundInstead,
}

impl From<NotPlain> for io::Error {
    fn from(error: NotPlain) -> io::Error {
        io::Error::new(io::ErrorKind::InvalidInput, error)
    }
}

/// The purpose of opening a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FileAccess {
    /// Reading an existing file.
    Read,
    /// Reading and writing; the file is created if it is missing.
    Write,
}

/// Device and inode number: two files that exist at the same time differ in them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FileNumber {
    device: u64,
    inode: u64,
}

impl FileNumber {
    pub(super) fn of(stat: &Stat) -> FileNumber {
        FileNumber {
            device: stat.st_dev,
            inode: stat.st_ino,
        }
    }
}

/// Opens a plain file of the folder. Its length is not changed.
pub(super) fn open_plain(folder: &File, name: &str, access: FileAccess) -> io::Result<OwnedFd> {
    // Checked first, because opening a device or a pipe may already have an effect.
    match stat_name(folder, name)? {
        Some(stat) => check_plain(&stat, access)?,
        None if access == FileAccess::Read => return Err(io::ErrorKind::NotFound.into()),
        None => {}
    }
    // Without NONBLOCK, opening a pipe that was created since the check would block.
    let careful = OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let access_flags = match access {
        FileAccess::Read => OFlags::RDONLY,
        FileAccess::Write => OFlags::RDWR | OFlags::CREATE,
    };
    let open = || openat(folder, name, careful | access_flags, FILE_MODE);
    let fd = match retry_on_intr(open) {
        Err(Errno::LOOP) => return Err(symbolic_link().into()),
        opened => opened?,
    };
    check_plain(&fstat(&fd)?, access)?;
    Ok(fd)
}

/// The metadata of a name; `None` if it does not exist.
pub(super) fn stat_name(folder: &File, name: &str) -> io::Result<Option<Stat>> {
    match statat(folder, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(stat)),
        Err(Errno::NOENT) => Ok(None),
        Err(errno) => Err(errno.into()),
    }
}

/// Refuses everything but a plain file, and for writing also a file with other names.
pub(super) fn check_plain(stat: &Stat, access: FileAccess) -> Result<(), NotPlain> {
    let found = match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => {
            #[expect(
                clippy::useless_conversion,
                reason = "the type differs between architectures"
            )]
            let names = u64::from(stat.st_nlink);
            if names <= 1 || access == FileAccess::Read {
                return Ok(());
            }
            FoundInstead::HardLink { names }
        }
        FileType::Symlink => FoundInstead::SymbolicLink,
        FileType::Directory => FoundInstead::Folder,
        FileType::Fifo => FoundInstead::Pipe,
        FileType::Socket => FoundInstead::Socket,
        _ => FoundInstead::Device,
    };
    Err(NotPlain { found })
}

fn symbolic_link() -> NotPlain {
    NotPlain {
        found: FoundInstead::SymbolicLink,
    }
}
