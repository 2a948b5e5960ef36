//! MessagePack values. Numbers take their shortest form, as in the encoder that vLLM uses.

mod json;
mod read;
mod write;

pub(crate) use json::{of_json, to_json};
pub(crate) use read::read;
pub(crate) use write::write;

/// A value of MessagePack. Extension types, and maps with keys that are not text, are refused.
#[derive(Clone, Debug, PartialEq)]
pub enum WireValue {
    /// Nothing.
    Nil,
    /// A truth value.
    Bool(bool),
    /// A whole number of 0 or more.
    Number(u64),
    /// A whole number below 0.
    Negative(i64),
    /// A floating-point number.
    Float(f64),
    /// Text.
    Text(String),
    /// Bytes.
    Bytes(Vec<u8>),
    /// A list.
    List(Vec<WireValue>),
    /// Names with values, in their order.
    Map(Vec<(String, WireValue)>),
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nested(depth: usize) -> Vec<u8> {
        let mut bytes = vec![0x91; depth];
        bytes.push(0xc0);
        bytes
    }

    #[test]
    fn values_come_back_from_their_bytes() {
        let long = "x".repeat(70_000);
        let values = [
            WireValue::Nil,
            WireValue::Bool(true),
            WireValue::Float(-0.1),
            WireValue::Text(String::new()),
            WireValue::Text("é".repeat(20)),
            WireValue::Text(long.clone()),
            WireValue::Bytes(vec![7; 300]),
            WireValue::Bytes(vec![8; 70_000]),
            WireValue::List(vec![WireValue::Nil; 70_000]),
            WireValue::Map(vec![("a".to_owned(), WireValue::Bool(false)); 20]),
        ];
        for value in values {
            let mut bytes = Vec::new();
            write(&value, &mut bytes);
            assert_eq!(read(&bytes).unwrap(), value);
            // A part of a value is none, and neither is a value with a byte behind it.
            let cut = bytes.len() - 1;
            assert!(read(&bytes[..cut]).is_err(), "{:?}", &bytes[..8.min(cut)]);
            bytes.push(0xc0);
            assert!(read(&bytes).is_err());
        }
    }

    #[test]
    fn numbers_take_their_shortest_form() {
        for (number, hex) in [
            (0, "00"),
            (127, "7f"),
            (128, "cc80"),
            (256, "cd0100"),
            (65_536, "ce00010000"),
            (u64::MAX, "cfffffffffffffffff"),
        ] {
            check(&WireValue::Number(number), hex);
        }
        for (number, hex) in [
            (-1, "ff"),
            (-32, "e0"),
            (-33, "d0df"),
            (-129, "d1ff7f"),
            (-40_000, "d2ffff63c0"),
            (i64::MIN, "d38000000000000000"),
        ] {
            check(&WireValue::Negative(number), hex);
        }
        // Signed forms of numbers that are not negative, which other encoders write.
        assert_eq!(read(&[0xd0, 5]).unwrap(), WireValue::Number(5));
        assert_eq!(
            read(&[0xca, 0x3f, 0x80, 0, 0]).unwrap(),
            WireValue::Float(1.0)
        );
    }

    fn check(value: &WireValue, hex: &str) {
        let mut bytes = Vec::new();
        write(value, &mut bytes);
        let text: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(text, hex);
        assert_eq!(&read(&bytes).unwrap(), value);
    }

    #[test]
    fn hostile_bytes_are_refused_without_taking_memory() {
        assert!(read(&nested(10)).is_ok());
        for bytes in [
            nested(1_000_000),
            vec![],
            vec![0xc1],
            vec![0xd9, 2, 0xff, 0xfe],
            vec![0xdd, 0xff, 0xff, 0xff, 0xff],
            vec![0xdf, 0xff, 0xff, 0xff, 0xff],
            vec![0xc6, 0xff, 0xff, 0xff, 0xff],
            vec![0xd4, 1, 2],
            vec![0x81, 0x01, 0xc0],
        ] {
            assert!(read(&bytes).is_err(), "{:?}", bytes.get(..5));
        }
        for seed in 0..2_000_u64 {
            // Any bytes give a value or an error.
            let number = |at: u64| (seed + at + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            let bytes: Vec<u8> = (0..5).flat_map(|at| number(at).to_be_bytes()).collect();
            let _ = read(&bytes);
        }
    }
}
