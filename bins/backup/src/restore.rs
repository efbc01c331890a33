//! The way back: a base backup into a new or empty directory, and the settings with which PostgreSQL replays the WAL to the
//! wanted point when it starts there.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use shared::args::Args;
use shared::cluster::{Cluster, parse_line};
use shared::config::Config;
use shared::control::Lsn;
use shared::exit::Code;
use shared::{Error, Result, command, log as journal, process};

use crate::encryption;
use crate::incremental;
use crate::manifest::Manifest;
use crate::pgbackrest;
use crate::store::{self, Base, Store};
use crate::verify::{self, Target};

#[derive(Clone, Debug, PartialEq)]
pub enum Point {
    /// As far as there is WAL.
    Latest,
    /// Seconds since 1970, and the same as PostgreSQL reads it.
    Time(f64, String),
    Lsn(Lsn),
    Name(String),
}

impl Point {
    fn of(args: &Args) -> Result<Point> {
        let given: Vec<&str> = ["time", "lsn", "name"].into_iter().filter(|name| args.value(name).is_some()).collect();
        match (given.as_slice(), args.has("latest")) {
            ([], _) => Ok(Point::Latest),
            ([name], false) => {
                let value = args.value(name).unwrap_or_default();
                match *name {
                    "time" => Self::time(value),
                    "lsn" => Lsn::parse(value).map(Point::Lsn).ok_or_else(|| {
                        Error::usage(format!("\"{value}\" is not a position in the WAL, such as 0/3000060"))
                    }),
                    _ => Ok(Point::Name(value.into())),
                }
            }
            _ => Err(Error::usage("only one of --latest, --time, --lsn and --name can be restored to")),
        }
    }

    /// Without a zone it is local time, for us as for PostgreSQL, whose zone may be another one.
    fn time(text: &str) -> Result<Point> {
        let mut date = Command::new("date");
        date.args(["--utc", "--date", text, "+%s.%6N %Y-%m-%d %H:%M:%S.%6N+00"]);
        let out = command::run(&mut date, Duration::from_secs(5))?;
        let point = out
            .stdout
            .trim()
            .split_once(' ')
            .and_then(|(seconds, text)| Some(Point::Time(seconds.parse().ok()?, text.to_string())));
        point.filter(|_| out.status.success()).ok_or_else(|| {
            Error::usage(format!("\"{text}\" is not a time")).hint("Write it such as '2026-11-25 13:37:00+00'.")
        })
    }

    fn settings(&self) -> Vec<String> {
        let target = match self {
            Point::Latest => return Vec::new(),
            Point::Time(_, text) => format!("recovery_target_time = '{text}'"),
            Point::Lsn(lsn) => format!("recovery_target_lsn = '{lsn}'"),
            Point::Name(name) => format!("recovery_target_name = '{}'", name.replace('\'', "''")),
        };
        vec![target, "recovery_target_action = 'promote'".into()]
    }
}

impl std::fmt::Display for Point {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Point::Latest => f.write_str("the end of the WAL"),
            Point::Time(_, text) => f.write_str(text),
            Point::Lsn(lsn) => write!(f, "{lsn}"),
            Point::Name(name) => write!(f, "the restore point {name}"),
        }
    }
}

pub fn run(clusters: &[Cluster], config: &Config, args: &Args) -> Result<Code> {
    let [cluster] = clusters else {
        return Err(Error::usage("one cluster is restored at a time").hint("Name it with --cluster."));
    };
    let to = args.value("to").ok_or_else(|| Error::usage("where to is missing").hint("Say --to DIR."))?;
    let point = Point::of(args)?;
    let store = Store::of(cluster)?;
    pgbackrest::refresh(cluster, &store, config);
    let base = match args.value("backup") {
        Some(id) => store.base(Some(id))?,
        None => choose(store.bases(), &point).ok_or_else(|| {
            Error::failed(format!("cluster {} has no backup from before {point}", cluster.name()))
                .hint("Backups: pg-backup list")
        })?,
    };
    let _reading = store.reading()?;
    let chain = chain(&store, &base)?;
    let data = may_write(cluster, Path::new(to))?;
    if !base.info.is_good() {
        log::warn!("backup {} was not found good: pg-backup verify --backup {}", base.id, base.id);
    }
    let wal = store.wal(base.info.system, base.info.timeline, base.info.segment_size);
    if base.info.pgbackrest.is_none()
        && let Some(gap) = wal.gap_from(base.info.end.0 / base.info.segment_size)
    {
        let name = shared::wal::segment_name(base.info.timeline, gap, base.info.segment_size);
        log::warn!("WAL segment {name} is missing: nothing after it can be restored from backup {}", base.id);
    }
    if !args.has("plan") {
        put(cluster, &store, config, &base, &point, &data)?;
    }
    journal::print(&report(cluster, &chain, &point, &data, args.has("plan")))?;
    Ok(Code::Ok)
}

