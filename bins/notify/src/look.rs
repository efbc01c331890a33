//! What is not as it should be just now: clusters that the health check does not find well, units of ours that have failed.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use shared::clock::{Stamp, uptime};
use shared::config::{Config, Severity};
use shared::health::{Health, Status};
use shared::{health, pause, state, unit};

/// A result that is older says nothing about now: the check does not run.
const FRESH: Duration = Duration::from_secs(180);

/// What must not fail. pg-recovery.service says how a recovery ended in the journal, pg-health-check.service by what it
/// finds.
const UNITS: [&str; 6] = [
    "pg-watchdog.service",
    "pg-backup.service",
    "pg-wal-stream.service",
    "pg-restore-drill.service",
    "pg-rollback-guard.service",
    "pg-notify-mail.service",
];

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq)]
pub struct Finding {
    /// `16/main`, `16/main: warnings` or a unit.
    pub about: String,
    /// `None`: it is well. Else how bad it is, and what is said.
    pub trouble: Option<(Severity, String)>,
    pub at: Stamp,
}

pub struct Sight {
    pub findings: Vec<Finding>,
    /// Every cluster serves, and that was seen a moment ago.
    pub all_serve: bool,
}

pub fn around(config: &Config) -> Sight {
    let now = Stamp::now();
    let healths = healths(config);
    let is_fresh = |health: &Health| now.since_with(&health.at, uptime()) < FRESH;
    let all_serve = !healths.is_empty()
        && healths.values().all(|health| is_fresh(health) && matches!(health.status, Status::Ok | Status::Warning));
    let mut findings: Vec<Finding> = healths
        .iter()
        .filter(|(_, health)| is_fresh(health))
        .flat_map(|(cluster, health)| of(cluster, health))
        .collect();
    match unit::show(&UNITS) {
        Ok(units) => findings.extend(UNITS.iter().zip(units).map(|(name, unit)| Finding {
            about: name.to_string(),
            trouble: (unit.active == "failed").then(|| {
                (Severity::Critical, format!("{name} has failed ({}): journalctl --unit {name}", unit.result))
            }),
            at: now.clone(),
        })),
        Err(why) => log::warn!("could not ask systemd for the units of pg-recovery: {why}"),
    }
    Sight { findings, all_serve }
}

/// The last result for each cluster that is still there.
fn healths(config: &Config) -> BTreeMap<String, Health> {
    let folder = Path::new(state::DIRECTORY).join("health");
    let names = std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.file_name());
    let clusters = names.filter_map(|name| name.to_str()?.strip_suffix(".json").map(shared::config::canonical));
    let is_there = |cluster: &String| {
        config.cluster.iter().any(|entry| entry.name == *cluster) || Path::new("/etc/postgresql").join(cluster).exists()
    };
    clusters.filter(is_there).map(|cluster| (cluster.clone(), health::state(&cluster).value)).collect()
}

fn of(cluster: &str, health: &Health) -> Vec<Finding> {
    let said = |status: Status| {
        let checks = health.checks.iter().filter(|check| check.status == status);
        let texts: Vec<String> = checks.map(|check| format!("{}: {}", check.name, check.message)).collect();
        (!texts.is_empty()).then(|| format!("cluster {cluster}: {}", texts.join("; ")))
    };
    let finding = |about: String, trouble| Finding { about, trouble, at: health.at.clone() };
    let critical = finding(cluster.into(), said(Status::Critical).map(|text| (Severity::Critical, text)));
    let warnings = format!("{cluster}: warnings");
    let warnings = finding(warnings, said(Status::Warning).map(|text| (Severity::Warning, text)));
    match health.status {
        // A person knows that it is not well, and asked not to be disturbed.
        _ if pause::of(cluster).is_some() => Vec::new(),
        Status::Ok | Status::Warning => vec![critical, warnings],
        // What else is wrong meanwhile, and whether it still is, cannot be told.
        Status::Critical => vec![critical],
        Status::Unknown => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use shared::health::Check;

    #[test]
    fn warnings_are_an_incident_of_their_own_and_an_unknown_result_ends_none() {
        let check =
            |status, message: &str| Check { name: "disk".into(), status, message: message.into(), ..Check::default() };
        let mut health =
            Health { status: Status::Warning, checks: vec![check(Status::Warning, "81 %")], ..Health::default() };
        let found = of("15/main", &health);
        assert_eq!(found[0].trouble, None);
        assert_eq!(found[1].trouble, Some((Severity::Warning, "cluster 15/main: disk: 81 %".into())));
        health.checks.push(check(Status::Critical, "91 %"));
        health.status = Status::Critical;
        let found = of("15/main", &health);
        assert_eq!((found.len(), found[0].about.as_str()), (1, "15/main"));
        assert_eq!(found[0].trouble, Some((Severity::Critical, "cluster 15/main: disk: 91 %".into())));
        health.status = Status::Unknown;
        assert!(of("15/main", &health).is_empty());
    }
}
