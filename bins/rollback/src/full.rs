//! The host as it was before this package first changed anything: files of the clusters that pg-recover has changed by
//! itself, and that nobody has changed since, are again what they were; nothing of ours runs or is enabled; what we keep in
//! the servers and in their data directories is gone. Backups, recovery points and evidence stay.
//!
//! Each of it is looked for and done if it is there, so the same command again goes on where one was cut short.

use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::json;
use shared::args::Args;
use shared::backup::is_id;
use shared::client::{Rows, Session, Target, runtime};
use shared::cluster::Cluster;
use shared::config::Config;
use shared::exit::{self, Code};
use shared::pidfile::LockFile;
use shared::point::{self, Copy};
use shared::process::stop_here_for_a_test;
use shared::state::State;
use shared::{Error, Result, ballast, log as out};

use crate::change::{self, Goal, Level};
use crate::restore::{self, Task};
use crate::{guard, monitoring};

const PATIENCE: Duration = Duration::from_secs(10);

/// What pg-watchdog keeps in `sessions/16-main.json` of the limit that a role has for a while, as far as it matters here.
#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(default)]
struct Sessions {
    limit: Option<Limit>,
}

#[derive(Debug, Default, Deserialize, Serialize)]
struct Limit {
    role_oid: u32,
    before: i32,
    now: i32,
}

pub fn run(words: &[String], clusters: &[Cluster], config: &Config, args: &Args) -> Result<Code> {
    if let Some(word) = words.first() {
        return Err(Error::usage(format!("unexpected argument \"{word}\"")).hint("full goes back to no point."));
    }
    if !args.clusters.is_empty() {
        return Err(Error::usage("full is about the whole host").hint("Leave out --cluster."));
    }
    if args.has("plan") {
        return plan(clusters, args);
    }
    guard::refuse_in_force()?;
    let mut codes = Vec::new();
    for cluster in clusters {
        codes.extend(put_back(cluster, config, args.has("restart")).map_err(|error| exit::report(&error)).err());
    }
    stop_here_for_a_test(100);
    // Before what it would only make anew is removed.
    monitoring::off()?;
    stop_here_for_a_test(101);
    for cluster in clusters {
        codes.extend(clear(cluster).map_err(|error| exit::report(&error)).err());
        for path in kept_beside(cluster)? {
            log::warn!(PG_CLUSTER = cluster.name(); "cluster {}: {}", cluster.name(), stays(&path));
        }
    }
    let code = Code::worst(codes.into_iter());
    match code {
        Code::Ok => log::warn!("the host is as it was before; backups, recovery points and evidence are kept"),
        _ => log::warn!(
            "not all of the host is as it was before; the lines above say what. The same command again goes on"
        ),
    }
    Ok(code)
}

/// A file that pg-recover has changed by itself, as it was before; the newest point of each counts.
struct Changed {
    point: String,
    path: PathBuf,
    /// `None`: it was missing, or nobody could read it.
    before: Option<Copy>,
    /// Nobody has changed it since.
    is_ours: bool,
}

fn changed(cluster: &Cluster) -> Result<Vec<Changed>> {
    let mut found: HashMap<PathBuf, Changed> = HashMap::new();
    for manifest in point::all(&[cluster.name()])?.into_iter().filter(|manifest| !manifest.made.is_empty()) {
        let copies = point::find(&manifest.id).map_or_else(|_| Vec::new(), |(_, copies)| copies);
        for (path, made) in manifest.made {
            let before = copies.iter().find(|copy| copy.path == path).cloned();
            let now = change::present(cluster, &path).ok().flatten();
            // It is as it was: somebody, or an earlier run, has put it back.
            if before.as_ref().map(|copy| &copy.bytes) == now.as_ref().map(|copy| &copy.bytes) {
                found.entry(path.clone()).or_insert(Changed {
                    point: String::new(),
                    path,
                    before: None,
                    is_ours: false,
                });
                continue;
            }
            let is_ours = now.map(|copy| point::sha256(&copy.bytes)) == made;
            found.entry(path.clone()).or_insert(Changed { point: manifest.id.clone(), path, before, is_ours });
        }
    }
    let mut found: Vec<Changed> = found.into_values().filter(|changed| !changed.point.is_empty()).collect();
    found.sort_by(|one, other| one.path.cmp(&other.path));
    Ok(found)
}