/// The newest that was whole before the wanted point; one that was found good before one that was not.
fn choose(bases: Vec<Base>, point: &Point) -> Option<Base> {
    let fits = |base: &&Base| match point {
        Point::Latest | Point::Name(_) => true,
        Point::Time(wall, _) => base.info.finished.wall <= *wall,
        Point::Lsn(lsn) => base.info.end <= *lsn,
    };
    let good = bases.iter().rfind(|base| fits(base) && base.info.is_good());
    good.or_else(|| bases.iter().rfind(fits)).cloned()
}

/// The directory, which must not exist or be empty, and be nobody's.
fn may_write(cluster: &Cluster, to: &Path) -> Result<PathBuf> {
    let to = std::path::absolute(to)?;
    let cannot =
        |why: String| Error::failed(format!("cannot restore cluster {} into {}: {why}", cluster.name(), to.display()));
    match fs::read_dir(&to).map(|mut entries| entries.next().is_none()) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(cannot(e.to_string())),
        Ok(false) => {
            return Err(cannot("it is not empty".into()).hint("Name a directory that is empty or does not exist."));
        }
        _ => {}
    }
    let canonical = to.canonicalize().unwrap_or_else(|_| to.clone());
    // One that was emptied under a running server still is that server's.
    if let Some(postmaster) = process::family(&canonical, &cluster.owner)?.all().next() {
        return Err(cannot(format!("process {} of PostgreSQL works in it", postmaster.pid)));
    }
    Ok(canonical)
}

/// A directory that nobody else restores into.
struct Claim {
    /// It was made for this.
    is_new: bool,
    /// Of the directory itself, whatever name somebody else knows it by. The kernel gives it back when its holder dies.
    _alone: Option<Flock<File>>,
}

impl Claim {
    /// Makes the directory where it is missing, and looks again whether it is empty: nobody but the holder of the lock
    /// fills it from then on.
    fn of(data: &Path) -> Result<Claim, String> {
        let is_new = !data.exists();
        let text = |e: std::io::Error| e.to_string();
        fs::DirBuilder::new().recursive(true).mode(0o700).create(data).map_err(text)?;
        let flags = libc::O_DIRECTORY | libc::O_CLOEXEC;
        let folder = File::options().read(true).custom_flags(flags).open(data).map_err(text)?;
        let inode = |meta: fs::Metadata| (meta.dev(), meta.ino());
        let locked = inode(folder.metadata().map_err(text)?);
        let alone = match Flock::lock(folder, FlockArg::LockExclusiveNonblock) {
            Ok(held) => Some(held),
            Err((_, Errno::EWOULDBLOCK)) => return Err("another restore writes into it".into()),
            // Over NFS only what is open for writing can be locked (flock(2)), which no directory is.
            Err((_, e)) => {
                log::warn!("could not lock {}: {}; going on as if nobody else wrote there", data.display(), e.desc());
                None
            }
        };
        // Another restore that has failed since has removed the one that is locked here.
        let is_it = fs::metadata(data).map(inode).map_err(text)? == locked;
        if !is_it || fs::read_dir(data).map_err(text)?.next().is_some() {
            return Err("another restore has just written into it".into());
        }
        Ok(Claim { is_new, _alone: alone })
    }
}

/// A backup with those that it stands upon.
fn chain(store: &Store, base: &Base) -> Result<Vec<Base>> {
    store.chain(base).map_err(|why| {
        let text = format!("cannot restore backup {} of cluster {}: {why}", base.id, store.cluster);
        Error::failed(text).hint("Restore an earlier one with --backup ID, see pg-backup list.")
    })
}

