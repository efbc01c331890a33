//! What must hold when a server comes and goes in turns, and when memory runs out.

use std::time::{Duration, Instant};

use host::{Host, Signal, facts_on_both_suites, faults, skip};

const SOON: Duration = Duration::from_secs(60);
const QUIET: Duration = Duration::from_secs(8);
const WATCHDOG: &str = "pg-watchdog";
const RECOVER: &str = "pg-recover";

fn settled(host: &Host) {
    host.wait_until_settled();
    host.sh("systemctl stop pg-health-check.timer");
}

fn recovered(host: &Host) -> usize {
    host.recoveries().iter().filter(|record| record["outcome"] == "recovered").count()
}

/// Waits for the n-th healing on record, and returns it.
#[track_caller]
fn record(host: &Host, nth: usize) -> serde_json::Value {
    host.wait_until("it is on record", SOON, || host.recoveries().len() >= nth);
    host.recoveries().swap_remove(nth - 1)
}

fn text_of(record: &serde_json::Value) -> String {
    record["evidence"].to_string()
}

facts_on_both_suites! {
    fn a_postmaster_stopped_again_and_again_is_continued_three_times_and_then_left_to_a_person(host: Host) {
        settled(&host);
        let ledger = host.ledger_of_fresh_sessions();
        let pid = host.postmaster_pid();
        for time in 1..=3 {
            faults::p2_postmaster_stopped::inject(&host);
            assert_eq!(record(&host, time)["outcome"], "recovered");
            ledger.wait_for_commits(20);
        }
        faults::p2_postmaster_stopped::inject(&host);
        host.wait_for_journal(RECOVER, "manual intervention required: it serves and does not serve in turns", SOON);
        assert_eq!(record(&host, 4)["outcome"], "manual");
        let plan = host.json("pg-recover --plan --json");
        assert_eq!(plan["clusters"][0]["plan"], serde_json::json!([]), "{plan:#}");
        let began = Instant::now();
        while began.elapsed() < QUIET {
            assert_eq!(host.state_of_process(pid), Some('T'), "{}", host.journal_of(RECOVER));
            std::thread::sleep(Duration::from_millis(500));
        }
        // Whoever stopped it has it go on, and it comes and goes as before: that has been told.
        host.signal(pid, Signal::SIGCONT);
        ledger.wait_for_commits(20);
        host.wait_for_journal(WATCHDOG, "accepts connections again", SOON);
        faults::p2_postmaster_stopped::inject(&host);
        host.wait_for_journal(RECOVER, "still waiting for a person: it serves and does not serve in turns", SOON);
        assert_eq!(host.journal_of(RECOVER).count("manual intervention required"), 1);
        assert_eq!((host.recoveries().len(), host.state_of_process(pid)), (4, Some('T')));
        // A person who says that the cause is gone has it helped again.
        host.sh("pg-recover reset");
        host.start("pg-recovery.service");
        ledger.wait_for_commits_within(20, SOON);
        assert_eq!((recovered(&host), host.postmaster_pid()), (4, pid));
        ledger.stop_and_check().assert_nothing_lost();
    }

    fn good_and_bad_answers_in_turn_lead_to_fewer_than_four_changes_an_hour(host: Host) {
        settled(&host);
        let ledger = host.ledger_of_fresh_sessions();
        let pid = host.postmaster_pid();
        // Some of these turns are seen, some are over before anybody has looked twice.
        for turn in 0..25 {
            faults::p2_postmaster_stopped::inject(&host);
            std::thread::sleep(Duration::from_millis(1000 + 750 * (turn % 5)));
            host.signal(pid, Signal::SIGCONT);
            ledger.wait_for_commits(10);
        }
        let records = host.recoveries();
        assert!(recovered(&host) < 4, "{records:#?}");
        assert!(records.iter().all(|record| record["fault"] == "P2"), "{records:#?}");
        assert_eq!(host.postmaster_pid(), pid, "it was never restarted");
        host.wait_for_journal(RECOVER, "in turns", SOON);
        ledger.stop_and_check().assert_nothing_lost();
    }

    fn a_check_that_fails_every_other_time_starts_no_recovery(host: Host) {
        settled(&host);
        host.sh("systemctl stop pg-watchdog");
        let pid = host.postmaster_pid();
        for _ in 0..4 {
            faults::p2_postmaster_stopped::inject(&host);
            host.start_and_wait("pg-health-check.service");
            host.signal(pid, Signal::SIGCONT);
            host.start_and_wait("pg-health-check.service");
        }
        assert_eq!(host.journal_of("pg-health-check").count("failure 1 of 3"), 4);
        assert_eq!(host.journal_of("pg-recovery.service").text(), "");
        assert_eq!(host.postmaster_pid(), pid);
    }

    fn a_postmaster_killed_again_and_again_is_started_each_time_and_a_person_is_told(host: Host) {
        settled(&host);
        host.configure("[watchdog]\nrestarts = 3\nrestart_window = \"1s\"\n");
        host.sh("systemctl reload pg-watchdog");
        host.wait_for_journal(WATCHDOG, "the configuration was read again", SOON);
        let ledger = host.ledger();
        for time in 1..=4 {
            ledger.wait_for_commits(20);
            faults::p1_postmaster_killed::inject(&host);
            assert_eq!(record(&host, time)["outcome"], "recovered");
        }
        ledger.wait_for_commits(20);
        host.journal_of(WATCHDOG).says("dies again and again: this is start 3 within 60min");
        assert_eq!(host.journal_of(WATCHDOG).count("dies again and again"), 1);
        ledger.stop_and_check().assert_nothing_lost();
    }

    fn a_session_ended_by_the_oom_killer_is_named_and_the_second_time_a_person_is_told_what_to_do(host: Host) {
        if !faults::m1_oom_killer::is_possible() {
            skip!("no memory controller in a hierarchy of its own");
        }
        settled(&host);
        let pid = host.postmaster_pid();
        let limit = faults::m1_oom_killer::limit(&host, &host.unit());
        faults::m1_oom_killer::inject(&host, &limit);
        let first = record(&host, 1);
        assert_eq!((&first["fault"], &first["outcome"]), (&"M1".into(), &"declined".into()), "{first:#}");
        let seen = text_of(&first);
        assert!(seen.contains("string_agg") && seen.contains("it was the OOM killer: oom_kill in"), "{seen}");
        host.wait_until_accepting(SOON);
        host.journal_of(WATCHDOG).does_not_say("the OOM killer ended processes of it");
        faults::m1_oom_killer::inject(&host, &limit);
        record(&host, 2);
        host.wait_for_journal(WATCHDOG, "the OOM killer ended processes of it 2 times within 60min", SOON);
        host.journal_of(WATCHDOG)
            .says("the last one was running: SELECT length(string_agg(")
            .says("ALTER ROLE name SET work_mem")
            .says(&format!("/etc/systemd/system/{}.d/memory.conf", host.unit()))
            .does_not_say("starting postgresql@");
        assert_eq!(host.postmaster_pid(), pid, "the server came back by itself");
    }

    fn a_postmaster_ended_by_the_oom_killer_is_started_again_and_that_is_said(host: Host) {
        if !faults::m1_oom_killer::is_possible() {
            skip!("no memory controller in a hierarchy of its own");
        }
        settled(&host);
        let ledger = host.ledger();
        ledger.wait_for_commits(20);
        let limit = faults::m1_oom_killer::limit(&host, &host.unit());
        faults::m1_oom_killer::inject_on_postmaster(&host, &limit);
        ledger.wait_for_commits_within(20, SOON);
        let record = record(&host, 1);
        assert_eq!((&record["fault"], &record["outcome"]), (&"M1".into(), &"recovered".into()), "{record:#}");
        assert!(text_of(&record).contains("and that was the OOM killer: oom_kill in"), "{record:#}");
        ledger.stop_and_check().assert_nothing_lost();
    }

    fn a_unit_that_systemd_ended_for_want_of_memory_is_started_again(host: Host) {
        settled(&host);
        let ledger = host.ledger();
        ledger.wait_for_commits(20);
        faults::m1_oom_killer::inject_on_unit(&host);
        ledger.wait_for_commits_within(20, SOON);
        let record = record(&host, 1);
        assert_eq!((&record["fault"], &record["outcome"]), (&"M1".into(), &"recovered".into()), "{record:#}");
        assert!(text_of(&record).contains("Result=oom-kill"), "{record:#}");
        ledger.stop_and_check().assert_nothing_lost();
    }

    fn a_unit_that_systemd_ended_for_want_of_memory_is_not_taken_for_stopped_by_pg_recover(host: Host) {
        settled(&host);
        host.sh("systemctl stop pg-watchdog");
        faults::m1_oom_killer::inject_on_unit(&host);
        host.wait_until("systemd says so", SOON, || host.property_of(&host.unit(), "Result") == "oom-kill");
        host.start_and_wait("pg-recovery.service");
        let record = record(&host, 1);
        assert_eq!((&record["fault"], &record["outcome"]), (&"M1".into(), &"recovered".into()), "{record:#}");
    }

    fn a_program_of_somebody_else_ended_by_the_oom_killer_explains_no_later_crash(host: Host) {
        if !faults::m1_oom_killer::is_possible() {
            skip!("no memory controller in a hierarchy of its own");
        }
        settled(&host);
        faults::m1_oom_killer::inject_on_another(&host);
        // Some beats of the watchdog, in which all is well.
        std::thread::sleep(Duration::from_secs(5));
        assert_eq!(host.recoveries().len(), 0, "nothing of ours was ended");
        faults::p4_backend_killed::inject(&host);
        assert_eq!(record(&host, 1)["fault"], "P4");
        faults::p1_postmaster_killed::inject(&host);
        assert_eq!(record(&host, 2)["fault"], "P1");
        host.journal_of(WATCHDOG).does_not_say("OOM");
    }

    fn a_clock_that_jumps_ends_no_pause_forgives_no_restart_and_the_last_good_configuration_stays_the_newest(host: Host) {
        use faults::h1_clock_jump::{YEAR, inject, prepare, unit_of};
        settled(&host);
        prepare(&host);
        host.configure("[watchdog]\nrestarts = 2\n");
        host.sh("systemctl reload pg-watchdog");
        host.wait_for_journal(WATCHDOG, "the configuration was read again", SOON);

        // A configuration that the server runs with after the clock was set back is the last good one.
        inject(&host, YEAR);
        let conf = host.file(&format!("{}/postgresql.conf", host.configuration_directory()));
        let points = || host.sh("ls /var/lib/pg-recovery/points | grep -c good").parse::<u32>().expect("a number");
        for (work_mem, jump) in [("5MB", YEAR), ("6MB", -YEAR)] {
            inject(&host, jump);
            let before = points();
            conf.append(&format!("work_mem = {work_mem}"));
            host.sh(&format!("systemctl reload {}", host.unit()));
            host.wait_until("it is known to be good", SOON, || points() > before);
        }
        conf.append("x = = 1");
        host.run(&format!("systemctl restart {}", host.unit()));
        host.wait_until_accepting(SOON);
        assert_eq!(host.psql("SHOW work_mem"), "6MB");
        host.wait_until("it is on record", SOON, || recovered(&host) == 1);
        host.sh("pg-recover reset");

        // Two restarts are allowed, whatever the clock says.
        host.sh("systemctl mask --runtime pg-recovery.service");
        let restarts = || host.journal_of(WATCHDOG).count(&format!("starting {}", host.unit()));
        for (nth, jump) in [(1, YEAR), (2, -YEAR)] {
            inject(&host, jump);
            // A death before systemd has it for started is another fault.
            host.wait_for_state(&host.unit(), "active", SOON);
            faults::p1_postmaster_killed::inject(&host);
            host.wait_until("it is started", SOON, || restarts() == nth);
            host.wait_until_accepting(SOON);
            host.wait_until("it is on record", SOON, || recovered(&host) == 1 + nth);
        }
        inject(&host, YEAR);
        host.wait_for_state(&host.unit(), "active", SOON);
        faults::p1_postmaster_killed::inject(&host);
        host.wait_for_journal(WATCHDOG, "could not hand cluster", SOON);
        assert_eq!(restarts(), 2);

        // A pause lasts as long as it was said to.
        inject(&host, 0);
        host.sh(&unit_of("pg-recover pause 1h tests"));
        host.sh("systemctl unmask --runtime pg-recovery.service; rm -f /var/lib/pg-recovery/watchdog/*.json; systemctl restart pg-watchdog");
        for jump in [YEAR, -YEAR] {
            inject(&host, jump);
            let plan = host.run(&unit_of("pg-recover --plan")).stdout;
            assert!(plan.contains("is paused for 60min more") || plan.contains("is paused for 59min more"), "{plan}");
            std::thread::sleep(QUIET);
            assert_eq!((restarts(), host.state_of(&host.unit())), (2, "failed".into()));
        }
        host.sh(&unit_of("pg-recover pause 20s tests"));
        host.wait_until_accepting(SOON);
    }

    fn a_pause_ends_though_the_clock_is_behind_after_a_reboot(host: Host) {
        use faults::h1_clock_jump::{YEAR, inject, of, prepare};
        settled(&host);
        prepare(&host);
        host.sh(&of("pg-recover pause 30s tests"));
        inject(&host, -YEAR);
        host.reboot();
        let plan = || host.run(&of("pg-recover --plan")).stdout;
        host.wait_until("the pause has ended", SOON, || !plan().contains("is paused"));
    }

    fn a_clock_that_jumps_expires_no_backup(host: Host) {
        use faults::h1_clock_jump::{YEAR, inject, of, prepare};
        settled(&host);
        prepare(&host);
        host.configure("[backup]\nkeep = 1\nkeep_min = 1\nkeep_for = \"7d\"\n");
        let backup = |command: &str| {
            let output = host.as_postgres(&of(&format!("pg-backup {command}")));
            assert!(output.success(), "{output}");
        };
        let list = || host.sh(&format!("ls /var/backups/pg-recovery/{}-main/base", host.version()));
        backup("now");
        let first = list();
        // Within one boot there is a clock that nobody sets.
        host.reboot();
        host.wait_until_accepting(SOON);
        for jump in [YEAR, -YEAR] {
            inject(&host, jump);
            backup("now");
            backup("expire");
            assert!(list().contains(&first), "{}", list());
        }
        assert_eq!(list().lines().count(), 3, "{}", list());
    }

    fn ids_that_run_out_are_told_with_who_keeps_them_and_what_to_type_and_nothing_is_restarted(host: Host) {
        settled(&host);
        host.sh("systemctl stop pg-watchdog pg-health-check.timer");
        faults::l5_wraparound_near::inject(&host, 1_200_000_000);
        let pid = host.postmaster_pid();
        host.start_and_wait("pg-health-check.service");
        let check = || {
            let report = host.json("runuser -u postgres -- pg-health-check --json");
            let checks = report["clusters"][0]["checks"].as_array().cloned().unwrap_or_default();
            checks.into_iter().find(|check| check["name"] == "xid_age").expect("it is checked")
        };
        let told = check();
        let message = told["message"].as_str().expect("text");
        assert_eq!(told["status"], "critical", "{told:#}");
        assert!(message.contains("the prepared transaction 'forgotten' of postgres in database postgres keeps VACUUM"), "{message}");
        assert!(message.contains("vacuumdb -a -F") && !message.contains("single"), "{message}");
        for _ in 0..3 {
            host.start_and_wait("pg-health-check.service");
        }
        assert_eq!(host.journal_of("pg-recovery.service").text(), "");
        assert_eq!(host.postmaster_pid(), pid);
        // What it says helps.
        host.psql(&format!("ROLLBACK PREPARED '{}'", faults::l5_wraparound_near::FORGOTTEN));
        assert!(host.as_postgres("vacuumdb -a -F").success());
        host.wait_until("the ids are young again", SOON, || check()["status"] == "ok");
        assert_eq!(host.postmaster_pid(), pid);
    }

    fn a_server_that_thrashes_is_slow_and_left_alone(host: Host) {
        if !faults::m1_oom_killer::is_possible() {
            skip!("no memory controller in a hierarchy of its own");
        }
        settled(&host);
        // The server is stopped meanwhile.
        host.sh("pg-recover pause 1h tests");
        let pressure = faults::m2_memory_pressure::inject(&host, Duration::from_secs(45));
        host.sh("pg-recover resume");
        let pid = host.postmaster_pid();
        for _ in 0..3 {
            host.start_and_wait("pg-health-check.service");
        }
        host.wait_for_state("load.service", "inactive", Duration::from_secs(120));
        let waits = pressure.limit.waits();
        assert!(waits > 10_000, "nobody waited for memory: {waits}");
        assert_eq!((host.postmaster_pid(), pressure.limit.kills()), (pid, 0));
        host.journal_of(WATCHDOG).does_not_say("hangs").does_not_say("handed").does_not_say("starting postgresql@");
        host.journal_of(RECOVER).does_not_say("step 1");
        assert_eq!(host.recoveries().len(), 0);
    }

    fn a_host_without_name_service_is_no_matter_for_a_server_that_is_reached_without(host: Host) {
        settled(&host);
        let pid = host.postmaster_pid();
        faults::h5_no_name_service::inject(&host);
        let ledger = host.ledger_of_fresh_sessions();
        ledger.wait_for_commits(20);
        for _ in 0..4 {
            host.start_and_wait("pg-health-check.service");
        }
        let report = host.json("runuser -u postgres -- pg-health-check --json");
        println!("{:#}", report["clusters"][0]["checks"]);
        ledger.wait_for_commits(20);
        host.journal_of("pg-health-check").does_not_say("failure 1 of 3");
        assert_eq!(host.journal_of("pg-recovery.service").text(), "");
        host.journal_of(WATCHDOG).does_not_say("hand").does_not_say("starting postgresql@");
        assert_eq!((host.postmaster_pid(), host.recoveries().len()), (pid, 0));
        ledger.stop_and_check().assert_nothing_lost();
    }
}
