//! What is no longer kept: the oldest base backups, and WAL that no base backup needs.

use std::collections::BTreeSet;
use std::fs;
use std::time::Duration;

use shared::clock::Stamp;
use shared::cluster::Cluster;
use shared::config::{Backup, Config, Engine};
use shared::exit::Code;
use shared::{Result, state};

use crate::pgbackrest;
use crate::store::{Base, PARTIAL, Store, remove_tree};

/// One is made each night; a day more for one that failed.
const LONGEST_GAP: Duration = Duration::from_secs(2 * 86_400);

pub fn all(clusters: &[Cluster], config: &Config, plan: bool) -> Result<Code> {
    crate::each(clusters, |cluster| {
        let store = Store::open(cluster)?;
        let Some(_alone) = store.try_lock()? else {
            log::warn!(PG_CLUSTER = store.cluster; "a backup of cluster {} is at work, nothing is removed now", store.cluster);
            return Ok(Code::TempFail);
        };
        if config.backup.engine == Engine::Pgbackrest {
            pgbackrest::expire(cluster, &store, plan)?;
        }
        one(&store, config, 0, plan)
    })
}

/// Removes what is no longer kept, and what has to go so that `short` more bytes are free. The caller holds the lock.
pub fn one(store: &Store, config: &Config, short: u64, plan: bool) -> Result<Code> {
    let Some(_removing) = store.try_removing()? else {
        log::info!(PG_CLUSTER = store.cluster; "a backup of cluster {} is being read, nothing is removed now", store.cluster);
        return Ok(Code::TempFail);
    };
    let mut bases = store.bases();
    let facts: Vec<Fact> = bases.iter().map(|base| fact(store, &bases, base)).collect();
    let surplus = surplus(&facts, &config.backup, short);
    let would = if plan { "would remove" } else { "removing" };
    let is_ours = |base: &Base| base.info.pgbackrest.is_none();
    // What stands upon another goes before it.
    for base in bases.drain(..surplus).rev().filter(is_ours) {
        log::info!(PG_CLUSTER = store.cluster; "{would} backup {} of cluster {}", base.id, store.cluster);
        if !plan {
            // Half of a backup must not keep the name of a whole one.
            let partial = base.path.with_added_extension(&PARTIAL[1..]);
            fs::rename(&base.path, &partial)?;
            state::sync_folder(&store.path.join("base"))?;
            remove_tree(&partial)?;
        }
    }
    bases.retain(is_ours);
    let removed = wal(store, &bases, plan)?;
    if removed > 0 {
        log::info!(PG_CLUSTER = store.cluster; "{would} {removed} WAL segments of cluster {}", store.cluster);
    }
    Ok(Code::Ok)
}

/// What is known of one base backup, for the decision.
#[derive(Clone, Debug)]
struct Fact {
    started: Stamp,
    /// With the WAL of its timeline from its start on.
    bytes: u64,
    wal: u64,
    good: bool,
    /// Place of the full one that it stands upon, or its own.
    full: usize,
}

/// `bases`: in order.
fn fact(store: &Store, bases: &[Base], base: &Base) -> Fact {
    let info = &base.info;
    let place = |id: &str| bases.iter().position(|base| base.id == id);
    let mut full = place(&base.id).unwrap_or_default();
    while let Some(parent) = bases[full].info.parent.as_deref().and_then(place).filter(|parent| *parent < full) {
        full = parent;
    }
    // What pgBackRest has made is newer or older than ours, and takes no room here.
    if info.pgbackrest.is_some() {
        return Fact { started: info.started.clone(), bytes: 0, wal: 0, good: info.is_good(), full };
    }
    let wal = store.wal(info.system, info.timeline, info.segment_size);
    let (first, end) = (info.start.0 / info.segment_size, wal.last().map_or(0, |last| last + 1));
    let wal = end.saturating_sub(first) * info.segment_size;
    Fact { started: info.started.clone(), bytes: info.bytes, wal, good: info.is_good(), full }
}

