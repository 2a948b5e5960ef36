//! Constants of the routes, fitted to the sweep: `seconds = fixed + pieces * piece + bytes / rate`.
//!
//! A run proposes them as data; nothing is tuned here.

use serde::{Deserialize, Serialize};

use crate::{
    figures::{CheckFigure, MeasuredDirection, MeasuredRoute},
    phase::CheckPhase,
};

/// The constants of a route in one direction.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RouteConstants {
    /// The route.
    pub route: MeasuredRoute,
    /// The direction.
    pub direction: MeasuredDirection,
    /// Most blocks of a kernel.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub blocks: Option<u32>,
    /// Microseconds of a transfer of nothing.
    pub fixed_microseconds: f64,
    /// Nanoseconds of each run.
    pub piece_nanoseconds: f64,
    /// 10^9 bytes in a second; 0 where the bytes cost nothing beside the runs.
    pub gigabytes_per_second: f64,
    /// Figures behind the constants.
    pub figures: usize,
    /// Mean of the squared relative errors, its root.
    pub relative_error: f64,
}

/// How much slower the route is that the constants choose.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct RouteRegret {
    /// Time of the chosen route over that of the best one, the largest.
    pub(crate) largest: f64,
    /// Where.
    pub(crate) at: String,
}

impl RouteConstants {
    /// Seconds by the constants.
    #[must_use]
    pub fn seconds(&self, pieces: f64, bytes: f64) -> f64 {
        let moved = match self.gigabytes_per_second > 0.0 {
            true => bytes / (self.gigabytes_per_second * 1e9),
            false => 0.0,
        };
        self.fixed_microseconds * 1e-6 + pieces * self.piece_nanoseconds * 1e-9 + moved
    }
}

type MeasuredKey = (MeasuredDirection, MeasuredRoute, Option<u32>);

fn key(figure: &CheckFigure) -> Option<MeasuredKey> {
    Some((figure.direction?, figure.route?, figure.blocks))
}

fn sweep(figures: &[CheckFigure]) -> impl Iterator<Item = &CheckFigure> {
    let all = figures.iter();
    all.filter(|figure| figure.phase == CheckPhase::Sweep && figure.seconds.median > 0.0)
}

/// The constants of all routes of the sweep with at least four figures.
pub(crate) fn constants(figures: &[CheckFigure]) -> Vec<RouteConstants> {
    let mut keys: Vec<MeasuredKey> = sweep(figures).filter_map(key).collect();
    keys.sort_unstable();
    keys.dedup();
    let fitted = keys.into_iter().filter_map(|wanted| {
        let of_route = sweep(figures).filter(|figure| key(figure) == Some(wanted));
        let points: Vec<FitPoint> = of_route.map(FitPoint::of).collect();
        let (direction, route, blocks) = wanted;
        (points.len() >= 4).then(|| {
            let ([fixed, piece, byte], squares) = fit(&points);
            RouteConstants {
                route,
                direction,
                blocks,
                fixed_microseconds: fixed * 1e6,
                piece_nanoseconds: piece * 1e9,
                gigabytes_per_second: if byte > 0.0 { 1e-9 / byte } else { 0.0 },
                figures: points.len(),
                relative_error: (squares / points.len() as f64).sqrt(),
            }
        })
    });
    fitted.collect()
}

/// The largest regret over all cells of the sweep that have more than one route.
pub(crate) fn regret(figures: &[CheckFigure]) -> Option<RouteRegret> {
    let routes = constants(figures);
    let cell = |figure: &CheckFigure| Some((figure.direction?, figure.run_bytes?, figure.pieces?));
    let mut cells: Vec<_> = sweep(figures).filter_map(cell).collect();
    cells.sort_unstable();
    cells.dedup();
    let mut worst: Option<RouteRegret> = None;
    for wanted in cells {
        let (direction, run, pieces) = wanted;
        let measured = || sweep(figures).filter(|figure| cell(figure) == Some(wanted));
        let predicted = |figure: &CheckFigure| {
            let mut known = routes.iter();
            let route = known
                .find(|route| Some((route.direction, route.route, route.blocks)) == key(figure))?;
            Some(route.seconds(pieces as f64, figure.bytes as f64))
        };
        let known = measured().filter_map(|figure| Some((predicted(figure)?, figure)));
        let Some((_, chosen)) = known.min_by(|a, b| a.0.total_cmp(&b.0)) else {
            continue;
        };
        let best = measured().map(|figure| figure.seconds.median);
        let Some(best) = best.min_by(f64::total_cmp) else {
            continue;
        };
        let regret = chosen.seconds.median / best;
        if worst.as_ref().is_none_or(|worst| regret > worst.largest) {
            let route = chosen.route.map_or("", MeasuredRoute::name);
            worst = Some(RouteRegret {
                largest: regret,
                at: format!(
                    "largest of all sizes: {}, {pieces} runs of {run} bytes, {route}",
                    direction.name()
                ),
            });
        }
    }
    worst
}

