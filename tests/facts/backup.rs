//! What there must be to restore from, and what a restore must give.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use age::secrecy::ExposeSecret;
use host::{Host, Signal, Status, Suite, Tally, facts_on_both_suites, faults};
use serde_json::Value;

const SOON: Duration = Duration::from_secs(60);
const TWO_MINUTES: Duration = Duration::from_secs(120);
const FOLDER: &str = "/var/backups/pg-recovery";
const CALM: &str = "[health]\npressure_warn = 100\nmemory_warn = 100\nmemory_fail = 100\n";

/// A base backup takes a minute.
const SLOW: &str = "[backup]\nmax_rate = \"512kB\"";

/// The backups of the main cluster, the oldest first.
fn backups(host: &Host) -> Vec<Value> {
    let list = host.json(&format!("pg-backup list --json --cluster {}", host.cluster()));
    list["clusters"][0]["backups"].as_array().expect("it is a list").clone()
}

fn folder(host: &Host) -> String {
    format!("{FOLDER}/{}-main", host.version())
}

#[track_caller]
fn wait_for_backup(host: &Host) {
    host.wait_until("there is a verified backup", TWO_MINUTES, || backups(host).iter().any(|b| b["good"] == true));
}

#[track_caller]
fn wait_for_stream(host: &Host) {
    let sql = "SELECT s.state, slot.active FROM pg_stat_replication s, pg_replication_slots slot
               WHERE s.application_name = 'pg_recovery_stream' AND slot.slot_name = 'pg_recovery'";
    host.wait_until("WAL is being received", SOON, || host.try_psql(sql).stdout.trim() == "streaming|t");
}

fn protected(suite: Suite) -> Host {
    let host = Host::boot_with_backups(suite);
    // A drill would wait for whatever else is at work on the computer that runs the tests.
    host.configure(CALM);
    wait_for_backup(&host);
    wait_for_stream(&host);
    host
}

/// A machine on which a person has made pgBackRest back up the main cluster, to a repository on the same machine.
fn beside_pgbackrest(suite: Suite) -> Host {
    let host = Host::boot_beside(suite, host::WITH_MORE);
    host.file("/etc/pgbackrest.conf").write(format!(
        "[global]\nrepo1-path=/var/lib/pgbackrest\nrepo1-retention-full=2\n[main]\npg1-path={}\n",
        host.data_directory()
    ));
    host.psql("ALTER SYSTEM SET archive_mode = on");
    host.psql("ALTER SYSTEM SET archive_command = 'pgbackrest --stanza=main archive-push %p'");
    host.sh(&format!("systemctl restart {}", host.unit()));
    host.wait_until_accepting(SOON);
    host.sh("runuser -u postgres -- pgbackrest --stanza=main stanza-create");
    host.configure(&format!("{CALM}[backup]\nengine = \"pgbackrest\"\n"));
    host.sh("systemctl unmask pg-backup.timer pg-wal-stream.service pg-restore-drill.timer");
    host.sh("systemctl start pg-wal-stream.service");
    host
}

/// Writes WAL that fills the rest of a segment; returns the path of what was received of it, and where in it it begins.
#[track_caller]
fn whole_segment(host: &Host) -> (String, usize) {
    // At the very beginning of a segment PostgreSQL 15 still names the one before it; a commit is written at once.
    host.psql("SELECT pg_logical_emit_message(true, 'test', 'x')");
    let place = host.psql("SELECT file_name, file_offset FROM pg_walfile_name_offset(pg_current_wal_lsn())");
    let (name, offset) = place.split_once('|').expect("two columns");
    host.psql("SELECT pg_logical_emit_message(false, 'test', repeat('x', 100000)); SELECT pg_switch_wal();");
    host.psql("SELECT pg_logical_emit_message(false, 'test', 'y')");
    let find = format!("find {}/wal -name {name}", folder(host));
    host.wait_until("the segment is received", SOON, || !host.sh(&find).is_empty());
    (host.sh(&find), offset.parse().expect("a number"))
}

fn flip(host: &Host, path: &str, at: usize) {
    let mut bytes = host.file(path).read_bytes();
    bytes[at] ^= 0x10;
    host.file(path).write(bytes);
}

/// A new key: what reads, and what encrypts.
fn key() -> (String, String) {
    let identity = age::x25519::Identity::generate();
    (identity.to_string().expose_secret().into(), identity.to_public().to_string())
}

/// Lets pg-backup read what is encrypted for this key.
fn give(host: &Host, identity: &str) {
    let path = "/etc/pg-recovery/credentials/backup-identity";
    host.file(path).write(format!("# a comment\n{identity}\n"));
    host.sh(&format!("chmod 600 {path}"));
}

/// Leaves `pg-backup now` running, and waits until it copies.
#[track_caller]
fn begin_backup(host: &Host, unit: &str) -> i32 {
    let pid = host.run_as_unit(unit, "postgres", "exec pg-backup now");
    host.wait_until("a base backup is being made", SOON, || {
        host.try_psql("SELECT 1 FROM pg_stat_replication WHERE state = 'backup'").stdout.trim() == "1"
    });
    pid
}

/// Leaves a restore running that stops itself when it makes this system call; its pid.
#[track_caller]
fn restore_until(host: &Host, unit: &str, call: &str) -> i32 {
    let trace = format!("strace -o /tmp/{unit}.trace -e trace={call} -e inject={call}:signal=STOP:when=1");
    let command = format!("{trace} pg-backup restore --to /srv/restored >/tmp/{unit} 2>&1; echo $? >>/tmp/{unit}");
    host.run_as_unit(unit, "postgres", &command);
    host.wait_until("the restore has stopped", SOON, || {
        host.run(&format!("grep --quiet 'stopped by SIGSTOP' /tmp/{unit}.trace")).success()
    });
    let group = format!("/sys/fs/cgroup/system.slice/{unit}.service/cgroup.procs");
    let find = format!("for pid in $(cat {group}); do grep -qx pg-backup /proc/$pid/comm && echo $pid; done; true");
    host.sh(&find).parse().expect("there is one")
}

/// A machine whose commits wait for the stream.
fn synchronous(suite: Suite) -> Host {
    let host = protected(suite);
    host.configure(&format!("{CALM}[backup]\nsynchronous_stream = true\n"));
    host.file(&format!("{}/conf.d/synchronous.conf", host.configuration_directory()))
        .write("synchronous_standby_names = 'pg_recovery_stream'\n");
    host.psql("SELECT pg_reload_conf()");
    wait_until_commits_wait(&host);
    host
}

