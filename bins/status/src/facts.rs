//! What is known, as files and the kernel tell it.

use std::os::fd::AsRawFd;
use std::path::Path;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};
use serde::{Deserialize, Serialize};
use shared::backup::{self, Info, Newest};
use shared::clock::{Stamp, uptime};
use shared::cluster::Cluster;
use shared::config::Config;
use shared::counter::Counter;
use shared::health::{self, Check, Health, SCORE, Status, spans};
use shared::record::Record;
use shared::service::{Condition, Known};
use shared::state::State;
use shared::{deadline, pause, renewal, standing, unit};

/// A result that is older says nothing about now.
const FRESH: Duration = Duration::from_secs(180);
const DAY: i64 = 86_400;
/// Half an hour each.
const BUCKETS: usize = 48;
const RECOVERIES: usize = 5;
/// For a volume of backups that does not answer.
const PATIENCE: Duration = Duration::from_millis(500);

/// What has to run, and what must not have failed.
pub const UNITS: [(&str, bool); 11] = [
    ("pg-watchdog.service", true),
    ("pg-health-check.timer", true),
    ("pg-notify.timer", true),
    ("pg-backup.timer", true),
    ("pg-wal-stream.service", true),
    ("pg-restore-drill.timer", true),
    ("pg-status.socket", true),
    ("pg-status.path", true),
    ("pg-backup.service", false),
    ("pg-restore-drill.service", false),
    ("pg-notify-mail.service", false),
];

#[derive(Debug, Default, Serialize)]
pub struct Host {
    pub at: String,
    /// Why the configuration cannot be used; what was configured before is in force.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mistake: Option<String>,
    pub clusters: Vec<Seen>,
    pub services: Vec<Served>,
    /// Units of pg-recovery that do not run although they should, or have failed; and how they are.
    pub units: Vec<(String, String)>,
}

/// What the state of a cluster may be.
pub const STATES: [&str; 9] =
    ["ok", "warning", "critical", "unknown", "not checked", "down", "off", "paused", "needs you"];

/// One cluster.
#[derive(Debug, Default, Serialize)]
pub struct Seen {
    pub cluster: String,
    /// One of `STATES`.
    pub state: String,
    /// Somebody listens on its socket; `None` when that cannot be told.
    pub listening: Option<bool>,
    pub score: u8,
    /// Seconds since the last health check; `None` when there was none.
    pub checked_s: Option<u64>,
    /// Passes in a row in which it did not serve.
    pub failures: u32,
    /// The lowest score of each half hour of the last day, the oldest first; `None` when nothing is known.
    pub day: Vec<Option<u8>>,
    /// What is not well, and what is good to know of backups and of files that end.
    pub checks: Vec<Check>,
    pub pause: Option<String>,
    /// Why it is not meant to run, if it is not and does not.
    pub off: Option<String>,
    /// Nothing more is tried until `pg-recover reset`.
    pub manual: bool,
    /// Recoveries in a row that failed, and how many may.
    pub attempts: (u32, u32),
    /// Restarts within the window, how many may be made, and the window in seconds.
    pub restarts: (u32, u32, u64),
    /// The newest good base backup; as the last health check saw it where this user may not see it.
    pub backup: Option<Backup>,
    /// The one that its server has.
    pub certificate: Option<Certificate>,
    /// The last ones, the newest first.
    pub recoveries: Vec<Record>,
    /// All that the last health check found, and what it keeps.
    #[serde(skip)]
    pub health: Health,
    /// That says something about now.
    #[serde(skip)]
    pub is_fresh: bool,
}

#[derive(Debug, Default, Serialize)]
pub struct Backup {
    pub id: String,
    pub finished: String,
    pub age_s: u64,
    /// When one was last restored to prove it, and how long that took.
    pub proven: Option<String>,
    pub proven_s: Option<u64>,
    pub restore_s: Option<f64>,
}

/// As the last health check and pg-cert-renew saw it.
#[derive(Debug, Default, Serialize)]
pub struct Certificate {
    /// Less than none, once it has expired.
    pub left_days: f64,
    /// When the next renewal is due; `None`: nothing here renews it, or another program says when.
    pub renewal: Option<String>,
    /// Until then; less than none, once it is overdue.
    pub renewal_days: Option<i64>,
    /// Renewals in a row that failed, and why the last one did.
    pub failures: u32,
    pub why: String,
}

/// One service.
#[derive(Debug, Default, Serialize)]
pub struct Served {
    pub service: String,
    pub unit: String,
    /// One of `Condition::ALL`, by its name.
    pub state: &'static str,
    /// What is wrong, or why nothing is done about it.
    pub why: String,
    /// Seconds since it is in this state, and since it was last looked at; `None` when it was not, or not lately.
    pub since_s: Option<u64>,
    pub checked_s: Option<u64>,
    /// Somebody is to be woken for it.
    pub critical: bool,
    pub depends_on: Vec<String>,
    /// Restarts within the window, how many may be made, and the window in seconds.
    pub restarts: (u32, u32, u64),
}

