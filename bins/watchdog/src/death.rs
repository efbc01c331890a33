//! What the end of a postmaster means: stopped on purpose, crashed, or a start that failed.
//!
//! Neither the unit's result nor the exit status tells a stop from a crash: `pg_ctlcluster stop` by the user postgres
//! leaves the unit failed, and a server whose postmaster.pid was removed ends itself with status 0. pg_control, exit
//! status and server log have to be read together.

use shared::cluster::Cluster;
use shared::control::{Control, ControlError, DbState};
use shared::unit::UnitState;

#[derive(Clone, Debug, PartialEq)]
pub enum End {
    /// Shut down cleanly by somebody.
    Clean,
    /// Stopped with `pg_ctl stop -m immediate` or SIGQUIT: deliberate, though not clean.
    Immediate,
    /// It ended itself because its lock file was removed or replaced (src/backend/postmaster/postmaster.c, ServerLoop).
    LockFileLost,
    Crash(String),
    /// The OOM killer ended its postmaster, or another process for which systemd stopped it all.
    OutOfMemory(String),
    /// Somebody tried to start it, and it did not come up.
    StartFailed,
    /// It does not run, and nothing tells why: not started since boot, or not started by systemd.
    Down,
}

/// What this program itself has seen of the postmaster that ended.
#[derive(Clone, Copy, Debug, Default)]
pub struct Seen {
    /// It ended while it was watched.
    pub ended: bool,
    /// It was accepting connections.
    pub well: bool,
    pub lock_file_lost: bool,
    /// It died while systemd was starting it, and that start had to be ended.
    pub died_starting: bool,
}

/// `log` is what the server has logged since it was last seen well.
pub fn judge(unit: &UnitState, control: &Result<DbState, ControlError>, seen: Seen, log: &str) -> End {
    // systemd stops the whole unit, cleanly, when one backend is killed for want of memory (OOMPolicy=stop).
    if unit.result == "oom-kill" {
        return End::OutOfMemory("systemd says that the OOM killer ended a process of it (Result=oom-kill)".into());
    }
    if seen.died_starting {
        return End::Crash("its postmaster died while it was started".into());
    }
    let is_clean = control.as_ref().is_ok_and(|state| state.is_clean());
    // The unit's main process never became known to systemd: pg_ctlcluster start has not come back with it yet, which
    // takes two seconds longer than the server needs to accept connections, or it came back without a server.
    if unit.active == "failed" && unit.result == "protocol" {
        return match () {
            // Shut down, and then a start that failed: that is what a restart with a bad configuration is.
            () if is_clean || !seen.well => End::StartFailed,
            () if log.contains("received immediate shutdown request") => End::Immediate,
            () => End::Crash("its postmaster ended soon after its start".into()),
        };
    }
    if is_clean && unit.ended_in_error() {
        return End::StartFailed;
    }
    if is_clean {
        let is_known = unit.exit_kind != 0 || unit.active == "failed" || seen.ended;
        return if is_known { End::Clean } else { End::Down };
    }
    match unit.exit_kind {
        2 | 3 => End::Crash(format!("its postmaster was killed by signal {}", unit.exit_status)),
        1 if unit.exit_status == 0 => {
            if seen.lock_file_lost || log.contains("data directory lock file is invalid") {
                End::LockFileLost
            } else {
                End::Immediate
            }
        }
        1 => End::Crash(format!("its postmaster ended with exit status {}", unit.exit_status)),
        _ => End::Down,
    }
}