#[track_caller]
fn wait_until_commits_wait(host: &Host) {
    let sql = "SELECT sync_state FROM pg_stat_replication WHERE application_name = 'pg_recovery_stream'";
    host.wait_until("commits wait for the stream", TWO_MINUTES, || host.try_psql(sql).stdout.trim() == "sync");
}

/// Destroys the data directory under load, after one command and with another, and restores it as `restore` says; how old
/// the acknowledged commits are that are missing then, in milliseconds before the last.
#[track_caller]
fn missing_after_the_disk_is_destroyed(host: &Host, (before, with): (&str, &str)) -> Vec<u64> {
    let ledger = host.ledger();
    ledger.wait_for_commits(200);
    let (postmaster, data) = (host.postmaster_pid(), host.data_directory());
    host.sh(&format!("{before}; kill -9 {postmaster} && {with} && rm -rf {data}"));
    let book = ledger.book();
    let said = host.sh(&format!("pg-backup restore --latest --to {}", host.data_directory()));
    let (_, in_place) = said.split_once("To put it in the place").expect("it says how");
    for command in in_place.lines().filter(|line| line.starts_with("  ")) {
        // A stop is canceled where pg-watchdog starts the server, now that there is one, at the same instant.
        host.wait_until(command, SOON, || host.run(command).success());
    }
    host.wait_until("the restored cluster is a primary", SOON, || {
        host.try_psql("SELECT pg_is_in_recovery()").stdout.trim() == "f"
    });
    let there: HashSet<u64> =
        host.psql("SELECT id FROM ledger").lines().map(|id| id.parse().expect("a number")).collect();
    let acked = || book.entries.iter().filter(|entry| entry.status == Status::Acked);
    let last = acked().map(|entry| entry.at_ms).max().expect("there were commits");
    acked().filter(|entry| !there.contains(&entry.id)).map(|entry| last - entry.at_ms).collect()
}

/// Drills, and returns its exit status and the verdict on the newest backup.
fn drill(host: &Host) -> (i32, Value) {
    // systemd refuses a sixth start within ten seconds.
    host.run("systemctl reset-failed pg-restore-drill.service");
    host.start_and_wait("pg-restore-drill.service");
    let status = host.property_of("pg-restore-drill.service", "ExecMainStatus").parse().expect("a number");
    assert!(!host.file(&format!("{}/drill", folder(host))).exists(), "what was restored is removed");
    (status, backups(host).pop().expect("there is one")["drilled"].clone())
}

/// What `pg-health-check` says under this name; nothing, where it says nothing.
fn check(host: &Host, name: &str) -> Option<(String, String)> {
    let checks = host.json("pg-health-check --json")["clusters"][0]["checks"].clone();
    let check = checks.as_array()?.iter().find(|check| check["name"] == name)?.clone();
    Some((check["status"].as_str()?.into(), check["message"].as_str()?.into()))
}

/// Starts the restored server the way `restore` says, and returns how to ask it.
#[track_caller]
fn start_restored(host: &Host, said: &str) -> impl Fn(&str) -> String {
    let start = said.lines().find(|line| line.starts_with("  runuser")).expect("it says how to start it");
    host.sh(&format!("systemd-run --quiet --collect --property=Type=forking {}", start.trim()));
    let ask = |sql: &str| format!("runuser -u postgres -- psql -XAtq -p 6432 -c \"{sql}\"");
    let ready = ask("SELECT pg_is_in_recovery()");
    host.wait_until("the restored server answers", SOON, || host.run(&ready).stdout.trim() == "f");
    move |sql| host.sh(&ask(sql))
}

/// What was committed before a moment, and that moment; more is committed after it.
fn a_moment_between_commits(host: &Host) -> (Tally, String) {
    let ledger = host.ledger();
    ledger.wait_for_commits(50);
    let before = ledger.stop_and_check();
    before.assert_nothing_lost();
    let moment = host.psql("SELECT clock_timestamp()");
    host.ledger().wait_for_commits(50);
    (before, moment)
}

