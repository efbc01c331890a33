//! Where backups are: `/var/backups/pg-recovery/16-main/`, all of it property of the user postgres.
//!
//! - `base/20261125T020000Z/`: `base.tar.zst`, `OID.tar.zst` for each tablespace, `pg_wal.tar`, `backup_manifest`, and
//!   `backup.json`, which is ours. While it is being made or removed its name ends in `.partial`.
//! - `wal/SYSTEM-TIMELINE-RUN/`: segments as pg_receivewal writes them, the one that is being received as `.partial`. A new
//!   run begins where WAL is missing, so that what came before stays as it is.
//!
//!   Where backups are encrypted (encryption.rs), the names of tars and of segments that are whole end in `.age`.
//! - `drill/`: what a drill restores and removes again.
//! - `lock`: held exclusively by whoever makes or removes backups. `reading`: held shared by whoever reads them,
//!   exclusively while some are removed. Neither is the cluster's lock: a backup needs nothing of the cluster to stay, it
//!   fails when the server goes, and no recovery ever waits for it.
//!
//! Backups are put in order by system identifier (which begins with the time of initdb), timeline and LSN, never by the
//! clock. No link is followed, and what has another name is not ours.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::sys::stat::Mode;
use nix::sys::statvfs::statvfs;
use nix::unistd::{AccessFlags, Uid, access};
use shared::backup::{self, INFO, ROOT, is_id};
pub use shared::backup::{Info, Verdict};
use shared::cluster::Cluster;
use shared::exit::Code;
use shared::owner::Owner;
use shared::{Error, Result, state, wal};

pub const PARTIAL: &str = ".partial";
pub use crate::encryption::AGE;

#[derive(Clone, Debug)]
pub struct Base {
    pub id: String,
    pub path: PathBuf,
    pub info: Info,
}

impl Base {
    pub fn save(&self) -> Result<()> {
        let text = serde_json::to_vec_pretty(&self.info).map_err(io::Error::other)?;
        let path = self.path.join(INFO);
        state::replace(&path, &text, 0o600)
            .map_err(|e| Error::failed(format!("could not write {}: {e}", path.display())))
    }
}

/// Folders of one stretch of WAL without a gap.
#[derive(Clone, Debug)]
pub struct Run {
    pub path: PathBuf,
    pub system: u64,
    pub timeline: u32,
    pub number: u32,
}

impl Run {
    fn parse(path: PathBuf) -> Option<Run> {
        let name = path.file_name()?.to_str()?;
        let mut parts = name.split('-');
        let (system, timeline, number) = (parts.next()?, parts.next()?, parts.next()?);
        let run = Run {
            system: system.parse().ok()?,
            timeline: u32::from_str_radix(timeline, 16).ok()?,
            number: number.parse().ok()?,
            path: path.clone(),
        };
        (run.name() == name).then_some(run)
    }

    fn name(&self) -> String {
        format!("{}-{:08X}-{:04}", self.system, self.timeline, self.number)
    }

    /// Its segments of its own timeline by number. Of several files of one, the complete one counts, then the encrypted one.
    pub fn segments(&self, segment_size: u64) -> BTreeMap<u64, Segment> {
        let mut segments: BTreeMap<u64, Segment> = BTreeMap::new();
        for file in names(&self.path) {
            let plain = file.strip_suffix(AGE).unwrap_or(&file);
            let name = plain.strip_suffix(PARTIAL).unwrap_or(plain);
            match parse_segment(name, segment_size) {
                Some((timeline, number)) if timeline == self.timeline => {
                    let found = Segment { complete: plain == name, encrypted: plain != file, file };
                    let worse = |known: &Segment| (known.complete, known.encrypted) < (found.complete, found.encrypted);
                    if segments.get(&number).is_none_or(worse) {
                        segments.insert(number, found);
                    }
                }
                _ => {}
            }
        }
        segments
    }
}

/// A WAL segment in a run.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Segment {
    pub complete: bool,
    pub encrypted: bool,
    /// Its name in the folder of the run.
    pub file: String,
}

/// All WAL of one timeline.
pub struct Wal {
    /// The newest first.
    runs: Vec<Run>,
    /// By number: where, and whether it is complete. Of several the complete one counts, then the newest.
    segments: BTreeMap<u64, (PathBuf, bool)>,
}