/// State of the data directory as pg_control has it.
pub fn control(cluster: &Cluster) -> Result<DbState, ControlError> {
    cluster
        .owner
        .act(|| Control::read(&cluster.data_directory))
        .unwrap_or_else(|e| Err(ControlError::Unreadable(e.message)))
        .map(|(control, _)| control.state)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unit(active: &str, result: &str, exit_kind: i32, exit_status: i32) -> UnitState {
        UnitState { active: active.into(), result: result.into(), exit_kind, exit_status, ..UnitState::default() }
    }

    fn of(unit: &UnitState, state: DbState) -> End {
        judge(unit, &Ok(state), Seen::default(), "")
    }

    #[test]
    fn the_truth_table_holds() {
        use DbState::*;
        // kill -9, also during crash recovery
        assert!(matches!(of(&unit("failed", "exit-code", 2, 9), InProduction), End::Crash(_)));
        assert!(matches!(of(&unit("failed", "signal", 2, 9), InCrashRecovery), End::Crash(_)));
        // pg_ctlcluster stop as postgres, pg_ctl stop -m fast
        assert_eq!(of(&unit("failed", "exit-code", 1, 0), ShutDown), End::Clean);
        assert_eq!(of(&unit("failed", "exit-code", 1, 0), ShutDownInRecovery), End::Clean);
        // systemctl stop
        assert_eq!(of(&unit("inactive", "success", 1, 0), ShutDown), End::Clean);
        // pg_ctl stop -m immediate
        assert_eq!(of(&unit("failed", "exit-code", 1, 0), InProduction), End::Immediate);
        // restart with a bad configuration line
        assert_eq!(of(&unit("failed", "protocol", 0, 0), ShutDown), End::StartFailed);
        // the same of a unit that starts postgres itself
        assert_eq!(of(&unit("failed", "exit-code", 1, 1), ShutDown), End::StartFailed);
        // PANIC
        assert!(matches!(of(&unit("failed", "exit-code", 1, 1), InProduction), End::Crash(_)));
        assert!(matches!(of(&unit("failed", "core-dump", 3, 6), InProduction), End::Crash(_)));
        // a backend killed for want of memory: systemd stops the rest cleanly
        assert!(matches!(of(&unit("failed", "oom-kill", 1, 0), ShutDown), End::OutOfMemory(_)));
        // never started since boot
        assert_eq!(of(&unit("inactive", "success", 0, 0), ShutDown), End::Down);
        assert_eq!(of(&unit("inactive", "success", 0, 0), InProduction), End::Down);
    }

    #[test]
    fn a_server_that_lost_its_lock_file_did_not_stop_on_purpose() {
        let state = Ok(DbState::InProduction);
        let unit = unit("failed", "exit-code", 1, 0);
        let log = "LOG:  performing immediate shutdown because data directory lock file is invalid\n";
        let (lost, not) = (Seen { lock_file_lost: true, ..Seen::default() }, Seen::default());
        assert_eq!(judge(&unit, &state, not, log), End::LockFileLost);
        assert_eq!(judge(&unit, &state, lost, ""), End::LockFileLost);
        assert_eq!(judge(&unit, &state, not, "LOG:  received immediate shutdown request\n"), End::Immediate);
    }

    #[test]
    fn a_server_that_was_well_and_died_while_its_start_job_ran_did_not_fail_to_start() {
        let unit = unit("failed", "protocol", 0, 0);
        let seen = Seen { ended: true, well: true, ..Seen::default() };
        assert!(matches!(judge(&unit, &Ok(DbState::InProduction), seen, ""), End::Crash(_)));
        assert_eq!(judge(&unit, &Ok(DbState::ShutDown), seen, ""), End::StartFailed);
        let log = "LOG:  received immediate shutdown request\n";
        assert_eq!(judge(&unit, &Ok(DbState::InProduction), seen, log), End::Immediate);
        let seen = Seen { well: false, ..seen };
        assert_eq!(judge(&unit, &Ok(DbState::InProduction), seen, ""), End::StartFailed);
    }

    #[test]
    fn a_control_file_that_cannot_be_read_makes_no_stop_clean() {
        let killed = unit("failed", "exit-code", 2, 9);
        assert!(matches!(judge(&killed, &Err(ControlError::Missing), Seen::default(), ""), End::Crash(_)));
    }
}
