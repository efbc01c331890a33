//! What is known about one cluster at one moment. Looking changes nothing.

use std::cell::{Cell, OnceCell};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use nix::fcntl::AtFlags;
use nix::unistd::{AccessFlags, faccessat};
use shared::certificate::{self, Left, describe_left};
use shared::client::{self, Address, Refusal, Session, Target};
use shared::clock::Stamp;
use shared::cluster::Cluster;
use shared::config::Config;
use shared::control::{Control, ControlError};
use shared::evidence::{self, Evidence};
use shared::exit::Code;
use shared::modes;
use shared::owner::Owner;
use shared::pidfile::LockFile;
use shared::point::{self, Copy};
use shared::prestart::{self, Obstacle};
use shared::process::{self, Family, Identity, Process};
use shared::standing::{self, Standing, Verdict};
use shared::unit::{self, UnitState};
use shared::{Error, Result, ballast, command, health, port, record, socket};

use crate::learn::Lessons;
use crate::{control_file, server_log};

/// Settings that are not put back to what they were: where the data is, and what makes a commit durable. A person who
/// changed one of them had a reason, and the old value might lose commits.
const NOT_OURS: &[&str] = &[
    "data_directory",
    "fsync",
    "full_page_writes",
    "synchronous_commit",
    "synchronous_standby_names",
    "wal_level",
    "archive_mode",
    "archive_command",
    "archive_library",
    "primary_conninfo",
    "primary_slot_name",
    "restore_command",
    "recovery_target",
    "recovery_target_time",
    "recovery_target_lsn",
    "recovery_target_name",
    "recovery_target_xid",
    "recovery_target_timeline",
    "data_checksums",
    "zero_damaged_pages",
    "ignore_checksum_failure",
];

/// One fsync on a busy disk, or one file from the archive, may take as long; pg-watchdog and pg-health-check wait so long
/// too.
pub const STARTUP_IS_STUCK: Duration = Duration::from_secs(60);

