//! Opening and creating files, and giving them their length.

use super::direct::DirectFile;
use super::{DirectState, FileMemory};
use crate::MemoryError;
use crate::region::check_size;
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{Advice, AtFlags, CWD, FallocateFlags, FileType, Mode, OFlags, Stat};
use rustix::io::{Errno, ReadWriteFlags, retry_on_intr};
use std::io::IoSlice;
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

/// Whether the filesystem has reserved the room for all bytes of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Preallocation {
    /// It has: no write can fail for want of room.
    Done,
    /// It was asked and cannot.
    Unavailable {
        /// Why not.
        reason: String,
    },
    /// It was not asked.
    NotRequested,
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
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let fd = retry_on_intr(|| rustix::fs::open(path, flags, Mode::RUSR | Mode::WUSR))
            .map_err(|errno| MemoryError::of_path("create", path, size as u64, errno))?;
        let opened = Opened {
            fd,
            path: path.to_path_buf(),
            scratch: false,
        };
        let created = rustix::fs::fstat(&opened.fd).ok();
        grow(&opened, size)
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
        if have < size as u64 {
            if !self.extend {
                return Err(MemoryError::FileTooSmall {
                    path: opened.path,
                    have,
                    need: size as u64,
                });
            }
            grow(&opened, size)?;
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
        grow(&opened, size)?;
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
        let access = if self.read_only {
            OFlags::RDONLY
        } else {
            OFlags::RDWR
        };
        // Without NONBLOCK, a pipe would hold us up before we see what it is.
        let flags = access | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
        let fd = retry_on_intr(|| rustix::fs::open(path, flags, Mode::empty())).map_err(error)?;
        let stat = rustix::fs::fstat(&fd).map_err(error)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(MemoryError::NotAFile {
                path: path.to_path_buf(),
            });
        }
        // Left on, it would make asynchronous reads fail instead of wait.
        rustix::fs::fcntl_setfl(&fd, access).map_err(error)?;
        let opened = Opened {
            fd,
            path: path.to_path_buf(),
            scratch: false,
        };
        Ok((opened, u64::try_from(stat.st_size).unwrap_or(0)))
    }

    /// Makes the region of a file that has its length.
    fn finish(self, opened: Opened, size: usize) -> Result<FileMemory, MemoryError> {
        let preallocation = if self.preallocate {
            preallocate(&opened, size)?
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

/// Makes the file at least `size` bytes long. It never makes it shorter, even if others let it
/// grow meanwhile, and it changes no byte that is there; `ftruncate` could do both.
fn grow(opened: &Opened, size: usize) -> Result<(), MemoryError> {
    let error = |errno| MemoryError::of_path("extend", &opened.path, size as u64, errno);
    let last = (size as u64).saturating_sub(1);
    let allocate = || rustix::fs::fallocate(&opened.fd, FallocateFlags::empty(), last, 1);
    match retry_on_intr(allocate) {
        Err(Errno::OPNOTSUPP | Errno::NOSYS) => append_zeroes(&opened.fd, size).map_err(error),
        grown => grown.map_err(error),
    }
}

/// As [`grow`], for filesystems that do not know `fallocate`.
fn append_zeroes(fd: &OwnedFd, size: usize) -> Result<(), Errno> {
    static ZEROES: [u8; 1 << 16] = [0; 1 << 16];
    loop {
        let have = u64::try_from(rustix::fs::fstat(fd)?.st_size).unwrap_or(0);
        let missing = (size as u64).saturating_sub(have);
        let chunk = usize::try_from(missing).map_or(ZEROES.len(), |n| n.min(ZEROES.len()));
        let Some(zeroes) = ZEROES.get(..chunk).filter(|zeroes| !zeroes.is_empty()) else {
            return Ok(());
        };
        match rustix::io::pwritev2(fd, &[IoSlice::new(zeroes)], 0, ReadWriteFlags::APPEND) {
            Ok(0) => return Err(Errno::IO),
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
}

fn preallocate(opened: &Opened, size: usize) -> Result<Preallocation, MemoryError> {
    let allocate = || rustix::fs::fallocate(&opened.fd, FallocateFlags::KEEP_SIZE, 0, size as u64);
    match retry_on_intr(allocate) {
        Ok(()) => Ok(Preallocation::Done),
        Err(Errno::OPNOTSUPP | Errno::NOSYS) => Ok(Preallocation::Unavailable {
            reason: "the filesystem cannot reserve room".to_owned(),
        }),
        Err(errno) => Err(MemoryError::of_path(
            "reserve room for",
            &opened.path,
            size as u64,
            errno,
        )),
    }
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

    /// Pitfall 10: an existing file keeps its bytes.
    #[test]
    fn appending_zeroes_grows_and_never_cuts() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        fs::write(&path, b"content").unwrap();
        let fd: OwnedFd = fs::OpenOptions::new()
            .write(true)
            .open(&path)
            .unwrap()
            .into();
        append_zeroes(&fd, 3).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"content");
        append_zeroes(&fd, 200_000).unwrap();
        let bytes = fs::read(&path).unwrap();
        assert_eq!(bytes.len(), 200_000);
        assert_eq!(&bytes[..7], b"content");
        assert!(bytes[7..].iter().all(|byte| *byte == 0));
    }
}
