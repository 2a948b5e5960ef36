//! Files that the user names. `-` is standard input for a file to read, and standard output for a
//! file to write.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, BufReader, Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
};

use crate::{error::CliError, output};

/// The name of standard input and standard output.
const STANDARD: &str = "-";

/// Whether `path` is standard input or standard output.
#[must_use]
pub fn is_standard(path: &Path) -> bool {
    path.as_os_str() == STANDARD
}

/// Opens a file for reading.
///
/// # Errors
/// The file cannot be opened.
pub fn open(path: &Path) -> Result<Box<dyn io::BufRead>, CliError> {
    output::note(|| format!("reading {}", path.display()));
    if is_standard(path) {
        return Ok(Box::new(BufReader::new(io::stdin())));
    }
    let file = File::open(path).map_err(|source| failed("read", path, source))?;
    Ok(Box::new(BufReader::new(file)))
}

/// Reads a text of at most `most` bytes.
///
/// # Errors
/// The file cannot be read, or is not text.
pub fn read(path: &Path, most: u64) -> Result<String, CliError> {
    let mut text = String::new();
    let read = open(path)?.take(most).read_to_string(&mut text);
    read.map_err(|source| failed("read", path, source))?;
    Ok(text)
}

/// A file that supports mapping and seeking: `path` itself, or a temporary file with the contents
/// of standard input.
pub(crate) struct WholeFile {
    path: PathBuf,
    _copy: Option<tempfile::NamedTempFile>,
}

impl WholeFile {
    /// Reads standard input to its end where `path` is `-`.
    ///
    /// # Errors
    /// A file that does not exist or is empty; standard input that cannot be read.
    pub(crate) fn of(path: &Path) -> Result<WholeFile, CliError> {
        let mut copy = None;
        if is_standard(path) {
            let kept = |source| failed("store standard input in", &std::env::temp_dir(), source);
            let mut file = tempfile::NamedTempFile::new().map_err(kept)?;
            io::copy(&mut io::stdin(), &mut file).map_err(|source| failed("read", path, source))?;
            copy = Some(file);
        }
        let place = copy.as_ref().map_or(path, |copy| copy.path()).to_owned();
        let facts = fs::metadata(&place).map_err(|source| failed("read", path, source))?;
        if facts.is_file() && facts.len() == 0 {
            return Err(CliError::Empty {
                path: path.to_owned(),
            });
        }
        Ok(WholeFile {
            path: place,
            _copy: copy,
        })
    }

    /// The path of the bytes.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

/// An output file. It is checked before the work begins, and appears under its name only when it is
/// complete.
#[derive(Debug)]
pub struct OutputFile {
    path: PathBuf,
    place: OutputTarget,
}

#[derive(Debug)]
enum OutputTarget {
    Standard,
    /// A pipe, a device, or a file in a folder that takes no new files.
    Open(File),
    /// Written beside the target and renamed.
    Beside(PathBuf),
}

impl OutputFile {
    /// Checks that `path` can be written. An existing file keeps its contents until
    /// [`finish`](OutputFile::finish).
    ///
    /// # Errors
    /// The file cannot be written, for instance because its folder does not exist.
    pub fn open(path: &Path) -> Result<OutputFile, CliError> {
        let refused = |source| failed("write", path, source);
        let opened = |place| {
            Ok(OutputFile {
                path: path.to_owned(),
                place,
            })
        };
        if is_standard(path) {
            return opened(OutputTarget::Standard);
        }
        // Replaces the target of a link, not the link.
        let target = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
        match fs::metadata(&target) {
            Ok(facts) if facts.is_dir() => Err(refused(io::ErrorKind::IsADirectory.into())),
            Ok(facts) => {
                let file = OpenOptions::new()
                    .append(true)
                    .open(&target)
                    .map_err(refused)?;
                match facts.is_file() && beside(&target).is_ok() {
                    true => opened(OutputTarget::Beside(target)),
                    false => opened(OutputTarget::Open(file)),
                }
            }
            Err(_) => {
                beside(&target).map_err(refused)?;
                opened(OutputTarget::Beside(target))
            }
        }
    }

    /// [`open`](OutputFile::open) for an optional path.
    ///
    /// # Errors
    /// As [`open`](OutputFile::open).
    pub fn open_some(path: Option<&PathBuf>) -> Result<Option<OutputFile>, CliError> {
        path.map(|path| OutputFile::open(path)).transpose()
    }

    /// Whether the file is standard output, which must then carry nothing else.
    #[must_use]
    pub fn is_standard(&self) -> bool {
        matches!(self.place, OutputTarget::Standard)
    }

