//! What becomes of faults of the disk and of damaged files, which no restart heals: they are told, and nothing is done.

use std::time::Duration;

use host::{Host, Suite, facts_on_both_suites, faults};
use serde_json::Value;

const SOON: Duration = Duration::from_secs(60);
const CHECK: &str = "pg-health-check.service";

/// Waits until a fault is on record as a person's.
#[track_caller]
fn manual(host: &Host) -> Value {
    let mut seen = Vec::new();
    let record = host::poll_until(Duration::from_secs(180), || {
        seen = host.recoveries();
        seen.iter().find(|record| record["outcome"] == "manual").cloned()
    });
    record.unwrap_or_else(|| panic!("nothing was handed over: {seen:#?}"))
}

/// Waits until this fault is on record as a person's, and returns what was said to that person.
#[track_caller]
fn handed_over(host: &Host, class: &str) -> String {
    let record = manual(host);
    assert_eq!(record["fault"], class, "{record:#}");
    let journal = host.journal_of("pg-recover").text().to_string();
    let alarm = journal.lines().find(|line| line.contains("manual intervention required"));
    alarm.unwrap_or_else(|| panic!("nobody was told:\n{journal}")).to_owned()
}

/// How often the product has started the server.
fn starts(host: &Host) -> usize {
    let steps =
        host.recoveries().into_iter().flat_map(|record| record["steps"].as_array().cloned().unwrap_or_default());
    steps.filter(|step| step["step"] == "start").count()
}

/// A pass as the timer makes it, and what it found.
#[track_caller]
fn pass(host: &Host) -> Value {
    host.sh(&format!("systemctl reset-failed {CHECK}"));
    host.start_and_wait(CHECK);
    let text = host.file(&format!("/var/lib/pg-recovery/health/{}-main.json", host.version())).read();
    serde_json::from_str(&text).expect("the state is JSON")
}

#[track_caller]
fn check(state: &Value, name: &str) -> (String, String) {
    let checks = state["checks"].as_array().expect("there are checks");
    let check = checks.iter().find(|check| check["name"] == name).unwrap_or_else(|| panic!("no {name}: {state:#}"));
    (check["status"].as_str().unwrap_or_default().into(), check["message"].as_str().unwrap_or_default().into())
}

/// A host on which only this test makes checks, the first of which has been made.
fn settled(host: &Host) {
    host.sh("systemctl stop pg-health-check.timer");
    host.wait_until("no check runs", SOON, || host.state_of(CHECK) != "activating");
    host.wait_until_settled();
    assert_eq!(check(&pass(host), "damage").0, "ok");
}

/// Three checks say that this damage was met and none of them asks for a recovery; nobody touches the server.
#[track_caller]
fn only_told(host: &Host, class: &str, advice: &str, postmaster: i32) {
    for _ in 0..3 {
        let state = pass(host);
        let (status, message) = check(&state, "damage");
        assert_eq!(status, "critical", "{state:#}");
        assert!(message.contains(&format!("({class})")) && message.contains(advice), "{message}");
        assert_eq!(state["failures"], 0, "{state:#}");
    }
    assert!(host.start_and_wait("pg-recovery.service").success());
    host.journal_of("pg-recover").says("it runs and answers").does_not_say("step 1");
    assert_eq!(host.postmaster_pid(), postmaster);
    assert_eq!(host.recoveries().len(), 0);
    // A person says that it is repaired.
    host.sh("pg-recover reset");
    assert_eq!(check(&pass(host), "damage").0, "ok");
}

