//! Rows times panels.
//!
//! One step multiplies up to twelve rows with the 32 columns of one panel: 24 accumulators of 16
//! lanes fill the registers of AVX-512 (four rows on machines with 16 registers). The rows are
//! first transposed so that the twelve values of one inner index are adjacent.

use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

use super::panels::{PANEL_COLUMNS, PanelView};

/// Rows per task of a parallel product: a multiple of the largest tile, small enough that the rows
/// stay in a core's second-level cache.
const TASK_ROWS: usize = 96;

/// `out = rows * panels` on one thread. `rows` is row-major, `panels.inner` wide;
/// `out` is row-major and `out.len() / row count` wide, at least `panels.columns`.
/// Columns of `out` beyond `panels.columns` stay unchanged.
pub(crate) fn multiply(rows: &[f32], panels: PanelView<'_>, out: &mut [f32]) {
    let count = rows.len() / panels.inner.max(1);
    let width = out.len().checked_div(count).unwrap_or(0);
    if panels.inner > 0 && width > 0 {
        Arch::new().dispatch(PanelProduct {
            rows,
            panels,
            out,
            width,
        });
    }
}

/// [`multiply`] on all threads of the current pool: split by rows where there are many, else by
/// columns. The result is equal bit for bit.
pub(crate) fn multiply_parallel(rows: &[f32], panels: PanelView<'_>, out: &mut [f32]) {
    let count = rows.len() / panels.inner.max(1);
    let width = out.len().checked_div(count).unwrap_or(0);
    let threads = rayon::current_num_threads();
    if threads == 1 || width == 0 || panels.inner == 0 {
        multiply(rows, panels, out);
    } else if count >= 12 * threads {
        let share = count.div_ceil(threads);
        let task = share
            .div_ceil(share.div_ceil(TASK_ROWS))
            .next_multiple_of(12);
        out.par_chunks_mut(task * width)
            .zip(rows.par_chunks(task * panels.inner))
            .for_each(|(out, rows)| multiply(rows, panels, out));
    } else {
        by_columns(rows, panels, out, width);
    }
}

fn by_columns(rows: &[f32], panels: PanelView<'_>, out: &mut [f32], width: usize) {
    let count = out.len() / width;
    let all = panels.columns.div_ceil(PANEL_COLUMNS);
    let task = all.div_ceil(rayon::current_num_threads() * 2).max(1);
    let task_columns = task * PANEL_COLUMNS;
    if count == 1 {
        out.par_chunks_mut(task_columns)
            .enumerate()
            .for_each(|(index, out)| multiply(rows, panels.section(index * task, task), out));
        return;
    }
    let mut parts = vec![0.0; all.div_ceil(task) * task_columns * count];
    parts
        .par_chunks_mut(task_columns * count)
        .enumerate()
        .for_each(|(index, part)| multiply(rows, panels.section(index * task, task), part));
    for (row, out) in out.chunks_exact_mut(width).enumerate() {
        for (part, out) in parts
            .chunks_exact(task_columns * count)
            .zip(out.chunks_mut(task_columns))
        {
            if let Some(row) = part.chunks_exact(task_columns).nth(row) {
                out.iter_mut()
                    .zip(row)
                    .for_each(|(out, value)| *out = *value);
            }
        }
    }
}

struct PanelProduct<'a> {
    rows: &'a [f32],
    panels: PanelView<'a>,
    out: &'a mut [f32],
    width: usize,
}

