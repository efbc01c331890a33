//! The pause: a person works on the host, nobody repairs anything meanwhile. Checks go on.
//!
//! `/var/lib/pg-recovery/pause.json`, written by `pg-recover pause` and removed by `pg-recover resume`. A pause always
//! ends; a file that cannot be read counts as a pause, because somebody wanted one.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::clock::{self, Stamp};
use crate::error::Result;
use crate::state;

#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Pause {
    pub since: Stamp,
    pub seconds: u64,
    pub reason: String,
    pub by: String,
    /// `16/main`; empty means all clusters of the host.
    pub clusters: Vec<String>,
}

pub fn path() -> PathBuf {
    Path::new(state::DIRECTORY).join("pause.json")
}

impl Pause {
    /// The pause that has not ended yet, if it can be read.
    pub fn in_force() -> Option<Pause> {
        let pause: Pause = serde_json::from_slice(&state::read(&path(), 65536).ok()?).ok()?;
        pause.left(&Stamp::now(), clock::uptime()).is_some().then_some(pause)
    }

    /// Is it about nothing but `clusters` (none: all of the host)?
    pub fn is_within(&self, clusters: &[String]) -> bool {
        clusters.is_empty() || (!self.clusters.is_empty() && self.clusters.iter().all(|c| clusters.contains(c)))
    }

    pub fn save(&self) -> Result<()> {
        state::replace(&path(), &serde_json::to_vec_pretty(self).map_err(std::io::Error::other)?, 0o644)?;
        Ok(())
    }

    fn left(&self, now: &Stamp, up: Duration) -> Option<Duration> {
        Duration::from_secs(self.seconds).checked_sub(now.since_with(&self.since, up)).filter(|left| !left.is_zero())
    }

    fn concerns(&self, cluster: &str) -> bool {
        self.clusters.is_empty() || self.clusters.iter().any(|c| c == cluster)
    }
}

/// Why nothing may be done to `cluster` now, if it is paused.
pub fn of(cluster: &str) -> Option<String> {
    match state::read(&path(), 65536) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => None,
        Err(e) => Some(unreadable(&e.to_string())),
        Ok(text) => judge(&text, cluster, &Stamp::now(), clock::uptime()),
    }
}

fn unreadable(why: &str) -> String {
    format!("{} cannot be read ({why}), so it counts as a pause until pg-recover resume", path().display())
}

fn judge(text: &[u8], cluster: &str, now: &Stamp, up: Duration) -> Option<String> {
    match serde_json::from_slice::<Pause>(text) {
        Err(e) => Some(unreadable(&e.to_string())),
        Ok(pause) if !pause.concerns(cluster) => None,
        Ok(pause) => pause.left(now, up).map(|left| {
            let minutes = left.as_secs().div_ceil(60);
            format!("is paused for {minutes}min more by {}: {}", pause.by, pause.reason)
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pause_ends_and_names_its_reason() {
        let at = |boot: f64| Stamp { wall: 1e9 + boot, boot, boot_id: "a".into() };
        let pause =
            Pause { since: at(0.0), seconds: 120, reason: "new disk".into(), by: "anna".into(), clusters: vec![] };
        let text = serde_json::to_vec(&pause).unwrap();
        let judge = |now, up| judge(&text, "16/main", &now, Duration::from_secs(up));
        assert_eq!(judge(at(30.0), 0).unwrap(), "is paused for 2min more by anna: new disk");
        assert_eq!(judge(at(121.0), 0), None);
        let year = 365.0 * 86_400.0;
        for jump in [year, -year] {
            let jumped = |now: Stamp| Stamp { wall: now.wall + jump, ..now };
            assert!(judge(jumped(at(30.0)), 9).is_some() && judge(jumped(at(121.0)), 9).is_none());
        }
        let behind = Stamp { wall: 1e9 - year, boot: 5.0, boot_id: "b".into() };
        assert!(judge(behind.clone(), 119).is_some() && judge(behind, 120).is_none(), "after a reboot");
    }

    #[test]
    fn a_pause_that_cannot_be_read_is_a_pause() {
        assert!(judge(b"", "16/main", &Stamp::now(), Duration::ZERO).is_some());
    }

    #[test]
    fn a_pause_is_within_another_that_covers_it() {
        let of = |clusters: &[&str]| clusters.iter().map(|c| c.to_string()).collect::<Vec<_>>();
        let pause = |clusters: &[&str]| Pause {
            since: Stamp::now(),
            seconds: 60,
            reason: String::new(),
            by: String::new(),
            clusters: of(clusters),
        };
        assert!(pause(&[]).is_within(&of(&[])) && pause(&["16/a"]).is_within(&of(&[])));
        assert!(pause(&["16/a"]).is_within(&of(&["16/a", "16/b"])));
        assert!(!pause(&[]).is_within(&of(&["16/a"])) && !pause(&["16/a", "16/b"]).is_within(&of(&["16/a"])));
    }

    #[test]
    fn a_pause_may_be_for_one_cluster() {
        let clusters = vec!["16/other".to_string()];
        let pause = Pause { since: Stamp::now(), seconds: 60, reason: String::new(), by: String::new(), clusters };
        assert_eq!(judge(&serde_json::to_vec(&pause).unwrap(), "16/main", &Stamp::now(), Duration::ZERO), None);
    }
}
