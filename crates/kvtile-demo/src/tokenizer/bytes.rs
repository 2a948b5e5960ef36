//! The alphabet of byte-level vocabularies, which maps each byte to one printable character.
//! Printable ASCII and Latin-1 map to themselves; the other bytes, in order, map to the characters
//! from U+0100 on (Radford and others, GPT-2, 2019).

/// Whether the byte maps to the character of the same number.
fn stands_for_itself(byte: u8) -> bool {
    matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff)
}

/// The character of each byte, by byte.
pub(crate) fn alphabet() -> [char; 256] {
    let mut others = '\u{100}'..;
    std::array::from_fn(|index| {
        let byte = u8::try_from(index).unwrap_or(u8::MAX);
        let other = if stands_for_itself(byte) {
            None
        } else {
            others.next()
        };
        other.unwrap_or(char::from(byte))
    })
}

/// The byte of a character of the alphabet.
pub(super) fn byte_of(character: char) -> Option<u8> {
    let byte = |number: u32| u8::try_from(number).ok();
    let number = u32::from(character);
    if let Some(byte) = byte(number) {
        return stands_for_itself(byte).then_some(byte);
    }
    let rank = usize::try_from(number.checked_sub(0x100)?).ok()?;
    (0..=u8::MAX)
        .filter(|byte| !stands_for_itself(*byte))
        .nth(rank)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_has_one_character_and_comes_back() {
        let alphabet = alphabet();
        for byte in 0..=u8::MAX {
            assert_eq!(byte_of(alphabet[usize::from(byte)]), Some(byte));
        }
        assert_eq!(
            (alphabet[0x20], alphabet[0x0a], alphabet[0x41]),
            ('Ġ', 'Ċ', 'A')
        );
        assert_eq!((byte_of(' '), byte_of('中')), (None, None));
    }
}
