//! How well recoveries went, for `/health/recovery-stats`.

use std::collections::BTreeMap;

use serde::Serialize;
use shared::record::Record;
use shared::tally::Tally;

#[derive(Serialize)]
pub struct Stats<'a> {
    /// When the oldest recovery that is on record began; what was before is not in here.
    pub since: Option<&'a str>,
    pub all: Tally,
    pub clusters: BTreeMap<&'a str, Tally>,
    pub faults: BTreeMap<&'a str, Tally>,
}

pub fn of(records: &[Record]) -> Stats<'_> {
    let mut clusters: BTreeMap<&str, Vec<&Record>> = BTreeMap::new();
    for record in records {
        clusters.entry(&record.cluster).or_default().push(record);
    }
    Stats {
        since: records.first().map(|record| record.started.as_str()),
        all: Tally::of(records),
        clusters: clusters.into_iter().map(|(cluster, records)| (cluster, Tally::of(records))).collect(),
        faults: Tally::by_fault(records),
    }
}
