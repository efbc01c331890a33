//! What the server tells about itself: connections, ages, archiver, slots, prepared transactions, configuration files.

use shared::client::{Refusal, Rows, Session};
use shared::config::Health;
use shared::health::Status;

use crate::probe::Budget;
use crate::score::{Finding, word};

/// Each statement returns rows that begin with its tag, so that all of them can be asked in one round trip.
const STATEMENTS: &[(&str, &str)] = &[
    (
        // A commit that waits for a synchronous standby shows as SyncRep (manual, table 28.4).
        "connections",
        "SELECT 'connections', count(*) FILTER (WHERE backend_type = 'client backend'), \
         current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int \
         - coalesce(nullif(current_setting('reserved_connections', true), '')::int, 0), \
         count(*) FILTER (WHERE wait_event = 'SyncRep' AND state_change < clock_timestamp() - interval '10 s') \
         FROM pg_stat_activity",
    ),
    (
        "xid_age",
        "(SELECT 'xid_age', age(datfrozenxid), datname, current_setting('autovacuum_freeze_max_age') \
         FROM pg_database ORDER BY 2 DESC LIMIT 1)",
    ),
    (
        "multixact_age",
        "(SELECT 'multixact_age', mxid_age(datminmxid), datname, \
         current_setting('autovacuum_multixact_freeze_max_age') FROM pg_database ORDER BY 2 DESC LIMIT 1)",
    ),
    (
        // Who sees rows as they were longest ago, so that VACUUM cannot freeze what came later (manual, 24.1.5). Only asked
        // when autovacuum has begun to fight for ids.
        "xmin",
        "SELECT 'xmin', what, age FROM (\
         SELECT format('the session with PID %s of %s in database %s (%s, in its transaction since %s)', pid, usename, datname, \
         coalesce(state, backend_type), xact_start::timestamp(0)) AS what, greatest(age(backend_xmin), age(backend_xid)) AS age \
         FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND backend_type <> 'autovacuum worker' \
         UNION ALL SELECT format('replication slot %s', slot_name), greatest(age(xmin), age(catalog_xmin)) FROM pg_replication_slots \
         UNION ALL SELECT format('the prepared transaction %L of %s in database %s', gid, owner, database), age(transaction) \
         FROM pg_prepared_xacts) holders WHERE age IS NOT NULL AND (SELECT max(age(datfrozenxid)) FROM pg_database) \
         > current_setting('autovacuum_freeze_max_age')::bigint ORDER BY age DESC LIMIT 1",
    ),
    (
        "archiver",
        // A command that hangs never fails: what waits tells.
        "SELECT 'archiver', last_failed_wal, extract(epoch FROM clock_timestamp() - last_failed_time)::bigint, \
         coalesce(last_failed_time > coalesce(last_archived_time, '-infinity'), false), \
         (SELECT extract(epoch FROM clock_timestamp() - min(modification))::bigint FROM pg_ls_archive_statusdir() \
         WHERE name LIKE '%.ready') FROM pg_stat_archiver WHERE current_setting('archive_mode') <> 'off'",
    ),
    (
        "slots",
        "SELECT 'slots', slot_name, active, wal_status, pg_wal_lsn_diff(CASE WHEN pg_is_in_recovery() \
         THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_lsn() END, restart_lsn)::bigint \
         FROM pg_replication_slots",
    ),
    (
        // How far WAL is written, and how far the stream of pg-backup has received it.
        "stream",
        "SELECT 'stream', pg_wal_lsn_diff(pg_current_wal_lsn(), '0/0')::bigint, \
         max(pg_wal_lsn_diff(write_lsn, '0/0'))::bigint, count(*) > 0 FROM pg_stat_replication \
         WHERE application_name = 'pg_recovery_stream' HAVING NOT pg_is_in_recovery()",
    ),
    (
        "prepared",
        "SELECT 'prepared', gid, owner, database, extract(epoch FROM clock_timestamp() - prepared)::bigint \
         FROM pg_prepared_xacts ORDER BY prepared LIMIT 1",
    ),
    (
        // NULL where the cluster has no data checksums (manual, pg_stat_database).
        "damage",
        "SELECT 'damage', sum(checksum_failures), \
         extract(epoch FROM clock_timestamp() - max(checksum_last_failure))::bigint, \
         string_agg(coalesce(datname, 'shared catalogs'), ', ') FILTER (WHERE checksum_failures > 0) \
         FROM pg_stat_database",
    ),
    // Before "pending": reading the files marks what differs from the running server.
    (
        "settings",
        "SELECT 'settings', sourcefile, sourceline, name, error FROM pg_file_settings WHERE error IS NOT NULL",
    ),
    ("pending", "SELECT 'pending', name FROM pg_settings WHERE pending_restart"),
    ("hba", "SELECT 'hba', line_number, error FROM pg_hba_file_rules WHERE error IS NOT NULL"),
];

