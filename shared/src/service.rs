//! What pg-watchdog knows of one `[[service]]`: `/var/lib/pg-recovery/services/NAME.json`, changed under the lock
//! `service-NAME` by pg-watchdog after each look, and by `pg-status services --reset`.

use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::clock::{Stamp, uptime};
use crate::config::Service;
use crate::counter::Counter;
use crate::error::{Error, Result};
use crate::lock::Lock;
use crate::record::Record;
use crate::state::{self, State};

/// Whoever has it reads and replaces one small file.
const PATIENCE: Duration = Duration::from_secs(5);

/// How it is.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Condition {
    /// Nobody has looked, or not for long.
    #[default]
    Unknown,
    Ok,
    /// systemd is at work on it, or it was restarted a moment ago.
    Starting,
    /// A look failed; the next ones will tell.
    Failing,
    Down,
    /// Something that it depends on does not serve.
    Waiting,
    /// A person has switched it off, or stopped it.
    Off,
    /// Its restarts are used up.
    Manual,
}

impl Condition {
    pub const ALL: [Condition; 8] = {
        use Condition::*;
        [Ok, Starting, Failing, Down, Waiting, Off, Manual, Unknown]
    };

    /// As people and metrics have it.
    pub fn name(self) -> &'static str {
        match self {
            Condition::Unknown => "not checked",
            Condition::Ok => "ok",
            Condition::Starting => "starting",
            Condition::Failing => "failing",
            Condition::Down => "down",
            Condition::Waiting => "waiting",
            Condition::Off => "off",
            Condition::Manual => "needs you",
        }
    }
}

#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub struct Known {
    /// When it was last looked at.
    pub at: Stamp,
    pub condition: Condition,
    pub since: Stamp,
    /// What is not as it should be, or why nothing is done about it.
    pub why: String,
    /// Looks in a row in which it did not serve, and nothing else was the cause.
    pub failures: u32,
    /// systemd stopped it because a cluster that it depends on went down.
    pub taken_down: bool,
    pub restarts: Counter,
    /// They are used up: none is made until `cool_down` has passed since the last one.
    pub exhausted: bool,
    /// What is wrong, until it is well again.
    pub incident: Option<Incident>,
}

#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub struct Incident {
    pub began: Stamp,
    /// Written to the history when it is over, if anything was done.
    pub record: Record,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Allowance {
    /// Now; it would be this one of the window.
    Now(u32),
    /// The last one was a moment ago: after this time.
    In(Duration),
    /// So many were made within the window.
    Exhausted(u32),
}

impl Known {
    pub fn load(service: &str) -> State<Known> {
        // A folder that cannot be made shows when the file is written; the state then goes to memory.
        let _ = std::fs::create_dir_all(Path::new(state::DIRECTORY).join("services"));
        State::load(&format!("services/{service}.json"))
    }

    /// Whether it may be restarted. A budget that was used up comes back as a whole.
    pub fn allows(&mut self, rule: &Service, now: &Stamp) -> Allowance {
        let Some(since) = self.restarts.quiet(now) else { return Allowance::Now(1) };
        if self.exhausted && since >= rule.cool_down() {
            self.forget();
            return Allowance::Now(1);
        }
        let made = self.restarts.within(rule.restart_window(), now);
        match rule.start_timeout().checked_sub(since).filter(|left| !left.is_zero()) {
            Some(left) => Allowance::In(left),
            None if self.exhausted || made >= rule.restarts() => Allowance::Exhausted(made),
            None => Allowance::Now(made + 1),
        }
    }

    /// All restarts may be made again.
    pub fn forget(&mut self) {
        self.restarts.clear();
        self.exhausted = false;
    }

    /// Was it looked at so lately that this says something about now?
    pub fn is_fresh(&self, rule: &Service, now: &Stamp) -> bool {
        self.at != Stamp::default()
            && now.since_with(&self.at, uptime()) < 3 * rule.interval() + Duration::from_secs(90)
    }
}

/// How it is named in records, in the journal's field `PG_CLUSTER`, and in messages; no cluster has such a version.
pub fn about(service: &str) -> String {
    format!("service/{service}")
}

/// Held while its file is read, changed and replaced.
pub fn lock(service: &str) -> Result<Lock> {
    Lock::take(&about(service), PATIENCE)?
        .ok_or_else(|| Error::failed(format!("could not lock the state of service {service}: it stays locked")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: f64) -> Stamp {
        Stamp { wall: 1e9 + second, boot: second, boot_id: "a".into() }
    }

    #[test]
    fn five_restarts_a_pause_and_five_more() {
        let (rule, mut known) = (Service::default(), Known::default());
        let mut now = 0.0;
        for nth in 1..=5 {
            assert_eq!(known.allows(&rule, &at(now)), Allowance::Now(nth));
            known.restarts.add(at(now));
            assert_eq!(known.allows(&rule, &at(now + 10.0)), Allowance::In(Duration::from_secs(20)));
            now += 30.0;
        }
        assert_eq!(known.allows(&rule, &at(now)), Allowance::Exhausted(5));
        known.exhausted = true;
        // Most have left the window, and nothing is done all the same.
        assert!(matches!(known.allows(&rule, &at(419.0)), Allowance::Exhausted(_)));
        assert_eq!(known.allows(&rule, &at(420.0)), Allowance::Now(1));
        assert!(!known.exhausted);
    }

    #[test]
    fn a_restart_now_and_then_is_never_too_many() {
        let (rule, mut known) = (Service::default(), Known::default());
        for n in 0..50 {
            let now = at(100.0 * f64::from(n));
            assert!(matches!(known.allows(&rule, &now), Allowance::Now(_)), "{n}");
            known.restarts.add(now);
        }
    }
}
