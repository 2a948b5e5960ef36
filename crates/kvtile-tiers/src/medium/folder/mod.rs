//! A folder of the local file system as a medium.

mod file;
mod local;
mod lock;
mod plain;

pub use local::NotLocal;
pub use plain::{FoundInstead, NotPlain};

use std::{
    fs::{self, File},
    io::{self, Read, Write},
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use kvtile_layout::ShownText;
use parking_lot::Mutex;
use rustix::{
    fd::OwnedFd,
    fs::{AtFlags, Dir, FileType, Mode, OFlags, fstat, openat, renameat, stat, unlinkat},
    io::{Errno, retry_on_intr},
};

use self::{
    file::{FolderFile, length},
    local::check_local,
    lock::LockUse,
    plain::{FILE_MODE, FileAccess, FileNumber, check_plain, open_plain, stat_name},
};
use super::{
    FileWay, LockError, LockHolder, Medium, MediumFile, MediumLock, NameStanding, OpenFile,
};

/// The mode of a new folder: only its user may enter it.
const FOLDER_MODE: u32 = 0o700;

/// A folder of the file system, with direct I/O where supported. The first use opens the folder and
/// keeps it, regardless of later changes of its path; clones share it.
#[derive(Clone, Debug)]
pub struct FolderMedium {
    path: PathBuf,
    /// The absolute path, independent of later changes of the working directory.
    absolute: PathBuf,
    folder: Arc<Mutex<Option<Arc<File>>>>,
    way: FileWay,
    lock_use: LockUse,
}

impl FolderMedium {
    /// The folder at `path`, which need not exist and may be a link to a folder.
    #[must_use]
    pub fn new(path: impl Into<PathBuf>) -> FolderMedium {
        let path = path.into();
        FolderMedium {
            // An empty path has no absolute path; opening it reports that.
            absolute: std::path::absolute(&path).unwrap_or_else(|_| path.clone()),
            path,
            folder: Arc::default(),
            way: FileWay::Best,
            lock_use: LockUse::Keep,
        }
    }

    /// The same folder, whose lock is taken only to free room in it: a process that is to use the folder waits for it,
    /// for at most 10 seconds.
    #[must_use]
    pub(crate) fn freeing_room(self) -> FolderMedium {
        FolderMedium {
            lock_use: LockUse::FreeRoom,
            ..self
        }
    }

    /// The same folder with another way of keeping many reads and writes in flight.
    #[must_use]
    pub fn with_way(self, way: FileWay) -> FolderMedium {
        FolderMedium { way, ..self }
    }

    /// The open folder, in which all names are looked up.
    fn folder(&self) -> io::Result<Arc<File>> {
        let mut folder = self.folder.lock();
        if let Some(folder) = &*folder {
            return Ok(Arc::clone(folder));
        }
        let opened = Arc::new(open_folder(&self.absolute)?);
        *folder = Some(Arc::clone(&opened));
        Ok(opened)
    }

    /// The names of the folders in it, without links to folders; none if it does not exist.
    ///
    /// # Errors
    /// The file system fails.
    pub fn folders(&self) -> io::Result<Vec<String>> {
        let names = self.names()?;
        if names.is_empty() {
            return Ok(names);
        }
        let folder = self.folder()?;
        let mut folders = Vec::new();
        for name in names {
            let stat = stat_name(&folder, &name)?;
            if stat.is_some_and(|stat| FileType::from_raw_mode(stat.st_mode).is_dir()) {
                folders.push(name);
            }
        }
        Ok(folders)
    }

    fn path(&self, file: &str) -> PathBuf {
        self.path.join(file)
    }
}

impl FolderMedium {
    /// Bytes that the files of the folder take on the disk.
    ///
    /// # Errors
    /// The file system fails.
    pub fn kept_bytes(&self) -> io::Result<u64> {
        let mut bytes = 0;
        for name in self.names()? {
            let stat = stat_name(&*self.folder()?, &name)?;
            let stat = stat.filter(|stat| check_plain(stat, FileAccess::Read).is_ok());
            let blocks = stat.map_or(0, |stat| u64::try_from(stat.st_blocks).unwrap_or(0));
            bytes += blocks * 512;
        }
        Ok(bytes)
    }
}

fn open_folder(path: &Path) -> io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let opened = retry_on_intr(|| rustix::fs::open(path, flags, Mode::empty()))?;
    Ok(opened.into())
}

/// Opens the folder or its nearest existing ancestor, which is where it would be created.
fn nearest(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let mut problem = Errno::NOENT;
    for folder in path.ancestors() {
        match retry_on_intr(|| rustix::fs::open(folder, flags, Mode::empty())) {
            Ok(fd) => return Ok(fd),
            Err(errno) => problem = errno,
        }
        if problem != Errno::NOENT {
            break;
        }
    }
    Err(problem.into())
}

