//! Commit-confirm: a change that comes back by itself unless it is confirmed in time, by the words of network devices.
//!
//! `/var/lib/pg-recovery/rollback/guard.json` says until when, and which recovery points come back;
//! pg-rollback-guard.service waits for that moment, also after a reboot.

use std::process::{Command, ExitStatus};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};
use shared::clock::{self, Stamp};
use shared::cluster::Cluster;
use shared::config::{Config, parse_duration};
use shared::exit::{self, Code};
use shared::lock::Lock;
use shared::{Error, Result, point, terminals, unit};

use crate::change::{self, Goal, Level};
use crate::restore::{self, Task, Uninterrupted};
use crate::server::Server;
use crate::{kept, rehearsal};

const SERVICE: &str = "pg-rollback-guard.service";
const FILE: &str = "guard.json";
const PATIENCE: Duration = Duration::from_secs(30);
/// How long a command may take to end that is told to.
const END: Duration = Duration::from_secs(10);
/// Nobody who is still at it needs longer, and whoever is not has forgotten it.
const LONGEST: Duration = Duration::from_secs(86_400);

#[derive(Clone, Debug, Deserialize, Serialize)]
struct Guard {
    since: Stamp,
    seconds: u64,
    held: Vec<Held>,
}

/// One cluster as it was when the guard began.
#[derive(Clone, Debug, Deserialize, Serialize)]
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
    fn load() -> Result<Option<Guard>> {
        kept::load(FILE)
    }

    /// Nothing of it has come back, and it is no other.
    fn is(&self, other: &Guard) -> bool {
        self.held.iter().map(|held| &held.point).eq(other.held.iter().map(|held| &held.point))
    }

    /// Since its time is over; `None`: it is not.
    fn overdue(&self) -> Option<Duration> {
        Stamp::now().since_with(&self.since, clock::uptime()).checked_sub(Duration::from_secs(self.seconds))
    }
}

/// Whoever takes away what would bring it back must wait for its end.
pub fn refuse_in_force() -> Result<()> {
    match Guard::load()? {
        None => Ok(()),
        Some(_) => Err(Error::failed("a change is under guard, and nothing would bring it back any more")
            .hint("Nothing was changed. pg-rollback confirm keeps what was changed under the guard.")),
    }
}

/// One at a time begins, ends or is confirmed.
fn lock() -> Result<Lock> {
    Lock::take("guard", PATIENCE)?.ok_or_else(|| {
        Error::with(Code::TempFail, "another pg-rollback is at work on the guard").hint("Try again when it has ended.")
    })
}

/// `guard TIME [-- COMMAND...]`
pub fn begin(words: &[String], clusters: &[Cluster], config: &Config) -> Result<Code> {
    let (time, command) = words.split_first().ok_or_else(|| {
        Error::usage("guard takes a time").hint("pg-rollback guard 10min -- COMMAND, or without a command")
    })?;
    let duration = parse_duration(time).filter(|time| !time.is_zero() && *time <= LONGEST).ok_or_else(|| {
        Error::usage(format!("\"{time}\" is no time between a second and a day")).hint("Write 10min or 1h.")
    })?;
    let locked = lock()?;
    if Guard::load()?.is_some() {
        return Err(
            Error::usage("a guard is in force already").hint("pg-rollback confirm ends it and keeps what was changed.")
        );
    }
    let held = clusters.iter().map(|cluster| hold(cluster, config)).collect::<Result<_>>()?;
    let mut guard = Guard { since: Stamp::now(), seconds: duration.as_secs(), held };
    let whole = Uninterrupted::begin()?;
    kept::save(FILE, &guard)?;
    // Nothing is run before the way back is sure.
    if let Err(e) = start_service() {
        kept::remove(FILE)?;
        return Err(e);
    }
    drop(locked);
    let confirm = format!("it comes back in {time} unless you type: pg-rollback confirm");
    if command.is_empty() {
        log::warn!("the configuration is under guard: {confirm}");
        return Ok(Code::Ok);
    }
    let status = run(command, &whole);
    // A reload that the command asked for is on its way.
    std::thread::sleep(Duration::from_secs(1));
    let _locked = lock()?;
    let failed = match &status {
        _ if !Guard::load()?.is_some_and(|now| now.is(&guard)) => {
            Some(format!("{} took longer than {time}, and the guard is over", command[0]))
        }
        Ok((Some(status), None)) if status.success() => health(&guard, clusters, config).err().map(|why| why.message),
        Ok((Some(status), None)) => Some(format!("{} ended with {status}", command[0])),
        Ok((Some(_), Some(signal))) => Some(format!("{} was interrupted by {signal}", command[0])),
        Ok((None, signal)) => {
            let signal = signal.map_or("a signal", Signal::as_str);
            let what = format!("interrupted by {signal}, and {} goes on in spite of it; {confirm}", command[0]);
            return Err(Error::failed(what));
        }
        Err(e) => Some(format!("could not run {}: {e}", command[0])),
    };
    let Some(why) = failed else {
        // The time is for looking at what was done, not for doing it.
        guard.since = Stamp::now();
        if let Err(why) = kept::save(FILE, &guard) {
            log::warn!("{}; the time runs since before {}", why.message, command[0]);
        }
        log::warn!("{} is done and the clusters are well; {confirm}", command[0]);
        return Ok(Code::Ok);
    };
    log::error!("{why}; coming back at once");
    come_back(&mut guard, clusters, config)?;
    Err(Error::failed(format!("the configuration is again as it was, because: {why}")))
}