/// How many of the oldest go, and never one that another stands upon that stays. Only good ones count as newer, and never is
/// one removed for its age alone: age is measured against the newest backup, from one to the next, by a clock that may have
/// jumped. What stands upon one full backup is lost with it, so it counts as one where there must be a minimum.
fn surplus(bases: &[Fact], config: &Backup, short: u64) -> usize {
    // The WAL of the oldest has that of all others in it.
    let bytes =
        |kept: &[Fact]| kept.iter().map(|base| base.bytes).sum::<u64>() + kept.first().map_or(0, |base| base.wal);
    let mut gone = 0;
    for index in 0..bases.len() {
        let newer = &bases[index + 1..];
        let good = newer.iter().filter(|base| base.good);
        let independent: BTreeSet<usize> = good.clone().map(|base| base.full).filter(|full| *full > index).collect();
        let is_old = good.count() >= config.keep as usize && age(&bases[index..]) > config.keep_for;
        let kept = bytes(&bases[gone..]);
        let is_too_much = (config.budget > 0 && kept > config.budget) || bytes(bases) - kept < short;
        if independent.len() < config.keep_min as usize || !(is_old || is_too_much) {
            break;
        }
        if newer.iter().all(|base| base.full > index) {
            gone = index + 1;
        }
    }
    gone
}

/// Age of the first, in days that had a backup. A longer gap may be a clock that was set forward: a host that was off for a
/// year keeps its backups longer than it had to.
fn age(bases: &[Fact]) -> Duration {
    bases.windows(2).map(|pair| pair[1].started.since(&pair[0].started).min(LONGEST_GAP)).sum()
}

