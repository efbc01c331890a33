//! Start a unit, ask its ActiveState; always without waiting inside systemctl.
//!
//! `systemctl start` of a cluster may block for ever (its unit has no start timeout), and a program that waits for a unit
//! which is ordered after itself waits for ever too. So jobs are only queued here, and the caller polls under its own
//! deadline.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::command;
use crate::error::{Error, Result};
use crate::process::Family;

const PATIENCE: Duration = Duration::from_secs(10);

/// Properties of org.freedesktop.systemd1.Unit and .Service, as `systemctl show` prints them.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct UnitState {
    pub load: String,
    pub active: String,
    pub sub: String,
    /// success, exit-code, signal, core-dump, timeout, protocol, oom-kill, start-limit-hit, ...
    pub result: String,
    pub file_state: String,
    /// A job is queued or running for it.
    pub job: bool,
    pub main_pid: i32,
    /// How the last main process ended: CLD_EXITED = 1, CLD_KILLED = 2, CLD_DUMPED = 3 (waitid(2)); 0: not yet.
    pub exit_kind: i32,
    /// Exit status or signal number.
    pub exit_status: i32,
    /// What systemd does with the unit when the OOM killer ends a process of it: continue, stop, kill.
    pub oom_policy: String,
    /// When it last became inactive or failed, last became and last ceased to be active, and when its last main process began
    /// and ended: seconds since boot (CLOCK_MONOTONIC); 0: never.
    pub inactive_since: f64,
    pub active_enter: f64,
    pub active_exit: f64,
    pub main_start: f64,
    pub main_exit: f64,
    /// Units that take it down with them (Requires=, BindsTo=, PartOf=).
    pub bound_to: Vec<String>,
}

impl UnitState {
    fn parse(text: &str) -> Self {
        let value: HashMap<&str, &str> = text.lines().filter_map(|l| l.split_once('=')).collect();
        let get = |key: &str| value.get(key).copied().unwrap_or_default();
        let number = |key: &str| get(key).parse().unwrap_or_default();
        let seconds = |key: &str| get(key).parse::<u64>().map_or(0.0, |us| us as f64 / 1e6);
        let bound_to = ["Requires", "BindsTo", "PartOf"].into_iter().flat_map(|key| get(key).split_whitespace());
        UnitState {
            load: get("LoadState").into(),
            active: get("ActiveState").into(),
            sub: get("SubState").into(),
            result: get("Result").into(),
            file_state: get("UnitFileState").into(),
            job: number("Job") != 0,
            main_pid: number("MainPID"),
            exit_kind: number("ExecMainCode"),
            exit_status: number("ExecMainStatus"),
            oom_policy: get("OOMPolicy").into(),
            inactive_since: seconds("InactiveEnterTimestampMonotonic"),
            active_enter: seconds("ActiveEnterTimestampMonotonic"),
            active_exit: seconds("ActiveExitTimestampMonotonic"),
            main_start: seconds("ExecMainStartTimestampMonotonic"),
            main_exit: seconds("ExecMainExitTimestampMonotonic"),
            bound_to: bound_to.map(String::from).collect(),
        }
    }

    /// The main process ended by a signal.
    pub fn was_killed(&self) -> bool {
        self.exit_kind == 2 || self.exit_kind == 3
    }

    /// The main process ended with an error. No server does that which was shut down cleanly, so after a clean shutdown it
    /// was a start that failed: of postgres itself, as in units that are not Debian's.
    pub fn ended_in_error(&self) -> bool {
        self.active == "failed" && self.exit_kind == 1 && self.exit_status != 0
    }

    /// It was told to stop, and failed at that: it ceased to be active before its process ended. One that ends by itself does
    /// so the other way round, and one that fails to start was not active since its process began.
    pub fn failed_to_stop(&self) -> bool {
        let by_stop = matches!(self.result.as_str(), "exit-code" | "signal" | "core-dump" | "timeout");
        self.active == "failed" && by_stop && (self.main_start..self.main_exit).contains(&self.active_exit)
    }

    /// How long ago it became inactive or failed.
    pub fn inactive_for(&self) -> Option<Duration> {
        let now = Duration::from(nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC).ok()?);
        (self.inactive_since > 0.0).then(|| now.saturating_sub(Duration::from_secs_f64(self.inactive_since)))
    }

    pub fn is_masked(&self) -> bool {
        self.load == "masked" || self.file_state.starts_with("masked")
    }
}

