//! Commit-confirm: a change that comes back by itself unless it is confirmed in time, by the words of network devices.
//!
//! `/var/lib/pg-recovery/rollback/guard.json` says until when, and which recovery points come back;
//! pg-rollback-guard.service waits for that moment, also after a reboot.

use std::process::Command;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use shared::clock::Stamp;
use shared::cluster::Cluster;
use shared::config::{Config, parse_duration};
use shared::exit::{self, Code};
use shared::state::State;
use shared::{Error, Result, point, terminals, unit};

use crate::change::{self, Level};
use crate::rehearsal;
use crate::restore::{self, Task};
use crate::server::Server;

const SERVICE: &str = "pg-rollback-guard.service";
/// Nobody who is still at it needs longer, and whoever is not has forgotten it.
const LONGEST: Duration = Duration::from_secs(86_400);

#[derive(Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default)]
struct Guard {
    since: Stamp,
    /// 0: no guard is in force.
    seconds: u64,
    held: Vec<Held>,
}

/// One cluster as it was when the guard began.
#[derive(Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default)]
struct Held {
    cluster: String,
    point: String,
    /// When its postmaster was started, in clock ticks since boot; 0: it did not run.
    postmaster: u64,
    /// Our role was let in, and committed.
    let_in: bool,
    /// It would have started with its configuration.
    sound: bool,
}

impl Guard {
    fn load() -> State<Guard> {
        State::load("rollback/guard.json")
    }

    fn left(&self, now: &Stamp) -> Duration {
        Duration::from_secs(self.seconds).saturating_sub(now.since(&self.since))
    }
}

/// `guard TIME [-- COMMAND...]`
pub fn begin(words: &[String], clusters: &[Cluster], config: &Config) -> Result<Code> {
    let (time, command) = words.split_first().ok_or_else(|| {
        Error::usage("guard takes a time").hint("pg-rollback guard 10min -- COMMAND, or without a command")
    })?;
    let duration = parse_duration(time).filter(|time| !time.is_zero() && *time <= LONGEST).ok_or_else(|| {
        Error::usage(format!("\"{time}\" is no time between a second and a day")).hint("Write 10min or 1h.")
    })?;
    let mut guard = Guard::load();
    if guard.value.seconds > 0 {
        let left = guard.value.left(&Stamp::now()).as_secs();
        return Err(Error::usage(format!("a guard is in force already, for another {left}s"))
            .hint("pg-rollback confirm ends it and keeps what was changed."));
    }
    let mut held = Vec::new();
    for cluster in clusters {
        held.push(hold(cluster, config)?);
    }
    guard.value = Guard { since: Stamp::now(), seconds: duration.as_secs(), held };
    guard.save().map_err(|e| Error::failed(format!("could not begin a guard: {e}")))?;
    // Nothing is run before the way back is sure.
    if let Err(e) = unit::start(SERVICE) {
        end(&mut guard)?;
        return Err(e);
    }
    let confirm = format!("it comes back in {time} unless you type: pg-rollback confirm");
    if command.is_empty() {
        log::warn!("the configuration is under guard: {confirm}");
        return Ok(Code::Ok);
    }
    let status = Command::new(&command[0]).args(&command[1..]).status();
    let failed = match &status {
        Ok(status) if status.success() => health(&guard.value, clusters, config).err().map(|why| why.message),
        Ok(status) => Some(format!("{} ended with {status}", command[0])),
        Err(e) => Some(format!("could not run {}: {e}", command[0])),
    };
    let Some(why) = failed else {
        log::warn!("{} is done and the clusters are well; {confirm}", command[0]);
        return Ok(Code::Ok);
    };
    log::error!("{why}; coming back at once");
    come_back(&mut guard, clusters, config)?;
    Err(Error::failed(format!("the configuration is again as it was, because: {why}")))
}

fn hold(cluster: &Cluster, config: &Config) -> Result<Held> {
    restore::refuse_managed(cluster)?;
    let now = change::now(cluster)?;
    let point = point::save(cluster, "guard", "a change is under guard", &now)?;
    let sound = rehearsal::complaint(cluster, &now, &[]).is_ok_and(|complaint| complaint.is_none());
    let server = Server::find(cluster, config);
    let let_in = server.as_ref().is_some_and(|server| server.prove().is_ok_and(|proof| proof.let_in));
    let postmaster = server.map_or(0, |server| server.postmaster.started);
    Ok(Held { cluster: cluster.name(), point, postmaster, let_in, sound })
}

