//! Opening files of a folder by name, and nothing that only looks like one.
//!
//! A name in a folder may have been made to stand for something else: a link to a file elsewhere, a
//! second name of such a file, a pipe, a device. Nothing of that kind is opened, so nothing outside
//! the folder is ever overwritten or read in the place of what belongs here. The folder itself may
//! be reached through links.

use std::{fmt, fs::File, io};

use rustix::{
    fd::OwnedFd,
    fs::{AtFlags, FileType, Mode, OFlags, Stat, fstat, openat, statat},
    io::{Errno, retry_on_intr},
};

/// Files that only the user may read, as prompts can be told from them.
pub(super) const FILE_MODE: Mode = Mode::from_raw_mode(0o600);

/// What stands in the place of a plain file with one name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum FoundInstead {
    /// A symbolic link, wherever it leads.
    SymbolicLink,
    /// A file with other names, which may be anybody's.
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

/// A name that does not stand for a plain file; inside the [`io::Error`] of a medium.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("it is {found}, not a plain file")]
pub struct NotPlain {
    /// What was found.
    pub found: FoundInstead,
}

impl From<NotPlain> for io::Error {
    fn from(error: NotPlain) -> io::Error {
        io::Error::new(io::ErrorKind::InvalidInput, error)
    }
}

/// What a file is opened for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Access {
    /// Reading what is there.
    Read,
    /// Reading and writing; the file is made where it is missing.
    Write,
}

/// Which file something is: no two that are there at the same time have the same.
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
pub(super) fn open_plain(folder: &File, name: &str, access: Access) -> io::Result<OwnedFd> {
    // Looked at first, because opening a device or a pipe may already do something.
    match stat_name(folder, name)? {
        Some(stat) => check_plain(&stat, access)?,
        None if access == Access::Read => return Err(io::ErrorKind::NotFound.into()),
        None => {}
    }
    // Without NONBLOCK, a pipe that came meanwhile would hold us up before we see what it is.
    let careful = OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let access_flags = match access {
        Access::Read => OFlags::RDONLY,
        Access::Write => OFlags::RDWR | OFlags::CREATE,
    };
    let open = || openat(folder, name, careful | access_flags, FILE_MODE);
    let fd = match retry_on_intr(open) {
        Err(Errno::LOOP) => return Err(symbolic_link().into()),
        opened => opened?,
    };
    check_plain(&fstat(&fd)?, access)?;
    Ok(fd)
}

/// What a name stands for; `None` where there is no such name.
pub(super) fn stat_name(folder: &File, name: &str) -> io::Result<Option<Stat>> {
    match statat(folder, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(stat)),
        Err(Errno::NOENT) => Ok(None),
        Err(errno) => Err(errno.into()),
    }
}

/// Refuses what is not a plain file, and a file with other names where it would be written to.
pub(super) fn check_plain(stat: &Stat, access: Access) -> Result<(), NotPlain> {
    let found = match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => {
            #[expect(
                clippy::useless_conversion,
                reason = "the type differs between architectures"
            )]
            let names = u64::from(stat.st_nlink);
            if names <= 1 || access == Access::Read {
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
