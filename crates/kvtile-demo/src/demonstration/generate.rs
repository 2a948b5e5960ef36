//! Greedy decoding, and the text of the answer.

use std::time::Instant;

use super::{AnswerReport, DemoEvent};
use crate::DemoError;
use crate::kv::{KvView, Sequence};
use crate::llama::Llama;
use crate::tokenizer::{TextStream, Tokenizer};

/// Decodes greedily from `first` until there are `count` tokens, continuing past the end of the
/// turn. Events carry the text up to the end of the turn.
pub(super) fn answer(
    (llama, tokenizer): (&Llama, &Tokenizer),
    (first, count): (u32, usize),
    sequence: &mut Sequence,
    kv: &mut dyn KvView,
    events: &mut dyn FnMut(DemoEvent),
) -> Result<AnswerReport, DemoError> {
    let started = Instant::now();
    let mut spoken = SpokenAnswer::default();
    let mut tokens = Vec::with_capacity(count);
    let mut next = first;
    loop {
        tokens.push(next);
        spoken.token(tokenizer, next, events)?;
        if tokens.len() >= count {
            break;
        }
        next = llama.forward(&[next], sequence, kv)?.greedy();
    }
    let seconds = started.elapsed().as_secs_f64();
    spoken.end(events);
    let turn_tokens = tokens
        .iter()
        .position(|token| *token == tokenizer.turn_end());
    Ok(AnswerReport {
        tokens,
        text: spoken.text,
        turn_tokens,
        seconds,
    })
}

/// The text of an answer, token by token.
#[derive(Default)]
struct SpokenAnswer {
    stream: TextStream,
    text: String,
    ended: bool,
}

impl SpokenAnswer {
    fn token(
        &mut self,
        tokenizer: &Tokenizer,
        token: u32,
        events: &mut dyn FnMut(DemoEvent),
    ) -> Result<(), DemoError> {
        if token == tokenizer.turn_end() {
            self.ended = true;
        }
        if !self.ended {
            let text = self.stream.push(tokenizer.bytes(token)?);
            self.say(text, events);
        }
        Ok(())
    }

    fn end(&mut self, events: &mut dyn FnMut(DemoEvent)) {
        let rest = std::mem::take(&mut self.stream).finish();
        self.say(rest, events);
    }

    fn say(&mut self, text: String, events: &mut dyn FnMut(DemoEvent)) {
        if !text.is_empty() {
            self.text.push_str(&text);
            events(DemoEvent::Said { text });
        }
    }
}
