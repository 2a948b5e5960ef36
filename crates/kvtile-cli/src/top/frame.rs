//! One frame of `kvtile top`, as text.

use kvtile::{TierId, layout::ShownText, tiers::metrics::MoveStats};
use kvtile_http::{CacheReport, Observation, SharedStoreReport, TierReport};

use crate::output::{self, Align, Screen, TextTable, thousands};

/// A cache now, the same cache in the frame before, and the seconds between them.
struct ObservedPair<'a> {
    now: &'a CacheReport,
    before: Option<(&'a CacheReport, f64)>,
}

/// The frame.
pub(super) fn text(
    (now, before): (&Observation, Option<&Observation>),
    url: &str,
    screen: Screen,
) -> String {
    let caches = match now.caches.len() {
        1 => "1 cache".to_owned(),
        caches => format!("{} caches", thousands(caches as u64)),
    };
    let mut text = format!(
        "kvtile {} at {}: {caches}, serving for {}\n",
        ShownText(&now.kvtile),
        ShownText(url),
        duration(now.seconds)
    );
    for cache in &now.caches {
        let of_before = before.and_then(|before| {
            let seconds = now.seconds - before.seconds;
            let mut caches = before.caches.iter();
            let cache = caches.find(|one| one.name == cache.name)?;
            (seconds > 0.0).then_some((cache, seconds))
        });
        let pair = ObservedPair {
            now: cache,
            before: of_before,
        };
        pair.text(screen, &mut text);
    }
    text
}

impl ObservedPair<'_> {
    /// The growth of a counter per second; `None` in the first frame.
    fn rate(&self, counter: impl Fn(&CacheReport) -> u64) -> Option<f64> {
        let (before, seconds) = self.before?;
        let growth = counter(self.now).saturating_sub(counter(before));
        Some(growth as f64 / seconds)
    }

    fn text(&self, screen: Screen, text: &mut String) {
        let cache = self.now;
        let mut about: Vec<String> = Vec::new();
        for identity in &cache.identities {
            let one = format!("{} ({})", identity.model, identity.revision);
            if !about.contains(&one) {
                about.push(one);
            }
        }
        if let Some(bytes) = cache.block_bytes {
            about.push(format!("blocks of {}", output::count(bytes)));
        }
        let name = screen.bold(&ShownText(&cache.name).to_string());
        text.push_str(&format!("\n{name}  {}\n", ShownText(&about.join(", "))));
        self.lookups(text);
        text.push('\n');
        text.push_str(&self.tiers());
        let stats = &cache.stats;
        if !stats.moves.is_empty() {
            text.push('\n');
            text.push_str(&self.routes());
        }
        for tier in &cache.tiers {
            if let Some(shared) = &tier.shared {
                text.push('\n');
                store(tier.tier, shared, text);
            }
        }
        let queues = stats.queues.iter().filter(|queue| queue.offered > 0);
        let queues = queues.map(|queue| {
            format!(
                "{} {} of {}, {} refused",
                queue.queue.name(),
                thousands(queue.depth),
                thousands(queue.capacity),
                thousands(queue.refused)
            )
        });
        let queues: Vec<String> = queues.collect();
        if !queues.is_empty() {
            text.push_str(&format!("\n  queues: {}\n", queues.join("; ")));
        }
    }

    fn lookups(&self, text: &mut String) {
        let stats = &self.now.stats;
        let hits: u64 = stats.hits.values().sum();
        let looked = self.rate(|cache| cache.stats.lookup_blocks);
        let found = self.rate(|cache| cache.stats.hits.values().sum());
        let now = looked.zip(found).map(|(looked, found)| match looked > 0.0 {
            true => format!(" (now {})", percent(found, looked)),
            false => " (now no lookups)".to_owned(),
        });
        text.push_str(&format!(
            "  hits {} of {} blocks{} in {} lookups{}\n",
            percent(hits as f64, stats.lookup_blocks as f64),
            thousands(stats.lookup_blocks),
            now.unwrap_or_default(),
            thousands(stats.lookups),
            self.rate(|cache| cache.stats.lookups)
                .map_or(String::new(), |rate| format!(", {rate:.1} a second"))
        ));
        let of_all = |blocks: u64| percent(blocks as f64, stats.lookup_blocks as f64);
        let hits = stats.hits.iter();
        let mut parts: Vec<String> = hits
            .map(|(tier, blocks)| format!("{tier} {}", of_all(*blocks)))
            .collect();
        let mut misses: Vec<_> = stats.misses.iter().collect();
        misses.sort_by_key(|(_, blocks)| std::cmp::Reverse(**blocks));
        parts.extend(misses.iter().map(|(reason, blocks)| {
            format!("{} {}", reason.name().replace('_', " "), of_all(**blocks))
        }));
        if !parts.is_empty() {
            text.push_str(&format!("  of which: {}\n", parts.join(", ")));
        }
        let lost = stats.lost_hits.iter();
        let lost: Vec<String> = lost
            .map(|(reason, blocks)| format!("{} {}", thousands(*blocks), reason.name()))
            .collect();
        if !lost.is_empty() {
            text.push_str(&format!("  found and not loaded: {}\n", lost.join(", ")));
        }
    }

    fn tiers(&self) -> String {
        let mut table = TextTable::new([
            ("tier", Align::Left),
            ("blocks", Align::Right),
            ("of", Align::Right),
            ("bytes", Align::Right),
            ("pinned", Align::Right),
            ("stored", Align::Right),
            ("left", Align::Right),
            ("damaged", Align::Right),
            ("state", Align::Left),
        ]);
        let stats = &self.now.stats;
        for tier in &self.now.tiers {
            let id = tier.tier;
            let of = |counts: &std::collections::BTreeMap<TierId, u64>| {
                thousands(counts.get(&id).copied().unwrap_or(0))
            };
            let left = stats.evicted.get(&id).map_or(0, |by| by.values().sum());
            let bytes = self.now.block_bytes;
            let bytes = bytes.map(|bytes| output::count(bytes.saturating_mul(tier.present)));
            table.row([
                id.to_string(),
                thousands(tier.present),
                tier.capacity.map_or("-".to_owned(), thousands),
                bytes.unwrap_or_else(|| "-".to_owned()),
                of(&stats.pinned),
                of(&stats.stored),
                thousands(left),
                of(&stats.checksum_failures),
                state(tier),
            ]);
        }
        table.text()
    }

    fn routes(&self) -> String {
        let mut table = TextTable::new([
            ("from", Align::Left),
            ("to", Align::Left),
            ("now", Align::Right),
            ("bytes", Align::Right),
            ("blocks", Align::Right),
            ("transfers", Align::Right),
            ("mean", Align::Right),
            ("failed", Align::Right),
        ]);
        for route in &self.now.stats.moves {
            let same = |one: &&MoveStats| {
                (one.source, one.destination) == (route.source, route.destination)
            };
            let bytes = |cache: &CacheReport| {
                let route = cache.stats.moves.iter().find(same);
                route.map_or(0, |route| route.bytes)
            };
            let completed = route.moves.saturating_sub(route.failures);
            let mean = match completed {
                0 => "-".to_owned(),
                _ => duration(route.nanoseconds as f64 * 1e-9 / completed as f64),
            };
            table.row([
                route.source.to_string(),
                route.destination.to_string(),
                self.rate(bytes).map_or("-".to_owned(), per_second),
                output::count(route.bytes),
                thousands(route.blocks),
                thousands(route.moves),
                mean,
                thousands(route.failures),
            ]);
        }
        table.text()
    }
}

