//! Going back: look, rehearse, keep what is there, put back, reload, prove; and undo all of it when the proof fails.

use std::path::PathBuf;
use std::time::Duration;

use nix::sys::signal::{SigSet, Signal};
use serde::{Deserialize, Serialize};
use serde_json::json;
use shared::args::Args;
use shared::cluster::Cluster;
use shared::config::Config;
use shared::exit::{self, Code};
use shared::lock::Lock;
use shared::point::{self, Copy};
use shared::process::stop_here_for_a_test;
use shared::{Error, Result, log as out, standing, unit};

use crate::change::{self, Change, Level};
use crate::server::Server;
use crate::{kept, points, rehearsal};

/// How long the program that holds the cluster's lock is waited for.
const PATIENCE: Duration = Duration::from_secs(30);

/// `/var/lib/pg-recovery/rollback/16-main.json`: what the next run has to undo when this one does not come to its end.
#[derive(Clone, Debug, Deserialize, Serialize)]
struct Unfinished {
    /// The point that holds the files as they were.
    before: String,
    /// SHA-256 of each file as it was and as it was to be; none: not there.
    files: Vec<(PathBuf, Option<String>, Option<String>)>,
}

impl Unfinished {
    fn new(before: &str, changes: &[Change]) -> Unfinished {
        let sum = |copy: &Option<Copy>| copy.as_ref().map(|copy| point::sha256(&copy.bytes));
        let files = changes.iter().map(|c| (c.path.clone(), sum(&c.old), sum(&c.new))).collect();
        Unfinished { before: before.into(), files }
    }

    fn name(cluster: &Cluster) -> String {
        format!("{}.json", cluster.file_name())
    }
}

/// What a run of one cluster is to do.
pub struct Task<'a> {
    pub goal: &'a [Copy],
    pub level: Level,
    pub only: &'a [&'a str],
    pub may_restart: bool,
    /// For the journal and the point that holds what is there now.
    pub why: String,
    /// The files count, whatever the server makes of them: nothing is undone.
    pub keep: bool,
}

pub fn run(word: &str, words: &[String], clusters: &[Cluster], config: &Config, args: &Args) -> Result<Code> {
    let level = if word == "security" { Level::Security } else { Level::Config };
    let only: Vec<&str> = args.values.iter().map(|(_, file)| file.as_str()).collect();
    let (clusters, given): (Vec<&Cluster>, _) = match words {
        [] => (clusters.iter().collect(), None),
        [id] => {
            let (manifest, copies) = point::find(id)?;
            (vec![points::of(&manifest, clusters)?], Some((id.clone(), copies)))
        }
        _ => return Err(Error::usage(format!("{word} takes the ID of one recovery point")).hint("Try --help.")),
    };
    let mut codes = Vec::new();
    let mut documents = Vec::new();
    for cluster in clusters {
        let goal = match &given {
            Some(given) => Ok(Some(given.clone())),
            None => goal(cluster, config, level, &only, args.has("plan")),
        };
        let goal = match goal {
            Ok(goal) => goal,
            Err(error) => {
                codes.push(exit::report(&error));
                continue;
            }
        };
        let Some((id, goal)) = goal else {
            let none = "is as in its last good recovery points, or there is none; nothing to do";
            if args.json {
                documents.push(json!({ "cluster": cluster.name(), "point": null, "plan": [] }));
            } else {
                out::print(&format!("cluster {} {none}\n", cluster.name()))?;
            }
            continue;
        };
        if args.has("plan") {
            documents.push(plan(cluster, &id, &goal, level, &only, args.json)?);
            continue;
        }
        let why = format!("back to {id}");
        let task = Task { goal: &goal, level, only: &only, may_restart: args.has("restart"), why, keep: false };
        codes.push(back(cluster, config, &task).unwrap_or_else(|error| exit::report(&error)));
    }
    if args.json && args.has("plan") {
        out::print(&format!("{}\n", json!({ "clusters": documents })))?;
    }
    Ok(Code::worst(codes.into_iter()))
}

/// Where a cluster goes back to that was not told; what was left half done is undone first.
fn goal(
    cluster: &Cluster,
    config: &Config,
    level: Level,
    only: &[&str],
    plan: bool,
) -> Result<Option<(String, Vec<Copy>)>> {
    if !plan {
        let _lock = take_lock(cluster)?;
        settle(cluster, config)?;
    }
    last_other(cluster, level, only)
}

