//! Whether the cluster's postmaster runs, in its unit; and if it does not, what became of it.

use shared::cluster::Cluster;
use shared::control::{Control, ControlError, DbState};
use shared::pidfile::LockFile;
use shared::process::{self, Identity, Process};
use shared::standing;
use shared::unit::UnitState;

use crate::score::Finding;

#[derive(Clone, Debug)]
pub struct Facts {
    pub lock: LockFile,
    pub postmaster: Option<Process>,
    /// It is stopped by somebody's debugger.
    pub traced: bool,
    /// Processes whose postmaster is dead.
    pub orphans: usize,
    /// Why it cannot be told whether it runs.
    pub unclear: Option<String>,
    /// The unit whose control group the postmaster is in.
    pub home: Option<String>,
    /// The cluster's unit and the umbrella; asked only when something is odd, because the question costs more than all
    /// others together.
    pub units: Option<(UnitState, Option<UnitState>)>,
    /// What pg_control says; read only when no postmaster runs.
    pub control: Option<Result<DbState, ControlError>>,
}

impl Facts {
    pub fn look(cluster: &Cluster) -> Facts {
        let (lock, _) = cluster.lock_file();
        let mut facts = Facts {
            lock,
            postmaster: None,
            traced: false,
            orphans: 0,
            unclear: None,
            home: None,
            units: None,
            control: None,
        };
        if let LockFile::Present(file) = &facts.lock
            && let Ok(Identity::Ours) = process::identify(file.pid, &cluster.data_directory, &cluster.owner)
        {
            facts.postmaster = Process::of(file.pid);
        }
        if facts.postmaster.is_none() {
            facts.search(cluster);
        }
        if let Some(postmaster) = &facts.postmaster {
            facts.traced = postmaster.is_stopped() && postmaster.is_traced();
            facts.home = postmaster.unit();
        } else {
            let control = cluster.owner.act(|| Control::read(&cluster.data_directory));
            facts.control = control.ok().map(|read| read.map(|(control, _)| control.state));
        }
        if facts.postmaster.is_none() || facts.is_astray(cluster) {
            facts.units = standing::units(cluster).ok();
        }
        facts
    }

    /// The lock file does not lead to the postmaster: looks at every process.
    fn search(&mut self, cluster: &Cluster) {
        match process::family(&cluster.data_directory, &cluster.owner) {
            Ok(family) => {
                self.orphans = if family.postmaster.is_none() { family.children.len() } else { 0 };
                if family.postmaster.is_none() && !family.unclear.is_empty() {
                    let pids: Vec<String> = family.unclear.iter().map(i32::to_string).collect();
                    self.unclear = Some(format!("processes {} could not be examined", pids.join(", ")));
                }
                self.postmaster = family.postmaster;
            }
            Err(e) => self.unclear = Some(e.message),
        }
    }

    pub fn runs(&self) -> bool {
        self.postmaster.is_some()
    }

    /// Without systemd there is no unit to be in.
    fn is_astray(&self, cluster: &Cluster) -> bool {
        self.home.as_ref().is_some_and(|home| *home != cluster.unit)
    }

    /// Nobody runs it, and it ended in its own time.
    pub fn stopped_cleanly(&self) -> bool {
        !self.runs()
            && self.unclear.is_none()
            && self.orphans == 0
            && matches!(&self.control, Some(Ok(state)) if state.is_clean())
    }

    /// systemd is at work on it.
    pub fn is_being_started(&self) -> bool {
        !self.runs() && self.units.as_ref().is_some_and(|(unit, _)| unit.active == "activating")
    }
}

pub fn judge(cluster: &Cluster, facts: &Facts) -> Finding {
    let name = "process";
    let Some(postmaster) = &facts.postmaster else {
        return match &facts.unclear {
            Some(why) => Finding::unknown(name, format!("it cannot be told whether the postmaster runs: {why}")),
            None => Finding::critical(name, absent(facts)),
        };
    };
    let pid = postmaster.pid;
    match postmaster.state {
        'T' | 't' if facts.traced => {
            return Finding::critical(name, format!("the postmaster (PID {pid}) is held by a debugger"));
        }
        'T' => return Finding::critical(name, format!("the postmaster (PID {pid}) is stopped by a signal")),
        'Z' => return Finding::critical(name, format!("the postmaster (PID {pid}) is dead and not yet reaped")),
        _ => {}
    }
    match &facts.lock {
        LockFile::Present(file) if file.pid == pid => {}
        // The server looks once a minute and then gives up (miscinit.c, RecheckDataDirLockFile).
        lock => {
            let what = match lock {
                LockFile::Missing => "is missing".to_string(),
                LockFile::Unreadable(why) => format!("cannot be read ({why})"),
                _ => "does not name it".to_string(),
            };
            let message = format!(
                "postmaster.pid {what} although the postmaster runs (PID {pid}): it will shut down within a minute"
            );
            return Finding::critical(name, message);
        }
    }
    match (&facts.home, &facts.units) {
        (Some(home), Some((unit, _))) if *home != cluster.unit => {
            let message = format!(
                "the postmaster (PID {pid}) runs in {home} instead of {}, which is {}: systemd cannot look after it",
                cluster.unit, unit.active
            );
            Finding::warning(name, message)
        }
        _ => Finding::ok(name, format!("the postmaster runs (PID {pid})")),
    }
}

