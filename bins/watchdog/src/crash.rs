//! The crash of one process of the server (P4): the postmaster resets the server itself, and nothing is done about it. What
//! was running is put on record; a loop is told to a person, who knows whether that statement, role or extension is needed.

use std::time::{Duration, Instant};

use shared::clock::Stamp;
use shared::log::{MANUAL, OUTCOME};
use shared::record::{self, Record};
use shared::terminals;

const LOOP: usize = 3;
const WINDOW: Duration = Duration::from_secs(600);
const STATEMENT_SHOWN: usize = 200;

#[derive(Clone, Debug, PartialEq)]
pub struct Crash {
    /// "server process (PID 4711) was terminated by signal 11: Segmentation fault"
    pub what: String,
    /// Without its literals, which may be anything; empty when the server does not say.
    pub statement: String,
    /// "app@shop", where log_line_prefix has it and the session has logged something.
    pub role: String,
}

/// Those of the last ten minutes.
#[derive(Debug, Default)]
pub struct Crashes(Vec<(Instant, Crash)>);

impl Crash {
    /// For people.
    pub fn evidence(&self) -> Vec<String> {
        let running =
            if self.statement.is_empty() { String::new() } else { format!("it was running: {}", self.statement) };
        [self.what.clone(), running, self.role.clone()].into_iter().filter(|line| !line.is_empty()).collect()
    }

    /// As the OOM killer ends processes.
    pub fn is_kill(&self) -> bool {
        self.what.contains(" by signal 9")
    }
}

impl Crashes {
    /// Puts the crashes in `log` on record. `killed` is what shows that the OOM killer was at work meanwhile; returns the last
    /// that it has ended.
    pub fn enter(&mut self, cluster: &str, log: &str, killed: Option<&str>) -> Option<Crash> {
        let mut of_memory = None;
        for crash in find(log) {
            let killed = killed.filter(|_| crash.is_kill());
            let fault = if killed.is_some() { "M1" } else { "P4" };
            let mut evidence = crash.evidence();
            evidence.extend(killed.map(|shown| format!("it was the OOM killer: {shown}")));
            log::warn!(MESSAGE_ID = OUTCOME, PG_CLUSTER = cluster, PG_FAULT = fault;
                "cluster {cluster}: {}; the server is back by itself, nothing is done", evidence.join("; "));
            let now = Stamp::now().rfc3339();
            record::append(&Record {
                id: record::new_id(cluster),
                cluster: cluster.into(),
                fault: fault.into(),
                detected_by: "pg-watchdog".into(),
                evidence,
                outcome: "declined".into(),
                started: now.clone(),
                finished: now,
                ..Record::default()
            });
            if killed.is_some() {
                of_memory = Some(crash);
            } else if let Some(text) = self.add(Instant::now(), crash) {
                let text = format!("cluster {cluster}: {text}");
                log::error!(MESSAGE_ID = MANUAL, PG_CLUSTER = cluster, PG_FAULT = "P4"; "{text}");
                terminals::tell("pg-watchdog", &text);
            }
        }
        of_memory
    }

    /// What to tell a person when this makes a loop; once for each.
    fn add(&mut self, now: Instant, crash: Crash) -> Option<String> {
        self.0.retain(|(at, _)| now.duration_since(*at) < WINDOW);
        self.0.push((now, crash));
        if self.0.len() < LOOP {
            return None;
        }
        let crashes: Vec<Crash> = std::mem::take(&mut self.0).into_iter().map(|(_, crash)| crash).collect();
        let common = |value: fn(&Crash) -> &str| {
            let first = value(crashes.first()?);
            (!first.is_empty() && crashes.iter().all(|crash| value(crash) == first)).then(|| first.to_string())
        };
        let statement = common(|crash| &crash.statement).map(|s| format!("; each time it was running: {s}"));
        let role = common(|crash| &crash.role).map(|role| format!("; each time for {role}"));
        Some(format!(
            "{LOOP} crashes of sessions in {}min, the last: {}{}{}. The server comes back by itself each time, and everybody \
             loses the connection. Find out what these statements have in common, such as an extension that was just updated; \
             ALTER ROLE name CONNECTION LIMIT 0 keeps a role away meanwhile",
            WINDOW.as_secs() / 60,
            crashes.last()?.what,
            statement.unwrap_or_default(),
            role.unwrap_or_default()
        ))
    }
}

