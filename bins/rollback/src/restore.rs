//! Going back: look, rehearse, keep what is there, put back, reload, prove; and undo all of it when the proof fails.

use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use nix::sys::signal::{SigSet, SigmaskHow, Signal};
use serde::{Deserialize, Serialize};
use serde_json::json;
use shared::args::Args;
use shared::cluster::Cluster;
use shared::config::Config;
use shared::exit::{self, Code};
use shared::lock::Lock;
use shared::point::{self, Copy, Part};
use shared::process::stop_here_for_a_test;
use shared::{Error, Result, log as out, standing, unit};

use crate::change::{self, Change, Goal, Level};
use crate::server::Server;
use crate::{kept, points, rehearsal};

/// How long the program that holds the cluster's lock is waited for.
const PATIENCE: Duration = Duration::from_secs(30);

/// `/var/lib/pg-recovery/rollback/16-main.json`: what the next run has to undo when this one does not come to its end.
#[derive(Clone, Debug, Deserialize, Serialize)]
struct Unfinished {
    /// The point that holds the files as they were.
    before: String,
    /// Each file as it was and as it was to be (`change::mark`); none: not there.
    files: Vec<(PathBuf, Option<String>, Option<String>)>,
}

impl Unfinished {
    fn new(cluster: &Cluster, before: &str, changes: &[Change]) -> Unfinished {
        let mark = |copy: &Option<Copy>| copy.as_ref().map(|copy| change::mark(cluster, copy));
        let files = changes.iter().map(|c| (c.path.clone(), mark(&c.old), mark(&c.new))).collect();
        Unfinished { before: before.into(), files }
    }

    fn name(cluster: &Cluster) -> String {
        format!("{}.json", cluster.file_name())
    }
}

/// What a run of one cluster is to do.
pub struct Task<'a> {
    pub goal: &'a Goal,
    pub level: Level,
    pub only: &'a [&'a str],
    pub may_restart: bool,
    /// What only a restart would show is not put back without one.
    pub must_prove: bool,
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
            let (manifest, _) = point::find(id)?;
            (vec![points::of(&manifest, clusters)?], Some(Goal::find(id)?))
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
        let Some(goal) = goal else {
            let none = "is as in its last good recovery points, or there is none; nothing to do";
            if args.json {
                documents.push(json!({ "cluster": cluster.name(), "point": null, "plan": [] }));
            } else {
                out::print(&format!("cluster {} {none}\n", cluster.name()))?;
            }
            continue;
        };
        if args.has("plan") {
            documents.push(plan(cluster, &goal, level, &only, args.json)?);
            continue;
        }
        let (may_restart, why) = (args.has("restart"), format!("back to {}", goal.id));
        let task = Task { goal: &goal, level, only: &only, may_restart, must_prove: false, why, keep: false };
        codes.push(back(cluster, config, &task).unwrap_or_else(|error| exit::report(&error)));
    }
    if args.json && args.has("plan") {
        out::print(&format!("{}\n", json!({ "clusters": documents })))?;
    }
    Ok(Code::worst(codes.into_iter()))
}

/// Where a cluster goes back to that was not told; what was left half done is undone first.
fn goal(cluster: &Cluster, config: &Config, level: Level, only: &[&str], plan: bool) -> Result<Option<Goal>> {
    if !plan {
        let _lock = take_lock(cluster)?;
        settle(cluster, config)?;
    }
    last_other(cluster, level, only)
}

/// The newest point that a server was seen to run with and that is not what is there now.
fn last_other(cluster: &Cluster, level: Level, only: &[&str]) -> Result<Option<Goal>> {
    for manifest in point::all(&[cluster.name()])?.into_iter().filter(|manifest| manifest.kind == "good") {
        let Ok(goal) = Goal::find(&manifest.id) else { continue };
        if !change::changes(cluster, &goal, level, only, false)?.is_empty() {
            return Ok(Some(goal));
        }
    }
    Ok(None)
}

