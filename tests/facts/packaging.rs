//! What installing, upgrading and removing the package must do.

use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use host::{Host, Output, Signal, Suite, facts_on_both_suites, faults};

const SOON: Duration = Duration::from_secs(30);
const WATCH: &[&str] = &["pg-recovery.target", "pg-watchdog.service", "pg-health-check.timer"];

fn states(host: &Host) -> Vec<String> {
    WATCH.iter().map(|unit| host.state_of(unit)).collect()
}

fn installed(suite: Suite) -> Host {
    let host = Host::boot_plain(suite);
    let output = host.install_package();
    assert!(output.success(), "{output}");
    host
}

/// The same package with an older version number takes the place of the one that is installed.
fn an_older_version(host: &Host) {
    host.sh("rm -rf /older; dpkg-deb --raw-extract /pg-recovery.deb /older
             sed -i 's/^Version: .*/Version: 0.0.9/' /older/DEBIAN/control
             dpkg-deb --root-owner-group -Znone --build /older /older.deb");
    apt(host, "install --allow-downgrades /older.deb");
    assert_eq!(host.sh("dpkg-query --show --showformat '${Version}' pg-recovery"), "0.0.9");
}

fn upgrade(host: &Host) {
    apt(host, "install /pg-recovery.deb");
    assert_ne!(host.sh("dpkg-query --show --showformat '${Version}' pg-recovery"), "0.0.9");
}

#[track_caller]
fn apt(host: &Host, words: &str) -> Output {
    let unit = "systemd-run --quiet --pipe --wait --setenv=DEBIAN_FRONTEND=noninteractive";
    let output = host.run(&format!("{unit} apt-get --yes {words}"));
    assert!(output.success(), "{output}");
    output
}

/// The work tree.
fn top() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the tests are in the work tree")
}

/// Runs a command here, outside of any machine; it must succeed. Returns its standard output.
#[track_caller]
fn run(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("could not start {command:?}: {error}"));
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    let (stdout, stderr) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "{command:?}\n{stdout}{stderr}");
    stdout
}