/// Restores; removes what it has written when it fails.
pub fn put(cluster: &Cluster, store: &Store, config: &Config, base: &Base, point: &Point, data: &Path) -> Result<()> {
    let wal = wal_to_bring(store, config, base);
    let chain = chain(store, base)?;
    if base.info.pgbackrest.is_none() {
        verify::must_open(&chain, wal.values().map(PathBuf::as_path))?;
    }
    let claim = Claim::of(data).map_err(|why| {
        let text = format!("cannot restore cluster {} into {}: {why}", store.cluster, data.display());
        Error::failed(text).hint("The directory must be empty, and belong to postgres or lie in one that does.")
    })?;
    let tablespaces = tablespaces(data);
    if tablespaces.exists() {
        return Err(Error::failed(format!("cannot restore tablespaces into {}: it exists", tablespaces.display())));
    }
    let done = write(cluster, store, &chain, &wal, point, &Target { data, tablespaces: &tablespaces });
    if done.is_err() {
        for entry in fs::read_dir(data).into_iter().flatten().flatten() {
            let _ = fs::remove_dir_all(entry.path()).or_else(|_| fs::remove_file(entry.path()));
        }
        if claim.is_new {
            let _ = fs::remove_dir(data);
        }
        let _ = store::remove_tree(&tablespaces);
    }
    done
}

/// Beside the data directory: inside they would be in the way of the server.
pub fn tablespaces(data: &Path) -> PathBuf {
    data.with_added_extension("tablespaces")
}

/// WAL that a restore brings along in the clear, by name: the server that replays it has no identity. What is received in the
/// clear now may be encrypted by the time it is asked for. None where nothing is encrypted: the server fetches it.
pub fn wal_to_bring(store: &Store, config: &Config, base: &Base) -> BTreeMap<String, PathBuf> {
    let wal = store.wal_from(&base.info);
    let is_encrypted = !config.backup.recipients.is_empty() || wal.values().any(|path| encryption::is_encrypted(path));
    if is_encrypted && base.info.pgbackrest.is_none() { wal } else { BTreeMap::new() }
}

/// Bytes that a restore writes: each backup of a chain is unpacked before they are combined.
pub fn size(chain: &[Base], wal: usize) -> Result<u64, String> {
    let Some(base) = chain.last() else { return Ok(0) };
    let parts = match &base.info.pgbackrest {
        Some(_) => 0,
        None => chain.iter().try_fold(0, |sum, base| Manifest::read(&base.path).map(|files| sum + files.size()))?,
    };
    let is_whole = base.info.pgbackrest.is_none() && chain.len() == 1;
    Ok(parts + if is_whole { 0 } else { base.info.cluster_bytes } + wal as u64 * base.info.segment_size)
}

fn write(
    cluster: &Cluster,
    store: &Store,
    chain: &[Base],
    wal: &BTreeMap<String, PathBuf>,
    point: &Point,
    target: &Target,
) -> Result<()> {
    let Some(base) = chain.last() else { return Ok(()) };
    let (data, tablespaces) = (target.data, target.tablespaces);
    let failed = |why: String| {
        let text =
            format!("could not restore backup {} of cluster {} into {}: {why}", base.id, store.cluster, data.display());
        Error::failed(text).hint("The directory must belong to postgres, or lie in one that does.")
    };
    let size = size(chain, wal.len()).map_err(failed)?;
    let room = store::room(data, 0)?;
    if room < size {
        return Err(failed(format!("it needs {} MB, and {} MB are free there", size >> 20, room >> 20)));
    }
    if let Some(set) = &base.info.pgbackrest {
        return pgbackrest::restore(set, point, data, tablespaces).map_err(|why| failed(why.message));
    }
    match chain {
        [_] => verify::read(&base.path, Some(target)).map(drop),
        _ => incremental::combine(cluster, chain, target),
    }
    .map_err(failed)?;
    let io = |e: io::Error| failed(e.to_string());
    for (name, path) in wal {
        bring(path, &data.join("pg_wal"), name).map_err(|e| failed(format!("WAL segment {name}: {e}")))?;
    }
    // The server refuses one that others may look into.
    fs::set_permissions(data, fs::Permissions::from_mode(0o700)).map_err(io)?;
    // The server makes the links when it starts, and would make them to where the tablespaces were.
    let map = data.join("tablespace_map");
    if let Ok(text) = fs::read_to_string(&map) {
        let line =
            |line: &str| line.split(' ').next().map(|oid| format!("{oid} {}\n", tablespaces.join(oid).display()));
        fs::write(&map, text.lines().filter_map(line).collect::<String>()).map_err(io)?;
    }
    let auto = data.join("postgresql.auto.conf");
    let text = settings(&fs::read_to_string(&auto).unwrap_or_default(), store, base, point);
    fs::write(&auto, text).map_err(io)?;
    fs::write(data.join("recovery.signal"), "").map_err(io)?;
    nix::unistd::syncfs(File::open(data).map_err(io)?.as_fd())?;
    Ok(())
}