fn plan(cluster: &Cluster, goal: &Goal, level: Level, only: &[&str], as_json: bool) -> Result<serde_json::Value> {
    let id = &goal.id;
    let changes = change::changes(cluster, goal, level, only, false)?;
    let complaint = match changes.as_slice() {
        [] => None,
        changes => rehearsal::complaint(cluster, &change::now(cluster)?, changes)?,
    };
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
    let _whole = Uninterrupted::begin()?;
    settle(cluster, config)?;
    let mut changes = change::changes(cluster, task.goal, task.level, task.only, task.keep)?;
    if changes.is_empty() {
        if task.keep {
            finish(cluster, &task.goal.files(), false)?;
        }
        log::info!(PG_CLUSTER = name; "cluster {name}: all files are as they were, nothing to do");
        return Ok(Code::Ok);
    }
    let mut now = match change::now(cluster) {
        Err(_) if task.keep => changes.iter().filter_map(|change| change.old.clone()).collect(),
        now => now?,
    };
    if !task.keep
        && let Some(complaint) = rehearsal::complaint(cluster, &now, &changes)?
    {
        return Err(Error::failed(format!("cluster {name} would not start with what would be put back: {complaint}"))
            .hint("Nothing was changed. pg-rollback show ID has the difference, and list has other points."));
    }
    stop_here_for_a_test(1);
    let server = Server::find(cluster, config);
    now.extend(server.as_ref().and_then(Server::roles));
    let before = match point::save(cluster, "before", &task.why, &now) {
        // A full disk, and somebody who is locked out: what is there is kept beside what comes back.
        Err(why) if task.keep => {
            log::warn!(PG_CLUSTER = name; "{}; keeping what is replaced beside it", why.message);
            None
        }
        id => Some(id?),
    };
    let unfinished = Unfinished::new(cluster, before.as_deref().unwrap_or_default(), &changes);
    if !task.keep {
        kept::save(&Unfinished::name(cluster), &unfinished)?;
    }
    stop_here_for_a_test(2);
    if task.keep {
        // One that cannot come back must not hold up the rules of access.
        changes.retain(|change| change.stage(cluster).map_err(|why| exit::report(&why)).is_ok());
    } else if let Err(why) = changes.iter().try_for_each(|change| change.stage(cluster)) {
        finish(cluster, &changes, false)?;
        return Err(why.hint("Nothing was changed."));
    }
    let keep_beside = before.is_none();
    let before = before.map_or("beside them".into(), |id| format!("in recovery point {id}"));
    let done = apply(cluster, &changes).and_then(|()| serve(cluster, config, server, &changes, task));
    match done {
        Ok(_) | Err(_) if task.keep => {
            // Whoever could not be put back is an error, and tried again; what a server that is put back makes of it is not.
            let is_back = change::changes(cluster, task.goal, task.level, task.only, false)?.is_empty();
            finish(cluster, &changes, keep_beside)?;
            finish(cluster, &task.goal.files(), false)?;
            let level = if done.is_ok() { log::Level::Warn } else { log::Level::Error };
            let proven = done.unwrap_or_else(|why| format!("not proven: {}", why.message));
            log::log!(level, PG_CLUSTER = name; "cluster {name}: {}; {proven}. What was there is {before}", task.why);
            if is_back {
                Ok(Code::Ok)
            } else {
                Err(Error::failed(format!("cluster {name}: not all of it could be put back")))
            }
        }
        Ok(proven) => {
            finish(cluster, &changes, keep_beside)?;
            log::warn!(PG_CLUSTER = name; "cluster {name}: {}; {proven}. What was there is {before}", task.why);
            Ok(Code::Ok)
        }
        Err(why) => {
            log::error!(PG_CLUSTER = name; "cluster {name}: {}; undoing it", why.message);
            undo(cluster, config, &unfinished, task.may_restart)?;
            Err(Error::failed(format!("cluster {name} has the configuration that it had, because: {}", why.message)))
        }
    }
}

/// From here on there is nothing to undo.
fn finish(cluster: &Cluster, changes: &[Change], keep: bool) -> Result<()> {
    kept::remove(&Unfinished::name(cluster))?;
    changes.iter().try_for_each(|change| change.finish(cluster, keep))
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
    let _whole = Uninterrupted::begin()?;
    log::warn!(PG_CLUSTER = cluster.name(); "cluster {}: an earlier run did not come to its end; undoing it first", cluster.name());
    undo(cluster, config, &unfinished, false)
}

