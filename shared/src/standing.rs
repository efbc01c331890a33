//! Desired state: may anybody start, stop or alter this cluster now?
//!
//! A cluster is meant to run when `start.conf` says `auto`, its unit is not masked, and it is started at boot: by the
//! umbrella postgresql.service (postgresql-common's generator links every `auto` cluster to it, whatever `systemctl
//! disable` was told about the instance) or by being enabled itself.

use std::os::linux::fs::MetadataExt;

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::clock::Stamp;
use crate::cluster::{self, Cluster, Start};
use crate::config::Config;
use crate::counter::Counter;
use crate::error::Result;
use crate::state::State;
use crate::unit::{self, UnitState};
use crate::{deadline, evidence, pause, process};

/// `/var/lib/pg-recovery/recover/16-main.json`, written by pg-recover.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub struct Verdict {
    /// Recoveries in a row that acted and failed, or were interrupted.
    pub attempts: u32,
    /// Those that did not. One that is followed by the next within `watchdog.restart_window` counts as if it had failed:
    /// a server that dies again and again is not started for ever.
    pub recoveries: Counter,
    /// Those that signalled or stopped a server that ran: no more than so many within `watchdog.quiet`, for what comes and
    /// goes may be somebody's wish (T5).
    pub disturbed: Counter,
    /// When a person was last told that this limit was reached.
    pub told: Option<Stamp>,
    /// Nothing more is tried until `pg-recover reset`.
    pub manual: bool,
    /// pg-recover stopped it, or pg-watchdog its start, and was to start it again.
    pub stopped_by_us: bool,
    /// Class of the fault that was handed over last; an alarm is raised once for each.
    pub handed_over: String,
    /// The server answered in spite of the last fault: that it was seen to answer since says nothing about that one.
    pub answered: bool,
    /// When a person last said that the cause is repaired: how earlier tries ended says nothing any more.
    pub reset: String,
    /// The step that waits for a person's approval.
    pub waiting: String,
    /// What a person has allowed.
    pub approved: Vec<Approval>,
    /// What the server said when a start failed for a reason that is not known, without numbers.
    pub unknown: String,
    pub at: Stamp,
}

/// A person's word that a step may be taken that gives up data.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub struct Approval {
    pub step: String,
    /// Whenever it is needed; otherwise the next time, and no more.
    pub always: bool,
    pub by: String,
    pub at: Stamp,
}

impl Verdict {
    pub fn is_approved(&self, step: &str) -> bool {
        self.approved.iter().any(|approval| approval.step == step)
    }

    /// Those that hold on.
    pub fn lasting_approvals(&self) -> Vec<Approval> {
        self.approved.iter().filter(|approval| approval.always).cloned().collect()
    }

    /// What is left of it when the cluster is well.
    pub fn past(&self) -> Verdict {
        Verdict {
            recoveries: self.recoveries.clone(),
            disturbed: self.disturbed.clone(),
            told: self.told.clone(),
            reset: self.reset.clone(),
            approved: self.lasting_approvals(),
            ..Verdict::default()
        }
    }

    /// The cluster was well after this was written. `seen` is when it last answered.
    pub fn is_past(&self, seen: Option<&Stamp>, config: &Config, now: &Stamp) -> bool {
        let is_open = self.answered && now.since(&self.at) < config.watchdog.quiet;
        !is_open && seen.is_some_and(|seen| seen.is_after(&self.at, now))
    }
}

pub fn verdict(cluster: &str) -> State<Verdict> {
    State::load(&format!("recover/{}.json", crate::cluster::file_name(cluster)))
}

/// The same without what is past, but for the word that only a person takes back.
pub fn present_verdict(cluster: &str, config: &Config) -> State<Verdict> {
    let mut verdict = verdict(cluster);
    let seen = evidence::load(cluster).map(|evidence| evidence.at);
    if verdict.value.is_past(seen.as_ref(), config, &Stamp::now()) {
        verdict.value = Verdict { manual: verdict.value.manual, ..verdict.value.past() };
    }
    verdict
}

#[derive(Clone, Debug, PartialEq)]
pub enum Standing {
    /// It is meant to run, and may be repaired.
    Meant,
    /// Nothing is done to it, and this is why; reads on from "cluster 16/main ".
    Left(String),
}

/// The unit of a cluster and the umbrella, asked in one call.
pub fn units(cluster: &Cluster) -> Result<(UnitState, Option<UnitState>)> {
    let (mut unit, umbrella) = ask(cluster)?;
    // What is meant to be down may be so because its volume is not there.
    if not_meant(cluster.start, &unit, umbrella.as_ref()).is_none() && is_outdated(cluster, &unit) {
        unit.result = "outdated".into();
        unit.exit_kind = 0;
        unit.exit_status = 0;
    }
    Ok((unit, umbrella))
}

