//! Opening and creating files, and setting their length.

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

/// An open, checked file that is not yet a region.
struct CheckedFile {
    fd: OwnedFd,
    path: PathBuf,
    scratch: bool,
}

impl FileOptions {
    /// Opens read-only. Creating, extending and preallocating are then errors.
    #[must_use]
    pub fn read_only(mut self, read_only: bool) -> Self {
        self.read_only = read_only;
        self
    }

    /// Allows an existing file that is shorter than the region to be extended with zeroes.
    #[must_use]
    pub fn extend(mut self, extend: bool) -> Self {
        self.extend = extend;
        self
    }

    /// Requests transfers that bypass the page cache. A filesystem without direct I/O is no error:
    /// [`FileMemory::direct_io`] reports it.
    #[must_use]
    pub fn direct_io(mut self, wanted: bool) -> Self {
        self.direct_io = wanted;
        self
    }

    /// Requests that the filesystem reserve the space for all bytes now. A filesystem that cannot
    /// reserve is no error ([`FileMemory::preallocation`] reports it); too little space is one.
    #[must_use]
    pub fn preallocate(mut self, wanted: bool) -> Self {
        self.preallocate = wanted;
        self
    }

    /// Creates a file of `size` zero bytes that only its owner may read.
    ///
    /// # Errors
    ///
    /// [`MemoryError::AlreadyExists`] if the path exists, which stays unchanged;
    /// [`MemoryError::ZeroSize`], [`MemoryError::TooLarge`], [`MemoryError::ReadOnly`],
    /// [`MemoryError::NotFound`] (the folder), [`MemoryError::PermissionDenied`],
    /// [`MemoryError::OutOfSpace`], [`MemoryError::Io`]. On an error the new file is removed.
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
        let opened = CheckedFile {
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
    /// [`MemoryError::FileTooSmall`] if it is shorter and may not be extended,
    /// [`MemoryError::NotFound`], [`MemoryError::NotAFile`], [`MemoryError::PermissionDenied`],
    /// [`MemoryError::ZeroSize`], [`MemoryError::TooLarge`], [`MemoryError::ReadOnly`],
    /// [`MemoryError::OutOfSpace`], [`MemoryError::Io`]. The file keeps its bytes; if extending it
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

    /// As [`FileOptions::open`], for a file that is already open for reading and, unless the
    /// options are read-only, for writing. `path` names the file in messages; it is not opened.
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

    /// Extends the file where the options allow it, and makes it a region.
    fn fit(self, opened: CheckedFile, have: u64, size: usize) -> Result<FileMemory, MemoryError> {
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

    /// Creates an unnamed file of `size` zero bytes on the filesystem of `folder`. The kernel frees
    /// it when the region is dropped or the process ends, in any way.
    ///
    /// # Errors
    ///
    /// As [`FileOptions::create_new`].
    pub fn scratch(self, folder: impl AsRef<Path>, size: usize) -> Result<FileMemory, MemoryError> {
        let folder = folder.as_ref();
        check_size(size)?;
        self.check_writable(folder)?;
        check_limit(folder, size)?;
        // With EXCL, an unnamed file can never get a name.
        let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::EXCL | OFlags::CLOEXEC;
        let mode = Mode::RUSR | Mode::WUSR;
        let fd = match retry_on_intr(|| rustix::fs::open(folder, flags, mode)) {
            // Filesystems without unnamed files return one of these.
            Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::INVAL) => named_then_unlinked(folder),
            opened => opened,
        }
        .map_err(|errno| MemoryError::of_path("create a file in", folder, size as u64, errno))?;
        let opened = CheckedFile {
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

    /// Opens a regular file. Returns it and its length.
    fn open_existing(self, path: &Path) -> Result<(CheckedFile, u64), MemoryError> {
        let error = |errno| MemoryError::of_path("open", path, 0, errno);
        // Without NONBLOCK, opening a pipe would block before its type is known.
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

    /// Adopts an open regular file. Returns it and its length.
    fn adopt(self, fd: OwnedFd, path: &Path) -> Result<(CheckedFile, u64), MemoryError> {
        let error = |errno| MemoryError::of_path("open", path, 0, errno);
        let stat = rustix::fs::fstat(&fd).map_err(error)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(MemoryError::NotAFile {
                path: path.to_path_buf(),
            });
        }
        // Left on, NONBLOCK would make asynchronous reads fail instead of wait.
        rustix::fs::fcntl_setfl(&fd, self.access()).map_err(error)?;
        let opened = CheckedFile {
            fd,
            path: path.to_path_buf(),
            scratch: false,
        };
        Ok((opened, u64::try_from(stat.st_size).unwrap_or(0)))
    }

    /// Makes the region of a file that has its final length.
    fn finish(self, opened: CheckedFile, size: usize) -> Result<FileMemory, MemoryError> {
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
            // Read-ahead could cache ranges that other threads write directly. A file that takes no
            // advice only loses speed.
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

impl CheckedFile {
    fn grow(&self, size: usize) -> Result<(), MemoryError> {
        length::grow(self.fd.as_fd(), size)
            .map_err(|errno| MemoryError::of_path("extend", &self.path, size as u64, errno))
    }
}

fn check_limit(path: &Path, size: usize) -> Result<(), MemoryError> {
    length::check_limit(size)
        .map_err(|errno| MemoryError::of_path("write", path, size as u64, errno))
}

/// An unnamed file for filesystems without O_TMPFILE: created with a name and unlinked at once.
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

/// Removes the file that this call created, unless the path names another file by now.
fn remove_created(path: &Path, created: Option<Stat>) {
    let now = rustix::fs::statat(CWD, path, AtFlags::SYMLINK_NOFOLLOW).ok();
    let same = created
        .zip(now)
        .is_some_and(|(ours, now)| (ours.st_dev, ours.st_ino) == (now.st_dev, now.st_ino));
    if same {
        // The caller gets the error that led here, not one of this cleanup.
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
