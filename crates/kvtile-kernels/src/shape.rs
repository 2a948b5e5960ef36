//! A nest at addresses.

use kvtile_layout::Loop;

/// Longer runs become loops over pieces of this size.
const PIECE_BYTES: u64 = 1 << 20;

/// Most vectors of 16 bytes of a launch: numbers of items stay below 2^31, which the divisions of the kernels need.
const VECTORS_MAX: u128 = 1 << 31;

/// One side of a loop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LoopSide {
    /// Bytes from one iteration to the next; wraps.
    Stride(u64),
    /// The first word of a table with a difference for each iteration.
    Table(u64),
}

impl LoopSide {
    pub(crate) fn stride(self) -> Option<u64> {
        match self {
            LoopSide::Stride(stride) => Some(stride),
            LoopSide::Table(_) => None,
        }
    }

    /// The same steps, every `count`-th of them.
    fn every(self, count: u64) -> Option<LoopSide> {
        let stride = self.stride()?;
        Some(LoopSide::Stride(stride.wrapping_mul(count)))
    }
}

/// A loop between addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct DeviceLoop {
    pub(crate) extent: u64,
    pub(crate) source: LoopSide,
    pub(crate) destination: LoopSide,
}

impl DeviceLoop {
    /// A loop of `extent` iterations that go these bytes.
    pub(crate) fn strides(extent: u64, source: u64, destination: u64) -> DeviceLoop {
        DeviceLoop {
            extent,
            source: LoopSide::Stride(source),
            destination: LoopSide::Stride(destination),
        }
    }

    /// A loop of a plan that stays in its regions.
    pub(crate) fn local(l: &Loop) -> DeviceLoop {
        DeviceLoop::strides(l.extent, l.source.bytes, l.destination.bytes)
    }

    /// Both strides, where neither side has a table.
    pub(crate) fn both(&self) -> Option<(u64, u64)> {
        Some((self.source.stride()?, self.destination.stride()?))
    }

    /// The inner loop of `inner` iterations and the outer one, where they divide it and it has strides.
    pub(crate) fn cut(&self, inner: u64) -> Option<(DeviceLoop, DeviceLoop)> {
        if inner == 0 || !self.extent.is_multiple_of(inner) {
            return None;
        }
        let outer = DeviceLoop {
            extent: self.extent / inner,
            source: self.source.every(inner)?,
            destination: self.destination.every(inner)?,
        };
        Some((
            DeviceLoop {
                extent: inner,
                ..*self
            },
            outer,
        ))
    }
}

/// A nest at addresses: loops around runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct CopyShape {
    pub(crate) source: u64,
    pub(crate) destination: u64,
    pub(crate) run_bytes: u64,
    /// Innermost first.
    pub(crate) loops: Vec<DeviceLoop>,
}

impl CopyShape {
    /// Bytes that it copies.
    pub(crate) fn bytes(&self) -> u64 {
        let runs = self
            .loops
            .iter()
            .fold(1u64, |runs, l| runs.saturating_mul(l.extent));
        runs.saturating_mul(self.run_bytes)
    }

    /// The same shape, both sides `bytes` further, with runs of `run_bytes`.
    pub(crate) fn further(&self, bytes: u64, run_bytes: u64) -> CopyShape {
        CopyShape {
            source: self.source.wrapping_add(bytes),
            destination: self.destination.wrapping_add(bytes),
            run_bytes,
            loops: self.loops.clone(),
        }
    }

    /// Shapes whose runs are short and which have few enough runs for a launch.
    pub(crate) fn split(mut self) -> Vec<CopyShape> {
        let mut shapes = Vec::new();
        let rest = self.run_bytes % PIECE_BYTES;
        if self.run_bytes > PIECE_BYTES {
            if rest > 0 {
                shapes.extend(self.further(self.run_bytes - rest, rest).few());
            }
            let pieces =
                DeviceLoop::strides(self.run_bytes / PIECE_BYTES, PIECE_BYTES, PIECE_BYTES);
            self.loops.insert(0, pieces);
            self.run_bytes = PIECE_BYTES;
        }
        shapes.extend(self.few());
        shapes
    }

