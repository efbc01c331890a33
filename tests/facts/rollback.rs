//! A way back from every change of the configuration, and changes that come back by themselves.

use std::time::Duration;

use host::{Host, Suite, facts_on_both_suites, faults};

const SOON: Duration = Duration::from_secs(60);

/// All that a recovery point is about: content, owner and mode of each file.
fn files(host: &Host) -> String {
    let (conf, data) = (host.configuration_directory(), host.data_directory());
    host.sh(&format!(
        "find {conf} {data}/postgresql.auto.conf -type f | sort | while read -r file; do \
         echo \"$file $(stat -c '%U %a' $file) $(sha256sum < $file)\"; done"
    ))
}

/// What a run has left beside the files, or for the next run.
fn left_over(host: &Host) -> String {
    let (conf, data) = (host.configuration_directory(), host.data_directory());
    host.sh(&format!("find {conf} {data} /etc/systemd/system /var/lib/pg-recovery/rollback -maxdepth 2 -name '*.pg-rollback*' -o -path '*/rollback/*'"))
}

/// The same of how the cluster is started, of its key and certificate, and of what it includes from elsewhere.
fn all(host: &Host) -> String {
    let more = "find /etc/systemd/system /srv -path '*postgresql*' ! -type d -o -path '/srv/*' -type f";
    let tls = format!("ls {0}/server.key {0}/server.crt", host.data_directory());
    let stat = "stat -c '%n %N %U:%G %a' \"$file\"; test -L \"$file\" || sha256sum < \"$file\"";
    format!("{}\n{}", files(host), host.sh(&format!("( {more}; {tls} ) | sort | while read -r file; do {stat}; done")))
}

/// What of this package runs, and what is enabled.
fn units(host: &Host) -> (Vec<String>, String) {
    let list = host.sh("systemctl list-units --plain --no-legend --all 'pg-*' | sort");
    let is_on = |line: &&str| line.split_whitespace().nth(2) == Some("active") && !line.starts_with("pg-notify@");
    let runs = list.lines().filter(is_on).filter_map(|line| line.split_whitespace().next()).map(String::from).collect();
    (runs, host.sh("find /etc/systemd/system -name 'pg-*' -printf '%p %l\n' | sort"))
}

fn points(host: &Host, kind: &str) -> Vec<String> {
    let list = host.json("pg-rollback list --json");
    let points = list["points"].as_array().expect("it is a list");
    points.iter().filter(|p| p["kind"] == kind).map(|p| p["id"].as_str().expect("a name").to_string()).collect()
}

fn boot(suite: Suite) -> Host {
    let host = Host::boot(suite);
    host.wait_until("the first recovery point is made", SOON, || !points(&host, "good").is_empty());
    host
}

fn conf(host: &Host, name: &str) -> host::File {
    host.file(&format!("{}/{name}", host.configuration_directory()))
}

fn lock_everybody_out(host: &Host) {
    conf(host, "pg_hba.conf").write("local all all reject\nhost all all all reject\n");
}

