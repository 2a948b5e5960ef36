//! Levels of vector instructions, detected at run time.

use std::sync::OnceLock;

/// An instruction set with kernels of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[expect(dead_code, reason = "each architecture has its own levels")]
pub(crate) enum SimdLevel {
    /// The baseline of every machine: no explicit vectors, ordinary stores.
    Portable,
    /// NEON, which every 64-bit ARM has, with ordinary stores. These machines switch to streaming
    /// by themselves when a core writes whole consecutive lines.
    Neon,
    /// AVX2 with streaming stores of 32 bytes.
    Avx2,
    /// AVX-512 (F and BW) with streaming stores of whole lines.
    Avx512,
}

impl SimdLevel {
    /// Number of levels.
    pub(crate) const COUNT: usize = SimdLevel::Avx512 as usize + 1;

    /// The highest level of this machine.
    pub(crate) fn of_machine() -> SimdLevel {
        static LEVEL: OnceLock<SimdLevel> = OnceLock::new();
        *LEVEL.get_or_init(|| {
            SimdLevel::available()
                .into_iter()
                .max()
                .unwrap_or(SimdLevel::Portable)
        })
    }

    /// All levels of this machine.
    pub(crate) fn available() -> Vec<SimdLevel> {
        let mut levels = vec![SimdLevel::Portable];
        #[cfg(target_arch = "x86_64")]
        {
            if std::arch::is_x86_feature_detected!("avx2") {
                levels.push(SimdLevel::Avx2);
                if std::arch::is_x86_feature_detected!("avx512f")
                    && std::arch::is_x86_feature_detected!("avx512bw")
                {
                    levels.push(SimdLevel::Avx512);
                }
            }
        }
        #[cfg(target_arch = "aarch64")]
        levels.push(SimdLevel::Neon);
        levels
    }

    /// Whether it has streaming stores, which bypass the caches.
    pub(crate) fn streams(self) -> bool {
        matches!(self, SimdLevel::Avx2 | SimdLevel::Avx512)
    }
}
