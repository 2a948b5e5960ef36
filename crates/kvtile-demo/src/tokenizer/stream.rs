//! Incremental UTF-8 decoding of tokens.

/// Converts the bytes of successive tokens to text and buffers an incomplete character.
#[derive(Clone, Debug, Default)]
pub struct TextStream {
    pending: Vec<u8>,
}

impl TextStream {
    /// Adds bytes and returns the complete text so far that was not returned before. Invalid UTF-8
    /// becomes U+FFFD.
    pub fn push(&mut self, bytes: &[u8]) -> String {
        self.pending.extend_from_slice(bytes);
        let mut text = String::new();
        let mut pending = self.pending.as_slice();
        loop {
            match std::str::from_utf8(pending) {
                Ok(valid) => {
                    text.push_str(valid);
                    self.pending = Vec::new();
                    return text;
                }
                Err(error) => {
                    let (valid, rest) = pending.split_at(error.valid_up_to());
                    text.push_str(&String::from_utf8_lossy(valid));
                    let Some(invalid) = error.error_len() else {
                        self.pending = rest.to_vec();
                        return text;
                    };
                    text.push(char::REPLACEMENT_CHARACTER);
                    pending = rest.get(invalid..).unwrap_or_default();
                }
            }
        }
    }

    /// The remaining text at the end of the bytes.
    pub fn finish(self) -> String {
        String::from_utf8_lossy(&self.pending).into_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_character_split_between_tokens_appears_once_it_is_whole() {
        let mut stream = TextStream::default();
        let text = "é中🙂a";
        let pieces: Vec<String> = text
            .as_bytes()
            .iter()
            .map(|byte| stream.push(&[*byte]))
            .collect();
        assert_eq!(pieces.concat(), text);
        assert_eq!(pieces[0], "");
        assert_eq!(stream.finish(), "");
    }

    #[test]
    fn bytes_that_are_no_text_become_replacement_characters() {
        let mut stream = TextStream::default();
        assert_eq!(stream.push(b"a\xffb\xe4\xb8"), "a\u{fffd}b");
        assert_eq!(stream.push(b"c\xe4"), "\u{fffd}c");
        assert_eq!(stream.finish(), "\u{fffd}");
    }
}
