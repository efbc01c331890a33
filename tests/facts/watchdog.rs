//! What pg-watchdog must see, how soon, and what it must leave alone.

use std::time::{Duration, Instant};

use host::{Host, Signal, Suite, facts_on_both_suites, faults};

const SOON: Duration = Duration::from_secs(60);
/// Long enough for a restart that should not happen: the real one takes a second.
const QUIET: Duration = Duration::from_secs(8);
const ME: &str = "pg-watchdog";

fn evidence(host: &Host) -> String {
    format!("/var/lib/pg-recovery/evidence/{}-main", host.version())
}

fn configure(host: &Host, toml: &str) {
    host.configure(toml);
    host.sh("systemctl reload pg-watchdog");
    host.wait_for_journal(ME, "the configuration was read again", SOON);
}

/// Only pg-watchdog is left to act.
fn alone(host: &Host) {
    host.sh("systemctl stop pg-health-check.timer; systemctl mask --runtime pg-recovery.service");
}

/// Watches for a while that nothing starts the main cluster, and that the reason was given.
#[track_caller]
fn left_alone(host: &Host, reason: &str) {
    host.wait_for_journal(ME, reason, SOON);
    let began = Instant::now();
    while began.elapsed() < QUIET {
        assert_ne!(host.state_of(&host.unit()), "active", "it was started:\n{}", host.journal_of(ME));
        std::thread::sleep(Duration::from_millis(500));
    }
    host.journal_of(ME).does_not_say(&format!("starting {}", host.unit()));
    assert_eq!(host.journal_of(ME).count(reason), 1, "said once, not again and again:\n{}", host.journal_of(ME));
}

fn restarts(host: &Host) -> usize {
    host.journal_of(ME).count(&format!("starting {}", host.unit()))
}

/// Seconds between a moment of the machine's clock and the first message with this text.
fn seconds_until_said(host: &Host, since: f64, text: &str) -> f64 {
    host.wait_for_journal(ME, text, SOON);
    let lines = host.sh(&format!("journalctl --quiet --no-pager -o short-unix -t {ME}"));
    let line = lines.lines().find(|line| line.contains(text)).expect("it was said");
    line.split(' ').next().and_then(|time| time.parse::<f64>().ok()).expect("a time") - since
}

fn now(host: &Host) -> f64 {
    host.sh("date +%s.%N").parse().expect("a time")
}

