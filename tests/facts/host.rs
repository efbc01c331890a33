//! What the test machines, the ledger and the injections themselves promise.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use host::{Host, Suite, facts_on_both_suites, faults, poll_until};

const SOON: Duration = Duration::from_secs(30);

fn wait_until_down(host: &Host) {
    // Between the postmaster's death and `failed` the unit is busy with its ExecStop, and a start would be lost.
    host.wait_for_state(&host.unit(), "failed", SOON);
}

fn start(host: &Host) {
    let output = host.start_and_wait(&host.unit());
    assert!(output.success(), "{output}\n{}", host.server_log());
    host.wait_until_accepting(SOON);
}

#[track_caller]
fn assert_start_fails_with(host: &Host, reason: &str) {
    let output = host.start_and_wait(&host.unit());
    assert!(!output.success(), "the cluster started");
    let said = format!("{}\n{}", host.journal_of(&host.unit()), host.server_log());
    assert!(said.contains(reason), "nobody said {reason:?}:\n{said}");
}

facts_on_both_suites! {
    fn a_plain_machine_boots_with_its_cluster_accepting_and_nothing_failed(suite: Suite) {
        let host = Host::boot_plain(suite);
        assert_eq!(host.sh("systemctl is-system-running"), "running");
        assert_eq!(host.state_of(&host.unit()), "active");
        assert_eq!(host.psql("SHOW server_version_num").len(), 6);
        assert_eq!(host.cluster_state(), "in production");
    }

    fn the_ledger_measures_a_killed_postmaster_and_nothing_is_lost(suite: Suite) {
        let host = Host::boot_plain(suite);
        let ledger = host.ledger();
        ledger.wait_for_commits(100);
        faults::p1_postmaster_killed::inject(&host);
        wait_until_down(&host);
        start(&host);
        ledger.wait_for_commits(100);
        let tally = ledger.stop_and_check();
        tally.assert_nothing_lost();
        assert!(tally.longest_gap() > Duration::from_millis(50), "{tally:?}");
        assert!(tally.unknown <= 1, "one client has one commit under way: {tally:?}");
        host.publish_downtime("P1 postmaster killed, started by hand as soon as its unit is failed", tally.longest_gap());
    }

    fn the_ledger_reports_an_acknowledged_row_that_is_missing_and_one_that_is_there_twice(suite: Suite) {
        let host = Host::boot_plain(suite);
        let ledger = host.ledger();
        ledger.wait_for_commits(20);
        host.psql("DELETE FROM ledger WHERE id = 7");
        host.psql("INSERT INTO ledger VALUES (9)");
        let tally = ledger.stop_and_check();
        assert_eq!((tally.lost, tally.duplicated), (1, 1), "{tally:?}");
    }

    fn the_ledger_survives_a_power_cut_and_nothing_is_lost(suite: Suite) {
        let host = Host::boot_plain(suite);
        let ledger = host.ledger();
        ledger.wait_for_commits(100);
        host.power_cut_and_boot();
        ledger.wait_for_commits(100);
        ledger.stop_and_check().assert_nothing_lost();
        host.journal_of(&host.unit()).says("Started");
    }

    fn only_fresh_sessions_notice_a_stopped_postmaster(suite: Suite) {
        let host = Host::boot_plain(suite);
        let (old, fresh) = (host.ledger(), host.ledger_of_fresh_sessions());
        let postmaster = faults::p2_postmaster_stopped::inject(&host);
        old.wait_for_commits(200);
        host.wait_until("a gap of a second", SOON, || fresh.gap_so_far() > Duration::from_secs(1));
        assert_eq!(host.state_of(&host.unit()), "active");
        assert_eq!(host.state_of_process(postmaster), Some('T'));
        assert!(old.gap_so_far() < Duration::from_secs(1), "old sessions go on");
        host.signal(postmaster, host::Signal::SIGCONT);
        fresh.wait_for_commits(10);
    }

    fn a_server_of_stopped_processes_does_not_hang_the_ledger(suite: Suite) {
        let host = Host::boot_plain(suite);
        let ledger = host.ledger();
        let all = faults::p2_all_processes_stopped::inject(&host);
        host.wait_until("a gap of two seconds", SOON, || ledger.gap_so_far() > Duration::from_secs(2));
        for pid in all {
            host.signal(pid, host::Signal::SIGCONT);
        }
        ledger.wait_for_commits(10);
        ledger.stop_and_check().assert_nothing_lost();
    }

    fn a_stopped_checkpointer_hangs_a_checkpoint_and_no_client(suite: Suite) {
        let host = Host::boot_plain(suite);
        faults::p3_checkpointer_stopped::inject(&host);
        assert!(host.is_accepting());
        assert_eq!(host.try_psql("SET statement_timeout = '2s'; CHECKPOINT").status, 1);
    }

    fn a_killed_backend_is_survived_by_the_server_itself(suite: Suite) {
        let host = Host::boot_plain(suite);
        let postmaster = host.postmaster_pid();
        faults::p4_backend_killed::inject(&host);
        host.wait_until_accepting(SOON);
        assert_eq!(host.postmaster_pid(), postmaster);
        assert!(host.server_log().contains("was terminated by signal 9"));
    }

    fn pg_ctlcluster_removes_an_unusable_postmaster_pid_before_it_starts(suite: Suite) {
        let host = Host::boot_plain(suite);
        for inject in [
            faults::p6_postmaster_pid_unusable::inject_stale,
            faults::p6_postmaster_pid_unusable::inject_empty,
            faults::p6_postmaster_pid_unusable::inject_garbage,
        ] {
            inject(&host);
            host.wait_until_accepting(SOON);
        }
        assert_eq!(host.journal_of(&host.unit()).count("Removed stale pid file"), 3);
    }

    fn a_recycled_pid_blocks_the_start_when_its_command_line_has_the_word_postgres(suite: Suite) {
        let host = Host::boot_plain(suite);
        let innocent = faults::p7_pid_recycled::inject(&host);
        assert!(host.is_accepting() && host.is_alive(innocent));
        let innocent = faults::p7_pid_recycled::inject_with_postgres_in_its_command_line(&host);
        assert!(!host.is_accepting() && host.is_alive(innocent));
        assert_eq!(host.postmaster_pid(), innocent);
        host.journal_of(&host.unit()).says("Cluster is already running");
    }

    fn a_server_without_its_postmaster_pid_shuts_itself_down_within_a_minute(suite: Suite) {
        let host = Host::boot_plain(suite);
        faults::p8_postmaster_pid_removed::inject(&host);
        host.wait_until("the server is down", Duration::from_secs(75), || !host.is_accepting());
        assert!(host.server_log().contains("data directory lock file is invalid"));
        wait_until_down(&host);
        assert_eq!(host.cluster_state(), "in production");
    }

    fn an_orphan_backend_blocks_the_start(suite: Suite) {
        let host = Host::boot_plain(suite);
        let orphan = faults::p9_orphan_backend::inject(&host);
        wait_until_down(&host);
        assert_eq!(host.state_of_process(orphan), Some('T'));
        assert_start_fails_with(&host, "pre-existing shared memory block");
    }

    fn a_socket_directory_without_write_permission_blocks_the_start(suite: Suite) {
        let host = Host::boot_plain(suite);
        assert!(!faults::p11_socket_directory::inject_unwritable(&host).success());
        assert!(host.server_log().contains("lock file \"/var/run/postgresql/.s.PGSQL.5432.lock\": Permission denied"), "{}", host.server_log());
    }

    fn a_missing_socket_directory_is_made_anew_by_pg_ctlcluster(suite: Suite) {
        let host = Host::boot_plain(suite);
        let output = faults::p11_socket_directory::inject_missing(&host);
        assert!(output.success(), "{output}");
    }

    fn a_removed_socket_keeps_clients_out_of_an_active_server(suite: Suite) {
        let host = Host::boot_plain(suite);
        faults::p12_socket_removed::inject(&host);
        assert!(!host.is_accepting());
        assert_eq!(host.state_of(&host.unit()), "active");
    }

    fn a_full_wal_disk_takes_the_server_down(suite: Suite) {
        let host = Host::boot_plain(suite);
        let _disk = faults::s2_wal_disk_full::inject(&host);
        assert_start_fails_with(&host, "No space left on device");
    }

    fn wrong_permissions_of_the_data_directory_block_the_start(suite: Suite) {
        let host = Host::boot_plain(suite);
        assert!(!faults::s7_data_directory_permissions::inject_mode(&host).success());
        assert!(host.server_log().contains("has invalid permissions"), "{}", host.server_log());
        host.sh(&format!("chmod 700 {}", host.data_directory()));
        start(&host);
        assert!(!faults::s7_data_directory_permissions::inject_owner(&host).success());
    }

    fn a_missing_pg_control_blocks_the_start(suite: Suite) {
        let host = Host::boot_plain(suite);
        faults::s9_pg_control_missing::inject(&host);
        assert_eq!(host.state_of(&host.unit()), "failed");
    }

    fn a_start_without_the_newest_wal_segment_loses_commits_silently(suite: Suite) {
        let host = Host::boot_plain(suite);
        let (_, copy) = faults::s11_newest_wal_removed::inject(&host, || ());
        wait_until_down(&host);
        assert!(host.file(&copy).exists());
        start(&host);
        assert_eq!(host.psql("SELECT count(*) FROM tail"), "0");
    }

    fn each_bad_configuration_stops_the_cluster_at_its_restart(suite: Suite) {
        type Inject = fn(&Host) -> host::Output;
        let injections: [(Inject, &str); 3] = [
            (faults::c1_bad_postgresql_conf::inject, "invalid line"),
            (faults::c2_bad_pg_hba_conf::inject, "could not load"),
            (faults::c3_missing_preload_library::inject, "could not access file \"nope\""),
        ];
        for (inject, reason) in injections {
            let host = Host::boot_plain(suite);
            assert!(!inject(&host).success());
            assert_eq!(host.state_of(&host.unit()), "failed");
            assert_start_fails_with(&host, reason);
        }
    }

    fn a_long_crash_recovery_rejects_clients_until_it_is_done(suite: Suite) {
        let host = Host::boot_plain(suite);
        faults::h2_long_crash_recovery::inject_by_kill(&host, 5);
        wait_until_down(&host);
        host.start(&host.unit());
        host.wait_until("the server is in recovery", SOON, || {
            host.try_psql("SELECT 1").stderr.contains("not yet accepting connections")
                || host.try_psql("SELECT 1").stderr.contains("starting up")
        });
        host.wait_until_accepting(Duration::from_secs(60));
    }

    fn each_way_to_switch_a_cluster_off_leaves_it_off(suite: Suite) {
        let host = Host::boot_plain(suite);
        faults::o1_operator_off::inject_stop(&host);
        assert_eq!(host.state_of(&host.unit()), "inactive");
        start(&host);
        faults::o1_operator_off::inject_stop_as_postgres(&host);
        wait_until_down(&host);
        assert_eq!(host.cluster_state(), "shut down");
        start(&host);
        faults::o1_operator_off::inject_mask(&host);
        assert_eq!(host.property_of(&host.unit(), "LoadState"), "masked");
        host.sh(&format!("systemctl unmask {}", host.unit()));
        start(&host);
        faults::o1_operator_off::inject_disable_all(&host);
        assert_eq!(host.property_of("postgresql.service", "UnitFileState"), "disabled");
        assert_eq!(host.state_of(&host.unit()), "inactive");
        host.sh("systemctl enable --now postgresql.service");
        host.wait_until_accepting(SOON);
        faults::o1_operator_off::inject_disable(&host);
        assert_eq!(host.property_of(&host.unit(), "UnitFileState"), "disabled");
        host.reboot();
        assert_eq!(host.state_of(&host.unit()), "inactive");
    }

    fn a_cluster_started_alone_leaves_its_umbrella_inactive_which_still_restarts_and_stops_it(suite: Suite) {
        let host = Host::boot_plain(suite);
        let stop_all_and_start_one = || {
            host.operator_stops("postgresql.service");
            host.wait_for_state(&host.unit(), "inactive", SOON);
            start(&host);
            assert_eq!(host.state_of("postgresql.service"), "inactive");
        };
        stop_all_and_start_one();
        let postmaster = host.postmaster_pid();
        host.sh("systemctl restart postgresql.service");
        host.wait_until_accepting(SOON);
        assert_ne!(host.postmaster_pid(), postmaster);
        assert_eq!(host.state_of("postgresql.service"), "active");
        stop_all_and_start_one();
        let reload = host.run("systemctl reload postgresql.service");
        assert!(reload.stderr.contains("not active, cannot reload"), "{reload}");
        host.operator_stops("postgresql.service");
        host.wait_for_state(&host.unit(), "inactive", SOON);
    }

    fn a_second_cluster_can_be_a_standby_and_have_a_ledger_of_its_own(suite: Suite) {
        let host = Host::boot_plain(suite);
        let standby = faults::o3_standby::inject(&host);
        assert_eq!(host.psql_on(&standby, "SELECT pg_is_in_recovery()"), "t");
        let second = host.create_cluster("second");
        let ledger = host.ledger_on(&second);
        ledger.wait_for_commits(10);
        ledger.stop_and_check().assert_nothing_lost();
    }

    fn a_cold_copy_keeps_the_data_directory_in_use(suite: Suite) {
        let host = Host::boot_plain(suite);
        let tar = faults::o5_data_directory_in_use::inject(&host);
        assert!(host.is_alive(tar));
        assert_eq!(host.state_of(&host.unit()), "inactive");
    }

    fn state_can_be_torn_and_its_disk_full_or_read_only(suite: Suite) {
        let host = Host::boot_plain(suite);
        let path = "/var/lib/pg-recovery/recover/x.json";
        host.file(path).write("0123456789");
        faults::t1_state_file::inject_torn(&host, path);
        assert_eq!(host.file(path).read(), "01234");
        faults::t1_state_file::inject_disk_full(&host);
        assert_eq!(host.file(path).read(), "01234");
        assert!(host.run(&format!("head -c 8192 /dev/zero > {path}.new")).stderr.contains("No space left"));
        let host = Host::boot_plain(suite);
        faults::t1_state_file::inject_read_only(&host);
        assert!(host.run("touch /var/lib/pg-recovery/x").stderr.contains("Read-only"));
    }

    fn the_data_can_live_on_a_disk_that_forgets_what_was_not_flushed(suite: Suite) {
        let host = Host::boot_plain(suite);
        let disk = host.move_data_to_disk(400);
        let ledger = host.ledger();
        ledger.wait_for_commits(100);
        let before = ledger.book();
        let copy = host.outside().join("copy.img");
        disk.copy_as_after_a_power_cut(&copy);
        assert!(std::fs::metadata(copy).is_ok_and(|metadata| metadata.len() == 400 << 20));
        assert!(before.count(host::Status::Acked) >= 100);
    }
}

