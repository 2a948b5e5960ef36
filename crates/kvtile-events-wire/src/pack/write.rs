//! Writes values in their shortest form.

use super::WireValue;

/// Appends the bytes of a value.
pub(crate) fn write(value: &WireValue, out: &mut Vec<u8>) {
    match value {
        WireValue::Nil => out.push(0xc0),
        WireValue::Bool(value) => out.push(if *value { 0xc3 } else { 0xc2 }),
        WireValue::Number(number) => write_number(*number, out),
        WireValue::Negative(number) => write_negative(*number, out),
        WireValue::Float(number) => {
            out.push(0xcb);
            out.extend(number.to_bits().to_be_bytes());
        }
        WireValue::Text(text) => {
            write_length(
                text.len(),
                (0xa0, 32),
                [Some(0xd9), Some(0xda), Some(0xdb)],
                out,
            );
            out.extend(text.as_bytes());
        }
        WireValue::Bytes(bytes) => {
            write_length(
                bytes.len(),
                (0, 0),
                [Some(0xc4), Some(0xc5), Some(0xc6)],
                out,
            );
            out.extend(bytes);
        }
        WireValue::List(values) => {
            write_length(
                values.len(),
                (0x90, 16),
                [None, Some(0xdc), Some(0xdd)],
                out,
            );
            values.iter().for_each(|value| write(value, out));
        }
        WireValue::Map(entries) => {
            write_length(
                entries.len(),
                (0x80, 16),
                [None, Some(0xde), Some(0xdf)],
                out,
            );
            for (name, value) in entries {
                write(&WireValue::Text(name.clone()), out);
                write(value, out);
            }
        }
    }
}

/// Writes a length: within the first byte, or behind one that announces 1, 2 or 4 bytes.
fn write_length(length: usize, short: (u8, usize), kinds: [Option<u8>; 3], out: &mut Vec<u8>) {
    let (base, end) = short;
    if let (true, Ok(low)) = (length < end, u8::try_from(length)) {
        out.push(base | low);
        return;
    }
    let [of_one, of_two, of_four] = kinds;
    if let (Some(kind), Ok(length)) = (of_one, u8::try_from(length)) {
        out.extend([kind, length]);
    } else if let (Some(kind), Ok(length)) = (of_two, u16::try_from(length)) {
        out.push(kind);
        out.extend(length.to_be_bytes());
    } else if let (Some(kind), Ok(length)) = (of_four, u32::try_from(length)) {
        out.push(kind);
        out.extend(length.to_be_bytes());
    } else {
        // Batches are bounded far below this length.
        assert!(
            u32::try_from(length).is_ok(),
            "a value of {length} entries has no bytes in MessagePack"
        );
    }
}

fn write_number(number: u64, out: &mut Vec<u8>) {
    if let Ok(byte) = u8::try_from(number) {
        if byte >= 0x80 {
            out.push(0xcc);
        }
        out.push(byte);
    } else if let Ok(number) = u16::try_from(number) {
        out.push(0xcd);
        out.extend(number.to_be_bytes());
    } else if let Ok(number) = u32::try_from(number) {
        out.push(0xce);
        out.extend(number.to_be_bytes());
    } else {
        out.push(0xcf);
        out.extend(number.to_be_bytes());
    }
}

fn write_negative(number: i64, out: &mut Vec<u8>) {
    if let Ok(byte) = i8::try_from(number) {
        if byte < -32 {
            out.push(0xd0);
        }
        out.extend(byte.to_be_bytes());
    } else if let Ok(number) = i16::try_from(number) {
        out.push(0xd1);
        out.extend(number.to_be_bytes());
    } else if let Ok(number) = i32::try_from(number) {
        out.push(0xd2);
        out.extend(number.to_be_bytes());
    } else {
        out.push(0xd3);
        out.extend(number.to_be_bytes());
    }
}
