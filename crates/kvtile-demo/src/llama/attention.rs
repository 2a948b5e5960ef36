//! Grouped-query attention over blocks that the caller owns.
//!
//! Once per layer, the attention gathers keys and values of the sequence from the blocks into
//! panels, the packing of every matrix product: keys transposed, 32 tokens to a panel; values by
//! token. With transposed keys the gather is a copy along the tokens; in token-major order it
//! transposes each key. All further computation is the same for both orders, so both give the same
//! bits: for each KV head and a tile of tokens, scores, softmax with the causal mask, weighted
//! values.

use rayon::prelude::*;

use crate::DemoError;
use crate::compute::{PANEL_COLUMNS, PanelView, multiply, softmax_prefix};
use crate::kv::{KvOrder, KvShape, KvView, Sequence, SlotRun};

use super::LlamaConfig;

/// Tokens of one tile: with three query heads to a KV head, 48 rows.
const TILE_TOKENS: usize = 16;

/// Keys and values of one layer, packed. Each pass allocates it once and fills it layer by layer.
pub(super) struct PackedKv {
    shape: KvShape,
    tokens: usize,
    /// `[head][panel of 32 tokens][element][32]`
    keys: Vec<f32>,
    /// `[head][panel of 32 elements][token, to a multiple of 32][32]`
    values: Vec<f32>,
}

impl PackedKv {
    /// Room for `tokens` tokens.
    pub(super) fn new(shape: KvShape, tokens: usize) -> Self {
        let padded = tokens.next_multiple_of(PANEL_COLUMNS);
        let elements = shape.head_size.next_multiple_of(PANEL_COLUMNS);
        Self {
            shape,
            tokens,
            keys: vec![0.0; shape.kv_heads * padded * shape.head_size],
            values: vec![0.0; shape.kv_heads * padded * elements],
        }
    }

    fn token_panels(&self) -> usize {
        self.tokens.div_ceil(PANEL_COLUMNS)
    }

    fn element_panels(&self) -> usize {
        self.shape.head_size.div_ceil(PANEL_COLUMNS)
    }

    /// Gathers `layer` of the sequence.
    pub(super) fn gather(
        &mut self,
        kv: &dyn KvView,
        sequence: &Sequence,
        layer: usize,
    ) -> Result<(), DemoError> {
        let (panels, element_panels) = (self.token_panels(), self.element_panels());
        let source = GatherSource::new(kv, sequence, layer, self)?;
        self.keys
            .par_chunks_mut(self.shape.head_size * PANEL_COLUMNS)
            .enumerate()
            .for_each(|(index, out)| source.keys(index / panels, index % panels, out));
        self.values
            .par_chunks_mut(PANEL_COLUMNS * PANEL_COLUMNS)
            .enumerate()
            .for_each(|(index, out)| {
                let (place, panel) = (index / panels, index % panels);
                let (head, elements) = (place / element_panels, place % element_panels);
                source.values(head, (elements, panel), out);
            });
        Ok(())
    }

    /// The keys of `head` for the first `tokens` tokens: inner axis elements.
    fn key_panels(&self, head: usize, tokens: usize) -> PanelView<'_> {
        let stride = self.shape.head_size * PANEL_COLUMNS;
        let start = head * self.token_panels() * stride;
        let data = self.keys.get(start..).unwrap_or_default();
        PanelView {
            data,
            stride,
            inner: self.shape.head_size,
            columns: tokens,
        }
    }

    /// The values of `head` for the first `tokens` tokens: inner axis tokens.
    fn value_panels(&self, head: usize, tokens: usize) -> PanelView<'_> {
        let stride = self.token_panels() * PANEL_COLUMNS * PANEL_COLUMNS;
        let start = head * self.element_panels() * stride;
        let data = self.values.get(start..).unwrap_or_default();
        PanelView {
            data,
            stride,
            inner: tokens,
            columns: self.shape.head_size,
        }
    }
}

/// The source of a gather: it gets the part of each block once.
struct GatherSource<'a> {
    sequence: &'a Sequence,
    order: KvOrder,
    shape: KvShape,
    tokens: usize,
    /// The parts of the sequence's blocks, in the order of the tokens.
    parts: Vec<&'a [f32]>,
}

impl<'a> GatherSource<'a> {
    fn new(
        kv: &'a dyn KvView,
        sequence: &'a Sequence,
        layer: usize,
        packed: &PackedKv,
    ) -> Result<Self, DemoError> {
        let (shape, tokens) = (packed.shape, packed.tokens);
        let parts = sequence
            .runs(shape.page_size, 0, tokens)
            .map(|run| checked(shape, kv.part(layer, run.block)?))
            .collect::<Result<_, _>>()?;
        Ok(Self {
            sequence,
            order: kv.order(),
            shape,
            tokens,
            parts,
        })
    }