impl Changed {
    fn describe(&self) -> String {
        let (path, point) = (self.path.display(), &self.point);
        match (&self.before, self.is_ours) {
            (None, _) => format!("leave {path}: what pg-recover replaced was missing or could not be read"),
            (_, true) => format!(
                "put back {path} as it was before pg-recover changed it ({point}), if the server serves with it"
            ),
            _ => format!(
                "leave {path}: somebody has changed it since pg-recover did ({point}); pg-rollback show {point} has the difference"
            ),
        }
    }
}

/// What a person wrote and the server did not serve with, kept beside it when it was replaced: `NAME.broken-ID` by
/// pg-recover, `NAME.replaced-TIME` by a guard. It is theirs, so it stays and is told of.
fn kept_beside(cluster: &Cluster) -> Result<Vec<PathBuf>> {
    let made = point::all(&[cluster.name()])?.into_iter().flat_map(|manifest| manifest.made).map(|(path, _)| path);
    let real = |path: PathBuf| path.canonicalize().unwrap_or(path);
    let files = made.chain(point::tls_files(cluster)).map(real);
    let mut folders: BTreeSet<PathBuf> = files.filter_map(|path| Some(path.parent()?.into())).collect();
    folders.extend(
        [&cluster.config_directory, &cluster.config_directory.join("conf.d"), &cluster.data_directory]
            .map(Clone::clone),
    );
    let is_kept = |path: &PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let marked = [".broken-", ".replaced-"].into_iter().find_map(|mark| Some(name.rsplit_once(mark)?.1));
        // Both begin with a time, in the form that ids of backups have.
        marked.and_then(|id| id.get(..16)).is_some_and(is_id)
    };
    cluster.owner.act(|| {
        let entries = folders.iter().flat_map(|folder| std::fs::read_dir(folder).into_iter().flatten().flatten());
        let mut kept: Vec<PathBuf> = entries.map(|entry| entry.path()).filter(is_kept).collect();
        kept.sort();
        kept
    })
}

fn stays(path: &Path) -> String {
    format!(
        "leave {}: it was written by a person and kept when it was replaced; remove it when nobody needs it",
        path.display()
    )
}

/// Each file for itself, for what is wrong with one says nothing about another; key and certificate belong together.
fn put_back(cluster: &Cluster, config: &Config, may_restart: bool) -> Result<()> {
    let mut codes = Vec::new();
    let mut groups: Vec<(String, Vec<Copy>)> = Vec::new();
    for changed in changed(cluster)? {
        let point = changed.point.clone();
        log::info!(PG_CLUSTER = cluster.name(); "cluster {}: {}", cluster.name(), changed.describe());
        let Some(copy) = changed.before.filter(|_| changed.is_ours) else { continue };
        match groups.iter_mut().find(|(of, copies)| *of == point && copy.tls && copies[0].tls) {
            Some((_, copies)) => copies.push(copy),
            None => groups.push((point, vec![copy])),
        }
    }
    for (id, copies) in groups {
        let why = format!("back to {id}, before pg-recover changed it");
        let goal = Goal { id, copies, whole: false };
        let task = Task { goal: &goal, level: Level::All, only: &[], may_restart, must_prove: true, why, keep: false };
        codes.extend(restore::back(cluster, config, &task).map_err(|error| exit::report(&error)).err());
    }
    match Code::worst(codes.into_iter()) {
        Code::Ok => Ok(()),
        code => Err(Error::with(code, format!("cluster {} keeps what pg-recover has put there", cluster.name()))
            .hint("What was there before would not do. pg-rollback list and show have it.")),
    }
}

/// What we keep in its server and in its data directory.
fn clear(cluster: &Cluster) -> Result<()> {
    let name = cluster.name();
    let _lock = restore::take_lock(cluster)?;
    if ballast::size(cluster)? > 0 {
        let bytes = ballast::release(cluster)?;
        log::warn!(PG_CLUSTER = name; "cluster {name}: gave back the {} MiB that were kept for a full disk", bytes >> 20);
    }
    let second = PathBuf::from("/run/pg-recovery-socket").join(cluster.file_name());
    let _ = cluster.owner.act(|| std::fs::remove_file(second))?;
    let mut codes = Vec::new();
    for statement in statements(cluster)? {
        log::warn!(PG_CLUSTER = name; "cluster {name}: {statement}");
        codes.extend(ask(cluster, &statement.database, &statement.sql).map_err(|error| exit::report(&error)).err());
        stop_here_for_a_test(102);
    }
    match Code::worst(codes.into_iter()) {
        Code::Ok => Ok(()),
        code => Err(Error::with(code, format!("cluster {name} still has something of ours"))),
    }
}