impl WithSimd for PanelProduct<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self {
            rows,
            panels,
            out,
            width,
        } = self;
        let wide = if S::REGISTER_COUNT >= 32 { 12 } else { 0 };
        let count = rows.len() / panels.inner;
        let twelves = count.checked_div(wide).unwrap_or(0);
        let (rows_twelve, rest) = rows.split_at(twelves * 12 * panels.inner);
        let fours = count.saturating_sub(twelves * 12) / 4;
        let (rows_four, rows_one) = rest.split_at(fours * 4 * panels.inner);
        let twelve = turn::<12>(rows_twelve, panels.inner);
        let four = turn::<4>(rows_four, panels.inner);
        let (one, _) = rows_one.as_chunks::<1>();
        let (out_twelve, rest) = out.split_at_mut(twelves * 12 * width);
        let (out_four, out_one) = rest.split_at_mut(fours * 4 * width);
        for (index, panel) in panels.panels().enumerate() {
            let column = index * PANEL_COLUMNS;
            let place = PanelDestination {
                width,
                column,
                columns: panels.columns,
            };
            tiles::<S, 12>(simd, &twelve, panel, out_twelve, place);
            tiles::<S, 4>(simd, &four, panel, out_four, place);
            tiles::<S, 1>(simd, one, panel, out_one, place);
        }
    }
}

/// Transposes rows in groups of `ROWS`: for each inner index, the values of the group.
fn turn<const ROWS: usize>(rows: &[f32], inner: usize) -> Vec<[f32; ROWS]> {
    let mut turned = vec![[0.0; ROWS]; rows.len() / ROWS];
    for (group, rows) in turned
        .chunks_exact_mut(inner)
        .zip(rows.chunks_exact(inner * ROWS))
    {
        let group = group.as_flattened_mut();
        for (lane, row) in rows.chunks_exact(inner).enumerate() {
            for (place, value) in group.iter_mut().skip(lane).step_by(ROWS).zip(row) {
                *place = *value;
            }
        }
    }
    turned
}

/// The destination of a panel's results.
#[derive(Clone, Copy)]
struct PanelDestination {
    width: usize,
    column: usize,
    columns: usize,
}

#[inline(always)]
fn tiles<S: Simd, const ROWS: usize>(
    simd: S,
    turned: &[[f32; ROWS]],
    panel: &[f32],
    out: &mut [f32],
    place: PanelDestination,
) {
    let inner = panel.len() / PANEL_COLUMNS;
    let per_row = PANEL_COLUMNS / S::F32_LANES;
    let (panel, _) = S::as_simd_f32s(panel);
    let groups = turned.chunks_exact(inner);
    for (group, out) in groups.zip(out.chunks_exact_mut(ROWS * place.width)) {
        for pair in 0..per_row / 2 {
            let sums = tile::<S, ROWS>(simd, group, panel, pair);
            let column = place.column + pair * 2 * S::F32_LANES;
            for (out, sums) in out.chunks_exact_mut(place.width).zip(&sums) {
                let last = place.columns.min(column + 2 * S::F32_LANES);
                if let Some(out) = out.get_mut(column..last) {
                    store::<S>(out, sums);
                }
            }
        }
    }
}

#[inline(always)]
fn store<S: Simd>(out: &mut [f32], sums: &[S::f32s; 2]) {
    let (whole, tail) = S::as_mut_simd_f32s(out);
    for (out, sum) in whole.iter_mut().zip(sums) {
        *out = *sum;
    }
    if !tail.is_empty() {
        let (sums, done) = (
            pulp::bytemuck::cast_slice::<S::f32s, f32>(sums),
            whole.len() * S::F32_LANES,
        );
        for (out, sum) in tail.iter_mut().zip(sums.iter().skip(done)) {
            *out = *sum;
        }
    }
}

/// `ROWS` rows times two vectors of the panel: one chain of fused
/// multiply-adds for each result.
#[inline(always)]
fn tile<S: Simd, const ROWS: usize>(
    simd: S,
    group: &[[f32; ROWS]],
    panel: &[S::f32s],
    pair: usize,
) -> [[S::f32s; 2]; ROWS] {
    let per_row = PANEL_COLUMNS / S::F32_LANES;
    let mut sums = [[simd.splat_f32s(0.0); 2]; ROWS];
    for (values, panel) in group.iter().zip(panel.chunks_exact(per_row)) {
        let (Some(&left), Some(&right)) = (panel.get(2 * pair), panel.get(2 * pair + 1)) else {
            break;
        };
        for ([sum_left, sum_right], value) in sums.iter_mut().zip(values) {
            let value = simd.splat_f32s(*value);
            *sum_left = simd.mul_add_e_f32s(value, left, *sum_left);
            *sum_right = simd.mul_add_e_f32s(value, right, *sum_right);
        }
    }
    sums
}

