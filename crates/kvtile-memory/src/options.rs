//! Allocation options that system and shared memory have in common.

use std::fmt;
use std::marker::PhantomData;

/// When new memory gets its pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Prefault {
    /// Each page is allocated when it is first touched, one fault at a time.
    #[default]
    None,
    /// Several threads fault in all pages before the allocation returns.
    Populate {
        /// Threads to use; 0 means one for each CPU that the process may use.
        threads: usize,
    },
}

/// Progress of pre-faulting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PrefaultProgress {
    /// Bytes that have pages.
    pub done_bytes: usize,
    /// Bytes that will have pages; at least the requested size.
    pub total_bytes: usize,
}

impl PrefaultProgress {
    /// The fraction that is done, 0 to 1.
    #[must_use]
    pub fn fraction(self) -> f64 {
        self.done_bytes as f64 / self.total_bytes.max(1) as f64
    }
}

/// Whether a region may be backed by transparent huge pages.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum HugePages {
    /// The kernel accepted the advice; it uses huge pages where it has them.
    Advised,
    /// They were requested, and the kernel refuses them.
    Unavailable {
        /// Why not.
        reason: String,
    },
    /// They were not requested.
    NotRequested,
}

pub(crate) type ProgressFn<'a> = Box<dyn Fn(PrefaultProgress) + Send + Sync + 'a>;

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

    /// Whether to request huge pages; on by default. A kernel without them is no error:
    /// `huge_pages()` of the memory reports whether the kernel accepted the request.
    #[must_use]
    pub fn huge_pages(mut self, wanted: bool) -> Self {
        self.huge_pages = wanted;
        self
    }

    /// Whether the allocation faults in all pages before it returns; off by default.
    #[must_use]
    pub fn prefault(mut self, prefault: Prefault) -> Self {
        self.prefault = prefault;
        self
    }

    /// Calls `progress` during pre-faulting, once for each part. Any worker thread may make the
    /// call, one at a time, and `done_bytes` rises to `total_bytes`. Without pre-faulting there are
    /// no calls.
    #[must_use]
    pub fn progress(mut self, progress: impl Fn(PrefaultProgress) + Send + Sync + 'a) -> Self {
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
