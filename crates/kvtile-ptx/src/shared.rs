//! The shared memory of a block, with the last use of every byte.

use crate::error::PtxFaultKind;

/// The address of the first byte: shared addresses are no small numbers, so that an index in place of an address
/// faults.
pub(crate) const SHARED_BASE: u64 = 1 << 22;

/// Most shared memory of a block, as on current devices.
pub(crate) const SHARED_BYTES_MAX: u64 = 227 << 10;

/// Threads that have read a byte since the last barrier, if there are several.
const SEVERAL: u32 = u32::MAX;

/// The uses of a byte. A stretch is the time between two barriers; 0 is before the first one.
#[derive(Clone, Copy, Debug, Default)]
struct ByteUse {
    written: u32,
    writer: u32,
    read: u32,
    reader: u32,
}

/// Shared memory.
#[derive(Debug)]
pub(crate) struct PtxShared {
    bytes: Vec<u8>,
    uses: Vec<ByteUse>,
    stretch: u32,
}

impl PtxShared {
    pub(crate) fn new(bytes: usize) -> PtxShared {
        PtxShared {
            bytes: vec![0xa5; bytes],
            uses: vec![ByteUse::default(); bytes],
            stretch: 1,
        }
    }

    /// Forgets the uses, for the next block.
    pub(crate) fn clear(&mut self) {
        self.bytes.fill(0xa5);
        self.uses.fill(ByteUse::default());
        self.stretch = 1;
    }

    /// All threads have come to a barrier.
    pub(crate) fn barrier(&mut self) {
        self.stretch = self.stretch.saturating_add(1);
    }

    /// The position of `bytes` bytes at `address`.
    fn locate(
        &self,
        access: &'static str,
        address: u64,
        bytes: usize,
    ) -> Result<usize, PtxFaultKind> {
        let at = address
            .checked_sub(SHARED_BASE)
            .and_then(|at| usize::try_from(at).ok());
        let inside = |&at: &usize| {
            at.checked_add(bytes)
                .is_some_and(|end| end <= self.bytes.len())
        };
        at.filter(inside).ok_or(PtxFaultKind::Outside {
            access,
            address,
            bytes,
            space: "shared memory of the block",
        })
    }

    pub(crate) fn read(
        &mut self,
        thread: u32,
        address: u64,
        into: &mut [u8],
    ) -> Result<(), PtxFaultKind> {
        let at = self.locate("load", address, into.len())?;
        let uses = self.uses.iter_mut().zip(&self.bytes).skip(at);
        for (offset, (into, (used, byte))) in (at as u64..).zip(into.iter_mut().zip(uses)) {
            if used.written == 0 {
                return Err(PtxFaultKind::UnwrittenShared { offset });
            }
            if used.written == self.stretch && used.writer != thread {
                return Err(race("load", offset, used.writer));
            }
            if used.read != self.stretch {
                (used.read, used.reader) = (self.stretch, thread);
            } else if used.reader != thread {
                used.reader = SEVERAL;
            }
            *into = *byte;
        }
        Ok(())
    }

    pub(crate) fn write(
        &mut self,
        thread: u32,
        address: u64,
        from: &[u8],
    ) -> Result<(), PtxFaultKind> {
        let at = self.locate("store", address, from.len())?;
        let uses = self.uses.iter_mut().zip(&mut self.bytes).skip(at);
        for (offset, (from, (used, byte))) in (at as u64..).zip(from.iter().zip(uses)) {
            if used.written == self.stretch && used.writer != thread {
                return Err(race("store", offset, used.writer));
            }
            if used.read == self.stretch && used.reader != thread {
                return Err(race("store", offset, used.reader));
            }
            (used.written, used.writer) = (self.stretch, thread);
            *byte = *from;
        }
        Ok(())
    }
}

fn race(access: &'static str, offset: u64, other: u32) -> PtxFaultKind {
    PtxFaultKind::SharedRace {
        access,
        offset,
        other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_pass_from_thread_to_thread_at_barriers_alone() {
        let mut memory = PtxShared::new(8);
        let mut byte = [0];
        let at = SHARED_BASE + 3;
        assert_eq!(
            memory.read(0, at, &mut byte),
            Err(PtxFaultKind::UnwrittenShared { offset: 3 })
        );
        memory.write(0, at, &[7]).unwrap();
        memory.read(0, at, &mut byte).unwrap();
        assert_eq!(byte, [7]);
        assert_eq!(memory.read(1, at, &mut byte), Err(race("load", 3, 0)));
        assert_eq!(memory.write(1, at, &[8]), Err(race("store", 3, 0)));
        memory.barrier();
        memory.read(1, at, &mut byte).unwrap();
        memory.read(2, at, &mut byte).unwrap();
        assert_eq!(memory.write(1, at, &[8]), Err(race("store", 3, SEVERAL)));
        memory.barrier();
        memory.write(1, at, &[8]).unwrap();
        memory.clear();
        assert!(memory.read(1, at, &mut byte).is_err());
    }

    #[test]
    fn addresses_outside_are_refused() {
        let mut memory = PtxShared::new(8);
        for address in [0, SHARED_BASE - 1, SHARED_BASE + 5, u64::MAX] {
            assert!(memory.write(0, address, &[0; 4]).is_err(), "{address:#x}");
        }
        memory.write(0, SHARED_BASE + 4, &[0; 4]).unwrap();
    }
}
