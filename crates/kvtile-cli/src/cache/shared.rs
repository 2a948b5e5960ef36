//! `kvtile cache stat`, `verify` and `clear` on the store of a shared tier.

use std::{io::IsTerminal, path::Path, sync::Arc, time::Duration};

use kvtile::{
    layout::{AxisRange, ShownText},
    shared::{
        manifest::{StoreManifest, StoreManifestError},
        store::{Deadline, SharedStore},
        survey::{self, StoreSurvey, StoreVerification, SurveySettings, SurveyedForm},
    },
};
use serde_json::{Map, Value, json};

use super::{not_confirmed, prompt, report::age, sweep::of_store};
use crate::{
    error::CliError,
    output::{self, Align, Screen, TextTable, bytes, thousands},
};

/// Lines of unusable values that a report shows.
const UNFIT_SHOWN_MAX: usize = 20;

/// The arguments of a command on a store.
pub(super) struct StoreArgs<'a> {
    /// The path of a folder, or a URL.
    pub(super) store: &'a str,
    /// The time limit of each call.
    pub(super) within: Duration,
    pub(super) json: bool,
}

impl StoreArgs<'_> {
    /// Opens the store; a folder that does not exist is refused and not made.
    fn open(&self) -> Result<(Arc<dyn SharedStore>, SurveySettings), CliError> {
        if let Some(folder) = kvtile_shared_open::folder_of(self.store)
            && !folder.is_dir()
        {
            let problem = match folder.exists() {
                true => "is not a folder",
                false => "does not exist",
            };
            return Err(CliError::NoTier {
                path: folder,
                problem: problem.to_owned(),
            });
        }
        output::note(|| format!("reading {}", self.store));
        let store = kvtile_shared_open::open_store(self.store, Deadline::within(self.within));
        let settings = SurveySettings::new().call_within(self.within);
        Ok((store.map_err(of_store)?, settings))
    }
}

/// Shows what the store has.
pub(super) fn stat(args: &StoreArgs<'_>) -> Result<(), CliError> {
    let (store, settings) = args.open()?;
    let found = survey::survey(&*store, &settings).map_err(of_store)?;
    match args.json {
        true => output::print_json(&stat_json(store.name(), &found)),
        false => output::print(&stat_text(store.name(), &found)),
    }
}

fn stat_json(store: &str, found: &StoreSurvey) -> Value {
    let seconds = |age: Option<Duration>| age.map(|age| age.as_secs());
    let form = |form: &SurveyedForm| {
        json!({
            "identity": form.identity,
            "block_layout": form.layout,
            "part": form.part,
            "bundle_blocks": form.bundle_blocks,
            "bundles": form.bundles,
            "bytes": form.bytes,
            "newest_seconds": seconds(form.newest),
            "oldest_seconds": seconds(form.oldest),
        })
    };
    let manifests = found.manifests.iter();
    let manifests = manifests.map(|(identity, one)| (identity.clone(), manifest_json(one)));
    json!({
        "store": store,
        "bundles": found.bundles(),
        "bytes": found.bytes(),
        "foreign": found.foreign,
        "forms": found.forms.iter().map(form).collect::<Vec<Value>>(),
        "manifests": manifests.collect::<Map<String, Value>>(),
    })
}

fn stat_text(store: &str, found: &StoreSurvey) -> String {
    let mut text = format!(
        "{}\n  {} bundles, {}\n",
        Screen::of_stdout().bold(&ShownText(store).to_string()),
        thousands(found.bundles()),
        bytes(found.bytes())
    );
    if found.foreign > 0 {
        let line = format!("  {} other values\n", thousands(found.foreign));
        text.push_str(&line);
    }
    if found.forms.is_empty() {
        return text;
    }
    let mut table = TextTable::new([
        ("identity", Align::Left),
        ("block layout", Align::Left),
        ("part", Align::Left),
        ("blocks", Align::Right),
        ("bundles", Align::Right),
        ("bytes", Align::Right),
        ("newest", Align::Right),
        ("oldest", Align::Right),
    ]);
    let ago = |time: Option<Duration>| time.map_or("-".to_owned(), |time| age(time.as_secs()));
    for form in &found.forms {
        table.row([
            form.identity.clone(),
            form.layout.clone(),
            form.part.clone(),
            form.bundle_blocks.to_string(),
            thousands(form.bundles),
            output::count(form.bytes),
            ago(form.newest),
            ago(form.oldest),
        ]);
    }
    text.push('\n');
    text.push_str(&table.text());
    text.push('\n');
    for (identity, one) in &found.manifests {
        let line = match one {
            Ok(manifest) => manifest_text(manifest),
            Err(problem) => problem.to_string(),
        };
        text.push_str(&format!("  {identity}: {}\n", ShownText(&line)));
    }
    text
}

fn manifest_json(manifest: &Result<StoreManifest, StoreManifestError>) -> Value {
    match manifest {
        Ok(manifest) => json!(manifest),
        Err(problem) => json!({ "problem": problem.to_string() }),
    }
}