/// Puts a segment where the server looks when its restore_command does not have it, in place of what the base backup brought of
/// it. It is marked as archived, or the server would archive it again.
fn bring(from: &Path, pg_wal: &Path, name: &str) -> io::Result<()> {
    let status = pg_wal.join("archive_status");
    fs::DirBuilder::new().recursive(true).mode(0o700).create(&status)?;
    let create = |path: PathBuf| File::options().write(true).create(true).truncate(true).mode(0o600).open(path);
    io::copy(&mut encryption::open(from)?, &mut create(pg_wal.join(name))?)?;
    create(status.join(format!("{name}.done"))).map(drop)
}

/// `postgresql.auto.conf` with the recovery that is wanted, and without one that was wanted when this cluster was itself
/// restored.
fn settings(old: &str, store: &Store, base: &Base, point: &Point) -> String {
    let is_old = |line: &&str| {
        let name = parse_line(line).map(|(name, _)| name).unwrap_or_default();
        name == "restore_command" || name.starts_with("recovery_target")
    };
    let mut lines: Vec<String> = old.lines().filter(|line| !is_old(line)).map(String::from).collect();
    // Whole segments first, then what has been received of the last one; of several runs the newest.
    let wal = format!("{}/wal/{}-*", store.path.display(), base.info.system);
    lines.push(format!(
        "restore_command = 'for f in $(ls -r {wal}/%f 2>/dev/null; ls -r {wal}/%f.partial 2>/dev/null); \
         do cp \"$f\" \"%p\" && exit 0; done; exit 1'"
    ));
    if !reaches_latest(store, base) {
        lines.push("recovery_target_timeline = 'current'".into());
    }
    lines.extend(point.settings());
    lines.join("\n") + "\n"
}

/// Whether the newest timeline goes on from this backup, and not from before it (manual, "Timelines").
fn reaches_latest(store: &Store, base: &Base) -> bool {
    let newest =
        store.runs().into_iter().rfind(|run| run.system == base.info.system && run.timeline > base.info.timeline);
    newest.is_none_or(|run| {
        let history = fs::read_to_string(run.path.join(format!("{:08X}.history", run.timeline))).unwrap_or_default();
        history.lines().any(|line| {
            let mut words = line.split_whitespace();
            let timeline = words.next().and_then(|word| word.parse::<u32>().ok());
            timeline == Some(base.info.timeline)
                && words.next().and_then(Lsn::parse).is_some_and(|fork| fork >= base.info.end)
        })
    })
}

