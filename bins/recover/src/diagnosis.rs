//! Facts -> diagnosis. Pure: the same facts always give the same answer, and the answer says what it rests on.

use serde::Serialize;
use shared::client::Refusal;
use shared::config::{Config, OnCleanStop, SocketRestart};
use shared::control::{ControlError, DbState};
use shared::meaning;
use shared::pidfile::LockFile;
use shared::process::{Identity, Process};
use shared::standing::Standing;

use crate::facts::{Facts, STARTUP_IS_STUCK, SocketLost};

/// What is wrong, by the classes of the fault table in the README. What is not among them is `Unknown`.
#[derive(Clone, Debug, PartialEq)]
pub enum Fault {
    /// It runs and answers.
    Well,
    /// Somebody decided that nothing may be done now.
    LeftAlone(String),
    /// Starting, stopping or replaying WAL, and moving.
    Moving,
    /// systemd is at work on the unit, the kernel on the dead postmaster, or the server on its sessions; over in a moment.
    Settling,
    /// O1: stopped in its own time; the slow layer may have it started again.
    StoppedOnPurpose,
    /// O1 after the slow layer has waited: stopped cleanly, meant to run, nothing in the way.
    Down,
    /// P1: the postmaster died and left nothing in the way.
    Killed,
    /// M1: the same, after the OOM killer ended a process of it.
    OutOfMemory,
    /// P1: the postmaster died while it was started, and systemd goes on waiting for that start.
    AbandonedStart,
    /// P2: SIGSTOP, or nothing happens any more.
    Stopped,
    /// P3: SIGSTOP to children of a postmaster that is well.
    ChildStopped,
    Hung,
    /// P6: the lock file is empty or garbage, and nobody owns it.
    BadLockFile,
    /// P7: the lock file names a process that is none of ours.
    RecycledPid,
    /// P8: the lock file was removed or replaced under a running postmaster.
    LockFileGone,
    /// P9: children outlive their postmaster.
    Orphans,
    /// P11
    SocketDirectory,
    /// P12: the socket of a server that runs is gone. It has a second name, or the server may be restarted for it.
    SocketGone {
        copy: bool,
        restart: bool,
    },
    /// S9: pg_control is missing or damaged, and there is a copy that WAL proves to be good enough.
    ControlFile,
    /// S2: no room for WAL, and some that can be given back.
    NoRoom,
    /// S8: folders of the data directory are missing that are empty by design.
    MissingFolders,
    /// S11: WAL that was flushed is not there. Nothing is done about it without a person's approval.
    WalMissing,
    /// S7: owner or mode of the data directory, or mode of something in it.
    Mode,
    /// C1 to C5: the configuration, or the TLS key and certificate in it, does not let it start.
    Configuration(&'static str),
    /// C6: it serves, with a certificate that has expired or is about to. Something can renew it.
    Certificate {
        renews: bool,
    },
    /// T5: the same fault again, after it was helped as often within an hour as a server that runs may be disturbed.
    InTurns(&'static str),
    /// Recognised, and nothing that this program repairs.
    NotOurs(&'static str),
    Unknown,
}

impl Fault {
    pub fn class(&self) -> &'static str {
        match self {
            Fault::Well => "none",
            Fault::LeftAlone(_) | Fault::StoppedOnPurpose | Fault::Down => "O1",
            Fault::Moving | Fault::Settling => "H2",
            Fault::Killed | Fault::AbandonedStart => "P1",
            Fault::OutOfMemory => "M1",
            Fault::Stopped | Fault::Hung => "P2",
            Fault::ChildStopped => "P3",
            Fault::BadLockFile => "P6",
            Fault::RecycledPid => "P7",
            Fault::LockFileGone => "P8",
            Fault::Orphans => "P9",
            Fault::SocketDirectory => "P11",
            Fault::SocketGone { .. } => "P12",
            Fault::ControlFile => "S9",
            Fault::NoRoom => "S2",
            Fault::MissingFolders => "S8",
            Fault::WalMissing => "S11",
            Fault::Mode => "S7",
            Fault::Certificate { .. } => "C6",
            Fault::Configuration(class) | Fault::InTurns(class) | Fault::NotOurs(class) => class,
            Fault::Unknown => "unknown",
        }
    }

    /// For people; reads on from "cluster 16/main: ".
    pub fn describe(&self) -> String {
        let text = match self {
            Fault::Well => "it runs and answers",
            Fault::LeftAlone(why) => return format!("it {why}, leaving it alone"),
            Fault::Settling => "systemd or the server itself is at work on it; leaving it alone",
            Fault::Moving => "it is starting, stopping, replaying WAL or busy; leaving it alone",
            Fault::StoppedOnPurpose => "it was stopped on purpose, leaving it alone",
            Fault::Down => "it was stopped cleanly although it is meant to run",
            Fault::Killed => "the postmaster is dead",
            Fault::AbandonedStart => "the postmaster died while it was started, and systemd goes on waiting for it",
            Fault::OutOfMemory => "the OOM killer ended a process of it, and the server with it",
            Fault::Stopped => "the postmaster was stopped by a signal",
            Fault::ChildStopped => "processes of the server were stopped by a signal",
            Fault::Hung => "the postmaster hangs",
            Fault::BadLockFile => "postmaster.pid is damaged and nobody's",
            Fault::RecycledPid => "postmaster.pid names a process of somebody else",
            Fault::LockFileGone => "postmaster.pid was removed or replaced under the running server",
            Fault::Orphans => "processes of the dead postmaster live on",
            Fault::SocketDirectory => "the socket directory cannot be used",
            Fault::SocketGone { copy: false, restart: false } => {
                "its socket is gone while it runs, only a restart makes it anew, and now is not the time"
            }
            Fault::SocketGone { .. } => "its socket is gone while it runs",
            Fault::MissingFolders => "folders of the data directory are missing that are empty by design",
            Fault::Mode => "the data directory has the wrong owner or mode, or something in it the wrong mode",
            Fault::Configuration(_) => "the configuration does not let it start",
            Fault::Certificate { .. } => "its certificate has expired or is about to",
            Fault::NoRoom => "there is no room for WAL",
            Fault::ControlFile => "pg_control is missing or damaged",
            Fault::InTurns(_) => {
                "it serves and does not serve in turns, and was helped so often that it is left as it is for a while"
            }
            Fault::NotOurs(_) | Fault::WalMissing => {
                meaning::of(self.class()).map_or("this is a fault that wants a person", |row| row.means)
            }
            Fault::Unknown => "nothing that this program knows explains what it sees",
        };
        format!("{text} ({})", self.class())
    }
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Diagnosis {
    #[serde(serialize_with = "class")]
    pub fault: Fault,
    pub evidence: Vec<String>,
}

fn class<S: serde::Serializer>(fault: &Fault, s: S) -> Result<S::Ok, S::Error> {
    s.serialize_str(fault.class())
}

pub fn diagnose(facts: &Facts, config: &Config, cluster: &str) -> Diagnosis {
    let mut evidence = Vec::new();
    if let Standing::Left(why) = &facts.standing {
        return Diagnosis { fault: Fault::LeftAlone(why.clone()), evidence: vec![why.clone()] };
    }
    let fault = if facts.family.postmaster.is_some() {
        running(facts, config, &mut evidence)
    } else {
        down(facts, config, cluster, &mut evidence)
    };
    let fault = in_turns(fault, facts, config, &mut evidence);
    evidence.extend(facts.learnt.resting(fault.class()));
    Diagnosis { fault, evidence }
}

/// To help the same server for ever may undo what somebody does on purpose again and again, such as a script that stops it
/// for a copy; and each restart costs every session. Wrongly diagnosed, it waits for a person, or for the rest of the hour.
fn in_turns(fault: Fault, facts: &Facts, config: &Config, evidence: &mut Vec<String>) -> Fault {
    let disturbs = match fault {
        Fault::Stopped | Fault::Hung | Fault::ChildStopped => true,
        Fault::SocketGone { copy, restart } => restart && !copy,
        _ => false,
    };
    if !disturbs || facts.stopped_by_us || facts.disturbed < config.recover.max_attempts {
        return fault;
    }
    let minutes = config.watchdog.quiet.as_secs() / 60;
    evidence.push(format!("{} before was helped {} times within {minutes}min", fault.describe(), facts.disturbed));
    Fault::InTurns(fault.class())
}

/// A postmaster runs.
fn running(facts: &Facts, config: &Config, evidence: &mut Vec<String>) -> Fault {
    let Some(postmaster) = &facts.family.postmaster else { return Fault::Unknown };
    evidence.push(format!("postmaster PID {} runs, state {}", postmaster.pid, postmaster.state));
    match &facts.connection {
        Ok(()) => evidence.push("a fresh connection is answered".into()),
        Err(refusal) => evidence.push(format!("a fresh connection is not: {refusal}")),
    }
    if let Some(held) = facts.held {
        evidence.push(format!("it {held}"));
        return Fault::LeftAlone(held.into());
    }
    let silent = facts.connection.as_ref().is_err_and(Refusal::is_silence);
    let answered = facts.connection.as_ref().err().is_none_or(Refusal::is_answer);
    // A start of pg_ctlcluster waits for ever beside a server whose lock file is lost.
    let may_be_ending = facts.unit.active == "deactivating" || (facts.unit.job && facts.connection.is_err());
    if let Some(class) = storage_fails(facts, evidence).filter(|_| !postmaster.is_stopped()) {
        return Fault::NotOurs(class);
    }
    match &facts.connection {
        // Silent, or without its sockets because the signal met it while it was starting or stopping.
        _ if postmaster.is_stopped() && !answered => Fault::Stopped,
        // A server that ends takes its sockets and its lock file away itself, and is gone a moment later.
        _ if facts.lock_file_lost && (may_be_ending || !(answered || silent || facts.waited)) => {
            evidence.push("postmaster.pid is not its own, and it is on its way out or has just begun".into());
            Fault::Settling
        }
        // Within a minute the server itself would notice, and shut down.
        _ if facts.lock_file_lost => {
            evidence.push(match &facts.lock_file {
                LockFile::Present(file) => format!("postmaster.pid names PID {}", file.pid),
                LockFile::Missing => "postmaster.pid is missing".into(),
                _ => "postmaster.pid names no process".into(),
            });
            Fault::LockFileGone
        }
        Ok(()) => match (&facts.control, &facts.control_copy) {
            (Err(why @ (ControlError::Missing | ControlError::Corrupt(_))), copy) => {
                evidence.push(why.to_string());
                // Its next checkpoint would end the server.
                copy.as_ref().map_or_else(
                    |why| {
                        evidence.push(why.clone());
                        Fault::NotOurs("S9")
                    },
                    |()| Fault::ControlFile,
                )
            }
            _ if !facts.stopped_children.is_empty() => child_stopped(facts, evidence),
            _ if !facts.wrong_modes.is_empty() => {
                evidence.push(describe_modes(facts));
                Fault::Mode
            }
            _ => match &facts.certificate {
                // It serves all who do not verify it. Wrongly diagnosed, pg-cert-renew looks and finds nothing to do.
                Some(certificate) => {
                    evidence.push(certificate.seen.clone());
                    Fault::Certificate { renews: certificate.renews }
                }
                None => Fault::Well,
            },
        },
        // Its stop waits for them, and systemd for its stop.
        Err(_) if is_stopping(facts) && !facts.stopped_children.is_empty() => child_stopped(facts, evidence),
        Err(Refusal::Starting(_)) if facts.moves || facts.waits_for_wal || facts.stopped_by_us => {
            let seen = match () {
                () if facts.waits_for_wal => "its startup process waits for WAL from elsewhere",
                () if facts.moves => "its startup process moves",
                () => "it begins to run after it was stopped to be repaired",
            };
            evidence.push(seen.into());
            Fault::Moving
        }
        Err(Refusal::Starting(_)) if !facts.stopped_children.is_empty() => child_stopped(facts, evidence),
        Err(Refusal::Starting(_)) => {
            evidence.push(format!("its startup process did not move for {}s", STARTUP_IS_STUCK.as_secs()));
            Fault::NotOurs("S5")
        }
        Err(Refusal::OutOfSlots(_)) => Fault::NotOurs("L1"),
        // A server that ends its sessions after the crash of one of them takes new ones in a moment later.
        Err(refusal) if refusal.is_transient() && !facts.waited => Fault::Settling,
        Err(refusal) if refusal.is_answer() => Fault::Unknown,
        Err(_) if silent && postmaster.state == 'D' => {
            evidence.push("it waits for the disk".into());
            Fault::NotOurs("S5")
        }
        Err(_) if silent && facts.moves => {
            evidence.push("it takes each connection in, so it moves and is busy, not hung".into());
            Fault::Moving
        }
        // Told to go on by somebody else between the two looks, perhaps.
        Err(_) if silent && postmaster.state == 'R' && !facts.waited => Fault::Settling,
        Err(_) if silent && postmaster.state == 'S' => {
            evidence.push("three connections did not wake it".into());
            Fault::Hung
        }
        Err(Refusal::NoSocket | Refusal::Refused) if is_starting(facts) => {
            evidence.push("its lock file says that it is starting".into());
            Fault::Moving
        }
        Err(Refusal::NoSocket) if is_stopping(facts) => Fault::Settling,
        Err(Refusal::NoSocket) => match &facts.socket_lost {
            Some(lost) => socket_gone(lost, postmaster, config, evidence),
            None => Fault::LeftAlone("has no socket (unix_socket_directories), and this program needs one".into()),
        },
        Err(_) => Fault::Unknown,
    }
}

/// The class, when nobody is let in because the disk fails or system catalogs are damaged. No restart heals that, and each one
/// writes to that disk; wrongly diagnosed, a person is told of a server that somebody else has to restart.
fn storage_fails(facts: &Facts, evidence: &mut Vec<String>) -> Option<&'static str> {
    let refusal = facts.connection.as_ref().err()?;
    if let Some(why) = &facts.read_only {
        evidence.push(why.clone());
        return Some("S4");
    }
    match (refusal, &facts.panics) {
        (Refusal::Server(code, message), _) => meaning::of_refused_login(message, code),
        (Refusal::Starting(_), Some((class, message))) => {
            evidence.push(format!("it begins anew again and again, and ends each time with: {message}"));
            Some(class)
        }
        _ => None,
    }
}

/// Wrongly diagnosed, a process goes on that somebody had stopped with a signal: it does what it would have done anyway.
fn child_stopped(facts: &Facts, evidence: &mut Vec<String>) -> Fault {
    evidence.extend(facts.stopped_children.iter().map(|p| format!("\"{}\" (PID {}) is stopped", p.title(), p.pid)));
    Fault::ChildStopped
}

/// Wrongly diagnosed, a second name leads to the server all the same, and a restart ends idle sessions of a server that
/// nobody reaches by its socket; it is never ended by more than a fast shutdown.
fn socket_gone(lost: &SocketLost, postmaster: &Process, config: &Config, evidence: &mut Vec<String>) -> Fault {
    let is_well = lost.alive.is_ok() && matches!(postmaster.state, 'R' | 'S');
    let restart = is_well && lost.at_work == 0 && config.recover.socket_restart == SocketRestart::Idle;
    evidence.push(match &lost.alive {
        Ok(how) | Err(how) => how.clone(),
    });
    if let Err(why) = &lost.copy {
        evidence.push(why.clone());
        evidence.push(format!("sessions at work: {}", lost.at_work));
    }
    // What only the server sees is no business of ours.
    Fault::SocketGone { copy: is_well && lost.copy.is_ok(), restart }
}

pub fn is_stopping(facts: &Facts) -> bool {
    matches!(&facts.lock_file, LockFile::Present(file) if file.status == "stopping")
}

/// Line 8 of the lock file; a postmaster listens only a moment after it wrote the file.
pub fn is_starting(facts: &Facts) -> bool {
    matches!(&facts.lock_file, LockFile::Present(file) if file.status.is_empty() || file.status == "starting")
}

/// No postmaster runs.
fn down(facts: &Facts, config: &Config, cluster: &str, evidence: &mut Vec<String>) -> Fault {
    evidence.push("no postmaster runs".into());
    match &facts.control {
        Ok(control) => evidence.push(format!("pg_control says \"{}\"", control.state)),
        Err(why) => evidence.push(why.to_string()),
    }
    let unit = &facts.unit;
    evidence.push(format!(
        "the unit is {} ({}, exit kind {} status {})",
        unit.active, unit.result, unit.exit_kind, unit.exit_status
    ));
    // A backend that does not notice the death of its postmaster keeps the unit deactivating for an hour.
    let held_up = facts.waited && unit.active == "deactivating" && !unit.job && !facts.family.children.is_empty();
    if facts.start_is_abandoned {
        return Fault::AbandonedStart;
    }
    if !held_up && (unit.active == "deactivating" || unit.active == "activating" || unit.job) {
        evidence.push("systemd is at work on it".into());
        return Fault::Settling;
    }
    if unit.active == "active" && process_lives(unit.main_pid) {
        evidence.push(format!("systemd has a main process for it, PID {}", unit.main_pid));
        return Fault::LeftAlone("has a server that runs elsewhere than its configuration says".into());
    }
    let mut obstacles = facts.obstacles.iter();
    let has_orphans = facts.obstacles.iter().any(|o| o.fault == "P9");
    // pg_control is put back only when nothing of the old server is left.
    let later = |fault: &str| fault == "P9" || (fault == "S9" && has_orphans && facts.control_copy.is_ok());
    if facts.obstacles.iter().any(|o| !later(o.fault)) {
        evidence.extend(facts.obstacles.iter().map(|o| o.message.clone()));
        let worst = obstacles.find(|o| !later(o.fault)).map_or("unknown", |o| o.fault);
        return match (worst, &facts.control_copy) {
            // Without pg_control it cannot be told whether it was stopped cleanly; what the unit says has to do.
            ("S2" | "S4" | "S7" | "S8", _) | ("S9", Ok(())) if may_be_on_purpose(facts) => Fault::StoppedOnPurpose,
            // The data directory is known by its pg_control: without one nobody gives it another mode.
            ("S7", Ok(())) => Fault::ControlFile,
            ("S7", _) => Fault::Mode,
            // Wrongly diagnosed, there is an empty folder more.
            ("S8", _) if !facts.missing_folders.is_empty() => Fault::MissingFolders,
            // What its owner cannot read looks as if it were missing or damaged.
            ("S6" | "S9" | "S11", _) if !facts.wrong_modes.is_empty() && !may_be_on_purpose(facts) => {
                evidence.push(describe_modes(facts));
                Fault::Mode
            }
            // To give away what somebody may have moved here is for a person.
            ("S6" | "S9" | "S10" | "S11", _) if facts.foreign.is_some() => {
                evidence.extend(facts.foreign.clone());
                Fault::NotOurs("S7")
            }
            ("S2", _) if makes_room(facts) => Fault::NoRoom,
            ("S11", _) => Fault::WalMissing,
            ("S9", Ok(())) => Fault::ControlFile,
            ("S9", Err(why)) => {
                evidence.push(why.clone());
                Fault::NotOurs("S9")
            }
            _ => Fault::NotOurs(worst),
        };
    }
    if !facts.obstacles.is_empty() {
        evidence.extend(facts.obstacles.iter().map(|o| o.message.clone()));
        // What cannot be told apart from our own processes must not be ended, nor started over.
        let clear = facts.family.unclear.is_empty() && !facts.family.children.is_empty();
        return if clear { Fault::Orphans } else { Fault::NotOurs("P9") };
    }
    // From here on nothing of the old server is left, and its data is as it should be.
    let clean = facts.control.as_ref().is_ok_and(|c| c.state.is_clean());
    let of_memory = is_out_of_memory(facts);
    if clean && !facts.stopped_by_us && !of_memory {
        if let Some(why) = failed_start(facts) {
            evidence.push(why);
        } else if !facts.asked_by_checks || config.on_clean_stop_of(cluster) == OnCleanStop::Leave {
            return Fault::StoppedOnPurpose;
        } else {
            evidence.push("it was stopped cleanly, is meant to run, and the checks have waited long enough".into());
        }
    }
    if !clean && is_immediate_stop(facts) && !facts.asked_by_checks && !facts.stopped_by_us {
        evidence.push("it was told to stop at once".into());
        return Fault::StoppedOnPurpose;
    }
    if !facts.wrong_modes.is_empty() {
        evidence.push(describe_modes(facts));
        return Fault::Mode;
    }
    if let Some(why) = &facts.configuration.unchecked {
        evidence.push(why.clone());
        return Fault::Unknown;
    }
    if let Some(error) = &facts.configuration.error {
        evidence.push(format!("postgres -C: {error}"));
        return Fault::Configuration("C1");
    }
    match &facts.lock_file {
        LockFile::Empty | LockFile::Garbage => {
            evidence.push("postmaster.pid holds no process number".into());
            return Fault::BadLockFile;
        }
        LockFile::Unreadable(why) => {
            evidence.push(format!("postmaster.pid cannot be read: {why}"));
            return Fault::NotOurs("P6");
        }
        LockFile::Missing | LockFile::Present(_) => {}
    }
    match &facts.lock_owner {
        Some(Identity::Foreign(who)) => {
            evidence.push(format!("postmaster.pid names {who}, which is not PostgreSQL of this cluster"));
            return Fault::RecycledPid;
        }
        Some(Identity::Zombie) => {
            evidence.push("the dead postmaster has not been reaped yet".into());
            return Fault::Settling;
        }
        Some(Identity::Unclear | Identity::Ours) => {
            evidence.push("it cannot be told what the process in postmaster.pid is".into());
            return Fault::NotOurs("P7");
        }
        Some(Identity::Dead) | None => {}
    }
    if let Err(why) = &facts.socket_directory {
        evidence.push(why.clone());
        return Fault::SocketDirectory;
    }
    // Neither ended nor evaded: when the port is free again, the next look finds nothing in the way.
    if let Some(why) = &facts.port_taken {
        evidence.push(why.clone());
        return Fault::NotOurs("P10");
    }
    if let Some((message, class)) = &facts.failure {
        evidence.push(format!("the server's last word was: {message}"));
        match class {
            Some("C5") if !facts.configuration.tls.is_empty() => return Fault::Configuration("C5"),
            Some(class @ ("C1" | "C2" | "C3" | "C4" | "C5")) if differs(facts) => return Fault::Configuration(class),
            // It is what our own start met. An older message is no reason not to try once: every check before a start
            // has passed, and what the server complained about may be mended.
            Some(class) if facts.starts > 0 => {
                evidence.extend(facts.foreign.clone().filter(|_| *class == "S7"));
                return Fault::NotOurs(class);
            }
            // In words that are not known here, but with a configuration that it never ran with.
            None if facts.starts > 0 && differs(facts) => return Fault::Configuration("C3"),
            None if facts.starts > 0 => return Fault::Unknown,
            _ => {}
        }
    } else if facts.starts > 0 {
        evidence.push("our start failed without a word".into());
        // It may have been killed, as the one before it was; and memory that ran out once is not asked for again.
        if differs(facts) && (facts.starts > 1 || of_memory) {
            evidence.push("it never ran with this configuration".into());
            return Fault::Configuration("C3");
        }
    }
    match () {
        () if of_memory => Fault::OutOfMemory,
        () if clean && !facts.stopped_by_us => Fault::Down,
        () => Fault::Killed,
    }
}

/// systemd then stops the whole unit, cleanly (systemd.service(5), OOMPolicy=): nobody's wish.
fn is_out_of_memory(facts: &Facts) -> bool {
    facts.unit.result == "oom-kill"
}

/// Given back, it is enough for the two segments that a start needs (`prestart`); else it is not spent.
fn makes_room(facts: &Facts) -> bool {
    facts.control.as_ref().is_ok_and(|control| facts.ballast >= 2 * u64::from(control.wal_segment_size))
}

fn describe_modes(facts: &Facts) -> String {
    let shown: Vec<String> = facts.wrong_modes.iter().take(3).map(|path| path.display().to_string()).collect();
    let more =
        if facts.wrong_modes.len() > 3 { format!(", and {} more", facts.wrong_modes.len() - 3) } else { String::new() };
    format!("{}{more} cannot be used by their owner", shown.join(", "))
}

/// It ended without a failure, and nobody has said since that it is to run.
fn may_be_on_purpose(facts: &Facts) -> bool {
    let ended_by_itself = facts.unit.active == "inactive" || (facts.unit.exit_kind == 1 && facts.unit.exit_status == 0);
    ended_by_itself && !is_out_of_memory(facts) && !facts.asked_by_checks && !facts.stopped_by_us
}

fn process_lives(pid: i32) -> bool {
    pid > 0 && shared::process::Process::of(pid).is_some_and(|p| p.state != 'Z')
}

fn differs(facts: &Facts) -> bool {
    !facts.configuration.changed.is_empty() || !facts.configuration.added.is_empty()
}

/// Stopped cleanly, and then somebody tried to start it: that is no wish to have it stopped.
fn failed_start(facts: &Facts) -> Option<String> {
    let unit = &facts.unit;
    let is_refused = unit.active == "failed" && ["protocol", "start-limit-hit"].contains(&unit.result.as_str());
    (is_refused || unit.ended_in_error()).then(|| "it was stopped cleanly, and then could not be started".to_string())
}

/// Exit status 0 while pg_control says that it was running: SIGQUIT or `pg_ctl stop -m immediate`, unless the server
/// says that it did so because its lock file was gone.
fn is_immediate_stop(facts: &Facts) -> bool {
    let was_running = facts.control.as_ref().is_ok_and(|c| c.state == DbState::InProduction);
    was_running
        && !is_out_of_memory(facts)
        && facts.unit.exit_kind == 1
        && facts.unit.exit_status == 0
        && !facts.lock_file_was_lost
}