/// The newest point that a server was seen to run with and that is not what is there now.
fn last_other(cluster: &Cluster, level: Level, only: &[&str]) -> Result<Option<(String, Vec<Copy>)>> {
    for manifest in point::all(&[cluster.name()])?.into_iter().filter(|manifest| manifest.kind == "good") {
        let Ok((_, copies)) = point::find(&manifest.id) else { continue };
        if !change::changes(cluster, &copies, level, only, false)?.is_empty() {
            return Ok(Some((manifest.id, copies)));
        }
    }
    Ok(None)
}

fn plan(
    cluster: &Cluster,
    id: &str,
    goal: &[Copy],
    level: Level,
    only: &[&str],
    as_json: bool,
) -> Result<serde_json::Value> {
    let changes = change::changes(cluster, goal, level, only, false)?;
    let complaint = rehearsal::complaint(cluster, &change::now(cluster)?, &changes)?;
    if !as_json {
        out::print(&format!("cluster {}, back to {id}:\n", cluster.name()))?;
        for change in &changes {
            out::print(&format!("{}\n", change.describe()))?;
        }
        out::print(&match &complaint {
            Some(why) => format!("this would be refused, because the server would not start with it: {why}\n"),
            None if changes.is_empty() => "nothing to do\n".into(),
            None => "then a server that runs reads them and is tried; --restart allows a restart\n".into(),
        })?;
    }
    let changes: Vec<_> = changes.iter().map(|c| json!({ "path": c.path, "change": c.describe() })).collect();
    Ok(json!({ "cluster": cluster.name(), "point": id, "plan": changes, "refused": complaint }))
}

/// Takes one cluster back, under its lock.
pub fn back(cluster: &Cluster, config: &Config, task: &Task) -> Result<Code> {
    let name = cluster.name();
    refuse_managed(cluster)?;
    let _lock = take_lock(cluster)?;
    let _whole = uninterrupted()?;
    settle(cluster, config)?;
    let changes = change::changes(cluster, task.goal, task.level, task.only, task.keep)?;
    if changes.is_empty() {
        log::info!(PG_CLUSTER = name; "cluster {name}: all files are as they were, nothing to do");
        return Ok(Code::Ok);
    }
    let complaint = change::now(cluster).and_then(|now| rehearsal::complaint(cluster, &now, &changes));
    if !task.keep
        && let Some(complaint) = complaint?
    {
        return Err(Error::failed(format!("cluster {name} would not start with what would be put back: {complaint}"))
            .hint("Nothing was changed. pg-rollback show ID has the difference, and list has other points."));
    }
    stop_here_for_a_test(1);
    let old: Vec<Copy> = changes.iter().filter_map(|change| change.old.clone()).collect();
    let before = point::save(cluster, "before", &task.why, &old)?;
    let unfinished = Unfinished::new(&before, &changes);
    if !task.keep {
        kept::save(&Unfinished::name(cluster), &unfinished)?;
    }
    let server = Server::find(cluster, config);
    let done = apply(cluster, &changes).and_then(|()| serve(cluster, config, server, &changes, task.may_restart));
    match done {
        Ok(proven) => {
            kept::remove(&Unfinished::name(cluster))?;
            log::warn!(PG_CLUSTER = name; "cluster {name}: {}; {proven}. What was there is in recovery point {before}", task.why);
            Ok(Code::Ok)
        }
        Err(why) if task.keep => {
            // Whoever could not be put back is an error, and tried again; what a server that is put back makes of it is not.
            let is_back = change::changes(cluster, task.goal, task.level, task.only, false)?.is_empty();
            log::error!(PG_CLUSTER = name; "cluster {name}: {}; not proven: {}. What was there is in recovery point {before}", task.why, why.message);
            if is_back { Ok(Code::Ok) } else { Err(why) }
        }
        Err(why) => {
            log::error!(PG_CLUSTER = name; "cluster {name}: {}; undoing it", why.message);
            undo(cluster, config, &unfinished, task.may_restart)?;
            Err(Error::failed(format!("cluster {name} has the configuration that it had, because: {}", why.message)))
        }
    }
}

/// Patroni and its like write the configuration of their clusters themselves.
pub fn refuse_managed(cluster: &Cluster) -> Result<()> {
    standing::manager(cluster).map_or(Ok(()), |manager| {
        let what = format!("cluster {} is managed by {manager}, and its configuration as well", cluster.name());
        Err(Error::failed(what).hint(format!("Change it through {manager}, or name other clusters with --cluster.")))
    })
}

pub fn take_lock(cluster: &Cluster) -> Result<Lock> {
    let name = cluster.name();
    Lock::take(&name, PATIENCE)?.ok_or_else(|| {
        Error::with(Code::TempFail, format!("another program is at work on cluster {name}"))
            .hint("Try again when it has ended: journalctl -u pg-recovery.service")
    })
}

