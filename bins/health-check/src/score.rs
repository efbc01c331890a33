//! Two-level alarms, which checks may ask for a recovery, and the score; pg-health-check(8) tells the same to users.
//!
//! The score of a cluster is 100 less the sum of what its checks cost, and never below 1; it is 0 when a check of class
//! `Service` is critical, for then the cluster does not serve.
//!
//! | class      | warning | critical | not known |                                                             |
//! |------------|---------|----------|-----------|-------------------------------------------------------------|
//! | `Service`  |      20 | score 0  |        20 | the process answers, takes connections, queries and commits |
//! | `Capacity` |      10 |       40 |         5 | something runs out, or part of the clients cannot get in     |
//! | `Upkeep`   |       5 |       20 |         5 | something that a person should put in order soon             |
//!
//! A forecast is of class `Upkeep`: nothing has run out yet, and when it does, a check of its own costs the rest.
//!
//! Only critical checks of class `Service` count as failures: a full disk is reported as critical as long as it lasts, but
//! a recovery every minute would not make it better, and what is only foreseen least of all. A certificate that has expired
//! asks for its renewal once an hour (`count::enter_expired`).

use shared::health::{Check, Status};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    Service,
    Capacity,
    Upkeep,
}

pub fn class(name: &str) -> Class {
    match name {
        "process" | "socket" | "query" | "write" => Class::Service,
        "tcp"
        | "application_login"
        | "connections"
        | "memory"
        | "xid_age"
        | "multixact_age"
        | "slots"
        | "certificate"
        | "certificate_files"
        | "synchronous_standby"
        | "damage"
        | "files"
        | "replay" => Class::Capacity,
        name if name.ends_with("_forecast") => Class::Upkeep,
        name if name.starts_with("disk_") || name.starts_with("inodes_") => Class::Capacity,
        _ => Class::Upkeep,
    }
}

/// A check with what only this program needs of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Finding {
    pub check: Check,
    /// For the performance data: where it becomes a warning and where critical.
    pub limits: Option<(f64, f64)>,
    /// Critical, and a recovery could help.
    pub escalates: bool,
    /// What is left of something that runs out.
    pub left: Option<Left>,
}

/// For the forecast.
#[derive(Clone, Debug, PartialEq)]
pub struct Left {
    pub amount: u64,
    /// "B" for bytes, else what is counted.
    pub unit: &'static str,
    /// What will be when nothing is left.
    pub end: String,
    /// The next command for a person.
    pub next: String,
}

impl Finding {
    pub fn new(name: &str, status: Status, message: impl Into<String>) -> Self {
        let check = Check { name: name.into(), status, message: message.into(), ..Check::default() };
        let escalates = status == Status::Critical && class(name) == Class::Service;
        Finding { check, limits: None, escalates, left: None }
    }

    pub fn ok(name: &str, message: impl Into<String>) -> Self {
        Self::new(name, Status::Ok, message)
    }

    pub fn warning(name: &str, message: impl Into<String>) -> Self {
        Self::new(name, Status::Warning, message)
    }

    pub fn critical(name: &str, message: impl Into<String>) -> Self {
        Self::new(name, Status::Critical, message)
    }

    pub fn unknown(name: &str, message: impl Into<String>) -> Self {
        Self::new(name, Status::Unknown, message)
    }

    /// Two levels: a warning from `warn` on, critical from `fail` on.
    pub fn level(name: &str, value: f64, unit: &str, (warn, fail): (f64, f64), message: impl Into<String>) -> Self {
        let status = match value {
            v if v >= fail => Status::Critical,
            v if v >= warn => Status::Warning,
            _ => Status::Ok,
        };
        Self::new(name, status, message).value(value, unit).limits(warn, fail)
    }

    pub fn value(mut self, value: f64, unit: &str) -> Self {
        // Three digits are more than anybody reads, and JSON stays short.
        self.check.value = Some((value * 1000.0).round() / 1000.0);
        self.check.unit = (!unit.is_empty()).then(|| unit.to_string());
        self
    }

    pub fn limits(mut self, warn: f64, fail: f64) -> Self {
        self.limits = Some((warn, fail));
        self
    }

