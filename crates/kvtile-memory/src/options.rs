//! How pages are asked for: the options that system and shared memory have in common.

use std::fmt;
use std::marker::PhantomData;

/// Whether the pages of new memory are there from the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Prefault {
    /// Each page comes when it is first touched, one fault at a time.
    #[default]
    None,
    /// All pages are there when the allocation returns, brought by several threads.
    Populate {
        /// Threads to use; 0 means one for each CPU that the process may use.
        threads: usize,
    },
}

/// How far pre-faulting has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Bytes that have pages.
    pub done_bytes: usize,
    /// Bytes that will have pages; at least the size asked for.
    pub total_bytes: usize,
}

impl Progress {
    /// The part that is done, 0 to 1.
    #[must_use]
    pub fn fraction(self) -> f64 {
        self.done_bytes as f64 / self.total_bytes.max(1) as f64
    }
}

/// Whether a region was given to the kernel as a place for huge pages.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum HugePages {
    /// The kernel was asked and will use them as it finds them.
    Advised,
    /// They were asked for and cannot be had.
    Unavailable {
        /// Why not.
        reason: String,
    },
    /// They were not asked for.
    NotRequested,
}

pub(crate) type ProgressFn<'a> = Box<dyn Fn(Progress) + Send + Sync + 'a>;

/// Options of an allocation of `M`: [`crate::SystemMemory`] or [`crate::SharedMemory`].
///
/// ```
/// use kvtile_memory::{Prefault, SystemMemory};
///
/// let memory = SystemMemory::options()
///     .prefault(Prefault::Populate { threads: 0 })
///     .progress(|progress| eprintln!("{:.0} %", 100.0 * progress.fraction()))
///     .allocate(4 << 20)?;
/// # Ok::<(), kvtile_memory::MemoryError>(())
/// ```
pub struct AllocateOptions<'a, M> {
    pub(crate) huge_pages: bool,
    pub(crate) prefault: Prefault,
    pub(crate) progress: Option<ProgressFn<'a>>,
    made: PhantomData<fn() -> M>,
}

impl<'a, M> AllocateOptions<'a, M> {
    pub(crate) fn new() -> Self {
        Self {
            huge_pages: true,
            prefault: Prefault::None,
            progress: None,
            made: PhantomData,
        }
    }

    /// Whether to ask for huge pages; they are, unless this says `false`. A kernel without them is
    /// no error: `huge_pages()` of the memory tells.
    #[must_use]
    pub fn huge_pages(mut self, wanted: bool) -> Self {
        self.huge_pages = wanted;
        self
    }

    /// Whether the pages are there when the allocation returns; by default they are not.
    #[must_use]
    pub fn prefault(mut self, prefault: Prefault) -> Self {
        self.prefault = prefault;
        self
    }

    /// Calls `progress` while pre-faulting, from whichever thread has finished a part, one call at
    /// a time, `done_bytes` rising to `total_bytes`. Not called without pre-faulting.
    #[must_use]
    pub fn progress(mut self, progress: impl Fn(Progress) + Send + Sync + 'a) -> Self {
        self.progress = Some(Box::new(progress));
        self
    }
}

impl<M> fmt::Debug for AllocateOptions<'_, M> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("AllocateOptions")
            .field("huge_pages", &self.huge_pages)
            .field("prefault", &self.prefault)
            .finish_non_exhaustive()
    }
}
