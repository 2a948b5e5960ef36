//! The right-hand side of a product, packed once so that the inner loop streams it.
//!
//! ```text
//! column   0 .. 31        32 .. 63       ...
//!        +-----------+  +-----------+
//! inner 0| 32 floats |  | 32 floats |        one panel = inner x 32 floats,
//! inner 1| 32 floats |  | 32 floats |        contiguous; the last one is
//!   ...  |    ...    |  |    ...    |        filled up with zeros
//!        +-----------+  +-----------+
//! ```

use rayon::prelude::*;

use crate::DemoError;

/// Columns of one panel.
pub(crate) const PANEL_COLUMNS: usize = 32;

/// A packed matrix of `inner` x `columns`.
#[derive(Debug)]
pub(crate) struct Panels {
    data: Vec<f32>,
    inner: usize,
    columns: usize,
}

impl Panels {
    /// Packs a matrix whose column `c` is what `column(c, out)` writes into `out`
    /// (`inner` floats): a weight matrix stored as rows of outputs.
    pub(crate) fn pack(
        inner: usize,
        columns: usize,
        column: impl Fn(usize, &mut [f32]) -> Result<(), DemoError> + Sync,
    ) -> Result<Self, DemoError> {
        let panel_floats = inner * PANEL_COLUMNS;
        let mut data = vec![0.0; columns.div_ceil(PANEL_COLUMNS) * panel_floats];
        data.par_chunks_mut(panel_floats.max(1))
            .enumerate()
            .try_for_each(|(panel, out)| {
                let mut values = vec![0.0; inner];
                let first = panel * PANEL_COLUMNS;
                let last = columns.min(first + PANEL_COLUMNS);
                for (lane, index) in (first..last).enumerate() {
                    column(index, &mut values)?;
                    let places = out.iter_mut().skip(lane).step_by(PANEL_COLUMNS);
                    for (place, value) in places.zip(&values) {
                        *place = *value;
                    }
                }
                Ok::<(), DemoError>(())
            })?;
        Ok(Self {
            data,
            inner,
            columns,
        })
    }

    /// The whole matrix.
    pub(crate) fn view(&self) -> PanelView<'_> {
        PanelView {
            data: &self.data,
            stride: self.inner * PANEL_COLUMNS,
            inner: self.inner,
            columns: self.columns,
        }
    }

    /// Copies column `index` into `out`; without such a column, `out` stays unchanged.
    pub(crate) fn read_column(&self, index: usize, out: &mut [f32]) {
        let panel = self.view().panel(index / PANEL_COLUMNS).unwrap_or_default();
        let values = panel
            .iter()
            .skip(index % PANEL_COLUMNS)
            .step_by(PANEL_COLUMNS);
        for (out, value) in out.iter_mut().zip(values) {
            *out = *value;
        }
    }
}

/// Panels in borrowed memory: the first `inner` rows of each are used.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PanelView<'a> {
    /// The panels, `stride` floats apart.
    pub(crate) data: &'a [f32],
    /// Floats from one panel to the next, at least `inner * PANEL_COLUMNS`.
    pub(crate) stride: usize,
    /// Rows that are used.
    pub(crate) inner: usize,
    /// Columns of the matrix.
    pub(crate) columns: usize,
}

impl<'a> PanelView<'a> {
    /// The used part of panel `index`.
    pub(crate) fn panel(self, index: usize) -> Option<&'a [f32]> {
        let start = index.checked_mul(self.stride)?;
        self.data.get(start..)?.get(..self.inner * PANEL_COLUMNS)
    }

    /// The panels in order.
    pub(crate) fn panels(self) -> impl Iterator<Item = &'a [f32]> {
        (0..self.columns.div_ceil(PANEL_COLUMNS)).map_while(move |index| self.panel(index))
    }

    /// Panels `first..first + count` as a matrix.
    pub(crate) fn section(self, first: usize, count: usize) -> Self {
        let data = self
            .data
            .get(first.saturating_mul(self.stride)..)
            .unwrap_or_default();
        let before = first * PANEL_COLUMNS;
        let columns = self
            .columns
            .saturating_sub(before)
            .min(count * PANEL_COLUMNS);
        Self {
            data,
            columns,
            ..self
        }
    }
}
