//! The kernels of `cuda/move.cu`.

/// The kernels as PTX text of instruction set 7.4 for `sm_80`: drivers of CUDA 11.4 and newer take it, for devices
/// from Ampere on.
pub const MOVE_PTX: &str = include_str!("../cuda/move.ptx");

/// Threads of a block of a `rows` kernel.
pub(crate) const ROWS_THREADS: u32 = 256;

/// Most threads of a block of a `tiles` kernel.
pub(crate) const TILES_THREADS: u32 = 128;

/// Bytes of a vector, or of an element.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum VectorBytes {
    /// 1 byte.
    One,
    /// 2 bytes.
    Two,
    /// 4 bytes.
    Four,
    /// 8 bytes.
    Eight,
    /// 16 bytes.
    Sixteen,
}

impl VectorBytes {
    /// The widest vector whose bytes divide all of `numbers`, which are given as their bitwise or.
    pub(crate) fn dividing(numbers: u64) -> VectorBytes {
        match numbers.trailing_zeros() {
            0 => VectorBytes::One,
            1 => VectorBytes::Two,
            2 => VectorBytes::Four,
            3 => VectorBytes::Eight,
            _ => VectorBytes::Sixteen,
        }
    }

    /// Its bytes.
    #[must_use]
    pub fn bytes(self) -> u32 {
        match self {
            VectorBytes::One => 1,
            VectorBytes::Two => 2,
            VectorBytes::Four => 4,
            VectorBytes::Eight => 8,
            VectorBytes::Sixteen => 16,
        }
    }
}

/// A kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum MoveKernel {
    /// Runs of vectors.
    Rows(VectorBytes),
    /// Transposes of elements of 4 bytes.
    Tiles4,
    /// Transposes of elements of 2 bytes.
    Tiles2,
    /// Transposes of elements of 1 byte.
    Tiles1,
}

impl MoveKernel {
    /// Every kernel.
    pub const ALL: [MoveKernel; 8] = [
        MoveKernel::Rows(VectorBytes::Sixteen),
        MoveKernel::Rows(VectorBytes::Eight),
        MoveKernel::Rows(VectorBytes::Four),
        MoveKernel::Rows(VectorBytes::Two),
        MoveKernel::Rows(VectorBytes::One),
        MoveKernel::Tiles4,
        MoveKernel::Tiles2,
        MoveKernel::Tiles1,
    ];

    /// Its name in [`MOVE_PTX`].
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            MoveKernel::Rows(VectorBytes::Sixteen) => "rows_16",
            MoveKernel::Rows(VectorBytes::Eight) => "rows_8",
            MoveKernel::Rows(VectorBytes::Four) => "rows_4",
            MoveKernel::Rows(VectorBytes::Two) => "rows_2",
            MoveKernel::Rows(VectorBytes::One) => "rows_1",
            MoveKernel::Tiles4 => "tiles_4",
            MoveKernel::Tiles2 => "tiles_2",
            MoveKernel::Tiles1 => "tiles_1",
        }
    }
}