#[derive(Debug)]
pub struct Facts {
    pub standing: Standing,
    pub unit: UnitState,
    pub family: Family,
    pub lock_file: LockFile,
    /// What line 1 of the lock file leads to.
    pub lock_owner: Option<Identity>,
    /// The lock file of the postmaster that runs is not there any more: missing, or another in its place.
    pub lock_file_lost: bool,
    /// The saved copy of the lock file belongs to the postmaster that runs now.
    pub saved_lock_file: bool,
    pub control: Result<Control, ControlError>,
    /// pg_control is gone or damaged: is there a copy that may take its place, and if not, why?
    pub control_copy: Result<(), String>,
    pub connection: Result<(), Refusal>,
    /// Only looked at when there is no socket where a server that runs should have one.
    pub socket_lost: Option<SocketLost>,
    /// Does the process that has to move (startup process, postmaster) move? Only looked at when nobody is let in.
    pub moves: bool,
    /// The startup process waits for WAL from a primary or an archive: there is nothing to be moved by a restart.
    pub waits_for_wal: bool,
    /// Children of a postmaster that runs, stopped by a signal and by no debugger, seen twice.
    pub stopped_children: Vec<Process>,
    /// Somebody has hold of its processes on purpose; reads on from "it ".
    pub held: Option<&'static str>,
    /// Which volume takes no writes; only looked at when nobody is let in. Without a postmaster it is an obstacle.
    pub read_only: Option<String>,
    /// What the server has died of again and again since it was last well, without its postmaster ending: its disk.
    pub panics: Option<(&'static str, String)>,
    /// Why a start is not safe; only looked at when no postmaster runs.
    pub obstacles: Vec<Obstacle>,
    /// What in the data directory has a mode with which its owner cannot use it.
    pub wrong_modes: Vec<PathBuf>,
    /// What in the data directory belongs to somebody else so that its owner cannot use it, and what a person types then.
    pub foreign: Option<String>,
    /// Folders of the data directory that are missing and may be made anew.
    pub missing_folders: Vec<&'static str>,
    /// Bytes that can be given back on the volume of pg_wal, and would help there.
    pub ballast: u64,
    pub socket_directory: Result<(), String>,
    /// Who has the port instead; only looked at when no postmaster runs.
    pub port_taken: Option<String>,
    /// That of a server that runs, when it has expired or is about to.
    pub certificate: Option<Expiring>,
    /// What does not keep a server that runs from running, and a person should know.
    pub warnings: Vec<String>,
    pub configuration: Configuration,
    /// The server's last FATAL since it was last seen well, or since our own last start, and its class.
    pub failure: Option<(String, Option<&'static str>)>,
    /// pg-health-check has seen it down often enough to have it started although it was stopped cleanly.
    pub asked_by_checks: bool,
    /// The log says that it shut itself down because postmaster.pid was gone (P8).
    pub lock_file_was_lost: bool,
    /// systemd waits for a start that nobody works on any more.
    pub start_is_abandoned: bool,
    /// This or an interrupted run of this program stopped it.
    pub stopped_by_us: bool,
    /// This run has waited for systemd long enough.
    pub waited: bool,
    /// How often this run has tried to start it.
    pub starts: u32,
    /// How steps ended in earlier recoveries.
    pub learnt: Lessons,
    /// Earlier recoveries within `watchdog.quiet` that signalled or stopped it while it ran.
    pub disturbed: u32,
}

/// A certificate of which hardly anything is left.
#[derive(Clone, Debug)]
pub struct Expiring {
    pub seen: String,
    /// pg-cert-renew may renew it.
    pub renews: bool,
}

/// What there is to say of its certificate; `None` while enough is left, or when that cannot be told.
pub fn expiring(cluster: &Cluster, config: &Config) -> Option<Expiring> {
    let file = certificate::file_of(cluster)?;
    let validity = certificate::read(&cluster.owner, &file).ok()?;
    let now = Stamp::now().wall as i64;
    let left = validity.left(now, config.health.certificate_warn, config.health.certificate_fail);
    matches!(left, Left::Least | Left::Nothing).then(|| Expiring {
        seen: format!("certificate of {}: {}", validity.subject, describe_left(validity.until - now)),
        renews: certificate::is_renewed(&cluster.name(), &file, config),
    })
}

/// A server that runs has lost its socket.
#[derive(Clone, Debug)]
pub struct SocketLost {
    /// There is a second name that leads to its postmaster; if not, why.
    pub copy: Result<(), String>,
    /// What shows that the postmaster is well and has no socket anywhere; if not, why.
    pub alive: Result<String, String>,
    /// Sessions that a restart would disturb.
    pub at_work: usize,
}

/// How long a child stays stopped that nobody is about to continue.
const STAYS_STOPPED: Duration = Duration::from_millis(500);

fn stopped_children(family: &Family) -> Vec<Process> {
    // One whose parent is another process is none of this postmaster's; one in a frozen group is somebody's wish.
    let is_ours = |p: &Process| family.postmaster.as_ref().is_some_and(|postmaster| postmaster.pid == p.parent);
    let is_stopped = |p: &Process| p.is_stopped() && is_ours(p) && !p.is_traced() && !p.is_frozen();
    let mut stopped: Vec<Process> = family.children.iter().filter(|p| is_stopped(p)).cloned().collect();
    if !stopped.is_empty() {
        std::thread::sleep(STAYS_STOPPED);
        stopped.retain(|p| p.again().as_ref().is_some_and(is_stopped));
    }
    stopped
}

/// The configuration as the server would read it at its next start, against the last one it was seen to run with.
#[derive(Debug, Default)]
pub struct Configuration {
    /// What `postgres -C` says against it.
    pub error: Option<String>,
    /// Files that differ from the last good ones or are missing, and new ones that were not there.
    pub changed: Vec<PathBuf>,
    pub added: Vec<PathBuf>,
    /// Key and certificate, when content or mode of one is not what the server started with.
    pub tls: Vec<PathBuf>,
    /// Why the server's program could not be asked.
    pub unchecked: Option<String>,
    /// Settings among the differences that this program does not put back.
    pub not_ours: Vec<String>,
    pub has_good: bool,
}

/// What a run of this program knows beyond the cluster itself.
#[derive(Debug, Default)]
pub struct Memory {
    /// Length of the server log at our last step: what comes behind it is news.
    pub log_mark: Option<shared::server_log::Mark>,
    pub stopped_by_us: bool,
    pub starts: u32,
    pub waited: bool,
    /// Since when its start was seen to be abandoned.
    abandoned: Cell<Option<Instant>>,
    /// All files were looked at, which takes a while, and no mode was changed since.
    pub wrong_modes: OnceCell<Vec<PathBuf>>,
    pub learnt: Lessons,
    pub disturbed: u32,
}

impl Memory {
    /// systemd waits for a start that nobody works on any more, and not just for a moment.
    pub fn start_is_abandoned(&self, cluster: &Cluster, unit: &UnitState, family: &Family) -> bool {
        let is_now = unit.active == "activating" && unit::start_is_abandoned(&cluster.unit, family);
        self.abandoned.set(is_now.then(|| self.abandoned.get().unwrap_or_else(Instant::now)));
        self.abandoned.get().is_some_and(|since| since.elapsed() >= unit::ABANDONED)
    }

    /// What earlier runs have left.
    pub fn of(cluster: &str, config: &Config, verdict: &Verdict) -> Memory {
        let now = Stamp::now();
        let learnt = Lessons::of(&record::all(), cluster, &verdict.reset, now.wall as i64);
        let disturbed = verdict.disturbed.within(config.watchdog.quiet, &now);
        Memory { stopped_by_us: verdict.stopped_by_us, learnt, disturbed, ..Memory::default() }
    }
}

/// The cluster with all that lies on its volume: nothing is decided on half of it, so a slow disk is waited for.
pub fn whole(cluster: &Cluster, config: &Config, patience: Duration) -> Result<Cluster> {
    let (name, began) = (cluster.name(), Instant::now());
    let mut found = cluster.clone();
    if !found.is_whole {
        log::warn!(PG_CLUSTER = name; "cluster {name}: its volume does not answer in time; looking again");
    }
    while !found.is_whole {
        if began.elapsed() > patience {
            let what = format!("cannot look at cluster {name}: {} does not answer", found.data_directory.display());
            return Err(Error::with(Code::Unavailable, what).hint("Look at the volume that it is on."));
        }
        std::thread::sleep(Duration::from_secs(2));
        found = Cluster::select(config, std::slice::from_ref(&name))?.remove(0);
    }
    Ok(found)
}

pub fn look(cluster: &Cluster, config: &Config, memory: &Memory) -> Result<Facts> {
    let (unit, umbrella) = standing::units(cluster)?;
    let standing = standing::of(cluster, config, &unit, umbrella.as_ref());
    let evidence = evidence::load(&cluster.name());
    let (mut lock_file, _) = cluster.lock_file();
    let mut family = process::family(&cluster.data_directory, &cluster.owner)?;
    if !is_of(&lock_file, family.postmaster.as_ref()) {
        // A server that was started in between has written its own.
        lock_file = cluster.lock_file().0;
    }
    let lock_owner = match &lock_file {
        LockFile::Present(file) => Some(process::identify(file.pid, &cluster.data_directory, &cluster.owner)?),
        _ => None,
    };
    let lock_file_lost = is_lost(&lock_file, lock_owner.as_ref(), &family);
    let control = cluster.owner.act(|| Control::read(&cluster.data_directory))?.map(|(control, _)| control);
    let control_copy = match &control {
        Err(ControlError::Missing | ControlError::Corrupt(_)) => {
            let target = target(cluster, config, &lock_file);
            let recorded = control_file::recorded(evidence.clone(), &target, family.postmaster.as_ref());
            control_file::usable(cluster, recorded.as_ref(), family.postmaster.as_ref()).map(drop)
        }
        _ => Err("it is not needed".into()),
    };
    let stopped = family.postmaster.as_ref().is_some_and(|p| p.is_stopped());
    // A stopped process answers nobody; half a second is enough to be sure of it.
    let patience = if stopped { Duration::from_millis(500) } else { Duration::from_secs(2) };
    let switches = |family: &Family| family.postmaster.as_ref().and_then(|p| p.switches());
    let before = switches(&family);
    let running = if lock_file_lost { &LockFile::Missing } else { &lock_file };
    let mut connection = connect(cluster, config, running, patience);
    let is_starting = matches!(connection, Err(Refusal::Starting(_)));
    // A standby that lets nobody in (hot_standby = off) waits for WAL for as long as there is none.
    let waits_for_wal = is_starting && (is_standby(cluster)? || startup_waits(&family));
    let moves = match &connection {
        Err(Refusal::Starting(_)) => !waits_for_wal && startup_moves(&family, STARTUP_IS_STUCK),
        Err(refusal) if refusal.is_silence() && !stopped => {
            // A connection wakes a living postmaster, however busy the host is; three of them, over ten seconds.
            for _ in 0..2 {
                if connection.as_ref().is_err_and(Refusal::is_silence) {
                    std::thread::sleep(Duration::from_secs(1));
                    connection = connect(cluster, config, running, 2 * patience);
                }
            }
            switches(&family) != before
        }
        _ => false,
    };
    let socket_lost = match (&connection, &family.postmaster, running) {
        (Err(Refusal::NoSocket), Some(postmaster), LockFile::Present(file)) => {
            let port = file.port.unwrap_or_else(|| cluster.port());
            file.socket().map(|path| socket_lost(cluster, &path, port, postmaster, &family))
        }
        _ => None,
    };
    // The postmaster was looked at before the connections were made.
    family.postmaster = family.postmaster.and_then(|p| p.again());
    let stopped_children = stopped_children(&family);
    let held = if family.all().any(|p| p.is_traced()) {
        Some("is being debugged")
    } else if family.postmaster.as_ref().is_some_and(|p| p.is_frozen()) {
        Some("is frozen with its control group")
    } else {
        None
    };
    let down = family.postmaster.is_none();
    let obstacles = if down { prestart::obstacles(cluster, evidence.as_ref())? } else { Vec::new() };
    let configuration = if down { configuration(cluster)? } else { Configuration::default() };
    let recorded = || evidence.as_ref().map(|evidence| evidence.log.clone()).filter(|log| !log.is_empty());
    let since = memory.log_mark.clone().or_else(recorded);
    let since = since.unwrap_or_else(|| shared::server_log::lengths(cluster));
    let log = if down || connection.is_err() { shared::server_log::written(cluster, &since) } else { String::new() };
    Ok(Facts {
        read_only: if !down && connection.is_err() {
            cluster.owner.act(|| prestart::read_only(&cluster.data_directory))?
        } else {
            None
        },
        panics: shared::server_log::panics(&log).map(|(class, message)| (class, message.to_string())),
        saved_lock_file: saved_lock_file(cluster, &family),
        stopped_children,
        held,
        // Many files take a while, and a server that does not answer has another fault.
        wrong_modes: if down || connection.is_ok() { wrong_modes(cluster, memory)? } else { Vec::new() },
        asked_by_checks: asked_by_checks(cluster, config, evidence.as_ref()),
        socket_directory: socket_directory(cluster),
        port_taken: if down { port::taken(cluster) } else { None },
        certificate: connection.is_ok().then(|| expiring(cluster, config)).flatten(),
        warnings: match (&connection, &family.postmaster) {
            (Ok(()), Some(postmaster)) => half_deaf(cluster, postmaster).into_iter().chain(foreign(cluster)?).collect(),
            _ => Vec::new(),
        },
        foreign: if down { foreign(cluster)? } else { None },
        missing_folders: if down {
            cluster.owner.act(|| prestart::missing_folders(&cluster.data_directory))?
        } else {
            Vec::new()
        },
        ballast: if down && cluster.owner.act(|| prestart::bytes_would_help(&cluster.data_directory))? {
            ballast::size(cluster)?
        } else {
            0
        },
        start_is_abandoned: memory.start_is_abandoned(cluster, &unit, &family),
        stopped_by_us: memory.stopped_by_us,
        starts: memory.starts,
        learnt: memory.learnt.clone(),
        disturbed: memory.disturbed,
        waited: memory.waited,
        lock_file_lost,
        lock_file_was_lost: log.contains("data directory lock file is invalid"),
        failure: server_log::last_failure(&log, cluster.setting("log_line_prefix").unwrap_or("%m [%p] ")),
        standing,
        unit,
        family,
        lock_file,
        lock_owner,
        control,
        control_copy,
        connection,
        socket_lost,
        moves,
        waits_for_wal,
        obstacles,
        configuration,
    })
}

fn wrong_modes(cluster: &Cluster, memory: &Memory) -> Result<Vec<PathBuf>> {
    if let Some(known) = memory.wrong_modes.get() {
        return Ok(known.clone());
    }
    let found = modes::wrong(&cluster.data_directory, &cluster.owner)?;
    Ok(memory.wrong_modes.get_or_init(|| found).clone())
}

/// pg-health-check has counted enough failures, and pg-watchdog has not seen the cluster well since.
fn asked_by_checks(cluster: &Cluster, config: &Config, evidence: Option<&Evidence>) -> bool {
    let health = health::state(&cluster.name()).value;
    health.failures >= config.health.max_failures && !evidence.is_some_and(|e| e.at.is_after(&health.at, &Stamp::now()))
}

/// Names the first ones, whose they are, and the command that gives them back.
fn foreign(cluster: &Cluster) -> Result<Option<String>> {
    let (data, owner) = (&cluster.data_directory, &cluster.owner);
    let found = modes::foreign(data, owner)?;
    let Some((_, uid)) = found.first() else { return Ok(None) };
    let user = |uid: u32| Owner::of_uid(uid).map_or(format!("user {uid}"), |user| user.name);
    let shown: Vec<String> = found
        .iter()
        .take(3)
        .map(|(path, uid)| format!("{} belongs to {}", data.join(path).display(), user(*uid)))
        .collect();
    let more = if found.len() > 3 { format!(", and {} more", found.len() - 3) } else { String::new() };
    let give_back = format!("chown --no-dereference {}:", owner.name);
    // A name that a shell would take for more than a name is not for a command line.
    let is_plain =
        |path: &Path| path.to_str().is_some_and(|p| p.chars().all(|c| c.is_ascii_alphanumeric() || "/._-".contains(c)));
    let command = match &found[..] {
        [(path, _)] if is_plain(&data.join(path)) => format!("{give_back} {}", data.join(path).display()),
        _ => format!("find {} -xdev -user {uid} -exec {give_back} {{}} +", data.display()),
    };
    Ok(Some(format!(
        "{}{more}, not to {}, who cannot use it; to give it back: {command}",
        shown.join(", "),
        owner.name
    )))
}

/// Addresses on which clients of this server reach somebody else (P10).
pub fn half_deaf(cluster: &Cluster, postmaster: &Process) -> Vec<String> {
    let told = |other| format!("it does not listen wherever it should: {other}");
    port::others(cluster, postmaster.pid).into_iter().map(told).collect()
}

/// The target that our own sessions use: the cluster's socket, its owner's role.
pub fn target(cluster: &Cluster, config: &Config, lock_file: &LockFile) -> Target {
    let running = if let LockFile::Present(file) = lock_file { Some(file) } else { None };
    Target::of(cluster, running, &config.health.database, "pg-recover")
}

/// Is a fresh connection let in and answered?
pub fn connect(cluster: &Cluster, config: &Config, lock_file: &LockFile, patience: Duration) -> Result<(), Refusal> {
    match ask(&target(cluster, config, lock_file), "SELECT 1", patience) {
        Err(why) if why.is_ours_alone() => Ok(()),
        answer => answer.map(drop),
    }
}

/// Asks in a session of its own.
pub fn ask(target: &Target, sql: &str, patience: Duration) -> Result<client::Rows, Refusal> {
    let runtime = client::runtime().map_err(|e| Refusal::Broken(e.to_string()))?;
    runtime.block_on(async { Session::connect(target, patience).await?.query(sql, patience).await })
}

pub fn startup_waits(family: &Family) -> bool {
    family.children.iter().any(|p| p.title().contains(": startup waiting for"))
}

/// Crash recovery moves when the startup process uses CPU time or shows another WAL segment in its title.
pub fn startup_moves(family: &Family, patience: Duration) -> bool {
    let Some(startup) = family.children.iter().find(|p| p.title().contains(": startup")) else {
        // The postmaster has not started it yet, or it has just ended: that is movement too.
        return family.postmaster.is_some();
    };
    let mark = |process: &Process| (process.cpu, process.title());
    let before = mark(startup);
    let deadline = Instant::now() + patience;
    while Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(100));
        match startup.again() {
            Some(now) if mark(&now) == before => {}
            _ => return true,
        }
    }
    false
}

