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
use shared::state::State;
use shared::{Error, Result, log as out, standing, unit};

use crate::change::{self, Change, Level};
use crate::server::Server;
use crate::{points, rehearsal};

/// How long the program that holds the cluster's lock is waited for.
const PATIENCE: Duration = Duration::from_secs(30);

/// `/var/lib/pg-recovery/rollback/16-main.json`: what the next run has to undo when this one does not come to its end.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default)]
struct Unfinished {
    /// The point that holds the files as they were; empty: nothing is unfinished.
    before: String,
    /// Files that were not there.
    created: Vec<PathBuf>,
}

/// What a run of one cluster is to do.
pub struct Task<'a> {
    pub goal: &'a [Copy],
    pub level: Level,
    pub only: &'a [&'a str],
    pub may_restart: bool,
    /// For the journal and the point that holds what is there now.
    pub why: String,
}

pub fn run(word: &str, words: &[String], clusters: &[Cluster], config: &Config, args: &Args) -> Result<Code> {
    let level = if word == "security" { Level::Security } else { Level::Config };
    let only: Vec<&str> = args.values.iter().map(|(_, file)| file.as_str()).collect();
    if !args.has("plan") {
        for cluster in clusters {
            let _lock = take_lock(cluster)?;
            settle(cluster, config)?;
        }
    }
    let mut goals = Vec::new();
    match words {
        [] => {
            for cluster in clusters {
                goals.push((cluster, last_other(cluster, level, &only)?));
            }
        }
        [id] => {
            let (manifest, copies) = point::find(id)?;
            goals.push((points::of(&manifest, clusters)?, Some((id.clone(), copies))));
        }
        _ => return Err(Error::usage(format!("{word} takes the ID of one recovery point")).hint("Try --help.")),
    }
    let mut codes = Vec::new();
    let mut documents = Vec::new();
    for (cluster, goal) in goals {
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
        let task = Task { goal: &goal, level, only: &only, may_restart: args.has("restart"), why };
        codes.push(back(cluster, config, &task).unwrap_or_else(|error| exit::report(&error)));
    }
    if args.json && args.has("plan") {
        out::print(&format!("{}\n", json!({ "clusters": documents })))?;
    }
    Ok(Code::worst(codes.into_iter()))
}

