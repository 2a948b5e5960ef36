//! The arithmetic of instructions, over values of up to 64 bits.

use crate::instruction::{BinaryOperation, Comparison, PtxType};

/// The result of `operation`, cut to its bits; `None` for a division by zero.
pub(crate) fn binary(operation: BinaryOperation, of: PtxType, a: u64, b: u64) -> Option<u64> {
    let (a, b) = (of.extended(a), of.extended(b));
    let result = match operation {
        BinaryOperation::Add => a.wrapping_add(b),
        BinaryOperation::Subtract => a.wrapping_sub(b),
        BinaryOperation::MultiplyLow => a.wrapping_mul(b),
        BinaryOperation::MultiplyHigh => multiply_high(of, a, b),
        BinaryOperation::MultiplyWide => return Some(a.wrapping_mul(b) & doubled(of).mask()),
        BinaryOperation::Divide | BinaryOperation::Remainder if b == 0 => return None,
        BinaryOperation::Divide if of.is_signed => {
            let quotient = a.cast_signed().wrapping_div(b.cast_signed());
            quotient.cast_unsigned()
        }
        BinaryOperation::Divide => a / b,
        BinaryOperation::Remainder if of.is_signed => {
            let remainder = a.cast_signed().wrapping_rem(b.cast_signed());
            remainder.cast_unsigned()
        }
        BinaryOperation::Remainder => a % b,
        BinaryOperation::And => a & b,
        BinaryOperation::Or => a | b,
        BinaryOperation::Xor => a ^ b,
        BinaryOperation::ShiftLeft if b >= u64::from(of.bits) => 0,
        BinaryOperation::ShiftLeft => a << b,
        BinaryOperation::ShiftRight if of.is_signed => {
            // Further shifts keep the sign alone.
            (a.cast_signed() >> b.min(63)).cast_unsigned()
        }
        BinaryOperation::ShiftRight if b >= u64::from(of.bits) => 0,
        BinaryOperation::ShiftRight => a >> b,
        BinaryOperation::Minimum if compare(Comparison::Less, of, a, b) => a,
        BinaryOperation::Minimum => b,
        BinaryOperation::Maximum if compare(Comparison::Less, of, a, b) => b,
        BinaryOperation::Maximum => a,
    };
    Some(result & of.mask())
}

/// The type of a wide product.
pub(crate) fn doubled(of: PtxType) -> PtxType {
    PtxType {
        bits: (of.bits * 2).min(64),
        ..of
    }
}

/// The upper half of the product of extended values.
fn multiply_high(of: PtxType, a: u64, b: u64) -> u64 {
    let product = match of.is_signed {
        true => (i128::from(a.cast_signed()) * i128::from(b.cast_signed())).cast_unsigned(),
        false => u128::from(a) * u128::from(b),
    };
    low_half(product >> of.bits)
}

fn low_half(value: u128) -> u64 {
    let low = value & u128::from(u64::MAX);
    u64::try_from(low).unwrap_or(u64::MAX)
}

/// Whether the values compare so.
pub(crate) fn compare(comparison: Comparison, of: PtxType, a: u64, b: u64) -> bool {
    let (a, b) = (of.extended(a), of.extended(b));
    let order = match of.is_signed {
        true => a.cast_signed().cmp(&b.cast_signed()),
        false => a.cmp(&b),
    };
    match comparison {
        Comparison::Equal => order.is_eq(),
        Comparison::NotEqual => order.is_ne(),
        Comparison::Less => order.is_lt(),
        Comparison::LessOrEqual => order.is_le(),
        Comparison::Greater => order.is_gt(),
        Comparison::GreaterOrEqual => order.is_ge(),
    }
}