/// The services of the configuration, as pg-watchdog last saw them.
pub fn services(config: &Config) -> Vec<Served> {
    let now = Stamp::now();
    let look = |rule: &shared::config::Service| {
        let known = Known::load(&rule.name).value;
        let is_fresh = known.is_fresh(rule, &now);
        let condition = if is_fresh { known.condition } else { Condition::Unknown };
        let window = rule.restart_window();
        Served {
            service: rule.name.clone(),
            unit: rule.unit(),
            state: condition.name(),
            since_s: is_fresh.then(|| now.since_with(&known.since, uptime()).as_secs()),
            checked_s: is_fresh.then(|| now.since_with(&known.at, uptime()).as_secs()),
            critical: rule.critical,
            depends_on: rule.depends_on.clone(),
            restarts: (known.restarts.within(window, &now), rule.restarts(), window.as_secs()),
            why: if is_fresh { known.why } else { String::new() },
        }
    };
    config.service.iter().map(look).collect()
}

/// What pg-watchdog keeps in `watchdog/16-main.json`.
#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(default)]
struct Budget {
    restarts: Counter,
}

pub fn gather(clusters: &[Cluster], config: &Config, records: &[Record], units: Vec<(String, String)>) -> Host {
    let now = Stamp::now();
    let clusters = clusters.iter().map(|cluster| look(cluster, config, records, &now)).collect();
    Host { at: now.rfc3339(), mistake: None, clusters, services: services(config), units }
}

/// Those that do not run although they should, or have failed; what is asked is systemd, which takes a while.
pub fn units() -> Vec<(String, String)> {
    let states = match unit::active_states(&UNITS.map(|(name, _)| name)) {
        Ok(states) => states,
        Err(why) => return vec![("systemd".into(), why.message)],
    };
    let is_off = |name: &str| unit::is_masked_by_link(name) || !unit::is_enabled_by_link(name, "pg-recovery.target");
    let state = |name: &str| states.get(name).map_or("inactive", String::as_str);
    let is_ill =
        |(name, runs): &&(&str, bool)| state(name) == "failed" || *runs && state(name) != "active" && !is_off(name);
    UNITS.iter().filter(is_ill).map(|(name, _)| (name.to_string(), state(name).into())).collect()
}

fn look(cluster: &Cluster, config: &Config, records: &[Record], now: &Stamp) -> Seen {
    let name = cluster.name();
    let health = health::state(&name).value;
    let verdict = standing::verdict(&name).value;
    let budget: State<Budget> = State::load(&format!("watchdog/{}.json", cluster.file_name()));
    let checked = (health.at != Stamp::default()).then(|| now.since_with(&health.at, uptime()));
    let is_fresh = checked.is_some_and(|age| age < FRESH);
    let listening = listens(cluster);
    let pause = pause::of(&name);
    let off = off(cluster).filter(|_| listening == Some(false));
    let is_of_interest = |check: &&Check| {
        check.status != Status::Ok || matches!(check.name.as_str(), "backup" | "wal_stream" | "certificate_files")
    };
    let window = config.watchdog.restart_window;
    let recoveries = records.iter().rev().filter(|record| record.cluster == name).take(RECOVERIES).cloned().collect();
    Seen {
        state: state(verdict.manual, pause.is_some(), off.is_some(), listening, is_fresh.then_some(health.status))
            .into(),
        listening,
        score: health.score,
        checked_s: checked.map(|age| age.as_secs()),
        failures: health.failures,
        day: day(health.trends.of(SCORE), now.boot as i64, u64::min)
            .into_iter()
            .map(|score| score.map(|score| score.min(100) as u8))
            .collect(),
        checks: if is_fresh { health.checks.iter().filter(is_of_interest).cloned().collect() } else { Vec::new() },
        pause,
        off,
        manual: verdict.manual,
        attempts: (verdict.attempts, config.recover.max_attempts),
        restarts: (budget.value.restarts.within(window, now), config.watchdog.restarts, window.as_secs()),
        certificate: certificate(&name, &health, now).filter(|_| is_fresh),
        backup: newest_backup(cluster, health.backups.newest.as_ref(), now),
        recoveries,
        health,
        is_fresh,
        cluster: name,
    }
}

fn state(manual: bool, paused: bool, off: bool, listening: Option<bool>, status: Option<Status>) -> &'static str {
    match (manual, paused, listening, status) {
        (true, ..) => "needs you",
        (_, true, ..) => "paused",
        _ if off => "off",
        (_, _, Some(false), Some(Status::Ok | Status::Warning) | None) => "down",
        (_, _, _, Some(Status::Critical)) => "critical",
        (_, _, _, Some(Status::Unknown)) => "unknown",
        (_, _, _, Some(Status::Warning)) => "warning",
        (_, _, _, Some(Status::Ok)) => "ok",
        (_, _, _, None) => "not checked",
    }
}