/// In the server's own words (postmaster.c, LogChildExit), untranslated.
pub fn find(log: &str) -> Vec<Crash> {
    let mut crashes: Vec<Crash> = Vec::new();
    let mut lines = log.lines().peekable();
    while let Some(line) = lines.next() {
        let Some((_, what)) =
            line.split_once("LOG:  ").filter(|(_, what)| what.contains(") was terminated by signal "))
        else {
            continue;
        };
        let statement = lines.peek().and_then(|next| next.split_once("DETAIL:  Failed process was running: "));
        let statement = statement.map(|(_, statement)| without_literals(statement)).unwrap_or_default();
        let pid = what.split_once("(PID ").and_then(|(_, rest)| rest.split(')').next()).unwrap_or_default();
        crashes.push(Crash { what: what.into(), statement, role: role_of(log, pid) });
    }
    crashes
}

/// As Debian's log_line_prefix has it: "... [4711] app@shop ERROR: ...".
fn role_of(log: &str, pid: &str) -> String {
    let mark = format!("[{pid}] ");
    let words = log.lines().rev().filter_map(|line| line.split_once(&mark)?.1.split(' ').next());
    words.into_iter().find(|word| word.contains('@')).unwrap_or_default().into()
}

/// The statement as pg_stat_statements would show it, near enough: quoted text and numbers are not for our records.
fn without_literals(statement: &str) -> String {
    let mut text = String::new();
    let mut quoted = false;
    let mut last = ' ';
    for c in statement.chars() {
        let is_number = c.is_ascii_digit() && !last.is_alphanumeric() && last != '_';
        match c {
            '\'' => quoted = !quoted,
            _ if quoted => {}
            _ if is_number && last != '?' => text.push('?'),
            _ if c.is_ascii_digit() && text.ends_with('?') => {}
            _ => text.push(c),
        }
        if c == '\'' && quoted {
            text.push('?');
        }
        last = c;
    }
    text.chars().take(STATEMENT_SHOWN).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &str = "2026-11-25 13:00:00 UTC [812] app@shop ERROR:  division by zero\n\
        2026-11-25 13:00:01 UTC [700] LOG:  server process (PID 812) was terminated by signal 11: Segmentation fault\n\
        2026-11-25 13:00:01 UTC [700] DETAIL:  Failed process was running: SELECT crash('it''s secret', 42) FROM t1\n\
        2026-11-25 13:00:01 UTC [700] LOG:  terminating any other active server processes\n\
        2026-11-25 13:00:02 UTC [700] LOG:  checkpointer process (PID 9) was terminated by signal 9: Killed\n";

    #[test]
    fn what_crashed_and_what_it_was_running_is_read_without_its_literals() {
        let crashes = find(LOG);
        assert_eq!(crashes.len(), 2);
        assert_eq!(crashes[0].what, "server process (PID 812) was terminated by signal 11: Segmentation fault");
        assert_eq!(crashes[0].statement, "SELECT crash(??, ?) FROM t1");
        assert_eq!((crashes[0].role.as_str(), crashes[1].role.as_str()), ("app@shop", ""));
        assert_eq!(crashes[1].statement, "");
        assert!(find("LOG:  statement: SELECT 'x'\nLOG:  received fast shutdown request\n").is_empty());
    }

    #[test]
    fn one_crash_is_no_loop_and_three_are_told_with_what_they_have_in_common() {
        let crash = find(LOG).remove(0);
        let (mut crashes, now) = (Crashes::default(), Instant::now());
        assert_eq!(crashes.add(now, crash.clone()), None);
        assert_eq!(crashes.add(now + Duration::from_secs(300), crash.clone()), None);
        // The first is long past.
        assert_eq!(crashes.add(now + Duration::from_secs(700), crash.clone()), None);
        let told = crashes.add(now + Duration::from_secs(710), crash.clone()).unwrap();
        assert!(
            told.contains("each time it was running: SELECT crash(") && told.contains("each time for app@shop"),
            "{told}"
        );
        assert_eq!(crashes.add(now + Duration::from_secs(711), crash), None, "it has just been said");
    }
}