/// A figure as a row of the fit, divided by its time: short and long transfers count alike.
struct FitPoint {
    row: [f64; 3],
}

impl FitPoint {
    fn of(figure: &CheckFigure) -> FitPoint {
        let time = figure.seconds.median;
        FitPoint {
            row: [
                1.0 / time,
                figure.pieces.unwrap_or(0) as f64 / time,
                figure.bytes as f64 / time,
            ],
        }
    }

    fn error(&self, x: &[f64; 3]) -> f64 {
        let sum: f64 = self.row.iter().zip(x).map(|(a, x)| a * x).sum();
        sum - 1.0
    }
}

/// The constants that are not negative with the least squares of relative errors, and these squares: the best of the
/// solutions over all subsets of constants.
fn fit(points: &[FitPoint]) -> ([f64; 3], f64) {
    let mut best = ([0.0; 3], points.len() as f64);
    for subset in 1..8_u8 {
        let used = [0, 1, 2].map(|bit| subset >> bit & 1 == 1);
        let Some(x) = solve(points, used) else {
            continue;
        };
        let squares: f64 = points.iter().map(|point| point.error(&x).powi(2)).sum();
        if x.iter().all(|x| *x >= 0.0 && x.is_finite()) && squares < best.1 {
            best = (x, squares);
        }
    }
    best
}

/// The normal equations over the used columns, by elimination; the coefficients of unused columns are 0.
fn solve(points: &[FitPoint], used: [bool; 3]) -> Option<[f64; 3]> {
    let column = |point: &FitPoint, index: usize| -> f64 {
        let used = used.get(index).copied().unwrap_or(false);
        match used {
            true => point.row.get(index).copied().unwrap_or(0.0),
            false => 0.0,
        }
    };
    // Columns are scaled to length 1, or elimination loses bytes beside seconds.
    let length = |index: usize| -> f64 {
        let squares: f64 = points
            .iter()
            .map(|point| column(point, index).powi(2))
            .sum();
        squares.sqrt()
    };
    let lengths = [length(0), length(1), length(2)];
    let product = |a: usize, b: usize| -> f64 {
        let sum: f64 = points
            .iter()
            .map(|point| column(point, a) * column(point, b))
            .sum();
        let scale = |index: usize| lengths.get(index).copied().filter(|length| *length > 0.0);
        match (scale(a), scale(b)) {
            (Some(a), Some(b)) => sum / (a * b),
            // An unused column solves to 0.
            _ => f64::from(u8::from(a == b)),
        }
    };
    let right = |index: usize| -> f64 {
        let sum: f64 = points.iter().map(|point| column(point, index)).sum();
        let length = lengths.get(index).copied().unwrap_or(0.0);
        if length > 0.0 { sum / length } else { 0.0 }
    };
    let rows = [0, 1, 2].map(|a| [product(a, 0), product(a, 1), product(a, 2), right(a)]);
    let [x0, x1, x2] = eliminated(rows)?;
    let [l0, l1, l2] = lengths.map(|length| if length > 0.0 { length } else { 1.0 });
    Some([x0 / l0, x1 / l1, x2 / l2])
}