/// Asks for the state of several units in one call.
pub fn show(units: &[&str]) -> Result<Vec<UnitState>> {
    let properties = "LoadState,ActiveState,SubState,Result,UnitFileState,Job,MainPID,ExecMainCode,ExecMainStatus,\
                      InactiveEnterTimestampMonotonic,ActiveEnterTimestampMonotonic,ActiveExitTimestampMonotonic,\
                      ExecMainStartTimestampMonotonic,ExecMainExitTimestampMonotonic,Requires,BindsTo,PartOf,OOMPolicy";
    let mut command = systemctl();
    command.args(["show", "-p", properties, "--"]).args(units);
    let text = call(&mut command)?;
    let states: Vec<UnitState> = text.trim_end().split("\n\n").map(UnitState::parse).collect();
    if states.len() != units.len() {
        return Err(Error::failed(format!("could not ask systemd about {}: unexpected answer", units.join(" "))));
    }
    Ok(states)
}

/// The ActiveState of each of these units that systemd has in memory; one that is missing is inactive. One question, where
/// [`show`] has two for each unit.
pub fn active_states(units: &[&str]) -> Result<HashMap<String, String>> {
    let text = call(systemctl().args(["list-units", "--all", "--full", "--plain", "--no-legend", "--"]).args(units))?;
    Ok(listed(&text))
}

/// `NAME LOAD ACTIVE SUB DESCRIPTION`, one unit a line.
fn listed(text: &str) -> HashMap<String, String> {
    let line = |line: &str| {
        let mut words = line.split_whitespace();
        Some((words.next()?.into(), words.nth(1)?.into()))
    };
    text.lines().filter_map(line).collect()
}

pub fn show_one(unit: &str) -> Result<UnitState> {
    Ok(show(&[unit])?.remove(0))
}

/// Any properties of a unit, as `systemctl show` prints them.
pub fn properties(unit: &str, names: &[&str]) -> Result<HashMap<String, String>> {
    let text = call(systemctl().args(["show", "-p", &names.join(","), "--", unit]))?;
    Ok(text.lines().filter_map(|line| line.split_once('=')).map(|(name, value)| (name.into(), value.into())).collect())
}

/// Queues a start job.
pub fn start(unit: &str) -> Result<()> {
    call(systemctl().args(["start", "--no-block", "--", unit])).map(drop)
}

/// Queues a stop job; it also ends a start that waits for a server which will not come.
pub fn stop(unit: &str) -> Result<()> {
    call(systemctl().args(["stop", "--no-block", "--", unit])).map(drop)
}

/// Queues a stop and a start.
pub fn restart(unit: &str) -> Result<()> {
    call(systemctl().args(["restart", "--no-block", "--", unit])).map(drop)
}

/// Queues a reload: its service reads its files again.
pub fn reload(unit: &str) -> Result<()> {
    call(systemctl().args(["reload", "--no-block", "--", unit])).map(drop)
}

/// Runs a command as a unit of its own, outside of whatever sandbox the caller is in, and does not wait for it.
pub fn run(unit: &str, command: &[String]) -> Result<()> {
    let mut runner = Command::new("systemd-run");
    runner
        .args(["--no-ask-password", "--quiet", "--collect", "--no-block", &format!("--unit={unit}"), "--"])
        .args(command);
    runner.env("LC_ALL", "C").env_remove("NOTIFY_SOCKET");
    call(&mut runner).map(drop)
}

/// Lets systemd read the units, drop-ins and links again.
pub fn daemon_reload() -> Result<()> {
    call(systemctl().arg("daemon-reload")).map(drop)
}

/// Queues stop jobs; patterns match what is loaded (systemctl(1), PATTERN).
pub fn stop_all(units: &[&str]) -> Result<()> {
    call(systemctl().args(["stop", "--no-block", "--"]).args(units)).map(drop)
}

/// Forgets failures, so that the start limit does not refuse the next start.
pub fn reset_failed(unit: &str) -> Result<()> {
    call(systemctl().args(["reset-failed", "--", unit])).map(drop)
}

/// Whether it is masked, as the link says that makes it so (systemctl(1), mask); systemd is not asked.
pub fn is_masked_by_link(unit: &str) -> bool {
    let folders = ["/etc/systemd/system", "/run/systemd/system"].map(Path::new);
    folders.iter().any(|folder| std::fs::read_link(folder.join(unit)).is_ok_and(|to| to == Path::new("/dev/null")))
}