/// The store of a shared tier.
fn store(tier: TierId, shared: &SharedStoreReport, text: &mut String) {
    let count = |name: &str| shared.counters.get(name).copied().unwrap_or(0);
    let (back, written) = (count("read_bytes"), count("written_bytes"));
    let ratio = match written {
        0 => "-".to_owned(),
        _ => format!("{:.2}", back as f64 / written as f64),
    };
    text.push_str(&format!(
        "  store of {tier}: {}; breakers: reads {}, writes {}\n  {} bundles written ({}), {} read ({}); read \
         back over written {ratio}\n",
        ShownText(&shared.store),
        ShownText(&shared.reads),
        ShownText(&shared.writes),
        thousands(count("written")),
        output::count(written),
        thousands(count("read")),
        output::count(back),
    ));
    let wrong = [
        "absent",
        "damaged",
        "other_identity",
        "short",
        "late",
        "read_failed",
        "breaker_open",
        "write_failed",
        "no_room_blocks",
        "incomplete_blocks",
    ];
    let wrong = wrong.iter().filter(|name| count(name) > 0);
    let wrong: Vec<String> = wrong
        .map(|name| format!("{} {}", thousands(count(name)), name.replace('_', " ")))
        .collect();
    if !wrong.is_empty() {
        text.push_str(&format!(
            "  not served or not written: {}\n",
            wrong.join(", ")
        ));
    }
}

fn state(tier: &TierReport) -> String {
    let health = &tier.health;
    let states = [
        (health.reads_paused, "reads paused"),
        (health.writes_paused, "writes paused"),
        (health.syncs_paused, "syncs paused"),
        (health.is_late, "late"),
    ];
    let states = states.iter().filter(|(is_so, _)| *is_so);
    let states: Vec<&str> = states.map(|(_, text)| *text).collect();
    match states.is_empty() {
        true => "working".to_owned(),
        false => states.join(", "),
    }
}

fn percent(part: f64, whole: f64) -> String {
    match whole > 0.0 {
        true => format!("{:.1} %", part / whole * 100.0),
        false => "-".to_owned(),
    }
}

/// `1.50 MiB/s`.
fn per_second(bytes: f64) -> String {
    const UNITS: [&str; 5] = ["B/s", "KiB/s", "MiB/s", "GiB/s", "TiB/s"];
    let mut bytes = bytes;
    let mut units = UNITS.iter();
    let mut unit = units.next().copied().unwrap_or_default();
    while bytes >= 1024.0
        && let Some(larger) = units.next()
    {
        bytes /= 1024.0;
        unit = larger;
    }
    match bytes < 100.0 && unit != "B/s" {
        true => format!("{bytes:.1} {unit}"),
        false => format!("{bytes:.0} {unit}"),
    }
}

/// `350 µs`, `12.5 ms`, `3.4 s`, `12 min`, `5.2 h`.
fn duration(seconds: f64) -> String {
    match seconds {
        seconds if seconds < 1e-3 => format!("{:.0} µs", seconds * 1e6),
        seconds if seconds < 1.0 => format!("{:.1} ms", seconds * 1e3),
        seconds if seconds < 120.0 => format!("{seconds:.1} s"),
        seconds if seconds < 7200.0 => format!("{:.0} min", seconds / 60.0),
        seconds => format!("{:.1} h", seconds / 3600.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_and_rates_are_short() {
        for (seconds, text) in [
            (0.000_35, "350 µs"),
            (0.0125, "12.5 ms"),
            (3.44, "3.4 s"),
            (720.0, "12 min"),
            (18_720.0, "5.2 h"),
        ] {
            assert_eq!(duration(seconds), text);
        }
        for (bytes, text) in [
            (0.0, "0 B/s"),
            (1023.0, "1023 B/s"),
            (1536.0, "1.5 KiB/s"),
            (1e12, "931 GiB/s"),
            (1e18, "909495 TiB/s"),
        ] {
            assert_eq!(per_second(bytes), text);
        }
    }
}