facts_on_both_suites! {
    fn a_server_on_a_file_system_that_turned_read_only_is_a_persons_and_loses_nothing(host: Host) {
        let disk = faults::s4_read_only::prepare(&host);
        host.settle();
        let ledger = host.ledger_of_fresh_sessions();
        ledger.wait_for_commits(20);
        faults::s4_read_only::inject(&disk);
        let told = handed_over(&host, "S4");
        assert!(told.contains("unmount it, check it (fsck), mount it"), "{told}");
        assert_eq!(starts(&host), 0);
        host.journal_of("pg-watchdog").does_not_say("restart 1 of");
        let (status, message) = check(&pass(&host), "disk_data");
        assert!(status == "critical" && message.contains("is read-only"), "{message}");
        // What was said is typed.
        let unit = host.unit();
        host.sh(&format!("timeout 60 systemctl stop {unit}; systemctl kill --signal=QUIT {unit}; true"));
        host.wait_until("nothing of it is left", SOON, || !host.run("pgrep -x postgres").success());
        disk.check_and_mount(&host);
        host.sh(&format!("systemctl start {unit}"));
        ledger.wait_for_commits_within(20, SOON);
        ledger.stop_and_check().assert_nothing_lost();
        assert_eq!(check(&pass(&host), "disk_data").0, "ok");
    }

    fn an_idle_server_on_a_read_only_file_system_is_told_and_not_touched(host: Host) {
        let disk = faults::s4_read_only::prepare(&host);
        host.settle();
        let postmaster = host.postmaster_pid();
        faults::s4_read_only::inject(&disk);
        let told = handed_over(&host, "S4");
        assert!(told.contains("Do not remount it unchecked"), "{told}");
        assert!(host.start_and_wait("pg-recovery.service").status != 0);
        assert_eq!(starts(&host), 0);
        assert!(host.is_alive(postmaster));
        let mounted = host.sh(&format!("grep ' {} ' /proc/mounts", host.data_directory()));
        assert!(mounted.contains(" ro,") || mounted.contains("emergency_ro"), "it was mounted anew: {mounted}");
    }

    fn a_server_killed_on_a_read_only_file_system_is_not_started_there(host: Host) {
        let disk = faults::s4_read_only::prepare(&host);
        host.settle();
        let postmaster = host.postmaster_pid();
        faults::s4_read_only::inject(&disk);
        host.signal(postmaster, host::Signal::SIGKILL);
        handed_over(&host, "S4");
        assert_eq!(starts(&host), 0);
        host.journal_of("pg-watchdog").says("it must not be started: the file system of").does_not_say("restart 1 of");
        assert!(host.start_and_wait("pg-recovery.service").status != 0);
        host.journal_of("pg-recover").says("still waiting for a person").does_not_say("step 1");
    }

    fn a_server_that_was_stopped_before_its_file_system_was_made_read_only_is_left_alone(host: Host) {
        let disk = host.move_data_to_disk(400);
        host.settle();
        host.operator_stops(&host.unit());
        host.sh(&format!("mount -o remount,ro {}", disk.mount_point()));
        assert!(host.start_and_wait("pg-recovery.service").success());
        host.journal_of("pg-recover").says("it was stopped on purpose, leaving it alone").does_not_say("manual intervention");
        host.sh(&format!("mount -o remount,rw {0} && systemctl start {1}", disk.mount_point(), host.unit()));
        host.wait_until_accepting(SOON);
        assert_eq!(host.recoveries().len(), 0);
    }

    fn a_tablespace_that_is_read_only_is_told_and_keeps_no_server_from_a_start(host: Host) {
        settled(&host);
        let disk = host.attach_disk("/far", 60);
        host.sh("install -d -o postgres -g postgres -m 700 /far/own");
        host.psql("CREATE TABLESPACE far LOCATION '/far/own'");
        host.psql("CREATE TABLE far TABLESPACE far AS SELECT 7 AS id");
        faults::s12_damaged_page::while_stopped(&host, &format!("mount -o remount,ro {}", disk.mount_point()));
        host.settle();
        let ledger = host.ledger_of_fresh_sessions();
        ledger.wait_for_commits(20);
        faults::p1_postmaster_killed::inject(&host);
        ledger.wait_for_commits_within(20, SOON);
        ledger.stop_and_check().assert_nothing_lost();
        assert_eq!(host.recoveries().last().expect("it is on record")["outcome"], "recovered");
        // The server opens its files to write, even to read from them.
        assert!(host.try_psql("SELECT id FROM far").stderr.contains("Read-only file system"));
        let state = pass(&host);
        let (status, message) = check(&state, "damage");
        assert!(status == "critical" && message.contains("(S4)"), "{message}");
        assert_eq!(state["failures"], 0);
    }

    fn a_server_whose_disk_takes_no_writes_is_started_once_at_most_and_loses_nothing(host: Host) {
        let disk = faults::s5_disk_error::prepare_writes(&host);
        host.settle();
        let ledger = host.ledger_of_fresh_sessions();
        ledger.wait_for_commits(20);
        faults::s5_disk_error::inject_writes(&host);
        // The kernel may give the file system up as well.
        let record = manual(&host);
        assert!(record["fault"] == "S4" || record["fault"] == "S5", "{record:#}");
        assert!(starts(&host) <= 1, "{:#?}", host.recoveries());
        let unit = host.unit();
        host.sh(&format!("timeout 60 systemctl stop {unit}; systemctl kill --signal=QUIT {unit}; true"));
        host.wait_until("nothing of it is left", SOON, || !host.run("pgrep -x postgres").success());
        disk.give_room(700);
        disk.check_and_mount(&host);
        host.sh(&format!("pg-recover reset; systemctl start {unit}"));
        ledger.wait_for_commits_within(20, SOON);
        ledger.stop_and_check().assert_nothing_lost();
    }

    fn a_server_whose_flushes_fail_is_started_once_at_most_and_comes_back_after_a_reset(host: Host) {
        faults::s5_disk_error::prepare_flushes(&host);
        host.settle();
        let ledger = host.ledger_of_fresh_sessions();
        ledger.wait_for_commits(20);
        faults::s5_disk_error::inject_flushes(&host);
        handed_over(&host, "S5");
        assert!(starts(&host) <= 1, "{:#?}", host.recoveries());
        host.journal_of("pg-recover").says("its disk fails").says("Never fsync = off");
        host.journal_of("pg-watchdog").does_not_say("restart 1 of");
        faults::s5_disk_error::end_flushes(&host);
        host.sh("pg-recover reset");
        ledger.wait_for_commits_within(20, SOON);
        ledger.stop_and_check().assert_nothing_lost();
    }

    fn a_server_that_begins_anew_for_ever_is_a_persons_and_comes_back_with_its_disk(host: Host) {
        faults::s5_disk_error::prepare_flushes(&host);
        host.settle();
        let ledger = host.ledger_of_fresh_sessions();
        ledger.wait_for_commits(20);
        let postmaster = host.postmaster_pid();
        faults::s5_disk_error::inject_flushes_of(&host, "ledger");
        let told = handed_over(&host, "S5");
        assert!(told.contains("journalctl -k"), "{told}");
        assert_eq!((host.postmaster_pid(), starts(&host)), (postmaster, 0));
        faults::s5_disk_error::end_flushes(&host);
        ledger.wait_for_commits_within(20, SOON);
        ledger.stop_and_check().assert_nothing_lost();
    }

    fn a_table_that_cannot_be_read_from_its_disk_is_told_and_nothing_is_restarted(host: Host) {
        settled(&host);
        let _disk = faults::s5_disk_error::inject_reads(&host);
        host.wait_until_accepting(SOON);
        let postmaster = host.postmaster_pid();
        let answer = host.try_psql("SELECT sum(id) FROM far");
        assert!(answer.stderr.contains("Input/output error"), "{answer}");
        only_told(&host, "S5", "Copy ", postmaster);
    }

    fn a_damaged_page_is_told_and_nothing_is_restarted(host: Host) {
        host.psql("CREATE TABLE goods AS SELECT generate_series(1, 50000) AS id");
        settled(&host);
        faults::s12_damaged_page::inject(&host, "goods", 7);
        host.wait_until_accepting(SOON);
        let postmaster = host.postmaster_pid();
        // Nobody has met it.
        assert_eq!(check(&pass(&host), "damage").0, "ok");
        let answer = host.try_psql("SELECT sum(id) FROM goods");
        assert!(answer.stderr.contains("invalid page in block 7"), "{answer}");
        only_told(&host, "S12", "pg-backup restore --latest --to", postmaster);
        assert!(!host.try_psql("SELECT sum(id) FROM goods").success(), "somebody has thrown the page away");
    }

    fn a_checksum_that_fails_is_told_also_when_the_log_does_not_say(host: Host) {
        let (data, checksums) = (host.data_directory(), host.main_cluster().program("pg_checksums"));
        faults::s12_damaged_page::while_stopped(&host, &format!("runuser -u postgres -- {checksums} --enable -D {data}"));
        host.wait_until_accepting(SOON);
        host.psql("CREATE TABLE goods AS SELECT generate_series(1, 50000) AS id");
        settled(&host);
        faults::s12_damaged_page::inject_bit_rot(&host, "goods", 7);
        host.wait_until_accepting(SOON);
        let postmaster = host.postmaster_pid();
        assert!(!host.try_psql("SET log_min_messages = 'panic'; SELECT sum(id) FROM goods").success());
        only_told(&host, "S12", "checksums that failed: 1", postmaster);
    }

    fn an_index_page_that_was_never_written_is_told_with_what_makes_it_anew(host: Host) {
        host.psql("CREATE TABLE goods AS SELECT generate_series(1, 50000) AS id");
        host.psql("CREATE INDEX goods_id ON goods (id)");
        settled(&host);
        faults::s12_damaged_page::inject_zeros(&host, "goods_id", 1);
        host.wait_until_accepting(SOON);
        let postmaster = host.postmaster_pid();
        let answer = host.try_psql("SET enable_seqscan = off; SELECT id FROM goods WHERE id = 1");
        assert!(answer.stderr.contains("unexpected zero page"), "{answer}");
        only_told(&host, "S13", "REINDEX INDEX CONCURRENTLY", postmaster);
        host.psql("REINDEX INDEX CONCURRENTLY goods_id");
        assert_eq!(host.psql("SET enable_seqscan = off; SELECT id FROM goods WHERE id = 1"), "1");
    }

    fn a_table_that_lost_its_end_or_its_file_is_told_and_nothing_is_restarted(host: Host) {
        host.psql("CREATE TABLE short AS SELECT generate_series(1, 50000) AS id");
        host.psql("CREATE INDEX short_id ON short (id)");
        host.psql("CREATE TABLE gone AS SELECT generate_series(1, 50000) AS id");
        // What the server does with its files itself is no damage.
        host.psql("CREATE TABLE vacuumed AS SELECT generate_series(1, 50000) AS id");
        host.sh("runuser -u postgres -- psql -X -c 'ANALYZE' -c 'DELETE FROM vacuumed WHERE id > 100' -c 'VACUUM vacuumed' -c 'CREATE DATABASE other'");
        settled(&host);
        let databases = 3;
        for _ in 0..databases {
            assert_eq!(check(&pass(&host), "files").0, "ok");
        }
        // Before anybody has met it.
        faults::s15_short_file::inject(&host, "short");
        host.wait_until_accepting(SOON);
        let told = (0..=databases).map(|_| check(&pass(&host), "files")).last().expect("it was looked at");
        assert!(told.0 == "warning" && told.1.contains("public.short of database postgres has 8192 bytes"), "{told:?}");
        let answer = host.try_psql("SET enable_seqscan = off; SET enable_bitmapscan = off; SELECT id FROM short WHERE id = 49000");
        assert!(answer.stderr.contains("read only 0 of 8192 bytes"), "{answer}");
        only_told(&host, "S15", "new rows would be put where", host.postmaster_pid());
        host.psql("DROP TABLE short");
        let (path, away) = faults::s16_missing_file::inject(&host, "gone");
        host.wait_until_accepting(SOON);
        let told = (0..=databases).map(|_| check(&pass(&host), "files")).last().expect("it was looked at");
        assert!(told.0 == "critical" && told.1.contains("public.gone of database postgres is not there"), "{told:?}");
        let answer = host.try_psql("SELECT sum(id) FROM gone");
        assert!(answer.stderr.contains("could not open file"), "{answer}");
        only_told(&host, "S16", "make no empty file in its place", host.postmaster_pid());
        assert!(!host.file(&path).exists());
        host.sh(&format!("mv {away} {path}"));
        assert_eq!(host.psql("SELECT count(*) FROM gone"), "50000");
        let told = (0..=databases).map(|_| check(&pass(&host), "files")).last().expect("it was looked at");
        assert_eq!(told.0, "ok", "{told:?}");
    }

    fn a_damaged_catalog_is_a_persons_at_once_and_other_databases_are_served_on(host: Host) {
        host.psql("CREATE DATABASE other");
        host.settle();
        faults::s17_damaged_catalog::inject(&host);
        let postmaster = host.postmaster_pid();
        let told = handed_over(&host, "S17");
        assert!(told.contains("Keep a copy of"), "{told}");
        assert_eq!((host.postmaster_pid(), starts(&host)), (postmaster, 0));
        host.sh("runuser -u postgres -- psql -X -d other -c 'SELECT 1'");
        let (status, message) = check(&pass(&host), "damage");
        assert!(status == "critical" && message.contains("(S17)"), "{message}");
        // The fault goes on, and so does the silence about it.
        assert!(host.start_and_wait("pg-recovery.service").status != 0);
        host.journal_of("pg-recover").says("still waiting for a person");
        assert_eq!(host.recoveries().len(), 1);
    }

    fn a_killed_server_with_a_damaged_catalog_is_started_for_the_databases_that_work(host: Host) {
        host.psql("CREATE DATABASE other");
        host.settle();
        faults::s17_damaged_catalog::inject_map(&host);
        handed_over(&host, "S17");
        let postmaster = host.postmaster_pid();
        faults::p1_postmaster_killed::inject(&host);
        host.wait_until("the other database is served again", SOON, || {
            host.run("runuser -u postgres -- psql -X -d other -c 'SELECT 1'").success()
        });
        assert_ne!(host.postmaster_pid(), postmaster);
    }

    fn wal_or_a_version_that_does_not_fit_is_for_a_person_and_is_not_tried_twice(suite: Suite) {
        for name in ["WAL of the last checkpoint and the evidence lost", "base backup restored", "library of another build", "another major version", "less memory"] {
            faults::staged().find(|fault| fault.name.contains(name)).expect("there is such a fault").run(suite);
        }
    }

    fn a_server_that_speaks_another_language_is_understood(suite: Suite) {
        let host = Host::boot_beside(suite, host::WITH_MORE);
        host.sh("localedef -i de_DE -f UTF-8 de_DE.UTF-8");
        host.sh(&format!("echo \"lc_messages = 'de_DE.UTF-8'\" >>{}/postgresql.conf", host.configuration_directory()));
        // What its collector writes is read as well.
        host.psql("ALTER SYSTEM SET logging_collector = on");
        faults::s12_damaged_page::make_goods(&host);
        host.sh(&format!("systemctl restart {}", host.unit()));
        host.settle();
        let log = format!("cat {}/log/*.log", host.data_directory());
        faults::s12_damaged_page::inject(&host, "goods", 7);
        host.wait_until_accepting(SOON);
        host.wait_until_settled();
        host.start_and_wait("pg-health-check.service");
        host.try_psql("SELECT sum(id) FROM goods");
        assert!(host.sh(&log).contains("FEHLER:  ungültige Seite in Block 7"), "{}", host.sh(&log));
        host.start_and_wait("pg-health-check.service");
        let seen = host.json(&format!("cat /var/lib/pg-recovery/health/{}-main.json", host.version()));
        let damage = seen["checks"].as_array().expect("there are checks").iter().find(|c| c["name"] == "damage");
        assert_eq!(damage.expect("damage is looked for")["status"], "critical", "{seen:#}");
        // A shutdown that a person wants is none that is undone, in whichever language.
        host.as_postgres(&format!("{} stop -m immediate -D {}", host.main_cluster().program("pg_ctl"), host.data_directory()));
        host.wait_for_journal("pg-watchdog", "was stopped with an immediate shutdown", SOON);
        assert!(host.sh(&log).contains("sofortige"), "{}", host.sh(&log));
    }

    fn a_full_log_volume_is_told_and_healing_does_without_the_log(host: Host) {
        let _disk = faults::s3_log_disk_full::inject(&host);
        settled(&host);
        let ledger = host.ledger_of_fresh_sessions();
        ledger.wait_for_commits(20);
        let postmaster = host.postmaster_pid();
        let state = pass(&host);
        let (status, message) = check(&state, "disk_log");
        assert!(status == "critical" && message.contains("the log volume at /var/log/postgresql"), "{message}");
        assert_eq!(state["failures"], 0);
        assert!(host.start_and_wait("pg-recovery.service").success());
        assert_eq!((host.postmaster_pid(), host.recoveries().len()), (postmaster, 0));
        faults::p1_postmaster_killed::inject(&host);
        ledger.wait_for_commits_within(20, SOON);
        ledger.stop_and_check().assert_nothing_lost();
        assert_eq!(host.recoveries().last().expect("it is on record")["outcome"], "recovered");
        host.sh("test -s /var/log/postgresql/rest");
    }

    fn a_full_tablespace_is_told_and_everybody_else_is_served_on(host: Host) {
        settled(&host);
        let ledger = host.ledger_of_fresh_sessions();
        let _disk = faults::s1_tablespace_full::inject(&host);
        let postmaster = host.postmaster_pid();
        let name = format!("disk_tablespace_{}", host.psql("SELECT oid FROM pg_tablespace WHERE spcname = 'far'"));
        for _ in 0..3 {
            let state = pass(&host);
            assert_eq!((check(&state, &name).0.as_str(), state["failures"].as_u64()), ("critical", Some(0)));
            assert_eq!(check(&state, "damage").0, "ok");
        }
        assert!(host.start_and_wait("pg-recovery.service").success());
        ledger.wait_for_commits(20);
        assert_eq!((host.postmaster_pid(), host.recoveries().len()), (postmaster, 0));
        ledger.stop_and_check().assert_nothing_lost();
    }

    fn what_shrinks_or_removes_files_on_purpose_and_what_clients_write_is_no_damage(host: Host) {
        settled(&host);
        host.psql("CREATE TABLE goods AS SELECT generate_series(1, 100000) AS id");
        for statement in [
            "DELETE FROM goods WHERE id > 10",
            "VACUUM goods",
            "VACUUM FULL goods",
            "TRUNCATE goods",
            "DROP TABLE goods",
            "CREATE DATABASE brief",
            "DROP DATABASE brief",
        ] {
            host.psql(statement);
        }
        host.psql("ALTER SYSTEM SET log_statement = 'all'");
        host.psql("SELECT pg_reload_conf()");
        host.wait_until("a statement is in the log", SOON, || {
            host.psql("SELECT 'PANIC:  invalid page in block 7 of relation base/5/16391'");
            host.server_log().contains("LOG:  statement: SELECT 'PANIC:  invalid page")
        });
        assert!(!host.try_psql("SELECT 'ERROR:  could not read block 7: Input/output error', 1/0").success());
        host.sh("mkdir /cd && mount -t tmpfs -o ro,mode=1777 cd /cd");
        assert!(host.try_psql("COPY (SELECT 1) TO '/cd/x'").stderr.contains("Read-only file system"));
        assert!(host.try_psql("SELECT pg_read_file('base/1/nothing')").stderr.contains("No such file"));
        // The visibility map heals itself.
        host.psql("CREATE TABLE seen AS SELECT generate_series(1, 50000) AS id");
        host.psql("VACUUM seen");
        let map = format!("{}_vm", faults::s12_damaged_page::file_of(&host, "seen"));
        host.psql("CHECKPOINT");
        faults::s12_damaged_page::while_stopped(
            &host,
            &format!("head -c 8192 /dev/zero | tr '\\0' '\\252' | dd of={map} bs=1 conv=notrunc status=none"),
        );
        host.wait_until_accepting(SOON);
        host.psql("DELETE FROM seen WHERE id < 100");
        assert!(host.server_log().contains("zeroing out page"), "{}", host.server_log());
        let state = pass(&host);
        assert_eq!((check(&state, "damage").0.as_str(), state["failures"].as_u64()), ("ok", Some(0)));
        assert_eq!(host.recoveries().len(), 0);
    }
}
