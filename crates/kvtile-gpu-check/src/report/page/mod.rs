//! The report as one page, without scripts or files beside it.

mod chart;
mod sweep;
mod tables;

use std::fmt::Write as _;

use kvtile_bench::{BENCH_STYLE, escaped};

use super::GpuCheckReport;
use crate::{
    figures::{CheckFigure, MeasuredDirection},
    goals::{GoalState, work},
};

const STYLE: &str = include_str!("page.css");

impl GpuCheckReport {
    /// The page.
    #[must_use]
    pub fn page(&self) -> String {
        let mut page = format!(
            "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
             <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
             <title>kvtile on {}</title>\n<style>\n{BENCH_STYLE}{STYLE}</style>\n</head>\n<body>\n\
             <h1>kvtile on {}</h1>\n",
            escaped(&self.device.name),
            escaped(&self.device.name),
        );
        let class = if self.device.is_standin() {
            "label standin"
        } else {
            "label"
        };
        // Writing to a string cannot fail.
        let _ = writeln!(page, "<p class=\"{class}\">{}</p>", escaped(&self.label));
        page.push_str(&self.facts());
        page.push_str(&self.tiles());
        page.push_str(&tables::goals(self));
        page.push_str(&tables::bytes(self));
        page.push_str(&sweep::section(self));
        page.push_str(&tables::permutes(self));
        page.push_str(&tables::others(self));
        page.push_str(&tables::routes(self));
        page.push_str(&tables::phases(self));
        page.push_str("</body>\n</html>\n");
        page
    }

    fn facts(&self) -> String {
        let (machine, device) = (&self.machine, &self.device);
        let mut facts = vec![
            (
                "device",
                format!(
                    "{}, compute capability {}, {} multiprocessors, {} copy engines, {}",
                    device.name,
                    device.capability,
                    device.multiprocessors,
                    device.copy_engines,
                    size(device.bytes as u64)
                ),
            ),
            ("driver", format!("CUDA {}", device.driver)),
            (
                "processor",
                format!("{}, {} cores", machine.cpu, machine.cores),
            ),
            (
                "run",
                format!("kvtile {}, {}", machine.kvtile, machine.date),
            ),
        ];
        if let Some(settings) = &self.settings {
            facts.push((
                "settings",
                format!(
                    "seed {}, {} rounds, transfers of up to {}",
                    settings.seed,
                    settings.rounds,
                    size(settings.largest_bytes as u64)
                ),
            ));
        }
        let state = |fields: &[(String, String)]| {
            let fields = fields.iter().map(|(name, value)| format!("{name} {value}"));
            fields.collect::<Vec<String>>().join(", ")
        };
        facts.push(("state before", state(&device.state_before)));
        facts.push(("state after", state(&device.state_after)));
        let mut list = "<dl class=\"facts\">\n".to_owned();
        for (name, fact) in facts.iter().filter(|(_, fact)| !fact.is_empty()) {
            let _ = writeln!(list, "<dt>{name}</dt><dd>{}</dd>", escaped(fact));
        }
        list.push_str("</dl>\n");
        list
    }

    fn tiles(&self) -> String {
        let mut tiles = "<div class=\"tiles\">\n".to_owned();
        let mut tile = |title: &str, value: String, note: &str| {
            let _ = writeln!(
                tiles,
                "<div class=\"tile\"><b>{}</b>{}<span>{}</span></div>",
                escaped(&value),
                escaped(title),
                escaped(note)
            );
        };
        let compared: u32 = self.bytes.iter().map(|check| check.compared).sum();
        let wrong = self
            .bytes
            .iter()
            .filter(|check| check.wrong.is_some())
            .count();
        if !self.bytes.is_empty() {
            let value = match wrong {
                0 => format!("{compared} equal"),
                wrong => format!("{wrong} routes wrong"),
            };
            tile(
                "transfers",
                value,
                "compared with the naive copy, byte for byte",
            );
        }
        for direction in MeasuredDirection::ALL {
            if let Some(rate) = self.ceiling(direction) {
                tile(direction.name(), rate_text(rate), "ceiling: one large copy");
            }
        }
        let mut both = self.figures.iter();
        let both = both.find(|figure| figure.work == work::BOTH_WAYS);
        if let Some(ratio) = both.and_then(|figure| figure.ratio) {
            tile(
                "both directions",
                format!("{ratio:.2} ×"),
                "sum of both, of the faster one",
            );
        }
        let count = |state| self.goals.iter().filter(|goal| goal.state == state).count();
        let (met, missed) = (count(GoalState::Met), count(GoalState::Missed));
        if met + missed > 0 {
            let note = format!("{} not measured", count(GoalState::NotMeasured));
            tile("goals", format!("{met} met, {missed} missed"), &note);
        }
        tiles.push_str("</div>\n");
        tiles
    }
}

