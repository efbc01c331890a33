//! What pg-recover must stand: commands that hang, a state disk that is full, being killed in the middle of a step.

use std::time::{Duration, Instant};

use host::{Host, Signal, facts_on_both_suites, faults};

const SOON: Duration = Duration::from_secs(60);
const ME: &str = "pg-recover";
const UNIT: &str = "pg-recovery.service";
const QUICK_LADDER: &str = "[recover]\nfast_stop_timeout = \"1s\"\nimmediate_stop_timeout = \"1s\"\n";

/// Leaves pg-recover alone with the fault.
fn alone(host: &Host) {
    host.wait_until_settled();
    host.sh("systemctl stop pg-watchdog.service pg-health-check.timer pg-health-check.service");
}

/// A run of the service; its exit code as systemd saw it.
fn recover(host: &Host) -> i32 {
    host.start_and_wait(UNIT);
    host.property_of(UNIT, "ExecMainStatus").parse().expect("a status is a number")
}

/// The run ends without success in so much time, and says why.
#[track_caller]
fn gives_up_within(host: &Host, seconds: u64, says: &str) {
    let began = Instant::now();
    assert_ne!(recover(host), 0);
    assert!(began.elapsed() < Duration::from_secs(seconds), "{:?}", began.elapsed());
    host.journal_of(ME).says(says);
}

/// Starts a recovery and kills it with all it has started when it is in this step.
#[track_caller]
fn killed_in(host: &Host, step: &str, and: impl FnOnce()) {
    let before = host.journal_of(ME).count(step);
    host.start(UNIT);
    host.wait_until(step, SOON, || host.journal_of(ME).count(step) > before);
    and();
    host.sh(&format!("systemctl kill --signal=KILL {UNIT}"));
    host.wait_for_state(UNIT, "failed", SOON);
    assert_eq!(host.property_of(UNIT, "Result"), "signal", "it was over before it was killed");
}

/// SIGSTOP again and again: neither SIGCONT nor a fast or immediate stop gets through.
fn keep_stopped(host: &Host) {
    let pid = host.postmaster_pid();
    let stop = format!("select undef, undef, undef, 0.0002 while kill STOP => {pid}");
    host.run_as_unit("stopper", "root", &format!("exec chrt --fifo 50 perl -e '{stop}'"));
    host.wait_until("it is stopped", SOON, || host.state_of_process(pid) == Some('T'));
}

fn killed(host: &Host) {
    faults::p1_postmaster_killed::inject(host);
    host.wait_for_state(&host.unit(), "failed", SOON);
}