impl Wal {
    /// How far WAL goes on from `first` without a gap: number of the segment behind the last complete one.
    pub fn complete_from(&self, first: u64) -> u64 {
        (first..).find(|number| !self.segments.get(number).is_some_and(|(_, complete)| *complete)).unwrap_or(first)
    }

    /// The first segment that is missing although WAL goes on behind it.
    pub fn gap_from(&self, first: u64) -> Option<u64> {
        let next = self.complete_from(first);
        self.segments.keys().next_back().is_some_and(|last| *last > next).then_some(next)
    }

    pub fn last(&self) -> Option<u64> {
        self.segments.keys().next_back().copied()
    }

    /// Of every segment from this one on.
    pub fn paths_from(&self, first: u64) -> impl Iterator<Item = &Path> {
        self.segments.range(first..).map(|(_, (path, _))| path.as_path())
    }

    pub fn path_of(&self, number: u64) -> Option<&Path> {
        self.segments.get(&number).map(|(path, _)| path.as_path())
    }

    pub fn newest_run(&self) -> Option<&Run> {
        self.runs.first()
    }
}

/// The backups of one cluster.
pub struct Store {
    pub cluster: String,
    pub path: PathBuf,
}

impl Store {
    /// Makes its folders where they are missing.
    pub fn open(cluster: &Cluster) -> Result<Store> {
        let store = Store::of(cluster)?;
        for folder in ["base", "wal"] {
            let path = store.path.join(folder);
            fs::DirBuilder::new().recursive(true).mode(0o700).create(&path).map_err(|e| {
                Error::failed(format!("could not make {}: {e}", path.display()))
                    .hint("systemd-tmpfiles --create pg-recovery.conf makes the folder above it.")
            })?;
        }
        Ok(store)
    }