/// Undoes what an earlier run has left half done.
pub fn settle(cluster: &Cluster, config: &Config) -> Result<()> {
    let Some(unfinished) = kept::load::<Unfinished>(&Unfinished::name(cluster))? else { return Ok(()) };
    let _whole = uninterrupted()?;
    log::warn!(PG_CLUSTER = cluster.name(); "cluster {}: an earlier run did not come to its end; undoing it first", cluster.name());
    undo(cluster, config, &unfinished, false)
}

fn apply(cluster: &Cluster, changes: &[Change]) -> Result<()> {
    for (index, change) in changes.iter().enumerate() {
        stop_here_for_a_test(index + 2);
        change.apply(cluster)?;
        log::warn!(PG_CLUSTER = cluster.name(); "cluster {}: {}", cluster.name(), change.describe());
    }
    stop_here_for_a_test(changes.len() + 2);
    Ok(())
}

/// Lets the server that runs read its files. What was proven.
fn serve(
    cluster: &Cluster,
    config: &Config,
    server: Option<Server>,
    changes: &[Change],
    may_restart: bool,
) -> Result<String> {
    let Some(server) = server else {
        return Ok("it does not run".into());
    };
    let was_let_in = server.loaded.is_some();
    let mut pending = server.reload()?;
    stop_here_for_a_test(changes.len() + 3);
    // What else waits for a restart is not this one's business.
    pending.retain(|setting| changes.iter().any(|change| change.describe().contains(setting.as_str())));
    let settings = pending.join(", ");
    let must_restart = may_restart && !pending.is_empty();
    if must_restart {
        log::warn!(PG_CLUSTER = cluster.name(); "cluster {}: restarting it for {settings}", cluster.name());
        server.restart()?;
        stop_here_for_a_test(changes.len() + 4);
    }
    let server = Server::find(cluster, config).ok_or_else(|| Error::failed("its postmaster has ended"))?;
    let proof = server.prove()?;
    if was_let_in && !proof.let_in {
        return Err(Error::failed(proof.message));
    }
    Ok(if must_restart || pending.is_empty() {
        proof.message
    } else {
        format!("{}; {settings} only after systemctl restart {}", proof.message, cluster.unit)
    })
}

/// Puts back what a run has changed that failed or did not come to its end. A file that somebody has changed since is left.
fn undo(cluster: &Cluster, config: &Config, unfinished: &Unfinished, may_restart: bool) -> Result<()> {
    let (name, before) = (cluster.name(), &unfinished.before);
    let (_, copies) = point::find(before).map_err(|e| {
        e.hint(format!(
            "Look at the files of cluster {name}, then remove {}/{}.json.",
            point::unfinished().display(),
            cluster.file_name()
        ))
    })?;
    let mut changes = Vec::new();
    for (path, was, was_to_be) in &unfinished.files {
        let old = change::present(cluster, path)?;
        let now = old.as_ref().map(|copy| point::sha256(&copy.bytes));
        if now == *was_to_be {
            let new = copies.iter().find(|copy| copy.path == *path).cloned();
            changes.push(Change { path: path.clone(), old, new, unreadable: false });
        } else if now != *was {
            log::warn!(PG_CLUSTER = name; "cluster {name}: {} was changed by somebody else since, leaving it; {before} has it as it was", path.display());
        }
    }
    for change in &changes {
        change.apply(cluster).map_err(|e| {
            e.hint(format!(
                "Recovery point {before} has the files as they were; pg-rollback config {before} tries again."
            ))
        })?;
    }
    log::warn!(PG_CLUSTER = name; "cluster {name}: its files are again as they were before ({before})");
    match Server::find(cluster, config) {
        // A restart that failed, or a server that was down before: pg-recover knows whether it may be started.
        None => unit::start("pg-recovery.service")?,
        // What was there before may have been refused before.
        server => match serve(cluster, config, server, &changes, may_restart) {
            Ok(proven) => log::warn!(PG_CLUSTER = name; "cluster {name}: {proven}"),
            Err(why) => log::error!(PG_CLUSTER = name; "cluster {name}: not proven: {}", why.message),
        },
    }
    kept::remove(&Unfinished::name(cluster))
}

/// Keeps SIGTERM, SIGINT and SIGHUP waiting until a run is at its end, which has a deadline on each of its steps. SIGKILL
/// is seen to by the next run.
pub fn uninterrupted() -> Result<impl Drop> {
    struct Restore(SigSet);
    impl Drop for Restore {
        fn drop(&mut self) {
            let _ = self.0.thread_set_mask();
        }
    }
    let mut set = SigSet::empty();
    [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP].into_iter().for_each(|signal| set.add(signal));
    Ok(Restore(set.thread_swap_mask(nix::sys::signal::SigmaskHow::SIG_BLOCK)?))
}
