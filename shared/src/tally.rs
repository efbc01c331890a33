//! How often faults were healed, and how long that took.
//!
//! What is counted for ever must not begin anew when the history does: `recoveries-before.json` has the sums of the lines
//! that are gone, brought up to date by whoever rotates the history (`record`), under its lock.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::record::{self, Record};
use crate::state;

/// Upper bounds of the classes of durations, in milliseconds; what took longer is in one more.
pub const BOUNDS: [u64; 12] = [100, 250, 500, 1000, 2500, 5000, 10_000, 30_000, 120_000, 300_000, 1_800_000, 3_600_000];

/// The recoveries of one cluster from one class of faults with one outcome.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub struct Sum {
    pub cluster: String,
    pub fault: String,
    pub outcome: String,
    pub count: u64,
    /// All of them together.
    pub ms: u64,
    /// How many of them took as long as each class of durations says.
    pub durations: [u64; BOUNDS.len() + 1],
    /// Over in time, and not.
    pub met: u64,
    pub missed: u64,
}

#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub struct Sums {
    /// The last recovery that is in it.
    last: String,
    pub sums: Vec<Sum>,
}

impl Sums {
    /// All recoveries that there ever were: those on record, and those whose lines are gone.
    pub fn with(records: &[Record]) -> Self {
        let mut all = Self::read(&path(&record::path()));
        records.iter().for_each(|record| all.add(record));
        all
    }

    fn read(path: &Path) -> Self {
        state::read(path, 1 << 20).ok().and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default()
    }

    /// Before lines of the history at `history` go. Those that were counted before its writer was killed are not again.
    pub(crate) fn keep(history: &Path, records: &[Record]) -> std::io::Result<()> {
        let path = path(history);
        let mut all = Self::read(&path);
        if records.last().is_none_or(|last| last.id == all.last) {
            return Ok(());
        }
        records.iter().for_each(|record| all.add(record));
        state::replace(&path, &serde_json::to_vec(&all)?, 0o644)
    }

    fn add(&mut self, record: &Record) {
        self.last.clone_from(&record.id);
        let is_its =
            |sum: &Sum| (&sum.cluster, &sum.fault, &sum.outcome) == (&record.cluster, &record.fault, &record.outcome);
        let at = self.sums.iter().position(is_its).unwrap_or_else(|| {
            let (cluster, fault) = (record.cluster.clone(), record.fault.clone());
            self.sums.push(Sum { cluster, fault, outcome: record.outcome.clone(), ..Sum::default() });
            self.sums.len() - 1
        });
        let sum = &mut self.sums[at];
        sum.count += 1;
        sum.ms += record.downtime_ms;
        sum.durations[BOUNDS.partition_point(|bound| *bound < record.downtime_ms)] += 1;
        sum.met += u64::from(record.target_met == Some(true));
        sum.missed += u64::from(record.target_met == Some(false));
    }
}

fn path(history: &Path) -> PathBuf {
    history.with_file_name("recoveries-before.json")
}

/// What is on record of one class of faults.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Tally {
    pub recovered: usize,
    pub failed: usize,
    pub manual: usize,
    pub declined: usize,
    /// Of those that were not declined; `None` when there are none.
    pub success_rate: Option<f64>,
    /// Of those that were over in the time that such a fault may take.
    pub target_rate: Option<f64>,
    /// How long it took until those that recovered had.
    pub median_ms: Option<u64>,
    pub worst_ms: Option<u64>,
}

impl Tally {
    /// What was left alone was not tried.
    pub fn tried(&self) -> usize {
        self.recovered + self.failed + self.manual
    }

    pub fn of<'a>(records: impl IntoIterator<Item = &'a Record>) -> Self {
        let (mut tally, mut took, mut met, mut judged) = (Tally::default(), Vec::new(), 0, 0);
        for record in records {
            match record.outcome.as_str() {
                "recovered" => {
                    tally.recovered += 1;
                    took.push(record.downtime_ms);
                }
                "failed" => tally.failed += 1,
                "manual" => tally.manual += 1,
                _ => tally.declined += 1,
            }
            judged += usize::from(record.target_met.is_some());
            met += usize::from(record.target_met == Some(true));
        }
        took.sort_unstable();
        let rate = |part: usize, whole: usize| (whole > 0).then(|| part as f64 / whole as f64);
        tally.success_rate = rate(tally.recovered, tally.tried());
        tally.target_rate = rate(met, judged);
        tally.median_ms = took.get(took.len() / 2).copied();
        tally.worst_ms = took.last().copied();
        tally
    }

    pub fn by_fault(records: &[Record]) -> BTreeMap<&str, Tally> {
        let mut faults: BTreeMap<&str, Vec<&Record>> = BTreeMap::new();
        for record in records {
            faults.entry(&record.fault).or_default().push(record);
        }
        faults.into_iter().map(|(fault, records)| (fault, Tally::of(records))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(id: &str, outcome: &str, downtime_ms: u64) -> Record {
        let target_met = (outcome != "declined").then_some(outcome == "recovered");
        let (id, cluster, fault) = (id.into(), "16/main".into(), "P1".into());
        Record { id, cluster, fault, outcome: outcome.into(), downtime_ms, target_met, ..Record::default() }
    }

    #[test]
    fn a_tally_has_rates_of_what_was_tried() {
        let records = [("recovered", 900), ("recovered", 100), ("manual", 5), ("declined", 5), ("recovered", 40_000)]
            .map(|(outcome, ms)| record("x", outcome, ms));
        let tally = Tally::of(&records);
        assert_eq!((tally.tried(), tally.declined, tally.success_rate), (4, 1, Some(0.75)));
        assert_eq!((tally.median_ms, tally.worst_ms, tally.target_rate), (Some(900), Some(40_000), Some(0.75)));
        assert_eq!(Tally::of(&[]), Tally::default());
    }

    #[test]
    fn what_is_gone_from_the_history_is_counted_once() {
        let folder = std::env::temp_dir().join(format!("pg-recovery-tally-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let history = folder.join("recoveries.jsonl");
        let records = [record("a", "recovered", 100), record("b", "recovered", 101), record("c", "manual", 9_999_999)];
        for _ in 0..2 {
            Sums::keep(&history, &records).unwrap();
        }
        let kept = Sums::read(&path(&history));
        let counted: Vec<_> = kept.sums.iter().map(|sum| (sum.outcome.as_str(), sum.count, sum.ms, sum.met)).collect();
        assert_eq!(counted, [("recovered", 2, 201, 2), ("manual", 1, 9_999_999, 0)]);
        assert_eq!(kept.sums[0].durations[..3], [1, 1, 0]);
        assert_eq!(kept.sums[1].durations[BOUNDS.len()], 1);
        Sums::keep(&history, &[record("d", "manual", 1)]).unwrap();
        assert_eq!(Sums::read(&path(&history)).sums[1].count, 2);
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
