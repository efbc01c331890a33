//! What pg-health-check must answer.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use host::{Authority, Cluster, Disk, Host, Output, facts_on_both_suites, faults};
use serde_json::Value;

const SOON: Duration = Duration::from_secs(60);
const CHECK: &str = "pg-health-check.service";
const CREDENTIAL: &str = "/etc/pg-recovery/credentials/application-password";

/// Nothing repairs and nothing checks by itself; what the test machine shares with others is not judged.
fn quiet(host: &Host, configuration: &str) {
    host.sh("systemctl stop pg-watchdog.service pg-health-check.timer");
    host.wait_until("no check runs", SOON, || host.state_of(CHECK) != "activating");
    host.sh("rm -f /var/lib/pg-recovery/health/*");
    host.configure(&format!(
        "mode = \"observe\"\n[health]\npressure_warn = 100\nmemory_warn = 100\nmemory_fail = 100\n{configuration}"
    ));
}

/// One pass as the timer makes it; the exit status of the program.
#[track_caller]
fn pass(host: &Host) -> i32 {
    // The fifth start within ten seconds would be one too many.
    host.sh(&format!("systemctl reset-failed {CHECK}"));
    host.start_and_wait(CHECK);
    host.property_of(CHECK, "ExecMainStatus").parse().expect("systemd knows the exit status")
}

/// What the last pass has written down.
#[track_caller]
fn failures(host: &Host) -> u64 {
    let text = host.file(&format!("/var/lib/pg-recovery/health/{}-main.json", host.version())).read();
    let state: Value = serde_json::from_str(&text).expect("the state is JSON");
    state["failures"].as_u64().expect("it has the failures")
}

/// A check by hand, without counting.
#[track_caller]
fn look(host: &Host, cluster: &Cluster) -> Value {
    host.json(&format!("pg-health-check --json --cluster {}", cluster.name()))["clusters"][0].clone()
}

fn check<'a>(cluster: &'a Value, name: &str) -> Option<&'a Value> {
    cluster["checks"].as_array()?.iter().find(|check| check["name"] == name)
}

#[track_caller]
fn assert_check(cluster: &Value, name: &str, status: &str, says: &str) {
    let Some(check) = check(cluster, name) else { panic!("no check {name}: {cluster:#}") };
    assert_eq!(check["status"], status, "{check:#}");
    assert!(check["message"].as_str().is_some_and(|message| message.contains(says)), "{says:?} is not in {check:#}");
}