/// Whether each cluster is as well as it was, and would start with what is in its files now.
fn health(guard: &Guard, clusters: &[Cluster], config: &Config) -> Result<()> {
    for (held, cluster) in held(guard, clusters) {
        let bad = |why: &str| Error::failed(format!("cluster {}: {why}", held.cluster));
        let cluster = &cluster.again();
        if held.sound
            && let Some(complaint) = rehearsal::complaint(cluster, &change::now(cluster)?, &[])?
        {
            return Err(bad(&format!("it would not start with its configuration: {complaint}")));
        }
        if held.postmaster == 0 {
            continue;
        }
        let server = Server::find(cluster, config).ok_or_else(|| bad("it does not run any more"))?;
        let proof = server.prove().map_err(|why| bad(&why.message))?;
        if held.let_in && !proof.let_in {
            return Err(bad(&proof.message));
        }
    }
    Ok(())
}

fn held<'a>(guard: &'a Guard, clusters: &'a [Cluster]) -> impl Iterator<Item = (&'a Held, &'a Cluster)> {
    guard.held.iter().filter_map(|held| Some((held, clusters.iter().find(|c| c.name() == held.cluster)?)))
}

pub fn confirm(clusters: &[Cluster], config: &Config) -> Result<Code> {
    let mut guard = Guard::load();
    if guard.value.seconds == 0 {
        return Err(Error::usage("no guard is in force, so there is nothing to confirm"));
    }
    health(&guard.value, clusters, config)
        .map_err(|why| why.hint("Not confirmed: repair that first, or let the guard bring back what was there."))?;
    end(&mut guard)?;
    log::warn!("confirmed: what was changed under the guard stays");
    Ok(Code::Ok)
}

/// What the service does: waits until the guard is confirmed, or brings back what was there.
pub fn watch(clusters: &[Cluster], config: &Config) -> Result<Code> {
    loop {
        let mut guard = Guard::load();
        if guard.value.seconds == 0 {
            return Ok(Code::Ok);
        }
        if guard.value.left(&Stamp::now()).is_zero() {
            let message = "a change under guard was not confirmed in time; bringing back what was there";
            log::warn!("{message}");
            terminals::tell("pg-rollback", message);
            come_back(&mut guard, clusters, config)?;
            return Ok(Code::Ok);
        }
        std::thread::sleep(Duration::from_millis(500));
    }
}

fn come_back(guard: &mut State<Guard>, clusters: &[Cluster], config: &Config) -> Result<()> {
    let mut codes = Vec::new();
    for (held, cluster) in held(&guard.value, clusters) {
        let cluster = &cluster.again();
        let came_back = point::find(&held.point).and_then(|(_, goal)| {
            let server = Server::find(cluster, config);
            // What was restarted under the guard may need that again; what was not does not.
            let is_another = |server: &Server| server.postmaster.started != held.postmaster;
            let may_restart = held.postmaster != 0 && server.as_ref().is_some_and(is_another);
            let why = format!("back to {}, under guard", held.point);
            let code =
                restore::back(cluster, config, &Task { goal: &goal, level: Level::All, only: &[], may_restart, why });
            if held.postmaster != 0 && server.is_none() {
                // It ran, and does not; pg-recover knows whether it may be started, and proves it.
                unit::start("pg-recovery.service")?;
            }
            code
        });
        codes.push(came_back.unwrap_or_else(|error| exit::report(&error)));
    }
    match Code::worst(codes.into_iter()) {
        Code::Ok => end(guard),
        // The service tries again.
        code => Err(Error::with(code, "not everything came back").hint("The lines above say what; pg-rollback list")),
    }
}

fn end(guard: &mut State<Guard>) -> Result<()> {
    guard.value = Guard::default();
    guard.save().map_err(|e| Error::failed(format!("could not end the guard: {e}")))
}
