//! Byte-level BPE from the metadata of a GGUF file, with the `smollm` pre-tokenizer and the ChatML
//! turns of the model's training.
//!
//! Text is never searched for control tokens: the text of a user cannot end a turn.

pub(crate) mod bytes;
mod merge;
mod split;
mod stream;

use std::collections::HashMap;

pub use stream::TextStream;

use crate::DemoError;
use crate::gguf::Gguf;
use merge::{Merge, Merges, merge};

/// GGUF's number for control tokens in `tokenizer.ggml.token_type`.
const CONTROL: i64 = 3;
/// The default system message of the model's chat template.
const SYSTEM_DEFAULT: &str = "You are a helpful AI assistant named SmolLM, trained by Hugging Face";

/// A vocabulary with its merges.
#[derive(Clone, Debug)]
pub struct Tokenizer {
    /// The bytes of each token; for a control token, those of its name.
    tokens: Vec<Box<[u8]>>,
    merges: Merges,
    byte_tokens: Vec<Option<u32>>,
    turn_start: u32,
    turn_end: u32,
}

impl Tokenizer {
    /// Reads the tokenizer of a model.
    ///
    /// # Errors
    /// [`DemoError::Unsupported`] for other kinds of tokenizers,
    /// [`DemoError::TokenizerEntry`] for entries that contradict each other.
    pub fn from_gguf(file: &Gguf<'_>) -> Result<Self, DemoError> {
        for (key, supported) in [
            ("tokenizer.ggml.model", "gpt2"),
            ("tokenizer.ggml.pre", "smollm"),
        ] {
            let value = file.text(key)?;
            if value != supported {
                return Err(DemoError::Unsupported {
                    key: key.to_owned(),
                    value: value.to_owned(),
                });
            }
        }
        let kinds: Vec<i64> = file
            .array("tokenizer.ggml.token_type")?
            .iter()
            .map(|kind| kind.as_i64().unwrap_or_default())
            .collect();
        let (ids, tokens) = read_tokens(file, &kinds)?;
        let named = |name: &str| {
            let found = ids.get(name).copied();
            found.ok_or_else(|| entry(name, "is missing; it begins or ends a turn"))
        };
        let byte_tokens = bytes::alphabet()
            .iter()
            .map(|character| ids.get(character.encode_utf8(&mut [0; 4]) as &str).copied())
            .collect();
        Ok(Self {
            turn_start: named("<|im_start|>")?,
            turn_end: named("<|im_end|>")?,
            merges: read_merges(file, &ids)?,
            tokens,
            byte_tokens,
        })
    }

    /// Number of tokens.
    pub fn vocabulary(&self) -> usize {
        self.tokens.len()
    }

    /// The token that ends the model's turn.
    pub fn turn_end(&self) -> u32 {
        self.turn_end
    }

    /// The tokens of plain text.
    ///
    /// # Errors
    /// [`DemoError::ByteUnknown`] for a byte that the vocabulary lacks.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, DemoError> {
        let mut tokens = Vec::new();
        for word in split::words(text) {
            let bytes = word.bytes().map(|byte| self.byte_token(byte));
            let bytes = bytes.collect::<Result<Vec<_>, _>>()?;
            tokens.extend(merge(&self.merges, bytes.into_iter()));
        }
        Ok(tokens)
    }

    /// The tokens of a conversation that ends with the user's message `user`, before the model's
    /// answer. `system` replaces the default system message of the template.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn encode_chat(&self, system: Option<&str>, user: &str) -> Result<Vec<u32>, DemoError> {
        let mut tokens = Vec::new();
        for (role, content) in [("system", system.unwrap_or(SYSTEM_DEFAULT)), ("user", user)] {
            tokens.push(self.turn_start);
            tokens.extend(self.encode(&format!("{role}\n{content}"))?);
            tokens.push(self.turn_end);
            tokens.extend(self.encode("\n")?);
        }
        tokens.push(self.turn_start);
        tokens.extend(self.encode("assistant\n")?);
        Ok(tokens)
    }

    /// The bytes of one token, which may split a character.
    ///
    /// # Errors
    /// [`DemoError::TokenUnknown`].
    pub fn bytes(&self, token: u32) -> Result<&[u8], DemoError> {
        let found = usize::try_from(token)
            .ok()
            .and_then(|index| self.tokens.get(index));
        let vocabulary = self.tokens.len();
        found
            .map(AsRef::as_ref)
            .ok_or(DemoError::TokenUnknown { token, vocabulary })
    }

    /// The text of tokens; bytes that are not UTF-8 become U+FFFD.
    ///
    /// # Errors
    /// [`DemoError::TokenUnknown`].
    pub fn decode(&self, tokens: &[u32]) -> Result<String, DemoError> {
        let mut bytes = Vec::new();
        for token in tokens {
            bytes.extend_from_slice(self.bytes(*token)?);
        }
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    fn byte_token(&self, byte: u8) -> Result<u32, DemoError> {
        let token = self.byte_tokens.get(usize::from(byte)).copied().flatten();
        token.ok_or(DemoError::ByteUnknown { byte })
    }
}

fn entry(entry: &str, reason: &'static str) -> DemoError {
    DemoError::TokenizerEntry {
        entry: entry.to_owned(),
        reason,
    }
}

type Vocabulary<'a> = (HashMap<&'a str, u32>, Vec<Box<[u8]>>);

fn read_tokens<'a>(file: &Gguf<'a>, kinds: &[i64]) -> Result<Vocabulary<'a>, DemoError> {
    let stored = file.array("tokenizer.ggml.tokens")?;
    if stored.len() != kinds.len() {
        return Err(entry(
            "tokenizer.ggml.token_type",
            "has another length than the tokens",
        ));
    }
    let (mut ids, mut tokens) = (HashMap::new(), Vec::new());
    for ((id, value), kind) in (0..).zip(stored.iter()).zip(kinds) {
        let Some(text) = value.as_text() else {
            return Err(entry("tokenizer.ggml.tokens", "does not hold strings"));
        };
        if ids.insert(text, id).is_some() {
            return Err(entry(text, "is in the vocabulary twice"));
        }
        tokens.push(if *kind == CONTROL {
            text.as_bytes().into()
        } else {
            let bytes: Option<Box<[u8]>> = text.chars().map(bytes::byte_of).collect();
            bytes.ok_or_else(|| entry(text, "is not written in the byte alphabet"))?
        });
    }
    Ok((ids, tokens))
}

fn read_merges(file: &Gguf<'_>, ids: &HashMap<&str, u32>) -> Result<Merges, DemoError> {
    let mut merges = Merges::new();
    for (rank, value) in (0..).zip(file.array("tokenizer.ggml.merges")?.iter()) {
        let rule = value.as_text().unwrap_or_default();
        let parts = rule.split_once(' ').and_then(|(left, right)| {
            let joined = ids.get(format!("{left}{right}").as_str())?;
            Some(((*ids.get(left)?, *ids.get(right)?), *joined))
        });
        let Some((pair, token)) = parts else {
            return Err(entry(rule, "merges tokens that are not in the vocabulary"));
        };
        merges.entry(pair).or_insert(Merge { rank, token });
    }
    Ok(merges)
}
