//! Norm, softmax, gate and sum over rows.

use pulp::Arch;

/// Number of chains for sums and maxima, on every machine.
const CHAINS: usize = 16;

/// `out = x * weight / sqrt(mean(x^2) + epsilon)` for each row of `weight.len()`
/// values (Zhang and Sennrich, "Root Mean Square Layer Normalization", 2019).
pub(crate) fn rms_norm(rows: &[f32], weight: &[f32], epsilon: f32, out: &mut [f32]) {
    let width = weight.len().max(1);
    Arch::new().dispatch(|| {
        for (row, out) in rows.chunks_exact(width).zip(out.chunks_exact_mut(width)) {
            let squares = fold(row, 0.0, |sum, value| sum + value * value);
            let mean = squares.iter().sum::<f32>() / width as f32;
            let scale = 1.0 / (mean + epsilon).sqrt();
            for ((out, value), weight) in out.iter_mut().zip(row).zip(weight) {
                *out = value * scale * weight;
            }
        }
    });
}

/// Softmax of `scale * row` over the first `valid` values; the others become 0.
/// The result is not divided by its sum: the sum is returned.
pub(crate) fn softmax_prefix(row: &mut [f32], valid: usize, scale: f32) -> f32 {
    Arch::new().dispatch(|| {
        let (valid, masked) = row.split_at_mut(valid.min(row.len()));
        masked.fill(0.0);
        let largest = fold(valid, f32::NEG_INFINITY, f32::max);
        let largest = largest.into_iter().fold(f32::NEG_INFINITY, f32::max);
        for value in valid.iter_mut() {
            *value = exponential((*value - largest) * scale);
        }
        fold(valid, 0.0, |sum, value| sum + value).iter().sum()
    })
}

/// `out = silu(gate) * up` where each row of `gate_up` holds all gates, then all
/// ups, and `silu(x) = x / (1 + exp(-x))`.
pub(crate) fn silu_gate(gate_up: &[f32], out: &mut [f32], width: usize) {
    let width = width.max(1);
    Arch::new().dispatch(|| {
        for (row, out) in gate_up
            .chunks_exact(2 * width)
            .zip(out.chunks_exact_mut(width))
        {
            let (gates, ups) = row.split_at(width);
            for ((out, gate), up) in out.iter_mut().zip(gates).zip(ups) {
                *out = gate / (1.0 + exponential(-gate)) * up;
            }
        }
    });
}

/// `sum += term`, value by value.
pub(crate) fn add_assign(sum: &mut [f32], term: &[f32]) {
    Arch::new().dispatch(|| {
        for (sum, term) in sum.iter_mut().zip(term) {
            *sum += term;
        }
    });
}

/// Folds `values` into [`CHAINS`] interleaved chains.
#[inline(always)]
fn fold(values: &[f32], start: f32, step: impl Fn(f32, f32) -> f32) -> [f32; CHAINS] {
    let mut chains = [start; CHAINS];
    let (whole, tail) = values.as_chunks::<CHAINS>();
    for values in whole {
        for (chain, value) in chains.iter_mut().zip(values) {
            *chain = step(*chain, *value);
        }
    }
    for (chain, value) in chains.iter_mut().zip(tail) {
        *chain = step(*chain, *value);
    }
    chains
}

/// The exponential to about two units in the last place, without branches or calls, so that a loop
/// over it becomes vector code. Arguments are clamped to the range with normal results.
///
/// `exp(x) = 2^n * exp(r)` with `n = round(x / ln 2)` and `|r| <= ln 2 / 2`; adding
/// 1.5 * 2^23 rounds and leaves `n` in the low bits, the Taylor polynomial of
/// degree 7 gives `exp(r)`, and `n` is added to its exponent.
#[inline(always)]
fn exponential(x: f32) -> f32 {
    const ROUND: f32 = 12_582_912.0;
    // ln 2 in two parts, the first with trailing zeros so that n * LN2_HIGH is exact.
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    const TERMS: [f32; 6] = [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0];
    let x = x.clamp(-87.0, 88.0);
    let rounded = x * std::f32::consts::LOG2_E + ROUND;
    let n = rounded - ROUND;
    let r = (x - n * LN2_HIGH) - n * LN2_LOW;
    let mut sum = 1.0 / 5040.0;
    for term in TERMS {
        sum = sum * r + term;
    }
    let sum = sum * r + 1.0;
    f32::from_bits(sum.to_bits().wrapping_add(rounded.to_bits() << 23))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exponential_matches_double_precision() {
        for step in -8_700..8_800 {
            let x = step as f32 * 0.01;
            let expected = f64::from(x).exp();
            let error = (f64::from(exponential(x)) - expected).abs() / expected;
            assert!(error < 3e-7, "exp({x}): relative error {error}");
        }
        assert_eq!(exponential(0.0), 1.0);
        assert!(exponential(-1e30) > 0.0 && exponential(1e30).is_finite());
    }

    #[test]
    fn softmax_masks_the_rest_even_where_it_is_not_a_number() {
        let mut row = [1.0, 2.0, 3.0, f32::NAN, f32::INFINITY];
        let sum = softmax_prefix(&mut row, 3, 0.5);
        let expected = [(-1.0f32).exp(), (-0.5f32).exp(), 1.0];
        for (value, expected) in row.iter().zip(expected) {
            assert!((value - expected).abs() < 1e-6);
        }
        assert_eq!(row[3..], [0.0, 0.0]);
        assert!((sum - expected.iter().sum::<f32>()).abs() < 1e-6);
    }
}
