//! What pg-backup should have seen to: a good base backup that is not too old, and WAL that is received as it is written.
//!
//! Nothing is said where it has nothing to do: of a standby, of a cluster of another user or of a PostgreSQL that it does
//! not back up, and where a person has switched its unit off.

use std::path::Path;
use std::time::Duration;

use shared::backup::{self, Info, Newest, OLDEST, ROOT};
use shared::clock::Stamp;
use shared::cluster::Cluster;
use shared::config::{Config, Engine, Health};
use shared::health::Backups;
use shared::{deadline, unit};

use crate::catalog::Catalog;
use crate::score::Finding;

/// How long the volume of the backups may take.
const PATIENCE: Duration = Duration::from_secs(5);
const TARGET: &str = "pg-recovery.target";

/// `is_standby`: `None` while the server does not tell; others see to that, and nobody backs it up meanwhile.
pub fn judge_all(
    cluster: &Cluster,
    is_standby: Option<bool>,
    catalog: Option<&Catalog>,
    last: &mut Backups,
    now: &Stamp,
    config: &Config,
) -> Vec<Finding> {
    let (engine, config) = (config.backup.engine, &config.health);
    let mut findings = Vec::new();
    let is_ours =
        cluster.owner.name == "postgres" && cluster.version.parse().is_ok_and(|version: u32| version >= OLDEST);
    match is_standby {
        Some(false) if is_ours => {}
        None if is_ours => {
            last.received = Stamp::default();
            return findings;
        }
        _ => {
            *last = Backups::default();
            return findings;
        }
    }
    if is_on("pg-backup.timer") {
        // A moment of which nothing is known.
        if last.wanted == Stamp::default() {
            last.wanted = now.clone();
        }
        let bases = look(cluster);
        if let Ok(bases) = &bases {
            last.newest = Newest::of(bases);
        }
        findings.push(judge(bases, &last.wanted, now, config));
    } else {
        (last.wanted, last.newest) = (Stamp::default(), None);
    }
    // Of WAL that pgBackRest is given, the check "archiver" tells.
    let streams = engine == Engine::Builtin && is_on("pg-wal-stream.service");
    let row = catalog.and_then(|catalog| catalog.rows("stream").next()).filter(|_| streams);
    match row {
        Some(row) => {
            let (written, received) = (row.number(1).unwrap_or_default() as u64, row.number(2).map(|at| at as u64));
            *last = follow(last, written, received, now);
            // What it has received it tells every ten seconds only.
            findings.push(judge_stream(last, row.is_true(3), now, config));
        }
        // Whoever could not be asked may have gone on receiving.
        None => last.received = Stamp::default(),
    }
    findings
}

/// Started at boot, as far as the links say, and not masked. One that is only stopped is not switched off.
fn is_on(name: &str) -> bool {
    unit::is_enabled_by_link(TARGET, "multi-user.target")
        && unit::is_enabled_by_link(name, TARGET)
        && !unit::is_masked_by_link(name)
        && !unit::is_masked_by_link(TARGET)
}

/// Id of each base backup and what is known of it, the oldest first.
fn look(cluster: &Cluster) -> Result<Vec<(String, Info)>, String> {
    let (store, owner) = (Path::new(ROOT).join(cluster.file_name()), cluster.owner.clone());
    let path = store.clone();
    let read = move || {
        let look = || match std::fs::read_dir(path.join("base")) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                Err(format!("could not read {}: {e}", path.display()))
            }
            _ => Ok(backup::read_all(&path).into_iter().filter_map(|(id, _, info)| Some((id, info.ok()?))).collect()),
        };
        owner.act(look).unwrap_or_else(|e| Err(e.message))
    };
    let mut bases: Vec<(String, Info)> = deadline::within(&store, PATIENCE, read)
        .unwrap_or_else(|| Err(format!("{} gave no answer for {}s", store.display(), PATIENCE.as_secs())))?;
    bases.sort_by_key(|(_, info)| info.order());
    Ok(bases)
}

fn judge(bases: Result<Vec<(String, Info)>, String>, wanted: &Stamp, now: &Stamp, config: &Health) -> Finding {
    let bases = match bases {
        Ok(bases) => bases,
        Err(why) => return Finding::unknown("backup", why),
    };
    let good = bases.iter().rfind(|(_, info)| info.is_good());
    let age = now.since(good.map_or(wanted, |(_, info)| &info.finished));
    let hours = age.as_secs() / 3600;
    let mut message = match good {
        Some((id, _)) => format!("the last good backup, {id}, is {hours} h old"),
        None => format!("there is no good backup, and has been none for {hours} h"),
    };
    if let Some((id, info)) = bases.last().filter(|(_, info)| !info.is_good()) {
        let why = [&info.verified, &info.drilled].into_iter().flatten().find_map(|verdict| verdict.error.as_deref());
        message.push_str(&format!("; {id} is not good: {}", why.unwrap_or("it was not verified")));
    }
    if age >= config.backup_warn {
        message.push_str("; why none is made: journalctl -u pg-backup");
    }
    Finding::level("backup", age.as_secs_f64(), "s", limits(config.backup_warn, config.backup_fail), message)
}

