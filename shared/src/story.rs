//! One recovery, told to a person: what is on record, with what is known of its class of faults.

use serde::Serialize;

use crate::fault::{self, Class};
use crate::record::Record;

#[derive(Serialize)]
pub struct Story {
    #[serde(flatten)]
    pub record: Record,
    pub priority: u8,
    pub target_ms: u64,
    /// What has to be seen for the name of this fault, and why it is repaired as it is.
    pub rule: &'static str,
    /// What is left to do.
    pub next: String,
}

impl Story {
    pub fn of(record: Record) -> Self {
        let class = fault::class(&record.fault);
        Story {
            priority: class.priority as u8,
            target_ms: class.priority.target().as_millis() as u64,
            rule: class.rule,
            next: next(&record, class),
            record,
        }
    }

    /// How it ended, in a sentence.
    pub fn ending(&self) -> String {
        let record = &self.record;
        let outcome = match record.outcome.as_str() {
            "recovered" => "The cluster accepts connections and commits again",
            "failed" => "It was not brought back",
            "manual" => "It was handed to a person",
            _ => "It was left to itself",
        };
        let target = target(record).map(|target| format!("; {target}")).unwrap_or_default();
        format!("{outcome}, {} after this began, at {}{target}.", spoken(record.downtime_ms), record.finished)
    }
}

fn next(record: &Record, class: &Class) -> String {
    let next = class.next.replace("-ID", &format!("-{}", record.id));
    match record.outcome.as_str() {
        "recovered" => format!("Nothing at once. {next}"),
        "failed" | "manual" => format!("{next} When it is repaired: pg-recover reset --cluster {}", record.cluster),
        _ => next,
    }
}

/// `target 30s met`
pub fn target(record: &Record) -> Option<String> {
    let target = fault::class(&record.fault).priority.target().as_millis() as u64;
    let met = record.target_met?;
    Some(format!("target {} {}", spoken(target), if met { "met" } else { "missed" }))
}

/// `40ms`, `5.2s`, `1min 5s`
pub fn spoken(ms: u64) -> String {
    match ms {
        0..1000 => format!("{ms}ms"),
        1000..60_000 => format!("{}.{}s", ms / 1000, ms % 1000 / 100).replace(".0s", "s"),
        _ if ms % 60_000 < 1000 => format!("{}min", ms / 60_000),
        _ => format!("{}min {}s", ms / 60_000, ms % 60_000 / 1000),
    }
}
