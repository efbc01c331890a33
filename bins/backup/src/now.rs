//! A base backup, by pg_basebackup, verified before it counts.

use std::fs;
use std::time::Duration;

use shared::args::Args;
use shared::backup::OLDEST;
use shared::clock::Stamp;
use shared::cluster::Cluster;
use shared::config::{Config, Engine};
use shared::exit::Code;
use shared::lock::Lock;
use shared::{Error, Result, state};

use crate::encryption::Recipients;
use crate::manifest::{self, Manifest};
use crate::server::{self, Server};
use crate::store::{self, Base, Info, PARTIAL, Store};
use crate::verify::{self, Found};
use crate::{child, expire, incremental, pgbackrest};

const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(24 * 3600);
/// A backup that was missed is made up for after this time, whatever the clock says.
const LATE: Duration = Duration::from_secs(26 * 3600);

pub fn all(clusters: &[Cluster], config: &Config, args: &Args) -> Result<Code> {
    let incrementals = if args.has("full") { 0 } else { config.backup.incrementals };
    // One after the other: each is a load of its own.
    crate::each(clusters, |cluster| now(cluster, config, args.has("due"), incrementals))
}

fn now(cluster: &Cluster, config: &Config, only_due: bool, incrementals: u32) -> Result<Code> {
    let name = cluster.name();
    let store = Store::open(cluster)?;
    let busy = |who: &str| {
        log::warn!(PG_CLUSTER = name; "{who} is at work on cluster {name}, no backup now");
        Ok(Code::TempFail)
    };
    let Some(_alone) = store.try_lock()? else {
        return busy("another backup");
    };
    // Held for this look only: see store.rs.
    if Lock::try_take_shared(&name)?.is_none() {
        return busy("a recovery");
    }
    store.clear_leftovers()?;
    let by_pgbackrest = config.backup.engine == Engine::Pgbackrest;
    if by_pgbackrest {
        pgbackrest::look(cluster, &store)?;
    }
    let server = match Server::ask(cluster) {
        Err(why) if only_due => {
            log::info!(PG_CLUSTER = name; "{}, no backup now", why.message);
            return Ok(Code::Ok);
        }
        server => server?,
    };
    if let Some(why) = cannot(&server) {
        log::info!(PG_CLUSTER = name; "cluster {name} is not backed up: {why}");
        return Ok(Code::Ok);
    }
    let mut bases = store.bases();
    // The other engine has the WAL that goes on behind those it has made.
    bases.retain(|base| base.info.pgbackrest.is_some() == by_pgbackrest);
    let infos: Vec<Info> = bases.iter().map(|base| base.info.clone()).collect();
    // A spread checkpoint is gentler and takes minutes; only what comes every night can wait for it.
    let mut fast = true;
    if only_due {
        let Some(why) = due(&infos, &store, &server, &Stamp::now()) else {
            return Ok(Code::Ok);
        };
        fast = why != NIGHT;
        log::info!(PG_CLUSTER = name; "cluster {name} needs a base backup: {why}");
    }
    if by_pgbackrest {
        return by_other(cluster, &store, incrementals, fast);
    }
    let recipients = Recipients::of(config)?;
    recipients.as_ref().map_or(Ok(()), Recipients::must_be_readable).map_err(|mut why| {
        why.message = format!("cannot back up cluster {name}: {}", why.message);
        why
    })?;
    let size = server::size(cluster)?;
    // An incremental one may become as large as a full one. What is being encrypted is there twice.
    let estimate =
        estimate(size, infos.iter().rfind(|info| info.parent.is_none())) * if recipients.is_some() { 2 } else { 1 };
    let mut room = store.room(config.backup.leave_free)?;
    if room < estimate {
        expire::one(&store, config, estimate - room, false)?;
        room = store.room(config.backup.leave_free)?;
    }
    if room < estimate {
        return Err(Error::failed(format!(
            "cannot back up cluster {name}: that needs about {} MB, and the volume of {} has {} MB beside the {} % that stay \
             free",
            estimate >> 20,
            store.path.display(),
            room >> 20,
            config.backup.leave_free
        ))
        .hint("Make room there, mount a larger volume there, or lower backup.leave_free."));
    }
    let parent = match server.summarizes && incrementals > 0 {
        true => incremental::parent(&store, bases.last(), &server, incrementals)
            .inspect_err(|why| log::info!(PG_CLUSTER = name; "a full backup of cluster {name} is made: {why}"))
            .ok(),
        false => None,
    };
    let take = |parent: Option<&Base>| take(cluster, config, &store, &server, recipients.as_ref(), parent, fast);
    let mut base = match take(parent.as_ref()) {
        // Summaries of WAL may be gone, or not reach back far enough.
        Err(why)
            if parent.is_some() && store.room(config.backup.leave_free / 2)? > 0 && Server::ask(cluster).is_ok() =>
        {
            log::warn!(PG_CLUSTER = name; "{}; a full backup is made instead of an incremental one", why.message);
            take(None)?
        }
        base => base?,
    };
    base.info.cluster_bytes = size;
    let found = {
        let _reading = store.reading()?;
        verify::one(&store, &mut base, &mut Found::default())?
    };
    let (id, seconds) = (&base.id, base.info.finished.since(&base.info.started).as_secs());
    if found == Code::Ok {
        log::info!(PG_CLUSTER = name; "cluster {name} is backed up as {id}{}: {} MB in {seconds} s, verified", upon(&base.info), base.info.bytes >> 20);
        expire::one(&store, config, 0, false)?;
    }
    Ok(found)
}

