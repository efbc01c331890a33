//! What becomes of each fault on a host where the package is installed and nobody helps.

use std::time::Duration;

use host::{Host, Ledger, Suite, facts_on_both_suites, faults};

const SOON: Duration = Duration::from_secs(60);
/// Three passes of the timer, a minute apart, and the recovery.
const THREE_CHECKS: Duration = Duration::from_secs(300);

/// A client that commits, on a host that is settled.
fn ledger_of(host: &Host) -> Ledger {
    host.wait_until_settled();
    let ledger = host.ledger_of_fresh_sessions();
    ledger.wait_for_commits(20);
    ledger
}

/// The client commits again, nothing is lost, and the last recovery on record is of this fault.
#[track_caller]
fn healed(host: &Host, ledger: Ledger, fault: &str, within: Duration) {
    ledger.wait_for_commits_within(20, within);
    let tally = ledger.stop_and_check();
    tally.assert_nothing_lost();
    host.wait_until("the recovery is on record", SOON, || !host.recoveries().is_empty());
    let record = host.recoveries().pop().expect("there is one");
    assert_eq!(record["fault"], fault, "{record:#}");
    assert_eq!(record["outcome"], "recovered", "{record:#}");
    host.publish_downtime(&format!("{fault} healed"), tally.longest_gap());
}

/// Loses the newest WAL segment in a crash, and waits until that is handed over. Returns the lost row's id and the copy's path.
#[track_caller]
fn lose_wal(host: &Host) -> (i64, String) {
    let before = host.recoveries().len();
    let lost =
        faults::s11_newest_wal_removed::inject(host, || faults::s11_newest_wal_removed::wait_until_recorded(host));
    host.wait_for_journal("pg-recover", "a start would lose commits", SOON);
    host.wait_until("it is on record", SOON, || {
        host.recoveries().iter().skip(before).any(|r| r["fault"] == "S11" && r["outcome"] == "manual")
    });
    lost
}