fn ask(cluster: &Cluster) -> Result<(UnitState, Option<UnitState>)> {
    if !cluster.is_debian {
        return Ok((unit::show_one(&cluster.unit)?, None));
    }
    let mut states = unit::show(&[&cluster.unit, "postgresql.service"])?;
    let umbrella = states.pop();
    Ok((states.remove(0), umbrella))
}

/// A server that was started without systemd leaves the unit as it was, failed perhaps, and what the unit says then is
/// about an earlier one: pg_control has been written since.
fn is_outdated(cluster: &Cluster, unit: &UnitState) -> bool {
    if unit.active != "failed" {
        return false;
    }
    let path = cluster.data_directory.join(crate::control::NAME);
    let written = cluster.owner.act(|| std::fs::metadata(path).and_then(|meta| meta.modified()).ok()).ok().flatten();
    let (Some(written), Some(ended)) = (written.and_then(|at| at.elapsed().ok()), unit.inactive_for()) else {
        return false;
    };
    written + Duration::from_secs(2) < ended
}

pub fn of(cluster: &Cluster, config: &Config, unit: &UnitState, umbrella: Option<&UnitState>) -> Standing {
    if let Some(why) = pause::of(&cluster.name()) {
        return Standing::Left(why);
    }
    if let Some(why) = not_meant(cluster.start, unit, umbrella) {
        return Standing::Left(why);
    }
    let verdict = present_verdict(&cluster.name(), config).value;
    if verdict.manual {
        return Standing::Left(format!(
            "was handed over: manual intervention required; pg-recover reset --cluster {} ends this",
            cluster.name()
        ));
    }
    if unit::is_stopping() {
        return Standing::Left("is on a host that is shutting down".into());
    }
    // What was stopped to be repaired is started again all the same: apt waits for that when it removes this package.
    if !verdict.stopped_by_us
        && let Some(why) = package_manager_runs()
    {
        return Standing::Left(why);
    }
    if let Some(manager) = manager(cluster) {
        return Standing::Left(format!("is managed by {manager}, which starts and stops it"));
    }
    let users = process::users_of(&cluster.data_directory, &config.recover.data_directory_users, &cluster.unit);
    if !users.is_empty() {
        return Standing::Left(format!("has its data directory in use by {}", users.join(", ")));
    }
    Standing::Meant
}

/// The operator's own words for "off", without a look at the cluster's volume.
pub fn off(cluster: &Cluster) -> Result<Option<String>> {
    if let Some(why) = off_in_files(cluster) {
        return Ok(Some(why));
    }
    let (unit, umbrella) = ask(cluster)?;
    Ok(not_meant(cluster.start, &unit, umbrella.as_ref()))
}

/// The same, as far as it can be told without asking systemd, which may hang.
pub fn off_in_files(cluster: &Cluster) -> Option<String> {
    in_start_conf(cluster.start).or_else(|| unit::is_masked_by_link(&cluster.unit).then(masked))
}

fn in_start_conf(start: Start) -> Option<String> {
    match start {
        Start::Auto => None,
        Start::Manual => Some("is set to manual in start.conf".into()),
        Start::Disabled => Some("is disabled in start.conf".into()),
    }
}

fn masked() -> String {
    "has its unit masked".into()
}

fn not_meant(start: Start, unit: &UnitState, umbrella: Option<&UnitState>) -> Option<String> {
    if let Some(why) = in_start_conf(start) {
        return Some(why);
    }
    if unit.is_masked() {
        return Some(masked());
    }
    let enabled = |state: &UnitState| state.file_state.starts_with("enabled");
    match umbrella {
        // The generator's link makes every auto cluster "enabled-runtime"; only the umbrella being enabled starts it.
        Some(umbrella) if !enabled(umbrella) && unit.file_state != "enabled" => {
            Some("is disabled, as postgresql.service is".into())
        }
        None if !enabled(unit) => Some("is disabled".into()),
        _ => None,
    }
}

/// dpkg and apt hold fcntl locks on these files while they work. Root asks the kernel for them; others, who may not open
/// the files, find them in /proc/locks (proc(5)).
pub fn package_manager_runs() -> Option<String> {
    let is_locked = |path: &&str| match std::fs::File::open(path) {
        Ok(file) => holds_lock(&file),
        Err(_) => listed_as_locked(path),
    };
    let running = ["/var/lib/dpkg/lock", "/var/lib/dpkg/lock-frontend"].iter().any(is_locked);
    running.then(|| "is left alone while the package manager runs".to_string())
}