/// For an incremental one, upon which.
pub fn upon(info: &Info) -> String {
    info.parent.as_ref().map(|parent| format!(" (incremental, upon {parent})")).unwrap_or_default()
}

/// By pgBackRest, into its own repository, with its own bounds.
fn by_other(cluster: &Cluster, store: &Store, incrementals: u32, fast: bool) -> Result<Code> {
    let name = &store.cluster;
    let mut base = pgbackrest::take(cluster, store, incrementals, fast)?;
    let label = base.info.pgbackrest.as_ref().map_or("", |set| &set.label).to_string();
    let verified = match pgbackrest::can_verify_one() {
        true => Some(verify::one(store, &mut base, &mut Found::default())?),
        false => None,
    };
    let (id, seconds) = (&base.id, base.info.finished.since(&base.info.started).as_secs());
    let text = format!(
        "cluster {name} is backed up as {id} by pgBackRest ({label}): {} MB in {seconds} s",
        base.info.bytes >> 20
    );
    match verified {
        Some(Code::Ok) => log::info!(PG_CLUSTER = name; "{text}, verified"),
        Some(_) => {}
        None => {
            log::info!(PG_CLUSTER = name; "{text}; it was not read again, for this version reads a whole repository only: \
            pg-backup verify")
        }
    }
    Ok(verified.unwrap_or(Code::Ok))
}

/// Why a server is not backed up from here at all.
pub fn cannot(server: &Server) -> Option<String> {
    if server.is_standby {
        return Some("it is a standby, and its primary is backed up".into());
    }
    (server.version < OLDEST)
        .then(|| format!("PostgreSQL {} has no compressed backups that can be verified", server.version))
}

const NIGHT: &str = "two o'clock at night has passed since the last one";

/// Why it is time for one.
fn due(bases: &[Info], store: &Store, server: &Server, now: &Stamp) -> Option<&'static str> {
    let Some((newest, older)) = bases.split_last() else {
        return Some("there is none");
    };
    if (newest.system, newest.timeline) != (server.system, server.timeline) {
        return Some("the last one is of another cluster or timeline");
    }
    // Whatever makes every backup fail does so tomorrow too; it is not to be a load all day.
    if !newest.is_good() && older.last().is_none_or(Info::is_good) {
        return Some("the last one is not good");
    }
    let wal = store.wal(newest.system, newest.timeline, newest.segment_size);
    if newest.pgbackrest.is_none() && newest.is_good() && wal.gap_from(newest.end.0 / newest.segment_size).is_some() {
        return Some("WAL behind the last one is missing");
    }
    is_time(&newest.started, now, two_oclock(now.wall)).then_some(NIGHT)
}