#[derive(Clone, Debug, Default)]
pub struct Catalog {
    rows: Vec<Row>,
    failures: Vec<(&'static str, Refusal)>,
}

#[derive(Clone, Debug)]
pub struct Row(Vec<Option<String>>);

impl Row {
    pub fn text(&self, column: usize) -> Option<&str> {
        self.0.get(column)?.as_deref()
    }

    pub fn number(&self, column: usize) -> Option<f64> {
        self.text(column)?.parse().ok()
    }

    pub fn is_true(&self, column: usize) -> bool {
        self.text(column) == Some("t")
    }
}

impl Catalog {
    pub async fn ask(session: &Session, budget: &Budget) -> Catalog {
        let all = STATEMENTS.iter().map(|(_, sql)| *sql).collect::<Vec<_>>().join("; ");
        let mut catalog = Catalog::default();
        match session.query(&all, budget.left()).await {
            Ok(rows) => catalog.add(rows),
            // One of them fails, as pg_hba_file_rules does without the file: the others still have an answer.
            Err(Refusal::Server(..)) => {
                for (tag, sql) in STATEMENTS {
                    match session.query(sql, budget.left()).await {
                        Ok(rows) => catalog.add(rows),
                        Err(refusal) => catalog.failures.push((tag, refusal)),
                    }
                }
            }
            Err(refusal) => {
                catalog.failures = STATEMENTS.iter().map(|(tag, _)| (*tag, refusal.clone())).collect();
            }
        }
        catalog
    }

    fn add(&mut self, rows: Rows) {
        self.rows.extend(rows.into_iter().map(Row));
    }

    pub fn rows<'a>(&'a self, tag: &'a str) -> impl Iterator<Item = &'a Row> {
        self.rows.iter().filter(move |row| row.text(0) == Some(tag))
    }

    pub fn failure(&self, tag: &str) -> Option<&Refusal> {
        self.failures.iter().find(|(t, _)| *t == tag).map(|(_, refusal)| refusal)
    }

    /// Commits that have been waiting for a synchronous standby for 10 s and longer.
    pub fn waiting_for_standby(&self) -> u64 {
        self.rows("connections").find_map(|row| row.number(3)).unwrap_or_default() as u64
    }