/// The bytes of `a`, then of `b`, that the four digits of `selector` choose; a digit of 8 and more spreads the
/// sign of its byte.
pub(crate) fn permute(a: u64, b: u64, selector: u64) -> u64 {
    let all = (a & 0xffff_ffff) | (b << 32);
    (0..4).fold(0, |result, byte| {
        let digit = (selector >> (4 * byte)) & 0xf;
        let chosen = (all >> (8 * (digit & 7))) & 0xff;
        let chosen = match (digit & 8 != 0, chosen & 0x80 != 0) {
            (false, _) => chosen,
            (true, true) => 0xff,
            (true, false) => 0,
        };
        result | (chosen << (8 * byte))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(name: &str) -> PtxType {
        PtxType::named(name).unwrap()
    }

    /// Operation, type, operands and result in hexadecimal; no result where there is none.
    const CASES: &str = "
        Add u32 ffffffff 2 1
        Subtract u16 0 1 ffff
        MultiplyLow s32 ffffffff 5 fffffffb
        MultiplyHigh u32 ffffffff ffffffff fffffffe
        MultiplyHigh s32 ffffffff ffffffff 0
        MultiplyHigh s32 ffffffff 5 ffffffff
        MultiplyHigh u64 ffffffffffffffff ffffffffffffffff fffffffffffffffe
        MultiplyHigh s64 ffffffffffffffff 7 ffffffffffffffff
        MultiplyWide u32 ffffffff 10 ffffffff0
        MultiplyWide s32 ffffffff 10 fffffffffffffff0
        MultiplyWide s16 ffff 10 fffffff0
        Divide u32 7 2 3
        Divide s32 fffffff9 2 fffffffd
        Divide s32 80000000 ffffffff 80000000
        Divide s64 8000000000000000 ffffffffffffffff 8000000000000000
        Divide u32 7 100000000
        Remainder s32 fffffff9 2 ffffffff
        Remainder u64 7 0
        ShiftLeft b32 1 20 0
        ShiftLeft b32 3 1f 80000000
        ShiftRight s32 80000000 63 ffffffff
        ShiftRight s16 8000 4 f800
        ShiftRight u32 80000000 20 0
        Minimum s32 ffffffff 1 ffffffff
        Minimum u32 ffffffff 1 1
        Maximum u32 ffffffff 1 ffffffff
        Maximum s64 ffffffffffffffff 1 1";

    const OPERATIONS: [BinaryOperation; 11] = [
        BinaryOperation::Add,
        BinaryOperation::Subtract,
        BinaryOperation::MultiplyLow,
        BinaryOperation::MultiplyHigh,
        BinaryOperation::MultiplyWide,
        BinaryOperation::Divide,
        BinaryOperation::Remainder,
        BinaryOperation::ShiftLeft,
        BinaryOperation::ShiftRight,
        BinaryOperation::Minimum,
        BinaryOperation::Maximum,
    ];

    #[test]
    fn arithmetic_wraps_at_the_bits_of_the_type() {
        let cases: Vec<&str> = CASES
            .lines()
            .filter(|line| !line.trim().is_empty())
            .collect();
        assert_eq!(cases.len(), 27);
        for case in cases {
            let words: Vec<&str> = case.split_whitespace().collect();
            let hex = |at: usize| {
                words
                    .get(at)
                    .map(|word| u64::from_str_radix(word, 16).unwrap())
            };
            let mut known = OPERATIONS.into_iter();
            let operation = known
                .find(|known| format!("{known:?}") == words[0])
                .unwrap();
            let found = binary(operation, of(words[1]), hex(2).unwrap(), hex(3).unwrap());
            assert_eq!(found, hex(4), "{case}");
        }
    }

    #[test]
    fn comparisons_know_signs() {
        assert!(compare(Comparison::Less, of("s32"), 0xffff_ffff, 0));
        assert!(compare(Comparison::Greater, of("u32"), 0xffff_ffff, 0));
        assert!(compare(Comparison::Equal, of("b16"), 0x1_0005, 5));
        assert!(compare(Comparison::NotEqual, of("u64"), 1 << 40, 0));
        assert!(compare(
            Comparison::LessOrEqual,
            of("s64"),
            u64::MAX,
            u64::MAX
        ));
        assert!(!compare(Comparison::GreaterOrEqual, of("s16"), 0x8000, 0));
    }

    #[test]
    fn permutations_choose_bytes_and_spread_signs() {
        assert_eq!(permute(0x3322_1100, 0x7766_5544, 0x5410), 0x5544_1100);
        assert_eq!(permute(0x3322_1100, 0x7766_5544, 0x7632), 0x7766_3322);
        assert_eq!(permute(0x80, 0x7f, 0x0c84), 0x8000_ff7f & 0xffff_ffff);
    }
}