fn socket_lost(cluster: &Cluster, path: &Path, port: u16, postmaster: &Process, family: &Family) -> SocketLost {
    // A server with PrivateTmp= has its own /tmp.
    let in_its_world = format!("/proc/{}/root{}", postmaster.pid, path.display());
    let alive = if Path::new(&in_its_world).symlink_metadata().is_ok() {
        Err(format!("{} is there, but only for the server itself", path.display()))
    } else if let Some(address) = cluster.tcp_addresses().into_iter().find(|a| answers_at(cluster, a, port)) {
        Ok(format!("it answers on {address}"))
    } else if socket::is_bound_by(path, postmaster) {
        Ok(format!("it listens on {}, which is gone", path.display()))
    } else {
        Err("it cannot be told whether it listens anywhere".into())
    };
    SocketLost {
        copy: socket::leads_to(cluster, postmaster),
        alive,
        at_work: family.children.iter().filter(|child| child.is_session_at_work()).count(),
    }
}

/// Whatever it answers: only a server that lives does.
fn answers_at(cluster: &Cluster, address: &str, port: u16) -> bool {
    let target =
        Target { address: Address::Tcp(address.into(), port), ..Target::of(cluster, None, "postgres", "pg-recover") };
    let Ok(runtime) = client::runtime() else { return false };
    let answer = runtime.block_on(Session::connect(&target, Duration::from_secs(2)));
    // A name that is still being looked up must not keep the run from its end.
    runtime.shutdown_background();
    answer.err().is_none_or(|refusal| refusal.is_answer())
}

