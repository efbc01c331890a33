//! What a health check found, and what it keeps for the next one.
//!
//! `/var/lib/pg-recovery/health/16-main.json`, written by `pg-health-check --count` only. Its folder belongs to
//! postgres, so a program that runs as root takes what it says as a hint, never as a proof.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::backup::Newest;
use crate::clock::Stamp;
use crate::state::State;

/// How far back trends are known, in seconds: three days.
const KEPT: i64 = 3 * 86_400;
/// A sample is at least this part of its age away from the one before it: one for each pass of the last half hour, one
/// for each hour and a half of two days ago, no more than 200 in all.
const DENSITY: i64 = 32;
/// Name of the score among the trends.
pub const SCORE: &str = "score";
/// Checks of which it is kept how long their answers took: the value of each is in milliseconds.
pub const TIMES: [&str; 2] = ["query", "write"];
/// Seconds; passes in quicker succession add nothing.
const SPACING: i64 = 45;

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

/// How much something was, and when: seconds since boot, the oldest first.
///
/// `12:4096 72:4090` in the file, where one number a line would be most of it. What is torn is left out.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(from = "String", into = "String")]
pub struct Series(pub Vec<(i64, u64)>);

impl Series {
    fn add(&mut self, at: i64, value: u64) -> &mut Vec<(i64, u64)> {
        if self.0.last().is_none_or(|(last, _)| last.saturating_add(SPACING) <= at) {
            self.0.push((at, value));
        }
        &mut self.0
    }
}

impl From<String> for Series {
    fn from(text: String) -> Self {
        let samples = text.split(' ').filter_map(|word| word.split_once(':'));
        let mut samples: Vec<(i64, u64)> =
            samples.filter_map(|(at, left)| Some((at.parse().ok()?, left.parse().ok()?))).collect();
        samples.sort();
        Series(samples)
    }
}

impl From<Series> for String {
    fn from(series: Series) -> Self {
        series.0.iter().map(|(at, left)| format!("{at}:{left}")).collect::<Vec<_>>().join(" ")
    }
}

/// What was left in the last days, and how long answers took, by the names of the checks, within one boot: that clock is
/// never set, and nobody knows for sure how much time went by between two boots.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub struct Trends {
    boot_id: String,
    left: BTreeMap<String, Series>,
    /// Microseconds.
    took: BTreeMap<String, Series>,
}

impl Trends {
    /// Adds what is left now, and thins out what is old.
    pub fn note<'a>(&mut self, now: &Stamp, left: impl IntoIterator<Item = (&'a str, u64)>) {
        self.begin(now);
        let at = now.boot as i64;
        for (name, left) in left {
            let samples = self.left.entry(name.into()).or_default().add(at, left);
            // What was so for a moment only is no part of a trend: each becomes the median of itself and its neighbours.
            if let [.., (_, before), (_, middle), (_, after)] = &mut samples[..] {
                *middle = (*middle).clamp((*before).min(*after), (*before).max(*after));
            }
        }
        // The least that was left is not forgotten.
        thin(&mut self.left, at, u64::min);
    }

    /// Adds the score of now. The worst one that was seen is not forgotten, however soon that was over.
    pub fn note_score(&mut self, now: &Stamp, score: u8) {
        self.begin(now);
        let (at, score) = (now.boot as i64, u64::from(score));
        let samples = &mut self.left.entry(SCORE.into()).or_default().0;
        match samples.last_mut() {
            Some((last, known)) if last.saturating_add(SPACING) > at => *known = score.min(*known),
            _ => samples.push((at, score)),
        }
        thin(&mut self.left, at, u64::min);
    }

    /// Adds how long answers took now, and thins out what is old.
    pub fn note_times<'a>(&mut self, now: &Stamp, took: impl IntoIterator<Item = (&'a str, Duration)>) {
        self.begin(now);
        let at = now.boot as i64;
        for (name, took) in took {
            self.took.entry(name.into()).or_default().add(at, took.as_micros().try_into().unwrap_or(u64::MAX));
        }
        // The longest that anybody waited is not forgotten.
        thin(&mut self.took, at, u64::max);
    }

    /// What is from another boot goes.
    fn begin(&mut self, now: &Stamp) {
        let all = self.left.values().chain(self.took.values());
        let newest = all.filter_map(|series| series.0.last()).map(|(at, _)| *at).max();
        if self.boot_id != now.boot_id || newest.is_some_and(|newest| newest > now.boot as i64) {
            *self = Trends { boot_id: now.boot_id.clone(), ..Trends::default() };
        }
    }

    /// Of which something is known.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.left.keys().map(String::as_str)
    }

    pub fn of(&self, name: &str) -> &[(i64, u64)] {
        self.left.get(name).map_or(&[], |series| &series.0)
    }

    /// How long the answers to a check took, in microseconds.
    pub fn times_of(&self, name: &str) -> &[(i64, u64)] {
        self.took.get(name).map_or(&[], |series| &series.0)
    }
}

