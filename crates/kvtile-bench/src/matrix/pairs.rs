//! The pairs of the matrix: every engine layout whose bytes are known, to the stored order and
//! back, and the pairs between engines, host pools and stores.

use kvtile::layout::{Axis, Shape};

use super::PairPurpose;

/// The stored order: heads outermost, so that any tensor-parallel size reads one run.
const STORED: &str = "BHLKNC";

/// The stored order of a latent, which has no heads.
const STORED_LATENT: &str = "BLKNC";

/// The shapes that a layout is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ShapeFit {
    /// Keys and values.
    Heads,
    /// Keys and values of two bytes: tiles of 16 bytes have 8 of them.
    TwoBytes,
    /// Keys and values of one byte: tiles of 16 bytes have 16 of them.
    OneByte,
    /// Keys and values, heads in groups of four.
    HeadsByFour,
    /// A latent and its rope part.
    Latent,
}

/// One pair.
#[derive(Clone, Debug)]
pub(super) struct MatrixPair {
    pub(super) source: String,
    pub(super) destination: String,
    pub(super) purpose: PairPurpose,
    /// Tokens per block, where the engine has another number than 16.
    pub(super) page_size: Option<u64>,
    /// Whether a quick run includes it.
    pub(super) usual: bool,
    /// Whether it is for one kind of model only.
    pub(super) special: bool,
    fits: ShapeFit,
}

impl MatrixPair {
    /// Whether an engine has these layouts for this shape.
    pub(super) fn fits(&self, shape: &Shape) -> bool {
        let heads = shape.planes().iter().all(|plane| plane.has(Axis::H));
        let unit_bytes = |bytes| shape.planes().iter().all(|p| p.unit().bytes() == bytes);
        match self.fits {
            ShapeFit::Heads => heads,
            ShapeFit::TwoBytes => heads && unit_bytes(2),
            ShapeFit::OneByte => heads && unit_bytes(1),
            ShapeFit::HeadsByFour => heads && shape.num_heads().is_multiple_of(4),
            ShapeFit::Latent => {
                let names = shape.planes().iter().map(|plane| plane.name().as_str());
                !heads && names.eq(["c", "r"])
            }
        }
    }
}