/// Within one boot, age is measured by a clock that nobody sets. Across boots one from the future is from a clock that was
/// wrong.
fn is_time(newest: &Stamp, now: &Stamp, two_oclock: f64) -> bool {
    let age = now.since(newest);
    let night_has_passed = newest.wall < two_oclock && age >= HOUR;
    night_has_passed || age >= LATE || newest.wall > now.wall + DAY.as_secs_f64()
}

/// The last two o'clock at night of local time, in seconds since 1970.
fn two_oclock(now: f64) -> f64 {
    let seconds = now as libc::time_t;
    // SAFETY: zeros are valid for tm; both functions only read and write what they are given.
    unsafe {
        let mut night: libc::tm = std::mem::zeroed();
        libc::localtime_r(&raw const seconds, &raw mut night);
        (night.tm_hour, night.tm_min, night.tm_sec, night.tm_isdst) = (2, 0, 0, -1);
        let today = libc::mktime(&raw mut night);
        if today <= seconds {
            return today as f64;
        }
        night.tm_mday -= 1;
        night.tm_isdst = -1;
        libc::mktime(&raw mut night) as f64
    }
}

/// The size of the cluster, less what compression saved the last time; with a quarter more, for it may have changed.
fn estimate(size: u64, last: Option<&Info>) -> u64 {
    match last.filter(|last| last.cluster_bytes > 0) {
        Some(last) => size.min((size as f64 * 1.25 * last.bytes as f64 / last.cluster_bytes as f64) as u64),
        None => size,
    }
}

