//! What became of earlier tries, read from the history.
//!
//! A step that has failed its last three times for a fault is tried last, but only among alternatives: steps each of which
//! can do without the others, and none of which is harsher. Today these are the configuration files that may be put back
//! (`plan::restore`). The order of all others is what protects: a signal before a harsher one, a repair before the start
//! that relies on it.
//!
//! A step that has failed five times in a row is left out for an hour after the last of them, and then tried again. What
//! comes after it relies on it, so the ladder ends there and a person is told. Only the repairs in `MAY_REST` do so.
//!
//! Only what pg-recover itself has tried counts, on this cluster, since `pg-recover reset`.

use std::collections::HashMap;

use shared::clock;
use shared::record::Record;

const IS_HOPELESS: u32 = 3;
const RESTS: u32 = 5;
const COOL_DOWN: i64 = 3600;
/// No signal, for a harsher one would then come sooner, nor what spares a running server one; and no start, which every
/// check precedes and a server that was stopped waits for.
const MAY_REST: &[&str] = &[
    "set-lock-file-aside",
    "create-socket-directory",
    "release-ballast",
    "restore-control-file",
    "restore-mode",
    "restore-configuration",
    "renew-certificate",
];

#[derive(Clone, Debug, Default)]
pub struct Lessons {
    /// By fault, step and alternative.
    tries: HashMap<(String, String, String), Tries>,
    /// Seconds since 1970.
    now: i64,
}

#[derive(Clone, Debug, Default)]
struct Tries {
    /// In a row, up to the last one.
    failed: u32,
    last: String,
}

impl Lessons {
    /// `records` are the oldest first; `since` is the last reset.
    pub fn of(records: &[Record], cluster: &str, since: &str, now: i64) -> Lessons {
        let mut lessons = Lessons { now, ..Lessons::default() };
        let ours = |r: &&Record| r.cluster == cluster && r.detected_by != "pg-watchdog" && r.started.as_str() > since;
        for record in records.iter().filter(ours) {
            for (index, step) in record.steps.iter().enumerate() {
                let fault = if step.fault.is_empty() { &record.fault } else { &step.fault };
                let key = (fault.clone(), step.step.clone(), step.of.clone());
                let tries = lessons.tries.entry(key).or_default();
                // One that was carried out, and the server did not start or serve after it, did not help.
                let after =
                    record.steps.get(index + 1).filter(|next| ["start", "verify"].contains(&next.step.as_str()));
                let helped = step.outcome == "ok" && after.is_none_or(|next| next.outcome == "ok");
                tries.failed = if helped { 0 } else { tries.failed + 1 };
                tries.last.clone_from(&record.finished);
            }
        }
        lessons
    }

    /// It failed the last three times.
    pub fn is_hopeless(&self, fault: &str, step: &str, of: &str) -> bool {
        self.tries(fault, step, of).is_some_and(|tries| tries.failed >= IS_HOPELESS)
    }

    /// It failed five times in a row, the last time within the hour.
    pub fn rests(&self, fault: &str, step: &str, of: &str) -> bool {
        MAY_REST.contains(&step) && self.tries(fault, step, of).is_some_and(|tries| self.is_open(tries))
    }

    /// What is not tried for this fault now; for people.
    pub fn resting(&self, fault: &str) -> Vec<String> {
        let resting =
            self.tries.iter().filter(|((of_fault, step, of), _)| of_fault == fault && self.rests(fault, step, of));
        let line = |((_, step, of), tries): (&(String, String, String), &Tries)| {
            let of = if of.is_empty() { String::new() } else { format!(" of {of}") };
            format!(
                "{step}{of} failed {} times in a row, and is not tried again within 1h of {}",
                tries.failed, tries.last
            )
        };
        let mut lines: Vec<String> = resting.map(line).collect();
        lines.sort_unstable();
        lines
    }

    fn tries(&self, fault: &str, step: &str, of: &str) -> Option<&Tries> {
        self.tries.get(&(fault.to_string(), step.to_string(), of.to_string()))
    }

    fn is_open(&self, tries: &Tries) -> bool {
        // A clock that was set back makes no rest longer.
        let since = clock::seconds_of(&tries.last).map(|last| self.now - last);
        tries.failed >= RESTS && since.is_some_and(|since| (0..COOL_DOWN).contains(&since))
    }
}

