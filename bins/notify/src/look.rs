//! What is not as it should be just now: clusters that the health check does not find well, units of ours that have failed.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use shared::clock::{Stamp, uptime};
use shared::config::{Config, Severity};
use shared::exit::Code;
use shared::health::{Health, Status};
use shared::unit::{self, UnitState};
use shared::{health, pause, service, state};

/// A result that is older says nothing about now: the check does not run.
const FRESH: Duration = Duration::from_secs(180);

/// What must not fail.
const UNITS: [&str; 11] = [
    "pg-watchdog.service",
    "pg-recovery.service",
    "pg-health-check.service",
    "pg-backup.service",
    "pg-wal-stream.service",
    "pg-restore-drill.service",
    "pg-cert-renew.service",
    "pg-rollback-guard.service",
    "pg-rollback@config.service",
    "pg-rollback@security.service",
    "pg-notify-mail.service",
];
/// These end with an error to say what they found, which the journal and their results have.
const TELL_BY_FAILING: [&str; 2] = ["pg-recovery.service", "pg-health-check.service"];
const CHECKS: &str = "health checks";
const CONFIGURATION: &str = "configuration";

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq)]
pub struct Finding {
    /// `16/main`, `16/main: warnings`, `service/shop`, a unit, `health checks` or `configuration`.
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

/// `mistake`: why the configuration cannot be used.
pub fn around(config: &Config, mistake: Option<String>) -> Sight {
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
            trouble: has_failed(name, &unit).then(|| {
                (Severity::Critical, format!("{name} has failed ({}): journalctl --unit {name}", unit.result))
            }),
            at: now.clone(),
        })),
        Err(why) => log::warn!("could not ask systemd for the units of pg-recovery: {why}"),
    }
    // Where clusters are checked, somebody would miss it.
    let is_checked = unit::show_one("pg-recovery.target").is_ok_and(|target| target.active == "active");
    let is_silent = !healths.is_empty() && !healths.values().any(is_fresh) && uptime() > 2 * FRESH && is_checked;
    findings.push(Finding {
        about: CHECKS.into(),
        trouble: is_silent.then(|| {
            let text = "no cluster was checked for three minutes: systemctl status pg-health-check.timer pg-health-check.service";
            (Severity::Critical, text.into())
        }),
        at: now.clone(),
    });
    let trouble = mistake.map(|why| (Severity::Critical, format!("{why}; what was configured before stays in force")));
    findings.push(Finding { about: CONFIGURATION.into(), trouble, at: now });
    Sight { findings, all_serve }
}

/// One that systemd starts again and again never comes to rest as failed.
fn has_failed(name: &str, unit: &UnitState) -> bool {
    let loops = unit.sub == "auto-restart" && unit.result != "success";
    let by_itself =
        !TELL_BY_FAILING.contains(&name) || unit.result != "exit-code" || unit.exit_status == Code::Config as i32;
    (unit.active == "failed" || loops) && by_itself
}

/// Is this still there to be told about?
pub fn is_there(config: &Config, about: &str) -> bool {
    let name = about.split(": ").next().unwrap_or(about);
    config.cluster.iter().any(|entry| entry.name == name)
        || config.service.iter().any(|rule| service::about(&rule.name) == name)
        || (name.contains('/') && Path::new("/etc/postgresql").join(name).exists())
        || UNITS.contains(&name)
        || [CHECKS, CONFIGURATION].contains(&name)
}

/// The last result for each cluster that is still there.
fn healths(config: &Config) -> BTreeMap<String, Health> {
    let folder = Path::new(state::DIRECTORY).join("health");
    let names = std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.file_name());
    let clusters = names.filter_map(|name| name.to_str()?.strip_suffix(".json").map(shared::config::canonical));
    clusters
        .filter(|cluster| is_there(config, cluster))
        .map(|cluster| (cluster.clone(), health::state(&cluster).value))
        .collect()
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
    fn who_tells_by_failing_has_not_failed_and_who_is_started_again_and_again_has() {
        let unit = |active: &str, sub: &str, result: &str, exit_status| UnitState {
            active: active.into(),
            sub: sub.into(),
            result: result.into(),
            exit_status,
            ..UnitState::default()
        };
        assert!(!has_failed("pg-health-check.service", &unit("failed", "failed", "exit-code", 10)));
        assert!(has_failed("pg-recovery.service", &unit("failed", "failed", "exit-code", 78)));
        assert!(has_failed("pg-health-check.service", &unit("failed", "failed", "timeout", 15)));
        assert!(has_failed("pg-watchdog.service", &unit("activating", "auto-restart", "core-dump", 6)));
        assert!(!has_failed("pg-watchdog.service", &unit("active", "running", "success", 0)));
    }

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