/// Layouts of engines and host pools: word, tokens per block, shapes, whether a quick run includes
/// it.
const ENGINES: [(&str, Option<u64>, ShapeFit, bool); 47] = [
    // The block-manager tradition.
    ("BLKNHC", None, ShapeFit::Heads, true),
    ("BLHKNC", None, ShapeFit::Heads, false),
    ("L|BKNHC", None, ShapeFit::Heads, true),
    // vLLM up to 0.21, FlexKV, LMCache.
    ("L|KBNHC", None, ShapeFit::Heads, true),
    ("L|KBHNC", None, ShapeFit::Heads, false),
    ("L|BKHNC", None, ShapeFit::Heads, true),
    ("LKBNHC", None, ShapeFit::Heads, false),
    ("KL|BNHC", None, ShapeFit::Heads, false),
    // vLLM: keys and values side by side, six orders, padding, kernel blocks.
    ("LBHNKC", None, ShapeFit::Heads, false),
    ("LBNHKC", None, ShapeFit::Heads, true),
    ("LHBNKC", None, ShapeFit::Heads, false),
    ("BLHNKC", None, ShapeFit::Heads, false),
    ("BLNHKC", None, ShapeFit::Heads, false),
    ("BHLNKC", None, ShapeFit::Heads, false),
    ("L|BHNKC", None, ShapeFit::Heads, true),
    ("L|BNHKC", None, ShapeFit::Heads, false),
    ("LB@4096HNKC", None, ShapeFit::Heads, false),
    ("BL@4096HNKC", None, ShapeFit::Heads, false),
    ("L|BNHN16KC", Some(64), ShapeFit::Heads, false),
    // vLLM on the CPU, on ROCm, with aiter.
    ("L|BH(kCN,vNC)", None, ShapeFit::Heads, true),
    (
        "L|BH(kNCN16C2,vCNC16N2)",
        Some(32),
        ShapeFit::TwoBytes,
        true,
    ),
    ("L|(kBHCNC8,vBHCN)", None, ShapeFit::TwoBytes, false),
    ("L|B(kHCNC8,vHCN)", None, ShapeFit::TwoBytes, true),
    ("L|(kBHCNC16,vBHCN)", None, ShapeFit::OneByte, false),
    ("L|B(kHCNC16,vHCN)", None, ShapeFit::OneByte, true),
    ("L|(kBHCNC8,vBHNCN8)", None, ShapeFit::TwoBytes, false),
    // SGLang on devices and hosts.
    ("LK|BNHC", None, ShapeFit::Heads, false),
    ("LK|BHNC", None, ShapeFit::Heads, true),
    ("L(k|BHCNC8,v|BHNCN8)", None, ShapeFit::TwoBytes, false),
    ("BNLKHC", None, ShapeFit::Heads, false),
    ("KLBNHC", None, ShapeFit::Heads, false),
    ("KBNLHC", None, ShapeFit::Heads, false),
    ("KBLNHC", None, ShapeFit::Heads, false),
    ("KBHNLC", None, ShapeFit::Heads, false),
    ("BHLKNH4C", None, ShapeFit::HeadsByFour, false),
    // TensorRT-LLM, AIBrix, MAX, Ascend, mistral.rs.
    ("BLKHNC", None, ShapeFit::Heads, false),
    ("BNKLHC", None, ShapeFit::Heads, false),
    ("BKLNHC", None, ShapeFit::Heads, false),
    ("LK|BHCNC16", None, ShapeFit::TwoBytes, false),
    ("L(k|BHCNC8,v|BHCN)", None, ShapeFit::TwoBytes, false),
    // LMCache's chunks.
    ("B|KLNHC", Some(256), ShapeFit::Heads, false),
    ("BL|NKHC", Some(256), ShapeFit::Heads, false),
    ("BL|KNHC", Some(256), ShapeFit::Heads, false),
    // transformers, candle, MLX, ONNX Runtime; llama.cpp without flash attention.
    ("LK|HBNC", None, ShapeFit::Heads, false),
    ("L(k|BNHC,v|HCBN)", None, ShapeFit::Heads, false),
    // Latents: vLLM and SGLang, mistral.rs and LMCache.
    ("L|BNKC", None, ShapeFit::Latent, true),
    ("LK|BNC", None, ShapeFit::Latent, true),
];

/// Equal layouts on both sides.
const EQUAL: [(&str, ShapeFit, bool); 6] = [
    ("BLKNHC", ShapeFit::Heads, true),
    ("L|KBNHC", ShapeFit::Heads, true),
    (STORED, ShapeFit::Heads, false),
    ("L|BHNKC", ShapeFit::Heads, false),
    ("L|BH(kCN,vNC)", ShapeFit::Heads, true),
    ("L|BNKC", ShapeFit::Latent, true),
];

