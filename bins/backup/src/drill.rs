//! The proof: the newest backup restored beside the backups, all WAL replayed, every database checked, what the
//! configuration asks answered, removed again.
//!
//! The server that is started for it is reached through a socket in a folder of its own only, archives nothing, replicates
//! nothing, and runs nothing that the configuration of the cluster would have run.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use shared::client::{Address, Refusal, Rows, Target};
use shared::clock::Stamp;
use shared::cluster::Cluster;
use shared::config::{Config, DrillQuery};
use shared::control::Lsn;
use shared::exit::Code;
use shared::{Error, Result, command, pressure, process};

use crate::restore::{self, Point};
use crate::server::{self, STREAM, Server};
use crate::store::{Base, Store, Verdict, remove_tree};
use crate::verify::{self, Found};
use crate::{child, now, pgbackrest};

const PORT: u16 = 5432;
const LOOK: Duration = Duration::from_millis(200);
/// How long the stream may take to receive what the server has written by now.
const CATCH_UP: Duration = Duration::from_secs(30);
/// How long a query of the configuration may take.
const QUERY: Duration = Duration::from_secs(3600);
/// And how long of the cluster itself, which it is a load for.
const LIVE_QUERY: Duration = Duration::from_secs(60);
/// How long a busy host is waited for; a backup that nobody has tried is no better than a drill that is in the way.
const LET_PASS: Duration = Duration::from_secs(3600);

/// What is given to the server: on the command line, where it wins over what ALTER SYSTEM wrote.
const SETTINGS: &[&str] = &[
    "listen_addresses=",
    "port=5432",
    "external_pid_file=",
    "ssl=off",
    "cluster_name=drill",
    "logging_collector=off",
    "log_destination=stderr",
    "archive_mode=off",
    // It replicates to nobody and from nobody, and no commit waits for a standby.
    "primary_conninfo=",
    "synchronous_standby_names=",
    "max_wal_senders=0",
    "max_logical_replication_workers=0",
    // Libraries may start workers of their own, which would do a second time what they do in the cluster.
    "shared_preload_libraries=",
    "session_preload_libraries=",
    "local_preload_libraries=",
    // Small: it is a guest on the host of its cluster. What follows from the settings of the cluster matters to hot standby
    // only.
    "hot_standby=off",
    "shared_buffers=32MB",
    "huge_pages=off",
    "max_connections=20",
    "max_parallel_workers=0",
    "max_prepared_transactions=1000",
    "autovacuum=off",
    "jit=off",
];

pub fn all(clusters: &[Cluster], config: &Config, id: Option<&str>) -> Result<Code> {
    crate::each(clusters, |cluster| {
        let store = Store::open(cluster)?;
        let Some(_alone) = store.try_drill()? else {
            log::warn!(PG_CLUSTER = store.cluster; "another drill of cluster {} is at work", store.cluster);
            return Ok(Code::TempFail);
        };
        let scratch = store.path.join("drill");
        clear(cluster, &scratch)?;
        pgbackrest::refresh(cluster, &store, config);
        if id.is_none() && store.bases().is_empty() {
            log::info!(PG_CLUSTER = store.cluster; "there is no backup of cluster {} yet, no drill", store.cluster);
            return Ok(Code::Ok);
        }
        let_pass(&store, config);
        let _reading = store.reading()?;
        let mut base = store.base(id)?;
        can_start(cluster, &base)?;
        let wal = restore::wal_to_bring(&store, config, &base).len();
        // What cannot be told is found out by restoring it.
        let size = store.chain(&base).and_then(|chain| restore::size(&chain, wal)).unwrap_or(base.info.cluster_bytes);
        let room = store.room(config.backup.leave_free)?;
        // WAL that is replayed makes files larger, and writes WAL of its own.
        if room < size + size / 4 {
            return Err(Error::failed(format!(
                "cannot restore backup {} of cluster {} to see: that needs about {} MB, and the volume of {} has {} MB beside \
                 the {} % that stay free",
                base.id,
                store.cluster,
                (size + size / 4) >> 20,
                store.path.display(),
                room >> 20,
                config.backup.leave_free
            ))
            .hint("Make room there, or mount a larger volume there."));
        }
        let mut drill = Drill { cluster, config, store: &store, scratch: &scratch, seconds: None };
        let outcome = drill.run(&base);
        let seconds = drill.seconds;
        clear(cluster, &scratch)?;
        // What interrupted it says nothing about the backup.
        let error = match outcome {
            Err(Stop::Interrupted(why)) => return Err(why),
            Err(Stop::Bad(why)) => Some(why),
            Ok(()) => None,
        };
        let what = format!("drill of backup {} of cluster {}", base.id, store.cluster);
        match &error {
            Some(why) => log::error!(PG_CLUSTER = store.cluster; "{what}: it is not good: {why}"),
            None => {
                let seconds = seconds.unwrap_or_default();
                log::info!(PG_CLUSTER = store.cluster; "{what}: good; it answered {seconds:.1} s after the restore began");
            }
        }
        let code = if error.is_none() { Code::Ok } else { Code::Failed };
        base.info.drilled = Some(Verdict { at: Stamp::now(), error, seconds });
        base.save()?;
        Ok(code)
    })
}