fn holds_lock(file: &std::fs::File) -> bool {
    // SAFETY: flock is a plain struct of integers, for which zeros are valid.
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    lock.l_type = libc::F_WRLCK as i16;
    nix::fcntl::fcntl(file, nix::fcntl::FcntlArg::F_GETLK(&mut lock)).is_ok() && lock.l_type != libc::F_UNLCK as i16
}

fn listed_as_locked(path: &str) -> bool {
    let locks = std::fs::read_to_string("/proc/locks").unwrap_or_default();
    let Ok(meta) = std::fs::metadata(path) else { return false };
    let (device, inode) = (meta.st_dev(), meta.st_ino());
    let id = format!("{:02x}:{:02x}:{inode}", libc::major(device), libc::minor(device));
    locks.lines().any(|l| l.split_whitespace().any(|word| word == id))
}

/// Patroni, pg_auto_failover and repmgr decide themselves what runs where, and when it is stopped.
pub fn manager(cluster: &Cluster) -> Option<String> {
    running_manager(cluster).map(str::to_owned).or_else(|| {
        // Patroni may be stopped itself; it leaves this file in the data directory.
        let file = cluster.data_directory.join("patroni.dynamic.json");
        let (owner, path) = (cluster.owner.clone(), file.clone());
        let is_there = move || owner.act(|| path.exists()).unwrap_or(false);
        let is_patronis =
            patroni_is_enabled() && deadline::within(&cluster.data_directory, cluster::PATIENCE, is_there)?;
        is_patronis.then(|| format!("Patroni ({} is there)", file.display()))
    })
}

fn patroni_is_enabled() -> bool {
    let wanted = std::fs::read_dir("/etc/systemd/system/multi-user.target.wants").into_iter().flatten().flatten();
    wanted.map(|link| link.file_name()).any(|name| name.as_encoded_bytes().starts_with(b"patroni"))
}

fn running_manager(cluster: &Cluster) -> Option<&'static str> {
    process::all().find_map(|process| {
        let manager = match process.comm.as_str() {
            "patroni" => "Patroni",
            "pg_autoctl" => "pg_auto_failover",
            "repmgrd" => "repmgr",
            comm if comm.starts_with("python") => {
                let title = process.title();
                let is_patroni = title.split(' ').take(3).any(|word| word.ends_with("/patroni") || word == "patroni");
                if is_patroni { "Patroni" } else { return None }
            }
            _ => return None,
        };
        // A manager of another user's cluster does not matter here.
        process.uid().is_none_or(|uid| uid == cluster.owner.uid.as_raw() || uid == 0).then_some(manager)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_that_answers_in_spite_of_its_fault_is_not_seen_to_be_well() {
        let at = |boot: f64| Stamp { wall: 1e9 + boot, boot, boot_id: "a".into() };
        let config = Config::default();
        let is_past = |answered, seen: Option<f64>, now| {
            let verdict = Verdict { answered, at: at(100.0), ..Verdict::default() };
            verdict.is_past(seen.map(at).as_ref(), &config, &at(now))
        };
        assert!(is_past(false, Some(101.0), 102.0));
        assert!(!is_past(false, Some(99.0), 102.0) && !is_past(false, None, 102.0));
        assert!(!is_past(true, Some(101.0), 102.0), "it answered all the time");
        assert!(is_past(true, Some(3700.0), 3701.0), "nobody has found anything for an hour");
    }

    fn unit(load: &str, file_state: &str) -> UnitState {
        UnitState { load: load.into(), file_state: file_state.into(), ..UnitState::default() }
    }

    #[test]
    fn a_fresh_debian_cluster_is_meant_to_run() {
        assert_eq!(not_meant(Start::Auto, &unit("loaded", "enabled-runtime"), Some(&unit("loaded", "enabled"))), None);
    }

    #[test]
    fn each_of_the_operators_words_is_heard() {
        let (instance, umbrella) = (unit("loaded", "enabled-runtime"), unit("loaded", "enabled"));
        let off = unit("loaded", "disabled");
        for (start, instance, umbrella) in [
            (Start::Manual, &instance, &umbrella),
            (Start::Disabled, &instance, &umbrella),
            (Start::Auto, &unit("masked", "masked"), &umbrella),
            (Start::Auto, &unit("masked", "masked-runtime"), &umbrella),
            (Start::Auto, &instance, &off),
        ] {
            assert!(not_meant(start, instance, Some(umbrella)).is_some(), "{start:?} {instance:?} {umbrella:?}");
        }
        assert_eq!(not_meant(Start::Auto, &unit("loaded", "enabled"), Some(&off)), None);
        assert!(not_meant(Start::Auto, &off, None).is_some());
    }
}