fn apply(cluster: &Cluster, changes: &[Change]) -> Result<()> {
    for (index, change) in changes.iter().enumerate() {
        stop_here_for_a_test(index + 3);
        change.swap(cluster)?;
        log::warn!(PG_CLUSTER = cluster.name(); "cluster {}: {}", cluster.name(), change.describe());
    }
    stop_here_for_a_test(changes.len() + 3);
    if changes.iter().any(|change| change.part() == Part::Start) { unit::daemon_reload() } else { Ok(()) }
}

/// Lets the server that runs read its files. What was proven.
fn serve(
    cluster: &Cluster,
    config: &Config,
    server: Option<Server>,
    changes: &[Change],
    task: &Task,
) -> Result<String> {
    let Some(server) = server else {
        return Ok("it does not run".into());
    };
    if changes.iter().all(|change| change.part() == Part::Start) {
        return Ok("it counts from its next start on".into());
    }
    let was_let_in = server.loaded.is_some();
    let mut pending = server.reload()?;
    stop_here_for_a_test(changes.len() + 4);
    // What else waits for a restart is not this one's business.
    pending.retain(|setting| changes.iter().any(|change| change.describe().contains(setting.as_str())));
    let settings = pending.join(", ");
    let must_restart = task.may_restart && !pending.is_empty();
    if task.must_prove && !task.may_restart && !pending.is_empty() {
        return Err(Error::failed(format!("only a restart would show whether it starts with {settings}")));
    }
    if must_restart {
        log::warn!(PG_CLUSTER = cluster.name(); "cluster {}: restarting it for {settings}", cluster.name());
        server.restart()?;
        stop_here_for_a_test(changes.len() + 5);
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
        let now = change::present(cluster, path)?;
        let is_now = now.as_ref().map(|copy| change::mark(cluster, copy));
        let old = copies.iter().find(|copy| copy.path == *path).cloned();
        let change = Change { path: path.clone(), old, new: now, unreadable: false };
        if is_now == *was_to_be && is_now != *was {
            change.undo(cluster).map_err(|e| {
                e.hint(format!(
                    "Recovery point {before} has the files as they were; pg-rollback config {before} tries again."
                ))
            })?;
            changes.push(Change { old: change.new, new: change.old, ..change });
        } else {
            if is_now != *was {
                log::warn!(PG_CLUSTER = name; "cluster {name}: {} was changed by somebody else since, leaving it; {before} has it as it was", path.display());
            }
            change.finish(cluster, false)?;
        }
    }
    if changes.iter().any(|change| change.part() == Part::Start) {
        unit::daemon_reload()?;
    }
    log::warn!(PG_CLUSTER = name; "cluster {name}: its files are again as they were before ({before})");
    let goal = Goal { id: before.clone(), copies: Vec::new(), whole: false };
    let (level, only, why) = (Level::All, &[][..], String::new());
    let task = Task { goal: &goal, level, only, may_restart, must_prove: false, why, keep: true };
    match Server::find(cluster, config) {
        // A restart that failed, or a server that was down before: pg-recover knows whether it may be started.
        None => unit::start("pg-recovery.service")?,
        // What was there before may have been refused before.
        server => match serve(cluster, config, server, &changes, &task) {
            Ok(proven) => log::warn!(PG_CLUSTER = name; "cluster {name}: {proven}"),
            Err(why) => log::error!(PG_CLUSTER = name; "cluster {name}: not proven: {}", why.message),
        },
    }
    finish(cluster, &changes, false)
}

/// Keeps SIGTERM, SIGINT and SIGHUP waiting until a run is at its end, which has a deadline on each of its steps. SIGKILL
/// is seen to by the next run.
pub struct Uninterrupted(SigSet);

impl Uninterrupted {
    pub fn begin() -> Result<Uninterrupted> {
        Ok(Uninterrupted(signals().thread_swap_mask(SigmaskHow::SIG_BLOCK)?))
    }

    /// Not for a command of somebody else's.
    pub fn release_in(&self, command: &mut Command) {
        let before = self.0;
        // SAFETY: pthread_sigmask is async-signal-safe (signal-safety(7)) and touches no memory but the copy that is given.
        unsafe { command.pre_exec(move || Ok(before.thread_set_mask()?)) };
    }
}

impl Drop for Uninterrupted {
    fn drop(&mut self) {
        let _ = self.0.thread_set_mask();
    }
}

pub fn signals() -> SigSet {
    [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP].into_iter().collect()
}