/// A backup from before an upgrade is no worse because the programs of its version are gone.
fn can_start(cluster: &Cluster, base: &Base) -> Result<()> {
    let program = cluster.bin_directory.join("postgres");
    let out = command::run(Command::new(&program).arg("--version"), Duration::from_secs(10))
        .map_err(|e| Error::failed(format!("could not run {}: {e}", program.display())))?;
    match major(&out.stdout) {
        Some(version) if version == base.info.version => Ok(()),
        _ => Err(Error::failed(format!(
            "cannot restore backup {} of cluster {} to see: it is of PostgreSQL {}, and {} is {}",
            base.id,
            cluster.name(),
            base.info.version,
            program.display(),
            out.stdout.trim()
        ))
        .hint("Make a backup of the present version: pg-backup now")),
    }
}

/// `postgres (PostgreSQL) 17.6 (Debian 17.6-0+deb13u1)`
fn major(version: &str) -> Option<u32> {
    let number = version.split_once("(PostgreSQL) ")?.1;
    number.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

/// Waits until the host is not busy with something else, and no longer than there is patience for.
fn let_pass(store: &Store, config: &Config) {
    let limit = f64::from(config.health.pressure_warn);
    let busy =
        || pressure::KINDS.into_iter().find(|kind| pressure::some(kind, "avg10").is_some_and(|share| share > limit));
    let began = Instant::now();
    let mut said = false;
    while let Some(kind) = busy() {
        if began.elapsed() >= LET_PASS {
            log::warn!(PG_CLUSTER = store.cluster; "the host has been busy for {} min, the drill of cluster {} goes on all the same",
                LET_PASS.as_secs() / 60, store.cluster);
            return;
        }
        if !said {
            log::info!(PG_CLUSTER = store.cluster; "the drill of cluster {} lets others go first: tasks wait for {kind} \
                (health.pressure_warn)", store.cluster);
            said = true;
        }
        std::thread::sleep(LOOK);
    }
}

enum Stop {
    /// The backup is not good.
    Bad(String),
    /// Nothing was found out.
    Interrupted(Error),
}

/// Ends the server of a drill, this one or one that was interrupted, and removes what it has restored.
fn clear(cluster: &Cluster, scratch: &Path) -> Result<()> {
    for process in process::family(&scratch.join("data"), &cluster.owner)?.all() {
        if let Some(handle) = process::Pidfd::open(process) {
            let _ = handle.send(Signal::SIGKILL);
            handle.wait(Duration::from_secs(10));
        }
    }
    remove_tree(scratch)
}

struct Drill<'a> {
    cluster: &'a Cluster,
    config: &'a Config,
    store: &'a Store,
    scratch: &'a Path,
    /// Until the restored server answered.
    seconds: Option<f64>,
}

/// What a query gave.
#[derive(Debug, PartialEq)]
enum Answer {
    True,
    Otherwise(String),
    /// None in time, or the server was lost.
    Nothing(String),
}

fn answer(rows: Result<Rows, Refusal>) -> Answer {
    match rows {
        // query_canceled
        Err(Refusal::Server(code, why)) if code == "57014" => Answer::Nothing(why),
        Err(why @ Refusal::Server(..)) => Answer::Otherwise(why.to_string()),
        Err(why) => Answer::Nothing(why.to_string()),
        Ok(rows) => match rows.as_slice() {
            [row] => match row.as_slice() {
                [Some(value)] if value == "t" => Answer::True,
                [value] => Answer::Otherwise(format!("\"{}\" instead of true", value.as_deref().unwrap_or("null"))),
                row => Answer::Otherwise(format!("{} columns instead of one", row.len())),
            },
            rows => Answer::Otherwise(format!("{} rows instead of one", rows.len())),
        },
    }
}

