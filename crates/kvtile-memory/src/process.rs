//! What belongs to one process and not to the children that it makes by `fork`.
//!
//! `fork` gives a child all descriptors. A lock (`flock`) belongs to the open file that they share, so
//! it outlives the process that took it for as long as any child lives. [`ProcessFile`] is a file
//! that children do not get: the C library calls [`in_child`] in every child before `fork` returns
//! there, and that closes it.
//!
//! ```text
//! open ──► known to the handlers ──► no fork since open began? ──► lock
//!   ▲                                        │ there was one
//!   └───────────── close, again ◄────────────┘
//! ```
//!
//! So a child has either nothing, or an open file that was never locked. A child that is made without
//! the C library's `fork` (the system call itself, `_Fork`) keeps the descriptor. `exec` closes it.

use std::{
    fs::File,
    io,
    os::fd::{AsRawFd, IntoRawFd, OwnedFd, RawFd},
    sync::{
        OnceLock,
        atomic::{AtomicI32, AtomicU64, Ordering},
    },
    thread,
};

/// No descriptor.
const NONE: RawFd = -1;

/// Forks that began in this process.
static BEGUN: AtomicU64 = AtomicU64::new(0);

/// Forks that have ended in this process, the one that made it included.
static ENDED: AtomicU64 = AtomicU64::new(0);

/// Counts the forks between the first process and this one.
static GENERATION: AtomicU64 = AtomicU64::new(0);

/// The first place for a descriptor.
static FIRST: Place = Place::new();

/// One descriptor that children close. Places are used again and never freed, so a child may walk
/// through them at any time.
#[derive(Debug)]
struct Place {
    fd: AtomicI32,
    next: OnceLock<Box<Place>>,
}

impl Place {
    const fn new() -> Place {
        Place {
            fd: AtomicI32::new(NONE),
            next: OnceLock::new(),
        }
    }

    /// The place that has `fd` now.
    fn take(fd: RawFd) -> &'static Place {
        let mut place = &FIRST;
        while place
            .fd
            .compare_exchange(NONE, fd, Ordering::SeqCst, Ordering::SeqCst)
            .is_err()
        {
            place = place.next.get_or_init(|| Box::new(Place::new()));
        }
        place
    }
}

/// Which process something belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProcessMark {
    id: u32,
    generation: u64,
}

impl ProcessMark {
    /// This process.
    #[must_use]
    pub fn now() -> ProcessMark {
        ProcessMark {
            id: std::process::id(),
            generation: GENERATION.load(Ordering::SeqCst),
        }
    }

    /// Whether this is the process that the mark was made in, and not a child of it. The number is
    /// compared too, for children that were made without the C library.
    #[must_use]
    pub fn is_current(self) -> bool {
        self == ProcessMark::now()
    }

    /// The number of the process.
    #[must_use]
    pub fn id(self) -> u32 {
        self.id
    }
}

/// An open file that children made by `fork` do not have.
#[derive(Debug)]
pub struct ProcessFile {
    /// Until it is dropped.
    file: Option<File>,
    place: &'static Place,
    process: ProcessMark,
}

impl ProcessFile {
    /// Opens a file. `open` is called again where the process forked meanwhile; it takes no lock.
    ///
    /// # Errors
    /// What `open` says, and no memory for the handlers.
    pub fn open(open: impl Fn() -> io::Result<OwnedFd>) -> io::Result<ProcessFile> {
        install_handlers()?;
        loop {
            let begun = BEGUN.load(Ordering::SeqCst);
            if ENDED.load(Ordering::SeqCst) != begun {
                thread::yield_now();
                continue;
            }
            let file = File::from(open()?);
            let place = Place::take(file.as_raw_fd());
            if BEGUN.load(Ordering::SeqCst) == begun {
                return Ok(ProcessFile {
                    file: Some(file),
                    place,
                    process: ProcessMark::now(),
                });
            }
            place.fd.store(NONE, Ordering::SeqCst);
        }
    }

    /// The file; `None` in a child of the process that opened it, where it is closed.
    #[must_use]
    pub fn file(&self) -> Option<&File> {
        self.file.as_ref().filter(|_| self.process.is_current())
    }
}

impl Drop for ProcessFile {
    fn drop(&mut self) {
        let Some(file) = self.file.take() else {
            return;
        };
        if !self.process.is_current() {
            // It is closed already, and the number may be another file's by now.
            let _ = file.into_raw_fd();
            return;
        }
        // First, so that a child that is just being made keeps no lock. Where it fails, the lock ends
        // with the descriptor.
        let _ = file.unlock();
        self.place.fd.store(NONE, Ordering::SeqCst);
    }
}

/// Has the C library call us around every fork, once.
fn install_handlers() -> io::Result<()> {
    static INSTALLED: OnceLock<libc::c_int> = OnceLock::new();
    let failed = *INSTALLED.get_or_init(|| {
        // SAFETY: the three are functions of this program, which is never unloaded while it runs:
        // extension modules of Python stay loaded. They take no lock, allocate nothing and call
        // nothing but `close`, so they may run at any moment, in any thread and in a child.
        unsafe { libc::pthread_atfork(Some(before), Some(in_parent), Some(in_child)) }
    });
    match failed {
        0 => Ok(()),
        errno => Err(io::Error::from_raw_os_error(errno)),
    }
}

extern "C" fn before() {
    BEGUN.fetch_add(1, Ordering::SeqCst);
}

extern "C" fn in_parent() {
    ENDED.fetch_add(1, Ordering::SeqCst);
}

extern "C" fn in_child() {
    // Forks that other threads had begun are none of this process.
    ENDED.store(BEGUN.load(Ordering::SeqCst), Ordering::SeqCst);
    GENERATION.fetch_add(1, Ordering::SeqCst);
    let mut place = Some(&FIRST);
    while let Some(here) = place {
        let fd = here.fd.swap(NONE, Ordering::SeqCst);
        if fd != NONE {
            // SAFETY: the descriptor belongs to a `ProcessFile`, which takes it out of its place before
            // it closes it and closes nothing in a child; so it is open here and nothing else of this
            // child closes it.
            let _ = unsafe { libc::close(fd) };
        }
        place = here.next.get().map(|next| &**next);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_used_again_and_no_two_files_share_one() {
        let open = || ProcessFile::open(|| Ok(tempfile::tempfile()?.into()));
        let files: Vec<ProcessFile> = (0..40).map(|_| open().unwrap()).collect();
        let mut seen: Vec<RawFd> = files
            .iter()
            .map(|file| file.place.fd.load(Ordering::SeqCst))
            .collect();
        let expected: Vec<RawFd> = files
            .iter()
            .map(|file| file.file().unwrap().as_raw_fd())
            .collect();
        assert_eq!(seen, expected);
        seen.sort_unstable();
        seen.dedup();
        assert_eq!(seen.len(), 40);
        let place = std::ptr::from_ref(files[7].place);
        let mut files = files;
        drop(files.remove(7));
        let again = open().unwrap();
        let reused = std::ptr::from_ref(again.place);
        let held = files.iter().any(|file| std::ptr::eq(file.place, reused));
        // Another test may have taken the free place meanwhile.
        assert!(!held && (reused == place || again.file().is_some()));
    }
}
