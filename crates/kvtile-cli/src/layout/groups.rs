//! `kvtile layout groups`: the groups of a model, and what a hit needs of each.

use std::{fmt::Write as _, num::NonZeroU64, ops::Range, path::Path};

use kvtile::{
    identity::{GroupRole, ModelGroup, ModelIdentity},
    layout::{GroupRule, broken},
};
use serde::Serialize;

use super::LayoutArgs;
use crate::{
    draw::{self, GroupNeeds},
    error::CliError,
    files::OutputFile,
    model_file,
    output::{self, Align, Screen, TextTable, count, thousands},
};

/// Tokens of the hit without `--tokens`.
const TOKENS: u64 = 32_768;

/// The groups of a model, as a report.
#[derive(Debug, Serialize)]
struct GroupsReport {
    model: String,
    revision: String,
    /// The fingerprint that keys depend on.
    chain: String,
    /// Tokens of one key.
    unit: u64,
    /// Tokens between two stops.
    stop_unit: u64,
    /// Tokens of the hit that the figures are for.
    tokens: u64,
    groups: Vec<GroupRow>,
    /// Bytes that the hit needs of all groups that decide hits.
    needed_bytes: u64,
    /// The same if every window and chunk were kept as full attention is.
    as_full_bytes: u64,
}

#[derive(Debug, Serialize)]
struct GroupRow {
    name: String,
    rule: String,
    role: String,
    layers: String,
    layer_count: u64,
    page_size: u64,
    page_bytes: u64,
    first_needed_page: u64,
    needed_pages: u64,
    needed_bytes: u64,
}

/// `kvtile layout groups FILE`.
pub(super) fn run(args: &LayoutArgs, files: &[String]) -> Result<(), CliError> {
    let [file] = files else {
        return Err(CliError::Option {
            option: "groups",
            value: files.join(" "),
            problem: "give one file, the JSON of a model's identity".to_owned(),
        });
    };
    let mut svg = OutputFile::open_some(args.svg.as_ref())?;
    let standard = svg.as_ref().is_some_and(OutputFile::is_standard);
    let model = model_file::read(Path::new(file))?;
    let report = GroupsReport::of(&model, args.tokens.unwrap_or(TOKENS))?;
    if let Some(svg) = svg.take() {
        svg.finish(&draw::groups_svg(
            &report.title(),
            &report.notes(),
            &report.needs(),
        ))?;
    }
    if standard {
        return Ok(());
    }
    if args.json {
        return output::print_json(&report);
    }
    let mut text = report.text(Screen::of_stdout());
    if let (Some(path), false) = (&args.svg, output::is_quiet()) {
        text.push_str(&picture_line(path));
    }
    output::print(&text)
}

fn picture_line(path: &Path) -> String {
    format!("\nThe picture is in {}.\n", path.display())
}

/// The pages of a group that a hit needs.
fn needed(group: &ModelGroup, stop: u64) -> Range<u64> {
    let Some(page) = NonZeroU64::new(group.shape().page_size()) else {
        broken(format_args!("group {} has pages of 0 tokens", group.name()))
    };
    group.rule().needs(stop, page)
}

impl GroupsReport {
    /// The figures for the longest stop of at most `tokens` tokens.
    fn of(model: &ModelIdentity, tokens: u64) -> Result<GroupsReport, CliError> {
        let stop_unit = model.stop_unit().filter(|unit| *unit <= tokens);
        let Some(stop_unit) = stop_unit else {
            return Err(CliError::Option {
                option: "--tokens",
                value: tokens.to_string(),
                problem: "the model has no stop in so few tokens; give at least the least common multiple of its \
                          groups' page sizes"
                    .to_owned(),
            });
        };
        let stop = tokens - tokens % stop_unit;
        let (mut rows, mut needed_bytes, mut as_full_bytes) = (Vec::new(), 0_u64, 0_u64);
        for group in model.groups() {
            let page_bytes = group.shape().block_bytes()?;
            let page_size = group.shape().page_size();
            let pages = needed(group, stop);
            let bytes = (pages.end - pages.start).saturating_mul(page_bytes);
            if group.role() == GroupRole::Target {
                needed_bytes = needed_bytes.saturating_add(bytes);
                let as_full = match group.rule() {
                    GroupRule::Stop => bytes,
                    _ => (stop / page_size).saturating_mul(page_bytes),
                };
                as_full_bytes = as_full_bytes.saturating_add(as_full);
            }
            rows.push(GroupRow {
                name: group.name().to_string(),
                rule: group.rule().to_string(),
                role: group.role().to_string(),
                layers: group.layers().to_string(),
                layer_count: group.layers().count(),
                page_size,
                page_bytes,
                first_needed_page: pages.start,
                needed_pages: pages.end - pages.start,
                needed_bytes: bytes,
            });
        }
        Ok(GroupsReport {
            model: model.model().to_owned(),
            revision: model.revision().to_owned(),
            chain: model.chain().to_string(),
            unit: model.unit(),
            stop_unit,
            tokens: stop,
            groups: rows,
            needed_bytes,
            as_full_bytes,
        })
    }

    fn title(&self) -> String {
        self.model.clone()
    }

    fn notes(&self) -> Vec<String> {
        vec![
            format!(
                "A hit of {} tokens needs {}; stops are multiples of {} tokens",
                thousands(self.tokens),
                count(self.needed_bytes),
                thousands(self.stop_unit)
            ),
            format!(
                "with all pages of windows and chunks it would be {}",
                count(self.as_full_bytes)
            ),
        ]
    }

    /// The parts of the hit's tokens that are needed, by group.
    fn needs(&self) -> Vec<GroupNeeds> {
        let share = |tokens: u64| tokens as f64 / self.tokens.max(1) as f64;
        let groups = self.groups.iter().map(|group| GroupNeeds {
            name: group.name.clone(),
            note: format!(
                "{}, {} layers, {}",
                group.rule,
                group.layer_count,
                count(group.needed_bytes)
            ),
            is_needed: group.needed_pages > 0,
            from: share(group.first_needed_page * group.page_size),
        });
        groups.collect()
    }

    fn text(&self, screen: Screen) -> String {
        let mut text = screen.bold(&kvtile::layout::ShownText(&self.model).to_string());
        // Writing to a string cannot fail.
        let _ = writeln!(text, "\n");
        let mut table = TextTable::new([
            ("group", Align::Left),
            ("rule", Align::Left),
            ("role", Align::Left),
            ("layers", Align::Left),
            ("page, tokens", Align::Right),
            ("page", Align::Right),
            ("pages of the hit", Align::Right),
            ("bytes of the hit", Align::Right),
        ]);
        for group in &self.groups {
            table.row([
                group.name.clone(),
                group.rule.clone(),
                group.role.clone(),
                layers_text(group),
                thousands(group.page_size),
                count(group.page_bytes),
                thousands(group.needed_pages),
                count(group.needed_bytes),
            ]);
        }
        text.push_str(&table.text());
        text.push('\n');
        for note in self.notes() {
            let _ = writeln!(text, "  {note}");
        }
        let _ = writeln!(
            text,
            "\n{} {}",
            screen.bold("What the hit needs"),
            screen.dim("(tokens from left to right)")
        );
        text.push_str(&draw::groups_picture(&self.needs(), screen));
        text
    }
}

/// The layers of a group, or their number where the list is long.
fn layers_text(group: &GroupRow) -> String {
    const LONGEST: usize = 24;
    match group.layers.chars().count() > LONGEST {
        true => format!("{} layers", thousands(group.layer_count)),
        false => group.layers.clone(),
    }
}