    /// Writes `text` and gives the file its name.
    ///
    /// # Errors
    /// The file cannot be written. A file beside the target is then discarded.
    pub fn finish(self, text: &str) -> Result<(), CliError> {
        let refused = |source| failed("write", &self.path, source);
        output::note(|| format!("writing {} bytes to {}", text.len(), self.path.display()));
        match self.place {
            OutputTarget::Standard => output::write_out(text),
            OutputTarget::Open(mut file) => {
                if file.metadata().is_ok_and(|facts| facts.is_file()) {
                    file.set_len(0).map_err(refused)?;
                }
                file.write_all(text.as_bytes()).map_err(refused)
            }
            OutputTarget::Beside(ref target) => {
                let mut file = beside(target).map_err(refused)?;
                file.write_all(text.as_bytes()).map_err(refused)?;
                if let Ok(facts) = fs::metadata(target) {
                    let kept = file.as_file().set_permissions(facts.permissions());
                    kept.map_err(refused)?;
                }
                file.persist(target).map_err(|error| refused(error.error))?;
                Ok(())
            }
        }
    }
}

/// A new unnamed file that gets its name when it is complete. If the program stops earlier, no file
/// remains.
#[derive(Debug)]
pub(crate) struct NewFile {
    path: PathBuf,
    file: UnnamedFile,
}

#[derive(Debug)]
enum UnnamedFile {
    /// Copied to standard output at the end.
    Standard(File),
    #[cfg(target_os = "linux")]
    Nameless(File),
    /// For file systems without unnamed files.
    Named(tempfile::NamedTempFile),
}

impl NewFile {
    /// Creates the unnamed file for `path`.
    ///
    /// # Errors
    /// The path exists already, or its folder takes no new files.
    pub(crate) fn create(path: &Path) -> Result<NewFile, CliError> {
        let refused = |source| failed("create", path, source);
        let path = path.to_owned();
        if is_standard(&path) {
            let file = UnnamedFile::Standard(tempfile::tempfile().map_err(refused)?);
            return Ok(NewFile { path, file });
        }
        if path.symlink_metadata().is_ok() {
            return Err(refused(io::ErrorKind::AlreadyExists.into()));
        }
        #[cfg(target_os = "linux")]
        if let Ok(file) = nameless(folder_of(&path)) {
            let file = UnnamedFile::Nameless(file);
            return Ok(NewFile { path, file });
        }
        let file = UnnamedFile::Named(beside(&path).map_err(refused)?);
        Ok(NewFile { path, file })
    }

    /// The future name.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    fn file(&mut self) -> &mut File {
        match &mut self.file {
            UnnamedFile::Standard(file) => file,
            #[cfg(target_os = "linux")]
            UnnamedFile::Nameless(file) => file,
            UnnamedFile::Named(file) => file.as_file_mut(),
        }
    }

    /// Flushes its `length` bytes to disk and gives the file its name.
    ///
    /// # Errors
    /// A file of this name exists by now, or it cannot be written.
    pub(crate) fn finish(mut self, length: u64) -> Result<(), CliError> {
        let path = self.path.clone();
        let refused = |operation| {
            let path = path.clone();
            move |source| failed(operation, &path, source)
        };
        output::note(|| format!("writing {length} bytes to {}", path.display()));
        self.file().set_len(length).map_err(refused("write"))?;
        match self.file {
            UnnamedFile::Standard(mut file) => {
                file.seek(SeekFrom::Start(0)).map_err(refused("write"))?;
                let copied = io::copy(&mut file, &mut io::stdout().lock());
                match copied {
                    Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
                    copied => copied.map(drop).map_err(refused("write")),
                }
            }
            #[cfg(target_os = "linux")]
            UnnamedFile::Nameless(file) => {
                file.sync_all().map_err(refused("sync"))?;
                name(&file, &self.path).map_err(refused("create"))
            }
            UnnamedFile::Named(file) => {
                file.as_file().sync_all().map_err(refused("sync"))?;
                let named = file.persist_noclobber(&self.path);
                named
                    .map(drop)
                    .map_err(|error| refused("create")(error.error))
            }
        }
    }
}

impl Write for NewFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file().flush()
    }
}

impl Seek for NewFile {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.file().seek(to)
    }
}

#[cfg(target_os = "linux")]
fn nameless(folder: &Path) -> io::Result<File> {
    use rustix::fs::{Mode, OFlags, open};
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    Ok(open(folder, flags, Mode::from_raw_mode(0o666))?.into())
}

/// Links an unnamed file to `path`, which must be free.
#[cfg(target_os = "linux")]
fn name(file: &File, path: &Path) -> io::Result<()> {
    use std::os::fd::AsRawFd;

    use rustix::fs::{AtFlags, CWD, linkat};
    let open = format!("/proc/self/fd/{}", file.as_raw_fd());
    Ok(linkat(CWD, open, CWD, path, AtFlags::SYMLINK_FOLLOW)?)
}

fn folder_of(path: &Path) -> &Path {
    let folder = path
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty());
    folder.unwrap_or(Path::new("."))
}

/// A new file in the folder of `path`, with the default permissions of new files.
fn beside(path: &Path) -> io::Result<tempfile::NamedTempFile> {
    let folder = folder_of(path);
    // So that a missing folder is reported by its own name, not by that of the temporary file.
    let _ = fs::metadata(folder)?;
    let mut builder = tempfile::Builder::new();
    builder.prefix(".kvtile-");
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        builder.permissions(fs::Permissions::from_mode(0o666));
    }
    builder.tempfile_in(folder)
}

/// The error for a file of the user.
#[must_use]
pub fn failed(operation: &'static str, path: &Path, source: io::Error) -> CliError {
    CliError::File {
        operation,
        path: path.to_owned(),
        source,
    }
}
