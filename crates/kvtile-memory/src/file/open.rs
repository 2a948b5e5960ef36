//! Opening and creating files, and giving them their length.

use super::direct::DirectFile;
use super::length::{self, Preallocation};
use super::{DirectState, FileMemory};
use crate::MemoryError;
use crate::region::check_size;
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{Advice, AtFlags, CWD, FileType, Mode, OFlags, Stat};
use rustix::io::{Errno, retry_on_intr};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

/// How a file is opened or created; all options are off by default.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct FileOptions {
    read_only: bool,
    extend: bool,
    direct_io: bool,
    preallocate: bool,
}

/// A file that is open and checked, not yet a region.
struct Opened {
    fd: OwnedFd,
    path: PathBuf,
    scratch: bool,
}

impl FileOptions {
    /// Opens for reading alone. Creating, extending and pre-allocating are errors then.
    #[must_use]
    pub fn read_only(mut self, read_only: bool) -> Self {
        self.read_only = read_only;
        self
    }

    /// Lets an existing file that is shorter than the region grow, by zeroes.
    #[must_use]
    pub fn extend(mut self, extend: bool) -> Self {
        self.extend = extend;
        self
    }

    /// Asks for transfers that pass by the page cache. A filesystem that cannot is no error:
    /// [`FileMemory::direct_io`] tells.
    #[must_use]
    pub fn direct_io(mut self, wanted: bool) -> Self {
        self.direct_io = wanted;
        self
    }

    /// Asks the filesystem to reserve the room for all bytes now. A filesystem that cannot is no
    /// error ([`FileMemory::preallocation`] tells), one without the room is.
    #[must_use]
    pub fn preallocate(mut self, wanted: bool) -> Self {
        self.preallocate = wanted;
        self
    }

    /// Creates a file of `size` bytes that only the user may read, all zero.
    ///
    /// # Errors
    ///
    /// [`MemoryError::AlreadyExists`] if anything has that name, which is left as it is;
    /// [`MemoryError::ZeroSize`], [`MemoryError::TooLarge`], [`MemoryError::ReadOnly`],
    /// [`MemoryError::NotFound`] (the folder), [`MemoryError::PermissionDenied`],
    /// [`MemoryError::OutOfSpace`], [`MemoryError::Io`]. The file is removed again then.
    pub fn create_new(
        self,
        path: impl AsRef<Path>,
        size: usize,
    ) -> Result<FileMemory, MemoryError> {
        let path = path.as_ref();
        check_size(size)?;
        self.check_writable(path)?;
        check_limit(path, size)?;
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let fd = retry_on_intr(|| rustix::fs::open(path, flags, Mode::RUSR | Mode::WUSR))
            .map_err(|errno| MemoryError::of_path("create", path, size as u64, errno))?;
        let opened = Opened {
            fd,
            path: path.to_path_buf(),
            scratch: false,
        };
        let created = rustix::fs::fstat(&opened.fd).ok();
        opened
            .grow(size)
            .and_then(|()| self.finish(opened, size))
            .inspect_err(|_| remove_created(path, created))
    }

    /// Opens an existing file as a region of its first `size` bytes. Its content stays.
    ///
    /// # Errors
    ///
    /// [`MemoryError::FileTooSmall`] if it is shorter and may not grow,
    /// [`MemoryError::NotFound`], [`MemoryError::NotAFile`], [`MemoryError::PermissionDenied`],
    /// [`MemoryError::ZeroSize`], [`MemoryError::TooLarge`], [`MemoryError::ReadOnly`],
    /// [`MemoryError::OutOfSpace`], [`MemoryError::Io`]. The file is there as before; where growing
    /// failed half-way it may be longer, never shorter.
    pub fn open(self, path: impl AsRef<Path>, size: usize) -> Result<FileMemory, MemoryError> {
        let path = path.as_ref();
        check_size(size)?;
        if self.extend || self.preallocate {
            self.check_writable(path)?;
        }
        let (opened, have) = self.open_existing(path)?;
        self.fit(opened, have, size)
    }