    /// Looks only.
    pub fn of(cluster: &Cluster) -> Result<Store> {
        let name = cluster.file_name();
        // It becomes part of a restore_command.
        if !name.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c)) || name.starts_with('.') {
            return Err(Error::config(format!(
                "cannot back up cluster {}: its name has other characters than letters, \
                digits, -, _ and .",
                cluster.name()
            )));
        }
        Ok(Store { cluster: cluster.name(), path: Path::new(ROOT).join(name) })
    }

    /// `None` while another program makes or removes backups.
    pub fn try_lock(&self) -> Result<Option<Flock<File>>> {
        self.flock("lock", FlockArg::LockExclusiveNonblock)
    }

    /// Nothing is removed meanwhile. On a volume that is read-only nobody removes anything, and there is nothing to hold.
    pub fn reading(&self) -> Result<Option<Flock<File>>> {
        match self.flock("reading", FlockArg::LockShared) {
            Err(_) if access(&self.path, AccessFlags::W_OK) == Err(Errno::EROFS) => Ok(None),
            held => held,
        }
    }

    /// `None` while somebody reads.
    pub fn try_removing(&self) -> Result<Option<Flock<File>>> {
        self.flock("reading", FlockArg::LockExclusiveNonblock)
    }

    pub fn try_drill(&self) -> Result<Option<Flock<File>>> {
        self.flock("drill.lock", FlockArg::LockExclusiveNonblock)
    }

    fn flock(&self, name: &str, how: FlockArg) -> Result<Option<Flock<File>>> {
        let path = self.path.join(name);
        let flags = libc::O_NOFOLLOW | libc::O_CLOEXEC;
        let file = File::options().create(true).append(true).mode(0o600).custom_flags(flags).open(&path);
        let file = file.map_err(|e| Error::failed(format!("could not open {}: {e}", path.display())))?;
        match Flock::lock(file, how) {
            Ok(held) => Ok(Some(held)),
            Err((_, Errno::EWOULDBLOCK)) => Ok(None),
            Err((_, e)) => Err(Error::failed(format!("could not lock {}: {}", path.display(), e.desc()))),
        }
    }

    /// The whole base backups, the oldest first.
    pub fn bases(&self) -> Vec<Base> {
        let mut bases: Vec<Base> = backup::read_all(&self.path)
            .into_iter()
            .filter_map(|(id, path, info)| match info {
                Ok(info) => Some(Base { id, path, info }),
                Err(why) => {
                    log::warn!(PG_CLUSTER = self.cluster; "cannot use the backup {}: {INFO}: {why}", path.display());
                    None
                }
            })
            .collect();
        bases.sort_by(|a, b| a.info.order().cmp(&b.info.order()).then_with(|| a.id.cmp(&b.id)));
        bases
    }

    /// The backup with this id, or the newest.
    pub fn base(&self, id: Option<&str>) -> Result<Base> {
        let mut bases = self.bases();
        match id {
            None => bases.pop(),
            Some(id) => bases.into_iter().find(|base| base.id == id),
        }
        .ok_or_else(|| {
            let what = id.map_or("no backup".to_string(), |id| format!("no backup {id}"));
            Error::failed(format!("there is {what} of cluster {}", self.cluster)).hint("Backups: pg-backup list")
        })
    }

    /// A base backup with those it stands upon: the full one first, itself last. Or which of them is not there.
    pub fn chain(&self, base: &Base) -> Result<Vec<Base>, String> {
        let known = self.bases();
        let mut chain = vec![base.clone()];
        while let Some(id) = chain[chain.len() - 1].info.parent.clone() {
            let child = &chain[chain.len() - 1].info;
            // Each is older than the next, or it would never end.
            let parent = known.iter().find(|base| base.id == id && base.info.order() < child.order());
            chain.push(parent.ok_or(format!("it stands upon backup {id}, which is not there"))?.clone());
        }
        chain.reverse();
        Ok(chain)
    }

    /// The runs, the oldest first.
    pub fn runs(&self) -> Vec<Run> {
        let folder = self.path.join("wal");
        let mut runs: Vec<Run> = names(&folder)
            .into_iter()
            .map(|name| folder.join(name))
            .filter(|path| path.symlink_metadata().is_ok_and(|meta| meta.is_dir()))
            .filter_map(Run::parse)
            .collect();
        runs.sort_by_key(|run| (run.system, run.timeline, run.number));
        runs
    }

    /// A run that does not exist yet.
    pub fn next_run(&self, system: u64, timeline: u32) -> Run {
        let last = self.runs().into_iter().rfind(|run| (run.system, run.timeline) == (system, timeline));
        let mut run = Run { path: PathBuf::new(), system, timeline, number: last.map_or(1, |run| run.number + 1) };
        run.path = self.path.join("wal").join(run.name());
        run
    }

    pub fn wal(&self, system: u64, timeline: u32, segment_size: u64) -> Wal {
        let mut runs = self.runs();
        runs.retain(|run| (run.system, run.timeline) == (system, timeline));
        runs.reverse();
        let mut segments: BTreeMap<u64, (PathBuf, bool)> = BTreeMap::new();
        for run in &runs {
            for (number, segment) in run.segments(segment_size) {
                let better = segments.get(&number).is_none_or(|(_, known)| segment.complete && !known);
                if better {
                    segments.insert(number, (run.path.join(segment.file), segment.complete));
                }
            }
        }
        Wal { runs, segments }
    }

    /// WAL from the start of a backup on, of its timeline and later ones: where each segment is, by name.
    pub fn wal_from(&self, info: &Info) -> BTreeMap<String, PathBuf> {
        let timelines = self.runs().into_iter().filter(|run| run.system == info.system).map(|run| run.timeline);
        let timelines: BTreeSet<u32> = timelines.filter(|timeline| *timeline >= info.timeline).collect();
        let first = info.start.0 / info.segment_size.max(1);
        let of = |timeline| {
            let name = move |number| wal::segment_name(timeline, number, info.segment_size);
            let segments = self.wal(info.system, timeline, info.segment_size).segments;
            segments
                .into_iter()
                .filter(move |(number, _)| *number >= first)
                .map(move |(number, (path, _))| (name(number), path))
        };
        timelines.into_iter().flat_map(of).collect()
    }

    /// Removes what an interrupted backup or removal has left.
    pub fn clear_leftovers(&self) -> Result<()> {
        let folder = self.path.join("base");
        for name in names(&folder) {
            if name.strip_suffix(PARTIAL).is_some_and(is_id) {
                remove_tree(&folder.join(name))?;
            }
        }
        Ok(())
    }

    /// Free bytes beyond the percentage that is to stay free.
    pub fn room(&self, leave_free: u8) -> Result<u64> {
        room(&self.path, leave_free)
    }
}

/// Free bytes of a volume beyond the percentage that is to stay free.
pub fn room(path: &Path, leave_free: u8) -> Result<u64> {
    let stat = statvfs(path)
        .map_err(|e| Error::failed(format!("could not tell how much room {} has: {}", path.display(), e.desc())))?;
    let stays = stat.blocks() * stat.fragment_size() / 100 * u64::from(leave_free);
    Ok((stat.blocks_available() * stat.fragment_size()).saturating_sub(stays))
}