/// A schema of that name which somebody else has made is left alone.
const OURS: &str = "SELECT FROM pg_namespace WHERE nspname = 'pgrecovery' AND nspowner = (SELECT oid FROM pg_roles WHERE rolname = current_user)";

struct Statement {
    database: String,
    what: &'static str,
    sql: String,
}

impl std::fmt::Display for Statement {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        write!(f, "{} (database {})", self.what, self.database)
    }
}

/// What has to be said to the server; an error when it cannot be asked.
fn statements(cluster: &Cluster) -> Result<Vec<Statement>> {
    const HERE: &str = "postgres";
    let mut found = Vec::new();
    let of = |database: &str, what, sql: String| Statement { database: database.into(), what, sql };
    let slot = "pg_replication_slots WHERE slot_name = 'pg_recovery' AND slot_type = 'physical'";
    if !ask(cluster, HERE, &format!("SELECT FROM {slot}"))?.is_empty() {
        found.push(of(
            HERE,
            "drop the slot pg_recovery",
            format!("SELECT pg_drop_replication_slot(slot_name) FROM {slot}"),
        ));
    }
    // A standby has what its primary has.
    if ask(cluster, HERE, "SELECT WHERE pg_is_in_recovery()")?.len() == 1 {
        return Ok(found);
    }
    let sessions = State::<Sessions>::load(&format!("sessions/{}.json", cluster.file_name())).value;
    if let Some(Limit { role_oid, before, now }) = sessions.limit {
        let sql = format!(
            "SELECT format('ALTER ROLE %I CONNECTION LIMIT %s', rolname, {before}) FROM pg_roles \
             WHERE oid = {role_oid} AND rolconnlimit = {now}"
        );
        let altered = ask(cluster, HERE, &sql)?.pop().and_then(|row| row.into_iter().next().flatten());
        found.extend(altered.map(|sql| of(HERE, "give a role the connection limit back that it had", sql)));
    }
    let databases = ask(cluster, HERE, "SELECT datname FROM pg_database WHERE datallowconn AND NOT datistemplate")?;
    for database in databases.into_iter().filter_map(|row| row.into_iter().next().flatten()) {
        if !ask(cluster, &database, OURS)?.is_empty() {
            // Without CASCADE: whatever somebody else put there stays.
            let sql = "SET lock_timeout = '5s'; DROP TABLE IF EXISTS pgrecovery.heartbeat; DROP SCHEMA pgrecovery";
            found.push(of(&database, "drop the table of the health check", sql.into()));
        }
    }
    Ok(found)
}

fn ask(cluster: &Cluster, database: &str, sql: &str) -> Result<Rows> {
    let lock_file = cluster.lock_file().0;
    let running = if let LockFile::Present(file) = &lock_file { Some(file) } else { None };
    let target = Target::of(cluster, running, database, "pg-rollback");
    let runtime = runtime()?;
    // The owner of a database may have set a search_path in which a pg_namespace of his own comes first.
    let sql = format!("SET search_path = pg_catalog; {sql}");
    let answer = runtime.block_on(async { Session::connect(&target, PATIENCE).await?.query(&sql, PATIENCE).await });
    runtime.shutdown_background();
    answer.map_err(|why| {
        Error::failed(format!("could not clear cluster {} of what is ours: {why}", cluster.name()))
            .hint("When it answers, the same command again does the rest.")
    })
}

fn plan(clusters: &[Cluster], args: &Args) -> Result<Code> {
    let mut documents = Vec::new();
    for cluster in clusters {
        let mut lines: Vec<String> = changed(cluster)?.iter().map(Changed::describe).collect();
        let ballast = ballast::size(cluster)?;
        if ballast > 0 {
            lines.push(format!("remove the file that keeps {} MiB free", ballast >> 20));
        }
        match statements(cluster) {
            Ok(statements) => lines.extend(statements.iter().map(ToString::to_string)),
            Err(why) => lines.push(format!("not known: {}", why.message)),
        }
        lines.extend(kept_beside(cluster)?.iter().map(|path| stays(path)));
        if !args.json {
            let name = cluster.name();
            lines.iter().try_for_each(|line| out::print(&format!("cluster {name}: {line}\n")))?;
        }
        documents.push(json!({ "cluster": cluster.name(), "plan": lines }));
    }
    let units = monitoring::plan()?;
    if args.json {
        out::print(&format!("{}\n", json!({ "clusters": documents, "units": units })))?;
    } else {
        units.iter().try_for_each(|line| out::print(&format!("{line}\n")))?;
    }
    Ok(Code::Ok)
}