#[test]
fn a_test_that_is_killed_leaves_nothing_behind() {
    let me = std::env::current_exe().expect("this program has a path");
    let machine = me.ancestors().skip(1).map(|folder| folder.join("machine")).find(|path| path.is_file());
    let mut owner = Command::new(machine.expect("the program machine is built"))
        .args(["trixie", "--plain"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("it can be started");
    let lines = BufReader::new(owner.stdout.take().expect("its output is a pipe")).lines();
    let mut folder = PathBuf::new();
    let mut group = PathBuf::new();
    for line in lines.map_while(Result::ok) {
        if let Some(path) = line.strip_prefix("folder ") {
            folder = path.into();
        } else if let Some(path) = line.strip_prefix("control group ") {
            group = path.into();
            break;
        }
    }
    assert!(folder.is_dir() && group.is_dir(), "{} and {} are there", folder.display(), group.display());
    owner.kill().expect("it can be killed");
    owner.wait().expect("it ends");
    let gone = |path: &Path| poll_until(SOON, || (!path.exists()).then_some(())).is_some();
    assert!(gone(&folder), "{} is still there", folder.display());
    assert!(gone(&group), "{} is still there", group.display());
    let mounts = std::fs::read_to_string("/proc/self/mounts").expect("/proc is mounted");
    assert!(!mounts.contains(&folder.display().to_string()), "{mounts}");
}