#[cfg(test)]
mod tests {
    use shared::record::StepRecord;

    use super::*;

    /// 2026-11-22T02:00:00Z
    const NOW: i64 = 1_795_312_800;

    fn step(step: &str, of: &str, outcome: &str) -> StepRecord {
        StepRecord { step: step.into(), of: of.into(), outcome: outcome.into(), ..StepRecord::default() }
    }

    fn record(minute: u32, steps: Vec<StepRecord>) -> Record {
        let at = format!("2026-11-22T01:{minute:02}:00Z");
        Record {
            cluster: "16/main".into(),
            fault: "S7".into(),
            detected_by: "pg-recover".into(),
            started: at.clone(),
            finished: at,
            steps,
            ..Record::default()
        }
    }

    fn failures(minutes: std::ops::Range<u32>) -> Vec<Record> {
        minutes.map(|minute| record(minute, vec![step("restore-mode", "", "failed")])).collect()
    }

    fn learn(records: &[Record]) -> Lessons {
        Lessons::of(records, "16/main", "", NOW)
    }

    #[test]
    fn three_failures_make_it_hopeless_and_one_success_forgets_them() {
        let mut records = failures(0..3);
        assert!(learn(&records).is_hopeless("S7", "restore-mode", ""));
        assert!(!learn(&records[1..]).is_hopeless("S7", "restore-mode", ""));
        assert!(!learn(&records).is_hopeless("P1", "restore-mode", ""), "another fault");
        records.push(record(3, vec![step("restore-mode", "", "ok"), step("verify", "", "ok")]));
        assert!(!learn(&records).is_hopeless("S7", "restore-mode", ""));
    }

    #[test]
    fn the_breaker_opens_at_five_and_closes_half_after_an_hour() {
        let five = failures(10..15);
        assert!(!learn(&five[1..]).rests("S7", "restore-mode", ""));
        let open = learn(&five);
        assert!(open.rests("S7", "restore-mode", ""));
        let said = "restore-mode failed 5 times in a row, and is not tried again within 1h of 2026-11-22T01:14:00Z";
        assert_eq!(open.resting("S7"), [said]);
        assert!(open.resting("P1").is_empty());
        // The last one was at 01:14.
        let at = |now| Lessons::of(&five, "16/main", "", now).rests("S7", "restore-mode", "");
        assert!(at(NOW + 14 * 60 - 1) && !at(NOW + 14 * 60));
        assert!(!at(NOW - 3600), "a clock that was set back");
        // Half open: one more failure opens it for another hour.
        let six = [five.clone(), failures(50..51)].concat();
        assert!(Lessons::of(&six, "16/main", "", NOW + 40 * 60).rests("S7", "restore-mode", ""));
    }

    #[test]
    fn what_others_did_and_what_was_before_a_reset_teaches_nothing() {
        let mut records = failures(0..5);
        assert!(!Lessons::of(&records, "16/other", "", NOW).rests("S7", "restore-mode", ""));
        assert!(!Lessons::of(&records, "16/main", "2026-11-22T01:04:00Z", NOW).rests("S7", "restore-mode", ""));
        records[0].detected_by = "pg-watchdog".into();
        assert!(!learn(&records).rests("S7", "restore-mode", ""));
    }

    #[test]
    fn a_step_after_which_the_server_does_not_start_did_not_help() {
        let restore = |of| step("restore-configuration", of, "ok");
        let run = |minute| {
            let start = |outcome| step("start", "", outcome);
            record(minute, vec![restore("alter-system"), start("failed"), restore("settings"), start("ok")])
        };
        let lessons = learn(&[run(1), run(2), run(3)]);
        assert!(lessons.is_hopeless("S7", "restore-configuration", "alter-system"));
        assert!(!lessons.is_hopeless("S7", "restore-configuration", "settings"));
    }

    #[test]
    fn a_step_is_counted_for_the_fault_that_it_was_for() {
        let mut records = failures(0..3);
        for record in &mut records {
            record.steps[0].fault = "S9".into();
        }
        assert!(learn(&records).is_hopeless("S9", "restore-mode", ""));
        assert!(!learn(&records).is_hopeless("S7", "restore-mode", ""));
    }
}