/// What is known after a look. The stream keeps up when it has received what was written at the look before; it begins anew
/// when the server has less WAL than before, for then it was restored.
fn follow(last: &Backups, written: u64, received: Option<u64>, now: &Stamp) -> Backups {
    let is_new = last.received == Stamp::default() || written < last.written;
    match is_new || received.is_some_and(|received| received >= last.written) {
        true => Backups { received: now.clone(), written, ..last.clone() },
        false => last.clone(),
    }
}

fn judge_stream(last: &Backups, is_connected: bool, now: &Stamp, config: &Health) -> Finding {
    // Nobody could receive anything before the host was booted.
    let stood = now.since(&last.received).min(Duration::from_secs_f64(now.boot.max(0.0)));
    let minutes = stood.as_secs() / 60;
    let message = match (stood.is_zero(), is_connected) {
        (true, _) => "WAL is received as it is written".to_string(),
        (_, true) => format!("WAL is received, but nothing new for {minutes}min: journalctl -u pg-wal-stream"),
        (_, false) => format!("no WAL has been received for {minutes}min: journalctl -u pg-wal-stream"),
    };
    Finding::level("wal_stream", stood.as_secs_f64(), "s", limits(config.stream_warn, config.stream_fail), message)
}

fn limits(warn: Duration, fail: Duration) -> (f64, f64) {
    (warn.as_secs_f64(), fail.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;
    use shared::backup::Verdict;
    use shared::control::Lsn;
    use shared::health::Status;

    const H: f64 = 3600.0;

    fn at(boot: f64) -> Stamp {
        // The wall clock may say what it wants.
        Stamp { wall: 5e9 - boot, boot, boot_id: "a".into() }
    }

    fn base(id: &str, hour: f64, error: Option<&str>) -> (String, Info) {
        let verified = Some(Verdict { error: error.map(String::from), ..Verdict::default() });
        (id.into(), Info { finished: at(hour * H), start: Lsn(hour as u64), verified, ..Info::default() })
    }

    #[test]
    fn the_age_of_the_last_good_backup_has_two_levels() {
        let status = |bases: &[(String, Info)], hour: f64| {
            judge(Ok(bases.to_vec()), &at(0.0), &at(hour * H), &Health::default()).check.status
        };
        let good = [base("a", 100.0, None)];
        let levels = [Status::Ok, Status::Warning, Status::Warning, Status::Critical];
        assert_eq!([125.9, 126.0, 149.9, 150.0].map(|hour| status(&good, hour)), levels);
        assert_eq!([1.0, 26.0, 49.9, 50.0].map(|hour| status(&[], hour)), levels, "a new host has its time");
        let bad = [good[0].clone(), base("b", 140.0, Some("damaged"))];
        assert_eq!(status(&bad, 141.0), Status::Warning);
        let finding = judge(Ok(bad.to_vec()), &at(0.0), &at(200.0 * H), &Health::default());
        assert!(finding.check.message.contains("a, is 100 h old; b is not good: damaged"), "{}", finding.check.message);
        assert!(finding.check.status == Status::Critical && !finding.escalates, "it starts no recovery");
        assert_eq!(judge(Err("dead".into()), &at(0.0), &at(0.0), &Health::default()).check.status, Status::Unknown);
    }

    #[test]
    fn a_stream_stands_still_when_what_was_written_is_not_received() {
        let start = follow(&Backups::default(), 500, None, &at(10.0));
        assert_eq!((start.received.boot, start.written), (10.0, 500), "it has its time");
        let idle = follow(&start, 500, Some(500), &at(70.0));
        assert_eq!(idle.received.boot, 70.0);
        let busy = follow(&idle, 900, Some(600), &at(130.0));
        assert_eq!((busy.received.boot, busy.written), (130.0, 900), "it is behind, and goes on");
        for received in [None, Some(600)] {
            assert_eq!(follow(&busy, 1000, received, &at(190.0)), busy, "{received:?}");
        }
        assert_eq!(follow(&busy, 100, None, &at(190.0)).written, 100, "it was restored");
        let status = |now: f64| judge_stream(&busy, false, &at(now), &Health::default()).check.status;
        assert_eq!([1029.0, 1030.0, 3730.0].map(status), [Status::Ok, Status::Warning, Status::Critical]);
        let booted = |boot: f64| Stamp { wall: 9e9, boot, boot_id: "b".into() };
        let status = |boot: f64| judge_stream(&busy, false, &booted(boot), &Health::default()).check.status;
        assert_eq!([60.0, 1000.0].map(status), [Status::Ok, Status::Warning], "and again after a boot");
    }
}