/// As far as the files tell (`standing` asks systemd as well).
fn off(cluster: &Cluster) -> Option<String> {
    let is_started = |unit: &str| unit::is_enabled_by_link(unit, "multi-user.target");
    let is_never = || cluster.is_debian && !is_started("postgresql.service") && !is_started(&cluster.unit);
    standing::off_in_files(cluster).or_else(|| is_never().then(|| "has its postgresql.service disabled".into()))
}

/// Without waiting: a server that hangs has a socket all the same, and its queue may be full (unix(7), EAGAIN).
fn listens(cluster: &Cluster) -> Option<bool> {
    let path = cluster.socket_directory().join(format!(".s.PGSQL.{}", cluster.port()));
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let fd = socket(AddressFamily::Unix, SockType::Stream, flags, None).ok()?;
    match connect(fd.as_raw_fd(), &UnixAddr::new(&path).ok()?) {
        Ok(()) | Err(Errno::EAGAIN) => Some(true),
        Err(Errno::ECONNREFUSED | Errno::ENOENT) => Some(false),
        Err(_) => None,
    }
}

/// The worst of each half hour up to `now`, seconds since boot.
pub fn day(samples: &[(i64, u64)], now: i64, worst: fn(u64, u64) -> u64) -> Vec<Option<u64>> {
    let mut day: Vec<Option<u64>> = vec![None; BUCKETS];
    let length = DAY / BUCKETS as i64;
    let begin = now - DAY;
    for (span, value) in spans(samples, now).filter(|(span, _)| span.end > begin && span.start <= now) {
        let bucket = |at: i64| ((at.max(begin + 1) - begin - 1) / length) as usize;
        for slot in &mut day[bucket(span.start)..=bucket(span.end - 1).min(BUCKETS - 1)] {
            *slot = Some(slot.map_or(value, |known| worst(known, value)));
        }
    }
    day
}

fn certificate(name: &str, health: &Health, now: &Stamp) -> Option<Certificate> {
    let check = health.checks.iter().find(|check| check.name == "certificate")?;
    let known = renewal::state(name).value;
    Some(Certificate {
        left_days: check.value?,
        renewal: known.due.map(|due| Stamp { wall: due as f64, ..Stamp::default() }.rfc3339()),
        renewal_days: known.due.map(|due| (due - now.wall as i64).div_euclid(DAY)),
        failures: known.failures,
        why: known.why,
    })
}

/// `seen`: by the last health check.
fn newest_backup(cluster: &Cluster, seen: Option<&Newest>, now: &Stamp) -> Option<Backup> {
    let store = Path::new(backup::ROOT).join(cluster.file_name());
    let path = store.clone();
    let all = deadline::within(&store, PATIENCE, move || backup::read_all(&path)).unwrap_or_default();
    let mut all: Vec<(String, Info)> = all.into_iter().filter_map(|(id, _, info)| Some((id, info.ok()?))).collect();
    all.sort_by_key(|(_, info)| info.order());
    let newest = Newest::of(&all).or_else(|| seen.cloned())?;
    Some(Backup {
        finished: newest.finished.rfc3339(),
        age_s: now.since(&newest.finished).as_secs(),
        proven: newest.proven.as_ref().map(Stamp::rfc3339),
        proven_s: newest.proven.as_ref().map(|at| now.since(at).as_secs()),
        restore_s: newest.restore_s,
        id: newest.id,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_state_is_what_matters_most() {
        let ok = Some(Status::Ok);
        assert_eq!(state(false, false, false, Some(true), ok), "ok");
        assert_eq!(state(false, false, false, Some(false), ok), "down", "a check of a minute ago is no news");
        assert_eq!(state(false, false, false, Some(false), Some(Status::Critical)), "critical");
        assert_eq!(state(false, true, false, Some(false), ok), "paused");
        assert_eq!(state(false, false, true, Some(false), ok), "off", "nobody misses it");
        assert_eq!(state(true, true, false, Some(true), ok), "needs you");
        assert_eq!(state(false, false, false, Some(true), None), "not checked");
        assert_eq!(state(false, false, false, None, Some(Status::Warning)), "warning");
    }

    #[test]
    fn a_day_is_the_lowest_score_of_each_half_hour() {
        let now = 200_000;
        let samples = [(now - DAY - 9000, 1), (now - DAY + 1, 90), (now - 1700, 40), (now - 60, 100), (now + 5, 0)];
        let day = day(&samples, now, u64::min);
        assert_eq!((day.len(), day[0], day[1], day[47]), (48, Some(90), None, Some(40)));
    }

    #[test]
    fn what_was_thinned_out_leaves_no_gap_and_what_was_not_looked_at_does() {
        let mut trends = shared::health::Trends::default();
        for minute in (0..3000).filter(|minute| !(2000..2120).contains(minute)) {
            let now = Stamp { boot: 60.0 * f64::from(minute), boot_id: "a".into(), ..Stamp::default() };
            trends.note(&now, [(SCORE, 100)]);
        }
        let day = day(trends.of(SCORE), 60 * 2999 + 30, u64::min);
        let gaps: Vec<usize> = (0..BUCKETS).filter(|bucket| day[*bucket].is_none()).collect();
        assert_eq!(gaps, [15, 16, 17]);
    }
}