/// Starts pg-recovery.service with a program that is at work until there is a file /run/finish.
fn long_recovery(host: &Host) {
    host.sh("cd /run/systemd/system; mkdir -p pg-recovery.service.d
         printf '[Service]\nExecStart=\nExecStart=/bin/sh -c \"until test -e /run/finish; do sleep 0.1; done\"\n' \
             >pg-recovery.service.d/long.conf
         systemctl daemon-reload; systemctl start --no-block pg-recovery.service");
    host.wait_for_state("pg-recovery.service", "activating", SOON);
}

facts_on_both_suites! {
    fn installing_asks_nothing_and_starts_the_watch(suite: Suite) {
        let host = installed(suite);
        assert_eq!(states(&host), ["active"; 3]);
        host.wait_until("the first check has passed", SOON, || {
            host.property_of("pg-health-check.service", "ExecMainStartTimestampMonotonic") != "0"
        });
        assert_eq!(host.state_of("pg-recovery.service"), "inactive", "it only ever starts when it is called");
        assert_eq!(host.sh("systemctl is-system-running"), "running");
        assert_eq!(host.sh("dpkg --verify pg-recovery"), "");
    }

    fn a_host_without_a_cluster_is_no_obstacle_and_a_new_cluster_is_watched(suite: Suite) {
        let host = Host::boot_plain(suite);
        host.sh(&format!("pg_dropcluster --stop {} main", host.version()));
        let output = host.install_package();
        assert!(output.success(), "{output}");
        assert_eq!(states(&host), ["active"; 3]);
        host.sh(&format!("pg_createcluster --start {} main", host.version()));
        host.wait_for_journal("pg-watchdog", &format!("cluster {} has a postmaster", host.cluster()), SOON);
    }

    fn policy_rc_d_is_obeyed(suite: Suite) {
        let host = Host::boot_plain(suite);
        host.sh("printf '#!/bin/sh\\nexit 101\\n' >/usr/sbin/policy-rc.d; chmod 755 /usr/sbin/policy-rc.d");
        let output = host.install_package();
        assert!(output.success(), "{output}");
        assert_eq!(states(&host), ["inactive"; 3]);
        host.reboot();
        assert_eq!(states(&host), ["active"; 3], "it is enabled all the same");
    }

    fn every_cluster_of_a_host_is_watched_as_it_is_meant_to_run(suite: Suite) {
        let host = Host::boot_plain(suite);
        let (by_hand, idle) = (host.create_cluster("byhand"), host.create_cluster("idle"));
        host.sh(&format!("echo manual >{}/start.conf; systemctl daemon-reload", by_hand.configuration_directory()));
        host.operator_stops(&idle.unit());
        let postmasters = [host.postmaster_pid(), host.postmaster_pid_of(&by_hand)];
        let output = host.install_package();
        assert!(output.success(), "{output}");
        for cluster in [host.cluster(), by_hand.name()] {
            host.wait_for_journal("pg-watchdog", &format!("cluster {cluster} has a postmaster"), SOON);
        }
        assert_eq!([host.postmaster_pid(), host.postmaster_pid_of(&by_hand)], postmasters);
        let question = format!("cluster {} was stopped although it is meant to run; pg-health-check will have it started", idle.name());
        host.wait_for_journal("pg-watchdog", &question, SOON);
        assert_eq!(host.state_of(&idle.unit()), "inactive", "the operator has three checks to say that this is right");
        for pid in postmasters {
            host.signal(pid, Signal::SIGKILL);
        }
        host.wait_for_journal("pg-watchdog", &format!("cluster {} accepts connections again", host.cluster()), SOON);
        host.wait_for_journal("pg-watchdog", &format!("cluster {} is set to manual in start.conf, leaving it alone", by_hand.name()), SOON);
        assert_eq!(host.state_of(&by_hand.unit()), "failed");
    }

    fn an_upgrade_restarts_the_watchdog_and_touches_no_postgresql(host: Host) {
        an_older_version(&host);
        let (postmaster, watchdog) = (host.postmaster_pid(), host.property_of("pg-watchdog.service", "MainPID"));
        upgrade(&host);
        assert_eq!(states(&host), ["active"; 3]);
        assert_eq!(host.postmaster_pid(), postmaster);
        let now = host.property_of("pg-watchdog.service", "MainPID");
        assert_ne!(now, watchdog);
        // Otherwise " (deleted)" stands behind it.
        assert_eq!(host.sh(&format!("readlink /proc/{now}/exe")), "/usr/sbin/pg-watchdog");
    }

    fn an_upgrade_keeps_configuration_state_and_history(host: Host) {
        an_older_version(&host);
        host.sh(r#"sed -i 's/^.on_clean_stop = "start"/on_clean_stop = "leave"/' /etc/pg-recovery/config.toml"#);
        host.configure("[watchdog]\nrestarts = 4");
        faults::p1_postmaster_killed::inject(&host);
        host.wait_until("the recovery is recorded", SOON, || host.recoveries().len() == 1);
        host.sh("pg-recover pause 2h 'an upgrade'");
        let kept = "cd /; sha256sum etc/pg-recovery/config.toml etc/pg-recovery/config.d/* var/lib/pg-recovery/pause.json \
                    var/lib/pg-recovery/recoveries.jsonl; find var/lib/pg-recovery/points -type f | sort";
        let before = host.sh(kept);
        upgrade(&host);
        assert_eq!(host.sh(kept), before);
        assert_eq!(states(&host), ["active"; 3]);
        assert!(host.sh("pg-recover --plan").contains("an upgrade"), "the pause is in force");
    }

    fn an_upgrade_starts_what_the_version_before_did_not_have(host: Host) {
        an_older_version(&host);
        let older = "rm -f /older/usr/lib/systemd/system/pg-notify*; sed -i 's/ pg-notify.timer pg-notify.path//' /older/DEBIAN/p*; \
                     dpkg-deb --root-owner-group -Znone --build /older /older.deb";
        host.sh(older);
        apt(&host, "purge pg-recovery");
        apt(&host, "install /older.deb");
        assert_eq!(states(&host), ["active"; 3]);
        assert_eq!(host.property_of("pg-notify.timer", "LoadState"), "not-found");
        upgrade(&host);
        assert_eq!((host.state_of("pg-notify.timer"), host.state_of("pg-notify.path")), ("active".into(), "active".into()));
    }

    fn what_the_operator_switched_off_stays_off_over_an_upgrade(host: Host) {
        an_older_version(&host);
        host.sh("systemctl stop pg-recovery.target");
        assert_eq!(states(&host), ["inactive"; 3], "the target stops all of them");
        upgrade(&host);
        assert_eq!(states(&host), ["inactive"; 3], "it was stopped, for maintenance perhaps");
        host.sh("systemctl start pg-recovery.target");
        assert_eq!(states(&host), ["active"; 3], "the target starts all of them");
        host.sh("systemctl mask --now pg-watchdog.service; systemctl disable --now pg-health-check.timer");
        an_older_version(&host);
        upgrade(&host);
        let switched_off = |host: &Host| {
            assert_eq!(states(host), ["active", "inactive", "inactive"]);
            assert_eq!(host.property_of("pg-health-check.timer", "UnitFileState"), "disabled");
            assert_eq!(host.property_of("pg-watchdog.service", "LoadState"), "masked");
        };
        switched_off(&host);
        host.reboot();
        switched_off(&host);
    }

    fn a_recovery_at_work_outlives_an_upgrade_and_is_waited_for_by_a_removal(suite: Suite) {
        host::trace_actors(false);
        let host = Host::boot(suite);
        an_older_version(&host);
        long_recovery(&host);
        let recovery = host.property_of("pg-recovery.service", "MainPID");
        upgrade(&host);
        assert_eq!(host.property_of("pg-recovery.service", "MainPID"), recovery);
        host.run_as_unit("removal", "root", "DEBIAN_FRONTEND=noninteractive apt-get --yes remove pg-recovery");
        host.wait_for_journal("removal.service", "Waiting for the recovery that is at work", SOON);
        host.sh("touch /run/finish");
        host.wait_for_journal("systemd", "Finished pg-recovery.service", SOON);
        host.wait_until("the package is removed", SOON, || !host.file("/usr/sbin/pg-recover").exists());
    }

    fn removing_leaves_no_failed_unit(host: Host) {
        host.sh(
            "systemctl stop pg-health-check.timer
             mkdir -p /run/systemd/system/pg-health-check.service.d
             printf '[Service]\nExecStart=\nExecStart=/bin/sh -c \"exit 10\"\n' >/run/systemd/system/pg-health-check.service.d/ill.conf
             systemctl daemon-reload",
        );
        assert!(!host.start_and_wait("pg-health-check.service").success());
        assert_eq!(host.state_of("pg-health-check.service"), "failed");
        // A drop-in would keep the name of the unit known.
        host.sh("rm -r /run/systemd/system/pg-health-check.service.d; systemctl daemon-reload");
        apt(&host, "remove pg-recovery");
        assert_eq!(host.sh("systemctl --failed --all --no-legend"), "");
    }

    fn removing_stops_everything_and_installing_again_starts_it(host: Host) {
        host.sh("echo 'mode = \"observe\"' >/etc/pg-recovery/config.d/mine.toml");
        apt(&host, "remove pg-recovery");
        assert_eq!(states(&host), ["inactive"; 3]);
        assert!(host.is_accepting());
        assert!(host.file("/etc/pg-recovery/config.d/mine.toml").exists());
        apt(&host, "install /pg-recovery.deb");
        assert_eq!(states(&host), ["active"; 3]);
    }

    fn purging_leaves_nothing_behind_that_is_ours(suite: Suite) {
        host::trace_actors(false);
        let host = Host::boot(suite);
        host.sh("echo 'mode = \"observe\"' >/etc/pg-recovery/config.d/mine.toml");
        host.sh("systemctl start pg-health-check.service");
        assert_eq!(host.psql("SELECT count(*) FROM pgrecovery.heartbeat"), "1");
        apt(&host, "purge pg-recovery");
        assert_eq!(host.psql("SELECT count(*) FROM pg_namespace WHERE nspname = 'pgrecovery'"), "0");
        let left = host.sh(
            "find / /run -xdev \\( -path /proc -o -path /sys \\) -prune -o \\( -name '*pg-recover*' -o -name '*pg-watchdog*' \
             -o -name '*pg-health*' \\) ! -name 'pg-recovery.deb' -print",
        );
        assert_eq!(left, "");
        assert_eq!(host.sh("systemctl list-units --all --no-legend 'pg-*'"), "");
        assert_eq!(host.sh("systemctl is-system-running"), "running");
    }

    fn purging_keeps_what_somebody_else_put_into_our_schema(host: Host) {
        host.sh("systemctl start pg-health-check.service");
        host.psql("CREATE TABLE pgrecovery.precious AS SELECT 1 AS id");
        apt(&host, "purge pg-recovery");
        assert_eq!(host.psql("SELECT id FROM pgrecovery.precious"), "1");
    }

    fn what_was_just_installed_heals_and_survives_a_reboot(suite: Suite) {
        let host = installed(suite);
        host.wait_for_journal("pg-watchdog", "kept as a recovery point", SOON);
        let ledger = host.ledger();
        faults::p1_postmaster_killed::inject(&host);
        ledger.wait_for_commits(50);
        ledger.stop_and_check().assert_nothing_lost();
        host.reboot();
        for unit in WATCH {
            host.wait_for_state(unit, "active", SOON);
        }
    }

    fn stopping_the_target_switches_everything_off(host: Host) {
        host.sh("systemctl stop pg-recovery.target");
        for unit in WATCH {
            host.wait_for_state(unit, "inactive", SOON);
        }
        faults::p1_postmaster_killed::inject(&host);
        host.wait_for_state(&host.unit(), "failed", SOON);
        host.sh("systemctl start pg-recovery.target");
        host.wait_until_accepting(SOON);
    }

    fn every_folder_has_its_owner_and_mode(host: Host) {
        let found = host.sh(
            "cd / && stat --format '%n %U %a' etc/pg-recovery/credentials{,/notify} run/pg-recovery run/pg-recovery/* \
             run/pg-recovery/state/{health,notify} run/pg-recovery-socket var/lib/pg-recovery var/lib/pg-recovery/*/",
        );
        let expected = "\
etc/pg-recovery/credentials root 700
etc/pg-recovery/credentials/notify root 700
run/pg-recovery root 755
run/pg-recovery/door _pg-status 600
run/pg-recovery/evidence root 700
run/pg-recovery/lock root 755
run/pg-recovery/state root 755
run/pg-recovery/state/health postgres 755
run/pg-recovery/state/notify _pg-notify 750
run/pg-recovery-socket postgres 700
var/lib/pg-recovery root 755
var/lib/pg-recovery/cert-renew/ root 755
var/lib/pg-recovery/evidence/ root 700
var/lib/pg-recovery/health/ postgres 755
var/lib/pg-recovery/notify/ _pg-notify 750
var/lib/pg-recovery/points/ root 700
var/lib/pg-recovery/recover/ root 755
var/lib/pg-recovery/rollback/ root 700
var/lib/pg-recovery/services/ root 755
var/lib/pg-recovery/watchdog/ root 755";
        assert_eq!(found, expected);
    }

    fn systemd_has_nothing_to_say_about_the_units(suite: Suite) {
        host::trace_actors(false);
        let host = Host::boot(suite);
        // What is masked cannot be analyzed.
        host.sh("systemctl unmask pg-wal-stream.service");
        let output = host.run("systemd-analyze verify --man=no /usr/lib/systemd/system/pg-*");
        // It exits 0 also for keys that it does not know.
        assert_eq!((output.status, output.stdout.as_str(), output.stderr.as_str()), (0, "", ""), "{output}");
        for (unit, tenths) in [
            ("pg-health-check", 15),
            ("pg-watchdog", 35),
            ("pg-recovery", 35),
            ("pg-rollback@config", 35),
            ("pg-rollback-guard", 35),
            ("pg-backup", 18),
            ("pg-wal-stream", 18),
            ("pg-restore-drill", 18),
            ("pg-cert-renew", 35),
            ("pg-notify@timer", 18),
            ("pg-status", 18),
        ] {
            host.sh(&format!("systemd-analyze security --no-pager --threshold={tenths} {unit}.service"));
        }
    }

    fn a_check_leaves_the_shared_memory_of_the_cluster_alone(host: Host) {
        // RemoveIPC=yes in a unit of the user postgres would take it away, and every new session would end in FATAL.
        let before = host.sh("ls /dev/shm; ipcs --shmems | awk '{ print $2 }'");
        host.sh("systemctl start pg-health-check.service");
        assert_eq!(host.sh("ls /dev/shm; ipcs --shmems | awk '{ print $2 }'"), before);
        assert_eq!(host.psql("SELECT 1"), "1");
    }

    fn packaging_try_shows_each_fault_its_recovery_and_how_long_a_client_waited(suite: Suite) {
        let mut command = Command::new(top().join("packaging/try"));
        command.arg(suite.name()).env("PG_RECOVERY_DEB", host::package());
        // Should this test be killed, it is to clean up.
        // SAFETY: prctl(2) is async-signal-safe and touches no memory.
        unsafe {
            command.pre_exec(|| {
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGTERM);
                Ok(())
            });
        }
        let said = run(&mut command);
        let mut rest = said.as_str();
        // In this order.
        for text in [
            "The postmaster is killed",
            "# kill -9",
            "pg-watchdog: starting postgresql@",
            "accepts connections again",
            "the client waited",
            "The postmaster hangs",
            "# kill -STOP",
            "SIGCONT",
            "the client waited",
            "A bad line of configuration",
            "# echo 'shared_buffers = = lots'",
            "pg-recover: ",
            "the client waited",
            "What was broken, and how long no commit came through",
            "The postmaster is killed",
            " ms\n",
            "The postmaster hangs",
            " ms\n",
            "A bad line of configuration",
            " ms\n",
            "commits acknowledged, 0 of them lost",
            "pg-recover history",
        ] {
            let (_, after) = rest.split_once(text).unwrap_or_else(|| panic!("{text:?} is not said where it should be:\n{said}"));
            rest = after;
        }
    }

    fn a_watchdog_that_hangs_is_replaced(host: Host) {
        let watchdog = host.property_of("pg-watchdog.service", "MainPID");
        host.sh(&format!("kill -STOP {watchdog}"));
        host.wait_until("another one watches", Duration::from_secs(60), || {
            host.state_of("pg-watchdog.service") == "active"
                && host.property_of("pg-watchdog.service", "MainPID") != watchdog
        });
    }
}

#[test]
fn what_is_packaged_passes_its_checks() {
    run(Command::new(top().join("packaging/lint")).arg(host::package()));
}