facts_on_both_suites! {
    fn a_systemctl_that_hangs_is_named_and_nothing_is_changed_until_it_answers_again(host: Host) {
        alone(&host);
        let ledger = host.ledger();
        killed(&host);
        faults::t4_command_hangs::inject(&host, "/usr/bin/systemctl");
        gives_up_within(&host, 60, "could not run systemctl show");
        host.journal_of(ME).says("no end after 10000ms").does_not_say("step 1").does_not_say("manual intervention");
        // The check counts the failure, and ends in time.
        host.start_and_wait("pg-health-check.service");
        assert_eq!(host.property_of("pg-health-check.service", "Result"), "success");
        host.journal_of("pg-health-check").says("could not run systemctl show");
        assert_eq!(host.state_of(&host.unit()), "failed");
        faults::t4_command_hangs::end(&host, "/usr/bin/systemctl");
        assert_eq!(recover(&host), 0);
        ledger.wait_for_commits(50);
        ledger.stop_and_check().assert_nothing_lost();
    }

    fn a_postgres_that_hangs_when_asked_about_its_configuration_is_named_and_nothing_is_changed(host: Host) {
        alone(&host);
        let ledger = host.ledger();
        let postgres = host.main_cluster().program("postgres");
        killed(&host);
        faults::t4_command_hangs::inject(&host, &postgres);
        gives_up_within(&host, 60, "could not run postgres -C: no end after 10000ms");
        host.journal_of(ME).does_not_say("step 1");
        host.start_and_wait("pg-health-check.service");
        host.journal_of("pg-health-check").says(&format!("could not run {postgres}: no end after 5000ms"));
        assert_eq!(host.state_of(&host.unit()), "failed");
        faults::t4_command_hangs::end(&host, &postgres);
        assert_eq!(recover(&host), 0);
        ledger.wait_for_commits(50);
        ledger.stop_and_check().assert_nothing_lost();
    }

    fn a_systemd_tmpfiles_that_hangs_is_named_and_the_next_recovery_makes_the_directory(host: Host) {
        alone(&host);
        let ledger = host.ledger();
        faults::p11_socket_directory::inject_unwritable(&host);
        faults::t4_command_hangs::inject(&host, "/usr/bin/systemd-tmpfiles");
        killed_in(&host, "step 1 create-socket-directory", || {});
        gives_up_within(&host, 90, "could not run systemd-tmpfiles: no end after 30000ms");
        assert!(!host.run("pgrep -f '[s]leep 1000'").success(), "what hung was left behind");
        faults::t4_command_hangs::end(&host, "/usr/bin/systemd-tmpfiles");
        assert_eq!(recover(&host), 0);
        ledger.wait_for_commits(50);
        ledger.stop_and_check().assert_nothing_lost();
    }

    fn a_full_state_disk_does_not_stop_a_recovery(host: Host) {
        alone(&host);
        let ledger = host.ledger();
        killed(&host);
        faults::t1_state_file::inject_disk_full(&host);
        assert_eq!(recover(&host), 0);
        ledger.wait_for_commits(50);
        // A repair that would save what it changes.
        faults::c1_bad_postgresql_conf::inject(&host);
        let fixed = recover(&host);
        let said = host.journal_of(ME);
        said.says("could not write /var/lib/pg-recovery/recover/").says("No space left on device");
        said.says("could not save the evidence").says("going on, because each file is also kept beside");
        assert_eq!(fixed, 0, "{said}");
        ledger.wait_for_commits(50);
        ledger.stop_and_check().assert_nothing_lost();
    }

    fn a_read_only_state_disk_does_not_stop_a_recovery(host: Host) {
        alone(&host);
        let ledger = host.ledger();
        killed(&host);
        faults::t1_state_file::inject_read_only(&host);
        assert_eq!(recover(&host), 0);
        host.journal_of(ME).says("could not write /var/lib/pg-recovery/recover/").says("Read-only file system");
        ledger.wait_for_commits(50);
        faults::c1_bad_postgresql_conf::inject(&host);
        assert_eq!(recover(&host), 0);
        ledger.wait_for_commits(50);
        ledger.stop_and_check().assert_nothing_lost();
    }

    fn empty_and_torn_state_files_are_set_aside_by_a_recovery(host: Host) {
        alone(&host);
        let ledger = host.ledger();
        let version = host.version();
        let evidence = format!("{}/evidence/{version}-main/evidence.json", faults::t1_state_file::STATE);
        for torn in [true, false] {
            killed(&host);
            for file in ["recover", "health", "watchdog"] {
                let path = format!("{}/{file}/{version}-main.json", faults::t1_state_file::STATE);
                host.file(&path).write(if torn { "{\"version\": 1, \"ser" } else { "" });
            }
            host.sh(&format!("echo '{{\"id\": \"x' >> {}/recoveries.jsonl", faults::t1_state_file::STATE));
            if torn {
                faults::t1_state_file::inject_torn(&host, &evidence);
            }
            assert_eq!(recover(&host), 0);
            ledger.wait_for_commits(50);
        }
        host.journal_of(ME).says("cannot use the state file /var/lib/pg-recovery/recover").says("set aside");
        assert_eq!(host.run("pg-recover history").stdout.matches("recovered").count(), 2);
        ledger.stop_and_check().assert_nothing_lost();
    }

    fn a_run_killed_inside_a_stop_that_waits_is_finished_by_the_next(host: Host) {
        alone(&host);
        let ledger = host.ledger();
        keep_stopped(&host);
        killed_in(&host, "step 2 stop-fast", || {});
        killed_in(&host, "step 3 stop-immediate", || {});
        host.configure(QUICK_LADDER);
        assert_eq!(recover(&host), 0);
        ledger.wait_for_commits(50);
        ledger.stop_and_check().assert_nothing_lost();
    }

    fn a_run_killed_inside_the_ending_of_orphans_is_finished_by_the_next(host: Host) {
        alone(&host);
        let ledger = host.ledger();
        let orphan = faults::p9_orphan_backend::inject(&host);
        host.wait_for_state(&host.unit(), "failed", SOON);
        killed_in(&host, "step 1 end-orphans", || {});
        assert_eq!(recover(&host), 0);
        assert!(!host.is_alive(orphan));
        ledger.wait_for_commits(50);
        ledger.stop_and_check().assert_nothing_lost();
    }

    fn a_run_killed_inside_a_start_that_replays_wal_leaves_that_start_to_itself(host: Host) {
        alone(&host);
        let ledger = host.ledger();
        ledger.wait_for_commits(100);
        much_to_replay(&host);
        killed_in(&host, "step 1 start", || host.wait_until("redo has begun", SOON, || redos(&host) == 1));
        assert_eq!(recover(&host), 0);
        assert_eq!(host.cluster_state(), "in crash recovery", "this came too late to show anything");
        at_full_speed(&host);
        ledger.wait_for_commits_within(50, Duration::from_secs(180));
        assert_eq!(redos(&host), 1, "it was started over");
        assert_eq!(recover(&host), 0);
        ledger.stop_and_check().assert_nothing_lost();
    }

    fn a_start_of_which_only_an_orphan_is_left_is_ended_and_made_again(host: Host) {
        let steps = steps_when_its_start_is_broken_off(&host, || {
            host.sh("systemctl stop brake; kill -STOP $(pgrep -f '[s]tartup recovering')");
            // systemd goes on waiting for that start.
            host.signal(host.postmaster_pid(), Signal::SIGKILL);
        });
        assert_eq!(steps, ["start", "end-start", "start", "verify"]);
    }

    fn a_start_that_is_killed_is_made_again_and_the_new_configuration_is_not_to_blame(host: Host) {
        let mut steps = steps_when_its_start_is_broken_off(&host, || {
            let file = format!("{}/postgresql.auto.conf", host.data_directory());
            host.server_dies_while(&format!("echo \"log_min_duration_statement = '7s'\" >>{file}"));
        });
        // systemd, too, finds out about the dead in an order of its own, and may go on waiting.
        steps.retain(|step| step != "end-start");
        assert_eq!(steps, ["start", "start", "verify"]);
        assert_eq!(host.psql("SHOW log_min_duration_statement"), "7s");
    }

    fn whoever_stops_a_server_that_replays_wal_after_we_stopped_it_has_it_stopped(host: Host) {
        alone(&host);
        faults::h2_long_crash_recovery::inject_by_kill(&host, 3);
        host.wait_for_state(&host.unit(), "failed", SOON);
        for times in 1..=2 {
            host.was_stopped_by_us();
            slow_replay(&host);
            let has_begun = || host.wait_until("redo has begun", SOON, || redos(&host) == times);
            if times == 1 {
                killed_in(&host, "step 1 start", has_begun);
                assert_eq!(recover(&host), 0);
            } else {
                host.start(UNIT);
                has_begun();
            }
            assert_eq!(host.cluster_state(), "in crash recovery", "this came too late to show anything");
            host.operator_stops(&host.unit());
            host.wait_until("the run is over", SOON, || host.state_of(UNIT) != "activating");
            assert_eq!(recover(&host), 0);
            assert_eq!(host.state_of(&host.unit()), "inactive");
            host.journal_of(ME).says("it was stopped on purpose, leaving it alone");
        }
    }

    fn a_run_killed_between_any_two_changes_of_files_is_finished_by_the_next(host: Host) {
        alone(&host);
        host.configure("[recover]\nmax_attempts = 100\n");
        faults::t3_killed_inside_a_step::prepare(&host);
        let ledger = host.ledger();
        let (data, configuration) = (host.data_directory(), host.configuration_directory());
        let global = format!("{data}/global");
        type Inject = fn(&Host);
        // What is wrong, where it is mended, and in how many changes at least.
        let cases: [(Inject, &str, u32); 4] = [
            (|h| { faults::p8_postmaster_pid_removed::inject(h); }, &data, 4),
            (|h| { killed(h); garbage(h); }, &data, 2),
            (|h| { faults::c1_bad_postgresql_conf::inject(h); }, &configuration, 4),
            (|h| { killed(h); h.sh(&format!("rm {}/global/pg_control", h.data_directory())); }, &global, 1),
        ];
        for (number, (inject, folder, least)) in cases.into_iter().enumerate() {
            for after in 1.. {
                assert!(after < 20, "case {number}: it never ends");
                // A new postmaster has a new lock file, whose copy only pg-watchdog makes.
                host.sh("systemctl start pg-watchdog.service");
                let copy = host.file(&format!("/var/lib/pg-recovery/evidence/{}-main/postmaster.pid", host.version()));
                let original = host.file(&format!("{data}/postmaster.pid"));
                host.wait_until("the lock file is saved", SOON, || copy.read_bytes() == original.read_bytes());
                host.sh("systemctl stop pg-watchdog.service");
                ledger.wait_for_commits(20);
                // systemd would wait for ever for a server that dies before pg_ctlcluster has said that it is up.
                host.wait_for_state(&host.unit(), "active", SOON);
                inject(&host);
                let run = faults::t3_killed_inside_a_step::run(&host, folder, after);
                let was_killed = run.status == 137;
                assert!(was_killed || run.status == 0, "case {number}, change {after}: {run}");
                assert_eq!(recover(&host), 0, "case {number}, after change {after}");
                ledger.wait_for_commits(20);
                host.run(&format!("systemctl reset-failed {}", host.unit()));
                if !was_killed {
                    assert!(after > least, "case {number} was killed in {} places only", after - 1);
                    break;
                }
            }
        }
        ledger.stop_and_check().assert_nothing_lost();
    }

    fn a_recovery_told_to_stop_between_stop_and_start_is_taken_up_by_whatever_comes_next(host: Host) {
        alone(&host);
        let ledger = host.ledger();
        let postgres = host.main_cluster().program("postgres");
        let copy = format!("/var/lib/pg-recovery/evidence/{}-main/postmaster.pid", host.version());
        // Without the copy all that helps is a clean stop, after which nothing but our own word says that it is to run.
        host.sh(&format!("rm {copy}"));
        for (times, next) in ["systemctl start pg-recovery.service", "systemctl start pg-watchdog.service"].iter().enumerate() {
            faults::p8_postmaster_pid_removed::inject(&host);
            // The look after the stop asks postgres about its configuration: long enough to be told to stop there.
            faults::t4_command_hangs::inject(&host, &postgres);
            host.start(UNIT);
            host.wait_until("it is stopped", SOON, || host.journal_of(ME).count("stop-fast ok") > times);
            host.operator_stops(UNIT);
            faults::t4_command_hangs::end(&host, &postgres);
            assert_eq!(host.cluster_state(), "shut down");
            host.sh(next);
            ledger.wait_for_commits(50);
        }
        ledger.stop_and_check().assert_nothing_lost();
    }

    fn a_crash_recovery_that_moves_is_seen_to_move_and_left_alone(host: Host) {
        alone(&host);
        let ledger = host.ledger();
        ledger.wait_for_commits(100);
        much_to_replay(&host);
        host.start(&host.unit());
        host.wait_until("redo has begun", SOON, || redos(&host) == 1);
        for times in 1..=3 {
            assert_eq!(recover(&host), 0);
            let said = host.journal_of(ME);
            assert_eq!(said.count("leaving it alone (H2): its startup process moves"), times, "{said}");
            assert_eq!(host.cluster_state(), "in crash recovery", "this came too late to show anything");
        }
        at_full_speed(&host);
        ledger.wait_for_commits_within(50, Duration::from_secs(180));
        assert_eq!(redos(&host), 1, "it was started over");
        host.journal_of(ME).does_not_say("step 1");
        assert!(host.recoveries().is_empty());
        ledger.stop_and_check().assert_nothing_lost();
    }

    fn a_standby_that_waits_for_wal_is_left_alone(host: Host) {
        let standby = host.create_cluster("standby");
        host.operator_stops(&standby.unit());
        let data = standby.data_directory();
        host.sh(&format!("rm -r {data}"));
        // Without its WAL, and with a primary that nobody has heard of: it is never consistent, and lets nobody in.
        let copy = format!("pg_basebackup --checkpoint=fast -X none -p 5432 -D {data} && touch {data}/standby.signal");
        assert!(host.as_postgres(&copy).success());
        host.sh(&format!("echo \"primary_conninfo = 'host=/nowhere'\" >> {}/postgresql.conf", standby.configuration_directory()));
        host.start(&standby.unit());
        host.wait_until("it waits", SOON, || host.run("pgrep -f '[s]tartup waiting for'").success());
        let pid = host.postmaster_pid_of(&standby);
        // pg-watchdog says after a minute that nothing moves, and does nothing about it.
        host.wait_for_journal("pg-watchdog", &format!("recovery of cluster {} has not moved for a minute; left alone", standby.name()), Duration::from_secs(120));
        for _ in 0..2 {
            assert_eq!(recover(&host), 0);
        }
        host.journal_of(ME).says(&format!("cluster {}: it is starting, stopping, replaying WAL or busy; leaving it alone (H2): its startup process waits for WAL from elsewhere", standby.name()));
        host.journal_of(ME).does_not_say("step 1");
        assert_eq!(host.postmaster_pid_of(&standby), pid);
        assert!(host.recoveries().is_empty());
    }

    fn a_server_that_wants_a_password_from_us_is_not_taken_for_dead(host: Host) {
        host.wait_until_settled();
        let pid = host.postmaster_pid();
        host.psql("ALTER ROLE postgres PASSWORD 'secret'");
        let hba = format!("{}/pg_hba.conf", host.configuration_directory());
        host.sh(&format!("sed -i 's/^local.*/local all all scram-sha-256/' {hba} && systemctl reload {}", host.unit()));
        host.wait_until("nobody comes in without", SOON, || !host.is_accepting());
        host.wait_until("three checks have passed", Duration::from_secs(240), || {
            host.journal_of("pg-health-check").count("did not tell whether it serves") >= 3
        });
        let found = host.json("pg-health-check --json")["clusters"][0].clone();
        assert_eq!(found["status"], "unknown", "{found:#}");
        assert_eq!(found["failures"], 0, "{found:#}");
        assert_eq!(recover(&host), 0);
        host.journal_of(ME).says("nothing to do").does_not_say("step 1");
        host.journal_of("pg-watchdog").does_not_say("hangs").does_not_say("handed");
        assert_eq!(host.postmaster_pid(), pid);
    }

    fn a_postmaster_that_sleeps_and_hears_no_signal_is_ended_and_replaced(host: Host) {
        faults::p2_postmaster_asleep::prepare(&host);
        host.wait_until_accepting(SOON);
        host.wait_until_settled();
        let ledger = host.ledger();
        ledger.wait_for_commits(100);
        host.configure("[recover]\nfast_stop_timeout = \"3s\"\nimmediate_stop_timeout = \"3s\"\n");
        let asleep = faults::p2_postmaster_asleep::inject(&host);
        host.wait_for_journal("pg-watchdog", "hangs: it has not moved for", SOON);
        host.wait_for_journal(ME, "step 3 kill-postmaster", SOON);
        faults::p2_postmaster_asleep::end(&host);
        ledger.wait_for_commits(50);
        assert_ne!(host.postmaster_pid(), asleep);
        let tally = ledger.stop_and_check();
        tally.assert_nothing_lost();
        host.wait_until("it is on record", SOON, || host.recoveries().iter().any(|r| r["fault"] == "P2"));
        let record = host.recoveries().into_iter().find(|r| r["fault"] == "P2").expect("on record");
        let steps: Vec<&str> = record["steps"].as_array().expect("steps").iter().filter_map(|s| s["step"].as_str()).collect();
        assert_eq!(steps, ["stop-fast", "stop-immediate", "kill-postmaster", "start", "verify"], "{record:#}");
        assert_eq!(record["outcome"], "recovered");
        host.publish_downtime("P2 postmaster asleep, deaf to all signals", tally.longest_gap());
    }

    fn a_postmaster_that_is_slow_to_take_connections_is_busy_and_left_alone(host: Host) {
        faults::p2_postmaster_asleep::prepare(&host);
        host.wait_until_accepting(SOON);
        host.wait_until_settled();
        let ledger = host.ledger();
        let pid = faults::p2_postmaster_asleep::inject_slowness(&host);
        host.wait_for_journal("pg-watchdog", "is slow to take new connections", SOON);
        for times in 1..=2 {
            assert_eq!(recover(&host), 0);
            let said = host.journal_of(ME);
            assert_eq!(said.count("leaving it alone (H2): it takes each connection in, so it moves and is busy"), times, "{said}");
        }
        faults::p2_postmaster_asleep::end(&host);
        host.wait_until_accepting(SOON);
        host.journal_of(ME).does_not_say("step 1");
        host.journal_of("pg-watchdog").does_not_say("hangs").does_not_say("handed");
        assert_eq!(host.postmaster_pid(), pid);
        ledger.wait_for_commits(50);
        ledger.stop_and_check().assert_nothing_lost();
    }

    fn a_postmaster_that_waits_for_the_disk_is_never_killed(host: Host) {
        faults::p2_postmaster_asleep::prepare(&host);
        host.wait_until_accepting(SOON);
        host.wait_until_settled();
        let ledger = host.ledger();
        ledger.wait_for_commits(100);
        let pid = host.postmaster_pid();
        let frozen = faults::p2_postmaster_asleep::inject_on_disk(&host);
        host.wait_for_journal("pg-watchdog", "hangs: it waits for the disk and takes no connections", SOON);
        assert_eq!(host.state_of_process(pid), Some('D'));
        host.wait_for_journal(ME, "it waits for the disk, or its recovery does not move (S5)", SOON);
        host.journal_of(ME).says("manual intervention required").does_not_say("step 1");
        drop(frozen);
        host.wait_for_journal("pg-watchdog", "accepts connections again", SOON);
        assert_eq!(host.postmaster_pid(), pid);
        ledger.wait_for_commits(50);
        ledger.stop_and_check().assert_nothing_lost();
    }
}