    #[cfg(test)]
    pub fn of(rows: &[&[&str]]) -> Catalog {
        let row = |row: &&[&str]| Row(row.iter().map(|text| Some(text.to_string())).collect());
        Catalog { rows: rows.iter().map(row).collect(), failures: Vec::new() }
    }
}

pub fn judge(catalog: &Catalog, config: &Health) -> Vec<Finding> {
    let mut findings: Vec<Finding> = Vec::new();
    for tag in ["connections", "xid_age", "multixact_age", "archiver", "slots", "prepared_transactions"] {
        if let Some(why) = catalog.failure(tag.trim_end_matches("_transactions")) {
            findings.push(Finding::unknown(tag, format!("could not be asked: {why}")));
        }
    }
    findings.extend(catalog.rows("connections").filter_map(|row| connections(row, config)));
    for (tag, what) in [("xid_age", "transaction id"), ("multixact_age", "multixact id")] {
        findings.extend(catalog.rows(tag).filter_map(|row| age(tag, what, row, catalog, config)));
    }
    if catalog.failure("archiver").is_none() {
        findings.push(archiver(catalog));
    }
    if catalog.failure("slots").is_none() {
        findings.push(slots(catalog, config));
    }
    if catalog.failure("prepared").is_none() {
        findings.push(prepared(catalog, config));
    }
    findings
}

fn connections(row: &Row, config: &Health) -> Option<Finding> {
    let (used, slots) = (row.number(1)?, row.number(2)?.max(1.0));
    let percent = 100.0 * used / slots;
    let message = format!("{used} of {slots} connection slots are used");
    let limits = (config.connections_warn.into(), config.connections_fail.into());
    let (end, next) = ("no connection slot will be left".into(), sql(WHO_IS_CONNECTED));
    Some(Finding::level("connections", percent, "%", limits, message).left(slots - used, "slots", end, next))
}

const WHO_IS_CONNECTED: &str = "SELECT usename, application_name, state, count(*) FROM pg_stat_activity \
     GROUP BY 1, 2, 3 ORDER BY 4 DESC LIMIT 9";

/// What to type for a statement of ours.
pub fn sql(statement: &str) -> String {
    format!("psql -d postgres -c \"{statement}\"")
}

/// The server takes no more ids when it is so near to the end (varsup.c, SetTransactionIdLimit; multixact.c,
/// SetMultiXactIdLimit).
const LAST_AGE: f64 = (1u64 << 31) as f64 - 3e6;

fn age(name: &str, what: &str, row: &Row, catalog: &Catalog, config: &Health) -> Option<Finding> {
    let age = row.number(1)?;
    let mut message = format!("the oldest {what} is {age} transactions old, in database {}", row.text(2)?);
    if age >= config.xid_age_warn.into() {
        message.push_str(&what_to_do(name, age, catalog));
    }
    let finding = Finding::level(name, age, "", (config.xid_age_warn.into(), config.xid_age_fail.into()), message);
    // Up to this age it is left to grow, however fast; only then autovacuum sees to it (manual, 24.1.5).
    if row.number(3).is_none_or(|cared_for| age < cared_for) {
        return Some(finding);
    }
    let (end, next) = (format!("no {what} will be left, and nothing can be written"), FREEZE.into());
    Some(finding.left(LAST_AGE - age, "ids", end, next))
}

/// VACUUM with its privileges does all that single-user mode does, and the server goes on answering.
fn what_to_do(name: &str, age: f64, catalog: &Catalog) -> String {
    let holder = catalog.rows("xmin").next().filter(|_| name == "xid_age");
    // One that is much younger keeps nothing of what is that old.
    let holder = holder.filter(|row| row.number(2).is_some_and(|held| held > age / 2.0));
    let first = holder.and_then(|row| row.text(1)).map(|holder| {
        format!(
            "; {holder} keeps VACUUM from freezing what came after it: end that first, as whoever it belongs to says"
        )
    });
    format!("{}; type while it runs: {FREEZE}", first.unwrap_or_default())
}

const FREEZE: &str = "vacuumdb -a -F";

/// How long finished WAL may wait for the archive, in seconds. A burst of writes takes a while to be archived; after an hour
/// whoever restores from the archive loses more than an hour, and pg_wal has grown by as much.
const ARCHIVE_WAIT: (f64, f64) = (900.0, 3600.0);

fn archiver(catalog: &Catalog) -> Finding {
    let name = "archiver";
    let Some(row) = catalog.rows(name).next() else { return Finding::ok(name, "WAL is not archived") };
    let waits = row.number(4).unwrap_or_default();
    let message = if row.is_true(3) {
        let (wal, ago) = (row.text(1).unwrap_or("?"), row.text(2).unwrap_or("?"));
        format!(
            "archiving fails, last {ago}s ago with {wal}; the oldest WAL has waited for {waits}s, and all of it stays until \
             this works again: run the command by hand, {}",
            sql("SHOW archive_command")
        )
    } else if row.number(4).is_some() {
        format!("the oldest WAL that is not archived yet has waited for {waits}s")
    } else {
        "no WAL waits for the archive".into()
    };
    let finding = Finding::level(name, waits, "s", ARCHIVE_WAIT, message);
    if row.is_true(3) { finding.at_least(Status::Warning) } else { finding }
}

fn slots(catalog: &Catalog, config: &Health) -> Finding {
    let mut worst: Option<(f64, &str, bool)> = None;
    for row in catalog.rows("slots") {
        let kept = row.number(4).unwrap_or_default();
        if worst.is_none_or(|(most, ..)| kept > most) {
            worst = Some((kept, row.text(1).unwrap_or("?"), row.is_true(2)));
        }
    }
    let Some((kept, name, active)) = worst else {
        return Finding::ok("slots", "there is no replication slot");
    };
    let mut message = format!("{:.0} MB of WAL are kept for slot {name}", kept / f64::from(1 << 20));
    if !active {
        let drop = sql(&format!("SELECT pg_drop_replication_slot('{name}')"));
        message.push_str(&format!(", which nobody reads; if its reader will never come back: {drop}"));
    }
    // max_slot_wal_keep_size ends what a slot keeps: at the next checkpoint, or already (manual, pg_replication_slots).
    let ended = |status| catalog.rows("slots").find(|row| row.text(3) == Some(status)).and_then(|row| row.text(1));
    let mut least = Status::Ok;
    if let Some(slot) = ended("lost") {
        message = format!(
            "slot {slot} has lost WAL that its reader needs: build the reader anew, or drop the slot; {message}"
        );
        least = Status::Critical;
    } else if let Some(slot) = ended("unreserved") {
        message = format!("slot {slot} loses WAL that its reader needs at the next checkpoint; {message}");
        least = Status::Warning;
    }
    let limits = (config.slot_warn as f64, config.slot_fail as f64);
    Finding::level("slots", kept, "B", limits, message).at_least(least)
}

/// Whoever prepares transactions ends them in seconds, so nobody comes back for one that is older than the first level by
/// this much (4 h by default), and the table bloat that it causes grows.
const PREPARED_FAIL: u32 = 16;

fn prepared(catalog: &Catalog, config: &Health) -> Finding {
    let name = "prepared_transactions";
    let Some(row) = catalog.rows("prepared").next() else {
        return Finding::ok(name, "there is no prepared transaction");
    };
    let age = row.number(4).unwrap_or_default();
    let of = |column| row.text(column).unwrap_or("?");
    let (gid, owner, database) = (of(1), of(2), of(3));
    let message = format!(
        "transaction \"{gid}\" of {owner} in database {database} has been prepared for {age}s; it holds locks and keeps VACUUM \
         back. What prepared it knows which is right: psql -d {} -c {}, or ROLLBACK",
        word(database),
        word(&format!("COMMIT PREPARED '{}'", gid.replace('\'', "''")))
    );
    let warn = config.prepared_transaction_warn.as_secs_f64();
    Finding::level(name, age, "s", (warn, warn * f64::from(PREPARED_FAIL)), message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status_of(rows: &[&[&str]], name: &str) -> Status {
        let findings = judge(&Catalog::of(rows), &Health::default());
        findings.iter().find(|f| f.check.name == name).map(|f| f.check.status).expect(name)
    }

    #[test]
    fn connection_slots_have_two_levels() {
        for (used, status) in [("10", Status::Ok), ("75", Status::Warning), ("90", Status::Critical)] {
            assert_eq!(status_of(&[&["connections", used, "100", "0"]], "connections"), status);
        }
    }

    #[test]
    fn ages_are_judged_for_both_kinds_of_ids() {
        assert_eq!(status_of(&[&["xid_age", "600000000", "app"]], "xid_age"), Status::Warning);
        assert_eq!(status_of(&[&["multixact_age", "1000000000", "app"]], "multixact_age"), Status::Critical);
    }

    #[test]
    fn an_age_is_told_with_what_to_type_and_who_keeps_it() {
        let message = |rows: &[&[&str]]| {
            let findings = judge(&Catalog::of(rows), &Health::default());
            findings.into_iter().find(|f| f.check.name == "xid_age").expect("there").check.message
        };
        let (old, young) = (["xid_age", "600000000", "app"], ["xid_age", "100", "app"]);
        let held = |age| ["xmin", "replication slot x", age];
        let with = message(&[&old, &held("599999990")]);
        assert!(with.contains("; replication slot x keeps VACUUM") && with.ends_with("vacuumdb -a -F"), "{with}");
        for without in [message(&[&old]), message(&[&old, &held("1000")])] {
            assert!(!without.contains("keeps VACUUM") && without.ends_with("vacuumdb -a -F"), "{without}");
        }
        assert!(!message(&[&young, &held("99")]).contains("vacuum"));
    }

    #[test]
    fn what_fails_or_is_forgotten_has_two_levels() {
        assert_eq!(status_of(&[], "archiver"), Status::Ok);
        let archiver =
            |fails, waits| status_of(&[&["archiver", "000000010000000000000003", "9", fails, waits]], "archiver");
        assert_eq!([archiver("f", "9"), archiver("t", "9")], [Status::Ok, Status::Warning]);
        assert_eq!([archiver("f", "900"), archiver("f", "3600")], [Status::Warning, Status::Critical]);
        assert_eq!(archiver("t", "3600"), Status::Critical);
        let prepared = |age| status_of(&[&["prepared", "g", "o", "d", age]], "prepared_transactions");
        assert_eq!(
            [prepared("899"), prepared("900"), prepared("14400")],
            [Status::Ok, Status::Warning, Status::Critical]
        );
    }

    #[test]
    fn the_slot_that_keeps_most_is_named() {
        let (small, big) = ("1000", "20000000000");
        let rows: &[&[&str]] = &[&["slots", "a", "t", "reserved", small], &["slots", "b", "f", "extended", big]];
        let finding = slots(&Catalog::of(rows), &Health::default());
        assert_eq!(finding.check.status, Status::Warning);
        assert!(finding.check.message.contains("for slot b, which nobody reads; if"), "{}", finding.check.message);
        let status =
            |status| status_of(&[&["slots", "a", "f", status, "9"], &["slots", "b", "t", "reserved", big]], "slots");
        assert_eq!([status("unreserved"), status("lost")], [Status::Warning, Status::Critical]);
        assert_eq!(status_of(&[], "slots"), Status::Ok);
    }

    #[test]
    fn a_question_without_an_answer_is_not_known() {
        let failures = vec![("slots", Refusal::Timeout), ("prepared", Refusal::Timeout)];
        let findings = judge(&Catalog { rows: Vec::new(), failures }, &Health::default());
        let unknown: Vec<_> =
            findings.iter().filter(|f| f.check.status == Status::Unknown).map(|f| f.check.name.as_str()).collect();
        assert_eq!(unknown, ["slots", "prepared_transactions"]);
    }
}
