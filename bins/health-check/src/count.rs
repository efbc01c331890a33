//! Failures in a row, kept on disk; and when a failure is not counted.

use shared::cluster::Cluster;
use shared::config::{Config, OnCleanStop};
use shared::health::{Health, Status};
use shared::lock::Lock;
use shared::standing::{self, Standing};
use shared::{log as journal, pause};

use crate::postmaster::Facts;
use crate::score::Finding;
use crate::startup::Progress;

/// As pg-health-check.timer has it.
const PASSES_PER_HOUR: u32 = 60;

#[derive(Clone, Debug, PartialEq)]
pub enum Count {
    /// It serves.
    Reset,
    Add,
    /// Neither, and this is why; reads on from "cluster 16/main ".
    Hold(String),
}

/// What this pass means for the count. `hold` is asked only when there is a failure to count.
pub fn decide(findings: &[Finding], status: Status, hold: impl FnOnce() -> Option<String>) -> Count {
    if findings.iter().any(|f| f.escalates) {
        return hold().map_or(Count::Add, Count::Hold);
    }
    match status {
        Status::Unknown => Count::Hold("did not tell whether it serves".into()),
        _ => Count::Reset,
    }
}

/// Why a failure is not counted now, as far as that can be told without the cluster, whose file system may hang.
pub fn excuse(name: &str) -> Option<String> {
    if let Some(why) = pause::of(name) {
        return Some(why);
    }
    match Lock::try_take_shared(name) {
        Ok(Some(_free)) => {}
        Ok(None) => return Some("is being worked on by another program, which holds its lock".into()),
        Err(e) => log::warn!(PG_CLUSTER = name; "{}; going on as if nobody held it", e.message),
    }
    None
}

/// Why a failure of this cluster is not counted now.
pub fn hold(cluster: &Cluster, config: &Config, facts: &Facts, progress: Option<&Progress>) -> Option<String> {
    let name = cluster.name();
    if let Some(why) = excuse(&name) {
        return Some(why);
    }
    if let Some(Progress::Moves(what)) = progress {
        return Some(what.clone());
    }
    if facts.stopped_cleanly() && config.on_clean_stop_of(&name) == OnCleanStop::Leave {
        return Some("was stopped cleanly, and on_clean_stop is \"leave\"".into());
    }
    let asked;
    let (unit, umbrella) = match &facts.units {
        Some(units) => units,
        None => match standing::units(cluster) {
            Ok(units) => {
                asked = units;
                &asked
            }
            // Whoever is started by this failure asks again before doing anything.
            Err(e) => {
                log::warn!(PG_CLUSTER = name.as_str(); "{}; counting the failure", e.message);
                return None;
            }
        },
    };
    match standing::of(cluster, config, unit, umbrella.as_ref()) {
        Standing::Left(why) => Some(why),
        Standing::Meant => None,
    }
}

/// Enters the pass; true when a recovery is due, at the `max`th failure in a row and each further one. A server that was
/// ill before somebody stopped it gets the full time in which that stop can be explained.
pub fn enter(health: &mut Health, count: &Count, stopped: bool, max: u32) -> bool {
    match count {
        Count::Reset => health.failures = 0,
        Count::Add if stopped && !health.stopped => health.failures = 1,
        Count::Add => health.failures = health.failures.saturating_add(1),
        Count::Hold(_) => {}
    }
    health.stopped = stopped && *count == Count::Add;
    *count == Count::Add && health.failures >= max
}

/// Enters whether its certificate has expired while it serves. True when a renewal is to be asked for: at the `max`th pass in a
/// row that finds it so, and every hour after that, for pg-cert-renew pauses as long after a failure.
pub fn enter_expired(health: &mut Health, has_expired: bool, max: u32) -> bool {
    health.expired = if has_expired { health.expired.saturating_add(1) } else { 0 };
    health.expired.checked_sub(max).is_some_and(|passes| passes % PASSES_PER_HOUR == 0)
}

/// Says what was decided, where a person would look for it.
pub fn tell(name: &str, count: &Count, stopped: bool, failures: u32, max: u32) {
    match count {
        Count::Reset => {}
        Count::Hold(why) => {
            log::info!(MESSAGE_ID = journal::LEFT_ALONE, PG_CLUSTER = name; "not counted as a failure: cluster {name} {why}");
        }
        Count::Add if failures < max => {
            let (left, s) = (max - failures, if max - failures == 1 { "" } else { "s" });
            if stopped {
                log::warn!(
                    PG_CLUSTER = name;
                    "cluster {name} was stopped cleanly although it is meant to run: it will be started after {left} \
                     more check{s}, unless you type: pg-recover pause --cluster {name} 2h \"why\""
                );
            } else {
                log::warn!(PG_CLUSTER = name; "failure {failures} of {max}: a recovery is due after {left} more check{s}");
            }
        }
        Count::Add => {
            log::error!(PG_CLUSTER = name; "failure {failures} in a row: a recovery of cluster {name} is due");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_a_recovery_could_help_is_counted() {
        let never = || -> Option<String> { panic!("asked without a failure") };
        let full = [Finding::level("disk_data", 99.0, "%", (80.0, 90.0), "")];
        assert_eq!(decide(&full, Status::Critical, never), Count::Reset);
        assert_eq!(decide(&[], Status::Ok, never), Count::Reset);
        assert_eq!(decide(&[Finding::critical("socket", "")], Status::Critical, || None), Count::Add);
        let paused = decide(&[Finding::critical("socket", "")], Status::Critical, || Some("is paused".into()));
        assert_eq!(paused, Count::Hold("is paused".into()));
        assert!(matches!(decide(&[Finding::unknown("write", "")], Status::Unknown, never), Count::Hold(_)));
    }

    #[test]
    fn the_third_failure_in_a_row_is_due_and_so_is_each_further_one() {
        let mut health = Health::default();
        let hold = Count::Hold(String::new());
        let mut enter = |count: &Count| enter(&mut health, count, false, 3);
        let due: Vec<bool> = [&Count::Add, &hold, &Count::Add, &Count::Add, &hold, &Count::Add].map(&mut enter).into();
        assert_eq!(due, [false, false, false, true, false, true]);
        assert!(!enter(&Count::Reset) && !enter(&Count::Add), "it begins again");
    }

    #[test]
    fn an_expired_certificate_is_told_on_once_an_hour_and_is_no_failure() {
        let mut health = Health::default();
        let asks: Vec<u32> = (1..=130).filter(|_| enter_expired(&mut health, true, 3)).collect();
        assert_eq!((asks, health.failures), (vec![3, 63, 123], 0));
        assert!(!enter_expired(&mut health, false, 3) && !enter_expired(&mut health, true, 3), "it begins again");
    }

    #[test]
    fn a_clean_stop_of_an_ill_server_begins_a_count_of_its_own() {
        let mut health = Health { failures: 7, ..Health::default() };
        assert!(!enter(&mut health, &Count::Add, true, 3) && !enter(&mut health, &Count::Add, true, 3));
        assert!(enter(&mut health, &Count::Add, true, 3));
    }
}
