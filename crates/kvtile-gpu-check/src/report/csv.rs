//! The figures as comma-separated values, and the constants of the routes as TOML.

use std::fmt::{Display, Write as _};

use serde::Serialize;

use super::{GpuCheckReport, ReportFiles};
use crate::{
    error::GpuCheckError,
    figures::{CheckFigure, MeasuredDirection, MeasuredRoute},
    routes::RouteConstants,
};

const HEADER: &str = "phase,work,direction,route,blocks,run_bytes,pieces,bytes,median_s,shortest_s,longest_s,rounds,\
                      repeats,gb_per_s,ratio";

/// The constants with what they were measured on.
#[derive(Serialize)]
struct RouteTable<'r> {
    measured: &'r str,
    device: &'r str,
    capability: &'r str,
    driver: &'r str,
    date: &'r str,
    #[serde(rename = "route")]
    routes: &'r [RouteConstants],
}

impl GpuCheckReport {
    /// The figures, a line each, below a comment with what they stand for.
    #[must_use]
    pub fn csv(&self) -> String {
        let mut text = format!("# {}, {}\n{HEADER}\n", self.label, self.machine.date);
        for figure in &self.figures {
            text.push_str(&line(figure));
        }
        text
    }

    /// The proposed constants of the routes, as TOML.
    ///
    /// # Errors
    ///
    /// Figures that TOML cannot state.
    pub fn route_table(&self) -> Result<String, GpuCheckError> {
        let table = RouteTable {
            measured: &self.label,
            device: &self.device.name,
            capability: &self.device.capability,
            driver: &self.device.driver,
            date: &self.machine.date,
            routes: &self.routes,
        };
        let text = toml::to_string(&table).map_err(|error| GpuCheckError::File {
            path: ReportFiles::ROUTES.into(),
            reason: error.to_string(),
        })?;
        Ok(format!(
            "# Proposed by kvtile-gpu-check: seconds = fixed + pieces * piece + bytes / rate\n{text}"
        ))
    }
}

fn line(figure: &CheckFigure) -> String {
    let seconds = &figure.seconds;
    let work = figure.work.replace('"', "\"\"");
    let mut line = format!(
        "{},\"{work}\",{},{},{},{},{},{}",
        figure.phase,
        optional(figure.direction.map(MeasuredDirection::name)),
        quoted(figure.route.map(MeasuredRoute::name)),
        optional(figure.blocks),
        optional(figure.run_bytes),
        optional(figure.pieces),
        figure.bytes,
    );
    let rate = figure.bytes_per_second().map(|rate| rate / 1e9);
    // Writing to a string cannot fail.
    let _ = writeln!(
        line,
        ",{:e},{:e},{:e},{},{},{},{}",
        seconds.median,
        seconds.shortest,
        seconds.longest,
        seconds.rounds,
        seconds.repeats,
        optional(rate.map(|rate| format!("{rate:.4}"))),
        optional(figure.ratio.map(|ratio| format!("{ratio:.4}"))),
    );
    line
}

fn optional(value: Option<impl Display>) -> String {
    value.map_or_else(String::new, |value| value.to_string())
}

fn quoted(value: Option<&str>) -> String {
    value.map_or_else(String::new, |value| format!("\"{value}\""))
}
