//! What the signs of a postmaster that lives mean. Pure: facts in, state out.

use std::time::Duration;

use shared::client::Refusal;
use shared::meaning;

use crate::post::WELL;

/// Silent connections in a row after which a postmaster that moves counts as busy, not as a chance delay.
const SILENT_IS_BUSY: u32 = 2;
/// A postmaster takes each connection itself, so one that takes none and neither uses the CPU nor is scheduled for this
/// long hangs.
const STILL_IS_HUNG: Duration = Duration::from_secs(10);
const SILENT_IS_HUNG: u32 = 5;
/// Samples in a row, a second apart, in which it waited for the disk.
const DISK_IS_HUNG: u32 = 3;

#[derive(Clone, Debug, Default)]
pub struct Facts {
    /// postmaster.pid is missing or names another process, seen twice.
    pub lock_file_lost: bool,
    /// postmaster.pid says "stopping".
    pub stopping: bool,
    pub traced: bool,
    /// Its control group is frozen (`systemctl freeze`).
    pub frozen: bool,
    /// Stopped by a signal, before and after the connection was tried.
    pub stopped: bool,
    /// Samples in a row in which it waited for the disk without being scheduled in between.
    pub disk_samples: u32,
    /// On a CPU, or waiting for one.
    pub running: bool,
    /// For how long neither its CPU time nor its context switches have changed while connections were tried.
    pub still: Duration,
    /// Fresh connections in a row that nobody took.
    pub silent: u32,
    /// Fresh connections in a row that failed in another way than by silence.
    pub refused: u32,
    /// The last fresh connection.
    pub fresh: Option<Result<(), Refusal>>,
    pub startup: Option<Startup>,
}

/// The startup process of a server that does not accept connections yet.
#[derive(Clone, Debug, Default)]
pub struct Startup {
    /// It replays WAL.
    pub recovering: bool,
    /// For how long neither its title nor its CPU time has changed.
    pub still: Duration,
}

#[derive(Clone, Debug, PartialEq)]
pub enum State {
    Well,
    /// One sign of trouble; the next look will tell.
    Suspect,
    Starting,
    Recovering {
        moving: bool,
    },
    Stopping,
    /// Slow or silent, but it moves.
    Busy,
    OutOfSlots,
    /// It answers, and lets nobody in; with the class when that is for its disk or for damage.
    Refusing {
        why: String,
        fault: Option<&'static str>,
    },
    /// It runs, and there is no socket where it had one.
    SocketGone,
    /// In somebody's debugger.
    Traced,
    /// Frozen with its control group: a person's or a tool's wish, and only they can thaw it.
    Frozen,
    LockFileLost,
    Hung(String),
}

/// Replay of one record or a wait for a file from the archive may take a while.
const STARTUP_IS_STUCK: Duration = Duration::from_secs(60);

pub fn classify(facts: &Facts) -> State {
    if facts.stopping {
        return State::Stopping;
    }
    if facts.traced {
        return State::Traced;
    }
    if facts.frozen {
        return State::Frozen;
    }
    if facts.lock_file_lost {
        return State::LockFileLost;
    }
    match &facts.fresh {
        None => State::Suspect,
        // Whoever cannot log in still knows that the server answers.
        Some(Ok(()) | Err(Refusal::NotAllowed(_))) => State::Well,
        Some(Err(refusal)) if refusal.is_silence() => silent(facts),
        Some(Err(Refusal::Starting(_))) => starting(facts),
        Some(Err(Refusal::OutOfSlots(_))) => State::OutOfSlots,
        // Before it listens, it starts.
        Some(Err(Refusal::NoSocket | Refusal::Refused)) if facts.startup.is_some() => starting(facts),
        Some(Err(Refusal::NoSocket)) if facts.refused >= 2 => State::SocketGone,
        Some(Err(refusal)) if facts.refused >= 2 => {
            let fault = match refusal {
                Refusal::Server(code, message) => meaning::of_refused_login(message, code),
                _ => None,
            };
            State::Refusing { why: refusal.to_string(), fault }
        }
        Some(Err(_)) => State::Suspect,
    }
}

fn starting(facts: &Facts) -> State {
    match &facts.startup {
        Some(startup) if startup.recovering => State::Recovering { moving: startup.still < STARTUP_IS_STUCK },
        _ => State::Starting,
    }
}

fn silent(facts: &Facts) -> State {
    if facts.stopped {
        return State::Hung("it is stopped by a signal and takes no connections".into());
    }
    if facts.disk_samples >= DISK_IS_HUNG {
        return State::Hung("it waits for the disk and takes no connections".into());
    }
    if facts.silent >= SILENT_IS_HUNG && facts.still >= STILL_IS_HUNG && !facts.running {
        return State::Hung(format!("it has not moved for {}s and takes no connections", facts.still.as_secs()));
    }
    if facts.silent >= SILENT_IS_BUSY { State::Busy } else { State::Suspect }
}