fn absent(facts: &Facts) -> String {
    if facts.is_being_started() {
        return "no postmaster runs, systemd is starting it".into();
    }
    let mut message = if facts.stopped_cleanly() {
        "no postmaster runs, it was stopped cleanly".to_string()
    } else {
        let control = match &facts.control {
            Some(Ok(state)) => format!(" (pg_control: {state})"),
            Some(Err(why)) => format!(" ({why})"),
            None => String::new(),
        };
        format!("no postmaster runs{control}")
    };
    if let Some((unit, _)) = &facts.units {
        let how = match unit.exit_kind {
            _ if unit.was_killed() => format!(", killed by signal {}", unit.exit_status),
            1 if unit.exit_status != 0 => format!(", exit status {}", unit.exit_status),
            _ => String::new(),
        };
        let result = if unit.active == "failed" { format!(" ({})", unit.result) } else { String::new() };
        message.push_str(&format!("; its unit is {}{result}{how}", unit.active));
    }
    match &facts.lock {
        LockFile::Empty => message.push_str("; postmaster.pid is empty"),
        LockFile::Garbage => message.push_str("; postmaster.pid holds garbage"),
        LockFile::Unreadable(why) => message.push_str(&format!("; postmaster.pid cannot be read: {why}")),
        LockFile::Missing | LockFile::Present(_) => {}
    }
    if facts.orphans > 0 {
        message.push_str(&format!("; {} processes of the dead one are left", facts.orphans));
    }
    message
}

#[cfg(test)]
mod tests {
    use super::*;
    use shared::health::Status;
    use shared::pidfile::PidFile;

    fn cluster() -> Option<Cluster> {
        let folder = std::env::temp_dir();
        let text = format!(
            "[[cluster]]\nname = \"15/x\"\nunit = \"x.service\"\ndata_directory = \"{}\"\nbin_directory = \"/x\"",
            folder.display()
        );
        let file = folder.join(format!("pg-health-check-{:?}.toml", std::thread::current().id()));
        std::fs::write(&file, text).unwrap();
        let config = shared::config::Config::load(Some(&file)).unwrap();
        let found = Cluster::select(&config, &["15/x".into()]).ok()?.pop();
        std::fs::remove_file(file).unwrap();
        found
    }

    fn facts(state: char) -> Facts {
        Facts {
            lock: LockFile::Present(PidFile { pid: 7, ..PidFile::default() }),
            postmaster: Some(Process { pid: 7, parent: 1, comm: "postgres".into(), state, cpu: 0, started: 0 }),
            traced: false,
            orphans: 0,
            unclear: None,
            home: Some("x.service".into()),
            units: None,
            control: None,
        }
    }

    #[test]
    fn a_postmaster_is_judged_by_its_state_its_lock_file_and_its_unit() {
        let Some(cluster) = cluster() else { return }; // no user postgres here: nobody could own such a cluster
        let status = |facts: &Facts| judge(&cluster, facts).check.status;
        assert_eq!(status(&facts('S')), Status::Ok);
        assert_eq!(status(&facts('T')), Status::Critical);
        assert_eq!(status(&Facts { lock: LockFile::Missing, ..facts('S') }), Status::Critical);
        let unit = UnitState { active: "failed".into(), ..UnitState::default() };
        let astray = Facts { home: Some("session-1.scope".into()), units: Some((unit, None)), ..facts('S') };
        assert_eq!(status(&astray), Status::Warning);
        assert_eq!(status(&Facts { home: None, ..facts('S') }), Status::Ok, "a host without systemd");
    }

    #[test]
    fn what_became_of_a_postmaster_is_told() {
        let Some(cluster) = cluster() else { return };
        let gone = Facts { postmaster: None, ..facts('S') };
        let killed = UnitState {
            active: "failed".into(),
            result: "exit-code".into(),
            exit_kind: 2,
            exit_status: 9,
            ..UnitState::default()
        };
        let control = Some(Ok(DbState::InProduction));
        let crashed = Facts { units: Some((killed, None)), control, ..gone.clone() };
        let message = judge(&cluster, &crashed).check.message;
        assert_eq!(
            message,
            "no postmaster runs (pg_control: in production); its unit is failed (exit-code), killed by signal 9"
        );
        let clean = Facts { control: Some(Ok(DbState::ShutDown)), ..gone.clone() };
        assert!(clean.stopped_cleanly() && !crashed.stopped_cleanly());
        let unclear = Facts { unclear: Some("processes 8 could not be examined".into()), ..gone };
        assert_eq!(judge(&cluster, &unclear).check.status, Status::Unknown);
        assert!(!unclear.stopped_cleanly());
    }
}
