//! Files that belong to one process and not to the children that it forks.
//!
//! `fork` gives a child all descriptors. A lock (`flock`) belongs to the open file description that
//! they share, so it outlives the locking process for as long as any child lives. [`ProcessFile`]
//! is a file that children do not inherit: the C library calls [`in_child`] in every child before
//! `fork` returns there, and `in_child` closes the file.
//!
//! ```text
//! open ──► register with the handlers ──► any fork since open began? ──no──► lock
//!   ▲                                        │ yes
//!   └───────────── close, retry ◄────────────┘
//! ```
//!
//! So a child has either no descriptor, or an open file that was never locked. A child that is made
//! without the C library's `fork` (the system call itself, `_Fork`) keeps the descriptor. `exec`
//! closes it.

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

/// Forks that have completed in this process, including the fork that created it.
static ENDED: AtomicU64 = AtomicU64::new(0);

/// The number of forks between the first process and this one.
static GENERATION: AtomicU64 = AtomicU64::new(0);

/// Head of the list of descriptor slots.
static FIRST: DescriptorSlot = DescriptorSlot::new();

/// A slot for one descriptor that children close. Slots are reused and never freed, so a child may
/// walk the list at any time.
#[derive(Debug)]
struct DescriptorSlot {
    fd: AtomicI32,
    next: OnceLock<Box<DescriptorSlot>>,
}

impl DescriptorSlot {
    const fn new() -> DescriptorSlot {
        DescriptorSlot {
            fd: AtomicI32::new(NONE),
            next: OnceLock::new(),
        }
    }

    /// Claims a free slot for `fd`, or appends one.
    fn take(fd: RawFd) -> &'static DescriptorSlot {
        let mut place = &FIRST;
        while place
            .fd
            .compare_exchange(NONE, fd, Ordering::SeqCst, Ordering::SeqCst)
            .is_err()
        {
            place = place.next.get_or_init(|| Box::new(DescriptorSlot::new()));
        }
        place
    }
}

/// Identifies a process.
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

    /// Whether the current process made the mark, as opposed to a child of it. The process id is
    /// compared too, for children that were made without the C library.
    #[must_use]
    pub fn is_current(self) -> bool {
        self == ProcessMark::now()
    }

    /// The process id.
    #[must_use]
    pub fn id(self) -> u32 {
        self.id
    }
}

/// An open file that children made by `fork` do not inherit.
#[derive(Debug)]
pub struct ProcessFile {
    /// `None` only during the drop.
    file: Option<File>,
    place: &'static DescriptorSlot,
    process: ProcessMark,
}

impl ProcessFile {
    /// Opens a file. Where the process forked in the meantime, `open` is called again, so it must
    /// take no lock.
    ///
    /// # Errors
    /// The error of `open`; out of memory for the fork handlers.
    pub fn open(open: impl Fn() -> io::Result<OwnedFd>) -> io::Result<ProcessFile> {
        install_handlers()?;
        loop {
            let begun = BEGUN.load(Ordering::SeqCst);
            if ENDED.load(Ordering::SeqCst) != begun {
                thread::yield_now();
                continue;
            }
            let file = File::from(open()?);
            let place = DescriptorSlot::take(file.as_raw_fd());
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
            // It is closed already, and its number may by now belong to another file.
            let _ = file.into_raw_fd();
            return;
        }
        // Unlocked first, so that a child that is being forked keeps no lock. If unlocking fails,
        // the lock ends with the descriptor.
        let _ = file.unlock();
        self.place.fd.store(NONE, Ordering::SeqCst);
    }
}

/// Registers the fork handlers with the C library, once.
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
    // Forks that other threads had begun do not exist in this process.
    ENDED.store(BEGUN.load(Ordering::SeqCst), Ordering::SeqCst);
    GENERATION.fetch_add(1, Ordering::SeqCst);
    let mut place = Some(&FIRST);
    while let Some(here) = place {
        let fd = here.fd.swap(NONE, Ordering::SeqCst);
        if fd != NONE {
            // SAFETY: the descriptor belongs to a `ProcessFile`, which clears its slot before it
            // closes the file, and which closes nothing in a child; so the descriptor is open here
            // and no other code of this child closes it.
            let _ = unsafe { libc::close(fd) };
        }
        place = here.next.get().map(|next| &**next);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_reused_and_no_two_files_share_one() {
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
        // A concurrent test may have claimed the free slot.
        assert!(!held && (reused == place || again.file().is_some()));
    }
}
