//! Diagnosis -> the steps that are left, gentlest first. Pure.
//!
//! After each step the cluster is looked at again and the plan is made anew, so a plan is what would be done if nothing
//! changed on the way; a run that was killed at any step goes on from what it finds.

use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::diagnosis::{Diagnosis, Fault};
use crate::facts::Facts;

#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Risk {
    None,
    /// Clients lose their connections, or a file is put back; no commit can be lost.
    Low,
    /// Commits are given up. Only with a person's approval.
    Data,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// SIGCONT to the stopped processes.
    Continue,
    /// SIGINT to the postmaster: fast shutdown.
    StopFast,
    /// SIGQUIT: immediate shutdown, crash recovery at the next start.
    StopImmediate,
    /// SIGKILL to the postmaster, which has had SIGINT and SIGQUIT.
    KillPostmaster,
    /// Stop the unit, whose start nobody works on any more.
    EndStart,
    /// SIGCONT, SIGQUIT, then SIGKILL to children whose postmaster is dead.
    EndOrphans,
    /// Rename a lock file that nobody owns into the evidence.
    SetLockFileAside,
    /// Put the byte-exact copy of postmaster.pid back.
    PutLockFileBack,
    CreateSocketDirectory,
    /// Link the second name of the socket to where it was.
    PutSocketBack,
    /// Remove the file of our own that keeps room free on the volume of pg_wal.
    ReleaseBallast,
    /// Those that are missing and empty by design.
    MakeFolders,
    /// The newest copy of pg_control from which on WAL is complete.
    RestoreControlFile,
    /// Owner and mode of the data directory, as recorded, and the mode of what is in it, as the server makes its files.
    RestoreMode,
    /// These files as they were when the server last ran with them; new files that are wrong are set aside.
    RestoreConfiguration {
        restore: Vec<PathBuf>,
        set_aside: Vec<PathBuf>,
    },
    /// pg-cert-renew.service, with its own pauses, checks and proof.
    RenewCertificate,
    /// Forget which position was flushed; the server then starts with the WAL that there is.
    GiveUpWal,
    Start,
}

impl Step {
    /// The names of those with [`Risk::Data`].
    pub const NEED_APPROVAL: &[&str] = &["give-up-wal"];

