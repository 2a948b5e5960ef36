//! Converts stored elements to f32.
//!
//! The formulas are those of the ggml block formats, defined by its C headers (`ggml-common.h`:
//! `block_q4_0`, `block_q4_1`, `block_q8_0`). A block holds 32 values; `d` and `m` are
//! half-precision numbers:
//!
//! ```text
//! Q4_0  | d: f16 | q: 16 bytes |            value = d * (nibble - 8)
//! Q4_1  | d: f16 | m: f16 | q: 16 bytes |   value = d * nibble + m
//! Q8_0  | d: f16 | q: 32 signed bytes |     value = d * q
//! ```
//!
//! The low nibbles of the 16 bytes are values 0 to 15, the high ones 16 to 31.

use half::{bf16, f16};

use super::TensorKind;

/// Writes the values of `bytes` into `out`; an incomplete unit on either side is skipped.
pub(super) fn dequantise(kind: TensorKind, bytes: &[u8], out: &mut [f32]) {
    match kind {
        TensorKind::F32 => scalars(bytes, out, f32::from_le_bytes),
        TensorKind::F16 => scalars(bytes, out, |pair| f16::from_le_bytes(pair).to_f32()),
        TensorKind::BF16 => scalars(bytes, out, |pair| bf16::from_le_bytes(pair).to_f32()),
        TensorKind::Q4_0 => blocks::<18>(bytes, out, q4_0),
        TensorKind::Q4_1 => blocks::<20>(bytes, out, q4_1),
        TensorKind::Q8_0 => blocks::<34>(bytes, out, q8_0),
    }
}

fn scalars<const BYTES: usize>(bytes: &[u8], out: &mut [f32], value: impl Fn([u8; BYTES]) -> f32) {
    let (stored, _) = bytes.as_chunks::<BYTES>();
    for (out, stored) in out.iter_mut().zip(stored) {
        *out = value(*stored);
    }
}

fn blocks<const BYTES: usize>(
    bytes: &[u8],
    out: &mut [f32],
    block: impl Fn(&[u8; BYTES], &mut [f32; 32]),
) {
    let (stored, _) = bytes.as_chunks::<BYTES>();
    let (out, _) = out.as_chunks_mut::<32>();
    for (out, stored) in out.iter_mut().zip(stored) {
        block(stored, out);
    }
}

fn q4_0(block: &[u8; 18], out: &mut [f32; 32]) {
    let [d0, d1, nibbles @ ..] = block;
    let d = f16::from_le_bytes([*d0, *d1]).to_f32();
    each_nibble(nibbles, out, |nibble| d * (nibble - 8.0));
}

fn q4_1(block: &[u8; 20], out: &mut [f32; 32]) {
    let [d0, d1, m0, m1, nibbles @ ..] = block;
    let d = f16::from_le_bytes([*d0, *d1]).to_f32();
    let m = f16::from_le_bytes([*m0, *m1]).to_f32();
    each_nibble(nibbles, out, |nibble| d * nibble + m);
}

fn q8_0(block: &[u8; 34], out: &mut [f32; 32]) {
    let [d0, d1, values @ ..] = block;
    let d = f16::from_le_bytes([*d0, *d1]).to_f32();
    for (out, value) in out.iter_mut().zip(values) {
        *out = d * f32::from(value.cast_signed());
    }
}

fn each_nibble(nibbles: &[u8; 16], out: &mut [f32; 32], value: impl Fn(f32) -> f32) {
    let (low, high) = out.split_at_mut(16);
    for ((low, high), byte) in low.iter_mut().zip(high).zip(nibbles) {
        *low = value(f32::from(byte & 0x0f));
        *high = value(f32::from(byte >> 4));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 1.5 in half precision is 0x3e00, -2.0 is 0xc000, 0.25 is 0x3400.
    fn nibble_bytes() -> Vec<u8> {
        (0..16u8).map(|index| index | ((15 - index) << 4)).collect()
    }

    #[test]
    fn q4_0_is_scale_times_nibble_less_eight() {
        let mut block = vec![0x00, 0x3e];
        block.extend(nibble_bytes());
        let mut out = [0.0; 32];
        dequantise(TensorKind::Q4_0, &block, &mut out);
        assert_eq!(out[0], 1.5 * -8.0);
        assert_eq!(out[15], 1.5 * 7.0);
        assert_eq!(out[16], 1.5 * 7.0);
        assert_eq!(out[31], 1.5 * -8.0);
    }

    #[test]
    fn q4_1_is_scale_times_nibble_plus_minimum() {
        let mut block = vec![0x00, 0x34, 0x00, 0xc0];
        block.extend(nibble_bytes());
        let mut out = [0.0; 32];
        dequantise(TensorKind::Q4_1, &block, &mut out);
        for (index, value) in out.iter().enumerate() {
            let nibble = if index < 16 { index } else { 31 - index } as f32;
            assert_eq!(*value, 0.25 * nibble - 2.0, "value {index}");
        }
    }

    #[test]
    fn q8_0_is_scale_times_signed_byte() {
        let mut block = vec![0x00, 0x34];
        block.extend((0..32u8).map(|index| index.wrapping_mul(8)));
        let mut out = [0.0; 32];
        dequantise(TensorKind::Q8_0, &block, &mut out);
        assert_eq!(out[1], 2.0);
        assert_eq!(out[15], 30.0);
        assert_eq!(out[16], -32.0);
        assert_eq!(out[31], -2.0);
    }

    #[test]
    fn plain_floats_keep_their_value() {
        let mut out = [0.0; 2];
        dequantise(
            TensorKind::F32,
            &[0, 0, 0x80, 0x3f, 0, 0, 0, 0xc0],
            &mut out,
        );
        assert_eq!(out, [1.0, -2.0]);
        dequantise(TensorKind::F16, &[0x00, 0x3e, 0x01, 0x00], &mut out);
        assert_eq!(out, [1.5, 2.0_f32.powi(-24)]);
        dequantise(TensorKind::BF16, &[0xc0, 0x3f, 0x00, 0xc0], &mut out);
        assert_eq!(out, [1.5, -2.0]);
    }
}