/// Keeps the worse one of two samples that are closer together than their age allows.
fn thin(all: &mut BTreeMap<String, Series>, now: i64, worse: fn(u64, u64) -> u64) {
    for series in all.values_mut() {
        let mut kept: Vec<(i64, u64)> = Vec::with_capacity(series.0.len());
        for (at, value) in series.0.drain(..).filter(|(at, _)| now.saturating_sub(*at) <= KEPT) {
            match kept.last_mut() {
                Some((before, known)) if at - *before < (now - at) / DENSITY => *known = worse(*known, value),
                _ => kept.push((at, value)),
            }
        }
        series.0 = kept;
    }
    all.retain(|_, series| !series.0.is_empty());
}

/// Of what time each sample tells, seen from `now`: up to the next one, unless that is further away than thinning takes them
/// apart, for then nobody looked.
pub fn spans(samples: &[(i64, u64)], now: i64) -> impl Iterator<Item = (std::ops::Range<i64>, u64)> {
    samples.iter().enumerate().map(move |(index, &(from, value))| {
        let next = samples.get(index + 1).map_or(now, |next| next.0);
        let most = now.saturating_sub(from) / DENSITY * 2 + 3 * SPACING;
        (from..if next.saturating_sub(from) <= most { next } else { from.saturating_add(1) }, value)
    })
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
    /// Passes in a row in which it served with a certificate that has expired.
    pub expired: u32,
    pub checks: Vec<Check>,
    pub trends: Trends,
    pub rehearsal: Rehearsal,
    pub replay: Replay,
    pub startup: Startup,
    pub backups: Backups,
    pub damage: Damage,
    pub files: Files,
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

/// What pg-backup should have seen to. Nothing is known while it has nothing to do here.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub struct Backups {
    /// Since when there is a primary to back up.
    pub wanted: Stamp,
    /// When the stream had last received everything that was written one pass earlier.
    pub received: Stamp,
    /// How far WAL was written at that moment, in bytes from its beginning.
    pub written: u64,
    /// Not everybody who shows it may see the backups themselves.
    pub newest: Option<Newest>,
}

/// What the server log last said of the disk or of damaged files, and how far the log was read.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub struct Damage {
    pub at: Stamp,
    /// As in pg-recover's diagnosis; empty: nothing.
    pub class: String,
    pub message: String,
    /// Lengths of the log files.
    pub read: BTreeMap<PathBuf, u64>,
}

/// The database whose files were looked at last, and the files that are not as long as its catalog says.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub struct Files {
    /// An oid.
    pub database: u32,
    pub suspects: Vec<Suspect>,
}

/// A file that is missing or short.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub struct Suspect {
    pub database: u32,
    /// Whose file it is, in words.
    pub relation: String,
    /// Below the data directory.
    pub file: String,
    /// Bytes.
    pub wanted: u64,
    /// Bytes; `None`: there is no such file.
    pub size: Option<u64>,
    /// Looks in a row that found it so.
    pub passes: u32,
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

