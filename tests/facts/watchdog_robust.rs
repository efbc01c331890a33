//! What pg-watchdog must stand, and what it and the others leave alone however often they look.

use std::time::Duration;

use host::{Cluster, Host, Ledger, Signal, facts_on_both_suites, faults};

const SOON: Duration = Duration::from_secs(60);
const ME: &str = "pg-watchdog";
const UNIT: &str = "pg-watchdog.service";
const CHECK: &str = "pg-health-check.service";

/// What the checks have counted against a cluster.
fn failures(host: &Host, cluster: &Cluster) -> u64 {
    let name = cluster.name().replace('/', "-");
    let text = host.file(&format!("/var/lib/pg-recovery/health/{name}.json")).read();
    let state: serde_json::Value = serde_json::from_str(&text).expect("the state is JSON");
    state["failures"].as_u64().expect("it has the failures")
}

/// When the timer's last check began, in microseconds since boot.
fn last_check(host: &Host) -> String {
    host.property_of(CHECK, "ExecMainStartTimestampMonotonic")
}

/// Waits for so many checks that the timer starts.
fn wait_for_passes(host: &Host, passes: u32) {
    for _ in 0..passes {
        let before = last_check(host);
        host.wait_until("a check has begun", Duration::from_secs(100), || last_check(host) != before);
        host.wait_until("it has ended", SOON, || host.state_of(CHECK) != "activating");
    }
}

/// A cluster the way other distributions keep it: everything in its data directory, and a unit of its own.
struct Described {
    cluster: Cluster,
    unit: &'static str,
    data: &'static str,
}

impl Described {
    fn on(host: &Host) -> Described {
        let described = Described {
            cluster: Cluster::new(host.version(), "red", 5440),
            unit: "postgresql-red.service",
            data: "/var/lib/pgsql/data",
        };
        let bin = described.cluster.program("");
        host.sh(&format!(
            "install -d -o postgres -m 755 /var/lib/pgsql && runuser -u postgres -- {bin}initdb --auth=peer -D {}",
            described.data
        ));
        host.file(&format!("{}/postgresql.conf", described.data)).append(
            "port = 5440\nunix_socket_directories = '/run/postgresql'\nlogging_collector = on\nlog_filename = 'postgresql.log'",
        );
        host.file(&format!("/etc/systemd/system/{}", described.unit)).write(format!(
            "[Service]\nType=notify\nUser=postgres\nExecStart={bin}postgres -D {}\nExecReload=/bin/kill -HUP $MAINPID\n\
             KillMode=mixed\nKillSignal=SIGINT\nTimeoutSec=0\nOOMScoreAdjust=-1000\n[Install]\nWantedBy=multi-user.target\n",
            described.data
        ));
        host.configure(&format!(
            "[[cluster]]\nname = \"{}\"\nunit = \"{}\"\ndata_directory = \"{data}\"\nbin_directory = \"{}\"\nlog_file = \"{data}/log/postgresql.log\"\n",
            described.cluster.name(),
            described.unit,
            bin.trim_end_matches('/'),
            data = described.data
        ));
        host.sh(&format!(
            "systemctl daemon-reload && systemctl enable --now {} && systemctl reload {UNIT}",
            described.unit
        ));
        let good = format!("ls -d /var/lib/pg-recovery/points/*-{}-red-good", host.version());
        host.wait_until("its configuration is known to be good", SOON, || host.run(&good).success());
        described
    }

    fn ledger(&self, host: &Host) -> Ledger {
        let ledger = host.ledger_on(&self.cluster);
        ledger.wait_for_commits(100);
        ledger
    }

    fn postmaster(&self, host: &Host) -> i32 {
        host.property_of(self.unit, "MainPID").parse().expect("systemd knows the pid")
    }
}

