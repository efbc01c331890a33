//! What pg-recover must do, and must leave alone.

use std::time::Duration;

use host::{Host, Signal, Suite, facts_on_both_suites, faults};

const SOON: Duration = Duration::from_secs(60);
const QUICK_LADDER: &str = "[recover]\nfast_stop_timeout = \"1s\"\nimmediate_stop_timeout = \"1s\"\n";

/// Leaves pg-recover alone with the fault: what the watchdog knows is saved, then it and the timer are stopped.
fn alone(host: &Host) {
    host.wait_until_settled();
    host.sh("systemctl stop pg-watchdog.service pg-health-check.timer pg-health-check.service");
}

/// Changes what pg-watchdog has recorded about the main cluster.
fn change_evidence(host: &Host, key: &str, value: &serde_json::Value) {
    for path in [
        format!("/run/pg-recovery/evidence/{}-main.json", host.version()),
        format!("/var/lib/pg-recovery/evidence/{}-main/evidence.json", host.version()),
    ] {
        let file = host.file(&path);
        let mut evidence: serde_json::Value = serde_json::from_str(&file.read()).expect("it is JSON");
        evidence[key] = value.clone();
        file.write(evidence.to_string());
    }
}

/// The checks have found it down three times.
fn asked_by_checks(host: &Host) {
    let name = format!("/var/lib/pg-recovery/health/{}-main.json", host.version());
    let mut state = if host.file(&name).exists() {
        serde_json::from_str(&host.file(&name).read()).expect("the state is JSON")
    } else {
        serde_json::json!({"version": 1, "serial": 1})
    };
    state["failures"] = 3.into();
    state["at"] = host.later();
    host.file(&name).write(state.to_string());
    host.sh(&format!("chown postgres: {name}"));
}

fn plan(host: &Host) -> serde_json::Value {
    host.json("pg-recover --plan --json")["clusters"][0].clone()
}

/// A run of the service; its exit code as systemd saw it.
fn recover(host: &Host) -> i32 {
    host.start_and_wait("pg-recovery.service");
    host.property_of("pg-recovery.service", "ExecMainStatus").parse().expect("a status is a number")
}

/// The run has done nothing and says why, and the cluster is as it was.
#[track_caller]
fn leaves_it_alone(host: &Host, why: &str) {
    asked_by_checks(host);
    let before = host.state_of(&host.unit());
    assert_eq!(recover(host), 0);
    host.journal_of("pg-recover").says(why).does_not_say("step 1");
    assert_eq!(host.state_of(&host.unit()), before);
    assert!(host.recoveries().is_empty(), "{:?}", host.recoveries());
}

/// SIGSTOP again and again: a hang that SIGCONT does not cure. At real-time priority, or on a busy machine the postmaster
/// would have time enough in between to end.
fn keep_stopped(host: &Host) {
    let pid = host.postmaster_pid();
    let stop = format!("select undef, undef, undef, 0.0002 while kill STOP => {pid}");
    host.run_as_unit("stopper", "root", &format!("exec chrt --fifo 50 perl -e '{stop}'"));
    host.wait_until("it is stopped", SOON, || host.state_of_process(pid) == Some('T'));
}