facts_on_both_suites! {
    fn a_healthy_host_is_ok_with_performance_data_and_json(host: Host) {
        quiet(&host, "");
        for output in [host.run("pg-health-check"), host.as_postgres("pg-health-check")] {
            assert_eq!(output.status, 0, "{output}");
            let first = output.stdout.lines().next().unwrap_or_default();
            assert!(first.starts_with(&format!("PG OK - {}: primary, ", host.cluster())), "{output}");
            let (_, performance) = first.split_once(" | ").expect("performance data");
            assert!(performance.contains("score=100;;;0;100"), "{output}");
            assert!(performance.contains("write=") && performance.contains("disk_data="), "{output}");
        }
        let document = host.json("pg-health-check --json");
        let cluster = &document["clusters"][0];
        let keys = |value: &Value| value.as_object().expect("an object").keys().cloned().collect::<BTreeSet<_>>();
        let set = |names: &[&str]| names.iter().map(|name| name.to_string()).collect::<BTreeSet<_>>();
        assert_eq!(keys(cluster), set(&["cluster", "status", "score", "failures", "max_failures", "checks"]));
        assert_eq!((&cluster["cluster"], &cluster["status"]), (&Value::from(host.cluster()), &Value::from("ok")));
        assert_eq!((cluster["score"].as_u64(), cluster["max_failures"].as_u64()), (Some(100), Some(3)));
        for check in cluster["checks"].as_array().expect("checks") {
            assert_eq!(keys(check), set(&["name", "status", "value", "unit", "message"]));
            assert_eq!(check["status"], "ok", "{check:#}");
        }
        for name in [
            "process", "socket", "tcp", "application_login", "query", "write", "connections", "xid_age",
            "multixact_age", "archiver", "slots", "prepared_transactions", "disk_data", "configuration",
            "pending_restart", "certificate", "memory",
        ] {
            assert!(check(cluster, name).is_some(), "no check {name}: {document:#}");
        }
    }

    fn a_pass_of_the_unit_leaves_one_line_and_its_state(host: Host) {
        quiet(&host, "");
        let before = host.journal_of("pg-health-check").text().lines().count();
        assert_eq!(pass(&host), 0);
        let journal = host.journal_of("pg-health-check");
        journal.says(&format!("{} OK: primary, ", host.cluster()));
        assert_eq!(journal.text().lines().count(), before + 1, "{journal}");
        assert_eq!(failures(&host), 0);
        assert_eq!(host.property_of(CHECK, "Result"), "success");
    }

    fn a_server_that_hangs_is_critical_within_the_deadline(host: Host) {
        quiet(&host, "");
        let all = faults::p2_all_processes_stopped::inject(&host);
        let began = Instant::now();
        assert_eq!(pass(&host), 2);
        assert!(began.elapsed() < Duration::from_secs(12), "{:?}", began.elapsed());
        assert_eq!(failures(&host), 1);
        host.journal_of("pg-health-check").says("is stopped by a signal").says("no new connection within 5s");
        for pid in all {
            host.signal(pid, host::Signal::SIGCONT);
        }
        host.wait_until_accepting(SOON);
        assert_eq!((pass(&host), failures(&host)), (0, 0));
    }

    fn a_cluster_that_hangs_delays_no_other(host: Host) {
        let second = host.create_cluster("second");
        quiet(&host, "");
        host.signal(host.postmaster_pid_of(&second), host::Signal::SIGSTOP);
        let began = Instant::now();
        let output = host.run("pg-health-check");
        assert!(began.elapsed() < Duration::from_secs(12), "{:?}", began.elapsed());
        assert_eq!(output.status, 2, "{output}");
        let lines: Vec<&str> = output.stdout.lines().collect();
        assert!(lines[0].starts_with(&format!("PG CRITICAL - {}: ", second.name())), "{output}");
        assert!(lines[1].starts_with(&format!("PG OK - {}: primary, ", host.cluster())), "{output}");
        host.signal(host.postmaster_pid_of(&second), host::Signal::SIGCONT);
    }

    fn a_standby_is_judged_as_a_standby(host: Host) {
        let standby = faults::o3_standby::inject(&host);
        quiet(&host, "");
        let judged = look(&host, &standby);
        assert_eq!(judged["status"], "ok", "{judged:#}");
        assert_check(&judged, "replay", "ok", "0 bytes behind");
        assert!(check(&judged, "write").is_none(), "{judged:#}");
        host.psql_on(&standby, "SELECT pg_wal_replay_pause()");
        assert_check(&look(&host, &standby), "replay", "warning", "replay is paused");
        host.psql_on(&standby, "SELECT pg_wal_replay_resume()");
        host.operator_stops(&host.unit());
        let mut judged = Value::Null;
        host.wait_until("the standby has noticed", SOON, || {
            judged = look(&host, &standby);
            judged["status"] == "warning"
        });
        assert_check(&judged, "replay", "warning", "not connected to its primary");
    }

    fn the_third_failure_in_a_row_fails_the_unit_and_starts_a_recovery(host: Host) {
        quiet(&host, "");
        faults::o1_operator_off::inject_stop(&host);
        for passed in 1..=2 {
            assert_eq!((pass(&host), failures(&host)), (2, passed));
            assert_eq!(host.property_of(CHECK, "Result"), "success");
        }
        let journal = host.journal_of("pg-health-check");
        journal.says("was stopped cleanly although it is meant to run");
        journal.says("after 1 more check, unless you type: pg-recover pause");
        for failed in 3..=4 {
            assert_eq!((pass(&host), failures(&host)), (10, failed));
            assert_eq!(host.property_of(CHECK, "Result"), "exit-code");
            // What is found while it holds the lock does not count.
            host.wait_until("a recovery was started, and has looked", SOON, || {
                host.property_of("pg-recovery.service", "ExecMainStartTimestampMonotonic") != "0"
                    && host.state_of("pg-recovery.service") != "activating"
            });
        }
        host.sh(&format!("systemctl start {}", host.unit()));
        host.wait_until_accepting(SOON);
        assert_eq!((pass(&host), failures(&host)), (0, 0));
    }

    fn a_check_by_hand_counts_nothing(host: Host) {
        quiet(&host, "");
        assert_eq!(pass(&host), 0);
        faults::o1_operator_off::inject_stop(&host);
        for _ in 0..4 {
            assert_eq!(host.run("pg-health-check").status, 2);
        }
        assert_eq!(failures(&host), 0);
    }

    fn nothing_is_counted_while_paused(host: Host) {
        quiet(&host, "");
        host.sh("pg-recover pause 1h \"a new disk\"");
        faults::o1_operator_off::inject_stop(&host);
        for _ in 0..4 {
            assert_eq!((pass(&host), failures(&host)), (2, 0));
        }
        host.journal_of("pg-health-check").says("not counted as a failure").says("a new disk");
        host.sh("pg-recover resume");
        assert_eq!((pass(&host), failures(&host)), (2, 1));
    }

    fn nothing_is_counted_while_another_program_holds_the_lock(host: Host) {
        quiet(&host, "");
        faults::o1_operator_off::inject_stop(&host);
        let lock = format!("/run/pg-recovery/lock/{}-main.lock", host.version());
        host.run_as_unit("holder", "root", &format!("exec flock {lock} sleep infinity"));
        host.wait_until("the lock is held", SOON, || !host.run(&format!("flock -n {lock} true")).success());
        assert_eq!((pass(&host), failures(&host)), (2, 0));
        host.journal_of("pg-health-check").says("which holds its lock");
    }

    fn nothing_is_counted_while_the_data_directory_is_in_use(host: Host) {
        quiet(&host, "");
        faults::o5_data_directory_in_use::inject(&host);
        // The sandbox of the check hides the processes of others, but not those of the cluster's owner.
        host.sh("systemctl stop cold-copy.service");
        let data = host.data_directory();
        host.run_as_unit("cold-copy", "postgres", &format!("cd {data} && tar -cf - . | sleep infinity"));
        host.wait_until("tar is at work", SOON, || host.run("pgrep -x tar").success());
        assert_eq!((pass(&host), failures(&host)), (2, 0));
        host.journal_of("pg-health-check").says("has its data directory in use by tar");
    }

    fn nothing_is_counted_while_crash_recovery_moves(host: Host) {
        quiet(&host, "");
        faults::h2_long_crash_recovery::inject_by_kill(&host, 8);
        host.wait_for_state(&host.unit(), "failed", SOON);
        host.start(&host.unit());
        host.wait_until("the server rejects connections", SOON, || {
            host.try_psql("SELECT 1").stderr.contains("the database system is")
        });
        assert_eq!((pass(&host), failures(&host)), (2, 0));
        host.journal_of("pg-health-check").says("not counted as a failure").says("crash recovery that moves");
        host.wait_until_accepting(Duration::from_secs(120));
        assert_eq!((pass(&host), failures(&host)), (0, 0));
    }

    fn a_recovery_that_stands_still_is_counted(host: Host) {
        quiet(&host, "");
        faults::h2_long_crash_recovery::inject_by_kill(&host, 8);
        host.wait_for_state(&host.unit(), "failed", SOON);
        host.start(&host.unit());
        let mut startup = String::new();
        host.wait_until("the startup process is at work", SOON, || {
            startup = host.run("pgrep -f 'startup (recovering|recovery)'").stdout.trim().to_owned();
            startup.parse::<i32>().is_ok()
        });
        host.signal(startup.parse().expect("a pid"), host::Signal::SIGSTOP);
        assert_eq!((pass(&host), failures(&host)), (2, 0), "at first sight nobody knows");
        assert_eq!((pass(&host), failures(&host)), (2, 1));
    }

    fn the_application_is_tried_with_its_credential(host: Host) {
        quiet(&host, "[health.application]\nrole = \"app\"\ndatabase = \"app\"\nhost = \"localhost\"\n");
        host.psql("CREATE ROLE app LOGIN PASSWORD 'secret'");
        host.psql("CREATE DATABASE app OWNER app");
        let judged = |host: &Host| {
            let text = host.file(&format!("/var/lib/pg-recovery/health/{}-main.json", host.version())).read();
            serde_json::from_str::<Value>(&text).expect("the state is JSON")
        };
        assert_eq!(pass(&host), 0);
        assert_check(&judged(&host), "application_login", "ok", "there is no credential");
        host.sh(&format!("install -m 600 /dev/null {CREDENTIAL} && echo secret > {CREDENTIAL}"));
        assert_eq!(pass(&host), 0);
        assert_check(&judged(&host), "application_login", "ok", "role app can log in");
        host.sh(&format!("echo wrong > {CREDENTIAL}"));
        assert_eq!((pass(&host), failures(&host)), (2, 0), "no recovery would mend a password");
        assert_check(&judged(&host), "application_login", "critical", "password authentication failed");
        host.sh(&format!("echo secret > {CREDENTIAL}"));

        // As its rules want it, encrypted or not; a rule that is missing is no question of encryption.
        let rules = host.file(&format!("{}/pg_hba.conf", host.configuration_directory()));
        let (as_it_was, nobody) = (rules.read(), "host app app all reject\n");
        host.psql("ALTER SYSTEM SET ssl_ca_file = '/etc/ssl/certs/ssl-cert-snakeoil.pem'");
        for (rule, status, says) in [
            ("hostssl app app samehost scram-sha-256\n", "ok", "role app can log in"),
            ("hostnossl app app samehost scram-sha-256\n", "ok", "role app can log in"),
            ("", "critical", "rejects connection"),
            ("hostssl app app samehost cert\n", "unknown", "wants a certificate of role app"),
        ] {
            rules.write(format!("{rule}{nobody}{as_it_was}"));
            let loaded = || host.psql("SELECT pg_conf_load_time()");
            let before = loaded();
            host.psql("SELECT pg_reload_conf()");
            host.wait_until("the rules are in force", SOON, || loaded() != before);
            pass(&host);
            assert_check(&judged(&host), "application_login", status, says);
        }
        host.journal_of("pg-health-check").does_not_say("secret");
    }

    fn a_credential_that_cannot_be_read_or_that_others_may_read_stops_no_other_check(host: Host) {
        quiet(&host, "[health.application]\nrole = \"postgres\"\ndatabase = \"postgres\"\n");
        host.sh(&format!("install -m 600 /dev/null {CREDENTIAL} && echo secret > {CREDENTIAL}"));
        assert_eq!(pass(&host), 0);
        let refuses = |output: Output, path: &str, why: &str, hint: &str| {
            let told = format!("UNKNOWN application_login: the login of role postgres was not tried: cannot use the credential {path}: {why}");
            assert_eq!(output.status, 1, "{output}");
            assert!(output.stdout.contains(&told) && output.stdout.contains(&format!(". {hint}")), "{output}");
            assert!(output.stdout.contains(" write=") && !output.stdout.contains("secret"), "{output}");
        };
        let unit_refuses = |why: &str| {
            let beat = || host.psql("SELECT beat FROM pgrecovery.heartbeat").parse::<u64>().expect("a number");
            let before = beat();
            assert_eq!((pass(&host), failures(&host), beat()), (1, 0, before + 1));
            host.journal_of("pg-health-check").says(&format!("cannot use the credential {CREDENTIAL}: {why}"));
        };

        refuses(host.as_postgres("pg-health-check"), CREDENTIAL, "Permission denied", "Run it as root");
        // The copy that a unit gets, when its user cannot read it.
        host.sh("install -d /run/copy && install -m 600 /dev/null /run/copy/application-password");
        let unit = "systemd-run --quiet --pipe --wait --uid=postgres --setenv=CREDENTIALS_DIRECTORY=/run/copy";
        let copy = "/run/copy/application-password";
        refuses(host.run(&format!("{unit} pg-health-check")), copy, "Permission denied", "LoadCredential= says");

        host.sh(&format!("chmod 644 {CREDENTIAL}"));
        let exposed = "others than its owner may read it (mode 0644)";
        refuses(host.run("pg-health-check"), CREDENTIAL, exposed, "Run: chmod 600");
        // As long as its folder is root's alone nobody else can.
        assert_eq!(pass(&host), 0);
        host.sh(&format!("chmod 755 $(dirname {CREDENTIAL})"));
        unit_refuses(exposed);

        host.sh(&format!("rm {CREDENTIAL} && mkdir {CREDENTIAL}"));
        let folder = "it is not a regular file";
        refuses(host.run("pg-health-check"), CREDENTIAL, folder, "Put the password or token into a file");
        unit_refuses(folder);

        // systemd reads it as root, whatever its mode.
        host.sh(&format!("rmdir {CREDENTIAL} && chmod 700 $(dirname {CREDENTIAL}) && install -m 0 /dev/null {CREDENTIAL}"));
        assert_eq!(pass(&host), 0);
        host.sh(&format!("rm {CREDENTIAL}"));
        assert_eq!(pass(&host), 0, "there is none");
    }

    fn a_reader_that_goes_away_is_no_crash(host: Host) {
        quiet(&host, "");
        for command in ["pg-health-check --json", "pg-health-check", "pg-health-check --help", "pg-recover --version"] {
            let output = host.run(&format!("exec 3> >(true); wait $!; {command} >&3"));
            assert_eq!((output.status, output.stderr.as_str()), (0, ""), "{command}\n{output}");
        }
        let output = host.run("pg-health-check > /dev/full");
        assert_eq!(output.status, 3, "{output}");
        assert!(output.stderr.contains("could not write to standard output: No space left on device"), "{output}");
    }

    fn a_bad_line_is_a_warning_as_long_as_the_server_runs(host: Host) {
        quiet(&host, "");
        let folder = host.configuration_directory();
        host.file(&format!("{folder}/conf.d/colour.conf")).write("colour = blue\n");
        assert_eq!((pass(&host), failures(&host)), (1, 0));
        let judged = look(&host, &host.main_cluster());
        assert_check(&judged, "configuration", "warning", "colour.conf line 1: colour: unrecognized");
        host.file(&format!("{folder}/conf.d/colour.conf")).remove();
        host.file(&format!("{folder}/pg_hba.conf")).append("local all all tsrust");
        assert_check(&look(&host, &host.main_cluster()), "configuration", "warning", "pg_hba.conf line");
        host.file(&format!("{folder}/pg_hba.conf")).replace("local all all tsrust\n", "");
        host.psql("ALTER SYSTEM SET max_connections = 77");
        let judged = look(&host, &host.main_cluster());
        assert_check(&judged, "configuration", "ok", "");
        assert_check(&judged, "pending_restart", "ok", "max_connections");
    }

    fn a_certificate_that_expires_soon_is_critical_and_starts_no_recovery(host: Host) {
        quiet(&host, "");
        let data = host.data_directory();
        let issued = Authority::self_signed(&["short.example"], -360, 1);
        for (name, text) in [("server.crt", &issued.chain), ("server.key", &issued.key)] {
            host.file(&format!("{data}/{name}")).write(text);
            host.sh(&format!("chown postgres {data}/{name}; chmod 600 {data}/{name}"));
        }
        host.psql("ALTER SYSTEM SET ssl_cert_file = 'server.crt'");
        host.psql("ALTER SYSTEM SET ssl_key_file = 'server.key'");
        host.psql("SELECT pg_reload_conf()");
        host.wait_until("the server has the new certificate", SOON, || host.psql("SHOW ssl_cert_file") == "server.crt");
        for _ in 0..3 {
            assert_eq!((pass(&host), failures(&host)), (2, 0));
        }
        assert_check(&look(&host, &host.main_cluster()), "certificate", "critical", "CN=short.example expires in");
    }

    fn a_full_disk_is_critical_and_starts_no_recovery(host: Host) {
        quiet(&host, "");
        let _disk = host.move_data_to_disk(400);
        let free = host.sh(&format!("df --output=avail -k {} | tail -n 1", host.data_directory()));
        let free: u64 = free.trim().parse().expect("a number");
        host.sh(&format!("fallocate -l {}K {}/filler", free * 94 / 100, host.data_directory()));
        for _ in 0..3 {
            assert_eq!((pass(&host), failures(&host)), (2, 0));
        }
        let judged = look(&host, &host.main_cluster());
        assert_check(&judged, "disk_data", "critical", "% of the data, wal volume");
        assert!(judged["score"].as_u64().is_some_and(|score| score > 0), "{judged:#}");
        host.sh(&format!("rm {}/filler", host.data_directory()));
    }

    fn commits_that_wait_for_a_missing_standby_are_told_apart_from_a_dead_server(host: Host) {
        quiet(&host, "");
        assert_eq!(pass(&host), 0);
        host.psql("ALTER SYSTEM SET synchronous_standby_names = 'nobody'");
        host.psql("SELECT pg_reload_conf()");
        host.wait_until("commits wait", SOON, || host.psql("SHOW synchronous_standby_names") == "nobody");
        for _ in 0..2 {
            assert_eq!((pass(&host), failures(&host)), (2, 0));
        }
        host.journal_of("pg-health-check").says("only a person may change synchronous_standby_names");
        host.wait_until("no session of the check is left behind", SOON, || {
            host.psql("SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'") == "0"
        });
        host.psql("ALTER SYSTEM RESET synchronous_standby_names");
        host.psql("SELECT pg_reload_conf()");
        host.wait_until("commits do not wait", SOON, || host.psql("SHOW synchronous_standby_names").is_empty());
        assert_eq!(pass(&host), 0);
    }

    fn wrong_input_is_answered_with_unknown_and_the_reason(host: Host) {
        quiet(&host, "");
        let ask = |command: &str, reason: &str| {
            let output = host.run(command);
            assert_eq!(output.status, 3, "{command}\n{output}");
            assert!(output.stderr.contains(reason), "{command}\n{output}");
            assert_eq!(output.stdout, "", "{command}");
        };
        ask("pg-health-check --colour", "invalid option '--colour'");
        ask("pg-health-check --cluster 9/none", "cannot find cluster 9/none");
        ask("pg-health-check --config /nowhere.toml", "cannot read the configuration /nowhere.toml");
        ask("runuser -u nobody -- pg-health-check", "runs as another user");
        for (text, place) in [
            ("[health]\ncolour = 3\n", "line 2, key colour"),
            ("[health]\nquery_fail = \"0s\"\n", "line 2, key health.query_fail: must be between 100ms and 60s"),
            ("[health]\n\nquery_fail = \"30d\"\n", "line 3, key health.query_fail: must be between 100ms and 60s"),
            ("[health]\nquery_fail = \"99999999999999999999s\"\n", "line 2, key query_fail: "),
            ("[recover]\nfast_stop_timeout = \"0s\"\n", "line 2, key recover.fast_stop_timeout: must be between"),
        ] {
            host.configure(text);
            ask("pg-health-check", &format!("cannot use /etc/pg-recovery/config.d/test.toml, {place}"));
        }
    }

    fn a_section_for_a_cluster_that_is_not_there_is_a_warning(host: Host) {
        let misspelt = format!("{}/mian", host.version());
        quiet(&host, &format!("[[cluster]]\nname = \"{misspelt}\"\non_clean_stop = \"leave\"\n"));
        assert_eq!((pass(&host), failures(&host)), (1, 0));
        let says = format!("a [[cluster]] section for {misspelt}, which is not on this host");
        host.journal_of("pg-health-check").says(&says);
        let judged = look(&host, &host.main_cluster());
        assert_check(&judged, "cluster_sections", "warning", &says);
        // Who asks about one cluster does not make another one unknown.
        let second = host.create_cluster("mian");
        assert_eq!(look(&host, &host.main_cluster())["status"], "ok");
        host.sh(&format!("pg_dropcluster --stop {} {}", second.version(), "mian"));
    }

    fn a_pass_that_does_not_end_counts_as_failed(host: Host) {
        // A hung server, a hung message bus, and a server that runs outside of its unit, so that systemd is asked about it
        // more than once: together they take longer than a pass may.
        host.sh("systemctl stop pg-watchdog.service");
        host.operator_stops(&host.unit());
        let (postgres, data) = (host.main_cluster().program("postgres"), host.data_directory());
        let conf = host.configuration_directory();
        host.run_as_unit("astray", "postgres", &format!("exec {postgres} -D {data} -c config_file={conf}/postgresql.conf"));
        host.wait_until_accepting(SOON);
        quiet(&host, "connect_timeout = \"60s\"\n");
        host.signal(host.postmaster_pid(), host::Signal::SIGSTOP);
        let bus: i32 = host.sh("pgrep -x dbus-daemon | head -n 1").parse().expect("a pid");
        host.sh("pg-recover pause 1h \"a new disk\"");
        host.signal(bus, host::Signal::SIGSTOP);
        let given_up = |failed: u64| {
            let began = Instant::now();
            assert_eq!((pass(&host), failures(&host)), (2, failed));
            assert!(began.elapsed() < Duration::from_secs(50), "{:?}", began.elapsed());
        };
        given_up(0);
        let journal = host.journal_of("pg-health-check");
        journal.says("the check itself did not end within 40s").says("not counted as a failure").says("a new disk");
        host.sh("rm /var/lib/pg-recovery/pause.json");
        given_up(1);
        host.signal(bus, host::Signal::SIGCONT);
        host.signal(host.postmaster_pid(), host::Signal::SIGCONT);
    }

    fn the_crash_of_another_backend_is_no_failure(host: Host) {
        quiet(&host, "");
        assert_eq!(pass(&host), 0);
        // The check waits for this row when the server ends all sessions.
        faults::session::open(&host, "holder", "BEGIN; SELECT * FROM pgrecovery.heartbeat FOR UPDATE; SELECT pg_sleep(600)");
        let holder = faults::session::backend_of(&host, "holder");
        host.start(CHECK);
        let waits = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'pg-health-check' AND wait_event_type = 'Lock'";
        host.wait_until("the check waits for its row", SOON, || host.psql(waits) == "1");
        host.signal(holder, host::Signal::SIGKILL);
        host.wait_until("the check has ended", SOON, || host.state_of(CHECK) != "activating");
        assert_eq!(failures(&host), 0);
        host.journal_of("pg-health-check").does_not_say("write failed");
    }

    fn what_runs_out_in_a_server_has_two_levels(host: Host) {
        quiet(&host, "slot_warn = \"20MB\"\nslot_fail = \"60MB\"\nprepared_transaction_warn = \"1s\"\n");
        for setting in [
            "max_connections = 20",
            "max_prepared_transactions = 2",
            "archive_mode = on",
            "archive_command = 'false'",
            // No VACUUM makes ids young meanwhile.
            "autovacuum_freeze_max_age = 2000000000",
        ] {
            host.psql(&format!("ALTER SYSTEM SET {setting}"));
        }
        host.sh(&format!("systemctl restart {}", host.unit()));
        host.wait_until_accepting(SOON);
        let see = |name: &str, status: &str, says: &str| {
            assert_check(&look(&host, &host.main_cluster()), name, status, says);
        };
        let becomes = |name: &str, status: &str| {
            host.wait_until(&format!("{name} is {status}"), SOON, || {
                check(&look(&host, &host.main_cluster()), name).is_some_and(|check| check["status"] == status)
            });
        };

        // 17 of the 20 are for everybody, and the check has one of them.
        let sessions = |unit: &str, more: u32, all: &str| {
            let one = "psql -Xqd postgres -c \"SELECT pg_sleep(600)\"";
            host.run_as_unit(unit, "postgres", &format!("for i in $(seq {more}); do {one} & done; wait"));
            let count = "SELECT count(*) FROM pg_stat_activity WHERE query = 'SELECT pg_sleep(600)'";
            host.wait_until("the sessions are there", SOON, || host.psql(count) == all);
        };
        see("connections", "ok", "of 17 connection slots are used");
        sessions("many", 12, "12");
        see("connections", "warning", "13 of 17 connection slots are used");
        sessions("more", 3, "15");
        see("connections", "critical", "16 of 17 connection slots are used");
        host.psql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query = 'SELECT pg_sleep(600)'");
        becomes("connections", "ok");

        see("archiver", "ok", "");
        host.psql("CREATE TABLE written AS SELECT 1");
        host.psql("SELECT pg_switch_wal()");
        becomes("archiver", "warning");
        see("archiver", "warning", "archiving fails, last");
        host.sh(&format!("touch -d '2 hours ago' {}/pg_wal/archive_status/*.ready", host.data_directory()));
        see("archiver", "critical", "the oldest WAL has waited for 72");
        host.psql("ALTER SYSTEM SET archive_command = 'true'");
        host.psql("SELECT pg_reload_conf()");
        host.psql("CREATE TABLE written_again AS SELECT 1");
        host.psql("SELECT pg_switch_wal()");
        becomes("archiver", "ok");

        host.psql("BEGIN; CREATE TABLE prepared (id int); PREPARE TRANSACTION 'forgotten'");
        becomes("prepared_transactions", "warning");
        see("prepared_transactions", "warning", "\"forgotten\" of postgres in database postgres");
        becomes("prepared_transactions", "critical");
        see("prepared_transactions", "critical", r"psql -d postgres -c 'COMMIT PREPARED '\''forgotten'\'''");
        host.psql("ROLLBACK PREPARED 'forgotten'");
        see("prepared_transactions", "ok", "there is no");

        see("slots", "ok", "there is no");
        host.psql("SELECT pg_create_physical_replication_slot('forgotten', true)");
        let write = |segments: u32| {
            for _ in 0..segments {
                host.psql("SELECT pg_logical_emit_message(true, 'fact', 'x')");
                host.psql("SELECT pg_switch_wal()");
            }
        };
        write(2);
        see("slots", "warning", "MB of WAL are kept for slot forgotten, which nobody reads");
        write(3);
        see("slots", "critical", "MB of WAL are kept for slot forgotten, which nobody reads");
        host.psql("ALTER SYSTEM SET max_slot_wal_keep_size = '16MB'");
        host.psql("SELECT pg_reload_conf()");
        host.wait_until("the setting is in force", SOON, || host.psql("SHOW max_slot_wal_keep_size") == "16MB");
        host.psql("CHECKPOINT");
        see("slots", "critical", "slot forgotten has lost WAL that its reader needs");
        host.psql("SELECT pg_drop_replication_slot('forgotten')");

        // As if so many transactions had been: pg_resetwal wants the page of pg_xact for the next one.
        for (xid, segment, status) in [(600_000_000, "023C", "warning"), (1_100_000_000, "0419", "critical")] {
            host.operator_stops(&host.unit());
            let (reset, data) = (host.main_cluster().program("pg_resetwal"), host.data_directory());
            let made = host.as_postgres(&format!("head -c 262144 /dev/zero > {data}/pg_xact/{segment} && {reset} -x {xid} {data}"));
            assert!(made.success(), "{made}");
            host.sh(&format!("systemctl start {}", host.unit()));
            host.wait_until_accepting(SOON);
            see("xid_age", status, "the oldest transaction id is");
        }
        assert_eq!((pass(&host), failures(&host)), (2, 0));
    }

    fn each_volume_has_two_levels_of_its_own(host: Host) {
        quiet(&host, "");
        let (wal, table, log) = (host.attach_disk("/wal", 300), host.attach_disk("/table", 60), host.attach_disk("/log", 30));
        for disk in [&wal, &table, &log] {
            host.sh(&format!("install -d -o postgres -g postgres -m 700 {}/own", disk.mount_point()));
        }
        host.psql("ALTER SYSTEM SET logging_collector = on");
        host.psql("ALTER SYSTEM SET log_directory = '/log/own'");
        host.operator_stops(&host.unit());
        let data = host.data_directory();
        host.sh(&format!("mv {data}/pg_wal /wal/own/ && ln -s /wal/own/pg_wal {data}/pg_wal"));
        host.sh(&format!("systemctl start {}", host.unit()));
        host.wait_until_accepting(SOON);
        host.psql("CREATE TABLESPACE apart LOCATION '/table/own'");
        let tablespace = format!("tablespace_{}", host.psql("SELECT oid FROM pg_tablespace WHERE spcname = 'apart'"));
        let see = |name: &str, status: &str, says: &str| {
            assert_check(&look(&host, &host.main_cluster()), name, status, says);
        };
        let fill = |disk: &Disk, percent: u64| {
            let all = host.sh(&format!("df -k --output=used,avail {} | tail -n 1", disk.mount_point()));
            let kilobytes: Vec<u64> = all.split_whitespace().map(|n| n.parse().expect("a number")).collect();
            let wanted = (kilobytes[0] + kilobytes[1]) * percent / 100 - kilobytes[0];
            host.sh(&format!("fallocate -l {wanted}K $(mktemp -p {})", disk.mount_point()));
        };
        for (disk, role) in [(&wal, "wal"), (&table, tablespace.as_str()), (&log, "log_directory")] {
            let name = format!("disk_{role}");
            see(&name, "ok", &format!("of the {role} volume at"));
            fill(disk, 85);
            see(&name, "warning", &format!("85% of the {role} volume at"));
            fill(disk, 93);
            see(&name, "critical", &format!("93% of the {role} volume at"));
            host.sh(&format!("rm {}/tmp.*", disk.mount_point()));
        }
        let name = format!("inodes_{tablespace}");
        see(&name, "ok", "");
        let inodes: u64 = host.sh("df --output=itotal /table | tail -n 1").trim().parse().expect("a number");
        for (percent, status) in [(85, "warning"), (93, "critical")] {
            host.sh(&format!("mkdir -p /table/many && cd /table/many && seq {} | xargs touch", inodes * percent / 100));
            see(&name, status, &format!("of the inodes of the {tablespace} volume"));
        }
        assert_eq!((pass(&host), failures(&host)), (2, 0));
    }

    fn a_volume_that_fills_steadily_is_told_before_it_is_full_and_a_saw_tooth_is_not(host: Host) {
        quiet(&host, "");
        host.attach_disk("/table", 60);
        host.sh("install -d -o postgres -g postgres -m 700 /table/own");
        host.psql("CREATE TABLESPACE apart LOCATION '/table/own'");
        let name = format!("disk_tablespace_{}", host.psql("SELECT oid FROM pg_tablespace WHERE spcname = 'apart'"));
        let forecast = format!("{name}_forecast");
        assert_eq!(pass(&host), 0);
        let file = host.file(&format!("/var/lib/pg-recovery/health/{}-main.json", host.version()));
        let state = || serde_json::from_str::<Value>(&file.read()).expect("the state is JSON");
        assert_check(&state(), &forecast, "ok", "is known for 0min");
        let noted = state()["trends"]["left"][&name].as_str().expect("it was noted").to_owned();
        let (now, left) = noted.split_once(':').expect("a time and an amount");
        let (now, left): (i64, u64) = (now.parse().expect("seconds"), left.parse().expect("bytes"));

        // The last 130 minutes, in the form in which they would have been noted.
        let remember = |left_at: &dyn Fn(u64) -> u64| {
            let noted = (1..=130).rev().map(|minute| format!("{}:{}", now - 60 * minute as i64, left_at(minute)));
            let mut state = state();
            state["trends"]["left"][&name] = noted.collect::<Vec<_>>().join(" ").into();
            file.write(state.to_string());
        };
        // In the last 70 minutes a 100th of what is left now went each minute.
        remember(&|minute| left + left / 100 * minute.min(70));
        assert_eq!((pass(&host), failures(&host)), (1, 0));
        assert_check(&state(), &name, "ok", "");
        assert_check(&state(), &forecast, "warning", " volume at ");
        assert_check(&state(), &forecast, "warning", "will be full in ");
        // It goes faster, and not a quarter of it is full.
        host.sh(&format!("fallocate -l {} /table/own/more", left / 10));
        remember(&|minute| left - left / 10 + left / 60 * minute.min(20));
        assert_eq!((pass(&host), failures(&host)), (2, 0));
        assert_check(&state(), &name, "ok", "");
        assert_check(&state(), &forecast, "critical", "will be full in 5");
        host.journal_of("pg-health-check").says("see what takes it: du -xhD");
        // It went as fast and further three times before, and came back.
        remember(&|minute| left - left / 10 - left / 9 + left / 60 * ((minute + 7) % 30));
        assert_eq!((pass(&host), failures(&host)), (0, 0));
        assert_check(&state(), &forecast, "ok", "no steady fall");
    }

    fn a_host_that_is_short_of_memory_or_busy_is_told(host: Host) {
        quiet(&host, "");
        // The memory that is used is what it is, so it is the limits that move.
        for (fail, status) in [(100, "warning"), (1, "critical")] {
            host.configure(&format!("mode = \"observe\"\n[health]\npressure_warn = 10\nmemory_warn = 1\nmemory_fail = {fail}\n"));
            assert_check(&look(&host, &host.main_cluster()), "memory", status, "% of memory is used");
        }
        assert_eq!((pass(&host), failures(&host)), (2, 0));
        host.run_as_unit("burn", "nobody", "for i in $(seq 8); do while :; do :; done & done; wait");
        host.wait_until("the host is busy", Duration::from_secs(120), || {
            check(&look(&host, &host.main_cluster()), "pressure").is_some_and(|check| check["status"] == "warning")
        });
        host.sh("systemctl stop burn.service");
    }

    fn a_deaf_address_is_critical_and_starts_no_recovery(host: Host) {
        quiet(&host, "");
        host.sh("ip address add 192.0.2.1/32 dev lo");
        host.psql("ALTER SYSTEM SET listen_addresses = 'localhost, 192.0.2.1'");
        host.sh(&format!("systemctl restart {}", host.unit()));
        host.wait_until_accepting(SOON);
        assert_check(&look(&host, &host.main_cluster()), "tcp", "ok", "192.0.2.1:5432");
        // The server still listens there, and nothing reaches it.
        host.sh("ip address delete 192.0.2.1/32 dev lo");
        for _ in 0..3 {
            assert_eq!((pass(&host), failures(&host)), (2, 0));
        }
        let judged = look(&host, &host.main_cluster());
        assert_check(&judged, "tcp", "critical", "no answer at 192.0.2.1:5432");
        assert_check(&judged, "socket", "ok", "");
    }

    fn missing_programs_of_postgresql_are_told_before_they_are_needed(host: Host) {
        quiet(&host, "");
        assert_eq!(pass(&host), 0);
        let folder = host.main_cluster().program("");
        let folder = folder.trim_end_matches('/');
        host.sh(&format!("mv {folder} {folder}.gone"));
        assert_eq!((pass(&host), failures(&host)), (1, 0));
        let says = format!("could not run {folder}/postgres: No such file");
        assert_check(&look(&host, &host.main_cluster()), "configuration", "warning", &says);
        host.signal(host.postmaster_pid(), host::Signal::SIGINT);
        host.wait_until("the server is down", SOON, || !host.file(&format!("{}/postmaster.pid", host.data_directory())).exists());
        let judged = look(&host, &host.main_cluster());
        assert_check(&judged, "configuration", "critical", &says);
        assert_check(&judged, "process", "critical", "it was stopped cleanly");
        host.sh(&format!("mv {folder}.gone {folder}"));
        assert_check(&look(&host, &host.main_cluster()), "configuration", "ok", "");
    }

    fn a_stopped_cluster_is_started_by_the_third_check_of_the_timer_and_no_sooner(host: Host) {
        let uptime = || host.sh("cut -d ' ' -f 1 /proc/uptime").parse::<f64>().expect("a number");
        // That the computer is busy is nothing to be told here.
        host.configure("[health]\npressure_warn = 100\nmemory_warn = 100\nmemory_fail = 100");
        host.wait_until("a check found it well", Duration::from_secs(120), || {
            host.journal_of("pg-health-check").contains(" OK: primary")
        });
        host.operator_stops("postgresql.service");
        host.wait_for_state(&host.unit(), "inactive", SOON);
        let stopped = uptime();
        host.wait_until("a recovery is on record", Duration::from_secs(300), || !host.recoveries().is_empty());
        let started = host.property_of("pg-recovery.service", "ExecMainStartTimestampMonotonic");
        let waited = started.parse::<f64>().expect("microseconds") / 1e6 - stopped;
        // Two periods of the timer lie between the first check and the third; AccuracySec= is 1 s.
        assert!(waited > 118.0, "{waited} s");
        let record = host.recoveries()[0].clone();
        assert_eq!((&record["fault"], &record["detected_by"]), (&Value::from("O1"), &Value::from("pg-health-check")), "{record}");
        host.wait_until_accepting(SOON);
    }

    fn a_host_without_a_cluster_is_ok(host: Host) {
        quiet(&host, "");
        host.sh(&format!("pg_dropcluster --stop {} main", host.version()));
        let output = host.run("pg-health-check");
        assert_eq!((output.status, output.stdout.as_str()), (0, "PG OK - no PostgreSQL cluster on this host\n"));
        assert_eq!(host.json("pg-health-check --json"), serde_json::json!({ "clusters": [] }));
        assert_eq!(pass(&host), 0);
    }

    fn a_cluster_that_was_switched_off_is_left_alone(host: Host) {
        quiet(&host, "");
        let left_alone = |reason: &str| {
            for _ in 0..4 {
                assert_eq!((pass(&host), failures(&host)), (0, 0));
            }
            let judged = look(&host, &host.main_cluster());
            assert_eq!((&judged["status"], &judged["score"]), (&Value::from("ok"), &Value::from(100)));
            assert_check(&judged, "process", "ok", reason);
        };
        faults::o1_operator_off::inject_mask(&host);
        left_alone("has its unit masked, leaving it alone");
        host.sh(&format!("systemctl unmask {}", host.unit()));
        faults::o1_operator_off::inject_disable_all(&host);
        left_alone("is disabled, as postgresql.service is, leaving it alone");
        host.sh("systemctl enable postgresql.service");
        faults::o1_operator_off::inject_manual(&host);
        left_alone("is set to manual in start.conf, leaving it alone");
    }

    fn a_cluster_that_is_meant_to_be_down_is_left_alone_on_a_volume_that_never_answers(host: Host) {
        let second = host.create_cluster("second");
        host.operator_masks(&second.unit());
        quiet(&host, "");
        faults::s6_dead_volume::inject(&host, &second.data_directory());
        let left_alone = |reason: &str| {
            let began = Instant::now();
            for _ in 0..2 {
                assert_eq!((pass(&host), host.property_of(CHECK, "Result")), (0, "success".into()));
            }
            assert!(began.elapsed() < Duration::from_secs(30), "{:?}", began.elapsed());
            let name = second.name();
            host.journal_of("pg-health-check").says(&format!("{name} OK: cluster {name} {reason}, leaving it alone"));
        };
        left_alone("has its unit masked");
        host.sh(&format!("systemctl unmask {}", second.unit()));
        host.sh(&format!("echo manual > {}/start.conf", second.configuration_directory()));
        left_alone("is set to manual in start.conf");
        host.sh("systemctl stop dead-volume.service");
    }

    fn a_crash_is_told_apart_from_a_clean_stop(host: Host) {
        quiet(&host, "");
        faults::p1_postmaster_killed::inject(&host);
        host.wait_for_state(&host.unit(), "failed", SOON);
        let judged = look(&host, &host.main_cluster());
        assert_check(&judged, "process", "critical", "pg_control: in production");
        assert_check(&judged, "process", "critical", "killed by signal 9");
        host.sh(&format!("systemctl start {}", host.unit()));
        host.wait_until_accepting(SOON);
        faults::o1_operator_off::inject_stop_as_postgres(&host);
        assert_check(&look(&host, &host.main_cluster()), "process", "critical", "it was stopped cleanly");
    }

    fn the_table_that_is_written_never_grows(host: Host) {
        quiet(&host, "");
        let beats = || host.psql("SELECT beat FROM pgrecovery.heartbeat").parse::<u32>().expect("a number");
        // A pass that was cut short may have left the table without its row: then this one makes it.
        assert_eq!(host.run("pg-health-check").status, 0);
        let before = beats();
        host.sh("for pass in $(seq 400); do pg-health-check > /dev/null || exit; done");
        assert_eq!(host.psql("SELECT pg_relation_size('pgrecovery.heartbeat')"), "8192");
        assert_eq!(beats(), before + 400);
        assert_eq!(host.psql("SELECT count(*) FROM pg_stat_activity WHERE application_name = 'pg-health-check'"), "0");
    }

    fn a_table_that_somebody_else_put_in_its_place_is_not_touched(host: Host) {
        quiet(&host, "");
        host.psql("DROP SCHEMA IF EXISTS pgrecovery CASCADE");
        host.psql("CREATE ROLE mallory");
        host.psql("CREATE SCHEMA pgrecovery AUTHORIZATION mallory");
        let judged = look(&host, &host.main_cluster());
        assert_check(&judged, "write", "warning", "belongs to another role");
        assert_eq!(host.psql("SELECT to_regclass('pgrecovery.heartbeat') IS NULL"), "t");
    }

    fn a_pass_is_cheap(host: Host) {
        quiet(&host, "");
        assert_eq!(pass(&host), 0);
        let ten = "for pass in $(seq 10); do pg-health-check --count > /dev/null; done";
        let times = host.sh(&format!("runuser -u postgres -- bash -c 'TIMEFORMAT=\"%U %S\"; time {{ {ten}; }}' 2>&1"));
        let seconds: f64 = times.split_whitespace().filter_map(|word| word.parse::<f64>().ok()).sum();
        println!("\nCPU of one pass: {:.1} ms", seconds * 100.0);
        assert!(seconds * 100.0 < 50.0, "{times}");
    }
}