/// A table with a heading; nothing where there are no rows.
fn table(heading: &str, text: &str, columns: &[&str], rows: &[String]) -> String {
    if rows.is_empty() {
        return String::new();
    }
    let mut table = format!("<h2>{heading}</h2>\n");
    if !text.is_empty() {
        let _ = writeln!(table, "<p>{text}</p>");
    }
    table.push_str("<div class=\"scroll\"><table>\n<thead><tr>");
    for column in columns {
        let _ = write!(table, "<th>{column}</th>");
    }
    table.push_str("</tr></thead>\n<tbody>\n");
    for row in rows {
        let _ = writeln!(table, "<tr>{row}</tr>");
    }
    table.push_str("</tbody></table></div>\n");
    table
}

/// A cell with text at its left.
fn left(text: &str) -> String {
    format!("<td class=\"left\">{}</td>", escaped(text))
}

/// A cell with a number.
fn plain(text: &str) -> String {
    format!("<td class=\"plain\">{}</td>", escaped(text))
}

/// A cell with a ratio, shaded; a dot where there is none.
fn shaded(ratio: Option<f64>, note: &str) -> String {
    let Some(ratio) = ratio else {
        return "<td class=\"none\">·</td>".to_owned();
    };
    let limits = [0.1, 0.25, 0.5, 0.7, 0.85, 0.95];
    let shade = limits.iter().filter(|limit| ratio >= **limit).count();
    format!(
        "<td class=\"g{shade}\" title=\"{}\">{ratio:.2}</td>",
        escaped(note)
    )
}

/// Bytes with the largest binary unit that leaves no fraction.
fn size(bytes: u64) -> String {
    let units = [(30, "GiB"), (20, "MiB"), (10, "KiB")];
    let found = units
        .iter()
        .find(|(log, _)| bytes >= 1 << log && bytes.is_multiple_of(1 << log));
    match found {
        Some((log, unit)) => format!("{} {unit}", bytes >> log),
        None if bytes >= 1 << 30 => format!("{:.1} GiB", bytes as f64 / f64::from(1 << 30)),
        None => format!("{bytes} B"),
    }
}

/// A rate with three digits.
fn rate_text(rate: f64) -> String {
    match rate / 1e9 {
        rate if rate >= 100.0 => format!("{rate:.0} GB/s"),
        rate if rate >= 1.0 => format!("{rate:.1} GB/s"),
        rate => format!("{rate:.4} GB/s"),
    }
}

/// A time with three digits.
fn time_text(seconds: f64) -> String {
    match seconds {
        seconds if seconds >= 1.0 => format!("{seconds:.2} s"),
        seconds if seconds >= 1e-3 => format!("{:.2} ms", seconds * 1e3),
        seconds => format!("{:.2} µs", seconds * 1e6),
    }
}

/// The rate of a figure, with its time and spread, for a tooltip.
fn note(figure: &CheckFigure) -> String {
    let rate = figure
        .bytes_per_second()
        .map_or_else(String::new, rate_text);
    let seconds = &figure.seconds;
    format!(
        "{rate}, {} ± {:.0} %",
        time_text(seconds.median),
        50.0 * seconds.spread()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_rates_and_times_have_their_units() {
        assert_eq!(size(4 << 30), "4 GiB");
        assert_eq!(size(6144), "6 KiB");
        assert_eq!(size(255), "255 B");
        assert_eq!(size((1 << 30) + 1), "1.0 GiB");
        assert_eq!(rate_text(51.84e9), "51.8 GB/s");
        assert_eq!(rate_text(2150e9), "2150 GB/s");
        assert_eq!(time_text(0.0025), "2.50 ms");
        assert_eq!(time_text(3e-6), "3.00 µs");
    }

    #[test]
    fn names_of_drivers_are_text() {
        let mut report = GpuCheckReport::default();
        report.device.name = "<script>alert(1)</script>".to_owned();
        assert!(!report.page().contains("<script>"));
    }
}