facts_on_both_suites! {
    fn a_change_is_listed_shown_and_put_back_under_a_server_that_runs_on(suite: Suite) {
        let host = boot(suite);
        let (before, postmaster) = (files(&host), host.postmaster_pid());
        let ledger = host.ledger();
        host.psql("ALTER SYSTEM SET work_mem = '7MB'");
        conf(&host, "pg_hba.conf").append("host all mallory all trust");
        conf(&host, "conf.d/new.conf").write("maintenance_work_mem = '99MB'\n");
        host.psql("SELECT pg_reload_conf()");
        let changed = files(&host);

        let plan = host.sh("pg-rollback config --plan");
        for word in ["-host all mallory all trust", "remove /etc/postgresql/", "conf.d/new.conf, which was not there", "work_mem"] {
            assert!(plan.contains(word), "{plan}");
        }
        assert_eq!(files(&host), changed);
        let output = host.run("pg-rollback config");
        assert!(output.success(), "{output}");
        assert_eq!(files(&host), before);
        assert_eq!(host.psql("SHOW work_mem"), "4MB");
        assert_eq!(host.psql("SHOW maintenance_work_mem"), "64MB");
        assert_eq!(host.psql("SELECT count(*) FROM pg_hba_file_rules WHERE 'mallory' = ANY (user_name)"), "0");
        assert_eq!(host.postmaster_pid(), postmaster);
        ledger.wait_for_commits(20);
        ledger.stop_and_check().assert_nothing_lost();

        // What was undone is not lost either.
        let undone = points(&host, "before").remove(0);
        assert!(host.sh(&format!("pg-rollback show {undone}")).contains("+host all mallory all trust"));
        assert!(host.run(&format!("pg-rollback config {undone} --only pg_hba.conf")).success());
        assert_eq!(host.psql("SELECT count(*) FROM pg_hba_file_rules WHERE 'mallory' = ANY (user_name)"), "1");
        assert_eq!(host.psql("SHOW work_mem"), "4MB");
    }

    fn each_of_ten_changes_comes_back(suite: Suite) {
        let host = boot(suite);
        let before = files(&host);
        type Change = fn(&Host);
        let changes: [Change; 10] = [
            |h| conf(h, "postgresql.conf").append("log_connections = on"),
            |h| conf(h, "postgresql.conf").append("a line that nobody can read"),
            |h| conf(h, "postgresql.conf").write(""),
            |h| conf(h, "postgresql.conf").remove(),
            |h| conf(h, "pg_hba.conf").append("local all all trust"),
            |h| conf(h, "pg_hba.conf").write(vec![0; 4096]),
            |h| conf(h, "pg_ident.conf").append("map somebody postgres"),
            |h| conf(h, "conf.d/zz.conf").write("work_mem = '1MB'\n"),
            |h| { h.sh(&format!("chmod 666 {}/pg_hba.conf", h.configuration_directory())); },
            |h| { h.psql("ALTER SYSTEM SET work_mem = '9MB'"); },
        ];
        for (index, change) in changes.iter().enumerate() {
            change(&host);
            assert_ne!(files(&host), before, "change {index}");
            let output = host.run("pg-rollback config");
            assert!(output.success(), "change {index}: {output}");
            assert_eq!(files(&host), before, "change {index}");
            assert_eq!(host.psql("SHOW work_mem"), "4MB");
        }
        let output = host.run("pg-rollback config");
        assert!(output.success() && output.stdout.contains("nothing to do"), "{output}");
    }

    fn each_of_twelve_changes_comes_back_from_a_point_that_a_person_made_and_after_a_kill(suite: Suite) {
        let host = boot(suite);
        faults::c5_tls_key::prepare(&host);
        host.sh("install -d -o postgres -g postgres /srv/pg && echo 'work_mem = 5MB' | install -o postgres -m 640 /dev/stdin /srv/pg/common.conf");
        conf(&host, "postgresql.conf").append("include '/srv/pg/common.conf'");
        host.file("/etc/systemd/system/postgresql@.service.d/own.conf").write("[Service]\nNice=1\n");
        host.sh(&format!("systemctl daemon-reload && systemctl reload {}", host.unit()));
        host.psql("CREATE ROLE clerk LOGIN PASSWORD 'hidden' CONNECTION LIMIT 9");
        host.wait_until("it has been read", SOON, || host.psql("SHOW work_mem") == "5MB");
        let point = host.sh("pg-rollback point 'before twelve changes'");
        let before = all(&host);
        let kept = format!("/var/lib/pg-recovery/points/{point}");
        assert!(host.sh(&format!("grep -rh clerk {kept}")).contains("CONNECTION LIMIT 9"));
        assert!(!host.run(&format!("grep -rq 'SCRAM-SHA-256[$]\\|hidden' {kept}")).success(), "passwords are kept nowhere");
        assert_eq!(host.sh(&format!("find {kept} -perm /077")), "");
        type Change = fn(&Host);
        let changes: [(&str, &str, Change); 12] = [
            ("config", "postgresql.conf", |h| conf(h, "postgresql.conf").append("work_mem = 6MB")),
            ("config", "pg_hba.conf", |h| conf(h, "pg_hba.conf").append("host all mallory all trust")),
            ("config", "pg_ident.conf", |h| conf(h, "pg_ident.conf").append("map somebody postgres")),
            ("config", "postgresql.auto.conf", |h| { h.psql("ALTER SYSTEM SET work_mem = '9MB'"); }),
            ("security", "server.key", |h| { h.sh(&format!("chmod 640 {}/server.key", h.data_directory())); }),
            ("security", "server.crt", |h| faults::c5_tls_key::renew(h)),
            ("config", "own.conf", |h| h.file("/etc/systemd/system/postgresql@.service.d/own.conf").write("[Service]\nNice=2\n")),
            ("config", "/dev/null", |h| { h.sh(&format!("systemctl mask {}", h.unit())); }),
            ("config", "common.conf", |h| { h.sh("echo 'work_mem = 1' >> /srv/pg/common.conf"); }),
            ("config", "start.conf", |h| conf(h, "start.conf").write("manual\n")),
            ("config", "its owner postgres:postgres back", |h| { h.sh(&format!("chown root:root {}/pg_hba.conf", h.configuration_directory())); }),
            ("config", "its mode 0644 back", |h| { h.sh(&format!("chmod 666 {}/postgresql.conf", h.configuration_directory())); }),
        ];
        for (index, (level, says, change)) in changes.iter().enumerate() {
            change(&host);
            let changed = all(&host);
            assert_ne!(changed, before, "change {index}");
            let shown = host.sh(&format!("pg-rollback {level} {point} --plan"));
            // A mask that was not there has no name but its own.
            assert!(shown.contains(says) || *says == "/dev/null" && shown.contains("remove /etc/systemd"), "{says}: {shown}");
            // The other level has nothing to do with it.
            let other = if *level == "config" { "security" } else { "config" };
            let plan = host.sh(&format!("pg-rollback {other} {point} --plan"));
            assert!(plan.contains("nothing to do"), "change {index}: {plan}");
            let step = 2 + index % 3;
            let killed = host.run(&format!("PG_RECOVERY_KILL_BEFORE_STEP={step} pg-rollback {level} {point}"));
            assert_eq!(killed.status, 137, "change {index}: {killed}");
            let output = host.run(&format!("pg-rollback {level} {point}"));
            assert!(output.success(), "change {index} after a kill before step {step}: {output}");
            assert_eq!(all(&host), before, "change {index}");
            assert_eq!(left_over(&host), "", "change {index}");
        }
        assert_eq!(host.psql("SHOW work_mem"), "5MB");

        // The last of two files finds no room: the first one stays as well.
        let folder = format!("{}/zz.d", host.configuration_directory());
        host.sh(&format!("mkdir {folder} && mount -t tmpfs -o size=64k,mode=700,uid=postgres tmpfs {folder}"));
        host.sh(&format!("head -c 9000 /dev/zero | tr '\\0' '#' | install -o postgres /dev/stdin {folder}/x.conf"));
        let point = host.sh("pg-rollback point");
        let before = all(&host);
        host.sh(&format!("rm {folder}/x.conf; head -c 1M /dev/zero > {folder}/full || true"));
        conf(&host, "pg_hba.conf").append("host all mallory all trust");
        let changed = all(&host);
        let output = host.run(&format!("pg-rollback config {point}"));
        assert!(output.status == 1 && output.stderr.contains("Nothing was changed"), "{output}");
        assert_eq!((all(&host), left_over(&host)), (changed, String::new()));
        host.sh(&format!("rm {folder}/full"));
        assert!(host.run(&format!("pg-rollback config {point}")).success());
        assert_eq!(all(&host), before);

        // Roles are shown, and left to a person.
        host.psql("ALTER ROLE clerk CONNECTION LIMIT 1");
        let shown = host.sh(&format!("pg-rollback show {point}"));
        assert!(shown.contains("roles, which no level puts back, differ") && shown.contains("CONNECTION LIMIT 9"), "{shown}");
    }

    fn monitoring_goes_off_stays_off_and_comes_back_wherever_it_is_killed(suite: Suite) {
        let host = boot(suite);
        let ledger = host.ledger();
        let drop_in = host.file("/etc/systemd/system/pg-watchdog.service.d/own.conf");
        drop_in.write("[Service]\nNice=-1\n");
        host.sh("systemctl daemon-reload");
        let (runs, before) = units(&host);
        assert!(runs.iter().any(|unit| unit == "pg-watchdog.service"), "{runs:?}");
        let is_off = |host: &Host| {
            let (runs, links) = units(host);
            assert_eq!(runs, Vec::<String>::new());
            assert!(!links.contains(".wants/"), "{links}");
        };
        assert!(host.run("pg-rollback guard 1h").success());
        let output = host.run("pg-rollback monitoring");
        assert!(output.status == 1 && output.stderr.contains("a change is under guard"), "{output}");
        assert!(host.run("pg-rollback confirm").success());
        host.wait_until("the guard is over", SOON, || host.state_of("pg-rollback-guard.service") == "inactive");
        let plan = host.sh("pg-rollback monitoring --plan");
        assert!(plan.contains("stop pg-watchdog.service") && plan.contains("pg-recovery.target.wants/pg-watchdog.service"), "{plan}");
        assert_eq!(units(&host), (runs.clone(), before.clone()));

        for step in 1..=2 {
            let killed = host.run(&format!("PG_RECOVERY_KILL_BEFORE_STEP={step} pg-rollback monitoring"));
            assert_eq!(killed.status, 137, "step {step}: {killed}");
        }
        let output = host.start_and_wait("pg-rollback@monitoring.service");
        assert!(output.success(), "{output}\n{}", host.sh("journalctl -u pg-rollback@monitoring.service"));
        is_off(&host);
        assert!(drop_in.exists(), "what a person made is theirs");
        // Neither a new version nor a reboot brings it back.
        let again = host.run("systemd-run --quiet --pipe --wait dpkg --install /pg-recovery.deb");
        assert!(again.success(), "{again}");
        is_off(&host);
        assert!(host.run("pg-rollback monitoring").stderr.contains("is off already"));

        // The first of them was made before anything was switched off.
        let of_host = |id: &String| id.ends_with("-host-before");
        let point = points(&host, "before").into_iter().rfind(of_host).expect("there is one");
        drop_in.write("[Service]\nNice=5\n");
        for step in 1..=3 {
            let killed = host.run(&format!("PG_RECOVERY_KILL_BEFORE_STEP={step} pg-rollback monitoring {point}"));
            assert_eq!(killed.status, 137, "step {step}: {killed}");
        }
        let output = host.run(&format!("pg-rollback monitoring {point}"));
        assert!(output.success(), "{output}");
        assert_eq!(units(&host).1, before);
        assert!(drop_in.read().contains("Nice=-1"));
        host.wait_until("all of it runs again", SOON, || units(&host).0 == runs);
        ledger.stop_and_check().assert_nothing_lost();
    }

    fn full_leaves_the_host_as_it_was_before_wherever_it_is_killed(suite: Suite) {
        let host = Host::boot_with_backups(suite);
        let unit = host.unit();
        host.wait_until("the first recovery point is made", SOON, || !points(&host, "good").is_empty());
        let slots = || host.psql("SELECT count(*) FROM pg_replication_slots");
        host.wait_until("WAL is received", SOON, || slots() == "1");
        let ballast = format!("{}/pgsql_tmp.pg-recovery-ballast", host.data_directory());
        host.wait_until("room is kept", SOON, || host.file(&ballast).exists());
        host.start_and_wait("pg-health-check.service");
        let schemas = || host.psql("SELECT count(*) FROM pg_namespace WHERE nspname = 'pgrecovery'");
        assert_eq!(schemas(), "1");
        host.psql("CREATE ROLE app CONNECTION LIMIT 3");
        let oid = host.psql("SELECT oid FROM pg_roles WHERE rolname = 'app'");
        host.file(&format!("/var/lib/pg-recovery/sessions/{}-main.json", host.version())).write(format!(
            "{{\"version\": 1, \"serial\": 99, \"limit\": {{\"role_oid\": {oid}, \"before\": 7, \"now\": 3}}}}"
        ));

        // pg-recover takes both back; what the first one needs is there later, the second one is changed by somebody.
        for (name, line) in [("postgresql.conf", "include '/srv/late.conf'"), ("pg_hba.conf", "hots all all all trust")] {
            conf(&host, name).append(line);
            let theirs = conf(&host, name).read();
            host.sh(&format!("systemctl restart {unit} || true"));
            host.wait_until("it is put back", SOON, || conf(&host, name).read() != theirs);
            host.wait_until_accepting(SOON);
            host.wait_until("the recovery is over", SOON, || host.state_of("pg-recovery.service") != "activating");
        }
        host.file("/srv/late.conf").write("work_mem = 9MB\n");
        conf(&host, "pg_hba.conf").append("# mine");
        let rules = conf(&host, "pg_hba.conf").read();

        let plan = host.sh("pg-rollback full --plan");
        for says in ["put back /etc/postgresql", "somebody has changed it since", "MiB free", "drop the slot", "connection limit",
            "table of the health check", "stop pg-wal-stream.service"] {
            assert!(plan.contains(says), "{says}: {plan}");
        }
        assert!(slots() == "1" && host.psql("SHOW work_mem") == "4MB");
        for step in [3, 100, 101, 102] {
            let killed = host.run(&format!("PG_RECOVERY_KILL_BEFORE_STEP={step} pg-rollback full"));
            assert_eq!(killed.status, 137, "step {step}: {killed}");
        }
        let output = host.run("pg-rollback full");
        assert!(output.success() && output.stderr.contains("leave /etc/postgresql"), "{output}");
        assert_eq!((host.psql("SHOW work_mem"), conf(&host, "pg_hba.conf").read()), ("9MB".into(), rules));
        let beside = host.sh(&format!("ls {}/*.broken-*", host.configuration_directory()));
        assert!(beside.lines().count() == 2 && beside.lines().all(|path| output.stderr.contains(path)), "{beside}: {output}");
        assert_eq!((slots(), schemas()), ("0".into(), "0".into()));
        assert_eq!(host.psql("SELECT rolconnlimit FROM pg_roles WHERE rolname = 'app'"), "7");
        assert!(!host.file(&ballast).exists());
        assert_eq!(host.sh("ls /run/pg-recovery-socket"), "");
        let (runs, links) = units(&host);
        assert!(runs.is_empty() && !links.contains(".wants/"), "{runs:?} {links}");
        assert!(host.file(&format!("/var/backups/pg-recovery/{}-main", host.version())).exists());
        assert!(!points(&host, "good").is_empty());
        assert!(host.run("pg-rollback full").success());
    }

    fn a_guard_comes_back_from_a_server_that_nobody_reaches_and_on_a_full_state_disk(suite: Suite) {
        let host = boot(suite);
        let (before, unit) = (files(&host), host.unit());
        host.sh("systemctl stop pg-recovery.target");
        let up = || host.sh("ps -o etimes= -p 1").trim().parse::<u32>().expect("a number");
        host.wait_until("it is up for longer than a guard", SOON, || up() > 8);
        let over = || host.state_of("pg-rollback-guard.service") == "inactive";
        for (line, said) in [("port = 5999", "5999"), ("listen_addresses = '192.0.2.1'", "192.0.2.1")] {
            assert!(host.run("pg-rollback guard 8s").success());
            conf(&host, "postgresql.conf").append(line);
            host.sh(&format!("systemctl restart {unit} || true"));
            host.wait_until("it was out of reach", SOON, || host.server_log().contains(said));
            host.wait_until("it came back", SOON, || files(&host) == before && over());
            host.wait_until("it is reached", SOON, || host.run("pg_isready --quiet --host 127.0.0.1 --port 5432").success());
            // A reload is not carried out by systemd before that.
            host.wait_for_state(&unit, "active", SOON);
        }

        host.sh("mount -t tmpfs -o size=256k tmpfs /var/lib/pg-recovery && cd /var/lib/pg-recovery && mkdir -m 700 points rollback");
        let fill = "head -c 1M /dev/zero > /var/lib/pg-recovery/full || true";
        host.sh(fill);
        let output = host.run("pg-rollback guard 1h -- touch /tmp/ran");
        assert!(output.status == 1 && output.stderr.contains("could not save recovery point"), "{output}");
        assert!(!host.file("/tmp/ran").exists() && over());
        host.file("/var/lib/pg-recovery/full").remove();
        assert!(host.run("pg-rollback guard 8s").success());
        host.sh(fill);
        lock_everybody_out(&host);
        host.sh(&format!("systemctl reload {unit}"));
        host.wait_until("everybody is locked out", SOON, || !host.try_psql("SELECT 1").success());
        host.wait_until("it came back", SOON, || over() && host.try_psql("SELECT 1").success());
        // There was no room for a point: what was replaced is beside.
        let beside = host.sh(&format!("ls {}/pg_hba.conf.replaced-*", host.configuration_directory()));
        assert!(host.file(&beside).read().contains("reject"));
        host.file(&beside).remove();
        assert_eq!(files(&host), before);
    }

    fn a_signal_at_any_moment_leaves_one_state_or_the_other_and_says_which(suite: Suite) {
        let host = boot(suite);
        let (before, folder) = (files(&host), host.configuration_directory());
        // While a command is at work under guard.
        let pid = host.run_as_unit("guarded", "root", &format!(
            "exec pg-rollback guard 1h -- sh -c 'echo work_mem = 9MB > {folder}/conf.d/new.conf; exec sleep 1000'"
        ));
        host.wait_until("the command is at work", SOON, || conf(&host, "conf.d/new.conf").exists());
        host.sh(&format!("kill -INT {pid}; sleep 0.2; kill -0 {pid}; kill -TERM {pid}"));
        host.wait_until("it came back", SOON, || files(&host) == before && !host.is_alive(pid));
        assert!(host.sh("journalctl -u guarded.service").contains("sleep was interrupted by SIGTERM")
            || host.sh("journalctl -u guarded.service").contains("sh was interrupted by SIGTERM"));
        host.wait_until("the guard is over", SOON, || host.state_of("pg-rollback-guard.service") == "inactive");
        // While files are put back.
        for (index, signal) in ["INT", "TERM", "HUP", "INT", "TERM", "HUP"].iter().enumerate() {
            conf(&host, "pg_hba.conf").append("host all mallory all trust");
            conf(&host, "conf.d/new.conf").write("work_mem = '9MB'\n");
            let changed = files(&host);
            let output = host.run(&format!(
                "pg-rollback config 2>/tmp/said & sleep 0.0{}; kill -{signal} $!; wait $!", index * 15
            ));
            let (now, said) = (files(&host), host.file("/tmp/said").read());
            assert!(now == before || now == changed, "{signal}: {output}{said}\n{now}");
            assert_eq!(now == before, said.contains("What was there is in recovery point"), "{signal}: {said}");
            assert_eq!(left_over(&host), "", "{signal}");
            assert!(now == before || host.run("pg-rollback config").success());
        }
    }

    fn what_the_server_would_not_start_with_is_refused_and_nothing_is_changed(suite: Suite) {
        let host = boot(suite);
        let before = files(&host);
        conf(&host, "postgresql.conf").append("shared_buffers = 'a lot'");
        let bad = host.sh("pg-rollback point 'a bad day'");
        assert!(host.run("pg-rollback config").success());
        let output = host.run(&format!("pg-rollback config {bad}"));
        assert_eq!(output.status, 1, "{output}");
        assert!(output.stderr.contains("invalid value for parameter \"shared_buffers\""), "{output}");
        assert_eq!(files(&host), before);
        assert!(host.sh("ls /run/pg-recovery").lines().all(|name| !name.starts_with("rollback")));
    }

    fn going_back_to_what_locks_everybody_out_is_undone(suite: Suite) {
        let host = boot(suite);
        let before = files(&host);
        let ledger = host.ledger_of_fresh_sessions();
        lock_everybody_out(&host);
        let bad = host.sh("pg-rollback point");
        assert!(host.run("pg-rollback config").success());
        let output = host.run(&format!("pg-rollback config {bad}"));
        assert_eq!(output.status, 1, "{output}");
        assert!(output.stderr.contains("has the configuration that it had"), "{output}");
        assert_eq!(files(&host), before);
        assert_eq!(host.psql("SELECT 1"), "1");
        ledger.wait_for_commits(20);
        ledger.stop_and_check().assert_nothing_lost();
    }

    fn a_file_that_the_server_refuses_is_undone(suite: Suite) {
        let host = boot(suite);
        let before = files(&host);
        conf(&host, "pg_hba.conf").append("hots all all 10.0.0.0/8 scram-sha-256");
        let bad = host.sh("pg-rollback point");
        assert!(host.run("pg-rollback config").success());
        let output = host.run(&format!("pg-rollback config {bad}"));
        assert_eq!(output.status, 1, "{output}");
        assert!(output.stderr.contains("pg_hba.conf was not reloaded"), "{output}");
        assert_eq!(files(&host), before);
    }

    fn a_run_killed_before_any_of_its_steps_is_undone_and_done_by_the_next(suite: Suite) {
        let host = boot(suite);
        let before = files(&host);
        let ledger = host.ledger();
        for step in 1..=6 {
            host.psql("ALTER SYSTEM SET work_mem = '7MB'");
            conf(&host, "pg_hba.conf").append("host all mallory all trust");
            host.psql("SELECT pg_reload_conf()");
            host.wait_until("it has been read", SOON, || host.psql("SHOW work_mem") == "7MB");
            let changed = files(&host);
            let killed = host.run(&format!("PG_RECOVERY_KILL_BEFORE_STEP={step} pg-rollback config"));
            assert_eq!(killed.status, 137, "step {step}: {killed}");
            // Neither mixed for good nor for the next run to take for the last word.
            if step == 4 {
                assert!(files(&host) != before && files(&host) != changed);
            }
            let output = host.run("pg-rollback config");
            assert!(output.success(), "after step {step}: {output}");
            assert_eq!(files(&host), before, "after step {step}");
            assert_eq!(host.psql("SHOW work_mem"), "4MB", "after step {step}");
            assert_eq!(left_over(&host), "", "after step {step}");
        }
        ledger.stop_and_check().assert_nothing_lost();
    }

    fn a_key_and_certificate_that_belong_together_come_back(suite: Suite) {
        let host = boot(suite);
        faults::c5_tls_key::prepare(&host);
        host.wait_until_accepting(SOON);
        let served = || {
            let ask = "openssl s_client -starttls postgres -connect 127.0.0.1:5432 </dev/null 2>/dev/null";
            host.sh(&format!("{ask} | openssl x509 -noout -fingerprint"))
        };
        let first = served();
        host.wait_until("the pair is in a point", SOON, || {
            let list = host.json("pg-rollback list --json");
            list["points"][0]["files"].as_array().is_some_and(|f| f.iter().any(|f| f["path"].to_string().contains("server.key")))
        });
        // A renewal, and nothing wrong with it.
        faults::c5_tls_key::renew(&host);
        host.sh(&format!("systemctl reload {}", host.unit()));
        host.wait_until("the new one is served", SOON, || served() != first);
        let output = host.run("pg-rollback security");
        assert!(output.success(), "{output}");
        assert_eq!(served(), first, "{output}\n{}", host.sh("pg-rollback list"));
        assert_eq!(host.file(&format!("{}/server.key", host.data_directory())).mode() & 0o777, 0o600);
        let key = host.file(&format!("{}/server.key", host.data_directory())).read();
        assert!(!output.stderr.contains(key.lines().nth(1).expect("it has lines")), "a key is shown to nobody");

        // Only half of a pair: the server refuses it, and goes on with what it has.
        host.sh(&format!("cp {0}/server.key /root/good.key", host.data_directory()));
        faults::c5_tls_key::renew_certificate_alone(&host);
        let half = host.sh("pg-rollback point");
        assert!(host.run("pg-rollback security").success());
        let output = host.run(&format!("pg-rollback security {half}"));
        assert_eq!(output.status, 1, "{output}");
        assert!(output.stderr.contains("SSL configuration was not reloaded"), "{output}");
        assert_eq!(served(), first);
        host.sh(&format!("cmp {0}/server.key /root/good.key", host.data_directory()));
    }

    fn a_setting_that_needs_a_restart_is_named_and_restarted_for_only_when_that_is_asked(suite: Suite) {
        let host = boot(suite);
        let good = points(&host, "good").remove(0);
        host.psql("ALTER SYSTEM SET max_connections = 61");
        host.sh(&format!("systemctl restart {}", host.unit()));
        host.wait_until_accepting(SOON);
        let postmaster = host.postmaster_pid();
        let output = host.run(&format!("pg-rollback config {good}"));
        assert!(output.success() && output.stderr.contains("max_connections only after systemctl restart"), "{output}");
        assert_eq!((host.postmaster_pid(), host.psql("SHOW max_connections")), (postmaster, "61".into()));
        host.psql("ALTER SYSTEM SET max_connections = 61");
        let ledger = host.ledger();
        ledger.wait_for_commits(20);
        let output = host.run(&format!("pg-rollback config {good} --restart"));
        assert!(output.success(), "{output}");
        assert_eq!(host.psql("SHOW max_connections"), "100");
        ledger.wait_for_commits(20);
        ledger.stop_and_check().assert_nothing_lost();
        assert_eq!(host.recoveries(), Vec::<serde_json::Value>::new(), "nobody else had to help");
    }

    fn a_restart_that_fails_is_undone_and_the_server_is_brought_back(suite: Suite) {
        let host = boot(suite);
        let before = files(&host);
        let ledger = host.ledger();
        // No host has that much, and postgres -C does not ask.
        conf(&host, "conf.d/memory.conf").write("shared_buffers = 900GB\n");
        let bad = host.sh("pg-rollback point");
        assert!(host.run("pg-rollback config").success());
        let output = host.run(&format!("pg-rollback config {bad} --restart"));
        assert_eq!(output.status, 1, "{output}");
        assert!(output.stderr.contains("systemd says that the start failed"), "{output}");
        assert_eq!(files(&host), before);
        ledger.wait_for_commits_within(20, SOON);
        assert_eq!(host.psql("SHOW shared_buffers"), "128MB");
        ledger.stop_and_check().assert_nothing_lost();
    }

    fn a_server_that_is_down_gets_its_files_back_and_is_not_started(suite: Suite) {
        let host = boot(suite);
        let before = files(&host);
        host.sh("systemctl stop pg-watchdog.service pg-health-check.timer");
        host.operator_stops("postgresql.service");
        host.wait_for_state(&host.unit(), "inactive", SOON);
        conf(&host, "pg_hba.conf").append("host all mallory all trust");
        assert!(host.start_and_wait("pg-rollback@config.service").success());
        assert_eq!((files(&host), host.state_of(&host.unit())), (before, "inactive".into()));
        host.journal_of("pg-rollback").says("it does not run");
    }

    fn the_unit_takes_every_cluster_back_and_leaves_alone_what_is_well(suite: Suite) {
        let host = boot(suite);
        let second = host.create_cluster("second");
        host.wait_until("both have a point", SOON, || points(&host, "good").iter().any(|id| id.contains("second")));
        let before = files(&host);
        conf(&host, "pg_hba.conf").append("host all mallory all trust");
        let output = host.start_and_wait("pg-rollback@config.service");
        assert!(output.success(), "{output}\n{}", host.sh("journalctl -u pg-rollback@config.service"));
        assert_eq!(files(&host), before);
        let well = format!("cluster {} is as in its last good recovery points", second.name());
        host.wait_for_journal("pg-rollback", &well, SOON);
    }

    fn a_change_under_guard_comes_back_unless_it_is_confirmed(suite: Suite) {
        let host = boot(suite);
        let before = files(&host);
        let ledger = host.ledger();
        // In a container the unit and this shell may be told two names of one boot: a host that has been up for longer
        // than the guard shows that.
        let up = || host.sh("ps -o etimes= -p 1").trim().parse::<u32>().expect("a number");
        host.wait_until("it is up for longer", SOON, || up() > 6);
        assert!(host.run("pg-rollback guard 5s").success());
        lock_everybody_out(&host);
        host.sh(&format!("systemctl reload {}", host.unit()));
        host.wait_until("everybody is locked out", SOON, || !host.try_psql("SELECT 1").success());
        host.wait_until("it came back", SOON, || files(&host) == before);
        host.wait_until_accepting(SOON);
        host.wait_until("the guard is over", SOON, || host.state_of("pg-rollback-guard.service") == "inactive");
        host.journal_of("pg-rollback").says("a change under guard was not confirmed in time");
        ledger.stop_and_check().assert_nothing_lost();

        let output = host.run(&format!(
            "pg-rollback guard 1h -- sh -c \"echo work_mem = 9MB > {}/conf.d/new.conf; systemctl reload {}\"",
            host.configuration_directory(),
            host.unit()
        ));
        assert!(output.success(), "{output}");
        assert_eq!(host.run("pg-rollback guard 1h").status, 64, "one at a time");
        assert_eq!(host.state_of("pg-rollback-guard.service"), "active");
        let output = host.run("pg-rollback confirm");
        assert!(output.success(), "{output}");
        host.wait_until("the guard is over", SOON, || host.state_of("pg-rollback-guard.service") == "inactive");
        assert_eq!(host.psql("SHOW work_mem"), "9MB");
        assert_eq!(host.run("pg-rollback confirm").status, 64);
    }

    fn a_command_under_guard_that_fails_or_harms_comes_back_at_once(suite: Suite) {
        let host = boot(suite);
        let before = files(&host);
        let folder = host.configuration_directory();
        let reload = format!("systemctl reload {}", host.unit());
        for (command, why) in [
            (format!("echo work_mem = 9MB > {folder}/conf.d/new.conf; exit 3"), "ended with exit status: 3"),
            (format!("echo nonsense >> {folder}/postgresql.conf"), "it would not start with its configuration"),
            (format!("echo nonsense >> {folder}/pg_hba.conf"), "the server refuses"),
            (format!("echo local all all reject > {folder}/pg_hba.conf; {reload}"), "no commit was tried"),
            (format!("rm {folder}/pg_hba.conf; systemctl restart {}", host.unit()), "ended with exit status: 1"),
        ] {
            let output = host.run(&format!("pg-rollback guard 1h -- sh -c '{command}'"));
            assert_eq!(output.status, 1, "{command}: {output}");
            assert!(output.stderr.contains(why), "{command}: {output}");
            assert_eq!(files(&host), before, "{command}");
            host.wait_until_accepting(SOON);
            host.wait_until("the guard is over", SOON, || host.state_of("pg-rollback-guard.service") == "inactive");
        }
    }

    fn what_the_server_or_its_owner_makes_of_it_does_not_keep_a_guard_from_coming_back(suite: Suite) {
        let host = boot(suite);
        // A key outside of what is PostgreSQL's own.
        faults::c5_tls_key::prepare(&host);
        host.wait_until_accepting(SOON);
        let (data, folder) = (host.data_directory(), "/etc/tls");
        host.sh(&format!("install -d -o postgres -g postgres {folder} && mv {data}/server.key {data}/server.crt {folder}"));
        host.psql("ALTER SYSTEM SET ssl_cert_file = '/etc/tls/server.crt'");
        host.psql("ALTER SYSTEM SET ssl_key_file = '/etc/tls/server.key'");
        // That was not well before the guard began either.
        conf(&host, "pg_hba.conf").append("hots all all 10.0.0.0/8 scram-sha-256");
        let key = host.file(&format!("{folder}/server.key"));
        let (before, key_before) = (files(&host), key.read());
        let output = host.run("pg-rollback guard 8s");
        assert!(output.success(), "{output}");
        host.sh(&format!("cd {folder} && runuser -u postgres -- cp server.crt server.key"));
        // As `sudo install -m 600` leaves it.
        host.sh(&format!("cd {} && install -m 600 -o root -g root /etc/hostname pg_hba.conf", host.configuration_directory()));
        host.wait_until("the guard is over", SOON, || host.state_of("pg-rollback-guard.service") == "inactive");
        assert_eq!(key.read(), key_before);
        assert_eq!(files(&host), before);
        assert_eq!(left_over(&host), "");
        let undone = points(&host, "before").remove(0);
        assert!(host.sh(&format!("pg-rollback show {undone}")).contains("pg_hba.conf"), "what root has put there is kept");
        host.journal_of("pg-rollback").says("not proven");
        assert_eq!(host.psql("SELECT 1"), "1");
    }

    fn what_somebody_changed_after_a_run_was_cut_short_is_left(suite: Suite) {
        let host = boot(suite);
        host.psql("ALTER SYSTEM SET work_mem = '7MB'");
        conf(&host, "pg_hba.conf").append("host all mallory all trust");
        let killed = host.run("PG_RECOVERY_KILL_BEFORE_STEP=5 pg-rollback config");
        assert_eq!(killed.status, 137, "{killed}");
        conf(&host, "pg_hba.conf").append("# mended by hand");
        let output = host.run("pg-rollback guard 1h");
        assert!(output.success() && output.stderr.contains("was changed by somebody else since, leaving it"), "{output}");
        assert!(conf(&host, "pg_hba.conf").read().contains("# mended by hand"));
        assert!(host.file(&format!("{}/postgresql.auto.conf", host.data_directory())).read().contains("7MB"));
        // A guard that nobody looks after any more does not come back with the next installation.
        assert!(host.run("systemd-run --quiet --pipe --wait apt-get remove --yes pg-recovery").success());
        assert!(!host.file("/var/lib/pg-recovery/rollback/guard.json").exists());
    }

    fn a_command_that_takes_longer_than_its_guard_is_undone(suite: Suite) {
        let host = boot(suite);
        let before = files(&host);
        let folder = host.configuration_directory();
        let slow = format!("until grep -q inactive /tmp/state; do systemctl is-active pg-rollback-guard > /tmp/state; sleep 0.2; done; echo work_mem = 9MB > {folder}/conf.d/new.conf");
        let output = host.run(&format!("pg-rollback guard 2s -- sh -c '{slow}'"));
        assert!(output.status == 1 && output.stderr.contains("took longer than 2s"), "{output}");
        assert_eq!(files(&host), before);
    }

    fn a_guard_outlasts_a_reboot(suite: Suite) {
        let host = boot(suite);
        let before = files(&host);
        assert!(host.run("pg-rollback guard 20s").success());
        host.psql("ALTER SYSTEM SET max_connections = 61");
        host.power_cut_and_boot();
        host.wait_until_accepting(SOON);
        host.wait_until("it came back", SOON, || files(&host) == before);
        host.wait_until("it runs with it", SOON, || host.try_psql("SHOW max_connections").stdout.trim() == "100");
    }

    fn wrong_input_is_answered_clearly_and_changes_nothing(suite: Suite) {
        let host = boot(suite);
        let before = files(&host);
        conf(&host, "pg_hba.conf").append("# a change");
        let changed = files(&host);
        for (words, status, says) in [
            ("", 64, "a command is missing"),
            ("back", 64, "unknown command"),
            ("config yesterday", 64, "there is no recovery point"),
            ("config ../../../etc", 64, "there is no recovery point"),
            ("show", 64, "show takes the ID"),
            ("config --only nothing.conf", 64, "has no file nothing.conf"),
            ("config --cluster 99/none", 64, "cannot find cluster 99/none"),
            ("guard", 64, "guard takes a time"),
            ("guard soon", 64, "is no time"),
            ("guard 30d", 64, "is no time"),
            ("confirm", 64, "no guard is in force"),
        ] {
            let output = host.run(&format!("pg-rollback {words}"));
            assert_eq!(output.status, status, "{words}: {output}");
            assert!(output.stderr.contains(says), "{words}: {output}");
        }
        for words in ["list", "config", "point", "guard 1h"] {
            let output = host.as_postgres(&format!("pg-rollback {words}"));
            assert_eq!(output.status, 77, "{words}: {output}");
        }
        // A copy that was tampered with is not believed.
        let good = points(&host, "good").remove(0);
        host.sh(&format!("echo x >> /var/lib/pg-recovery/points/{good}/0"));
        let output = host.run(&format!("pg-rollback config {good}"));
        assert!(output.status == 1 && output.stderr.contains("is damaged"), "{output}");
        assert_eq!(files(&host), changed);
        assert_ne!(changed, before);
    }
}