facts_on_both_suites! {
    fn a_healthy_cluster_is_not_touched(host: Host) {
        let postmaster = host.postmaster_pid();
        assert_eq!(recover(&host), 0);
        host.journal_of("pg-recover").says("nothing to do");
        assert_eq!(host.postmaster_pid(), postmaster);
        let plan = plan(&host);
        assert_eq!((&plan["diagnosis"]["fault"], &plan["plan"]), (&"none".into(), &serde_json::json!([])));
    }

    fn a_plan_changes_nothing_and_says_what_a_run_would_do(host: Host) {
        alone(&host);
        faults::p1_postmaster_killed::inject(&host);
        host.wait_for_state(&host.unit(), "failed", SOON);
        let found = plan(&host);
        assert_eq!(found["cluster"], host.cluster());
        assert_eq!(found["diagnosis"]["fault"], "P1");
        assert!(found["diagnosis"]["evidence"].as_array().is_some_and(|e| !e.is_empty()));
        assert_eq!(found["plan"][0]["step"], "start");
        assert_eq!(found["plan"][0]["risk"], "none");
        assert!(found["plan"][0]["why"].is_string());
        assert_eq!(host.state_of(&host.unit()), "failed");
        assert_eq!(recover(&host), 0);
        assert!(host.is_accepting());
        let record = host.recoveries().pop().expect("it is on record");
        for key in ["id", "cluster", "fault", "detected_by", "evidence", "steps", "outcome", "started", "finished", "downtime_ms", "target_met"] {
            assert!(!record[key].is_null(), "{key}: {record:#}");
        }
        assert_eq!(record["steps"].as_array().map(Vec::len), Some(2), "start and verify: {record:#}");
    }

    fn a_stopped_cluster_is_left_alone_until_the_checks_ask(host: Host) {
        alone(&host);
        faults::o1_operator_off::inject_stop(&host);
        assert_eq!(recover(&host), 0);
        host.journal_of("pg-recover").says("was stopped on purpose, leaving it alone");
        assert_eq!(host.state_of(&host.unit()), "inactive");
        asked_by_checks(&host);
        host.configure("on_clean_stop = \"leave\"\n");
        assert_eq!(recover(&host), 0);
        assert_eq!(host.state_of(&host.unit()), "inactive");
        host.configure("");
        assert_eq!(recover(&host), 0);
        assert!(host.is_accepting());
    }

    fn a_stop_by_postgres_itself_is_a_stop_too(host: Host) {
        alone(&host);
        faults::o1_operator_off::inject_stop_as_postgres(&host);
        host.wait_for_state(&host.unit(), "failed", SOON);
        assert_eq!(recover(&host), 0);
        host.journal_of("pg-recover").says("was stopped on purpose, leaving it alone");
        assert_eq!(host.state_of(&host.unit()), "failed");
    }

    fn a_disabled_cluster_is_left_alone(host: Host) {
        alone(&host);
        faults::o1_operator_off::inject_disable(&host);
        leaves_it_alone(&host, "is disabled in start.conf, leaving it alone");
    }

    fn a_manual_cluster_is_left_alone(host: Host) {
        alone(&host);
        faults::o1_operator_off::inject_manual(&host);
        leaves_it_alone(&host, "is set to manual in start.conf, leaving it alone");
    }

    fn a_masked_cluster_is_left_alone(host: Host) {
        alone(&host);
        faults::o1_operator_off::inject_mask(&host);
        leaves_it_alone(&host, "has its unit masked, leaving it alone");
    }

    fn a_disabled_postgresql_service_is_left_alone(host: Host) {
        alone(&host);
        faults::o1_operator_off::inject_disable_all(&host);
        leaves_it_alone(&host, "is disabled, as postgresql.service is, leaving it alone");
    }

    fn a_paused_host_is_left_alone_until_the_pause_ends(host: Host) {
        alone(&host);
        host.sh("pg-recover pause 2h 'new disk'");
        for command in ["pause 1min --cluster", "resume --cluster"] {
            let refused = host.run(&format!("pg-recover {command} {}", host.cluster()));
            assert_eq!(refused.status, 64, "{refused}");
            assert!(refused.stderr.contains("the pause of all clusters by"), "{refused}");
        }
        faults::p1_postmaster_killed::inject(&host);
        host.wait_for_state(&host.unit(), "failed", SOON);
        leaves_it_alone(&host, "is paused for 120min more by");
        // A pause that cannot be read is a pause: somebody wanted one.
        faults::t1_state_file::inject_empty(&host, "/var/lib/pg-recovery/pause.json");
        leaves_it_alone(&host, "it counts as a pause");
        host.sh("pg-recover resume");
        assert_eq!(recover(&host), 0);
        assert!(host.is_accepting());
    }

    fn an_observing_host_only_says_what_it_would_do(host: Host) {
        alone(&host);
        host.configure("mode = \"observe\"\n");
        faults::p1_postmaster_killed::inject(&host);
        host.wait_for_state(&host.unit(), "failed", SOON);
        assert_eq!(recover(&host), 0);
        host.journal_of("pg-recover").says("would now start").does_not_say("step 1");
        assert_eq!(host.state_of(&host.unit()), "failed");
    }

    fn a_data_directory_in_use_is_left_alone(host: Host) {
        alone(&host);
        faults::o5_data_directory_in_use::inject(&host);
        leaves_it_alone(&host, "has its data directory in use by tar");
    }

    fn a_frozen_cluster_is_left_alone(host: Host) {
        alone(&host);
        host.sh(&format!("systemctl freeze {}", host.unit()));
        leaves_it_alone(&host, "is frozen with its control group, leaving it alone");
        host.sh(&format!("systemctl thaw {}", host.unit()));
        host.wait_until_accepting(SOON);
    }

    fn a_running_package_manager_is_left_alone(host: Host) {
        alone(&host);
        faults::p1_postmaster_killed::inject(&host);
        host.wait_for_state(&host.unit(), "failed", SOON);
        faults::o1_package_manager::inject(&host);
        leaves_it_alone(&host, "while the package manager runs");
        // apt waits for a recovery when it removes this package: what that recovery has stopped it must start again. What one has
        // stopped before the server was last seen to answer is past.
        let verdict = host.file(&format!("/var/lib/pg-recovery/recover/{}-main.json", host.version()));
        let mut state = serde_json::json!({"version": 1, "serial": 1, "stopped_by_us": true});
        verdict.write(state.to_string());
        leaves_it_alone(&host, "while the package manager runs");
        state["at"] = host.later();
        verdict.write(state.to_string());
        assert_eq!(recover(&host), 0);
        assert!(host.is_accepting());
    }

    fn what_we_have_told_to_end_at_once_is_started_again_by_the_watchdog(host: Host) {
        alone(&host);
        let ledger = host.ledger();
        ledger.wait_for_commits(50);
        host.was_stopped_by_us();
        host.signal(host.postmaster_pid(), Signal::SIGQUIT);
        host.wait_for_state(&host.unit(), "failed", SOON);
        host.sh("systemctl start pg-watchdog.service");
        ledger.wait_for_commits_within(50, SOON);
        ledger.stop_and_check().assert_nothing_lost();
        host.journal_of("pg-watchdog").says("it was stopped to be started again, and has not been");
    }

    fn a_standby_is_started_again_and_stays_a_standby(host: Host) {
        let standby = faults::o3_standby::inject(&host);
        alone(&host);
        host.signal(host.postmaster_pid_of(&standby), Signal::SIGKILL);
        host.wait_for_state(&standby.unit(), "failed", SOON);
        assert_eq!(recover(&host), 0);
        assert_eq!(host.psql_on(&standby, "SELECT pg_is_in_recovery()"), "t");
        host.journal_of("pg-recover").says("standby, replayed to");
        // A standby that runs is well, although nothing can be written to it.
        assert_eq!(recover(&host), 0);
        host.journal_of("pg-recover").says(&format!("cluster {}: it runs and answers", standby.name()));
    }

    fn of_two_recoveries_at_the_same_time_one_acts(host: Host) {
        alone(&host);
        keep_stopped(&host);
        host.run_as_unit("first", "root", "pg-recover");
        host.wait_for_journal("pg-recover", "step 1", SOON);
        let second = host.run("pg-recover");
        assert_eq!(second.status, 75, "{second}");
        assert!(second.stderr.contains("another program is at work"), "{second}");
        host.wait_until_accepting(SOON);
    }

    fn a_hang_that_sigcont_does_not_cure_climbs_the_ladder(host: Host) {
        alone(&host);
        let ledger = host.ledger();
        host.configure(QUICK_LADDER);
        keep_stopped(&host);
        assert_eq!(recover(&host), 0);
        ledger.wait_for_commits(50);
        ledger.stop_and_check().assert_nothing_lost();
        let record = host.recoveries().pop().expect("on record");
        let steps: Vec<&str> = record["steps"].as_array().expect("steps").iter().filter_map(|s| s["step"].as_str()).collect();
        let ladder = ["continue", "stop-fast", "stop-immediate", "kill-postmaster", "start", "verify"];
        assert_eq!(steps, ladder, "{record:#}");
    }

    fn an_empty_a_garbage_and_a_recycled_lock_file_are_set_aside_and_kept(host: Host) {
        alone(&host);
        let file = host.file(&format!("{}/postmaster.pid", host.data_directory()));
        let sleeper = host.run_as_unit("sleeper", "postgres", "exec sleep infinity");
        for (content, fault) in [("".to_owned(), "P6"), ("xyz\n".to_owned(), "P6"), (format!("{sleeper}\n/nowhere\n"), "P7")] {
            faults::p1_postmaster_killed::inject(&host);
            host.wait_for_state(&host.unit(), "failed", SOON);
            file.write(&content);
            host.sh(&format!("chown postgres: {0}/postmaster.pid && chmod 600 {0}/postmaster.pid", host.data_directory()));
            assert_eq!(recover(&host), 0);
            assert!(host.is_accepting());
            let record = host.recoveries().pop().expect("on record");
            assert_eq!(record["fault"], fault, "{record:#}");
            let id = record["id"].as_str().expect("an id");
            if !content.is_empty() {
                let kept = host.file(&format!("/var/lib/pg-recovery/evidence/{}-main/{id}/postmaster.pid", host.version()));
                assert_eq!(kept.read(), content);
            }
            assert!(!host.run(&format!("ls {}/postmaster.pid.*", host.data_directory())).success(), "litter");
        }
        assert!(host.is_alive(sleeper), "an innocent process was harmed");
    }

    fn three_failed_recoveries_are_enough_until_somebody_resets(host: Host) {
        alone(&host);
        faults::p1_postmaster_killed::inject(&host);
        host.wait_for_state(&host.unit(), "failed", SOON);
        // A fault that no rung repairs: the program that starts clusters is broken.
        host.sh("mv /usr/bin/pg_ctlcluster /usr/bin/pg_ctlcluster.away && printf '#!/bin/sh\\nexit 1\\n' > /usr/bin/pg_ctlcluster && chmod 755 /usr/bin/pg_ctlcluster");
        for _ in 0..3 {
            assert_ne!(recover(&host), 0);
        }
        host.journal_of("pg-recover").says("manual intervention required").says("pg-recover reset --cluster");
        assert_eq!(host.recoveries().iter().filter(|r| r["outcome"] == "failed").count(), 3);
        host.sh("mv /usr/bin/pg_ctlcluster.away /usr/bin/pg_ctlcluster");
        assert_eq!(recover(&host), 0);
        host.journal_of("pg-recover").says("was handed over");
        assert_eq!(host.state_of(&host.unit()), "failed");
        host.sh("pg-recover reset");
        assert_eq!(recover(&host), 0);
        assert!(host.is_accepting());
        let history = host.sh("pg-recover history");
        assert_eq!(history.lines().filter(|line| line.contains(&host.cluster())).count(), 4, "{history}");
        assert!(history.contains("P1: 1 healed of 4, median time "), "{history}");
    }

    fn a_recovery_that_does_not_hold_counts_like_one_that_failed(host: Host) {
        alone(&host);
        let die = || {
            faults::p1_postmaster_killed::inject(&host);
            host.wait_for_state(&host.unit(), "failed", SOON);
        };
        for _ in 0..3 {
            die();
            assert_eq!(recover(&host), 0);
            assert!(host.is_accepting());
            // It is well in between; that alone is no reason to forget.
            assert_eq!(recover(&host), 0);
        }
        die();
        assert_eq!(recover(&host), 1);
        host.journal_of("pg-recover").says("0 failed and 3 did not hold for 10min").says("manual intervention required");
        assert_eq!(recover(&host), 0);
        assert_eq!(host.state_of(&host.unit()), "failed");
        host.sh("pg-recover reset");
        assert_eq!(recover(&host), 0);
        assert!(host.is_accepting());
    }

    fn a_recovery_is_explained_to_whoever_asks(host: Host) {
        alone(&host);
        faults::p1_postmaster_killed::inject(&host);
        host.wait_for_state(&host.unit(), "failed", SOON);
        assert_eq!(recover(&host), 0);
        let record = host.recoveries().pop().expect("on record");
        let id = record["id"].as_str().expect("an id");
        // Without an ID it is the last one, and nobody needs to be root for it.
        for command in [format!("pg-recover explain {id}"), "runuser -u nobody pg-recover explain".into()] {
            let story = host.sh(&command);
            for part in [
                id,
                "pg-recover found that cluster",
                "- no postmaster runs",
                "P1 (priority 0)",
                "1. start: ok",
                "2. verify: ok",
                "How it ended: recovered",
                "target 30s met",
                "What is left to do",
            ] {
                assert!(story.contains(part), "no {part:?} in\n{story}");
            }
        }
        let story = host.json(&format!("pg-recover explain {id} --json"));
        assert_eq!((&story["fault"], &story["priority"], &story["target_met"]), (&"P1".into(), &0.into(), &true.into()));
        assert!(story["rule"].is_string() && story["next"].is_string(), "{story:#}");
    }

    fn a_repair_that_failed_five_times_rests_until_somebody_resets(host: Host) {
        host.psql("CREATE TABLE t (id int)");
        alone(&host);
        host.configure("[recover]\nmax_attempts = 100\n");
        let path = faults::s7_data_directory_permissions::inject_mode_of_a_table(&host, "t");
        host.sh(&format!("chattr +i {path}"));
        let ends: Vec<i32> = (0..6).map(|_| recover(&host)).collect();
        host.sh(&format!("chattr -i {path}"));
        assert_eq!(ends, [1, 1, 1, 1, 1, 69]);
        host.journal_of("pg-recover").says("restore-mode failed 5 times in a row, and is not tried again within 1h of");
        assert_eq!(plan(&host)["plan"], serde_json::json!([]));
        host.sh("pg-recover reset");
        assert_eq!(recover(&host), 0);
        assert_eq!(host.psql("SELECT count(*) FROM t"), "0");
    }

    fn a_file_that_cannot_be_mended_under_a_running_server_is_a_persons_after_three_tries(host: Host) {
        host.psql("CREATE TABLE t (id int)");
        alone(&host);
        // It answers all the time, and pg-watchdog sees that.
        change_evidence(&host, "at", &host.later());
        // Nobody changes its mode now, not even its owner.
        let path = faults::s7_data_directory_permissions::inject_mode_of_a_table(&host, "t");
        host.sh(&format!("chattr +i {path}"));
        let ends: Vec<i32> = (0..4).map(|_| recover(&host)).collect();
        host.sh(&format!("chattr -i {path}"));
        assert_eq!(ends, [1, 1, 1, 0]);
        let said = host.journal_of("pg-recover");
        assert_eq!(said.count("3 recoveries in a row failed"), 1, "{said}");
        said.says("was handed over: manual intervention required");
        assert!(host.is_accepting());
    }

    fn commits_that_are_missing_after_a_recovery_are_for_a_person_at_once(host: Host) {
        alone(&host);
        // As if the server had once flushed a terabyte more than it has now.
        change_evidence(&host, "flush_lsn", &(1u64 << 40).into());
        let postmaster = faults::p2_postmaster_stopped::inject(&host);
        assert_eq!(recover(&host), 1);
        host.journal_of("pg-recover").says("had been flushed: commits are missing").says("manual intervention required");
        let record = host.recoveries().pop().expect("on record");
        assert_eq!(record["outcome"], "manual", "{record:#}");
        // It serves clients; nothing more is done to it until a person has looked.
        assert_eq!(host.postmaster_pid(), postmaster);
        faults::p1_postmaster_killed::inject(&host);
        host.wait_for_state(&host.unit(), "failed", SOON);
        assert_eq!(recover(&host), 0);
        assert_eq!(host.state_of(&host.unit()), "failed");
    }

    fn a_configuration_that_its_owner_cannot_read_is_put_back_and_kept(host: Host) {
        alone(&host);
        let conf = format!("{}/postgresql.conf", host.configuration_directory());
        host.sh(&format!("chown root:root {conf} && chmod 600 {conf}"));
        host.operator_stops(&host.unit());
        host.run(&format!("systemctl start {}", host.unit()));
        asked_by_checks(&host);
        assert_eq!(recover(&host), 0);
        assert!(host.is_accepting());
        let record = host.recoveries().pop().expect("on record");
        assert_eq!(record["fault"], "C1", "{record:#}");
        assert_eq!(host.file(&conf).owner(), host.uid_of("postgres"));
        host.sh(&format!("ls {conf}.broken-*"));
    }

    fn a_setting_that_keeps_commits_durable_is_never_put_back(host: Host) {
        alone(&host);
        let conf = host.file(&format!("{}/postgresql.conf", host.configuration_directory()));
        conf.append("synchronous_commit = remote_apply\nx = = 1");
        let bad = conf.read();
        host.run(&format!("systemctl restart {}", host.unit()));
        assert_eq!(recover(&host), 69);
        host.journal_of("pg-recover").says("manual intervention required");
        assert_eq!(conf.read(), bad);
    }

    fn a_pg_control_is_not_put_back_without_the_wal_for_it(host: Host) {
        alone(&host);
        let segment = host.psql("SELECT pg_walfile_name(redo_lsn) FROM pg_control_checkpoint()");
        faults::p1_postmaster_killed::inject(&host);
        host.wait_for_state(&host.unit(), "failed", SOON);
        let (control, wal) = ("global/pg_control", format!("pg_wal/{segment}"));
        host.sh(&format!("cd {} && mv {control} /control.kept && mv {wal} /wal.kept", host.data_directory()));
        assert_eq!(recover(&host), 69);
        host.journal_of("pg-recover").says("WAL for the copy is not readable").does_not_say("step 1");
        assert!(!host.file(&format!("{}/{control}", host.data_directory())).exists());
        host.sh(&format!("cd {} && mv /wal.kept {wal}", host.data_directory()));
        assert_eq!(recover(&host), 0);
        assert!(host.is_accepting());
    }

    fn a_pg_control_lost_before_anybody_has_looked_at_the_new_server_is_put_back(host: Host) {
        alone(&host);
        let ledger = host.ledger_of_fresh_sessions();
        let control = host.file(&format!("{}/global/pg_control", host.data_directory()));
        host.sh(&format!("systemctl restart {}", host.unit()));
        host.wait_until_accepting(SOON);
        ledger.wait_for_commits(50);
        let postmaster = host.postmaster_pid();
        control.remove();
        assert_eq!(recover(&host), 0);
        let record = host.recoveries().pop().expect("it is on record");
        assert_eq!((&record["fault"], &record["outcome"]), (&"S9".into(), &"recovered".into()), "{record:#}");
        assert_eq!(host.postmaster_pid(), postmaster);
        // What the server writes into it next is its own again.
        host.psql("CHECKPOINT");
        ledger.wait_for_commits(50);
        host.sh(&format!("kill -KILL {postmaster}"));
        host.wait_for_state(&host.unit(), "failed", SOON);
        assert_eq!(recover(&host), 0);
        ledger.stop_and_check().assert_nothing_lost();
    }

    fn a_volume_that_is_not_mounted_is_not_started_upon(host: Host) {
        alone(&host);
        host.operator_stops(&host.unit());
        asked_by_checks(&host);
        let data = host.data_directory();
        host.sh(&format!("mv {data} {data}.elsewhere && install -d -o postgres -g postgres -m 700 {data}"));
        assert_eq!(recover(&host), 69);
        host.journal_of("pg-recover").says("its volume may not be mounted").does_not_say("step 1");
        assert_eq!(host.sh(&format!("ls -A {data}")), "");
        host.sh(&format!("rmdir {data} && mv {data}.elsewhere {data}"));
        assert_eq!(recover(&host), 0);
        assert!(host.is_accepting());
    }

    fn a_tablespace_that_is_not_mounted_is_not_started_upon(host: Host) {
        host.sh("install -d -o postgres -g postgres -m 700 /space");
        host.psql("CREATE TABLESPACE space LOCATION '/space'");
        host.psql("CREATE TABLE far (id int) TABLESPACE space");
        host.psql("INSERT INTO far VALUES (1)");
        alone(&host);
        faults::p1_postmaster_killed::inject(&host);
        host.wait_for_state(&host.unit(), "failed", SOON);
        host.sh("mv /space /space.elsewhere && install -d -o postgres -g postgres -m 700 /space");
        assert_eq!(recover(&host), 69);
        host.journal_of("pg-recover").says("the tablespace /space has no").does_not_say("step 1");
        assert_eq!(host.sh("ls -A /space"), "");
        host.sh("rmdir /space && mv /space.elsewhere /space");
        assert_eq!(recover(&host), 0);
        assert_eq!(host.psql("SELECT id FROM far"), "1");
    }

    fn another_clusters_data_directory_is_not_started_upon(host: Host) {
        alone(&host);
        host.operator_stops(&host.unit());
        asked_by_checks(&host);
        let data = host.data_directory();
        let initdb = host.main_cluster().program("initdb");
        host.sh(&format!("mv {data} {data}.ours && runuser -u postgres -- {initdb} -D {data}"));
        assert_eq!(recover(&host), 69);
        host.journal_of("pg-recover").says("it is another cluster's").does_not_say("step 1");
    }

    fn a_run_killed_before_any_of_its_steps_is_finished_by_the_next(host: Host) {
        alone(&host);
        host.configure(&format!("{QUICK_LADDER}max_attempts = 100\n"));
        let ledger = host.ledger();
        // Two repairs and a start, a restart of a hung server, and what is proven at the end.
        type Inject = fn(&Host);
        let cases: [(Inject, u32); 4] = [
            (|h| { faults::c1_bad_postgresql_conf::inject(h); }, 3),
            (|h| { faults::p9_orphan_backend::inject(h); h.wait_for_state(&h.unit(), "failed", SOON); }, 3),
            (|h| { faults::s7_data_directory_permissions::inject_mode(h); }, 3),
            (keep_stopped, 6),
        ];
        for (inject, steps) in cases {
            for step in 1..=steps {
                ledger.wait_for_commits(20);
                inject(&host);
                let killed = host.run(&format!("PG_RECOVERY_KILL_BEFORE_STEP={step} pg-recover"));
                assert!(killed.status == 137, "not killed before step {step}: {killed}");
                assert_eq!(recover(&host), 0, "after step {step}");
                ledger.wait_for_commits(20);
                // systemd refuses a sixth start within ten seconds, the operator's own too, unless its count is reset.
                let cluster = host.unit();
                host.run(&format!("systemctl stop stopper orphaned-session; systemctl reset-failed stopper orphaned-session {cluster}"));
            }
        }
        ledger.stop_and_check().assert_nothing_lost();
    }

    fn a_run_killed_between_stop_and_start_is_taken_up_by_the_watchdog(host: Host) {
        alone(&host);
        host.configure(QUICK_LADDER);
        let ledger = host.ledger();
        keep_stopped(&host);
        let killed = host.run("PG_RECOVERY_KILL_BEFORE_STEP=5 pg-recover");
        assert_eq!(killed.status, 137, "{killed}");
        host.run("systemctl stop stopper");
        host.sh("systemctl start pg-watchdog");
        ledger.wait_for_commits_within(50, SOON);
        ledger.stop_and_check().assert_nothing_lost();
    }

    fn a_folder_that_was_never_recorded_is_not_given_to_anybody(host: Host) {
        alone(&host);
        host.operator_stops(&host.unit());
        asked_by_checks(&host);
        // Whoever can write postgresql.conf could name any folder.
        host.sh(&format!("install -d -m 755 /decoy/global && cp {0}/PG_VERSION /decoy && cp {0}/global/pg_control /decoy/global", host.data_directory()));
        let conf = host.file(&format!("{}/postgresql.conf", host.configuration_directory()));
        conf.append("data_directory = '/decoy'");
        assert_ne!(recover(&host), 0);
        assert_eq!((host.file("/decoy").owner(), host.file("/decoy").mode() & 0o777), (0, 0o755));
    }

    fn an_old_failure_of_the_unit_does_not_overrule_a_stop(host: Host) {
        alone(&host);
        let bad = faults::c1_bad_postgresql_conf::inject(&host);
        assert!(!bad.success());
        host.sh(&format!("sed -i '$d' {}/postgresql.conf", host.configuration_directory()));
        let ctl = |verb: &str| host.as_postgres(&format!("pg_ctlcluster {} main {verb}", host.version()));
        assert!(ctl("start").success());
        host.psql("CHECKPOINT");
        host.wait_until("the failure is old", SOON, || host.psql("SELECT now() - pg_postmaster_start_time() > '5s'") == "t");
        assert!(ctl("stop").success());
        assert_eq!(host.property_of(&host.unit(), "Result"), "protocol");
        assert_eq!(recover(&host), 0);
        host.journal_of("pg-recover").says("was stopped on purpose, leaving it alone").does_not_say("step 1");
    }

    fn wrong_input_is_answered_clearly_and_changes_nothing(host: Host) {
        let refused = |command: &str, code: i32, words: &[&str]| {
            let output = host.run(command);
            assert_eq!(output.status, code, "{command}\n{output}");
            for word in words {
                assert!(output.stderr.contains(word), "{command}: no {word:?} in\n{output}");
            }
        };
        refused("pg-recover --cluster 9/nope", 64, &["cannot find cluster 9/nope", "HINT"]);
        refused("pg-recover --force", 64, &["--force"]);
        refused("pg-recover frobnicate", 64, &["frobnicate"]);
        refused("pg-recover explain", 64, &["cannot find any recovery", "pg-recover history"]);
        refused("pg-recover explain 20200101T000000Z-9-nope-1", 64, &["20200101T000000Z-9-nope-1", "HINT"]);
        refused("pg-recover pause 3fortnights", 64, &["is not a time"]);
        refused("pg-recover --config /nonexistent.toml", 78, &["/nonexistent.toml"]);
        refused("runuser -u postgres -- pg-recover", 77, &["needs root"]);
        refused("runuser -u nobody -- pg-recover pause", 77, &["needs root"]);
        host.configure("mode = \"heal\"\n[recover]\nmax_attemps = 3\n");
        refused("pg-recover", 78, &["/etc/pg-recovery/config.d/test.toml, line 3, key max_attemps"]);
        host.configure("[recover]\nmax_attempts = \"three\"\n");
        refused("pg-recover --plan", 78, &["line 2, key max_attempts"]);
        host.configure("");
        assert!(host.recoveries().is_empty());
        assert!(!host.file("/var/lib/pg-recovery/pause.json").exists());
    }

    fn a_missing_postgresql_is_said_and_nothing_is_changed(host: Host) {
        alone(&host);
        host.operator_stops(&host.unit());
        asked_by_checks(&host);
        host.sh(&format!("mv /usr/lib/postgresql/{0} /usr/lib/postgresql/{0}.away", host.version()));
        assert_ne!(recover(&host), 0);
        host.journal_of("pg-recover").says("could not run postgres -C").does_not_say("step 1");
    }
}