/// It names this postmaster.
fn is_of(lock_file: &LockFile, postmaster: Option<&Process>) -> bool {
    matches!((lock_file, postmaster), (LockFile::Present(file), Some(postmaster)) if file.pid == postmaster.pid)
}

/// A postmaster runs, and its lock file is not there. What names another postmaster of the same folder, or something
/// that cannot be told, is not judged here.
fn is_lost(lock_file: &LockFile, lock_owner: Option<&Identity>, family: &Family) -> bool {
    let Some(postmaster) = &family.postmaster else { return false };
    match lock_file {
        LockFile::Missing | LockFile::Empty | LockFile::Garbage => true,
        LockFile::Unreadable(_) => false,
        LockFile::Present(file) => match lock_owner {
            Some(Identity::Ours) => family.children.iter().any(|child| child.pid == file.pid),
            Some(Identity::Unclear) | None => false,
            Some(Identity::Dead | Identity::Zombie | Identity::Foreign(_)) => file.pid != postmaster.pid,
        },
    }
}

fn is_standby(cluster: &Cluster) -> Result<bool> {
    cluster.owner.act(|| cluster.data_directory.join("standby.signal").exists())
}

/// The copy that pg-watchdog saved names the postmaster that runs.
fn saved_lock_file(cluster: &Cluster, family: &Family) -> bool {
    let copy = shared::state::read(&evidence::directory(&cluster.name()).join(shared::pidfile::NAME), 8192);
    let (Ok(bytes), Some(postmaster)) = (copy, &family.postmaster) else { return false };
    matches!(LockFile::parse(&bytes), LockFile::Present(file)
        if file.pid == postmaster.pid && file.data_directory.canonicalize().is_ok_and(|d| d == cluster.data_directory))
}