impl Medium for FolderMedium {
    fn name(&self) -> String {
        ShownText(&self.path.display().to_string()).to_string()
    }

    fn create(&self) -> io::Result<()> {
        // An empty path would put its files into the working directory.
        if self.path.as_os_str().is_empty() {
            let problem = "its path is empty; give the path of a folder";
            return Err(io::Error::new(io::ErrorKind::InvalidInput, problem));
        }
        check_local(nearest(&self.absolute)?)?;
        let mut builder = fs::DirBuilder::new();
        builder
            .recursive(true)
            .mode(FOLDER_MODE)
            .create(&self.absolute)?;
        // The folder may have been removed and created anew since its last use.
        self.reopen();
        self.folder().map(drop)
    }

    fn names(&self) -> io::Result<Vec<String>> {
        let folder = match self.folder() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            folder => folder?,
        };
        let mut names = Vec::new();
        for entry in Dir::read_from(&*folder)? {
            let name = entry?.file_name().to_string_lossy().into_owned();
            if name != "." && name != ".." {
                names.push(name);
            }
        }
        Ok(names)
    }

    fn length(&self, file: &str) -> io::Result<Option<u64>> {
        let folder = match self.folder() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            folder => folder?,
        };
        let Some(stat) = stat_name(&folder, file)? else {
            return Ok(None);
        };
        check_plain(&stat, FileAccess::Read)?;
        Ok(Some(length(&stat)))
    }

    fn read(&self, file: &str, bytes_max: u64) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        let opened = open_plain(&*self.folder()?, file, FileAccess::Read)?;
        File::from(opened)
            .take(bytes_max.saturating_add(1))
            .read_to_end(&mut bytes)?;
        if bytes.len() as u64 > bytes_max {
            let problem = format!("longer than {bytes_max} bytes");
            return Err(io::Error::new(io::ErrorKind::InvalidData, problem));
        }
        Ok(bytes)
    }

    fn write(&self, file: &str, bytes: &[u8]) -> io::Result<()> {
        // Removes the name and creates the file: an existing file or link of that name is never
        // opened.
        self.remove(file)?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let folder = self.folder()?;
        let made = retry_on_intr(|| openat(&*folder, file, flags, FILE_MODE))?;
        let mut made = File::from(made);
        made.write_all(bytes)?;
        made.sync_all()
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let folder = self.folder()?;
        Ok(renameat(&*folder, from, &*folder, to)?)
    }

    fn remove(&self, file: &str) -> io::Result<()> {
        match unlinkat(&*self.folder()?, file, AtFlags::empty()) {
            Err(Errno::NOENT) => Ok(()),
            removed => Ok(removed?),
        }
    }

    fn sync_folder(&self) -> io::Result<()> {
        self.folder()?.sync_all()
    }

    fn standing(&self) -> io::Result<NameStanding> {
        let ours = FileNumber::of(&fstat(&*self.folder()?)?);
        Ok(match stat(&self.absolute) {
            Ok(now) if FileNumber::of(&now) == ours => NameStanding::Same,
            Ok(_) => NameStanding::Replaced,
            Err(Errno::NOENT | Errno::NOTDIR) => NameStanding::Removed,
            Err(errno) => return Err(errno.into()),
        })
    }

    fn reopen(&self) {
        *self.folder.lock() = None;
    }

    fn lock(&self, file: &str) -> Result<Box<dyn MediumLock>, LockError> {
        lock::take(&*self.folder()?, file, self.lock_use)
    }

    fn lock_to_read(&self, file: &str) -> Result<Box<dyn MediumLock>, LockError> {
        lock::take_to_read(&*self.folder()?, file, self.lock_use)
    }

    fn holder(&self, file: &str) -> io::Result<Option<LockHolder>> {
        lock::look(&*self.folder()?, file)
    }

    fn punches(&self, file: &str) -> bool {
        // Far behind the end of the file, where there is nothing to lose.
        const BEHIND: u64 = 1 << 30;
        let folder = self.folder();
        let opened = folder.and_then(|folder| open_plain(&folder, file, FileAccess::Write));
        opened.is_ok_and(|fd| file::punch(&fd, BEHIND, 4096).is_ok())
    }

    fn open(&self, file: &str, how: &OpenFile) -> io::Result<Box<dyn MediumFile>> {
        let called = self.path(file).display().to_string();
        let opened = FolderFile::open(self.folder()?, (file, &called), how, self.way)?;
        Ok(Box::new(opened))
    }
}