/// Timeline and number of a WAL segment.
pub fn parse_segment(name: &str, segment_size: u64) -> Option<(u32, u64)> {
    let part = |from: usize| u64::from_str_radix(name.get(from..from + 8)?, 16).ok();
    let per_id = 0x1_0000_0000 / segment_size.max(1);
    let (timeline, number) = (part(0)? as u32, part(8)? * per_id + part(16)?);
    (name == wal::segment_name(timeline, number, segment_size)).then_some((timeline, number))
}

pub fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
}

/// Removes a folder with everything in it; links in it are removed, not followed.
pub fn remove_tree(path: &Path) -> Result<()> {
    match fs::remove_dir_all(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => {
            Err(Error::failed(format!("could not remove {}: {e}", path.display())))
        }
        _ => Ok(()),
    }
}

/// Bytes of the files in a folder.
pub fn size_of(folder: &Path) -> u64 {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.metadata().ok()).filter(|meta| meta.is_file()).map(|meta| meta.len()).sum()
}

/// Backups are made and kept by the user postgres: root becomes that user for good.
pub fn become_postgres() -> Result<()> {
    nix::sys::stat::umask(Mode::from_bits_truncate(0o077));
    let postgres = Owner::named("postgres").ok_or_else(|| Error::config("there is no user postgres"))?;
    if Uid::effective().is_root() {
        nix::unistd::initgroups(c"postgres", postgres.gid)?;
        nix::unistd::setgid(postgres.gid)?;
        nix::unistd::setuid(postgres.uid)?;
    }
    if Uid::effective() == postgres.uid {
        return Ok(());
    }
    Err(Error::with(Code::NoPerm, "cannot reach the backups: this program runs as another user")
        .hint("Run it as root or as postgres."))
}

#[cfg(test)]
pub mod tests {
    use super::*;

    const SEGMENT: u64 = 16 << 20;

    pub fn store(name: &str) -> Store {
        let path = std::env::temp_dir().join(format!("pg-backup-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        for folder in ["base", "wal"] {
            fs::create_dir_all(path.join(folder)).unwrap();
        }
        Store { cluster: "16/main".into(), path }
    }

    pub fn segment(store: &Store, run: &str, name: &str) {
        let folder = store.path.join("wal").join(run);
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join(name), "").unwrap();
    }

    #[test]
    fn only_names_of_ours_are_ours() {
        assert!(is_id("20261125T020000Z") && !is_id("20261125T020000Z.partial") && !is_id("20261125t020000Z"));
        assert_eq!(parse_segment("00000002000000010000000A", SEGMENT), Some((2, 0x10A)));
        for name in ["00000002.history", "0000000200000001000001FF", "00000002000000010000000a", "x"] {
            assert_eq!(parse_segment(name, SEGMENT), None, "{name}");
        }
        assert!(Run::parse("/w/7-00000001-0002".into()).is_some() && Run::parse("/w/7-1-2".into()).is_none());
    }

    #[test]
    fn a_gap_is_where_wal_goes_on_behind_what_is_missing() {
        let store = store("gap");
        for (run, name) in [
            ("7-00000001-0001", "000000010000000000000003"),
            ("7-00000001-0001", "000000010000000000000004"),
            ("7-00000001-0001", "000000010000000000000005.partial"),
        ] {
            segment(&store, run, name);
        }
        let wal = store.wal(7, 1, SEGMENT);
        assert_eq!((wal.complete_from(3), wal.gap_from(3), wal.last()), (5, None, Some(5)));
        assert_eq!(wal.gap_from(2), Some(2));
        assert_eq!(wal.gap_from(9), None, "there is nothing behind it");
        segment(&store, "7-00000001-0002", "000000010000000000000007.partial");
        assert_eq!(store.wal(7, 1, SEGMENT).gap_from(3), Some(5), "what was left half received is not whole");
        segment(&store, "7-00000001-0003", "000000010000000000000005");
        segment(&store, "7-00000001-0003", "000000010000000000000006");
        assert_eq!(store.wal(7, 1, SEGMENT).gap_from(3), None);
        assert_eq!(store.next_run(7, 1).number, 4);
        assert_eq!(store.next_run(7, 2).number, 1);
        fs::remove_dir_all(&store.path).unwrap();
    }
}
