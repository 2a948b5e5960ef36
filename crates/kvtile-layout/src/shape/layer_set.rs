//! Layers of a model as a set: those of one group need not follow each other.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use super::AxisRange;
use crate::error::{LayoutError, ShapeError};

/// Most runs of a [`LayerSet`].
pub const LAYER_RUNS_MAX: usize = 256;

/// The end of the layers of a [`LayerSet`] of several runs.
const LAYERS_END_MAX: u64 = 1 << 16;

/// Layers of a model in ascending order, each once. There is at least one.
///
/// As text, runs of layers in ascending order: `0..24`, or `3, 7, 88..90` for layers 3, 7, 88 and 89. Equal sets have
/// equal texts.
///
/// ```
/// use kvtile_layout::{AxisRange, LayerSet};
///
/// let full = LayerSet::new([3, 7, 11, 15])?;
/// assert_eq!(full.to_string(), "3, 7, 11, 15");
/// assert_eq!(full.position(11), Some(2));
/// // A stage of a pipeline that has layers 8 to 15 has the group's layers 2 and 3.
/// assert_eq!(full.within(AxisRange::new(8, 8)), Some(AxisRange::new(2, 2)));
/// # Ok::<(), kvtile_layout::LayoutError>(())
/// ```
#[derive(Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct LayerSet {
    /// Runs in ascending order, with at least one other layer between two of them.
    runs: Vec<AxisRange>,
}

impl LayerSet {
    /// The given layers, which are in ascending order.
    ///
    /// # Errors
    /// No layers; a layer that is not above the one before it; more than [`LAYER_RUNS_MAX`] runs; several runs of which
    /// one has a layer of 65,536 or more.
    pub fn new(layers: impl IntoIterator<Item = u64>) -> Result<LayerSet, LayoutError> {
        LayerSet::of_runs(layers.into_iter().map(|layer| AxisRange::new(layer, 1)))
    }

    /// The layers of a range.
    ///
    /// # Errors
    /// A range without layers, or whose end does not fit 64 bits.
    pub fn range(range: AxisRange) -> Result<LayerSet, LayoutError> {
        LayerSet::of_runs([range])
    }

    /// The layers of runs in ascending order; runs may follow each other without a gap.
    ///
    /// # Errors
    /// As for [`LayerSet::new`], and for an empty run.
    fn of_runs(given: impl IntoIterator<Item = AxisRange>) -> Result<LayerSet, LayoutError> {
        let mut runs: Vec<AxisRange> = Vec::new();
        for run in given {
            let Some(end) = run.end().filter(|_| run.count > 0) else {
                return Err(LayoutError::Shape(ShapeError::LayerRun { run }));
            };
            let Some(last) = runs.last_mut() else {
                runs.push(run);
                continue;
            };
            let last_end = last.start.saturating_add(last.count);
            if run.start < last_end {
                return Err(LayoutError::Shape(ShapeError::LayerOrder {
                    previous: last_end - 1,
                    layer: run.start,
                }));
            }
            if run.start == last_end {
                last.count += run.count;
                continue;
            }
            runs.push(run);
            if runs.len() > LAYER_RUNS_MAX || end > LAYERS_END_MAX {
                return Err(LayoutError::Shape(ShapeError::LayerSetSize {
                    runs: runs.len(),
                    end,
                    end_max: LAYERS_END_MAX,
                }));
            }
        }
        match runs.is_empty() {
            true => Err(LayoutError::Shape(ShapeError::ZeroExtent {
                what: "the number of layers".to_owned(),
            })),
            false => Ok(LayerSet { runs }),
        }
    }

    /// The first `count` layers; at least one.
    pub(crate) fn first(count: u64) -> LayerSet {
        LayerSet {
            runs: vec![AxisRange::new(0, count.max(1))],
        }
    }

    /// The runs, in ascending order, with other layers between them.
    #[must_use]
    pub fn runs(&self) -> &[AxisRange] {
        &self.runs
    }

    /// How many layers.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.runs.iter().map(|run| run.count).sum()
    }

    /// The layers.
    pub fn iter(&self) -> impl Iterator<Item = u64> + '_ {
        let each = |run: &AxisRange| run.start..run.start.saturating_add(run.count);
        self.runs.iter().flat_map(each)
    }

    /// The layers as a range, if they are one.
    #[must_use]
    pub fn as_range(&self) -> Option<AxisRange> {
        match self.runs.as_slice() {
            [run] => Some(*run),
            _ => None,
        }
    }

    /// How many layers of the set are before `layer`; `None` where it is not in the set. It is the index of the layer in
    /// the shape of the group.
    #[must_use]
    pub fn position(&self, layer: u64) -> Option<u64> {
        let one = self.within(AxisRange::new(layer, 1))?;
        Some(one.start)
    }

    /// The positions of the layers of the set that are in the range `layers` of the model; `None` where there are none.
    ///
    /// They follow each other: a stage of a pipeline that has a range of the model's layers has a range of the group's.
    #[must_use]
    pub fn within(&self, layers: AxisRange) -> Option<AxisRange> {
        let (mut before, mut first, mut count) = (0, None, 0);
        for run in &self.runs {
            if let Some(both) = run.intersection(layers) {
                first.get_or_insert(before + (both.start - run.start));
                count += both.count;
            }
            before += run.count;
        }
        first.map(|first| AxisRange::new(first, count))
    }
}

impl fmt::Display for LayerSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, run) in self.runs.iter().enumerate() {
            let comma = if index > 0 { ", " } else { "" };
            match run.count {
                1 => write!(f, "{comma}{}", run.start)?,
                _ => write!(f, "{comma}{run}")?,
            }
        }
        Ok(())
    }
}

impl fmt::Debug for LayerSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl FromStr for LayerSet {
    type Err = LayoutError;

    fn from_str(text: &str) -> Result<LayerSet, LayoutError> {
        let run = |part: &str| -> Option<AxisRange> {
            match part.trim().split_once("..") {
                None => Some(AxisRange::new(number(part)?, 1)),
                Some((start, end)) => {
                    let (start, end) = (number(start)?, number(end)?);
                    Some(AxisRange::new(start, end.checked_sub(start)?))
                }
            }
        };
        let parts = text.split(',').take(LAYER_RUNS_MAX + 1);
        let runs: Option<Vec<AxisRange>> = parts.map(run).collect();
        let runs = runs.ok_or_else(|| {
            LayoutError::Shape(ShapeError::LayerSetText {
                text: text.chars().take(64).collect(),
            })
        })?;
        LayerSet::of_runs(runs)
    }
}

/// Digits without a sign.
fn number(text: &str) -> Option<u64> {
    let text = text.trim();
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|_| digits)
}

impl From<LayerSet> for String {
    fn from(layers: LayerSet) -> String {
        layers.to_string()
    }
}

impl TryFrom<String> for LayerSet {
    type Error = LayoutError;

    fn try_from(text: String) -> Result<LayerSet, LayoutError> {
        text.parse()
    }
}
