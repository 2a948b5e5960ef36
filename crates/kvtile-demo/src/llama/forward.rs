//! The forward pass.

use rayon::prelude::*;

use crate::DemoError;
use crate::compute::{Rotations, add_assign, multiply_parallel, rms_norm, silu_gate};
use crate::kv::{KvView, Sequence};

use super::attention::{PackedKv, attend, checked};
use super::weights::{LayerWeights, Weights};
use super::{LlamaConfig, Logits};

/// Rows per task of a row-wise operation.
const TASK_ROWS: usize = 16;

/// One pass over the tokens after those of the sequence.
pub(super) struct ForwardPass<'a> {
    pub(super) config: &'a LlamaConfig,
    pub(super) weights: &'a Weights,
    pub(super) sequence: &'a Sequence,
    pub(super) tokens: &'a [u32],
}

impl ForwardPass<'_> {
    /// Computes the pass, writes its keys and values, and returns the logits of the last token.
    pub(super) fn run(&self, kv: &mut dyn KvView) -> Result<Logits, DemoError> {
        let config = self.config;
        let start = self.sequence.len();
        let count = self.tokens.len();
        let rotations = Rotations::new(config.rope_base, config.head_size, start, count);
        let mut packed = PackedKv::new(kv.shape(), start + count);
        let mut buffers = LayerBuffers::new(config, count);
        let mut hidden = self.embed();
        for (index, layer) in self.weights.layers.iter().enumerate() {
            self.norm(&hidden, &layer.attention_norm, &mut buffers.normed);
            multiply_parallel(&buffers.normed, layer.qkv.view(), &mut buffers.qkv);
            self.rotate(&rotations, &mut buffers.qkv);
            self.store(kv, index, &buffers.qkv)?;
            packed.gather(kv, self.sequence, index)?;
            attend(config, &packed, &buffers.qkv, start, &mut buffers.attended);
            let output = layer.attention_output.view();
            multiply_parallel(&buffers.attended, output, &mut buffers.normed);
            add_assign(&mut hidden, &buffers.normed);
            self.feed_forward(layer, &hidden, &mut buffers);
            add_assign(&mut hidden, &buffers.normed);
        }
        let last = hidden
            .chunks_exact(config.hidden)
            .next_back()
            .unwrap_or_default();
        let mut normed = vec![0.0; config.hidden];
        rms_norm(last, &self.weights.norm, config.norm_epsilon, &mut normed);
        let mut logits = vec![0.0; config.vocabulary];
        multiply_parallel(&normed, self.weights.output().view(), &mut logits);
        Ok(Logits::new(logits))
    }

    fn embed(&self) -> Vec<f32> {
        let width = self.config.hidden;
        let mut hidden = vec![0.0; self.tokens.len() * width];
        for (row, token) in hidden.chunks_exact_mut(width).zip(self.tokens) {
            if let Ok(column) = usize::try_from(*token) {
                self.weights.embedding.read_column(column, row);
            }
        }
        hidden
    }

    fn norm(&self, rows: &[f32], weight: &[f32], out: &mut [f32]) {
        let task = TASK_ROWS * self.config.hidden;
        let epsilon = self.config.norm_epsilon;
        out.par_chunks_mut(task)
            .zip(rows.par_chunks(task))
            .for_each(|(out, rows)| rms_norm(rows, weight, epsilon, out));
    }

    /// The feed-forward part of `hidden`, into `buffers.normed`.
    fn feed_forward(&self, layer: &LayerWeights, hidden: &[f32], buffers: &mut LayerBuffers) {
        let width = self.config.feed_forward;
        let LayerBuffers {
            normed,
            gate_up,
            gated,
            ..
        } = buffers;
        self.norm(hidden, &layer.feed_forward_norm, normed);
        multiply_parallel(normed, layer.gate_up.view(), gate_up);
        gated
            .par_chunks_mut(TASK_ROWS * width)
            .zip(gate_up.par_chunks(TASK_ROWS * 2 * width))
            .for_each(|(out, gate_up)| silu_gate(gate_up, out, width));
        multiply_parallel(gated, layer.down.view(), normed);
    }

    /// Rotates queries and keys in place.
    fn rotate(&self, rotations: &Rotations, qkv: &mut [f32]) {
        let rotated = self.config.query_values() + self.config.kv_values();
        let width = rotated + self.config.kv_values();
        qkv.par_chunks_mut(width)
            .enumerate()
            .for_each(|(index, row)| {
                if let Some(heads) = row.get_mut(..rotated) {
                    rotations.rotate(index, heads);
                }
            });
    }

    /// Writes keys and values into the blocks.
    fn store(&self, kv: &mut dyn KvView, layer: usize, qkv: &[f32]) -> Result<(), DemoError> {
        let (shape, order) = (kv.shape(), kv.order());
        let (queries, values) = (self.config.query_values(), self.config.kv_values());
        let mut rows = qkv.chunks_exact(queries + 2 * values);
        let start = self.sequence.len();
        for run in self
            .sequence
            .runs(shape.page_size, start, start + self.tokens.len())
        {
            let part = kv.part_mut(layer, run.block)?;
            checked(shape, part)?;
            for (index, row) in rows.by_ref().take(run.count).enumerate() {
                let (_, kv) = row.split_at(queries);
                order.write(shape, part, run.slot + index, kv.split_at(values));
            }
        }
        Ok(())
    }
}

/// Intermediate results of a layer, allocated once per pass.
struct LayerBuffers {
    /// As wide as the residual stream: the input of a product, then its result.
    normed: Vec<f32>,
    qkv: Vec<f32>,
    attended: Vec<f32>,
    gate_up: Vec<f32>,
    gated: Vec<f32>,
}

impl LayerBuffers {
    fn new(config: &LlamaConfig, tokens: usize) -> Self {
        let zeros = |width: usize| vec![0.0; tokens * width];
        Self {
            normed: zeros(config.hidden),
            qkv: zeros(config.query_values() + 2 * config.kv_values()),
            attended: zeros(config.query_values()),
            gate_up: zeros(2 * config.feed_forward),
            gated: zeros(config.feed_forward),
        }
    }
}