    /// The runs of one panel of 32 tokens, each with its part and its first lane.
    fn runs(&self, panel: usize) -> impl Iterator<Item = (SlotRun, &'a [f32], usize)> {
        let start = panel * PANEL_COLUMNS;
        let end = self.tokens.min(start + PANEL_COLUMNS);
        let parts = self.parts.iter().skip(start / self.shape.page_size);
        self.sequence
            .runs(self.shape.page_size, start, end)
            .zip(parts)
            .map(move |(run, part)| (run, *part, run.position - start))
    }

    fn keys(&self, head: usize, panel: usize, out: &mut [f32]) {
        for (run, part, lane) in self.runs(panel) {
            let place = (PANEL_COLUMNS, lane);
            self.order
                .read_keys(self.shape, part, run.of_head(head), out, place);
        }
    }

    fn values(&self, head: usize, (elements, panel): (usize, usize), out: &mut [f32]) {
        for (run, part, lane) in self.runs(panel) {
            let values = self.order.values(self.shape, part, run.of_head(head));
            for (row, value) in out.chunks_exact_mut(PANEL_COLUMNS).skip(lane).zip(values) {
                let value = value.iter().skip(elements * PANEL_COLUMNS);
                row.iter_mut()
                    .zip(value)
                    .for_each(|(place, value)| *place = *value);
            }
        }
    }
}

/// Refuses a part of the wrong size.
pub(super) fn checked(shape: KvShape, part: &[f32]) -> Result<&[f32], DemoError> {
    let (field, expected, found) = ("values of one part", shape.part_values(), part.len());
    if expected != found {
        return Err(DemoError::KvShape {
            field,
            expected,
            found,
        });
    }
    Ok(part)
}

/// Attention of the tokens at positions `start..`. Each row of `rows` starts with the token's
/// rotated queries. `out` is row-major, with all query heads of a token together.
pub(super) fn attend(
    config: &LlamaConfig,
    packed: &PackedKv,
    rows: &[f32],
    start: usize,
    out: &mut [f32],
) {
    let width = config.query_values();
    let tokens = out.len() / width;
    let group_values = config.group() * config.head_size;
    let mut by_head = vec![0.0; out.len()];
    by_head
        .par_chunks_mut(tokens * group_values)
        .enumerate()
        .for_each(|(head, out)| {
            out.par_chunks_mut(TILE_TOKENS * group_values)
                .enumerate()
                .for_each(|(tile, out)| {
                    let first = tile * TILE_TOKENS;
                    let row_values = rows.len() / tokens;
                    let queries: Vec<f32> = rows
                        .chunks_exact(row_values)
                        .skip(first)
                        .take(out.len() / group_values)
                        .flat_map(|row| row.iter().skip(head * group_values).take(group_values))
                        .copied()
                        .collect();
                    attend_tile(config, packed, &queries, (head, start + first), out);
                });
        });
    for (head, by_token) in by_head.chunks_exact(tokens * group_values).enumerate() {
        let rows = out.chunks_exact_mut(width);
        for (row, values) in rows.zip(by_token.chunks_exact(group_values)) {
            let places = row.iter_mut().skip(head * group_values);
            places
                .zip(values)
                .for_each(|(place, value)| *place = *value);
        }
    }
}

/// One KV head and one tile: `queries` and `out` hold, token by token, the query heads that share
/// the KV head; the first token has position `position`.
fn attend_tile(
    config: &LlamaConfig,
    packed: &PackedKv,
    queries: &[f32],
    (head, position): (usize, usize),
    out: &mut [f32],
) {
    let rows = queries.len() / config.head_size;
    let limit = position + rows / config.group();
    let mut scores = vec![0.0; rows * limit];
    multiply(queries, packed.key_panels(head, limit), &mut scores);
    let scale = 1.0 / (config.head_size as f32).sqrt();
    let sums: Vec<f32> = scores
        .chunks_exact_mut(limit)
        .enumerate()
        .map(|(row, scores)| softmax_prefix(scores, position + row / config.group() + 1, scale))
        .collect();
    multiply(&scores, packed.value_panels(head, limit), out);
    for (row, sum) in out.chunks_exact_mut(config.head_size).zip(sums) {
        row.iter_mut().for_each(|value| *value /= sum);
    }
}