    pub fn left(mut self, amount: f64, unit: &'static str, end: String, next: String) -> Self {
        self.left = Some(Left { amount: amount.max(0.0) as u64, unit, end, next });
        self
    }

    /// No better than this, for a reason that the value does not tell.
    pub fn at_least(mut self, status: Status) -> Self {
        self.check.status = self.check.status.max(status);
        self
    }

    /// Critical, and no restart would help.
    pub fn without_recovery(mut self) -> Self {
        self.escalates = false;
        self
    }
}

/// One word of a command that a person may copy into a shell, whoever chose its text.
pub fn word(text: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "_-./:".contains(c);
    if text.chars().all(is_plain) { text.into() } else { format!("'{}'", text.replace('\'', r"'\''")) }
}

/// The status of a cluster. A check that could not be made makes it `Unknown` only when it is not known whether the
/// cluster serves; any other is a warning.
pub fn overall(findings: &[Finding]) -> Status {
    let weigh = |f: &Finding| match f.check.status {
        Status::Unknown if class(&f.check.name) != Class::Service => Status::Warning,
        status => status,
    };
    findings.iter().map(weigh).max().unwrap_or(Status::Ok)
}

pub fn score(findings: &[Finding]) -> u8 {
    let mut left = 100i32;
    for finding in findings {
        left -= match (finding.check.status, class(&finding.check.name)) {
            (Status::Ok, _) => 0,
            (Status::Critical, Class::Service) => return 0,
            (Status::Warning | Status::Unknown, Class::Service) => 20,
            (Status::Critical, Class::Capacity) => 40,
            (Status::Warning, Class::Capacity) => 10,
            (Status::Unknown, _) => 5,
            (Status::Critical, Class::Upkeep) => 20,
            (Status::Warning, Class::Upkeep) => 5,
        };
    }
    left.max(1) as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_alarm_has_two_levels() {
        let status = |value| Finding::level("disk_data", value, "%", (80.0, 90.0), "").check.status;
        assert_eq!(
            [status(79.9), status(80.0), status(89.9), status(90.0)],
            [Status::Ok, Status::Warning, Status::Warning, Status::Critical]
        );
    }

    #[test]
    fn a_full_disk_is_critical_and_asks_for_no_recovery() {
        let full = Finding::level("disk_data", 99.0, "%", (80.0, 90.0), "");
        assert_eq!((full.check.status, full.escalates), (Status::Critical, false));
        assert!(Finding::critical("socket", "").escalates);
        let foreseen = [Finding::critical("disk_data_forecast", ""), Finding::critical("connections_forecast", "")];
        assert!(foreseen.iter().all(|f| !f.escalates) && score(&foreseen) == 60, "a forecast starts no recovery");
        assert!(!Finding::critical("write", "").without_recovery().escalates);
    }

    #[test]
    fn a_name_that_somebody_chose_is_one_word_to_a_shell() {
        assert_eq!(word("/var/lib/x-1"), "/var/lib/x-1");
        assert_eq!(word("$(id) 'x'"), r"'$(id) '\''x'\'''");
    }

    #[test]
    fn the_score_is_zero_only_when_the_cluster_does_not_serve() {
        assert_eq!(score(&[]), 100);
        assert_eq!(score(&[Finding::critical("write", ""), Finding::ok("socket", "")]), 0);
        assert_eq!(score(&[Finding::critical("disk_wal", ""), Finding::warning("archiver", "")]), 55);
        let many: Vec<_> = (0..9).map(|_| Finding::critical("disk_data", "")).collect();
        assert_eq!(score(&many), 1);
    }

    #[test]
    fn not_knowing_whether_it_serves_is_worse_than_not_knowing_a_detail() {
        assert_eq!(overall(&[Finding::unknown("archiver", ""), Finding::ok("write", "")]), Status::Warning);
        assert_eq!(overall(&[Finding::unknown("write", ""), Finding::warning("pressure", "")]), Status::Unknown);
        assert_eq!(overall(&[Finding::unknown("write", ""), Finding::critical("memory", "")]), Status::Critical);
    }
}