    pub fn name(&self) -> &'static str {
        match self {
            Step::Continue => "continue",
            Step::StopFast => "stop-fast",
            Step::StopImmediate => "stop-immediate",
            Step::KillPostmaster => "kill-postmaster",
            Step::EndStart => "end-start",
            Step::EndOrphans => "end-orphans",
            Step::SetLockFileAside => "set-lock-file-aside",
            Step::PutLockFileBack => "put-lock-file-back",
            Step::CreateSocketDirectory => "create-socket-directory",
            Step::PutSocketBack => "put-socket-back",
            Step::ReleaseBallast => "release-ballast",
            Step::MakeFolders => "make-folders",
            Step::RestoreControlFile => "restore-control-file",
            Step::RestoreMode => "restore-mode",
            Step::RestoreConfiguration { .. } => "restore-configuration",
            Step::RenewCertificate => "renew-certificate",
            Step::GiveUpWal => "give-up-wal",
            Step::Start => "start",
        }
    }

    /// Which of several alternatives.
    pub fn of(&self) -> &'static str {
        match self {
            Step::RestoreConfiguration { restore, set_aside } => {
                let all = |kind: fn(&Path) -> bool| restore.iter().chain(set_aside).all(|path| kind(path));
                match () {
                    () if all(is_alter_system) => "alter-system",
                    () if all(is_access) => "access",
                    () => "settings",
                }
            }
            _ => "",
        }
    }

    /// It signals or stops a server that runs.
    pub fn disturbs(&self) -> bool {
        matches!(self, Step::Continue | Step::StopFast | Step::StopImmediate | Step::KillPostmaster)
    }

    fn risk(&self) -> Risk {
        match self {
            Step::Continue
            | Step::PutLockFileBack
            | Step::CreateSocketDirectory
            | Step::PutSocketBack
            | Step::ReleaseBallast
            | Step::MakeFolders
            | Step::Start => Risk::None,
            Step::GiveUpWal => Risk::Data,
            _ => Risk::Low,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Planned {
    #[serde(serialize_with = "name")]
    pub step: Step,
    pub risk: Risk,
    pub why: String,
}

fn name<S: serde::Serializer>(step: &Step, s: S) -> Result<S::Ok, S::Error> {
    s.serialize_str(step.name())
}

/// The steps that are left for this diagnosis after those in `tried`, which this run has carried out already. Empty
/// means that nothing is to be done, or that nothing is left that this program would do.
pub fn plan(facts: &Facts, diagnosis: &Diagnosis, tried: &[Step]) -> Vec<Planned> {
    let class = diagnosis.fault.class();
    let steps = ladder(facts, &diagnosis.fault);
    // What was tried before files could be read may have failed for that alone.
    let tried = &tried[tried.iter().rposition(|step| *step == Step::RestoreMode).unwrap_or(0)..];
    steps
        .into_iter()
        // What comes after one that rests relies on it.
        .take_while(|(step, _)| !facts.learnt.rests(class, step.name(), step.of()))
        .filter(|(step, _)| match step {
            // A start that failed is tried again only after something else was done, or once if there was not a word of why.
            Step::Start => tried.last() != Some(&Step::Start) || may_have_been_killed(facts, &diagnosis.fault),
            step => !tried.contains(step),
        })
        .map(|(step, why)| Planned { risk: step.risk(), why: why.to_string(), step })
        .collect()
}

/// Our first start ended without a reason.
fn may_have_been_killed(facts: &Facts, fault: &Fault) -> bool {
    facts.starts == 1 && facts.failure.is_none() && matches!(fault, Fault::Killed | Fault::Down)
}

fn ladder(facts: &Facts, fault: &Fault) -> Vec<(Step, &'static str)> {
    let stop = [
        (Step::StopFast, "if that does not help, it is asked to end its sessions and stop"),
        (Step::StopImmediate, "if it does not, it is told to stop at once; crash recovery follows"),
        (Step::KillPostmaster, "if nothing else moves it; its children then end by themselves"),
    ];
    let start = (Step::Start, "start it through systemd and wait until it answers");
    match fault {
        Fault::Well
        | Fault::LeftAlone(_)
        | Fault::Moving
        | Fault::Settling
        | Fault::StoppedOnPurpose
        | Fault::InTurns(_)
        | Fault::Certificate { renews: false }
        | Fault::NotOurs(_)
        | Fault::Unknown => Vec::new(),
        Fault::WalMissing => {
            vec![(Step::GiveUpWal, "the server then starts without the commits that are in the missing WAL"), start]
        }
        Fault::AbandonedStart => {
            vec![(Step::EndStart, "nobody works on that start any more, and no other can begin before it ends"), start]
        }
        Fault::Killed | Fault::OutOfMemory | Fault::Down => vec![start],
        Fault::Stopped => {
            let mut steps =
                vec![(Step::Continue, "a stopped process goes on where it was, and nobody loses a connection")];
            steps.extend(stop);
            steps.push(start);
            steps
        }
        // Whoever stops it again has a reason. Nothing more is done: an end of one of them is a crash of all sessions.
        Fault::ChildStopped => {
            vec![(Step::Continue, "a stopped process goes on where it was, and nobody loses a connection")]
        }
        Fault::Hung => stop.into_iter().chain([start]).collect(),
        Fault::BadLockFile | Fault::RecycledPid => {
            vec![(Step::SetLockFileAside, "no process of the cluster is left; the file is kept as evidence"), start]
        }
        Fault::LockFileGone => {
            let back =
                (Step::PutLockFileBack, "the saved copy is this postmaster's; it goes on as if nothing had been");
            let stop = (Step::StopFast, "without its lock file it stops by itself within 60s; a clean stop is better");
            Some(back).filter(|_| facts.saved_lock_file).into_iter().chain([stop, start]).collect()
        }
        Fault::Orphans => {
            vec![
                (Step::EndOrphans, "their postmaster is dead; no start is possible while they hold the shared memory"),
                start,
            ]
        }
        Fault::SocketDirectory => {
            vec![(Step::CreateSocketDirectory, "systemd-tmpfiles makes it as the package describes it"), start]
        }
        Fault::SocketGone { copy, restart } => {
            let directory = (Step::CreateSocketDirectory, "systemd-tmpfiles makes it as the package describes it");
            let back = (Step::PutSocketBack, "the second name of the same socket; nobody loses a connection");
            let stop = (Step::StopFast, "only a restart makes its socket anew, and no session is at work");
            let there = facts.socket_directory.is_ok();
            let steps = [
                (!there && (*copy || *restart), directory),
                (*copy, back),
                (there && *restart, stop),
                (there && *restart, start),
            ];
            steps.into_iter().filter(|(wanted, _)| *wanted).map(|(_, step)| step).collect()
        }
        Fault::NoRoom => {
            vec![
                (Step::ReleaseBallast, "a file of our own that was kept for this; nothing in pg_wal is touched"),
                start,
            ]
        }
        Fault::MissingFolders => {
            vec![(Step::MakeFolders, "the server keeps nothing in them while it does not run"), start]
        }
        Fault::ControlFile => {
            let (why, running) = if facts.family.postmaster.is_some() {
                ("before the next checkpoint misses it; the server then writes it anew from memory", true)
            } else {
                ("crash recovery begins at its checkpoint, and WAL is complete from there on", false)
            };
            Some((Step::RestoreControlFile, why)).into_iter().chain(Some(start).filter(|_| !running)).collect()
        }
        Fault::Mode => {
            let restore = (Step::RestoreMode, "exactly what is wrong, to what it was while it ran");
            Some(restore).into_iter().chain(Some(start).filter(|_| facts.family.postmaster.is_none())).collect()
        }
        Fault::Certificate { renews: true } => {
            vec![(
                Step::RenewCertificate,
                "pg-cert-renew checks the new one, and proves by a handshake that it is served",
            )]
        }
        Fault::Configuration(class) => restore(facts, class).map_or_else(Vec::new, |restore| vec![restore, start]),
    }
}

fn is_access(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    name.contains("hba") || name.contains("ident")
}

fn is_alter_system(path: &Path) -> bool {
    path.ends_with("postgresql.auto.conf")
}

/// Which files to put back for a configuration that does not let the server start; the fewest that can be the cause.
/// Those that never helped come last.
fn restore(facts: &Facts, class: &str) -> Option<(Step, &'static str)> {
    let found = &facts.configuration;
    if class == "C5" && !found.tls.is_empty() {
        let pair = Step::RestoreConfiguration { restore: found.tls.clone(), set_aside: Vec::new() };
        return Some((pair, "the TLS pair that it last ran with; the new one is kept beside"));
    }
    if !found.has_good || !found.not_ours.is_empty() {
        return None;
    }
    let error = found.error.as_deref().unwrap_or_default();
    let named = |path: &Path| error.contains(&*path.to_string_lossy());
    let pick = |wanted: &&dyn Fn(&Path) -> bool| {
        let of = |files: &[PathBuf]| files.iter().filter(|f| wanted(f)).cloned().collect::<Vec<_>>();
        let (restore, set_aside) = (of(&found.changed), of(&found.added));
        let is_any = !restore.is_empty() || !set_aside.is_empty();
        is_any.then_some(Step::RestoreConfiguration { restore, set_aside })
    };
    let choices: &[&dyn Fn(&Path) -> bool] = match class {
        "C2" => &[&is_access],
        "C1" => &[&named, &|f| !is_access(f)],
        // What ALTER SYSTEM wrote first: it was written by a command, not composed by a person.
        _ => &[&is_alter_system, &|f| !is_access(f), &is_access],
    };
    let learnt = &facts.learnt;
    let mut steps: Vec<Step> = choices.iter().filter_map(pick).collect();
    steps.retain(|step| !learnt.rests(class, step.name(), step.of()));
    let hopeful = steps.iter().position(|step| !learnt.is_hopeless(class, step.name(), step.of())).unwrap_or(0);
    let why = match hopeful {
        0 => "the configuration that it last ran with; the new one is kept beside",
        _ => "the configuration that it last ran with; before files that did not help the last three times",
    };
    (hopeful < steps.len()).then(|| (steps.swap_remove(hopeful), why))
}

#[cfg(test)]
mod tests {
    use shared::client::Refusal;
    use shared::config::Config;
    use shared::control::{Control, ControlError, DbState};
    use shared::pidfile::{LockFile, PidFile};
    use shared::prestart::Obstacle;
    use shared::process::{Family, Identity, Process};
    use shared::record::{Record, StepRecord};
    use shared::standing::Standing;
    use shared::unit::UnitState;

    use super::*;
    use crate::diagnosis::diagnose;
    use crate::facts::{Configuration, Expiring, SocketLost};
    use crate::learn::Lessons;

    fn process(pid: i32, state: char) -> Process {
        Process { pid, parent: 1, comm: "postgres".into(), state, cpu: 1, started: 1 }
    }

    fn control(state: DbState) -> Control {
        Control {
            system_identifier: 1,
            state,
            checkpoint: shared::control::Lsn(2),
            redo: shared::control::Lsn(1),
            timeline: 1,
            recovery_timeline: 0,
            wal_segment_size: 16 << 20,
            wal_block_size: 8192,
        }
    }

    /// A cluster that was killed: the unit failed by signal 9, nothing is left, nothing is in the way.
    fn killed() -> Facts {
        Facts {
            standing: Standing::Meant,
            unit: UnitState {
                active: "failed".into(),
                result: "exit-code".into(),
                exit_kind: 2,
                exit_status: 9,
                ..UnitState::default()
            },
            family: Family::default(),
            lock_file: LockFile::Missing,
            lock_owner: None,
            lock_file_lost: false,
            saved_lock_file: false,
            control: Ok(control(DbState::InProduction)),
            control_copy: Err("it is not needed".into()),
            connection: Err(Refusal::NoSocket),
            socket_lost: None,
            moves: false,
            waits_for_wal: false,
            stopped_children: Vec::new(),
            held: None,
            read_only: None,
            panics: None,
            obstacles: Vec::new(),
            wrong_modes: Vec::new(),
            ballast: 0,
            foreign: None,
            missing_folders: Vec::new(),
            socket_directory: Ok(()),
            port_taken: None,
            certificate: None,
            warnings: Vec::new(),
            configuration: Configuration::default(),
            failure: None,
            asked_by_checks: false,
            lock_file_was_lost: false,
            start_is_abandoned: false,
            stopped_by_us: false,
            starts: 0,
            waited: false,
            learnt: Lessons::default(),
            disturbed: 0,
        }
    }

    /// A cluster that runs and answers.
    fn well() -> Facts {
        Facts {
            family: Family { postmaster: Some(process(10, 'S')), ..Family::default() },
            lock_file: LockFile::Present(PidFile { pid: 10, status: "ready".into(), ..PidFile::default() }),
            lock_owner: Some(Identity::Ours),
            connection: Ok(()),
            ..killed()
        }
    }

    /// A cluster that was stopped by `systemctl stop`.
    fn stopped() -> Facts {
        Facts {
            unit: UnitState {
                active: "inactive".into(),
                result: "success".into(),
                exit_kind: 1,
                ..UnitState::default()
            },
            control: Ok(control(DbState::ShutDown)),
            ..killed()
        }
    }

    fn decide(facts: &Facts, tried: &[Step]) -> (&'static str, Vec<&'static str>) {
        let diagnosis = diagnose(facts, &Config::default(), "16/main");
        let names = plan(facts, &diagnosis, tried).iter().map(|p| p.step.name()).collect();
        (diagnosis.fault.class(), names)
    }

    fn obstacle(fault: &'static str) -> Vec<Obstacle> {
        vec![Obstacle { fault, message: "x".into() }]
    }

    #[test]
    fn each_fault_has_its_ladder_gentlest_rung_first() {
        let hung = |state, moves| Facts {
            family: Family { postmaster: Some(process(10, state)), ..Family::default() },
            connection: Err(Refusal::Timeout),
            moves,
            ..well()
        };
        let garbage = Facts { lock_file: LockFile::Garbage, ..killed() };
        let recycled = Facts { lock_owner: Some(Identity::Foreign("tail (PID 7)".into())), ..killed() };
        let gone = || Facts { lock_file: LockFile::Missing, lock_file_lost: true, saved_lock_file: true, ..well() };
        let gone_without_copy =
            Facts { lock_file: LockFile::Missing, lock_file_lost: true, saved_lock_file: false, ..well() };
        let starting = UnitState { active: "activating".into(), job: true, ..UnitState::default() };
        let gone_in_a_start_that_waits = Facts { unit: starting, ..gone() };
        let orphans = Facts {
            family: Family { children: vec![process(11, 'T')], ..Family::default() },
            obstacles: obstacle("P9"),
            ..killed()
        };
        let stopping = PidFile { pid: 10, status: "stopping".into(), ..PidFile::default() };
        let stopping = Facts {
            connection: Err(Refusal::Starting("the database system is shutting down".into())),
            lock_file: LockFile::Present(stopping),
            moves: true,
            stopped_children: vec![process(11, 'T')],
            ..well()
        };
        let control_lost = |facts| Facts { control: Err(ControlError::Missing), control_copy: Ok(()), ..facts };
        let wrong = || vec![PathBuf::from("base/5/16384")];
        let activating = UnitState { active: "activating".into(), job: true, ..killed().unit };
        let sockets = Facts { socket_directory: Err("x".into()), ..killed() };
        let lost = |copy: bool, at_work| Facts {
            connection: Err(Refusal::NoSocket),
            socket_lost: Some(SocketLost {
                copy: if copy { Ok(()) } else { Err("x".into()) },
                alive: Ok("x".into()),
                at_work,
            }),
            ..well()
        };
        let folder_gone = Facts { socket_directory: Err("x".into()), ..lost(true, 0) };
        let cases: Vec<(Facts, &str, &[&str])> = vec![
            (killed(), "P1", &["start"]),
            (Facts { start_is_abandoned: true, unit: activating, ..killed() }, "P1", &["end-start", "start"]),
            (hung('T', false), "P2", &["continue", "stop-fast", "stop-immediate", "kill-postmaster", "start"]),
            (Facts { stopped_children: vec![process(11, 'T')], ..well() }, "P3", &["continue"]),
            (stopping, "P3", &["continue"]),
            (hung('S', false), "P2", &["stop-fast", "stop-immediate", "kill-postmaster", "start"]),
            (garbage, "P6", &["set-lock-file-aside", "start"]),
            (recycled, "P7", &["set-lock-file-aside", "start"]),
            (gone(), "P8", &["put-lock-file-back", "stop-fast", "start"]),
            (
                Facts { connection: Err(Refusal::NoSocket), waited: true, ..gone() },
                "P8",
                &["put-lock-file-back", "stop-fast", "start"],
            ),
            (gone_in_a_start_that_waits, "P8", &["put-lock-file-back", "stop-fast", "start"]),
            (gone_without_copy, "P8", &["stop-fast", "start"]),
            (orphans, "P9", &["end-orphans", "start"]),
            (sockets, "P11", &["create-socket-directory", "start"]),
            (lost(true, 1), "P12", &["put-socket-back"]),
            (lost(true, 0), "P12", &["put-socket-back", "stop-fast", "start"]),
            (lost(false, 0), "P12", &["stop-fast", "start"]),
            (lost(false, 1), "P12", &[]),
            (folder_gone, "P12", &["create-socket-directory", "put-socket-back"]),
            (Facts { obstacles: obstacle("S7"), ..killed() }, "S7", &["restore-mode", "start"]),
            (Facts { ballast: 32 << 20, obstacles: obstacle("S2"), ..killed() }, "S2", &["release-ballast", "start"]),
            (
                Facts { missing_folders: vec!["pg_notify"], obstacles: obstacle("S8"), ..killed() },
                "S8",
                &["make-folders", "start"],
            ),
            (Facts { obstacles: obstacle("S11"), ..killed() }, "S11", &["give-up-wal", "start"]),
            (Facts { wrong_modes: wrong(), ..killed() }, "S7", &["restore-mode", "start"]),
            (Facts { wrong_modes: wrong(), obstacles: obstacle("S11"), ..killed() }, "S7", &["restore-mode", "start"]),
            (Facts { wrong_modes: wrong(), ..well() }, "S7", &["restore-mode"]),
            (control_lost(well()), "S9", &["restore-control-file"]),
            (control_lost(Facts { obstacles: obstacle("S7"), ..killed() }), "S9", &["restore-control-file", "start"]),
            (control_lost(Facts { obstacles: obstacle("S9"), ..killed() }), "S9", &["restore-control-file", "start"]),
        ];
        for (facts, class, steps) in cases {
            assert_eq!(decide(&facts, &[]), (class, steps.to_vec()));
        }
    }

    #[test]
    fn what_is_not_understood_or_not_safe_is_never_acted_upon() {
        let busy = Facts { connection: Err(Refusal::Timeout), moves: true, ..well() };
        let disk = Facts {
            family: Family { postmaster: Some(process(10, 'D')), ..Family::default() },
            connection: Err(Refusal::Timeout),
            ..well()
        };
        let recovering = || Facts { connection: Err(Refusal::Starting("x".into())), moves: true, ..well() };
        let refuses = |code: &str, message: &str| Facts {
            connection: Err(Refusal::Server(code.into(), message.into())),
            ..well()
        };
        let unclear =
            Facts { family: Family { unclear: vec![5], ..Family::default() }, obstacles: obstacle("P9"), ..killed() };
        let debugged = Facts { held: Some("is being debugged"), connection: Err(Refusal::Timeout), ..well() };
        let debugged_child =
            Facts { held: Some("is being debugged"), stopped_children: vec![process(11, 'T')], ..well() };
        let ending = || Facts {
            lock_file: LockFile::Missing,
            lock_file_lost: true,
            connection: Err(Refusal::NoSocket),
            ..well()
        };
        let slots = Facts { connection: Err(Refusal::OutOfSlots("x".into())), ..well() };
        let socket = |alive: bool, status: &str| Facts {
            connection: Err(Refusal::NoSocket),
            lock_file: LockFile::Present(PidFile { pid: 10, status: status.into(), ..PidFile::default() }),
            socket_lost: Some(SocketLost {
                copy: Ok(()),
                alive: if alive { Ok("x".into()) } else { Err("x".into()) },
                at_work: 0,
            }),
            ..well()
        };
        let goes_on = |waited| Facts {
            family: Family { postmaster: Some(process(10, 'R')), ..Family::default() },
            connection: Err(Refusal::Timeout),
            waited,
            ..well()
        };
        for (facts, class) in [
            (well(), "none"),
            (busy, "H2"),
            (disk, "S5"),
            (recovering(), "H2"),
            (unclear, "P9"),
            (debugged, "O1"),
            (debugged_child, "O1"),
            (slots, "L1"),
            (Facts { unit: UnitState { job: true, ..UnitState::default() }, ..ending() }, "H2"),
            (ending(), "H2"),
            (Facts { connection: Err(Refusal::Broken("x".into())), ..well() }, "H2"),
            (Facts { connection: Err(Refusal::Broken("x".into())), waited: true, ..well() }, "unknown"),
            (goes_on(false), "H2"),
            (goes_on(true), "unknown"),
            (socket(false, "ready"), "P12"),
            (socket(true, "stopping"), "H2"),
            (Facts { socket_lost: None, ..socket(true, "ready") }, "O1"),
            (Facts { obstacles: obstacle("S9"), ..killed() }, "S9"),
            (Facts { control: Err(ControlError::Missing), ..well() }, "S9"),
            (Facts { obstacles: obstacle("S6"), ..killed() }, "S6"),
            (Facts { obstacles: obstacle("S8"), ..killed() }, "S8"),
            (Facts { obstacles: obstacle("S9"), control_copy: Ok(()), foreign: Some("x".into()), ..killed() }, "S7"),
            (Facts { port_taken: Some("x".into()), ..killed() }, "P10"),
            (Facts { obstacles: obstacle("S2"), ballast: 31 << 20, ..killed() }, "S2"),
            (Facts { lock_owner: Some(Identity::Unclear), ..killed() }, "P7"),
            (Facts { standing: Standing::Left("is paused".into()), ..killed() }, "O1"),
            (Facts { connection: Err(Refusal::Server("42501".into(), "x".into())), ..well() }, "unknown"),
            (refuses("42501", "could not open file \"global/2676\": Read-only file system"), "S4"),
            (Facts { read_only: Some("x".into()), ..refuses("42501", "in another language") }, "S4"),
            (refuses("58030", "could not read block 0 in file \"base/5/1259\": Input/output error"), "S5"),
            (refuses("XX001", "invalid page in block 0 of relation base/5/1259"), "S17"),
            (Facts { panics: Some(("S5", "x".into())), ..recovering() }, "S5"),
            (Facts { obstacles: obstacle("S4"), ..killed() }, "S4"),
            (Facts { starts: 1, failure: Some(("x".into(), Some("S17"))), ..killed() }, "S17"),
        ] {
            assert_eq!(decide(&facts, &[]), (class, vec![]));
        }
    }

    #[test]
    fn a_certificate_that_expires_is_renewed_under_a_server_that_is_well_and_never_more() {
        let expiring = |renews| Some(Expiring { seen: "it expired".into(), renews });
        let well = |renews| Facts { certificate: expiring(renews), ..well() };
        assert_eq!(decide(&well(true), &[]), ("C6", vec!["renew-certificate"]));
        assert_eq!(decide(&well(true), &[Step::RenewCertificate]), ("C6", vec![]));
        assert_eq!(decide(&well(false), &[]), ("C6", vec![]), "nothing says how");
        assert_eq!(decide(&Facts { certificate: expiring(true), ..killed() }, &[]), ("P1", vec!["start"]));
        let failed = Facts { learnt: learnt("C6", "renew-certificate", "", 5), ..well(true) };
        assert_eq!(decide(&failed, &[]), ("C6", vec![]), "no loop");
    }

    #[test]
    fn what_goes_on_by_itself_is_told_as_it_was_seen() {
        let starting = |moves, waits_for_wal, stopped_by_us| Facts {
            connection: Err(Refusal::Starting("x".into())),
            moves,
            waits_for_wal,
            stopped_by_us,
            ..well()
        };
        for (facts, seen) in [
            (starting(true, false, false), "its startup process moves"),
            (starting(false, true, false), "its startup process waits for WAL from elsewhere"),
            (starting(false, false, true), "it begins to run after it was stopped to be repaired"),
        ] {
            let diagnosis = diagnose(&facts, &Config::default(), "16/main");
            assert_eq!((diagnosis.fault, diagnosis.evidence.last().map(String::as_str)), (Fault::Moving, Some(seen)));
        }
    }

    #[test]
    fn a_clean_stop_is_respected_until_the_checks_ask() {
        assert_eq!(decide(&stopped(), &[]), ("O1", vec![]));
        for fault in ["S4", "S7"] {
            assert_eq!(decide(&Facts { obstacles: obstacle(fault), ..stopped() }, &[]), ("O1", vec![]));
        }
        assert_eq!(decide(&Facts { asked_by_checks: true, ..stopped() }, &[]), ("O1", vec!["start"]));
        // A start that failed since: as Debian's unit ends then, and one that starts postgres itself.
        for (result, exit_kind, exit_status) in [("protocol", 0, 0), ("exit-code", 1, 1)] {
            let unit = UnitState { result: result.into(), exit_kind, exit_status, ..killed().unit };
            assert_eq!(decide(&Facts { unit, ..stopped() }, &[]), ("O1", vec!["start"]));
        }
        assert_eq!(decide(&Facts { stopped_by_us: true, ..stopped() }, &[]), ("P1", vec!["start"]));
        // systemd stopped it, since the OOM killer had ended one of its processes.
        for control_state in [DbState::ShutDown, DbState::InProduction] {
            let unit = UnitState { result: "oom-kill".into(), exit_kind: 1, exit_status: 0, ..killed().unit };
            let facts = || Facts { unit: unit.clone(), control: Ok(control(control_state)), ..stopped() };
            assert_eq!(decide(&facts(), &[]), ("M1", vec!["start"]));
            let wrong = Facts { obstacles: obstacle("S7"), ..facts() };
            assert_eq!(decide(&wrong, &[]), ("S7", vec!["restore-mode", "start"]));
        }
        let immediate = Facts { unit: UnitState { exit_kind: 1, exit_status: 0, ..killed().unit }, ..killed() };
        assert_eq!(decide(&immediate, &[]), ("O1", vec![]));
        assert_eq!(decide(&Facts { lock_file_was_lost: true, ..immediate }, &[]), ("P1", vec!["start"]));
        let mut leave = Config { on_clean_stop: shared::config::OnCleanStop::Leave, ..Config::default() };
        let asked = Facts { asked_by_checks: true, ..stopped() };
        assert_eq!(diagnose(&asked, &leave, "16/main").fault, Fault::StoppedOnPurpose);
        leave.on_clean_stop = shared::config::OnCleanStop::Start;
        assert_eq!(diagnose(&asked, &leave, "16/main").fault, Fault::Down);
    }

    #[test]
    fn the_fewest_files_that_can_be_the_cause_are_put_back() {
        let protocol = UnitState { active: "failed".into(), result: "protocol".into(), ..UnitState::default() };
        let configuration = || Configuration {
            error: None,
            changed: vec!["/c/pg_hba.conf".into(), "/c/postgresql.conf".into(), "/d/postgresql.auto.conf".into()],
            added: vec!["/c/conf.d/new.conf".into()],
            tls: vec!["/d/server.crt".into(), "/d/server.key".into()],
            unchecked: None,
            not_ours: Vec::new(),
            has_good: true,
        };
        let of = |configuration, failure| Facts { unit: protocol.clone(), configuration, failure, ..stopped() };
        let first = |facts: &Facts, tried: &[Step]| {
            let diagnosis = diagnose(facts, &Config::default(), "16/main");
            plan(facts, &diagnosis, tried).into_iter().next().map(|p| p.step)
        };
        let restore = |restore: &[&str], set_aside: &[&str]| {
            let paths = |names: &[&str]| names.iter().map(PathBuf::from).collect();
            Some(Step::RestoreConfiguration { restore: paths(restore), set_aside: paths(set_aside) })
        };
        let syntax = Configuration { error: Some("in file \"/c/conf.d/new.conf\" line 1".into()), ..configuration() };
        assert_eq!(first(&of(syntax, None), &[]), restore(&[], &["/c/conf.d/new.conf"]));
        let hba = of(configuration(), Some(("could not load pg_hba.conf".into(), Some("C2"))));
        assert_eq!(first(&hba, &[]), restore(&["/c/pg_hba.conf"], &[]));
        let setting = of(configuration(), Some(("could not access file".into(), Some("C3"))));
        assert_eq!(first(&setting, &[]), restore(&["/d/postgresql.auto.conf"], &[]));
        let memory = of(configuration(), Some(("could not map anonymous shared memory".into(), Some("C4"))));
        assert_eq!(first(&memory, &[]), restore(&["/d/postgresql.auto.conf"], &[]));
        let key = of(configuration(), Some(("private key file".into(), Some("C5"))));
        assert_eq!(first(&key, &[]), restore(&["/d/server.crt", "/d/server.key"], &[]));
        // A renewed pair is no reason for a start that fails with other words.
        let pair = Configuration { tls: vec!["/d/server.key".into()], has_good: true, ..Configuration::default() };
        let other = Facts { starts: 1, ..of(pair, Some(("new words".into(), None))) };
        assert_eq!(first(&other, &[Step::Start]), None);
        // A person changed what makes commits durable, or where the data is: that is not put back.
        let durable = Configuration { not_ours: vec!["fsync".into()], error: Some("x".into()), ..configuration() };
        assert_eq!(first(&of(durable, None), &[]), None);
        // Nothing is known to be good.
        let unknown = Configuration { has_good: false, error: Some("x".into()), ..configuration() };
        assert_eq!(first(&of(unknown, None), &[]), None);
    }

    /// So many recoveries from `fault`, the last one a minute ago, in which `step` did not help.
    fn learnt(fault: &str, step: &str, of: &str, times: usize) -> Lessons {
        let step = StepRecord { step: step.into(), of: of.into(), outcome: "failed".into(), ..StepRecord::default() };
        let record = Record {
            cluster: "16/main".into(),
            fault: fault.into(),
            started: "1970-01-01T00:01:00Z".into(),
            finished: "1970-01-01T00:01:00Z".into(),
            steps: vec![step],
            ..Record::default()
        };
        Lessons::of(&vec![record; times], "16/main", "", 120)
    }

    #[test]
    fn a_repair_that_failed_five_times_rests_with_all_that_relies_on_it() {
        let garbage = || Facts { lock_file: LockFile::Garbage, ..killed() };
        let sockets = || Facts { socket_directory: Err("x".into()), ..killed() };
        let full = || Facts { ballast: 32 << 20, obstacles: obstacle("S2"), ..killed() };
        let control = || Facts {
            control: Err(ControlError::Missing),
            control_copy: Ok(()),
            obstacles: obstacle("S9"),
            ..killed()
        };
        let wrong = || Facts { obstacles: obstacle("S7"), ..killed() };
        let cases: [(&dyn Fn() -> Facts, &str, &str); 5] = [
            (&garbage, "P6", "set-lock-file-aside"),
            (&sockets, "P11", "create-socket-directory"),
            (&full, "S2", "release-ballast"),
            (&control, "S9", "restore-control-file"),
            (&wrong, "S7", "restore-mode"),
        ];
        for (facts, class, step) in cases {
            let after = |times| decide(&Facts { learnt: learnt(class, step, "", times), ..facts() }, &[]);
            assert_eq!(after(4), (class, vec![step, "start"]));
            assert_eq!(after(5), (class, vec![]));
        }
        let wrong = Facts { learnt: learnt("S7", "restore-mode", "", 5), ..wrong() };
        let said = diagnose(&wrong, &Config::default(), "16/main").evidence;
        assert!(said.iter().any(|line| line.contains("restore-mode failed 5 times in a row")), "{said:?}");
    }

    #[test]
    fn whatever_was_learnt_no_harsher_step_comes_sooner_and_a_start_is_tried() {
        let hung = |learnt| Facts {
            family: Family { postmaster: Some(process(10, 'T')), ..Family::default() },
            connection: Err(Refusal::Timeout),
            learnt,
            ..well()
        };
        let before = decide(&hung(Lessons::default()), &[]);
        for step in ["continue", "stop-fast", "stop-immediate", "kill-postmaster"] {
            assert_eq!(decide(&hung(learnt("P2", step, "", 9)), &[]), before);
        }
        let failed = Facts { learnt: learnt("P1", "start", "", 9), ..killed() };
        assert_eq!(decide(&failed, &[]), ("P1", vec!["start"]));
        assert!(failed.learnt.resting("P1").is_empty());
    }

    #[test]
    fn a_server_that_runs_is_disturbed_so_often_and_no_more_and_one_that_is_down_is_started() {
        let hung = |state, disturbed| Facts {
            family: Family { postmaster: Some(process(10, state)), ..Family::default() },
            connection: Err(Refusal::Timeout),
            disturbed,
            ..well()
        };
        let child = |disturbed| Facts { stopped_children: vec![process(11, 'T')], disturbed, ..well() };
        for of in [&|n| hung('T', n), &|n| hung('S', n), &child] as [&dyn Fn(u32) -> Facts; 3] {
            assert!(!decide(&of(2), &[]).1.is_empty());
            assert_eq!(decide(&of(3), &[]).1, Vec::<&str>::new());
            assert!(!decide(&Facts { stopped_by_us: true, ..of(3) }, &[]).1.is_empty(), "what was begun is finished");
        }
        assert_eq!(decide(&hung('T', 3), &[]).0, "P2");
        assert_eq!(decide(&Facts { disturbed: 9, ..killed() }, &[]), ("P1", vec!["start"]));
        let gone = Facts { lock_file: LockFile::Missing, lock_file_lost: true, saved_lock_file: true, ..well() };
        assert_eq!(decide(&Facts { disturbed: 9, ..gone }, &[]).1[0], "put-lock-file-back");
    }

    #[test]
    fn files_that_did_not_help_are_put_back_last() {
        let first = |times| {
            let configuration = Configuration {
                changed: vec!["/d/postgresql.auto.conf".into(), "/c/postgresql.conf".into()],
                has_good: true,
                ..Configuration::default()
            };
            let facts = Facts {
                unit: UnitState { active: "failed".into(), result: "protocol".into(), ..UnitState::default() },
                configuration,
                failure: Some(("could not access file".into(), Some("C3"))),
                learnt: learnt("C3", "restore-configuration", "alter-system", times),
                ..stopped()
            };
            let planned = plan(&facts, &diagnose(&facts, &Config::default(), "16/main"), &[]).remove(0);
            (planned.step.of(), planned.why.contains("did not help"))
        };
        assert_eq!(first(2), ("alter-system", false));
        assert_eq!(first(3), ("settings", true));
        assert_eq!(first(5), ("settings", false), "it rests, which the evidence says");
    }

    #[test]
    fn a_failed_start_is_not_repeated_until_something_else_was_done() {
        assert_eq!(decide(&killed(), &[Step::Start]).1, Vec::<&str>::new());
        assert_eq!(decide(&killed(), &[Step::Start, Step::RestoreMode]).1, ["start"]);
        let lost =
            Facts { control: Err(ControlError::Missing), control_copy: Ok(()), obstacles: obstacle("S9"), ..killed() };
        assert_eq!(decide(&lost, &[Step::RestoreControlFile]), ("S9", vec!["start"]));
        let readable_again = [Step::RestoreControlFile, Step::Start, Step::RestoreMode];
        assert_eq!(decide(&lost, &readable_again), ("S9", vec!["restore-control-file", "start"]));
        let unknown = Facts { starts: 1, failure: Some(("new words".into(), None)), ..killed() };
        assert_eq!(decide(&unknown, &[Step::Start]), ("unknown", vec![]));
    }

    #[test]
    fn a_start_that_ended_without_a_word_is_tried_once_more_before_the_configuration_is_to_blame() {
        let other = || Configuration {
            changed: vec!["/d/postgresql.auto.conf".into()],
            has_good: true,
            ..Configuration::default()
        };
        let silent = |starts, configuration| Facts { starts, configuration, ..killed() };
        let tried = [Step::Start, Step::Start];
        assert_eq!(decide(&silent(1, other()), &tried[..1]), ("P1", vec!["start"]));
        assert_eq!(decide(&silent(2, other()), &tried), ("C3", vec!["restore-configuration"]));
        assert_eq!(decide(&silent(2, Configuration::default()), &tried), ("P1", vec![]));
        let memory = UnitState { result: "oom-kill".into(), ..killed().unit };
        let memory = |configuration| Facts { unit: memory.clone(), ..silent(1, configuration) };
        assert_eq!(decide(&memory(other()), &tried[..1]), ("C3", vec!["restore-configuration"]));
        assert_eq!(decide(&memory(Configuration::default()), &tried[..1]), ("M1", vec![]));
    }
}
