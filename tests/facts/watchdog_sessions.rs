//! What pg-watchdog does about sessions that harm all the others, and what it leaves alone.

use std::time::Duration;

use host::{Host, Suite, facts_on_both_suites, faults};

const SOON: Duration = Duration::from_secs(60);
const ME: &str = "pg-watchdog";
/// A name that has to be quoted, whichever way it is looked at.
const ROLE: &str = r#"app'"; %I \ -- Ä"#;

fn connection_limit(host: &Host) -> String {
    host.psql(&format!("SELECT rolconnlimit FROM pg_roles WHERE rolname = $role${ROLE}$role$"))
}

fn sessions(host: &Host) -> u32 {
    let count = host.psql("SELECT count(*) FROM pg_stat_activity WHERE application_name = 'storm'");
    count.parse().expect("a number")
}

fn steps(record: &serde_json::Value) -> Vec<&str> {
    record["steps"].as_array().into_iter().flatten().filter_map(|step| step["step"].as_str()).collect()
}

facts_on_both_suites! {
    fn a_storm_gets_a_connection_limit_until_its_time_is_over_and_the_application_commits_again(host: Host) {
        host.wait_until_settled();
        faults::l1_connection_storm::prepare(&host, &[ROLE, "shop"]);
        host.psql(&format!("ALTER ROLE \"{}\" CONNECTION LIMIT 19", ROLE.replace('"', "\"\"")));
        faults::session::configure(&host, "connection_limit_for = \"20s\"");
        let postmaster = host.postmaster_pid();
        let ledger = host.ledger_of("shop");
        ledger.wait_for_commits(20);
        let storm = faults::l1_connection_storm::inject(&host, ROLE, 25);
        host.wait_for_journal(ME, "limit-connections ok", SOON);
        // Whatever happens to the program in between.
        host.sh("systemctl kill --signal=KILL pg-watchdog");
        let limited: i32 = connection_limit(&host).parse().expect("a number");
        assert!((1..17).contains(&limited), "{limited}");
        ledger.wait_for_commits_within(20, SOON);
        drop(storm);
        host.wait_until("the old limit is back", SOON, || connection_limit(&host) == "19");
        host.wait_for_journal(ME, "has its connection limit of 19 again", SOON);
        assert_eq!(host.postmaster_pid(), postmaster);
        let tally = ledger.stop_and_check();
        tally.assert_nothing_lost();
        host.publish_downtime("L1 connection storm", tally.longest_gap());
        // 10 s, and as much again for a loaded test machine.
        assert!(tally.longest_gap() < Duration::from_secs(20), "{:?}", tally.longest_gap());
    }

    fn leaked_sessions_are_only_spoken_of_or_ended_as_the_policy_says_and_who_works_or_rules_keeps_his(host: Host) {
        host.wait_until_settled();
        faults::l1_connection_storm::prepare(&host, &[ROLE, "shop"]);
        faults::session::configure(&host, "connection_storm = \"advise\"");
        let ledger = host.ledger_of("shop");
        ledger.wait_for_commits(20);
        let postmaster = host.postmaster_pid();
        let _rules = faults::l1_connection_storm::leak(&host, "postgres", 2);
        host.run_as_unit("works", "postgres", "PGAPPNAME=works exec psql -X -U shop -d postgres -c 'SELECT pg_sleep(600)'");
        host.wait_until("both are there", SOON, || {
            host.psql("SELECT count(*) FROM pg_stat_activity WHERE application_name IN ('works', 'storm')") == "3"
        });
        let theirs = "SELECT string_agg(pid::text, ' ' ORDER BY pid) FROM pg_stat_activity \
                      WHERE application_name = 'works' OR application_name = 'storm' AND usename = 'postgres'";
        let before = host.psql(theirs);
        // With these three and ours, 13 of them use up what is for everybody; nobody is left to come after those who go.
        let _leak = faults::l1_connection_storm::leak(&host, ROLE, 13);
        host.wait_for_journal(ME, "is left alone, for connection_storm is \"advise\"; else now: end", SOON);
        let held = sessions(&host);
        assert!(host.recoveries().is_empty());
        host.journal_of(ME).does_not_say("end-sessions");
        faults::session::configure(&host, "");
        host.wait_for_journal(ME, "has connection slots again", SOON);
        ledger.wait_for_commits_within(20, SOON);
        assert!(sessions(&host) < held, "{} of {held}", sessions(&host));
        assert_eq!((host.psql(theirs), host.postmaster_pid()), (before, postmaster));
        assert_eq!(connection_limit(&host), "-1");
        let record = &host.recoveries()[0];
        assert_eq!((&record["fault"], &record["outcome"], &record["detected_by"]), (&"L1".into(), &"recovered".into(), &ME.into()), "{record:#}");
        assert_eq!(steps(record), ["end-sessions"], "{record:#}");
        ledger.stop_and_check().assert_nothing_lost();
    }

    fn a_queue_for_locks_is_ended_at_its_cheapest_place_and_so_is_a_transaction_that_was_left_open(host: Host) {
        host.wait_until_settled();
        faults::l1_connection_storm::prepare(&host, &["shop"]);
        faults::session::configure(&host, "lock_wait = \"1s\"\nlock_waiters = 3\nidle_in_transaction_for = \"1s\"");
        let psql = |unit: &str, sql: &str| {
            let command = format!("PGAPPNAME={unit} exec psql -X -U shop -d postgres -c \"{sql}\"");
            host.run_as_unit(unit, "postgres", &command);
            let there = format!("SELECT count(*) FROM pg_stat_activity WHERE application_name = '{unit}' AND state = 'active'");
            host.wait_until("the session runs its statement", SOON, || host.psql(&there) == "1");
        };
        let waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'";
        let pid_of = |unit: &str| host.psql(&format!("SELECT pid FROM pg_stat_activity WHERE application_name = '{unit}'"));
        host.psql("SET ROLE shop; CREATE TABLE t (id int); INSERT INTO t VALUES (1)");
        psql("reader", "SELECT id, pg_sleep(600) FROM t");
        psql("ddl", "ALTER TABLE t ADD n int");
        for unit in ["one", "two", "three"] {
            psql(unit, "SELECT id FROM t");
        }
        // What it would do, and what a person may type instead.
        let advice = "is left alone, for lock_queue is \"advise\"; else now: 4 sessions wait, for up to";
        host.wait_for_journal(ME, advice, SOON);
        host.journal_of(ME).says(&format!("SELECT pg_cancel_backend({})", pid_of("ddl")));
        assert_eq!(host.psql(waiting), "4");
        faults::session::configure(&host, "lock_wait = \"1s\"\nlock_waiters = 3\nidle_in_transaction_for = \"1s\"\nlock_queue = \"act\"\nidle_in_transaction = \"act\"");
        let reader = pid_of("reader");
        host.wait_until("nobody waits", SOON, || host.psql(waiting) == "0");
        assert_eq!((pid_of("reader"), pid_of("ddl")), (reader, String::new()));
        host.run_as_unit("open", "postgres", "(echo 'BEGIN; DELETE FROM t;'; sleep 600) | PGAPPNAME=open psql -X -U shop -d postgres");
        host.wait_until("it is idle in its transaction", SOON, || {
            host.psql("SELECT state FROM pg_stat_activity WHERE application_name = 'open'") == "idle in transaction"
        });
        psql("writer", "UPDATE t SET id = 2");
        host.wait_until("nobody waits", SOON, || host.psql(waiting) == "0");
        host.wait_until("both are on record", SOON, || host.recoveries().len() == 2);
        let of = |record: &serde_json::Value| (record["fault"].clone(), record["outcome"].clone(), steps(record).join(","));
        let recoveries = host.recoveries();
        assert_eq!(of(&recoveries[0]), ("L3".into(), "recovered".into(), "cancel".into()), "{recoveries:#?}");
        assert_eq!(of(&recoveries[1]), ("L2".into(), "recovered".into(), "end-session".into()), "{recoveries:#?}");
        assert_eq!((pid_of("open"), host.psql("SELECT id FROM t")), (String::new(), "2".into()));
    }

    fn a_queue_for_a_lock_that_has_used_up_the_slots_is_ended_as_well(suite: Suite) {
        faults::staged().find(|fault| fault.class == "L3").expect("there is such a fault").run(suite);
    }

    fn a_statement_whose_temporary_files_fill_the_volume_is_cancelled_and_its_session_lives_on(host: Host) {
        host.wait_until_settled();
        faults::l1_connection_storm::prepare(&host, &["shop"]);
        let _disk = faults::l4_temporary_files::prepare(&host);
        faults::l4_temporary_files::inject(&host);
        host.wait_until("it is cancelled", SOON, || host.recoveries().len() == 1);
        let record = &host.recoveries()[0];
        assert_eq!((&record["fault"], &record["outcome"]), (&"L4".into(), &"recovered".into()), "{record:#}");
        assert_eq!(steps(record), ["cancel"], "{record:#}");
        assert_eq!(host.psql("SELECT state FROM pg_stat_activity WHERE application_name = 'spill'"), "idle");
        let (used, room) = faults::l4_temporary_files::space(&host);
        assert!(used < room * 9 / 10, "{used} of {room}");
    }
}
