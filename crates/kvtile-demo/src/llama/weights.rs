//! The weights: dequantised once, packed for the products.

use crate::DemoError;
use crate::compute::Panels;
use crate::gguf::{Gguf, GgufTensor};

use super::LlamaConfig;

/// All weights as f32.
#[derive(Debug)]
pub(super) struct Weights {
    /// Columns are tokens: both the embedding table and, when tied, the output.
    pub(super) embedding: Panels,
    /// The output matrix of a model that does not tie it to the embedding.
    pub(super) output: Option<Panels>,
    pub(super) norm: Vec<f32>,
    pub(super) layers: Vec<LayerWeights>,
}

/// The weights of one layer.
#[derive(Debug)]
pub(super) struct LayerWeights {
    pub(super) attention_norm: Vec<f32>,
    /// Query, key and value projections side by side.
    pub(super) qkv: Panels,
    pub(super) attention_output: Panels,
    pub(super) feed_forward_norm: Vec<f32>,
    /// Gate and up projections side by side.
    pub(super) gate_up: Panels,
    pub(super) down: Panels,
}

impl Weights {
    pub(super) fn read(file: &Gguf<'_>, config: &LlamaConfig) -> Result<Self, DemoError> {
        let tokens = matrix(file, "token_embd.weight", config.hidden, config.vocabulary)?;
        let output = match file.tensor("output.weight") {
            Ok(_) => {
                let output = matrix(file, "output.weight", config.hidden, config.vocabulary)?;
                Some(pack(config.hidden, &[output])?)
            }
            Err(_) => None,
        };
        Ok(Self {
            embedding: pack(config.hidden, &[tokens])?,
            output,
            norm: vector(file, "output_norm.weight", config.hidden)?,
            layers: (0..config.layers)
                .map(|layer| LayerWeights::read(file, config, layer))
                .collect::<Result<_, _>>()?,
        })
    }

    /// The matrix that maps the last hidden state to logits.
    pub(super) fn output(&self) -> &Panels {
        self.output.as_ref().unwrap_or(&self.embedding)
    }
}

impl LayerWeights {
    fn read(file: &Gguf<'_>, config: &LlamaConfig, layer: usize) -> Result<Self, DemoError> {
        let LlamaConfig {
            hidden,
            feed_forward,
            head_size,
            ..
        } = *config;
        let name = |part: &str| format!("blk.{layer}.{part}.weight");
        let (queries, kv) = (config.query_values(), config.kv_values());
        let qkv = [
            matrix(file, &name("attn_q"), hidden, queries)?.rotated(head_size),
            matrix(file, &name("attn_k"), hidden, kv)?.rotated(head_size),
            matrix(file, &name("attn_v"), hidden, kv)?,
        ];
        let gate_up = [
            matrix(file, &name("ffn_gate"), hidden, feed_forward)?,
            matrix(file, &name("ffn_up"), hidden, feed_forward)?,
        ];
        let attention_output = matrix(file, &name("attn_output"), queries, hidden)?;
        let down = matrix(file, &name("ffn_down"), feed_forward, hidden)?;
        Ok(Self {
            attention_norm: vector(file, &name("attn_norm"), hidden)?,
            qkv: pack(hidden, &qkv)?,
            attention_output: pack(queries, &[attention_output])?,
            feed_forward_norm: vector(file, &name("ffn_norm"), hidden)?,
            gate_up: pack(hidden, &gate_up)?,
            down: pack(feed_forward, &[down])?,
        })
    }
}

/// The rows of a stored matrix, one row per output.
#[derive(Clone, Copy)]
struct MatrixRows<'a> {
    tensor: &'a GgufTensor<'a>,
    /// For query and key weights the head size: llama.cpp stores the rows of a head with
    /// alternating halves (`0, half, 1, half + 1, ...`), for a rotary embedding of neighbours.
    /// Reading restores the order of the halves, which Hugging Face and the caches of engines use.
    rotated_head: Option<usize>,
}

impl MatrixRows<'_> {
    fn rotated(self, head_size: usize) -> Self {
        Self {
            rotated_head: Some(head_size),
            ..self
        }
    }

    fn read(&self, row: usize, out: &mut [f32]) -> Result<(), DemoError> {
        let stored = self.rotated_head.map_or(row, |head_size| {
            let (head, inside, half) = (row / head_size, row % head_size, head_size / 2);
            head * head_size + 2 * (inside % half) + inside / half
        });
        self.tensor.read_row(stored, out)
    }
}

fn matrix<'a>(
    file: &'a Gguf<'a>,
    name: &str,
    inner: usize,
    rows: usize,
) -> Result<MatrixRows<'a>, DemoError> {
    let tensor = file.tensor(name)?;
    if tensor.row_values() != inner || tensor.rows() != rows {
        return Err(extents(tensor, vec![inner, rows]));
    }
    Ok(MatrixRows {
        tensor,
        rotated_head: None,
    })
}

fn vector(file: &Gguf<'_>, name: &str, values: usize) -> Result<Vec<f32>, DemoError> {
    let tensor = file.tensor(name)?;
    if tensor.row_values() != values || tensor.rows() != 1 {
        return Err(extents(tensor, vec![values]));
    }
    let mut out = vec![0.0; values];
    tensor.read_row(0, &mut out)?;
    Ok(out)
}

fn extents(tensor: &GgufTensor<'_>, expected: Vec<usize>) -> DemoError {
    DemoError::TensorExtents {
        name: tensor.name.to_owned(),
        expected,
        found: tensor.extents.clone(),
    }
}

/// Packs matrices side by side.
fn pack(inner: usize, parts: &[MatrixRows<'_>]) -> Result<Panels, DemoError> {
    let columns = parts.iter().map(|part| part.tensor.rows()).sum();
    Panels::pack(inner, columns, |column, out| {
        let mut row = column;
        for part in parts {
            let rows = part.tensor.rows();
            if row < rows {
                return part.read(row, out);
            }
            row -= rows;
        }
        Ok(())
    })
}