fn report(cluster: &Cluster, chain: &[Base], point: &Point, data: &Path, plan: bool) -> String {
    let ids: Vec<&str> = chain.iter().map(|base| base.id.as_str()).collect();
    let (dir, name, unit, live) = (data.display(), cluster.name(), &cluster.unit, cluster.data_directory.display());
    let did = if plan { "would be restored" } else { "is restored" };
    let mut text = format!(
        "backup {} of cluster {name} {did} into {dir}; at its start the server replays WAL to {point}\n",
        ids.join(" with ")
    );
    let own = cluster.config_directory == cluster.data_directory;
    let config_file = if own { data.join("postgresql.conf") } else { cluster.config_directory.join("postgresql.conf") };
    text.push_str(&format!(
        "\nTo start it beside the other one, on another port:\n  runuser -u postgres -- {}/pg_ctl start -w -t 86400 -D {dir} -l {dir}/start.log \
         -o \"-c config_file={} -c data_directory={dir} -c port={} -c external_pid_file= -c archive_mode=off -c synchronous_standby_names= \
         -c max_logical_replication_workers=0\"\n",
        cluster.bin_directory.display(),
        config_file.display(),
        cluster.port() + 1000,
    ));
    text.push_str(&format!(
        "\nTo put it in the place of cluster {name}:\n  pg-recover pause 1h restore\n  systemctl stop {unit}\n"
    ));
    if data != cluster.data_directory {
        text.push_str(&format!("  mv {live} {live}.before\n  mv {dir} {live}\n"));
    }
    text.push_str(&format!("  systemctl start {unit}\n  pg-recover resume\n"));
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{Info, Verdict, tests};
    use shared::clock::Stamp;

    fn base(id: &str, wall: f64, end: u64, good: bool) -> Base {
        let verified = Some(Verdict { error: (!good).then(String::new), ..Verdict::default() });
        let finished = Stamp { wall, ..Stamp::default() };
        let info = Info { end: Lsn(end), finished, verified, system: 7, timeline: 1, ..Info::default() };
        Base { id: id.into(), path: PathBuf::new(), info }
    }

    #[test]
    fn the_newest_backup_from_before_the_point_is_taken() {
        let bases = || vec![base("a", 100.0, 10, true), base("b", 200.0, 20, true), base("c", 300.0, 30, false)];
        let chosen = |point| choose(bases(), &point).map(|base| base.id);
        assert_eq!(chosen(Point::Latest).as_deref(), Some("b"), "the newest is not good");
        assert_eq!(chosen(Point::Time(150.0, String::new())).as_deref(), Some("a"));
        assert_eq!(chosen(Point::Lsn(Lsn(20))).as_deref(), Some("b"));
        assert_eq!(chosen(Point::Time(50.0, String::new())), None);
        assert_eq!(choose(vec![base("c", 1.0, 1, false)], &Point::Latest).map(|b| b.id).as_deref(), Some("c"));
    }

    #[test]
    fn times_are_understood_as_people_write_them() {
        let Point::Time(seconds, text) = Point::time("2026-11-25 13:37:00.5+01").unwrap() else { panic!() };
        assert_eq!((seconds, text.as_str()), (1_795_610_220.5, "2026-11-25 12:37:00.500000+00"));
        assert!(Point::time("when it was good").is_err());
    }

    #[test]
    fn of_two_restores_into_one_directory_one_is_kept_out() {
        let folder = std::env::temp_dir().join(format!("pg-backup-claim-{}", std::process::id()));
        let _ = fs::remove_dir_all(&folder);
        let data = folder.join("data");
        let first = Claim::of(&data).unwrap();
        std::os::unix::fs::symlink(&data, folder.join("link")).unwrap();
        for name in [&data, &folder.join("link")] {
            assert_eq!(Claim::of(name).err().as_deref(), Some("another restore writes into it"));
        }
        fs::write(data.join("PG_VERSION"), "16").unwrap();
        drop(first);
        assert_eq!(Claim::of(&data).err().as_deref(), Some("another restore has just written into it"));
        assert!(data.join("PG_VERSION").exists(), "nothing of the other one is removed");
        fs::remove_file(data.join("PG_VERSION")).unwrap();
        assert!(!Claim::of(&data).unwrap().is_new);
        fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn an_earlier_restore_leaves_no_second_target() {
        let store = tests::store("settings");
        let old = "work_mem = '8MB'\nrecovery_target_time = '1'\nrestore_command = 'x'\n";
        let text = settings(old, &store, &base("a", 1.0, 1, true), &Point::Name("it's".into()));
        assert!(text.starts_with("work_mem = '8MB'\nrestore_command = 'for f in"), "{text}");
        assert!(text.contains("recovery_target_name = 'it''s'") && !text.contains("recovery_target_time"), "{text}");
        assert!(!text.contains("recovery_target_timeline"));
        // The newest timeline left this one before the backup was made.
        tests::segment(&store, "7-00000002-0001", "00000002.history");
        let history = store.path.join("wal/7-00000002-0001/00000002.history");
        for (fork, reaches) in [("0/1", true), ("0/0", false)] {
            fs::write(&history, format!("1\t{fork}\tno recovery target specified\n")).unwrap();
            assert_eq!(reaches_latest(&store, &base("a", 1.0, 1, true)), reaches, "{fork}");
        }
        fs::remove_dir_all(&store.path).unwrap();
    }
}