facts_on_both_suites! {
    fn a_killed_postmaster_is_restarted_and_every_commit_is_there(host: Host) {
        host.wait_until_settled();
        alone(&host);
        let ledger = host.ledger();
        ledger.wait_for_commits(100);
        let pid = host.postmaster_pid();
        let since = now(&host);
        faults::p1_postmaster_killed::inject(&host);
        ledger.wait_for_commits_within(50, SOON);
        let tally = ledger.stop_and_check();
        tally.assert_nothing_lost();
        assert!(tally.longest_gap() < Duration::from_secs(5), "{:?}", tally.longest_gap());
        host.publish_downtime("P1 postmaster killed, restarted by pg-watchdog", tally.longest_gap());
        let seen = seconds_until_said(&host, since, "has ended");
        assert!(seen < 1.0, "its death was seen only after {seen} s");
        assert_ne!(host.postmaster_pid(), pid);
        host.wait_until("it is on record", SOON, || host.recoveries().len() == 1);
        let record = &host.recoveries()[0];
        assert_eq!((&record["fault"], &record["outcome"]), (&"P1".into(), &"recovered".into()), "{record:#}");
        assert_eq!(record["detected_by"], ME);
    }

    fn a_stopped_postmaster_is_seen_within_three_seconds_and_handed_over(host: Host) {
        host.wait_until_settled();
        alone(&host);
        let session = "SELECT pg_sleep(3600)";
        faults::session::open(&host, "kept", session);
        let since = now(&host);
        let pid = faults::p2_postmaster_stopped::inject(&host);
        let seen = seconds_until_said(&host, since, "hangs: it is stopped by a signal");
        println!("\nDETECTED: {} | P2 postmaster stopped | {seen:.2} s", host.suite().name());
        assert!(seen < 4.5, "{seen} s, of which a loaded test machine may have 1.5");
        // pg-recovery.service is masked here.
        host.wait_for_journal(ME, "could not hand cluster", SOON);
        host.signal(pid, Signal::SIGCONT);
        host.wait_for_journal(ME, "accepts connections again", SOON);
        assert_eq!((restarts(&host), host.postmaster_pid()), (0, pid));
    }

    fn a_postmaster_in_a_debugger_is_left_alone(host: Host) {
        host.wait_until_settled();
        alone(&host);
        let pid = host.postmaster_pid();
        // PTRACE_SEIZE and PTRACE_INTERRUPT of ptrace(2) on x86-64: it goes on when the debugger ends.
        let command = format!(
            "exec perl -e 'syscall(101, 0x4206, {pid}, 0, 0) == 0 && syscall(101, 0x4207, {pid}, 0, 0) == 0 or die; sleep 20'"
        );
        host.run_as_unit("debugger", "root", &command);
        host.wait_for_journal(ME, "is in somebody's debugger, leaving it alone", SOON);
        host.journal_of(ME).does_not_say("hangs");
        host.sh("systemctl stop debugger");
        host.wait_for_journal(ME, "accepts connections again", SOON);
        assert_eq!((restarts(&host), host.postmaster_pid()), (0, pid));
    }

    fn a_frozen_cluster_is_left_alone(host: Host) {
        host.wait_until_settled();
        alone(&host);
        let pid = host.postmaster_pid();
        host.sh(&format!("systemctl freeze {}", host.unit()));
        host.wait_for_journal(ME, "is frozen, leaving it alone", SOON);
        std::thread::sleep(Duration::from_secs(15));
        host.sh(&format!("systemctl thaw {}", host.unit()));
        host.wait_for_journal(ME, "accepts connections again", SOON);
        host.journal_of(ME).does_not_say("hangs").does_not_say("hand");
        assert_eq!((restarts(&host), host.postmaster_pid()), (0, pid));
    }

    fn a_stop_on_purpose_is_not_fought(host: Host) {
        host.wait_until_settled();
        faults::o1_operator_off::inject_stop_as_postgres(&host);
        left_alone(&host, "pg-recover pause --cluster");
        host.journal_of(ME).says("was stopped although it is meant to run");
    }

    fn whoever_is_logged_in_is_told_about_the_stop(host: Host) {
        host.wait_until_settled();
        host.run_as_unit("login", "root", "exec script --quiet --flush --command 'su --login postgres' /login.log");
        host.wait_until("somebody is logged in", SOON, || host.run("loginctl list-sessions").stdout.contains("pts/"));
        host.operator_stops(&host.unit());
        host.wait_until("it is on the terminal", SOON, || {
            host.file("/login.log").read().contains("although it is meant to run")
        });
    }

    fn a_stop_is_for_good_where_the_configuration_says_so(host: Host) {
        host.wait_until_settled();
        configure(&host, "on_clean_stop = \"leave\"\n");
        host.operator_stops(&host.unit());
        left_alone(&host, "it stays so until a person starts it");
    }

    fn an_immediate_stop_is_a_stop_on_purpose(host: Host) {
        host.wait_until_settled();
        let stop = format!("{} -D {} stop -m immediate", host.main_cluster().program("pg_ctl"), host.data_directory());
        assert!(host.as_postgres(&stop).success());
        left_alone(&host, "was stopped with an immediate shutdown");
        assert_eq!(host.cluster_state(), "in production");
    }

    fn a_killed_cluster_that_is_not_meant_to_run_stays_down(host: Host) {
        host.wait_until_settled();
        host.sh(&format!("sed -i 's/^auto$/manual/' {}/start.conf", host.configuration_directory()));
        faults::p1_postmaster_killed::inject(&host);
        left_alone(&host, "is set to manual in start.conf, leaving it alone");
    }

    fn a_killed_cluster_whose_unit_is_masked_stays_down(host: Host) {
        host.wait_until_settled();
        host.sh(&format!("systemctl mask {}", host.unit()));
        faults::p1_postmaster_killed::inject(&host);
        left_alone(&host, "has its unit masked, leaving it alone");
    }

    fn a_killed_cluster_whose_data_another_program_uses_stays_down_until_it_has_ended(host: Host) {
        host.wait_until_settled();
        alone(&host);
        host.run_as_unit("cold-copy", "root", &format!("cd {} && tar -cf - . | sleep infinity", host.data_directory()));
        host.wait_until("tar is at work", SOON, || host.run("pgrep -x tar").success());
        faults::p1_postmaster_killed::inject(&host);
        left_alone(&host, "has its data directory in use by tar");
        host.sh("systemctl stop cold-copy");
        host.wait_until_accepting(SOON);
    }

    fn a_paused_cluster_is_left_alone_until_the_pause_ends(host: Host) {
        host.wait_until_settled();
        alone(&host);
        host.sh("pg-recover pause 1h maintenance");
        faults::p1_postmaster_killed::inject(&host);
        left_alone(&host, "is paused for");
        host.sh("pg-recover resume");
        host.wait_until_accepting(SOON);
    }

    fn an_observed_cluster_is_only_observed(host: Host) {
        host.wait_until_settled();
        configure(&host, "mode = \"observe\"\n");
        faults::p1_postmaster_killed::inject(&host);
        left_alone(&host, "is only observed; else");
    }

    fn while_somebody_else_holds_the_lock_nothing_is_started(host: Host) {
        host.wait_until_settled();
        alone(&host);
        let lock = format!("/run/pg-recovery/lock/{}-main.lock", host.version());
        host.run_as_unit("repair", "root", &format!("exec flock {lock} sleep infinity"));
        host.wait_until("the lock is held", SOON, || !host.run(&format!("flock --nonblock {lock} true")).success());
        faults::p1_postmaster_killed::inject(&host);
        host.wait_for_state(&host.unit(), "failed", SOON);
        std::thread::sleep(QUIET);
        assert_eq!(host.state_of(&host.unit()), "failed");
        assert_eq!(restarts(&host), 0);
        host.sh("systemctl stop repair");
        host.wait_until_accepting(SOON);
    }

    fn the_budget_ends_and_survives_the_watchdog_itself(host: Host) {
        host.wait_until_settled();
        alone(&host);
        configure(&host, "[watchdog]\nrestarts = 2\n");
        for restart in 1..=2 {
            faults::p1_postmaster_killed::inject(&host);
            host.wait_until("it is restarted", SOON, || restarts(&host) == restart);
            host.wait_until_accepting(SOON);
            host.wait_until("it is on record", SOON, || host.recoveries().len() == restart);
            host.sh("systemctl restart pg-watchdog");
            host.wait_until("it is watched again", SOON, || {
                host.property_of("pg-watchdog.service", "StatusText").contains("well")
            });
        }
        faults::p1_postmaster_killed::inject(&host);
        left_alone_after_budget(&host);
    }

    fn a_start_that_fails_is_handed_over_at_once(host: Host) {
        host.wait_until_settled();
        alone(&host);
        assert!(!faults::c1_bad_postgresql_conf::inject(&host).success());
        host.wait_for_journal(ME, "could not hand cluster", Duration::from_secs(10));
        assert_eq!(restarts(&host), 0, "starting it again would not help");
    }

    fn a_start_by_the_operator_that_fails_much_later_is_noticed(host: Host) {
        host.wait_until_settled();
        host.operator_stops(&host.unit());
        host.wait_for_journal(ME, "was stopped although it is meant to run", SOON);
        std::thread::sleep(Duration::from_secs(15));
        host.file(&format!("{}/postgresql.conf", host.configuration_directory())).append("x = = 1");
        assert!(!host.start_and_wait(&host.unit()).success());
        host.wait_for_journal(ME, "could not be started", Duration::from_secs(10));
    }

    fn an_obstacle_is_handed_over_instead_of_started_over(host: Host) {
        host.wait_until_settled();
        alone(&host);
        host.sh(&format!("chmod 755 {0} && kill -9 {1}", host.data_directory(), host.postmaster_pid()));
        host.wait_for_journal(ME, "could not hand cluster", SOON);
        assert_eq!(restarts(&host), 0);
        assert_eq!(host.state_of(&host.unit()), "failed");
    }

    fn a_removed_lock_file_is_noticed_before_the_server_does(host: Host) {
        host.wait_until_settled();
        alone(&host);
        faults::p8_postmaster_pid_removed::wait_for_its_own_look(&host);
        let since = now(&host);
        let pid = faults::p8_postmaster_pid_removed::inject(&host);
        let seen = seconds_until_said(&host, since, "was removed or replaced while its server runs");
        assert!(seen < 5.0, "{seen} s");
        assert!(host.is_alive(pid));
    }

    fn a_crash_recovery_that_moves_is_never_restarted(host: Host) {
        host.wait_until_settled();
        alone(&host);
        faults::h2_long_crash_recovery::inject_by_kill(&host, 4);
        host.wait_for_journal(ME, "starting postgresql@", SOON);
        host.wait_until_accepting(Duration::from_secs(180));
        assert_eq!(restarts(&host), 1, "{}", host.journal_of(ME));
        host.wait_until("it is on record", SOON, || host.recoveries().len() == 1);
        assert_eq!(host.recoveries()[0]["outcome"], "recovered");
    }

    fn a_crash_during_crash_recovery_is_healed(host: Host) {
        host.wait_until_settled();
        let ledger = host.ledger();
        ledger.wait_for_commits(100);
        faults::h2_long_crash_recovery::inject_by_kill(&host, 4);
        host.wait_until("redo has started", SOON, || host.server_log().contains("redo starts at"));
        faults::p1_postmaster_killed::inject(&host);
        ledger.wait_for_commits_within(50, Duration::from_secs(180));
        ledger.stop_and_check().assert_nothing_lost();
    }

    fn a_start_that_waits_for_a_dead_server_is_ended_and_made_again(host: Host) {
        host.wait_until_settled();
        let ledger = host.ledger();
        ledger.wait_for_commits(100);
        faults::h2_long_crash_recovery::inject_by_kill(&host, 4);
        // Redo outlives its postmaster, stopped, so that the unit's control group does not get empty.
        host.sh(&format!(
            "until S=$(pgrep -f '[s]tartup recovering'); do sleep 0.01; done; kill -STOP $S; kill -9 $(head -1 {}/postmaster.pid)",
            host.data_directory()
        ));
        host.wait_for_journal(ME, "systemd goes on waiting for it: ending that start", SOON);
        ledger.wait_for_commits_within(50, Duration::from_secs(180));
        ledger.stop_and_check().assert_nothing_lost();
        let word = host.file(&format!("/var/lib/pg-recovery/recover/{}-main.json", host.version()));
        host.wait_until("a stop would be somebody's wish", SOON, || word.read().replace(' ', "").contains("\"stopped_by_us\":false"));
    }

    fn a_start_that_was_ended_is_no_stop_on_purpose_where_pg_recover_has_to_make_the_next_one(host: Host) {
        host.wait_until_settled();
        let ledger = host.ledger();
        ledger.wait_for_commits(100);
        faults::h2_long_crash_recovery::inject_by_kill(&host, 4);
        host.sh(&format!(
            "cd {} && until S=$(pgrep -f '[s]tartup recovering'); do sleep 0.01; done; kill -STOP $S
             rm -r pg_notify && kill -9 $(head -1 postmaster.pid)",
            host.data_directory()
        ));
        host.wait_for_journal(ME, "systemd goes on waiting for it: ending that start", SOON);
        host.wait_for_journal("pg-recover", "make-folders ok", SOON);
        ledger.wait_for_commits_within(50, Duration::from_secs(180));
        ledger.stop_and_check().assert_nothing_lost();
        host.journal_of(ME).does_not_say("after 3 checks");
    }

    fn a_busy_server_is_never_restarted(host: Host) {
        host.wait_until_settled();
        let pid = host.postmaster_pid();
        let starts = host.journal_of(ME).count("starting");
        let pgbench = host.main_cluster().program("pgbench");
        assert!(host.as_postgres(&format!("{pgbench} -i -q -s 5 postgres")).success());
        // New connections all the time, writes, and nothing left of the CPUs.
        let load = format!("{pgbench} -n -C -c 60 -j 4 -T 45 postgres");
        host.run_as_unit("load", "postgres", &load);
        host.run_as_unit("burn", "root", "for n in $(seq 16); do timeout 45 sh -c 'while :; do :; done' & done; wait");
        for unit in ["load.service", "burn.service"] {
            host.wait_for_state(unit, "inactive", Duration::from_secs(120));
        }
        assert_eq!(host.postmaster_pid(), pid);
        let journal = host.journal_of(ME);
        journal.does_not_say("hangs").does_not_say("handed");
        assert_eq!(journal.count("starting"), starts, "{journal}");
        assert_eq!(host.state_of("pg-watchdog.service"), "active");
    }

    fn the_crash_of_a_session_is_put_on_record_and_a_loop_is_told(host: Host) {
        host.wait_until_settled();
        let postmaster = host.postmaster_pid();
        for crash in 1..=3 {
            faults::p4_backend_killed::inject(&host);
            host.wait_until("it is on record", SOON, || host.recoveries().len() == crash);
            host.wait_until_accepting(SOON);
        }
        let record = host.recoveries().pop().expect("there is one");
        assert_eq!((&record["fault"], &record["outcome"]), (&"P4".into(), &"declined".into()), "{record:#}");
        assert_eq!(record["evidence"][1], "it was running: SELECT pg_sleep(?)");
        host.wait_for_journal(ME, "each time it was running: SELECT pg_sleep(?)", SOON);
        assert_eq!(host.postmaster_pid(), postmaster);
    }

    fn a_server_out_of_slots_is_left_alone_where_all_sessions_are_at_work(host: Host) {
        host.wait_until_settled();
        let pid = host.postmaster_pid();
        host.psql("ALTER SYSTEM SET max_connections = 10");
        host.sh(&format!("systemctl restart {}", host.unit()));
        host.wait_for_journal(ME, "accepts connections again", SOON);
        let restarted = host.postmaster_pid();
        assert_ne!(restarted, pid);
        let psql = host.main_cluster().program("psql");
        // Superusers, so that the reserved slots are taken, too.
        host.run_as_unit(
            "storm",
            "postgres",
            &format!("for n in $(seq 20); do {psql} -X postgres -c 'SELECT pg_sleep(30)' & done; wait"),
        );
        host.wait_for_journal(ME, "has no connection slot left", SOON);
        host.wait_for_journal(ME, "there is no idle session left that may be ended. They are held by", SOON);
        host.sh("systemctl stop storm");
        host.wait_until_accepting(SOON);
        host.wait_until("it says so", SOON, || host.journal_of(ME).count("accepts connections again") >= 2);
        host.journal_of(ME).does_not_say("end-sessions").does_not_say("limit-connections");
        assert_eq!((restarts(&host), host.postmaster_pid()), (0, restarted));
        assert_eq!((&host.recoveries()[0]["fault"], &host.recoveries()[0]["outcome"]), (&"L1".into(), &"manual".into()));
    }

    fn a_killed_standby_is_restarted_as_a_standby(host: Host) {
        host.wait_until_settled();
        alone(&host);
        let standby = faults::o3_standby::inject(&host);
        let saved = format!("/var/lib/pg-recovery/evidence/{}-standby/evidence.json", host.version());
        host.wait_until("the standby is watched", SOON, || {
            host.file(&saved).exists() && host.file(&saved).read().contains("\"standby\": true")
        });
        host.signal(host.postmaster_pid_of(&standby), Signal::SIGKILL);
        host.wait_for_journal(ME, &format!("starting {}", standby.unit()), SOON);
        host.wait_until("the standby is back", SOON, || {
            host.try_psql_on(&standby, "SELECT pg_is_in_recovery()").stdout.trim() == "t"
        });
    }

    fn clusters_are_followed_as_they_come_and_go(host: Host) {
        host.wait_until_settled();
        alone(&host);
        let second = host.create_cluster("second");
        host.wait_for_journal(ME, &format!("watching cluster {}", second.name()), SOON);
        let pid_file = format!("/var/lib/pg-recovery/evidence/{}-second/postmaster.pid", host.version());
        host.wait_until("it is watched", SOON, || host.file(&pid_file).exists());
        assert!(host.file(&format!("/run/pg-recovery/lock/{}-second.lock", host.version())).exists());
        host.signal(host.postmaster_pid_of(&second), Signal::SIGKILL);
        host.wait_until("it is restarted", SOON, || host.try_psql_on(&second, "SELECT 1").success());
        host.wait_until("it is on record", SOON, || host.recoveries().len() == 1);
        host.sh(&format!("pg_dropcluster --stop {} second", host.version()));
        host.wait_for_journal(ME, &format!("no longer watching cluster {}", second.name()), SOON);
        assert_eq!(host.property_of("pg-watchdog.service", "NRestarts"), "0");
    }

    fn a_wrong_configuration_changes_nothing(host: Host) {
        host.wait_until_settled();
        alone(&host);
        host.configure("[watchdog]\nheartbeat = \"1 fortnight\"\n");
        host.sh("systemctl reload pg-watchdog");
        host.wait_for_journal(ME, "stays in force", SOON);
        host.journal_of(ME).says("/etc/pg-recovery/config.d/test.toml, line 2, key heartbeat");
        faults::p1_postmaster_killed::inject(&host);
        host.wait_for_journal(ME, "accepts connections again", SOON);
    }

    fn a_postmaster_that_died_unwatched_is_restarted(host: Host) {
        host.wait_until_settled();
        alone(&host);
        host.sh("systemctl stop pg-watchdog");
        faults::p1_postmaster_killed::inject(&host);
        host.wait_for_state(&host.unit(), "failed", SOON);
        host.sh("systemctl start pg-watchdog");
        host.wait_until_accepting(SOON);
        assert_eq!(restarts(&host), 1);
    }

    fn a_watchdog_that_is_stopped_is_started_again(host: Host) {
        host.wait_until_settled();
        host.sh("systemctl kill --signal=STOP pg-watchdog");
        host.wait_until("systemd starts it again", Duration::from_secs(90), || {
            host.property_of("pg-watchdog.service", "NRestarts") == "1"
                && host.state_of("pg-watchdog.service") == "active"
        });
        faults::p1_postmaster_killed::inject(&host);
        host.wait_for_journal(ME, "accepts connections again", SOON);
    }

    fn what_a_recovery_may_need_is_saved_while_the_server_is_well(host: Host) {
        host.wait_until_settled();
        let folder = evidence(&host);
        assert_eq!(host.file(&folder).mode(), 0o700);
        let saved = |name: &str| host.file(&format!("{folder}/{name}")).read_bytes();
        let real = |name: &str| host.file(&format!("{}/{name}", host.data_directory())).read_bytes();
        assert_eq!(saved("postmaster.pid"), real("postmaster.pid"));
        host.psql("CREATE TABLE t AS SELECT generate_series(1, 1000)");
        host.psql("CHECKPOINT");
        host.wait_until("pg_control is copied", SOON, || saved("pg_control") == real("global/pg_control"));
        assert_ne!(saved("pg_control.1"), saved("pg_control"));
        host.psql("CREATE TABLE u AS SELECT generate_series(1, 1000)");
        host.psql("CHECKPOINT");
        host.wait_until("the files are listed", SOON, || host.file(&format!("{folder}/files")).exists());
        let flushed: u64 = host.psql("SELECT pg_current_wal_flush_lsn() - '0/0'").parse().expect("a number");
        let volatile = host.file(&format!("/run/pg-recovery/evidence/{}-main.json", host.version()));
        host.wait_until("the flush position is known", SOON, || {
            serde_json::from_str::<serde_json::Value>(&volatile.read()).is_ok_and(|e| e["flush_lsn"].as_u64() >= Some(flushed))
        });
        host.journal_of(ME).does_not_say("could not");
    }

    fn a_configuration_that_the_server_has_not_read_is_not_called_good(host: Host) {
        host.wait_until_settled();
        let points = || host.sh("ls /var/lib/pg-recovery/points | grep -c good");
        let conf = host.file(&format!("{}/postgresql.conf", host.configuration_directory()));
        conf.append("work_mem = 5MB");
        std::thread::sleep(Duration::from_secs(40));
        assert_eq!(points(), "1");
        host.sh(&format!("systemctl reload {}", host.unit()));
        host.wait_until("it is good now", SOON, || points() == "2");
    }

    fn it_needs_little(suite: Suite) {
        host::trace_actors(false);
        let host = Host::boot(suite);
        host.wait_until_settled();
        let pid = host.property_of("pg-watchdog.service", "MainPID");
        let cpu = || -> f64 {
            let stat = host.sh(&format!("cat /proc/{pid}/task/*/schedstat"));
            stat.lines().filter_map(|l| l.split(' ').next()?.parse::<f64>().ok()).sum::<f64>() / 1e9
        };
        std::thread::sleep(Duration::from_secs(5));
        let before = cpu();
        std::thread::sleep(Duration::from_secs(60));
        let used = cpu() - before;
        let resident = host.sh(&format!("awk '/^VmRSS/ {{ print $2 }}' /proc/{pid}/status"));
        println!("\nCOST: {} | pg-watchdog in an idle minute | {used:.3} s CPU, {resident} kB", host.suite().name());
        // The goal is 0.1 %, measured on an idle host; test machines share their CPUs and caches.
        assert!(used < 0.12, "{used} s in a minute");
        assert!(resident.parse::<u32>().expect("a number") <= 8192, "{resident} kB");
    }
}

#[track_caller]
fn left_alone_after_budget(host: &Host) {
    host.wait_for_journal(ME, "could not hand cluster", SOON);
    assert_eq!(restarts(host), 2);
    assert_eq!(host.state_of(&host.unit()), "failed");
    let last = host.recoveries().pop().expect("there is one");
    assert_eq!(last["outcome"], "recovered", "a recovery that was not begun is not on record: {last:#}");
}
