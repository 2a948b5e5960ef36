//! Random shapes, words, selections and malformed texts, as proptest strategies.
//!
//! A list of [`Choices`] decides everything, so that a failing case shrinks and its seed reproduces
//! it. Cases are small: a shape has at most [`SHAPE_BYTES_MAX`] bytes without padding.

mod choices;
mod selections;
mod shapes;
mod words;

use std::fmt;

pub use choices::{Choices, choices};
use kvtile_layout::{Shape, Word};
use proptest::{prelude::*, test_runner::RngSeed};

use crate::{copy::NaiveSelection, error::TestkitError, reference::ReferenceLayout};

/// The seed of the generators unless `PROPTEST_RNG_SEED` sets another.
pub const SEED: u64 = 20_261_122;

/// The configuration for `cases` cases. The seed is fixed, so every run has the same cases; it is
/// printed, too. `PROPTEST_RNG_SEED` and `PROPTEST_CASES` explore further.
#[must_use]
pub fn config(cases: u32) -> ProptestConfig {
    let mut config = ProptestConfig {
        failure_persistence: None,
        ..ProptestConfig::default()
    };
    if config.cases == DEFAULT_CASES {
        config.cases = cases;
    }
    if config.rng_seed == RngSeed::Random {
        config.rng_seed = RngSeed::Fixed(SEED);
    }
    eprintln!(
        "{} cases, PROPTEST_RNG_SEED={}",
        config.cases, config.rng_seed
    );
    config
}

/// proptest's number of cases without an environment variable.
const DEFAULT_CASES: u32 = 256;

/// Most payload bytes of a generated shape.
pub const SHAPE_BYTES_MAX: u64 = 16 << 10;

/// A shape, a word that is a layout of it, and an alignment.
#[derive(Clone)]
pub struct LayoutCase {
    /// The shape.
    pub shape: Shape,
    /// The word.
    pub word: Word,
    /// The stride of blocks is rounded up to a multiple of this, in bytes.
    pub alignment: u64,
}

/// A short form for failing cases: the word as text, one line per plane.
impl fmt::Debug for LayoutCase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (shape, word) = (&self.shape, &self.word);
        writeln!(
            f,
            "{word} of {} blocks, {} layers, {} tokens, aligned to {}",
            shape.num_blocks(),
            shape.num_layers(),
            shape.page_size(),
            self.alignment
        )?;
        for plane in shape.planes() {
            let per = plane.per();
            let (name, unit) = (plane.name(), plane.unit());
            writeln!(f, "  {name}: {unit} {:?} every {per}", plane.extents())?;
        }
        Ok(())
    }
}

impl LayoutCase {
    /// The reference of this layout.
    ///
    /// # Errors
    /// As for [`ReferenceLayout::new`]; a generated case has none.
    pub fn reference(&self) -> Result<ReferenceLayout, TestkitError> {
        ReferenceLayout::new(&self.word, &self.shape, self.alignment)
    }
}

/// Two layouts of the same planes and a selection to copy between them.
#[derive(Clone, Debug)]
pub struct TransferCase {
    /// The source.
    pub src: LayoutCase,
    /// The destination.
    pub dst: LayoutCase,
    /// The selection: inside both shapes, not empty, each destination token at most once, and no
    /// partial copy of a plane without heads or tokens.
    pub selection: NaiveSelection,
}

/// Random shapes of at most [`SHAPE_BYTES_MAX`] bytes.
pub fn shapes() -> impl Strategy<Value = Shape> {
    choices().prop_filter_map("a valid shape", |mut choices| {
        shapes::shape(&mut choices, SHAPE_BYTES_MAX).ok()
    })
}

/// Random words that are layouts of `shape`: any order of axes, bars, K, sums with parts of
/// different orders and tiles, moduli (swizzles included), and stride rules.
pub fn words(shape: Shape) -> impl Strategy<Value = Word> {
    choices().prop_filter_map("a valid word", move |mut choices| {
        words::word(&mut choices, &shape, 1)
    })
}

/// Random layouts of random shapes.
pub fn layouts() -> impl Strategy<Value = LayoutCase> {
    (choices(), choices()).prop_filter_map("a valid layout", |(mut shape, mut word)| {
        let shape = shapes::shape(&mut shape, SHAPE_BYTES_MAX).ok()?;
        layout(&mut word, shape)
    })
}

/// Random copies between random layouts of related shapes.
pub fn transfers() -> impl Strategy<Value = TransferCase> {
    let parts = (choices(), choices(), choices(), choices());
    parts.prop_filter_map(
        "a valid transfer",
        |(mut shape, mut src, mut dst, mut rest)| {
            let shape = shapes::shape(&mut shape, SHAPE_BYTES_MAX / 4).ok()?;
            let relative = shapes::relative(&mut rest, &shape).ok()?;
            let selection = selections::selection(&mut rest, &shape, &relative);
            Some(TransferCase {
                src: layout(&mut src, shape)?,
                dst: layout(&mut dst, relative)?,
                selection,
            })
        },
    )
}

/// Random selections from blocks of `src` to blocks of `dst`, which have the same planes.
pub fn selections(src: Shape, dst: Shape) -> impl Strategy<Value = NaiveSelection> {
    choices().prop_map(move |mut choices| selections::selection(&mut choices, &src, &dst))
}

/// `text` with up to four letters changed, added, removed or swapped; mostly no word or no layout.
pub fn mangled(text: &str) -> impl Strategy<Value = String> + use<> {
    let text: Vec<char> = text.chars().collect();
    choices().prop_map(move |mut choices| mangle(&mut choices, text.clone()))
}

fn layout(choices: &mut Choices, shape: Shape) -> Option<LayoutCase> {
    let alignment = choices.pick(&[1, 1, 1, 4, 16, 64, 256]);
    let word = words::word(choices, &shape, alignment)?;
    let mut case = LayoutCase {
        shape,
        word,
        alignment,
    };
    let bytes = |case: &LayoutCase| -> Option<u64> {
        let layout = case.reference().ok()?;
        layout
            .region_bytes()
            .iter()
            .copied()
            .reduce(u64::saturating_add)
    };
    if alignment > 1 && bytes(&case).is_none_or(|bytes| bytes > 4 * SHAPE_BYTES_MAX) {
        case.alignment = 1;
    }
    Some(case)
}

fn mangle(choices: &mut Choices, mut text: Vec<char>) -> String {
    let letters: Vec<char> = "BLKNHCDWX|(),@=0123468kvscri \u{fc}".chars().collect();
    for _ in 0..=choices.below(4) {
        let at = choices.index(text.len());
        let letter = choices.pick(&letters);
        match choices.below(4) {
            0 if at < text.len() => drop(text.remove(at)),
            1 if at + 1 < text.len() => text.swap(at, at + 1),
            2 => text.insert(at, letter),
            _ => match text.get_mut(at) {
                Some(old) => *old = letter,
                None => text.push(letter),
            },
        }
    }
    text.into_iter().collect()
}
