//! What there must be to restore from, and what a restore must give.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use host::{Host, Signal, Status, Suite, facts_on_both_suites};
use serde_json::Value;

const SOON: Duration = Duration::from_secs(60);
const TWO_MINUTES: Duration = Duration::from_secs(120);
const FOLDER: &str = "/var/backups/pg-recovery";

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
    wait_for_backup(&host);
    wait_for_stream(&host);
    host
}

/// Writes WAL that fills the rest of a segment; returns the path of what was received of it, and where in it it begins.
#[track_caller]
fn whole_segment(host: &Host) -> (String, usize) {
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
        let ledger = host.ledger();
        ledger.wait_for_commits(50);
        let before = ledger.stop_and_check();
        before.assert_nothing_lost();
        let moment = host.psql("SELECT clock_timestamp()");
        host.ledger().wait_for_commits(50);
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
        let ledger = host.ledger();
        ledger.wait_for_commits(200);
        host.sh(&format!("kill -9 {} && rm -rf {}", host.postmaster_pid(), host.data_directory()));
        let book = ledger.book();
        let said = host.sh(&format!("pg-backup restore --latest --to {}", host.data_directory()));
        let (_, in_place) = said.split_once("To put it in the place").expect("it says how");
        for command in in_place.lines().filter(|line| line.starts_with("  ")) {
            host.sh(command);
        }
        host.wait_until("the restored cluster is a primary", SOON, || {
            host.try_psql("SELECT pg_is_in_recovery()").stdout.trim() == "f"
        });
        let there: HashSet<u64> = host.psql("SELECT id FROM ledger").lines().map(|id| id.parse().expect("a number")).collect();
        let acked = || book.entries.iter().filter(|entry| entry.status == Status::Acked);
        let last = acked().map(|entry| entry.at_ms).max().expect("there were commits");
        let missing: Vec<u64> = acked().filter(|e| !there.contains(&e.id)).map(|e| last - e.at_ms).collect();
        assert!(missing.iter().all(|age| *age <= 1000), "missing, by milliseconds before the last: {missing:?}");
        wait_for_stream(&host);
        host.sh("systemctl start pg-backup.service");
        let newest = backups(&host).pop().expect("there is one");
        assert!(newest["timeline"] == 2 && newest["good"] == true, "it is backed up anew: {newest}");
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

    fn a_backup_holds_up_neither_a_restart_nor_a_recovery_and_leaves_nothing_when_it_fails(suite: Suite) {
        let host = protected(suite);
        host.configure("[backup]\nmax_rate = \"512kB\"");
        let begin = |unit: &str| {
            host.run_as_unit(unit, "postgres", "exec pg-backup now");
            host.wait_until("a base backup is being made", SOON, || {
                host.try_psql("SELECT 1 FROM pg_stat_replication WHERE state = 'backup'").stdout.trim() == "1"
            });
        };
        let failed = |unit: &str| {
            host.wait_until("the backup has given up", SOON, || host.state_of(unit) != "active");
            assert_eq!(host.sh(&format!("ls {}/base | wc -l", folder(&host))), "1", "what was begun is removed");
        };
        begin("first");
        assert_eq!(host.run("pg-backup now").status, 75, "two at a time");
        let began = Instant::now();
        host.sh(&format!("systemctl restart {}", host.unit()));
        assert!(began.elapsed() < Duration::from_secs(30), "{:?}", began.elapsed());
        host.wait_until_accepting(SOON);
        failed("first");
        begin("second");
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
}