/// Pairs between systems: device to host pool, engine to engine, block by block without a
/// permutation.
const ACROSS: [(&str, &str, Option<u64>, ShapeFit, bool); 19] = [
    ("L|KBNHC", "BLKNHC", None, ShapeFit::Heads, true),
    ("BLKNHC", "L|KBNHC", None, ShapeFit::Heads, false),
    ("L|BKNHC", "BLKNHC", None, ShapeFit::Heads, false),
    ("L|BKNHC", "BLKHNC", None, ShapeFit::Heads, true),
    ("BLKHNC", "L|BKNHC", None, ShapeFit::Heads, false),
    ("L|KBNHC", "KBNLHC", None, ShapeFit::Heads, false),
    ("L|KBNHC", "KBLNHC", None, ShapeFit::Heads, false),
    ("LK|BHNC", "KBHNLC", None, ShapeFit::Heads, false),
    ("L|BHNKC", "KBNLHC", None, ShapeFit::Heads, false),
    ("L|BHNKC", "L|BKNHC", None, ShapeFit::Heads, false),
    ("L|BNHKC", "L|BKNHC", None, ShapeFit::Heads, true),
    ("L|BH(kCN,vNC)", "L|BKNHC", None, ShapeFit::Heads, true),
    (
        "L|B(kHCNC8,vHCN)",
        "L|BKNHC",
        None,
        ShapeFit::TwoBytes,
        false,
    ),
    (
        "L|BH(kNCN16C2,vCNC16N2)",
        "L|BKNHC",
        Some(32),
        ShapeFit::TwoBytes,
        false,
    ),
    ("L|KBNHC", "BL|KNHC", Some(256), ShapeFit::Heads, false),
    ("L|BKNHC", "LK|HBNC", None, ShapeFit::Heads, false),
    ("LBNKC", "L|BNKC", None, ShapeFit::Latent, false),
    ("L|BNKC", "BLNKC", None, ShapeFit::Latent, true),
    ("L|BNKC", "B|LNKC", Some(256), ShapeFit::Latent, false),
];

/// Layouts of one rank of two, to stored blocks of the whole model, and whether the matrix has the
/// way back.
pub(super) const RANKS: [(&str, &str, bool); 4] = [
    ("L|KBNHC", STORED, false),
    ("LK|BHNC", STORED, false),
    ("L|KBNHC", STORED, true),
    ("LK|BHNC", STORED, true),
];

/// Every pair.
pub(super) fn all() -> Vec<MatrixPair> {
    let entry = |from: &str, to: &str, purpose, (page_size, fits, usual)| MatrixPair {
        source: from.to_owned(),
        destination: to.to_owned(),
        purpose,
        page_size,
        usual,
        special: matches!(fits, ShapeFit::Latent | ShapeFit::OneByte),
        fits,
    };
    let equal = EQUAL
        .iter()
        .map(|&(word, fits, usual)| entry(word, word, PairPurpose::Equal, (None, fits, usual)));
    let across = ACROSS.iter().map(|&(from, to, page, fits, usual)| {
        entry(from, to, PairPurpose::Across, (page, fits, usual))
    });
    let stored = |fits| match fits {
        ShapeFit::Latent => STORED_LATENT,
        _ => STORED,
    };
    let store = ENGINES.iter().map(|&(word, page, fits, usual)| {
        entry(word, stored(fits), PairPurpose::Store, (page, fits, usual))
    });
    let load = ENGINES.iter().map(|&(word, page, fits, usual)| {
        entry(stored(fits), word, PairPurpose::Load, (page, fits, usual))
    });
    equal.chain(across).chain(store).chain(load).collect()
}

#[cfg(test)]
mod tests {
    use kvtile::presets;

    use super::*;

    #[test]
    fn every_known_layout_of_keys_and_values_or_of_a_latent_is_measured() {
        let entries = all();
        let known = |word: &str| {
            entries
                .iter()
                .any(|e| e.source == word || e.destination == word)
        };
        for preset in presets::all().unwrap() {
            let (Some(word), Some(shape)) = (preset.word(), &preset.shape) else {
                continue;
            };
            let names: Vec<_> = shape.planes().iter().map(|p| p.name().as_str()).collect();
            if names != ["k", "v"] && names != ["c", "r"] {
                continue;
            }
            let word = word.to_string();
            // Strides that depend on the capacity of one engine: the order without them is present.
            if !word.contains('=') {
                assert!(known(&word), "{word} of {}", preset.name);
            }
        }
    }

    #[test]
    fn no_pair_occurs_twice() {
        let mut labels: Vec<_> = all()
            .iter()
            .map(|e| (e.source.clone(), e.destination.clone(), e.fits as u8))
            .collect();
        let count = labels.len();
        labels.sort();
        labels.dedup();
        assert_eq!(labels.len(), count);
    }
}