fn socket_directory(cluster: &Cluster) -> Result<(), String> {
    let directory = cluster.socket_directory();
    let access = cluster.owner.act(|| {
        faccessat(nix::fcntl::AT_FDCWD, &directory, AccessFlags::W_OK | AccessFlags::X_OK, AtFlags::AT_EACCESS)
    });
    match access {
        Ok(Ok(())) => Ok(()),
        Ok(Err(e)) => Err(format!(
            "the socket directory {} cannot be written by {}: {}",
            directory.display(),
            cluster.owner.name,
            e.desc()
        )),
        Err(e) => Err(e.message),
    }
}

fn configuration(cluster: &Cluster) -> Result<Configuration> {
    let (error, unchecked) = match check(cluster) {
        Ok(error) => (error, None),
        Err(why) => (None, Some(why)),
    };
    let mut found = Configuration { error, unchecked, ..Configuration::default() };
    let Some(good) = point::newest(&cluster.name(), "good") else { return Ok(found) };
    found.has_good = true;
    let (tls, good): (Vec<Copy>, Vec<Copy>) = good.into_iter().partition(|copy| copy.tls);
    let is_as_it_was = |copy: &Copy| {
        let now = point::read(cluster, std::slice::from_ref(&copy.path)).unwrap_or_default();
        now.first().is_some_and(|now| (&now.bytes, now.mode) == (&copy.bytes, copy.mode))
    };
    // They belong together: both are put back, or none.
    if !tls.iter().all(is_as_it_was) {
        found.tls = tls.into_iter().map(|copy| copy.path).collect();
    }
    let files = point::files(cluster);
    // One file that cannot be read must not hide the others.
    let now: Vec<Copy> =
        files.iter().filter_map(|f| point::read(cluster, std::slice::from_ref(f)).ok()).flatten().collect();
    compare(&good, &now, &mut found);
    // What is included from elsewhere is read no longer when the file that names it is as it was.
    found.added.retain(|path| path.starts_with(&cluster.config_directory));
    Ok(found)
}