/// The command to its end, and the signal that was to end this program meanwhile; no status: it goes on in spite of that.
/// Ctrl-C reaches the command by itself, which may mean something else by it.
fn run(words: &[String], whole: &Uninterrupted) -> std::io::Result<(Option<ExitStatus>, Option<Signal>)> {
    let mut command = Command::new(&words[0]);
    whole.release_in(command.args(&words[1..]));
    let signals = SignalFd::with_flags(&restore::signals(), SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?;
    let mut child = command.spawn()?;
    let mut told: Option<(Signal, Instant)> = None;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok((Some(status), told.map(|(signal, _)| signal)));
        }
        if let Some((signal, _)) = told.filter(|(_, at)| at.elapsed() > END) {
            return Ok((None, Some(signal)));
        }
        let signal = signals.read_signal()?.and_then(|info| Signal::try_from(info.ssi_signo as i32).ok());
        if let Some(signal) = signal.filter(|signal| *signal != Signal::SIGINT) {
            let _ = kill(Pid::from_raw(child.id() as i32), signal);
            told = Some((signal, Instant::now()));
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// A start that is only queued may be refused, or find a service that is about to end.
fn start_service() -> Result<()> {
    unit::restart(SERVICE)?;
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let state = unit::show_one(SERVICE)?;
        if state.active == "active" && state.main_pid != 0 && !state.job {
            return Ok(());
        }
        if Instant::now() > deadline {
            return Err(Error::failed(format!(
                "{SERVICE} does not run ({}), so nothing would come back",
                state.active
            ))
            .hint(format!("Nothing was changed. systemctl status {SERVICE}")));
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn hold(cluster: &Cluster, config: &Config) -> Result<Held> {
    restore::refuse_managed(cluster)?;
    let _lock = restore::take_lock(cluster)?;
    restore::settle(cluster, config)?;
    let now = change::now(cluster)?;
    if let Some(path) = change::fixed(cluster, &now)? {
        let owner = &cluster.owner.name;
        return Err(Error::failed(format!(
            "{} could not come back: {owner} may not write in its folder",
            path.display()
        ))
        .hint(
            "Nothing was changed. Give the folder to the owner of the cluster, or leave the cluster out by --cluster.",
        ));
    }
    let server = Server::find(cluster, config);
    let with_roles: Vec<_> = now.iter().cloned().chain(server.as_ref().and_then(Server::roles)).collect();
    let point = point::save(cluster, "guard", "a change is under guard", &with_roles)?;
    let sound = rehearsal::complaint(cluster, &now, &[]).is_ok_and(|complaint| complaint.is_none());
    let let_in = server.as_ref().is_some_and(|server| server.prove().is_ok_and(|proof| proof.let_in));
    let sound = sound && server.as_ref().is_none_or(|server| server.accept_rules().is_ok());
    let postmaster = server.map_or(0, |server| server.postmaster.started);
    Ok(Held { cluster: cluster.name(), point, postmaster, let_in, sound })
}

/// Whether each cluster is as well as it was, and would start with what is in its files now.
fn health(guard: &Guard, clusters: &[Cluster], config: &Config) -> Result<()> {
    for held in &guard.held {
        let bad = |why: &str| Error::failed(format!("cluster {}: {why}", held.cluster));
        let cluster = &held.find(clusters)?.again();
        if held.sound
            && let Some(complaint) = rehearsal::complaint(cluster, &change::now(cluster)?, &[])?
        {
            return Err(bad(&format!("it would not start with its configuration: {complaint}")));
        }
        if held.postmaster == 0 {
            continue;
        }
        let server = Server::find(cluster, config).ok_or_else(|| bad("it does not run any more"))?;
        if held.sound {
            server.accept_rules().map_err(|why| bad(&why.message))?;
        }
        let proof = server.prove().map_err(|why| bad(&why.message))?;
        if held.let_in && !proof.let_in {
            return Err(bad(&proof.message));
        }
    }
    Ok(())
}

impl Held {
    fn find<'a>(&self, clusters: &'a [Cluster]) -> Result<&'a Cluster> {
        clusters.iter().find(|cluster| cluster.name() == self.cluster).ok_or_else(|| {
            Error::failed(format!("cluster {} is under guard and not among the clusters here", self.cluster))
                .hint(format!("What it had is in recovery point {}.", self.point))
        })
    }
}

pub fn confirm(clusters: &[Cluster], config: &Config) -> Result<Code> {
    let _locked = lock()?;
    let Some(guard) = Guard::load()? else {
        return Err(Error::usage("no guard is in force, so there is nothing to confirm"));
    };
    health(&guard, clusters, config)
        .map_err(|why| why.hint("Not confirmed: repair that first, or let the guard bring back what was there."))?;
    kept::remove(FILE)?;
    log::warn!("confirmed: what was changed under the guard stays");
    Ok(Code::Ok)
}

/// What the service does: waits until the guard is confirmed, or brings back what was there.
pub fn watch(clusters: &[Cluster], config: &Config) -> Result<Code> {
    loop {
        let Some(guard) = Guard::load()? else { return Ok(Code::Ok) };
        if guard.overdue().is_none() {
            std::thread::sleep(Duration::from_millis(500));
            continue;
        }
        let _locked = lock()?;
        // It may have been confirmed meanwhile, or begun anew by a command that has ended.
        if let Some(mut guard) = Guard::load()?
            && let Some(overdue) = guard.overdue()
        {
            return time_is_over(&mut guard, overdue, clusters, config);
        }
    }
}

fn time_is_over(guard: &mut Guard, overdue: Duration, clusters: &[Cluster], config: &Config) -> Result<Code> {
    if overdue > LONGEST {
        let points: Vec<&str> = guard.held.iter().map(|held| held.point.as_str()).collect();
        let message = "a change under guard was never confirmed, more than a day ago; whoever has changed the \
                       configuration since meant it, so nothing is brought back";
        terminals::tell("pg-rollback", message);
        kept::remove(FILE)?;
        return Err(Error::failed(message).hint(format!("What was there is in {}.", points.join(", "))));
    }
    let message = "a change under guard was not confirmed in time; bringing back what was there";
    log::warn!("{message}");
    terminals::tell("pg-rollback", message);
    come_back(guard, clusters, config)?;
    Ok(Code::Ok)
}

/// Whatever is back is held no longer, so that a second try does not touch it.
fn come_back(guard: &mut Guard, clusters: &[Cluster], config: &Config) -> Result<()> {
    let mut codes = Vec::new();
    for held in guard.held.clone() {
        match one_back(&held, clusters, config) {
            Ok(()) => {
                guard.held.retain(|other| other.cluster != held.cluster);
                // Of no more use than to spare a second try this cluster.
                if !guard.held.is_empty()
                    && let Err(why) = kept::save(FILE, guard)
                {
                    log::warn!("{}", why.message);
                }
            }
            Err(error) => codes.push(exit::report(&error)),
        }
    }
    match Code::worst(codes.into_iter()) {
        Code::Ok => kept::remove(FILE),
        // The service tries again.
        code => Err(Error::with(code, "not everything came back yet").hint("The lines above say what.")),
    }
}

fn one_back(held: &Held, clusters: &[Cluster], config: &Config) -> Result<()> {
    let cluster = &held.find(clusters)?.again();
    let goal = Goal::find(&held.point)?;
    let server = Server::find(cluster, config);
    // What was restarted under the guard may need that again; what was not does not.
    let is_another = |server: &Server| server.postmaster.started != held.postmaster;
    let may_restart = held.postmaster != 0 && server.as_ref().is_some_and(is_another);
    let why = format!("back to {}, under guard", held.point);
    let task = Task { goal: &goal, level: Level::All, only: &[], may_restart, must_prove: false, why, keep: true };
    restore::back(cluster, config, &task)?;
    if held.postmaster != 0 && server.is_none() {
        // It ran, and does not; pg-recover knows whether it may be started, and proves it.
        unit::start("pg-recovery.service")?;
    }
    Ok(())
}