facts_on_both_suites! {
    fn after_the_installation_there_is_a_verified_backup_and_wal_is_received(suite: Suite) {
        let host = Host::boot_plain(suite);
        let postmaster = host.postmaster_pid();
        let output = host.install_package();
        assert!(output.success(), "{output}");
        wait_for_backup(&host);
        wait_for_stream(&host);
        assert_eq!(host.postmaster_pid(), postmaster);
        assert_eq!(backups(&host).len(), 1);
        host.sh("systemctl start pg-backup.service");
        assert_eq!(backups(&host).len(), 1, "it is not time for another one");
        assert_eq!(host.sh("systemctl is-system-running"), "running");
        host.sh("apt-get --yes purge pg-recovery");
        assert_eq!(host.psql("SELECT count(*) FROM pg_replication_slots"), "0", "nothing is kept for nobody");
        assert_eq!(host.sh(&format!("ls {}/base | wc -l", folder(&host))), "1", "backups are never removed");
    }

    fn a_restore_to_a_moment_between_two_commits_has_exactly_the_commits_before_it(suite: Suite) {
        let host = protected(suite);
        let (before, moment) = a_moment_between_commits(&host);
        host.sh("install -d -o postgres /srv/restored; touch /srv/restored/mine");
        let refused = host.run("pg-backup restore --to /srv/restored");
        assert!(!refused.success() && refused.stderr.contains("it is not empty"), "{refused}");
        host.sh("rm /srv/restored/mine");
        let said = host.sh(&format!("pg-backup restore --time '{moment}' --to /srv/restored"));
        let ask = start_restored(&host, &said);
        assert_eq!(ask("SELECT count(*) FROM ledger"), before.acked.to_string());
    }

    fn a_destroyed_data_directory_is_restored_with_at_most_a_second_missing(suite: Suite) {
        let host = protected(suite);
        let missing = missing_after_the_disk_is_destroyed(&host, ("true", "true"));
        assert!(missing.iter().all(|age| *age <= 1000), "missing, by milliseconds before the last: {missing:?}");
        wait_for_stream(&host);
        // Not while a recovery is at work.
        host.wait_until("it is backed up anew", TWO_MINUTES, || {
            host.run("systemctl reset-failed pg-backup.service; systemctl start pg-backup.service");
            let newest = backups(&host).pop().expect("there is one");
            newest["timeline"] == 2 && newest["good"] == true
        });
    }

    fn with_a_synchronous_stream_not_one_commit_is_lost_with_the_disk(suite: Suite) {
        let host = synchronous(suite);
        // Nothing comes through for as long as a commit that does not wait for it needs, nor ever will.
        let cut = ("pkill --signal STOP --exact pg_receivewal; sleep 1", "pkill --signal KILL --exact pg_receivewal");
        let missing = missing_after_the_disk_is_destroyed(&host, cut);
        assert!(missing.is_empty(), "missing, by milliseconds before the last: {missing:?}");
        // The restored cluster has the same postgresql.conf, and waits for a stream that begins anew.
        host.ledger().wait_for_commits_within(20, TWO_MINUTES);
    }

    fn a_synchronous_stream_that_does_not_confirm_lets_commits_go(suite: Suite) {
        let host = synchronous(suite);
        let ledger = host.ledger();
        ledger.wait_for_commits(20);
        host.sh("pkill --signal STOP --exact pg_receivewal");
        host.wait_for_journal("pg-backup", "the stream has confirmed nothing for 10s", SOON);
        ledger.wait_for_commits(20);
        host.sh("pkill --signal CONT --exact pg_receivewal");
        let tally = ledger.stop_and_check();
        tally.assert_nothing_lost();
        assert!(tally.longest_gap() < Duration::from_secs(40), "{:?}", tally.longest_gap());
        // A new one has nothing to make good.
        host.sh("systemctl stop pg-wal-stream.service");
        assert_eq!(host.psql("SHOW synchronous_standby_names"), "", "whoever stops it holds up nobody");
        host.psql("CREATE TABLE one ()");
        host.sh("systemctl start pg-wal-stream.service");
        wait_until_commits_wait(&host);
        host.wait_for_journal("pg-backup", "wait for the stream again", SOON);
        // However it ends, and whether or not it can begin again.
        host.file("/etc/pg-recovery/config.toml").write("[backup]\nkeep = \"many\"\n");
        host.sh("systemctl kill --signal=KILL pg-wal-stream.service");
        host.wait_until("commits are let go", SOON, || host.psql("SHOW synchronous_standby_names").is_empty());
        host.psql("CREATE TABLE two ()");
        assert_eq!(host.sh("pgrep --exact --count pg_receivewal || true"), "0");
    }

    fn a_flipped_byte_of_a_backup_and_a_missing_segment_are_found(suite: Suite) {
        let host = protected(suite);
        let (segment, _) = whole_segment(&host);
        whole_segment(&host);
        host.sh("pg-backup verify");
        let base = host.sh(&format!("ls {}/base/*/base.tar.zst", folder(&host)));
        let middle = host.file(&base).read_bytes().len() / 2;
        flip(&host, &base, middle);
        let output = host.run("pg-backup verify");
        assert!(output.status == 1 && output.stderr.contains("is not good: base.tar.zst: "), "{output}");
        assert_eq!(backups(&host)[0]["good"], false);
        flip(&host, &base, middle);
        host.sh(&format!("pg-backup verify; mv {segment} /tmp"));
        let output = host.run("pg-backup verify");
        assert!(output.status == 1 && output.stderr.contains("is missing"), "{output}");
        assert_eq!(backups(&host)[0]["wal_gap"], true);
        host.sh("systemctl start pg-backup.service");
        let backups = backups(&host);
        assert_eq!((backups.len(), &backups[1]["good"]), (2, &Value::Bool(true)), "a new one makes up for it");
    }

    fn a_drill_proves_a_good_backup_and_finds_a_flipped_byte_of_wal(suite: Suite) {
        let host = protected(suite);
        host.sh("systemctl start pg-health-check.service");
        let (segment, offset) = whole_segment(&host);
        // As an interrupted one leaves it.
        host.sh(&format!("install -D -o postgres /dev/null {}/drill/data/PG_VERSION", folder(&host)));
        host.sh(&format!("chown -R postgres: {}/drill; systemctl start pg-restore-drill.service", folder(&host)));
        let drilled = backups(&host)[0]["drilled"].clone();
        assert!(drilled["good"] == true && drilled["seconds"].as_f64() > Some(0.0), "{drilled}");
        let leaves_nothing = || {
            assert!(!host.file(&format!("{}/drill", folder(&host))).exists());
            assert_eq!(host.sh(&format!("pgrep --full --count -- '{FOLDER}.*/dril[l]' || true")), "0");
        };
        leaves_nothing();
        assert!(host.is_accepting());
        flip(&host, &segment, offset + 20_000);
        assert!(!host.start_and_wait("pg-restore-drill.service").success());
        let drilled = backups(&host)[0]["drilled"].clone();
        let why = drilled["error"].as_str().unwrap_or_default();
        assert!(drilled["good"] == false && why.contains("WAL could be replayed to"), "{drilled}");
        leaves_nothing();
    }

    fn an_encrypted_backup_and_its_wal_are_read_with_the_key_only_and_restored_whatever_is_configured_now(suite: Suite) {
        let host = Host::boot(suite);
        let ((identity, recipient), (other, _)) = (key(), key());
        let give = |identity: &str| give(&host, identity);
        let encrypt = || host.configure(&format!("{CALM}[backup]\nrecipients = [\"{recipient}\"]\n"));
        encrypt();
        host.sh("systemctl unmask pg-backup.timer pg-wal-stream.service pg-restore-drill.timer");
        assert!(!host.start_and_wait("pg-backup.service").success());
        host.wait_for_journal("pg-backup", "there is no credential backup-identity", SOON);
        give(&other);
        let refused = host.run("pg-backup now");
        assert!(refused.status == 78 && refused.stderr.contains("no identity here is of one of them"), "{refused}");
        assert!(backups(&host).is_empty(), "none is made in the clear");
        give(&identity);
        host.sh("systemctl start pg-wal-stream.service");
        wait_for_stream(&host);
        host.sh("systemctl start pg-backup.service");
        let first = backups(&host).pop().expect("there is one");
        assert!(first["encrypted"] == true && first["good"] == true, "{first}");
        let (before, moment) = a_moment_between_commits(&host);
        host.psql("CREATE TABLE kept AS SELECT 'in the ' || 'clear' AS word");
        host.psql("SELECT pg_switch_wal()");
        host.psql("SELECT pg_logical_emit_message(true, 'test', 'y')");
        let find = format!("find {FOLDER} -type f ! -name '*.partial' ! -name '*.json' ! -name '*lock' ! -name reading");
        let plain = format!("{find} ! -name '*.age' ! -name backup_manifest");
        host.wait_until("all that is whole is encrypted", SOON, || {
            host.sh(&plain).is_empty() && host.sh(&format!("{find} -path '*/wal/*'")).ends_with(".age")
        });
        assert_eq!(host.sh(&format!("grep --recursive --files-with-matches 'in the clear' {FOLDER} || true")), "");
        let (status, drilled) = drill(&host);
        assert!(status == 0 && drilled["good"] == true, "{drilled}");
        let segment = host.sh(&format!("ls {}/wal/*/*.age | tail -n 1", folder(&host)));
        flip(&host, &segment, 5000);
        let output = host.run("pg-backup verify");
        assert!(output.status == 1 && output.stderr.contains("is not good: WAL cannot be read"), "{output}");
        flip(&host, &segment, 5000);
        host.sh("pg-backup verify");
        // What cannot be read for want of the key is no worse for it.
        give(&other);
        for command in ["verify", "drill", "restore --to /var/lib/postgresql/restored"] {
            let refused = host.run(&format!("pg-backup {command}"));
            assert!(refused.status == 78 && refused.stderr.contains("for other identities than are here"), "{refused}");
        }
        assert!(!host.file("/var/lib/postgresql/restored").exists());
        assert_eq!(backups(&host)[0]["good"], true);
        give(&identity);
        host.configure(CALM);
        host.sh("pg-backup now");
        let second = backups(&host).pop().expect("there is one");
        assert!(second["encrypted"] == false && second["good"] == true, "{second}");
        let id = first["id"].as_str().expect("it has one");
        let said = host.sh(&format!("pg-backup restore --backup {id} --time '{moment}' --to /var/lib/postgresql/restored"));
        let ask = start_restored(&host, &said);
        assert_eq!(ask("SELECT count(*) FROM ledger"), before.acked.to_string());
        let pg_ctl = host.main_cluster().program("pg_ctl");
        host.sh(&format!("runuser -u postgres -- {pg_ctl} stop --pgdata=/var/lib/postgresql/restored"));
        // And the other way round: one in the clear, and WAL behind it that is encrypted.
        encrypt();
        let later = || host.sh(&format!("find {}/wal -name '*.age' | wc -l", folder(&host))).parse::<u32>().expect("a number");
        let so_far = later();
        host.psql("CREATE TABLE later AS SELECT generate_series(1, 10) AS id");
        host.psql("SELECT pg_switch_wal()");
        host.psql("SELECT pg_logical_emit_message(true, 'test', 'y')");
        host.wait_until("its WAL is encrypted", SOON, || later() > so_far);
        host.sh("pg-backup verify");
        let (status, drilled) = drill(&host);
        assert!(status == 0 && drilled["good"] == true, "{drilled}");
        let said = host.sh("pg-backup restore --to /var/lib/postgresql/again");
        assert!(said.contains(second["id"].as_str().expect("it has one")), "{said}");
        assert_eq!(start_restored(&host, &said)("SELECT count(*) FROM later"), "10");
    }

    fn incremental_backups_stand_upon_a_full_one_and_are_restored_proven_and_kept_with_it(suite: Suite) {
        if suite == Suite::Bookworm {
            host::skip!("PostgreSQL 15 makes full backups only");
        }
        let host = protected(suite);
        host.sh("systemctl stop pg-backup.timer; install -d -o postgres /srv/space");
        host.psql("CREATE TABLESPACE space LOCATION '/srv/space'");
        host.psql("CREATE TABLE kept TABLESPACE space AS SELECT generate_series(1, 100000) AS id");
        host.sh("pg-backup now");
        let newest = || backups(&host).pop().expect("there is one");
        let id = |backup: &Value| backup["id"].as_str().expect("it has one").to_string();
        assert_eq!(newest()["kind"], "full", "the server does not summarize its WAL");
        host.psql("ALTER SYSTEM SET summarize_wal = on");
        host.psql("SELECT pg_reload_conf()");
        host.sh("pg-backup now --full");
        let full = newest();
        host.psql("DELETE FROM kept WHERE id <= 100");
        host.sh("pg-backup now");
        let first = newest();
        assert!(first["good"] == true && first["parent"] == full["id"], "{first}");
        let folder_of = |backup: &Value| format!("{}/base/{}", folder(&host), id(backup));
        let size = |backup: &Value| host.file(&format!("{}/base.tar.zst", folder_of(backup))).read_bytes().len();
        assert!(size(&first) < size(&full) / 3, "{} and {}", size(&first), size(&full));
        let (before, moment) = a_moment_between_commits(&host);
        let (identity, recipient) = key();
        give(&host, &identity);
        host.configure(&format!("{CALM}[backup]\nrecipients = [\"{recipient}\"]\n"));
        host.psql("DELETE FROM kept WHERE id <= 200");
        host.sh("pg-backup now");
        let second = newest();
        assert!(second["parent"] == first["id"] && second["encrypted"] == true, "{second}");
        let (status, drilled) = drill(&host);
        assert!(status == 0 && drilled["good"] == true, "{drilled}");
        let said = host.sh(&format!("pg-backup restore --time '{moment}' --to /var/lib/postgresql/restored"));
        assert!(said.contains(&format!("backup {} with {} of", id(&full), id(&first))), "{said}");
        let ask = start_restored(&host, &said);
        assert_eq!(ask("SELECT count(*) FROM ledger"), before.acked.to_string());
        assert_eq!(ask("SELECT count(*) FROM kept"), "99900");
        assert_eq!(host.sh("ls -A /var/lib/postgresql/restored | grep -c parts || true"), "0");
        // The full one is old enough to go, and stays.
        host.configure(&format!("{CALM}[backup]\nbudget = \"1MB\"\nkeep_min = 1\n"));
        host.sh("pg-backup expire");
        assert_eq!(backups(&host).iter().map(id).collect::<Vec<_>>(), [id(&full), id(&first), id(&second)]);
        host.configure(CALM);
        // What is wrong with the full one is wrong with those that stand upon it.
        let base = format!("{}/base.tar.zst", folder_of(&full));
        let middle = host.file(&base).read_bytes().len() / 2;
        flip(&host, &base, middle);
        let output = host.run(&format!("pg-backup verify --backup {}", id(&second)));
        let says = format!("it stands upon backup {}: base.tar.zst", id(&full));
        assert!(output.status == 1 && output.stderr.contains(&says), "{output}");
        flip(&host, &base, middle);
        host.sh("pg-backup verify");
        host.sh(&format!("mv {} /tmp/full", folder_of(&full)));
        assert!(backups(&host).iter().all(|backup| backup["good"] == false));
        let output = host.run(&format!("pg-backup restore --backup {} --to /var/lib/postgresql/other", id(&second)));
        assert!(output.status == 1 && output.stderr.contains(&format!("stands upon backup {}, which is not there", id(&full))), "{output}");
        host.sh(&format!("mv /tmp/full {}", folder_of(&full)));
        assert!(backups(&host).iter().all(|backup| backup["good"] == true));
        // The server does not know any more what has changed.
        host.psql("CHECKPOINT");
        let start = second["start_lsn"].as_str().expect("it has one");
        let summaries = format!("SELECT count(*) > 0 FROM pg_available_wal_summaries() WHERE start_lsn >= '{start}'");
        host.wait_until("WAL since the last backup is summarized", SOON, || host.psql(&summaries) == "t");
        host.sh(&format!("rm {}/pg_wal/summaries/*", host.data_directory()));
        let output = host.run("pg-backup now");
        assert!(output.success() && output.stderr.contains("a full backup is made instead"), "{output}");
        assert_eq!(newest()["kind"], "full");
        // So little too much that the full one alone would be enough.
        let bytes: u64 = backups(&host).iter().filter_map(|backup| backup["bytes"].as_u64()).sum();
        let wal: u64 = host.sh(&format!("find {}/wal -name '0*' | wc -l", folder(&host))).parse().expect("a number");
        let budget = bytes + wal * (16 << 20) - 1_000_000;
        host.configure(&format!("{CALM}[backup]\nbudget = \"{budget}B\"\nkeep_min = 1\n"));
        host.sh("pg-backup expire");
        assert_eq!(backups(&host).iter().map(id).collect::<Vec<_>>(), [id(&newest())], "all of a chain goes at once");
        // A promotion begins another history.
        host.configure(CALM);
        host.sh(&format!("touch {}/standby.signal; systemctl restart {}", host.data_directory(), host.unit()));
        host.wait_until_accepting(SOON);
        assert_eq!(host.psql("SELECT pg_promote()"), "t");
        let output = host.run("pg-backup now");
        assert!(output.success() && output.stderr.contains("timeline"), "{output}");
        assert!(newest()["kind"] == "full" && newest()["good"] == true, "{}", newest());
    }

    fn a_backup_holds_up_neither_a_restart_nor_a_recovery_and_leaves_nothing_when_it_fails(suite: Suite) {
        let host = protected(suite);
        host.configure(SLOW);
        let failed = |unit: &str| {
            host.wait_until("the backup has given up", SOON, || host.state_of(unit) != "active");
            assert_eq!(host.sh(&format!("ls {}/base | wc -l", folder(&host))), "1", "what was begun is removed");
        };
        begin_backup(&host, "first");
        assert_eq!(host.run("pg-backup now").status, 75, "two at a time");
        let began = Instant::now();
        host.sh(&format!("systemctl restart {}", host.unit()));
        assert!(began.elapsed() < Duration::from_secs(30), "{:?}", began.elapsed());
        host.wait_until_accepting(SOON);
        failed("first");
        begin_backup(&host, "second");
        host.signal(host.postmaster_pid(), Signal::SIGKILL);
        host.wait_for_journal("pg-watchdog", "accepts connections again", SOON);
        failed("second");
        wait_for_stream(&host);
        host.sh("pg-backup verify");
    }

    fn the_slot_never_keeps_more_than_its_bound_and_a_gap_calls_for_a_new_backup(suite: Suite) {
        let host = protected(suite);
        host.configure("[backup]\nslot_max = \"64MB\"");
        host.sh("pkill --signal STOP --exact pg_receivewal");
        host.psql("SELECT count(pg_logical_emit_message(false, 'test', repeat('x', 1000000))) FROM generate_series(1, 100)");
        host.wait_for_journal("pg-backup", "the slot pg_recovery of cluster", SOON);
        host.wait_until("its WAL is gone", SOON, || {
            host.psql("SELECT count(*) FROM pg_replication_slots WHERE pg_current_wal_lsn() - restart_lsn > 67108864") == "0"
        });
        wait_for_stream(&host);
        host.sh("systemctl stop pg-wal-stream.service");
        assert_eq!(host.psql("SELECT count(*) FROM pg_replication_slots"), "0", "nobody would watch over it");
        host.psql("SELECT pg_logical_emit_message(false, 'test', 'x'); SELECT pg_switch_wal();");
        host.psql("CHECKPOINT");
        host.sh("systemctl start pg-wal-stream.service");
        host.wait_for_journal("pg-backup", "is missing from", SOON);
        wait_for_stream(&host);
        host.sh("systemctl start pg-backup.service");
        let backups = backups(&host);
        let newest = backups.last().expect("there are backups");
        assert!(backups.len() == 2 && newest["good"] == true && newest["wal_gap"] == false, "{backups:?}");
    }

    fn a_full_volume_refuses_a_backup_and_the_old_one_stays(host: Host) {
        host.attach_disk(FOLDER, 120);
        host.sh(&format!("chown postgres: {FOLDER}; chmod 700 {FOLDER}; pg-backup now"));
        host.sh(&format!("fallocate --length $(($(df --output=avail -B1 {FOLDER} | tail -1) - 15000000)) {FOLDER}/full"));
        let output = host.run("pg-backup now");
        assert!(output.status == 1 && output.stderr.contains("cannot back up cluster"), "{output}");
        host.sh("pg-backup verify");
        assert_eq!(host.sh(&format!("ls {}/base | wc -l", folder(&host))), "1");
    }

    fn of_two_restores_into_one_empty_directory_one_goes_on_and_is_whole(suite: Suite) {
        let host = protected(suite);
        host.psql("CREATE TABLE kept AS SELECT generate_series(1, 1000) AS id");
        host.sh("install -d -o postgres -m 700 /srv/restored");
        // Both have found the directory empty; one has made it its own.
        let late = restore_until(&host, "late", "mkdir,mkdirat");
        let first = restore_until(&host, "first", "syncfs");
        let goes_on = |pid: i32, unit: &str| {
            host.signal(pid, Signal::SIGCONT);
            host.wait_until("the restore has ended", SOON, || !host.is_alive(pid));
            host.wait_until("its status is known", SOON, || host.sh(&format!("tail -n 1 /tmp/{unit}")).len() == 1);
            host.sh(&format!("cat /tmp/{unit}"))
        };
        assert!(host.file("/srv/restored/recovery.signal").exists());
        let said = goes_on(late, "late");
        assert!(said.contains("another restore writes into it") && said.ends_with("\n1"), "{said}");
        let third = host.run("pg-backup restore --to /srv/restored");
        assert!(!third.success() && third.stderr.contains("it is not empty"), "{third}");
        let said = goes_on(first, "first");
        assert!(said.ends_with("\n0"), "{said}");
        let ask = start_restored(&host, &said);
        assert_eq!(ask("SELECT count(*) FROM kept"), "1000");
    }

    fn a_restore_works_from_a_volume_that_went_read_only(suite: Suite) {
        let host = Host::boot(suite);
        let _disk = host.attach_disk(FOLDER, 300);
        host.sh(&format!("chown postgres: {FOLDER}; chmod 700 {FOLDER}"));
        host.sh("systemctl unmask pg-wal-stream.service; systemctl start pg-wal-stream.service");
        host.psql("CREATE TABLE kept AS SELECT generate_series(1, 1000) AS id");
        host.sh("pg-backup now");
        wait_for_stream(&host);
        host.sh(&format!("systemctl stop pg-wal-stream.service; mount -o remount,ro {FOLDER}"));
        let output = host.run("pg-backup now");
        assert!(output.status == 1 && output.stderr.contains("Read-only file system"), "{output}");
        let said = host.sh("pg-backup restore --to /var/lib/postgresql/restored");
        let ask = start_restored(&host, &said);
        assert_eq!(ask("SELECT count(*) FROM kept"), "1000");
        host.sh(&format!("mount -o remount,rw {FOLDER}; pg-backup verify"));
        assert!(host.is_accepting());
    }

    fn the_age_of_the_last_good_backup_is_an_alarm_of_two_levels_that_starts_no_recovery(suite: Suite) {
        let host = protected(suite);
        let levels = |warn: &str, fail: &str| {
            host.configure(&format!("{CALM}backup_warn = \"{warn}\"\nbackup_fail = \"{fail}\"\n"));
            check(&host, "backup").unwrap_or_else(|| panic!("no check"))
        };
        assert_eq!(levels("26h", "50h").0, "ok");
        host.wait_until("it is two seconds old", SOON, || levels("2s", "50h").0 == "warning");
        let (status, message) = levels("1s", "2s");
        assert!(status == "critical" && message.contains("the last good backup"), "{message}");
        host.sh("systemctl start pg-health-check.service || true");
        let counted = host.json("pg-health-check --json")["clusters"][0].clone();
        assert!(counted["status"] == "critical" && counted["failures"] == 0, "{counted}");
        assert_eq!(host.state_of("pg-recovery.service"), "inactive");
        // One that is not good does not count.
        host.sh("systemctl stop pg-backup.timer");
        let base = host.sh(&format!("ls {}/base/*/base.tar.zst", folder(&host)));
        let middle = host.file(&base).read_bytes().len() / 2;
        flip(&host, &base, middle);
        host.run("pg-backup verify");
        let (status, message) = levels("26h", "50h");
        assert!(status == "ok" && message.contains("there is no good backup"), "it has its time: {message}");
        host.wait_until("and then no more", SOON, || levels("1s", "50h").0 == "warning");
        // Stopped is not switched off.
        assert!(check(&host, "backup").is_some());
        for (off, on) in [("disable", "enable"), ("mask", "unmask")] {
            host.sh(&format!("systemctl {off} pg-backup.timer"));
            assert_eq!(check(&host, "backup"), None, "{off}");
            host.sh(&format!("systemctl {on} pg-backup.timer"));
            assert!(check(&host, "backup").is_some(), "{on}");
        }
        host.sh("systemctl stop pg-backup.timer pg-wal-stream.service");
        faults::s6_dead_volume::inject(&host, FOLDER);
        let (status, message) = check(&host, "backup").expect("a check");
        assert!(status == "unknown" && message.contains("gave no answer"), "{message}");
        assert_eq!(check(&host, "write").expect("a check").0, "ok", "it holds up nothing else");
        host.sh("systemctl stop dead-volume.service");
    }

    fn a_stream_that_stands_still_is_an_alarm_and_one_that_is_behind_is_none(suite: Suite) {
        let host = protected(suite);
        let levels = |warn: &str, fail: &str| {
            host.configure(&format!("{CALM}stream_warn = \"{warn}\"\nstream_fail = \"{fail}\"\n"));
        };
        levels("1s", "1h");
        let is = |status: &str, says: &str| {
            host.wait_until(&format!("{status}: {says}"), SOON, || {
                host.sh("systemctl reset-failed pg-health-check.service; systemctl start pg-health-check.service || true");
                check(&host, "wal_stream").is_some_and(|(is, said)| is == status && said.contains(says))
            });
        };
        is("ok", "received as it is written");
        host.sh("pkill --signal STOP --exact pg_receivewal");
        is("warning", "but nothing new");
        levels("1s", "2s");
        is("critical", "but nothing new");
        assert_eq!(host.state_of("pg-recovery.service"), "inactive");
        host.sh("pkill --signal CONT --exact pg_receivewal");
        is("ok", "received as it is written");
        host.sh("systemctl stop pg-wal-stream.service");
        is("critical", "no WAL has been received");
        host.sh("systemctl disable pg-wal-stream.service");
        assert_eq!(check(&host, "wal_stream"), None);
        host.sh("systemctl enable --now pg-wal-stream.service");
        is("ok", "received as it is written");
    }

    fn what_the_configuration_asks_of_a_restored_cluster_must_be_true(suite: Suite) {
        let host = protected(suite);
        host.psql("CREATE TABLE orders AS SELECT generate_series(1, 1000) AS id");
        host.psql("CREATE DATABASE app");
        host.sh("pg-backup now");
        let ask = |queries: &str| host.configure(&format!("{CALM}[backup]\ndrill_queries = [{queries}]\n"));
        let said = || host.journal_of("pg-backup").to_string();
        ask("{ query = \"SELECT count(*) = 1000 FROM orders\" }, { database = \"app\", query = \"SELECT true\" }");
        let (status, verdict) = drill(&host);
        assert!(status == 0 && verdict["good"] == true, "{verdict}");
        // True of the cluster, and not of what was restored: it is a guest that takes no clients by TCP.
        ask("{ query = \"SELECT current_setting('listen_addresses') <> ''\" }");
        let (status, verdict) = drill(&host);
        let why = verdict["error"].as_str().unwrap_or_default().to_string();
        assert!(status == 1 && why.contains("the query \"SELECT current_setting('listen_addresses')") && why.contains("\"f\""), "{verdict}");
        // One that is wrong itself says nothing about the backup.
        let (status, again) = {
            ask("{ query = \"SELECT count(*) > 0 FROM ordres\" }");
            drill(&host)
        };
        assert!(status == 1 && again == verdict, "{again}");
        assert!(said().contains("ordres") && said().contains("it is to be corrected"), "{}", said());
        // Nor may it change anything.
        ask("{ query = \"WITH gone AS (DELETE FROM orders RETURNING 1) SELECT count(*) > 0 FROM gone\" }");
        assert_eq!(drill(&host).0, 1);
        assert_eq!(host.psql("SELECT count(*) FROM orders"), "1000");
        assert!(said().contains("read-only transaction"), "{}", said());
    }

    fn a_drill_lets_a_busy_host_go_first(suite: Suite) {
        let host = protected(suite);
        for (property, value) in [("Nice", "19"), ("IOSchedulingClass", "3"), ("MemoryMax", "1073741824")] {
            assert_eq!(host.property_of("pg-restore-drill.service", property), value, "{property}");
        }
        // Whatever else this computer has to do, the host sees what is written here. A sandbox has a /proc of its own.
        let pressure = |io: &str| {
            let line = |share: &str| format!("some avg10={share} avg60=0.00 avg300=0.00 total=1\\n");
            for (kind, share) in [("cpu", "0.00"), ("memory", "0.00"), ("io", io)] {
                host.sh(&format!("printf '{}' >/tmp/{kind}", line(share)));
            }
        };
        pressure("90.00");
        host.sh("chmod 644 /tmp/cpu /tmp/memory /tmp/io; for k in cpu memory io; do mount --bind /tmp/$k /proc/pressure/$k; done");
        host.configure("[health]\npressure_warn = 60\n");
        host.run_as_unit("by-hand", "postgres", "exec pg-backup drill");
        host.wait_for_journal("pg-backup", "lets others go first: tasks wait for io", SOON);
        assert!(!host.file(&format!("{}/drill", folder(&host))).exists(), "nothing is restored meanwhile");
        assert_eq!((host.state_of("by-hand.service").as_str(), backups(&host)[0]["drilled"].is_null()), ("active", true));
        pressure("10.00");
        host.wait_until("it is drilled", TWO_MINUTES, || backups(&host)[0]["drilled"]["good"] == true);
    }

    fn the_verdict_of_a_drill_is_about_the_backup_and_nothing_else(suite: Suite) {
        let host = protected(suite);
        host.sh("systemctl stop pg-backup.timer");
        let (segment, _) = whole_segment(&host);
        whole_segment(&host);
        let bad = |what: &str, says: &str| {
            let (status, verdict) = drill(&host);
            let why = verdict["error"].as_str().unwrap_or_default();
            assert!(status == 1 && verdict["good"] == false && why.contains(says), "{what}: {verdict}");
        };
        let good = |what: &str| {
            let (status, verdict) = drill(&host);
            assert!(status == 0 && verdict["good"] == true, "{what}: {verdict}");
        };
        good("as it is");
        host.sh(&format!("mv {segment} /tmp/segment"));
        bad("without a segment", "WAL could be replayed to");
        host.sh(&format!("mv /tmp/segment {segment}"));
        good("with it again");
        let base = host.sh(&format!("ls {}/base/*/base.tar.zst", folder(&host)));
        let middle = host.file(&base).read_bytes().len() / 2;
        flip(&host, &base, middle);
        bad("a flipped byte of the base backup", "base.tar.zst");
        flip(&host, &base, middle);
        good("flipped back");
        // What follows is no fault of the backup, and no verdict on it.
        let no_verdict = |says: &str| {
            let before = backups(&host)[0]["drilled"].clone();
            let (status, verdict) = drill(&host);
            assert!(status == 1 && verdict == before, "{verdict}");
            assert!(host.journal_of("pg-backup").contains(says), "{}", host.journal_of("pg-backup"));
        };
        let info = host.sh(&format!("ls {}/base/*/backup.json", folder(&host)));
        let version = |from: &str, to: &str| host.sh(&format!("sed -i 's/\"version\": {from}/\"version\": {to}/' {info}"));
        version(host.version(), "14");
        no_verdict("it is of PostgreSQL 14");
        version("14", host.version());
        // A volume that is too small for it.
        host.sh("systemctl stop pg-wal-stream.service");
        host.sh(&format!("mv {FOLDER} {FOLDER}.moved; mkdir {FOLDER}"));
        host.attach_disk(FOLDER, 160);
        host.sh(&format!("chown postgres: {FOLDER}; chmod 700 {FOLDER}; cp -a {FOLDER}.moved/. {FOLDER}"));
        host.sh(&format!("fallocate --length $(($(df --output=avail -B1 {FOLDER} | tail -1) - 20000000)) {FOLDER}/full"));
        no_verdict("cannot restore backup");
    }

    fn with_pgbackrest_the_same_verbs_drive_it_and_a_drill_proves_what_it_has(suite: Suite) {
        let host = beside_pgbackrest(suite);
        host.sh("systemctl start pg-backup.service");
        let first = backups(&host).pop().expect("there is one");
        let label = first["pgbackrest"]["label"].as_str().expect("it is pgBackRest's").to_string();
        assert!(first["good"] == true && host.sh("pgbackrest info").contains(&label), "{first}");
        host.sh("systemctl start pg-backup.service");
        assert_eq!(backups(&host).len(), 1, "it is not time for another one");
        // There is no stream, and nothing is said of one.
        host.wait_for_journal("pg-backup", "it is archived for pgBackRest", SOON);
        assert_eq!(host.psql("SELECT count(*) FROM pg_replication_slots"), "0");
        assert_eq!(check(&host, "wal_stream"), None);
        assert_eq!(check(&host, "backup").expect("a check").0, "ok");
        let (before, moment) = a_moment_between_commits(&host);
        // Whoever has a backup made: it is known here.
        host.sh("runuser -u postgres -- pgbackrest --stanza=main --start-fast backup");
        assert_eq!(backups(&host).len(), 2);
        let (status, drilled) = drill(&host);
        assert!(status == 0 && drilled["good"] == true && drilled["seconds"].as_f64() > Some(0.0), "{drilled}");
        let said = host.sh(&format!("pg-backup restore --time '{moment}' --to /var/lib/postgresql/restored"));
        let ask = start_restored(&host, &said);
        assert_eq!(ask("SELECT count(*) FROM ledger"), before.acked.to_string());
        host.sh("pg-backup verify");
        // A repository that is not there says nothing about what is in it.
        let verdicts = || -> Vec<Value> {
            let known = backups(&host);
            known.iter().flat_map(|backup| ["id", "good", "verified", "drilled"].map(|key| backup[key].clone())).collect()
        };
        let before_that = verdicts();
        host.sh("mv /var/lib/pgbackrest /var/lib/pgbackrest.away");
        for verb in ["verify", "drill"] {
            let output = host.run(&format!("pg-backup {verb}"));
            assert!(output.status == 1 && output.stderr.contains("could not read repository 1"), "{verb}: {output}");
        }
        assert_eq!(verdicts(), before_that);
        host.sh("rm -rf /var/lib/pgbackrest; mv /var/lib/pgbackrest.away /var/lib/pgbackrest");
        let verify_fails = |says: &str| {
            let output = host.run("pg-backup verify");
            assert!(output.status == 1 && output.stderr.contains(says), "{output}");
        };
        let kept = |path: &str| host.sh(&format!("cp -a {path} /tmp/kept"));
        let back = |path: &str| host.sh(&format!("cp -a /tmp/kept {path}"));
        host.sh("for _ in 1 2; do runuser -u postgres -- pgbackrest --stanza=main check; done");
        // A segment behind both; pgBackRest itself takes a missing one for none.
        let segment = host.sh("find /var/lib/pgbackrest/archive -name '0*-*' | sort | tail -n 2 | head -n 1");
        kept(&segment);
        host.sh(&format!("rm {segment}"));
        verify_fails("is missing in the archive");
        let (status, drilled) = drill(&host);
        let why = drilled["error"].as_str().unwrap_or_default();
        assert!(status == 1 && why.contains("WAL could be replayed to"), "{drilled}");
        back(&segment);
        let file = host.sh("find /var/lib/pgbackrest/backup/main/*F/pg_data/base -size +50k -name '*.gz' | sort | head -n 1");
        kept(&file);
        flip(&host, &file, 1000);
        verify_fails("is not good: pgbackrest verify says: backup: ");
        let (status, drilled) = drill(&host);
        assert!(status == 1 && drilled["good"] == false, "{drilled}");
        back(&file);
        host.sh("pg-backup verify");
        assert_eq!(drill(&host).0, 0);
        // What it keeps is its own affair.
        host.sh("runuser -u postgres -- pgbackrest --stanza=main --type=full --start-fast backup; pg-backup expire --plan");
        assert_eq!(backups(&host).len(), 3);
        host.sh("sed -i s/retention-full=2/retention-full=1/ /etc/pgbackrest.conf; pg-backup expire");
        let left = backups(&host);
        assert!(left.len() == 1 && left[0]["pgbackrest"]["label"] != label.as_str(), "{left:?}");
    }

    fn a_backup_that_is_killed_or_runs_out_of_room_leaves_the_next_one_a_clean_place(suite: Suite) {
        let host = protected(suite);
        host.sh("systemctl stop pg-backup.timer");
        host.configure(SLOW);
        let whole = || host.sh(&format!("ls {}/base | grep -c 'Z$'", folder(&host)));
        let pid = begin_backup(&host, "killed");
        host.signal(pid, Signal::SIGKILL);
        host.wait_until("pg_basebackup has gone with it", SOON, || !host.run("pgrep --exact pg_basebackup").success());
        assert_eq!(whole(), "1");
        host.configure(CALM);
        host.sh("pg-backup now");
        assert_eq!((whole().as_str(), host.sh(&format!("ls {}/base | wc -l", folder(&host))).as_str()), ("2", "2"));
        // Somebody else fills the volume while it is being made.
        host.sh("systemctl stop pg-wal-stream.service");
        host.sh(&format!("mv {FOLDER} {FOLDER}.moved; mkdir {FOLDER}"));
        host.attach_disk(FOLDER, 300);
        host.sh(&format!("chown postgres: {FOLDER}; chmod 700 {FOLDER}; cp -a {FOLDER}.moved/. {FOLDER}"));
        host.configure(SLOW);
        begin_backup(&host, "crowded");
        host.sh(&format!("fallocate --length $(($(df --output=avail -B1 {FOLDER} | tail -1) - 4000000)) {FOLDER}/full"));
        // Whichever meets the end first, this program or the copy that it looks after.
        host.wait_for_journal("pg-backup", "could not back up cluster", SOON);
        host.wait_until("it has given up", SOON, || host.state_of("crowded.service") != "active");
        assert_eq!(host.sh(&format!("ls {}/base | wc -l", folder(&host))), "2", "what was begun is removed");
        host.sh(&format!("rm {FOLDER}/full; pg-backup verify"));
        assert!(host.is_accepting());
    }

    fn a_stream_that_is_interrupted_goes_on_without_a_gap(suite: Suite) {
        let host = protected(suite);
        let pid = || host.sh("pgrep --exact pg_receivewal");
        for how in ["pkill --signal KILL --exact pg_receivewal", "systemctl kill --signal=KILL pg-wal-stream.service"] {
            let before = pid();
            host.sh(how);
            whole_segment(&host);
            wait_for_stream(&host);
            assert_ne!(pid(), before, "{how}");
        }
        host.psql("SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = 'pg_recovery'");
        whole_segment(&host);
        wait_for_stream(&host);
        host.sh("pg-backup verify");
        let newest = backups(&host).pop().expect("there is one");
        assert!(newest["wal_gap"] == false && newest["good"] == true, "{newest}");
        assert_eq!(host.sh(&format!("ls {}/wal | wc -l", folder(&host))), "1", "it is one run");
    }
}