/// `toy, revision 1, 16 tokens a block, k bf16, v bf16, layers 0 to 2, heads 0 to 2, kvtile 0.1.0`.
fn manifest_text(manifest: &StoreManifest) -> String {
    let identity = manifest.identity();
    let shard = identity.shard();
    let range = |range: AxisRange| {
        let end = range.start.saturating_add(range.count);
        format!("{} to {end}", range.start)
    };
    let planes = identity.planes().iter();
    let planes = planes.map(|plane| format!("{} {}", plane.name(), plane.unit().codec()));
    format!(
        "{}, revision {}, {} tokens a block, {}, layers {}, heads {}, kvtile {}",
        identity.model(),
        identity.revision(),
        identity.page_size(),
        planes.collect::<Vec<String>>().join(", "),
        range(shard.layers),
        range(shard.heads),
        manifest.kvtile()
    )
}

/// Reads every bundle.
pub(super) fn verify(args: &StoreArgs<'_>, removes: bool) -> Result<(), CliError> {
    let (store, settings) = args.open()?;
    // The number of bundles for the bar; a further listing costs little beside the reads.
    let bundles = survey::survey(&*store, &settings)
        .map_err(of_store)?
        .bundles();
    let bar = output::progress(bundles, "checking bundles");
    let check = survey::verify(&*store, &settings, removes, |seen| bar.set_position(seen));
    bar.finish_and_clear();
    let check = check.map_err(of_store)?;
    match args.json {
        true => output::print_json(&check_json(store.name(), &check))?,
        false => output::print_check(&check_text(store.name(), &check))?,
    }
    let left = check.unfit.iter().filter(|bundle| !bundle.is_removed);
    match left.count() {
        0 => Ok(()),
        left => Err(CliError::Refused {
            path: store.name().into(),
            problem: format!(
                "{} of {} bundles cannot be used",
                thousands(left as u64),
                thousands(check.whole + check.unfit.len() as u64)
            ),
        }),
    }
}

fn check_json(store: &str, check: &StoreVerification) -> Value {
    let unfit = check.unfit.iter().map(|bundle| {
        json!({
            "name": bundle.name.as_str(),
            "bytes": bundle.bytes,
            "kind": bundle.kind,
            "problem": bundle.problem,
            "removed": bundle.is_removed,
        })
    });
    let manifests = check.unfit_manifests.iter();
    let manifests =
        manifests.map(|(identity, problem)| (identity.clone(), json!(problem.to_string())));
    json!({
        "store": store,
        "whole": check.whole,
        "whole_bytes": check.whole_bytes,
        "absent": check.absent,
        "foreign": check.foreign,
        "kinds": check.kinds(),
        "unfit_manifests": manifests.collect::<Map<String, Value>>(),
        "unfit": unfit.collect::<Vec<Value>>(),
    })
}

fn check_text(store: &str, check: &StoreVerification) -> String {
    let mut text = format!(
        "{}\n  {} bundles are whole, {}\n",
        Screen::of_stdout().bold(&ShownText(store).to_string()),
        thousands(check.whole),
        bytes(check.whole_bytes)
    );
    for (kind, count) in check.kinds() {
        let line = format!("  {} {}\n", thousands(count), kind.replace('_', " "));
        text.push_str(&line);
    }
    for (count, what) in [
        (check.absent, "removed or expired since they were listed"),
        (check.foreign, "other values, which stay"),
    ] {
        if count > 0 {
            text.push_str(&format!("  {} {what}\n", thousands(count)));
        }
    }
    for (identity, problem) in check.unfit_manifests.iter().take(UNFIT_SHOWN_MAX) {
        let line = format!("{identity}: {problem}");
        text.push_str(&format!("  {}\n", ShownText(&line)));
    }
    for bundle in check.unfit.iter().take(UNFIT_SHOWN_MAX) {
        let removed = if bundle.is_removed { " (removed)" } else { "" };
        let line = format!("{}: {}{removed}", bundle.name, bundle.problem);
        text.push_str(&format!("  {}\n", ShownText(&line)));
    }
    if let Some(more) = check.unfit.len().checked_sub(UNFIT_SHOWN_MAX + 1) {
        let line = format!(
            "  and {} more; --json has all\n",
            thousands(more as u64 + 1)
        );
        text.push_str(&line);
    }
    text
}

/// Removes all bundles.
pub(super) fn clear(args: &StoreArgs<'_>, yes: bool) -> Result<(), CliError> {
    let (store, settings) = args.open()?;
    let found = survey::survey(&*store, &settings).map_err(of_store)?;
    if !yes && found.bundles() > 0 {
        let place = Path::new(store.name());
        if !std::io::stdin().is_terminal() {
            return Err(not_confirmed(place));
        }
        let held = format!("{} bundles", thousands(found.bundles()));
        prompt(place, &held)?;
    }
    let cleared = survey::clear(&*store, &settings).map_err(of_store)?;
    if args.json {
        return output::print_json(&json!({
            "store": store.name(),
            "removed": cleared.removed,
            "removed_bytes": cleared.removed_bytes,
            "foreign": cleared.foreign,
            "leftovers": cleared.leftovers,
        }));
    }
    let mut text = format!(
        "{}: {} bundles removed, {}\n",
        ShownText(store.name()),
        thousands(cleared.removed),
        bytes(cleared.removed_bytes)
    );
    if cleared.foreign > 0 {
        let line = format!("{} other values stay\n", thousands(cleared.foreign));
        text.push_str(&line);
    }
    output::print_check(&text)
}