/// Faults in two clusters, one of them without a repair, do not stand in each other's way.
#[test]
fn a_cluster_that_cannot_be_repaired_does_not_keep_another_from_it() {
    let host = Host::boot(Suite::Bookworm);
    let second = host.create_cluster("second");
    alone(&host);
    for cluster in [&host.main_cluster(), &second] {
        host.signal(host.postmaster_pid_of(cluster), Signal::SIGKILL);
        host.wait_for_state(&cluster.unit(), "failed", SOON);
    }
    // With its copies: nothing can be put back.
    let copies = format!("/var/lib/pg-recovery/evidence/{}-main/pg_control*", host.version());
    host.sh(&format!("rm {}/global/pg_control {copies}", host.data_directory()));
    assert_eq!(recover(&host), 69);
    host.psql_on(&second, "SELECT 1");
    host.journal_of("pg-recover").says("pg_control is missing");
}

/// One pg-recovery.service serves all clusters; one that takes long must not keep it from the others.
#[test]
fn a_cluster_that_dies_while_another_is_being_recovered_is_recovered_too() {
    let host = Host::boot(Suite::Trixie);
    let second = host.create_cluster("second");
    alone(&host);
    host.configure("[recover]\nfast_stop_timeout = \"60s\"\n");
    keep_stopped(&host);
    host.start("pg-recovery.service");
    host.wait_for_journal("pg-recover", "step 2 stop-fast", SOON);
    host.signal(host.postmaster_pid_of(&second), Signal::SIGKILL);
    host.wait_for_state(&second.unit(), "failed", SOON);
    host.wait_until("the second cluster is back", Duration::from_secs(40), || {
        host.try_psql_on(&second, "SELECT 1").success()
    });
    assert_eq!(host.state_of("pg-recovery.service"), "activating");
    assert!(!host.is_accepting());
}

