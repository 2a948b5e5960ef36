//! Gathers scattered runs into one dense piece.

/// One loop of a gather: its extent, and the source stride.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) struct GatherLoop {
    pub(in super::super) extent: usize,
    pub(in super::super) source_stride: usize,
}

/// Runs that are scattered in the source and adjacent in the destination. The loops, outermost
/// first, are all dense in the destination.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in super::super) struct RunGather {
    pub(in super::super) run: usize,
    pub(in super::super) loops: Vec<GatherLoop>,
}

impl RunGather {
    /// Bytes of the dense piece.
    pub(in super::super) fn bytes(&self) -> usize {
        self.loops.iter().fold(self.run, |b, l| b * l.extent)
    }

    /// Calls `visit` with the start of every run of the source that starts at `source`.
    pub(in super::super) fn for_each_run(
        &self,
        source: *const u8,
        visit: &mut impl FnMut(*const u8),
    ) {
        each(&self.loops, source, visit);
    }

    /// Gathers the runs of `source` into `destination`.
    ///
    /// # Safety
    /// Every run of the source is readable and nothing else writes it; [`RunGather::bytes`] bytes from
    /// `destination` on are writable, and nothing else reads or writes them.
    pub(in super::super) unsafe fn gather(&self, source: *const u8, destination: *mut u8) {
        match self.run {
            // SAFETY: passed on to the caller, in all of these.
            1 => unsafe { self.known::<1>(source, destination) },
            // SAFETY: as above.
            2 => unsafe { self.known::<2>(source, destination) },
            // SAFETY: as above.
            4 => unsafe { self.known::<4>(source, destination) },
            // SAFETY: as above.
            8 => unsafe { self.known::<8>(source, destination) },
            // SAFETY: as above.
            16 => unsafe { self.known::<16>(source, destination) },
            // SAFETY: as above.
            32 => unsafe { self.known::<32>(source, destination) },
            // SAFETY: as above.
            64 => unsafe { self.known::<64>(source, destination) },
            run => {
                let mut to = destination;
                self.for_each_run(source, &mut |from| {
                    // SAFETY: a run of the source, and the next `run` bytes of the dense piece.
                    unsafe { std::ptr::copy_nonoverlapping(from, to, run) };
                    to = to.wrapping_add(run);
                });
            }
        }
    }

    /// # Safety
    /// As for [`RunGather::gather`], with runs of `N` bytes.
    #[inline]
    unsafe fn known<const N: usize>(&self, source: *const u8, destination: *mut u8) {
        let mut to = destination;
        self.for_each_run(source, &mut |from| {
            // SAFETY: a run of the source, and the next `N` bytes of the dense piece.
            unsafe { std::ptr::copy_nonoverlapping(from, to, N) };
            to = to.wrapping_add(N);
        });
    }
}

#[inline]
fn each(loops: &[GatherLoop], source: *const u8, visit: &mut impl FnMut(*const u8)) {
    match loops {
        [] => visit(source),
        [last] => {
            for i in 0..last.extent {
                visit(source.wrapping_add(i * last.source_stride));
            }
        }
        [outer, inner @ ..] => {
            for i in 0..outer.extent {
                each_nested(inner, source.wrapping_add(i * outer.source_stride), visit);
            }
        }
    }
}

fn each_nested(loops: &[GatherLoop], source: *const u8, visit: &mut impl FnMut(*const u8)) {
    each(loops, source, visit);
}