    /// As [`FileOptions::open`], of a file that is open already, for reading and, unless the options
    /// say otherwise, for writing. `path` is what the file is called in messages; it is not opened.
    ///
    /// # Errors
    ///
    /// As [`FileOptions::open`].
    pub fn open_fd(
        self,
        fd: OwnedFd,
        path: impl AsRef<Path>,
        size: usize,
    ) -> Result<FileMemory, MemoryError> {
        let path = path.as_ref();
        check_size(size)?;
        if self.extend || self.preallocate {
            self.check_writable(path)?;
        }
        let (opened, have) = self.adopt(fd, path)?;
        self.fit(opened, have, size)
    }

    /// Lets the file grow where it may, and makes it a region.
    fn fit(self, opened: Opened, have: u64, size: usize) -> Result<FileMemory, MemoryError> {
        if have < size as u64 {
            if !self.extend {
                return Err(MemoryError::FileTooSmall {
                    path: opened.path,
                    have,
                    need: size as u64,
                });
            }
            check_limit(&opened.path, size)?;
            opened.grow(size)?;
        }
        self.finish(opened, size)
    }

    /// Opens an existing file as a region of all its bytes.
    ///
    /// # Errors
    ///
    /// As [`FileOptions::open`]; an empty file is [`MemoryError::ZeroSize`].
    pub fn open_whole(self, path: impl AsRef<Path>) -> Result<FileMemory, MemoryError> {
        let path = path.as_ref();
        if self.preallocate {
            self.check_writable(path)?;
        }
        let (opened, have) = self.open_existing(path)?;
        let size = usize::try_from(have).map_err(|_| MemoryError::TooLarge { bytes: have })?;
        check_size(size)?;
        self.finish(opened, size)
    }

    /// Opens the file if it exists, as [`FileOptions::open`], else creates it, as
    /// [`FileOptions::create_new`].
    ///
    /// # Errors
    ///
    /// As either.
    pub fn open_or_create(
        self,
        path: impl AsRef<Path>,
        size: usize,
    ) -> Result<FileMemory, MemoryError> {
        let path = path.as_ref();
        match self.create_new(path, size) {
            Err(MemoryError::AlreadyExists { .. }) => self.open(path, size),
            created => created,
        }
    }