facts_on_both_suites! {
    fn a_killed_postmaster_is_back_at_once(host: Host) {
        let ledger = ledger_of(&host);
        faults::p1_postmaster_killed::inject(&host);
        healed(&host, ledger, "P1", SOON);
        host.journal_of("pg-recover").does_not_say("step");
    }

    fn a_stopped_postmaster_is_continued_and_no_session_is_lost(host: Host) {
        let ledger = ledger_of(&host);
        faults::session::open(&host, "kept", "SELECT pg_sleep(3600)");
        let session = faults::session::backend_of(&host, "kept");
        let postmaster = faults::p2_postmaster_stopped::inject(&host);
        healed(&host, ledger, "P2", SOON);
        assert_eq!(host.postmaster_pid(), postmaster, "it was continued, not restarted");
        assert!(host.is_alive(session), "a session was lost");
    }

    fn a_postmaster_stopped_while_it_is_being_started_is_continued(host: Host) {
        let ledger = ledger_of(&host);
        host.sh("systemctl stop pg-watchdog");
        // Some crash recovery makes the start last.
        faults::h2_long_crash_recovery::inject_by_kill(&host, 2);
        host.wait_for_state(&host.unit(), "failed", SOON);
        host.start("pg-recovery.service");
        let lock_file = host.file(&format!("{}/postmaster.pid", host.data_directory()));
        let has_pid = || lock_file.exists() && lock_file.read().lines().count() > 1;
        host.wait_until("a postmaster is there", SOON, has_pid);
        faults::p2_postmaster_stopped::inject(&host);
        // Not after start_timeout, a minute.
        ledger.wait_for_commits_within(20, Duration::from_secs(40));
        ledger.stop_and_check().assert_nothing_lost();
        host.journal_of("pg-recover").says("its postmaster was stopped by a signal");
    }

    fn all_processes_stopped_are_continued(host: Host) {
        let ledger = ledger_of(&host);
        let postmaster = host.postmaster_pid();
        faults::p2_all_processes_stopped::inject(&host);
        healed(&host, ledger, "P2", SOON);
        assert_eq!(host.postmaster_pid(), postmaster, "it was continued, not restarted");
    }

    fn a_stopped_checkpointer_is_continued_though_no_client_notices(host: Host) {
        let ledger = ledger_of(&host);
        let checkpointer = faults::p3_checkpointer_stopped::inject(&host);
        host.wait_until("it is healed", SOON, || !host.recoveries().is_empty());
        healed(&host, ledger, "P3", SOON);
        assert_ne!(host.state_of_process(checkpointer), Some('T'));
        host.psql("CHECKPOINT");
    }

    fn a_stopped_checkpointer_keeps_nobody_from_restarting_or_stopping_the_server(host: Host) {
        let ledger = ledger_of(&host);
        let (unit, postmaster) = (host.unit(), host.postmaster_pid());
        let in_the_same_moment = |command: &str| {
            // systemd itself tells what it stops in the middle of a start to go on.
            host.wait_for_state(&unit, "active", SOON);
            let checkpointer = faults::p3_checkpointer_stopped::pid(&host);
            host.sh(&format!("kill -STOP {checkpointer} && systemctl {command} {unit}"));
        };
        in_the_same_moment("restart --no-block");
        // pg_ctl gives up after a minute, and systemd ends the server hard.
        healed(&host, ledger, "P3", Duration::from_secs(40));
        assert_ne!(host.postmaster_pid(), postmaster, "it was not restarted");
        host.wait_until_settled();
        in_the_same_moment("stop");
        host.wait_until("that is on record", SOON, || host.recoveries().len() == 2);
        host.journal_of("pg-recover").says("its stop goes on");
        assert_eq!(host.cluster_state(), "shut down");
        assert_eq!(host.state_of(&unit), "inactive", "it was started again");
    }

    fn a_stale_an_empty_and_a_garbage_lock_file_after_a_power_cut_do_not_keep_it_down(host: Host) {
        let ledger = ledger_of(&host);
        for inject in [
            faults::p6_postmaster_pid_unusable::inject_stale,
            faults::p6_postmaster_pid_unusable::inject_empty,
            faults::p6_postmaster_pid_unusable::inject_garbage,
        ] {
            inject(&host);
            ledger.wait_for_commits_within(20, SOON);
        }
        ledger.stop_and_check().assert_nothing_lost();
    }

    fn a_recycled_pid_does_not_keep_it_down_and_its_new_owner_lives_on(host: Host) {
        let ledger = ledger_of(&host);
        let innocent = faults::p7_pid_recycled::inject_with_postgres_in_its_command_line(&host);
        healed(&host, ledger, "P7", SOON);
        assert!(host.is_alive(innocent));
    }

    fn a_removed_lock_file_is_put_back_and_nobody_notices(host: Host) {
        let ledger = ledger_of(&host);
        let file = host.file(&format!("{}/postmaster.pid", host.data_directory()));
        let before = file.read_bytes();
        let postmaster = faults::p8_postmaster_pid_removed::inject(&host);
        host.wait_until("the lock file is back", SOON, || file.exists());
        assert_eq!(file.read_bytes(), before);
        // Once a minute the server looks at its lock file; a second such look must find it content.
        ledger.wait_for_commits_within(400, Duration::from_secs(120));
        healed(&host, ledger, "P8", SOON);
        assert_eq!(host.postmaster_pid(), postmaster);
    }

    fn an_emptied_or_replaced_lock_file_is_put_back_and_nobody_notices(host: Host) {
        let ledger = ledger_of(&host);
        let file = host.file(&format!("{}/postmaster.pid", host.data_directory()));
        let (before, postmaster) = (file.read_bytes(), host.postmaster_pid());
        for inject in [faults::p8_postmaster_pid_removed::inject_emptied, faults::p8_postmaster_pid_removed::inject_replaced] {
            let healings = host.recoveries().len();
            inject(&host);
            host.wait_until("it is healed", SOON, || host.recoveries().len() > healings);
            assert_eq!(file.read_bytes(), before);
        }
        healed(&host, ledger, "P8", SOON);
        assert_eq!(host.postmaster_pid(), postmaster);
        assert_eq!(host.run(&format!("ls {}/postmaster.pid.*", host.data_directory())).status, 2, "litter");
    }

    fn orphans_of_a_dead_postmaster_are_ended(host: Host) {
        let ledger = ledger_of(&host);
        let orphan = faults::p9_orphan_backend::inject(&host);
        healed(&host, ledger, "P9", SOON);
        assert!(!host.is_alive(orphan));
    }

    fn an_unwritable_socket_directory_is_made_right(host: Host) {
        let ledger = ledger_of(&host);
        faults::p11_socket_directory::inject_unwritable(&host);
        healed(&host, ledger, "P11", SOON);
    }

    fn a_taken_port_is_nobodys_to_free_and_the_server_comes_back_when_it_is_free(host: Host) {
        let ledger = ledger_of(&host);
        let other = faults::p10_port_taken::inject(&host, &["127.0.0.1", "::1"]);
        let who = format!("perl (PID {other}) of squatter.service has 127.0.0.1:5432");
        host.wait_for_journal("pg-recover", &who, SOON);
        host.wait_until("it is on record", SOON, || host.recoveries().last().is_some_and(|r| r["fault"] == "P10"));
        assert_eq!(host.recoveries().last().expect("there is one")["outcome"], "manual");
        assert!(host.is_alive(other));
        host.sh("systemctl stop squatter");
        assert!(host.start_and_wait("pg-recovery.service").success());
        // With one of its addresses it starts, and says which one it has not.
        faults::p10_port_taken::inject(&host, &["127.0.0.1"]);
        host.wait_until_accepting(SOON);
        assert!(host.start_and_wait("pg-recovery.service").success());
        host.journal_of("pg-recover").says("it does not listen wherever it should: perl");
        ledger.wait_for_commits_within(20, SOON);
        ledger.stop_and_check().assert_nothing_lost();
    }

    fn a_missing_socket_directory_is_no_obstacle(host: Host) {
        let ledger = ledger_of(&host);
        faults::p11_socket_directory::inject_missing(&host);
        ledger.wait_for_commits_within(20, SOON);
        ledger.stop_and_check().assert_nothing_lost();
    }

    fn a_removed_socket_is_put_back_and_no_session_is_lost(host: Host) {
        let ledger = ledger_of(&host);
        faults::session::open(&host, "kept", "SELECT pg_sleep(3600)");
        let (session, postmaster) = (faults::session::backend_of(&host, "kept"), host.postmaster_pid());
        faults::p12_socket_removed::inject(&host);
        host.wait_until("it is healed", SOON, || !host.recoveries().is_empty());
        faults::p12_socket_removed::inject_with_its_directory(&host);
        host.wait_until("it is healed", SOON, || host.recoveries().len() > 1);
        healed(&host, ledger, "P12", SOON);
        assert!(host.is_alive(session) && host.postmaster_pid() == postmaster);
    }

    /// What `tests/soak` found: systemd waits for the pid file, which went with the directory.
    fn a_socket_directory_removed_while_systemd_waits_for_the_start_leaves_no_start_without_end(host: Host) {
        let ledger = ledger_of(&host);
        faults::p1_postmaster_killed::inject(&host);
        let waits = || host.is_accepting() && host.state_of(&host.unit()) == "activating" && !host.recoveries().is_empty();
        host.wait_until("it answers, and systemd still waits", SOON, waits);
        faults::p12_socket_removed::inject_with_its_directory(&host);
        host.wait_until("it is healed", SOON, || host.recoveries().len() > 1);
        healed(&host, ledger, "P12", SOON);
        host.wait_for_state(&host.unit(), "active", SOON);
    }

    fn a_socket_without_a_second_name_is_made_anew_by_a_restart_when_nobody_is_at_work(host: Host) {
        let ledger = ledger_of(&host);
        faults::session::open(&host, "busy", "SELECT pg_sleep(3600)");
        let (session, postmaster) = (faults::session::backend_of(&host, "busy"), host.postmaster_pid());
        faults::p12_socket_removed::inject_without_a_second_name(&host);
        host.wait_for_journal("pg-recover", "sessions at work: 1", SOON);
        assert_eq!(host.postmaster_pid(), postmaster, "somebody was at work");
        host.signal(session, host::Signal::SIGTERM);
        host.wait_until("the session has ended", SOON, || !host.is_alive(session));
        assert!(host.start_and_wait("pg-recovery.service").success());
        healed(&host, ledger, "P12", SOON);
        assert_ne!(host.postmaster_pid(), postmaster);
    }

    fn a_pg_control_lost_under_a_running_server_is_put_back_before_its_next_checkpoint(host: Host) {
        let ledger = ledger_of(&host);
        let postmaster = host.postmaster_pid();
        faults::s9_pg_control_missing::inject_while_it_runs(&host);
        healed(&host, ledger, "S9", SOON);
        host.psql("CHECKPOINT");
        assert_eq!(host.postmaster_pid(), postmaster);
    }

    fn a_pg_control_lost_with_the_power_is_put_back_and_nothing_is_lost(host: Host) {
        let ledger = ledger_of(&host);
        faults::s9_pg_control_missing::inject(&host);
        healed(&host, ledger, "S9", SOON);
    }

    fn a_damaged_pg_control_is_put_back_and_kept(host: Host) {
        let ledger = ledger_of(&host);
        faults::s9_pg_control_missing::inject_damage(&host);
        healed(&host, ledger, "S9", SOON);
        host.sh(&format!("test -s /var/lib/pg-recovery/evidence/{}-main/*/pg_control.damaged", host.version()));
    }

    fn a_wrong_mode_of_the_data_directory_is_put_right(host: Host) {
        let ledger = ledger_of(&host);
        let mode = host.file(&host.data_directory()).mode();
        faults::s7_data_directory_permissions::inject_mode(&host);
        healed(&host, ledger, "S7", SOON);
        assert_eq!(host.file(&host.data_directory()).mode(), mode);
    }

    fn a_wrong_owner_of_the_data_directory_is_put_right(host: Host) {
        let ledger = ledger_of(&host);
        faults::s7_data_directory_permissions::inject_owner(&host);
        healed(&host, ledger, "S7", SOON);
        assert_eq!(host.file(&host.data_directory()).owner(), host.uid_of("postgres"));
    }

    fn missing_folders_are_made_anew_only_when_they_are_empty_by_design(host: Host) {
        let ledger = ledger_of(&host);
        faults::s8_missing_folders::inject(&host, &["pg_notify", "pg_subtrans", "pg_dynshmem"]);
        healed(&host, ledger, "S8", SOON);
        assert_eq!(host.file(&format!("{}/pg_notify", host.data_directory())).mode() & 0o777, 0o700);
        faults::s8_missing_folders::inject(&host, &["pg_twophase", "pg_stat_tmp"]);
        host.wait_until("it is handed over", SOON, || host.recoveries().last().is_some_and(|r| r["outcome"] == "manual"));
        host.journal_of("pg-recover").says("pg_twophase; their content is part of the data");
        let is_missing = |name: &str| !host.file(&format!("{}/{name}", host.data_directory())).exists();
        assert!(is_missing("pg_twophase") && is_missing("pg_stat_tmp"));
    }

    fn a_file_of_somebody_else_is_told_with_the_command_that_gives_it_back(host: Host) {
        let ledger = ledger_of(&host);
        let path = faults::s7_data_directory_permissions::inject_owner_of_a_file(&host);
        let command = format!("chown --no-dereference postgres: {path}");
        host.wait_for_journal("pg-recover", &format!("{path} belongs to root, not to postgres"), SOON);
        host.journal_of("pg-recover").says(&command);
        assert_eq!(host.file(&path).owner(), 0);
        host.sh(&command);
        assert!(host.start_and_wait("pg-recovery.service").success());
        ledger.wait_for_commits_within(20, SOON);
        ledger.stop_and_check().assert_nothing_lost();
    }

    fn files_that_the_server_cannot_read_after_a_crash_are_made_right(host: Host) {
        let ledger = ledger_of(&host);
        host.sh("systemctl stop pg-watchdog");
        faults::p1_postmaster_killed::inject(&host);
        host.wait_for_state(&host.unit(), "failed", SOON);
        host.sh(&format!("cd {} && chmod 000 PG_VERSION global/pg_control pg_wal/0*", host.data_directory()));
        host.sh("systemctl start pg-watchdog");
        healed(&host, ledger, "S7", SOON);
    }

    fn a_table_that_the_server_cannot_open_is_made_right_while_it_runs(host: Host) {
        let ledger = ledger_of(&host);
        host.psql("CREATE TABLE kept AS SELECT 1 AS id");
        let postmaster = host.postmaster_pid();
        let file = faults::s7_data_directory_permissions::inject_mode_of_a_table(&host, "kept");
        let denied = host.try_psql("SELECT id FROM kept");
        assert!(denied.stderr.contains("Permission denied"), "{denied}");
        // All files are looked at when the watchdog begins, and then every ten minutes.
        host.sh("systemctl restart pg-watchdog");
        host.wait_until("it is healed", SOON, || !host.recoveries().is_empty());
        healed(&host, ledger, "S7", SOON);
        assert_eq!(host.psql("SELECT id FROM kept"), "1");
        assert_eq!((host.file(&file).mode() & 0o777, host.postmaster_pid()), (0o600, postmaster));
    }

    fn a_server_without_room_for_wal_is_started_again_in_room_that_was_kept(host: Host) {
        let _disk = host.move_data_to_disk(400);
        let data = host.data_directory();
        let ballast = host.file(&format!("{data}/pgsql_tmp.pg-recovery-ballast"));
        host.wait_until("room is kept", SOON, || ballast.exists());
        let ledger = ledger_of(&host);
        faults::s2_wal_disk_full::fill(&host);
        host.wait_until("it is healed", SOON, || host.recoveries().last().is_some_and(|r| r["fault"] == "S2"));
        healed(&host, ledger, "S2", SOON);
        assert!(!ballast.exists());
        host.journal_of("pg-recover").says("find out what takes the room");
        // The cause is gone: room is kept again.
        for setting in ["RESET wal_keep_size", "SET min_wal_size = '32MB'", "SET max_wal_size = '32MB'"] {
            host.psql(&format!("ALTER SYSTEM {setting}"));
        }
        host.psql("SELECT pg_reload_conf()");
        host.psql("DROP TABLE filler");
        host.psql("CHECKPOINT");
        host.psql("CHECKPOINT");
        host.sh("systemctl restart pg-watchdog");
        host.wait_until("room is kept", SOON, || ballast.exists());
        host.sh("apt-get remove --yes pg-recovery");
        assert!(!ballast.exists());
    }

    fn room_is_kept_beside_a_pg_wal_on_a_volume_of_its_own(host: Host) {
        let _disk = host.attach_disk("/wal", 300);
        let (unit, data) = (host.unit(), host.data_directory());
        host.operator_stops(&unit);
        host.sh(&format!("mv {data}/pg_wal /wal/pg_wal && ln -s /wal/pg_wal {data}/pg_wal"));
        host.sh(&format!("systemctl start {unit}"));
        host.wait_for_journal("pg-watchdog", "postgres may not write in /wal", SOON);
        host.sh("chown postgres: /wal && systemctl restart pg-watchdog");
        host.wait_until("room is kept", SOON, || host.file("/wal/pgsql_tmp.pg-recovery-ballast").exists());
        let ledger = ledger_of(&host);
        faults::s2_wal_disk_full::fill(&host);
        host.wait_until("it is healed", SOON, || host.recoveries().last().is_some_and(|r| r["fault"] == "S2"));
        healed(&host, ledger, "S2", SOON);
        host.sh("systemctl restart pg-watchdog && apt-get remove --yes pg-recovery");
        assert!(!host.run("ls /wal/pgsql_tmp*").success());
    }

    /// What `tests/soak` found not to be healed, or not as it should be.
    fn faults_on_top_of_each_other_are_healed_and_nothing_forbidden_is_done(host: Host) {
        for names in [
            &["pid of postmaster.pid given to another process", "postmaster.pid emptied under a running server"][..],
            &["postmaster.pid emptied under a running server", "backend killed"],
            &["pg_control lost with the power", "wrong mode of the data directory, and a restart"],
            &["pg_control removed under a running server", "wrong owner of the data directory, and a restart"],
            &["socket removed with its directory", "postmaster.pid replaced under a running server"],
            &["pg_control damaged, and the postmaster killed", "wrong owner of the data directory, and a restart"],
        ] {
            let (_, gap) = faults::overlapping::overlap(&host, faults::overlapping::named(names));
            // The server itself would have noticed its lost lock file after a minute.
            assert!(gap < Duration::from_secs(30), "{names:?}: {gap:?}");
        }
    }

    fn a_cluster_of_patroni_is_left_to_patroni(suite: Suite) {
        let host = faults::o4_patroni::boot(suite);
        host.sh("systemctl restart pg-watchdog");
        let ledger = host.ledger_of_fresh_sessions();
        ledger.wait_for_commits(20);
        faults::p1_postmaster_killed::inject(&host);
        host.wait_for_journal("pg-watchdog", "is managed by Patroni", SOON);
        faults::o4_patroni::wait_until_it_leads(&host);
        ledger.wait_for_commits_within(20, SOON);
        ledger.stop_and_check().assert_nothing_lost();
        // Stopped by Patroni, it stays stopped: also when the checks ask for a recovery, and when Patroni is gone.
        host.sh(&format!("systemctl stop patroni@{}-main", host.version()));
        host.wait_until("it is stopped", SOON, || !host.is_accepting());
        for _ in 0..3 {
            host.start_and_wait("pg-health-check.service");
        }
        assert!(host.start_and_wait("pg-recovery.service").success());
        host.journal_of("pg-recover").says("is managed by Patroni");
        assert!(!host.is_accepting());
        assert_eq!(host.recoveries(), Vec::<serde_json::Value>::new());
    }

    fn a_bad_line_in_postgresql_conf_is_undone_and_kept_beside(host: Host) {
        let ledger = ledger_of(&host);
        faults::c1_bad_postgresql_conf::inject(&host);
        let bad = host.file(&format!("{}/postgresql.conf", host.configuration_directory())).read();
        healed(&host, ledger, "C1", SOON);
        let beside = host.sh(&format!("cat {}/postgresql.conf.broken-*", host.configuration_directory()));
        assert_eq!(beside.trim_end(), bad.trim_end());
        host.journal_of("pg-recover").says("the difference:");
    }

    fn a_bad_pg_hba_conf_is_undone(host: Host) {
        let ledger = ledger_of(&host);
        faults::c2_bad_pg_hba_conf::inject(&host);
        healed(&host, ledger, "C2", SOON);
    }

    fn a_setting_that_does_not_let_it_start_is_undone(host: Host) {
        let ledger = ledger_of(&host);
        faults::c3_missing_preload_library::inject(&host);
        healed(&host, ledger, "C3", SOON);
        assert_eq!(host.psql("SHOW shared_preload_libraries"), "");
    }

    fn a_library_that_ends_the_server_without_a_word_is_undone_after_a_second_start(host: Host) {
        let ledger = ledger_of(&host);
        faults::c3_missing_preload_library::inject_crash(&host);
        healed(&host, ledger, "C3", SOON);
        host.journal_of("pg-recover").says("step 2 start").says("step 3 restore-configuration");
        assert_eq!(host.psql("SHOW shared_preload_libraries"), "");
    }

    fn settings_that_do_not_go_together_are_undone(host: Host) {
        // What is undone is what it last ran with: room for prepared transactions, and one of them.
        host.psql("ALTER SYSTEM SET max_prepared_transactions = 5");
        host.sh(&format!("systemctl restart {}", host.unit()));
        let ledger = ledger_of(&host);
        host.psql("BEGIN; CREATE TABLE prepared (id int); PREPARE TRANSACTION 'waits'");
        host.wait_until("this configuration is the last good one", SOON, || {
            host.run("grep -l \"max_prepared_transactions = '5'\" /var/lib/pg-recovery/points/*-good/*").success()
        });
        for setting in ["shared_buffers = '4TB'", "wal_level = minimal", "listen_addresses = '192.0.2.1'", "max_prepared_transactions = 0"] {
            let healings = host.recoveries().len();
            assert!(!faults::c3_missing_preload_library::inject_setting(&host, setting).success());
            host.wait_until(setting, SOON, || host.recoveries().len() > healings);
            assert_eq!(host.recoveries().last().expect("there is one")["outcome"], "recovered", "{setting}");
            // So many in so short a time would be a person's matter.
            host.sh("pg-recover reset");
        }
        healed(&host, ledger, "C3", SOON);
        assert_eq!(host.psql("SELECT gid FROM pg_prepared_xacts"), "waits");
    }

    fn a_key_that_does_not_belong_to_its_certificate_gives_way_to_the_last_good_pair(host: Host) {
        let key = faults::c5_tls_key::prepare(&host);
        let (content, mode) = (host.file(&key).read(), host.file(&key).mode());
        host.wait_until("the pair is known to be good", SOON, || {
            host.run("grep -l server.key /var/lib/pg-recovery/points/*-good/manifest.json").success()
        });
        let ledger = ledger_of(&host);
        faults::c5_tls_key::inject(&host);
        healed(&host, ledger, "C5", SOON);
        assert_eq!((host.file(&key).read(), host.file(&key).mode()), (content, mode));
        assert_eq!(host.psql("SHOW ssl"), "on");
        host.sh(&format!("ls {key}.broken-* && test $(stat -c %a {key}.broken-*) = 600"));
        host.journal_of("pg-recover").does_not_say("PRIVATE KEY");
    }

    fn a_long_crash_recovery_is_left_alone(host: Host) {
        let ledger = ledger_of(&host);
        faults::h2_long_crash_recovery::inject_by_kill(&host, 3);
        let count = |text: &str| host.run(&format!("grep -c '{text}' {}", host.main_cluster().log_file())).stdout;
        host.wait_until("redo has begun", SOON, || count("redo starts at").trim() == "1");
        // Whoever asks for a recovery meanwhile is told that this one is under way.
        assert!(host.start_and_wait("pg-recovery.service").success());
        ledger.wait_for_commits_within(20, Duration::from_secs(180));
        ledger.stop_and_check().assert_nothing_lost();
        assert_eq!(count("redo starts at").trim(), "1", "crash recovery was started over");
        host.journal_of("pg-recover").does_not_say("step 1");
    }

    fn a_long_crash_recovery_after_a_power_cut_is_left_alone(host: Host) {
        let ledger = ledger_of(&host);
        faults::h2_long_crash_recovery::inject(&host, 3);
        ledger.wait_for_commits_within(20, Duration::from_secs(180));
        ledger.stop_and_check().assert_nothing_lost();
        let redos = host.sh(&format!("grep -c 'redo starts at' {}", host.main_cluster().log_file()));
        assert_eq!(redos, "1", "crash recovery was started over");
        host.journal_of("pg-watchdog").does_not_say("restart 1 of");
    }

    fn a_missing_wal_tail_is_never_started_over(host: Host) {
        host.wait_until_settled();
        let (id, copy) = lose_wal(&host);
        assert_ne!(host.state_of(&host.unit()), "active");
        // A person brings the segment back; the next recovery starts the cluster, and the row is there.
        host.sh(&format!("cp -a {copy} {}/pg_wal/$(basename {copy} .kept)", host.data_directory()));
        assert!(host.start_and_wait("pg-recovery.service").success());
        assert_eq!(host.psql(&format!("SELECT count(*) FROM tail WHERE id = {id}")), "1");
    }

    fn commits_are_given_up_when_a_person_approves_and_only_once(host: Host) {
        host.wait_until_settled();
        assert_eq!(host.run("pg-recover approve give-up-wal").status, 1, "nothing waits for it");
        for _ in 0..2 {
            lose_wal(&host);
            let plan = host.json("pg-recover --plan --json");
            assert_eq!(plan["clusters"][0]["plan"][0]["step"], "give-up-wal", "{plan:#}");
            assert_eq!(plan["clusters"][0]["plan"][0]["risk"], "data", "{plan:#}");
            assert_eq!(host.run("pg-recover approve start").status, 64);
            let nobody = host.run("runuser -u postgres -- pg-recover approve give-up-wal");
            assert_eq!(nobody.status, 77, "{nobody}");
            assert!(host.start_and_wait("pg-recovery.service").status != 0);
            assert_ne!(host.state_of(&host.unit()), "active");
            let healings = host.recoveries().len();
            host.sh("pg-recover approve give-up-wal");
            host.wait_until("it is on record", SOON, || host.recoveries().len() > healings);
            let record = host.recoveries().pop().expect("there is one");
            assert_eq!((&record["fault"], &record["outcome"]), (&"S11".into(), &"recovered".into()), "{record:#}");
            assert_eq!(host.psql("SELECT count(*) FROM tail"), "0");
            host.sh(&format!("ls /var/lib/pg-recovery/evidence/{}-main/*/evidence.json", host.version()));
            host.settle();
        }
    }

    fn a_cluster_stopped_although_it_is_meant_to_run_is_started_after_three_checks(host: Host) {
        let ledger = ledger_of(&host);
        host.operator_stops("postgresql.service");
        host.wait_for_state(&host.unit(), "inactive", SOON);
        host.wait_for_journal("pg-watchdog", "pg-recover pause", SOON);
        ledger.wait_for_commits_within(20, THREE_CHECKS);
        ledger.stop_and_check().assert_nothing_lost();
        host.journal_of("pg-recover").says("stopped cleanly although it is meant to run");
        host.journal_of("pg-health-check").does_not_say("Permission denied");
        host.wait_until("it is on record", SOON, || host.recoveries().last().is_some_and(|r| r["fault"] == "O1"));
        assert_eq!(host.recoveries().last().expect("there is one")["outcome"], "recovered");
    }

    fn torn_empty_and_unwritable_state_does_not_stop_a_recovery(host: Host) {
        let ledger = ledger_of(&host);
        let version = host.version();
        host.sh("systemctl stop pg-watchdog");
        for name in ["recover", "watchdog", "health"] {
            host.file(&format!("/var/lib/pg-recovery/{name}/{version}-main.json")).write("{\"version\":1,\"ser");
        }
        faults::t1_state_file::inject_empty(&host, &format!("/var/lib/pg-recovery/evidence/{version}-main/evidence.json"));
        host.sh("systemctl start pg-watchdog");
        host.wait_for_journal("pg-watchdog", "set aside", SOON);
        faults::p1_postmaster_killed::inject(&host);
        ledger.wait_for_commits_within(20, SOON);
        faults::t1_state_file::inject_disk_full(&host);
        host.sh("systemctl restart pg-watchdog");
        faults::p1_postmaster_killed::inject(&host);
        ledger.wait_for_commits_within(20, SOON);
        ledger.stop_and_check().assert_nothing_lost();
    }
}

/// Faults of two clusters at the same time are healed side by side.
#[test]
fn a_hung_cluster_does_not_delay_the_recovery_of_another() {
    let host = Host::boot(Suite::Trixie);
    host.wait_until_settled();
    let second = host.create_cluster("second");
    let good = format!("ls -d /var/lib/pg-recovery/points/*-{}-second-good", host.version());
    host.wait_until("the second cluster is watched", SOON, || host.run(&good).success());
    let (one, two) = (host.ledger(), host.ledger_on(&second));
    faults::p2_all_processes_stopped::inject(&host);
    host.signal(host.postmaster_pid_of(&second), host::Signal::SIGKILL);
    one.wait_for_commits_within(20, SOON);
    two.wait_for_commits_within(20, SOON);
    one.stop_and_check().assert_nothing_lost();
    two.stop_and_check().assert_nothing_lost();
}