/// Whether it is started together with this target, as the link says that `systemctl enable` makes; systemd is not asked.
pub fn is_enabled_by_link(unit: &str, target: &str) -> bool {
    let folders = ["/etc/systemd/system", "/run/systemd/system"].map(Path::new);
    folders.iter().any(|folder| folder.join(format!("{target}.wants")).join(unit).symlink_metadata().is_ok())
}

/// The control group of a unit that runs or is being started (systemd.slice(5) for the name of an instance's slice).
pub fn control_group(unit: &str) -> Option<PathBuf> {
    let stem = unit.split('@').next().unwrap_or(unit);
    let slice =
        if unit.contains('@') { format!("system-{}.slice/", stem.replace('-', "\\x2d")) } else { String::new() };
    ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"]
        .iter()
        .map(|root| PathBuf::from(format!("{root}/system.slice/{slice}{unit}")))
        .find(|group| group.exists())
}

/// How long a start has to be abandoned before it is: pg_ctlcluster and pg_ctl come and go in less.
pub const ABANDONED: Duration = Duration::from_secs(3);

/// Nobody works any more on the start of this unit that systemd waits for: a postmaster that dies while pg_ctlcluster waits for it
/// may leave processes behind, and systemd then waits for a PID file that nobody will write, for ever, because the unit has no
/// start timeout.
pub fn start_is_abandoned(unit: &str, family: &Family) -> bool {
    let Some(group) = control_group(unit) else { return false };
    let members = std::fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
    let is_orphan = |pid: i32| family.children.iter().any(|child| child.pid == pid);
    let works = members.lines().filter_map(|pid| pid.parse().ok()).any(|pid| !is_orphan(pid));
    !works && family.postmaster.is_none()
}

/// The host is shutting down or rebooting (systemctl(1), is-system-running).
pub fn is_stopping() -> bool {
    // It exits non-zero for every state but "running".
    command::run(systemctl().arg("is-system-running"), PATIENCE).is_ok_and(|out| out.stdout.trim() == "stopping")
}

fn systemctl() -> Command {
    let mut command = Command::new("systemctl");
    command.arg("--no-ask-password").env("LC_ALL", "C").env("SYSTEMD_PAGER", "");
    // systemctl notifies whom it finds there, and systemd would complain about a message that is not ours.
    command.env_remove("NOTIFY_SOCKET");
    command
}

fn call(command: &mut Command) -> Result<String> {
    let what = || {
        let words: Vec<_> = command.get_args().map(|a| a.to_string_lossy().into_owned()).collect();
        format!("{} {}", command.get_program().to_string_lossy(), words[1..].join(" "))
    };
    let what = what();
    match command::run(command, PATIENCE) {
        Ok(out) if out.status.success() => Ok(out.stdout),
        Ok(out) => Err(Error::failed(format!("{what} failed: {}", out.stderr.trim()))),
        Err(e) => Err(Error::failed(format!("could not run {what}: {e}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_are_read_from_the_list() {
        let list = listed(
            "pg-watchdog.service loaded active running Restart what dies\npg-backup.timer masked inactive dead pg-backup.timer\n",
        );
        assert_eq!(
            (list.len(), list["pg-watchdog.service"].as_str(), list["pg-backup.timer"].as_str()),
            (2, "active", "inactive")
        );
    }

    #[test]
    fn a_killed_cluster_is_read_as_such() {
        let state = UnitState::parse(
            "LoadState=loaded\nActiveState=failed\nSubState=failed\nResult=signal\nUnitFileState=enabled-runtime\n\
             MainPID=0\nExecMainCode=2\nExecMainStatus=9\n",
        );
        assert!(state.was_killed() && !state.job && !state.is_masked());
        assert_eq!((state.active.as_str(), state.exit_status), ("failed", 9));
    }

    #[test]
    fn an_end_that_was_asked_for_is_told_from_one_that_was_not() {
        let of = |result: &str, active_exit| UnitState {
            active: "failed".into(),
            result: result.into(),
            main_start: 10.0,
            main_exit: 50.0,
            active_exit,
            ..UnitState::default()
        };
        assert!(of("exit-code", 49.9).failed_to_stop(), "told to stop, it ended with 143");
        assert!(!of("exit-code", 50.1).failed_to_stop(), "it ended by itself");
        assert!(!of("timeout", 9.0).failed_to_stop(), "it never came up");
        assert!(!of("watchdog", 49.9).failed_to_stop() && !of("oom-kill", 49.9).failed_to_stop());
    }

    #[test]
    fn a_queued_job_is_noticed() {
        assert!(UnitState::parse("ActiveState=deactivating\nJob=812\n").job);
    }
}