/// Removes WAL from before the oldest base backup of its system; of a system without any, only when it is not the newest.
fn wal(store: &Store, bases: &[Base], plan: bool) -> Result<usize> {
    let runs = store.runs();
    let newest = runs.last().map(|run| run.system);
    let mut removed = 0;
    for run in &runs {
        let oldest = bases.iter().find(|base| base.info.system == run.system).map(|base| &base.info);
        let segment_size = oldest.or(bases.first().map(|base| &base.info)).map_or(0, |info| info.segment_size);
        let goes = |number: u64| match oldest {
            Some(base) => {
                run.timeline < base.timeline || (run.timeline == base.timeline && number < base.start.0 / segment_size)
            }
            None => Some(run.system) != newest,
        };
        if segment_size == 0 {
            continue;
        }
        let segments = run.segments(segment_size);
        for (_, segment) in segments.iter().filter(|(number, _)| goes(**number)) {
            removed += 1;
            if !plan {
                fs::remove_file(run.path.join(&segment.file))?;
            }
        }
        // With what belongs to it, such as the history of its timeline. The newest is being written to.
        let is_newest = runs.last().is_some_and(|last| last.path == run.path);
        if !plan && !is_newest && !segments.is_empty() && segments.keys().all(|number| goes(*number)) {
            remove_tree(&run.path)?;
        }
    }
    Ok(removed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{Info, tests};
    use shared::control::Lsn;

    const DAY: f64 = 86_400.0;

    fn daily(count: usize) -> Vec<Fact> {
        let at = |day: usize| Stamp { wall: 1e9 + day as f64 * DAY, boot: day as f64 * DAY, boot_id: "a".into() };
        (0..count).map(|day| Fact { started: at(day), bytes: 100, wal: 0, good: true, full: day }).collect()
    }

    #[test]
    fn a_backup_goes_by_count_and_age_together() {
        let config = Backup::default();
        assert_eq!(surplus(&daily(8), &config, 0), 0, "seven days are not over");
        assert_eq!(surplus(&daily(9), &config, 0), 1);
        assert_eq!(surplus(&daily(30), &config, 0), 22);
        assert_eq!(surplus(&[], &config, 0), 0);
    }

    #[test]
    fn a_clock_that_jumped_does_not_empty_the_store() {
        let config = Backup::default();
        let mut bases = daily(6);
        bases.push(Fact { started: Stamp { wall: 4e9, ..bases[5].started.clone() }, ..bases[0].clone() });
        assert_eq!(surplus(&bases, &config, 0), 0, "forward");
        for base in &mut bases {
            base.started.wall = 0.0;
        }
        assert_eq!(surplus(&bases, &config, 0), 0, "back");
    }

    #[test]
    fn a_clock_that_jumped_makes_no_backup_older() {
        let config = Backup { keep_for: Duration::from_secs(30 * 86_400), ..Backup::default() };
        let year = 365.0 * DAY;
        for jump in [year, -year] {
            for boot_id in ["a", "b"] {
                let mut bases = daily(28);
                for (day, base) in bases.iter_mut().enumerate().skip(20) {
                    base.started.wall += jump;
                    if boot_id == "b" {
                        base.started =
                            Stamp { boot: (day - 20) as f64 * DAY, boot_id: "b".into(), ..base.started.clone() };
                    }
                }
                assert_eq!(surplus(&bases, &config, 0), 0, "by {jump}, in boot {boot_id}");
            }
        }
        assert_eq!(surplus(&daily(40), &config, 0), 9, "those of thirty days stay");
    }

    #[test]
    fn only_good_backups_make_others_old() {
        let mut bases = daily(30);
        for base in &mut bases[10..] {
            base.good = false;
        }
        assert_eq!(surplus(&bases, &Backup::default(), 0), 3, "seven good ones stay, and what is newer");
    }

    #[test]
    fn over_the_budget_the_oldest_go_but_never_the_last_two() {
        let config = |budget| Backup { budget, ..Backup::default() };
        assert_eq!(surplus(&daily(5), &config(250), 0), 3);
        assert_eq!(surplus(&daily(5), &config(1), 0), 3, "the newest two stay");
        let mut bases = daily(3);
        bases[0].wal = 1000;
        assert_eq!(surplus(&bases, &config(500), 0), 1, "its WAL goes with it");
    }

    #[test]
    fn on_a_full_volume_the_oldest_make_room_for_the_next_but_never_the_last_two() {
        let mut bases = daily(5);
        for (index, base) in bases.iter_mut().enumerate() {
            base.wal = 1000 - 100 * index as u64;
        }
        for (short, gone) in [(0, 0), (1, 1), (200, 1), (201, 2), (10_000, 3)] {
            assert_eq!(surplus(&bases, &Backup::default(), short), gone, "{short}");
        }
    }

    #[test]
    fn what_others_stand_upon_goes_with_the_last_of_them() {
        let weeks = |count: usize| {
            let mut bases = daily(count);
            bases.iter_mut().enumerate().for_each(|(day, base)| base.full = day / 7 * 7);
            bases
        };
        let config = Backup::default();
        for (days, gone) in [(14, 0), (15, 7), (21, 7), (22, 14)] {
            assert_eq!(surplus(&weeks(days), &config, 0), gone, "two full ones stay: {days}");
        }
        let one = Backup { keep_min: 1, ..config };
        assert_eq!((surplus(&weeks(14), &one, 0), surplus(&weeks(15), &one, 0)), (0, 7), "seven newer ones stay");
        let tight = Backup { budget: 1, ..one.clone() };
        for (days, gone) in [(7, 0), (8, 7), (16, 14)] {
            assert_eq!(surplus(&weeks(days), &tight, 0), gone, "{days}");
        }
        assert_eq!((surplus(&weeks(16), &one, 1), surplus(&weeks(16), &one, 701)), (7, 14), "room");
        let mut bases = weeks(9);
        bases.iter_mut().skip(7).for_each(|base| base.good = false);
        assert_eq!(surplus(&bases, &tight, 0), 0, "nothing that is good would be left");
    }

    #[test]
    fn wal_from_before_the_oldest_backup_goes() {
        let store = tests::store("expire");
        for name in ["000000010000000000000001", "000000010000000000000002", "000000010000000000000003.partial"] {
            tests::segment(&store, "7-00000001-0001", name);
        }
        tests::segment(&store, "6-00000001-0001", "000000010000000000000009");
        tests::segment(&store, "8-00000001-0001", "000000010000000000000009");
        let info = Info { system: 7, timeline: 1, start: Lsn(2 << 24), segment_size: 1 << 24, ..Info::default() };
        let base = Base { id: String::new(), path: store.path.clone(), info };
        assert_eq!(wal(&store, std::slice::from_ref(&base), true).unwrap(), 2, "a plan removes nothing");
        assert_eq!(wal(&store, &[base], false).unwrap(), 2);
        assert_eq!(store.wal(7, 1, 1 << 24).complete_from(2), 3);
        let systems: Vec<u64> = store.runs().iter().map(|run| run.system).collect();
        assert_eq!(systems, [7, 8], "nobody has a base backup of 8 yet, and it is the newest");
        fs::remove_dir_all(&store.path).unwrap();
    }
}