facts_on_both_suites! {
    fn a_systemctl_that_hangs_delays_a_restart_and_no_more(host: Host) {
        host.wait_until_settled();
        let ledger = host.ledger();
        ledger.wait_for_commits(100);
        faults::t4_command_hangs::inject(&host, "/usr/bin/systemctl");
        faults::p1_postmaster_killed::inject(&host);
        host.wait_for_journal(ME, "could not run systemctl show", SOON);
        host.journal_of(ME).says("no end after 10000ms");
        // Longer than systemd waits for a sign of life.
        std::thread::sleep(Duration::from_secs(35));
        assert_eq!(host.state_of(&host.unit()), "failed");
        faults::t4_command_hangs::end(&host, "/usr/bin/systemctl");
        ledger.wait_for_commits(50);
        assert_eq!(host.property_of(UNIT, "NRestarts"), "0");
        ledger.stop_and_check().assert_nothing_lost();
    }

    fn what_an_operator_switched_off_is_left_alone_pass_after_pass(host: Host) {
        host.wait_until_settled();
        let clusters = [host.main_cluster(), host.create_cluster("masked"), host.create_cluster("paused")];
        host.wait_for_journal(ME, &format!("cluster {} has a postmaster", clusters[2].name()), SOON);
        host.sh(&format!("pg-recover pause --cluster {} 1h 'a new disk'", clusters[2].name()));
        host.operator_disables(&clusters[0].unit());
        host.operator_masks(&clusters[1].unit());
        host.signal(host.postmaster_pid_of(&clusters[2]), Signal::SIGKILL);
        wait_for_passes(&host, 3);
        for cluster in &clusters {
            assert_ne!(host.state_of(&cluster.unit()), "active", "{}", cluster.name());
            assert_eq!(failures(&host, cluster), 0, "{}", cluster.name());
        }
        assert!(host.recoveries().is_empty());
        assert_eq!(host.property_of("pg-recovery.service", "ExecMainStartTimestampMonotonic"), "0");
        for (program, reasons) in [
            (ME, ["is disabled in start.conf, leaving it alone", "has its unit masked, leaving it alone", "is paused for"]),
            ("pg-health-check", ["is disabled in start.conf", "has its unit masked", "not counted as a failure: cluster"]),
        ] {
            let said = host.journal_of(program);
            for reason in reasons {
                said.says(reason);
            }
        }
    }

    fn a_used_up_budget_is_handed_over_and_the_recovery_brings_it_back(host: Host) {
        host.wait_until_settled();
        let ledger = host.ledger();
        for restart in 1..=5 {
            faults::p1_postmaster_killed::inject(&host);
            host.wait_for_journal(ME, &format!("(restart {restart} of 5)"), Duration::from_secs(90));
            ledger.wait_for_commits(50);
        }
        host.journal_of("pg-recover").does_not_say("step 1");
        faults::p1_postmaster_killed::inject(&host);
        host.wait_for_journal(ME, "it was restarted 5 times in 10min and died again", SOON);
        host.wait_for_journal("pg-recover", "recovered from P1", SOON);
        ledger.wait_for_commits(50);
        ledger.stop_and_check().assert_nothing_lost();
        assert_eq!(host.journal_of(ME).count("starting postgresql@"), 5);
    }

    fn a_bad_configuration_ends_it_once_with_the_reason_and_a_good_one_lets_it_start(host: Host) {
        host.wait_until_settled();
        host.configure("[watchdog]\nrestarts = \"many\"\n");
        assert!(!host.run(&format!("systemctl restart {UNIT}")).success());
        assert_eq!((host.state_of(UNIT), host.property_of(UNIT, "ExecMainStatus")), ("failed".into(), "78".into()));
        std::thread::sleep(Duration::from_secs(5));
        assert_eq!((host.state_of(UNIT), host.property_of(UNIT, "NRestarts")), ("failed".into(), "0".into()));
        let said = host.journal_of(ME);
        said.says("/etc/pg-recovery/config.d/test.toml, line 2, key restarts").says("HINT");
        assert_eq!(said.count("key restarts"), 1, "{said}");
        host.configure("");
        host.sh(&format!("systemctl start {UNIT}"));
        faults::p1_postmaster_killed::inject(&host);
        host.wait_until("it is restarted", SOON, || host.is_accepting());
    }

    fn values_of_two_files_that_contradict_each_other_are_refused_with_both_names(host: Host) {
        let folder = "/etc/pg-recovery/config.d";
        host.file(&format!("{folder}/10-warn.toml")).write("[health]\ndisk_warn = 88\n");
        host.file(&format!("{folder}/20-fail.toml")).write("[health]\ndisk_fail = 85\n");
        host.file(&format!("{folder}/30-other.toml")).write("[watchdog]\nrestarts = 4\n");
        for command in ["pg-recover --plan", "pg-watchdog"] {
            let refused = host.run(command);
            assert_eq!(refused.status, 78, "{refused}");
            for word in [&format!("{folder}/10-warn.toml"), &format!("{folder}/20-fail.toml"), "health.disk_warn", "HINT"] {
                assert!(refused.stderr.contains(word), "{command}: no {word} in {refused}");
            }
            assert!(!refused.stderr.contains("30-other"), "{refused}");
        }
    }

    fn wrong_input_is_answered_clearly(host: Host) {
        let refused = |command: &str, code: i32, words: &[&str]| {
            let output = host.run(command);
            assert_eq!(output.status, code, "{command}\n{output}");
            for word in words {
                assert!(output.stderr.contains(word), "{command}: no {word:?} in\n{output}");
            }
        };
        refused("timeout 3 pg-watchdog --cluster 9/nope", 124, &["cannot find cluster 9/nope; it is watched as soon"]);
        refused("pg-watchdog --frobnicate", 64, &["--frobnicate"]);
        refused("pg-watchdog --config /nonexistent.toml", 78, &["/nonexistent.toml"]);
        refused("runuser -u postgres -- pg-watchdog", 77, &["root"]);
    }

    fn stopping_the_target_during_a_check_starts_nothing_and_leaves_no_failure(host: Host) {
        host.wait_until_settled();
        host.configure("mode = \"observe\"\n");
        host.sh("systemctl stop pg-health-check.timer pg-watchdog.service");
        let pid = faults::p2_postmaster_stopped::inject(&host);
        for times in 1..=3 {
            host.start(CHECK);
            host.wait_for_state(CHECK, "activating", SOON);
            // Each cluster has a thread, which is waiting for an answer now.
            let pid = host.property_of(CHECK, "ExecMainPID");
            host.wait_until("it asks the server", SOON, || host.run(&format!("ls /proc/{pid}/task")).stdout.lines().count() > 1);
            host.operator_stops("pg-recovery.target");
            host.wait_for_state(CHECK, "inactive", SOON);
            assert_eq!(host.property_of(CHECK, "Result"), "success", "{times}");
            assert_eq!(host.property_of(CHECK, "ExecMainCode"), "2", "the check was over before it was stopped");
        }
        assert_eq!(host.property_of("pg-recovery.service", "ExecMainStartTimestampMonotonic"), "0");
        assert_eq!(host.sh("systemctl --failed --plain --no-legend"), "");
        host.signal(pid, Signal::SIGCONT);
        host.wait_until_accepting(SOON);
    }

    fn the_stop_of_an_ill_server_gets_three_checks_of_its_own(host: Host) {
        host.wait_until_settled();
        host.sh("systemctl stop pg-health-check.timer pg-watchdog.service");
        let check = || {
            host.sh(&format!("systemctl reset-failed {CHECK}"));
            host.start_and_wait(CHECK);
            failures(&host, &host.main_cluster())
        };
        let pid = faults::p2_postmaster_stopped::inject(&host);
        assert_eq!([check(), check()], [1, 2]);
        host.signal(pid, Signal::SIGCONT);
        host.operator_stops(&host.unit());
        assert_eq!([check(), check()], [1, 2]);
        assert_eq!(host.property_of("pg-recovery.service", "ExecMainStartTimestampMonotonic"), "0");
        assert_eq!(host.state_of(&host.unit()), "inactive");
        check();
        host.wait_until_accepting(SOON);
        host.journal_of("pg-recover").says("stopped cleanly although it is meant to run");
    }

    fn a_lock_file_that_could_not_be_saved_is_saved_when_there_is_room_again(host: Host) {
        host.wait_until_settled();
        faults::t1_state_file::inject_disk_full(&host);
        faults::p1_postmaster_killed::inject(&host);
        host.wait_for_journal(ME, "could not save postmaster.pid", SOON);
        let state = faults::t1_state_file::STATE;
        let saved = host.file(&format!("{state}/evidence/{}-main/postmaster.pid", host.version()));
        let original = host.file(&format!("{}/postmaster.pid", host.data_directory()));
        host.wait_until_accepting(SOON);
        assert_ne!(saved.read_bytes(), original.read_bytes());
        host.sh(&format!("rm {state}/filler {state}/filler2"));
        host.wait_until("it is saved", Duration::from_secs(150), || saved.read_bytes() == original.read_bytes());
        let ledger = host.ledger();
        let pid = faults::p8_postmaster_pid_removed::inject(&host);
        host.wait_until("it is put back", SOON, || original.exists());
        ledger.wait_for_commits(50);
        assert_eq!(host.postmaster_pid(), pid);
        ledger.stop_and_check().assert_nothing_lost();
    }

    fn a_cluster_that_only_the_configuration_describes_is_brought_back(host: Host) {
        let red = Described::on(&host);
        let ledger = red.ledger(&host);
        let pid = red.postmaster(&host);
        host.signal(pid, Signal::SIGKILL);
        host.wait_for_journal(ME, &format!("starting {}", red.unit), SOON);
        ledger.wait_for_commits(50);
        assert_ne!(red.postmaster(&host), pid);
        let tally = ledger.stop_and_check();
        tally.assert_nothing_lost();
        host.publish_downtime("P1 postmaster of a described cluster killed", tally.longest_gap());
        // Its own words for "off".
        host.operator_disables(red.unit);
        host.wait_for_journal(ME, &format!("cluster {} was stopped and is disabled, leaving it alone", red.cluster.name()), SOON);
    }

    fn a_bad_configuration_of_a_described_cluster_is_undone(host: Host) {
        let red = Described::on(&host);
        let ledger = red.ledger(&host);
        let conf = host.file(&format!("{}/postgresql.conf", red.data));
        let good = conf.read();
        conf.append("work_mem = = 1");
        assert!(!host.run(&format!("systemctl restart {}", red.unit)).success());
        ledger.wait_for_commits(50);
        assert_eq!(conf.read(), good);
        host.wait_until("it is on record", SOON, || host.recoveries().iter().any(|r| r["fault"] == "C1" && r["outcome"] == "recovered"));
        ledger.stop_and_check().assert_nothing_lost();
    }

    fn a_stopped_postmaster_of_a_described_cluster_is_continued(host: Host) {
        let red = Described::on(&host);
        let ledger = host.ledger_on(&red.cluster);
        let pid = red.postmaster(&host);
        host.signal(pid, Signal::SIGSTOP);
        host.wait_for_journal("pg-recover", "continue ok", SOON);
        ledger.wait_for_commits(50);
        assert_eq!(red.postmaster(&host), pid);
        ledger.stop_and_check().assert_nothing_lost();
    }
}