impl State {
    /// For `systemctl status`.
    pub fn label(&self) -> &'static str {
        match self {
            State::Well => WELL,
            State::Suspect => "being looked at",
            State::Starting => "starting",
            State::Recovering { moving: true } => "in crash recovery",
            State::Recovering { moving: false } => "in recovery that does not move",
            State::Stopping => "stopping",
            State::Busy => "busy",
            State::OutOfSlots => "out of connection slots",
            State::Refusing { .. } => "refusing connections",
            State::SocketGone => "without its socket",
            State::Traced => "in a debugger",
            State::Frozen => "frozen",
            State::LockFileLost => "without its lock file",
            State::Hung(_) => "hung",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn silent(change: impl FnOnce(&mut Facts)) -> State {
        let mut facts = Facts { fresh: Some(Err(Refusal::Timeout)), silent: 1, ..Facts::default() };
        change(&mut facts);
        classify(&facts)
    }

    #[test]
    fn a_stopped_postmaster_is_hung_only_when_it_also_takes_no_connection() {
        assert!(matches!(silent(|f| f.stopped = true), State::Hung(_)));
        assert_eq!(silent(|f| f.stopped = false), State::Suspect);
        let facts = Facts { fresh: Some(Ok(())), stopped: true, ..Facts::default() };
        assert_eq!(classify(&facts), State::Well);
    }

    #[test]
    fn a_full_backlog_is_silence() {
        let state = silent(|f| {
            f.fresh = Some(Err(Refusal::BacklogFull));
            f.stopped = true;
        });
        assert!(matches!(state, State::Hung(_)));
    }

    #[test]
    fn a_busy_server_is_never_taken_for_a_hung_one() {
        for (running, still, silent_for) in [(true, 3600, 900), (false, 9, 900), (false, 3600, 4), (true, 0, 2)] {
            let state = silent(|f| {
                f.running = running;
                f.still = Duration::from_secs(still);
                f.silent = silent_for;
            });
            assert_eq!(state, State::Busy, "{running} {still} {silent_for}");
        }
    }

    #[test]
    fn a_postmaster_that_does_not_move_at_all_is_hung() {
        let state = silent(|f| {
            f.still = Duration::from_secs(10);
            f.silent = 5;
        });
        assert!(matches!(state, State::Hung(_)));
        assert!(matches!(silent(|f| f.disk_samples = 3), State::Hung(_)));
        assert_eq!(silent(|f| f.disk_samples = 2), State::Suspect);
    }

    #[test]
    fn a_debugger_a_freezer_and_a_shutdown_are_left_alone_whatever_else_is_seen() {
        for change in [(|f: &mut Facts| f.traced = true) as fn(&mut Facts), |f| f.frozen = true, |f| f.stopping = true]
        {
            let state = silent(|f| {
                f.stopped = true;
                f.lock_file_lost = true;
                change(f);
            });
            assert!(matches!(state, State::Traced | State::Frozen | State::Stopping), "{state:?}");
        }
    }

    #[test]
    fn starting_and_recovering_are_told_apart_and_movement_is_seen() {
        let of = |startup| {
            let fresh = Some(Err(Refusal::Starting("FATAL: the database system is starting up".into())));
            classify(&Facts { fresh, startup, ..Facts::default() })
        };
        assert_eq!(of(None), State::Starting);
        let recovering = |still| Some(Startup { recovering: true, still: Duration::from_secs(still) });
        assert_eq!(of(recovering(1)), State::Recovering { moving: true });
        assert_eq!(of(recovering(60)), State::Recovering { moving: false });
    }

    #[test]
    fn an_answer_is_an_answer() {
        let of = |refusal, refused| classify(&Facts { fresh: Some(Err(refusal)), refused, ..Facts::default() });
        assert_eq!(of(Refusal::OutOfSlots(String::new()), 1), State::OutOfSlots);
        assert_eq!(of(Refusal::NotAllowed(String::new()), 1), State::Well);
        assert_eq!(of(Refusal::Broken("reset".into()), 1), State::Suspect);
        assert!(matches!(of(Refusal::Broken("reset".into()), 2), State::Refusing { fault: None, .. }));
        let damaged = Refusal::Server("XX001".into(), "FATAL: invalid page in block 0 of relation base/5/1259".into());
        assert!(matches!(of(damaged, 2), State::Refusing { fault: Some("S17"), .. }));
        assert_eq!((of(Refusal::NoSocket, 1), of(Refusal::NoSocket, 2)), (State::Suspect, State::SocketGone));
    }

    #[test]
    fn a_lost_lock_file_counts_however_well_the_server_answers() {
        let facts = Facts { fresh: Some(Ok(())), lock_file_lost: true, ..Facts::default() };
        assert_eq!(classify(&facts), State::LockFileLost);
    }
}