fn take(
    cluster: &Cluster,
    config: &Config,
    store: &Store,
    server: &Server,
    recipients: Option<&Recipients>,
    parent: Option<&Base>,
    fast: bool,
) -> Result<Base> {
    // Two that begin within one second would have one name.
    let (started, id, path) = loop {
        let started = Stamp::now();
        let id = started.compact();
        let path = store.path.join("base").join(&id);
        if !path.exists() {
            break (started, id, path);
        }
        std::thread::sleep(Duration::from_millis(100));
    };
    let partial = path.with_added_extension(&PARTIAL[1..]);
    let mut command = child::client_of(cluster, "pg_basebackup");
    command.arg("--pgdata").arg(&partial);
    // Compressed by the client, so that the work is done with the priority of this program.
    command.args(["--format=tar", "--compress=client-zstd", "--wal-method=stream", "--manifest-checksums=SHA256"]);
    command.args(["--label", &format!("pg-recovery {id}")]);
    command.arg(if fast { "--checkpoint=fast" } else { "--checkpoint=spread" });
    if let Some(parent) = parent {
        command.arg("--incremental").arg(parent.path.join(manifest::NAME));
    }
    if config.backup.max_rate > 0 {
        command.args(["--max-rate", &format!("{}k", config.backup.max_rate >> 10)]);
    }
    if server.would_wait_for_us() {
        command.arg("--no-slot");
    }
    let least = config.backup.leave_free / 2;
    let has_room = || match store.room(least)? {
        0 => Err(Error::failed(format!("the volume of {} has less than {least} % free", store.path.display()))),
        _ => Ok(()),
    };
    let finished = child::run(command, has_room)
        .and_then(|()| {
            let manifest = Manifest::read(&partial).map_err(Error::failed)?;
            if let Some(recipients) = recipients {
                for file in store::names(&partial).iter().filter(|name| name.contains(".tar")) {
                    recipients.encrypt(&partial.join(file), has_room)?;
                }
            }
            let info = Info {
                cluster: cluster.name(),
                version: server.version,
                started,
                finished: Stamp::now(),
                system: server.system,
                timeline: manifest.timeline,
                start: manifest.start,
                end: manifest.end,
                segment_size: server.segment_size,
                block_size: server.block_size,
                bytes: store::size_of(&partial),
                encrypted: recipients.is_some(),
                parent: parent.map(|parent| parent.id.clone()),
                ..Info::default()
            };
            Base { id: id.clone(), path: partial.clone(), info: info.clone() }.save()?;
            // pg_basebackup has flushed its files.
            fs::rename(&partial, &path)?;
            state::sync_folder(&store.path.join("base"))?;
            Ok(Base { id, path, info })
        })
        .map_err(|mut why: Error| {
            why.message = format!("could not back up cluster {}: {}", cluster.name(), why.message);
            why
        });
    if finished.is_err() {
        store.clear_leftovers()?;
    }
    finished
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Verdict;

    const H: f64 = 3600.0;

    fn at(wall: f64, boot: f64, boot_id: &str) -> Stamp {
        Stamp { wall, boot, boot_id: boot_id.into() }
    }

    #[test]
    fn the_last_two_oclock_is_less_than_a_day_ago() {
        for now in [1.8e9, 1.8e9 + 5.0 * H, 1.8e9 + 11.0 * H, 1.8e9 + 17.0 * H] {
            let age = now - two_oclock(now);
            assert!((0.0..=25.0 * H).contains(&age), "{age}");
        }
    }

    #[test]
    fn one_a_night_and_none_because_of_a_clock_that_was_set() {
        let (night, made) = (1e9, at(1e9 - 10.0 * H, 0.0, "a"));
        assert!(!is_time(&at(night + H, 0.0, "a"), &at(night + 5.0 * H, 4.0 * H, "a"), night), "made since");
        assert!(is_time(&made, &at(night + H, 11.0 * H, "a"), night));
        assert!(is_time(&made, &at(night + 7.0 * H, 60.0, "b"), night), "the host was off at night");
        assert!(!is_time(&made, &at(night + H, 60.0, "a"), night), "set forward a minute after the backup");
        assert!(is_time(&made, &at(1e8, 27.0 * H, "a"), 1e8 - H), "set back years ago");
        assert!(is_time(&made, &at(1e8, 60.0, "b"), 1e8 - H), "from the future");
    }

    #[test]
    fn a_bad_backup_is_made_again_once_and_then_at_night() {
        let store = crate::store::tests::store("due");
        let verdict = |error: Option<&str>| Some(Verdict { error: error.map(String::from), ..Verdict::default() });
        let info = |error| Info {
            segment_size: 1 << 24,
            started: at(1e9, 0.0, "a"),
            verified: verdict(error),
            ..Info::default()
        };
        let (good, bad) = (info(None), info(Some("damaged")));
        let due = |bases: &[Info]| due(bases, &store, &Server::default(), &at(1e9 + 60.0, 60.0, "a"));
        assert_eq!(due(&[]), Some("there is none"));
        assert_eq!(due(std::slice::from_ref(&good)), None);
        assert_eq!(due(&[good.clone(), bad.clone()]), Some("the last one is not good"));
        assert_eq!(due(&[good.clone(), bad.clone(), bad.clone()]), None);
        let other = Server { timeline: 2, ..Server::default() };
        assert!(super::due(&[good], &store, &other, &at(1e9, 0.0, "a")).is_some());
        std::fs::remove_dir_all(&store.path).unwrap();
    }

    #[test]
    fn room_is_asked_for_by_what_the_last_one_took() {
        assert_eq!(estimate(1000, None), 1000);
        let last = Info { bytes: 200, cluster_bytes: 1000, ..Info::default() };
        assert_eq!(estimate(2000, Some(&last)), 500);
        assert_eq!(estimate(1000, Some(&Info { bytes: 5000, ..last })), 1000);
    }

    #[test]
    fn a_standby_and_an_old_server_are_not_backed_up() {
        assert!(cannot(&Server { version: 15, ..Server::default() }).is_none());
        assert!(cannot(&Server { version: 15, is_standby: true, ..Server::default() }).is_some());
        assert!(cannot(&Server { version: 14, ..Server::default() }).is_some());
    }
}