/// What the restored server must have.
struct Expected {
    lsn: Lsn,
    /// pgrecovery.heartbeat of the health check.
    beat: Option<u64>,
}

impl Drill<'_> {
    fn run(&mut self, base: &Base) -> Result<(), Stop> {
        let interrupted = |why: std::io::Error| Stop::Interrupted(why.into());
        let expected = self.expected(base).map_err(Stop::Interrupted)?;
        fs::create_dir_all(self.scratch).map_err(interrupted)?;
        let data = self.scratch.join("data");
        let began = Instant::now();
        restore::put(self.cluster, self.store, self.config, base, &Point::Latest, &data).map_err(|why| {
            match verify::check(self.store, base, &mut Found::default()) {
                Ok(Err(_)) => Stop::Bad(why.message),
                // It can be read, but not be written there.
                _ => Stop::Interrupted(why),
            }
        })?;
        let mut server = self.start(base, &data).map_err(Stop::Interrupted)?;
        let outcome = self.examine(&mut server, began, &expected);
        child::stop(&mut server, Signal::SIGINT);
        // To the server, WAL that cannot be fetched is the end of WAL.
        if let (Err(Stop::Bad(_)), Some(set)) = (&outcome, &base.info.pgbackrest) {
            pgbackrest::must_answer(set).map_err(Stop::Interrupted)?;
        }
        outcome
    }

    /// What the cluster has committed by now, once all of it was received; with no server or no stream, what there is.
    fn expected(&self, base: &Base) -> Result<Expected> {
        let info = &base.info;
        let mut expected = Expected { lsn: info.end, beat: None };
        if info.pgbackrest.is_none() {
            let wal = self.store.wal(info.system, info.timeline, info.segment_size);
            let first = info.end.0 / info.segment_size;
            expected.lsn = expected.lsn.max(Lsn(wal.complete_from(first) * info.segment_size));
            // Where a segment is missing although WAL goes on behind it.
            expected.lsn.0 += u64::from(wal.gap_from(first).is_some());
        }
        let Ok(live) = Server::ask(self.cluster) else { return Ok(expected) };
        if (live.system, live.timeline) != (info.system, info.timeline) || now::cannot(&live).is_some() {
            return Ok(expected);
        }
        let beat = self.beat(&self.target());
        let Ok(live) = Server::ask(self.cluster) else { return Ok(expected) };
        if let Some(set) = &info.pgbackrest {
            match pgbackrest::archive_now(set) {
                Ok(()) => expected = Expected { lsn: live.lsn, beat },
                Err(why) => {
                    let name = self.cluster.name();
                    log::warn!(PG_CLUSTER = name; "WAL of cluster {name} does not come into the archive, its end is not \
                        compared: {}", why.message);
                }
            }
            return Ok(expected);
        }
        // Unknown until it has told for the first time, ten seconds after its start.
        let sql = format!(
            "SELECT coalesce(write_lsn >= '{}', false) FROM pg_stat_replication WHERE application_name = '{STREAM}'",
            live.lsn
        );
        let deadline = Instant::now() + CATCH_UP;
        loop {
            let rows = server::query(self.cluster, &sql).unwrap_or_default();
            match rows.first().and_then(|row| row.first()?.as_deref()) {
                Some("t") => {
                    expected = Expected { lsn: live.lsn, beat };
                    break;
                }
                Some(_) if Instant::now() < deadline => std::thread::sleep(LOOK),
                _ => {
                    let name = self.cluster.name();
                    log::warn!(PG_CLUSTER = name; "no stream receives the WAL of cluster {name}, its end is not compared");
                    break;
                }
            }
        }
        Ok(expected)
    }

    fn target(&self) -> Target {
        let (directory, port) = server::socket(self.cluster);
        self.reach(directory, port, &self.config.health.database)
    }

    fn scratch_target(&self, database: &str) -> Target {
        self.reach(self.scratch.into(), PORT, database)
    }

    fn reach(&self, directory: PathBuf, port: u16, database: &str) -> Target {
        Target {
            address: Address::Socket(directory, port),
            owner: self.cluster.owner.clone(),
            role: self.cluster.owner.name.clone(),
            database: database.into(),
            password: None,
            application_name: "pg-backup",
        }
    }

    fn beat(&self, target: &Target) -> Option<u64> {
        let rows = server::ask(target, "SELECT max(beat) FROM pgrecovery.heartbeat").ok()?;
        rows.first()?.first()?.as_ref()?.parse().ok()
    }

    fn start(&self, base: &Base, data: &Path) -> Result<Child> {
        let (hba, config) = (self.scratch.join("pg_hba.conf"), self.scratch.join("postgresql.conf"));
        fs::write(&hba, "local all all peer\n")?;
        fs::write(&config, "")?;
        let ident = self.scratch.join("pg_ident.conf");
        fs::write(&ident, "")?;
        let mut command: Command = child::of(self.cluster, "postgres");
        // Immediate shutdown, should this program be killed.
        child::dies_with_us(&mut command, Signal::SIGQUIT);
        command.arg("-D").arg(data);
        let paths = [
            ("config_file", config.as_path()),
            ("hba_file", &hba),
            ("ident_file", &ident),
            ("data_directory", data),
            ("unix_socket_directories", self.scratch),
        ];
        for (name, path) in paths {
            command.arg("-c").arg(format!("{name}={}", path.display()));
        }
        for setting in SETTINGS {
            command.args(["-c", setting]);
        }
        if let Some(set) = &base.info.pgbackrest {
            command.arg("-c").arg(format!("restore_command={}", pgbackrest::restore_command(set, data)));
        }
        let log = File::create(self.log())?;
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        command.spawn().map_err(|e| Error::failed(format!("could not start the restored server: {e}")))
    }

    fn log(&self) -> PathBuf {
        self.scratch.join("log")
    }

    /// The last complaint in the log of the restored server.
    fn complaint(&self) -> String {
        let log = fs::read(self.log()).unwrap_or_default();
        let text = String::from_utf8_lossy(&log);
        let is_complaint = |line: &&str| ["PANIC: ", "FATAL: ", "ERROR: "].iter().any(|level| line.contains(level));
        text.lines().rfind(is_complaint).or_else(|| text.lines().last()).unwrap_or("it said nothing").trim().to_string()
    }

    fn has_room(&self) -> Result<()> {
        let least = self.config.backup.leave_free / 2;
        match self.store.room(least)? {
            0 => Err(Error::failed(format!(
                "the drill is given up: {} has less than {least} % free",
                self.store.path.display()
            ))),
            _ => Ok(()),
        }
    }

    fn examine(&mut self, server: &mut Child, began: Instant, expected: &Expected) -> Result<(), Stop> {
        let replayed = loop {
            let ended = server.try_wait();
            // A server that ends for want of room says nothing about the backup.
            self.has_room().map_err(Stop::Interrupted)?;
            if let Ok(Some(status)) = ended {
                return Err(Stop::Bad(format!("the restored server ended ({status}): {}", self.complaint())));
            }
            let sql = "SELECT pg_is_in_recovery(), pg_last_wal_replay_lsn()";
            match server::ask(&self.scratch_target("postgres"), sql) {
                Ok(rows) => {
                    let text =
                        |column: usize| rows.first().and_then(|row| row.get(column)?.clone()).unwrap_or_default();
                    if text(0) == "f" {
                        break Lsn::parse(&text(1)).unwrap_or_default();
                    }
                }
                Err(Refusal::Server(code, why)) => return Err(Stop::Bad(format!("{why} ({code})"))),
                Err(_) => {}
            }
            std::thread::sleep(LOOK);
        };
        self.seconds = Some(began.elapsed().as_secs_f64());
        if replayed < expected.lsn {
            let why = format!("WAL could be replayed to {replayed} only, and not to {}", expected.lsn);
            return Err(Stop::Bad(format!("{why}: {}", self.end_of_wal())));
        }
        if let Some(beat) = expected.beat {
            let restored = self.beat(&self.scratch_target(&self.config.health.database));
            if restored.is_none_or(|restored| restored < beat) {
                return Err(Stop::Bad(format!("pgrecovery.heartbeat has beat {restored:?} instead of {beat}")));
            }
        }
        let_pass(self.store, self.config);
        let mut command = child::of(self.cluster, "pg_amcheck");
        command.arg("--host").arg(self.scratch).args(["--port", &PORT.to_string()]);
        command.args(["--username", &self.cluster.owner.name, "--no-password"]);
        command.args(["--all", "--heapallindexed", "--install-missing"]);
        let mut room = Ok(());
        let checked = child::run(command, || {
            room = self.has_room();
            if room.is_err() { Err(Error::failed("")) } else { Ok(()) }
        });
        room.map_err(Stop::Interrupted)?;
        checked.map_err(|why| Stop::Bad(why.message))?;
        self.config.backup.drill_queries.iter().try_for_each(|query| self.must_be_true(query))
    }

    /// Asks a query of the configuration. One that is not true of the cluster itself either says nothing about the backup.
    fn must_be_true(&self, query: &DrillQuery) -> Result<(), Stop> {
        let database = query.database.as_deref().unwrap_or(&self.config.health.database);
        let what = format!("the query \"{}\" in database {database}", query.query);
        let interrupted = |why: String, hint: &str| {
            let text = format!("the drill of cluster {} did not come to its end: {what} {why}", self.store.cluster);
            Err(Stop::Interrupted(Error::failed(text).hint(hint)))
        };
        let key = "It is in drill_queries, section backup of /etc/pg-recovery/config.toml.";
        match self.ask(self.scratch_target(database), &query.query, QUERY)? {
            Answer::True => Ok(()),
            Answer::Nothing(why) => interrupted(format!("gives no answer: {why}"), key),
            Answer::Otherwise(why) => {
                let (directory, port) = server::socket(self.cluster);
                match self.ask(self.reach(directory, port, database), &query.query, LIVE_QUERY)? {
                    Answer::Otherwise(live) => interrupted(
                        format!("gives {why}, and of the cluster itself {live}: it is to be corrected"),
                        key,
                    ),
                    _ => Err(Stop::Bad(format!("{what} gives {why}"))),
                }
            }
        }
    }

    /// Room is looked after meanwhile, for temporary files take it.
    fn ask(&self, target: Target, sql: &str, patience: Duration) -> Result<Answer, Stop> {
        let sql = sql.to_string();
        let asked = std::thread::spawn(move || server::read_only(&target, &sql, patience));
        while !asked.is_finished() {
            self.has_room().map_err(Stop::Interrupted)?;
            std::thread::sleep(LOOK);
        }
        Ok(answer(asked.join().unwrap_or_else(|_| Err(Refusal::Broken("no answer".into())))))
    }

    /// Why the server took a place for the end of WAL.
    fn end_of_wal(&self) -> String {
        let log = fs::read(self.log()).unwrap_or_default();
        let text = String::from_utf8_lossy(&log);
        let at = text.lines().take_while(|line| !line.contains("redo done at")).last().unwrap_or_default();
        at.rsplit_once("LOG: ").map_or(at, |(_, what)| what).trim().to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_is_true_by_one_row_of_one_column_only() {
        let row = |values: &[Option<&str>]| values.iter().map(|value| value.map(String::from)).collect::<Vec<_>>();
        assert_eq!(answer(Ok(vec![row(&[Some("t")])])), Answer::True);
        for (rows, text) in [
            (vec![], "0 rows instead of one"),
            (vec![row(&[Some("t")]), row(&[Some("t")])], "2 rows instead of one"),
            (vec![row(&[Some("t"), Some("t")])], "2 columns instead of one"),
            (vec![row(&[Some("f")])], "\"f\" instead of true"),
            (vec![row(&[None])], "\"null\" instead of true"),
            (vec![row(&[Some("7")])], "\"7\" instead of true"),
        ] {
            assert_eq!(answer(Ok(rows)), Answer::Otherwise(text.to_string()));
        }
        let server = |code: &str| answer(Err(Refusal::Server(code.into(), String::new())));
        assert!(matches!(server("42P01"), Answer::Otherwise(_)), "there is no such table");
        assert!(
            matches!(server("57014"), Answer::Nothing(_))
                && matches!(answer(Err(Refusal::Timeout)), Answer::Nothing(_))
        );
    }

    #[test]
    fn the_version_of_a_server_is_what_it_says() {
        assert_eq!(major("postgres (PostgreSQL) 17.6 (Debian 17.6-0+deb13u1)\n"), Some(17));
        assert_eq!(major("postgres (PostgreSQL) 18beta1"), Some(18));
        assert_eq!(major("bash: no such file"), None);
    }
}