/// The state file of one cluster, given as `16/main`.
pub fn state(cluster: &str) -> State<Health> {
    State::load(&format!("health/{}.json", crate::cluster::file_name(cluster)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(boot: i64, boot_id: &str) -> Stamp {
        // The wall clock may say what it wants.
        Stamp { wall: (boot * 7919 % 100_000) as f64, boot: boot as f64, boot_id: boot_id.into() }
    }

    #[test]
    fn trends_reach_back_for_days_and_stay_small() {
        let mut trends = Trends::default();
        for minute in 0..6000 {
            trends.note(&at(60 * minute, "a"), [("disk_data", u64::MAX - minute as u64)]);
            let samples = trends.of("disk_data");
            assert!(samples.len() <= 200 && samples.is_sorted(), "{}", samples.len());
        }
        let samples = trends.of("disk_data");
        let age = |index: usize| 60 * 5999 - samples[index].0;
        assert!(age(0) > KEPT - 10_000 && age(samples.len() - 20) == 19 * 60, "{samples:?}");
        for pair in samples.windows(2).filter(|pair| 60 * 5999 - pair[0].0 > 2000) {
            assert!(
                pair[1].0 - pair[0].0 <= (60 * 5999 - pair[0].0) / 12,
                "no gap that a trend could not be seen over"
            );
        }
        let text = serde_json::to_string_pretty(&trends).unwrap();
        assert!(text.len() < 8000, "{}", text.len());
        assert_eq!(serde_json::from_str::<Trends>(&text).unwrap(), trends);
        let mut dipped = Trends::default();
        for minute in 0..2000 {
            // Ten minutes, and a moment.
            let left = if (500..510).contains(&minute) { 3 } else { 100 - 99 * u64::from(minute == 700) };
            dipped.note(&at(60 * minute, "a"), [("disk_data", left)]);
        }
        assert_eq!(dipped.of("disk_data").iter().map(|(_, left)| *left).min(), Some(3));
        trends.note(&at(60 * 6000 + KEPT, "a"), [("xid_age", 1)]);
        assert!(trends.of("disk_data").is_empty() && trends.of("xid_age").len() == 1, "what is not seen any more goes");
    }

    #[test]
    fn the_longest_wait_of_a_while_is_kept_and_one_that_was_short_is_no_less_true() {
        let mut trends = Trends::default();
        for minute in 0..1440 {
            let took = if minute == 300 { 4000 } else { 2 };
            trends.note_times(&at(60 * minute, "a"), [("query", Duration::from_millis(took))]);
        }
        let times = trends.times_of("query");
        assert!(times.len() <= 200, "{}", times.len());
        assert_eq!(times.iter().filter(|(_, took)| *took == 4_000_000).count(), 1);
        assert!(trends.of("query").is_empty(), "no forecast is made of it");
        trends.note_times(&at(9, "b"), []);
        assert!(trends.times_of("query").is_empty());
    }

    #[test]
    fn the_worst_score_is_kept_however_soon_it_was_over() {
        let mut trends = Trends::default();
        for minute in 0..1440 {
            trends.note_score(&at(60 * minute, "a"), if minute == 300 { 0 } else { 100 });
        }
        // By hand, between two passes.
        trends.note_score(&at(60 * 1439 + 9, "a"), 40);
        trends.note_score(&at(60 * 1439 + 19, "a"), 100);
        let scores: Vec<u64> = trends.of(SCORE).iter().map(|(_, score)| *score).collect();
        assert_eq!(scores.iter().filter(|score| **score == 0).count(), 1, "{scores:?}");
        assert!(scores.len() <= 200 && scores.last() == Some(&40), "{scores:?}");
    }

    #[test]
    fn trends_begin_anew_after_a_reboot_and_forget_what_is_torn() {
        let mut trends = Trends::default();
        trends.note(&at(100, "a"), [("disk_data", 7)]);
        trends.note(&at(120, "a"), [("disk_data", 7)]);
        trends.note(&at(160, "a"), [("disk_data", 7)]);
        assert_eq!(trends.of("disk_data"), [(100, 7), (160, 7)]);
        let mut rebooted = trends.clone();
        rebooted.note(&at(500, "b"), [("disk_data", 7)]);
        assert_eq!(rebooted.of("disk_data"), [(500, 7)]);
        trends.note(&at(159, "a"), []);
        assert!(trends.of("disk_data").is_empty(), "this boot has not lasted that long");
        assert_eq!(
            Series::from("x 9:1 8 7:2:3 5: :6 4:-1 -3:9 99999999999999999999999:1".to_string()).0,
            [(-3, 9), (9, 1)]
        );
    }

    #[test]
    fn critical_is_worse_than_not_knowing() {
        assert_eq!([Status::Unknown, Status::Critical, Status::Warning].into_iter().max(), Some(Status::Critical));
        assert_eq!(serde_json::to_string(&Status::Ok).unwrap(), "\"ok\"");
    }
}