    /// Creates a file of `size` zero bytes on the filesystem of `folder` that has no name and is
    /// gone with the region, or with the process, however that ends.
    ///
    /// # Errors
    ///
    /// As [`FileOptions::create_new`].
    pub fn scratch(self, folder: impl AsRef<Path>, size: usize) -> Result<FileMemory, MemoryError> {
        let folder = folder.as_ref();
        check_size(size)?;
        self.check_writable(folder)?;
        check_limit(folder, size)?;
        // With EXCL, an unnamed file can never be given a name.
        let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::EXCL | OFlags::CLOEXEC;
        let mode = Mode::RUSR | Mode::WUSR;
        let fd = match retry_on_intr(|| rustix::fs::open(folder, flags, mode)) {
            // Filesystems without unnamed files say one of these.
            Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::INVAL) => named_then_unlinked(folder),
            opened => opened,
        }
        .map_err(|errno| MemoryError::of_path("create a file in", folder, size as u64, errno))?;
        let opened = Opened {
            fd,
            path: folder.to_path_buf(),
            scratch: true,
        };
        opened.grow(size)?;
        self.finish(opened, size)
    }

    fn check_writable(self, path: &Path) -> Result<(), MemoryError> {
        if self.read_only {
            return Err(MemoryError::ReadOnly {
                path: path.to_path_buf(),
            });
        }
        Ok(())
    }

    /// Opens a regular file and tells its length.
    fn open_existing(self, path: &Path) -> Result<(Opened, u64), MemoryError> {
        let error = |errno| MemoryError::of_path("open", path, 0, errno);
        // Without NONBLOCK, a pipe would hold us up before we see what it is.
        let flags = self.access() | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
        let fd = retry_on_intr(|| rustix::fs::open(path, flags, Mode::empty())).map_err(error)?;
        self.adopt(fd, path)
    }

    fn access(self) -> OFlags {
        match self.read_only {
            true => OFlags::RDONLY,
            false => OFlags::RDWR,
        }
    }

    /// Takes an open regular file and tells its length.
    fn adopt(self, fd: OwnedFd, path: &Path) -> Result<(Opened, u64), MemoryError> {
        let error = |errno| MemoryError::of_path("open", path, 0, errno);
        let stat = rustix::fs::fstat(&fd).map_err(error)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(MemoryError::NotAFile {
                path: path.to_path_buf(),
            });
        }
        // Left on, NONBLOCK would make asynchronous reads fail instead of wait.
        rustix::fs::fcntl_setfl(&fd, self.access()).map_err(error)?;
        let opened = Opened {
            fd,
            path: path.to_path_buf(),
            scratch: false,
        };
        Ok((opened, u64::try_from(stat.st_size).unwrap_or(0)))
    }

    /// Makes the region of a file that has its length.
    fn finish(self, opened: Opened, size: usize) -> Result<FileMemory, MemoryError> {
        if !self.read_only {
            check_limit(&opened.path, size)?;
        }
        let preallocation = if self.preallocate {
            length::preallocate(opened.fd.as_fd(), size).map_err(|errno| {
                MemoryError::of_path("reserve room for", &opened.path, size as u64, errno)
            })?
        } else {
            Preallocation::NotRequested
        };
        let direct = if self.direct_io {
            DirectFile::open(opened.fd.as_fd(), !self.read_only)
        } else {
            DirectState::NotRequested
        };
        if matches!(direct, DirectState::Open(_)) {
            // What is read ahead lies in ranges that others may be writing directly. A file that
            // takes no advice only loses speed.
            let _ = rustix::fs::fadvise(&opened.fd, 0, None, Advice::Random);
        }
        Ok(FileMemory {
            fd: opened.fd,
            direct,
            path: opened.path,
            scratch: opened.scratch,
            size,
            writable: !self.read_only,
            preallocation,
        })
    }
}

impl Opened {
    fn grow(&self, size: usize) -> Result<(), MemoryError> {
        length::grow(self.fd.as_fd(), size)
            .map_err(|errno| MemoryError::of_path("extend", &self.path, size as u64, errno))
    }
}

fn check_limit(path: &Path, size: usize) -> Result<(), MemoryError> {
    length::check_limit(size)
        .map_err(|errno| MemoryError::of_path("write", path, size as u64, errno))
}

/// A file that had a name for a moment, for filesystems without unnamed files.
fn named_then_unlinked(folder: &Path) -> Result<OwnedFd, Errno> {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    const ATTEMPTS: u32 = 1000;
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    for _ in 0..ATTEMPTS {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = folder.join(format!(".kvtile-scratch-{}-{number}", std::process::id()));
        match rustix::fs::open(&path, flags, Mode::RUSR | Mode::WUSR) {
            Ok(fd) => {
                rustix::fs::unlink(&path)?;
                return Ok(fd);
            }
            Err(Errno::EXIST | Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    Err(Errno::EXIST)
}

/// Removes the file that this call created, unless its name has come to mean another.
fn remove_created(path: &Path, created: Option<Stat>) {
    let now = rustix::fs::statat(CWD, path, AtFlags::SYMLINK_NOFOLLOW).ok();
    let same = created
        .zip(now)
        .is_some_and(|(ours, now)| (ours.st_dev, ours.st_ino) == (now.st_dev, now.st_ino));
    if same {
        // The error that led here is what the caller needs to hear.
        let _ = rustix::fs::unlink(path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn a_file_without_unnamed_files_leaves_no_name_behind() {
        let folder = tempfile::tempdir().unwrap();
        let first = named_then_unlinked(folder.path()).unwrap();
        let second = named_then_unlinked(folder.path()).unwrap();
        rustix::io::pwrite(&first, b"abc", 0).unwrap();
        assert_eq!(rustix::fs::fstat(&second).unwrap().st_size, 0);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
