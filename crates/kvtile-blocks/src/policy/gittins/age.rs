//! Ages, in block references, and their buckets: two per octave.

/// The number of buckets; the last one is unbounded.
pub(super) const BUCKETS: usize = 52;

/// The bucket of an age.
#[inline]
pub(super) fn bucket(age: u64) -> usize {
    let age = age.max(1);
    let octave = age.ilog2();
    let half = if octave == 0 {
        0
    } else {
        age >> (octave - 1) & 1
    };
    let bucket = u64::from(octave) * 2 + half;
    usize::try_from(bucket).unwrap_or(BUCKETS).min(BUCKETS - 1)
}

/// The age at which a bucket starts.
pub(super) fn start(bucket: usize) -> u64 {
    let octave = bucket / 2;
    match (octave, bucket % 2) {
        (0, odd) => 1 + odd as u64,
        (_, 0) => 1 << octave,
        (_, _) => 3 << (octave - 1),
    }
}

/// The number of references in a bucket. The bucket of age 1 covers the whole octave: there is no
/// age between 1 and 2.
pub(super) fn width(bucket: usize) -> f32 {
    let width = start(bucket + 1).saturating_sub(start(bucket));
    width.max(1) as f32
}

/// The widths of all buckets.
pub(super) fn widths() -> [f32; BUCKETS] {
    std::array::from_fn(width)
}

/// The fraction of the bucket that the age has passed.
#[inline]
pub(super) fn progress(age: u64, bucket: usize) -> f32 {
    let past = age.saturating_sub(start(bucket)) as f32;
    (past / width(bucket)).min(1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_half_octaves() {
        let of = [0, 1, 2, 3, 4, 5, 6, 7, 8, 11, 12, 15, 16].map(bucket);
        assert_eq!(of, [0, 0, 2, 3, 4, 4, 5, 5, 6, 6, 7, 7, 8]);
        assert_eq!(bucket(u64::MAX), BUCKETS - 1);
        for at in 2..BUCKETS {
            assert_eq!(bucket(start(at)), at);
            assert!(bucket(start(at) - 1) < at);
        }
        assert!(progress(12, 7) < 0.01 && progress(15, 7) > 0.7);
    }
}
