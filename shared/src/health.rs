//! What a health check found, and what it keeps for the next one.
//!
//! `/var/lib/pg-recovery/health/16-main.json`, written by `pg-health-check --count` only. Its folder belongs to
//! postgres, so a program that runs as root takes what it says as a hint, never as a proof.

use serde::{Deserialize, Serialize};

use crate::clock::Stamp;
use crate::state::State;

/// Passes that are kept for trends: one hour.
const HISTORY: usize = 60;

/// Ordered by how bad it is, as the exit code of a check over several clusters needs it.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    Ok,
    Warning,
    #[default]
    Unknown,
    Critical,
}

impl std::fmt::Display for Status {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Status::Ok => "OK",
            Status::Warning => "WARNING",
            Status::Unknown => "UNKNOWN",
            Status::Critical => "CRITICAL",
        })
    }
}

/// The answer to one question.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub struct Check {
    pub name: String,
    pub status: Status,
    pub value: Option<f64>,
    pub unit: Option<String>,
    pub message: String,
}

/// One pass, as far as trends need it; percentages and ages, `None` when they could not be asked.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub struct Sample {
    /// Seconds since 1970.
    pub at: u64,
    pub score: u8,
    /// The fullest volume.
    pub disk: Option<f64>,
    pub connections: Option<f64>,
    pub xid_age: Option<f64>,
}

/// The state of one cluster.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub struct Health {
    pub at: Stamp,
    pub status: Status,
    pub score: u8,
    /// Passes in a row in which the cluster did not serve.
    pub failures: u32,
    /// The last of them found it stopped cleanly.
    pub stopped: bool,
    pub checks: Vec<Check>,
    /// The oldest first.
    pub history: Vec<Sample>,
    pub rehearsal: Rehearsal,
    pub replay: Replay,
    pub startup: Startup,
}

/// The last time the server's program read the configuration files without starting a server.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub struct Rehearsal {
    /// Tells whether the files have changed since.
    pub signature: String,
    pub error: Option<String>,
}

/// How far a standby has replayed, and since when it stands there.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub struct Replay {
    pub lsn: String,
    pub since: Stamp,
}

/// A server that is starting: the traces that its startup process leaves while it moves.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub struct Startup {
    /// 0: there is none.
    pub pid: i32,
    pub started: u64,
    pub cpu: u64,
    pub io: u64,
    pub title: String,
    /// Passes in a row that found the cluster starting.
    pub passes: u32,
    /// Startup processes that replaced another one meanwhile.
    pub replaced: u32,
}

impl Health {
    /// Adds one pass to the history; the oldest goes.
    pub fn remember(&mut self, sample: Sample) {
        self.history.push(sample);
        let surplus = self.history.len().saturating_sub(HISTORY);
        self.history.drain(..surplus);
    }
}

/// The state file of one cluster, given as `16/main`.
pub fn state(cluster: &str) -> State<Health> {
    State::load(&format!("health/{}.json", crate::cluster::file_name(cluster)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_history_is_a_ring_of_one_hour() {
        let mut health = Health::default();
        for at in 0..100 {
            health.remember(Sample { at, ..Sample::default() });
        }
        assert_eq!((health.history.len(), health.history[0].at), (60, 40));
    }

    #[test]
    fn critical_is_worse_than_not_knowing() {
        assert_eq!([Status::Unknown, Status::Critical, Status::Warning].into_iter().max(), Some(Status::Critical));
        assert_eq!(serde_json::to_string(&Status::Ok).unwrap(), "\"ok\"");
    }
}