/// The solution of three equations that are symmetric and not negative, so no rows change places.
fn eliminated([a, b, c]: [[f64; 4]; 3]) -> Option<[f64; 3]> {
    const LEAST: f64 = 1e-12;
    let minus = |row: [f64; 4], factor: f64, other: [f64; 4]| {
        let mut result = row;
        for (result, other) in result.iter_mut().zip(other) {
            *result -= factor * other;
        }
        result
    };
    let [a0, a1, a2, a3] = a;
    if a0.abs() < LEAST {
        return None;
    }
    let [b0, ..] = b;
    let [_, b1, b2, b3] = minus(b, b0 / a0, a);
    let [c0, ..] = c;
    let c = minus(c, c0 / a0, a);
    if b1.abs() < LEAST {
        return None;
    }
    let [_, c1, ..] = c;
    let [_, _, c2, c3] = minus(c, c1 / b1, [0.0, b1, b2, b3]);
    if c2.abs() < LEAST {
        return None;
    }
    let z = c3 / c2;
    let y = (b3 - b2 * z) / b1;
    Some([(a3 - a1 * y - a2 * z) / a0, y, z])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::measure::RoundSpread;

    fn cell(route: MeasuredRoute, run: u64, pieces: u64, seconds: f64) -> CheckFigure {
        let spread = RoundSpread::of(vec![seconds], 1);
        let figure = CheckFigure::of(CheckPhase::Sweep, "runs", spread);
        CheckFigure {
            run_bytes: Some(run),
            pieces: Some(pieces),
            ..figure.moved(run * pieces, MeasuredDirection::HostToDevice, route)
        }
    }

    /// 10 µs, 2 µs a run, 50 GB/s; and 30 µs, no cost of runs, 40 GB/s.
    fn figures() -> Vec<CheckFigure> {
        let mut figures = Vec::new();
        for run in [256, 4096, 65_536, 1 << 20] {
            for pieces in [16, 256, 4096] {
                let (bytes, count) = ((run * pieces) as f64, pieces as f64);
                let one = 10e-6 + count * 2e-6 + bytes / 50e9;
                let other = 30e-6 + bytes / 40e9;
                figures.push(cell(MeasuredRoute::Batch, run, pieces, one));
                figures.push(cell(MeasuredRoute::Staged, run, pieces, other));
            }
        }
        figures
    }

    #[test]
    fn constants_are_those_that_made_the_times() {
        let routes = constants(&figures());
        assert_eq!(routes.len(), 2);
        for (route, expected) in routes.iter().zip([(10.0, 2000.0, 50.0), (30.0, 0.0, 40.0)]) {
            let (fixed, piece, rate) = expected;
            assert!((route.fixed_microseconds - fixed).abs() < 1e-3, "{route:?}");
            assert!((route.piece_nanoseconds - piece).abs() < 1e-2, "{route:?}");
            assert!(
                (route.gigabytes_per_second - rate).abs() < 1e-3,
                "{route:?}"
            );
            assert!(
                route.relative_error < 1e-6 && route.figures == 12,
                "{route:?}"
            );
        }
    }

    #[test]
    fn exact_constants_choose_the_best_route_everywhere() {
        let mut figures = figures();
        let exact = regret(&figures).unwrap();
        assert!((exact.largest - 1.0).abs() < 1e-9, "{exact:?}");
        // A cell that the model does not describe is named.
        let odd = figures.iter_mut();
        let odd = odd.filter(|figure| figure.run_bytes == Some(256) && figure.pieces == Some(4096));
        for figure in odd {
            let factor = if figure.route == Some(MeasuredRoute::Staged) {
                100.0
            } else {
                0.1
            };
            figure.seconds.median *= factor;
        }
        let found = regret(&figures).unwrap();
        assert!(
            found.largest > 1.1 && found.at.contains("4096 runs of 256 bytes"),
            "{found:?}"
        );
    }

    #[test]
    fn negative_constants_are_left_out() {
        let mut figures = Vec::new();
        for pieces in [1, 2, 3, 4] {
            // More runs take less time: no model fits, and none has negative costs.
            let seconds = 1.0 / pieces as f64;
            figures.push(cell(MeasuredRoute::Loop, 64, pieces, seconds));
        }
        let routes = constants(&figures);
        let route = routes.first().unwrap();
        assert!(
            route.fixed_microseconds > 0.0 && route.piece_nanoseconds >= 0.0,
            "{route:?}"
        );
        assert!(constants(&[]).is_empty());
    }
}
