//! Rotary position embedding (Su and others, "RoFormer", 2021), in the convention of Hugging Face
//! and vLLM: element `i` of a head is rotated together with element `i + half`. (llama.cpp rotates
//! neighbours and therefore stores the rows of its query and key weights in another order; loading
//! restores the order of the halves.)

/// Cosines and sines of a range of positions.
#[derive(Debug)]
pub(crate) struct Rotations {
    half: usize,
    /// For each position, `half` cosines, then `half` sines.
    table: Vec<f32>,
}

impl Rotations {
    /// The rotations of positions `start..start + count` for heads of `head_size`: angle `position
    /// * base^(-2 i / head_size)`, in single precision like the engines.
    pub(crate) fn new(base: f32, head_size: usize, start: usize, count: usize) -> Self {
        let half = head_size / 2;
        let frequencies: Vec<f32> = (0..half)
            .map(|index| 1.0 / base.powf((2 * index) as f32 / head_size as f32))
            .collect();
        let angles = |position: usize| {
            frequencies
                .iter()
                .map(move |frequency| position as f32 * frequency)
        };
        let table = (start..start + count)
            .flat_map(|position| {
                angles(position)
                    .map(f32::cos)
                    .chain(angles(position).map(f32::sin))
            })
            .collect();
        Self { half, table }
    }

    /// Rotates the heads in `heads`, all of the token at `index` of the range.
    pub(crate) fn rotate(&self, index: usize, heads: &mut [f32]) {
        let half = self.half.max(1);
        let Some(angles) = self.table.chunks_exact(2 * half).nth(index) else {
            return;
        };
        let (cosines, sines) = angles.split_at(half);
        for head in heads.chunks_exact_mut(2 * half) {
            let (first, second) = head.split_at_mut(half);
            let pairs = first.iter_mut().zip(second).zip(cosines.iter().zip(sines));
            for ((first, second), (cosine, sine)) in pairs {
                let (a, b) = (*first, *second);
                *first = a * cosine - b * sine;
                *second = b * cosine + a * sine;
            }
        }
    }
}
