//! A literal Llama: double precision, one loop per index, rows and rotary pairs (neighbours) as
//! stored in the file, no cache, no blocks.

use kvtile_demo::gguf::Gguf;
use kvtile_demo::llama::LlamaConfig;

/// The results of the reference.
pub(crate) struct ReferenceResults {
    /// Logits after the last token.
    pub(crate) logits: Vec<f64>,
    /// Keys, `[layer][token][head * head_size]`, heads in the order of halves.
    pub(crate) keys: Vec<Vec<Vec<f64>>>,
    /// Values, likewise.
    pub(crate) values: Vec<Vec<Vec<f64>>>,
}

fn matrix(file: &Gguf<'_>, name: &str) -> Vec<Vec<f64>> {
    let tensor = file.tensor(name).unwrap();
    let mut row = vec![0.0; tensor.row_values()];
    (0..tensor.rows())
        .map(|index| {
            tensor.read_row(index, &mut row).unwrap();
            row.iter().map(|value| f64::from(*value)).collect()
        })
        .collect()
}

fn apply(matrix: &[Vec<f64>], x: &[f64]) -> Vec<f64> {
    matrix
        .iter()
        .map(|row| row.iter().zip(x).map(|(a, b)| a * b).sum())
        .collect()
}

fn norm(x: &[f64], weight: &[f64], epsilon: f64) -> Vec<f64> {
    let mean = x.iter().map(|value| value * value).sum::<f64>() / x.len() as f64;
    x.iter()
        .zip(weight)
        .map(|(x, w)| x / (mean + epsilon).sqrt() * w)
        .collect()
}

fn rotate(x: &mut [f64], position: usize, config: &LlamaConfig) {
    for head in x.chunks_exact_mut(config.head_size) {
        for (index, pair) in head.chunks_exact_mut(2).enumerate() {
            let exponent = -2.0 * index as f64 / config.head_size as f64;
            let angle = position as f64 * f64::from(config.rope_base).powf(exponent);
            let (a, b) = (pair[0], pair[1]);
            pair[0] = a * angle.cos() - b * angle.sin();
            pair[1] = b * angle.cos() + a * angle.sin();
        }
    }
}

/// Elements 0, 2, 4, ... of each head, then 1, 3, 5, ...: the order of halves.
fn halves(x: &[f64], head_size: usize) -> Vec<f64> {
    let head = |head: &[f64]| -> Vec<f64> {
        let even = head.iter().step_by(2);
        even.chain(head.iter().skip(1).step_by(2))
            .copied()
            .collect()
    };
    x.chunks_exact(head_size).flat_map(head).collect()
}

fn attention(
    config: &LlamaConfig,
    query: &[f64],
    keys: &[Vec<f64>],
    values: &[Vec<f64>],
) -> Vec<f64> {
    let size = config.head_size;
    let mut out = Vec::new();
    for head in 0..config.heads {
        let kv = head / (config.heads / config.kv_heads) * size;
        let query = &query[head * size..][..size];
        let score = |key: &Vec<f64>| {
            let dot: f64 = query.iter().zip(&key[kv..]).map(|(q, k)| q * k).sum();
            (dot / (size as f64).sqrt()).exp()
        };
        let scores: Vec<f64> = keys.iter().map(score).collect();
        let sum: f64 = scores.iter().sum();
        for element in 0..size {
            let weighted = scores
                .iter()
                .zip(values)
                .map(|(s, v)| s / sum * v[kv + element]);
            out.push(weighted.sum());
        }
    }
    out
}

/// Computes `tokens` from an empty sequence.
pub(crate) fn compute(bytes: &[u8], tokens: &[u32]) -> ReferenceResults {
    let file = Gguf::parse(bytes).unwrap();
    let config = LlamaConfig::from_gguf(&file).unwrap();
    let epsilon = f64::from(config.norm_epsilon);
    let embedding = matrix(&file, "token_embd.weight");
    let mut hidden: Vec<Vec<f64>> = tokens
        .iter()
        .map(|token| embedding[*token as usize].clone())
        .collect();
    let (mut all_keys, mut all_values) = (Vec::new(), Vec::new());
    for layer in 0..config.layers {
        let get = |part: &str| matrix(&file, &format!("blk.{layer}.{part}.weight"));
        let (wq, wk, wv, wo) = (
            get("attn_q"),
            get("attn_k"),
            get("attn_v"),
            get("attn_output"),
        );
        let (gate, up, down) = (get("ffn_gate"), get("ffn_up"), get("ffn_down"));
        let (before_attention, before_feed) = (get("attn_norm"), get("ffn_norm"));
        let (mut keys, mut values): (Vec<Vec<f64>>, Vec<Vec<f64>>) = (Vec::new(), Vec::new());
        for (position, x) in hidden.iter_mut().enumerate() {
            let normed = norm(x, &before_attention[0], epsilon);
            let (mut query, mut key) = (apply(&wq, &normed), apply(&wk, &normed));
            rotate(&mut query, position, &config);
            rotate(&mut key, position, &config);
            keys.push(key);
            values.push(apply(&wv, &normed));
            let attended = attention(&config, &query, &keys, &values);
            x.iter_mut()
                .zip(apply(&wo, &attended))
                .for_each(|(x, y)| *x += y);
            let normed = norm(x, &before_feed[0], epsilon);
            let gates = apply(&gate, &normed)
                .into_iter()
                .map(|g| g / (1.0 + (-g).exp()));
            let gated: Vec<f64> = gates.zip(apply(&up, &normed)).map(|(g, u)| g * u).collect();
            x.iter_mut()
                .zip(apply(&down, &gated))
                .for_each(|(x, y)| *x += y);
        }
        all_keys.push(
            keys.iter()
                .map(|key| halves(key, config.head_size))
                .collect(),
        );
        all_values.push(values);
    }
    let last = norm(
        hidden.last().unwrap(),
        &matrix(&file, "output_norm.weight")[0],
        epsilon,
    );
    ReferenceResults {
        logits: apply(&embedding, &last),
        keys: all_keys,
        values: all_values,
    }
}