    /// Halves of the longest loop until each has few enough runs.
    fn few(self) -> Vec<CopyShape> {
        let (mut done, mut open) = (Vec::new(), vec![self]);
        while let Some(mut shape) = open.pop() {
            let vectors = u128::from(shape.run_bytes.div_ceil(16));
            let runs = shape
                .loops
                .iter()
                .fold(1u128, |runs, l| runs.saturating_mul(u128::from(l.extent)));
            let longest = (0..).zip(&shape.loops).max_by_key(|(_, l)| l.extent);
            let longest = longest.map(|(position, l)| (position, l.extent));
            let too_many = runs.saturating_mul(vectors) >= VECTORS_MAX;
            let Some((position, extent)) = longest.filter(|(_, extent)| too_many && *extent > 1)
            else {
                done.push(shape);
                continue;
            };
            let half = extent / 2;
            let mut second = shape.clone();
            second.skip(position, half, extent - half);
            shape.skip(position, 0, half);
            open.extend([second, shape]);
        }
        done
    }

    /// Leaves out the first `skipped` iterations of a loop and keeps `kept` after them.
    fn skip(&mut self, position: usize, skipped: u64, kept: u64) {
        if let Some(l) = self.loops.get_mut(position) {
            l.extent = kept;
            for (side, start) in [
                (&mut l.source, &mut self.source),
                (&mut l.destination, &mut self.destination),
            ] {
                match side {
                    LoopSide::Stride(stride) => {
                        *start = start.wrapping_add(stride.wrapping_mul(skipped));
                    }
                    LoopSide::Table(word) => *word += skipped,
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether `shapes` together have the bytes of `whole`, each with few enough runs.
    fn assert_split(whole: &CopyShape, pieces: usize) {
        let shapes = whole.clone().split();
        assert_eq!(shapes.len(), pieces);
        let bytes: u128 = shapes.iter().map(|shape| u128::from(shape.bytes())).sum();
        assert_eq!(bytes, u128::from(whole.bytes()));
        for shape in &shapes {
            let runs: u64 = shape.loops.iter().map(|l| l.extent).product();
            assert!(runs * shape.run_bytes.div_ceil(16) < 1 << 31, "{shape:?}");
        }
        let mut starts: Vec<u64> = shapes.iter().map(|shape| shape.destination).collect();
        starts.sort_unstable();
        starts.dedup();
        assert_eq!(starts.len(), pieces, "two pieces start at one place");
    }

    #[test]
    fn shapes_of_more_runs_than_a_launch_has_are_split() {
        let shape = |run_bytes, loops| CopyShape {
            source: 1 << 50,
            destination: 1 << 51,
            run_bytes,
            loops,
        };
        let small = shape(16, vec![DeviceLoop::strides(1 << 20, 32, 16)]);
        let unsplit = small.clone().split();
        assert_eq!(unsplit, [small]);
        let inner = DeviceLoop::strides(1 << 20, 32, 16);
        let outer = DeviceLoop {
            extent: 1 << 13,
            source: LoopSide::Table(5),
            destination: LoopSide::Stride(1 << 24),
        };
        assert_split(&shape(16, vec![inner, outer]), 8);
        assert_split(&shape((1 << 40) + 5, Vec::new()), 65);
        assert_split(
            &shape(
                (1 << 20) + 1,
                vec![DeviceLoop::strides(3, 1 << 21, 1 << 21)],
            ),
            2,
        );
    }

    #[test]
    fn halves_of_a_table_continue_in_it() {
        let l = DeviceLoop {
            extent: (1 << 31) + 1,
            source: LoopSide::Table(7),
            destination: LoopSide::Stride(1),
        };
        let whole = CopyShape {
            source: 100,
            destination: 200,
            run_bytes: 1,
            loops: vec![l],
        };
        let mut shapes = whole.split();
        shapes.sort_by_key(|shape| shape.destination);
        let [first, second] = shapes.as_slice() else {
            panic!("{shapes:?}");
        };
        assert_eq!((first.source, second.source), (100, 100));
        assert_eq!(
            second.destination - first.destination,
            first.loops[0].extent
        );
        assert_eq!(
            second.loops[0].source,
            LoopSide::Table(7 + first.loops[0].extent)
        );
        assert_eq!(first.loops[0].extent + second.loops[0].extent, l.extent);
    }
}
