//! The table: the speed of each contender, and its share of the first one's in the same round.

use std::time::Duration;

use serde::Serialize;

use crate::turns::TurnTimes;

/// What a row measures.
#[derive(Clone, Debug)]
pub(crate) struct RowSubject {
    /// `S3 fetch`.
    pub(crate) what: &'static str,
    /// Bytes of a value.
    pub(crate) value_bytes: usize,
    /// Values of a round.
    pub(crate) values: usize,
    /// Calls at a time.
    pub(crate) clients: usize,
}

/// One contender of one row.
#[derive(Clone, Debug, Serialize)]
struct SharingRow {
    what: &'static str,
    value_bytes: usize,
    values: usize,
    clients: usize,
    contender: &'static str,
    megabytes_per_s: f64,
    calls_per_s: f64,
    /// Its speed as a part of the first contender's, in the same round: median, lowest, highest.
    share: [f64; 3],
    goal: Option<f64>,
}

/// The times of one operation.
#[derive(Clone, Debug, Serialize)]
struct LatencyRow {
    what: &'static str,
    operation: &'static str,
    operations: usize,
    p50_ms: f64,
    p95_ms: f64,
    p99_ms: f64,
}

/// All rows.
#[derive(Debug, Serialize)]
pub(crate) struct SharingReport {
    rounds: usize,
    rows: Vec<SharingRow>,
    latencies: Vec<LatencyRow>,
    left_out: Vec<String>,
}

impl SharingReport {
    pub(crate) fn new(rounds: usize) -> SharingReport {
        SharingReport {
            rounds,
            rows: Vec::new(),
            latencies: Vec::new(),
            left_out: Vec::new(),
        }
    }

    /// Adds the contenders of one row; the first one is the reference of the ratios.
    pub(crate) fn add(&mut self, subject: &RowSubject, times: &[TurnTimes]) {
        let Some(first) = times.first() else { return };
        for line in times {
            let pairs = line.rounds.iter().zip(&first.rounds);
            let shares = sorted(pairs.map(|(own, first)| seconds(first) / seconds(own)));
            let own = sorted(line.rounds.iter().map(seconds));
            let second = own[own.len() / 2];
            self.rows.push(SharingRow {
                what: subject.what,
                value_bytes: subject.value_bytes,
                values: subject.values,
                clients: subject.clients,
                contender: line.name,
                megabytes_per_s: (subject.value_bytes * subject.values) as f64 / second / 1e6,
                calls_per_s: subject.values as f64 / second,
                share: [
                    shares[shares.len() / 2],
                    shares[0],
                    shares[shares.len() - 1],
                ],
                goal: line.goal,
            });
        }
        eprintln!("{}, {} bytes: done", subject.what, subject.value_bytes);
    }

    /// Adds the times of an operation, at least one.
    pub(crate) fn add_latency(
        &mut self,
        what: &'static str,
        operation: &'static str,
        times: Vec<Duration>,
    ) {
        let times = sorted(times.iter().map(seconds));
        let percentile = |percent: usize| times[(times.len() - 1) * percent / 100] * 1e3;
        self.latencies.push(LatencyRow {
            what,
            operation,
            operations: times.len(),
            p50_ms: percentile(50),
            p95_ms: percentile(95),
            p99_ms: percentile(99),
        });
    }

    /// Notes what could not be measured, and why.
    pub(crate) fn leave_out(&mut self, what: String) {
        eprintln!("{what}");
        self.left_out.push(what);
    }

    pub(crate) fn print(&self) {
        println!(
            "{:<14} {:>9} {:>7} {:<24} {:>9} {:>9}  share (lowest to highest) of {} rounds, goal",
            "what", "bytes", "clients", "contender", "MB/s", "calls/s", self.rounds
        );
        for row in &self.rows {
            let [median, lowest, highest] = row.share;
            let goal = match row.goal {
                Some(goal) if median < goal => format!("  goal {goal}: missed"),
                Some(goal) => format!("  goal {goal}: met"),
                None => String::new(),
            };
            println!(
                "{:<14} {:>9} {:>7} {:<24} {:>9.1} {:>9.0}  {median:.2} ({lowest:.2} to \
                 {highest:.2}){goal}",
                row.what,
                row.value_bytes,
                row.clients,
                row.contender,
                row.megabytes_per_s,
                row.calls_per_s,
            );
        }
        for row in &self.latencies {
            println!(
                "{:<8} {:<22} p50 {:>8.3} ms, p95 {:>8.3} ms, p99 {:>8.3} ms of {} operations",
                row.what, row.operation, row.p50_ms, row.p95_ms, row.p99_ms, row.operations
            );
        }
        for what in &self.left_out {
            println!("left out: {what}");
        }
    }

    pub(crate) fn json(&self) -> String {
        serde_json::to_string_pretty(self).unwrap()
    }
}

fn seconds(time: &Duration) -> f64 {
    time.as_secs_f64().max(1e-9)
}

fn sorted(values: impl Iterator<Item = f64>) -> Vec<f64> {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values
}
