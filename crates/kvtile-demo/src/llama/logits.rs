//! The scores of the next token.

/// One score per token of the vocabulary.
#[derive(Clone, Debug, PartialEq)]
pub struct Logits {
    values: Vec<f32>,
}

impl Logits {
    pub(super) fn new(values: Vec<f32>) -> Self {
        Self { values }
    }

    /// The scores, by token id.
    pub fn values(&self) -> &[f32] {
        &self.values
    }

    /// The token with the highest score; the first one among equals.
    pub fn greedy(&self) -> u32 {
        let mut best = (0, f32::NEG_INFINITY);
        for (token, value) in (0..).zip(&self.values) {
            if *value > best.1 {
                best = (token, *value);
            }
        }
        best.0
    }
}