fn compare(good: &[Copy], now: &[Copy], found: &mut Configuration) {
    let of = |copies: &[Copy], path: &Path| copies.iter().find(|c| c.path == *path).map(|c| c.bytes.clone());
    for copy in good {
        let current = of(now, &copy.path);
        if current.as_ref() != Some(&copy.bytes) {
            // Missing, empty or full of NUL bytes (a crash of the file system leaves those): nobody wrote that on purpose.
            if let Some(text) = current.filter(|text| !text.is_empty() && !text.contains(&0)) {
                found.not_ours.extend(not_ours(&copy.bytes, &text));
            }
            found.changed.push(copy.path.clone());
        }
    }
    for copy in now.iter().filter(|c| of(good, &c.path).is_none()) {
        found.not_ours.extend(not_ours(&[], &copy.bytes));
        found.added.push(copy.path.clone());
    }
    found.not_ours.sort();
    found.not_ours.dedup();
}

/// Settings of the list that have another value in one text than in the other.
fn not_ours(old: &[u8], new: &[u8]) -> Vec<String> {
    let value = |text: &[u8], name: &str| {
        let text = String::from_utf8_lossy(text);
        text.lines().filter_map(shared::cluster::parse_line).filter(|(n, _)| n == name).map(|(_, v)| v).next_back()
    };
    NOT_OURS
        .iter()
        .filter(|name| match (value(old, name), value(new, name)) {
            // More WAL than before loses nothing, and "minimal" is what keeps a server with a standby from starting.
            (None, Some(level)) if **name == "wal_level" => level != "minimal",
            (Some(had), Some(level)) if **name == "wal_level" => {
                had != level && (had == "minimal" || level != "minimal")
            }
            (had, has) => had != has,
        })
        .map(|name| name.to_string())
        .collect()
}