/// Kills the server; its crash recovery will take minutes.
fn much_to_replay(host: &Host) {
    faults::h2_long_crash_recovery::inject_by_kill(host, 3);
    host.wait_for_state(&host.unit(), "failed", SOON);
    slow_replay(host);
}

/// What is done by a recovery whose start is broken off while it replays WAL.
#[track_caller]
fn steps_when_its_start_is_broken_off(host: &Host, break_off: impl FnOnce()) -> Vec<String> {
    alone(host);
    let ledger = host.ledger();
    ledger.wait_for_commits(100);
    much_to_replay(host);
    host.start(UNIT);
    host.wait_until("redo has begun", SOON, || redos(host) == 1);
    break_off();
    ledger.wait_for_commits_within(50, SOON);
    ledger.stop_and_check().assert_nothing_lost();
    host.wait_until("it is on record", SOON, || !host.recoveries().is_empty());
    let record = host.recoveries().pop().expect("on record");
    assert_eq!(record["outcome"], "recovered", "{record:#}");
    let steps = record["steps"].as_array().expect("steps");
    steps.iter().filter_map(|s| s["step"].as_str()).map(String::from).collect()
}

/// The next startup process works for a fortieth of the time, as on a slow disk.
fn slow_replay(host: &Host) {
    host.run_as_unit(
        "brake",
        "root",
        "until S=$(pgrep -f '[s]tartup recovering'); do :; done; while kill -STOP $S; do sleep 0.2; kill -CONT $S; sleep 0.005; done",
    );
}

fn at_full_speed(host: &Host) {
    host.sh("systemctl stop brake; kill -CONT $(pgrep -f '[s]tartup recovering')");
}

fn redos(host: &Host) -> usize {
    host.sh(&format!("grep -c 'redo starts at' {} || true", host.main_cluster().log_file())).parse().expect("a number")
}

/// What a crash of the file system leaves of a lock file.
fn garbage(host: &Host) {
    let file = format!("{}/postmaster.pid", host.data_directory());
    host.file(&file).write("xyz\n");
    host.sh(&format!("chown postgres: {file} && chmod 600 {file}"));
}
