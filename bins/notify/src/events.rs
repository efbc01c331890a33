//! What the units of pg-recovery said in the journal since the last look: faults, how recoveries ended, what needs a person.

use std::process::Command;
use std::time::Duration;

use serde_json::Value;
use shared::clock::Stamp;
use shared::config::Severity;
use shared::log::{FAULT, MANUAL, OUTCOME};

/// Trusted fields: no other program can write a line that has these (systemd.journal-fields(7)).
const UNITS: [&str; 6] = [
    "_SYSTEMD_UNIT=pg-watchdog.service",
    "_SYSTEMD_UNIT=pg-recovery.service",
    "_SYSTEMD_UNIT=pg-health-check.service",
    "_SYSTEMD_UNIT=pg-backup.service",
    "_SYSTEMD_UNIT=pg-restore-drill.service",
    "_SYSTEMD_UNIT=pg-wal-stream.service",
];
const FIELDS: &str = "MESSAGE,MESSAGE_ID,PRIORITY,PG_CLUSTER,PG_RECOVERY_ID";
/// How far back the first look goes.
const FIRST: &str = "--since=-5min";

#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    pub cluster: String,
    /// `false`: it was healed.
    pub trouble: bool,
    pub severity: Severity,
    /// Somebody is needed.
    pub person: bool,
    pub at: String,
    pub text: String,
    pub recovery_id: String,
}

/// What was said behind `cursor`, the oldest first; `cursor` goes on. What does not fit into the answer comes next time.
pub fn since(cursor: &mut String) -> Vec<Event> {
    let ids = [FAULT, OUTCOME, MANUAL].map(|id| format!("MESSAGE_ID={id}"));
    let ask = |from: String| {
        let mut command = Command::new("journalctl");
        command.args(["--quiet", "--no-pager", "--all", "--output=json", &format!("--output-fields={FIELDS}"), &from]);
        shared::command::run(command.args(UNITS).args(&ids), Duration::from_secs(20))
    };
    // Not --after-cursor=: when that entry is gone, systemd 252 leaves out the first one behind it.
    let from = if cursor.is_empty() { FIRST.to_string() } else { format!("--cursor={cursor}") };
    let output = match ask(from) {
        // A cursor that is none.
        Ok(output) if !output.status.success() && !cursor.is_empty() => ask(FIRST.to_string()),
        other => other,
    };
    match output {
        Ok(output) if output.status.success() => read(&output.stdout, cursor),
        Ok(output) => {
            log::warn!("could not read the journal: {}", output.stderr.trim());
            Vec::new()
        }
        Err(why) => {
            log::warn!("could not read the journal: {why}");
            Vec::new()
        }
    }
}

fn read(text: &str, cursor: &mut String) -> Vec<Event> {
    let mut events = Vec::new();
    // The last line may be cut off.
    for entry in text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok()) {
        let field = |name: &str| field(&entry[name]);
        if std::mem::replace(cursor, field("__CURSOR")) != *cursor {
            events.extend(event(field));
        }
    }
    events
}

/// What has bytes in it that cannot be printed comes as a list of numbers.
fn field(value: &Value) -> String {
    let byte = |number: &Value| number.as_u64().and_then(|number| u8::try_from(number).ok());
    match value {
        Value::String(text) => text.clone(),
        Value::Array(bytes) => {
            String::from_utf8_lossy(&bytes.iter().filter_map(byte).collect::<Vec<u8>>()).into_owned()
        }
        _ => String::new(),
    }
}

fn event(field: impl Fn(&str) -> String) -> Option<Event> {
    // 3, err, and worse (syslog(3)).
    let is_error = field("PRIORITY").parse::<u8>().is_ok_and(|priority| priority <= 3);
    let id = field("MESSAGE_ID");
    let microseconds: f64 = field("__REALTIME_TIMESTAMP").parse().unwrap_or_default();
    let event = Event {
        cluster: field("PG_CLUSTER"),
        // A recovery that failed is an error.
        trouble: id != OUTCOME || is_error,
        severity: if is_error { Severity::Critical } else { Severity::Warning },
        // A warning of this kind is advice.
        person: id == MANUAL && is_error,
        at: Stamp { wall: microseconds / 1e6, ..Stamp::default() }.rfc3339(),
        text: field("MESSAGE"),
        recovery_id: field("PG_RECOVERY_ID"),
    };
    (!event.cluster.is_empty() && !event.text.is_empty()).then_some(event)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_become_events_and_a_torn_one_comes_next_time() {
        let entry = |cursor: &str, id: &str, priority: u8, text: &str| {
            format!(
                "{{\"__CURSOR\":\"{cursor}\",\"MESSAGE_ID\":\"{id}\",\"PRIORITY\":\"{priority}\",\
                 \"PG_CLUSTER\":\"15/main\",\"PG_RECOVERY_ID\":\"r\",\"MESSAGE\":\"{text}\"}}\n"
            )
        };
        let mut text = entry("a", FAULT, 4, "crashed") + &entry("b", OUTCOME, 4, "recovered");
        text += &(entry("c", OUTCOME, 3, "not recovered") + &entry("d", MANUAL, 3, "a person"));
        text += &entry("e", FAULT, 4, "torn")[..40];
        text = entry("x", FAULT, 4, "was read before") + &text;
        let mut cursor = String::from("x");
        let events = read(&text, &mut cursor);
        let seen: Vec<_> = events.iter().map(|e| (e.trouble, e.severity, e.person)).collect();
        use Severity::{Critical, Warning};
        assert_eq!(
            seen,
            [(true, Warning, false), (false, Warning, false), (true, Critical, false), (true, Critical, true)]
        );
        assert_eq!(cursor, "d");
        assert!(read("", &mut cursor).is_empty() && cursor == "d");
        assert_eq!(field(&serde_json::json!([101, 27, 115])), "e\u{1b}s");
    }
}