/// Asks the server's own program what it makes of the configuration; it starts nothing and reads no data.
fn check(cluster: &Cluster) -> Result<Option<String>, String> {
    use std::os::unix::process::CommandExt;
    let mut command = Command::new(cluster.bin_directory.join("postgres"));
    command
        .arg("-D")
        .arg(&cluster.data_directory)
        .args(["-C", "data_directory"])
        .arg("-c")
        .arg(format!("config_file={}", cluster.config_directory.join("postgresql.conf").display()))
        .env_clear()
        .env("LC_ALL", "C")
        .current_dir("/");
    if nix::unistd::Uid::effective().is_root() {
        command.uid(cluster.owner.uid.as_raw()).gid(cluster.owner.gid.as_raw());
    }
    match command::run(&mut command, Duration::from_secs(10)) {
        Ok(out) if out.status.success() => Ok(None),
        // Killed, or one of the codes of those who could not start it.
        Ok(out) if out.status.code().is_none_or(|code| code > 2) => {
            Err(format!("postgres -C ended with {}", out.status))
        }
        Ok(out) => Ok(Some(out.stderr.trim().to_string())),
        Err(e) => Err(format!("could not run postgres -C: {e}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn copy(path: &str, text: &str) -> Copy {
        Copy { path: path.into(), mode: 0o644, bytes: text.into(), ..Copy::default() }
    }

    #[test]
    fn a_changed_a_missing_and_a_new_file_are_told_apart() {
        let good = [copy("/a", "x = 1\n"), copy("/b", "y = 1\n"), copy("/same", "")];
        let now = [copy("/a", "x = 2\n"), copy("/same", ""), copy("/new", "z = 1\n")];
        let mut found = Configuration::default();
        compare(&good, &now, &mut found);
        assert_eq!(found.changed, [PathBuf::from("/a"), "/b".into()]);
        assert_eq!(found.added, [PathBuf::from("/new")]);
        assert!(found.not_ours.is_empty());
    }

    #[test]
    fn settings_that_make_commits_durable_are_noticed() {
        let mut found = Configuration::default();
        compare(&[copy("/a", "fsync = on\nport = 1")], &[copy("/a", "port = 2\nsynchronous_commit = off")], &mut found);
        assert_eq!(found.not_ours, ["fsync", "synchronous_commit"]);
        let wal_level = |old: &str, new: &str| not_ours(old.as_bytes(), new.as_bytes()).len();
        assert_eq!(wal_level("", "wal_level = minimal"), 0);
        assert_eq!(wal_level("wal_level = logical", "wal_level = 'minimal'"), 0);
        assert_eq!(wal_level("wal_level = minimal", "wal_level = replica"), 1);
        assert_eq!(wal_level("wal_level = logical", ""), 1);
    }
}
