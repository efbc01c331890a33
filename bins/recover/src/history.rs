//! What was done so far: all of it as a list, or one recovery told to a person who was woken by it.

use std::fmt::Write;

use shared::exit::Code;
use shared::record::{self, Record};
use shared::story::{Story, spoken, target};
use shared::tally::Tally;
use shared::{Error, Result, evidence};

/// `history`
pub fn list(clusters: &[String], json: bool) -> Result<Code> {
    let records = of(clusters);
    let mut text = String::new();
    for record in &records {
        if json {
            text.push_str(&serde_json::to_string(record).map_err(std::io::Error::other)?);
            text.push('\n');
            continue;
        }
        let steps: Vec<String> = record.steps.iter().map(|s| format!("{} {}", s.step, s.outcome)).collect();
        let _ = writeln!(
            text,
            "{}  {}  {}  {}  {}ms{}  by {}  {}  {}",
            record.started,
            record.cluster,
            record.fault,
            record.outcome,
            record.downtime_ms,
            target(record).map(|target| format!(" ({target})")).unwrap_or_default(),
            record.detected_by,
            steps.join(", "),
            record.id
        );
    }
    if !json {
        text.push_str(&rates(&records));
    }
    shared::log::print(&text)?;
    Ok(Code::Ok)
}

/// `explain [ID]`: the last one when none is named.
pub fn explain(words: &[String], clusters: &[String], json: bool) -> Result<Code> {
    let mut records = of(clusters);
    let found = match words {
        [] => records.pop(),
        [id] => records.into_iter().rfind(|record| record.id == *id),
        [_, word, ..] => {
            return Err(Error::usage(format!("unexpected argument \"{word}\"")).hint("Name one recovery at a time."));
        }
    };
    let Some(record) = found else {
        let what = words.first().map_or("any recovery".into(), |id| format!("recovery {id}"));
        return Err(Error::usage(format!("cannot find {what} in the history"))
            .hint("pg-recover history lists all that are on record, each with its ID at the end of its line."));
    };
    let story = Story::of(record);
    let text = match json {
        true => serde_json::to_string_pretty(&story).map_err(std::io::Error::other)? + "\n",
        false => tell(&story),
    };
    shared::log::print(&text)?;
    Ok(Code::Ok)
}

fn of(clusters: &[String]) -> Vec<Record> {
    record::all().into_iter().filter(|r| clusters.is_empty() || clusters.contains(&r.cluster)).collect()
}

fn tell(story: &Story) -> String {
    let record = &story.record;
    let mut text = format!(
        "Recovery {}\n{} found that cluster {} was not well at {}.\n\nWhat it saw:\n",
        record.id, record.detected_by, record.cluster, record.started
    );
    for line in &record.evidence {
        let _ = writeln!(text, "  - {line}");
    }
    let _ = write!(text, "\nWhat that means: {} (priority {})\n  {}\n", record.fault, story.priority, story.rule);
    if record.steps.is_empty() {
        text.push_str("\nNothing was tried.\n");
    } else {
        text.push_str("\nWhat was tried, the gentlest first, looking again after each step:\n");
    }
    for (number, step) in record.steps.iter().enumerate() {
        let _ = writeln!(text, "  {}. {}: {} after {}", number + 1, step.step, step.outcome, spoken(step.ms));
        let _ = writeln!(text, "     {}", step.why);
    }
    let _ = writeln!(text, "\nHow it ended: {}\n  {}", record.outcome, story.ending());
    let _ = writeln!(text, "\nWhat is left to do:\n  {}", story.next);
    let _ = writeln!(text, "\nIn the journal: journalctl PG_RECOVERY_ID={}", record.id);
    let folder = evidence::directory(&record.cluster).join(&record.id);
    if folder.exists() {
        let _ = writeln!(text, "Files as they were before anything was changed: {}", folder.display());
    }
    text
}

/// How many of each fault were healed, and how long that took.
fn rates(records: &[Record]) -> String {
    let mut text = String::new();
    for (fault, tally) in Tally::by_fault(records).iter().filter(|(_, tally)| tally.tried() > 0) {
        let median = tally.median_ms.map(|ms| format!(", median time {}", spoken(ms))).unwrap_or_default();
        let _ = writeln!(text, "{fault}: {} healed of {}{median}", tally.recovered, tally.tried());
    }
    if text.is_empty() { text } else { format!("\n{text}") }
}

#[cfg(test)]
mod tests {
    use shared::record::StepRecord;

    use super::*;

    fn record(fault: &str, outcome: &str, downtime_ms: u64) -> Record {
        let step = |step: &str, outcome: &str, ms| StepRecord {
            step: step.into(),
            outcome: outcome.into(),
            ms,
            why: format!("why {step}"),
            ..StepRecord::default()
        };
        Record {
            id: "20261122T015732Z-16-main-4711".into(),
            cluster: "16/main".into(),
            fault: fault.into(),
            detected_by: "pg-watchdog".into(),
            evidence: vec!["the postmaster was stopped".into()],
            steps: vec![step("continue", "failed", 3010), step("stop-fast", "ok", 40)],
            outcome: outcome.into(),
            started: "2026-11-22T01:57:32Z".into(),
            finished: "2026-11-22T01:57:37Z".into(),
            downtime_ms,
            target_met: Some(downtime_ms < 30_000),
        }
    }

    #[test]
    fn a_story_has_who_what_why_and_what_is_left() {
        let story = tell(&Story::of(record("P2", "recovered", 5200)));
        let mut rest = story.as_str();
        for part in [
            "20261122T015732Z-16-main-4711",
            "pg-watchdog found that cluster 16/main",
            "2026-11-22T01:57:32Z",
            "- the postmaster was stopped",
            "P2 (priority 0)",
            "only then killed",
            "1. continue: failed after 3s",
            "why continue",
            "2. stop-fast: ok after 40ms",
            "recovered",
            "5.2s after this began",
            "target 30s met",
            "Nothing at once.",
            "journalctl PG_RECOVERY_ID=20261122T015732Z-16-main-4711",
        ] {
            let (_, after) = rest.split_once(part).unwrap_or_else(|| panic!("no {part:?} in its place:\n{story}"));
            rest = after;
        }
        let failed = tell(&Story::of(record("P2", "failed", 65_000)));
        assert!(
            failed.contains("pg-recover reset --cluster 16/main") && failed.contains("target 30s missed"),
            "{failed}"
        );
        let story = tell(&Story::of(record("C1", "recovered", 900)));
        assert!(story.contains("the file .broken-20261122T015732Z-16-main-4711 beside it"), "{story}");
    }

    #[test]
    fn what_was_healed_is_counted_by_fault() {
        let records = [
            record("P1", "recovered", 900),
            record("P1", "failed", 99_000),
            record("C1", "manual", 5),
            record("P1", "recovered", 700),
            record("P1", "recovered", 125_000),
            record("O1", "declined", 5),
        ];
        assert_eq!(rates(&records), "\nC1: 0 healed of 1\nP1: 3 healed of 4, median time 900ms\n");
        assert_eq!(rates(&[]), "");
    }

    #[test]
    fn a_line_of_an_earlier_version_is_told_too() {
        let old = r#"{"id":"x","cluster":"16/main","fault":"P1","outcome":"recovered","downtime_ms":7,
            "steps":[{"step":"start","outcome":"ok","ms":7,"why":"y"}]}"#;
        let old: Record = serde_json::from_str(old).unwrap();
        assert_eq!(target(&old), None);
        assert!(tell(&Story::of(old)).contains("1. start: ok after 7ms"));
    }
}