/// A volume that never answers, such as one on a file server that is gone, holds up nothing but its own cluster.
#[test]
fn a_dead_volume_holds_up_nothing_but_its_own_cluster() {
    let host = Host::boot(Suite::Bookworm);
    let second = host.create_cluster("second");
    host.operator_stops(&second.unit());
    host.wait_until_settled();
    faults::s6_dead_volume::inject(&host, &second.data_directory());
    // An innocent program waits for that volume, and is one of those that may have a data directory to themselves.
    host.run_as_unit("waiting", "root", &format!("exec tar -cf /dev/null {}/base", second.data_directory()));
    faults::p1_postmaster_killed::inject(&host);
    host.wait_until_accepting(SOON);
    host.sh("systemctl stop --no-block pg-watchdog.service pg-health-check.timer");
    host.wait_for_journal("pg-watchdog", "no longer watching", SOON);
    faults::p2_postmaster_stopped::inject(&host);
    host.start("pg-recovery.service");
    host.wait_until_accepting(SOON);
    // Its answer is there; the program itself cannot end while one of its threads waits for that volume.
    host.run_as_unit("check", "root", &format!("pg-health-check --json --cluster {} > /answer", host.cluster()));
    host.wait_until("the check has answered", SOON, || host.file("/answer").read().contains("\"checks\""));
    let answer: serde_json::Value = serde_json::from_str(&host.file("/answer").read()).expect("it is JSON");
    assert_ne!(answer["clusters"][0]["status"], "critical", "{answer:#}");
    host.sh("systemctl stop dead-volume");
    host.wait_for_state("pg-watchdog.service", "inactive", SOON);
}