#[cfg(test)]
mod tests {
    use super::super::Panels;
    use super::*;

    /// Numbers that are not multiples of one another, from a counter.
    fn numbers(count: usize, seed: usize) -> Vec<f32> {
        (0..count)
            .map(|index| ((index * 7919 + seed * 104_729) % 2003) as f32 / 1000.0 - 1.0)
            .collect()
    }

    struct ProductCase {
        rows: Vec<f32>,
        weights: Vec<f32>,
        panels: Panels,
        count: usize,
        inner: usize,
        columns: usize,
    }

    fn cases() -> Vec<ProductCase> {
        let shapes = [
            (1, 1, 1),
            (1, 64, 100),
            (3, 7, 33),
            (5, 80, 32),
            (12, 16, 64),
            (31, 9, 257),
            (200, 24, 40),
        ];
        let case = |(count, inner, columns): (usize, usize, usize)| {
            let weights = numbers(inner * columns, 2);
            let panels = Panels::pack(inner, columns, |column, out| {
                out.copy_from_slice(&weights[column * inner..][..inner]);
                Ok(())
            });
            let (rows, panels) = (numbers(count * inner, 1), panels.unwrap());
            ProductCase {
                rows,
                weights,
                panels,
                count,
                inner,
                columns,
            }
        };
        shapes.map(case).into()
    }

    impl ProductCase {
        fn out(&self, width: usize, compute: impl FnOnce(PanelProduct<'_>)) -> Vec<f32> {
            let mut out = vec![7.0; self.count * width];
            let panels = self.panels.view();
            compute(PanelProduct {
                rows: &self.rows,
                panels,
                out: &mut out,
                width,
            });
            out
        }

        fn expected(&self, row: usize, column: usize) -> f64 {
            let row = &self.rows[row * self.inner..][..self.inner];
            let column = &self.weights[column * self.inner..][..self.inner];
            row.iter()
                .zip(column)
                .map(|(a, b)| f64::from(*a) * f64::from(*b))
                .sum()
        }
    }

    #[test]
    fn products_match_double_precision_and_leave_other_columns_alone() {
        for case in cases() {
            let width = case.columns + 5;
            let out = case.out(width, |product| Arch::new().dispatch(product));
            for (index, value) in out.iter().enumerate() {
                let (row, column) = (index / width, index % width);
                let expected = if column < case.columns {
                    case.expected(row, column)
                } else {
                    7.0
                };
                assert!(
                    (f64::from(*value) - expected).abs() < 1e-4,
                    "{row}, {column}"
                );
            }
        }
    }

    #[test]
    fn all_instruction_sets_and_any_split_give_the_same() {
        for case in cases() {
            let width = case.columns;
            let best = case.out(width, |product| Arch::new().dispatch(product));
            let scalar = case.out(width, |product| Simd::vectorize(pulp::Scalar, product));
            let close = |(a, b): (&f32, &f32)| (a - b).abs() < 1e-4;
            assert!(best.iter().zip(&scalar).all(close));
            #[cfg(target_arch = "x86_64")]
            if let Some(v3) = pulp::x86::V3::try_new() {
                assert_eq!(
                    best,
                    case.out(width, |product| Simd::vectorize(v3, product))
                );
            }
            for threads in [1, 2, 3] {
                let pool = rayon::ThreadPoolBuilder::new()
                    .num_threads(threads)
                    .build()
                    .unwrap();
                let split = case.out(
                    width,
                    |PanelProduct {
                         rows, panels, out, ..
                     }| {
                        pool.install(|| multiply_parallel(rows, panels, out));
                    },
                );
                assert_eq!(best, split, "{threads} threads");
            }
        }
    }
}