/// The newest point that a server was seen to run with and that is not what is there now.
fn last_other(cluster: &Cluster, level: Level, only: &[&str]) -> Result<Option<(String, Vec<Copy>)>> {
    for manifest in point::all(&[cluster.name()])?.into_iter().filter(|manifest| manifest.kind == "good") {
        let Ok((_, copies)) = point::find(&manifest.id) else { continue };
        if !change::changes(cluster, &copies, level, only)?.is_empty() {
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
    let changes = change::changes(cluster, goal, level, only)?;
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
    let mut state = settle(cluster, config)?;
    let changes = change::changes(cluster, task.goal, task.level, task.only)?;
    if changes.is_empty() {
        log::info!(PG_CLUSTER = name; "cluster {name}: all files are as they were, nothing to do");
        return Ok(Code::Ok);
    }
    let now = change::now(cluster)?;
    if let Some(complaint) = rehearsal::complaint(cluster, &now, &changes)? {
        return Err(Error::failed(format!("cluster {name} would not start with what would be put back: {complaint}"))
            .hint("Nothing was changed. pg-rollback show ID has the difference, and list has other points."));
    }
    stop_here_for_a_test(1);
    let old: Vec<Copy> = changes.iter().filter_map(|change| change.old.clone()).collect();
    let before = point::save(cluster, "before", &task.why, &old)?;
    let created = changes.iter().filter(|change| change.old.is_none()).map(|change| change.path.clone()).collect();
    state.value = Unfinished { before: before.clone(), created };
    state.save().map_err(|e| Error::failed(format!("nothing was changed, for it could not be kept track of: {e}")))?;
    match put(cluster, config, task, &changes) {
        Ok(proven) => {
            finish(&mut state)?;
            log::warn!(PG_CLUSTER = name; "cluster {name}: {}; {proven}. What was there is in recovery point {before}", task.why);
            Ok(Code::Ok)
        }
        Err(why) => {
            log::error!(PG_CLUSTER = name; "cluster {name}: {}; undoing it", why.message);
            undo(cluster, config, &mut state, task.may_restart)?;
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

fn take_lock(cluster: &Cluster) -> Result<Lock> {
    let name = cluster.name();
    Lock::take(&name, PATIENCE)?.ok_or_else(|| {
        Error::with(Code::TempFail, format!("another program is at work on cluster {name}"))
            .hint("Try again when it has ended: journalctl -u pg-recovery.service")
    })
}

/// Undoes what an earlier run has left half done.
fn settle(cluster: &Cluster, config: &Config) -> Result<State<Unfinished>> {
    let mut state: State<Unfinished> = State::load(&format!("rollback/{}.json", cluster.file_name()));
    if !state.value.before.is_empty() {
        let _whole = uninterrupted()?;
        // Somebody may have changed them since.
        let now = point::save(cluster, "before", "an unfinished rollback is undone", &change::now(cluster)?)?;
        log::warn!(PG_CLUSTER = cluster.name(); "cluster {}: an earlier run did not come to its end; undoing it first, what is there now is in recovery point {now}", cluster.name());
        undo(cluster, config, &mut state, false)?;
    }
    Ok(state)
}

/// Replaces the files, and lets the server that runs read them. What was proven.
fn put(cluster: &Cluster, config: &Config, task: &Task, changes: &[Change]) -> Result<String> {
    let server = Server::find(cluster, config);
    let was_let_in = server.as_ref().is_some_and(|server| server.loaded.is_some());
    for (index, change) in changes.iter().enumerate() {
        stop_here_for_a_test(index + 2);
        change.apply(cluster)?;
        log::warn!(PG_CLUSTER = cluster.name(); "cluster {}: {}", cluster.name(), change.describe());
    }
    stop_here_for_a_test(changes.len() + 2);
    let Some(server) = server else {
        return Ok("it does not run".into());
    };
    let pending = server.reload()?;
    stop_here_for_a_test(changes.len() + 3);
    let restarted = match &pending {
        Some(settings) if task.may_restart => {
            log::warn!(PG_CLUSTER = cluster.name(); "cluster {}: restarting it for {settings}", cluster.name());
            server.restart()?;
            stop_here_for_a_test(changes.len() + 4);
            true
        }
        _ => false,
    };
    let server = Server::find(cluster, config).ok_or_else(|| Error::failed("its postmaster has ended"))?;
    let proof = server.prove()?;
    if was_let_in && !proof.let_in {
        return Err(Error::failed(proof.message));
    }
    let missing = pending.filter(|_| !restarted);
    let missing = missing.map(|settings| format!("; {settings} only after systemctl restart {}", cluster.unit));
    Ok(format!("{}{}", proof.message, missing.unwrap_or_default()))
}

/// Puts back what a run has changed that failed or did not come to its end.
fn undo(cluster: &Cluster, config: &Config, state: &mut State<Unfinished>, may_restart: bool) -> Result<()> {
    let (_, copies) = point::find(&state.value.before)?;
    for path in &state.value.created {
        change::put(cluster, path, None)?;
    }
    for copy in &copies {
        change::put(cluster, &copy.path, Some(copy))?;
    }
    log::warn!(PG_CLUSTER = cluster.name(); "cluster {}: its files are again as they were before ({})", cluster.name(), state.value.before);
    finish(state)?;
    let Some(server) = Server::find(cluster, config) else {
        // A restart that failed, or a server that was down before: pg-recover knows whether it may be started.
        return unit::start("pg-recovery.service");
    };
    match server.reload() {
        Ok(Some(settings)) if may_restart => {
            log::warn!(PG_CLUSTER = cluster.name(); "cluster {}: restarting it for {settings}", cluster.name());
            server.restart()
        }
        Ok(None) => Ok(()),
        Ok(Some(settings)) => {
            log::warn!(PG_CLUSTER = cluster.name(); "cluster {}: {settings} only after systemctl restart {}", cluster.name(), cluster.unit);
            Ok(())
        }
        // What was there before may have been refused before.
        Err(why) => {
            log::warn!(PG_CLUSTER = cluster.name(); "cluster {}: {}", cluster.name(), why.message);
            Ok(())
        }
    }
}

fn finish(state: &mut State<Unfinished>) -> Result<()> {
    state.value = Unfinished::default();
    state.save().map_err(|e| Error::failed(format!("could not note that it is finished: {e}; the next run undoes it")))
}

/// Keeps SIGTERM, SIGINT and SIGHUP waiting until a run is at its end, which has a deadline on each of its steps. SIGKILL
/// is seen to by the next run.
fn uninterrupted() -> Result<impl Drop> {
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
